"""Keyformer's noisy softmax: noise that is a function of its place, and one compiled pass over the rows.

A score asks for a fresh Gumbel number for each logit: 1.8 million at every decoded token of a batch of 8 with 820
slots. A stream of random numbers is drawn one after the other; here each number is a hash of its index and of two keys
that the generator gives, so that all can be made at once, by any number of threads, in any order, and are the same.

Source: arXiv 2403.09054, equations 5 to 8. The mixer of 32-bit numbers is one of those found by search in
https://github.com/skeeto/hash-prospector.
Differs: -log u is an exponential number, and minus the log of that a Gumbel number; so with a probability p in place of
its logit, softmax((logit + noise) / tau) is (p / -log u)^(1 / tau), normalised: one logarithm less.
"""
import math

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from frugal.core.attention import kernel_applies
from frugal.core.compiled import compiled, prange, share_threads
from frugal.core.kernels import exp, log

NOISES = ("gumbel", "gaussian", "none")
STRIDE, FIRST, SECOND = 0x9E3779B1, 0x21F0AAAD, 0x735A2D97


def draw_keys(generator: torch.Generator | None) -> tuple[int, int]:
    """Two numbers below 2^32 that stand for all the noise of one score."""
    first, second = torch.randint(0, 2 ** 32, (2,), generator=generator).tolist()
    return first, second


def uniform(shape: tuple[int, ...], keys: tuple[int, int]) -> Tensor:
    """fp32 numbers in (0, 1), never 0 and never 1: the hash of each place of a tensor of that shape, in row order."""
    x = np.arange(math.prod(shape), dtype=np.uint32) * np.uint32(STRIDE) + np.uint32(keys[0])
    x ^= x >> np.uint32(16)
    x *= np.uint32(FIRST)
    x ^= np.uint32(keys[1])
    x ^= x >> np.uint32(15)
    x *= np.uint32(SECOND)
    x ^= x >> np.uint32(15)
    return torch.from_numpy(((x >> np.uint32(9)).astype(np.float32) + np.float32(0.5)) * np.float32(2 ** -23)).view(shape)


def gumbel_score(logits: Float[Tensor, "*b s"], tau: float, generator: torch.Generator | None,
                 noise: str = "gumbel") -> Float[Tensor, "*b s"]:
    """softmax((logits + noise) / tau) along the last axis, the noise fresh for every logit.

    "gaussian" has Gumbel's variance, pi^2 / 6. Logits of -inf stay at probability 0.
    Source: arXiv 2403.09054, equations 5 to 8.
    """
    if noise == "gumbel":
        logits = logits - uniform(tuple(logits.shape), draw_keys(generator)).log_().neg_().log_().to(logits.device)
    elif noise == "gaussian":
        normal = torch.randn(logits.shape, generator=generator).to(logits.device)
        logits = logits + normal * (math.pi / math.sqrt(6))
    return (logits / tau).softmax(-1)


def received(attn: Float[Tensor, "rg t s"], num_rows: int, tau: float, generator: torch.Generator | None,
             noise: str = "gumbel") -> Float[Tensor, "{num_rows} s"]:
    """`gumbel_score` of attention probabilities, summed over the T rows and averaged over the heads of a group.

    A probability's log is its logit up to a constant of the row, which the softmax cancels.
    """
    if noise == "gumbel" and kernel_applies(attn, attn, attn):
        share_threads()
        score, keys = np.zeros((num_rows, attn.shape[2]), np.float32), draw_keys(generator)
        _add_noisy(attn.numpy(), np.float32(1 / tau), np.uint32(keys[0]), np.uint32(keys[1]), score)
        return torch.from_numpy(score)
    return gumbel_score(attn.log(), tau, generator, noise).unflatten(0, (num_rows, -1)).mean(1).sum(1)


@compiled()
def _add_noisy(attn, power, key, second_key, score):
    """attn (R * G, T, S) -> adds the mean over G of the sum over T of the noisy softmax to score (R, S)."""
    group, num_new, num_slots = attn.shape[0] // score.shape[0], attn.shape[1], attn.shape[2]
    for r in prange(score.shape[0]):
        row = np.empty(num_slots, np.float32)
        for head in range(r * group, (r + 1) * group):
            for t in range(num_new):
                probs = attn[head, t]
                _noisy_logits(probs, (head * num_new + t) * num_slots, key, second_key, power, row)
                _add_softmax(probs, row, np.float32(1) / np.float32(group), score[r])


@compiled(parallel=False)
def _noisy_logits(probs, first, key, second_key, power, row):
    """row = log(p / -log u) * power, u the number of place first + s as `uniform` makes it."""
    for s in range(row.size):
        x = np.uint32(np.uint32(np.uint32(first + s) * np.uint32(STRIDE)) + key)
        x = np.uint32(np.uint32(x ^ (x >> np.uint32(16))) * np.uint32(FIRST))
        x = np.uint32(x ^ second_key)
        x = np.uint32(np.uint32(x ^ (x >> np.uint32(15))) * np.uint32(SECOND))
        x = np.uint32(x ^ (x >> np.uint32(15)))
        row[s] = (np.float32(np.int32(x >> np.uint32(9))) + np.float32(0.5)) * np.float32(2 ** -23)
    for s in range(row.size):                              # loops apart: the compiler vectorizes each of them
        row[s] = log(probs[s] / -log(row[s])) * power


@compiled(parallel=False)
def _add_softmax(probs, row, weight, total):
    """total += weight * softmax(row); what had probability 0 keeps it."""
    highest = row[0]
    for s in range(row.size):
        highest = max(highest, row[s])
    mass = np.float32(0)
    for s in range(row.size):
        p = exp(row[s] - highest) if probs[s] > 0 else np.float32(0)
        row[s] = p
        mass += p
    share = weight / mass
    for s in range(row.size):
        total[s] += row[s] * share
