"""What the methods of this family are run on: real text, fed token by token through the method's own cache.

Budgets are shares of the layers. Where a method decides by confidence, the budget is its threshold and the layers it
saves are a result; so charts are drawn over the layers that were really run.
"""
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from frugal.core.checkpoints import load_lm
from frugal.core.depth_decode import DepthRun, FullDepth, decode
from frugal.early_exit.held_out import held_out_windows
from frugal.early_exit.lenses import LogitLens, load_ridge_lens

BUDGETS = (1.0, 0.95, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.33, 0.2)
SMOLLM2, MINI_LM = "smollm2-135m", "mini_lm"


@lru_cache(maxsize=2)
def model(name: str):
    """SmolLM2 (or a path for `load_lm`), or "mini_lm", the small model trained for depth; loaded once a process."""
    if name == MINI_LM:
        from frugal.models.mini_lm import load_mini_lm
        return load_mini_lm()
    return load_lm(name, progress=False)


@dataclass(frozen=True)
class Forced:
    """Text is fed through the method; what it predicts is compared with the whole model and with the text.

    agreement: share of tokens whose first choice is the whole model's; nll: nats a token; layers: layers run a token;
    weight_bytes: read a step; flops: a token; cpu_ms: CPU time of a step, median, all threads together.
    """
    name: str = ""
    axis: str = "share of the layers, or the threshold"
    version: str = "1"
    model: str = SMOLLM2
    lens: str = "ridge"
    context_tok: int = 64
    scored_tok: int = 64
    default_budgets: tuple[float, ...] = BUDGETS

    def model_hash(self) -> str:
        return model_hash(self.model)

    def run(self, method: type, budget, seed: int) -> Mapping[str, Any]:
        if method.kind != "depth":
            raise ValueError(f"{method.name} is no rule for one token's layers, but a {method.kind} with a loop of its own: see "
                             "its module")
        lm = model(self.model)
        policy = method.for_budget(budget, lm, load_ridge_lens() if self.lens == "ridge" else LogitLens())
        text = window(self.model, seed, self.context_tok + self.scored_tok)
        return measured(lm, policy, [text], self.context_tok)


@lru_cache(maxsize=32)
def window(model_name: str, seed: int, length: int) -> tuple[int, ...]:
    """Held-out text number `seed`: documentation for SmolLM2, Python code for the mini-LM."""
    if model_name == MINI_LM:
        from frugal.data.code_text import heldout_windows
        return tuple(heldout_windows(length)[seed].tolist())
    return tuple(held_out_windows(model(model_name).tokenizer, seed + 1, length)[seed])


def measured(lm, policy, texts, context_tok: int) -> dict[str, Any]:
    """One row of what `policy` does on texts of equal length, fed as one batch behind `context_tok` tokens of prompt."""
    texts = [list(text) for text in texts]
    prompts, forced = [text[:context_tok] for text in texts], torch.tensor([text[context_tok:] for text in texts])
    run = decode(lm, prompts, policy, forced=forced, keep_logits=True)
    whole = whole_model(lm, tuple(map(tuple, texts)), context_tok)
    logprobs = run.logits[:, 1:].log_softmax(-1)                         # the first one is the prompt's, whatever the method
    return {"agreement": float((logprobs.argmax(-1) == whole.argmax(-1)).float().mean()),
            "nll": -float(logprobs.gather(-1, forced[:, 1:, None]).mean()), **spent(run)}


def spent(run: DepthRun) -> dict[str, float]:
    """Layers a token, bytes of weights and calls of the head a step, FLOPs a token, CPU and wall milliseconds a step."""
    steps, work = len(run.step_work), run.work
    tokens = steps * run.stack.cache.batch
    own = [depth for depths in run.memory.get("depths", []) for depth in depths]
    return {"layers": run.mean_layers, "exit_layer": float(np.mean(own)) if own else run.mean_layers,
            "head_calls": work.head_calls / steps, "weight_bytes": work.weight_bytes / steps, "flops": work.flops / tokens,
            "cpu_ms": 1e3 * float(np.median(run.step_cpu_s)), "wall_ms": 1e3 * float(np.median(run.step_s))}


@lru_cache(maxsize=3)
def whole_model(lm, texts: tuple[tuple[int, ...], ...], context_tok: int) -> torch.Tensor:
    """Logits of the whole model for the tokens behind the prompt and the first one, (B, steps - 1, V)."""
    return lm(torch.tensor(texts))[:, context_tok:-1]


@lru_cache(maxsize=4)
def model_hash(name: str) -> str:
    """Short hash of the weights: the sum of some of every matrix, in fp64."""
    import hashlib
    digest = hashlib.sha256()
    for key, weight in sorted(model(name).weights.items()):
        digest.update(f"{key} {tuple(weight.shape)} {float(weight.flatten()[::997].double().sum()):.6f}".encode())
    return digest.hexdigest()[:12]


def full_greedy(lm, prompt, count: int) -> DepthRun:
    """Plain greedy decoding, with its counts: what the others are measured against."""
    return decode(lm, [list(prompt)], FullDepth(), count)


WORKLOADS = {w.name: w for w in (Forced("continuation"), Forced("continuation_logit_lens", lens="logit"),
                                 Forced("code", model=MINI_LM, lens="logit"))}
