"""ResGen's shipped models and recorded rows: gates, part of the rows made again, figures, claims and the live run."""

import numpy as np
import pandas as pd
import pytest
import torch

from frugal.core.claims import check_recorded
from frugal.core.image_metrics import psnr
from frugal.core.recording import load_recorded
from frugal.data.emoji_images import load_images
from frugal.models import load_card
from frugal.visual_tokenizers import resgen_measure as measure
from frugal.visual_tokenizers.claims_resgen import CLAIMS
from frugal.visual_tokenizers.figures_resgen import COSTS, FIGURES, SCORES, board, depth_cost, depth_keeps, step_scores
from frugal.visual_tokenizers.resgen import codebooks_of, load_resgen, load_rvq
from frugal.visual_tokenizers.resgen_live import (
    EXAMPLES,
    draw_picture,
    fill,
    from_rows,
    recorded_picture,
    stages,
    to_rows,
)
from frugal.visual_tokenizers.resgen_sampling import hidden_counts


def rows(name: str):
    return load_recorded("visual_tokenizers", name)


def test_depth_buys_quality_and_beats_pca():
    table = rows("resgen_depth").set_index(["what", "depth"])["psnr"]
    levels = table["residual codes"]
    assert levels.is_monotonic_increasing and levels[1] > table["PCA-16", 0] and levels[8] > table["PCA-128", 0] + 1


def test_a_row_of_depth_is_what_the_shipped_tokenizer_gives():
    images, tokenizer = load_images(), load_rvq()
    held = images.pixels[images.held_out_set()]
    decoded = tokenizer.decode(tokenizer.encode(held)[..., :2])
    table = rows("resgen_depth").set_index(["what", "depth"])["psnr"]
    assert float(psnr(decoded, held).mean()) == pytest.approx(table["residual codes", 2], abs=0.02)


def test_the_generator_was_trained_on_this_tokenizer():
    gen = load_resgen()
    assert torch.equal(gen.codebooks, codebooks_of(load_rvq())) and gen.head.components == 32
    held = load_images().held_out_set()
    codes = load_rvq().encode(load_images().pixels[held])
    loss = float(gen.loss(codes, load_images().groups[held], torch.Generator().manual_seed(1)))
    assert loss == pytest.approx(load_card("resgen_8")["metrics"]["held_out_nats"], abs=0.02)
    assert loss < 8 * (0.5 * np.log(2 * np.pi) + 0.5)  # what one Gaussian of the targets' spread would pay


def test_recorded_work_is_counted_again():
    table = rows("resgen_speed")
    assert set(table["sampler"]) == set(measure.SAMPLERS) and set(table["depth"]) == set(measure.DEPTHS)
    own = table[(table["batch"] == 1) & (table["depth"] == 2)].set_index("sampler")
    for name, model in measure.untrained(2).items():
        flops = measure.counted_flops(
            lambda: measure.sample(name, model, torch.zeros(1, dtype=torch.long), torch.Generator().manual_seed(0))
        )
        assert flops == own.loc[name, "flops"] and own.loc[name, "passes"] == measure.forward_passes(name, 2)


def test_every_generation_row_has_its_copy_rate_and_interval():
    table = rows("resgen_quality")
    made = table[(table["passes"] > 0)]
    assert (
        made["copy_rate"].between(0, 1).all()
        and (made["efid_low"] <= made["efid"]).all()
        and (made["efid"] <= made["efid_high"]).all()
    )
    assert {"ResGen", "RQ-Transformer"} <= set(made["sampler"]) <= set(measure.SAMPLERS) and (table["sampler"] == "floor").sum() == 1


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda c: c.key)
def test_verdicts_are_the_recorded_ones(claim):
    assert check_recorded([claim])[0].verdict == claim.verdict


def test_figures_show_the_rows():
    speed, quality = rows("resgen_speed"), rows("resgen_quality")
    for cost in COSTS:
        fig = depth_cost(speed, 1, cost)
        assert {trace.name for trace in fig.data} >= set(measure.SAMPLERS) - {"softmax heads"}
        flat = next(trace for trace in fig.data if trace.name == "ResGen").y
        grows = next(trace for trace in fig.data if trace.name == "RQ-Transformer").y
        assert grows[-1] / grows[0] > 1.5 * flat[-1] / flat[0]
    for score in SCORES:
        line = next(trace for trace in step_scores(quality, score).data if trace.name == "ResGen")
        assert len(line.x) == 6 and list(line.y) == list(
            quality[(quality["sampler"] == "ResGen") & (quality["depth"] == 8)].sort_values("passes")[score]
        )
    assert len(depth_keeps(rows("resgen_depth")).data[0].x) == 8
    assert set(FIGURES) == {"resgen_board", "resgen_depth_cost", "resgen_step_scores", "resgen_depth_keeps"}
    for call in (
        lambda: depth_cost(speed, 1, "x"),
        lambda: step_scores(quality, "x"),
        lambda: depth_keeps(quality, "x"),
    ):
        with pytest.raises(ValueError, match="there are|got|'x'"):
            call()


def test_the_board_fills_columns_from_the_shallow_end():
    filling = fill("Food & Drink", 4, seed=1)
    assert (np.diff(filling.shown_at, axis=1) >= 0).all()
    counts = [int((filling.shown_at > step + 1).sum()) for step in range(4)]
    assert counts == hidden_counts(128, 4) and len(filling.seen) == len(filling.guess) == 4
    assert np.array_equal(filling.seen[-1], filling.guess[-1])  # in the end all is seen
    table = pd.DataFrame(to_rows("Food & Drink", 1, filling))
    again = from_rows(table)
    assert np.array_equal(again.shown_at, filling.shown_at) and all(
        np.array_equal(a, b) for a, b in zip(again.seen, filling.seen)
    )
    grid = board(table, "Food & Drink", 2).data[-1].z
    assert sum(cell is not None for line in grid for cell in line) == 128 - counts[1]


def test_the_recorded_board_is_what_the_form_first_shows():
    shown = recorded_picture()
    assert (shown["group"], shown["seed"], len(shown["seen"])) == EXAMPLES[0]
    assert shown["filled"] == [128 - n for n in hidden_counts(128, 8)]
    assert set(rows("resgen_board")["group"]) == {group for group, *_ in EXAMPLES}


def test_the_live_run_shows_its_stages_and_refuses_unknown_groups():
    done = []
    result = draw_picture({"group": "any group", "steps": 2, "seed": 3}, done.append)
    assert done == [0.5, 1.0] and result["filled"][-1] == result["slots"] == 128
    assert len(stages(result).layout.images) == 4
    with pytest.raises(ValueError, match="unknown group 'Birds'; there are: "):
        fill("Birds")
