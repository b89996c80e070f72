"""Student copies: `frugal student --format plain|nbgrader|otter --out DIR`.

plain: every notebook as it is, without outputs, answers and solutions. nbgrader and otter: one assignment for each
notebook with exercises, holding nothing but them, so that grading needs neither the language model nor a widget:

    nbgrader   DIR/source/<lab>/<lab>.ipynb + nbgrader_config.py   nbgrader generate_assignment <lab>; nbgrader autograde <lab>
    otter      DIR/<lab>/<lab>.ipynb                               otter assign <lab>.ipynb dist; otter run (or grade) ...

No solution text is written: a copy that shares too many token runs with a reference solution is refused. (The
library that students import does hold the references, as `ex.<key>.reference`: keep an exam's tasks elsewhere.)
"""

import ast
import importlib
import inspect
import io
import json
import re
import textwrap
import tokenize
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from .exercises import DIFFICULTY, Exercise
from .notebooks import committed

FORMATS = ("plain", "nbgrader", "otter")
RUN = 8  # tokens in a row
OVERLAP = 0.25  # share of the reference's runs that may turn up in a copy by chance
MARKERS = ("SOLUTION", "HIDDEN TESTS")
ASSIGNMENT_NOTE = "Fill in each function, run its check, and submit this notebook. The lesson itself is in `{name}`."


@dataclass(frozen=True)
class AnswerCell:
    """Where a notebook asks for an answer. stub: the text to fill in; call: the `ex.key.check(fn)` statement; name: `fn`."""

    cell: NotebookNode
    exercise: Exercise
    stub: str
    call: str
    name: str


def make(format: str, out: Path, notebooks: Sequence[Path] | None = None) -> str:
    """Write the copies; gives a sentence on what was written. ValueError: unknown format, a marker without its pair,
    solution text that would get out."""
    if format not in FORMATS:
        raise ValueError(f"format={format!r}; known: {', '.join(FORMATS)}")
    out, written = Path(out), []
    for path in committed() if notebooks is None else notebooks:
        notebook = nbformat.read(path, as_version=4)
        answers = answer_cells(notebook)
        if format != "plain" and not answers:
            continue
        lab = path.stem
        copy = plain(notebook, answers) if format == "plain" else assignment(lab, notebook, answers, format)
        found = leaks(copy, [answer.exercise for answer in answers])
        if found:
            raise ValueError(f"{path.name}: the copy would hold solution text: {'; '.join(found)}")
        target = out / {"plain": "", "nbgrader": f"source/{lab}", "otter": lab}[format] / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(copy, target)
        written.append(target)
    if format == "nbgrader":
        (out / "nbgrader_config.py").write_text(NBGRADER_CONFIG, encoding="utf-8")
    return f"{len(written)} notebooks for {format} in {out}: {', '.join(path.stem for path in written) or 'none has exercises'}"


def plain(notebook: NotebookNode, answers: Sequence[AnswerCell]) -> NotebookNode:
    """The whole notebook without outputs, solution cells and folded answers; each stub as its exercise gives it."""
    copy = nbformat.v4.new_notebook(metadata=notebook.metadata)
    stubs = {answer.cell.id: answer for answer in answers}
    for cell in notebook.cells:
        tags = cell.metadata.get("tags", [])
        if "solution" in tags:
            continue
        cell = nbformat.from_dict(json.loads(json.dumps(cell)))
        if cell.id in stubs:
            cell.source = _stub_and_call(cell.source, stubs[cell.id])
        cell.source = without_marked(cell.source)
        if "discussion" in tags:
            cell.source = re.sub(r"<details\b.*?</details>", "*Your answer:*", cell.source, flags=re.DOTALL)
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
        kept = [tag for tag in tags if not tag.startswith(("nbval", "reason:"))]
        cell.metadata = NotebookNode({"tags": kept} if kept else {})
        copy.cells.append(cell)
    return copy


def assignment(lab: str, notebook: NotebookNode, answers: Sequence[AnswerCell], format: str) -> NotebookNode:
    """The exercises alone: task, stub and graded check each, marked for nbgrader or for otter assign."""
    copy = nbformat.v4.new_notebook(metadata={"kernelspec": notebook.metadata.get("kernelspec", {})})
    title = next((m[1] for c in notebook.cells if (m := re.search(r"^# +(.+)$", c.source, re.MULTILINE))), lab)
    head = [_markdown("top", f"# {title}: exercises\n\n{ASSIGNMENT_NOTE.format(name=lab)}"),
            _code("imports", imports(notebook, answers))]  # fmt: skip
    if format == "otter":
        config = f"# ASSIGNMENT CONFIG\nname: {lab}\ninit_cell: true\nexport_cell: false\nfiles: []\n"
        head.insert(0, _raw("config", config))
    copy.cells = head
    for answer in answers:
        copy.cells += (_nbgrader if format == "nbgrader" else _otter)(answer)
    return copy


def answer_cells(notebook: NotebookNode) -> list[AnswerCell]:
    """The cells that end in `ex.<key>.check(<function>)`, where `ex` is a family's exercise module.

    ValueError when the module has no such exercise.
    """
    modules = _exercise_modules(notebook)
    found = []
    for cell in notebook.cells:
        for node in _tree(cell).body:
            match node:
                case ast.Expr(ast.Call(ast.Attribute(ast.Attribute(ast.Name(alias), key), "check"), [ast.Name(name)])) if alias in modules:
                    known = {exercise.key: exercise for exercise in modules[alias].EXERCISES}
                    if key not in known:
                        raise ValueError(f"{cell.id}: {alias}.{key} is no exercise; known: {', '.join(known)}")
                    lines = cell.source.splitlines()
                    stub, call = lines[: node.lineno - 1], lines[node.lineno - 1 : node.end_lineno]
                    found.append(AnswerCell(cell, known[key], "\n".join(stub).strip(), "\n".join(call), name))
    return found


def imports(notebook: NotebookNode, answers: Sequence[AnswerCell]) -> str:
    """The import lines that an answer may need, from the notebook's own, and the exercise module."""
    texts = [text for answer in answers for text in (answer.exercise.stub, solution_source(answer.exercise))]
    used = {word for text in texts for word in re.findall(r"\w+", text)}
    used |= {answer.call.split(".", 1)[0].strip() for answer in answers}
    lines = ["import torch"]
    for cell in notebook.cells:
        for node in _tree(cell).body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                node.names = [a for a in node.names if (a.asname or a.name.split(".")[0]) in used]
                if node.names and ast.unparse(node) not in lines:
                    lines.append(ast.unparse(node))
    return "\n".join(lines)


def leaks(notebook: NotebookNode, exercises: Sequence[Exercise]) -> list[str]:
    """Exercises whose reference solution shows in the notebook, by runs of tokens that its stub does not have."""
    sources = [cell.source + "\n" + "\n".join(str(out) for out in cell.get("outputs", [])) for cell in notebook.cells]
    shown = set().union(*(_runs(source) for source in sources)) if sources else set()
    found = []
    for exercise in exercises:
        secret = _runs(solution_source(exercise)) - _runs(exercise.stub)
        share = len(secret & shown) / max(1, len(secret))
        if share > OVERLAP:
            found.append(f"{exercise.key} ({share:.0%} of the reference's token runs)")
    return found


def solution_source(exercise: Exercise) -> str:
    """The reference's source without its docstring."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(exercise.reference))))
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node) and len(node.body) > 1:
            node.body = node.body[1:]
    return ast.unparse(tree)


def without_marked(source: str) -> str:
    """The source without what stands between nbgrader's BEGIN and END markers; a solution leaves its stub line."""
    out: list[str] = []
    inside = ""
    for line in source.splitlines():
        marker = re.match(rf"^(\s*)#+ *(BEGIN|END) ({'|'.join(MARKERS)})\s*$", line)
        if marker and (marker[2] == "BEGIN") != (inside == ""):
            raise ValueError(f"marker {line.strip()!r} without its pair")
        if marker and marker[2] == "BEGIN":
            inside = marker[3]
            out += [f"{marker[1]}raise NotImplementedError  # yours"] if inside == "SOLUTION" else []
        elif marker:
            if marker[3] != inside:
                raise ValueError(f"marker {line.strip()!r} closes BEGIN {inside}")
            inside = ""
        elif not inside:
            out.append(line)
    if inside:
        raise ValueError(f"marker 'BEGIN {inside}' without its pair")
    return "\n".join(out)


def _runs(source: str) -> set[tuple[str, ...]]:
    """Runs of RUN tokens, without comments and layout; text that is no Python is cut into words."""
    skip = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENCODING, tokenize.ENDMARKER}
    try:
        words = [t.string for t in tokenize.generate_tokens(io.StringIO(source).readline) if t.type not in skip]
    except (tokenize.TokenError, IndentationError, SyntaxError):
        words = re.findall(r"\w+|[^\w\s]", source)
    return {tuple(words[i : i + RUN]) for i in range(len(words) - RUN + 1)}


def _exercise_modules(notebook: NotebookNode) -> dict[str, object]:
    """The names under which the notebook imports `frugal.<family>.exercises`."""
    found = {}
    for cell in notebook.cells:
        for node in _tree(cell).body:
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                for a in node.names:
                    if a.name == "exercises" and re.fullmatch(r"frugal\.\w+", node.module or ""):
                        found[a.asname or a.name] = importlib.import_module(f"{node.module}.exercises")
    return found


def _tree(cell: NotebookNode) -> ast.Module:
    """The cell's syntax tree; empty for text and for cells with magics."""
    try:
        return ast.parse(cell.source if cell.cell_type == "code" else "")
    except SyntaxError:
        return ast.Module([], [])


def _stub_and_call(source: str, answer: AnswerCell) -> str:
    return source if not answer.stub else f"{answer.exercise.stub.strip()}\n\n\n{answer.call}"


def _task(exercise: Exercise) -> NotebookNode:
    text = f"## {exercise.title}\n\n{DIFFICULTY[exercise.difficulty].capitalize()}, about {exercise.minutes} minutes.\n\n{exercise.prompt}"
    return _markdown(f"{exercise.key}-task", text)


def _check(answer: AnswerCell) -> str:
    return f"result = {answer.call.strip()}\nassert result.passed, result"


def _nbgrader(answer: AnswerCell) -> Iterator[NotebookNode]:
    """Task, stub and locked check. nbgrader puts its own stub line where the markers stand."""
    key = answer.exercise.key
    stub = re.sub(r"^( *)(raise NotImplementedError.*)$", r"\1### BEGIN SOLUTION\n\1\2\n\1### END SOLUTION",
                  answer.exercise.stub.strip(), flags=re.MULTILINE)  # fmt: skip
    yield _task(answer.exercise)
    yield _code(f"{key}-answer", stub, nbgrader=_grading(f"{key}-answer", solution=True))
    yield _code(f"{key}-check", _check(answer),
                nbgrader=_grading(f"{key}-check", grade=True, locked=True) | {"points": answer.exercise.difficulty})  # fmt: skip


def _otter(answer: AnswerCell) -> Iterator[NotebookNode]:
    """The raw cells that `otter assign` reads."""
    exercise = answer.exercise
    marks = [("begin", f"# BEGIN QUESTION\nname: {exercise.key}\npoints: {exercise.difficulty}\n"), ("solution", "# BEGIN SOLUTION"),
             ("solved", "# END SOLUTION"), ("tests", "# BEGIN TESTS"), ("tested", "# END TESTS"), ("end", "# END QUESTION")]  # fmt: skip
    begin, solution, solved, tests, tested, end = (_raw(f"{exercise.key}-{name}", text) for name, text in marks)
    answer_text = f"{exercise.stub.strip()}\n\n\n{answer.call}"
    check = f"assert {answer.call.strip().replace('.check(', '.run(')}.passed"
    yield from [begin, _task(exercise), solution, _code(f"{exercise.key}-answer", answer_text), solved,
                tests, _code(f"{exercise.key}-check", check), tested, end]  # fmt: skip


def _grading(grade_id: str, *, grade: bool = False, locked: bool = False, solution: bool = False) -> dict:
    return {"grade": grade, "grade_id": grade_id, "locked": locked, "schema_version": 3, "solution": solution, "task": False}


def _code(cell_id: str, source: str, **metadata: dict) -> NotebookNode:
    return nbformat.v4.new_code_cell(source, id=_cell_id(cell_id), metadata=metadata)


def _markdown(cell_id: str, source: str) -> NotebookNode:
    return nbformat.v4.new_markdown_cell(source, id=_cell_id(cell_id))


def _raw(cell_id: str, source: str) -> NotebookNode:
    return nbformat.v4.new_raw_cell(source, id=_cell_id(cell_id))


def _cell_id(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_-]", "-", name)[:64]


NBGRADER_CONFIG = '''"""nbgrader's settings for these assignments; run its commands in this folder."""
c = get_config()  # noqa: F821
c.CourseDirectory.course_id = "frugal"
c.ClearSolutions.code_stub = {"python": "raise NotImplementedError  # yours"}
c.ExecutePreprocessor.timeout = 120
'''
