"""load_lm: a language model by name, from a GGUF file or from a safetensors folder.

The first load converts the weights to the fused layout of LM and keeps the result in the cache; later loads read that.
"""
import errno
import hashlib
import os
import warnings
from pathlib import Path

import torch
from filelock import FileLock

from frugal.core import converted
from frugal.core.fetch import MODELS, cache_dir, fetch, progress_bar
from frugal.core.gguf_file import GGUFFile
from frugal.core.large_pages import large_pages
from frugal.core.layout import CheckpointError, Source, fused_weights
from frugal.core.lm import LM
from frugal.core.safetensors_folder import SafetensorsFolder

__all__ = ["CheckpointError", "load_lm", "open_checkpoint"]

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def load_lm(name_or_path: str | os.PathLike = "smollm2-135m", *, device: str | torch.device = "cpu",
            dtype: torch.dtype = torch.float32, progress: bool = True) -> LM:
    """The language model of that name (fetched once), or the one in a GGUF file or a safetensors folder.

    The weights are read from a converted copy in the cache; changing them in place never reaches the disk.
    dtype: torch.float32, bfloat16 (half the memory; faster only on CPUs made for it) or float16.
    Raises CheckpointError for a damaged, incomplete or foreign checkpoint, FetchError where a named model cannot be had.
    """
    if dtype not in _DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(map(str, _DTYPES))}, got {dtype}")
    name = str(name_or_path)
    copy = _copy_path(name, dtype)
    memory = large_pages if torch.device(device).type == "cpu" else lambda num_bytes: None
    loaded = converted.read(copy, memory)
    if loaded is None:
        path = fetch(name, progress) if name in MODELS else Path(name).expanduser()
        loaded = _convert(open_checkpoint(path), copy, dtype, memory, progress)
    config, weights, tokenizer = loaded
    lm = LM(config, weights, tokenizer, name=name if name in MODELS else Path(name).stem)
    return lm if torch.device(device).type == "cpu" else lm.to(device)


def open_checkpoint(path: str | os.PathLike) -> Source:
    """Reader for a GGUF file or a safetensors folder, whichever `path` is."""
    path = Path(path).expanduser()
    return SafetensorsFolder(path) if path.is_dir() else GGUFFile(path)


def _convert(source: Source, copy: Path, dtype: torch.dtype, memory, progress: bool):
    """Write the converted copy and read it; without room or a writable cache, build the weights in memory instead."""
    num_bytes, tokenizer = converted.needed_bytes(source.config, dtype), source.tokenizer()
    try:
        copy.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(str(copy) + ".lock"):                # two kernels: the second finds the first one's copy
            loaded = converted.read(copy, memory)
            if loaded is None:
                if converted.room_on_disk(copy.parent) < num_bytes + (64 << 20):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(copy.parent))
                with progress_bar(num_bytes, f"converting {Path(source.label).name}", progress) as bar:
                    converted.write(copy, source.config, fused_weights(source, dtype), tokenizer, dtype, bar.update)
                loaded = converted.read(copy, memory)
    except OSError as error:
        warnings.warn(f"no converted copy was kept, so the next load is slow again: {error}. {num_bytes / 1e6:.0f} MB "
                      f"are needed in {cache_dir()}; free some space or set FRUGAL_CACHE.", stacklevel=3)
        loaded = None
    if loaded is None:
        loaded = source.config, dict(fused_weights(source, dtype)), tokenizer
    return loaded


def _copy_path(name: str, dtype: torch.dtype) -> Path:
    """Where the converted copy stands: keyed by the recorded hash, or by the files' paths, sizes and times."""
    if name in MODELS:
        stem, key = name, MODELS[name].sha256
    else:
        path = Path(name).expanduser()
        if not path.exists():
            raise CheckpointError(f"{name!r} is neither a file nor a folder, nor one of the names {sorted(MODELS)}. "
                                  "Pass one of these.")
        files = sorted(file for file in path.iterdir() if file.is_file()) if path.is_dir() else [path]
        facts = [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
        stem, key = path.stem, hashlib.sha256(repr(facts).encode()).hexdigest()
    return cache_dir() / "converted" / f"{stem}-{key[:16]}-{str(dtype).removeprefix('torch.')}.safetensors"
