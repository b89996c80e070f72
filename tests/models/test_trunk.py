"""The trunk: cached, causal and masked runs agree; a fresh adaLN-zero block is the identity."""
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from frugal.models.trunk import Block, Trunk


def trunk(seed: int = 0, **options) -> Trunk:
    torch.manual_seed(seed)
    return Trunk(16, 2, 2, **options).eval()


@settings(max_examples=20, deadline=None)
@given(sizes=st.lists(st.integers(1, 4), min_size=1, max_size=5), seed=st.integers(0, 99))
def test_cached_pieces_equal_one_causal_run(sizes, seed):
    model, x = trunk(seed), torch.randn(2, sum(sizes), 16, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        cache = model.new_cache(2, reserve=sum(sizes))
        pieces = torch.cat([model(part, cache=cache) for part in x.split(sizes, dim=1)], dim=1)
        assert torch.allclose(pieces, model(x, causal=True), atol=1e-5)
    assert cache.num_held().tolist() == [sum(sizes)] * 2


def test_training_and_reading_attention_agree():
    model, x = trunk(), torch.randn(2, 7, 16)
    mask = torch.rand(7, 7) < 0.5
    mask.fill_diagonal_(True)
    with torch.no_grad():
        fused = model(x, mask)
    assert torch.allclose(model(x, mask), fused, atol=1e-5) and not torch.allclose(model(x), fused, atol=1e-3)


def test_a_masked_token_has_no_influence():
    model, x = trunk(), torch.randn(1, 6, 16)
    mask = torch.ones(6, 6, dtype=torch.bool)
    mask[:3, 3:] = False
    other = x.clone()
    other[:, 3:] += torch.randn(1, 3, 16)                # not a constant, which the norm would take away
    with torch.no_grad():
        assert torch.equal(model(x, mask)[:, :3], model(other, mask)[:, :3])
        assert not torch.allclose(model(x, mask)[:, 3:], model(other, mask)[:, 3:], atol=1e-3)


def test_a_fresh_conditioned_block_is_the_identity_and_kinds_have_scales_of_their_own():
    torch.manual_seed(0)
    block, x, cond = Block(16, 2, cond_width=4, num_kinds=2), torch.randn(2, 5, 16), torch.randn(2, 4)
    kinds = torch.tensor([0, 0, 0, 1, 1])
    assert torch.equal(block(x, cond=cond, kinds=kinds), x)
    with torch.no_grad():
        block.modulate.bias.unflatten(0, (2, 6, 16))[1] += 0.5               # the second kind alone
    moved = (block(x, cond=cond, kinds=kinds) - x).abs().amax((0, 2))
    assert (moved[:3] == 0).all() and (moved[3:] > 0).all()


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="width 10 cannot be split into 4 heads"):
        Trunk(10, 1, 4)
    model, x = trunk(), torch.randn(1, 3, 16)
    with pytest.raises(ValueError, match="a cache is causal"):
        model(x, torch.ones(3, 3, dtype=torch.bool), cache=model.new_cache())
    with pytest.raises(ValueError, match="cond must be given exactly"):
        model(x, cond=torch.randn(1, 4))
