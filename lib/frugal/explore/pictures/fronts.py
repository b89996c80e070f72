"""Two costs against each other: which settings are worth having."""

from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from ..theme import GREY, blank, escape, records, styles


def pareto_front(points: Any, *, title: str, x: str, y: str, better: str = "low x, high y",
                 log_x: bool = False, names: Sequence[str] | None = None) -> go.Figure:
    """Settings of several methods as points with intervals, and the front of those that nothing beats.

    points: a table or dicts with `name` (the method), `x`, `y`, and if measured `y_low`, `y_high`, `x_low`, `x_high` and `label`.
    better: "low x, high y", "low x, low y", "high x, high y" or "high x, low y". Points with a missing number stay out.
    names: all methods in a fixed order, so that each keeps its colour when some are missing.

    >>> fig = pareto_front([{"name": "a", "x": 1, "y": 1}, {"name": "a", "x": 2, "y": 3}, {"name": "b", "x": 3, "y": 2}],
    ...                    title="Recall", x="state (bytes)", y="recall (share)")
    >>> list(fig.data[-1].x), list(fig.data[-1].y)
    ([1, 2], [1, 3])
    """
    points = records(points)
    signs = [-1 if word.startswith("low") else 1 for word in better.split(", ")]
    if better not in {f"{a} x, {b} y" for a in ("low", "high") for b in ("low", "high")}:
        raise ValueError(f"better={better!r}; it is for example 'low x, high y'")
    there = [point for point in points if all(_known(point.get(axis)) for axis in "xy")]
    if not there:
        raise ValueError("no point has both numbers")
    names = list(names or dict.fromkeys(str(point["name"]) for point in there))
    fig = blank(title, x, y)
    for name, look in styles(names).items():
        own = sorted((p for p in there if str(p["name"]) == name), key=lambda p: (p["x"], p["y"]))
        if own:
            fig.add_scatter(
                x=[p["x"] for p in own], y=[p["y"] for p in own], name=escape(name), mode="lines+markers",
                line={**look.line, "width": 1}, marker=look.points, error_x=_error(own, "x", look.color),
                error_y=_error(own, "y", look.color), text=[escape(p.get("label", name)) for p in own],
                hovertemplate=f"%{{text}}<br>{escape(x)}: %{{x:.4g}}<br>{escape(y)}: %{{y:.4g}}<extra>{escape(name)}</extra>",
            )  # fmt: skip
    front = front_of([(p["x"], p["y"]) for p in there], signs)
    fig.add_scatter(x=[a for a, _ in front], y=[b for _, b in front], name="front", mode="lines", hoverinfo="skip",
                    line={"color": GREY, "width": 8, "shape": "linear"}, opacity=0.3, meta="decoration")  # fmt: skip
    if log_x:
        fig.update_xaxes(type="log", dtick="D2", exponentformat="SI")
    on = list(dict.fromkeys(str(p["name"]) for p in there if (p["x"], p["y"]) in set(front)))
    summary = f"{title}: {escape(y)} against {escape(x)}, {len(there)} settings of {len(names)} methods; on the front: {', '.join(on)}."
    missing = len(points) - len(there)
    return fig.update_layout(meta={"summary": summary + (f" {missing} without a number." if missing else "")})


def front_of(points: Sequence[tuple], signs: Sequence[int]) -> list[tuple]:
    """The points that no other one beats in both directions, by rising x. signs: +1 if more is better, -1 if less."""
    best: list[tuple] = []
    for point in sorted(set(points), key=lambda p: (-signs[0] * p[0], -signs[1] * p[1])):
        if not best or signs[1] * point[1] > signs[1] * best[-1][1]:
            best.append(point)
    return sorted(best)


def _known(value: Any) -> bool:
    return value is not None and value == value


def _error(points: Sequence[Mapping[str, Any]], axis: str, color: str) -> dict[str, Any] | None:
    """Plotly's error bars from the ends of the intervals; None if no point has one."""
    low, high = f"{axis}_low", f"{axis}_high"
    if not any(_known(p.get(low)) and _known(p.get(high)) for p in points):
        return None
    up = [p[high] - p[axis] if _known(p.get(high)) else None for p in points]
    down = [p[axis] - p[low] if _known(p.get(low)) else None for p in points]
    return {"type": "data", "array": up, "arrayminus": down, "color": color, "thickness": 1, "width": 3}
