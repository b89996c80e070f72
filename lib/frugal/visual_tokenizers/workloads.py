"""What the picture tokenizers of this family are run on: held-out emoji, there and back with so many tokens a picture.

A budget is a number of tokens, or a share of the 64 that a grid of 8 x 8 takes. A method that was made for fewer counts
takes exactly these: no budget is rounded for it, since a tokenizer has no picture for a count it was not trained for.
"""
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from time import process_time
from typing import Any

import torch
from torch import Tensor

from frugal.core.budgets import resolve
from frugal.data.emoji_images import load_images
from frugal.models import emoji_scores, list_weights, load_card
from frugal.visual_tokenizers.methods import Decoded, Tokenizer

GRID_TOKENS, MOST_TOKENS = 64, 128
BATCH = 64


@dataclass(frozen=True)
class Reconstruct:
    """Pictures through the codes and back.

    A row: tokens and bits a picture, PSNR and eLPIPS over the held-out pictures with bootstrap ends, and CPU seconds a
    picture for encoding and decoding (a batch of 64). every: take each so-manieth held-out picture. whole: also
    reconstruct all emoji, for r-eFID.
    """
    name: str = "reconstruct"
    axis: str = "tokens"
    version: str = "1"
    default_budgets: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    every: int = 1
    whole: bool = False

    def model_hash(self) -> str:
        names = [name for name in ("emoji_net", *sorted(_weights())) if name in list_weights()]
        return hashlib.sha256("".join(load_card(name)["sha256"] for name in names).encode()).hexdigest()[:12]

    def run(self, method: type, budget: float | int, seed: int) -> Mapping[str, Any]:
        """The row. Raises ValueError for a budget that is no count, a count the method was not made for, or a method that
        tokenizes no pictures."""
        if method.kind != "tokenizer":
            raise ValueError(f"{method.name} is a {method.kind}, it reconstructs no pictures; see its module's own tables")
        tokens = count_of(budget)
        made: Tokenizer = method()
        made.check(tokens)
        known = load_images()
        originals = known.pixels[known.held_out_set()[::self.every]]
        decoded, spent = timed(made, originals, tokens, seed)
        row = {"spent_tokens": tokens, "bits": decoded.bits, **emoji_scores.pair_scores(decoded.images, originals), **spent}
        if self.whole:
            every = in_batches(made, known.pixels, tokens, seed)
            row |= {"r_efid": emoji_scores.efid(every.images), "psnr_train":
                    float(emoji_scores.psnr(every.images, known.pixels)[known.train()].mean())}
        return row


def count_of(budget: float | int) -> int:
    """Tokens of a budget: a count up to 128, or a share of 64. Raises ValueError for anything else."""
    return resolve(budget, GRID_TOKENS if isinstance(budget, float) else MOST_TOKENS)


def in_batches(method: Tokenizer, images: Tensor, num_tokens: int, seed: int) -> Decoded:
    """`method.reconstruct` in batches of 64, each with a seed of its own."""
    parts = [method.reconstruct(part, num_tokens, seed * 1000 + place) for place, part in enumerate(images.split(BATCH))]
    return Decoded(torch.cat([part.images for part in parts]), parts[0].bits)


def timed(method: Tokenizer, images: Tensor, num_tokens: int, seed: int) -> tuple[Decoded, dict[str, float]]:
    """Reconstructions, and CPU seconds a picture for each way; the first batch runs once before, to load and warm up."""
    method.reconstruct(images[:BATCH], num_tokens, seed)
    start, codes = process_time(), [method.encode(part, num_tokens) for part in images.split(BATCH)]
    between = process_time()
    decoded = [method.decode(part, num_tokens, seed * 1000 + place).clamp(0, 1) for place, part in enumerate(codes)]
    end = process_time()
    return Decoded(torch.cat(decoded), method.bits(num_tokens)), {
        "encode_cpu_s": (between - start) / len(images), "decode_cpu_s": (end - between) / len(images)}


def _weights() -> set[str]:
    from frugal.visual_tokenizers import ALL
    return {name for method in ALL for name in getattr(method, "weights", ())}


WORKLOADS = {work.name: work for work in (Reconstruct(), Reconstruct("reconstruct_all", whole=True))}
