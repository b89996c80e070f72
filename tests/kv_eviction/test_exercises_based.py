"""The BASED exercises: stub, reference and planted wrong answers, each with its own hint."""

import pytest

from frugal.explore.exercises import problems
from frugal.kv_eviction.exercises_based import EXERCISES


@pytest.mark.parametrize("exercise", EXERCISES, ids=lambda e: e.key)
def test_the_exercise_is_proven(exercise):
    assert problems(exercise) == []
