"""Train the projector, places and decoder of mini-VLM on a frozen mini-CLIP.

    OMP_NUM_THREADS=1 python recipes/train_mini_vlm.py --publish

Naive training stays blind for a long time, so the start is aligned: names get orthogonal embeddings, the linear part of
the projector is the ridge regression from patch states to the embedding of what the patch shows, places start as the
thirds of the canvas that the place words name, and in every layer two heads start by looking in the picture for the
name at hand, one for the place at hand, one at the word before. (With the names and places alone aligned, place was
right after 300 steps and existence still blind after 800.) Then three stages: the overview alone (64 tokens, large
objects first), overview and tiles at a falling rate, and a last one that is mostly about counting. A scene carries
about twenty questions behind one visual prefix. One step in sixteen has no image at all, so that "blind" is a prior
over answers and not noise. Stops and resumes anywhere (work folder, by default in the user cache); the data of a step
depend on seed and step alone.
"""
import argparse
import hashlib
import json
import math
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from frugal.core.fetch import cache_dir
from frugal.data.scene_questions import KINDS, REPEAT_SHARE, ask
from frugal.data.scenes import HELD_OUT, Scene, SceneConfig, make_scene
from frugal.models import load_card, packed
from frugal.models.mini_clip import MiniCLIP, load_mini_clip
from frugal.models.mini_vlm import SHAPE, Grid
from mini_vlm_start import FIRST_SEED, VOCAB, initial, patches_of

LARGE, ORDINARY = SceneConfig(size_range=(22, 32), n_objects=(3, 6)), SceneConfig()
MIX = {"existence": 5, "place": 4, "count": 6, "caption": 4}        # questions behind one prefix
CAPTION_NOISE = 0.8
COUNT_MIX = {"existence": 2, "place": 2, "count": 12, "caption": 4}  # in the steps that end the training
COUNT_REPEATS = 0.2  # of their count questions are about repeated objects
BLIND_EVERY = 16
ALL, OVERVIEW = [0, 1, 2, 3, 4], [0]
MUON_RATE, ADAM_RATE = 0.01, 2e-3


def texts_of(
    scenes: list[Scene], seed: int, noise: float, mix: dict[str, int] = MIX, repeats: float = REPEAT_SHARE
) -> packed.Packed:
    """The questions of a batch, drawn with `seed`."""
    rng = np.random.Generator(np.random.PCG64([seed, 2]))
    rows = []
    for scene in scenes:
        asked = [ask(scene, kind, rng, noise, repeats) for kind, count in mix.items() for _ in range(count)]
        rows.append(
            [(KINDS.index(q.kind), VOCAB.encode(q.prompt), VOCAB.encode(q.answer) + [VOCAB.eos_id]) for q in asked]
        )
    return packed.pack(rows)


def step_loss(
    weights: dict, clip: MiniCLIP, scenes: list[Scene], views: list[int], text: packed.Packed
) -> torch.Tensor:
    """Mean cross entropy of the answer tokens; views [] means no image."""
    patches = patches_of(clip, scenes, views) if views else None
    with torch.autocast("cpu", torch.bfloat16):
        visual = (
            packed.visual_embeds(weights, patches, views)
            if views
            else torch.zeros(len(scenes), 0, SHAPE["hidden_size"])
        )
        logits = packed.forward(weights, SHAPE, visual, text)
    wanted = text.targets != packed.IGNORED
    return F.cross_entropy(logits[wanted].float(), text.targets[wanted])


@torch.no_grad()
def check(weights: dict, clip: MiniCLIP, views: list[int], num_scenes: int = 48) -> dict[str, float]:
    """Teacher-forced accuracy of the first answer word by kind (captions: of every word), on held-out scenes."""
    scenes = [make_scene(HELD_OUT + i) for i in range(num_scenes)]
    text = texts_of(scenes, 1, 0.0)
    with torch.autocast("cpu", torch.bfloat16):
        visual = (packed.visual_embeds(weights, patches_of(clip, scenes, views), views) if views
                  else torch.zeros(num_scenes, 0, SHAPE["hidden_size"]))
        right = packed.forward(weights, SHAPE, visual, text).argmax(-1) == text.targets
    found = {}
    for index, kind in enumerate(KINDS):
        counted = (
            (text.kind == index)
            & (text.targets != packed.IGNORED)
            & ((text.targets != VOCAB.eos_id) | (kind == "caption"))
        )
        found[kind] = round(float(right[counted].float().mean()), 3)
    return found


def stage(progress: float) -> tuple[list[int], SceneConfig, int]:
    """(views, scenes, batch) at this share of the steps."""
    if progress < 0.08:
        return OVERVIEW, LARGE if progress < 0.05 else ORDINARY, 16
    return ALL, ORDINARY, 12


def rate(progress: float) -> float:
    """Share of the peak learning rate: warm-up over 2 %, flat to 45 %, then a cosine to 2 %."""
    tail = max(0.0, (progress - 0.45) / 0.55)
    return min(1.0, progress / 0.02) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * tail)))


def optimizers(weights: dict) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the decoder's layers and the projector, AdamW for the rest."""
    hidden = [value for key, value in weights.items() if value.ndim == 2 and key != "lm.embed"]
    rest = [value for key, value in weights.items() if value.ndim != 2 or key == "lm.embed"]
    return [torch.optim.Muon(hidden, lr=MUON_RATE, weight_decay=0.01, adjust_lr_fn="original"),
            torch.optim.AdamW(rest, lr=ADAM_RATE, weight_decay=0.0, betas=(0.9, 0.98))]


def save(path: Path, weights: dict, opts, state: dict) -> None:
    """Weights and moments in one file, replaced in one move."""
    tensors = {f"weight/{key}": value.detach() for key, value in weights.items()}
    for key, value in weights.items():
        for opt in opts:
            tensors |= {
                f"{moment}/{key}": tensor
                for moment, tensor in opt.state.get(value, {}).items()
                if torch.is_tensor(tensor)
            }
    save_file({key: value.contiguous().clone() for key, value in tensors.items()}, path.with_suffix(".tmp"),
              metadata={"state": json.dumps(state)})
    path.with_suffix(".tmp").replace(path)


def resume(path: Path, weights: dict, opts) -> dict:
    """Load a checkpoint in place, if there is one; returns the state (step, scenes, answers, cpu_s)."""
    if not path.exists():
        return {"step": 0, "scenes": 0, "answers": 0, "cpu_s": 0.0}
    tensors = load_file(path)
    for key, value in weights.items():
        value.data.copy_(tensors[f"weight/{key}"])
        opt = next(opt for opt in opts if any(value is p for group in opt.param_groups for p in group["params"]))
        opt.state[value] = {
            name.split("/")[0]: t
            for name, t in tensors.items()
            if name.split("/", 1)[1] == key and name[:6] != "weight"
        }
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["state"])


def train(work: Path, steps: int, count_steps: int, clip: MiniCLIP, seed: int = 0) -> tuple[dict, dict]:
    """Train for `steps`, then `count_steps` more that are mostly about counting; prints a line and saves about every
    minute."""
    work.mkdir(parents=True, exist_ok=True)
    path = work / "mini_vlm.safetensors"
    weights = {key: value.requires_grad_() for key, value in initial(clip, seed).items()}
    opts, losses, said = optimizers(weights), [], time.time()
    state = resume(path, weights, opts)
    for step in range(state["step"], steps + count_steps):
        started, progress = time.process_time(), (step + 0.5) / steps
        counting = step >= steps
        share = 0.5 * (1 - (step - steps) / count_steps) if counting else rate(progress)
        for opt, peak in zip(opts, (MUON_RATE, ADAM_RATE)):
            for group in opt.param_groups:
                group["lr"] = peak * share
        views, config, batch = stage(progress)
        first = FIRST_SEED * (1 + seed) + step * 16
        scenes = [make_scene(first + i, config) for i in range(batch)]
        text = texts_of(scenes, first, CAPTION_NOISE, *((COUNT_MIX, COUNT_REPEATS) if counting else ()))
        loss = step_loss(weights, clip, scenes, [] if step % BLIND_EVERY == BLIND_EVERY - 1 else views, text)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights.values(), 1.0)
        for opt in opts:
            opt.step()
            opt.zero_grad()
        losses.append(float(loss.detach()))
        state = {
            "step": step + 1,
            "scenes": state["scenes"] + batch,
            "answers": state["answers"] + batch * sum((COUNT_MIX if counting else MIX).values()),
            "cpu_s": state["cpu_s"] + time.process_time() - started,
        }
        if time.time() - said > 45 or step + 1 == steps + count_steps or step == 5:
            print(
                json.dumps(
                    {
                        "step": step + 1,
                        "of": steps,
                        "views": len(views),
                        "loss": round(float(np.mean(losses)), 3),
                        **check(weights, clip, views),
                        "cpu_s": round(state["cpu_s"]),
                        "scenes": state["scenes"],
                    }
                ),
                flush=True,
            )
            save(path, weights, opts, state)
            losses, said = [], time.time()
    return {key: value.detach() for key, value in weights.items()}, state


def data_hash() -> str:
    """sha256 over the first training scenes and their questions: tells whether the generator still makes the same."""
    digest = hashlib.sha256()
    scenes = [make_scene(FIRST_SEED + i, LARGE) for i in range(4)]
    for scene in scenes:
        digest.update(scene.image.tobytes())
    digest.update(texts_of(scenes, FIRST_SEED, CAPTION_NOISE).tokens.numpy().tobytes())
    return digest.hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--work", type=Path, default=cache_dir() / "training", help="folder for checkpoints")
    parser.add_argument("--steps", type=int, default=2600)
    parser.add_argument("--count-steps", type=int, default=450)
    parser.add_argument("--history", default="from random weights", help="for the card: what differed in earlier steps")
    parser.add_argument("--publish", action="store_true", help="write weights and card into the package")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    clip = load_mini_clip()
    weights, state = train(options.work, options.steps, options.count_steps, clip)
    if options.publish:
        from vlm_gates import measure

        from frugal.models import save_weights

        card = {
            "recipe": "recipes/train_mini_vlm.py",
            "seed": 0,
            "history": options.history,
            "steps": state["step"],
            "scenes": state["scenes"],
            "answers": state["answers"],
            "cpu_s": round(state["cpu_s"]),
            "data_hash": data_hash(),
            "shape": SHAPE,
            "grid": vars(Grid()),
            "caption_noise": CAPTION_NOISE,
            "mini_clip_sha256": load_card("mini_clip")["sha256"],
        }
        halved = {key: value.half().float() for key, value in weights.items()}
        save_weights("mini_vlm", weights, card | measure(clip, halved))


if __name__ == "__main__":
    main()
