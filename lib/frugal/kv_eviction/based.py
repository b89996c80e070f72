"""BASED: a second-order Taylor feature map for softmax attention, beside a short window of exact attention.

A cache of keys and values grows with the text. Linear attention folds it into a state of fixed size,
S = sum phi(k) v^T and z = sum phi(k); the feature map decides how much such a state can recall.

Source: arXiv 2402.18668 (Simple linear attention language models balance the recall-throughput tradeoff),
sections 4 and 5, and the repository HazyResearch/based.
Differs: plain PyTorch instead of CUDA kernels; no grouped queries; the miniature stack (`frugal.models.based_lm`) is
one convolution, then Taylor attention, then optionally a window. Window and convolution are in `based_local.py`.
Shapes: B batch, T tokens, H heads, F feature dim f, P = number of features, D value dim.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from frugal.core.papers import Paper, paper
from frugal.kv_eviction.based_local import (
    short_conv,
    short_conv_step,
    sliding_window_attention,
    window_step,
)

__all__ = [
    "Based",
    "EPSILON",
    "FEATURE_MAPS",
    "chunked",
    "elu_features",
    "parallel",
    "recurrent",
    "recurrent_step",
    "relu_features",
    "short_conv",
    "short_conv_step",
    "sliding_window_attention",
    "state_floats",
    "taylor_features",
    "window_step",
]

EPSILON = 1e-12  # guards the division; phi(q).phi(k) >= 1/2, so the Taylor map itself never needs it

FeatureMap = Callable[[Tensor], Tensor]


# --- feature maps -------------------------------------------------------------------------------------------------


def taylor_features(x: Float[Tensor, "*rows f"]) -> Float[Tensor, "*rows features"]:
    """[1, x / f^(1/4), vec(x x^T) / sqrt(2 f)]: 1 + f + f^2 features.

    phi(q).phi(k) = 1 + z + z^2/2 with z = q.k / sqrt(f): the Taylor series of exp(z) to second order, never below 1/2.
    Source: section 4.1; the full square is kept, as in the release, not the triangle.
    """
    f = x.shape[-1]
    square = (x.unsqueeze(-1) * x.unsqueeze(-2)).flatten(-2) / (2 * f) ** 0.5
    return torch.cat([torch.ones_like(x[..., :1]), x / f**0.25, square], dim=-1)


def elu_features(x: Float[Tensor, "*rows f"]) -> Float[Tensor, "*rows f"]:
    """1 + elu(x) (arXiv 2006.16236, equation 7): positive, f features."""
    return F.elu(x) + 1


def relu_features(x: Float[Tensor, "*rows f"]) -> Float[Tensor, "*rows f"]:
    """relu(x): many zeros; a row of zeros gives output 0, which is where EPSILON matters."""
    return F.relu(x)


FEATURE_MAPS: dict[str, FeatureMap] = {"taylor": taylor_features, "elu": elu_features, "relu": relu_features}


# --- linear attention in three forms that agree -------------------------------------------------------------------


def parallel(
    q: Float[Tensor, "batch heads tokens f"],
    k: Float[Tensor, "batch heads tokens f"],
    v: Float[Tensor, "batch heads tokens d"],
    features: str = "taylor",
) -> Float[Tensor, "batch heads tokens d"]:
    """y_i = sum_{j<=i} phi(q_i).phi(k_j) v_j / (sum_{j<=i} phi(q_i).phi(k_j) + eps), all tokens at once, T^2 work.

    The Taylor weights are computed as 1 + z + z^2/2, without ever forming the features.
    """
    weights = similarity(q, k, features).tril()  # (B, H, T, T)
    return weights @ v / (weights.sum(-1, keepdim=True) + EPSILON)


def similarity(
    q: Float[Tensor, "*rows t f"], k: Float[Tensor, "*rows s f"], features: str = "taylor"
) -> Float[Tensor, "*rows t s"]:
    """phi(q).phi(k) for every pair of rows. Raises ValueError on an unknown feature map."""
    if features not in FEATURE_MAPS:
        raise ValueError(f"features must be one of {sorted(FEATURE_MAPS)}, not {features!r}")
    if features == "taylor":
        z = q @ k.mT / q.shape[-1] ** 0.5
        return 1 + z + z * z / 2
    return FEATURE_MAPS[features](q) @ FEATURE_MAPS[features](k).mT


def empty_state(batch: int, heads: int, num_features: int, dim: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """S (B, H, P, D) and z (B, H, P) of zeros: the whole memory of a linear attention layer."""
    return like.new_zeros(batch, heads, num_features, dim), like.new_zeros(batch, heads, num_features)


def recurrent_step(
    S: Float[Tensor, "batch heads features d"],
    z: Float[Tensor, "batch heads features"],
    q: Float[Tensor, "batch heads f"],
    k: Float[Tensor, "batch heads f"],
    v: Float[Tensor, "batch heads d"],
    phi: FeatureMap = taylor_features,
) -> tuple[Tensor, Tensor, Tensor]:
    """One token: S += phi(k) v^T, z += phi(k), y = phi(q) S / (phi(q).z + eps). Returns (S, z, y); y is (B, H, D).

    S and z are updated in place, so decoding allocates nothing that grows with the text.
    """
    fq, fk = phi(q), phi(k)
    S += fk.unsqueeze(-1) * v.unsqueeze(-2)
    z += fk
    y = (fq.unsqueeze(-2) @ S).squeeze(-2) / ((fq * z).sum(-1, keepdim=True) + EPSILON)
    return S, z, y


def recurrent(
    q: Float[Tensor, "batch heads tokens f"],
    k: Float[Tensor, "batch heads tokens f"],
    v: Float[Tensor, "batch heads tokens d"],
    features: str = "taylor",
) -> Float[Tensor, "batch heads tokens d"]:
    """The same outputs as `parallel`, one token after the other through a state of fixed size."""
    phi = FEATURE_MAPS[features]
    S, z = empty_state(*q.shape[:2], phi(q[:1, :1, :1]).shape[-1], v.shape[-1], like=v)
    out = torch.empty_like(v)
    for t in range(q.shape[2]):
        S, z, out[:, :, t] = recurrent_step(S, z, q[:, :, t], k[:, :, t], v[:, :, t], phi)
    return out


def chunked(
    q: Float[Tensor, "batch heads tokens f"],
    k: Float[Tensor, "batch heads tokens f"],
    v: Float[Tensor, "batch heads tokens d"],
    features: str = "taylor",
    chunk: int = 64,
) -> Float[Tensor, "batch heads tokens d"]:
    """The same outputs again: parallel inside a chunk, the state between chunks. T * chunk work instead of T^2.

    Raises ValueError when chunk is below 1.
    """
    return chunked_with_state(q, k, v, features, chunk)[0]


def chunked_with_state(
    q: Tensor, k: Tensor, v: Tensor, features: str = "taylor", chunk: int = 64
) -> tuple[Tensor, Tensor, Tensor]:
    """(outputs, S, z): how a prompt is read before decoding starts."""
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1 token, not {chunk}")
    phi = FEATURE_MAPS[features]
    S, z = empty_state(*q.shape[:2], phi(q[:1, :1, :1]).shape[-1], v.shape[-1], like=v)
    outputs = []
    for start in range(0, q.shape[2], chunk):
        qc, kc, vc = (x[:, :, start : start + chunk] for x in (q, k, v))
        inside = similarity(qc, kc, features).tril()
        fq, fk = phi(qc), phi(kc)
        top = fq @ S + inside @ vc
        bottom = (fq @ z.unsqueeze(-1)) + inside.sum(-1, keepdim=True)
        outputs.append(top / (bottom + EPSILON))
        S, z = S + fk.mT @ vc, z + fk.sum(-2)
    return torch.cat(outputs, dim=2), S, z


# --- sizes --------------------------------------------------------------------------------------------------------


def state_floats(
    kind: str, *, hidden_size: int, num_heads: int = 1, feature_dim: int = 16, window: int = 64, tokens: int = 0
) -> int:
    """Numbers held per layer and sequence, by the formulas of the notes: what the real tensors must add up to.

    kind: "taylor" H (1+f+f^2)(d_v+1); "linear" H f (d_v+1); "window" 2 w d; "attention" 2 T d. Raises ValueError.
    """
    head_dim = hidden_size // num_heads
    sizes = {
        "taylor": num_heads * (1 + feature_dim + feature_dim**2) * (head_dim + 1),
        "linear": num_heads * feature_dim * (head_dim + 1),
        "window": 2 * window * hidden_size,
        "attention": 2 * tokens * hidden_size,
    }
    if kind not in sizes:
        raise ValueError(f"kind must be one of {sorted(sizes)}, not {kind!r}")
    return sizes[kind]


@dataclass(frozen=True)
class Based:
    """Constant-state attention: Taylor linear attention beside a sliding window, in a stack of short convolutions.

    feature_dim: f, which sets the state to (1+f+f^2)(d_v+1) numbers a head.
    window: tokens of exact attention, 0 for none.
    """

    name: ClassVar[str] = "based"
    paper: ClassVar[Paper] = paper("based")
    summary: ClassVar[str] = "folds the cache into a state of fixed size (Taylor feature map) plus a short exact window"
    kind: ClassVar[str] = "model"
    feature_dim: int = 16
    window: int = 0

    def __post_init__(self):
        if not isinstance(self.feature_dim, int) or not 1 <= self.feature_dim <= 64:
            raise ValueError(
                f"feature_dim must be a whole number of 1..64 (the state grows with its square), not {self.feature_dim}"
            )
        if not isinstance(self.window, int) or self.window < 0:
            raise ValueError(f"window must be 0 (none) or a number of tokens, not {self.window}")

    @property
    def configuration(self) -> str:
        """Name of the network, as `based_layers.build` and `load_based` take it."""
        return f"taylor_{self.feature_dim}" + (f"+window_{self.window}" if self.window else "")
