"""The grid tokenizer: its codes say all that the decoder knows, places stay places, and bad input is refused by name."""
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from frugal.core.image_metrics import psnr
from frugal.data.emoji_images import load_images
from frugal.models.quantizers import FSQ, ResidualVQ, VectorQuantizer
from frugal.models.vq_grid import VQGrid, build_vq_grid, check_code_shape, check_images, load_vq_grid, make_quantizer, start_from_pca

SMALL = dict(fine=8, width=8, blocks=(1, 1))


def grid(side: int = 8, kind: str = "vq", shortcut: bool = False, **options) -> VQGrid:
    torch.manual_seed(0)
    sizes = {"vq": {"codebook_size": 16, "dim": 4}, "fsq": {"levels": (4, 4)},
             "rvq": {"num_levels": 3, "codebook_size": 16, "dim": 4}}[kind]
    return VQGrid(side, make_quantizer(kind, **sizes), linear_shortcut=shortcut, **{**SMALL, **options}).eval()


def pictures(count: int = 3, seed: int = 1) -> torch.Tensor:
    return torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", ["vq", "fsq", "rvq"])
@pytest.mark.parametrize("side", [8, 4, 2])
def test_codes_hold_all_the_decoder_knows(side, kind):
    model = grid(side, kind, shortcut=side == 2)
    codes = model.encode(pictures())
    assert codes.shape[:2] == (3, side * side) == (3, model.num_tokens)
    assert torch.allclose(model.decode(codes), model(pictures()).images.clamp(0, 1), atol=1e-5)
    assert model.decode(codes).shape == (3, 3, 32, 32)


def test_bits_count_tokens_levels_and_codes():
    assert grid(8).bits == 64 * 4 and grid(4, "rvq").bits == 16 * 3 * 4 and grid(2, "fsq").bits == 4 * 4
    assert VQGrid(8).bits == 512 and isinstance(VQGrid(4).quantizer, VectorQuantizer)


def test_prefixes_of_residual_codes_decode():
    model = grid(4, "rvq")
    codes = model.encode(pictures())
    assert [model.decode(codes[..., :depth]).shape[0] for depth in (1, 2, 3)] == [3, 3, 3]


@settings(max_examples=6, deadline=None)
@given(side=st.sampled_from([8, 4]), place=st.integers(0, 63))
def test_codes_stand_in_reading_order(side, place):
    """With the branches off, the shortcut alone speaks: a code may change its own square and nothing else."""
    place %= side * side
    model = grid(side, "fsq", shortcut=True)
    for last in (model.to_latents, model.decoder[-2]):
        torch.nn.init.zeros_(last.weight)
        torch.nn.init.zeros_(last.bias)
    image = torch.full((1, 3, 32, 32), 0.5)
    row, col, step = place // side, place % side, 32 // side
    changed = image.clone()
    changed[0, :, row * step:(row + 1) * step, col * step:(col + 1) * step] = torch.rand(3, step, step)
    before, after = model.encode(image)[0], model.encode(changed)[0]
    assert (before != after).nonzero().flatten().tolist() in ([place], [])
    moved = (model.decode(after[None]) - model.decode(before[None])).abs().sum(1)[0] > 1e-6
    moved[row * step:(row + 1) * step, col * step:(col + 1) * step] = False
    assert not moved.any()


def test_pca_start_is_the_closed_form():
    """Without quantization the started shortcut is the local PCA, whose error is the variance of the components left out."""
    model = VQGrid(8, make_quantizer("fsq", levels=(8, 8, 8, 8)), linear_shortcut=True, **SMALL)
    start_from_pca(model, share=0.0)
    images = load_images()
    real = images.pixels[images.train()][::40]
    squares = torch.nn.functional.pixel_unshuffle(real * 2 - 1, 4).flatten(2).transpose(1, 2)
    every = torch.nn.functional.pixel_unshuffle(images.pixels[images.train()] * 2 - 1, 4).flatten(2).transpose(1, 2).flatten(0, 1)
    mean = every.mean(0)
    _, vectors = torch.linalg.eigh(((every - mean).T @ (every - mean)).double())
    kept = vectors[:, -4:].float()
    wanted = (squares - mean) @ kept @ kept.T + mean
    with torch.no_grad():
        got = model.linear_out(model.latents(real))
    assert torch.allclose(got, wanted, atol=1e-4)


def test_disturbed_latents_reach_the_decoder_and_leave_codes_alone():
    model, seen = grid(4), []

    def disturb(latents, quantized, quantizer):
        seen.append((latents.shape, quantizer is model.quantizer))
        return torch.zeros_like(quantized.latents)

    made = model(pictures(), disturb)
    assert seen == [(torch.Size([3, 16, 4]), True)]
    assert torch.equal(made.images, model.decode_latents(torch.zeros(3, 16, 4)))
    assert torch.equal(made.quantized.codes, model.encode(pictures()))


@pytest.mark.parametrize("bad, said", [
    (torch.rand(1, 3, 16, 16), "shape"), (torch.rand(1, 1, 32, 32), "shape"), (torch.rand(1, 3, 32, 32) * 255, "divide"),
    (torch.full((1, 3, 32, 32), float("nan")), "floats in"), (torch.zeros(1, 3, 32, 32, dtype=torch.uint8), "floats in")])
def test_pictures_that_are_none(bad, said):
    with pytest.raises(ValueError, match=said):
        check_images(bad)


@pytest.mark.parametrize("bad, said", [(torch.zeros(1, 63, dtype=torch.long), r"\(B, 64\)"), (torch.full((1, 64), 16), r"0..15"),
                                       (torch.full((1, 64), -1), r"0..15")])
def test_codes_that_are_none(bad, said):
    with pytest.raises(ValueError, match=said):
        grid().decode(bad)
    with pytest.raises(ValueError, match="up to 3"):
        check_code_shape(bad, 64, levels=3)


def test_other_sizes_are_refused():
    with pytest.raises(ValueError, match="2, 4 or 8"):
        VQGrid(3)
    with pytest.raises(ValueError, match="vq, fsq, rvq"):
        make_quantizer("pq")
    assert isinstance(build_vq_grid({"grid": 4, "quantizer": {"kind": "fsq", "levels": [8, 6, 5]}}).quantizer, FSQ)
    assert isinstance(make_quantizer("rvq", num_levels=2, codebook_size=4, dim=2), ResidualVQ)


# -- planted wrong decoders -----------------------------------------------------------------------------------------

def test_a_decoder_that_reads_columns_is_seen():
    """The encoder of a trained model is right: its decoder, reading columns, draws another picture."""
    right = load_vq_grid("vq_grid_64")
    images = load_images()
    real = images.pixels[images.held_out_set()][:24]
    good = psnr(right.decode(right.encode(real)), real).mean()
    wrong = right.decode(right.encode(real).unflatten(1, (8, 8)).transpose(1, 2).flatten(1))
    assert good > 20 and psnr(wrong, real).mean() < good - 5


@pytest.mark.parametrize("name, tokens, least", [("vq_grid_64", 64, 21.5), ("vq_grid_16", 16, 15.5), ("vq_grid_4", 4, 13.0)])
def test_trained_grids_reach_their_level(name, tokens, least):
    model, images = load_vq_grid(name), load_images()
    real = images.pixels[images.held_out_set()]
    assert model.num_tokens == tokens and model.bits == 8 * tokens
    assert psnr(model.decode(model.encode(real)), real).mean() > least
