"""Nested arithmetic written as Thread trees: the task that the mini TIM is trained on.

Source: arXiv 2507.16784 (TIM/TIMRUN), the Thread-2 task object: thought, tooluse, subtasks, conclusion.
Differs: a task is spelled with symbols instead of JSON text (one symbol per fixed piece of JSON, `to_json` shows the JSON);
braces and brackets carry their depth, as indentation does in printed JSON.

The problem is a document of records kept outside the context: `BD: max 3 KL QW` says that BD is the maximum of 3, KL and QW.
The prompt asks for one name. Each task looks a name up (a tool call), solves the names it finds as subtasks, and concludes:

    task   := {d op acc ? names > <record> ; [d task ... task ]d = value op acc next }d
    record := op digit digit            a leaf: no subtasks field
            | op digit names            one to three names of two letters

`op acc` is the thought: "I have acc so far and combine it with the next value". The names are those still to do, the first one is
looked up. The conclusion gives the value of that name and carries the fold on: next = op(acc, value), the acc of the next task.
So every token follows from a few others nearby, or from the task's own start. All values are digits, `sum` is mod 10.
"""
from dataclasses import dataclass, field

import numpy as np

MAX_DEPTH = 7                                  # depths 0..7 have their own braces
OPS = ("max", "min", "sum")
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
SYMBOLS = (["<pad>", "<bos>", "?", ">", ";", "="] + list(OPS) + list("0123456789") + list(LETTERS)
           + [f"{bracket}{depth}" for bracket in "{}[]" for depth in range(MAX_DEPTH + 1)])
ID = {symbol: i for i, symbol in enumerate(SYMBOLS)}
PAD, BOS, TOOL, CALL, END, CONCLUDE = range(6)
FIRST_OP, FIRST_DIGIT, FIRST_LETTER = ID["max"], ID["0"], ID["A"]
OPEN_TASK, CLOSE_TASK, OPEN_LIST, CLOSE_LIST = (ID[f"{bracket}0"] for bracket in "{}[]")
VOCAB_SIZE = len(SYMBOLS)


def combine(op: str, a: int, b: int) -> int:
    """One step of a fold: the maximum, the minimum, or the sum modulo 10 of two digits."""
    if op == "max":
        return max(a, b)
    if op == "min":
        return min(a, b)
    if op == "sum":
        return (a + b) % 10
    raise ValueError(f"unknown operation {op!r}; known: {', '.join(OPS)}")


@dataclass
class Node:
    """One record: an operation over digits and, for an inner node, over the values of its children."""
    op: str
    digits: list[int]
    children: list["Node"] = field(default_factory=list)
    name: str = ""

    def value(self) -> int:
        """The exact value, a digit, by recursion over the tree."""
        values = self.digits + [child.value() for child in self.children]
        result = values[0]
        for value in values[1:]:
            result = combine(self.op, result, value)
        return result

    def walk(self):
        """All nodes below and including this one, parents first."""
        yield self
        for child in self.children:
            yield from child.walk()

    def depth(self) -> int:
        """Edges on the longest path down to a leaf."""
        return 1 + max((child.depth() for child in self.children), default=-1)

    def record(self) -> list[str]:
        """What the look-up tool returns for this node, as symbols, with the closing `;`."""
        names = [letter for child in self.children for letter in child.name]
        return [self.op, *map(str, self.digits), *names, ";"]


def random_problem(rng: np.random.Generator, num_nodes: int, max_depth: int = 6, max_children: int = 3) -> Node:
    """A random tree of about `num_nodes` records (at most `max_children - 1` more), grown by turning random leaves into inner nodes.

    Raises ValueError when the sizes are out of range or the tree cannot hold that many nodes.
    """
    if not 1 <= num_nodes <= len(LETTERS) ** 2 - max_children:
        raise ValueError(f"num_nodes is {num_nodes}; it must be 1..{len(LETTERS) ** 2 - max_children}, the names there are")
    if not 0 <= max_depth <= MAX_DEPTH:
        raise ValueError(f"max_depth is {max_depth}; it must be 0..{MAX_DEPTH}")
    if not 1 <= max_children <= 4:
        raise ValueError(f"max_children is {max_children}; it must be 1..4")
    draws = rng.integers(0, 10, size=(num_nodes + max_children, 3))
    names = rng.permutation(len(LETTERS) ** 2)[: num_nodes + max_children]
    made: list[Node] = []

    def new() -> Node:
        i = len(made)
        node = Node(OPS[draws[i, 0] % 3], [int(draws[i, 1]), int(draws[i, 2])],
                    name=LETTERS[names[i] // 26] + LETTERS[names[i] % 26])
        made.append(node)
        return node

    root = new()
    leaves = [(root, 0)] if max_depth else []
    while len(made) < num_nodes:
        if not leaves:
            raise ValueError(f"a tree of depth {max_depth} with {max_children} children cannot hold {num_nodes} nodes")
        node, depth = leaves.pop(int(rng.integers(len(leaves))))
        # A small tree left over needs its full width, or the growth could run out of leaves before num_nodes.
        room = sum(max_children ** (max_depth - d) for _, d in leaves)
        width = max_children if room < num_nodes else int(rng.integers(1, max_children + 1))
        node.digits = node.digits[:1]
        for _ in range(width):
            node.children.append(new())
            if depth + 1 < max_depth:
                leaves.append((node.children[-1], depth + 1))
    return root


class Document:
    """The records of one problem, and the look-up tool over them."""

    def __init__(self, root: Node):
        self.root = root
        self.nodes = {node.name: node for node in root.walk()}

    def prompt(self) -> list[int]:
        """`<bos> sum 0 X Y ;` asks for the value of the record named XY."""
        return [BOS, *encode(["sum", "0", *self.root.name, ";"])]

    def look(self, parameters: str) -> list[int]:
        """Token ids of the record of the first of the names (`"BDKL"`: BD), closed by `;`. KeyError for a name that is not there."""
        if parameters[:2] not in self.nodes:
            raise KeyError(f"no record named {parameters[:2]!r}")
        return encode(self.nodes[parameters[:2]].record())


def encode(symbols: list[str]) -> list[int]:
    """Symbols to ids. Raises ValueError naming the first unknown symbol."""
    for symbol in symbols:
        if symbol not in ID:
            raise ValueError(f"unknown symbol {symbol!r}")
    return [ID[symbol] for symbol in symbols]


def decode(ids: list[int]) -> str:
    """Ids to one line of symbols separated by blanks."""
    return " ".join(SYMBOLS[int(i)] for i in ids)


class SymbolTokenizer:
    """The `encode`/`decode` pair an LM carries; text is symbols separated by blanks."""
    vocab_size = VOCAB_SIZE

    def encode(self, text: str) -> list[int]:
        return encode(text.split())

    def decode(self, ids: list[int]) -> str:
        return decode(ids)


@dataclass
class Trace:
    """A solved problem, token by token, as a model that never errs would write it.

    tokens: ids, the prompt first; emitted: True where the model writes the token (False: prompt and tool results);
    lists: (start, stop, owner_stop) of each subtasks list in the order of closing, stop exclusive;
    owner_stop is just after the closing brace of the task that owns the list; tasks: number of tasks.
    """
    tokens: list[int]
    emitted: list[bool]
    lists: list[tuple[int, int, int]]
    tasks: int
    answer: int


def solve(document: Document) -> Trace:
    """The exact trace of a document, with the spans that a runtime may free."""
    tokens = document.prompt()
    emitted = [False] * len(tokens)
    lists: list[tuple[int, int, int]] = []
    count = 0

    def write(*ids: int, by_model: bool = True) -> None:
        tokens.extend(ids)
        emitted.extend([by_model] * len(ids))

    def task(waiting: list[Node], op: str, acc: int, depth: int) -> tuple[int, int]:
        """Solves the first node that waits; returns its value and the fold so far."""
        nonlocal count
        count += 1
        node = waiting[0]
        names = [ID[letter] for other in waiting for letter in other.name]
        write(OPEN_TASK + depth, ID[op], FIRST_DIGIT + acc, TOOL, *names, CALL)
        write(*encode(node.record()), by_model=False)
        value = node.digits[0]
        if node.children:
            start = len(tokens)
            write(OPEN_LIST + depth)
            for i in range(len(node.children)):
                value = task(node.children[i:], node.op, value, depth + 1)[1]
            write(CLOSE_LIST + depth)
            lists.append((start, len(tokens), -1))
            closed = len(lists) - 1
        else:
            value = combine(node.op, *node.digits)
        carry = combine(op, acc, value)
        write(CONCLUDE, FIRST_DIGIT + value, ID[op], FIRST_DIGIT + acc, FIRST_DIGIT + carry, CLOSE_TASK + depth)
        if node.children:
            lists[closed] = (*lists[closed][:2], len(tokens))
        return value, carry

    answer = task([document.root], "sum", 0, 0)[0]
    return Trace(tokens, emitted, lists, count, answer)


@dataclass
class Snapshot:
    """A working memory: the retained tokens, and which of them are to be learnt from it."""
    tokens: list[int]
    learn: list[bool]


def snapshots(trace: Trace, threshold: int | float, limit: int) -> list[Snapshot]:
    """Every working memory of a trace just before a prune, and the last one, for a stack of `threshold` lists.

    A list joins the stack when the task that owns it has closed, and the oldest leaves while there are more than `threshold`.
    A token is learnt from a snapshot when everything the model saw on emitting it is still there, so training matches inference.
    Longer memories than `limit` tokens are cut to their first `limit` tokens (what a model with that many positions can hold).
    """
    stack: list[tuple[int, int]] = []
    freed: list[tuple[int, int, int]] = []                     # (start, stop, time)
    out: list[Snapshot] = []
    for start, stop, now in trace.lists:
        stack.append((start, stop))
        if len(stack) > threshold:
            out.append(_snapshot(trace, freed, now, limit))
            freed.append((*stack.pop(0), now))
    out.append(_snapshot(trace, freed, len(trace.tokens), limit))
    return out


def _snapshot(trace: Trace, freed: list[tuple[int, int, int]], now: int, limit: int) -> Snapshot:
    outer: list[tuple[int, int]] = []                          # freed spans without those inside a later, larger one
    for start, stop, _ in reversed(freed):
        if not outer or stop <= outer[-1][0]:
            outer.append((start, stop))
    kept: list[range] = []
    place = 0
    for start, stop in reversed(outer):
        kept.append(range(place, start))
        place = stop
    kept.append(range(place, now))
    tokens: list[int] = []
    learn: list[bool] = []
    for piece in kept:
        begin, end = piece.start, piece.stop
        # Emitted before a prune that took something earlier: the model saw more then than this snapshot shows.
        stale = max((time for start, _, time in freed if start < end and time > begin), default=begin)
        fresh = min(max(stale, begin), end)
        tokens += trace.tokens[begin:end]
        learn += [False] * (fresh - begin) + trace.emitted[fresh:end]
    return Snapshot(tokens[:limit], learn[:limit])


def to_json(tokens: list[int]) -> dict:
    """The first task in a complete trace as the Thread JSON it stands for. Raises ValueError when the tree does not close."""
    symbols = [SYMBOLS[i] for i in tokens]
    place = next((i for i, s in enumerate(symbols) if s.startswith("{")), len(symbols))

    def task() -> dict:
        nonlocal place
        op, acc = symbols[place + 1: place + 3]
        called, end = symbols.index(">", place), symbols.index(";", place)
        letters = symbols[place + 4: called]
        names = ["".join(letters[i:i + 2]) for i in range(0, len(letters), 2)]
        out = {"thought": f"{op}({acc}, {', '.join(names)})",
               "tooluse": {"name": "look", "parameters": " ".join(names), "result": " ".join(symbols[called + 1: end])}}
        place = end + 1
        if symbols[place].startswith("["):
            place += 1
            out["subtasks"] = []
            while symbols[place].startswith("{"):
                out["subtasks"].append(task())
            place += 1
        value, op, acc, carry = symbols[place + 1: place + 5]
        out["conclusion"] = f"{names[0]} = {int(value)}; {op}({acc}, {value}) = {int(carry)}"
        place += 6
        return out

    try:
        return task()
    except (IndexError, ValueError) as error:
        raise ValueError(f"the thread tree does not close: {len(symbols)} tokens, last {symbols[-3:]}") from error
