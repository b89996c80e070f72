"""The family's figures by name, ready to draw: what `frugal reproduce` writes and notebook 02 shows."""
import json
from collections.abc import Callable
from functools import lru_cache
from importlib import resources
from typing import Any

import pandas as pd

from frugal.core.recording import load_recorded
from frugal.explore import Explorer, choice, explore
from frugal.token_dropping import figures_buys as buys
from frugal.token_dropping import figures_hired as hired
from frugal.token_dropping import figures_keep as kept
from frugal.token_dropping import figures_steering, results

VIEWED = tuple(range(5))         # scenes of the viewer


@lru_cache(maxsize=1)
def scene_rows() -> pd.DataFrame:
    """The recorded sweep: recipes/record_token_dropping.py makes it."""
    return load_recorded("token_dropping", "scenes")


@lru_cache(maxsize=1)
def scores() -> pd.DataFrame:
    """Shares and intervals of the sweep, with the encoder's own work in `attrs`."""
    table = results.averaged(scene_rows())
    table.attrs["encoder_flops"] = float(load_recorded("token_dropping", "encoder").flops.iloc[0])
    return table


def declared(rows: pd.DataFrame) -> dict[str, Any]:
    """The declaration that rebuilds these rows."""
    return {"family": "token_dropping", "sweeps": [
        {"workload": workload, "methods": list(part.method.unique()), "budgets": sorted(part.budget.unique().tolist()),
         "seeds": sorted(part.seed.unique().tolist())} for workload, part in rows.groupby("workload", sort=False)]}


def keep_data() -> dict[str, Any]:
    """Recorded scenes with their CLS maps and captions, by the same recipe."""
    text = resources.files("frugal.token_dropping").joinpath("assets/keep_scenes.json").read_text(encoding="utf-8")
    return json.loads(text)


def budget_curve() -> Explorer:
    rows = scene_rows()
    methods = ["hired", *(m for m in rows.method.unique() if m not in ("hired", "full"))]
    return explore(hired.budget_curve, scores(),
                   score=["small", *(s for s in results.SCORES if s != "small")], method=methods, sweep=declared(rows))


def win_board() -> Explorer:
    rows = scene_rows()
    table = results.board(rows)
    others = ["spatial_pool", *(m for m in table.against.unique() if m != "spatial_pool")]
    return explore(hired.win_board, table, against=choice(others, "HiRED against"), sweep=declared(rows))


def cost_panel() -> Explorer:
    rows = scene_rows()
    table = scores()
    ran = table[table.error == ""]
    ran.attrs = dict(table.attrs)
    return explore(hired.cost_panel, ran, encoder=["decoder alone", "with the encoder"], sweep=declared(rows))


def variants() -> Explorer:
    rows = load_recorded("token_dropping", "variants")
    return explore(hired.variants, rows, score=list(rows.score.unique()))


def keep_picture() -> Explorer:
    data = keep_data()
    labels = [f"{i + 1}: {' '.join(scene['names'])}" for i, scene in enumerate(data["scenes"])]
    return explore(kept.keep_picture, data, scene=choice([str(i + 1) for i in range(len(labels))], "Scene", texts=labels),
                   budget=choice(data["budgets"], "Tokens kept", texts=[f"{b:.0%}" for b in data["budgets"]]),
                   alpha=choice(data["alphas"], "Overview's share (alpha)"))


def scene_viewer() -> Explorer:
    return explore(kept.scene_viewer, list(VIEWED), seed=choice(VIEWED, "Scene"), view=["scene", "overview"])


def drop_buys() -> Explorer:
    return explore(buys.drop_buys, load_recorded("token_dropping", "drop_buys"))


def answer_length() -> Explorer:
    rows = load_recorded("token_dropping", "drop_buys")
    return explore(buys.answer_length, rows, visual_tok=choice([c for c in buys.COUNTS if c < buys.COUNTS[0]],
                                                               "Visual tokens kept", default=576))


FIGURES: dict[str, Callable[[], Explorer]] = {
    make.__name__: make
    for make in (budget_curve, win_board, cost_panel, variants, keep_picture, scene_viewer, drop_buys, answer_length)
} | figures_steering.FIGURES
globals().update(figures_steering.FIGURES)
