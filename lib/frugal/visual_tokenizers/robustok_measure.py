"""The two trained 64-token grids side by side: scores, decibels under perturbation, and a strip of pictures.

Both have the same shape, data, steps and seed; one of them saw perturbed codes in training.
"""
from functools import lru_cache

from frugal.core.image_metrics import psnr
from frugal.data.emoji_images import load_images
from frugal.explore.pictures.stored import to_text
from frugal.models.emoji_scores import efid
from frugal.models.vq_grid import VQGrid, load_vq_grid
from frugal.visual_tokenizers.robustok_generated import PLAIN, ROBUST, places_of, scores_of
from frugal.visual_tokenizers.robustok_pfid import perturbed_efid, perturbed_images, psnr_under

SHOWN = ("partying face", "pineapple", "lady beetle", "sunrise over mountains")   # never trained on
STRIP_ALPHAS, STRIP_DELTA = (0.0, 0.25, 0.5, 1.0), 17
CURVE_ALPHAS, CURVE_DELTAS = (0.0, 0.25, 0.5, 0.75, 1.0), (6, 17, 256)


@lru_cache(maxsize=1)
def load_robustok() -> VQGrid:
    """The trained RobusTok: a 64-token grid whose decoder saw perturbed codes. Raises WeightsError where it is missing."""
    return load_vq_grid(ROBUST)


def score_rows(draws: int = 2) -> tuple[list[dict], list[dict]]:
    """One row a tokenizer (psnr, r_efid, p_efid, g_efid, copy_rate ...), and one a perturbed set (alpha, delta, seed, efid)."""
    every, rows, cells = load_images().pixels, [], []
    for name in (PLAIN, ROBUST):
        tokenizer, own = load_vq_grid(name), []
        mean = perturbed_efid(tokenizer, every, draws, efid, own.append)
        spread = [sum(cell["efid"] for cell in own[draw * 15:][:15]) / 15 for draw in range(draws)]
        rows.append({"tokenizer": name, "p_efid": mean, "p_low": min(spread), "p_high": max(spread), "draws": draws, **scores_of(tokenizer, name)})
        cells += [{"tokenizer": name, **cell} for cell in own]
    return rows, cells


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
