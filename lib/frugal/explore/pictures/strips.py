"""Pictures along one line: a text coloured by a number, and who is busy when."""

import math
from collections.abc import Iterable, Sequence
from itertools import compress
from typing import Any

import plotly.graph_objects as go

from ..theme import SEQUENTIAL, blank, color_bar, escape, records, styles


def token_strip(tokens: Sequence[str], values: Iterable, *, title: str, value: str, width: int = 88,
                limits: tuple | None = None, hover: Sequence[str] | None = None) -> go.Figure:
    """A text, token by token, each on a ground coloured by a number, broken into lines of `width` characters.

    value: what the number is, with its unit, for the colour bar. limits: ends of the colour scale, so that pictures
    can be compared. A number that is NaN leaves its token without a colour. hover: a remark on each token.

    >>> fig = token_strip(["The", " cat", " sat"], [0.1, 0.7, 0.2], title="Attention", value="mass (share)")
    >>> list(fig.data[0].marker.color), list(fig.data[0].base)
    ([0.1, 0.7, 0.2], [0, 3, 7])
    """
    numbers = [float(v) for v in values]
    if len(tokens) != len(numbers) or (hover is not None and len(hover) != len(tokens)):
        raise ValueError(f"{len(tokens)} tokens, {len(numbers)} values, {len(hover or tokens)} remarks: give one of each a token")
    if not tokens:
        raise ValueError("no tokens to draw")
    starts, lines, sizes = _lines(tokens, width)
    seen = [token.replace("\n", "⏎").replace("\t", "→") for token in tokens]
    low, high = limits or _ends(numbers)
    remarks = [f"token {i}: {escape(repr(t))}<br>{escape(value)}: {_number(v)}" for i, (t, v) in enumerate(zip(tokens, numbers))]
    if hover is not None:
        remarks = [f"{one}<br>{escape(more)}" for one, more in zip(remarks, hover)]
    fig = blank(title, "", "", height=92 + 26 * (lines[-1] + 1), bargap=0.12, barmode="overlay", showlegend=False,
                margin={"l": 8, "r": 8, "t": 76, "b": 16}, minreducedheight=16)
    scale = {"colorscale": SEQUENTIAL, "cmin": low, "cmax": high, "colorbar": _bar()}
    for name, own in (("tokens", [not math.isnan(v) for v in numbers]), ("without a number", [math.isnan(v) for v in numbers])):
        there = name == "tokens"
        if any(own) or there:
            color = {"color": [v for v in numbers if not math.isnan(v)], **scale} if there else {"color": "rgba(128,128,128,0.15)"}
            fig.add_bar(
                x=[*compress(sizes, own)], base=[*compress(starts, own)], y=[*compress(lines, own)], orientation="h",
                text=[*compress(map(escape, seen), own)], hovertext=[*compress(remarks, own)], hoverinfo="text",
                textposition="inside", insidetextanchor="middle", textangle=0, constraintext="none", name=name,
                textfont={"family": "ui-monospace, monospace", "size": 12}, marker={**color, "line": {"width": 0}},
            )  # fmt: skip
    fig.add_annotation(text=escape(value), x=1, y=1, xref="paper", yref="paper", xanchor="right", yanchor="bottom", yshift=34,
                       showarrow=False, font={"size": 11})  # fmt: skip
    fig.update_xaxes(visible=False, range=[0, max(s + n for s, n in zip(starts, sizes)) if lines[-1] else width], fixedrange=True)
    fig.update_yaxes(visible=False, autorange="reversed", fixedrange=True)
    table = {"columns": ["place", "token", value], "rows": [[i, t, _cell(v)] for i, (t, v) in enumerate(zip(tokens, numbers))]}
    top = max((v, i) for i, v in enumerate(numbers) if not math.isnan(v)) if not all(map(math.isnan, numbers)) else None
    most = f"; highest {top[0]:.3g} at token {top[1]} ({tokens[top[1]]!r})" if top else ""
    return fig.update_layout(meta={"table": table, "summary": f"{title}: {len(tokens)} tokens coloured by {value}{most}."})


def timeline(tasks: Any, *, title: str, unit: str = "s", lanes: Sequence[str] | None = None,
             kinds: Sequence[str] | None = None) -> go.Figure:
    """Who is busy when (a Gantt chart): one bar a task, one lane a worker, colour and hatching by kind.

    tasks: a table or dicts with `lane`, `start`, `end` (in `unit`), `kind`, and `label` if there is one.

    >>> fig = timeline([{"lane": "GPU", "start": 0, "end": 2, "kind": "prefill"},
    ...                 {"lane": "link", "start": 1, "end": 4, "kind": "fetch"}], title="One request", unit="ms")
    >>> [(bar.name, list(bar.base), list(bar.x)) for bar in fig.data]
    [('prefill', [0], [2]), ('fetch', [1], [3])]
    """
    tasks = records(tasks)
    if not tasks:
        raise ValueError("no tasks to draw")
    for task in tasks:
        if not task["end"] >= task["start"]:
            raise ValueError(f"task {task} ends before it starts")
    lanes = list(lanes or dict.fromkeys(str(task["lane"]) for task in tasks))
    kinds = list(kinds or dict.fromkeys(str(task["kind"]) for task in tasks))
    looks = styles(kinds, baselines=("idle", "wait"))
    hatching = ["", "/", "\\", "x", ".", "-", "+", "|"]
    fig = blank(title, f"time ({unit})", "lane", barmode="overlay", bargap=0.35, height=140 + 34 * len(lanes))
    for i, kind in enumerate(kinds):
        own = [task for task in tasks if str(task["kind"]) == kind]
        fig.add_bar(
            x=[t["end"] - t["start"] for t in own], base=[t["start"] for t in own], y=[escape(t["lane"]) for t in own],
            orientation="h", name=escape(kind), text=[escape(t.get("label", "")) for t in own], textposition="inside",
            insidetextanchor="middle", textangle=0,
            hovertext=[f"{escape(t.get('label', kind))}: {t['start']:.4g} to {t['end']:.4g} {escape(unit)}" for t in own],
            hoverinfo="text", marker={"color": looks[kind].color, "line": {"width": 0}, "pattern": {"shape": hatching[i % 8],
                    "size": 8, "solidity": 0.12, "bgcolor": looks[kind].color, "fgcolor": "#ffffff", "fgopacity": 0.55}},
        )  # fmt: skip
    fig.update_yaxes(categoryorder="array", categoryarray=[escape(lane) for lane in lanes][::-1])
    rows = [[t["lane"], t["kind"], t.get("label", ""), t["start"], t["end"]] for t in tasks]
    table = {"columns": ["lane", "kind", "label", f"start ({unit})", f"end ({unit})"], "rows": rows}
    first, last = min(t["start"] for t in tasks), max(t["end"] for t in tasks)
    busy = {lane: sum(t["end"] - t["start"] for t in tasks if str(t["lane"]) == lane) for lane in lanes}
    words = ", ".join(f"{lane} busy {time:.3g} {unit}" for lane, time in busy.items())
    return fig.update_layout(meta={"table": table, "summary": f"{title}: from {first:.3g} to {last:.3g} {unit}; {words}."})


def _lines(tokens: Sequence[str], width: int) -> tuple[list[int], list[int], list[int]]:
    """Start column, line and number of characters of each token; a line break in a token ends its line."""
    starts, lines, sizes = [], [], []
    column = line = 0
    for token in tokens:
        size = max(len(token), 1)
        if column and column + size > width:
            column, line = 0, line + 1
        starts.append(column)
        lines.append(line)
        sizes.append(size)
        column += size
        if token.endswith("\n"):
            column, line = 0, line + 1
    return starts, lines, sizes


def _ends(numbers: list[float]) -> tuple[float, float]:
    finite = [v for v in numbers if math.isfinite(v)] or [0.0]
    low, high = min(finite), max(finite)
    return (low, high) if high > low else (low, low + 1.0)


def _bar() -> dict[str, Any]:
    """A flat colour bar above the text, at the right. (A title of its own would make plotly move the figure's title.)"""
    return color_bar("", thickness=10, nticks=5, orientation="h", x=1, xanchor="right", y=1, yanchor="bottom",
                     lenmode="pixels", len=220, tickfont={"size": 11}, ypad=4, xpad=2)  # fmt: skip


def _number(value: float) -> str:
    return "missing" if math.isnan(value) else f"{value:.4g}"


def _cell(value: float) -> float | None:
    return None if math.isnan(value) else value
