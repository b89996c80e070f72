"""A board of small pictures with captions: reconstructions at several budgets, samples of a generator."""

import base64
import io
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from PIL import Image

from ..theme import blank, escape


ROW = 1.22  # height of a row, caption included, in picture widths
STEPS = np.round(np.round(np.arange(256) / 255 * 63) / 63 * 255).astype(np.uint8)  # each of 256 levels on the nearest of 64


def image_board(images: Iterable, captions: Sequence[str], *, title: str, columns: int = 8,
                values: Iterable | None = None, value: str = "value") -> go.Figure:
    """Pictures in rows of `columns`, each with its caption, pixels shown as they are (no smoothing; 64 steps a colour channel).

    images: PIL pictures, or arrays (height, width) or (height, width, 3 or 4), uint8, or floats from 0 to 1.
    values: a number for each, for hovering and the table; `value` says what it is, with its unit.

    >>> board = image_board([np.zeros((8, 8, 3)), np.ones((8, 8, 3))], ["black", "white"], title="Two")
    >>> [note.text for note in board.layout.annotations], len(board.layout.images)
    (['black', 'white'], 2)
    """
    pictures = [as_picture(image) for image in images]
    numbers = [None] * len(pictures) if values is None else [float(v) for v in values]
    if not pictures:
        raise ValueError("no pictures to draw")
    if not len(captions) == len(numbers) == len(pictures):
        raise ValueError(f"{len(pictures)} pictures, {len(captions)} captions, {len(numbers)} values: give one of each")
    columns = min(columns, len(pictures))
    num_rows = math.ceil(len(pictures) / columns)
    fig = blank(title, "", "", height=int(72 + num_rows * ROW * min(150, 900 / columns)), showlegend=False)
    places = [(i % columns, ROW * (i // columns)) for i in range(len(pictures))]
    fig.add_scatter(
        x=[x + 0.5 for x, _ in places], y=[y + 0.5 for _, y in places], mode="markers", meta="decoration",
        marker={"size": 40, "opacity": 0}, hoverinfo="text",
        hovertext=[escape(c) + ("" if n is None else f"<br>{escape(value)}: {n:.4g}") for c, n in zip(captions, numbers)],
    )  # fmt: skip
    for (x, y), picture, caption in zip(places, pictures, captions):
        fig.add_layout_image(source=_uri(picture), xref="x", yref="y", x=x + 0.04, y=y + 0.02, sizex=0.92, sizey=0.92,
                             sizing="contain", layer="below")  # fmt: skip
        fig.add_annotation(x=x + 0.5, y=y + 0.95, text=escape(caption), showarrow=False, yanchor="top", font={"size": 11})
    fig.update_xaxes(visible=False, range=[0, columns], fixedrange=True)
    fig.update_yaxes(visible=False, range=[ROW * num_rows, 0], fixedrange=True)
    fig.update_layout(margin={"l": 8, "r": 8, "b": 4})
    rows = [[i, c, *picture.size, n] for i, (c, picture, n) in enumerate(zip(captions, pictures, numbers))]
    table = {"columns": ["place", "caption", "width (px)", "height (px)", value], "rows": rows}
    names = ", ".join(str(c) for c in list(captions)[:8]) + (" and more" if len(captions) > 8 else "")
    return fig.update_layout(meta={"table": table, "summary": f"{title}: {len(pictures)} pictures: {names}."})


def as_picture(image: Any) -> Image.Image:
    """A PIL picture from a picture or an array. ValueError for a shape or a range that is none."""
    if isinstance(image, Image.Image):
        return image.convert("RGB")
    array = np.asarray(image)
    if array.ndim not in (2, 3) or 0 in array.shape or (array.ndim == 3 and array.shape[2] not in (3, 4)):
        raise ValueError(f"shape {array.shape} is no picture; expected (height, width) or (height, width, 3 or 4)")
    if array.dtype != np.uint8:
        array = array.astype(float)
        if not np.isfinite(array).all() or array.min() < -1e-6 or array.max() > 1 + 1e-6:
            raise ValueError("a picture of floats has values from 0 to 1 and no NaN")
        array = np.round(np.clip(array, 0, 1) * 255).astype(np.uint8)
    return Image.fromarray(array).convert("RGB")


def _uri(picture: Image.Image, side: int = 64) -> str:
    """A PNG as text. Small pictures are enlarged pixel by pixel, because browsers smooth them otherwise; colours have 64
    steps a channel, which nobody sees and which makes files a quarter smaller."""
    factor = max(1, side // max(picture.size))
    picture = Image.fromarray(STEPS[np.asarray(picture)])
    picture = picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
    data = io.BytesIO()
    picture.save(data, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(data.getvalue()).decode("ascii")
