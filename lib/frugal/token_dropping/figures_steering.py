"""Figures of steering: strength against what it buys and costs, where attention goes, captions word by word, the price.

Rows: recorded/paint_*.json, vista_*.json and steering_*.json, written by recipes/record_steering.py. FIGURES lists the
explorers of PAINT, VISTA and both; the pictures of VISTA alone are in figures_vista.
"""
from collections.abc import Callable
from math import nan

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from frugal.core.recording import load_recorded
from frugal.explore import Explorer, choice, explore, select
from frugal.explore.pictures import heatmap_marginals, layer_grid, token_strip
from frugal.explore.theme import BLUE, GREY, ORANGE, TEMPLATE, VERMILION, blank, escape, style, styles
from frugal.token_dropping.figures_keep import png
from frugal.token_dropping.steering_measure import held_out

BASELINES = ("greedy", "random tokens", "random vector")


def recorded(name: str) -> pd.DataFrame:
    """The recorded rows of that name. ValueError lists what is recorded."""
    return load_recorded("token_dropping", name)


def _error(rows: pd.DataFrame, column: str, scale: float = 100) -> dict:
    return {"type": "data", "symmetric": False, "array": scale * (rows[f"{column}_high"] - rows[column]),
            "arrayminus": scale * (rows[column] - rows[f"{column}_low"]), "thickness": 1}


# --- strength ------------------------------------------------------------------------------------------------------


def strength_curve(rows: pd.DataFrame, method: str, knob: str, title: str) -> go.Figure:
    """CHAIR_I (below) with recall and names said (above) against a method's strength; dashed lines are greedy decoding.

    Names said are given per object there, so that all three are percentages. Bars are 95 % intervals over scenes.
    """
    own, plain = select(rows, method=method).sort_values(knob), select(rows, method="greedy").iloc[0]
    fig = make_subplots(2, 1, shared_xaxes=True, vertical_spacing=0.09, row_heights=[0.45, 0.55])
    lines = [("recall", "recall", 1, style(2)), ("fullness", "names said per object", 1, style(0)), ("chair_i", "CHAIR_I", 2, style(1))]
    for column, name, row, look in lines:
        fig.add_scatter(x=own[knob], y=100 * own[column], name=name, mode="lines+markers", line=look.line, marker=look.points,
                        error_y=_error(own, column), row=row, col=1)
        ends = [own[knob].min(), own[knob].max()]
        fig.add_scatter(x=ends, y=[100 * plain[column]] * 2, mode="lines", line={"color": GREY, "dash": "dash", "width": 1},
                        name=f"{name}, greedy", showlegend=False, hoverinfo="y", row=row, col=1)
    fig.update_yaxes(title_text="recall, length (%)", range=_limits(rows, ("recall", "fullness")), row=1, col=1)
    fig.update_yaxes(title_text="CHAIR_I (%)", range=[0, _limits(rows, ("chair_i",))[1]], row=2, col=1)
    fig.update_xaxes(title_text=title, row=2, col=1)
    best = own.loc[own.chair_i.idxmin()]
    return fig.update_layout(
        template=TEMPLATE, height=460, title_text=escape(f"{method}: fewer false names only count if recall and length stay"),
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom"}, margin={"t": 96},
        meta={"summary": f"{method}: CHAIR_I {100 * plain.chair_i:.1f} % for greedy decoding, least {100 * best.chair_i:.1f} % at "
                         f"{knob} {best[knob]:g}, where recall is {100 * best.recall:.1f} % (greedy {100 * plain.recall:.1f} %) and "
                         f"{best.fullness:.2f} names are said per object (greedy {plain.fullness:.2f})."})


def _limits(rows: pd.DataFrame, columns: tuple[str, ...]) -> list[float]:
    """Axis ends that hold the intervals of all rows, so that a slider's movement means something."""
    low = 100 * float(rows[[f"{column}_low" for column in columns]].to_numpy().min())
    high = 100 * float(rows[[f"{column}_high" for column in columns]].to_numpy().max())
    pad = 0.05 * max(high - low, 4)
    return [max(0.0, low - pad), high + pad]


def paint_curve(rows: pd.DataFrame, method: str = "PAINT") -> go.Figure:
    return strength_curve(rows, method, "alpha", "alpha (strength on local tokens; beta is 3/7 of it)")


def vista_curve(rows: pd.DataFrame, method: str = "vector") -> go.Figure:
    return strength_curve(rows, method, "strength", "lambda (strength of the vector; no early logits)")


# --- attention -----------------------------------------------------------------------------------------------------


def attention_mass(rows: pd.DataFrame, view: str = "before") -> go.Figure:
    """Attention mass on the picture, layer by generated position: before the boost, after it, or the difference."""
    grids = {stage: own.pivot(index="layer", columns="position", values="mass") for stage, own in rows.groupby("stage")}
    if view not in ("before", "after", "gain"):
        raise ValueError(f"view {view!r}: allowed are before, after, gain")
    shown = grids["after"] - grids["before"] if view == "gain" else grids[view]
    words = {"before": "as trained", "after": "with PAINT's boost", "gain": "what the boost adds"}[view]
    fig = heatmap_marginals(shown.to_numpy(), title=f"Attention of the newest token on the picture, {words}", value="mass (share)",
                            x="generated position (names)", y="layer", columns=list(shown.columns), rows=list(shown.index),
                            limits=None if view == "gain" else (0, 1))
    first, last = (float(shown.iloc[:, at].mean()) for at in (0, -1))
    deep = float(shown.iloc[-1].mean() - shown.iloc[0].mean())
    return fig.update_layout(meta={"summary": f"Attention mass on the picture {words}: {first:.2f} at the first name, {last:.2f} at name "
                                              f"{int(shown.columns[-1])}; the last layer has {deep:+.2f} against the first."})


def head_sensitivity(rows: pd.DataFrame) -> go.Figure:
    """Mean attention mass of every head on the picture: what the head rules go by."""
    grid = rows.pivot(index="layer", columns="head", values="mass")
    fig = layer_grid(grid.to_numpy(), title="Which heads look at the picture", value="mass (share)", x="head", y="layer", limits=(0, 1),
                     show=".2f")
    high, low = rows.loc[rows.mass.idxmax()], rows.loc[rows.mass.idxmin()]
    return fig.update_layout(meta={"summary": f"Mean attention mass on the picture by layer and head: most {high.mass:.2f} (layer "
                                              f"{high.layer:.0f}, head {high['head']:.0f}), least {low.mass:.2f} (layer {low.layer:.0f}, "
                                              f"head {low['head']:.0f})."})


def token_sets(rows: pd.DataFrame, scene: int) -> go.Figure:
    """PAINT's local and summary tokens of one scene, on the overview (left) and on the four tiles (right)."""
    own, picture = select(rows, scene=scene), png(held_out(1, scene)[0].image)
    fig = make_subplots(1, 2, subplot_titles=["overview, 8 x 8 patches", "four tiles, 16 x 16 patches"], horizontal_spacing=0.03)
    for column, (patch, tiles) in enumerate(((16, False), (8, True)), 1):
        fig.add_trace(go.Image(source=picture, hoverinfo="skip", meta="decoration"), row=1, col=column)
        for name, color, symbol in (("local", BLUE, "square-open"), ("summary", VERMILION, "diamond-open")):
            places = [_place(token, tiles) for token in own[own.set == name].token if (token >= 64) == tiles]
            fig.add_scatter(x=[(c + 0.5) * patch - 0.5 for _, c in places], y=[(r + 0.5) * patch - 0.5 for r, _ in places], mode="markers",
                            name=name, legendgroup=name, showlegend=column == 1, row=1, col=column,
                            marker={"color": color, "symbol": symbol, "size": 26 if column == 1 else 13, "line": {"width": 2}})
        fig.update_xaxes(visible=False, range=[-0.5, 127.5], row=1, col=column)
        fig.update_yaxes(visible=False, range=[127.5, -0.5], scaleanchor="x" if column == 1 else "x2", row=1, col=column)
    counts = own.set.value_counts()
    return fig.update_layout(template=TEMPLATE, height=420, title_text="What PAINT calls local and summary tokens", margin={"t": 84},
                             meta={"summary": f"Scene {scene}: {counts.get('local', 0)} local and {counts.get('summary', 0)} summary "
                                              "tokens of 320, drawn on the overview and on the tiles."})


def _place(token: int, tiles: bool) -> tuple[int, int]:
    """Row and column of a visual token in its panel's grid of patches."""
    view, patch = divmod(token, 64)
    row, column = divmod(patch, 8)
    return (row + 8 * ((view - 1) // 2), column + 8 * ((view - 1) % 2)) if tiles else (row, column)


# --- captions ------------------------------------------------------------------------------------------------------


def caption_words(rows: pd.DataFrame, scene: int, mode: str, method: str, strength: float | int) -> go.Figure:
    """What is said of one scene, word by word: yellow names are there, dark ones are not. Above it, what greedy decoding says."""
    at = select(rows, scene=scene, mode=mode, method=method, strength=strength).iloc[0]
    there, words, values, remarks = set(at.truth.split()), [], [], []
    for label, text, judged in (("in the scene:", at.truth, False), ("greedy:", at.greedy, True), (f"{method}, {strength:g}:", at.said, True)):
        names = text.split() or ["(nothing)"]
        words += [f"{label:<22}", *(f" {name} " for name in names[:-1]), f" {names[-1]} \n"]
        right = [float(name in there) if judged and text else nan for name in names]
        values += [nan, *right]
        remarks += ["", *("in the scene" if v == 1 else "not in the scene" if v == 0 else "" for v in right)]
    said = at.said.split()
    false = [name for name in said if name not in there]
    fig = token_strip(words, values, title=f"{len(said)} names, {len(false)} false, recall {len(there & set(said))} of {len(there)}",
                      value="in the scene (1 = yes)", limits=(0, 1), hover=remarks, width=120)
    return fig.update_layout(meta={**fig.layout.meta, "summary": f"Scene with {at.truth}. Greedy: {at.greedy}. {method} at {strength:g}: "
                                                                 f"{at.said}. False names: {', '.join(false) or 'none'}."})


# --- comparison and price ------------------------------------------------------------------------------------------

AXES = {"cut": "cut of CHAIR_I against greedy (%)", "recall_change": "change of recall (points)",
        "fullness_change": "change of names said per object (points)"}


def comparison(rows: pd.DataFrame, mode: str = "free", axis: str = "cut") -> go.Figure:
    """Change against greedy on fresh scenes, one bar a method with its 95 % interval; a bar that meets 0 shows nothing."""
    if axis not in AXES:
        raise ValueError(f"axis {axis!r}: allowed are {', '.join(AXES)}")
    own = select(rows, mode=mode)
    own, scale = own[own.method != "greedy"].iloc[::-1], 1 if axis == "cut" else 100
    fig = blank(f"Against greedy decoding on {int(own.scenes.iloc[0])} fresh scenes, {mode} length", AXES[axis], "method", height=460)
    clear = (own[f"{axis}_low"] > 0) | (own[f"{axis}_high"] < 0)
    error = {"type": "data", "symmetric": False, "array": scale * (own[f"{axis}_high"] - own[axis]),
             "arrayminus": scale * (own[axis] - own[f"{axis}_low"])}
    fig.add_scatter(x=scale * own[axis], y=[escape(m) for m in own.method], mode="markers", error_x=error, name=AXES[axis],
                    marker={"size": 10, "color": [BLUE if c else GREY for c in clear], "symbol": ["circle" if c else "circle-open" for c in clear]})
    fig.add_vline(x=0, line={"color": GREY, "dash": "dash", "width": 1})
    words = "; ".join(f"{r.method} {scale * r[axis]:.1f} [{scale * r[axis + '_low']:.1f}, {scale * r[axis + '_high']:.1f}]"
                      for _, r in own.iloc[::-1].iterrows())
    return fig.update_layout(showlegend=False, meta={"summary": f"{AXES[axis]}, {mode} length: {words}."})


def late_curve(rows: pd.DataFrame, mode: str = "free") -> go.Figure:
    """CHAIR_I by place in the caption: "free" length, or "forced" to two names more than objects, where the prior takes over."""
    at = select(rows, mode=mode)
    fig = blank(f"False names by place in the caption, {mode} length", "place in the caption (names)", "CHAIR_I (%)")
    look = styles(list(dict.fromkeys(at.method)), BASELINES)
    for method, own in at.groupby("method", sort=False):
        own = own[own.mentions >= 30]
        fig.add_scatter(x=own.position, y=100 * own.chair_i, name=escape(method), mode="lines+markers", line=look[method].line,
                        marker=look[method].points, error_y={"type": "data", "symmetric": False, "thickness": 1,
                                                             "array": 100 * (own.high - own.chair_i), "arrayminus": 100 * (own.chair_i - own.low)})
    plain = at[(at.method == "greedy") & (at.mentions >= 30)].set_index("position").chair_i
    return fig.update_layout(meta={"summary": f"CHAIR_I by place, {mode} length, greedy: {100 * plain.iloc[0]:.1f} % at the first name, "
                                              f"{100 * plain.iloc[-1]:.1f} % at name {plain.index[-1]}."})


def yes_no(rows: pd.DataFrame, score: str = "accuracy") -> go.Figure:
    """POPE-like questions: one figure by kind of absent name and method, with intervals over scenes."""
    fig = blank("Is there a ...? Half of the questions ask for what is not there", "absent names", f"{score.replace('_', ' ')} (%)")
    methods = list(dict.fromkeys(rows.method))
    look = styles(methods, BASELINES)
    for number, (method, own) in enumerate(rows.groupby("method", sort=False)):
        fig.add_bar(x=own.kind, y=100 * own[score], name=escape(method), error_y=_error(own, score),
                    marker={"color": look[method].color, "pattern": {"shape": ["", "/", "x", "."][number % 4]}})
    low = 100 * float(rows[f"{score}_low"].min())
    fig.update_yaxes(range=[max(0, low - 5), 100])
    words = "; ".join(f"{r.method}, {r.kind}: {100 * r[score]:.1f} %" for _, r in rows.iterrows())
    return fig.update_layout(barmode="group", meta={"summary": f"{score} by kind of absent name: {words}."})


def price(rows: pd.DataFrame, work: str = "token") -> go.Figure:
    """Work against greedy decoding, counted in FLOPs and timed: of one decoded "token", or of a whole "answer" with its prefills."""
    if work not in ("token", "answer"):
        raise ValueError(f"work {work!r}: allowed are token, answer")
    what = {"token": "a decoded token", "answer": "an answer, prefill included"}[work]
    fig = blank(f"The price of {what}", "method", "times greedy decoding", barmode="group")
    for column, name, color, shape in (("flops", "FLOPs, counted", BLUE, ""), ("time", "CPU time, measured", ORANGE, "/")):
        values = rows[f"{work}_{column}_ratio"]
        fig.add_bar(x=[escape(m) for m in rows.method], y=values, name=name, text=[f"{v:.2f}" for v in values], textposition="outside",
                    marker={"color": color, "pattern": {"shape": shape}})
    words = "; ".join(f"{r.method} {r[f'{work}_flops_ratio']:.2f}x FLOPs, {r[f'{work}_time_ratio']:.2f}x time, {r.passes_per_token} extra "
                      f"passes and {r.unembeddings_per_token} extra output products a token, {r.prompt_passes} extra prompt passes"
                      for _, r in rows.iterrows())
    return fig.update_layout(meta={"summary": f"Price of {what} against greedy decoding: {words}."})


# --- explorers -----------------------------------------------------------------------------------------------------


def paint_alpha() -> Explorer:
    rows = recorded("paint_alpha")
    return explore(paint_curve, rows, method=[m for m in dict.fromkeys(rows.method) if m != "greedy"])


def paint_mass() -> Explorer:
    return explore(attention_mass, recorded("paint_mass"), view=["before", "after", "gain"])


def paint_heads() -> Explorer:
    return explore(head_sensitivity, recorded("paint_heads"))


def paint_sets() -> Explorer:
    rows = recorded("paint_sets")
    return explore(token_sets, rows, scene=_scenes(rows))


SHOWN = 2                                        # scenes in a control: each costs the notebook 100 kB


def _scenes(rows: pd.DataFrame):
    seeds = list(dict.fromkeys(rows.scene.tolist()))[:SHOWN]
    return choice(seeds, "Scene", texts=[str(i + 1) for i in range(len(seeds))], default=seeds[0])


def _words(name: str, knob: str, default: float) -> Explorer:
    rows = recorded(name)
    return explore(caption_words, rows, scene=_scenes(rows), mode=choice(["free", "forced"], "Length"),
                   method=list(dict.fromkeys(rows.method)),
                   strength=choice(sorted(rows.strength.unique().tolist()), knob, default=default))


def paint_words() -> Explorer:
    return _words("paint_words", "alpha", 0.7)


def vista_words() -> Explorer:
    return _words("vista_words", "lambda", 0.17)


def vista_controls() -> Explorer:
    rows = recorded("vista_controls")
    return explore(vista_curve, rows, method=[m for m in dict.fromkeys(rows.method) if m != "greedy"])


def steering_final() -> Explorer:
    return explore(comparison, recorded("steering_final"), mode=["free", "forced"], axis=list(AXES))


def steering_late() -> Explorer:
    return explore(late_curve, recorded("steering_late"), mode=["free", "forced"])


def steering_pope() -> Explorer:
    return explore(yes_no, recorded("steering_pope"), score=["accuracy", "precision", "recall", "f1", "yes_rate"])


def steering_price() -> Explorer:
    return explore(price, recorded("steering_price"), work=["token", "answer"])


def _figures() -> dict[str, Callable[[], Explorer]]:
    from frugal.token_dropping.figures_vista import FIGURES as vista
    own = (paint_alpha, paint_mass, paint_heads, paint_sets, paint_words, vista_controls, vista_words, steering_final, steering_late,
           steering_pope, steering_price)
    return {make.__name__: make for make in own} | vista


FIGURES: dict[str, Callable[[], Explorer]] = _figures()
