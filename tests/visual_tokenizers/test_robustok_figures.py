"""Figures of RobusTok and post-training on made-up rows whose answer is known, the live form, and recorded rows run again."""
import pandas as pd
import pytest
import torch

from frugal.core.image_metrics import psnr
from frugal.core.recording import load_recorded, recorded_names
from frugal.data.emoji_images import load_images
from frugal.explore import live
from frugal.explore.pictures.stored import to_text
from frugal.models import list_weights
from frugal.models.vq_grid import load_vq_grid
from frugal.visual_tokenizers import figures_post_training as post_figures
from frugal.visual_tokenizers import figures_robustok as figures
from frugal.visual_tokenizers import live_robustok, post_training
from frugal.visual_tokenizers.robustok_pfid import perturbed_images
from frugal.visual_tokenizers.robustok_study import SPECS

STORED = set(recorded_names("visual_tokenizers"))
needs_weights = pytest.mark.skipif(not {"robustok_64", "vq_grid_64"} <= set(list_weights()), reason="not trained yet")


def study_rows() -> pd.DataFrame:
    """g-eFID rises with p-eFID and falls with r-eFID."""
    rows = pd.DataFrame([{"tokenizer": spec.name, **vars(spec), "r_efid": 9.0 - i, "p_efid": 3.0 + i, "g_efid": 8.0 + i, "copy_rate": 0.01 * i,
                          "held_out_nats": 3.0} for i, spec in enumerate(SPECS)])
    return rows.assign(r_low=rows.r_efid - 0.1, r_high=rows.r_efid + 0.2, g_low=rows.g_efid - 0.1, g_high=rows.g_efid + 0.2)


def post_rows() -> pd.DataFrame:
    """before 10, control 9, perturbed 9.5; after 7 at sigma 0.7, more elsewhere."""
    kinds = [("none", float("nan"), "", 10.0), ("clean", float("nan"), "", 9.0), ("perturbed", float("nan"), "", 9.5)]
    kinds += [("generated", sigma, source, 7.0 + abs(sigma - 0.7) + (source == "tokens")) for sigma in (0.3, 0.5, 0.7, 0.9)
              for source in ("reencode", "tokens")]
    return pd.DataFrame([{"tokenizer": "robustok_64", "input": i, "sigma": s, "source": o, "g_efid": g, "g_first": g - 0.1, "g_second": g + 0.1,
                          "r_efid": 1.0, "psnr": 22.0, "copy_rate": 0.05, "label_accuracy": 0.6} for i, s, o, g in kinds])


def test_the_scatter_says_both_correlations():
    fig = figures.study_scatter(study_rows())
    assert fig.layout.title.text.endswith("-1.00 with r-eFID, +1.00 with p-eFID") and f"{len(SPECS)} tokenizers" in fig.layout.meta["summary"]
    points = sorted((x, y) for trace in fig.data if trace.xaxis == "x2" for x, y in zip(trace.x, trace.y))
    assert points == sorted(zip(study_rows().p_efid, study_rows().g_efid))
    assert figures.study_scatter(study_rows(), "copy_rate").data[0].error_y.array is None
    with pytest.raises(ValueError, match="copy_rate"):
        figures.study_scatter(study_rows(), "FID")


def test_the_curve_over_sigma_has_its_lines_and_names_the_papers_setting():
    fig = post_figures.sigma_curve(post_rows())
    assert fig.layout.title.text == "g-eFID 10.00 before, 9.00 by the control, 7.00 after (sigma 0.7, as the paper)"
    assert "Lowest of 8 settings, so flattered: 7.000" in fig.layout.meta["summary"]
    dashes = {trace.name: trace.line.dash for trace in fig.data if trace.showlegend}
    assert dashes["before"] == "dash" and dashes["control: as many steps on clean codes"] == "dot"
    with pytest.raises(ValueError, match="right"):
        post_figures.sigma_curve(post_rows(), "FID")
    with pytest.raises(ValueError, match="one is needed"):
        post_figures.variant(post_rows(), "generated", sigma=0.33, source="tokens")


@pytest.mark.parametrize("name", [*figures.FIGURES, *post_figures.FIGURES])
def test_every_figure_draws_its_recorded_rows(name):
    table = {"post_training_sigma": "post_training"}.get(name, name)
    if table not in STORED:
        pytest.skip(f"{table} is not recorded yet")
    points = (figures.FIGURES | post_figures.FIGURES)[name]().payload["points"]
    assert points and all("e" not in point and len(point["s"]) > 20 for point in points)


@needs_weights
def test_the_forms_first_run_is_the_recorded_one():
    form, done = live_robustok.inputs(), []
    first = {"name": live_robustok.NAME, "alpha": live_robustok.ALPHA, "delta": live_robustok.STRIP_DELTA, "seed": 0}
    made = live_robustok.wrong_codes(first, lambda share, rows: done.append(share))
    kept = live_robustok.recorded_run()
    assert done == [0.5, 1.0] and [row["label"] for row in made] == [row["label"] for row in kept] == ["Original", "VQ grid", "RobusTok"]
    assert [row["psnr"] for row in made[1:]] == pytest.approx([row["psnr"] for row in kept[1:]], abs=0.02)
    assert live(live_robustok.wrong_codes, live_robustok.both_decoders, recorded=kept, **form) is not None
    with pytest.raises(ValueError, match="no emoji"):
        live_robustok.wrong_codes(first | {"name": "unheard of"}, lambda *_: None)


@needs_weights
def test_recorded_decibels_are_found_again():
    rows = load_recorded("visual_tokenizers", "robustok_psnr")
    held = load_images().pixels[load_images().held_out_set()]
    for name in ("vq_grid_64", "robustok_64"):
        plain = rows[(rows.tokenizer == name) & (rows.alpha == 0)].psnr
        again = float(psnr(perturbed_images(load_vq_grid(name), held, 0.0, 1), held).mean())
        assert plain.tolist() == pytest.approx([again] * len(plain), abs=0.01)
        for delta in rows.delta.unique():
            own = rows[(rows.tokenizer == name) & (rows.delta == delta)].sort_values("alpha")
            assert (own.psnr.diff().dropna() < 0).all()


@pytest.mark.skipif("post_training" not in STORED, reason="not trained yet")
def test_no_post_training_touched_encoder_or_generator():
    rows = load_recorded("visual_tokenizers", "post_training")
    for name, own in rows.groupby("tokenizer"):
        model = load_vq_grid(name)
        assert set(own.frozen) == {post_training.frozen_hash(model, post_training.decoder_parts(model))}
        assert own.generator.nunique() == 1


@pytest.mark.skipif("post_trained_64" not in list_weights(), reason="not trained yet")
def test_the_tuned_tokenizer_sends_the_same_codes():
    after, before = post_training.load_post_trained(), load_vq_grid("robustok_64")
    images = load_images().pixels[::300]
    codes = before.encode(images)
    assert torch.equal(after.encode(images), codes) and not torch.equal(after.decode(codes), before.decode(codes))
    assert to_text(after.decode(codes)[0].permute(1, 2, 0).numpy())
