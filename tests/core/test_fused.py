"""The compiled layers equal the plain decoder: every row count, odd sizes, ragged batches, every kind of cache."""
import numpy as np
import pytest
import torch

from frugal.core import fused, kernels
from frugal.core import linear as products
from frugal.core.kvcache import KVCache
from frugal.core.lm import random_lm

SIZES = {"plain": {}, "odd": dict(hidden_size=35, num_heads=3, num_kv_heads=1, head_dim=10, intermediate_size=37),
         "one head each": dict(hidden_size=24, num_heads=4, num_kv_heads=4, head_dim=6, tie_embeddings=False)}


@pytest.fixture(autouse=True)
def kernel_everywhere(monkeypatch):
    monkeypatch.setenv("FRUGAL_KERNEL_ROWS", "32")
    products.kernel_rows.cache_clear()
    yield
    products.kernel_rows.cache_clear()


def ids(batch, count, seed=0):
    return torch.randint(0, 256, (batch, count), generator=torch.Generator().manual_seed(seed))


def forward(lm, tokens, cache, quick, monkeypatch, **options):
    with monkeypatch.context() as patch:
        if not quick:
            patch.setattr(fused, "serves", lambda *args: False)
            patch.setattr(products, "_kernel_applies", lambda *args: False)
        return lm.run(tokens, cache, **options)


def agree(lm, cache, tokens, monkeypatch, **options) -> bool:
    """Both ways from the same cache: logits, and afterwards the same keys, values and positions."""
    plain, quick = cache.copy(), cache.copy()
    wanted = forward(lm, tokens, plain, False, monkeypatch, **options)
    got = forward(lm, tokens, quick, True, monkeypatch, **options)
    used = int(plain.num_held().max())
    same = all(torch.allclose(a[layer][b, :, :n], c[layer][b, :, :n], atol=1e-4)
               for a, c in zip((plain.keys, plain.values, plain.positions), (quick.keys, quick.values, quick.positions))
               for layer in range(lm.config.num_layers) for b, n in enumerate(plain.num_held(layer).tolist()))
    return (used == int(quick.num_held().max()) and same and torch.allclose(got.logits, wanted.logits, atol=1e-4)
            and all(torch.allclose(a, b, atol=1e-4) for a, b in zip(got.hidden, wanted.hidden, strict=True)))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("rows", range(1, 10))
def test_every_row_count(rows, size, monkeypatch):
    lm = random_lm(**SIZES[size])
    cache = lm.new_cache()
    lm(ids(1, 21), cache)
    assert fused.serves(lm, torch.zeros(1, rows, lm.config.hidden_size))
    assert agree(lm, cache, ids(1, rows, 1), monkeypatch, hidden=True)
    assert agree(lm, lm.new_cache(), ids(1, rows, 1), monkeypatch, last_only=True)       # nothing in the cache yet


@pytest.mark.parametrize("batch, count", [(2, 1), (3, 1), (5, 1), (8, 1), (2, 3), (3, 4)])
def test_batches_of_ragged_length(batch, count, monkeypatch):
    lm = random_lm()
    caches = [lm.new_cache() for _ in range(batch)]
    for length, cache in enumerate(caches, 3):
        lm(ids(1, 2 * length, length), cache)
    assert agree(lm, KVCache.stack(caches), ids(batch, count, 2), monkeypatch, last_only=True)


@pytest.mark.parametrize("options", [{"positions": "renumbered"}, {"growth": 1}])
def test_other_caches(options, monkeypatch):
    lm = random_lm()
    cache = lm.new_cache(2, **options)
    lm(ids(2, 9), cache)
    for step in range(3):
        assert agree(lm, cache, ids(2, 1, step), monkeypatch)
        lm(ids(2, 1, step), cache)


def test_a_cache_of_ones_own_is_asked(monkeypatch):
    lm, asked = random_lm(), []

    class Watching(KVCache):
        def attend(self, layer, q, k, v, positions):
            asked.append((layer, q.shape, k.shape, positions.tolist()))
            return super().attend(layer, q, k, v, positions)
    cache = Watching(lm.config, lm.rope, 2)
    lm(ids(2, 3), cache)
    assert asked == [(i, (2, 3, 6, 8), (2, 3, 2, 8), [[0, 1, 2]] * 2) for i in (0, 1)]


def test_chosen_layers_and_embeddings(monkeypatch):
    lm = random_lm(num_layers=3)
    assert agree(lm, lm.new_cache(), ids(1, 4), monkeypatch, layers=[0, 2], hidden=True)
    x = lm.weights["embed"][ids(1, 2)].requires_grad_()
    assert torch.allclose(lm.run(None, embeds=x).logits, lm(ids(1, 2)), atol=1e-5)


def test_side_arrays_of_new_slots_are_zero():
    lm = random_lm()
    cache = lm.new_cache(reserve=8)
    lm(ids(1, 5), cache)
    cache.aux[0]["mass"] = torch.ones(cache.positions[0].shape)
    lm(ids(1, 2), cache)
    assert cache.aux[0]["mass"][0, 0].tolist() == [1, 1, 1, 1, 1, 0, 0, 1]


def test_stays_out_of_the_way(monkeypatch):
    lm, few, many = random_lm(), torch.zeros(1, 2, 48), torch.zeros(1, 40, 48)
    assert fused.serves(lm, few) and not fused.serves(lm, many)
    assert not fused.serves(lm.to(dtype=torch.bfloat16), few.bfloat16())
    monkeypatch.setattr(products, "numba", None)
    assert not fused.serves(lm, few)
    assert torch.allclose(lm(ids(1, 5)), random_lm()(ids(1, 5)), atol=1e-5)


@pytest.mark.parametrize("x", [-100.0, -87.0, -20.0, -1.0, -1e-4, 0.0, 0.3, 5.0, 88.0])
def test_exponential(x):
    wanted = np.exp(np.float64(max(x, -87)))
    assert abs(kernels.exp(np.float32(x)) - wanted) <= 3e-7 * wanted


@pytest.mark.parametrize("x", [1e-37, 6e-8, 0.3, 0.7071, 0.70711, 1 - 2 ** -24, 1.0, 1 + 2 ** -23, 1.4142, 5.0, 3e38])
def test_logarithm(x):
    wanted = np.log(np.float64(np.float32(x)))
    assert abs(kernels.log(np.float32(x)) - wanted) <= 3e-7 * max(1, abs(wanted))


def test_wrong_loops_are_rejected(monkeypatch):
    """Planted mistakes: a norm of the wrong states, an attention that does not see its own token."""
    lm = random_lm()
    cache = lm.new_cache()
    lm(ids(1, 9), cache)
    after, attend = kernels.after_attention, KVCache.attend_arrays

    def no_residual(x, mixed, o, norm, eps, gate_up, down, out, threads):
        after(x * 0, mixed, o, norm, eps, gate_up, down, out, threads)

    def forgets_its_own(self, layer, q, k, v, positions, threads):
        return attend(self, layer, q, k, v * 0, positions, threads)
    for module, name, wrong in ((kernels, "after_attention", no_residual), (KVCache, "attend_arrays", forgets_its_own)):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, wrong)
            assert not agree(lm, cache, ids(1, 2), monkeypatch)
    assert agree(lm, cache, ids(1, 2), monkeypatch)
