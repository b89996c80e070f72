"""One matrix product for every row count: the small-batch kernel where it wins, PyTorch elsewhere.

Decoding multiplies a handful of rows by every weight of the model. Such a product is bound by reading the
weights, and a plain loop that reads each weight once for all rows reads them faster than a general matrix
library does. The kernel keeps a tile of 4 weight rows by 4 input rows in registers. At start-up it is timed
against PyTorch once per machine; the row counts where it wins are remembered in the user cache.

Source: own measurement, `benchmarks/linear.py`; the numbers are in README.
"""
import json
import os
import platform
import tempfile
import time
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from platformdirs import user_cache_dir
from torch import Tensor

try:
    import numba
    from numba import njit, prange
except ImportError:                       # numba has no build for every platform; PyTorch alone is correct too
    numba = None

MAX_ROWS = 16                             # beyond this the product is bound by arithmetic, where PyTorch wins
ROWS_TIMED = (1, 2, 4, 8, 16)


def linear(x: Float[Tensor, "*rows in_features"], weight: Float[Tensor, "out_features in_features"]
           ) -> Float[Tensor, "*rows out_features"]:
    """`x @ weight.T`, correct to fp32 rounding whatever kernel runs.

    The kernel is chosen by the number of rows, device and dtype; gradients always take the PyTorch path.
    """
    rows = x.numel() // x.shape[-1]
    if not _kernel_applies(x, weight, rows) or rows > kernel_rows(torch.get_num_threads()):
        return F.linear(x, weight)
    return _kernel_linear(x, weight, rows)


def _kernel_applies(x: Tensor, weight: Tensor, rows: int) -> bool:
    return (numba is not None and 0 < rows <= MAX_ROWS and x.dtype == torch.float32 == weight.dtype
            and x.device.type == "cpu" == weight.device.type and weight.is_contiguous()
            and not (torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)))


def _kernel_linear(x: Tensor, weight: Tensor, rows: int) -> Tensor:
    numba.set_num_threads(min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS))
    x2 = x.reshape(rows, -1)
    if rows <= 2:
        out = torch.empty(rows, weight.shape[0])
        _few_rows(weight.detach().numpy(), x2.detach().contiguous().numpy(), out.numpy())
    else:                                 # pad to whole tiles of four rows: the extra rows cost no weight traffic
        padded = F.pad(x2.detach(), (0, 0, 0, -rows % 4)).contiguous()
        out = torch.empty(padded.shape[0], weight.shape[0])
        _many_rows(weight.detach().numpy(), padded.numpy(), out.numpy())
        out = out[:rows]
    return out.reshape(*x.shape[:-1], weight.shape[0])


if numba is not None:
    @njit(parallel=True, fastmath=True, cache=True)
    def _few_rows(w, x, out):
        """One or two input rows: every weight is read once, one dot product per input row."""
        rows, n = x.shape
        for o in prange(w.shape[0]):
            wo = w[o]
            if rows == 1:
                x0 = x[0]
                a = np.float32(0)
                for i in range(n):
                    a += wo[i] * x0[i]
                out[0, o] = a
            else:
                x0, x1 = x[0], x[1]
                a = np.float32(0)
                b = np.float32(0)
                for i in range(n):
                    v = wo[i]
                    a += v * x0[i]
                    b += v * x1[i]
                out[0, o] = a
                out[1, o] = b

    @njit(parallel=True, fastmath=True, cache=True)
    def _many_rows(w, x, out):
        """Input rows in tiles of four: 2 x 4 sums stay in registers while two weight rows stream by."""
        rows, n = x.shape
        for pair in prange((w.shape[0] + 1) // 2):
            o = 2 * pair
            p = min(o + 1, w.shape[0] - 1)           # an odd last row is computed twice
            wo, wp = w[o], w[p]
            for r in range(0, rows, 4):
                x0, x1, x2, x3 = x[r], x[r + 1], x[r + 2], x[r + 3]
                a0 = a1 = a2 = a3 = np.float32(0)
                b0 = b1 = b2 = b3 = np.float32(0)
                for i in range(n):
                    v, u = wo[i], wp[i]
                    a0 += v * x0[i]
                    a1 += v * x1[i]
                    a2 += v * x2[i]
                    a3 += v * x3[i]
                    b0 += u * x0[i]
                    b1 += u * x1[i]
                    b2 += u * x2[i]
                    b3 += u * x3[i]
                out[r, o], out[r + 1, o], out[r + 2, o], out[r + 3, o] = a0, a1, a2, a3
                out[r, p], out[r + 1, p], out[r + 2, p], out[r + 3, p] = b0, b1, b2, b3


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
    key = f"{platform.machine()}-{platform.processor()}-{os.cpu_count()}cpu-{num_threads}t-torch{torch.__version__}"
    known = _read_json(path)
    if key not in known:
        known = {**known, key: _calibrate()}
        _write_json(path, known)
    return known[key]


def _calibrate() -> int:
    """Times both on weights too large for the caches, interleaved, best of seven."""
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(3072, 576, generator=generator) for _ in range(8)]
    best = 0
    for rows in ROWS_TIMED:
        x = torch.randn(rows, 576, generator=generator)
        ours, theirs = [], []
        for _ in range(8):
            for call, times in ((_kernel_linear, ours), (lambda x, w, _: F.linear(x, w), theirs)):
                start = time.perf_counter()
                for w in weights:
                    call(x, w, rows)
                times.append(time.perf_counter() - start)
        if min(ours[1:]) > 0.97 * min(theirs[1:]):
            break
        best = rows
    return best


def _read_json(path: Path) -> dict:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):         # missing, or cut off by a crash: calibrate again
        return {}


def _write_json(path: Path, value: dict) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as handle:
            json.dump(value, handle)
        os.replace(handle.name, path)
    except OSError:                       # a read-only home only costs the next process a second of timing
        pass
