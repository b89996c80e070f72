"""FastV: nothing dropped changes nothing; what is dropped is by the last token's attention, and later caches are smaller."""
import pytest
import torch

from frugal.core.budgets import BudgetTooSmall
from frugal.models.mini_vlm import random_vlm
from frugal.token_dropping.fastv import FastV, kept_places
from frugal.token_dropping.keeping import keep
from tests.token_dropping.toys import random_tokens

PROMPT = torch.tensor([[3, 5, 7, 2], [4, 4, 1, 9]])


@pytest.fixture(scope="module")
def vlm():
    return random_vlm()


def tokens_for(vlm, seed=0):
    return random_tokens(seed, 2, vlm.grid, vlm.lm.config.hidden_size)


def test_nothing_dropped_is_the_full_model(vlm):
    tokens = tokens_for(vlm)
    plain = vlm.lm.new_cache(2)
    embeds = torch.cat([tokens.embeds, vlm.lm.weights["embed"][PROMPT]], 1)
    expected = vlm.lm.run(None, plain, embeds=embeds, last_only=True).logits[:, -1]
    for method in (FastV(after=1), FastV(after=1, equal="tokens")):
        cache, logits = method.prefill(vlm, tokens, PROMPT, 1.0)
        assert torch.equal(logits, expected) and cache.num_bytes == plain.num_bytes
        new = torch.tensor([[6], [6]])
        assert torch.equal(vlm.lm(new, cache), vlm.lm(new, plain.copy()))            # and decoding goes on alike


def test_later_blocks_hold_less_and_go_on_at_the_same_position(vlm):
    tokens, layers = tokens_for(vlm), vlm.lm.config.num_layers
    method = FastV(after=1, equal="tokens")
    cache, _ = method.prefill(vlm, tokens, PROMPT, 0.25)
    assert [cache.num_held(i).tolist() for i in range(layers)] == [[324, 324]] + [[84, 84]] * (layers - 1)
    assert cache.num_seen.tolist() == [324, 324]
    vlm.lm(torch.tensor([[6], [6]]), cache)
    assert cache.positions[layers - 1][0, 0, 84] == 324 and int(cache.positions[layers - 1][0, 0, 83]) == 323


def test_the_cut_against_a_loop(vlm):
    """Attention of the last token in block `after - 1`, from the keys that the cache holds; then the rest by hand."""
    tokens, lm = tokens_for(vlm, 3), vlm.lm
    embeds = torch.cat([tokens.embeds, lm.weights["embed"][PROMPT]], 1)
    full = lm.run(None, lm.new_cache(2), embeds=embeds, hidden=True).hidden
    cache, _ = FastV(after=1, equal="tokens").prefill(vlm, tokens, PROMPT, 40)
    kept = cache.positions[1][0, 0].tolist()
    attention = last_row(lm, embeds)
    best = sorted(sorted(range(320), key=lambda j: (-float(attention[0, j]), j))[:40])
    assert kept == best + [320, 321, 322, 323]
    own, positions = full[1][:1, kept], torch.tensor([kept])
    again = lm.new_cache(1)
    lm.run(None, again, embeds=own.contiguous(), positions=positions, layers=list(range(1, lm.config.num_layers)))
    assert torch.allclose(again.keys[1][0], cache.keys[1][0], atol=1e-4)


def last_row(lm, embeds):
    """Block 0's attention of the last token, heads averaged, written out: (B, S)."""
    from frugal.core.rope import apply
    weights, c = lm.layers[0], lm.config
    qkv = (lm._norm(embeds, weights["attn_norm"]) @ weights["qkv"].T).unflatten(-1, (-1, c.head_dim))
    cos, sin = (t[:, :, None] for t in lm.rope.tables(torch.arange(embeds.shape[1]).expand(2, -1), embeds.dtype))
    q = apply(qkv[:, :, :c.num_heads].contiguous(), cos, sin)[:, -1]
    k = apply(qkv[:, :, c.num_heads:c.num_heads + c.num_kv_heads].contiguous(), cos, sin)
    k = k.repeat_interleave(c.num_heads // c.num_kv_heads, 2)
    return (torch.einsum("bhd,bshd->bhs", q, k) * c.head_dim ** -0.5).softmax(-1).mean(1)


def test_equal_flops_by_hand():
    """8 blocks, cut after 2: a budget of 62.5 % leaves half of the tokens; 25 % is spent before the cut."""
    assert FastV().num_left(0.625, 320, 8) == 160 and FastV().num_left(1.0, 320, 8) == 320
    for budget in (0.3, 0.4, 0.6, 0.9):
        left = FastV().num_left(budget, 320, 8)
        assert (2 * 320 + 6 * left) / 8 / 320 == pytest.approx(budget, rel=0.01)
    with pytest.raises(BudgetTooSmall, match="already cost 25%"):
        FastV().num_left(0.2, 320, 8)
    assert FastV(equal="tokens").num_left(0.2, 320, 8) == 64


def test_the_prompt_is_never_dropped():
    attention = torch.tensor([[0.5, 0.1, 0.3, 0.0, 0.1]])
    assert kept_places(attention, 3, 2).tolist() == [[0, 2, 3, 4]]


@pytest.mark.parametrize("call, said", [
    (lambda: FastV(after=0), "at least 1"), (lambda: FastV(equal="bytes"), "'flops' or 'tokens'"),
    (lambda: FastV(after=8).num_left(0.5, 320, 8), "leaves no later block"), (lambda: FastV().num_left(0, 320, 8), "1 to 320"),
    (lambda: FastV().num_left(float("nan"), 320, 8), "budget nan"), (lambda: keep(random_tokens(), FastV(), 0.5), "call its `prefill`")])
def test_bad_settings(call, said):
    with pytest.raises(ValueError, match=said):
        call()
