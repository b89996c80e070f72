"""The converted copy: the fused weights of a checkpoint as one safetensors file in the cache.

Reading a GGUF file decodes every block (seconds); reading the copy into memory, or mapping it, takes a fraction of a
second. A copy is written under another name, flushed
and renamed, so a half-written one is never seen. Each tensor carries a checksum that is read back on every load.
"""
import dataclasses
import json
import mmap
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from frugal.core.lm import LMConfig
from frugal.core.tokenizer import Tokenizer

_VERSION = "1"          # raise it when the layout of the copy changes: older copies are then rebuilt
_TOKENIZER = "tokenizer"
_KINDS = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.uint8: "U8"}
_ALIGN = 64             # bytes; matrix kernels like their operands on cache lines


def checksum(tensor: Tensor) -> int:
    """Sum of the tensor's bytes, read as 64-bit words, modulo 2^64: any single changed bit shows, at memory speed."""
    raw = tensor.contiguous().view(-1).view(torch.uint8).numpy()
    words = raw[:raw.size // 8 * 8].view(np.uint64)
    return (int(words.sum(dtype=np.uint64)) + int(raw[words.size * 8:].sum(dtype=np.uint64))) % 2 ** 64


def read(path: Path, memory: Callable[[int], mmap.mmap | None] = lambda num_bytes: None
         ) -> tuple[LMConfig, dict[str, Tensor], Tokenizer] | None:
    """Configuration, weights and tokenizer; None when the copy is not there or not whole.

    memory: gives writable memory of so many bytes, which the file is read into; where it gives None the file is
    mapped. Never both: a mapping that is read and then copied holds the weights twice.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("version") != _VERSION:
                return None
            room = memory(path.stat().st_size)
            weights = ({name: file.get_tensor(name) for name in file.keys()} if room is None     # noqa: SIM118 (no mapping)
                       else _read_into(room, path))
        sums = json.loads(metadata["checksums"])
        if sums.keys() != weights.keys() or any(checksum(weights[name]) != sums[name] for name in sums):
            return None
        fields = json.loads(metadata["config"])
        config = LMConfig(**{**fields, "eos_ids": tuple(fields["eos_ids"])})
        text = weights.pop(_TOKENIZER).numpy().tobytes().decode("utf-8")
        return config, weights, Tokenizer(text, json.loads(metadata["tokenizer"]))
    except (OSError, SafetensorError, KeyError, ValueError, TypeError):
        return None


def _read_into(room: mmap.mmap, path: Path) -> dict[str, Tensor]:
    """The tensors of the file, as views of the memory that it is read into. The header has been checked already."""
    view, filled = memoryview(room), 0
    with open(path, "rb", buffering=0) as file:
        while count := file.readinto(view[filled:]):           # one call reads at most 2 GiB
            filled += count
    start = 8 + int.from_bytes(view[:8], "little")
    header = json.loads(bytes(view[8:start]))
    header.pop("__metadata__")
    dtypes = {kind: dtype for dtype, kind in _KINDS.items()}
    return {name: torch.frombuffer(room, dtype=dtypes[entry["dtype"]], offset=start + entry["data_offsets"][0],
                                   count=int(np.prod(entry["shape"]))).view(entry["shape"])
            for name, entry in header.items()}


def needed_bytes(config: LMConfig, dtype: torch.dtype) -> int:
    """Size of the copy's weights in bytes."""
    return dtype.itemsize * sum(int(np.prod(shape)) for shape in config.weight_shapes().values())


def write(path: Path, config: LMConfig, weights: Iterator[tuple[str, Tensor]], tokenizer: Tokenizer,
          dtype: torch.dtype, advance: Callable[[int], object] = lambda num_bytes: None) -> None:
    """Write the copy, one tensor in memory at a time. `advance` is told the bytes of each tensor.

    Raises OSError with errno ENOSPC, and leaves nothing behind, when the disk is full.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    text = torch.frombuffer(bytearray(tokenizer.to_json().encode("utf-8")), dtype=torch.uint8)
    plan = [(name, shape, dtype) for name, shape in config.weight_shapes().items()]
    plan.append((_TOKENIZER, tuple(text.shape), torch.uint8))
    part = path.with_name(f"{path.name}.part")     # the caller holds the lock; a killed run's leftover is overwritten
    try:
        with open(part, "wb") as out:
            _stream(out, plan, weights, text, config, tokenizer, advance)
            out.flush()
            os.fsync(out.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _stream(out, plan, weights, text, config, tokenizer, advance) -> None:
    """Header with empty checksums, tensors in plan order, then the header again with the checksums.

    The safetensors library writes only from whole dictionaries, which would need the model twice in memory. The
    format is a length, a JSON header and the bytes: https://github.com/huggingface/safetensors#format
    """
    sums: dict[str, int] = {}
    metadata = {"version": _VERSION, "config": json.dumps(dataclasses.asdict(config)),
                "tokenizer": json.dumps(tokenizer.settings)}
    room = len(_header(plan, {**metadata, "checksums": json.dumps({name: 2 ** 64 - 1 for name, _, _ in plan})}))
    out.write(b"\0" * room)
    found = dict(_positions(plan, room))
    for name, tensor in weights:
        out.seek(found.pop(name))
        out.write(tensor.view(-1).view(torch.uint8).numpy())
        sums[name] = checksum(tensor)
        advance(tensor.numel() * tensor.element_size())
    out.seek(found.pop(_TOKENIZER))
    out.write(text.numpy())
    sums[_TOKENIZER] = checksum(text)
    assert not found, f"weights never written: {sorted(found)}"
    out.seek(0)
    out.write(_header(plan, {**metadata, "checksums": json.dumps(sums)}, room))


def _positions(plan, room: int) -> Iterator[tuple[str, int]]:
    offset = room
    for name, shape, dtype in plan:
        yield name, offset
        offset += dtype.itemsize * int(np.prod(shape))


def _header(plan, metadata: dict[str, str], room: int = 0) -> bytes:
    """The header, padded with spaces to `room` bytes, or to a whole number of cache lines."""
    entries: dict = {"__metadata__": metadata}
    offset = 0
    for name, shape, dtype in plan:
        end = offset + dtype.itemsize * int(np.prod(shape))
        entries[name] = {"dtype": _KINDS[dtype], "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(entries).encode("utf-8")
    room = room or -(-(len(text) + 8) // _ALIGN) * _ALIGN
    return (room - 8).to_bytes(8, "little") + text.ljust(room - 8)


def room_on_disk(folder: Path) -> int:
    """Free bytes where `folder` is or will be."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free
