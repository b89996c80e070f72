"""Figures of steering: every choice draws the recorded rows, and what is drawn is what was recorded."""
import pytest
import torch

from frugal.core.recording import load_recorded
from frugal.data.scenes import to_views
from frugal.explore import figure_summary, figure_table, unpack
from frugal.token_dropping import figures_steering as steering
from frugal.token_dropping import figures_vista as vista


@pytest.mark.parametrize("name", list(steering.FIGURES))
def test_every_choice_draws_something_and_says_it(name):
    explorer = steering.FIGURES[name]()
    for point in explorer.payload["points"]:
        assert "e" not in point and len(point["s"]) > 40 and "nan" not in point["s"].replace("banana", "").lower()
    assert len(explorer.payload["points"]) == max(1, torch.tensor([len(c.values) for c in explorer.controls]).prod().item())
    assert len(unpack(explorer.payload)["data"]) > 0


def test_the_curve_shows_the_recorded_figures_and_its_axes_stand_still():
    rows = load_recorded("token_dropping", "paint_alpha")
    curves = {m: steering.paint_curve(rows, m) for m in ("PAINT", "PAI")}
    own = rows[rows.method == "PAINT"].sort_values("alpha")
    for name, column in (("CHAIR_I", "chair_i"), ("recall", "recall"), ("names said per object", "fullness")):
        line = next(t for t in curves["PAINT"].data if t.name == name)
        assert list(line.y) == pytest.approx((100 * own[column]).tolist()) and list(line.x) == own.alpha.tolist()
        plain = next(t for t in curves["PAINT"].data if t.name == f"{name}, greedy")
        assert plain.y[0] == pytest.approx(100 * rows[rows.method == "greedy"][column].iloc[0])
    assert curves["PAINT"].layout.yaxis.range == curves["PAI"].layout.yaxis.range


def test_strength_0_without_contrast_is_greedy():
    for name, knob in (("paint_alpha", "alpha"), ("vista_controls", "strength"), ("vista_grid", "strength")):
        rows = load_recorded("token_dropping", name)
        plain = rows[rows.method == "greedy"].iloc[0]
        off = rows[(rows[knob] == 0) & ~rows.method.isin(["greedy", "PAINT", "PAI"])]
        off = off[off.alpha == 0] if name == "vista_grid" else off
        assert len(off) and (off.chair_i == plain.chair_i).all() and (off.recall == plain.recall).all() and (off["cut"] == 0).all()


@pytest.mark.parametrize("token", [0, 9, 63, 64, 64 + 9, 128 + 7, 192 + 56, 256 + 63, 319])
def test_a_token_is_drawn_where_its_pixels_are(token):
    """The one patch of the one view that lights up when the drawn place of the scene does."""
    tiles = token >= 64
    row, column = steering._place(token, tiles)
    size = 8 if tiles else 16
    image = torch.zeros(1, 3, 128, 128)
    image[:, :, row * size:(row + 1) * size, column * size:(column + 1) * size] = 1
    lit = to_views(image)[0].mean(1).unfold(1, 8, 8).unfold(2, 8, 8).mean((-1, -2))              # (5, 8, 8)
    full = (lit.flatten() == 1).nonzero().flatten().tolist()
    assert token in full and [t for t in full if (t >= 64) == tiles] == [token]


def test_token_sets_draws_every_recorded_token():
    rows = load_recorded("token_dropping", "paint_sets")
    for scene in rows.scene.unique():
        fig = steering.token_sets(rows, int(scene))
        for name in ("local", "summary"):
            drawn = sum(len(t.x) for t in fig.data if t.name == name)
            assert drawn == ((rows.scene == scene) & (rows.set == name)).sum()


def test_captions_are_judged_name_by_name():
    rows = load_recorded("token_dropping", "paint_words")
    row = rows.iloc[len(rows) // 2]
    table = figure_table(steering.caption_words(rows, int(row.scene), row["mode"], row.method, float(row.strength)))
    said = row.said.split()
    marks = table.iloc[len(table) - len(said):]
    assert [t.strip() for t in marks.token] == said
    assert marks["in the scene (1 = yes)"].tolist() == [float(name in row.truth.split()) for name in said]


def test_the_map_and_the_ranks_are_those_recorded():
    rows = load_recorded("token_dropping", "vista_grid")
    fig = vista.strength_map(rows, "recall")
    own = rows[(rows.method == "VISTA") & (rows.strength == 0.08) & (rows.alpha == 0.3)]
    at = fig.data[0].y.tolist().index("0.3") if hasattr(fig.data[0].y, "tolist") else list(fig.data[0].y).index("0.3")
    assert fig.data[0].z[at][list(fig.data[0].x).index("0.08")] == pytest.approx(100 * own.recall.iloc[0])
    ranks = load_recorded("token_dropping", "vista_ranks")
    for by in ("step", "layer"):
        line = next(t for t in vista.rank_curves(ranks, by).data if t.name == "hidden true")
        own = ranks[(ranks.by == by) & (ranks.set == "hidden true") & (ranks.scenes >= 20)].sort_values("at")
        assert list(line.y) == pytest.approx(own["rank"].tolist())


def test_a_bar_that_meets_zero_is_drawn_hollow():
    rows = load_recorded("token_dropping", "steering_final")
    fig = steering.comparison(rows, "free", "cut")
    own = rows[rows["mode"] == "free"].set_index("method")
    for method, symbol in zip(fig.data[0].y, fig.data[0].marker.symbol):
        clear = own.loc[method, "cut_low"] > 0 or own.loc[method, "cut_high"] < 0
        assert symbol == ("circle" if clear else "circle-open")
    assert "greedy" not in fig.data[0].y and len(figure_summary(fig)) > 60


@pytest.mark.parametrize("call, message", [
    (lambda: steering.attention_mass(load_recorded("token_dropping", "paint_mass"), "during"), "view 'during'"),
    (lambda: steering.comparison(load_recorded("token_dropping", "steering_final"), "free", "bleu"), "axis 'bleu'"),
    (lambda: vista.strength_map(load_recorded("token_dropping", "vista_grid"), "bleu"), "score 'bleu'"),
])
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
