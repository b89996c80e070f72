"""The family's exercises, in the order of the notebook: `from frugal.token_dropping import exercises as ex`."""

from frugal.token_dropping import exercises_hired, exercises_steering

EXERCISES = [*exercises_hired.EXERCISES, *exercises_steering.EXERCISES]
globals().update({exercise.key: exercise for exercise in EXERCISES})
__all__ = ["EXERCISES", *(exercise.key for exercise in EXERCISES)]
