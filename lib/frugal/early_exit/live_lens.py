"""The live run of notebook 03: what every depth of SmolLM2 would say after each token of the reader's sentence."""
import json
from collections.abc import Callable
from importlib import resources
from typing import Any

import plotly.graph_objects as go
import torch

from frugal.core.depth import Stack
from frugal.early_exit.lenses import LogitLens, load_ridge_lens
from frugal.early_exit.workloads import SMOLLM2, model
from frugal.explore.theme import SEQUENTIAL, VERMILION, blank, color_bar, escape

SENTENCE = "The capital of France is Paris, and the capital of Italy is Rome. The sun rises in the"
ROWS = (1, 5, 10, 15, 18, 20, 21, 22, 24, 26, 27, 28, 30)        # layers run
MAX_TOKENS = 40
LENSES = ("ridge", "logit")


def lens_table(inputs: dict[str, Any], progress: Callable) -> dict[str, Any]:
    """The first choice after each token, at each depth of ROWS, and its probability: inputs["sentence"], inputs["lens"].

    "ridge" reads its own exits through the ridge lens and the other depths through the model's head; "logit" reads all
    through the head. Raises ValueError for a sentence of no token or more than 40.
    """
    lm = model(SMOLLM2)
    ids = lm.tokenizer.encode(inputs["sentence"])
    if not 1 <= len(ids) <= MAX_TOKENS:
        raise ValueError(f"the sentence has {len(ids)} tokens: give 1 to {MAX_TOKENS}")
    hidden = lm.run(torch.tensor([ids]), hidden=True, logits=False).hidden
    ridge = load_ridge_lens()
    words, chances = [], []
    for number, e in enumerate(ROWS):
        lens = ridge if inputs["lens"] == "ridge" and e in ridge.maps else LogitLens()
        top = lens.logits(Stack(lm), hidden[e], e)[0].softmax(-1).max(-1)
        words.append([lm.tokenizer.token_str(token) for token in top.indices.tolist()])
        chances.append([round(p, 4) for p in top.values.tolist()])
        progress((number + 1) / len(ROWS))
    return {"tokens": [lm.tokenizer.token_str(token) for token in ids], "rows": list(ROWS), "words": words, "chances": chances,
            "lens": inputs["lens"]}


def lens_picture(result: dict[str, Any]) -> go.Figure:
    """Depth upwards, tokens across; a cell's word is what that depth would say next, its colour how sure it is."""
    tokens, rows, words = result["tokens"], result["rows"], result["words"]
    last = words[-1]
    shown = [[_short(w) for w in line] for line in words]
    same = [[w == last[c] for c, w in enumerate(line)] for line in words]
    final = [next(e for r, e in enumerate(rows) if all(same[k][c] for k in range(r, len(rows)))) for c in range(len(tokens))]
    columns = [f"{i} {escape(_short(t))}" for i, t in enumerate(tokens)]
    fig = blank(f"What each depth would say next ({result['lens']} lens)", "token read", "layers run",
                height=150 + 24 * len(rows))
    fig.add_heatmap(
        z=result["chances"], x=columns, y=[str(e) for e in rows], colorscale=SEQUENTIAL, zmin=0, zmax=1, xgap=1, ygap=1,
        text=[[escape(w) for w in line] for line in shown], texttemplate="%{text}", textfont={"size": 10}, name="first choice",
        customdata=[["as the whole model" if s else "differs from the whole model" for s in line] for line in same],
        hovertemplate="after %{x}, %{y} layers: %{text}<br>p = %{z:.2f}, %{customdata}<extra></extra>",
        colorbar=color_bar("probability of the word"))
    fig.add_scatter(x=columns, y=[str(e) for e in final], mode="markers", name="settled from here on",
                    marker={"symbol": "square-open", "size": 24, "line": {"width": 3}, "color": VERMILION}, hoverinfo="skip")
    fig.update_xaxes(type="category", tickangle=-60, showgrid=False)
    fig.update_yaxes(type="category", categoryorder="array", categoryarray=[str(e) for e in rows], showgrid=False)
    settled = sum(final) / len(final)
    table = {"columns": ["token", *[f"{e} layers" for e in rows]],
             "rows": [[t, *[line[c] for line in words]] for c, t in enumerate(tokens)]}
    return fig.update_layout(legend={"orientation": "h", "y": 1.06, "x": 1, "xanchor": "right"}, meta={
        "table": table, "summary": f"{len(tokens)} tokens, {len(rows)} depths; the word of the whole model is settled after {settled:.1f} "
                                   f"of {rows[-1]} layers on average."})


def _short(word: str, limit: int = 9) -> str:
    word = word.replace("\n", "⏎").strip() or "␣"
    return word if len(word) <= limit else word[:limit - 1] + "…"


def recorded_table() -> dict[str, Any]:
    """The table of `SENTENCE` that recipes/record_exits.py stored: what a page without a kernel shows."""
    text = resources.files("frugal.early_exit").joinpath("assets/lens_table.json").read_text(encoding="utf-8")
    return json.loads(text)
