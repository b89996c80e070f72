"""The TIM runtime on a chat model: the runtime writes the JSON of the tree, the model fills in short values.

Source: arXiv 2507.16784 (TIM/TIMRUN). Differs: a 135M chat model does not write valid trees, and we do not pretend that it does.
Braces, field names and the outline (which task asks what, with which tool) come from the runtime; the model writes each tool's
parameters and each conclusion. Pausing for tools, paging, pruning and re-encoding are those of `frugal.kv_eviction.timrun`.
"""
import ast
import json
import math
import operator
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import pandas as pd
import torch

from frugal.kv_eviction.timrun import SubtaskStack, ToolError
from frugal.kv_eviction.working_text import Span, WorkingText

MOST_VALUE_TOKENS = 24


class ThreadValueError(ValueError):
    """The model filled a field with text that cannot stand in a JSON string."""


@dataclass
class Outline:
    """What is asked: a thought, and either a tool's name or subtasks."""
    thought: str
    tool: str | None = None
    subtasks: list["Outline"] = field(default_factory=list)


@dataclass
class DemoRun:
    """thread: the tree as filled in; num_tokens: all that went through; peak_tokens, peak_bytes: most ever held, in pages;
    filled: tokens the model wrote; reencoded: tokens fed again after prunes; occupancy: tokens held after each pass;
    pauses: tool calls served in place; frees: (step, spans of the text)."""
    thread: dict
    num_tokens: int
    peak_tokens: int
    peak_bytes: int
    filled: int
    reencoded: int
    seconds: float
    occupancy: list[int]
    frees: list[tuple[int, list[Span]]]
    pauses: int


def calculate(expression: str) -> str:
    """A number from + - * / and brackets over numbers, and nothing else. Raises ValueError on anything else."""
    signs = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv, ast.USub: operator.neg}

    def value(node: ast.AST) -> int | float:
        if isinstance(node, ast.Constant) and type(node.value) in (int, float):
            return node.value
        if isinstance(node, ast.BinOp) and type(node.op) in signs:
            return signs[type(node.op)](value(node.left), value(node.right))
        if isinstance(node, ast.UnaryOp) and type(node.op) in signs:
            return signs[type(node.op)](value(node.operand))
        raise ValueError(f"{expression!r} is no sum of numbers")

    try:
        return f"{value(ast.parse(expression.strip(), mode='eval').body):g}"
    except SyntaxError as error:
        raise ValueError(f"{expression!r} is no arithmetic expression") from error


def look_up(facts: Mapping[str, str]) -> Callable[[str], str]:
    """A tool that finds the fact whose name it is given, whatever the case. Raises KeyError naming what there is."""
    known = {name.lower(): fact for name, fact in facts.items()}

    def find(name: str) -> str:
        if name.strip().lower() not in known:
            raise KeyError(f"nothing under {name!r}; known: {', '.join(facts)}")
        return known[name.strip().lower()]
    return find


class ForcedThread(WorkingText):
    """Writes an outline as a Thread tree with a chat model, and prunes finished subtasks lists.

    tools: name -> function of one string; threshold: finished lists that stay; forgiving: a tool that raises puts its message
    into the result, as the paper's runtime would, instead of ending in ToolError; limit, gap: see WorkingText.
    """

    def __init__(self, lm, tools: Mapping[str, Callable[[str], str]], threshold: int | float = 0, *, forgiving: bool = False, **memory):
        super().__init__(lm, **memory)
        SubtaskStack(threshold)
        self.tools, self.threshold, self.forgiving = tools, threshold, forgiving

    def run(self, prompt: str, outline: Outline, on_text: Callable[[str, str], None] | None = None) -> DemoRun:
        """prompt: instructions and examples; on_text(kind, piece) sees every piece, kind "forced", "model" or "tool".

        Raises ToolError, ThreadValueError for a value that breaks the JSON, ValueError when the text outgrows the limit.
        """
        self.clear()
        self.stack, self.waiting, self.to_free = SubtaskStack(self.threshold), [], []
        self.filled = self.pauses = 0
        self.on_text = on_text or (lambda kind, piece: None)
        started = time.perf_counter()
        self._write(prompt)
        thread = self._task(outline)
        self._flush()
        return DemoRun(thread, len(self.text), self.peak, self.peak * self.memory.page_bytes, self.filled, self.reencoded,
                       time.perf_counter() - started, self.occupancy, self.frees, self.pauses)

    def _task(self, outline: Outline) -> dict:
        self._write(json.dumps({"thought": outline.thought})[:-1])
        task, span = {"thought": outline.thought}, None
        if outline.tool is not None:
            task["tooluse"] = self._tooluse(outline.tool)
        if outline.subtasks:
            start = self._place()
            self._write(', "subtasks": [')
            task["subtasks"] = []
            for i, sub in enumerate(outline.subtasks):
                self._write(", " if i else "")
                task["subtasks"].append(self._task(sub))
            self._write("]")
            span = (start, self._place())
        self._write(', "conclusion": "')
        task["conclusion"] = self._fill("conclusion")
        self._write('"}')
        if span:
            self._flush()                                           # the brace is in memory before anything leaves
            self.to_free += self.stack.close_list(span)
        return task

    def _tooluse(self, name: str) -> dict:
        if name not in self.tools:
            raise ToolError(f"there is no tool {name!r}; known: {', '.join(self.tools)}")
        self._write(f', "tooluse": {{"name": "{name}", "parameters": "')
        parameters = self._fill("parameters")
        try:
            result = str(self.tools[name](parameters))
        except Exception as error:
            if not self.forgiving:
                raise ToolError(f"the tool {name!r} failed on {parameters!r}: {type(error).__name__}: {error}") from error
            result = f"error: {error}"
        self.pauses += 1
        self._write('", "result": ')
        self._write(json.dumps(result), kind="tool")
        self._write("}")
        return {"name": name, "parameters": parameters, "result": result}

    def _write(self, piece: str, kind: str = "forced") -> None:
        """Queue text; it is fed in one pass when the model's turn comes."""
        if piece:
            self.on_text(kind, piece)
            self.waiting += self.lm.tokenizer.encode(piece)

    def _place(self) -> int:
        return len(self.text) + len(self.waiting)

    def _flush(self) -> torch.Tensor | None:
        if not self.waiting:
            return None
        if self.highest_position(len(self.waiting), self.to_free) >= self.limit:
            raise ValueError(f"the text needs position {self.highest_position(len(self.waiting), self.to_free)} of {self.limit}; "
                             "prune more (a smaller threshold) or ask for less")
        new, spans, self.waiting, self.to_free = self.waiting, self.to_free, [], []
        return self.feed(new, spans)

    def _fill(self, name: str) -> str:
        """The model writes greedily until the quote that closes the string; the quote itself is the runtime's."""
        value, decode = "", self.lm.tokenizer.decode
        for _ in range(MOST_VALUE_TOKENS):
            token = int(self._flush().argmax())
            text = decode([token])
            if '"' in text:
                rest = text[:text.index('"')]
                self._write(rest, kind="model")
                return self._checked(name, value + rest)
            self.filled += 1
            self.on_text("model", text)
            self.waiting.append(token)
            value += text
        return self._checked(name, value)                           # cut: the runtime closes the string

    def _checked(self, name: str, value: str) -> str:
        try:
            return json.loads(f'"{value}"')
        except ValueError as error:
            raise ThreadValueError(f"the model wrote {value!r} into {name!r}, which is no JSON string ({error})") from error


PROMPT = """Tasks as JSON. The tool look_up takes the name of a thing and returns its price. The tool calculate takes an expression.
{"thought": "What is the price of lamp?", "tooluse": {"name": "look_up", "parameters": "lamp", "result": "30"}, "conclusion": "30"}
{"thought": "What is the price of chair?", "tooluse": {"name": "look_up", "parameters": "chair", "result": "45"}, "conclusion": "45"}
{"thought": "What do 2 of chair cost?", "tooluse": {"name": "calculate", "parameters": "2 * 45", "result": "90"}, "conclusion": "90"}
{"thought": "What is the price of mug?", "tooluse": {"name": "look_up", "parameters": "mug", "result": "6"}, "conclusion": "6"}
{"thought": "What do 7 of mug cost?", "tooluse": {"name": "calculate", "parameters": "7 * 6", "result": "42"}, "conclusion": "42"}
"""
PRICES = {"apple": "3", "bread": "4", "cheese": "9", "melon": "5", "tea": "7", "honey": "8", "rice": "2", "egg": "1"}


def shopping(order: Mapping[str, int]) -> Outline:
    """An outline of three levels: an order, each item of it, and for an item its price and its cost."""
    items = [Outline(f"What do {count} of {name} cost?", subtasks=[
        Outline(f"What is the price of {name}?", tool="look_up"), Outline(f"What do {count} of {name} cost?", tool="calculate")])
        for name, count in order.items()]
    return Outline("What does the order cost?", subtasks=[*items, Outline("What is the sum of all costs?", tool="calculate")])


def demo(lm, order: Mapping[str, int], threshold: int | float = 0, **options) -> DemoRun:
    """The shopping thread with the chat model `lm`; threshold math.inf prunes nothing."""
    tools = {"look_up": look_up(PRICES), "calculate": calculate}
    return ForcedThread(lm, tools, threshold, forgiving=True, **options).run(PROMPT, shopping(order))


def steps_table(lm, order: Mapping[str, int], thresholds: Iterable[int | float] = (0, 1, math.inf)) -> pd.DataFrame:
    """Occupancy of the shopping thread, one row a threshold and forward pass, with what the run came to.

    threshold ("inf": no pruning), step, held (tokens), num_tokens, peak_bytes, reencoded, right and values (see `values_right`).
    """
    rows = []
    for threshold in thresholds:
        run = demo(lm, order, threshold)
        right, count = values_right(run, order)
        rows += [{"threshold": str(threshold), "step": step, "held": held, "num_tokens": run.num_tokens, "peak_bytes": run.peak_bytes,
                  "reencoded": run.reencoded, "right": right, "values": count} for step, held in enumerate(run.occupancy)]
    return pd.DataFrame(rows)


def values_right(run: DemoRun, order: Mapping[str, int]) -> tuple[int, int]:
    """(right, all) of the conclusions that have an exact answer: prices, costs, costs of items, the sum, the order."""
    costs = {name: count * int(PRICES[name]) for name, count in order.items()}
    wanted, got = [], []
    for name, item in zip(order, run.thread["subtasks"]):
        wanted += [int(PRICES[name]), costs[name], costs[name]]
        got += [sub["conclusion"] for sub in item["subtasks"]] + [item["conclusion"]]
    wanted += [sum(costs.values())] * 2
    got += [run.thread["subtasks"][-1]["conclusion"], run.thread["conclusion"]]
    return sum(_number(g) == w for g, w in zip(got, wanted)), len(wanted)


def _number(text: str) -> int | float:
    try:
        return float(text.strip().rstrip("."))
    except ValueError:
        return math.nan
