"""Exercise on ResGen: hiding the deep end of every place."""

from collections import Counter

import torch
from torch import Tensor

from frugal.explore.exercises import Exercise, wrong
from frugal.visual_tokenizers.resgen import depth_mask as _library

__all__ = ["EXERCISES", "depth_mask"]

CASES = [(0, 3, 4), (12, 3, 4), (5, 3, 4), (1, 16, 8), (70, 16, 8), (7, 1, 8), (3, 5, 1)]
TRIALS = 1500


def _check(answer) -> None:
    for n, length, depth in CASES:
        case = f"depth_mask({n}, {length}, {depth}, <generator>)"
        mask = answer(n, length, depth, torch.Generator().manual_seed(n))
        shape = tuple(getattr(mask, "shape", ()))
        if shape != (length, depth):
            wrong(f"got shape {shape}, expected ({length}, {depth})", "one row a place, one column a level", case)
        mask = mask.bool()
        if int((~mask).sum()) != n:
            swapped = "; is True the visible slots, and n the hidden ones?" if int(mask.sum()) == n else ""
            wrong(
                f"{int((~mask).sum())} slots hidden, expected {n}", f"exactly n slots in all are hidden{swapped}", case
            )
        _check_suffix(mask, case)
    _check_law(answer)


def _check_suffix(mask: Tensor, case: str) -> None:
    rows = mask.tolist()
    for place, row in enumerate(rows):
        if row != sorted(row, reverse=True):
            levels = [j for j, seen in enumerate(row) if not seen]
            if all(other == sorted(other) for other in rows):
                wrong(f"place {place} hides levels {levels}", "the deepest levels are hidden, not the shallowest", case)
            wrong(
                f"place {place} hides levels {levels}",
                "count the drawn slots of a place, then hide so many from the deep end: "
                "a sum of scattered levels cannot be quantized back",
                case,
            )


def _check_law(answer) -> None:
    """Two places of two levels, two hidden: (1, 1) in 4 of the 6 draws; and every call draws anew."""
    generator, seen = torch.Generator().manual_seed(0), Counter()
    for _ in range(TRIALS):
        seen[tuple((~answer(2, 2, 2, generator).bool()).sum(1).tolist())] += 1
    case, share = "depth_mask(2, 2, 2, <generator>), 1,500 times", seen[1, 1] / TRIALS
    if len(seen) == 1:
        wrong(
            f"always {next(iter(seen))} hidden a place",
            "is it drawn at random, from the generator that is given?",
            case,
        )
    if seen[1, 1] == 0:
        wrong(f"hidden counts {dict(seen)}", "draw slots, not whole places: n slots may fall on any places", case)
    if abs(share - 2 / 3) > 0.06:
        wrong(
            f"one slot in each place in {share:.2f} of the draws, expected 0.67",
            "draw n of the L * D slots without replacement: a place that has lost a slot is less likely to lose the next",
            case,
        )


def _reference(n: int, length: int, depth: int, generator: torch.Generator) -> Tensor:
    return _library(n, length, depth, generator)


def _scattered(n: int, length: int, depth: int, generator: torch.Generator) -> Tensor:
    """Hides the drawn slots themselves."""
    mask = torch.ones(length * depth, dtype=torch.bool)
    mask[torch.randperm(length * depth, generator=generator)[:n]] = False
    return mask.view(length, depth)


def _shallow(n: int, length: int, depth: int, generator: torch.Generator) -> Tensor:
    """Hides from the shallow end."""
    return _library(n, length, depth, generator).flip(1)


def _with_replacement(n: int, length: int, depth: int, generator: torch.Generator) -> Tensor:
    """Draws places one by one, alike likely whatever they have lost."""
    hidden = [0] * length
    for _ in range(n):
        free = [i for i in range(length) if hidden[i] < depth]
        hidden[free[int(torch.randint(len(free), (), generator=generator))]] += 1
    return torch.arange(depth) < depth - torch.tensor(hidden)[:, None]


def _columns(n: int, length: int, depth: int, generator: torch.Generator) -> Tensor:
    """Empties whole places one after the other."""
    order = torch.randperm(length, generator=generator)
    hidden = torch.zeros(length, dtype=torch.long)
    for rank, place in enumerate(order.tolist()):
        hidden[place] = min(depth, max(0, n - rank * depth))
    return torch.arange(depth) < depth - hidden[:, None]


def _inverted(n: int, length: int, depth: int, generator: torch.Generator) -> Tensor:
    """True = hidden."""
    return ~_library(n, length, depth, generator)


def _fixed(n: int, length: int, depth: int, generator: torch.Generator) -> Tensor:
    """A seed of its own."""
    return _library(n, length, depth, torch.Generator().manual_seed(0))


depth_mask = Exercise(
    key="depth_mask",
    title="Hide the deep end",
    prompt="A picture has `length` places with `depth` residual codes each. Draw `n` of the `length * depth` slots evenly, without "
    "replacement, from `generator`; let k_i be how many fell on place i. Return a boolean mask (length, depth), true = visible, "
    "in which place i hides its k_i deepest levels.",
    stub="def my_depth_mask(n: int, length: int, depth: int, generator: torch.Generator) -> torch.Tensor:\n"
    "    raise NotImplementedError  # yours",
    test=_check,
    hints=(
        "torch.randperm(length * depth, generator=generator)[:n] draws the slots; slot // depth is its place.",
        "Count with torch.bincount(..., minlength=length); level j of place i is visible where j < depth - k_i.",
    ),
    difficulty=1,
    minutes=10,
    reference=_reference,
    wrong=[
        (_scattered, "cannot be quantized back"),
        (_shallow, "not the shallowest"),
        (_with_replacement, "without replacement"),
        (_columns, "not whole places"),
        (_inverted, "is True the visible slots"),
        (_fixed, "drawn at random"),
    ],
)

EXERCISES = [depth_mask]
