"""The family's exercises, in the order of the notebook: `from frugal.visual_tokenizers import exercises as ex`."""
from frugal.visual_tokenizers import exercises_shared
from frugal.visual_tokenizers.joined import modules

EXERCISES = [exercise for module in (exercises_shared, *modules("exercises")) for exercise in module.EXERCISES]
globals().update({exercise.key: exercise for exercise in EXERCISES})
__all__ = ["EXERCISES", *(exercise.key for exercise in EXERCISES)]
