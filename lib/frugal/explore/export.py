"""Write a figure to a file: a picture, its data, or its data with the declaration that rebuilds it."""

import json
import os
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from frugal.core.files import write_atomically

from .describe import digest, figure_summary, figure_table, figure_title
from .theme import TEMPLATE

KINDS = (".png", ".svg", ".csv", ".json")


class NoRenderer(RuntimeError):
    """Nothing on this machine can turn a figure into a picture; the message says what to install."""


def save(source: Any, path: str | os.PathLike, *, sweep: Any = None, width: int = 900, scale: Any = 2, **choices: Any) -> Path:
    """Write `source` (a figure, an Explorer or a LiveExplorer) to `path`; the suffix picks the kind. Gives the path.

    .png and .svg need the package kaleido and a Chrome or Chromium (`width` in pixels; `scale` multiplies the pixels
    of a PNG). .csv is the table of the figure. .json holds title, summary, choices, table, digest and the
    sweep declaration. choices: where an explorer's controls stand; those left out are the first shown.
    ValueError for another suffix, NoRenderer where no renderer is found. A failed write leaves no half file.
    """
    path = Path(path)
    kind = path.suffix.lower()
    if kind not in KINDS:
        raise ValueError(f"{path.name}: the suffix is one of {', '.join(KINDS)}")
    fig, facts = _figure(source, choices)
    if kind in (".png", ".svg"):
        content = render(fig, kind[1:], width=width, scale=scale)
    elif kind == ".csv":
        content = figure_table(fig).to_csv(index=False).encode()
    else:
        content = json.dumps({**facts, **({"sweep": sweep} if sweep is not None else {})}, indent=1, allow_nan=False).encode()
    return write_atomically(path, content)


def _figure(source: Any, choices: dict[str, Any]) -> tuple[go.Figure, dict[str, Any]]:
    """The figure and what the JSON says about it."""
    name, rebuilt_by = "figure", None
    if isinstance(source, go.Figure):
        if choices:
            raise ValueError(f"a plain figure has no controls, got {sorted(choices)}")
        fig = source
    else:
        fig = source.figure(**choices)
        name, rebuilt_by = source.payload["name"], source.payload["sweep"]
        choices = {**source.choices, **choices}
    table = figure_table(fig)
    cells = json.loads(table.to_json(orient="split", index=False, double_precision=15))
    facts = {"figure": name, "title": figure_title(fig), "summary": figure_summary(fig), "choices": choices,
             "digest": digest(fig), "table": {"columns": cells["columns"], "rows": cells["data"]}, "sweep": rebuilt_by}  # fmt: skip
    return fig, facts


def render(fig: go.Figure, kind: str, width: int = 900, scale: Any = 2) -> bytes:
    """A PNG or SVG on white ground. NoRenderer says what to install when it cannot be made here."""
    remedy = ("Pictures need the package kaleido (pip install \"frugal[export]\") and Chrome or Chromium "
              "(Debian: apt-get install chromium). In the notebook, the buttons PNG and SVG below a figure need neither.")  # fmt: skip
    try:
        import kaleido  # noqa: F401
    except ImportError as error:
        raise NoRenderer(f"kaleido is not installed. {remedy}") from error
    printed = go.Figure(fig)
    printed.update_layout(template=TEMPLATE, paper_bgcolor="#ffffff", plot_bgcolor="#ffffff")
    try:
        return printed.to_image(format=kind, width=width, height=fig.layout.height or 400, scale=scale if kind == "png" else 1)
    except Exception as error:  # kaleido wraps a missing or broken browser in several types of its own
        raise NoRenderer(f"the picture could not be drawn ({type(error).__name__}: {str(error)[:200]}). {remedy}") from error
