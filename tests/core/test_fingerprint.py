import sys
from dataclasses import dataclass

import pytest

from frugal.core import fingerprint
from frugal.core.fingerprint import canonical_source, code_version, settings_of, source_hash

SOURCE = '''"""Module text."""
import math


class Area:
    """A disc."""
    unit = "m"

    def of(self, r: float = 1.0) -> float:
        """Its area."""
        return math.pi * r ** 2   # a comment
'''


@pytest.mark.parametrize("change", [
    ("   # a comment", ""), ('    """A disc."""\n', '    """Another text."""\n'), ('"""Module text."""\n', ""),
    ("r ** 2", "(r**2)"), ("\n\n\n", "\n\n"), ('"m"', "'m'")])
def test_what_cannot_change_a_result_leaves_the_source_the_same(change):
    assert canonical_source(SOURCE.replace(*change)) == canonical_source(SOURCE)
    assert SOURCE.replace(*change) != SOURCE


@pytest.mark.parametrize("change", [("2", "3"), ("1.0", "1"), ('"m"', '"km"'), ("def of", "def at"), ("* r", "/ r")])
def test_what_can_change_a_result_changes_the_source(change):
    assert canonical_source(SOURCE.replace(*change)) != canonical_source(SOURCE)


@pytest.fixture
def house(tmp_path, monkeypatch):
    """A stand-in for the library: the packages that every family passes through, and two families."""
    for package in ("core", "data", "models", "here", "there"):
        folder = tmp_path / "tinyhouse" / package
        (folder / "recorded").mkdir(parents=True)
        (folder / "__init__.py").write_text("")
        (folder / "work.py").write_text(SOURCE)
        (folder / "claims.py").write_text(SOURCE)
        (folder / "weights.bin").write_bytes(b"abc")
    (tmp_path / "tinyhouse" / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    real = fingerprint._files
    monkeypatch.setattr(fingerprint, "_files", lambda package: real(package.replace("frugal.", "tinyhouse.")))
    yield tmp_path / "tinyhouse"
    for name in [name for name in sys.modules if name.split(".")[0] == "tinyhouse"]:
        del sys.modules[name]


@pytest.mark.parametrize("path, changes", [
    ("core/work.py", True), ("data/work.py", True), ("models/weights.bin", True), ("here/work.py", True),
    ("here/weights.bin", True), ("there/work.py", False), ("here/claims.py", False), ("here/recorded/a.json", False),
    ("here/figures.py", False), ("here/figures_more.py", False), ("here/claimed.py", True), ("here/new.py", True)])
def test_the_code_version_follows_what_can_change_a_result(house, path, changes):
    before = code_version("frugal.here")
    (house / path).write_text(SOURCE.replace("2", "3"))
    assert (code_version("frugal.here") != before) == changes


def test_the_code_version_ignores_line_endings_and_comments(house):
    before = code_version("frugal.here")
    (house / "core" / "work.py").write_bytes(SOURCE.replace("\n", "\r\n").encode() + b"# the end\r\n")
    assert code_version("frugal.here") == before


def test_the_code_version_of_the_real_library_is_stable_in_one_process():
    assert code_version("frugal.core") == code_version("frugal.core") and len(code_version("frugal.core")) == 16


def made(body, default="1", base="object"):
    """A class without a source file."""
    space = {"__name__": "somewhere", "Base": type("Base", (), {"__module__": "somewhere", "k": 1})}
    exec(f"class Own({base}):\n    unit = 'm'\n    def f(self, x={default}):\n        return {body}\n", space)
    return space["Own"]


def test_a_class_without_a_file_is_hashed_by_its_code():
    assert source_hash(made("x + 1")) == source_hash(made("x + 1"))
    others = {source_hash(cls) for cls in (made("x + 1"), made("x + 2"), made("x - 1"), made("x + 1", "2"),
                                           made("x + 1", base="Base"), made("abs(x)"), made("round(x)"))}
    assert len(others) == 7


def test_a_function_counts_with_its_own_code():
    assert source_hash(made) == source_hash(made) != source_hash(house)


def test_settings_are_the_plain_fields():
    @dataclass
    class Settings:
        size: int = 3
        names: tuple = ("a",)
        model: object = object()
    assert settings_of(Settings()) == "[('size', 3), ('names', ('a',))]"
    assert settings_of(Settings(size=4)) != settings_of(Settings())
