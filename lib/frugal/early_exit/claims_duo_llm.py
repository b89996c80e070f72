"""Headline findings of Duo-LLM (arXiv 2410.10846), checked on the recorded runs of the Duo-LM.

The paper's findings are directions, hence values like "better than all big by more than 0 nats". All losses are those
of the exact oracle: texts that were really run so. A test recomputes part of the recorded rows from the weights.
"""

import numpy as np
import pandas as pd

from frugal.core.claims import Claim, Evidence
from frugal.core.papers import paper
from frugal.core.recording import load_recorded

__all__ = ["CLAIMS", "best_budget", "router_place"]

DUO = paper("duo_llm")
ABSTRACT, READ = "arXiv 2410.10846, abstract", "arXiv 2410.10846, from a third-party reading"


def _loss(rows: pd.DataFrame, method: str, budget: int) -> float:
    return float(rows[(rows["method"] == method) & (rows["budget_layers"] == budget)]["loss"].iloc[0])


def _curve() -> pd.DataFrame:
    return load_recorded("early_exit", "duo_curve")


def _one_big_layer() -> Evidence:
    rows = _curve()
    whole, one = _loss(rows, "first layers", 6), _loss(rows, "oracle, exact", 1)
    control, fixed = _loss(rows, "all big, perturbed", 1), _loss(rows, "best fixed pattern", 1)
    texts = load_recorded("early_exit", "duo_strip").groupby("text")[["all_big", "exact_1"]].mean()
    each = (texts["all_big"] - texts["exact_1"]).tolist()
    return Evidence(
        round(whole - one, 3),
        note=f"all big {whole:.3f}, one big layer {one:.3f} nats a token, by an oracle that sees the answer. "
        f"Control: the best of 6 dropout masks ({rows['dropout'].iloc[0]}) of all big, picked alike, {control:.3f}; "
        f"one fixed big layer {fixed:.3f}. Gain on three single texts: {', '.join(f'{one:.2f}' for one in each)}",
    )


def _beyond_selection() -> Evidence:
    rows = _curve()
    one, control = _loss(rows, "oracle, exact", 1), _loss(rows, "all big, perturbed", 1)
    three, control3 = _loss(rows, "oracle, exact", 3), _loss(rows, "all big, perturbed", 3)
    skip = load_recorded("early_exit", "duo_skip")
    none, whole = _loss(skip, "big, small or skip", 0), _loss(skip, "big or small", 6)
    return Evidence(
        round(control - one, 3),
        note=f"control minus oracle, 6 candidates each; with 20 candidates (three big layers) "
        f"{control3 - three:+.3f}. What a minimum over many patterns does alone: with no big network, the best of 64 "
        f"ways to run small or nothing has {none:.2f} nats, all big {whole:.2f} (uniform oracle, 4 windows)",
    )


def best_budget(rows: pd.DataFrame, method: str = "oracle, exact") -> int:
    """The number of big layers at which a method's loss is lowest."""
    own = rows[rows["method"] == method]
    return int(own.loc[own["loss"].idxmin(), "budget_layers"])


def _half_is_best() -> Evidence:
    rows = _curve()
    exact, uniform = best_budget(rows), best_budget(rows, "oracle, uniform")
    return Evidence(
        round(100 * exact / 6, 1),
        note=f"{exact} of 6 layers (uniform oracle: {uniform}); three have the most patterns, 20 of 64",
    )


def router_place(rows: pd.DataFrame) -> list[float]:
    """For each trained router: 0 where random routing of equal budget is, 1 where the exact oracle is."""
    budgets = list(range(7))
    line = {method: [_loss(rows, method, k) for k in budgets] for method in ("random", "oracle, exact")}
    out = []
    for own in rows[rows["method"] == "router"].itertuples():
        by_chance, best = (np.interp(own.big_layers, budgets, line[method]) for method in ("random", "oracle, exact"))
        out.append(float((by_chance - own.loss) / (by_chance - best)))
    return out


def _router_is_random() -> Evidence:
    places = router_place(_curve())
    return Evidence(
        round(float(np.mean(places)), 3),
        note=f"mean of {len(places)} routers, {min(places):.2f} to {max(places):.2f}; "
        "0 is random routing of the same budget, 1 the exact oracle",
    )


def _share(budget: int, layer: slice, by: str = "oracle") -> np.ndarray:
    rows = load_recorded("early_exit", "duo_picks")
    own = rows[(rows["by"] == by) & (rows["budget_layers"] == budget)].sort_values("layer")
    return own["share"].to_numpy()[layer]


def _late_when_tight() -> Evidence:
    every = _share(1, slice(None))
    return Evidence(
        round(100 * float(every[3:].sum()), 1),
        note="one big layer: share of tokens that want it in layers 3-5; by layer "
        + ", ".join(f"{one:.2f}" for one in every),
    )


def _early_when_loose() -> Evidence:
    small = 1 - _share(5, slice(None))
    return Evidence(
        round(100 * float(small[3:].sum()), 1),
        note="five big layers: share of tokens whose one small layer is in layers 3-5, so that "
        "the big ones come first; by layer " + ", ".join(f"{one:.2f}" for one in small),
    )


def _start_uses_more() -> Evidence:
    rows = load_recorded("early_exit", "duo_positions").sort_values("start")
    first, last = rows.iloc[0], rows.iloc[-1]
    return Evidence(
        round(float(first.big_layers / last.big_layers), 3),
        note=f"{first.big_layers:.2f} [{first.low:.2f}, {first.high:.2f}] big layers at "
        f"tokens 0-{first.stop - 1}, {last.big_layers:.2f} [{last.low:.2f}, {last.high:.2f}] at "
        f"{last.start}-{last.stop - 1}; our windows begin in the middle of a file, a weak test of the claim",
    )


CLAIMS = [
    Claim(
        "duo_one_big_layer",
        DUO,
        "A big module in one layer, placed by the oracle, beats big modules in all layers",
        0,
        "nats",
        ABSTRACT,
        "measured",
        _one_big_layer,
        "reproduced",
        tolerance=0,
        side="at least",
    ),
    Claim(
        "duo_beyond_selection",
        DUO,
        "... and by more than the best of as many random perturbations of all big (our control)",
        0,
        "nats",
        ABSTRACT,
        "measured",
        _beyond_selection,
        "not reproduced",
        tolerance=0,
        side="at least",
    ),
    Claim(
        "duo_best_budget",
        DUO,
        "The oracle is best with big modules in half of the layers, 6 of 12",
        50,
        "%",
        READ,
        "measured",
        _half_is_best,
        "reproduced",
        neutral=100,
    ),
    Claim(
        "duo_router_random",
        DUO,
        "Trained routers resemble random patterns, not the oracle (0 is random, 1 the oracle)",
        0,
        "share",
        ABSTRACT,
        "measured",
        _router_is_random,
        "reproduced",
        tolerance=0.25,
        neutral=1,
    ),
    Claim(
        "duo_late_when_tight",
        DUO,
        "Under a tight budget the oracle puts big modules late",
        50,
        "%",
        READ,
        "measured",
        _late_when_tight,
        "reproduced",
        tolerance=0,
        neutral=float("nan"),
        side="at least",
    ),
    Claim(
        "duo_early_when_loose",
        DUO,
        "Under a loose budget it puts them early, so that what stays small is late",
        50,
        "%",
        READ,
        "measured",
        _early_when_loose,
        "reproduced",
        tolerance=0,
        neutral=float("nan"),
        side="at least",
    ),
    Claim(
        "duo_start_uses_more",
        DUO,
        "Tokens at the start of a sequence use more big modules",
        1,
        "x",
        READ,
        "measured",
        _start_uses_more,
        "not reproduced",
        tolerance=0,
        neutral=float("nan"),
        side="at least",
    ),
]
