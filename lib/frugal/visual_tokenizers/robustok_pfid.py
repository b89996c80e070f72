"""p-eFID: how far decoded pictures lie from real ones when the codes are wrong as a generator's would be.

Source: arXiv 2503.08354, section 3 (pFID); the grid alpha in {0.9 .. 0.5} x delta in {200, 280, 360} of 4,096 codes from
arXiv 2509.12474. Every picture is perturbed (beta = 1), and the distances of the settings are averaged.
Differs: eFID in EmojiNet's features; deltas scaled to the codebook (12, 17, 22 of 256); several draws a setting.
"""
from collections.abc import Callable, Iterable
from statistics import mean

import torch
from jaxtyping import Float
from torch import Tensor

from frugal.core.image_metrics import psnr
from frugal.models.emoji_scores import efid
from frugal.models.vq_grid import VQGrid
from frugal.visual_tokenizers.robustok import Share, perturb_codes, scaled_delta

ALPHAS = (0.9, 0.8, 0.7, 0.6, 0.5)
DELTAS = (200, 280, 360)                            # of the paper's 4,096 codes
CHUNK = 128


@torch.no_grad()
def prepared_latents(tokenizer: VQGrid, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b t d"]:
    """Latents as the quantizer compares them with codes."""
    return torch.cat([tokenizer.quantizer.prepared(tokenizer.latents(part).float()) for part in images.split(CHUNK)])


def perturbed_decoded(tokenizer: VQGrid, latents: Float[Tensor, "b t d"], alpha: Share, delta: int, seed: int = 0
                      ) -> Float[Tensor, "b 3 h w"]:
    """Pictures from `prepared_latents`, of whose codes a share alpha were replaced by one of the `delta` nearest.

    alpha 0 or delta 1: plain reconstructions. Raises ValueError for an alpha or a delta out of range.
    """
    generator, quantizer, made = torch.Generator().manual_seed(seed), tokenizer.quantizer, []
    for part in latents.split(CHUNK):
        codes = perturb_codes(part, quantizer.codebook, quantizer.nearest(part), generator, alpha, delta)
        made.append(tokenizer.decode(codes))
    return torch.cat(made)


def perturbed_images(tokenizer: VQGrid, images: Float[Tensor, "b 3 h w"], alpha: Share, delta: int, seed: int = 0
                     ) -> Float[Tensor, "b 3 h w"]:
    """The same from pictures."""
    return perturbed_decoded(tokenizer, prepared_latents(tokenizer, images), alpha, delta, seed)


def settings(codebook_size: int, draws: int = 1) -> list[tuple[float, int, int]]:
    """(alpha, delta, seed) of every perturbed set that p-eFID averages over."""
    cells = [(alpha, scaled_delta(codebook_size, delta)) for alpha in ALPHAS for delta in DELTAS]
    return [(alpha, delta, 1000 * draw + number) for draw in range(draws) for number, (alpha, delta) in enumerate(cells)]


def perturbed_efid(tokenizer: VQGrid, images: Float[Tensor, "b 3 h w"], draws: int = 1,
                   score: Callable[[Tensor], float] = efid, on_cell: Callable[[dict], None] | None = None) -> float:
    """p-eFID: mean of `score` over `settings`. on_cell gets {"alpha", "delta", "seed", "efid"} of each."""
    cells, latents = [], prepared_latents(tokenizer, images)
    for alpha, delta, seed in settings(tokenizer.quantizer.codebook_size, draws):
        made = perturbed_decoded(tokenizer, latents, alpha, delta, seed)
        cells.append({"alpha": alpha, "delta": delta, "seed": seed, "efid": float(score(made))})
        if on_cell is not None:
            on_cell(cells[-1])
    return mean(cell["efid"] for cell in cells)


def psnr_under(tokenizer: VQGrid, images: Float[Tensor, "b 3 h w"], alphas: Iterable[float], delta: int, draws: int = 4
               ) -> list[dict]:
    """Rows alpha, delta, psnr (dB, mean over pictures and draws) and its spread over draws."""
    rows, latents = [], prepared_latents(tokenizer, images)
    for alpha in alphas:
        means = torch.tensor([float(psnr(perturbed_decoded(tokenizer, latents, alpha, delta, seed), images).mean())
                              for seed in range(draws if alpha else 1)])
        rows.append({"alpha": alpha, "delta": delta, "psnr": float(means.mean()), "low": float(means.min()), "high": float(means.max())})
    return rows
