"""Does p-eFID foretell g-eFID better than r-eFID does? Rank correlations over small tokenizers, with honest intervals.

Source: arXiv 2503.08354, section 4 (11 tokenizers, 2 generators). Differs: a few tokenizers of 16 codes (4 x 4 squares), one small
generator each; so the intervals are wide, and they are shown.
"""
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import rankdata


@dataclass(frozen=True)
class Spec:
    """One tokenizer of the study. kind: how codes were perturbed in training (`PerturbSchedule.kind`), or "none"; beta: in
    which share of the pictures. The paper's 0.1 changes little on these small decoders, so all pictures are tried too."""

    codebook_size: int
    dim: int
    kind: str = "none"
    beta: float = 0.0

    @property
    def name(self) -> str:
        return f"K={self.codebook_size}, d={self.dim}{'' if self.kind == 'none' else f', {self.kind}, beta {self.beta:g}'}"


SPECS = (Spec(64, 8), Spec(64, 8, "nearest", 1.0), Spec(256, 8), Spec(256, 8, "nearest", 1.0), Spec(1024, 8), Spec(1024, 8, "nearest", 1.0),
         Spec(256, 8, "nearest", 0.1), Spec(1024, 8, "nearest", 0.1), Spec(256, 4))
BASELINES = (Spec(256, 8, "random", 1.0), Spec(256, 8, "gaussian", 1.0))              # what perturbing with other things does


@dataclass(frozen=True)
class Correlation:
    """rho: Spearman's. low, high: 95 % percentile interval over resampled tokenizers. p: two-sided, by permuting one side.
    count: tokenizers."""

    rho: float
    low: float
    high: float
    p: float
    count: int

    def __str__(self) -> str:
        return f"{self.rho:+.2f} [{self.low:+.2f}, {self.high:+.2f}], p = {self.p:.2g}, {self.count} tokenizers"


def spearman(x, y) -> np.ndarray | np.floating:
    """Rank correlation along the last axis, ties sharing their mean rank; NaN where one side is constant."""
    a, b = rankdata(x, axis=-1), rankdata(y, axis=-1)
    a, b = a - a.mean(-1, keepdims=True), b - b.mean(-1, keepdims=True)
    length = np.sqrt((a * a).sum(-1) * (b * b).sum(-1))
    with np.errstate(invalid="ignore"):
        return (a * b).sum(-1) / np.where(length > 0, length, np.nan)


def correlation(x, y, draws: int = 4000, seed: int = 0) -> Correlation:
    """Spearman's correlation of two columns. Raises ValueError for unequal lengths or fewer than 4 tokenizers.

    Resampled sets in which one side is constant say nothing and are left out.
    """
    x, y = np.asarray(x, float), np.asarray(y, float)
    if x.shape != y.shape or x.ndim != 1 or len(x) < 4:
        raise ValueError(f"need two equally long columns of at least 4 tokenizers, got {x.shape} and {y.shape}")
    rng, rho = np.random.default_rng(seed), float(spearman(x, y))
    picks = rng.integers(len(x), size=(draws, len(x)))
    low, high = np.nanquantile(spearman(x[picks], y[picks]), [0.025, 0.975])
    shuffled = spearman(np.broadcast_to(x, picks.shape), rng.permuted(np.tile(y, (draws, 1)), axis=1))
    p = (1 + np.sum(np.abs(shuffled) >= abs(rho) - 1e-12)) / (draws + 1)
    return Correlation(rho, float(low), float(high), float(p), len(x))


@dataclass(frozen=True)
class Difference:
    """value: rho(p-eFID, g-eFID) minus rho(r-eFID, g-eFID). low, high: 95 % interval, both sides on the same resampled tokenizers.
    not_above: share of resamples in which it is 0 or less; few tokenizers tie often, so an end of exactly 0 excludes nothing."""

    value: float
    low: float
    high: float
    not_above: float


def paired_difference(rows: pd.DataFrame, draws: int = 4000, seed: int = 0) -> Difference:
    """How much better p-eFID ranks the tokenizers by their g-eFID than r-eFID does."""
    r, p, g = (rows[name].to_numpy(float) for name in ("r_efid", "p_efid", "g_efid"))
    picks = np.random.default_rng(seed).integers(len(g), size=(draws, len(g)))
    drawn = spearman(p[picks], g[picks]) - spearman(r[picks], g[picks])
    drawn = drawn[np.isfinite(drawn)]
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Difference(float(spearman(p, g) - spearman(r, g)), float(low), float(high), float((drawn <= 1e-9).mean()))


def pairs_of(rows: pd.DataFrame, beta: float) -> pd.DataFrame:
    """One row for each codebook: what near codes in a share `beta` of the pictures changed in r-eFID, p-eFID and g-eFID."""
    keys, scores = ["codebook_size", "dim"], ["r_efid", "p_efid", "g_efid"]
    plain = rows[rows.kind == "none"].set_index(keys)[scores]
    perturbed = rows[(rows.kind == "nearest") & ((rows.beta - beta).abs() < 1e-9)].set_index(keys)[scores]
    return (perturbed - plain).dropna().reset_index()
