"""One matrix product for every row count: the small-batch kernel where it wins, PyTorch elsewhere.

Decoding multiplies a handful of rows by every weight of the model. Such a product is bound by reading the
weights, and a plain loop that reads each weight once for all rows reads them faster than a general matrix
library does. Up to which row count it wins is timed at first use, once per machine, and remembered in the user cache.

Source: own measurement, `benchmarks/linear.py`; the numbers are in README.
"""
import json
import os
import platform
import time
from functools import lru_cache
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from platformdirs import user_cache_dir
from torch import Tensor

from frugal.core.files import write_atomically
from frugal.core.compiled import numba, share_threads
from frugal.core.kernels import product

MAX_ROWS = 32                             # beyond this the product is bound by arithmetic, where PyTorch wins
METHOD = "cpu-time"                       # how it was timed: results of another way are not taken over
ROWS_TIMED = (1, 2, 4, 8, 16, 24, 32)


def linear(x: Float[Tensor, "*rows in_features"], weight: Float[Tensor, "out_features in_features"]
           ) -> Float[Tensor, "*rows out_features"]:
    """`x @ weight.T`, correct to fp32 rounding whatever kernel runs.

    The kernel is chosen by the number of rows, device and dtype; gradients always take the PyTorch path.
    """
    rows = x.numel() // x.shape[-1]
    if not kernel_serves(x, weight, rows):
        return F.linear(x, weight)
    return _kernel_linear(x, weight, rows)


def kernel_serves(x: Tensor, weight: Tensor, rows: int) -> bool:
    """Whether the small-batch kernel can compute this product of `rows` rows, and is the faster way."""
    return _kernel_applies(x, weight, rows) and rows <= kernel_rows(torch.get_num_threads())


def _kernel_applies(x: Tensor, weight: Tensor, rows: int) -> bool:
    return (numba is not None and 0 < rows <= MAX_ROWS and x.dtype == torch.float32 == weight.dtype
            and x.device.type == "cpu" == weight.device.type and weight.is_contiguous()
            and not (torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)))


def _kernel_linear(x: Tensor, weight: Tensor, rows: int) -> Tensor:
    threads = share_threads()
    x2 = x.detach().reshape(rows, -1)
    if rows > 2:                          # whole tiles of four, see kernels.padded_rows
        x2 = F.pad(x2, (0, 0, 0, -rows % 4))
    out = torch.empty(x2.shape[0], weight.shape[0])
    product(weight.detach().numpy(), x2.contiguous().numpy(), out.numpy(), threads)
    return out[:rows].view(*x.shape[:-1], weight.shape[0])


@lru_cache
def kernel_rows(num_threads: int) -> int:
    """Largest row count at which the kernel beats PyTorch on this machine (0 = never). Timed once, then cached.

    Set FRUGAL_KERNEL_ROWS to fix it by hand (0 switches the kernel off).
    """
    if numba is None:
        return 0
    if "FRUGAL_KERNEL_ROWS" in os.environ:
        return int(os.environ["FRUGAL_KERNEL_ROWS"])
    path = Path(os.environ.get("FRUGAL_CACHE", user_cache_dir("frugal"))) / "kernel_rows.json"
    key = f"{METHOD}-{platform.machine()}-{platform.processor()}-{os.cpu_count()}cpu-{num_threads}t-torch{torch.__version__}"
    known = _read_json(path)
    if key not in known:
        known = {**known, key: _calibrate()}
        _write_json(path, known)
    return known[key]


def _calibrate() -> int:
    """Times both on 113 MB of weights, in turn, and finds the first row count at which the kernel loses.

    What counts is the CPU time of one thread, the least of several passes: it hardly grows when the machine is busy
    with other work, while the wall clock of two threads that wait for each other then says nothing.
    """
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(3072, 576, generator=generator) for _ in range(16)]
    best, threads = 0, torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for rows in ROWS_TIMED:
            x = torch.randn(rows, 576, generator=generator)
            ours, theirs = [], []
            for _ in range(6):
                for call, times in ((_kernel_linear, ours), (lambda x, w, _: F.linear(x, w), theirs)):
                    start = time.thread_time()
                    for w in weights:
                        call(x, w, rows)
                    times.append(time.thread_time() - start)
            if min(ours) > (1.3 if rows <= 8 else 1.0) * min(theirs):      # up to 8 rows a loss is more likely noise,
                break                                                      # and `fused` saves more than the product
            best = rows
    finally:
        torch.set_num_threads(threads)
    return best


def _read_json(path: Path) -> dict:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):         # missing, or cut off by a crash: calibrate again
        return {}


def _write_json(path: Path, value: dict) -> None:
    try:
        write_atomically(path, json.dumps(value))
    except OSError:                       # a read-only home only costs the next process a second of timing
        pass
