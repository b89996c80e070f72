"""Eviction: a policy says which slots stay, this module shows it the cache and carries the decision out.

A policy is a frozen dataclass with `keep(view, budget) -> slots` and, if it scores by attention, `observe(view)`.
It says in `needs` which attention rows it wants ("none", "last_row", "window" or "all_rows") and only those are
computed. What it remembers lives in `view.aux`, which is cut along with the slots; there is nothing to reset.

Two protocols, never mixed in one chart: "compress_once" cuts the context down once, then the question is fed and
the cache grows; "fixed_size" cuts back to the budget after the prompt and after every new token.
"""
import time
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from frugal.core.attention import kernel_applies
from frugal.core.budgets import BudgetTooSmall
from frugal.core.compiled import compiled
from frugal.core.kvcache import KVCache

PROTOCOLS = ("compress_once", "fixed_size")
NEEDS = ("none", "last_row", "window", "all_rows")


@dataclass
class LayerView:
    """What a policy sees of one layer. Rows R = sequences x KV heads, sequence-major; slots S; group G.

    positions: text position of every slot. attn: softmax rows (R * G, T, S), exactly 0 where a row may not look;
    None while keeping. step: 0 for the prompt, then the number of the generated token; max_steps: how many will be.
    num_seen: tokens gone through. aux: tensors (R, S) of the policy's own, cut with the slots, 0 for new slots.
    """
    layer: int
    num_layers: int
    keys: Float[Tensor, "r s d"]
    values: Float[Tensor, "r s d"]
    positions: Int[Tensor, "r s"]
    attn: Float[Tensor, "rg t s"] | None
    num_seen: int
    num_seqs: int
    step: int
    max_steps: int
    aux: dict[str, Tensor] = field(default_factory=dict)
    generator: torch.Generator | None = None

    @property
    def num_rows(self) -> int:
        return self.positions.shape[0]

    @property
    def num_slots(self) -> int:
        return self.positions.shape[1]

    def newest(self, count: int) -> Bool[Tensor, "r s"]:
        """Slots of the last `count` tokens of the text."""
        return self.positions >= self.num_seen - count

    def oldest(self, count: int) -> Bool[Tensor, "r s"]:
        """Slots of the first `count` tokens of the text (the attention sinks)."""
        return self.positions < count

    def by_kv_head(self, attn: Float[Tensor, "rg t s"]) -> Float[Tensor, "r t s"]:
        """Mean over the query heads that share a KV head."""
        return attn.unflatten(0, (self.num_rows, -1)).mean(1)

    def received(self) -> Float[Tensor, "r s"]:
        """Attention received: the sum over the rows shown, mean over the query heads that share a KV head."""
        if not kernel_applies(self.attn, self.attn, self.attn):
            return self.by_kv_head(self.attn).sum(1)
        total = np.zeros((self.num_rows, self.attn.shape[2]), np.float32)
        _add_received(self.attn.numpy(), total)
        return torch.from_numpy(total)

    def share(self, score: Float[Tensor, "r s"]) -> Float[Tensor, "r s"]:
        """One score for all KV heads of a sequence: the mean over its heads, repeated."""
        heads = self.num_rows // self.num_seqs
        return score.unflatten(0, (self.num_seqs, heads)).mean(1).repeat_interleave(heads, 0)


@compiled(parallel=False)
def _add_received(attn, total):
    """attn (R * G, T, S) -> total (R, S) += mean over G of the sum over T. One call in place of three."""
    group = attn.shape[0] // total.shape[0]
    weight = np.float32(1) / np.float32(group)
    for head in range(attn.shape[0]):
        to = total[head // group]
        for t in range(attn.shape[1]):
            row = attn[head, t]
            for s in range(row.size):
                to[s] += row[s] * weight


class Evictor:
    """Runs one policy over a cache. `seconds` is the time the policy's own work has taken.

    budgets: slots to keep per layer and KV head, one number for all sequences or one each.
    reserve: free slots left after a cut, so that what comes next needs no new storage.
    """

    def __init__(self, policy, budgets: int | list[int], *, protocol: str = "compress_once", seed: int = 0,
                 step: int = 0, max_steps: int = 64, reserve: int = 0):
        if protocol not in PROTOCOLS:
            raise ValueError(f"protocol must be one of {PROTOCOLS}, got {protocol!r}")
        if policy.needs not in NEEDS:
            raise ValueError(f"{type(policy).__name__}.needs must be one of {NEEDS}, got {policy.needs!r}")
        self.budgets = [budgets] if isinstance(budgets, int) else list(budgets)
        if min(self.budgets) < policy.min_budget():
            raise BudgetTooSmall(f"{type(policy).__name__} protects {policy.min_budget()} tokens, more than the budget "
                                 f"of {min(self.budgets)}; raise the budget or protect less")
        self.policy, self.protocol, self.seed = policy, protocol, seed
        self.step, self.max_steps, self.seconds = step, max_steps, 0.0
        self.reserve = 1 if protocol == "fixed_size" else reserve
        self.done = False
        self._generators: dict[int, torch.Generator] = {}

    def rows(self, num_new: int) -> int:
        """How many of the newest query rows the policy wants to see (0 = none)."""
        if self.done or self.policy.needs == "none" or not hasattr(self.policy, "observe"):
            return 0
        return {"last_row": 1, "window": min(num_new, getattr(self.policy, "window", 1)),
                "all_rows": num_new}[self.policy.needs]

    def observe(self, cache: KVCache, layer: int, attn: Float[Tensor, "b h t s"], num_new: int) -> None:
        """Shows the policy a block of attention rows of the newest `num_new` tokens, and keeps what it noted down."""
        start = time.perf_counter()
        for part, view in self._views(cache, layer, attn, num_new):
            self.policy.observe(view)
            self._store_aux(cache, layer, part, view)
        self.seconds += time.perf_counter() - start

    def after_forward(self, cache: KVCache) -> None:
        """Cuts every layer back to the budget, if it holds more. Call it after each forward pass."""
        if self.done:
            return
        start = time.perf_counter()
        for layer in range(cache.config.num_layers):
            for part, view in self._views(cache, layer, None, 0):
                budget = self._budget(part.start)
                if view.num_slots > budget:
                    slots = self.policy.keep(view, budget)
                    if self.protocol == "fixed_size":                     # notes made while keeping serve the next step
                        self._store_aux(cache, layer, part, view)
                    if slots.shape[1] == view.num_slots:                  # "full" keeps all, whatever the budget
                        continue
                    slots = slots.unflatten(0, (view.num_seqs, -1))
                    cache.evict(layer, slots, self.reserve, None if view.num_seqs == cache.batch else part.start)
        self.step += 1
        self.done = self.protocol == "compress_once"
        self.seconds += time.perf_counter() - start

    def _budget(self, sequence: int) -> int:
        return self.budgets[sequence if len(self.budgets) > 1 else 0]

    def _views(self, cache: KVCache, layer: int, attn: Tensor | None, num_new: int):
        """The batch as one view when its sequences are alike in length and budget, else one view a sequence."""
        held, seen = cache.num_held(layer).tolist(), cache.num_seen.tolist()
        alike = len(set(held)) == len(set(seen)) == len(set(self.budgets)) == 1
        for part in [slice(0, cache.batch)] if alike else [slice(b, b + 1) for b in range(cache.batch)]:
            slots = held[part.start]

            def fold(side, part=part, slots=slots):
                side = side if alike else side[part]
                return (side if side.shape[2] == slots else side[:, :, :slots]).flatten(0, 1)

            yield part, LayerView(
                layer, cache.config.num_layers, fold(cache.keys[layer]), fold(cache.values[layer]),
                fold(cache.positions[layer]), None if attn is None else attn[part, :, :, :slots].flatten(0, 1),
                seen[part.start] + num_new, part.stop - part.start, self.step, self.max_steps,
                {name: fold(side) for name, side in cache.aux[layer].items()}, self._generator(layer))

    def _store_aux(self, cache: KVCache, layer: int, part: slice, view: LayerView) -> None:
        """Copies what the policy put into view.aux back into the cache's side arrays."""
        for name, value in view.aux.items():
            if name not in cache.aux[layer]:
                cache.aux[layer][name] = torch.zeros(cache.positions[layer].shape, device=value.device,
                                                     dtype=value.dtype)
            target = cache.aux[layer][name][part, :, :view.num_slots]
            if value.data_ptr() != target.data_ptr():
                target.copy_(value.view(target.shape))

    def _generator(self, layer: int) -> torch.Generator:
        """One stream of random numbers a layer, so that the order of layers does not matter."""
        if layer not in self._generators:
            self._generators[layer] = torch.Generator().manual_seed(1_000_003 * self.seed + layer)
        return self._generators[layer]
