"""A small notebook with every kind of explorer, for tests that need no family and no model."""

from pathlib import Path

import nbformat

SETUP = """
import time
import numpy as np, pandas as pd
from frugal.explore import choice, explore, live, picture, text
from frugal.explore.pictures import cache_map, pareto_front, token_strip
from frugal.explore.theme import blank, escape, styles
"""
RECORDED = """
METHODS = ["full", "h2o", "keyformer", "<img src=x onerror=alert(1)>"]
rows = pd.DataFrame([
    {"method": method, "budget": budget, "seed": seed, "recall": 1 - (1 - budget) ** (2 + i) + 0.01 * seed, "error": None}
    for i, method in enumerate(METHODS) for budget in (0.05, 0.1, 0.2, 0.5, 1.0) for seed in range(3)])
failed = (rows.method == "h2o") & (rows.budget == 0.1)
rows.loc[failed, ["recall", "error"]] = [np.nan, "BudgetTooSmall: 3 < 4 </script><script>alert(2)</script>"]

def recall(rows, method="keyformer", budget=0.2):
    fig = blank(f"Recall of {method}", "budget (share of the prompt)", "recall (share)")
    for name, look in styles(METHODS).items():
        if name in (method, "full"):
            own = rows[rows.method == name].groupby("budget", as_index=False).recall.mean()
            fig.add_scatter(x=own.budget, y=own.recall, name=escape(name), line=look.line, marker=look.points)
    at = rows[(rows.method == method) & (rows.budget == budget)]
    fig.add_scatter(x=at.budget, y=at.recall, name="runs", mode="markers", marker={"color": "#808080", "symbol": "x"})
    return fig.update_yaxes(range=[0, 1.1])

explore(recall, rows, method=METHODS, budget=choice([0.05, 0.1, 0.2, 0.5, 1.0], "Cache budget", texts=["5 %", "10 %", "20 %", "50 %", "100 %"]))
"""
MAP = """
held = np.tril(np.ones((24, 24)))[:, None, :].repeat(6, axis=1) > 0
for step in range(24):
    for layer in range(6):
        held[step, layer, 2: max(2, step - 3 - layer)] = False

def keep_map(held, step=12):
    return cache_map(held, step, title="What each layer still holds")

explore(keep_map, held, step=range(24))
"""
LIVE = """
def run(inputs, progress):
    words = inputs["prompt"].split()
    if "crash" in words:
        raise RuntimeError("asked to crash <b>now</b>")
    for i in range(inputs["steps"]):
        time.sleep(0.05)
        progress(i / inputs["steps"], {"words": words, "values": [i] * len(words)})
    return {"words": words, "values": [float(len(word)) for word in words], "pixels": inputs["image"]}

def strip(result):
    return token_strip(result["words"], result["values"], title="Words by length", value="length (characters)")

form = live(run, strip, recorded={"words": ["a", "recorded", "run"], "values": [1, 8, 3]},
            prompt=text("Prompt", "the quick <b>brown</b> fox"), steps=choice([4, 12, 200], "Steps", default=4),
            image=picture("Picture", value=0))
form
"""


def write(path: Path, cells: list[str] | None = None) -> Path:
    """Write the notebook, not yet run; gives its path."""
    book = nbformat.v4.new_notebook()
    book.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    sources = [SETUP, RECORDED, MAP, LIVE] if cells is None else cells
    book.cells = [nbformat.v4.new_code_cell(source.strip()) for source in sources]
    nbformat.write(book, path)
    return path
