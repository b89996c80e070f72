"""Building notebooks, and the rules: each planted fault is found, and the committed notebooks have none."""

import json
import ast
import sys
from pathlib import Path

import nbformat
import pytest

sys.path.insert(0, str(Path(__file__).parent))

import toy_notebook  # noqa: E402

from frugal.explore import notebook_rules, notebooks  # noqa: E402


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """(source, executed notebook) of the toy."""
    return toy_notebook.built(tmp_path_factory.mktemp("toy"))


@pytest.mark.parametrize("path", notebooks.committed(Path(__file__).parents[2] / "notebooks"), ids=lambda path: path.stem)
def test_a_committed_notebook_keeps_the_rules(path):
    assert notebook_rules.problems(path, path.parent / "src" / f"{path.stem}.py") == []
    assert path.stat().st_size <= notebook_rules.LIMIT_BYTES and notebook_rules.counts(path).enough


def test_every_source_is_built():
    folder = Path(__file__).parents[2] / "notebooks"
    assert {p.stem for p in (folder / "src").glob("*.py")} == {p.stem for p in folder.glob("*.ipynb")}


def test_the_toy_keeps_the_rules_and_is_counted(toy):
    source, path = toy
    assert notebook_rules.problems(path, source) == []
    counts = notebook_rules.counts(path)
    assert (counts.code, counts.executed, counts.text, counts.compared, counts.ignored) == (6, 6, 2, 2, 1)


def test_building_again_gives_the_same_file_but_for_the_ignored_cell(toy):
    source, path = toy
    before = nbformat.read(path, as_version=4)
    notebooks.build(source, path)
    after = nbformat.read(path, as_version=4)
    for a, b in zip(before.cells, after.cells, strict=True):
        if notebooks.IGNORED in a.metadata.get("tags", []):
            a.outputs = b.outputs = []
    assert nbformat.writes(before) == nbformat.writes(after)


def test_figures_stand_on_one_line_each_and_read_back_the_same(toy):
    notebook = nbformat.read(toy[1], as_version=4)
    figures = [out.data[mime] for cell in notebook.cells for out in cell.get("outputs", []) for mime in notebooks.FIGURE_MIMES
               if mime in out.get("data", {})]
    text = notebooks.written(notebook)
    assert figures and nbformat.reads(text, as_version=4) == notebook
    assert len(text) < len(nbformat.writes(notebook)) and all(json.dumps(f, ensure_ascii=False, separators=(",", ":")) in text for f in figures)


def test_ids_come_from_the_section_and_an_inserted_cell_leaves_other_sections_alone(tmp_path):
    source = tmp_path / "01_toy.py"
    source.write_text(toy_notebook.SOURCE)
    before = [cell.id for cell in notebooks.read_source(source).cells]
    source.write_text(toy_notebook.SOURCE.replace("# %%\nprint", "# %%\n1 + 1\n\n# %%\nprint"))
    after = [cell.id for cell in notebooks.read_source(source).cells]
    assert before[:2] == ["a-toy-notebook-text-1", "a-toy-notebook-code-1"] and "try-it-code-1" in before
    assert set(before) < set(after) and set(after) - set(before) == {"try-it-code-6"} and len(set(after)) == len(after)


def figure(nb):
    return next(cell for cell in nb.cells if notebooks.has_figure(cell))


def cell_with(nb, text):
    return next(cell for cell in nb.cells if text in cell.source)


def set_tags(cell, *tags):
    cell.metadata["tags"] = list(tags)


FAULTS = {
    "differs from the source": lambda nb: cell_with(nb, "groupby").update(source="rows"),
    "tags differ": lambda nb: set_tags(cell_with(nb, "groupby"), "nbval-check-output", "extra"),
    "execution count None": lambda nb: cell_with(nb, "groupby").update(execution_count=None),
    "under 98%": lambda nb: set_tags(cell_with(nb, "groupby")),
    "without a reason": lambda nb: set_tags(cell_with(nb, "perf_counter"), "nbval-ignore-output"),
    "error output: ValueError": lambda nb: cell_with(nb, "perf_counter").outputs.append(
        nbformat.v4.new_output("error", ename="ValueError", evalue="x", traceback=[])),
    "writes to stderr": lambda nb: cell_with(nb, "groupby").outputs.append(
        nbformat.v4.new_output("stream", name="stderr", text="Warning: x")),
    "an object's address": lambda nb: cell_with(nb, "groupby").outputs.append(
        nbformat.v4.new_output("stream", name="stdout", text="<A at 0x7f00aabbccdd>")),
    "a path of this machine": lambda nb: cell_with(nb, "groupby").outputs.append(
        nbformat.v4.new_output("stream", name="stdout", text="/home/me/x")),
    "a styled table": lambda nb: set_tags(cell_with(nb, "groupby")),
    "widget state": lambda nb: nb.metadata.update(widgets={}),
    "a widget view": lambda nb: figure(nb).outputs[0].data.update({notebooks.WIDGET_MIME: {"model_id": "a"}}),
    "is not printed in a compared cell": lambda nb: cell_with(nb, "picture.digest").update(outputs=[]),
    "'summary'": lambda nb: set_tags(cell_with(nb, "Loss falls")),
    "1 folded answers": lambda nb: cell_with(nb, "## Discussion").update(source="## Discussion\n<details>x</details>"),
    "at most 3": lambda nb: cell_with(nb, "## Discussion").update(source="x" * 3_100_000),
}  # fmt: skip


@pytest.mark.parametrize("said", FAULTS)
def test_a_planted_fault_is_found(toy, tmp_path, said):
    source, path = toy
    notebook = nbformat.read(path, as_version=4)
    FAULTS[said](notebook)
    broken = tmp_path / path.name
    nbformat.write(notebook, broken)
    assert any(said in line for line in notebook_rules.problems(broken, source))


def test_a_missing_file_and_a_missing_source_are_said(toy, tmp_path):
    source, path = toy
    assert "not built" in notebook_rules.problems(tmp_path / "02_none.ipynb", source)[0]
    assert "no source" in notebook_rules.problems(path, tmp_path / "none.py")[0]


def test_a_cell_that_raises_stops_the_build_and_leaves_the_old_file(toy, tmp_path):
    from nbclient.exceptions import CellExecutionError

    source = tmp_path / "01_toy.py"
    source.write_text("# %%\n1 / 0\n")
    (tmp_path / "01_toy.ipynb").write_text("old")
    with pytest.raises(CellExecutionError, match="ZeroDivisionError"):
        notebooks.build(source, tmp_path / "01_toy.ipynb")
    assert (tmp_path / "01_toy.ipynb").read_text() == "old" and not list(tmp_path.glob("*.part"))


def test_the_command_builds_the_others_when_one_fails(tmp_path, capsys):
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "01_bad.py").write_text("# %%\n1 / 0\n")
    (tmp_path / "src" / "02_good.py").write_text("# %%\nprint(1)\n")
    assert notebooks.main(["--folder", str(tmp_path)]) == 1
    said = capsys.readouterr()
    assert "01_bad: not built" in said.err and "ZeroDivisionError" in said.err and "\x1b" not in said.err
    assert [path.name for path in notebooks.committed(tmp_path)] == ["02_good.ipynb"]


def test_the_command_names_unknown_notebooks_and_fails_on_broken_ones(toy, tmp_path, capsys):
    source, path = toy
    folder = str(path.parent)
    assert notebooks.main(["check", "--folder", folder]) == 0
    assert notebooks.main(["check", "--folder", folder, "99_nothing"]) == 2
    assert "99_nothing" in capsys.readouterr().err
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / source.name).write_text(source.read_text())
    assert notebooks.main(["check", "--folder", str(tmp_path)]) == 1
    assert "not built" in capsys.readouterr().out


def test_nbval_compares_what_the_rules_count(toy, tmp_path):
    """nbval run on the toy: as built it passes, with a changed table it fails in just that cell."""
    import subprocess

    path = toy[1]
    notebook = nbformat.read(path, as_version=4)
    changed = nbformat.read(path, as_version=4)
    for out in cell_with(changed, "groupby").outputs:
        out.data["text/plain"] = out.data["text/plain"].replace("0.", "9.")
    nbformat.write(notebook, tmp_path / "01_same.ipynb")
    nbformat.write(changed, tmp_path / "02_changed.ipynb")
    command = [sys.executable, "-m", "pytest", "-o", "addopts=", "-p", "no:cacheprovider", "-q", "--nbval-lax",
               "--nbval-current-env", "--nbval-cell-timeout=60", "."]  # fmt: skip
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "1 failed, 11 passed" in done.stdout, done.stdout[-2000:]
    assert "02_changed.ipynb::Cell 4" in done.stdout


def test_the_toy_source_is_python():
    ast.parse(toy_notebook.SOURCE)
