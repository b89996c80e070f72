"""A small notebook source that keeps every rule, and a toy family with exercises and figures; for tests only."""

import sys
import types
from pathlib import Path

import nbformat

from frugal.explore import notebooks
from frugal.explore.exercises import Exercise, equal, wrong

SOURCE = '''# %% [markdown]
# # A toy notebook
#
# One equation: $a^2 + b^2 = c^2$.

# %%
import pandas as pd
import plotly.graph_objects as go

from frugal.core.budgets import resolve
from frugal.explore import explore

# %% [markdown]
# ## Try it

# %%
METHODS = ["full", "<img src=x onerror=alert(1)>"]
rows = pd.DataFrame([{"method": m, "budget_tok": b, "loss": 10 / resolve(b, 200) + i}
                     for i, m in enumerate(METHODS) for b in (32, 64, 128)])

def losses(rows, method="full", budget_tok=64):
    some = rows[(rows.method == method) & (rows.budget_tok == budget_tok)]
    fig = go.Figure(go.Bar(x=["loss", "twice"], y=[some.loss.item(), 2 * some.loss.item()]))
    return fig.update_layout(title="Loss </script><script>alert(2)</script>", xaxis_title="which", yaxis_title="loss (nats)")

picture = explore(losses, rows, method=METHODS, budget_tok=[32, 64, 128])
picture

# %%
print(picture.digest)

# %%
rows.style.format(escape="html").hide(axis="index")

# %%
rows.groupby("budget_tok").loss.mean().round(2)

# %% tags=["nbval-ignore-output", "reason: wall-clock time"]
import time

print(time.perf_counter())

# %% [markdown] tags=["discussion"]
# ## Discussion
#
# 1. Why?
# <details><summary>Answer</summary>Because secretanswer.</details>
#
# 2. How?
# <details><summary>Answer</summary>So.</details>
#
# 3. When?
# <details><summary>Answer</summary>Now.</details>

# %% [markdown] tags=["summary"]
# ## Summary
#
# - Loss falls with $1/b$.
'''

EXERCISE_CELLS = '''
# %% [markdown]
# ## Exercises

# %%
from frugal.toy_family import exercises as ex

# %%
ex.keep

# %%
{stub}


ex.keep.check(keep)
'''

STUB = "def keep(num_slots: int, budget: int, sinks: int = 2) -> list[int]:\n    raise NotImplementedError  # yours"


def solution(num_slots, budget, sinks=2):
    """The answer."""
    recent = range(num_slots - (budget - sinks), num_slots)
    return list(range(sinks)) + list(recent)


def too_many(num_slots, budget, sinks=2):
    return list(range(sinks)) + list(range(num_slots - budget, num_slots))


def no_sinks(num_slots, budget, sinks=2):
    return list(range(num_slots - budget, num_slots))


def off_by_one(num_slots, budget, sinks=2):
    return list(range(sinks)) + list(range(num_slots - (budget - sinks) - 1, num_slots - 1))


def check_keep(keep):
    for slots, budget in [(10, 6), (12, 3), (5, 5)]:
        kept = keep(slots, budget)
        if len(kept) != budget:
            wrong(f"kept {len(kept)} of {budget}", "do the sinks count?")
        if kept[:2] != [0, 1]:
            wrong(f"slots 0 and 1 are not in {kept}", "what are the sinks?")
        equal(kept, solution(slots, budget), "where does the recent window end?")


KEEP = Exercise(key="keep", prompt="Keep `sinks` & <recent> slots", stub=STUB, test=check_keep, hints=("Count <them>",),
                difficulty=1, minutes=5, reference=solution,
                wrong=[(too_many, "do the sinks count"), (no_sinks, "what are the sinks"), (off_by_one, "window end")])  # fmt: skip


def install_family(monkeypatch, **modules) -> None:
    """Make `frugal.toy_family.exercises` (and others given) importable for one test."""
    exercises = types.ModuleType("frugal.toy_family.exercises")
    exercises.EXERCISES, exercises.keep = [KEEP], KEEP
    package = types.ModuleType("frugal.toy_family")
    package.__path__, package.exercises = [], exercises
    monkeypatch.setitem(sys.modules, "frugal.toy_family", package)
    monkeypatch.setitem(sys.modules, "frugal.toy_family.exercises", exercises)


def unrun(folder: Path, exercises: bool = True) -> Path:
    """The notebook with exercises as an .ipynb that was not executed."""
    source = folder / "01_toy_family.py"
    source.write_text(SOURCE + (EXERCISE_CELLS.format(stub=STUB) if exercises else ""))
    path = folder / "01_toy_family.ipynb"
    nbformat.write(notebooks.read_source(source), path)
    return path


def built(folder: Path) -> tuple[Path, Path]:
    """Source and executed notebook in `folder`, without the exercises (a kernel knows no toy family)."""
    (folder / "src").mkdir(parents=True, exist_ok=True)
    source = folder / "src" / "01_toy.py"
    source.write_text(SOURCE)
    return source, notebooks.build(source, folder / "01_toy.ipynb")
