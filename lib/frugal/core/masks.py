"""Which token may look at which: boolean attention masks (T, T), true where the row's token sees the column's.

Pure functions of the token counts; a test compares each with a double loop. `models.trunk` takes them as `mask`.

Source: arXiv 2502.13967 (FlexTok), section 3.1, for the prefix mask; arXiv 2509.23736 (HieraTok), abstract, for the
scale-causal one.
"""
from collections.abc import Sequence

import torch
from jaxtyping import Bool
from torch import Tensor


def _whole(name: str, value: int, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")
    return value


def prefix_causal(num_patches: int, num_registers: int) -> Bool[Tensor, "t t"]:
    """Patches first, registers behind: patches see all patches and no register; register i sees all patches and the
    registers 0..i. So a register's state never depends on a later one, and any prefix of registers stands alone.

    >>> prefix_causal(1, 2).int().tolist()
    [[1, 0, 0], [1, 1, 0], [1, 1, 1]]

    Raises ValueError for negative counts, or none at all.
    """
    _whole("num_patches", num_patches, 0), _whole("num_registers", num_registers, 0)
    total = _whole("num_patches + num_registers", num_patches + num_registers, 1)
    mask = torch.ones(total, total, dtype=torch.bool).tril()
    mask[:, :num_patches] = True
    return mask


def scale_causal(counts: Sequence[int]) -> Bool[Tensor, "t t"]:
    """counts: tokens of each scale, coarse to fine. A token sees its own scale and all coarser ones, never a finer one.

    >>> scale_causal([1, 2]).int().tolist()
    [[1, 0, 0], [1, 1, 1], [1, 1, 1]]

    Raises ValueError for no scale or an empty one.
    """
    if not len(counts):
        raise ValueError("counts is empty: give the number of tokens of at least one scale")
    counts = [_whole("each of counts", count, 1) for count in counts]
    scale = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))              # (T,)
    return scale[None, :] <= scale[:, None]


def set_attention_mask(num_instr: int, num_items: int, num_tokens: int, num_resp: int, inside: bool = False) -> Bool[Tensor, "t t"]:
    """Instruction | items of `num_tokens` tokens each | response | `num_tokens` queries: every token sees what stands
    before it, but tokens of one item do not see each other, and queries do not see each other. So the order of the tokens
    within an item says nothing, and each query answers as if it were alone. inside: tokens of one item see each other, both
    ways (a variant to compare with).

    Source: arXiv 2502.10833 (SETRec), section 3.2, the version for decoders.

    >>> set_attention_mask(0, 1, 2, 0).int().tolist()
    [[1, 0, 0, 0], [0, 1, 0, 0], [1, 1, 1, 0], [1, 1, 0, 1]]

    Raises ValueError for negative counts, or no token an item.
    """
    _whole("num_instr", num_instr, 0), _whole("num_items", num_items, 0), _whole("num_resp", num_resp, 0)
    sizes = [1] * num_instr + [_whole("num_tokens", num_tokens, 1)] * num_items + [1] * num_resp + [num_tokens]
    unit = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    same = unit[:, None] == unit if inside else torch.zeros(len(unit), len(unit), dtype=torch.bool)
    same[-num_tokens:] = False
    return (unit[:, None] > unit) | same | torch.eye(len(unit), dtype=torch.bool)
