"""Headline numbers of the exit baselines, CALM (arXiv 2207.07061) and LayerSkip (arXiv 2404.16710), and what was found here.

Read from the recorded rows of recipes/record_exits.py. CPU time is that of one thread, against the whole model timed just
before in the same process; weights read are counted where they are read.
"""
import pandas as pd

from frugal.core.claims import Claim, Evidence
from frugal.core.recording import load_recorded
from frugal.early_exit.fixed_exit import CALM
from frugal.early_exit.self_speculative import SelfSpeculative
from frugal.early_exit.workloads import MINI_LM, SMOLLM2

__all__ = ["CLAIMS"]
SAME = 0.95                              # "while maintaining high performance": share of tokens as the whole model's


def faithful_exits(model: str) -> pd.DataFrame:
    """Settings of confident exit, one sequence, that say what the whole model says on 95 % of tokens."""
    rows = load_recorded("early_exit", "confidence")
    rows = rows[(rows.model == model) & (rows.batch == 1) & (rows.method != "whole model")]
    return rows[rows.agreement >= SAME]


def _calm() -> Evidence:
    kept = faithful_exits(SMOLLM2)
    if not len(kept):
        return Evidence(measured=1.0, note=f"SmolLM2: no setting says what the whole model says on {SAME:.0%} of tokens, so none is faster")
    best = kept.loc[kept.cpu_ratio.idxmin()]
    return Evidence(measured=1 / best.cpu_ratio, note=f"SmolLM2, ridge lens, best of {len(kept)} settings with {SAME:.0%} of tokens as before "
                                                      f"({best.method}): leaves after {best.exit_layer:.1f} of 30 layers, the head is read "
                                                      f"{best.head_calls:.1f} times a token and costs 8 layers each time")


def drafts(model: str) -> pd.Series | None:
    """The cheapest recorded way to draft, by weights read; None where this model was not recorded."""
    rows = load_recorded("early_exit", "self_speculative")
    own = rows[rows.model == model]
    if not len(own):
        return None
    mean = own.groupby(["lens", "exit", "gamma"])[["bytes_ratio", "flops_ratio", "acceptance"]].mean().reset_index()
    return mean.loc[mean.bytes_ratio.idxmin()]


def _draft_claim(model: str, words: str):
    def check() -> Evidence | None:
        best = drafts(model)
        if best is None:
            return None
        return Evidence(measured=1 / best.bytes_ratio, note=f"{words}; counted in weights read, {best.exit:.0f} layers draft {best.gamma:.0f} tokens, "
                                                            f"{best.acceptance:.0%} hold; {best.flops_ratio:.2f} times the FLOPs")
    return check


CLAIMS = [
    Claim("calm_speedup", CALM, "confident exit is up to 3 times as fast at the same quality", 3, "x",
          "arXiv 2207.07061, abstract (T5 with 8 layers, fine-tuned for three tasks)", "measured", _calm, "not reproduced"),
    Claim("layerskip_untrained", SelfSpeculative.paper, "drafting with the first layers is up to 2.16 times as fast; here on a model not "
          "trained for it", 2.16, "x", "arXiv 2404.16710, abstract (CNN/DM summaries)", "counted",
          _draft_claim(SMOLLM2, "SmolLM2 as it is"), "not reproduced"),
    Claim("layerskip_trained", SelfSpeculative.paper, "drafting with the first layers is up to 1.82 times as fast on code", 1.82, "x",
          "arXiv 2404.16710, abstract (coding)", "counted",
          _draft_claim(MINI_LM, "mini-LM trained with random depths, Python code"), "direction holds"),
]
