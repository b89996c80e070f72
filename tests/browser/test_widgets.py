"""What explorers promise on the page: independence, no dead widgets, one script, escaped text, recovery, export."""

import io
import json
import time
from pathlib import Path

import nbformat
import pytest
from drive import EXPECTED, NUMBER_THEM, compare, wait_for_status
from examples import LIVE, RECORDED, SETUP, write
from lab import Watch, kernel, open_notebook, run_all
from frugal.explore.notebooks import normalise
from PIL import Image

pytestmark = pytest.mark.browser


@pytest.fixture
def page(chromium):
    """A page with a watch on errors and outside requests, checked when the test is over."""
    page = chromium.new_page(viewport={"width": 1280, "height": 1000}, accept_downloads=True)
    watch = Watch(page)
    yield page
    page.close()
    watch.check()


@pytest.fixture
def notebook(page, jupyterlab, request):
    """Opens a notebook of the given cells, runs it and gives the explorers in order."""
    url, token, folder = jupyterlab

    def opened(*cells: str):
        name = f"{request.node.name.replace('[', '-').replace(']', '')}.ipynb"
        write(folder / name, [SETUP, *cells])
        open_notebook(page, url, token, name)
        run_all(page)
        numbers = page.evaluate(NUMBER_THEM)
        return [page.locator(f'[data-test-number="{number}"]') for number in numbers]

    return opened


def test_two_explorers_on_a_page_move_on_their_own(page, notebook):
    first, second = notebook(RECORDED, "explore(recall, rows, method=METHODS[:2], budget=[0.1, 0.2, 0.5])")
    kernel(page, EXPECTED)
    slider = first.locator("input[type=range]")
    slider.focus()
    page.keyboard.press("End")
    compare(page, first)
    compare(page, second)
    assert first.evaluate("(e) => e.frugal.choices().budget") == 1.0
    assert second.evaluate("(e) => e.frugal.choices().budget") == 0.2


def test_the_comparison_notices_a_wrong_number(page, notebook):
    """The driver itself: a page that shows another point than its controls say must not pass."""
    (explorer,) = notebook(RECORDED)
    kernel(page, EXPECTED)
    compare(page, explorer)
    explorer.evaluate("(e) => { e.frugal.figure().data[0].y[1] *= 1.00001; }")
    with pytest.raises(AssertionError, match=r"traces|\[0\]\.y\[1\]|items"):
        compare(page, explorer)


def test_the_script_is_loaded_once_and_leaves_no_global_plotly(page, notebook):
    explorers = notebook(RECORDED, "explore(recall, rows, budget=[0.1, 0.2])", LIVE)
    assert len(explorers) == 3
    assert page.evaluate("globalThis.__frugal_modules.size") == 1
    assert page.evaluate("typeof globalThis.Plotly") == "undefined"
    assert page.evaluate("document.querySelectorAll('style[id^=frugal-style]').length") == 1


def test_running_a_cell_again_leaves_one_widget(page, notebook):
    notebook(RECORDED)
    count = """
from ipywidgets.widgets.widget import _instances
from frugal.explore.frontend import View
print(sum(isinstance(widget, View) for widget in _instances.values()))"""
    counts = []
    for _ in range(3):
        page.evaluate("jupyterapp.commands.execute('notebook:run-all-cells')")
        page.wait_for_timeout(300)
        page.evaluate(NUMBER_THEM)
        counts.append(int(kernel(page, count)))
    assert page.locator(".jp-OutputArea .frugal-explorer").count() == 1
    assert counts == [1, 1, 1], "views pile up in the kernel"


def test_text_with_html_and_script_is_shown_as_it_is(page, notebook):
    (explorer,) = notebook(RECORDED)
    dialogs = []
    page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
    explorer.locator("select").select_option(index=3)
    explorer.evaluate("(e) => e.frugal.idle()")
    assert explorer.locator(".gtitle").text_content() == "Recall of <img src=x onerror=alert(1)>"
    assert explorer.locator("img, script").count() == 0
    explorer.locator("select").select_option(index=1)
    explorer.locator("input[type=range]").evaluate("(i) => { i.value = 1; i.dispatchEvent(new Event('input')); }")
    explorer.evaluate("(e) => e.frugal.idle()")
    assert "BudgetTooSmall: 3 < 4 </script><script>alert(2)</script>" in explorer.locator(".frugal-note").text_content()
    explorer.locator("summary").click()
    assert explorer.locator(".frugal-table tbody tr").count() > 5
    assert dialogs == []


def test_the_buttons_save_what_is_shown(page, notebook):
    (explorer,) = notebook(RECORDED)

    def saved(kind: str) -> bytes:
        with page.expect_download() as download:
            explorer.get_by_role("button", name=f"Save as {kind}").click()
        assert download.value.suggested_filename == f"recall_method-keyformer_budget-20-.{kind.lower()}"
        return Path(download.value.path()).read_bytes()

    with Image.open(io.BytesIO(saved("PNG"))) as image:
        assert image.width > 800 and image.convert("RGB").getpixel((1, 1)) == (255, 255, 255)
    svg = saved("SVG")
    assert svg.startswith(b"<svg") and b"Recall of keyformer" in svg
    lines = saved("CSV").decode().split("\r\n")
    assert lines[0] == "series,budget (share of the prompt),recall (share)" and lines[1].startswith("full,0.05,0.1")
    facts = json.loads(saved("JSON"))
    assert facts["choices"] == {"method": "keyformer", "budget": 0.2}
    assert facts["table"]["columns"] == ["series", "budget (share of the prompt)", "recall (share)"]


def test_a_live_run_recovers_from_a_crash_a_cancel_and_bad_input(page, notebook, tmp_path):
    (form,) = notebook(LIVE)
    prompt, run = form.locator("textarea"), form.get_by_role("button", name="Run")
    status = form.locator(".frugal-status")

    prompt.fill("please crash")
    run.click()
    wait_for_status(page, form, "failed", 5)
    assert status.text_content() == "The run failed: RuntimeError: asked to crash <b>now</b>"

    prompt.fill(" ")
    run.click()
    wait_for_status(page, form, "empty", 5)

    none = tmp_path / "none.png"
    none.write_bytes(b"<script>alert(1)</script>")
    prompt.fill("one two three")
    form.locator("input[type=file]").set_input_files(none)
    run.click()
    wait_for_status(page, form, "no picture", 5)
    good = tmp_path / "good.png"
    Image.new("RGB", (5, 7), (255, 0, 0)).save(good)
    form.locator("input[type=file]").set_input_files(good)

    slider = form.locator("input[type=range]")
    slider.focus()
    page.keyboard.press("End")  # 200 steps, ten seconds
    run.click()
    page.wait_for_function("(f) => f.dataset.running === 'true'", arg=form.locator("form").element_handle())
    form.get_by_text("left").wait_for(timeout=5000)
    assert run.is_disabled()
    begun = time.monotonic()
    form.get_by_role("button", name="Cancel").click()
    wait_for_status(page, form, "Cancelled", 5)
    assert time.monotonic() - begun < 1.0

    slider.focus()
    page.keyboard.press("Home")
    run.click()
    wait_for_status(page, form, "Done", 10)
    form.evaluate("(e) => e.frugal.idle()")
    assert form.evaluate("(e) => e.frugal.figure().data[0].text") == ["one", "two", "three"]
    assert "(5, 7)" in kernel(page, "print(form.result['pixels'].size)")


def test_a_committed_notebook_shows_the_first_figure_before_any_cell_is_run(page, notebook, jupyterlab):
    url, token, folder = jupyterlab
    notebook(RECORDED)
    page.evaluate("jupyterapp.commands.execute('docmanager:save')")
    (saved,) = folder.glob("test_a_committed*.ipynb")
    nbformat.write(normalise(nbformat.read(saved, 4)), folder / "committed.ipynb")
    open_notebook(page, url, token, "committed.ipynb")
    page.wait_for_selector(".jp-OutputArea .js-plotly-plot .gtitle", timeout=30_000)
    assert page.locator(".jp-OutputArea .gtitle").text_content() == "Recall of keyformer"
    assert page.locator(".frugal-explorer").count() == 0
