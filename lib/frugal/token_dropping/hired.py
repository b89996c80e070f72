"""HiRED: the encoder's own [CLS] attention says which tokens of which view are worth reading.

Nothing is trained. A tile's share of the budget follows from where the overview's CLS token looks in the first layer
(it spreads over objects); within a view the last layer's CLS attention picks the tokens (it settles on features).
The encoder still sees all views; tokens are dropped between projector and decoder.

Source: arXiv 2408.10945, sections on budget distribution and token dropping; defaults and the form of the score are
those of the repository hasanar1f/HiRED.
Differs: regions are the two-dimensional tiles, and rounding loses nothing (`as_released=True` gives the release: runs
of raster rows as regions, floors); patches that tie at the threshold share the marks; what a full tile cannot take
goes to the others.
Shapes: B scenes, P views, v tokens a view, T tiles (P - 1).
"""
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from frugal.core.papers import Paper, paper
from frugal.models.mini_clip import ViewFeatures
from frugal.models.mini_vlm import Grid, VisualTokens
from frugal.token_dropping.keeping import Dropper, top_per_view

SCORES = ("count", "mass")


def cls_attention(features: ViewFeatures, layer: int) -> Float[Tensor, "b p v"]:
    """Attention of each view's CLS token to its patches in one encoder layer, summed over heads.

    Every head has 1 to give in every view, so these numbers compare patches of one view, never views.
    """
    return features.cls_attn[:, :, layer].sum(2)


@dataclass(frozen=True)
class HiRED(Dropper):
    """CLS attention: first layer for the tiles' budgets, last layer for the tokens.

    alpha: share of the budget that goes to the overview. score: a tile's claim is the "count" of marked patches in its
    region of the overview, or the "mass" of attention there. allocation_layer, selection_layer: encoder layers.
    """
    name: ClassVar[str] = "hired"
    summary: ClassVar[str] = "CLS attention: first layer shares out the budget, last layer picks tokens"
    paper: ClassVar[Paper] = paper("hired").at("budget distribution and token dropping")
    alpha: float = 0.5
    score: str = "count"
    as_released: bool = False
    allocation_layer: int = 0
    selection_layer: int = -1

    def __post_init__(self):
        _check(self.alpha, self.score)

    def budgets(self, tokens: VisualTokens, budget: int) -> Int[Tensor, "b p"]:
        """Tokens for each view, overview first."""
        overview = cls_attention(tokens.features, self.allocation_layer)[:, 0]
        return torch.stack([allocate_budget(row, tokens.grid, budget, self.alpha, self.score, self.as_released)
                            for row in overview])

    def select(self, tokens: VisualTokens, budget: int) -> Int[Tensor, "b kept"]:
        return top_per_view(cls_attention(tokens.features, self.selection_layer), self.budgets(tokens, budget))


@dataclass(frozen=True)
class HiREDReleased(HiRED):
    """HiRED as its repository runs it: regions are runs of raster rows, and floors lose a few tokens."""
    name: ClassVar[str] = "hired_released"
    summary: ClassVar[str] = "HiRED with the release's strips as regions and its lossy rounding"
    as_released: bool = True


def allocate_budget(attn0: Float[Tensor, " v"], grid: Grid, budget: int, alpha: float = 0.5, score: str = "count",
                    as_released: bool = False) -> Int[Tensor, " p"]:
    """Tokens for each view, overview first; they sum to `budget` (as released: to at most that).

    attn0: first-layer CLS attention of the overview. The overview gets min(floor(alpha * budget), v). Tiles share the
    rest in proportion to their region's score: by largest remainder, at most v each, what is over goes on to tiles
    with room and then to the overview. Where no region has any score, tiles share alike.
    Raises ValueError for a budget outside 1..N, alpha outside 0..1 or an unknown score.
    """
    _check(alpha, score)
    size, tiles = grid.tokens_per_view, grid.num_views - 1
    if not 1 <= budget <= grid.num_tokens:
        raise ValueError(
            f"budget {budget} is out of range: the views have {grid.num_tokens} tokens, so give 1 to {grid.num_tokens}")
    first = min(int(alpha * budget + 1e-9), size)
    claims = region_scores(attn0, grid, alpha, score, as_released)
    if as_released:
        shares = (claims / claims.sum().clamp_min(1e-12) * (budget - first) + 1e-9).floor().long().clamp(max=size)
    else:
        shares = share_out(claims, min(budget - first, tiles * size), size)
        first = budget - int(shares.sum())
    return torch.cat([torch.tensor([first]), shares])


def region_scores(attn0: Float[Tensor, " v"], grid: Grid, alpha: float = 0.5, score: str = "count",
                  as_released: bool = False) -> Float[Tensor, " t"]:
    """What each tile's region of the overview claims: marked patches, or attention mass."""
    weight = marks(attn0, int(grid.tokens_per_view * (1 - alpha) + 1e-9)) if score == "count" else attn0.double()
    if as_released:                          # the release reshapes the flat mask to (rows, cols, rest): strips, no tiles
        return weight.unflatten(0, (grid.tile_rows * grid.tile_cols, -1)).sum(1)
    rows, cols = overlap(grid.tile_rows, grid.patch_rows), overlap(grid.tile_cols, grid.patch_cols)
    return (rows @ weight.view(grid.patch_rows, grid.patch_cols) @ cols.T).flatten()


def marks(attn0: Float[Tensor, " v"], count: int) -> Float[Tensor, " v"]:
    """1 for the `count` patches with most attention, 0 for the others; patches tied at the threshold share.

    Without the sharing, constant attention would mark the upper half of the picture.
    """
    attn0 = attn0.double()
    if count == 0:
        return torch.zeros_like(attn0)
    threshold = attn0.sort(descending=True).values[count - 1]
    above, tied = attn0 > threshold, attn0 == threshold
    return above.double() + tied * (count - above.sum()).double() / tied.sum()


def overlap(parts: int, cells: int) -> Float[Tensor, "parts cells"]:
    """Share of each of `cells` cells that lies in each of `parts` equal parts of the same line; columns sum to 1."""
    edges = torch.arange(parts + 1, dtype=torch.float64)[:, None] * cells / parts
    left = torch.arange(cells, dtype=torch.float64)
    return (torch.minimum(edges[1:], left + 1) - torch.maximum(edges[:-1], left)).clamp_min(0)


def share_out(claims: Float[Tensor, " t"], total: int, most: int) -> Int[Tensor, " t"]:
    """`total` whole tokens in proportion to the claims: floors, then the largest remainders, at most `most` each.

    What a full tile cannot take is shared out again among the others; tiles without any claim come last, alike.
    """
    shares = torch.zeros(len(claims), dtype=torch.int64)
    left = total
    while left > 0:
        open_ = shares < most
        weight = torch.where(open_, claims.double(), 0.0)
        if weight.sum() <= 0:
            weight = open_.double()
        quota = weight / weight.sum() * left
        more = (quota + 1e-9).floor().long()
        order = (quota - more).masked_fill(weight == 0, -1).argsort(descending=True, stable=True)
        more[order[:left - int(more.sum())]] += 1
        more = torch.minimum(more, most - shares)
        shares, left = shares + more, left - int(more.sum())
    return shares


def _check(alpha: float, score: str) -> None:
    if not 0 <= alpha <= 1:                                    # NaN too
        raise ValueError(f"alpha {alpha} is out of range: the overview's share of the budget is 0 to 1")
    if score not in SCORES:
        raise ValueError(f"score {score!r} is unknown: a region is scored by {' or '.join(SCORES)}")
