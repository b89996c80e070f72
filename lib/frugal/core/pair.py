"""Two models that write one text: a small one at every step, a large one when asked.

The large model keeps its own cache and reads, when it is called, all tokens that it has not seen since its last call in
one pass. What it then says replaces the small model's token; the small model reads that token at its next step.

Source: arXiv 2505.21600 (R2R), section 3.3, for the lazily extended cache; the loop serves any two-model method.
"""
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

SMALL, LARGE = 0, 1


def extend(lm, cache, text: Sequence[int], **options):
    """Feeds the tokens of `text` that `cache` has not seen, in one pass; returns the LMOutput (`last_only` by default).

    text: all tokens so far, from the first one on. options: see `LM.run`. ValueError when the cache has seen all of them
    (there would be nothing to predict from) or more.
    """
    seen = int(cache.num_seen[0])
    if cache.batch != 1:
        raise ValueError(f"extend works on one sequence; this cache holds {cache.batch}: call it a sequence at a time")
    if seen >= len(text):
        raise ValueError(f"the cache has seen {seen} tokens and the text has {len(text)}: rewind the cache to at most "
                         f"{len(text) - 1} first")
    return lm.run(torch.tensor([list(text[seen:])], device=lm.device), cache, **({"last_only": True} | options))


def check_same_tokenizer(small, large) -> None:
    """ValueError unless both models read and write the same token ids."""
    one, two = small.tokenizer, large.tokenizer
    if one is two:
        return
    def words(tokenizer):
        return tokenizer.to_json() if hasattr(tokenizer, "to_json") else type(tokenizer)
    if small.config.vocab_size != large.config.vocab_size or one is None or two is None or words(one) != words(two):
        raise ValueError(f"{small.name!r} and {large.name!r} have different tokenizers ({small.config.vocab_size} and "
                         f"{large.config.vocab_size} ids): token ids of one mean nothing to the other; take two models of "
                         "one family")


@dataclass(frozen=True)
class PairStep:
    """What decides who writes the next token.

    index: number of the token to write. text: prompt and tokens so far. logits (V,), hidden (h,): of the small model at
    the last token (hidden: after its last layer). token: what the small model proposes.
    """
    index: int
    text: list[int]
    logits: Float[Tensor, "v"]
    hidden: Float[Tensor, "h"]
    token: int


@dataclass
class PairRun:
    """One text by two models. tokens: what was written; writers: SMALL or LARGE for each; proposed: the small model's
    token at each step; scores: what `decide` returned. large_read: tokens that each call of the large model read.
    small_s, large_s, decide_s: wall seconds. text: of the tokens, without the end token."""
    tokens: list[int] = field(default_factory=list)
    writers: list[int] = field(default_factory=list)
    proposed: list[int] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    large_read: list[int] = field(default_factory=list)
    small_s: float = 0.0
    large_s: float = 0.0
    decide_s: float = 0.0
    text: str = ""
    small_cache: object = None
    large_cache: object = None

    @property
    def large_share(self) -> float:
        """Share of the tokens that the large model wrote."""
        return sum(self.writers) / len(self.writers) if self.writers else 0.0


@torch.no_grad()
def generate_pair(small, large, prompt: Sequence[int], decide: Callable[[PairStep], float], threshold: float,
                  max_new_tokens: int = 64, stop_at_end: bool = True) -> PairRun:
    """Greedy text of two models: the large one writes the tokens at which `decide(step) >= threshold`.

    decide: a number for each step, from what the small model knows alone. ValueError for an empty prompt, models with
    different tokenizers, fewer than 1 new token, or a threshold that is not a number.
    """
    check_same_tokenizer(small, large)
    if not len(prompt):
        raise ValueError("the prompt is empty: give it at least one token")
    if max_new_tokens < 1 or not threshold == threshold:
        raise ValueError(f"max_new_tokens {max_new_tokens} must be at least 1, and threshold {threshold} a number")
    text, ends = [int(t) for t in prompt], set(large.config.eos_ids) if stop_at_end else set()
    run = PairRun(small_cache=small.new_cache(strict=True), large_cache=large.new_cache(strict=True))
    for index in range(max_new_tokens):
        step = _propose(small, text, index, run)
        start = time.perf_counter()
        run.scores.append(float(decide(step)))
        run.decide_s += time.perf_counter() - start
        token = _ask(large, text, run) if run.scores[-1] >= threshold else step.token
        run.tokens.append(token)
        text.append(token)
        if token in ends:
            break
    run.text = large.tokenizer.decode([t for t in run.tokens if t not in ends])
    return run


def _propose(small, text: list[int], index: int, run: PairRun) -> PairStep:
    start = time.perf_counter()
    out = extend(small, run.small_cache, text, hidden=True)
    logits = out.logits[0, -1]
    run.small_s += time.perf_counter() - start
    run.proposed.append(int(logits.argmax()))
    run.writers.append(SMALL)
    return PairStep(index, text, logits, out.hidden[-1][0, -1], run.proposed[-1])


def _ask(large, text: list[int], run: PairRun) -> int:
    start = time.perf_counter()
    run.large_read.append(len(text) - int(run.large_cache.num_seen[0]))
    token = int(extend(large, run.large_cache, text).logits[0, -1].argmax())
    run.large_s += time.perf_counter() - start
    run.writers[-1] = LARGE
    return token
