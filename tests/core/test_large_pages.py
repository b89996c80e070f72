"""Weights moved to large pages are the same weights, in memory of their own; elsewhere they stay where they are."""
import mmap
import types

import pytest
import torch

from frugal.core import large_pages
from frugal.core.large_pages import ALIGN, in_large_pages

WEIGHTS = {"a": torch.randn(7, 13), "b": torch.randn(5), "c": torch.randn(3, 4).bfloat16()}


@pytest.mark.skipif(not hasattr(mmap, "MADV_HUGEPAGE"), reason="Linux has them")
def test_same_numbers_in_fresh_memory():
    moved = in_large_pages(WEIGHTS)
    assert list(moved) == list(WEIGHTS)
    for name, w in WEIGHTS.items():
        assert torch.equal(moved[name], w) and moved[name].dtype == w.dtype and moved[name].is_contiguous()
        assert moved[name].data_ptr() != w.data_ptr() and moved[name].data_ptr() % ALIGN == 0
    before = moved["b"].clone()
    moved["a"].fill_(0)                                    # neighbours do not overlap, and it can be written
    assert torch.equal(moved["b"], before) and WEIGHTS["a"].any()


def test_stays_where_memory_is_short(monkeypatch):
    monkeypatch.setattr(large_pages.psutil, "virtual_memory", lambda: types.SimpleNamespace(available=ALIGN))
    assert in_large_pages(WEIGHTS) is WEIGHTS


def test_stays_on_other_systems_and_where_the_kernel_refuses(monkeypatch):
    def refuse(*args, **options):
        raise OSError("no such memory")
    monkeypatch.setattr(large_pages.mmap, "mmap", refuse)
    assert in_large_pages(WEIGHTS) is WEIGHTS
    monkeypatch.setattr(large_pages.platform, "system", lambda: "Windows")
    assert in_large_pages(WEIGHTS) is WEIGHTS
