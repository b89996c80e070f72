"""TIMRUN: a runtime that prunes finished subtask lists from the working memory while the model goes on writing.

Source: arXiv 2507.16784 (TIM/TIMRUN). The paper's public repository holds no runtime, so details below are ours where marked.
The text is a tree of tasks (thought, tooluse, subtasks, conclusion). A closed subtasks list joins a stack of at most `threshold`
lists; the oldest one beyond that leaves the memory, the conclusion of its owner stays. Tokens behind the gap are fed again in one
pass, so that positions are contiguous and nothing depends on what is gone: the text may grow without end, positions do not.
Differs: a list joins the stack once its owner has concluded (`trim="task"`), because with threshold 0 the literal order
(`trim="list"`) drops the results before the conclusion that needs them. Page size 1 and the re-encoding pass are as reported.
"""
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch

from frugal.core.papers import Paper, paper
from frugal.data import thread_tasks as tasks
from frugal.kv_eviction.thread_parser import Event, Task, ThreadParser, ThreadSyntaxError
from frugal.kv_eviction.working_text import Span, WorkingText

__all__ = ["SubtaskStack", "TIMRun", "TIMRuntime", "Timrun", "ThreadParser", "ThreadSyntaxError", "ToolError"]


class ToolError(RuntimeError):
    """A tool raised; the message names the tool, its parameters and what it said."""


class SubtaskStack:
    """The finished subtask lists that are still in memory, oldest first, as spans of the text (start, stop), stop exclusive."""

    def __init__(self, threshold: int | float = 1):
        """threshold: lists that may stay, 0, 1, 2 ... or math.inf. Raises ValueError for anything else."""
        whole = threshold == math.inf or float(threshold).is_integer()
        if isinstance(threshold, bool) or not whole or threshold < 0:
            raise ValueError(f"threshold is {threshold}; it must be 0 or more whole lists, or math.inf for no pruning")
        self.threshold = threshold
        self.lists: list[Span] = []
        self.freed: list[Span] = []                                # disjoint, ascending

    def close_list(self, span: Span) -> list[Span]:
        """Push a list that just closed; returns the spans to free now, disjoint and ascending, never freed before."""
        self.lists.append(span)
        out: list[Span] = []
        while len(self.lists) > self.threshold:
            out += self._free(self.lists.pop(0))
        return sorted(out)

    def _free(self, span: Span) -> list[Span]:
        start, stop = span
        out: list[Span] = []
        for a, b in [f for f in self.freed if start <= f[0] < stop]:    # lists inside this one that went earlier
            if start < a:
                out.append((start, a))
            start = max(start, b)
        if start < stop:
            out.append((start, stop))
        self.freed = sorted([f for f in self.freed if not span[0] <= f[0] < stop] + [span])
        return out


@dataclass
class TIMRun:
    """What one run did. Tokens are counted, seconds measured.

    tokens: all that went through, prompt and tool results included; stopped: "done", "limit" (no position or page left) or
    "max_tokens"; answer: the root's conclusion or None; peak_tokens: most ever held; reencoded: tokens fed again after prunes;
    occupancy: tokens held after each step; frees: (step, spans) in text coordinates; tables: the page table after each prune;
    owned_bytes: most bytes of used pages; storage_bytes: the pool as it was at the end.
    """
    tokens: list[int]
    stopped: str
    answer: int | None
    peak_tokens: int
    reencoded: int
    seconds: float
    occupancy: list[int]
    frees: list[tuple[int, list[Span]]]
    tables: list[list[int]]
    step_of_token: list[int]
    tree: list[Task]
    owned_bytes: int
    storage_bytes: int

    @property
    def tok_per_s(self) -> float:
        """Tokens of the text per second, prefills and re-encoding included."""
        return len(self.tokens) / self.seconds


class TIMRuntime(WorkingText):
    """Decode a Thread tree with tools, pausing for them in place, and prune finished lists.

    lm: the model; look: the tool, parameters -> token ids that end the `tooluse` field; threshold, trim: see the module;
    constrained: the model may write only what the schema allows; gap, limit, window, sinks: see WorkingText.
    """

    def __init__(self, lm, look: Callable[[str], list[int]], threshold: int | float = 1, *, trim: str = "task",
                 constrained: bool = True, **memory):
        super().__init__(lm, **memory)
        if trim not in ("task", "list"):
            raise ValueError(f"trim is {trim!r}; trim is 'task' or 'list'")
        SubtaskStack(threshold)                                      # refuses a bad threshold before anything runs
        self.look, self.threshold, self.trim, self.constrained = look, threshold, trim, constrained

    def run(self, prompt: list[int], max_tokens: int = 20_000, on_step: Callable[["TIMRuntime"], None] | None = None) -> TIMRun:
        """Write the tree that answers `prompt`. Raises ToolError, and ThreadSyntaxError when unconstrained text is no tree."""
        self.clear()
        self.stack, self.parser = SubtaskStack(self.threshold), ThreadParser(len(prompt))
        started, stopped, answer = time.perf_counter(), "max_tokens", None
        logits = self.feed(prompt, [])
        while len(self.text) < max_tokens:
            event, new, spans = self._next(logits)
            if event.kind == "done":
                self.text += new
                stopped, answer = "done", event.value
                break
            if self.highest_position(len(new), spans) >= self.limit:
                stopped = "limit"
                break
            logits = self.feed(new, spans)
            if on_step:
                on_step(self)
        return TIMRun(self.text, stopped, answer, self.peak, self.reencoded, time.perf_counter() - started, self.occupancy,
                      self.frees, self.tables, self.step_of_token, self.parser.tasks, self.peak * self.memory.page_bytes,
                      self.memory.num_bytes)

    def _next(self, logits: torch.Tensor) -> tuple[Event, list[int], list[Span]]:
        """The model's next token with what follows from it without the model: tool results, and tokens that the schema leaves no
        choice about. Returns the last event, the tokens to feed and the spans to free before."""
        token, new, spans = self._choose(logits), [], []
        while True:
            event = self.parser.feed(token)
            new.append(token)
            if event.kind == "call":
                new += self._call(event)
            spans += self._to_free(event)
            allowed = self.parser.allowed()
            if not self.constrained or event.kind == "done" or len(allowed) != 1:
                return event, new, spans
            token = allowed[0]

    def _choose(self, logits: torch.Tensor) -> int:
        """The likeliest next token; under the schema, among those the open field allows."""
        if not self.constrained:
            return int(logits.argmax())
        allowed = self.parser.allowed()
        return allowed[int(logits[allowed].argmax())]

    def _call(self, event: Event) -> list[int]:
        try:
            result = self.look(event.value)
        except Exception as error:
            raise ToolError(f"the tool 'look' failed on {event.value!r}: {type(error).__name__}: {error}") from error
        for token in result:
            self.parser.feed(token, tool=True)
        return result

    def _to_free(self, event: Event) -> list[Span]:
        closed = event.kind == "list_closed" if self.trim == "list" else event.kind in ("task_closed", "done")
        if event.span is None or not closed or self.window is not None:
            return []
        start, stop = event.span
        # The token just written must be fed to go on; with trim="list" that is the closing bracket, which therefore stays.
        return self.stack.close_list((start, stop) if self.trim == "task" else (start, stop - 1))


@dataclass(frozen=True)
class Timrun:
    """Prune finished subtask lists, re-encode what follows; on the mini TIM model.

    threshold: finished lists that stay in memory (math.inf: none is pruned).
    """
    name: ClassVar[str] = "timrun"
    paper: ClassVar[Paper] = paper("timrun")
    summary: ClassVar[str] = "prunes finished subtask lists from a paged working memory; text length is unbounded"
    kind: ClassVar[str] = "model"
    threshold: int | float = 0
    trim: str = "task"
    gap: str = "reencode"

    def solve(self, lm, document: tasks.Document, **options) -> TIMRun:
        """Answer the question of a document with the mini TIM `lm`; options: see TIMRuntime."""
        return TIMRuntime(lm, document.look, self.threshold, trim=self.trim, gap=self.gap, **options).run(document.prompt())
