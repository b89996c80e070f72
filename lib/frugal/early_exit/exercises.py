"""The family's exercises, in the order of the notebook: `from frugal.early_exit import exercises as ex`."""
from frugal.early_exit import exercises_exits

EXERCISES = [*exercises_exits.EXERCISES]
globals().update({exercise.key: exercise for exercise in EXERCISES})
__all__ = ["EXERCISES", *(exercise.key for exercise in EXERCISES)]
