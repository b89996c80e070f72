"""The bridge to the page: one `Assets` model per kernel holds the shared scripts, each explorer is a small `View`.

The 1.5 MB plotly bundle goes to the page once per kernel, as the state of `Assets`; a view refers to it by its
model id. (State, not a message: a message sent while cells are running would be answered only after the last one.)
"""

import hashlib
import threading
from functools import cache
from pathlib import Path
from typing import Any

import anywidget
import ipywidgets
import traitlets

STATIC = Path(__file__).parent / "static"
SCRIPTS = ("figure.js", "frugal.js", "live.js")
PLOTLY = "plotly-cartesian.min.js"


def asset_paths() -> list[Path]:
    """The files a static page needs, in loading order: frugal.css, the plotly bundle, figure.js, frugal.js."""
    return [STATIC / name for name in ("frugal.css", PLOTLY, "figure.js", "frugal.js")]


@cache
def _texts() -> dict[str, bytes]:
    """The asset texts and a version made of all of them."""
    script = b"\n".join((STATIC / name).read_bytes() for name in SCRIPTS)
    plotly, style = (STATIC / PLOTLY).read_bytes(), (STATIC / "frugal.css").read_bytes()
    version = hashlib.sha256(script + plotly + style).hexdigest()[:12].encode()
    return {"script": script, "plotly": plotly, "style": style, "version": version}


class Assets(ipywidgets.Widget):
    """The shared scripts as one widget model without a view."""

    version = traitlets.Unicode().tag(sync=True)
    script = traitlets.Bytes().tag(sync=True)
    plotly = traitlets.Bytes().tag(sync=True)
    style = traitlets.Unicode().tag(sync=True)


_lock = threading.Lock()
_shared: Assets | None = None


def assets() -> Assets:
    """The one `Assets` of this kernel; made anew if somebody closed it (`Widget.close_all()`)."""
    global _shared
    with _lock:
        if _shared is None or _shared.comm is None:
            texts = _texts()
            _shared = Assets(
                version=texts["version"].decode(), script=texts["script"], plotly=texts["plotly"],
                style=texts["style"].decode(),
            )  # fmt: skip
        return _shared


class View(anywidget.AnyWidget):
    """The widget on the page. payload: JSON text; inputs: declarations of a live form, None for a recorded explorer.

    state: what the live form shows: {"running", "fraction", "remaining_s", "message", "bad"}.
    """

    _esm = (STATIC / "loader.js").read_text(encoding="utf-8")
    assets = traitlets.Instance(Assets).tag(sync=True, **ipywidgets.widget_serialization)
    payload = traitlets.Unicode().tag(sync=True)
    inputs = traitlets.List(allow_none=True, default_value=None).tag(sync=True)
    state = traitlets.Dict().tag(sync=True)

    def __init__(self, **state: Any) -> None:
        super().__init__(assets=assets(), **state)


_cells: dict[str, tuple[str, list[View]]] = {}  # cell id -> (id of the execution, views it has shown)


def shown(view: View) -> View:
    """Note that the running cell shows this view, and close what an earlier run of the same cell has shown.

    Without this every re-run would leave its widgets behind in the kernel and in the page's widget manager.
    """
    cell, execution = _running_cell()
    if cell is not None:
        before, views = _cells.get(cell, ("", []))
        if before != execution:
            for old in views:
                if old is not view and not any(old in others for name, (_, others) in _cells.items() if name != cell):
                    old.close()
            views = []
        _cells[cell] = (execution, [*views, view])
    return view


def _running_cell() -> tuple[str | None, str]:
    """Id of the cell that is running and of this execution of it; (None, "") outside a notebook."""
    try:
        from IPython import get_ipython

        parent = get_ipython().get_parent()
        return parent["metadata"].get("cellId"), parent["header"]["msg_id"]
    except (AttributeError, KeyError, TypeError, ImportError):
        return None, ""
