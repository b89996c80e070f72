"""KV-cache eviction and its alternatives: which of the past a model may forget, and what it costs.

One file a paper. A new method is one file and one line in ALL.
"""
from frugal.kv_eviction.based import Based
from frugal.kv_eviction.baselines import TOVA, Full, HeavyHitter, Knorm, Random, SnapKV, StreamingLLM, Window
from frugal.kv_eviction.keyformer import Keyformer
from frugal.kv_eviction.mikv import Mikv
from frugal.kv_eviction.shadowkv import Shadowkv
from frugal.kv_eviction.timrun import Timrun
from frugal.kv_eviction.workloads import WORKLOADS  # noqa: F401  (what `frugal sweep kv_eviction` runs on)

ALL = [Full, Random, Window, StreamingLLM, HeavyHitter, SnapKV, TOVA, Knorm, Keyformer, Mikv, Shadowkv, Timrun, Based]
