"""A convolutional tokenizer with one code for each square of the picture: the 2D grid that 1D tokenizers are compared with.

Source: arXiv 1711.00937 (VQ-VAE), section 3, and arXiv 2012.09841 (VQGAN), section 3.1, for the encoder, the code grid and the decoder.
Differs: no adversary (1,690 pictures are too few for a steady one); space-to-depth and pixel shuffle in place of strided
convolutions, so that all work happens at 16x16 and below; group norm without attention. `linear_shortcut` (off by default) adds a
linear map of each square to its latent and back, started from PCA.
Shapes: B batch, g side of the grid, N = g * g squares in reading order, d dim of a latent; codes (B, N), with residual VQ (B, N, levels).
"""
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import log2

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from frugal.core.papers import Paper
from frugal.data.emoji_images import PX, load_images
from frugal.models import load_weights
from frugal.models.quantizers import FSQ, Quantized, ResidualVQ, VectorQuantizer

QUANTIZERS = {"vq": VectorQuantizer, "fsq": FSQ, "rvq": ResidualVQ}


def make_quantizer(kind: str, **options) -> nn.Module:
    """A quantizer by its short name: "vq", "fsq" or "rvq". Raises ValueError for another."""
    if kind not in QUANTIZERS:
        raise ValueError(f"unknown quantizer {kind!r}; known: {', '.join(QUANTIZERS)}")
    return QUANTIZERS[kind](**options)


def bits_per_token(quantizer: nn.Module) -> float:
    """What one position of the code grid can say, in bits."""
    return getattr(quantizer, "num_levels", 1) * log2(quantizer.codebook_size)


def check_images(images: Tensor, px: int = PX) -> None:
    """Raises ValueError unless images are (B, 3, px, px) floats in [0, 1]."""
    if images.ndim != 4 or tuple(images.shape[1:]) != (3, px, px):
        raise ValueError(f"pictures must have shape (B, 3, {px}, {px}), got {tuple(images.shape)}; data.emoji_images.read_image makes one")
    if not images.is_floating_point() or images.numel() and not (images.min() >= 0 and images.max() <= 1):  # also true of NaN
        raise ValueError("pictures must hold floats in [0, 1]; divide uint8 by 255")


def check_code_shape(codes: Tensor, num_tokens: int, levels: int = 0) -> None:
    """Raises ValueError unless codes are (B, num_tokens), or (B, num_tokens, 1..levels) where there are levels."""
    good = codes.ndim == (3 if levels else 2) and codes.shape[1] == num_tokens and (not levels or 1 <= codes.shape[2] <= levels)
    if not good:
        wanted = f"(B, {num_tokens}, up to {levels})" if levels else f"(B, {num_tokens})"
        raise ValueError(f"codes must have shape {wanted}, got {tuple(codes.shape)}; are they of another tokenizer?")


@dataclass
class Reconstruction:
    """images: (B, 3, px, px), not cut to [0, 1]. quantized: what the quantizer made of the latents."""

    images: Tensor
    quantized: Quantized


class ResidualConv(nn.Module):
    """Two 3x3 convolutions, each after group norm and SiLU, and the sum with the input."""

    def __init__(self, width: int):
        super().__init__()
        self.norms = nn.ModuleList(nn.GroupNorm(8, width) for _ in range(2))
        self.convs = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(2))
        nn.init.zeros_(self.convs[1].weight)

    def forward(self, x: Float[Tensor, "b w h h"]) -> Float[Tensor, "b w h h"]:
        h = x
        for norm, conv in zip(self.norms, self.convs):
            h = conv(F.silu(norm(h)))
        return x + h


class VQGrid(nn.Module):
    """Encoder, quantizer and decoder over a square grid of codes.

    grid: 8, 4 or 2 squares a side (64, 16 or 4 tokens). quantizer: from `make_quantizer`; None for 256 cosine codes of
    dimension 8. fine, width: channels at 16x16 and below. blocks: residual blocks at 16x16 and at each coarser size.
    """

    paper = Paper.other(title="Neural Discrete Representation Learning", arxiv="1711.00937", where="section 3")
    label = "VQ grid"

    def __init__(self, grid: int = 8, quantizer: nn.Module | None = None, fine: int = 48, width: int = 96,
                 blocks: Sequence[int] = (1, 2), linear_shortcut: bool = False):
        super().__init__()
        if grid not in (2, 4, 8):
            raise ValueError(f"grid must be 2, 4 or 8 squares a side, got {grid}")
        self.grid, self.num_tokens = grid, grid * grid
        self.quantizer = quantizer or VectorQuantizer(256, 8)
        dim = self.quantizer.dim
        sizes = [fine] + [width] * (8 // grid).bit_length()                                # channels at 16, 8, (4), (2)
        self.encoder, self.decoder = nn.Sequential(), nn.Sequential(nn.Conv2d(dim, width, 3, padding=1))
        for place, (before, after) in enumerate(zip([3] + sizes, sizes)):
            self.encoder.extend([nn.PixelUnshuffle(2), nn.Conv2d(4 * before, after, 3, padding=1)])
            self.encoder.extend(ResidualConv(after) for _ in range(blocks[place > 0]))
        for place, (before, after) in reversed(list(enumerate(zip(sizes, [3] + sizes)))):
            self.decoder.extend(ResidualConv(before) for _ in range(blocks[place > 0]))
            self.decoder.extend([nn.Conv2d(before, 4 * after, 3 if place == 0 else 1, padding=int(place == 0)), nn.PixelShuffle(2)])
        self.to_latents = nn.Conv2d(width, dim, 1)
        square = 3 * (PX // grid) ** 2
        self.linear_in = nn.Linear(square, dim) if linear_shortcut else None
        self.linear_out = nn.Linear(dim, square) if linear_shortcut else None
        self.linear_shortcut = linear_shortcut

    @property
    def bits(self) -> float:
        """Size of a picture's codes."""
        return self.num_tokens * bits_per_token(self.quantizer)

    def latents(self, images: Float[Tensor, "b 3 h h"]) -> Float[Tensor, "b n d"]:
        """What the quantizer is given, in reading order. Raises ValueError for pictures of another size or range."""
        check_images(images)
        made = self.to_latents(self.encoder(images * 2 - 1)).flatten(2).transpose(1, 2)
        if self.linear_in is not None:
            squares = F.pixel_unshuffle(images * 2 - 1, PX // self.grid).flatten(2).transpose(1, 2)
            made = made + self.linear_in(squares)
        return made

    def decode_latents(self, latents: Float[Tensor, "b n d"]) -> Float[Tensor, "b 3 h h"]:
        """Pictures of code vectors, or of mixtures of them; not cut to [0, 1]."""
        latents = latents.to(self.to_latents.weight.dtype)
        images = self.decoder(latents.transpose(1, 2).unflatten(2, (self.grid, self.grid)))
        if self.linear_out is not None:
            squares = self.linear_out(latents).transpose(1, 2).unflatten(2, (self.grid, self.grid))
            images = images + F.pixel_shuffle(squares, PX // self.grid)
        return images.float() * 0.5 + 0.5

    def forward(self, images: Float[Tensor, "b 3 h h"],
                disturb: Callable[[Tensor, Quantized, nn.Module], Tensor] | None = None) -> Reconstruction:
        """Pictures through the codes and back, for training.

        disturb(latents, quantized, quantizer) -> latents that the decoder gets in place of quantized.latents.
        """
        latents = self.latents(images)
        quantized = self.quantizer(latents)
        given = quantized.latents if disturb is None else disturb(latents, quantized, self.quantizer)
        return Reconstruction(self.decode_latents(given), quantized)

    @torch.no_grad()
    def encode(self, images: Float[Tensor, "b 3 h h"]) -> Int[Tensor, "b n ..."]:
        """Codes of the pictures. Raises ValueError for pictures of another size or range."""
        return self.quantizer(self.latents(images)).codes

    @torch.no_grad()
    def decode(self, codes: Int[Tensor, "b n ..."]) -> Float[Tensor, "b 3 h h"]:
        """Pictures of the codes, in [0, 1]. Raises ValueError for codes of a wrong count or out of range."""
        check_code_shape(codes, self.num_tokens, getattr(self.quantizer, "num_levels", 0))
        return self.decode_latents(self.quantizer.lookup(codes)).clamp(0, 1)


def start_from_pca(model: VQGrid, share: float = 0.1) -> None:
    """Sets the linear shortcut to the PCA of the squares of the training pictures, scaled to unit variance, and the branches
    beside it to `share` of their start."""
    images = load_images()
    squares = F.pixel_unshuffle(images.pixels[images.train()] * 2 - 1, PX // model.grid).flatten(2).transpose(1, 2).flatten(0, 1)
    mean = squares.mean(0)
    values, vectors = torch.linalg.eigh((squares - mean).T @ (squares - mean) / len(squares))
    dim = model.quantizer.dim
    values, vectors = values.flip(0)[:dim], vectors.flip(1)[:, :dim]
    with torch.no_grad():
        model.linear_in.weight.copy_((vectors / values.sqrt()).T)
        model.linear_in.bias.copy_(-model.linear_in.weight @ mean)
        model.linear_out.weight.copy_(vectors * values.sqrt())
        model.linear_out.bias.copy_(mean)
        for last in (model.to_latents, model.decoder[-2]):
            last.weight.mul_(share)
            last.bias.zero_()


def build_vq_grid(shape: dict) -> VQGrid:
    """An untrained grid from the "shape" of a card: arguments of `VQGrid`, and "quantizer": {"kind", ...}."""
    return VQGrid(**{**shape, "quantizer": make_quantizer(**shape["quantizer"])})


@lru_cache(maxsize=4)
def load_vq_grid(name: str = "vq_grid_64") -> VQGrid:
    """A trained grid by the name of its weights: vq_grid_64, vq_grid_16, vq_grid_4. Raises WeightsError for an unknown name."""
    state, card = load_weights(name)
    model = build_vq_grid(card["shape"])
    model.load_state_dict(state)
    return model.requires_grad_(False).eval()
