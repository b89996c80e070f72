"""What is recorded of FlexTok and HieraTok: rows are those of the weights, figures draw at every choice, claims stand."""
import numpy as np
import pytest
import torch

from frugal.core.claims import check_recorded
from frugal.core.image_metrics import psnr
from frugal.core.recording import load_recorded
from frugal.data.emoji_images import load_images
from frugal.explore.pictures.stored import from_text
from frugal.visual_tokenizers import claims_flextok, claims_hieratok, figures_flextok, figures_hieratok
from frugal.visual_tokenizers.claims_hieratok import steps_to_reach
from frugal.visual_tokenizers.flextok import load_flextok
from frugal.visual_tokenizers.hieratok import load_hieratok

FIGURES = figures_flextok.FIGURES | figures_hieratok.FIGURES


def rows(name: str):
    return load_recorded("visual_tokenizers", name)


@pytest.mark.parametrize("name", FIGURES)
def test_figures_draw_at_every_choice_and_stay_small(name):
    explorer = FIGURES[name]()
    for control in explorer.controls:
        for value in control.values:
            assert len(explorer.figure(**{control.name: value}).data) > 0
    assert len(str(explorer.payload)) < 400_000
    with pytest.raises(ValueError, match="no control"):
        explorer.figure(no_such_control=1)


@pytest.mark.parametrize("draw, table", [
    (figures_flextok.kept_curve, "flextok_kept"), (figures_hieratok.score_points, "hieratok_scores"),
    (figures_hieratok.flow_curve, "hieratok_flow")])
def test_unknown_scores_are_refused(draw, table):
    with pytest.raises(ValueError, match="there are"):
        draw(rows(table), score="beauty")


def test_recorded_scores_are_those_of_the_weights():
    images, tok, table = load_images(), load_flextok(), rows("flextok_kept")
    held = images.pixels[images.held_out_set()]
    codes = tok.encode(held)
    for k in (1, 16):
        kept = float(table[(table["what"] == "one step") & (table["k"] == k)]["psnr"].iloc[0])
        assert float(psnr(tok.decode_mean(codes[:, :k]), held).mean()) == pytest.approx(kept, abs=0.02)
    score = rows("hieratok_scores")
    kept = float(score[(score["variant"] == "hieratok") & (score["seed"] == 0)]["psnr"].iloc[0])
    hiera = load_hieratok()
    assert float(psnr(hiera.decode(hiera.encode(held)), held).mean()) == pytest.approx(kept, abs=0.02)


def test_a_recorded_picture_is_what_the_weights_draw():
    images, tok, table = load_images(), load_flextok(), rows("flextok_pictures")
    row = table[(table["k"] == 4) & (table["seed"] == 1)].iloc[0]
    place = images.names.index(row["emoji"])
    made = tok.decode(tok.encode(images.pixels[place:place + 1])[:, :4], 20, torch.Generator().manual_seed(1))
    stored = np.asarray(from_text(row["png"])) / 255
    assert np.abs(stored - made[0].permute(1, 2, 0).numpy()).mean() < 0.01


def test_claims_stand():
    check_recorded([*claims_flextok.CLAIMS, *claims_hieratok.CLAIMS])


def test_steps_to_reach():
    assert steps_to_reach([100, 200, 300], [3.0, 2.0, 1.0], 1.5) == 250
    assert steps_to_reach([100, 200], [3.0, 2.0], 2.0) == 200
    assert steps_to_reach([100, 200], [1.0, 0.5], 2.0) == 100
    assert np.isnan(steps_to_reach([100, 200], [3.0, 2.0], 1.0))
