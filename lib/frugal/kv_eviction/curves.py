"""Figures of the eviction sweeps: quality and bytes against the budget, and which tokens each layer still holds."""
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from frugal.explore.pictures.maps import cache_map
from frugal.explore.theme import blank, styles

# workload -> column of its quality, axis label
QUALITY = {
    "continuation": ("nll", "loss of the next 128 tokens (nats a token)"),
    "copying": ("accuracy", "second copy predicted (share)"),
    "passkey": ("hit", "pass key found (share of trials)"),
    "passkey_query_aware": ("hit", "pass key found (share of trials)"),
    "facts": ("gold_logprob", "log-probability of the right colour (nats a token)"),
    "agreement": ("agreement", "answer equal to the full cache's (share of 64 tokens)"),
}
TITLES = {
    "continuation": "Reading on", "copying": "Copying", "passkey": "Pass key, question unseen",
    "passkey_query_aware": "Pass key, question seen", "facts": "Facts", "agreement": "Fixed-size decoding",
}


def averaged(rows: pd.DataFrame) -> pd.DataFrame:
    """One row per workload, method and budget: mean, least and greatest quality over the seeds, mean megabytes held,
    and the number of seeds that ran. A method that could not meet a budget has its error and no numbers."""
    tables = []
    for workload, part in rows.groupby("workload", sort=False):
        for (method, budget), runs in part.groupby(["method", "budget"], sort=False):
            ran = runs[runs.error == ""]
            quality = ran[QUALITY[workload][0]]
            tables.append({"workload": workload, "method": method, "budget": budget, "mean": quality.mean(),
                           "min": quality.min(), "max": quality.max(), "mb": ran["cache_bytes"].mean() / 1e6,
                           "seeds": len(ran), "error": "" if len(ran) else runs.error.iloc[0]})
    return pd.DataFrame(tables).sort_values(["workload", "method", "budget"], ignore_index=True)


def budget_curve(rows: pd.DataFrame, workload: str = "continuation", method: str = "keyformer",
                 budget: float = 0.25) -> go.Figure:
    """Quality of every method against the budget; one method stands out, with the range over its seeds.

    rows: what `averaged` gives. The axes stay fixed while the controls move.
    """
    label = QUALITY[workload][1]
    table = rows[(rows.workload == workload) & (rows.error == "")]
    looks = styles(sorted(rows.method.unique()))
    chosen = table[(table.method == method) & (table.budget == budget)]
    full = table[table.method == "full"]["mean"].mean()
    said = "did not run" if chosen.empty else f"{chosen['mean'].iloc[0]:.3g} in {chosen.mb.iloc[0]:.3g} MB"
    low, high = table["min"].min(), table["max"].max()
    room = 0.05 * (high - low or 1)
    fig = blank(f"{TITLES[workload]}: {method} with {budget:.0%} of the cache: {said} (full: {full:.3g})",
                x="share of the full cache kept", y=label, yaxis_range=[low - room, high + room], xaxis_range=[1.05, 0.05],
                xaxis_tickformat=".0%", shapes=[{"type": "line", "x0": budget, "x1": budget, "y0": 0, "y1": 1, "yref": "paper",
                                                 "line": {"dash": "dot", "width": 1, "color": "#808080"}}])
    traces = []
    for name, part in table.groupby("method", sort=False):
        strong, look, mean = name == method, looks[name], part["mean"]
        trace = {"type": "scatter", "x": part.budget.tolist(), "y": mean.tolist(), "name": name, "mode": "lines+markers",
                 "opacity": 1 if strong else 0.45, "line": {**look.line, "width": 4 if strong else 1.5}, "marker": look.points,
                 "customdata": part.mb.tolist(), "hovertemplate": "%{x:.0%}: %{y:.3g}, %{customdata:.3g} MB"}
        if strong:
            trace["error_y"] = {"type": "data", "array": (part["max"] - mean).tolist(), "thickness": 1, "width": 3,
                                "arrayminus": (mean - part["min"]).tolist()}
        traces.append(trace)
    return fig.add_traces(traces)


def bytes_curve(rows: pd.DataFrame, workload: str = "continuation") -> go.Figure:
    """Quality against the bytes really held, all methods: the fair axis, since a packed token is not a whole one.

    rows: what `averaged` gives.
    """
    label = QUALITY[workload][1]
    table = rows[(rows.workload == workload) & (rows.error == "")]
    looks = styles(sorted(rows.method.unique()))
    fig = blank(f"{TITLES[workload]}: quality against measured bytes", x="cache held (MB, measured)", y=label)
    for name, part in table.groupby("method", sort=False):
        part = part.sort_values("mb")
        fig.add_scatter(x=part.mb, y=part["mean"], name=name, mode="lines+markers", line=looks[name].line,
                        marker=looks[name].points)
    fig.update_xaxes(type="log", dtick="D2")
    return fig


def keep_map(data: dict[str, Any], method: str = "keyformer", step: int = 0) -> go.Figure:
    """Layer by position: the share of KV heads that still hold each token, `step` tokens into the answer.

    data: {"tokens": text of every position, "steps": token counts, "held": {method: (steps, layers, positions)
    counts of KV heads}, "num_kv_heads", "seen": positions gone through at each step}.
    """
    at = list(data["steps"]).index(step)
    held = np.asarray(data["held"][method], dtype=float) / data["num_kv_heads"]
    share = held[at].sum() / (held.shape[1] * data["seen"][at])
    return cache_map(held, at, title=f"{method}, {step} tokens into the answer: {share:.0%} of the slots are held",
                     seen=data["seen"], tokens=data["tokens"])


def keep_map_rows(data: dict[str, Any]) -> dict[str, list]:
    """The choices a keep-map explorer offers."""
    return {"method": list(data["held"]), "step": list(data["steps"])}
