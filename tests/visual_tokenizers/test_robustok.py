"""RobusTok: perturbation against brute force and its limits, the schedule, and implementations that are wrong on purpose."""
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest
from torch import Tensor

from frugal.models.quantizers import Quantized, VectorQuantizer
from frugal.models.vq_grid import VQGrid
from frugal.visual_tokenizers.robustok import (PerturbSchedule, gaussian_noise, mean_step, nearest_codes, perturb_codes,
                                               perturb_latent, scaled_delta)


def world(seed: int = 0, pictures: int = 20, tokens: int = 16, size: int = 64, dim: int = 4):
    """Latents of length 1 that want gradients, what a cosine quantizer made of them, and its codebook."""
    torch.manual_seed(seed)
    quantizer = VectorQuantizer(size, dim, cosine=False).eval()             # no norm between z and the gradient
    z = torch.nn.functional.normalize(torch.randn(pictures, tokens, dim), dim=-1).requires_grad_()
    return z, quantizer(z), quantizer.codebook


def draw(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# -- the statements; each takes an implementation, so that wrong ones can be held against it ---------------------------

def check_identity(perturb) -> None:
    """alpha = 0, delta = 1 or beta = 0 change nothing, bit for bit."""
    z, quantized, codebook = world()
    for options in ({"alpha": 0.0, "beta": 1.0}, {"delta": 1, "beta": 1.0}, {"beta": 0.0}):
        assert torch.equal(perturb(z, quantized, codebook, draw(), **options), quantized.latents), options


def check_rate(perturb) -> None:
    """A share alpha (delta - 1) / delta of the tokens changes (exact binomial test)."""
    z, quantized, codebook = world(pictures=200)
    for alpha, delta in ((1.0, 6), (0.5, 6), (0.7, 2), (1.0, 64)):
        out = perturb(z, quantized, codebook, draw(), alpha=alpha, beta=1.0, delta=delta)
        changed = int((out - quantized.latents).abs().amax(-1).gt(1e-6).sum())
        assert binomtest(changed, z.shape[0] * z.shape[1], alpha * (delta - 1) / delta).pvalue > 1e-4, (alpha, delta)


def check_pictures(perturb) -> None:
    """beta counts pictures: the first int(beta B) are changed in many places, the others in none."""
    z, quantized, codebook = world()
    out = perturb(z, quantized, codebook, draw(), alpha=1.0, beta=0.25, delta=8)
    changed = (out - quantized.latents).abs().amax((1, 2)) > 1e-6
    assert changed.tolist() == [True] * 5 + [False] * 15


def check_gradient(perturb) -> None:
    """The gradient with respect to z is the identity, whatever was picked."""
    z, quantized, codebook = world()
    weights = torch.randn(z.shape, generator=draw(3))
    (perturb(z, quantized, codebook, draw(), alpha=1.0, beta=0.5, delta=8) * weights).sum().backward()
    assert torch.equal(z.grad, weights)


def check_reach(perturb) -> None:
    """Every vector is one of the delta nearest codes of its own latent."""
    z, quantized, codebook = world()
    out = perturb(z, quantized, codebook, draw(), alpha=1.0, beta=1.0, delta=5)
    picked = torch.cdist(out.detach(), codebook).argmin(-1)
    near = torch.cdist(z.detach(), codebook).argsort(-1)[..., :5]
    assert (near == picked[..., None]).any(-1).all()


CHECKS = (check_identity, check_rate, check_pictures, check_gradient, check_reach)


@pytest.mark.parametrize("check", CHECKS, ids=lambda c: c.__name__)
def test_what_the_notes_promise(check):
    check(perturb_latent)


def _tokens_not_pictures(z, quantized, codebook, generator, alpha=1.0, beta=0.1, delta=6):
    """beta as a share of all tokens."""
    out = perturb_latent(z, quantized, codebook, generator, alpha, 1.0, delta)
    hit = torch.rand(z.shape[:2], generator=generator) < beta
    return torch.where(hit[..., None], out, quantized.latents)


def _never_itself(z, quantized, codebook, generator, alpha=1.0, beta=0.1, delta=6):
    """Picks among the neighbours 1..delta, so that the rate is alpha."""
    if delta == len(codebook):
        return perturb_latent(z, quantized, codebook, generator, alpha, beta, delta)
    near = nearest_codes(z.detach(), codebook, quantized.codes, delta + 1)[..., 1:]
    pick = near.gather(-1, torch.randint(delta, z.shape[:2], generator=generator)[..., None])[..., 0]
    pick = torch.where(torch.rand(z.shape[:2], generator=generator) < alpha, pick, quantized.codes)
    return _placed(z, quantized, codebook, pick, beta)


def _placed(z, quantized, codebook, pick, beta):
    count = int(beta * len(z))
    moved = z[:count] + (codebook[pick[:count]] - z[:count]).detach()
    return torch.cat([moved, quantized.latents[count:]])


def _no_straight_through(z, quantized, codebook, generator, alpha=1.0, beta=0.1, delta=6):
    """The code vector itself, so that nothing is learned from perturbed places."""
    out = perturb_latent(z, quantized, codebook, generator, alpha, beta, delta)
    changed = (out - quantized.latents).abs().amax(-1, keepdim=True) > 0
    return torch.where(changed, out.detach(), out)


def _any_code(z, quantized, codebook, generator, alpha=1.0, beta=0.1, delta=6):
    """Codes with numbers next to the right one instead of near vectors."""
    hit = torch.rand(z.shape[:2], generator=generator) < alpha
    pick = (quantized.codes + torch.randint(delta, z.shape[:2], generator=generator) * hit) % len(codebook)
    return _placed(z, quantized, codebook, pick, beta)


@pytest.mark.parametrize("broken", [_tokens_not_pictures, _never_itself, _no_straight_through, _any_code])
def test_planted_mistakes_are_seen(broken):
    caught = []
    for check in CHECKS:
        try:
            check(broken)
        except AssertionError:
            caught.append(check.__name__)
    assert caught, broken.__doc__


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 99), delta=st.integers(1, 16), size=st.integers(16, 40))
def test_nearest_codes_are_those_of_brute_force(seed, delta, size):
    z, quantized, codebook = world(seed, 2, 3, size)
    near = nearest_codes(z.detach(), codebook, quantized.codes, delta)
    for picture in range(2):
        for token in range(3):
            far = [(float((z[picture, token].detach() - code).square().sum()), k) for k, code in enumerate(codebook)]
            assert near[picture, token].tolist() == [k for _, k in sorted(far)[:delta]]
            assert near[picture, token, 0] == quantized.codes[picture, token]


def test_the_own_code_comes_first_even_on_a_tie():
    codebook = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    z, codes = torch.tensor([[[1.0, 0.0]]]), torch.tensor([[1]])
    assert nearest_codes(z, codebook, codes, 2)[0, 0].tolist() == [1, 0]


def test_delta_of_all_codes_is_uniform():
    z, quantized, codebook = world(pictures=300)
    out = perturb_codes(z.detach(), codebook, quantized.codes, draw(), 1.0, len(codebook))
    counts = torch.bincount(out.flatten(), minlength=64).double()
    expected = out.numel() / 64
    assert ((counts - expected) ** 2 / expected).sum() < 110                 # 99.9 % of chi-square with 63 degrees


@pytest.mark.parametrize("options, word", [({"alpha": 1.5}, "alpha"), ({"beta": -0.1}, "beta"), ({"delta": 0}, "delta"),
                                           ({"delta": 65}, "delta")])
def test_settings_out_of_range_are_refused(options, word):
    z, quantized, codebook = world()
    with pytest.raises(ValueError, match=word):
        perturb_latent(z, quantized, codebook, draw(), **options)


# -- schedule, baselines, the place in the training step -----------------------------------------------------------

def test_the_schedule_falls_to_a_half():
    plan = PerturbSchedule()
    assert [plan.ratio(p) for p in (0, 0.2, 0.4, 0.6, 1)] == pytest.approx([1, 1, 0.75, 0.5, 0.5])
    assert plan.at(0.0) == (1.0, 6) and plan.at(1.0) == (0.5, 3)
    assert PerturbSchedule(low=0).at(1.0) == (0.0, 1)
    assert [scaled_delta(k) for k in (64, 256, 1024, 4096)] == [2, 6, 25, 100]
    assert [scaled_delta(256, d) for d in (200, 280, 360)] == [12, 17, 22]


@pytest.mark.parametrize("options", [{"start": 0.7}, {"low": 2.0}, {"kind": "wrong"}, {"alpha": 2.0}])
def test_a_schedule_that_makes_no_sense_is_refused(options):
    with pytest.raises(ValueError):
        PerturbSchedule(**options)


def test_gaussian_noise_is_as_large_as_asked():
    z, quantized, _ = world(pictures=400)
    moved = gaussian_noise(quantized, draw(), 0.3, 0.5) - quantized.latents
    assert moved[200:].abs().max() == 0 and float(moved[:200].std()) == pytest.approx(0.3, rel=0.02)


def test_mean_step_against_a_loop():
    z, quantized, codebook = world(pictures=3, tokens=2)
    near = nearest_codes(z.detach(), codebook, quantized.codes, 4)
    steps = [(codebook[k] - codebook[quantized.codes[b, t]]).square().mean() for b in range(3) for t in range(2) for k in near[b, t]]
    assert mean_step(z.detach(), codebook, quantized.codes, 4) == pytest.approx(float(torch.stack(steps).mean().sqrt()), rel=1e-5)


def step_of(disturb_first: bool) -> tuple[Tensor, Tensor]:
    """Quantizer loss and codes of a grid's training step; disturb_first: the planted mistake, latents perturbed before."""
    torch.manual_seed(0)
    model = VQGrid(4, VectorQuantizer(32, 4), fine=8, width=8, blocks=(1, 1)).train()
    model.quantizer.started.fill_(True)
    images = torch.rand(4, 3, 32, 32, generator=draw())
    if disturb_first:
        plain = model.latents

        def wrong_place(pictures):
            z = model.quantizer.prepared(plain(pictures))
            codes = model.quantizer.nearest(z)
            moved = perturb_codes(z.detach(), model.quantizer.codebook, codes, draw(), 1.0, 8)
            return model.quantizer.codebook[moved] + z - z.detach()
        model.latents = wrong_place
        made = model(images)
    else:
        made = model(images, PerturbSchedule(beta=1.0, delta=8).disturb(0.0, draw()))
    return made.quantized.loss.detach(), made.quantized.codes


def test_the_codebook_loss_stays_clean():
    torch.manual_seed(0)
    model = VQGrid(4, VectorQuantizer(32, 4), fine=8, width=8, blocks=(1, 1)).train()
    model.quantizer.started.fill_(True)
    clean = model(torch.rand(4, 3, 32, 32, generator=draw())).quantized
    loss, codes = step_of(False)
    assert torch.equal(loss, clean.loss.detach()) and torch.equal(codes, clean.codes)
    wrong_loss, wrong_codes = step_of(True)                                  # perturbing before the quantizer is seen
    assert not torch.equal(wrong_loss, clean.loss.detach()) and not torch.equal(wrong_codes, clean.codes)


@pytest.mark.parametrize("kind", ["nearest", "random", "gaussian"])
def test_a_disturbed_step_decodes_other_latents_and_learns(kind):
    torch.manual_seed(0)
    model = VQGrid(4, VectorQuantizer(32, 4), fine=8, width=8, blocks=(1, 1)).train()
    images = torch.rand(4, 3, 32, 32, generator=draw())
    hook, seen = PerturbSchedule(beta=0.5, kind=kind).disturb(0.0, draw()), []

    def spy(latents, quantized, quantizer):
        seen.append((quantized.latents.detach(), hook(latents, quantized, quantizer)))
        return seen[0][1]
    model(images, spy).images.square().mean().backward()
    before, after = seen[0]
    assert not torch.equal(before[:2], after[:2]) and torch.equal(before[2:], after[2:])
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_quantized_is_not_written_into():
    z, quantized, codebook = world()
    copy = Quantized(quantized.latents.clone(), quantized.codes.clone(), quantized.loss.clone())
    perturb_latent(z, quantized, codebook, draw(), beta=1.0)
    assert torch.equal(copy.latents, quantized.latents) and torch.equal(copy.codes, quantized.codes)
