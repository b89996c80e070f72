"""ShadowKV: keys as a low-rank product in fast memory, values in slow memory, a few chunks of both for each token.

Source: arXiv 2410.21465, "ShadowKV: KV Cache in Shadows for High-Throughput Long-Context LLM Inference", algorithms 1
and 2; code bytedance/ShadowKV.
Differs: logits are divided by sqrt(D) throughout (the release has sqrt(128)); the low-rank rows of local tokens are
dropped, since those tokens are kept exactly; selected keys are rebuilt at every step, only values are carried over;
slow memory is an arena or a file and the second stream is a thread; several tokens in one forward pass after the
prompt select one after the other, as in decoding.
"""
import copy
import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from einops import rearrange
from torch import Tensor

from frugal.core.budgets import BudgetTooSmall
from frugal.core.papers import Paper, paper
from frugal.core.transfer import SlowStore, TransferMeter
from frugal.kv_eviction.cache_costs import shadowkv_cost
from frugal.kv_eviction.chunks import Partition, build_landmarks, lowrank_keys, select_by_bounds, select_by_mass, select_chunks
from frugal.kv_eviction.compress_once import CompressOnceCache, PromptLayer, check_fraction

SELECTIONS = ("landmark", "quest", "oracle")


@dataclass(frozen=True)
class Shadowkv:
    """Low-rank keys, landmarks and exact local and outlier chunks stay; values are fetched chunk by chunk.

    rank: of the keys of all KV heads side by side. sparse: prompt tokens attended to per step beyond the exact ones,
    a count or a fraction of the prompt, used when no byte budget is given. chunk: tokens. local_chunks, outliers:
    chunks kept exactly, per KV head. carry_over: keep the last step's values so that only new chunks move.
    selection: "landmark"; "quest" (chunk minima and maxima), "oracle" (exact keys, kept and counted). values: "slow",
    or "resident" for low rank without offloading. place: see SlowStore. events: record the timeline.
    """
    name: ClassVar[str] = "shadowkv"
    paper: ClassVar[Paper] = paper("shadowkv")
    summary: ClassVar[str] = "low-rank keys and landmarks stay; values wait in slow memory"
    kind: ClassVar[str] = "cache"
    knobs: ClassVar[dict[str, tuple]] = {"rank": (16, 24, 32, 48, 64, 96, 192), "outliers": (0, 1, 2, 4), "chunk": (4, 8, 16),
                                         "selection": SELECTIONS, "values": ("slow", "resident"), "carry_over": (True, False)}
    rank: int = 32
    sparse: int | float = 0.125
    chunk: int = 8
    local_chunks: int = 4
    outliers: int = 2
    carry_over: bool = True
    selection: str = "landmark"
    values: str = "slow"
    place: str = "arena"
    events: bool = False

    def __post_init__(self):
        for knob, least in (("rank", 1), ("chunk", 1), ("local_chunks", 0), ("outliers", 0), ("sparse", 0)):
            if not getattr(self, knob) >= least:
                raise ValueError(f"{knob} {getattr(self, knob)}: allowed is {least} or more")
        for knob, allowed in (("selection", SELECTIONS), ("values", ("slow", "resident"))):
            if getattr(self, knob) not in allowed:
                raise ValueError(f"{knob} {getattr(self, knob)!r}: allowed are {', '.join(allowed)}")

    def make_cache(self, config, rope, batch: int = 1, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32,
                   budget: float | int | None = None, num_context: int | None = None,
                   max_new_tokens: int = 0) -> "ShadowKVCache":
        """An empty cache. budget: resident bytes as a fraction of the full cache's, None = `sparse` decides.

        num_context: tokens that will be compressed, if known, so that a budget they cannot meet is refused at once.
        """
        check_fraction(budget)
        if num_context:
            self.num_selected(config, num_context, dtype.itemsize, budget)
        return ShadowKVCache(config, rope, batch, device, dtype, settings=self, budget=budget)

    def num_selected(self, config, num_tokens: int, itemsize: int = 4, budget: float | int | None = None) -> int:
        """Chunks selected per step and KV head for a prompt of `num_tokens`.

        Raises BudgetTooSmall, with the smallest budget that is possible, when not even one chunk would fit.
        """
        split, outliers = self.partition(num_tokens)
        most = split.num_old - outliers
        if budget is None:
            sparse = self.sparse if isinstance(self.sparse, int) else self.sparse * num_tokens
            return min(most, int(sparse) // self.chunk)
        full = num_tokens * self._full_row(config, itemsize)
        floor = self.formula_bytes(config, num_tokens, min(1, most), itemsize)
        if budget * full + 1e-6 < floor:
            least = math.ceil(1000 * floor / full) / 1000
            remedy = "give more, or a lower rank" if least <= 1 else "the prompt is too short for it"
            raise BudgetTooSmall(f"budget {budget:g} is too small for {num_tokens} tokens at rank {self.rank}: the smallest "
                                 f"possible is {least:.3f} of the full cache's bytes; {remedy}")
        extra = self.formula_bytes(config, num_tokens, 2, itemsize) - self.formula_bytes(config, num_tokens, 1, itemsize)
        spare = math.floor(budget * full + 1e-6) - floor
        return most if extra == 0 else min(most, min(1, most) + spare // extra)

    def partition(self, num_tokens: int) -> tuple[Partition, int]:
        """Old chunks and local tokens of a prompt, and how many of the old chunks are outliers."""
        split = Partition.of(num_tokens, self.chunk, self.local_chunks)
        return split, min(self.outliers, split.num_old)

    def formula_bytes(self, config, num_tokens: int, num_selected: int, itemsize: int = 4) -> int:
        """Resident bytes of one sequence, all layers: A, basis, landmarks and their numbers, exact tokens, and the
        carried-over values with their numbers. `cache.num_bytes` reads the storage."""
        split, outliers = self.partition(num_tokens)
        heads, dim = config.num_kv_heads, config.head_dim
        if not split.num_old:
            return config.num_layers * num_tokens * self._full_row(config, itemsize) // config.num_layers
        rank, landmarks = min(self.rank, heads * dim, num_tokens), split.num_old - outliers
        floats = (split.old_tokens * rank + heads * rank * dim + heads * landmarks * dim * (2 if self.selection == "quest" else 1)
                  + 2 * heads * (split.num_local + outliers * self.chunk) * dim)
        if self.selection == "oracle":
            floats += heads * landmarks * dim * (self.chunk - 1)             # the exact keys in the landmarks' place
        numbers = heads * landmarks
        if self.values == "resident":
            floats += heads * split.old_tokens * dim
        elif self.carry_over:
            floats, numbers = floats + heads * num_selected * self.chunk * dim, numbers + heads * num_selected
        return config.num_layers * (floats * itemsize + numbers * 4)

    def cost(self, shape, workload, budget: float | int | None = None, hit_rate: float = 0.6):
        """Cost of one decoding step; workload has `context` and `batch` (see `cache_costs.DecodeStep`)."""
        return shadowkv_cost(self, shape, workload, budget, hit_rate)

    @staticmethod
    def _full_row(config, itemsize: int) -> int:
        return config.num_layers * 2 * config.num_kv_heads * config.head_dim * itemsize


@dataclass
class _Layer:
    """Resident tensors of one layer; None where a switch does without."""
    low_rank: Tensor | None = None         # (B, old tokens, r)
    basis: Tensor | None = None            # (B, K, r, D)
    landmarks: tuple[Tensor, ...] = ()     # what selection reads, (B, K, L, D) or (B, K, L, c, D)
    numbers: Tensor | None = None          # (B, K, L) chunk number of each landmark
    keys: Tensor | None = None             # (B, K, E, D) exact: outlier, local and generated tokens
    values: Tensor | None = None
    old_values: Tensor | None = None       # (B, K, M, c * D) with values="resident"
    last: Tensor | None = None             # (B, K, selected) chunk numbers of the last step
    last_values: Tensor | None = None      # (B, K, selected, c * D)


class ShadowKVCache(CompressOnceCache):
    """The cache of `Shadowkv`. `meter` counts what crossed; `store` holds the values."""

    def __init__(self, config, rope, batch: int = 1, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32,
                 *, settings: Shadowkv = Shadowkv(), budget: float | int | None = None):
        super().__init__(config, rope, batch, device, dtype)
        check_fraction(budget)
        self.settings, self.budget = settings, budget
        self.meter = TransferMeter(keep_events=settings.events)
        self.store = SlowStore(settings.place, self.meter)
        self.selected = 0
        self.layers = [_Layer() for _ in range(config.num_layers)]

    def check_budget(self) -> None:
        self.split, self.num_outliers = self.settings.partition(self.prompt_length)
        self.selected = self.settings.num_selected(self.config, self.prompt_length, self.dtype.itemsize, self.budget)

    # -- after the prompt ----------------------------------------------------------------------------------------

    def compress(self, layer: int, held: PromptLayer) -> None:
        own, old = self.layers[layer], self.split.old_tokens
        if not old:
            own.keys, own.values = held.keys, held.values
            return
        low_rank, own.basis = self._decompose(held.keys)
        own.low_rank = low_rank[:, :old].to(self.dtype).clone()
        chunks = held.keys[:, :, :old].unflatten(2, (-1, self.settings.chunk))
        means, numbers, outliers = self._landmarks(chunks)
        own.numbers = numbers.to(torch.int32)
        own.landmarks = self._what_selection_reads(chunks, means, numbers)
        exact = outliers[..., None] * self.settings.chunk + torch.arange(self.settings.chunk, device=outliers.device)
        local = torch.arange(old, self.prompt_length, device=outliers.device).expand(*outliers.shape[:2], -1)
        exact = torch.cat([exact.flatten(2), local], 2)[..., None].expand(-1, -1, -1, held.keys.shape[-1])
        own.keys, own.values = held.keys.gather(2, exact), held.values.gather(2, exact)
        rows = held.values[:, :, :old].unflatten(2, (-1, self.settings.chunk)).flatten(3)      # (B, K, M, c * D)
        if self.settings.values == "resident":
            own.old_values = rows.clone()
            return
        self.store.write(layer, rows.flatten(0, 2))
        if self.settings.carry_over and self.selected:                       # room for it now: bytes stay as they are
            own.last = torch.full((*own.numbers.shape[:2], self.selected), -1, dtype=torch.int32, device=rows.device)
            own.last_values = rows.new_zeros(*own.last.shape, rows.shape[-1])

    def _decompose(self, keys: Tensor) -> tuple[Tensor, Tensor]:
        """Keys as they were before RoPE, heads side by side, in low rank: (B, n, r) and (B, K, r, D)."""
        positions = torch.arange(keys.shape[2], device=keys.device).expand(self.batch, -1)
        plain = self.rope.rotate(rearrange(keys, "b k n d -> b n k d"), -positions)
        low_rank, basis = lowrank_keys(plain.flatten(2), self.settings.rank)
        return low_rank, rearrange(basis, "b r (k d) -> b k r d", k=self.config.num_kv_heads).to(self.dtype).contiguous()

    def _landmarks(self, chunks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return build_landmarks(chunks, self.num_outliers)

    def _what_selection_reads(self, chunks: Tensor, means: Tensor, numbers: Tensor) -> tuple[Tensor, ...]:
        if self.settings.selection == "landmark":
            return (means.contiguous(),)
        chosen = chunks.gather(2, numbers[..., None, None].expand(*numbers.shape, *chunks.shape[3:]))
        return (chosen,) if self.settings.selection == "oracle" else (chosen.amin(3), chosen.amax(3))

    # -- each new token ------------------------------------------------------------------------------------------

    def decode(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return torch.cat([self._decode_one(layer, q[:, t], k[:, t], v[:, t], int(self.num_seen[0]) + t)
                          for t in range(q.shape[1])], 1)

    def _decode_one(self, layer: int, q: Tensor, k: Tensor, v: Tensor, position: int) -> Tensor:
        own = self.layers[layer]
        own.keys, own.values = torch.cat([own.keys, k[:, :, None]], 2), torch.cat([own.values, v[:, :, None]], 2)
        q = rearrange(q, "b (k g) d -> b k g d", g=self.group)
        keys, values = own.keys, own.values
        if self.selected and own.numbers.shape[2]:
            chosen = own.numbers.long().gather(2, self._select(own, q))
            step = position - self.prompt_length
            fetch = self.store.submit(self._fetch, layer, own, chosen, step)                   # beside the rebuilding
            keys = torch.cat([keys, self._rebuild(layer, own, chosen, step)], 2)
            values = torch.cat([values, fetch.result()], 2)
        weights = (q @ keys.mT / math.sqrt(q.shape[-1])).softmax(-1)
        return rearrange(weights @ values, "b k g d -> b 1 (k g) d")

    def _select(self, own: _Layer, q: Tensor) -> Tensor:
        choose = {"landmark": select_chunks, "quest": select_by_bounds, "oracle": select_by_mass}[self.settings.selection]
        return choose(q, *own.landmarks, self.selected)

    def _rebuild(self, layer: int, own: _Layer, chosen: Tensor, step: int) -> Tensor:
        """Selected keys out of the low-rank form, rotated to where they stood in the text."""
        start = self.meter.now_s()
        positions = self._positions(chosen)                                                    # (B, K, tokens)
        rows = own.low_rank[:, None].expand(-1, positions.shape[1], -1, -1)
        rows = rows.gather(2, positions[..., None].expand(*positions.shape, rows.shape[-1]))
        keys = self.rope.rotate((rows @ own.basis)[..., None, :], self._text_positions(positions))[..., 0, :]
        self.meter.add_event("rebuild K", step, layer, start, chosen.numel())
        return keys

    def _positions(self, chosen: Tensor) -> Tensor:
        offsets = torch.arange(self.settings.chunk, device=chosen.device)
        return (chosen[..., None] * self.settings.chunk + offsets).flatten(2)

    def _text_positions(self, positions: Tensor) -> Tensor:
        """Rotation follows the place in the text, not the place among the selected."""
        return positions

    def _fetch(self, layer: int, own: _Layer, chosen: Tensor, step: int) -> Tensor:
        """Values of the chosen chunks: those of the last step are carried over, the others cross from the store."""
        start, width = self.meter.now_s(), self.settings.chunk * self.config.head_dim
        wide = (-1, -1, -1, width)
        if own.old_values is not None:
            return own.old_values.gather(2, chosen[..., None].expand(wide)).unflatten(-1, (self.settings.chunk, -1)).flatten(2, 3)
        out, hit = torch.empty(*chosen.shape, width, dtype=self.dtype, device=chosen.device), torch.zeros_like(chosen).bool()
        if own.last is not None:
            same = chosen[..., None] == own.last[..., None, :]                                 # (B, K, new, old)
            hit, place = same.any(-1), same.to(torch.uint8).argmax(-1)
            out = own.last_values.gather(2, place[..., None].expand(wide))
        heads = torch.arange(chosen.shape[0] * chosen.shape[1], device=chosen.device).view(*chosen.shape[:2], 1)
        rows = (heads * self.split.num_old + chosen)[~hit]
        out[~hit] = self.store.read(layer, rows, chosen.device)
        num_hits = int(hit.sum())
        self.meter.hit(num_hits)
        if self.settings.carry_over:
            own.last, own.last_values = chosen.to(torch.int32), out
        self.meter.add_event("fetch V", step, layer, start, rows.numel(), num_hits)
        return out.unflatten(-1, (self.settings.chunk, -1)).flatten(2, 3)

    # -- what a reader asks --------------------------------------------------------------------------------------

    def formula_bytes(self) -> int:
        """What `num_bytes` must be once the prompt is compressed."""
        new = int(self.num_seen[0]) - self.prompt_length
        grown = new * self.settings._full_row(self.config, self.dtype.itemsize)
        return self.batch * (self.settings.formula_bytes(self.config, self.prompt_length, self.selected, self.dtype.itemsize) + grown)

    def copy(self) -> "ShadowKVCache":
        """Another cache that goes on from here, for several questions to one prompt. The store is shared: it is
        only read from now on; the meter is shared with it."""
        other = copy.copy(self)
        other.num_seen = self.num_seen.copy()
        other.layers = [copy.copy(own) for own in self.layers]               # tensors are replaced, never written to
        other._prompt = copy.deepcopy(self._prompt)
        return other

    def close(self) -> None:
        """Drop the slow side."""
        self.store.close()

    def tensors(self) -> list[Tensor]:
        return super().tensors() + [x for own in self.layers for x in
                                    (own.low_rank, own.basis, *own.landmarks, own.numbers, own.keys, own.values,
                                     own.old_values, own.last, own.last_values) if x is not None]
