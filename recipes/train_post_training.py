"""Post-train decoders on what the generator makes: a sweep of sigma, and the controls.

    python recipes/train_post_training.py --work ~/.cache/frugal/training/post_training --publish

One thread, about half a minute a decoder; stops and resumes anywhere (each decoder is a row of recorded/post_training.json). Publishes the
decoder of the paper's setting (sigma 0.7, encoded again) as post_trained_64. Encoder, codebook and generator are checked by hash.
"""
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from frugal.core.measure import hardware
from frugal.core.recording import read_recorded, record
from frugal.data.emoji import PIXELS_SHA256
from frugal.data.emoji_images import load_images
from frugal.models import load_weights
from frugal.models.token_generators import load_generator
from frugal.models.vq_grid import VQGrid, build_vq_grid
from frugal.visual_tokenizers import post_training as post
from frugal.visual_tokenizers.robustok_generated import encoded, scores_of
from train_vq_grid import picture_loss
from training import Plan, fit, halved, options, publish

OUT = Path(post.__file__).parent / "recorded" / "post_training.json"
DRAWS, BATCH, DELTA = 2, 48, 6
NAME = "post_trained_64"


@dataclass(frozen=True)
class Variant:
    """One tuned decoder. input: "generated" (sigma, source), "clean" codes, "perturbed" codes, or "none": not tuned."""

    tokenizer: str
    input: str
    sigma: float = float("nan")
    source: str = ""


VARIANTS = tuple(
    [Variant("robustok_64", "none"), Variant("robustok_64", "generated", 0.7, "reencode"), Variant("robustok_64", "clean")]
    + [Variant("robustok_64", "generated", sigma, "reencode") for sigma in (0.5, 0.9, 0.3)]
    + [Variant("robustok_64", "generated", 0.7, "tokens"), Variant("robustok_64", "perturbed")]
    + [Variant("vq_grid_64", "none"), Variant("vq_grid_64", "generated", 0.7, "reencode"), Variant("vq_grid_64", "clean")]
    + [Variant("robustok_64", "generated", sigma, "tokens") for sigma in (0.5, 0.9, 0.3)])


def fresh(name: str) -> VQGrid:
    state, card = load_weights(name)
    model = build_vq_grid(card["shape"])
    model.load_state_dict(state)
    return model.eval()


def inputs(tokenizer: VQGrid, variant: Variant) -> Tensor:
    """(draws, N, L) codes that the decoder is tuned on."""
    known = load_images()
    pixels, groups = known.pixels[known.train()], known.groups[known.train()]
    codes = encoded(tokenizer, pixels)
    if variant.input == "clean":
        return codes[None]
    if variant.input == "perturbed":
        return torch.stack([post.synthetic_input(tokenizer, pixels, 1.0 - 0.7, DELTA, torch.Generator().manual_seed(draw))
                            for draw in range(DRAWS)])
    generator, made = load_generator(f"{variant.tokenizer}_ar"), []
    for draw in range(DRAWS):
        sampler, masks = torch.Generator().manual_seed(11 + draw), torch.Generator().manual_seed(97 + draw)
        mixed = torch.cat([post.preservation_sample(generator, part, kinds, variant.sigma, sampler, masks)
                           for part, kinds in zip(codes.split(256), groups.split(256))])
        made.append(post.decoder_input(tokenizer, mixed, variant.source))
    return torch.stack(made)


def tune(tokenizer: VQGrid, given: Tensor, work: Path, steps: int) -> float:
    """Tunes the decoder in place; returns CPU seconds. Raises when anything but the decoder moved."""
    pixels = load_images().pixels[load_images().train()]
    parts = post.decoder_parts(tokenizer)
    before = post.frozen_hash(tokenizer, parts)
    post.freeze_all_but_decoder(tokenizer)

    def loss(model, step, generator):
        place = torch.randint(len(pixels), (BATCH,), generator=generator)
        draw = torch.randint(len(given), (BATCH,), generator=generator)
        seen: dict = {}

        def scored(made, images):
            value, numbers = picture_loss(made, images, True)
            seen.update(numbers)
            return value
        return post.decoder_loss(model, given[draw, place], pixels[place], scored), seen
    state = fit(tokenizer, loss, work, Plan(steps=steps, adam=3e-4, decay=0.0, warmup=20, low=0.05, ema=0.98))
    halved(tokenizer)
    if post.frozen_hash(tokenizer, parts) != before:
        raise SystemExit("the encoder or the codebook moved; only the decoder may")
    return state["cpu_s"]


def main() -> None:
    parser = options(__doc__, steps=160)
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    OUT.parent.mkdir(exist_ok=True)
    table = read_recorded(OUT) if OUT.exists() else pd.DataFrame({"variant": []})
    for number, variant in enumerate(VARIANTS):
        name = " ".join(str(value) for value in vars(variant).values())
        if name in set(table.variant):
            continue
        tokenizer, cpu_s = fresh(variant.tokenizer), 0.0
        if variant.input != "none":
            cpu_s = tune(tokenizer, inputs(tokenizer, variant), given.work / str(number), given.steps)
        row = {"variant": name, **vars(variant), "steps": given.steps, "draws": DRAWS, "cpu_s": round(cpu_s, 1),
               "frozen": post.frozen_hash(tokenizer, post.decoder_parts(tokenizer)),
               "generator": post.frozen_hash(load_generator(f"{variant.tokenizer}_ar")),
               "hardware": hardware(), **scores_of(tokenizer, variant.tokenizer)}
        print(row, flush=True)
        if given.publish and variant == VARIANTS[1]:
            decoder = torch.nn.Module()
            decoder.decoder, decoder.linear_out = tokenizer.decoder, tokenizer.linear_out
            publish(NAME, decoder, {"recipe": "recipes/train_post_training.py", "seed": 0, "steps": given.steps,
                                    "tokenizer": variant.tokenizer, "sigma": variant.sigma, "source": variant.source,
                                    "data_hash": PIXELS_SHA256[32], "metrics": {k: row[k] for k in ("g_efid", "r_efid", "psnr", "copy_rate")}})
        table = pd.concat([table, pd.DataFrame([row])], ignore_index=True)
        record(table, OUT)


if __name__ == "__main__":
    main()
