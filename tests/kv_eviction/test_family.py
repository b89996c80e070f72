"""The family as a whole: what every method says of itself, its exercises, ledger, recorded sweeps and figures."""
import math

import pytest

from frugal.core.budgets import BudgetTooSmall, audit
from frugal.core.claims import check_recorded
from frugal.core.lm import random_lm
from frugal.core.papers import Paper, papers
from frugal.core.recording import load_recorded, recorded_names
from frugal.core.sweep import Sweep
from frugal.explore.exercises import problems
from frugal.kv_eviction import ALL, WORKLOADS, Keyformer, Mikv, SnapKV, StreamingLLM, figures, workloads
from frugal.kv_eviction.claims import CLAIMS
from frugal.kv_eviction.exercises import EXERCISES

BAD = (0, 0.0, -0.5, -3, 1.5, math.nan, math.inf, True)


@pytest.fixture(scope="module")
def recorded():
    rows = load_recorded("kv_eviction", "eviction")
    return rows[rows.error == ""]


@pytest.mark.parametrize("method", ALL, ids=lambda m: m.name)
def test_every_method_says_what_it_is(method):
    assert method.kind in {"policy", "cache", "model"} and isinstance(method.paper, Paper) and method.paper.title
    assert 10 <= len(method.summary) <= 100 and "\n" not in method.summary
    assert method.name == method.name.lower() and len(method.__doc__) > 60


def test_names_are_unique_and_the_five_papers_are_there():
    names = [method.name for method in ALL]
    assert len(set(names)) == len(names)
    assert {p.key for p in papers("kv_eviction")} <= {method.paper.key for method in ALL}


@pytest.mark.parametrize("exercise", EXERCISES, ids=lambda e: e.key)
def test_exercises_take_the_reference_and_name_each_mistake(exercise):
    assert problems(exercise) == []


def test_each_paper_has_exercises_and_claims():
    keys = {p.key for p in papers("kv_eviction")}
    assert keys == {"keyformer", "mikv", "shadowkv", "timrun", "based"} == {claim.paper.key for claim in CLAIMS}
    assert len({claim.key for claim in CLAIMS}) == len(CLAIMS)
    assert len(EXERCISES) >= 5 and len({e.key for e in EXERCISES}) == len(EXERCISES)


@pytest.mark.model
@pytest.mark.parametrize("claim", CLAIMS, ids=lambda c: c.key)
def test_verdicts_are_the_recorded_ones(smollm2, claim):
    assert check_recorded([claim])[0].verdict == claim.verdict


# -- the recorded sweep -------------------------------------------------------------------------------------------

def test_every_recorded_sweep_loads():
    names = recorded_names("kv_eviction")
    assert "eviction" in names
    for name in names:
        assert len(load_recorded("kv_eviction", name)) > 0


@pytest.mark.parametrize("workload", ["continuation", "copying", "passkey", "passkey_query_aware", "facts"])
def test_policies_hold_the_same_tokens_at_each_budget(recorded, workload):
    rows = recorded[(recorded.workload == workload) & ~recorded.method.isin(["mikv", "shadowkv"])]
    assert set(rows.method) == {m.name for m in ALL if m.kind == "policy"}
    if workload == "facts":                    # lists differ in length by seed: compare within a seed
        found = [audit(part, "tokens") for _, part in rows.groupby("seed")]
    else:
        found = [audit(rows, "tokens")]
    assert all(a.column == "held_tok" and a.ok for a in found), [a.sentence for a in found]
    cut = rows[rows.method == "h2o"]
    assert (cut.held_tok == (cut.budget * cut.context_tok + 1e-9).astype(int)).all()


def test_the_audit_would_notice_one_method_that_holds_more(recorded):
    rows = recorded[(recorded.workload == "continuation") & ~recorded.method.isin(["mikv", "shadowkv"])].copy()
    rows.loc[(rows.method == "tova") & (rows.budget == 0.5), "held_tok"] += 8
    found = audit(rows, "tokens")
    assert not found.ok and "tova" in found.sentence


def test_mikv_spends_its_share_of_the_sixteen_bit_cache(recorded):
    rows = recorded[(recorded.method == "mikv") & (recorded.workload == "continuation")]
    share = rows.cache_bytes / (rows.full_bytes / 2)                          # full_bytes are those of fp32
    assert len(rows) == 8 and ((share / rows.budget - 1).abs() <= 0.01).all() and (share <= rows.budget + 1e-6).all()


def test_what_could_not_be_run_says_why():
    rows = load_recorded("kv_eviction", "eviction")
    failed = rows[rows.error != ""]
    assert set(failed.method) <= {"mikv", "shadowkv", "snapkv"} and failed.error.str.startswith("BudgetTooSmall").all()


@pytest.mark.model
@pytest.mark.parametrize("method, workload, budget, column", [
    (StreamingLLM, "copying", 0.25, "accuracy"), (Keyformer, "continuation", 0.5, "nll"),
    (SnapKV, "copying", 0.5, "accuracy"), (Mikv, "copying", 0.5, "accuracy")], ids=lambda x: getattr(x, "name", None))
def test_recorded_cells_come_out_again(smollm2, recorded, monkeypatch, method, workload, budget, column):
    monkeypatch.setattr(workloads, "model", lambda name: smollm2)
    found = WORKLOADS[workload].run(method, budget, 0)
    cell = recorded[(recorded.method == method.name) & (recorded.workload == workload) & (recorded.budget == budget)
                    & (recorded.seed == 0)].iloc[0]
    assert abs(found[column] - cell[column]) <= 0.02
    assert found["cache_bytes"] == pytest.approx(cell.cache_bytes, rel=1e-5) and found["held_tok"] == cell.held_tok


# -- figures ------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", figures.FIGURES)
def test_every_figure_builds_with_all_its_points(name):
    payload = figures.FIGURES[name]().payload
    drawn = [point for point in payload["points"] if "e" not in point]
    assert len(payload["points"]) == math.prod(len(c["values"]) for c in payload["controls"])
    assert drawn and all(len(point["s"]) > 20 for point in drawn)


def test_a_figure_built_twice_has_one_digest():
    one, two = (figures.FIGURES["bytes_curve"]().payload["digest"] for _ in range(2))
    assert one == two != figures.FIGURES["mass_caught"]().payload["digest"]


# -- bad budgets --------------------------------------------------------------------------------------------------

@pytest.fixture
def tiny(monkeypatch):
    lm = random_lm(max_positions=16_384)
    monkeypatch.setattr(workloads, "model", lambda name: lm)
    return workloads.Facts(model="a random model")


@pytest.mark.parametrize("budget", BAD, ids=str)
def test_a_bad_budget_is_one_clear_error_before_anything_runs(budget):
    with pytest.raises(ValueError, match="budget .*fraction in"):
        Sweep("kv_eviction", ["h2o"], [budget], "copying")


@pytest.mark.parametrize("budget", [*BAD, 5_000], ids=str)
@pytest.mark.parametrize("method", [StreamingLLM, Mikv], ids=lambda m: m.name)
def test_a_workload_called_by_hand_refuses_it_too(tiny, method, budget):
    with pytest.raises(ValueError, match=r"budget .*\(0, 1\]"):
        tiny.run(method, budget, 0)


@pytest.mark.parametrize("method, budget, said", [(StreamingLLM, 3, "protects 5 tokens"), (SnapKV, 15, "protects 16 tokens"),
                                                  (Mikv, 0.01, "smallest possible")], ids=["sinks", "window", "bytes"])
def test_a_budget_below_what_is_protected_names_the_remedy(tiny, method, budget, said):
    with pytest.raises(BudgetTooSmall, match=said):
        tiny.run(method, budget, 0)
