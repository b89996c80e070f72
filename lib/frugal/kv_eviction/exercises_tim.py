"""Exercise on TIMRUN: the stack that decides which finished subtask lists leave the memory."""
import math

from frugal.explore.exercises import Exercise, wrong
from frugal.kv_eviction.timrun import Span, SubtaskStack

__all__ = ["EXERCISES", "subtask_stack"]

# Lists in the order of closing: two lists in a row, a list in a list, and a list that holds two others.
CASES: list[tuple[list[Span], int | float]] = [
    ([(2, 5), (8, 12)], 0), ([(2, 5), (8, 12), (15, 17)], 1), ([(4, 7), (2, 10)], 0), ([(4, 7), (9, 12), (2, 15), (18, 20)], 1),
    ([(4, 7), (9, 12), (2, 15), (18, 20), (22, 30)], 2), ([(2, 5), (8, 12)], math.inf)]


def freed_by_replay(spans: list[Span], threshold: int | float) -> list[set[int]]:
    """Places that leave after each closing, by keeping a set of all that is held."""
    held, waiting, out = set(range(max(stop for _, stop in spans) + 5)), [], []
    for span in spans:
        waiting.append(span)
        going: set[int] = set()
        while len(waiting) > threshold:
            going |= held & set(range(*waiting.pop(0)))
        held -= going
        out.append(going)
    return out


def _check(answer) -> None:
    for spans, threshold in CASES:
        stack, gone = answer(threshold), set()
        for i, (span, expected) in enumerate(zip(spans, freed_by_replay(spans, threshold))):
            case = f"threshold {threshold}, lists closed: {spans[:i + 1]}"
            returned = stack.close_list(span) or []
            places = [p for start, stop in returned for p in range(start, stop)]
            again = sorted(gone & set(places)) or sorted({p for p in places if places.count(p) > 1})
            if again:
                wrong(f"place {again[0]} is freed twice", "an outer list holds inner ones that may have left before: whose page is it now?", case)
            if set(places) != expected:
                _explain(set(places), expected, spans[:i + 1], case)
            gone |= expected


def _explain(got: set[int], expected: set[int], closed: list[Span], case: str) -> None:
    said = f"freed {sorted(got) or 'nothing'}, expected {sorted(expected) or 'nothing'}"
    newest = set(range(*closed[-1]))
    if expected and got > expected and not (got - expected) & {p for span in closed for p in range(*span)}:
        wrong(said, "stop is exclusive: the owner's conclusion stands right behind its list and must stay", case)
    if got and not expected:
        wrong(said, "a stack of `threshold` lists may stay: prune only when there are more", case)
    if got and got <= newest and not expected >= newest:
        wrong(said, "is it the newest list that leaves, or the one that has waited longest?", case)
    wrong(said, "push the span, then free the oldest while more than `threshold` lists are there", case)


class _Newest(SubtaskStack):
    def close_list(self, span: Span) -> list[Span]:
        self.lists.append(span)
        return self._free(self.lists.pop()) if len(self.lists) > self.threshold else []


class _TooEarly(SubtaskStack):
    def close_list(self, span: Span) -> list[Span]:
        self.lists.append(span)
        return self._free(self.lists.pop(0)) if len(self.lists) >= self.threshold else []


class _FreesTwice(SubtaskStack):
    def close_list(self, span: Span) -> list[Span]:
        self.lists.append(span)
        return [self.lists.pop(0)] if len(self.lists) > self.threshold else []


class _TakesTheConclusion(SubtaskStack):
    def close_list(self, span: Span) -> list[Span]:
        self.lists.append((span[0], span[1] + 2))
        return self._free(self.lists.pop(0)) if len(self.lists) > self.threshold else []


subtask_stack = Exercise(
    key="subtask_stack", title="Which lists may leave",
    prompt="Write `SubtaskStack(threshold)` with `close_list(span)`: a subtasks list at places `start..stop-1` of the text has "
           "closed; return the spans that leave the memory now. At most `threshold` closed lists stay; the oldest goes first. "
           "A list may hold lists that left earlier: nothing is freed twice.",
    stub="class SubtaskStack:\n    def __init__(self, threshold):\n        self.threshold = threshold\n        self.lists = []\n\n"
         "    def close_list(self, span):\n        raise NotImplementedError  # yours: a list of (start, stop)",
    test=_check,
    hints=("Append the span, then pop from the front while there are too many.",
           "Remember what has been freed; an outer span minus the inner ones is a list of smaller spans."),
    difficulty=2, minutes=15, reference=SubtaskStack,
    wrong=[(_Newest, "waited longest"), (_TooEarly, "prune only when there are more"), (_FreesTwice, "whose page is it now"),
           (_TakesTheConclusion, "stop is exclusive")])

EXERCISES = [subtask_stack]
