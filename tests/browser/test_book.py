"""The built book in a real browser, from file: pages: every recorded figure moves and shows the library's numbers.

The payload saved in a notebook is the library's: nbval compares its digest with a fresh run's. Here the numbers the
page draws are compared with `unpack(payload, **choices)`, and, for the toy, with the figure function itself.
"""

import random
import re
import sys
from pathlib import Path

import nbformat
import numpy as np
import pytest

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "explore")]

import toy_notebook  # noqa: E402
from lab import Watch  # noqa: E402

from frugal.explore import book, unpack  # noqa: E402
from frugal.explore.book_pages import as_payload  # noqa: E402
from frugal.explore.notebooks import committed  # noqa: E402

pytestmark = pytest.mark.browser
SETTINGS = 5
COMMITTED = committed(Path(__file__).parents[2] / "notebooks")
DRAWN = """async (element) => { await element.frugal.ready; await new Promise((r) => setTimeout(r, 0));
  const list = (v) => v && v.length !== undefined && typeof v !== 'string' ? Array.from(v, list) : v;
  return {choices: element.frugal.choices(), digest: element.dataset.digest, missing: element.querySelector('.frugal-missing').textContent,
    data: element.frugal.figure().data.map((t) => Object.fromEntries(['x', 'y', 'z'].filter((n) => t[n] !== undefined).map((n) => [n, list(t[n])])))}; }"""
MOVE = """async ([element, indices]) => { await element.frugal.ready;
  for (const [name, index] of Object.entries(indices)) {
    const input = element.querySelector(`[name="${name}"]`);
    if (input.tagName === 'SELECT') { input.selectedIndex = index; input.dispatchEvent(new Event('change')); }
    else { input.value = index; input.dispatchEvent(new Event('input')); }
    await element.frugal.set(name, index);
  } }"""


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """The executed toy notebook."""
    return toy_notebook.built(tmp_path_factory.mktemp("toy"))[1]


@pytest.fixture(scope="module")
def site(toy, tmp_path_factory):
    """The book of the committed notebooks and the toy."""
    out = tmp_path_factory.mktemp("site") / "book"
    book.build(out, [*COMMITTED, toy])
    return out


@pytest.fixture
def page(chromium):
    """A page without network whose errors and outside requests fail the test."""
    context = chromium.new_context(offline=True, accept_downloads=True)
    page = context.new_page()
    dialogs = []
    page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
    watch = Watch(page)
    yield page
    watch.check()
    assert dialogs == [], "text from the data ran as a script"
    context.close()


def payloads(path):
    """The payloads of a notebook, in order."""
    outputs = [out for cell in nbformat.read(path, as_version=4).cells for out in cell.get("outputs", [])]
    return [found for out in outputs if (found := as_payload(out.get("data", {}))) is not None]


def open_page(page, site, name):
    page.goto((site / name).as_uri())
    page.wait_for_function("[...document.querySelectorAll('.frugal-explorer')].every((e) => e.frugal)")
    return page.query_selector_all(".frugal-explorer")


def assert_shows(drawn, want):
    """The drawn traces hold the wanted numbers to 1e-6, and the wanted texts."""
    assert len(drawn) == len(want)
    for got, trace in zip(drawn, want):
        for name in set(got) & set(trace):
            a, b = np.asarray(got[name], dtype=object).reshape(-1), np.asarray(trace[name], dtype=object).reshape(-1)
            assert len(a) == len(b), name
            for one, other in zip(a, b):
                if isinstance(other, (int, float, np.number)) and not isinstance(other, bool):
                    one = float("nan") if one is None else one
                    assert one == pytest.approx(float(other), rel=1e-6, abs=1e-12, nan_ok=True), name
                else:
                    assert one == (other.item() if isinstance(other, np.generic) else other), name


def check_figures(page, site, path):
    """Move every figure of a page to five random settings and compare."""
    rng = random.Random(path.stem)
    elements, saved = open_page(page, site, f"{path.stem}.html"), payloads(path)
    assert len(elements) == len(saved)
    moved = 0
    for element, payload in zip(elements, saved):
        for _ in range(SETTINGS if payload["controls"] else 1):
            indices = {control["name"]: rng.randrange(len(control["values"])) for control in payload["controls"]}
            page.evaluate(MOVE, [element, indices])
            shown = element.evaluate(DRAWN)
            choices = {control["name"]: control["values"][indices[control["name"]]] for control in payload["controls"]}
            assert shown["choices"] == choices and shown["digest"] == payload["digest"]
            try:
                want = unpack(payload, **choices)["data"]
            except LookupError as error:
                assert str(error.args[0]) in shown["missing"]
                continue
            assert_shows(shown["data"], want)
            moved += bool(payload["controls"])
        if payload["live"]:
            assert payload["live"] in element.text_content()
    return moved


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.stem)
def test_every_recorded_figure_of_a_notebook_shows_its_numbers(page, site, path):
    check_figures(page, site, path)
    assert page.evaluate("document.querySelectorAll('mjx-merror').length") == 0


def test_the_toy_shows_what_its_figure_function_says(page, site, toy):
    assert check_figures(page, site, toy) == SETTINGS
    element = page.query_selector(".frugal-explorer")
    for budget, loss in [(0, 10 / 32), (1, 10 / 64), (2, 10 / 128)]:
        page.evaluate(MOVE, [element, {"method": 0, "budget_tok": budget}])
        (trace,) = element.evaluate(DRAWN)["data"]
        assert trace["y"] == pytest.approx([loss, 2 * loss], rel=1e-6)


def test_a_wrong_number_on_the_page_is_found(page, site, toy):
    element = open_page(page, site, "01_toy.html")[0]
    drawn, want = element.evaluate(DRAWN)["data"], unpack(payloads(toy)[0])["data"]
    assert_shows(drawn, want)
    drawn[0]["y"][0] *= 1 + 3e-6
    with pytest.raises(AssertionError):
        assert_shows(drawn, want)


def test_the_keyboard_moves_a_slider_and_a_list(page, site):
    element = open_page(page, site, "01_toy.html")[0]
    before = element.evaluate(DRAWN)
    page.focus(".frugal-explorer input[type=range]")
    page.keyboard.press("ArrowRight")
    page.wait_for_function("document.querySelector('.frugal-explorer').frugal.choices().budget_tok === 128")
    page.focus(".frugal-explorer select")
    page.keyboard.press("ArrowDown")
    page.wait_for_function("document.querySelector('.frugal-explorer').frugal.choices().method !== 'full'")
    page.wait_for_timeout(100)
    after = element.evaluate(DRAWN)
    assert before["data"][0]["y"][0] == pytest.approx(10 / 64) and after["data"][0]["y"][0] == pytest.approx(10 / 128 + 1)


def test_equations_are_drawn_and_code_unfolds(page, site):
    open_page(page, site, "01_toy.html")
    page.wait_for_selector("mjx-container svg")
    source = page.query_selector(".frugal-explorer ~ * details.frugal-source, details.frugal-source")
    assert not source.query_selector("pre").is_visible()
    source.query_selector("summary").click()
    assert "def resolve" in source.inner_text()


def test_the_search_finds_a_word_of_a_notebook(page, site):
    page.goto((site / "search.html").as_uri() + "?q=secretanswer")
    page.wait_for_selector("#search-results li a", timeout=10_000)
    links = [link.get_attribute("href") for link in page.query_selector_all("#search-results li a")]
    assert any("01_toy.html" in link for link in links)


def test_the_summary_prints_on_one_page(page, site, toy):
    for path in [*COMMITTED, toy]:
        page.goto((site / "print" / f"{path.stem}.html").as_uri())
        page.wait_for_timeout(500)
        pdf = page.pdf(prefer_css_page_size=True)
        assert len(re.findall(rb"/Type\s*/Page\b", pdf)) == 1, path.stem


def test_the_index_leads_to_every_page(page, site, toy):
    page.goto((site / "index.html").as_uri())
    links = {link.get_attribute("href") for link in page.query_selector_all("article a")}
    assert {f"{path.stem}.html" for path in [*COMMITTED, toy]} <= links
    assert {f"print/{path.stem}.html" for path in [*COMMITTED, toy]} <= links
