"""Fixed exit: every token runs the first layers and leaves, through a lens.

No key is ever missing, because nobody uses the layers above. What is lost is what those layers would have said.

Source: the baseline of arXiv 2207.07061 (CALM) and arXiv 2307.02628 (SkipDecode); no method of its own.
"""
from dataclasses import dataclass, field
from typing import ClassVar

from frugal.core.budgets import resolve
from frugal.core.depth import checked_exit
from frugal.core.depth_decode import FullDepth, PlannedDepth
from frugal.core.papers import Paper
from frugal.early_exit.lenses import LogitLens

CALM = Paper.other(title="CALM: Confident Adaptive Language Modeling", arxiv="2207.07061", authors="Schuster, Tal")


class Full(FullDepth):
    """Every layer for every token: the model as it is, and what every other method is compared with."""
    name: ClassVar[str] = "full"
    kind: ClassVar[str] = "depth"
    paper: ClassVar[Paper] = CALM
    summary: ClassVar[str] = "all layers for every token; the baseline"

    @classmethod
    def for_budget(cls, budget, lm, lens=None) -> "Full":
        """The same for every budget."""
        return cls()


@dataclass(frozen=True)
class FixedExit(PlannedDepth):
    """Layers 0 .. exit_layer - 1 for every position, prompt included, then a lens.

    exit_layer: layers run. lens: turns the state into logits (see `lenses`).
    """
    exit_layer: int
    lens: object = field(default_factory=LogitLens)
    name: ClassVar[str] = "fixed_exit"
    kind: ClassVar[str] = "depth"
    paper: ClassVar[Paper] = CALM
    summary: ClassVar[str] = "the first layers for every token, then a lens"

    def __post_init__(self):
        checked_exit(self.exit_layer, 10**6)

    @classmethod
    def for_budget(cls, budget, lm, lens=None) -> "FixedExit":
        """budget: share of the layers, or a number of them. With a fitted lens: the nearest of its exits."""
        wanted = resolve(budget, lm.config.num_layers)
        maps = getattr(lens, "maps", None)
        if maps is not None:
            wanted = min([*maps, lm.config.num_layers], key=lambda e: (abs(e - wanted), e))
        return cls(wanted, lens or LogitLens())

    def layers(self, index: int, num_layers: int) -> list[int]:
        return list(range(checked_exit(self.exit_layer, num_layers)))

    def read(self, stack, x, last):
        return self.lens.logits(stack, x, last + 1)
