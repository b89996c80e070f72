"""Drive every explorer of a notebook as a reader would, and compare each picture with what the library says."""

import json
import math
import shutil
from pathlib import Path

from lab import Watch, kernel, open_notebook, run_all

DRAW_S = 15  # how long a drawing may take before the test gives up; speed itself is judged in benchmarks/
RUN_S = 240  # how long a live run may take
# What the page shows: every number and text of every trace, typed arrays as lists, NaN as null.
SHOWN = """(element) => {
  const plain = (v) => v === null || v === undefined ? null
    : ArrayBuffer.isView(v) || Array.isArray(v) ? Array.from(v, plain)
    : typeof v === 'number' && !Number.isFinite(v) ? null : typeof v === 'object' ? null : v;
  const { data } = element.frugal.figure();
  const keys = ['x', 'y', 'z', 'base', 'text', 'name'];
  return {
    traces: data.map((trace) => Object.fromEntries(keys.filter((k) => trace[k] !== undefined).map((k) => [k, plain(trace[k])]))),
    choices: element.frugal.choices(), table: element.frugal.table(), summary: element.querySelector('[role=img]').ariaLabel,
    missing: element.querySelector('.frugal-missing').hidden ? null : element.querySelector('.frugal-missing').textContent,
  };
}"""
# The library's answer, computed in the notebook's own kernel by calling the figure function anew.
EXPECTED = """
import json as _json
from frugal.explore import figure_summary as _summary, figure_table as _table
from frugal.explore.payload import plain_json as _plain
from frugal.explore.recorded import Explorer as _Explorer
def _expected(digest, choices):
    explorer = _Explorer.alive[digest]
    try:
        fig = explorer.figure(**choices)
    except (LookupError, ValueError) as error:
        return {"missing": str(error)}
    traces = [trace.to_plotly_json() for trace in fig.data]
    keys = ("x", "y", "z", "base", "text", "name")
    frame = _table(fig)
    return {"traces": [{k: _plain(t[k]) for k in keys if t.get(k) is not None} for t in traces], "summary": _summary(fig),
            "table": {"columns": list(frame), "rows": _json.loads(frame.to_json(orient="split"))["data"]}}
"""


def drive_notebook(browser, url: str, token: str, folder: Path, notebook: Path) -> dict[str, int]:
    """Open a copy of the notebook, run it, move every control, compare every picture; gives what was driven.

    Each control goes to its smallest, its largest and one inner value by mouse, and to all three by keyboard alone.
    Live forms are run once, and cancelled once. Fails on console errors and on requests that leave 127.0.0.1.
    """
    shutil.copy(notebook, folder / notebook.name)
    page = browser.new_page(viewport={"width": 1280, "height": 1000})
    watch = Watch(page)
    try:
        open_notebook(page, url, token, notebook.name)
        run_all(page)
        kernel(page, EXPECTED)
        counts = {"explorers": 0, "controls": 0, "live": 0, "pictures": 0}
        ids = page.evaluate(NUMBER_THEM)
        for number in ids:
            explorer = page.locator(f'[data-test-number="{number}"]')
            explorer.scroll_into_view_if_needed()
            if explorer.locator("form.frugal-form").count():
                drive_live(page, explorer)
                counts["live"] += 1
            else:
                counts["controls"] += drive_recorded(page, explorer, counts)
                counts["explorers"] += 1
        watch.check()
        return counts
    finally:
        page.close()


# Waits until every explorer that the notebook holds is drawn, and numbers them from the top.
NUMBER_THEM = """async () => {
  const wanted = jupyterapp.shell.currentWidget.content.widgets.filter((cell) => cell.model.type === 'code')
    .flatMap((cell) => cell.model.outputs.toJSON()).filter((o) => o.data?.['application/vnd.frugal.explorer+json']).length;
  const found = () => [...document.querySelectorAll('.jp-OutputArea .frugal-explorer')].filter((element) => element.frugal);
  for (let i = 0; i < 200 && found().length < wanted; i++) await new Promise((done) => setTimeout(done, 50));
  const all = found();
  if (all.length !== wanted) throw new Error(`${wanted} explorers in the notebook, ${all.length} on the page`);
  await Promise.all(all.map((element) => element.frugal.ready));
  return all.map((element, i) => (element.dataset.testNumber = String(i)));
}"""


def drive_recorded(page, explorer, counts: dict[str, int]) -> int:
    """Every control by mouse and by keyboard; gives their number."""
    compare(page, explorer)
    inputs = explorer.locator(".frugal-controls :is(input, select)")
    for place in range(inputs.count()):
        control = inputs.nth(place)
        check_accessible(control)
        last = control.evaluate("(c) => c.tagName === 'SELECT' ? c.options.length - 1 : Number(c.max)")
        targets = list(dict.fromkeys([0, last, last // 2]))
        for move in (by_mouse, by_keyboard):
            for target in targets:
                move(control, target, last)
                page.wait_for_timeout(30)
                now = control.evaluate("(c) => c.tagName === 'SELECT' ? c.selectedIndex : Number(c.value)")
                assert now == target, f"{control.get_attribute('name')}: moved to {target} {move.__name__}, stands at {now}"
                compare(page, explorer)
                counts["pictures"] += 1
    return inputs.count()


def by_mouse(control, target: int, last: int) -> None:
    """Press on the slider's track where the value lies; a native list is chosen from."""
    if control.evaluate("(c) => c.tagName") == "SELECT":
        control.select_option(index=target)
        return
    control.scroll_into_view_if_needed()
    box = control.bounding_box()
    thumb = 16
    x = thumb / 2 + (box["width"] - thumb) * target / max(last, 1)
    control.click(position={"x": min(max(x, 1), box["width"] - 1), "y": box["height"] / 2})


def by_keyboard(control, target: int, last: int) -> None:
    """Home, End and arrows; the focus must show."""
    control.focus()
    page = control.page
    is_list = control.evaluate("(c) => c.tagName") == "SELECT"
    near_start = target <= last / 2
    page.keyboard.press("Home" if near_start else "End")
    arrow = ("ArrowDown" if near_start else "ArrowUp") if is_list else ("ArrowRight" if near_start else "ArrowLeft")
    for _ in range(target if near_start else last - target):
        page.keyboard.press(arrow)
    style = control.evaluate("(c) => getComputedStyle(c).outlineStyle")
    assert style not in ("none", ""), "the focused control has no visible outline"


def check_accessible(control) -> None:
    """A name from its label, and for sliders the value as text with its unit."""
    name = control.evaluate("(c) => c.labels?.[0]?.textContent ?? c.ariaLabel ?? ''")
    assert name.strip(), "a control without an accessible name"
    if control.get_attribute("type") == "range":
        assert control.get_attribute("aria-valuetext"), f"{name}: the slider has no value text"


def compare(page, explorer) -> None:
    """The picture on the page against the figure function called in the kernel with the same choices."""
    element = explorer.element_handle()
    page.evaluate("(element) => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))", element)
    page.evaluate("(element) => element.frugal.idle()", element)
    shown = page.evaluate(SHOWN, element)
    digest = element.get_attribute("data-digest")
    call = f"print(_json.dumps(_expected({digest!r}, _json.loads({json.dumps(shown['choices'])!r}))))"
    expected = json.loads(kernel(page, call))
    where = f"{digest} at {shown['choices']}"
    if "missing" in expected:
        assert shown["missing"] and expected["missing"] in shown["missing"], where
        return
    assert shown["missing"] is None, where
    assert shown["summary"] == expected["summary"], where
    assert same(shown["traces"], expected["traces"]), f"{where}: {difference(shown['traces'], expected['traces'])}"
    assert same(shown["table"], expected["table"]), f"{where}: {difference(shown['table'], expected['table'])}"


def same(a, b, tolerance: float = 1e-6) -> bool:
    """Equal up to the tolerance, relative to the larger number."""
    return difference(a, b, tolerance) is None


def difference(a, b, tolerance: float = 1e-6, path: str = "") -> str | None:
    """Where two pieces of JSON first differ; None if they agree."""
    if isinstance(a, dict) and isinstance(b, dict):
        if a.keys() != b.keys():
            return f"{path}: keys {sorted(a)} and {sorted(b)}"
        return next((d for key in a if (d := difference(a[key], b[key], tolerance, f"{path}.{key}"))), None)
    if isinstance(a, list) and isinstance(b, list):
        if len(a) != len(b):
            return f"{path}: {len(a)} and {len(b)} items"
        return next((d for i, (x, y) in enumerate(zip(a, b)) if (d := difference(x, y, tolerance, f"{path}[{i}]"))), None)
    numbers = [isinstance(v, (int, float)) and not isinstance(v, bool) for v in (a, b)]
    agree = math.isclose(a, b, rel_tol=tolerance, abs_tol=1e-12) if all(numbers) else a == b
    return None if agree else f"{path}: {a!r} and {b!r}"


def drive_live(page, explorer) -> None:
    """Run with the inputs as they stand, by keyboard; then run again and cancel: the form must be free within a second."""
    run, cancel = explorer.get_by_role("button", name="Run"), explorer.get_by_role("button", name="Cancel")
    for place in range(explorer.locator(".frugal-form :is(input, select, textarea)").count()):
        check_accessible(explorer.locator(".frugal-form :is(input, select, textarea)").nth(place))
    run.focus()
    page.keyboard.press("Enter")
    wait_for_status(page, explorer, "Done", RUN_S)
    status = explorer.locator(".frugal-status")
    element = explorer.element_handle()
    page.evaluate("(element) => element.frugal.idle()", element)
    drawn = page.evaluate(SHOWN, element)["traces"]
    expected = json.loads(kernel(page, LIVE_EXPECTED.format(element.get_attribute("data-digest"))))
    assert same(drawn, expected), difference(drawn, expected)
    status.evaluate("(s) => { s.textContent = ''; }")  # else the first run's "Done" passes for the second one's
    run.click()
    page.wait_for_function("(form) => form.dataset.running === 'true' || /Done/.test(form.textContent)",
                           arg=explorer.locator("form").element_handle(), timeout=5000)  # fmt: skip
    in_time = cancel.is_enabled()
    if in_time:
        cancel.evaluate("(button) => button.click()")  # in the page: a short run may end, and disable it, before the mouse is there
    wait_for_status(page, explorer, "Cancelled|Done", 1 if in_time else RUN_S)
    assert run.is_enabled() and not status.evaluate("(s) => s.classList.contains('frugal-bad')")


LIVE_EXPECTED = """
from frugal.explore.live import LiveExplorer as _Live
_form = next(form for form in _Live.alive.values() if form.digest == {!r})
_keys = ("x", "y", "z", "base", "text", "name")
print(_json.dumps([{{k: _plain(t[k]) for k in _keys if t.get(k) is not None}} for t in (s.to_plotly_json() for s in _form.figure().data)]))
"""


def wait_for_status(page, explorer, pattern: str, limit_s: float) -> None:
    page.wait_for_function(
        "([form, pattern]) => form.dataset.running === 'false' && new RegExp(pattern).test(form.querySelector('[role=status]').textContent)",
        arg=[explorer.locator("form").element_handle(), pattern], timeout=1000 * limit_s,
    )  # fmt: skip
