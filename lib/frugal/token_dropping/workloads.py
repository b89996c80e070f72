"""What the methods of this family are run on: questions about held-out emoji scenes, the same for every method.

A seed is a block of scenes. A row holds the block's accuracies and, as one digit a scene, how many questions were
asked and answered right, so that any two rows of a seed can be compared scene by scene.
"""
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from frugal.core.budgets import resolve
from frugal.core.measure import counted_flops
from frugal.data.scenes import HELD_OUT, KINDS, Scene, SceneConfig, covered, images_of, make_scene, questions
from frugal.models import load_card
from frugal.models.mini_vlm import VisualTokens, load_mini_vlm
from frugal.token_dropping.answering import captions, one_words, some
from frugal.token_dropping.keeping import keep, prefill

BUDGETS = (0.6, 0.4, 0.2, 0.1, 0.05)
ASKED = {"existence": 4, "place": 3, "count": 2}       # questions of one word about each scene
SMALL = 18                                             # px: objects up to this side are "small"
SCORES = (*KINDS, "small")


@lru_cache(maxsize=1)
def model():
    """The trained mini-VLM, loaded once a process."""
    return load_mini_vlm()


@lru_cache(maxsize=4)
def block(first: int, count: int, size_range: tuple[int, int]) -> tuple[list[Scene], VisualTokens]:
    """`count` held-out scenes from number `first` on, and their visual tokens: all methods start from these."""
    scenes = [make_scene(HELD_OUT + first + i, SceneConfig(size_range=size_range)) for i in range(count)]
    return scenes, model().see(images_of(scenes))


@dataclass(frozen=True)
class Scenes:
    """Existence, place, count and caption questions about a block of held-out scenes.

    num_scenes: scenes of one seed. size_range: sides of the objects in px. positions: see `keeping.read`. Budgets are shares of the visual tokens (of
    their FLOPs for a method whose `equal` says so).
    """
    name: str = "scenes"
    axis: str = "tokens"
    version: str = "1"
    default_budgets: tuple[float, ...] = BUDGETS
    num_scenes: int = 50
    size_range: tuple[int, int] = (16, 28)
    positions: str = "original"

    def model_hash(self) -> str:
        return load_card("mini_vlm")["sha256"][:12]

    def run(self, method: type, budget: float | int, seed: int) -> Mapping[str, Any]:
        made = method(seed=seed) if "seed" in getattr(method, "__dataclass_fields__", {}) else method()
        return self.measure(made, budget, seed)

    def measure(self, method, budget: float | int, seed: int) -> dict[str, Any]:
        """The row of a method object, which may have settings of its own. Raises ValueError for a bad budget."""
        if method.kind == "steering":
            raise ValueError(
                f"{method.name} saves no tokens, so a budget says nothing about it; see its module's workload")
        scenes, tokens = block(seed * self.num_scenes, self.num_scenes, self.size_range)
        resolve(budget, tokens.grid.num_tokens)
        size = 1 if getattr(method, "as_released", False) else 25          # the release keeps different totals
        parts = [
            score(scenes[at:at + size], some(tokens, range(at, min(at + size, len(scenes)))), method, budget,
                  self.positions, seed * self.num_scenes + at) for at in range(0, len(scenes), size)
        ]
        return {**tally(parts), **costs(tokens, method, budget)}


def score(scenes: list[Scene], tokens: VisualTokens, method, budget, positions: str, first: int) -> dict[str, list[tuple[int, int]]]:
    """(right, asked) of each scene for every score; captions also have (false, said) names."""
    asked = {
        kind: [questions(scene, first + b, count, (kind, )) for b, scene in enumerate(scenes)]
        for kind, count in ASKED.items()
    }
    flat = [(kind, j) for kind, count in ASKED.items() for j in range(count)]
    words = one_words(model(), tokens, [[own[j].prompt for own in asked[kind]] for kind, j in flat], method, budget,
                      positions)
    found = {name: [[0, 0] for _ in scenes] for name in (*ASKED, "small")}
    for (kind, j), said in zip(flat, words):
        for b, word in enumerate(said):
            question = asked[kind][b][j]
            small = 0 < question.side <= SMALL and kind in ("existence", "place")
            for name in (kind, *(["small"] if small else [])):
                found[name][b][0] += word == question.answer
                found[name][b][1] += 1
    written = captions(model(), tokens, method, budget, positions)
    found["caption"] = [[len(set(names) & set(scene.names)), len(set(scene.names))]
                        for names, scene in zip(written, scenes)]
    found["false"] = [[sum(name not in scene.names for name in names),
                       len(names)] for names, scene in zip(written, scenes)]
    found["found"] = objects_found(scenes, tokens, method, budget)
    return {name: [tuple(pair) for pair in pairs] for name, pairs in found.items()}


def objects_found(scenes: list[Scene], tokens: VisualTokens, method, budget) -> list[tuple[int, int]]:
    """(objects with at least one kept tile token that shows them, objects) of each scene; (0, 0) where nothing is dropped
    whole. A token shows an object that covers more than 30 % of its patch."""
    if method.kind != "dropper":
        return [(0, 0)] * len(scenes)
    index, share = covered(scenes, tokens.grid.patch_rows)
    shown = np.where(share > 0.3, index, -1).reshape(len(scenes), -1)
    shown[:, :tokens.grid.tokens_per_view] = -1 # tiles only: in the overview a patch shows too much
    kept = keep(tokens, method, budget).index.numpy()
    return [(len(set(shown[b, kept[b]].tolist()) - {-1}), len(scene.objects)) for b, scene in enumerate(scenes)]


def tally(parts: list[dict[str, list[tuple[int, int]]]]) -> dict[str, Any]:
    """Shares over all scenes, and one digit a scene for what was right and what was asked."""
    row: dict[str, Any] = {}
    for name in (*SCORES, "false", "found"):
        pairs = [pair for part in parts for pair in part[name]]
        right, asked = (sum(pair[i] for pair in pairs) for i in (0, 1))
        row[name] = right / asked if asked else float("nan")
        row |= {f"{name}_{what}": "".join(str(pair[i]) for pair in pairs) for i, what in enumerate(("right", "asked"))}
    return row


def costs(tokens: VisualTokens, method, budget: float | int) -> dict[str, Any]:
    """What one scene costs: visual tokens held (mean over layers), bytes of their cache, FLOPs of prefill, counted.

    The FLOPs include a question of five words; the encoder, which sees all views whatever is kept, is not in them.
    """
    vlm, one, cache = model(), some(tokens, [0]), None
    prompt = torch.tensor([vlm.vocab.encode("is there a fox ?")])

    def work():
        nonlocal cache
        if method.kind == "inside":
            cache, _ = method.prefill(vlm, one, prompt, budget)
        else:
            cache = prefill(vlm, one, method, budget)
            vlm.lm(prompt, cache, last_only=True)

    flops = counted_flops(work)
    layers, size = vlm.lm.config.num_layers, prompt.shape[1]
    held = [int(cache.num_held(layer)[0]) - size for layer in range(layers)]
    slot = cache.num_bytes / sum(cache.keys[layer].shape[2] for layer in range(layers))       # bytes of a reserved slot
    return {"held_tok": sum(held) / layers, "cache_bytes": int(slot * sum(held)), "spent_flops": flops}


def encoder_flops() -> int:
    """FLOPs of encoding one scene's views, which every method pays in full."""
    images = images_of([make_scene(HELD_OUT)])
    return counted_flops(lambda: model().see(images))


WORKLOADS = {work.name: work for work in (Scenes(), Scenes("small_objects", size_range=(16, 18)),
                                           Scenes("contiguous", positions="contiguous"))}
