"""One transformer trunk for picture encoders and decoders, code generators and flows: pre-norm blocks over (B, T, width).

Source: arXiv 2010.11929 (ViT), section 3.1, for the block; arXiv 2212.09748 (DiT), section 3.2, for the condition that scales
and shifts (adaLN-zero: its gates start at 0, so that a fresh block is the identity).
Differs: with gradients attention is written out, since the backward pass of PyTorch's fused attention is slow in bfloat16
on a CPU; without them the fused operator runs. Both compute the same.
Shapes: B batch, T tokens, H heads, D head dim, w width.
"""
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from frugal.core.kvcache import KVCache


@dataclass(frozen=True)
class CacheShape:
    """What `core.kvcache.KVCache` must know of a trunk."""

    num_layers: int
    num_kv_heads: int
    head_dim: int


def attention(q: Float[Tensor, "b h t d"], k: Float[Tensor, "b h s d"], v: Float[Tensor, "b h s d"],
              mask: Bool[Tensor, "..."] | None) -> Float[Tensor, "b h t d"]:
    """Softmax attention; mask is (T, S), or anything that broadcasts to (B, H, T, S), true where a query may look."""
    if not torch.is_grad_enabled():
        return F.scaled_dot_product_attention(q, k, v, mask)
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return scores.softmax(-1).to(v.dtype) @ v


class Block(nn.Module):
    """Attention and MLP with residual sums.

    cond_width: width of a condition that scales, shifts and gates both halves; 0 for none. num_kinds: kinds of tokens
    with scales, shifts and gates of their own (FlexTok: patches and registers).
    """

    def __init__(self, width: int, num_heads: int, mlp: int | None = None, cond_width: int = 0, num_kinds: int = 1):
        super().__init__()
        if width % num_heads:
            raise ValueError(f"width {width} cannot be split into {num_heads} heads; take a multiple")
        self.num_heads, self.num_kinds = num_heads, num_kinds
        affine = cond_width == 0
        self.attn_norm, self.mlp_norm = (nn.LayerNorm(width, elementwise_affine=affine) for _ in range(2))
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, mlp or 4 * width), nn.Linear(mlp or 4 * width, width)
        self.modulate = None
        if cond_width:
            self.modulate = nn.Linear(cond_width, num_kinds * 6 * width)
            nn.init.zeros_(self.modulate.weight)
            nn.init.zeros_(self.modulate.bias)

    def forward(self, x: Tensor, mask: Tensor | None = None, cond: Tensor | None = None, kinds: Tensor | None = None,
                cache: KVCache | None = None, layer: int = 0) -> Tensor:
        scales = self._scales(cond, kinds)
        h = _scaled(self.attn_norm(x), scales, 0)
        q, k, v = self.qkv(h).unflatten(-1, (3, self.num_heads, -1)).unbind(2)              # each (B, T, H, D)
        if cache is None:
            mixed = attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), mask).transpose(1, 2)
        else:
            mixed = cache.attend(layer, q, k.contiguous(), v.contiguous(), cache.next_positions(q.shape[1]))
        x = x + _gated(self.out(mixed.flatten(2)), scales, 2)
        return x + _gated(self.down(F.gelu(self.up(_scaled(self.mlp_norm(x), scales, 3)))), scales, 5)

    def _scales(self, cond: Tensor | None, kinds: Tensor | None) -> Tensor | None:
        """(6, B, T or 1, w): scale, shift and gate of attention, then of the MLP."""
        if self.modulate is None:
            return None
        made = self.modulate(F.silu(cond)).unflatten(-1, (self.num_kinds, 6, -1)).permute(2, 0, 1, 3)
        if kinds is None:
            return made
        return F.one_hot(kinds, self.num_kinds).to(made.dtype) @ made          # as made[:, :, kinds], whose backward is slow


def _scaled(x: Tensor, scales: Tensor | None, first: int) -> Tensor:
    return x if scales is None else x * (1 + scales[first]) + scales[first + 1]


def _gated(x: Tensor, scales: Tensor | None, place: int) -> Tensor:
    return x if scales is None else x * scales[place]


class Trunk(nn.Module):
    """`num_blocks` blocks and a closing LayerNorm. Positions, classes and heads are the business of the model around it."""

    def __init__(self, width: int, num_blocks: int, num_heads: int, mlp: int | None = None, cond_width: int = 0,
                 num_kinds: int = 1):
        super().__init__()
        self.blocks = nn.ModuleList(Block(width, num_heads, mlp, cond_width, num_kinds) for _ in range(num_blocks))
        self.norm = nn.LayerNorm(width)
        self.width, self.num_heads = width, num_heads

    def forward(self, x: Float[Tensor, "b t w"], mask: Bool[Tensor, "..."] | None = None, causal: bool = False,
                cond: Float[Tensor, "b c"] | None = None, kinds: Int[Tensor, "t"] | None = None,
                cache: KVCache | None = None) -> Float[Tensor, "b t w"]:
        """States after the last block, normed.

        mask: true where a query may look, (T, T) or broadcastable to (B, H, T, T). causal: each token sees itself and what
        stands before it. cond: what scales and shifts, if the blocks were made for it. kinds: (T,) kind of each token.
        cache: from `new_cache`; the tokens go behind those it holds, and attention is causal. Raises ValueError for a
        mask together with a cache, or a condition the blocks were not made for.
        """
        if cache is not None and mask is not None:
            raise ValueError("a cache is causal, so a mask cannot be given with it; leave out one of them")
        if (cond is None) != (self.blocks[0].modulate is None):
            raise ValueError("cond must be given exactly when the trunk was made with cond_width > 0")
        if causal and cache is None and x.shape[1] > 1:
            below = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).tril()
            mask = below if mask is None else mask & below
        for layer, block in enumerate(self.blocks):
            x = block(x, mask, cond, kinds, cache, layer)
        if cache is not None:
            cache.advance(x.shape[1])
        return self.norm(x)

    def new_cache(self, batch: int = 1, reserve: int = 0, **options) -> KVCache:
        """An empty cache with room for `reserve` tokens a sequence."""
        shape = CacheShape(len(self.blocks), self.num_heads, self.width // self.num_heads)
        return KVCache(shape, None, batch, reserve=reserve, **options)
