"""The static edition's files: what is there, what is folded, what is escaped, what is refused. (In a browser: tests/browser.)"""

import hashlib
import json
import os
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import nbformat
import pytest

sys.path.insert(0, str(Path(__file__).parent))

import toy_notebook  # noqa: E402

from frugal.explore import book, book_pages  # noqa: E402
from frugal.explore.notebooks import committed  # noqa: E402

pytest.importorskip("sphinx")
LIMIT_S = 60.0


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """The executed toy notebook."""
    return toy_notebook.built(tmp_path_factory.mktemp("toy"))[1]


@pytest.fixture(scope="module")
def site(toy, tmp_path_factory):
    """(folder, processor seconds, what the build said) of the book of all committed notebooks, or of the toy."""
    out = tmp_path_factory.mktemp("site") / "book"
    before = sum(os.times()[:4])  # processor time, of Sphinx's process as well
    said = book.build(out, [*committed(Path(__file__).parents[2] / "notebooks"), toy])
    return out, sum(os.times()[:4]) - before, said


class Links(HTMLParser):
    """Everything a page loads by itself."""

    def __init__(self, text):
        super().__init__()
        self.loads = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if tag in ("script", "img", "iframe", "source") and attrs.get("src"):
            self.loads.append(attrs["src"])
        if tag == "link" and attrs.get("rel") in ("stylesheet", "icon", "preload", "preconnect"):
            self.loads.append(attrs["href"])


def test_it_builds_without_a_warning(site):
    out, seconds, said = site
    assert "warning" not in said, said
    assert seconds < LIMIT_S and (out / "index.html").is_file() and (out / "search.html").is_file()


def test_nothing_is_loaded_from_elsewhere_and_everything_named_is_there(site):
    out = site[0]
    for page in out.rglob("*.html"):
        for link in Links(page.read_text()).loads:
            assert not re.match(r"\w+:|//", link), f"{page.name} loads {link}"
            assert (page.parent / link.split("?")[0]).is_file(), f"{page.name} names {link}, which is not there"


def test_shared_scripts_are_there_once_and_a_page_stays_small(site):
    out = site[0]
    for name in ("plotly-cartesian.min.js", "frugal.js", "tex-svg.js"):
        assert len(list(out.rglob(name))) == 1
    for page in out.rglob("*.html"):
        assert page.stat().st_size < book_pages.PAGE_LIMIT_BYTES + 1_000_000


def test_the_payload_in_the_page_is_the_notebooks(site, toy):
    text = (site[0] / "01_toy.html").read_text()
    held = re.findall(r'<div class="frugal-explorer"><script type="application/json">(.*?)</script></div>', text, re.DOTALL)
    outputs = [out for cell in nbformat.read(toy, as_version=4).cells for out in cell.get("outputs", [])]
    saved = [out.data[book_pages.FIGURE_MIMES[0]] for out in outputs if book_pages.FIGURE_MIMES[0] in out.get("data", {})]
    assert [json.loads(one) for one in held] == saved and len(saved) == 1


def test_html_in_data_is_escaped(site):
    text = (site[0] / "01_toy.html").read_text()
    assert "<script>alert" not in text and "<img src=x" not in text


def test_library_code_is_folded_below_its_figure_and_the_widgets_own_is_not(site):
    text = (site[0] / "01_toy.html").read_text()
    after = text[text.index("frugal-explorer") :]
    folded = re.findall(r'<details class="frugal-source">.*?</details>', after, re.DOTALL)
    assert len(folded) == 1 and "resolve" in folded[0] and "core/budgets.py" in folded[0]


def test_each_notebook_has_a_page_to_print_and_its_questions_folded(site, toy):
    out = site[0]
    for path in [*committed(Path(__file__).parents[2] / "notebooks"), toy]:
        printed = (out / "print" / f"{path.stem}.html").read_text()
        assert "on one page" in printed and "frugal-explorer" not in printed
        assert (out / f"{path.stem}.html").read_text().count("<details") >= 3
    assert "Loss falls with" in (out / "print" / "01_toy.html").read_text()


def test_building_again_replaces_the_book_but_nothing_else(toy, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    with pytest.raises(ValueError, match="is no book"):
        book.build(tmp_path / "mine", [toy])
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "x"
    book.build(tmp_path / "book", [toy])
    (tmp_path / "book" / "old.html").write_text("left over")
    book.build(tmp_path / "book", [toy])
    assert not (tmp_path / "book" / "old.html").exists() and (tmp_path / "book" / "01_toy.html").exists()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_page_with_too_much_data_and_a_book_of_nothing_are_refused(toy, tmp_path, monkeypatch):
    monkeypatch.setattr(book_pages, "PAGE_LIMIT_BYTES", 1000)
    with pytest.raises(ValueError, match="MB of data; at most"):
        book.build(tmp_path / "big", [toy])
    with pytest.raises(FileNotFoundError, match="make notebooks"):
        book.build(tmp_path / "none", [])
    assert list(tmp_path.iterdir()) == []


def test_a_plain_plotly_figure_becomes_an_explorer_without_controls():
    import plotly.graph_objects as go

    from frugal.explore import unpack

    fig = go.Figure(go.Scatter(x=[1, 2, 3], y=[0.1, 0.25, 1 / 3]), {"title": "<b>t</b>"})
    payload = book_pages.as_payload({book_pages.FIGURE_MIMES[1]: fig.to_plotly_json()})
    point = unpack(payload)
    assert list(point["data"][0]["y"]) == pytest.approx([0.1, 0.25, 1 / 3], rel=1e-6) and payload["controls"] == []
    assert book_pages.as_payload({"text/plain": "x"}) is None


def test_missing_tools_are_named(monkeypatch, tmp_path):
    import importlib.util

    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == "furo" else real(name, *more))
    with pytest.raises(ImportError, match=r"furo.*frugal\[book\]"):
        book.build(tmp_path / "book")


def test_mathjax_is_as_published():
    folder = book.STATIC / "mathjax"
    assert hashlib.sha256((folder / "tex-svg.js").read_bytes()).hexdigest() in (folder / "README.md").read_text()
    assert "Apache License" in (folder / "LICENSE").read_text()
