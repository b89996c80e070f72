"""Small tasks that show what a language model still knows of its context: pass key, copying, facts, continuation.

Each is deterministic in its seed and built with the model's own tokenizer, so that lengths are tokens. What
SmolLM2-135M does on them with the full cache: it finds the pass key in up to 2,000 tokens, copies most of a random
token string, and cannot answer from longer lists of facts, so facts are scored by the probability of the gold answer.
"""
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol, runtime_checkable

import numpy as np

from .text import Page, documentation_pages


@runtime_checkable
class Tokenizer(Protocol):
    """What the tasks need of a tokenizer."""

    vocab_size: int

    def encode(self, text: str) -> list[int]: ...

    def decode(self, ids: Sequence[int]) -> str: ...


@dataclass(frozen=True)
class Question:
    """Text tasks. A hit is `answer` at the start of what the model writes after context + question.

    answer starts with the space that separates it. choices: all answers that were possible.
    """

    context: str
    question: str
    answer: str
    choices: tuple[str, ...] = ()

    def is_hit(self, written: str) -> bool:
        """Whether the model's text starts with the answer, blanks aside."""
        return written.strip().startswith(self.answer.strip())


@dataclass(frozen=True)
class Scored:
    """Token tasks, teacher-forced: `ids` is the whole text, the first `num_context` tokens may be compressed.

    scored: places in `ids` whose NEXT token is to be predicted, so logits[scored] are judged against targets.
    name: what the text is.
    """

    ids: tuple[int, ...]
    num_context: int
    scored: tuple[int, ...]
    name: str = ""

    @property
    def context(self) -> tuple[int, ...]:
        return self.ids[:self.num_context]

    @property
    def rest(self) -> tuple[int, ...]:
        """The tokens that are fed after the context."""
        return self.ids[self.num_context:]

    @property
    def scored_in_rest(self) -> tuple[int, ...]:
        """`scored` as places in `rest`."""
        return tuple(place - self.num_context for place in self.scored)

    @property
    def targets(self) -> tuple[int, ...]:
        return tuple(self.ids[place + 1] for place in self.scored)


FILLER = ("The grass is green. ", "The sky is blue. ", "The sun is yellow. ", "Here we go. ", "There and back again. ")
COPY_FRAME = ("Repeat the list of words.\nList:", "\nList:")
NAMES = ("Alice", "Boris", "Clara", "David", "Elena", "Frank", "Grace", "Henry", "Irene", "James", "Karen", "Louis",
         "Maria", "Nadia", "Oscar", "Peter", "Quinn", "Robin", "Sarah", "Tomas", "Ursula", "Victor", "Wendy", "Xavier",
         "Yvonne", "Zelda", "Amir", "Bella", "Chen", "Diego", "Emma", "Felix")
COLOURS = ("red", "blue", "green", "yellow", "black", "white", "brown", "orange", "purple", "pink", "gray", "gold")


def passkey(n_tokens: int, seed: int, tokenizer: Tokenizer, stated_twice: bool = True) -> Question:
    """A five-digit key hidden in filler of at most `n_tokens` tokens (context only), at a place drawn by the seed.

    Source: arXiv 2305.16300, section 4.2 (the filler); stated_twice: the key is said once more, in reverse order.
    Raises ValueError when the key and its introduction do not fit.
    """
    draw = np.random.default_rng([seed, 0x9A55])
    key, depth = str(draw.integers(10_000, 100_000)), draw.uniform(0.1, 0.9)
    head = "There is important information hidden in a lot of irrelevant text. Find it and remember it. "
    needle = f"The pass key is {key}. Remember it. " + (f"{key} is the pass key. " if stated_twice else "")

    def text(count: int) -> str:
        before = round(count * depth)
        return head + _filler(before) + needle + _filler(count - before)
    count = _most_that_fits(text, n_tokens, tokenizer, "the pass key with its introduction")
    return Question(text(count).rstrip(), "\nWhat is the pass key? The pass key is", f" {key}")


def facts(num_facts: int, seed: int, tokenizer: Tokenizer | None = None, n_tokens: int | None = None) -> Question:
    """A list "name: colour" of `num_facts` different names, then the question for one of them.

    n_tokens (with a tokenizer): filler after the list brings the context to at most this length.
    Raises ValueError for fewer than 1 or more facts than there are names, or a list longer than n_tokens.
    """
    if not 1 <= num_facts <= len(NAMES):
        raise ValueError(f"num_facts {num_facts} is out of range: give 1 to {len(NAMES)}")
    draw = np.random.default_rng([seed, 0xFAC7])
    names = draw.choice(NAMES, num_facts, replace=False)
    colours = draw.choice(COLOURS, num_facts)
    asked = draw.integers(num_facts)
    listed = "Favourite colours:\n" + "".join(f"{name}: {colour}\n" for name, colour in zip(names, colours))
    context = listed
    if n_tokens is not None:
        if tokenizer is None:
            raise ValueError("n_tokens needs the tokenizer")
        count = _most_that_fits(lambda count: listed + _filler(count), n_tokens, tokenizer, f"the list of {num_facts} facts")
        context = listed + _filler(count)
    return Question(context.rstrip(), f"\nThe favourite colour again:\n{names[asked]}:", f" {colours[asked]}",
                    tuple(f" {colour}" for colour in COLOURS))


def copying(num_tokens: int, seed: int, tokenizer: Tokenizer, num_words: int = 1000) -> Scored:
    """A list of `num_tokens` random words, each one token, then the same again; scored from the second word on.

    Drawn without repetition from the `num_words` commonest English-looking words of the vocabulary (byte-pair ids
    are in order of frequency). One line of instruction frames both copies: with it SmolLM2 copies .81 to .88 of 160
    words, without it between .0 and .6. The context ends before the first word of the second copy.
    Raises ValueError when there are not enough words.
    """
    words = common_words(tokenizer, num_words)
    if not 2 <= num_tokens <= len(words):
        raise ValueError(f"num_tokens {num_tokens} is out of range: give 2 to {len(words)}")
    string = np.random.default_rng([seed, 0xC091]).choice(words, num_tokens, replace=False).tolist()
    context = [*tokenizer.encode(COPY_FRAME[0]), *string, *tokenizer.encode(COPY_FRAME[1])]
    scored = range(len(context), len(context) + num_tokens - 1)
    return Scored(tuple([*context, *string]), len(context), tuple(scored), "copying")


@lru_cache
def common_words(tokenizer: Tokenizer, count: int) -> tuple[int, ...]:
    """The lowest `count` ids that are a lower-case word with the space before it (fewer if there are fewer)."""
    words = (id for id in range(tokenizer.vocab_size) if re.fullmatch(" [a-z]+", tokenizer.decode([id])))
    return tuple(itertools.islice(words, count))


def continuation(seed: int, tokenizer: Tokenizer, num_context: int = 512, num_scored: int = 128) -> Scored:
    """The first num_context tokens of a documentation page as context, the next num_scored tokens scored.

    The seed picks among the pages that are long enough, a different one for each seed until all were used.
    Raises ValueError when no page is long enough.
    """
    need = num_context + num_scored
    pages = [(page, ids) for page in _longest_first(documentation_pages()) if len(ids := _encoded(page, tokenizer, need)) == need]
    if not pages:
        raise ValueError(f"no page has {need} tokens: give fewer")
    if num_context < 1 or num_scored < 1:
        raise ValueError(f"num_context {num_context} and num_scored {num_scored} must be at least 1")
    order = np.random.default_rng(0xD0C5).permutation(len(pages))
    page, ids = pages[order[seed % len(pages)]]
    return Scored(tuple(ids), num_context, tuple(range(num_context - 1, need - 1)), page.name)


def _longest_first(pages: Sequence[Page]) -> list[Page]:
    return sorted(pages, key=lambda page: (-len(page.text), page.name))


def _encoded(page: Page, tokenizer: Tokenizer, need: int) -> list[int]:
    """The first `need` tokens; only as much text is encoded as can hold them."""
    return tokenizer.encode(page.text[:16 * need])[:need] if len(page.text) >= need else []


def _filler(count: int) -> str:
    return "".join(FILLER[at % len(FILLER)] for at in range(count))


def _most_that_fits(text, n_tokens: int, tokenizer: Tokenizer, what: str) -> int:
    """Largest number of filler sentences for which text(count) has at most n_tokens tokens (bisection)."""
    def length(count: int) -> int:
        return len(tokenizer.encode(text(count).rstrip()))
    least = length(0)
    if least > n_tokens:
        raise ValueError(f"n_tokens {n_tokens} is too small: {what} takes {least} tokens")
    low, high = 0, max(1, n_tokens)                 # a sentence takes at least one token
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if length(middle) <= n_tokens else (low, middle - 1)
    return low
