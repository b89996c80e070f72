"""The training loop that recipes share: Muon and AdamW, warm-up and decay, averaged weights, stop and resume anywhere.

A recipe gives a model and `loss(model, step, generator) -> (loss, numbers to print)`; the generator's seed depends on the step
alone, so a resumed run sees the data that an unbroken one would. Checkpoints are safetensors, replaced in one move.
"""
import argparse
import copy
import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from frugal.models import save_weights


@dataclass(frozen=True)
class Plan:
    """How to train. muon, adam: peak rates. decay: weight decay. ema: of the averaged weights (0: none). low: share of the
    peak rate at the end. only: part of the parameter names that are trained at all ("" for all)."""

    steps: int
    muon: float = 0.01
    adam: float = 2e-3
    decay: float = 0.02
    warmup: int = 50
    low: float = 0.02
    ema: float = 0.0
    clip: float = 1.0
    seed: int = 0
    every: int = 50
    bf16: bool = True
    only: str = ""


def fit(model: nn.Module, loss: Callable, work: Path | str, plan: Plan, check: Callable[[nn.Module], dict] | None = None) -> dict:
    """Trains in place (the averaged weights, where there are any) and returns {"step", "cpu_s"}.

    check(model) -> numbers: printed at every tenth report and at the end, on the weights that would be kept.
    """
    work = Path(work)
    work.mkdir(parents=True, exist_ok=True)
    torch.set_flush_denormal(True)
    opts, peaks = optimizers(model, plan)
    average = copy.deepcopy(model) if plan.ema else None
    state = _resume(work, model, average, opts)
    for step in range(state["step"], plan.steps):
        started = time.process_time()
        for opt, peak in zip(opts, peaks):
            for group in opt.param_groups:
                group["lr"] = peak * rate(step, plan)
        torch.manual_seed(plan.seed * 1_000_003 + step)                 # also what quantizers draw
        model.train()
        with torch.autocast("cpu", torch.bfloat16, enabled=plan.bf16):
            value, numbers = loss(model, step, torch.Generator().manual_seed(plan.seed * 1_000_003 + step))
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), plan.clip)
        for opt in opts:
            opt.step()
            opt.zero_grad()
        if average is not None:
            _follow(average, model, min(plan.ema, (step + 1) / (step + 10)))
        state = {"step": step + 1, "cpu_s": state["cpu_s"] + time.process_time() - started}
        if not value.isfinite():
            raise SystemExit(f"the loss is {value.item()} at step {step}; lower the rates and start again from {work}")
        if (step + 1) % plan.every == 0 or step + 1 == plan.steps:
            _report(model if average is None else average, plan, state, value, numbers, check)
            _save(work, model, average, opts, state)
    if average is not None:
        model.load_state_dict(average.state_dict())
    model.eval()
    return state


def optimizers(model: nn.Module, plan: Plan) -> tuple[list[torch.optim.Optimizer], list[float]]:
    """Muon for the matrices of transformer blocks, AdamW for all else, and their peak rates. Parameters outside `only` rest."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad and plan.only in name]
    matrices = [p for name, p in named if p.ndim == 2 and "blocks." in name and "modulate" not in name]
    known = {id(p) for p in matrices}
    rest = [p for _, p in named if id(p) not in known]
    made = []
    if matrices:
        made.append((torch.optim.Muon(matrices, lr=plan.muon, weight_decay=plan.decay, adjust_lr_fn="original"), plan.muon))
    if rest:
        made.append((torch.optim.AdamW(rest, lr=plan.adam, weight_decay=plan.decay, betas=(0.9, 0.98)), plan.adam))
    return [opt for opt, _ in made], [peak for _, peak in made]


def rate(step: int, plan: Plan) -> float:
    """Share of the peak rate: linear warm-up, then a cosine down to `low`."""
    return min(1.0, (step + 1) / max(1, plan.warmup)) * (plan.low + (1 - plan.low) * 0.5 * (1 + math.cos(math.pi * step / plan.steps)))


@torch.no_grad()
def _follow(average: nn.Module, model: nn.Module, decay: float) -> None:
    """Averages parameters; buffers (codebooks average themselves) are copied."""
    for mine, theirs in zip(average.parameters(), model.parameters()):
        mine.lerp_(theirs, 1 - decay)
    for mine, theirs in zip(average.buffers(), model.buffers()):
        mine.copy_(theirs)


def _report(model: nn.Module, plan: Plan, state: dict, value: Tensor, numbers: dict, check) -> None:
    line = {"step": state["step"], "of": plan.steps, "cpu_s": round(state["cpu_s"]), "loss": round(float(value.detach()), 4),
            **{name: round(float(number), 4) for name, number in numbers.items()}}
    if check is not None and (state["step"] % (10 * plan.every) == 0 or state["step"] == plan.steps):
        model.eval()
        line |= check(model)
    print(json.dumps(line), flush=True)


def _save(work: Path, model: nn.Module, average: nn.Module | None, opts, state: dict) -> None:
    tensors = {f"weight.{name}": t.detach().clone() for name, t in model.state_dict().items()}
    if average is not None:
        tensors |= {f"average.{name}": t.detach().clone() for name, t in average.state_dict().items()}
    for number, opt in enumerate(opts):
        for index, moments in opt.state_dict()["state"].items():
            tensors |= {f"{number}.{index}.{key}": torch.as_tensor(value).detach().clone() for key, value in moments.items()}
    save_file(tensors, work / "checkpoint.tmp", metadata={"state": json.dumps(state)})
    os.replace(work / "checkpoint.tmp", work / "checkpoint.safetensors")


def _resume(work: Path, model: nn.Module, average: nn.Module | None, opts) -> dict:
    path = work / "checkpoint.safetensors"
    if not path.exists():
        return {"step": 0, "cpu_s": 0.0}
    tensors = load_file(path)

    def part(prefix: str) -> dict[str, Tensor]:
        return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}

    model.load_state_dict(part("weight."))
    if average is not None:
        average.load_state_dict(part("average."))
    for number, opt in enumerate(opts):
        held = opt.state_dict()
        for name, tensor in part(f"{number}.").items():
            index, key = name.split(".", 1)
            held["state"].setdefault(int(index), {})[key] = tensor
        opt.load_state_dict(held)
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["state"])


def publish(name: str, model: nn.Module, card: dict, gates: dict[str, float] | None = None, force: bool = False) -> None:
    """Writes weights (fp16) and card into the package. card["metrics"] is checked against `gates` (least values); a missed
    gate stops the publishing, unless `force`: then the card says which gates were missed and by how much."""
    missed = {gate: [card["metrics"][gate], least] for gate, least in (gates or {}).items() if card["metrics"][gate] < least}
    if missed and not force:
        raise SystemExit(f"not published, gates missed (reached, wanted): {missed}; train longer (--steps), or --force")
    card = card | ({"gates": gates} if gates else {}) | ({"missed": missed} if missed else {})
    print("published", save_weights(name, model.state_dict(), card), flush=True)


def options(description: str | None, steps: int, **more) -> argparse.ArgumentParser:
    """Arguments that every recipe has: --work, --steps, --publish, --force."""
    parser = argparse.ArgumentParser(description=(description or "").split("\n")[0])
    parser.add_argument("--work", type=Path, required=True, help="folder for checkpoints, outside the repository")
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--publish", action="store_true", help="write weights and card into the package")
    parser.add_argument("--force", action="store_true", help="publish although a gate is missed; the card says so")
    return parser


def halved(model: nn.Module) -> nn.Module:
    """The model with its weights rounded to fp16 and back: what a reader will load, so what is to be measured."""
    model.load_state_dict({name: t.half().float() if t.is_floating_point() else t for name, t in model.state_dict().items()})
    return model
