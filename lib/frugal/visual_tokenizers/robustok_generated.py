"""What a decoder is worth to a generator: generated codes, decoded and scored; shared by RobusTok and post-training.

The generator is not touched by post-training, so all decoders of a tokenizer are given the very same codes; differences
between them are the decoders' alone.
"""
from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Float, Int
from torch import Tensor

from frugal.data.emoji_images import load_images
from frugal.models.emoji_scores import copy_rate, efid, efid_interval, features, label_accuracy, psnr
from frugal.models.token_generators import load_generator
from frugal.models.vq_grid import VQGrid

PLAIN, ROBUST = "vq_grid_64", "robustok_64"         # same shape, data, steps and seed; one saw perturbed codes
SEEDS, CHUNK = 2, 256


@dataclass(frozen=True)
class Sampling:
    """How the generator samples, in pairs for post-training as at test time."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    guidance: float = 1.5


def places_of(names: tuple[str, ...]) -> list[int]:
    """Places of emoji by name. Raises ValueError for an unknown one."""
    known = load_images().names
    missing = [name for name in names if name not in known]
    if missing:
        raise ValueError(f"no emoji named {', '.join(missing)}; data.emoji_images.load_images().names lists all")
    return [known.index(name) for name in names]


@lru_cache(maxsize=8)
def generated_codes(tokenizer: str, seed: int = 0, sampling: Sampling = Sampling()) -> Int[Tensor, "n l"]:
    """Codes by the generator `<tokenizer>_ar`: as many as there are emoji, with as many of each group."""
    model, groups = load_generator(f"{tokenizer}_ar"), load_images().groups
    generator = torch.Generator().manual_seed(1000 + seed)
    return torch.cat([model.generate(part, generator, **vars(sampling)) for part in groups.split(CHUNK)])


def encoded(tokenizer: VQGrid, images: Float[Tensor, "n 3 h w"]) -> Int[Tensor, "n l"]:
    return torch.cat([tokenizer.encode(part) for part in images.split(CHUNK)])


def decoded(tokenizer: VQGrid, codes: Int[Tensor, "n l"]) -> Float[Tensor, "n 3 h w"]:
    return torch.cat([tokenizer.decode(part) for part in codes.split(CHUNK)])


def scores_of(tokenizer: VQGrid, name: str) -> dict[str, float]:
    """Scores with the decoder of `tokenizer`; name: of the tokenizer whose generator makes the codes.

    g_efid: mean over SEEDS sets of codes (g_first, g_second: each), with the interval of the first. r_efid: of all emoji;
    psnr (dB): of held-out ones. copy_rate, label_accuracy: of the first set.
    """
    known = load_images()
    sets = [decoded(tokenizer, generated_codes(name, seed)) for seed in range(SEEDS)]
    each = [efid(images) for images in sets]
    made = features(sets[0])
    ends, back, held = efid_interval(made), decoded(tokenizer, encoded(tokenizer, known.pixels)), known.held_out_set()
    return {"g_efid": sum(each) / len(each), "g_first": each[0], "g_second": each[1], "g_low": ends.low, "g_high": ends.high,
            "r_efid": efid(back), "psnr": float(psnr(back[held], known.pixels[held]).mean()), "copy_rate": copy_rate(sets[0]),
            "label_accuracy": label_accuracy(sets[0], known.groups)}
