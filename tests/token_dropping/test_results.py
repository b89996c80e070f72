"""Rows scene by scene: shares and paired differences against sums by hand, and figures that draw them."""
import math

import numpy as np
import pandas as pd
import pytest

from frugal.explore import figure_summary, figure_table
from frugal.token_dropping import figures_hired, results
from frugal.token_dropping.workloads import SCORES as COUNTED
from frugal.token_dropping.workloads import tally


def table(seeds=2, scenes=30):
    """Rows of three methods: hired is right a little more often than spatial_pool, on the same questions."""
    rng, rows = np.random.default_rng(0), []
    for seed in range(seeds):
        asked = rng.integers(1, 5, scenes)
        base = rng.random((scenes, 4))
        for method, skill in (("full", 0.9), ("hired", 0.8), ("spatial_pool", 0.5), ("random", 0.5)):
            for budget in ([1.0] if method == "full" else [0.2, 0.1]):
                right = [(base[i, :n] < skill * (0.5 + budget)).sum() for i, n in enumerate(asked)]
                row = {
                    "method": method, "budget": budget, "seed": seed, "workload": "scenes", "error": "",
                    "held_tok": 320 * budget, "cache_bytes": 1e6 * budget, "spent_flops": 1e9 * budget
                }
                for score in results.SCORES:
                    row |= {f"{score}_right": "".join(map(str, right)), f"{score}_asked": "".join(map(str, asked))}
                rows.append(row)
    return pd.DataFrame(rows)


def test_shares_and_differences_by_hand():
    rows = table()
    ours, theirs = results.at(rows, "hired", 0.2), results.at(rows, "spatial_pool", 0.2)
    right, asked = ([
        int(c) for r in sorted(ours.to_dict("records"), key=lambda r: r["seed"]) for c in r[f"place_{what}"]
    ] for what in ("right", "asked"))
    other = [int(c) for r in theirs.sort_values("seed").place_right for c in r]
    found = results.share(ours, "place")
    assert found.value == pytest.approx(sum(right) / sum(asked)) and found.low < found.value < found.high
    paired = results.difference(ours, theirs, "place")
    assert paired.value == pytest.approx((sum(right) - sum(other)) / sum(asked)) and paired.low > 0
    assert paired.high - paired.low < found.high - found.low + (results.share(theirs, "place").high -
                                                                results.share(theirs, "place").low)


def test_methods_asked_differently_are_not_compared():
    rows = table()
    other = results.at(rows, "random", 0.2).copy()
    other["place_asked"] = other.place_asked.str[::-1]
    with pytest.raises(ValueError, match="not asked the same"):
        results.difference(results.at(rows, "hired", 0.2), other, "place")


def test_tally_keeps_one_digit_a_scene():
    parts = [{name: [(1, 2), (3, 4)] for name in (*COUNTED, "false", "found")},
             {name: [(0, 0)] for name in (*COUNTED, "false", "found")}]
    row = tally(parts)
    assert row["place_right"] == "130" and row["place_asked"] == "240" and row["place"] == pytest.approx(4 / 6)
    assert math.isnan(tally([{name: [(0, 0)] for name in (*COUNTED, "false", "found")}])["count"])


@pytest.mark.parametrize("score", list(results.SCORES))
@pytest.mark.parametrize("method", ["hired", "spatial_pool", "random"])
def test_budget_curve_draws_every_method_with_its_interval(score, method):
    rows = results.averaged(table())
    fig = figures_hired.budget_curve(rows, score, method)
    strong, = [t for t in fig.data if t.line.width == 4]
    own = rows[(rows.method == method) & (rows.score == score)].sort_values("budget")
    assert strong.name == method and list(strong.y) == own.value.tolist() and list(strong.x) == [0.1, 0.2, 1.0]
    assert list(strong.error_y.array) == pytest.approx((own.high - own.value).tolist())
    assert {t.name
            for t in fig.data} == {"full", "hired", "spatial_pool", "random"} and "60 scenes" in figure_summary(fig)


def test_the_board_counts_wins_by_interval():
    rows = results.board(table())
    fig = figures_hired.win_board(rows, "spatial_pool")
    own = rows[rows.against == "spatial_pool"]
    assert len(figure_table(fig)) == len(own) == 2 * len(
        results.SCORES) and f"wins in {(own.low > 0).sum()}" in figure_summary(fig)
    assert fig.data[0].z[0][1] == own[(own.score == "existence") & (own.budget == 0.2)].points.iloc[0]
    level = rows[(rows.low <= 0) & (rows.high >= 0)]
    assert sum("level" in word for against in rows.against.unique()
               for row in figures_hired.win_board(rows, against).data[0].text for word in row) == len(level)


def test_costs_are_drawn_with_and_without_the_encoder():
    rows = results.averaged(table())
    rows.attrs["encoder_flops"] = 5e8
    alone, whole = (figures_hired.cost_panel(rows, which) for which in ("decoder alone", "with the encoder"))
    assert "falls 5.0 times" in alone.layout.title.text and f"falls {1.5e9 / 7e8:.1f} times" in whole.layout.title.text
    with pytest.raises(ValueError, match="decoder alone"):
        figures_hired.cost_panel(rows, "none")
