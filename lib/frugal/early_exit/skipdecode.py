"""SkipDecode: one depth for each position, never rising, and the layers that are saved lie below the top.

Every sequence of a batch runs the same layers at the same position, so no one waits; depth never rises along the text,
so a later token finds the keys of every layer that it runs; and the top layers always run, so that late tokens attend to
fully processed states of early ones.

Source: arXiv 2307.02628 (SkipDecode), section 3; the linear schedule between the most and the fewest layers and the
warm-up layers are section 3.2's as later papers tell them (the paper's own constants were not to be had).
Differs: the prompt runs at the first depth of the schedule (what the paper does with it is not verified); the model is not
fine-tuned for a data set: either it was trained for skipping (mini-LM), or an affine map stands in the jump (SmolLM2).
"""
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from frugal.core.budgets import resolve
from frugal.core.depth import Affine
from frugal.core.depth_decode import PlannedDepth
from frugal.core.papers import Paper, paper
from frugal.early_exit.bridges import WARM_UP, load_bridges

SMOLLM2_SIZE = 30, 576                  # layers and width of the model whose bridges are stored


def top_layers(depth: int, num_layers: int, warm_up: int = 1) -> list[int]:
    """The layers that a position of this depth runs: the first `warm_up`, then the top `depth - warm_up`."""
    return [*range(warm_up), *range(num_layers - (depth - warm_up), num_layers)]


def checked_depths(depths: Sequence[int], num_layers: int, warm_up: int = 1) -> tuple[int, ...]:
    """The depths, one a position. ValueError where one is outside warm_up + 1 .. num_layers or where they rise."""
    depths = tuple(int(d) for d in depths)
    if not depths:
        raise ValueError("the schedule is empty: give the depth of at least one position")
    for j, depth in enumerate(depths):
        if not warm_up < depth <= num_layers:
            raise ValueError(f"depth {depth} at position {j} is out of range: give {warm_up + 1} to {num_layers} layers")
        if j and depth > depths[j - 1]:
            raise ValueError(f"depth rises from {depths[j - 1]} to {depth} at position {j}: the positions before it have no keys "
                             "in the new layers. Give depths that never rise")
    return depths


@dataclass(frozen=True)
class SkipSchedule:
    """The linear schedule for a target speed-up: depth falls from n_max to n_min while `num_steps` tokens are generated.

    num_layers: L of the model. speedup: s, so that the mean depth is L / s. n_min: fewest layers; n_max follows from the
    mean, and where it would pass L it is L and the fewest layers rise instead. num_steps: J, the longest answer in
    tokens; later ones stay at the fewest layers. warm_up: bottom layers that always run.
    depths: the depths that a model can run, if not all (a bridge for each jump): the nearest of them is taken.
    """
    num_layers: int
    speedup: float | int
    n_min: int = 2
    num_steps: int = 64
    warm_up: int = 1
    depths: tuple[int, ...] | None = None

    def __post_init__(self):
        if not 0 <= self.warm_up < self.num_layers:
            raise ValueError(f"warm_up {self.warm_up} is out of range: give 0 to {self.num_layers - 1} layers")
        if not self.warm_up < self.n_min <= self.num_layers:
            raise ValueError(f"n_min {self.n_min} is out of range: give {self.warm_up + 1} to {self.num_layers} layers")
        if not 1 <= self.speedup <= self.num_layers / self.n_min:
            raise ValueError(f"speed-up {self.speedup} is out of range: with {self.num_layers} layers and at least {self.n_min} of "
                             f"them run, give 1 to {self.num_layers / self.n_min:.3g}")
        if self.num_steps < 2:
            raise ValueError(f"num_steps {self.num_steps} is out of range: give at least 2, a line has two ends")
        if self.depths is not None:
            checked_depths(sorted(self.depths, reverse=True), self.num_layers, self.warm_up)

    @property
    def ends(self) -> tuple[float, float]:
        """(n_max, n_min) of the line, before rounding."""
        mean = self.num_layers / self.speedup
        most = min(float(self.num_layers), 2 * mean - self.n_min)
        return most, 2 * mean - most

    def depth(self, index: int) -> int:
        """Layers run by generated token `index` (0-based; -1 is the prompt, which runs as deep as the first)."""
        high, low = self.ends
        place = min(max(index, 0), self.num_steps - 1) / (self.num_steps - 1)
        wanted = high - (high - low) * place
        if self.depths is not None:
            return min(sorted(self.depths, reverse=True), key=lambda d: abs(d - wanted))
        return math.floor(wanted + 0.5)

    def layers(self, index: int) -> list[int]:
        """The layers of that token, ascending: warm-up, then the top."""
        return top_layers(self.depth(index), self.num_layers, self.warm_up)

    @property
    def mean_depth(self) -> float:
        """Mean of the depths really run, over the `num_steps` positions."""
        return sum(self.depth(j) for j in range(self.num_steps)) / self.num_steps


@dataclass(frozen=True)
class DepthTable:
    """A schedule written out: the depth of each generated token; the last one goes on for later tokens."""
    num_layers: int
    depths: tuple[int, ...]
    warm_up: int = 1

    def __post_init__(self):
        checked_depths(self.depths, self.num_layers, self.warm_up)

    def depth(self, index: int) -> int:
        """Layers run by generated token `index`; -1 is the prompt."""
        return self.depths[min(max(index, 0), len(self.depths) - 1)]


@dataclass(frozen=True)
class SkipDecode(PlannedDepth):
    """Runs a schedule under `frugal.core.depth_decode.decode`: real batches, one cache, skipped layers not executed.

    prompt_depth: layers of the prompt, None for the schedule's first depth. bridges: entry layer -> affine map for the
    state that jumps there.
    """
    schedule: SkipSchedule | DepthTable
    prompt_depth: int | None = None
    bridges: Mapping[int, Affine] = field(default_factory=dict, compare=False)
    name: ClassVar[str] = "skipdecode"
    kind: ClassVar[str] = "depth"
    paper: ClassVar[Paper] = paper("skipdecode").at("section 3")
    summary: ClassVar[str] = "one depth a position for the whole batch, never rising; the middle is skipped"

    def __post_init__(self):
        first, last = self.schedule.depth(0), self.schedule.num_layers
        if self.prompt_depth is not None and not first <= self.prompt_depth <= last:
            raise ValueError(f"prompt_depth {self.prompt_depth} is out of range: give {first} to {last}. A prompt that runs fewer "
                             "layers than the first generated token leaves it without keys")

    @classmethod
    def for_budget(cls, budget, lm, lens=None, num_steps: int = 64) -> "SkipDecode":
        """budget: the mean share of the layers that run (0.5: a target speed-up of 2), or a number of them.

        SmolLM2 gets its entry bridges and a prompt at full depth; another model is taken to be trained for skipping.
        """
        num_layers = lm.config.num_layers
        if (num_layers, lm.config.hidden_size) != SMOLLM2_SIZE:
            return cls(schedule_for(budget, num_layers, num_steps=num_steps))
        bridges = load_bridges()
        depths = (num_layers, *sorted((num_layers - e + WARM_UP for e in bridges), reverse=True))
        return cls(schedule_for(budget, num_layers, depths, num_steps), num_layers, bridges)

    def layers(self, index: int, num_layers: int) -> list[int]:
        if self.schedule.num_layers != num_layers:
            raise ValueError(f"the schedule is for {self.schedule.num_layers} layers, the model has {num_layers}")
        depth = self.prompt_depth if index < 0 and self.prompt_depth is not None else self.schedule.depth(index)
        return top_layers(depth, num_layers, self.schedule.warm_up)

    def bridge(self, entry: int) -> Affine | None:
        return self.bridges.get(entry)


def schedule_for(budget, num_layers: int, depths: tuple[int, ...] | None = None, num_steps: int = 64) -> SkipSchedule:
    """The linear schedule whose mean depth is a share of the layers (float) or a number of them (int), but at least the
    fewest that can run. ValueError for a budget outside (0, 1] or 1 .. num_layers."""
    count = resolve(budget, num_layers)
    mean = count if isinstance(budget, int) else budget * num_layers
    fewest = min(depths) if depths else WARM_UP + 1
    return SkipSchedule(num_layers, num_layers / max(mean, fewest), fewest, num_steps, WARM_UP, depths)
