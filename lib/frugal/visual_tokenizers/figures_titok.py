"""Figures of TiTok: what more tokens buy and cost, pictures through the lengths, what tokens look at, pictures in the making, 410x.

Rows: `recorded/titok_*.json` (recipes/record_titok.py) and the family's `reconstruct`; the projection is computed as the page is made.
"""
from collections.abc import Callable

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from frugal.core.recording import load_recorded
from frugal.explore import Explorer, choice, explore, select
from frugal.explore.pictures import image_board
from frugal.explore.pictures.stored import from_text
from frugal.explore.theme import BLUE, GREY, SEQUENTIAL, VERMILION, blank, color_bar, styles
from frugal.visual_tokenizers import titok_cost as cost

__all__ = ["FIGURES", "attention", "board", "chain", "lengths", "stages", "steps"]

FAMILY = "visual_tokenizers"
SCORES = {"psnr": "PSNR of held-out pictures (dB)", "elpips": "eLPIPS of held-out pictures (lower is nearer)",
          "r_efid": "r-eFID of reconstructions (lower is nearer)", "efid": "g-eFID of made pictures (lower is nearer)",
          "copy_rate": "copy rate of made pictures (share)", "cpu_ms": "generator, one thread (ms a picture)",
          "gflops": "generator, counted (GFLOP a picture)", "decode_cpu_ms": "tokenizer's decoder, one thread (ms a picture)"}
LINES = ("TiTok", "VQ grid", "PCA", "TiTok, autoregressive", "grid, autoregressive", "TiTok, masked, 8 steps", "grid, masked, 8 steps",
         "autoregressive, key-value cache", "masked, 8 steps")
TICKS = {"type": "log", "tickvals": [4, 8, 16, 32, 64], "ticktext": ["4", "8", "16", "32", "64"], "range": [0.5, 1.9]}


def length_rows() -> pd.DataFrame:
    """All scores over the number of tokens, one row each: score, line, tokens, value, low, high (NaN where there is no interval)."""
    found = []
    recon = load_recorded(FAMILY, "reconstruct")
    for method, line in (("titok", "TiTok"), ("vq_grid", "VQ grid"), ("pca", "PCA")):
        part = recon[(recon.method == method) & (recon.error == "") & recon.spent_tokens.between(4, 64)]
        for row in part.itertuples():
            found += [(name, line, row.spent_tokens, getattr(row, name), getattr(row, f"{name}_low", np.nan), getattr(row, f"{name}_high", np.nan))
                      for name in ("psnr", "elpips", "r_efid")]
    for row in best_generated().itertuples():
        line = ("grid" if row.tokenizer.startswith("vq") else "TiTok") + (", autoregressive" if row.kind == "ar" else ", masked, 8 steps")
        found += [("efid", line, row.tokens, row.efid, row.efid_low, row.efid_high), ("copy_rate", line, row.tokens, row.copy_rate, np.nan, np.nan)]
    speed = select(load_recorded(FAMILY, "titok_speed"), batch=1)
    for row in speed.itertuples():
        if row.kind in ("ar", "maskgit"):
            line = "autoregressive, key-value cache" if row.kind == "ar" else "masked, 8 steps"
            found += [(name, line, int(row.of), getattr(row, name), np.nan, np.nan) for name in ("cpu_ms", "gflops")]
        elif row.kind == "decode":
            found.append(("decode_cpu_ms", "VQ grid" if row.of.startswith("vq") else "TiTok", int(row.of.split("_")[-1]), row.cpu_ms, np.nan, np.nan))
    return pd.DataFrame(found, columns=["score", "line", "tokens", "value", "low", "high"])


def best_generated() -> pd.DataFrame:
    """What each trained generator makes, at the temperature with its lowest g-eFID."""
    rows = load_recorded(FAMILY, "titok_generated")
    return rows.loc[rows.groupby(["tokenizer", "kind"], sort=False).efid.idxmin()]


def lengths(rows: pd.DataFrame, score: str = "psnr") -> go.Figure:
    """One score against the number of tokens. rows: of `length_rows`."""
    table, looks = select(rows, score=score), styles(list(LINES), ("PCA",))
    fig = blank(SCORES[score], "tokens a picture (log scale)", SCORES[score], xaxis=TICKS, height=430)
    fig.update_xaxes(title_text="tokens a picture (log scale)")
    said = []
    for line in [line for line in LINES if line in set(table.line)]:
        part = table[table.line == line].sort_values("tokens")
        bars = {"error_y": {"type": "data", "array": (part.high - part.value).tolist(), "arrayminus": (part.value - part.low).tolist(), "width": 3,
                            "thickness": 1}} if part.low.notna().all() else {}
        fig.add_scatter(x=part.tokens.tolist(), y=part.value.tolist(), name=line, mode="lines+markers", line=looks[line].line,
                        marker=looks[line].points, hovertemplate="%{x} tokens: %{y:.3g}", **bars)
        said.append(f"{line} " + ", ".join(f"{value:.3g} at {tokens}" for tokens, value in zip(part.tokens, part.value)))
    if score != "psnr":
        fig.update_yaxes(rangemode="tozero")
    return fig.update_layout(meta={"summary": f"{SCORES[score]}: {'; '.join(said)}."})


def board(rows: pd.DataFrame) -> go.Figure:
    """Held-out emoji in columns; the original, TiTok with more and more tokens, and grids below each other."""
    names = list(dict.fromkeys(rows.name))
    captions = [row.row if pd.isna(row.psnr) else f"{row.row}: {row.psnr:.1f} dB" for row in rows.itertuples()]
    return image_board([from_text(text) for text in rows.picture], captions, columns=len(names), title="Held-out emoji through so many tokens",
                       values=[float("nan") if pd.isna(v) else v for v in rows.psnr], value="PSNR (dB)")


def attention(rows: pd.DataFrame, name: str = "crab", view: str = "what moves it") -> go.Figure:
    """What each of the 16 latent tokens of TiTok-16 looks at, or is moved by: sixteen maps of 8 x 8 patches."""
    part = select(rows, name=name, view=view).sort_values("token")
    maps = np.stack([np.array(text.split(), dtype=float) for text in part.thousandths]).reshape(4, 4, 8, 8) / 10
    gaps = np.full((4, 9, 4, 9), np.nan)
    gaps[:, :8, :, :8] = maps.transpose(0, 2, 1, 3)
    words = f"{name}, {view}: a token spreads over {float(part.spread.median()):.0f} of 64 patches (median)"
    fig = blank(words, "patch, left to right", "patch, top to bottom", height=520)
    fig.add_heatmap(z=gaps.reshape(36, 36)[:35, :35], colorscale=SEQUENTIAL, zmin=0, zmax=float(np.nanmax(maps)), hoverongaps=False, name="share",
                    meta="gaps", hovertemplate="%{z:.1f} %<extra></extra>", colorbar=color_bar("share (%)"))
    fig.update_xaxes(visible=False, scaleanchor="y", constrain="domain")
    fig.update_yaxes(visible=False, autorange="reversed", constrain="domain")
    said = ", ".join(f"{value:.0f}" for value in part.spread)
    on = "" if view == "what moves it" else f"; on patches {100 * part.on_patches.mean():.0f} % of their attention, the rest on latent tokens"
    return fig.update_layout(meta={"summary": f"{name}, {view}: tokens 0-15 spread over {said} of 64 patches{on}."})


def steps(rows: pd.DataFrame, tokenizer: str = "titok_16") -> go.Figure:
    """Pictures in the making; places that are not drawn yet hold their most usual code."""
    part = select(rows, tokenizer=tokenizer)
    captions = [f"{row.after} codes" if row.kind == "ar" else f"step {row.after} of 8" for row in part.itertuples()]
    what = {"titok_16": "sixteen tokens for the whole picture", "vq_grid_64": "64 squares"}[tokenizer]
    return image_board([from_text(text) for text in part.picture], captions, columns=8,
                       title=f"Made code by code, or in eight masked steps: {what}")


def stages(rows: pd.DataFrame, score: str = "psnr") -> go.Figure:
    """The paper's two stages beside one stage, with the same 32 tokens."""
    words = {"psnr": "PSNR of held-out pictures (dB)", "r_efid": "r-eFID of all pictures (lower is nearer)",
             "elpips": "eLPIPS of held-out pictures (lower is nearer)"}
    fig = blank(words[score], words[score], "training", height=300, showlegend=False)
    fig.add_bar(x=rows[score].tolist(), y=rows.variant.tolist(), orientation="h", name=score,
                marker_color=[GREY if "grid" in name else BLUE for name in rows.variant], text=[f"{v:.3g}" for v in rows[score]],
                hovertemplate="%{y}: %{x:.3g}<extra></extra>")
    fig.update_yaxes(autorange="reversed", type="category")
    fig.update_xaxes(rangemode="tozero")
    said = "; ".join(f"{row.variant} {getattr(row, score):.3g} ({row.tokens} tokens)" for row in rows.itertuples())
    return fig.update_layout(meta={"summary": f"{words[score]}: {said}."})


def chain(rows: pd.DataFrame, batch: int = 64) -> go.Figure:
    """From 250-step DiT to TiTok at 512 px, one change at a time: least milliseconds a picture, and each change's factor.

    rows: of `titok_cost.chain`.
    """
    times, factors = rows[f"ms_{batch}"], rows[f"s_{batch}_factor"]
    whole = times.iloc[0] / times.iloc[-1]
    fig = blank(f"DiT-XL/2 to TiTok, {batch} at a time: {whole:.0f} times less by roofline", "least time a picture on an A100 (ms, log scale)", "after each change",
                height=330, showlegend=False)
    fig.add_bar(x=times.tolist(), y=rows.change.tolist(), orientation="h", name="time", marker_color=[GREY, *[BLUE] * 3, VERMILION],
                text=[f"{ms:,.3g} ms" if place == 0 else f"{ms:,.3g} ms: {factor:.1f}x" for place, (ms, factor) in enumerate(zip(times, factors))],
                hovertemplate="%{y}: %{x:,.3g} ms<extra></extra>")
    fig.update_yaxes(autorange="reversed", type="category")
    fig.update_xaxes(type="log", range=[-0.3, 4.2])
    said = "; ".join(f"{change} {factor:.2f}x" for change, factor in zip(rows.change.iloc[1:], factors.iloc[1:]))
    return fig.update_layout(meta={"summary": f"Least time on an A100, {batch} pictures at a time, {whole:.0f}x in all: {said}."})


def titok_lengths() -> Explorer:
    rows = length_rows()
    there = [score for score in SCORES if score in set(rows.score)]
    return explore(lengths, rows, score=choice(there, "Score", texts=[SCORES[score].split(" (")[0] for score in there]))


def titok_board() -> Explorer:
    return explore(board, load_recorded(FAMILY, "titok_board"))


def titok_attention() -> Explorer:
    rows = load_recorded(FAMILY, "titok_attention")
    return explore(attention, rows, name=choice(list(dict.fromkeys(rows.name)), "Emoji"), view=choice(list(dict.fromkeys(rows["view"])), "View"))


def titok_steps() -> Explorer:
    rows = load_recorded(FAMILY, "titok_steps")
    return explore(steps, rows, tokenizer=choice(list(dict.fromkeys(rows.tokenizer)), "Tokenizer", texts=["TiTok, 16 tokens", "grid, 64 tokens"]))


def titok_stages() -> Explorer:
    return explore(stages, load_recorded(FAMILY, "titok_stages"),
                   score=choice(["psnr", "elpips", "r_efid"], "Score", texts=["PSNR", "eLPIPS", "r-eFID"]))


def titok_chain() -> Explorer:
    return explore(chain, cost.chain(), batch=choice([64, 1], "Pictures at a time"), sweep={"module": "frugal.visual_tokenizers.titok_cost"})


FIGURES: dict[str, Callable[[], Explorer]] = {make.__name__: make for make in (
    titok_board, titok_lengths, titok_attention, titok_steps, titok_stages, titok_chain)}
