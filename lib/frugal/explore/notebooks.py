"""Building the notebooks: `notebooks/src/NN_family.py` (py:percent) becomes the executed `notebooks/NN_family.ipynb`.

    python -m frugal.explore.notebooks [build] [NAME ...]     execute and write; all of them if no name is given
    python -m frugal.explore.notebooks check [NAME ...]       the rules of notebook_rules.py; exit code 1 if one is broken

The file is written only here, so that a merge conflict in it is solved by building again. What the build fixes:
cell ids from section and order, execution count 1, no widget state, neighbouring prints joined, and the tag
`nbval-check-output` on every cell whose output is text. A cell whose text differs between machines says so in the
source: `# %% tags=["nbval-ignore-output", "reason: wall-clock time"]`.
"""

import argparse
import json
import re
import sys
import sysconfig
import time
from collections.abc import Iterable
from pathlib import Path

import nbformat
from nbformat import NotebookNode

CHECKED, IGNORED = "nbval-check-output", "nbval-ignore-output"
WIDGET_MIME = "application/vnd.jupyter.widget-view+json"
FIGURE_MIMES = ("application/vnd.frugal.explorer+json", "application/vnd.plotly.v1+json")
STYLED = "a styled table"
CELL_TIMEOUT_S = 300
KERNELSPEC = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}


def notebooks_folder() -> Path:
    """The folder of the committed notebooks: of this checkout, or installed. FileNotFoundError if there is none."""
    checkout = Path(__file__).resolve().parents[3] / "notebooks"
    installed = Path(sysconfig.get_path("data")) / "share" / "frugal" / "notebooks"
    for folder in (checkout, installed):
        if any(folder.glob("[0-9][0-9]_*.ipynb")) or (folder / "src").is_dir():
            return folder
    raise FileNotFoundError(f"no notebooks in {checkout} or {installed}; install frugal again")


def committed(folder: Path | None = None) -> list[Path]:
    """The notebooks, in reading order."""
    return sorted((folder or notebooks_folder()).glob("[0-9][0-9]_*.ipynb"))


def family_of(path: Path) -> str:
    """`kv_eviction` for 01_kv_eviction.ipynb."""
    return path.stem.split("_", 1)[1]


def read_source(path: Path) -> NotebookNode:
    """A py:percent source as a notebook with fixed cell ids and no outputs."""
    import jupytext

    notebook = jupytext.read(path, fmt="py:percent")
    notebook.metadata = NotebookNode(kernelspec=dict(KERNELSPEC), language_info={"name": "python"})
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    for cell, cell_id in zip(notebook.cells, cell_ids(notebook), strict=True):
        cell.id = cell_id
    return notebook


def cell_ids(notebook: NotebookNode) -> list[str]:
    """Ids from the section's heading and the place in it: `try-it-code-2`. An edit elsewhere leaves them alone."""
    ids: list[str] = []
    sections: dict[str, int] = {}
    counts: dict[tuple[str, str], int] = {}
    section = "top"
    for cell in notebook.cells:
        heading = re.search(r"^#{1,2} +(.+)$", cell.source, re.MULTILINE) if cell.cell_type == "markdown" else None
        if heading:
            slug = re.sub(r"[^a-z0-9]+", "-", heading[1].lower()).strip("-")[:36].strip("-") or "section"
            sections[slug] = sections.get(slug, 0) + 1
            section = slug if sections[slug] == 1 else f"{slug}-{sections[slug]}"
        kind = {"markdown": "text", "code": "code", "raw": "raw"}[cell.cell_type]
        counts[section, kind] = counts.get((section, kind), 0) + 1
        ids.append(f"{section}-{kind}-{counts[section, kind]}")
    return ids


def execute(notebook: NotebookNode, folder: Path, timeout_s: int = CELL_TIMEOUT_S) -> None:
    """Run all cells in a new kernel, started in `folder`. nbclient's CellExecutionError names the failing cell."""
    from nbclient import NotebookClient
    from nbclient.output_widget import OutputWidget

    # nbclient's stand-in for the Output widget talks on the socket that is being awaited and then stalls (issue 312)
    OutputWidget.sync_state = lambda self, *args, **kwargs: None
    client = NotebookClient(notebook, timeout=timeout_s, kernel_name="python3", record_timing=False,
                            resources={"metadata": {"path": str(folder)}})  # fmt: skip
    client.execute()


def normalise(notebook: NotebookNode) -> NotebookNode:
    """The executed notebook as it is committed: the same text for the same results."""
    notebook.metadata = NotebookNode(kernelspec=dict(KERNELSPEC), language_info={"name": "python"})
    for cell in notebook.cells:
        tags = cell.metadata.get("tags", [])
        if cell.cell_type == "code":
            cell.execution_count = 1 if cell.source.strip() else None
            cell.outputs = list(_clean(cell.outputs))
            if is_comparable(cell) and not {CHECKED, IGNORED} & set(tags) and "NBVAL_IGNORE_OUTPUT" not in cell.source:
                tags = [*tags, CHECKED]
        cell.metadata = NotebookNode({"tags": list(tags)} if tags else {})
    nbformat.validate(notebook)
    return notebook


def has_figure(cell: NotebookNode) -> bool:
    """Whether a cell shows an explorer or a plotly figure."""
    return any(mime in out.get("data", {}) for out in cell.get("outputs", []) for mime in FIGURE_MIMES)


def is_comparable(cell: NotebookNode) -> bool:
    """Whether a cell has an output that nbval can compare everywhere: text or a table, and no figure.

    A figure's own JSON holds machine-dependent floats; its digest is printed in a comparable cell instead. A styled
    table draws a random id each time; the next cell prints the table as text.
    """
    return cell.cell_type == "code" and bool(cell.outputs) and not has_figure(cell) and not is_styled(cell)


def is_styled(cell: NotebookNode) -> bool:
    """Whether a cell shows a table through pandas' `style`."""
    return any(out.get("data", {}).get("text/plain") == STYLED for out in cell.get("outputs", []))


def build(source: Path, target: Path, timeout_s: int = CELL_TIMEOUT_S) -> Path:
    """Execute one source and write the notebook beside the others, whole or not at all."""
    notebook = read_source(source)
    execute(notebook, target.parent, timeout_s)
    text = written(normalise(notebook))
    part = target.with_suffix(".ipynb.part")
    part.write_text(text, encoding="utf-8")
    part.replace(target)
    return target


def written(notebook: NotebookNode) -> str:
    """The notebook's text, as nbformat writes it, but for figures: their JSON stands on one line each. Indented, every number
    would have a line of its own, and a third of the file would be blanks."""
    from copy import deepcopy

    notebook, figures = deepcopy(notebook), {}
    for cell in notebook.cells:
        for out in cell.get("outputs", []):
            for mime in set(FIGURE_MIMES) & set(out.get("data", {})):
                mark = f"frugal-figure-{len(figures)}-of-{cell.id}"
                figures[f'"{mark}"'] = json.dumps(out.data[mime], ensure_ascii=False, separators=(",", ":"))
                out.data[mime] = mark
    text = nbformat.writes(notebook) + "\n"
    for mark, figure in figures.items():
        text = text.replace(mark, figure, 1)
    return text


def _clean(outputs: Iterable[NotebookNode]) -> Iterable[NotebookNode]:
    """Outputs without widget views and counts; neighbouring pieces of one stream joined; empty ones left out."""
    last: NotebookNode | None = None
    for out in outputs:
        out = NotebookNode(out)
        out.get("data", {}).pop(WIDGET_MIME, None)
        if out.output_type == "stream" and last is not None and last.output_type == "stream" and last.name == out.name:
            last.text += out.text
            continue
        if out.output_type == "execute_result":
            out.execution_count = 1
        if out.get("data", {}).get("text/plain", "").startswith("<pandas.io.formats.style.Styler"):
            out.data["text/plain"] = STYLED
            out.data["text/html"] = re.sub(r"\bT_[0-9a-f]{5}", "T_table", out.data.get("text/html", ""))
        if "data" in out and not out.data:
            continue
        if last is not None:
            yield last
        last = out
    if last is not None:
        yield last


def main(arguments: list[str] | None = None) -> int:
    """The command; gives the exit code."""
    from nbclient.exceptions import CellExecutionError, CellTimeoutError

    from . import notebook_rules

    parser = argparse.ArgumentParser(prog="python -m frugal.explore.notebooks", description="Build or check notebooks.")
    parser.add_argument("action", nargs="?", choices=["build", "check"], default="build")
    parser.add_argument("names", nargs="*", help="e.g. 01_kv_eviction; all if none is given")
    parser.add_argument("--folder", type=Path, default=None, help="the notebooks folder; the repository's by default")
    parser.add_argument("--cell-timeout", type=int, default=CELL_TIMEOUT_S, metavar="SECONDS")
    given = parser.parse_intermixed_args(arguments)
    folder = (given.folder or notebooks_folder()).resolve()
    known = {path.stem: path for path in sorted((folder / "src").glob("[0-9][0-9]_*.py"))}
    unknown = [name for name in given.names if name not in known]
    if unknown or not known:
        print(f"no notebook source {', '.join(unknown) or 'at all'}; in {folder / 'src'}: {', '.join(known) or 'none'}", file=sys.stderr)
        return 2
    broken = 0
    for name in given.names or known:
        target = folder / f"{name}.ipynb"
        started = time.perf_counter()
        if given.action == "build":
            try:
                build(known[name], target, given.cell_timeout)
            except (CellExecutionError, CellTimeoutError) as error:  # the others are still built
                print(f"{name}: not built", re.sub(r"\x1b\[[0-9;]*m", "", str(error)), sep="\n", file=sys.stderr, flush=True)
                broken += 1
                continue
        found = notebook_rules.problems(target, known[name])
        broken += len(found)
        print(f"{name}: {notebook_rules.counts(target) if target.exists() else 'not built'}, {time.perf_counter() - started:.1f} s")
        print("".join(f"  {line}\n" for line in found), end="", flush=True)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
