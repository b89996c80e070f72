"""Figures of notebook 00: what one generated token reads, how the time of a pass grows with its tokens, who saves what."""
from statistics import median
from time import perf_counter

import pandas as pd
import plotly.graph_objects as go
import torch

from frugal.core.papers import papers
from frugal.core.roofline import shape
from frugal.explore.theme import BLUE, GREEN, GREY, VERMILION, blank, styles

MODELS = ("SmolLM2-135M", "Llama-3.1-8B", "MPT-7B")
CONTEXTS = (256, 1024, 4096, 16384, 65536)
BATCHES = (1, 8, 32)
PARTS = {"MLP weights": BLUE, "attention weights": GREEN, "output head": GREY, "KV cache": VERMILION}

# family -> what it makes smaller in a generated token
SAVES = {
    "kv_eviction": "the cache: fewer slots, fewer bits a slot, or a state that does not grow",
    "token_dropping": "the prompt: image tokens that no answer needs",
    "early_exit": "the layers: easy tokens leave early or take a smaller path",
    "visual_tokenizers": "the sequence: an image in 16 codes instead of 256",
    "speculative_decoding": "the passes: several tokens for one reading of the weights",
    "visual_generation": "the steps: fewer, cheaper or shared steps an image",
    "kv_reuse": "the prompt again: what was computed once is not computed twice",
    "serving": "the waiting: batches that keep weights and cores busy",
    "weight_traffic": "the weights: fewer bytes a parameter",
    "parallelism": "the clock: work and traffic of several devices overlap",
    "measuring": "the guesses: equal compute, honest scale, bits an answer",
}


def token_rows() -> pd.DataFrame:
    """Bytes read for one new token of each sequence, counted from the shapes in 16 bits. Weights are read once a
    pass and shared by the batch; every sequence reads its own cache. Columns: model, context, batch, part, bytes."""
    rows = []
    for name in MODELS:
        s = shape(name)
        head = s.vocab_size * s.hidden_size * 2
        qkvo = 2 * s.num_layers * s.hidden_size * s.head_dim * (2 * s.num_heads + 2 * s.num_kv_heads)
        mlp = 2 * s.num_layers * s.hidden_size * s.intermediate_size * (3 if s.gated else 2)
        for context in CONTEXTS:
            for batch in BATCHES:
                cache = s.kv_bytes_per_token(16) * context
                for part, share in (("MLP weights", mlp / batch), ("attention weights", qkvo / batch),
                                    ("output head", head / batch), ("KV cache", cache)):
                    rows.append({"model": name, "context": context, "batch": batch, "part": part, "bytes": share})
    return pd.DataFrame(rows)


def token_bytes(rows: pd.DataFrame, model: str = "SmolLM2-135M", context: int = 4096, batch: int = 8) -> go.Figure:
    """Bytes that one new token of one sequence costs, part by part."""
    part = rows[(rows.model == model) & (rows.context == context) & (rows.batch == batch)]
    total, cache = part.bytes.sum(), part[part.part == "KV cache"].bytes.sum()
    fig = blank(f"{model}: one token reads {total / 1e6:,.0f} MB, {cache / total:.0%} of it cache",
                x="", y="read for one token of one sequence (MB, 16 bits)")
    fig.add_bar(x=part.part, y=part.bytes / 1e6, marker_color=[PARTS[p] for p in part.part],
                text=[f"{b / 1e6:,.3g}" for b in part.bytes], textposition="outside", name="bytes", showlegend=False)
    top = rows[rows.model == model].bytes.max() / 1e6
    fig.update_yaxes(type="log", range=[-1, len(str(int(top)))])
    fig.update_xaxes(title_text="part of the model")
    return fig


def pass_time(rows: pd.DataFrame, show: str = "a pass") -> go.Figure:
    """Time of one pass over n tokens, and per token. rows: columns engine, num_tokens, pass_s (medians).

    show: "a pass" or "a token".
    """
    looks = styles(sorted(rows.engine.unique(), reverse=True), baselines=("transformers",))
    one = rows[(rows.engine == "frugal") & (rows.num_tokens == 1)].pass_s.iloc[0]
    four = rows[(rows.engine == "frugal") & (rows.num_tokens == 4)].pass_s.iloc[0]
    fig = blank(f"Four tokens in one pass take {four / one:.2f} times as long as one", x="tokens in the pass",
                y="time of a pass (ms)" if show == "a pass" else "time of a token (ms)")
    for engine, part in rows.groupby("engine", sort=False):
        value = part.pass_s * 1e3 / (1 if show == "a pass" else part.num_tokens)
        fig.add_scatter(x=part.num_tokens, y=value, name=engine, mode="lines+markers", line=looks[engine].line,
                        marker=looks[engine].points)
    fig.update_xaxes(type="log", dtick=0.30103)
    fig.update_yaxes(rangemode="tozero")
    return fig


def family_table(built: list[str]) -> pd.DataFrame:
    """The eleven families: what each makes smaller, how many papers it holds, and whether its notebook is here."""
    rows = [{"family": family, "makes smaller": what, "papers": len(papers(family)),
             "notebook": "here" if family in built else "planned"} for family, what in SAVES.items()]
    return pd.DataFrame(rows)


def paper_table() -> pd.DataFrame:
    """The paper map: one row a paper."""
    return pd.DataFrame([{"family": p.family, "paper": p.title, "year": p.year, "arXiv": p.arxiv or ""} for p in papers()])


def measure_passes(lm, counts: list[int], repeats: int = 7, context: int = 256) -> pd.DataFrame:
    """Median time of a pass over n tokens behind `context` cached ones. Columns num_tokens, pass_s, tok_per_s."""
    generator = torch.Generator().manual_seed(0)
    cache = lm.new_cache(1, reserve=context + repeats * sum(counts) + sum(counts))
    draw = lambda n: torch.randint(0, lm.config.vocab_size, (1, n), generator=generator)      # noqa: E731
    lm(draw(context), cache, last_only=True)
    rows = []
    for n in counts:
        times = []
        for _ in range(repeats + 1):
            began = perf_counter()
            lm(draw(n), cache)
            times.append(perf_counter() - began)
        middle = median(times[1:])
        rows.append({"num_tokens": n, "pass_s": middle, "tok_per_s": n / middle})
    return pd.DataFrame(rows)
