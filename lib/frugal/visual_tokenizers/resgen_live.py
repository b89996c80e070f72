"""A picture by ResGen, step by step: which slots are filled when, and what can be seen. Also the live run of the notebook."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch
from torch import Tensor

from frugal.core.recording import load_recorded
from frugal.data.emoji_images import load_images
from frugal.explore.pictures.boards import image_board
from frugal.explore.pictures.stored import from_text, to_text
from frugal.visual_tokenizers.resgen import ResGen, load_resgen, load_rvq, visible
from frugal.visual_tokenizers.resgen_measure import CHOSEN
from frugal.visual_tokenizers.resgen_sampling import generate

STEPS = (1, 2, 4, 8, 16, 32)
EXAMPLES = (("Smileys & Emotion", 2, 8), ("People & Body", 4, 8))  # group, seed, steps of the recorded board


@dataclass(frozen=True)
class Filling:
    """shown_at: (L, D), the step after which each slot is seen. seen, guess: a picture (32, 32, 3) uint8 for every step, of the
    slots seen so far, and of those with the guess for the hidden ones."""

    shown_at: np.ndarray
    seen: list[np.ndarray]
    guess: list[np.ndarray]


def group_number(name: str) -> int:
    """Number of an emoji group, or of "any group". ValueError lists the names."""
    names = (*load_images().group_names, "any group")
    if name not in names:
        raise ValueError(f"unknown group {name!r}; there are: {', '.join(names)}")
    return names.index(name)


@torch.no_grad()
def fill(group: str, num_steps: int = 8, seed: int = 0, on_picture: Callable[[int], None] | None = None) -> Filling:
    """One picture of the group, watched. Raises ValueError for an unknown group or steps out of range."""
    model, tokenizer = load_resgen(), load_rvq()
    shown_at, seen, guess = np.zeros((model.length, model.depth), int), [], []

    def watch(step: int, codes: Tensor, hidden: Tensor) -> None:
        shown = visible(hidden, model.depth)[0].numpy()
        shown_at[shown & (shown_at == 0)] = step + 1
        seen.append(_pixels(_partial(model, tokenizer, codes, hidden)))
        guess.append(_pixels(tokenizer.decode(codes)))
        if on_picture is not None:
            on_picture(step)

    generator = torch.Generator().manual_seed(seed)
    generate(model, torch.tensor([group_number(group)]), generator, num_steps, on_step=watch, **CHOSEN)
    return Filling(shown_at, seen, guess)


def _partial(model: ResGen, tokenizer, codes: Tensor, hidden: Tensor) -> Tensor:
    """Picture of the visible code vectors alone; an empty place is the zero vector."""
    return tokenizer.decode_latents((model.vectors(codes) * visible(hidden, model.depth)[..., None]).sum(-2)).clamp(
        0, 1
    )


def _pixels(images: Tensor) -> np.ndarray:
    return (images[0].permute(1, 2, 0) * 255).round().byte().numpy()


def to_rows(group: str, seed: int, filling: Filling) -> list[dict[str, Any]]:
    """One row a step, pictures as text; `shown_at` is repeated."""
    order = " ".join(str(n) for n in filling.shown_at.flatten())
    return [
        {
            "group": group,
            "seed": seed,
            "step": step,
            "depth": filling.shown_at.shape[1],
            "shown_at": order,
            "seen": to_text(seen),
            "guess": to_text(guess),
        }
        for step, (seen, guess) in enumerate(zip(filling.seen, filling.guess), 1)
    ]


def from_rows(rows: pd.DataFrame) -> Filling:
    """The filling of one group's rows, as `to_rows` made them."""
    rows = rows.sort_values("step")
    order = np.array(rows["shown_at"].iloc[0].split(), int).reshape(-1, int(rows["depth"].iloc[0]))
    return Filling(order, *([np.asarray(from_text(text)) for text in rows[kind]] for kind in ("seen", "guess")))


def result_of(group: str, seed: int, found: Filling) -> dict[str, Any]:
    """A filling as the live run hands it over."""
    steps = len(found.seen)
    return {
        "group": group,
        "seed": seed,
        "filled": [int((found.shown_at <= s + 1).sum()) for s in range(steps)],
        "slots": found.shown_at.size,
        "seen": [p.tolist() for p in found.seen],
        "guess": [p.tolist() for p in found.guess],
    }


def draw_picture(inputs: dict[str, Any], progress: Callable) -> dict[str, Any]:
    """The live run: a picture of inputs["group"] in inputs["steps"] forward passes, all its stages."""
    group, steps, seed = inputs["group"], int(inputs["steps"]), int(inputs["seed"])
    return result_of(group, seed, fill(group, steps, seed, lambda step: progress((step + 1) / steps)))


def stages(result: dict[str, Any], most: int = 8) -> go.Figure:
    """What is seen after each step (at most `most` of them) and, below, the whole guess of that step."""
    steps = len(result["seen"])
    shown = sorted({round(s) for s in np.linspace(0, steps - 1, min(most, steps))})
    pictures = [np.asarray(result[row][s], np.uint8) for row in ("seen", "guess") for s in shown]
    captions = [f"step {s + 1}: {result['filled'][s]} slots" for s in shown] + ["guess" for _ in shown]
    return image_board(
        pictures,
        captions,
        columns=len(shown),
        title=f"{result['group']}, seed {result['seed']}: {result['slots']} codes in {steps} forward passes",
    )


def recorded_picture() -> dict[str, Any]:
    """What the form's first inputs gave when the board was recorded."""
    rows = load_recorded("visual_tokenizers", "resgen_board")
    group, seed, _ = EXAMPLES[0]
    return result_of(group, seed, from_rows(rows[rows["group"] == group]))


def inputs() -> dict[str, Any]:
    """The form: group, steps, seed."""
    from frugal.explore import choice

    group, seed, steps = EXAMPLES[0]
    return {
        "group": choice((*load_images().group_names, "any group"), "Group", default=group),
        "steps": choice(STEPS, "Forward passes", default=steps),
        "seed": choice(range(20), "Seed", default=seed),
    }
