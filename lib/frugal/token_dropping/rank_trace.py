"""The hidden life of tokens: where true, hidden and invented names stand in the ranking, step by step, layer by layer.

Every state is read through the final norm and the output matrix (the logit lens), and the names of the scene are ranked.
Here the sets are known exactly: *decoded true* (in the scene and said), *hidden true* (in the scene, never said),
*hallucinated* (said, not in the scene), and as reference *absent* (neither). A name loses rank once it is said, for a
reason that has nothing to do with fading sight; so "true, still to come" counts the decoded true names until they are said.

Source: arXiv 2502.03628, section 3.
Differs: exact sets instead of parsed captions; a fourth and fifth set as controls; ranks among all words, 1 is the top.
"""
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from frugal.core.bootstrap import Interval, interval
from frugal.core.lm import LM
from frugal.data.scene_text import NAMES
from frugal.token_dropping.steering import Greedy, StepView, decode
from frugal.token_dropping.steering_measure import MAX_NAMES, WORDS

SETS = ("decoded true", "true, still to come", "hidden true", "hallucinated", "absent")


def ranks(logits: Float[Tensor, "*b v"]) -> Int[Tensor, "*b v"]:
    """Rank of every token, 1 for the largest logit; ties go to the lower id."""
    return logits.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1) + 1


def rank_of(token_set: Sequence[int], logits: Float[Tensor, "v"]) -> float:
    """Mean rank of these tokens among all, 1 is the top; NaN for an empty set.

    >>> rank_of([0, 2], torch.tensor([3.0, 1.0, 2.0]))
    1.5
    """
    return float(ranks(logits)[list(token_set)].float().mean()) if len(token_set) else float("nan")


@dataclass(frozen=True)
class Trace:
    """ranks (steps, B, L, V) through the lens; said: names' ids by scene; chance (steps, B, V): the last layer's softmax."""
    ranks: Int[Tensor, "t b l v"]
    chance: Float[Tensor, "t b v"]
    said: list[list[int]]


def lens_ranks(lm: LM, states: Sequence[Tensor]) -> Int[Tensor, "b l v"]:
    """Ranks of all tokens after every layer, from the states (B, d) after the embedding and after each layer."""
    return ranks(lm.unembed(torch.stack(list(states[1:]), dim=1)))


def trace(vlm, seen, prompt: Int[Tensor, "b t"], method=None, prefix=None) -> Trace:
    """A caption of each scene with the ranks at every step, the one that chose the end token included."""
    found, chance = [], []

    def look(step: StepView) -> None:
        found.append(lens_ranks(vlm.lm, step.hidden))
        chance.append(step.logits.softmax(-1))
    begun = (method or Greedy()).begin(vlm, seen, prompt, prefix)
    said = decode(begun, prompt, MAX_NAMES, WORDS.eos_id, on_step=look, hidden=True)
    return Trace(torch.stack(found), torch.stack(chance), said)


def name_sets(said: Sequence[int], there: Sequence[int], step: int) -> dict[str, list[int]]:
    """The five sets of one caption, as sorted token ids; `step` decides what is still to come."""
    truth, spoken, before = set(there), set(said), set(said[:step])
    every = {WORDS.ids[name] for name in NAMES}
    found = {"decoded true": truth & spoken, "true, still to come": (truth & spoken) - before, "hidden true": truth - spoken,
             "hallucinated": (spoken - truth) & every, "absent": every - truth - spoken}
    return {name: sorted(ids) for name, ids in found.items()}


def rank_rows(found: Trace, there: Sequence[Sequence[int]], first_scene: int = 0) -> pd.DataFrame:
    """One row a scene, step, layer and set that is not empty: mean rank, number of names, steps of the caption, and
    `above_absent`, the share of absent names that these stand above (0.5 is chance)."""
    rows = []
    for b, (said, truth) in enumerate(zip(found.said, there)):
        for step in range(min(len(said) + 1, len(found.ranks))):
            sets, place = name_sets(said, truth, step), found.ranks[step, b].numpy()        # (L, V)
            absent = np.sort(place[:, sets["absent"]], axis=1)
            for name, ids in sets.items():
                if not ids:
                    continue
                own = place[:, ids]
                above = [1 - np.searchsorted(absent[layer], own[layer]).mean() / absent.shape[1] for layer in range(len(place))]
                rows += [(first_scene + b, step, layer, name, own[layer].mean(), len(ids), len(said), above[layer])
                         for layer in range(len(place))]
    return pd.DataFrame(rows, columns=["scene", "step", "layer", "set", "rank", "names", "length", "above_absent"])


def mean_ranks(rows: pd.DataFrame, by: str) -> pd.DataFrame:
    """Mean rank of each set against "step" (at the last layer) or "layer" (over all steps), with intervals over scenes."""
    if by not in ("step", "layer"):
        raise ValueError(f"by must be 'step' or 'layer', got {by!r}")
    rows = rows[rows.layer == rows.layer.max()] if by == "step" else rows
    out = []
    for (name, at), own in rows.groupby(["set", by], sort=False):
        found = _scene_mean(own, "rank")
        out.append((name, int(at), found.value, found.low, found.high, own.scene.nunique()))
    return pd.DataFrame(out, columns=["set", by, "rank", "low", "high", "scenes"])


def _scene_mean(rows: pd.DataFrame, column: str) -> Interval:
    """Mean over scenes of a column's mean in each scene."""
    return _mean(rows.groupby("scene")[column].mean().to_numpy())


def _mean(values: np.ndarray) -> Interval:
    """Mean of one number a scene; NaN where no scene has one."""
    if not len(values):
        return Interval(float("nan"), float("nan"), float("nan"))
    return interval({"sum": values, "count": np.ones(len(values))}, lambda s: s["sum"] / s["count"])


def rank_loss(rows: pd.DataFrame, name: str) -> Interval:
    """Finding 1: places that a set's mean rank loses from the first step to the last naming step, last layer."""
    own = rows[(rows.set == name) & (rows.layer == rows.layer.max()) & (rows.step < rows.length)]
    ends = own.sort_values("step").groupby("scene")["rank"].agg(["first", "last", "count"])
    ends = ends[ends["count"] > 1]
    return _mean((ends["last"] - ends["first"]).to_numpy())


def early_peak(rows: pd.DataFrame, name: str = "true, still to come") -> tuple[Interval, int]:
    """Finding 2: places by which a set stands better in its best layer before the last than in the last, and that layer.

    The layer is chosen on the even scenes and judged on the odd ones, so that choosing the best cannot make an effect.
    """
    own = rows[rows.set == name].pivot_table(index="scene", columns="layer", values="rank")
    even, odd = own[own.index % 2 == 0], own[own.index % 2 == 1]
    if not len(even):
        return _mean(np.empty(0)), -1
    last = own.columns.max()
    best = int(even.drop(columns=last).mean().idxmin())
    return _mean((odd[last] - odd[best]).to_numpy()), best


def hidden_above_absent(rows: pd.DataFrame, name: str = "hidden true") -> Interval:
    """Finding 3: share of absent names that a hidden true name stands above, last layer, all steps; 0.5 is chance."""
    own = rows[(rows.set == name) & (rows.layer == rows.layer.max()) & (rows.step < rows.length)]
    return _scene_mean(own, "above_absent")
