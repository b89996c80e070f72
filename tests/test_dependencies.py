"""pyproject.toml, constraints.txt and environment.yml say the same, and every import is declared."""
import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version
from rattler import MatchSpec

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CONDA_NAMES = {"torch": "pytorch", "kaleido": "python-kaleido"}
CONDA_EXTRAS = ("export", "book", "cluster")


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def requirements(*extras: str) -> dict[str, SpecifierSet]:
    """Name to bounds of the core dependencies, or of the extras named."""
    rows = sum((PROJECT["optional-dependencies"][extra] for extra in extras), []) if extras else PROJECT["dependencies"]
    return {canonical(parsed.name): parsed.specifier for parsed in map(Requirement, rows)}


EVERYTHING = requirements() | requirements(*PROJECT["optional-dependencies"])
PINS = {canonical(parsed.name): str(parsed.specifier).removeprefix("==") for parsed in
        (Requirement(line) for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#"))}
CONDA = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]


def conda_bounds(row: str) -> tuple[str, SpecifierSet]:
    """Name and bounds of a row, as conda itself would read them."""
    spec = MatchSpec(row)
    return spec.name.normalized, SpecifierSet(str(spec.version))


@pytest.mark.parametrize("name", EVERYTHING)
def test_every_dependency_is_pinned_within_its_bounds(name):
    assert name in PINS, f"{name}: run recipes/pin_constraints.py"
    assert EVERYTHING[name].contains(PINS[name]), f"{name} {PINS[name]} is outside {EVERYTHING[name]}"


def test_pins_are_exact_and_bounds_are_lower_bounds():
    assert [name for name, pin in PINS.items() if str(Version(pin)) != pin and not re.fullmatch(r"[\w.]+", pin)] == []
    assert PINS["torch"] == "2.13.0" and Version(PINS["jsonschema"]) < Version("4.25")
    operators = {name: {part.operator for part in bounds} for name, bounds in EVERYTHING.items() if name != "jsonschema"}
    assert {name: found for name, found in operators.items() if found != {">="}} == {}


def test_conda_has_the_same_names_and_bounds():
    wanted = requirements() | requirements(*CONDA_EXTRAS)
    rows = [row for row in CONDA if isinstance(row, str) and row != "pip" and not row.startswith("python=")]
    assert dict(map(conda_bounds, rows)) == {CONDA_NAMES.get(name, name): bounds for name, bounds in wanted.items()}
    assert len(rows) == len(set(rows)) and {"pip": ["-e ."]} in CONDA


def test_conda_names_one_python_that_pyproject_allows():
    row, = [row for row in CONDA if isinstance(row, str) and row.startswith("python=")]
    assert row == "python=3.11"                        # exact: binder reads no range
    assert SpecifierSet(PROJECT["requires-python"]).contains("3.11.0")


def test_a_row_out_of_step_would_be_seen():
    assert conda_bounds("numpy>=1.26")[1] != SpecifierSet(">=2.0")
    assert conda_bounds("jsonschema<4.25") == ("jsonschema", SpecifierSet("<4.25"))


def imported(path: Path) -> tuple[set[str], set[str]]:
    """Top-level names that a file imports: (as soon as it is imported, anywhere)."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    inside = {id(child) for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Try)
              for child in ast.walk(node)}
    at_once, anywhere = set(), set()
    for node in ast.walk(tree):
        names = [name.name for name in node.names] if isinstance(node, ast.Import) else \
            [node.module] if isinstance(node, ast.ImportFrom) and not node.level else []
        tops = {name.split(".")[0] for name in names} - sys.stdlib_module_names - {"frugal"}
        anywhere |= tops
        at_once |= tops if id(node) not in inside else set()
    return at_once, anywhere


PLACES = packages_distributions()                      # slow: it reads the record of every package


def undeclared(names: set[str], declared: set[str]) -> set[str]:
    return {name for name in names if not declared & {canonical(found) for found in PLACES.get(name, [name])}}


@pytest.mark.parametrize("path", sorted((ROOT / "lib").rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT / "lib" / "frugal")))
def test_the_library_imports_only_what_is_declared(path):
    at_once, anywhere = imported(path)
    assert undeclared(at_once, set(requirements())) == set(), "not in [project] dependencies"
    assert undeclared(anywhere, set(EVERYTHING)) == set(), "in no extra either"


@pytest.mark.parametrize("folder", ["tests", "recipes", "benchmarks"])
def test_tests_recipes_and_benchmarks_import_only_what_is_declared(folder):
    homes = ("tests", "recipes", "benchmarks")
    local = {*homes, *(path.stem for home in homes for path in (ROOT / home).rglob("*") if path.is_dir() or path.suffix == ".py")}
    found = {str(path.relative_to(ROOT)): undeclared(imported(path)[1] - local, set(EVERYTHING)) for path in (ROOT / folder).rglob("*.py")}
    assert {name: wrong for name, wrong in found.items() if wrong} == {}
