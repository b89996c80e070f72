"""The live run of notebook 04: one emoji, or the reader's own picture, through every tokenizer within a token budget."""
from collections.abc import Callable
from difflib import get_close_matches
from functools import lru_cache
from typing import Any

import plotly.graph_objects as go
from jaxtyping import Float
from torch import Tensor

from frugal.core.image_metrics import psnr
from frugal.core.recording import load_recorded
from frugal.data.emoji_images import load_images, read_image
from frugal.explore.pictures.stored import to_text
from frugal.visual_tokenizers.baselines import BASELINES
from frugal.visual_tokenizers.figures_shared import picture_board
from frugal.visual_tokenizers.methods import TOKENIZERS

BUDGETS = (1, 2, 4, 8, 16, 32, 64)
NAME = "pizza"                                      # held out
MAX_PSNR = 99.0                                     # shown for equal pictures


def place_of(name: str) -> int:
    """Place of the emoji with this name. Raises ValueError with the nearest names for an unknown one."""
    names = load_images().names
    wanted = name.strip().lower()
    lowered = _lowered()
    if wanted in lowered:
        return lowered[wanted]
    near = [known for known in names if wanted and wanted in known.lower()][:5] or get_close_matches(wanted, list(lowered), 5)
    raise ValueError(f"no emoji is called {name.strip()!r}; " + (f"did you mean {', '.join(near)}?" if near else
                     "names are Unicode's English ones, e.g. 'fox' or 'red apple'"))


@lru_cache(maxsize=1)
def _lowered() -> dict[str, int]:
    return {name.lower(): place for place, name in enumerate(load_images().names)}


def reconstruct(inputs: dict[str, Any], progress: Callable) -> list[dict[str, Any]]:
    """Rows of the board: label, tokens, bits, psnr, image; the original first, with 0 tokens.

    inputs: name (an emoji's), budget (tokens), picture: (3, 32, 32) in [0, 1], which wins over the name, or anything else
    for none.
    Raises ValueError for an unknown name.
    """
    own = inputs.get("picture")
    original = own if isinstance(own, Tensor) else load_images().pixels[place_of(inputs["name"])]
    return rows_of(original, int(inputs["budget"]), progress)


def rows_of(original: Float[Tensor, "3 px px"], budget: int, progress: Callable = lambda share: None) -> list[dict[str, Any]]:
    """The original and what every tokenizer makes of it within the budget; those whose weights are not stored are left out."""
    rows = [_row("Original", 0, 24.0 * original.numel() / 3, original, original)]
    makers = [method for method in (*TOKENIZERS, *BASELINES) if method.ready() and method.name != "truncated_grid"]
    for done, method in enumerate(makers):
        count = method().at_most(budget)
        if count is not None:
            decoded = method().reconstruct(original[None], count)
            rows.append(_row(method.label, count, decoded.bits, decoded.images[0], original))
        progress((done + 1) / len(makers))
    return rows


def _row(label: str, tokens: int, bits: float, image: Tensor, original: Tensor) -> dict[str, Any]:
    near = min(MAX_PSNR, float(psnr(image[None], original[None])))
    return {"label": label, "tokens": tokens, "bits": bits, "psnr": near, "image": to_text(image.permute(1, 2, 0).numpy())}


def board(result: list[dict[str, Any]], name: str = NAME, budget: int = 16) -> go.Figure:
    """The pictures of a run side by side."""
    return picture_board(result, f"{len(result) - 1} reconstructions of one picture from at most {budget} tokens")


def recorded_board() -> list[dict[str, Any]]:
    """The run that recipes/record_tokenizers.py stored for the form's first inputs."""
    return load_recorded("visual_tokenizers", "live_picture").to_dict("records")


def read_own(content: bytes) -> Tensor:
    """The reader's file as a small picture. Raises ValueError for what is none."""
    return read_image(content)


def inputs() -> dict[str, Any]:
    """The form: an emoji by name, or a picture of one's own, and how many tokens."""
    from frugal.explore import choice, file, text
    kinds = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp")
    return {"name": text("Emoji, by its Unicode name", NAME, rows=1, max_chars=80, check=place_of),
            "budget": choice(BUDGETS, "Tokens at most", default=16),
            "picture": file("Or a picture of your own", kinds, value="", read=read_own)}
