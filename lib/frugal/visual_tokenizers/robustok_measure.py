"""The two trained 64-token grids side by side: scores, decibels under perturbation, and a strip of pictures.

Both have the same shape, data, steps and seed; one of them saw perturbed codes in training.
"""
from functools import lru_cache

import numpy as np
import pandas as pd
from scipy.stats import ttest_ind

from frugal.core.image_metrics import psnr
from frugal.data.emoji_images import load_images
from frugal.explore.pictures.stored import to_text
from frugal.models.emoji_scores import efid
from frugal.models.vq_grid import VQGrid, load_vq_grid
from frugal.visual_tokenizers.robustok_generated import PLAIN, ROBUST, decoded, generated_codes, places_of, scores_of
from frugal.visual_tokenizers.robustok_pfid import perturbed_efid, perturbed_images, psnr_under

SHOWN = ("partying face", "pineapple", "lady beetle", "sunrise over mountains")   # never trained on
SETS = 6                                            # of generated codes, a tokenizer
STRIP_ALPHAS, STRIP_DELTA = (0.0, 0.25, 0.5, 1.0), 17
CURVE_ALPHAS, CURVE_DELTAS = (0.0, 0.25, 0.5, 0.75, 1.0), (6, 17, 256)


@lru_cache(maxsize=1)
def load_robustok() -> VQGrid:
    """The trained RobusTok: a 64-token grid whose decoder saw perturbed codes. Raises WeightsError where it is missing."""
    return load_vq_grid(ROBUST)


def score_rows(draws: int = 2, sets: int = SETS) -> tuple[list[dict], list[dict]]:
    """One row a tokenizer (psnr, r_efid, p_efid, g_efid, copy_rate ...), and one a perturbed set (alpha, delta, seed, efid).

    g_efid: mean over `sets` sets of generated codes; g_0, g_1 ...: each. They show what sampling does alone; that each
    tokenizer has one generator, trained once, they do not show.
    """
    every, rows, cells = load_images().pixels, [], []
    for name in (PLAIN, ROBUST):
        tokenizer, own = load_vq_grid(name), []
        mean = perturbed_efid(tokenizer, every, draws, efid, own.append)
        spread = [sum(cell["efid"] for cell in own[draw * 15:][:15]) / 15 for draw in range(draws)]
        each = [efid(decoded(tokenizer, generated_codes(name, seed))) for seed in range(sets)]
        rows.append({"tokenizer": name, "p_efid": mean, "p_low": min(spread), "p_high": max(spread), "draws": draws, **scores_of(tokenizer, name),
                     "sets": sets, **{f"g_{seed}": value for seed, value in enumerate(each)}, "g_efid": sum(each) / sets})
        cells += [{"tokenizer": name, **cell} for cell in own]
    return rows, cells


def g_values(rows: pd.DataFrame, name: str) -> np.ndarray:
    """g-eFID of every set of generated codes of one tokenizer, of the rows that `score_rows` makes."""
    row = rows[rows.tokenizer == name].iloc[0]
    return np.array([float(row[f"g_{seed}"]) for seed in range(int(row.sets))])


def g_difference(rows: pd.DataFrame) -> tuple[float, float, float]:
    """Mean g-eFID of RobusTok less the plain grid's, with the 95 % interval of Welch's t over the sets."""
    found = ttest_ind(g_values(rows, ROBUST), g_values(rows, PLAIN), equal_var=False)
    ends = found.confidence_interval(0.95)
    return float(g_values(rows, ROBUST).mean() - g_values(rows, PLAIN).mean()), float(ends.low), float(ends.high)


def psnr_rows() -> list[dict]:
    """Held-out decibels of both tokenizers for every alpha and delta; delta 256 replaces by any code."""
    held = load_images().pixels[load_images().held_out_set()]
    return [{"tokenizer": name, **row} for name in (PLAIN, ROBUST) for delta in CURVE_DELTAS
            for row in psnr_under(load_vq_grid(name), held, CURVE_ALPHAS, delta)]


def strip_rows() -> list[dict]:
    """Pictures as text: each shown emoji decoded by both tokenizers at each alpha, the same tokens hit in both (seed 0)."""
    rows = []
    for place, emoji in zip(places_of(SHOWN), SHOWN):
        image = load_images().pixels[place][None]
        for name in (PLAIN, ROBUST):
            for alpha in STRIP_ALPHAS:
                made = perturbed_images(load_vq_grid(name), image, alpha, STRIP_DELTA, seed=0)
                rows.append({"emoji": emoji, "tokenizer": name, "alpha": alpha, "delta": STRIP_DELTA, "psnr": float(psnr(made, image)[0]),
                             "picture": to_text(made[0].permute(1, 2, 0).numpy())})
    return rows
