"""One look for every figure: colours a colour-blind reader can tell apart, and never colour alone.

Source: the eight colours of Okabe and Ito, "Color Universal Design" (2008), in an order that puts the
strongest contrasts first; their black, which is lost on a dark page, is a mid grey here and stands for baselines.
"""

from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

BLUE, ORANGE, GREEN, VERMILION = "#0072B2", "#E69F00", "#009E73", "#D55E00"
PURPLE, SKY, YELLOW, GREY = "#CC79A7", "#56B4E9", "#F0E442", "#808080"
PALETTE = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, YELLOW)
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
MARKERS = ("circle", "square", "diamond", "triangle-up", "x", "star", "cross", "triangle-down")
SEQUENTIAL = "Cividis"  # even lightness steps, made for colour-blind readers
DIVERGING = ((0.0, BLUE), (0.5, "#f2f2f2"), (1.0, VERMILION))
BASELINES = ("full", "random", "window")  # drawn in grey, so that the methods stand out


@dataclass(frozen=True)
class Style:
    """How one series is drawn: colour, dash and marker always change together."""

    color: str
    dash: str
    marker: str

    @property
    def line(self) -> dict[str, Any]:
        return {"color": self.color, "dash": self.dash, "width": 2}

    @property
    def points(self) -> dict[str, Any]:
        return {"color": self.color, "symbol": self.marker, "size": 8}


def style(index: int, baseline: bool = False) -> Style:
    """Style of series number `index` (from 0); no two of the first 42 are alike. Baselines are grey."""
    color = GREY if baseline else PALETTE[index % len(PALETTE)]
    return Style(color, DASHES[index % len(DASHES)], MARKERS[index % len(MARKERS)])


def styles(names: list[str], baselines: tuple[str, ...] = BASELINES) -> dict[str, Style]:
    """Style of each name, fixed by its place in the list, so that a method looks the same in every figure.

    >>> styles(["keyformer", "full"])["full"].color
    '#808080'
    """
    return {name: style(i, name in baselines) for i, name in enumerate(names)}


TEMPLATE: dict[str, Any] = {
    "layout": {
        "colorway": list(PALETTE),
        "font": {"family": "system-ui, sans-serif", "size": 13, "color": "#222222"},
        "title": {"x": 0, "xref": "paper", "xanchor": "left", "y": 1, "yref": "container", "yanchor": "top", "pad": {"t": 14},
                  "font": {"size": 16}},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "margin": {"l": 64, "r": 24, "t": 56, "b": 52},
        "xaxis": {"automargin": True, "zeroline": False, "gridcolor": "#e5e5e5", "linecolor": "#999999",
                  "title": {"font": {"size": 13}, "standoff": 10}},
        "yaxis": {"automargin": True, "zeroline": False, "gridcolor": "#e5e5e5", "linecolor": "#999999",
                  "title": {"font": {"size": 13}, "standoff": 10}},
        "modebar": {"bgcolor": "rgba(0,0,0,0)"},
        "legend": {"bgcolor": "rgba(0,0,0,0)"},
        "colorscale": {"sequential": "Cividis", "sequentialminus": "Cividis"},
        "hoverlabel": {"align": "left"},
    }
}


def blank(title: str, x: str, y: str, **layout: Any) -> go.Figure:
    """An empty figure in the house look. `x` and `y` are axis titles with their unit, e.g. "budget (tokens)".

    >>> blank("Kept", x="budget (tokens)", y="recall (share)").layout.yaxis.title.text
    'recall (share)'
    """
    axes = {"xaxis": {"title": {"text": escape(x)}}, "yaxis": {"title": {"text": escape(y)}}}
    fig = go.Figure(layout={"template": TEMPLATE, "title": {"text": escape(title)}, **axes})
    return fig.update_layout(**layout) if layout else fig


def color_bar(value: str, **more: Any) -> dict[str, Any]:
    """A slim colour bar titled with the value and its unit."""
    title = {"text": escape(value), "side": "right", "font": {"size": 12}}
    return {"title": title, "thickness": 12, "outlinewidth": 0, "tickfont": {"size": 12}, **more}


def records(table: Any) -> list[dict[str, Any]]:
    """A table (or a list of dicts) as a list of dicts."""
    return table.to_dict("records") if hasattr(table, "to_dict") else [dict(row) for row in table]


def escape(value: Any) -> str:
    """Text that plotly shows as it is. Plotly reads <b>, <a href>, &amp; and $math$ in labels; data must not.

    >>> escape("<b>5 < 6</b>")
    '&lt;b&gt;5 &lt; 6&lt;/b&gt;'
    """
    return (
        str(value)
        .replace("&", "&amp;")
        .replace("<", "&lt;")
        .replace(">", "&gt;")
        .replace("$", "&#36;")
        .replace("%{", "%&#123;")
    )


def plain(text: Any) -> str:
    """The reverse of `escape`, for tables and summaries; a line break of ours (<br>) becomes a blank."""
    text = str(text).replace("<br>", " ").replace("&#123;", "{").replace("&#36;", "$")
    return text.replace("&gt;", ">").replace("&lt;", "<").replace("&amp;", "&")
