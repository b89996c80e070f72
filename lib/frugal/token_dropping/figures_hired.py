"""Figures of the scene sweep: accuracy against budget, the board of paired differences, what a budget costs."""
import numpy as np
import pandas as pd
import plotly.graph_objects as go

from frugal.explore.rows import select
from frugal.explore.theme import BLUE, GREY, VERMILION, blank, color_bar, styles
from frugal.token_dropping.results import SCORES

NAMES = ("full", "random", "stratified_random", "overview_only", "uniform_grid", "spatial_pool", "prumerge",
         "prumerge_plus", "fastv", "hired", "hired_released")
BASELINES = ("full", "random", "stratified_random", "overview_only", "uniform_grid")
WINS = [[0.0, VERMILION], [0.5, "#f2f2f2"], [1.0, BLUE]]             # blue where HiRED is ahead
TICKS = {
    "type": "log", "tickvals": [0.05, 0.1, 0.2, 0.4, 0.6, 1],
    "ticktext": ["5 %", "10 %", "20 %", "40 %", "60 %", "100 %"], "range": [-1.36, 0.06]
}


def budget_curve(rows: pd.DataFrame, score: str = "small", method: str = "hired") -> go.Figure:
    """Share of right answers of every method against the budget, with 95 % intervals over scenes; one stands out.

    rows: what `results.averaged` gives. The axes stay fixed while the controls move.
    """
    table = select(rows, score=score)
    looks = styles(list(NAMES), BASELINES)
    full = table[table.method == "full"].iloc[0]
    own = table[(table.method == method) & (table.error == "")].sort_values("budget")
    said = ", ".join(f"{r.value:.0%} at {r.budget:.0%}" for r in own.itertuples() if r.budget < 1)
    fig = blank(f"{SCORES[score]}: {method} {said or f'{full.value:.0%}'}",
                "visual tokens kept (share of all, log scale)", "share of all asked, or of all objects", xaxis=TICKS,
                yaxis_range=[0, 1.02], yaxis_tickformat=".0%", height=460)
    fig.update_xaxes(title_text="visual tokens kept (share of all, log scale)")
    fig.add_scatter(x=[0.045, 1.12], y=[full.value] * 2, mode="lines", name="full",
                    line={"color": GREY, "dash": "dash", "width": 1})
    for name in [n for n in NAMES if n in set(table.method) and n != "full"]:
        part, strong = table[(table.method == name) & (table.error == "")].sort_values("budget"), name == method
        if part.empty:
            continue
        fig.add_scatter(
            x=part.budget.tolist(), y=part.value.tolist(), name=name, mode="lines+markers",
            opacity=1 if strong else 0.5, line={**looks[name].line, "width": 4 if strong else 1.5},
            marker=looks[name].points, error_y={
                "type": "data", "array": (part.high - part.value).tolist(), "thickness": 1.5 if strong else 0.7,
                "arrayminus": (part.value - part.low).tolist(), "width": 4 if strong else 0
            }, hovertemplate="%{x:.0%}: %{y:.1%}")
    scenes = int(full.scenes)
    return fig.update_layout(
        meta={
            "summary": f"{SCORES[score]}: {method} reaches {said or 'as the full model'} of the visual tokens; "
            f"the full model {full.value:.1%} [{full.low:.1%}, {full.high:.1%}], {scenes} scenes."
        })


def win_board(rows: pd.DataFrame, against: str = "spatial_pool") -> go.Figure:
    """HiRED less another method in points, for every score and budget; a cell whose interval holds 0 says so.

    rows: what `results.board` gives.
    """
    table = select(rows, against=against)
    budgets, scores = sorted(table.budget.unique()), list(SCORES)
    grid = np.full((len(scores), len(budgets)), np.nan)
    words = [["" for _ in budgets] for _ in scores]
    wins = {"wins": 0, "loses": 0, "is level": 0}
    for row in table.itertuples():
        r, c = scores.index(row.score), budgets.index(row.budget)
        level = row.low <= 0 <= row.high
        grid[r, c] = row.points
        words[r][c] = f"{row.points:+.0f}{' (level)' if level else ''}<br>[{row.low:+.0f}, {row.high:+.0f}]"
        wins["is level" if level else "wins" if row.points > 0 else "loses"] += 1
    said = ", ".join(f"{verb} in {count}" for verb, count in wins.items())
    fig = blank(f"HiRED against {against}: {said} of {len(table)} cells", "visual tokens kept", "score", height=430)
    fig.add_heatmap(z=grid, x=[f"{b:.0%}" for b in budgets], y=[SCORES[s] for s in scores], text=words,
                    texttemplate="%{text}", colorscale=WINS, zmin=-40, zmax=40, xgap=2, ygap=2, hoverongaps=False,
                    name="difference", meta="gaps",
                    hovertemplate="%{y}, %{x}: %{z:.1f} points<extra></extra>",
                    colorbar=color_bar("HiRED less the other (points)"))
    fig.update_xaxes(type="category", showgrid=False)
    fig.update_yaxes(autorange="reversed", showgrid=False)
    cells = [[r.score, r.budget, r.points, r.low, r.high] for r in table.itertuples()]
    return fig.update_layout(
        meta={
            "summary": f"HiRED less {against} on the same scenes: {said} of {len(table)} cells (95 % intervals).",
            "table": {"columns": ["score", "budget", "points", "low", "high"], "rows": cells}
        })


def cost_panel(rows: pd.DataFrame, encoder: str = "decoder alone") -> go.Figure:
    """Prefill FLOPs and cache bytes of one scene against the budget, counted on the mini-VLM.

    rows: what `results.averaged` gives; `rows.attrs["encoder_flops"]` is the encoder's own work. encoder: "decoder alone"
    or "with the encoder", which sees all views whatever is kept.
    """
    if encoder not in ("decoder alone", "with the encoder"):
        raise ValueError(f"encoder {encoder!r}: allowed are decoder alone, with the encoder")
    extra = rows.attrs["encoder_flops"] if encoder == "with the encoder" else 0.0
    table = rows[(rows.score == "place") & (rows.error == "")]
    looks, full = styles(list(NAMES), BASELINES), table[table.method == "full"].iloc[0]
    own = table[(table.method == "hired") & (table.budget == 0.2)].iloc[0]
    ratio = (full.spent_flops + extra) / (own.spent_flops + extra)
    fig = blank(
        f"At 20 % the prefill falls {ratio:.1f} times ({encoder}), the cache {full.cache_bytes / own.cache_bytes:.1f} times",
        "visual tokens kept", "prefill (million FLOPs)", height=430)
    for name in [n for n in NAMES if n in set(table.method) and n != "full"]:
        part = table[table.method == name].sort_values("budget")
        style = {
            "mode": "lines+markers", "line": looks[name].line, "marker": looks[name].points, "name": name,
            "legendgroup": name
        }
        fig.add_scatter(x=part.budget.tolist(), y=((part.spent_flops + extra) / 1e6).tolist(), **style)
        fig.add_scatter(x=part.budget.tolist(), y=(part.cache_bytes / 1e3).tolist(), xaxis="x2", yaxis="y2",
                        showlegend=False, **style)
    half = {
        "type": "linear", "tickvals": [0.05, 0.2, 0.4, 0.6, 1], "ticktext": ["5 %", "20 %", "40 %", "60 %", "100 %"]
    }
    fig.update_layout(
        xaxis={**half, "domain": [0, 0.44]}, yaxis={"rangemode": "tozero"},
        xaxis2={**half, "domain": [0.56, 1], "anchor": "y2", "title": {"text": "visual tokens kept"}},
        yaxis2={"anchor": "x2", "title": {"text": "cache of the visual tokens (kB)"}, "rangemode": "tozero"})
    return fig.update_layout(
        meta={
            "summary": f"Prefill of one scene, {encoder}: {(full.spent_flops + extra) / 1e6:.0f} million FLOPs in full, "
            f"{(own.spent_flops + extra) / 1e6:.0f} at 20 %; cache {full.cache_bytes / 1e3:.0f} and "
            f"{own.cache_bytes / 1e3:.0f} kB."
        })


def variants(rows: pd.DataFrame, score: str = "place") -> go.Figure:
    """HiRED at 20 % with one thing changed at a time: share right with its interval, and the paper's setting as a line.

    rows: columns variant, score, value, low, high.
    """
    table = select(rows, score=score)
    base = table[table.variant == "as it stands"].iloc[0]
    fig = blank(f"{SCORES[score]} at 20 %: one thing changed at a time", "answered right (share)", "HiRED with ...",
                height=150 + 26 * len(table))
    fig.add_scatter(
        x=table.value.tolist(), y=table.variant.tolist(), mode="markers", name="share right",
        marker={"size": 9, "color": BLUE}, error_x={
            "type": "data", "array": (table.high - table.value).tolist(), "width": 4, "thickness": 1.2,
            "arrayminus": (table.value - table.low).tolist()
        })
    fig.add_vline(x=float(base.value), line={"color": GREY, "width": 1, "dash": "dot"})
    fig.update_yaxes(autorange="reversed", type="category")
    fig.update_xaxes(range=[0, 1], tickformat=".0%")
    said = "; ".join(f"{r.variant} {r.value:.0%}" for r in table.itertuples())
    return fig.update_layout(meta={"summary": f"{SCORES[score]} with 20 % of the tokens: {said}."})
