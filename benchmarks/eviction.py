"""What eviction saves at batch 8 and 4,096 tokens of context: a fixed-size budget of 20 % against the full cache.

One sequence is prefilled and copied to the batch. The budgets' caches start from a seeded random cut of it, without
the notes a policy would have made at the prompt: time and bytes do not depend on which slots are held. Then real
decoding steps run, each policy observing and evicting at every step. Quality is the sweep's business, not this one's.
"""
import pandas as pd
import torch
from common import smollm2, tokens

from frugal.core import measure
from frugal.core.budgets import resolve
from frugal.core.eviction import Evictor
from frugal.core.kvcache import KVCache
from frugal.kv_eviction import ALL

BATCH, CONTEXT, BUDGET = 8, 4096, 0.2
POLICIES = ("streaming_llm", "h2o", "keyformer", "tova", "knorm", "snapkv")


def batch_of(cache: KVCache, batch: int, slots: torch.Tensor, reserve: int) -> KVCache:
    """`batch` copies of one sequence with just `slots` of it and free room for `reserve` more."""
    new = KVCache(cache.config, cache.rope, batch, reserve=len(slots) + reserve)
    for layer in range(cache.config.num_layers):
        for mine, one in zip(new._stores(layer), cache._stores(layer), strict=True):
            mine[layer][:, :, :len(slots)] = one[layer][:, :, slots]
    new._held[:], new.num_seen[:] = len(slots), cache.num_seen
    return new


def expected_bytes(cache: KVCache, slots: int) -> int:
    """Keys and values in fp32, int64 positions and the policy's fp32 side arrays of `slots` slots, all layers."""
    c = cache.config
    return sum(cache.batch * c.num_kv_heads * slots * (2 * c.head_dim * 4 + 8 + 4 * len(side)) for side in cache.aux)


class Running:
    """A batch under decoding, with its policy or without."""

    def __init__(self, cache: KVCache, policy=None, budget: int = 0):
        self.lm, self.cache, self.policy_s, self.num_steps = smollm2(), cache, 0.0, 0
        self.evictor = None if policy is None else Evictor(policy, budget, protocol="fixed_size", step=1)
        cache.observer = self.evictor
        self.token = torch.full((BATCH, 1), 11)

    def steps(self, count: int) -> None:
        for _ in range(count):
            self.token = self.lm(self.token, self.cache)[:, -1].argmax(-1, keepdim=True)
            if self.evictor:
                self.evictor.after_forward(self.cache)
        self.num_steps += count


def run(quick: bool = False) -> dict:
    one = smollm2().new_cache(reserve=CONTEXT)
    smollm2()(tokens(CONTEXT), one, last_only=True)
    budget, repeats, steps = resolve(BUDGET, CONTEXT), 2 if quick else 7, 4
    cut = torch.randperm(CONTEXT, generator=torch.Generator().manual_seed(0))[:budget].sort().values
    runs = {"full": Running(batch_of(one, BATCH, torch.arange(CONTEXT), (repeats + 1) * steps))}
    methods = {method.name: method for method in ALL}
    for name in POLICIES:
        runs[name] = Running(batch_of(one, BATCH, cut, 1), methods[name](), budget)
    del one
    for run in runs.values():
        run.steps(2)                                                 # compile and build side arrays outside the clock
        if run.evictor:
            run.evictor.seconds, run.num_steps = 0.0, 0
    times = measure.compare({name: lambda run=run: run.steps(steps) for name, run in runs.items()}, repeats=repeats)
    rows = []
    for name, seconds, speedup, low, high in times[["name", "median_s", "speedup", "speedup_low", "speedup_high"]].itertuples(index=False):
        cache, evictor = runs[name].cache, runs[name].evictor
        slots = cache.keys[0].shape[2]
        policy_s = evictor.seconds / runs[name].num_steps if evictor else 0.0
        rows.append({"policy": name, "held_tok": int(cache.num_held(0)[0]), "step_ms": seconds / steps * 1e3, "speedup": speedup,
                     "speedup_low": low, "speedup_high": high, "policy_ms": policy_s * 1e3,
                     "policy_share": policy_s / (seconds / steps), "resident_bytes": cache.num_bytes,
                     "expected_bytes": expected_bytes(cache, slots)})
    return {"batch": BATCH, "context_tok": CONTEXT, "budget_tok": budget, "rows": rows}


def markdown(result: dict) -> str:
    lines = [f"Batch {result['batch']}, {result['context_tok']} tokens of context, budget {result['budget_tok']} tokens, cut back "
             "after every token.", "", "| policy | ms/step | against full | policy's own work | resident MB | off the formula |",
             "|---|---:|---:|---:|---:|---:|"]
    for row in pd.DataFrame(result["rows"]).itertuples():
        lines.append(f"| {row.policy} | {row.step_ms:.1f} | {row.speedup:.2f}x | {row.policy_share:.1%} | "
                     f"{row.resident_bytes / 1e6:.0f} | {abs(row.resident_bytes / row.expected_bytes - 1):.2%} |")
    return "\n".join(lines)
