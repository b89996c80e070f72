"""Rows of keys or values held at a chosen width: floats, or packed codes. Grown, thinned and read back in blocks."""
import torch
from jaxtyping import Float, Int
from torch import Tensor

from frugal.core.quantize import FLOAT_BITS, PACKED_BITS, decode, quantize_asym, row_bytes

_FLOATS = {16: torch.float16, 32: torch.float32}


class TokenStore:
    """One grid per token, head and channel group. Slots run along dimension 2 of (B, K, slots, D).

    bits: 2, 3, 4 or 8 (packed codes), 16 or 32 (floats). group: channels that share a scale, None = all.
    """

    def __init__(self, bits: int, dim: int, group: int | None = None):
        if bits not in PACKED_BITS + FLOAT_BITS:
            raise ValueError(f"{bits} bits: allowed are {', '.join(map(str, PACKED_BITS + FLOAT_BITS))}")
        if group is not None and (group < 1 or dim % group):
            raise ValueError(f"group of {group} channels does not divide a head of {dim}")
        self.bits, self.dim, self.group = bits, dim, group
        self.parts: list[Tensor] = []

    def __len__(self) -> int:
        return self.parts[0].shape[2] if self.parts else 0

    def append(self, x: Float[Tensor, "b k n d"]) -> None:
        """Encode and add rows at the end."""
        if x.shape[2] == 0 and self.parts:
            return
        if self.bits in FLOAT_BITS:
            new = [x.to(_FLOATS[self.bits])]
        else:
            code = quantize_asym(x, self.bits, self.group)
            new = [code.packed, code.scale, code.low]
        self.parts = [torch.cat(pair, 2) for pair in zip(self.parts, new)] if self.parts else [x.contiguous() for x in new]

    def keep(self, slots: Int[Tensor, "b k kept"]) -> None:
        """Keep these rows alone; the storage of the others is freed."""
        self.parts = [_take(x, slots) for x in self.parts]

    def rows(self, slots: Int[Tensor, "b k n"], dtype: torch.dtype = torch.float32) -> Float[Tensor, "b k n d"]:
        """Chosen rows as floats."""
        return self._floats([_take(x, slots) for x in self.parts], dtype)

    def block(self, first: int, last: int, dtype: torch.dtype = torch.float32) -> Float[Tensor, "b k n d"]:
        """Rows first..last-1 as floats."""
        return self._floats([x[:, :, first:last] for x in self.parts], dtype)

    def bytes_per_row(self) -> int:
        """The formula: bytes of one row of one head."""
        return row_bytes(self.dim, self.bits, self.group)

    def _floats(self, parts: list[Tensor], dtype: torch.dtype) -> Tensor:
        if self.bits in FLOAT_BITS:
            return parts[0].to(dtype)
        return decode(*parts, self.bits, self.dim, dtype)


class ChannelStore:
    """One grid per channel over `span` tokens, as KIVI stores keys. The newest rows wait in fp16 for a full span.

    Source: arXiv 2402.02750 (KIVI), section 3; span: tokens that share a scale.
    """

    def __init__(self, bits: int, dim: int, span: int = 32):
        if bits not in PACKED_BITS:
            raise ValueError(f"{bits} bits per channel: allowed are {', '.join(map(str, PACKED_BITS))}")
        self.bits, self.dim, self.span = bits, dim, span
        self.spans: list[Tensor] = []                                        # packed, scale, low: (B, K, spans, D, .)
        self.waiting: Tensor | None = None

    @property
    def parts(self) -> list[Tensor]:
        return self.spans + ([] if self.waiting is None else [self.waiting])

    def __len__(self) -> int:
        full = self.spans[0].shape[2] * self.span if self.spans else 0
        return full + (0 if self.waiting is None else self.waiting.shape[2])

    def append(self, x: Float[Tensor, "b k n d"]) -> None:
        """Add rows at the end; full spans are quantised at once."""
        x = x if self.waiting is None else torch.cat([self.waiting.to(x.dtype), x], 2)
        full = x.shape[2] // self.span * self.span
        self.waiting = x[:, :, full:].to(torch.float16).clone()
        if not full:
            return
        code = quantize_asym(x[:, :, :full].unflatten(2, (-1, self.span)).mT.contiguous(), self.bits)
        new = [code.packed, code.scale, code.low]
        self.spans = [torch.cat(pair, 2) for pair in zip(self.spans, new)] if self.spans else new

    def block(self, first: int, last: int, dtype: torch.dtype = torch.float32) -> Float[Tensor, "b k n d"]:
        """Rows first..last-1 as floats; whole spans are decoded and cut."""
        full = self.spans[0].shape[2] * self.span if self.spans else 0
        out = []
        if first < full:
            a, b = first // self.span, -(-min(last, full) // self.span)
            packed, scale, low = (x[:, :, a:b] for x in self.spans)
            rows = decode(packed, scale, low, self.bits, self.span, dtype).mT.flatten(2, 3)
            out.append(rows[:, :, first - a * self.span:min(last, full) - a * self.span])
        if last > full:
            out.append(self.waiting[:, :, max(0, first - full):last - full].to(dtype))
        return out[0] if len(out) == 1 else torch.cat(out, 2)

    def bytes_per_row(self) -> float:
        """The formula for rows of full spans: codes, and one scale and low a channel, shared by the span."""
        return self.dim * row_bytes(self.span, self.bits) / self.span


def _take(x: Tensor, slots: Tensor) -> Tensor:
    return x.gather(2, slots[..., None].expand(*slots.shape, x.shape[-1]))
