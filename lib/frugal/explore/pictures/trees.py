"""Trees of tokens or tasks: drafts of speculative decoding, subtasks of a reasoning trace."""

from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from ..theme import BLUE, GREEN, GREY, MARKERS, VERMILION, blank, escape

LOOKS = {"kept": (BLUE, 0), "accepted": (GREEN, 2), "pruned": (GREY, 7), "rejected": (VERMILION, 4)}


def token_tree(nodes: Sequence[Mapping[str, Any]], *, title: str, value: str = "probability", depth: str = "depth (tokens)") -> go.Figure:
    """A tree from the left to the right; colour and marker tell the state of a node, hovering its number.

    nodes: dicts with `id`, `parent` (None for a root), `text`, and if there is one `value` (a number) and `state`
    ("kept", "accepted", "pruned", "rejected" or a word of your own). A parent stands before its children.

    >>> fig = token_tree([{"id": 0, "parent": None, "text": "The"}, {"id": 1, "parent": 0, "text": " cat"},
    ...                   {"id": 2, "parent": 0, "text": " dog", "state": "pruned"}], title="Draft")
    >>> [(trace.name, list(trace.x), list(trace.y)) for trace in fig.data[1:]]
    [('kept', [0, 1], [0.5, 0.0]), ('pruned', [1], [1.0])]
    """
    if not nodes:
        raise ValueError("no nodes to draw")
    at = _places(nodes)
    lines_x: list[float | None] = []
    lines_y: list[float | None] = []
    for node in nodes:
        if node["parent"] is not None:
            (x0, y0), (x1, y1) = at[node["parent"]], at[node["id"]]
            lines_x += [x0, x0 + 0.5, x0 + 0.5, x1, None]
            lines_y += [y0, y0, y1, y1, None]
    num_leaves = 1 + max(y for _, y in at.values())
    fig = blank(title, depth, "branch", height=int(140 + max(120, min(30 * num_leaves, 700))))
    fig.add_scatter(x=lines_x, y=lines_y, mode="lines", line={"color": GREY, "width": 1}, hoverinfo="skip",
                    showlegend=False, name="edges", meta="decoration")  # fmt: skip
    states = list(dict.fromkeys(str(node.get("state", "kept")) for node in nodes))
    for i, state in enumerate(states):
        color, marker = LOOKS.get(state, (VERMILION, i + 1))
        own = [node for node in nodes if str(node.get("state", "kept")) == state]
        fig.add_scatter(
            x=[at[node["id"]][0] for node in own], y=[at[node["id"]][1] for node in own], mode="markers+text",
            text=[escape(str(node["text"]).strip() or repr(node["text"])) for node in own], textposition="top center",
            marker={"color": color, "symbol": MARKERS[marker % len(MARKERS)], "size": 9}, name=escape(state),
            hovertext=[_remark(node, value) for node in own], hoverinfo="text", cliponaxis=False,
        )  # fmt: skip
    fig.update_yaxes(visible=False, range=[num_leaves - 0.5, -0.8])
    deepest = max(x for x, _ in at.values())
    fig.update_xaxes(dtick=max(1, deepest // 12), range=[-0.4, deepest + 0.6], showgrid=False)
    rows = [[n["id"], n["parent"], str(n["text"]), n.get("value"), str(n.get("state", "kept")), at[n["id"]][0]] for n in nodes]
    table = {"columns": ["id", "parent", "text", value, "state", depth], "rows": rows}
    counts = ", ".join(f"{sum(str(n.get('state', 'kept')) == s for n in nodes)} {s}" for s in states)
    return fig.update_layout(meta={"table": table, "summary": f"{title}: a tree of {len(nodes)} nodes, {deepest + 1} deep; {counts}."})


def _remark(node: Mapping[str, Any], value: str) -> str:
    text = f"{escape(repr(node['text']))}<br>{escape(node.get('state', 'kept'))}"
    return text + (f"<br>{escape(value)}: {node['value']:.4g}" if node.get("value") is not None else "")


def _places(nodes: Sequence[Mapping[str, Any]]) -> dict[Any, tuple[int, float]]:
    """Depth and row of each node: leaves on rows of their own in order, a parent in the middle of its children."""
    depth: dict[Any, int] = {}
    children: dict[Any, list[Any]] = {}
    for node in nodes:
        key, parent = node["id"], node["parent"]
        if key in depth:
            raise ValueError(f"node {key!r} stands twice in the list")
        if parent is not None and parent not in depth:
            raise ValueError(f"node {key!r} stands before its parent {parent!r}")
        depth[key] = 0 if parent is None else depth[parent] + 1
        children[key] = []
        if parent is not None:
            children[parent].append(key)
    row: dict[Any, float] = {}
    next_leaf = 0
    stack = [(node["id"], False) for node in reversed(nodes) if node["parent"] is None]
    while stack:  # depth first without recursion: a chain may be thousands long
        key, done = stack.pop()
        if done:
            row[key] = (row[children[key][0]] + row[children[key][-1]]) / 2
        elif children[key]:
            stack.append((key, True))
            stack.extend((child, False) for child in reversed(children[key]))
        else:
            row[key] = float(next_leaf)
            next_leaf += 1
    return {key: (depth[key], row[key]) for key in depth}
