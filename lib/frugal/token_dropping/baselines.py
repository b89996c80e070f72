"""The baselines every selection of visual tokens must beat, at the same number of tokens.

Controls (random, one view alone, an even grid) say what choosing is worth; pooling says whether averaging would have
done as well. Each class names its source.
Shapes: B scenes, P views, v tokens a view in raster order, N = P * v, d width.
"""
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Int
from torch import Tensor

from frugal.core.papers import Paper
from frugal.models.mini_vlm import Grid, VisualTokens
from frugal.token_dropping.keeping import Dropper, Kept, even_shares, top_per_view


@dataclass(frozen=True)
class Full(Dropper):
    """Keeps everything: the reference. It does not shrink to a budget, so it stands outside the budget audit."""
    name: ClassVar[str] = "full"
    summary: ClassVar[str] = "all visual tokens, the reference for accuracy and cost"
    paper: ClassVar[Paper] = Paper.other(arxiv="2304.08485", where="section 4.1", title="Visual Instruction Tuning")

    def select(self, tokens: VisualTokens, budget: int) -> Int[Tensor, "b kept"]:
        batch, total, _ = tokens.embeds.shape
        return torch.arange(total).expand(batch, -1)


@dataclass(frozen=True)
class RandomDrop(Dropper):
    """Uniformly random tokens of all views together; every scene draws its own. seed: of the draw."""
    name: ClassVar[str] = "random"
    summary: ClassVar[str] = "random tokens of all views, seeded"
    paper: ClassVar[Paper] = Paper.other(arxiv=None, where="control", title="Random dropping (control)")
    seed: int = 0

    def select(self, tokens: VisualTokens, budget: int) -> Int[Tensor, "b kept"]:
        batch, total, _ = tokens.embeds.shape
        score = torch.rand(batch, 1, total, generator=torch.Generator().manual_seed(self.seed))
        return top_per_view(score, torch.full((batch, 1), budget))


@dataclass(frozen=True)
class StratifiedRandom(Dropper):
    """Random tokens, the same number from every view (one more from the first views where it does not divide)."""
    name: ClassVar[str] = "stratified_random"
    summary: ClassVar[str] = "random tokens, equally many from every view"
    paper: ClassVar[Paper] = Paper.other(arxiv=None, where="control", title="Stratified random dropping (control)")
    seed: int = 0

    def select(self, tokens: VisualTokens, budget: int) -> Int[Tensor, "b kept"]:
        batch, grid = tokens.embeds.shape[0], tokens.grid
        score = torch.rand(batch, grid.num_views, grid.tokens_per_view,
                           generator=torch.Generator().manual_seed(self.seed))
        return top_per_view(score, torch.tensor(even_shares(budget, grid.num_views)).expand(batch, -1))


@dataclass(frozen=True)
class OverviewOnly(Dropper):
    """Tokens of the overview alone: all of them where the budget allows, an even grid of them below that.

    Above one view's tokens there is nothing more to keep, and `select` raises ValueError.
    """
    name: ClassVar[str] = "overview_only"
    summary: ClassVar[str] = "the overview's tokens, no tile"
    paper: ClassVar[Paper] = Paper.other(arxiv=None, where="control", title="Overview only (control)")

    def min_budget(self, grid: Grid) -> int:
        return 1

    def select(self, tokens: VisualTokens, budget: int) -> Int[Tensor, "b kept"]:
        grid = tokens.grid
        if budget > grid.tokens_per_view:
            raise ValueError(f"budget of {budget} tokens: the overview has {grid.tokens_per_view}, so give at most "
                             f"{grid.tokens_per_view} ({1 / grid.num_views:.0%} of all)")
        return torch.tensor(centres(grid, budget)).expand(tokens.embeds.shape[0], -1)


@dataclass(frozen=True)
class UniformGrid(Dropper):
    """An even grid of tokens in every view: every m-th row and column where the budget allows, else nearly so."""
    name: ClassVar[str] = "uniform_grid"
    summary: ClassVar[str] = "an even grid of tokens in every view"
    paper: ClassVar[Paper] = Paper.other(arxiv=None, where="control", title="Uniform grid (control)")

    def select(self, tokens: VisualTokens, budget: int) -> Int[Tensor, "b kept"]:
        grid = tokens.grid
        index = [view * grid.tokens_per_view + place for view, count in enumerate(even_shares(budget, grid.num_views))
                 for place in centres(grid, count)]
        return torch.tensor(index).expand(tokens.embeds.shape[0], -1)


@dataclass(frozen=True)
class SpatialPool(Dropper):
    """Average pooling of the projected tokens, position embeddings with them: 2 x 2 blocks at 25 %, 4 x 4 at 6 %.

    Not a drop: it says whether choosing beats averaging.
    Differs: at budgets between, each view is cut into bands of rows and each band into blocks, as equal as they come.
    """
    name: ClassVar[str] = "spatial_pool"
    summary: ClassVar[str] = "average of blocks of tokens, positions with them"
    paper: ClassVar[Paper] = Paper.other(arxiv=None, where="control", title="Spatial pooling (control)")
    kind: ClassVar[str] = "merger"

    def merge(self, tokens: VisualTokens, budget: int) -> Kept:
        grid, parts, index = tokens.grid, [], []
        for view, count in enumerate(even_shares(budget, grid.num_views)):
            first = view * grid.tokens_per_view
            for members in blocks(grid.patch_rows, grid.patch_cols, count):
                parts.append(tokens.embeds[:, [first + m for m in members]].mean(1))
                index.append(first + _middle(members, grid.patch_cols))
        return Kept(torch.stack(parts, 1), torch.tensor(index).expand(tokens.embeds.shape[0], -1))


def blocks(rows: int, cols: int, count: int) -> list[list[int]]:
    """A grid of rows x cols cells cut into `count` rectangles as equal as they come; cell numbers of each, in raster order.

    About sqrt(count) bands of rows, each cut into its share of rectangles. Raises ValueError for a count outside
    1..rows * cols.
    """
    if not 1 <= count <= rows * cols:
        raise ValueError(f"{count} blocks of a grid with {rows * cols} cells: give 1 to {rows * cols}")
    bands = min(rows, max(1, round((count * rows / cols) ** 0.5)))
    while -(-count // bands) > cols:                 # more rectangles in a band than columns: one band more
        bands += 1
    bands = min(bands, count)
    found = []
    for band, share in enumerate(even_shares(count, bands)):
        top, bottom = band * rows // bands, (band + 1) * rows // bands
        for part in range(share):
            left, right = part * cols // share, (part + 1) * cols // share
            found.append([r * cols + c for r in range(top, bottom) for c in range(left, right)])
    return found


def centres(grid: Grid, count: int) -> list[int]:
    """The middle cell of each of `count` equal blocks of one view, ascending."""
    return sorted(_middle(members, grid.patch_cols)
                  for members in blocks(grid.patch_rows, grid.patch_cols, count)) if count else []


def _middle(members: list[int], cols: int) -> int:
    rows, columns = sorted({m // cols for m in members}), sorted({m % cols for m in members})
    return rows[len(rows) // 2] * cols + columns[len(columns) // 2]
