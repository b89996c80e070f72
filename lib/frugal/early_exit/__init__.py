"""Early exit and adaptive depth: fewer layers for the tokens that do not need them, and what it really saves.

One file a paper. A new method is one file and one line in ALL.
"""
from frugal.early_exit.calm import ConfidenceExit
from frugal.early_exit.duo_llm import DuoLLM
from frugal.early_exit.fixed_exit import FixedExit, Full
from frugal.early_exit.r2r import R2R
from frugal.early_exit.self_speculative import SelfSpeculative
from frugal.early_exit.skip_baselines import EarlyTermination, MiddleSkip
from frugal.early_exit.skipdecode import SkipDecode
from frugal.early_exit.unified_skipping import UnifiedSkipping
from frugal.early_exit.workloads import WORKLOADS  # noqa: F401  (what `frugal sweep early_exit` runs on)

ALL = [Full, FixedExit, UnifiedSkipping, MiddleSkip, EarlyTermination, ConfidenceExit, SelfSpeculative, SkipDecode, DuoLLM, R2R]
