"""One matrix product for every row count: the small-batch kernel where it wins, PyTorch elsewhere.

Decoding multiplies a handful of rows by every weight of the model. Such a product is bound by reading the
weights, and a plain loop that reads each weight once for all rows reads them faster than a general matrix
library does. Up to which row count it wins is timed at first use, once per machine, and remembered in the user cache.

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

from frugal.core.compiled import compiled, numba, prange, share_threads

MAX_ROWS = 32                             # beyond this the product is bound by arithmetic, where PyTorch wins
ROWS_TIMED = (1, 2, 4, 8, 16, 24, 32)


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
    threads = share_threads()
    x2 = x.detach().reshape(rows, -1)
    if rows > 2:                          # pad to whole tiles of four: the extra rows cost no weight traffic
        x2 = F.pad(x2, (0, 0, 0, -rows % 4))
    out = torch.empty(x2.shape[0], weight.shape[0])
    kernel = _one_row if rows == 1 else _two_rows if rows == 2 else _tiles_of_four
    kernel(weight.detach().numpy(), x2.contiguous().numpy(), out.numpy(), threads)
    return out[:rows].view(*x.shape[:-1], weight.shape[0])


# Each thread reads its share of the weight as four streams far apart: four hardware prefetchers run ahead of it,
# which is worth up to twice the bandwidth of one stream. Sums stay in registers. Rows left over are few.

@compiled(parallel=False)
def _left_over(w, x, out, first):
    """The rows of the weight that do not fill four streams a thread."""
    for o in range(first, w.shape[0]):
        for r in range(x.shape[0]):
            a = np.float32(0)
            for i in range(w.shape[1]):
                a += w[o, i] * x[r, i]
            out[r, o] = a


@compiled()
def _one_row(w, x, out, threads):
    n = w.shape[1]
    q = w.shape[0] // (4 * threads)
    x0 = x[0]
    for t in prange(threads):
        base = 4 * t * q
        for j in range(base, base + q):
            w0, w1, w2, w3 = w[j], w[j + q], w[j + 2 * q], w[j + 3 * q]
            a = b = c = d = np.float32(0)
            for i in range(n):
                u = x0[i]
                a += w0[i] * u
                b += w1[i] * u
                c += w2[i] * u
                d += w3[i] * u
            out[0, j], out[0, j + q], out[0, j + 2 * q], out[0, j + 3 * q] = a, b, c, d
    _left_over(w, x, out, 4 * threads * q)


@compiled()
def _two_rows(w, x, out, threads):
    n = w.shape[1]
    q = w.shape[0] // (4 * threads)
    x0, x1 = x[0], x[1]
    for t in prange(threads):
        base = 4 * t * q
        for j in range(base, base + q):
            w0, w1, w2, w3 = w[j], w[j + q], w[j + 2 * q], w[j + 3 * q]
            a0 = a1 = b0 = b1 = c0 = c1 = d0 = d1 = np.float32(0)
            for i in range(n):
                u, v = x0[i], x1[i]
                a0 += w0[i] * u
                a1 += w0[i] * v
                b0 += w1[i] * u
                b1 += w1[i] * v
                c0 += w2[i] * u
                c1 += w2[i] * v
                d0 += w3[i] * u
                d1 += w3[i] * v
            out[0, j], out[0, j + q], out[0, j + 2 * q], out[0, j + 3 * q] = a0, b0, c0, d0
            out[1, j], out[1, j + q], out[1, j + 2 * q], out[1, j + 3 * q] = a1, b1, c1, d1
    _left_over(w, x, out, 4 * threads * q)


@compiled()
def _tiles_of_four(w, x, out, threads):
    rows, n = x.shape
    q = w.shape[0] // (4 * threads)
    for t in prange(threads):
        base = 4 * t * q
        for j in range(base, base + q):
            w0, w1, w2, w3 = w[j], w[j + q], w[j + 2 * q], w[j + 3 * q]
            for r in range(0, rows, 4):                  # from the second tile on, the weights come from the cache
                x0, x1, x2, x3 = x[r], x[r + 1], x[r + 2], x[r + 3]
                a0 = a1 = a2 = a3 = b0 = b1 = b2 = b3 = np.float32(0)
                c0 = c1 = c2 = c3 = d0 = d1 = d2 = d3 = np.float32(0)
                for i in range(n):
                    s0, s1, s2, s3 = x0[i], x1[i], x2[i], x3[i]
                    v = w0[i]
                    a0 += v * s0
                    a1 += v * s1
                    a2 += v * s2
                    a3 += v * s3
                    v = w1[i]
                    b0 += v * s0
                    b1 += v * s1
                    b2 += v * s2
                    b3 += v * s3
                    v = w2[i]
                    c0 += v * s0
                    c1 += v * s1
                    c2 += v * s2
                    c3 += v * s3
                    v = w3[i]
                    d0 += v * s0
                    d1 += v * s1
                    d2 += v * s2
                    d3 += v * s3
                out[r, j], out[r + 1, j], out[r + 2, j], out[r + 3, j] = a0, a1, a2, a3
                k = j + q
                out[r, k], out[r + 1, k], out[r + 2, k], out[r + 3, k] = b0, b1, b2, b3
                k = j + 2 * q
                out[r, k], out[r + 1, k], out[r + 2, k], out[r + 3, k] = c0, c1, c2, c3
                k = j + 3 * q
                out[r, k], out[r + 1, k], out[r + 2, k], out[r + 3, k] = d0, d1, d2, d3
    _left_over(w, x, out, 4 * threads * q)


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
    """Times both on 57 MB of weights, interleaved, by the fastest of several passes: other work on the machine only
    ever adds time. The kernel is dropped from the first row count at which it loses by more than noise."""
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(3072, 576, generator=generator) for _ in range(8)]
    best = 0
    for rows in ROWS_TIMED:
        x = torch.randn(rows, 576, generator=generator)
        ours, theirs = [], []
        for _ in range(10):
            for call, times in ((_kernel_linear, ours), (lambda x, w, _: F.linear(x, w), theirs)):
                start = time.perf_counter()
                for w in weights:
                    call(x, w, rows)
                times.append(time.perf_counter() - start)
        if min(ours) > (1.1 if rows <= 8 else 1.0) * min(theirs):      # below 8 rows a loss is more likely noise
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
