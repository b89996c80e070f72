"""Measuring without fooling oneself: interleaved timings, counted FLOPs, memory, and what the machine is.

Wall clock on a shared machine is noise. `compare` therefore runs baseline and ours in turn in one process and
reports the median of the ratios within each round; tests judge counted work and process CPU time instead.
"""
import contextlib
import functools
import os
import platform
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import torch
from torch.utils.flop_counter import FlopCounterMode

MIB, GIB = 2**20, 2**30


def compare(fns: dict[str, Callable[[], object]], repeats: int = 7, warmup: int = 1) -> pd.DataFrame:
    """Time several functions against the first one, in turn, in one process.

    One row per function: `median_s`, `low_s`, `high_s` (quartiles of the wall clock), `cpu_s` (median process CPU
    time, all threads), `speedup` = median over rounds of baseline wall / own wall in the same round, with its
    quartiles `speedup_low`, `speedup_high`, and `cpu_ratio`, the same for baseline CPU / own CPU.
    The order is turned by one in each round, so that no function always runs behind the same neighbour.
    Raises ValueError for fewer than 1 repeat or no function.
    """
    if not fns or repeats < 1 or warmup < 0:
        raise ValueError(f"compare needs at least one function, repeats >= 1 and warmup >= 0; "
                         f"got {len(fns)} functions, repeats {repeats}, warmup {warmup}")
    names = list(fns)
    for _ in range(warmup):
        for fn in fns.values():
            fn()
    wall, cpu = np.empty((repeats, len(names))), np.empty((repeats, len(names)))
    for turn in range(repeats):
        for place in range(len(names)):
            at = (turn + place) % len(names)
            wall[turn, at], cpu[turn, at] = _time_once(fns[names[at]])
    ratios, cpu_ratios = wall[:, :1] / wall, cpu[:, :1] / np.maximum(cpu, 1e-9)
    low, median, high = np.quantile(wall, [0.25, 0.5, 0.75], axis=0)
    ratio_low, ratio, ratio_high = np.quantile(ratios, [0.25, 0.5, 0.75], axis=0)
    return pd.DataFrame({"name": names, "median_s": median, "low_s": low, "high_s": high,
                         "cpu_s": np.median(cpu, axis=0), "speedup": ratio, "speedup_low": ratio_low,
                         "speedup_high": ratio_high, "cpu_ratio": np.median(cpu_ratios, axis=0)})


def _time_once(fn: Callable[[], object]) -> tuple[float, float]:
    """(wall seconds, process CPU seconds) of one call."""
    cpu, wall = time.process_time(), time.perf_counter()
    fn()
    return time.perf_counter() - wall, time.process_time() - cpu


def cpu_time_s(fn: Callable[[], object], repeats: int = 3) -> float:
    """Least process CPU time of `repeats` calls, in seconds, all threads together."""
    return min(_time_once(fn)[1] for _ in range(repeats))


@contextlib.contextmanager
def num_threads(count: int) -> Iterator[None]:
    """Run the block with this many PyTorch threads (numba's kernels follow PyTorch's number), then put it back."""
    if count < 1:
        raise ValueError(f"num_threads {count} is out of range: give at least 1")
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def rss_bytes() -> int:
    """Memory this process holds in RAM now."""
    return psutil.Process().memory_info().rss


def peak_rss_bytes() -> int:
    """Most memory this process ever held in RAM."""
    info = psutil.Process().memory_info()
    if hasattr(info, "peak_wset"):                       # Windows
        return info.peak_wset
    if (status := Path("/proc/self/status")).exists():   # Linux: getrusage would hand down the peak of the parent process
        return int(re.search(r"VmHWM:\s+(\d+) kB", status.read_text())[1]) * 1024
    import resource                                      # not on Windows
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def counted_flops(fn: Callable[[], object]) -> int:
    """FLOPs of the matrix products and attentions that `fn` really runs; a multiply-add counts as 2.

    Counted by torch.utils.flop_counter, which sees PyTorch operators only; so our small-batch kernels are switched
    off meanwhile (they compute the same products). Element-wise work is not counted.
    """
    with _pytorch_products(), FlopCounterMode(display=False, custom_mapping={_CPU_ATTENTION: _attention_flops}) as counter:
        fn()
    return counter.get_total_flops()


_CPU_ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu        # the counter knows the GPU's ones alone


def _attention_flops(q_shape, k_shape, v_shape, *args, **kwargs) -> int:
    """Both products over all pairs, masked ones too, as the counter does for the other attention operators."""
    return 2 * q_shape[0] * q_shape[1] * q_shape[2] * k_shape[2] * (q_shape[3] + v_shape[3])


@contextlib.contextmanager
def _pytorch_products() -> Iterator[None]:
    from . import attention, linear
    patched = ((linear, "_kernel_applies"), (attention, "kernel_applies"))
    before = [getattr(module, name) for module, name in patched]
    for module, name in patched:
        setattr(module, name, lambda *args: False)
    try:
        yield
    finally:
        for (module, name), value in zip(patched, before):
            setattr(module, name, value)


def read_bandwidth(threads: int | None = None, num_bytes: int = 256 * MIB, repeats: int = 7) -> float:
    """Bytes per second of reading a buffer far larger than the caches: the best of `repeats` sums over it.

    The best, since this is the limit to which other work is compared. threads: None leaves PyTorch's number.
    """
    buffer = torch.ones(max(1, num_bytes // 4))
    with num_threads(threads or torch.get_num_threads()):
        buffer.sum()
        best = min(_time_once(buffer.sum)[0] for _ in range(repeats))
    return buffer.numel() * 4 / best


def matmul_flops(threads: int | None = None, size: int = 1024, repeats: int = 7) -> float:
    """FLOP/s of a large fp32 matrix product, the best of `repeats`: the compute side of the roofline here."""
    a, b = torch.ones(size, size), torch.ones(size, size)
    with num_threads(threads or torch.get_num_threads()):
        a @ b
        best = min(_time_once(lambda: a @ b)[0] for _ in range(repeats))
    return 2 * size**3 / best


def bandwidth_share(num_bytes: int, seconds: float, bandwidth: float) -> str:
    """One line for a benchmark: how much of the read bandwidth a step that must read `num_bytes` reached."""
    reached = num_bytes / seconds
    return f"{reached / 1e9:.1f} GB/s of {bandwidth / 1e9:.1f} GB/s read bandwidth ({reached / bandwidth:.0%})"


@functools.lru_cache
def hardware() -> str:
    """What this machine is, in words, without its name: "2 cores, Intel(R) Xeon(R) Processor, 8 GiB, Linux x86_64"."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = f"{psutil.virtual_memory().total / GIB:.0f} GiB"
    words = [f"{cores} cores", _cpu_model(), memory, f"{platform.system()} {platform.machine()}"]
    if torch.cuda.is_available():
        words.append(torch.cuda.get_device_name(0))
    return ", ".join(words)


def _cpu_model() -> str:
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as file:
        for line in file:
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or "unknown CPU"
