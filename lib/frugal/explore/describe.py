"""What a figure says, without looking at it: a sentence, a table, and a digest of its data."""

import base64
import hashlib
import io
import json
import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from .theme import plain

GRIDS = ("heatmap", "contour", "histogram2d")


def figure_title(fig: go.Figure) -> str:
    """The title as plain text; "" if the figure has none."""
    return plain(fig.layout.title.text or "")


def axis_title(fig: go.Figure, trace: Any, axis: str) -> str:
    """Title of the x or y axis a trace is drawn on, as plain text, e.g. "budget (tokens)"."""
    name = getattr(trace, f"{axis}axis", None) or axis
    layout_axis = fig.layout[f"{axis}axis{name[1:]}"]
    return plain(layout_axis.title.text or axis) if layout_axis is not None else axis


def figure_table(fig: go.Figure) -> pd.DataFrame:
    """The figure's data, one row a point: series, x, y, and z, interval or text where the figure has them.

    A figure can bring its own table as `fig.layout.meta = {"table": {"columns": [...], "rows": [...]}}`.
    The page makes the same table from the payload (`tableOf` in frugal.js); a browser test compares the two.
    """
    own = (fig.layout.meta or {}).get("table") if isinstance(fig.layout.meta, dict) else None
    if own is not None:
        return pd.DataFrame(own["rows"], columns=own["columns"])
    tables = [_trace_table(fig, i, trace) for i, trace in enumerate(fig.data) if _in_table(trace)]
    tables = [table for table in tables if len(table)]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame({"series": []})


def _in_table(trace: Any) -> bool:
    """Decoration (a trace with meta "decoration") is not data."""
    return trace.meta != "decoration" and trace.visible is not False


def _trace_table(fig: go.Figure, index: int, trace: Any) -> pd.DataFrame:
    x_name, y_name = axis_title(fig, trace, "x"), axis_title(fig, trace, "y")
    if x_name == y_name:
        x_name, y_name = x_name + " (x)", y_name + " (y)"
    series = plain(trace.name) if trace.name else f"series {index + 1}"
    if trace.type in GRIDS:
        return _grid_table(trace, series, x_name, y_name)
    columns: dict[str, Any] = {}
    for name, values in ((x_name, _values(trace, "x")), (y_name, _values(trace, "y"))):
        if values is not None:
            columns[name] = [_cell(value) for value in values]
    if not columns:
        return pd.DataFrame({"series": []})
    length = max(len(values) for values in columns.values())
    columns = {name: values + [None] * (length - len(values)) for name, values in columns.items()}
    error = getattr(trace, "error_y", None)
    if error is not None and error.array is not None:
        upper = list(error.array)
        lower = list(error.arrayminus) if error.arrayminus is not None else upper
        columns[f"{y_name}, low"] = [_sub(y, e) for y, e in zip(columns[y_name], lower)]
        columns[f"{y_name}, high"] = [_sub(y, e, -1) for y, e in zip(columns[y_name], upper)]
    text = _values(trace, "text")
    if text is not None and not isinstance(text, str) and len(text) == length:
        columns["text"] = [plain(t) for t in text]
    return pd.DataFrame({"series": [series] * length, **columns})


def _grid_table(trace: Any, series: str, x_name: str, y_name: str) -> pd.DataFrame:
    grid = np.asarray(trace.z, dtype=object)
    rows, cols = grid.shape if grid.ndim == 2 else (0, 0)
    x = list(trace.x) if trace.x is not None else list(range(cols))
    y = list(trace.y) if trace.y is not None else list(range(rows))
    z_name = plain(trace.colorbar.title.text or "value")
    return pd.DataFrame({
        "series": [series] * (rows * cols),
        x_name: [_cell(x[c]) for _ in range(rows) for c in range(cols)],
        y_name: [_cell(y[r]) for r in range(rows) for _ in range(cols)],
        z_name: [_cell(value) for value in grid.reshape(-1)],
    })


def _values(trace: Any, name: str) -> Any:
    return trace[name] if name in trace else None


def _cell(value: Any) -> Any:
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, str):
        return plain(value)
    return None if isinstance(value, float) and math.isnan(value) else value


def _sub(value: Any, error: Any, sign: int = 1) -> Any:
    return None if value is None or error is None else value - sign * error


def figure_summary(fig: go.Figure) -> str:
    """One sentence for a reader who cannot see the figure: kind, axes, series and the range of each.

    A figure can bring its own as `fig.layout.meta = {"summary": "..."}`.
    """
    meta = fig.layout.meta if isinstance(fig.layout.meta, dict) else {}
    if meta.get("summary"):
        return str(meta["summary"])
    title = figure_title(fig) or "Figure"
    shown = [trace for trace in fig.data if _in_table(trace)]
    if not shown:
        return f"{title}: nothing to draw."
    first = shown[0]
    if first.type in GRIDS:
        grid = np.asarray(first.z, dtype=float)
        what = plain(first.colorbar.title.text or "value")
        return (f"{title}: {what} by {axis_title(fig, first, 'x')} and {axis_title(fig, first, 'y')}, "
                f"{grid.shape[0]} rows of {grid.shape[1]}, {_range(grid.reshape(-1))}.")  # fmt: skip
    parts = []
    for i, trace in enumerate(shown[:6]):
        name = plain(trace.name) if trace.name else f"series {i + 1}"
        across = "x" if getattr(trace, "orientation", None) == "h" else "y"
        parts.append(f"{name} {_range(_values(trace, across))}")
    more = f" and {len(shown) - 6} more" if len(shown) > 6 else ""
    return (f"{title}: {axis_title(fig, first, 'y')} against {axis_title(fig, first, 'x')}; "
            f"{'; '.join(parts)}{more}.")  # fmt: skip


def _range(values: Iterable | None) -> str:
    numbers = [float(v) for v in (values if values is not None else []) if isinstance(v, (int, float, np.number))]
    finite = [v for v in numbers if math.isfinite(v)]
    missing = len(numbers) - len(finite)
    note = f" ({missing} missing)" if missing else ""
    if not finite:
        return "without numbers" + note
    low, high = min(finite), max(finite)
    if len(finite) == 1 or low == high:
        return f"at {low:.3g}{note}"
    return f"from {low:.3g} to {high:.3g}{note}"


def digest(fig: go.Figure) -> str:
    """16 hex digits of the figure: traces, title and axis titles, floats at 6 significant digits.

    Equal on every machine where the numbers agree to 6 digits; the look (template, margins, fonts) does not enter.
    """
    layout = fig.layout.to_plotly_json()
    words = {"title": figure_title(fig), "axes": sorted(
        (key, str((value.get("title") or {}).get("text"))) for key, value in layout.items() if "axis" in key)}
    return digest_of([[trace.to_plotly_json() for trace in fig.data], words])


def digest_of(data: Any) -> str:
    """16 hex digits of any plain data, floats at 6 significant digits, pictures by their pixels."""
    text = json.dumps(canonical(data), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def canonical(value: Any) -> Any:
    """The value as JSON whose text depends on nothing but its meaning."""
    if isinstance(value, dict):
        return {str(key): canonical(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return canonical(value.tolist())
    if isinstance(value, (list, tuple, pd.Series, pd.Index)):
        return [canonical(item) for item in value]
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, float):
        number = f"{value:.6g}" if math.isfinite(value) else "NaN"
        return "0" if number == "-0" else number
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, int):
        return f"{value:.6g}"  # 3 and 3.0 are the same number
    if isinstance(value, str) and value.startswith("data:image/png;base64,"):
        return _pixels(value)
    return str(value)


def _pixels(uri: str) -> str:
    """Digest of the decoded picture: PNG bytes differ between builds of zlib, pixels do not."""
    from PIL import Image

    with Image.open(io.BytesIO(base64.b64decode(uri.split(",", 1)[1]))) as image:
        return f"{image.size}{hashlib.sha256(image.convert('RGBA').tobytes()).hexdigest()}"
