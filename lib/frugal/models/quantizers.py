"""From latents to codes and back: one learned codebook (VQ), a fixed grid (FSQ), codebooks for residuals (RVQ).

Source: arXiv 1711.00937 (VQ-VAE), section 3.1, with the moving-average update of its appendix A.1; arXiv 2309.15505 (FSQ),
section 3.1; arXiv 2107.03312 (SoundStream), section III-C, for residual quantization and its dropout.
Differs: codes that fall out of use are put on a latent of the batch; codebooks start from a short k-means.
Greedy RVQ is not idempotent: quantizing a sum of its own codewords may give other codes, and the residual of a single
latent may grow; only the average error falls with depth.
Shapes: latents (..., d) with any leading axes; codes (...) int64, for RVQ (..., levels).
"""
from dataclasses import dataclass
from math import prod

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn


@dataclass
class Quantized:
    """latents: the code vectors, with the gradient passed straight through to the input. codes: their numbers.
    loss: what pulls the input to its code (0 where there is nothing to pull)."""

    latents: Tensor
    codes: Tensor
    loss: Tensor


def check_codes(codes: Tensor, size: int) -> None:
    """Raises ValueError for codes outside 0..size-1 or of a type that is no integer."""
    if codes.is_floating_point() or codes.is_complex():
        raise ValueError(f"codes must be integers, got {codes.dtype}")
    if codes.numel() and not (0 <= int(codes.min()) and int(codes.max()) < size):
        raise ValueError(f"codes must be in 0..{size - 1}, got {int(codes.min())}..{int(codes.max())}; are they of another "
                         "tokenizer?")


def codebook_usage(codes: Int[Tensor, "..."], size: int) -> dict[str, float | Tensor]:
    """counts (size,), share of codes in use, and perplexity (effective number of codes in use, 2 ** entropy)."""
    check_codes(codes, size)
    counts = torch.bincount(codes.flatten(), minlength=size)
    share = counts[counts > 0].double() / max(1, int(counts.sum()))
    return {"counts": counts, "used": float((counts > 0).double().mean()), "perplexity": float((-(share * share.log()).sum()).exp())}


class VectorQuantizer(nn.Module):
    """Nearest of `codebook_size` learned vectors, learned by moving averages.

    cosine: latents and codes have length 1, and nearest means largest product; latents come back with length 1 too.
    decay: of the averages. revive: a code used less than this share of the mean is put elsewhere. commitment: weight of
    the loss that pulls latents to their codes.
    """

    def __init__(self, codebook_size: int, dim: int, cosine: bool = True, decay: float = 0.99, revive: float = 0.02,
                 commitment: float = 0.25):
        super().__init__()
        if codebook_size < 2 or dim < 1:
            raise ValueError(f"need codebook_size >= 2 and dim >= 1, got {codebook_size} and {dim}")
        self.codebook_size, self.dim, self.cosine = codebook_size, dim, cosine
        self.decay, self.revive, self.commitment = decay, revive, commitment
        start = torch.randn(codebook_size, dim)
        self.register_buffer("codebook", F.normalize(start, dim=-1) if cosine else start)
        self.register_buffer("counts", torch.ones(codebook_size))
        self.register_buffer("sums", self.codebook.clone())
        self.register_buffer("started", torch.zeros((), dtype=torch.bool))

    def forward(self, latents: Float[Tensor, "*n d"]) -> Quantized:
        """Codes of the latents. In training mode the codebook moves, the first time by k-means."""
        with torch.autocast(latents.device.type, enabled=False):
            flat = self.prepared(latents.float())
            if self.training:
                self._start(flat.detach().flatten(0, -2))
            codes = self.nearest(flat)
            chosen = self.codebook[codes]
            if self.training:
                self._update(flat.detach().flatten(0, -2), codes.flatten())
            loss = self.commitment * F.mse_loss(flat, chosen)
            return Quantized(flat + (chosen - flat).detach(), codes, loss)

    def prepared(self, latents: Float[Tensor, "*n d"]) -> Float[Tensor, "*n d"]:
        """Latents as they are compared with codes: of length 1 under cosine."""
        return F.normalize(latents, dim=-1) if self.cosine else latents

    def distances(self, latents: Float[Tensor, "*n d"]) -> Float[Tensor, "*n k"]:
        """Squared distance to every code, less the latent's own square (it moves no rank), of prepared latents."""
        return (self.codebook ** 2).sum(-1) - 2 * latents @ self.codebook.T

    def nearest(self, latents: Float[Tensor, "*n d"]) -> Int[Tensor, "*n"]:
        """Code of each latent that `prepared` gave; ties go to the smaller number."""
        return self.distances(latents).argmin(-1)

    def lookup(self, codes: Int[Tensor, "*n"]) -> Float[Tensor, "*n d"]:
        """Vectors of the codes. Raises ValueError for codes out of range."""
        check_codes(codes, self.codebook_size)
        return self.codebook[codes]

    @torch.no_grad()
    def _start(self, flat: Tensor, rounds: int = 10) -> None:
        if self.started:
            return
        pick = torch.randperm(len(flat))[:self.codebook_size]
        if len(pick) < self.codebook_size:
            pick = torch.randint(len(flat), (self.codebook_size,))
        self.codebook.copy_(flat[pick])
        for _ in range(rounds):
            codes = self.nearest(flat)
            counts = torch.bincount(codes, minlength=self.codebook_size).float()
            sums = torch.zeros_like(self.codebook).index_add_(0, codes, flat)
            moved = sums / counts.clamp(min=1)[:, None]
            self.codebook.copy_(self.prepared(torch.where(counts[:, None] > 0, moved, self.codebook)))
        self.counts.copy_(counts.clamp(min=1))
        self.sums.copy_(self.codebook * self.counts[:, None])
        self.started.fill_(True)

    @torch.no_grad()
    def _update(self, flat: Tensor, codes: Tensor) -> None:
        counts = torch.bincount(codes, minlength=self.codebook_size).float()
        self.counts.lerp_(counts, 1 - self.decay)
        self.sums.lerp_(torch.zeros_like(self.sums).index_add_(0, codes, flat), 1 - self.decay)
        dead = (self.counts < self.revive * self.counts.mean()).nonzero()[:, 0]
        if len(dead):
            born = flat[torch.randint(len(flat), (len(dead),))]
            self.counts[dead] = self.counts.mean()
            self.sums[dead] = born * self.counts[dead, None]
        self.codebook.copy_(self.prepared(self.sums / self.counts.clamp(min=1e-5)[:, None]))


class FSQ(nn.Module):
    """Finite scalar quantization: every channel is bounded and rounded to one of its levels; all codes are reachable and
    nothing is learned. levels: number of levels of each channel, e.g. (8, 6, 5) for 240 codes."""

    EPS = 1e-3

    def __init__(self, levels: tuple[int, ...] | list[int]):
        super().__init__()
        if not levels or min(levels) < 2:
            raise ValueError(f"levels must be whole numbers of at least 2, got {tuple(levels)}")
        self.levels, self.dim, self.codebook_size = tuple(levels), len(levels), prod(levels)
        sizes = torch.tensor(self.levels)
        self.register_buffer("reach", (sizes - 1) * (1 + self.EPS) / 2, persistent=False)
        self.register_buffer("offset", torch.where(sizes % 2 == 0, 0.5, 0.0), persistent=False)
        self.register_buffer("centre", sizes // 2, persistent=False)
        self.register_buffer("basis", torch.tensor([prod(self.levels[:i]) for i in range(self.dim)]), persistent=False)

    def forward(self, latents: Float[Tensor, "*n d"]) -> Quantized:
        """Codes of the latents; rounding passes the gradient straight through."""
        bounded = self.bounded(latents.float())
        rounded = bounded + (bounded.round() - bounded).detach()
        return Quantized(rounded / self.centre, self.numbers(rounded.detach()), latents.new_zeros(()))

    def bounded(self, latents: Float[Tensor, "*n d"]) -> Float[Tensor, "*n d"]:
        """Latents squeezed so that rounding gives exactly `levels` values a channel."""
        shift = (self.offset / self.reach).atanh()
        return (latents + shift).tanh() * self.reach - self.offset

    def numbers(self, rounded: Float[Tensor, "*n d"]) -> Int[Tensor, "*n"]:
        return ((rounded.round().long() + self.centre) * self.basis).sum(-1)

    def lookup(self, codes: Int[Tensor, "*n"]) -> Float[Tensor, "*n d"]:
        """Vectors of the codes, in [-1, 1]. Raises ValueError for codes out of range."""
        check_codes(codes, self.codebook_size)
        steps = codes[..., None] // self.basis % torch.tensor(self.levels, device=codes.device)
        return (steps - self.centre) / self.centre

    @property
    def codebook(self) -> Float[Tensor, "k d"]:
        """All code vectors, in the order of their numbers."""
        return self.lookup(torch.arange(self.codebook_size))


class ResidualVQ(nn.Module):
    """A codebook a level; each level quantizes what the levels before left over, and the code vectors are summed.

    num_levels: depth. dropout: share of training batches whose levels are cut at a random depth, so that prefixes decode.
    options: of `VectorQuantizer`; codes keep their length (cosine off), since it carries information here.
    """

    def __init__(self, num_levels: int, codebook_size: int, dim: int, dropout: float = 0.5, **options):
        super().__init__()
        if num_levels < 1:
            raise ValueError(f"num_levels must be at least 1, got {num_levels}")
        self.levels = nn.ModuleList(VectorQuantizer(codebook_size, dim, **{"cosine": False, **options}) for _ in range(num_levels))
        self.num_levels, self.codebook_size, self.dim, self.dropout = num_levels, codebook_size, dim, dropout

    def forward(self, latents: Float[Tensor, "*n d"]) -> Quantized:
        """Sum of the code vectors and codes (..., levels). In training some batches are cut (codes are then fewer)."""
        latents, depth = latents.float(), self.num_levels
        if self.training and float(torch.rand(())) < self.dropout:
            depth = int(torch.randint(1, self.num_levels + 1, ()))
        left, total, codes, loss = latents, torch.zeros_like(latents), [], latents.new_zeros(())
        for level in self.levels[:depth]:
            found = level(left)
            chosen = level.lookup(found.codes)
            left, total, loss = left - chosen, total + chosen, loss + found.loss / depth
            codes.append(found.codes)
        return Quantized(latents + (total - latents).detach(), torch.stack(codes, -1), loss)

    def lookup(self, codes: Int[Tensor, "*n j"]) -> Float[Tensor, "*n d"]:
        """Sum of the vectors of the first j levels. Raises ValueError for codes out of range or j above the depth."""
        if codes.shape[-1] > self.num_levels:
            raise ValueError(f"codes have {codes.shape[-1]} levels, this quantizer has {self.num_levels}")
        return sum((level.lookup(codes[..., j]) for j, level in enumerate(self.levels[:codes.shape[-1]])),
                   torch.zeros(*codes.shape[:-1], self.dim))
