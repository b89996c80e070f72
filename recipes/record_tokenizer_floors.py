"""Records what reconstructions and generations must beat: python recipes/record_tokenizer_floors.py (about a CPU minute)

floors: mean picture, block means, PCA, nearest training picture (PSNR, eLPIPS, r-eFID). sets: sets of pictures whose scores say
what a score means (real pictures anew, held-out ones, blurred ones).
"""
from pathlib import Path

import pandas as pd
import torch

from frugal.core.recording import record
from frugal.data.emoji_images import augment, load_images
from frugal.models import emoji_scores

OUT = Path(__file__).parents[1] / "lib/frugal/visual_tokenizers/recorded"


def sets() -> list[dict]:
    """Scores of sets that everybody can picture."""
    known = load_images()
    held_out, noise = known.held_out_set(), torch.Generator().manual_seed(0)
    made = {
        "all emoji themselves": (known.pixels, known.groups),
        "moved and flipped": (augment(known.pixels, noise, hue=False), known.groups),
        "8 x 8 block means": (emoji_scores.block_means(known.pixels, 8), known.groups),
        "grey noise": (torch.rand(known.pixels.shape, generator=noise), known.groups),
        "training half, twice": (known.pixels[known.train()[::2].repeat(2)], known.groups[known.train()[::2].repeat(2)]),
        "held-out only": (known.pixels[held_out], known.groups[held_out])}
    return [{"set": name, "pictures": len(pixels), **emoji_scores.set_scores(pixels, groups)} for name, (pixels, groups) in made.items()]


if __name__ == "__main__":
    torch.set_num_threads(1)
    table = pd.DataFrame(sets())
    table["efid_floor"] = emoji_scores.efid_floor()
    record(table, OUT / "sets.json")
    record(pd.DataFrame(emoji_scores.floors()), OUT / "floors.json")
