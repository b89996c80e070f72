"""What ShadowKV computes from the prompt's keys: a low-rank form, landmarks, outliers, and the choice of chunks.

Source: arXiv 2410.21465 (ShadowKV), algorithms 1 and 2; code bytedance/ShadowKV.
Shapes: B batch, n tokens, K KV heads, G query heads of one KV head, D head dim, M chunks of c tokens, r rank.
"""
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Partition:
    """Where the tokens of a prompt go: `num_old` chunks of `chunk` tokens, then `num_local` tokens kept exactly."""
    num_tokens: int
    chunk: int
    num_old: int

    @classmethod
    def of(cls, num_tokens: int, chunk: int, local_chunks: int) -> "Partition":
        """The last `local_chunks` whole chunks and the remainder are local; a short prompt is all local."""
        return cls(num_tokens, chunk, max(0, num_tokens // chunk - local_chunks))

    @property
    def old_tokens(self) -> int:
        return self.num_old * self.chunk

    @property
    def num_local(self) -> int:
        return self.num_tokens - self.old_tokens


def lowrank_keys(keys: Float[Tensor, "b n c"], rank: int) -> tuple[Float[Tensor, "b n r"], Float[Tensor, "b r c"]]:
    """Best approximation of rank `rank` (at most what the matrix has): keys = A @ basis, heads side by side.

    The error's Frobenius norm is that of the singular values left out (Eckart and Young).
    """
    u, s, vh = torch.linalg.svd(keys.float(), full_matrices=False)
    rank = min(rank, s.shape[-1])
    return u[..., :rank].contiguous(), s[..., :rank, None] * vh[..., :rank, :]


def build_landmarks(keys: Float[Tensor, "b k m c d"], num_outliers: int
                    ) -> tuple[Float[Tensor, "b k l d"], Int[Tensor, "b k l"], Int[Tensor, "b k o"]]:
    """Mean key of each chunk, and the chunks that a mean cannot stand for.

    Outliers are the chunks whose *least* similar token (cosine to the mean) is least similar; they get no landmark.
    Returns landmarks (B, K, M - o, D), their chunk numbers, and the outliers' chunk numbers, all ascending.
    """
    means = keys.mean(3)
    similarity = torch.cosine_similarity(keys, means[:, :, :, None], dim=-1).amin(-1)               # (B, K, M)
    order = similarity.sort(dim=-1, stable=True).indices
    outliers, others = order[..., :num_outliers].sort(-1).values, order[..., num_outliers:].sort(-1).values
    return means.gather(2, others[..., None].expand(*others.shape, means.shape[-1])), others, outliers


def select_chunks(q: Float[Tensor, "b k g d"], landmarks: Float[Tensor, "b k l d"], count: int) -> Int[Tensor, "b k count"]:
    """The `count` chunks with the highest score, as places in `landmarks`, ascending; one choice per KV head.

    Each query head shares out 1 over the chunks (softmax of q . landmark / sqrt(D)); a chunk's score is the best
    over the query heads that share the KV head.
    """
    scores = (q @ landmarks.mT / q.shape[-1] ** 0.5).softmax(-1).amax(2)                             # (B, K, L)
    return _best(scores, count)


def select_by_bounds(q: Float[Tensor, "b k g d"], low: Float[Tensor, "b k l d"], high: Float[Tensor, "b k l d"],
                     count: int) -> Int[Tensor, "b k count"]:
    """Quest's rule: the highest product any key within the chunk's smallest and largest channel values could have.

    Source: arXiv 2406.10774 (Quest), section 3.3. Best over the query heads that share the KV head.
    """
    scores = q.clamp(min=0) @ high.mT + q.clamp(max=0) @ low.mT
    return _best(scores.amax(2), count)


def select_by_mass(q: Float[Tensor, "b k g d"], keys: Float[Tensor, "b k l c d"], count: int) -> Int[Tensor, "b k count"]:
    """The oracle: the true attention mass of each chunk's tokens, which needs all exact keys."""
    weights = (q @ keys.flatten(2, 3).mT / q.shape[-1] ** 0.5).softmax(-1)
    return _best(weights.unflatten(-1, keys.shape[2:4]).sum(-1).amax(2), count)


def _best(scores: Tensor, count: int) -> Tensor:
    return scores.topk(min(count, scores.shape[-1]), dim=-1).indices.sort(-1).values
