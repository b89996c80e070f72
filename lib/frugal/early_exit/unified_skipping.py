"""Unified layer skipping: the same layers for every token, the first, the last, and an even spacing between.

Source: arXiv 2404.06954, section 3 (one target speed-up decides which layers run, whatever the token).
Differs: no fine-tuning; the paper trains the model with the skipped layers left out.
"""
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from frugal.core.budgets import resolve
from frugal.core.depth_decode import PlannedDepth
from frugal.core.papers import Paper


@dataclass(frozen=True)
class UnifiedSkipping(PlannedDepth):
    """`num_run` layers, the same for every position, so that no key is ever missing.

    num_run: layers run, at least 2 (the first and the last).
    """
    num_run: int
    name: ClassVar[str] = "unified_skipping"
    kind: ClassVar[str] = "depth"
    paper: ClassVar[Paper] = Paper.other(
        title="Unified Layer Skipping: Accelerating Inference in Large Language Models", arxiv="2404.06954",
        where="section 3", authors="Liu, Yijin")
    summary: ClassVar[str] = "the first, the last and evenly spaced layers, for every token"

    def __post_init__(self):
        if self.num_run < 2:
            raise ValueError(f"num_run {self.num_run} is out of range: give at least 2, for the first and the last layer")

    @classmethod
    def for_budget(cls, budget, lm, lens=None) -> "UnifiedSkipping":
        """budget: share of the layers, or a number of them; at least the first and the last run."""
        return cls(max(2, resolve(budget, lm.config.num_layers)))

    def layers(self, index: int, num_layers: int) -> list[int]:
        if self.num_run > num_layers:
            raise ValueError(f"num_run {self.num_run} is outside the model: give 2 to {num_layers}")
        return np.linspace(0, num_layers - 1, self.num_run).round().astype(int).tolist()
