"""Sequence ids: trie, beam search against brute force, cache; single ids; ranking measures against loops."""
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from frugal.core.kvcache import KVCache
from frugal.visual_tokenizers import setrec_measure as measure
from frugal.visual_tokenizers.setrec import SetShape
from frugal.visual_tokenizers.setrec_sequence import CODEBOOK, SequenceIds, SingleIds, Trie, item_codes

SHAPE = SetShape(width=16, num_blocks=2, num_heads=2, mlp=32)
ITEMS = 24


def toy_codes():
    """24 items: 2 first codes, some beginnings shared by many, some by one."""
    draw = torch.Generator().manual_seed(3)
    codes = torch.randint(3, (200, 4), generator=draw)
    codes[:, 0] %= 2
    return codes.unique(dim=0)[torch.randperm(len(codes.unique(dim=0)), generator=draw)[:ITEMS]] * 7


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = SequenceIds(toy_codes(), SHAPE).eval()
    with torch.no_grad():
        for p in (model.embed.weight, model.positions, model.heads.weight):
            p.mul_(5)
    return model


def brute_force(model, history):
    """Log-probability of every item: a pass over the history and the item's codes, no cache, no trie."""
    found = []
    for item in range(model.num_items):
        codes = model.codes[torch.tensor([*history[-12:], item])].flatten()[None]
        x = torch.cat([model.start[None], model.embedded(codes[:, :-1])], 1)
        states = model.trunk(x, causal=True)[0, -4:]
        found.append(sum(float(model.log_probs(states[j], j)[codes[0, -4 + j]]) for j in range(4)))
    return torch.tensor(found)


@pytest.mark.parametrize("history", [[3], [5, 1, 9], list(range(14))])
def test_a_beam_as_wide_as_the_trie_is_brute_force(model, history):
    with torch.no_grad():
        scores = brute_force(model, history)
    scores[history] = -math.inf
    found = model.recommend(torch.tensor([history]), beam=200, count=8)
    best = scores.sort(descending=True)
    assert found.items[0].tolist() == best.indices[:8].tolist()
    assert torch.allclose(found.log_probs[0], best.values[:8], atol=1e-4)


def test_a_cache_that_does_not_follow_its_beams_is_noticed(model, monkeypatch):
    with torch.no_grad():
        scores = brute_force(model, [5, 1, 9])
    right = KVCache.select
    monkeypatch.setattr(KVCache, "select", lambda self, rows: right(self, [rows[0]] * len(rows)))
    found = model.recommend(torch.tensor([[5, 1, 9]]), beam=200, count=8)
    assert not torch.allclose(found.log_probs[0], scores[found.items[0]], atol=1e-3)


def test_a_batch_is_its_sequences_and_beam_one_is_greedy(model):
    history = torch.tensor([[3, 4, 5], [7, 8, 9]])
    both = model.recommend(history, beam=6, count=4)
    for row in range(2):
        alone = model.recommend(history[row:row + 1], beam=6, count=4)
        assert torch.equal(both.items[row], alone.items[0]) and torch.allclose(both.log_probs[row], alone.log_probs[0], atol=1e-4)
    one = model.recommend(history, beam=1, count=3)
    assert (one.items[:, 0] >= 0).all() and (one.items[:, 1:] == -1).all()
    with torch.no_grad():
        for row in range(2):                                            # the first code is the likeliest one there is
            codes = model.codes[history[row]].flatten()[None]
            state = model.trunk(torch.cat([model.start[None], model.embedded(codes)], 1), causal=True)[0, -1]
            known = model.codes[:, 0].unique()
            assert model.codes[one.items[row, 0], 0] == known[model.log_probs(state, 0)[known].argmax()]


def test_a_narrow_beam_can_lose_the_best_item(model):
    """The local optimum the paper speaks of: over many histories beam 1 finds less than the best item, a wide one never."""
    lost = {1: 0, 200: 0}
    with torch.no_grad():
        for first in range(ITEMS):
            history = [first, (first * 5 + 1) % ITEMS]
            scores = brute_force(model, history)
            scores[history] = -math.inf
            for beam in lost:
                lost[beam] += int(model.recommend(torch.tensor([history]), beam, 1).items[0, 0] != scores.argmax())
    assert lost[200] == 0 < lost[1]


@settings(max_examples=15, deadline=None)
@given(beam=st.integers(1, 30), length=st.integers(1, 6), seed=st.integers(0, 99), data=st.data())
def test_what_is_found_exists_is_new_is_allowed_and_sorted(beam, length, seed, data):
    torch.manual_seed(0)
    model, draw = SequenceIds(toy_codes(), SHAPE).eval(), torch.Generator().manual_seed(seed)
    allowed = torch.tensor(data.draw(st.lists(st.booleans(), min_size=ITEMS, max_size=ITEMS)))
    allowed[0] = True
    history = torch.randint(ITEMS, (2, length), generator=draw)
    found = model.recommend(history, beam, 10, allowed)
    assert found.items.shape == (2, 10)
    for row in range(2):
        items = [i for i in found.items[row].tolist() if i >= 0]
        assert len(set(items)) == len(items) and not set(items) & set(history[row].tolist()) and allowed[items].all()
        assert (found.log_probs[row].diff()[:len(items) - 1] <= 1e-6).all() if len(items) > 1 else True


def test_trie_knows_every_item_and_no_other():
    codes = toy_codes()
    trie = Trie(codes)
    node = torch.zeros(ITEMS, dtype=torch.long)
    for level in range(4):
        node = trie.next[level][node, codes[:, level]]
    assert trie.item[node].tolist() == list(range(ITEMS))
    ends = sum(int((table >= 0).sum()) for table in trie.next[3:])
    assert ends == ITEMS and [len(t) for t in trie.next] == [1] + [len(codes[:, :j].unique(dim=0)) for j in (1, 2, 3)]


def test_item_codes_tell_all_items_apart_and_are_learned_from_warm_ones():
    draw = torch.Generator().manual_seed(0)
    text, cold = torch.randn(150, 8, generator=draw), torch.zeros(150, dtype=torch.bool)
    cold[::10] = True
    codes = item_codes(text, cold)
    assert len(codes.unique(dim=0)) == 150 and int(codes.max()) < CODEBOOK
    moved = text.clone()
    moved[cold] += 100.0                                                # other cold items: the codebooks stay
    assert torch.equal(item_codes(moved, cold)[~cold][:, :3], codes[~cold][:, :3])
    with pytest.raises(ValueError, match="items share three codes"):
        item_codes(torch.zeros(70, 8), torch.zeros(70, dtype=torch.bool))


@pytest.mark.parametrize("call, said", [
    (lambda m: m.recommend(torch.zeros(1, 0, dtype=torch.long)), "the history is empty"),
    (lambda m: m.recommend(torch.tensor([[ITEMS]])), r"items must be in 0\.\.23, got 24\.\.24"),
    (lambda m: m.recommend(torch.tensor([[1]]), beam=0), "beam must be at least 1, got 0"),
    (lambda m: SequenceIds(torch.tensor([[1, 2, 3, 64]]), SHAPE), r"codes must be in 0\.\.63, got 1\.\.64"),
    (lambda m: Trie(torch.tensor([[1, 2, 3, 4], [1, 2, 3, 4]])), "two items have the same codes"),
    (lambda m: SingleIds(5, SHAPE).scores(torch.tensor([[5]])), r"items must be in 0\.\.4, got 5\.\.5")])
def test_bad_input_is_one_clear_error(model, call, said):
    with pytest.raises(ValueError, match=said):
        call(model)


# -- losses and ranking measures ----------------------------------------------------------------------------------

def test_sequence_loss_is_the_brute_force_one(model):
    items = torch.tensor([[3, 4, 5, 6], [7, 8, 9, -1]])
    with torch.no_grad():
        parts = [brute_force(model, row[:t])[row[t]] for row in items.tolist() for t in (1, 2, 3) if row[t] >= 0]
        assert float(model.loss(items)[0]) == pytest.approx(-float(torch.stack(parts).mean()), rel=1e-4)


def test_single_ids_rank_by_the_next_state():
    torch.manual_seed(0)
    model, items = SingleIds(ITEMS, SHAPE).eval(), torch.tensor([[3, 4, 5, 6], [7, 8, 9, -1]])
    with torch.no_grad():
        scores = [model.scores(torch.tensor([row[:t]]))[0].log_softmax(0)[row[t]] for row in items.tolist() for t in (1, 2, 3) if row[t] >= 0]
        found = model.loss(items, torch.arange(ITEMS))[0]
    assert float(found) == pytest.approx(-float(torch.stack(scores).mean()), rel=1e-4)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 999))
def test_ranks_against_a_loop(seed):
    draw = np.random.default_rng(seed)
    cold = measure.catalogue().cold
    count = len(cold)
    scores = torch.from_numpy(draw.integers(0, 400, (2, count)).astype(np.float32))             # with many ties
    history = torch.from_numpy(draw.integers(0, count, (2, 5)))
    warm_one, cold_one = draw.choice(np.flatnonzero(~cold)), draw.choice(np.flatnonzero(cold))
    targets = torch.tensor([[warm_one, warm_one, cold_one]] * 2)
    history[(history == warm_one) | (history == cold_one)] = (set(range(9)) - {warm_one, cold_one}).pop()
    found = measure.ranks(scores, targets, history)
    for row in range(2):
        for column, allowed in enumerate((np.ones(count, bool), ~cold, cold)):
            own, seen = float(scores[row, targets[row, column]]), set(history[row].tolist())
            want = sum(1 for v in range(count) if allowed[v] and v not in seen and float(scores[row, v]) >= own)
            assert int(found[row, column]) == want


def test_hits_of_known_places():
    found = measure.hits(torch.tensor([[1, 10, 0], [3, 11, 2]]))
    assert found["recall_all"].tolist() == [1, 1] and found["recall_warm"].tolist() == [1, 0] and found["recall_cold"].tolist() == [0, 1]
    assert found["ndcg_all"].tolist() == [1.0, 0.5] and found["ndcg_cold"].tolist() == pytest.approx([0, 1 / math.log2(3)])
