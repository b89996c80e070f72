"""Self-speculative decoding: the first layers draft, all layers check, and the draft's own work is kept.

Drafting runs the first E layers and a lens, token by token. Checking runs only the layers above, on the states that the
draft left at layer E, all drafted tokens in one pass. What the whole model would have said is kept, so the text is that
of greedy decoding, whatever the draft is worth.

Source: arXiv 2404.16710 (LayerSkip), section 4.3 (self-speculative decoding with a shared cache and reused states).
Differs: the model is not trained with layer dropout and early-exit loss, unless it is the small one that was; a lens may
stand before the head.
"""
import time
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from frugal.core.budgets import resolve
from frugal.core.depth import Stack, Work, checked_exit
from frugal.core.depth_decode import FullDepth, encoded
from frugal.core.papers import Paper
from frugal.early_exit.lenses import LogitLens


@dataclass
class SpeculativeRun:
    """tokens, text: what was written. drafted, accepted: tokens over all rounds. prompt_work, work: counts of prefill and
    of decoding; decode_s, decode_cpu_s: wall and CPU seconds of decoding. stack: the cache and the grid of cells."""
    tokens: list[int]
    text: str
    rounds: int
    drafted: int
    accepted: int
    prompt_work: Work
    work: Work
    decode_s: float
    decode_cpu_s: float
    stack: Stack

    @property
    def acceptance(self) -> float:
        """Share of the drafted tokens that the whole model would have written too."""
        return self.accepted / self.drafted if self.drafted else 0.0


@dataclass(frozen=True)
class SelfSpeculative:
    """Draft `gamma` tokens with the first `exit_layer` layers and `lens`, then check them with the rest.

    exit_layer: 1 to all but one layer. gamma: drafted tokens a round, at least 1.
    """
    exit_layer: int
    gamma: int = 4
    lens: object = field(default_factory=LogitLens)
    name: ClassVar[str] = "self_speculative"
    kind: ClassVar[str] = "decoder"
    paper: ClassVar[Paper] = Paper.other(title="LayerSkip: Enabling Early Exit Inference and Self-Speculative Decoding",
                                         arxiv="2404.16710", where="section 4.3", authors="Elhoushi, Mostafa")
    summary: ClassVar[str] = "the first layers draft, all layers check; the text is that of greedy decoding"

    def __post_init__(self):
        checked_exit(self.exit_layer, 10**6)
        if self.gamma < 1:
            raise ValueError(f"gamma {self.gamma} is out of range: draft at least 1 token a round")

    @classmethod
    def for_budget(cls, budget, lm, lens=None) -> "SelfSpeculative":
        """budget: share of the layers that draft, or a number of them; with a fitted lens the nearest of its exits."""
        wanted = min(resolve(budget, lm.config.num_layers), lm.config.num_layers - 1)
        maps = getattr(lens, "maps", None)
        if maps is not None:
            wanted = min(maps, key=lambda e: (abs(e - wanted), e))
        return cls(wanted, lens=lens or LogitLens())

    @torch.no_grad()
    def generate(self, lm, prompt, max_new_tokens: int = 64, stop_at_end: bool = True) -> SpeculativeRun:
        """Greedy text after one prompt (text or ids). ValueError for an empty prompt or an exit outside the model."""
        if self.exit_layer >= lm.config.num_layers:
            raise ValueError(f"exit layer {self.exit_layer} is outside the model: nothing would be left to check with; give 1 "
                             f"to {lm.config.num_layers - 1}")
        if max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be at least 1, got {max_new_tokens}")
        prompt, = encoded(lm, prompt if isinstance(prompt, str) else [list(prompt)])
        stack, ends = Stack(lm), set(lm.config.eos_ids) if stop_at_end else set()
        logits = FullDepth().prefill(stack, stack.embed(torch.tensor([prompt], device=lm.device)))
        stack.advance(len(prompt))
        run = SpeculativeRun([int(logits[0, -1].argmax())], "", 0, 0, 0, stack.work, Work(), 0.0, 0.0, stack)
        stack.work, start, cpu = run.work, time.perf_counter(), time.process_time()
        while len(run.tokens) < max_new_tokens and not ends & set(run.tokens):
            self._round(stack, run, min(self.gamma, max_new_tokens - len(run.tokens)))
        run.decode_s, run.decode_cpu_s = time.perf_counter() - start, time.process_time() - cpu
        run.tokens = run.tokens[:max_new_tokens]
        if found := [i for i, token in enumerate(run.tokens) if token in ends]:
            run.tokens = run.tokens[:found[0]]
        run.text = lm.tokenizer.decode(run.tokens)
        return run

    def _round(self, stack: Stack, run: SpeculativeRun, gamma: int) -> None:
        """Feeds the last token written and `gamma` drafts; writes the drafts that hold and the next token."""
        seen, token, states, drafts = int(stack.cache.num_seen[0]), run.tokens[-1], [], []
        for i in range(gamma + 1):
            states.append(self._lower(stack, token, seen + i))
            if i < gamma:
                token = int(self.lens.logits(stack, states[-1], self.exit_layer)[0, -1].argmax())
                drafts.append(token)
        checked = stack.run(torch.cat(states, 1), range(self.exit_layer, stack.num_layers))
        wanted = stack.logits(checked)[0].argmax(-1).tolist()
        kept = next((i for i, (draft, right) in enumerate(zip(drafts, wanted)) if draft != right), gamma)
        stack.advance(gamma + 1)
        stack.cache.rewind(seen + kept + 1)
        run.tokens += drafts[:kept] + [wanted[kept]]
        run.rounds, run.drafted, run.accepted = run.rounds + 1, run.drafted + gamma, run.accepted + kept

    def _lower(self, stack: Stack, token: int, position: int) -> Tensor:
        device = stack.lm.device
        x = stack.embed(torch.tensor([[token]], device=device))
        return stack.run(x, range(self.exit_layer), torch.tensor([[position]], device=device))
