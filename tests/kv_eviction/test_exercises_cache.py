"""The exercises on compressed caches: stub, reference and every planted wrong answer get what they should."""
import pytest
import torch

from frugal.explore.exercises import problems
from frugal.kv_eviction import exercises_cache as ex


@pytest.mark.parametrize("exercise", ex.EXERCISES, ids=lambda e: e.key)
def test_nothing_is_unproven(exercise):
    assert problems(exercise) == []


def test_the_supplied_tensors_show_what_the_exercise_is_about():
    for seed in range(4):
        q, k = ex._prompt(seed)
        assert ex.logit_error(q, k, ex.channel_balancer_solution(q, k)) < 0.8 * ex.logit_error(q, k, torch.ones(8))
        q, keys = ex._scene(seed)
        assert ex.mass_caught(q, keys, ex.select_chunks_solution(q, keys.mean(1), 4)) > 0.5
