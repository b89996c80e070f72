"""A new policy is one file and one line: it shows up in the sweep, in the explorer's list and in the ledger."""
import importlib.util
from dataclasses import dataclass

import pandas as pd
import plotly.graph_objects as go
import pytest

import frugal
from frugal import kv_eviction
from frugal.core.claims import Claim, Evidence
from frugal.core.generation import compressed_cache, generate
from frugal.core.lm import random_lm
from frugal.core.sweep import Sweep
from frugal.explore import explore, figure_table, unpack
from frugal.kv_eviction import claims

FILE = '''
"""Keeps the slots with even positions, oldest first."""
from dataclasses import dataclass
from typing import ClassVar

from frugal.core.budgets import top_slots
from frugal.core.papers import Paper
from frugal.kv_eviction.baselines import Policy


@dataclass(frozen=True)
class EvenFirst(Policy):
    """Even positions before odd ones, a toy."""
    name: ClassVar[str] = "even_first"
    summary: ClassVar[str] = "even positions before odd ones"
    paper: ClassVar[Paper] = Paper.other(arxiv=None, where="toy", title="A toy of the test")

    def keep(self, view, budget):
        even = view.positions % 2 == 0
        return top_slots(even.float() * 1e6 - view.positions, budget)
'''
CONTEXT = list(range(1, 41))


@dataclass(frozen=True)
class HeldPositions:
    """A workload of milliseconds: which positions a random model's cache holds after the cut."""
    name: str = "held_positions"
    axis: str = "tokens"
    version: str = "1"
    default_budgets: tuple = (0.25, 0.5)

    def run(self, method, budget, seed):
        cache, _, _ = compressed_cache(random_lm(), CONTEXT, method(), budget, seed=seed, room=0)
        held = cache.positions[0][0, 0, :int(cache.num_held(0)[0])]
        return {"held_tok": len(held), "even": float((held % 2 == 0).float().mean()), "oldest": int(held.min())}


def share_figure(rows, *, method="full"):
    rows = rows[rows.method == method]
    fig = go.Figure(go.Scatter(x=rows.budget, y=rows.even, name=method))
    return fig.update_layout(title="Even positions held", xaxis_title="budget (share)", yaxis_title="share (1)")


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """One file, written and imported, and one line: the class in ALL."""
    path = tmp_path / "even_first.py"
    path.write_text(FILE, encoding="utf-8")
    spec = importlib.util.spec_from_file_location("even_first", path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(__import__("sys").modules, "even_first", module)
    spec.loader.exec_module(module)
    monkeypatch.setattr(kv_eviction, "ALL", [*kv_eviction.ALL, module.EvenFirst])
    return module.EvenFirst


def toy_rows(tmp_path, methods):
    return Sweep("kv_eviction", methods, None, HeldPositions(), cache_dir=tmp_path / "rows", strict=True).run()


def test_without_the_line_nobody_knows_it(tmp_path):
    with pytest.raises(ValueError, match="even_first.*knorm"):
        Sweep("kv_eviction", ["even_first"], [0.5], HeldPositions(), cache_dir=tmp_path)


def test_the_sweep_finds_it_by_name_and_among_all(toy, tmp_path):
    assert "even_first" in [method.name for method in Sweep("kv_eviction", None, [0.5], HeldPositions()).methods]
    rows = toy_rows(tmp_path, ["even_first", "window"])
    assert rows[["method", "budget", "held_tok", "even", "oldest"]].values.tolist() == [
        ["even_first", 0.25, 10, 1.0, 0], ["even_first", 0.5, 20, 1.0, 0], ["window", 0.25, 10, 0.5, 30],
        ["window", 0.5, 20, 0.5, 20]]


def test_its_source_is_part_of_what_a_stored_row_depends_on(toy, tmp_path):
    before = toy_rows(tmp_path, [toy])
    seen = []
    again = Sweep("kv_eviction", [toy], None, HeldPositions(), cache_dir=tmp_path / "rows")
    pd.testing.assert_frame_equal(again.run(progress=lambda done, total, row: seen.append(row)), before)
    assert len(list((tmp_path / "rows").rglob("*.json"))) == len(seen) == 2


def test_it_generates_under_both_protocols(toy):
    for protocol in ("compress_once", "fixed_size"):
        got = generate(random_lm(), [CONTEXT], toy(), 8, protocol, max_new_tokens=4, stop_at_end=False)[0]
        held = int(got.cache.num_held(0)[0])
        assert held == 8 + (4 if protocol == "compress_once" else 0) and len(got.tokens) == 4


def test_the_widget_offers_it(toy, tmp_path):
    rows = toy_rows(tmp_path, ["window", "even_first"])
    shown = explore(share_figure, rows, method=list(rows.method.unique()))
    offered = shown.payload["controls"][0]
    assert offered["name"] == "method" and offered["values"] == ["window", "even_first"]
    drawn = unpack(shown.payload, method="even_first")["data"][0]
    assert list(drawn["y"]) == [1.0, 1.0] and len(figure_table(share_figure(rows, method="even_first"))) == 2


def test_the_ledger_judges_its_claim(toy, tmp_path, monkeypatch):
    def share_of_even():
        rows = toy_rows(tmp_path, ["even_first"])
        return Evidence(measured=100 * float(rows.even.mean()), note="share of even positions held")

    mine = Claim("toy_even", toy.paper, "It keeps even positions alone.", 100, "%", "the test itself", "measured",
                 share_of_even, "reproduced", neutral=50)
    monkeypatch.setattr(claims, "CLAIMS", [mine])
    found = frugal.claims("kv_eviction")
    assert found[["key", "measured", "verdict", "recorded"]].values.tolist() == [["toy_even", 100.0, "reproduced", "reproduced"]]
