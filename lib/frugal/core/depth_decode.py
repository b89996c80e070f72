"""Greedy decoding with a depth policy: prompts in, texts out, with the layers, bytes and seconds of each step.

A policy says how one token goes through the stack; the loop embeds, advances and picks. Prompts are prefilled one by
one and decoded as one batch. A sequence that has ended stays in the batch until the last one ends: the steps of
all sequences are the same steps, which is just what depth methods for batches are about.
"""
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from frugal.core.depth import Event, Stack, Work, checked_layers
from frugal.core.kvcache import KVCache


@runtime_checkable
class DepthPolicy(Protocol):
    """How tokens go through the layers. Both methods leave `stack.advance` to the loop and keep no state of their own;
    what a policy must remember between the steps of one generation goes to `memory`, a dict that starts empty."""

    def prefill(self, stack: Stack, x: Float[Tensor, "b t h"]) -> Float[Tensor, "b 1 v"]:
        """The prompt's states before layer 0 -> logits of the token after it."""

    def step(self, stack: Stack, x: Float[Tensor, "b 1 h"], index: int, memory: dict) -> Float[Tensor, "b 1 v"]:
        """One new token a sequence; index: number of the token fed, 0 for the first one generated."""


class PlannedDepth:
    """A policy whose layers depend on the position alone: a subclass gives `layers(index, num_layers)`.

    index -1 is the prompt. Where a layer list jumps, `bridge(entry)` may give an affine map for the state that enters
    layer `entry`; `read(stack, x, last)` turns the state after layer `last` into logits.
    """

    def layers(self, index: int, num_layers: int) -> list[int]:
        raise NotImplementedError

    def bridge(self, entry: int):
        return None

    def read(self, stack: Stack, x: Tensor, last: int) -> Tensor:
        return stack.logits(x)

    def prefill(self, stack, x):
        return self._run(stack, x, -1)

    def step(self, stack, x, index, memory):
        return self._run(stack, x, index)

    def _run(self, stack: Stack, x: Tensor, index: int) -> Tensor:
        layers = checked_layers(self.layers(index, stack.num_layers), stack.num_layers)
        if not layers:
            raise ValueError(f"{type(self).__name__} runs no layer at index {index}: give at least one")
        parts: list[tuple] = []                     # runs of layers with no map between them go through in one call
        for block in blocks(layers):
            bridge = self.bridge(block[0]) if block[0] != 0 and block != layers else None
            if bridge is None and parts:
                parts[-1][1].extend(block)
            else:
                parts.append((bridge, block))
        for bridge, part in parts:
            x = stack.run(x if bridge is None else stack.map(x, bridge), part)
        return self.read(stack, x[:, -1:], layers[-1])


class FullDepth(PlannedDepth):
    """Every layer for every token: plain greedy decoding, the baseline of every depth method."""

    def layers(self, index, num_layers):
        return list(range(num_layers))


def blocks(layers: Sequence[int]) -> list[list[int]]:
    """Cuts ascending layers where they jump: [0, 20, 21] -> [[0], [20, 21]]."""
    found: list[list[int]] = []
    for i in layers:
        if found and found[-1][-1] + 1 == i:
            found[-1].append(i)
        else:
            found.append([i])
    return found


@dataclass
class DepthRun:
    """What `decode` did.

    tokens, texts: per prompt, cut at its end token; fed: per prompt all tokens written, uncut. prompts: tokens of each.
    prompt_work: counts of prefill; step_work: counts of each decode step. step_s, step_cpu_s: wall seconds, and CPU
    seconds of the process, per step. logits: (B, steps, V) where asked for. stack: that of decoding, whose
    `cells(sequence)` draws the grid. memory: what the policy kept between steps.
    """
    tokens: list[list[int]]
    texts: list[str]
    fed: list[list[int]]
    prompt_work: Work
    step_work: list[Work]
    step_s: list[float]
    step_cpu_s: list[float]
    prefill_s: float
    stack: Stack
    prompts: list[int]
    logits: Tensor | None = None
    memory: dict = field(default_factory=dict)

    @property
    def work(self) -> Work:
        return sum(self.step_work, Work())

    @property
    def decode_s(self) -> float:
        return sum(self.step_s)

    @property
    def mean_layers(self) -> float:
        """Layers run per token decoded, mean over steps and sequences (layers run again for earlier tokens included)."""
        steps = len(self.step_work) * self.stack.cache.batch
        return self.work.layer_tok / steps if steps else 0.0


def encoded(lm, prompts) -> list[list[int]]:
    """Prompts (text or token ids) as ids. ValueError names the first empty one."""
    prompts = [prompts] if isinstance(prompts, str) or (len(prompts) and isinstance(prompts[0], int)) else list(prompts)
    ids = [lm.tokenizer.encode(p) if isinstance(p, str) else [int(t) for t in p] for p in prompts]
    for i, prompt in enumerate(ids):
        if not prompt:
            raise ValueError(f"prompt {i} of {len(ids)} is empty: give it at least one token, or leave it out of the batch")
    if not ids:
        raise ValueError("no prompt was given: give at least one")
    return ids


@torch.no_grad()
def decode(lm, prompts, policy: DepthPolicy, max_new_tokens: int = 32, *, forced: Int[Tensor, "b t"] | None = None,
           keep_logits: bool = False, stop_at_end: bool = False, on_step=None) -> DepthRun:
    """Greedy tokens after each prompt under `policy`.

    forced: tokens (B, T) to feed in place of the picks (teacher forcing; T replaces max_new_tokens): `logits` then
    predict them, `logits[:, i]` the token `forced[:, i]`. on_step: called with (index, tokens of the step (B,)).
    Raises ValueError for an empty prompt, fewer than 1 new token, or forced tokens of another batch.
    """
    ids = encoded(lm, prompts)
    if forced is not None:
        if forced.shape[0] != len(ids) or forced.shape[1] < 1:
            raise ValueError(f"forced tokens are {tuple(forced.shape)}, but there are {len(ids)} prompts: give (prompts, steps)")
        max_new_tokens = forced.shape[1]
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens must be at least 1, got {max_new_tokens}")
    start = time.perf_counter()
    stack, logits, prompt_work = _prefill(lm, ids, policy, max_new_tokens)
    run = DepthRun([], [], [[] for _ in ids], prompt_work, [], [], [], time.perf_counter() - start, stack, [len(p) for p in ids])
    kept, ends = [], set(lm.config.eos_ids) if stop_at_end else set()
    for index in range(max_new_tokens):
        if keep_logits:
            kept.append(logits[:, -1])
        picked = logits[:, -1].argmax(-1) if forced is None else forced[:, index].to(logits.device)
        for row, token in zip(run.fed, picked.tolist()):
            row.append(token)
        if on_step is not None:
            on_step(index, picked)
        if index + 1 == max_new_tokens or all(ends & set(row) for row in run.fed):
            break
        logits = _step(run, picked, policy, index)
    run.logits = torch.stack(kept, 1) if keep_logits else None
    run.tokens = [_cut(row, ends) for row in run.fed]
    run.texts = [lm.tokenizer.decode(row) for row in run.tokens] if lm.tokenizer is not None else []
    return run


def _step(run: DepthRun, picked: Tensor, policy: DepthPolicy, index: int) -> Tensor:
    run.stack.work = Work()
    cpu, start = time.process_time(), time.perf_counter()
    logits = policy.step(run.stack, run.stack.embed(picked[:, None]), index, run.memory)
    run.stack.advance()
    run.step_s.append(time.perf_counter() - start)
    run.step_cpu_s.append(time.process_time() - cpu)
    run.step_work.append(run.stack.work)
    return logits


def _prefill(lm, ids: list[list[int]], policy: DepthPolicy, room: int) -> tuple[Stack, Tensor, Work]:
    stacks, logits = [], []
    for prompt in ids:
        stack = Stack(lm, lm.new_cache(1, strict=True, reserve=len(prompt) + room if len(ids) == 1 else 0))
        logits.append(policy.prefill(stack, stack.embed(torch.tensor([prompt], device=lm.device))))
        stack.advance(len(prompt))
        stacks.append(stack)
    work = sum((stack.work for stack in stacks), Work())
    if len(ids) == 1:
        return stacks[0], logits[0], work
    batch = Stack(lm, KVCache.stack([stack.cache for stack in stacks], reserve=room), len(ids))
    for b, stack in enumerate(stacks):                                   # so that the grid shows the prompts as well
        batch.events += [Event(e.kind, e.layers, np.where(np.arange(len(ids)) == b, e.first[0], -1), e.count)
                         for e in stack.events]
    return batch, torch.cat(logits), work


def _cut(tokens: list[int], ends: set[int]) -> list[int]:
    for i, token in enumerate(tokens):
        if token in ends:
            return tokens[:i]
    return tokens
