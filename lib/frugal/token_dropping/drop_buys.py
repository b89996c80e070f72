"""What fewer visual tokens buy in seconds and bytes: the paper's token counts through a real decoder.

Random embeddings of the right length stand for the visual tokens: the arithmetic does not ask what they mean. All
counts are measured in turn in one process, and what counts are ratios to the full number within a round.

Source: arXiv 2408.10945, efficiency measurements; counts of LLaVA-Next, 5 views of 576 patches: 2,880 visual tokens.
Its repository times a 600 x 600 picture and at most 15 new tokens: throughput is new tokens over prefill and decode
together, so it is mostly a prefill ratio. `projected_speedup` shows how it fades with the length of the answer.
Differs: SmolLM2-135M on a CPU in place of a 7B model on a P40; the encoder is not in the time.
"""
from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from frugal.core.devices import Device, device
from frugal.core.measure import compare, hardware
from frugal.core.roofline import ModelShape, shape, time

COUNTS = (2880, 1728, 1152, 576, 288)        # visual tokens at 100, 60, 40, 20 and 10 %
TEXT = 60                                    # prompt tokens around the picture
NEW = 15                                     # tokens of an answer in the paper's measurement
ANSWERS = (1, 5, 15, 50, 100, 200, 512)
MODEL, GPUS = "Llama-2-7B", {"P40": "fp32", "A100-80GB": "fp16"}     # a P40 has no fast 16-bit arithmetic


def embeddings(lm, count: int, seed: int = 0) -> Float[Tensor, "1 t h"]:
    """Random embeddings with the mean norm of the model's own."""
    draw = torch.randn(1, count, lm.config.hidden_size, generator=torch.Generator().manual_seed(seed))
    norm = lm.weights["embed"].float().norm(dim=-1).mean()
    return (draw / draw.norm(dim=-1, keepdim=True) * norm).to(lm.dtype)


def prefilled(lm, count: int, text: int = TEXT):
    """The cache after `count` visual and `text` other tokens."""
    cache = lm.new_cache(1, reserve=count + text + NEW)
    lm.run(None, cache, embeds=embeddings(lm, count + text), last_only=True)
    return cache


def measure(lm, counts: Sequence[int] = COUNTS, text: int = TEXT, new: int = NEW, repeats: int = 5) -> pd.DataFrame:
    """One row a count: prefill and decode in seconds, bytes of cache, and ratios of the first count to this one.

    Wall clock is the median of rounds in which all counts are timed in turn; `*_ratio` is the median of the ratios
    within a round, `*_cpu_ratio` the same of process CPU time, which a busy machine disturbs less.
    """
    caches = {count: prefilled(lm, count, text) for count in counts}
    bytes_ = {count: cache.num_bytes * (count + text) // (count + text + NEW) for count, cache in caches.items()}
    token = torch.zeros(1, 1, dtype=torch.int64)

    def decode(cache):
        own = cache.copy()
        for _ in range(new):
            lm(token, own)

    first = compare({str(c): lambda c=c: prefilled(lm, c, text) for c in counts}, repeats)
    then = compare({str(c): lambda c=c: decode(caches[c]) for c in counts}, repeats)
    rows = []
    for count, pre, dec in zip(counts, first.itertuples(), then.itertuples()):
        rows.append({
            "visual_tok": count, "budget": count / counts[0], "text_tok": text, "new_tok": new,
            "prefill_s": pre.median_s, "prefill_cpu_s": pre.cpu_s, "decode_s": dec.median_s / new,
            "decode_cpu_s": dec.cpu_s / new, "cache_bytes": bytes_[count], "prefill_ratio": pre.speedup,
            "prefill_ratio_low": pre.speedup_low, "prefill_ratio_high": pre.speedup_high,
            "prefill_cpu_ratio": pre.cpu_ratio, "decode_ratio": dec.speedup, "decode_cpu_ratio": dec.cpu_ratio,
            "cache_ratio": bytes_[counts[0]] / bytes_[count], "rounds": repeats, "threads": torch.get_num_threads(),
            "hardware": hardware()
        })
    return pd.DataFrame(rows)


def measured_speedup(rows: pd.DataFrame, count: int, new: int) -> float:
    """Tokens per second at `count` visual tokens over those at the full number, for an answer of `new` tokens.

    From CPU seconds of the recorded prefill and decode.
    """
    full, own = (rows[rows.visual_tok == c].iloc[0] for c in (rows.visual_tok.max(), count))
    return float((full.prefill_cpu_s + new * full.decode_cpu_s) / (own.prefill_cpu_s + new * own.decode_cpu_s))


def projected_s(on: Device | str, visual: int, new: int, text: int = TEXT, batch: int = 1, model: ModelShape | str = MODEL,
                dtype: str | None = None) -> float:
    """Least seconds of prefill and `new` decoding steps by roofline, weights and cache in 16 bits."""
    on = device(on) if isinstance(on, str) else on
    model = shape(model) if isinstance(model, str) else model
    dtype = dtype or GPUS[on.name]
    prefill = time(model.prefill_cost(visual + text, batch), on, dtype).lower_s
    return prefill + sum(
        time(model.decode_cost(visual + text + step, batch), on, dtype).lower_s for step in range(1, new))


def projected_speedup(on: Device | str, visual: int, new: int, full: int = COUNTS[0]) -> float:
    """How many times faster an answer of `new` tokens is with `visual` tokens than with `full`."""
    return projected_s(on, full, new) / projected_s(on, visual, new)


def cache_saving_bytes(visual: int, full: int = COUNTS[0], batch: int = 1, model: str = MODEL) -> float:
    """Bytes of 16-bit cache that `visual` tokens in place of `full` save."""
    return float(np.float64(batch * (full - visual) * shape(model).kv_bytes_per_token(16)))
