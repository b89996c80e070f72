"""Exercises: a stub to fill in, a check that names the likely mistake, hints that stay folded until asked for.

A family keeps its exercises in `frugal/<family>/exercises.py`: module variables named like their `key`, and the
list `EXERCISES`. A check is a plain function that calls the reader's function on fresh inputs and stops at the
first case that differs, with `wrong(...)` or `equal(...)`:

    def _check_sinks(keep):
        for slots, budget in [(10, 6), (5, 5)]:
            kept = keep(slots, budget)
            if len(kept) > budget:
                wrong(f"kept {len(kept)} of {budget}", "do the sinks count towards the budget?")
            equal(kept, sinks_and_recent_solution(slots, budget), "the newest slots end at num_slots - 1")

    sinks_and_recent = Exercise(
        key="sinks_and_recent", title="Sinks and recent tokens", prompt="Keep the first `sinks` slots and ...",
        stub='''def keep_sinks_and_recent(num_slots: int, budget: int, sinks: int = 4) -> list[int]:
        raise NotImplementedError  # yours''',
        test=_check_sinks, hints=("How many slots are left once the sinks are kept?",), difficulty=1, minutes=5,
        reference=sinks_and_recent_solution,
        wrong=[(too_many, "do the sinks count"), (oldest_first, "..."), (unsorted, "...")])
    EXERCISES = [sinks_and_recent]

In a notebook: a cell `ex.sinks_and_recent` shows the task with its hints; the stub's cell ends in
`ex.sinks_and_recent.check(keep_sinks_and_recent)`. The stub's text in the notebook is `Exercise.stub`, letter by letter.
A check uses small tensors or plain numbers only, never a language model: graders run it without one.
"""

import functools
import html
import importlib
import importlib.util
import inspect
import math
import pkgutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

DIFFICULTY = {1: "easy", 2: "medium", 3: "hard"}


class WrongAnswer(Exception):
    """Raised by a check: `said` is what differs, `hint` the likely mistake, `case` the call (filled in by `run`)."""

    def __init__(self, said: str, hint: str, case: str | None = None):
        super().__init__(said)
        self.said, self.hint, self.case = said, hint, case


def wrong(said: str, hint: str, case: str | None = None) -> NoReturn:
    """Reject the answer. said: what came out against what should; hint: the likely mistake, as a question."""
    raise WrongAnswer(said, hint, case)


def equal(got: Any, want: Any, hint: str, *, tolerance: float = 1e-6, case: str | None = None) -> None:
    """Reject the answer unless `got` is `want`; numbers and tensors may differ by `tolerance`, absolute and relative."""
    if not _same(got, want, tolerance):
        wrong(f"got {short(got)}, expected {short(want)}", hint, case)


@dataclass(frozen=True)
class Result:
    """What a check found. status: "not attempted yet", "passed" or "wrong"; case, said and hint are empty unless wrong."""

    status: str
    case: str = ""
    said: str = ""
    hint: str = ""

    @property
    def passed(self) -> bool:
        return self.status == "passed"

    def __str__(self) -> str:
        if self.status != "wrong":
            return self.status
        return f"not yet: {self.case}{': ' if self.case else ''}{self.said}\nhint: {self.hint}"

    def _ipython_display_(self) -> None:
        """Nothing: `check` has printed it already."""


@dataclass(frozen=True)
class Exercise:
    """One exercise. Raises ValueError at construction when a part is missing.

    key: the module variable's name. prompt: the task, plain text with `code` in backticks. stub: the cell's text, a
    function (or class) that raises NotImplementedError. test: function(fn) that returns if fn is right and calls
    `wrong`/`equal` otherwise. hints: from gentle to nearly telling. difficulty: 1 easy to 3 hard. minutes: for a
    reader new to it. reference: a right answer. wrong: (wrong answer, piece of the hint it must get), three or more.
    """

    key: str
    prompt: str
    stub: str
    test: Callable[[Callable], None] = field(repr=False)
    hints: Sequence[str]
    difficulty: int
    minutes: int
    reference: Callable = field(repr=False)
    wrong: Sequence[tuple[Callable, str]] = field(repr=False)
    title: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "title", self.title or self.key.replace("_", " ").capitalize())
        if not self.key.isidentifier():
            raise ValueError(f"key={self.key!r}: an exercise key is a Python name, as `ex.<key>.check` uses it")
        if self.difficulty not in DIFFICULTY:
            raise ValueError(f"{self.key}: difficulty={self.difficulty!r}; allowed: {sorted(DIFFICULTY)}")
        if not 1 <= self.minutes <= 120:
            raise ValueError(f"{self.key}: minutes={self.minutes!r}; allowed: 1 to 120")
        if "NotImplementedError" not in self.stub:
            raise ValueError(f"{self.key}: the stub must raise NotImplementedError, so that it says 'not attempted yet'")
        if not self.hints or len(self.wrong) < 3:
            raise ValueError(f"{self.key}: {len(self.hints)} hints and {len(self.wrong)} wrong answers; needed: 1 and 3")

    def run(self, fn: Any) -> Result:
        """Check an answer without printing: the first case that differs, or passed."""
        if not callable(fn):
            return Result("wrong", "", f"{short(fn)} is not a function", "pass the function itself, without calling it")
        watched = fn if isinstance(fn, type) else _Watched(fn)
        try:
            self.test(watched)
        except NotImplementedError:
            return Result("not attempted yet")
        except WrongAnswer as found:
            return Result("wrong", found.case or _last_call(watched), found.said, found.hint)
        except Exception as error:  # noqa: BLE001 whatever the reader's code does must end in a sentence
            raised = getattr(watched, "raised", False)
            said = f"{'raised ' if raised else ''}{type(error).__name__}: {error}"
            hint = "which line of yours is it?" if raised else f"it returned {_returned(watched)}: is that the asked type?"
            return Result("wrong", _last_call(watched), said, hint)
        return Result("passed")

    def check(self, fn: Any) -> Result:
        """Check an answer and print "not attempted yet", "passed", or the first case that differs with a hint."""
        result = self.run(fn)
        print(result)
        return result

    def _repr_html_(self) -> str:
        hints = "".join(f"<details><summary>Hint {i}</summary>{_code(hint)}</details>" for i, hint in enumerate(self.hints, 1))
        return (f'<div class="frugal-exercise"><p><strong>{html.escape(self.title)}</strong> '
                f"({DIFFICULTY[self.difficulty]}, about {self.minutes} min)</p><p>{_code(self.prompt)}</p>{hints}</div>")  # fmt: skip

    def __repr__(self) -> str:
        return f"{self.title} ({DIFFICULTY[self.difficulty]}, about {self.minutes} min)"


def exercises(family: str | None = None) -> list[Exercise]:
    """The exercises of a family, or of all; a family without the module has none. ValueError on an unknown family."""
    import frugal

    families = [m.name for m in pkgutil.iter_modules(frugal.__path__) if m.ispkg]
    if family is not None and family not in families:
        raise ValueError(f"family={family!r} is not known; known: {', '.join(families)}")
    found: list[Exercise] = []
    for name in [family] if family else families:
        spec = importlib.util.find_spec(f"frugal.{name}.exercises")
        if spec is not None:
            found += importlib.import_module(f"frugal.{name}.exercises").EXERCISES
    return found


def problems(exercise: Exercise) -> list[str]:
    """What is not proven about an exercise, one sentence each; the families' tests assert that the list is empty."""
    found = []
    scope: dict[str, Any] = {"__name__": "stub"}
    exec(compile(exercise.stub, exercise.key, "exec"), _names(exercise, scope))  # noqa: S102 our own stub
    stub = [value for name, value in scope.items() if getattr(value, "__module__", "") == "stub"][-1]
    if exercise.run(stub).status != "not attempted yet":
        found.append(f"the stub says {exercise.run(stub)!s}, not 'not attempted yet'")
    if not exercise.run(exercise.reference).passed:
        found.append(f"the reference is rejected: {exercise.run(exercise.reference)}")
    hints: list[str] = []
    for fn, fragment in exercise.wrong:
        result = exercise.run(fn)
        if result.status != "wrong":
            found.append(f"the wrong answer {fn.__name__} gets: {result}")
        elif fragment.lower() not in f"{result.said} {result.hint}".lower():
            found.append(f"the wrong answer {fn.__name__} should hear {fragment!r}, but hears: {result}")
        hints.append(result.hint)
    if len(set(hints)) < len(hints):
        found.append(f"two wrong answers get the same hint: {sorted(hints)}")
    return found


class _Watched:
    """The reader's function, with a note of its last call, so that a report can show it."""

    def __init__(self, fn: Callable):
        functools.update_wrapper(self, fn)
        self.fn, self.call, self.value, self.raised = fn, "", None, False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        words = [short(a) for a in args] + [f"{name}={short(value)}" for name, value in kwargs.items()]
        self.call, self.raised = f"{getattr(self.fn, '__name__', 'answer')}({', '.join(words)})", True
        self.value = self.fn(*args, **kwargs)
        self.raised = False
        if self.value is None:
            wrong("returned None", "is a `return` missing?")
        return self.value


def short(value: Any, limit: int = 100) -> str:
    """A value on one line: tensors with up to 24 entries as nested lists, larger ones by shape and type."""
    if hasattr(value, "shape") and hasattr(value, "tolist"):
        if math.prod(value.shape) > 24:
            return f"<{type(value).__name__.lower()} {tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}>"
        value = value.tolist()
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, (list, tuple)):
        inside = ", ".join(short(v, limit) for v in value)
        text = f"[{inside}]" if isinstance(value, list) else f"({inside}{',' if len(value) == 1 else ''})"
    else:
        text = repr(value)
    return text if len(text) <= limit else text[: limit - 4] + " ..."


def _same(got: Any, want: Any, tolerance: float) -> bool:
    got, want = (v.tolist() if hasattr(v, "tolist") else v for v in (got, want))
    if isinstance(want, (list, tuple)):
        return isinstance(got, (list, tuple)) and len(got) == len(want) and all(
            _same(g, w, tolerance) for g, w in zip(got, want, strict=True))  # fmt: skip
    if isinstance(want, dict):
        return isinstance(got, dict) and got.keys() == want.keys() and all(_same(got[k], want[k], tolerance) for k in want)
    if isinstance(want, float) and isinstance(got, (int, float)):
        return math.isclose(got, want, rel_tol=tolerance, abs_tol=tolerance) or (math.isnan(got) and math.isnan(want))
    return bool(got == want)


def _last_call(watched: Any) -> str:
    return getattr(watched, "call", "")


def _returned(watched: Any) -> str:
    return short(getattr(watched, "value", None))


def _names(exercise: Exercise, scope: dict[str, Any]) -> dict[str, Any]:
    """What the stub's annotations may name: everything that the modules of its check and of its reference import."""
    for fn in (exercise.test, exercise.reference):
        for name, value in getattr(inspect.unwrap(fn), "__globals__", {}).items():
            scope.setdefault(name, value)
    return scope


def _code(text: str) -> str:
    """Escape, then turn `code` in backticks into code."""
    parts = html.escape(text).split("`")
    return "".join(f"<code>{part}</code>" if i % 2 and i < len(parts) - 1 else (part if i % 2 == 0 else "`" + part)
                   for i, part in enumerate(parts))  # fmt: skip


def __getattr__(name: str) -> Any:
    """The exercises of notebook 00, so that `from frugal.explore import exercises as ex` works as in a family."""
    if name.startswith("__"):
        raise AttributeError(name)
    from . import start_exercises

    if name in start_exercises.__all__:
        return getattr(start_exercises, name)
    raise AttributeError(f"no exercise {name!r}; known: {', '.join(start_exercises.__all__[1:])}")
