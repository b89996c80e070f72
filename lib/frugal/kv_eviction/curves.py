"""Figures of the eviction sweeps: quality and bytes against the budget, and which tokens each layer still holds."""
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from frugal.explore.pictures.maps import cache_map
from frugal.explore.theme import blank, styles

# workload -> column of its quality, axis label, whether more is better
QUALITY = {
    "continuation": ("nll", "loss of the next 128 tokens (nats a token)", False),
    "copying": ("accuracy", "second copy predicted (share)", True),
    "passkey": ("hit", "pass key found (share of trials)", True),
    "passkey_query_aware": ("hit", "pass key found (share of trials)", True),
    "facts": ("gold_logprob", "log-probability of the right colour (nats a token)", True),
    "agreement": ("agreement", "answer equal to the full cache's (share of 64 tokens)", True),
}
TITLES = {
    "continuation": "Reading on", "copying": "Copying", "passkey": "Pass key, question unseen",
    "passkey_query_aware": "Pass key, question seen", "facts": "Facts", "agreement": "Fixed-size decoding",
}


def mean_rows(rows: pd.DataFrame, workload: str) -> pd.DataFrame:
    """Mean, least and greatest quality over the seeds, one row per method and budget; and the mean bytes held."""
    column = QUALITY[workload][0]
    part = rows[(rows.workload == workload) & (rows.error == "")]
    grouped = part.groupby(["method", "budget"], sort=False)
    table = grouped[column].agg(["mean", "min", "max", "count"]).reset_index()
    table["mb"] = (grouped["cache_bytes"].mean() / 1e6).to_numpy()
    return table.sort_values(["method", "budget"], ignore_index=True)


def budget_curve(rows: pd.DataFrame, workload: str = "continuation", method: str = "keyformer",
                 budget: float = 0.25) -> go.Figure:
    """Quality of every method against the budget; one method stands out, with the range over its seeds.

    rows: a sweep with the columns of `workloads.py`. The axes stay fixed while the controls move.
    """
    _, label, more = QUALITY[workload]
    table = mean_rows(rows, workload)
    looks = styles(sorted(rows.method.unique()))
    chosen = table[(table.method == method) & (table.budget == budget)]
    full = table[table.method == "full"]["mean"].mean()
    said = "did not run" if chosen.empty else f"{chosen['mean'].iloc[0]:.3g} in {chosen.mb.iloc[0]:.3g} MB"
    fig = blank(f"{TITLES[workload]}: {method} with {budget:.0%} of the cache: {said} (full: {full:.3g})",
                x="share of the full cache kept", y=label)
    for name, part in table.groupby("method", sort=False):
        strong, look = name == method, looks[name]
        spread = dict(type="data", array=part["max"] - part["mean"], arrayminus=part["mean"] - part["min"],
                      thickness=1, width=3) if strong else None
        fig.add_scatter(x=part.budget, y=part["mean"], name=name, mode="lines+markers", opacity=1 if strong else 0.45,
                        line={**look.line, "width": 4 if strong else 1.5}, marker={**look.points}, error_y=spread,
                        customdata=part.mb, hovertemplate="%{x:.0%}: %{y:.3g}, %{customdata:.3g} MB<extra>" + name + "</extra>")
    fig.add_vline(x=budget, line_dash="dot", line_width=1, line_color="#808080")
    low, high = table["min"].min(), table["max"].max()
    room = 0.05 * (high - low or 1)
    fig.update_yaxes(range=[low - room, high + room])
    fig.update_xaxes(range=[1.05, 0.05], tickformat=".0%")
    return fig


def bytes_curve(rows: pd.DataFrame, workload: str = "continuation") -> go.Figure:
    """Quality against the bytes really held, all methods: the fair axis, since a packed token is not a whole one."""
    _, label, _ = QUALITY[workload]
    table = mean_rows(rows, workload)
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
