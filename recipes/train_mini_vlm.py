"""Train the projector, places and decoder of mini-VLM on a frozen mini-CLIP.

    OMP_NUM_THREADS=1 python recipes/train_mini_vlm.py --steps 3000 --publish

Naive training stays blind for a long time, so the start is aligned: names get orthogonal embeddings, the linear part of the
projector is the ridge regression from patch states to the embedding of what the patch shows, places start as the thirds of the
canvas that the place words name, and in every layer two heads start by looking in the picture for the name at hand, one for the
place at hand, one at the word before. (With the names and places alone aligned, place was right after 300 steps and existence
still blind after 800.) Then three stages: the overview alone (64 tokens, large objects first), overview and tiles, and the same
with a falling rate. A scene carries about twenty questions behind one visual prefix.
One step in sixteen has no image at all, so that "blind" is a prior over answers and not noise.
Stops and resumes anywhere (work folder, by default in the user cache); the data of a step depend on seed and step alone.
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
from frugal.core.lm import LMConfig
from frugal.data.scene_questions import KINDS, REPEAT_SHARE, ask
from frugal.data.scene_text import FIRST_NAME, NAMES, PLACES, SceneVocab
from frugal.data.scenes import HELD_OUT, Scene, SceneConfig, images_of, make_scene, patch_labels, to_views
from frugal.models import load_card, packed
from frugal.models.mini_clip import MiniCLIP, load_mini_clip
from frugal.models.mini_vlm import SHAPE, Grid

VOCAB = SceneVocab()
FIRST_SEED = 100_000_000
LARGE, ORDINARY = SceneConfig(size_range=(22, 32), n_objects=(3, 6)), SceneConfig()
MIX = {"existence": 5, "place": 4, "count": 6, "caption": 4}        # questions behind one prefix
CAPTION_NOISE = 0.8
COUNT_MIX, COUNT_REPEATS = {"existence": 2, "place": 2, "count": 12, "caption": 4}, 0.2     # of the steps that end the training
BLIND_EVERY = 16
ALL, OVERVIEW = [0, 1, 2, 3, 4], [0]
MUON_RATE, ADAM_RATE = 0.01, 2e-3


def ridge(clip: MiniCLIP, names: torch.Tensor, flag: torch.Tensor, num_scenes: int = 400) -> tuple[torch.Tensor, torch.Tensor]:
    """Linear map (weight, bias) from patch states to the embedding of the patch's name plus `flag`, and zero for ground."""
    scenes = [make_scene(FIRST_SEED - 1 - i) for i in range(num_scenes)]
    labels = torch.from_numpy(patch_labels(scenes)).flatten()
    states = patches_of(clip, scenes, ALL).flatten(0, 2)
    keep = (labels > 0) | (torch.arange(len(labels)) % 8 == 0)
    states, labels = states[keep].double(), labels[keep]
    targets = torch.cat([torch.zeros(1, names.shape[1]), names + flag])[labels].double()
    mean = states.mean(0)
    inputs = states - mean
    weight = torch.linalg.solve(inputs.T @ inputs + 10 * torch.eye(inputs.shape[1]), inputs.T @ (targets - targets.mean(0))).T
    return weight.float(), (targets.mean(0) - weight @ mean).float()


def thirds(view_low: float, patch: float, num: int = 8) -> torch.Tensor:
    """Share of each patch of a view (first px, px a patch on the canvas) in the three thirds of the canvas: (num, 3)."""
    low = view_low + patch * torch.arange(num)[:, None]
    edges = torch.tensor([0.0, 128 / 3, 256 / 3, 128.0])
    overlap = torch.minimum(low + patch, edges[1:]) - torch.maximum(low, edges[:-1])
    return overlap.clamp(min=0) / patch


def initial(clip: MiniCLIP, seed: int = 0) -> dict[str, torch.Tensor]:
    """The aligned start described above, as one flat dict."""
    g, d, shape = torch.Generator().manual_seed(seed), SHAPE["hidden_size"], SHAPE
    axes = torch.linalg.qr(torch.randn(d, d, generator=g))[0]
    names, spare = 2.0 * axes[:len(NAMES)], axes[len(NAMES):]                              # 104 and 24 directions
    rows, cols, text, image, flag = spare[:3], spare[3:6], spare[6], spare[7], spare[8]
    weights = {}
    for key, size in LMConfig(**shape).weight_shapes().items():
        weights["lm." + key] = torch.ones(size) if key.endswith("norm") else torch.randn(size, generator=g) * size[-1] ** -0.5
    embed = torch.randn(len(weights["lm.embed"]), len(spare) - 9, generator=g) @ spare[9:] * 0.52  # all words of length 2
    embed[FIRST_NAME:] = names
    for index, place in enumerate(PLACES):
        embed[VOCAB.ids[place]] *= 0.7
        embed[VOCAB.ids[place]] += rows[index // 3] + cols[index % 3]
    weights["lm.embed"] = embed + text
    weights["lm.norm"] *= 0.4                                                              # modest logits at the start
    for i in range(shape["num_layers"]):
        _aligned_heads(weights, i, axes, g)
        weights[f"lm.layers.{i}.down"] *= 0.1
    weights["projector.linear.weight"], bias = ridge(clip, names, flag)
    weights["projector.linear.bias"] = bias + image
    weights["projector.up.weight"] = torch.randn(d, clip.shape["width"], generator=g) * d ** -0.5
    weights["projector.up.bias"], weights["projector.down.weight"] = torch.zeros(d), torch.randn(d, d, generator=g) * 0.002
    views = [(0, 0, 16.0), (0, 0, 8.0), (0, 64, 8.0), (64, 0, 8.0), (64, 64, 8.0)]         # top, left, px a patch
    own = 0.3 * spare[9:14, None]                                                          # a direction for every view
    fine = torch.randn(2, 8, len(spare) - 9, generator=g) @ spare[9:] * 0.05
    weights["places.rows"] = torch.stack([thirds(top, px) @ rows for top, _, px in views]) + own + fine[0]
    weights["places.cols"] = torch.stack([thirds(left, px) @ cols for _, left, px in views]) + fine[1]
    return weights


def _aligned_heads(weights: dict, i: int, axes: torch.Tensor, g: torch.Generator) -> None:
    """Queries, keys, values and outputs of one layer: two heads look for the same name in the picture, one looks at the word
    before, one for the same place in the picture. Content sits in the slow rotary pairs, the word before in the fast ones."""
    d, dim, fast = axes.shape[0], SHAPE["head_dim"], SHAPE["head_dim"] // 4
    names, spare = axes[:len(NAMES)], axes[len(NAMES):]
    text, image = spare[6], spare[7]
    slow = torch.cat([torch.arange(fast, 2 * fast - 1), torch.arange(3 * fast, 4 * fast - 1)])     # hardly turn in 400 positions

    def some(of: torch.Tensor, number: int) -> torch.Tensor:
        """Orthonormal rows inside the span of `of`."""
        return torch.linalg.qr(torch.randn(len(of), number, generator=g))[0].T @ of

    qkv = weights[f"lm.layers.{i}.qkv"].view(3, SHAPE["num_heads"], dim, d)
    qkv[:2] *= 0.2
    for head, space, gain in ((0, names, 2.5), (1, names, 2.5), (3, spare[:6], 1.0)):
        shared = gain * some(space, min(len(slow), len(space)))
        qkv[0, head, slow[:len(shared)]], qkv[1, head, slow[:len(shared)]] = shared, shared.clone()
        qkv[0, head, 2 * fast - 1], qkv[1, head, 2 * fast - 1] = 1.8 * text, 1.8 * image           # words look at the picture
    near = fast // 2                                                                                # pairs that turn fast enough
    turn = SHAPE["rope_theta"] ** (-torch.arange(near).float() / (dim // 2))                        # of one step, in radians
    qkv[0, 2, :near], qkv[0, 2, dim // 2:dim // 2 + near] = 1.5 * turn.cos()[:, None] * text, -1.5 * turn.sin()[:, None] * text
    qkv[1, 2, :near] = 1.5 * text
    qkv[2] = torch.stack([torch.cat([spare, some(names, dim - len(spare))]), some(names, dim), some(axes, dim), some(names, dim)])
    weights[f"lm.layers.{i}.o"] = 0.1 * qkv[2].reshape(-1, d).T.contiguous()


@torch.no_grad()
def patches_of(clip: MiniCLIP, scenes: list[Scene], views: list[int]) -> torch.Tensor:
    """Patch states (B, P, N_v, d) of the frozen encoder."""
    with torch.autocast("cpu", torch.bfloat16):
        states = clip(to_views(images_of(scenes))[:, views].flatten(0, 1))[0]
    return states.float().unflatten(0, (len(scenes), len(views)))


def texts_of(scenes: list[Scene], seed: int, noise: float, mix: dict[str, int] = MIX, repeats: float = REPEAT_SHARE) -> packed.Packed:
    """The questions of a batch, drawn with `seed`."""
    rng = np.random.Generator(np.random.PCG64([seed, 2]))
    rows = []
    for scene in scenes:
        asked = [ask(scene, kind, rng, noise, repeats) for kind, count in mix.items() for _ in range(count)]
        rows.append([(KINDS.index(q.kind), VOCAB.encode(q.prompt), VOCAB.encode(q.answer) + [VOCAB.eos_id]) for q in asked])
    return packed.pack(rows)


def step_loss(weights: dict, clip: MiniCLIP, scenes: list[Scene], views: list[int], text: packed.Packed) -> torch.Tensor:
    """Mean cross entropy of the answer tokens; views [] means no image."""
    patches = patches_of(clip, scenes, views) if views else None
    with torch.autocast("cpu", torch.bfloat16):
        visual = packed.visual_embeds(weights, patches, views) if views else torch.zeros(len(scenes), 0, SHAPE["hidden_size"])
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
        counted = (text.kind == index) & (text.targets != packed.IGNORED) & ((text.targets != VOCAB.eos_id) | (kind == "caption"))
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
            tensors |= {f"{moment}/{key}": tensor for moment, tensor in opt.state.get(value, {}).items() if torch.is_tensor(tensor)}
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
        opt.state[value] = {name.split("/")[0]: t for name, t in tensors.items() if name.split("/", 1)[1] == key and name[:6] != "weight"}
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["state"])


def train(work: Path, steps: int, count_steps: int, clip: MiniCLIP, seed: int = 0) -> tuple[dict, dict]:
    """Train for `steps`, then `count_steps` more that are mostly about counting; prints a line and saves about every minute."""
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
        state = {"step": step + 1, "scenes": state["scenes"] + batch, "answers": state["answers"] + batch * sum(MIX.values()),
                 "cpu_s": state["cpu_s"] + time.process_time() - started}
        if time.time() - said > 45 or step + 1 == steps + count_steps or step == 5:
            print(json.dumps({"step": step + 1, "of": steps, "views": len(views), "loss": round(float(np.mean(losses)), 3),
                              **check(weights, clip, views), "cpu_s": round(state["cpu_s"]), "scenes": state["scenes"]}), flush=True)
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
    parser.add_argument("--steps", type=int, default=3000)
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
        card = {"recipe": "recipes/train_mini_vlm.py", "seed": 0, "history": options.history, "steps": state["step"], "scenes": state["scenes"],
                "answers": state["answers"], "cpu_s": round(state["cpu_s"]), "data_hash": data_hash(), "shape": SHAPE,
                "grid": vars(Grid()), "caption_noise": CAPTION_NOISE, "mini_clip_sha256": load_card("mini_clip")["sha256"]}
        halved = {key: value.half().float() for key, value in weights.items()}
        save_weights("mini_vlm", weights, card | measure(clip, halved))


if __name__ == "__main__":
    main()
