"""FlexTok on tiny random models: prefixes stand alone, codes come back, the flow ends where the decoder points."""
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from frugal.core.image_metrics import psnr
from frugal.data.emoji_images import load_images, pca_basis
from frugal.explore.exercises import problems
from frugal.models.quantizers import FSQ
from frugal.visual_tokenizers import exercises_flextok
from frugal.visual_tokenizers.flextok import FlexTok, load_flextok, nested_dropout
from frugal.visual_tokenizers.flextok_nets import patches, unpatched


@pytest.fixture(scope="module")
def tok() -> FlexTok:
    torch.manual_seed(0)
    made = FlexTok(encoder=(24, 2, 2), decoder=(24, 2, 2)).eval().requires_grad_(False)
    for parameter in made.parameters():                                # zero starts would hide a wrong path
        if not parameter.any():
            parameter.normal_(std=0.2)
    return made


def pictures(count: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("place", [0, 5, 15])
def test_a_register_leaves_earlier_ones_unchanged_bit_for_bit(tok, place):
    images, registers = pictures(2), torch.randn(2, 16, 24, generator=torch.Generator().manual_seed(1))
    moved = registers.clone()
    moved[:, place] = 3 * torch.randn(2, 24, generator=torch.Generator().manual_seed(2))
    before, after = tok.encoder(images, registers), tok.encoder(images, moved)
    assert torch.equal(before[:, :place], after[:, :place])
    changed = (before[:, place:] != after[:, place:]).any(-1)
    assert changed[:, 0].all() and changed.float().mean() > 0.7        # itself and those behind it do change


def test_without_the_mask_it_would_be_seen(tok):
    images, registers = pictures(1), torch.randn(1, 16, 24, generator=torch.Generator().manual_seed(1))
    moved = registers.clone()
    moved[:, 9] += 1
    mask = tok.encoder.mask.clone()
    try:
        tok.encoder.mask.fill_(True)
        assert not torch.equal(tok.encoder(images, registers)[:, :9], tok.encoder(images, moved)[:, :9])
    finally:
        tok.encoder.mask.copy_(mask)


@pytest.mark.parametrize("k", [1, 2, 4, 8, 16])
def test_a_cut_sequence_decodes_as_the_whole_one_with_the_mask_behind(tok, k):
    codes = tok.encode(pictures(2))
    latents = nested_dropout(tok.quantizer.lookup(codes), torch.full((2,), k), tok.mask)
    assert torch.equal(tok.prefix(codes[:, :k]), latents)
    other = codes.clone()
    other[:, k:] = 0
    assert torch.equal(tok.decode(codes[:, :k], 3), tok.decode(other[:, :k], 3))


def test_one_step_is_the_decoder_and_more_steps_follow_it(tok):
    codes = tok.encode(pictures(2))
    noise = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    guess = tok.decoder(noise, torch.ones(2), tok.prefix(codes))
    assert torch.allclose(tok.decode(codes, 1), (guess * 0.5 + 0.5).clamp(0, 1), atol=1e-5)
    tok_mean = tok.decode_mean(codes)
    assert torch.equal(tok_mean, tok.decode(codes, 1))


def test_the_seed_decides_the_picture_and_guidance_moves_it(tok):
    codes = tok.encode(pictures(1))
    draw = {s: tok.decode(codes, 3, torch.Generator().manual_seed(s)) for s in (1, 2)}
    assert torch.equal(draw[1], tok.decode(codes, 3, torch.Generator().manual_seed(1)))
    assert not torch.equal(draw[1], draw[2])
    assert not torch.equal(draw[1], tok.decode(codes, 3, torch.Generator().manual_seed(1), guidance=4.0))


def test_near_zero_noise_the_picture_itself_is_returned(tok):
    x0, times = pictures(2) * 2 - 1, torch.full((2,), 1e-4)
    guess = tok.decoder(x0, times, tok.prefix(tok.encode(pictures(2))))
    assert torch.allclose(guess, x0, atol=2e-3)


@given(levels=st.lists(st.integers(2, 9), min_size=1, max_size=4))
def test_codes_come_back_from_their_vectors(levels):
    quantizer = FSQ(levels)
    every = torch.arange(quantizer.codebook_size)
    grid = quantizer.lookup(every) * quantizer.centre
    assert torch.equal(quantizer.numbers(grid), every)


@settings(max_examples=30)
@given(batch=st.integers(1, 4), count=st.integers(1, 9), data=st.data())
def test_nested_dropout_is_the_double_loop(batch, count, data):
    keep = data.draw(st.lists(st.integers(0, count), min_size=batch, max_size=batch))
    registers, mask = torch.randn(batch, count, 2), torch.randn(2)
    got = nested_dropout(registers, torch.tensor(keep), mask)
    for b in range(batch):
        for r in range(count):
            assert torch.equal(got[b, r], registers[b, r] if r < keep[b] else mask)


def test_patches_come_back():
    images = pictures(2)
    assert torch.equal(unpatched(patches(images)), images) and patches(images).shape == (2, 64, 48)


def test_bad_input(tok):
    codes = tok.encode(pictures(1))
    for wrong, message in [(codes[:, :3], "trained for"), (codes[:, :0], "trained for"), (codes + 240, "0..239"), (-codes - 1, "0..239")]:
        with pytest.raises(ValueError, match=message):
            tok.decode(wrong)
    with pytest.raises(ValueError, match="in \\[0, 1\\]"):
        tok.encode(pictures(1) * 255)
    with pytest.raises(ValueError, match="32"):
        tok.encode(torch.rand(1, 3, 16, 16))
    with pytest.raises(ValueError, match="keep must be"):
        nested_dropout(torch.zeros(1, 4, 2), torch.tensor([5]), torch.zeros(2))


def test_exercises_are_proven():
    assert [problems(exercise) for exercise in exercises_flextok.EXERCISES] == [[]]


@pytest.fixture(scope="module")
def trained() -> FlexTok:
    return load_flextok()


def test_more_codes_come_closer_and_beat_principal_components(trained):
    images = load_images()
    held = images.pixels[images.held_out_set()][::5]
    codes = trained.encode(held)
    found = [float(psnr(trained.decode_mean(codes[:, :k]), held).mean()) for k in trained.kept]
    linear = [float(psnr(pca_basis(k).decode(pca_basis(k).encode(held)).clamp(0, 1), held).mean()) for k in trained.kept]
    assert found == sorted(found) and found[-1] - found[0] > 2
    assert all(ours > theirs + 0.3 for ours, theirs in zip(found, linear))
    shuffled = codes[:, torch.randperm(16, generator=torch.Generator().manual_seed(0))]
    assert float(psnr(trained.decode_mean(shuffled), held).mean()) < found[0]      # places of codes matter: no flat score


def test_seeds_differ_most_at_one_code_and_codes_are_used(trained):
    images = load_images()
    held = images.pixels[images.held_out_set()][:12]
    codes = trained.encode(held)
    spread = {}
    for k in (1, 16):
        drawn = torch.stack([trained.decode(codes[:, :k], 4, torch.Generator().manual_seed(s)) for s in range(3)])
        spread[k] = float(drawn.std(0).mean())
    assert spread[1] > 1.15 * spread[16] > 0
    assert trained.encode(images.pixels[::8]).unique().numel() > 150
