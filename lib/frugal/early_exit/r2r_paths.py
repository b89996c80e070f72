"""Rows behind R2R's pictures: one problem written by two models, the small model's own path, speed, and the pair on prose.

Source: arXiv 2505.21600 (R2R), figure 1 (paths that diverge) and the speed tables of section 4.
Differs: on prose there is no verifier, so only identical and different tokens are counted there; the large model is SmolLM2, the
small one its own first layers with a lens.
"""
import time
from collections.abc import Sequence
from statistics import median

import pandas as pd
import torch

from frugal.core.pair import LARGE, generate_pair
from frugal.data.arithmetic_chains import EOS, MAX_ANSWER, STOP, SYMBOLS, Chain, final_answer, sentence_start
from frugal.early_exit import r2r
from frugal.early_exit.r2r_router import TokenRouter
from frugal.models.r2r_pair import greedy

__all__ = ["chain_rows", "own_path", "prose_rows", "speed_rows"]


def own_path(small, text: Sequence[int]) -> list[int]:
    """What the small model writes behind `text`, to the end."""
    row = greedy(small, torch.tensor([list(text)]), MAX_ANSWER)[0].tolist()
    return row[:row.index(EOS) + 1] if EOS in row else row


def chain_rows(small, large, router: TokenRouter, problems: Sequence[Chain], thresholds: Sequence[float]) -> pd.DataFrame:
    """A row a written token: who wrote it, the router's probability, and where the large model replaced a token, the sentence
    that the small model would have written alone and the answer it would have come to (-1: none)."""
    rows = []
    for number, chain in enumerate(problems):
        for threshold in thresholds:
            run = generate_pair(small, large, chain.prompt(), r2r.each_step(r2r.router_scores(router, small)), threshold, MAX_ANSWER)
            common = {"problem": number, "threshold": threshold, "prompt": small.tokenizer.decode(chain.prompt()[1:]),
                      "answer": _number(final_answer(run.tokens)), "right": chain.answer}
            for i, (token, proposed) in enumerate(zip(run.tokens, run.proposed)):
                replaced = run.writers[i] == LARGE and token != proposed
                sentence, answer = _alone(small, chain.prompt(), run.tokens[:i], proposed) if replaced else ("", -1)
                rows.append(common | {"place": i, "token": SYMBOLS[token], "writer": "large" if run.writers[i] else "small",
                                      "score": run.scores[i], "proposed": SYMBOLS[proposed], "replaced": replaced,
                                      "own_sentence": sentence, "own_answer": answer})
    return pd.DataFrame(rows)


def _alone(small, prompt: list[int], written: list[int], proposed: int) -> tuple[str, int]:
    """The sentence and the answer of the small model if its proposal had stood."""
    text = [*written, proposed]
    whole = text + own_path(small, prompt + text) if proposed != EOS else text
    start = sentence_start(whole, len(written))
    end = next((i for i in range(len(written), len(whole)) if whole[i] == STOP), len(whole) - 1)
    return small.tokenizer.decode(whole[start:end + 1]), _number(final_answer(whole))


def _number(value: int | None) -> int:
    return -1 if value is None else value


def _seconds(call) -> tuple[float, int]:
    start = time.process_time()
    written = call()
    return time.process_time() - start, len(written)


def speed_rows(small, large, router: TokenRouter, threshold: float, problems: Sequence[Chain], rounds: int = 5) -> pd.DataFrame:
    """CPU seconds a written token at batch 1, one thread, methods in turn; medians over rounds. All run the same loop."""
    routed = r2r.each_step(r2r.router_scores(router, small))

    def pair(decide, at):
        return lambda chain: generate_pair(small, large, chain.prompt(), decide, at, MAX_ANSWER).tokens

    ways = {"small model": lambda chain: own_path(small, chain.prompt()), "large model": lambda chain: own_path(large, chain.prompt()),
            "R2R": pair(routed, threshold), "speculative": lambda chain: r2r.speculative(small, large, chain.prompt(), 4).tokens,
            "router, never asks": pair(routed, 2.0)}
    found: dict[str, list[float]] = {name: [] for name in ways}
    for way in ways.values():
        way(problems[0])                                                   # first use compiles
    for _ in range(rounds):
        for name, way in ways.items():
            parts = [_seconds(lambda: way(chain)) for chain in problems]
            found[name].append(sum(s for s, _ in parts) / sum(n for _, n in parts))
    return pd.DataFrame([{"method": name, "cpu_ms": 1e3 * median(times), "cpu_ms_low": 1e3 * min(times), "cpu_ms_high": 1e3 * max(times),
                          "rounds": rounds, "problems": len(problems)} for name, times in found.items()])


@torch.no_grad()
def prose_rows(lm, depths: Sequence[int] = (10, 14, 21, 24, 28), windows: int = 9) -> pd.DataFrame:
    """SmolLM2 as the large model, its first layers and a lens as the small one: tokens on which they agree, on held-out pages.

    The logit lens reads every depth; the ridge lens those it is fitted for. weight_share: weights the small model reads a token, of
    all, its head and map charged.
    """
    from frugal.core.depth import Stack
    from frugal.early_exit.held_out import held_out_windows
    from frugal.early_exit.lenses import LogitLens, load_ridge_lens
    ridge, texts, rows = load_ridge_lens(), held_out_windows(lm.tokenizer, windows), []
    whole = [lm.run(torch.tensor([text]), hidden=True) for text in texts]
    layer = sum(w.numel() for w in lm.layers[0].values())
    for depth in depths:
        for lens in (LogitLens(), ridge):
            if lens is ridge and depth not in ridge.maps:
                continue
            agree = total = 0
            for text, out in zip(texts, whole):
                said = lens.logits(Stack(lm), out.hidden[depth], depth)[0, 4:].argmax(-1)
                agree, total = agree + int((said == out.logits[0, 4:].argmax(-1)).sum()), total + len(said)
            mapped = lm.config.hidden_size ** 2 if lens is ridge else 0
            rows.append({"lens": lens.name, "layers": depth, "identical": agree / total, "tokens": total,
                         "weight_share": (depth * layer + mapped + lm.head.numel()) / lm.num_parameters})
    return pd.DataFrame(rows)
