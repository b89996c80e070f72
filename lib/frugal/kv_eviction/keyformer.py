"""Keyformer: score slots by a noisy, flattened softmax, because the survivors' softmax misleads.

When tokens are evicted, attention renormalises over what is left and an accumulated score is bent towards what
happened to survive. Keyformer adds Gumbel noise to the logits and raises the temperature as more tokens go. The
noise touches the score alone, never the attention output.

Source: arXiv 2403.09054, sections 3.2 to 3.4, and the authors' release.
Differs: slots are really gathered after the prompt and after every token (the release masks them, or gathers every
8th token); the prompt's score is per sequence (the release sums it over the batch); the score is averaged over the
query heads of a group (grouped-query attention).
"""
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Int
from torch import Tensor

from frugal.core.budgets import top_slots
from frugal.core.eviction import LayerView
from frugal.core.papers import Paper, paper
from frugal.kv_eviction import noisy_score
from frugal.kv_eviction.baselines import Policy
from frugal.kv_eviction.noisy_score import NOISES

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
        received = noisy_score.received(view.attn, view.num_rows, tau, view.generator, self.noise)     # (R, S)
        view.aux["score"] = view.aux["score"].add_(received) if "score" in view.aux else received

    def keep(self, view: LayerView, budget: int) -> Int[Tensor, "r kept"]:
        score = view.share(view.aux["score"]) if self.share_heads else view.aux["score"]
        return top_slots(score, budget, protect=view.newest(int(self.recent * budget)))
