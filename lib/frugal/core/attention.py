"""Grouped-query attention over cache slots: exact, causal, ragged, and its rows on request.

Three paths give the same numbers. One new token per sequence on the CPU in fp32 runs two numba loops around
PyTorch's softmax, which read every key and value once for all query heads that share it. Several new tokens run
`scaled_dot_product_attention`. Everything else (other devices and dtypes) runs the same in PyTorch.

Shapes: B batch, T new tokens, S slots in use, C slots reserved, H query heads, K KV heads, G = H / K, D head dim.
Source: arXiv 1706.03762, section 3.2.1; grouped queries: arXiv 2305.13245.
"""
import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from frugal.core.compiled import compiled, numba, prange, share_threads

CHUNK = 256          # slots one task of the kernel reads: small enough to share out, large enough to stream


def decode_attention(q: Float[Tensor, "b h d"], keys: Float[Tensor, "b k c d"], values: Float[Tensor, "b k c d"],
                     held: np.ndarray) -> tuple[Float[Tensor, "b h d"], Float[Tensor, "b h s"]]:
    """Attention of one token per sequence over its first `held[b]` slots: output and probabilities.

    S is max(held); probabilities of slots a shorter sequence does not hold are exactly 0.
    """
    num_slots = int(held.max())
    if _kernel_applies(q, keys, values):
        return _decode_kernel(q, keys, values, held, num_slots)
    batch, num_kv_heads, _, head_dim = keys.shape
    grouped = q.reshape(batch, num_kv_heads, -1, head_dim) * head_dim ** -0.5
    logits = grouped @ keys[:, :, :num_slots].transpose(-1, -2)                       # (B, K, G, S)
    if (held != num_slots).any():
        slot = torch.arange(num_slots, device=q.device)
        beyond = slot >= torch.as_tensor(held, device=q.device)[:, None]
        logits = logits.masked_fill(beyond[:, None, None], -torch.inf)
    probs = logits.softmax(-1)
    out = probs @ values[:, :, :num_slots]
    return out.reshape(q.shape), probs.reshape(batch, -1, num_slots)


def extend_attention(q: Float[Tensor, "b t h d"], keys: Float[Tensor, "b k c d"], values: Float[Tensor, "b k c d"],
                     held: np.ndarray) -> Float[Tensor, "b t h d"]:
    """Attention of the newest T tokens, which already sit in the last T of the `held[b]` slots.

    A token sees every older slot and, among the new ones, itself and those before it.
    """
    num_new, num_slots = q.shape[1], int(held.max())
    keys, values = keys[:, :, :num_slots], values[:, :, :num_slots]
    q = q.transpose(1, 2)                                                              # (B, H, T, D)
    if num_slots == num_new and (held == num_slots).all():
        out = F.scaled_dot_product_attention(q, keys, values, is_causal=True, enable_gqa=True)
    else:
        visible = visible_slots(held, num_new, 0, num_new, q.device)[:, None]          # (B, 1, T, S)
        out = F.scaled_dot_product_attention(q, keys, values, attn_mask=visible, enable_gqa=True)
    return out.transpose(1, 2)


def attention_rows(q: Float[Tensor, "b t h d"], keys: Float[Tensor, "b k c d"], held: np.ndarray, num_new: int,
                   first_row: int) -> Float[Tensor, "b h t s"]:
    """Probabilities of a block of query rows: rows first_row .. first_row + t of the newest `num_new` tokens.

    Slots a row may not see are exactly 0. Memory is that of the block, never of the whole matrix.
    """
    batch, rows, num_heads, head_dim = q.shape
    num_slots, num_kv_heads = int(held.max()), keys.shape[1]
    grouped = q.transpose(1, 2).reshape(batch, num_kv_heads, -1, head_dim) * head_dim ** -0.5   # (B, K, G*t, D)
    logits = grouped @ keys[:, :, :num_slots].transpose(-1, -2)
    logits = logits.view(batch, num_heads, rows, num_slots)
    visible = visible_slots(held, num_new, first_row, rows, q.device)
    return logits.masked_fill_(~visible[:, None], -torch.inf).softmax(-1)


def visible_slots(held: np.ndarray, num_new: int, first_row: int, rows: int, device) -> Tensor:
    """Bool (B, rows, S): slot s is visible to new token i when s < held - num_new + i + 1."""
    held = torch.as_tensor(held, device=device)
    row = torch.arange(first_row, first_row + rows, device=device)
    last = held[:, None] - num_new + row                                               # (B, rows)
    return torch.arange(int(held.max()), device=device) <= last[..., None]


def _kernel_applies(q: Tensor, keys: Tensor, values: Tensor) -> bool:
    return (numba is not None and q.device.type == "cpu" and q.dtype == keys.dtype == values.dtype == torch.float32
            and keys.is_contiguous() and values.is_contiguous())


def _decode_kernel(q: Tensor, keys: Tensor, values: Tensor, held: np.ndarray, num_slots: int) -> tuple[Tensor, Tensor]:
    share_threads()
    batch, num_heads, head_dim = q.shape
    logits = torch.empty(batch, num_heads, num_slots)
    scaled = (q * head_dim ** -0.5).contiguous()
    _scores(scaled.numpy(), keys.numpy(), held, CHUNK, logits.numpy())
    probs = logits.softmax(-1)
    parts = torch.empty(-(-num_slots // CHUNK), batch, num_heads, head_dim)
    _mix(probs.numpy(), values.numpy(), held, CHUNK, parts.numpy())
    return parts[0] if len(parts) == 1 else parts.sum(0), probs


@compiled(fastmath={"contract", "reassoc", "nsz"})
def _scores(q, keys, held, chunk, out):
    """out[b, h, s] = q[b, h] . keys[b, h // G, s]; -inf beyond held[b] (so no fastmath flag that forbids it)."""
    batch, num_kv_heads, _, head_dim = keys.shape
    group, num_slots = q.shape[1] // num_kv_heads, out.shape[2]
    num_chunks = (num_slots + chunk - 1) // chunk
    for task in prange(batch * num_kv_heads * num_chunks):
        b, k = task // (num_kv_heads * num_chunks), task // num_chunks % num_kv_heads
        first = task % num_chunks * chunk
        last, end = min(first + chunk, num_slots, held[b]), min(first + chunk, num_slots)
        rows = keys[b, k]
        for g in range(group):
            row = out[b, k * group + g]
            for s in range(max(first, last), end):
                row[s] = -np.inf
        for s in range(first, last):
            key = rows[s]
            for g in range(group):
                query = q[b, k * group + g]
                a = np.float32(0)
                for d in range(head_dim):
                    a += query[d] * key[d]
                out[b, k * group + g, s] = a


@compiled()
def _mix(probs, values, held, chunk, parts):
    """parts[c, b, h] = sum of probs * values over the slots of chunk c."""
    batch, num_kv_heads, _, head_dim = values.shape
    group, num_slots, num_chunks = probs.shape[1] // num_kv_heads, probs.shape[2], parts.shape[0]
    for task in prange(batch * num_kv_heads * num_chunks):
        b, k, c = task // (num_kv_heads * num_chunks), task // num_chunks % num_kv_heads, task % num_chunks
        rows = values[b, k]
        sums = parts[c, b, k * group:(k + 1) * group]
        sums[:] = 0
        for s in range(c * chunk, min(c * chunk + chunk, num_slots, held[b])):
            value = rows[s]
            for g in range(group):
                p = probs[b, k * group + g, s]
                total = sums[g]
                for d in range(head_dim):
                    total[d] += p * value[d]
