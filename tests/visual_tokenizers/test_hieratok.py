"""HieraTok on tiny random models: one scale is a plain transformer, coarse scales do not see finer ones."""
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from frugal.explore.exercises import problems
from frugal.visual_tokenizers import exercises_hieratok
from frugal.visual_tokenizers.hieratok import HieraTok, Latent, ScaleBlocks, token_pyramid
from frugal.visual_tokenizers.hieratok_flow import LatentFlow

TINY = dict(width=16, heads=2, dim=4)


def pictures(count: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def tok() -> HieraTok:
    torch.manual_seed(0)
    return HieraTok(**TINY).eval().requires_grad_(False)


def pyramid_loop(tokens: torch.Tensor, scales: list[int]) -> list[torch.Tensor]:
    """Each coarse token as the mean over its square, place by place."""
    side, rows = round(tokens.shape[1] ** 0.5), []
    for s in scales:
        step = side // s
        for y in range(s):
            for x in range(s):
                inside = [(y * step + dy) * side + x * step + dx for dy in range(step) for dx in range(step)]
                rows.append(tokens[:, inside].mean(1))
    return rows


@pytest.mark.parametrize("scales", [[8], [4, 8], [2, 4, 8], [1, 2, 4, 8], [1, 8]])
def test_pyramid_is_the_double_loop(scales):
    tokens = torch.randn(2, 64, 3, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(token_pyramid(tokens, scales), torch.stack(pyramid_loop(tokens, scales), 1), atol=1e-6)


@given(value=st.floats(-5, 5))
def test_a_constant_map_stays_constant(value):
    assert torch.allclose(token_pyramid(torch.full((1, 64, 2), value), [1, 2, 4, 8]), torch.tensor(value), atol=1e-5)


@pytest.mark.parametrize("scales", [[], [8, 4], [3, 8], [1, 2, 4], [4, 4, 8], [8, 16]])
def test_bad_scales_are_refused(scales):
    with pytest.raises(ValueError, match="scales must ascend"):
        token_pyramid(torch.zeros(1, 64, 2), scales)


@torch.no_grad()
def test_one_scale_is_a_plain_transformer_exactly():
    torch.manual_seed(0)
    tok = HieraTok(scales=[8], **TINY).eval().requires_grad_(False)
    images = pictures(2)
    cut = F.pixel_unshuffle(images * 2 - 1, 4).flatten(2).transpose(1, 2)
    states = tok.pyramid_in.trunk(tok.plain_in(tok.embed(cut) + tok.positions))
    mean = tok.to_latent(states)[..., :4] + tok.linear_in(cut)
    assert torch.equal(tok.encode(images), mean)
    out = tok.plain_out(tok.pyramid_out.trunk(tok.lift(mean) + tok.latent_positions))
    pixels = F.pixel_shuffle((tok.to_patch(out) + tok.linear_out(mean)).transpose(1, 2).unflatten(2, (8, 8)), 4)
    assert torch.equal(tok.decode(mean), (pixels * 0.5 + 0.5).clamp(0, 1)) and tok.decode_coarse(mean) == []


def jacobian(full: bool) -> torch.Tensor:
    torch.manual_seed(0)
    blocks = ScaleBlocks([1, 2, 4], 8, 2, 2, full=full)
    whole = torch.randn(1, 21, 8, generator=torch.Generator().manual_seed(1))
    return torch.autograd.functional.jacobian(lambda x: blocks.trunk(x, mask=blocks.mask)[0], whole)[:, :, 0]


def test_coarse_outputs_do_not_move_with_finer_inputs():
    found = jacobian(full=False).abs().amax((1, 3))                    # (T, T)
    assert not found[:1, 1:].any() and not found[:5, 5:].any()
    assert (found[5:] > 0).all() and (found[1:5, :5] > 0).all()        # but fine ones move with everything
    assert jacobian(full=True).abs().amax((1, 3)).min() > 0            # the baseline does mix: the test can fail


def test_the_shuffled_control_averages_other_tokens():
    tokens = torch.arange(64.0)[None, :, None]
    order = torch.randperm(64, generator=torch.Generator().manual_seed(1))
    plain, mixed = token_pyramid(tokens, [1, 8]), token_pyramid(tokens, [1, 8], order)
    assert torch.equal(plain, mixed)                                   # a mean over all, and the finest scale untouched
    assert not torch.equal(token_pyramid(tokens, [4, 8]), token_pyramid(tokens, [4, 8], order))


def test_kl_and_draws():
    zero = Latent(torch.zeros(1, 64, 4), torch.zeros(1, 64, 4))
    assert float(zero.kl) == 0
    latent = Latent(torch.full((1, 64, 4), 2.0), torch.full((1, 64, 4), -1.0))
    normal = torch.distributions.Normal
    want = torch.distributions.kl_divergence(normal(2.0, torch.tensor(-0.5).exp()), normal(0.0, 1.0))
    assert torch.allclose(latent.kl, want)
    drawn = Latent(torch.zeros(1, 20000, 4), torch.full((1, 20000, 4), -1.0)).sample(torch.Generator().manual_seed(0))
    assert abs(float(drawn.std()) - float(torch.tensor(-0.5).exp())) < 0.01


def test_sizes_of_what_the_coarse_scales_say(tok):
    latents = tok.encode(pictures(2))
    assert [tuple(level.shape) for level in tok.decode_coarse(latents)] == [(2, 3, 4, 4), (2, 3, 8, 8), (2, 3, 16, 16)]
    assert latents.shape == (2, 64, 4) and tok.decode(latents).shape == (2, 3, 32, 32)


def test_all_variants_export_64_tokens():
    for options in ({"full": True}, {"shuffled": True}, {"decoder_scales": [8]}, {"encoder_scales": [8]}, {"scales": [4, 8]}):
        assert HieraTok(**(TINY | options)).encode(pictures(1)).shape == (1, 64, 4)


def test_bad_input(tok):
    with pytest.raises(ValueError, match="continuous latent"):
        tok.decode(torch.zeros(1, 16, 4))
    with pytest.raises(ValueError, match="NaN"):
        tok.decode(torch.full((1, 64, 4), float("nan")))
    with pytest.raises(ValueError, match="in \\[0, 1\\]"):
        tok.encode(pictures(1) * 2)


def test_the_flow_sees_scaled_latents_and_gives_back_their_size():
    torch.manual_seed(0)
    flow = LatentFlow(dim=4, num_tokens=64, width=16, num_blocks=1).eval()
    latents = torch.randn(50, 64, 4) * torch.tensor([1.0, 2, 3, 4]) + 5
    flow.fit_scale(latents)
    made = flow.generate(torch.zeros(50, dtype=torch.long), torch.Generator().manual_seed(0), 2)   # its velocity is still 0
    assert torch.allclose(made.std((0, 1)), latents.std((0, 1)), rtol=0.05) and torch.allclose(made.mean((0, 1)), torch.tensor(5.0), atol=0.3)
    loss = flow.loss(latents, torch.zeros(50, dtype=torch.long), torch.Generator().manual_seed(0)).detach()
    assert abs(float(loss) - 2) < 0.1                                  # var(noise) + var(x0)
    with pytest.raises(ValueError, match="classes must be"):
        flow.generate(torch.tensor([10]), torch.Generator(), 2)


def test_exercises_are_proven():
    assert [problems(exercise) for exercise in exercises_hieratok.EXERCISES] == [[]]
