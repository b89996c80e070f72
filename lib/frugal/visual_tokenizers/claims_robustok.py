"""Headline findings of Robust Latent Matters (arXiv 2503.08354), checked on the recorded rows of the small tokenizers.

Absolute FIDs need ImageNet and a generator of 400 M parameters; what is checked here are ratios and rank correlations. The
paper gives no row without any perturbation, so its ratios are those of annealing to a half against annealing to nothing.
"""
import pandas as pd

from frugal.core.claims import Claim, Evidence
from frugal.core.papers import paper
from frugal.core.recording import load_recorded
from frugal.visual_tokenizers.robustok_generated import PLAIN, ROBUST
from frugal.visual_tokenizers.robustok_measure import g_difference, g_values
from frugal.visual_tokenizers.robustok_study import correlation, paired_difference, pairs_of

__all__ = ["CLAIMS"]

OWN = paper("robustok")
ABSTRACT, ABLATION = "arXiv 2503.08354, abstract", "arXiv 2509.12474, ablation of the main training"


def _study() -> pd.DataFrame:
    return load_recorded("visual_tokenizers", "robustok_study")


def _ranks() -> str:
    rows = _study()
    left, right = (correlation(rows[x], rows.g_efid) for x in ("r_efid", "p_efid"))
    return f"Spearman with g-eFID: r-eFID {left}; p-eFID {right}"


def _tracks() -> Evidence:
    rows = _study()
    found = correlation(rows.p_efid, rows.g_efid)
    apart = (rows.g_first - rows.g_second).abs()
    return Evidence(round(found.low, 3), note=(
        f"lower end of the 95 % interval. {_ranks()}. Two sets of codes of one tokenizer differ by {apart.mean():.2f} on average and "
        f"{apart.max():.2f} at most; g-eFID runs from {rows.g_efid.min():.2f} to {rows.g_efid.max():.2f}; the paper has 11 tokenizers, 2 generators"))


def _beyond_chance() -> Evidence:
    found = paired_difference(_study())
    return Evidence(round(found.not_above, 3), note=(
        f"share of resamples in which p-eFID ranks no better; difference of the correlations {found.value:+.2f} [{found.low:+.2f}, "
        f"{found.high:+.2f}], {len(_study())} tokenizers"))


def _ratio(score: str) -> tuple[float, str]:
    rows = load_recorded("visual_tokenizers", "robustok_scores").set_index("tokenizer")
    before, after = float(rows.loc[PLAIN, score]), float(rows.loc[ROBUST, score])
    small = "; ".join(f"beta {beta:g}: {', '.join(f'{value:+.2f}' for value in pairs_of(_study(), beta)[score])}" for beta in (0.1, 1.0))
    return after / before, f"64 tokens, beta 0.1: {before:.3f} without, {after:.3f} with perturbation; pairs of 16 tokens, {small}"


def _p_ratio() -> Evidence:
    ratio, note = _ratio("p_efid")
    return Evidence(round(ratio, 3), note=note)


def _g_ratio() -> Evidence:
    ratio, note = _ratio("g_efid")
    rows = load_recorded("visual_tokenizers", "robustok_scores")
    copies = ", ".join(f"{rows[rows.tokenizer == name].copy_rate.iloc[0]:.0%}" for name in (PLAIN, ROBUST))
    return Evidence(round(ratio, 3), note=f"{note}; copy rates {copies}; see the next line before believing it")


def _g_beyond_chance() -> Evidence:
    rows = load_recorded("visual_tokenizers", "robustok_scores")
    mean, low, high = g_difference(rows)
    ranges = "; ".join(f"{name} {g_values(rows, name).min():.2f} to {g_values(rows, name).max():.2f}" for name in (PLAIN, ROBUST))
    return Evidence(round(high, 3), note=f"upper end of the 95 % interval of the difference {mean:+.3f} [{low:+.3f}, {high:+.3f}] over "
                                         f"{int(rows.sets.iloc[0])} sets each ({ranges}); one training of each tokenizer and generator")


def _r_ratio() -> Evidence:
    ratio, note = _ratio("r_efid")
    return Evidence(round(ratio, 3), note=note)


def _out_of_reach() -> None:
    return None


CLAIMS = [
    Claim("robustok_pfid_tracks", OWN, "pFID follows gFID (here: its rank correlation is positive beyond chance)", 0, "rho", ABSTRACT, "measured",
          _tracks, "not reproduced", tolerance=0, neutral=float("nan"), side="at least"),
    Claim("robustok_ranks_better", OWN, "... where rFID does not (here: chance of ranking no better than it, at most 2.5 %)", 0.025, "share", ABSTRACT,
          "measured", _beyond_chance, "not reproduced", tolerance=0, neutral=float("nan"), side="at most"),
    Claim("robustok_pfid", OWN, "Keeping half of the perturbation: pFID 2.28 against 4.89", 0.466, "x", ABLATION, "measured", _p_ratio,
          "direction holds", side="at most"),
    Claim("robustok_gfid_ratio", OWN, "Keeping half of the perturbation: gFID 1.85 against 1.97 (point estimate; its chance: next line)", 0.939, "x", ABLATION, "measured", _g_ratio,
          "reproduced", tolerance=0.03, side="at most"),
    Claim("robustok_gfid_beyond_chance", OWN, "... and more than the chance of sampling explains (our control; difference of g-eFIDs)", 0, "eFID",
          ABLATION, "measured", _g_beyond_chance, "not reproduced", tolerance=0, neutral=float("nan"), side="at most"),
    Claim("robustok_rfid_cost", OWN, "It costs little in reconstruction: rFID 1.02 against 0.97", 1.052, "x", ABLATION, "measured", _r_ratio,
          "reproduced", side="at most"),
    Claim("robustok_gfid_cfg", OWN, "gFID 1.60 with guidance by a generator of about 400 M parameters", 1.60, "FID", ABSTRACT, "measured",
          _out_of_reach, "out of reach here", neutral=float("nan"), side="at most"),
    Claim("robustok_gfid_plain", OWN, "gFID 3.45 without guidance", 3.45, "FID", ABSTRACT, "measured", _out_of_reach, "out of reach here",
          neutral=float("nan"), side="at most"),
]
