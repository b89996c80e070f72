"""The oracles against brute force with real caches, the control, and wrong oracles that must be told apart."""

import pytest
import torch
import torch.nn.functional as F

from frugal.early_exit.duo_oracle import (
    best_pattern,
    difficulty,
    num_big,
    patterns,
    perturbed,
    perturbed_losses,
    sequential_oracle,
    uniform_losses,
)
from frugal.models.duo_lm import BIG, SKIP, SMALL, follow, random_duo

CLOSE = dict(atol=3e-5, rtol=1e-4)


@pytest.fixture(scope="module")
def duo():
    return random_duo(0)


@pytest.fixture(scope="module")
def tokens():
    return torch.randint(0, 258, (2, 8), generator=torch.Generator().manual_seed(1))


def run_losses(duo, tokens, route=None):
    logits = duo.run(tokens[:, :-1], route=route).logits
    return F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="none").view(len(tokens), -1)


def brute_sequential(duo, text, budget, choices=(SMALL, BIG)):
    """One text, token by token: every allowed pattern on a copy of the real cache; the best copy goes on."""
    cache, losses, picks, all_patterns = duo.new_cache(1), [], [], patterns(duo.config.num_layers, choices)
    for t in range(len(text) - 1):
        found = []
        for row, pattern in enumerate(all_patterns):
            if budget is None or int(num_big(pattern)) == budget:
                own = cache.copy()
                logits = duo.run(text[None, t : t + 1], own, route=follow(pattern)).logits[0]
                found.append((float(F.cross_entropy(logits, text[t + 1 : t + 2])), row, own))
        loss, row, cache = min(found, key=lambda one: one[0])
        losses.append(loss)
        picks.append(row)
    return losses, picks


def test_patterns_are_counted_and_ordered():
    assert patterns(2).tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]
    assert len(patterns(6)) == 64 and len(patterns(6, (SKIP, SMALL, BIG))) == 729
    assert torch.bincount(num_big(patterns(6))).tolist() == [1, 6, 15, 20, 15, 6, 1]


@pytest.mark.parametrize("choices", [(SMALL, BIG), (SKIP, SMALL, BIG)])
def test_shared_prefixes_give_the_losses_of_separate_runs(duo, tokens, choices):
    table = uniform_losses(duo, tokens, choices)
    for pattern, row in zip(patterns(3, choices), table, strict=True):
        torch.testing.assert_close(row, run_losses(duo, tokens, follow(pattern)), **CLOSE)


@pytest.mark.parametrize("choices", [(SMALL, BIG), (SKIP, BIG)])
def test_the_sequential_oracle_equals_brute_force(duo, tokens, choices):
    budgets = [0, 1, 2, 3, None]
    found = sequential_oracle(duo, tokens, budgets, choices)
    for rule, budget in enumerate(budgets):
        for b in range(len(tokens)):
            losses, picks = brute_sequential(duo, tokens[b], budget, choices)
            assert found.picks[rule, b].tolist() == picks
            torch.testing.assert_close(found.losses[rule, b], torch.tensor(losses), **CLOSE)


def test_the_sequential_loss_is_that_of_the_text_really_run_so(duo, tokens):
    """What makes it exact: run the picked patterns as a route, and the same losses come out."""
    found = sequential_oracle(duo, tokens, [1, None])
    for rule in range(2):
        chosen = patterns(3)[found.picks[rule]]
        torch.testing.assert_close(run_losses(duo, tokens, follow(chosen)), found.losses[rule], **CLOSE)


def test_the_uniform_minimum_is_not_a_text_that_can_be_run(duo, tokens):
    """Its patterns never met in one cache: run together they lose more somewhere. Hence the exact oracle."""
    table = uniform_losses(duo, tokens)
    picks, losses = best_pattern(table, num_big(patterns(3)))
    really = run_losses(duo, tokens, follow(patterns(3)[picks]))
    torch.testing.assert_close(really[:, 0], losses[:, 0], **CLOSE)  # the first token has no past
    assert (really - losses).abs().max() > 0.01


def test_an_oracle_is_never_above_a_fixed_pattern(duo, tokens):
    table, big = uniform_losses(duo, tokens), num_big(patterns(3))
    for budget in (0, 1, 2, 3, None):
        least = best_pattern(table, big, budget)[1]
        rows = big == budget if budget is not None else big >= 0
        assert (least <= table[rows]).all() and least.mean() <= table[rows].mean((1, 2)).min()
    one = sequential_oracle(duo, tokens, [0, 3])  # a single pattern leaves nothing to choose
    torch.testing.assert_close(one.losses[0], table[0], **CLOSE)
    torch.testing.assert_close(one.losses[1], table[-1], **CLOSE)


def test_equal_networks_leave_nothing_to_choose(tokens):
    duo = random_duo(5, intermediate_size=16, small_size=16)
    for i in range(3):
        duo.weights[f"layers.{i}.small_gate_up"].copy_(duo.weights[f"layers.{i}.gate_up"])
        duo.weights[f"layers.{i}.small_down"].copy_(duo.weights[f"layers.{i}.down"])
    table = uniform_losses(duo, tokens)
    assert (table - table[0]).abs().max() < 1e-4
    assert difficulty(table, num_big(patterns(3))).abs().max() < 1e-4
    found = sequential_oracle(duo, tokens, [0, 1, None])
    assert (found.losses - table[0]).abs().max() < 1e-4


def test_best_pattern_and_difficulty_by_hand():
    table = torch.tensor([[2.0, 5.0], [1.5, 5.0], [1.0, 5.5], [1.2, 4.9]])  # rows 00, 01, 10, 11
    big = num_big(patterns(2))
    assert [one.tolist() for one in best_pattern(table, big, 1)] == [[2, 1], [1.0, 5.0]]
    assert best_pattern(table, big)[0].tolist() == [2, 3]
    torch.testing.assert_close(difficulty(table, big), torch.tensor([1.0, 0.1]))  # the second is bad, but not difficult
    with pytest.raises(ValueError, match=r"budget 3.*\[0, 1, 2\]"):
        best_pattern(table, big, 3)


# -- the control ----------------------------------------------------------------------------------------------------


def test_perturbations_of_rate_zero_are_the_model_itself(duo, tokens):
    plain, generator = run_losses(duo, tokens), torch.Generator().manual_seed(0)
    torch.testing.assert_close(perturbed_losses(duo, tokens, 2, 0.0, generator), plain.expand(2, -1, -1), **CLOSE)
    torch.testing.assert_close(perturbed(duo, tokens, [1, 3], 0.0, generator).losses, plain.expand(2, -1, -1), **CLOSE)


def test_more_perturbations_find_smaller_minima(duo, tokens):
    found = perturbed(duo, tokens, [1, 4, 16], 0.3, torch.Generator().manual_seed(0))
    means = found.losses.mean((1, 2))
    assert means[0] > means[1] > means[2] and found.picks[1].max() < 4 and found.picks[0].max() == 0
    each = perturbed_losses(duo, tokens, 16, 0.3, torch.Generator().manual_seed(0))
    assert len(each.flatten(1).unique(dim=0)) == 16 and each.min(0).values.mean() < each.mean()


# -- wrong oracles ----------------------------------------------------------------------------------------------------


def nested_only(table, big, budget):
    """Wrong: of the patterns with `budget` bigs it knows just the first-k one."""
    rows = {0: 0, 1: 4, 2: 6, 3: 7}
    return table[rows[budget]]


def test_nested_patterns_alone_are_found_out(duo, tokens):
    table, big = uniform_losses(duo, tokens), num_big(patterns(3))
    for budget in (1, 2):
        assert nested_only(table, big, budget).mean() > best_pattern(table, big, budget)[1].mean() + 0.01


def test_difficulty_is_not_loss():
    """Wrong measures give the hopeless token the larger number; the right one gives it none."""
    table, big = torch.tensor([[1.0, 9.0], [0.2, 9.0]]), torch.tensor([0, 1])
    right = difficulty(table, big)
    assert right[0] > right[1] == 0
    assert table.min(0).values[0] < table.min(0).values[1] and table[0, 0] < table[0, 1]


def test_an_oracle_that_forgets_what_earlier_tokens_took_is_found_out(duo, tokens):
    """Wrong: earlier tokens keep the keys of all big. The first token agrees, later ones do not."""
    forgetful = []
    for t in range(tokens.shape[1] - 1):
        cache, losses = duo.new_cache(2), []
        if t:
            duo.run(tokens[:, :t], cache)
        for pattern in patterns(3)[num_big(patterns(3)) == 1]:
            logits = duo.run(tokens[:, t : t + 1], cache.copy() if t else None, route=follow(pattern)).logits[:, 0]
            losses.append(F.cross_entropy(logits, tokens[:, t + 1], reduction="none"))
        forgetful.append(torch.stack(losses).min(0).values)
    exact = sequential_oracle(duo, tokens, [1]).losses[0]
    wrong = torch.stack(forgetful, -1)
    torch.testing.assert_close(wrong[:, 0], exact[:, 0], **CLOSE)
    assert (wrong - exact).abs().max() > 0.01


@pytest.mark.parametrize(
    "bad, said",
    [
        (lambda duo, tokens: patterns(0), "at least one layer"),
        (lambda duo, tokens: patterns(2, (0, 0)), "different choices"),
        (lambda duo, tokens: patterns(2, (0, 5)), "different choices"),
        (lambda duo, tokens: sequential_oracle(duo, tokens, [1, 4]), r"\[1, 4\].*\[0, 1, 2, 3\]"),
        (lambda duo, tokens: perturbed(duo, tokens, [2], 1.0, torch.Generator()), r"\[0, 1\), not 1.0"),
    ],
)
def test_bad_input_is_one_clear_error(duo, tokens, bad, said):
    with pytest.raises(ValueError, match=said):
        bad(duo, tokens)
