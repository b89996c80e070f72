"""Figures of the exit baselines: pure functions of recorded rows, see recipes/record_exits.py and fit_lenses.py."""
import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from frugal.core.depth import EMPTY, EXECUTED, FILLED, RECOMPUTED
from frugal.core.recording import load_recorded
from frugal.explore.theme import BLUE, GREY, ORANGE, PURPLE, TEMPLATE, blank, escape, styles

FAMILY = "early_exit"
MODEL_NAMES = {"smollm2-135m": "SmolLM2, 30 layers", "mini_lm": "the trained mini-LM, 12 layers"}
WORKLOAD_NAMES = {"continuation": "SmolLM2 on documentation, ridge lens", "continuation_logit_lens": "the same, logit lens",
                  "code": "mini-LM on Python code, logit lens"}
METHOD_NAMES = {"full": "whole model", "fixed_exit": "fixed exit", "unified_skipping": "unified skipping",
                "confidence_exit": "confident exit", "skipdecode": "SkipDecode", "early_termination": "early termination",
                "middle_skip": "middle left out"}
STATES = {EMPTY: "not run", EXECUTED: "run", FILLED: "keys copied", RECOMPUTED: "run later"}
_COLORS = ("rgba(128,128,128,0.12)", BLUE, ORANGE, PURPLE)


def recorded(name: str) -> pd.DataFrame:
    """A recorded table of this family."""
    return load_recorded(FAMILY, name)


# -- the grid of cells ---------------------------------------------------------------------------------------------

def depth_grid(rows: pd.DataFrame, model: str = "smollm2-135m", speedup: float = 2.0, threshold: float = 0.9,
               missing: str = "keys copied") -> go.Figure:
    """Layer by position: which cells ran. One panel for each way of saving layers."""
    wanted = [("skipdecode", speedup), (f"confidence, {missing}", threshold), ("fixed_exit", speedup), ("unified_skipping", speedup)]
    titles = {"skipdecode": "SkipDecode", "fixed_exit": "fixed exit", "unified_skipping": "unified skipping"}
    panels = [(titles.get(name, name), part) for name, knob in wanted
              if len(part := rows[(rows.model == model) & (rows.method == name) & (rows.knob == knob)].sort_values("position"))]
    heads = [f"{name}<br><sup>{part.layers.iloc[0]:.1f} layers a token</sup>" for name, part in panels]
    fig = make_subplots(1, len(panels), shared_yaxes=True, horizontal_spacing=0.02, subplot_titles=heads)
    scale = [(edge / 4, color) for i, color in enumerate(_COLORS) for edge in (i, i + 1)]
    for column, (name, part) in enumerate(panels, 1):
        cells = np.array([[int(c) for c in line] for line in part["cells"]]).T
        words = [[f"{STATES[c]}<br>{escape(repr(t))}" for c, t in zip(line, part.text)] for line in cells]
        fig.add_heatmap(z=cells.astype(np.uint8), text=words, colorscale=scale, zmin=-0.5, zmax=3.5, xgap=0.5, ygap=0.5, name=name,
                        hovertemplate="layer %{y}, position %{x}: %{text}<extra></extra>", showscale=column == len(panels),
                        colorbar={"tickvals": [0, 1, 2, 3], "ticktext": list(STATES.values()), "thickness": 12, "len": 0.8},
                        row=1, col=column)
    fig.update_layout(template=TEMPLATE, title={"text": f"Which cells of {MODEL_NAMES[model]} ran"}, height=380,
                      margin={"t": 96, "b": 52, "l": 56, "r": 24})
    fig.update_xaxes(title={"text": "position"}, showgrid=False)
    fig.update_yaxes(showgrid=False)
    fig.update_yaxes(title={"text": "layer"}, row=1, col=1)
    means = ", ".join(f"{name} {part.layers.iloc[0]:.1f}" for name, part in panels)
    return fig.update_layout(meta={"summary": f"Layers run a token after a prompt of 8 tokens: {means}."})


# -- lenses --------------------------------------------------------------------------------------------------------

QUANTITIES = {"agreement": ("first choice as the whole model's (share)", "agreement"),
              "sure": ("p above 0.9 (share of tokens)", "confident share"),
              "sure_right": ("right among those with p above 0.9 (share)", "right when confident"),
              "kl": ("KL divergence from the whole model (nats)", "distance")}


def lens_layers(rows: pd.DataFrame, quantity: str = "agreement") -> go.Figure:
    """What the logit lens and the ridge lens read at every depth of SmolLM2."""
    axis, words = QUANTITIES[quantity]
    fig = blank(f"What can be read at each depth: {words}", "layers run", axis)
    looks = styles(["ridge_lens", "logit_lens"])
    for name, look in looks.items():
        own = rows[rows.lens == name].sort_values("exit")
        fig.add_scatter(x=own.exit, y=own[quantity].astype(float), name=name.replace("_", " "), mode="lines+markers", line=look.line,
                        marker={**look.points, "size": 6}, hovertemplate="%{x} layers: %{y:.2f}<extra>" + name.replace("_", " ") + "</extra>")
    fig.add_vline(x=20.5, line={"color": GREY, "dash": "dot"})
    fig.update_xaxes(range=[0, 30.5], dtick=5)
    if quantity != "kl":
        fig.update_yaxes(range=[0, 1.02])
    at = {e: float(rows[(rows.lens == "ridge_lens") & (rows.exit == e)][quantity].iloc[0] or 0) for e in (20, 21, 28)}
    return fig.update_layout(meta={"summary": f"Ridge lens, {words}: {at[20]:.2f} after 20 layers, {at[21]:.2f} after 21, {at[28]:.2f} "
                                              "after 28 of 30."})


def bridge_jumps(rows: pd.DataFrame) -> go.Figure:
    """Agreement with the whole model when every token jumps from the first layer to a late one."""
    fig = blank("Jumping over the middle of SmolLM2", "layers run (the first, then the last ones)",
                "first choice as the whole model's (share)")
    for (bridged, own), look in zip(rows.groupby("bridged"), styles(["plain", "bridged"]).values()):
        own = own.sort_values("layers")
        name = "entry bridge" if bridged else "plain jump"
        fig.add_scatter(x=own.layers, y=own.agreement, name=name, mode="lines+markers", line=look.line, marker=look.points,
                        hovertemplate="%{x} layers: %{y:.2f}<extra>" + name + "</extra>")
    fig.update_yaxes(range=[0, 1.02])
    best = rows[rows.bridged].agreement.max()
    return fig.update_layout(meta={"summary": f"A ridge map in the gap lifts agreement to at most {best:.2f}."})


# -- cost against quality ------------------------------------------------------------------------------------------

COSTS = {"layers": "layers run a token", "weight_bytes": "weights read a step (MB)", "cpu_ms": "CPU time a token (ms, one thread)"}
SCORES = {"agreement": "first choice as the whole model's (share)", "nll": "loss on the text (nats a token)"}


def exits_curve(rows: pd.DataFrame, workload: str = "continuation", cost: str = "layers", score: str = "agreement") -> go.Figure:
    """Each method at each budget: what it cost, counted or timed, against what it said."""
    own = rows[rows.workload == workload]
    mean = own.groupby(["method", "budget"], sort=False)[[*COSTS, *SCORES]].mean().reset_index()
    mean["weight_bytes"] /= 1e6
    fig = blank(f"{WORKLOAD_NAMES[workload]}", COSTS[cost], SCORES[score])
    looks = styles(list(METHOD_NAMES), baselines=("full",))
    for name, look in looks.items():
        part = mean[mean.method == name].sort_values("budget")
        if len(part):
            fig.add_scatter(x=part[cost], y=part[score], name=METHOD_NAMES[name], mode="markers" if name == "full" else "lines+markers",
                            line=look.line, marker=look.points, text=[f"budget {b:g}" for b in part.budget],
                            hovertemplate="%{text}<br>%{x:.4g}, %{y:.3g}<extra>" + METHOD_NAMES[name] + "</extra>")
    full = mean[mean.method == "full"].iloc[0]
    fig.add_vline(x=float(full[cost]), line={"color": GREY, "dash": "dot"})
    fig.update_xaxes(rangemode="tozero")
    if score == "agreement":
        fig.update_yaxes(range=[0, 1.03])
    cheaper = mean[(mean[cost] < 0.95 * full[cost]) & (mean.agreement > 0.9)]
    found = ", ".join(sorted({METHOD_NAMES[m] for m in cheaper.method})) or "none"
    return fig.update_layout(meta={"summary": f"Settings at least 5 % cheaper in {COSTS[cost]} that still agree on 90 % of tokens: {found}."})


def head_charged(rows: pd.DataFrame, model: str = "smollm2-135m", threshold: float = 0.9) -> go.Figure:
    """Bytes of weights a token reads under confident exit, and the CPU time beside it, both as a share of the whole model's."""
    own = rows[(rows.model == model) & (rows.batch == 1)]
    full = own[own.method == "whole model"].iloc[0]
    shown = [own[own.method == "whole model"]] + [own[(own.method == m) & (own.threshold == nearest(own, m, threshold))]
                                                  for m in own.method.unique() if m != "whole model"]
    part = pd.concat(shown).drop_duplicates("method")
    fig = blank(f"Confident exit at threshold {threshold:g}: {MODEL_NAMES[model]}", "how sure, and what of the missing keys",
                "share of the whole model's (1 = no gain)",
                barmode="group")
    for column, name, look in (("exit_layer", "layers needed by the token", styles(["a"])["a"]),
                               ("weight_bytes", "weights read, head and lens charged", styles(["a", "b"])["b"]),
                               ("cpu_ratio", "CPU time", styles(["a", "b", "c"])["c"])):
        share = part[column] / full[column]                            # cpu_ratio is one already: the whole model's is 1
        fig.add_bar(x=part.method, y=share, name=name, marker={"color": look.color},
                    customdata=np.stack([part.agreement, part.head_calls], 1),
                    hovertemplate="%{x}: %{y:.2f}<br>agreement %{customdata[0]:.2f}, %{customdata[1]:.1f} heads a token<extra>" + name + "</extra>")
    fig.add_hline(y=1, line={"color": GREY, "dash": "dot"})
    fig.update_yaxes(range=[0, 2])
    gap = part[part.method.str.startswith("gap")].iloc[0]
    return fig.update_layout(legend={"orientation": "h", "y": -0.2}, meta={"summary": (
        f"At threshold {threshold:g} the gap rule lets a token leave after {gap.exit_layer:.1f} layers on average, yet reads "
        f"{gap.weight_bytes / full.weight_bytes:.2f} of the whole model's weight bytes and takes {gap.cpu_ratio:.2f} of its time.")})


def nearest(rows: pd.DataFrame, method: str, threshold: float) -> float:
    """The recorded threshold of this method next to the wanted one; saturation has a finer scale of its own."""
    known = sorted(rows[rows.method == method].threshold.unique())
    return min(known, key=lambda t: abs(t - threshold))


def batch_wait(rows: pd.DataFrame, model: str = "smollm2-135m") -> go.Figure:
    """Confident exit in a batch: layers that a token needs, and layers that its batch runs."""
    own = rows[(rows.model == model) & rows.method.isin(["gap, keys copied"])]
    fig = blank(f"A batch waits for its deepest token: {MODEL_NAMES[model]}", "threshold", "layers a token")
    looks = styles(["1", "4", "8"])
    for batch, look in zip((1, 4, 8), looks.values()):
        part = own[own.batch == batch].sort_values("threshold")
        fig.add_scatter(x=part.threshold, y=part.layers, name=f"run, batch of {batch}", mode="lines+markers", line=look.line, marker=look.points)
    part = own[own.batch == 8].sort_values("threshold")
    fig.add_scatter(x=part.threshold, y=part.exit_layer, name="needed by each token of the eight", mode="lines", line={"color": GREY, "width": 2})
    at = own[own.threshold == 0.6].set_index("batch")
    return fig.update_layout(meta={"summary": f"At threshold 0.6 the tokens of eight texts need {at.exit_layer[8]:.1f} layers on average; their "
                                              f"batch runs {at.layers[8]:.1f}. One of the texts alone runs {at.layers[1]:.1f}."})


def drafting(rows: pd.DataFrame, model: str = "smollm2-135m", against: str = "bytes_ratio") -> go.Figure:
    """Self-speculative decoding: acceptance and cost by the layers that draft."""
    own = rows[rows.model == model].groupby(["lens", "gamma", "exit"])[["acceptance", "bytes_ratio", "flops_ratio"]].mean().reset_index()
    words = {"bytes_ratio": "weights read a token, greedy decoding = 1", "flops_ratio": "FLOPs a token, greedy decoding = 1",
             "acceptance": "drafted tokens that hold (share)"}
    fig = blank(f"The first layers draft, all check: {MODEL_NAMES[model]}", "layers that draft", words[against])
    names = [(lens, gamma) for lens in own.lens.unique() for gamma in sorted(own.gamma.unique())]
    for (lens, gamma), look in zip(names, styles([f"{a} {b}" for a, b in names]).values()):
        part = own[(own.lens == lens) & (own.gamma == gamma)].sort_values("exit")
        fig.add_scatter(x=part.exit, y=part[against], name=f"{lens}, {gamma} drafts", mode="lines+markers", line=look.line, marker=look.points,
                        customdata=part.acceptance, hovertemplate="%{x} layers: %{y:.2f}<br>%{customdata:.0%} hold<extra></extra>")
    if against != "acceptance":
        fig.add_hline(y=1, line={"color": GREY, "dash": "dot"})
    fig.update_yaxes(rangemode="tozero")
    best = own.loc[own.bytes_ratio.idxmin()]
    return fig.update_layout(meta={"summary": f"Least weights read: {best.bytes_ratio:.2f} of greedy decoding, with {best.exit:.0f} layers and "
                                              f"{best.gamma:.0f} drafts ({best.lens}), {best.acceptance:.0%} of drafts hold."})
