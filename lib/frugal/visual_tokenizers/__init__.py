"""Visual (and speech, and item) tokenizers: how few codes a picture, a sound or an item needs.

One file a paper. A new method is one class in `methods` and a place in ALL.
"""
from frugal.visual_tokenizers.baselines import BASELINES
from frugal.visual_tokenizers.methods import ELSEWHERE, TOKENIZERS
from frugal.visual_tokenizers.workloads import WORKLOADS  # noqa: F401  (what `frugal sweep visual_tokenizers` runs on)

ALL = [*BASELINES, *TOKENIZERS, *ELSEWHERE]
