"""The exercises on SkipDecode: stub, reference and every planted wrong answer get what they should."""
import pytest

from frugal.early_exit import exercises_skipdecode as ex
from frugal.explore.exercises import problems


@pytest.mark.parametrize("exercise", ex.EXERCISES, ids=lambda e: e.key)
def test_nothing_is_unproven(exercise):
    assert problems(exercise) == []
