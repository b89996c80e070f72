"""Claims of BASED: the projection by hand, and what moves it."""

import pytest

from frugal.core.claims import verify
from frugal.core.devices import device
from frugal.kv_eviction import claims_based
from frugal.kv_eviction.based_recall import speed_rows


def test_projected_throughput_by_hand():
    """Bytes of one step at batch 128: weights, and 512 tokens of cache against state read and written plus window."""
    weights = 2 * (24 * (4 * 2048**2 + 3 * 2048 * 5504 + 2 * 2048) + 50257 * 2048 + 2048)
    full = weights + 128 * 512 * 2 * 24 * 2048 * 2
    linear, window = 16 * 273 * 129 * 2 * 5 * 24 / 27, 2 * 64 * 2048 * 2 * 5 * 24 / 27
    assert claims_based.based_state_bytes() == pytest.approx((linear, window))
    assert claims_based.projected_throughput() == pytest.approx(
        full / (weights + 128 * (2 * linear + window)), rel=1e-6
    )
    assert device("A100-80GB").bandwidth > 1e12


def test_longer_texts_and_larger_batches_favour_the_constant_state():
    ratio = [claims_based.projected_throughput(b, t) for b, t in ((1, 1024), (128, 1024), (128, 8192))]
    assert ratio == sorted(ratio) and ratio[0] < 1.2


@pytest.mark.parametrize("claim", claims_based.CLAIMS, ids=lambda c: c.key)
def test_verdicts_are_the_recorded_ones(claim):
    finding = verify(claim)
    assert finding.verdict == claim.verdict, finding.evidence


def test_measured_live_the_constant_state_is_faster_at_2048_tokens():
    """Process time of one thread, so a busy machine does not matter; the recorded ratio is about 5."""
    rows = speed_rows(("attention", "taylor_16"), (2048,), (8,), steps=8, repeats=3)
    seconds = {row["configuration"]: row["cpu_step_s"] for row in rows}
    assert seconds["attention"] > 1.3 * seconds["taylor_16"]
