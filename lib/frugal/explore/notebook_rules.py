"""The rules a committed notebook keeps, checked without running it.

Source and notebook are equal; every code cell was run, once, without error or warning; the file is small and holds
no widget state; at least 98 % of the cells with text output are compared by nbval, and each that is not says why;
each figure's digest is printed in a compared cell; stubs are the exercises' own; the reading-group kit is there.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from .notebooks import CHECKED, FIGURE_MIMES, IGNORED, WIDGET_MIME, has_figure, is_comparable, is_styled, read_source

LIMIT_BYTES = 3_000_000
SHARE = 0.98
UNCHECKED = {IGNORED, "nbval-skip", "nbval-raises-exception", "raises-exception"}
UNSTABLE = [(r"\b0x[0-9a-f]{6,}", "an object's address"), (r"/tmp/\S+", "a temporary path"),
            (r"(/home|/root|/Users)/\S+", "a path of this machine"), (r"\d+%\|[ #█▏▎▍▌▋▊▉]", "a progress bar")]  # fmt: skip
MIN_QUESTIONS = 3


@dataclass(frozen=True)
class Counts:
    """How much of a notebook nbval runs and compares. Cells without code are not counted.

    code: code cells; executed: those with an execution count. text: cells with text output, less those ignored with
    a reason; compared: those nbval compares strictly. ignored: cells with an ignore tag and a reason.
    """

    code: int
    executed: int
    text: int
    compared: int
    ignored: int
    size_bytes: int

    @property
    def enough(self) -> bool:
        return self.executed >= SHARE * self.code and self.compared >= SHARE * self.text

    def __str__(self) -> str:
        return (f"{self.executed} of {self.code} code cells run, {self.compared} of {self.text} text outputs compared, "
                f"{self.ignored} ignored with a reason, {self.size_bytes / 1e6:.2f} MB")  # fmt: skip


def counts(path: Path) -> Counts:
    """The counts of one notebook file."""
    code = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code" and cell.source.strip()]
    ignored = [cell for cell in code if _unchecked(cell) and reason(cell)]
    text = [cell for cell in code if is_comparable(cell) and not any(cell is other for other in ignored)]
    compared = [cell for cell in text if CHECKED in _tags(cell) and not _unchecked(cell)]
    executed = [cell for cell in code if cell.execution_count is not None]
    return Counts(len(code), len(executed), len(text), len(compared), len(ignored), path.stat().st_size)


def problems(path: Path, source: Path) -> list[str]:
    """What is wrong with a notebook, one sentence each, with the cell's id."""
    if not path.exists():
        return [f"{path.name} is not built; run `make notebooks`"]
    if not source.exists():
        return [f"{path.name} has no source {source.name}"]
    notebook = nbformat.read(path, as_version=4)
    found = list(_file(path, notebook)) + list(_equal(notebook, read_source(source)))
    for cell in notebook.cells:
        if cell.cell_type == "code" and cell.source.strip():
            found += [f"{cell.id}: {line}" for line in _cell(cell)]
    return found + list(_figures(notebook)) + list(_styled(notebook)) + list(_exercises(notebook)) + list(_kit(notebook))


def reason(cell: NotebookNode) -> str:
    """Why a cell is not compared: from a tag `reason: ...` or a comment `# why ignored: ...`; "" if it does not say."""
    tagged = [tag.split(":", 1)[1].strip() for tag in _tags(cell) if tag.startswith("reason:")]
    said = re.search(r"^#\s*why ignored:\s*(.+)$", cell.source, re.MULTILINE)
    return tagged[0] if tagged else said[1].strip() if said else ""


def _file(path: Path, notebook: NotebookNode) -> Iterator[str]:
    if path.stat().st_size > LIMIT_BYTES:
        yield f"{path.stat().st_size / 1e6:.1f} MB; at most {LIMIT_BYTES / 1e6:.0f}"
    if "widgets" in notebook.metadata:
        yield "widget state is stored"
    done = counts(path)
    if not done.enough:
        yield f"under {SHARE:.0%}: {done}"


def _equal(notebook: NotebookNode, source: NotebookNode) -> Iterator[str]:
    mine = [(c.cell_type, c.source, c.id) for c in notebook.cells]
    theirs = [(c.cell_type, c.source, c.id) for c in source.cells]
    if mine != theirs:
        place = next((i for i, (a, b) in enumerate(zip(mine, theirs)) if a != b), min(len(mine), len(theirs)))
        cell_id = (mine + theirs)[place][2] if place < len(mine) else theirs[place][2]
        yield f"{cell_id}: differs from the source (cell {place + 1}); run `make notebooks`"
        return
    for cell, other in zip(notebook.cells, source.cells):
        if set(_tags(cell)) - {CHECKED} != set(_tags(other)) - {CHECKED}:
            yield f"{cell.id}: tags differ from the source; run `make notebooks`"


def _cell(cell: NotebookNode) -> Iterator[str]:
    if cell.execution_count != 1:
        yield f"execution count {cell.execution_count}, not 1: nbval does not compare cells that were never run"
    if _unchecked(cell) and not reason(cell):
        yield f"{', '.join(sorted(_unchecked(cell)))} without a reason; add the tag 'reason: ...'"
    for out in cell.outputs:
        if out.output_type == "error" and not _unchecked(cell) & {"raises-exception", "nbval-raises-exception"}:
            yield f"error output: {out.ename}: {out.evalue}"
        if out.output_type == "stream" and out.name == "stderr" and not _unchecked(cell):
            yield f"writes to stderr: {out.text.strip()[:100]!r}"
        if WIDGET_MIME in out.get("data", {}):
            yield "a widget view is stored, without its widget"
        text = out.get("text", "") or str(out.get("data", {}).get("text/plain", ""))
        for pattern, what in UNSTABLE:
            if CHECKED in _tags(cell) and re.search(pattern, text):
                yield f"compared, but prints {what}: {re.search(pattern, text)[0]!r}"  # type: ignore[index]


def _figures(notebook: NotebookNode) -> Iterator[str]:
    compared = " ".join(_text(cell) for cell in notebook.cells if cell.cell_type == "code" and CHECKED in _tags(cell))
    for cell in notebook.cells:
        if cell.cell_type == "code" and has_figure(cell) and not (_unchecked(cell) and reason(cell)):
            for out in cell.outputs:
                for code in figure_digests(out.get("data", {})):
                    if code not in compared:
                        yield f"{cell.id}: the figure's digest {code} is not printed in a compared cell"


def _styled(notebook: NotebookNode) -> Iterator[str]:
    code = [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]
    for cell, following in zip(code, [*code[1:], None]):
        if is_styled(cell) and not (_unchecked(cell) and reason(cell)):
            if following is None or CHECKED not in _tags(following) or not _text(following).strip():
                yield f"{cell.id}: a styled table, but the next cell does not print it for comparison"


def figure_digests(data: dict) -> list[str]:
    """The digest of the figure in one output: of all its recorded points, or of the one plain figure."""
    if FIGURE_MIMES[0] in data:
        return [data[FIGURE_MIMES[0]]["digest"]]
    if FIGURE_MIMES[1] in data:
        import plotly.graph_objects as go

        from .describe import digest

        shown = data[FIGURE_MIMES[1]]
        return [digest(go.Figure(shown.get("data"), shown.get("layout"), skip_invalid=True))]
    return []


def _exercises(notebook: NotebookNode) -> Iterator[str]:
    from .student import answer_cells

    for answer in answer_cells(notebook):
        if answer.stub.strip() != answer.exercise.stub.strip():
            yield f"{answer.cell.id}: the stub is not {answer.exercise.key}.stub"


def _kit(notebook: NotebookNode) -> Iterator[str]:
    text = {tag: "\n".join(c.source for c in notebook.cells if c.cell_type == "markdown" and tag in _tags(c))
            for tag in ("summary", "discussion")}  # fmt: skip
    if not text["summary"].strip():
        yield "no markdown cell tagged 'summary' (the one printable page)"
    questions = len(re.findall(r"<details\b", text["discussion"]))
    if questions < MIN_QUESTIONS:
        yield f"{questions} folded answers in cells tagged 'discussion'; at least {MIN_QUESTIONS}"


def _tags(cell: NotebookNode) -> list[str]:
    return list(cell.metadata.get("tags", []))


def _unchecked(cell: NotebookNode) -> set[str]:
    """The tags, or nbval's comments, that keep a cell from being compared."""
    comments = {f"nbval-{name.lower().replace('_', '-')}" for name in re.findall(r"^\s*#\s*NBVAL_(\w+)", cell.source, re.MULTILINE)}
    return UNCHECKED & (set(_tags(cell)) | comments)


def _text(cell: NotebookNode) -> str:
    return "\n".join(str(out.get("text", "")) + str(out.get("data", {}).get("text/plain", "")) for out in cell.outputs)
