"""Pictures of MiKV: keys before and after balancing, the memory strip, quality against stored bits.

Rows: `recorded/mikv_keys.json`, `mikv_errors.json`, `mikv_strip.json`, `mikv_quality.json`, written by
recipes/record_kv_pictures.py.
"""
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from frugal.core.recording import load_recorded
from frugal.explore.theme import BLUE, DIVERGING, GREY, ORANGE, TEMPLATE, blank, color_bar, escape, styles

SCORES = {"copy": "tokens copied right (%)", "nll": "loss on the continuation (nats a token)"}
BASELINE = ("full", "evicted instead")


def recorded(name: str) -> pd.DataFrame:
    """The recorded rows of that name. ValueError lists what is recorded."""
    return load_recorded("kv_eviction", name)


def key_heatmap(rows: pd.DataFrame, view: str = "both") -> go.Figure:
    """Keys of one head, token by channel: as cached, balanced, or both on the same colour scale.

    A channel that is loud in every token sets the scale of the token's grid, so that the others get few steps.
    """
    columns = {"both": ["key", "balanced"], "as cached": ["key"], "balanced": ["balanced"]}
    if view not in columns:
        raise ValueError(f"view {view!r}: allowed are {', '.join(columns)}")
    titles = {"key": "as cached", "balanced": "times the balancer"}
    shown = columns[view]
    fig = make_subplots(1, len(shown), subplot_titles=[titles[c] for c in shown], shared_yaxes=True, horizontal_spacing=0.04)
    limit = float(rows["key"].abs().max())
    for place, column in enumerate(shown, 1):
        grid = rows.pivot(index="token", columns="channel", values=column)
        fig.add_heatmap(z=grid.to_numpy(), x=list(grid.columns), y=list(grid.index), zmin=-limit, zmax=limit, name=titles[column],
                        colorscale=DIVERGING, showscale=place == len(shown), colorbar=color_bar("key (number)"),
                        hovertemplate="token %{y}, channel %{x}: %{z:.2f}<extra></extra>", row=1, col=place)
        fig.update_xaxes(title_text="channel", row=1, col=place)
        fig.update_yaxes(title_text="token (position)" if place == 1 else "", autorange="reversed", row=1, col=place)
    layer, head = int(rows["layer"].iloc[0]), int(rows["head"].iloc[0])
    loud = {c: loudness(rows, c) for c in titles}
    return fig.update_layout(
        template=TEMPLATE, title_text=f"Loud channels spoil a token's grid (layer {layer}, KV head {head})", height=420,
        meta={"summary": f"Keys of {rows['token'].nunique()} tokens by {rows['channel'].nunique()} channels, layer {layer}. "
                         f"The loudest channel of a token is {loud['key']:.1f} times the median channel as cached and "
                         f"{loud['balanced']:.1f} times balanced."})


def loudness(rows: pd.DataFrame, column: str) -> float:
    """How far a token's loudest channel stands above its median channel, mean over tokens."""
    size = rows[column].abs().groupby(rows["token"])
    return float((size.max() / size.median()).mean())


def memory_strip(rows: pd.DataFrame, step: int = 0, layer: int = 15) -> go.Figure:
    """Stored width of every token, one line a KV head: blue in high precision, orange in few bits, grey not there yet.

    rows: step, layer, head, position, text, bits. Raises ValueError for a step or layer that is not recorded.
    """
    for name, value in (("step", step), ("layer", layer)):
        if value not in set(rows[name]):
            raise ValueError(f"{name} {value} is not recorded; recorded: {sorted(set(rows[name]))}")
    at = rows[(rows["step"] == step) & (rows["layer"] == layer)]
    low, high = int(rows["bits"].min()), int(rows["bits"].max())
    grid = at.pivot(index="head", columns="position", values="bits")
    words = at[at["head"] == at["head"].min()].sort_values("position")["text"].tolist()
    remarks = [[f"position {p} {escape(repr(words[p]))}<br>KV head {h}: {int(grid.loc[h, p])} bits" for p in grid.columns] for h in grid.index]
    fig = blank(f"Every token stays, most in {low} bits (layer {layer}, {step} tokens decoded)", "position (tokens)", "KV head",
                height=260)
    fig.add_heatmap(z=(grid > low).to_numpy().astype(int), x=list(grid.columns), y=list(grid.index), zmin=-0.5, zmax=1.5,
                    text=remarks, hoverinfo="text", xgap=1, ygap=3, name="bits",
                    colorscale=[(0, ORANGE), (0.5, ORANGE), (0.5, BLUE), (1, BLUE)],
                    colorbar=color_bar("stored as", tickvals=[0, 1], ticktext=[f"{low} bits", f"{high} bits"]))
    fig.update_xaxes(range=[-0.5, int(rows["position"].max()) + 0.5], showgrid=False)
    fig.update_yaxes(dtick=1, showgrid=False, autorange="reversed")
    share = float((at["bits"] > low).mean())
    return fig.update_layout(meta={"summary": f"{len(grid.columns)} tokens in {len(grid)} KV heads of layer {layer} after {step} "
                                              f"decoded tokens: {share:.0%} in {high} bits, the others in {low}."})


def quality_against_bits(rows: pd.DataFrame, score: str = "copy") -> go.Figure:
    """Copy accuracy or loss against stored bits per number, one line a method, mean over the seeds."""
    if score not in SCORES:
        raise ValueError(f"score {score!r}: allowed are {', '.join(SCORES)}")
    at = rows.groupby(["method", "bits_per_element"], sort=False)[score].agg(["mean", "min", "max"]).reset_index()
    scale = 100 if score == "copy" else 1
    names = list(dict.fromkeys(at["method"]))
    look = styles(names, BASELINE)
    fig = blank("Few bits for every token, or all bits for few tokens", "stored bits per number (scales included)", SCORES[score])
    for name in names:
        own = at[at["method"] == name].sort_values("bits_per_element")
        fig.add_scatter(x=own["bits_per_element"], y=scale * own["mean"], name=escape(name), mode="lines+markers",
                        line=look[name].line, marker=look[name].points,
                        error_y={"type": "data", "symmetric": False, "array": scale * (own["max"] - own["mean"]),
                                 "arrayminus": scale * (own["mean"] - own["min"]), "thickness": 1})
    best = at[at["bits_per_element"] < 8].sort_values("mean", ascending=score == "nll").iloc[0]
    fig.update_xaxes(range=[2, 17])
    return fig.update_layout(meta={"summary": f"{SCORES[score]} against stored bits per number. Best below 8 bits: {best['method']} "
                                              f"at {best['bits_per_element']:.1f} bits with {scale * best['mean']:.3g}."})


def balancer_error(rows: pd.DataFrame) -> go.Figure:
    """Relative error of attention outputs when keys are quantised, with and without the balancer."""
    fig = blank("The balancer helps at every width", "bits of a key", "relative error of attention outputs", barmode="group")
    for used, color in ((False, GREY), (True, BLUE)):
        own = rows[rows["balancer"] == used].sort_values("bits")
        fig.add_bar(x=[str(b) for b in own["bits"]], y=own["error"], name="with balancer" if used else "without",
                    marker={"color": color, "pattern": {"shape": "" if used else "/"}},
                    text=[f"{e:.3g}" for e in own["error"]], textposition="outside")
    fig.update_xaxes(type="category")
    least = rows.pivot(index="bits", columns="balancer", values="error")
    gain = (1 - least[True] / least[False]).mean()
    return fig.update_layout(meta={"summary": f"Relative error of attention outputs by key width; the balancer takes away {gain:.0%} on average."})
