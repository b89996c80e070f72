"""Train Duo-LM on the code corpus: for every token and layer the big or the small network, drawn with equal chance.

    python recipes/build_code_corpus.py
    python recipes/train_duo_lm.py --small 48 --until 1200
    python recipes/train_duo_lm.py --publish

One thread, about half a second a step of 2,048 tokens. Stops and resumes anywhere: the work folder (by default in the
user cache) holds weights and optimizer state (safetensors) and the step; the data of a step depends on the seed and
the step alone. --publish checks the gate (all small is at least 0.15 nats worse than all big) and writes the card.

Why two stages: with small networks of 48 units, 16 times narrower than the big ones as in the paper, all small was
0.11 nats behind all big and stayed there. So each is cut to its 12 strongest units and the training goes on.
"""

import argparse
import json
import os
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from frugal.core.fetch import cache_dir
from frugal.data import code_text
from frugal.models import save_weights
from frugal.models.duo_lm import BIG, SHAPE, SMALL, DuoConfig, DuoLM, follow, initial_weights

LENGTH, BATCH = SHAPE["max_positions"], 8
MATRIX_RATE, OTHER_RATE = 0.02, 4e-3
GATE_NATS = 0.15


def windows(corpus: Tensor, step: int, seed: int = 0) -> Tensor:
    """Token ids (BATCH, LENGTH + 1) of a step: a fresh shift and order of the windows in every epoch."""
    per_epoch = (len(corpus) - 2 * LENGTH) // LENGTH // BATCH
    epoch, place = divmod(step, per_epoch)
    generator = torch.Generator().manual_seed(seed * 1_000 + epoch)
    shift = int(torch.randint(LENGTH, (1,), generator=generator))
    order = torch.randperm(per_epoch * BATCH, generator=generator)[place * BATCH : (place + 1) * BATCH]
    return torch.stack([corpus[shift + i * LENGTH : shift + (i + 1) * LENGTH + 1] for i in order.tolist()])


def loss_of(duo: DuoLM, tokens: Tensor, route) -> Tensor:
    """Mean next-token cross entropy, nats, of whole windows (B, T + 1) under a route."""
    with torch.autocast("cpu", torch.bfloat16, enabled=torch.is_grad_enabled()):
        x = duo.normed(duo.full_text(tokens[:, :-1], route), duo.weights["norm"])
        logits = F.linear(x, duo.head)
    return F.cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten())


def coin(generator: torch.Generator):
    """The route of training: big or small with equal chance, for every token and layer."""
    return lambda i, x: torch.randint(SMALL, BIG + 1, x.shape[:2], generator=generator)


@torch.no_grad()
def validate(duo: DuoLM, count: int | None = 12) -> dict[str, float]:
    """Held-out loss, nats a token: all big, all small, their gap, and a coin for every token and layer."""
    tokens, layers = code_text.heldout_windows(LENGTH + 1, count), duo.config.num_layers
    routes = {
        "all_big": follow([BIG] * layers),
        "all_small": follow([SMALL] * layers),
        "coin": coin(torch.Generator().manual_seed(0)),
    }
    parts = tokens.split(12)
    found = {
        name: sum(float(loss_of(duo, part, route)) * len(part) for part in parts) / len(tokens)
        for name, route in routes.items()
    }
    return {name: round(value, 4) for name, value in (found | {"gap": found["all_small"] - found["all_big"]}).items()}


def rate(progress: float) -> float:
    """Share of the peak learning rate: a short warm-up, flat, then linearly to zero over the second half."""
    return min(1.0, progress / 0.02, (1 - progress) / 0.5)


def optimizers(weights: dict[str, Tensor]) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, AdamW for the embedding and the norms."""
    inside = [w for name, w in weights.items() if w.ndim == 2 and name.startswith("layers.")]
    others = [w for name, w in weights.items() if w.ndim != 2 or not name.startswith("layers.")]
    return [
        torch.optim.Muon(inside, lr=MATRIX_RATE, weight_decay=0.05),
        torch.optim.AdamW(others, lr=OTHER_RATE, betas=(0.9, 0.95), weight_decay=0.0, fused=True),
    ]


def save(work: Path, weights: dict[str, Tensor], found: list[torch.optim.Optimizer], state: dict) -> None:
    """Checkpoint: weights, optimizer tensors and the state in one file, replaced in one move."""
    tensors = {f"weight.{name}": value.detach() for name, value in weights.items()}
    for optimizer in found:
        for name, value in weights.items():
            tensors |= {f"{key}.{name}": torch.as_tensor(t) for key, t in optimizer.state.get(value, {}).items()}
    save_file(tensors, work / "checkpoint.tmp", metadata={"state": json.dumps(state)})
    os.replace(work / "checkpoint.tmp", work / "checkpoint.safetensors")


def narrowed(tensors: dict[str, Tensor], width: int) -> dict[str, Tensor]:
    """Weights alone, each small network cut to the `width` inner units with the largest product of norms."""
    out = {name: value for name, value in tensors.items() if name.startswith("weight.")}
    for name in [one for one in out if one.endswith("small_gate_up")]:
        down = name.replace("gate_up", "down")
        gate, up = out[name].chunk(2)
        strength = gate.norm(dim=1) * up.norm(dim=1) * out[down].norm(dim=0)
        kept = strength.argsort(descending=True)[:width].sort().values
        out[name], out[down] = torch.cat([gate[kept], up[kept]]), out[down][:, kept].contiguous()
    return out


def resume(work: Path, weights: dict[str, Tensor], found: list[torch.optim.Optimizer]) -> dict:
    """Load the checkpoint in place if there is one; the state it was saved with, or a fresh one.

    A checkpoint of wider small networks is cut to the width asked for, and the optimizers start afresh.
    """
    path = work / "checkpoint.safetensors"
    if not path.exists():
        return {"step": 0, "cpu_s": 0.0}
    tensors = load_file(path)
    with safe_open(path, "pt") as file:
        state = json.loads(file.metadata()["state"])
    width = weights["layers.0.small_down"].shape[1]
    if tensors["weight.layers.0.small_down"].shape[1] > width:
        tensors = narrowed(tensors, width)
        state["narrowed_at"] = state["step"]
    for name, value in weights.items():
        value.data.copy_(tensors[f"weight.{name}"])
    for optimizer in found:
        for group in optimizer.param_groups:
            for name, value in weights.items():
                if any(value is one for one in group["params"]):
                    keys = [key for key in tensors if key.endswith(f".{name}") and not key.startswith("weight.")]
                    if keys:
                        optimizer.state[value] = {key.removesuffix(f".{name}"): tensors[key] for key in keys}
    return state


def train(work: Path, steps: int, until: int, shape: dict, seed: int = 0) -> tuple[DuoLM, dict]:
    """Train up to step `until` of `steps`; prints a line every 50 steps, validates and saves every 200."""
    work.mkdir(parents=True, exist_ok=True)
    corpus, config = code_text.load_corpus(), DuoConfig(**shape)
    weights = {name: value.requires_grad_() for name, value in initial_weights(config, seed).items()}
    found = optimizers(weights)
    peaks = [group["lr"] for optimizer in found for group in optimizer.param_groups]
    state, duo, losses = resume(work, weights, found), DuoLM(config, weights), []
    started = time.perf_counter()
    for step in range(state["step"], until):
        cpu = time.process_time()
        for group, peak in zip((g for optimizer in found for g in optimizer.param_groups), peaks):
            group["lr"] = peak * rate((step + 0.5) / steps)
        loss = loss_of(duo, windows(corpus, step, seed), coin(torch.Generator().manual_seed(seed * 1_000_003 + step)))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights.values(), 1.0)
        for optimizer in found:
            optimizer.step()
            optimizer.zero_grad()
        losses.append(float(loss.detach()))
        state = state | {"step": step + 1, "cpu_s": state["cpu_s"] + time.process_time() - cpu}
        if step % 50 == 49 or step + 1 == until:
            checked = validate(duo) if step % 200 == 199 or step + 1 == until else {}
            print(
                json.dumps(
                    {
                        "step": step + 1,
                        "loss": round(sum(losses) / len(losses), 4),
                        "cpu_s": round(state["cpu_s"]),
                        "tok_per_s": round(len(losses) * BATCH * LENGTH / (time.perf_counter() - started)),
                        **checked,
                    }
                ),
                flush=True,
            )
            losses, started = [], time.perf_counter()
            if checked:
                save(work, weights, found, state)
    return duo, state


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--work", type=Path, default=None, help="folder for checkpoints; default: in the user cache")
    parser.add_argument("--steps", type=int, default=1800, help="of the whole training: sets the learning rates")
    parser.add_argument("--until", type=int, help="stop at this step")
    parser.add_argument("--small", type=int, default=SHAPE["small_size"], help="inner width of the small networks")
    parser.add_argument(
        "--history", default="one run from random weights", help="for the card, when it was not one plain run"
    )
    parser.add_argument("--publish", action="store_true", help="write the weights and the card into the package")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    shape = SHAPE | {"small_size": options.small}
    duo, state = train(
        options.work or cache_dir() / "training" / "duo_lm", options.steps, options.until or options.steps, shape
    )
    if not options.publish:
        return
    halved = {name: value.detach().half() for name, value in duo.weights.items()}
    metrics = validate(DuoLM(duo.config, {name: value.float() for name, value in halved.items()}), count=None)
    if metrics["gap"] < GATE_NATS:
        raise SystemExit(
            f"all small is {metrics['gap']} nats worse than all big; the gate asks for {GATE_NATS}: not published"
        )
    save_weights(
        "duo_lm",
        halved,
        {
            "recipe": "recipes/train_duo_lm.py",
            "seed": 0,
            "history": options.history,
            "steps": state["step"],
            "narrowed_at": state.get("narrowed_at"),
            "tokens": state["step"] * BATCH * LENGTH,
            "cpu_s": round(state["cpu_s"]),
            "shape": shape,
            "data_hash": code_text.CORPUS_SHA256,
            "metrics": metrics,
        },
    )


if __name__ == "__main__":
    main()
