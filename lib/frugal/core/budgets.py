"""Budgets: from a slider's fraction to a number, from scores to kept slots, and the audit of a chart.

Rounding, ties and "budget too small" are settled here, once, for every family.
"""
import math
import numbers
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor

from frugal.core.compiled import compiled, numba

CLEAR, NAN, UNCLEAR = 0, 1, 2           # what one pass over the scores found

# Columns that may hold what a run spent, by axis; the first one present in the rows is audited.
SPENT_COLUMNS = {
    "tokens": ("spent_tokens", "held_tok", "kept_tokens", "budget_tok"),
    "bytes": ("spent_bytes", "cache_bytes", "state_bytes", "num_bytes"),
    "flops": ("spent_flops", "num_flops", "flops"),
}


class BudgetTooSmall(ValueError):
    """A method protects more slots than the budget allows."""


def resolve(budget: numbers.Real, total: int) -> int:
    """Turn a budget into a count of `total` things (tokens, layers, bytes ...), once.

    A float is a fraction in (0, 1]: floor(fraction * total), at least 1 (1.0 is everything).
    An int is a count in 1..total. Raises ValueError naming the value and the allowed range.
    """
    if isinstance(total, bool) or not isinstance(total, numbers.Integral) or total < 1:
        raise ValueError(f"total {total!r} is not a count of at least 1")
    allowed = f"give a fraction in (0, 1] or a whole number from 1 to {total}"
    if isinstance(budget, (bool, np.bool_)) or not isinstance(budget, numbers.Real):
        raise ValueError(f"budget {budget!r} is not a number; {allowed}")
    if isinstance(budget, numbers.Integral):
        if not 1 <= budget <= total:
            raise ValueError(f"budget {budget} is out of range; {allowed}")
        return int(budget)
    if not 0 < budget <= 1:                      # also catches NaN, which compares false
        raise ValueError(f"budget {float(budget)} is out of range; {allowed}")
    return max(1, math.floor(budget * total + 1e-9))   # 0.29 * 100 is 28.999999999999996 in floats


def top_slots(score: Shaped[Tensor, "rows slots"], budget: int,
              protect: Bool[Tensor, "rows slots"] | None = None) -> Int[Tensor, "rows {budget}"]:
    """Best `budget` slots per row, ascending. Protected slots survive; ties go to the older (lower) slot.

    Raises BudgetTooSmall when a row protects more slots than the budget; ValueError for a budget outside
    1..slots and for NaN scores on slots that are not protected. Infinite scores are allowed.
    """
    num_slots = score.shape[1]
    if not 1 <= budget <= num_slots:
        raise ValueError(f"budget {budget} is out of range: the cache holds {num_slots} slots, so give 1 to {num_slots}")
    if score.device.type == "cpu" and budget == num_slots - 1:        # what every decoded token asks for
        kept = _all_but_worst(_on_cpu(score), None if protect is None else protect.numpy())
        if kept is not None:
            return torch.from_numpy(kept)
    most = 0 if protect is None else int(protect.sum(dim=1).max())
    if most > budget:
        raise BudgetTooSmall(f"budget {budget} is too small: {most} slots are protected, so give {most} to {num_slots}")
    if budget == num_slots:
        return torch.arange(num_slots, device=score.device).expand(score.shape[0], -1).clone()
    if score.device.type != "cpu":
        return _top_by_sorting(score, budget, protect)
    return torch.from_numpy(_top_by_partition(_on_cpu(score), budget, None if protect is None else protect.numpy()))


def _on_cpu(score: Tensor) -> np.ndarray:
    """The same numbers in a type that numpy sorts fast: half types become fp32, integers fp64."""
    if score.dtype not in (torch.float32, torch.float64):
        score = score.to(torch.float32 if score.is_floating_point() else torch.float64)
    return score.detach().numpy()


def _reject_nan(found: bool) -> None:
    if found:
        raise ValueError("scores hold NaN: a slot without a score cannot be ranked "
                         "(a softmax over a row with nothing to attend to gives NaN; 0/0 in a normalised score does too)")


def _all_but_worst(score: np.ndarray, protect: np.ndarray | None) -> np.ndarray | None:
    """Drop one slot per row: the lowest score, the newest among equals. None when +inf scores make it unclear, or
    when a row has no slot to drop."""
    num_rows, num_slots = score.shape
    if numba is not None and score.flags.c_contiguous:
        slots = np.empty((num_rows, num_slots - 1), np.int64)
        guard = np.zeros((0, 0), bool) if protect is None else protect
        found = _skip_worst(score, guard, slots)
        _reject_nan(found == NAN)
        return slots if found == CLEAR else None
    work = score if protect is None else np.where(protect, np.inf, score)
    newest_first = np.ascontiguousarray(work[:, ::-1])
    worst = num_slots - 1 - newest_first.argmin(axis=1)         # (R,); argmin returns the first, and NaN if any
    lowest = work[np.arange(num_rows), worst]
    _reject_nan(bool(np.isnan(lowest).any()))
    if protect is not None and np.isinf(lowest).any():
        return None
    slots = np.arange(num_slots - 1)
    return slots + (slots >= worst[:, None])


@compiled(parallel=False, fastmath=False)
def _skip_worst(score, protect, slots):
    """The same in one pass: fills `slots` with all but the worst. Says CLEAR, NAN or UNCLEAR."""
    for r in range(score.shape[0]):
        worst, lowest = -1, np.inf
        for s in range(score.shape[1]):
            if protect.size and protect[r, s]:
                continue
            if score[r, s] != score[r, s]:
                return NAN
            if score[r, s] <= lowest:
                worst, lowest = s, score[r, s]
        if lowest == np.inf:
            return UNCLEAR
        for s in range(score.shape[1] - 1):
            slots[r, s] = s + (s >= worst)
    return CLEAR


def _top_by_partition(score: np.ndarray, budget: int, protect: np.ndarray | None) -> np.ndarray:
    """Threshold by partial sort, then a mask, so that the slots come out ascending without a second sort."""
    num_rows, num_slots = score.shape
    work = score if protect is None else np.where(protect, -np.inf, score)
    _reject_nan(bool(np.isnan(work).any()))
    free = np.full(num_rows, budget) if protect is None else budget - protect.sum(axis=1)   # (R,) places left
    ranks = np.unique(num_slots - free[free > 0])
    if ranks.size == 0:
        threshold = np.full((num_rows, 1), np.inf, work.dtype)
    else:                                       # rows may protect different counts: one rank for each
        ordered = np.partition(work, ranks, axis=1)
        threshold = ordered[np.arange(num_rows), np.minimum(num_slots - free, num_slots - 1)][:, None]
    keep = work > threshold                                      # (R, S)
    equal = work == threshold
    if protect is not None:
        equal &= ~protect
        keep[free == 0] = False
    missing = free - keep.sum(axis=1)
    if (equal.sum(axis=1) != missing).any():                     # ties at the threshold: the older slots win
        equal &= equal.cumsum(axis=1) <= missing[:, None]
    keep |= equal
    if protect is not None:
        keep |= protect
    return np.flatnonzero(keep).reshape(num_rows, budget) - np.arange(num_rows)[:, None] * num_slots


def _top_by_sorting(score: Tensor, budget: int, protect: Tensor | None) -> Tensor:
    """The same choice by two stable sorts; used on accelerators, and the oracle of the fast path."""
    if protect is not None:
        score = score.masked_fill(protect, 0)
    _reject_nan(bool(torch.isnan(score).any()))
    order = score.sort(dim=1, descending=True, stable=True).indices
    if protect is not None:                                      # protected first, the rest in order of score
        first = protect.gather(1, order).to(torch.uint8).sort(dim=1, descending=True, stable=True).indices
        order = order.gather(1, first)
    return order[:, :budget].sort(dim=1).values


@dataclass(frozen=True)
class Audit:
    """What the methods of one chart spent at the same budget.

    axis: what was asked to be equal; column: where it was read; worst: largest (max / min - 1) at one budget;
    unequal: (budget, method, spent) of the offenders; equal_axes: the axes that are equal within the tolerance.
    """
    axis: str
    column: str
    tolerance: float
    worst: float
    unequal: tuple[tuple[object, str, float], ...]
    equal_axes: tuple[str, ...]

    @property
    def ok(self) -> bool:
        return self.worst <= self.tolerance

    @property
    def sentence(self) -> str:
        """One line for the chart's caption."""
        if self.ok:
            return f"At each budget all methods spend the same {self.axis}, within {self.tolerance:.0%}."
        equal = " and ".join(self.equal_axes) if self.equal_axes else "nothing"
        who = ", ".join(sorted({method for _, method, _ in self.unequal}))
        return f"Not equal in {self.axis} (up to {self.worst:.0%} apart: {who}); equal here: {equal}."


def audit(rows: pd.DataFrame, axis: str, tol: float = 0.01, reference: tuple[str, ...] = ("full",)) -> Audit:
    """Check that the methods in one chart spend the same at each budget, within `tol`.

    rows: tidy rows with `method`, `budget` and what was spent. axis: "tokens", "bytes", "flops" or a column name.
    reference: methods drawn as a line that ignores the budget, so not compared. Rows with an error are left out.
    Raises ValueError when the rows have no column for the axis.
    """
    column = _spent_column(rows, axis)
    if column is None:
        raise ValueError(f"no column tells the {axis} spent; have {sorted(rows.columns)}, "
                         f"expected one of {SPENT_COLUMNS.get(axis, (axis,))}")
    rows = rows[~rows["method"].isin(reference)]
    worst, unequal = _spread(rows, column, tol)
    others = {name: _spent_column(rows, name) for name in SPENT_COLUMNS}
    equal_axes = tuple(name for name, other in others.items() if other and _spread(rows, other, tol)[0] <= tol)
    return Audit(axis, column, tol, worst, unequal, equal_axes)


def _spent_column(rows: pd.DataFrame, axis: str) -> str | None:
    return next((name for name in SPENT_COLUMNS.get(axis, (axis,)) if name in rows.columns), None)


def _spread(rows: pd.DataFrame, column: str, tol: float) -> tuple[float, tuple[tuple[object, str, float], ...]]:
    """(largest max / min - 1 at one budget, the methods that stand more than `tol` above the cheapest)."""
    spent = rows.dropna(subset=[column]).groupby(["budget", "method"], sort=False)[column].mean().astype(float)
    worst, unequal = 0.0, []
    for budget, group in spent.groupby(level="budget", sort=False):
        low = group.min()
        apart = (group - low) / low if low > 0 else (group > 0) * math.inf if (group > 0).any() else group * 0
        worst = max(worst, float(apart.max()))
        unequal += [(budget, method, float(group[budget, method]))
                    for (_, method), gap in apart.items() if gap > tol]
    return worst, tuple(unequal)
