"""SETRec's recorded rows, figures, claims, exercise and live page; the trained weights against what was recorded of them."""
import math

import numpy as np
import pytest
import torch

from frugal.core.claims import check_recorded
from frugal.core.measure import counted_flops
from frugal.core.recording import load_recorded
from frugal.data.emoji_sessions import catalogue, make_sessions
from frugal.explore import live
from frugal.explore.exercises import problems
from frugal.models import load_card
from frugal.models.trunk import Trunk
from frugal.visual_tokenizers import setrec_live
from frugal.visual_tokenizers import setrec_measure as measure
from frugal.visual_tokenizers.claims_setrec import CLAIMS, paired
from frugal.visual_tokenizers.exercises_setrec import EXERCISES
from frugal.visual_tokenizers.figures_setrec import FIGURES
from frugal.visual_tokenizers.setrec import load_setrec
from frugal.visual_tokenizers.setrec_cost import cost_rows, projected_times
from frugal.visual_tokenizers.setrec_sequence import load_sequence_ids

QUIET = lambda fraction, partial=None: None  # noqa: E731


@pytest.fixture(scope="module")
def users():
    return make_sessions("test", 100)


def recorded_hits(method, kind, count):
    rows = load_recorded("visual_tokenizers", "setrec_recall")
    row = rows[(rows.method == method) & (rows.kind == kind) & (rows.score == "recall")].iloc[0]
    return np.array([int(d) for d in row.hits[:count]]), row


@pytest.mark.parametrize("exercise", EXERCISES, ids=lambda e: e.key)
def test_exercise_takes_the_reference_and_names_each_mistake(exercise):
    assert problems(exercise) == []


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda c: c.key)
def test_verdicts_are_the_recorded_ones(claim):
    assert check_recorded([claim])[0].verdict == claim.verdict and claim.paper.key == "setrec"


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_builds_with_all_its_points(name):
    payload = FIGURES[name]().payload
    drawn = [point for point in payload["points"] if "e" not in point]
    assert len(payload["points"]) == math.prod(len(c["values"]) for c in payload["controls"]) == len(drawn)
    assert all(len(point["s"]) > 20 for point in drawn)


def test_recorded_users_come_out_again(users):
    """The first 100 test users; a rounding that tips a near tie may move two of them."""
    found = measure.recall_rows(load_setrec(), users, load_card("setrec")["metrics"]["beta"])
    for kind in measure.KINDS:
        hits, row = recorded_hits("sem4", kind, 100)
        assert np.abs(found[f"recall_{kind}"] - hits).sum() <= 2 and row.low < row.value < row.high
        assert row.value == pytest.approx(np.mean([int(d) for d in row.hits]), abs=1e-6)


def test_recorded_beams_come_out_again(users):
    few = make_sessions("test", 30)
    found = measure.recall_rows(load_sequence_ids(), few)
    for kind in measure.KINDS:
        assert np.abs(found[f"recall_{kind}"] - recorded_hits("tiger", kind, 30)[0]).sum() <= 2


def test_nobody_beats_the_ceiling_and_all_share_the_users():
    rows = load_recorded("visual_tokenizers", "setrec_recall")
    assert {"ceiling", "popular", "sem1", "sem2", "sem4", "tiger", "single", "inside"} <= set(rows.method) and (rows.users == 2_000).all()
    for _, part in rows.groupby(["score", "kind"]):
        assert part.value.max() == part[part.method == "ceiling"].value.iloc[0]


def test_the_trained_model_ignores_the_order_within_an_item(users):
    model, history = load_setrec(), torch.from_numpy(users.items[:4, :8])
    tokens = model.catalogue_tokens()[history]
    order = torch.rand(tokens.shape[:3], generator=torch.Generator().manual_seed(0)).argsort(-1)[..., None].expand_as(tokens)
    with torch.no_grad():
        assert float((model.answers(tokens) - model.answers(tokens.gather(2, order))).abs().max()) < 1e-4     # of states of size 1-10
        flipped = model.answers(tokens.flip(1))
        assert float((model.answers(tokens) - flipped).abs().max()) > 0.1


def test_without_meaning_cold_items_are_all_alike(users):
    scores = load_setrec().scores(torch.from_numpy(users.items[:3, :8]), beta=0.0)[:, catalogue().cold]
    assert float(scores.std(1).max()) < 1e-3


def test_a_paired_difference_needs_pairs():
    ours, theirs = np.array([1.0, 0] * 200), np.array([1.0, 0] * 199 + [0, 0])
    assert paired(ours, theirs).value == pytest.approx(0.25) and not paired(ours, theirs).excludes(0)
    assert paired(ours, 0 * theirs).excludes(0) and paired(ours, 0 * theirs).value == pytest.approx(50)


# -- cost ---------------------------------------------------------------------------------------------------------

def test_counted_flops_are_the_products_of_the_blocks():
    trunk, x = Trunk(96, 3, 4, 192).eval(), torch.randn(1, 67, 96)
    with torch.no_grad():
        found = counted_flops(lambda: trunk(x, torch.ones(67, 67, dtype=torch.bool)))
    assert found == 3 * (2 * 67 * (4 * 96 * 96 + 2 * 96 * 192) + 4 * 67 * 67 * 96)


def test_cost_rows_compare_with_the_base():
    def product(size):
        return lambda: torch.ones(size, 64) @ torch.ones(64, 64)
    rows = cost_rows({"setrec 5": product(100), "beam 20": product(300)}, "toy", repeats=3).set_index("kind")
    assert rows.flops_base["setrec"] == 1 and rows.flops_base["beam"] == 3 and rows.times_base["setrec"] == pytest.approx(1)


def test_recorded_cost_has_both_backbones_and_wider_beams_cost_more():
    rows = load_recorded("visual_tokenizers", "setrec_cost")
    for _, part in rows.groupby(["backbone", "kind"]):
        assert part.sort_values("size").flops.is_monotonic_increasing and len(part) >= 5
    assert rows.backbone.nunique() == 2


def test_projection_counts_steps_when_weights_are_what_is_read():
    """A short history and one user: every step reads all weights once, so four steps take about four times one."""
    assert projected_times(items=5, beam=1) == pytest.approx(4, rel=0.1)
    assert projected_times(users=64) < 2.5


# -- live page ----------------------------------------------------------------------------------------------------

def test_the_live_page_recommends_new_items_and_draws_them():
    form = live(setrec_live.recommend, setrec_live.board, recorded=setrec_live.recorded_answer(), **setrec_live.inputs())
    found = setrec_live.recommend(form.defaults(), QUIET)
    assert list(found["rows"]) == ["SETRec, beta 0.1", "CF token alone", "meaning alone", "sequence ids, beam 20"]
    for names in found["rows"].values():
        assert len(names) == setrec_live.SHOWN and not set(names) & set(found["history"]) and set(names) <= set(catalogue().names)
    recorded = setrec_live.recorded_answer()
    assert found["history"] == recorded["history"] and len(set(found["rows"]["SETRec, beta 0.1"]) & set(recorded["rows"]["SETRec, beta 0.1"])) >= 5
    fig = setrec_live.board(found)
    assert len(fig.layout.images) == 5 * setrec_live.SHOWN and "meaning alone" in fig.layout.meta["summary"]


def test_a_narrow_beam_leaves_places_empty():
    found = setrec_live.recommend({"history": "fox", "beta": 0.5, "beam": 1}, QUIET)
    assert len(found["rows"]["sequence ids, beam 1"]) == 1 and len(setrec_live.board(found).layout.images) == 5 * setrec_live.SHOWN


@pytest.mark.parametrize("text, names", [("fox, wolf", ["fox", "wolf"]), ("\U0001f98a\U0001f43a", ["fox", "wolf"]), ("fox\n\u2764\ufe0f", ["fox", "red heart"])])
def test_a_history_may_be_names_or_characters(text, names):
    assert [catalogue().names[i] for i in setrec_live.read_history(text)] == names


@pytest.mark.parametrize("text, said", [("", "the history is empty"), (" , ,", "the history is empty"), ("unicron", "no emoji is called 'unicron'"),
                                        ("\U0001f98ax", "no emoji is called")])
def test_a_bad_history_is_one_sentence(text, said):
    with pytest.raises(ValueError, match=said):
        setrec_live.read_history(text)
