"""Hallucination, counted without a parser: every object name is one word, and the scene knows what it holds.

CHAIR_I is the share of names said that are not in the scene, CHAIR_S the share of captions with at least one such
name. Neither means anything alone (a model that says one safe name scores 0), so recall, length and repeats stand
beside them, always. The POPE-like test asks yes/no questions about absent names of three kinds.

Source: CHAIR: arXiv 1809.02156, section 3; POPE: arXiv 2305.10355, section 4.
Differs: names are compared as words, no synonym table; "adversarial" absent names are theme-mates of what is there
(POPE: the objects that most often stand beside it in the data set), which is the same thing in these scenes.
"""
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from frugal.core.bootstrap import Interval, interval

ABSENT = ("random", "popular", "adversarial")
COUNTS = ("mentions", "false", "captions", "false_captions", "found", "present", "repeats", "objects")


@dataclass(frozen=True)
class Chair:
    """Figures of a set of captions, each with its interval over scenes.

    chair_i, chair_s: shares (0 to 1). recall: share of the distinct names in the scene that were said. length: names a
    caption. fullness: names said per object there. repeats: share of the names said that say a name again, more
    often than the scene holds it.
    """
    chair_i: Interval
    chair_s: Interval
    recall: Interval
    length: Interval
    fullness: Interval
    repeats: Interval


STATISTICS = {
    "chair_i": lambda s: s["false"] / s["mentions"],
    "chair_s": lambda s: s["false_captions"] / s["captions"],
    "recall": lambda s: s["found"] / s["present"],
    "length": lambda s: s["mentions"] / s["captions"],
    "fullness": lambda s: s["mentions"] / s["objects"],
    "repeats": lambda s: s["repeats"] / s["mentions"],
}


def caption_counts(said: Sequence[str], there: Sequence[str]) -> dict[str, int]:
    """Counts of one caption: names said in order, and the names of the scene's objects (repeats included).

    >>> caption_counts(["fox", "cat", "fox"], ["fox", "owl"])["false"], caption_counts(["fox", "fox"], ["fox"])["repeats"]
    (1, 1)
    """
    truth, spoken = Counter(there), Counter(said)
    false = sum(count for name, count in spoken.items() if name not in truth)
    again = sum(max(0, count - max(1, truth[name])) for name, count in spoken.items())
    return {"mentions": len(said), "false": false, "captions": 1, "false_captions": int(false > 0),
            "found": len(truth.keys() & spoken.keys()), "present": len(truth), "repeats": again, "objects": len(there)}


def count_captions(said: Sequence[Sequence[str]], there: Sequence[Sequence[str]]) -> pd.DataFrame:
    """`caption_counts` of many captions, one row a scene. ValueError when their numbers differ, or for none."""
    if len(said) != len(there) or not len(said):
        raise ValueError(f"{len(said)} captions for {len(there)} scenes: give one caption a scene, at least one")
    return pd.DataFrame([caption_counts(names, truth) for names, truth in zip(said, there)], columns=list(COUNTS))


def chair(counts: pd.DataFrame, **options) -> Chair:
    """The figures of `count_captions`' rows; options: those of `frugal.core.bootstrap.interval`."""
    columns = {name: counts[name].to_numpy() for name in COUNTS}
    return Chair(**{name: interval(columns, statistic, **options) for name, statistic in STATISTICS.items()})


def change(before: pd.DataFrame, after: pd.DataFrame, figure: str = "chair_i", relative: bool = False, **options) -> Interval:
    """after - before of one figure on the same scenes (paired); relative: as a share of before.

    Raises ValueError for an unknown figure, or tables of different scenes.
    """
    if figure not in STATISTICS:
        raise ValueError(f"figure {figure!r}; there are: {', '.join(STATISTICS)}")
    if len(before) != len(after):
        raise ValueError(f"{len(before)} scenes before, {len(after)} after: a paired change needs the same scenes in one order")
    columns = {f"{side}_{name}": table[name].to_numpy() for side, table in (("a", before), ("b", after)) for name in COUNTS}

    def difference(sums):
        old, new = (STATISTICS[figure]({name: sums[f"{side}_{name}"] for name in COUNTS}) for side in "ab")
        return (new - old) / old if relative else new - old
    return interval(columns, difference, **options)


def late_hallucination(said: Sequence[Sequence[str]], there: Sequence[Sequence[str]]) -> pd.DataFrame:
    """CHAIR_I by place in the caption: rows of position (from 1), mentions, false, chair_i with low and high."""
    rows = []
    for position in range(max((len(names) for names in said), default=0)):
        at = [(names[position] not in truth, names) for names, truth in zip(said, there) if len(names) > position]
        wrong = np.array([float(false) for false, _ in at])
        found = interval({"false": wrong, "said": np.ones(len(wrong))}, lambda s: s["false"] / s["said"])
        rows.append((position + 1, len(at), int(wrong.sum()), found.value, found.low, found.high))
    return pd.DataFrame(rows, columns=["position", "mentions", "false", "chair_i", "low", "high"])


# --- yes and no ----------------------------------------------------------------------------------------------------


def absent_names(there: Sequence[str], kind: str, count: int, generator: np.random.Generator, *,
                 themes: Mapping[str, Sequence[str]], popularity: Mapping[str, int]) -> list[str]:
    """`count` distinct names that the scene does not hold.

    kind: "random" (any), "popular" (the most frequent ones) or "adversarial" (theme-mates of what is there; others when
    the theme runs out). themes: theme -> its names; popularity: name -> how often it occurs. ValueError for another kind.
    """
    if kind not in ABSENT:
        raise ValueError(f"kind {kind!r}; allowed: {', '.join(ABSENT)}")
    names = [name for theme in themes.values() for name in theme if name not in set(there)]
    if count > len(names):
        raise ValueError(f"{count} absent names are wanted, only {len(names)} are not in the scene")
    order = [names[i] for i in generator.permutation(len(names))]
    if kind == "popular":
        order.sort(key=lambda name: -popularity.get(name, 0))                # stable: ties stay in random order
    elif kind == "adversarial":
        theme_of = {name: theme for theme, own in themes.items() for name in own}
        weight = Counter(theme_of[name] for name in there)
        order.sort(key=lambda name: -weight[theme_of[name]])
    return order[:count]


POPE_STATISTICS = {
    "accuracy": lambda s: (s["tp"] + s["tn"]) / (s["tp"] + s["tn"] + s["fp"] + s["fn"]),
    "precision": lambda s: s["tp"] / (s["tp"] + s["fp"]),
    "recall": lambda s: s["tp"] / (s["tp"] + s["fn"]),
    "f1": lambda s: 2 * s["tp"] / (2 * s["tp"] + s["fp"] + s["fn"]),
    "yes_rate": lambda s: (s["tp"] + s["fp"]) / (s["tp"] + s["tn"] + s["fp"] + s["fn"]),
}


def count_answers(said_yes: Sequence[Sequence[bool]], is_there: Sequence[Sequence[bool]]) -> pd.DataFrame:
    """Right and wrong answers of each scene: rows of tp, fp, tn, fn. One list of answers a scene."""
    rows = []
    for answers, truths in zip(said_yes, is_there, strict=True):
        pairs = Counter((bool(a), bool(t)) for a, t in zip(answers, truths, strict=True))
        rows.append((pairs[True, True], pairs[True, False], pairs[False, False], pairs[False, True]))
    return pd.DataFrame(rows, columns=["tp", "fp", "tn", "fn"])


def pope(counts: pd.DataFrame, **options) -> dict[str, Interval]:
    """accuracy, precision, recall, f1 and yes_rate of `count_answers`' rows, with intervals over scenes."""
    columns = {name: counts[name].to_numpy() for name in ("tp", "fp", "tn", "fn")}
    return {name: interval(columns, statistic, **options) for name, statistic in POPE_STATISTICS.items()}
