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
from frugal.core.generation import Prompt, compressed_cache, generate
from frugal.data import tasks

BUDGETS = (1.0, 0.75, 0.5, 0.35, 0.25, 0.15, 0.1)


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
        """The compressed cache of a context, the cells every row has, and the model."""
        lm = model(self.model)
        cache, logits, evictor = compressed_cache(lm, context, method(), budget, protocol=self.protocol, seed=seed,
                                                  room=room)
        full_bytes = len(context) * lm.config.kv_bytes_per_token
        cells = {"context_tok": len(context), "cache_bytes": cache.num_bytes, "full_bytes": full_bytes,
                 "held_tok": int(cache.num_held(0)[0]), "policy_s": evictor.seconds if evictor else 0.0}
        return lm, cache, logits, cells


@dataclass(frozen=True)
class Passkey(KVWorkload):
    """A five-digit key stated twice in filler, asked for after the cut: hit is 1 or 0."""
    name: str = "passkey"
    num_tokens: int = 405

    def run(self, method: type, budget, seed: int) -> Mapping[str, Any]:
        lm = model(self.model)
        task = tasks.passkey(self.num_tokens, seed, lm.tokenizer)
        found = generate(lm, Prompt(task.context, task.question), method(), budget, "compress_once", max_new_tokens=8,
                         seed=seed, query_aware=self.query_aware)[0]
        return {"hit": float(task.answer in found.text), "answer": found.text.strip(), "cache_bytes": found.prompt_bytes}


@dataclass(frozen=True)
class Copying(KVWorkload):
    """Random tokens, then the same again, teacher-forced: the share of the second copy that is predicted."""
    name: str = "copying"
    num_tokens: int = 160

    def run(self, method: type, budget, seed: int) -> Mapping[str, Any]:
        task = tasks.copying(self.num_tokens, seed, model(self.model).tokenizer)
        lm, cache, _, cells = self.cut(method, budget, seed, task.context, len(task.continuation))
        logits = lm(torch.tensor([task.continuation[:-1]]), cache)[0]
        wanted = torch.tensor(task.continuation[1:])
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
        task = tasks.continuation(self.context_tok, self.scored_tok, seed, lm.tokenizer)
        lm, cache, first, cells = self.cut(method, budget, seed, task.context, len(task.continuation))
        logits = torch.cat([first[None], lm(torch.tensor([task.continuation[:-1]]), cache)[0]]).log_softmax(-1)
        whole = lm(torch.tensor([task.context + task.continuation[:-1]]))[0, len(task.context) - 1:].log_softmax(-1)
        wanted = torch.tensor(task.continuation)
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
        lm, cache, _, cells = self.cut(method, budget, seed, context, len(question) + len(answer))
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
        prompt = tasks.continuation(self.context_tok, 1, seed, lm.tokenizer).context
        whole = full_answer(self.model, tuple(prompt), self.new_tok)
        ours = generate(lm, [prompt], method(), budget, self.protocol, max_new_tokens=self.new_tok, seed=seed,
                        stop_at_end=False)[0]
        same = [a == b for a, b in zip(ours.tokens, whole)]
        prefix = same.index(False) if False in same else len(same)
        return {"agreement": prefix / self.new_tok, "cache_bytes": ours.num_bytes, "prompt_bytes": ours.prompt_bytes,
                "decode_s": ours.decode_s, "policy_s": ours.policy_s}


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
