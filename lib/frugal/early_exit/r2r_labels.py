"""R2R's labels: at which tokens the small model would lead the large one to say something else.

The large model writes an answer. The small one reads it and proposes a token at every place. Where the proposals differ, the large
model finishes the sentence once from its own token and once from the small model's; a verifier compares the two sentences.

Source: arXiv 2505.21600 (R2R), section 3.2, and steps 0 to 4 of the repository thu-nics/R2R.
Differs: the verifier is an exact parser, not a 72B model. The large model writes greedily, so its own sentence stands in the answer
already and only one of the two continuations is computed.
"""
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from frugal.core.pair import check_same_tokenizer
from frugal.data.arithmetic_chains import EOS, PAD, STOP, Chain, same_meaning, sentence_start
from frugal.models.r2r_pair import greedy, write_answers

__all__ = ["DIVERGENT", "IDENTICAL", "KINDS", "NEUTRAL", "SENTENCE", "Labelled", "finish_sentence", "label", "label_answers", "read"]

IDENTICAL, NEUTRAL, DIVERGENT = 0, 1, 2
KINDS = ("identical", "neutral", "divergent")
SENTENCE = 20                                      # tokens after which a sentence that does not end is cut


@dataclass(frozen=True)
class Labelled:
    """One answer of the large model. text: prompt and answer; proposed, kind: for each token of the answer the small model's
    token there, and IDENTICAL, NEUTRAL or DIVERGENT."""
    text: list[int]
    num_prompt: int
    proposed: list[int]
    kind: list[int]


def finish_sentence(large, text: Sequence[int]) -> list[int]:
    """The sentence that the end of `text` belongs to, finished greedily by the large model, from its first token on."""
    text = list(text)
    start = sentence_start(text, len(text) - 1)
    if text[-1] not in (STOP, EOS):
        text += greedy(large, torch.tensor([text]), SENTENCE, stop=(STOP, EOS))[0].tolist()
    return text[start:]


def label(large, prefix: Sequence[int], small_token: int, large_token: int) -> int:
    """IDENTICAL, NEUTRAL or DIVERGENT for one place. prefix: all tokens before it. The large model writes both continuations."""
    if small_token == large_token:
        return IDENTICAL
    one, two = (finish_sentence(large, [*prefix, token]) for token in (small_token, large_token))
    return NEUTRAL if same_meaning(one, two) else DIVERGENT


@torch.no_grad()
def read(small, texts: Int[Tensor, "b t"]) -> tuple[Float[Tensor, "b t h"], Float[Tensor, "b t v"]]:
    """(hidden, logits) of the small model at every token of equally long texts, teacher-forced."""
    out = small.run(texts, hidden=True)
    return out.hidden[-1], out.logits


@torch.no_grad()
def label_answers(large, small, problems: Sequence[Chain], batch: int = 250, answers: Sequence[list[int]] | None = None,
                  progress=None) -> list[Labelled]:
    """Labels of all places of the large model's answers, in batches; the same as `label` place by place.

    answers: the large model's greedy answers, if they are there already. ValueError for two models with different tokenizers.
    """
    check_same_tokenizer(small, large)
    answers = write_answers(large, problems, batch) if answers is None else answers
    order = sorted(range(len(problems)), key=lambda i: (len(problems[i].steps), len(answers[i])))
    parts = [order[first:first + batch] for first in range(0, len(order), batch)]
    out: list[Labelled | None] = [None] * len(problems)
    for part in parts if progress is None else progress(parts):
        for i, found in zip(part, _label_batch(large, small, [problems[i].prompt() for i in part], [answers[i] for i in part])):
            out[i] = found
    return out


def _label_batch(large, small, prompts: list[list[int]], answers: list[list[int]]) -> list[Labelled]:
    whole = [prompt + answer for prompt, answer in zip(prompts, answers)]
    texts = torch.full((len(whole), max(map(len, whole))), PAD)
    for row, text in enumerate(whole):
        texts[row, :len(text)] = torch.tensor(text)
    proposed = read(small, texts)[1].argmax(-1)                                    # (B, T): at t, of the token t + 1
    places = [(row, at) for row, (prompt, text) in enumerate(zip(prompts, whole))
              for at in range(len(prompt), len(text)) if int(proposed[row, at - 1]) != text[at]]
    kinds = dict(zip(places, _kinds(large, texts, whole, places, [int(proposed[row, at - 1]) for row, at in places])))
    return [Labelled(text, len(prompt), proposed[row, len(prompt) - 1:len(text) - 1].tolist(),
                     [kinds.get((row, at), IDENTICAL) for at in range(len(prompt), len(text))])
            for row, (prompt, text) in enumerate(zip(prompts, whole))]


def _kinds(large, texts: Tensor, whole: list[list[int]], places: list[tuple[int, int]], tokens: list[int], chunk: int = 512
           ) -> list[int]:
    """The verdict on each place where the models differ. One pass fills the cache of all texts; each place copies its row of
    it, cut at the place, and the large model goes on from the small model's token."""
    cache = large.new_cache(len(texts))
    large.run(texts, cache, logits=False)
    out = []
    for first in range(0, len(places), chunk):
        own, proposals = places[first:first + chunk], torch.tensor(tokens[first:first + chunk])
        copies = cache.select([row for row, _ in own])
        copies.rewind([at for _, at in own])
        tails = greedy(large, proposals[:, None], SENTENCE, copies, stop=(STOP, EOS)).tolist()
        for (row, at), token, tail in zip(own, proposals.tolist(), tails):
            out.append(_verdict(whole[row], at, token, tail))
    return out


def _verdict(text: list[int], at: int, token: int, tail: list[int]) -> int:
    start = sentence_start(text, at)
    if token in (STOP, EOS):
        tail = []
    end = next((i for i in range(at, len(text)) if text[i] in (STOP, EOS)), len(text) - 1)
    end = min(end, at + SENTENCE)
    proposed = text[start:at] + [token] + [t for t in tail if t != PAD]
    return NEUTRAL if same_meaning(proposed, text[start:end + 1]) else DIVERGENT
