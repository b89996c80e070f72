"""Headline numbers of HieraTok (arXiv 2509.23736), checked on the recorded rows of tiny models.

Scores are eFID and eKID on emoji, so percentages are compared, not values. Tokenizers and generators were trained for
seconds: the spread over seeds stands in every note and decides how a number is to be read.
"""
import numpy as np
import pandas as pd

from frugal.core.claims import Claim, Evidence
from frugal.core.papers import paper
from frugal.core.recording import load_recorded

__all__ = ["CLAIMS", "steps_to_reach"]

HIERATOK = paper("hieratok")
ABSTRACT = "arXiv 2509.23736, abstract"


def _scores(score: str, name: str = "hieratok_scores") -> pd.DataFrame:
    """A score by seed (rows) and variant (columns)."""
    rows = load_recorded("visual_tokenizers", name)
    if name == "hieratok_flow":
        rows = rows[rows["steps"] == rows["steps"].max()]
    return rows.pivot(index="seed", columns="variant", values=score)


def _lower(table: pd.DataFrame, against: str, what: str, digits: int = 3) -> Evidence:
    """By how many percent HieraTok's mean is lower than another variant's; 0 where seeds disagree on who is lower."""
    each = ", ".join(f"{name} {' / '.join(f'{v:.{digits}f}' for v in table[name].dropna())}" for name in table)
    pairs = 100 * (1 - table["hieratok"] / table[against]).dropna()
    gain = 100 * (1 - table["hieratok"].mean() / table[against].mean())
    agree = bool((pairs > 0).all() or (pairs < 0).all())
    said = ", ".join(f"{p:+.1f} %" for p in pairs)
    return Evidence(round(float(gain), 1) if agree else 0, note=f"{what} by seed: {each}; lower by {said} seed by seed"
                    + ("" if agree else f" (mean {gain:+.1f} %): seeds disagree, so it counts as no effect"))


def _reconstruction() -> Evidence:
    found = _lower(_scores("refid"), "single", "r-eFID over all emoji")
    return Evidence(found.measured, note=f"{found.note}. 400 steps each; whether our own coarse losses cause it was not tested")


def _control() -> Evidence:
    found = _lower(_scores("refid"), "shuffled", "r-eFID over all emoji")
    return Evidence(found.measured, note=f"{found.note}. The coarse losses are harder to meet with shuffled tokens, which is part of this")


def _generation() -> Evidence:
    table, copies = _scores("ekid", "hieratok_flow"), _scores("copies", "hieratok_flow")
    found = _lower(table, "single", "eKID of 450 generated pictures")
    return Evidence(found.measured, note=f"{found.note}; copy rate at most {copies.max().max():.1%}")


def _smooth() -> Evidence:
    return _lower(_scores("between_efid"), "single", "eFID of pictures half-way between two latents", 2)


def steps_to_reach(steps: list[int], values: list[float], target: float) -> float:
    """Training steps at which a falling curve first reaches the target, linear between points; NaN if never."""
    for (a, b), (x, y) in zip(zip(steps, steps[1:]), zip(values, values[1:])):
        if y <= target <= x:
            return float(np.interp(-target, [-x, -y], [a, b]))
    return float("nan") if values[0] > target else float(steps[0])


def _convergence() -> Evidence:
    rows = load_recorded("visual_tokenizers", "hieratok_flow")
    curves = rows.groupby(["variant", "steps"])["ekid"].mean()
    steps, target = curves["single"].index.tolist(), float(curves["single"].iloc[-1])
    taken = {name: steps_to_reach(steps, curves[name].tolist(), target) for name in dict.fromkeys(rows["variant"])}
    said = ", ".join(f"{name} {value:.0f}" if np.isfinite(value) else f"{name} not within {steps[-1]}" for name, value in taken.items())
    ours = taken["hieratok"]
    controls = [name for name in ("full", "shuffled") if taken.get(name, np.inf) < steps[-1]]
    doubt = f"; {' and '.join(controls)} do so too, so it need not be the order of the scales" if controls else ""
    return Evidence(round(steps[-1] / ours, 3) if np.isfinite(ours) else round(float(target / curves["hieratok"].iloc[-1]), 3),
                    note=f"steps until the eKID that the single scale ends with ({target:.3f}), mean over seeds: {said}{doubt}"
                    + ("" if np.isfinite(ours) else "; never reached, so the ratio of the final eKIDs stands here"))


def _scaled_up() -> Evidence:
    cost = load_recorded("visual_tokenizers", "hieratok_cost")
    last = cost.iloc[-1]
    return Evidence(note=f"no ImageNet and no FID here. Price of the pyramid: {int(last.tokens)} tokens in its blocks for "
                    f"{int(cost.tokens.iloc[0])}, {last.mflops / cost.mflops.iloc[0]:.2f}x FLOPs for the whole tokenizer")


CLAIMS = [
    Claim("hieratok_rfid", HIERATOK, "The pyramid lowers rFID by 27.2 % (1.47 to 1.07)", 27.2, "%", ABSTRACT, "measured", _reconstruction,
          "not reproduced", neutral=0),
    Claim("hieratok_control", HIERATOK, "... and the order of the scales is what helps: better than a shuffled pyramid (our control)", 0, "%",
          ABSTRACT, "measured", _control, "reproduced", tolerance=0, side="at least", neutral=float("nan")),
    Claim("hieratok_gfid", HIERATOK, "A generator on its latent has an 18.9 % lower gFID at equal steps (16.4 to 13.3)", 18.9, "%", ABSTRACT,
          "measured", _generation, "not reproduced", neutral=0),
    Claim("hieratok_convergence", HIERATOK, "... and converges 1.38 times faster", 1.38, "x", ABSTRACT, "measured", _convergence,
          "direction holds"),
    Claim("hieratok_smooth", HIERATOK, "Its latent space is smoother: pictures between two latents look more like pictures", 0, "%", ABSTRACT,
          "measured", _smooth, "not reproduced", tolerance=0, side="at least", neutral=float("nan")),
    Claim("hieratok_scaled", HIERATOK, "Scaled up, gFID 1.82 on ImageNet", 1.82, "FID", ABSTRACT, "measured", _scaled_up, "out of reach here",
          side="at most"),
]
