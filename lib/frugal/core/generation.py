"""Prefill and decode: prompts in, texts out, with the cache, the seconds and the bytes they took.

Prompts are prefilled one by one (their lengths differ and prefill is bound by arithmetic), then decoded as one
batch (decoding is bound by reading weights, which a batch reads once). Under protocol "compress_once" a prompt has
two parts: the context, which is compressed, and the question, which is fed afterwards.
"""
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from frugal.core.budgets import resolve
from frugal.core.eviction import PROTOCOLS, Evictor
from frugal.core.kvcache import KVCache


@dataclass(frozen=True)
class Prompt:
    """A context to compress and a question to ask of it; both are text or token ids."""
    context: str | list[int]
    question: str | list[int]


@dataclass
class Step:
    """What `on_step` receives: the number of the step, and per running sequence its index, token and text so far."""
    index: int
    sequences: list[int]
    tokens: list[int]
    texts: list[str]
    num_held: list[int]
    num_bytes: int


@dataclass
class Generation:
    """One answered prompt.

    text, tokens: what was generated. num_prompt: tokens of the prompt. cache: as it was after the last token.
    prefill_s, decode_s: seconds (decode of the whole batch this prompt ran in); policy_s: the policy's own work
    in both. num_bytes: real storage of its cache at the end; prompt_bytes: the same when decoding began.
    """
    text: str
    tokens: list[int]
    num_prompt: int
    cache: object
    prefill_s: float
    decode_s: float = 0.0
    policy_s: float = 0.0
    prompt_bytes: int = 0
    num_bytes: int = 0

    @property
    def seconds(self) -> float:
        return self.prefill_s + self.decode_s


def generate(lm, prompts, policy=None, budget: float | int | None = None, protocol: str = "compress_once",
             max_new_tokens: int = 64, seed: int = 0, on_step: Callable[[Step], None] | None = None, *,
             temperature: float = 0.0, positions: str = "original", query_aware: bool = False,
             stop_at_end: bool = True) -> list[Generation]:
    """Answers prompts, each a text, token ids or a `Prompt`; returns one Generation a prompt, in order.

    policy, budget: an eviction policy and how much it may keep, as a fraction of the compressed tokens or a count of
    slots; or a cache method (MiKV, ShadowKV) and its fraction of the full cache's bytes. temperature 0 is greedy;
    above it tokens are drawn with `seed`. query_aware: under "compress_once", let the policy see the question too
    and compress both. on_step: called after each token; raising from it stops the run.
    Raises ValueError for an empty prompt, one beyond the context, a budget without policy or a policy without budget.
    """
    prompts = [prompts] if isinstance(prompts, (str, Prompt)) else list(prompts)
    _check(policy, budget, protocol, max_new_tokens, temperature)
    if not prompts:
        return []
    parts = [_parts(lm, prompt, policy, protocol, query_aware) for prompt in prompts]
    for context, question in parts:
        _check_length(lm, len(context) + len(question), max_new_tokens, positions)
    started = [_prefill(lm, *part, policy, budget, protocol, max_new_tokens, seed + i, positions)
               for i, part in enumerate(parts)]
    return _Batch(lm, started, policy, protocol, max_new_tokens, seed, temperature, stop_at_end).run(on_step)


def _check(policy, budget, protocol: str, max_new_tokens: int, temperature: float) -> None:
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol must be one of {PROTOCOLS}, got {protocol!r}")
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens must be at least 1, got {max_new_tokens}")
    if not temperature >= 0:
        raise ValueError(f"temperature must be 0 (greedy) or above, got {temperature}")
    if isinstance(policy, type):
        raise ValueError(f"policy must be an instance: write {policy.__name__}(), with the parentheses")
    if policy is not None and budget is None:
        raise ValueError(f"{type(policy).__name__} needs a budget: a fraction in (0, 1] or a count of slots")
    if policy is None and budget is not None:
        raise ValueError(f"a budget of {budget} needs a policy that spends it; without one the cache is kept whole")


def _check_length(lm, num_prompt: int, max_new_tokens: int, positions: str) -> None:
    if num_prompt == 0:
        raise ValueError("the prompt is empty: give it at least one token")
    limit = lm.config.max_positions
    if num_prompt > limit or (positions == "original" and num_prompt + max_new_tokens - 1 > limit):
        raise ValueError(f"a prompt of {num_prompt} tokens and {max_new_tokens} new ones go beyond the context of {limit} "
                         f"tokens; shorten the prompt to {max(0, limit - max_new_tokens)} tokens or ask for fewer")


def _parts(lm, prompt, policy, protocol: str, query_aware: bool) -> tuple[list[int], list[int]]:
    """Token ids to compress and token ids to feed afterwards. A plain prompt is all context but its last token."""
    def encode(text):
        return lm.tokenizer.encode(text) if isinstance(text, str) else list(text)

    context, question = ((encode(prompt.context), encode(prompt.question)) if isinstance(prompt, Prompt)
                         else (encode(prompt), []))
    if protocol == "fixed_size" or policy is None:
        return context + question, []
    if query_aware or not question:
        whole = context + question
        return whole[:-1], whole[-1:]
    return context, question


@dataclass
class _Started:
    """A prompt after prefill: its cache, the logits of its next token, and what it has cost."""
    cache: object
    logits: Tensor                       # (V,)
    num_prompt: int
    budget: int | None
    prefill_s: float
    policy_s: float
    tokens: list[int] = field(default_factory=list)


def compressed_cache(lm, context: list[int], policy=None, budget: float | int | None = None, *,
                     protocol: str = "compress_once", seed: int = 0, positions: str = "original", room: int = 64,
                     max_steps: int = 64):
    """Prefills `context` and cuts the cache down to the budget. Returns (cache, logits of the next token (V,), the
    Evictor or None). room: tokens that will follow; their slots are reserved. Raises ValueError for a bad budget."""
    if not context:
        return lm.new_cache(1, positions=positions), None, None
    if policy is not None and policy.kind == "cache":
        cache, evictor = policy.make_cache(lm.config, lm.rope, batch=1, device=lm.device, dtype=lm.dtype, budget=budget,
                                           num_context=len(context), max_new_tokens=room), None
    elif policy is not None and policy.kind != "policy":
        raise ValueError(f"{policy.name} is a model of its own, not a policy for this one; see its module")
    else:
        evictor = None if policy is None else Evictor(policy, resolve(budget, len(context)), protocol=protocol, seed=seed,
                                                      max_steps=max_steps, reserve=room)
        cache = lm.new_cache(1, positions=positions, observer=evictor)
    logits = lm(torch.tensor([context], device=lm.device), cache, last_only=True)[0, -1]
    if evictor is not None:
        evictor.after_forward(cache)
    elif hasattr(cache, "finish_prompt"):
        cache.finish_prompt()
    return cache, logits, evictor


def _prefill(lm, context: list[int], question: list[int], policy, budget, protocol: str, max_new_tokens: int,
             seed: int, positions: str) -> _Started:
    start = time.perf_counter()
    cache, logits, evictor = compressed_cache(lm, context, policy, budget, protocol=protocol, seed=seed,
                                              positions=positions, room=len(question) + max_new_tokens,
                                              max_steps=max_new_tokens)
    if question:
        logits = lm(torch.tensor([question], device=lm.device), cache, last_only=True)[0, -1]
    return _Started(cache, logits, len(context) + len(question), evictor.budgets[0] if evictor else None,
                    time.perf_counter() - start, evictor.seconds if evictor else 0.0)


class _Batch:
    """Decoding of all prompts together; a sequence that has ended leaves the batch."""

    def __init__(self, lm, started: list[_Started], policy, protocol, max_new_tokens, seed, temperature, stop_at_end):
        self.lm, self.max_new, self.temperature = lm, max_new_tokens, temperature
        self.ends = set(lm.config.eos_ids) if stop_at_end else set()
        self.policy, self.protocol, self.seed = policy, protocol, seed
        self.draws = [torch.Generator().manual_seed(seed + i) for i in range(len(started))]
        self.started, self.running = started, list(range(len(started)))
        self.logits = torch.stack([s.logits for s in started])
        self.results = [Generation("", s.tokens, s.num_prompt, None, s.prefill_s, policy_s=s.policy_s,
                                   prompt_bytes=s.cache.num_bytes) for s in started]
        same = all(isinstance(s.cache, KVCache) for s in started)
        if len(started) > 1 and not same:                  # caches of other kinds decode one sequence at a time
            self.groups = [[i] for i in self.running]
            self.caches = [s.cache for s in started]
        else:
            self.groups = [list(self.running)]
            self.caches = [KVCache.stack([s.cache for s in started], reserve=1 if protocol == "fixed_size" else
                                         max_new_tokens) if len(started) > 1 else started[0].cache]
        self.evictors = [self._evictor(group) for group in self.groups]

    def _evictor(self, group: list[int], step: int = 1):
        budgets = [self.started[i].budget for i in group]
        if self.protocol != "fixed_size" or None in budgets:
            return None
        return Evictor(self.policy, budgets, protocol=self.protocol, seed=self.seed, step=step, max_steps=self.max_new)

    def run(self, on_step) -> list[Generation]:
        for number in range(len(self.groups)):
            self._decode(number, on_step)
        return self.results

    def _decode(self, number: int, on_step) -> None:
        group, cache, evictor = self.groups[number], self.caches[number], self.evictors[number]
        cache.observer = evictor
        logits, start = self.logits[group], time.perf_counter()
        for index in range(self.max_new):
            tokens = [self._pick(row, i) for row, i in zip(logits, group)]
            for i, token in zip(group, tokens):
                self.started[i].tokens.append(token)
            if on_step is not None:
                on_step(self._step(index, group, tokens, cache))
            over = index + 1 == self.max_new
            ended = [j for j, token in enumerate(tokens) if over or token in self.ends]
            if ended:
                self._finish(group, ended, cache, time.perf_counter() - start, evictor)
                keep = [j for j in range(len(group)) if j not in ended]
                if not keep:
                    return
                group, tokens = [group[j] for j in keep], [tokens[j] for j in keep]
                cache = cache.select(keep)
                seconds = evictor.seconds if evictor else 0.0
                evictor = self._evictor(group, index + 1)
                cache.observer = evictor
                if evictor:
                    evictor.seconds = seconds
            logits = self.lm(torch.tensor(tokens, device=self.lm.device)[:, None], cache)[:, -1]
            if evictor is not None:
                evictor.after_forward(cache)

    def _pick(self, logits: Tensor, sequence: int) -> int:
        if self.temperature == 0:
            return int(logits.argmax())
        probs = (logits.double() / self.temperature).softmax(-1).cpu()
        return int(torch.multinomial(probs, 1, generator=self.draws[sequence]))

    def _step(self, index: int, group: list[int], tokens: list[int], cache) -> Step:
        texts = [self.lm.tokenizer.decode(self.started[i].tokens) for i in group]
        return Step(index, list(group), tokens, texts, [int(n) for n in cache.num_held(0)], cache.num_bytes)

    def _finish(self, group: list[int], ended: list[int], cache, decode_s: float, evictor) -> None:
        for j in ended:
            result, state = self.results[group[j]], self.started[group[j]]
            tokens = state.tokens[:-1] if state.tokens[-1] in self.ends else state.tokens
            result.tokens, result.text = list(tokens), self.lm.tokenizer.decode(tokens, skip_special=True)
            result.cache = cache if len(group) == 1 else cache.select([j])
            result.decode_s, result.num_bytes = decode_s, result.cache.num_bytes
            result.policy_s += evictor.seconds if evictor else 0.0
