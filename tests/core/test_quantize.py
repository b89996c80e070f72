"""Packing is bit-exact; quantisation stays within half a step; both are real bytes. Wrong versions are rejected."""
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from frugal.core.quantize import Code, effective_bits, pack_bits, packed_bytes, quantize_asym, row_bytes, unpack_bits

BITS = [2, 3, 4, 8]


def codes_of(bits: int, rows: int, count: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 1 << bits, (rows, count), generator=generator).to(torch.uint8)


@settings(max_examples=60, deadline=None)
@given(bits=st.sampled_from(BITS), rows=st.integers(0, 4), count=st.integers(1, 70), seed=st.integers(0, 999))
def test_unpack_undoes_pack(bits, rows, count, seed):
    codes = codes_of(bits, rows, count, seed)
    packed = pack_bits(codes, bits)
    assert packed.dtype == torch.uint8 and packed.shape[-1] == packed_bytes(count, bits)
    assert torch.equal(unpack_bits(packed, bits, count), codes)


@pytest.mark.parametrize("bits", BITS)
def test_packing_is_dense_little_endian_bits(bits):
    """Brute force: write every code as bits, lowest first, and read the bytes off that string."""
    codes = codes_of(bits, 1, 16, seed=bits)[0]
    stream = "".join(format(int(c), f"0{bits}b")[::-1] for c in codes)
    by_hand = [int(stream[i:i + 8][::-1], 2) for i in range(0, len(stream), 8)]
    assert pack_bits(codes, bits).tolist() == by_hand


def test_three_bits_are_eight_values_in_three_bytes():
    assert pack_bits(torch.arange(8, dtype=torch.uint8), 3).shape == (3,)
    assert packed_bytes(64, 3) == 24 and packed_bytes(64, 2) == 16 and packed_bytes(64, 4) == 32


@settings(max_examples=60, deadline=None)
@given(bits=st.sampled_from(BITS), group=st.sampled_from([8, 16, 32, 64, None]), seed=st.integers(0, 999),
       spread=st.sampled_from([0.0, 1e-6, 1e-3, 1.0, 300.0]), offset=st.sampled_from([0.0, -5.0, 1000.3]))
def test_error_is_at_most_half_a_step(bits, group, seed, spread, offset):
    x = torch.randn(3, 5, 64, generator=torch.Generator().manual_seed(seed)) * spread + offset
    code = quantize_asym(x, bits, group)
    error = (code.dequantize(torch.float64) - x.double()).abs().reshape(3, 5, -1, group or 64)
    half_step = code.scale.double()[..., None] / 2
    assert bool((error <= half_step * (1 + 1e-4) + 1e-9 * x.abs().max()).all())


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("group", [32, 64])
def test_bytes_are_real_and_equal_the_formula(bits, group):
    code = quantize_asym(torch.randn(7, 64), bits, group)
    assert code.num_bytes == 7 * row_bytes(64, bits, group) == 7 * (64 * bits // 8 + 4 * 64 // group)
    assert sum(x.numel() * x.element_size() for x in (code.packed, code.scale, code.low)) == code.num_bytes


def test_effective_bits_of_the_paper_notes():
    assert effective_bits(64, 2) == 2.5 and 2 * row_bytes(64, 2) == 40 and 2 * row_bytes(64, 16) == 256


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 999))
def test_more_bits_less_error_and_smaller_groups_less_error(seed):
    x = torch.randn(50, 64, generator=torch.Generator().manual_seed(seed))
    error = {(b, g): float((quantize_asym(x, b, g).dequantize() - x).norm()) for b in BITS for g in (16, 64)}
    assert error[2, 64] > error[3, 64] > error[4, 64] > error[8, 64]
    assert all(error[b, 16] < error[b, 64] for b in BITS)


@pytest.mark.parametrize("bits, group, words", [(5, None, "5 bits"), (1, None, "1 bits"), (4, 48, "group of 48"), (4, 0, "group of 0")])
def test_bad_widths_and_groups_say_so(bits, group, words):
    with pytest.raises(ValueError, match=words):
        quantize_asym(torch.randn(2, 64), bits, group)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e6])
def test_values_that_no_grid_can_hold_are_refused(value):
    x = torch.randn(2, 64)
    x[1, 3] = value
    with pytest.raises(ValueError, match="cannot quantise"):
        quantize_asym(x, 4)


def test_codes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="does not fit"):
        pack_bits(torch.tensor([0, 4], dtype=torch.uint8), 2)
    with pytest.raises(ValueError, match="cannot hold"):
        unpack_bits(torch.zeros(2, dtype=torch.uint8), 2, 9)


def _scale_over_tokens(x: torch.Tensor, bits: int) -> torch.Tensor:
    """Wrong: the grid is shared by all tokens of a channel, not by the channels of a token."""
    return quantize_asym(x.T.contiguous(), bits).dequantize().T


def _symmetric(x: torch.Tensor, bits: int) -> torch.Tensor:
    """Wrong: no offset, so that half of the grid lies where there are no values."""
    step = x.abs().amax(-1, keepdim=True) / ((1 << (bits - 1)) - 1)
    return (x / step).round() * step


def _right(x: torch.Tensor, bits: int) -> torch.Tensor:
    return quantize_asym(x, bits).dequantize()


def keeps_tokens_apart(quantise) -> bool:
    """Per token: one huge token leaves the error of its neighbours alone; and skewed data use the whole grid."""
    calm = torch.rand(16, 64, generator=torch.Generator().manual_seed(0)) + 3.0
    loud = calm.clone()
    loud[0] *= 100
    unharmed = (quantise(loud, 3)[1:] - calm[1:]).norm() < 1.01 * (_right(calm, 3)[1:] - calm[1:]).norm()
    return bool(unharmed and (quantise(calm, 3) - calm).abs().max() <= 1 / 7 / 2 * 1.1)


def test_planted_wrong_quantisers_are_rejected():
    assert keeps_tokens_apart(_right)
    assert not keeps_tokens_apart(_scale_over_tokens)
    assert not keeps_tokens_apart(_symmetric)


def test_code_is_frozen():
    code = quantize_asym(torch.randn(2, 8), 4)
    with pytest.raises(AttributeError):
        code.bits = 2
    assert isinstance(code, Code)
