"""Notebook -> page: explorers and figures drawn by the shared script, with the library's code folded below."""

import ast
import importlib
import inspect
import json
import re
from collections.abc import Iterator
from typing import Any

import nbformat
from nbformat import NotebookNode

from .notebooks import FIGURE_MIMES, WIDGET_MIME
from .payload import FORMAT, payload_html
from .source import Source

PAGE_LIMIT_BYTES = 3_000_000
OWN = re.compile(r"frugal\.(?!explore(\.|$))")  # the code shown below a figure: the techniques, not the widgets


def page(notebook: NotebookNode) -> NotebookNode:
    """A copy of the notebook whose figures are HTML for frugal.js. ValueError when its figures exceed 3 MB."""
    copy = nbformat.from_dict(json.loads(json.dumps(notebook)))
    names = imported(notebook)
    made: dict[str, ast.AST] = {}  # variable -> the expression it was made from
    size = 0
    for cell in copy.cells:
        if cell.cell_type != "code":
            continue
        tree = _parsed(cell.source)
        for node in tree.body:
            if isinstance(node, ast.Assign):
                made |= {target.id: node.value for target in node.targets if isinstance(target, ast.Name)}
        drawn = False
        for out in cell.outputs:
            data = out.get("data", {})
            data.pop(WIDGET_MIME, None)
            payload = as_payload(data)
            if payload is not None:
                text = payload_html(payload)
                size += len(text.encode())
                out.data = NotebookNode({"text/html": text})
                drawn = True
        if drawn:
            folded = "".join(Source(thing, folded=True).to_html() for thing in _behind(tree, names, made))
            if folded:
                cell.outputs.append(nbformat.v4.new_output("display_data", {"text/html": folded}))
    if size > PAGE_LIMIT_BYTES:
        raise ValueError(f"the page's figures hold {size / 1e6:.1f} MB of data; at most {PAGE_LIMIT_BYTES / 1e6:.0f}")
    return copy


def summary(notebook: NotebookNode, title: str, link: str) -> NotebookNode | None:
    """The one-page summary: the cells tagged `summary`, code hidden and figures left out; None if there is none."""
    cells = []
    for cell in page(notebook).cells:
        if "summary" not in cell.metadata.get("tags", []):
            continue
        if cell.cell_type == "code":
            cell.metadata.tags.append("remove-input")
            cell.outputs = [out for out in cell.outputs if "frugal-explorer" not in str(out.get("data", {}).get("text/html", ""))]
        else:
            cell.source = re.sub(r"^# +.*$", "", cell.source, flags=re.MULTILINE)
        cells.append(cell)
    if not cells:
        return None
    button = '<button type="button" class="frugal-print" onclick="window.print()">Print</button>'
    head = nbformat.v4.new_markdown_cell(f"# {title}: on one page\n\n[The whole notebook]({link}) {button}", id="summary-head")
    return nbformat.v4.new_notebook(cells=[head, *cells], metadata=notebook.metadata)


def title_of(notebook: NotebookNode, otherwise: str) -> str:
    """The first heading of the notebook."""
    found = (re.search(r"^# +(.+)$", c.source, re.MULTILINE) for c in notebook.cells if c.cell_type == "markdown")
    return next((m[1].strip() for m in found if m), otherwise)


def as_payload(data: dict[str, Any]) -> dict[str, Any] | None:
    """The payload in one output: as saved, or made from a plain plotly figure; None if it holds neither."""
    if FIGURE_MIMES[0] in data:
        return data[FIGURE_MIMES[0]]
    if FIGURE_MIMES[1] not in data:
        return None
    import plotly.graph_objects as go

    from .describe import digest, figure_summary
    from .payload import Pool, pack
    from .theme import TEMPLATE

    shown = data[FIGURE_MIMES[1]]
    fig = go.Figure(shown.get("data"), shown.get("layout"), skip_invalid=True)
    arrays = Pool()
    traces = [pack(trace.to_plotly_json(), arrays) for trace in fig.data]
    layout = fig.layout.to_plotly_json()
    layout.pop("template", None)
    layouts = [pack(layout, arrays)]
    return {"format": FORMAT, "digest": digest(fig), "name": "figure", "controls": [], "arrays": arrays.items,
            "traces": traces, "layouts": layouts, "points": [{"t": list(range(len(traces))), "l": 0, "s": figure_summary(fig)}],
            "sweep": None, "live": None, "template": TEMPLATE}  # fmt: skip


def imported(notebook: NotebookNode) -> dict[str, Any]:
    """What the notebook's names mean that it imports from frugal."""
    names: dict[str, Any] = {}
    for cell in notebook.cells:
        for node in _parsed(cell.source if cell.cell_type == "code" else "").body:
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "frugal":
                module = importlib.import_module(node.module or "frugal")
                for a in node.names:
                    if not hasattr(module, a.name):
                        importlib.import_module(f"{node.module}.{a.name}")
                    names[a.asname or a.name] = getattr(module, a.name)
            elif isinstance(node, ast.Import):
                for a in node.names:
                    if a.name.split(".")[0] == "frugal":
                        module = importlib.import_module(a.name)
                        names[a.asname or "frugal"] = module if a.asname else importlib.import_module("frugal")
    return names


def _behind(tree: ast.AST, names: dict[str, Any], made: dict[str, ast.AST]) -> list[Any]:
    """The library's functions and classes that a cell names, or that its variables were made with."""
    found: list[Any] = []
    for expression in _with_origins(tree, made, set()):
        for node in ast.walk(expression):
            thing = _resolve(node, names)
            if (inspect.isfunction(thing) or inspect.isclass(thing)) and OWN.match(thing.__module__) and thing not in found:
                found.append(thing)
    return found


def _with_origins(tree: ast.AST, made: dict[str, ast.AST], seen: set[str]) -> Iterator[ast.AST]:
    yield tree
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id in made and node.id not in seen:
            seen.add(node.id)
            yield from _with_origins(made[node.id], made, seen)


def _resolve(node: ast.AST, names: dict[str, Any]) -> Any:
    if isinstance(node, ast.Name):
        return names.get(node.id)
    if isinstance(node, ast.Attribute):
        return getattr(_resolve(node.value, names), node.attr, None)
    return None


def _parsed(source: str) -> ast.Module:
    try:
        return ast.parse(source)
    except SyntaxError:  # a cell with magics
        return ast.Module([], [])
