"""The family as a whole: what every method says of itself, its exercises, ledger, recorded sweeps and figures."""
import math

import pytest

from frugal.core.budgets import BudgetTooSmall, audit
from frugal.core.claims import check_recorded
from frugal.core.papers import Paper, papers
from frugal.core.recording import load_recorded, recorded_names
from frugal.core.sweep import Sweep
from frugal.explore.exercises import problems
from frugal.models.mini_vlm import random_vlm
from frugal.token_dropping import ALL, WORKLOADS, FastV, HiRED, OverviewOnly, Paint, SpatialPool, figures, results, workloads
from frugal.token_dropping.claims import CLAIMS
from frugal.token_dropping.exercises import EXERCISES

BAD = (0, 0.0, -0.5, -3, 1.5, math.nan, math.inf, True)


@pytest.fixture(scope="module")
def recorded():
    return load_recorded("token_dropping", "scenes")


@pytest.mark.parametrize("method", ALL, ids=lambda m: m.name)
def test_every_method_says_what_it_is(method):
    assert method.kind in {"dropper", "merger", "inside", "steering"} and isinstance(method.paper,
                                                                                     Paper) and method.paper.title
    assert 10 <= len(method.summary) <= 100 and "\n" not in method.summary
    assert method.name == method.name.lower() and len(method.__doc__) > 60


def test_names_are_unique_and_the_three_papers_are_there():
    names = [method.name for method in ALL]
    assert len(set(names)) == len(names)
    assert {p.key for p in papers("token_dropping")} <= {method.paper.key for method in ALL}


@pytest.mark.parametrize("exercise", EXERCISES, ids=lambda e: e.key)
def test_exercises_take_the_reference_and_name_each_mistake(exercise):
    assert problems(exercise) == []


def test_each_paper_has_exercises_and_claims():
    keys = {p.key for p in papers("token_dropping")}
    assert keys == {"hired", "paint", "vista"} == {claim.paper.key for claim in CLAIMS}
    assert len({claim.key for claim in CLAIMS}) == len(CLAIMS)
    assert len(EXERCISES) >= 3 and len({e.key for e in EXERCISES}) == len(EXERCISES)


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda c: c.key)
def test_verdicts_are_the_recorded_ones(claim):
    assert check_recorded([claim])[0].verdict == claim.verdict


# -- the recorded sweep -------------------------------------------------------------------------------------------

def test_every_recorded_sweep_loads():
    names = recorded_names("token_dropping")
    assert {"scenes", "variants", "encoder", "drop_buys"} <= set(names)
    for name in names:
        assert len(load_recorded("token_dropping", name)) > 0


def test_all_methods_hold_the_same_tokens_at_each_budget(recorded):
    rows = recorded[recorded.error == ""]
    fair = rows[~rows.method.isin(["hired_released"])]                     # the release loses tokens to its floors
    found = audit(fair, "tokens")
    assert found.column == "held_tok" and found.ok, found.sentence
    assert set(rows.method) == {m.name for m in ALL if m.kind != "steering"}
    own = rows[rows.method == "hired"]
    assert (own.held_tok == (own.budget * 320 + 1e-9).astype(int)).all()
    released = rows[rows.method == "hired_released"]
    assert (released.held_tok <= (released.budget * 320 + 1e-9).astype(int)).all()


def test_the_audit_would_notice_one_method_that_holds_more(recorded):
    rows = recorded[(recorded.error == "") & (recorded.method != "hired_released")].copy()
    rows.loc[(rows.method == "prumerge") & (rows.budget == 0.2), "held_tok"] += 2
    assert not audit(rows, "tokens").ok and "prumerge" in audit(rows, "tokens").sentence


def test_flops_and_bytes_follow_the_tokens(recorded):
    rows = recorded[recorded.error == ""]
    full = rows[rows.method == "full"].iloc[0]
    for name in ("hired", "spatial_pool", "fastv"):
        for row in rows[rows.method == name].itertuples():
            assert row.cache_bytes / full.cache_bytes == pytest.approx(row.budget, rel=0.02)
            assert row.spent_flops / full.spent_flops < row.budget + 0.03


def test_what_could_not_be_run_says_why(recorded):
    failed = recorded[recorded.error != ""]
    assert set(failed.method) == {"fastv", "overview_only"}
    assert failed[failed.method == "fastv"].error.str.startswith("BudgetTooSmall").all() and failed.error.str.contains(
        "give").all()


def test_scenes_are_paired(recorded):
    ran = recorded[recorded.error == ""]
    for score in results.SCORES:
        asked = ran[ran[f"{score}_asked"].str.strip("0") != ""]            # who keeps no token whole is not asked for one
        assert (asked.groupby("seed")[f"{score}_asked"].nunique() == 1).all() and asked.method.nunique() >= 6


@pytest.mark.parametrize("method, budget", [(HiRED, 0.2), (SpatialPool, 0.1), (FastV, 0.4)], ids=lambda x: getattr(x, "name", None))
def test_recorded_cells_come_out_again(recorded, method, budget):
    cell = recorded[(recorded.method == method.name) & (recorded.budget == budget) & (recorded.seed == 0)].iloc[0]
    work = workloads.Scenes(num_scenes=20)
    found = work.run(method, budget, 0)
    for score in results.SCORES:
        own, theirs = ([int(c) for c in text[:20]] for text in (found[f"{score}_right"], cell[f"{score}_right"]))
        assert found[f"{score}_asked"] == cell[f"{score}_asked"][:20] and sum(abs(a - b)
                                                                              for a, b in zip(own, theirs)) <= 2
    for column in ("cache_bytes", "spent_flops"):
        assert found[column] == pytest.approx(cell[column], rel=1e-5)


# -- figures ------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", figures.FIGURES)
def test_every_figure_builds_with_all_its_points(name):
    payload = figures.FIGURES[name]().payload
    drawn = [point for point in payload["points"] if "e" not in point]
    assert len(payload["points"]) == math.prod(len(c["values"]) for c in payload["controls"])
    assert drawn and all(len(point["s"]) > 20 for point in drawn)


def test_the_keep_picture_shows_what_hired_keeps():
    explorer = figures.keep_picture()
    data = figures.keep_data()
    for budget in data["budgets"]:
        for alpha in (0.0, 0.5, 1.0):
            fig = explorer.figure(scene="2", budget=budget, alpha=alpha)
            bars, = [t for t in fig.data if t.type == "bar"]
            fades = [t for t in fig.data if t.name == "dropped"]
            kept = sum(1 - cell for trace in fades for row in trace.z for cell in row)
            assert sum(bars.y) == kept == int(budget * 320 + 1e-9)
            assert sum(1 - cell for row in fades[1].z for cell in row) == bars.y[0]           # the overview's own


# -- bad input ----------------------------------------------------------------------------------------------------

@pytest.fixture
def tiny(monkeypatch):
    vlm = random_vlm()
    monkeypatch.setattr(workloads, "model", lambda: vlm)
    workloads.block.cache_clear()
    yield workloads.Scenes(num_scenes=2)
    workloads.block.cache_clear()


@pytest.mark.parametrize("budget", BAD, ids=str)
def test_a_bad_budget_is_one_clear_error_before_anything_runs(budget):
    with pytest.raises(ValueError, match="budget .*fraction in"):
        Sweep("token_dropping", ["hired"], [budget], "scenes")


@pytest.mark.parametrize("budget", [*BAD, 5_000], ids=str)
@pytest.mark.parametrize("method", [HiRED, SpatialPool, FastV], ids=lambda m: m.name)
def test_a_workload_called_by_hand_refuses_it_too(tiny, method, budget):
    with pytest.raises(ValueError, match=r"budget .*\(0, 1\]"):
        tiny.run(method, budget, 0)


@pytest.mark.parametrize("method, budget, kind, said", [
    (HiRED, 0.01, BudgetTooSmall, "needs 5 .5 views"), (FastV, 0.05, BudgetTooSmall, "already cost"), (OverviewOnly, 0.4, ValueError, "at most 64"),
    (Paint, 0.2, ValueError, "saves no tokens")], ids=lambda x: getattr(x, "name", None))
def test_a_budget_that_a_method_cannot_meet_names_the_remedy(tiny, method, budget, kind, said):
    with pytest.raises(kind, match=said):
        tiny.run(method, budget, 0)


def test_a_row_of_a_random_model_has_every_column(tiny):
    row = tiny.run(HiRED, 0.2, 0)
    assert row["held_tok"] == 64 and row["spent_flops"] > 0 and WORKLOADS["scenes"].name == "scenes"
    for score in results.SCORES:
        assert len(row[f"{score}_right"]) == len(row[f"{score}_asked"]) == 2
