"""Exercises on steering: PAINT's boost, its summary tokens, and VISTA's step along a vector."""
import numpy as np
import torch
from torch import Tensor

from frugal.explore.exercises import Exercise, equal, wrong
from frugal.token_dropping.vista import steer as steer_solution

__all__ = ["EXERCISES", "boost_logits", "select_summary_tokens", "steer"]


# --- boost ---------------------------------------------------------------------------------------------------------


def boost_solution(A: Tensor, idx: list[int], strength: float) -> Tensor:
    """A (rows, slots): the logits of the last row at `idx` grow by strength * |A|."""
    A = A.clone()
    A[-1, idx] = A[-1, idx] + strength * A[-1, idx].abs()
    return A


def _check_boost(boost) -> None:
    A = torch.tensor([[0.5, -1.0, 2.0, 0.0, 1.0], [1.0, -2.0, -0.5, 3.0, 0.25]])
    for idx, strength in [([0, 1], 0.5), ([1, 2], 0.7), ([0, 3, 4], 0.0), ([2], 1.5)]:
        before = A.clone()
        got, case = boost(A, idx, strength), f"boost({A.tolist()}, {idx}, {strength})"
        if not torch.equal(A, before):
            A = before
            wrong("the logits that were handed in have changed", "work on a copy: another head may still need them", case)
        want = boost_solution(A, idx, strength)
        if got.shape != A.shape:
            wrong(f"shape {tuple(got.shape)}, expected {tuple(A.shape)}", "nothing is added or removed, only raised", case)
        if not torch.equal(got[:-1], A[:-1]):
            wrong("a row other than the last has changed", "only the newest token is steered: the row that predicts the next word", case)
        others = [j for j in range(A.shape[1]) if j not in idx]
        if not torch.equal(got[-1, others], A[-1, others]):
            wrong("a slot outside `idx` has changed", "only the chosen visual tokens are raised; the softmax does the rest", case)
        if (got[-1, idx] < A[-1, idx]).any():
            wrong(f"the last row is {[round(v, 3) for v in got[-1].tolist()]}: a logit went down",
                  "multiplying lowers negative logits; what does A + strength * |A| do to them?", case)
        equal(got, want, "the last row at idx is A + strength * |A|", case=case)


def _multiplies(A: Tensor, idx: list[int], strength: float) -> Tensor:
    A = A.clone()
    A[-1, idx] *= 1 + strength
    return A


def _all_rows(A: Tensor, idx: list[int], strength: float) -> Tensor:
    A = A.clone()
    A[:, idx] += strength * A[:, idx].abs()
    return A


def _all_slots(A: Tensor, idx: list[int], strength: float) -> Tensor:
    A = A.clone()
    A[-1] += strength * A[-1].abs()
    return A


def _in_place(A: Tensor, idx: list[int], strength: float) -> Tensor:
    A[-1, idx] += strength * A[-1, idx].abs()
    return A


def _adds_a_constant(A: Tensor, idx: list[int], strength: float) -> Tensor:
    A = A.clone()
    A[-1, idx] += strength
    return A


boost_logits = Exercise(
    key="boost_logits", title="Raise the newest token's attention",
    prompt="`A` (rows, slots) holds attention logits of one head, the newest token in the last row. Return a copy in which the last "
           "row's logits at the slots `idx` are `A + strength * |A|`; all else stays as it is.",
    stub="def boost_logits(A, idx, strength):\n    raise NotImplementedError  # yours: (rows, slots), list of int, float -> (rows, slots)",
    test=_check_boost,
    hints=("`A.clone()` first.", "`A[-1, idx]` is the last row at the chosen slots; `.abs()` makes the step upward for negative logits as well."),
    difficulty=1, minutes=5, reference=boost_solution,
    wrong=[(_multiplies, "multiplying lowers negative"), (_all_rows, "only the newest token"), (_all_slots, "only the chosen"),
           (_in_place, "work on a copy"), (_adds_a_constant, "A + strength * |A|")])


# --- summary tokens ------------------------------------------------------------------------------------------------


def summary_solution(attn) -> list[int]:
    """Places above Q3 + 1.5 (Q3 - Q1), ascending."""
    low, high = np.quantile(np.asarray(attn, float), [0.25, 0.75])
    return [i for i, value in enumerate(attn) if value > high + 1.5 * (high - low)]


def _check_summary(select) -> None:
    flat = [1.0, 1.1, 0.9, 1.2, 1.0, 1.3, 0.8, 1.1]
    for attn in ([*flat, 4.0, 0.95, 9.0], [*flat, 0.95, 1.05, 1.15, 1.25], [*flat, -9.0], [1.0] * 8, [5.0, 1.0, 1.2, 1.1, 0.9, 2.45, 1.0, 1.4],
                 [2.0, 8.0, 3.0, 4.0, 5.0, 6.0, 7.0, 1.0, 13.9]):
        got, want, case = list(select(list(attn))), summary_solution(attn), f"select_summary_tokens({attn})"
        low, high = np.quantile(attn, [0.25, 0.75])
        said = f"got {got}, expected {want}"
        if got != sorted(got) and sorted(got) == want:
            wrong(said, "ascending places, please: tokens stay in raster order", case)
        if any(attn[i] < low for i in got):
            wrong(said, "a token far BELOW the rest is no summary token: upper outliers only", case)
        if got and got == [i for i, v in enumerate(attn) if v > high] != want:
            wrong(said, "above the third quartile is a quarter of all tokens; an outlier lies 1.5 interquartile ranges above it", case)
        if got == [i for i, v in enumerate(attn) if v > np.mean(attn) + 1.5 * np.std(attn)] != want:
            wrong(said, "mean and standard deviation are pulled up by the outliers themselves: quartiles are not", case)
        if got and not want:
            wrong(said, "a picture may have no summary token at all: the number follows from the quartiles", case)
        equal(got, want, "attention above Q3 + 1.5 * (Q3 - Q1), quartiles as np.quantile gives them", case=case)


def _third_quartile(attn) -> list[int]:
    return [i for i, v in enumerate(attn) if v > np.quantile(attn, 0.75)]


def _both_sides(attn) -> list[int]:
    low, high = np.quantile(attn, [0.25, 0.75])
    return [i for i, v in enumerate(attn) if v > high + 1.5 * (high - low) or v < low - 1.5 * (high - low)]


def _deviations(attn) -> list[int]:
    return [i for i, v in enumerate(attn) if v > np.mean(attn) + 1.5 * np.std(attn)]


def _by_size(attn) -> list[int]:
    return sorted(summary_solution(attn), key=lambda i: -attn[i])


def _top_two(attn) -> list[int]:
    return sorted(np.argsort(attn)[-2:].tolist())


select_summary_tokens = Exercise(
    key="select_summary_tokens", title="Summary tokens are outliers",
    prompt="`attn` lists how much the CLS token of a late layer attends to each patch. Return the places of the upper outliers, "
           "ascending: values above `Q3 + 1.5 * (Q3 - Q1)`, with the quartiles of `np.quantile`.",
    stub="def select_summary_tokens(attn):\n    raise NotImplementedError  # yours: list of float -> list of int",
    test=_check_summary,
    hints=("`np.quantile(attn, [0.25, 0.75])` gives both quartiles.", "Their number is not fixed: one picture has none, another four."),
    difficulty=1, minutes=5, reference=summary_solution,
    wrong=[(_third_quartile, "a quarter of all tokens"), (_both_sides, "upper outliers only"), (_deviations, "pulled up"),
           (_by_size, "ascending places"), (_top_two, "no summary token at all")])


# --- steer ---------------------------------------------------------------------------------------------------------


def _check_steer(steer) -> None:
    generator = torch.Generator().manual_seed(2)
    pairs = [(torch.tensor([3.0, 4.0]), torch.tensor([0.0, 2.0])), (torch.tensor([0.0, -5.0]), torch.tensor([1.0, 1.0]))]
    pairs += [tuple(torch.randn(2, 6, generator=generator).unbind()) for _ in range(3)]
    for x, v in pairs:
        for lam in (0.0, 0.2, 1.0):
            got, want = steer(x.clone(), v.clone(), lam), steer_solution(x, v, lam)
            case = f"steer({_shown(x)}, {_shown(v)}, {lam})"
            if abs(float(got.norm() - x.norm())) > 1e-4:
                wrong(f"the length is {float(got.norm()):.4f}, it was {float(x.norm()):.4f}",
                      "turn x, do not stretch it: the last factor is |x|", case)
            if lam == 0 and not torch.allclose(got, x, atol=1e-5):
                wrong("x has moved with lam = 0", "without a push nothing may happen", case)
            if lam and not torch.allclose(want, (plain := _no_gate(x, v, lam)), atol=1e-5) and torch.allclose(got, plain, atol=1e-5):
                wrong(f"got {_shown(got)}, expected {_shown(want)}", "where x points away from v the push is up to twice as strong: "
                      "lam * (1 + max(0, cos(x, -v)))", case)
            if lam and torch.allclose(got, _raw(x, v, lam), atol=1e-5) and not torch.allclose(want, got, atol=1e-5):
                wrong(f"got {_shown(got)}, expected {_shown(want)}", "lam is an angle, not a length: add unit vectors", case)
            if lam and torch.allclose(got, steer_solution(x, -v, lam), atol=1e-5) and not torch.allclose(want, got, atol=1e-5):
                wrong(f"got {_shown(got)}, expected {_shown(want)}", "that leads away from v: check the sign of the push", case)
            equal(got, want, "x / |x| + lam * (1 + max(0, cos(x, -v))) * v / |v|, brought back to the length of x",
                  tolerance=1e-4, case=case)


def _shown(x: Tensor) -> list[float]:
    return [round(float(value), 3) for value in x]


def _no_gate(x: Tensor, v: Tensor, lam: float) -> Tensor:
    y = x / x.norm() + lam * v / v.norm()
    return x.norm() * y / y.norm()


def _raw(x: Tensor, v: Tensor, lam: float) -> Tensor:
    y = x + lam * (1 + max(0.0, float(-(x @ v) / x.norm() / v.norm()))) * v
    return x.norm() * y / y.norm()


def _stretches(x: Tensor, v: Tensor, lam: float) -> Tensor:
    return x + lam * v


def _away(x: Tensor, v: Tensor, lam: float) -> Tensor:
    return steer_solution(x, -v, lam)


def _gate_turned(x: Tensor, v: Tensor, lam: float) -> Tensor:
    y = x / x.norm() + lam * (1 + max(0.0, float(x @ v / x.norm() / v.norm()))) * v / v.norm()
    return x.norm() * y / y.norm()


steer = Exercise(
    key="steer", title="A step along the image's direction",
    prompt="Return `x` pushed along `v` and brought back to its old length: the direction of "
           "`x/|x| + lam * (1 + max(0, cos(x, -v))) * v/|v|`, times `|x|`. Both are 1-D tensors, neither is zero.",
    stub="def steer(x, v, lam):\n    raise NotImplementedError  # yours: (d,), (d,), float -> (d,)",
    test=_check_steer,
    hints=("`x.norm()` is the length; keep it before you do anything.", "cos(x, -v) is `-(x @ v) / (x.norm() * v.norm())`."),
    difficulty=2, minutes=10, reference=steer_solution,
    wrong=[(_stretches, "do not stretch"), (_no_gate, "up to twice as strong"), (_raw, "add unit vectors"), (_away, "check the sign"),
           (_gate_turned, "cos(x, -v)")])

EXERCISES = [boost_logits, select_summary_tokens, steer]
