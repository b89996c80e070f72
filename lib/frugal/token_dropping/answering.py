"""Answers of the mini-VLM from the tokens a method keeps, for a batch of scenes that are asked alike.

One-word answers take one forward pass over the questions (padded behind the question mark: a causal model does not
see what follows). Captions are written greedily.
Shapes: B scenes, T prompt tokens.
"""
from collections.abc import Sequence

import torch

from frugal.data.scene_questions import CAPTION_PROMPT
from frugal.models.mini_vlm import VisualTokens
from frugal.token_dropping.keeping import prefill

MAX_NAMES = 8                                   # a scene has at most six objects


def one_words(vlm, tokens: VisualTokens, prompts: Sequence[Sequence[str]], method=None, budget: float | int = 1.0,
              positions: str = "original") -> list[list[str]]:
    """The first word of the greedy answer to every prompt: prompts[j][b] is the j-th question about scene b.

    A method inside the decoder reads the question, so it prefills once a question; the others once a scene.
    """
    inside = method is not None and method.kind == "inside"
    cache, found = None if inside else prefill(vlm, tokens, method, budget, positions), []
    for asked in prompts:
        ids = [vlm.vocab.encode(prompt) for prompt in asked]
        if inside:
            found.append(_inside_words(vlm, tokens, ids, method, budget))
        else:
            last = torch.tensor([len(own) - 1 for own in ids])
            padded = torch.tensor([own + [0] * (int(last.max()) + 1 - len(own)) for own in ids])
            logits = vlm.lm(padded, cache.copy())
            found.append(_words(vlm, logits[torch.arange(len(ids)), last].argmax(-1).tolist()))
    return found


def _inside_words(vlm, tokens: VisualTokens, ids: list[list[int]], method, budget) -> list[str]:
    """Prompts of one length go together: what follows the question would change which token is the last."""
    found = [""] * len(ids)
    for length in sorted({len(own) for own in ids}):
        rows = [b for b, own in enumerate(ids) if len(own) == length]
        _, logits = method.prefill(vlm, some(tokens, rows), torch.tensor([ids[b] for b in rows]), budget)
        for b, word in zip(rows, _words(vlm, logits.argmax(-1).tolist())):
            found[b] = word
    return found


def captions(vlm, tokens: VisualTokens, method=None, budget: float | int = 1.0, positions: str = "original"
             ) -> list[list[str]]:
    """The names that the greedy caption of every scene lists, in order, without the end token."""
    prompt = torch.tensor([vlm.vocab.encode(CAPTION_PROMPT)]).expand(tokens.embeds.shape[0], -1)
    if method is not None and method.kind == "inside":
        cache, logits = method.prefill(vlm, tokens, prompt, budget)
    else:
        cache = prefill(vlm, tokens, method, budget, positions)
        logits = vlm.lm(prompt.contiguous(), cache, last_only=True)[:, -1]
    written = []
    for _ in range(MAX_NAMES):
        written.append(logits.argmax(-1))
        if (torch.stack(written) == vlm.vocab.eos_id).any(0).all():
            break
        logits = vlm.lm(written[-1][:, None], cache, last_only=True)[:, -1]
    rows = torch.stack(written, 1).tolist()
    return [_words(vlm, row[:row.index(vlm.vocab.eos_id)] if vlm.vocab.eos_id in row else row) for row in rows]


def some(tokens: VisualTokens, rows: Sequence[int]) -> VisualTokens:
    """The same for some of the scenes."""
    features = type(tokens.features)(**{name: value[list(rows)] for name, value in vars(tokens.features).items()})
    return VisualTokens(tokens.embeds[list(rows)], features, tokens.grid)


def _words(vlm, ids: list[int]) -> list[str]:
    return [vlm.vocab.token_str(i) for i in ids]
