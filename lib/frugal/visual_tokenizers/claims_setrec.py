"""Headlines of SETRec (arXiv 2502.10833) and what was found on synthetic emoji sessions.

The abstract gives directions, no numbers; sizes are ours to find. Differences are in points of Recall@10, paired over the same
2,000 test users, and beta was chosen on other users. A difference whose interval holds 0 counts as none.
"""
import numpy as np

from frugal.core.bootstrap import Interval, interval
from frugal.core.claims import Claim, Evidence
from frugal.core.papers import paper
from frugal.core.recording import load_recorded
from frugal.visual_tokenizers.setrec_cost import GPU, PAPER_SCALE, projected_times

__all__ = ["CLAIMS"]

SETREC = paper("setrec")
_ABSTRACT = "arXiv 2502.10833, abstract (direction; the size is ours to find)"
_SOUND = {"tolerance": 0.0, "side": "at least"}


def _hits(table: str, kind: str, **where) -> np.ndarray:
    """A digit a test user: whether the target was among the first ten."""
    rows = load_recorded("visual_tokenizers", f"setrec_{table}")
    rows = rows[(rows.kind == kind) & (rows.score == "recall")]
    for column, value in where.items():
        rows = rows[rows[column] == value]
    return np.array([int(digit) for digit in rows.hits.iloc[0]], float)


def paired(ours: np.ndarray, theirs: np.ndarray) -> Interval:
    """Difference of two recalls in points, resampled over users."""
    return interval({"gain": 100 * (ours - theirs)}, lambda s: s["gain"] / len(ours))


def _difference(ours: np.ndarray, theirs: np.ndarray, words: str) -> Evidence:
    found = paired(ours, theirs)
    return Evidence(measured=found.value if found.excludes(0) else 0.0,
                    note=f"{words}: {100 * ours.mean():.1f} against {100 * theirs.mean():.1f} %, {found.value:+.1f} points "
                    f"[{found.low:+.1f}, {found.high:+.1f}]" + ("" if found.excludes(0) else ": no difference is shown"))


def _over(method: str, kind: str, words: str):
    return lambda: _difference(_hits("recall", kind, method="sem4"), _hits("recall", kind, method=method), words)


def _cold_without_meaning() -> Evidence:
    return _difference(_hits("recall", "cold", method="sem4"), _hits("beta", "cold", beta=0.0), "cold items, chosen beta against 0")


def _warm_without_cf() -> Evidence:
    return _difference(_hits("recall", "warm", method="sem4"), _hits("beta", "warm", beta=1.0), "warm items, chosen beta against 1")


def _sparse() -> Evidence:
    """All items; the cold ones in the note, since there the tokens gain by seeing each other."""
    found, cold = (_over("inside", kind, f"{kind} items, sparse against full within items")() for kind in ("all", "cold"))
    return Evidence(measured=found.measured, note=f"{found.note}; {cold.note}")


def _speed() -> Evidence:
    rows = load_recorded("visual_tokenizers", "setrec_cost").set_index(["backbone", "kind", "size"])
    own, lm = rows.loc[("small decoder", "beam", 20)], rows.loc[("SmolLM2-135M", "beam", 20)]
    return Evidence(measured=float(lm.times_base), projected=projected_times(),
                    note=f"CPU time on SmolLM2, beam 20 over one pass with 5 queries; small decoder {own.times_base:.1f}; FLOPs {lm.flops_base:.1f} and "
                    f"{own.flops_base:.1f}; projected by roofline for {PAPER_SCALE} on one {GPU}, 50 items")


def _flat() -> Evidence:
    rows = load_recorded("visual_tokenizers", "setrec_cost").set_index(["backbone", "kind", "size"])
    growth = [rows.loc[(name, "setrec", 9)].times_base / rows.loc[(name, "setrec", 2)].times_base for name in ("SmolLM2-135M", "small decoder")]
    return Evidence(measured=float(growth[0]), note=f"9 tokens an item over 2, CPU time on SmolLM2; small decoder {growth[1]:.1f}; one pass either way, "
                    "but the history is N times as long")


CLAIMS = [
    Claim("setrec_over_sequences", SETREC, "Ranks all items better than token-sequence ids.", 1, "points", _ABSTRACT, "measured",
          _over("tiger", "all", "all items"), "reproduced", **_SOUND),
    Claim("setrec_over_sequences_warm", SETREC, "Ranks warm items better than token-sequence ids.", 1, "points", _ABSTRACT, "measured",
          _over("tiger", "warm", "warm items"), "reproduced", **_SOUND),
    Claim("setrec_over_sequences_cold", SETREC, "Ranks cold items better than token-sequence ids.", 1, "points", _ABSTRACT, "measured",
          _over("tiger", "cold", "cold items"), "reproduced", **_SOUND),
    Claim("setrec_over_single", SETREC, "Ranks all items better than a single-token id.", 1, "points", _ABSTRACT, "measured",
          _over("single", "all", "all items"), "not reproduced", **_SOUND),
    Claim("setrec_over_single_cold", SETREC, "Ranks cold items better than a single-token id.", 1, "points", _ABSTRACT, "measured",
          _over("single", "cold", "cold items"), "reproduced", **_SOUND),
    Claim("setrec_needs_meaning", SETREC, "Without meaning (beta 0) cold items cannot be ranked.", 1, "points", _ABSTRACT, "measured",
          _cold_without_meaning, "reproduced", **_SOUND),
    Claim("setrec_needs_cf", SETREC, "Without co-picking (beta 1) warm items are ranked worse.", 1, "points", _ABSTRACT, "measured",
          _warm_without_cf, "reproduced", **_SOUND),
    Claim("setrec_sparse_mask", SETREC, "Tokens of one item need not see each other: the sparse mask loses at most a point.", 0, "points",
          "arXiv 2502.10833, section 3.2 (direction)", "measured", _sparse, "reproduced",
          tolerance=1.0, neutral=float("nan"), side="at least"),
    Claim("setrec_one_pass", SETREC, "Writing all tokens at once is faster than beam search (the bound of 1.5 times is ours).", 1.5, "x",
          _ABSTRACT.replace("direction", "\"efficiency\", direction"), "measured", _speed, "reproduced", **_SOUND),
    Claim("setrec_flat", SETREC, "More tokens an item take no further step: time stays within a third from 2 to 9 tokens.", 1, "x",
          "arXiv 2502.10833, section 3.3 (simultaneous generation; the bound is ours)", "measured", _flat, "not reproduced", tolerance=0.33,
          neutral=float("nan"), side="at most"),
]
