"""Measuring SkipDecode: quality at each target speed-up, and time in batches beside confident exit.

Text is fed through each method's own cache, so all methods do the same work on the same tokens. Timings of one round stand
in one process, one after the other; a speed-up is the median over rounds of the ratio to the whole model in that round.
Source: the questions of arXiv 2307.02628 (SkipDecode), section 4, on models and text of this repository.
"""
from collections.abc import Callable, Iterator

import numpy as np
import pandas as pd
import torch

from frugal.core.depth_decode import DepthPolicy, decode
from frugal.early_exit.calm import ConfidenceExit
from frugal.early_exit.fixed_exit import FixedExit, Full
from frugal.early_exit.skip_baselines import EarlyTermination, MiddleSkip
from frugal.early_exit.skipdecode import DepthTable, SkipDecode, schedule_for
from frugal.early_exit.unified_skipping import UnifiedSkipping
from frugal.early_exit.workloads import MINI_LM, SMOLLM2, measured, spent, window

SPEEDUPS = (1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 5.0)
CONTEXT_TOK, SCORED_TOK = {MINI_LM: 64, SMOLLM2: 64}, {MINI_LM: 129, SMOLLM2: 33}
THRESHOLDS = (0.05, 0.1, 0.2, 0.4)           # the mini-LM is rarely sure: its gap is above 0.4 on few tokens
CALM_EXITS = (3, 6, 9)


def methods(lm, model: str, speedup: float, steps: int, lens=None) -> Iterator[tuple[str, DepthPolicy]]:
    """(name, policy) of every method that runs about 1 / speedup of the layers. steps: tokens over which depth falls."""
    layers = lm.config.num_layers
    share = 1 / speedup
    near = max(2, round(layers * share))
    if model == SMOLLM2:
        bridged = SkipDecode.for_budget(share, lm, num_steps=steps)
        yield "skipdecode", bridged
        yield "skipdecode, no bridge", SkipDecode(bridged.schedule, bridged.prompt_depth)
    else:
        schedule = schedule_for(share, layers, num_steps=steps)
        yield "skipdecode", SkipDecode(schedule)
        yield "skipdecode, flat", SkipDecode(DepthTable(layers, (near,)))
        yield "early_termination", EarlyTermination(schedule)
    leaving = FixedExit.for_budget(near, lm, lens)
    if abs(leaving.exit_layer - near) <= 1:                                   # a fitted lens has a few exits only
        yield "fixed_exit", leaving
    yield "middle_skip", MiddleSkip(near)
    yield "unified_skipping", UnifiedSkipping(near)


def quality_rows(lm, model: str, groups: int, batch: int, lens=None, speedups=SPEEDUPS,
                 say: Callable[[dict], None] | None = None) -> pd.DataFrame:
    """Loss and agreement of each method at each target, on `groups` batches of held-out windows."""
    rows, context, scored = [], CONTEXT_TOK[model], SCORED_TOK[model]
    for group in range(groups):
        texts = [window(model, group * batch + b, context + scored) for b in range(batch)]
        whole = measured(lm, Full(), texts, context)
        rows.append({"model": model, "method": "full", "speedup": 1.0, "group": group, "lost_nats": 0.0, **_kept(whole)})
        for speedup in speedups:
            for name, policy in methods(lm, model, speedup, scored - 1, lens):
                found = measured(lm, policy, texts, context)
                rows.append({"model": model, "method": name, "speedup": speedup, "group": group,
                             "lost_nats": found["nll"] - whole["nll"], **_kept(found)})
                if say is not None:
                    say(rows[-1])
    return pd.DataFrame(rows)


def _kept(found: dict) -> dict:
    return {key: found[key] for key in ("layers", "agreement", "nll", "weight_bytes", "flops")}


def timed_policies(lm, model: str, steps: int) -> dict[tuple[str, float], DepthPolicy]:
    """What is timed, by (method, setting): the whole model first; SkipDecode by target, confident exit by threshold."""
    layers = lm.config.num_layers
    found: dict[tuple[str, float], DepthPolicy] = {("full", 1.0): Full()}
    for speedup in SPEEDUPS[1:]:
        found["skipdecode", speedup] = (SkipDecode.for_budget(1 / speedup, lm, num_steps=steps) if model == SMOLLM2 else
                                        SkipDecode(schedule_for(1 / speedup, layers, num_steps=steps)))
    if model == MINI_LM:
        for threshold in THRESHOLDS:
            found["confidence_exit", threshold] = ConfidenceExit(threshold, CALM_EXITS)
    return found


def speed_rows(lm, model: str, batch: int, rounds: int, tokens: int, say=None) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(one row a method and setting; one row a method, setting and position: CPU time of the step) of decoding `tokens` tokens in a batch.

    tok_per_s, tok_per_cpu_s: of the whole batch, median round. speedup, cpu_ratio: median over rounds of whole model /
    method, wall and CPU time of the process, with the quartiles of the CPU ratio. quiet: the same of each step's least wall
    time over the rounds. On a busy machine only CPU time compares: a longer step is interrupted more often.
    exit_layer: layers that a token needed, before its batch made it wait.
    """
    context = CONTEXT_TOK[model]
    texts = [list(window(model, b, context + tokens)) for b in range(batch)]
    prompts, forced = [t[:context] for t in texts], torch.tensor([t[context:] for t in texts])
    policies = timed_policies(lm, model, tokens - 1)
    wall, cpu, steps, runs = ({key: [] for key in policies} for _ in range(4))
    for turn in range(rounds + 1):                                            # the first round warms up
        for key, policy in policies.items():
            run = decode(lm, prompts, policy, tokens, forced=forced)
            if turn:
                wall[key].append(run.decode_s)
                cpu[key].append(sum(run.step_cpu_s))
                steps[key].append((run.step_s, run.step_cpu_s))
            runs[key] = run
    rows, places = [], []
    for (name, setting), run in runs.items():
        key, own = (name, setting), spent(run)
        ratio, least = np.divide(cpu["full", 1.0], cpu[key]), np.min(steps[key], 0)[0].sum()
        rows.append({"model": model, "batch": batch, "method": name, "setting": setting, "layers": own["layers"],
                     "exit_layer": own["exit_layer"], "weight_bytes": own["weight_bytes"], "flops": own["flops"],
                     "head_calls": own["head_calls"], "tok_per_s": batch * (tokens - 1) / float(np.median(wall[key])),
                     "tok_per_cpu_s": batch * (tokens - 1) / float(np.median(cpu[key])),
                     "speedup": float(np.median(np.divide(wall["full", 1.0], wall[key]))),
                     "quiet": float(np.min(steps["full", 1.0], 0)[0].sum() / least), "cpu_ratio": float(np.median(ratio)),
                     "cpu_low": float(np.quantile(ratio, 0.25)), "cpu_high": float(np.quantile(ratio, 0.75))})
        places += [{"model": model, "batch": batch, "method": name, "setting": setting, "position": i, "step_ms": 1e3 * float(ms),
                    "layers": work.layer_tok / batch}
                   for i, (ms, work) in enumerate(zip(np.median(steps[key], 0)[1], run.step_work))]
        if say is not None:
            say(rows[-1])
    return pd.DataFrame(rows), pd.DataFrame(places)
