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
    """One tokenizer of the study."""

    codebook_size: int
    dim: int
    perturbed: bool

    @property
    def name(self) -> str:
        return f"K={self.codebook_size}, d={self.dim}{', perturbed' if self.perturbed else ''}"


SPECS = tuple(Spec(size, dim, perturbed) for size, dim in ((64, 8), (256, 4), (256, 8), (1024, 8)) for perturbed in (False, True))


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


def spearman(x: np.ndarray, y: np.ndarray) -> float:
    """Rank correlation, ties sharing their mean rank; NaN where one side is constant."""
    a, b = rankdata(x), rankdata(y)
    a, b = a - a.mean(), b - b.mean()
    length = np.sqrt((a @ a) * (b @ b))
    return float(a @ b / length) if length else float("nan")


def correlation(x, y, draws: int = 4000, seed: int = 0) -> Correlation:
    """Spearman's correlation of two columns. Raises ValueError for unequal lengths or fewer than 4 tokenizers.

    Resampled sets in which one side is constant say nothing and are left out.
    """
    x, y = np.asarray(x, float), np.asarray(y, float)
    if x.shape != y.shape or x.ndim != 1 or len(x) < 4:
        raise ValueError(f"need two equally long columns of at least 4 tokenizers, got {x.shape} and {y.shape}")
    rng, rho = np.random.default_rng(seed), spearman(x, y)
    picks = rng.integers(len(x), size=(draws, len(x)))
    drawn = np.array([spearman(x[pick], y[pick]) for pick in picks])
    low, high = np.nanquantile(drawn, [0.025, 0.975])
    shuffled = np.array([spearman(x, rng.permutation(y)) for _ in range(draws)])
    p = (1 + np.sum(np.abs(shuffled) >= abs(rho) - 1e-12)) / (draws + 1)
    return Correlation(rho, float(low), float(high), float(p), len(x))


def paired_difference(rows: pd.DataFrame, draws: int = 4000, seed: int = 0) -> tuple[float, float, float]:
    """rho(p-eFID, g-eFID) minus rho(r-eFID, g-eFID) with its 95 % interval; both on the same resampled tokenizers."""
    r, p, g = (rows[name].to_numpy(float) for name in ("r_efid", "p_efid", "g_efid"))
    rng = np.random.default_rng(seed)
    drawn = []
    for pick in rng.integers(len(g), size=(draws, len(g))):
        drawn.append(spearman(p[pick], g[pick]) - spearman(r[pick], g[pick]))
    low, high = np.nanquantile(drawn, [0.025, 0.975])
    return spearman(p, g) - spearman(r, g), float(low), float(high)


def pairs_of(rows: pd.DataFrame) -> pd.DataFrame:
    """One row for each codebook: what perturbation changed in r-eFID, p-eFID and g-eFID (perturbed minus plain)."""
    keys, scores = ["codebook_size", "dim"], ["r_efid", "p_efid", "g_efid"]
    plain, perturbed = (rows[rows.perturbed == flag].set_index(keys)[scores] for flag in (False, True))
    return (perturbed - plain).dropna().reset_index()
