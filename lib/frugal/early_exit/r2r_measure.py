"""What R2R and its rivals reach on chains: right answers against activated parameters, a row a method and setting.

Source: arXiv 2505.21600 (R2R), figures and tables of section 4 and its appendices: average activated parameters against accuracy.
Differs: the small model of many problems runs as one batch; the large one runs for each text by itself, on its own lazily extended
cache, as in `generate_pair`. A test compares the two, token by token.
"""
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import torch

from frugal.core.pair import extend, generate_pair
from frugal.data.arithmetic_chains import EOS, FIRST_DIGIT, MAX_ANSWER, STYLE, Chain, final_answer
from frugal.early_exit import r2r
from frugal.early_exit.r2r_labels import IDENTICAL, KINDS, Labelled
from frugal.early_exit.r2r_router import TokenRouter
from frugal.models.r2r_pair import write_answers

__all__ = ["METHODS", "Text", "label_oracle_row", "label_shares", "measure", "question_hardness", "row_of", "wilson", "write_routed"]

METHODS = ("router", "entropy", "log-u", "random tokens", "whole questions", "every different token", "label oracle", "speculative",
           "small model", "large model")
SHARES = (0.02, 0.05, 0.1, 0.2, 0.4)


@dataclass
class Text:
    """One answer: its tokens, what each call of the large model read, and how many tokens the small model proposed."""
    prompt: list[int]
    tokens: list[int] = field(default_factory=list)
    writers: list[int] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    large_read: list[int] = field(default_factory=list)
    small_steps: int = 0


@torch.no_grad()
def write_routed(small, large, problems: Sequence[Chain], score: r2r.Score, threshold: float, batch: int = 250) -> list[Text]:
    """Answers of token routing: the large model writes where score >= threshold. In the order of the problems."""
    out = [Text(chain.prompt()) for chain in problems]
    for num_steps in sorted({len(chain.steps) for chain in problems}):              # equally long prompts run in step
        alike = [one for one, chain in zip(out, problems) if len(chain.steps) == num_steps]
        for first in range(0, len(alike), batch):
            _routed_batch(small, large, alike[first:first + batch], score, threshold)
    return out


def _routed_batch(small, large, texts: list[Text], score: r2r.Score, threshold: float) -> None:
    cache, caches = small.new_cache(len(texts)), {id(one): large.new_cache() for one in texts}
    new = torch.tensor([one.prompt for one in texts])
    for _ in range(MAX_ANSWER):
        state = small.run(new, cache, hidden=True, last_only=True)
        hidden, logits = state.hidden[-1][:, -1], state.logits[:, -1]
        scores, proposed = score(hidden, logits).tolist(), logits.argmax(-1).tolist()
        for one, number, token in zip(texts, scores, proposed):
            one.small_steps += 1
            routed = number >= threshold
            one.tokens.append(_large_token(large, caches[id(one)], one) if routed else token)
            one.writers.append(int(routed))
            one.scores.append(number)
        going = [i for i, one in enumerate(texts) if one.tokens[-1] != EOS]
        if not going:
            return
        if len(going) < len(texts):
            texts, cache = [texts[i] for i in going], cache.select(going)
        new = torch.tensor([[one.tokens[-1]] for one in texts])


def _large_token(large, cache, one: Text) -> int:
    text = one.prompt + one.tokens
    one.large_read.append(len(text) - int(cache.num_seen[0]))
    return int(extend(large, cache, text).logits[0, -1].argmax())


def wilson(right: int, count: int, z: float = 1.96) -> tuple[float, float]:
    """95 % interval of a share (Wilson). ValueError for no trials."""
    if count < 1:
        raise ValueError(f"count is {count}; an interval needs at least one trial")
    share, spread = right / count, z * z / count
    middle = (share + spread / 2) / (1 + spread)
    half = z * math.sqrt(share * (1 - share) / count + spread / (4 * count)) / (1 + spread)
    return max(0.0, middle - half), min(1.0, middle + half)


def row_of(method: str, knob: float, texts: Sequence[Text], problems: Sequence[Chain], sizes: tuple[int, int, int]) -> dict:
    """One row: right answers with their interval, and the mean costs a token. sizes: parameters of (large, small, router)."""
    right = sum(final_answer(one.tokens) == chain.answer for one, chain in zip(texts, problems))
    costs = [(len(one.tokens), r2r.cost_of(len(one.tokens), len(one.prompt), one.large_read, one.small_steps, *sizes)) for one in texts]
    total = sum(n for n, _ in costs)
    low, high = wilson(right, len(problems))
    means = {name: sum(n * getattr(cost, name) for n, cost in costs) / total for name in ("activated", "flops", "calls", "read")}
    return {"method": method, "knob": knob, "problems": len(problems), "right": right / len(problems), "right_low": low, "right_high": high,
            "tokens": total / len(problems), **means, "large_size": sizes[0], "small_size": sizes[1], "router_size": sizes[2]}


def _plain(model, problems: Sequence[Chain], large: bool) -> list[Text]:
    """Texts of one model alone; the large one reads the prompt in its first call and one token in each later one."""
    return [Text(chain.prompt(), tokens, large_read=[len(chain.prompt()), *[1] * (len(tokens) - 1)] if large else [],
                 small_steps=0 if large else len(tokens)) for chain, tokens in zip(problems, write_answers(model, problems))]


def _speculated(small, large, problems: Sequence[Chain], gamma: int) -> list[Text]:
    runs = [r2r.speculative(small, large, chain.prompt(), gamma) for chain in problems]
    return [Text(chain.prompt(), run.tokens, large_read=run.large_read, small_steps=run.small_steps) for chain, run in zip(problems, runs)]


def label_oracle_row(small, large, problems: Sequence[Chain], sizes: tuple[int, int, int]) -> dict:
    """The label as router. Its own work (it asks the large model at every token) is not charged: it is a bound, no method."""
    texts = []
    for chain in problems:
        run = generate_pair(small, large, chain.prompt(), r2r.oracle(large), 1.0, MAX_ANSWER)
        texts.append(Text(chain.prompt(), run.tokens, run.writers, large_read=run.large_read, small_steps=len(run.tokens)))
    return row_of("label oracle", 1.0, texts, problems, (*sizes[:2], 0))


def _different_row(labelled: Sequence[Labelled], problems: Sequence[Chain], sizes: tuple[int, int, int]) -> dict:
    """Routing every token on which the models differ writes the large model's text; where it calls is in the labels."""
    texts = []
    for one in labelled:
        at = [one.num_prompt + i for i, kind in enumerate(one.kind) if kind != IDENTICAL]
        texts.append(Text(one.text[:one.num_prompt], one.text[one.num_prompt:],
                          large_read=np.diff([0, *at]).tolist(), small_steps=len(one.kind)))
    return row_of("every different token", 1.0, texts, problems, (*sizes[:2], 0))


def whole_questions(rows: dict[str, list[Text]], hardness: np.ndarray, problems: Sequence[Chain], sizes: tuple[int, int, int],
                    shares: Sequence[float] = (0.2, 0.4, 0.6, 0.8)) -> list[dict]:
    """Query-level routing: the hardest questions go to the large model whole. hardness: a number a question, known beforehand."""
    order = np.argsort(-hardness, kind="stable")
    out = []
    for share in shares:
        to_large = set(order[:round(share * len(problems))].tolist())
        texts = [rows["large"][i] if i in to_large else rows["small"][i] for i in range(len(problems))]
        out.append(row_of("whole questions", share, texts, problems, (*sizes[:2], 0)))
    return out


@torch.no_grad()
def question_hardness(small, fitted_on: Sequence[Chain], problems: Sequence[Chain]) -> np.ndarray:
    """How likely the small model is to fail a question, from its state at the end of the prompt: logistic regression on other
    problems that it has answered alone. What query-level routing knows."""
    from sklearn.linear_model import LogisticRegression
    answers = write_answers(small, fitted_on)
    wrong = np.array([final_answer(text) != chain.answer for text, chain in zip(answers, fitted_on)])
    fit = LogisticRegression(max_iter=2000).fit(_prompt_states(small, fitted_on), wrong)
    return fit.predict_proba(_prompt_states(small, problems))[:, 1]


def _prompt_states(small, problems: Sequence[Chain]) -> np.ndarray:
    return np.stack([small.run(torch.tensor([chain.prompt()]), hidden=True).hidden[-1][0, -1].numpy() for chain in problems])


def label_shares(labelled: Sequence[Labelled]) -> pd.DataFrame:
    """Share of identical, neutral and divergent tokens, by what the large model's token is: a word of style, a digit, something else."""
    digits = range(FIRST_DIGIT, FIRST_DIGIT + 10)
    rows = [("style word" if token in STYLE else "digit" if token in digits else "other", kind)
            for one in labelled for token, kind in zip(one.text[one.num_prompt:], one.kind)]
    counts = pd.DataFrame(rows, columns=["group", "code"]).value_counts().rename("count").reset_index()
    counts["kind"] = [KINDS[code] for code in counts.pop("code")]
    total = pd.DataFrame({"kind": KINDS, "group": "all", "count": [int(counts.loc[counts.kind == kind, "count"].sum()) for kind in KINDS]})
    out = pd.concat([total, counts], ignore_index=True)
    return out.assign(share=out["count"] / len(rows), problems=len(labelled))


def thresholds_for(scores: np.ndarray, shares: Sequence[float] = SHARES) -> list[float]:
    """Thresholds that send these shares of the tokens of a calibration text to the large model."""
    return [float(np.quantile(scores, 1 - share)) for share in shares]


def measure(small, large, router: TokenRouter, threshold: float, problems: Sequence[Chain], labelled: Sequence[Labelled],
            hardness: np.ndarray, oracle_problems: int = 200, report=print) -> pd.DataFrame:
    """All methods on the same problems. labelled: these problems' labels; hardness: for query-level routing."""
    sizes = (large.num_parameters, small.num_parameters, router.num_parameters)
    plain = {"large": _plain(large, problems, True), "small": _plain(small, problems, False)}
    rows = [row_of("large model", 1.0, plain["large"], problems, sizes), row_of("small model", 0.0, plain["small"], problems, (*sizes[:2], 0)),
            _different_row(labelled, problems, sizes), *whole_questions(plain, hardness, problems, sizes)]
    calibration = write_scores(small, large, problems[:100], router)
    for method, score in (("router", r2r.router_scores(router, small)), ("entropy", r2r.entropy), ("log-u", r2r.log_u),
                          ("random tokens", r2r.random_scores(1))):
        knobs = thresholds_for(calibration[method]) + ([threshold] if method == "router" else [])
        for knob in sorted(knobs):
            texts = write_routed(small, large, problems, score, knob)
            rows.append(row_of(method, knob, texts, problems, (*sizes[:2], sizes[2] if method == "router" else 0)))
            report(rows[-1])
    rows += [row_of("speculative", gamma, _speculated(small, large, problems[:oracle_problems], gamma), problems[:oracle_problems],
                    (*sizes[:2], 0)) for gamma in (2, 4, 8)]
    rows.append(label_oracle_row(small, large, problems[:oracle_problems], sizes))
    return pd.DataFrame(rows)


@torch.no_grad()
def write_scores(small, large, problems: Sequence[Chain], router: TokenRouter) -> dict[str, np.ndarray]:
    """Each score at all answer tokens of the large model's texts: what thresholds are calibrated on."""
    found: dict[str, list] = {"router": [], "entropy": [], "log-u": []}
    routed = r2r.router_scores(router, small)
    for chain, answer in zip(problems, write_answers(large, problems)):
        state = small.run(torch.tensor([chain.prompt() + answer[:-1]]), hidden=True)
        at = slice(len(chain.prompt()) - 1, None)
        hidden, logits = state.hidden[-1][0, at], state.logits[0, at]
        for name, score in (("router", routed), ("entropy", r2r.entropy), ("log-u", r2r.log_u)):
            found[name].append(score(hidden, logits).numpy())
    out = {name: np.concatenate(parts) for name, parts in found.items()}
    return out | {"random tokens": np.linspace(0, 1, 10_001)}
