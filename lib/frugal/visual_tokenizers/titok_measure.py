"""What TiTok's rows are made of: time and work of the generators over the number of tokens, what they make, what tokens look at.

Timing needs no trained generator: what a pass costs does not depend on what it draws. Its backbone is larger than the trained ones
(`TIMED`), so that arithmetic and not Python dominates.
Shapes: B pictures, K latent tokens, P patches.
"""
from collections.abc import Callable

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from frugal.core.measure import compare, counted_flops
from frugal.data.emoji_images import load_images
from frugal.models.mini_ar import MiniAR
from frugal.models.mini_maskgit import MiniMaskGIT
from frugal.visual_tokenizers.titok import NUM_PATCHES, TiTok, join_latents

TIMED = {"width": 192, "num_blocks": 6, "num_heads": 6}
COUNTS, STEPS, VOCAB = (64, 32, 16, 8, 4), 8, 256
TEMPERATURES = {"ar": (1.0,), "maskgit": (1.0, 2.0, 4.0, 8.0)}   # the masked one is touchy: each tokenizer gets its best
GENERATORS = {"ar": "autoregressive", "maskgit": "masked, 8 steps"}


def sample(generator: nn.Module, classes: Int[Tensor, "b"], seed: int = 0, **options) -> Int[Tensor, "b n"]:
    """Codes of one picture a class; a masked generator takes 8 steps unless told."""
    draw = torch.Generator().manual_seed(seed)
    if isinstance(generator, MiniMaskGIT):
        options = {"num_steps": min(STEPS, generator.length)} | options
    return generator.generate(classes, draw, **options)


def timed_generators(count: int) -> dict[str, nn.Module]:
    """Both generators for `count` codes, untrained."""
    torch.manual_seed(0)
    made = {"ar": MiniAR(VOCAB, count, **TIMED), "maskgit": MiniMaskGIT(VOCAB, count, **TIMED)}
    return {kind: model.eval().requires_grad_(False) for kind, model in made.items()}


def speed_rows(counts: tuple[int, ...] = COUNTS, batch: int = 1, repeats: int = 7) -> pd.DataFrame:
    """Milliseconds (median and quartiles), CPU ms and GFLOP a picture of both generators, all in turn in one process."""
    classes, runs = torch.zeros(batch, dtype=torch.long), {}
    for count in counts:
        for kind, model in timed_generators(count).items():
            runs[kind, count] = lambda m=model: sample(m, classes)
    return _timed(runs, batch, repeats)


def tokenizer_rows(tokenizers: dict[str, nn.Module], batch: int = 1, repeats: int = 7) -> pd.DataFrame:
    """The same for the trained tokenizers, both ways: kind "encode" and "decode". tokenizers: by name."""
    images = load_images().pixels[:batch]
    runs: dict[tuple[str, str], Callable] = {}
    for name, model in tokenizers.items():
        codes = model.encode(images)
        runs["encode", name] = lambda m=model: m.encode(images)
        runs["decode", name] = lambda m=model, c=codes: m.decode(c)
    return _timed(runs, batch, repeats)


@torch.no_grad()
def _timed(runs: dict, batch: int, repeats: int) -> pd.DataFrame:
    found = compare({f"{kind} {what}": run for (kind, what), run in runs.items()}, repeats)
    rows = []
    for (kind, what), row in zip(runs, found.itertuples()):
        times = {f"{part}_ms": 1000 * getattr(row, f"{part}_s") / batch for part in ("median", "low", "high", "cpu")}
        rows.append({"kind": kind, "of": str(what), "batch": batch, **times, "gflops": counted_flops(runs[kind, what]) / batch / 1e9})
    return pd.DataFrame(rows)


@torch.no_grad()
def pictures(tokenizer: nn.Module, generator: nn.Module, classes: Int[Tensor, "b"], seed: int = 0, batch: int = 374,
             **options) -> Float[Tensor, "b 3 h h"]:
    """One decoded picture a class, in batches with seeds of their own."""
    parts = [tokenizer.decode(sample(generator, part, seed * 1000 + place, **options)) for place, part in enumerate(classes.split(batch))]
    return torch.cat(parts)


@torch.no_grad()
def decoded(tokenizer: nn.Module, images: Float[Tensor, "b 3 h h"], batch: int = 128) -> Float[Tensor, "b 3 h h"]:
    """Pictures there and back."""
    return torch.cat([tokenizer.decode(tokenizer.encode(part)) for part in images.split(batch)])


@torch.no_grad()
def latent_attention(model: TiTok, images: Float[Tensor, "b 3 h h"]) -> Float[Tensor, "b l k p"]:
    """Attention of each latent token to each patch, mean over heads, in each of the encoder's blocks. A row sums to what the
    token spends on patches; the rest goes to latent tokens."""
    x, found = join_latents(model.patches(images), model.latent_tokens), []
    for block in model.encoder.blocks:
        q, k, _ = block.qkv(block.attn_norm(x)).unflatten(-1, (3, block.num_heads, -1)).unbind(2)       # (B, T, H, D)
        scores = torch.einsum("bthd, bshd -> bhts", q[:, NUM_PATCHES:], k) * q.shape[-1] ** -0.5
        found.append(scores.softmax(-1).mean(1)[..., :NUM_PATCHES])
        x = block(x)
    return torch.stack(found, 1)


@torch.no_grad()
def patch_effect(model: TiTok, image: Float[Tensor, "3 h h"]) -> Float[Tensor, "k p"]:
    """How far each latent moves when a patch is painted white, shortcut included; rows sum to 1."""
    side, patch = round(NUM_PATCHES ** 0.5), image.shape[-1] // round(NUM_PATCHES ** 0.5)
    cut = image.repeat(NUM_PATCHES, 1, 1, 1)
    for place in range(NUM_PATCHES):
        row, col = patch * (place // side), patch * (place % side)
        cut[place, :, row:row + patch, col:col + patch] = 1.0
    moved = (model.latents(cut) - model.latents(image[None])).norm(dim=-1).T                # (K, P)
    return moved / moved.sum(-1, keepdim=True).clamp(min=1e-12)


def spread(attention: Float[Tensor, "*n p"]) -> Float[Tensor, "*n"]:
    """Over how many patches a row is spread: 2 ** entropy of its share for each patch, 1 to P."""
    share = attention / attention.sum(-1, keepdim=True)
    return (-(share * share.clamp(min=1e-12).log()).sum(-1)).exp()


def prefixes(tokenizer: nn.Module, codes: Int[Tensor, "n"], fill: Int[Tensor, "n"], counts: tuple[int, ...]) -> Float[Tensor, "s 3 h h"]:
    """The picture after so many codes of `codes`; the places behind still hold those of `fill`."""
    places = torch.arange(len(codes))
    rows = torch.stack([torch.where(places < count, codes, fill) for count in counts])
    return tokenizer.decode(rows)


def usual_codes(codes: Int[Tensor, "b n"]) -> Int[Tensor, "n"]:
    """The most frequent code of each place: what a place that has not been drawn yet is shown as."""
    return codes.mode(0).values


def step_codes(generator: MiniMaskGIT, classes: Int[Tensor, "b"], seed: int, fill: Int[Tensor, "n"], **options) -> Int[Tensor, "s b n"]:
    """Codes after each step of a masked generator, masked places filled from `fill`."""
    seen: list[Tensor] = []
    sample(generator, classes, seed, on_step=lambda step, codes, *rest: seen.append(codes.clone()), **options)
    return torch.stack([torch.where(codes >= generator.vocab_size, fill, codes) for codes in seen])
