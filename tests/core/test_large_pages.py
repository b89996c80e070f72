"""Weights read into large pages are the mapped ones, in memory of their own and never twice; elsewhere they stay mapped."""
import mmap
import types

import pytest
import torch

from frugal.core import checkpoints, converted, large_pages
from frugal.core.checkpoints import load_lm
from frugal.core.fetch import cache_dir

pytestmark = pytest.mark.usefixtures("own_cache")
MEGABYTE = 1 << 20


@pytest.fixture
def copy(write_gguf):
    """The converted copy of a small model."""
    load_lm(write_gguf())
    path, = (cache_dir() / "converted").glob("*.safetensors")
    return path


@pytest.mark.skipif(not hasattr(mmap, "MADV_HUGEPAGE"), reason="Linux has them")
@pytest.mark.parametrize("memory", [large_pages.large_pages, lambda num_bytes: mmap.mmap(-1, num_bytes)])
def test_read_into_memory_is_the_mapped_copy(copy, memory):
    (config, mapped, _), (same, moved, tokenizer) = converted.read(copy), converted.read(copy, memory)
    assert config == same and mapped.keys() == moved.keys() and tokenizer.encode("the 12")
    for name, w in mapped.items():
        assert torch.equal(moved[name], w) and moved[name].dtype == w.dtype and moved[name].is_contiguous()
        assert moved[name].data_ptr() % 4 == 0
    first, second = list(moved)[:2]
    before = moved[second].clone()
    moved[first].fill_(0)                                  # neighbours do not overlap, and it can be written
    assert torch.equal(moved[second], before) and torch.equal(converted.read(copy)[1][first], mapped[first])


def test_a_changed_byte_is_seen_after_reading_too(copy):
    good = copy.read_bytes()
    copy.unlink()
    copy.write_bytes(good[:-5000] + bytes([good[-5000] ^ 16]) + good[-4999:])
    assert converted.read(copy, lambda num_bytes: mmap.mmap(-1, num_bytes)) is None


def test_load_lm_reads_the_copy_into_one_such_memory(write_gguf, monkeypatch):
    path, asked = write_gguf(), []
    load_lm(path)
    copy, = (cache_dir() / "converted").glob("*.safetensors")
    monkeypatch.setattr(checkpoints, "large_pages", lambda num_bytes: asked.append(num_bytes))
    load_lm(path)
    assert asked == [copy.stat().st_size]


@pytest.mark.skipif(not hasattr(mmap, "MADV_HUGEPAGE"), reason="Linux has them")
def test_fresh_memory_of_the_size_asked_for():
    memory = large_pages.large_pages(3 * MEGABYTE)
    assert len(memory) == 3 * MEGABYTE and not any(memory[:4096])


def test_none_where_memory_is_short(monkeypatch):
    monkeypatch.setattr(large_pages.psutil, "virtual_memory", lambda: types.SimpleNamespace(available=2 * MEGABYTE - 1))
    assert large_pages.large_pages(MEGABYTE) is None


def test_none_on_other_systems_and_where_the_kernel_refuses(monkeypatch):
    def refuse(*args, **options):
        raise OSError("no such memory")
    monkeypatch.setattr(large_pages.mmap, "mmap", refuse)
    assert large_pages.large_pages(MEGABYTE) is None
    monkeypatch.setattr(large_pages.platform, "system", lambda: "Windows")
    assert large_pages.large_pages(MEGABYTE) is None
