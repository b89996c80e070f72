"""Duo-LM: a small decoder that holds two feed-forward networks in every layer, a big and a small one.

Attention is shared. After it a route chooses, for each token, the big network, the small one or none. The tokens of
one choice are gathered, go through one dense product and are scattered back: what is not chosen is not computed.

Source: arXiv 2410.10846 (Duo-LLM), the architecture; recipes/train_duo_lm.py trains the weights.
Differs: 6 layers of width 192 instead of 12 of 2,560; the small networks are 64 times narrower than the big ones, not
16 times, because at this size 16 times narrower was only 0.11 nats worse; "skip" leaves out the feed-forward network
and keeps the attention, so that no later token misses a key.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from frugal.core.conditional import SKIP, apply_chosen
from frugal.core.linear import linear
from frugal.core.lm import LM, ByteTokenizer, LMConfig, LMOutput
from frugal.core.rope import apply
from frugal.data.code_text import code_tokenizer
from frugal.models import load_weights

__all__ = ["BIG", "CHOICES", "SHAPE", "SKIP", "SMALL", "DuoConfig", "DuoLM", "DuoOutput", "Route", "follow",
           "initial_weights", "load_duo_lm", "random_duo", "swiglu"]  # fmt: skip

SMALL, BIG = 0, 1  # beside SKIP = -1, as `apply_chosen` numbers them
CHOICES = {SKIP: "skip", SMALL: "small", BIG: "big"}
SHAPE = dict(
    vocab_size=2048,
    hidden_size=192,
    num_layers=6,
    num_heads=6,
    num_kv_heads=6,
    head_dim=32,
    intermediate_size=768,
    small_size=12,
    max_positions=256,
)

# (layer, normed input of the feed-forward networks (B, T, hidden)) -> choice of each token (B, T)
Route = Callable[[int, Tensor], Tensor]


@dataclass(frozen=True)
class DuoConfig(LMConfig):
    """Sizes of a Duo-LM. intermediate_size: inner width of the big networks; small_size: of the small ones."""

    small_size: int = 12

    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        """The decoder's weights, of which `gate_up` and `down` are the big networks, and the small networks."""
        shapes = super().weight_shapes()
        for i in range(self.num_layers):
            shapes |= {
                f"layers.{i}.small_gate_up": (2 * self.small_size, self.hidden_size),
                f"layers.{i}.small_down": (self.hidden_size, self.small_size),
            }
        return shapes


@dataclass
class DuoOutput(LMOutput):
    """As LMOutput, and choices (B, T, layers): what every token ran."""

    choices: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))


class DuoLM(LM):
    """A decoder whose feed-forward networks come in two sizes; a route passed to `run` chooses between them."""

    def __init__(self, config: DuoConfig, weights: dict[str, Tensor], tokenizer=None, name: str = "duo-lm"):
        """weights: the names and shapes of `config.weight_shapes()`; ValueError names the first that differs."""
        super().__init__(config, weights, tokenizer, name)
        for key, shape in config.weight_shapes().items():
            if key not in weights or tuple(weights[key].shape) != shape:
                found = tuple(weights[key].shape) if key in weights else "missing"
                raise ValueError(f"weight {key!r} is {found}, a Duo-LM of this config needs {shape}")
        self.networks = [
            (
                (weights[f"layers.{i}.small_gate_up"], weights[f"layers.{i}.small_down"]),
                (part["gate_up"], part["down"]),
            )  # SMALL, BIG
            for i, part in enumerate(self.layers)
        ]

    def to(self, device=None, dtype=None) -> "DuoLM":
        """The same model on another device or in another dtype."""
        moved = {key: w.to(device=device, dtype=dtype) for key, w in self.weights.items()}
        return DuoLM(self.config, moved, self.tokenizer, self.name)

    def plain(self, which: int = BIG) -> LM:
        """An ordinary decoder of the big (or the small) networks alone; it shares the weights."""
        c = self.config
        sizes = {key: getattr(c, key) for key in LMConfig.__dataclass_fields__}
        config = LMConfig(**sizes | {"intermediate_size": self.networks[0][which][1].shape[1]})
        weights = {key: w for key, w in self.weights.items() if "small" not in key}
        for i in range(c.num_layers):
            weights |= {f"layers.{i}.{part}": w for part, w in zip(("gate_up", "down"), self.networks[i][which])}
        return LM(config, weights, self.tokenizer, f"{self.name} ({CHOICES[which]})")

    @torch.no_grad()
    def run(
        self,
        tokens: Int[Tensor, "b t"],
        cache=None,
        *,
        route: Route | None = None,
        hidden: bool = False,
        last_only: bool = False,
        logits: bool = True,
    ) -> DuoOutput:
        """One forward pass over a cache; `route` chooses per layer and token (default: all big).

        hidden, last_only, logits: as in `LM.run`. Raises ValueError for a route that returns anything but
        the choices -1, 0, 1 of shape (B, T), for ids outside the vocabulary and for a text beyond the context.
        """
        x = self._embed(tokens)
        batch, num_new, _ = x.shape
        cache = self.new_cache(batch) if cache is None else cache
        positions = cache.next_positions(num_new)
        self._check_positions(positions, num_new)
        cos, sin = (table[:, :, None] for table in self.rope.tables(positions, x.dtype))
        route = follow([BIG] * self.config.num_layers) if route is None else route
        states, choices = [x] if hidden else [], []
        for i in range(self.config.num_layers):
            x = x + self._attention(i, x, cache, positions, cos, sin)
            normed = self._norm(x, self.layers[i]["mlp_norm"])
            choices.append(_checked(route(i, normed), (batch, num_new), i))
            x = x + self.routed(i, normed.flatten(0, 1), choices[-1].flatten()).view_as(x)
            if hidden:
                states.append(x)
        cache.advance(num_new)
        found = self.unembed(x[:, -1:] if last_only else x) if logits else None
        return DuoOutput(found, states, torch.stack(choices, dim=-1))

    def routed(self, i: int, x: Float[Tensor, "n h"], choice: Int[Tensor, "n"]) -> Float[Tensor, "n h"]:
        """Layer i's feed-forward output of n tokens, each through the network it chose: gather, compute, scatter."""
        return apply_chosen(x, choice, [partial(self.network, i, which) for which in (SMALL, BIG)])

    def network(self, i: int, which: int, x: Float[Tensor, "*n h"]) -> Float[Tensor, "*n h"]:
        """Output of layer i's small or big network, or zeros for SKIP."""
        return torch.zeros_like(x) if which == SKIP else swiglu(x, *self.networks[i][which])

    # -- without a cache: for training and for oracles that run many patterns over one text ---------------------------

    def tables(self, num_tokens: int) -> tuple[Tensor, Tensor]:
        """cos and sin of positions 0..num_tokens-1, each (1, T, 1, D)."""
        return tuple(t[None, :, None] for t in self.rope.tables(torch.arange(num_tokens, device=self.device)))

    def attended(self, i: int, x: Float[Tensor, "b t h"], tables: tuple[Tensor, Tensor]) -> Float[Tensor, "b t h"]:
        """States after the attention of layer i over a whole text from position 0; with gradients."""
        c, part = self.config, self.layers[i]
        qkv = F.linear(self.normed(x, part["attn_norm"]), part["qkv"]).unflatten(-1, (-1, c.head_dim))
        q, k, v = qkv.split([c.num_heads, c.num_kv_heads, c.num_kv_heads], dim=2)
        q, k, v = (one.transpose(1, 2) for one in (apply(q, *tables).to(v.dtype), apply(k, *tables).to(v.dtype), v))
        out = _causal(q, k, v)
        return x + F.linear(out.transpose(1, 2).flatten(2), part["o"])

    def normed(self, x: Tensor, weight: Tensor) -> Tensor:
        """RMSNorm with gradients."""
        return F.rms_norm(x, x.shape[-1:], weight, self.config.norm_eps)

    def full_text(self, tokens: Int[Tensor, "b t"], route: Route) -> Float[Tensor, "b t h"]:
        """Last states of whole texts under a route, with gradients and without a cache: what training runs."""
        x, tables = F.embedding(tokens, self.weights["embed"]), self.tables(tokens.shape[1])
        for i, part in enumerate(self.layers):
            x = self.attended(i, x, tables)
            normed = self.normed(x, part["mlp_norm"])
            x = x + self.routed(i, normed.flatten(0, 1), route(i, normed).flatten()).view_as(x)
        return x


def swiglu(
    x: Float[Tensor, "*n h"], gate_up: Float[Tensor, "two_inner h"], down: Float[Tensor, "h inner"]
) -> Float[Tensor, "*n h"]:
    """A SwiGLU feed-forward network: down(silu(gate(x)) * up(x)), gate and up fused in one matrix."""
    gate, up = linear(x, gate_up).chunk(2, dim=-1)
    return linear(F.silu(gate) * up, down)


def _causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention of (B, H, T, D). In bf16 the fused CPU kernel takes twice as long to train as these products."""
    if q.dtype != torch.bfloat16 or q.shape[1] != k.shape[1]:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=q.shape[1] != k.shape[1])
    size, flat = q.shape[2], (q.shape[0] * q.shape[1], *q.shape[2:])
    future = torch.full((size, size), -torch.inf, dtype=q.dtype).triu(1).expand(flat[0], size, size)
    scores = torch.baddbmm(future, q.reshape(flat), k.reshape(flat).mT, alpha=q.shape[-1] ** -0.5)
    return (scores.softmax(-1) @ v.reshape(flat)).view_as(q)


def follow(pattern: Iterable[int] | Tensor) -> Route:
    """The route of a fixed pattern: one choice a layer (layers,), or one a token and layer (B, T, layers)."""
    fixed = torch.as_tensor(list(pattern) if not isinstance(pattern, Tensor) else pattern)
    if fixed.ndim == 1:
        return lambda i, x: fixed[i].expand(x.shape[:2])
    return lambda i, x: fixed[..., i]


def _checked(choice: Tensor, shape: tuple[int, int], layer: int) -> Tensor:
    if tuple(choice.shape) != shape or choice.dtype.is_floating_point or bool(((choice < SKIP) | (choice > BIG)).any()):
        raise ValueError(
            f"the route of layer {layer} gave {choice.dtype} of shape {tuple(choice.shape)}; it must give one "
            f"of {CHOICES} for each token, as whole numbers of shape {shape}"
        )
    return choice


def initial_weights(config: DuoConfig, seed: int = 0) -> dict[str, Tensor]:
    """Fresh fp32 weights: normal of width 1/sqrt(inputs), outputs narrower by sqrt(2 layers), embedding 0.02."""
    generator, weights = torch.Generator().manual_seed(seed), {}
    for name, shape in config.weight_shapes().items():
        if name.endswith("norm"):
            weights[name] = torch.ones(shape)
            continue
        width = 0.02 if name in ("embed", "head") else shape[-1] ** -0.5
        if name.endswith(("down", ".o")):
            width /= (2 * config.num_layers) ** 0.5
        weights[name] = torch.randn(shape, generator=generator) * width
    return weights


def random_duo(
    seed: int = 0,
    num_layers: int = 3,
    *,
    hidden_size: int = 24,
    num_heads: int = 3,
    intermediate_size: int = 40,
    small_size: int = 8,
    vocab_size: int = 258,
    max_positions: int = 64,
) -> DuoLM:
    """A small Duo-LM of random weights for tests: right in every shape, wrong in every word."""
    config = DuoConfig(
        vocab_size,
        hidden_size,
        num_layers,
        num_heads,
        num_heads,
        hidden_size // num_heads,
        intermediate_size,
        max_positions=max_positions,
        small_size=small_size,
    )
    generator = torch.Generator().manual_seed(seed)
    weights = {
        name: 1 + 0.1 * torch.randn(shape, generator=generator)
        if name.endswith("norm")
        else torch.randn(shape, generator=generator) * shape[-1] ** -0.5 * (3 if name.endswith("qkv") else 1)
        for name, shape in config.weight_shapes().items()
    }
    return DuoLM(config, weights, ByteTokenizer() if vocab_size == 258 else None, name="random duo")


def load_duo_lm() -> DuoLM:
    """The trained Duo-LM from the package's weights. Raises WeightsError when they are missing or damaged."""
    weights, card = load_weights("duo_lm")
    return DuoLM(DuoConfig(**card["shape"]), weights, code_tokenizer())
