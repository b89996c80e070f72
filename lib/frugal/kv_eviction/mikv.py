"""MiKV: no token is dropped; unimportant ones are kept in a few bits instead.

Source: arXiv 2402.18096, "No Token Left Behind: Reliable KV Cache Compression via Importance-Aware Mixed Precision
Quantization". No code was published; the shape of the method follows summaries of the paper.
Differs (our decisions, where the summaries are silent): one scale per token, head and `group` channels (default: the
whole head); the balancer's query maximum runs over all query heads of a group and all prompt tokens, on keys after
RoPE, and is clamped to 0.01 .. 100; the newest `recent` share of the important set cannot be demoted; several new
tokens in one forward pass are demoted together at its end; compression happens when the prompt is complete.
On a CPU decoding from packed codes is slower than from floats: what is saved here is bytes, not time.
"""
import copy
import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor

from frugal.core.budgets import BudgetTooSmall, top_slots
from frugal.core.papers import Paper, paper
from frugal.core.quantize import row_bytes
from frugal.kv_eviction.cache_costs import mikv_cost
from frugal.kv_eviction.compress_once import CompressOnceCache, PromptLayer, check_fraction
from frugal.kv_eviction.packed import ChannelStore, TokenStore

BLOCK = 1024                               # retained tokens decoded at a time
SLOT_BYTES = 8                             # bookkeeping of an important slot: fp32 score + int32 position


def channel_balancer(query_max: Float[Tensor, "*k d"], key_max: Float[Tensor, "*k d"]) -> Float[Tensor, "*k d"]:
    """Factor of each channel: keys are multiplied by it, queries divided, so that q . k stays what it was.

    query_max, key_max: largest magnitude of the channel over the prompt. A channel that is zero on either side
    gets 1. Source: arXiv 2402.18096, b = sqrt(max |q| / max |k|).
    """
    factor = (query_max / key_max).sqrt().clamp(1e-2, 1e2)
    return torch.where((query_max > 0) & (key_max > 0), factor, torch.ones_like(factor))


@dataclass(frozen=True)
class Mikv:
    """Important tokens in `high_bits`, all others in `low_bits`.

    important: share of the prompt's tokens, per layer and KV head, used when no byte budget is given.
    low_bits: 2, 3, 4, 8 (or 16, 32 for tests); high_bits: 8, 16 or 32. group: channels that share a scale, None = all.
    balanced: use the channel balancer. key_axis: "token", or "channel" for KIVI's keys. importance: "mass" (attention
    summed over all rows, H2O), "window" (over the newest 16 rows) or "recent". recent: share of the important set
    that is the newest tokens. reference_bits: width of the full cache that a fractional budget is a fraction of.
    """
    name: ClassVar[str] = "mikv"
    paper: ClassVar[Paper] = paper("mikv")
    summary: ClassVar[str] = "keep every token; unimportant ones in 2 to 4 bits"
    kind: ClassVar[str] = "cache"
    knobs: ClassVar[dict[str, tuple]] = {"low_bits": (2, 3, 4), "high_bits": (8, 16), "group": (None, 32),
                                         "balanced": (True, False), "key_axis": ("token", "channel"),
                                         "importance": ("mass", "window", "recent")}
    important: float | int = 0.2
    low_bits: int = 3
    high_bits: int = 16
    group: int | None = None
    balanced: bool = True
    key_axis: str = "token"
    importance: str = "mass"
    recent: float | int = 0.3
    reference_bits: int = 16

    def __post_init__(self):
        for knob, allowed in (("key_axis", ("token", "channel")), ("importance", ("mass", "window", "recent"))):
            if getattr(self, knob) not in allowed:
                raise ValueError(f"{knob} {getattr(self, knob)!r}: allowed are {', '.join(allowed)}")
        for knob in ("important", "recent"):
            if not 0 <= getattr(self, knob) <= 1:
                raise ValueError(f"{knob} {getattr(self, knob)}: allowed is 0 to 1")

    @classmethod
    def uniform(cls, bits: int, **knobs) -> "Mikv":
        """The baseline without importance: every token rounded to nearest at `bits` (no balancer unless asked)."""
        return cls(important=0.0, low_bits=bits, **{"balanced": False, **knobs})

    def make_cache(self, config, rope, batch: int = 1, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32,
                   budget: float | int | None = None, num_context: int | None = None,
                   max_new_tokens: int = 0) -> "MixedPrecisionKVCache":
        """An empty cache. budget: fraction of the full cache's bytes at `reference_bits`, None = `important` decides.

        num_context: tokens that will be compressed, if known, so that a budget they cannot meet is refused at once.
        Raises ValueError for a bad budget, BudgetTooSmall naming the smallest possible one.
        """
        if num_context:
            self.important_count(config, num_context, budget)
        return MixedPrecisionKVCache(config, rope, batch, device, dtype, settings=self, budget=budget)

    def important_count(self, config, num_tokens: int, budget: float | int | None = None) -> int:
        """Important tokens per layer and KV head of a prompt of `num_tokens`.

        Raises ValueError for a budget outside (0, 1] and BudgetTooSmall, with the smallest budget that is possible,
        when even no important token would not fit. A budget beyond everything important is not used up.
        """
        check_fraction(budget)
        if budget is None:
            return round(self.important * num_tokens)
        allowed = math.floor(budget * self._full_bytes(config, num_tokens) + 1e-6)
        floor = self.formula_bytes(config, num_tokens, 0)
        if allowed < floor:
            least = math.ceil(1000 * self.smallest_budget(config, num_tokens)) / 1000
            raise BudgetTooSmall(f"budget {budget:g} is too small for {num_tokens} tokens at {self.low_bits} bits: "
                                 f"the smallest possible is {least:.3f} of the {self.reference_bits}-bit cache; "
                                 "give more, or fewer low_bits")
        extra = self.formula_bytes(config, num_tokens, 1) - floor
        return num_tokens if extra <= 0 else min(num_tokens, (allowed - floor) // extra)

    def smallest_budget(self, config, num_tokens: int) -> float:
        """Fraction of the full cache's bytes that no important token at all would take."""
        return self.formula_bytes(config, num_tokens, 0) / self._full_bytes(config, num_tokens)

    def formula_bytes(self, config, num_tokens: int, num_important: int) -> int:
        """Bytes of one sequence, all layers and heads: the paper's formula, plus 8 bytes for each important slot
        (score and position) and the balancer. Exact for per-token keys; `cache.num_bytes` reads the storage."""
        dim, low = config.head_dim, num_tokens - num_important
        high_row = 2 * row_bytes(dim, self.high_bits, self.group) + SLOT_BYTES
        key_row = row_bytes(dim, self.low_bits, self.group)
        if self.key_axis == "channel":
            key_row = ChannelStore(self.low_bits, dim).bytes_per_row()
        low_row = key_row + row_bytes(dim, self.low_bits, self.group)
        per_head = num_important * high_row + low * low_row + (dim * 4 if self.balanced else 0)
        return math.ceil(config.num_layers * config.num_kv_heads * per_head)

    def cost(self, shape, workload, budget: float | int | None = None):
        """Cost of one decoding step; workload has `context` and `batch` (see `cache_costs.DecodeStep`)."""
        return mikv_cost(self, shape, workload, budget)

    def _full_bytes(self, config, num_tokens: int) -> int:
        return config.num_layers * config.num_kv_heads * num_tokens * 2 * config.head_dim * self.reference_bits // 8


@dataclass
class _Layer:
    """Important keys and values with what their slots received and their positions; retained keys and values."""
    keys: TokenStore
    values: TokenStore
    low_keys: TokenStore | ChannelStore
    low_values: TokenStore
    score: Tensor | None = None                                              # (B, K, I)
    positions: Tensor | None = None                                          # (B, K, I)
    balancer: Tensor | None = None                                           # (B, K, D)


class MixedPrecisionKVCache(CompressOnceCache):
    """The cache of `Mikv`: two tiers per layer and KV head, both packed for real.

    A new token enters the important tier; the least important one is then quantised and moved, for good.
    """
    watches_attention = True

    def __init__(self, config, rope, batch: int = 1, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32,
                 *, settings: Mikv = Mikv(), budget: float | int | None = None):
        super().__init__(config, rope, batch, device, dtype)
        self.settings, self.budget = settings, budget
        self.num_important = 0
        self.layers: list[_Layer | None] = [None] * config.num_layers
        self._new_layer()                                                    # bad widths are refused here, not later
        check_fraction(budget)

    def check_budget(self) -> None:
        self.num_important = self.settings.important_count(self.config, self.prompt_length, self.budget)

    def compress(self, layer: int, held: PromptLayer) -> None:
        own = self._new_layer()
        shape = held.mass.shape
        own.positions = torch.arange(shape[2], dtype=torch.int32, device=held.mass.device).expand(shape).contiguous()
        own.score = held.window_mass if self.settings.importance == "window" else held.mass
        if self.settings.balanced:
            own.balancer = channel_balancer(held.query_max.float(), held.key_max.float())
        keep, rest = self._split(own, self.num_important)
        take = lambda x, slots: x.gather(2, repeat(slots, "b k n -> b k n d", d=x.shape[-1]))       # noqa: E731
        own.keys.append(take(held.keys, keep))
        own.values.append(take(held.values, keep))
        self._retain(own, take(held.keys, rest), take(held.values, rest))
        own.score, own.positions = own.score.gather(2, keep), own.positions.gather(2, keep)
        self.layers[layer] = own

    def decode(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        own, num_new = self.layers[layer], q.shape[1]
        k, v = (rearrange(x, "b t k d -> b k t d") for x in (k, v))
        own.keys.append(k)
        own.values.append(v)
        own.score = torch.cat([own.score, own.score.new_zeros(*own.score.shape[:2], num_new)], 2)
        new = torch.arange(num_new, dtype=torch.int32, device=k.device) + int(self.num_seen[0])
        own.positions = torch.cat([own.positions, new.expand(*own.positions.shape[:2], -1)], 2)
        out, weights = self._attend_tiers(own, q)
        own.score += rearrange(weights, "b k g t i -> b k t g i").mean(3).sum(2)
        if self.num_important == self.prompt_length:
            return out                                                       # everything is important: no demotion
        keep, rest = self._split(own, self.num_important)
        self._retain(own, own.keys.rows(rest), own.values.rows(rest))
        own.keys.keep(keep)
        own.values.keep(keep)
        own.score, own.positions = own.score.gather(2, keep), own.positions.gather(2, keep)
        return out

    def _attend_tiers(self, own: _Layer, q: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of both tiers, one softmax, values of both tiers. Returns the output and the important weights."""
        num_new, high, low = q.shape[1], len(own.keys), len(own.low_keys)
        q = rearrange(q.float(), "b t (k g) d -> b k (g t) d", g=self.group) / math.sqrt(q.shape[-1])
        hidden = torch.ones(num_new, num_new, dtype=torch.bool, device=q.device).triu(1)             # newest T slots
        logits = [q @ own.keys.block(0, high).mT]
        logits[0] = rearrange(logits[0], "b k (g t) s -> b k g t s", t=num_new)
        logits[0][..., high - num_new:].masked_fill_(hidden, float("-inf"))
        logits[0] = rearrange(logits[0], "b k g t s -> b k (g t) s")
        low_q = q if own.balancer is None else q / own.balancer[:, :, None]
        for first in range(0, low, BLOCK):
            logits.append(low_q @ own.low_keys.block(first, min(low, first + BLOCK)).mT)
        weights = torch.cat(logits, -1).softmax(-1)
        out = weights[..., :high] @ own.values.block(0, high)
        for first in range(0, low, BLOCK):
            last = min(low, first + BLOCK)
            out = out + weights[..., high + first:high + last] @ own.low_values.block(first, last)
        out = rearrange(out, "b k (g t) d -> b t (k g) d", t=num_new).to(self.dtype)
        return out, rearrange(weights[..., :high], "b k (g t) i -> b k g t i", t=num_new)

    def _split(self, own: _Layer, budget: int) -> tuple[Tensor, Tensor]:
        """Slots of the important tier that stay, and those that are demoted, both in order of position."""
        batch, heads, held = own.score.shape
        if budget in (0, held):
            every = torch.arange(held, device=own.score.device).expand(batch, heads, -1)
            return (every, every[..., :0]) if budget == held else (every[..., :0], every)
        newest = own.positions.flatten(0, 1) > int(own.positions.max()) - math.ceil(self.settings.recent * budget)
        score = own.positions if self.settings.importance == "recent" else own.score
        keep = top_slots(score.flatten(0, 1).float(), budget, protect=newest)
        stays = torch.zeros_like(newest).scatter_(1, keep, torch.ones_like(newest))
        rest = (~stays).nonzero()[:, 1].view(newest.shape[0], -1)
        return keep.view(batch, heads, -1), rest.view(batch, heads, -1)

    def _retain(self, own: _Layer, keys: Tensor, values: Tensor) -> None:
        if keys.shape[2] or not len(own.low_keys):
            own.low_keys.append(keys.float() if own.balancer is None else keys.float() * own.balancer[:, :, None])
            own.low_values.append(values)

    def _new_layer(self) -> _Layer:
        s, dim = self.settings, self.config.head_dim
        low_keys = ChannelStore(s.low_bits, dim) if s.key_axis == "channel" else TokenStore(s.low_bits, dim, s.group)
        return _Layer(TokenStore(s.high_bits, dim, s.group), TokenStore(s.high_bits, dim, s.group), low_keys,
                      TokenStore(s.low_bits, dim, s.group))

    # -- what a reader asks --------------------------------------------------------------------------------------

    def bits_per_token(self, layer: int, head: int = 0, sequence: int = 0) -> list[int]:
        """Stored width of every token in text order, for the memory strip."""
        bits = [self.settings.low_bits] * int(self.num_seen[sequence])
        for position in self.layers[layer].positions[sequence, head].tolist():
            bits[position] = self.settings.high_bits
        return bits

    def formula_bytes(self) -> int:
        """What `num_bytes` must be once the prompt is compressed (per-token keys)."""
        important = self.layers[0].positions.shape[2]
        return self.batch * self.settings.formula_bytes(self.config, int(self.num_seen[0]), important)

    def copy(self) -> "MixedPrecisionKVCache":
        """An independent copy, for several questions to one prompt."""
        return copy.deepcopy(self)

    def tensors(self) -> list[Tensor]:
        held = [x for own in self.layers if own is not None
                for x in [*own.keys.parts, *own.values.parts, *own.low_keys.parts, *own.low_values.parts,
                          own.score, own.positions, *([] if own.balancer is None else [own.balancer])]]
        return super().tensors() + held
