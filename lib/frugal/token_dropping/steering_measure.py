"""Runs of steering methods over scenes: captions and yes/no answers of many methods on the same scenes, and their price.

Scenes go in batches; a batch is encoded and prefilled once, and every method starts from a copy of that cache where it
may. So methods are compared on the same scenes, token for token, and a paired bootstrap applies.
"""
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache

import numpy as np
import pandas as pd
import torch
from jaxtyping import Int
from torch import Tensor

from frugal.core.measure import compare, counted_flops
from frugal.data.scene_questions import CAPTION_PROMPT
from frugal.data.scene_text import NAME_INDEX, THEMES, SceneVocab
from frugal.data.scenes import HELD_OUT, Scene, images_of, make_scene
from frugal.token_dropping.hallucination import ABSENT, absent_names, chair, change
from frugal.token_dropping.steering import Steering, decode

MAX_NAMES = 12                                    # tokens of a caption at most
WORDS = SceneVocab()


def held_out(count: int, first: int = 0) -> list[Scene]:
    """Scenes that no training has seen, the same ones always."""
    return [make_scene(HELD_OUT + first + i) for i in range(count)]


def prompt_ids(prompts: Sequence[str]) -> Int[Tensor, "b t"]:
    """Prompts of equal length as ids."""
    return torch.tensor([WORDS.encode(prompt) for prompt in prompts])


def batches(vlm, scenes: Sequence[Scene], size: int = 48) -> Iterator[tuple]:
    """(scenes, visual tokens, cache of their prefill), batch by batch."""
    for start in range(0, len(scenes), size):
        part = list(scenes[start:start + size])
        with torch.no_grad():
            seen = vlm.see(images_of(part))
            yield part, seen, vlm.prefill(seen.embeds)


def names_of(tokens: Sequence[int]) -> list[str]:
    """The object names among a caption's tokens, in order."""
    return [word for word in WORDS.decode(tokens).split() if word in NAME_INDEX]


def captions(vlm, scenes: Sequence[Scene], methods: Mapping[str, Steering], *, forced: int | None = None, batch: int = 48,
             max_new_tokens: int = MAX_NAMES) -> dict[str, list[list[str]]]:
    """Names said by each method about each scene. forced: may not end before that many names beyond the true number."""
    said: dict[str, list[list[str]]] = {name: [] for name in methods}
    for part, seen, prefix in batches(vlm, scenes, batch):
        prompt = prompt_ids([CAPTION_PROMPT] * len(part))
        hold = None if forced is None else [len(scene.objects) + forced for scene in part]
        base, begun = None, None                          # settings that follow each other share their preparation
        for name, method in methods.items():
            if method.base() is None:
                decoding = method.begin(vlm, seen, prompt, prefix)
            else:
                if method.base() != base:
                    base, begun = method.base(), method.base().begin(vlm, seen, prompt, prefix)
                decoding = method.on(begun, vlm.lm)
            tokens = decode(decoding, prompt, max_new_tokens, WORDS.eos_id, hold_end=hold)
            said[name] += [names_of(row) for row in tokens]
    return said


@lru_cache
def popularity(count: int = 2000) -> dict[str, int]:
    """How often each name occurs in `count` training scenes."""
    return Counter(name for seed in range(count) for name in make_scene(seed).names)


def yes_no_questions(scenes: Sequence[Scene], each: int = 3, seed: int = 0) -> dict[str, list[list[str]]]:
    """Names to ask for: "present" and one list for each kind of absence, `each` a scene.

    Raises ValueError for a scene with fewer than `each` different names: leave it out.
    """
    asked: dict[str, list[list[str]]] = {kind: [] for kind in ("present", *ABSENT)}
    for number, scene in enumerate(scenes):
        generator, present = np.random.default_rng([seed, number]), sorted(set(scene.names))
        if len(present) < each:
            raise ValueError(f"scene {number} has {len(present)} different names, {each} are to be asked for: leave it out")
        asked["present"].append([present[i] for i in generator.permutation(len(present))[:each]])
        for kind in ABSENT:
            asked[kind].append(absent_names(scene.names, kind, each, generator, themes=THEMES, popularity=popularity()))
    return asked


def answers(vlm, scenes: Sequence[Scene], methods: Mapping[str, Steering], asked: Mapping[str, Sequence[Sequence[str]]], *,
            batch: int = 48) -> dict[str, dict[str, list[list[bool]]]]:
    """method -> kind of question -> for each scene, whether each answer was "yes"."""
    yes, done = WORDS.ids["yes"], 0
    found = {name: {kind: [[] for _ in scenes] for kind in asked} for name in methods}
    for part, seen, prefix in batches(vlm, scenes, batch):
        for kind, names in asked.items():
            own = names[done:done + len(part)]
            for number in range(len(own[0])):
                prompt = prompt_ids([f"is there a {row[number]} ?" for row in own])
                for name, method in methods.items():
                    logits, _ = method.begin(vlm, seen, prompt, prefix).step(prompt)
                    for i, said in enumerate((logits.argmax(-1) == yes).tolist()):
                        found[name][kind][done + i].append(said)
        done += len(part)
    return found


def figure_columns(counts: pd.DataFrame, plain: pd.DataFrame) -> dict[str, float]:
    """CHAIR figures of one method with intervals, as columns, and its paired change against `plain` on the same scenes.

    cut: by how much CHAIR_I fell, in % of plain's; recall_change, fullness_change: differences.
    """
    found, columns = chair(counts), {}
    for name in ("chair_i", "chair_s", "recall", "length", "fullness", "repeats"):
        value = getattr(found, name)
        columns |= {name: value.value, f"{name}_low": value.low, f"{name}_high": value.high}
    cut = change(plain, counts, "chair_i", relative=True)
    columns |= {"cut": -100 * cut.value, "cut_low": -100 * cut.high, "cut_high": -100 * cut.low}
    for name in ("recall", "fullness"):
        moved = change(plain, counts, name)
        columns |= {f"{name}_change": moved.value, f"{name}_change_low": moved.low, f"{name}_change_high": moved.high}
    return columns


def price(vlm, scenes: Sequence[Scene], methods: Mapping[str, Steering], new_tokens: int = 6, repeats: int = 7) -> pd.DataFrame:
    """What each method costs beside the first one: extra passes, counted FLOPs a scene, and CPU time as a ratio.

    token: one decoded token. answer: everything from the visual tokens to a caption of `new_tokens` tokens, all prefills
    included. The picture's encoder runs once for every method and is left out.
    """
    _, seen, _ = next(batches(vlm, scenes, len(scenes)))
    prompt, token = prompt_ids([CAPTION_PROMPT] * len(scenes)), torch.full((len(scenes), 1), WORDS.ids["fox"])

    def answer(method: Steering) -> None:
        decode(method.begin(vlm, seen, prompt), prompt, new_tokens, WORDS.eos_id, hold_end=[new_tokens] * len(scenes))

    ready = {name: method.begin(vlm, seen, prompt) for name, method in methods.items()}
    for decoding in ready.values():
        decoding.step(prompt)
    table = pd.DataFrame([{"method": name, **method.passes(vlm.lm.config.num_layers),
                           "token_flops": counted_flops(lambda: ready[name].step(token)) / len(scenes),
                           "answer_flops": counted_flops(lambda: answer(method)) / len(scenes)} for name, method in methods.items()])
    work = {"token": {name: (lambda own=own: own.step(token)) for name, own in ready.items()},
            "answer": {name: (lambda own=own: answer(own)) for name, own in methods.items()}}
    for what, calls in work.items():
        table[f"{what}_flops_ratio"] = table[f"{what}_flops"] / table[f"{what}_flops"].iloc[0]
        table[f"{what}_time_ratio"] = (1 / compare(calls, repeats=repeats)["cpu_ratio"]).to_numpy()
    return table
