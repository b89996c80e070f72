"""MiniMaskGIT: counts in closed form, order of revealing, the sampler against a plain loop, and planted wrong samplers."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from frugal.models import mini_maskgit
from frugal.models.mini_maskgit import MiniMaskGIT, arccos_share, gumbel, masked_counts, still_masked, training_mask

CLASSES = torch.tensor([0, 3, 2, 1])
N, K = 8, 11


def model(**options) -> MiniMaskGIT:
    torch.manual_seed(0)
    made = MiniMaskGIT(K, N, num_classes=3, width=16, num_blocks=2, num_heads=2, **options).eval()
    for p in made.parameters():
        p.data.add_(0.3 * torch.randn_like(p))
    return made.requires_grad_(False)


def seeded(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def watched(git: MiniMaskGIT, **options) -> list[torch.Tensor]:
    """Codes after every step."""
    steps = []
    git.generate(CLASSES, seeded(), on_step=lambda s, codes: steps.append(codes), **options)
    return steps


@settings(max_examples=60, deadline=None)
@given(length=st.integers(1, 200), data=st.data())
def test_counts_are_the_closed_form(length, data):
    num_steps = data.draw(st.integers(1, length))
    counts, before = masked_counts(length, num_steps), length
    assert len(counts) == num_steps and counts[-1] == 0
    for step, count in enumerate(counts):
        if step < num_steps - 1:
            plain = math.floor(length * math.acos((step + 1) / num_steps) / (math.pi / 2))
            assert count == max(1, min(before - 1, plain))
        assert count < before
        before = count
    assert arccos_share(0) == 1 and arccos_share(1) == 0


@pytest.mark.parametrize("num_steps", [1, 3, N])
def test_every_step_leaves_just_as_many_masked_and_known_codes_stay(num_steps):
    steps = watched(model(), num_steps=num_steps, temperature=2.0)
    assert [(codes == K).sum(1).tolist() for codes in steps] == [[count] * 4 for count in masked_counts(N, num_steps)]
    for earlier, later in zip(steps, steps[1:]):
        known = earlier != K
        assert torch.equal(earlier[known], later[known])


def test_as_many_steps_as_codes_greedily_reveals_one_at_a_time_the_surest_first():
    git, before = model(), torch.full((4, N), K)
    for codes in watched(git, num_steps=N, temperature=0.0):
        logits, new = git(before, CLASSES), (codes != before)
        assert new.sum(1).tolist() == [1] * 4
        best = logits.max(-1).values.masked_fill(before != K, -math.inf)
        assert torch.equal(new.float().argmax(1), best.argmax(1))
        assert torch.equal(codes[new], logits.argmax(-1)[new])
        before = codes


def reveal_places(remask, trials: int = 4000) -> torch.Tensor:
    """How often each place is the first that is revealed when all confidences are equal."""
    equal, masked = torch.zeros(trials, N), torch.ones(trials, N, dtype=torch.bool)
    return (~remask(equal, masked, N - 1, gumbel((trials, N), seeded()))).sum(0)


def test_equal_logits_are_revealed_evenly_and_a_sampler_without_noise_is_seen():
    assert chisquare(reveal_places(still_masked)).pvalue > 0.01
    assert chisquare(reveal_places(lambda c, m, n, noise: still_masked(c, m, n, noise * 0))).pvalue < 1e-6


# -- the sampler by definition, and with a mistake ---------------------------------------------------------------


def by_definition(git, num_steps=4, temperature=2.0, guidance=0.0, mistake="") -> torch.Tensor:
    generator, codes = seeded(), torch.full((4, N), K)
    for step in range(num_steps):
        ratio = (step + 1) / num_steps
        tau = temperature * (1 - ratio)
        logits = git(codes, CLASSES)
        alone = git(codes, torch.full_like(CLASSES, git.null))
        logits = alone + guidance * (logits - alone) if mistake == "guidance" else logits + guidance * (logits - alone)
        drawn = (logits + tau * gumbel(logits.shape, generator)).argmax(-1)
        measure = (logits / max(tau, 1e-3)).softmax(-1) if mistake == "confidence" else logits
        confidence = measure.gather(-1, drawn[..., None])[..., 0] + tau * gumbel(drawn.shape, generator)
        known = codes != K
        if mistake != "forgets":
            drawn = torch.where(known, codes, drawn)
            confidence[known] = math.inf
        if ratio < 1:
            count = masked_counts(N, num_steps)[step]
            drawn = drawn.scatter(1, confidence.topk(count, largest=False).indices, K)
        codes = drawn
    return codes


def test_the_sampler_is_the_definition():
    for guidance in (0.0, 1.5):
        assert torch.equal(
            by_definition(model(), guidance=guidance), model().generate(CLASSES, seeded(), 4, 2.0, guidance)
        )


@pytest.mark.parametrize("mistake", ["guidance", "confidence", "forgets"])
def test_planted_mistakes_are_seen(mistake):
    assert not torch.equal(
        by_definition(model(), guidance=1.5, mistake=mistake), model().generate(CLASSES, seeded(), 4, 2.0, 1.5)
    )


# -- training ------------------------------------------------------------------------------------------------------


def test_training_masks_follow_the_schedule():
    masks = training_mask(6000, 20, seeded())
    assert masks.any(1).all()
    share = masks.float().mean(1)
    assert abs(float(share.mean()) - 2 / math.pi) < 0.01  # mean of arccos(u) / (pi/2)
    u = torch.linspace(0.005, 0.995, 100)
    expected = (u.arccos() / (math.pi / 2)).quantile(torch.tensor([0.1, 0.5, 0.9]))
    assert torch.allclose(share.quantile(torch.tensor([0.1, 0.5, 0.9])), expected, atol=0.05)
    assert chisquare(masks.sum(0)).pvalue > 0.01


def test_loss_weighs_hidden_places_ten_times_and_smooths_labels(monkeypatch):
    git, codes = model(), torch.randint(K, (4, N), generator=seeded())
    masked = torch.rand(4, N, generator=seeded(3)) < 0.5
    monkeypatch.setattr(mini_maskgit, "training_mask", lambda *args: masked)
    logs = git(codes.masked_fill(masked, K), CLASSES).log_softmax(-1)
    nats = -(0.9 * logs.gather(-1, codes[..., None])[..., 0] + 0.1 * logs.mean(-1))
    weight = masked.float() + 0.1 * (~masked).float()
    assert torch.allclose(git.loss(codes, CLASSES), (nats * weight).sum() / weight.sum(), atol=1e-5)


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda git: git.generate(torch.tensor([4])), r"classes must be in 0\.\.3"),
        (lambda git: git.generate(CLASSES, num_steps=N + 1), r"num_steps must be in 1\.\.8"),
        (lambda git: git.generate(CLASSES, num_steps=0), "num_steps"),
        (lambda git: git.generate(CLASSES, temperature=-1.0), "temperature"),
        (lambda git: git.loss(torch.full((4, N), K), CLASSES), r"codes must be in 0\.\.10"),
        (lambda git: git(torch.zeros(4, N - 1, dtype=torch.long), CLASSES), "7 codes, but this model was made for 8"),
        (lambda git: MiniMaskGIT(5, 0), "at least one code"),
    ],
)
def test_bad_input_is_named(call, words):
    with pytest.raises(ValueError, match=words):
        call(model())
