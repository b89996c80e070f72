"""Mini TIM: a four-layer decoder that writes Thread trees over symbols; weights are trained by recipes/train_mini_tim.py.

Source: arXiv 2507.16784 (TIM), scaled down from 8B to under a million parameters and from JSON text to symbols.
Differs: supervised on exact traces only (the paper adds reinforcement learning).
The training forward below has the weight layout of `frugal.core.lm.LM`, so what is trained here is run there.
"""
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from frugal.core.lm import LM, LMConfig
from frugal.data.thread_tasks import BOS, VOCAB_SIZE, SymbolTokenizer
from frugal.models import load_weights

LIMIT = 512                                     # positions the model was trained on
SHAPE = dict(vocab_size=VOCAB_SIZE, hidden_size=128, num_layers=4, num_heads=4, num_kv_heads=4, head_dim=32,
             intermediate_size=320, rope_theta=10000.0, norm_eps=1e-5, max_positions=LIMIT, tie_embeddings=False)


def initial_weights(seed: int = 0, shape: dict = SHAPE) -> dict[str, Tensor]:
    """Fresh fp32 weights in the fused layout of LM: normal of width 0.02, output projections scaled by 1/sqrt(2 layers)."""
    generator = torch.Generator().manual_seed(seed)
    hidden, inner = shape["hidden_size"], shape["intermediate_size"]
    heads = shape["num_heads"] * shape["head_dim"]
    rows = heads + 2 * shape["num_kv_heads"] * shape["head_dim"]
    small = 0.02 / (2 * shape["num_layers"]) ** 0.5

    def draw(*size: int, width: float = 0.02) -> Tensor:
        return torch.randn(*size, generator=generator) * width

    weights = {"embed": draw(shape["vocab_size"], hidden), "head": draw(shape["vocab_size"], hidden), "norm": torch.ones(hidden)}
    for i in range(shape["num_layers"]):
        weights |= {f"layers.{i}.attn_norm": torch.ones(hidden), f"layers.{i}.qkv": draw(rows, hidden, width=hidden ** -0.5),
                    f"layers.{i}.o": draw(hidden, heads, width=small), f"layers.{i}.mlp_norm": torch.ones(hidden),
                    f"layers.{i}.gate_up": draw(2 * inner, hidden), f"layers.{i}.down": draw(hidden, inner, width=small)}
    return weights


def rope_table(num_positions: int, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """cos and sin, each (positions, head_dim), in the rotate-half convention."""
    frequencies = theta ** (-torch.arange(0, head_dim, 2).float() / head_dim)
    angles = torch.arange(num_positions).float()[:, None] * frequencies
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x turned by the angles of `rope_table`, which broadcast against it."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


def training_forward(weights: dict[str, Tensor], tokens: Tensor, shape: dict = SHAPE,
                     attend: Callable[..., Tensor] = F.scaled_dot_product_attention) -> Tensor:
    """Logits (B, T, V) of right-padded token ids (B, T), with gradients; positions 0..T-1, causal.

    attend: another way to compute the attention, with the arguments of `scaled_dot_product_attention`.
    """
    num_tokens, heads, dim = tokens.shape[1], shape["num_heads"], shape["head_dim"]
    kv_heads, eps = shape["num_kv_heads"], shape["norm_eps"]
    cos, sin = rope_table(num_tokens, dim, shape["rope_theta"])
    x = F.embedding(tokens, weights["embed"])                                     # (B, T, hidden)

    def norm(value: Tensor, name: str) -> Tensor:
        return F.rms_norm(value, (shape["hidden_size"],), weights[name], eps)

    for i in range(shape["num_layers"]):
        qkv = F.linear(norm(x, f"layers.{i}.attn_norm"), weights[f"layers.{i}.qkv"])
        q, k, v = qkv.unflatten(-1, (-1, dim)).transpose(1, 2).split([heads, kv_heads, kv_heads], dim=1)
        mixed = attend(rotate(q, cos, sin), rotate(k, cos, sin), v.to(q.dtype), is_causal=True, enable_gqa=heads != kv_heads)
        x = x + F.linear(mixed.transpose(1, 2).flatten(2), weights[f"layers.{i}.o"])
        gate, up = F.linear(norm(x, f"layers.{i}.mlp_norm"), weights[f"layers.{i}.gate_up"]).chunk(2, dim=-1)
        x = x + F.linear(F.silu(gate) * up, weights[f"layers.{i}.down"])
    return F.linear(norm(x, "norm"), weights["head"])


def make_lm(weights: dict[str, Tensor], shape: dict = SHAPE) -> LM:
    """An LM over the given weights, with the symbol tokenizer."""
    config = LMConfig(**shape, bos_id=BOS)
    return LM(config, {name: value.detach().float() for name, value in weights.items()}, SymbolTokenizer(), name="mini-tim")


def load_mini_tim() -> LM:
    """The trained mini TIM from the package's weights. Raises WeightsError when they are missing or damaged."""
    weights, card = load_weights("mini_tim")
    return make_lm(weights, card["shape"])
