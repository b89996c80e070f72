"""`explore`: controls over recorded rows. Every combination is evaluated once, here; the page only looks it up."""

import weakref
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import pandas as pd
import plotly.graph_objects as go

from .choices import Control, controls
from .describe import figure_table
from .frontend import View, shown
from .payload import MIME, build, payload_json
from .rows import as_rows, check_recorded, failures
from .theme import TEMPLATE

WIDGET_MIME = "application/vnd.jupyter.widget-view+json"
PLOTLY_MIME = "application/vnd.plotly.v1+json"


class Explorer:
    """A figure function over recorded rows, with controls. Display it as the last line of a cell.

    In JupyterLab it is a widget that answers without the kernel; in a saved notebook it is the first figure as
    plotly JSON; the static edition rebuilds it from the payload. Its text holds the digest of all its data.
    """

    alive: ClassVar[weakref.WeakValueDictionary] = weakref.WeakValueDictionary()  # by digest; browser tests ask it

    def __init__(self, figure: Callable[..., go.Figure], rows: Any, declared: list[Control], sweep: Any = None) -> None:
        self.figure_function = figure
        self.rows = rows
        self.controls = declared
        self.payload: dict[str, Any] = build(
            figure, rows, declared, notes=lambda choices: failures(rows, choices), sweep=describe_sweep(sweep)
        )
        self.payload["template"] = TEMPLATE
        self._view: View | None = None
        self.alive[self.digest] = self

    @property
    def digest(self) -> str:
        """16 hex digits over all recorded points, floats at 6 significant digits."""
        return self.payload["digest"]

    @property
    def choices(self) -> dict[str, Any]:
        """The choices first shown."""
        return {control.name: control.values[control.initial] for control in self.controls}

    def figure(self, **choices: Any) -> go.Figure:
        """The figure at these choices; those left out are the first shown. ValueError lists the recorded values."""
        known = {control.name: control for control in self.controls}
        for name, value in choices.items():
            if name not in known:
                raise ValueError(f"no control named {name!r}; there are {', '.join(known) or 'none'}")
            choices[name] = known[name].values[known[name].index(value)]
        return self.figure_function(self.rows, **{**self.choices, **choices})

    def table(self, **choices: Any) -> pd.DataFrame:
        """The data of `figure(**choices)`."""
        return figure_table(self.figure(**choices))

    def save(self, path: Any, **choices: Any) -> Any:
        """Write the figure at these choices to .png, .svg, .csv or .json; gives the path. See `export.save`."""
        from .export import save

        return save(self, path, **choices)

    def view(self) -> View:
        """The widget; made anew if it was closed. Each place that shows it moves on its own."""
        if self._view is None or self._view.comm is None:
            self._view = View(payload=payload_json(self.payload))
        return self._view

    def __repr__(self) -> str:
        names = ", ".join(f"{c.name} ({len(c.values)})" for c in self.controls) or "no controls"
        return f"Explorer {self.payload['name']}: {names}; {len(self.payload['points'])} points; data {self.digest}"

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        view = {"version_major": 2, "version_minor": 0, "model_id": shown(self.view()).model_id}
        return {WIDGET_MIME: view, **self.saved()}

    def saved(self) -> dict[str, Any]:
        """What stays in the notebook: payload, first figure as plotly JSON, one line of text. No widget state."""
        return {MIME: self.payload, PLOTLY_MIME: fallback(self.payload), "text/plain": repr(self)}


def fallback(payload: Mapping[str, Any]) -> dict[str, Any]:
    """The first shown point as plotly JSON, for a reader of the saved notebook without a kernel."""
    from .payload import plain_json, unpack

    try:
        point = unpack(dict(payload))
    except LookupError as error:
        figure = {"data": [], "layout": {"title": {"text": str(error)}}}
    else:
        figure = {"data": plain_json(point["data"]), "layout": plain_json(point["layout"])}
    figure["layout"] = {**figure["layout"], "template": payload.get("template", TEMPLATE)}
    return {**figure, "config": {"displaylogo": False, "responsive": True, "modeBarButtonsToRemove": ["toImage"]}}


def describe_sweep(sweep: Any) -> Any:
    """The declaration that rebuilds the rows, as plain JSON: from a Sweep, a dict, or None."""
    if sweep is None or isinstance(sweep, (str, int, float, bool)):
        return sweep
    if hasattr(sweep, "declaration"):
        return describe_sweep(sweep.declaration())
    if hasattr(sweep, "__dataclass_fields__"):
        return {name: describe_sweep(getattr(sweep, name)) for name in sweep.__dataclass_fields__ if name != "cache_dir"}
    if isinstance(sweep, Mapping):
        return {str(key): describe_sweep(value) for key, value in sweep.items()}
    if isinstance(sweep, (list, tuple)):
        return [describe_sweep(value) for value in sweep]
    return getattr(sweep, "name", None) or str(sweep)


def explore(figure: Callable[..., go.Figure], rows: Any, *, sweep: Any = None, **choices: Any) -> Explorer:
    """Wire controls to a pure figure function.

    figure(rows, **choices) -> go.Figure with a title and axis titles; called once for each combination.
    rows: a tidy table (or anything else the figure reads). An `error` column marks failed runs: their remark stands
    below the figure. choices: a list of values each, or `choice(values, label, unit, default)`. Numbers make a
    slider, texts a list. The first value shown is the figure's own default for that argument, if it has one.
    sweep: the Sweep (or a dict) that rebuilds `rows`; goes into the JSON export. Default: `rows.attrs["sweep"]`.

    ValueError: empty rows, an empty list, a value the rows do not hold (the recorded ones are listed),
    more than 2,000 combinations. TypeError: the figure has no title.
    """
    rows = as_rows(rows)
    declared = controls(figure, choices)
    check_recorded(rows, declared)
    if sweep is None and isinstance(rows, pd.DataFrame):
        sweep = rows.attrs.get("sweep")
    return Explorer(figure, rows, declared, sweep)
