"""Exercises on BASED: the feature map, and one token through the constant state.

Each check uses tensors of a few numbers and compares with the parallel form.
"""

import torch
from torch import Tensor

from frugal.explore.exercises import Exercise, equal, wrong
from frugal.kv_eviction.based import parallel
from frugal.kv_eviction.based import taylor_features as taylor_features_solution

__all__ = ["EXERCISES", "recurrent_step", "taylor_features"]


def _tensors(tokens: int, f: int, d: int, seed: int) -> list[Tensor]:
    """q, k (tokens, f) and v (tokens, d), rounded so that a printed case can be typed in."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(tokens, size, generator=generator, dtype=torch.float64).round(decimals=1) for size in (f, f, d)]


# --- the feature map -----------------------------------------------------------------------------------------------


def _check_features(answer) -> None:
    for f, seed in [(4, 0), (2, 1), (9, 2)]:
        q, k, _ = _tensors(3, f, 1, seed)
        fq, fk = answer(q), answer(k)
        case = f"f = {f}, {f} numbers a row"
        if fq.shape != (3, 1 + f + f * f):
            wrong(
                f"a row has {fq.shape[-1]} features, expected 1 + {f} + {f * f}",
                "do you keep the full square x x^T, not only the triangle?",
                case,
            )
        z = (q * k).sum(-1) / f**0.5
        product, want = (fq * fk).sum(-1), 1 + z + z * z / 2
        raw = (q * k).sum(-1)
        if torch.allclose(product, 1 + raw + raw**2 / 2):
            wrong(
                f"phi(q).phi(k) = {product[0]:.4f}, expected {want[0]:.4f}",
                "where is the 1/sqrt(f)? each side carries its square root, f^(1/4)",
                case,
            )
        if torch.allclose(product, 1 + z + z * z):
            wrong(
                f"phi(q).phi(k) = {product[0]:.4f}, expected {want[0]:.4f}",
                "the last term of the series is z^2 / 2: who carries the half?",
                case,
            )
        equal(product, want, "phi(q).phi(k) should be 1 + z + z^2/2 with z = q.k / sqrt(f)", case=case)


def _no_root(x: Tensor) -> Tensor:
    return torch.cat([torch.ones_like(x[..., :1]), x, (x[..., None] * x[..., None, :]).flatten(-2) / 2**0.5], -1)


def _no_half(x: Tensor) -> Tensor:
    f = x.shape[-1]
    return torch.cat(
        [torch.ones_like(x[..., :1]), x / f**0.25, (x[..., None] * x[..., None, :]).flatten(-2) / f**0.5], -1
    )


def _triangle(x: Tensor) -> Tensor:
    f = x.shape[-1]
    rows, cols = torch.triu_indices(f, f)
    return torch.cat([torch.ones_like(x[..., :1]), x / f**0.25, x[..., rows] * x[..., cols] / (2 * f) ** 0.5], -1)


def _no_one(x: Tensor) -> Tensor:
    return torch.cat([torch.zeros_like(x[..., :1]), taylor_features_solution(x)[..., 1:]], -1)


taylor_features = Exercise(
    key="taylor_features",
    title="The Taylor feature map",
    prompt="Write `phi(x)` for rows of `f` numbers such that `phi(q) @ phi(k)` is `1 + z + z**2 / 2` "
    "with `z = q @ k / sqrt(f)`: "
    "the start of the series of `exp(z)`. A row becomes `1 + f + f*f` numbers.",
    stub="def phi(x):\n    raise NotImplementedError  # yours: (rows, f) -> (rows, 1 + f + f*f)",
    test=_check_features,
    hints=(
        "`(q @ k)**2` is the dot product of two flattened outer products.",
        "Both sides share the factor: `1/sqrt(f)` is `f**-0.25` on each.",
    ),
    difficulty=1,
    minutes=10,
    reference=taylor_features_solution,
    wrong=[
        (_no_root, "1/sqrt(f)"),
        (_no_half, "who carries the half"),
        (_triangle, "full square"),
        (_no_one, "should be 1 + z"),
    ],
)


# --- one token -----------------------------------------------------------------------------------------------------


def recurrent_step_solution(S: Tensor, z: Tensor, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """S (P, D), z (P,), q and k (f,), v (D,) -> new S, new z, output y (D,)."""
    fq, fk = taylor_features_solution(q), taylor_features_solution(k)
    S, z = S + torch.outer(fk, v), z + fk
    return S, z, fq @ S / (fq @ z)


def _check_step(answer) -> None:
    for tokens, f, d, seed in [(5, 2, 3, 1), (9, 4, 2, 2), (1, 2, 3, 0)]:
        q, k, v = _tensors(tokens, f, d, seed)
        features = 1 + f + f * f
        S, z = torch.zeros(features, d, dtype=q.dtype), torch.zeros(features, dtype=q.dtype)
        expected = parallel(q[None, None], k[None, None], v[None, None])[0, 0]
        for t in range(tokens):
            fq, fk = taylor_features_solution(q[t]), taylor_features_solution(k[t])
            old_S, old_z = S.clone(), z.clone()
            S, z, y = answer(S.clone(), z.clone(), q[t], k[t], v[t])
            case = f"token {t} of {tokens}, f = {f}, values of {d}"
            if z.shape != old_z.shape or S.shape != old_S.shape:
                wrong(
                    f"S is {tuple(S.shape)} and z {tuple(z.shape)}, "
                    f"expected {tuple(old_S.shape)} and {tuple(old_z.shape)}",
                    "rows of S are features, columns are value numbers; the state keeps its size",
                    case,
                )
            new_S, new_z = old_S + torch.outer(fk, v[t]), old_z + fk
            if torch.allclose(z, old_z) or torch.allclose(S, old_S):
                wrong("the state did not change", "the token's own key and value are added to S and to z", case)
            if t and (torch.allclose(S, new_S - old_S) or torch.allclose(z, new_z - old_z)):
                wrong(
                    "the state holds this token only",
                    "S and z are sums over all tokens so far: add, do not replace",
                    case,
                )
            equal(S, new_S, "S grows by the outer product of phi(k) and v", case=case)
            equal(z, new_z, "z grows by phi(k): the key through the feature map", case=case)
            if t == 0 and tokens > 1:
                continue  # one token alone shows too little: its output is its value
            if torch.allclose(y, fq @ new_S) and not torch.allclose(y, expected[t]):
                wrong(
                    f"y = {y.tolist()}, expected {expected[t].tolist()}",
                    "the weights must sum to 1: divide by phi(q).z",
                    case,
                )
            if torch.allclose(y, fq @ old_S / (fq @ old_z), equal_nan=True):
                wrong(
                    f"y = {y.tolist()}, expected {expected[t].tolist()}",
                    "a token attends to itself too: update the state first, then read it",
                    case,
                )
            equal(y, expected[t], "y = phi(q) S / (phi(q).z), both after the update", case=case)


def _no_division(S, z, q, k, v):
    S, z, _ = recurrent_step_solution(S, z, q, k, v)
    return S, z, taylor_features_solution(q) @ S


def _reads_first(S, z, q, k, v):
    fq = taylor_features_solution(q)
    new_S, new_z, _ = recurrent_step_solution(S, z, q, k, v)
    return new_S, new_z, fq @ S / (fq @ z)


def _forgets(S, z, q, k, v):
    return recurrent_step_solution(torch.zeros_like(S), torch.zeros_like(z), q, k, v)


def _no_normaliser(S, z, q, k, v):
    new_S, _, y = recurrent_step_solution(S, z, q, k, v)
    return new_S, z, y


def _divides_by_count(S, z, q, k, v):
    new_S, new_z, _ = recurrent_step_solution(S, z, q, k, v)
    return new_S, new_z, taylor_features_solution(q) @ new_S / new_z[0]


recurrent_step = Exercise(
    key="recurrent_step",
    title="One token through a constant state",
    prompt="Write one decoding step of linear attention. `S` is `(P, D)`, `z` is `(P,)`, `q` and `k` are `(f,)`, "
    "`v` is `(D,)`; "
    "`taylor_features` gives `phi`. Return the new `S`, the new `z` and the output `y` of `(D,)`. It must agree with "
    "the parallel form, token by token.",
    stub="def step(S, z, q, k, v):\n    raise NotImplementedError  # yours: return S, z, y",
    test=_check_step,
    hints=(
        "`S` is the sum of outer products `phi(k) v^T`, `z` the sum of `phi(k)`.",
        "The output is a weighted mean: what do the weights sum to?",
        "Update first, then read: a token sees itself.",
    ),
    difficulty=2,
    minutes=10,
    reference=recurrent_step_solution,
    wrong=[
        (_no_division, "sum to 1"),
        (_reads_first, "attends to itself"),
        (_forgets, "add, do not replace"),
        (_no_normaliser, "added to S and to z"),
        (_divides_by_count, "both after the update"),
    ],
)

EXERCISES = [taylor_features, recurrent_step]
