"""The two local mixers of BASED: exact attention over a window, and a gated convolution over three tokens.

Source: arXiv 2402.18668, section 5; the convolution is `BaseConv` of the repository HazyResearch/based.
Differs: no rotary positions in the window (the caller rotates queries and keys where a stack needs it).
Shapes: B batch, T tokens, H heads, D value dim, w window, N blocks.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

__all__ = ["short_conv", "short_conv_step", "sliding_window_attention", "window_step"]


# --- exact attention over a window --------------------------------------------------------------------------------


def sliding_window_attention(
    q: Float[Tensor, "batch heads tokens f"],
    k: Float[Tensor, "batch heads tokens f"],
    v: Float[Tensor, "batch heads tokens d"],
    window: int,
) -> Float[Tensor, "batch heads tokens d"]:
    """Softmax attention of each token over itself and the window - 1 tokens before it.

    Computed in blocks of `window` queries against 2 * window keys, so work and memory grow with T * window:
    keys outside the window are not multiplied and then hidden. Raises ValueError when window is below 1.
    """
    if window < 1:
        raise ValueError(f"window must be at least 1 token, not {window}")
    T = q.shape[2]
    if window >= T:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)
    blocks = -(-T // window)
    q, k, v = (
        F.pad(x, (0, 0, 0, blocks * window - T)).unflatten(2, (blocks, window)) for x in (q, k, v)
    )  # (B, H, N, w, .)
    k, v = (torch.cat([F.pad(x, (0, 0, 0, 0, 1, 0))[:, :, :-1], x], dim=3) for x in (k, v))  # (B, H, N, 2w, .)
    age = torch.arange(window).unsqueeze(-1) + window - torch.arange(2 * window)  # query minus key, tokens
    seen = ((age >= 0) & (age < window)).repeat(blocks, 1, 1)
    seen[0, :, :window] = False  # nothing before token 0
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=seen.to(q.device))
    return out.flatten(2, 3)[:, :, :T]


def window_step(
    keys: Float[Tensor, "batch heads window f"],
    values: Float[Tensor, "batch heads window d"],
    num_seen: int,
    q: Float[Tensor, "batch heads f"],
    k: Float[Tensor, "batch heads f"],
    v: Float[Tensor, "batch heads d"],
) -> Float[Tensor, "batch heads d"]:
    """One token over a ring buffer of `window` slots, overwritten in place (the oldest slot goes). Returns (B, H, D).

    num_seen: tokens gone through before this one. Softmax does not care about the order of the slots.
    """
    window = keys.shape[2]
    keys[:, :, num_seen % window], values[:, :, num_seen % window] = k, v
    held = min(num_seen + 1, window)
    return F.scaled_dot_product_attention(q.unsqueeze(2), keys[:, :, :held], values[:, :, :held]).squeeze(2)


# --- gated short convolution --------------------------------------------------------------------------------------


def short_conv(
    x: Float[Tensor, "batch tokens d"],
    w_in: Float[Tensor, "two_d d"],
    kernel: Float[Tensor, "d width"],
    w_out: Float[Tensor, "d d"],
) -> Float[Tensor, "batch tokens d"]:
    """BaseConv: [u1, u2] = W_in x; W_out (SiLU(causal depthwise conv(u1)) * u2). Source: the release's `BaseConv`."""
    u1, u2 = (x @ w_in.mT).chunk(2, dim=-1)
    padded = F.pad(u1, (0, 0, kernel.shape[1] - 1, 0))
    mixed = F.conv1d(padded.mT, kernel.unsqueeze(1), groups=kernel.shape[0]).mT
    return (F.silu(mixed) * u2) @ w_out.mT


def short_conv_step(
    past: Float[Tensor, "batch width d"],
    x: Float[Tensor, "batch d"],
    w_in: Float[Tensor, "two_d d"],
    kernel: Float[Tensor, "d width"],
    w_out: Float[Tensor, "d d"],
) -> Float[Tensor, "batch d"]:
    """One token; `past` holds the last `width` values of u1, oldest first, and is moved on in place."""
    u1, u2 = (x @ w_in.mT).chunk(2, dim=-1)
    past.copy_(torch.cat([past[:, 1:], u1.unsqueeze(1)], dim=1))
    mixed = (past * kernel.mT).sum(1)
    return (F.silu(mixed) * u2) @ w_out.mT
