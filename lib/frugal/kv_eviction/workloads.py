"""What the methods of this family are run on: recall, copying, continuation, on SmolLM2 or a model of the reader's.

Budgets are shares of the full cache. A policy keeps that share of the tokens; a cache method (MiKV, ShadowKV) that
share of the bytes a full 16-bit cache would take. Both protocols are here and never share a workload.
"""
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F

from frugal.core.checkpoints import load_lm
from frugal.core.budgets import resolve
from frugal.core.eviction import Evictor
from frugal.core.generation import compressed_cache, generate
from frugal.data import tasks

BUDGETS = (1.0, 0.75, 0.5, 0.25, 0.1)


@lru_cache(maxsize=2)
def model(name: str):
    """The model a workload runs on, loaded once a process."""
    return load_lm(name, progress=False)


@dataclass(frozen=True)
class KVWorkload:
    """Settings shared by all: model is a name or path for `load_lm`; query_aware shows the scorer the question."""
    name: str = ""
    axis: str = "share of the full cache"
    version: str = "1"
    model: str = "smollm2-135m"
    default_budgets: tuple[float, ...] = BUDGETS
    protocol: str = "compress_once"
    query_aware: bool = False

    def model_hash(self) -> str:
        return model_hash(self.model)

    def cut(self, method: type, budget, seed: int, context: list[int], room: int):
        """The compressed cache of a context, the logits of its next token, and the cells every row has."""
        cache, logits, policy_s = compressed(self.model, method, budget, seed, tuple(context), room)
        full_bytes = len(context) * model(self.model).config.kv_bytes_per_token
        return cache, logits, {"context_tok": len(context), "cache_bytes": cache.num_bytes, "full_bytes": full_bytes,
                               "held_tok": int(cache.num_held(0)[0]), "policy_s": policy_s}


@dataclass(frozen=True)
class Passkey(KVWorkload):
    """A five-digit key stated twice in filler, asked for after the cut: hit is 1 or 0."""
    name: str = "passkey"
    num_tokens: int = 405

    def run(self, method: type, budget, seed: int) -> Mapping[str, Any]:
        lm = model(self.model)
        task = tasks.passkey(self.num_tokens, seed, lm.tokenizer)
        context, question = lm.tokenizer.encode(task.context), lm.tokenizer.encode(task.question)
        if self.query_aware:
            context, question = context + question[:-1], question[-1:]
        cache, _, cells = self.cut(method, budget, seed, context, len(question) + 8)
        written, ids = [], question
        for _ in range(8):
            written.append(int(lm(torch.tensor([ids]), cache, last_only=True)[0, -1].argmax()))
            ids = written[-1:]
        text = lm.tokenizer.decode(written)
        return {**cells, "hit": float(task.is_hit(text)), "answer": text.strip()}


@dataclass(frozen=True)
class Copying(KVWorkload):
    """A list of random words, then the same again, teacher-forced: the share of the second copy that is predicted."""
    name: str = "copying"
    num_tokens: int = 160

    def run(self, method: type, budget, seed: int) -> Mapping[str, Any]:
        lm = model(self.model)
        task = tasks.copying(self.num_tokens, seed, lm.tokenizer)
        cache, _, cells = self.cut(method, budget, seed, list(task.context), len(task.rest))
        logits = lm(torch.tensor([task.rest[:-1]]), cache)[0]
        wanted = torch.tensor(task.rest[1:])
        return {**cells, "accuracy": float((logits.argmax(-1) == wanted).float().mean())}


@dataclass(frozen=True)
class Continuation(KVWorkload):
    """A documentation page: 512 tokens are compressed, the next 128 scored. nll: nats a token; kl: from the full
    cache's next-token distributions, in nats."""
    name: str = "continuation"
    context_tok: int = 512
    scored_tok: int = 128

    def run(self, method: type, budget, seed: int) -> Mapping[str, Any]:
        lm = model(self.model)
        task = tasks.continuation(seed, lm.tokenizer, self.context_tok, self.scored_tok)
        cache, first, cells = self.cut(method, budget, seed, list(task.context), len(task.rest))
        logits = torch.cat([first[None], lm(torch.tensor([task.rest[:-1]]), cache)[0]]).log_softmax(-1)
        whole = full_logprobs(self.model, task)
        wanted = torch.tensor(task.rest)
        return {**cells, "nll": float(F.nll_loss(logits, wanted)),
                "kl": float(F.kl_div(logits, whole, log_target=True, reduction="batchmean"))}


@dataclass(frozen=True)
class Facts(KVWorkload):
    """A list of "name: colour" facts; the log-probability, in nats a token, of the right colour."""
    name: str = "facts"
    num_facts: int = 12

    def run(self, method: type, budget, seed: int) -> Mapping[str, Any]:
        lm = model(self.model)
        task = tasks.facts(self.num_facts, seed, lm.tokenizer)
        encode = lm.tokenizer.encode
        context, question, answer = encode(task.context), encode(task.question), encode(task.answer)
        cache, _, cells = self.cut(method, budget, seed, context, len(question) + len(answer))
        logits = lm(torch.tensor([question + answer[:-1]]), cache)[0, len(question) - 1:].log_softmax(-1)
        return {**cells, "gold_logprob": float(-F.nll_loss(logits, torch.tensor(answer)))}


@dataclass(frozen=True)
class Agreement(KVWorkload):
    """Fixed-size decoding: tokens of the greedy continuation that equal the full cache's, before the first that
    differs, as a share of 64."""
    name: str = "agreement"
    protocol: str = "fixed_size"
    context_tok: int = 256
    new_tok: int = 64

    def run(self, method: type, budget, seed: int) -> Mapping[str, Any]:
        lm = model(self.model)
        prompt = tasks.continuation(seed, lm.tokenizer, self.context_tok, 1).context
        whole = full_answer(self.model, prompt, self.new_tok)
        ours = generate(lm, [list(prompt)], method(), budget, self.protocol, max_new_tokens=self.new_tok, seed=seed,
                        stop_at_end=False)[0]
        same = [a == b for a, b in zip(ours.tokens, whole)]
        prefix = same.index(False) if False in same else len(same)
        return {"agreement": prefix / self.new_tok, "cache_bytes": ours.num_bytes, "prompt_bytes": ours.prompt_bytes,
                "decode_s": ours.decode_s, "policy_s": ours.policy_s}


@lru_cache(maxsize=6)
def prefilled(name: str, method: type, seed: int, context: tuple[int, ...]):
    """A context gone through once, scored by the method but not cut yet: all budgets start from here."""
    lm = model(name)
    evictor = Evictor(method(), len(context), seed=seed)
    cache = lm.new_cache(1, observer=evictor)
    logits = lm(torch.tensor([context]), cache, last_only=True)[0, -1]
    return cache, logits, evictor


def compressed(name: str, method: type, budget, seed: int, context: tuple[int, ...], room: int):
    """(cache cut to the budget, logits of the next token, seconds of the policy's work)."""
    lm = model(name)
    if method.kind != "policy":
        cache, logits, _ = compressed_cache(lm, list(context), method(), budget, seed=seed, room=room)
        return cache, logits, 0.0
    whole, logits, watched = prefilled(name, method, seed, context)
    cutter = Evictor(method(), resolve(budget, len(context)), seed=seed, reserve=room)
    cache = whole.copy()
    cutter.after_forward(cache)
    cache.observer = None
    return cache, logits, watched.seconds + cutter.seconds


@lru_cache(maxsize=8)
def full_logprobs(name: str, task: tasks.Scored) -> torch.Tensor:
    """Log-probabilities of the full cache for what follows the context, (scored tokens, vocabulary)."""
    logits = model(name)(torch.tensor([task.ids[:-1]]))[0, task.num_context - 1:]
    return logits.log_softmax(-1)


@lru_cache(maxsize=16)
def full_answer(name: str, prompt: tuple[int, ...], new_tok: int) -> list[int]:
    """What the full cache answers, greedy."""
    return generate(model(name), [list(prompt)], max_new_tokens=new_tok, stop_at_end=False)[0].tokens


@lru_cache(maxsize=4)
def model_hash(name: str) -> str:
    """Short hash of the weights: the sum and spread of every matrix, in fp64."""
    import hashlib
    digest = hashlib.sha256()
    for key, weight in sorted(model(name).weights.items()):
        digest.update(f"{key} {tuple(weight.shape)} {float(weight.flatten()[::997].double().sum()):.6f}".encode())
    return digest.hexdigest()[:12]


WORKLOADS = {w.name: w for w in (
    Continuation(), Copying(), Passkey(), Passkey("passkey_query_aware", query_aware=True), Facts(), Agreement())}
