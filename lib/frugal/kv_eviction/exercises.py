"""The family's exercises, in the order of the notebook: `from frugal.kv_eviction import exercises as ex`."""

from frugal.kv_eviction import exercises_based, exercises_cache, exercises_policies, exercises_tim

EXERCISES = [*exercises_policies.EXERCISES, *exercises_cache.EXERCISES, *exercises_tim.EXERCISES, *exercises_based.EXERCISES]
globals().update({exercise.key: exercise for exercise in EXERCISES})
__all__ = ["EXERCISES", *(exercise.key for exercise in EXERCISES)]
