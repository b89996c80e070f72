"""Learned routers: hard limit of the mixture, the global budget, a frozen base, and what a wrong budget term does."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from frugal.early_exit.duo_routers import LearnedRouter, budget_penalty, mixed_text, train_router
from frugal.models.duo_lm import BIG, SMALL, follow, random_duo


def random_router(seed=0, layers=3, hidden=24, bias=0.0):
    generator = torch.Generator().manual_seed(seed)
    return LearnedRouter(torch.randn(layers, hidden, generator=generator), torch.full((layers,), bias))


@pytest.fixture(scope="module")
def duo():
    return random_duo(0)


@pytest.fixture(scope="module")
def texts():
    """Texts of a cycle of few bytes: something a router can learn within seconds."""
    generator = torch.Generator().manual_seed(0)
    starts = torch.randint(0, 7, (40, 4, 1), generator=generator)
    return list((starts + torch.arange(17)) % 7 + 97)


def test_a_cold_mixture_is_the_hard_choice(duo, texts):
    router = random_router()
    states, probs = mixed_text(duo, texts[0], router, temperature=1e-6)
    hard = duo.run(texts[0], route=router)
    assert torch.equal(probs > 0.5, hard.choices == BIG) and 0 < (hard.choices == BIG).float().mean() < 1
    torch.testing.assert_close(duo.unembed(states), hard.logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("bias, which", [(1e4, BIG), (-1e4, SMALL)])
def test_a_router_that_always_says_one_thing_is_a_fixed_pattern(duo, texts, bias, which):
    out = duo.run(texts[0], route=random_router(bias=bias))
    assert torch.equal(out.logits, duo.run(texts[0], route=follow([which] * 3)).logits)


def test_the_hard_choice_is_the_sign_of_the_score(duo):
    router, x = random_router(1), torch.randn(5, 24, generator=torch.Generator().manual_seed(2))
    by_hand = [[float(sum(a * b for a, b in zip(row, w))) > 0 for w in router.weight.tolist()] for row in x.tolist()]
    assert [[bool(router(i, x)[n]) for i in range(3)] for n in range(5)] == by_hand


@settings(deadline=None, max_examples=20)
@given(target=st.floats(0.1, 0.9), seed=st.integers(0, 99))
def test_the_budget_is_global(target, seed):
    """Any split between layers that has the right mean is free of charge."""
    share = torch.rand(3, generator=torch.Generator().manual_seed(seed))
    share = share * target / share.mean()
    probs = share.expand(2, 5, 3)
    assert float(budget_penalty(probs, target)) == pytest.approx(0, abs=1e-9)
    assert float(budget_penalty(probs, target + 0.1)) == pytest.approx(0.01, abs=1e-5)


def per_layer_penalty(probs, target):
    """Wrong: every layer has to spend its own share."""
    return (probs.mean((0, 1)) - target).square().mean()


def test_balancing_each_layer_is_found_out():
    uneven = torch.tensor([1.0, 0.0, 0.5]).expand(2, 5, 3)
    assert float(budget_penalty(uneven, 0.5)) == 0 < float(per_layer_penalty(uneven, 0.5))


def trained(duo, texts, target, **options):
    steps = list(train_router(duo, texts, target, len(texts), rate=0.1, **options))
    return steps[-1][0], [numbers for _, numbers in steps]


def test_training_keeps_the_budget_and_leaves_the_base_alone(duo, texts):
    before = {name: w.clone() for name, w in duo.weights.items()}
    router, log = trained(duo, texts, 1 / 3)
    assert log[-1]["share"] == pytest.approx(1 / 3, abs=0.08)
    assert log[0]["temperature"] == 1 and log[-1]["temperature"] == pytest.approx(0.1)
    assert all(torch.equal(before[name], w) for name, w in duo.weights.items()) and not router.weight.requires_grad
    layers = (duo.run(texts[0], route=router).choices == BIG).float().mean((0, 1))
    assert layers.max() - layers.min() > 0.2  # nothing holds the layers to equal shares


def test_training_lowers_the_loss_at_the_same_share(duo, texts):
    _, log = trained(duo, texts, 0.5, hot=1.0, cold=1.0)
    assert sum(n["loss"] for n in log[-5:]) < sum(n["loss"] for n in log[:5])


def test_without_the_budget_term_the_share_runs_away(duo, texts):
    """What betrays a missing budget term: the share leaves the target."""
    _, bound = trained(duo, texts, 0.2)
    _, free = trained(duo, texts, 0.2, weight=0.0)
    assert abs(free[-1]["share"] - 0.2) > 2 * abs(bound[-1]["share"] - 0.2)


@pytest.mark.parametrize("target", [0, 1, -0.5, 1.5])
def test_a_target_without_choice_is_refused(duo, texts, target):
    with pytest.raises(ValueError, match="between 0 and 1, both excluded"):
        next(train_router(duo, texts, float(target), 1))
