"""The key-value cache: slots per layer, sequence and KV head, with positions and side arrays.

A slot is a place in the cache, a position a place in the text; they differ as soon as something is evicted.
Eviction copies what stays into smaller storage (or fills the hole when one slot goes), so the memory is really
given back, and `num_bytes` sums the storage that is there. Keys are stored after RoPE.

Shapes: B batch, T new tokens, S slots in use, C slots reserved, H query heads, K KV heads, D head dim.
"""
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from frugal.core import attention
from frugal.core.rope import apply

ROW_BLOCK = 256        # query rows of one block of attention statistics


class MissingKeys(ValueError):
    """Attention would have read keys of a (layer, position) that was never written."""


class KVCache:
    """Cache of a batch of sequences whose lengths may differ.

    positions="original" leaves keys rotated at their place in the text and gives a new token its true position;
    "renumbered" rotates kept keys on to 0..S-1 and gives a new token the position S (StreamingLLM's habit).
    growth: slots added when storage is full. observer: gets attention rows, see `frugal.core.eviction`.
    strict: refuse to attend where the keys of an earlier position were never written at that layer (a token that
    skipped it). For caches from which nothing is evicted.
    """

    def __init__(self, config, rope, batch: int = 1, *, device="cpu", dtype=torch.float32,
                 positions: str = "original", growth: int = 64, reserve: int = 0, observer=None, strict: bool = False):
        if positions not in ("original", "renumbered"):
            raise ValueError(f"positions must be 'original' or 'renumbered', got {positions!r}")
        if batch < 1:
            raise ValueError(f"batch must be at least 1, got {batch}")
        self.config, self.rope, self.batch, self.mode = config, rope, batch, positions
        self.growth, self.observer, self.strict = growth, observer, strict
        self.num_seen = np.zeros(batch, np.int64)                       # tokens gone through, per sequence
        self._held = np.zeros((config.num_layers, batch), np.int64)     # slots in use
        shape = (batch, config.num_kv_heads, reserve, config.head_dim)
        self.keys = [torch.empty(shape, device=device, dtype=dtype) for _ in range(config.num_layers)]
        self.values = [torch.empty(shape, device=device, dtype=dtype) for _ in range(config.num_layers)]
        self.positions = [torch.empty(shape[:3], device=device, dtype=torch.int64) for _ in range(config.num_layers)]
        self.aux: list[dict[str, Tensor]] = [{} for _ in range(config.num_layers)]

    # -- what the model calls ------------------------------------------------------------------------------------

    def next_positions(self, num_new: int) -> Int[Tensor, "b t"]:
        """Text positions of the next `num_new` tokens of every sequence (in renumbered mode: cache positions)."""
        if self.mode == "original":
            return self._text_positions(num_new)
        return (torch.as_tensor(self._held[0])[:, None] + torch.arange(num_new)).to(self.keys[0].device)

    def _text_positions(self, num_new: int) -> Tensor:
        return (torch.as_tensor(self.num_seen)[:, None] + torch.arange(num_new)).to(self.keys[0].device)

    def advance(self, num_new: int) -> None:
        """Called once per forward pass: `num_new` tokens have gone through."""
        self.num_seen = self.num_seen + num_new

    def attend(self, layer: int, q: Float[Tensor, "b t h d"], k: Float[Tensor, "b t k d"], v: Float[Tensor, "b t k d"],
               positions: Int[Tensor, "b t"]) -> Float[Tensor, "b t h d"]:
        """Appends the new keys and values of one layer and returns the attention output of the new tokens."""
        num_new = q.shape[1]
        if self.strict:
            self.check_written(layer, positions[:, 0].cpu().numpy())
        self.append(layer, k, v, positions)
        keys, values, held = self.keys[layer], self.values[layer], self._held[layer]
        rows = self.observer.rows(num_new) if self.observer is not None else 0
        if num_new == 1:
            out, probs = attention.decode_attention(q[:, 0].contiguous(), keys, values, held)
            if rows:
                self.observer.observe(self, layer, probs[:, :, None], 1)
            return out[:, None]
        for first in range(num_new - rows, num_new, ROW_BLOCK):
            block = q[:, first:first + ROW_BLOCK]
            self.observer.observe(self, layer, attention.attention_rows(block, keys, held, num_new, first), num_new)
        return attention.extend_attention(q, keys, values, held)

    def attend_arrays(self, layer: int, q: np.ndarray, k: np.ndarray, v: np.ndarray, positions: np.ndarray,
                      threads: int) -> np.ndarray:
        """`attend` for the compiled layer, on arrays and without an observer: output (B, T, H, D)."""
        num_new, held = q.shape[1], self._held[layer]
        if self.strict:
            self.check_written(layer, positions[:, 0])
        self._make_room(layer, int(held.max()) + num_new)
        out = attention.store_and_attend(q, k, v, positions, held, self.keys[layer].numpy(), self.values[layer].numpy(),
                                         self.positions[layer].numpy(), threads)
        if self.aux[layer]:
            self._clear_aux(layer, num_new)
        self._held[layer] += num_new
        return out

    def takes_arrays(self, num_new: int) -> bool:
        """Whether `attend_arrays` serves: a few new tokens, plain storage in main memory, nobody who watches."""
        return (type(self) is KVCache and not (self.observer and self.observer.rows(num_new)) and self.mode == "original"
                and num_new <= attention.FEW and self.keys[0].dtype == torch.float32
                and self.keys[0].device.type == "cpu")

    def check_written(self, layer: int, first: np.ndarray) -> None:
        """first (B,): text position of the first new token; all before it must be held, each once."""
        held = self._held[layer]
        if (held == first).all():
            return
        b = int((held != first).argmax())
        there = set(self.positions[layer][b, 0, :held[b]].tolist())
        missing = [p for p in range(int(first[b])) if p not in there]
        what = (f"position {missing[0]} ({len(missing)} in all) was never written" if missing
                else f"position {int(first[b])} is written already")
        raise MissingKeys(f"layer {layer}, sequence {b}: {what}; run that layer for every earlier token, or fill its keys "
                          "from the state the token left with")

    # -- storage -------------------------------------------------------------------------------------------------

    def append(self, layer: int, k: Tensor, v: Tensor, positions: Tensor) -> None:
        """Writes T new slots per sequence behind those in use; side arrays get zeros there."""
        num_new, held = k.shape[1], self._held[layer]
        longest = int(held.max())
        self._make_room(layer, longest + num_new)
        if self.mode == "renumbered":                                    # slots are rotated to cache positions, but
            positions = self._text_positions(num_new)                    # what is kept is named by its text position
        if attention.kernel_applies(k, self.keys[layer], self.values[layer]) and v.is_contiguous():
            attention.store(k, v, positions.contiguous(), held, self.keys[layer], self.values[layer],
                            self.positions[layer])
            self._clear_aux(layer, num_new)
        elif (held == longest).all():
            self._write(layer, slice(None), slice(longest, longest + num_new), k, v, positions)
        else:
            for b, start in enumerate(held.tolist()):
                part = slice(b, b + 1)
                self._write(layer, part, slice(start, start + num_new), k[part], v[part], positions[part])
        self._held[layer] += num_new

    def _write(self, layer: int, part: slice, new: slice, k: Tensor, v: Tensor, positions: Tensor) -> None:
        self.keys[layer][part, :, new] = k.transpose(1, 2)
        self.values[layer][part, :, new] = v.transpose(1, 2)
        self.positions[layer][part, :, new] = positions[:, None]
        for side in self.aux[layer].values():
            side[part, :, new] = 0

    def _clear_aux(self, layer: int, num_new: int) -> None:
        starts = self._held[layer].tolist()
        alike = len(set(starts)) == 1
        for side in self.aux[layer].values():
            for b, start in [(slice(None), starts[0])] if alike else enumerate(starts):
                side[b, :, start:start + num_new] = 0

    def _make_room(self, layer: int, needed: int) -> None:
        have = self.keys[layer].shape[2]
        if needed <= have:
            return
        if have:
            needed = max(needed, have + self.growth)
        used = int(self._held[layer].max())
        for store in (self.keys, self.values, self.positions):
            store[layer] = _resized(store[layer][:, :, :used], needed)
        self.aux[layer] = {name: _resized(side[:, :, :used], needed) for name, side in self.aux[layer].items()}

    def evict(self, layer: int, slots: Int[Tensor, "b k kept"], reserve: int = 0, sequence: int | None = None) -> None:
        """Keeps just `slots` (ascending, per KV head) of a layer; storage shrinks to kept + reserve slots.

        sequence: evict from that sequence alone; storage then shrinks to the longest sequence's need.
        """
        held = self._held[layer]
        kept = slots.shape[-1]
        if sequence is None and self.mode == "original" and (held == kept + 1).all() and kept > 0:
            return self._fill_holes(layer, slots)
        part = slice(None) if sequence is None else slice(sequence, sequence + 1)
        counts = held.copy()
        counts[part] = kept
        capacity = int(counts.max()) + reserve
        for name, side in [("keys", self.keys[layer]), ("values", self.values[layer]),
                           ("positions", self.positions[layer]), *self.aux[layer].items()]:
            index = slots if side.ndim == 3 else slots[..., None].expand(-1, -1, -1, side.shape[-1])
            new = _resized(side[:, :, :min(side.shape[2], capacity)], capacity)
            new[part, :, :kept] = side[part].gather(2, index)
            if name in ("keys", "values", "positions"):
                getattr(self, name)[layer] = new
            else:
                self.aux[layer][name] = new
        self._held[layer] = counts
        if self.mode == "renumbered":
            self._renumber(layer, slots, part)

    def rewind(self, num_seen: int | Sequence[int]) -> None:
        """Forgets the newest tokens, back to `num_seen` a sequence, in every layer that held them (no copy).

        For caches in text order, as they are until something is evicted. ValueError for a length not reached yet.
        """
        wanted = np.broadcast_to(np.asarray(num_seen, np.int64), self.num_seen.shape)
        if (wanted < 0).any() or (wanted > self.num_seen).any() or (self._held > self.num_seen).any():
            raise ValueError(f"cannot rewind to {wanted.tolist()}: allowed is 0..{self.num_seen.tolist()}, on a cache that "
                             "holds nothing beyond what it has seen")
        self._held = np.minimum(self._held, wanted)
        self.num_seen = wanted.copy()

    def _fill_holes(self, layer: int, slots: Tensor) -> None:
        """One slot per head goes: the newest slot moves into its place, so a step costs one slot, not the cache.

        Slot order is no longer text order afterwards; attention does not care, and `positions` still tells.
        """
        kept = slots.shape[-1]
        if attention.kernel_applies(self.keys[layer], self.keys[layer], self.values[layer]):
            hole = attention.move_newest(self.keys[layer], self.values[layer], self.positions[layer], slots)
            sides = self.aux[layer].values()
        else:
            hole = (kept * (kept + 1) // 2 - slots.sum(-1)).unsqueeze(-1)                 # (B, K, 1): the missing slot
            sides = (self.keys[layer], self.values[layer], self.positions[layer], *self.aux[layer].values())
        for side in sides:
            last = side[:, :, kept:kept + 1]
            index = hole if side.ndim == 3 else hole[..., None].expand(-1, -1, -1, side.shape[-1])
            side.scatter_(2, index, last.clone())
        self._held[layer] = kept

    def _renumber(self, layer: int, slots: Tensor, part: slice) -> None:
        """Rotates kept keys on from their old slot to their new one (slot = position in this mode)."""
        kept = slots.shape[-1]
        shift = torch.arange(kept, device=slots.device) - slots                            # (b, K, kept), never positive
        keys = self.keys[layer][part, :, :kept]
        cos, sin = self.rope.tables(shift, keys.dtype)
        self.keys[layer][part, :, :kept] = apply(keys, cos, sin)

    # -- whole sequences -----------------------------------------------------------------------------------------

    def select(self, sequences: Sequence[int]) -> "KVCache":
        """A cache of its own with just these sequences, in this order (storage is copied and trimmed)."""
        index = torch.as_tensor(list(sequences), device=self.keys[0].device)
        held = self._held[:, list(sequences)]
        new = self._like(len(index), self.num_seen[list(sequences)], held)
        for layer in range(self.config.num_layers):
            used = int(held[layer].max()) if len(index) else 0
            for mine, theirs in zip(new._stores(layer), self._stores(layer)):
                mine[layer] = theirs[layer][index, :, :used].clone()
            new.aux[layer] = {name: side[index, :, :used].clone() for name, side in self.aux[layer].items()}
        return new

    def copy(self) -> "KVCache":
        """An independent copy."""
        return self.select(range(self.batch))

    @classmethod
    def stack(cls, caches: Sequence["KVCache"], reserve: int = 0) -> "KVCache":
        """One batch out of several caches, `reserve` free slots included. The sources are emptied layer by layer,
        so that at no time more than one layer is held twice."""
        first = caches[0]
        held = np.concatenate([c._held for c in caches], axis=1)
        new = first._like(held.shape[1], np.concatenate([c.num_seen for c in caches]), held)
        for layer in range(first.config.num_layers):
            room = int(held[layer].max()) + reserve
            for mine, *theirs in zip(new._stores(layer), *(c._stores(layer) for c in caches)):
                mine[layer] = torch.cat([_resized(t[layer][:, :, :room], room) for t in theirs])
                for t in theirs:
                    t[layer] = t[layer][:, :, :0].clone()
            new.aux[layer] = {name: torch.cat([_resized(c.aux[layer][name][:, :, :room], room) for c in caches])
                              for name in first.aux[layer]}
        return new

    def _like(self, batch: int, num_seen: np.ndarray, held: np.ndarray) -> "KVCache":
        new = KVCache(self.config, self.rope, batch, device=self.keys[0].device, dtype=self.keys[0].dtype,
                      positions=self.mode, growth=self.growth, observer=self.observer, strict=self.strict)
        new.num_seen, new._held = num_seen.copy(), held.copy()
        return new

    def _stores(self, layer: int):
        return self.keys, self.values, self.positions

    # -- what a reader asks --------------------------------------------------------------------------------------

    def num_held(self, layer: int = 0) -> Int[Tensor, "b"]:
        """Slots in use per sequence."""
        return torch.as_tensor(self._held[layer])

    @property
    def num_bytes(self) -> int:
        """Bytes of all storage: keys, values, positions and side arrays, reserved slots included."""
        return sum(side.untyped_storage().nbytes() for layer in range(self.config.num_layers)
                   for side in (self.keys[layer], self.values[layer], self.positions[layer], *self.aux[layer].values()))


def _resized(side: Tensor, slots: int) -> Tensor:
    """A copy in fresh storage of exactly `slots` slots; what is new is zero."""
    new = side.new_zeros(*side.shape[:2], slots, *side.shape[3:])
    used = min(slots, side.shape[2])
    new[:, :, :used] = side[:, :, :used]
    return new
