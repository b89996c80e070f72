"""Claims of PAINT and VISTA: the recorded verdicts hold, and an interval that covers no effect is no effect."""
import pytest

from frugal.core.claims import verify
from frugal.core.recording import load_recorded
from frugal.token_dropping import claims_paint, claims_vista

CLAIMS = [*claims_paint.CLAIMS, *claims_vista.CLAIMS]


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda c: c.key)
def test_verdicts_are_the_recorded_ones(claim):
    finding = verify(claim)
    assert finding.verdict == claim.verdict, finding.evidence


def test_an_interval_that_covers_no_effect_counts_as_none():
    assert claims_paint.effect(12.0, -3.0, 26.0, 0.0, "cut").measured == 0
    assert claims_paint.effect(12.0, 3.0, 26.0, 0.0, "cut").measured == 12
    assert "12 [-3, 26]" in claims_paint.effect(12.0, -3.0, 26.0, 0.0, "cut").note
    assert claims_paint.effect(0.4, 0.35, 0.45, 0.5, "share").measured == 0.4


def test_final_scenes_are_not_those_the_strengths_were_chosen_on():
    final, grid = load_recorded("token_dropping", "steering_final"), load_recorded("token_dropping", "paint_alpha")
    plain = final[(final.method == "greedy") & (final["mode"] == "free")].iloc[0]
    chosen_on = grid[grid.method == "greedy"].iloc[0]
    assert plain.scenes > chosen_on.scenes and plain.chair_i != chosen_on.chair_i


@pytest.mark.parametrize("method", ["PAINT", "VISTA", "PAI", "random vector", "random tokens"])
def test_the_cut_is_the_change_of_the_recorded_shares(method):
    for mode in ("free", "forced"):
        row, plain = claims_paint.final(method, mode), claims_paint.final("greedy", mode)
        assert row["cut"] == pytest.approx(100 * (1 - row.chair_i / plain.chair_i), abs=0.01)
        assert row.recall_change == pytest.approx(row.recall - plain.recall, abs=1e-4)
        assert row.cut_low <= row["cut"] <= row.cut_high
