"""Train the pair of R2R on arithmetic chains: a large model that is nearly always right, a small one that often is.

    python recipes/train_r2r.py --stage pair --publish
    python recipes/train_r2r_router.py --publish

One thread. The large model takes about 6 CPU minutes; the small one half a minute, since it stops as soon as it is right often enough.
Stops and resumes anywhere: the work folder (by default in the user cache) holds weights and optimizer state (safetensors) and the
step; the data of a step depends on the seed and the step alone. --publish checks the gates and writes weights and card.
"""
import argparse
import json
import os
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from frugal.core.fetch import cache_dir
from frugal.data import arithmetic_chains as chains
from frugal.models import r2r_pair, save_weights
from frugal.models.mini_tim import initial_weights, training_forward

STEPS = {"llm": 900, "slm": 1500}
CHECKS = {"llm": 150, "slm": 20}                    # steps between validations
CURRICULUM = ((80, 1), (140, 3), (220, 6), (10**9, 9))        # until which step operands have digits up to which
STEP_TOKENS = 2400                                 # a step holds problems of one length, as many as these tokens allow
RATES = {"llm": (0.006, 0.006), "slm": (0.004, 0.004)}     # peak rates of Muon (matrices of the layers) and AdamW (the rest)
VALUE_WEIGHT, STYLE_WEIGHT = 5.0, 0.2              # what is computed is hard; words in random style cannot be learnt beyond their entropy
SIGN_FROM = {"llm": 450, "slm": 0}                 # from which step the words that tell plus from minus count in full
EQUALS = torch.tensor([chains.ID[word] for word in chains.EQUALS])
STYLE = torch.cat([EQUALS, torch.tensor([chains.ID[word] for word in chains.LEADS])])
SIGNS = torch.tensor(sorted(chains.STYLE - set(STYLE.tolist())))
LLM_GATE, SLM_BAND, SLM_STOP = 0.97, (0.40, 0.65), 0.50
VALIDATION_SEED, NUM_VALIDATION = 10_001, 300


def attend(q: Tensor, k: Tensor, v: Tensor, is_causal: bool = True, enable_gqa: bool = False) -> Tensor:
    """Causal attention by two batched products: on short texts half the time of the blocked kernel, backward above all."""
    q, k = q.to(v.dtype), k.to(v.dtype)
    size = q.shape[-2]
    mask = torch.full((size, size), -1e4, dtype=q.dtype).triu(1)
    score = torch.baddbmm(mask.expand(q.shape[0] * q.shape[1], size, size), q.flatten(0, 1), k.flatten(0, 1).transpose(1, 2),
                          alpha=q.shape[-1] ** -0.5)
    return (score.softmax(-1) @ v.flatten(0, 1)).view(v.shape)


def rows_of(step: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """(tokens, learn) of a step: one to five operations, short problems in larger number; operands grow from digits 0..1 to 0..9."""
    rng = np.random.default_rng([seed, step])
    num_steps = int(rng.integers(1, chains.MAX_STEPS + 1))
    most = next(digit for until, digit in CURRICULUM if step < until)
    tokens, learn = chains.training_rows(rng, STEP_TOKENS // (12 + 18 * num_steps), (num_steps, num_steps), most)
    return torch.from_numpy(tokens), torch.from_numpy(learn)


def loss_and_errors(weights: dict, shape: dict, tokens: Tensor, learn: Tensor, sign_weight: float = 1.0) -> tuple[Tensor, float]:
    """Weighted cross entropy of the solutions, and the share of their digits that is wrong."""
    with torch.autocast("cpu", torch.bfloat16):
        logits = training_forward(weights, tokens[:, :-1], shape, attend)
    targets, wanted = tokens[:, 1:], learn[:, 1:]
    digit = (targets >= chains.FIRST_DIGIT) & (targets < chains.FIRST_DIGIT + 10) & wanted
    weight = torch.where(torch.isin(targets, STYLE), STYLE_WEIGHT, 1.0)
    weight[torch.isin(targets, SIGNS)] = sign_weight
    equals = torch.isin(tokens, EQUALS)
    for back in (1, 2, 3):                                               # the digits behind "equals" have to be computed
        weight[:, back - 1:][equals[:, :tokens.shape[1] - back]] = VALUE_WEIGHT
    loss = F.cross_entropy(logits[wanted].float(), targets[wanted], reduction="none")
    weight = weight[wanted]
    return (loss * weight).sum() / weight.sum(), float((logits.argmax(-1) != targets)[digit].float().mean())


def validate(weights: dict, shape: dict, count: int = NUM_VALIDATION) -> float:
    """Share of right final answers when the model writes them itself, on problems that training never draws."""
    lm = r2r_pair.make_lm(weights, shape)
    problems = chains.chains(VALIDATION_SEED, count)
    return r2r_pair.right_share(r2r_pair.write_answers(lm, problems), problems)


def rate(progress: float) -> float:
    """Share of the peak rate: a short warm-up, flat, then linearly to zero over the last 60 %."""
    return min(1.0, progress / 0.01, (1 - progress) / 0.6)


def optimizers(weights: dict[str, Tensor], rates: tuple[float, float]) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, AdamW for the embedding, the head and the norms."""
    inside = [w for name, w in weights.items() if w.ndim == 2 and name.startswith("layers.")]
    others = [w for name, w in weights.items() if w.ndim != 2 or not name.startswith("layers.")]
    return [torch.optim.Muon(inside, lr=rates[0], weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(others, lr=rates[1], betas=(0.9, 0.98), weight_decay=0.0, fused=True)]


def save(path: Path, weights: dict[str, Tensor], found: list[torch.optim.Optimizer], state: dict) -> None:
    """Checkpoint: weights, optimizer tensors and the state in one file, replaced in one move."""
    tensors = {f"weight.{name}": value.detach() for name, value in weights.items()}
    for optimizer in found:
        for name, value in weights.items():
            tensors |= {f"{key}.{name}": torch.as_tensor(t) for key, t in optimizer.state.get(value, {}).items()}
    save_file(tensors, path.with_suffix(".tmp"), metadata={"state": json.dumps(state)})
    os.replace(path.with_suffix(".tmp"), path)


def resume(path: Path, weights: dict[str, Tensor], found: list[torch.optim.Optimizer]) -> dict:
    """Load the checkpoint in place if there is one; the state it was saved with, or a fresh one."""
    if not path.exists():
        return {"step": 0, "cpu_s": 0.0, "tokens": 0}
    tensors = load_file(path)
    with safe_open(path, "pt") as file:
        state = json.loads(file.metadata()["state"])
    for name, value in weights.items():
        value.data.copy_(tensors[f"weight.{name}"])
    for optimizer in found:
        for value in (value for group in optimizer.param_groups for value in group["params"]):
            name = next(name for name, one in weights.items() if one is value)
            optimizer.state[value] = {key.removesuffix(f".{name}"): t for key, t in tensors.items()
                                      if key.endswith(f".{name}") and key != f"weight.{name}"}
    return state


def train(size: str, work: Path, seed: int = 0) -> tuple[dict, dict]:
    """Train one model of the pair; (weights, state). Prints a line every 25 steps, validates and saves every CHECKS.

    The small model stops at the first validation that reaches SLM_STOP.
    """
    work.mkdir(parents=True, exist_ok=True)
    shape, steps, path = r2r_pair.SHAPES[size], STEPS[size], work / f"{size}.safetensors"
    weights = {name: value.requires_grad_() for name, value in initial_weights(seed, shape).items()}
    found = optimizers(weights, RATES[size])
    peaks = [group["lr"] for optimizer in found for group in optimizer.param_groups]
    state, started, errors, losses = resume(path, weights, found), time.perf_counter(), [], []
    for step in range(state["step"], steps):
        if state.get("done"):
            break
        cpu = time.process_time()
        for group, peak in zip((g for optimizer in found for g in optimizer.param_groups), peaks):
            group["lr"] = peak * rate((step + 0.5) / steps)
        tokens, learn = rows_of(step, seed)
        loss, error = loss_and_errors(weights, shape, tokens, learn, 1.0 if step >= SIGN_FROM[size] else STYLE_WEIGHT)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights.values(), 1.0)
        for optimizer in found:
            optimizer.step()
            optimizer.zero_grad()
        errors.append(error)
        losses.append(float(loss.detach()))
        state |= {"step": step + 1, "cpu_s": state["cpu_s"] + time.process_time() - cpu, "tokens": state["tokens"] + tokens.numel()}
        check = (step + 1) % CHECKS[size] == 0 and step >= CURRICULUM[-2][0] or step + 1 == steps
        if step % 25 == 24 or check:
            line = {"model": size, "step": step + 1, "loss": round(float(np.mean(losses)), 4), "digit_error": round(float(np.mean(errors)), 4),
                    "cpu_s": round(state["cpu_s"]), "wall_s": round(time.perf_counter() - started)}
            errors, losses = [], []
            if check:
                line["right"] = state["right"] = validate({n: v.detach() for n, v in weights.items()}, shape)
                state["done"] = size == "slm" and state["right"] >= SLM_STOP
                save(path, weights, found, state)
            print(json.dumps(line), flush=True)
    return {name: value.detach() for name, value in weights.items()}, state


def publish(size: str, weights: dict, state: dict) -> None:
    """Gate and card of one model of the pair. SystemExit when it is not in its band."""
    halved = {name: value.half() for name, value in weights.items()}
    shape = r2r_pair.SHAPES[size]
    right = validate({name: value.float() for name, value in halved.items()}, shape, 1000)
    low, high = (LLM_GATE, 1.0) if size == "llm" else SLM_BAND
    if not low <= right <= high:
        raise SystemExit(f"{size}: {right:.1%} right answers; the gate asks for {low:.0%} to {high:.0%}: not published")
    save_weights(f"r2r_{size}", halved, {"recipe": "recipes/train_r2r.py", "seed": 0, "steps": state["step"], "tokens": state["tokens"],
                                         "cpu_s": round(state["cpu_s"]), "shape": shape, "data_hash": chains.data_hash(),
                                         "metrics": {"right_share": right, "problems": 1000, "problem_seed": VALIDATION_SEED}})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--stage", choices=("llm", "slm", "pair"), default="pair")
    parser.add_argument("--work", type=Path, default=None, help="folder for checkpoints; default: in the user cache")
    parser.add_argument("--publish", action="store_true", help="write the weights and the cards into the package")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    work = options.work or cache_dir() / "training" / "r2r"
    for size in (("slm", "llm") if options.stage == "pair" else (options.stage,)):
        weights, state = train(size, work)
        if options.publish:
            publish(size, weights, state)


if __name__ == "__main__":
    main()
