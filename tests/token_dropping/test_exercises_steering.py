"""The steering exercises: stub, reference and planted wrong answers, each with its own hint."""
import pytest

from frugal.explore.exercises import problems
from frugal.token_dropping.exercises_steering import EXERCISES


@pytest.mark.parametrize("exercise", EXERCISES, ids=lambda e: e.key)
def test_the_exercise_is_proven(exercise):
    assert problems(exercise) == []
