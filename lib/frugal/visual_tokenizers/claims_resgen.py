"""Headline numbers of ResGen (arXiv 2412.10208), checked on recorded rows of the miniature and by a roofline.

The paper's scores are FID on ImageNet, ours g-eFID on emoji, so only ratios are judged. Pictures here come without guidance.
"""

import pandas as pd

from frugal.core.claims import Claim, Evidence
from frugal.core.papers import paper
from frugal.core.recording import load_recorded
from frugal.visual_tokenizers.resgen_measure import projection_rows

__all__ = ["CLAIMS"]

RESGEN = paper("resgen")
TABLES = "arXiv 2412.10208, results on ImageNet 256 x 256 (tables of version 1)"
FAMILY = "visual_tokenizers"


def _score(sampler: str, depth: int = 8, passes: int | None = None) -> pd.Series:
    rows = load_recorded(FAMILY, "resgen_quality")
    own = rows[(rows["sampler"] == sampler) & (rows["depth"] == depth)]
    own = own if passes is None else own[own["passes"] == passes]
    return own.iloc[0]


def _said(row: pd.Series) -> str:
    return f"{row.efid:.3g} [{row.efid_low:.3g}, {row.efid_high:.3g}], copy rate {row.copy_rate:.2f}"


def _cost(sampler: str, column: str, depth: int, batch: int = 1) -> float:
    rows = load_recorded(FAMILY, "resgen_speed")
    own = rows[(rows["sampler"] == sampler) & (rows["depth"] == depth) & (rows["batch"] == batch)]
    return float(own[column].iloc[0])


def _flat_in_depth() -> Evidence:
    names = ("ResGen", "flat MaskGIT", "RQ-Transformer")
    passes, flops, times = (
        {name: _cost(name, column, 16) / _cost(name, column, 2) for name in names}
        for column in ("passes", "flops", "cpu_ms")
    )
    return Evidence(
        round(flops["ResGen"], 3),
        note=f"counted FLOPs at depth 16 over depth 2; passes {passes['ResGen']:.0f}x (RQ-Transformer "
        f"{passes['RQ-Transformer']:.1f}x), but processor time {times['ResGen']:.2f}x, since the quantizer goes level by level; flat MaskGIT "
        f"{flops['flat MaskGIT']:.1f}x and {times['flat MaskGIT']:.1f}x, RQ-Transformer {flops['RQ-Transformer']:.1f}x and "
        f"{times['RQ-Transformer']:.1f}x",
    )


def _faster_than_rq() -> Evidence:
    rows = projection_rows(depths=(4, 16)).set_index(["sampler", "depth"])["ms"]
    ratio = {depth: rows["RQ-Transformer", depth] / rows["ResGen", depth] for depth in (4, 16)}
    here = {
        batch: _cost("RQ-Transformer", "cpu_ms", 8, batch) / _cost("ResGen", "cpu_ms", 8, batch) for batch in (1, 16)
    }
    return Evidence(
        round(here[1], 2),
        round(float(ratio[16]), 2),
        note=f"processor time, 16 places, depth 8, 8 steps: "
        f"{_cost('ResGen', 'cpu_ms', 8):.0f} ms against {_cost('RQ-Transformer', 'cpu_ms', 8):.0f}; {here[16]:.1f}x with 16 at "
        f"a time: the RQ-Transformer does less arithmetic, in more passes. Roofline at 574 M, 64 places, 64 steps: "
        f"{ratio[16]:.1f}x at depth 16, {ratio[4]:.1f}x at depth 4",
    )


def _better_than_rq() -> Evidence:
    ours, theirs = _score("ResGen", passes=8), _score("RQ-Transformer")
    return Evidence(
        round(float(ours.efid / theirs.efid), 3),
        note=f"g-eFID at depth 8: {_said(ours)} in 8 steps, RQ-Transformer "
        f"{_said(theirs)}; same codes, data and training time, no guidance",
    )


def _deeper_is_better() -> Evidence:
    four, eight = _score("ResGen", 4), _score("ResGen", 8, 8)
    real = {depth: _score("real pictures, decoded", depth).efid for depth in (2, 4, 8)}
    return Evidence(
        round(float(eight.efid / four.efid), 3),
        note=f"g-eFID in 8 steps: depth 4 {_said(four)}; depth 8 "
        f"{_said(eight)}. Real pictures decoded at depth 2, 4, 8: {real[2]:.3g}, {real[4]:.3g}, {real[8]:.3g}",
    )


def _guided() -> Evidence:
    return Evidence(note="guidance of a mixture is left out here, so there is no ratio to judge")


def _batch() -> Evidence:
    cache = 2 * 30 * 1920 * 2 * 680 * 2
    return Evidence(
        note=f"VAR-d30 keeps keys and values of 680 tokens, twice under guidance: {cache / 1e6:.0f} MB an image; ResGen keeps "
        "none. But what else each holds during a pass decides the batch, and that is not published"
    )


def _speech() -> Evidence:
    return Evidence(note="there is no speech recogniser here to count word errors")


CLAIMS = [
    Claim(
        "resgen_flat_in_depth",
        RESGEN,
        "The work of sampling does not grow with the depth of the codes",
        1,
        "x",
        "arXiv 2412.10208, abstract",
        "counted",
        _flat_in_depth,
        "reproduced",
        tolerance=0.1,
        side="at most",
    ),
    Claim(
        "resgen_faster_than_rq",
        RESGEN,
        "Faster than an RQ-Transformer on the same codes: 2.38 s against 1.25 s",
        1.9,
        "x",
        TABLES,
        "measured",
        _faster_than_rq,
        "reproduced",
        tolerance=0.1,
        side="at least",
    ),
    Claim(
        "resgen_better_than_rq",
        RESGEN,
        "... and better: FID 9.26 against 13.11, as a ratio",
        0.706,
        "x",
        TABLES,
        "measured",
        _better_than_rq,
        "not reproduced",
        tolerance=0.1,
        side="at most",
    ),
    Claim(
        "resgen_deeper_is_better",
        RESGEN,
        "Deeper codes improve pictures: FID 6.56 at depth 8, 6.04 at 16, as a ratio",
        0.921,
        "x",
        TABLES,
        "measured",
        _deeper_is_better,
        "not reproduced",
        tolerance=0.05,
        side="at most",
    ),
    Claim(
        "resgen_guided",
        RESGEN,
        "Guidance takes FID from 6.04 to 1.95 (depth 16)",
        0.323,
        "x",
        TABLES,
        "measured",
        _guided,
        "out of reach here",
    ),
    Claim(
        "resgen_batch",
        RESGEN,
        "Largest batch on one device 1,915, VAR-d30's 60",
        31.9,
        "x",
        TABLES,
        "projected",
        _batch,
        "out of reach here",
    ),
    Claim(
        "resgen_speech",
        RESGEN,
        "Zero-shot speech with a word error rate of 1.79 % in 16 steps",
        1.79,
        "%",
        "arXiv 2412.10208, results on speech (tables of version 1)",
        "measured",
        _speech,
        "out of reach here",
        neutral=float("nan"),
    ),
]
