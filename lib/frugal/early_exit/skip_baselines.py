"""What SkipDecode is compared with at the same mean depth: leaving early on the same schedule, skipping a fixed middle.

Source: arXiv 2307.02628 (SkipDecode), section 4, compares with early termination; the fixed middle is the plainest way of
skipping and no paper's own. Further ones: `fixed_exit.FixedExit`, `unified_skipping.UnifiedSkipping`.
Differs: both share the prompt's rule and the schedule with SkipDecode, so that only the choice of layers differs.
"""
from dataclasses import dataclass, field
from typing import ClassVar

from frugal.core.budgets import resolve
from frugal.core.depth_decode import PlannedDepth
from frugal.core.papers import Paper
from frugal.early_exit.lenses import LogitLens
from frugal.early_exit.skipdecode import SkipDecode, SkipSchedule, schedule_for


@dataclass(frozen=True)
class EarlyTermination(PlannedDepth):
    """The same depths as SkipDecode, with the top left out instead of the middle: layers 0 .. depth - 1, then a lens.

    Depths never rise, so no key is missing; what is lost is the top, and late tokens see only half-done states of early ones.
    """
    schedule: SkipSchedule
    lens: object = field(default_factory=LogitLens)
    name: ClassVar[str] = "early_termination"
    kind: ClassVar[str] = "depth"
    paper: ClassVar[Paper] = SkipDecode.paper.at("section 4, the baseline")
    summary: ClassVar[str] = "SkipDecode's schedule, leaving at the top instead of skipping the middle"

    @classmethod
    def for_budget(cls, budget, lm, lens=None) -> "EarlyTermination":
        """budget: the mean share of the layers that run, or a number of them."""
        return cls(schedule_for(budget, lm.config.num_layers), lens or LogitLens())

    def layers(self, index: int, num_layers: int) -> list[int]:
        if self.schedule.num_layers != num_layers:
            raise ValueError(f"the schedule is for {self.schedule.num_layers} layers, the model has {num_layers}")
        return list(range(self.schedule.depth(index)))

    def read(self, stack, x, last):
        return self.lens.logits(stack, x, last + 1)


@dataclass(frozen=True)
class MiddleSkip(PlannedDepth):
    """The same layers for every position: the first half of `num_run` at the bottom, the rest at the top.

    num_run: layers run, at least 2.
    """
    num_run: int
    name: ClassVar[str] = "middle_skip"
    kind: ClassVar[str] = "depth"
    paper: ClassVar[Paper] = SkipDecode.paper.at("section 4; our baseline")
    summary: ClassVar[str] = "one block in the middle is left out, for every token"

    def __post_init__(self):
        if self.num_run < 2:
            raise ValueError(f"num_run {self.num_run} is out of range: give at least 2, for the first and the last layer")

    @classmethod
    def for_budget(cls, budget, lm, lens=None) -> "MiddleSkip":
        """budget: share of the layers, or a number of them; at least two run."""
        return cls(max(2, resolve(budget, lm.config.num_layers)))

    def layers(self, index: int, num_layers: int) -> list[int]:
        if self.num_run > num_layers:
            raise ValueError(f"num_run {self.num_run} is outside the model: give 2 to {num_layers}")
        front = (self.num_run + 1) // 2
        return [*range(front), *range(num_layers - (self.num_run - front), num_layers)]
