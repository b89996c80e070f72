import gzip
import json
import sys
from pathlib import Path

import pytest

from frugal.data import text

sys.path.insert(0, str(Path(__file__).parents[2] / "recipes"))
from build_text import frozen, normalised  # noqa: E402


def test_the_text_is_long_english_and_frozen():
    pages = text.documentation_pages(unique=False)
    assert len(pages) == 78 and 450_000 < len(text.docs_text(unique=False)) < 480_000
    assert [page.name for page in pages] == sorted(page.name for page in pages)
    words = text.docs_text().lower().split()
    assert 0.05 < words.count("the") / len(words) < 0.09
    assert text.docs_text().startswith('The "assert" statement')


def test_unique_pages_do_not_repeat_each_other():
    def paragraphs(page):
        return {part.strip() for part in page.text.split("\n\n") if len(part.strip()) > 40}
    pages, everything = text.documentation_pages(), text.documentation_pages(unique=False)
    assert len(pages) == 57 and set(pages) < set(everything)
    repeated = [part for page in pages for part in paragraphs(page)]
    assert len(repeated) - len(set(repeated)) < 0.02 * len(repeated)
    of_all = [part for page in everything for part in paragraphs(page)]
    assert len(of_all) - len(set(of_all)) > 0.15 * len(of_all)
    assert set(repeated) >= {part for part in of_all if len(part) > 400}      # what was left out stands elsewhere


@pytest.mark.skipif(sys.version_info[:3] != (3, 11, 7), reason="the text is that of CPython 3.11.7")
def test_the_recipe_builds_the_committed_file():
    from pydoc_data.topics import topics
    assert frozen(topics) == gzip.decompress(text.ASSET.read_bytes())


def test_the_recipe_is_deterministic_and_drops_what_stands_twice():
    made = frozen({"b": "two\n", "a": "one  \n\n\n\nmore", "c": "two"})
    assert json.loads(made) == {"a": "one\n\nmore\n", "b": "two\n"} and made == frozen({"c": "two", "a": "one\n\nmore\n", "b": "two"})
    assert normalised(normalised("a \t\n\n\n b")) == normalised("a \t\n\n\n b") == "a\n\n b\n"


def test_a_damaged_file_is_named(tmp_path, monkeypatch):
    path = tmp_path / "python_help_topics.json.gz"
    path.write_bytes(gzip.compress(gzip.decompress(text.ASSET.read_bytes()).replace(b"the", b"teh", 1)))
    monkeypatch.setattr(text, "ASSET", path)
    text._all_pages.cache_clear()
    with pytest.raises(ValueError, match="python_help_topics.json.gz is damaged: sha256 .* reinstall"):
        text._all_pages()
    text._all_pages.cache_clear()


def test_the_licence_is_beside_the_text():
    assert "PYTHON SOFTWARE FOUNDATION LICENSE" in (text.ASSET.parent / "licences" / "PSF.txt").read_text()
