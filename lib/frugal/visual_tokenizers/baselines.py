"""Tokenizers that need little or no training: what a learned one must beat at as many tokens, or as many bits."""
from functools import lru_cache
from math import log2
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from frugal.core.papers import Paper
from frugal.data.emoji_images import PX, load_images, pca_basis
from frugal.models.quantizers import check_codes
from frugal.models.vq_grid import check_code_shape, load_vq_grid
from frugal.visual_tokenizers.methods import Tokenizer

LEVELS, REACH = 256, 3.5                        # of a PCA coefficient; the ends in standard deviations


class BlockMeans(Tokenizer):
    """A mean colour for each square, 8 bits a channel, drawn smoothly (bilinear)."""

    name, label, counts = "block_means", "Block means", (1, 4, 16, 64)
    summary = "a mean colour for each of 1 to 64 squares; no training"
    paper = Paper.other(title="Thumbnail, enlarged by bilinear interpolation")

    def encode(self, images: Tensor, num_tokens: int) -> Tensor:
        side = round(num_tokens ** 0.5)
        return (F.avg_pool2d(images, PX // side) * 255).round().long().flatten(2).transpose(1, 2)       # (B, N, 3)

    def decode(self, codes: Tensor, num_tokens: int, seed: int = 0) -> Tensor:
        check_codes(codes, 256)
        check_code_shape(codes, num_tokens, levels=3)
        side = round(num_tokens ** 0.5)
        colours = codes.transpose(1, 2).unflatten(2, (side, side)).float() / 255
        return F.interpolate(colours, size=PX, mode="bilinear")

    def bits(self, num_tokens: int) -> float:
        return 24.0 * num_tokens


class PCATokens(Tokenizer):
    """The first K principal components of the training pictures, each coefficient on 256 steps: the linear tokenizer."""

    name, label, counts = "pca", "PCA", (1, 2, 4, 8, 16, 32, 64, 128)
    summary = "the first 1 to 128 principal components, 8 bits each: the best linear tokenizer"
    paper = Paper.other(title="Principal component analysis (Pearson, 1901)")

    def encode(self, images: Tensor, num_tokens: int) -> Tensor:
        basis = pca_basis(num_tokens)
        scaled = basis.encode(images) / basis.variances.sqrt() / REACH                     # -1..1, but for a few
        return ((scaled.clamp(-1, 1) + 1) / 2 * (LEVELS - 1)).round().long()

    def decode(self, codes: Tensor, num_tokens: int, seed: int = 0) -> Tensor:
        check_codes(codes, LEVELS)
        check_code_shape(codes, num_tokens)
        basis = pca_basis(num_tokens)
        return basis.decode((codes / (LEVELS - 1) * 2 - 1) * REACH * basis.variances.sqrt())

    def bits(self, num_tokens: int) -> float:
        return num_tokens * log2(LEVELS)


class Dictionary(Tokenizer):
    """One code: the number of the nearest training picture. Sharp, cheap, and wrong about everything it has not seen."""

    name, label, counts = "dictionary", "Nearest training picture", (1,)
    summary = "one code: the number of the nearest training picture"
    paper = Paper.other(title="Vector quantization with all training pictures as codebook")

    def encode(self, images: Tensor, num_tokens: int) -> Tensor:
        return torch.cdist(images.flatten(1), _training().flatten(1)).argmin(1, keepdim=True)

    def decode(self, codes: Tensor, num_tokens: int, seed: int = 0) -> Tensor:
        check_codes(codes, len(_training()))
        check_code_shape(codes, 1)
        return _training()[codes[:, 0]]

    def bits(self, num_tokens: int) -> float:
        return log2(len(_training()))


class TruncatedGrid(Tokenizer):
    """The 64-token grid cut after its first tokens in reading order; the rest of the picture gets the mean code vector."""

    name, label, counts = "truncated_grid", "VQ grid, cut", (4, 8, 16, 32, 64)
    weights = ("vq_grid_64",)
    summary = "the 8 x 8 grid, of which only the first tokens in reading order are sent"
    paper = Paper.other(arxiv="2012.09841", where="section 3.1", title="VQGAN: Taming Transformers for High-Resolution Image Synthesis")
    sample: ClassVar[int] = 16                    # every 16th training picture gives the mean code vector

    def network(self, num_tokens: int):
        return load_vq_grid("vq_grid_64")

    def encode(self, images: Tensor, num_tokens: int) -> Tensor:
        return super().encode(images, num_tokens)[:, :num_tokens]

    @torch.no_grad()
    def decode(self, codes: Tensor, num_tokens: int, seed: int = 0) -> Tensor:
        grid = self.network(num_tokens)
        check_code_shape(codes, num_tokens)
        found = grid.quantizer.lookup(codes)
        rest = _mean_vector(self.sample).expand(len(codes), grid.num_tokens - num_tokens, -1)
        return grid.decode_latents(torch.cat([found, rest], 1))

    def bits(self, num_tokens: int) -> float:
        grid = self.network(num_tokens)
        return num_tokens / grid.num_tokens * grid.bits


@lru_cache(maxsize=1)
def _training() -> Tensor:
    known = load_images()
    return known.pixels[known.train()]


@lru_cache(maxsize=1)
def _mean_vector(every: int) -> Tensor:
    grid = load_vq_grid("vq_grid_64")
    return grid.quantizer.lookup(grid.encode(_training()[::every])).flatten(0, 1).mean(0)


BASELINES: tuple[type[Tokenizer], ...] = (PCATokens, BlockMeans, Dictionary, TruncatedGrid)
