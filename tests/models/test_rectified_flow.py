"""The flow against lines whose answer is known, its guidance against the formula, and wrong solvers that must be seen."""
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from frugal.core.sampling import guided
from frugal.models.rectified_flow import NormalisedGuidance, euler, logit_normal, noised, velocity_to


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(steps=st.integers(1, 30), seed=st.integers(0, 50))
def test_a_single_point_is_reached_in_any_number_of_steps(steps, seed):
    target, noise = randn(2, 5, seed=seed), randn(2, 5, seed=seed + 100)
    reached = euler(lambda x, s: (x - target) / s[:, None], noise, steps)
    assert torch.allclose(reached, target, atol=1e-9)


@given(steps=st.integers(1, 20), seed=st.integers(0, 50))
def test_a_constant_velocity_is_exact_and_a_linear_one_is_the_product(steps, seed):
    noise, push, rate = randn(3, 4, seed=seed), randn(3, 4, seed=seed + 1), 0.7
    assert torch.allclose(euler(lambda x, s: push, noise, steps), noise - push, atol=1e-10)
    assert torch.allclose(euler(lambda x, s: rate * x, noise, steps), noise * (1 - rate / steps) ** steps, atol=1e-10)


@pytest.mark.parametrize("wrong", [
    lambda v, x, n: x + sum(v(x, x.new_full((len(x),), 1 - i / n)) for i in range(n)) / n,          # sign
    lambda v, x, n: euler(v, x, n + 1),                                                             # one step too many
    lambda v, x, n: x - v(x, x.new_ones(len(x))),                                                   # one step for all
])
def test_wrong_solvers_are_seen(wrong):
    noise, rate, steps = randn(3, 4), 0.7, 4
    right = noise * (1 - rate / steps) ** steps
    assert not torch.allclose(wrong(lambda x, s: rate * x, noise, steps), right, atol=1e-6)


def test_times_run_from_one_down_and_every_step_is_told():
    seen, told = [], []
    euler(lambda x, s: seen.append(float(s[0])) or x * 0, torch.zeros(1, 2), 4, lambda done, x: told.append(done))
    assert seen == [1.0, 0.75, 0.5, 0.25] and told == [1, 2, 3, 4]
    with pytest.raises(ValueError, match="num_steps"):
        euler(lambda x, s: x, torch.zeros(1, 2), 0)


@given(seed=st.integers(0, 50))
def test_lines_and_their_velocity(seed):
    x0, noise, times = randn(4, 3, seed=seed), randn(4, 3, seed=seed + 1), torch.tensor([0.02, 0.3, 0.9, 1.0], dtype=torch.float64)
    x = noised(x0, noise, times)
    assert torch.allclose(velocity_to(x0, x, times), noise - x0, atol=1e-9)
    assert torch.equal(noised(x0, noise, torch.zeros(4, dtype=torch.float64)), x0)
    assert torch.equal(noised(x0, noise, torch.ones(4, dtype=torch.float64)), noise)


def test_times_are_logit_normal():
    times = logit_normal(20_000, torch.Generator().manual_seed(0), mean=0.5, std=2.0)
    assert (times > 0).all() and (times < 1).all()
    logits = times.double().logit()
    assert abs(logits.mean() - 0.5) < 0.05 and abs(logits.std() - 2) < 0.05


def test_normalised_guidance_with_all_limits_off_is_plain_guidance():
    cond, free = randn(2, 3, 4), randn(2, 3, 4, seed=1)
    plain = NormalisedGuidance(3.0, momentum=0.0, max_norm=float("inf"), parallel=1.0)
    assert torch.allclose(plain(cond, free), guided(cond, free, 3.0))
    assert torch.allclose(NormalisedGuidance(1.0)(cond, free), cond)


@given(seed=st.integers(0, 50), scale=st.floats(1.5, 10))
def test_the_push_is_short_and_across(seed, scale):
    cond, free = randn(2, 6, seed=seed), 5 * randn(2, 6, seed=seed + 1)
    push = (NormalisedGuidance(scale)(cond, free) - cond) / (scale - 1)
    assert (push.norm(dim=1) <= 2.5 + 1e-9).all()
    assert torch.allclose((push * cond).sum(1), torch.zeros(2, dtype=torch.float64), atol=1e-9)


def test_momentum_is_that_of_the_formula():
    first, second = randn(1, 5, seed=2), randn(1, 5, seed=3)
    cond = torch.zeros(1, 5, dtype=torch.float64)             # no direction, so nothing is parallel to it
    guide = NormalisedGuidance(2.0, momentum=-0.5, max_norm=float("inf"))
    guide(cond, cond - first)
    assert torch.allclose(guide(cond, cond - second), second - 0.5 * first)
