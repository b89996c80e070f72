"""Confident exit: a token leaves at the first candidate layer that is sure enough.

The layers above then lack the token's keys. Either its state is copied upwards (projected by the skipped layers' own key
and value matrices: cheap, not exact), or the layers are run later, when a deeper token needs them (exact).

Source: arXiv 2207.07061 (CALM), sections 3.3 (state copying), 3.4 (confidence: softmax gap, state saturation) and 3.5
(decaying threshold).
Differs: candidates are a few chosen layers, not all, because SmolLM2's head costs as much as eight layers; the threshold is
a setting and not calibrated for a guarantee. Recomputing on demand is ours: skipped layers run as one small prefill.
"""
import math
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from frugal.core.depth import EXECUTED, RECOMPUTED, Stack, checked_exit
from frugal.core.papers import Paper
from frugal.early_exit.fixed_exit import CALM
from frugal.early_exit.lenses import LogitLens

MEASURES = ("gap", "saturation")
MISSING = ("copy", "recompute")


@dataclass(frozen=True)
class ConfidenceExit:
    """Exit at the first of `exits` whose confidence reaches the threshold; a batch runs to its deepest token.

    threshold: 0 leaves at the first candidate, 1 never. measure: "gap" of the two highest probabilities (one lens and head
    at every candidate, charged), or "saturation", the cosine of the states before and after the candidate's last layer.
    missing: "copy" or "recompute". exits: layers run, ascending; None takes the lens's own, or a sixth of the depth
    apart from the middle on. decay: CALM's temperature of the threshold (the paper's 4), 0 for a constant one; horizon:
    number of tokens over which it decays.
    """
    threshold: float = 0.9
    exits: tuple[int, ...] | None = None
    lens: object = field(default_factory=LogitLens)
    measure: str = "gap"
    missing: str = "copy"
    decay: float = 0.0
    horizon: int = 64
    name: ClassVar[str] = "confidence_exit"
    kind: ClassVar[str] = "depth"
    paper: ClassVar[Paper] = CALM
    summary: ClassVar[str] = "leave at the first layer that is sure enough; copy or recompute the missing keys"

    def __post_init__(self):
        if not 0 <= self.threshold <= 1:
            raise ValueError(f"threshold {self.threshold} is out of range: give 0 (leave at once) to 1 (never leave)")
        for value, allowed, what in ((self.measure, MEASURES, "measure"), (self.missing, MISSING, "missing")):
            if value not in allowed:
                raise ValueError(f"{what} {value!r} is unknown: give {' or '.join(map(repr, allowed))}")
        if self.decay < 0 or self.horizon < 1:
            raise ValueError(f"decay {self.decay} must be 0 or more and horizon {self.horizon} at least 1")

    @classmethod
    def for_budget(cls, budget, lm, lens=None) -> "ConfidenceExit":
        """budget: the threshold itself; the layers that it saves are a result."""
        return cls(float(budget), lens=lens or LogitLens())

    def candidates(self, num_layers: int) -> list[int]:
        """Layers run at each candidate exit, ascending, the whole depth not included."""
        exits = self.exits
        if exits is None:
            maps = getattr(self.lens, "maps", None)
            exits = sorted(maps) if maps else range(num_layers // 2, num_layers, max(1, num_layers // 6))
        exits = [checked_exit(e, num_layers) for e in exits]
        if sorted(set(exits)) != exits:
            raise ValueError(f"exits {tuple(exits)} must ascend")
        return [e for e in exits if e < num_layers]

    def threshold_at(self, index: int) -> float:
        """The threshold of generated token `index`: constant, or decaying from a stricter start."""
        if self.decay == 0:
            return self.threshold
        return min(1.0, max(0.0, 0.9 * self.threshold + 0.1 * math.exp(-self.decay * index / self.horizon)))

    def prefill(self, stack: Stack, x: Float[Tensor, "b t h"]) -> Float[Tensor, "b 1 v"]:
        """The prompt runs every layer."""
        return stack.logits(stack.run(x, range(stack.num_layers))[:, -1:])

    def step(self, stack: Stack, x: Float[Tensor, "b 1 h"], index: int, memory: dict) -> Float[Tensor, "b 1 v"]:
        """memory: "depths" gets, per step, the layers after which each sequence left (a list of lists)."""
        waiting, depths, logits = list(range(len(x))), [stack.num_layers] * len(x), [None] * len(x)
        at, whole = 0, stack.num_layers
        for e in self.candidates(whole):
            x, sure, said = self._ask(stack, x, at, e, waiting, memory)
            at = e
            leaving = [b for b, s in zip(waiting, sure.tolist()) if s >= self.threshold_at(index)]
            if leaving:
                said = self.lens.logits(stack, x[leaving], e) if said is None else said[[waiting.index(b) for b in leaving]]
            for i, b in enumerate(leaving):
                depths[b], logits[b] = e, said[i]
            waiting = [b for b in waiting if b not in leaving]
            if not waiting:
                break
        else:
            x = self._climb(stack, x, at, whole, memory)
            at = whole
            for b, said in zip(waiting, stack.logits(x[waiting])):
                logits[b] = said
        self._leave(stack, x, at, memory)
        memory.setdefault("depths", []).append(depths)
        return torch.stack(logits)

    def _ask(self, stack: Stack, x: Tensor, at: int, e: int, waiting: list[int], memory: dict):
        """State after e layers, confidence of each waiting sequence, and its logits where they were needed."""
        if self.measure == "gap":
            x = self._climb(stack, x, at, e, memory)
            said = self.lens.logits(stack, x[waiting], e)
            top = said[:, -1].softmax(-1).topk(2, -1).values
            return x, (top[:, 0] - top[:, 1]).clamp(max=1 - 1e-7), said          # so that 1 really is "never"
        before = self._climb(stack, x, at, e - 1, memory)
        x = self._climb(stack, before, e - 1, e, memory)
        sure = torch.cosine_similarity(before[waiting, -1], x[waiting, -1], dim=-1)
        return x, sure.clamp(max=1 - 1e-7), None

    # -- keys that later tokens will miss ---------------------------------------------------------------------------

    def _leave(self, stack: Stack, x: Tensor, at: int, memory: dict) -> None:
        if at == stack.num_layers:
            return
        if self.missing == "copy":
            stack.fill(x, range(at, stack.num_layers))
        else:
            memory.setdefault("lagging", []).append((at, x))

    def _climb(self, stack: Stack, x: Tensor, first: int, last: int, memory: dict) -> Tensor:
        """Layers first .. last - 1 for the new token, together with every earlier token that left below them.

        A token is brought up as far as a later one needs it, so depths never rise with the position: those that lag
        behind at a layer are the newest ones, and with the new token they are one run of positions.
        """
        lagging = memory.get("lagging", [])
        while first < last:
            behind = [state for depth, state in lagging if depth == first]
            until = min([depth for depth, _ in lagging if depth > first] + [last])
            now = stack.cache.next_positions(1)                                       # (B, 1)
            positions = now + torch.arange(-len(behind), 1, device=now.device)
            moved = stack.run(torch.cat([*behind, x], 1), range(first, until), positions,
                              kind=RECOMPUTED if behind else EXECUTED)
            if behind:
                stack.mark(EXECUTED, list(range(first, until)), now)
                states = iter(moved[:, :-1].split(1, 1))
                lagging[:] = [(until, next(states)) if depth == first else (depth, state) for depth, state in lagging]
            x, first = moved[:, -1:], until
        lagging[:] = [(depth, state) for depth, state in lagging if depth < stack.num_layers]
        return x
