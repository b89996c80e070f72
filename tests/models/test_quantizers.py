"""Quantizers against brute force: nearest codes, straight-through gradients, round trips, codebooks that learn."""
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from frugal.models.quantizers import FSQ, ResidualVQ, VectorQuantizer, check_codes, codebook_usage


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("cosine", [True, False])
@settings(max_examples=20, deadline=None)
@given(size=st.integers(2, 20), dim=st.integers(1, 5), seed=st.integers(0, 99))
def test_the_nearest_code_is_found_by_looking_at_all(cosine, size, dim, seed):
    torch.manual_seed(seed)
    quantizer = VectorQuantizer(size, dim, cosine=cosine).eval()
    latents = torch.randn(2, 6, dim, generator=seeded(seed))
    found = quantizer(latents)
    whole = quantizer.prepared(latents)
    for place in [(i, j) for i in range(2) for j in range(6)]:
        distances = [float((whole[place] - code).square().sum()) for code in quantizer.codebook]
        assert distances[found.codes[place]] <= min(distances) + 1e-5
    assert torch.allclose(found.latents, quantizer.lookup(found.codes), atol=1e-6)


@pytest.mark.parametrize("quantizer", [VectorQuantizer(8, 3, cosine=False), FSQ((4, 3, 5)), ResidualVQ(3, 8, 3)],
                         ids=["vq", "fsq", "rvq"])
def test_the_gradient_passes_straight_through(quantizer):
    latents = torch.randn(5, 3, generator=seeded(0), requires_grad=True)
    out = quantizer.eval()(latents).latents
    weight = torch.randn(5, 3, generator=seeded(1))
    (out * weight).sum().backward()
    want = weight
    if isinstance(quantizer, FSQ):                       # rounding passes it on; the squeeze before it has a slope
        squeezed = latents.detach().requires_grad_()
        (quantizer.bounded(squeezed) / quantizer.centre * weight).sum().backward()
        want = squeezed.grad
    assert torch.allclose(latents.grad, want, atol=1e-6)


def test_the_codebook_moves_to_the_clusters():
    torch.manual_seed(0)
    centres = torch.randn(8, 4) * 5
    quantizer = VectorQuantizer(32, 4, cosine=False)
    for _ in range(60):
        quantizer(centres[torch.randint(8, (256,))] + 0.05 * torch.randn(256, 4))
    assert float((quantizer.eval()(centres).latents - centres).norm(dim=-1).max()) < 0.2


@pytest.mark.parametrize("revive, dead", [(0.02, False), (0.0, True)])
def test_a_code_that_nothing_falls_on_is_put_elsewhere(revive, dead):
    torch.manual_seed(0)
    quantizer, latents = VectorQuantizer(8, 3, cosine=False, decay=0.9, revive=revive), torch.randn(256, 3)
    quantizer(latents)
    quantizer.codebook[0], quantizer.sums[0], quantizer.counts[0] = 100.0, 100.0, 1.0
    for _ in range(50):
        quantizer(latents)
    assert bool((quantizer.eval()(latents).codes != 0).all()) == dead


def test_eval_leaves_the_codebook_alone():
    quantizer = VectorQuantizer(8, 3).eval()
    before = quantizer.codebook.clone()
    quantizer(torch.randn(20, 3))
    assert torch.equal(quantizer.codebook, before)


@settings(max_examples=30, deadline=None)
@given(levels=st.lists(st.integers(2, 8), min_size=1, max_size=4), seed=st.integers(0, 99))
def test_every_fsq_code_survives_the_round_trip(levels, seed):
    quantizer = FSQ(levels)
    every = torch.arange(quantizer.codebook_size)
    vectors = quantizer.lookup(every)
    assert len(torch.unique(vectors, dim=0)) == quantizer.codebook_size and float(vectors.abs().max()) <= 1
    assert torch.equal(quantizer.numbers(vectors * quantizer.centre), every)
    found = quantizer(torch.randn(50, len(levels), generator=seeded(seed)) * 4)
    assert torch.allclose(quantizer.lookup(found.codes), found.latents, atol=1e-6)


def test_the_mean_error_of_residual_quantization_falls_with_every_level():
    torch.manual_seed(0)
    quantizer, latents = ResidualVQ(4, 16, 3, dropout=0.0), torch.randn(2000, 3)
    for _ in range(20):
        quantizer(latents)
    codes = quantizer.eval()(latents).codes
    errors = [float((quantizer.lookup(codes[:, :depth]) - latents).square().mean()) for depth in range(5)]
    assert all(later < 0.8 * earlier for earlier, later in zip(errors, errors[1:])), errors


def test_dropout_cuts_levels_in_training_only():
    torch.manual_seed(0)
    quantizer, latents = ResidualVQ(6, 8, 3, dropout=1.0), torch.randn(30, 3)
    depths = {quantizer(latents).codes.shape[-1] for _ in range(40)}
    assert depths == {1, 2, 3, 4, 5, 6} and quantizer.eval()(latents).codes.shape[-1] == 6


def test_codes_that_are_no_integers_are_named():
    with pytest.raises(ValueError, match="codes must be integers, got torch.float32"):
        check_codes(torch.tensor([0.0, 1.0]), 4)


def test_usage_counts():
    usage = codebook_usage(torch.tensor([0, 0, 1, 1]), 4)
    assert usage["counts"].tolist() == [2, 2, 0, 0] and usage["used"] == 0.5 and usage["perplexity"] == pytest.approx(2)


@pytest.mark.parametrize("quantizer", [VectorQuantizer(8, 3), FSQ((4, 2, 2)), ResidualVQ(2, 8, 3)],
                         ids=["vq", "fsq", "rvq"])
def test_codes_out_of_range_are_named(quantizer):
    bad = torch.tensor([[0, 99]])
    with pytest.raises(ValueError, match=r"codes must be in 0\.\."):
        quantizer.lookup(bad)


@pytest.mark.parametrize("make, message", [(lambda: VectorQuantizer(1, 3), "codebook_size >= 2"), (lambda: FSQ([3, 1]), "at least 2"),
                                           (lambda: ResidualVQ(0, 8, 3), "at least 1")], ids=["vq", "fsq", "rvq"])
def test_impossible_sizes_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
