"""Gather, compute, scatter: modules that run on the tokens that chose them, and on no others.

Each module gets its own tokens as one dense batch, so an expert that nobody chose costs nothing, weights included.

Shapes: N tokens, h width.
"""
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

SKIP = -1


def apply_chosen(x: Float[Tensor, "n h"], choice: Int[Tensor, "n"],
                 modules: Sequence[Callable[[Tensor], Tensor]]) -> Float[Tensor, "n h"]:
    """Row i is `modules[choice[i]](x[i])`, and zeros where choice is SKIP (-1): add it to the residual stream.

    Each module is called at most once, with its rows in order, and not at all when nobody chose it. ValueError for a choice
    outside -1..len(modules) - 1.
    """
    counts = _counts(choice, len(modules))
    for i, count in enumerate(counts):
        if count == len(x):                                             # everybody chose this one: nothing to gather
            return modules[i](x)
    out = torch.zeros_like(x)
    for i, count in enumerate(counts):
        if count:
            rows = (choice == i).nonzero()[:, 0]
            out = out.index_copy(0, rows, modules[i](x.index_select(0, rows)).to(out.dtype))  # bf16 modules under autocast
    return out


def _counts(choice: Tensor, num_modules: int) -> list[int]:
    if choice.numel() and (int(choice.min()) < SKIP or int(choice.max()) >= num_modules):
        raise ValueError(f"choices {int(choice.min())}..{int(choice.max())} name no module: allowed are 0..{num_modules - 1}, "
                         f"or {SKIP} to skip")
    return torch.bincount(choice + 1, minlength=num_modules + 1)[1:].tolist()
