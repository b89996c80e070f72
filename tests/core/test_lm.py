"""The decoder: cached, chunked and full forward agree; it holds no state; wrong decoders are rejected."""
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from frugal.core import attention
from frugal.core.lm import LM, LMConfig, random_lm
from frugal.core.rope import Rope


def tokens(batch, count, seed=0):
    return torch.randint(0, 256, (batch, count), generator=torch.Generator().manual_seed(seed))


def chunked(lm, ids, sizes):
    cache, out, first = lm.new_cache(ids.shape[0]), [], 0
    for size in sizes:
        out.append(lm(ids[:, first:first + size], cache))
        first += size
    return torch.cat(out, 1)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("sizes", [[1] * 24, [24], [7, 1, 1, 15], [1, 23], [20, 1, 1, 1, 1]])
def test_cached_chunked_and_full_forward_agree(sizes, tied):
    lm, ids = random_lm(tie_embeddings=tied), tokens(3, 24)
    assert torch.allclose(chunked(lm, ids, sizes), lm(ids), atol=1e-4)


def plain_forward(lm, ids):
    """The model again, by the textbook: one head at a time, the whole matrix of attention, no cache."""
    c, w = lm.config, lm.weights
    x = w["embed"][ids]
    position = torch.arange(ids.shape[1])[None]

    def norm(x, weight):
        return x / (x.pow(2).mean(-1, keepdim=True) + c.norm_eps).sqrt() * weight
    for i in range(c.num_layers):
        qkv = norm(x, w[f"layers.{i}.attn_norm"]) @ w[f"layers.{i}.qkv"].T
        heads = qkv.split(c.head_dim, -1)
        out = []
        for h in range(c.num_heads):
            kv = h // (c.num_heads // c.num_kv_heads)
            q, k, v = heads[h], heads[c.num_heads + kv], heads[c.num_heads + c.num_kv_heads + kv]
            q, k = (lm.rope.rotate(t[:, :, None], position)[:, :, 0] for t in (q, k))
            logits = q @ k.mT / c.head_dim ** 0.5
            logits = logits.masked_fill(torch.ones_like(logits, dtype=torch.bool).triu(1), -torch.inf)
            out.append(logits.softmax(-1) @ v)
        x = x + torch.cat(out, -1) @ w[f"layers.{i}.o"].T
        gate, up = (norm(x, w[f"layers.{i}.mlp_norm"]) @ w[f"layers.{i}.gate_up"].T).chunk(2, -1)
        x = x + (F.silu(gate) * up) @ w[f"layers.{i}.down"].T
    return norm(x, w["norm"]) @ lm.head.T


def test_equals_the_textbook():
    lm, ids = random_lm(), tokens(2, 19)
    assert torch.allclose(lm(ids), plain_forward(lm, ids), atol=1e-4)


def test_two_generations_interleave():
    lm, a, b = random_lm(), tokens(1, 12, 1), tokens(1, 12, 2)
    cache_a, cache_b, got = lm.new_cache(), lm.new_cache(), []
    for i in range(12):
        got.append(lm(a[:, i:i + 1], cache_a))
        lm(b[:, i:i + 1], cache_b)
    assert torch.allclose(torch.cat(got, 1), lm(a), atol=1e-4)


def test_order_of_the_batch_does_not_matter():
    lm, ids = random_lm(), tokens(4, 9)
    order = torch.tensor([2, 0, 3, 1])
    assert torch.allclose(lm(ids[order]), lm(ids)[order], atol=1e-5)


def test_hidden_states_and_chosen_layers():
    lm, ids = random_lm(num_layers=3), tokens(1, 6)
    whole = lm.run(ids, hidden=True)
    assert len(whole.hidden) == 4
    assert torch.allclose(lm.unembed(whole.hidden[-1]), whole.logits, atol=1e-5)
    first = lm.run(ids, layers=[0], hidden=True)
    assert torch.allclose(first.hidden[-1], whole.hidden[1], atol=1e-6)
    rest = lm.run(None, embeds=whole.hidden[1], layers=[1, 2])
    assert torch.allclose(rest.logits, whole.logits, atol=1e-5)
    skipped = lm.run(ids, layers=[0, 2])
    assert not torch.allclose(skipped.logits, whole.logits, atol=1e-2)


def test_last_only_is_the_last_row():
    lm, ids = random_lm(), tokens(2, 8)
    assert torch.allclose(lm(ids, last_only=True)[:, 0], lm(ids)[:, -1], atol=1e-5)


def test_bf16_follows_fp32():
    lm, ids = random_lm(), tokens(1, 8)
    half = lm.to(dtype=torch.bfloat16)
    assert half.num_bytes * 2 == lm.num_bytes
    wanted = lm(ids).flatten()
    assert torch.corrcoef(torch.stack([half(ids).float().flatten(), wanted]))[0, 1] > 0.99


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an accelerator")
def test_accelerator_agrees():
    lm, ids = random_lm(), tokens(2, 8)
    assert torch.allclose(lm.to("cuda")(ids.cuda()).cpu(), lm(ids), atol=1e-3)


@pytest.mark.parametrize("ids, said", [
    (torch.zeros(1, 0, dtype=torch.long), "at least one token"),
    (torch.tensor([[999]]), "0..299"), (torch.tensor([[-1]]), "0..299")])
def test_bad_tokens(ids, said):
    with pytest.raises(ValueError, match=said):
        random_lm()(ids)


def test_text_beyond_the_context_names_the_limit():
    with pytest.raises(ValueError, match="context of 16 tokens"):
        random_lm(max_positions=16)(tokens(1, 17))


def test_wrong_weights_are_named():
    lm = random_lm()
    missing = {k: v for k, v in lm.weights.items() if k != "layers.1.down"}
    with pytest.raises(ValueError, match="layers.1.down"):
        LM(lm.config, missing)
    with pytest.raises(ValueError, match="norm.*shape"):
        LM(lm.config, {**lm.weights, "norm": torch.zeros(3)})
    with pytest.raises(ValueError, match="multiple"):
        LMConfig(10, 8, 1, 3, 2, 4, 16)


def test_rope_is_a_rotation_of_differences():
    rope, x = Rope(8), torch.randn(1, 1, 2, 8)
    at = lambda p: rope.rotate(x, torch.tensor([[p]]))           # noqa: E731
    assert torch.allclose(rope.rotate(at(5), torch.tensor([[-5]])), x, atol=1e-6)
    assert torch.allclose(at(3).norm(dim=-1), x.norm(dim=-1), atol=1e-5)
    y = torch.randn(1, 1, 2, 8)
    near = (at(9) * rope.rotate(y, torch.tensor([[4]]))).sum(-1)
    far = (at(105) * rope.rotate(y, torch.tensor([[100]]))).sum(-1)
    assert torch.allclose(near, far, atol=1e-4)


# Decoders that must fail against the textbook.

class WrongPairing(LM):
    """Pairs query head h with KV head h modulo K instead of h divided by the group."""
    def _attention(self, i, x, cache, positions, cos, sin):
        order = torch.arange(self.config.num_heads).view(-1, self.config.num_kv_heads).T.flatten()
        attend = cache.attend

        class Swapped:
            def attend(self, layer, q, k, v, positions):
                return attend(layer, q[:, :, order], k, v, positions)[:, :, order.argsort()]
        return super()._attention(i, x, Swapped(), positions, cos, sin)


class InterleavedRope(LM):
    """Rotates neighbouring channels, the convention of the other checkpoints."""
    def __init__(self, *args):
        super().__init__(*args)
        order = torch.arange(self.config.head_dim).view(2, -1).T.flatten()
        rotate, rope = self.rope.tables, self.rope

        class Swapped:
            def tables(self, positions, dtype=torch.float32):
                cos, sin = rotate(positions, dtype)
                return cos[..., order], sin[..., order]

            def __getattr__(self, name):
                return getattr(rope, name)
        self.rope = Swapped()


class NoEpsilonNorm(LM):
    def _norm(self, x, weight):
        return x / x.norm(dim=-1, keepdim=True) * weight


@pytest.mark.parametrize("wrong", [WrongPairing, InterleavedRope, NoEpsilonNorm])
def test_wrong_decoders_are_rejected(wrong):
    lm, ids = random_lm(), tokens(1, 10)
    assert not torch.allclose(wrong(lm.config, lm.weights)(ids), plain_forward(lm, ids), atol=1e-2)


# Attention paths.

@pytest.mark.parametrize("held", [[7, 7], [3, 7], [1, 300]])
def test_kernel_and_fallback_and_brute_force_agree(held, monkeypatch):
    batch, heads, kv, dim = 2, 6, 2, 8
    held = np.array(held)
    q, keys, values = torch.randn(batch, heads, dim), torch.randn(batch, kv, 310, dim), torch.randn(batch, kv, 310, dim)
    fast, probs = attention.decode_attention(q, keys, values, held)
    monkeypatch.setattr(attention, "numba", None)
    slow, slow_probs = attention.decode_attention(q, keys, values, held)
    assert torch.allclose(fast, slow, atol=1e-5) and torch.allclose(probs, slow_probs, atol=1e-6)
    for b in range(batch):
        for h in range(heads):
            k, v = keys[b, h // 3, :held[b]], values[b, h // 3, :held[b]]
            p = (k @ q[b, h] / dim ** 0.5).softmax(0)
            assert torch.allclose(p @ v, fast[b, h], atol=1e-5)
            assert torch.allclose(p, probs[b, h, :held[b]], atol=1e-6) and not probs[b, h, held[b]:].any()


def test_rows_in_blocks_equal_the_whole_matrix():
    q, keys = torch.randn(2, 9, 6, 8), torch.randn(2, 2, 12, 8)
    held = np.array([12, 10])
    whole = attention.attention_rows(q, keys, held, 9, 0)
    blocks = [attention.attention_rows(q[:, i:i + 4], keys, held, 9, i) for i in (0, 4, 8)]
    assert torch.allclose(torch.cat(blocks, 2), whole, atol=1e-6)
    assert not whole[1, :, :, 10:].any() and not whole[0, :, 0, 4:].any()
    assert torch.allclose(whole.sum(-1), torch.ones(2, 6, 9), atol=1e-5)
