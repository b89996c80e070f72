"""What a decoder is worth to a generator: the same generated codes, decoded and scored.

The generator is not touched by post-training, so all decoders of a tokenizer are given the very same codes; differences
between them are the decoders' alone.
"""
from functools import lru_cache

import torch
from jaxtyping import Float, Int
from torch import Tensor

from frugal.data.emoji_images import load_images
from frugal.models.emoji_scores import copy_rate, efid, efid_interval, features, label_accuracy, psnr
from frugal.models.token_generators import load_generator
from frugal.models.vq_grid import VQGrid
from frugal.visual_tokenizers.post_training import Sampling

DELTA, SEEDS, CHUNK = 6, 2, 256


@lru_cache(maxsize=8)
def generated_codes(tokenizer: str, seed: int = 0, sampling: Sampling = Sampling()) -> Int[Tensor, "n l"]:
    """Codes by the generator `<tokenizer>_ar`: as many as there are emoji, with as many of each group."""
    model, groups = load_generator(f"{tokenizer}_ar"), load_images().groups
    generator = torch.Generator().manual_seed(1000 + seed)
    return torch.cat([model.generate(part, generator, **vars(sampling)) for part in groups.split(CHUNK)])


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
    ends = efid_interval(features(sets[0]))
    back = decoded(tokenizer, torch.cat([tokenizer.encode(part) for part in known.pixels.split(CHUNK)]))
    held = known.held_out_set()
    return {"g_efid": sum(each) / len(each), "g_first": each[0], "g_second": each[1], "g_low": ends.low, "g_high": ends.high,
            "r_efid": efid(back), "psnr": float(psnr(back[held], known.pixels[held]).mean()), "copy_rate": copy_rate(sets[0]),
            "label_accuracy": label_accuracy(sets[0], known.groups)}
