"""What MiKV and ShadowKV share: an exact prompt, then one compression, then decoding from what is left.

The prompt is attended exactly while its keys and values are held in full; `finish_prompt` hands each layer to
`compress` and frees them. From then on `decode` answers. Subclasses write those two.
"""
from dataclasses import dataclass

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from frugal.core import attention

ROWS = 256                                 # query rows of one block of statistics: the full matrix is never made
WINDOW = 16                                # newest prompt rows that count for the window ranking


@dataclass
class PromptLayer:
    """One layer while the prompt goes by, all (B, K, ...): keys after RoPE and values (S, D), attention received by
    each slot from all rows and from the newest `WINDOW` rows (S), largest |query| and |key| of each channel (D)."""
    keys: Tensor
    values: Tensor
    mass: Tensor
    window_mass: Tensor
    query_max: Tensor
    key_max: Tensor


def check_fraction(budget) -> None:
    """Raises ValueError unless budget is None or a fraction of the full cache's bytes."""
    if budget is not None and (isinstance(budget, bool) or not 0 < budget <= 1):
        raise ValueError(f"budget {budget!r}: give a fraction of the full cache's bytes, in (0, 1]")


class CompressOnceCache:
    """A cache of one prompt batch of equal lengths. Follows the protocol of `frugal.core.kvcache`."""

    watches_attention = False              # set by caches that rank tokens by the attention they received

    def __init__(self, config, rope, batch: int = 1, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32):
        self.config, self.rope, self.batch = config, rope, batch
        self.device, self.dtype = torch.device(device), dtype
        self.num_seen = np.zeros(batch, np.int64)
        self.prompt_length = 0
        self.finished = False
        self._prompt: list[PromptLayer | None] = [None] * config.num_layers

    @property
    def group(self) -> int:
        """Query heads that share a KV head."""
        return self.config.num_heads // self.config.num_kv_heads

    def next_positions(self, num_new: int) -> Int[Tensor, "b t"]:
        """Text positions of the next tokens."""
        return (torch.from_numpy(self.num_seen)[:, None] + torch.arange(num_new)).to(self.device)

    def advance(self, num_new: int) -> None:
        """One forward pass of `num_new` tokens is over."""
        self.num_seen = self.num_seen + num_new

    def num_held(self, layer: int = 0) -> Int[Tensor, "b"]:
        """Tokens that can still be attended to: none is ever dropped."""
        return torch.from_numpy(self.num_seen.copy())

    def attend(self, layer: int, q: Float[Tensor, "b t h d"], k: Float[Tensor, "b t k d"], v: Float[Tensor, "b t k d"],
               positions: Int[Tensor, "b t"]) -> Float[Tensor, "b t h d"]:
        """Attention output; appends k and v. Raises ValueError for a batch of unequal positions."""
        if q.shape[0] != self.batch:
            raise ValueError(f"this cache was made for batch {self.batch}, got {q.shape[0]}")
        if layer == 0 and not bool((positions == self.next_positions(q.shape[1])).all()):
            raise ValueError("this cache wants prompts of equal length, one after the other from position 0; "
                             "run prompts of different length one by one")
        if self.finished:
            return self.decode(layer, q, k, v)
        held = self._grow(layer, q, k, v)
        if self.watches_attention:
            self._watch(held, q)
        return attention.extend_attention(q, held.keys, held.values, np.full(self.batch, held.keys.shape[2]))

    def finish_prompt(self) -> None:
        """Compress every layer once; the exact prompt is freed layer by layer. A second call, or one before any
        token was seen, does nothing. Raises BudgetTooSmall."""
        if self.finished or self._prompt[0] is None:
            return
        self.prompt_length = int(self.num_seen[0])
        self.check_budget()
        for layer, held in enumerate(self._prompt):
            self._prompt[layer] = None
            self.compress(layer, held)
        self.finished = True

    def check_budget(self) -> None:
        """Settle sizes that need the prompt's length. Raises BudgetTooSmall; nothing has been freed then."""

    def compress(self, layer: int, held: PromptLayer) -> None:
        raise NotImplementedError

    def decode(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        raise NotImplementedError

    def tensors(self) -> list[Tensor]:
        """Every tensor the cache keeps, the prompt's included while it lasts."""
        return [x for held in self._prompt if held is not None for x in vars(held).values()]

    @property
    def num_bytes(self) -> int:
        """Bytes of the real storages on the fast side, each counted once."""
        storages = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in self.tensors()}
        return sum(storages.values())

    def full_bytes(self, num_tokens: int, bits: int = 16) -> int:
        """Keys and values of the full cache with `bits` per element."""
        c = self.config
        return self.batch * c.num_layers * c.num_kv_heads * num_tokens * 2 * c.head_dim * bits // 8

    def _grow(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> PromptLayer:
        keys, values = (rearrange(x, "b t k d -> b k t d") for x in (k, v))
        query_max = rearrange(q, "b t (k g) d -> b k (g t) d", g=self.group).abs().amax(2)
        mass, old = torch.zeros(keys.shape[:3], dtype=torch.float32, device=k.device), self._prompt[layer]
        if old is None:
            held = PromptLayer(keys.contiguous(), values.contiguous(), mass, mass.clone(), query_max, keys.abs().amax(2))
        else:
            held = PromptLayer(torch.cat([old.keys, keys], 2), torch.cat([old.values, values], 2),
                               torch.cat([old.mass, mass], 2), torch.cat([old.window_mass, mass], 2),
                               torch.maximum(old.query_max, query_max), torch.maximum(old.key_max, keys.abs().amax(2)))
        self._prompt[layer] = held
        return held

    def _watch(self, held: PromptLayer, q: Tensor) -> None:
        """Add the attention that each slot receives from these rows, averaged over the query heads of a group."""
        num_new, slots = q.shape[1], np.full(self.batch, held.keys.shape[2])
        held.window_mass.zero_()
        for first in range(0, num_new, ROWS):
            rows = attention.attention_rows(q[:, first:first + ROWS], held.keys, slots, num_new, first)
            rows = rearrange(rows, "b (k g) t s -> b k g t s", g=self.group).mean(2)
            held.mass += rows.sum(2)
            late = first + rows.shape[2] - max(0, num_new - WINDOW)
            if late > 0:
                held.window_mass += rows[:, :, -late:].sum(2)
