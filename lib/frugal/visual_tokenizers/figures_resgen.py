"""Figures of ResGen: time against depth, scores against steps, what depth keeps, and the board that fills from the shallow end.

Rows: `recorded/resgen_*.json` (recipes/record_resgen.py).
"""

from collections.abc import Callable

import pandas as pd
import plotly.graph_objects as go

from frugal.core.recording import load_recorded
from frugal.explore import Explorer, choice, explore, select
from frugal.explore.pictures.boards import image_board
from frugal.explore.theme import GREY, SEQUENTIAL, blank, styles
from frugal.visual_tokenizers.resgen_live import from_rows
from frugal.visual_tokenizers.resgen_measure import SAMPLERS, projection_rows

__all__ = ["FIGURES", "board", "depth_cost", "depth_keeps", "step_scores"]

COSTS = {
    "cpu_ms": "processor time, one thread (ms an image)",
    "gflops": "counted work (GFLOP an image)",
    "passes": "forward passes",
    "projected": "projected, 574 M on an A100 (ms an image)",
}
SCORES = {
    "efid": "g-eFID (lower is better)",
    "copy_rate": "copy rate (share of copied pictures)",
    "label_accuracy": "made pictures in the asked group (share)",
    "recall": "recall (share)",
}
BOARD_STEPS = 8


def recorded(name: str) -> pd.DataFrame:
    """The recorded rows "resgen_speed", "resgen_depth", "resgen_quality", "resgen_noise" or "resgen_board"."""
    return load_recorded("visual_tokenizers", name)


def depth_cost(rows: pd.DataFrame, batch: int = 1, cost: str = "cpu_ms") -> go.Figure:
    """What an image costs each sampler as the residual codes get deeper. batch: pictures made at a time. cost: one of COSTS."""
    if cost not in COSTS:
        raise ValueError(f"cost={cost!r}; there are {', '.join(COSTS)}")
    fig = blank(
        "What depth costs the samplers" + (f", {batch} at a time" if cost != "projected" else ""),
        "depth (residual levels)",
        COSTS[cost],
    )
    look = styles(list(SAMPLERS), ())
    own = projection_rows() if cost == "projected" else select(rows, batch=batch).assign(gflops=rows["flops"] / 1e9)
    column = "ms" if cost == "projected" else cost
    for name in SAMPLERS:
        line = own[own["sampler"] == name].sort_values("depth")
        if len(line) == 0:  # the projection leaves the softmax heads out: they are ResGen's
            continue
        fig.add_scatter(
            x=line["depth"],
            y=line[column],
            name=name,
            mode="lines+markers",
            line=look[name].line,
            marker=look[name].points,
        )
    fig.update_xaxes(type="log", tickvals=[2, 4, 8, 16], ticktext=["2", "4", "8", "16"])
    return fig.update_yaxes(rangemode="tozero")


def step_scores(rows: pd.DataFrame, score: str = "efid") -> go.Figure:
    """ResGen's score against forward passes at depth 8; rivals stand at the passes they take. score: one of SCORES."""
    if score not in SCORES:
        raise ValueError(f"score={score!r}; there are {', '.join(SCORES)}")
    fig = blank("How few steps are enough?", "forward passes", SCORES[score])
    look, deep = styles(list(SAMPLERS), ()), rows[rows["depth"] == 8]
    for name in SAMPLERS:
        line = deep[deep["sampler"] == name].sort_values("passes")
        if len(line) == 0:
            continue
        error = None
        if score == "efid":
            error = {
                "type": "data",
                "array": line["efid_high"] - line["efid"],
                "arrayminus": line["efid"] - line["efid_low"],
                "thickness": 1,
                "width": 3,
                "color": look[name].color,
            }
        fig.add_scatter(
            x=line["passes"],
            y=line[score],
            name=name,
            mode="lines+markers" if len(line) > 1 else "markers",
            line=look[name].line,
            marker=look[name].points,
            error_y=error,
            customdata=line["copy_rate"],
            hovertemplate="%{x} passes: %{y:.3g}, copy rate %{customdata:.2f}<extra></extra>",
        )
    real = rows[rows["sampler"] == "real pictures, decoded"].set_index("depth")
    fig.add_hline(
        y=float(real.loc[8, score]),
        line={"color": GREY, "dash": "dot", "width": 1},
        annotation_text="real pictures, decoded",
    )
    return fig.update_xaxes(type="log")


def depth_keeps(rows: pd.DataFrame, score: str = "psnr") -> go.Figure:
    """What the first levels keep of held-out pictures. score: "psnr" (dB) or "elpips"."""
    names = {"psnr": "PSNR, held-out (dB)", "elpips": "eLPIPS, held-out (lower is better)"}
    if score not in names:
        raise ValueError(f"score={score!r}; there are {', '.join(names)}")
    fig = blank("What depth keeps", "depth (residual levels)", names[score], showlegend=False)
    line = rows[rows["what"] == "residual codes"].sort_values("depth")
    fig.add_scatter(
        x=line["depth"],
        y=line[score],
        mode="lines+markers",
        name="residual codes",
        customdata=line["bits"],
        error_y={
            "type": "data",
            "array": line[f"{score}_high"] - line[score],
            "arrayminus": line[score] - line[f"{score}_low"],
            "thickness": 1,
            "width": 3,
        },
        hovertemplate="depth %{x}, %{customdata} bits: %{y:.3f}<extra></extra>",
    )
    for row in rows[rows["what"] != "residual codes"].itertuples():
        fig.add_hline(y=getattr(row, score), line={"color": GREY, "dash": "dot", "width": 1}, annotation_text=row.what)
    return fig


def board(rows: pd.DataFrame, group: str, step: int = BOARD_STEPS) -> go.Figure:
    """Levels by places: after which step each slot was filled. Beside it the picture of the slots seen so far, and the guess
    for the whole picture, made in the same step."""
    filling = from_rows(select(rows, group=group))
    slots, depth = filling.shown_at, filling.shown_at.shape[1]
    seen = int((slots <= step).sum())
    fig = image_board(
        [filling.seen[step - 1], filling.guess[step - 1]],
        ["seen so far", "guess for all"],
        columns=1,
        title=f"{group}: {seen} of {slots.size} slots after step {step} of {len(filling.seen)}",
    )
    grid = [[int(n) if n <= step else None for n in slots[:, level]] for level in range(depth)]
    fig.add_heatmap(
        z=grid,
        x=list(range(1, len(slots) + 1)),
        y=list(range(1, depth + 1)),
        xaxis="x2",
        yaxis="y2",
        name="slots",
        colorscale=SEQUENTIAL,
        zmin=1,
        zmax=len(filling.seen),
        xgap=1,
        ygap=1,
        hoverongaps=False,
        hovertemplate="place %{x}, level %{y}: filled in step %{z}<extra></extra>",
        colorbar={"title": {"text": "step"}, "thickness": 12},
    )
    fig.update_xaxes(domain=[0.7, 1])
    fig.update_layout(
        xaxis2={"domain": [0, 0.6], "anchor": "y2", "title": {"text": "place (of the 4 x 4 grid, row by row)"}},
        yaxis2={"domain": [0.15, 0.85], "anchor": "x2", "autorange": "reversed", "title": {"text": "level"}},
        height=420,
        margin={"l": 60, "r": 8, "b": 40},
    )
    fig.data[-1].colorbar.x = 0.61
    table = {
        "columns": ["place", *[f"level {j + 1}" for j in range(depth)]],
        "rows": [[i + 1, *[int(n) if n <= step else None for n in row]] for i, row in enumerate(slots)],
    }
    return fig.update_layout(
        meta={
            "table": table,
            "summary": f"{group}, step {step}: {seen} of {slots.size} slots are filled, "
            f"{int((slots[:, 0] <= step).sum())} of {len(slots)} at the first level and "
            f"{int((slots[:, -1] <= step).sum())} at the last.",
        }
    )


def _board() -> Explorer:
    rows = recorded("resgen_board")
    return explore(
        board,
        rows,
        group=choice(list(dict.fromkeys(rows["group"])), "Group"),
        step=choice(range(1, BOARD_STEPS + 1), "Step", default=4),
    )


def _depth_cost() -> Explorer:
    rows = recorded("resgen_speed")
    return explore(
        depth_cost,
        rows,
        batch=choice([1, 16], "Pictures at a time", default=1),
        cost=choice(list(COSTS), "Cost", texts=list(COSTS.values())),
    )


def _step_scores() -> Explorer:
    return explore(
        step_scores, recorded("resgen_quality"), score=choice(list(SCORES), "Score", texts=list(SCORES.values()))
    )


def _depth_keeps() -> Explorer:
    return explore(depth_keeps, select(recorded("resgen_depth")), score=["psnr", "elpips"])


FIGURES: dict[str, Callable[[], Explorer]] = {
    "resgen_board": _board,
    "resgen_depth_cost": _depth_cost,
    "resgen_step_scores": _step_scores,
    "resgen_depth_keeps": _depth_keeps,
}
