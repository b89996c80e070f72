"""Attention masks against double loops and matrix constructions, and wrong masks that the loops must tell apart."""
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from frugal.core.masks import prefix_causal, scale_causal


def prefix_loop(num_patches: int, num_registers: int) -> list[list[bool]]:
    total = num_patches + num_registers
    rows = []
    for i in range(total):
        row = []
        for j in range(total):
            if j < num_patches:
                row.append(True)
            else:
                row.append(i >= num_patches and j - num_patches <= i - num_patches)
        rows.append(row)
    return rows


def scale_loop(counts: list[int]) -> list[list[bool]]:
    scales = [scale for scale, count in enumerate(counts) for _ in range(count)]
    return [[mine >= theirs for theirs in scales] for mine in scales]


@given(patches=st.integers(0, 12), registers=st.integers(0, 12))
def test_prefix_mask_is_the_double_loop(patches, registers):
    if patches + registers == 0:
        with pytest.raises(ValueError, match="at least 1"):
            prefix_causal(patches, registers)
    else:
        assert prefix_causal(patches, registers).tolist() == prefix_loop(patches, registers)


@given(counts=st.lists(st.integers(1, 6), min_size=1, max_size=5))
def test_scale_mask_is_the_double_loop_and_the_kronecker_construction(counts):
    mask = scale_causal(counts)
    assert mask.tolist() == scale_loop(counts)
    member = torch.cat([torch.eye(len(counts))[at:at + 1].expand(n, -1) for at, n in enumerate(counts)])    # (T, scales)
    assert torch.equal(mask, member @ torch.ones(len(counts), len(counts)).tril() @ member.T > 0)


@given(scales=st.integers(1, 5), count=st.integers(1, 4))
def test_equal_scales_are_a_plain_kronecker_product(scales, count):
    whole = torch.kron(torch.ones(scales, scales).tril(), torch.ones(count, count)) > 0
    assert torch.equal(scale_causal([count] * scales), whole)


def test_limits():
    assert prefix_causal(5, 0).all() and scale_causal([7]).all()
    assert torch.equal(prefix_causal(0, 4), torch.ones(4, 4, dtype=torch.bool).tril())
    assert torch.equal(scale_causal([1] * 4), torch.ones(4, 4, dtype=torch.bool).tril())


@pytest.mark.parametrize("wrong", [
    lambda p, r: torch.ones(p + r, p + r, dtype=torch.bool).tril(),                        # patches in order too
    lambda p, r: torch.ones(p + r, p + r, dtype=torch.bool),                               # patches see registers
    lambda p, r: prefix_causal(p, r).T,                                                    # rows for columns
])
def test_wrong_prefix_masks_are_seen(wrong):
    assert wrong(3, 4).tolist() != prefix_loop(3, 4)


@pytest.mark.parametrize("wrong", [
    lambda counts: torch.ones(sum(counts), sum(counts), dtype=torch.bool).tril(),          # causal inside a scale
    lambda counts: scale_causal(counts).T,                                                 # fine to coarse
    lambda counts: torch.block_diag(*[torch.ones(n, n) for n in counts]) > 0,              # own scale only
])
def test_wrong_scale_masks_are_seen(wrong):
    assert wrong([1, 4]).tolist() != scale_loop([1, 4])


@pytest.mark.parametrize("call", [lambda: prefix_causal(-1, 2), lambda: prefix_causal(0, 0), lambda: scale_causal([]),
                                  lambda: scale_causal([2, 0])])
def test_bad_counts_are_refused(call):
    with pytest.raises(ValueError, match="whole number|empty"):
        call()
