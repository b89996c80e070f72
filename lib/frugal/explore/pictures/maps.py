"""Pictures on a grid: what each layer's cache still holds, a number per layer, a heat map with its marginals."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from ..theme import BLUE, GREY, ORANGE, SEQUENTIAL, blank, color_bar, escape

NOT_YET, EVICTED, HELD, NEW = 0, 1, 2, 3
STATES = ("not seen yet", "evicted", "held", "new in this step")
_COLORS = ("rgba(128,128,128,0.08)", "rgba(128,128,128,0.38)", BLUE, ORANGE)


def cache_map(held: Any, step: int | None = None, *, title: str, seen: Iterable | None = None,
              tokens: Sequence[str] | None = None) -> go.Figure:
    """Which positions each layer's cache holds: layer by position, at one step (the last one if None).

    held: (steps, layers, positions) of True where a position is in the cache, or shares from 0 to 1 (the share of
    the KV heads that hold it). (layers, positions) is one step. seen: number of positions gone through at each step; if
    None, the last position that any layer has held so far. tokens: the text at each position, for hovering (of up to 512 positions).

    >>> held = np.array([[[1, 1, 0, 0]], [[1, 0, 1, 0]]], dtype=bool)        # 2 steps, 1 layer, 4 positions
    >>> cache_map(held, 1, title="Held").data[0].z.tolist()
    [[2, 1, 3, 0]]
    """
    held = np.asarray(held)
    held = held[None] if held.ndim == 2 else held
    if held.ndim != 3 or held.size == 0:
        raise ValueError(f"held has shape {held.shape}; it is (steps, layers, positions), none of them 0")
    steps, layers, positions = held.shape
    step = steps - 1 if step is None else step
    if not 0 <= step < steps:
        raise ValueError(f"step={step} is not recorded; recorded: 0 to {steps - 1}")
    if seen is not None:
        seen = [int(n) for n in seen]
    else:
        ever = np.logical_or.accumulate((held > 0).any(axis=1), axis=0)
        seen = [int(np.flatnonzero(row).max(initial=-1)) + 1 for row in ever]
    place = np.arange(positions)
    before = seen[step - 1] if step else 0
    gone = np.where(place < seen[step], EVICTED, NOT_YET)
    state = np.where(held[step] > 0, np.where((place >= before) & (step > 0), NEW, HELD), gone)
    share = held[step].astype(float)
    words = [f" {escape(repr(t))}" for t in tokens] if tokens is not None and positions <= 512 else [""] * positions
    remarks = [[STATES[state[r, c]] + (f", {share[r, c]:.0%} of the heads" if 0 < share[r, c] < 1 else "") + words[c]
                for c in range(positions)] for r in range(layers)]  # fmt: skip
    scale = [(edge / 4, color) for i, color in enumerate(_COLORS) for edge in (i, i + 1)]
    fig = blank(title, "position (tokens)", "layer", height=170 + max(90, min(14 * layers, 420)))
    fig.add_heatmap(z=state.astype(np.uint8), text=remarks, colorscale=scale,
                    hovertemplate="layer %{y}, position %{x}<br>%{text}<extra></extra>", zmin=-0.5, zmax=3.5,
                    xgap=0 if positions > 200 else 1, ygap=1, name="cache",
                    colorbar=color_bar("", tickvals=[0, 1, 2, 3], ticktext=list(STATES), lenmode="pixels", len=150,
                                       y=1, yanchor="top"))  # fmt: skip
    fig.update_yaxes(autorange="reversed", showgrid=False, dtick=max(1, layers // 10))
    fig.update_xaxes(range=[-0.5, positions - 0.5], showgrid=False)
    num_held = share.sum(axis=1)
    summary = (f"{title}: step {step}, {seen[step]} positions gone through; a layer holds {num_held.min():.4g} to "
               f"{num_held.max():.4g} of them, {num_held.mean():.4g} on average.")  # fmt: skip
    return fig.update_layout(meta={"summary": summary})


def layer_grid(values: Any, *, title: str, value: str, x: str, y: str = "layer", columns: Iterable | None = None,
               rows: Iterable | None = None, limits: tuple | None = None, show: str = "") -> go.Figure:
    """One number a cell, layers from the top: errors per layer and bit width, layers run per token, and so on.

    value, x, y: what cells and axes are, with units. show: a d3 number format writes the numbers into the cells.
    A cell that is NaN stays empty.

    >>> layer_grid([[0.5, 1.0]], title="Error", value="error (share)", x="bits", columns=["2", "4"]).data[0].z.tolist()
    [[0.5, 1.0]]
    """
    grid = np.asarray(values, dtype=float)
    if grid.ndim != 2 or grid.size == 0:
        raise ValueError(f"values has shape {grid.shape}; it is (layers, columns), none of them 0")
    num_rows, num_columns = grid.shape
    names = [escape(c) for c in columns] if columns is not None else list(range(num_columns))
    layers = [escape(r) for r in rows] if rows is not None else list(range(num_rows))
    if len(names) != num_columns or len(layers) != num_rows:
        raise ValueError(f"{len(layers)} row and {len(names)} column names for a grid of {num_rows} x {num_columns}")
    low, high = limits or (None, None)
    fig = blank(title, x, y, height=150 + max(90, min(20 * num_rows, 460)))
    fig.add_heatmap(z=grid, x=names, y=layers, colorscale=SEQUENTIAL, zmin=low, zmax=high, xgap=1, ygap=1, name="grid",
                    texttemplate=f"%{{z:{show}}}" if show else None, hoverongaps=False,
                    hovertemplate=f"{escape(y)} %{{y}}, {escape(x)} %{{x}}<br>{escape(value)}: %{{z:.4g}}<extra></extra>",
                    colorbar=color_bar(value))  # fmt: skip
    if columns is not None:
        fig.update_xaxes(type="category")
    return fig.update_yaxes(autorange="reversed", showgrid=False, type="category" if rows is not None else None)


def heatmap_marginals(values: Any, *, title: str, value: str, x: str, y: str, columns: Iterable | None = None,
                      rows: Iterable | None = None, limits: tuple | None = None,
                      reduce: str = "mean") -> go.Figure:
    """A heat map with the mean (or sum) of each column above it and of each row beside it; NaN cells are left out.

    >>> fig = heatmap_marginals([[1, 3], [5, 7]], title="Loss", value="loss (nats)", x="width", y="depth")
    >>> fig.data[1].y.tolist(), fig.data[2].x.tolist()
    ([3.0, 5.0], [2.0, 6.0])
    """
    grid = np.asarray(values, dtype=float)
    if grid.ndim != 2 or grid.size == 0:
        raise ValueError(f"values has shape {grid.shape}; it is two-dimensional and not empty")
    if reduce not in ("mean", "sum"):
        raise ValueError(f"reduce={reduce!r}; it is 'mean' or 'sum'")
    across = list(columns) if columns is not None else list(range(grid.shape[1]))
    down = list(rows) if rows is not None else list(range(grid.shape[0]))
    top, side = _marginal(grid, 0, reduce), _marginal(grid, 1, reduce)
    low, high = limits or (None, None)
    fig = blank(title, x, y, height=440, showlegend=False, bargap=0.1)
    fig.add_heatmap(z=grid, x=across, y=down, colorscale=SEQUENTIAL, zmin=low, zmax=high, hoverongaps=False, name="cells",
                    hovertemplate=f"{escape(x)} %{{x}}, {escape(y)} %{{y}}<br>{escape(value)}: %{{z:.4g}}<extra></extra>",
                    colorbar=color_bar(value, x=1.02))  # fmt: skip
    fig.add_bar(x=across, y=top, yaxis="y2", name=f"{reduce} of each column", marker={"color": GREY}, meta="marginal")
    fig.add_bar(x=side, y=down, xaxis="x2", orientation="h", name=f"{reduce} of each row", marker={"color": GREY},
                meta="marginal")
    return fig.update_layout(
        xaxis={"domain": [0, 0.8], "showgrid": False, "type": "category" if columns is not None else "linear"},
        yaxis={"domain": [0, 0.76], "showgrid": False, "type": "category" if rows is not None else "linear"},
        xaxis2={"domain": [0.83, 1], "title": {"text": reduce}, "nticks": 3},
        yaxis2={"domain": [0.8, 1], "title": {"text": reduce}, "nticks": 3},
    )  # fmt: skip


def _marginal(grid: np.ndarray, axis: int, reduce: str) -> np.ndarray:
    """Mean or sum along an axis over the cells that are there; NaN where none is."""
    there = ~np.isnan(grid)
    total, count = np.where(there, grid, 0).sum(axis=axis), there.sum(axis=axis)
    result = total / np.maximum(count, 1) if reduce == "mean" else total.astype(float)
    return np.where(count == 0, np.nan, result)
