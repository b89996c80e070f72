"""The compiled loops of a decoding step: products of a few rows with a weight, norm, rotation, activation.

All are bound by reading weights, so each weight is read once for all rows, and what lies between two products runs
in the same call. Everything here is plain NumPy code that also runs uncompiled; `linear` and `fused` decide when.

Each thread reads its share of a weight as four streams far apart: four hardware prefetchers run ahead of it, which
is worth up to twice the bandwidth of one stream. Sums stay in registers. Rows of the weight left over are few.

Shapes: N rows (padded to M, see `padded_rows`), I in, O out, H query heads, K KV heads, D head dim. All arrays fp32.
The helpers are compiled without `parallel`, which would turn each small array expression into a parallel region.
"""
import numpy as np

from frugal.core.compiled import compiled, prange


@compiled(parallel=False)
def padded_rows(rows):
    """Rows the product kernels work on: 1, 2 or whole tiles of four (extra rows cost no weight traffic)."""
    return rows if rows <= 2 else (rows + 3) // 4 * 4


@compiled()
def product(w, x, out, threads):
    """out (M, O) = x (M, I) @ w (O, I).T, for M as given by `padded_rows`."""
    for t in prange(threads):
        _share(w, x, out, t, threads)


@compiled(parallel=False)
def _share(w, x, out, t, threads):
    """The rows of `out` that thread t computes."""
    if x.shape[0] == 1:
        _one_row(w, x[0], out[0], t, threads)
    elif x.shape[0] == 2:
        _two_rows(w, x[0], x[1], out, t, threads)
    else:
        _tiles_of_four(w, x, out, t, threads)
    if t == 0:
        _left_over(w, x, out, w.shape[0] // (4 * threads) * 4 * threads)


@compiled(parallel=False)
def _left_over(w, x, out, first):
    """The rows of the weight that do not fill four streams a thread."""
    for o in range(first, w.shape[0]):
        for r in range(x.shape[0]):
            a = np.float32(0)
            for i in range(w.shape[1]):
                a += w[o, i] * x[r, i]
            out[r, o] = a


@compiled(parallel=False)
def _one_row(w, x, out, t, threads):
    q = w.shape[0] // (4 * threads)
    for j in range(4 * t * q, 4 * t * q + q):
        w0, w1, w2, w3 = w[j], w[j + q], w[j + 2 * q], w[j + 3 * q]
        a = b = c = d = np.float32(0)
        for i in range(w.shape[1]):
            u = x[i]
            a += w0[i] * u
            b += w1[i] * u
            c += w2[i] * u
            d += w3[i] * u
        out[j], out[j + q], out[j + 2 * q], out[j + 3 * q] = a, b, c, d


@compiled(parallel=False)
def _two_rows(w, x0, x1, out, t, threads):
    q = w.shape[0] // (4 * threads)
    for j in range(4 * t * q, 4 * t * q + q):
        w0, w1, w2, w3 = w[j], w[j + q], w[j + 2 * q], w[j + 3 * q]
        a0 = a1 = b0 = b1 = c0 = c1 = d0 = d1 = np.float32(0)
        for i in range(w.shape[1]):
            u, v = x0[i], x1[i]
            a0 += w0[i] * u
            a1 += w0[i] * v
            b0 += w1[i] * u
            b1 += w1[i] * v
            c0 += w2[i] * u
            c1 += w2[i] * v
            d0 += w3[i] * u
            d1 += w3[i] * v
        out[0, j], out[0, j + q], out[0, j + 2 * q], out[0, j + 3 * q] = a0, b0, c0, d0
        out[1, j], out[1, j + q], out[1, j + 2 * q], out[1, j + 3 * q] = a1, b1, c1, d1


@compiled(parallel=False)
def _tiles_of_four(w, x, out, t, threads):
    q = w.shape[0] // (4 * threads)
    for j in range(4 * t * q, 4 * t * q + q):
        w0, w1, w2, w3 = w[j], w[j + q], w[j + 2 * q], w[j + 3 * q]
        for r in range(0, x.shape[0], 4):
            x0, x1, x2, x3 = x[r], x[r + 1], x[r + 2], x[r + 3]
            a0 = a1 = a2 = a3 = b0 = b1 = b2 = b3 = np.float32(0)
            c0 = c1 = c2 = c3 = d0 = d1 = d2 = d3 = np.float32(0)
            for i in range(w.shape[1]):
                s0, s1, s2, s3 = x0[i], x1[i], x2[i], x3[i]
                v = w0[i]
                a0 += v * s0
                a1 += v * s1
                a2 += v * s2
                a3 += v * s3
                v = w1[i]
                b0 += v * s0
                b1 += v * s1
                b2 += v * s2
                b3 += v * s3
                v = w2[i]
                c0 += v * s0
                c1 += v * s1
                c2 += v * s2
                c3 += v * s3
                v = w3[i]
                d0 += v * s0
                d1 += v * s1
                d2 += v * s2
                d3 += v * s3
            out[r, j], out[r + 1, j], out[r + 2, j], out[r + 3, j] = a0, a1, a2, a3
            k = j + q
            out[r, k], out[r + 1, k], out[r + 2, k], out[r + 3, k] = b0, b1, b2, b3
            k = j + 2 * q
            out[r, k], out[r + 1, k], out[r + 2, k], out[r + 3, k] = c0, c1, c2, c3
            k = j + 3 * q
            out[r, k], out[r + 1, k], out[r + 2, k], out[r + 3, k] = d0, d1, d2, d3


@compiled(parallel=False)
def exp(x):
    """e^x for one fp32 number, clamped to the fp32 range; within 2e-7, and written so that it vectorizes."""
    x = min(max(x, np.float32(-87)), np.float32(88))
    n = np.floor(x * np.float32(1.4426950408889634) + np.float32(0.5))
    f = x - n * np.float32(0.6931471805599453)                     # in -0.35..0.35: seven terms are enough
    p = np.float32(1 / 5040)
    p = p * f + np.float32(1 / 720)
    p = p * f + np.float32(1 / 120)
    p = p * f + np.float32(1 / 24)
    p = p * f + np.float32(1 / 6)
    p = p * f + np.float32(0.5)
    p = p * f + np.float32(1)
    p = p * f + np.float32(1)
    return p * np.int32((np.int32(n) + np.int32(127)) << np.int32(23)).view(np.float32)


@compiled(parallel=False)
def log(x):
    """Natural logarithm of one fp32 number above 0, within 3e-7 (absolute or relative), written so that it vectorizes.

    x = m * 2^e with m within a factor sqrt(2) of 1; log m is the series of 2 artanh((m - 1) / (m + 1)).
    """
    bits = np.float32(x).view(np.int32)
    e = np.int32(np.int32(bits - np.int32(0x3F3504F3)) >> np.int32(23))         # the constant is sqrt(1/2)
    m = np.int32(bits - np.int32(e << np.int32(23))).view(np.float32)
    t = (m - np.float32(1)) / (m + np.float32(1))
    square = t * t
    p = np.float32(2 / 9)                                          # square is below 0.03: five terms are enough
    p = p * square + np.float32(2 / 7)
    p = p * square + np.float32(2 / 5)
    p = p * square + np.float32(2 / 3)
    p = p * square + np.float32(2)
    return np.float32(e) * np.float32(0.6931471805599453) + t * p


@compiled(parallel=False)
def _matrix(rows, columns):
    return np.zeros((rows, columns), np.float32)


@compiled(parallel=False)
def _normed(x, weight, eps):
    """RMSNorm of x (N, I), padded to (M, I)."""
    rows, width = x.shape
    out = np.zeros((padded_rows(rows), width), np.float32)
    for r in range(rows):
        row, to = x[r], out[r]
        total = np.float32(0)
        for i in range(width):
            total += row[i] * row[i]
        scale = np.float32(1) / np.sqrt(total / np.float32(width) + np.float32(eps))
        for i in range(width):
            to[i] = row[i] * scale * weight[i]
    return out


@compiled(parallel=False)
def _padded(x):
    rows = padded_rows(x.shape[0])
    if rows == x.shape[0]:
        return x
    out = np.zeros((rows, x.shape[1]), np.float32)
    out[:x.shape[0]] = x
    return out


@compiled(parallel=False)
def _rotated(source, cos, sin, out):
    """Rotary positions: out (heads, D) from source (heads * D,), tables (D,), rotate-half convention."""
    half = out.shape[1] // 2
    for h in range(out.shape[0]):
        row, to = source[2 * half * h:2 * half * (h + 1)], out[h]
        for d in range(half):
            to[d] = row[d] * cos[d] - row[d + half] * sin[d]
            to[d + half] = row[d + half] * cos[d + half] + row[d] * sin[d + half]


@compiled(parallel=False)
def _split_heads(qkv, cos, sin, q, k, v):
    """Rows of (M, (H + 2K) D) into rotated q (N, H, D) and k (N, K, D), and v (N, K, D) as it is."""
    for r in range(q.shape[0]):
        end_q, end_k = q[r].size, q[r].size + k[r].size
        _rotated(qkv[r, :end_q], cos[r], sin[r], q[r])
        _rotated(qkv[r, end_q:end_k], cos[r], sin[r], k[r])
        v[r] = qkv[r, end_k:].reshape(v[r].shape)


@compiled(parallel=False)
def _activated(gate_up):
    """SwiGLU: silu(gate) * up for (M, 2F), gate first."""
    width = gate_up.shape[1] // 2
    out = np.empty((gate_up.shape[0], width), np.float32)
    for r in range(gate_up.shape[0]):
        gate, up, to = gate_up[r, :width], gate_up[r, width:], out[r]
        for i in range(width):
            to[i] = gate[i] / (np.float32(1) + exp(-gate[i])) * up[i]
    return out


@compiled(parallel=False)
def _add(x, y, out):
    for r in range(x.shape[0]):
        a, b, to = x[r], y[r], out[r]
        for i in range(x.shape[1]):
            to[i] = a[i] + b[i]


@compiled()
def norm_product(x, norm, eps, w, out, threads):
    """out (M, O) = RMSNorm(x (N, I)) @ w.T; rows from N on are scratch."""
    normed = _normed(x, norm, eps)
    for t in prange(threads):
        _share(w, normed, out, t, threads)


@compiled()
def before_attention(x, norm, eps, w, cos, sin, q, k, v, threads):
    """First half of a layer for x (N, I): norm, product with the fused qkv weight, rotation; fills q, k and v."""
    normed = _normed(x, norm, eps)
    qkv = _matrix(normed.shape[0], w.shape[0])
    for t in prange(threads):
        _share(w, normed, qkv, t, threads)
    _split_heads(qkv, cos, sin, q, k, v)


@compiled()
def after_attention(x, mixed, o, norm, eps, gate_up, down, out, threads):
    """Second half: out (N, I) = x + mixed @ o.T, plus the MLP of that. mixed: attention output (N, H * D)."""
    mixed = _padded(mixed)
    y = _matrix(mixed.shape[0], o.shape[0])
    for t in prange(threads):
        _share(o, mixed, y, t, threads)
    _add(x, y, out)
    normed = _normed(out, norm, eps)
    wide = _matrix(normed.shape[0], gate_up.shape[0])
    for t in prange(threads):
        _share(gate_up, normed, wide, t, threads)
    active = _activated(wide)
    for t in prange(threads):
        _share(down, active, y, t, threads)
    _add(out, y, out)
