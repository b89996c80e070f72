"""Weights in memory of large pages, where the system has them: decoding then reads them about a sixth faster.

A processor finds the place of each 4 KB page in a table, and its prefetchers stop at the end of a page. Reading 538 MB
of weights for every token goes over 131,000 such pages, or 257 of 2 MB. Linux gives large pages to anonymous memory
that asks for them (madvise), not to a mapped file; so the weights are copied once, in a third of a second.

Source: Linux admin guide, "Transparent Hugepage Support"; own measurement, `benchmarks/decode.py`.
"""
import mmap
import platform

import psutil
import torch
from torch import Tensor

ALIGN = 4096            # bytes between the starts of two weights


def in_large_pages(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights copied into large pages, or as they are: on other systems, on a device, or where memory is short."""
    total = sum(-(-w.nbytes // ALIGN) * ALIGN for w in weights.values())
    if (platform.system() != "Linux" or not hasattr(mmap, "MADV_HUGEPAGE") or any(w.device.type != "cpu" for w in weights.values())
            or psutil.virtual_memory().available < 2 * total):
        return weights
    try:
        region = mmap.mmap(-1, total, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        region.madvise(mmap.MADV_HUGEPAGE)
    except OSError:                                     # no such memory, or a kernel built without large pages
        return weights
    moved, offset = {}, 0
    for name, w in weights.items():
        moved[name] = torch.frombuffer(region, dtype=w.dtype, count=w.numel(), offset=offset).view(w.shape).copy_(w)
        offset += -(-w.nbytes // ALIGN) * ALIGN
    return moved
