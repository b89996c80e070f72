"""Gather, compute, scatter against the masked dense sum, and with wrong scatters that must be seen."""
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from frugal.core.conditional import SKIP, apply_chosen


def modules(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    weights = [torch.randn(5, 5, generator=generator) for _ in range(count)]
    return [lambda x, w=w: torch.tanh(x @ w) for w in weights]


def masked_dense(x, choice, parts):
    out = torch.zeros_like(x)
    for i, part in enumerate(parts):
        out += part(x) * (choice == i)[:, None]
    return out


@given(st.lists(st.integers(SKIP, 2), min_size=0, max_size=12))
def test_equals_the_masked_dense_sum(choice):
    x, choice, parts = torch.randn(len(choice), 5), torch.tensor(choice, dtype=torch.long), modules(3)
    assert torch.allclose(apply_chosen(x, choice, parts), masked_dense(x, choice, parts), atol=1e-6)


def test_each_module_sees_its_own_rows_alone():
    seen = {}
    parts = [lambda x, i=i: seen.setdefault(i, x) for i in range(3)]
    x = torch.arange(10.).view(5, 2)
    apply_chosen(x, torch.tensor([2, 0, 2, SKIP, 0]), parts)
    assert {i: rows.tolist() for i, rows in seen.items()} == {0: x[[1, 4]].tolist(), 2: x[[0, 2]].tolist()}


def test_gradients_reach_the_tokens():
    x = torch.randn(4, 5, requires_grad=True)
    apply_chosen(x, torch.tensor([0, 1, SKIP, 0]), modules(2)).sum().backward()
    assert x.grad[2].eq(0).all() and x.grad[[0, 1, 3]].ne(0).any(1).all()


@pytest.mark.parametrize("choice", [[0, 3], [-2, 0]])
def test_a_choice_that_names_no_module(choice):
    with pytest.raises(ValueError, match=r"name no module: allowed are 0\.\.2, or -1"):
        apply_chosen(torch.randn(2, 5), torch.tensor(choice), modules(3))


def scatters_in_sorted_order(x, choice, parts):
    """Leaves the rows in the order of the modules."""
    order = choice.argsort(stable=True)
    return torch.cat([parts[i](x[choice == i]) for i in range(len(parts))] + [torch.zeros_like(x[choice == SKIP])])[:len(order)]


def test_a_wrong_scatter_is_seen():
    x, choice, parts = torch.randn(4, 5), torch.tensor([1, 0, 1, 0]), modules(2)
    assert not torch.allclose(scatters_in_sorted_order(x, choice, parts), masked_dense(x, choice, parts), atol=1e-2)
