"""The shared pictures: their data, their sentence, their table, and what they refuse."""

import numpy as np
import pandas as pd
import pytest
from frugal.explore import explore, figure_summary, figure_table, pictures
from frugal.explore.pictures import (
    cache_map, heatmap_marginals, image_board, layer_grid, pareto_front, timeline, token_strip, token_tree,
)  # fmt: skip
from frugal.explore.pictures.fronts import front_of
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

NASTY = "<script>alert('x')</script> & $x^2$ %{y}"
TASKS = [{"lane": "GPU", "start": 0.0, "end": 2.0, "kind": "score"}, {"lane": "link", "start": 1.0, "end": 4.0, "kind": NASTY}]
NODES = [{"id": "r", "parent": None, "text": "The"}, {"id": "a", "parent": "r", "text": NASTY, "value": 0.7},
         {"id": "b", "parent": "r", "text": " dog", "state": "pruned"}, {"id": "c", "parent": "a", "text": " sat"}]  # fmt: skip
POINTS = [{"name": "a", "x": 1, "y": 1.0, "y_low": 0.5, "y_high": 1.25}, {"name": "a", "x": 2, "y": 3.0},
          {"name": NASTY, "x": 3, "y": 2.0}, {"name": "b", "x": None, "y": 2.0}]  # fmt: skip
EXAMPLES = {
    "token_strip": lambda: token_strip(["The", NASTY, " sat\n", " on"], [0.1, 0.7, float("nan"), 0.3], title="T", value="mass (share)"),
    "cache_map": lambda: cache_map(np.tri(4)[:, None] > 0, 2, title="T", tokens=["a", NASTY, "c", "d"]),
    "layer_grid": lambda: layer_grid([[0.5, 1], [2, np.nan]], title="T", value="error (share)", x="bits", columns=["2", NASTY]),
    "token_tree": lambda: token_tree(NODES, title="T"),
    "timeline": lambda: timeline(TASKS, title="T", unit="ms"),
    "image_board": lambda: image_board([np.zeros((4, 4)), np.ones((4, 4, 3))], ["black", NASTY], title="T", values=[1, 2.5]),
    "heatmap_marginals": lambda: heatmap_marginals([[1, 3], [5, np.nan]], title="T", value="loss (nats)", x="width", y="depth"),
    "pareto_front": lambda: pareto_front(POINTS, title="T", x="state (bytes)", y="recall (share)"),
}


def test_every_picture_has_an_example_here():
    assert set(EXAMPLES) == set(pictures.__all__)


@pytest.mark.parametrize("name", EXAMPLES)
def test_each_is_pure_fit_for_an_explorer_and_tells_itself_in_words(name):
    first, again = EXAMPLES[name](), EXAMPLES[name]()
    assert first == again
    assert figure_summary(first).startswith("T") and figure_summary(first).endswith(".")
    assert len(figure_table(first)) >= 2
    explorer = explore(lambda rows: EXAMPLES[name](), [1])
    assert explorer.payload["points"][0]["s"] == figure_summary(first)


@pytest.mark.parametrize("name", EXAMPLES)
def test_text_from_data_reaches_plotly_escaped_and_the_table_as_it_was(name):
    fig = EXAMPLES[name]()
    assert "<script" not in str([trace.to_plotly_json() for trace in fig.data]) + str(fig.layout.annotations)
    if name not in ("cache_map", "heatmap_marginals"):  # the text is only for hovering there, or there is none
        assert NASTY in figure_table(fig).to_numpy().astype(str)


def test_token_strip_lines_break_at_the_width_and_after_a_line_break():
    fig = token_strip(["aaaa", "bbbb", "cc\n", "d"], [1, 2, 3, 4], title="T", value="v", width=8)
    assert list(fig.data[0].y) == [0, 0, 1, 2] and list(fig.data[0].base) == [0, 4, 0, 0]
    assert list(fig.data[0].x) == [4, 4, 3, 1]
    numbered, missing = EXAMPLES["token_strip"]().data
    assert list(numbered.marker.color) == [0.1, 0.7, 0.3] and list(missing.text) == [" sat⏎"]


@given(st.lists(st.text(st.characters(blacklist_characters="\n"), min_size=1, max_size=12), min_size=1, max_size=40))
def test_token_strip_tokens_neither_overlap_nor_get_lost(tokens):
    bar = token_strip(tokens, range(len(tokens)), title="T", value="v", width=20).data[0]
    ends: dict = {}
    for start, size, line, token in zip(bar.base, bar.x, bar.y, tokens):
        assert start == ends.get(line, 0) and size == len(token) and (start == 0 or start + size <= 20)
        ends[line] = start + size
    assert sum(ends.values()) == sum(map(len, tokens))


def test_cache_map_tells_held_evicted_new_and_unseen_apart():
    held = np.zeros((3, 2, 5))
    held[0, :, :3] = 1           # the prompt
    held[1, :, [0, 2, 3]] = 1    # position 1 goes, 3 comes
    held[2, 0, [0, 3, 4]] = 1
    held[2, 1, [3, 4]] = 0.5     # half of the heads
    assert cache_map(held, 0, title="T").data[0].z.tolist() == [[2, 2, 2, 0, 0]] * 2
    assert cache_map(held, 1, title="T").data[0].z.tolist() == [[2, 1, 2, 3, 0]] * 2
    assert cache_map(held, title="T").data[0].z.tolist() == [[2, 1, 1, 2, 3], [1, 1, 1, 2, 3]]
    assert "50% of the heads" in cache_map(held, title="T").data[0].text[1][3]
    assert "a layer holds 1 to 3 of them, 2 on average" in figure_summary(cache_map(held, title="T"))
    with pytest.raises(ValueError, match="step=3 is not recorded; recorded: 0 to 2"):
        cache_map(held, 3, title="T")


def test_marginals_leave_out_missing_cells():
    fig = EXAMPLES["heatmap_marginals"]()
    assert fig.data[1].y.tolist() == [3, 3] and fig.data[2].x.tolist() == [2, 5]
    total = heatmap_marginals([[1, 3], [5, 7]], title="T", value="v", x="x", y="y", reduce="sum")
    assert total.data[1].y.tolist() == [6, 10]


def test_the_tree_puts_a_parent_in_the_middle_of_its_children():
    fig = token_tree([{"id": 0, "parent": None, "text": "r"}, *({"id": i, "parent": 0, "text": str(i)} for i in (1, 2, 3))], title="T")
    assert list(fig.data[1].y) == [1.0, 0.0, 1.0, 2.0] and list(fig.data[1].x) == [0, 1, 1, 1]
    chain = [{"id": i, "parent": i - 1 if i else None, "text": "t"} for i in range(3000)]
    assert max(token_tree(chain, title="T").data[1].x) == 2999
    with pytest.raises(ValueError, match="node 'c' stands before its parent 'a'"):
        token_tree([NODES[0], NODES[3]], title="T")
    with pytest.raises(ValueError, match="stands twice"):
        token_tree([NODES[0], NODES[0]], title="T")


def test_timeline_bars_start_and_end_where_the_tasks_do():
    fig = timeline(pd.DataFrame(TASKS), title="T", unit="ms")
    assert [(bar.base[0], bar.x[0], bar.y[0]) for bar in fig.data] == [(0, 2, "GPU"), (1, 3, "link")]
    assert figure_summary(fig) == "T: from 0 to 4 ms; GPU busy 2 ms, link busy 3 ms."
    with pytest.raises(ValueError, match="ends before it starts"):
        timeline([{"lane": "a", "kind": "b", "start": 2, "end": 1}], title="T")


def test_a_board_shows_the_pixels_it_was_given():
    import base64
    import io

    red = np.zeros((2, 3, 3), np.uint8)
    red[..., 0] = 200
    board = image_board([red, Image.new("L", (4, 4), 255)], ["red", "white"], title="T")
    sources = [base64.b64decode(image.source.split(",")[1]) for image in board.layout.images]
    with Image.open(io.BytesIO(sources[0])) as image:
        assert image.getpixel((0, 0)) == (198, 0, 0) and image.width / image.height == 1.5  # 64 steps a channel
    with pytest.raises(ValueError, match=r"shape \(4,\) is no picture"):
        image_board([np.zeros(4)], ["x"], title="T")
    with pytest.raises(ValueError, match="values from 0 to 1 and no NaN"):
        image_board([np.full((2, 2), 3.0)], ["x"], title="T")


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=30), st.sampled_from([1, -1]), st.sampled_from([1, -1]))
def test_the_front_is_what_a_search_by_pairs_finds(points, sx, sy):
    def beaten(p):
        return any((sx * q[0] >= sx * p[0] and sy * q[1] >= sy * p[1]) and q != p for q in points)

    assert front_of(points, (sx, sy)) == sorted({p for p in points if not beaten(p)})


def test_pareto_intervals_and_missing_points():
    fig = EXAMPLES["pareto_front"]()
    assert list(fig.data[0].error_y.array) == [0.25, None] and list(fig.data[0].error_y.arrayminus) == [0.5, None]
    assert figure_summary(fig).endswith("on the front: a. 1 without a number.")
    table = figure_table(fig)
    assert table["recall (share), low"].tolist()[0] == 0.5 and table["recall (share), high"].tolist()[0] == 1.25
    with pytest.raises(ValueError, match="better='best'"):
        pareto_front(POINTS, title="T", x="x", y="y", better="best")


@pytest.mark.parametrize("call", [
    lambda: token_strip([], [], title="T", value="v"), lambda: token_strip(["a"], [1, 2], title="T", value="v"),
    lambda: cache_map(np.zeros((0, 2, 3)), title="T"), lambda: layer_grid([], title="T", value="v", x="x"),
    lambda: token_tree([], title="T"), lambda: timeline([], title="T"), lambda: image_board([], [], title="T"),
    lambda: heatmap_marginals([1, 2], title="T", value="v", x="x", y="y"), lambda: pareto_front([], title="T", x="x", y="y"),
])  # fmt: skip
def test_nothing_to_draw_is_an_error_with_words(call):
    with pytest.raises(ValueError, match="no |give one of each|none of them 0|not empty"):
        call()
