"""Rows of a sweep: what is recorded, what failed, and clear errors for what is not there."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from .choices import Control, same


class NotRecorded(LookupError):
    """A choice for which the sweep has no row; the message lists the recorded ones."""


def as_rows(rows: Any) -> Any:
    """The rows as they are. ValueError when there is nothing in them."""
    empty = rows is None or (hasattr(rows, "__len__") and len(rows) == 0)
    if empty:
        raise ValueError("rows is empty: nothing was recorded. Run the sweep first (Sweep(...).run()) and pass its table")
    return rows


def select(rows: pd.DataFrame, **where: Any) -> pd.DataFrame:
    """Rows whose columns have these values (numbers within 1e-9). NotRecorded lists the values that are there.

    >>> select(pd.DataFrame({"budget": [0.1, 0.3]}), budget=0.1 + 0.2).index.tolist()
    [1]
    """
    for name, value in where.items():
        if name not in rows:
            raise NotRecorded(f"no column {name!r}; there are {', '.join(map(str, rows.columns))}")
        unique = list(rows[name].dropna().unique())
        matches = [known for known in unique if same(_plain(known), value)]
        if not matches:
            known = ", ".join(str(_plain(v)) for v in sorted(unique, key=lambda v: (isinstance(v, str), v)))
            raise NotRecorded(f"{name}={value!r} is not recorded; recorded: {known}")
        rows = rows[rows[name].isin(matches)]
    return rows


def check_recorded(rows: Any, controls: Sequence[Control]) -> None:
    """ValueError when a control that is a column of the table has a value the table lacks."""
    if not isinstance(rows, pd.DataFrame):
        return
    for control in controls:
        if control.name in rows:
            for value in control.values:
                try:
                    select(rows, **{control.name: value})
                except NotRecorded as error:
                    raise ValueError(str(error)) from None


def failures(rows: Any, choices: Mapping[str, Any]) -> str:
    """A remark on the rows that hold an error at these choices; "" if there are none."""
    if not isinstance(rows, pd.DataFrame) or "error" not in rows:
        return ""
    failed = rows[rows["error"].notna() & (rows["error"].astype(str) != "")]
    for name, value in choices.items():
        if name in failed:
            failed = failed[[same(_plain(known), value) for known in failed[name]]]
    if not len(failed):
        return ""
    texts: dict[str, int] = {}
    for _, row in failed.iterrows():
        who = str(row["method"]) if "method" in failed else "a run"
        text = f"{who} failed ({row['error']})"
        texts[text] = texts.get(text, 0) + 1
    shown = [text + (f" in {count} runs" if count > 1 else "") for text, count in list(texts.items())[:3]]
    more = f"; {len(texts) - 3} more" if len(texts) > 3 else ""
    return "Left blank: " + "; ".join(shown) + more + "."


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value
