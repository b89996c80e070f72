"""Figures and claims of SkipDecode: every choice draws the recorded rows; verdicts are what the rows say."""
import math

import pytest

from frugal.core.claims import check_recorded
from frugal.early_exit import claims_skipdecode
from frugal.early_exit import figures_skipdecode as fig
from frugal.early_exit.workloads import MINI_LM
from frugal.explore import figure_summary

QUALITY, SPEED, STEPS = (fig.recorded(name) for name in ("skip_quality", "skip_speed", "skip_steps"))


def trace(figure, name):
    return next(t for t in figure.data if t.name == fig.NAMES.get(name, name))


@pytest.mark.parametrize("model", list(fig.MODEL_NAMES))
@pytest.mark.parametrize("score", list(fig.SCORES))
@pytest.mark.parametrize("x", ["target", "layers run"])
def test_quality_draws_the_means_of_the_rows(model, score, x):
    figure = fig.skip_quality(QUALITY, model, score, x)
    own = QUALITY[(QUALITY.model == model) & (QUALITY.method == "skipdecode") & (QUALITY.speedup == 2)]
    line = trace(figure, "skipdecode")
    place = 2 if x == "target" else own.layers.mean()
    assert dict(zip(line.x, line.y))[place] == pytest.approx(own[score].mean() * (100 if score == "agreement" else 1))
    assert {t.name for t in figure.data} == {fig.NAMES[m] for m in set(QUALITY[QUALITY.model == model].method) - {"full"}}
    assert len(figure_summary(figure)) > 40


@pytest.mark.parametrize("batch", [1, 4, 8])
@pytest.mark.parametrize("clock, column", [("wall", "speedup"), ("least wall", "quiet"), ("CPU", "cpu_ratio")])
def test_speed_in_batches_draws_the_rows(batch, clock, column):
    line = trace(fig.skip_batches(SPEED, MINI_LM, batch, clock), "skipdecode")
    own = SPEED[(SPEED.model == MINI_LM) & (SPEED.batch == batch) & (SPEED.method == "skipdecode")].sort_values("layers")
    assert list(line.y) == pytest.approx(own[column].tolist())


@pytest.mark.parametrize("model", sorted(set(SPEED.model)))
def test_rates_and_steps_draw_for_each_model(model):
    assert "batch 1" in figure_summary(fig.skip_rates(SPEED, model))
    for batch in (1, 8):
        figure = fig.skip_steps(STEPS, model, batch)
        assert len(figure.data) == 3 and all(min(t.y) > 0 for t in figure.data)


@pytest.mark.parametrize("name", list(fig.FIGURES))
def test_every_explorer_opens(name):
    fig.FIGURES[name]()


def test_recorded_layers_are_those_of_the_schedules():
    """Layers were counted where they ran: the target's mean depth, the same at every batch size; full is full."""
    own = SPEED[SPEED.model == MINI_LM]
    assert (own[own.method == "full"].layers == 12).all()
    for setting, part in own[own.method == "skipdecode"].groupby("setting"):
        assert part.layers.nunique() == 1 and math.isclose(part.layers.iloc[0], max(2.0, 12 / setting), abs_tol=0.3)


def test_a_batch_makes_confident_exit_run_more_layers():
    calm = SPEED[(SPEED.model == MINI_LM) & (SPEED.method == "confidence_exit") & (SPEED.setting == 0.1)].set_index("batch")
    assert calm.layers[8] > calm.layers[4] > calm.layers[1] and calm.layers[8] > calm.exit_layer[8]


def test_the_target_of_two_is_really_faster():
    """CPU time, since the machine that recorded was shared; bytes of weights are counted."""
    own = SPEED[SPEED.model == MINI_LM].set_index(["method", "setting", "batch"])
    for batch in (1, 4, 8):
        ours, full = own.loc["skipdecode", 2.0, batch], own.loc["full", 1.0, batch]
        assert ours.cpu_ratio > 1.45 and full.weight_bytes / ours.weight_bytes > 1.8


def test_quality_falls_with_the_target_and_leaving_early_loses_more():
    mean = QUALITY[QUALITY.model == MINI_LM].groupby(["method", "speedup"]).lost_nats.mean()
    ours = mean["skipdecode"].tolist()
    assert ours == sorted(ours) and ours[0] == pytest.approx(0, abs=1e-4)
    assert all(mean["early_termination"][s] > 1.5 * mean["skipdecode"][s] for s in (1.5, 2.0, 3.0, 4.0))


def test_verdicts_are_those_recorded():
    check_recorded(claims_skipdecode.CLAIMS)
