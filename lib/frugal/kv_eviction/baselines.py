"""The baselines every eviction paper is measured against, all on one interface.

Source: each class names its own. Scores are as NVIDIA's kvpress 0.5 computes them where it has the method, so that
keep-sets can be compared one for one (`tests/kv_eviction/test_peer.py`).
"""
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor

from frugal.core.budgets import top_slots
from frugal.core.eviction import LayerView
from frugal.core.kvcache import ROW_BLOCK
from frugal.core.papers import Paper


class Policy:
    """What all policies share. needs: which attention rows `observe` wants; min_budget: slots always protected."""
    kind: ClassVar[str] = "policy"
    needs: ClassVar[str] = "none"

    def min_budget(self) -> int:
        return 1


@dataclass(frozen=True)
class Full(Policy):
    """Keeps everything: the reference. It does not shrink to a budget, so it stands outside the budget audit."""
    name: ClassVar[str] = "full"
    summary: ClassVar[str] = "the whole cache, the reference for quality and cost"
    paper: ClassVar[Paper] = Paper.other(arxiv="1706.03762", where="section 3.2", title="Attention Is All You Need")

    def keep(self, view: LayerView, budget: int) -> Int[Tensor, "r kept"]:
        return torch.arange(view.num_slots, device=view.positions.device).expand(view.num_rows, -1)


@dataclass(frozen=True)
class Random(Policy):
    """Uniformly random slots, the newest always kept.

    per_head: each KV head draws its own (destroys copying at once: induction needs a token in all heads);
    False draws whole tokens, the fairer control.
    """
    name: ClassVar[str] = "random"
    summary: ClassVar[str] = "random slots of each head, seeded"
    paper: ClassVar[Paper] = Paper.other(arxiv=None, where="control", title="Random eviction (control)")
    per_head: bool = True

    def keep(self, view: LayerView, budget: int) -> Int[Tensor, "r kept"]:
        rows = view.num_rows if self.per_head else view.num_seqs
        score = torch.rand(rows, view.num_slots, generator=view.generator)
        score = score.repeat_interleave(view.num_rows // rows, 0).to(view.positions.device)
        return top_slots(score, budget, protect=view.newest(1))


@dataclass(frozen=True)
class Window(Policy):
    """The most recent tokens and nothing else. Collapses as soon as the first token leaves the cache."""
    name: ClassVar[str] = "window"
    summary: ClassVar[str] = "the newest tokens only"
    paper: ClassVar[Paper] = Paper.other(arxiv="2004.05150", where="section 3.1", title="Longformer")

    def keep(self, view: LayerView, budget: int) -> Int[Tensor, "r kept"]:
        return top_slots(view.positions.float(), budget)


@dataclass(frozen=True)
class StreamingLLM(Policy):
    """The first tokens, which attention uses as a sink, and the newest.

    Source: arXiv 2309.17453, section 3.2. sinks: first tokens kept, in tokens.
    Differs: positions stay original unless the cache is told "renumbered", which is what the paper does.
    """
    name: ClassVar[str] = "streaming_llm"
    summary: ClassVar[str] = "four sink tokens and the newest"
    paper: ClassVar[Paper] = Paper.other(arxiv="2309.17453", where="section 3.2",
                                         title="Efficient Streaming Language Models with Attention Sinks")
    sinks: int = 4

    def min_budget(self) -> int:
        return self.sinks + 1

    def keep(self, view: LayerView, budget: int) -> Int[Tensor, "r kept"]:
        return top_slots(view.positions.float(), budget, protect=view.oldest(self.sinks))


@dataclass(frozen=True)
class HeavyHitter(Policy):
    """Accumulated attention: keep the slots that have received the most, and a recent window.

    Source: arXiv 2306.14048 (H2O), section 4. recent: share of the budget for the newest tokens.
    normalize: None sums over rows, which favours old tokens; "count" divides by the rows that could see a slot.
    share_heads: one keep-set for all KV heads of a layer.
    Differs: scores are averaged over the query heads of a group (grouped-query attention).
    """
    name: ClassVar[str] = "h2o"
    summary: ClassVar[str] = "most attention received so far, and a recent window"
    paper: ClassVar[Paper] = Paper.other(arxiv="2306.14048", where="section 4", title="H2O: Heavy-Hitter Oracle")
    needs: ClassVar[str] = "all_rows"
    recent: float = 0.5
    normalize: str | None = None
    share_heads: bool = False

    def observe(self, view: LayerView) -> None:
        received = view.received()                                                         # (R, S)
        view.aux["mass"] = view.aux["mass"].add_(received) if "mass" in view.aux else received

    def keep(self, view: LayerView, budget: int) -> Int[Tensor, "r kept"]:
        score = view.aux["mass"]
        if self.normalize == "count":
            score = score / (view.num_seen - view.positions).clamp_min(1)
        if self.share_heads:
            score = view.share(score)
        return top_slots(score, budget, protect=view.newest(int(self.recent * budget)))


@dataclass(frozen=True)
class SnapKV(Policy):
    """Attention of the last rows, smoothed along the text; those last tokens are always kept.

    Source: arXiv 2404.14469, section 4. window: rows that vote, in tokens; kernel: width of the average pooling.
    Differs: kvpress's order and pooling (mean over rows, average pool, mean over the group); a prompt shorter than
    the window votes with all its rows. Under "fixed_size" each new row replaces a share 1/window of the score.
    """
    name: ClassVar[str] = "snapkv"
    summary: ClassVar[str] = "attention of the last rows, pooled along the text"
    paper: ClassVar[Paper] = Paper.other(arxiv="2404.14469", where="section 4", title="SnapKV")
    needs: ClassVar[str] = "window"
    window: int = 16
    kernel: int = 5
    share_heads: bool = False

    def __post_init__(self):
        if not 1 <= self.window <= ROW_BLOCK:              # more rows would come in blocks, and the last would stand for all
            raise ValueError(f"window must be 1 to {ROW_BLOCK} tokens, got {self.window}")

    def min_budget(self) -> int:
        return self.window

    def observe(self, view: LayerView) -> None:
        vote = view.by_kv_head(view.attn)                                                  # (R, T, S)
        if view.step > 0 and "vote" in view.aux:
            view.aux["vote"].mul_(1 - 1 / self.window).add_(vote[:, 0], alpha=1 / self.window)
            return
        vote, past = vote.mean(1), max(view.num_slots - self.window, 0)
        if past:                       # the window is not pooled in: its attention to itself would lift its neighbours
            pooled = F.avg_pool1d(vote[:, :past], self.kernel, stride=1, padding=self.kernel // 2)
            vote[:, :past] = pooled[:, :past]
        view.aux["vote"] = vote

    def keep(self, view: LayerView, budget: int) -> Int[Tensor, "r kept"]:
        score = view.share(view.aux["vote"]) if self.share_heads else view.aux["vote"]
        return top_slots(score, budget, protect=view.newest(self.window))


@dataclass(frozen=True)
class TOVA(Policy):
    """Attention of the last token alone, mean over all heads, so every head keeps the same tokens.

    Source: arXiv 2401.06104, section 4. There is no recency rule.
    """
    name: ClassVar[str] = "tova"
    summary: ClassVar[str] = "attention of the last token, one set for all heads"
    paper: ClassVar[Paper] = Paper.other(arxiv="2401.06104", where="section 4",
                                         title="Transformers are Multi-State RNNs (TOVA)")
    needs: ClassVar[str] = "last_row"

    def observe(self, view: LayerView) -> None:
        view.aux["last"] = view.share(view.by_kv_head(view.attn)[:, -1])

    def keep(self, view: LayerView, budget: int) -> Int[Tensor, "r kept"]:
        return top_slots(view.aux["last"], budget)


@dataclass(frozen=True)
class Knorm(Policy):
    """Keys with a small norm attract attention: keep those. No attention is read, so it is the cheap control.

    Source: arXiv 2406.11430, section 3.
    """
    name: ClassVar[str] = "knorm"
    summary: ClassVar[str] = "the smallest key norms"
    paper: ClassVar[Paper] = Paper.other(arxiv="2406.11430", where="section 3",
                                         title="A Simple and Effective L2 Norm-Based Strategy for KV Cache Compression")

    def keep(self, view: LayerView, budget: int) -> Int[Tensor, "r kept"]:
        norm = view.aux.setdefault("norm", torch.zeros(view.positions.shape, device=view.keys.device))
        new = norm[0] == 0                                # slots without a note yet: at first all, then the newest
        norm[:, new] = view.keys[:, new].norm(dim=-1).float()
        return top_slots(-norm, budget)
