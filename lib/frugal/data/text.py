"""Long English text that is always there: the Python documentation's help topics, frozen.

The pages are `pydoc_data.topics` of CPython 3.11 (Python Software Foundation License; assets/licences/PSF.txt), kept
here because the module changes with the Python version. `recipes/build_text.py` builds the file.
Differs from the module: trailing blanks and repeated empty lines are gone, and the one page that stood there twice.
"""
import gzip
import hashlib
import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

ASSET = Path(__file__).parent / "assets" / "python_help_topics.json.gz"
SHA256 = "f884706a0e208c440de3fec1c815e6253e74ceb49baf9156328a2f04ecf6fc18"     # of the uncompressed JSON


@dataclass(frozen=True)
class Page:
    """One help topic: its name and its text."""

    name: str
    text: str


@lru_cache
def _all_pages() -> tuple[Page, ...]:
    content = gzip.decompress(ASSET.read_bytes())
    found = hashlib.sha256(content).hexdigest()
    if found != SHA256:
        raise ValueError(f"{ASSET.name} is damaged: sha256 {found} instead of {SHA256}; reinstall frugal")
    return tuple(Page(name, text) for name, text in json.loads(content).items())


@lru_cache
def documentation_pages(unique: bool = True) -> tuple[Page, ...]:
    """The pages by name. unique: leave out the pages that stand, for more than half, in longer pages as well.

    57 of 78 pages are left (373 kB of 464 kB); without this a long text would repeat itself word for word, and a
    model could copy instead of predict.
    """
    if not unique:
        return _all_pages()
    kept, seen = [], set()
    for page in sorted(_all_pages(), key=lambda page: (-len(page.text), page.name)):
        paragraphs = {part.strip() for part in page.text.split("\n\n") if len(part.strip()) > 40}
        known = sum(len(part) for part in paragraphs & seen)
        if 2 * known <= sum(map(len, paragraphs)):
            kept.append(page)
            seen |= paragraphs
    return tuple(sorted(kept, key=lambda page: page.name))


@lru_cache
def docs_text(unique: bool = True) -> str:
    """All pages as one text, one empty line between two pages."""
    return "\n".join(page.text for page in documentation_pages(unique))
