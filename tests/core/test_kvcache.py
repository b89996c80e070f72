"""Slots, positions and bytes: eviction frees memory, ragged batches stay apart, renumbering is a rotation."""
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from frugal.core.kvcache import KVCache
from frugal.core.lm import random_lm

LM2 = random_lm()


def filled(batch=1, count=12, seed=0, **options):
    cache = LM2.new_cache(batch, **options)
    ids = torch.randint(0, 256, (batch, count), generator=torch.Generator().manual_seed(seed))
    LM2(ids, cache)
    return cache, ids


def slot_bytes(cache):
    c = cache.config
    return c.num_layers * c.num_kv_heads * (2 * c.head_dim * 4 + 8)


def test_num_bytes_sums_real_storage_and_eviction_frees_it():
    cache, _ = filled(count=40)
    assert cache.num_bytes == 40 * slot_bytes(cache)
    for layer in range(2):
        cache.evict(layer, torch.arange(10).expand(1, 2, -1))
    assert cache.num_bytes == 10 * slot_bytes(cache)
    assert [side.untyped_storage().nbytes() for side in cache.keys] == [10 * 2 * 8 * 4] * 2


def test_growth_reserves_and_counts_it():
    cache, _ = filled(count=5, growth=16)
    LM2(torch.tensor([[1]]), cache)
    assert cache.keys[0].shape[2] == 21 and cache.num_bytes == 21 * slot_bytes(cache)


@given(count=st.integers(3, 20), seed=st.integers(0, 50), data=st.data())
@settings(max_examples=40, deadline=None)
def test_attention_over_kept_slots_equals_attention_with_the_rest_masked(count, seed, data):
    """The oracle may mask (it is a test): keep a random set per head, compare with -inf on the others."""
    cache, ids = filled(count=count, seed=seed)
    kept = data.draw(st.integers(1, count))
    slots = torch.stack([torch.randperm(count, generator=torch.Generator().manual_seed(seed + h))[:kept].sort().values
                         for h in range(2)])[None]
    whole = cache.copy()
    for layer in range(2):
        cache.evict(layer, slots)
    q, k, v = torch.randn(1, 1, 6, 8), torch.randn(1, 1, 2, 8), torch.randn(1, 1, 2, 8)
    position = torch.tensor([[count]])
    got = cache.attend(0, q, k, v, position)[0, 0]
    whole.append(0, k, v, position)
    for h in range(6):
        keys, values = whole.keys[0][0, h // 3, :count + 1], whole.values[0][0, h // 3, :count + 1]
        logits = keys @ q[0, 0, h] / 8 ** 0.5
        gone = torch.ones(count + 1, dtype=torch.bool)
        gone[slots[0, h // 3]] = gone[count] = False
        assert torch.allclose(logits.masked_fill(gone, -torch.inf).softmax(0) @ values, got[h], atol=1e-5)


@given(count=st.integers(3, 16), seed=st.integers(0, 50))
@settings(max_examples=40, deadline=None)
def test_filling_one_hole_keeps_the_same_slots_as_gathering(count, seed):
    one, _ = filled(batch=2, count=count, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    hole = torch.randint(0, count, (2, 2, 1), generator=generator)
    slots = torch.arange(count).expand(2, 2, -1)
    slots = slots[slots != hole].view(2, 2, -1)
    want = one.positions[0][:, :, :count].gather(2, slots)
    keys = one.keys[0][:, :, :count].gather(2, slots[..., None].expand(-1, -1, -1, 8))
    storage = one.keys[0].data_ptr()
    one.evict(0, slots)
    assert one.keys[0].data_ptr() == storage                     # in place: a step costs one slot
    order = one.positions[0][:, :, :count - 1].sort(-1)
    assert torch.equal(order.values, want)
    got = one.keys[0][:, :, :count - 1].gather(2, order.indices[..., None].expand(-1, -1, -1, 8))
    assert torch.equal(got, keys)


def test_ragged_batch_equals_its_sequences():
    lengths, caches, alone = [3, 9, 6], [], []
    for i, n in enumerate(lengths):
        cache, _ = filled(count=n, seed=i)
        alone.append(cache.copy())
        caches.append(cache)
    batch = KVCache.stack(caches, reserve=2)
    assert batch.num_held(0).tolist() == lengths and batch.keys[0].shape[2] == 11
    new = torch.tensor([[5], [6], [7]])
    together = [LM2(new, batch), LM2(new, batch), LM2(new, batch)]         # the third step must grow the storage
    for i, cache in enumerate(alone):
        for step in together:
            assert torch.allclose(step[i:i + 1], LM2(new[i:i + 1], cache), atol=1e-4)


def test_select_and_copy_are_independent():
    cache, _ = filled(batch=3, count=6)
    one, copy = cache.select([2]), cache.copy()
    before = copy.keys[0].clone()
    LM2(torch.tensor([[1]]), one)
    LM2(torch.tensor([[1]] * 3), cache)
    assert one.num_held(0).tolist() == [7] and torch.equal(copy.keys[0], before)
    assert torch.equal(one.keys[0][0, :, :6], before[2])


def test_evicting_one_sequence_leaves_the_others():
    cache, _ = filled(batch=2, count=8)
    before = cache.keys[0][1].clone()
    cache.evict(0, torch.arange(3).expand(1, 2, -1), sequence=0)
    assert cache.num_held(0).tolist() == [3, 8] and torch.equal(cache.keys[0][1], before)


def test_renumbered_keys_equal_a_fresh_prefill_of_what_is_kept():
    """With a window cut at the front, layer 0 keys do not depend on the past, so they must equal a fresh prefill's."""
    cache, ids = filled(count=10, positions="renumbered")
    cache.evict(0, torch.arange(4, 10).expand(1, 2, -1))
    fresh = LM2.new_cache()
    LM2(ids[:, 4:], fresh)
    assert torch.allclose(cache.keys[0], fresh.keys[0], atol=1e-5)
    assert cache.positions[0][0, 0].tolist() == [4, 5, 6, 7, 8, 9]
    assert cache.next_positions(1).tolist() == [[6]]


def test_a_wrong_renumbering_is_rejected():
    cache, ids = filled(count=10, positions="renumbered")
    cache._renumber = lambda *a: None                              # forgets to rotate
    cache.evict(0, torch.arange(4, 10).expand(1, 2, -1))
    fresh = LM2.new_cache()
    LM2(ids[:, 4:], fresh)
    assert not torch.allclose(cache.keys[0], fresh.keys[0], atol=1e-2)


def test_original_positions_are_per_head():
    cache, _ = filled(count=6)
    cache.evict(1, torch.tensor([[[0, 5], [2, 3]]]))
    assert cache.positions[1].tolist() == [[[0, 5], [2, 3]]]
    assert cache.next_positions(1).tolist() == [[6]]


def test_side_arrays_are_cut_with_the_slots_and_zero_for_new_ones():
    cache, _ = filled(count=5)
    cache.aux[0]["mass"] = torch.arange(10.).view(1, 2, 5)
    cache.evict(0, torch.tensor([[[1, 4], [0, 2]]]))
    assert cache.aux[0]["mass"].tolist() == [[[1, 4], [5, 7]]]
    cache.evict(1, torch.tensor([[[1, 4], [0, 2]]]))
    LM2(torch.tensor([[3]]), cache)
    assert cache.aux[0]["mass"][0, :, 2].tolist() == [0, 0]


@pytest.mark.parametrize("options, said", [({"positions": "new"}, "'renumbered'"), ({"batch": 0}, "at least 1")])
def test_bad_options(options, said):
    with pytest.raises(ValueError, match=said):
        KVCache(LM2.config, LM2.rope, **options)


def test_num_seen_goes_on_after_eviction():
    cache, _ = filled(batch=2, count=4)
    cache.evict(0, torch.arange(2).expand(2, 2, -1))
    cache.evict(1, torch.arange(2).expand(2, 2, -1))
    LM2(torch.tensor([[1], [2]]), cache)
    assert np.array_equal(cache.num_seen, [5, 5]) and cache.num_held(1).tolist() == [3, 3]
