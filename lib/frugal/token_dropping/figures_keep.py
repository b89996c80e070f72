"""Pictures of a scene: what a method keeps of each view, the CLS maps behind it, the tiles' budgets; and the scenes themselves.

Panels of `keep_picture`: the scene with the tiles' patches, the overview with its own, the overview's first-layer CLS
map (which shares out the budget), the tiles' last-layer CLS maps (which pick the tokens), and tokens a view.
"""
import base64
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
import torch
from jaxtyping import Int
from PIL import Image
from torch import Tensor

from frugal.data.scenes import GRID as CELLS
from frugal.data.scenes import SIDE, VIEW, Scene, SceneConfig, make_scene
from frugal.explore.theme import BLUE, ORANGE, SEQUENTIAL, VERMILION, blank, escape
from frugal.models.mini_vlm import Grid
from frugal.token_dropping.hired import HiRED, allocate_budget
from frugal.token_dropping.keeping import top_per_view

FADED = [[0, "rgba(90,90,90,0)"], [1, "rgba(90,90,90,0.6)"]]
VIEWS = ("overview", "tile 1", "tile 2", "tile 3", "tile 4")
PANELS = {
    "tiles: kept patches": (0, 0.3), "overview: kept patches": (0.325, 0.15), "overview's CLS, layer 1": (0.5, 0.15),
    "tiles' CLS, last layer": (0.675, 0.17), "tokens a view": (0.91, 0.09)
} # panel -> left edge and width


def keep_picture(data: dict[str, Any], scene: str = "1", budget: float = 0.2, alpha: float = 0.5) -> go.Figure:
    """What HiRED keeps of a recorded scene (its number, from 1, as text), and why.

    data: {"scenes": [{"image", "overview": PNG as text, "names", "first", "last": (5, 64) CLS attention, "captions":
    {"budget alpha": names}, "full": names}], "grid": [...]}, as recipes/record_token_dropping.py writes it.
    """
    own, grid = data["scenes"][int(scene) - 1], Grid(*data["grid"])
    first, last = (torch.tensor(own[name]) for name in ("first", "last"))
    count = int(budget * grid.num_tokens + 1e-9)
    budgets = allocate_budget(first[0], grid, count, alpha, HiRED().score)
    kept = top_per_view(last[None], budgets[None])[0]
    said = own["captions"].get(f"{budget:g} {alpha:g}", own["full"] if budget == 1 else [])
    right = len(set(said) & set(own["names"]))
    fig = kept_figure(
        own["image"], own["overview"], kept, grid, f"{count} of {grid.num_tokens} tokens: the caption names {right} of "
        f"{len(set(own['names']))} objects")
    size = grid.tokens_per_view
    for panel, values, name in ((3, first[0].view(grid.patch_rows, -1), "overview, first layer"),
                                (4, assembled(last[1:], grid), "tiles, last layer")):
        fig.add_heatmap(z=[[round(float(v), 4) for v in row] for row in values], colorscale=SEQUENTIAL, showscale=False,
                        name=name, xaxis=f"x{panel}", yaxis=f"y{panel}",
                        hovertemplate=f"{name}: %{{z:.3f}}<extra></extra>")
    fig.add_bar(x=["ov", "1", "2", "3", "4"], y=budgets.tolist(), xaxis="x5", yaxis="y5",
                marker={"color": [ORANGE] + [BLUE] * 4}, name="tokens",
                hovertext=[f"{view}: {n} tokens" for view, n in zip(VIEWS, budgets.tolist())], hoverinfo="text")
    fig.update_layout(yaxis5={"range": [0, size], "title": {"text": "tokens"}},
                      xaxis5={"type": "category", "title": {"text": "view"}})
    arrange(fig, PANELS, 430)
    table = {"columns": ["view", "tokens"], "rows": [[view, int(n)] for view, n in zip(VIEWS, budgets)]}
    counts = ", ".join(f"{view} {int(n)}" for view, n in zip(VIEWS, budgets))
    _caption(fig, said, own["names"])
    return fig.update_layout(
        meta={
            "table": table,
            "summary": f"HiRED keeps {count} of {grid.num_tokens} tokens with alpha {alpha:g}: {counts}. "
            f"The scene holds {', '.join(own['names'])}; the caption says {', '.join(said) or 'nothing'}."
        })


def kept_figure(image: str, overview: str, kept: Int[Tensor, " k"], grid: Grid, title: str) -> go.Figure:
    """Scene and overview side by side; dropped patches fade, kept ones are outlined. image, overview: PNG as text."""
    fig = blank(title, "", "")
    mask = torch.zeros(grid.num_tokens, dtype=torch.bool)
    mask[kept[kept >= 0]] = True
    views = mask.view(grid.num_views, grid.patch_rows, grid.patch_cols)
    for panel, picture, shown in ((1, image, assembled(views[1:].flatten(1), grid)), (2, overview, views[0])):
        at = {"xaxis": f"x{panel}" if panel > 1 else "x", "yaxis": f"y{panel}" if panel > 1 else "y"}
        rows, cols = shown.shape
        side = 100 / rows                                                 # both panels are 100 units wide
        fig.add_trace(
            go.Image(source=picture, x0=0, y0=0, dx=100 / _width(picture), dy=100 / _width(picture), hoverinfo="skip",
                     **at))
        centres = [(i + 0.5) * side for i in range(rows)]
        fig.add_heatmap(z=(~shown).int().tolist(), x=centres, y=centres, colorscale=FADED, zmin=0, zmax=1,
                        showscale=False, hoverinfo="skip", name="dropped", **at)
        xs, ys = [], []
        for r, c in shown.nonzero().tolist():
            left, top = c * side, r * side
            xs += [left, left + side, left + side, left, left, None]
            ys += [top, top, top + side, top + side, top, None]
        fig.add_scatter(x=xs or [None], y=ys or [None], mode="lines", line={"color": VERMILION, "width": 1},
                        hoverinfo="skip", name="kept", showlegend=False, meta="decoration", **at)
    return fig


def assembled(tiles: Tensor, grid: Grid) -> Tensor:
    """Maps of the tiles (T, v) put together as the scene: (tile_rows * patch_rows, tile_cols * patch_cols)."""
    maps = tiles.view(grid.tile_rows, grid.tile_cols, grid.patch_rows, grid.patch_cols)
    return maps.permute(0, 2, 1, 3).reshape(grid.tile_rows * grid.patch_rows, -1)


def arrange(fig: go.Figure, panels: dict[str, tuple], height: int) -> None:
    """Panels from the left to the right, each with its title above; pictures and maps are square and hang from the top.

    panels: title -> (left edge, width) as shares of the figure; "tokens a view" is an ordinary chart.
    """
    for i, (title, (left, width)) in enumerate(panels.items(), 1):
        end = "" if i == 1 else str(i)
        across = {"domain": [left, left + width], "anchor": f"y{end}", "showgrid": False}
        down = {"anchor": f"x{end}", "showgrid": False, "domain": [0.45, 1]}
        if title != "tokens a view":
            across |= {"showticklabels": False, "ticks": "", "zeroline": False, "constrain": "domain", "side": "top",
                       "title": {"text": escape(title)}}
            down |= {"visible": False, "autorange": "reversed", "scaleanchor": f"x{end}", "constrain": "domain",
                     "constraintoward": "top", "domain": [0, 1]}
        fig.update_layout(**{f"xaxis{end}": across, f"yaxis{end}": down})
    fig.update_layout(height=height, showlegend=False, margin={"l": 8, "r": 8, "t": 74, "b": 40})


def _caption(fig: go.Figure, said: Sequence[str], names: Sequence[str]) -> None:
    """The caption below the pictures, false names marked."""
    words = " ".join(escape(word) if word in names else f"<s>{escape(word)}</s> (not there)"
                     for word in said) or "(nothing)"
    fig.add_annotation(text=f"caption: {words}", x=0, y=-0.02, xref="paper", yref="paper", showarrow=False,
                       xanchor="left", yanchor="top", font={"size": 13})


def png(pixels: np.ndarray | Image.Image) -> str:
    """A picture as PNG text."""
    data = io.BytesIO()
    (pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)).save(data, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(data.getvalue()).decode("ascii")


def _width(uri: str) -> int:
    with Image.open(io.BytesIO(base64.b64decode(uri.split(",", 1)[1]))) as picture:
        return picture.width


def overview_of(image: np.ndarray) -> np.ndarray:
    """The overview as the encoder sees it: 2 x 2 averages, uint8."""
    blocks = image.reshape(VIEW, 2, VIEW, 2, 3).astype(np.float64)
    return np.round(blocks.mean((1, 3))).astype(np.uint8)


def scene_viewer(seeds: Sequence[int], seed: int = 0, view: str = "scene") -> go.Figure:
    """One scene of the generator with a box and a name for each object, as a whole or as the overview shows it.

    seeds: what the control offers. view: "scene" or "overview".
    """
    if seed not in seeds or view not in ("scene", "overview"):
        raise ValueError(
            f"seed {seed}, view {view!r}: allowed are seeds {', '.join(map(str, seeds))} and scene, overview")
    scene = make_scene(seed, SceneConfig())
    pixels = scene.image if view == "scene" else overview_of(scene.image)
    picture, step = png(pixels), SIDE / len(pixels)
    fig = blank(f"Scene {seed}: {len(scene.objects)} objects, the {view} of {len(pixels)} x {len(pixels)} px", "", "",
                height=470, showlegend=False)
    fig.add_trace(go.Image(source=picture, x0=step / 2, y0=step / 2, dx=step, dy=step, hoverinfo="skip"))
    _boxes(fig, scene)
    edges = [k * SIDE / CELLS for k in range(1, CELLS)]
    fig.update_layout(shapes=[{
        "type": "line", "x0": e, "x1": e, "y0": 0, "y1": SIDE,
        "line": {"color": "#999999", "width": 0.5, "dash": "dot"}
    } for e in edges] + [{
        "type": "line", "y0": e, "y1": e, "x0": 0, "x1": SIDE,
        "line": {"color": "#999999", "width": 0.5, "dash": "dot"}
    } for e in edges])
    fig.update_xaxes(visible=False, range=[0, SIDE], constrain="domain")
    fig.update_yaxes(visible=False, range=[SIDE, 0], scaleanchor="x", constrain="domain")
    rows = [[thing.name, thing.theme, thing.place, thing.side] for thing in scene.objects]
    return fig.update_layout(
        meta={
            "table": {"columns": ["name", "theme", "place", "side (px)"], "rows": rows}, "summary": f"Scene {seed}: " +
            ", ".join(f"{n} of {s} px at {p}" for n, _, p, s in rows) + "."
        })


def _boxes(fig: go.Figure, scene: Scene) -> None:
    xs, ys = [], []
    for x0, y0, x1, y1 in (thing.box for thing in scene.objects):
        xs += [x0, x1, x1, x0, x0, None]
        ys += [y0, y0, y1, y1, y0, None]
    fig.add_scatter(x=xs, y=ys, mode="lines", line={"color": VERMILION, "width": 1}, hoverinfo="skip", name="boxes",
                    meta="decoration")
    fig.add_scatter(x=[(t.box[0] + t.box[2]) / 2 for t in scene.objects], y=[t.box[1] for t in scene.objects],
                    mode="text", text=[f"{escape(t.name)} ({t.side} px)"
                                       for t in scene.objects], textposition="top center", name="objects",
                    cliponaxis=False, textfont={"color": "#222222"}, hoverinfo="skip")
