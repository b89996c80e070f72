"""Figures of FlexTok: scores and pictures against the number of codes, time, labels, Euler steps, the prefix mask.

Rows: `recorded/flextok_*.json` (written by recipes/record_flextok.py), or the functions of `flextok_measure` that make them.
"""
from collections.abc import Callable

import pandas as pd
import plotly.graph_objects as go

from frugal.core.masks import prefix_causal
from frugal.core.recording import load_recorded
from frugal.explore import Explorer, choice, explore, select
from frugal.explore.pictures import image_board, layer_grid
from frugal.explore.pictures.stored import from_text
from frugal.explore.theme import blank, styles

__all__ = ["FIGURES", "kept_curve", "label_curve", "pictures_board", "prefix_mask", "recorded", "steps_curve", "time_curve"]

SCORES = {"psnr": "PSNR, held out (dB)", "elpips": "eLPIPS, held out", "refid": "r-eFID, all emoji",
          "seed_std": "pixel deviation over seeds"}
BASELINES = ("PCA, real numbers", "TiTok-16 cut", "VQ grid 4 x 4 cut")
LABELS = {"drawn": "FlexTok, one draw", "average of 4": "FlexTok, average of 4 draws", "one step": "FlexTok, mean (one step)"}
GUESSES = {"group": 1 / 9, "subgroup": 1 / 99}


def recorded(name: str) -> pd.DataFrame:
    """The recorded rows "flextok_kept", "flextok_pictures", "flextok_time", "flextok_labels" or "flextok_steps"."""
    return load_recorded("visual_tokenizers", name)


def kept_curve(rows: pd.DataFrame, score: str = "psnr") -> go.Figure:
    """A score against the codes that are kept, for FlexTok's three ways to decode and for what it is compared with."""
    if score not in SCORES:
        raise ValueError(f"score={score!r}; there are {', '.join(SCORES)}")
    own = rows[rows[score].notna()]
    fig = blank(f"What k codes are worth: {SCORES[score]}", "codes kept (k)", SCORES[score])
    look = styles(list(dict.fromkeys(rows["what"])), BASELINES)
    for what in dict.fromkeys(own["what"]):
        line = own[own["what"] == what].sort_values("k")
        error = {"type": "data", "array": 2 * line["psnr_se"], "thickness": 1, "width": 3} if score == "psnr" else None
        fig.add_scatter(x=line["k"], y=line[score], name=LABELS.get(what, what), mode="lines+markers", line=look[what].line,
                        marker=look[what].points, error_y=error, customdata=line["bits"],
                        hovertemplate="%{x} codes, %{customdata:.0f} bits: %{y:.3f}<extra>" + LABELS.get(what, what) + "</extra>")
    return fig.update_xaxes(type="log", tickvals=sorted(rows["k"].unique()))


def pictures_board(rows: pd.DataFrame, emoji: str) -> go.Figure:
    """k = 1, 2, 4, 8, 16 from left to right, a row for every seed of the noise. In front the original, and what one step of
    the decoder gives for one and for all codes: the mean of what it could draw."""
    own = select(rows, emoji=emoji)
    kept, seeds = sorted(set(own["k"]) - {0}), sorted(set(own["seed"]) - {-1})
    front = [(0, "original"), (kept[0], f"mean at k = {kept[0]}"), (kept[-1], f"mean at k = {kept[-1]}")]
    pictures, captions = [], []
    for (place, caption), seed in zip(front, seeds):
        pictures.append(_picture(own, place, -1)), captions.append(caption)
        for k in kept:
            row = own[(own["k"] == k) & (own["seed"] == seed)].iloc[0]
            pictures.append(from_text(row["png"])), captions.append(f"k = {k}: {row['psnr']:.1f} dB")
    held = "held out" if bool(own["held_out"].iloc[0]) else "a training picture"
    return image_board(pictures, captions, title=f"{emoji} ({held}): the first k of 16 codes, three seeds", columns=1 + len(kept))


def _picture(rows: pd.DataFrame, k: int, seed: int):
    return from_text(rows[(rows["k"] == k) & (rows["seed"] == seed)]["png"].iloc[0])


def time_curve(rows: pd.DataFrame) -> go.Figure:
    """Processor time of one picture: writing k codes stops after k steps, decoding them costs the same for every k."""
    rows = rows.sort_values("k")
    fig = blank("Fewer codes save writing, not drawing", "codes (k)", "processor time of one picture (ms)")
    look = styles(["writing the codes", "drawing, 20 Euler steps"], ())
    for name, column in (("writing the codes", "write_ms"), ("drawing, 20 Euler steps", "draw_ms")):
        flops = rows[column.replace("_ms", "_flops")] / 1e6
        fig.add_scatter(x=rows["k"], y=rows[column], mode="lines+markers", name=name, line=look[name].line, marker=look[name].points,
                        customdata=flops, hovertemplate="%{x} codes: %{y:.1f} ms, %{customdata:.0f} million FLOPs<extra></extra>")
    return fig.update_xaxes(tickvals=list(rows["k"])).update_yaxes(rangemode="tozero")


def label_curve(rows: pd.DataFrame, codes: str = "its own") -> go.Figure:
    """How often the drawn picture is what it should be, by EmojiNet. codes: "its own" (a picture's, cut) or "written", with
    the copy rate in the legend."""
    own = select(rows, codes=codes)
    title = "How many codes until it is recognised" if codes == "its own" else "Written codes: is the asked kind drawn?"
    fig = blank(title, "codes (k)", "recognised (share)")
    look = styles(["group", "subgroup", "name"], ())
    for condition in dict.fromkeys(own["condition"]):
        line = own[own["condition"] == condition].sort_values("k")
        name = f"{condition} (chance {GUESSES[condition]:.0%})" if condition in GUESSES else f"{condition} (among all emoji)"
        if codes == "written":
            name += f", copies up to {line['copies'].max():.1%}"
        fig.add_scatter(x=line["k"], y=line["accuracy"], mode="lines+markers", name=name, line=look[condition].line,
                        marker=look[condition].points)
    return fig.update_xaxes(type="log", tickvals=sorted(own["k"].unique())).update_yaxes(range=[0, 1])


def steps_curve(rows: pd.DataFrame, score: str = "elpips") -> go.Figure:
    """A score against the number of Euler steps, a line for every k. score: "psnr" or "elpips"."""
    fig = blank(f"What Euler steps add: {SCORES[score]}", "Euler steps", SCORES[score])
    look = styles([str(k) for k in sorted(rows["k"].unique())], ())
    for k in sorted(rows["k"].unique()):
        line = rows[rows["k"] == k].sort_values("num_steps")
        fig.add_scatter(x=line["num_steps"], y=line[score], mode="lines+markers", name=f"k = {k}", line=look[str(k)].line,
                        marker=look[str(k)].points)
    return fig.update_xaxes(type="log", tickvals=sorted(rows["num_steps"].unique()))


def prefix_mask(rows: pd.DataFrame, registers: int = 6, patches: int = 6) -> go.Figure:
    """The mask for a few patches and registers: rows ask, columns answer. rows: the numbers of registers there are."""
    select(rows, registers=registers)
    names = [f"p{i + 1}" for i in range(patches)] + [f"r{i + 1}" for i in range(registers)]
    return layer_grid(prefix_causal(patches, registers).numpy(), title="Patches (p) see patches; a register (r) sees earlier ones too",
                      value="may look (1: yes)", x="token that is looked at", y="token that asks", columns=names, rows=names, limits=(0, 1))


def _labels() -> Explorer:
    rows = recorded("flextok_labels")
    return explore(label_curve, rows, codes=choice(["its own", "written"], "Codes", texts=["the picture's own", "written by the AR model"]))


def _pictures() -> Explorer:
    rows = recorded("flextok_pictures")
    return explore(pictures_board, rows, emoji=list(dict.fromkeys(rows["emoji"])))


def _mask() -> Explorer:
    return explore(prefix_mask, pd.DataFrame({"registers": [2, 4, 6, 10]}), registers=choice([2, 4, 6, 10], "Registers"))


FIGURES: dict[str, Callable[[], Explorer]] = {
    "flextok_mask": _mask,
    "flextok_kept": lambda: explore(kept_curve, recorded("flextok_kept"), score=choice(list(SCORES), "Score", texts=list(SCORES.values()))),
    "flextok_pictures": _pictures,
    "flextok_time": lambda: explore(time_curve, recorded("flextok_time")),
    "flextok_labels": _labels,
    "flextok_steps": lambda: explore(steps_curve, recorded("flextok_steps"), score=choice(
        ["elpips", "psnr"], "Score", texts=[SCORES["elpips"], SCORES["psnr"]])),
}
