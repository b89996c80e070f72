"""Train mini TIM on working-memory snapshots of exact Thread traces.

    python recipes/train_mini_tim.py --work /tmp/mini_tim --rounds 600 --publish

One thread, about 3 CPU seconds a round. Stops and resumes anywhere: the work folder holds the weights and optimizer moments (safetensors)
and the round (JSON); the data of a round depends on the seed and the round alone. The curriculum starts with trees of at most
six tasks and widens; so a weaker model is there at any time. The last step writes the weights as fp16 and a card.
"""
import argparse
import hashlib
import json
import math
import os
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from frugal.data import thread_tasks as tasks
from frugal.models import mini_tim

THRESHOLDS = (0, 1, 2, math.inf)
SHARES = (0.45, 0.12, 0.08, 0.35)                  # of the traces, by threshold
ROUND_TOKENS = 32_768
BATCH_TOKENS = 2_048
PEAK_RATE = 2e-3


def draw_snapshots(rng: np.random.Generator, most_nodes: int, num_tokens: int) -> list[tasks.Snapshot]:
    """Snapshots of random problems of 1..most_nodes records (log-uniform), until they hold `num_tokens` tokens."""
    out: list[tasks.Snapshot] = []
    held = 0
    while held < num_tokens:
        threshold = THRESHOLDS[rng.choice(len(THRESHOLDS), p=SHARES)]
        most = min(most_nodes, 26) if threshold == math.inf else most_nodes
        num_nodes = round(math.exp(rng.uniform(0, math.log(most))))
        width = 3 if num_nodes > 30 else int(rng.integers(2, 4))
        depth = 5 if num_nodes > 60 else int(rng.integers(4, 7))
        root = tasks.random_problem(rng, num_nodes, max_depth=depth, max_children=width)
        states = tasks.snapshots(tasks.solve(tasks.Document(root)), threshold, mini_tim.LIMIT)
        chosen = rng.choice(len(states), size=min(3, len(states)), replace=False)
        out += [states[i] for i in chosen]
        held += sum(len(states[i].tokens) for i in chosen)
    return out


def batches(snapshots: list[tasks.Snapshot], rng: np.random.Generator) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Right-padded (tokens, learn) pairs of similar lengths, at most BATCH_TOKENS each, in random order."""
    queue = sorted(snapshots, key=lambda s: len(s.tokens))
    out = []
    while queue:
        longest = len(queue[-1].tokens)
        group = queue[-max(1, BATCH_TOKENS // longest):]
        queue = queue[: -len(group)]
        tokens = torch.full((len(group), longest), tasks.PAD)
        learn = torch.zeros(len(group), longest, dtype=torch.bool)
        for row, snapshot in enumerate(group):
            tokens[row, : len(snapshot.tokens)] = torch.tensor(snapshot.tokens)
            learn[row, : len(snapshot.tokens)] = torch.tensor(snapshot.learn)
        out.append((tokens, learn))
    return [out[i] for i in rng.permutation(len(out))]


def loss_and_hits(weights: dict, tokens: torch.Tensor, learn: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean cross entropy of the tokens to learn, and a (B, T-1) mask of the mistakes among them."""
    logits = mini_tim.training_forward(weights, tokens[:, :-1]).float()
    targets, wanted = tokens[:, 1:], learn[:, 1:]
    loss = F.cross_entropy(logits[wanted], targets[wanted])
    return loss, (logits.argmax(-1) != targets) & wanted


@torch.no_grad()
def validate(weights: dict, seed: int = 10_001, num_tokens: int = 60_000) -> dict[str, float]:
    """Held-out token error, and the share of snapshots without any mistake, teacher-forced."""
    rng = np.random.default_rng(seed)
    wrong = total = clean = count = 0
    for tokens, learn in batches(draw_snapshots(rng, 260, num_tokens), rng):
        mistakes = loss_and_hits(weights, tokens, learn)[1]
        wrong, total = wrong + int(mistakes.sum()), total + int(learn[:, 1:].sum())
        clean, count = clean + int((~mistakes.any(-1)).sum()), count + len(tokens)
    return {"token_error": wrong / total, "clean_snapshots": clean / count}


def stage(progress: float) -> int:
    """Largest problem, in records, at this share of the training."""
    return 6 if progress < 0.1 else 25 if progress < 0.25 else 80 if progress < 0.4 else 260


def rate(progress: float) -> float:
    """Learning rate: a short warm-up, then a cosine to zero."""
    return PEAK_RATE * min(1.0, progress / 0.01) * 0.5 * (1 + math.cos(math.pi * progress))


def save(work: Path, weights: dict, optimizer: torch.optim.Optimizer, state: dict) -> None:
    """Checkpoint; both files are replaced in one move each."""
    tensors = {f"weight.{name}": value.detach() for name, value in weights.items()}
    for name, value in weights.items():
        for moment, tensor in optimizer.state[value].items():
            tensors[f"{moment}.{name}"] = tensor
    save_file(tensors, work / "checkpoint.tmp", metadata={"state": json.dumps(state)})
    os.replace(work / "checkpoint.tmp", work / "checkpoint.safetensors")


def resume(work: Path, weights: dict, optimizer: torch.optim.Optimizer) -> dict:
    """Load the checkpoint in place if there is one; returns the state (round, seconds)."""
    path = work / "checkpoint.safetensors"
    if not path.exists():
        return {"round": 0, "cpu_s": 0.0, "tokens": 0}
    from safetensors import safe_open
    tensors = load_file(path)
    with safe_open(path, "pt") as file:
        state = json.loads(file.metadata()["state"])
    for name, value in weights.items():
        value.data.copy_(tensors[f"weight.{name}"])
        optimizer.state[value] = {moment: tensors[f"{moment}.{name}"] for moment in ("step", "exp_avg", "exp_avg_sq")}
    return state


def train(work: Path, rounds: int, seed: int = 0) -> tuple[dict, dict]:
    """Train up to `rounds`; returns (weights, state). Prints a line every 10 rounds."""
    work.mkdir(parents=True, exist_ok=True)
    weights = {name: value.requires_grad_() for name, value in mini_tim.initial_weights(seed).items()}
    decayed = [v for n, v in weights.items() if v.ndim == 2]
    optimizer = torch.optim.AdamW([{"params": decayed, "weight_decay": 0.02},
                                   {"params": [v for v in weights.values() if v.ndim == 1], "weight_decay": 0.0}],
                                  betas=(0.9, 0.98), fused=True)
    state = resume(work, weights, optimizer)
    for index in range(state["round"], rounds):
        started, losses, mistakes, seen = time.process_time(), [], 0, 0
        for group in optimizer.param_groups:
            group["lr"] = rate((index + 0.5) / rounds)
        rng = np.random.default_rng([seed, index])
        for tokens, learn in batches(draw_snapshots(rng, stage(index / rounds), ROUND_TOKENS), rng):
            loss, wrong = loss_and_hits(weights, tokens, learn)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(weights.values(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(float(loss.detach()))
            mistakes, seen = mistakes + int(wrong.sum()), seen + int(learn[:, 1:].sum())
            state["tokens"] += tokens.numel()
        state["round"] = index + 1
        state["cpu_s"] += time.process_time() - started
        if index % 10 == 9 or index + 1 == rounds:
            checks = validate(weights) if index % 50 == 49 or index + 1 == rounds else {}
            print(json.dumps({"round": index + 1, "loss": round(float(np.mean(losses)), 5), "error": round(mistakes / seen, 6),
                              "cpu_s": round(state["cpu_s"]), "tokens": state["tokens"], **checks}), flush=True)
            save(work, weights, optimizer, state)
    return {name: value.detach() for name, value in weights.items()}, state


def data_hash() -> str:
    """sha256 of the first round's tokens: tells whether the generator still makes the same data."""
    rng = np.random.default_rng([0, 0])
    digest = hashlib.sha256()
    for snapshot in draw_snapshots(rng, 25, 4096):
        digest.update(bytes(snapshot.tokens))
    return digest.hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--work", type=Path, required=True, help="folder for checkpoints, outside the repository")
    parser.add_argument("--rounds", type=int, default=600)
    parser.add_argument("--history", default="from random weights", help="for the card: what the first round started from")
    parser.add_argument("--publish", action="store_true", help="write the weights and the card into the package")
    options = parser.parse_args()
    torch.set_num_threads(1)
    weights, state = train(options.work, options.rounds)
    if options.publish:
        from frugal.models import save_weights
        save_weights("mini_tim", {name: value.half() for name, value in weights.items()},
                     {"recipe": "recipes/train_mini_tim.py", "seed": 0, "history": options.history, "rounds": state["round"], "tokens": state["tokens"],
                      "cpu_s": round(state["cpu_s"]), "data_hash": data_hash(), "shape": mini_tim.SHAPE,
                      "metrics": validate({n: v.half().float() for n, v in weights.items()})})


if __name__ == "__main__":
    main()
