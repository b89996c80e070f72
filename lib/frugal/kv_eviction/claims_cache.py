"""Headline numbers of MiKV (arXiv 2402.18096) and ShadowKV (arXiv 2410.21465), and what was found here.

Quality is measured on SmolLM2 by recipes/record_kv_pictures.py and read from the recorded rows; batches are counted in
bytes at the paper's scale; tokens per second are bounds by roofline: all traffic overlapped, published hit rate.
"""
from frugal.core.claims import Claim, Evidence
from frugal.core.devices import device
from frugal.core.papers import paper
from frugal.core.recording import load_recorded
from frugal.core.roofline import batch_that_fits, shape, time
from frugal.kv_eviction.cache_costs import DecodeStep
from frugal.kv_eviction.shadowkv import Shadowkv

__all__ = ["CLAIMS", "batches", "throughput"]

MIKV, SHADOWKV = paper("mikv"), paper("shadowkv")
LLAMA, GPU = "Llama-3.1-8B", "A100-80GB"
PUBLISHED = Shadowkv(rank=160, sparse=2048, outliers=48)           # defaults of the release, chunks of 8, 4 local chunks
K = 1024                                                            # the release writes 122K and 60K for multiples of 1,024
HIT_RATE = 0.6


# -- ShadowKV, counted and projected -------------------------------------------------------------------------------

def batches(context: int) -> tuple[int, int]:
    """Sequences of `context` tokens that fit an A100 with 80 GB in 16 bits: (full cache, ShadowKV)."""
    model = shape(LLAMA)
    selected = PUBLISHED.num_selected(model, context, 2)
    return (batch_that_fits(model, context * model.kv_bytes_per_token(16), GPU),
            batch_that_fits(model, PUBLISHED.formula_bytes(model, context, selected, 2), GPU))


def throughput(context: int, full_batch: int, batch: int) -> tuple[float, float, float]:
    """Tokens/s at most: the full cache, ShadowKV, and the full cache at an endless batch (cache reads alone)."""
    model = shape(LLAMA)
    full = time(model.decode_cost(context, full_batch), GPU).lower_s
    own = time(PUBLISHED.cost(model, DecodeStep(context, batch), hit_rate=HIT_RATE), GPU).lower_s
    endless = device(GPU).bandwidth / (context * model.kv_bytes_per_token(16))
    return full_batch / full, batch / own, endless


def _batch_ratio() -> Evidence:
    full, own = batches(122 * K)
    return Evidence(measured=own / full, note=f"batch {full} -> {own} by bytes at 122K tokens: full cache 16.4 GB a sequence, "
                                              "ShadowKV 2.5 GB; prefill activations, which the paper's server also holds, are not counted")


def _batch(context: int, which: int):
    def check() -> Evidence:
        return Evidence(measured=batches(context)[which], note="weights in 16 bits and cache on 80 GiB, nothing else counted")
    return check


def _ratio() -> Evidence:
    full, own, _ = throughput(122 * K, 4, 24)
    span = time(PUBLISHED.cost(shape(LLAMA), DecodeStep(122 * K, 24), hit_rate=HIT_RATE), GPU)
    return Evidence(projected=own / full, note=f"the link is the bound: {own:.0f} tokens/s with everything overlapped, "
                                               f"{24 / span.upper_s:.0f} with nothing overlapped (ratio {24 / span.upper_s / full:.1f})")


def _speed(context: int, full_batch: int, batch: int, which: int, note: str):
    def check() -> Evidence:
        return Evidence(projected=throughput(context, full_batch, batch)[which], note=note)
    return check


def _above_ideal() -> Evidence:
    _, own, endless = throughput(122 * K, 4, 24)
    return Evidence(projected=own / endless, note=f"{own:.0f} against {endless:.0f} tokens/s, both upper bounds")


def _hits() -> Evidence:
    rows = load_recorded("kv_eviction", "shadow_timeline")
    at = rows[(rows["step"] > 0) & (rows["lane"] == "fetch V")]
    return Evidence(measured=100 * float(at["hits"].sum() / (at["hits"] + at["rows"]).sum()),
                    note="SmolLM2, two recorded steps after 1,024 tokens, 12.5 % of the prompt selected; the paper selects 1.6 %")


# -- MiKV, measured on copying instead of line retrieval -----------------------------------------------------------

def kept(method: str, **where) -> float:
    """Copy accuracy as a share of the full cache's, in %, mean over the recorded seeds."""
    rows = load_recorded("kv_eviction", "mikv_quality")
    at = rows[rows["method"] == method]
    for column, value in where.items():
        at = at[at[column] == value]
    return 100 * float(at["copy"].mean() / rows[rows["method"] == "full"]["copy"].mean())


_TASK = "SmolLM2 copying 160 random tokens, share of the full cache's accuracy; the paper: line retrieval, Llama-2-7B. "


def _evicted() -> Evidence:
    return Evidence(measured=kept("evicted instead", important=0.5), note=_TASK + "The less important half is dropped")


def _retained() -> Evidence:
    return Evidence(measured=kept("MiKV 50 %", low_bits=3), note=_TASK + "The same half kept in 3 bits, with balancer")


def _recovered() -> Evidence:
    two = kept("MiKV 20 %", low_bits=2) - kept("evicted instead", important=0.2)
    three = kept("MiKV 20 %", low_bits=3) - kept("evicted instead", important=0.2)
    return Evidence(measured=kept("MiKV 50 %", low_bits=3) - kept("evicted instead", important=0.5),
                    note=_TASK + f"With a fifth important: {three:.0f} points by 3 bits, {two:.0f} by 2 bits, which this small model does not stand")


_ROWS = "arXiv 2410.21465, table of throughput as printed in the repository bytedance/ShadowKV: Llama-3.1-8B, 122K"
_ROWS_60 = _ROWS.replace("Llama-3.1-8B, 122K", "Llama-3-8B-1M, 60K")
_SUMMARY = "arXiv 2402.18096, line retrieval with Llama-2-7B, as told by a third-party summary; the paper's table was not seen"
_BOUND = "a bound by bytes read, so above what a system reaches"

CLAIMS = [
    Claim("mikv_evicted_half", MIKV, "Evicting half of the cache leaves about 43 % of line retrieval.", 43, "%", _SUMMARY,
          "measured", _evicted, "direction holds", tolerance=0.1, neutral=100.0),
    Claim("mikv_retained_int3", MIKV, "The same half kept in 3 bits instead: 99.8 %.", 99.8, "%", _SUMMARY,
          "measured", _retained, "direction holds", tolerance=0.1, neutral=43.0),
    Claim("mikv_low_precision_recovers", MIKV, "A small amount of low-precision information recovers most of what eviction loses: "
          "57 points when the evicted half is kept in 3 bits.", 56.8, "points", _SUMMARY, "measured", _recovered, "reproduced",
          tolerance=0.2),
    Claim("shadowkv_batch_6x", SHADOWKV, "Up to six times the batch.", 6, "x", "arXiv 2410.21465, abstract", "counted",
          _batch_ratio, "reproduced", tolerance=0.15),
    Claim("shadowkv_batch_full_122k", SHADOWKV, "The full cache fits a batch of 4 at 122K tokens.", 4, "sequences", _ROWS, "counted",
          _batch(122 * K, 0), "reproduced", tolerance=0.15),
    Claim("shadowkv_batch_122k", SHADOWKV, "ShadowKV fits a batch of 24 at 122K tokens.", 24, "sequences", _ROWS, "counted",
          _batch(122 * K, 1), "reproduced", tolerance=0.15),
    Claim("shadowkv_batch_60k", SHADOWKV, "ShadowKV fits a batch of 48 at 60K tokens.", 48, "sequences", _ROWS_60, "counted",
          _batch(60 * K, 1), "reproduced", tolerance=0.15),
    Claim("shadowkv_throughput", SHADOWKV, "Throughput up to 3.04 times the full cache's on an A100.", 3.04, "x",
          "arXiv 2410.21465, abstract; " + _ROWS, "projected", _ratio, "direction holds", tolerance=0.2),
    Claim("shadowkv_full_122k", SHADOWKV, "Full cache, batch 4: 80.77 tokens/s.", 80.77, "tokens/s", _ROWS, "projected",
          _speed(122 * K, 4, 24, 0, _BOUND), "direction holds", tolerance=0.2),
    Claim("shadowkv_tokens_122k", SHADOWKV, "ShadowKV, batch 24: 245.90 tokens/s.", 245.9, "tokens/s", _ROWS, "projected",
          _speed(122 * K, 4, 24, 1, "a bound by the link, PCIe 4 at its nominal rate with 60 % of the chunks carried over"), "direction holds",
          tolerance=0.2),
    Claim("shadowkv_ideal_122k", SHADOWKV, "Full attention with an endless batch could reach 134.30 tokens/s.", 134.3, "tokens/s", _ROWS,
          "projected", _speed(122 * K, 4, 24, 2, "the cache read once at the A100's full bandwidth"), "reproduced", tolerance=0.1),
    Claim("shadowkv_above_ideal", SHADOWKV, "ShadowKV is above the ideal of full attention with an endless batch (245.90 against 134.30).",
          1.83, "x", _ROWS, "projected", _above_ideal, "direction holds", tolerance=0.2),
    Claim("shadowkv_tokens_60k", SHADOWKV, "ShadowKV, batch 48 at 60K tokens: 455.14 tokens/s.", 455.14, "tokens/s", _ROWS_60, "projected",
          _speed(60 * K, 8, 48, 1, "the same bound at 60K"), "direction holds", tolerance=0.2),
    Claim("shadowkv_carry_over", SHADOWKV, "Carrying last step's chunks over saves about 60 % of the transfers.", 60, "%",
          "arXiv 2410.21465, section on temporal locality, as recorded from the release", "measured", _hits, "reproduced", tolerance=0.3,
          neutral=0.0),
]
