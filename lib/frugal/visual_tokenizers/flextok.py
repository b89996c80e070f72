"""FlexTok: pictures as ordered codes, of which any of the first k (1, 2, 4, 8, 16) already give a picture.

Dropping all but the first k registers in training forces what matters most to the front. A flow decoder then draws
*some* sharp picture that agrees with the k codes: at k = 1 the noise decides most, at k = 16 little.

Source: arXiv 2502.13967, section 3 (nested dropout 3.1, decoder 3.1, sampling with normalised guidance: official code).
Differs: 16 registers of 240 codes (FSQ [8, 6, 5]) and 32 px pixels in place of 256 registers of 64,000 codes and VAE
latents; linear start (`flextok_nets`); features for REPA come from EmojiNet instead of DINOv2; one in eight training
times is exactly 1, so that a single Euler step gives the conditional mean. Weights: recipes/train_flextok.py.
"""
from functools import lru_cache
from math import log2

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from frugal.data.emoji_images import PX
from frugal.models import load_weights
from frugal.models.quantizers import FSQ, Quantized, check_codes
from frugal.models.rectified_flow import NormalisedGuidance, euler, velocity_to
from frugal.models.vq_grid import check_images
from frugal.visual_tokenizers.flextok_nets import FlowDecoder, RegisterEncoder

KEPT = (1, 2, 4, 8, 16)
SHAPE = dict(num_registers=16, levels=[8, 6, 5], encoder=[96, 2, 3], decoder=[96, 5, 3])


def nested_dropout(registers: Float[Tensor, "b r d"], keep: Int[Tensor, "b"], mask: Float[Tensor, "d"]) -> Float[Tensor, "b r d"]:
    """The first `keep` registers of each picture as they are, `mask` in place of the others; the length stays.

    Raises ValueError for counts outside 0..R.
    """
    num_registers = registers.shape[1]
    if len(keep) and not (0 <= int(keep.min()) and int(keep.max()) <= num_registers):
        raise ValueError(f"keep must be in 0..{num_registers} registers, got {int(keep.min())}..{int(keep.max())}")
    kept = torch.arange(num_registers, device=registers.device) < keep[:, None]            # (B, R)
    return torch.where(kept[..., None], registers, mask.to(registers.dtype))


class FlexTok(nn.Module):
    """The tokenizer. encoder, decoder: width, blocks, heads. kept: the prefix lengths it is trained for."""

    paper, label = "flextok", "FlexTok"

    def __init__(self, num_registers: int = 16, levels: list[int] | tuple[int, ...] = (8, 6, 5),
                 encoder: list[int] | tuple[int, ...] = (96, 2, 3), decoder: list[int] | tuple[int, ...] = (96, 5, 3)):
        super().__init__()
        self.quantizer = FSQ(levels)
        self.num_tokens, self.kept = num_registers, tuple(k for k in KEPT if k <= num_registers)
        self.encoder = RegisterEncoder(num_registers, len(levels), *encoder)
        self.decoder = FlowDecoder(num_registers, len(levels), *decoder)
        self.mask, self.null = (nn.Parameter(torch.zeros(len(levels))) for _ in range(2))

    @property
    def bits(self) -> float:
        """Size of all codes of a picture."""
        return self.num_tokens * log2(self.quantizer.codebook_size)

    def quantized(self, images: Float[Tensor, "b 3 h h"]) -> Quantized:
        """Register latents on the grid, with gradients, and codes, of pictures in [0, 1]."""
        return self.quantizer(self.encoder(images * 2 - 1))

    @torch.no_grad()
    def encode(self, images: Float[Tensor, "b 3 h h"]) -> Int[Tensor, "b r"]:
        """(B, 16) codes, the most telling first; cut them to keep k. Raises ValueError for other sizes or ranges."""
        check_images(images, PX)
        return self.quantized(images).codes

    def prefix(self, codes: Int[Tensor, "b k"]) -> Float[Tensor, "b r d"]:
        """Latents of the k codes with the mask vector behind. Raises ValueError for a k it was not trained for, or codes
        out of range."""
        if codes.ndim != 2 or codes.shape[1] not in self.kept:
            raise ValueError(f"codes must be (B, k) with k one of {self.kept}, which the decoder was trained for, got "
                             f"{tuple(codes.shape)}; cut the sequence with codes[:, :k]")
        check_codes(codes, self.quantizer.codebook_size)
        held = nn.functional.pad(self.quantizer.lookup(codes), [0, 0, 0, self.num_tokens - codes.shape[1]])
        return nested_dropout(held, torch.full((len(codes),), codes.shape[1]), self.mask)

    @torch.no_grad()
    def decode(self, codes: Int[Tensor, "b k"], num_steps: int = 20, generator: torch.Generator | None = None,
               guidance: float = 1.0, on_step=None) -> Float[Tensor, "b 3 h h"]:
        """Pictures in [0, 1] drawn for the first k codes; the time does not depend on k. generator: of the noise; None
        takes seed 0. guidance: 1 is none; more costs a second pass a step."""
        generator = generator or torch.Generator().manual_seed(0)
        latents = self.prefix(codes)
        noise = torch.randn(len(codes), 3, PX, PX, generator=generator)
        return (euler(self.velocity(latents, guidance), noise, num_steps, on_step) * 0.5 + 0.5).clamp(0, 1)

    @torch.no_grad()
    def decode_mean(self, codes: Int[Tensor, "b k"]) -> Float[Tensor, "b 3 h h"]:
        """One Euler step: at s = 1 the noise says nothing, so this is the mean over all pictures that agree with the
        codes; blurred."""
        return self.decode(codes, num_steps=1)

    def velocity(self, latents: Float[Tensor, "b r d"], guidance: float = 1.0):
        """The flow's velocity for given latents, as `rectified_flow.euler` takes it."""
        mean, push = self.decoder.mean(latents), NormalisedGuidance(guidance)
        nothing = self.null.expand_as(latents)
        empty = self.decoder.mean(nothing) if guidance != 1 else None

        def of(x: Tensor, times: Tensor) -> Tensor:
            with_codes = velocity_to(self.decoder(x, times, latents, mean), x, times)
            if guidance == 1:
                return with_codes
            return push(with_codes, velocity_to(self.decoder(x, times, nothing, empty), x, times))

        return of


@lru_cache(maxsize=4)
def load_flextok(name: str = "flextok") -> FlexTok:
    """The trained tokenizer, in eval mode. Raises WeightsError when its weights are missing or damaged."""
    weights, card = load_weights(name)
    model = FlexTok(**card["shape"])
    model.load_state_dict(weights)
    return model.eval().requires_grad_(False)
