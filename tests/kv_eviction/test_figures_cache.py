"""Figures of MiKV and ShadowKV: every choice draws the recorded rows, with a summary and a table."""
import pandas as pd
import pytest

from frugal.explore import figure_summary, figure_table
from frugal.kv_eviction import figures_mikv as mikv
from frugal.kv_eviction import figures_shadowkv as shadow


@pytest.mark.parametrize("view, panels", [("both", 2), ("as cached", 1), ("balanced", 1)])
def test_key_heatmap_draws_the_recorded_keys(view, panels):
    rows = mikv.recorded("mikv_keys")
    fig = mikv.key_heatmap(rows, view=view)
    assert len(fig.data) == panels and len(figure_summary(fig)) > 40
    column = "balanced" if view == "balanced" else "key"
    assert fig.data[0].z[3][7] == rows[(rows.token == rows.token.min() + 3) & (rows.channel == 7)][column].iloc[0]
    assert fig.data[0].zmax == rows.key.abs().max()


def test_the_balancer_makes_the_loudest_channel_less_loud():
    rows = mikv.recorded("mikv_keys")
    assert mikv.loudness(rows, "balanced") < 0.8 * mikv.loudness(rows, "key")


def test_memory_strip_draws_every_step_and_layer():
    rows = mikv.recorded("mikv_strip")
    for step in sorted(set(rows.step)):
        for layer in sorted(set(rows.layer)):
            fig = mikv.memory_strip(rows, step=step, layer=layer)
            at = rows[(rows.step == step) & (rows.layer == layer)]
            assert sum(map(sum, fig.data[0].z)) == (at.bits == 16).sum() and f"{72 + step} tokens" in figure_summary(fig)


@pytest.mark.parametrize("score", ["copy", "nll"])
def test_quality_against_bits_draws_the_means(score):
    rows = mikv.recorded("mikv_quality")
    fig = mikv.quality_against_bits(rows, score=score)
    assert {t.name for t in fig.data} == set(rows.method)
    mean = rows[(rows.method == "RTN") & (rows.low_bits == 3)][score].mean() * (100 if score == "copy" else 1)
    line = next(t for t in fig.data if t.name == "RTN")
    assert pytest.approx(mean) == dict(zip(line.x, line.y))[3.5]


def test_balancer_error_and_mass_and_spectrum_draw_their_rows():
    rows = mikv.recorded("mikv_errors")
    fig = mikv.balancer_error(rows)
    assert len(fig.data) == 2 and len(figure_table(fig)) == len(rows)
    rows = shadow.recorded("shadow_mass")
    fig = shadow.mass_caught(rows)
    assert len(fig.data) == 5 and len(figure_table(fig)) == len(rows) and "oracle" in figure_summary(fig)
    rows = shadow.recorded("shadow_spectrum")
    for layer in sorted(set(rows.layer)):
        fig = shadow.spectrum(rows, layer=layer)
        assert len(fig.data) == 3 and "before RoPE" in figure_summary(fig)


@pytest.mark.parametrize("layers", ["first 6", "all"])
def test_timeline_is_filled_where_chunks_moved_and_hollow_where_they_did_not(layers):
    rows = shadow.recorded("shadow_timeline")
    for step in sorted(set(rows.step)):
        fig = shadow.fetch_timeline(rows, step=step, layers=layers)
        filled, hollow = (next(t for t in fig.data if t.name == name) for name in ("fetch V", "carried over (hits)"))
        own = rows[(rows.step == step) & (rows.lane == "fetch V") & (rows.layer < (6 if layers == "first 6" else 99))]
        assert [f + h for f, h in zip(filled.x, hollow.x)] == pytest.approx(list(1e3 * (own.end_s - own.start_s)))
        assert sum(figure_table(fig)["carried over"]) == own.hits.sum()
        assert (step > 0) == bool(own.hits.sum())


@pytest.mark.parametrize("score", ["copy", "nll", "resident"])
def test_quality_draws_every_rank(score):
    rows = shadow.recorded("shadow_quality")
    fig = shadow.quality(rows, score=score)
    assert {t.name for t in fig.data} == {f"rank {r}" for r in set(rows["rank"]) - {0}} | {"full cache"}


@pytest.mark.parametrize("call, words", [
    (lambda: mikv.key_heatmap(pd.DataFrame(), view="x"), "both"), (lambda: mikv.quality_against_bits(pd.DataFrame(), score="x"), "copy"),
    (lambda: mikv.memory_strip(mikv.recorded("mikv_strip"), step=1), "recorded: "), (lambda: shadow.quality(pd.DataFrame(), score="x"), "nll"),
    (lambda: shadow.spectrum(shadow.recorded("shadow_spectrum"), layer=1), "recorded: "),
    (lambda: shadow.fetch_timeline(shadow.recorded("shadow_timeline"), step=5), "recorded: "),
    (lambda: shadow.fetch_timeline(shadow.recorded("shadow_timeline"), layers="some"), "first 6"),
    (lambda: mikv.recorded("nothing"), "there are")])
def test_choices_that_are_not_there_say_what_is(call, words):
    with pytest.raises(ValueError, match=words):
        call()
