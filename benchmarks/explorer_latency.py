"""How fast explorers answer in a real JupyterLab: from moving a slider to the changed figure, and from cell to figure.

    python benchmarks/explorer_latency.py [--moves 100] [--out FILE.json] [--check]

Needs Chromium and the test extra. The example notebook has a line chart of three series and a cache map of 24 steps.
Times are those of the page's own clock: a move is timed from the `input` event to plotly's "after plot" event and the
frame that follows it; a start from the moment the finished cell's output is in the page's model to the drawn figure.
With --check the exit code is 1 where the 95th percentile of the moves exceeds 250 ms or a start takes a second.
"""

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "browser"))
from drive import NUMBER_THEM  # noqa: E402
from examples import MAP, RECORDED, SETUP, write  # noqa: E402
from lab import browser, chromium, lab, open_notebook, run_all  # noqa: E402

LIMIT_MS, START_LIMIT_MS = 250.0, 1000.0
MOVES = """async ([element, count]) => {
  const slider = element.querySelector('input[type=range]');
  const plot = element.querySelector('.frugal-plot');
  const times = [];
  for (let i = 0; i < count; i++) {
    const drawn = new Promise((done) => plot.once('plotly_afterplot', () => requestAnimationFrame(done)));
    slider.value = (Number(slider.value) + 1) % (Number(slider.max) + 1);
    const begun = performance.now();
    slider.dispatchEvent(new Event('input', { bubbles: true }));
    await drawn;
    times.push(performance.now() - begun);
    await new Promise((done) => setTimeout(done, 20));
  }
  return times;
}"""
START = """async (index) => {
  const cell = jupyterapp.shell.currentWidget.content.widgets[index];
  jupyterapp.shell.currentWidget.content.activeCellIndex = index;
  const arrived = new Promise((done) => {
    const changed = (model) => {
      if (!model.toJSON().some((o) => o.data?.['application/vnd.frugal.explorer+json'])) return;
      model.changed.disconnect(changed);
      done(performance.now());
    };
    cell.model.outputs.changed.connect(changed);
  });
  const run = jupyterapp.commands.execute('notebook:run-cell');
  const begun = await arrived;
  while (!cell.node.querySelector('.frugal-explorer')?.frugal) await new Promise((done) => setTimeout(done, 2));
  await cell.node.querySelector('.frugal-explorer').frugal.ready;
  const taken = performance.now() - begun;
  await run;
  return taken;
}"""


def measure(num_moves: int) -> dict[str, dict[str, float]]:
    """Milliseconds: {"line chart" | "cache map": {first_start, second_start, median, p95, worst}}."""
    results = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        with lab(folder) as (url, token), browser() as running:
            for name, cell in (("line chart", RECORDED), ("cache map", MAP)):
                page = running.new_page(viewport={"width": 1280, "height": 1000})
                write(folder / f"{name}.ipynb", [SETUP, "1", "1"])
                open_notebook(page, url, token, f"{name}.ipynb")
                run_all(page)
                starts = []
                for index in (1, 2):  # the second explorer finds the scripts in the page
                    page.evaluate("([i, text]) => jupyterapp.shell.currentWidget.content.widgets[i].model.sharedModel.setSource(text)",
                                  [index, cell.strip()])  # fmt: skip
                    starts.append(page.evaluate(START, index))
                page.evaluate(NUMBER_THEM)
                element = page.locator("[data-test-number='0']").element_handle()
                page.evaluate(MOVES, [element, 10])  # warm up
                times = sorted(page.evaluate(MOVES, [element, num_moves]))
                results[name] = {
                    "first_start_ms": starts[0], "second_start_ms": starts[1], "median_ms": statistics.median(times),
                    "p95_ms": times[int(0.95 * (len(times) - 1))], "worst_ms": times[-1],
                }  # fmt: skip
                page.close()
    return results


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--moves", type=int, default=100)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    if chromium() is None:
        print("no Chromium or Chrome found (Debian: apt-get install chromium)", file=sys.stderr)
        return 2
    results = measure(options.moves)
    columns = ["first_start_ms", "second_start_ms", "median_ms", "p95_ms", "worst_ms"]
    print(f"{'figure':12}" + "".join(f"{column:>17}" for column in columns))
    for name, row in results.items():
        print(f"{name:12}" + "".join(f"{row[column]:17.0f}" for column in columns))
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps({"moves": options.moves, "results": results}, indent=1) + "\n")
    slow = [name for name, row in results.items() if row["p95_ms"] > LIMIT_MS or row["first_start_ms"] > START_LIMIT_MS]
    if slow and options.check:
        print(f"too slow: {', '.join(slow)} (limits: {LIMIT_MS:.0f} ms a move, {START_LIMIT_MS:.0f} ms a start)", file=sys.stderr)
    return 1 if slow and options.check else 0


if __name__ == "__main__":
    sys.exit(main())
