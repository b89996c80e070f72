"""PAINT (Fixing Imbalanced Attention): raise the newest token's attention logits on chosen visual tokens.

Attention to the picture weakens as a caption grows, and the text prior takes over. Two sets of visual tokens, found once
in the vision encoder, are lifted before the softmax: local tokens (what an early layer looks at) and summary tokens
(the few outliers of a late layer). A second pass without the image is contrasted with the first.

Source: arXiv 2501.12206, section 3, and the authors' release; boost and contrast are PAI's (arXiv 2407.21771).
Differs: sets are chosen in each view (the paper's encoder has one); layer 2 on, of 8 instead of 32; the spatial stream
counts attention received by a patch (the release sums each query's row, which is 1 for every patch; its default share
is 0, and so is ours); head rules are ours: the abstract names measured sensitivity, the release has one strength.
"""
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from frugal.core.edits import Edits, edited
from frugal.core.papers import Paper, paper
from frugal.token_dropping.hired import cls_attention
from frugal.token_dropping.steering import Decoding, MassRecorder, NoImageContrast, Steering, decode, started

RULES = ("uniform", "proportional", "top_half")
TARGETS = ("selected", "all", "random")


@dataclass(frozen=True)
class TokenSets:
    """Which of the N visual tokens of each scene are local and which are summary tokens; no token is both."""
    local: Bool[Tensor, "b n"]
    summary: Bool[Tensor, "b n"]


def select_summary_tokens(attention: Float[Tensor, "*v n"]) -> Bool[Tensor, "*v n"]:
    """The upper outliers of each view: attention above Q3 + 1.5 (Q3 - Q1), quartiles interpolated linearly.

    Source: arXiv 2501.12206, release: that many of the top tokens, which are the same ones.
    """
    low, high = torch.quantile(attention, torch.tensor([0.25, 0.75], dtype=attention.dtype), dim=-1, keepdim=True)
    return attention > high + 1.5 * (high - low)


def select_local_tokens(attention: Float[Tensor, "*v n"], summary: Bool[Tensor, "*v n"], share: float | int = 0.25
                        ) -> Bool[Tensor, "*v n"]:
    """The top `share` of each view (rounded down) by an early layer's attention, less the summary tokens."""
    count = int(share * attention.shape[-1])
    rank = attention.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
    return (rank < count) & ~summary


def token_sets(features, local_share: float | int = 0.25, spatial_share: float | int = 0.0) -> TokenSets:
    """The sets of a batch of scenes from the encoder's features (`VisualTokens.features`), heads summed.

    local_share: of each view, by the CLS attention of the first layer. spatial_share: further local tokens, by the
    attention a patch receives from the others in the first layer.
    """
    first, late = cls_attention(features, 0), cls_attention(features, -2)                   # (B, P, N_v)
    summary = select_summary_tokens(late)
    local = select_local_tokens(first, summary, local_share)
    if spatial_share:
        received = features.patch_attn.sum((-3, -2))                          # over heads and queries: (B, P, N_v)
        local = local | select_local_tokens(received, summary, spatial_share)
    return TokenSets(local.flatten(1), summary.flatten(1))


def random_sets(sets: TokenSets, seed: int) -> TokenSets:
    """As many local and summary tokens a scene, drawn anywhere: the control for choosing."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.rand(sets.local.shape, generator=generator).argsort(dim=-1)
    place = order.argsort(dim=-1)                                              # a random rank for every token
    num_local, num_summary = sets.local.sum(-1, keepdim=True), sets.summary.sum(-1, keepdim=True)
    return TokenSets(place < num_local, (place >= num_local) & (place < num_local + num_summary))


def boost_logits(logits: Float[Tensor, "*b s"], strength: Float[Tensor, "*c s"] | float | int) -> Float[Tensor, "*b s"]:
    """A + strength * |A|: with the absolute value negative logits rise as well. Strength 0 keeps the bits.

    Source: arXiv 2407.21771, equation 4.
    """
    return logits + strength * logits.abs()


def head_strengths(alpha: float | int, sensitivity: Float[Tensor, "l h"], rule: str) -> Float[Tensor, "l h"]:
    """A strength for every head: the same ("uniform", the release), in proportion to its share of the layer's most
    sensitive head ("proportional"), or all of it for the more sensitive half of a layer ("top_half")."""
    if rule == "uniform":
        return torch.full_like(sensitivity, alpha)
    if rule == "proportional":
        return alpha * sensitivity / sensitivity.amax(-1, keepdim=True)
    half = sensitivity.shape[-1] // 2
    rank = sensitivity.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
    return alpha * (rank < half).to(sensitivity.dtype)


@dataclass(frozen=True)
class AttentionBoost:
    """The logit edit: alpha (L, H) on local tokens, beta (L, H) on summary tokens, which sit in the first N slots."""
    sets: TokenSets
    alpha: Float[Tensor, "l h"]
    beta: Float[Tensor, "l h"]

    @property
    def layers(self) -> frozenset[int]:
        """Layers where any head gets a strength."""
        return frozenset(torch.nonzero((self.alpha != 0).any(-1) | (self.beta != 0).any(-1)).flatten().tolist())

    def __call__(self, layer: int, logits: Float[Tensor, "b h r s"]) -> Float[Tensor, "b h r s"]:
        if layer not in self.layers:
            return logits
        num_visual = self.sets.local.shape[-1]
        strength = (self.alpha[layer][:, None] * self.sets.local[:, None]
                    + self.beta[layer][:, None] * self.sets.summary[:, None])                # (B, H, N)
        lifted = boost_logits(logits[..., :num_visual], strength[:, :, None])
        return torch.cat([lifted, logits[..., num_visual:]], dim=-1)


@dataclass(frozen=True)
class Paint(Steering):
    """Boosted attention on chosen visual tokens, and the no-image contrast.

    alpha, beta: strength on local and on summary tokens. local_share, spatial_share: see `token_sets`. first_layer:
    first decoder layer that is boosted. head_rule: "uniform", "proportional" or "top_half"; the latter two need
    `sensitivity` (L, H), see `head_visual_sensitivity`. target: "selected", "all" visual tokens (alpha for all: PAI) or
    "random" ones of equal count. gamma, cut: the contrast; gamma 1 leaves out the second pass.
    """
    name: ClassVar[str] = "paint"
    summary: ClassVar[str] = "attention logits of chosen visual tokens raised, contrast with a pass without the image"
    paper: ClassVar[Paper] = paper("paint")
    alpha: float | int = 0.7
    beta: float | int = 0.3
    local_share: float | int = 0.25
    spatial_share: float | int = 0.0
    first_layer: int = 2
    head_rule: str = "uniform"
    target: str = "selected"
    gamma: float | int = 1.1
    cut: float | int = 0.1
    seed: int = 0
    sensitivity: Tensor | None = None

    def __post_init__(self):
        for name, allowed in (("head_rule", RULES), ("target", TARGETS)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {allowed}, got {getattr(self, name)!r}")
        for name in ("alpha", "beta"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be 0 (off) or above, got {getattr(self, name)}")
        for name in ("local_share", "spatial_share", "cut"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be a share in 0..1, got {getattr(self, name)}")
        if self.head_rule != "uniform" and self.sensitivity is None:
            raise ValueError(f"head_rule {self.head_rule!r} needs sensitivity: measure it with head_visual_sensitivity(vlm, ...)")

    def sets(self, seen) -> TokenSets:
        """The token sets of these scenes."""
        if self.target == "all":
            every = torch.ones(seen.embeds.shape[:2], dtype=torch.bool)
            return TokenSets(every, torch.zeros_like(every))
        found = token_sets(seen.features, self.local_share, self.spatial_share)
        return random_sets(found, self.seed) if self.target == "random" else found

    def boost(self, seen, num_layers: int, num_heads: int) -> AttentionBoost:
        shape = (num_layers, num_heads)
        sensitivity = torch.ones(shape) if self.sensitivity is None else self.sensitivity
        if tuple(sensitivity.shape) != shape:
            raise ValueError(f"sensitivity has shape {tuple(sensitivity.shape)}, the decoder has {shape} layers and heads")
        above = (torch.arange(num_layers) >= self.first_layer)[:, None]
        return AttentionBoost(self.sets(seen), *(above * head_strengths(strength, sensitivity, self.head_rule)
                                                 for strength in (self.alpha, self.beta)))

    def begin(self, vlm, seen, prompt, prefix=None, watch=None) -> Decoding:
        config, batch = vlm.lm.config, len(prompt)
        boost = self.boost(seen, config.num_layers, config.num_heads)
        edits = (Edits(watch=watch) if not boost.layers else
                 Edits(logits=boost, watch=watch, layers=boost.layers if watch is None else None))
        contrast = None if self.gamma == 1 else NoImageContrast(vlm.lm, batch, self.gamma, self.cut)
        return Decoding(edited(vlm.lm, edits), started(vlm, seen, prefix), contrast=contrast)

    def passes(self, num_layers: int) -> dict[str, int]:
        second = int(self.gamma != 1)
        return {"passes_per_token": second, "unembeddings_per_token": second, "prompt_passes": second}


@dataclass(frozen=True)
class Pai(Paint):
    """PAI: one strength for all visual tokens, and the same contrast."""
    name: ClassVar[str] = "pai"
    summary: ClassVar[str] = "attention logits of all visual tokens raised, contrast with a pass without the image"
    alpha: float | int = 0.5
    target: str = "all"


def head_visual_sensitivity(vlm, seen, prompt: Tensor, max_new_tokens: int, end_id: int) -> Float[Tensor, "l h"]:
    """Mean attention mass of each head on the visual tokens, over these scenes and all generated positions."""
    recorder, running = MassRecorder(seen.embeds.shape[1], vlm.lm.config.num_layers), []
    decoding = Decoding(edited(vlm.lm, Edits(watch=recorder)), vlm.prefill(seen.embeds))
    decode(decoding, prompt, max_new_tokens, end_id, on_step=lambda step: running.append(step.running))
    weight = torch.stack(running).to(seen.embeds.dtype)                        # (steps, B): captions not over yet
    return torch.einsum("tlbh,tb->lh", recorder.mass(), weight) / weight.sum()
