"""Figures of GenSE: scores by SNR, spectrograms with their tokens, what tokens know of the voice, cost by stage.

Rows: recorded/gense_*.json and assets/gense_clips.json, written by recipes/record_gense.py.
"""
from collections.abc import Callable

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from frugal.core.recording import load_recorded
from frugal.data.formant_speech import NOISES
from frugal.explore import Explorer, choice, explore, select
from frugal.explore.theme import BLUE, GREY, VERMILION, blank, escape, styles
from frugal.visual_tokenizers.gense_audio import BINS, FLOOR_DB, SPAN_DB, mel_centres
from frugal.visual_tokenizers.gense_measure import GENERATED_BY, SCORES
from frugal.visual_tokenizers.gense_shown import frames_of, recorded_clips

METHODS = ("two-stage", "one-stage", "no noisy prompt", "regression", "spectral subtraction", "noisy", "codec of clean speech", "clean")
PLAIN = ("noisy", "codec of clean speech", "clean")
STRIPS = (("noisy_semantic", "semantic, noisy", "true_semantic"), ("clean_semantic", "semantic, N2S", "true_semantic"), ("true_semantic", "semantic, clean clip", "true_semantic"),
          ("noisy_acoustic", "acoustic, noisy", "true_acoustic"), ("clean_acoustic", "acoustic, S2S", "true_acoustic"), ("true_acoustic", "acoustic, clean clip", "true_acoustic"))
DRAWN = {0: "likeliest token", 1: "drawn (the paper's)"}
COSTS = {"flops_per_s": "MFLOPs for a second of audio", "cpu_ms_per_s": "CPU ms for a second of audio", "tokens_per_s": "tokens for a second of audio"}


def recorded(name: str) -> pd.DataFrame:
    """The recorded rows of that name. ValueError lists what is recorded."""
    return load_recorded("visual_tokenizers", f"gense_{name}")


def snr_curve(rows: pd.DataFrame, score: str = "edits_strict", noise: str = "all", drawn: int = 0) -> go.Figure:
    """A score against the SNR, a line a method with its 95 % interval; dashed: what no enhancement is behind."""
    own = select(rows, score=score, noise=noise)
    own = own[(own.temperature == drawn) | ~own.method.isin(list(GENERATED_BY))]
    fig, look = blank(f"Enhancement by SNR, {noise} noise{'s' if noise == 'all' else ''}", "SNR (dB)", SCORES[score]), styles(list(METHODS), PLAIN)
    for method in METHODS:
        part = own[own.method == method].sort_values("snr_db")
        line = dict(look[method].line) | ({"dash": {"noisy": "solid", "codec of clean speech": "dash", "clean": "dot"}[method]} if method in PLAIN else {})
        fig.add_scatter(x=part.snr_db, y=part.value, name=method, mode="lines+markers", line=line, marker=look[method].points,
                        error_y={"type": "data", "symmetric": False, "thickness": 1, "array": part.high - part.value, "arrayminus": part.value - part.low})
    fig.update_xaxes(tickvals=sorted(own.snr_db.unique()))
    fig.update_yaxes(range={"edits_strict": [0, 105], "edits_robust": [0, 105], "voice": [-1, 1.05], "distance_db": [0, 13]}[score])
    ends = "; ".join(f"{m} {p.value.iloc[0]:.3g} to {p.value.iloc[-1]:.3g}" for m in METHODS if len(p := own[own.method == m].sort_values("snr_db")))
    return fig.update_layout(meta={"summary": f"{SCORES[score]}, {noise} noise, {own.clips.iloc[0]} clips, from {own.snr_db.min()} to {own.snr_db.max()} dB: {ends}."})


def spectrograms(clips: list[dict], clip: int = 0, version: str = "two-stage") -> go.Figure:
    """The noisy clip, what a system makes of it, and the clean one; below, the tokens of the two-stage system, those that
    differ from the clean clip's in red."""
    own = clips[clip]
    fig = blank(f"\"{escape(' '.join(own['words']))}\" in {own['noise']} noise at {own['snr_db']} dB", "", "", height=680, showlegend=False)
    for place, name in enumerate(("noisy", version, "clean"), 1):
        decibels = np.round(frames_of(own["versions"][name]["mel"]) * SPAN_DB + FLOOR_DB + 40).astype(int)
        axis = "" if place == 1 else str(place)
        fig.add_heatmap(z=decibels, x=_times(decibels.shape[1], 0.02), y=list(range(BINS)), xaxis=f"x{axis}", yaxis=f"y{axis}", name=name,
                        zmin=int(FLOOR_DB), zmax=-20, colorscale="Cividis", showscale=place == 1, colorbar={"title": {"text": "dB"}, "len": 0.3, "y": 0.87},
                        hovertemplate="%{x:.2f} s, bin %{y}: %{z} dB")
        top = 1 - 0.235 * (place - 1)
        fig.update_layout({f"yaxis{axis}": {"domain": [top - 0.2, top], "anchor": f"x{axis}", "title": {"text": f"{name}<br>(Hz)"}, "tickvals": [5, 15, 25, 35],
                                            "ticktext": [f"{mel_centres()[b]:.0f}" for b in (5, 15, 25, 35)]},
                           f"xaxis{axis}": {"anchor": f"y{axis}", "showticklabels": False, "showgrid": False, "domain": [0, 1]}})
    _strips(fig, own)
    wrong = {kind: sum(a != b for a, b in zip(own["codes"][kind], own["codes"][truth])) for kind, _, truth in STRIPS}
    count = len(own["labels"])
    return fig.update_layout(meta={"summary": f"Of {count} semantic tokens {wrong['noisy_semantic']} differ from the clean clip's before N2S and "
                                              f"{wrong['clean_semantic']} behind it; of the acoustic ones {wrong['noisy_acoustic']} before S2S and "
                                              f"{wrong['clean_acoustic']} behind it."})


def _strips(fig: go.Figure, own: dict) -> None:
    """The rows of tokens; the lowest axis carries the phonemes."""
    codes = own["codes"]
    same = [[int(a == b) for a, b in zip(codes[kind], codes[truth])] for kind, _, truth in STRIPS]
    times = _times(len(own["labels"]), 0.04)
    fig.add_heatmap(z=same, x=times, y=[label for _, label, _ in STRIPS], text=[[str(c) for c in codes[kind]] for kind, _, _ in STRIPS], texttemplate="%{text}",
                    textfont={"size": 8}, xaxis="x4", yaxis="y4", xgap=1, ygap=2, zmin=0, zmax=1, showscale=False, name="as in the clean clip",
                    colorscale=[(0, VERMILION), (0.5, VERMILION), (0.5, "#b9d7ea"), (1, "#b9d7ea")], hovertemplate="%{y}: code %{text} at %{x:.2f} s")
    fig.update_layout(yaxis4={"domain": [0, 0.27], "anchor": "x4", "autorange": "reversed", "showgrid": False, "title": {"text": "tokens"}},
                      xaxis4={"anchor": "y4", "domain": [0, 1], "tickvals": times, "ticktext": own["labels"], "tickangle": 0, "showgrid": False,
                              "title": {"text": "phoneme said (25/s; _ is silence)"}})


def _times(count: int, step: float) -> list[float]:
    return [round(step * (i + 0.5), 3) for i in range(count)]


def voice_in_tokens(rows: pd.DataFrame) -> go.Figure:
    """How much of the voice a linear probe reads from counts of a clip's tokens; 0 is nothing."""
    fig = blank("What tokens tell of the voice", "part of the voice", "R2 of a linear probe", height=320, barmode="group")
    for name, color in (("semantic", BLUE), ("acoustic", VERMILION)):
        own = rows[rows.tokens == name]
        fig.add_bar(x=own.voice, y=own.r2, name=name, marker={"color": color}, text=[f"{v:.2f}" for v in own.r2])
    fig.update_yaxes(range=[-0.05, 1])
    said = "; ".join(f"{r.tokens} tokens, {r.voice}: {r.r2:.2f}" for r in rows.itertuples())
    return fig.update_layout(meta={"summary": f"R2 of a linear probe on held-out clips: {said}."})


def cost(rows: pd.DataFrame, measure: str = "flops_per_s", clips: int = 1) -> go.Figure:
    """What a second of audio costs by stage, with a KV cache and with everything computed again, as the release does.
    clips: how many run at once."""
    rows = select(rows, clips=clips)
    fig = blank(f"Cost by stage, {clips} {'clip' if clips == 1 else 'clips'} at once", "stage", COSTS[measure], barmode="group", height=360)
    scale = 1e-6 if measure == "flops_per_s" else 1
    for cached, name, color in ((False, "computed again", GREY), (True, "KV cache", BLUE)):
        own = rows[rows.cached == cached]
        fig.add_bar(x=own.stage, y=own[measure] * scale, name=name, marker={"color": color}, text=[f"{v * scale:,.0f}" if v * scale >= 100 else f"{v * scale:.3g}" for v in own[measure]])
    said = "; ".join(f"{stage}: {part[~part.cached][measure].iloc[0] * scale:.3g} and {part[part.cached][measure].iloc[0] * scale:.3g}"
                     for stage, part in rows.groupby("stage", sort=False))
    return fig.update_layout(meta={"summary": f"{COSTS[measure]}, computed again and with a cache: {said}."})


# --- explorers -----------------------------------------------------------------------------------------------------


def gense_snr() -> Explorer:
    return explore(snr_curve, recorded("scores"), score=list(SCORES), noise=["all", *NOISES], drawn=choice(list(DRAWN), "Token taken", texts=list(DRAWN.values())))


def gense_picture() -> Explorer:
    clips = recorded_clips()
    texts = [f"{clip['noise']}, {clip['snr_db']} dB" for clip in clips]
    return explore(spectrograms, clips, clip=choice(list(range(len(clips))), "Clip", texts=texts), version=["two-stage", "one-stage", "no noisy prompt"])


def gense_voice() -> Explorer:
    return explore(voice_in_tokens, recorded("voice"))


def gense_cost() -> Explorer:
    return explore(cost, recorded("cost"), measure=choice(list(COSTS), "Measure", texts=["FLOPs", "CPU time", "tokens"]), clips=choice([1, 16], "Clips at once"))


FIGURES: dict[str, Callable[[], Explorer]] = {make.__name__: make for make in (gense_snr, gense_picture, gense_voice, gense_cost)}
