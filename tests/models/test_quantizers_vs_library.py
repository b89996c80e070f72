"""Our quantizers against vector-quantize-pytorch, index for index and value for value, on 10,000 random latents."""
import pytest
import torch

from frugal.models.quantizers import FSQ, ResidualVQ, VectorQuantizer

library = pytest.importorskip("vector_quantize_pytorch")
COUNT = 10_000


def latents(dim: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(1, COUNT, dim, generator=torch.Generator().manual_seed(seed))


def theirs_of(ours: VectorQuantizer):
    theirs = library.VectorQuantize(dim=ours.dim, codebook_size=ours.codebook_size, use_cosine_sim=ours.cosine, commitment_weight=0.25)
    theirs._codebook.embed.data.copy_(ours.codebook[None])
    return theirs.eval()


@pytest.mark.parametrize("cosine", [False, True])
@pytest.mark.parametrize("size, dim", [(256, 8), (64, 3)])
def test_vector_quantizer(cosine, size, dim):
    torch.manual_seed(0)
    ours = VectorQuantizer(size, dim, cosine=cosine).eval()
    values, codes, _ = theirs_of(ours)(latents(dim))
    found = ours(latents(dim))
    assert torch.equal(found.codes, codes)
    torch.testing.assert_close(found.latents, values, atol=1e-6, rtol=0)
    torch.testing.assert_close(ours.lookup(codes), values, atol=1e-6, rtol=0)
    assert torch.equal(theirs_of(ours).get_codes_from_indices(codes), ours.lookup(codes))


def test_another_codebook_would_be_seen():
    torch.manual_seed(0)
    ours, other = VectorQuantizer(256, 8).eval(), VectorQuantizer(256, 8).eval()
    assert (theirs_of(other)(latents(8))[1] != ours(latents(8)).codes).float().mean() > 0.9


@pytest.mark.parametrize("levels", [(8, 6, 5), (8, 8, 8, 5, 5, 5), (3,), (4, 7)])
def test_fsq(levels):
    ours = FSQ(levels).eval()
    theirs = library.FSQ(list(levels), preserve_symmetry=False).eval()
    values, codes = theirs(latents(len(levels)) * 2)
    found = ours(latents(len(levels)) * 2)
    assert torch.equal(found.codes, codes.long())
    torch.testing.assert_close(found.latents, values, atol=1e-6, rtol=0)
    every = torch.arange(ours.codebook_size)
    torch.testing.assert_close(ours.codebook, theirs.indices_to_codes(every[None])[0], atol=1e-6, rtol=0)


@pytest.mark.parametrize("depth", [1, 4, 8])
def test_residual_vq(depth):
    torch.manual_seed(0)
    ours = ResidualVQ(depth, 64, 8).eval()
    for level, quantizer in enumerate(ours.levels):
        quantizer.codebook.mul_(0.6 ** level)                                             # residuals shrink with depth
    theirs = library.ResidualVQ(dim=8, num_quantizers=depth, codebook_size=64).eval()
    for layer, quantizer in zip(theirs.layers, ours.levels):
        layer._codebook.embed.data.copy_(quantizer.codebook[None])
    values, codes, _ = theirs(latents(8))
    found = ours(latents(8))
    assert torch.equal(found.codes, codes)
    torch.testing.assert_close(found.latents, values, atol=1e-6, rtol=0)
    torch.testing.assert_close(ours.lookup(codes), values, atol=1e-6, rtol=0)
