"""MiniAR: the cached sampler is the model, forced codes come out as given, and wrong samplers are told apart."""

import pytest
import torch

from frugal.core.sampling import draw
from frugal.models.mini_ar import MiniAR, drop_classes

CLASSES = torch.tensor([0, 3, 2, 1])


def model(**options) -> MiniAR:
    torch.manual_seed(0)
    made = MiniAR(11, 6, num_classes=3, width=16, num_blocks=2, num_heads=2, **options).eval()
    for p in made.parameters():
        p.data.add_(0.3 * torch.randn_like(p))
    return made.requires_grad_(False)


def seeded(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def uncached(ar: MiniAR, classes, generator, guidance: float = 1.0, scale=None) -> torch.Tensor:
    """The sampler by definition: a whole forward pass for each code."""
    codes = torch.zeros(len(classes), 0, dtype=torch.long)
    for _ in range(ar.length):
        logits = ar(codes, classes)[:, -1]
        if guidance != 1:
            alone = ar(codes, torch.full_like(classes, ar.null))[:, -1]
            logits = scale(logits, alone, guidance) if scale else alone + guidance * (logits - alone)
        codes = torch.cat([codes, draw(logits, generator)[:, None]], 1)
    return codes


@pytest.mark.parametrize("guidance", [1.0, 0.0, 2.5])
def test_cached_sampling_is_the_uncached_one(guidance):
    assert torch.equal(
        model().generate(CLASSES, seeded(), guidance=guidance), uncached(model(), CLASSES, seeded(), guidance)
    )


def test_cached_logits_are_the_uncached_ones():
    ar, codes, seen = model(), torch.randint(11, (4, 6), generator=seeded()), []
    ar.head.register_forward_hook(lambda module, inputs, out: seen.append(out))
    ar.generate(CLASSES, forced=(codes, torch.ones_like(codes, dtype=torch.bool)))
    assert torch.allclose(torch.stack(seen, 1), ar(codes, CLASSES), atol=1e-5)


def maskgit_form(conditional, alone, g):
    return conditional + g * (conditional - alone)


def test_guidance_of_another_form_is_seen():
    right = model().generate(CLASSES, seeded(), guidance=2.5)
    assert not torch.equal(uncached(model(), CLASSES, seeded(), 2.5, maskgit_form), right)


def test_forced_codes_come_out_and_the_rest_goes_on_from_them():
    ar, given = model(), torch.randint(11, (4, 6), generator=seeded(2))
    everywhere = torch.ones_like(given, dtype=torch.bool)
    assert torch.equal(ar.generate(CLASSES, seeded(), forced=(given, everywhere)), given)
    assert torch.equal(ar.generate(CLASSES, seeded(), forced=(given, ~everywhere)), ar.generate(CLASSES, seeded()))
    first = everywhere.clone()
    first[:, 1:] = False
    made = ar.generate(CLASSES, temperature=0, forced=(given, first))
    assert torch.equal(made[:, 0], given[:, 0])
    assert torch.equal(ar(made, CLASSES)[:, 1:].argmax(-1), made[:, 1:])  # greedy from the given code on


def test_stopping_early_gives_the_beginning_and_every_step_is_shown():
    steps = []
    whole = model().generate(CLASSES, seeded(), on_step=lambda i, codes: steps.append((i, codes)))
    assert [i for i, _ in steps] == list(range(6)) and all(torch.equal(c, whole[:, : i + 1]) for i, c in steps)
    assert torch.equal(model().generate(CLASSES, seeded(), length=2), whole[:, :2])


def test_loss_is_the_mean_over_codes_and_drops_classes_in_training_only():
    ar, codes = model(), torch.randint(11, (4, 6), generator=seeded(2))
    nats = -ar(codes, CLASSES).log_softmax(-1).gather(-1, codes[..., None]).mean()
    assert torch.allclose(ar.loss(codes, CLASSES), nats, atol=1e-6)
    ar.class_dropout = 1.0
    dropped = ar.train().loss(codes, CLASSES, seeded())
    assert torch.allclose(dropped, ar.eval().loss(codes, torch.full((4,), 3)), atol=1e-6) and not torch.allclose(
        dropped, nats
    )
    share = (drop_classes(torch.zeros(5000, dtype=torch.long), 3, 0.1, seeded()) == 3).float().mean()
    assert 0.08 < share < 0.12


def test_a_later_code_has_no_influence():
    ar, codes = model(), torch.randint(11, (4, 6), generator=seeded(2))
    other = codes.clone()
    other[:, 3:] = (other[:, 3:] + 1) % 11
    assert torch.allclose(ar(codes, CLASSES)[:, :4], ar(other, CLASSES)[:, :4], atol=1e-6)
    assert not torch.allclose(ar(codes, CLASSES)[:, 4:], ar(other, CLASSES)[:, 4:], atol=1e-3)


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda ar: ar.generate(torch.tensor([4])), r"classes must be in 0\.\.3"),
        (lambda ar: ar.generate(CLASSES, length=7), r"length must be in 1\.\.6, got 7"),
        (lambda ar: ar.generate(CLASSES, length=0), "length must be"),
        (lambda ar: ar.generate(CLASSES, top_p=0.0), "top_p"),
        (lambda ar: ar.loss(torch.full((4, 6), 11), CLASSES), r"codes must be in 0\.\.10"),
        (lambda ar: ar.loss(torch.zeros(4, 7, dtype=torch.long), CLASSES), "at most 6"),
        (
            lambda ar: ar.generate(
                CLASSES, forced=(torch.zeros(4, 3, dtype=torch.long), torch.ones(4, 3, dtype=torch.bool))
            ),
            "forced",
        ),
        (lambda ar: MiniAR(0, 6), "at least one code"),
    ],
)
def test_bad_input_is_named(call, words):
    with pytest.raises(ValueError, match=words):
        call(model())
