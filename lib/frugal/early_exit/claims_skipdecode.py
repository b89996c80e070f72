"""Headline numbers of SkipDecode (arXiv 2307.02628) and what was found here.

Speed and loss are read from the recorded runs on the mini-LM, which was trained for skipping; beside the speed stands a
bound by roofline for a model of OPT-6.7B's sizes, one of the two that the paper ran.
"""
from frugal.core.claims import Claim, Evidence
from frugal.core.papers import paper
from frugal.core.recording import load_recorded
from frugal.core.roofline import shape, time
from frugal.early_exit.workloads import MINI_LM, SMOLLM2

__all__ = ["CLAIMS"]

SKIPDECODE, ABSTRACT = paper("skipdecode"), "arXiv 2307.02628, abstract"
GPU, CONTEXT_TOK, BATCH = "A100-80GB", 512, 8
OPT_6B7 = shape("MPT-7B").scaled(vocab_size=50272)          # same 32 layers, width 4096, heads, MLP; tied head


def _bound(speedup: float) -> float:
    """Time of a step at full depth over that at the mean depth, by roofline."""
    def seconds(layers: int) -> float:
        return time(OPT_6B7.scaled(num_layers=layers).decode_cost(CONTEXT_TOK, BATCH), GPU).lower_s
    return seconds(32) / seconds(round(32 / speedup))


def _speed(speedup: float):
    def check() -> Evidence:
        rows = load_recorded("early_exit", "skip_speed")
        own = rows[(rows.model == MINI_LM) & (rows.method == "skipdecode") & (rows.setting == speedup)].set_index("batch")
        return Evidence(measured=float(own.cpu_ratio[1]), projected=_bound(speedup),
                        note=f"CPU time, batch 1; batch 8: {own.cpu_ratio[8]:.2f}; {own.layers[1]:.1f} of 12 layers")
    return check


def _lost(speedup: float, model: str = MINI_LM, method: str = "skipdecode") -> float:
    rows = load_recorded("early_exit", "skip_quality")
    return float(rows[(rows.model == model) & (rows.method == method) & (rows.speedup == speedup)].lost_nats.mean())


def _regression(speedup: float, model: str = MINI_LM):
    def check() -> Evidence:
        return Evidence(measured=_lost(speedup, model), note="loss added on held-out text; negligible is taken as 0.05 nats")
    return check


def _better_than_leaving() -> Evidence:
    """Loss that early termination adds on the same schedule, minus what SkipDecode adds, at target 2."""
    return Evidence(measured=_lost(2.0, method="early_termination") - _lost(2.0),
                    note="early termination minus SkipDecode, mean depth 6 of 12; the model is trained for both")


def _better_than_flat() -> Evidence:
    """Loss that one depth for all positions adds, minus what the falling depth adds, at target 2."""
    return Evidence(measured=_lost(2.0, method="skipdecode, flat") - _lost(2.0), note="one depth minus falling depth, 6 of 12 layers each")


def _batch_keeps() -> Evidence:
    """Layers run a token in a batch of eight over those of a batch of one, at target 2."""
    rows = load_recorded("early_exit", "skip_speed")
    runs = rows[rows.model == MINI_LM].set_index(["method", "setting", "batch"]).layers
    ours, calm = (runs[name, knob, 8] / runs[name, knob, 1] for name, knob in (("skipdecode", 2.0), ("confidence_exit", 0.1)))
    return Evidence(measured=float(ours), note=f"confident exit at 0.1: {calm:.2f} times the layers in a batch of eight")


CLAIMS = [
    Claim("skipdecode_2x", SKIPDECODE, "A target of 2 makes generation twice as fast.", 2.0, "x", ABSTRACT, "measured", _speed(2.0),
          "direction holds", side="at least"),
    Claim("skipdecode_2x_loss", SKIPDECODE, "At 2x the regression is negligible.", 0.0, "nats", ABSTRACT, "measured", _regression(2.0),
          "not reproduced", tolerance=0.05, side="at most"),
    Claim("skipdecode_5x", SKIPDECODE, "A target of 5 makes generation five times as fast.", 5.0, "x", ABSTRACT, "measured", _speed(5.0),
          "direction holds", side="at least"),
    Claim("skipdecode_5x_loss", SKIPDECODE, "At 5x the regression is negligible.", 0.0, "nats", ABSTRACT, "measured", _regression(5.0),
          "not reproduced", tolerance=0.05, side="at most"),
    Claim("skipdecode_batching", SKIPDECODE, "All sequences of a batch run the same layers: nobody waits for the deepest one.", 1.0, "x",
          ABSTRACT, "counted", _batch_keeps, "reproduced", tolerance=0.01, side="at most"),
    Claim("skipdecode_untrained", SKIPDECODE, "At 2x the regression is negligible, on a model that was not trained for it (SmolLM2, bridges).",
          0.0, "nats", ABSTRACT + " (the paper fine-tunes)", "measured", _regression(2.0, SMOLLM2), "not reproduced", tolerance=0.05,
          side="at most"),
    Claim("skipdecode_over_termination", SKIPDECODE, "Skipping the middle loses less than leaving early on the same schedule (2x).", 0.05,
          "nats", "arXiv 2307.02628, section 4 (direction; the size is ours to find)", "measured", _better_than_leaving, "reproduced",
          neutral=0.0, side="at least"),
    Claim("skipdecode_falling", SKIPDECODE, "A depth that falls along the text loses less than one depth for all positions (2x).", 0.01,
          "nats", "arXiv 2307.02628, section 3 (direction; the size is ours to find)", "measured", _better_than_flat, "not reproduced",
          neutral=0.0, side="at least"),
]
