"""Rows of sweeps on disk: one small JSON file per run, named by the hash of all that made it.

A row is written to a temporary file beside its place and moved there in one step, so that a killed run leaves
either the whole row or none. Two processes may write the same row at once: both write the same thing.
"""
import hashlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .fetch import cache_dir
from .files import write_atomically

Value = bool | int | float | str | None
FORMAT = "frugal-row-1"


@dataclass(frozen=True)
class RowStore:
    """Rows under one folder. `folder=None` gives the user's cache (FRUGAL_CACHE, or the platform's place)."""

    folder: Path

    @classmethod
    def at(cls, folder: str | os.PathLike | None = None) -> "RowStore":
        return cls(Path(folder).expanduser() if folder is not None else cache_dir() / "sweeps")

    def get(self, key: Mapping[str, object]) -> dict[str, Value] | None:
        """The row made under this key, or None. A file that cannot be read as a row counts as not there."""
        path = self.path(key)
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        if not isinstance(found, dict) or found.get("format") != FORMAT or found.get("key") != _jsonable(key):
            return None
        return found["row"]

    def put(self, key: Mapping[str, object], row: Mapping[str, Value]) -> None:
        """Store a row in one step. Raises OSError with the remedy when the disk is full or not writable."""
        path = self.path(key)
        text = json.dumps({"format": FORMAT, "key": _jsonable(key), "row": dict(row)}, indent=1)
        try:
            write_atomically(path, text)
        except OSError as error:
            raise OSError(error.errno, f"cannot store a row of the sweep in {self.folder}: {error.strerror}. "
                          "Free some space there, or set FRUGAL_CACHE to a folder that can be written") from error

    def path(self, key: Mapping[str, object]) -> Path:
        """Where the row of this key stands, there or not."""
        digest = hashlib.sha256(json.dumps(_jsonable(key), sort_keys=True).encode()).hexdigest()
        return self.folder / str(key.get("family", "rows")) / digest[:2] / f"{digest[2:34]}.json"


def plain(value: object) -> Value:
    """A plain Python number or text for a numpy or torch scalar. ValueError for anything that is not one cell."""
    if hasattr(value, "item") and getattr(value, "ndim", 0) == 0:
        value = value.item()
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise ValueError(f"{type(value).__name__} is not a number or text")


def _jsonable(key: Mapping[str, object]) -> dict[str, object]:
    """Budgets 1 and 1.0 differ (one token, everything), and JSON keeps them apart; NaN never enters a key."""
    cells = {name: plain(value) for name, value in key.items()}
    assert not any(isinstance(value, float) and math.isnan(value) for value in cells.values()), key
    return cells
