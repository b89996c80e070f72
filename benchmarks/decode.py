"""Decoding and prefill beside transformers 5 (sdpa, DynamicCache) on the same fp32 weights.

Passes over 1 to 64 tokens start each time from the same 256 tokens of context; the caches are set back to them in
between. The share of the read bandwidth is that of the weights one pass must read, over the time of our pass.
"""
from pathlib import Path

import pandas as pd
import torch
from common import peer_model, smollm2, tokens

from frugal.core import measure
from frugal.core.recording import record

CONTEXT, SIZES = 256, (1, 2, 4, 8, 16, 32, 64)
RECORDED = Path(measure.__file__).parents[1] / "explore" / "recorded" / "pass_time.json"


class Ours:
    """Frugal's decoder and cache, with a way back to the first tokens."""

    def __init__(self, context: torch.Tensor):
        self.lm = smollm2()
        self.cache = self.lm.new_cache(reserve=context.shape[1] + 128)
        self.held = context.shape[1]
        self.lm(context, self.cache, last_only=True)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.lm(ids, self.cache)

    def back(self) -> None:
        self.cache._held[:] = self.cache.num_seen[:] = self.held


class Theirs:
    """transformers' decoder and cache, likewise."""

    def __init__(self, context: torch.Tensor):
        from transformers import DynamicCache
        self.model, self.cache = peer_model(), DynamicCache()
        with torch.no_grad():
            self.model(context, past_key_values=self.cache, logits_to_keep=1)
        self.held = [(layer.keys, layer.values) for layer in self.cache.layers]

    @torch.no_grad()
    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.model(ids, past_key_values=self.cache).logits

    def back(self) -> None:
        for layer, (keys, values) in zip(self.cache.layers, self.held, strict=True):
            layer.keys, layer.values = keys, values


def passes(repeats: int) -> pd.DataFrame:
    """One row per engine and number of tokens: seconds of a pass, and the ratio to transformers."""
    sides = {"transformers": Theirs(tokens(CONTEXT)), "frugal": Ours(tokens(CONTEXT))}
    rows = []
    for num_tokens in SIZES:
        ids = tokens(num_tokens, CONTEXT)

        def once(side, ids=ids):
            side.back()
            return side.forward(ids)
        gap = (once(sides["frugal"]) - once(sides["transformers"])).abs().max().item()
        times = measure.compare({name: lambda side=side: once(side) for name, side in sides.items()}, repeats=repeats)
        rows += [{"engine": row.name, "num_tokens": num_tokens, "pass_s": row.median_s, "low_s": row.low_s,
                  "high_s": row.high_s, "speedup": row.speedup, "logits_gap": gap} for row in times.itertuples(index=False)]
    return pd.DataFrame(rows)


def decode(repeats: int, steps: int = 16) -> dict:
    """Greedy decoding of `steps` tokens, batch 1: milliseconds a token, and the share of the bandwidth limit."""
    sides = {"transformers": Theirs(tokens(CONTEXT)), "frugal": Ours(tokens(CONTEXT))}
    texts = {}

    def run(name):
        side, token, text = sides[name], tokens(1, CONTEXT), []
        side.back()
        for _ in range(steps):
            token = side.forward(token)[:, -1].argmax(-1, keepdim=True)
            text.append(int(token))
        texts[name] = text
    times = measure.compare({name: lambda name=name: run(name) for name in sides}, repeats=repeats)
    theirs, ours = times.median_s / steps
    bandwidth, weights = measure.read_bandwidth(), smollm2().num_bytes
    return {"context_tok": CONTEXT, "steps": steps, "transformers_ms": theirs * 1e3, "frugal_ms": ours * 1e3,
            "speedup": times.speedup[1], "speedup_low": times.speedup_low[1], "speedup_high": times.speedup_high[1],
            "same_tokens": texts["frugal"] == texts["transformers"], "weights_bytes": weights,
            "read_bandwidth_bytes_per_s": bandwidth, "bandwidth_share": weights / ours / bandwidth,
            "bandwidth": measure.bandwidth_share(weights, ours, bandwidth)}


def prefill(repeats: int, num_tokens: int = 1024) -> dict:
    """A prompt at once, logits of its last token."""
    lm, model, ids = smollm2(), peer_model(), tokens(num_tokens)

    @torch.no_grad()
    def theirs():
        return model(ids, use_cache=True, logits_to_keep=1)
    times = measure.compare({"transformers": theirs, "frugal": lambda: lm(ids, last_only=True)}, repeats=repeats)
    return {"num_tokens": num_tokens, "transformers_s": times.median_s[0], "frugal_s": times.median_s[1],
            "speedup": times.speedup[1]}


def run(quick: bool = False) -> dict:
    table = passes(3 if quick else 9)
    rows = table.assign(threads=torch.get_num_threads(), hardware=measure.hardware())
    if not quick:
        RECORDED.parent.mkdir(exist_ok=True)
        record(rows.drop(columns="logits_gap"), RECORDED)
    ours = table[table.engine == "frugal"].set_index("num_tokens")
    return {"decode": decode(3 if quick else 9), "prefill": prefill(1 if quick else 5),
            "four_rows_over_one": float(ours.pass_s[4] / ours.pass_s[1]), "passes": table.to_dict("records")}


def markdown(result: dict) -> str:
    d, p = result["decode"], result["prefill"]
    lines = [f"Decode, batch 1, {d['context_tok']} tokens of context: transformers {d['transformers_ms']:.1f} ms/token, frugal "
             f"{d['frugal_ms']:.1f} ms/token, **{d['speedup']:.2f}x** ({d['speedup_low']:.2f} to {d['speedup_high']:.2f}); "
             f"weights at {d['bandwidth']}.",
             f"Prefill of {p['num_tokens']} tokens: {p['transformers_s']:.2f} s and {p['frugal_s']:.2f} s, **{p['speedup']:.2f}x**. "
             f"A pass over 4 tokens takes {result['four_rows_over_one']:.2f} of one over 1.", "",
             "| tokens in the pass | transformers, ms | frugal, ms | ratio |", "|---:|---:|---:|---:|"]
    table = pd.DataFrame(result["passes"]).pivot(index="num_tokens", columns="engine", values=["pass_s", "speedup"])
    lines += [f"| {n} | {row['pass_s', 'transformers'] * 1e3:.1f} | {row['pass_s', 'frugal'] * 1e3:.1f} | "
              f"{row['speedup', 'frugal']:.2f}x |" for n, row in table.iterrows()]
    return "\n".join(lines)
