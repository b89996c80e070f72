"""Headline numbers of PAINT (arXiv 2501.12206) and what was found here, on fresh scenes with strengths chosen on others.

An effect whose 95 % interval over scenes covers "no effect" is counted as none: a point estimate alone is no finding.
"""
import pandas as pd

from frugal.core.claims import Claim, Evidence
from frugal.core.papers import paper
from frugal.core.recording import load_recorded

__all__ = ["CLAIMS", "effect", "final"]

PAINT = paper("paint")
_WHERE = "arXiv 2501.12206, abstract; repository hasanar1f/llava-hallunication-fix (LLaVA-1.5, 500 images of MSCOCO)"


def final(method: str, mode: str = "free") -> pd.Series:
    """The recorded row of a method on fresh scenes."""
    rows = load_recorded("token_dropping", "steering_final")
    return rows[(rows.method == method) & (rows["mode"] == mode)].iloc[0]


def effect(value: float, low: float, high: float, neutral: float, note: str) -> Evidence:
    """The value as evidence, or `neutral` when the interval covers it; the note tells both."""
    said = f"{note}: {value:.3g} [{low:.3g}, {high:.3g}]"
    if low <= neutral <= high:
        return Evidence(measured=neutral, note=f"{said}; covers {neutral:g}, so counted as no effect")
    return Evidence(measured=value, note=said)


def cut(method: str) -> Evidence:
    """By how much CHAIR_I fell against greedy decoding, in %."""
    row, plain = final(method), final("greedy")
    return effect(float(row["cut"]), float(row["cut_low"]), float(row["cut_high"]), 0.0,
                  f"cut of CHAIR_I from {100 * plain.chair_i:.1f} % on {int(row.scenes)} scenes (%), recall {100 * row.recall_change:+.1f} "
                  f"points, names said {100 * row.fullness_change:+.1f} points")


def recall_kept(method: str) -> Evidence:
    """Change of recall against greedy decoding, in points."""
    row = final(method)
    low, high = 100 * row.recall_change_low, 100 * row.recall_change_high
    return Evidence(measured=100 * float(row.recall_change), note=f"change of caption recall in points, interval [{low:.2g}, {high:.2g}]")


CLAIMS = [
    Claim("paint_cut", PAINT, "Boosted attention to visual tokens lowers the hallucination rate by up to 62.3 %.", 62.3, "%", _WHERE,
          "measured", lambda: cut("PAINT"), "not reproduced", neutral=0.0),
    Claim("paint_task", PAINT, "Task performance stays comparable: recall falls by no more than a point.", 0.0, "points", _WHERE,
          "measured", lambda: recall_kept("PAINT"), "reproduced", tolerance=1.0, side="at least"),
]
