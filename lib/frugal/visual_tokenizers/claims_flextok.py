"""Headline findings of FlexTok (arXiv 2502.13967), checked on the recorded rows of the miniature.

The paper's scores are FID on ImageNet at 256 px; ours are eFID, eKID and PSNR on emoji at 32 px, so only directions and
counts can be judged.
"""
import pandas as pd

from frugal.core.claims import Claim, Evidence
from frugal.core.papers import paper
from frugal.core.recording import load_recorded

__all__ = ["CLAIMS"]

FLEXTOK = paper("flextok")
ABSTRACT = "arXiv 2502.13967, abstract"


def _kept(what: str, score: str) -> pd.Series:
    """A score by k."""
    rows = load_recorded("visual_tokenizers", "flextok_kept")
    return rows[rows["what"] == what].set_index("k")[score]


def _said(series: pd.Series, digits: int = 1) -> str:
    return ", ".join(f"{value:.{digits}f}" for value in series)


def _any_length() -> Evidence:
    mean, drawn, pca = _kept("one step", "psnr"), _kept("drawn", "psnr"), _kept("PCA, real numbers", "psnr")
    average = _kept("average of 4", "psnr")
    return Evidence(round(float(mean.diff().min()), 3), note=f"least gain in dB when k doubles. k = {', '.join(map(str, mean.index))}: one-step "
                    f"mean {_said(mean)} dB held out, PCA with k real numbers {_said(pca)}; one drawn picture {_said(drawn)}, average of "
                    f"4 {_said(average)}: a draw is up to {(mean - drawn).max():.1f} dB below the mean")


def _plausible() -> Evidence:
    mean, drawn = _kept("one step", "refid"), _kept("drawn", "refid")
    return Evidence(round(float(mean[1] / drawn[1]), 3), note=f"r-eFID at k = 1 of the decoder's one-step mean over that of drawn pictures; "
                    f"for k = 1 to 16 mean {_said(mean, 2)}, drawn {_said(drawn, 2)}")


def _flat() -> Evidence:
    drawn, mean = _kept("drawn", "refid"), _kept("one step", "refid")
    return Evidence(round(float(drawn[1] / drawn[16]), 3), note=f"r-eFID of drawn pictures at k = 1 over k = 16 ({_said(drawn, 2)}); of the one-step "
                    f"mean {mean[1] / mean[16]:.2f}. 1 would be: as plausible with one code as with all")


def _seeds_agree() -> Evidence:
    spread = _kept("drawn", "seed_std")
    return Evidence(round(float(spread[1] / spread[16]), 3), note=f"pixel deviation over 4 seeds at k = 1 over k = 16 ({_said(spread, 3)})")


def _needs_more() -> Evidence:
    rows = load_recorded("visual_tokenizers", "flextok_labels")
    own = rows[rows["codes"] == "its own"].pivot(index="k", columns="condition", values="accuracy")
    share = own.loc[4] / own.loc[16]
    return Evidence(round(float(share["group"] - share["name"]), 3), note="share of the accuracy at 16 codes that 4 codes give: group "
                    f"{share['group']:.2f}, subgroup {share['subgroup']:.2f}, the picture itself {share['name']:.2f} (a picture's own codes, by EmojiNet)")


def _order_matters() -> Evidence:
    ours = _kept("one step", "psnr")
    found = {label: _kept(label, "psnr") for label in ("TiTok-16 cut", "VQ grid 4 x 4 cut")}
    found = {label: series for label, series in found.items() if len(series)}
    best = max(series[4] for series in found.values())
    return Evidence(round(float(ours[4] - best), 3), note=f"dB at 4 codes over the better of the tokenizers cut without nested dropout; FlexTok's mean "
                    f"{ours[4]:.1f}, " + ", ".join(f"{label} {series[4]:.1f}" for label, series in found.items()))


def _writing_stops() -> Evidence:
    rows = load_recorded("visual_tokenizers", "flextok_time").set_index("k")
    write, draw = rows["write_ms"], rows["draw_ms"].mean()
    return Evidence(round(float(rows["write_flops"][16] / rows["write_flops"][1]), 2), note=f"FLOPs of writing 16 codes over one; time "
                    f"{write[16] / write[1]:.1f}x. Drawing costs {draw:.0f} ms for every k, so both together only "
                    f"{(write[16] + draw) / (write[1] + draw):.2f}x")


def _written(condition: str, score: str) -> pd.Series:
    """A score of pictures that an autoregressive model wrote, by k."""
    rows = load_recorded("visual_tokenizers", "flextok_labels")
    return rows[(rows["codes"] == "written") & (rows["condition"] == condition)].set_index("k")[score]


def _written_flat() -> Evidence:
    group, finer = _written("group", "ekid"), _written("subgroup", "ekid")
    long = group[group.index >= 4]
    return Evidence(round(float(long.max() / long.min()), 3), note="largest over smallest eKID of pictures written with 4, 8 and 16 codes under the "
                    f"group; k = 1 to 16: {_said(group, 3)}; under the subgroup {_said(finer, 3)}, which goes on falling; copy rate at most "
                    f"{max(_written('group', 'copies').max(), _written('subgroup', 'copies').max()):.1%}. 360 pictures each: differences of "
                    "0.01 are noise")


def _fid_below_two() -> Evidence:
    return Evidence(note="no ImageNet and no FID here; eKID of written pictures stands at flextok_written_flat")


CLAIMS = [
    Claim("flextok_any_length", FLEXTOK, "One model gives pictures at every length; more codes, closer pictures", 0, "dB", ABSTRACT,
          "measured", _any_length, "reproduced", tolerance=0, side="at least"),
    Claim("flextok_plausible", FLEXTOK, "The flow decoder keeps pictures plausible at few codes, where a mean blurs (one code)", 1, "x",
          ABSTRACT, "measured", _plausible, "reproduced", tolerance=0, side="at least", neutral=float("nan")),
    Claim("flextok_flat", FLEXTOK, "Plausible regardless of the length: quality hardly depends on k", 1, "x", ABSTRACT, "measured", _flat,
          "not reproduced", tolerance=0.25, neutral=float("nan")),
    Claim("flextok_seeds", FLEXTOK, "At few codes seeds draw different pictures, at many they agree", 1, "x",
          "arXiv 2502.13967, reconstructions by number of tokens", "measured", _seeds_agree, "reproduced", tolerance=0, side="at least",
          neutral=float("nan")),
    Claim("flextok_needs_more", FLEXTOK, "The more detailed what must be met, the more codes it needs", 0, "share", ABSTRACT, "measured",
          _needs_more, "reproduced", tolerance=0, side="at least"),
    Claim("flextok_order", FLEXTOK, "Nested dropout orders the codes: a cut sequence beats tokenizers cut without it (our control)", 0, "dB",
          ABSTRACT, "measured", _order_matters, "reproduced", tolerance=0, side="at least"),
    Claim("flextok_writing", FLEXTOK, "Writing 16 codes costs 16 times one: the generator stops early", 16, "x",
          "arXiv 2502.13967, autoregressive generation: one step a token", "counted", _writing_stops, "reproduced"),
    Claim("flextok_written_flat", FLEXTOK, "Written pictures are equally good over a wide range of lengths (8 to 128 of 256 tokens; here 4 to 16)", 1,
          "x", ABSTRACT, "measured", _written_flat, "reproduced", tolerance=0.25, neutral=float("nan")),
    Claim("flextok_fid", FLEXTOK, "FID below 2 on ImageNet with 8 to 128 tokens", 2, "FID", ABSTRACT, "measured", _fid_below_two,
          "out of reach here", side="at most"),
]
