"""Edits of a running decoder: attention logits of the newest rows, and what leaves the MLP or the block.

An edit is a plain function of a layer number and a tensor. `edited(lm, edits)` is a decoder with the same weights
that applies them; with nothing to apply it is the decoder itself, so that "off" is the same code, bit for bit.
Attention is edited in a wrapper around the cache: the cache stores as always and attends for the rows that no edit
names; edited rows are computed here. Rows and layers that no edit names keep their bits.

Shapes: B batch, T new tokens, R edited rows, S slots, H query heads, K KV heads, D head dim.
Source: no paper; the hooks that PAI (arXiv 2407.21771), PAINT (2501.12206) and VISTA (2502.03628) share.
"""
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from frugal.core import attention
from frugal.core.kvcache import KVCache
from frugal.core.lm import LM, LMOutput

LogitEdit = Callable[[int, Tensor], Tensor]      # (layer, logits (B, H, R, S) before the causal mask) -> the same shape
StateEdit = Callable[[int, Tensor], Tensor]      # (layer, states (B, T, hidden)) -> the same shape
Watch = Callable[[int, Tensor], None]            # (layer, probabilities (B, H, R, S)): looks, changes nothing


@dataclass(frozen=True)
class Edits:
    """What to change in a pass, and where.

    logits: edit of attention logits before the softmax. rows: how many of the newest query rows it gets (None: all
    rows of the pass). layers: for which layers attention is edited and watched (None: all). mlp: edit of what leaves
    the MLP, before the residual sum; residual: edit of the state that leaves the block; both see every token of the
    pass. watch: is shown the attention rows that leave the softmax. Raises ValueError for rows below 1.
    """
    logits: LogitEdit | None = None
    mlp: StateEdit | None = None
    residual: StateEdit | None = None
    watch: Watch | None = None
    layers: frozenset[int] | None = None
    rows: int | None = 1

    def __post_init__(self):
        if self.rows is not None and self.rows < 1:
            raise ValueError(f"rows must be 1 (the newest) or more, or None for all, got {self.rows}")

    @property
    def off(self) -> bool:
        return not (self.touch_attention or self.touch_states)

    @property
    def touch_attention(self) -> bool:
        return (self.logits is not None or self.watch is not None) and self.layers != frozenset()

    @property
    def touch_states(self) -> bool:
        return self.mlp is not None or self.residual is not None


def edited(lm: LM, edits: Edits) -> LM:
    """The decoder with these edits; `lm` itself when there is nothing to edit.

    Raises ValueError for a decoder with parts of its own: the edits sit in the plain Llama layout.
    """
    if edits.off:
        return lm
    if type(lm) is not LM:
        raise ValueError(f"edits act on a plain decoder, got {type(lm).__name__}; run its weights as frugal.core.lm.LM")
    return EditedLM(lm, edits)


class EditedLM(LM):
    """A view of a decoder with edits; the weights are shared."""

    def __init__(self, lm: LM, edits: Edits):
        super().__init__(lm.config, lm.weights, lm.tokenizer, lm.name)
        self.edits = edits
        # The compiled layer computes the MLP inside; with attention edits alone it still asks the cache, so it may run.
        self.fusable = lm.fusable and not edits.touch_states

    def run(self, tokens, cache=None, **options) -> LMOutput:
        if not self.edits.touch_attention:
            return super().run(tokens, cache, **options)
        if cache is None:
            embeds = options.get("embeds")
            cache = self.new_cache(len(tokens if embeds is None else embeds))
        if not isinstance(cache, KVCache):
            raise ValueError(f"attention edits need the plain KVCache, got {type(cache).__name__}: its keys must be readable")
        return super().run(tokens, _EditedCache(cache, self.edits), **options)

    def _mlp(self, i: int, x: Tensor) -> Tensor:
        out = super()._mlp(i, x)
        if self.edits.mlp is not None:
            out = self.edits.mlp(i, out)
        if self.edits.residual is not None:            # `run` adds x again: hand it the difference
            out = self.edits.residual(i, x + out) - x
        return out


class _EditedCache:
    """A KVCache whose answer to the newest rows is computed again with edited logits."""

    def __init__(self, cache: KVCache, edits: Edits):
        self.cache, self.edits = cache, edits

    def next_positions(self, num_new: int) -> Tensor:
        return self.cache.next_positions(num_new)

    def advance(self, num_new: int) -> None:
        self.cache.advance(num_new)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, positions: Tensor) -> Tensor:
        cache, edits = self.cache, self.edits
        if edits.layers is not None and layer not in edits.layers:
            return cache.attend(layer, q, k, v, positions)
        first = 0 if edits.rows is None else max(0, q.shape[1] - edits.rows)
        replaced = edits.logits is not None and first == 0 and cache.observer is None     # nothing of the plain answer is left
        out = cache.append(layer, k, v, positions) if replaced else cache.attend(layer, q, k, v, positions)
        probs = self._rows(layer, q, first)
        if edits.watch is not None:
            edits.watch(layer, probs)
        if edits.logits is None:
            return out
        new = mix(probs, cache.values[layer])
        return new if replaced else torch.cat([out[:, :first], new], dim=1)

    def _rows(self, layer: int, q: Tensor, first: int) -> Tensor:
        """Probabilities of rows first.. of the pass, (B, H, R, S), edited."""
        num_new, held = q.shape[1], self.cache.num_held(layer).numpy()
        logits = attention.logit_rows(q[:, first:], self.cache.keys[layer], int(held.max()))
        if self.edits.logits is not None:
            logits = self.edits.logits(layer, logits)
        visible = attention.visible_slots(held, num_new, first, num_new - first, q.device)
        return logits.masked_fill(~visible[:, None], -torch.inf).softmax(-1)   # after the edit: an edit cannot unmask


def mix(probs: Float[Tensor, "b h r s"], values: Float[Tensor, "b k c d"]) -> Float[Tensor, "b r h d"]:
    """Values of the first S slots weighted by the probabilities, query heads grouped over their KV head."""
    batch, num_heads, rows, num_slots = probs.shape
    grouped = probs.reshape(batch, values.shape[1], -1, num_slots)                # (B, K, G * R, S)
    out = grouped @ values[:, :, :num_slots]
    return out.view(batch, num_heads, rows, -1).transpose(1, 2)
