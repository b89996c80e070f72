"""Roofline: from counted FLOPs and bytes to time at a paper's scale.

A step takes at least the larger of its compute time and its traffic time (perfect overlap) and, on a device that
does nothing else badly, at most their sum (no overlap). Real systems lie between, or above where launches, copies
and waiting dominate, so a projection is a bound and not a prediction.
"""
from dataclasses import dataclass, replace
from typing import NamedTuple

from .devices import Device, Number, device


@dataclass(frozen=True)
class Cost:
    """Work of one step. flops: a multiply-add is 2. bytes: read and written in the device's own memory.
    link_bytes: moved between host and device."""

    flops: Number = 0
    bytes: Number = 0
    link_bytes: Number = 0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.flops + other.flops, self.bytes + other.bytes, self.link_bytes + other.link_bytes)

    def __mul__(self, times: Number) -> "Cost":
        return Cost(self.flops * times, self.bytes * times, self.link_bytes * times)

    __rmul__ = __mul__


class Span(NamedTuple):
    """A time with its bounds, in seconds."""

    lower_s: Number
    upper_s: Number


def time(cost: Cost, on: Device | str, dtype: str = "fp16") -> Span:
    """Bounds of the time of one step: the largest of compute, memory and link time, and their sum.

    Raises ValueError when the device lacks the number format, or a link that the cost uses.
    """
    on = device(on) if isinstance(on, str) else on
    parts = [cost.flops / on.peak(dtype), cost.bytes / on.bandwidth]
    if cost.link_bytes:
        if on.link_bandwidth is None:
            raise ValueError(f"{on.name} has no link to a host, but the cost moves {cost.link_bytes:.0f} bytes over one")
        parts.append(cost.link_bytes / on.link_bandwidth)
    return Span(max(parts), sum(parts))


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a decoder. gated: the MLP has three matrices, not two. num_params counts matrices and norm scales."""

    name: str
    num_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    tied: bool
    gated: bool
    source: str
    qk_norm: bool = False

    @property
    def layer_params(self) -> int:
        """Parameters of one layer."""
        queries, keys = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        attention = self.hidden_size * (2 * queries + 2 * keys) + (2 * self.head_dim if self.qk_norm else 0)
        return attention + (3 if self.gated else 2) * self.hidden_size * self.intermediate_size + 2 * self.hidden_size

    @property
    def num_params(self) -> int:
        """All parameters, embedding and head included, a tied head once."""
        tables = self.vocab_size * self.hidden_size * (1 if self.tied else 2)
        return self.num_layers * self.layer_params + tables + self.hidden_size

    def weight_bytes(self, bits: Number = 16) -> float:
        """Bytes of all weights."""
        return self.num_params * bits / 8

    def kv_bytes_per_token(self, bits: Number = 16) -> float:
        """Bytes that one token adds to the cache, keys and values of all layers."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim * bits / 8

    def decode_cost(self, context: int, batch: int = 1, bits: Number = 16, kv_bits: Number | None = None,
                    kept: Number = 1.0) -> Cost:
        """One decode step of `batch` sequences with `context` tokens, of which a share `kept` is in the cache.

        Bytes: every weight once (of the embedding only the rows looked up, which are not counted), the cache once.
        """
        held = context * kept
        read = self.num_params - (0 if self.tied else self.vocab_size * self.hidden_size)
        attention = 4 * self.num_layers * self.num_heads * self.head_dim * held
        cache = self.kv_bytes_per_token(bits if kv_bits is None else kv_bits) * held
        return Cost(flops=batch * (2 * read + attention), bytes=read * bits / 8 + batch * cache)

    def prefill_cost(self, tokens: int, batch: int = 1, bits: Number = 16) -> Cost:
        """A prompt of `tokens` tokens: causal attention (half the square), the head for the last token only."""
        head = self.vocab_size * self.hidden_size
        body = self.num_params - head * (1 if self.tied else 2)
        attention = 2 * self.num_layers * self.num_heads * self.head_dim * tokens * (tokens + 1)
        return Cost(flops=batch * (2 * body * tokens + attention + 2 * head),
                    bytes=(body + head) * bits / 8 + batch * tokens * self.kv_bytes_per_token(bits))

    def scaled(self, **changes: int) -> "ModelShape":
        """The same shape with some sizes changed."""
        return replace(self, **changes)


def batch_that_fits(shape: ModelShape, bytes_per_sequence: Number, on: Device | str, bits: Number = 16,
                    reserve_bytes: Number = 0) -> int:
    """How many sequences of this many bytes fit beside the weights; 0 when the weights alone do not."""
    on = device(on) if isinstance(on, str) else on
    room = on.memory_bytes - shape.weight_bytes(bits) - reserve_bytes
    return max(0, int(room // bytes_per_sequence))


def _llama(name: str, layers: int, hidden: int, heads: int, kv: int, dim: int, mlp: int, vocab: int, tied: bool,
           source: str, qk_norm: bool = False) -> ModelShape:
    return ModelShape(name, layers, hidden, heads, kv, dim, mlp, vocab, tied, True, source, qk_norm)


SHAPES: dict[str, ModelShape] = {shape.name: shape for shape in (
    _llama("SmolLM2-135M", 30, 576, 9, 3, 64, 1536, 49152, True, "config.json of HuggingFaceTB/SmolLM2-135M-Instruct"),
    _llama("Llama-2-7B", 32, 4096, 32, 32, 128, 11008, 32000, False, "config.json of meta-llama/Llama-2-7b-hf"),
    _llama("Llama-2-13B", 40, 5120, 40, 40, 128, 13824, 32000, False, "config.json of meta-llama/Llama-2-13b-hf"),
    _llama("Llama-2-70B", 80, 8192, 64, 8, 128, 28672, 32000, False, "config.json of meta-llama/Llama-2-70b-hf"),
    _llama("Llama-3.1-8B", 32, 4096, 32, 8, 128, 14336, 128256, False, "config.json of meta-llama/Llama-3.1-8B"),
    _llama("Llama-3.1-70B", 80, 8192, 64, 8, 128, 28672, 128256, False, "config.json of meta-llama/Llama-3.1-70B"),
    _llama("Mistral-7B", 32, 4096, 32, 8, 128, 14336, 32000, False, "config.json of mistralai/Mistral-7B-v0.1"),
    _llama("Qwen3-8B", 36, 4096, 32, 8, 128, 12288, 151936, False, "config.json of Qwen/Qwen3-8B", qk_norm=True),
    ModelShape("MPT-7B", 32, 4096, 32, 32, 128, 16384, 50432, True, False, "config.json of mosaicml/mpt-7b"),
)}


def shape(name: str) -> ModelShape:
    """The model shape of this name. ValueError lists the names."""
    if name not in SHAPES:
        raise ValueError(f"unknown model shape {name!r}; there are: {', '.join(SHAPES)}")
    return SHAPES[name]
