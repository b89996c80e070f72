"""Exercise on HieraTok: the mask that lets a token see its own scale and coarser ones."""
import torch
from torch import Tensor

from frugal.explore.exercises import Exercise, wrong

__all__ = ["EXERCISES", "scale_causal_mask"]

CASES = ([1, 2], [8], [1, 2, 4], [2, 4], [1, 2, 4, 8])


def scale_causal_mask_solution(scales: list[int]) -> Tensor:
    """(T, T) booleans for maps of s x s tokens, coarse to fine: true where the row's token sees the column's."""
    scale = torch.cat([torch.full((s * s,), at) for at, s in enumerate(scales)])
    return scale[None, :] <= scale[:, None]


def _by_loop(scales: list[int]) -> Tensor:
    """The definition, token by token."""
    scale = [at for at, s in enumerate(scales) for _ in range(s * s)]
    return torch.tensor([[theirs <= mine for theirs in scale] for mine in scale])


def _check_mask(answer) -> None:
    for scales in CASES:
        got, want = answer(list(scales)), _by_loop(scales)
        case = f"scale_causal_mask({scales})"
        if tuple(got.shape) != tuple(want.shape):
            wrong(f"got shape {tuple(got.shape)}, expected {tuple(want.shape)}",
                  "a scale s has s * s tokens, so {1, 2} makes 1 + 4 of them", case)
        if got.dtype != torch.bool:
            wrong(f"got {got.dtype}", "give booleans: true where a token may look", case)
        if torch.equal(got, want):
            continue
        if torch.equal(got, want.T):
            wrong("the mask is turned over", "rows ask, columns answer: a fine row sees coarse columns", case)
        if torch.equal(got, torch.ones_like(want).tril()):
            wrong("a token does not see what stands behind it in its own scale", "inside a scale attention is full, not causal", case)
        if torch.equal(got, want & want.T):
            wrong("only the own scale is seen", "coarser scales are seen as well: that is how layout reaches detail", case)
        if torch.equal(got, ~want):
            wrong("true and false are swapped", "true means may look, as in the rest of the library", case)
        differ = (got != want).nonzero()[0].tolist()
        wrong(f"row {differ[0]}, column {differ[1]} differs", "compare the scales of the two tokens: column <= row", case)
    _check_jacobian(answer)


def _check_jacobian(answer) -> None:
    """Attention under the mask: a coarse output does not move when a finer input does."""
    scales = [1, 2, 4]
    counts, x = [s * s for s in scales], torch.randn(21, 4, generator=torch.Generator().manual_seed(0))

    def attend(values: Tensor) -> Tensor:
        return (values @ values.T).masked_fill(~answer(scales), float("-inf")).softmax(-1) @ values

    jacobian = torch.autograd.functional.jacobian(attend, x)                               # (T, 4, T, 4)
    for level in range(2):
        end = sum(counts[:level + 1])
        if jacobian[:end, :, end:].any():
            wrong(f"scale {scales[level]} moves with a finer one", "its rows must be false at all finer columns")


def _sides(scales: list[int]) -> Tensor:
    scale = torch.cat([torch.full((s,), at) for at, s in enumerate(scales)])
    return scale[None, :] <= scale[:, None]


def _turned(scales: list[int]) -> Tensor:
    return scale_causal_mask_solution(scales).T


def _plain_causal(scales: list[int]) -> Tensor:
    return torch.ones_like(scale_causal_mask_solution(scales)).tril()


def _own_scale(scales: list[int]) -> Tensor:
    mask = scale_causal_mask_solution(scales)
    return mask & mask.T


def _swapped(scales: list[int]) -> Tensor:
    return ~scale_causal_mask_solution(scales)


def _numbers(scales: list[int]) -> Tensor:
    return scale_causal_mask_solution(scales).float()


scale_causal_mask = Exercise(
    key="scale_causal_mask",
    title="A mask from coarse to fine",
    prompt="Maps of `s * s` tokens for every scale `s` of `scales` stand in one sequence, coarse to fine. Return the (T, T) "
    "boolean mask that is true where the row's token may look at the column's: its own scale and all coarser ones. The check "
    "compares with a double loop, then takes the Jacobian of an attention layer: coarse rows must not move with finer inputs.",
    stub="def scale_causal_mask(scales):\n    raise NotImplementedError  # yours: a (T, T) tensor of booleans",
    test=_check_mask,
    hints=("First make a vector with the scale number of each of the T tokens.",
           "`scale[None, :] <= scale[:, None]` compares every column with every row."),
    difficulty=1,
    minutes=8,
    reference=scale_causal_mask_solution,
    wrong=[(_sides, "s * s tokens"), (_turned, "rows ask"), (_plain_causal, "full, not causal"), (_own_scale, "coarser scales are seen"),
           (_swapped, "true means may look"), (_numbers, "give booleans")],
)

EXERCISES = [scale_causal_mask]
