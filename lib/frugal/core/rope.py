"""Rotary position embedding, in the rotate-half convention of the Llama checkpoints.

Source: arXiv 2104.09864 (RoFormer), section 3.4.
"""
import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Rope:
    """Rotations of one model. head_dim: even, in channels; theta: base of the wavelengths.

    scaling: None, or Llama 3's frequency scaling with the keys factor, low_freq_factor, high_freq_factor and
    original_max_position_embeddings.
    """
    head_dim: int
    theta: float = 10_000.0
    scaling: dict | None = None

    def __post_init__(self):
        if self.head_dim % 2:
            raise ValueError(f"head_dim must be even for rotary positions, got {self.head_dim}")

    def frequencies(self, device=None) -> Float[Tensor, "half"]:
        """Radians per position of each channel pair."""
        exponent = torch.arange(0, self.head_dim, 2, dtype=torch.float32, device=device) / self.head_dim
        freqs = 1.0 / self.theta ** exponent     # in this order, as transformers: an ulp here is 1e-4 rad at position 2,000
        if not self.scaling:
            return freqs
        s = self.scaling
        wavelength = 2 * math.pi / freqs
        low = s["original_max_position_embeddings"] / s["low_freq_factor"]
        high = s["original_max_position_embeddings"] / s["high_freq_factor"]
        smooth = ((s["original_max_position_embeddings"] / wavelength - s["low_freq_factor"])
                  / (s["high_freq_factor"] - s["low_freq_factor"])).clamp(0, 1)
        blended = (1 - smooth) * freqs / s["factor"] + smooth * freqs
        return torch.where(wavelength > low, freqs / s["factor"], torch.where(wavelength < high, freqs, blended))

    def tables(self, positions: Int[Tensor, "*p"], dtype=torch.float32
               ) -> tuple[Float[Tensor, "*p d"], Float[Tensor, "*p d"]]:
        """Cosines and sines for `apply`, both (..., head_dim). Negative positions rotate backwards."""
        angles = positions[..., None].float() * self.frequencies(positions.device)
        angles = torch.cat([angles, angles], dim=-1)
        return angles.cos().to(dtype), angles.sin().to(dtype)

    def rotate(self, x: Float[Tensor, "*b t h d"], positions: Int[Tensor, "*#b t"]) -> Float[Tensor, "*b t h d"]:
        """Rotates `x` (..., T, heads, D) to `positions` (..., T); `-positions` undoes it."""
        cos, sin = self.tables(positions, x.dtype)
        return apply(x, cos[..., None, :], sin[..., None, :])


def apply(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x * cos + rotate_half(x) * sin, for tables that broadcast against x."""
    half = x.shape[-1] // 2
    turned = torch.cat([-x[..., half:], x[..., :half]], dim=-1)
    return torch.addcmul(x * cos, turned, sin)
