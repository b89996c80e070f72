"""Exercise on FlexTok: dropping registers so that what matters most moves to the front."""
import torch
from torch import Tensor

from frugal.explore.exercises import Exercise, wrong

__all__ = ["EXERCISES", "nested_dropout"]


def nested_dropout_solution(registers: Tensor, keep: Tensor, mask: Tensor) -> Tensor:
    """The first keep[b] registers of picture b, the mask vector in all places behind."""
    kept = torch.arange(registers.shape[1])[None] < keep[:, None]                          # (B, R)
    return torch.where(kept[..., None], registers, mask)


def _check_dropout(answer) -> None:
    generator = torch.Generator().manual_seed(0)
    for batch, count, keep in [(1, 4, [2]), (3, 4, [1, 4, 2]), (2, 8, [8, 0]), (4, 16, [1, 2, 8, 16])]:
        registers, mask = torch.randn(batch, count, 3, generator=generator), torch.randn(3, generator=generator)
        before = registers.clone()
        got, want = answer(registers, torch.tensor(keep), mask), nested_dropout_solution(before, torch.tensor(keep), mask)
        case = f"{batch} pictures of {count} registers, keep {keep}"
        if not torch.equal(registers, before):
            wrong("the input was changed", "write into a copy: the encoder's output is needed again for the gradient", case)
        _judge(got, want, before, mask, keep, case)
    _check_prefix(answer)


def _judge(got: Tensor, want: Tensor, registers: Tensor, mask: Tensor, keep: list[int], case: str) -> None:
    if got.shape != want.shape:
        wrong(f"got shape {tuple(got.shape)}, expected {tuple(want.shape)}",
              "the length stays: dropped registers are overwritten, not cut off", case)
    if torch.allclose(got, want):
        return
    for b, k in enumerate(keep):
        if k < registers.shape[1] and torch.allclose(got[b, :k], registers[b, :k]) and not got[b, k:].any():
            wrong(f"picture {b} has zeros behind its first {k}",
                  "the learned mask vector stands for a dropped register; zero may be a code", case)
    for b, k in enumerate(keep):
        if 0 < k < registers.shape[1] and torch.allclose(got[b, -k:], registers[b, -k:]):
            wrong(f"picture {b} kept its last {k}", "a prefix is kept: what is dropped stands at the end", case)
    if len(keep) > 1 and len(set(keep)) > 1:
        for k in set(keep):
            same = nested_dropout_solution(registers, torch.full((len(keep),), k), mask)
            if torch.allclose(got, same):
                wrong(f"every picture kept {k}", "each picture of the batch has a count of its own", case)
    off = nested_dropout_solution(registers, torch.tensor(keep) + 1, mask)
    if torch.allclose(got, off):
        wrong("one register too many is kept", "keep = k leaves the places 0..k - 1", case)
    wrong("values differ from the kept prefix with the mask vector behind", "compare arange(R) with keep, picture by picture", case)


def _check_prefix(answer) -> None:
    """Causality: nothing behind the cut may reach the result."""
    generator = torch.Generator().manual_seed(1)
    registers, other = torch.randn(2, 1, 8, 3, generator=generator)
    mask = torch.zeros(3)
    for k in (1, 3, 8):
        mixed = torch.cat([registers[:, :k], other[:, k:]], 1)
        if not torch.equal(answer(registers, torch.tensor([k]), mask), answer(mixed, torch.tensor([k]), mask)):
            wrong(f"registers behind the first {k} change the result", "what is dropped must leave no trace")
    _check_error(answer)


def _check_error(answer) -> None:
    """With coefficients of an orthonormal basis as registers, every register that is kept lowers the error."""
    generator = torch.Generator().manual_seed(2)
    basis, _ = torch.linalg.qr(torch.randn(8, 8, generator=generator))
    points = torch.randn(20, 8, generator=generator)
    registers = (points @ basis)[..., None]                                                # (B, R, 1)
    errors = [float((answer(registers, torch.full((20,), k), torch.zeros(1))[..., 0] @ basis.T - points).square().sum())
              for k in range(9)]
    if any(after > before + 1e-4 for before, after in zip(errors, errors[1:])):
        wrong(f"errors for 0..8 kept registers: {[round(e, 2) for e in errors]}", "one more register may never make the picture worse here")


def _cut_off(registers: Tensor, keep: Tensor, mask: Tensor) -> Tensor:
    return registers[:, :int(keep.max())]


def _zeros(registers: Tensor, keep: Tensor, mask: Tensor) -> Tensor:
    return nested_dropout_solution(registers, keep, torch.zeros_like(mask))


def _keeps_the_end(registers: Tensor, keep: Tensor, mask: Tensor) -> Tensor:
    return nested_dropout_solution(registers.flip(1), keep, mask).flip(1)


def _one_for_all(registers: Tensor, keep: Tensor, mask: Tensor) -> Tensor:
    return nested_dropout_solution(registers, keep[:1].expand(len(keep)), mask)


def _one_more(registers: Tensor, keep: Tensor, mask: Tensor) -> Tensor:
    return nested_dropout_solution(registers, keep + 1, mask)


def _in_place(registers: Tensor, keep: Tensor, mask: Tensor) -> Tensor:
    for b, k in enumerate(keep.tolist()):
        registers[b, k:] = mask
    return registers


nested_dropout = Exercise(
    key="nested_dropout",
    title="Nested dropout",
    prompt="`registers` (B, R, d) are a batch of register outputs, `keep` (B,) says how many of them each picture keeps, "
    "`mask` (d,) is a learned vector. Return the registers with all but the first `keep[b]` of picture b overwritten by "
    "`mask`, without changing the input. Nothing behind the cut may reach the result: the check swaps it and compares bit "
    "for bit.",
    stub="def nested_dropout(registers, keep, mask):\n    raise NotImplementedError  # yours: a tensor of the same shape",
    test=_check_dropout,
    hints=("`torch.arange(R) < keep[:, None]` is true where a register is kept.",
           "`torch.where(kept[..., None], registers, mask)` broadcasts the mask vector."),
    difficulty=1,
    minutes=8,
    reference=nested_dropout_solution,
    wrong=[(_cut_off, "the length stays"), (_zeros, "learned mask vector"), (_keeps_the_end, "a prefix is kept"),
           (_one_for_all, "a count of its own"), (_one_more, "places 0..k - 1"), (_in_place, "write into a copy")],
)

EXERCISES = [nested_dropout]
