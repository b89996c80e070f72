"""ResGen: generate residual codes by masking depth, and predict what is hidden at a place as one vector.

A picture is L places with D residual codes each. An autoregressive model needs L * D steps. ResGen hides the deepest k levels of
each place, predicts the *sum* of the hidden code vectors with a mixture of Gaussians, and quantizes that sum back into codes
with the hidden levels alone. So a forward pass works on L tokens whatever D is, and a few passes make a picture.

Source: arXiv 2412.10208, section 3 (depth masking, the vector target and its mixture).
Differs: sums are divided by their spread for each k, so that densities of deep and shallow places compare; exact mixture in
place of the paper's low-rank form (d = 8 affords it); cosine schedule; one spread s a place, at least 0.05; no guidance.
Shapes: B batch, L places, D levels (depth), K codes a level, d dim of a code vector, C components, w width.
"""

from dataclasses import dataclass
from functools import lru_cache
from math import log, pi

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from frugal.core.papers import paper
from frugal.models import load_weights
from frugal.models.mini_ar import check_classes, drop_classes
from frugal.models.quantizers import check_codes
from frugal.models.trunk import Trunk

FLOOR = 0.05


def hidden_levels(
    counts: Int[Tensor, "b"], length: int, depth: int, generator: torch.Generator | None = None
) -> Int[Tensor, "b l"]:
    """How many of its deepest levels each place hides, when counts[b] of the length * depth slots are drawn without
    replacement: a multivariate hypergeometric draw. Raises ValueError for counts outside 0..length * depth."""
    if counts.numel() and not (0 <= int(counts.min()) and int(counts.max()) <= length * depth):
        raise ValueError(f"counts must be in 0..{length * depth}, got {int(counts.min())}..{int(counts.max())}")
    ranks = torch.rand(len(counts), length * depth, generator=generator).argsort(-1).argsort(-1)
    return (ranks < counts[:, None]).unflatten(1, (length, depth)).sum(-1)


def visible(hidden: Int[Tensor, "*n"], depth: int) -> Bool[Tensor, "*n d"]:
    """True at the levels that are not hidden: the shallow ones."""
    return torch.arange(depth, device=hidden.device) < depth - hidden[..., None]


def depth_mask(n: int, length: int, depth: int, generator: torch.Generator | None = None) -> Bool[Tensor, "l d"]:
    """True = visible, with n of the slots hidden, at every place the deepest ones.

    n slots are drawn evenly without replacement; only how many of them fell on a place counts, not which.
    """
    return visible(hidden_levels(torch.tensor([n]), length, depth, generator)[0], depth)


def training_counts(batch: int, slots: int, generator: torch.Generator | None = None) -> Int[Tensor, "b"]:
    """Hidden slots of a training batch: ceil(cos(pi/2 r) * slots), r uniform in [0, 1), at least 1."""
    share = torch.cos(torch.rand(batch, generator=generator) * pi / 2)
    return (share * slots).ceil().long().clamp(1, slots)


@dataclass
class Mixture:
    """log_weights (..., C), means (..., C, d), spread (...): one standard deviation for all components and axes."""

    log_weights: Tensor
    means: Tensor
    spread: Tensor

    def log_prob(self, z: Float[Tensor, "*n d"]) -> Float[Tensor, "*n"]:
        """Log density of z in nats."""
        dim, s = z.shape[-1], self.spread[..., None]
        square = (z[..., None, :] - self.means).square().sum(-1)
        normal = -square / (2 * s.square()) - dim * (s.log() + 0.5 * log(2 * pi))
        return torch.logsumexp(self.log_weights + normal, -1)

    def at(self, component: Int[Tensor, "*n"]) -> Float[Tensor, "*n d"]:
        """Mean of the named component."""
        place = component[..., None, None].expand(*component.shape, 1, self.means.shape[-1])
        return self.means.gather(-2, place)[..., 0, :]


class MoGHead(nn.Module):
    """State of a place -> mixture of C Gaussians over d-dimensional vectors, in float32."""

    def __init__(self, width: int, dim: int, components: int, floor: float = FLOOR):
        super().__init__()
        if components < 1 or dim < 1 or floor <= 0:
            raise ValueError(f"need components >= 1, dim >= 1 and floor > 0, got {components}, {dim} and {floor}")
        self.components, self.dim, self.floor = components, dim, floor
        self.out = nn.Linear(width, components * (dim + 1) + 1)

    def forward(self, states: Float[Tensor, "*n w"]) -> Mixture:
        weights, means, spread = self.out(states).float().split([self.components, self.components * self.dim, 1], -1)
        means = means.unflatten(-1, (self.components, self.dim))
        return Mixture(weights.log_softmax(-1), means, F.softplus(spread[..., 0]) + self.floor)


class DepthMasked(nn.Module):
    """What the mixture and its softmax rival share: places with visible and hidden levels in, one state a place out.

    codebooks: (D, K, d), of a residual tokenizer. Sizes otherwise as for `models.mini_ar.MiniAR`.
    """

    def __init__(
        self,
        codebooks: Float[Tensor, "depth k d"],
        length: int = 16,
        num_classes: int = 9,
        width: int = 96,
        num_blocks: int = 3,
        num_heads: int = 4,
        class_dropout: float = 0.1,
    ):
        super().__init__()
        self.depth, self.codebook_size, self.dim = codebooks.shape
        self.length, self.null, self.class_dropout = length, num_classes, class_dropout
        self.register_buffer("codebooks", codebooks.clone())
        self.register_buffer(
            "scales", torch.ones(self.depth)
        )  # spread of the sum of the k deepest code vectors, k = 1..D
        self.classes = nn.Embedding(num_classes + 1, width)
        self.levels = nn.Embedding(self.depth + 1, width)
        self.positions = nn.Parameter(torch.randn(length, width) * 0.02)
        self.inward = nn.Linear(self.dim, width)
        self.trunk = Trunk(width, num_blocks, num_heads)
        for table in (self.classes, self.levels):
            nn.init.normal_(table.weight, std=0.02)

    def vectors(self, codes: Int[Tensor, "b l depth"]) -> Float[Tensor, "b l depth d"]:
        """Code vector of each level."""
        return self.codebooks[torch.arange(self.depth, device=codes.device), codes]

    def measure_scales(self, codes: Int[Tensor, "b l depth"]) -> None:
        """Sets `scales` from the codes of the training pictures."""
        deepest_first = self.vectors(codes).flip(-2).cumsum(-2)  # (B, L, k, d)
        self.scales.copy_(deepest_first.square().mean((0, 1, 3)).sqrt())

    def states(
        self, codes: Int[Tensor, "b l depth"], hidden: Int[Tensor, "b l"], classes: Int[Tensor, "b"]
    ) -> Float[Tensor, "b l w"]:
        """One state a place. What is hidden does not enter. Raises ValueError for codes, counts or classes out of range."""
        self.check(codes, classes)
        seen = (self.vectors(codes) * visible(hidden, self.depth)[..., None]).sum(-2) / self.scales[-1]
        x = self.inward(seen) + self.levels(hidden) + self.positions
        return self.trunk(torch.cat([self.classes(classes)[:, None], x], 1))[:, 1:]

    def training_case(self, codes: Tensor, classes: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """(hidden levels, classes some of which are dropped in training mode) for a batch."""
        counts = training_counts(len(codes), self.length * self.depth, generator)
        hidden = hidden_levels(counts, self.length, self.depth, generator).to(codes.device)
        if self.training:
            classes = drop_classes(classes, self.null, self.class_dropout, generator)
        return hidden, classes

    def check(self, codes: Tensor, classes: Tensor) -> None:
        """Raises ValueError unless codes and classes are of this model."""
        check_codes(codes, self.codebook_size)
        check_classes(classes, self.null)
        if tuple(codes.shape) != (len(classes), self.length, self.depth):
            raise ValueError(
                f"codes must be ({len(classes)}, {self.length}, {self.depth}), got {tuple(codes.shape)}; a tokenizer's "
                f"deeper codes are cut with codes[..., :{self.depth}]"
            )


class ResGen(DepthMasked):
    """Mixture of Gaussians over the sum of the hidden code vectors of a place. components: C."""

    paper, label = paper("resgen"), "ResGen"

    def __init__(self, codebooks: Tensor, components: int = 32, **sizes):
        super().__init__(codebooks, **sizes)
        self.head = MoGHead(self.trunk.width, self.dim, components)

    def target(self, codes: Int[Tensor, "b l depth"], hidden: Int[Tensor, "b l"]) -> Float[Tensor, "b l d"]:
        """Sum of the hidden code vectors over their spread; 0 where nothing is hidden."""
        total = (self.vectors(codes) * ~visible(hidden, self.depth)[..., None]).sum(-2)
        return total / self.spread_of(hidden)

    def spread_of(self, hidden: Int[Tensor, "b l"]) -> Float[Tensor, "b l 1"]:
        """By what a sum over the `hidden` deepest levels is divided."""
        return self.scales[(hidden - 1).clamp(min=0)][..., None]

    def loss(
        self, codes: Int[Tensor, "b l depth"], classes: Int[Tensor, "b"], generator: torch.Generator | None = None
    ) -> Float[Tensor, ""]:
        """Mean -log p of the target over places that hide something. (With the others, whose target is always 0, the
        spread would shrink to its floor.) Classes are dropped in training mode only."""
        hidden, classes = self.training_case(codes, classes, generator)
        nats = -self.head(self.states(codes, hidden, classes)).log_prob(self.target(codes, hidden))
        return nats[hidden > 0].mean()


def build_resgen(shape: dict, codebooks: Tensor, kind: type = ResGen) -> DepthMasked:
    """An untrained model from the "shape" of a card: "depth" levels of the codebooks and arguments of the class."""
    sizes = {name: value for name, value in shape.items() if name != "depth"}
    return kind(codebooks[: shape["depth"]], **sizes)


@lru_cache(maxsize=4)
def load_rvq():
    """The trained tokenizer: 4 x 4 places, 8 residual levels of 256 codes."""
    from frugal.models.vq_grid import load_vq_grid

    return load_vq_grid("rvq_grid")


def codebooks_of(tokenizer) -> Float[Tensor, "depth k d"]:
    """Code vectors of every level of a residual tokenizer."""
    return torch.stack([level.codebook for level in tokenizer.quantizer.levels])


@lru_cache(maxsize=4)
def load_resgen(depth: int = 8) -> ResGen:
    """The trained generator over the first `depth` levels. Raises WeightsError where none was trained."""
    state, card = load_weights(f"resgen_{depth}")
    model = build_resgen(card["shape"], codebooks_of(load_rvq()))
    model.load_state_dict(state)
    return model.requires_grad_(False).eval()
