"""The family as a whole: what every method says of itself, its exercises, ledger, recorded tables, figures and sweeps."""
import math

import pytest
import torch

from frugal.core.claims import check_recorded
from frugal.core.depth_decode import decode
from frugal.core.lm import random_lm
from frugal.core.papers import Paper, papers
from frugal.core.recording import load_recorded, recorded_names
from frugal.core.sweep import Sweep
from frugal.early_exit import ALL, WORKLOADS, figures, live_lens, workloads
from frugal.early_exit.calm import ConfidenceExit
from frugal.early_exit.claims import CLAIMS
from frugal.early_exit.exercises import EXERCISES
from frugal.early_exit.fixed_exit import FixedExit, Full
from frugal.early_exit.self_speculative import SelfSpeculative
from frugal.explore.exercises import problems

DEPTH = [method for method in ALL if method.kind == "depth"]


@pytest.mark.parametrize("method", ALL, ids=lambda m: m.name)
def test_every_method_says_what_it_is(method):
    assert method.kind in {"depth", "decoder", "model"} and isinstance(method.paper, Paper) and method.paper.title
    assert 10 <= len(method.summary) <= 100 and "\n" not in method.summary
    assert method.name == method.name.lower() and len(method.__doc__) > 60


def test_names_are_unique_and_the_three_papers_are_there():
    names = [method.name for method in ALL]
    assert len(set(names)) == len(names)
    assert {p.key for p in papers("early_exit")} == {"skipdecode", "duo_llm", "r2r"} <= {method.paper.key for method in ALL}


@pytest.mark.parametrize("exercise", EXERCISES, ids=lambda e: e.key)
def test_exercises_take_the_reference_and_name_each_mistake(exercise):
    assert problems(exercise) == []


def test_claims_and_exercises_have_names_of_their_own():
    assert len({claim.key for claim in CLAIMS}) == len(CLAIMS)
    assert len(EXERCISES) >= 3 and len({e.key for e in EXERCISES}) == len(EXERCISES)


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda c: c.key)
def test_verdicts_are_the_recorded_ones(claim):
    assert check_recorded([claim])[0].verdict == claim.verdict


def test_every_recorded_table_loads():
    names = recorded_names("early_exit")
    assert {"exits", "confidence", "self_speculative", "depth_cells", "lens_layers", "bridge_jumps"} <= set(names)
    for name in names:
        assert len(load_recorded("early_exit", name)) > 0


@pytest.mark.parametrize("name", figures.FIGURES)
def test_every_figure_builds_with_all_its_points(name):
    payload = figures.FIGURES[name]().payload
    drawn = [point for point in payload["points"] if "e" not in point]
    assert len(payload["points"]) == math.prod(len(c["values"]) for c in payload["controls"])
    assert drawn and all(len(point["s"]) > 20 for point in drawn)


def test_a_figure_built_twice_has_one_digest():
    one, two = (figures.FIGURES["lens_layers"]().payload["digest"] for _ in range(2))
    assert one == two != figures.FIGURES["bridge_jumps"]().payload["digest"]


# -- recorded numbers -----------------------------------------------------------------------------------------------

def test_drafting_never_changed_a_text():
    assert load_recorded("early_exit", "self_speculative").same_text.all()


def test_a_grid_says_what_its_method_counted():
    rows = load_recorded("early_exit", "depth_cells")
    for (_, method, _), part in rows.groupby(["model", "method", "knob"]):
        decoded = part[part.position >= 8]
        ran = decoded.cells.map(lambda cells: sum(c in "13" for c in cells))
        assert ran.mean() == pytest.approx(part.layers.iloc[0], abs=0.01), method


def test_no_exit_of_smollm2_pays_at_the_same_quality():
    rows = load_recorded("early_exit", "confidence")
    own = rows[(rows.model == workloads.SMOLLM2) & rows.method.str.startswith("gap") & (rows.batch == 1)]
    full = rows[(rows.model == workloads.SMOLLM2) & (rows.method == "whole model") & (rows.batch == 1)].iloc[0]
    faithful = own[own.agreement >= 0.95]
    assert (faithful.weight_bytes > full.weight_bytes).all()


@pytest.mark.model
def test_a_recorded_cell_comes_out_again(smollm2, monkeypatch):
    monkeypatch.setattr(workloads, "model", lambda name: smollm2)
    found = WORKLOADS["continuation"].run(FixedExit, 0.9, 0)
    rows = load_recorded("early_exit", "exits")
    cell = rows[(rows.method == "fixed_exit") & (rows.workload == "continuation") & (rows.budget == 0.9) & (rows.seed == 0)].iloc[0]
    assert found["agreement"] == pytest.approx(cell.agreement, abs=0.04) and found["nll"] == pytest.approx(cell.nll, abs=0.02)
    assert found["layers"] == cell.layers and found["weight_bytes"] == pytest.approx(cell.weight_bytes, rel=1e-5)


# -- workloads on a random model ------------------------------------------------------------------------------------

@pytest.fixture
def tiny(monkeypatch):
    lm = random_lm(2, num_layers=6)
    monkeypatch.setattr(workloads, "model", lambda name: lm)
    text = torch.randint(0, 256, (40,), generator=torch.Generator().manual_seed(0)).tolist()
    monkeypatch.setattr(workloads, "window", lambda name, seed, length: tuple(text[seed:seed + length]))
    return workloads.Forced("tiny", lens="logit", model="a random model", context_tok=8, scored_tok=12)


@pytest.mark.parametrize("method", DEPTH, ids=lambda m: m.name)
@pytest.mark.parametrize("budget", [1.0, 0.5, 3])
def test_every_depth_method_runs_at_every_kind_of_budget(tiny, method, budget):
    if budget == 3 and method in (ConfidenceExit,):
        with pytest.raises(ValueError, match="threshold 3"):
            tiny.run(method, budget, 0)
        return
    found = tiny.run(method, budget, 0)
    assert 0 <= found["agreement"] <= 1 and found["weight_bytes"] > 0 and found["layers"] <= 6
    if budget == 1.0:
        assert found["agreement"] == 1 and found["layers"] == 6
    elif method.name in ("skipdecode", "early_termination"):              # the first steps of a schedule of 64 that falls
        assert 3 <= found["layers"] < 6
    elif method not in (Full, ConfidenceExit):
        assert found["layers"] == 3


@pytest.mark.parametrize("method", [m for m in ALL if m.kind != "depth"], ids=lambda m: m.name)
def test_what_has_a_loop_of_its_own_is_refused(tiny, method):
    with pytest.raises(ValueError, match="loop of its own"):
        tiny.run(method, 0.5, 0)


@pytest.mark.parametrize("budget", [0, -1, 1.5, math.nan, 7], ids=str)
def test_a_bad_budget_is_one_clear_error(tiny, budget):
    with pytest.raises(ValueError, match="out of range"):
        tiny.run(FixedExit, budget, 0)


def test_a_sweep_refuses_unknown_methods():
    with pytest.raises(ValueError, match="unknown method 'nobody'"):
        Sweep("early_exit", ["nobody"], [0.5], "continuation")


def test_self_speculative_takes_a_budget_too():
    lm = random_lm(2, num_layers=6)
    drafter = SelfSpeculative.for_budget(0.5, lm)
    assert drafter.exit_layer == 3
    assert drafter.generate(lm, "abc", 8, stop_at_end=False).tokens == decode(lm, "abc", Full(), 8).tokens[0]


# -- the lens table -------------------------------------------------------------------------------------------------

def test_the_recorded_lens_table_draws():
    result = live_lens.recorded_table()
    figure = live_lens.lens_picture(result)
    assert len(figure.data[0].z) == len(live_lens.ROWS) and len(figure.data[0].z[0]) == len(result["tokens"])
    assert "settled" in figure.layout.meta["summary"]


@pytest.mark.model
def test_the_last_row_of_the_table_is_the_model(smollm2, monkeypatch):
    monkeypatch.setattr(live_lens, "model", lambda name: smollm2)
    found = live_lens.lens_table({"sentence": "The capital of France is", "lens": "ridge"}, lambda fraction, partial=None: None)
    ids = smollm2.tokenizer.encode("The capital of France is")
    wanted = smollm2(torch.tensor([ids]))[0].argmax(-1).tolist()
    assert found["words"][-1] == [smollm2.tokenizer.token_str(token) for token in wanted] and found["rows"][-1] == 30
    for bad in ("", "word " * 60):
        with pytest.raises(ValueError, match="give 1 to 40"):
            live_lens.lens_table({"sentence": bad, "lens": "logit"}, lambda fraction, partial=None: None)
