"""Frugal: an interactive explainer of efficient generative inference.

    from frugal import load_lm, generate, Sweep, claims, papers

`load_lm(name or path)` gives a language model, `generate(lm, prompts, policy=..., budget=...)` runs it under a
technique, `Sweep(family, methods, budgets, workload, seeds).run()` gives a table, `claims()` the ledger of what the
papers say and what was found, `papers()` the reading list. Each name is imported when it is first used, so
`import frugal` costs nothing and does not load torch.
"""
import os
from importlib import import_module

# OpenMP threads wait for each other by spinning, for milliseconds. On a laptop with a browser open this makes a decoding
# step twenty times as slow, since the spinning thread keeps the working one off its core; about 20 microseconds of
# spinning cost nothing on a quiet machine. Read when torch and numba start, so it must be set before; yours wins.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

__version__ = "0.1.0"
__all__ = ["Sweep", "claims", "generate", "load_lm", "papers"]

_HOME = {
    "load_lm": ("frugal.core.checkpoints", "load_lm"),
    "generate": ("frugal.core.generation", "generate"),
    "Sweep": ("frugal.core.sweep", "Sweep"),
    "claims": ("frugal.core.claims", "ledger"),
    "papers": ("frugal.core.papers", "papers"),
}


def __getattr__(name: str):
    """The facade: look the name up in its module, once."""
    if name not in _HOME:
        raise AttributeError(f"module 'frugal' has no attribute {name!r}")
    module, attribute = _HOME[name]
    value = getattr(import_module(module), attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
