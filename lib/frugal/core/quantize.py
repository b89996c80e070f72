"""Asymmetric round-to-nearest quantisation, with codes that are really packed into bytes.

One quantiser serves the mixed-precision KV cache and the weight notebooks: a group of `group` neighbouring
numbers along the last dimension shares one fp16 scale and one fp16 lowest value.

Source: arXiv 2402.18096 (MiKV), the asymmetric quantiser with scale alpha and offset beta.
Differs: scale and offset are rounded to fp16 *outwards*, so that the grid still covers the whole group and the
error of every element stays within half a step, which rounding to nearest would break.
"""
from dataclasses import dataclass

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

PACKED_BITS = (2, 3, 4, 8)          # widths that quantise and pack
FLOAT_BITS = (16, 32)               # widths that only change the float type
SCALE_BYTES = 4                     # one group: fp16 scale + fp16 lowest value
HALF_MAX = 65504.0


def pack_bits(codes: UInt8[Tensor, "*lead count"], bits: int) -> UInt8[Tensor, "*lead packed"]:
    """Codes 0 .. 2**bits-1 written densely into bytes along the last dimension, first code in the lowest bits.

    2 bits: four codes a byte; 4 bits: two; 3 bits: eight codes in three bytes; 8 bits: as they are.
    The last dimension is padded with zero codes to a whole number of bytes (3 bits: of three bytes).
    Raises ValueError for another width, or a code that does not fit.
    """
    per, size = _layout(bits)
    if codes.numel() and int(codes.max()) >= 1 << bits:
        raise ValueError(f"code {int(codes.max())} does not fit into {bits} bits (0..{(1 << bits) - 1})")
    if bits == 8:
        return codes.clone()
    short = -codes.shape[-1] % per
    if short:
        codes = torch.nn.functional.pad(codes, (0, short))
    lanes = codes.unflatten(-1, (codes.shape[-1] // per, per)).to(torch.int32)
    shifts = torch.arange(per, device=codes.device, dtype=torch.int32) * bits
    word = (lanes << shifts).sum(-1, dtype=torch.int32)                    # disjoint bits: the sum is an "or"
    out = torch.arange(size, device=codes.device, dtype=torch.int32) * 8
    return ((word[..., None] >> out) & 255).to(torch.uint8).flatten(-2)


def unpack_bits(packed: UInt8[Tensor, "*lead packed"], bits: int, count: int) -> UInt8[Tensor, "*lead count"]:
    """The first `count` codes back, bit for bit. Raises ValueError when the bytes hold fewer codes."""
    per, size = _layout(bits)
    if packed.shape[-1] % size or count > packed.shape[-1] // size * per:
        raise ValueError(f"{packed.shape[-1]} bytes cannot hold {count} codes of {bits} bits")
    if bits == 8:
        return packed[..., :count].clone()
    if bits == 3:                                                          # bytes only: int32 words take ten times as long
        a, b, c = packed.unflatten(-1, (packed.shape[-1] // 3, 3)).unbind(-1)
        codes = [a & 7, (a >> 3) & 7, (a >> 6) | ((b & 1) << 2), (b >> 1) & 7, (b >> 4) & 7, (b >> 7) | ((c & 3) << 1),
                 (c >> 2) & 7, c >> 5]
    else:
        codes = [(packed >> shift) & ((1 << bits) - 1) for shift in range(0, 8, bits)]
    return torch.stack(codes, -1).flatten(-2)[..., :count]


def packed_bytes(count: int, bits: int) -> int:
    """Bytes that `count` codes of `bits` bits take, padding included."""
    per, size = _layout(bits)
    return -(-count // per) * size


@dataclass(frozen=True)
class Code:
    """Quantised numbers: packed codes, and one fp16 scale and lowest value a group.

    packed (..., bytes of one row), scale and low (..., groups); `shape` is that of the numbers.
    """
    packed: UInt8[Tensor, "*lead packed"]
    scale: Float[Tensor, "*lead groups"]
    low: Float[Tensor, "*lead groups"]
    bits: int
    group: int
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        """Bytes of the three tensors (real storage, not the formula)."""
        return sum(x.untyped_storage().nbytes() for x in (self.packed, self.scale, self.low))

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Float[Tensor, "*shape"]:
        """The numbers back, each within half a `scale` of what went in."""
        return decode(self.packed, self.scale, self.low, self.bits, self.shape[-1], dtype)


def quantize_asym(x: Float[Tensor, "*lead size"], bits: int, group: int | None = None) -> Code:
    """Round-to-nearest on the grid low + scale * (0 .. 2**bits-1), one grid for each group of the last dimension.

    group: numbers that share a grid; None = the whole last dimension.
    Raises ValueError for a width other than 2, 3, 4, 8, a group that does not divide, and values that are not
    finite or beyond what fp16 scales can hold.
    Source: arXiv 2402.18096; scale = (max - min) / (2**bits - 1), low = min.
    """
    _layout(bits)
    size = x.shape[-1]
    group = size if group is None else group
    if group < 1 or size % group:
        raise ValueError(f"group of {group} does not divide the last dimension of {size}")
    grouped = x.float().reshape(*x.shape[:-1], size // group, group)
    least, most = grouped.amin(-1), grouped.amax(-1)
    bound = float(torch.maximum(least.abs().max(), most.abs().max())) if x.numel() else 0.0
    if not bound <= HALF_MAX / 2:                                          # also catches NaN and infinity
        raise ValueError(f"cannot quantise a largest magnitude of {bound}: allowed are finite values up to {HALF_MAX / 2:g}")
    low = _half(least, up=False)
    scale = _half((most - low.float()) / ((1 << bits) - 1), up=True)
    step = torch.where(scale > 0, scale.float(), torch.ones_like(least))   # a constant group: every code is 0
    codes = ((grouped - low.float()[..., None]) / step[..., None]).round().clamp(0, (1 << bits) - 1)
    packed = pack_bits(codes.to(torch.uint8).flatten(-2), bits)
    return Code(packed, scale, low, bits, group, tuple(x.shape))


def decode(packed: UInt8[Tensor, "*lead packed"], scale: Float[Tensor, "*lead groups"], low: Float[Tensor, "*lead groups"],
           bits: int, size: int, dtype: torch.dtype = torch.float32) -> Float[Tensor, "*lead size"]:
    """low + scale * code, for any slice of the rows of a Code."""
    codes = unpack_bits(packed, bits, size)
    groups = scale.shape[-1]
    codes = codes.reshape(*codes.shape[:-1], groups, size // groups).to(dtype)
    return torch.addcmul(low.to(dtype)[..., None], codes, scale.to(dtype)[..., None]).flatten(-2)


def row_bytes(size: int, bits: int, group: int | None = None) -> int:
    """Bytes of one row of `size` numbers: codes plus 4 bytes a group; a plain cast for 16 and 32 bits."""
    if bits in FLOAT_BITS:
        return size * bits // 8
    return packed_bytes(size, bits) + SCALE_BYTES * (size // (group or size))


def effective_bits(size: int, bits: int, group: int | None = None) -> float:
    """Bits stored per number, scales included (64 numbers at 2 bits in one group: 2.5)."""
    return row_bytes(size, bits, group) * 8 / size


def _half(x: Tensor, up: bool) -> Tensor:
    """fp16 that is never below (up) or never above (down) x."""
    half = x.half()
    far = torch.full_like(half, float("inf") if up else float("-inf"))
    wrong = (half.float() < x) if up else (half.float() > x)
    return torch.where(wrong, torch.nextafter(half, far), half)


def _layout(bits: int) -> tuple[int, int]:
    """(codes in one word, bytes of that word)."""
    layouts = {2: (4, 1), 3: (8, 3), 4: (2, 1), 8: (1, 1)}
    if bits not in layouts:
        raise ValueError(f"{bits} bits: allowed are {', '.join(map(str, PACKED_BITS))}")
    return layouts[bits]
