"""Figures of what fewer visual tokens buy: measured ratios on a real decoder, and how the gain fades with the answer."""
import pandas as pd
import plotly.graph_objects as go

from frugal.explore.rows import select
from frugal.explore.theme import GREEN, GREY, blank, style
from frugal.token_dropping.drop_buys import ANSWERS, COUNTS, GPUS, NEW, measured_speedup, projected_speedup

PAPER = 4.7                                     # arXiv 2408.10945, abstract: 20 % budget, Tesla P40
SERIES = {"prefill_cpu_ratio": "prefill", "decode_cpu_ratio": "decode, a token", "cache_ratio": "cache bytes"}


def drop_buys(rows: pd.DataFrame) -> go.Figure:
    """Full number of visual tokens over fewer: prefill, decode and cache of SmolLM2, medians within one process."""
    at = select(rows, visual_tok=576).iloc[0]
    fig = blank(
        f"20 % of the tokens: prefill {at.prefill_cpu_ratio:.1f} times cheaper, a decoded token {at.decode_cpu_ratio:.2f} times",
        "visual tokens (of 2,880)", "full over kept (ratio; times are CPU time)", height=420)
    for i, (column, name) in enumerate(SERIES.items()):
        look = style(i)
        fig.add_scatter(x=rows.visual_tok.tolist(), y=rows[column].tolist(), mode="lines+markers", name=name,
                        line=look.line, marker=look.points)
    exact = [COUNTS[0] / count for count in rows.visual_tok]
    fig.add_scatter(x=rows.visual_tok.tolist(), y=exact, mode="lines", name="tokens alone (1 / share)",
                    line={"color": GREY, "dash": "dot", "width": 1})
    fig.update_xaxes(type="log", tickvals=list(COUNTS), ticktext=[f"{c:,}" for c in COUNTS])
    fig.update_yaxes(rangemode="tozero")
    return fig.update_layout(
        meta={
            "summary": f"SmolLM2 with 576 of 2,880 visual tokens and {int(at.text_tok)} others: prefill "
            f"{at.prefill_cpu_ratio:.2f} times cheaper in CPU time, {at.prefill_ratio:.2f} in wall clock; a decoded "
            f"token {at.decode_cpu_ratio:.2f} times; cache {at.cache_ratio:.2f} times smaller."
        })


def answer_length(rows: pd.DataFrame, visual_tok: int = 576) -> go.Figure:
    """How many times faster an answer is, against its length: measured here, projected for 7B on two GPUs, and the paper's number."""
    at_paper = projected_speedup("P40", visual_tok, NEW)
    fig = blank(
        f"{visual_tok:,} of {COUNTS[0]:,} tokens: {at_paper:.1f} times on a P40 at {NEW} new tokens, {projected_speedup('P40', visual_tok, 512):.2f} at 512",
        "new tokens in the answer (log scale)", "speed-up of the whole answer (ratio)", height=430)
    lines = {f"7B on {gpu}, roofline": [projected_speedup(gpu, visual_tok, new) for new in ANSWERS] for gpu in GPUS}
    lines["SmolLM2 here, measured (CPU time)"] = [measured_speedup(rows, visual_tok, new) for new in ANSWERS]
    for i, (name, values) in enumerate(lines.items()):
        fig.add_scatter(x=list(ANSWERS), y=values, name=name, mode="lines+markers", line=style(i).line,
                        marker=style(i).points)
    if visual_tok == 576:
        fig.add_scatter(x=[NEW], y=[PAPER], mode="markers", name="paper: P40, up to 15 new tokens",
                        marker={"color": GREEN, "symbol": "star", "size": 15})
    fig.update_xaxes(type="log", tickvals=list(ANSWERS))
    fig.update_yaxes(range=[0, 11])
    said = "; ".join(
        f"{name} {values[0]:.2f} at 1 token, {values[ANSWERS.index(NEW)]:.2f} at {NEW}, {values[-1]:.2f} at {ANSWERS[-1]}"
        for name, values in lines.items())
    return fig.update_layout(
        meta={
            "summary": f"Speed-up with {visual_tok:,} of {COUNTS[0]:,} visual tokens: {said}; the paper's 4.7 is for 576 tokens."
        })
