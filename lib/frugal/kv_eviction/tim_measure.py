"""Runs of the mini TIM that the figures and claims of TIMRUN are made of: accuracy against size, one run step by step.

Every row is one real run; "right" means that the root's conclusion equals the exact answer of the document and that every record
was looked up (a tree that closes too early hits the answer by chance in one of ten runs or more).
"""
import math
from collections.abc import Iterable

import numpy as np
import pandas as pd

from frugal.core.lm import LM
from frugal.core.recording import load_recorded
from frugal.data import thread_tasks as tasks
from frugal.kv_eviction.timrun import TIMRun, TIMRuntime, ToolError

METHODS: dict[str, dict] = {
    "threshold 0": {"threshold": 0}, "threshold 1": {"threshold": 1}, "threshold 2": {"threshold": 2},
    "no pruning": {"threshold": math.inf},
    "keys turned, not re-encoded": {"threshold": 0, "gap": "renumber"},
    "not re-encoded, holes": {"threshold": 0, "gap": "holes"},
    "pruned before the conclusion": {"threshold": 0, "trim": "list"},
    "sliding window": {"threshold": math.inf, "window": True},
    "StreamingLLM": {"threshold": math.inf, "window": True, "sinks": 4},
}
SIZES = (4, 10, 20, 45, 100, 240)                  # records: about 90, 220, 440, 960, 2,100 and 5,100 tokens


def problem(num_nodes: int, seed: int) -> tasks.Document:
    """The test problem of that size and seed; training never draws from these seeds."""
    return tasks.Document(tasks.random_problem(np.random.default_rng([2507, num_nodes, seed]), num_nodes, max_depth=5))


def peak_tokens(trace: tasks.Trace, threshold: int | float) -> int:
    """Most tokens that a stack of `threshold` lists holds on this trace: counted, without a model."""
    return max(len(s.tokens) for s in tasks.snapshots(trace, threshold, len(trace.tokens)))


class Replay(TIMRuntime):
    """Writes the exact trace with real forward passes: what it holds, frees and takes does not hang on right answers."""

    def replay(self, document: tasks.Document) -> TIMRun:
        self.script = tasks.solve(document).tokens
        return self.run(document.prompt())

    def _choose(self, logits) -> int:
        return self.script[len(self.text)]


def measure(lm: LM, methods: Iterable[str], sizes: Iterable[int], seeds: Iterable[int], progress=None) -> pd.DataFrame:
    """One row a run: method, num_nodes, seed, trace_tokens (of the exact solution), right, stopped, peak_tokens, written, reencoded,
    seconds, tok_per_s, owned_bytes. The windows hold as many tokens as threshold 0 holds at most on the same problem.

    stopped: "done", "limit", "max_tokens", or "tool" where the model asked for a name that is not there.
    """
    runs = [(method, size, seed) for size in sizes for seed in seeds for method in methods]
    return pd.DataFrame([_row(lm, *run) for run in (progress(runs) if progress else runs)])


def _row(lm: LM, method: str, size: int, seed: int) -> dict:
    document = problem(size, seed)
    trace, options = tasks.solve(document), dict(METHODS[method])
    if options.get("window"):
        options["window"] = peak_tokens(trace, 0)
    row = {"method": method, "num_nodes": size, "seed": seed, "trace_tokens": len(trace.tokens), "limit": lm.config.max_positions}
    runtime = TIMRuntime(lm, document.look, **options)
    try:
        run = runtime.run(document.prompt(), max_tokens=len(trace.tokens) * 5 // 4)
    except ToolError:
        return row | {"right": False, "stopped": "tool", "peak_tokens": runtime.peak, "written": len(runtime.text),
                      "reencoded": runtime.reencoded}
    return row | {"right": run.answer == trace.answer and len(run.tree) == trace.tasks, "stopped": run.stopped, "peak_tokens": run.peak_tokens,
                  "written": len(run.tokens), "reencoded": run.reencoded, "seconds": run.seconds, "tok_per_s": run.tok_per_s,
                  "owned_bytes": run.owned_bytes}


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """One row a method and size: mean tokens of the trace, runs, right (%), largest peak, re-encoded tokens per token, tokens/s."""
    groups = rows.groupby(["method", "num_nodes"], sort=False)
    table = groups.agg(trace_tokens=("trace_tokens", "mean"), runs=("right", "size"), right=("right", "mean"),
                       peak_tokens=("peak_tokens", "max"), written=("written", "sum"), reencoded=("reencoded", "sum"),
                       tok_per_s=("tok_per_s", "median")).reset_index()
    table["right_pct"] = 100 * table["right"]
    table["reencoded_per_token"] = table["reencoded"] / table["written"]
    return table.drop(columns=["right", "written", "reencoded"])


def steps_table(lm: LM, document: tasks.Document, thresholds: Iterable[int | float] = (0, 1, 2, math.inf)) -> pd.DataFrame:
    """Occupancy along the exact trace of one problem: threshold (text, "inf" for no pruning), step, written and held tokens, freed tokens, pages (the page
    of each slot after a prune, numbers separated by blanks, else "")."""
    rows = []
    for threshold in thresholds:
        run = Replay(lm, document.look, threshold).replay(document)
        written = np.bincount(run.step_of_token, minlength=len(run.occupancy)).cumsum()
        freed = {step: sum(b - a for a, b in spans) for step, spans in run.frees}
        pages = {step: " ".join(map(str, table)) for (step, _), table in zip(run.frees, run.tables)}
        rows += [{"threshold": str(threshold), "step": i, "written": int(written[i]), "held": held, "freed": freed.get(i, 0),
                  "pages": pages.get(i, "")} for i, held in enumerate(run.occupancy)]
    return pd.DataFrame(rows)


def tree_table(run: TIMRun) -> pd.DataFrame:
    """The tree of a run at every moment when a task opens or a list leaves: one row a moment and task written by then.

    Columns: moment, step, held, task, parent (-1: the root), depth, label, state ("open", "kept" or "pruned"), tokens (of the task,
    without its subtasks).
    """
    step_of = lambda place: run.step_of_token[min(place, len(run.step_of_token) - 1)]                     # noqa: E731
    moments = sorted({step_of(t.start) for t in run.tree} | {step for step, _ in run.frees} | {len(run.occupancy) - 1})
    rows = []
    for moment, step in enumerate(moments):
        gone = [span for at, spans in run.frees if at <= step for span in spans]
        for index, task in enumerate(run.tree):
            if step_of(task.start) > step:
                continue
            pruned = any(a <= task.start < b for a, b in gone)
            closed = task.stop is not None and step_of(task.stop - 1) <= step
            label = task.parameters[:2] + (f"={task.conclusion}" if closed else "")
            rows.append({"moment": moment, "step": step, "held": run.occupancy[step], "task": index, "depth": task.depth,
                         "parent": -1 if task.parent is None else task.parent, "label": label,
                         "state": "pruned" if pruned else "kept" if closed else "open"})
    return pd.DataFrame(rows)


def load_accuracy() -> pd.DataFrame:
    """The recorded runs of recipes/record_tim.py."""
    return load_recorded("kv_eviction", "tim_accuracy")
