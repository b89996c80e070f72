"""RobusTok: a tokenizer whose decoder has seen wrong codes, because the generator will make some.

While training, after quantization, the codes of a few pictures are replaced by one of the `delta` nearest codes of the same
latent; the quantizer's own loss stays on the right codes. alpha is the share of replaced tokens, beta the share of
pictures, delta the reach, and both alpha and delta shrink to a half as training goes on.
Source: arXiv 2503.08354, section 3 (latent perturbation, pFID); defaults and the annealing from the released code; the
ablation of arXiv 2509.12474. The text's formula makes beta the share of clean pictures; the code perturbs that share, as here.
Differs: delta 6 of 256 codes (100 of 4,096), annealed from 20 % to 60 % of the training; no DINO contrastive loss, no GAN.
Shapes: B pictures, T tokens, d latent dimension, K codes.
"""
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from frugal.models.quantizers import Quantized, VectorQuantizer

__all__ = ["PerturbSchedule", "check_perturbation", "gaussian_noise", "nearest_codes", "perturb_codes", "perturb_latent",
           "scaled_delta"]

Share = float | int
TRAINING_DELTA, PAPER_CODES = 100, 4096             # of the paper


def scaled_delta(codebook_size: int, delta: int = TRAINING_DELTA) -> int:
    """A delta of the paper's 4,096 codes for another codebook, rounded down, at least 2: 100 becomes 6 of 256."""
    return max(2, delta * codebook_size // PAPER_CODES)


def check_perturbation(alpha: Share, beta: Share, delta: int, codebook_size: int) -> None:
    """Raises ValueError for shares outside [0, 1] and for a delta outside 1..codebook_size."""
    for name, value in (("alpha", alpha), ("beta", beta)):
        if not 0 <= value <= 1:
            raise ValueError(f"{name} must be in [0, 1], got {value}: it is a share (alpha of tokens, beta of pictures)")
    if not (isinstance(delta, int) and 1 <= delta <= codebook_size):
        raise ValueError(f"delta must be a whole number in 1..{codebook_size} (1: the code itself), got {delta}")


def nearest_codes(latents: Float[Tensor, "b t d"], codebook: Float[Tensor, "k d"], codes: Int[Tensor, "b t"],
                  delta: int) -> Int[Tensor, "b t n"]:
    """The `delta` nearest codes of each latent, nearest first; the latent's own code is always the first.

    latents: as the quantizer compares them with codes (`VectorQuantizer.prepared`).
    """
    distances = (codebook ** 2).sum(-1) - 2 * latents @ codebook.T                        # (B, T, K), less |z|^2
    # Ties, and a codebook that has moved since, must not put another code before the one that was sent.
    distances.scatter_(-1, codes[..., None], float("-inf"))
    return distances.topk(delta, largest=False).indices


def perturb_codes(latents: Float[Tensor, "b t d"], codebook: Float[Tensor, "k d"], codes: Int[Tensor, "b t"],
                  generator: torch.Generator, alpha: Share = 1.0, delta: int = 6) -> Int[Tensor, "b t"]:
    """Each code with probability `alpha` replaced by one of its latent's `delta` nearest, all equally likely.

    The nearest is the code itself, so a share alpha * (delta - 1) / delta of the tokens really changes. delta = K
    replaces by any code. Raises ValueError (`check_perturbation`).
    """
    check_perturbation(alpha, 1.0, delta, len(codebook))
    hit = torch.rand(codes.shape, generator=generator) < alpha
    rank = torch.randint(delta, codes.shape, generator=generator)
    near = nearest_codes(latents, codebook, codes, delta)
    return torch.where(hit, near.gather(-1, rank[..., None])[..., 0], codes)


def perturb_latent(latents: Float[Tensor, "b t d"], quantized: Quantized, codebook: Float[Tensor, "k d"],
                   generator: torch.Generator, alpha: Share = 1.0, beta: Share = 0.1, delta: int = 6
                   ) -> Float[Tensor, "b t d"]:
    """Code vectors for the decoder: of the first int(beta * B) pictures perturbed, of the others `quantized.latents` as it is.

    latents: z, as the quantizer compares them. The gradient with respect to them is the identity, perturbed or not.
    Only for training; `quantized.loss` has been computed before and stays clean. Raises ValueError (`check_perturbation`).
    """
    check_perturbation(alpha, beta, delta, len(codebook))
    count = int(beta * len(latents))
    if count == 0:
        return quantized.latents
    z, codes = latents[:count], quantized.codes[:count]
    picked = perturb_codes(z.detach(), codebook, codes, generator, alpha, delta)
    moved = z + (codebook[picked] - z).detach()                                           # straight through, as usual
    kept = quantized.latents[:count]
    return torch.cat([torch.where((picked != codes)[..., None], moved, kept), quantized.latents[count:]])


def gaussian_noise(quantized: Quantized, generator: torch.Generator, scale: Share, beta: Share = 0.1
                   ) -> Float[Tensor, "b t d"]:
    """Baseline: normal noise of standard deviation `scale` on the code vectors of the first int(beta * B) pictures."""
    check_perturbation(0.0, beta, 1, 1)
    if not scale >= 0:
        raise ValueError(f"scale must be at least 0, got {scale}")
    count = int(beta * len(quantized.latents))
    noise = torch.randn(quantized.latents[:count].shape, generator=generator) * scale
    return torch.cat([quantized.latents[:count] + noise, quantized.latents[count:]])


@dataclass(frozen=True)
class PerturbSchedule:
    """How strong the perturbation is in the course of training.

    alpha, delta: at the start. beta: share of pictures, constant. start, end: share of training between which alpha and
    delta fall linearly. low: what is left of them at the end (the paper's best: a half; 0 switches it off, 1 keeps it).
    kind: "nearest" codes, "random" codes (the baseline delta = K), or "gaussian" noise as large as the mean perturbation.
    """

    alpha: Share = 1.0
    beta: Share = 0.1
    delta: int = 6
    start: Share = 0.2
    end: Share = 0.6
    low: Share = 0.5
    kind: str = "nearest"

    def __post_init__(self):
        if not 0 <= self.start <= self.end <= 1 or not 0 <= self.low <= 1:
            raise ValueError(f"need 0 <= start <= end <= 1 and low in [0, 1], got {self.start}, {self.end}, {self.low}")
        if self.kind not in ("nearest", "random", "gaussian"):
            raise ValueError(f"kind must be nearest, random or gaussian, got {self.kind!r}")
        check_perturbation(self.alpha, self.beta, self.delta, 1 << 30)

    def ratio(self, progress: Share) -> float:
        """1 until `start`, falling linearly to `low` at `end`. progress: share of training done, 0 to 1."""
        if progress <= self.start:
            return 1.0
        done = min(1.0, (progress - self.start) / max(1e-9, self.end - self.start))
        return 1.0 + (self.low - 1.0) * done

    def at(self, progress: Share) -> tuple[float, int]:
        """(alpha, delta) at that time; delta is at least 1, which changes nothing."""
        ratio = self.ratio(progress)
        return self.alpha * ratio, max(1, round(self.delta * ratio))

    def disturb(self, progress: Share, generator: torch.Generator) -> Callable[[Tensor, Quantized, VectorQuantizer], Tensor]:
        """What `VQGrid.forward(images, disturb=...)` takes: (raw latents, `Quantized`, quantizer) -> latents to decode."""
        alpha, delta = self.at(progress)

        def disturbed(latents: Tensor, quantized: Quantized, quantizer: VectorQuantizer) -> Tensor:
            with torch.autocast(latents.device.type, enabled=False):
                z, codebook = quantizer.prepared(latents.float()), quantizer.codebook
                if self.kind == "gaussian":
                    scale = alpha ** 0.5 * mean_step(z.detach(), codebook, quantized.codes, delta)
                    return gaussian_noise(quantized, generator, scale, self.beta)
                reach = len(codebook) if self.kind == "random" else delta
                return perturb_latent(z, quantized, codebook, generator, alpha, self.beta, reach)
        return disturbed


@torch.no_grad()
def mean_step(latents: Float[Tensor, "b t d"], codebook: Float[Tensor, "k d"], codes: Int[Tensor, "b t"], delta: int) -> float:
    """Root mean square change per dimension when a code is replaced by one of its `delta` nearest."""
    near = codebook[nearest_codes(latents, codebook, codes, delta)]                       # (B, T, delta, d)
    return float((near - codebook[codes][:, :, None]).square().mean().sqrt())
