"""The forced thread on a chat model: JSON that parses, exact bytes, pruning, tools, and clear errors."""
import json
import math

import pytest
import torch

from frugal.core.lm import random_lm
from frugal.core.paged import PagedWorkingMemory
from frugal.kv_eviction.tim_demo import (PRICES, ForcedThread, Outline, ThreadValueError, calculate, demo, look_up, shopping,
                                         values_right)
from frugal.kv_eviction.timrun import ToolError

LM = random_lm(seed=2, dtype=torch.float64)
ORDER = {"apple": 4, "bread": 2}


class Writes(ForcedThread):
    """A model that fills every field with `value`."""

    def drive(self, value: str, outline: Outline, **options):
        self.value, self.at = value + '"', 0                         # the quote ends a field
        return self.run("Tasks:\n", outline, **options)

    def _fill(self, name):
        self.at = 0
        return super()._fill(name)

    def feed(self, new, spans):
        super().feed(new, spans)
        logits = torch.zeros(LM.config.vocab_size)
        logits[ord(self.value[self.at % len(self.value)])] = 1
        self.at += 1
        return logits


def test_what_is_written_is_json_and_what_is_held_is_what_was_not_pruned():
    pieces = []
    runtime = Writes(LM, {"look_up": look_up({"x": "3"}), "calculate": lambda text: text}, 0)
    run = runtime.drive("x", shopping(ORDER), on_text=lambda kind, piece: pieces.append((kind, piece)))
    text = "".join(piece for _, piece in pieces)
    assert json.loads(text.removeprefix("Tasks:\n")) == run.thread
    assert bytes(runtime.text).decode() == text                                        # byte tokens: the text itself
    held = bytes(runtime.text[p] for p in runtime.live).decode()
    for item in ("What is the price of apple?", "What is the price of bread?"):
        assert item in text and item not in held                                       # those subtasks left ...
    assert '"What do 4 of apple cost?", "conclusion": "x"}' in held                    # ... their owner and its conclusion stay
    assert "".join(piece for kind, piece in pieces if kind == "model") == "x" * run.filled
    assert run.pauses == 5 and run.peak_tokens < run.num_tokens


def test_the_pruned_memory_is_a_fresh_prefill_and_bytes_are_real():
    runtime = Writes(LM, {"look_up": look_up({"x": "3"}), "calculate": lambda text: text}, 0)
    run = runtime.drive("x", shopping(ORDER))
    fresh = PagedWorkingMemory(LM.config, LM.rope, dtype=LM.dtype)
    LM(torch.tensor([[runtime.text[p] for p in runtime.live]]), fresh)
    for mine, theirs in zip(runtime.memory.pool, fresh.pool):
        torch.testing.assert_close(mine[:, runtime.memory.slots[0]], theirs[:, fresh.slots[0]], atol=1e-5, rtol=0)
    token_bytes = LM.config.num_layers * 2 * LM.config.num_kv_heads * LM.config.head_dim * 8 + 8
    assert run.peak_bytes == run.peak_tokens * token_bytes == max(run.occupancy) * token_bytes


def test_threshold_infinity_keeps_everything():
    run = Writes(LM, {"look_up": look_up({"x": "3"}), "calculate": lambda text: text}, math.inf).drive("x", shopping(ORDER))
    assert run.frees == [] and run.reencoded == 0 and run.peak_tokens == run.num_tokens


def test_values_that_break_the_json_and_tools_that_raise_are_named():
    outline = Outline("one?", tool="look_up")
    tools = {"look_up": look_up({"x": "3"})}
    with pytest.raises(ThreadValueError, match="into 'parameters', which is no JSON string"):
        Writes(LM, tools).drive("a\n", outline)
    with pytest.raises(ToolError, match=r"'look_up' failed on 'y': KeyError: .*known: x"):
        Writes(LM, tools).drive("y", outline)
    assert "error: " in Writes(LM, tools, forgiving=True).drive("y", outline).thread["tooluse"]["result"]
    with pytest.raises(ToolError, match="there is no tool 'weigh'; known: look_up"):
        Writes(LM, tools).drive("x", Outline("one?", tool="weigh"))
    with pytest.raises(ValueError, match="of 40; prune more"):
        Writes(LM, tools, limit=40).drive("x", shopping(ORDER))
    with pytest.raises(ValueError, match="threshold is -1"):
        Writes(LM, tools, -1)


@pytest.mark.parametrize("text,result", [("4 * 30", "120"), ("(1 + 2) / 4", "0.75"), ("-3 - 2", "-5")])
def test_the_calculator(text, result):
    assert calculate(text) == result


@pytest.mark.parametrize("text", ["__import__('os')", "2 **", "a + 1", "'3' * 9", ""])
def test_the_calculator_takes_numbers_only(text):
    with pytest.raises(ValueError, match="is no"):
        calculate(text)


@pytest.mark.model
def test_smollm2_fills_the_tree_in_less_memory_than_the_text(smollm2):
    order = {"apple": 4, "bread": 2}
    run = demo(smollm2, order, 0)
    prices = [item["subtasks"][0]["tooluse"] for item in run.thread["subtasks"][:2]]
    assert prices == [{"name": "look_up", "parameters": name, "result": PRICES[name]} for name in order]
    right, count = values_right(run, order)
    assert count == 8 and 1 <= right < 8                                                # it was not trained for this
    assert run.peak_tokens < 0.85 * run.num_tokens
    assert run.peak_bytes == run.peak_tokens * (46_080 + 8)                             # fp32, 30 layers, 3 KV heads of 64
