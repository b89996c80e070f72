"""Headline numbers of HiRED (arXiv 2408.10945) and what was found here.

Speed and memory are projected for a 7B decoder on the paper's Tesla P40: 2,880 visual tokens against 576 (20 %), 60
other tokens, 15 new ones, weights and cache in 16 bits. The bounds hold weights, cache and arithmetic; the encoder,
launches and temporary storage are not in them, so seconds and bytes come out below what a system shows.
"""
from frugal.core.claims import Claim, Evidence
from frugal.core.papers import paper
from frugal.core.recording import load_recorded
from frugal.core.roofline import shape
from frugal.token_dropping import results
from frugal.token_dropping.drop_buys import COUNTS, MODEL, NEW, TEXT, cache_saving_bytes, measured_speedup, projected_s, projected_speedup

__all__ = ["CLAIMS"]

HIRED, KEPT, GPU = paper("hired"), COUNTS[3], "P40"
_ABSTRACT = "arXiv 2408.10945, abstract"
_REPOSITORY = "; measured as in repository hasanar1f/HiRED: one picture, up to 15 new tokens"


def buys():
    """The recorded measurement on SmolLM2."""
    return load_recorded("token_dropping", "drop_buys")


def _throughput() -> Evidence:
    prefill = float(buys().set_index("visual_tok").prefill_cpu_ratio[KEPT])
    return Evidence(
        measured=measured_speedup(buys(), KEPT, NEW), projected=projected_speedup(GPU, KEPT, NEW), note=
        f"15 new tokens; prefill alone {projected_speedup(GPU, KEPT, 1):.1f} by roofline and {prefill:.1f} on SmolLM2 here; "
        f"512 new tokens {projected_speedup(GPU, KEPT, 512):.2f}")


def _first_token() -> Evidence:
    saved = projected_s(GPU, COUNTS[0], 1) - projected_s(GPU, KEPT, 1)
    return Evidence(projected=saved,
                    note="least possible prefill at 12 TFLOP/s; the paper's 15 s show a system far from that bound")


def _memory() -> Evidence:
    return Evidence(measured=cache_saving_bytes(KEPT) / 1e9,
                    note="the cache alone, counted; logits and activations of 2,304 tokens come on top")


def _latency_share() -> Evidence:
    return Evidence(measured=100 * (1 - 1 / measured_speedup(buys(), KEPT, NEW)),
                    projected=100 * (1 - 1 / projected_speedup(GPU, KEPT, NEW)),
                    note="time of the whole answer with 15 new tokens")


def _memory_share(batch: int):
    def check() -> Evidence:
        model = shape(MODEL)
        full = model.weight_bytes(16) + batch * (COUNTS[0] + TEXT + NEW) * model.kv_bytes_per_token(16)
        return Evidence(measured=100 * cache_saving_bytes(KEPT, batch=batch) / full,
                        note=f"weights and cache at batch {batch}, counted in 16 bits")
    return check


def _prefill() -> Evidence:
    rows = buys().set_index("visual_tok")
    return Evidence(measured=float(rows.prefill_cpu_ratio[KEPT]),
                    note=f"SmolLM2, CPU time, median of rounds; wall clock {rows.prefill_ratio[KEPT]:.2f}")


def _points(other: str, score: str = "place"):
    def check() -> Evidence:
        rows = load_recorded("token_dropping", "scenes")
        found = results.difference(results.at(rows, "hired", 0.2),
                                   results.at(rows, other, 1.0 if other == "full" else 0.2), score)
        return Evidence(
            measured=100 * found.value,
            note=f"{results.SCORES[score]} with 20 % of the tokens: {100 * found.value:+.1f} points "
            f"[{100 * found.low:+.1f}, {100 * found.high:+.1f}], paired over scenes")
    return check


def _kept() -> Evidence:
    """Points lost against the full model at 20 %, on places; the other questions in the note."""
    rows = load_recorded("token_dropping", "scenes")
    lost = {score: results.difference(results.at(rows, "hired", 0.2), results.at(rows, "full", 1.0), score)
            for score in ("place", "existence", "count", "small", "caption")}
    return Evidence(measured=100 * lost["place"].value,
                    note="; ".join(f"{score} {100 * found.value:+.1f} [{100 * found.low:+.1f}, {100 * found.high:+.1f}]"
                                   for score, found in lost.items()))


_QUALITY = "arXiv 2408.10945, comparison of accuracy (direction; the size is ours to find)"

CLAIMS = [
    Claim("hired_throughput", HIRED, "A 20 % budget generates tokens 4.7 times as fast.", 4.7, "x",
          _ABSTRACT + _REPOSITORY, "projected", _throughput, "direction holds"),
    Claim("hired_first_token", HIRED, "The first token comes 15 s earlier.", 15, "s", _ABSTRACT, "projected",
          _first_token, "direction holds"),
    Claim("hired_memory", HIRED, "2.3 GB of memory saved for a single inference.", 2.3, "GB", _ABSTRACT, "counted",
          _memory, "direction holds"),
    Claim("hired_latency_share", HIRED, "Latency down by 78 %.", 78, "%", _ABSTRACT + " (version 3)", "projected",
          _latency_share, "direction holds", neutral=0.0),
    Claim("hired_memory_share", HIRED, "Memory down by 14 % for a single inference.", 14, "%",
          _ABSTRACT + " (version 3)", "counted", _memory_share(1), "direction holds", neutral=0.0),
    Claim("hired_memory_batch", HIRED, "Memory down by 30 % at batch 4.", 30, "%", _ABSTRACT + " (version 3)",
          "counted", _memory_share(4), "direction holds", neutral=0.0, tolerance=0.15),
    Claim("hired_prefill", HIRED, "2,880 + 60 prompt tokens against 576 + 60: prefill about 4.6 times cheaper.", 4.6,
          "x", "ratio of prompt lengths behind the 4.7", "measured", _prefill, "reproduced", tolerance=0.15,
          side="at least"),
    Claim("hired_keeps_accuracy", HIRED, "Accuracy comparable to the full model's at 20 %: here, at most 5 points lost on places.", 0,
          "points", _QUALITY, "measured", _kept, "reproduced", tolerance=5.0, neutral=float("nan"), side="at least"),
    Claim("hired_over_prumerge", HIRED, "More accurate than PruMerge at the same budget.", 5, "points", _QUALITY,
          "measured", _points("prumerge"), "reproduced", neutral=0.0, side="at least"),
]
