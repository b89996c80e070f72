"""Train mini-CLIP on the views of emoji scenes: names of a view for its CLS token, the object behind every patch.

    python recipes/train_mini_clip.py --work /tmp/mini_clip --publish

One thread, about 12 CPU minutes. Stops and resumes anywhere: the work folder holds weights and optimizer moments (safetensors) and the
step (JSON); the scenes of a step depend on the step alone. Views are the real ones, an overview and four tiles of each scene, not
clean pictures of one emoji. --publish writes the weights as fp16 with a card, unless a gate fails.
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
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from frugal.data.scenes import NAMES, images_of, make_scene, patch_labels, to_views
from frugal.models.mini_clip import SHAPE, MiniCLIP

SCENES, FIRST_SEED, HELD_OUT = 24, 1_000_000, 1_000_000_000          # a step; seed of the first one; of the first held-out one
MUON_RATE, ADAM_RATE = 0.01, 2e-3
GROUND_WEIGHT = 0.2                                                  # most patches show ground
GATES = {"tile_object_cells": 0.85, "top_k_recall": 0.90, "cls_attention_on_objects": 2.0}


def batch(first: int, count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Views (5n, 3, 64, 64), patch labels (5n, 64) and the names that fill a patch of the view (5n, names) as 0 or 1."""
    scenes = [make_scene(first + i) for i in range(count)]
    labels = torch.from_numpy(patch_labels(scenes)).flatten(0, 1).flatten(1)
    present = torch.zeros(len(labels), len(NAMES) + 1).scatter_(1, labels, 1.0)[:, 1:]
    return to_views(images_of(scenes)).flatten(0, 1), labels, present


def losses(clip: MiniCLIP, views, labels, present) -> tuple[torch.Tensor, torch.Tensor]:
    """Dense loss (cross entropy of patch labels) and contrastive loss (sigmoid, all names, a quarter of the sum a view)."""
    weight = torch.ones(len(NAMES) + 1)
    weight[0] = GROUND_WEIGHT
    with torch.autocast("cpu", torch.bfloat16):
        patches, cls = clip(views)
        patch_logits, name_logits = clip.patch_logits(patches), clip.name_logits(cls)
    dense = F.cross_entropy(patch_logits.float().flatten(0, 1), labels.flatten(), weight=weight)
    return dense, F.binary_cross_entropy_with_logits(name_logits.float(), present, reduction="sum") / len(views) / 4


@torch.no_grad()
def validate(clip: MiniCLIP, count: int = 60) -> dict[str, float]:
    """Held-out: accuracy on object patches of tiles and of overviews and on ground; recall of the k names present among the k
    likeliest; the last block's CLS attention on object patches over their share of the area."""
    views, labels, present = batch(HELD_OUT, count)
    features = clip.encode(views)
    tile, thing = torch.arange(len(views)) % 5 > 0, labels > 0
    hit = clip.patch_logits(features.patches).argmax(-1) == labels
    order, counts = clip.name_logits(features.cls).argsort(1, descending=True), present.sum(1).long()
    recall = [float(present[i, order[i, :k]].mean()) for i, k in enumerate(counts) if k]
    attention = features.cls_attn[-1].sum(1)
    attention, some = attention / attention.sum(-1, keepdim=True), thing.any(1)
    ratio = (attention * thing).sum(1)[some].mean() / thing.float().mean(1)[some].mean()
    found = {"tile_object_cells": hit[tile][thing[tile]].float().mean(), "overview_object_cells": hit[~tile][thing[~tile]].float().mean(),
             "ground_cells": hit[~thing].float().mean(), "top_k_recall": np.mean(recall), "cls_attention_on_objects": ratio}
    return {name: round(float(value), 4) for name, value in found.items()}


def optimizers(clip: MiniCLIP) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the blocks, AdamW for all else."""
    matrices = [p for p in clip.blocks.parameters() if p.ndim == 2]
    known = {id(p) for p in matrices}
    rest = [p for p in clip.parameters() if id(p) not in known]
    return [torch.optim.Muon(matrices, lr=MUON_RATE, weight_decay=0.02, adjust_lr_fn="original"),
            torch.optim.AdamW(rest, lr=ADAM_RATE, weight_decay=0.02, betas=(0.9, 0.98))]


def rate(step: int, steps: int) -> float:
    """Share of the peak rate: 50 steps of warm-up, then a cosine to 2 %."""
    return min(1.0, (step + 1) / 50) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps)))


def save(work: Path, clip: MiniCLIP, opts, state: dict) -> None:
    """Weights, moments and state in one file, replaced in one move."""
    tensors = {f"weight.{name}": p.detach().clone() for name, p in clip.state_dict().items()}
    for number, opt in enumerate(opts):
        for index, moments in opt.state_dict()["state"].items():
            tensors |= {f"{number}.{index}.{key}": torch.as_tensor(value).detach().clone() for key, value in moments.items()}
    save_file(tensors, work / "checkpoint.tmp", metadata={"state": json.dumps(state)})
    os.replace(work / "checkpoint.tmp", work / "checkpoint.safetensors")


def resume(work: Path, clip: MiniCLIP, opts) -> dict:
    """Loads the checkpoint if there is one; returns the state (step, cpu_s)."""
    path = work / "checkpoint.safetensors"
    if not path.exists():
        return {"step": 0, "cpu_s": 0.0}
    tensors = load_file(path)
    clip.load_state_dict({name[7:]: t for name, t in tensors.items() if name.startswith("weight.")})
    for number, opt in enumerate(opts):
        held = opt.state_dict()
        for name, tensor in tensors.items():
            if name.startswith(f"{number}."):
                _, index, key = name.split(".", 2)
                held["state"].setdefault(int(index), {})[key] = tensor
        opt.load_state_dict(held)
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["state"])


def train(work: Path, steps: int, seed: int = 0) -> tuple[MiniCLIP, dict]:
    """Train up to `steps`; a line of progress and a checkpoint every 50."""
    work.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    clip = MiniCLIP(**SHAPE)
    opts = optimizers(clip)
    state = resume(work, clip, opts)
    for step in range(state["step"], steps):
        started = time.process_time()
        for opt, peak in zip(opts, (MUON_RATE, ADAM_RATE)):
            for group in opt.param_groups:
                group["lr"] = peak * rate(step, steps)
        dense, contrast = losses(clip, *batch(FIRST_SEED + step * SCENES, SCENES))
        (dense + contrast).backward()
        torch.nn.utils.clip_grad_norm_(clip.parameters(), 1.0)
        for opt in opts:
            opt.step()
            opt.zero_grad()
        state["step"], state["cpu_s"] = step + 1, state["cpu_s"] + time.process_time() - started
        if step % 50 == 49 or step + 1 == steps:
            print(json.dumps({"step": step + 1, "of": steps, "dense": round(dense.item(), 4), "contrast": round(contrast.item(), 4),
                              "cpu_s": round(state["cpu_s"]), "views_per_s": round((step + 1) * SCENES * 5 / state["cpu_s"]),
                              **validate(clip)}), flush=True)
            save(work, clip, opts, state)
    return clip, state


def data_hash() -> str:
    """sha256 of the first step's images: tells whether the generator still makes the same scenes."""
    return hashlib.sha256(b"".join(make_scene(FIRST_SEED + i).image.tobytes() for i in range(SCENES))).hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--work", type=Path, required=True, help="folder for checkpoints, outside the repository")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--publish", action="store_true", help="write the weights and the card into the package")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    clip, state = train(options.work, options.steps)
    if options.publish:
        from frugal.models import save_weights
        clip.load_state_dict({name: value.half().float() for name, value in clip.state_dict().items()})
        metrics = validate(clip, 200)
        failed = {name: metrics[name] for name, least in GATES.items() if metrics[name] < least}
        if failed:
            raise SystemExit(f"not published, gates failed: {failed}, wanted at least {GATES}; train longer (--steps)")
        save_weights("mini_clip", clip.state_dict(), {
            "recipe": "recipes/train_mini_clip.py", "seed": 0, "steps": state["step"], "scenes": state["step"] * SCENES,
            "cpu_s": round(state["cpu_s"]), "data_hash": data_hash(), "shape": SHAPE, "gates": GATES, "metrics": metrics})


if __name__ == "__main__":
    main()
