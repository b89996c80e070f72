"""`frugal reproduce`: the files it writes hold the figure's own numbers, its declaration and its citations."""

import json
import re
import types

import pandas as pd
import plotly.graph_objects as go
import pytest

from frugal.core.papers import paper
from frugal.explore import explore, export, reproduce


def losses(rows, budget_tok=64):
    some = rows[rows.budget_tok == budget_tok]
    return go.Figure(go.Bar(x=some.method, y=some.loss)).update_layout(title="Loss", xaxis_title="method", yaxis_title="loss (nats)")


SWEEP = {"family": "kv_eviction", "methods": ["full", "keyformer"], "budgets": [32, 64], "workload": "toy", "seeds": 1}


@pytest.fixture
def registered(monkeypatch):
    """One figure with rows of two methods, and one claim, registered under kv_eviction."""
    rows = pd.DataFrame({"method": ["full", "keyformer"] * 2, "budget_tok": [32, 32, 64, 64], "loss": [1.0, 2.0, 1.5, 1 / 3]})
    evidence = types.SimpleNamespace(measured=1.8, projected=None, note="")
    claim = types.SimpleNamespace(key="faster", paper=paper("keyformer"), quote="2.4x <b>", value=2.4, unit="x",
                                  verdict="direction holds", evidence=evidence)
    modules = {"figures": types.SimpleNamespace(FIGURES={"losses": lambda: explore(losses, rows, sweep=SWEEP, budget_tok=[32, 64])}),
               "claims": types.SimpleNamespace(CLAIMS=[claim])}
    monkeypatch.setattr(reproduce, "_module", lambda family, name: modules.get(name) if family == "kv_eviction" else None)
    return claim


@pytest.fixture
def no_renderer(monkeypatch):
    def render(*args, **kwargs):
        raise export.NoRenderer("install kaleido")

    monkeypatch.setattr(export, "render", render)


def test_a_figure_is_written_with_data_declaration_and_citations(registered, no_renderer, tmp_path):
    with pytest.raises(export.NoRenderer, match="losses.csv.*install kaleido"):
        reproduce.reproduce("losses", tmp_path)
    table = pd.read_csv(tmp_path / "losses.csv")
    assert table["loss (nats)"].tolist() == pytest.approx([1.0, 2.0]) or table["loss (nats)"].tolist() == pytest.approx([1.5, 1 / 3])
    facts = json.loads((tmp_path / "losses.json").read_text())
    assert facts["sweep"] == SWEEP and facts["title"] == "Loss" and re.fullmatch("[0-9a-f]{16}", facts["digest"])
    assert json.loads((tmp_path / "losses.sweep.json").read_text())["sweep"] == SWEEP
    bib = (tmp_path / "citation.bib").read_text()
    assert bib.count("@misc{") == bib.count("eprint") and paper("keyformer").arxiv in bib and "@software{frugal" in bib


def test_a_claim_is_drawn_beside_the_papers_number(registered, no_renderer, tmp_path, monkeypatch):
    claims = pytest.importorskip("frugal.core.claims")
    monkeypatch.setattr(claims, "verify", lambda claim: types.SimpleNamespace(evidence=claim.evidence, verdict="direction holds"))
    with pytest.raises(export.NoRenderer):
        reproduce.reproduce("faster", tmp_path)
    table = pd.read_csv(tmp_path / "faster.csv")
    assert table["source"].tolist() == ["paper", "measured here"] and table["value (x)"].tolist() == [2.4, 1.8]
    assert paper("keyformer").arxiv in (tmp_path / "citation.bib").read_text()
    assert json.loads((tmp_path / "faster.sweep.json").read_text())["sweep"] is None


def test_the_declaration_is_read_off_recorded_rows():
    rows = pd.DataFrame({"family": "f", "workload": ["w", "w", "v"], "method": ["a", "b", "a"], "budget": [0.1, 0.2, 1], "seed": 0})
    one = {"family": "f", "methods": ["a", "b"], "budgets": [0.1, 0.2], "workload": "w", "seeds": [0]}
    assert reproduce.declared_by(rows[:2]) == one
    assert [found["workload"] for found in reproduce.declared_by(rows)] == ["w", "v"]
    assert reproduce.declared_by(rows.drop(columns="seed")) is None


def test_an_unknown_key_lists_the_known_ones_and_writes_nothing(registered, tmp_path):
    with pytest.raises(ValueError, match="did you mean.*losses.*known: losses, faster"):
        reproduce.reproduce("loses", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_picture_is_written_where_a_renderer_is(registered, tmp_path):
    try:
        said = reproduce.reproduce("losses", tmp_path)
    except export.NoRenderer as error:
        pytest.skip(str(error)[-200:])
    assert (tmp_path / "losses.png").read_bytes().startswith(b"\x89PNG") and "losses.svg" in said
    assert "<svg" in (tmp_path / "losses.svg").read_text()


def test_every_registered_figure_and_claim_of_the_library_is_listed():
    entries = reproduce.known()
    assert all(entry.kind in ("figure", "claim") and entry.family for entry in entries.values())


def test_our_citation_names_us():
    assert "Frugal" in reproduce.our_citation() and "0.1" in reproduce.our_citation()
