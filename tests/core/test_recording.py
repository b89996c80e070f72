import json

import numpy as np
import pandas as pd
import pytest

from frugal.core.recording import BadRecording, load_recorded, read_recorded, record


@pytest.fixture
def table():
    return pd.DataFrame({
        "family": "toys", "method": ["a", "a", "b"], "budget": [0.1 + 0.2, 0.5, 64], "seed": [0, 1, 0],
        "accuracy": [1 / 3, np.nan, np.inf], "bytes": [123456789, 2, 3], "passed": [True, False, True],
        "error": ["", "ValueError: größer", ""], "code_version": "abc", "threads": 1})


def test_a_table_comes_back_as_it_was_to_six_digits(table, tmp_path):
    back = read_recorded(record(table, tmp_path / "deep" / "toys.json"))
    assert list(back.columns) == list(table.columns)
    pd.testing.assert_frame_equal(back, table.assign(accuracy=[0.333333, np.nan, np.inf]))
    assert back.attrs == {"family": "toys", "code_version": "abc", "threads": 1}


def test_recording_again_gives_the_same_bytes(table, tmp_path):
    first = record(table, tmp_path / "a.json").read_bytes()
    assert record(read_recorded(tmp_path / "a.json"), tmp_path / "b.json").read_bytes() == first
    noisy = table.assign(accuracy=table.accuracy * (1 + 1e-9))
    assert record(noisy, tmp_path / "c.json").read_bytes() == first


def test_one_line_per_row_and_strict_json(table, tmp_path):
    text = record(table, tmp_path / "a.json").read_text(encoding="utf-8")
    found = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert len(found["rows"]) == 3 and ' ["a", 0.30000000000000004, 0, 0.333333, 123456789, true, ""],\n' in text
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.json"]


def test_mixed_budgets_keep_their_types(table, tmp_path):
    mixed = table.assign(budget=pd.Series([1, 1.0, 0.5], dtype="object"))
    back = read_recorded(record(mixed, tmp_path / "a.json"))
    assert [(type(value), value) for value in back.budget] == [(int, 1), (float, 1.0), (float, 0.5)]


@pytest.mark.parametrize("spoil, fault", [
    (lambda found: found.update(format="other"), "format is not"),
    (lambda found: found.pop("rows"), "rows is missing"),
    (lambda found: found["rows"][1].pop(), "row 1 does not have 7 cells"),
    (lambda found: found["columns"].pop("seed"), "columns do not match"),
    (lambda found: found["columns"].update(seed="date"), r"unknown column types \['date'\]"),
])
def test_a_file_that_breaks_the_format_is_refused_by_name(table, tmp_path, spoil, fault):
    path = record(table, tmp_path / "a.json")
    found = json.loads(path.read_text(encoding="utf-8"))
    spoil(found)
    path.write_text(json.dumps(found), encoding="utf-8")
    with pytest.raises(BadRecording, match=f"a.json is not a recorded sweep: {fault}"):
        read_recorded(path)


def test_a_cut_file_and_an_empty_table_are_refused(table, tmp_path):
    path = record(table, tmp_path / "a.json")
    path.write_text(path.read_text(encoding="utf-8")[:100], encoding="utf-8")
    with pytest.raises(BadRecording, match="a.json is not JSON"):
        read_recorded(path)
    with pytest.raises(ValueError, match="nothing to record"):
        record(table.iloc[:0], tmp_path / "b.json")
    assert not (tmp_path / "b.json").exists()


def test_a_missing_recording_lists_what_there_is(table, tmp_path, monkeypatch):
    package = tmp_path / "somehouse"
    package.mkdir()
    for module in ("__init__", "things"):
        (package / f"{module}.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    record(table, package / "recorded" / "copying.json")
    assert len(load_recorded("somehouse.things", "copying")) == 3
    with pytest.raises(ValueError, match="no recorded sweep 'copyng' for somehouse.things; there are: copying"):
        load_recorded("somehouse.things", "copyng")
