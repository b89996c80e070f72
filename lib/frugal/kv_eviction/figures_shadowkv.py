"""Pictures of ShadowKV: singular values, attention mass caught, the fetch timeline, quality against rank and budget.

Rows: `recorded/shadow_spectrum.json`, `shadow_mass.json`, `shadow_timeline.json`, `shadow_quality.json`, written by
recipes/record_kv_pictures.py.
"""
import pandas as pd
import plotly.graph_objects as go

from frugal.core.recording import load_recorded
from frugal.explore.theme import BLUE, ORANGE, blank, styles

SCORES = {"copy": "tokens copied right (%)", "nll": "loss on the continuation (nats a token)",
          "resident": "resident bytes (% of the full cache)"}
LANES = {"rebuild K": BLUE, "fetch V": ORANGE}
RULES = {("landmark", 0): "landmarks, no outliers", ("landmark", 1): "landmarks, 1 outlier chunk",
         ("landmark", 2): "landmarks, 2 outlier chunks", ("quest", 0): "chunk minima and maxima (Quest)", ("oracle", 0): "oracle"}


def recorded(name: str) -> pd.DataFrame:
    """The recorded rows of that name. ValueError lists what is recorded."""
    return load_recorded("kv_eviction", name)


def spectrum(rows: pd.DataFrame, layer: int = 15) -> go.Figure:
    """Share of the squared norm lost at each rank, for keys before and after RoPE and values of one layer."""
    if layer not in set(rows["layer"]):
        raise ValueError(f"layer {layer} is not recorded; recorded: {sorted(set(rows['layer']))}")
    at = rows[rows["layer"] == layer]
    names = list(dict.fromkeys(at["matrix"]))
    look = styles(names, ())
    fig = blank(f"Keys before RoPE need the fewest directions (layer {layer})", "rank (of 192)", "energy lost (%)")
    for name in names:
        own = at[at["matrix"] == name].sort_values("rank")
        fig.add_scatter(x=own["rank"], y=100 * own["lost"], name=name, mode="lines", line=look[name].line)
    fig.add_vline(x=30, line={"color": "#999999", "width": 1, "dash": "dot"})
    fig.update_xaxes(range=[0, 192])
    fig.update_yaxes(range=[0, 100])
    said = "; ".join(f"{row.matrix} {100 * row.lost:.1f} %" for row in at[at["rank"] == 30].itertuples())
    return fig.update_layout(meta={"summary": f"Energy lost at rank 30 of 192 (the paper's 16 %), layer {layer}: {said}."})


def mass_caught(rows: pd.DataFrame) -> go.Figure:
    """Attention mass to older chunks that the selected ones catch, against the tokens selected."""
    look = styles(list(RULES.values()), ("oracle",))
    fig = blank("One outlier chunk is what makes landmarks work", "tokens selected, outliers included (of 1,024)",
                "attention mass caught (%)")
    for (rule, outliers), name in RULES.items():
        own = rows[(rows["rule"] == rule) & (rows["outliers"] == outliers)].sort_values("budget")
        if len(own):
            fig.add_scatter(x=own["budget"], y=100 * own["mass"], name=name, mode="lines+markers", line=look[name].line,
                            marker=look[name].points)
    fig.update_xaxes(type="log", tickvals=sorted(set(rows["budget"])))
    fig.update_yaxes(range=[0, 100])
    at = rows[rows["budget"] == 64].set_index(["rule", "outliers"])["mass"]
    said = "; ".join(f"{RULES[key]} {100 * value:.0f} %" for key, value in at.items() if key in RULES)
    return fig.update_layout(meta={"summary": f"Attention mass caught with 64 of 1,024 tokens, mean of all layers: {said}."})


def fetch_timeline(rows: pd.DataFrame, step: int = 1, layers: str = "first 6") -> go.Figure:
    """Who is busy when in one decoding step: keys are rebuilt while values are fetched; a fetch is hollow as far as
    its chunks were carried over from the step before.

    layers: "first 6" or "all". Raises ValueError for a step that is not recorded.
    """
    if step not in set(rows["step"]):
        raise ValueError(f"step {step} is not recorded; recorded: {sorted(set(rows['step']))}")
    if layers not in ("first 6", "all"):
        raise ValueError(f"layers {layers!r}: allowed are first 6, all")
    at = rows[(rows["step"] == step) & (rows["layer"] < (6 if layers == "first 6" else 10_000))]
    fig = blank(f"Rebuilding keys while values arrive (step {step})", "time since the step began (ms)", "lane", barmode="overlay",
                height=280, bargap=0.3)
    for lane, color in LANES.items():
        own = at[at["lane"] == lane]
        moved = own["rows"] / (own["rows"] + own["hits"]).clip(lower=1) if lane == "fetch V" else own["rows"] * 0 + 1
        length = 1e3 * (own["end_s"] - own["start_s"])
        start = 1e3 * own["start_s"]
        said = [f"layer {r.layer}, {lane}: {r.rows} chunks moved, {r.hits} carried over" if lane == "fetch V"
                else f"layer {r.layer}, {lane}: {r.rows} chunks" for r in own.itertuples()]
        fig.add_bar(x=length * moved, base=start, y=[lane] * len(own), orientation="h", name=lane, hovertext=said, hoverinfo="text",
                    marker={"color": color, "line": {"color": color, "width": 1}})
        if lane == "fetch V":
            fig.add_bar(x=length * (1 - moved), base=start + length * moved, y=[lane] * len(own), orientation="h",
                        name="carried over (hits)", hovertext=said, hoverinfo="text",
                        marker={"color": "rgba(0,0,0,0)", "line": {"color": color, "width": 1.5}})
    fetched = at[at["lane"] == "fetch V"]
    total = int(fetched["rows"].sum() + fetched["hits"].sum())
    share = int(fetched["hits"].sum()) / max(1, total)
    table = {"columns": ["lane", "layer", "start (ms)", "end (ms)", "chunks moved", "carried over"],
             "rows": [[r.lane, int(r.layer), 1e3 * float(r.start_s), 1e3 * float(r.end_s), int(r.rows), int(r.hits)]
                      for r in at.itertuples()]}
    return fig.update_layout(meta={"table": table, "summary": f"Step {step}: {total} value chunks wanted in {at['layer'].nunique()} layers, "
                                                              f"{share:.0%} of them carried over from the step before."})


def quality(rows: pd.DataFrame, score: str = "copy") -> go.Figure:
    """Copying, loss or resident bytes against the sparse budget, one line a rank; the full cache as a line."""
    if score not in SCORES:
        raise ValueError(f"score {score!r}: allowed are {', '.join(SCORES)}")
    scale = 1 if score == "nll" else 100
    full, own_rows = rows[rows["rank"] == 0], rows[rows["rank"] > 0]
    names = [f"rank {rank}" for rank in sorted(set(own_rows["rank"]))]
    look = styles(names, ())
    fig = blank("Rank and sparse budget", "tokens attended to beyond the exact ones (% of the prompt)", SCORES[score])
    for name in names:
        own = own_rows[own_rows["rank"] == int(name.split()[1])].sort_values("sparse")
        fig.add_scatter(x=100 * own["sparse"], y=scale * own[score], name=name, mode="lines+markers", line=look[name].line,
                        marker=look[name].points)
    if len(full):
        value = scale * float(full[score].iloc[0])
        fig.add_scatter(x=[0, 50], y=[value, value], name="full cache", mode="lines", line={"color": "#808080", "dash": "dash"})
    fig.update_xaxes(range=[0, 52])
    at = own_rows[own_rows["sparse"] == own_rows["sparse"].max()].sort_values("rank")
    said = "; ".join(f"rank {r['rank']:.0f}: {scale * r[score]:.3g}" for _, r in at.iterrows())
    return fig.update_layout(meta={"summary": f"{SCORES[score]} at a sparse budget of {100 * own_rows['sparse'].max():.0f} %: {said}."})
