"""Student copies: no solution text gets out, graded copies hold exercises only, markers are honoured."""

import sys
from pathlib import Path

import nbformat
import pytest

sys.path.insert(0, str(Path(__file__).parent))

import toy_notebook  # noqa: E402
from toy_notebook import KEEP, STUB  # noqa: E402

from frugal.explore import student  # noqa: E402
from frugal.explore.notebooks import committed, has_figure  # noqa: E402

SOLVED = "def keep(n, b, s=2):\n    recent = range(num_slots - (budget - sinks), num_slots)\n    return list(range(sinks)) + list(recent)"


@pytest.fixture
def notebook(tmp_path, monkeypatch):
    """Path of the toy notebook with exercises."""
    toy_notebook.install_family(monkeypatch)
    return toy_notebook.unrun(tmp_path)


def texts(path):
    return [cell.source for cell in nbformat.read(path, as_version=4).cells]


def test_answer_cells_are_found_with_their_exercise(notebook):
    (answer,) = student.answer_cells(nbformat.read(notebook, as_version=4))
    assert answer.exercise is KEEP and answer.stub == STUB and answer.call == "ex.keep.check(keep)" and answer.name == "keep"


def test_plain_keeps_the_lesson_without_answers_or_outputs(notebook, tmp_path):
    student.make("plain", tmp_path / "out", [notebook])
    copy = nbformat.read(tmp_path / "out" / notebook.name, as_version=4)
    text = "\n".join(cell.source for cell in copy.cells)
    assert "explore(losses" in text and "ex.keep.check(keep)" in text and STUB in text
    assert "secretanswer" not in text and "*Your answer:*" in text
    assert all(cell.outputs == [] and cell.execution_count is None for cell in copy.cells if cell.cell_type == "code")


def test_a_solved_stub_a_solution_cell_and_marked_regions_do_not_get_out(notebook, tmp_path):
    solved = nbformat.read(notebook, as_version=4)
    answer = next(cell for cell in solved.cells if "ex.keep.check" in cell.source)
    answer.source = f"{SOLVED}\n\nex.keep.check(keep)"
    solved.cells.append(nbformat.v4.new_code_cell(SOLVED, metadata={"tags": ["solution"]}))
    solved.cells.append(nbformat.v4.new_code_cell("def g():\n    ### BEGIN SOLUTION\n    return 17\n    ### END SOLUTION\n"
                                                  "### BEGIN HIDDEN TESTS\nassert g() == 17\n### END HIDDEN TESTS"))
    nbformat.write(solved, notebook)
    for kind in student.FORMATS:
        student.make(kind, tmp_path / kind, [notebook])
        (path,) = (tmp_path / kind).rglob("*.ipynb")
        copy = nbformat.read(path, as_version=4)
        assert student.leaks(copy, [KEEP]) == [] and "17" not in "\n".join(cell.source for cell in copy.cells)
    plain = texts(tmp_path / "plain" / notebook.name)
    assert plain[-1] == "def g():\n    raise NotImplementedError  # yours" and any(STUB in text for text in plain)


@pytest.mark.parametrize("hidden", [SOLVED, "As text: " + SOLVED.replace("\n", " "), SOLVED.replace("    ", "        # why\n    ")])
def test_solution_text_left_in_a_lesson_cell_is_refused(notebook, tmp_path, hidden):
    leaking = nbformat.read(notebook, as_version=4)
    leaking.cells.append(nbformat.v4.new_markdown_cell(hidden))
    nbformat.write(leaking, notebook)
    with pytest.raises(ValueError, match="solution text: keep"):
        student.make("plain", tmp_path / "out", [notebook])
    assert not list((tmp_path / "out").rglob("*.ipynb"))


@pytest.mark.parametrize("kind", ["nbgrader", "otter"])
def test_a_graded_copy_holds_exercises_only(notebook, tmp_path, kind):
    student.make(kind, tmp_path / "out", [notebook])
    (path,) = (tmp_path / "out").rglob("*.ipynb")
    copy = nbformat.read(path, as_version=4)
    text = "\n".join(cell.source for cell in copy.cells)
    assert not any(word in text for word in ("explore(", "live(", "load_lm", "pandas"))
    assert not any(has_figure(cell) for cell in copy.cells) and "ex.keep" in text and "raise NotImplementedError" in text
    ids = [cell.id for cell in copy.cells]
    assert len(set(ids)) == len(ids)


def test_nbgrader_metadata(notebook, tmp_path):
    student.make("nbgrader", tmp_path, [notebook])
    cells = nbformat.read(tmp_path / "source" / "01_toy_family" / notebook.name, as_version=4).cells
    marks = {cell.metadata.nbgrader.grade_id: cell.metadata.nbgrader for cell in cells if "nbgrader" in cell.metadata}
    assert marks["keep-answer"].solution and not marks["keep-answer"].locked and not marks["keep-answer"].grade
    assert marks["keep-check"].grade and marks["keep-check"].locked and marks["keep-check"].points == 1
    assert (tmp_path / "nbgrader_config.py").exists()


@pytest.mark.parametrize("source", ["### BEGIN SOLUTION\nx = 1", "x = 1\n### END SOLUTION",
                                    "### BEGIN SOLUTION\n### BEGIN SOLUTION\n### END SOLUTION",
                                    "### BEGIN SOLUTION\n### END HIDDEN TESTS"])  # fmt: skip
def test_a_marker_without_its_pair_is_an_error(source):
    with pytest.raises(ValueError, match="without its pair|closes BEGIN"):
        student.without_marked(source)


def test_an_unknown_format_and_an_unknown_exercise_are_errors(notebook, tmp_path):
    with pytest.raises(ValueError, match="plain, nbgrader, otter"):
        student.make("pdf", tmp_path, [notebook])
    nb = nbformat.read(notebook, as_version=4)
    nb.cells[-1].source = "ex.kepe.check(keep)"
    with pytest.raises(ValueError, match="ex.kepe is no exercise; known: keep"):
        student.answer_cells(nb)


@pytest.mark.parametrize("kind", student.FORMATS)
def test_the_committed_notebooks_have_clean_copies(tmp_path, kind):
    paths = committed(Path(__file__).parents[2] / "notebooks")
    said = student.make(kind, tmp_path, paths)
    copies = sorted(tmp_path.rglob("*.ipynb"))
    asked = [p for p in paths if student.answer_cells(nbformat.read(p, as_version=4))]
    assert len(copies) == len(paths if kind == "plain" else asked) and said.startswith(f"{len(copies)} notebooks")
    for path, copy in zip(paths if kind == "plain" else asked, copies):
        exercises = [a.exercise for a in student.answer_cells(nbformat.read(path, as_version=4))]
        assert student.leaks(nbformat.read(copy, as_version=4), exercises) == []
