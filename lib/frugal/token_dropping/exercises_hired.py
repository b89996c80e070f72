"""Exercise on HiRED: sharing out a token budget among the views."""
import torch
from torch import Tensor

from frugal.explore.exercises import Exercise, wrong
from frugal.models.mini_vlm import Grid
from frugal.token_dropping.hired import allocate_budget as reference_budget

__all__ = ["EXERCISES", "allocate_budget"]

GRID = Grid(2, 2, 8, 8)


def _reference(attn0: Tensor, budget: int, alpha: float) -> list[int]:
    return reference_budget(attn0, GRID, budget, alpha, score="mass").tolist()


def _planted(tile: int, share: float = 0.7) -> Tensor:
    """Attention with a bright object in one tile: rows and columns 1-2 of its 4 x 4 region."""
    attn0 = torch.full((8, 8), (1 - share) / 64)
    row, col = 4 * (tile // 2) + 1, 4 * (tile % 2) + 1
    attn0[row:row + 2, col:col + 2] += share / 4
    return attn0.flatten()


def _check(answer) -> None:
    for tile in (1, 2, 0, 3):
        for budget, alpha in [(64, 0.5), (32, 0.5), (45, 0.25)]:
            attn0 = _planted(tile)
            case = f"budget_of_views(<object in tile {tile}>, {budget}, {alpha})"
            got = [int(n) for n in answer(attn0.clone(), budget, alpha)]
            if len(got) != 5:
                wrong(f"got {len(got)} numbers, expected 5",
                      "one number a view: the overview first, then the four tiles", case)
            _explain(got, _reference(attn0, budget, alpha), tile, budget, case)
    flat = torch.full((64,), 1 / 64)
    got = [int(n) for n in answer(flat, 64, 0.5)]
    if got != [32, 8, 8, 8, 8]:
        wrong(f"constant attention: got {got}, expected [32, 8, 8, 8, 8]",
              "no region claims more than another: tiles share alike")
    draw = torch.Generator().manual_seed(0)
    for budget in (16, 47, 101, 160):
        attn0 = torch.randn(64, generator=draw).softmax(-1)
        got, want = [int(n) for n in answer(attn0.clone(), budget, 0.5)], _reference(attn0, budget, 0.5)
        if max(abs(a - b) for a, b in zip(got, want)) > 1 or sum(got) != budget:
            _explain(got, want, -1, budget, f"budget_of_views(<random attention>, {budget}, 0.5)")


def _explain(got: list[int], want: list[int], tile: int, budget: int, case: str) -> None:
    said = f"got {got}, expected {want}"
    if got == want:
        return
    if 0 < budget - sum(got) < 5:
        wrong(f"{said}: {sum(got)} of {budget} tokens",
              "floors lose tokens: hand those that are left to the largest remainders", case)
    if sum(got) > budget:
        wrong(f"{said}: {sum(got)} of {budget} tokens", "the overview's share comes out of the same budget", case)
    if got[0] != want[0]:
        wrong(said, "the overview gets floor(alpha * budget), at most 64", case)
    if tile >= 0 and len(set(got[1:])) == 1:
        wrong(
            said,
            "equal tiles for a scene with one object: a softmax sums to 1 in every view, so compare regions of the overview",
            case)
    if tile >= 0 and max(n for i, n in enumerate(got[1:]) if i != tile) >= got[1 + tile]:
        wrong(
            said,
            "the object's tile should get most: is a region a 4 x 4 square of the 8 x 8 map, and not a run of 16 patches?",
            case)
    wrong(said, "the tiles' tokens are in proportion to the attention in their regions", case)


def _strips(attn0: Tensor, budget: int, alpha: float) -> list[int]:
    """Runs of raster rows as regions."""
    first = int(alpha * budget)
    mass = attn0.view(4, 16).sum(1)
    quota = mass / mass.sum() * (budget - first)
    floors = quota.floor()
    floors[(quota - floors).argsort(descending=True)[:int(budget - first - floors.sum())]] += 1
    return [first, *floors.int().tolist()]


def _regions(attn0: Tensor) -> Tensor:
    return attn0.view(2, 4, 2, 4).sum((1, 3)).flatten()


def _floors(attn0: Tensor, budget: int, alpha: float) -> list[int]:
    """Rounds down and leaves it at that."""
    first, mass = int(alpha * budget), _regions(attn0)
    return [first, *(mass / mass.sum() * (budget - first)).floor().int().tolist()]


def _alike(attn0: Tensor, budget: int, alpha: float) -> list[int]:
    """Each tile's own softmax sums to one: equal budgets."""
    first = int(alpha * budget)
    rest = budget - first
    return [first +
            rest % 4, *[rest // 4] * 4] if rest % 4 == 0 else [first, *[rest // 4 + (i < rest % 4) for i in range(4)]]


def _twice(attn0: Tensor, budget: int, alpha: float) -> list[int]:
    """Shares the whole budget among the tiles and adds the overview's on top."""
    return [int(alpha * budget), *_reference(attn0, budget, 0.0)[1:]]


def _all_to_tiles(attn0: Tensor, budget: int, alpha: float) -> list[int]:
    """alpha read as the tiles' share."""
    return _reference(attn0, budget, 1 - alpha if alpha != 0.5 else 0.4)


allocate_budget = Exercise(
    key="allocate_budget", title="Share out the budget", prompt=
    "The overview's first-layer CLS attention `attn0` is a flat 8 x 8 map; four tiles show its quarters. Return five "
    "numbers of tokens that sum to `budget`: the overview's `floor(alpha * budget)` (at most 64), then the tiles', in "
    "proportion to the attention in their quarter. Round by the largest remainders.", stub=
    "def budget_of_views(attn0: torch.Tensor, budget: int, alpha: float) -> list[int]:\n    raise NotImplementedError  # yours",
    test=_check, hints=("attn0.view(2, 4, 2, 4): which two axes run inside a tile?",
                        "floor the quotas, then give what is left, one each, to the largest of quota - floor(quota)."),
    difficulty=2, minutes=15, reference=_reference, wrong=[(_strips, "run of 16 patches"),
                                                           (_floors, "floors lose tokens"),
                                                           (_alike, "sums to 1 in every view"),
                                                           (_twice, "out of the same budget"),
                                                           (_all_to_tiles, "floor(alpha * budget)")])

EXERCISES = [allocate_budget]
