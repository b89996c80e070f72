"""Decoding with a hand on the wheel: what steering methods share, plain greedy decoding, and the no-image contrast.

A steering method begins a batch of scenes with `begin(vlm, seen, prompt)`: it may edit attention or states of the
decoder, compare with a pass that has not seen the image, or mix in early layers. `decode` then runs greedily. Nothing
is saved here; a method's price is extra passes and products a token, and `passes` says which.

Shapes: B scenes, T prompt tokens, N visual tokens, L layers, V vocabulary, d width.
Source: the contrast: arXiv 2407.21771 (PAI), section 3.3, as PAINT (arXiv 2501.12206) takes it over.
"""
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from frugal.core.edits import Watch
from frugal.core.kvcache import KVCache
from frugal.core.lm import LM


@dataclass
class StepView:
    """What `on_step` is shown. hidden: last row after the embedding and after each layer, (B, d) each, if asked for.
    logits: (B, V), as the choice was made. tokens: (B,) chosen. running: (B,) whether a caption was not over before."""
    index: int
    hidden: list[Tensor]
    logits: Float[Tensor, "b v"]
    tokens: Int[Tensor, "b"]
    running: Tensor


@dataclass
class Decoding:
    """A batch under way. lm: the decoder with its edits; cache: visual tokens inside, then prompt and answer.

    early: (logits of the last row, hidden states of the last row by layer) -> logits. contrast: the second pass.
    """
    lm: LM
    cache: KVCache
    early: Callable[[Tensor, list[Tensor]], Tensor] | None = None
    contrast: "NoImageContrast | None" = None

    def step(self, tokens: Int[Tensor, "b t"], hidden: bool = False, held: Tensor | None = None, end_id: int = 0
             ) -> tuple[Float[Tensor, "b v"], list[Tensor]]:
        """Logits of the next token after these, and on request the last row's states by layer. held (B,): scenes that may
        not end yet; their end token goes before the contrast, whose cut would otherwise leave them no word at all."""
        out = self.lm.run(tokens, self.cache, hidden=hidden or self.early is not None, last_only=True)
        states = [state[:, -1] for state in out.hidden]
        logits = out.logits[:, -1]
        if self.early is not None:
            logits = self.early(logits, states)
        if held is not None:
            logits[:, end_id] = logits[:, end_id].masked_fill(held, -torch.inf)
        if self.contrast is not None:
            logits = self.contrast.step(tokens, logits)
        return logits, states


class Steering:
    """Base of the steering methods. name, summary: as shown to readers; kind keeps them out of budget sweeps."""
    kind: ClassVar[str] = "steering"
    name: ClassVar[str]
    summary: ClassVar[str]

    def begin(self, vlm, seen, prompt: Int[Tensor, "b t"], prefix: KVCache | None = None,
              watch: Watch | None = None) -> Decoding:
        """Ready to decode. prefix: the cache of the plain visual prefill, if there is one already (it is copied).
        watch: is shown the attention rows of every layer (see `frugal.core.edits`)."""
        raise NotImplementedError

    def base(self) -> "Steering | None":
        """The method that prepares the same decoder and cache, where several settings can share that work."""
        return None

    def on(self, begun: Decoding, lm: LM) -> Decoding:
        """This method on a copy of what `base` has prepared."""
        raise NotImplementedError

    def passes(self, num_layers: int) -> dict[str, int]:
        """Extra work: decoder passes and output-matrix products a token, and prompt passes an image."""
        return {"passes_per_token": 0, "unembeddings_per_token": 0, "prompt_passes": 0}


@dataclass(frozen=True)
class Greedy(Steering):
    """The model as it is."""
    name: ClassVar[str] = "greedy"
    summary: ClassVar[str] = "the unmodified model"

    def begin(self, vlm, seen, prompt, prefix=None, watch=None) -> Decoding:
        from frugal.core.edits import Edits, edited
        return Decoding(edited(vlm.lm, Edits(watch=watch)), started(vlm, seen, prefix))


def started(vlm, seen, prefix: KVCache | None, lm: LM | None = None) -> KVCache:
    """A cache of one's own that holds the visual tokens: a copy of `prefix`, or a new prefill."""
    return vlm.prefill(seen.embeds, lm=lm) if prefix is None else prefix.copy()


def contrast_logits(with_image: Float[Tensor, "b v"], without: Float[Tensor, "b v"], gamma: float | int = 1.1,
                    cut: float | int = 0.1) -> Float[Tensor, "b v"]:
    """log p = gamma * (log p_image - log p_text) + log p_text; tokens with p_image < cut * max p_image are ruled out.

    gamma 1 is the image's own distribution. Source: arXiv 2407.21771, section 3.3.
    """
    image, text = with_image.log_softmax(-1), without.log_softmax(-1)
    mixed = gamma * (image - text) + text
    if cut <= 0:
        return mixed
    return mixed.masked_fill(image < image.amax(-1, keepdim=True) + torch.tensor(cut).log(), -torch.inf)


class NoImageContrast:
    """The second pass: the plain decoder on the same words without any visual token, with a cache of its own."""

    def __init__(self, lm: LM, batch: int, gamma: float | int, cut: float | int):
        self.lm, self.cache, self.gamma, self.cut = lm, lm.new_cache(batch), gamma, cut

    def step(self, tokens: Tensor, logits: Tensor) -> Tensor:
        without = self.lm.run(tokens, self.cache, last_only=True).logits[:, -1]
        return contrast_logits(logits, without, self.gamma, self.cut)


def decode(decoding: Decoding, prompt: Int[Tensor, "b t"], max_new_tokens: int, end_id: int, *,
           hold_end: Sequence[int] | None = None, on_step: Callable[[StepView], None] | None = None,
           hidden: bool = False) -> list[list[int]]:
    """Greedy answers, one list of token ids a scene, the end token left out.

    hold_end: how many tokens each scene must say before it may end (forced length). on_step: shown every step;
    `hidden` adds the states by layer to what it is shown. ValueError when a scene is to say more than max_new_tokens.
    """
    if hold_end is not None and max(hold_end) > max_new_tokens:
        raise ValueError(f"hold_end asks for {max(hold_end)} tokens, max_new_tokens allows {max_new_tokens}: raise it")
    tokens, batch = prompt, len(prompt)
    least = torch.tensor(hold_end if hold_end is not None else [])
    running, chosen = torch.ones(batch, dtype=torch.bool), []
    for index in range(max_new_tokens):
        logits, states = decoding.step(tokens, hidden, least > index if hold_end is not None else None, end_id)
        picked = logits.argmax(-1)
        if on_step is not None:
            on_step(StepView(index, states, logits, picked, running.clone()))
        running &= picked != end_id
        chosen.append(picked.masked_fill(~running, end_id))
        if not running.any():
            break
        tokens = chosen[-1][:, None]
    said = torch.stack(chosen, 1).tolist()
    return [row[:row.index(end_id)] if end_id in row else row for row in said]


class MassRecorder:
    """A `watch` that keeps, per pass, the attention mass of the newest row on the visual tokens: (steps, L, B, H)."""

    def __init__(self, num_visual: int, num_layers: int):
        self.num_visual, self.num_layers, self.rows = num_visual, num_layers, []

    def __call__(self, layer: int, probs: Tensor) -> None:
        self.rows.append(probs[:, :, -1, :self.num_visual].sum(-1))

    def mass(self) -> Float[Tensor, "steps l b h"]:
        stacked = torch.stack(self.rows)
        return stacked.view(-1, self.num_layers, *stacked.shape[1:])
