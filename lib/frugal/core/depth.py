"""Running a chosen part of a decoder's depth, and counting what was really run.

A `Stack` drives one cache: blocks of layers, keys filled in for skipped layers, small affine maps between depths,
and the head, in any order a method likes. What it ran is counted where it runs: layers, weight bytes, FLOPs, and the
(layer, position) cells. On a strict cache, attending to a cell that was never written raises `MissingKeys`.

Source: own design; the oracles (counter against plan, FLOPs against torch's counter) are in tests/core/test_depth.py.
Shapes: B batch, T new tokens, h hidden size, V vocabulary.
"""
from collections.abc import Sequence
from dataclasses import dataclass, field, fields

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from frugal.core.linear import linear
from frugal.core.roofline import Cost
from frugal.core.rope import apply

EMPTY, EXECUTED, FILLED, RECOMPUTED = 0, 1, 2, 3      # what happened in a (layer, position) cell


@dataclass
class Work:
    """Counts of what ran. A "call" reads a part's weights once, whatever the batch; `_tok` sums the tokens of all calls.

    layer: whole layers; fill: keys and values of skipped layers; head: final norm and output matrix; map: affine maps.
    flops: matrix products and attention, a multiply-add is 2. weight_bytes, kv_bytes: read from memory.
    """
    layer_calls: int = 0
    layer_tok: int = 0
    fill_calls: int = 0
    fill_tok: int = 0
    head_calls: int = 0
    head_tok: int = 0
    map_calls: int = 0
    map_tok: int = 0
    flops: int = 0
    weight_bytes: int = 0
    kv_bytes: int = 0

    def __add__(self, other: "Work") -> "Work":
        return Work(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(Work)))

    @property
    def cost(self) -> Cost:
        """For `roofline.time`: FLOPs, and bytes of weights and cache."""
        return Cost(flops=self.flops, bytes=self.weight_bytes + self.kv_bytes)


@dataclass(frozen=True)
class Affine:
    """x -> normalise(x) @ weight.T + bias. normalised: divide each state by its root mean square first."""
    weight: Float[Tensor, "out h"]
    bias: Float[Tensor, "out"]
    normalised: bool = True

    def __call__(self, x: Float[Tensor, "*b h"]) -> Float[Tensor, "*b out"]:
        return linear(unit_rms(x) if self.normalised else x, self.weight) + self.bias

    @property
    def num_bytes(self) -> int:
        return sum(part.numel() * part.element_size() for part in (self.weight, self.bias))


def unit_rms(x: Float[Tensor, "*b h"], eps: float = 1e-5) -> Float[Tensor, "*b h"]:
    """Each state divided by its root mean square."""
    return x * (x.square().mean(-1, keepdim=True) + eps).rsqrt()


def checked_layers(layers: Sequence[int], num_layers: int) -> list[int]:
    """The layers as a list. ValueError unless they ascend within 0..num_layers - 1."""
    layers = [int(i) for i in layers]
    if any(not 0 <= i < num_layers for i in layers) or any(b <= a for a, b in zip(layers, layers[1:])):
        raise ValueError(f"layers {layers} must ascend within 0..{num_layers - 1}: the model has {num_layers} layers")
    return layers


def checked_exit(exit_layer: int | float, num_layers: int, lowest: int = 1) -> int:
    """An exit layer as a count of layers run (e: layers 0..e - 1). ValueError outside lowest..num_layers."""
    if isinstance(exit_layer, bool) or int(exit_layer) != exit_layer or not lowest <= exit_layer <= num_layers:
        raise ValueError(f"exit layer {exit_layer} is outside the model: give a whole number of layers from {lowest} to "
                         f"{num_layers}")
    return int(exit_layer)


def weight_bytes(parts: dict[str, Tensor]) -> int:
    """Bytes of these weights."""
    return sum(w.numel() * w.element_size() for w in parts.values())


@dataclass(frozen=True)
class Event:
    """Some layers ran, or were filled, for `count` positions from `first[b]` on (-1: not for that sequence)."""
    kind: int
    layers: list[int]
    first: np.ndarray
    count: int


@dataclass
class Stack:
    """A decoder and one cache, a block of layers at a time. `advance` once all layers of the new tokens are done.

    cache: by default a strict one for `batch` sequences. Every method that runs something adds to `work`.
    """
    lm: object
    cache: object = None
    batch: int = 1
    work: Work = field(default_factory=Work)
    events: list[Event] = field(default_factory=list)

    def __post_init__(self):
        if self.cache is None:
            self.cache = self.lm.new_cache(self.batch, strict=True)
        self._sizes = [(sum(w.numel() for w in parts.values() if w.ndim == 2), weight_bytes(parts))
                       for parts in self.lm.layers]

    @property
    def num_layers(self) -> int:
        return self.lm.config.num_layers

    @torch.no_grad()
    def embed(self, tokens: Int[Tensor, "b t"]) -> Float[Tensor, "b t h"]:
        """States before layer 0."""
        return self.lm._embed(tokens)

    def run(self, x: Float[Tensor, "b t h"], layers: Sequence[int], positions: Int[Tensor, "b t"] | None = None,
            kind: int = EXECUTED) -> Float[Tensor, "b t h"]:
        """States after `layers`, run in this order on the next T positions (or on those given)."""
        layers = checked_layers(layers, self.num_layers)
        if not layers:
            return x
        if positions is None:
            positions = self.cache.next_positions(x.shape[1])
        out = self.lm.run(None, self.cache, embeds=x, positions=positions, layers=layers, hidden=True, logits=False,
                          advance=False).hidden[-1]
        self._count_layers(layers, positions, kind)
        return out

    @torch.no_grad()
    def fill(self, x: Float[Tensor, "b t h"], layers: Sequence[int], positions: Int[Tensor, "b t"] | None = None) -> None:
        """Writes keys and values of `layers` from the state x, as if it had reached each of them (state copying)."""
        c, layers = self.lm.config, checked_layers(layers, self.num_layers)
        if positions is None:
            positions = self.cache.next_positions(x.shape[1])
        cos, sin = (table[:, :, None] for table in self.lm.rope.tables(positions, x.dtype))
        shape = (*x.shape[:2], 2, c.num_kv_heads, c.head_dim)
        for i in layers:
            rows = self.lm.layers[i]["qkv"][c.num_heads * c.head_dim:]                   # keys and values alone
            k, v = linear(self.lm._norm(x, self.lm.layers[i]["attn_norm"]), rows).view(shape).unbind(2)
            self.cache.check_written(i, positions[:, 0].cpu().numpy())
            self.cache.append(i, apply(k, cos, sin).contiguous(), v.contiguous(), positions)
            self._count_product("fill", x, rows)
        self.mark(FILLED, layers, positions)

    def map(self, x: Float[Tensor, "b t h"], affine: Affine) -> Float[Tensor, "b t out"]:
        """The affine map of the states, charged."""
        self._count_product("map", x, affine.weight)
        return affine(x)

    @torch.no_grad()
    def logits(self, x: Float[Tensor, "b t h"], normalise: bool = True) -> Float[Tensor, "b t v"]:
        """Final norm and output matrix, charged. normalise: False when x is normalised already (its scale counts)."""
        self._count_product("head", x, self.lm.head)
        return self.lm.unembed(x) if normalise else linear(x * self.lm.weights["norm"], self.lm.head)

    def advance(self, num_new: int = 1) -> None:
        """The newest `num_new` tokens are done."""
        self.cache.advance(num_new)

    def cells(self, sequence: int = 0) -> np.ndarray:
        """(layers, positions) of EMPTY, EXECUTED, FILLED or RECOMPUTED for one sequence."""
        mine = [event for event in self.events if event.first[sequence] >= 0]
        length = max((int(event.first[sequence]) + event.count for event in mine), default=0)
        grid = np.zeros((self.num_layers, length), np.uint8)
        for event in mine:
            first = event.first[sequence]
            grid[event.layers, first:first + event.count] = event.kind
        return grid

    def mark(self, kind: int, layers: list[int], positions: Int[Tensor, "b t"]) -> None:
        """Notes what happened in these cells, over what was noted before."""
        self.events.append(Event(kind, layers, positions[:, 0].cpu().numpy(), positions.shape[1]))

    def _count_product(self, kind: str, x: Tensor, weight: Tensor) -> None:
        tokens, work = x.shape[0] * x.shape[1], self.work
        setattr(work, f"{kind}_calls", getattr(work, f"{kind}_calls") + 1)
        setattr(work, f"{kind}_tok", getattr(work, f"{kind}_tok") + tokens)
        work.flops += 2 * tokens * weight.numel()
        work.weight_bytes += weight.numel() * weight.element_size()

    def _count_layers(self, layers: list[int], positions: Tensor, kind: int) -> None:
        c, work = self.lm.config, self.work
        tokens, seen = positions.numel(), int(positions.sum()) + positions.numel()        # keys attended to, causal
        work.layer_calls += len(layers)
        work.layer_tok += tokens * len(layers)
        work.flops += sum(2 * tokens * self._sizes[i][0] for i in layers)
        work.flops += len(layers) * 4 * c.num_heads * c.head_dim * seen
        work.weight_bytes += sum(self._sizes[i][1] for i in layers)
        item = 2 * c.num_kv_heads * c.head_dim * self.lm.head.element_size()              # one slot
        work.kv_bytes += len(layers) * item * (int(positions[:, -1].sum()) + len(positions))
        self.mark(kind, layers, positions)
