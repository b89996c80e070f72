"""LLaVA-PruMerge: keep the tokens the CLS token attends to, and let each take up its nearest neighbours.

A kept token becomes itself plus its neighbours by key cosine, weighted by their CLS attention; one token more holds
the attention-weighted sum of all that were dropped. PruMerge+ also keeps an even sample of the other tokens.

Source: arXiv 2403.15388, sections 3.1-3.3; the release's attention of concatenated heads, weights that are not
normalised, and neighbours from kept and dropped tokens alike.
Differs: a fixed budget, the same for every view, in place of the share of outliers (`outlier_ratio` gives that
share), so that all methods stand on one axis; 8 neighbours of 64 tokens in place of 32 of 576; merged behind the
projector, positions with them; kept tokens stay in raster order, where the release leaves the order of attention; a
view that keeps all its tokens is left as it is.
Shapes: B scenes, P views, v tokens a view, n tokens kept in a view, d width.
"""
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from frugal.core.papers import Paper
from frugal.models.mini_clip import ViewFeatures
from frugal.models.mini_vlm import Grid, VisualTokens
from frugal.token_dropping.keeping import Dropper, Kept, even_shares

EXTRA = -1                                    # stands for no single token


@dataclass(frozen=True)
class PruMerge(Dropper):
    """CLS attention keeps, key similarity merges. neighbours: tokens that a kept one takes up."""
    name: ClassVar[str] = "prumerge"
    summary: ClassVar[str] = "CLS attention keeps tokens, each takes up its nearest neighbours"
    paper: ClassVar[Paper] = Paper.other(
        arxiv="2403.15388", where="section 3",
        title="LLaVA-PruMerge: Adaptive Token Reduction for Efficient Large Multimodal Models")
    kind: ClassVar[str] = "merger"
    neighbours: int = 8

    def min_budget(self, grid: Grid) -> int:
        """One kept and one merged token a view."""
        return 2 * grid.num_views

    def merge(self, tokens: VisualTokens, budget: int) -> Kept:
        grid, attn = tokens.grid, merged_head_attention(tokens.features)
        size = grid.tokens_per_view
        embeds = tokens.embeds.unflatten(1, (grid.num_views, size))                    # (B, P, v, d)
        parts, index = [], []
        for view, count in enumerate(even_shares(budget, grid.num_views)):
            if count == size:
                new, own = embeds[:, view], torch.arange(size).expand(len(embeds), -1)
            else:
                kept = self.choose(attn[:, view], count - 1)
                new = merge_into(embeds[:, view], tokens.features.keys[:, view], attn[:, view], kept, self.neighbours)
                own = kept.nonzero()[:, 1].view(len(embeds), -1)
            parts.append(new)
            index.append(own + view * size)
            if count < size:
                index.append(torch.full((len(embeds), 1), EXTRA))
        return Kept(torch.cat(parts, 1), torch.cat(index, 1))

    def choose(self, attn: Float[Tensor, "b v"], count: int) -> Bool[Tensor, "b v"]:
        """The `count` tokens with most CLS attention."""
        return _top(attn, count)


@dataclass(frozen=True)
class PruMergePlus(PruMerge):
    """PruMerge with an even sample of the other tokens: one token by attention for every three by place."""
    name: ClassVar[str] = "prumerge_plus"
    summary: ClassVar[str] = "PruMerge with an even sample of the other tokens"

    def choose(self, attn: Float[Tensor, "b v"], count: int) -> Bool[Tensor, "b v"]:
        best = _top(attn, -(-count // 4))
        others = (~best).nonzero()[:, 1].view(len(attn), -1)                            # raster order
        number = count - int(best[0].sum())
        even = ((torch.arange(number) + 0.5) * others.shape[1] / max(number, 1)).long()
        return best.scatter(1, others[:, even], True)


def merged_head_attention(features: ViewFeatures) -> Float[Tensor, "b p v"]:
    """Softmax of the CLS query against the patch keys with all heads side by side, as the release computes it."""
    logits = (features.keys @ features.cls_query[..., None])[..., 0]
    return (logits * features.keys.shape[-1] ** -0.5).softmax(-1)


def merge_into(embeds: Float[Tensor, "b v d"], keys: Float[Tensor, "b v e"], attn: Float[Tensor, "b v"],
               kept: Bool[Tensor, "b v"], neighbours: int) -> Float[Tensor, "b n d"]:
    """Kept tokens in raster order, each plus sum(attn * embed) over its nearest other tokens, then one token of all dropped.

    neighbours: by key cosine, at most v - 1.
    """
    batch, size, width = embeds.shape
    index = kept.nonzero()[:, 1].view(batch, -1)                                        # (B, n - 1)
    unit = F.normalize(keys, dim=-1)
    near = torch.einsum("bnd,bvd->bnv", unit.gather(1, _wide(index, unit)), unit)
    near.scatter_(2, index[..., None], -torch.inf) # a token is no neighbour of its own
    chosen = near.topk(min(neighbours, size - 1), dim=-1).indices
    weight = torch.zeros_like(near).scatter(2, chosen, 1.0) * attn[:, None]
    merged = embeds.gather(1, _wide(index, embeds)) + weight @ embeds
    rest = ((attn * ~kept)[:, None] @ embeds)
    return torch.cat([merged, rest], 1)


def outlier_ratio(attn: Float[Tensor, "b p v"]) -> float:
    """The adaptive keep ratio of the paper: mean share of tokens above the upper quartile by 1.5 interquartile ranges."""
    low, high = attn.quantile(0.25, dim=-1, keepdim=True), attn.quantile(0.75, dim=-1, keepdim=True)
    return float((attn > high + 1.5 * (high - low)).float().mean())


def _top(attn: Float[Tensor, "b v"], count: int) -> Bool[Tensor, "b v"]:
    best = attn.argsort(dim=-1, descending=True, stable=True)[:, :count]
    return torch.zeros_like(attn, dtype=torch.bool).scatter(1, best, True)


def _wide(index: Int[Tensor, "b n"], like: Float[Tensor, "b v e"]) -> Int[Tensor, "b n e"]:
    return index[..., None].expand(-1, -1, like.shape[-1])
