"""TIMRUN: the runtime against plain decoding, the memory against a fresh prefill of the retained text, the stack against a replay.

The runtime is driven along exact traces with a model of random weights in fp64, so that every oracle is about the machinery.
"""
import math

import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from frugal.core.lm import random_lm
from frugal.core.paged import PagedWorkingMemory
from frugal.data import thread_tasks as tt
from frugal.kv_eviction.exercises_tim import freed_by_replay, subtask_stack
from frugal.kv_eviction.thread_parser import ThreadParser, ThreadSyntaxError
from frugal.kv_eviction.timrun import SubtaskStack, Timrun, TIMRuntime, ToolError

LM = random_lm(seed=1, vocab_size=tt.VOCAB_SIZE, dtype=torch.float64, tokenizer=tt.SymbolTokenizer())


def problem(seed: int, count: int) -> tt.Document:
    return tt.Document(tt.random_problem(np.random.default_rng(seed), count))


class Scripted(TIMRuntime):
    """Writes the exact trace, whatever the logits say; checks the memory after every step."""

    def drive(self, document: tt.Document, check=None):
        self.script = tt.solve(document).tokens
        return self.run(document.prompt(), on_step=check)

    def _choose(self, logits):
        return self.script[len(self.text)]


def check_memory(runtime: TIMRuntime) -> None:
    """Keys, values and positions equal a fresh prefill of the retained text; pages are conserved and owned once."""
    memory, fresh = runtime.memory, PagedWorkingMemory(LM.config, LM.rope, dtype=LM.dtype)
    LM(torch.tensor([[runtime.text[p] for p in runtime.live]]), fresh)
    assert memory.positions().tolist() == list(range(len(runtime.live)))
    for mine, theirs in zip(memory.pool, fresh.pool):
        torch.testing.assert_close(mine[:, memory.slots[0]], theirs[:, fresh.slots[0]], atol=1e-5, rtol=0)
    check_pages(runtime)


def check_pages(runtime: TIMRuntime) -> None:
    memory = runtime.memory
    assert memory.pages.num_used == len(set(memory.tables[0])) == len(runtime.live)
    assert memory.pages.num_used + memory.pages.num_free == memory.pages.num_pages


def check_live(runtime: TIMRuntime) -> None:
    """What is held is everything written, less the lists that a stack of `threshold` lists has let go: brute force."""
    closed = [t.list_span for t in closing_order(runtime.parser, runtime.trim)]
    lists = [(start, stop - (runtime.trim == "list")) for start, stop in closed]    # there the bracket just written stays
    held = set(range(len(runtime.text)))
    for going in freed_by_replay(lists, runtime.threshold) if lists else []:
        held -= going
    assert set(runtime.live) == held


def closing_order(parser: ThreadParser, trim: str) -> list:
    closed = [t for t in parser.tasks if t.list_span and (t.list_span[1] if trim == "list" else t.stop)]
    return sorted(closed, key=lambda t: t.list_span[1])


@settings(max_examples=12, deadline=None, phases=[Phase.explicit, Phase.generate])     # shrinking takes minutes here
@given(st.integers(0, 999), st.integers(1, 14), st.sampled_from([0, 1, 2, 5]), st.sampled_from(["task", "list"]))
def test_after_any_prune_the_memory_is_a_fresh_prefill_of_what_is_left(seed, count, threshold, trim):
    runtime = Scripted(LM, problem(seed, count).look, threshold, trim=trim)

    def check(rt):
        check_live(rt)
        if rt.frees and rt.frees[-1][0] == len(rt.occupancy) - 1:
            check_memory(rt)
    document = problem(seed, count)
    run = runtime.drive(document, check)
    assert run.stopped == "done" and run.tokens == tt.solve(document).tokens
    assert run.peak_tokens == max(run.occupancy) <= len(run.tokens)


def test_the_peak_is_the_one_of_the_training_snapshots():
    """Training and inference agree on what the memory holds."""
    for threshold in (0, 1, 2):
        document = problem(4, 20)
        run = Scripted(LM, document.look, threshold).drive(document)
        expected = max(len(s.tokens) for s in tt.snapshots(tt.solve(document), threshold, 10_000))
        # The last two tokens of a task are fed after its list has gone, so the longest snapshot may count two more.
        assert expected - 2 <= run.peak_tokens <= expected


@pytest.mark.parametrize("seed", range(4))
def test_threshold_infinity_is_plain_decoding_token_for_token(seed):
    """Random weights, a look-up that always finds something: every choice is the model's. Plain decoding recomputes everything."""
    lm = random_lm(seed=seed, vocab_size=tt.VOCAB_SIZE, dtype=torch.float64)

    def look(name):
        return tt.encode([tt.OPS[ord(name[0]) % 3], "1", "Q", "Z", ";"])
    prompt = tt.encode("<bos> sum 0 A B ;".split())
    run = TIMRuntime(lm, look, math.inf).run(prompt, max_tokens=100)
    text, parser = list(prompt), ThreadParser(len(prompt))
    while len(text) < len(run.tokens):
        allowed = parser.allowed()
        text.append(allowed[int(lm(torch.tensor([text]))[0, -1][allowed].argmax())])
        event = parser.feed(text[-1])
        if event.kind == "call":
            for token in look(event.value):
                text.append(token)
                parser.feed(token, tool=True)
    assert run.tokens == text[:len(run.tokens)] and run.reencoded == 0
    assert run.peak_tokens == len(run.tokens) - 2 * (run.stopped == "done")          # the last two tokens end it and are not fed


# ---- wrong implementations, each rejected by the oracle that is about it ------------------------------------------------------

class PrunesTheConclusion(Scripted):
    def _to_free(self, event):
        return [(a, b + 5) for a, b in super()._to_free(event)]


class OldPositions(Scripted):
    """Feeds the tail again, at the positions it had."""
    def _positions(self, places):
        return torch.tensor([places])


class ClaimsContiguous(Scripted):
    """Feeds nothing again; new tokens are numbered as if the keys behind the gap had moved."""
    def __init__(self, *args, **options):
        super().__init__(*args, gap="holes", **options)

    def _positions(self, places):
        return torch.arange(len(self.live), len(self.live) + len(places))[None]


class TurnsKeysOnly(Scripted):
    def __init__(self, *args, **options):
        super().__init__(*args, gap="renumber", **options)


@pytest.mark.parametrize("wrong,check", [(PrunesTheConclusion, check_live), (OldPositions, check_memory),
                                         (ClaimsContiguous, check_memory), (TurnsKeysOnly, check_memory)])
def test_wrong_runtimes_are_rejected(wrong, check):
    document = problem(2, 12)
    Scripted(LM, document.look, 0).drive(document, check)
    with pytest.raises(AssertionError):
        wrong(LM, document.look, 0).drive(document, check)


def test_pages_are_conserved_at_every_step_whatever_the_gap():
    for options in ({"gap": "holes"}, {"gap": "renumber"}, {"window": 60, "sinks": 4}, {"window": 60}):
        document = problem(3, 20)
        runtime = Scripted(LM, document.look, 1, **options)
        run = runtime.drive(document, check_pages)
        if "window" in options:
            assert max(run.occupancy) == 60 and run.frees == []
            assert runtime.live[:options.get("sinks", 0)] == list(range(options.get("sinks", 0)))
            assert runtime.memory.positions().tolist() == list(range(60))
        elif options["gap"] == "holes":
            assert runtime.memory.positions().tolist() == runtime.live         # keys stay where they were written


def test_without_pruning_the_limit_is_the_end_and_with_pruning_it_is_not():
    document = problem(5, 60)
    plain = Scripted(LM, document.look, math.inf, limit=300).drive(document)
    pruned = Scripted(LM, document.look, 0, limit=300).drive(document)
    holes = Scripted(LM, document.look, 0, limit=300, gap="holes").drive(document)
    assert plain.stopped == holes.stopped == "limit" and 280 <= len(plain.tokens) <= 300 and plain.answer is None
    assert pruned.stopped == "done" and len(pruned.tokens) > 800 and pruned.peak_tokens <= 300
    assert pruned.owned_bytes == pruned.peak_tokens * (LM.config.num_layers * 2 * 2 * 8 * 8 + 8)       # 2 KV heads of 8, fp64
    assert pruned.storage_bytes < plain.storage_bytes * 1.5


# ---- the stack ---------------------------------------------------------------------------------------------------------------

@settings(max_examples=200, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 40), st.sampled_from([0, 1, 2, 3, math.inf]))
def test_the_stack_frees_what_a_replay_frees(seed, count, threshold):
    spans = [(start, stop) for start, stop, _ in tt.solve(problem(seed, count)).lists]
    stack = SubtaskStack(threshold)
    for span, expected in zip(spans, freed_by_replay(spans, threshold) if spans else []):
        returned = stack.close_list(span)
        places = [p for a, b in returned for p in range(a, b)]
        assert places == sorted(expected)                                       # ascending, disjoint, nothing twice
        assert len(stack.lists) <= threshold


def test_the_exercise_accepts_the_stack_and_rejects_the_planted_ones():
    assert subtask_stack.run(subtask_stack.reference).passed
    for answer, hint in subtask_stack.wrong:
        result = subtask_stack.run(answer)
        assert result.status == "wrong" and hint in result.hint


@pytest.mark.parametrize("bad", [-1, 0.5, float("nan"), -math.inf, True])
def test_a_bad_threshold_is_named(bad):
    for make in (SubtaskStack, lambda t: TIMRuntime(LM, lambda name: [], t)):
        with pytest.raises(ValueError, match="threshold is"):
            make(bad)


# ---- the parser, the tools, bad text ------------------------------------------------------------------------------------------

def test_the_parser_builds_the_tree_of_the_trace():
    document = problem(8, 25)
    trace, parser = tt.solve(document), ThreadParser(6)
    for token, emitted in zip(trace.tokens[6:], trace.emitted[6:]):
        parser.feed(token, tool=not emitted)
    parser.finish()
    assert [(t.list_span, t.stop) for t in closing_order(parser, "task")] == [((a, b), c) for a, b, c in trace.lists]
    for task in parser.tasks:
        node = document.nodes[task.parameters[:2]]
        assert task.conclusion == node.value() and task.result == " ".join(node.record()[:-1])
        assert task.parent is None or parser.tasks[task.parent].depth == task.depth - 1


def test_text_that_is_no_tree_is_named():
    def feed(text):
        parser = ThreadParser()
        for symbol in text.split():
            parser.feed(tt.ID[symbol])
        return parser
    with pytest.raises(ThreadSyntaxError, match="token '=' at place 1; the open field allows max or min or sum"):
        feed("{0 =")
    with pytest.raises(ThreadSyntaxError, match="allows a tool result"):
        feed("{0 max 3 ? A B > max")
    with pytest.raises(ThreadSyntaxError, match="ends at place 3 with 1 open tasks"):
        feed("{0 max 3").finish()
    with pytest.raises(ThreadSyntaxError, match="no call is waiting"):
        ThreadParser().feed(tt.END, tool=True)
    with pytest.raises(ThreadSyntaxError, match="allows {0"):
        TIMRuntime(LM, lambda name: [], constrained=False).run(tt.encode("<bos> max 1 A B ;".split()))


def test_a_tool_that_raises_is_named_with_its_parameters():
    document = problem(2, 5)
    runtime = Scripted(LM, tt.Document(tt.Node("sum", [1, 2], name="00")).look)
    with pytest.raises(ToolError, match=f"'look' failed on '{document.root.name}': KeyError.*no record named"):
        runtime.drive(document)


@pytest.mark.parametrize("options,message", [
    ({"gap": "none"}, "gap is 'reencode'"), ({"trim": "never"}, "trim is 'task' or 'list'"), ({"limit": 0}, "limit is 0"),
    ({"limit": 10 ** 6}, "the positions of the model"), ({"window": 4, "sinks": 4}, "sinks is 4 and window 4")])
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        TIMRuntime(LM, lambda name: [], **options)


def test_the_method_class_runs_the_runtime():
    assert (Timrun.name, Timrun.kind, Timrun.paper.arxiv) == ("timrun", "model", "2507.16784")
