"""What every visual-token method shares: budgets, gathering, and a prefill that never sees a dropped token.

A dropper says which tokens stay (`select`), a merger makes new ones (`merge`), a method inside the decoder does its
own prefill (`prefill`). What is kept is copied into a shorter prompt, so the decoder's arithmetic and its cache
really shrink. Position embeddings are in the tokens already.

Differs: the decoder's own (rotary) positions stay those of the full prompt, positions="original"; the papers renumber
what is kept, positions="contiguous". A language model trained on texts of every length does not mind; this small one has
only seen 320 visual tokens before a question, and renumbering costs it more than the dropping does.

Shapes: B scenes, P views of a scene (overview first, then tiles row by row), v tokens of a view in raster order,
N = P * v, K tokens kept, d width.
"""
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from frugal.core.budgets import BudgetTooSmall, resolve
from frugal.models.mini_vlm import Grid, VisualTokens

POSITIONS = ("original", "contiguous")


class Dropper:
    """What all methods of this folder share. A dropper has `select`, a merger `merge`, one inside `prefill`.

    kind: "dropper", "merger", "inside" (the decoder) or "steering" (saves nothing). equal: what equal budgets make
    equal, "tokens" or "flops".
    """
    kind: ClassVar[str] = "dropper"
    equal: ClassVar[str] = "tokens"

    def min_budget(self, grid: Grid) -> int:
        """Fewest tokens the method can work with: one a view."""
        return grid.num_views


@dataclass(frozen=True)
class Kept:
    """What goes to the decoder. embeds (B, K, d); index (B, K): the token each one stands for, ascending."""
    embeds: Float[Tensor, "b k d"]
    index: Int[Tensor, "b k"]


def num_kept(budget: float | int, grid: Grid, method=None) -> int:
    """The budget as a count of visual tokens: floor(fraction * N), or the count itself.

    Raises ValueError for a budget of 0, above 1 (a fraction) or N (a count), or NaN; BudgetTooSmall below what the
    method needs, by default one token a view.
    """
    count = resolve(budget, grid.num_tokens)
    least = grid.num_views if method is None else method.min_budget(grid)
    if count < least:
        name = "a selection" if method is None else type(method).__name__
        raise BudgetTooSmall(
            f"budget {budget} keeps {count} of {grid.num_tokens} visual tokens, but {name} needs {least} "
            f"({grid.num_views} views); give at least {least / grid.num_tokens:.3g} or {least} tokens")
    return count


def keep(tokens: VisualTokens, method=None, budget: float | int = 1.0) -> Kept:
    """The kept tokens of every scene, ready for the decoder. method None keeps all.

    Raises what `num_kept` raises; ValueError when a method's choice is not ascending, unique and within the scene.
    """
    batch, total, _ = tokens.embeds.shape
    if method is None:
        return Kept(tokens.embeds, torch.arange(total).expand(batch, -1))
    if isinstance(method, type):
        raise ValueError(f"method must be an instance: write {method.__name__}(), with the parentheses")
    count = num_kept(budget, tokens.grid, method)
    if hasattr(method, "merge"):
        return method.merge(tokens, count)
    if not hasattr(method, "select"):
        raise ValueError(f"{method.name} has no `select`: it works inside the decoder; call its `prefill`")
    return gather(tokens, method.select(tokens, count))


def gather(tokens: VisualTokens, index: Int[Tensor, "b k"]) -> Kept:
    """Tokens `index` of every scene. Raises ValueError unless they are ascending and in 0..N-1."""
    total = tokens.embeds.shape[1]
    if index.shape[1] == 0 or int(index.min()) < 0 or int(index.max()) >= total or (index.diff(dim=1) <= 0).any():
        raise ValueError(
            f"a selection lists at least one token from 0..{total - 1}, ascending and each once (raster order): "
            "the decoder reads places from the order as well")
    return Kept(tokens.embeds.gather(1, index[..., None].expand(-1, -1, tokens.embeds.shape[2])), index)


def prefill(vlm, tokens: VisualTokens, method=None, budget: float | int = 1.0, positions: str = "original"):
    """The decoder's cache after the kept tokens alone: K slots a layer. See `read` for positions."""
    return read(vlm, keep(tokens, method, budget), tokens.grid, positions)


def read(vlm, kept: Kept, grid: Grid, positions: str = "original"):
    """The decoder's cache after these tokens. positions "original": each at its place in the full prompt, and text goes on
    behind all N; "contiguous": 0..K-1. A token that stands for no single one takes the place of the one before it."""
    if positions not in POSITIONS:
        raise ValueError(f"positions {positions!r} is unknown: {' or '.join(POSITIONS)}")
    if positions == "contiguous":
        return vlm.prefill(kept.embeds)
    cache = vlm.lm.new_cache(len(kept.embeds))
    vlm.lm.run(None, cache, embeds=kept.embeds, positions=kept.index.cummax(dim=1).values, logits=False)
    cache.num_seen = np.full(len(kept.embeds), grid.num_tokens, np.int64)
    return cache


def top_per_view(score: Shaped[Tensor, "b p v"], counts: Int[Tensor, "b p"]) -> Int[Tensor, "b k"]:
    """The best `counts` tokens of each view, as token numbers in raster order; ties go to the earlier token.

    Raises ValueError when scenes of one batch keep different totals: such scenes go one by one.
    """
    batch, views, size = score.shape
    totals = counts.sum(1)
    if (totals != totals[0]).any():
        raise ValueError(f"the scenes of this batch keep {sorted(set(totals.tolist()))} tokens: take them one by one")
    rank = score.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
    kept = (rank < counts[..., None]).reshape(batch, views * size)
    return kept.nonzero()[:, 1].reshape(batch, -1)


def even_shares(total: int, parts: int) -> list[int]:
    """`total` split into `parts` whole numbers that differ by at most 1, the larger ones first."""
    return [total // parts + (i < total % parts) for i in range(parts)]
