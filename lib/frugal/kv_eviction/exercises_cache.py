"""Exercises on compressed caches: MiKV's channel balancer, ShadowKV's choice of chunks.

Each check uses tensors of a few numbers; no language model.
"""
import torch
from torch import Tensor

from frugal.core.quantize import quantize_asym
from frugal.explore.exercises import Exercise, equal, wrong
from frugal.kv_eviction import chunks, mikv

__all__ = ["EXERCISES", "channel_balancer", "select_chunks"]


# --- the channel balancer -----------------------------------------------------------------------------------------


def channel_balancer_solution(q: Tensor, k: Tensor) -> Tensor:
    """q (T, G, D), k (T, D) -> factor of each channel (D,): sqrt(max |q| / max |k|), 1 for a silent channel."""
    return mikv.channel_balancer(q.abs().amax((0, 1)), k.abs().amax(0))


def _prompt(seed: int, loud: float = 30.0) -> tuple[Tensor, Tensor]:
    """Queries (12, 3, 8) and keys (12, 8) with one loud key channel."""
    generator = torch.Generator().manual_seed(seed)
    q, k = torch.randn(12, 3, 8, generator=generator), torch.randn(12, 8, generator=generator)
    k[:, 5] *= loud
    return q, k


def logit_error(q: Tensor, k: Tensor, factor: Tensor, bits: int = 2) -> float:
    """Mean error of q . k when factor * k is rounded to `bits` and q / factor is used."""
    rounded = quantize_asym(k * factor, bits).dequantize()
    return float(((q / factor) @ rounded.T - q @ k.T).abs().mean())


def _check_balancer(answer) -> None:
    q, k = _prompt(0)
    case = "12 tokens, 3 query heads, 8 channels, channel 5 of the keys 30 times as loud"
    want, got = channel_balancer_solution(q, k), answer(q.clone(), k.clone())
    if tuple(got.shape) != (8,):
        wrong(f"got shape {tuple(got.shape)}, expected (8,)", "one factor a channel: over which dimensions does the maximum run?", case)
    if torch.allclose(got, 1 / want, rtol=1e-4):
        wrong(f"channel 5 gets {got[5]:.2f}, expected {want[5]:.2f}",
              "upside down: a loud key channel must shrink, so that it leaves steps for the others", case)
    if torch.allclose(got, want**2, rtol=1e-4):
        wrong(f"channel 5 gets {got[5]:.4f}, expected {want[5]:.4f}", "the root is missing: key and query share the burden equally", case)
    if torch.allclose(got, channel_balancer_solution(q[:, :1], k), rtol=1e-4):
        wrong(f"got {got[:3].tolist()}, expected {want[:3].tolist()}", "do all query heads that share the key head count?", case)
    if torch.allclose(got, (q.mean((0, 1)).abs() / k.mean(0).abs()).sqrt(), rtol=1e-3):
        wrong("that follows the mean", "the grid is set by the extremes: take the largest magnitude, not the mean", case)
    equal(got, want, "b = sqrt(max |q| / max |k|), each over all tokens and heads", tolerance=1e-4, case=case)
    for seed in range(1, 4):
        q, k = _prompt(seed)
        factor = answer(q.clone(), k.clone())
        equal((q / factor) @ (k * factor).T, q @ k.T, "q / b against b * k must give the old logits", tolerance=1e-3, case=f"prompt {seed}")
        before, after = logit_error(q, k, torch.ones(8)), logit_error(q, k, factor)
        if after > 0.9 * before:
            wrong(f"INT2 logits are off by {after:.2f}, without a balancer by {before:.2f}", "does the loud channel shrink?", f"prompt {seed}")
    q, k = _prompt(4)
    q[..., 2], k[:, 6] = 0, 0
    factor = answer(q.clone(), k.clone())
    if not bool(torch.isfinite(factor).all() and (factor > 0).all()):
        wrong(f"got {factor.tolist()}", "a channel that is all zero: 0/0 and x/0; give it the factor 1", "query channel 2 and key channel 6 are 0")
    equal(factor[[2, 6]], torch.ones(2), "a silent channel gets the factor 1", case="query channel 2 and key channel 6 are 0")


def _upside_down(q: Tensor, k: Tensor) -> Tensor:
    return 1 / channel_balancer_solution(q, k)


def _no_root(q: Tensor, k: Tensor) -> Tensor:
    return channel_balancer_solution(q, k) ** 2


def _one_query_head(q: Tensor, k: Tensor) -> Tensor:
    return channel_balancer_solution(q[:, :1], k)


def _over_channels(q: Tensor, k: Tensor) -> Tensor:
    return (q.abs().amax((1, 2)) / k.abs().amax(1)).sqrt()


def _zero_over_zero(q: Tensor, k: Tensor) -> Tensor:
    return (q.abs().amax((0, 1)) / k.abs().amax(0)).sqrt()


channel_balancer = Exercise(
    key="channel_balancer",
    title="The channel balancer",
    prompt="Keys `k` (tokens, channels) will be rounded token by token; queries `q` (tokens, heads, channels) will not. Return one "
           "factor `b` a channel, so that rounding `b * k` and using `q / b` hurts less: `b = sqrt(max |q| / max |k|)`, with 1 for "
           "a channel that is silent on either side.",
    stub="def channel_balancer(q, k):\n    raise NotImplementedError  # yours: (T, G, D), (T, D) -> (D,)",
    test=_check_balancer,
    hints=("The maximum of the queries runs over tokens and heads: `q.abs().amax((0, 1))`.",
           "`torch.where(ok, factor, torch.ones_like(factor))` puts 1 where a channel is silent."),
    difficulty=1, minutes=10, reference=channel_balancer_solution,
    wrong=[(_upside_down, "upside down"), (_no_root, "root is missing"), (_one_query_head, "all query heads"),
           (_over_channels, "one factor a channel"), (_zero_over_zero, "all zero")])


# --- the choice of chunks -----------------------------------------------------------------------------------------


def select_chunks_solution(q: Tensor, landmarks: Tensor, k: int) -> list[int]:
    """q (G, D), landmarks (L, D) -> the k chunks with the best score over the query heads, ascending."""
    return chunks.select_chunks(q[None, None], landmarks[None, None], k)[0, 0].tolist()


def _scene(seed: int) -> tuple[Tensor, Tensor]:
    """Three query heads that look at different chunks; keys (20, 4, 16) of 20 chunks of 4 tokens."""
    generator = torch.Generator().manual_seed(seed)
    keys = torch.randn(20, 1, 16, generator=generator) * 1.5 + 0.3 * torch.randn(20, 4, 16, generator=generator)
    q = torch.stack([keys[(seed + 7 * head) % 20].mean(0) * scale for head, scale in enumerate((0.9, 1.0, 2.5))])
    return q, keys


def mass_caught(q: Tensor, keys: Tensor, chosen: list[int]) -> float:
    """Least share of exact attention, over the query heads, that lies in the chosen chunks (brute force)."""
    weights = (q @ keys.flatten(0, 1).T / q.shape[-1] ** 0.5).softmax(-1).unflatten(-1, keys.shape[:2]).sum(-1)
    return float(weights[:, chosen].sum(-1).min())


def _check_select(answer) -> None:
    for seed, count in [(0, 3), (1, 4), (2, 5)]:
        q, keys = _scene(seed)
        landmarks = keys.mean(1)
        case = f"3 query heads, 20 landmarks, k = {count} (scene {seed})"
        got = [int(i) for i in answer(q.clone(), landmarks.clone(), count)]
        want = select_chunks_solution(q, landmarks, count)
        scores = q @ landmarks.T / q.shape[-1] ** 0.5
        if len(got) != count:
            wrong(f"got {len(got)} chunks, expected {count}", "how many chunks does `topk` return, and over which dimension?", case)
        if set(got) == set(want) and got != want:
            wrong(f"got {got}, expected {want}", "ascending order: chunks are read as they stand in the text", case)
        if set(got) == set(scores.amax(0).topk(count).indices.tolist()):
            wrong(f"got {got}, expected {want}", "raw products let the loudest query head take every place: softmax first, per head", case)
        if set(got) == set(scores.softmax(0).amax(0).topk(count).indices.tolist()):
            wrong(f"got {got}, expected {want}", "each query head shares out 1 over the chunks: softmax over which dimension?", case)
        if set(got) == set(scores.softmax(-1)[0].topk(count).indices.tolist()):
            wrong(f"got {got}, expected {want}", "the first query head alone decides: what about the others of the group?", case)
        if set(got) == set(scores.amax(0).topk(count, largest=False).indices.tolist()):
            wrong(f"got {got}, expected {want}", "those are the least likely chunks", case)
        equal(got, want, "best softmax score over the query heads, then the k best chunks", case=case)
        caught, best = mass_caught(q, keys, got), mass_caught(q, keys, want)
        if caught < 0.95 * best:
            wrong(f"caught {caught:.0%} of the attention, possible are {best:.0%}", "some query head finds none of its chunks", case)


def _raw(q: Tensor, landmarks: Tensor, k: int) -> list[int]:
    return sorted((q @ landmarks.T).amax(0).topk(k).indices.tolist())


def _first_head(q: Tensor, landmarks: Tensor, k: int) -> list[int]:
    return select_chunks_solution(q[:1], landmarks, k)


def _over_heads(q: Tensor, landmarks: Tensor, k: int) -> list[int]:
    return sorted((q @ landmarks.T / q.shape[-1] ** 0.5).softmax(0).amax(0).topk(k).indices.tolist())


def _unsorted(q: Tensor, landmarks: Tensor, k: int) -> list[int]:
    return select_chunks_solution(q, landmarks, k)[::-1]


def _least(q: Tensor, landmarks: Tensor, k: int) -> list[int]:
    return sorted((q @ landmarks.T).amax(0).topk(k, largest=False).indices.tolist())


select_chunks = Exercise(
    key="select_chunks",
    title="Which chunks to fetch",
    prompt="Query heads `q` (G, D) share one KV head. Return the numbers of the `k` chunks to fetch, ascending, by ShadowKV's rule: "
           "softmax of `q @ landmarks.T / sqrt(D)` over the chunks for each head, the best of the heads, the top `k`.",
    stub="def select_chunks(q, landmarks, k):\n    raise NotImplementedError  # yours: (G, D), (L, D), int -> list of k ints",
    test=_check_select,
    hints=("The softmax makes heads comparable: each has 1 to share out.", "`scores.amax(0)` is the best over the heads; then `topk`, then sort."),
    difficulty=2, minutes=10, reference=select_chunks_solution,
    wrong=[(_raw, "softmax first"), (_first_head, "first query head alone"), (_over_heads, "over which dimension"),
           (_unsorted, "ascending"), (_least, "least likely")])

EXERCISES = [channel_balancer, select_chunks]
