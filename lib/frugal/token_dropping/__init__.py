"""Visual-token dropping and steering: which picture tokens a decoder reads at all, and whether it heeds them.

One file a paper. A new method is one file and one line in ALL.
"""
from frugal.token_dropping.baselines import Full, OverviewOnly, RandomDrop, SpatialPool, StratifiedRandom, UniformGrid
from frugal.token_dropping.fastv import FastV
from frugal.token_dropping.hired import HiRED, HiREDReleased
from frugal.token_dropping.paint import Paint
from frugal.token_dropping.prumerge import PruMerge, PruMergePlus
from frugal.token_dropping.vista import Vista
from frugal.token_dropping.workloads import WORKLOADS  # noqa: F401  (what `frugal sweep token_dropping` runs on)

ALL = [Full, RandomDrop, StratifiedRandom, OverviewOnly, UniformGrid, SpatialPool, PruMerge, PruMergePlus, FastV, HiRED, HiREDReleased,
       Paint, Vista]
