"""Figures of Duo-LLM: loss against budget, text coloured by difficulty, where big layers are wanted, milliseconds.

Rows: `recorded/duo_*.json` (written by recipes/record_duo.py), or the functions of `duo_measure` that make them.
"""

from collections.abc import Callable

import pandas as pd
import plotly.graph_objects as go

from frugal.core.recording import load_recorded
from frugal.explore import Explorer, choice, explore, select
from frugal.explore.pictures import layer_grid, token_strip
from frugal.explore.theme import GREY, blank, styles

__all__ = ["FIGURES", "budget_curve", "difficulty_strip", "picks_map", "position_curve", "recorded", "skip_curve",
           "speed_curve"]  # fmt: skip

SHOWN = {
    "exact": ("oracle, exact", "all big, perturbed"),
    "uniform": ("oracle, uniform", "all big, perturbed (uniform)"),
}
LABELS = {
    "all big, perturbed": "control: all big, perturbed",
    "all big, perturbed (uniform)": "control: all big, perturbed",
    "random": "random, each token apart",
}
ORDER = [
    "oracle",
    "control",
    "router",
    "random",
    "best random",
    "best fixed pattern",
    "first layers",
    "last layers",
]
VALUES = {
    "difficulty": "nats the best pattern saves over all small",
    "all_big": "loss of all big (nats)",
    "exact_1": "loss with one big layer, oracle-placed (nats)",
    "big_layers": "big layers the exact oracle takes",
}


def recorded(name: str) -> pd.DataFrame:
    """The recorded rows "duo_curve", "duo_picks", "duo_positions", "duo_strip", "duo_speed" or "duo_skip"."""
    return load_recorded("early_exit", name)


def budget_curve(rows: pd.DataFrame, oracle: str = "exact") -> go.Figure:
    """Held-out loss against big layers a token. oracle: "exact" or "uniform", with the control that belongs to it.

    The control stands at the budget whose number of patterns it had candidates for; it always runs all layers big.
    """
    if oracle not in SHOWN:
        raise ValueError(f"oracle={oracle!r}; there are {', '.join(SHOWN)}")
    layers = int(rows["budget_layers"].max())
    fig = blank(
        f"Who spends a budget of big layers best ({oracle} oracle)",
        "big layers a token (of 6)",
        "held-out loss (nats a token)",
    )
    band = rows[(rows["method"] == "random") & rows["least"].notna()].sort_values("budget_layers")
    fig.add_scatter(
        x=[*band["budget_layers"], *band["budget_layers"][::-1]],
        y=[*band["most"], *band["least"][::-1]],
        fill="toself",
        mode="lines",
        line={"width": 0},
        fillcolor="rgba(128,128,128,0.25)",
        name="all random routings drawn",
        meta="decoration",
        hoverinfo="skip",
    )
    look = styles(ORDER, ("random", "best random"))
    names = dict(zip(("oracle", "control"), SHOWN[oracle])) | {name: name for name in ORDER[2:]}
    for role, method in names.items():
        own = rows[rows["method"] == method].sort_values("budget_layers")
        x = own["budget_layers"] if role == "control" else own["big_layers"]
        fig.add_scatter(
            x=x,
            y=own["loss"],
            name=LABELS.get(method, method),
            mode="lines+markers",
            line=look[role].line,
            marker=look[role].points,
            customdata=own["candidates"],
            error_y={
                "type": "data",
                "array": own["high"] - own["loss"],
                "arrayminus": own["loss"] - own["low"],
                "color": look[role].color,
                "thickness": 1,
                "width": 3,
            }
            if role in ("oracle", "control")
            else None,
            hovertemplate="%{x:.2f} big layers: %{y:.3f} nats, best of %{customdata}<extra></extra>",
        )
    whole = float(select(rows, method="first layers", budget_layers=layers)["loss"].iloc[0])
    fig.add_hline(y=whole, line={"color": GREY, "dash": "dot", "width": 1}, annotation_text="all big")
    return fig


def difficulty_strip(rows: pd.DataFrame, text: str = "queue.py", value: str = "difficulty") -> go.Figure:
    """A held-out text; each token's ground says how hard it was to predict from what stands before it."""
    if value not in VALUES:
        raise ValueError(f"value={value!r}; there are {', '.join(VALUES)}")
    own = select(rows, text=text)
    limits = {"difficulty": (0, 4), "big_layers": (0, 6)}.get(value, (0, 8))
    hover = [
        f"all small {r.all_small:.2f}, all big {r.all_big:.2f}, best {r.best:.2f} nats; oracle {r.pattern}"
        for r in own.itertuples()
    ]
    return token_strip(
        list(own["token"]),
        list(own[value]),
        title=f"{text}: {VALUES[value]}",
        value=VALUES[value],
        limits=limits,
        hover=hover,
    )


def picks_map(rows: pd.DataFrame, by: str = "oracle") -> go.Figure:
    """How often a layer is big at each budget. by: "oracle" (exact) or "router"."""
    grid = select(rows, by=by).pivot(index="layer", columns="budget_layers", values="share")
    return layer_grid(
        grid.to_numpy(),
        title=f"Where the {by} puts its big layers",
        value="tokens that run the big network (share)",
        x="budget (big layers a token)",
        columns=[str(k) for k in grid.columns],
        limits=(0, 1),
        show=".2f",
    )


def position_curve(rows: pd.DataFrame) -> go.Figure:
    """Big layers that the exact oracle takes without a budget, by place in the text."""
    fig = blank(
        "Does the start of a text need more?",
        "place in the window (tokens)",
        "big layers a token (of 6)",
        showlegend=False,
    )
    fig.add_scatter(
        x=(rows["start"] + rows["stop"]) / 2,
        y=rows["big_layers"],
        mode="lines+markers",
        name="exact oracle, no budget",
        error_y={
            "type": "data",
            "array": rows["high"] - rows["big_layers"],
            "arrayminus": rows["big_layers"] - rows["low"],
        },
    )
    return fig.update_yaxes(range=[0, 6])


def speed_curve(rows: pd.DataFrame, phase: str = "prefill") -> go.Figure:
    """Processor time (ms) against big layers a token, tokens gathered by choice. phase: "prefill" or "decode"."""
    own = select(rows, phase=phase).sort_values("budget_layers")
    what = "reading 256 tokens (ms)" if phase == "prefill" else "one decoded token (ms)"
    fig = blank(f"What is not chosen is not computed: {phase}", "big layers a token (of 6)", what)
    look = styles(["processor time", "ideal: all big x share of FLOPs"], ())
    fig.add_scatter(
        x=own["budget_layers"],
        y=own["cpu_ms"],
        mode="lines+markers",
        name="processor time",
        line=look["processor time"].line,
        marker=look["processor time"].points,
    )
    ideal = own["cpu_ms"].iloc[-1] * own["flops"] / own["flops"].iloc[-1]
    name = "ideal: all big x share of FLOPs"
    fig.add_scatter(x=own["budget_layers"], y=ideal, mode="lines", name=name, line=look[name].line)
    return fig.update_yaxes(rangemode="tozero")


def skip_curve(rows: pd.DataFrame) -> go.Figure:
    """The uniform oracle with a third choice: with no big layer at all, the best of 64 ways to skip beats all big."""
    fig = blank(
        "More patterns, lower minimum: choosing to skip as well",
        "big layers a token (of 6)",
        "held-out loss (nats a token)",
    )
    names = list(dict.fromkeys(rows["method"]))
    look = styles(names, ())
    for name in names:
        own = rows[rows["method"] == name].sort_values("budget_layers")
        fig.add_scatter(
            x=own["budget_layers"],
            y=own["loss"],
            mode="lines+markers",
            name=f"oracle: {name}",
            line=look[name].line,
            marker=look[name].points,
            customdata=own["candidates"],
            hovertemplate="%{x} big layers: %{y:.3f} nats, best of %{customdata}<extra></extra>",
        )
    whole = float(rows[rows["budget_layers"] == rows["budget_layers"].max()]["loss"].iloc[0])
    fig.add_hline(y=whole, line={"color": GREY, "dash": "dot", "width": 1}, annotation_text="all big")
    return fig


def _curve() -> Explorer:
    return explore(budget_curve, recorded("duo_curve"), oracle=list(SHOWN))


def _strip() -> Explorer:
    rows = recorded("duo_strip")
    return explore(
        difficulty_strip,
        rows,
        text=list(dict.fromkeys(rows["text"])),
        value=choice(list(VALUES), "Colour", texts=list(VALUES.values())),
    )


def _picks() -> Explorer:
    rows = recorded("duo_picks")
    return explore(picks_map, rows, by=list(dict.fromkeys(rows["by"])))


def _positions() -> Explorer:
    return explore(position_curve, recorded("duo_positions"))


def _skip() -> Explorer:
    return explore(skip_curve, recorded("duo_skip"))


def _speed() -> Explorer:
    return explore(speed_curve, recorded("duo_speed"), phase=["prefill", "decode"])


FIGURES: dict[str, Callable[[], Explorer]] = {
    "duo_curve": _curve,
    "duo_strip": _strip,
    "duo_picks": _picks,
    "duo_positions": _positions,
    "duo_skip": _skip,
    "duo_speed": _speed,
}
