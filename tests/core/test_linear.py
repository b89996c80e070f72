"""The small-batch product equals PyTorch's for every row count and shape, and stays out of the way where it must."""
import json

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from frugal.core import linear as module
from frugal.core.linear import linear


@pytest.fixture(autouse=True)
def kernel_everywhere(monkeypatch):
    monkeypatch.setenv("FRUGAL_KERNEL_ROWS", "32")
    module.kernel_rows.cache_clear()
    yield
    module.kernel_rows.cache_clear()


@given(rows=st.integers(1, 34), out=st.integers(1, 70), inner=st.integers(1, 70), seed=st.integers(0, 9))
@settings(max_examples=120, deadline=None)
def test_equals_pytorch(rows, out, inner, seed):
    generator = torch.Generator().manual_seed(seed)
    x, w = torch.randn(rows, inner, generator=generator), torch.randn(out, inner, generator=generator)
    assert torch.allclose(linear(x, w), F.linear(x, w), atol=1e-4, rtol=1e-4)


def test_keeps_leading_axes():
    x, w = torch.randn(2, 3, 8), torch.randn(5, 8)
    assert torch.allclose(linear(x, w), F.linear(x, w), atol=1e-5) and linear(x, w).shape == (2, 3, 5)


def test_gradients_take_the_pytorch_path():
    x, w = torch.randn(2, 8, requires_grad=True), torch.randn(5, 8)
    linear(x, w).sum().backward()
    assert torch.allclose(x.grad, w.sum(0).expand(2, -1))


def test_other_dtypes_and_views_fall_back():
    x, w = torch.randn(2, 8, dtype=torch.float64), torch.randn(5, 8, dtype=torch.float64)
    assert torch.equal(linear(x, w), F.linear(x, w))
    narrow = torch.randn(8, 5).T
    assert torch.allclose(linear(torch.ones(1, 8), narrow), F.linear(torch.ones(1, 8), narrow), atol=1e-5)


def test_works_without_numba(monkeypatch):
    monkeypatch.setattr(module, "numba", None)
    x, w = torch.randn(2, 8), torch.randn(5, 8)
    assert torch.equal(linear(x, w), F.linear(x, w))
    module.kernel_rows.cache_clear()
    assert module.kernel_rows(2) == 0


def test_calibration_is_remembered_and_survives_a_broken_file(monkeypatch, tmp_path):
    monkeypatch.delenv("FRUGAL_KERNEL_ROWS")
    monkeypatch.setenv("FRUGAL_CACHE", str(tmp_path))
    calls = []
    monkeypatch.setattr(module, "_calibrate", lambda: calls.append(1) or 8)
    (tmp_path / "kernel_rows.json").write_text('{"cut o')
    assert module.kernel_rows(2) == 8
    module.kernel_rows.cache_clear()
    assert module.kernel_rows(2) == 8 and len(calls) == 1
    assert list(json.loads((tmp_path / "kernel_rows.json").read_text()).values()) == [8]


def test_a_kernel_that_forgets_the_rows_left_over_is_rejected(monkeypatch):
    """The planted mistake: rows of the weight beyond the last full set of streams stay unwritten."""
    def forgetful(w, x, out, threads):
        full = w.shape[0] // (4 * threads) * 4 * threads
        out[:] = 0
        out[:, :full] = x @ w[:full].T
    monkeypatch.setattr(module, "product", forgetful)
    x, w = torch.randn(1, 16), torch.randn(13, 16)
    assert not torch.allclose(linear(x, w), F.linear(x, w), atol=1e-4)


def test_calibration_drops_a_slow_kernel_and_leaves_the_threads_alone(monkeypatch):
    """The planted mistake: a kernel that does its work four times."""
    fast, threads = module._kernel_linear, torch.get_num_threads()
    monkeypatch.setattr(module, "ROWS_TIMED", (1, 4))

    def slow(x, w, rows):
        for _ in range(4):
            F.linear(x, w)
        return fast(x, w, rows)
    monkeypatch.setattr(module, "_kernel_linear", slow)
    assert module._calibrate() == 0 and torch.get_num_threads() == threads
