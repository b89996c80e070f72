"""The family's figures by name, ready to draw: what `frugal reproduce` writes and notebook 01 shows."""
import json
from collections.abc import Callable
from importlib import resources
from typing import Any

import pandas as pd

from frugal.core.recording import load_recorded
from frugal.explore import Explorer, choice, explore
from frugal.kv_eviction import curves
from frugal.kv_eviction import figures_based as based
from frugal.kv_eviction import figures_mikv as mikv
from frugal.kv_eviction import figures_shadowkv as shadowkv
from frugal.kv_eviction import figures_tim as tim


def eviction_rows() -> pd.DataFrame:
    """The recorded sweep of all workloads: recipes/record_kv_eviction.py makes it."""
    return load_recorded("kv_eviction", "eviction")


def declared(rows: pd.DataFrame) -> dict[str, Any]:
    """The declaration that rebuilds these rows: one Sweep a workload, `Sweep(family, methods, budgets, workload, seeds)`."""
    return {"family": "kv_eviction", "sweeps": [
        {"workload": workload, "methods": list(part.method.unique()), "budgets": sorted(part.budget.unique().tolist()),
         "seeds": sorted(part.seed.unique().tolist())} for workload, part in rows.groupby("workload", sort=False)]}


def keep_map_data() -> dict[str, Any]:
    """Which heads hold which position while an answer grows, recorded by the same recipe."""
    text = resources.files("frugal.kv_eviction").joinpath("assets/keep_map.json").read_text(encoding="utf-8")
    return json.loads(text)


def budget_curve() -> Explorer:
    recorded = eviction_rows()
    rows = curves.averaged(recorded)
    # keyformer first, full last: where a reader starts, and the reference
    methods = ["keyformer", *(m for m in rows.method.unique() if m not in ("keyformer", "full")), "full"]
    return explore(curves.budget_curve, rows, workload=list(rows.workload.unique()), method=methods,
                   budget=sorted(rows.budget.unique()), sweep=declared(recorded))


def bytes_curve() -> Explorer:
    recorded = eviction_rows()
    return explore(curves.bytes_curve, curves.averaged(recorded), workload=["continuation", "copying"], sweep=declared(recorded))


def keep_map() -> Explorer:
    data = keep_map_data()
    return explore(curves.keep_map, data, **curves.keep_map_rows(data))


def key_heatmap() -> Explorer:
    return explore(mikv.key_heatmap, mikv.recorded("mikv_keys"), view=["both", "as cached", "balanced"])


def memory_strip() -> Explorer:
    rows = mikv.recorded("mikv_strip")
    return explore(mikv.memory_strip, rows, step=sorted(rows.step.unique()), layer=sorted(rows.layer.unique()))


def bits_curve() -> Explorer:
    return explore(mikv.quality_against_bits, mikv.recorded("mikv_quality"), score=list(mikv.SCORES))


def spectrum() -> Explorer:
    rows = shadowkv.recorded("shadow_spectrum")
    return explore(shadowkv.spectrum, rows, layer=sorted(rows.layer.unique()))


def fetch_timeline() -> Explorer:
    rows = shadowkv.recorded("shadow_timeline")
    return explore(shadowkv.fetch_timeline, rows, step=sorted(rows.step.unique()), layers=["first 6", "all"])


def mass_caught() -> Explorer:
    return explore(shadowkv.mass_caught, shadowkv.recorded("shadow_mass"))


def thread_tree() -> Explorer:
    rows = tim.recorded("tim_tree")
    moments = sorted(rows.moment.unique().tolist())
    return explore(tim.thread_tree, rows, moment=choice(moments, default=moments[2 * len(moments) // 3]))


def saw_tooth() -> Explorer:
    return explore(tim.saw_tooth, tim.recorded("tim_steps"))


def tim_accuracy() -> Explorer:
    return explore(tim.accuracy_curve, tim.recorded("tim_accuracy"))


def recall_front() -> Explorer:
    rows = based.recorded("based_mqar")
    return explore(based.recall_front, rows, num_pairs=sorted(rows[rows.tokens == 256].num_pairs.unique()))


def speed_curves() -> Explorer:
    rows = based.recorded("based_speed")
    return explore(based.speed_curves, rows, batch=sorted(rows.batch.unique()))


def attention_matrices() -> Explorer:
    return explore(based.attention_matrices, based.recorded("based_maps"), scale=["square root", "weight"])


FIGURES: dict[str, Callable[[], Explorer]] = {make.__name__: make for make in (
    budget_curve, bytes_curve, keep_map, key_heatmap, memory_strip, bits_curve, spectrum, fetch_timeline, mass_caught,
    thread_tree, saw_tooth, tim_accuracy, recall_front, speed_curves, attention_matrices)}
