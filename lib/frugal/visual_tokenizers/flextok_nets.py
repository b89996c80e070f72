"""The two networks of FlexTok: an encoder whose registers stand behind a prefix mask, a decoder that predicts a flow.

Source: arXiv 2502.13967, section 3.1 (registers, masks, rectified-flow decoder with adaLN-zero a kind of token).
Differs: 32 px pixels in place of VAE latents; and a labelled linear start (`linear_shortcut`): principal components of the
picture at 16 px are added to the register latents in order, three a register, and a linear map of the kept latents gives
the decoder its first guess `mean`. The decoder is written in terms of x0: Wiener estimate of x0 from the noised picture
and that guess, plus what the transformer adds; the velocity follows from it. Times are embedded by sines.
Shapes: B batch, P = 64 patches of 4 x 4 px, R registers, d latent dim, w width; pictures of the networks are in [-1, 1].
"""
import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from frugal.core.masks import prefix_causal
from frugal.data.emoji_images import PX
from frugal.models.trunk import Trunk

PATCH, SMALL = 4, 16                             # px of a patch; side of the picture that the linear maps see
NUM_PATCHES = (PX // PATCH) ** 2


def patches(images: Float[Tensor, "b c h h"]) -> Float[Tensor, "b p d"]:
    """Squares of 4 x 4 px in reading order, channels outermost in each."""
    return F.pixel_unshuffle(images, PATCH).flatten(2).transpose(1, 2)


def unpatched(x: Float[Tensor, "b p d"]) -> Float[Tensor, "b c h h"]:
    """Pictures from `patches`."""
    side = math.isqrt(x.shape[1])
    return F.pixel_shuffle(x.transpose(1, 2).unflatten(2, (side, side)), PATCH)


class RegisterEncoder(nn.Module):
    """[patches | registers] through blocks under the prefix mask; the registers' states become latents."""

    def __init__(self, num_registers: int, dim: int, width: int, num_blocks: int, num_heads: int):
        super().__init__()
        self.embed = nn.Linear(3 * PATCH * PATCH, width)
        self.positions = nn.Parameter(torch.randn(NUM_PATCHES, width) * 0.02)
        self.registers = nn.Parameter(torch.randn(num_registers, width) * 0.1)
        self.trunk = Trunk(width, num_blocks, num_heads)
        self.head = nn.Linear(width, dim)
        self.shortcut = nn.Linear(3 * SMALL * SMALL, num_registers * dim)
        self.register_buffer("mask", prefix_causal(NUM_PATCHES, num_registers), persistent=False)
        nn.init.normal_(self.head.weight, std=0.1 * width ** -0.5)                          # a tenth of the shortcut
        nn.init.zeros_(self.head.bias)

    def forward(self, images: Float[Tensor, "b 3 h h"], registers: Float[Tensor, "b r w"] | None = None) -> Float[Tensor, "b r d"]:
        """Latents before quantization. registers: other inputs than the learned ones, a picture each (for tests)."""
        given = self.registers.expand(len(images), -1, -1) if registers is None else registers
        x = torch.cat([self.embed(patches(images)) + self.positions, given], 1)
        states = self.trunk(x, mask=self.mask)[:, NUM_PATCHES:]
        linear = self.shortcut(F.avg_pool2d(images, PX // SMALL).flatten(1))
        return self.head(states) + linear.unflatten(1, (given.shape[1], -1))


class FlowDecoder(nn.Module):
    """[noised patches | registers] and a time to a guess of the picture.

    spread: standard deviation of pixels around the linear guess, measured on training pictures.
    """

    def __init__(self, num_registers: int, dim: int, width: int, num_blocks: int, num_heads: int, cond_width: int = 64):
        super().__init__()
        self.embed = nn.Linear(2 * 3 * PATCH * PATCH, width)
        self.lift = nn.Linear(dim, width)
        self.positions = nn.Parameter(torch.randn(NUM_PATCHES + num_registers, width) * 0.02)
        self.time = nn.Sequential(nn.Linear(32, cond_width), nn.SiLU(), nn.Linear(cond_width, cond_width))
        self.trunk = Trunk(width, num_blocks, num_heads, cond_width=cond_width, num_kinds=2)
        self.head = nn.Linear(width, 3 * PATCH * PATCH)
        self.linear = nn.Linear(num_registers * dim, 3 * SMALL * SMALL)
        self.register_buffer("spread", torch.tensor(0.5))
        self.register_buffer("kinds", (torch.arange(NUM_PATCHES + num_registers) >= NUM_PATCHES).long(), persistent=False)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def mean(self, latents: Float[Tensor, "b r d"]) -> Float[Tensor, "b 3 h h"]:
        """The linear guess of the picture from the latents that were kept."""
        small = self.linear(latents.flatten(1)).unflatten(1, (3, SMALL, SMALL)).float()
        return F.interpolate(small, scale_factor=PX // SMALL, mode="bilinear")

    def forward(self, x: Float[Tensor, "b 3 h h"], times: Float[Tensor, "b"], latents: Float[Tensor, "b r d"],
                mean: Float[Tensor, "b 3 h h"] | None = None) -> Float[Tensor, "b 3 h h"]:
        """Guess of x0. x: noised pictures at `times`. mean: from `mean(latents)`, to save computing it in every step."""
        mean = self.mean(latents) if mean is None else mean
        s = times[:, None, None, None]
        signal, noise = (1 - s) * self.spread, s                                           # deviations of the two parts
        total = (signal ** 2 + noise ** 2).sqrt()
        around = (x - (1 - s) * mean) / total                                              # of deviation 1
        tokens = self.embed(torch.cat([patches(around), patches(mean)], -1))
        tokens = torch.cat([tokens, self.lift(latents)], 1) + self.positions
        states = self.trunk(tokens, cond=self.time(sines(times)), kinds=self.kinds)[:, :NUM_PATCHES]
        wiener = mean + self.spread * signal / total * around
        return wiener + self.spread * noise / total * unpatched(self.head(states)).float()


def sines(times: Float[Tensor, "b"], count: int = 32, fastest: float = 50.0) -> Float[Tensor, "b count"]:
    """Times in [0, 1] as sines and cosines of `count` / 2 frequencies, from 1 to `fastest` radians."""
    angles = times[:, None] * fastest ** torch.linspace(0, 1, count // 2, device=times.device)
    return torch.cat([angles.sin(), angles.cos()], 1)
