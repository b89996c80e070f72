"""Scores of decoded and generated emoji: `core.image_metrics` in EmojiNet's features, with floors and intervals.

Two questions, two sets of numbers. How near is a reconstruction to its original: `psnr`, `elpips`, `pair_scores`. Does
a set of pictures look like emoji: `set_scores` (eFID, eKID, precision, recall, copy rate, label accuracy). An eFID is
meant for as many pictures as there are emoji, with as many of each group; that many fresh real pictures would get
`efid_floor()`, not 0.
"""
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from frugal.core import image_metrics as metrics
from frugal.core.bootstrap import Interval, interval
from frugal.core.image_metrics import psnr  # noqa: F401  (part of this module's interface)
from frugal.data.emoji_images import load_images, pca_basis
from frugal.models.emoji_net import load_emoji_net

RESAMPLES = 40
Floors = list[dict[str, str | int | float]]


def elpips(a: Float[Tensor, "b 3 h w"], b: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b"]:
    """eLPIPS of each pair of pictures; gradients pass, so it serves as a training loss (outside autocast, in fp32)."""
    net = load_emoji_net()
    with torch.autocast(a.device.type, enabled=False):
        return metrics.perceptual_distance(net.stages(a.float()), net.stages(b.float()))


@torch.no_grad()
def features(images: Float[Tensor, "n 3 h w"], batch: int = 256) -> Float[Tensor, "n f"]:
    """EmojiNet's features, without gradients, in batches."""
    net = load_emoji_net()
    return torch.cat([net.features(part.float()) for part in images.split(batch)])


@lru_cache(maxsize=1)
def real_features() -> Tensor:
    """Features of all emoji, in the order of `load_images`."""
    return features(load_images().pixels)


def efid(images: Float[Tensor, "n 3 h w"]) -> float:
    """eFID against all emoji. It grows as N shrinks: compare equal N only, best N = all emoji."""
    return metrics.frechet_distance(real_features(), features(images))


def ekid(images: Float[Tensor, "n 3 h w"]) -> float:
    """eKID against all emoji; for fewer than 500 pictures the one to use."""
    return metrics.kernel_distance(real_features(), features(images))


def copy_rate(images: Float[Tensor, "n 3 h w"]) -> float:
    """Share of pictures that are copies of training pictures (`core.image_metrics.copies`)."""
    return _copy_rate(features(images))


def label_accuracy(images: Float[Tensor, "n 3 h w"], groups: Int[Tensor, "n"]) -> float:
    """Share of pictures that EmojiNet puts into the group they were asked for. Real training pictures: 1.00, held-out
    0.65, so a made picture that is no copy cannot be expected above that."""
    return _accuracy(features(images), groups)


def set_scores(images: Float[Tensor, "n 3 h w"], groups: Int[Tensor, "n"] | None = None) -> dict[str, float]:
    """All scores of a set of made pictures: efid with its bootstrap ends efid_low and efid_high, ekid, precision,
    recall, copy_rate and, when the asked groups are given, label_accuracy."""
    made, real = features(images), real_features()
    found = efid_interval(made)
    precision, recall = metrics.precision_recall(real, made)
    scores = {"efid": found.value, "efid_low": found.low, "efid_high": found.high, "precision": precision, "recall": recall,
              "ekid": metrics.kernel_distance(real, made), "copy_rate": _copy_rate(made)}
    return scores if groups is None else scores | {"label_accuracy": _accuracy(made, groups)}


def pair_scores(decoded: Float[Tensor, "n 3 h w"], originals: Float[Tensor, "n 3 h w"]) -> dict[str, float]:
    """Means over the pairs with bootstrap ends: psnr (dB), psnr_low, psnr_high, elpips, elpips_low, elpips_high."""
    with torch.no_grad():
        near = torch.cat([elpips(a, b) for a, b in zip(decoded.split(256), originals.split(256))])
    columns = {"psnr": psnr(decoded, originals), "elpips": near}
    found = {}
    for name, values in columns.items():
        ends = interval({"sum": values.numpy(), "pairs": np.ones(len(values))}, lambda sums: sums["sum"] / sums["pairs"])
        found |= {name: ends.value, f"{name}_low": ends.low, f"{name}_high": ends.high}
    return found


def efid_interval(made: Float[Tensor, "n f"], seed: int = 0, resamples: int = RESAMPLES) -> Interval:
    """eFID of features `made` against all emoji, with the 95 % spread of resampled sets around it.

    Resampling repeats rows, and that raises every eFID; so it is the deviations from the resamples' own mean that are
    put around the value, not the resampled values.
    """
    real, value = real_features(), metrics.frechet_distance(real_features(), made)
    rng = np.random.default_rng(seed)
    drawn = np.array([metrics.frechet_distance(real, made[torch.from_numpy(rng.integers(len(made), size=len(made)))])
                      for _ in range(resamples)])
    low, high = np.quantile(drawn - drawn.mean(), [0.025, 0.975])
    return Interval(value, max(0.0, value + float(low)), value + float(high))


def efid_floor(splits: int = 10, seed: int = 0) -> float:
    """What as many fresh real pictures as there are emoji would get: eFID between random halves of the emoji, halved,
    since the chance part of an eFID falls as 1 / N."""
    real, generator, found = real_features(), torch.Generator().manual_seed(seed), []
    for _ in range(splits):
        order = torch.randperm(len(real), generator=generator)
        half = len(real) // 2
        found.append(metrics.frechet_distance(real[order[:half]], real[order[half:2 * half]]) / 2)
    return sum(found) / splits


def block_means(images: Float[Tensor, "n 3 px px"], side: int) -> Float[Tensor, "n 3 px px"]:
    """Each picture as side x side mean colours, drawn smoothly (bilinear)."""
    if side < 1 or images.shape[-1] % side:
        raise ValueError(f"side must divide {images.shape[-1]}, got {side}")
    return F.interpolate(F.avg_pool2d(images, images.shape[-1] // side), size=images.shape[-1], mode="bilinear")


def nearest_training(images: Float[Tensor, "n 3 px px"]) -> Float[Tensor, "n 3 px px"]:
    """For each picture the training picture with the least squared difference, itself (and its like) left out."""
    known = load_images()
    train = known.pixels[known.train()]
    distances = torch.cdist(images.flatten(1).double(), train.flatten(1).double())  # double: 0 stays near 0
    return train[distances.masked_fill(distances < 1e-3, float("inf")).argmin(1)]


def floors(components: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64, 128, 256)) -> Floors:
    """What needs no training: mean picture, block means, PCA, nearest training picture; one row each.

    numbers: real numbers a picture. psnr_train, psnr_held_out in dB, elpips (held-out), r_efid (all pictures).
    """
    known = load_images()
    every = known.pixels
    rows = [("mean picture", 0, every[known.train()].mean(0).expand_as(every)),
            ("nearest training picture", 1, nearest_training(every))]
    rows += [("block means", 3 * side ** 2, block_means(every, side)) for side in (1, 2, 4, 8)]
    for count in components:
        basis = pca_basis(count)
        rows.append(("PCA", count, basis.decode(basis.encode(every)).clamp(0, 1)))
    found: Floors = []
    for name, numbers, decoded in rows:
        held_out, train = (pair_scores(decoded[places], every[places])
                           for places in (known.held_out_set(), known.train()))
        found.append({"floor": name, "numbers": numbers, "psnr_train": train["psnr"], "psnr_held_out": held_out["psnr"],
                      "elpips": held_out["elpips"], "r_efid": efid(decoded)})
    return found


def _copy_rate(made: Tensor) -> float:
    known, real = load_images(), real_features()
    return metrics.copy_rate(made, real[known.train()], real[known.held_out_set()])


def _accuracy(made: Tensor, groups: Tensor) -> float:
    if len(made) != len(groups) or groups.numel() and not 0 <= int(groups.min()) <= int(groups.max()) < 9:
        raise ValueError(f"need one group in 0..8 for each of the {len(made)} pictures, got {len(groups)} groups")
    return float((load_emoji_net().logits(made)[0].argmax(-1) == groups).double().mean())
