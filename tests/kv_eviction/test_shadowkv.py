"""ShadowKV: the notes' oracles, and the wrong versions that must not pass them."""
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from frugal.core.budgets import BudgetTooSmall
from frugal.core.lm import LMConfig, random_lm
from frugal.core.rope import Rope
from frugal.kv_eviction.chunks import (Partition, build_landmarks, lowrank_keys, select_by_bounds, select_by_mass,
                                       select_chunks)
from frugal.kv_eviction.shadowkv import ShadowKVCache, Shadowkv

CONFIG = LMConfig(vocab_size=300, hidden_size=64, num_layers=2, num_heads=6, num_kv_heads=2, head_dim=16,
                  intermediate_size=64, max_positions=4096)
ROPE = Rope(16)
EXACT = Shadowkv(rank=32, sparse=1.0)                                        # full rank, every chunk selected


def tensors(num_tokens: int, seed: int = 0, batch: int = 1, rank: int = 32, noise: float = 0.0):
    """Queries, keys and values after RoPE; before RoPE the keys of both heads together have that rank, plus noise."""
    generator = torch.Generator().manual_seed(seed)
    q, v = (torch.randn(batch, num_tokens, heads, 16, generator=generator) for heads in (6, 2))
    plain = torch.randn(batch, num_tokens, rank, generator=generator) @ torch.randn(rank, 32, generator=generator) / rank**0.5
    plain = plain + noise * torch.randn(plain.shape, generator=generator)
    positions = torch.arange(num_tokens).expand(batch, -1)
    return ROPE.rotate(q, positions), ROPE.rotate(plain.unflatten(-1, (2, 16)), positions), v


def full_attention(q, k, v):
    q, k, v = q.transpose(1, 2), k.repeat_interleave(3, 2).transpose(1, 2), v.repeat_interleave(3, 2).transpose(1, 2)
    logits = (q @ k.mT / 4).masked_fill(torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).triu(1), float("-inf"))
    return (logits.softmax(-1) @ v).transpose(1, 2)


def filled(method: Shadowkv, q, k, v, prompt: int, steps=None, cls=ShadowKVCache, budget=None):
    """The cache after a prompt and the rest one by one (or in `steps` blocks), with the outputs of layer 0."""
    cache, out, first = cls(CONFIG, ROPE, q.shape[0], settings=method, budget=budget), [], 0
    for size in [prompt] + ([1] * (q.shape[1] - prompt) if steps is None else steps):
        positions, part = cache.next_positions(size), slice(first, first + size)
        out.append([cache.attend(layer, q[:, part], k[:, part], v[:, part], positions) for layer in range(2)][0])
        cache.advance(size)
        cache.finish_prompt()
        first += size
    return cache, torch.cat(out, 1)


# -- oracles -------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("method", [EXACT, Shadowkv(rank=999, sparse=9999, outliers=0), Shadowkv(rank=32, sparse=1.0, values="resident"),
                                    Shadowkv(rank=32, sparse=1.0, selection="quest", place="file"),
                                    Shadowkv(rank=32, sparse=1.0, selection="oracle", chunk=5), Shadowkv(local_chunks=100, rank=1)],
                         ids=["default", "no outliers", "resident", "quest", "oracle", "all local"])
@pytest.mark.parametrize("prompt, steps", [(90, None), (83, [5, 1, 6]), (3, None)])
def test_full_rank_and_every_chunk_is_full_attention(method, prompt, steps):
    q, k, v = tensors(prompt + 12, batch=2)
    _, out = filled(method, q, k, v, prompt, steps)
    torch.testing.assert_close(out, full_attention(q, k, v), atol=1e-4, rtol=1e-4)


def test_the_model_gives_full_logits_at_full_rank():
    lm = random_lm(head_dim=16)
    tokens = torch.randint(0, 256, (2, 100), generator=torch.Generator().manual_seed(0))
    cache = EXACT.make_cache(lm.config, lm.rope, batch=2)
    parts = [lm(tokens[:, :50], cache), lm(tokens[:, 50:80], cache)]
    cache.finish_prompt()
    parts += [lm(tokens[:, i:i + 1], cache) for i in range(80, 100)]
    torch.testing.assert_close(torch.cat(parts, 1), lm(tokens), atol=1e-3, rtol=1e-3)


@given(num_tokens=st.integers(2, 60), rank=st.integers(1, 40), seed=st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_eckart_and_young(num_tokens, rank, seed):
    keys = torch.randn(2, num_tokens, 24, generator=torch.Generator().manual_seed(seed))
    low, basis = lowrank_keys(keys, rank)
    assert low.shape[-1] == min(rank, num_tokens, 24)
    left_out = torch.linalg.svdvals(keys.double())[:, rank:].square().sum(-1).sqrt()
    torch.testing.assert_close((low @ basis - keys).norm(dim=(1, 2)).double(), left_out, atol=1e-4, rtol=1e-4)


@given(num_tokens=st.integers(1, 120), chunk=st.integers(1, 12), local=st.integers(0, 6), outliers=st.integers(0, 9))
@settings(max_examples=60, deadline=None)
def test_every_position_is_in_exactly_one_of_local_outlier_landmarked(num_tokens, chunk, local, outliers):
    split = Partition.of(num_tokens, chunk, local)
    keys = torch.randn(1, 2, num_tokens, 16)
    _, numbers, out = build_landmarks(keys[:, :, :split.old_tokens].unflatten(2, (-1, chunk)), min(outliers, split.num_old)) \
        if split.num_old else (None, torch.zeros(1, 2, 0, dtype=torch.int64), torch.zeros(1, 2, 0, dtype=torch.int64))
    for head in range(2):
        where = [c * chunk + i for c in numbers[0, head].tolist() + out[0, head].tolist() for i in range(chunk)]
        assert sorted(where + list(range(split.old_tokens, num_tokens))) == list(range(num_tokens))
    assert split.num_old == 0 or local * chunk <= split.num_local < (local + 1) * chunk


def test_outliers_are_the_chunks_a_mean_cannot_stand_for():
    """Brute force on one head, and a chunk whose one token points the other way."""
    keys = torch.randn(1, 1, 6, 4, 8, generator=torch.Generator().manual_seed(1)) * 0.1 + 1
    keys[0, 0, 4, 2] *= -1
    keys[0, 0, 1, 0] *= torch.tensor([-1, 1, 1, -1, 1, 1, 1, 1.0])
    means, numbers, outliers = build_landmarks(keys, 2)
    worst = [min(float(torch.cosine_similarity(t, c.mean(0), dim=0)) for t in c) for c in keys[0, 0]]
    assert outliers[0, 0].tolist() == sorted(sorted(range(6), key=lambda i: worst[i])[:2]) == [1, 4]
    assert numbers[0, 0].tolist() == [0, 2, 3, 5]
    torch.testing.assert_close(means[0, 0], keys[0, 0, [0, 2, 3, 5]].mean(1))


@given(seed=st.integers(0, 99), count=st.integers(1, 12))
@settings(max_examples=25, deadline=None)
def test_selection_against_a_loop(seed, count):
    generator = torch.Generator().manual_seed(seed)
    q, keys = torch.randn(1, 2, 3, 8, generator=generator), torch.randn(1, 2, 10, 4, 8, generator=generator)
    landmarks = keys.mean(3)
    for head in range(2):
        by_mean, by_bound, by_mass = torch.zeros(10), torch.full((10,), -1e9), torch.zeros(10)
        for row in q[0, head]:
            by_mean = torch.maximum(by_mean, (landmarks[0, head] @ row / 8**0.5).softmax(0))
            mass = (keys[0, head].flatten(0, 1) @ row / 8**0.5).softmax(0).view(10, 4).sum(1)
            by_mass = torch.maximum(by_mass, mass)
            bound = torch.maximum(keys[0, head].amax(1) * row, keys[0, head].amin(1) * row).sum(1)
            by_bound = torch.maximum(by_bound, bound)
        for scores, chosen in ((by_mean, select_chunks(q, landmarks, count)), (by_mass, select_by_mass(q, keys, count)),
                               (by_bound, select_by_bounds(q, keys.amin(3), keys.amax(3), count))):
            assert chosen[0, head].tolist() == sorted(scores.topk(min(count, 10)).indices.tolist())


@pytest.mark.parametrize("place", ["arena", "file"])
def test_carrying_values_over_changes_the_bytes_moved_and_nothing_else(place):
    q, k, v = tensors(130, batch=2)
    q[:, 100:] = q[:, 100:101] + 0.3 * q[:, 100:]                            # queries that resemble each other
    with_it, out = filled(Shadowkv(rank=16, sparse=32, place=place), q, k, v, 100)
    without, same = filled(Shadowkv(rank=16, sparse=32, place=place, carry_over=False), q, k, v, 100)
    assert torch.equal(out, same)
    wanted = 2 * 30 * 2 * 2 * 4                                              # layers, steps, sequences, heads, chunks
    assert without.meter.rows_read == wanted and without.meter.hits == 0
    assert with_it.meter.rows_read + with_it.meter.hits == wanted and with_it.meter.hits > 0.2 * wanted
    for cache in (with_it, without):
        assert cache.meter.bytes_read == cache.meter.rows_read * 8 * 16 * 4
        assert cache.meter.bytes_written == cache.store.num_bytes == 2 * 2 * 2 * cache.split.old_tokens * 16 * 4


@pytest.mark.parametrize("method", [Shadowkv(), Shadowkv(rank=8, sparse=16), Shadowkv(carry_over=False), Shadowkv(values="resident"),
                                    Shadowkv(selection="quest"), Shadowkv(selection="oracle"), Shadowkv(outliers=0, chunk=4),
                                    Shadowkv(local_chunks=100), Shadowkv(sparse=0)], ids=lambda m: m.selection + m.values)
def test_resident_bytes_are_read_off_the_storage_and_equal_the_formula(method):
    cache, _ = filled(method, *tensors(103, batch=2), 100)
    assert cache.num_bytes == cache.formula_bytes()
    before, _ = filled(method, *tensors(100, batch=2), 100)
    assert before.num_bytes == before.formula_bytes()
    assert cache._prompt == [None, None] and cache.num_held(0).tolist() == [103, 103]


@given(budget=st.floats(0.6, 1.0), num_tokens=st.integers(150, 500))
@settings(max_examples=25, deadline=None)
def test_a_byte_budget_is_used_and_never_passed(budget, num_tokens):
    method = Shadowkv(rank=8)
    count = method.num_selected(CONFIG, num_tokens, 4, budget)
    allowed = budget * num_tokens * 2 * 2 * 2 * 16 * 4
    split, outliers = method.partition(num_tokens)
    assert method.formula_bytes(CONFIG, num_tokens, count) <= allowed + 1 and count >= 1
    assert count == split.num_old - outliers or method.formula_bytes(CONFIG, num_tokens, count + 1) > allowed - 1


def test_a_real_cache_meets_its_budget():
    cache, _ = filled(Shadowkv(rank=8), *tensors(400), 400, budget=0.5)
    assert 0.48 < cache.num_bytes / cache.full_bytes(400, 32) <= 0.5


def test_a_budget_below_the_floor_names_the_smallest_one():
    method = Shadowkv(rank=16)
    with pytest.raises(BudgetTooSmall, match=r"smallest possible is 0\.\d{3}") as caught:
        method.make_cache(CONFIG, ROPE, budget=0.1, num_context=300)
    least = float(str(caught.value).split("smallest possible is ")[1].split()[0])
    assert method.num_selected(CONFIG, 300, 4, least) == 1
    with pytest.raises(BudgetTooSmall, match="too short"):
        Shadowkv(rank=32, selection="oracle", values="resident", carry_over=False).num_selected(CONFIG, 80, 4, 0.5)


@pytest.mark.parametrize("make, words", [
    (lambda: Shadowkv(rank=0), "rank 0"), (lambda: Shadowkv(chunk=0), "chunk 0"), (lambda: Shadowkv(sparse=-1), "sparse -1"),
    (lambda: Shadowkv(selection="luck"), "luck"), (lambda: Shadowkv(values="gone"), "gone"),
    (lambda: Shadowkv().make_cache(CONFIG, ROPE, budget=0.0), "fraction"), (lambda: Shadowkv().make_cache(CONFIG, ROPE, budget=2), "fraction"),
    (lambda: Shadowkv().make_cache(CONFIG, ROPE, budget=float("nan")), "fraction"),
    (lambda: Shadowkv(place="/no/such/folder").make_cache(CONFIG, ROPE), "folder")])
def test_bad_settings_say_so(make, words):
    with pytest.raises(ValueError, match=words):
        make()


@pytest.mark.parametrize("device, dtype", [
    ("cpu", torch.bfloat16), ("cpu", torch.float16),
    pytest.param("cuda", torch.float32, marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no accelerator"))])
def test_other_dtypes_and_devices(device, dtype):
    q, k, v = (x.to(device, dtype) for x in tensors(60))
    cache, out, first = EXACT.make_cache(CONFIG, ROPE, device=device, dtype=dtype), [], 0
    for size in (50, 1, 9):
        positions, part = cache.next_positions(size), slice(first, first + size)
        out.append([cache.attend(layer, q[:, part], k[:, part], v[:, part], positions) for layer in range(2)][0])
        cache.advance(size)
        cache.finish_prompt()
        first += size
    out = torch.cat(out, 1)
    assert out.dtype == dtype and out.device.type == device
    torch.testing.assert_close(out.float(), full_attention(q.float(), k.float(), v.float()), atol=0.06, rtol=0.06)


def test_a_copy_goes_its_own_way():
    q, k, v = tensors(110)
    cache, _ = filled(Shadowkv(), q, k, v, 100)
    other = cache.copy()
    first = other.attend(0, q[:, :1], k[:, :1], v[:, :1], other.next_positions(1))
    other.advance(1)
    assert cache.num_seen.tolist() == [110] and other.num_seen.tolist() == [111]
    again = cache.attend(0, q[:, :1], k[:, :1], v[:, :1], cache.next_positions(1))
    assert torch.equal(first, again)


def test_the_timeline_has_both_lanes_of_every_layer_and_step():
    cache, _ = filled(Shadowkv(events=True), *tensors(105), 100)
    lanes = {(e.lane, e.step, e.layer) for e in cache.meter.events}
    assert lanes == {(lane, step, layer) for lane in ("rebuild K", "fetch V") for step in range(5) for layer in range(2)}
    fetched = [e for e in cache.meter.events if e.lane == "fetch V"]
    assert sum(e.rows for e in fetched) == cache.meter.rows_read and sum(e.hits for e in fetched) == cache.meter.hits
    assert all(e.end_s >= e.start_s for e in cache.meter.events)


# -- planted wrong versions ----------------------------------------------------------------------------------------

class DecomposesRotatedKeys(ShadowKVCache):
    """Wrong: SVD of keys after RoPE (which needs about twice the rank), un-rotated by nothing when rebuilt."""

    def _decompose(self, keys):
        low, basis = lowrank_keys(keys.transpose(1, 2).flatten(2), self.settings.rank)
        return low, basis.unflatten(-1, (2, 16)).transpose(1, 2).contiguous()

    def _text_positions(self, positions):
        return torch.zeros_like(positions)


class CompactedPositions(ShadowKVCache):
    """Wrong: rebuilt keys are rotated to their place among the selected."""

    def _text_positions(self, positions):
        return torch.arange(positions.shape[-1]).expand_as(positions)


class MostSimilarAsOutliers(ShadowKVCache):
    """Wrong: keeps the chunks that a mean stands for best."""

    def _landmarks(self, chunks):
        means = chunks.mean(3)
        order = torch.cosine_similarity(chunks, means[:, :, :, None], dim=-1).amin(-1).argsort(-1, descending=True)
        outliers, others = order[..., :self.num_outliers], order[..., self.num_outliers:]
        return means.gather(2, others[..., None].expand(*others.shape, 16)), others, outliers


class NoOutliers(ShadowKVCache):
    """Wrong: outlier chunks vanish: neither exact nor landmarked."""

    def compress(self, layer, held):
        super().compress(layer, held)
        own, exact = self.layers[layer], self.num_outliers * self.settings.chunk
        own.keys, own.values = own.keys[:, :, exact:].clone(), own.values[:, :, exact:].clone()


class LastStepsValues(ShadowKVCache):
    """Wrong: carried-over values are reused in their old order, whichever chunks are selected now."""

    def _fetch(self, layer, own, chosen, step):
        if own.last is not None and own.last.shape == chosen.shape:
            self.meter.hit(chosen.numel())
            return own.last_values.unflatten(-1, (8, -1)).flatten(2, 3)
        return super()._fetch(layer, own, chosen, step)


class KeepsTheValues(ShadowKVCache):
    """Wrong: a full copy of the values stays in fast memory."""

    def compress(self, layer, held):
        super().compress(layer, held)
        self.layers[layer].old_values = held.values.clone()

    def _fetch(self, layer, own, chosen, step):
        kept, own.old_values = own.old_values, None
        try:
            return super()._fetch(layer, own, chosen, step)
        finally:
            own.old_values = kept


class NeverFreesTheKeys(ShadowKVCache):
    """Wrong: selects among exact keys that were never given up."""

    def compress(self, layer, held):
        super().compress(layer, held)
        self.layers[layer].landmarks += (held.keys,)

    def _select(self, own, q):
        return select_chunks(q, own.landmarks[0], self.selected)


def failures(cls) -> set[str]:
    """Which oracles a cache class fails."""
    failed = set()
    q, k, v = tensors(112, rank=8)
    if not torch.allclose(filled(EXACT, q, k, v, 100, cls=cls)[1], full_attention(q, k, v), atol=1e-4):
        failed.add("full rank")
    if not torch.allclose(filled(Shadowkv(rank=8, sparse=1.0), q, k, v, 100, cls=cls)[1], full_attention(q, k, v), atol=1e-3):
        failed.add("rank of the keys is enough")
    k = k.clone()
    k[:, 16:24] = k[:, 16:17].clone()                                        # a chunk whose mean hides one token
    k[:, 19] *= -3
    found = filled(Shadowkv(rank=32, sparse=8, outliers=1), q, k, v, 100, cls=cls)[0].layers[0]
    if not bool((found.keys - k[0, 19][None, :, None]).norm(dim=-1).lt(1e-4).any(-1).all()):
        failed.add("outlier kept exactly")
    cache, out = filled(Shadowkv(rank=16, sparse=16), q, k, v, 100, cls=cls)
    if cache.num_bytes != cache.formula_bytes():
        failed.add("bytes")
    if not torch.equal(out, filled(Shadowkv(rank=16, sparse=16, carry_over=False), q, k, v, 100, cls=cls)[1]):
        failed.add("carry over")
    return failed


def test_the_right_cache_passes():
    assert failures(ShadowKVCache) == set()


@pytest.mark.parametrize("wrong, because", [
    (DecomposesRotatedKeys, "rank of the keys is enough"), (CompactedPositions, "full rank"),
    (MostSimilarAsOutliers, "outlier kept exactly"), (NoOutliers, "full rank"), (LastStepsValues, "carry over"),
    (KeepsTheValues, "bytes"), (NeverFreesTheKeys, "bytes")])
def test_planted_wrong_versions_are_rejected(wrong, because):
    assert because in failures(wrong)
