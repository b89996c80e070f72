"""Measurements of compressed caches on a real model: copying, continuation, and what keys and values look like.

Each function takes a model and numbers and returns numbers; `recipes/record_kv_pictures.py` records them.
"""
import math

import numpy as np
import torch
from einops import rearrange

from frugal.core import attention
from frugal.core.quantize import quantize_asym
from frugal.data.text import docs_text
from frugal.kv_eviction.chunks import build_landmarks, select_by_bounds, select_by_mass, select_chunks
from frugal.kv_eviction.mikv import MixedPrecisionKVCache, channel_balancer


class EvictedInstead(MixedPrecisionKVCache):
    """MiKV's important tokens alone: what it would retain in few bits is dropped. The eviction it is compared with."""

    def _retain(self, own, keys, values) -> None:
        """Nothing is retained."""


def new_cache(lm, method, budget: float | None = None, evict: bool = False):
    """A cache of `method` (None: the full cache) for one sequence. evict: drop MiKV's retained tokens."""
    if method is None:
        return lm.new_cache()
    if evict:
        return EvictedInstead(lm.config, lm.rope, settings=method)
    return method.make_cache(lm.config, lm.rope, budget=budget)


def copy_accuracy(lm, cache, seed: int, length: int = 160) -> float:
    """Share of a random token string that the model copies right the second time, teacher-forced (0 to 1).

    The first copy is the prompt that gets compressed; the second is fed in one go. The first token cannot be known.
    """
    generator = torch.Generator().manual_seed(seed)
    string = torch.randint(1000, 20_000, (1, length), generator=generator)
    line = torch.tensor([lm.tokenizer.encode("\n")])
    lm.run(torch.cat([string, line], 1), cache, logits=False)
    finish(cache)
    found = lm(string, cache)[0, :-1].argmax(-1)
    return float((found == string[0, 1:]).float().mean())


def continuation_nll(lm, cache, seed: int, context: int = 512, length: int = 128) -> float:
    """Mean negative log-likelihood (nats) of `length` tokens of documentation after `context` compressed ones."""
    text = torch.tensor([docs_tokens(lm, (seed + 1) * (context + length))[-(context + length):]])
    last = lm(text[:, :context], cache, last_only=True)
    finish(cache)
    logits = torch.cat([last, lm(text[:, context:-1], cache)], 1)[0].log_softmax(-1)
    return float(-logits.gather(1, text[0, context:, None]).mean())


def docs_tokens(lm, count: int) -> list[int]:
    """The first `count` tokens of the documentation text."""
    return lm.tokenizer.encode(docs_text()[:count * 8])[:count]


def finish(cache) -> None:
    """The prompt is complete; the full cache has nothing to do."""
    if hasattr(cache, "finish_prompt"):
        cache.finish_prompt()


class Recorder:
    """A cache that keeps what passes: per layer queries (T, H, D), keys and values (K, n, D), before or after RoPE."""

    def __init__(self, lm):
        self.cache, self.lm, self.layers = lm.new_cache(), lm, []

    def __getattr__(self, name):
        return getattr(self.cache, name)

    def attend(self, layer, q, k, v, positions):
        """Pass everything on, and keep it."""
        plain = self.lm.rope.rotate(k, -positions)
        self.layers.append({"queries": q[0], **{name: rearrange(x[0], "n k d -> k n d") for name, x in
                                                 (("keys", k), ("plain keys", plain), ("values", v))}})
        return self.cache.attend(layer, q, k, v, positions)


def recorded_layers(lm, num_tokens: int = 1024) -> list[dict[str, torch.Tensor]]:
    """Queries, keys and values of every layer over the first tokens of the documentation."""
    recorder = Recorder(lm)
    lm.run(torch.tensor([docs_tokens(lm, num_tokens)]), recorder, logits=False)
    return recorder.layers


def energy_left(matrix: torch.Tensor) -> torch.Tensor:
    """Share of the squared norm that is lost at rank 0, 1, 2, ...: heads side by side (K, n, D) -> (K * D + 1)."""
    squares = torch.linalg.svdvals(rearrange(matrix, "k n d -> n (k d)").double()).square()
    return torch.cat([squares.new_ones(1), 1 - squares.cumsum(0) / squares.sum()]).clamp(min=0)


def landmark_mass(layer: dict[str, torch.Tensor], budget: int, rule: str, outliers: int = 0, chunk: int = 8) -> float:
    """Share of the last query's attention to older chunks that the chosen ones catch, mean over query heads (0 to 1).

    budget: tokens, outlier chunks included. rule: "landmark", "quest" or "oracle".
    """
    keys, q = layer["keys"][None], layer["queries"][-1]
    heads, num_tokens, dim = keys.shape[1:]
    old = (num_tokens // chunk - 4) * chunk
    chunks = keys[:, :, :old].unflatten(2, (-1, chunk))
    q = rearrange(q, "(k g) d -> 1 k g d", k=heads)
    means, numbers, exact = build_landmarks(chunks, outliers)
    others = chunks.gather(2, numbers[..., None, None].expand(*numbers.shape, chunk, dim))
    count = budget // chunk - outliers
    choose = {"landmark": lambda: select_chunks(q, means, count), "oracle": lambda: select_by_mass(q, others, count),
              "quest": lambda: select_by_bounds(q, others.amin(3), others.amax(3), count)}[rule]
    chosen = torch.cat([numbers.gather(2, choose()), exact], 2)
    weights = (q @ keys[:, :, :old].mT / dim**0.5).softmax(-1).unflatten(-1, (-1, chunk)).sum(-1)      # (1, K, G, M)
    return float(weights.gather(3, chosen[:, :, None].expand(-1, -1, weights.shape[2], -1)).sum(-1).mean())


def output_error(layer: dict[str, torch.Tensor], bits: int, balanced: bool, rows: int = 64) -> float:
    """Relative error of the attention outputs of the newest `rows` queries when the keys alone are quantised."""
    q, keys, values = layer["queries"][None], layer["keys"][None], layer["values"][None]
    factor = torch.ones(keys.shape[1], keys.shape[3])
    if balanced:
        group = rearrange(q[0], "t (k g) d -> k (t g) d", k=keys.shape[1])
        factor = channel_balancer(group.abs().amax(1), keys[0].abs().amax(1))
    rounded = quantize_asym(keys * factor[None, :, None], bits).dequantize() / factor[None, :, None]
    held = np.full(1, keys.shape[2])
    exact, found = (attention.extend_attention(q[:, -rows:], k.contiguous(), values.contiguous(), held) for k in (keys, rounded))
    return float((found - exact).norm() / exact.norm())


def mean(values) -> float:
    """Mean of an iterable of numbers."""
    values = list(values)
    return math.fsum(values) / len(values)
