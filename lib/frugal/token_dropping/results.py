"""Recorded rows of the scene sweep, scene by scene: shares with intervals, and paired differences of two methods."""
from collections.abc import Mapping

import numpy as np
import pandas as pd

from frugal.core.bootstrap import Interval, interval

SCORES = {
    "existence": "is there a fox ?", "place": "what is at top-left ?", "count": "how many fox ?",
    "caption": "names in the caption", "small": "small objects (up to 18 px)", "found": "objects with a kept tile token"
}


def by_scene(rows: pd.DataFrame, score: str) -> tuple[np.ndarray, np.ndarray]:
    """(right, asked) of every scene, seeds in order. rows: those of one method at one budget."""
    rows = rows.sort_values("seed")
    return tuple(
        np.array([int(digit) for text in rows[f"{score}_{what}"] for digit in text]) for what in ("right", "asked"))


def share(rows: pd.DataFrame, score: str) -> Interval:
    """Share of right answers, with its interval over scenes."""
    right, asked = by_scene(rows, score)
    return interval({"right": right, "asked": asked}, _share)


def difference(rows: pd.DataFrame, other: pd.DataFrame, score: str) -> Interval:
    """Share of `rows` less that of `other` on the same scenes, with its paired interval.

    Raises ValueError when the two were not asked the same.
    """
    (right, asked), (right_b, asked_b) = by_scene(rows, score), by_scene(other, score)
    if not np.array_equal(asked, asked_b):
        raise ValueError(f"{score}: the two methods were not asked the same questions; record both on the same seeds")
    return interval({"right": right - right_b, "asked": asked}, _share)


def _share(sums: Mapping[str, np.ndarray]) -> np.ndarray:
    return sums["right"] / sums["asked"]


def at(rows: pd.DataFrame, method: str, budget: float) -> pd.DataFrame:
    """The rows of a method at a budget; at 1 those of the full model, which every method is there."""
    name = "full" if budget == 1 else method
    return rows[(rows.method == name) & (rows.budget == budget) & (rows.error == "")]


def averaged(rows: pd.DataFrame) -> pd.DataFrame:
    """One row a score, method and budget: share with interval, tokens held, bytes, FLOPs; or why there are none."""
    table = []
    budgets = sorted(rows.budget.unique())
    for method in rows.method.unique():
        for budget in budgets if method != "full" else [1.0]:
            ran = at(rows, method, budget)
            failed = rows[(rows.method == method) & (rows.budget == budget) & (rows.error != "")]
            for score in SCORES:
                row = {"score": score, "method": method, "budget": budget, "error": ""}
                if len(ran) and not by_scene(ran, score)[1].any():
                    continue                              # no token is kept as it was, so none can be looked for
                if len(ran):
                    found = share(ran, score)
                    row |= {
                        "value": found.value, "low": found.low, "high": found.high,
                        "scenes": len(by_scene(ran, score)[0]),
                        **{name: float(ran[name].mean()) for name in ("held_tok", "cache_bytes", "spent_flops")}
                    }
                else:
                    row["error"] = failed.error.iloc[0] if len(failed) else "not recorded"
                table.append(row)
    return pd.DataFrame(table)


def board(rows: pd.DataFrame, method: str = "hired") -> pd.DataFrame:
    """`method` less every other one, paired, for each score and budget below 1."""
    table = []
    for other in [name for name in rows.method.unique() if name != method]:
        for budget in sorted(b for b in rows.budget.unique() if b < 1):
            ours, theirs = at(rows, method, budget), at(rows, other, 1.0 if other == "full" else budget)
            for score in SCORES:
                if len(ours) and len(theirs) and by_scene(theirs, score)[1].any():
                    found = difference(ours, theirs, score)
                    table.append({"against": other, "score": score, "budget": budget, "points": 100 * found.value,
                                  "low": 100 * found.low, "high": 100 * found.high})
    return pd.DataFrame(table)
