"""Headlines of GenSE (arXiv 2502.02942) and what was found on synthetic speech.

The abstract gives no numbers, so directions are judged and the sizes are ours; tokens are drawn plainly, as the release does,
and the note says what taking the likeliest token gives. Differences are paired over the same clips at five SNRs; one whose
95 % interval holds 0 counts as none.
"""
from frugal.core.claims import Claim, Evidence
from frugal.core.papers import paper
from frugal.core.recording import load_recorded

__all__ = ["CLAIMS"]

GENSE = paper("gense")
_ABSTRACT = "arXiv 2502.02942, abstract (direction; the size is ours to find)"
_LEAST = {"tolerance": 0.0, "side": "at least"}


def _row(other: str, score: str, temperature: float, snr: str):
    rows = load_recorded("visual_tokenizers", "gense_pairs")
    return rows[(rows.other == other) & (rows.score == score) & (rows.temperature == temperature) & (rows.snr_db == snr)].iloc[0]


def _said(row, sign: int) -> str:
    low, high = sorted((sign * row.low, sign * row.high))
    return f"{sign * row.value:+.3g} [{low:+.3g}, {high:+.3g}]"


def gain(other: str, score: str, words: str, snr: str = "all") -> Evidence:
    """How much better the two-stage system is than `other`; scores but the voice match are better when smaller."""
    sign = 1 if score == "voice" else -1
    drawn, likeliest = (_row(other, score, temperature, snr) for temperature in (1.0, 0.0))
    sure = drawn.low > 0 or drawn.high < 0
    return Evidence(measured=sign * float(drawn.value) if sure else 0.0,
                    note=f"{words}: {_said(drawn, sign)} with drawn tokens, {_said(likeliest, sign)} with the likeliest" + ("" if sure else "; no difference is shown"))


def semantic_voice() -> Evidence:
    """What a probe reads of the voice from acoustic tokens less what it reads from semantic ones."""
    rows = load_recorded("visual_tokenizers", "gense_voice")
    mean = rows.groupby("tokens").r2.mean()
    each = ", ".join(f"{r.voice} {r.r2:.2f}" for r in rows[rows.tokens == "semantic"].itertuples())
    return Evidence(measured=float(mean["acoustic"] - mean["semantic"]),
                    note=f"R2 of a linear probe for the voice: acoustic {mean['acoustic']:.2f}, semantic {mean['semantic']:.2f} ({each}); 0 is chance")


CLAIMS = [
    Claim("gense_hierarchy", GENSE, "Going through clean semantic tokens keeps what is said better than one stage of acoustic tokens.", 1, "points", _ABSTRACT,
          "measured", lambda: gain("one-stage", "edits_strict", "phoneme errors saved against one stage (points)"), "reproduced", **_LEAST),
    Claim("gense_prompt", GENSE, "Token chain prompting keeps the voice: with noisy acoustic tokens in the prompt the timbre stays.", 0.1, "voice match",
          "arXiv 2502.02942, section 3.3 (direction; the size is ours to find)", "measured",
          lambda: gain("no noisy prompt", "voice", "voice match gained by the noisy acoustic prompt"), "reproduced", **_LEAST),
    Claim("gense_semantic_voice", GENSE, "Semantic tokens say what is said and little of who says it; acoustic tokens carry the voice.", 0.3, "R2",
          "arXiv 2502.02942, section 3.1 (direction; the size is ours to find)", "measured", semantic_voice, "reproduced", **_LEAST),
    Claim("gense_enhances", GENSE, "Enhanced speech is easier to understand than the noisy one.", 1, "points", _ABSTRACT, "measured",
          lambda: gain("noisy", "edits_strict", "phoneme errors saved against the noisy clip, judge of clean speech (points)"), "reproduced", **_LEAST),
    Claim("gense_over_regression", GENSE, "Generating tokens outperforms regression.", 1, "points", _ABSTRACT, "measured",
          lambda: gain("regression", "edits_strict", "phoneme errors saved against a small regression network (points)"), "not reproduced", **_LEAST),
    Claim("gense_robust_judge", GENSE, "Enhancement helps a recognizer that is used to noise, too.", 1, "points", _ABSTRACT, "measured",
          lambda: gain("noisy", "edits_robust", "phoneme errors saved against the noisy clip, judge used to noise (points)"), "not reproduced", **_LEAST),
]
