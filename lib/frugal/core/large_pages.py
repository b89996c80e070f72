"""Memory of large pages for the weights, where the system has it: decoding then reads them about a sixth faster.

A processor finds the place of each 4 KB page in a table, and its prefetchers stop at the end of a page. Reading 538 MB
of weights for every token goes over 131,000 such pages, or 257 of 2 MB. Linux gives large pages to anonymous memory
that asks for them (madvise), not to a mapped file; so the file is read into such memory, in a third of a second.

Source: Linux admin guide, "Transparent Hugepage Support"; own measurement, `benchmarks/decode.py`.
"""
import mmap
import platform

import psutil


def large_pages(num_bytes: int) -> mmap.mmap | None:
    """Empty writable memory, or None: on other systems, or where less than twice as much is free."""
    if (platform.system() != "Linux" or not hasattr(mmap, "MADV_HUGEPAGE")
            or psutil.virtual_memory().available < 2 * num_bytes):
        return None
    try:
        memory = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        memory.madvise(mmap.MADV_HUGEPAGE)
    except OSError:                                     # no such memory, or a kernel built without large pages
        return None
    return memory
