"""The `frugal` command: what it writes, and one line with exit code 2 for what the reader can put right."""
import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from typer.testing import CliRunner

import frugal
from frugal import lab, tables
from frugal.cli import app, number
from frugal.core.papers import PAPERS

TOY = '''
"""A family of two methods, for the command line's tests."""
class Steady:
    name = "steady"
class Shaky:
    name = "shaky"
class Counting:
    name, axis, version, default_budgets = "counting", "tokens", "1", [0.5]
    def run(self, method, budget, seed):
        if method is Shaky and seed == 1:
            raise RuntimeError("it shook")
        return {"score": budget * 10 + seed}
ALL = [Steady, Shaky]
WORKLOADS = {"counting": Counting()}
'''
TOY_CLAIMS = '''
from frugal.core.claims import Claim, Evidence
from frugal.core.papers import Paper
PAPER = Paper.other(title="Toy: a paper", arxiv="2306.14048")
CLAIMS = [Claim("toy_speed", PAPER, "Twice as fast.", 2.0, "x", "2306.14048, table 1", "measured",
                lambda: Evidence(measured=1.5), "direction holds"),
          Claim("toy_scale", PAPER, "Ten times larger.", 10, "x", "2306.14048, table 2", "projected",
                lambda: None, "out of reach here")]
'''


def frugal_command(*words: str, **extra: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "frugal.cli", *map(str, words)], text=True, capture_output=True,
                          env=os.environ | extra, timeout=120)


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """A toy family on the import path, and an empty cache."""
    home = tmp_path / "toy_house" / "toy_family"
    home.mkdir(parents=True)
    (home / "__init__.py").write_text(TOY)
    (home / "claims.py").write_text(TOY_CLAIMS)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("FRUGAL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return "toy_house.toy_family"


def run(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


def test_version_and_help_do_not_load_torch():
    code = ("import sys; sys.argv = ['frugal', '--version']; from frugal.cli import main\n"
            "try: main()\nexcept SystemExit as stop: assert not stop.code\n"
            "assert 'torch' not in sys.modules and 'pandas' not in sys.modules")
    done = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True)
    assert (done.returncode, done.stdout.strip()) == (0, frugal.__version__), done.stderr


@pytest.mark.parametrize("suffix, read", [(".json", pd.read_json), (".csv", pd.read_csv), (".parquet", pd.read_parquet)])
def test_sweep_writes_the_same_rows_in_each_format(toy, tmp_path, suffix, read):
    out = tmp_path / "new" / f"rows{suffix}"
    done = run("sweep", toy, "--methods", "steady, shaky", "--budgets", "0.5,1.0", "--seeds", 2, "--out", out)
    assert done.exit_code == 0, done.output
    rows = read(out)
    assert len(rows) == 8 and "8 rows, 2 failed" in done.stdout
    assert rows["score"].dropna().tolist() == [5, 6, 10, 11, 5, 10]
    assert rows.loc[rows["error"].fillna("") != "", "seed"].tolist() == [1, 1]
    assert [path.name for path in out.parent.iterdir()] == [out.name]


def test_sweep_defaults_are_all_methods_and_the_workloads_budgets(toy, tmp_path):
    out = tmp_path / "rows.json"
    assert run("sweep", toy, "--out", out).exit_code == 0
    assert [(row["method"], row["budget"]) for row in json.loads(out.read_text())] == [("steady", 0.5), ("shaky", 0.5)]


@pytest.mark.parametrize("words, expected", [
    (["sweep", "kv_evicton", "--out", "x.json"], "kv_eviction"),
    (["sweep", "TOY", "--methods", "steady,stedy", "--out", "x.json"], "steady, shaky"),
    (["sweep", "TOY", "--workload", "running", "--out", "x.json"], "counting"),
    (["sweep", "TOY", "--out", "x.xlsx"], ".parquet"),
    (["sweep", "TOY", "--budgets", "0", "--out", "x.json"], "0"),
    (["sweep", "TOY", "--budgets", "1.5", "--out", "x.json"], "'1.5'"),
    (["sweep", "TOY", "--budgets", "nan", "--out", "x.json"], "'nan'"),
    (["sweep", "TOY", "--budgets", "-4", "--out", "x.json"], "-4"),
    (["claims", "--family", "no_such"], "no_such"),
    (["papers", "--family", "no_such"], "kv_eviction"),
    (["papers", "--bibtex", "keyfromer"], "keyformer"),
    (["fetch", "no-such-model"], "smollm2-135m"),
])
def test_what_the_reader_can_put_right_is_one_line_and_exit_code_2(toy, tmp_path, words, expected):
    words = [toy if word == "TOY" else word.replace("x.", f"{tmp_path}/x.") for word in words]
    done = frugal_command(*words)
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1 and expected in done.stderr and done.stdout == ""
    assert not list(tmp_path.glob("x.*"))


def test_debugging_shows_the_traceback():
    done = frugal_command("papers", "--family", "no_such", FRUGAL_DEBUG="1")
    assert done.returncode == 1 and "Traceback" in done.stderr


def test_a_closed_pipe_is_no_error():
    done = subprocess.run(f"{sys.executable} -m frugal.cli papers --json | head -1", shell=True, text=True, capture_output=True)
    assert (done.stdout, done.stderr) == ("[\n", "")


def test_claims_as_json_and_table(toy):
    records = json.loads(run("claims", "--family", toy, "--json").stdout)
    fields = ("paper", "quote", "value", "unit", "how", "measured", "projected", "verdict")
    assert [tuple(record[field] for field in fields) for record in records] == [
        ("toy", "Twice as fast.", 2.0, "x", "measured", 1.5, None, "direction holds"),
        ("toy", "Ten times larger.", 10.0, "x", "projected", None, None, "out of reach here")]
    lines = run("claims", "--family", toy).stdout.splitlines()
    assert lines[0].split() == list(fields)
    assert ["1.5" in lines[2], "direction holds" in lines[2], "out of reach here" in lines[3]] == [True] * 3


def test_papers_as_table_json_and_bibtex():
    rows = json.loads(run("papers", "--json").stdout)
    assert [(row["key"], row["arxiv"], row["family"]) for row in rows] == [(p.key, p.arxiv, p.family) for p in PAPERS]
    table = run("papers", "--family", "serving").stdout
    assert [line.split()[0] for line in table.splitlines()[1:]] == [p.key for p in PAPERS if p.family == "serving"]
    assert run("papers", "--bibtex", "all").stdout.count("@misc{") == 56


def test_a_budget_is_a_count_or_a_fraction():
    assert [number(text) for text in ("64", " 64 ", "0.5", "1.0", "1")] == [64, 64, 0.5, 1.0, 1]
    assert isinstance(number("1.0"), float) and isinstance(number("1"), int)


def test_text_tables_wrap_and_show_what_is_missing():
    rows = pd.DataFrame({"paper": ["a"], "quote": ["word " * 30], "value": [2.123456], "measured": [float("nan")]})
    lines = tables.as_text(rows, tables.CLAIM_COLUMNS).splitlines()
    assert lines[0].split() == ["paper", "quote", "value", "measured"]
    assert "2.12" in lines[2] and lines[2].rstrip().endswith("-") and " ".join(lines[2:]).count("word") == 30


def test_json_keeps_digits_and_has_no_nan():
    rows = pd.DataFrame({"x": [0.1234567890123, float("nan"), float("inf")], "text": ["é", None, "b"]})
    assert json.loads(tables.as_json(rows)) == [{"x": 0.1234567890123, "text": "é"}, {"x": None, "text": None}, {"x": None, "text": "b"}]


def test_lab_is_on_this_machine_only_and_wants_a_token(tmp_path):
    nbformat.write(nbformat.v4.new_notebook(), tmp_path / lab.FIRST)
    command = lab.command(tmp_path, 8899, browser=False)
    private = {name: str(tmp_path / name) for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR")}
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ | private)
    try:
        address = next(line.split()[-1] for line in server.stderr if "?token=" in line)
        page, token = address.split("?token=")
        assert page.startswith("http://127.0.0.1:") and page.endswith(f"/lab/tree/{lab.FIRST}") and len(token) >= 32
        root = page.split("/lab/")[0]
        with pytest.raises(urllib.error.HTTPError) as refused:
            _get(f"{root}/api/contents")
        assert refused.value.code == 403
        found = json.loads(_get(f"{root}/api/contents?token={token}"))["content"]
        assert lab.FIRST in [item["name"] for item in found]
        settings = json.loads(_get(f"{root}/lab/api/settings/@jupyterlab/apputils-extension:notification?token={token}"))
        assert settings["schema"]["properties"]["fetchNews"]["default"] == "false"
    finally:
        server.terminate()
        server.wait(20)
        server.stderr.close()


def test_installed_notebooks_are_copied_once_and_kept(tmp_path, monkeypatch):
    installed, mine = tmp_path / "share" / "frugal" / "notebooks", tmp_path / "frugal-notebooks"
    installed.mkdir(parents=True)
    (installed / lab.FIRST).write_text("new")
    (installed / "01_kv_eviction.ipynb").write_text("new")
    monkeypatch.setattr(lab, "__file__", str(tmp_path / "lib" / "site-packages" / "frugal" / "lab.py"))
    monkeypatch.setattr(lab.sysconfig, "get_path", lambda name: str(tmp_path))
    monkeypatch.chdir(tmp_path)
    mine.mkdir()
    (mine / lab.FIRST).write_text("the reader's own")
    assert lab.notebooks_folder() == mine
    assert {path.name: path.read_text() for path in mine.iterdir()} == {lab.FIRST: "the reader's own", "01_kv_eviction.ipynb": "new"}
    (installed / lab.FIRST).unlink()
    with pytest.raises(FileNotFoundError, match="install frugal again"):
        lab.notebooks_folder()


def _get(address: str) -> bytes:
    for _ in range(50):                            # the address is printed a moment before the server answers
        try:
            with urllib.request.urlopen(address, timeout=10) as answer:
                return answer.read()
        except urllib.error.HTTPError:
            raise
        except OSError:
            time.sleep(0.1)
    raise TimeoutError(address)


def test_every_command_in_the_readme_exists():
    text = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    lines = [line.split("#")[0].split() for line in text.splitlines() if line.startswith("frugal ")]
    assert {words[1] for words in lines} >= {"lab", "fetch", "papers", "claims", "sweep", "book", "student", "reproduce"}
    for words in lines:
        options = [word for word in words if word.startswith("--")]
        shown = run(words[1], "--help")
        assert shown.exit_code == 0, words
        from typer.main import get_command
        known = {name for parameter in get_command(app).commands[words[1]].params for name in parameter.opts}
        assert set(options) <= known, words


def test_the_readmes_reproduce_example_exists():
    from frugal.explore.reproduce import known

    text = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    keys = [line.split()[2] for line in text.splitlines() if line.startswith("frugal reproduce ")]
    assert keys and set(keys) <= set(known())
