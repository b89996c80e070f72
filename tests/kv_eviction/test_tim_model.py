"""The trained mini TIM, and the recorded runs: right answers beyond the positions of the model, figures from recorded rows."""
import math

import pytest
import torch

from frugal.core.claims import check_recorded
from frugal.data import thread_tasks as tt
from frugal.explore import figure_summary, figure_table
from frugal.kv_eviction import claims_tim, figures_tim, tim_measure
from frugal.kv_eviction.timrun import Timrun
from frugal.models.mini_tim import SHAPE, initial_weights, load_mini_tim, make_lm, training_forward


@pytest.fixture(scope="module")
def mini_tim():
    return load_mini_tim()


def test_what_is_trained_is_what_runs():
    """The training forward and the LM agree on the same weights."""
    weights = initial_weights(seed=1)
    tokens = torch.randint(0, tt.VOCAB_SIZE, (2, 70), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(training_forward(weights, tokens), make_lm(weights)(tokens), atol=1e-5, rtol=1e-4)


def right_answers(lm, threshold, num_nodes, seeds) -> int:
    documents = [tim_measure.problem(num_nodes, seed) for seed in seeds]
    return sum(Timrun(threshold).solve(lm, document).answer == document.root.value() for document in documents)


def test_small_problems_are_solved_pruned_and_unpruned(mini_tim):
    for threshold in (0, 1, math.inf):
        assert right_answers(mini_tim, threshold, 4, range(100, 106)) >= 5


def test_problems_longer_than_the_positions_are_solved_only_when_pruned(mini_tim):
    solved = 0
    for seed in (100, 101, 103):
        document = tim_measure.problem(40, seed)
        pruned = Timrun(0).solve(mini_tim, document)
        assert pruned.peak_tokens < SHAPE["max_positions"]
        solved += pruned.answer == document.root.value() and len(pruned.tokens) > 1.3 * SHAPE["max_positions"]
    assert solved >= 2
    unpruned = tim_measure.Replay(mini_tim, document.look, math.inf).replay(document)       # even along the exact trace
    assert unpruned.stopped == "limit" and unpruned.answer is None


def test_the_recorded_runs_have_the_shape_of_the_claim():
    table = tim_measure.summary(figures_tim.recorded("tim_accuracy"))
    assert set(table["method"]) == set(tim_measure.METHODS) and set(table["num_nodes"]) == set(tim_measure.SIZES)
    at = {(r.method, r.num_nodes): r for r in table.itertuples()}
    small, large = min(tim_measure.SIZES), max(tim_measure.SIZES)
    assert at["no pruning", small].right_pct >= 80 and at["no pruning", large].right_pct == 0
    assert at["threshold 0", small].right_pct >= 80
    beyond = [size for size in tim_measure.SIZES if at["threshold 0", size].trace_tokens > 1.3 * SHAPE["max_positions"]]
    assert any(at["threshold 0", size].right_pct >= 50 for size in beyond)
    assert all(at["no pruning", size].right_pct == 0 for size in beyond)
    for size in tim_measure.SIZES[1:]:
        assert at["threshold 0", size].right_pct >= at["sliding window", size].right_pct
        assert at["threshold 0", size].right_pct >= at["pruned before the conclusion", size].right_pct
    assert at["threshold 0", large].peak_tokens < 0.1 * at["threshold 0", large].trace_tokens


@pytest.mark.parametrize("figure,name,choices", [
    (figures_tim.accuracy_curve, "tim_accuracy", {}), (figures_tim.peak_curve, "tim_accuracy", {}),
    (figures_tim.saw_tooth, "tim_steps", {"step": 3}), (figures_tim.page_table, "tim_steps", {"prune": 1}),
    (figures_tim.thread_tree, "tim_tree", {"moment": 4})])
def test_figures_are_drawn_from_recorded_rows(figure, name, choices):
    fig = figure(figures_tim.recorded(name), **choices)
    assert fig.layout.title.text and fig.layout.xaxis.title.text and figure_summary(fig)
    assert len(figure_table(fig)) > 1


def test_the_tree_shows_what_leaves_and_the_saw_tooth_falls():
    rows = figures_tim.recorded("tim_tree")
    last = rows[rows["moment"] == rows["moment"].max()]
    assert (last["state"] == "pruned").any() and last["task"].is_unique
    drawn = figures_tim.thread_tree(rows, moment=int(last["moment"].iloc[0]))
    assert "pruned" in {trace.name for trace in drawn.data}
    steps = figures_tim.recorded("tim_steps")
    held = steps[steps["threshold"] == "0"]["held"]
    assert (held.diff() < 0).any() and held.max() < steps[steps["threshold"] == "inf"]["held"].max()
    with pytest.raises(ValueError, match="prune is 999"):
        figures_tim.page_table(steps, prune=999)


def test_freed_pages_are_used_again():
    steps = figures_tim.recorded("tim_steps")
    tables = [set(map(int, text.split())) for text in steps[steps["threshold"] == "0"]["pages"] if text]
    written = steps[steps["threshold"] == "0"]["written"].max()
    assert len(set.union(*tables)) < 0.75 * written


def test_the_claims_have_the_recorded_verdicts():
    check_recorded(claims_tim.CLAIMS)
