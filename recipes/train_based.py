"""Train the BASED comparison on associative recall, write weights and cards, record the sweep.

    python recipes/train_based.py                       # all that have no weights yet, then the recorded rows
    python recipes/train_based.py taylor_16 attention   # these, from their checkpoints if a run was stopped
    python recipes/train_based.py --record              # only the rows, from the committed weights

All configurations see the same batches, steps, learning rate and schedule. One core, about 2-3 minutes each.
Source: arXiv 2402.18668 (MQAR experiment) with the settings of arXiv 2312.04927 scaled down.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from tqdm import tqdm

from frugal.core.recording import read_recorded
from frugal.core.recording import record as write_recorded
from frugal.data.mqar import IGNORE, MQARTask, data_hash, mqar_batch
from frugal.kv_eviction.based_layers import available, build, load_based, weights_name
from frugal.kv_eviction.based_recall import (
    CONFIGURATIONS,
    TRAINED_TOKENS,
    attention_maps,
    evaluate,
    recall_rows,
    speed_rows,
)
from frugal.core.files import write_atomically
from frugal.models import save_weights

SEED = 0
TRAIN_TASKS = [MQARTask(tokens, pairs) for pairs, tokens in TRAINED_TOKENS.items()]
TOKENS_PER_BATCH, STEPS, LEARNING_RATE, WEIGHT_DECAY, WARMUP = 8192, 3000, 6e-3, 0.01, 0.05
CHECKPOINT_EVERY = 250
RECORDED = Path(__file__).parents[1] / "lib" / "frugal" / "kv_eviction" / "recorded"


def batch_size(task: MQARTask) -> int:
    """At most 64 examples, and at most TOKENS_PER_BATCH tokens."""
    return min(64, TOKENS_PER_BATCH // task.length)


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Linear warm-up over the first 5 %, then half a cosine down to 0."""
    warm = max(1, int(WARMUP * steps))
    if step < warm:
        return peak * (step + 1) / warm
    return peak * 0.5 * (1 + np.cos(np.pi * (step - warm) / max(1, steps - warm)))


def train(
    name: str, folder: Path, steps: int = STEPS, peak: float = LEARNING_RATE, seed: int = SEED
) -> tuple[torch.nn.Module, dict]:
    """(model, log) after `steps`; resumes from `folder` when a checkpoint is there. Batch s is drawn from (seed, s)."""
    model = build(name, seed=seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak, weight_decay=WEIGHT_DECAY)
    start, log = restore(folder, name, model, optimizer)
    began = time.process_time()
    bar = tqdm(range(start, steps), initial=start, total=steps, desc=name, disable=None)
    for step in bar:
        optimizer.param_groups[0]["lr"] = learning_rate(step, steps, peak)
        task = TRAIN_TASKS[step % len(TRAIN_TASKS)]
        tokens, labels = mqar_batch(task, batch_size(task), np.random.default_rng([seed, 1, step]))
        asked = labels != IGNORE
        loss = F.cross_entropy(model.hidden(tokens)[asked] @ model.embed.weight.T, labels[asked])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % 50 == 0:
            log["loss"].append([step + 1, round(loss.item(), 4)])
            bar.set_postfix(loss=f"{loss.item():.3f}")
        if (step + 1) % CHECKPOINT_EVERY == 0 or step + 1 == steps:
            log["cpu_s"] = round(log["cpu_s"] + time.process_time() - began, 1)
            began = time.process_time()
            checkpoint(folder, name, model, optimizer, step + 1, log)
    return model, log


def checkpoint(
    folder: Path, name: str, model: torch.nn.Module, optimizer: torch.optim.Optimizer, step: int, log: dict
) -> None:
    """Weights and AdamW moments as one safetensors file, with the step and the log in its header."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {f"model.{key}": t for key, t in model.state_dict().items()}
    for index, own in optimizer.state_dict()["state"].items():
        tensors |= {f"adam.{index}.{key}": t for key, t in own.items()}
    blob = save_safetensors(tensors, metadata={"log": json.dumps({"step": step, "log": log})})
    write_atomically(folder / f"{weights_name(name)}.ckpt.safetensors", blob)


def restore(folder: Path, name: str, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> tuple[int, dict]:
    """(next step, log); loads model and optimizer when a checkpoint is there."""
    path = folder / f"{weights_name(name)}.ckpt.safetensors"
    if not path.is_file():
        return 0, {"loss": [], "cpu_s": 0.0}
    blob = path.read_bytes()
    header = json.loads(blob[8 : 8 + int.from_bytes(blob[:8], "little")])
    saved = json.loads(header["__metadata__"]["log"])
    tensors = load_safetensors(blob)
    model.load_state_dict({key.removeprefix("model."): t for key, t in tensors.items() if key.startswith("model.")})
    state = optimizer.state_dict()
    for key, tensor in tensors.items():
        if key.startswith("adam."):
            _, index, moment = key.split(".")
            state["state"].setdefault(int(index), {})[moment] = tensor
    optimizer.load_state_dict(state)
    return saved["step"], saved["log"]


def make(name: str, folder: Path, steps: int, peak: float) -> None:
    """Train one configuration, measure its fp16 weights on held-out data, write weights and card."""
    model, log = train(name, folder, steps, peak)
    model.load_state_dict({key: t.half().float() for key, t in model.state_dict().items()})
    card = {
        "recipe": f"python recipes/train_based.py {name}",
        "configuration": name,
        "paper": "arXiv 2402.18668",
        "vocab_size": 256,
        "hidden_size": 64,
        "num_heads": 1,
        "seed": SEED,
        "steps": steps,
        "batch_sizes": [batch_size(t) for t in TRAIN_TASKS],
        "learning_rate": peak,
        "weight_decay": WEIGHT_DECAY,
        "optimizer": "AdamW, 5 % warm-up, cosine to 0, gradient norm 1",
        "train_tasks": [[t.length, t.num_pairs] for t in TRAIN_TASKS],
        "data_hash": data_hash(TRAIN_TASKS, SEED),
        "cpu_s": log["cpu_s"],
        "final_loss": log["loss"][-1][1],
        "loss": log["loss"][::10],
        "metrics": evaluate(model.eval()),
    }
    save_weights(weights_name(name), model.state_dict(), card)
    tqdm.write(f"{name}: {log['cpu_s']:.0f} s, recall {card['metrics']['recall']}")


def record(again: bool) -> None:
    """Recall, speed and attention maps of the committed weights, as the JSON that figures are drawn from.

    again: measure everything anew; otherwise only the recall of weights that have changed is computed.
    """
    RECORDED.mkdir(exist_ok=True)
    makers = {"based_mqar": lambda: recall_table(again), "based_speed": speed_rows, "based_maps": attention_maps}
    for name, make_rows in makers.items():
        path = RECORDED / f"{name}.json"
        if again or name == "based_mqar" or not path.is_file():
            write_recorded(pd.DataFrame(make_rows()), path)
            tqdm.write(f"wrote {path}")


def recall_table(again: bool) -> list[dict]:
    """Rows of every committed configuration; recorded rows are taken over where the weights are the same."""
    names, kept = available(CONFIGURATIONS), []
    path = RECORDED / "based_mqar.json"
    if path.is_file() and not again:
        hashes = {name: load_based(name)[1]["sha256"][:16] for name in names}
        kept = [
            row
            for row in read_recorded(path).to_dict("records")
            if hashes.get(row["configuration"]) == row["model_hash"]
        ]
    missing = [name for name in names if name not in {row["configuration"] for row in kept}]
    rows = kept + (recall_rows(missing) if missing else [])
    return sorted(rows, key=lambda row: names.index(row["configuration"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help=f"configurations; known: {', '.join(CONFIGURATIONS)}")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--learning-rate", type=float, default=LEARNING_RATE)
    parser.add_argument("--checkpoints", type=Path, default=Path("checkpoints/based"))
    parser.add_argument("--record", action="store_true", help="only write the recorded rows from the committed weights")
    parser.add_argument("--again", action="store_true", help="with --record: measure everything anew")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if not args.record:
        for name in args.names or [n for n in CONFIGURATIONS if n not in available(CONFIGURATIONS)]:
            make(name, args.checkpoints, args.steps, args.learning_rate)
    if args.record or not args.names:
        record(args.again)


if __name__ == "__main__":
    main()
