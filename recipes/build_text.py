"""Freeze the Python help topics into lib/frugal/data/assets. Run with CPython 3.11: python recipes/build_text.py

Prints the SHA-256 that data/text.py checks. Another Python version gives another text, so its number changes too.
"""
import gzip
import hashlib
import json
import re
import shutil
import sys
import sysconfig
from pathlib import Path

ASSETS = Path(__file__).parents[1] / "lib" / "frugal" / "data" / "assets"


def normalised(text: str) -> str:
    """No trailing blanks, no repeated empty lines, exactly one newline at the end."""
    text = "\n".join(line.rstrip() for line in text.expandtabs().splitlines())
    return re.sub(r"\n{3,}", "\n\n", text).strip("\n") + "\n"


def frozen(topics: dict[str, str]) -> bytes:
    """The pages as JSON, by name, identical bytes for identical pages; of equal pages the first name stays."""
    pages = {name: normalised(topics[name]) for name in sorted(topics)}
    first = {text: name for name, text in reversed(pages.items())}
    pages = {name: text for name, text in pages.items() if first[text] == name}
    return json.dumps(pages, ensure_ascii=False, indent=0).encode()


def main() -> None:
    from pydoc_data.topics import topics
    content = frozen(topics)
    (ASSETS / "licences").mkdir(parents=True, exist_ok=True)
    (ASSETS / "python_help_topics.json.gz").write_bytes(gzip.compress(content, compresslevel=9, mtime=0))
    shutil.copyfile(Path(sysconfig.get_path("stdlib")) / "LICENSE.txt", ASSETS / "licences" / "PSF.txt")
    print(f"Python {sys.version.split()[0]}: {len(json.loads(content))} pages, {len(content)} bytes, "
          f"sha256 {hashlib.sha256(content).hexdigest()}")


if __name__ == "__main__":
    main()
