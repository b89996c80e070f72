"""VISTA: push the hidden states the way the image pushes them, and let early layers have a say.

The visual steering vector (VSV) of a layer is the state of the last prompt token with the image, less the state without
it. During generation it is added to what leaves each MLP, more where the output points away from it, and the length is
restored. Self-logits augmentation (SLA) mixes the logits of late but not last layers into the last one's. No training.

Source: arXiv 2502.03628, sections 4.1 and 4.2, and the authors' release.
Differs: the difference itself, not its rank-1 PCA (for one sample they agree, up to a stray unit vector); SLA layers go
through the final norm by default (the release leaves it out; `norm=False`), since this decoder is pre-norm; SLA takes
the last third without the last of 8 layers, as the release takes 25 to 30 of 32.
"""
import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from frugal.core.edits import Edits, edited
from frugal.core.kvcache import KVCache
from frugal.core.linear import linear
from frugal.core.lm import LM
from frugal.core.papers import Paper, paper
from frugal.token_dropping.steering import Decoding, Steering, started

SITES = ("mlp", "residual")
VECTORS = ("image", "random")
NEGATIVES = ("none", "blank")
REACHES = ("all", "text")
BLANK = 0.875                                     # mean of the scenes' pastel backgrounds


def last_token_states(lm: LM, prompt: Int[Tensor, "b t"], cache: KVCache | None = None) -> Float[Tensor, "b l d"]:
    """State of the last prompt token after every layer; `cache` holds what comes before the prompt (used up)."""
    out = lm.run(prompt, cache, hidden=True, logits=False)
    return torch.stack([state[:, -1] for state in out.hidden[1:]], dim=1)


def visual_steering_vector(lm: LM, prompt: Int[Tensor, "b t"], positive: KVCache | None, negative: KVCache | None = None
                           ) -> Float[Tensor, "b l d"]:
    """v_l = h_l(with the image) - h_l(without), at the last prompt token. The caches hold the visual tokens; None holds
    none. Source: arXiv 2502.03628, equation 5."""
    return last_token_states(lm, prompt, positive) - last_token_states(lm, prompt, negative)


def steer(x: Float[Tensor, "*b d"], v: Float[Tensor, "*c d"], strength: float | int) -> Float[Tensor, "*b d"]:
    """|x| times the direction of x/|x| + strength * (1 + max(0, cos(x, -v))) * v/|v|. A zero v changes nothing.

    Source: arXiv 2502.03628, equations 6 and 7.
    """
    length = x.norm(dim=-1, keepdim=True)
    x_hat, v_hat = _unit(x), _unit(v)
    away = (-(x_hat * v_hat).sum(-1, keepdim=True)).clamp(min=0)
    return length * _unit(x_hat + strength * (1 + away) * v_hat)


def _unit(x: Tensor) -> Tensor:
    return x / x.norm(dim=-1, keepdim=True).clamp(min=1e-12)


@dataclass(frozen=True)
class VSVHook:
    """The state edit: every token of a pass is steered along its scene's vector of that layer."""
    vectors: Float[Tensor, "b l d"]
    strength: float | int

    def __call__(self, layer: int, x: Float[Tensor, "b t d"]) -> Float[Tensor, "b t d"]:
        return steer(x, self.vectors[:, layer, None], self.strength)


def random_vectors(vectors: Float[Tensor, "b l d"], seed: int) -> Float[Tensor, "b l d"]:
    """Random directions with the lengths of these vectors: the control for steering at all."""
    drawn = torch.randn(vectors.shape, generator=torch.Generator().manual_seed(seed), dtype=vectors.dtype)
    return _unit(drawn) * vectors.norm(dim=-1, keepdim=True)


def sla_layers(num_layers: int) -> tuple[int, ...]:
    """The last third without the last layer, counted from 0: (5, 6) of 8; at least the one before the last.

    >>> sla_layers(8), sla_layers(2)
    ((5, 6), (0,))
    """
    first = min(num_layers - math.ceil(num_layers / 3), num_layers - 2)
    return tuple(range(max(0, first), num_layers - 1)) or (0,)


def self_logits_augmentation(lm: LM, logits: Float[Tensor, "b v"], states: list[Tensor], layers: tuple[int, ...], alpha: float | int,
                             norm: bool = True) -> Float[Tensor, "b v"]:
    """(1 - alpha) * logits + alpha * the mean over `layers` of their own logits; states[l + 1] is layer l's, (B, d).

    norm: pass early states through the final norm first. Source: arXiv 2502.03628, equation 9.
    """
    early = torch.stack([states[layer + 1] for layer in layers])                            # (S, B, d)
    own = lm.unembed(early) if norm else linear(early, lm.head)
    return (1 - alpha) * logits + alpha * own.mean(0)


@dataclass(frozen=True)
class Vista(Steering):
    """Steering vector and early logits.

    strength: lambda of the vector (the paper: 0.17 for captions, 0.01 for short answers; to be calibrated per model).
    alpha: weight of the early layers' logits. site: "mlp" (what leaves the MLP, the release) or "residual" (the block's
    state). reach: "all" tokens of the run, the visual ones included (the release), or the "text" alone. vector: the
    "image"'s, or "random" of equal length. negative: a prompt with no image ("none") or with a "blank" one. norm,
    layers: see `self_logits_augmentation`; layers None is `sla_layers`.
    """
    name: ClassVar[str] = "vista"
    summary: ClassVar[str] = "states pushed along the image's own direction, logits of late layers mixed in"
    paper: ClassVar[Paper] = paper("vista")
    strength: float | int = 0.17
    alpha: float | int = 0.3
    site: str = "mlp"
    reach: str = "all"
    vector: str = "image"
    negative: str = "none"
    norm: bool = True
    layers: tuple[int, ...] | None = None
    seed: int = 0

    def __post_init__(self):
        for name, allowed in (("site", SITES), ("reach", REACHES), ("vector", VECTORS), ("negative", NEGATIVES)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {allowed}, got {getattr(self, name)!r}")
        if not self.strength >= 0:
            raise ValueError(f"strength must be 0 (off) or above, got {self.strength}")
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha must be a share in 0..1, got {self.alpha}")

    def begin(self, vlm, seen, prompt, prefix=None, watch=None) -> Decoding:
        lm = vlm.lm if watch is None else edited(vlm.lm, Edits(watch=watch))
        early = self._early(vlm.lm) if self.alpha else None
        if not self.strength:
            return Decoding(lm, started(vlm, seen, prefix), early)
        hook = VSVHook(self.vectors(vlm, seen, prompt, prefix), self.strength)
        steered = edited(vlm.lm, Edits(watch=watch, **{self.site: hook}))
        silent = edited(vlm.lm, Edits(**{self.site: hook}))                       # nobody watches the prefill
        cache = vlm.prefill(seen.embeds, lm=silent) if self.reach == "all" else started(vlm, seen, prefix)
        return Decoding(steered, cache, early)

    def base(self) -> "Vista":
        return replace(self, alpha=0.0)

    def on(self, begun: Decoding, lm: LM) -> Decoding:
        return Decoding(begun.lm, begun.cache.copy(), self._early(lm) if self.alpha else None)

    def vectors(self, vlm, seen, prompt, prefix=None) -> Float[Tensor, "b l d"]:
        """The steering vectors of these scenes: two prompt passes."""
        negative = None
        if self.negative == "blank":
            blank = vlm.prefill(vlm.see(torch.full((1, 3, 128, 128), BLANK)).embeds)
            negative = blank.select([0] * len(prompt))
        found = visual_steering_vector(vlm.lm, prompt, started(vlm, seen, prefix), negative)
        return random_vectors(found, self.seed) if self.vector == "random" else found

    def _early(self, lm: LM):
        layers = sla_layers(lm.config.num_layers) if self.layers is None else self.layers
        if not layers or max(layers) >= lm.config.num_layers or min(layers) < 0:
            raise ValueError(f"layers {layers} of SLA must be in 0..{lm.config.num_layers - 1}, at least one")
        return lambda logits, states: self_logits_augmentation(lm, logits, states, layers, self.alpha, self.norm)

    def passes(self, num_layers: int) -> dict[str, int]:
        layers = sla_layers(num_layers) if self.layers is None else self.layers
        return {"passes_per_token": 0, "unembeddings_per_token": len(layers) if self.alpha else 0,
                "prompt_passes": 2 if self.strength else 0}
