"""The family's figures by name, ready to draw: what `frugal reproduce` writes and notebook 03 shows."""
from collections.abc import Callable

from frugal.early_exit import figures_duo_llm as duo_llm
from frugal.early_exit import figures_exits as exits
from frugal.early_exit import figures_r2r as r2r
from frugal.early_exit import figures_skipdecode as skipdecode
from frugal.early_exit.workloads import MINI_LM, SMOLLM2
from frugal.explore import Explorer, choice, explore

MODEL_TEXTS = {SMOLLM2: "SmolLM2-135M", MINI_LM: "mini-LM"}


def models_of(rows):
    """A control over the models that are in the rows."""
    names = [name for name in MODEL_TEXTS if name in set(rows.model)]
    return choice(names, "Model", texts=[MODEL_TEXTS[name] for name in names])


def depth_grid() -> Explorer:
    rows = exits.recorded("depth_cells")
    planned, asked = (rows[rows.method.str.startswith("confidence") == flag] for flag in (False, True))
    return explore(exits.depth_grid, rows, model=models_of(rows),
                   speedup=choice(sorted(planned.knob.unique()), "Target speed-up", "times"),
                   threshold=choice(sorted(asked.knob.unique()), "Confidence threshold"),
                   missing=choice(["keys copied", "recomputed"], "Missing keys"))


def lens_layers() -> Explorer:
    return explore(exits.lens_layers, exits.recorded("lens_layers"), quantity=choice(
        list(exits.QUANTITIES), "Quantity", texts=[words for _, words in exits.QUANTITIES.values()]))


def bridge_jumps() -> Explorer:
    return explore(exits.bridge_jumps, exits.recorded("bridge_jumps"))


def exits_curve() -> Explorer:
    rows = exits.recorded("exits")
    names = [name for name in exits.WORKLOAD_NAMES if name in set(rows.workload)]
    return explore(exits.exits_curve, rows, workload=choice(names, "Text", texts=[exits.WORKLOAD_NAMES[n] for n in names]),
                   cost=choice(list(exits.COSTS), "Cost", texts=list(exits.COSTS.values())),
                   score=choice(list(exits.SCORES), "Quality", texts=list(exits.SCORES.values())))


def head_charged() -> Explorer:
    rows = exits.recorded("confidence")
    thresholds = sorted(rows[rows.method.str.startswith("gap")].threshold.unique())
    return explore(exits.head_charged, rows, model=models_of(rows), threshold=choice(thresholds, "Threshold"))


def batch_wait() -> Explorer:
    rows = exits.recorded("confidence")
    return explore(exits.batch_wait, rows, model=models_of(rows))


def drafting() -> Explorer:
    rows = exits.recorded("self_speculative")
    return explore(exits.drafting, rows, model=models_of(rows), against=choice(
        ["bytes_ratio", "flops_ratio", "acceptance"], "Against", texts=["weights read", "FLOPs", "acceptance"]))


OWN = (depth_grid, lens_layers, bridge_jumps, exits_curve, head_charged, batch_wait, drafting)
FIGURES: dict[str, Callable[[], Explorer]] = ({make.__name__: make for make in OWN} | skipdecode.FIGURES | duo_llm.FIGURES
                                              | r2r.FIGURES)
