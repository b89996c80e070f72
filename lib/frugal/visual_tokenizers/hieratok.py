"""HieraTok: a ViT tokenizer that looks at its map of patches at several scales, coarse to fine.

The 8 x 8 map of patch states is averaged down to coarser maps; all scales stand in one sequence, and a token sees its own
scale and coarser ones only. The finest 64 tokens become a Gaussian latent, so a generator gets the same 64 tokens as from
the single-scale tokenizer. The decoder does the same on its side.

Source: arXiv 2509.23736, abstract; no code was found, so what the abstract leaves open is our decision: pyramid by
average pooling, Gaussian latent (KL), auxiliary pictures from the coarser scales.
Differs: 32 px; a labelled linear start (a linear map of each patch to its latent and back, from PCA); no adversary.
Weights: recipes/train_hieratok.py.
Shapes: B batch, N = 64 patches of 4 x 4 px, T tokens of all scales, d latent dim, w width.
"""
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from frugal.core.masks import scale_causal
from frugal.data.emoji_images import PX
from frugal.models import load_weights
from frugal.models.trunk import Trunk
from frugal.models.vq_grid import check_images

PATCH, SIDE = 4, 8                               # px of a patch; patches a side
SHAPE = dict(scales=[1, 2, 4, 8], dim=8, width=64, heads=2, blocks=[1, 2, 2, 1])
LEAST_LOG, MOST_LOG = -12.0, 4.0                 # of the latent's log variance


def token_pyramid(tokens: Float[Tensor, "b n w"], scales: Sequence[int], order: Int[Tensor, "n"] | None = None
                  ) -> Float[Tensor, "b t w"]:
    """The square map averaged to s x s for every scale s, coarse to fine, one behind the other.

    order: which token each place of the map takes before it is averaged to a coarser scale (the shuffled control); the
    finest scale stays as it is. Raises ValueError unless scales ascend, divide the side, and end with it.
    """
    side = round(tokens.shape[1] ** 0.5)
    if list(scales) != sorted(set(scales)) or not scales or scales[-1] != side or any(side % s for s in scales):
        raise ValueError(f"scales must ascend, divide the side of the map and end with it, {side}; got {list(scales)}")
    mixed = tokens if order is None else tokens[:, order]
    square = mixed.transpose(1, 2).unflatten(2, (side, side))                              # (B, w, side, side)
    levels = [F.avg_pool2d(square, side // s).flatten(2).transpose(1, 2) for s in scales[:-1]]
    return torch.cat([*levels, tokens], 1)


class ScaleBlocks(nn.Module):
    """Blocks over the pyramid of a map. full: every token sees every token (a baseline). shuffled: see `token_pyramid`."""

    def __init__(self, scales: Sequence[int], width: int, num_blocks: int, num_heads: int, full: bool = False,
                 shuffled: bool = False):
        super().__init__()
        self.scales, self.counts = tuple(scales), [s * s for s in scales]
        self.trunk = Trunk(width, num_blocks, num_heads)
        self.scale_embedding = nn.Parameter(torch.zeros(len(scales), width))
        mask = scale_causal(self.counts)
        self.register_buffer("mask", None if full or len(scales) == 1 else mask, persistent=False)
        order = torch.randperm(scales[-1] ** 2, generator=torch.Generator().manual_seed(1)) if shuffled else None
        self.register_buffer("order", order, persistent=False)
        places = torch.arange(len(scales)).repeat_interleave(torch.tensor(self.counts))
        self.register_buffer("places", places, persistent=False)

    def forward(self, tokens: Float[Tensor, "b n w"]) -> Float[Tensor, "b t w"]:
        """States of all scales, coarse to fine; the last N are the finest. One scale: a plain transformer."""
        x = token_pyramid(tokens, self.scales, self.order)
        return self.trunk(x + F.embedding(self.places, self.scale_embedding), mask=self.mask)


@dataclass
class Latent:
    """mean, log_variance: (B, 64, d) of the Gaussian. kl: nats a latent number, to a standard normal, averaged."""

    mean: Tensor
    log_variance: Tensor

    @property
    def kl(self) -> Tensor:
        return 0.5 * (self.mean ** 2 + self.log_variance.exp() - 1 - self.log_variance).mean()

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """One draw of the latent."""
        noise = torch.randn(self.mean.shape, generator=generator)
        return self.mean + (0.5 * self.log_variance).exp() * noise


class HieraTok(nn.Module):
    """The tokenizer. scales: of encoder and decoder, [8] for the single-scale baseline; encoder_scales, decoder_scales:
    where they differ. blocks: plain and pyramid blocks of the encoder, pyramid and plain blocks of the decoder.
    """

    paper, label = "hieratok", "HieraTok"

    def __init__(self, scales: Sequence[int] = (1, 2, 4, 8), dim: int = 8, width: int = 64, heads: int = 2,
                 blocks: Sequence[int] = (1, 2, 2, 1), full: bool = False, shuffled: bool = False,
                 encoder_scales: Sequence[int] | None = None, decoder_scales: Sequence[int] | None = None):
        super().__init__()
        patch = 3 * PATCH * PATCH
        self.num_tokens, self.dim = SIDE * SIDE, dim
        how = dict(width=width, num_heads=heads, full=full, shuffled=shuffled)
        self.embed, self.lift = nn.Linear(patch, width), nn.Linear(dim, width)
        self.positions, self.latent_positions = (nn.Parameter(torch.randn(SIDE * SIDE, width) * 0.02) for _ in range(2))
        self.plain_in, self.plain_out = Trunk(width, blocks[0], heads), Trunk(width, blocks[3], heads)
        self.pyramid_in = ScaleBlocks(encoder_scales or scales, num_blocks=blocks[1], **how)
        self.pyramid_out = ScaleBlocks(decoder_scales or scales, num_blocks=blocks[2], **how)
        self.to_latent, self.to_patch = nn.Linear(width, 2 * dim), nn.Linear(width, patch)
        self.to_coarse = nn.Linear(width, patch)
        self.linear_in, self.linear_out = nn.Linear(patch, dim), nn.Linear(dim, patch)
        for layer in (self.to_latent, self.to_patch):
            nn.init.normal_(layer.weight, std=0.1 * width ** -0.5)                          # a tenth of the linear start
            nn.init.zeros_(layer.bias)
        nn.init.constant_(self.to_latent.bias[dim:], -5.0)

    @property
    def bits(self) -> float:
        """Size of the latent as 16-bit numbers: it has no codes."""
        return 16.0 * self.num_tokens * self.dim

    def latent(self, images: Float[Tensor, "b 3 h h"]) -> Latent:
        """The Gaussian latent of pictures in [0, 1]. Raises ValueError for other sizes or ranges."""
        check_images(images, PX)
        cut = F.pixel_unshuffle(images * 2 - 1, PATCH).flatten(2).transpose(1, 2)           # (B, N, patch)
        states = self.pyramid_in(self.plain_in(self.embed(cut) + self.positions))[:, -self.num_tokens:]
        mean, log_variance = self.to_latent(states).float().chunk(2, -1)
        return Latent(mean + self.linear_in(cut).float(), log_variance.clamp(LEAST_LOG, MOST_LOG))

    def picture(self, latents: Float[Tensor, "b n d"]) -> tuple[Float[Tensor, "b 3 h h"], list[Tensor]]:
        """Pictures in about [0, 1], and what each coarser scale of the decoder says, (B, 3, 4s, 4s) for scale s."""
        states = self.pyramid_out(self.lift(latents) + self.latent_positions)
        *coarse, fine = states.split(self.pyramid_out.counts, 1)
        cut = self.to_patch(self.plain_out(fine)) + self.linear_out(latents.to(fine.dtype))
        rough = [self._whole(self.to_coarse(level), s) for level, s in zip(coarse, self.pyramid_out.scales)]
        return self._whole(cut, SIDE), rough

    @staticmethod
    def _whole(cut: Tensor, side: int) -> Tensor:
        return F.pixel_shuffle(cut.transpose(1, 2).unflatten(2, (side, side)), PATCH).float() * 0.5 + 0.5

    @torch.no_grad()
    def encode(self, images: Float[Tensor, "b 3 h h"]) -> Float[Tensor, "b n d"]:
        """Means of the latent: (B, 64, d) numbers, where other tokenizers have codes."""
        return self.latent(images).mean

    @torch.no_grad()
    def decode(self, latents: Float[Tensor, "b n d"]) -> Float[Tensor, "b 3 h h"]:
        """Pictures in [0, 1]. Raises ValueError for latents of another shape, or not finite."""
        self._check(latents)
        return self.picture(latents)[0].clamp(0, 1)

    @torch.no_grad()
    def decode_coarse(self, latents: Float[Tensor, "b n d"]) -> list[Tensor]:
        """What the coarser scales alone reconstruct, coarse to fine, each at its own size."""
        self._check(latents)
        return [level.clamp(0, 1) for level in self.picture(latents)[1]]

    def _check(self, latents: Tensor) -> None:
        if latents.ndim != 3 or tuple(latents.shape[1:]) != (self.num_tokens, self.dim) or not latents.is_floating_point():
            raise ValueError(f"latents must be floats (B, {self.num_tokens}, {self.dim}), got {tuple(latents.shape)} of "
                             f"{latents.dtype}; HieraTok has a continuous latent, no codes")
        if not latents.isfinite().all():
            raise ValueError("latents hold NaN or infinite numbers")


@lru_cache(maxsize=4)
def load_hieratok(name: str = "hieratok") -> HieraTok:
    """The trained tokenizer, "hieratok" or "hieratok_single", in eval mode. Raises WeightsError when its weights are
    missing or damaged."""
    weights, card = load_weights(name)
    model = HieraTok(**card["shape"])
    model.load_state_dict(weights)
    return model.eval().requires_grad_(False)
