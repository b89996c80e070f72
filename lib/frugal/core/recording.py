"""Recorded sweeps: committed tables that notebooks and the static edition draw without computing anything.

One JSON file per sweep: the columns with their types, the cells that are the same in every row (provenance: code
version, model hash, hardware, ...) once, and one line per row, so that a diff shows which runs changed.
Floats are rounded to 6 significant digits, except the budget, which is a key.
"""
import json
import math
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from .files import write_atomically
from .rowstore import plain

FORMAT = "frugal-sweep-1"
DIGITS = 6
TYPES = ("float", "int", "str", "bool", "mixed")
EXACT = {"budget"}


class BadRecording(ValueError):
    """A recorded sweep that does not follow the format; the message names the file and the fault."""


def record(df: pd.DataFrame, path: str | Path) -> Path:
    """Write a sweep's table to `path` (.json), in one step. Returns the path.

    Raises ValueError for an empty table or a cell that is neither number nor text.
    """
    if len(df) == 0:
        raise ValueError("nothing to record: the table has no rows")
    columns = {str(name): _column(df[name]) for name in df.columns}
    constant = {name: cells[0] for name, (_, cells) in columns.items() if len({_mark(cell) for cell in cells}) == 1}
    varying = [name for name in columns if name not in constant]
    rows = [[columns[name][1][at] for name in varying] for at in range(len(df))]
    head = {"format": FORMAT, "columns": {name: kind for name, (kind, _) in columns.items()}, "constant": constant,
            "varying": varying}
    text = json.dumps(head, indent=1, ensure_ascii=False, allow_nan=False)
    lines = ",\n".join(" " + json.dumps(row, ensure_ascii=False, allow_nan=False) for row in rows)
    path = Path(path)
    write_atomically(path, text[:-2] + ',\n "rows": [\n' + lines + "\n ]\n}\n")
    return path


def read_recorded(path: str | Path) -> pd.DataFrame:
    """The table of a file written by `record`, same columns in the same order. `df.attrs` holds the constant cells.

    Raises BadRecording for a file that does not follow the format.
    """
    path = Path(path)
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BadRecording(f"{path.name} is not JSON: {error}") from None
    _check(found, path.name)
    cells = {name: [value] * len(found["rows"]) for name, value in found["constant"].items()}
    cells |= {name: [row[at] for row in found["rows"]] for at, name in enumerate(found["varying"])}
    table = pd.DataFrame({name: _restored(kind, cells[name]) for name, kind in found["columns"].items()})
    table.attrs = dict(found["constant"])
    return table


def recorded_names(family: str) -> list[str]:
    """Names of the sweeps recorded for a family."""
    folder = _folder(family)
    return sorted(path.stem for path in folder.glob("*.json")) if folder.is_dir() else []


def load_recorded(family: str, name: str) -> pd.DataFrame:
    """The sweep `name` recorded for a family. ValueError lists the names there are."""
    path = _folder(family) / f"{name}.json"
    if not path.is_file():
        raise ValueError(f"no recorded sweep {name!r} for {family}; there are: "
                         f"{', '.join(recorded_names(family)) or 'none'}")
    return read_recorded(path)


def _folder(family: str) -> Path:
    module = import_module(family if "." in family else f"frugal.{family}")
    return Path(module.__file__).parent / "recorded"


def _column(series: pd.Series) -> tuple[str, list[Any]]:
    """(type, cells as they stand in the file)."""
    cells = [plain(value) for value in series.tolist()]
    present = [cell for cell in cells if not _is_missing(cell)]
    kinds = {type(cell).__name__ for cell in present}
    if series.dtype.kind == "f" or not present:
        kinds = {"float"}
    kind = kinds.pop() if len(kinds) == 1 else "mixed"
    return kind, [_written(cell, series.name in EXACT) for cell in cells]


def _is_missing(cell: Any) -> bool:
    return cell is None or (isinstance(cell, float) and math.isnan(cell))


def _written(cell: Any, exact: bool) -> Any:
    if _is_missing(cell):
        return None
    if not isinstance(cell, float):
        return cell
    if math.isinf(cell):
        return "Infinity" if cell > 0 else "-Infinity"
    return cell if exact else float(f"{cell:.{DIGITS}g}")


def _mark(cell: Any) -> str:
    return f"{type(cell).__name__} {cell!r}"


def _restored(kind: str, cells: list[Any]) -> pd.Series:
    if kind == "float":
        return pd.Series([float(cell) if cell is not None else np.nan for cell in cells], dtype="float64")
    if kind in ("int", "bool") and None not in cells:
        return pd.Series(cells, dtype="int64" if kind == "int" else "bool")
    if kind == "int":
        return pd.Series([np.nan if cell is None else cell for cell in cells], dtype="float64")
    return pd.Series(cells, dtype="object")


def _check(found: Any, name: str) -> None:
    def need(condition: bool, fault: str) -> None:
        if not condition:
            raise BadRecording(f"{name} is not a recorded sweep: {fault}")
    need(isinstance(found, Mapping) and found.get("format") == FORMAT, f"format is not {FORMAT!r}")
    for field, kind in (("columns", dict), ("constant", dict), ("varying", list), ("rows", list)):
        need(isinstance(found.get(field), kind), f"{field} is missing")
    need(sorted([*found["constant"], *found["varying"]]) == sorted(found["columns"]),
         "columns do not match constant + varying")
    unknown = set(found["columns"].values()) - set(TYPES)
    need(not unknown, f"unknown column types {sorted(unknown)}")
    for at, row in enumerate(found["rows"]):
        need(isinstance(row, list) and len(row) == len(found["varying"]),
             f"row {at} does not have {len(found['varying'])} cells")
