"""ThreadParser: follows a Thread tree token by token and always knows which field is open.

Source: arXiv 2507.16784 (TIM), the Thread-2 task object; symbols instead of JSON text, see `frugal.data.thread_tasks`.
"""
from dataclasses import dataclass, field

from frugal.data import thread_tasks as tasks
from frugal.data.thread_tasks import MAX_DEPTH, SYMBOLS


class ThreadSyntaxError(ValueError):
    """A token that the open field does not allow, or a tree that never closed."""


@dataclass
class Task:
    """One task as far as it is written; places are positions in the whole text, stop exclusive, None while open."""
    depth: int
    start: int
    stop: int | None = None
    list_span: tuple[int, int | None] | None = None
    thought: str = ""
    parameters: str = ""
    result: str = ""
    conclusion: int | None = None
    parent: int | None = None                                       # index in ThreadParser.tasks


@dataclass(frozen=True)
class Event:
    """kind: "token", "call" (value: parameters), "list_closed" (span), "task_closed" (span of its list or None), "done" (value)."""
    kind: str
    value: str | int | None = None
    span: tuple[int, int] | None = None


_OPS = [tasks.ID[op] for op in tasks.OPS]
_DIGITS = list(range(tasks.FIRST_DIGIT, tasks.FIRST_DIGIT + 10))
_LETTERS = list(range(tasks.FIRST_LETTER, tasks.FIRST_LETTER + 26))
_FIXED = {"op": (_OPS, "acc"), "acc": (_DIGITS, "tool"), "tool": ([tasks.TOOL], "letter 1"), "letter 1": (_LETTERS, "letter 2"),
          "letter 2": (_LETTERS, "more names"), "more names": (_LETTERS + [tasks.CALL], "letter 2"),
          "value": (_DIGITS, "fold op"), "fold op": (_OPS, "fold acc"), "fold acc": (_DIGITS, "carry"), "carry": (_DIGITS, "task end")}


@dataclass
class ThreadParser:
    """Push-down automaton over symbols. `start`: place in the text of the first token it is fed."""
    start: int = 0
    tasks: list[Task] = field(default_factory=list)                  # in the order of opening
    open: list[int] = field(default_factory=list)                    # indices of the tasks that are open, root first
    state: str = "task"
    place: int = field(init=False)

    def __post_init__(self):
        self.place = self.start

    def allowed(self) -> list[int]:
        """Ids the model may write next; empty while a tool result is due and after the end."""
        depth = len(self.open)
        if self.state in _FIXED:
            return _FIXED[self.state][0]
        if self.state == "task":                                     # the first task of a list, or the root
            return [tasks.OPEN_TASK + depth]
        if self.state == "sibling":                                  # one more task, or the end of the list
            return [tasks.OPEN_TASK + depth, tasks.CLOSE_LIST + depth - 1]
        if self.state == "after result":
            return [tasks.CONCLUDE] + ([tasks.OPEN_LIST + depth - 1] if depth <= MAX_DEPTH else [])
        return {"after list": [tasks.CONCLUDE], "task end": [tasks.CLOSE_TASK + depth - 1]}.get(self.state, [])

    def feed(self, token: int, tool: bool = False) -> Event:
        """Take one token. Raises ThreadSyntaxError naming the token, its place and what was allowed there."""
        if tool:
            return self._feed_result(token)
        allowed = self.allowed()
        if token not in allowed:
            wanted = "a tool result" if self.state == "result" else " or ".join(SYMBOLS[i] for i in allowed[:6]) or "nothing more"
            shown = SYMBOLS[token] if 0 <= token < len(SYMBOLS) else str(token)
            raise ThreadSyntaxError(f"token {shown!r} at place {self.place}; the open field allows {wanted}")
        self.place += 1
        return self._step(token)

    def finish(self) -> None:
        """Raises ThreadSyntaxError unless the root task has closed."""
        if self.state != "end":
            raise ThreadSyntaxError(f"the text ends at place {self.place} with {len(self.open)} open tasks, waiting for {self.state}")

    def _feed_result(self, token: int) -> Event:
        if self.state != "result":
            raise ThreadSyntaxError(f"a tool result at place {self.place}, but no call is waiting ({self.state})")
        self.place += 1
        task = self.tasks[self.open[-1]]
        if token == tasks.END:
            self.state = "after result"
        else:
            task.result = f"{task.result} {SYMBOLS[token]}".strip()
        return Event("token")

    def _step(self, token: int) -> Event:
        symbol, kind = SYMBOLS[token], SYMBOLS[token][0]
        if kind == "{":
            self.tasks.append(Task(len(self.open), self.place - 1, parent=self.open[-1] if self.open else None))
            self.open.append(len(self.tasks) - 1)
            self.state = "op"
            return Event("token")
        task = self.tasks[self.open[-1]]
        if kind == "[":
            task.list_span, self.state = (self.place - 1, None), "task"
        elif kind == "]":
            task.list_span, self.state = (task.list_span[0], self.place), "after list"
            return Event("list_closed", span=task.list_span)
        elif kind == "}":
            return self._close(task)
        elif token == tasks.CONCLUDE:
            self.state = "value"
        else:
            return self._field(task, symbol)
        return Event("token")

    def _field(self, task: Task, symbol: str) -> Event:
        state, self.state = self.state, _FIXED[self.state][1]
        if symbol == ">":
            self.state = "result"
            return Event("call", value=task.parameters)
        if state in ("op", "acc"):
            task.thought = f"{task.thought} {symbol}".strip()
        elif symbol.isalpha() and len(symbol) == 1:
            task.parameters += symbol
        elif state == "value":
            task.conclusion = int(symbol)
        return Event("token")

    def _close(self, task: Task) -> Event:
        task.stop = self.place
        self.open.pop()
        self.state = "sibling" if self.open else "end"
        if not self.open:
            return Event("done", value=task.conclusion, span=task.list_span)
        return Event("task_closed", span=task.list_span)
