"""Records the sweeps and pictures that notebook 01 draws: python recipes/record_kv_eviction.py [--jobs 2]

Every row is a real run on SmolLM2; rows already in the user cache are not run again.
"""
import argparse
import json
from pathlib import Path

import pandas as pd
import torch

from frugal import load_lm
from frugal.core.generation import compressed_cache
from frugal.core.recording import read_recorded, record
from frugal.core.sweep import KEYS, Sweep
from frugal.data import tasks
from frugal.kv_eviction import ALL, live_eviction

OUT = Path(__file__).parents[1] / "lib/frugal/kv_eviction/recorded"
ASSETS = OUT.parent / "assets"
POLICIES = [cls.name for cls in ALL if cls.kind == "policy"]
CACHES = [cls.name for cls in ALL if cls.kind == "cache"]
SEEDS = {"continuation": 2, "copying": 2, "passkey": 4, "passkey_query_aware": 4, "facts": 4, "agreement": 2}
MAP_METHODS = ("streaming_llm", "h2o", "snapkv", "tova", "knorm", "keyformer")
MAP_STEPS, MAP_PROMPT, MAP_BUDGET = (0, 8, 16, 24), 96, 0.4


def record_sweeps(jobs: int, only: list[str] | None = None) -> None:
    """Runs and records all workloads; with `only` just these methods, in the places their rows have in the file."""
    tables, before = [], read_recorded(OUT / "eviction.json") if only else None
    for workload, seeds in SEEDS.items():
        methods = POLICIES + (CACHES if workload in ("continuation", "copying") else [])
        tables.append(Sweep("kv_eviction", [m for m in methods if not only or m in only], None, workload, seeds).run(jobs=jobs))
        print(workload, len(tables[-1]), "rows,", int((tables[-1].error != "").sum()), "failed", flush=True)
    rows = pd.concat(tables, ignore_index=True)
    if only:
        keys = list(KEYS)
        fresh = rows.set_index(keys)
        rows = pd.concat([before[[tuple(key) not in fresh.index for key in before[keys].values]], rows], ignore_index=True)
        rows = rows.set_index(keys).loc[[tuple(key) for key in before[keys].values]].reset_index()[list(before.columns)]
    record(rows, OUT / "eviction.json")


def record_keep_map() -> None:
    """Which heads hold which position, for a fixed-size cache while an answer grows."""
    lm = load_lm()
    prompt = list(tasks.continuation(0, lm.tokenizer, MAP_PROMPT, 1).context)
    length, held, texts = MAP_PROMPT + max(MAP_STEPS), {}, []
    for cls in [c for c in ALL if c.name in MAP_METHODS]:
        cache, logits, evictor = compressed_cache(lm, prompt, cls(), MAP_BUDGET, protocol="fixed_size", max_steps=max(MAP_STEPS))
        steps, tokens = [], list(prompt)
        for step in range(max(MAP_STEPS) + 1):
            if step in MAP_STEPS:
                steps.append([_heads_at(cache, layer, length) for layer in range(lm.config.num_layers)])
            tokens.append(int(logits.argmax()))
            logits = lm(torch.tensor([tokens[-1:]]), cache)[0, -1]
            evictor.after_forward(cache)
        held[cls.name] = steps
    texts = [lm.tokenizer.token_str(t) for t in tokens[:length]]
    data = {"tokens": texts[:MAP_PROMPT] + ["(answer)"] * max(MAP_STEPS), "steps": list(MAP_STEPS), "held": held,
            "num_kv_heads": lm.config.num_kv_heads, "seen": [MAP_PROMPT + s for s in MAP_STEPS], "budget": MAP_BUDGET}
    (ASSETS / "keep_map.json").write_text(json.dumps(data, separators=(",", ":"), ensure_ascii=False))


def record_live_answer() -> None:
    """What the live widget shows before its first run."""
    inputs = {"prompt": live_eviction.PROMPT, "method": "keyformer", "budget": live_eviction.BUDGETS[1]}
    found = live_eviction.answer_twice(inputs, lambda fraction, partial=None: None)
    (ASSETS / "live_answer.json").write_text(json.dumps(found, ensure_ascii=False))


def _heads_at(cache, layer: int, length: int) -> list[int]:
    counts = torch.zeros(length, dtype=torch.int64)
    held = int(cache.num_held(layer)[0])
    counts.scatter_add_(0, cache.positions[layer][0, :, :held].flatten(), torch.ones(held * cache.keys[layer].shape[1], dtype=torch.int64))
    return counts.tolist()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--only", choices=("sweeps", "map"))
    parser.add_argument("--methods", help="names with commas: run these again and keep the other rows")
    options = parser.parse_args()
    OUT.mkdir(exist_ok=True)
    if options.only != "map":
        record_sweeps(options.jobs, options.methods.split(",") if options.methods else None)
    if options.only != "sweeps":
        record_keep_map()
        record_live_answer()
