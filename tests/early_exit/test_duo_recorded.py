"""The trained Duo-LM, its recorded runs, figures, claims and exercises."""

import numpy as np
import pandas as pd
import pytest
import torch

from frugal.core.claims import check_recorded
from frugal.early_exit import claims_duo_llm, duo_measure, figures_duo_llm
from frugal.early_exit.duo_llm import DuoLLM
from frugal.early_exit.duo_oracle import best_pattern, num_big, patterns, perturbed, sequential_oracle, uniform_losses
from frugal.early_exit.duo_routers import load_routers
from frugal.early_exit.exercises_duo_llm import EXERCISES
from frugal.explore import figure_summary, figure_table
from frugal.explore.exercises import problems
from frugal.models import load_card
from frugal.models.duo_lm import BIG, SMALL, follow, load_duo_lm, random_duo

GATE_NATS = 0.15


@pytest.fixture(scope="module")
def duo():
    return load_duo_lm()


@pytest.fixture(scope="module")
def tokens():
    return duo_measure.held_out(8)


@pytest.fixture(scope="module")
def curve():
    return figures_duo_llm.recorded("duo_curve")


def test_the_committed_weights_pass_the_gate(duo):
    """On the whole held-out slice: single windows differ by far more than the gate."""
    parts, card = duo_measure.held_out(None).split(16), load_card("duo_lm")["metrics"]
    big, small = (
        np.mean([float(duo_measure.route_losses(duo, part, follow([which] * 6))[0].mean()) for part in parts])
        for which in (BIG, SMALL)
    )
    assert small - big >= GATE_NATS and small - big == pytest.approx(card["gap"], abs=5e-3)
    assert big == pytest.approx(card["all_big"], abs=5e-3) and load_card("duo_lm")["num_bytes"] < 8e6


def test_untrained_weights_would_fail_the_gate(tokens):
    duo = random_duo(0, 6, vocab_size=2048, max_positions=256)
    big, small = (
        float(duo_measure.route_losses(duo, tokens[:2], follow([which] * 6))[0].mean()) for which in (BIG, SMALL)
    )
    assert abs(small - big) < GATE_NATS or big > 7


def test_routers_spend_about_their_budget_on_fresh_text(duo, tokens):
    routers = load_routers()
    assert (
        sorted(routers) == [1, 2, 3, 4, 5] and load_card("duo_routers")["base_sha256"] == load_card("duo_lm")["sha256"]
    )
    spent = [duo_measure.route_losses(duo, tokens, routers[k])[1] for k in sorted(routers)]
    assert spent == sorted(spent) and all(abs(one - k) < 1.2 for one, k in zip(spent, sorted(routers)))
    assert DuoLLM(3).route(duo.config)(0, torch.zeros(1, 1, 192)).shape == (1, 1)


def test_recorded_cells_come_out_again(duo, curve):
    tokens = duo_measure.held_out(int(curve["windows"].iloc[0]))
    for method, route in (
        ("first layers", follow([BIG, BIG] + [SMALL] * 4)),
        ("last layers", follow([SMALL] * 4 + [BIG, BIG])),
        ("router", load_routers()[2]),
    ):
        own = curve[(curve["method"] == method) & (curve["budget_layers"] == 2)].iloc[0]
        losses, spent = duo_measure.route_losses(duo, tokens, route)
        assert float(losses.mean()) == pytest.approx(own["loss"], abs=1e-3) and spent == pytest.approx(
            own["big_layers"], abs=2e-3
        )
    assert set(curve["model_hash"]) == {load_card("duo_lm")["sha256"][:16]}


def test_the_oracle_and_its_control_come_out_again_in_small(duo):
    """One short text: the same order as the recorded curve's, from the weights."""
    tokens = duo_measure.held_out(1)[:, :49]
    exact = sequential_oracle(duo, tokens, [0, 1, 3, 6])
    control = perturbed(duo, tokens, [1, 20], 0.1, torch.Generator().manual_seed(0))
    zero, one, three, six = exact.losses.mean((1, 2)).tolist()
    assert three < one < zero and three < six
    assert float(control.losses[1].mean()) < six + 0.05
    table = uniform_losses(duo, tokens)
    assert float(table[-1].mean()) == pytest.approx(six, abs=1e-3)
    assert best_pattern(table, num_big(patterns(6)), 3)[1].mean() < table.mean((1, 2)).min()


def test_the_recorded_curve_is_consistent(curve):
    at = {(r.method, r.budget_layers): r.loss for r in curve.itertuples()}
    for k in range(1, 6):
        assert (
            at["oracle, exact", k]
            < at["best fixed pattern", k]
            <= min(at["first layers", k], at["last layers", k]) + 1e-6
        )
        assert at["oracle, uniform", k] < at["best fixed pattern", k] and at["best random", k] < at["random", k]
    for k in (0, 6):  # one pattern only: nothing to choose
        same = [
            at[m, k]
            for m in ("oracle, exact", "oracle, uniform", "first layers", "last layers", "random", "best fixed pattern")
        ]
        assert max(same) - min(same) < 2e-3
    assert at["first layers", 0] - at["first layers", 6] >= GATE_NATS
    assert set(duo_measure.METHODS) == set(curve["method"])


def test_an_oracle_of_nested_patterns_would_be_seen(curve):
    """The betrayal: a monotone curve that is best at all big. The recorded oracle is not such a one."""
    nested = curve[curve["method"] == "first layers"].sort_values("budget_layers")["loss"].to_numpy()
    oracle = curve[curve["method"] == "oracle, exact"].sort_values("budget_layers")["loss"].to_numpy()
    assert nested.argmin() >= 5 and 0 < oracle.argmin() < 6 and oracle.min() < nested.min() - 0.1


def test_a_third_choice_never_hurts_the_oracle():
    rows = figures_duo_llm.recorded("duo_skip").pivot(index="budget_layers", columns="method", values="loss")
    assert (rows["big, small or skip"] <= rows["big or small"] + 1e-6).all()


def test_measured_time_falls_with_the_budget():
    rows = figures_duo_llm.recorded("duo_speed")
    for phase, most in (("prefill", 0.6), ("decode", 0.9)):
        own = rows[rows["phase"] == phase].sort_values("budget_layers")
        assert own["flops"].is_monotonic_increasing and own["cpu_ms"].iloc[0] < most * own["cpu_ms"].iloc[-1]


def test_speed_rows_measure_and_count():
    rows = duo_measure.speed_rows(random_duo(0, 2, max_positions=256), repeats=1, decode_tok=2, context=8)
    assert len(rows) == 6 and (rows["cpu_ms"] > 0).all() and set(rows["phase"]) == {"prefill", "decode"}
    assert rows[rows["phase"] == "prefill"].sort_values("budget_layers")["flops"].is_monotonic_increasing


@pytest.mark.parametrize("name", figures_duo_llm.FIGURES)
def test_every_figure_builds_with_all_its_points(name):
    payload = figures_duo_llm.FIGURES[name]().payload
    assert payload["points"] and all("e" not in point and len(point["s"]) > 20 for point in payload["points"])


def test_figures_draw_the_rows(curve):
    for oracle in ("exact", "uniform"):
        fig = figures_duo_llm.budget_curve(curve, oracle=oracle)
        drawn = {trace.name: list(trace.y) for trace in fig.data}
        own = curve[curve["method"] == f"oracle, {oracle}"].sort_values("budget_layers")["loss"].tolist()
        assert drawn[f"oracle, {oracle}"] == own and "control: all big, perturbed" in drawn and figure_summary(fig)
    strip = figures_duo_llm.recorded("duo_strip")
    assert len(figure_table(figures_duo_llm.difficulty_strip(strip, "queue.py"))) == 256
    grid = figures_duo_llm.picks_map(figures_duo_llm.recorded("duo_picks"))
    assert np.allclose(np.asarray(grid.data[0].z).sum(0), range(1, 6), atol=1e-4)  # k big layers a token
    with pytest.raises(ValueError, match="exact, uniform"):
        figures_duo_llm.budget_curve(curve, oracle="greedy")
    with pytest.raises(ValueError, match="difficulty, all_big"):
        figures_duo_llm.difficulty_strip(strip, "queue.py", "loss")


def test_difficulty_in_the_strip_is_what_the_best_pattern_saves():
    strip = figures_duo_llm.recorded("duo_strip")
    assert (
        np.allclose(strip["difficulty"], strip["all_small"] - strip["best"], atol=1e-4)
        and (strip["difficulty"] >= 0).all()
    )
    hopeless = strip[(strip["all_small"] > 6) & (strip["difficulty"] < 0.5)]
    assert len(hopeless) > 0  # bad, but not difficult


def test_where_a_router_stands_between_chance_and_oracle():
    rows = pd.DataFrame(
        [
            {"method": m, "budget_layers": k, "big_layers": k, "loss": loss - 0.1 * k}
            for m, loss in (("random", 4.0), ("oracle, exact", 3.0))
            for k in range(7)
        ]
        + [
            {"method": "router", "budget_layers": 2, "big_layers": 2.5, "loss": 3.5},
            {"method": "router", "budget_layers": 3, "big_layers": 3.0, "loss": 2.7},
        ]
    )
    assert claims_duo_llm.router_place(rows) == pytest.approx([0.25, 1.0])
    assert claims_duo_llm.best_budget(rows) == 6


@pytest.mark.parametrize("claim", claims_duo_llm.CLAIMS, ids=lambda c: c.key)
def test_verdicts_are_the_recorded_ones(claim):
    check_recorded([claim])


@pytest.mark.parametrize("exercise", EXERCISES, ids=lambda e: e.key)
def test_the_exercise_is_proven(exercise):
    assert problems(exercise) == []
