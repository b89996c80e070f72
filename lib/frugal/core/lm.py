"""A Llama-style decoder in plain PyTorch: RMSNorm, rotary positions, grouped-query attention, SwiGLU.

The model holds weights and nothing else. Everything that changes while text goes by lives in the cache it is
handed, so two generations can interleave. Weights come fused (q, k, v in one matrix, gate and up in one), because
decoding is bound by reading weights and a larger product reads them faster.

Source: arXiv 2302.13971 (LLaMA), section 2.2; grouped queries: arXiv 2305.13245.
Shapes: B batch, T new tokens, H query heads, K key-value heads, D head dim, V vocabulary.
"""
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from frugal.core import fused
from frugal.core.kvcache import KVCache
from frugal.core.linear import linear
from frugal.core.rope import Rope, apply


@dataclass(frozen=True)
class LMConfig:
    """Sizes of a decoder, in the field's names. eos_ids: tokens that end a text."""
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    rope_theta: float = 10_000.0
    rope_scaling: dict | None = None
    norm_eps: float = 1e-5
    max_positions: int = 2048
    tie_embeddings: bool = True
    bos_id: int | None = None
    eos_ids: tuple[int, ...] = ()

    def __post_init__(self):
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_heads={self.num_heads} is not a multiple of num_kv_heads={self.num_kv_heads}")

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of keys and values of one token in fp32, all layers."""
        return self.num_layers * 2 * self.num_kv_heads * self.head_dim * 4

    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape of every weight in the fused layout, matrices (out, in)."""
        hidden, width = self.hidden_size, self.num_heads * self.head_dim
        shapes = {"embed": (self.vocab_size, hidden), "norm": (hidden,)}
        if not self.tie_embeddings:
            shapes["head"] = (self.vocab_size, hidden)
        for i in range(self.num_layers):
            shapes |= {f"layers.{i}.attn_norm": (hidden,),
                       f"layers.{i}.qkv": (width + 2 * self.num_kv_heads * self.head_dim, hidden),
                       f"layers.{i}.o": (hidden, width),
                       f"layers.{i}.mlp_norm": (hidden,),
                       f"layers.{i}.gate_up": (2 * self.intermediate_size, hidden),
                       f"layers.{i}.down": (hidden, self.intermediate_size)}
        return shapes


@dataclass
class LMOutput:
    """logits (B, T, V), or (B, 1, V) with last_only; hidden: per layer run, plus the embedding first, (B, T, hidden)."""
    logits: Tensor | None
    hidden: list[Tensor] = field(default_factory=list)


class LM:
    """A decoder with its tokenizer. `lm(tokens, cache)` gives logits and appends to the cache."""

    def __init__(self, config: LMConfig, weights: dict[str, Tensor], tokenizer=None, name: str = "custom"):
        """weights: the names and shapes of `config.weight_shapes()`; ValueError names the first that differs."""
        for key, shape in config.weight_shapes().items():
            if key not in weights:
                raise ValueError(f"weight {key!r} is missing: the file is not a complete Llama-style checkpoint")
            if tuple(weights[key].shape) != shape:
                raise ValueError(f"weight {key!r} has shape {tuple(weights[key].shape)}, the config asks for {shape}")
        self.config, self.weights, self.tokenizer, self.name = config, weights, tokenizer, name
        self.rope = Rope(config.head_dim, config.rope_theta, config.rope_scaling)
        self.layers = [{part: weights[f"layers.{i}.{part}"]
                        for part in ("attn_norm", "qkv", "o", "mlp_norm", "gate_up", "down")}
                       for i in range(config.num_layers)]
        self.head = weights["embed" if config.tie_embeddings else "head"]
        self.fusable = type(self) is LM and fused.fusable(weights)      # a decoder with parts of its own is not

    @property
    def device(self) -> torch.device:
        return self.head.device

    @property
    def dtype(self) -> torch.dtype:
        return self.head.dtype

    @property
    def num_parameters(self) -> int:
        return sum(w.numel() for w in self.weights.values())

    @property
    def num_bytes(self) -> int:
        """Bytes of all weights."""
        return sum(w.numel() * w.element_size() for w in self.weights.values())

    def to(self, device=None, dtype=None) -> "LM":
        """The same model on another device or in another dtype."""
        moved = {key: w.to(device=device, dtype=dtype) for key, w in self.weights.items()}
        return LM(self.config, moved, self.tokenizer, self.name)

    def new_cache(self, batch: int = 1, **options) -> KVCache:
        """An empty cache that fits this model (options: see KVCache)."""
        return KVCache(self.config, self.rope, batch=batch, device=self.device, dtype=self.dtype, **options)

    def __call__(self, tokens: Int[Tensor, "b t"], cache=None, **options) -> Float[Tensor, "b t_out v"]:
        return self.run(tokens, cache, **options).logits

    @torch.no_grad()
    def run(self, tokens: Int[Tensor, "b t"] | None, cache=None, *, embeds: Float[Tensor, "b t h"] | None = None,
            positions: Int[Tensor, "b t"] | None = None, layers: list[int] | None = None,
            hidden: bool = False, last_only: bool = False, logits: bool = True,
            advance: bool = True) -> LMOutput:
        """One forward pass; new keys and values go to `cache` (a fresh one when None).

        tokens: ids (B, T), or `embeds` (B, T, hidden) in their place. positions: text positions (B, T), by default
        those that follow what the cache has seen. layers: which layers to run, in order (default all).
        hidden: also return the state after the embedding and after each layer. last_only: logits of the last
        token alone. advance: count the tokens as seen; False when further layers follow for the same tokens.
        Raises ValueError for ids outside the vocabulary, an empty prompt or a text beyond the context.
        """
        x = self._embed(tokens) if embeds is None else embeds
        batch, num_new, _ = x.shape
        cache = self.new_cache(batch) if cache is None else cache
        if positions is None:
            positions = cache.next_positions(num_new)
        self._check_positions(positions, num_new)
        cos, sin = (table[:, :, None] for table in self.rope.tables(positions, x.dtype))    # (B, T, 1, D)
        layers = range(self.config.num_layers) if layers is None else layers
        if fused.serves(self, x):                                        # the same, a few rows at a time, compiled
            quick = fused.Pass(self, cache, positions, cos, sin)
            x, states = quick.run(x, layers, hidden)
            cache.advance(num_new if advance else 0)
            return LMOutput(quick.logits(x, last_only) if logits else None, states)
        states = [x] if hidden else []
        for i in layers:
            x = x + self._attention(i, x, cache, positions, cos, sin)
            x = x + self._mlp(i, x)
            if hidden:
                states.append(x)
        cache.advance(num_new if advance else 0)
        return LMOutput(self.unembed(x[:, -1:] if last_only else x) if logits else None, states)

    def unembed(self, x: Float[Tensor, "b t h"]) -> Float[Tensor, "b t v"]:
        """Final norm and the (tied) output matrix: hidden states to logits."""
        return linear(self._norm(x, self.weights["norm"]), self.head)

    def _attention(self, i: int, x: Tensor, cache, positions: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        c, weights = self.config, self.layers[i]
        batch, num_new, _ = x.shape
        qkv = linear(self._norm(x, weights["attn_norm"]), weights["qkv"])
        qkv = qkv.view(batch, num_new, c.num_heads + 2 * c.num_kv_heads, c.head_dim)
        turned = apply(qkv[:, :, :c.num_heads + c.num_kv_heads], cos, sin)       # queries and keys in one go
        q, k, v = turned[:, :, :c.num_heads], turned[:, :, c.num_heads:], qkv[:, :, c.num_heads + c.num_kv_heads:]
        out = cache.attend(i, q, k, v, positions)                                 # (B, T, H, D)
        return linear(out.reshape(batch, num_new, c.num_heads * c.head_dim), weights["o"])

    def _mlp(self, i: int, x: Tensor) -> Tensor:
        gate_up = linear(self._norm(x, self.layers[i]["mlp_norm"]), self.layers[i]["gate_up"])
        gate, up = gate_up.chunk(2, dim=-1)
        return linear(F.silu(gate).mul_(up), self.layers[i]["down"])

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        # By hand: PyTorch's rms_norm takes three times as long on a single row.
        return (x * (x.square().mean(-1, keepdim=True) + self.config.norm_eps).rsqrt()).mul_(weight)

    def _embed(self, tokens: Tensor) -> Tensor:
        if tokens.ndim != 2 or tokens.numel() == 0:
            raise ValueError(f"tokens must be (batch, new tokens) with at least one token, got {tuple(tokens.shape)}; "
                             "an empty prompt needs at least the begin-of-text token")
        low, high = int(tokens.min()), int(tokens.max())
        if low < 0 or high >= self.config.vocab_size:
            raise ValueError(f"token ids must be in 0..{self.config.vocab_size - 1}, got {low}..{high}")
        return self.weights["embed"][tokens]

    def _check_positions(self, positions: Tensor, num_new: int) -> None:
        last = int(positions.max())
        if last >= self.config.max_positions:
            raise ValueError(f"position {last} is beyond the context of {self.config.max_positions} tokens; "
                             "shorten the prompt, or evict with positions='renumbered'")


def random_lm(seed: int = 0, *, num_layers: int = 2, hidden_size: int = 48, num_heads: int = 6, num_kv_heads: int = 2,
              head_dim: int = 8, intermediate_size: int = 64, vocab_size: int = 300, max_positions: int = 8192,
              tie_embeddings: bool = True, dtype=torch.float32, tokenizer=None) -> LM:
    """A small model with random weights for tests: right in every shape, wrong in every word."""
    config = LMConfig(vocab_size, hidden_size, num_layers, num_heads, num_kv_heads, head_dim, intermediate_size,
                      max_positions=max_positions, tie_embeddings=tie_embeddings, bos_id=256, eos_ids=(257,))
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in config.weight_shapes().items():
        spread = shape[-1] ** -0.5 * (4 if name.endswith("qkv") else 1)      # sharp enough attention to be a test
        weights[name] = (1 + 0.1 * torch.randn(shape, generator=generator) if name.endswith("norm")
                         else spread * torch.randn(shape, generator=generator)).to(dtype)
    return LM(config, weights, tokenizer or ByteTokenizer(), name="random")


class ByteTokenizer:
    """Bytes as tokens: 0..255, then begin (256) and end (257) of text. For tests and random models."""
    vocab_size, bos_id, eos_id = 258, 256, 257

    def encode(self, text: str, special: bool = True) -> list[int]:
        return list(text.encode("utf-8"))

    def decode(self, ids, skip_special: bool = False) -> str:
        return bytes(int(i) for i in ids if int(i) < 256).decode("utf-8", errors="replace")

    def token_str(self, token: int) -> str:
        return self.decode([token])
