"""Edits: off is the same bits, rows and layers that are not named keep theirs, and edited rows follow brute force."""
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from frugal.core import attention
from frugal.core.edits import EditedLM, Edits, edited
from frugal.core.kvcache import KVCache
from frugal.core.lm import random_lm

LM = random_lm(num_layers=3)


def ids(batch, count, seed=0):
    return torch.randint(0, 256, (batch, count), generator=torch.Generator().manual_seed(seed))


def add(amount, slots=slice(0, 4)):
    def edit(layer, logits):
        logits = logits.clone()
        logits[..., slots] += amount
        return logits
    return edit


def same_cache(a, b):
    return all(torch.equal(x[..., :n, :], y[..., :n, :]) for i in range(3) for n in [int(a.num_held(i).max())]
               for x, y in ((a.keys[i], b.keys[i]), (a.values[i], b.values[i])))


@pytest.mark.parametrize("edits", [Edits(), Edits(logits=add(3.0), layers=frozenset())])
def test_nothing_to_edit_is_the_same_decoder(edits):
    assert edited(LM, edits) is LM


@pytest.mark.parametrize("batch, count", [(1, 1), (1, 7), (3, 1), (3, 40), (40, 1)])
def test_an_edit_that_changes_nothing_gives_the_same_logits(batch, count):
    for edits in (Edits(logits=lambda layer, logits: logits, rows=None), Edits(mlp=lambda layer, x: x),
                  Edits(residual=lambda layer, x: x)):
        plain, other = LM.new_cache(batch), LM.new_cache(batch)
        for seed in range(3):
            tokens = ids(batch, count, seed)
            assert torch.allclose(edited(LM, edits)(tokens, other), LM(tokens, plain), atol=1e-3)


@pytest.mark.parametrize("batch, count", [(1, 1), (2, 1), (2, 9), (40, 1)])
def test_watching_changes_no_bit_and_sees_the_probabilities(batch, count):
    seen = {}
    lm = edited(LM, Edits(watch=lambda layer, probs: seen.__setitem__(layer, probs), layers=frozenset({0, 2})))
    plain, other = LM.new_cache(batch), LM.new_cache(batch)
    for cache, model in ((plain, LM), (other, lm)):
        model(ids(batch, 12), cache)
        cache.last = model(ids(batch, count, 1), cache)
    assert torch.equal(plain.last, other.last) and same_cache(plain, other)
    assert sorted(seen) == [0, 2] and seen[2].shape == (batch, 6, 1, 12 + count)
    assert torch.allclose(seen[2].sum(-1), torch.ones(batch, 6, 1), atol=1e-5)


def test_rows_other_than_the_last_keep_their_bits():
    lm, tokens = edited(LM, Edits(logits=add(4.0))), ids(2, 40)                 # 80 rows: both take the plain layers
    changed, plain = lm.run(tokens, hidden=True), LM.run(tokens, hidden=True)
    assert all(torch.equal(a[:, :-1], b[:, :-1]) for a, b in zip(changed.hidden, plain.hidden, strict=True))
    assert (changed.logits[:, -1] - plain.logits[:, -1]).abs().max() > 0.05


def test_layers_below_the_first_edited_one_keep_their_bits():
    lm, tokens = edited(LM, Edits(logits=add(4.0), rows=None, layers=frozenset({2}))), ids(2, 40)
    changed, plain = lm.run(tokens, hidden=True), LM.run(tokens, hidden=True)
    same = [torch.equal(a, b) for a, b in zip(changed.hidden, plain.hidden, strict=True)]
    assert same == [True, True, True, False]


def by_hand(q, keys, values, held, num_new, rows, edit):
    """Attention row by row, head by head; edited rows add `edit` to the first four logits."""
    batch, _, heads, dim = q.shape
    out = torch.zeros(q.shape)
    for b in range(batch):
        for t in range(num_new):
            seen = int(held[b]) - num_new + t + 1
            for h in range(heads):
                kv = h // (heads // keys.shape[1])
                logits = keys[b, kv, :seen] @ q[b, t, h] / dim ** 0.5
                if t >= num_new - rows:
                    logits[:4] += edit
                out[b, t, h] = logits.softmax(-1) @ values[b, kv, :seen]
    return out


@settings(max_examples=20, deadline=None)
@given(lengths=st.lists(st.integers(0, 12), min_size=1, max_size=3), num_new=st.integers(1, 10), rows=st.integers(1, 12),
       seed=st.integers(0, 99))
def test_ragged_batches_follow_brute_force(lengths, num_new, rows, seed):
    caches = []
    for i, length in enumerate(lengths):
        caches.append(LM.new_cache())
        if length:
            LM(ids(1, length, seed + i), caches[-1])
    cache = KVCache.stack(caches)
    generator = torch.Generator().manual_seed(seed)
    batch, c = len(lengths), LM.config
    q = torch.randn(batch, num_new, c.num_heads, c.head_dim, generator=generator)
    k, v = (torch.randn(batch, num_new, c.num_kv_heads, c.head_dim, generator=generator) for _ in range(2))
    lm = edited(LM, Edits(logits=add(2.5), rows=rows))

    from frugal.core.edits import _EditedCache
    got = _EditedCache(cache, lm.edits).attend(1, q, k, v, cache.next_positions(num_new))
    held = cache.num_held(1).numpy()
    assert np.array_equal(held, np.array(lengths) + num_new)
    assert torch.allclose(got, by_hand(q, cache.keys[1], cache.values[1], held, num_new, rows, 2.5), atol=1e-4)


def test_an_edit_cannot_show_a_later_token():
    def everything(layer, logits):
        return torch.zeros_like(logits)
    lm, first = edited(LM, Edits(logits=everything, rows=None)), ids(1, 9)
    second = first.clone()
    second[0, -1] = (second[0, -1] + 1) % 256
    assert torch.equal(lm(first)[:, :-1], lm(second)[:, :-1])


def test_a_state_edit_acts_where_it_says():
    tokens = ids(2, 5)
    for site in ("mlp", "residual"):
        shift = {"mlp": lambda layer, x: x + 1.0 * (layer == 1), "residual": lambda layer, x: x * (2.0 if layer == 1 else 1.0)}[site]
        got = edited(LM, Edits(**{site: shift})).run(tokens, hidden=True).hidden
        plain = LM.run(tokens, hidden=True).hidden
        want = plain[2] + 1 if site == "mlp" else 2 * plain[2]
        assert torch.allclose(got[1], plain[1], atol=1e-5) and torch.allclose(got[2], want, atol=1e-4)


def test_the_compiled_layer_steps_aside_for_state_edits_and_serves_attention_edits():
    assert LM.fusable and edited(LM, Edits(logits=add(1.0))).fusable and not edited(LM, Edits(mlp=lambda i, x: x)).fusable
    quick, plain = edited(LM, Edits(logits=add(2.0))), edited(LM, Edits(logits=add(2.0)))
    plain.fusable = False
    a, b = LM.new_cache(2), LM.new_cache(2)
    for count in (6, 1, 1):
        assert torch.allclose(quick(ids(2, count, count), a), plain(ids(2, count, count), b), atol=1e-4)


def test_weights_are_shared():
    assert edited(LM, Edits(mlp=lambda i, x: x)).weights is LM.weights


def test_bad_input():
    with pytest.raises(ValueError, match="rows must be 1"):
        Edits(rows=0)
    with pytest.raises(ValueError, match="plain decoder"):
        edited(EditedLM(LM, Edits(mlp=lambda i, x: x)), Edits(mlp=lambda i, x: x))
    with pytest.raises(ValueError, match="plain KVCache"):
        edited(LM, Edits(logits=add(1.0)))(ids(1, 2), object())


def test_planted_mistakes_are_seen(monkeypatch):
    """An edit that reaches every row, and a mask applied before the edit, fail the tests above."""
    with monkeypatch.context() as patch:
        patch.setattr(Edits, "__post_init__", lambda self: object.__setattr__(self, "rows", None))
        with pytest.raises(AssertionError):
            test_rows_other_than_the_last_keep_their_bits()
    with monkeypatch.context() as patch:
        patch.setattr(attention, "visible_slots", lambda held, n, first, rows, device: torch.ones(len(held), rows, int(held.max()), dtype=bool))
        with pytest.raises(AssertionError):
            test_an_edit_cannot_show_a_later_token()
