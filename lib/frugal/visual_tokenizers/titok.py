"""TiTok: a picture as a short row of tokens, each of which may speak of any part of it.

Source: arXiv 2406.07550 (TiTok), section 3.2 and figure 3: K learned latent tokens go through a ViT beside the patches, their
outputs alone are quantized, and a second ViT fills mask tokens, one for each patch, from the K codes. `titok_stages` holds the
paper's two-stage training; here pixels are regressed at once, as in the authors' later single-stage variant.
Differs: FSQ in place of cosine codes and a linear shortcut around both ViTs, started from PCA (`basis`; None leaves it out): without
it small ViTs stay near the mean picture for hundreds of steps. No class token, no adversary; 32 px and patches of 4.
Shapes: B batch, P patches (64), K latent tokens, w width, d dim of a latent; codes (B, K).
"""
from collections.abc import Callable
from functools import lru_cache

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from frugal.core.papers import paper
from frugal.data.emoji_images import PX, PixelBasis, pca_basis
from frugal.models import load_weights
from frugal.models.quantizers import FSQ, Quantized
from frugal.models.trunk import Trunk
from frugal.models.vq_grid import Reconstruction, bits_per_token, check_code_shape, check_images, make_quantizer

PATCH = 4
NUM_PATCHES = (PX // PATCH) ** 2


def join_latents(patches: Float[Tensor, "b p w"], latents: Float[Tensor, "k w"]) -> Float[Tensor, "b pk w"]:
    """The row the encoder reads: the patches of each picture, then the same K learned tokens."""
    return torch.cat([patches, latents.expand(len(patches), -1, -1)], 1)


def latent_outputs(states: Float[Tensor, "b pk w"], num_tokens: int) -> Float[Tensor, "b k w"]:
    """What is quantized: the outputs at the K latent tokens. Those at the patches are dropped, whatever they hold."""
    return states[:, -num_tokens:]


class LinearShortcut(nn.Module):
    """A linear map of the picture to K * d numbers and back, in coordinates of its principal components of unit variance."""

    def __init__(self, basis: PixelBasis, num_numbers: int):
        super().__init__()
        rank = len(basis.components)
        if num_numbers > rank:
            raise ValueError(f"{num_numbers} numbers need as many components, the basis has {rank}")
        self.basis = basis                                              # of the data, not trained: no part of the weights
        self.enter, self.leave = nn.Linear(rank, num_numbers), nn.Linear(num_numbers, rank)
        nn.init.eye_(self.enter.weight)
        nn.init.eye_(self.leave.weight)
        nn.init.zeros_(self.enter.bias)
        nn.init.zeros_(self.leave.bias)

    def coordinates(self, images: Tensor) -> Tensor:
        """Components of unit variance, (B, rank)."""
        return self.basis.encode(images) / self.basis.variances.sqrt()

    def pictures(self, numbers: Float[Tensor, "b n"]) -> Float[Tensor, "b 3 h h"]:
        return self.basis.decode((self.leave(numbers) * self.basis.variances.sqrt()).float())


class TiTok(nn.Module):
    """Tokenizer of K codes for a whole picture.

    num_tokens: K. width, num_blocks, num_heads: of each of the two ViTs. quantizer: from `make_quantizer`; None for FSQ with
    8 x 6 x 5 codes. basis: principal components for the linear shortcut, at least K * d of them; None for no shortcut.
    """

    paper, label = paper("titok", "section 3.2"), "TiTok"

    def __init__(self, num_tokens: int = 16, width: int = 96, num_blocks: int = 2, num_heads: int = 4,
                 quantizer: nn.Module | None = None, basis: PixelBasis | None = None, out_dim: int = 3 * PATCH ** 2):
        super().__init__()
        if num_tokens < 1:
            raise ValueError(f"num_tokens must be at least 1, got {num_tokens}")
        self.num_tokens = num_tokens
        self.quantizer = quantizer or FSQ((8, 6, 5))
        dim = self.quantizer.dim
        self.embed = nn.Linear(3 * PATCH ** 2, width)
        self.patch_places, self.latent_tokens = (nn.Parameter(0.02 * torch.randn(n, width)) for n in (NUM_PATCHES, num_tokens))
        self.encoder = Trunk(width, num_blocks, num_heads)
        self.to_latents = nn.Linear(width, dim)
        self.from_latents = nn.Linear(dim, width)
        self.mask_token = nn.Parameter(0.02 * torch.randn(width))
        self.mask_places, self.code_places = (nn.Parameter(0.02 * torch.randn(n, width)) for n in (NUM_PATCHES, num_tokens))
        self.decoder = Trunk(width, num_blocks, num_heads)
        self.head = nn.Linear(width, out_dim)
        self.shortcut = LinearShortcut(basis, num_tokens * dim) if basis is not None else None

    @property
    def bits(self) -> float:
        """Size of a picture's codes."""
        return self.num_tokens * bits_per_token(self.quantizer)

    def patches(self, images: Float[Tensor, "b 3 h h"]) -> Float[Tensor, "b p w"]:
        """Embedded patches with their places, in reading order."""
        squares = F.pixel_unshuffle(images * 2 - 1, PATCH).flatten(2).transpose(1, 2)      # (B, P, 48)
        return self.embed(squares) + self.patch_places

    def latents(self, images: Float[Tensor, "b 3 h h"]) -> Float[Tensor, "b k d"]:
        """What the quantizer is given. Raises ValueError for pictures of another size or range."""
        check_images(images)
        states = self.encoder(join_latents(self.patches(images), self.latent_tokens))
        made = self.to_latents(latent_outputs(states, self.num_tokens))
        if self.shortcut is not None:
            made = made + self.shortcut.enter(self.shortcut.coordinates(images)).unflatten(1, made.shape[1:])
        return made

    def fill(self, latents: Float[Tensor, "b k d"]) -> Float[Tensor, "b p c"]:
        """The decoder's output at each patch: mask tokens, filled by attention to the K code vectors."""
        codes = self.from_latents(latents.to(self.mask_token.dtype)) + self.code_places
        masks = (self.mask_token + self.mask_places).expand(len(codes), -1, -1)
        return self.head(self.decoder(torch.cat([masks, codes], 1))[:, :NUM_PATCHES])

    def decode_latents(self, latents: Float[Tensor, "b k d"]) -> Float[Tensor, "b 3 h h"]:
        """Pictures of code vectors; not cut to [0, 1]."""
        squares = self.fill(latents).float().transpose(1, 2).unflatten(2, (PX // PATCH, PX // PATCH))
        images = F.pixel_shuffle(squares, PATCH) * 0.5
        return images + (0.5 if self.shortcut is None else self.shortcut.pictures(latents.flatten(1)))

    def forward(self, images: Float[Tensor, "b 3 h h"],
                disturb: Callable[[Tensor, Quantized, nn.Module], Tensor] | None = None) -> Reconstruction:
        """Pictures through the codes and back, for training; disturb: as for `VQGrid.forward`."""
        latents = self.latents(images)
        quantized = self.quantizer(latents)
        given = quantized.latents if disturb is None else disturb(latents, quantized, self.quantizer)
        return Reconstruction(self.decode_latents(given), quantized)

    @torch.no_grad()
    def encode(self, images: Float[Tensor, "b 3 h h"]) -> Int[Tensor, "b k"]:
        """Codes of the pictures. Raises ValueError for pictures of another size or range."""
        return self.quantizer(self.latents(images)).codes

    @torch.no_grad()
    def decode(self, codes: Int[Tensor, "b k"]) -> Float[Tensor, "b 3 h h"]:
        """Pictures of the codes, in [0, 1]. Raises ValueError for codes of a wrong count or out of range."""
        check_code_shape(codes, self.num_tokens)
        return self.decode_latents(self.quantizer.lookup(codes)).clamp(0, 1)


@torch.no_grad()
def start_from_pca(model: TiTok, images: Float[Tensor, "b 3 h h"], share: float = 0.03, spread: float = 0.9) -> None:
    """Gives the largest components to the channels with most levels, fits the way back to the quantized numbers (least
    squares over `images`), and scales the ViT branches to `share`. spread: standard deviation of what enters the quantizer;
    wider latents are cut at its ends."""
    shortcut, (tokens, dim) = model.shortcut, (model.num_tokens, model.quantizer.dim)
    levels = getattr(model.quantizer, "levels", (1,) * dim)
    order = sorted(range(tokens * dim), key=lambda place: -levels[place % dim])            # component i goes to order[i]
    shortcut.enter.weight.zero_()
    shortcut.enter.weight[torch.tensor(order), torch.arange(tokens * dim)] = spread
    wanted = shortcut.coordinates(images)
    numbers = model.quantizer(shortcut.enter(wanted).unflatten(1, (tokens, dim))).latents.flatten(1)
    ones = torch.cat([numbers, torch.ones(len(numbers), 1)], 1)
    found = torch.linalg.solve(ones.T @ ones + torch.eye(ones.shape[1]), ones.T @ wanted)
    shortcut.leave.weight.copy_(found[:-1].T)
    shortcut.leave.bias.copy_(found[-1])
    for last in (model.to_latents, model.head):
        last.weight.mul_(share)
        last.bias.zero_()


def build_titok(shape: dict) -> TiTok:
    """An untrained TiTok from the "shape" of a card: arguments of `TiTok`, "quantizer": {"kind", ...} and "rank": components
    of the linear shortcut, 0 for none."""
    sizes = {name: value for name, value in shape.items() if name not in ("quantizer", "rank")}
    return TiTok(**sizes, quantizer=make_quantizer(**shape["quantizer"]), basis=pca_basis(shape["rank"]) if shape["rank"] else None)


@lru_cache(maxsize=8)
def load_titok(num_tokens: int = 16, name: str | None = None) -> TiTok:
    """The trained TiTok of 4, 8, 16 or 32 tokens, or the one of the weights `name`. Raises WeightsError for an unknown one."""
    state, card = load_weights(name or f"titok_{num_tokens}")
    model = build_titok(card["shape"])
    model.load_state_dict(state)
    return model.requires_grad_(False).eval()
