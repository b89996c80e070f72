"""Records what the exit baselines do on real text: python recipes/record_exits.py [table ...]

Tables: lens_table (the picture of one sentence), depth_cells (which cell of the layer-by-position grid ran), confidence (what
CALM's choices cost), self_speculative, exits (a sweep of all per-token methods). Every row is a real run; one thread, so that
CPU times compare. Ten minutes on one core. --model records one model's rows and keeps the other's as they are.
"""
import argparse
import json
from pathlib import Path

import pandas as pd
import torch

from frugal.core.depth_decode import decode
from frugal.core.recording import read_recorded, record
from frugal.core.sweep import Sweep
from frugal.early_exit import ALL, live_lens
from frugal.early_exit.calm import ConfidenceExit
from frugal.early_exit.fixed_exit import FixedExit, Full
from frugal.early_exit.lenses import LogitLens, load_ridge_lens
from frugal.early_exit.self_speculative import SelfSpeculative
from frugal.early_exit.unified_skipping import UnifiedSkipping
from frugal.early_exit.workloads import MINI_LM, SMOLLM2, WORKLOADS, full_greedy, measured, model, spent, window

OUT = Path(__file__).parents[1] / "lib/frugal/early_exit/recorded"
ASSETS = OUT.parent / "assets"
MODELS = [SMOLLM2, MINI_LM]
SEEDS = {"continuation": 2, "continuation_logit_lens": 1, "code": 4}
BUDGETS = (0.95, 0.9, 0.8, 0.7, 0.5, 0.33)
THRESHOLDS = (0.3, 0.6, 0.9)
ONLY = {"continuation": ("fixed_exit", "unified_skipping", "confidence_exit", "skipdecode"),
        "continuation_logit_lens": ("fixed_exit",)}
SATURATION = (0.9, 0.95, 0.98)
SPEEDUPS = (1.0, 1.5, 2.0, 3.0)
GRID_TOKENS = 32


def lens_of(name: str):
    return load_ridge_lens() if name == SMOLLM2 else LogitLens()


def exits(models: list[str]) -> pd.DataFrame:
    """All per-token methods at all budgets."""
    depth = [cls.name for cls in ALL if cls.kind == "depth" and cls is not Full]
    tables = []
    for workload, seeds in SEEDS.items():
        if WORKLOADS[workload].model not in models:
            continue
        own = [m for m in depth if workload == "code" or m in ONLY[workload]]
        tables += [Sweep("early_exit", ["full"], [1.0], workload, seeds).run(progress=False),
                   Sweep("early_exit", own, BUDGETS, workload, seeds).run(progress=False)]
        print(tables[-1].to_string(), flush=True)
    return pd.concat(tables, ignore_index=True)


def confidence(models: list[str]) -> pd.DataFrame:
    """Confident exit: measure x what is done about missing keys x threshold x batch. cpu_ratio: of the CPU time of a step,
    against the whole model timed just before."""
    rows = []
    for name in models:
        lm, tokens = model(name), 32 if name == SMOLLM2 else 64
        for batch in (1, 4, 8):
            texts = [window(name, seed, 128)[:64 + tokens] for seed in range(batch)]
            for label, options, grid in variants(batch):
                whole = measured(lm, Full(), texts, 64)
                rows.append({"model": name, "batch": batch, "method": "whole model", "threshold": 1.0, "cpu_ratio": 1.0, **whole})
                for threshold in grid:
                    found = measured(lm, ConfidenceExit(threshold, lens=lens_of(name), **options), texts, 64)
                    rows.append({"model": name, "batch": batch, "method": label, "threshold": threshold,
                                 "cpu_ratio": found["cpu_ms"] / whole["cpu_ms"], **found})
                    print(rows[-1], flush=True)
    return pd.DataFrame(rows)


def variants(batch: int) -> list[tuple[str, dict, tuple[float, ...]]]:
    found = [("gap, keys copied", {}, THRESHOLDS), ("gap, recomputed", {"missing": "recompute"}, THRESHOLDS),
             ("saturation, keys copied", {"measure": "saturation"}, SATURATION)]
    return found if batch == 1 else found[:1]


def self_speculative(models: list[str]) -> pd.DataFrame:
    """Drafting with the first layers, by exit, length of draft and lens; the text is checked against greedy decoding."""
    rows = []
    for name in models:
        lm, tokens = model(name), 32
        layers = lm.config.num_layers
        lenses = [("logit lens", LogitLens())] + ([("ridge lens", load_ridge_lens())] if name == SMOLLM2 else [])
        exits = (21, 24, 26, 28) if name == SMOLLM2 else range(2, layers, 2)
        for seed in range(1 if name == SMOLLM2 else 4):
            prompt = list(window(name, seed, 64))
            plain = full_greedy(lm, prompt, tokens)
            for label, lens in lenses:
                for exit_layer in exits:
                    for gamma in (2, 4):
                        run = SelfSpeculative(exit_layer, gamma, lens).generate(lm, prompt, tokens, stop_at_end=False)
                        rows.append({"model": name, "lens": label, "exit": exit_layer, "gamma": gamma, "seed": seed,
                                     "same_text": run.tokens == plain.tokens[0], "acceptance": run.acceptance,
                                     "bytes_ratio": run.work.weight_bytes / plain.work.weight_bytes,
                                     "flops_ratio": run.work.flops / plain.work.flops})
                        print(rows[-1], flush=True)
    return pd.DataFrame(rows)


def depth_cells(models: list[str]) -> pd.DataFrame:
    """One row a column of the grid: for each method and knob, what happened in the cells of each position."""
    rows = []
    for name in models:
        lm = model(name)
        text = window(name, 0, 64)
        for label, knob, policy in grid_policies(name, lm):
            run = decode(lm, [list(text[:8])], policy, forced=torch.tensor([text[8:8 + GRID_TOKENS]]))
            cells = run.stack.cells()
            for position in range(cells.shape[1]):
                rows.append({"model": name, "method": label, "knob": float(knob), "position": position,
                             "text": lm.tokenizer.token_str(text[position]), "cells": "".join(map(str, cells[:, position])),
                             **{key: spent(run)[key] for key in ("layers", "weight_bytes")}})
    return pd.DataFrame(rows)


def grid_policies(name: str, lm):
    layers, lens = lm.config.num_layers, lens_of(name)
    for speedup in SPEEDUPS:
        num = max(2, round(layers / speedup))
        for cls in ALL:
            if cls.name == "skipdecode":
                yield "skipdecode", speedup, cls.for_budget(1 / speedup, lm, num_steps=GRID_TOKENS)
        yield "fixed_exit", speedup, FixedExit(num)
        yield "unified_skipping", speedup, UnifiedSkipping(num)
    for threshold in THRESHOLDS:
        yield "confidence, keys copied", threshold, ConfidenceExit(threshold, lens=lens)
        yield "confidence, recomputed", threshold, ConfidenceExit(threshold, lens=lens, missing="recompute")


def lens_table() -> None:
    """What the live widget shows before its first run; a JSON file of its own."""
    found = live_lens.lens_table({"sentence": live_lens.SENTENCE, "lens": "ridge"}, lambda fraction, partial=None: None)
    ASSETS.mkdir(exist_ok=True)
    (ASSETS / "lens_table.json").write_text(json.dumps(found, ensure_ascii=False))


TABLES = [depth_cells, confidence, self_speculative, exits]


def merged(table: pd.DataFrame, path: Path, models: list[str]) -> pd.DataFrame:
    """The new rows, behind the recorded ones of the models that were not run now."""
    if not path.is_file():
        return table
    old = read_recorded(path)
    of = old["model"] if "model" in old else old["workload"].map(lambda name: WORKLOADS[name].model)
    return pd.concat([old[~of.isin(models)], table], ignore_index=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tables", nargs="*")
    parser.add_argument("--model", choices=MODELS, action="append")
    options = parser.parse_args()
    torch.set_num_threads(1)
    OUT.mkdir(exist_ok=True)
    models = options.model or MODELS
    if SMOLLM2 in models and (not options.tables or "lens_table" in options.tables):
        lens_table()
    for table in TABLES:
        if not options.tables or table.__name__ in options.tables:
            path = OUT / f"{table.__name__}.json"
            print("wrote", record(merged(table(models), path, models), path).name, flush=True)


if __name__ == "__main__":
    main()
