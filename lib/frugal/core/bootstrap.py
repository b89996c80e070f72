"""Bootstrap intervals over units that are measured together (scenes, prompts): resample units, not answers.

Whatever is reported is a statistic of sums over units, such as "false names / names said". A draw gives every unit
a weight, the same in every column, so that the difference of two methods on the same units is a paired one.

Source: Efron, "Bootstrap methods: another look at the jackknife" (1979); percentile intervals.
"""
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

Sums = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Interval:
    """A statistic of all units, with the ends of its interval."""
    value: float
    low: float
    high: float

    def excludes(self, number: int | float) -> bool:
        """Whether the interval lies wholly on one side of `number`."""
        return self.low > number or self.high < number

    def __str__(self) -> str:
        return f"{self.value:.3g} [{self.low:.3g}, {self.high:.3g}]"


def interval(columns: Mapping[str, object], statistic: Callable[[Sums], np.ndarray | float], *, draws: int = 2000,
             seed: int = 0, level: float = 0.95) -> Interval:
    """The statistic of the columns' sums, and its percentile interval over resampled units.

    columns: name -> one number a unit, all of the same length. statistic: takes name -> sums (draws,) and works on
    arrays. Draws where it is not finite (no name was said at all) are left out.

    >>> said, false = np.array([4, 3, 5, 4]), np.array([1, 0, 1, 0])
    >>> interval({"said": said, "false": false}, lambda s: s["false"] / s["said"]).value
    0.125

    Raises ValueError for columns of different lengths, none at all, or a level outside (0, 1).
    """
    data = {name: np.asarray(column, float) for name, column in columns.items()}
    sizes = {len(column) for column in data.values()}
    if len(sizes) != 1 or 0 in sizes:
        raise ValueError(f"columns have lengths {sorted(sizes)}: give one number a unit in each, for at least one unit")
    if not 0 < level < 1:
        raise ValueError(f"level must be in (0, 1), got {level}")
    count = sizes.pop()
    weights = _weights(count, draws, seed)
    with np.errstate(divide="ignore", invalid="ignore"):
        value = float(np.asarray(statistic({name: column.sum()[None] for name, column in data.items()}))[0])
        drawn = np.asarray(statistic({name: weights @ column for name, column in data.items()}), float)
    drawn = drawn[np.isfinite(drawn)]
    if not len(drawn):
        return Interval(value, float("nan"), float("nan"))
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, float(low), float(high))


@lru_cache(maxsize=4)
def _weights(count: int, draws: int, seed: int) -> np.ndarray:
    """How often each unit is drawn, (draws, count); kept, since a chart asks for hundreds of intervals of the same units."""
    return np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=draws).astype(float)
