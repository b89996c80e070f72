"""Multi-query associative recall: key-value pairs, then each key is asked for once.

Source: arXiv 2312.04927 (Zoology) and its repository, `multiquery_ar`; the synthetic task of BASED (arXiv 2402.18668).
Differs: drawn with one vectorised numpy generator (weighted sampling without replacement by the Gumbel top-k trick,
which has the same distribution as drawing one gap after the other); vocabulary 256 instead of 8,192.
"""

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

__all__ = ["IGNORE", "MQARTask", "accuracy", "data_hash", "mqar_batch"]

IGNORE = -100  # label of the slots that are not scored; F.cross_entropy skips it


@dataclass(frozen=True)
class MQARTask:
    """One cell of the task: `num_pairs` pairs in `length` tokens.

    power: exponent a of the gap law p(gap) ~ gap^(a-1); 0.01 as published: most keys are asked for early.
    Raises ValueError when the pairs do not fit the length or the vocabulary.
    """

    length: int = 64
    num_pairs: int = 4
    vocab_size: int = 256
    power: float = 0.01

    def __post_init__(self):
        if self.num_pairs < 1:
            raise ValueError(f"num_pairs must be at least 1, not {self.num_pairs}")
        if self.length % 2 or self.length < 4:
            raise ValueError(f"length must be an even number of tokens, at least 4, not {self.length}")
        if 4 * self.num_pairs > self.length:
            raise ValueError(
                f"{self.num_pairs} pairs need {4 * self.num_pairs} tokens (pair and query), length is {self.length}; "
                f"allowed: 1..{self.length // 4} pairs"
            )
        if self.vocab_size < 4 or self.num_pairs > self.vocab_size // 2 - 1:
            raise ValueError(
                f"vocab_size {self.vocab_size} has {max(0, self.vocab_size // 2 - 1)} keys, "
                f"{self.num_pairs} pairs asked for"
            )
        if not self.power > 0:
            raise ValueError(f"power must be above 0, not {self.power}")


def mqar_batch(
    task: MQARTask, num_examples: int, rng: np.random.Generator
) -> tuple[Int[Tensor, "batch tokens"], Int[Tensor, "batch tokens"]]:
    """(tokens, labels), int64. A label is the asked value at the slot of the queried key, else IGNORE.

    Gaps are handed out in the order of drawing, as published: early keys tend to be asked for early, so most
    answers lie about 2 * num_pairs tokens back. Keys are 1..vocab/2-1, values vocab/2..vocab-1, each at most once per
    example; free slots hold random tokens.
    """
    if num_examples < 1:
        raise ValueError(f"num_examples must be at least 1, not {num_examples}")
    half, pairs, context = task.vocab_size // 2, task.num_pairs, 2 * task.num_pairs
    keys = 1 + _distinct(rng, num_examples, half - 1, pairs)  # (B, pairs)
    values = half + _distinct(rng, num_examples, task.vocab_size - half, pairs)  # (B, pairs)
    tokens = rng.integers(task.vocab_size, size=(num_examples, task.length))
    tokens[:, 0:context:2], tokens[:, 1:context:2] = keys, values
    num_gaps = (task.length - context) // 2
    log_law = (task.power - 1) * np.log(np.arange(1, num_gaps + 1))
    gaps = _distinct(rng, num_examples, num_gaps, pairs, log_law)  # (B, pairs)
    slots = context + 2 * gaps
    np.put_along_axis(tokens, slots, keys, axis=1)
    labels = np.full((num_examples, task.length), IGNORE)
    np.put_along_axis(labels, slots, values, axis=1)
    return torch.from_numpy(tokens), torch.from_numpy(labels)


def accuracy(predicted: Int[Tensor, "batch tokens"], labels: Int[Tensor, "batch tokens"]) -> float:
    """Share of asked keys whose value is predicted, 0..1."""
    asked = labels != IGNORE
    return ((predicted == labels) & asked).sum().item() / asked.sum().item()


def data_hash(tasks: list[MQARTask], seed: int, num_examples: int = 8) -> str:
    """sha256 over the first examples of each task: two runs that print the same hash saw the same data."""
    digest = hashlib.sha256()
    for index, task in enumerate(tasks):
        for part in mqar_batch(task, num_examples, np.random.default_rng([seed, index])):
            digest.update(part.numpy().astype("<i8").tobytes())
    return digest.hexdigest()


def _distinct(
    rng: np.random.Generator, rows: int, choices: int, size: int, log_law: np.ndarray | float = 0.0
) -> np.ndarray:
    """`size` different numbers of 0..choices-1 per row, in the order of drawing, weighted by exp(log_law)."""
    score = rng.gumbel(size=(rows, choices)) + log_law
    return np.argsort(-score, axis=1)[:, :size]
