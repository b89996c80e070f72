"""Figures of TIMRUN: the tree with what is in memory, the saw-tooth of occupancy, the page table, accuracy against size.

Rows: `recorded/tim_accuracy.json`, `tim_steps.json`, `tim_tree.json` (written by recipes/record_tim.py), or the functions of
`tim_measure` that make them.
"""
import pandas as pd
import plotly.graph_objects as go

from frugal.core.recording import load_recorded
from frugal.explore import select
from frugal.explore.pictures import token_tree
from frugal.explore.theme import blank, styles
from frugal.kv_eviction.tim_measure import METHODS, summary

__all__ = ["accuracy_curve", "page_table", "peak_curve", "recorded", "saw_tooth", "thread_tree"]
BASELINES = ("no pruning",)


def recorded(name: str) -> pd.DataFrame:
    """The recorded rows "tim_accuracy", "tim_steps" or "tim_tree". ValueError lists what is recorded."""
    return load_recorded("kv_eviction", name)


def accuracy_curve(rows: pd.DataFrame) -> go.Figure:
    """Right answers (%) against the length of the whole trace, one line a method."""
    return _curve(summary(rows), "right_pct", f"Right answers with {int(rows['limit'].max())} positions",
                  "tokens of the whole trace (log)", "right answers (%)", y_range=[-4, 104])


def peak_curve(rows: pd.DataFrame) -> go.Figure:
    """Most tokens ever in memory against the length of the whole trace, one line a method."""
    table = summary(rows[rows["stopped"] == "done"])
    return _curve(table, "peak_tokens", "Working memory, runs that came to an end", "tokens of the whole trace (log)",
                  "most tokens in memory")


def _curve(table: pd.DataFrame, column: str, title: str, x: str, y: str, y_range=None) -> go.Figure:
    fig = blank(title, x, y)
    look = styles(list(METHODS), BASELINES)
    for method in [m for m in METHODS if m in set(table["method"])]:
        own = table[table["method"] == method].sort_values("trace_tokens")
        fig.add_scatter(x=own["trace_tokens"].round(), y=own[column], mode="lines+markers", name=method, line=look[method].line,
                        marker=look[method].points)
    fig.update_xaxes(type="log")
    if y_range:
        fig.update_yaxes(range=y_range)
    return fig


def saw_tooth(rows: pd.DataFrame, step: int | None = None) -> go.Figure:
    """Tokens in memory against tokens written, one line a threshold; `step` marks a step of threshold 0."""
    fig = blank("Memory over one run", "tokens gone through", "tokens in memory")
    names = list(dict.fromkeys(rows["threshold"]))
    look = styles(names, ("inf",))
    for name in names:
        own = rows[rows["threshold"] == name]
        fig.add_scatter(x=own["written"], y=own["held"], mode="lines", line=look[name].line,
                        name="no pruning" if name == "inf" else f"threshold {name}")
    if step is not None:
        at = select(rows, threshold=names[0], step=step)
        fig.add_scatter(x=at["written"], y=at["held"], mode="markers", name=f"step {step}", marker={"size": 12, "color": "#222222"})
    return fig


def page_table(rows: pd.DataFrame, prune: int = 0, threshold: str = "0") -> go.Figure:
    """The page of each slot after prune number `prune`: freed pages are taken again, so text order and page order part."""
    pruned = rows[(rows["threshold"] == threshold) & (rows["pages"] != "")]
    if not 0 <= prune < len(pruned):
        raise ValueError(f"prune is {prune}; the run of threshold {threshold} has prunes 0..{len(pruned) - 1}")
    row = pruned.iloc[prune]
    pages = [int(p) for p in row["pages"].split()]
    fig = blank(f"Page table after prune {prune}: {len(pages)} tokens held, {row['freed']} freed", "slot (text order)", "page")
    fig.add_scatter(x=list(range(len(pages))), y=pages, mode="markers", name="page of the slot", marker={"size": 5})
    return fig


def thread_tree(rows: pd.DataFrame, moment: int = 0) -> go.Figure:
    """The tree of tasks at a moment; colour and marker tell what is open, kept or pruned from memory."""
    at = select(rows, moment=moment)
    nodes = [{"id": int(r.task), "parent": None if r.parent < 0 else int(r.parent), "text": r.label,
              "state": "accepted" if r.state == "open" else r.state} for r in at.itertuples()]
    fig = token_tree(nodes, title=f"Thread at step {int(at['step'].iloc[0])}: {int(at['held'].iloc[0])} tokens in memory",
                     depth="depth (tasks)")
    fig.for_each_trace(lambda t: t.update(name="open"), selector={"name": "accepted"})
    return fig
