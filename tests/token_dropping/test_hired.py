"""HiRED: budgets that always sum, regions against a double loop, selection in raster order, and wrong versions rejected."""
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from frugal.models.mini_vlm import Grid
from frugal.token_dropping.hired import HiRED, HiREDReleased, allocate_budget, cls_attention, marks, region_scores, share_out
from frugal.token_dropping.keeping import keep
from tests.token_dropping.toys import GRID, random_tokens, with_attention

GRIDS = [GRID, Grid(1, 3, 6, 6), Grid(2, 3, 5, 7), Grid(3, 3, 8, 8)]


def attention(seed, grid, sharp=2.0):
    return (sharp * torch.randn(grid.tokens_per_view, generator=torch.Generator().manual_seed(seed))).softmax(-1)


# -- allocation ---------------------------------------------------------------------------------------------------

@given(grid=st.sampled_from(GRIDS), seed=st.integers(0, 999), alpha=st.floats(0, 1), score=st.sampled_from(["count", "mass"]),
       sharp=st.sampled_from([0.0, 2.0, 30.0]), data=st.data())
@settings(max_examples=150, deadline=None)
def test_budgets_always_sum_and_fit(grid, seed, alpha, score, sharp, data):
    budget = data.draw(st.integers(1, grid.num_tokens))
    found = allocate_budget(attention(seed, grid, sharp), grid, budget, alpha, score)
    assert found.shape == (grid.num_views,) and int(found.sum()) == budget
    assert found.min() >= 0 and found.max() <= grid.tokens_per_view
    if budget - min(int(alpha * budget + 1e-9), grid.tokens_per_view) <= (grid.num_views - 1) * grid.tokens_per_view:
        assert found[0] == min(int(alpha * budget + 1e-9), grid.tokens_per_view)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("score", ["count", "mass"])
def test_constant_attention_gives_equal_tile_budgets(grid, score):
    flat = torch.full((grid.tokens_per_view,), 1 / grid.tokens_per_view)
    for budget in range(grid.num_views, grid.num_tokens, 7):
        tiles = allocate_budget(flat, grid, budget, 0.5, score)[1:]
        assert tiles.max() - tiles.min() <= 1


@pytest.mark.parametrize("grid", GRIDS)
def test_regions_against_a_double_loop(grid):
    attn0 = attention(3, grid)
    for score, weight in (("mass", attn0.double()), ("count", marks(attn0, grid.tokens_per_view // 2))):
        expected = torch.zeros(grid.tile_rows, grid.tile_cols, dtype=torch.float64)
        for r in range(grid.patch_rows):
            for c in range(grid.patch_cols):
                for i in range(8):                       # each patch in 8 x 8 x (tiles)^2 grains, so that edges fall between
                    for j in range(8):
                        fine_r, fine_c = 8 * grid.tile_rows, 8 * grid.tile_cols
                        for a in range(grid.tile_rows):
                            for b in range(grid.tile_cols):
                                row = ((r * 8 + i) * grid.tile_rows + a) * grid.tile_rows // (fine_r * grid.patch_rows)
                                col = ((c * 8 + j) * grid.tile_cols + b) * grid.tile_cols // (fine_c * grid.patch_cols)
                                expected[row, col] += weight[r * grid.patch_cols + c] / (64 * grid.tile_rows *
                                                                                         grid.tile_cols)
        assert torch.allclose(region_scores(attn0, grid, 0.5, score), expected.flatten(), atol=1e-6)


def test_marks_share_ties_and_sum_to_their_number():
    assert marks(torch.tensor([0.4, 0.1, 0.2, 0.1]), 3).tolist() == [1, 0.5, 1, 0.5]
    assert marks(torch.full((8,), 0.125), 4).tolist() == [0.5] * 8
    assert marks(torch.rand(9), 0).sum() == 0


def test_largest_remainders_by_hand():
    """Claims 5 : 3 : 1 : 1 of 13 tokens: quotas 6.5, 3.9, 1.3, 1.3; floors leave 2, which go to .9 and .5."""
    assert share_out(torch.tensor([5.0, 3, 1, 1]), 13, 64).tolist() == [7, 4, 1, 1]
    assert share_out(torch.tensor([5.0, 3, 1, 1]), 13, 5).tolist() == [5, 5, 2, 1]      # the full tile's rest goes on
    assert share_out(torch.tensor([1.0, 0, 0, 0]), 10, 4).tolist() == [4, 2, 2, 2]      # no claim left: alike
    assert share_out(torch.zeros(3), 5, 4).tolist() == [2, 2, 1]


@pytest.mark.parametrize("tile", range(4))
@pytest.mark.parametrize("score", ["count", "mass"])
def test_a_planted_object_gives_its_tile_the_largest_budget(tile, score):
    attn0 = torch.full((8, 8), 0.2 / 64)
    row, col = 4 * (tile // 2) + 1, 4 * (tile % 2) + 1
    attn0[row:row + 2, col:col + 2] += 0.2
    budgets = allocate_budget(attn0.flatten(), GRID, 64, 0.5, score)
    assert budgets[1:].argmax() == tile and (budgets[1:] == budgets[1 + tile]).sum() == 1 and budgets.sum() == 64


def test_the_release_counts_in_strips_and_loses_tokens():
    """Its tile 1 is the second quarter of raster rows: an object at top right (tile 1 of ours) is not in it."""
    attn0 = torch.full((8, 8), 1e-3)
    attn0[0:2, 4:8] = 0.1
    ours, theirs = (region_scores(attn0.flatten(), GRID, 0.5, "mass", released) for released in (False, True))
    assert ours.argmax() == 1 and theirs.argmax() == 0
    lost = [
        k - int(allocate_budget(attention(seed, GRID), GRID, k, as_released=True).sum()) for seed in range(5)
        for k in (16, 33, 64)
    ]
    assert all(0 <= n < 4 for n in lost) and max(lost) > 0


@pytest.mark.parametrize("options, said", [({"budget": 0}, "1 to 320"), ({"budget": 321}, "1 to 320"), ({"alpha": 1.5}, "0 to 1"),
                                           ({"alpha": math.nan}, "0 to 1"), ({"score": "area"}, "count or mass")])
def test_bad_settings(options, said):
    with pytest.raises(ValueError, match=said):
        allocate_budget(attention(0, GRID), GRID, **{"budget": 64, **options})
    if "budget" not in options:
        with pytest.raises(ValueError, match=said):
            HiRED(**options)


# -- selection ----------------------------------------------------------------------------------------------------

def loop_select(tokens, budgets, layer=-1):
    """The plain loop: in each view, the tokens with most summed CLS attention, then raster order."""
    chosen = []
    for b in range(len(budgets)):
        own = []
        for view, count in enumerate(budgets[b].tolist()):
            score = [
                sum(
                    float(tokens.features.cls_attn[b, view, layer, h, j])
                    for h in range(tokens.features.cls_attn.shape[3])) for j in range(tokens.grid.tokens_per_view)
            ]
            best = sorted(range(len(score)), key=lambda j: (-score[j], j))[:count]
            own += sorted(view * tokens.grid.tokens_per_view + j for j in best)
        chosen.append(own)
    return chosen


@pytest.mark.parametrize("grid", GRIDS[:3])
@pytest.mark.parametrize("budget", [20, 47])
def test_selection_against_a_loop(grid, budget):
    tokens, policy = random_tokens(4, grid=grid), HiRED(score="mass")
    assert policy.select(tokens, budget).tolist() == loop_select(tokens, policy.budgets(tokens, budget))


def test_heads_are_summed():
    tokens = random_tokens(1)
    assert torch.allclose(
        cls_attention(tokens.features, 1)[1, 2],
        tokens.features.cls_attn[1, 2, 1, 0] + tokens.features.cls_attn[1, 2, 1, 1])


def test_the_release_goes_one_scene_at_a_time():
    tokens = random_tokens(0, batch=5)
    with pytest.raises(ValueError, match="one by one"):
        HiREDReleased().select(tokens, 45)
    kept = HiREDReleased().select(random_tokens(0, batch=1), 45)
    assert 45 - 4 < kept.shape[1] <= 45


# -- wrong versions -----------------------------------------------------------------------------------------------

class AcrossViews(HiRED):
    """Budgets in proportion to raw attention: every view's softmax sums to one, so all come out alike."""
    def budgets(self, tokens, budget):
        mass = cls_attention(tokens.features, 0).sum(-1)
        return torch.stack([share_out(row, budget, tokens.grid.tokens_per_view) for row in mass])


class FinalLayerAllocates(HiRED):
    """Allocates by the last layer, whose hot spots stand in the background."""
    def __init__(self):
        super().__init__(allocation_layer=-1)


class ByScore(HiRED):
    """Hands the tokens over in the order of their score."""
    def select(self, tokens, budget):
        index = super().select(tokens, budget)
        score = cls_attention(tokens.features, -1).flatten(1).gather(1, index)
        return index.gather(1, score.argsort(descending=True))


def planted(seed):
    """An object in tile 2 by the first layer; a register-like hot spot in tile 0 by the last."""
    tokens = random_tokens(seed)
    first, last = (torch.full((2, 5, 8, 8), 0.2 / 64) for _ in range(2))
    first[:, 0, 5:7, 1:3] += 0.2
    last[:, 0, 1:3, 1:3] += 0.2
    return with_attention(with_attention(tokens, 0, first.flatten(2)), -1, last.flatten(2))


def finds_the_object(policy) -> bool:
    """Tile 2 (view 3) gets the largest budget of all tiles, and the tokens come in raster order."""
    tokens = planted(0)
    budgets = policy.budgets(tokens, 64)[0, 1:]
    try:
        index = keep(tokens, policy, 64).index
    except ValueError:
        return False
    return int(budgets.argmax()) == 2 and int((budgets == budgets.max()).sum()) == 1 and bool(
        (index.diff(dim=1) > 0).all())


def test_wrong_versions_are_rejected():
    assert finds_the_object(HiRED()) and finds_the_object(HiRED(score="mass"))
    assert not any(finds_the_object(wrong()) for wrong in (AcrossViews, FinalLayerAllocates, ByScore))


def test_even_a_full_budget_is_not_full_as_released():
    """A strip with most marks is cut at one view's tokens, and nobody gets the rest."""
    attn0 = torch.full((64,), 1e-3)
    attn0[:16] = 0.05
    assert allocate_budget(attn0, GRID, 320, as_released=True).sum() < 320 == allocate_budget(attn0, GRID, 320).sum()
