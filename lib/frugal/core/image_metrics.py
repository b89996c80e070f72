"""Distances between pictures and between sets of pictures, on pixels or on features of whatever network.

Source: arXiv 1801.03924 (LPIPS), equation 1; arXiv 1706.08500 (FID), equation 6; arXiv 1801.01401 (KID), section 4;
arXiv 1904.06991 (precision and recall), equation 1.
Differs: LPIPS has learned channel weights, here all are 1; matrix roots by `eigh` of symmetrised matrices, so that no
imaginary parts arise; the copy rate is ours. The features are EmojiNet's (`models.emoji_scores`), so the names are
eLPIPS, eFID and eKID: their numbers compare with none that Inception or VGG gave.
Shapes: B pairs, N and M set sizes, f features.
"""
import torch
from jaxtyping import Bool, Float
from torch import Tensor


def psnr(a: Float[Tensor, "b *shape"], b: Float[Tensor, "b *shape"]) -> Float[Tensor, "b"]:
    """Peak signal-to-noise ratio of each pair in dB, for values in [0, 1]; infinite for equal pictures."""
    _same(a, b)
    return -10 * (a.double() - b.double()).square().flatten(1).mean(1).log10().float()


def perceptual_distance(a: list[Tensor], b: list[Tensor]) -> Float[Tensor, "b"]:
    """eLPIPS of each pair from the maps (B, C, h, w) of some stages: every place's channels scaled to length 1, squared
    difference summed over channels, mean over places, mean over stages. From 0 to 4 (to 2 where maps are not negative).

    Gradients pass through. Raises ValueError when the lists differ in length or the maps in shape.
    """
    if not a or len(a) != len(b):
        raise ValueError(f"need the same stages of both, got {len(a)} and {len(b)}")
    return torch.stack([_stage_distance(x, y) for x, y in zip(a, b)]).mean(0)


def _stage_distance(x: Tensor, y: Tensor) -> Tensor:
    _same(x, y)
    x, y = (t.float() * (t.float().square().sum(1, keepdim=True) + 1e-10).rsqrt() for t in (x, y))
    return (x - y).square().sum(1).flatten(1).mean(1)


def frechet_distance(a: Float[Tensor, "n f"], b: Float[Tensor, "m f"]) -> float:
    """eFID: squared distance of means plus tr(A + B - 2 (A^1/2 B A^1/2)^1/2) of the covariances, in float64.

    It grows as sets shrink, so compare only sets of equal size. Raises ValueError for fewer than 2 rows, unequal widths,
    or values that are not finite.
    """
    a, b = _sets(a, b, least=2)
    root = _root(a.T.cov().reshape(a.shape[1], -1))
    cov_b = b.T.cov().reshape(b.shape[1], -1)
    inner = root @ cov_b @ root
    crossed = torch.linalg.eigvalsh((inner + inner.T) / 2).clamp(min=0).sqrt().sum()
    spread = root.square().sum() + cov_b.trace() - 2 * crossed
    return max(0.0, float((a.mean(0) - b.mean(0)).square().sum() + spread))


def _root(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh((matrix + matrix.T) / 2)
    return vectors * values.clamp(min=0).sqrt() @ vectors.T


def kernel_distance(a: Float[Tensor, "n f"], b: Float[Tensor, "m f"]) -> float:
    """eKID: unbiased squared maximum mean discrepancy with the kernel (x.y / f + 1)^3; may be negative.

    Unlike eFID it does not grow as sets shrink. Raises ValueError as `frechet_distance` does.
    """
    a, b = _sets(a, b, least=2)
    return float(_within(a) + _within(b) - 2 * _kernel(a, b).mean())


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    return (x @ y.T / x.shape[1] + 1) ** 3


def _within(x: Tensor) -> Tensor:
    """Mean kernel of the pairs of two different rows."""
    grams = _kernel(x, x)
    return (grams.sum() - grams.trace()) / (len(x) * (len(x) - 1))


def precision_recall(real: Float[Tensor, "n f"], made: Float[Tensor, "m f"], k: int = 3) -> tuple[float, float]:
    """Share of made points inside the real set's balls, and of real points inside the made set's. A ball reaches from a
    point to its k-th nearest neighbour in its own set. Raises ValueError for k outside 1..(set size - 1).
    """
    real, made = _sets(real, made, least=2)
    if not 1 <= k < min(len(real), len(made)):
        raise ValueError(f"k must be in 1..{min(len(real), len(made)) - 1}, got {k}")
    across = _distances(made, real)
    return (float((across <= _radii(real, k)).any(1).double().mean()),
            float((across.T <= _radii(made, k)).any(1).double().mean()))


def _radii(points: Tensor, k: int) -> Tensor:
    return _distances(points, points).fill_diagonal_(float("inf")).kthvalue(k, dim=1).values


def copy_threshold(train: Float[Tensor, "n f"], held_out: Float[Tensor, "m f"]) -> float:
    """Distance below which a picture counts as a copy: the 1st percentile of the held-out pictures' distances to their
    nearest training picture."""
    train, held_out = _sets(train, held_out, least=1)
    return float(_distances(held_out, train).min(1).values.quantile(0.01))


def copies(made: Float[Tensor, "n f"], train: Float[Tensor, "m f"], held_out: Float[Tensor, "h f"]) -> Bool[Tensor, "n"]:
    """Which made pictures lie closer to a training picture than `copy_threshold`."""
    made, train = _sets(made, train, least=1)
    return _distances(made, train).min(1).values < copy_threshold(train, held_out)


def copy_rate(made: Float[Tensor, "n f"], train: Float[Tensor, "m f"], held_out: Float[Tensor, "h f"]) -> float:
    """Share of made pictures that are copies of training pictures; near 1 a low eFID means memory, not skill."""
    return float(copies(made, train, held_out).double().mean())


def _distances(a: Tensor, b: Tensor) -> Tensor:
    # Without the matrix-product shortcut: it leaves 1e-4 where two points are equal.
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")


def _sets(a: Tensor, b: Tensor, least: int) -> tuple[Tensor, Tensor]:
    if a.shape[1] != b.shape[1] or min(len(a), len(b)) < least:
        raise ValueError(f"need two sets of at least {least} rows with equal widths, got {tuple(a.shape)} and {tuple(b.shape)}")
    if not (a.isfinite().all() and b.isfinite().all()):
        raise ValueError("features must be finite; did the generator or the training diverge?")
    return a.detach().double(), b.detach().double()


def _same(a: Tensor, b: Tensor) -> None:
    if a.shape != b.shape:
        raise ValueError(f"pairs must have equal shapes, got {tuple(a.shape)} and {tuple(b.shape)}")
