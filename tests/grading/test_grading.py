"""nbgrader and otter end to end: student copies are made, filled in right, wrong or not at all, and graded.

The graders live apart from our environment, since they bring JupyterLab extensions: in .venv/grading, which `make test`
makes, or else in one environment each, made once (under FRUGAL_CACHE/venvs, else .venv-nbgrader and .venv-otter in the
repository). The library and torch are reached through a .pth file. Where no registry answers, the tests skip; in CI they fail.
"""

import csv
import hashlib
import json
import os
import re
import subprocess
import sys
import sysconfig
import tempfile
import venv
from pathlib import Path

import nbformat
import pytest
from filelock import FileLock

from frugal.explore import notebooks, student

REPO = Path(__file__).resolve().parents[2]
GRADERS = {"nbgrader": ["nbgrader==0.9.6", "jsonschema<4.25"], "otter": ["otter-grader==7.0.0", "jsonschema<4.25"]}
KINDS = ("right", "wrong", "empty")
pytestmark = pytest.mark.slow


def environment(name: str) -> Path:
    """The bin folder of a grader's environment; made on first use, by one process at a time."""
    ready = Path(sys.prefix) / "grading" / "bin"       # `make test` makes it beforehand, with pinned versions
    if (ready / name).exists():
        return ready
    cache = os.environ.get("FRUGAL_CACHE")
    home = Path(cache) / "venvs" / name if cache else REPO / f".venv-{name}"
    home.parent.mkdir(parents=True, exist_ok=True)
    wanted = json.dumps([GRADERS[name], sys.version, sys.prefix, str(REPO)])
    stamp, python = home / "made-for.json", home / "bin" / "python"
    with FileLock(Path(tempfile.gettempdir(), f"frugal-{hashlib.sha256(str(home).encode()).hexdigest()[:12]}.lock")):
        if not stamp.exists() or stamp.read_text() != wanted:
            venv.create(home, with_pip=True, clear=True)
            done = subprocess.run([python, "-m", "pip", "install", "-q", "--disable-pip-version-check", *GRADERS[name]],
                                  capture_output=True, text=True, check=False, timeout=1200)  # fmt: skip
            if done.returncode:
                message = f"{GRADERS[name][0]} could not be installed: {done.stderr[-500:]}"
                pytest.fail(message) if os.environ.get("CI") else pytest.skip(message)
            site = sysconfig.get_path("purelib", vars={"base": str(home), "platbase": str(home)})
            # after the grader's own packages on the path: torch, plotly ... from the environment that runs the tests
            Path(site, "zz_frugal.pth").write_text(f"{REPO / 'lib'}\n{sysconfig.get_path('purelib')}\n")
            stamp.write_text(wanted)
    return home / "bin"


def call(bin_folder: Path, folder: Path, *command: str) -> str:
    """Run a grader's command in `folder`; its output, which becomes the failure's text when it fails."""
    env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV", "PYTHONHOME")}
    env |= {"PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}", "OMP_NUM_THREADS": "1", "HOME": str(folder)}
    env |= {f"JUPYTER_{name}_DIR": str(folder / ".jupyter" / name.lower()) for name in ("CONFIG", "DATA", "RUNTIME")}
    done = subprocess.run([str(bin_folder / command[0]), *command[1:]], cwd=folder, env=env, capture_output=True, text=True,
                          check=False, timeout=300)  # fmt: skip
    assert done.returncode == 0, f"{' '.join(command)}:\n{done.stdout[-1500:]}\n{done.stderr[-3000:]}"
    return done.stdout


def labs(folder: Path) -> dict[str, tuple[Path, list[student.AnswerCell]]]:
    """Every notebook with exercises, straight from its source: name -> (path, answer cells)."""
    found = {}
    for source in sorted((REPO / "notebooks" / "src").glob("[0-9][0-9]_*.py")):
        notebook = notebooks.read_source(source)
        answers = student.answer_cells(notebook)
        if answers:
            path = folder / f"{source.stem}.ipynb"
            nbformat.write(notebook, path)
            found[source.stem] = (path, answers)
    return found


def submit(released: Path, target: Path, answers: list[student.AnswerCell], kind: str) -> None:
    """A submission: the stubs' functions are the reference, a known wrong answer, or left as they are.

    A right or wrong answer is taken from the library, which a copy never holds as text.
    """
    notebook = nbformat.read(released, as_version=4)
    for answer in answers:
        name = re.escape(answer.name)
        cells = [c for c in notebook.cells if c.cell_type == "code" and re.search(rf"^(def|class) {name}\b", c.source, re.MULTILINE)]
        assert len(cells) == 1, f"{answer.exercise.key}: {len(cells)} cells define {answer.name}"
        if kind != "empty":
            module = answer.call.split(".", 1)[0].strip()
            part = "reference" if kind == "right" else "wrong[0][0]"
            cells[0].source = f"{answer.name} = {module}.{answer.exercise.key}.{part}"
    target.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, target)


@pytest.fixture(scope="module")
def lessons(tmp_path_factory):
    found = labs(tmp_path_factory.mktemp("lessons"))
    assert found, "no notebook has an exercise"
    return found


def test_nbgrader_grades_right_wrong_and_empty(lessons, tmp_path):
    tools = environment("nbgrader")
    student.make("nbgrader", tmp_path, [path for path, _ in lessons.values()])
    for lab, (_, answers) in lessons.items():
        call(tools, tmp_path, "nbgrader", "generate_assignment", lab)
        released = tmp_path / "release" / lab / f"{lab}.ipynb"
        copy = nbformat.read(released, as_version=4)
        assert student.leaks(copy, [answer.exercise for answer in answers]) == []
        assert "SOLUTION" not in released.read_text()
        for kind in KINDS:
            submit(released, tmp_path / "submitted" / kind / lab / f"{lab}.ipynb", answers, kind)
        call(tools, tmp_path, "nbgrader", "autograde", lab, "--create")
    call(tools, tmp_path, "nbgrader", "export")
    with open(tmp_path / "grades.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    got = {(row["assignment"], row["student_id"]): (float(row["score"]), float(row["max_score"])) for row in rows}
    want = {}
    for lab, (_, answers) in lessons.items():
        points = float(sum(answer.exercise.difficulty for answer in answers))
        want |= {(lab, "right"): (points, points), (lab, "wrong"): (0.0, points), (lab, "empty"): (0.0, points)}
    assert got == want


def test_otter_grades_right_wrong_and_empty(lessons, tmp_path):
    tools = environment("otter")
    student.make("otter", tmp_path, [path for path, _ in lessons.values()])
    for lab, (_, answers) in lessons.items():
        folder = tmp_path / lab
        call(tools, folder, "otter", "assign", "--no-run-tests", f"{lab}.ipynb", "dist")
        released = folder / "dist" / "student" / f"{lab}.ipynb"
        assert student.leaks(nbformat.read(released, as_version=4), [answer.exercise for answer in answers]) == []
        (autograder,) = (folder / "dist" / "autograder").glob("*.zip")
        for kind in KINDS:
            submit(released, folder / f"{kind}.ipynb", answers, kind)
            (folder / kind).mkdir()
            call(tools, folder, "otter", "run", "-a", str(autograder), "-o", kind, "--no-logo", f"{kind}.ipynb")
            results = json.loads((folder / kind / "results.json").read_text())
            scores = {test["name"]: (test["score"], test["max_score"]) for test in results["tests"] if "max_score" in test}
            full = kind == "right"
            assert scores == {a.exercise.key: (a.exercise.difficulty * full, a.exercise.difficulty) for a in answers}, kind
