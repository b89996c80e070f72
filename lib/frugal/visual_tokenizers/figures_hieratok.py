"""Figures of HieraTok: the mask, what coarse scales say, scores and convergence of all variants, cost of the pyramid.

Rows: `recorded/hieratok_*.json` (written by recipes/train_hieratok.py and record_hieratok.py).
"""
from collections.abc import Callable

import pandas as pd
import plotly.graph_objects as go

from frugal.core.masks import scale_causal
from frugal.core.recording import load_recorded
from frugal.explore import Explorer, choice, explore, select
from frugal.explore.pictures import image_board, layer_grid
from frugal.explore.pictures.stored import from_text
from frugal.explore.theme import blank, styles

__all__ = ["FIGURES", "LABELS", "coarse_board", "cost_bars", "flow_curve", "recorded", "scale_mask", "score_points"]

LABELS = {"single": "single scale", "hieratok": "pyramid, scale-causal (HieraTok)", "full": "pyramid, full attention",
          "shuffled": "pyramid of shuffled tokens (control)", "no_coarse": "HieraTok without the coarse losses", "encoder": "pyramid in the encoder only",
          "decoder": "pyramid in the decoder only", "two": "scales 4, 8", "three": "scales 2, 4, 8"}
SCORES = {"refid": "r-eFID, all emoji", "psnr": "PSNR, held out (dB)", "elpips": "eLPIPS, held out",
          "neighbour_cosine": "cosine of neighbouring latents", "between_efid": "eFID of pictures half-way between two latents"}
FLOW_SCORES = {"ekid": "eKID of generated pictures", "accuracy": "label accuracy (share)", "copies": "copy rate (share)"}
MASKS = {"1, 2, 4": "scales 1, 2, 4", "2, 4": "scales 2, 4", "4": "one scale"}


def recorded(name: str) -> pd.DataFrame:
    """The recorded rows "hieratok_scores", "hieratok_flow", "hieratok_coarse" or "hieratok_cost"."""
    return load_recorded("visual_tokenizers", name)


def scale_mask(rows: pd.DataFrame, scales: str = "1, 2, 4") -> go.Figure:
    """The mask of a small pyramid: block-triangular, full inside a scale. rows: the scale lists there are, as text."""
    select(rows, scales=scales)
    sides = [int(part) for part in scales.split(",")]
    names = [f"{s}:{i + 1}" for s in sides for i in range(s * s)]
    return layer_grid(scale_causal([s * s for s in sides]).numpy(), title=f"Who sees whom in a pyramid of scales {scales}",
                      value="may look (1: yes)", x="token that is looked at (scale:place)", y="token that asks", columns=names, rows=names,
                      limits=(0, 1))


def coarse_board(rows: pd.DataFrame) -> go.Figure:
    """Original, what the decoder's scales 1, 2, 4 say on their own, and the picture; a row for every emoji."""
    pictures, captions = [], []
    for emoji in dict.fromkeys(rows["emoji"]):
        for row in rows[rows["emoji"] == emoji].sort_values("scale").itertuples():
            pictures.append(from_text(row.png))
            captions.append(emoji if row.scale == 0 else f"{row.scale} x {row.scale} tokens: {row.psnr:.1f} dB")
    return image_board(pictures, captions, title="What each scale reconstructs, against the picture at its size", columns=5)


def score_points(rows: pd.DataFrame, score: str = "refid") -> go.Figure:
    """One point for every trained tokenizer: variants side by side, seeds above each other, so that noise is seen."""
    if score not in SCORES:
        raise ValueError(f"score={score!r}; there are {', '.join(SCORES)}")
    fig = blank(f"{SCORES[score]}, {int(rows['steps'].iloc[0])} steps each", SCORES[score], "variant", height=320, showlegend=False)
    known = [name for name in LABELS if name in set(rows["variant"])]
    look = styles(known, ("single",))
    for name in known:
        own = rows[rows["variant"] == name]
        fig.add_scatter(x=own[score], y=[LABELS[name]] * len(own), mode="markers", name=LABELS[name], marker=look[name].points,
                        customdata=own["seed"], hovertemplate="seed %{customdata}: %{x:.4g}<extra></extra>")
    return fig.update_yaxes(autorange="reversed", type="category")


def flow_curve(rows: pd.DataFrame, score: str = "ekid") -> go.Figure:
    """Mean over seeds against the generator's steps, bars from the lowest to the highest seed; copy rates in the hover text."""
    if score not in FLOW_SCORES:
        raise ValueError(f"score={score!r}; there are {', '.join(FLOW_SCORES)}")
    fig = blank(f"The same small flow on each latent: {FLOW_SCORES[score]}", "training steps of the flow", FLOW_SCORES[score])
    known = [name for name in LABELS if name in set(rows["variant"])]
    look = styles(known, ("single",))
    for name in known:
        seen = rows[rows["variant"] == name].groupby("steps")
        mean, low, high = seen[score].mean(), seen[score].min(), seen[score].max()
        copied = rows[(rows["variant"] == name) & (rows["steps"] == rows["steps"].max())]["copies"].mean()
        fig.add_scatter(x=mean.index, y=mean, mode="lines+markers", name=f"{LABELS[name]}; copies {copied:.1%}", line=look[name].line,
                        marker=look[name].points, error_y={"type": "data", "array": high - mean, "arrayminus": mean - low, "thickness": 1},
                        customdata=seen["copies"].mean(), hovertemplate="%{x} steps: %{y:.3f}, copy rate %{customdata:.1%}<extra></extra>")
    return fig.update_layout(legend={"orientation": "h", "y": -0.25})


def cost_bars(rows: pd.DataFrame, cost: str = "mflops") -> go.Figure:
    """What more scales cost for one picture there and back. cost: "mflops", "ms" or "tokens"."""
    words = {"mflops": "million FLOPs", "ms": "processor time (ms)", "tokens": "tokens in the pyramid blocks"}
    if cost not in words:
        raise ValueError(f"cost={cost!r}; there are {', '.join(words)}")
    fig = blank("The price of the pyramid", "scales", words[cost], showlegend=False)
    share = rows[cost] / rows[cost].iloc[0]
    fig.add_bar(x=rows["scales"], y=rows[cost], name=words[cost], text=[f"{s:.2f}x" for s in share],
                hovertemplate="scales %{x}: %{y:.3g}<extra></extra>")
    return fig.update_xaxes(type="category")


def _masks() -> Explorer:
    return explore(scale_mask, pd.DataFrame({"scales": list(MASKS)}), scales=choice(list(MASKS), "Pyramid", texts=list(MASKS.values())))


def _scores() -> Explorer:
    return explore(score_points, recorded("hieratok_scores"), score=choice(list(SCORES), "Score", texts=list(SCORES.values())))


def _flow() -> Explorer:
    return explore(flow_curve, recorded("hieratok_flow"), score=choice(list(FLOW_SCORES), "Score", texts=list(FLOW_SCORES.values())))


def _cost() -> Explorer:
    return explore(cost_bars, recorded("hieratok_cost"), cost=choice(
        ["mflops", "ms", "tokens"], "Cost", texts=["counted FLOPs", "processor time", "tokens"]))


FIGURES: dict[str, Callable[[], Explorer]] = {
    "hieratok_mask": _masks,
    "hieratok_coarse": lambda: explore(coarse_board, recorded("hieratok_coarse")),
    "hieratok_scores": _scores,
    "hieratok_flow": _flow,
    "hieratok_cost": _cost,
}
