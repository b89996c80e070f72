"""Grouped-query attention over cache slots: exact, causal, ragged, and its rows on request.

Three paths give the same numbers. A few new tokens per sequence on the CPU in fp32 run one compiled loop, which
reads every key and value once for all query heads that share it. Many new tokens run
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
from frugal.core.kernels import exp

FEW = 8              # new tokens per sequence up to which the compiled loop is the faster one


def decode_attention(q: Float[Tensor, "b h d"], keys: Float[Tensor, "b k c d"], values: Float[Tensor, "b k c d"],
                     held: np.ndarray) -> tuple[Float[Tensor, "b h d"], Float[Tensor, "b h s"]]:
    """Attention of one token per sequence over its first `held[b]` slots: output and probabilities.

    S is max(held); probabilities of slots a shorter sequence does not hold are exactly 0.
    """
    num_slots = int(held.max())
    if kernel_applies(q, keys, values):
        out, probs = _kernel_attention(q[:, None], keys, values, held)
        return out[:, 0], probs[:, 0]
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
    if num_new <= FEW and kernel_applies(q, keys, values):
        return _kernel_attention(q, keys, values, held)[0]
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
    logits = logit_rows(q, keys, int(held.max()))
    visible = visible_slots(held, num_new, first_row, q.shape[1], q.device)
    return logits.masked_fill_(~visible[:, None], -torch.inf).softmax(-1)


def logit_rows(q: Float[Tensor, "b t h d"], keys: Float[Tensor, "b k c d"], num_slots: int) -> Float[Tensor, "b h t s"]:
    """Scaled products of query rows with the first `num_slots` keys, nothing masked yet."""
    batch, rows, num_heads, head_dim = q.shape
    grouped = q.transpose(1, 2).reshape(batch, keys.shape[1], -1, head_dim) * head_dim ** -0.5   # (B, K, G*t, D)
    return (grouped @ keys[:, :, :num_slots].transpose(-1, -2)).view(batch, num_heads, rows, num_slots)


def visible_slots(held: np.ndarray, num_new: int, first_row: int, rows: int, device) -> Tensor:
    """Bool (B, rows, S): slot s is visible to new token i when s < held - num_new + i + 1."""
    held = torch.as_tensor(held, device=device)
    row = torch.arange(first_row, first_row + rows, device=device)
    last = held[:, None] - num_new + row                                               # (B, rows)
    return torch.arange(int(held.max()), device=device) <= last[..., None]


def kernel_applies(q: Tensor, keys: Tensor, values: Tensor) -> bool:
    """Whether the compiled loops can work on these tensors."""
    return (numba is not None and q.device.type == "cpu" and q.dtype == keys.dtype == values.dtype == torch.float32
            and q.is_contiguous() and keys.is_contiguous() and values.is_contiguous())


def _kernel_attention(q: Tensor, keys: Tensor, values: Tensor, held: np.ndarray) -> tuple[Tensor, Tensor]:
    """Output (B, T, H, D) and probabilities (B, T, H, S) of the newest T tokens."""
    threads = share_threads()
    batch, num_new, num_heads, _ = q.shape
    out, probs = torch.empty(q.shape), torch.empty(batch, num_new, num_heads, int(held.max()))
    _attend(q.numpy(), keys.numpy(), values.numpy(), held, _together(q, keys, threads), probs.numpy(), out.numpy())
    return out, probs


@compiled()
def _attend(q, keys, values, held, together, probs, out):
    """One task is `together` query heads of one KV head, so that they read its keys and values once."""
    num_kv_heads, group = keys.shape[1], q.shape[2] // keys.shape[1]
    per_head = group // together
    for task in prange(keys.shape[0] * num_kv_heads * per_head):
        b, k = task // (num_kv_heads * per_head), task // per_head % num_kv_heads
        first = k * group + task % per_head * together
        _attend_heads(q[b], keys[b, k], values[b, k], held[b], first, first + together, probs[b], out[b])


@compiled(parallel=False)
def _attend_heads(q, keys, values, held, first, end, probs, out):
    """Query heads first..end of the newest T tokens of one sequence: scores, softmax and mix over `held` slots."""
    num_new, _, head_dim = q.shape
    scale = np.float32(1 / np.sqrt(head_dim))
    n = held // 4                                        # four streams far apart, as for weights: see `kernels`
    for s in range(n):
        k0, k1, k2, k3 = keys[s], keys[s + n], keys[s + 2 * n], keys[s + 3 * n]
        for t in range(num_new):
            for h in range(first, end):
                query, to = q[t, h], probs[t, h]
                a0 = a1 = a2 = a3 = np.float32(0)
                for d in range(head_dim):
                    x = query[d]
                    a0 += x * k0[d]
                    a1 += x * k1[d]
                    a2 += x * k2[d]
                    a3 += x * k3[d]
                to[s], to[s + n], to[s + 2 * n], to[s + 3 * n] = a0 * scale, a1 * scale, a2 * scale, a3 * scale
    for s in range(4 * n, held):
        for t in range(num_new):
            for h in range(first, end):
                query, key, a0 = q[t, h], keys[s], np.float32(0)
                for d in range(head_dim):
                    a0 += query[d] * key[d]
                probs[t, h, s] = a0 * scale
    for t in range(num_new):
        for h in range(first, end):
            _softmax(probs[t, h], held - num_new + t + 1)
            out[t, h] = 0
    for s in range(n):
        v0, v1, v2, v3 = values[s], values[s + n], values[s + 2 * n], values[s + 3 * n]
        for t in range(num_new):
            for h in range(first, end):
                row, total = probs[t, h], out[t, h]
                p0, p1, p2, p3 = row[s], row[s + n], row[s + 2 * n], row[s + 3 * n]
                for d in range(head_dim):
                    total[d] += p0 * v0[d] + p1 * v1[d] + p2 * v2[d] + p3 * v3[d]
    for s in range(4 * n, held):
        for t in range(num_new):
            for h in range(first, end):
                p0, value, total = probs[t, h, s], values[s], out[t, h]
                for d in range(head_dim):
                    total[d] += p0 * value[d]


@compiled(parallel=False)
def _softmax(row, count):
    """In place over the first `count` numbers; what lies beyond is not visible and becomes exactly 0."""
    highest = row[0]
    for s in range(count):
        highest = max(highest, row[s])
    total = np.float32(0)
    for s in range(count):
        p = exp(row[s] - highest)
        row[s] = p
        total += p
    share = np.float32(1) / total
    for s in range(count):
        row[s] *= share
    row[count:] = 0


def store(k: Tensor, v: Tensor, positions: Tensor, held: np.ndarray, keys: Tensor, values: Tensor,
          slot_positions: Tensor) -> None:
    """Writes new keys and values (B, T, K, D) and positions (B, T) behind the `held[b]` slots in use."""
    _store(k.numpy(), v.numpy(), positions.numpy(), held, keys.numpy(), values.numpy(), slot_positions.numpy())


def store_and_attend(q: np.ndarray, k: np.ndarray, v: np.ndarray, positions: np.ndarray, held: np.ndarray,
                     keys: np.ndarray, values: np.ndarray, slot_positions: np.ndarray, threads: int) -> np.ndarray:
    """`store` into slots that are there, then attention of the T new tokens: output (B, T, H, D)."""
    out = np.empty(q.shape, np.float32)
    probs = np.empty((*q.shape[:3], int(held.max()) + q.shape[1]), np.float32)
    _store_and_attend(q, k, v, positions, held, keys, values, slot_positions, _together(q, keys, threads), probs, out)
    return out


def _together(q, keys, threads: int) -> int:
    """Query heads of one task: all that share a KV head, or single ones where tasks are too few to share out."""
    tasks, group = keys.shape[0] * keys.shape[1], q.shape[2] // keys.shape[1]
    return group if tasks % threads == 0 or tasks >= 4 * threads else 1


@compiled()
def _store_and_attend(q, k, v, positions, held, keys, values, slot_positions, together, probs, out):
    _store(k, v, positions, held, keys, values, slot_positions)
    num_kv_heads, group = keys.shape[1], q.shape[2] // keys.shape[1]
    per_head = group // together
    for task in prange(keys.shape[0] * num_kv_heads * per_head):
        b, h = task // (num_kv_heads * per_head), task // per_head % num_kv_heads
        first = h * group + task % per_head * together
        _attend_heads(q[b], keys[b, h], values[b, h], held[b] + q.shape[1], first, first + together, probs[b], out[b])


@compiled(parallel=False)
def _store(k, v, positions, held, keys, values, slot_positions):
    for b in range(k.shape[0]):
        for t in range(k.shape[1]):
            slot = held[b] + t
            for h in range(k.shape[2]):
                slot_positions[b, h, slot] = positions[b, t]
                for d in range(k.shape[3]):
                    keys[b, h, slot, d] = k[b, t, h, d]
                    values[b, h, slot, d] = v[b, t, h, d]


def move_newest(keys: Tensor, values: Tensor, positions: Tensor, slots: Tensor) -> Tensor:
    """The newest slot of every KV head moves into the one slot that `slots` (B, K, kept), ascending, leaves out.

    Returns the holes, (B, K, 1). All but one of kept + 1 slots stay, so what lies behind the hole is one higher.
    """
    hole = np.empty((*slots.shape[:2], 1), np.int64)
    _move_newest(keys.numpy(), values.numpy(), positions.numpy(), slots.numpy(), hole)
    return torch.from_numpy(hole)


@compiled(parallel=False)
def _move_newest(keys, values, positions, slots, holes):
    last = slots.shape[2]
    for b in range(keys.shape[0]):
        for h in range(keys.shape[1]):
            low, high = 0, last                            # the first place whose slot is not its own number
            while low < high:
                middle = (low + high) // 2
                if slots[b, h, middle] > middle:
                    high = middle
                else:
                    low = middle + 1
            holes[b, h, 0] = low
            positions[b, h, low] = positions[b, h, last]
            for d in range(keys.shape[3]):
                keys[b, h, low, d] = keys[b, h, last, d]
                values[b, h, low, d] = values[b, h, last, d]
