"""Headline claims of R2R (arXiv 2505.21600), checked on the recorded runs of the pair on arithmetic chains.

The paper's sizes (1.5 and 32 billion parameters) enter where a claim is about them; the share of routed tokens is ours. A test
recomputes part of the recorded rows from the weights.
"""
import math

import numpy as np
import pandas as pd

from frugal.core.claims import Claim, Evidence
from frugal.core.papers import paper
from frugal.core.recording import load_recorded
from frugal.core.roofline import Cost, time

__all__ = ["CLAIMS", "at_default", "interpolated", "projected_speedup"]

R2R_PAPER = paper("r2r")
ABSTRACT = "arXiv 2505.21600, abstract"
SMALL_B, LARGE_B, AVERAGE_B = 1.5, 32.0, 5.6       # billions of parameters, as the abstract has them
DEVICE = "A100-80GB"


def _rows() -> pd.DataFrame:
    return load_recorded("early_exit", "r2r_methods")


def at_default(rows: pd.DataFrame) -> pd.Series:
    """The router's row at the threshold chosen in training: recall 0.95 of the divergent tokens."""
    from frugal.models import load_card
    own = rows[rows["method"] == "router"]
    return own.loc[(own["knob"] - load_card("r2r_router")["threshold"]).abs().idxmin()]


def interpolated(rows: pd.DataFrame, method: str, activated: float, column: str = "right") -> float:
    """A method's value at this many activated parameters, on the line through its settings and the two models alone."""
    own = rows[rows["method"].isin([method, "small model", "large model"])].sort_values("activated")
    return float(np.interp(activated, own["activated"], own[column]))


def _average() -> Evidence:
    row = at_default(_rows())
    implied = (AVERAGE_B - SMALL_B) / LARGE_B
    return Evidence(round(SMALL_B + LARGE_B * float(row["calls"]), 2),
                    note=f"1.5 + 32 f, with our f = {row['calls']:.1%} of the tokens; 5.6 B means f = {implied:.1%}. Ours, router included: "
                    f"{row['activated'] / row['large_size']:.0%} of the large model's parameters")


def _same_accuracy() -> Evidence:
    rows = _rows()
    row, large = at_default(rows), rows[rows["method"] == "large model"].iloc[0]
    small = rows[rows["method"] == "small model"].iloc[0]
    return Evidence(round(float(row["right"] / large["right"]), 3), note=f"right answers: R2R {row['right']:.1%} [{row['right_low']:.1%}, "
                    f"{row['right_high']:.1%}], large model {large['right']:.1%}, small model {small['right']:.1%}, {int(row['problems'])} problems")


def _against_middle_model() -> Evidence:
    rows = _rows()
    row = at_default(rows)
    whole = interpolated(rows, "whole questions", float(row["activated"]))
    return Evidence(note=f"no third model of middle size is trained here. Whole questions routed at the same activated parameters reach "
                    f"{whole:.1%}, R2R {row['right']:.1%}")


def projected_speedup(share: float, device: str = DEVICE) -> float:
    """Large model alone over R2R at the paper's sizes in 16 bits, one text: each call reads all weights and, at once, the tokens
    skipped since the last one. An upper bound: no launches, no router, no cache traffic."""
    def step(billions: float, tokens: int | float) -> float:
        return time(Cost(flops=2e9 * billions * tokens, bytes=2e9 * billions), device).lower_s
    return step(LARGE_B, 1) / (step(SMALL_B, 1) + share * step(LARGE_B, 1 / share))


def _speed() -> Evidence:
    speed = load_recorded("early_exit", "r2r_speed").set_index("method")["cpu_ms"]
    share = float(at_default(_rows())["calls"])
    return Evidence(round(float(speed["large model"] / speed["R2R"]), 2), round(projected_speedup(share), 2),
                    note=f"projected on {DEVICE} from weights read, with our f = {share:.1%}: a bound. Measured at batch 1 on a pair this small: "
                    f"{speed['R2R']:.2f} against {speed['large model']:.2f} ms a token, where calls and not weights cost the time")


def _mostly_alike() -> Evidence:
    rows = load_recorded("early_exit", "r2r_labels")
    own = rows[rows["group"] == "all"].set_index("kind")["share"]
    return Evidence(round(100 * float(own["identical"] + own["neutral"]), 2), note=", ".join(
        f"{kind} {100 * own[kind]:.1f} %" for kind in own.index) + f", of {int(rows['problems'].iloc[0])} answers")


def _beyond(method: str) -> Evidence:
    rows = _rows()
    row = at_default(rows)
    other = interpolated(rows, method, float(row["activated"]))
    return Evidence(round(100 * (float(row["right"]) - other), 1), note=f"points of right answers at {row['activated'] / 1e3:.0f} k activated "
                    f"parameters: R2R {row['right']:.1%} [{row['right_low']:.1%}, {row['right_high']:.1%}], {method} {other:.1%} (interpolated)")


CLAIMS = [
    Claim("r2r_average", R2R_PAPER, "5.6 B activated parameters a token on average, of a 1.5 B and a 32 B model", AVERAGE_B, "B", ABSTRACT,
          "counted", _average, "direction holds", neutral=LARGE_B, tolerance=0.15),
    Claim("r2r_mostly_alike", R2R_PAPER, "Most tokens of the large model are identical in the small one, or differ without consequence", 50,
          "%", ABSTRACT, "measured", _mostly_alike, "reproduced", neutral=math.nan, side="at least"),
    Claim("r2r_accuracy", R2R_PAPER, "Accuracy comparable with the large model's", 1, "x", ABSTRACT, "measured", _same_accuracy, "reproduced",
          neutral=math.nan, tolerance=0.05, side="at least"),
    Claim("r2r_middle_model", R2R_PAPER, "1.6 times the average accuracy of R1-7B, a model of middle size", 1.6, "x", ABSTRACT, "measured",
          _against_middle_model, "out of reach here"),
    Claim("r2r_speed", R2R_PAPER, "2.8 times as fast as R1-32B at comparable accuracy", 2.8, "x", ABSTRACT, "projected", _speed,
          "direction holds"),
    Claim("r2r_beyond_random", R2R_PAPER, "The router knows where to ask: better than blind routing at equal parameters", 0, "points",
          "arXiv 2505.21600, section 4", "measured", lambda: _beyond("random tokens"), "reproduced", tolerance=0, side="at least"),
    Claim("r2r_beyond_questions", R2R_PAPER, "Better than routing whole questions at equal parameters", 0, "points",
          "arXiv 2505.21600, section 4", "measured", lambda: _beyond("whole questions"), "reproduced", tolerance=0, side="at least"),
    Claim("r2r_beyond_entropy", R2R_PAPER, "Better than asking where the small model's entropy is high", 0, "points",
          "arXiv 2505.21600, section 4", "measured", lambda: _beyond("entropy"), "reproduced", tolerance=0, side="at least"),
]
