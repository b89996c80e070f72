"""The live run on wrong codes: any emoji, any alpha and delta, decoded by the plain grid and by RobusTok."""
from collections.abc import Callable
from typing import Any

import plotly.graph_objects as go
import torch

from frugal.core.image_metrics import psnr
from frugal.data.emoji_images import load_images
from frugal.explore import choice, text
from frugal.explore.pictures import image_board
from frugal.explore.pictures.stored import from_text, to_text
from frugal.models.vq_grid import load_vq_grid
from frugal.visual_tokenizers.figures_robustok import NAMES, recorded
from frugal.visual_tokenizers.live_picture import place_of
from frugal.visual_tokenizers.robustok_measure import STRIP_DELTA
from frugal.visual_tokenizers.robustok_pfid import perturbed_decoded, prepared_latents

ALPHAS, DELTAS = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0), (1, 2, 6, 17, 64, 256)
NAME, ALPHA = "partying face", 0.5


def wrong_codes(inputs: dict[str, Any], progress: Callable) -> list[dict[str, Any]]:
    """Rows label, psnr, picture (text): the original, then both decoders on codes wrong at the same tokens.

    inputs: name (an emoji's), alpha, delta, seed. Raises ValueError for an unknown name.
    """
    place = place_of(inputs["name"])
    image, rows = load_images().pixels[place][None], [_original(place)]
    for done, (weights, label) in enumerate(NAMES.items()):
        tokenizer = load_vq_grid(weights)
        made = perturbed_decoded(tokenizer, prepared_latents(tokenizer, image), float(inputs["alpha"]), int(inputs["delta"]), int(inputs["seed"]))
        rows.append({"label": label, "psnr": float(psnr(made, image)[0]), "picture": _text(made[0])})
        progress((done + 1) / len(NAMES), list(rows))
    return rows


def both_decoders(result: list[dict[str, Any]], name: str = NAME, alpha: float = ALPHA, delta: int = STRIP_DELTA) -> go.Figure:
    """The original and what both decoders make of the wrong codes."""
    captions = [row["label"] if row["psnr"] is None else f"{row['label']}: {row['psnr']:.1f} dB" for row in result]
    return image_board([from_text(row["picture"]) for row in result], captions, columns=3,
                       title=f"{name}: {alpha:.0%} of the tokens drawn from the {delta} nearest codes")


def recorded_run() -> list[dict[str, Any]]:
    """The run for the form's first inputs, from the recorded strip."""
    rows = recorded("strip")
    own = rows[(rows.emoji == NAME) & (rows.alpha == ALPHA)]
    return [_original(place_of(NAME))] + [{"label": NAMES[r.tokenizer], "psnr": float(r.psnr), "picture": r.picture} for r in own.itertuples()]


def inputs() -> dict[str, Any]:
    """The form: an emoji by name, how many tokens are hit, how far the draw reaches, and its seed."""
    return {"name": text("Emoji", NAME, rows=1, max_chars=80, check=place_of), "alpha": choice(ALPHAS, "alpha (tokens up for a draw)", default=ALPHA),
            "delta": choice(DELTAS, "delta (nearest codes)", default=STRIP_DELTA), "seed": choice(range(8), "Seed")}


def _original(place: int) -> dict[str, Any]:
    return {"label": "Original", "psnr": None, "picture": _text(load_images().pixels[place])}


def _text(image: torch.Tensor) -> str:
    return to_text(image.permute(1, 2, 0).numpy())
