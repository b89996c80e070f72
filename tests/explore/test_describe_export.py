"""Summaries, tables, digests, files, shown source, and the vendored script."""

import hashlib
import inspect
import io
import json
import re
import subprocess

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
from frugal.core import files
from frugal.explore import NoRenderer, digest, explore, export, figure_summary, figure_table, live, save, show_source
from frugal.explore.frontend import SCRIPTS, STATIC, assets
from frugal.explore.theme import BASELINES, PALETTE, blank, escape, plain, style, styles
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image


@pytest.fixture
def fig():
    fig = blank("Recall <b>", "budget (tokens)", "recall (share)")
    fig.add_scatter(x=[1, 2, 3], y=[0.5, np.nan, 1.0], name=escape("a & <i>"))
    return fig.add_heatmap(x=["p", "q"], y=[1, 2], z=[[1, 2], [3, 4]], colorbar_title_text="loss (nats)", name="grid")


def test_the_table_holds_every_number(fig):
    table = figure_table(fig)
    assert list(table) == ["series", "budget (tokens)", "recall (share)", "loss (nats)"]
    assert table.series.tolist() == ["a & <i>"] * 3 + ["grid"] * 4
    assert table["budget (tokens)"].tolist() == [1, 2, 3, "p", "q", "p", "q"]
    assert table["recall (share)"].fillna(-1).tolist() == [0.5, -1, 1.0, 1, 1, 2, 2]
    assert table["loss (nats)"].tolist()[3:] == [1, 2, 3, 4]


def test_the_sentence_names_axes_series_and_ranges(fig):
    assert figure_summary(fig).startswith(
        "Recall <b>: recall (share) against budget (tokens); a & <i> from 0.5 to 1 (1 missing); ")
    assert figure_summary(blank("Empty", "x", "y")) == "Empty: nothing to draw."
    assert figure_summary(go.Figure(layout={"title": {"text": "T"}, "meta": {"summary": "Mine."}})) == "Mine."


def test_the_digest_follows_the_data_not_the_look_or_the_last_bits(fig):
    same = go.Figure(fig).update_layout(margin_l=5, font_size=20)
    same.data[0].y = [0.5 + 1e-12, np.nan, 1]
    assert digest(same) == digest(fig)
    for change in (lambda f: f.data[0].update(y=[0.5, 0.1, 1.0]), lambda f: f.update_yaxes(title_text="loss")):
        other = go.Figure(fig)
        change(other)
        assert digest(other) != digest(fig)


@given(st.text())
def test_escaping_can_be_undone_and_leaves_no_markup(text):
    assert plain(escape(text)) == text.replace("<br>", "<br>") and "<" not in escape(text) and "$" not in escape(text)


def test_no_two_series_look_alike_even_without_colour():
    looks = [style(i) for i in range(42)]
    assert len({(look.color, look.dash) for look in looks}) == 42
    assert len({(look.dash, look.marker) for look in looks[:7]}) == 7
    assert styles(["keyformer", *BASELINES])["full"].color == "#808080"


def test_the_palette_stays_apart_for_colour_blind_readers():
    """Simulated protanopia and deuteranopia (Vienot 1999): neighbours in the palette differ in the simulated colour."""
    rgb = np.array([[int(c[i:i + 2], 16) for i in (1, 3, 5)] for c in PALETTE]) / 255
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    for matrix in ([[0.11238, 0.88762, 0], [0.11238, 0.88762, 0], [0.00401, -0.00401, 1]],
                   [[0.29275, 0.70725, 0], [0.29275, 0.70725, 0], [-0.02234, 0.02234, 1]]):  # fmt: skip
        seen = np.clip(linear @ np.array(matrix).T, 0, 1) ** (1 / 2.2)
        gaps = [np.linalg.norm(seen[i] - seen[j]) for i in range(len(seen)) for j in range(i)]
        assert min(gaps) > 0.09


def test_csv_and_json_hold_the_data_and_the_declaration(tmp_path):
    def figure(rows, budget=0.2):
        return blank(f"R {budget}", "x (s)", "y (s)").add_scatter(x=rows.x, y=rows.y * budget, name="=1+1 <b>")

    rows = pd.DataFrame({"x": [1, 2], "y": [1 / 3, np.nan]})
    explorer = explore(figure, rows, sweep={"family": "kv_eviction", "budgets": [0.1, 0.2]}, budget=[0.1, 0.2])
    table = pd.read_csv(explorer.save(tmp_path / "a.csv", budget=0.1))
    pd.testing.assert_frame_equal(table, figure_table(figure(rows, 0.1)), check_dtype=False)
    facts = json.loads(save(explorer, tmp_path / "a.json").read_text())
    assert facts["sweep"] == {"family": "kv_eviction", "budgets": [0.1, 0.2]} and facts["choices"] == {"budget": 0.2}
    assert facts["table"]["rows"][1] == ["=1+1 <b>", 2, None] and facts["digest"] == digest(figure(rows, 0.2))
    form = live(lambda inputs, progress: 1, lambda result: figure(result), recorded=rows)
    assert json.loads(save(form, tmp_path / "b.json").read_text())["title"] == "R 0.2"


def test_pictures_need_a_renderer_and_say_what_to_install(fig, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "kaleido", None)
    with pytest.raises(NoRenderer, match=r"kaleido is not installed.*pip install \"frugal\[export\]\".*chromium"):
        save(fig, tmp_path / "a.png")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match=r"a.pdf: the suffix is one of .png, .svg, .csv, .json"):
        save(fig, tmp_path / "a.pdf")
    with pytest.raises(ValueError, match=r"a plain figure has no controls"):
        save(fig, tmp_path / "a.csv", budget=3)


def test_a_png_and_an_svg_where_a_renderer_is_there(fig, tmp_path):
    pytest.importorskip("kaleido")
    try:
        path = save(fig, tmp_path / "a.png", width=500)
    except NoRenderer as error:
        assert "apt-get install chromium" in str(error)
        pytest.skip(str(error))
    with Image.open(io.BytesIO(path.read_bytes())) as image:
        assert image.size == (1000, 800)
    assert b"recall (share)" in save(fig, tmp_path / "a.svg").read_bytes()


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.csv"
    path.write_text("old")
    monkeypatch.setattr(files.os, "replace", lambda *names: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        files.write_atomically(path, b"new")
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["a.csv"]


def test_shown_source_is_the_source_and_the_same_everywhere():
    shown = show_source(export.save)
    assert shown.code == inspect.getsource(inspect.unwrap(export.save)).rstrip()
    assert repr(shown).startswith("# save (frugal/explore/export.py)\ndef save(")
    page = shown.to_html()
    assert page == show_source(export.save).to_html() and page.startswith('<details class="frugal-source" open>')
    assert re.sub(r"<[^>]+>", "", page.split("<pre")[1].split(">", 1)[1]).count("\n") == shown.code.count("\n") + 1
    assert "open" not in show_source(export.save, folded=True).to_html()[:40]
    assert show_source(type(shown).digest).code.startswith("@property")
    with pytest.raises(ValueError, match="has no Python source to show"):
        show_source(len)


def test_the_vendored_plotly_is_the_published_one_with_its_licence():
    text = (STATIC / "README.md").read_text()
    content = (STATIC / "plotly-cartesian.min.js").read_bytes()
    assert hashlib.sha256(content).hexdigest() in text
    version = re.search(r"`plotly.js-cartesian-dist-min` (\S+),", text)[1]
    assert f"plotly.js (cartesian - minified) v{version}".encode() in content[:200]
    assert "MIT" in (STATIC / "plotly-cartesian.LICENSE").read_text()


def test_the_scripts_name_no_address_and_never_write_html():
    for name in (*SCRIPTS, "loader.js"):
        text = (STATIC / name).read_text()
        assert not re.search(r"https?://|innerHTML|insertAdjacentHTML|document\.write|\beval\b", text), name


def test_one_assets_model_serves_all_and_comes_back_after_it_was_closed():
    first = assets()
    assert assets() is first
    first.close()
    assert assets() is not first and assets().version == first.version


def test_the_scripts_are_valid_as_modules_and_as_classic_scripts(tmp_path):
    import shutil

    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed; the browser tests load the scripts as well")
    for name, suffix in (("figure.js", "cjs"), ("frugal.js", "cjs"), ("frugal.js", "mjs"), ("live.js", "cjs"), ("loader.js", "mjs")):
        copy = tmp_path / f"{name}.{suffix}"
        copy.write_bytes((STATIC / name).read_bytes())
        assert subprocess.run([node, "--check", str(copy)], capture_output=True).returncode == 0, name
