"""Every dropper and merger: exactly the budget, in order, really smaller caches, and full budget changes nothing."""
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from frugal.core.budgets import BudgetTooSmall
from frugal.models.mini_vlm import Grid, VisualTokens, random_vlm
from frugal.token_dropping.baselines import Full, OverviewOnly, RandomDrop, SpatialPool, StratifiedRandom, UniformGrid, blocks, centres
from frugal.token_dropping.hired import HiRED
from frugal.token_dropping.keeping import gather, keep, num_kept, prefill, read, top_per_view
from frugal.token_dropping.prumerge import PruMerge, PruMergePlus
from tests.token_dropping.toys import GRID, random_tokens

DROPPERS = [RandomDrop, StratifiedRandom, UniformGrid, HiRED]
MERGERS = [SpatialPool, PruMerge, PruMergePlus]
ids = {"ids": lambda cls: cls.name}


@pytest.fixture(scope="module")
def vlm():
    return random_vlm()


def tokens_for(vlm, seed=0, batch=2):
    return random_tokens(seed, batch, vlm.grid, vlm.lm.config.hidden_size)


@pytest.mark.parametrize("cls", DROPPERS + MERGERS, **ids)
@given(budget=st.integers(10, 320), seed=st.integers(0, 20))
@settings(max_examples=25, deadline=None)
def test_keeps_exactly_the_budget(cls, budget, seed):
    tokens = random_tokens(seed)
    kept = keep(tokens, cls(), budget)
    assert kept.embeds.shape == (2, budget, 16) and kept.index.shape == (2, budget)
    if cls in DROPPERS:
        assert (kept.index.diff(dim=1) > 0).all() and kept.index.min() >= 0 and kept.index.max() < 320
        assert torch.equal(kept.embeds[1], tokens.embeds[1][kept.index[1]])


@pytest.mark.parametrize("cls", [Full, *DROPPERS, *MERGERS], **ids)
def test_a_full_budget_is_the_full_model(cls, vlm):
    tokens = tokens_for(vlm)
    prompt = torch.tensor([[3, 5, 7]]).expand(2, -1)
    plain = vlm.lm(prompt, vlm.prefill(tokens.embeds))
    assert torch.equal(vlm.lm(prompt, prefill(vlm, tokens, cls(), 1.0)), plain)


@pytest.mark.parametrize("cls", [*DROPPERS, *MERGERS], **ids)
def test_the_decoder_never_sees_what_was_dropped(cls, vlm):
    """K slots in every layer, bytes in proportion, and the tokens that went may have been anything."""
    tokens = tokens_for(vlm)
    full, cache = vlm.prefill(tokens.embeds), prefill(vlm, tokens, cls(), 0.2)
    assert all(cache.num_held(layer).tolist() == [64, 64] for layer in range(vlm.lm.config.num_layers))
    assert cache.num_bytes == full.num_bytes // 5
    if cls in DROPPERS:
        kept = keep(tokens, cls(), 0.2).index
        scrambled = VisualTokens(torch.full_like(tokens.embeds, torch.nan), tokens.features, tokens.grid)
        scrambled.embeds.scatter_(1, kept[..., None].expand(-1, -1, tokens.embeds.shape[2]),
                                  keep(tokens, cls(), 0.2).embeds)
        again = prefill(vlm, scrambled, cls(), 0.2)
        assert all(torch.equal(a, b) for a, b in zip(cache.keys + cache.values, again.keys + again.values))


def test_decoder_positions_are_those_of_the_full_prompt_or_contiguous(vlm):
    tokens = tokens_for(vlm)
    kept, prompt = keep(tokens, HiRED(), 0.2), torch.tensor([[3, 5, 7]]).expand(2, -1)
    own = read(vlm, kept, vlm.grid)
    assert own.positions[1][1, 0].tolist() == kept.index[1].tolist() and own.num_seen.tolist() == [320, 320]
    by_hand = vlm.lm.new_cache(2)
    both = torch.cat([kept.embeds, vlm.lm.weights["embed"][prompt]], 1)
    places = torch.cat([kept.index, torch.tensor([[320, 321, 322]] * 2)], 1)
    expected = vlm.lm.run(None, by_hand, embeds=both, positions=places).logits[:, -1]
    assert torch.allclose(vlm.lm(prompt, own)[:, -1], expected, atol=1e-4)
    renumbered = read(vlm, kept, vlm.grid, "contiguous")
    assert renumbered.positions[0][0, 0].tolist() == list(range(64)) and renumbered.num_seen.tolist() == [64, 64]
    merged = read(vlm, keep(tokens, PruMerge(), 0.2), vlm.grid)
    places = merged.positions[0][0, 0]
    assert (places.diff() >= 0).all() and int((places.diff() == 0).sum()) == 5         # each view's extra token
    with pytest.raises(ValueError, match="original or contiguous"):
        read(vlm, kept, vlm.grid, "shuffled")


def positions_after(tokens, index, table):
    """The planted mistake: positions added behind the drop, by place in the shorter prompt."""
    bare = tokens.embeds - table
    return bare.gather(1, index[..., None].expand(-1, -1, bare.shape[2])) + table[:index.shape[1]]


def test_positions_travel_with_their_tokens():
    tokens, table = random_tokens(3), torch.randn(320, 16, generator=torch.Generator().manual_seed(1))
    tokens = VisualTokens(tokens.embeds + table, tokens.features, tokens.grid)
    index = HiRED().select(tokens, 64)
    right, wrong = gather(tokens, index).embeds, positions_after(tokens, index, table)
    assert torch.equal(right[0, 40], tokens.embeds[0, index[0, 40]])
    assert not torch.allclose(right[0, 40], wrong[0, 40]) and torch.allclose(
        wrong[0, 0] - table[0], tokens.embeds[0, index[0, 0]] - table[index[0, 0]], atol=1e-5)


# -- controls -----------------------------------------------------------------------------------------------------

def test_random_is_seeded_and_differs_between_scenes():
    tokens = random_tokens(batch=3)
    one = RandomDrop(seed=1).select(tokens, 64)
    assert torch.equal(one,
                       RandomDrop(seed=1).select(tokens, 64)) and not torch.equal(one,
                                                                                  RandomDrop(seed=2).select(tokens, 64))
    assert not torch.equal(one[0], one[1])
    counts = np.stack([np.bincount(RandomDrop(seed=s).select(tokens, 64).flatten(), minlength=320)
                       for s in range(200)]).sum(0)
    assert abs(counts / 600 - 0.2).max() < 0.08                                   # uniform over all places
    views = StratifiedRandom(seed=1).select(tokens, 63) // 64
    assert [[int((row == view).sum()) for view in range(5)] for row in views] == [[13, 13, 13, 12, 12]] * 3


def test_overview_only_has_one_view():
    tokens = random_tokens()
    assert OverviewOnly().select(tokens, 64)[1].tolist() == list(range(64))
    assert OverviewOnly().select(tokens, 16)[0].tolist() == centres(GRID, 16) and max(centres(GRID, 16)) < 64
    with pytest.raises(ValueError, match="the overview has 64"):
        keep(tokens, OverviewOnly(), 0.4)


def test_uniform_grid_is_every_second_row_and_column():
    index = UniformGrid().select(random_tokens(), 80)[0].view(5, 16)
    assert torch.equal(index[2] - 128, torch.tensor([8 * r + c for r in (1, 3, 5, 7) for c in (1, 3, 5, 7)]))


@given(rows=st.integers(1, 9), cols=st.integers(1, 9), data=st.data())
@settings(max_examples=80, deadline=None)
def test_blocks_cover_each_cell_once(rows, cols, data):
    count = data.draw(st.integers(1, rows * cols))
    found = blocks(rows, cols, count)
    assert len(found) == count and sorted(cell for block in found for cell in block) == list(range(rows * cols))
    assert all(len(b) == len({c // cols for c in b}) * len({c % cols for c in b}) for b in found)       # rectangles
    grid = Grid(2, 2, rows, cols)
    places = centres(grid, count)
    assert len(set(places)) == count and places == sorted(places)


@pytest.mark.parametrize("budget, side", [(80, 2), (20, 4)])
def test_pooling_against_a_double_loop(budget, side):
    tokens = random_tokens(2)
    pooled = keep(tokens, SpatialPool(), budget).embeds.view(2, 5, 8 // side, 8 // side, 16)
    grid = tokens.embeds.view(2, 5, 8, 8, 16)
    for view in range(5):
        for r in range(8 // side):
            for c in range(8 // side):
                block = [grid[1, view, side * r + i, side * c + j] for i in range(side) for j in range(side)]
                assert torch.allclose(pooled[1, view, r, c], sum(block) / side**2, atol=1e-6)


# -- bad input ----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("budget", [0, 0.0, -0.2, -3, 1.5, 321, math.nan, math.inf, True], ids=str)
@pytest.mark.parametrize("cls", [RandomDrop, HiRED, SpatialPool, PruMerge, OverviewOnly], **ids)
def test_a_bad_budget_is_one_clear_error(cls, budget):
    with pytest.raises(ValueError, match=r"budget .*\(0, 1\] or a whole number from 1 to 320"):
        keep(random_tokens(), cls(), budget)


@pytest.mark.parametrize("cls, need", [(RandomDrop, 5), (HiRED, 5), (SpatialPool, 5), (PruMerge, 10)], **{"ids": str})
def test_a_budget_below_one_token_a_view_is_refused(cls, need):
    with pytest.raises(BudgetTooSmall, match=f"needs {need} .5 views.; give at least"):
        keep(random_tokens(), cls(), need - 1)
    assert keep(random_tokens(), cls(), need).embeds.shape[1] == need
    with pytest.raises(BudgetTooSmall):
        num_kept(0.01, GRID)


def test_a_wrong_choice_is_refused():
    tokens = random_tokens()
    for index in ([[5, 3]] * 2, [[3, 3]] * 2, [[0, 320]] * 2, [[-1, 2]] * 2):
        with pytest.raises(ValueError, match="ascending and each once"):
            gather(tokens, torch.tensor(index))
    with pytest.raises(ValueError, match="with the parentheses"):
        keep(tokens, HiRED, 0.2)


@given(seed=st.integers(0, 50), data=st.data())
@settings(max_examples=30, deadline=None)
def test_top_per_view_against_a_sort(seed, data):
    score = torch.randint(0, 4, (2, 3, 6), generator=torch.Generator().manual_seed(seed)).float()       # many ties
    counts = torch.tensor([data.draw(st.permutations([0, 2, 6])), data.draw(st.permutations([1, 3, 4]))])
    found = top_per_view(score, counts)
    for b in range(2):
        expected = [6 * p + j for p in range(3)
                    for j in sorted(sorted(range(6), key=lambda j: (-float(score[b, p, j]), j))[:int(counts[b, p])])]
        assert found[b].tolist() == expected
