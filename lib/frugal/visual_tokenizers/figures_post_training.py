"""Figures of post-training: what sigma is worth, and one emoji from all its own codes to none, before and after.

Rows: recorded/post_training.json by recipes/train_post_training.py, post_training_strip.json by recipes/record_robustok.py.
"""
from collections.abc import Callable

import pandas as pd
import plotly.graph_objects as go

from frugal.core.recording import load_recorded
from frugal.explore import Explorer, choice, explore, select
from frugal.explore.pictures import image_board
from frugal.explore.pictures.stored import from_text
from frugal.explore.theme import BLUE, GREY, ORANGE, VERMILION, blank
from frugal.visual_tokenizers.robustok_generated import ROBUST

__all__ = ["FIGURES", "recorded", "sigma_curve", "sigma_strip", "variant"]

SOURCES = {"reencode": ("encoded again (paper)", BLUE, "circle"), "tokens": ("the codes themselves", ORANGE, "square")}
LINES = {"none": ("before", GREY, "dash"), "clean": ("control: as many steps on clean codes", VERMILION, "dot"),
         "perturbed": ("control: perturbed codes", GREY, "dashdot")}
RIGHT = {"r_efid": "r-eFID", "psnr": "held-out PSNR (dB)", "copy_rate": "copy rate (share)", "label_accuracy": "label accuracy (share)"}


def recorded(name: str = "") -> pd.DataFrame:
    """The recorded rows of the sweep, or "strip"."""
    return load_recorded("visual_tokenizers", f"post_training{'_' + name if name else ''}")


def variant(rows: pd.DataFrame, input: str, tokenizer: str = ROBUST, sigma: float | None = None, source: str = "") -> pd.Series:
    """The row of one decoder. Raises ValueError where it was not recorded."""
    own = rows[(rows.input == input) & (rows.tokenizer == tokenizer) & (rows.source == source)]
    own = own if sigma is None else own[(own.sigma - sigma).abs() < 1e-9]
    if len(own) != 1:
        raise ValueError(f"{len(own)} decoders of {tokenizer} tuned on {input} codes with sigma {sigma} and source {source!r}; one is needed")
    return own.iloc[0]


def sigma_curve(rows: pd.DataFrame, right: str = "r_efid") -> go.Figure:
    """g-eFID against sigma on the left, something else on the right; lines for the decoder before, and for both controls.

    All decoders are given the same generated codes. Bars: the two sets of generated codes.
    """
    if right not in RIGHT:
        raise ValueError(f"right={right!r}; there are {', '.join(RIGHT)}")
    own = rows[rows.tokenizer == ROBUST]
    before, clean = variant(own, "none"), variant(own, "clean")
    papers, tried = variant(own, "generated", sigma=0.7, source="reencode"), own[own.input == "generated"].sort_values("g_efid")
    fig = blank(f"g-eFID {before.g_efid:.2f} before, {clean.g_efid:.2f} by the control, {papers.g_efid:.2f} after (sigma 0.7, as the paper)",
                "sigma (share of the picture's own codes)", "g-eFID", height=430)
    for source, (label, color, symbol) in SOURCES.items():
        part = own[(own.input == "generated") & (own.source == source)].sort_values("sigma")
        for axis, column in (("", "g_efid"), ("2", right)):
            fig.add_scatter(x=part.sigma.tolist(), y=part[column].tolist(), mode="lines+markers", name=label, legendgroup=source,
                            showlegend=axis == "", xaxis=f"x{axis}", yaxis=f"y{axis}", line={"color": color},
                            marker={"size": 9, "symbol": symbol}, hovertemplate="sigma %{x}: %{y:.3f}",
                            error_y=_sets(part) if column == "g_efid" else None)
    for name, (label, color, dash) in LINES.items():
        row = variant(own, name)
        for axis, column in (("", "g_efid"), ("2", right)):
            fig.add_scatter(x=[0.25, 0.95], y=[row[column]] * 2, mode="lines", name=label, legendgroup=name, showlegend=axis == "",
                            xaxis=f"x{axis}", yaxis=f"y{axis}", line={"color": color, "dash": dash})
    fig.update_layout(xaxis={"domain": [0, 0.43]}, yaxis2={"anchor": "x2", "title": {"text": RIGHT[right]}},
                      xaxis2={"domain": [0.57, 1], "anchor": "y2", "title": {"text": "sigma"}})
    said = "; ".join(f"{r.source} {r.sigma:g}: g {r.g_efid:.2f}, {RIGHT[right]} {r[right]:.3g}"
                     for _, r in own[own.input == "generated"].sort_values(["source", "sigma"]).iterrows())
    return fig.update_layout(meta={"summary": f"Before: g-eFID {before.g_efid:.2f}; control on clean codes {clean.g_efid:.2f}; perturbed codes "
                                   f"{variant(own, 'perturbed').g_efid:.2f}; {said}. Lowest of {len(tried)} settings, so flattered: "
                                   f"{tried.g_efid.iloc[0]:.3f}; the two sets of the decoder before differ by "
                                   f"{abs(before.g_first - before.g_second):.3f}. Copy rate {before.copy_rate:.1%} before, {papers.copy_rate:.1%} after."})


def _sets(part: pd.DataFrame) -> dict:
    pair = part[["g_first", "g_second"]]
    return {"type": "data", "array": (pair.max(axis=1) - part.g_efid).tolist(), "arrayminus": (part.g_efid - pair.min(axis=1)).tolist(),
            "thickness": 1, "width": 3}


def sigma_strip(rows: pd.DataFrame, emoji: str | None = None) -> go.Figure:
    """One emoji with ever fewer of its own codes: above by the decoder before post-training, below after."""
    emoji = rows.emoji.iloc[0] if emoji is None else emoji
    own = select(rows, emoji=emoji)
    own = pd.concat([own[own.decoder == when].sort_values("sigma", ascending=False) for when in ("before", "after")])
    captions = [f"{r.decoder}, sigma {r.sigma:g}: {r.kept:.0%} own" for r in own.itertuples()]
    return image_board([from_text(text) for text in own.picture], captions, columns=own.sigma.nunique(), values=own.psnr, value="PSNR (dB)",
                       title=f"{emoji}: from its own codes to the generator's")


def _curve() -> Explorer:
    return explore(sigma_curve, recorded(), right=choice(list(RIGHT), "On the right", texts=list(RIGHT.values())))


def _strip() -> Explorer:
    rows = recorded("strip")
    return explore(sigma_strip, rows, emoji=choice(list(dict.fromkeys(rows.emoji)), "Emoji"))


FIGURES: dict[str, Callable[[], Explorer]] = {"post_training_strip": _strip, "post_training_sigma": _curve}
