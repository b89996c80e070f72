"""Controls: the values a reader can choose from, with label, unit and the text of each value."""

import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

UNITS = {"tok": "tokens", "bytes": "bytes", "s": "s", "bits": "bits", "flops": "FLOPs", "layers": "layers",
         "tokens": "tokens", "ms": "ms"}  # fmt: skip
MAX_POINTS = 2000


@dataclass(frozen=True)
class Choice:
    """One control over a fixed list of values: a slider if all are numbers, else a drop-down list.

    values: what the figure gets, in order. label, unit: shown beside the control.
    default: first value shown; if None, what the figure's own signature says, else the middle of a slider or
    the first entry of a list. texts: how each value reads; made from the values if None.
    """

    values: tuple
    label: str | None = None
    unit: str | None = None
    default: Any = None
    texts: tuple[str, ...] | None = field(default=None, kw_only=True)


def choice(values: Iterable, label: str | None = None, unit: str | None = None, default: Any = None,
           texts: Iterable[str] | None = None) -> Choice:  # fmt: skip
    """A control with its own words: `explore(fig, rows, budget=choice([0.1, 0.2], "Cache budget", "of the prompt"))`."""
    return Choice(tuple(values), label, unit, default, texts=None if texts is None else tuple(texts))


@dataclass(frozen=True)
class Control:
    """A resolved choice: everything the page needs to draw it."""

    name: str
    label: str
    unit: str
    kind: str  # "slider" or "select"
    values: tuple
    texts: tuple[str, ...]
    initial: int

    def index(self, value: Any) -> int:
        """Place of a value; numbers match within 1e-9 relative. ValueError lists what is recorded."""
        for i, known in enumerate(self.values):
            if same(known, value):
                return i
        raise ValueError(f"{self.name}={value!r} is not recorded; recorded: {', '.join(map(str, self.values))}")

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "label": self.label, "unit": self.unit, "kind": self.kind,
                "values": list(self.values), "texts": list(self.texts), "initial": self.initial}  # fmt: skip


def controls(figure: Callable, choices: Mapping[str, Any]) -> list[Control]:
    """Resolve the keyword choices of `explore`. ValueError on an empty list, a double value or too many points."""
    resolved = [_control(name, value, _own_default(figure, name)) for name, value in choices.items()]
    total = math.prod(len(control.values) for control in resolved)
    if total > MAX_POINTS:
        sizes = " x ".join(str(len(control.values)) for control in resolved)
        raise ValueError(f"{sizes} = {total} points; at most {MAX_POINTS} are recorded, leave some values out")
    return resolved


def same(a: Any, b: Any) -> bool:
    """Equal, or two numbers within 1e-9 relative: 0.1 + 0.2 is the recorded 0.3. True is not 1."""
    if is_number(a) and is_number(b):
        return math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-12)
    return type(a) is type(b) and bool(a == b)


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _control(name: str, given: Any, own_default: Any) -> Control:
    if not isinstance(given, Choice):
        if isinstance(given, (str, bytes)) or not isinstance(given, Iterable):
            raise ValueError(f"{name}={given!r}: give a list of values, for example {name}=[{given!r}]")
        given = Choice(tuple(given))
    values = tuple(_plain(value) for value in given.values)
    if not values:
        raise ValueError(f"{name}: the list of values is empty")
    for i, value in enumerate(values):
        if not isinstance(value, (str, bool, int, float)) or (isinstance(value, float) and not math.isfinite(value)):
            raise ValueError(f"{name}={value!r}: a choice is a text, a finite number, True or False")
        if any(same(value, earlier) for earlier in values[:i]):
            raise ValueError(f"{name}={value!r} is listed twice")
    kind = "slider" if len(values) > 1 and all(is_number(value) for value in values) else "select"
    percent = kind == "slider" and given.unit is None and name.startswith("budget") and all(0 < v <= 1 for v in values)
    unit = given.unit or ("" if percent else UNITS.get(name.rsplit("_", 1)[-1], "") if "_" in name and kind == "slider" else "")
    texts = given.texts or tuple(_text(value, percent) for value in values)
    if len(texts) != len(values):
        raise ValueError(f"{name}: {len(texts)} texts for {len(values)} values")
    control = Control(name, given.label or _label(name), unit, kind, values, texts, 0)
    wanted = given.default if given.default is not None else own_default
    if given.default is not None:
        initial = control.index(given.default)
    elif any(same(value, wanted) for value in values):
        initial = control.index(wanted)
    else:
        initial = len(values) // 2 if kind == "slider" else 0
    return Control(name, control.label, unit, kind, values, texts, initial)


def _own_default(figure: Callable, name: str) -> Any:
    try:
        parameter = inspect.signature(figure).parameters.get(name)
    except (TypeError, ValueError):  # a built-in without a signature
        return None
    return None if parameter is None or parameter.default is inspect.Parameter.empty else parameter.default


def _plain(value: Any) -> Any:
    """numpy numbers to Python ones, so that JSON and equality behave."""
    return value.item() if hasattr(value, "item") and getattr(value, "ndim", 1) == 0 else value


def _label(name: str) -> str:
    words = name.removeprefix("num_").split("_")
    words = words[:-1] if len(words) > 1 and words[-1] in UNITS else words
    return " ".join(words).capitalize()


def _text(value: Any, percent: bool) -> str:
    if percent:
        return f"{100 * value:.4g} %"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}".replace(",", " ") if abs(value) >= 10_000 else str(value)
    return f"{value:.4g}" if isinstance(value, float) else value
