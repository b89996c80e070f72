"""Drawing tokens from logits: temperature, then the `top_k` likeliest, then the smallest set that holds `top_p` of the mass.

Source: arXiv 1904.09751 (nucleus sampling), section 3.1, for top-p; arXiv 2207.12598, equation 6, for guidance, which is here
applied to logits of tokens.
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor


def check_filters(temperature: float | int, top_k: int = 0, top_p: float | int = 1.0) -> None:
    """Raises ValueError for filters that leave nothing to draw, or mean nothing."""
    if not (temperature >= 0 and math.isfinite(temperature)):
        raise ValueError(f"temperature must be 0 (the likeliest token) or above, got {temperature}")
    if isinstance(top_k, bool) or top_k != int(top_k) or top_k < 0:
        raise ValueError(f"top_k must be a whole number, 0 for no limit, got {top_k}")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p must be above 0 and at most 1 (no limit), got {top_p}")


def filtered(
    logits: Float[Tensor, "*n v"], temperature: float | int = 1.0, top_k: int = 0, top_p: float | int = 1.0
) -> Float[Tensor, "*n v"]:
    """Logits after temperature (above 0), -inf for what is filtered out. The likeliest token always stays."""
    check_filters(temperature, top_k, top_p)
    if temperature == 0:
        raise ValueError("temperature 0 has no distribution; take argmax, as `draw` does")
    logits = logits.float() / temperature
    if 0 < top_k < logits.shape[-1]:
        least = logits.topk(top_k, -1).values[..., -1:]
        logits = logits.masked_fill(logits < least, float("-inf"))
    if top_p < 1:
        ordered, place = logits.sort(dim=-1, descending=True, stable=True)
        probs = ordered.softmax(-1)
        before = probs.cumsum(-1) - probs  # mass ahead of a token: the one that crosses top_p stays
        gone = torch.zeros_like(before, dtype=torch.bool).scatter(-1, place, before >= top_p)
        logits = logits.masked_fill(gone, float("-inf"))
    return logits


def draw(
    logits: Float[Tensor, "*n v"],
    generator: torch.Generator | None = None,
    temperature: float | int = 1.0,
    top_k: int = 0,
    top_p: float | int = 1.0,
) -> Int[Tensor, "*n"]:
    """One token for each row of logits; temperature 0 takes the likeliest."""
    check_filters(temperature, top_k, top_p)
    if temperature == 0:
        return logits.argmax(-1)
    probs = filtered(logits, temperature, top_k, top_p).softmax(-1)
    return torch.multinomial(probs.flatten(0, -2), 1, generator=generator).view(probs.shape[:-1])


def guided(
    conditional: Float[Tensor, "*n v"], unconditional: Float[Tensor, "*n v"], scale: float | int
) -> Float[Tensor, "*n v"]:
    """l_u + scale * (l_c - l_u): 0 ignores the condition, 1 is the plain condition, above 1 exaggerates it."""
    return unconditional + scale * (conditional - unconditional)
