"""`explore`: what is evaluated, packed, found again, and refused."""

import json
import time

import numpy as np
import pandas as pd
import pytest
from frugal.explore import choice, explore, figure_table, payload_html, payload_json, select, unpack
from frugal.explore.payload import MIME, decode, encode
from frugal.explore.recorded import PLOTLY_MIME, WIDGET_MIME
from frugal.explore.rows import NotRecorded
from frugal.explore.theme import blank, styles
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

METHODS = ["full", "h2o", "<script>alert(1)</script>"]


@pytest.fixture
def rows():
    return pd.DataFrame([
        {"method": method, "budget": budget, "recall": budget / (1 + i) + 1 / 3, "error": None}
        for i, method in enumerate(METHODS) for budget in (0.1, 0.2, 0.3)
    ])  # fmt: skip


def recall(rows, method="h2o", budget=0.2):
    fig = blank(f"Recall of {method}", "budget (share)", "recall (share)")
    own = rows[rows.method == method]
    fig.add_scatter(x=own.budget, y=own.recall, name="all", line=styles(METHODS)[method].line)
    at = select(own, budget=budget)
    return fig.add_scatter(x=at.budget, y=at.recall, name="here", mode="markers")


def test_every_point_equals_the_figure_function(rows):
    explorer = explore(recall, rows, method=METHODS, budget=[0.1, 0.2, 0.3])
    assert len(explorer.payload["points"]) == 9
    for method in METHODS:
        for budget in (0.1, 0.2, 0.3):
            fig, point = recall(rows, method, budget), unpack(explorer.payload, method=method, budget=budget)
            for drawn, packed in zip(fig.data, point["data"], strict=True):
                np.testing.assert_allclose(np.asarray(packed["y"], float), drawn.y, rtol=1e-6)
                assert packed["name"] == drawn.name
            assert point["layout"]["title"]["text"] == fig.layout.title.text


def test_the_first_choices_are_the_figures_own_defaults(rows):
    explorer = explore(recall, rows, method=METHODS, budget=[0.1, 0.2, 0.3])
    assert explorer.choices == {"method": "h2o", "budget": 0.2}
    explorer = explore(recall, rows, method=METHODS, budget=choice([0.1, 0.2, 0.3], "Cache", "of it", default=0.3))
    assert explorer.choices == {"method": "h2o", "budget": 0.3}
    assert [c["label"] for c in explorer.payload["controls"]] == ["Method", "Cache"]


def test_units_and_texts_come_from_the_name():
    def figure(rows, budget_tok=64, budget=0.1, flag=True):
        return blank("T", "x (s)", "y (s)")

    budget_tok, budget, flag = explore(figure, [1], budget_tok=[32, 64], budget=[0.1, 0.25], flag=[True, False]).controls
    assert (budget_tok.label, budget_tok.unit, budget_tok.kind) == ("Budget", "tokens", "slider")
    assert (budget.unit, budget.texts) == ("", ("10 %", "25 %"))
    assert (flag.kind, flag.texts) == ("select", ("yes", "no"))


def test_equal_lists_traces_and_layouts_are_stored_once():
    x = np.linspace(0, 1, 1000)

    def figure(rows, k=1, part="a"):
        fig = blank("Waves", "time (s)", "level (V)")
        return fig.add_scatter(x=x, y=np.sin(k * x)).add_scatter(x=x, y=x)

    payload = explore(figure, [0], k=[1, 2, 3, 4], part=["a", "b"]).payload
    assert len(payload["points"]) == 8 and len(payload["layouts"]) == 1
    assert len(payload["traces"]) == 5 and len(payload["arrays"]) == 5  # x, four waves; y = x is x again
    assert len(payload_json(payload)) < 5 * 4 * 1000 * 4 / 3 + 4000  # five lists of 32-bit floats in base64, and little else


@given(hnp.arrays(np.float64, hnp.array_shapes(min_dims=1, max_dims=2, min_side=3, max_side=20),
                  elements=st.floats(-1e6, 1e6).filter(lambda v: v == 0 or abs(v) > 1e-9)))  # fmt: skip
def test_packed_floats_keep_one_part_in_a_million(values):
    packed = encode(values)
    if values.size > 8:
        np.testing.assert_allclose(decode(packed), values, rtol=1e-6, atol=0)
    else:
        assert packed is None


@given(hnp.arrays(np.int64, st.integers(9, 30), elements=st.integers(-(2**31), 2**31 - 1)))
def test_packed_whole_numbers_are_exact(values):
    assert decode(encode(values)).tolist() == values.tolist()


def test_few_different_texts_are_stored_once_each():
    grid = [["held", "gone <b>", "held"]] * 7
    packed = encode(grid)
    assert packed["words"] == ["held", "gone <b>"] and packed["dtype"] == "u1" and decode(packed).tolist() == grid
    assert encode([[1, "held", 0.5, True]] * 12) is None          # numbers beside texts stay numbers
    assert encode([str(i) for i in range(300)]) is None
    many = [str(i % 300) for i in range(1200)]
    assert encode(many)["dtype"] == "u2" and decode(encode(many)).tolist() == many


@pytest.mark.parametrize("values", [[2**40] * 9, [1e300] * 9, [1e-300] * 9, [float("inf")] * 9, [None] * 9, [True] * 9])
def test_what_32_bits_cannot_hold_is_not_packed(values):
    assert encode(values) is None


def test_the_digest_tells_data_apart_and_nothing_else(rows):
    first = explore(recall, rows, method=METHODS, budget=[0.1, 0.2])
    assert explore(recall, rows.copy(), method=METHODS, budget=[0.1, 0.2]).digest == first.digest
    nearly = rows.assign(recall=rows.recall * (1 + 1e-9))
    assert explore(recall, nearly, method=METHODS, budget=[0.1, 0.2]).digest == first.digest
    other = rows.assign(recall=rows.recall * 1.001)
    assert explore(recall, other, method=METHODS, budget=[0.1, 0.2]).digest != first.digest
    assert repr(first) == f"Explorer recall: method (3), budget (2); 6 points; data {first.digest}"


def test_what_is_saved_in_the_notebook_is_json_without_widget_state(rows):
    explorer = explore(recall, rows, method=METHODS, budget=[0.1, 0.2, 0.3])
    saved = explorer._repr_mimebundle_()
    assert set(saved) == {WIDGET_MIME, MIME, PLOTLY_MIME, "text/plain"}
    json.dumps(saved, allow_nan=False)
    assert saved[PLOTLY_MIME]["data"][0]["y"] == pytest.approx(list(rows.recall[3:6]), rel=1e-6)
    assert saved[PLOTLY_MIME]["config"]["displaylogo"] is False
    assert len(saved["text/plain"].splitlines()) == 1


def test_text_in_a_page_cannot_end_the_script_element(rows):
    page = payload_html(explore(recall, rows, method=METHODS, budget=[0.1]).payload)
    assert page.count("<script") == 1 and page.count("</script>") == 1
    inside = page.split(">", 2)[2].rsplit("</script>", 1)[0]
    assert json.loads(inside)["controls"][0]["values"] == METHODS


def test_a_failed_method_is_left_blank_and_named(rows):
    failed = (rows.method == "h2o") & (rows.budget == 0.1)
    rows.loc[failed, ["recall", "error"]] = [np.nan, "BudgetTooSmall: protects 8 > 5"]
    explorer = explore(recall, rows, method=METHODS, budget=[0.1, 0.2])
    note = unpack(explorer.payload, method="h2o", budget=0.1)["note"]
    assert note == ("Left blank: h2o failed (BudgetTooSmall: protects 8 > 5). "
                    "2 of 4 values are missing and left blank.")  # fmt: skip
    assert "failed" not in unpack(explorer.payload, method="full", budget=0.1)["note"]
    assert "(1 missing)" in unpack(explorer.payload, method="h2o", budget=0.2)["summary"]


@pytest.mark.parametrize("empty", [[], None, pd.DataFrame(), pd.DataFrame({"budget": []})])
def test_empty_rows_say_what_to_do(empty):
    with pytest.raises(ValueError, match="rows is empty: nothing was recorded. Run the sweep first"):
        explore(recall, empty, budget=[0.1])


def test_a_budget_that_is_not_recorded_lists_those_that_are(rows):
    with pytest.raises(ValueError, match=r"budget=0.15 is not recorded; recorded: 0.1, 0.2, 0.3"):
        explore(recall, rows, budget=[0.1, 0.15])
    explorer = explore(recall, rows, budget=[0.1, 0.2])
    with pytest.raises(ValueError, match=r"budget=0.3 is not recorded; recorded: 0.1, 0.2"):
        explorer.figure(budget=0.3)
    with pytest.raises(NotRecorded, match=r"method='none' is not recorded; recorded: <script>"):
        select(rows, method="none")
    assert len(explore(recall, rows, budget=[0.1, 0.1 + 0.2]).payload["points"]) == 2  # 0.30000000000000004


def test_a_combination_without_rows_is_a_missing_point_not_an_error(rows):
    rows = rows[~((rows.method == "full") & (rows.budget == 0.1))]
    explorer = explore(recall, rows, method=METHODS, budget=[0.1, 0.2])
    with pytest.raises(LookupError, match="budget=0.1 is not recorded; recorded: 0.2, 0.3"):
        unpack(explorer.payload, method="full", budget=0.1)
    assert unpack(explorer.payload, method="full", budget=0.2)["data"]


@pytest.mark.parametrize(("choices", "message"), [
    ({"budget": []}, "budget: the list of values is empty"), ({"budget": 0.1}, r"give a list of values, for example budget=\[0.1\]"),
    ({"budget": "0.1"}, "give a list of values"), ({"budget": [0.1, 0.1]}, "budget=0.1 is listed twice"),
    ({"budget": [float("nan")]}, "a choice is a text, a finite number"),
    ({"budget": choice([0.1, 0.2], default=0.3)}, "budget=0.3 is not recorded; recorded: 0.1, 0.2"),
    ({"budget": list(range(50)), "method": [str(i) for i in range(50)]}, "50 x 50 = 2500 points; at most 2000"),
])  # fmt: skip
def test_bad_choices_are_refused_with_the_value(choices, message):
    with pytest.raises(ValueError, match=message):
        explore(recall, [1], **choices)


def test_a_figure_needs_a_title_and_axis_titles(rows):
    import plotly.graph_objects as go

    with pytest.raises(TypeError, match="the figure has no title"):
        explore(lambda rows: go.Figure(), rows)
    with pytest.raises(TypeError, match="the x axis has no title"):
        explore(lambda rows: go.Figure(layout_title_text="T").add_scatter(x=[1], y=[1]), rows)
    with pytest.raises(TypeError, match="returned int"):
        explore(lambda rows: 3, rows)


def test_a_hundred_thousand_rows_start_within_seconds():
    size = 100_000
    table = pd.DataFrame({"budget": np.tile([0.1, 0.2, 0.3, 0.4], size // 4), "loss": np.linspace(0, 1, size)})
    table["error"] = None

    def means(rows, budget=0.2):
        mean = rows.groupby("budget", as_index=False).loss.mean()
        fig = blank(f"Loss at {budget}", "budget (share)", "loss (nats)")
        return fig.add_scatter(x=mean.budget, y=mean.loss).add_histogram(x=select(rows, budget=budget).loss[:2000])

    begun = time.process_time()
    explorer = explore(means, table, budget=[0.1, 0.2, 0.3, 0.4])
    assert time.process_time() - begun < 10
    assert unpack(explorer.payload, budget=0.4)["data"][0]["y"] == pytest.approx([0.5, 0.5, 0.5, 0.5], abs=1e-4)
    assert len(payload_json(explorer.payload)) < 100_000


def test_the_table_of_an_explorer_is_that_of_its_figure(rows):
    explorer = explore(recall, rows, method=METHODS, budget=[0.1, 0.2])
    pd.testing.assert_frame_equal(explorer.table(method="full"), figure_table(recall(rows, "full", 0.2)))
