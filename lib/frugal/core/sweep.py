"""Sweeps: methods x budgets x seeds on one workload, one tidy row per run, cached on disk, resumable, parallel.

    table = Sweep("kv_eviction", ["h2o", "streaming_llm"], [0.5, 0.25], "copying", seeds=3).run(jobs=2)

A family registers in its package `frugal.<family>`: `ALL` (method classes with a `name`) and `WORKLOADS`
(name -> Workload). A finished run is stored at once, so a sweep that is killed goes on where it was and ends with
the same table. Runs are deterministic in (method, budget, seed); columns that hold times (ending in `_s` or
`_tok_per_s`) are those of the run that made the row, and are read back with it.
"""
import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from os import PathLike
from typing import Any, Protocol, runtime_checkable

import joblib
import pandas as pd

from .declared import (check_budget, check_seeds, families, family_module, listed, pick_method, pick_workload,  # noqa: F401
                       unique)
from .fingerprint import code_version, settings_of, source_hash
from .measure import hardware, num_threads
from .recording import load_recorded, record, recorded_names  # noqa: F401  (part of this module's interface)
from .rowstore import RowStore, Value, plain

KEYS = ("family", "method", "budget", "seed", "workload")
PROVENANCE = ("code_version", "model_hash", "threads", "hardware")


@runtime_checkable
class Workload(Protocol):
    """What a method is run on. `axis` says what a budget makes equal: "tokens", "bytes" or "flops".

    `run` returns one row: numbers and text by column name; it must depend on its three arguments alone. Objects are
    sent to worker processes, so a workload holds settings only and loads its model when it runs. Change `version`
    when something outside the library's sources changes the result. Optional: `model_hash() -> str`.
    """

    name: str
    axis: str
    version: str
    default_budgets: Sequence[float | int]

    def run(self, method: type, budget: float | int, seed: int) -> Mapping[str, Any]: ...


class RunFailed(RuntimeError):
    """A run of a strict sweep raised; the message names the run, the cause is chained."""


@dataclass(frozen=True)
class Run:
    """One run of a sweep, ready to be sent to a worker."""

    method: type
    budget: float | int
    seed: int
    workload: Any
    threads: int
    strict: bool

    def __call__(self) -> dict[str, Value]:
        """The result columns, or {"error": text} when the run fails and the sweep is not strict."""
        try:
            with num_threads(self.threads):
                found = self.workload.run(self.method, self.budget, self.seed)
            cells = {}
            for name, value in found.items():
                if name in (*KEYS, *PROVENANCE, "error"):
                    raise ValueError(f"the workload's column {name!r} is reserved")
                try:
                    cells[str(name)] = plain(value)
                except ValueError as error:
                    raise ValueError(f"the workload's column {name!r}: {error}") from None
            return {**cells, "error": "", "hardware": hardware()}
        except Exception as error:
            if self.strict:
                raise RunFailed(f"{self.method.name} at budget {self.budget}, seed {self.seed}, workload "
                                f"{self.workload.name}: {type(error).__name__}: {error}") from error
            return {"error": f"{type(error).__name__}: {error}", "hardware": hardware()}


@dataclass
class Sweep:
    """A declared sweep.

    family: name of a family, or the full name of a module that has ALL and WORKLOADS. methods: names, or classes
    (a class of your own, straight from the notebook, works too); None = all of the family. budgets: fractions in
    (0, 1] or counts; None = the workload's own. workload: name, or an object. seeds: how many, or which.
    cache_dir: where rows are stored; None = the user cache. strict: raise on the first failed run instead of
    giving it a row with `error`. threads: PyTorch threads of each run; part of a row's identity, since the order
    of sums depends on it, and the same for any number of jobs.
    Raises ValueError, listing what is allowed, for anything unknown; nothing runs before all is checked.
    """

    family: str
    methods: Sequence[str | type] | None = None
    budgets: Sequence[float | int] | None = None
    workload: Any = None
    seeds: int | Sequence = 1
    cache_dir: str | PathLike | None = None
    strict: bool = False
    threads: int = 1

    def __post_init__(self):
        module = family_module(self.family)
        self._package = module.__name__
        self.workload = pick_workload(self.workload, module.WORKLOADS, self.family)
        self.methods = unique(pick_method(m, module.ALL, self.family) for m in listed(self.methods, module.ALL))
        self.budgets = unique(check_budget(b) for b in listed(self.budgets, self.workload.default_budgets))
        self.seeds = check_seeds(self.seeds)
        if not self.methods or not self.budgets:
            raise ValueError(f"a sweep needs at least one method and one budget; got {len(self.methods)} methods "
                             f"and {len(self.budgets)} budgets")
        if isinstance(self.threads, bool) or self.threads < 1:
            raise ValueError(f"threads {self.threads} is out of range: give at least 1")

    def __len__(self) -> int:
        return len(self.methods) * len(self.budgets) * len(self.seeds)

    @cached_property
    def runs(self) -> list[Run]:
        """All runs, in the order of the table: methods, then budgets, then seeds, as declared."""
        return [Run(method, budget, seed, self.workload, self.threads, self.strict)
                for method in self.methods for budget in self.budgets for seed in self.seeds]

    def run(self, jobs: int | str | None = None, progress: bool | Callable | None = None) -> pd.DataFrame:
        """Run what is not stored yet and return the table, one row per run, in the order of `runs`.

        jobs: worker processes (-1 = one per core), or "dask" for the connected Dask cluster; None = the cluster if
        a client is connected, else this process. progress: True / False / None (a bar on a terminal or in a
        notebook), or a function called with (rows done, rows in all, row).
        """
        rows = {}
        with _progress(progress, len(self)) as report:
            for at, row in self.stream(jobs):
                rows[at] = row
                report(len(rows), len(self), row)
        return _table([rows[at] for at in range(len(self))])

    def stream(self, jobs: int | str | None = None) -> Iterator[tuple[int, dict[str, Value]]]:
        """(place in the table, row) as they come: the stored rows first, then each new one when it is done.

        A row is on disk before it is given out. Stop early by closing the iterator.
        """
        store, keys, missing = RowStore.at(self.cache_dir), [self._key(run) for run in self.runs], []
        for at, key in enumerate(keys):
            row = store.get(key)
            if row is None:
                missing.append(at)
            else:
                yield at, row
        if not missing:
            return
        with _backend(jobs) as parallel:
            tasks = (joblib.delayed(_numbered)(at, self.runs[at]) for at in missing)
            for at, found in parallel(tasks):
                row = self._row(keys[at], found)
                if not row["error"]:                  # a failure may be the machine's: try again next time
                    store.put(keys[at], row)
                yield at, row

    def _key(self, run: Run) -> dict[str, Value]:
        """Everything a row depends on."""
        outside = not run.method.__module__.startswith(f"{self._package}.")
        work = type(self.workload)
        return {"family": self.family, "method": run.method.name, "budget": run.budget, "seed": run.seed,
                "workload": self.workload.name, "workload_version": str(self.workload.version),
                "workload_settings": settings_of(self.workload), "code_version": self._code_version,
                "model_hash": self._model_hash, "threads": self.threads,
                "method_code": source_hash(run.method) if outside else "",
                "workload_code": "" if work.__module__.startswith("frugal.") else source_hash(work)}

    @cached_property
    def _code_version(self) -> str:
        return code_version(self._package)

    @cached_property
    def _model_hash(self) -> str:
        return str(self.workload.model_hash()) if hasattr(self.workload, "model_hash") else ""

    def _row(self, key: Mapping[str, Value], found: Mapping[str, Value]) -> dict[str, Value]:
        ordered = {name: key[name] for name in KEYS}
        ordered |= {name: value for name, value in found.items() if name not in ("error", "hardware")}
        ordered["error"] = found["error"]
        return ordered | {name: key[name] for name in PROVENANCE if name in key} | {"hardware": found["hardware"]}


def is_timing(column: str) -> bool:
    """Whether a column holds a time or a rate, which no two runs share."""
    return column.endswith(("_s", "_tok_per_s"))


def without_timing(table: pd.DataFrame) -> pd.DataFrame:
    """The columns that any two runs of the same sweep share."""
    return table[[name for name in table.columns if not is_timing(name)]]


def _numbered(at: int, run: Run) -> tuple[int, dict[str, Value]]:
    return at, run()


def _table(rows: list[dict[str, Value]]) -> pd.DataFrame:
    """Keys first, result columns in the order they are first met, then error and provenance."""
    tail = ("error", *PROVENANCE)
    results = unique(name for row in rows for name in row if name not in (*KEYS, *tail))
    cells = {name: [row.get(name) for row in rows] for name in (*KEYS, *results, *tail)}
    table = pd.DataFrame(cells)
    if len({type(budget) for budget in cells["budget"]}) > 1:      # 1 (a token) and 1.0 (everything) stay apart
        table["budget"] = pd.Series(cells["budget"], dtype="object")
    return table


@contextlib.contextmanager
def _backend(jobs: int | str | None) -> Iterator[joblib.Parallel]:
    """joblib on this process, on worker processes, or on the connected Dask cluster."""
    cluster = _dask_client()
    if jobs == "dask" and cluster is None:
        raise ValueError("jobs='dask', but no Dask client is connected: make one first, "
                         "for example dask.distributed.Client('tcp://scheduler:8786')")
    if isinstance(jobs, bool) or not (jobs in (None, "dask") or (isinstance(jobs, int) and jobs != 0)):
        raise ValueError(f"jobs {jobs!r}: give a number of worker processes, -1 for one per core, or 'dask'")
    if jobs == "dask" or (jobs is None and cluster is not None):
        config = joblib.parallel_config(backend="dask", n_jobs=-1)
    else:
        config = joblib.parallel_config(backend="loky" if jobs not in (None, 1) else "sequential", n_jobs=jobs or 1)
    with config, joblib.Parallel(return_as="generator_unordered", batch_size=1) as parallel:
        yield parallel


def _dask_client() -> Any:
    """The connected client, if Dask is in use at all."""
    distributed = sys.modules.get("distributed")
    if distributed is None:
        return None
    try:
        return distributed.default_client()
    except ValueError:
        return None


@contextlib.contextmanager
def _progress(wanted: bool | Callable | None, total: int) -> Iterator[Callable]:
    if callable(wanted):
        yield wanted
        return
    if wanted is None:
        wanted = _in_notebook() or (sys.stderr is not None and sys.stderr.isatty())
    from tqdm.auto import tqdm
    with tqdm(total=total, desc="sweep", unit="run", disable=not wanted) as bar:
        yield lambda done, total, row: bar.update(done - bar.n)


def _in_notebook() -> bool:
    """Whether this process is a notebook's kernel; merely importing Jupyter's packages does not make it one."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return getattr(shell, "kernel", None) is not None
