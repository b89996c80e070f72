"""The rules of the repository: what may import what, what may be committed, and that a lint run is clean."""
import ast
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import jaxtyping
import pytest
import torch

import frugal
from frugal.core.budgets import top_slots
from frugal.core.papers import FAMILIES

ROOT = Path(__file__).resolve().parents[1]
LIBRARY = ROOT / "lib" / "frugal"
SHARED = {"core", "data", "models", "explore"}
MAX_FILE_BYTES, MAX_ASSET_BYTES = 20e6, 120e6
PUBLIC_HOSTS = {"arxiv.org", "github.com", "www.apache.org", "www.w3.org", "openreview.net",
                "127.0.0.1", "localhost", "scripts.sil.org", "jupyter.org", "doi.org"}


def tracked() -> list[Path]:
    """Files under version control that are there, or all files of an unpacked source archive."""
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    names = done.stdout.split("\0")[:-1] if done.returncode == 0 else []
    files = [ROOT / name for name in names] or [path for path in ROOT.rglob("*") if ".venv" not in path.parts]
    return [path for path in files if path.is_file()]


def sources(*folders: str) -> list[Path]:
    return [path for path in tracked() if path.suffix == ".py" and path.relative_to(ROOT).parts[0] in folders]


def imports(path: Path, text: str | None = None) -> set[str]:
    """Full names of the frugal modules that a file imports, wherever in the file; relative imports resolved."""
    module = [*path.relative_to(ROOT / "lib").with_suffix("").parts]
    package = module[:-1]                               # of __init__.py too: its own package
    found = set()
    for node in ast.walk(ast.parse(text if text is not None else path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[:len(package) - node.level + 1] if node.level else []
            start = ".".join([*base, *([node.module] if node.module else [])])
            found |= {start, *(f"{start}.{name.name}" for name in node.names)}
    return {name for name in found if name.split(".")[0] == "frugal"}


def wrong_way(path: Path, text: str | None = None) -> set[str]:
    """The imports of a library file that go against the one direction: families -> core, data, models, explore."""
    home = path.relative_to(LIBRARY).parts[0]
    reached = {name.split(".")[1] for name in imports(path, text) if "." in name}
    if home == "core":
        return reached & (set(FAMILIES) | {"explore"})
    return reached & set(FAMILIES) - {home} if home in SHARED | set(FAMILIES) else set()


def test_dependencies_point_one_way():
    found = {str(path.relative_to(ROOT)): wrong_way(path) for path in sources("lib")}
    assert {name: wrong for name, wrong in found.items() if wrong} == {}


@pytest.mark.parametrize("home, text, expected", [
    ("core/lm.py", "from frugal.kv_eviction import Keyformer", {"kv_eviction"}),
    ("core/lm.py", "def f():\n    from ..kv_eviction.mikv import Mikv", {"kv_eviction"}),
    ("core/lm.py", "from .. import serving", {"serving"}),
    ("serving/sarathi.py", "import frugal.kv_reuse.hydragen", {"kv_reuse"}),
    ("serving/__init__.py", "from .sarathi import Sarathi\nfrom frugal.core.lm import LM", set()),
])
def test_a_wrong_import_would_be_seen(home, text, expected):
    assert wrong_way(LIBRARY / home, text) == expected


def test_ruff_finds_nothing():
    done = subprocess.run([sys.executable, "-m", "ruff", "check", "--no-cache", "lib", "tests", "recipes", "benchmarks"],
                          cwd=ROOT, text=True, capture_output=True)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout


def test_no_file_weakens_its_annotations():
    assert [path.name for path in sources("lib", "tests") if "from __future__ import" + " annotations" in path.read_text()] == []


def test_annotations_are_checked_in_these_tests():
    with pytest.raises(jaxtyping.TypeCheckError):
        top_slots(torch.zeros(3), 1)                   # (rows, slots) was promised


def test_importing_frugal_is_cheap():
    code = ("import sys, time; before, start = set(sys.modules), time.process_time(); import frugal\n"
            "seconds = time.process_time() - start\n"
            "print(seconds, *sorted({name.split('.')[0] for name in set(sys.modules) - before} - sys.stdlib_module_names))")
    runs = [subprocess.run([sys.executable, "-c", code], text=True, capture_output=True, check=True).stdout.split() for _ in range(3)]
    assert [loaded for _, *loaded in runs] == [["frugal"]] * 3
    assert min(float(seconds) for seconds, *_ in runs) < 0.2


def test_the_facade_gives_what_it_promises():
    assert set(frugal.__all__) == {"load_lm", "generate", "Sweep", "claims", "papers"} <= set(dir(frugal))
    assert all(callable(getattr(frugal, name)) for name in frugal.__all__)
    with pytest.raises(AttributeError, match="no_such_name"):
        frugal.no_such_name


def test_no_file_is_too_large():
    sizes = {str(path.relative_to(ROOT)): path.stat().st_size for path in tracked()}
    assert {name: size for name, size in sizes.items() if size > MAX_FILE_BYTES} == {}
    assets = {name: size for name, size in sizes.items() if re.search(r"/(weights|assets|recorded)/", name)}
    assert sum(assets.values()) <= MAX_ASSET_BYTES


def test_nothing_is_pickled():
    pickled = {".pkl", ".pickle", ".pt", ".pth", ".joblib", ".npy", ".npz", ".bin", ".ckpt", ".whl", ".gguf"}
    assert [path.name for path in tracked() if path.suffix in pickled] == []
    calls = re.compile(r"^\s*(import pickle|from pickle)|\btorch\.(load|save)\(|\bpickle\.(load|dump)|\bjoblib\.(load|dump)\(", re.M)
    assert [path.name for path in sources("lib", "recipes", "benchmarks") if calls.search(path.read_text())] == []


def test_no_machine_paths_and_no_unknown_hosts():
    paths = re.compile("/wo" + "rk/|/ro" + r"ot/|/ho" + r"me/\w")
    found = {}
    for path in tracked():
        name = str(path.relative_to(ROOT))
        if path.suffix not in {".py", ".md", ".js", ".css", ".toml", ".yml", ".txt", ".cff", ".json", ".ipynb", ""} \
                or name.endswith((".min.js", "tests/test_house.py")) or "/assets/" in name or "/static/mathjax/" in name or "LICEN" in name.upper():
            continue
        text = path.read_text(encoding="utf-8")
        hosts = {host.lower() for host in re.findall(r"https?://([\w.-]*\w)", text)} - PUBLIC_HOSTS
        hosts = {host for host in hosts if not host.endswith((".invalid", ".example", "example.com", "example.org"))}
        if name.startswith("tests/"):
            hosts, text = set(), text.replace("/home/", "")    # tests speak of places that must not be named
        if wrong := hosts | set(paths.findall(text)):
            found[name] = wrong
    assert found == {}


@pytest.mark.parametrize("missing, message", [
    ("ensurepip", "apt-get install python3-venv"), ("version_info", "needs Python 3.11 or newer")])
def test_make_says_what_is_missing(tmp_path, missing, message):
    fake = tmp_path / "python3"
    fake.write_text(f'#!/bin/sh\ncase "$*" in *{missing}*) exit 1;; *--version*) echo Python 3.9.2;; esac\n')
    fake.chmod(0o755)
    done = subprocess.run(["make", "-C", ROOT, f"PYTHON={fake}", f"VENV={tmp_path / 'venv'}", "lab"], text=True, capture_output=True)
    assert done.returncode != 0 and message in done.stderr
    assert not (tmp_path / "venv").exists()


def test_ci_calls_make_test_and_keeps_its_exit_code(tmp_path):
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK) and subprocess.run(["bash", "-n", script]).returncode == 0
    for name, code in {"make": 3, "chromium": 0, "git": 0}.items():
        (tmp_path / name).write_text(f'#!/bin/sh\n[ {name} = make ] && echo "called with $*"\nexit {code}\n')
        (tmp_path / name).chmod(0o755)
    done = subprocess.run([script], text=True, capture_output=True, env=os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"})
    assert (done.returncode, done.stdout) == (3, "called with test\n"), done.stderr


def test_the_wheel_holds_everything_a_reader_needs(tmp_path):
    copy, files = tmp_path / "copy", tracked()
    for path in files:
        target = copy / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    done = subprocess.run([sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index",
                           "-w", tmp_path / "out", copy], text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    wheel, = (tmp_path / "out").glob("frugal-*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    wanted = {str(path.relative_to(ROOT / "lib")) for path in files if path.is_relative_to(LIBRARY)}
    books = {f"frugal-{frugal.__version__}.data/data/share/frugal/notebooks/{path.name}"
             for path in files if path.suffix == ".ipynb" and path.parent.name == "notebooks"}
    assert (wanted | books) - names == set()
    assert {name for name in names if name.endswith((".pyc", ".part"))} == set()
