"""MiKV: the notes' oracles, and the wrong versions that must not pass them."""
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from frugal.core.budgets import BudgetTooSmall
from frugal.core.lm import LMConfig, random_lm
from frugal.core.quantize import quantize_asym
from frugal.core.rope import Rope
from frugal.kv_eviction.mikv import MixedPrecisionKVCache, Mikv, channel_balancer
from frugal.kv_eviction.packed import ChannelStore, TokenStore

CONFIG = LMConfig(vocab_size=300, hidden_size=64, num_layers=2, num_heads=6, num_kv_heads=2, head_dim=64,
                  intermediate_size=64, max_positions=4096)
ROPE = Rope(64)


def tensors(num_tokens: int, seed: int = 0, batch: int = 1, outlier: float = 1.0, half: bool = False):
    """Queries (B, T, H, D), keys and values (B, T, K, D); one key channel is `outlier` times as large."""
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(batch, num_tokens, heads, 64, generator=generator) for heads in (6, 2, 2))
    k[..., 5] *= outlier
    return tuple(x.half().float() for x in (q, k, v)) if half else (q, k, v)


def full_attention(q, k, v):
    """Brute force over all tokens."""
    q, k, v = q.transpose(1, 2), k.repeat_interleave(3, 2).transpose(1, 2), v.repeat_interleave(3, 2).transpose(1, 2)
    logits = q @ k.mT / 8
    logits = logits.masked_fill(torch.ones(logits.shape[-2:], dtype=torch.bool).triu(1), float("-inf"))
    return (logits.softmax(-1) @ v).transpose(1, 2)


def filled(method: Mikv, q, k, v, prompt: int, steps=None, cls=MixedPrecisionKVCache, budget=None):
    """The cache after `prompt` tokens and the rest one by one (or in `steps` blocks), with all outputs."""
    cache = cls(CONFIG, ROPE, q.shape[0], settings=method, budget=budget)
    sizes = [prompt] + ([1] * (q.shape[1] - prompt) if steps is None else steps)
    out, first = [], 0
    for size in sizes:
        positions, part = cache.next_positions(size), slice(first, first + size)
        out.append([cache.attend(layer, q[:, part], k[:, part], v[:, part], positions) for layer in range(2)][0])
        cache.advance(size)
        if first == 0:
            cache.finish_prompt()
        first += size
    return cache, torch.cat(out, 1)


def error(method: Mikv, cls=MixedPrecisionKVCache, seed: int = 0, outlier: float = 10.0) -> float:
    """Relative error of decoded attention outputs."""
    q, k, v = tensors(80, seed, outlier=outlier)
    exact = full_attention(q, k, v)[:, 60:]
    return float((filled(method, q, k, v, 60, cls=cls)[1][:, 60:] - exact).norm() / exact.norm())


def short(value) -> str:
    if not isinstance(value, Mikv):
        return str(value)
    return f"{value.important:g}x{value.high_bits}+{value.low_bits}" + ("b" if value.balanced else "")


# -- oracles -------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("method, half", [(Mikv(low_bits=32, high_bits=32), False), (Mikv(important=1.0, high_bits=32), False),
                                          (Mikv(low_bits=32, high_bits=32, balanced=False), False),
                                          (Mikv(low_bits=16, high_bits=16, balanced=False), True),
                                          (Mikv(important=1.0, high_bits=16), True)], ids=short)
@pytest.mark.parametrize("steps", [None, [7, 1, 12]])
def test_sixteen_bits_or_everything_important_is_full_attention(method, half, steps):
    q, k, v = tensors(60, half=half, batch=2)
    _, out = filled(method, q, k, v, 40, steps)
    torch.testing.assert_close(out, full_attention(q, k, v), atol=1e-5, rtol=1e-5)


def test_the_model_gives_full_logits_at_full_width():
    lm = random_lm(head_dim=16)
    tokens = torch.randint(0, 256, (2, 50), generator=torch.Generator().manual_seed(0))
    cache = Mikv(low_bits=32, high_bits=32).make_cache(lm.config, lm.rope, batch=2)
    parts = [lm(tokens[:, :20], cache), lm(tokens[:, 20:30], cache)]
    cache.finish_prompt()
    parts += [lm(tokens[:, i:i + 1], cache) for i in range(30, 50)]
    torch.testing.assert_close(torch.cat(parts, 1), lm(tokens), atol=3e-4, rtol=1e-4)
    assert cache.num_seen.tolist() == [50, 50] == cache.num_held(1).tolist()


@given(seed=st.integers(0, 999), outlier=st.floats(0.01, 1000))
@settings(max_examples=30, deadline=None)
def test_the_balancer_leaves_every_logit_as_it_was(seed, outlier):
    q, k, _ = (x.double()[0] for x in tensors(20, seed, outlier=outlier))
    b = channel_balancer(q.abs().amax((0, 1)), k.abs().amax((0, 1)))
    torch.testing.assert_close((q[:, 0] / b) @ (b * k[:, 0]).T, q[:, 0] @ k[:, 0].T)
    assert bool((b >= 1e-2).all() and (b <= 1e2).all())


def test_the_balancer_is_one_where_a_channel_is_zero():
    b = channel_balancer(torch.tensor([0.0, 1.0, 0.0, 4.0, 1e9]), torch.tensor([1.0, 0.0, 0.0, 1.0, 1e-9]))
    assert b.tolist() == [1, 1, 1, 2, 100]


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("group", [None, 32])
def test_nothing_important_is_uniform_rounding(bits, group):
    """Brute force: quantise every stored token on its own; the new token is still exact for itself."""
    q, k, v = tensors(41)
    _, out = filled(Mikv.uniform(bits, group=group), q, k, v, 40)
    rounded_k, rounded_v = (torch.cat([quantize_asym(x[:, :40], bits, group).dequantize(), x[:, 40:].half().float()], 1)
                            for x in (k, v))
    expected = full_attention(q, rounded_k, rounded_v)[:, 40:]
    torch.testing.assert_close(out[:, 40:], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("method", [Mikv(), Mikv(low_bits=2, high_bits=8, group=32), Mikv(balanced=False, low_bits=4),
                                    Mikv(important=0), Mikv(important=1), Mikv(low_bits=8)], ids=short)
@pytest.mark.parametrize("prompt", [1, 7, 60])
def test_bytes_are_read_off_the_storage_and_equal_the_formula(method, prompt):
    cache, _ = filled(method, *tensors(prompt, batch=2), prompt)
    assert cache.num_bytes == cache.formula_bytes()
    cache, _ = filled(method, *tensors(prompt + 20, batch=2), prompt)
    assert cache.num_bytes == cache.formula_bytes()


def test_the_formula_of_the_notes():
    """D 64, one group, 2 bits: 40 bytes a token and head in the low tier, 256 (+ 8 of bookkeeping) in the high one."""
    bare = Mikv(low_bits=2, balanced=False)
    assert bare.formula_bytes(CONFIG, 100, 0) == 4 * 100 * 40
    assert bare.formula_bytes(CONFIG, 100, 100) == 4 * 100 * (256 + 8)
    assert Mikv(low_bits=2).formula_bytes(CONFIG, 100, 0) == 4 * (100 * 40 + 64 * 4)


def test_packed_tiers_are_bytes_and_the_prompt_is_freed():
    cache, _ = filled(Mikv(low_bits=3), *tensors(60), 50)
    own = cache.layers[1]
    assert own.low_keys.parts[0].dtype == torch.uint8 and own.low_keys.parts[0].shape == (1, 2, 50, 24)
    assert own.keys.parts[0].dtype == torch.float16 and len(own.keys) == 10
    assert cache._prompt == [None, None]


def test_demotion_is_one_way_and_lossy():
    q, k, v = tensors(60)
    cache = MixedPrecisionKVCache(CONFIG, ROPE, settings=Mikv(low_bits=3))
    before, low = None, 0
    for first, size in [(0, 30)] + [(i, 1) for i in range(30, 60)]:
        positions, part = cache.next_positions(size), slice(first, first + size)
        for layer in range(2):
            cache.attend(layer, q[:, part], k[:, part], v[:, part], positions)
        cache.advance(size)
        cache.finish_prompt()
        own = cache.layers[0]
        now = [set(row.tolist()) for row in own.positions[0]]
        assert all(len(row) == 6 for row in now) and len(own.low_keys) == first + size - 6
        if before is not None:
            assert all(new - old <= {first} for new, old in zip(now, before)), "a demoted token came back"
            assert len(own.low_keys) == low + 1
        assert all(first + size - 1 in row for row in now)                   # the newest is protected
        before, low = now, len(own.low_keys)
    rows = own.low_values.block(0, low)
    assert 0.01 < float((rows[0, 0, 0] - v[0, :, 0]).norm(dim=-1).min()) < 2.0  # near one token, equal to none


def test_importance_is_the_attention_received():
    """A token that every query looks at is kept; one that nobody looks at is not."""
    q, k, v = tensors(60)
    k[:, 7] = q[:, :, ::3].mean(1) + 4 * q[:, :, ::3].mean()                 # some direction, made strong below
    q[..., 0] += 6.0
    k[:, 7, :, 0], k[:, 9, :, 0] = 6.0, -6.0
    cache, _ = filled(Mikv(), q, k, v, 60)
    assert all(7 in row and 9 not in row for row in cache.layers[0].positions[0].tolist())


@given(seed=st.integers(0, 99))
@settings(max_examples=3, deadline=None)
def test_more_bits_and_more_important_tokens_mean_less_error(seed):
    by_bits = [error(Mikv(important=0.2, low_bits=b), seed=seed) for b in (2, 3, 4, 8)]
    assert by_bits == sorted(by_bits, reverse=True)
    assert error(Mikv(important=0.9, low_bits=2), seed=seed) < error(Mikv(important=0.1, low_bits=2), seed=seed)


def test_the_balancer_helps_when_a_channel_sticks_out():
    for bits in (2, 3, 4):
        assert error(Mikv(low_bits=bits, important=0)) < 0.7 * error(Mikv(low_bits=bits, important=0, balanced=False))


def test_sequences_of_a_batch_do_not_meet():
    q, k, v = tensors(50, batch=3)
    _, together = filled(Mikv(), q, k, v, 40)
    for row in range(3):
        alone = filled(Mikv(), q[row:row + 1], k[row:row + 1], v[row:row + 1], 40)[1]
        torch.testing.assert_close(together[row:row + 1], alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("bits, num_tokens", [(3, 31), (3, 32), (2, 100), (4, 77)])
def test_keys_per_channel_wait_for_a_full_span(bits, num_tokens):
    x = torch.randn(1, 2, num_tokens, 16).half().float()                     # rows wait in fp16
    store = ChannelStore(bits, 16)
    for part in x.split(9, 2):
        store.append(part)
    full = num_tokens // 32 * 32
    assert len(store) == num_tokens and store.waiting.shape[2] == num_tokens - full
    expected = [quantize_asym(s.mT.contiguous(), bits).dequantize().mT for s in x[:, :, :full].split(32, 2) if full]
    expected = torch.cat([*expected, x[:, :, full:].half().float()], 2)
    torch.testing.assert_close(store.block(0, num_tokens), expected)
    torch.testing.assert_close(store.block(5, num_tokens - 1), expected[:, :, 5:-1])
    if full:
        assert full * 2 * store.bytes_per_row() == sum(p.untyped_storage().nbytes() for p in store.spans)


def test_keys_per_channel_need_no_balancer():
    """KIVI's reason: one loud channel spoils a per-token grid, and leaves a per-channel grid alone."""
    assert error(Mikv.uniform(3, key_axis="channel")) < 0.8 * error(Mikv.uniform(3))


# -- budgets -------------------------------------------------------------------------------------------------------

@given(budget=st.floats(0.3, 1.0), num_tokens=st.integers(40, 400), low_bits=st.sampled_from([2, 3]))
@settings(max_examples=25, deadline=None)
def test_a_byte_budget_is_used_and_never_passed(budget, num_tokens, low_bits):
    method = Mikv(low_bits=low_bits)
    count = method.important_count(CONFIG, num_tokens, budget)
    allowed = budget * num_tokens * 4 * 2 * 64 * 2
    assert method.formula_bytes(CONFIG, num_tokens, count) <= allowed + 1
    assert count == num_tokens or method.formula_bytes(CONFIG, num_tokens, count + 1) > allowed - 1


def test_a_real_cache_meets_its_budget():
    cache, _ = filled(Mikv(low_bits=3), *tensors(400), 400, budget=0.4)
    assert 0.39 < cache.num_bytes / cache.full_bytes(400) <= 0.4 and 0 < cache.num_important < 400


def test_a_budget_below_the_floor_names_the_smallest_one():
    method = Mikv(low_bits=4)
    with pytest.raises(BudgetTooSmall, match=r"smallest possible is 0\.\d{3}") as caught:
        filled(method, *tensors(100), 100, budget=0.2)
    least = float(str(caught.value).split("smallest possible is ")[1].split()[0])
    assert method.important_count(CONFIG, 100, least) >= 0 and least > method.smallest_budget(CONFIG, 100)
    assert math.isclose(least, (72 + 256 / 100) / 256, abs_tol=0.001)        # 72 of 256 bytes, and the balancer
    cache = MixedPrecisionKVCache(CONFIG, ROPE, settings=method, budget=0.285)   # long prompts could, this one cannot
    for layer in range(2):
        cache.attend(layer, *tensors(100), cache.next_positions(100))
    cache.advance(100)
    with pytest.raises(BudgetTooSmall):
        cache.finish_prompt()
    assert cache._prompt[0] is not None and not cache.finished               # nothing was thrown away


@pytest.mark.parametrize("budget", [0, -0.1, 1.5, float("nan"), True])
def test_budgets_that_are_none_say_what_is_allowed(budget):
    with pytest.raises(ValueError, match="fraction"):
        MixedPrecisionKVCache(CONFIG, ROPE, budget=budget)


@pytest.mark.parametrize("make, words", [
    (lambda: Mikv(low_bits=5).make_cache(CONFIG, ROPE), "5 bits"), (lambda: Mikv(high_bits=1).make_cache(CONFIG, ROPE), "1 bits"),
    (lambda: Mikv(group=48).make_cache(CONFIG, ROPE), "group of 48"), (lambda: Mikv(important=1.2), "important 1.2"),
    (lambda: Mikv(importance="luck"), "luck"), (lambda: Mikv(key_axis="head"), "head"),
    (lambda: Mikv().make_cache(CONFIG, ROPE, budget=0.17, num_context=20), "smallest possible"),
    (lambda: Mikv().make_cache(CONFIG, ROPE).attend(0, *tensors(3, batch=2), torch.arange(3).repeat(2, 1)), "batch 1"),
    (lambda: Mikv().make_cache(CONFIG, ROPE).attend(0, *tensors(3), torch.arange(1, 4)[None]), "equal length")])
def test_bad_settings_and_inputs_say_so(make, words):
    with pytest.raises(ValueError, match=words):
        make()


@pytest.mark.parametrize("device, dtype", [
    ("cpu", torch.bfloat16), ("cpu", torch.float16),
    pytest.param("cuda", torch.float32, marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no accelerator"))])
def test_other_dtypes_and_devices(device, dtype):
    q, k, v = (x.to(device, dtype) for x in tensors(60))
    cache, out, first = Mikv(low_bits=16, balanced=False).make_cache(CONFIG, ROPE, device=device, dtype=dtype), [], 0
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
    q, k, v = tensors(50)
    cache, _ = filled(Mikv(), q, k, v, 49)
    other = cache.copy()
    other.attend(0, q[:, 49:], k[:, 49:], v[:, 49:], other.next_positions(1))
    assert len(other.layers[0].low_keys) == len(cache.layers[0].low_keys) + 1
    assert isinstance(cache.num_seen, np.ndarray)


def test_the_memory_strip_lists_every_token_once():
    cache, _ = filled(Mikv(low_bits=3), *tensors(60), 50)
    bits = cache.bits_per_token(layer=0, head=1)
    assert len(bits) == 60 and bits.count(16) == 10 and bits.count(3) == 50 and bits[-1] == 16


# -- planted wrong versions ----------------------------------------------------------------------------------------

class BalancerOnTheQuery(MixedPrecisionKVCache):
    """Wrong: the query is multiplied by the factor instead of divided."""

    def _attend_tiers(self, own, q):
        right = own.balancer
        own.balancer = None if right is None else 1 / right
        try:
            return super()._attend_tiers(own, q)
        finally:
            own.balancer = right


class GridOverTokens(TokenStore):
    """Wrong: one grid per channel over all tokens that arrive together, in the per-token layout."""

    def append(self, x):
        low, high = x.amin(2, keepdim=True), x.amax(2, keepdim=True)
        step = ((high - low) / ((1 << self.bits) - 1)).clamp(min=1e-6)
        super().append(((x - low) / step).round() * step + low)


class ScalesOverTokens(MixedPrecisionKVCache):
    def _new_layer(self):
        own = super()._new_layer()
        if self.settings.low_bits < 16:
            own.low_values = GridOverTokens(self.settings.low_bits, 64)
        return own


class KeepsACopy(MixedPrecisionKVCache):
    """Wrong: demoted tokens come back without loss, because a full-precision copy is kept beside the codes."""

    def _retain(self, own, keys, values):
        super()._retain(own, keys, values)
        old = getattr(own, "shadow", None)
        own.shadow = keys if old is None else torch.cat([old, keys], 2)

    def tensors(self):
        return super().tensors() + [own.shadow for own in self.layers if own is not None]


class DropsInsteadOfDemoting(MixedPrecisionKVCache):
    """Wrong: this is plain eviction."""

    def _retain(self, own, keys, values):
        if not len(own.low_keys):
            super()._retain(own, keys, values)


class NewTokensSeeTheFuture(MixedPrecisionKVCache):
    """Wrong: no causal mask among tokens that arrive together after the prompt."""

    def _attend_tiers(self, own, q):
        rows = [super(NewTokensSeeTheFuture, self)._attend_tiers(own, q[:, i:i + 1]) for i in range(q.shape[1])]
        return torch.cat([out for out, _ in rows], 1), torch.cat([w for _, w in rows], 3)


class MaskedNotPacked(MixedPrecisionKVCache):
    """Wrong: rounds the numbers but stores them as floats, so that nothing is saved."""

    def _new_layer(self):
        own = super()._new_layer()
        own.low_values = TokenStore(32, 64)
        return own


def failures(cls) -> set[str]:
    """Which oracles a cache class fails."""
    failed = set()
    q, k, v = tensors(60, outlier=20.0)
    cache, out = filled(Mikv(low_bits=32, high_bits=32), q, k, v, 40, steps=[12, 8], cls=cls)
    if not torch.allclose(out, full_attention(q, k, v), atol=1e-4):
        failed.add("full width")
    cache, _ = filled(Mikv(low_bits=3), q, k, v, 40, cls=cls)
    if cache.num_bytes != cache.formula_bytes():
        failed.add("bytes")
    if len(cache.layers[0].low_keys) + len(cache.layers[0].keys) != 60:
        failed.add("no token left behind")
    loud = (q, k, v * torch.where(torch.arange(60) == 3, 50.0, 1.0)[:, None, None])
    _, out = filled(Mikv.uniform(3), *loud, 40, steps=[20], cls=cls)
    exact = filled(Mikv.uniform(3), *loud, 40, steps=[20])[1]
    if not torch.allclose(out, exact, atol=1e-4):
        failed.add("uniform")
    if error(Mikv(low_bits=3), cls=cls) > error(Mikv(low_bits=3, balanced=False)):
        failed.add("balancer helps")
    return failed


def test_the_right_cache_passes():
    assert failures(MixedPrecisionKVCache) == set()


@pytest.mark.parametrize("wrong, because", [
    (BalancerOnTheQuery, "balancer helps"), (ScalesOverTokens, "uniform"), (KeepsACopy, "bytes"),
    (DropsInsteadOfDemoting, "no token left behind"), (NewTokensSeeTheFuture, "full width"), (MaskedNotPacked, "bytes")])
def test_planted_wrong_versions_are_rejected(wrong, because):
    assert because in failures(wrong)
