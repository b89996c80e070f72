"""Figures of BASED: recall against state bytes, milliseconds against length, attention matrices.

Rows: `recorded/based_mqar.json`, `based_speed.json`, `based_maps.json` (written by recipes/train_based.py), or the
functions of `based_recall` that make them.
"""

import math

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from frugal.core.recording import load_recorded
from frugal.explore import select
from frugal.explore.theme import SEQUENTIAL, TEMPLATE, blank, styles
from frugal.kv_eviction.based_recall import LABELS

__all__ = ["attention_matrices", "pareto", "recall_by_pairs", "recall_front", "recorded", "speed_curves"]

KINDS = ["taylor", "taylor+window", "window", "gated", "elu", "relu", "attention"]
BASELINE = ("attention",)


def recorded(name: str) -> pd.DataFrame:
    """The recorded rows "based_mqar", "based_speed" or "based_maps". ValueError lists what is recorded."""
    return load_recorded("kv_eviction", name)


def pareto(rows: pd.DataFrame, cost: str = "state_bytes", gain: str = "recall") -> pd.DataFrame:
    """The rows that no other row beats in both (less or equal cost and more gain), cheapest first."""
    ordered = rows.sort_values([cost, gain], ascending=[True, False], kind="stable")
    return ordered[ordered[gain] > ordered[gain].cummax().shift(fill_value=float("-inf"))]


def recall_front(rows: pd.DataFrame, num_pairs: int = 64, tokens: int = 256) -> go.Figure:
    """Recall (%) against bytes of state per sequence, one point a configuration, the Pareto front as a line."""
    at = select(rows, num_pairs=num_pairs, tokens=tokens)
    fig = blank(
        f"What a byte of state can recall: {num_pairs} pairs in {tokens} tokens",
        "state per sequence (bytes, log)",
        "keys answered rightly (%)",
    )
    front = pareto(at)
    fig.add_scatter(
        x=front["state_bytes"],
        y=100 * front["recall"],
        mode="lines",
        name="Pareto front",
        line={"color": "#999999", "width": 1},
        hoverinfo="skip",
        meta="decoration",
    )
    look = styles(KINDS, BASELINE)
    for name in [k for k in KINDS if k in set(at["kind"])]:
        own = at[at["kind"] == name].sort_values("state_bytes")
        fig.add_scatter(
            x=own["state_bytes"],
            y=100 * own["recall"],
            mode="markers",
            name=LABELS[name],
            marker=look[name].points | {"size": 11},
            text=own["configuration"],
            hovertemplate="%{text}: %{y:.1f} % with %{x:,.0f} bytes<extra></extra>",
        )
    fig.update_xaxes(type="log", range=[3.5, 5.4])
    return fig.update_yaxes(range=[-3, 104])


def recall_by_pairs(rows: pd.DataFrame, kind: str = "taylor") -> go.Figure:
    """Recall (%) against the number of pairs at 256 tokens, one line a configuration of `kind`, attention grey."""
    at = select(rows, tokens=256)
    at = at[at["kind"].isin([kind, "attention"])]
    names = sorted(at["configuration"].unique(), key=lambda n: at.loc[at["configuration"] == n, "state_bytes"].min())
    look = styles(names, BASELINE)
    fig = blank(f"Small states fail as pairs grow: {LABELS[kind]}", "pairs to remember", "keys answered rightly (%)")
    for name in names:
        own = at[at["configuration"] == name].sort_values("num_pairs")
        fig.add_scatter(
            x=own["num_pairs"],
            y=100 * own["recall"],
            name=name,
            mode="lines+markers",
            line=look[name].line,
            marker=look[name].points,
        )
    fig.update_xaxes(type="log", tickvals=[4, 8, 16, 32, 64])
    return fig.update_yaxes(range=[-3, 104])


def speed_curves(rows: pd.DataFrame, batch: int = 16) -> go.Figure:
    """Milliseconds of processor time per decoding step against tokens gone through, both axes logarithmic."""
    at = select(rows, batch=batch)
    names = list(dict.fromkeys(at["configuration"]))
    look = styles(names, BASELINE)
    fig = blank(
        f"A constant state costs the same at every length (batch {batch})",
        "tokens gone through (log)",
        "processor time per step (ms, log)",
    )
    for name in names:
        own = at[at["configuration"] == name].sort_values("tokens")
        fig.add_scatter(
            x=own["tokens"],
            y=1e3 * own["cpu_step_s"],
            name=name,
            mode="lines+markers",
            line=look[name].line,
            marker=look[name].points,
            customdata=own["state_bytes"],
            hovertemplate="%{x} tokens: %{y:.2f} ms, %{customdata:,} bytes of state<extra></extra>",
        )
    fig.update_xaxes(type="log", tickvals=sorted(at["tokens"].unique()))
    low, high = 1e3 * rows["cpu_step_s"].min(), 1e3 * rows["cpu_step_s"].max()
    return fig.update_yaxes(type="log", range=[math.log10(low) - 0.1, math.log10(high) + 0.1])


def attention_matrices(rows: pd.DataFrame, scale: str = "square root") -> go.Figure:
    """Three attention matrices of the same queries and keys: softmax, its Taylor map, and a window of softmax on top.

    scale: "weight", or "square root" of it, which shows the small weights that the Taylor map cannot push to 0.
    """
    if scale not in ("weight", "square root"):
        raise ValueError(f"scale must be 'weight' or 'square root', not {scale!r}")
    names = list(dict.fromkeys(rows["map"]))
    fig = make_subplots(1, len(names), subplot_titles=names, shared_yaxes=True, horizontal_spacing=0.03)
    for column, name in enumerate(names, 1):
        grid = rows[rows["map"] == name].pivot(index="query", columns="key", values="weight")
        shown = grid if scale == "weight" else grid**0.5
        fig.add_trace(
            go.Heatmap(
                z=shown.to_numpy(),
                meta="gaps",  # the future is blank on purpose: no note on missing values
                zmin=0,
                zmax=1,
                name=name,
                colorscale=SEQUENTIAL,
                showscale=column == len(names),
                colorbar={"title": {"text": scale}},
                hovertemplate="query %{y}, key %{x}: %{z:.3f}<extra>" + name + "</extra>",
            ),
            1,
            column,
        )
        fig.update_xaxes(title_text="key (token)", row=1, col=column)
        fig.update_yaxes(title_text="query (token)" if column == 1 else "", row=1, col=column)
    fig.update_yaxes(autorange="reversed")
    top = rows.groupby(["map", "query"])["weight"].max().groupby("map").mean()
    said = "; ".join(f"{name} {top[name]:.2f}" for name in names)
    return fig.update_layout(
        template=TEMPLATE,
        title_text="The same queries and keys, weighed three ways",
        height=380,
        meta={
            "summary": f"Attention of {rows['query'].nunique()} queries over their keys. "
            f"Weight on the strongest key, mean over queries: {said}."
        },
    )
