"""p-eFID on a small random tokenizer, and the correlation study's statistics against scipy."""
import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import spearmanr

from frugal.core.image_metrics import psnr
from frugal.models.quantizers import VectorQuantizer
from frugal.models.vq_grid import VQGrid
from frugal.visual_tokenizers import robustok_pfid as pfid
from frugal.visual_tokenizers import robustok_study as study
from frugal.visual_tokenizers.robustok_generated import places_of


@pytest.fixture(scope="module")
def tokenizer() -> VQGrid:
    torch.manual_seed(0)
    return VQGrid(4, VectorQuantizer(64, 4), fine=8, width=8, blocks=(1, 1), linear_shortcut=True).requires_grad_(False).eval()


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.rand(9, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def moved(made: torch.Tensor, plain: torch.Tensor) -> float:
    return float((made - plain).square().mean())


def test_nothing_perturbed_is_the_plain_reconstruction(tokenizer, images):
    plain = tokenizer.decode(tokenizer.encode(images))
    for alpha, delta in ((0.0, 12), (0.9, 1)):
        assert torch.equal(pfid.perturbed_images(tokenizer, images, alpha, delta, 3), plain)


def test_the_grid_is_the_papers_scaled():
    cells = pfid.settings(256, draws=2)
    assert len(cells) == 30 and len({seed for *_, seed in cells}) == 30
    assert {(alpha, delta) for alpha, delta, _ in cells} == {(a, d) for a in (0.9, 0.8, 0.7, 0.6, 0.5) for d in (12, 17, 22)}
    assert {delta for _, delta, _ in pfid.settings(1024)} == {50, 70, 90}


def test_the_score_is_the_mean_of_its_cells(tokenizer, images):
    plain, cells = tokenizer.decode(tokenizer.encode(images)), []
    found = pfid.perturbed_efid(tokenizer, images, 1, lambda made: moved(made, plain), cells.append)
    assert len(cells) == 15 and found == pytest.approx(np.mean([cell["efid"] for cell in cells]))
    cell = cells[7]
    again = pfid.perturbed_images(tokenizer, images, cell["alpha"], cell["delta"], cell["seed"])
    assert moved(again, plain) == pytest.approx(cell["efid"])
    assert found > 0 and pfid.perturbed_efid(tokenizer, images, 1, lambda made: moved(made, plain)) == found


def test_pictures_move_more_with_alpha_and_delta(tokenizer, images):
    plain = tokenizer.decode(tokenizer.encode(images))
    steps = {delta: [moved(pfid.perturbed_images(tokenizer, images, alpha, delta), plain) for alpha in (0.25, 0.5, 1.0)] for delta in (4, 64)}
    assert all(a < b < c for a, b, c in steps.values()) and steps[4][2] < steps[64][2]


def test_decibels_are_means_over_pictures_and_draws(tokenizer, images):
    rows = pfid.psnr_under(tokenizer, images, (0.0, 0.5), 8, draws=3)
    each = [float(psnr(pfid.perturbed_images(tokenizer, images, 0.5, 8, seed), images).mean()) for seed in range(3)]
    assert rows[1]["psnr"] == pytest.approx(np.mean(each)) and (rows[1]["low"], rows[1]["high"]) == pytest.approx((min(each), max(each)))
    assert rows[0]["low"] == rows[0]["psnr"] == rows[0]["high"]


# -- statistics of the study ------------------------------------------------------------------------------------------

@pytest.mark.parametrize("seed", range(5))
def test_spearman_is_scipys_also_with_ties(seed):
    rng = np.random.default_rng(seed)
    x, y = rng.integers(0, 5, 9), rng.normal(size=9)
    assert study.spearman(x, y) == pytest.approx(spearmanr(x, y).statistic)


def test_a_constant_side_has_no_correlation():
    assert np.isnan(study.spearman(np.ones(5), np.arange(5)))


def test_correlation_of_a_monotone_and_of_a_shuffled_column():
    x = np.arange(8.0)
    found = study.correlation(x, np.exp(x))
    assert found.rho == pytest.approx(1) and found.p < 0.002 and found.count == 8
    rng = np.random.default_rng(1)
    ps = [study.correlation(x, rng.permutation(x), draws=200, seed=s).p for s in range(40)]
    assert 0.3 < np.mean(ps) < 0.7                            # under no association p is uniform
    wide = study.correlation(x, [3, 1, 4, 1.5, 9, 2, 6, 5])
    assert wide.low < wide.rho < wide.high and "8 tokenizers" in str(wide)


@pytest.mark.parametrize("x, y", [([1, 2, 3], [1, 2, 3]), ([1, 2, 3, 4], [1, 2, 3, 4, 5])])
def test_too_few_tokenizers_are_refused(x, y):
    with pytest.raises(ValueError, match="at least 4"):
        study.correlation(x, y)


def test_the_difference_is_paired():
    rows = pd.DataFrame({"r_efid": [1, 2, 3, 4, 5.0], "p_efid": [1, 2, 3, 4, 5.0], "g_efid": [2, 1, 4, 3, 5.0]})
    same = study.paired_difference(rows)
    assert (same.value, same.low, same.high) == pytest.approx((0, 0, 0)) and same.not_above == 1      # ties count against it
    rows["r_efid"] = -rows.r_efid
    found = study.paired_difference(rows)
    assert found.value == pytest.approx(1.6) and found.high <= 2 and 0 <= found.not_above < 0.2


def test_pairs_compare_equal_codebooks():
    rows = pd.DataFrame({"codebook_size": [64, 64, 64, 256, 256], "dim": 8, "kind": ["none", "nearest", "nearest", "none", "random"],
                         "beta": [0, 0.1, 1, 0, 1], "r_efid": [1, 1.5, 3, 2, 2], "p_efid": [5, 4.0, 2, 3, 3], "g_efid": [9, 8.0, 6, 7, 7]})
    for beta, want in ((0.1, [0.5, -1, -1]), (1.0, [2, -3, -3])):
        pairs = study.pairs_of(rows, beta)
        assert pairs[["r_efid", "p_efid", "g_efid"]].values.tolist() == [want] and pairs.codebook_size.tolist() == [64]


def test_specs_have_names_of_their_own():
    specs = study.SPECS + study.BASELINES
    assert len({spec.name for spec in specs}) == len(specs) >= 6 + 2
    assert all((spec.kind == "none") == (spec.beta == 0) for spec in specs)


def test_an_unknown_emoji_is_named():
    with pytest.raises(ValueError, match="no such thing"):
        places_of(("pineapple", "no such thing"))
