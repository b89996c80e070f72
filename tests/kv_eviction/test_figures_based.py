"""Figures and measurements of BASED: every choice draws, points are the rows, recall agrees in both forms."""

import numpy as np
import pandas as pd
import pytest
import torch

from frugal.data.mqar import IGNORE, MQARTask, mqar_batch
from frugal.explore import figure_summary, figure_table
from frugal.kv_eviction import based_recall, figures_based
from frugal.kv_eviction.based_layers import available, build, load_based, weights_name
from frugal.kv_eviction.based_recall import TEST_PAIRS, recall, speed_rows, widen
from frugal.models import list_weights
from frugal.models.based_lm import state_bytes

AVAILABLE = available(based_recall.CONFIGURATIONS)
TRAINED = [n for n in AVAILABLE if weights_name(n) in list_weights("based_")]


@pytest.mark.parametrize("num_pairs", TEST_PAIRS)
def test_recall_front_shows_every_configuration(num_pairs):
    rows = figures_based.recorded("based_mqar")
    fig = figures_based.recall_front(rows, num_pairs=num_pairs)
    at = rows[(rows.num_pairs == num_pairs) & (rows.tokens == 256)]
    drawn = [
        (x, round(y / 100, 4))
        for trace in fig.data
        if trace.mode == "markers"
        for x, y in zip(trace.x, trace.y, strict=True)
    ]
    assert sorted(drawn) == sorted(zip(at.state_bytes, at.recall, strict=True)) and len(at) == len(AVAILABLE)
    assert "bytes" in figure_summary(fig) and len(figure_table(fig)) == len(at)


def test_pareto_keeps_what_nothing_beats():
    rows = pd.DataFrame({"state_bytes": [1, 2, 2, 3, 4, 4], "recall": [0.2, 0.1, 0.5, 0.5, 0.9, 0.7]})
    assert figures_based.pareto(rows).index.tolist() == [0, 2, 4]


def test_recall_by_pairs_draws_every_kind():
    rows = figures_based.recorded("based_mqar")
    for kind in sorted(set(rows.kind) - {"attention"}):
        fig = figures_based.recall_by_pairs(rows, kind=kind)
        shown = rows[rows.kind.isin([kind, "attention"])].configuration.unique()
        assert {trace.name for trace in fig.data} == set(shown) and "attention" in shown


@pytest.mark.parametrize("batch", [1, 4, 16])
def test_speed_curves_draw_the_rows(batch):
    rows = figures_based.recorded("based_speed")
    fig = figures_based.speed_curves(rows, batch=batch)
    assert sorted(figure_table(fig).iloc[:, 2]) == pytest.approx(sorted(1e3 * rows[rows.batch == batch].cpu_step_s))


@pytest.mark.parametrize("scale", ["weight", "square root"])
def test_attention_matrices_sum_to_one(scale):
    rows = figures_based.recorded("based_maps")
    fig = figures_based.attention_matrices(rows, scale=scale)
    assert [trace.name for trace in fig.data] == ["exp", "taylor", "window + taylor"]
    sums = rows.groupby(["map", "query"])["weight"].sum()
    assert (sums - 1).abs().max() < 1e-3 and "strongest key" in figure_summary(fig)


def test_bad_choices_name_what_is_there():
    with pytest.raises(ValueError, match="square root"):
        figures_based.attention_matrices(figures_based.recorded("based_maps"), scale="log")
    with pytest.raises(LookupError, match="recorded: 1, 4, 16"):
        figures_based.speed_curves(figures_based.recorded("based_speed"), batch=3)
    with pytest.raises(ValueError, match="based_mqar"):
        figures_based.recorded("based_nothing")


def test_recorded_maps_are_recomputed_from_the_weights():
    old, new = figures_based.recorded("based_maps"), pd.DataFrame(based_recall.attention_maps())
    assert (old.weight - new.weight).abs().max() < 1e-3 and old["key_token"].tolist() == new["key_token"].tolist()


@pytest.mark.parametrize("name", TRAINED)
def test_committed_weights_reach_their_card_on_fresh_data(name):
    """Another seed, fewer examples, parallel form: within four standard deviations and 2 points of the card."""
    model, card = load_based(name)
    for num_pairs, num_examples in ((4, 24), (16, 12), (64, 6)):
        share, _ = recall(model, num_pairs, num_examples, seed=77, recurrent=False)
        expected = card["metrics"]["recall"][str(num_pairs)]
        spread = (expected * (1 - expected) / (num_pairs * num_examples)) ** 0.5
        assert share == pytest.approx(expected, abs=0.02 + 4 * spread)


def test_weights_of_another_configuration_do_not_reach_the_card():
    """The check above is able to fail: the same network, untrained, recalls nothing."""
    share, _ = recall(build("taylor_16", seed=1), 4, 24, seed=77, recurrent=False)
    assert share < 0.1


@pytest.mark.parametrize(
    "name", [n for n in ("attention", "taylor_8", "taylor_8+window_16", "gated_21") if n in TRAINED]
)
def test_token_by_token_recall_equals_parallel_recall(name):
    model, _ = load_based(name)
    stepped, num_bytes = recall(model, 16, num_examples=4)
    assert stepped == pytest.approx(recall(model, 16, num_examples=4, recurrent=False)[0], abs=1 / 64) and num_bytes > 0


def test_a_window_answers_what_it_reaches_and_nothing_else():
    """16 pairs in 128 tokens: split the asked keys by the distance to their pair; window 32 on attention's weights."""
    model, card = load_based("window_32")
    tokens, labels = mqar_batch(MQARTask(128, 16), 12, np.random.default_rng(5))
    right = model(tokens).argmax(-1) == labels
    hits = {True: [], False: []}
    for b, t in (labels != IGNORE).nonzero().tolist():
        distance = (
            t - (tokens[b, 0:32:2] == tokens[b, t]).int().argmax().item() * 2 - 1
        )  # to the value, one token after the key
        hits[distance < 32].append(right[b, t].item())
    assert card["weights_of"] in ("attention", "window_32")
    assert np.mean(hits[True]) > 0.95 and np.mean(hits[False]) < 0.1 and min(map(len, hits.values())) > 10


def test_missing_weights_name_the_recipe():
    with pytest.raises(ValueError, match="no card for 'based_taylor_5'"):
        load_based("taylor_5")


def test_speed_is_measured_over_the_real_state():
    rows = pd.DataFrame(
        speed_rows(("attention", "taylor_4"), (64, 1024), (2,), steps=4, repeats=2, hidden_size=32, num_heads=2)
    )
    size = rows.pivot(index="tokens", columns="configuration", values="state_bytes")
    conv = 4 * 3 * 32
    assert (size["taylor_4"] == conv + 4 * 2 * 21 * 17).all()
    assert (size["attention"] == conv + 4 * 2 * 32 * size.index).all()
    assert (rows.cpu_step_s > 0).all()
    with pytest.raises(ValueError, match="above 12.*not 12"):
        speed_rows(("attention",), (12,), (1,), steps=4, repeats=2, hidden_size=32, num_heads=2)


def test_widen_copies_the_state():
    model, _ = load_based("attention")
    _, state = model.prefill(torch.zeros(1, 9, dtype=torch.int64))
    assert state_bytes(widen(state, 3)) == 3 * state_bytes(state)
