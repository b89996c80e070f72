"""Headline numbers of BASED (arXiv 2402.18668) and what the miniature says about them.

The recall checks decode nothing long: they run the committed weights in parallel form on fixed held-out examples.
Speed at the paper's scale is a bound from bytes; the measured ratio is the recorded sweep (`based_speed`).
"""

from functools import cache

from frugal.core.claims import Claim, Evidence
from frugal.core.devices import device
from frugal.core.papers import paper
from frugal.core.recording import load_recorded
from frugal.core.roofline import Cost, ModelShape, time
from frugal.kv_eviction.based import state_floats
from frugal.kv_eviction.based_layers import available, build, load_based
from frugal.kv_eviction.based_recall import recall
from frugal.models.based_lm import state_bytes

__all__ = ["CLAIMS", "DECODER_1B", "projected_throughput"]

BASED = paper("based")
DECODER_1B = ModelShape("1.3B decoder", 24, 2048, 16, 16, 128, 5504, 50257, False, True,
                        "usual sizes of a 1.3B decoder; the paper's own were not checked")  # fmt: skip
LINEAR_LAYERS, WINDOW_LAYERS = 5, 5  # of 27 in the released 360M stack; scaled with depth below
STACK_LAYERS, WINDOW, FEATURE_DIM = 27, 64, 16


def based_state_bytes(shape: ModelShape = DECODER_1B, bits: int = 16) -> tuple[float, float]:
    """(bytes of linear state, bytes of window cache) per sequence, layers in the proportion of the release."""
    sizes = {"hidden_size": shape.hidden_size, "num_heads": shape.num_heads}
    linear = state_floats("taylor", feature_dim=FEATURE_DIM, **sizes) * LINEAR_LAYERS * shape.num_layers / STACK_LAYERS
    window = state_floats("window", window=WINDOW, **sizes) * WINDOW_LAYERS * shape.num_layers / STACK_LAYERS
    return linear * bits / 8, window * bits / 8


def projected_throughput(batch: int = 128, tokens: int = 1024, on: str = "A100-80GB") -> float:
    """Tokens/s of BASED over tokens/s of full attention, both bounded by bytes, while `tokens` are generated.

    Per step: the weights once; attention reads its cache (half of `tokens` on average), BASED reads and writes its
    linear state and reads its window. Equal weights, so the ratio shows the state alone.
    """
    full = DECODER_1B.decode_cost(tokens // 2, batch)
    linear, window = based_state_bytes()
    weights = DECODER_1B.decode_cost(0, 1).bytes
    based = Cost(full.flops, weights + batch * (2 * linear + window))
    return time(full, device(on)).lower_s / time(based, device(on)).lower_s


def _throughput() -> Evidence:
    rows = load_recorded("kv_eviction", "based_speed")
    at = rows[(rows.tokens == 1024) & (rows.batch == 16)].set_index("configuration")["cpu_step_s"]
    long = rows[(rows.tokens == rows.tokens.max()) & (rows.batch == 16)].set_index("configuration")["cpu_step_s"]
    return Evidence(
        measured=round(float(at["attention"] / at["taylor_16"]), 1),
        projected=round(projected_throughput(), 1),
        note=f"recorded on one core, batch 16: {long['attention'] / long['taylor_16']:.0f}x at "
        f"{rows.tokens.max():,} tokens. Bytes alone give 24x only from about 8,192 tokens on "
        f"({projected_throughput(tokens=8192):.0f}x at batch 128): "
        "at 1,024 the paper's number holds more than a smaller state",
    )


@cache
def _mean_recall(name: str) -> float:
    """Recall over 32 and 64 pairs, 0..1, on 12 held-out examples each."""
    model, _ = load_based(name)
    return sum(recall(model, n, num_examples=12, seed=99, recurrent=False)[0] for n in (32, 64)) / 2


def _over_gated() -> Evidence:
    if available(["gated_21", "taylor_4"]) != ["gated_21", "taylor_4"]:
        return Evidence(note="the gated recurrence has no committed weights: python recipes/train_based.py gated_21")
    ours, theirs = 100 * _mean_recall("taylor_4"), 100 * _mean_recall("gated_21")
    return Evidence(
        measured=round(ours - theirs, 1),
        note=f"points of recall over 32 and 64 pairs, Taylor f=4 {ours:.0f} %, a gated recurrence {theirs:.0f} %, "
        "states of 5,460 and 5,376 bytes. A synthetic task, one schedule for both: the recurrence learns it late, "
        "so part of the gap is training speed",
    )


def _under_attention() -> Evidence:
    ours, full = 100 * _mean_recall("taylor_8"), 100 * _mean_recall("attention")
    return Evidence(
        measured=round(ours - full, 1),
        note=f"points of recall over 32 and 64 pairs, Taylor f=8 {ours:.0f} %, attention {full:.0f} %",
    )


def _constant_state() -> Evidence:
    import torch

    model = build("taylor_16+window_64")
    sizes = [state_bytes(model.prefill(torch.zeros(1, n, dtype=torch.int64))[1]) for n in (256, 2048)]
    return Evidence(measured=sizes[1] / sizes[0], note=f"{sizes[0]:,} bytes after 256 tokens, {sizes[1]:,} after 2,048")


def _out_of_reach() -> Evidence:
    return Evidence(note="perplexity at 1.3B needs billions of tokens of training; no projection is honest")


CLAIMS = [
    Claim("based_throughput", BASED, "24x the generation throughput of FlashAttention-2 at 1.3B, 1,024 tokens",
          24, "x", "arXiv 2402.18668, abstract", "projected", _throughput, "direction holds"),
    Claim("based_recall_over_mamba", BASED, "6.22 points more than Mamba on recall-intensive tasks",
          6.22, "points", "arXiv 2402.18668, abstract", "measured", _over_gated, "direction holds"),
    Claim("based_recall_under_attention", BASED, "at 1.4B, attention recalls 31.3 points more on SWDE (69.04, 37.71)",
          -31.33, "points", "repository HazyResearch/based, README", "measured", _under_attention, "direction holds"),
    Claim("based_constant_state", BASED, "the state does not grow with the text: the same bytes at any length",
          1, "x", "arXiv 2402.18668, section 4", "counted", _constant_state, "reproduced", tolerance=0,
          neutral=float("nan")),
    Claim("based_perplexity", BASED, "perplexity of Mamba at 1.3B or better: ratio 1",
          1, "x", "arXiv 2402.18668, abstract", "measured", _out_of_reach, "out of reach here"),
]  # fmt: skip
