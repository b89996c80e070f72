"""Keyformer: score slots by a noisy, flattened softmax, because the survivors' softmax misleads.

When tokens are evicted, attention renormalises over what is left and an accumulated score is bent towards what
happened to survive. Keyformer adds Gumbel noise to the logits and raises the temperature as more tokens go. The
noise touches the score alone, never the attention output.

Source: arXiv 2403.09054, sections 3.2 to 3.4, and the authors' release.
Differs: slots are really gathered after the prompt and after every token (the release masks them, or gathers every
8th token); the prompt's score is per sequence (the release sums it over the batch); the score is averaged over the
query heads of a group (grouped-query attention).
"""
import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from frugal.core.budgets import top_slots
from frugal.core.eviction import LayerView
from frugal.core.papers import Paper, paper
from frugal.kv_eviction.baselines import Policy

NOISES = ("gumbel", "gaussian", "none")


def gumbel_score(logits: Float[Tensor, "*b s"], tau: float, generator: torch.Generator | None,
                 noise: str = "gumbel") -> Float[Tensor, "*b s"]:
    """softmax((logits + noise) / tau) along the last axis, the noise fresh for every logit.

    "gaussian" has Gumbel's variance, pi^2 / 6. Logits of -inf stay at probability 0.
    Source: arXiv 2403.09054, equations 5 to 8.
    """
    if noise == "gumbel":                  # minus the log of an exponential number is a Gumbel number
        logits = logits - _exponential(logits, generator).log_()
    elif noise == "gaussian":
        normal = torch.randn(logits.shape, generator=generator).to(logits.device)
        logits = logits + normal * (math.pi / math.sqrt(6))
    return (logits / tau).softmax(-1)


def _exponential(like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Exponential numbers of mean 1, drawn on the CPU so that a seed gives the same ones everywhere; never 0.

    By hand: PyTorch's own `exponential_` takes three times as long.
    """
    return torch.rand(like.shape, generator=generator).log_().neg_().to(like.device)


@dataclass(frozen=True)
class Keyformer(Policy):
    """Noisy accumulated attention with a recent window.

    recent: share of the budget for the newest tokens. tau_start, tau_end: temperature at the prompt and at the last
    token. noise: "gumbel", "gaussian" or "none". share_heads: one keep-set for all KV heads of a layer.
    """
    name: ClassVar[str] = "keyformer"
    summary: ClassVar[str] = "attention received under Gumbel noise and a rising temperature, and a recent window"
    paper: ClassVar[Paper] = paper("keyformer")
    needs: ClassVar[str] = "all_rows"
    recent: float = 0.3
    tau_start: float = 1.0
    tau_end: float = 2.0
    noise: str = "gumbel"
    share_heads: bool = False

    def __post_init__(self):
        if self.noise not in NOISES:
            raise ValueError(f"noise must be one of {NOISES}, got {self.noise!r}")
        if not (self.tau_start > 0 and self.tau_end > 0):
            raise ValueError(f"temperatures must be above 0, got {self.tau_start} and {self.tau_end}")
        if not 0 <= self.recent < 1:
            raise ValueError(f"recent must be a share in [0, 1), got {self.recent}")

    def temperature(self, step: int, max_steps: int) -> float:
        """tau at a step: the prompt is step 0, the last token step max_steps."""
        return self.tau_start + step * (self.tau_end - self.tau_start) / max(1, max_steps)

    def observe(self, view: LayerView) -> None:
        tau = self.temperature(view.step, view.max_steps)
        # A probability's log is its logit up to a constant of the row, which the softmax cancels.
        flat = gumbel_score(view.attn.log(), tau, view.generator, self.noise)
        received = view.by_kv_head(flat).sum(1)                                            # (R, S)
        view.aux["score"] = view.aux["score"].add_(received) if "score" in view.aux else received

    def keep(self, view: LayerView, budget: int) -> Int[Tensor, "r kept"]:
        score = view.share(view.aux["score"]) if self.share_heads else view.aux["score"]
        return top_slots(score, budget, protect=view.newest(int(self.recent * budget)))
