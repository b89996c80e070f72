import mmap
import platform
import subprocess
import sys
import time

import pytest
import torch

from frugal.core import measure
from frugal.core.linear import linear


def spin(seconds):
    def work():
        end = time.process_time() + seconds
        while time.process_time() < end:
            pass
    return work


def test_compare_finds_the_ratio_of_work():
    table = measure.compare({"baseline": spin(0.02), "ours": spin(0.005)}, repeats=5).set_index("name")
    assert table.loc["baseline", "speedup"] == 1.0
    assert 3.0 < table.loc["ours", "cpu_ratio"] < 5.0
    assert 0.004 < table.loc["ours", "cpu_s"] < 0.008
    assert (table.low_s <= table.median_s).all() and (table.median_s <= table.high_s).all()


def test_compare_interleaves_and_turns_the_order():
    calls = []
    measure.compare({name: (lambda name=name: calls.append(name)) for name in "abc"}, repeats=3, warmup=1)
    assert "".join(calls) == "abc" + "abc" + "bca" + "cab"


@pytest.mark.parametrize("kwargs", [{"repeats": 0}, {"warmup": -1}, {"fns": {}}])
def test_compare_names_bad_arguments(kwargs):
    with pytest.raises(ValueError, match="compare needs at least one function"):
        measure.compare(**{"fns": {"a": list}, **kwargs})


def test_num_threads_comes_back_even_after_an_error():
    before = torch.get_num_threads()
    with pytest.raises(KeyError), measure.num_threads(before + 1):
        assert torch.get_num_threads() == before + 1
        raise KeyError
    assert torch.get_num_threads() == before
    with pytest.raises(ValueError, match="num_threads 0"), measure.num_threads(0):
        pass


@pytest.mark.parametrize("rows", [1, 4, 64])
def test_counted_flops_are_two_per_multiply_add_whatever_kernel_runs(rows):
    weight, x = torch.randn(48, 32), torch.randn(rows, 32)
    assert measure.counted_flops(lambda: linear(x, weight)) == 2 * rows * 48 * 32


@pytest.mark.parametrize("new", [1, 3, 40])
def test_counted_flops_see_attention_whatever_kernel_runs(new):
    from frugal.core.lm import random_lm
    lm = random_lm()
    cache, c = lm.new_cache(), lm.config
    lm(torch.zeros(1, 9, dtype=torch.long), cache)
    tokens = torch.zeros(1, new, dtype=torch.long)
    products = 2 * new * (sum(w.numel() for layer in lm.layers for w in layer.values() if w.ndim == 2) + lm.head.numel())
    attention = 4 * new * (9 + new) * c.num_heads * c.head_dim * c.num_layers             # masked places are multiplied too
    assert measure.counted_flops(lambda: lm(tokens, cache)) == products + attention


def test_memory_is_read_from_the_process():
    before, size = measure.rss_bytes(), 96 * measure.MIB
    with mmap.mmap(-1, size) as block:                     # fresh pages: an allocator may have a freed block at hand
        for page in range(0, size, 4096):
            block[page] = 1
        assert 80 * measure.MIB < measure.rss_bytes() - before < 128 * measure.MIB
        assert measure.peak_rss_bytes() >= before + 80 * measure.MIB
    assert measure.rss_bytes() < before + 60 * measure.MIB


def test_a_child_does_not_inherit_its_parents_peak():
    block = bytearray(900 * measure.MIB)
    block[::4096] = b"1" * len(block[::4096])
    script = "from frugal.core.measure import peak_rss_bytes; print(peak_rss_bytes())"
    peak = int(subprocess.run([sys.executable, "-c", script], text=True, capture_output=True, check=True).stdout)
    assert peak < 700 * measure.MIB <= measure.peak_rss_bytes() - 200 * measure.MIB and block[4096]


def test_bandwidth_is_below_anything_a_machine_has_and_scales_sanely():
    found = measure.read_bandwidth(threads=1, num_bytes=32 * measure.MIB, repeats=3)
    assert 1e8 < found < 2e12
    assert 1e8 < measure.matmul_flops(threads=1, size=256, repeats=3) < 1e13
    assert measure.bandwidth_share(10**9, 0.1, 40e9) == "10.0 GB/s of 40.0 GB/s read bandwidth (25%)"


def test_hardware_does_not_name_the_machine():
    assert "cores" in measure.hardware() and "GiB" in measure.hardware()
    assert platform.node() not in measure.hardware()
