"""Pictures of SkipDecode: quality against the target speed-up, speed in batches beside confident exit, time of each step.

Rows: `recorded/skip_quality.json`, `skip_speed.json`, `skip_steps.json`, written by recipes/record_skipdecode.py. Which cells
ran (the wedge) is `figures_exits.depth_grid`.
"""
import pandas as pd
import plotly.graph_objects as go

from frugal.core.recording import load_recorded
from frugal.early_exit.workloads import MINI_LM, SMOLLM2
from frugal.explore import choice, explore
from frugal.explore.theme import GREY, blank, styles

MODEL_NAMES = {MINI_LM: "mini-LM (12 layers)", SMOLLM2: "SmolLM2 (30 layers)"}
NAMES = {"skipdecode": "SkipDecode", "skipdecode, flat": "SkipDecode, one depth for all", "skipdecode, no bridge": "SkipDecode, plain jump",
         "unified_skipping": "unified skipping", "middle_skip": "fixed middle skip", "early_termination": "early termination, same schedule",
         "fixed_exit": "fixed exit", "confidence_exit": "confident exit", "full": "whole model"}
LOOKS = styles([n for n in NAMES if n != "full"] + ["full"])
SCORES = {"lost_nats": "loss added (nats a token)", "agreement": "first choice as the whole model's (%)"}


def recorded(name: str) -> pd.DataFrame:
    """The recorded rows of that name. ValueError lists what is recorded."""
    return load_recorded("early_exit", name)


def skip_quality(rows: pd.DataFrame, model: str = MINI_LM, score: str = "lost_nats", x: str = "target") -> go.Figure:
    """Loss or agreement of each method, over the target speed-up or over the layers that really ran."""
    own = rows[(rows.model == model) & (rows.method != "full")]
    mean = own.groupby(["method", "speedup"], sort=False)[["layers", *SCORES]].mean().reset_index()
    scale, column = (100 if score == "agreement" else 1), {"target": "speedup", "layers run": "layers"}[x]
    fig = blank(f"Fewer layers, and what is lost: {MODEL_NAMES[model]}",
                {"target": "target speed-up", "layers run": "layers run a token (mean)"}[x], SCORES[score])
    for name in (n for n in NAMES if n in set(mean.method)):
        part = mean[mean.method == name].sort_values("speedup")
        fig.add_scatter(x=part[column], y=scale * part[score], name=NAMES[name], mode="lines+markers", line=LOOKS[name].line,
                        marker=LOOKS[name].points, text=[f"target {s:g}, {d:.1f} layers" for s, d in zip(part.speedup, part.layers)],
                        hovertemplate="%{text}: %{y:.3g}<extra>" + NAMES[name] + "</extra>")
    fig.update_xaxes(range=[0.9, 5.1] if x == "target" else [0, 1.05 * float(mean.layers.max())])
    fig.update_yaxes(range=[0, 103] if score == "agreement" else [min(-0.1, 1.05 * float(mean[score].min())), min(4.0, 1.05 * float(mean[score].max()))])
    said = "; ".join(f"{s:g}x {scale * v:.3g}" for s, v in mean[mean.method == "skipdecode"][["speedup", score]].itertuples(index=False))
    return fig.update_layout(meta={"summary": f"{SCORES[score]}, SkipDecode on {MODEL_NAMES[model]} by target speed-up: {said}."})


def skip_batches(rows: pd.DataFrame, model: str = MINI_LM, batch: int = 8, clock: str = "CPU") -> go.Figure:
    """Measured speed-up over the layers that a token needs: SkipDecode keeps its gain in a batch, confident exit waits."""
    own = rows[(rows.model == model) & (rows.batch == batch)]
    full = own[own.method == "full"].iloc[0]
    column = {"CPU": "cpu_ratio", "wall": "speedup", "least wall": "quiet"}[clock]
    fig = blank(f"Measured speed-up, batch of {batch}: {MODEL_NAMES[model]}", "layers that a token needs (mean)",
                f"speed-up over the whole model ({clock} time)")
    for name in ("skipdecode", "confidence_exit"):
        part = own[own.method == name].sort_values("exit_layer")
        if not len(part):
            continue
        bars = {"error_y": {"type": "data", "symmetric": False, "array": part.cpu_high - part.cpu_ratio,
                            "arrayminus": part.cpu_ratio - part.cpu_low, "thickness": 1}} if clock == "CPU" else {}
        words = [f"{'target' if name == 'skipdecode' else 'threshold'} {s:g}, {t:.0f} tokens/s, {r:.1f} layers run"
                 for s, t, r in zip(part.setting, part.tok_per_cpu_s, part.layers)]
        fig.add_scatter(x=part.exit_layer, y=part[column], name=NAMES[name], mode="lines+markers", line=LOOKS[name].line,
                        marker=LOOKS[name].points, text=words, hovertemplate="%{text}<br>%{y:.2f} times<extra>" + NAMES[name] + "</extra>", **bars)
    ideal = [d / 4 for d in range(8, 4 * round(full.layers) + 1)]
    fig.add_scatter(x=ideal, y=[full.layers / d for d in ideal], name="layers saved alone", mode="lines", line={"color": GREY, "dash": "dot"})
    fig.add_hline(y=1, line={"color": GREY})
    fig.update_xaxes(range=[0, 1.05 * full.layers])
    fig.update_yaxes(range=[0, 5.2])
    ours = own[(own.method == "skipdecode") & (own.setting == 2)].iloc[0]
    said = f"At target 2 SkipDecode runs {ours.layers:.1f} layers a token and is {ours[column]:.2f} times as fast."
    calm = own[own.method == "confidence_exit"]
    if len(calm):
        best = calm.loc[calm[column].idxmax()]
        said += (f" Confident exit at its fastest ({best.setting:g}): a token needs {best.exit_layer:.1f} layers, its batch runs "
                 f"{best.layers:.1f}, {best[column]:.2f} times as fast.")
    return fig.update_layout(meta={"summary": said})


def skip_rates(rows: pd.DataFrame, model: str = MINI_LM) -> go.Figure:
    """Tokens a CPU second of the whole batch, by batch size."""
    own = rows[rows.model == model]
    shown = [("full", 1.0, "whole model"), ("skipdecode", 1.5, "SkipDecode, target 1.5"), ("skipdecode", 2.0, "SkipDecode, target 2"),
             ("skipdecode", 4.0, "SkipDecode, target 4"), ("confidence_exit", 0.4, "confident exit, 0.4"), ("confidence_exit", 0.1, "confident exit, 0.1")]
    fig = blank(f"Tokens a CPU second: {MODEL_NAMES[model]}", "sequences in the batch", "tokens a CPU second, all sequences together", barmode="group")
    looks = styles([label for *_, label in shown], baselines=("whole model",))
    for method, setting, label in shown:
        part = own[(own.method == method) & (own.setting == setting)].sort_values("batch")
        if len(part):
            fig.add_bar(x=[str(b) for b in part.batch], y=part.tok_per_cpu_s, name=label, marker={"color": looks[label].color},
                        hovertemplate="batch %{x}: %{y:.0f} tokens a CPU second<extra>" + label + "</extra>")
    fig.update_xaxes(type="category")
    at = own[(own.method == "skipdecode") & (own.setting == 2)].set_index("batch")
    said = "; ".join(f"batch {b}: {at.tok_per_cpu_s[b]:.0f} tokens a CPU second, {at.cpu_ratio[b]:.2f} times the whole model" for b in at.index)
    return fig.update_layout(meta={"summary": f"SkipDecode at target 2: {said}."})


def skip_steps(rows: pd.DataFrame, model: str = MINI_LM, batch: int = 1) -> go.Figure:
    """CPU time of each step: it falls as the depth falls; the whole model's grows a little with the text."""
    own = rows[(rows.model == model) & (rows.batch == batch)]
    names = {("full", 1.0): "whole model", ("skipdecode", 2.0): "SkipDecode, target 2", ("skipdecode", 4.0): "SkipDecode, target 4"}
    looks = styles(list(names.values()), baselines=("whole model",))
    fig = blank(f"Each token is cheaper than the one before: {MODEL_NAMES[model]}", "generated token", "CPU time of the step (ms)")
    ends = []
    for (method, setting), label in names.items():
        part = own[(own.method == method) & (own.setting == setting)].sort_values("position")
        smooth = part.step_ms.rolling(5, center=True, min_periods=1).median()
        fig.add_scatter(x=part.position, y=smooth, name=label, mode="lines", line=looks[label].line, text=[f"{d} layers" for d in part.layers.astype(int)],
                        hovertemplate="token %{x}: %{y:.2f} ms, %{text}<extra>" + label + "</extra>")
        ends.append(f"{label} {smooth.iloc[2]:.2f} to {smooth.iloc[-3]:.2f} ms")
    fig.update_yaxes(rangemode="tozero")
    return fig.update_layout(meta={"summary": f"CPU time of a step from the first to the last token (batch {batch}): {'; '.join(ends)}."})


_BATCH = {"label": "Batch", "unit": "sequences"}


def _explorer(figure, name: str, **choices):
    """An explorer over the recorded rows, with a control for the models that are in them."""
    rows = recorded(name)
    found = [model for model in MODEL_NAMES if model in set(rows.model)]
    return explore(figure, rows, model=choice(found, "Model", texts=[MODEL_NAMES[model] for model in found]), **choices)


FIGURES = {
    "skip_quality": lambda: _explorer(skip_quality, "skip_quality", score=choice(list(SCORES), "Quality", texts=list(SCORES.values())),
                                      x=choice(["target", "layers run"], "Against")),
    "skip_batches": lambda: explore(skip_batches, recorded("skip_speed"), batch=choice([1, 4, 8], default=8, **_BATCH),
                                    clock=choice(["CPU", "wall", "least wall"], "Clock")),
    "skip_rates": lambda: _explorer(skip_rates, "skip_speed"),
    "skip_steps": lambda: _explorer(skip_steps, "skip_steps", batch=choice([1, 8], **_BATCH)),
}
