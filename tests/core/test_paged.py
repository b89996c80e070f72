"""Paged memory: pages are conserved and owned once, and any history of frees equals a fresh cache over the same text."""
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from frugal.core.lm import random_lm
from frugal.core.paged import OutOfPages, PageAllocator, PagedWorkingMemory

LM = random_lm(seed=3)
EXACT = random_lm(seed=3, dtype=torch.float64)          # its attention is sharp: fp32 rounding alone reaches 3e-5


def memory(lm=LM, **options) -> PagedWorkingMemory:
    return PagedWorkingMemory(lm.config, lm.rope, dtype=lm.dtype, **options)


def ids(count: int, seed: int = 0, batch: int = 1) -> torch.Tensor:
    return torch.randint(0, 256, (batch, count), generator=torch.Generator().manual_seed(seed))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 9)), max_size=40), st.integers(0, 30))
def test_pages_are_conserved_and_owned_once(steps, num_pages):
    allocator, owned = PageAllocator(num_pages), []
    for take, count in steps:
        if take and count > allocator.num_free:
            with pytest.raises(OutOfPages):
                allocator.take(count)
        elif take:
            owned += allocator.take(count)
        else:
            allocator.free(owned[:count])
            del owned[:count]
        assert len(set(owned)) == len(owned) == allocator.num_used
        assert allocator.num_free + allocator.num_used == allocator.num_pages == num_pages


def test_a_page_is_not_freed_twice():
    allocator = PageAllocator(4)
    page, other = allocator.take(2)
    allocator.free([page])
    for bad in ([page], [other, other], [other, 3], [99]):
        with pytest.raises(ValueError, match="not in use"):
            allocator.free(bad)
    assert allocator.num_used == 1


@pytest.mark.parametrize("page_size", [1, 4, 16])
@pytest.mark.parametrize("batch", [1, 3])
def test_chunked_paged_forward_equals_one_plain_forward(page_size, batch):
    tokens, cache = ids(45, batch=batch), memory(batch=batch, page_size=page_size, num_pages=2)
    parts = [LM(chunk, cache) for chunk in tokens.split([20, 1, 1, 17, 6], dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), LM(tokens), atol=1e-4, rtol=0)
    assert cache.num_seen.tolist() == cache.num_held(0).tolist() == [45] * batch


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_any_history_of_truncated_tails_equals_a_fresh_prefill(data):
    """Free a span, feed what was behind it again, any number of times: keys, values and positions are those of the text held."""
    cache, text = memory(EXACT, num_pages=1), []
    for round_ in range(data.draw(st.integers(1, 5))):
        new = ids(data.draw(st.integers(1, 12)), seed=round_)[0].tolist()
        start = data.draw(st.integers(0, len(text)))
        stop = data.draw(st.integers(start, len(text)))
        tail = text[stop:] if stop > start else []
        if stop > start:
            cache.truncate(start)
            text = text[:start]
        EXACT(torch.tensor([tail + new]), cache)
        text += tail + new
        assert cache.pages.num_used == len(text) == len(set(cache.tables[0]))
        assert cache.pages.num_free + cache.pages.num_used == cache.pages.num_pages
    fresh = memory(EXACT)
    EXACT(torch.tensor([text]), fresh)
    assert cache.positions().tolist() == list(range(len(text)))
    for mine, theirs in zip(cache.pool, fresh.pool):
        torch.testing.assert_close(mine[:, cache.slots[0]], theirs[:, fresh.slots[0]], atol=1e-5, rtol=0)


def test_freeing_a_span_leaves_the_others_untouched():
    cache = memory()
    LM(ids(30), cache)
    before = cache.pool[1][:, cache.slots[0]].clone()
    assert cache.free_span(5, 12) == 7
    assert torch.equal(cache.pool[1][:, cache.slots[0]], torch.cat([before[:, :5], before[:, 12:]], dim=1))
    assert cache.positions().tolist() == [*range(5), *range(12, 30)]
    assert cache.next_positions(2).tolist() == [[30, 31]]                       # a hole stays a hole


def test_renumbered_keys_are_the_keys_at_their_new_places():
    """In the first layer a key depends on its token and position alone, so turning it must equal computing it there."""
    cache, tokens = memory(), ids(20)
    LM(tokens, cache)
    cache.free_span(3, 9)
    cache.renumber()
    fresh = memory()
    LM(torch.cat([tokens[:, :3], tokens[:, 9:]], dim=1), fresh)
    torch.testing.assert_close(cache.pool[0][:, cache.slots[0]], fresh.pool[0][:, fresh.slots[0]], atol=1e-5, rtol=0)
    assert not torch.allclose(cache.pool[1][:, cache.slots[0]], fresh.pool[1][:, fresh.slots[0]], atol=1e-3)   # content is stale


def test_bytes_are_those_of_the_storage_and_compact_gives_them_back():
    cache = memory(num_pages=8)
    LM(ids(200), cache)
    config = LM.config
    token_bytes = config.num_layers * 2 * config.num_kv_heads * config.head_dim * 4 + 8
    assert cache.page_bytes == token_bytes and cache.used_bytes == 200 * token_bytes
    assert cache.num_bytes == cache.pages.num_pages * token_bytes
    cache.truncate(40)
    assert cache.num_bytes > 150 * token_bytes                                  # the pool keeps its size ...
    released = cache.compact()
    assert cache.num_bytes == cache.used_bytes == 40 * token_bytes and released > 0
    torch.testing.assert_close(LM(ids(1, seed=5), cache), LM(torch.cat([ids(200)[:, :40], ids(1, seed=5)], 1))[:, -1:],
                               atol=1e-4, rtol=0)


def test_a_page_of_many_tokens_frees_whole_pages_only():
    cache = memory(page_size=4)
    LM(ids(22), cache)
    with pytest.raises(ValueError, match="cuts a page of 4"):
        cache.free_span(2, 8)
    assert cache.free_span(4, 12) == 2
    assert cache.truncate(6) == 2                                               # 14 slots held 4 pages; 6 slots hold 2
    assert cache.pages.num_used == 2


def test_a_pool_with_a_bound_refuses_before_it_writes():
    cache = memory(num_pages=4, max_pages=10)
    LM(ids(10), cache)
    with pytest.raises(OutOfPages, match="10 allowed"):
        LM(ids(1), cache)
    assert cache.num_held(0).tolist() == [10] and cache.num_seen.tolist() == [10]


def test_a_broken_off_pass_leaves_nothing_behind(monkeypatch):
    cache, tokens = memory(), ids(12)
    LM(tokens[:, :8], cache)

    def fail(*args):
        raise RuntimeError("stop")
    with monkeypatch.context() as patch:
        patch.setattr(LM, "fusable", False)                                         # so that `_mlp` runs
        patch.setattr(LM, "_mlp", fail)
        with pytest.raises(RuntimeError, match="stop"):
            LM(tokens[:, 8:], cache)
    torch.testing.assert_close(LM(tokens[:, 8:], cache), LM(tokens)[:, 8:], atol=1e-4, rtol=0)
    assert cache.pages.num_used == 12


@pytest.mark.parametrize("start,stop", [(-1, 3), (4, 2), (0, 99)])
def test_a_span_outside_is_named(start, stop):
    cache = memory()
    LM(ids(9), cache)
    with pytest.raises(ValueError, match=f"span {start}..{stop} is outside 0..9"):
        cache.free_span(start, stop)


def test_bad_sizes_are_refused():
    with pytest.raises(ValueError, match="page_size is 0"):
        memory(page_size=0)
    with pytest.raises(ValueError, match="at most max_pages, 3"):
        memory(num_pages=4, max_pages=3)
