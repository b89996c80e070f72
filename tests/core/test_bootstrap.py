"""Bootstrap intervals: the closed form of a mean, pairing, coverage, and bad input."""
import numpy as np
import pytest

from frugal.core.bootstrap import Interval, interval


def mean(sums):
    return sums["x"] / sums["n"]


def columns(x):
    return {"x": x, "n": np.ones(len(x))}


def test_interval_of_a_mean_is_that_of_the_normal_formula():
    x = np.random.default_rng(1).normal(3, 2, 400)
    found = interval(columns(x), mean)
    half = 1.96 * x.std() / 20
    assert found.value == pytest.approx(x.mean())
    assert found.low == pytest.approx(x.mean() - half, abs=0.02) and found.high == pytest.approx(x.mean() + half, abs=0.02)


def test_it_covers_the_truth_as_often_as_it_says():
    generator = np.random.default_rng(2)
    hits = sum(not interval(columns(generator.normal(0, 1, 60)), mean, draws=400, level=0.8, seed=i).excludes(0) for i in range(200))
    assert 0.7 < hits / 200 < 0.9


def test_a_paired_difference_is_far_narrower_than_an_unpaired_one():
    generator = np.random.default_rng(3)
    a = generator.normal(0, 5, 200)
    b = a + 0.5 + generator.normal(0, 0.1, 200)
    paired = interval({"a": a, "b": b, "n": np.ones(200)}, lambda s: (s["b"] - s["a"]) / s["n"])
    apart = interval({"a": a, "b": generator.permutation(b), "n": np.ones(200)}, lambda s: (s["b"] - s["a"]) / s["n"])
    assert paired.excludes(0) and not apart.excludes(0)
    assert paired.high - paired.low < 0.1 * (apart.high - apart.low)


def test_a_ratio_of_sums_is_no_mean_of_ratios():
    found = interval({"false": [1, 0], "said": [1, 9]}, lambda s: s["false"] / s["said"])
    assert found.value == pytest.approx(0.1)


def test_draws_without_a_statistic_are_left_out():
    found = interval({"false": [0, 1], "said": [0, 2]}, lambda s: s["false"] / s["said"], draws=64)
    assert found == Interval(0.5, 0.5, 0.5)
    nothing = interval({"false": [0], "said": [0]}, lambda s: s["false"] / s["said"], draws=8)
    assert np.isnan(nothing.value) and np.isnan(nothing.low)


@pytest.mark.parametrize("bad, options, message", [
    ({"a": [1, 2], "b": [1]}, {}, "lengths"), ({}, {}, "lengths"), ({"a": []}, {}, "lengths"), ({"a": [1]}, {"level": 1.0}, "level")])
def test_bad_input(bad, options, message):
    with pytest.raises(ValueError, match=message):
        interval(bad, lambda s: s["a"], **options)
