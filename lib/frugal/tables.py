"""Tables in and out of the command line: files by suffix, JSON, and text that fits a terminal."""
import json
import math
import os
import shutil
import textwrap
from pathlib import Path

import pandas as pd

SUFFIXES = (".json", ".csv", ".parquet")
CLAIM_COLUMNS = {"paper": 16, "quote": 44, "value": 10, "unit": 12, "how": 9, "measured": 10, "projected": 10, "verdict": 18}
"""Columns of the claim ledger in print, with their width in characters."""


def check_suffix(path: Path) -> None:
    """Raises ValueError for a suffix that `write` does not know."""
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"cannot write {path.name!r}: the suffix says the format, one of {', '.join(SUFFIXES)}")


def write(rows: pd.DataFrame, path: Path) -> None:
    """Write a table in the format that the suffix names; a killed run leaves no half-written file.

    Raises ValueError for another suffix.
    """
    check_suffix(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        if path.suffix.lower() == ".json":
            part.write_text(as_json(rows) + "\n", encoding="utf-8")
        elif path.suffix.lower() == ".csv":
            rows.to_csv(part, index=False)
        else:
            rows.to_parquet(part, index=False)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def as_json(rows: pd.DataFrame) -> str:
    """The rows as a JSON list of records; missing and non-finite numbers become null."""
    records = json.loads(rows.to_json(orient="records", double_precision=15, default_handler=str))
    return json.dumps(records, indent=1, ensure_ascii=False, allow_nan=False)


def as_text(rows: pd.DataFrame, columns: dict[str, int] | None = None) -> str:
    """The rows as text, cells wrapped to the width of their column; numbers to 3 significant digits."""
    columns = {name: width for name, width in (columns or dict.fromkeys(rows.columns, 14)).items() if name in rows}
    spare = shutil.get_terminal_size((140, 24)).columns - sum(columns.values()) - 2 * len(columns)
    if "quote" in columns:
        columns["quote"] = max(24, columns["quote"] + spare)
    lines = [_line([[name[:width].ljust(width)] for name, width in columns.items()]),
             _line([["-" * width] for width in columns.values()])]
    for row in rows[list(columns)].itertuples(index=False):
        cells = [textwrap.wrap(_cell(value), width) or [""] for value, width in zip(row, columns.values(), strict=True)]
        lines.append(_line([[text.ljust(width) for text in cell] for cell, width in zip(cells, columns.values(), strict=True)],
                           list(columns.values())))
    return "\n".join(lines)


def _cell(value) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)) or value is pd.NA:
        return "-"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _line(cells: list[list[str]], widths: list[int] | None = None) -> str:
    widths = widths or [len(cell[0]) for cell in cells]
    height = max(len(cell) for cell in cells)
    rows = ["  ".join(cell[i] if i < len(cell) else " " * width for cell, width in zip(cells, widths, strict=True)).rstrip()
            for i in range(height)]
    return "\n".join(rows)
