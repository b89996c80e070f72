"""Explorers: a pure figure function, a table of recorded rows, and the controls between them.

    explore(figure, rows, budget_tok=[32, 64, 128], method=["keyformer", "h2o"])   recorded: answers without the kernel
    live(run, figure, prompt=text("Prompt", "Once upon a time"))                   runs on a button, in a thread

Both evaluate `figure(rows, **choices) -> go.Figure` in Python only. What goes to the page is a *payload*, drawn by
one script (static/frugal.js) in JupyterLab and in the static edition alike.

The payload (`Explorer.payload`, a dict of plain JSON; stored in the notebook output under the MIME type
`application/vnd.frugal.explorer+json` = `payload.MIME`, beside `text/plain` with the digest):

    {"format": "frugal-explorer/1",
     "digest": "16 hex digits",              # of all recorded points, floats at 6 significant digits
     "name": "keep_map",                     # name of the figure function
     "controls": [{"name": "budget_tok", "label": "Budget", "unit": "tokens", "kind": "slider" | "select",
                   "values": [32, 64, 128], "texts": ["32", "64", "128"], "initial": 1}, ...],
     "arrays":   [[...] | {"dtype": "f4", "bdata": base64, "shape": [n] | [n, m]}, ...],   # every long list, once;
                                             # with "words": [...] the numbers are places in that list of texts
     "traces":   [plotly trace, ...],        # a long list is replaced by {"$": index into arrays}
     "layouts":  [plotly layout, ...],       # the same; the template is left out
     "points":   [{"t": [trace ids], "l": layout id, "s": summary, "n": note} | {"e": why it is missing}, ...],
     "sweep":    declaration that rebuilds the rows, or null,
     "live":     null, or the sentence on how to run this one live,
     "template": the plotly template of the house look, which the script adapts to light and dark pages}

`points` is row-major over the controls, the last one fastest: index = ((i0 * n1) + i1) * n2 + i2 ...
`unpack(payload, budget_tok=64)` (payload.py) gives {"data", "layout", "summary", "note"} of one point back in Python.

In a page (static edition): `asset_paths()` names the files to copy; load them with
`<link rel="stylesheet" href=frugal.css> <script src=...>` for each script in that order, as classic
scripts (they work on `file:` pages) and write `payload_html(payload)` where the explorer stands. It is
`<div class="frugal-explorer"><script type="application/json">...</script></div>`; frugal.js mounts all of them when
the page has loaded, or call `frugal.mount(element, payload) -> handle` by hand. The handle, also at `element.frugal`:
`handle.set(name, index)`, `handle.choices()` -> {name: value}, `handle.figure()` -> {data, layout} as drawn,
`handle.destroy()`. The handle's `ready` is a promise of the first drawing.
"""

import pandas as pd

from .choices import choice
from .describe import digest, figure_summary, figure_table
from .export import NoRenderer, save
from .frontend import asset_paths
from .inputs import file, picture, text
from .live import Cancelled, LiveExplorer, live
from .payload import MIME, payload_html, payload_json, unpack
from .recorded import Explorer, explore
from .rows import NotRecorded, select
from .source import show_source

__all__ = [
    "MIME", "Cancelled", "Explorer", "LiveExplorer", "NoRenderer", "NotRecorded", "asset_paths", "choice", "digest",
    "explore", "figure_summary", "figure_table", "file", "live", "payload_html", "payload_json", "picture", "save",
    "select", "show_source", "text", "unpack",
]  # fmt: skip

pd.set_option("styler.format.escape", "html")  # `table.style` would write a reader's text into the page as HTML
