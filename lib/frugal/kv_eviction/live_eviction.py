"""The live run of notebook 01: the reader's own prompt, answered with the full cache and with a small one."""
import json
from collections.abc import Callable
from importlib import resources
from typing import Any

import plotly.graph_objects as go

from frugal.core.generation import generate
from frugal.explore.pictures.strips import token_strip
from frugal.kv_eviction import baselines, keyformer
from frugal.kv_eviction.workloads import model

PROMPT = ("The lighthouse keeper wrote in his journal every evening. On the first page he had noted the names of the "
          "ships, on the second the colour of their sails. Tonight the wind was cold and the sea was")
POLICIES = {cls.name: cls for cls in (keyformer.Keyformer, baselines.HeavyHitter, baselines.StreamingLLM, baselines.SnapKV,
                                      baselines.TOVA, baselines.Knorm, baselines.Random, baselines.Window)}
BUDGETS = (16, 24, 32, 48)
NEW_TOKENS = 32


def answer_twice(inputs: dict[str, Any], progress: Callable) -> dict[str, Any]:
    """Greedy answers to inputs["prompt"]: with the full cache, and with inputs["budget"] slots kept by
    inputs["method"] after every token. Returns the tokens of both as text, and the bytes both held at the end.

    Raises ValueError for a prompt shorter than the budget.
    """
    lm = model("smollm2-135m")
    ids, budget = lm.tokenizer.encode(inputs["prompt"]), int(inputs["budget"])
    if len(ids) <= budget:
        raise ValueError(f"the prompt has {len(ids)} tokens, not more than the budget of {budget}: nothing would be evicted; "
                         "write a longer prompt or take a smaller budget")
    found = {"budget": budget, "method": inputs["method"], "prompt_tokens": len(ids)}
    for number, name in enumerate(("full", "small")):
        tokens: list[str] = []

        def watch(step, tokens=tokens, name=name, number=number):
            tokens.append(lm.tokenizer.token_str(step.tokens[0]))
            progress((number + (step.index + 1) / NEW_TOKENS) / 2, {**found, name: list(tokens)})

        small = name == "small"
        done = generate(lm, [ids], POLICIES[inputs["method"]]() if small else None, budget if small else None, "fixed_size",
                        NEW_TOKENS, on_step=watch, stop_at_end=False)[0]
        found |= {name: tokens, f"{name}_bytes": done.num_bytes}
    return found


def two_answers(result: dict[str, Any]) -> go.Figure:
    """Both answers as token strips; in the second, a token that the full cache would not have written stands out."""
    full, small = result.get("full", []), result.get("small", [])
    labels = ["full cache:", *full, f"{result['method']}, {result['budget']} slots:", *small]
    same = [float(i < len(full) and token == full[i]) for i, token in enumerate(small)]
    values = [float("nan")] * (len(full) + 2) + same
    title = "Writing ..."
    if "small_bytes" in result:
        first = same.index(0.0) if 0.0 in same else len(same)
        title = (f"The answers part at token {first + 1} of {len(same)}; {result['small_bytes'] / 1e6:.2f} MB of cache "
                 f"instead of {result['full_bytes'] / 1e6:.2f} MB")
        if first == len(same):
            title = title.replace(f"The answers part at token {first + 1} of {len(same)}", f"The same {len(same)} tokens")
    return token_strip(labels, values, title=title, value="same token as the full cache (1 = yes)", limits=(0, 1))


def recorded_answer() -> dict[str, Any]:
    """The answer to `PROMPT` that recipes/record_kv_eviction.py stored: what a page without a kernel shows."""
    text = resources.files("frugal.kv_eviction").joinpath("assets/live_answer.json").read_text(encoding="utf-8")
    return json.loads(text)
