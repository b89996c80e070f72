import math

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings, strategies as st

from frugal.core.budgets import BudgetTooSmall, _top_by_sorting, audit, resolve, top_slots


@pytest.mark.parametrize("budget, total, expected", [
    (1.0, 80, 80), (0.5, 81, 40), (0.2, 4, 1), (0.001, 10, 1), (0.29, 100, 29), (7, 10, 7), (1, 10, 1), (10, 10, 10),
    (np.int64(3), 9, 3), (np.float64(0.5), 9, 4)])
def test_resolve_rounds_once(budget, total, expected):
    assert resolve(budget, total) == expected and type(resolve(budget, total)) is int


@pytest.mark.parametrize("budget", [0, -1, 11, 0.0, -0.5, 1.5, 64.0, math.nan, math.inf, True])
def test_resolve_names_value_and_range(budget):
    with pytest.raises(ValueError, match=r"fraction in \(0, 1\] or a whole number from 1 to 10") as caught:
        resolve(budget, 10)
    assert str(budget) in str(caught.value)


@given(total=st.integers(1, 5000), percent=st.integers(1, 100))
def test_resolve_is_the_exact_floor_for_percentages(total, percent):
    assert resolve(percent / 100, total) == max(1, percent * total // 100)


def brute_force(score, budget, protect):
    kept = []
    for row in range(len(score)):
        order = sorted(range(len(score[row])), key=lambda slot: (not protect[row][slot], -score[row][slot], slot))
        kept.append(sorted(order[:budget]))
    return kept


LEVELS = [-math.inf, -1.0, 0.0, 0.25, 1.0, math.inf]


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_top_slots_equals_a_loop(data):
    rows, slots = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 24))
    few = data.draw(st.booleans())                # few distinct values: ties everywhere
    value = st.sampled_from(LEVELS) if few else st.floats(-1e3, 1e3, width=32)
    score = torch.tensor(data.draw(st.lists(st.lists(value, min_size=slots, max_size=slots), min_size=rows, max_size=rows)),
                         dtype=data.draw(st.sampled_from([torch.float32, torch.float64])))
    budget = data.draw(st.one_of(st.integers(1, slots), st.just(max(1, slots - 1))))
    chosen = [data.draw(st.sets(st.integers(0, slots - 1), max_size=budget)) for _ in range(rows)]
    protect = torch.tensor([[slot in row for slot in range(slots)] for row in chosen])
    expected = brute_force(score.tolist(), budget, protect.tolist())
    assert top_slots(score, budget, protect).tolist() == expected
    assert _top_by_sorting(score, budget, protect).tolist() == expected
    nothing = torch.zeros_like(protect)
    expected = brute_force(score.tolist(), budget, nothing.tolist())
    assert top_slots(score, budget).tolist() == top_slots(score, budget, nothing).tolist() == expected
    assert _top_by_sorting(score, budget, None).tolist() == expected


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int64])
def test_other_number_types_rank_the_same(dtype):
    score = torch.tensor([[3, 1, 2, 3, 0]]).to(dtype)
    assert top_slots(score, 2).tolist() == [[0, 3]]
    assert top_slots(score, 4).tolist() == [[0, 1, 2, 3]]


def test_ties_go_to_the_older_slot_also_when_one_is_dropped():
    score = torch.tensor([[0.5, 0.5, 0.5, 0.5], [0.0, 1.0, 0.0, 1.0]])
    assert top_slots(score, 3).tolist() == [[0, 1, 2], [0, 1, 3]]
    assert top_slots(score, 2).tolist() == [[0, 1], [1, 3]]


@pytest.mark.parametrize("budget", [1, 3, 4])
def test_nan_is_refused_unless_protected(budget):
    score = torch.tensor([[1.0, 2.0, math.nan, 0.0, 5.0]])
    with pytest.raises(ValueError, match="NaN"):
        top_slots(score, budget)
    protect = torch.tensor([[False, False, True, False, False]])
    assert 2 in top_slots(score, budget, protect).tolist()[0]


def test_a_budget_below_the_protected_count_says_so():
    protect = torch.tensor([[True, True, True, False], [True, False, False, False]])
    with pytest.raises(BudgetTooSmall, match="budget 2 is too small: 3 slots are protected"):
        top_slots(torch.rand(2, 4), 2, protect)
    assert issubclass(BudgetTooSmall, ValueError)
    assert top_slots(torch.rand(2, 4), 3, protect)[0].tolist() == [0, 1, 2]


@pytest.mark.parametrize("budget", [0, -3, 5])
def test_a_budget_outside_the_cache_names_the_range(budget):
    with pytest.raises(ValueError, match=f"budget {budget} is out of range.*1 to 4"):
        top_slots(torch.rand(2, 4), budget)


def spent(**methods):
    return pd.DataFrame([dict(method=name, budget=budget, kept_tokens=tokens, cache_bytes=size)
                         for name, pairs in methods.items() for budget, (tokens, size) in zip((0.5, 0.25), pairs)])


def test_audit_passes_what_is_equal_and_ignores_the_reference():
    rows = spent(a=[(100, 1000), (50, 500)], b=[(100, 1004), (50, 502)], full=[(200, 2000), (200, 2000)])
    assert audit(rows, "tokens").ok and audit(rows, "bytes").ok
    assert audit(rows, "tokens").equal_axes == ("tokens", "bytes")
    assert not audit(rows, "tokens", reference=()).ok


def test_audit_names_the_offender_and_the_axis_that_is_equal():
    rows = spent(a=[(100, 1000), (50, 500)], b=[(100, 1370), (50, 500)])
    result = audit(rows, "bytes")
    assert not result.ok and result.unequal == ((0.5, "b", 1370.0),)
    assert result.worst == pytest.approx(0.37)
    assert result.sentence == "Not equal in bytes (up to 37% apart: b); equal here: tokens."
    assert audit(rows, "kept_tokens").ok


def test_audit_without_the_column_says_what_is_there():
    with pytest.raises(ValueError, match="no column tells the flops spent"):
        audit(spent(a=[(1, 1), (1, 1)]), "flops")
