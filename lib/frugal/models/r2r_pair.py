"""The pair of R2R: a large and a small decoder over arithmetic chains, both as `frugal.core.lm.LM`.

Source: arXiv 2505.21600 (R2R): R1-Distill-Qwen-32B and 1.5B, here 1.8 M and 0.1 M parameters, about the same ratio.
Differs: trained from scratch by recipes/train_r2r.py; the small one is stopped early on purpose, so that it is right often, not always.
"""
from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from frugal.core.lm import LM, LMConfig
from frugal.data.arithmetic_chains import (
    BOS,
    EOS,
    MAX_ANSWER,
    PAD,
    VOCAB_SIZE,
    Chain,
    ChainTokenizer,
    final_answer,
)
from frugal.models import load_weights

_COMMON = dict(vocab_size=VOCAB_SIZE, rope_theta=10_000.0, norm_eps=1e-5, max_positions=128, tie_embeddings=False)    # a text, and a sentence that does not end
LLM_SHAPE = _COMMON | dict(hidden_size=192, num_layers=4, num_heads=6, num_kv_heads=6, head_dim=32, intermediate_size=512)
SLM_SHAPE = _COMMON | dict(hidden_size=64, num_layers=2, num_heads=4, num_kv_heads=4, head_dim=16, intermediate_size=176)
SHAPES = {"llm": LLM_SHAPE, "slm": SLM_SHAPE}


def make_lm(weights: dict[str, Tensor], shape: dict, name: str = "r2r") -> LM:
    """An LM over the given weights, with the tokenizer of the chains."""
    config = LMConfig(**shape, bos_id=BOS, eos_ids=(EOS,))
    return LM(config, {key: value.detach().float().contiguous() for key, value in weights.items()}, ChainTokenizer(), name=name)


def load_pair() -> tuple[LM, LM]:
    """(LLM, SLM), trained, from the package's weights. Raises WeightsError when they are missing or damaged."""
    pair = []
    for size in ("llm", "slm"):
        weights, card = load_weights(f"r2r_{size}")
        pair.append(make_lm(weights, card["shape"], f"r2r-{size}"))
    return pair[0], pair[1]


@torch.no_grad()
def greedy(lm: LM, tokens: Int[Tensor, "b t"], max_new_tokens: int, cache=None, stop: tuple[int, ...] = (EOS,)
           ) -> Int[Tensor, "b n"]:
    """What the model writes behind each row, all rows in step; a row that has written a token of `stop` is padded with PAD.

    tokens: equally long texts (B, T), or with a `cache` the tokens (B, T) that it has not seen. A row leaves the batch when it is done.
    """
    batch = tokens.shape[0]
    cache = lm.new_cache(batch) if cache is None else cache
    out = torch.full((batch, max_new_tokens), PAD)
    rows, live, ends = torch.arange(batch), torch.ones(batch, dtype=torch.bool), torch.tensor(stop)
    logits = lm(tokens, cache, last_only=True)[:, -1]
    for at in range(max_new_tokens):
        chosen = torch.where(live, logits.argmax(-1), PAD)
        out[rows, at] = chosen
        live = live & ~torch.isin(chosen, ends)
        if at + 1 == max_new_tokens or not live.any():
            return out[:, :at + 1]
        if int(live.sum()) < 0.75 * len(rows):                           # a cut copies the cache: not for every row that ends
            cache, rows, chosen = cache.select(live.nonzero()[:, 0].tolist()), rows[live], chosen[live]
            live = live[live]
        logits = lm(chosen[:, None], cache)[:, -1]
    return out


def write_answers(lm: LM, problems: Sequence[Chain], batch: int = 250) -> list[list[int]]:
    """The greedy answer of each problem, token ids with the `<eos>` at their end, in the order of the problems."""
    out: list[list[int]] = [[] for _ in problems]
    for num_steps in sorted({len(chain.steps) for chain in problems}):   # equally many steps: equally long prompts
        alike = [i for i, chain in enumerate(problems) if len(chain.steps) == num_steps]
        for first in range(0, len(alike), batch):
            part = alike[first:first + batch]
            prompts = torch.tensor([problems[i].prompt() for i in part])
            for i, row in zip(part, greedy(lm, prompts, MAX_ANSWER).tolist()):
                out[i] = row[:row.index(EOS) + 1] if EOS in row else row
    return out


def right_share(answers: Sequence[Sequence[int]], problems: Sequence[Chain]) -> float:
    """Share of the answers that end in the right value."""
    return sum(final_answer(text) == chain.answer for text, chain in zip(answers, problems)) / len(problems)
