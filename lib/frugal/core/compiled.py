"""Loops compiled by numba, where it is installed: one decorator, and one number of threads for them and PyTorch."""
import inspect
from collections.abc import Callable

import torch

try:
    import numba
    prange = numba.prange
except ImportError:                       # numba has no build for every platform; PyTorch alone is correct too
    numba, prange = None, range


def compiled(parallel: bool = True, fastmath: bool | set = True) -> Callable:
    """Decorator: the loop as machine code, kept beside the source for the next process. Without numba: as it is.

    Checks that an import hook has put around the function are taken off: compiled code cannot call them. A division
    by zero gives infinity, as in numpy: the check that Python would make keeps a loop from using vector instructions.
    """
    def compile_it(loop: Callable) -> Callable:
        if numba is None:
            return loop
        return numba.njit(parallel=parallel, fastmath=fastmath, error_model="numpy", cache=True)(inspect.unwrap(loop))
    return compile_it


def share_threads() -> int:
    """Gives the compiled loops as many threads as PyTorch has, and says how many that is."""
    wanted = torch.get_num_threads()
    threads = min(wanted, numba.config.NUMBA_NUM_THREADS)
    if numba.get_num_threads() != threads:
        numba.set_num_threads(threads)
    if torch.get_num_threads() != wanted:           # both may use one OpenMP library, whose number numba sets at its start
        torch.set_num_threads(wanted)
    return threads
