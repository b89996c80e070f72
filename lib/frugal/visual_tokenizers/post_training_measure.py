"""The strip of notebook 04: a real picture's codes, ever more of them replaced by the generator's, before and after tuning."""
import torch

from frugal.core.image_metrics import psnr
from frugal.data.emoji_images import load_images
from frugal.explore.pictures.stored import to_text
from frugal.models.token_generators import load_generator
from frugal.models.vq_grid import load_vq_grid
from frugal.visual_tokenizers.post_training import load_post_trained, preservation_sample
from frugal.visual_tokenizers.robustok_generated import ROBUST, places_of

SHOWN, SIGMAS = ("partying face", "pineapple", "lady beetle"), (1.0, 0.9, 0.7, 0.4, 0.0)      # emoji never trained on


def strip_rows() -> list[dict]:
    """Pictures as text: for each shown emoji and sigma one mixture of codes, decoded before and after post-training."""
    known, rows = load_images(), []
    decoders, generator = {"before": load_vq_grid(ROBUST), "after": load_post_trained()}, load_generator(f"{ROBUST}_ar")
    for emoji, place in zip(SHOWN, places_of(SHOWN)):
        image, group = known.pixels[place][None], known.groups[place][None]
        codes = decoders["before"].encode(image)
        for sigma in SIGMAS:
            sampler, masks = torch.Generator().manual_seed(place), torch.Generator().manual_seed(place + 1)
            mixed = preservation_sample(generator, codes, group, sigma, sampler, masks)
            for when, tokenizer in decoders.items():
                made = tokenizer.decode(mixed)
                rows.append({"emoji": emoji, "sigma": sigma, "decoder": when, "kept": float((mixed == codes).double().mean()),
                             "psnr": float(psnr(made, image)[0]), "picture": to_text(made[0].permute(1, 2, 0).numpy())})
    return rows
