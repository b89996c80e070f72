"""The family's exercises, in the order of the notebook: `from frugal.early_exit import exercises as ex`."""
from frugal.early_exit import exercises_duo_llm, exercises_exits, exercises_r2r, exercises_skipdecode

EXERCISES = [*exercises_exits.EXERCISES, *exercises_skipdecode.EXERCISES, *exercises_duo_llm.EXERCISES, *exercises_r2r.EXERCISES]
globals().update({exercise.key: exercise for exercise in EXERCISES})
__all__ = ["EXERCISES", *(exercise.key for exercise in EXERCISES)]
