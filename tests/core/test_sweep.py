import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pandas as pd
import pytest

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from frugal.core import sweep as sweep_module  # noqa: E402
from frugal.core.sweep import RunFailed, Sweep, is_timing, without_timing  # noqa: E402
from toyhouse import toys  # noqa: E402

TOYS = "toyhouse.toys"


@pytest.fixture
def declared(tmp_path, monkeypatch):
    monkeypatch.setattr(sweep_module, "code_version", lambda package: "fixed")   # the library may be edited meanwhile
    def declare(folder="cache", **settings):
        return Sweep(TOYS, **{"budgets": [0.25, 0.5, 7], "seeds": 2, "cache_dir": tmp_path / folder, **settings})
    return declare


@pytest.fixture
def log(tmp_path):
    folder = tmp_path / "log"
    folder.mkdir()
    return folder


def test_one_tidy_row_per_run_in_the_declared_order(declared):
    table = declared(methods=["root", "square"]).run()
    assert list(zip(table.method, table.budget, table.seed)) == [
        (m, b, s) for m in ("root", "square") for b in (0.25, 0.5, 7) for s in (0, 1)]
    assert list(table.columns) == ["family", "method", "budget", "seed", "workload", "kept_tokens", "total", "share",
                                   "workers", "run_s", "error", "code_version", "model_hash", "threads", "hardware"]
    assert table.kept_tokens.tolist() == [16, 16, 32, 32, 7, 7] * 2
    assert (table.error == "").all() and (table.model_hash == "toy").all() and (table.workers == 1).all()


def test_a_second_run_reads_every_row_back_with_its_times(declared, log):
    sweep = declared(workload=toys.Sums(pause_s=0.01, log=str(log)))
    first = sweep.run()
    assert len(list(log.iterdir())) == len(sweep) == 12
    pd.testing.assert_frame_equal(first, declared(workload=toys.Sums(pause_s=0.01, log=str(log))).run())
    assert len(list(log.iterdir())) == 12
    more = declared(workload=toys.Sums(pause_s=0.01, log=str(log)), seeds=[1, 5]).run()
    assert len(list(log.iterdir())) == 12 + 6 and set(more.seed) == {1, 5}


@pytest.mark.parametrize("jobs", [2, 4])
def test_any_number_of_workers_gives_the_same_table(declared, jobs):
    alone = declared("alone").run(jobs=1)
    together = declared(f"together{jobs}").run(jobs=jobs)
    pd.testing.assert_frame_equal(without_timing(alone), without_timing(together))


def test_a_two_process_dask_cluster_gives_the_same_table(declared):
    distributed = pytest.importorskip("distributed")
    alone = declared("alone").run(jobs=1)
    with pytest.raises(ValueError, match="no Dask client is connected"):
        declared("dask").run(jobs="dask")
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as cluster:
        with distributed.Client(cluster):
            on_cluster = declared("dask", workload=WhereIRan()).run(jobs="dask")
            pids = set(on_cluster.pid)
            by_itself = declared("dask2").run()            # a connected client is used without being asked for
    assert os.getpid() not in pids and len(pids) == 2
    pd.testing.assert_frame_equal(without_timing(alone), without_timing(by_itself))
    pd.testing.assert_frame_equal(without_timing(alone).drop(columns="workload"),
                                  without_timing(on_cluster).drop(columns=["pid", "workload"]))


@dataclass(frozen=True)
class WhereIRan(toys.Sums):
    name: ClassVar[str] = "where"

    def run(self, method, budget, seed):
        time.sleep(0.05)
        return {**super().run(method, budget, seed), "pid": os.getpid()}


SCRIPT = """
import sys
sys.path.insert(0, {here!r})
from frugal.core import sweep
from toyhouse.toys import Sums
sweep.code_version = lambda package: "fixed"
sweep.Sweep("toyhouse.toys", budgets=[0.25, 0.5, 7], seeds=2, cache_dir={cache!r}, workload=Sums(pause_s=0.15, log={log!r})).run(jobs={jobs})
"""


@pytest.mark.parametrize("jobs", [1, 2])
def test_killed_half_way_it_resumes_and_ends_with_the_same_table(declared, log, tmp_path, jobs):
    script = SCRIPT.format(here=str(HERE), cache=str(tmp_path / "cache"), log=str(log), jobs=jobs)
    process = subprocess.Popen([sys.executable, "-c", script])
    stored = []
    while process.poll() is None and len(stored) < 4:
        stored = list((tmp_path / "cache").rglob("*.json"))
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "the sweep ended before it could be killed"
    stored = {path: path.read_bytes() for path in (tmp_path / "cache").rglob("*.json")}
    assert 4 <= len(stored) < 12
    workload = toys.Sums(pause_s=0.15, log=str(log))
    resumed = declared(workload=workload).run(jobs=jobs)
    assert all(path.read_bytes() == content for path, content in stored.items())
    rows = [json.loads(content)["row"] for content in stored.values()]
    made = [path.name.rsplit("-", 2)[0] for path in log.iterdir()]
    assert all(made.count(f"{row['method']}-{row['budget']}-{row['seed']}") == 1 for row in rows)   # none ran again
    pd.testing.assert_frame_equal(without_timing(resumed), without_timing(declared("fresh", workload=workload).run()))


def test_a_half_written_row_counts_as_missing(declared, log, tmp_path):
    sweep = declared(workload=toys.Sums(log=str(log)))
    first = sweep.run()
    victim = sorted((tmp_path / "cache").rglob("*.json"))[3]
    victim.write_text(victim.read_text()[:40])
    again = sweep.run()
    assert len(list(log.iterdir())) == 13
    pd.testing.assert_frame_equal(without_timing(first), without_timing(again))
    assert json.loads(victim.read_text())["row"]


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_failed_run_gets_a_row_and_is_tried_again(declared, jobs):
    table = declared(workload="picky").run(jobs=jobs)
    failed = table[table.seed == 1]
    assert (failed.error == "ArithmeticError: seed 1 is unlucky").all() and failed.total.isna().all()
    assert (table[table.seed == 0].error == "").all() and len(table) == 12
    seen = []
    declared(workload="picky").run(progress=lambda done, total, row: seen.append(row["error"]))
    assert len(seen) == 12 and sum(bool(error) for error in seen) == 6
    with pytest.raises(RunFailed, match=r"(square|root) at budget \S+, seed 1, workload picky: ArithmeticError: seed 1"):
        declared(workload="picky", strict=True).run(jobs=jobs)


def test_a_budget_that_fits_no_run_is_a_row_with_the_reason(declared):
    table = declared(budgets=[0.5, 500]).run()
    assert table.error.str.contains("budget 500 is out of range").sum() == 4


@pytest.mark.parametrize("settings, message", [
    ({"family": "kv_evicton"}, "unknown family 'kv_evicton'; there are: "),
    ({"methods": ["squere"]}, "unknown method 'squere' in toyhouse.toys; there are: square, root"),
    ({"workload": "sum"}, "unknown workload 'sum' in toyhouse.toys; there are: sums, picky"),
    ({"budgets": [0.0]}, r"budget 0.0 is out of range: give a fraction in \(0, 1\] or a whole number"),
    ({"budgets": [float("nan")]}, "budget nan is out of range"),
    ({"budgets": [-3]}, "budget -3 is out of range"),
    ({"budgets": [1.5]}, "budget 1.5 is out of range"),
    ({"budgets": []}, "at least one method and one budget"),
    ({"methods": []}, "at least one method and one budget"),
    ({"seeds": 0}, "seeds 0: give how many"),
    ({"seeds": [0.5]}, "give how many"),
    ({"threads": 0}, "threads 0 is out of range"),
])
def test_bad_declarations_name_the_value_and_what_is_allowed(settings, message):
    with pytest.raises(ValueError, match=message):
        Sweep(**{"family": TOYS, **settings})


@pytest.mark.parametrize("jobs", [0, "cluster", True])
def test_bad_jobs(declared, jobs):
    with pytest.raises(ValueError, match="give a number of worker processes"):
        declared().run(jobs=jobs)


def test_budget_one_token_and_all_of_it_stay_apart(declared):
    table = declared(budgets=[1, 1.0]).run()
    assert table.kept_tokens.tolist() == [1, 1, 64, 64] * 2
    assert [type(budget) for budget in table.budget[:3]] == [int, int, float]


def own_method(expression):
    """A class as if typed into a notebook: no file, no module that a worker could import."""
    space = {"__name__": "__main__"}
    exec(f"class Own:\n    name = 'own'\n    def value(self, x):\n        return {expression}\n", space)
    return space["Own"]


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_method_from_a_notebook_is_swept_and_told_apart_by_its_code(declared, jobs):
    twice, thrice, twice_again = (own_method(f"x * {n}") for n in (2, 3, 2))
    first = declared(methods=[twice, "square"], budgets=[0.5]).run(jobs=jobs)
    other = declared(methods=[thrice], budgets=[0.5]).run(jobs=jobs)
    assert other.total.tolist() == pytest.approx([1.5 * x for x in first.total[:2]], rel=1e-4)
    same = declared(methods=[twice_again], budgets=[0.5]).run()
    assert same.run_s.tolist() == first.run_s[:2].tolist()             # read back, not run again


def test_settings_version_and_threads_are_part_of_a_rows_identity(declared):
    class Newer(toys.Sums):
        version = "2"
    sweeps = [declared(), declared(workload=toys.Sums(pause_s=0.001)), declared(workload=Newer()), declared(threads=2)]
    keys = {json.dumps(sweep._key(run)) for sweep in sweeps for run in sweep.runs}
    assert len(keys) == 4 * 12


def test_threads_are_set_for_the_run(declared):
    assert declared(threads=2).run().workers.unique().tolist() == [2]


def test_rows_come_as_they_are_made_and_one_may_stop_early(declared, log):
    sweep = declared(workload=toys.Sums(log=str(log)))
    stream = sweep.stream()
    assert next(stream)[1]["method"] == "square"
    stream.close()
    assert len(list(log.iterdir())) < 12
    assert sorted(at for at, _ in sweep.stream()) == list(range(12))


def test_a_full_disk_says_where_and_what_to_do(declared, monkeypatch, tmp_path):
    def no_space(source, target):
        raise OSError(28, "No space left on device")
    monkeypatch.setattr("os.replace", no_space)
    with pytest.raises(OSError, match="cannot store a row .*No space left on device.*set FRUGAL_CACHE"):
        declared().run()
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


def test_the_cache_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("FRUGAL_CACHE", str(tmp_path / "mine"))
    Sweep(TOYS, ["square"], [0.5]).run()
    assert len(list((tmp_path / "mine" / "sweeps").rglob("*.json"))) == 1


def test_a_workload_that_returns_tensors_or_reserved_names_is_told(declared):
    class Wrong(toys.Sums):
        def run(self, method, budget, seed):
            return {"total": [1, 2]} if seed else {"method": "mine"}
    errors = declared(workload=Wrong(), methods=["root"], budgets=[0.5]).run().error.tolist()
    assert errors == ["ValueError: the workload's column 'method' is reserved",
                      "ValueError: the workload's column 'total': list is not a number or text"]


def test_timing_columns_are_known_by_their_ending():
    assert is_timing("decode_s") and is_timing("decode_tok_per_s") and not is_timing("cache_bytes")


def test_families_are_the_packages_that_are_there():
    found = sweep_module.families()
    assert "kv_eviction" in found and not {"core", "data", "models", "explore"} & set(found)
