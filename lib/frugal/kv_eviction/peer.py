"""A score of NVIDIA's kvpress as a policy of ours, for "compress_once": kvpress too scores a prompt, once.

Source: arXiv 2510.00636 and the repository NVIDIA/kvpress (`ScorerPress.score`). kvpress itself is not imported here.
Differs: presses that read hidden states are refused; attention arrives in blocks of rows and the scores of the blocks
are summed, which is exact for scores that are sums over rows (ObservedAttention) or come in one block (SnapKV, TOVA).
"""
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from frugal.core.budgets import top_slots
from frugal.core.eviction import NEEDS, LayerView
from frugal.core.papers import Paper
from frugal.kv_eviction.baselines import Policy


@dataclass(frozen=True)
class FromKvpress(Policy):
    """press: any kvpress ScorerPress; its compression ratio is ignored, the budget decides. needs: attention rows."""
    name: ClassVar[str] = "kvpress"
    summary: ClassVar[str] = "the score of a kvpress press"
    paper: ClassVar[Paper] = Paper.other(arxiv="2510.00636", where="appendix", title="Expected Attention (kvpress)")
    press: Any
    needs: str = "none"
    window: int = 1

    def _score(self, view: LayerView) -> Float[Tensor, "r s"]:
        seqs, heads = view.num_seqs, view.num_rows // view.num_seqs
        attn = None if view.attn is None else view.attn.unflatten(0, (seqs, -1))
        queries = heads if attn is None else attn.shape[1]
        module = SimpleNamespace(layer_idx=view.layer, head_dim=view.keys.shape[-1],
                                 config=SimpleNamespace(num_attention_heads=queries, num_key_value_heads=heads))
        unseen = torch.empty(seqs, view.num_slots, 0)                     # hidden states: a cache does not hold them
        keys, values = view.keys.unflatten(0, (seqs, heads)), view.values.unflatten(0, (seqs, heads))
        try:
            return self.press.score(module, unseen, keys, values, attn, {}).flatten(0, 1)
        except (RuntimeError, LookupError, AttributeError, TypeError) as error:
            raise ValueError(f"{type(self.press).__name__} cannot score from keys, values and attention alone ({error}); presses "
                             "that read hidden states or the model's weights cannot be wrapped") from error

    def observe(self, view: LayerView) -> None:
        score = self._score(view)
        view.aux["score"] = view.aux["score"].add_(score) if "score" in view.aux else score

    def keep(self, view: LayerView, budget: int) -> Int[Tensor, "r kept"]:
        return top_slots(self._score(view) if self.needs == "none" else view.aux["score"], budget)


def from_kvpress(press: Any, needs: str = "none") -> FromKvpress:
    """A press as a policy. needs: "none" (keys alone), "last_row" (TOVA), "window" (SnapKV) or "all_rows".

    Raises ValueError for an object without a `score` method or an unknown `needs`.
    """
    if not hasattr(press, "score"):
        raise ValueError(f"{type(press).__name__} has no score(): only kvpress's ScorerPress classes can be wrapped")
    if needs not in NEEDS:
        raise ValueError(f"needs must be one of {NEEDS}, got {needs!r}")
    return FromKvpress(press, needs, getattr(press, "window_size", 1))
