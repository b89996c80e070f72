"""Sampling filters against a loop over sorted probabilities, limits, and wrong filters that the loop must reject."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from frugal.core.sampling import draw, filtered, guided

ROWS = torch.tensor([[2.0, 1.0, 0.5, -1.0, -3.0], [0.0, 0.1, 0.2, 0.3, 0.4]])


def kept_by_loop(logits: list[float], temperature: float, top_k: int, top_p: float) -> set[int]:
    """Places that stay: the first top_k by probability, then until their mass reaches top_p."""
    probs = (torch.tensor(logits) / temperature).softmax(-1).tolist()
    order = sorted(range(len(probs)), key=lambda i: -probs[i])[: top_k or None]
    total, mass, kept = sum(probs[i] for i in order), 0.0, set()
    for place in order:
        kept.add(place)
        mass += probs[place] / total
        if mass >= top_p - 1e-6:
            break
    return kept


@settings(max_examples=60, deadline=None)
@given(
    logits=st.lists(st.integers(-60, 60), min_size=1, max_size=7, unique=True),
    temperature=st.sampled_from([0.5, 1.0, 2.0]),
    top_k=st.integers(0, 8),
    top_p=st.sampled_from([0.13, 0.53, 0.91, 1.0]),
)
def test_what_stays_is_what_the_loop_keeps(logits, temperature, top_k, top_p):
    values = [x / 10 for x in logits]
    found = filtered(torch.tensor(values), temperature, top_k, top_p)
    assert set(found.isfinite().nonzero().flatten().tolist()) == kept_by_loop(values, temperature, top_k, top_p)
    kept = found.isfinite()
    assert torch.allclose(found[kept], torch.tensor(values)[kept] / temperature)


def drops_the_one_that_crosses(logits, top_p):
    ordered, place = logits.softmax(-1).sort(-1, descending=True)
    return torch.zeros_like(logits, dtype=torch.bool).scatter(-1, place, ordered.cumsum(-1) < top_p)


def filters_before_the_temperature(logits, top_p):
    return filtered(logits, 1.0, 0, top_p).isfinite()


@pytest.mark.parametrize(
    "wrong, temperature", [(drops_the_one_that_crosses, 1.0), (filters_before_the_temperature, 0.3)]
)
def test_wrong_filters_are_seen(wrong, temperature):
    kept = wrong(ROWS[0], 0.8).nonzero().flatten().tolist()
    assert set(kept) != kept_by_loop(ROWS[0].tolist(), temperature, 0, 0.8)


def test_limits():
    assert torch.equal(filtered(ROWS), ROWS)
    assert draw(ROWS, temperature=0).tolist() == [0, 4]
    seeded = [draw(ROWS.expand(3, 2, 5), torch.Generator().manual_seed(7)) for _ in range(2)]
    assert torch.equal(*seeded) and seeded[0].shape == (3, 2)
    assert draw(ROWS, torch.Generator().manual_seed(0), top_k=1).tolist() == [0, 4]
    assert draw(ROWS, torch.Generator().manual_seed(0), top_p=1e-6).tolist() == [0, 4]
    a, b = ROWS[:1], ROWS[1:]
    assert (
        torch.equal(guided(a, b, 0), b)
        and torch.allclose(guided(a, b, 1), a)
        and torch.allclose(guided(a, b, 3), 3 * a - 2 * b)
    )


def test_draws_follow_the_filtered_distribution():
    logits = ROWS[:1].expand(20_000, 5)
    share = torch.bincount(draw(logits, torch.Generator().manual_seed(0), 0.7, top_k=3), minlength=5) / 20_000
    assert torch.allclose(share, filtered(ROWS[0], 0.7, 3).softmax(-1), atol=0.015)


@pytest.mark.parametrize(
    "bad", [{"temperature": -1.0}, {"temperature": float("nan")}, {"top_k": -1}, {"top_p": 0.0}, {"top_p": 1.5}]
)
def test_bad_filters_are_named(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        draw(ROWS, **bad)
