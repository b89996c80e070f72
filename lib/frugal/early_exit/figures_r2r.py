"""Figures of R2R: right answers against activated parameters, kinds of tokens, one problem by two hands, speed, the pair on prose.

Rows: `recorded/r2r_*.json` (written by recipes/record_r2r.py), or the functions of `r2r_measure` and `r2r_paths` that make them.
"""
from collections.abc import Callable

import pandas as pd
import plotly.graph_objects as go

from frugal.core.recording import load_recorded
from frugal.early_exit.r2r_labels import KINDS
from frugal.early_exit.r2r_measure import METHODS
from frugal.explore import Explorer, choice, explore, select
from frugal.explore.pictures import pareto_front
from frugal.explore.theme import BLUE, GREY, ORANGE, VERMILION, blank, escape, styles

__all__ = ["FIGURES", "label_bar", "prose_curve", "recorded", "routing_front", "speed_bar", "two_hands"]

COSTS = {"activated": ("activated parameters a token (thousands)", 1e-3), "calls": ("share of tokens with a call of the large model", 1.0),
         "flops": ("FLOPs a token, reading included (millions)", 1e-6)}
KIND_COLORS = {"identical": GREY, "neutral": BLUE, "divergent": VERMILION}
BOUNDS = {name: f"{name} (bound)" for name in ("every different token", "label oracle")}     # they ask the large model to know when to ask
COLUMNS = 15                                       # words of the longest sentence, and one more


def recorded(name: str) -> pd.DataFrame:
    """The recorded rows "r2r_methods", "r2r_labels", "r2r_chains", "r2r_speed" or "r2r_prose"."""
    return load_recorded("early_exit", name)


def routing_front(rows: pd.DataFrame, cost: str = "activated") -> go.Figure:
    """Right final answers (%) against a cost, each method over its settings, with 95 % intervals.

    cost: "activated" (the paper's), "calls" of the large model, or "flops" with all that the large model reads late.
    """
    if cost not in COSTS:
        raise ValueError(f"cost={cost!r}; there are {', '.join(COSTS)}")
    words, scale = COSTS[cost]
    points = [{"name": BOUNDS.get(r.method, r.method), "x": getattr(r, cost) * scale, "y": 100 * r.right, "y_low": 100 * r.right_low,
               "y_high": 100 * r.right_high, "label": f"{r.method}, {r.calls:.1%} calls"} for r in rows.itertuples()]
    fig = pareto_front(points, title="Who should write which token", x=words, y="right final answers (%)",
                       names=[BOUNDS.get(name, name) for name in METHODS])
    return fig.update_yaxes(range=[-3, 103])


def label_bar(rows: pd.DataFrame) -> go.Figure:
    """Shares of identical, neutral and divergent tokens: of all tokens, of digits, of words of style, of the rest."""
    fig = blank("What the small model would change", "share of the tokens (%)", "kind of token", barmode="stack", height=300)
    groups = [group for group in ("other", "style word", "digit", "all") if group in set(rows["group"])]
    totals = rows.groupby("group")["count"].sum()
    for i, kind in enumerate(KINDS):
        own = rows[rows["kind"] == kind].set_index("group")["count"].reindex(groups).fillna(0)
        share = [100 * own[group] / totals[group] for group in groups]
        fig.add_bar(y=groups, x=share, orientation="h", name=kind, text=[f"{value:.1f} %" if value >= 4 else "" for value in share],
                    textposition="inside", insidetextanchor="middle", textangle=0, hovertemplate=f"{kind}: %{{x:.2f}} %<extra>%{{y}}</extra>",
                    marker={"color": KIND_COLORS[kind], "line": {"width": 0}, "pattern": {
                        "shape": ["", "/", "x"][i], "size": 8, "solidity": 0.12, "bgcolor": KIND_COLORS[kind], "fgcolor": "#ffffff",
                        "fgopacity": 0.5}})
    return fig.update_xaxes(range=[0, 100])


def _sentences(own: pd.DataFrame) -> pd.DataFrame:
    """Rows of one text with the line (sentence) and the column of each token."""
    ends = own["token"].eq(".").cumsum().shift(fill_value=0)
    own = own.assign(line=ends.where(own["token"] != "<eos>", ends - 1))
    return own.assign(column=own.groupby("line").cumcount())


def two_hands(rows: pd.DataFrame, problem: int = 0, threshold: float = 0.5) -> go.Figure:
    """One problem: each written token coloured by the model that wrote it, the router's probability as a bar above it.

    Below a token that the large model replaced: what the small model would have said instead, and the answer it would have come to.
    """
    own = _sentences(select(rows, problem=problem, threshold=threshold).sort_values("place").reset_index(drop=True))
    first = own.iloc[0]
    right, said = int(first["right"]), int(first["answer"])
    verdict = "right" if said == right else f"wrong, {right:03d} is right"
    lines = int(own["line"].max()) + 1
    fig = blank(f"{first['prompt']}  ->  {'no answer' if said < 0 else f'{said:03d}'} ({verdict})", "", "", height=120 + 104 * lines)
    y = -own["line"].astype(float)
    bars_x, bars_y = [], []
    for at, level, score in zip(own["column"], y, own["score"]):
        bars_x += [at, at, None]
        bars_y += [level + 0.2, level + 0.2 + 0.36 * score, None]
    fig.add_scatter(x=bars_x, y=bars_y, mode="lines", line={"color": ORANGE, "width": 6}, name="router's probability", hoverinfo="skip")
    for writer, color, marker in (("small", GREY, "circle"), ("large", BLUE, "square")):
        part = own["writer"] == writer
        fig.add_scatter(x=own["column"][part], y=y[part], mode="markers+text", text=[f"<b>{escape(t)}</b>" if writer == "large" else escape(t)
                        for t in own["token"][part]], textposition="top center", name=f"{writer} model wrote it", textfont={"color": color},
                        marker={"color": color, "symbol": marker, "size": 7}, hoverinfo="text",
                        hovertext=[f"{escape(r.token)}, written by the {writer} model<br>small model proposed {escape(r.proposed)}<br>"
                                   f"probability {r.score:.3f}" for r in own[part].itertuples()])
    _branches(fig, own[own["replaced"]], right)
    fig.add_annotation(x=0, y=0, xref="paper", yref="paper", yshift=-22, showarrow=False, xanchor="left", font={"size": 11},
                       text="a line a sentence; digits stand as they are written, units first; text below: the small model's own sentence")
    fig.update_xaxes(visible=False, range=[-0.8, COLUMNS], fixedrange=True)
    return fig.update_yaxes(visible=False, range=[-lines + 0.2, 0.95], fixedrange=True)


def _branches(fig: go.Figure, replaced: pd.DataFrame, right: int) -> None:
    """One replaced token a sentence, the first whose own path ends wrong if there is one: the small model's own sentence and answer."""
    for wrong, color, name in ((True, VERMILION, "small model's own path, wrong"), (False, GREY, "small model's own path, right")):
        part = replaced[(replaced["own_answer"] != right) == wrong]
        if not wrong:
            part = part[~part["line"].isin(replaced.loc[replaced["own_answer"] != right, "line"])]
        part = part.drop_duplicates("line")
        ends = ["no answer" if a < 0 else f"{a:03d}" for a in part["own_answer"]]
        fig.add_scatter(x=part["column"], y=-part["line"] - 0.15, mode="markers", name=name, hoverinfo="skip",
                        marker={"color": color, "symbol": "triangle-down" if wrong else "triangle-up", "size": 9})
        for column, line, sentence, end in zip(part["column"], part["line"], part["own_sentence"], ends):
            fig.add_annotation(x=column, y=-line - 0.29, showarrow=False, xanchor="left" if column < COLUMNS / 2 else "right",
                               text=f"{escape(sentence)} ... answer {end}", font={"color": color, "size": 11})


def speed_bar(rows: pd.DataFrame) -> go.Figure:
    """Processor time of one written token at batch 1, one thread; bars span the rounds."""
    fig = blank("Time of a written token, one text at a time", "processor time (ms a token)", "method", height=320, showlegend=False)
    rows = rows.sort_values("cpu_ms", ascending=False)
    fig.add_bar(y=rows["method"], x=rows["cpu_ms"], orientation="h", name="processor time", marker={"color": BLUE},
                error_x={"type": "data", "array": rows["cpu_ms_high"] - rows["cpu_ms"], "arrayminus": rows["cpu_ms"] - rows["cpu_ms_low"]})
    return fig


def prose_curve(rows: pd.DataFrame) -> go.Figure:
    """SmolLM2's first layers with a lens against all of it, on prose: share of identical tokens. No verifier can say which matter."""
    fig = blank("A pair without a verifier: SmolLM2 and its own first layers", "layers of the small model (of 30)", "identical tokens (%)")
    look = styles(list(dict.fromkeys(rows["lens"])))
    for lens in look:
        own = rows[rows["lens"] == lens].sort_values("layers")
        fig.add_scatter(x=own["layers"], y=100 * own["identical"], mode="lines+markers", name=lens.replace("_", " "), line=look[lens].line,
                        marker=look[lens].points, customdata=100 * own["weight_share"],
                        hovertemplate="%{x} layers: %{y:.1f} % identical, %{customdata:.0f} % of the weights read<extra></extra>")
    return fig.update_yaxes(range=[0, 100])


def _front() -> Explorer:
    return explore(routing_front, recorded("r2r_methods"), cost=choice(list(COSTS), "Cost", texts=[words for words, _ in COSTS.values()]))


def _labels() -> Explorer:
    return explore(label_bar, recorded("r2r_labels"))


def _hands() -> Explorer:
    rows = recorded("r2r_chains")
    return explore(two_hands, rows, problem=choice(sorted(rows["problem"].unique().tolist()), "Problem"),
                   threshold=choice(sorted(rows["threshold"].unique().tolist()), "Router threshold"))


def _speed() -> Explorer:
    return explore(speed_bar, recorded("r2r_speed"))


def _prose() -> Explorer:
    return explore(prose_curve, recorded("r2r_prose"))


FIGURES: dict[str, Callable[[], Explorer]] = {"r2r_front": _front, "r2r_labels": _labels, "r2r_hands": _hands, "r2r_speed": _speed,
                                              "r2r_prose": _prose}
