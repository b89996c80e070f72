"""Figures of VISTA alone: the map of both strengths, the ranks of the sets, and what the model nearly said.

Rows: recorded/vista_*.json, written by recipes/record_steering.py.
"""
from collections.abc import Callable

import pandas as pd
import plotly.graph_objects as go

from frugal.core.recording import load_recorded
from frugal.data.scene_text import NAME_INDEX
from frugal.explore import Explorer, choice, explore, select
from frugal.explore.pictures import heatmap_marginals
from frugal.explore.theme import BLUE, GREY, VERMILION, blank, escape, styles
from frugal.token_dropping.rank_trace import SETS
from frugal.token_dropping.steering_measure import held_out

SCORES = {"chair_i": "CHAIR_I (%)", "chair_s": "CHAIR_S (%)", "recall": "recall (%)", "fullness": "names said per object (%)",
                "repeats": "repeated names (%)"}
FINDINGS = {"rank loss": "places lost from the first name to the last", "early peak": "places better before the last layer",
            "above absent": "share of absent names below"}


def recorded(name: str) -> pd.DataFrame:
    """The recorded rows of that name. ValueError lists what is recorded."""
    return load_recorded("token_dropping", name)


def strength_map(rows: pd.DataFrame, score: str = "chair_i") -> go.Figure:
    """One figure over both strengths: lambda of the vector across, alpha of the early logits down. The corner (0, 0) is greedy."""
    if score not in SCORES:
        raise ValueError(f"score {score!r}: allowed are {', '.join(SCORES)}")
    own = select(rows, method="VISTA")
    grid = 100 * own.pivot(index="alpha", columns="strength", values=score)
    fig = heatmap_marginals(grid.to_numpy(), title=f"VISTA: {SCORES[score]} over both strengths", value=SCORES[score],
                            x="lambda (vector)", y="alpha (early logits)", columns=[f"{c:g}" for c in grid.columns],
                            rows=[f"{r:g}" for r in grid.index])
    best = grid.stack().idxmin() if score != "recall" else grid.stack().idxmax()
    return fig.update_layout(meta={"summary": f"{SCORES[score]}: {grid.iloc[0, 0]:.1f} for greedy decoding; best "
                                              f"{grid.loc[best]:.1f} at lambda {best[1]:g}, alpha {best[0]:g}."})


def rank_curves(rows: pd.DataFrame, by: str = "step") -> go.Figure:
    """Mean rank of each set of names (1 is the top) against the step (last layer) or the layer (all steps)."""
    own, words = select(rows, by=by), {"step": "generation step", "layer": "layer"}[by]
    fig = blank(f"Where names stand in the ranking, by {words}", words, "mean rank among all words (log, 1 = top)")
    look = styles(list(SETS), ("absent",))
    for name in SETS:
        part = own[(own.set == name) & (own.scenes >= 20)].sort_values("at")
        if len(part):
            fig.add_scatter(x=part["at"], y=part["rank"], name=name, mode="lines+markers", line=look[name].line, marker=look[name].points,
                            error_y={"type": "data", "symmetric": False, "thickness": 1, "array": part.high - part["rank"],
                                     "arrayminus": part["rank"] - part.low},
                            hovertext=[f"{n} scenes" for n in part.scenes])
    fig.update_yaxes(type="log", autorange="reversed", tickvals=[1, 2, 5, 10, 20, 50, 100], showgrid=True)
    ends = "; ".join(f"{name} from {part['rank'].iloc[0]:.1f} to {part['rank'].iloc[-1]:.1f}" for name in SETS
                     if len(part := own[(own.set == name) & (own.scenes >= 20)].sort_values("at")))
    return fig.update_layout(meta={"summary": f"Mean rank by {words} (sets of at least 20 scenes): {ends}."})


def findings(rows: pd.DataFrame, finding: str = "rank loss") -> go.Figure:
    """One of the three findings as an effect with its 95 % interval, a point for each set; the dashed line is no effect."""
    own = select(rows, finding=finding).iloc[::-1]
    neutral = 0.5 if finding == "above absent" else 0.0
    fig = blank(f"{finding}: {FINDINGS[finding]}", FINDINGS[finding], "set of names", height=300, showlegend=False)
    clear = (own.low > neutral) | (own.high < neutral)
    fig.add_scatter(x=own.value, y=own.set, mode="markers", name=finding,
                    error_x={"type": "data", "symmetric": False, "array": own.high - own.value, "arrayminus": own.value - own.low},
                    marker={"size": 10, "color": [BLUE if c else GREY for c in clear], "symbol": ["circle" if c else "circle-open" for c in clear]})
    fig.add_vline(x=neutral, line={"color": GREY, "dash": "dash", "width": 1})
    words = "; ".join(f"{r.set} {r.value:.2f} [{r.low:.2f}, {r.high:.2f}]" + (f" (layer {r.layer})" if r.layer >= 0 else "")
                      for r in own.iloc[::-1].itertuples())
    return fig.update_layout(meta={"summary": f"{FINDINGS[finding]}: {words}."})


def nearly_said(rows: pd.DataFrame, scene: int, method: str = "greedy") -> go.Figure:
    """The five likeliest words at every step: blue is in the scene, red is a name that is not, grey is the end or no name."""
    there, own = set(held_out(1, scene)[0].names), select(rows, scene=scene, method=method)
    kind = [1 if word in there else 0 if word in NAME_INDEX else 0.5 for word in own.word]
    grid = own.assign(kind=kind).pivot(index="place", columns="step", values="kind")
    words = own.pivot(index="place", columns="step", values="word")
    chance = own.pivot(index="place", columns="step", values="chance")
    fig = blank(f"What it nearly said ({method}); in the scene: {', '.join(held_out(1, scene)[0].names)}", "step (names)", "place in the ranking",
                height=330)
    label = [[f"{escape(words.iloc[r, c])}<br>{chance.iloc[r, c]:.1%}" for c in range(words.shape[1])] for r in range(len(words))]
    fig.add_heatmap(z=grid.to_numpy(), x=list(grid.columns), y=list(grid.index), text=label, texttemplate="%{text}", hoverinfo="text",
                    zmin=0, zmax=1, xgap=2, ygap=2, showscale=False, name="kind",
                    colorscale=[(0, VERMILION), (0.33, VERMILION), (0.33, "#c8c8c8"), (0.67, "#c8c8c8"), (0.67, BLUE), (1, BLUE)])
    fig.update_xaxes(dtick=1, showgrid=False)
    fig.update_yaxes(dtick=1, autorange="reversed", showgrid=False)
    table = {"columns": ["step", "place", "word", "chance", "in the scene"],
             "rows": [[int(r.step), int(r.place), r.word, r.chance, r.word in there] for r in own.itertuples()]}
    said = own[own.place == 1].sort_values("step").word.tolist()
    return fig.update_layout(meta={"table": table, "summary": f"{method} says: {' '.join(said)}. In the scene: {', '.join(sorted(there))}."})


# --- explorers -----------------------------------------------------------------------------------------------------


def vista_grid() -> Explorer:
    return explore(strength_map, recorded("vista_grid"), score=list(SCORES))


def vista_ranks() -> Explorer:
    return explore(rank_curves, recorded("vista_ranks"), by=["step", "layer"])


def vista_findings() -> Explorer:
    return explore(findings, recorded("vista_findings"), finding=list(FINDINGS))


def vista_nearly() -> Explorer:
    rows = recorded("vista_nearly")
    seeds = list(dict.fromkeys(rows.scene.tolist()))
    return explore(nearly_said, rows, scene=choice(seeds, "Scene", texts=[str(i + 1) for i in range(len(seeds))], default=seeds[0]),
                   method=list(dict.fromkeys(rows.method)))


FIGURES: dict[str, Callable[[], Explorer]] = {make.__name__: make for make in (vista_grid, vista_ranks, vista_findings, vista_nearly)}
