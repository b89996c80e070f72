"""What ResGen is compared with, on the same residual codes: samplers whose number of forward passes or of tokens grows with depth.

RQTransformer: a spatial step a place, then a loop over its levels: L (1 + D) small cached steps.
FlatMaskGIT: `MiniMaskGIT` over all L * D codes: few passes, each over D times as many tokens.
SoftmaxHeads: ResGen's own trunk with a softmax a level instead of the mixture: the hidden levels of a place are drawn without
knowing of each other. The same weights also serve `by_level`: the levels one after the other, several passes each.

Source: arXiv 2203.01941 (RQ-Transformer), section 3.2; arXiv 2202.04200 (MaskGIT); arXiv 2305.09636 (SoundStorm), section 3.3,
for levels in sequence.
Differs: small; a softmax of its own for every level, since our codebooks differ by level.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from frugal.core.sampling import check_filters, draw
from frugal.models.mini_ar import check_classes, drop_classes
from frugal.models.mini_maskgit import MiniMaskGIT, gumbel, masked_counts, still_masked
from frugal.models.quantizers import check_codes
from frugal.models.trunk import Trunk
from frugal.visual_tokenizers.resgen import DepthMasked, visible


class LevelHeads(nn.Module):
    """A linear softmax head for each level."""

    def __init__(self, width: int, depth: int, codebook_size: int):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(depth, codebook_size, width) * width**-0.5)
        self.bias = nn.Parameter(torch.zeros(depth, codebook_size))

    def forward(self, states: Float[Tensor, "*n depth w"]) -> Float[Tensor, "*n depth k"]:
        """Logits of every level from a state of its own."""
        return torch.einsum("...dw,dkw->...dk", states, self.weight) + self.bias

    def one(self, states: Float[Tensor, "*n w"], level: int) -> Float[Tensor, "*n k"]:
        """Logits of one level."""
        return states @ self.weight[level].T + self.bias[level]


class RQTransformer(nn.Module):
    """p(codes | class): places in order, and at each place the levels in order."""

    def __init__(
        self,
        codebooks: Float[Tensor, "depth k d"],
        length: int = 16,
        num_classes: int = 9,
        width: int = 96,
        num_blocks: int = 3,
        depth_blocks: int = 1,
        num_heads: int = 4,
        class_dropout: float = 0.1,
    ):
        super().__init__()
        self.depth, self.codebook_size, dim = codebooks.shape
        self.length, self.null, self.class_dropout = length, num_classes, class_dropout
        self.register_buffer("codebooks", codebooks.clone())
        self.classes = nn.Embedding(num_classes + 1, width)
        self.places = nn.Parameter(torch.randn(length, width) * 0.02)
        self.level_places = nn.Parameter(torch.randn(self.depth, width) * 0.02)
        self.inward, self.deeper = nn.Linear(dim, width), nn.Linear(dim, width)
        self.spatial, self.within = Trunk(width, num_blocks, num_heads), Trunk(width, depth_blocks, num_heads)
        self.heads = LevelHeads(width, self.depth, self.codebook_size)
        nn.init.normal_(self.classes.weight, std=0.02)

    def forward(self, codes: Int[Tensor, "b l depth"], classes: Int[Tensor, "b"]) -> Float[Tensor, "b l depth k"]:
        """Logits of every code given the class, the places before it and the shallower levels of its own place."""
        check_codes(codes, self.codebook_size)
        check_classes(classes, self.null)
        sums = self.codebooks[torch.arange(self.depth), codes].cumsum(-2)  # (B, L, D, d)
        x = torch.cat([self.classes(classes)[:, None], self.inward(sums[:, :-1, -1])], 1) + self.places
        states = self.spatial(x, causal=True)
        inner = torch.cat([states[:, :, None], self.deeper(sums[:, :, :-1])], 2) + self.level_places
        return self.heads(self.within(inner.flatten(0, 1), causal=True).unflatten(0, states.shape[:2]))

    def loss(
        self, codes: Int[Tensor, "b l depth"], classes: Int[Tensor, "b"], generator: torch.Generator | None = None
    ) -> Float[Tensor, ""]:
        """Mean nats a code. Classes are dropped in training mode only."""
        if self.training:
            classes = drop_classes(classes, self.null, self.class_dropout, generator)
        return F.cross_entropy(self(codes, classes).float().flatten(0, 2), codes.flatten())

    @torch.no_grad()
    def generate(
        self,
        classes: Int[Tensor, "b"],
        generator: torch.Generator | None = None,
        temperature: float | int = 1.0,
        top_p: float | int = 1.0,
    ) -> Int[Tensor, "b l depth"]:
        """(B, L, D) codes; both trunks keep their keys, so each step runs one new token a sequence."""
        check_classes(classes, self.null)
        check_filters(temperature, 0, top_p)
        codes = torch.zeros(len(classes), self.length, self.depth, dtype=torch.long)
        cache, x = self.spatial.new_cache(len(classes), reserve=self.length), self.classes(classes)
        for place in range(self.length):
            inner = self.spatial((x + self.places[place])[:, None], cache=cache)[:, 0]
            levels, total = self.within.new_cache(len(classes), reserve=self.depth), 0
            for level in range(self.depth):
                state = self.within((inner + self.level_places[level])[:, None], cache=levels)[:, 0]
                new = draw(self.heads.one(state, level), generator, temperature, 0, top_p)
                codes[:, place, level] = new
                total = total + self.codebooks[level][new]
                inner = self.deeper(total)
            x = self.inward(total)
        return codes


class FlatMaskGIT(MiniMaskGIT):
    """`MiniMaskGIT` over the codes of all places and levels, (B, L * D), with a table a level that is also its head."""

    def __init__(self, codebooks: Float[Tensor, "depth k d"], length: int = 16, **sizes):
        depth, codebook_size, _ = codebooks.shape
        super().__init__(codebook_size, length * depth, **sizes)
        self.depth, width = depth, self.trunk.width
        del self.codes, self.head
        self.hidden = nn.Parameter(torch.randn(width) * 0.02)
        self.tables = LevelHeads(width, depth, codebook_size)

    def embed(self, codes: Int[Tensor, "b n"]) -> Float[Tensor, "b n w"]:
        levels = torch.arange(codes.shape[1]) % self.depth
        known = self.tables.weight[levels, codes.clamp(max=self.vocab_size - 1)]
        return torch.where((codes == self.mask)[..., None], self.hidden, known)

    def read(self, states: Float[Tensor, "b n w"]) -> Float[Tensor, "b n k"]:
        return self.tables(states.unflatten(1, (-1, self.depth))).flatten(1, 2)


class SoftmaxHeads(DepthMasked):
    """ResGen's trunk with a softmax a level: hidden levels of a place are drawn independently of each other."""

    def __init__(self, codebooks: Tensor, **sizes):
        super().__init__(codebooks, **sizes)
        self.heads = LevelHeads(self.trunk.width, self.depth, self.codebook_size)

    def logits(self, codes: Tensor, hidden: Tensor, classes: Tensor) -> Float[Tensor, "b l depth k"]:
        """Logits of every level at every place, all from the one state of the place."""
        states = self.states(codes, hidden, classes)
        return self.heads(states[:, :, None].expand(-1, -1, self.depth, -1))

    def loss(
        self, codes: Int[Tensor, "b l depth"], classes: Int[Tensor, "b"], generator: torch.Generator | None = None
    ) -> Float[Tensor, ""]:
        """Mean nats a hidden code."""
        hidden, classes = self.training_case(codes, classes, generator)
        nats = F.cross_entropy(
            self.logits(codes, hidden, classes).float().flatten(0, 2), codes.flatten(), reduction="none"
        )
        return nats.view_as(codes)[~visible(hidden, self.depth)].mean()

    @staticmethod
    def propose(model, codes, hidden, classes, generator, temperature, top_p):
        """As `resgen_sampling.propose`: new codes for the hidden levels, and the mean log probability of a place's draws."""
        logits, seen = model.logits(codes, hidden, classes), visible(hidden, model.depth)
        drawn = draw(logits, generator, temperature, 0, top_p)
        sure = logits.log_softmax(-1).gather(-1, drawn[..., None])[..., 0].masked_fill(seen, 0)
        return torch.where(seen, codes, drawn), sure.sum(-1) / hidden.clamp(min=1)


@torch.no_grad()
def by_level(
    model: SoftmaxHeads,
    classes: Int[Tensor, "b"],
    generator: torch.Generator | None = None,
    num_steps: int = 8,
    deeper_steps: int | None = None,
    temperature: float | int = 1.0,
    confidence: float | int = 1.0,
) -> Int[Tensor, "b l depth"]:
    """One level after the other, `num_steps` passes for the first and `deeper_steps` (None: as many) for each other one."""
    codes = torch.zeros(len(classes), model.length, model.depth, dtype=torch.long)
    hidden = torch.full(codes.shape[:2], model.depth)
    for level in range(model.depth):
        steps = num_steps if level == 0 or deeper_steps is None else deeper_steps
        for step, count in enumerate(masked_counts(model.length, steps)):
            masked = hidden == model.depth - level
            logits = model.heads.one(model.states(codes, hidden, classes), level)
            drawn = draw(logits, generator, temperature)
            codes[..., level] = torch.where(masked, drawn, codes[..., level])
            sure = logits.log_softmax(-1).gather(-1, drawn[..., None])[..., 0]
            noise = confidence * (1 - (step + 1) / steps) * gumbel(sure.shape, generator)
            hidden = model.depth - level - 1 + still_masked(sure, masked, count, noise).long()
    return codes
