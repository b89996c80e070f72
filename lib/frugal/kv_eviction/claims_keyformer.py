"""Headline numbers of Keyformer (arXiv 2403.09054) and what was found here.

Quality is read from the recorded sweep on SmolLM2; speed is a bound by roofline for MPT-7B at 8,192 tokens, where the
paper measured. Half of the cache can save at most half of the bytes, so a factor above 2 holds something besides
bytes (copies of the cache, the logits, room for a larger batch): the ledger shows the gap and does not tune it away.
"""
import math

from frugal.core.claims import Claim, Evidence
from frugal.core.papers import paper
from frugal.core.recording import load_recorded
from frugal.core.roofline import batch_that_fits, shape, time

__all__ = ["CLAIMS"]

KEYFORMER = paper("keyformer")
MODEL, GPU, CONTEXT = "MPT-7B", "A100-80GB", 8192
_REPOSITORY = "repository d-matrix-ai/keyformer-llm, README: MPT-7B-storywriter, GovReport, 8k, A100"


def _latency() -> Evidence:
    """Time of a step with the whole cache over half of it, at the largest batch that fits the whole."""
    model = shape(MODEL)
    batch = batch_that_fits(model, CONTEXT * model.kv_bytes_per_token(16), GPU)
    full, half = (time(model.decode_cost(CONTEXT, batch, kept=kept), GPU).lower_s for kept in (1.0, 0.5))
    return Evidence(projected=full / half, note=f"bytes alone, batch {batch}; can never reach 2")


def _throughput() -> Evidence:
    """Tokens/s with half the cache at the batch that then fits, over those with the whole at its batch."""
    model, rates = shape(MODEL), []
    for kept in (1.0, 0.5):
        batch = batch_that_fits(model, kept * CONTEXT * model.kv_bytes_per_token(16), GPU)
        rates.append(batch / time(model.decode_cost(CONTEXT, batch, kept=kept), GPU).lower_s)
    return Evidence(projected=rates[1] / rates[0], note="half the cache lets twice the batch in")


def _mean(method: str, budget: float, workload: str, column: str) -> float:
    rows = load_recorded("kv_eviction", "eviction")
    rows = rows[(rows.method == method) & (rows.budget == budget) & (rows.workload == workload) & (rows.error == "")]
    return float(rows[column].mean())


def _quality(budget: float):
    """Perplexity of the full cache as a percentage of Keyformer's, on the continuation of documentation pages."""
    def check() -> Evidence:
        lost = _mean("keyformer", budget, "continuation", "nll") - _mean("full", 1.0, "continuation", "nll")
        return Evidence(measured=100 * math.exp(-lost), note=f"perplexity ratio at {budget:.0%} of the cache")
    return check


def _against_h2o() -> Evidence:
    """Nats a token that Keyformer saves over H2O at half the cache."""
    gain = _mean("h2o", 0.5, "continuation", "nll") - _mean("keyformer", 0.5, "continuation", "nll")
    return Evidence(measured=gain, note="loss of H2O minus loss of Keyformer at 50 %")


CLAIMS = [
    Claim("keyformer_latency", KEYFORMER, "Half the cache makes a token 2.1 times as fast.", 2.1, "x",
          "arXiv 2403.09054, abstract; " + _REPOSITORY, "projected", _latency, "direction holds"),
    Claim("keyformer_throughput", KEYFORMER, "Half the cache raises generation throughput 2.4 times.", 2.4, "x",
          "arXiv 2403.09054, abstract; " + _REPOSITORY, "projected", _throughput, "direction holds"),
    Claim("keyformer_quality", KEYFORMER, "99 % of the full model's quality (summaries) with 70 % of the cache; here at 75 %.",
          99, "%", _REPOSITORY, "measured", _quality(0.75), "reproduced", tolerance=0.02, neutral=77, side="at least"),
    Claim("keyformer_conversation", KEYFORMER, "99 % of the full model's quality (conversation) with 90 % of the cache; here at 75 %.",
          99, "%", _REPOSITORY, "measured", _quality(0.75), "reproduced", tolerance=0.02, neutral=77, side="at least"),
    Claim("keyformer_over_h2o", KEYFORMER, "The noisy score keeps better tokens than H2O's: its loss is lower at half the cache.",
          0.05, "nats", "arXiv 2403.09054, section 5 (direction; the size is ours to find)", "measured", _against_h2o,
          "not reproduced", neutral=0.0, side="at least"),
]
