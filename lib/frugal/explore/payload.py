"""The payload: every recorded point of an explorer as plain JSON, each list, trace and layout stored once.

The format is described in the package docstring. Numbers keep 7 significant digits (32-bit floats or JSON text),
a relative error under 1e-6; integers stay exact.
"""

import base64
import itertools
import json
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from .choices import Control
from .describe import digest_of, figure_summary

FORMAT = "frugal-explorer/1"
MIME = "application/vnd.frugal.explorer+json"
SHORT = 8  # lists up to this length stay where they are
INT_TYPES = ("u1", "i1", "u2", "i2", "i4")


class Pool:
    """Values stored once, by their JSON text; `add` gives the place of a value."""

    def __init__(self) -> None:
        self.items: list[Any] = []
        self._places: dict[str, int] = {}

    def add(self, value: Any) -> int:
        text = json.dumps(value, separators=(",", ":"), sort_keys=True)
        if text not in self._places:
            self._places[text] = len(self.items)
            self.items.append(value)
        return self._places[text]


def build(figure: Callable[..., go.Figure], rows: Any, controls: Sequence[Control], *,
          notes: Callable[[dict], str] | None = None, sweep: Any = None, live: str | None = None) -> dict[str, Any]:
    """Evaluate `figure(rows, **choices)` at every combination of the controls and pack the results.

    A combination for which the figure raises LookupError or ValueError is kept as a missing point with the
    error's text; when all of them are missing, the first error is raised. `notes(choices)` gives a remark for a point.
    """
    arrays, traces, layouts = Pool(), Pool(), Pool()
    points: list[dict[str, Any]] = []
    facts: list[Any] = []
    first_error: Exception | None = None
    for values in itertools.product(*(control.values for control in controls)):
        choices = {control.name: value for control, value in zip(controls, values)}
        try:
            fig = figure(rows, **choices)
            check_figure(fig, figure)
        except (LookupError, ValueError) as error:
            first_error = first_error or error
            points.append({"e": error_text(error)})
            facts.append(None)
            continue
        drawn = [trace.to_plotly_json() for trace in fig.data]
        packed = [pack(trace, arrays) for trace in drawn]
        layout = {key: value for key, value in fig.layout.to_plotly_json().items() if key != "template"}
        summary = figure_summary(fig)
        point = {"t": [traces.add(trace) for trace in packed], "l": layouts.add(pack(layout, arrays)), "s": summary}
        note = " ".join(filter(None, [notes(choices) if notes else "", missing_note(drawn)]))
        points.append({**point, "n": note} if note else point)
        facts.append([drawn, summary])
    if first_error is not None and all("e" in point for point in points):
        raise first_error
    declared = [control.to_json() for control in controls]
    return {
        "format": FORMAT, "digest": digest_of([declared, facts]), "name": getattr(figure, "__name__", "figure"),
        "controls": declared, "arrays": arrays.items, "traces": traces.items, "layouts": layouts.items,
        "points": points, "sweep": sweep, "live": live,
    }  # fmt: skip


def check_figure(fig: Any, figure: Callable) -> None:
    """TypeError unless `fig` is a plotly figure with a title and a title on each axis that shows."""
    name = getattr(figure, "__name__", "figure")
    if not isinstance(fig, go.Figure):
        raise TypeError(f"{name} returned {type(fig).__name__}; a figure function returns plotly.graph_objects.Figure")
    if not fig.layout.title.text:
        raise TypeError(f"{name}: the figure has no title")
    used = {(axis, trace[f"{axis}axis"] or axis) for trace in fig.data if "x" in trace for axis in "xy"}
    for axis, where in sorted(used):
        shown = fig.layout[f"{axis}axis{where[1:]}"]
        if shown.visible is not False and shown.showticklabels is not False and not shown.title.text:
            raise TypeError(f"{name}: the {where} axis has no title; say what it shows and in which unit")


def error_text(error: Exception) -> str:
    """The message of an error without the quotes KeyError puts around it."""
    return str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error) or type(error).__name__


def missing_note(drawn: list[dict[str, Any]]) -> str:
    """How many numbers of the traces are missing (NaN; in a grid also None); "" if none.

    A trace with a `meta` ("gaps", "marginal", "decoration") is left out: its gaps are meant.
    """
    missing = total = 0
    for trace in drawn:
        values = trace.get("z", trace.get("y"))
        if values is None or isinstance(values, str) or trace.get("meta") is not None or trace.get("type") == "image":
            continue
        flat = np.asarray(values, dtype=object).reshape(-1)
        missing += sum(v != v or (v is None and "z" in trace) for v in flat)  # None in a line is a wanted gap
        total += len(flat)
    return f"{missing} of {total} values are missing and left blank." if missing else ""


def pack(value: Any, arrays: Pool) -> Any:
    """The value as plain JSON, with each long list moved to `arrays` and replaced by its place."""
    if isinstance(value, dict):
        return {key: pack(item, arrays) for key, item in value.items() if item is not None}
    if isinstance(value, np.ndarray) or isinstance(value, (list, tuple, pd.Series, pd.Index)):
        encoded = encode(value)
        if encoded is not None:
            return {"$": arrays.add(encoded)}
        items = [pack_item(item, arrays) for item in value]
        plain = all(not isinstance(item, (dict, list)) for item in items)
        return {"$": arrays.add(items)} if plain and len(items) > SHORT else items
    return pack_item(value, arrays)


def pack_item(value: Any, arrays: Pool) -> Any:
    if isinstance(value, (dict, list, tuple, np.ndarray)):
        return pack(value, arrays)
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, float):
        return float(f"{value:.7g}") if math.isfinite(value) else None
    return value if isinstance(value, (str, int, bool)) or value is None else str(value)


def encode(value: Any) -> dict[str, Any] | None:
    """A long list of numbers or of few different texts (or a rectangle of them) as base64; None where that does not
    pay or is not exact enough."""
    try:
        array = np.asarray(value)
    except ValueError:  # ragged
        return None
    if array.dtype == bool or array.ndim not in (1, 2) or array.size <= SHORT:
        return None
    if array.dtype.kind == "U":  # numpy turns numbers beside texts into texts; they must stay numbers
        array = np.asarray(value, dtype=object)
    if array.dtype == object and all(isinstance(item, str) for item in array.reshape(-1)):
        return _encode_words(array)
    if array.dtype == object:
        kinds = {type(item) for item in array.reshape(-1)}
        if not kinds <= {int, float, type(None), np.float32, np.float64, np.int64} or kinds <= {type(None)}:
            return None
        array = array.astype(float)
    if array.dtype.kind in "ui":
        kind = next((k for k in INT_TYPES if np.iinfo(k).min <= array.min() and array.max() <= np.iinfo(k).max), None)
    elif array.dtype.kind == "f":
        size = np.abs(array[np.isfinite(array) & (array != 0)])
        fits = size.size == 0 or (1e-37 < size.min() and size.max() < 3e38)
        kind = "f4" if fits and not np.isinf(array).any() else None
    else:
        kind = None
    if kind is None:
        return None
    return _packed(array, kind)


def _encode_words(array: np.ndarray) -> dict[str, Any] | None:
    """Texts of which many are equal, as numbers into a list of words; None where that saves nothing."""
    words = {word: i for i, word in enumerate(dict.fromkeys(array.reshape(-1).tolist()))}
    if len(words) > 60_000 or 3 * len(words) > array.size:
        return None
    codes = np.array([words[word] for word in array.reshape(-1).tolist()]).reshape(array.shape)
    return {**_packed(codes, "u1" if len(words) < 256 else "u2"), "words": list(words)}


def _packed(array: np.ndarray, kind: str) -> dict[str, Any]:
    data = base64.b64encode(np.ascontiguousarray(array.astype("<" + kind)).tobytes()).decode("ascii")
    return {"dtype": kind, "bdata": data, "shape": list(array.shape)}


def unpack(payload: dict[str, Any], **choices: Any) -> dict[str, Any]:
    """One point: {"data": traces, "layout", "summary", "note"} with the lists back in place (numpy where packed).

    Choices left out take their first shown value. LookupError with the reason when the point is missing.
    """
    known = {control["name"] for control in payload["controls"]}
    if set(choices) - known:
        raise ValueError(f"no control named {sorted(set(choices) - known)}; there are {sorted(known)}")
    place = 0
    for given in payload["controls"]:
        control = Control(**{**given, "values": tuple(given["values"]), "texts": tuple(given["texts"])})
        index = control.index(choices[control.name]) if control.name in choices else control.initial
        place = place * len(control.values) + index
    point = payload["points"][place]
    if "e" in point:
        raise LookupError(point["e"])
    lists = [decode(item) for item in payload["arrays"]]
    return {
        "data": [_fill(payload["traces"][i], lists) for i in point["t"]],
        "layout": _fill(payload["layouts"][point["l"]], lists), "summary": point["s"], "note": point.get("n", ""),
    }  # fmt: skip


def decode(item: Any) -> Any:
    """The reverse of `encode`; a plain list comes back as it is."""
    if not isinstance(item, dict):
        return item
    array = np.frombuffer(base64.b64decode(item["bdata"]), "<" + item["dtype"]).reshape(item["shape"])
    return np.array(item["words"], dtype=object)[array] if "words" in item else array


def _fill(value: Any, lists: list[Any]) -> Any:
    if isinstance(value, dict):
        return lists[value["$"]] if set(value) == {"$"} else {key: _fill(item, lists) for key, item in value.items()}
    return [_fill(item, lists) for item in value] if isinstance(value, list) else value


def payload_json(payload: dict[str, Any]) -> str:
    """Compact JSON that may stand inside <script>: no "<" in it."""
    text = json.dumps(payload, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def payload_html(payload: dict[str, Any]) -> str:
    """The explorer as a piece of a page; frugal.js mounts it when the page has loaded."""
    return f'<div class="frugal-explorer"><script type="application/json">{payload_json(payload)}</script></div>'


def plain_json(value: Any) -> Any:
    """Arrays as lists of numbers with 7 significant digits, NaN as null: what a notebook file can hold."""
    if isinstance(value, dict):
        return {key: plain_json(item) for key, item in value.items()}
    if isinstance(value, (list, np.ndarray)):
        return [plain_json(item) for item in (value.tolist() if isinstance(value, np.ndarray) else value)]
    return pack_item(value, Pool())
