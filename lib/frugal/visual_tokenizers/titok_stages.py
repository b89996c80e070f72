"""The two training stages of TiTok: first to foretell a grid tokenizer's codes, then its pixel decoder learns from soft codes.

Source: arXiv 2406.07550 (TiTok), section 3.3, and the released code for the head (w -> 2w, tanh, 2w -> codes of the grid).
Stage 1: cross entropy against the codes ("proxy codes") that a frozen grid gives each patch; no pixel is compared.
Stage 2: encoder, latent tokens and quantizer rest; softmax of the logits times the grid's codebook goes into the grid's pixel decoder,
and both decoders are trained on pixels.
Differs: our own `VQGrid` of 64 tokens as the grid (the paper: MaskGIT's VQGAN); no adversary; the quantizer is left out for the first
steps, since with cosine codes all latents of a fresh encoder fall on one code.
Shapes: B batch, P patches = codes of the grid, V codes in its codebook.
"""
import copy

import torch
from jaxtyping import Float
from torch import Tensor, nn

from frugal.models.quantizers import VectorQuantizer
from frugal.models.vq_grid import VQGrid
from frugal.visual_tokenizers.titok import NUM_PATCHES, TiTok


def soft_codes(logits: Float[Tensor, "b p v"], codebook: Float[Tensor, "v d"]) -> Float[Tensor, "b p d"]:
    """Mean of the codebook under the softmax of the logits: one code vector where a logit towers over the others."""
    return logits.float().softmax(-1) @ codebook


class TwoStageTiTok(TiTok):
    """TiTok whose decoder speaks in the codes of `grid` (copied: stage 2 trains its pixel decoder).

    sizes: of `TiTok`. Raises ValueError for a grid that has not one code for each patch, or is no plain VQ.
    """

    label = "TiTok, two stages"

    def __init__(self, grid: VQGrid, width: int = 96, quantizer: nn.Module | None = None, **sizes):
        if grid.num_tokens != NUM_PATCHES or not isinstance(grid.quantizer, VectorQuantizer):
            raise ValueError(f"the grid needs one VQ code for each of the {NUM_PATCHES} patches, got {grid.num_tokens} of "
                             f"{type(grid.quantizer).__name__}")
        super().__init__(width=width, quantizer=quantizer or VectorQuantizer(256, 8), **sizes)
        self.grid = copy.deepcopy(grid).requires_grad_(True)
        self.head = nn.Sequential(nn.Linear(width, 2 * width), nn.Tanh(), nn.Linear(2 * width, grid.quantizer.codebook_size))

    def decode_latents(self, latents: Float[Tensor, "b k d"]) -> Float[Tensor, "b 3 h h"]:
        """Pictures of code vectors, through soft codes of the grid; not cut to [0, 1]."""
        return self.grid.decode_latents(soft_codes(self.fill(latents), self.grid.quantizer.codebook))

    def proxy_loss(self, images: Float[Tensor, "b 3 h h"], quantize: bool = True) -> tuple[Tensor, Tensor]:
        """Stage 1: (loss, share of the grid's codes guessed right). quantize: false for the first steps."""
        wanted = self.grid.eval().encode(images)
        latents = self.latents(images)
        if quantize:
            quantized = self.quantizer(latents)
            given, extra = quantized.latents, quantized.loss
        else:
            given, extra = self.quantizer.prepared(latents.float()), latents.new_zeros(())
        logits = self.fill(given).float()
        right = (logits.argmax(-1) == wanted).float().mean()
        return nn.functional.cross_entropy(logits.flatten(0, 1), wanted.flatten()) + extra, right

    def freeze_encoder(self) -> None:
        """For stage 2: what makes the codes rests, so they stay what they were."""
        for part in (self.embed, self.encoder, self.to_latents, self.quantizer, self.grid.encoder, self.grid.to_latents):
            part.requires_grad_(False)
        self.patch_places.requires_grad_(False)
        self.latent_tokens.requires_grad_(False)

    def decoded(self, images: Float[Tensor, "b 3 h h"]) -> Float[Tensor, "b 3 h h"]:
        """Stage 2: pictures of the codes of `images`, with gradients for the decoders only."""
        with torch.no_grad():
            given = self.quantizer.eval().lookup(self.encode(images))
        return self.decode_latents(given)
