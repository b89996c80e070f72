"""Figures of SETRec: recall against tokens an item, beta, what a recommendation costs, the mask, recommended rows."""
from functools import lru_cache

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch

from frugal.core.masks import set_attention_mask
from frugal.core.recording import load_recorded
from frugal.explore import Explorer, choice, explore
from frugal.explore.rows import select
from frugal.explore.theme import BLUE, GREY, ORANGE, blank, style
from frugal.visual_tokenizers import setrec_live
from frugal.visual_tokenizers.setrec_measure import KINDS

OWN = ("sem0", "sem1", "sem2", "sem4", "sem8")                 # SETRec by its number of semantic tokens
OTHERS = {"ceiling": "knows the generator", "tiger": "sequence ids, beam 20", "single": "one learned id token",
          "inside": "SETRec, tokens of an item see each other", "popular": "most popular for all"}
SCORES = {"recall": "Recall@10", "ndcg": "NDCG@10"}
RANKED = {"all": "all items", "warm": "warm items", "cold": "cold items"}
ITEMS = 3                                                      # of the drawn mask


@lru_cache(maxsize=4)
def rows_of(name: str) -> pd.DataFrame:
    """A recorded table: recipes/record_setrec.py makes it."""
    return load_recorded("visual_tokenizers", f"setrec_{name}")


def _bars(part: pd.DataFrame) -> dict:
    return {"type": "data", "array": (part.high - part.value).tolist(), "arrayminus": (part.value - part.low).tolist(), "width": 4,
            "thickness": 1.2}


def recall_by_tokens(rows: pd.DataFrame, kind: str = "all", score: str = "recall") -> go.Figure:
    """SETRec against its number of semantic tokens, and the others as lines. rows: recorded/setrec_recall.json."""
    table = select(rows, kind=kind, score=score)
    own = table[table.method.isin(OWN)].sort_values("n_sem")
    best, some = own.sort_values("value").iloc[-1], own[own.n_sem > 0].value
    fig = blank(f"{SCORES[score]} over {RANKED[kind]}: {some.min():.1%} to {some.max():.1%} with semantic tokens, "
                f"{own.value.iloc[0]:.1%} with {int(own.n_sem.iloc[0])}",
                "semantic tokens an item (beside one CF token)", f"{SCORES[score]} (mean over users)", height=440)
    fig.add_scatter(x=own.n_sem.tolist(), y=own.value.tolist(), error_y=_bars(own), mode="lines+markers", name="SETRec",
                    line={**style(0).line, "width": 3}, marker=style(0).points)
    said = [f"SETRec {best.value:.1%} with {int(best.n_sem)} semantic tokens"]
    for place, (method, label) in enumerate(OTHERS.items(), 1):
        for row in table[table.method == method].itertuples():
            fig.add_scatter(x=[-0.2, 8.2], y=[row.value] * 2, mode="lines", name=label, line=style(place, method in ("ceiling", "popular")).line,
                            hovertemplate=f"{row.value:.1%} [{row.low:.1%}, {row.high:.1%}]")
            said.append(f"{label} {row.value:.1%}")
    fig.update_xaxes(range=[-0.3, 8.3], tickvals=own.n_sem.tolist())
    fig.update_yaxes(range=[0, 1], tickformat=".0%")
    return fig.update_layout(meta={"summary": f"{SCORES[score]} over {RANKED[kind]}, {int(best.users)} test users: {'; '.join(said)}."})


def beta_curve(rows: pd.DataFrame, score: str = "recall") -> go.Figure:
    """How the weight of meaning moves warm and cold items, with four semantic tokens. rows: recorded/setrec_beta.json."""
    table = select(rows, score=score)
    best = table[table.kind == "all"].sort_values("value").iloc[-1]
    fig = blank(f"CF alone finds {_at(table, 0.0, 'cold'):.0%} of cold picks, meaning alone {_at(table, 1.0, 'warm'):.0%} of warm ones",
                "beta (0: CF token alone, 1: meaning alone)", f"{SCORES[score]} (mean over users)", height=420)
    for place, kind in enumerate(KINDS):
        part = table[table.kind == kind].sort_values("beta")
        fig.add_scatter(x=part.beta.tolist(), y=part.value.tolist(), error_y=_bars(part), mode="lines+markers", name=RANKED[kind],
                        line=style(place).line, marker=style(place).points)
    fig.add_vline(x=float(best.beta), line={"color": GREY, "dash": "dot", "width": 1})
    fig.update_yaxes(range=[0, 1], tickformat=".0%")
    return fig.update_layout(meta={"summary": f"{SCORES[score]} by beta: all items best at {best.beta:g} ({best.value:.1%}); at 0 warm "
                                   f"{_at(table, 0.0, 'warm'):.1%} and cold {_at(table, 0.0, 'cold'):.1%}, at 1 warm "
                                   f"{_at(table, 1.0, 'warm'):.1%} and cold {_at(table, 1.0, 'cold'):.1%}."})


def _at(table: pd.DataFrame, beta: float, kind: str) -> float:
    return float(select(table, beta=beta, kind=kind).value.iloc[0])


def cost_table() -> pd.DataFrame:
    """Cost rows joined with what each way finds: SETRec by its tokens, beam search by its width."""
    recall, beam = rows_of("recall"), rows_of("beam")
    found = {("setrec", int(row.n_sem) + 1, row.kind): row.value for row in recall[recall.method.isin(OWN) & (recall.score == "recall")].itertuples()}
    found |= {("beam", int(row.beam), row.kind): row.value for row in beam[beam.score == "recall"].itertuples()}
    cost = rows_of("cost")
    parts = [cost.assign(ranked=kind, recall=[found.get((k, int(s), kind), np.nan) for k, s in zip(cost.kind, cost["size"])]) for kind in KINDS]
    return pd.concat(parts).dropna(subset="recall")


def cost_curve(rows: pd.DataFrame, backbone: str = "small decoder", ranked: str = "all") -> go.Figure:
    """What is found against what one recommendation takes. rows: `cost_table`; recall is always the small decoder's."""
    table = select(rows, backbone=backbone, ranked=ranked)
    one = select(table, kind="setrec", size=5).iloc[0]
    search = select(table, kind="beam", size=20).iloc[0]
    fig = blank(f"Beam 20 takes {search.cpu_s / one.cpu_s:.1f} times the time of one pass with 5 queries ({backbone})",
                "CPU time of one recommendation (ms, log scale)", f"Recall@10 over {RANKED[ranked]}", height=430)
    for place, (kind, label, unit) in enumerate((("setrec", "SETRec, one pass", "tokens an item"), ("beam", "sequence ids", "beams"))):
        part = table[table.kind == kind].sort_values("size")
        texts = [f"{int(n)}" for n in part["size"]]
        fig.add_scatter(x=(1e3 * part.cpu_s).tolist(), y=part.recall.tolist(), mode="lines+markers+text", name=f"{label} ({unit})", text=texts,
                        textposition="top center", line=style(place).line, marker=style(place).points,
                        customdata=part.flops.tolist(), hovertemplate="%{x:.3g} ms, %{y:.1%}, %{customdata:.3s} FLOPs")
    fig.update_xaxes(type="log")
    fig.update_yaxes(range=[0, 1], tickformat=".0%")
    return fig.update_layout(meta={"summary": f"{backbone}: one pass with 5 queries {1e3 * one.cpu_s:.3g} ms and {one.flops / 1e6:.0f} million FLOPs, "
                                   f"beam 20 {1e3 * search.cpu_s:.3g} ms and {search.flops / 1e6:.0f} million FLOPs; they find "
                                   f"{one.recall:.1%} and {search.recall:.1%} of {RANKED[ranked]}."})


def mask_map(rows: pd.DataFrame, num_tokens: int = 3, attention: str = "SETRec") -> go.Figure:
    """The mask of a history of three items: who sees whom. rows: names of the drawn kinds."""
    kinds = select(rows, attention=attention)
    mask = set_attention_mask(1, ITEMS, num_tokens, 1, inside=attention == "inside an item")
    if attention == "plain causal":
        mask = torch.ones_like(mask).tril()
    names = ["instruction", *(f"item {i + 1}, token {j + 1}" for i in range(ITEMS) for j in range(num_tokens)), "response",
             *(f"query {j + 1}" for j in range(num_tokens))]
    free = "says nothing" if kinds.order.iloc[0] == "free" else "matters"
    fig = blank(f"{attention}: order within an item {free}", "is seen", "sees", height=520)
    colors = [[0, "#f2f2f2"], [0.5, "#f2f2f2"], [0.5, BLUE], [1, BLUE]]
    fig.add_heatmap(z=mask.int().tolist(), x=names, y=names, colorscale=colors, zmin=0, zmax=1, xgap=1, ygap=1, showscale=False, name="sees",
                    hovertemplate="%{y} sees %{x}: %{z}<extra></extra>")
    edges = [0.5 + num_tokens * i for i in range(ITEMS + 1)] + [1.5 + num_tokens * ITEMS]
    for edge in edges:
        fig.add_hline(y=edge, line={"color": ORANGE, "width": 1})
        fig.add_vline(x=edge, line={"color": ORANGE, "width": 1})
    fig.update_yaxes(autorange="reversed", showgrid=False)
    fig.update_xaxes(showgrid=False, tickangle=90)
    seen = int(mask.sum())
    return fig.update_layout(meta={"summary": f"{attention}, {ITEMS} items of {num_tokens} tokens: {seen} of {mask.numel()} pairs are seen; the order of "
                                   f"the tokens within an item {free}."})


def rows_board(rows: pd.DataFrame, user: str = "A") -> go.Figure:
    """A test user's history and what each recommender puts next. rows: recorded/setrec_shown.json."""
    table = select(rows, user=user).sort_values(["place"])
    parts = {label: part.name_shown.tolist() for label, part in table.groupby("row", sort=False)}
    history = parts.pop("picked")
    return setrec_live.board({"history": history, "rows": parts})


def setrec_recall() -> Explorer:
    return explore(recall_by_tokens, rows_of("recall"), kind=choice(KINDS, "Ranked", texts=list(RANKED.values())),
                   score=choice(list(SCORES), "Score", texts=list(SCORES.values())))


def setrec_beta() -> Explorer:
    return explore(beta_curve, rows_of("beta"), score=choice(list(SCORES), "Score", texts=list(SCORES.values())))


def setrec_cost() -> Explorer:
    return explore(cost_curve, cost_table(), backbone=choice(list(rows_of("cost").backbone.unique()), "Backbone"),
                   ranked=choice(KINDS, "Ranked", texts=list(RANKED.values())))


def setrec_mask() -> Explorer:
    kinds = pd.DataFrame({"attention": ["SETRec", "inside an item", "plain causal"], "order": ["free", "free", "bound"]})
    return explore(mask_map, kinds, num_tokens=choice((1, 2, 3, 5), "Tokens an item", default=3), attention=choice(list(kinds.attention), "Mask"))


def setrec_rows() -> Explorer:
    rows = rows_of("shown")
    return explore(rows_board, rows, user=choice(list(rows.user.unique()), "Test user"))


FIGURES = {"setrec_mask": setrec_mask, "setrec_recall": setrec_recall, "setrec_beta": setrec_beta, "setrec_cost": setrec_cost, "setrec_rows": setrec_rows}
