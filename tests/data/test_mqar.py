"""MQAR data: what every example must hold, against loops, and the published gap law."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from frugal.data.mqar import IGNORE, MQARTask, accuracy, data_hash, mqar_batch


def by_hand(tokens, labels, task):
    """Answers of one example by reading it left to right; -1 where a query has no pair."""
    pairs = {int(tokens[2 * i]): int(tokens[2 * i + 1]) for i in range(task.num_pairs)}
    return [pairs.get(int(tokens[t]), -1) for t in range(len(tokens)) if labels[t] != IGNORE]


@given(pairs=st.integers(1, 64), spare=st.integers(0, 40), seed=st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_each_key_is_asked_once_for_its_value(pairs, spare, seed):
    task = MQARTask(4 * pairs + 2 * spare, pairs)
    tokens, labels = mqar_batch(task, 3, np.random.default_rng(seed))
    assert tokens.shape == labels.shape == (3, task.length) and tokens.dtype == torch.int64
    for row, label in zip(tokens, labels, strict=True):
        keys, values = row[0 : 2 * pairs : 2], row[1 : 2 * pairs : 2]
        asked = torch.nonzero(label != IGNORE).flatten()
        assert len(set(keys.tolist())) == len(set(values.tolist())) == pairs
        assert keys.min() >= 1 and keys.max() < 128 <= values.min() and values.max() < 256
        assert sorted(row[asked].tolist()) == sorted(keys.tolist()) and (asked >= 2 * pairs).all()
        assert by_hand(row, label, task) == label[asked].tolist()


def test_gaps_follow_the_power_law():
    """One pair: the gap is one draw of p(g) ~ g^(a-1), g = 1..G; compare with the law over 20,000 draws."""
    task = MQARTask(42, 1)
    _, labels = mqar_batch(task, 20_000, np.random.default_rng(0))
    gap = (labels != IGNORE).int().argmax(1).numpy() // 2  # slot 2 is gap 1
    law = np.arange(1, 21.0) ** -0.99
    counted = np.bincount(gap, minlength=21)[1:] / 20_000
    np.testing.assert_allclose(counted, law / law.sum(), atol=0.012)


def test_drawing_without_replacement_equals_one_draw_after_the_other():
    """Two pairs over four gaps: frequencies of the ordered pair of gaps against exact sequential drawing."""
    task, law = MQARTask(12, 2), np.arange(1, 5.0) ** -0.99
    tokens, labels = mqar_batch(task, 30_000, np.random.default_rng(1))
    law /= law.sum()
    slot = [((tokens == tokens[:, [2 * i]]) & (labels != IGNORE)).int().argmax(1).numpy() // 2 - 2 for i in range(2)]
    counted = np.zeros((4, 4))
    np.add.at(counted, tuple(slot), 1 / 30_000)
    exact = law[:, None] * law / (1 - law[:, None])
    np.fill_diagonal(exact, 0)
    np.testing.assert_allclose(counted, exact, atol=0.012)


def test_the_same_seed_gives_the_same_data():
    tasks = [MQARTask(), MQARTask(128, 16)]
    assert data_hash(tasks, 0) == data_hash(tasks, 0) != data_hash(tasks, 1)


def test_accuracy_counts_asked_slots_only():
    labels = torch.tensor([[IGNORE, 5, IGNORE, 7]])
    assert accuracy(torch.tensor([[9, 5, 9, 0]]), labels) == 0.5


@pytest.mark.parametrize(
    "sizes, message",
    [
        ({"length": 64, "num_pairs": 17}, "1..16"),
        ({"num_pairs": 0}, "not 0"),
        ({"num_pairs": -3}, "not -3"),
        ({"length": 63}, "not 63"),
        ({"length": 1024, "num_pairs": 200}, "127 keys"),
        ({"length": 0}, "not 0"),
        ({"vocab_size": 2}, "vocab_size 2"),
        ({"power": 0.0}, "power"),
        ({"power": float("nan")}, "nan"),
    ],
)
def test_bad_tasks(sizes, message):
    with pytest.raises(ValueError, match=message):
        MQARTask(**sizes)


def test_no_examples():
    with pytest.raises(ValueError, match="not 0"):
        mqar_batch(MQARTask(), 0, np.random.default_rng(0))
