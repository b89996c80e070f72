"""Figures of RobusTok: does p-eFID foretell g-eFID, what wrong codes cost in decibels, and what they look like.

Rows: recorded/robustok_*.json, by recipes/study_robustok.py and recipes/record_robustok.py.
"""
from collections.abc import Callable

import pandas as pd
import plotly.graph_objects as go

from frugal.core.recording import load_recorded
from frugal.explore import Explorer, choice, explore, select
from frugal.explore.pictures import image_board
from frugal.explore.pictures.stored import from_text
from frugal.explore.theme import BLUE, GREY, SKY, VERMILION, blank, escape
from frugal.visual_tokenizers.robustok_measure import g_difference, g_values
from frugal.visual_tokenizers.robustok_study import correlation, paired_difference

__all__ = ["FIGURES", "perturbed_psnr", "perturbed_strip", "recorded", "scores_side_by_side", "study_scatter"]

NAMES = {"vq_grid_64": "VQ grid", "robustok_64": "RobusTok"}
LOOKS = {("none", 0): (GREY, "circle", "not perturbed"), ("nearest", 0.1): (SKY, "square", "near codes, beta 0.1 (paper)"),
         ("nearest", 1): (BLUE, "square", "near codes, all pictures"), ("random", 1): (VERMILION, "diamond", "random codes, all pictures"),
         ("gaussian", 1): (VERMILION, "x", "Gaussian noise, all pictures")}
HEIGHTS = {"g_efid": "g-eFID of its generator", "copy_rate": "copy rate of its generator (share)",
           "held_out_nats": "held-out loss of its generator (nats a code)"}
SCORES = {"r_efid": "r-eFID", "p_efid": "p-eFID", "g_efid": "g-eFID"}


def recorded(name: str) -> pd.DataFrame:
    """The recorded rows "study", "scores", "cells", "psnr" or "strip"."""
    return load_recorded("visual_tokenizers", f"robustok_{name}")


def study_scatter(rows: pd.DataFrame, y: str = "g_efid") -> go.Figure:
    """Each point one small tokenizer: left against r-eFID, right against p-eFID. y: a key of HEIGHTS.

    Bars: 95 % bootstrap of r-eFID and g-eFID. Hover shows the copy rate.
    """
    if y not in HEIGHTS:
        raise ValueError(f"y={y!r}; there are {', '.join(HEIGHTS)}")
    left, right = (correlation(rows[x], rows[y]) for x in ("r_efid", "p_efid"))
    fig = blank(f"{HEIGHTS[y]}: rank correlation {left.rho:+.2f} with r-eFID, {right.rho:+.2f} with p-eFID", "r-eFID", HEIGHTS[y], height=470)
    for (kind, beta), (color, marker, label) in LOOKS.items():
        own = rows[(rows.kind == kind) & (rows.beta == beta)]
        for axis, x in (("", "r_efid"), ("2", "p_efid")):
            if own.empty:
                continue
            words = [f"{r.tokenizer}: r {r.r_efid:.2f}, p {r.p_efid:.2f}, g {r.g_efid:.2f}, copies {r.copy_rate:.0%}" for r in own.itertuples()]
            fig.add_scatter(x=own[x].tolist(), y=own[y].tolist(), mode="markers+text", name=label, legendgroup=label, showlegend=axis == "",
                            xaxis=f"x{axis}", yaxis=f"y{axis}", marker={"size": 10, "color": color, "symbol": marker},
                            text=[f"{int(r.codebook_size)}/{int(r.dim)}" for r in own.itertuples()], textposition="top center", textfont={"size": 10},
                            hovertext=words, hoverinfo="text", error_x=_bar(own, x, "r") if x == "r_efid" else None,
                            error_y=_bar(own, y, "g") if y == "g_efid" else None)
    for x, text in ((0.0, f"rho {left}"), (0.56, f"rho {right}")):
        fig.add_annotation(text=escape(text), x=x, y=1.06, xref="paper", yref="paper", showarrow=False, xanchor="left", font={"size": 11})
    fig.update_layout(xaxis={"domain": [0, 0.44]}, xaxis2={"domain": [0.56, 1], "anchor": "y2", "title": {"text": "p-eFID"}},
                      yaxis2={"anchor": "x2", "matches": "y", "title": {"text": HEIGHTS[y]}})
    said = ""
    if y == "g_efid":
        found = paired_difference(rows)
        said = f"; difference {found.value:+.2f} [{found.low:+.2f}, {found.high:+.2f}], 0 or less in {found.not_above:.1%} of the resamples"
    return fig.update_layout(meta={"summary": f"{HEIGHTS[y]} over {len(rows)} tokenizers: Spearman {left} for r-eFID; {right} for p-eFID{said}."})


def _bar(own: pd.DataFrame, column: str, letter: str) -> dict:
    return {"type": "data", "array": (own[f"{letter}_high"] - own[column]).clip(lower=0).tolist(), "thickness": 1, "width": 3,
            "arrayminus": (own[column] - own[f"{letter}_low"]).clip(lower=0).tolist()}


def scores_side_by_side(rows: pd.DataFrame) -> go.Figure:
    """The two trained 64-token grids: r-eFID, p-eFID, g-eFID. Bars: spread over sets of perturbed and of generated codes."""
    first, second = (rows[rows.tokenizer == name].iloc[0] for name in NAMES)
    fig = blank(f"Perturbed training: g-eFID {first.g_efid:.2f} to {second.g_efid:.2f}, r-eFID {first.r_efid:.2f} to {second.r_efid:.2f}",
                "eFID (lower is better)", "which set", height=330)
    for (name, label), color, symbol in zip(NAMES.items(), (GREY, BLUE), ("circle", "square")):
        row = rows[rows.tokenizer == name].iloc[0]
        sets = g_values(rows, name)
        low, high = [row.r_efid, row.p_low, sets.min()], [row.r_efid, row.p_high, sets.max()]
        values = [row.r_efid, row.p_efid, row.g_efid]
        fig.add_scatter(x=values, y=list(SCORES.values()), mode="markers", name=f"{label} (copies {row.copy_rate:.0%})",
                        marker={"size": 12, "color": color, "symbol": symbol}, hovertemplate="%{y}: %{x:.2f}",
                        error_x={"type": "data", "array": [h - v for h, v in zip(high, values)], "arrayminus": [v - w for v, w in zip(values, low)]})
    fig.update_xaxes(rangemode="tozero")
    fig.update_yaxes(type="category", autorange="reversed")
    said = "; ".join(f"{NAMES[r.tokenizer]}: r {r.r_efid:.2f}, p {r.p_efid:.2f}, g {r.g_efid:.2f}, copies {r.copy_rate:.0%}, {r.psnr:.1f} dB"
                     for r in rows.itertuples())
    mean, low_end, high_end = g_difference(rows)
    return fig.update_layout(meta={"summary": f"Scores of the two 64-token grids. {said}. Difference of g-eFID over {int(first.sets)} sets each: "
                                   f"{mean:+.2f} [{low_end:+.2f}, {high_end:+.2f}]."})


def perturbed_psnr(rows: pd.DataFrame, delta: int = 17) -> go.Figure:
    """Held-out decibels against the share of replaced tokens, for codes drawn from the `delta` nearest."""
    own = select(rows, delta=delta)
    ends = own[own.alpha == own.alpha.max()].set_index("tokenizer").psnr
    fig = blank(f"All tokens replaced by one of {delta} near codes: {ends['robustok_64']:.1f} dB, without the training {ends['vq_grid_64']:.1f}",
                "alpha (share of tokens up for a draw)", "PSNR on held-out emoji (dB)", height=400)
    for (name, label), color, symbol in zip(NAMES.items(), (GREY, BLUE), ("circle", "square")):
        part = own[own.tokenizer == name].sort_values("alpha")
        fig.add_scatter(x=part.alpha.tolist(), y=part.psnr.tolist(), mode="lines+markers", name=label, line={"color": color},
                        marker={"size": 9, "symbol": symbol}, hovertemplate="%{x:.0%}: %{y:.2f} dB")
    fig.update_xaxes(tickformat=".0%")
    fig.update_yaxes(range=[rows.psnr.min() - 0.7, rows.psnr.max() + 0.7])
    said = "; ".join(f"{NAMES[name]} {', '.join(f'{r.psnr:.1f} at {r.alpha:.0%}' for r in part.itertuples())}"
                     for name, part in own.groupby("tokenizer"))
    return fig.update_layout(meta={"summary": f"Decibels with codes from the {delta} nearest: {said}."})


def perturbed_strip(rows: pd.DataFrame, emoji: str | None = None) -> go.Figure:
    """One emoji decoded at growing alpha by both tokenizers: the first row without, the second with perturbed training."""
    emoji = rows.emoji.iloc[0] if emoji is None else emoji
    own = select(rows, emoji=emoji)
    own = pd.concat([own[own.tokenizer == name].sort_values("alpha") for name in NAMES])
    captions = [f"{NAMES[r.tokenizer]}, {r.alpha:.0%}: {r.psnr:.1f} dB" for r in own.itertuples()]
    return image_board([from_text(text) for text in own.picture], captions, columns=own.alpha.nunique(), values=own.psnr, value="PSNR (dB)",
                       title=f"{emoji}: codes replaced by one of the {int(own.delta.iloc[0])} nearest, more of them to the right")


def _study() -> Explorer:
    return explore(study_scatter, recorded("study"), y=choice(list(HEIGHTS), "Up", texts=list(HEIGHTS.values())))


def _scores() -> Explorer:
    return explore(scores_side_by_side, recorded("scores"))


def _psnr() -> Explorer:
    rows = recorded("psnr")
    deltas = sorted(int(delta) for delta in rows.delta.unique())
    return explore(perturbed_psnr, rows, delta=choice(deltas, "Drawn from the nearest", "codes"))


def _strip() -> Explorer:
    rows = recorded("strip")
    return explore(perturbed_strip, rows, emoji=choice(list(dict.fromkeys(rows.emoji)), "Emoji"))


FIGURES: dict[str, Callable[[], Explorer]] = {"robustok_strip": _strip, "robustok_psnr": _psnr, "robustok_scores": _scores,
                                              "robustok_study": _study}
