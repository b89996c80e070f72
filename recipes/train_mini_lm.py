"""Train the mini-LM on the standard library so that it tolerates skipped layers.

    python recipes/train_mini_lm.py --work /tmp/mini_lm --steps 800 --publish

One thread, about 1.25 CPU seconds a step on a shared core. Stops and resumes anywhere: the work folder holds weights and optimizer moments
(safetensors) and the step (JSON metadata); the batch of a step depends on the seed and the step alone. Each step sees two
half batches: one under a random depth schedule (SkipDecode), one at full depth with layer dropout and two early exits
(LayerSkip); of the latter, one in five runs a fixed set of layers instead (evenly spread, or a block left out), so that the baselines
are trained too.
The corpus comes from recipes/build_code_corpus.py. The last step writes the weights as fp16 and a card.
"""
import argparse
import json
import math
import os
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from frugal.data import code_text
from frugal.models import mini_lm
from frugal.models.mini_lm import CONTEXT, SHAPE

LAYERS, ROWS = SHAPE["num_layers"], 6           # rows of half a batch
MATRIX_RATE, OTHER_RATE = 5e-3, 4e-3
DROP_MOST, EXIT_WEIGHT, FIXED_SHARE = 0.1, 0.25, 0.2
FIRST_DEPTH = 2                                 # the fewest layers of any schedule: the warm-up layer and the last


def windows(tokens: torch.Tensor, step: int, seed: int) -> torch.Tensor:
    """2 * ROWS windows of CONTEXT + 1 tokens of this step: each epoch in an order and at an offset of its own."""
    width = CONTEXT + 1
    fit = len(tokens) // width - 1
    first = step * 2 * ROWS
    out = []
    for index in range(first, first + 2 * ROWS):
        epoch, place = divmod(index, fit)
        rng = np.random.default_rng([seed, 1, epoch])
        start = int(rng.integers(width)) + int(rng.permutation(fit)[place]) * width
        out.append(tokens[start:start + width])
    return torch.stack(out)


def draw_schedule(rng: np.random.Generator) -> list[int]:
    """For each layer, how many leading positions run it: prompt at N_max, then a line down to N_min.

    The mean depth is log-uniform between FIRST_DEPTH and all layers; half of the prompts of a cut-down N_max run at full
    depth, one schedule in four is flat.
    """
    mean = math.exp(rng.uniform(math.log(FIRST_DEPTH), math.log(LAYERS)))
    most = 0.0 if rng.random() < 0.25 else min(mean - FIRST_DEPTH, LAYERS - mean)
    high, low = mean + most, mean - most
    prompt = int(rng.integers(1, 129))
    steps = CONTEXT - prompt
    first = LAYERS if rng.random() < 0.5 else round(high)
    depth = np.concatenate([np.full(prompt, first), np.rint(high - (high - low) * np.arange(steps) / (steps - 1))])
    return [CONTEXT if i == 0 else int((depth >= LAYERS - i + 1).sum()) for i in range(LAYERS)]


def draw_dropout(rng: np.random.Generator) -> list[int]:
    """Layer dropout that grows exponentially with depth, from 0 to DROP_MOST (LayerSkip, equation 1)."""
    rates = DROP_MOST * (np.exp(np.arange(LAYERS) * math.log(2) / (LAYERS - 1)) - 1)
    return [CONTEXT if keep else 0 for keep in rng.random(LAYERS) >= rates]


def draw_fixed(rng: np.random.Generator) -> list[int]:
    """The same layers for every position: an even spacing (Unified Layer Skipping), or all but one block in the middle."""
    count = int(rng.integers(FIRST_DEPTH, LAYERS))
    if rng.random() < 0.5:
        kept = set(np.rint(np.linspace(0, LAYERS - 1, count)).astype(int).tolist())
    else:
        front = int(rng.integers(1, count))
        kept = {*range(front), *range(LAYERS - count + front, LAYERS)}
    return [CONTEXT if i in kept else 0 for i in range(LAYERS)]


def loss_of(weights: dict, states: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(mini_lm.training_logits(weights, states).float().flatten(0, 1), targets.flatten())


def learn(weights: dict, batch: torch.Tensor, rng: np.random.Generator) -> dict[str, float]:
    """Gradients of one step into `weights`; the losses seen."""
    seen = {}
    inputs, targets = batch[:, :-1], batch[:, 1:]
    with torch.autocast("cpu", torch.bfloat16):
        reach = draw_schedule(rng)
        loss = loss_of(weights, mini_lm.training_states(weights, inputs[:ROWS], reach)[-1], targets[:ROWS])
        (0.5 * loss).backward()
        seen["skip"] = float(loss.detach())
        if rng.random() < FIXED_SHARE:
            states, shares = mini_lm.training_states(weights, inputs[ROWS:], draw_fixed(rng)), [1.0]
        else:
            exits = tuple(sorted((1 + rng.choice(LAYERS - 1, 2, replace=False)).tolist()))
            states, shares = mini_lm.training_states(weights, inputs[ROWS:], draw_dropout(rng), exits), [EXIT_WEIGHT, EXIT_WEIGHT, 1.0]
        losses = [loss_of(weights, x, targets[ROWS:]) for x in states]
        (0.5 * sum(s * x for s, x in zip(shares, losses, strict=True)) / sum(shares)).backward()
        seen["fixed" if len(losses) == 1 else "full"] = float(losses[-1].detach())
    return seen


@torch.no_grad()
def validate(weights: dict, count: int = 48) -> dict[str, float]:
    """Held-out loss in nats per token: full depth, flat schedules (warm-up layer + top), early exits."""
    held = code_text.heldout_windows(CONTEXT + 1, count)
    inputs, targets = held[:, :-1], held[:, 1:]
    out = {}
    exits = (3, 4, 6, 9)
    states = mini_lm.training_states(weights, inputs, exits=exits)
    out |= {f"exit_{e}": float(loss_of(weights, x, targets)) for e, x in zip(exits, states, strict=False)}
    out["full"] = float(loss_of(weights, states[-1], targets))
    best = mini_lm.training_logits(weights, states[-1]).argmax(-1)
    for depth in (3, 4, 6, 9):
        reach = [CONTEXT if i == 0 or i >= LAYERS - depth + 1 else 0 for i in range(LAYERS)]
        skipped = mini_lm.training_states(weights, inputs, reach)[-1]
        out[f"skip_{depth}"] = float(loss_of(weights, skipped, targets))
        out[f"agree_{depth}"] = float((mini_lm.training_logits(weights, skipped).argmax(-1) == best).float().mean())
    return {name: round(value, 4) for name, value in out.items()}


def rate(progress: float) -> float:
    """Share of the peak learning rate: a short warm-up, constant, then linear to zero over the second half."""
    return min(1.0, progress / 0.02) * min(1.0, (1 - progress) / 0.5)


def make_optimizers(weights: dict) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the blocks, AdamW for the embedding and the norms."""
    inner = [v for n, v in weights.items() if v.ndim == 2 and n != "embed"]
    other = [v for n, v in weights.items() if v.ndim != 2 or n == "embed"]
    return [torch.optim.Muon(inner, lr=MATRIX_RATE, weight_decay=0.02, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(other, lr=OTHER_RATE, betas=(0.9, 0.95), weight_decay=0.0)]


def save(work: Path, weights: dict, optimizers: list, state: dict) -> None:
    """Checkpoint, replaced in one move."""
    tensors = {f"weight.{name}": value.detach() for name, value in weights.items()}
    for name, value in weights.items():
        for optimizer in optimizers:
            tensors |= {f"moment.{name}.{key}": torch.as_tensor(moment) for key, moment in optimizer.state.get(value, {}).items()}
    save_file(tensors, work / "checkpoint.tmp", metadata={"state": json.dumps(state)})
    os.replace(work / "checkpoint.tmp", work / "checkpoint.safetensors")


def resume(work: Path, weights: dict, optimizers: list) -> dict:
    """Load the checkpoint in place if there is one; returns the state (step, seconds, tokens)."""
    path = work / "checkpoint.safetensors"
    if not path.exists():
        return {"step": 0, "cpu_s": 0.0, "tokens": 0}
    tensors = load_file(path)
    owner = {id(v): o for o in optimizers for group in o.param_groups for v in group["params"]}
    for name, value in weights.items():
        value.data.copy_(tensors[f"weight.{name}"])
        start = f"moment.{name}."
        owner[id(value)].state[value] = {key[len(start):]: t for key, t in tensors.items() if key.startswith(start)}
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["state"])


def train(work: Path, steps: int, seed: int = 0, stop: int | None = None) -> tuple[dict, dict]:
    """Train up to `steps` (or pause at `stop`); returns (weights, state). Prints a line every 25 steps."""
    work.mkdir(parents=True, exist_ok=True)
    tokens = code_text.load_corpus()
    weights = {name: value.requires_grad_() for name, value in mini_lm.fresh_weights(seed).items()}
    optimizers = make_optimizers(weights)
    peaks = [optimizer.param_groups[0]["lr"] for optimizer in optimizers]
    state, recent, started = resume(work, weights, optimizers), [], time.perf_counter()
    for step in range(state["step"], min(steps, stop or steps)):
        cpu, rng = time.process_time(), np.random.default_rng([seed, 2, step])
        for optimizer, peak in zip(optimizers, peaks, strict=True):
            optimizer.param_groups[0]["lr"] = peak * rate((step + 0.5) / steps)
        recent.append(learn(weights, windows(tokens, step, seed), rng))
        torch.nn.utils.clip_grad_norm_(weights.values(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        state |= {"step": step + 1, "cpu_s": state["cpu_s"] + time.process_time() - cpu, "tokens": state["tokens"] + 2 * ROWS * CONTEXT}
        if step % 25 == 24 or step + 1 == steps:
            means = {k: round(float(np.mean([r[k] for r in recent if k in r] or [math.nan])), 3) for k in ("full", "skip", "fixed")}
            checks = validate(weights) if step % 200 == 199 or step + 1 == steps else {}
            print(json.dumps({"step": step + 1, **means, "wall_s": round(time.perf_counter() - started), "cpu_s": round(state["cpu_s"]),
                              "tok_per_cpu_s": round(state["tokens"] / state["cpu_s"]), **checks}), flush=True)
            recent = []
        if step % 100 == 99 or step + 1 == steps:
            save(work, weights, optimizers, state)
    return {name: value.detach() for name, value in weights.items()}, state


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--work", type=Path, required=True, help="folder for checkpoints, outside the repository")
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--stop", type=int, help="pause after this step")
    parser.add_argument("--publish", action="store_true", help="write the weights and the card into the package")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    weights, state = train(options.work, options.steps, stop=options.stop)
    if options.publish and state["step"] >= options.steps:
        from frugal.models import save_weights
        save_weights("mini_lm", {name: value.half() for name, value in weights.items()},
                     {"recipe": "recipes/train_mini_lm.py", "seed": 0, "steps": state["step"], "tokens": state["tokens"],
                      "cpu_s": round(state["cpu_s"]), "data_hash": code_text.CORPUS_SHA256, "shape": SHAPE,
                      "metrics": validate({n: v.half().float() for n, v in weights.items()}, count=None)})


if __name__ == "__main__":
    main()
