"""Thread tasks: the solver against a brute-force evaluation, the trace against its own JSON, snapshots against a replay."""
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frugal.data import thread_tasks as tt

seeds, sizes = st.integers(0, 10_000), st.integers(1, 60)


def problem(seed: int, size: int) -> tt.Document:
    return tt.Document(tt.random_problem(np.random.default_rng(seed), size))


def brute_force(records: dict[str, str], name: str) -> int:
    """Evaluate a printed document, knowing nothing of Node."""
    op, *parts = records[name].split()
    letters = [p for p in parts if p.isalpha()]
    values = [int(p) for p in parts if p.isdigit()]
    values += [brute_force(records, a + b) for a, b in zip(letters[::2], letters[1::2])]
    return {"max": max, "min": min, "sum": lambda v: sum(v) % 10}[op](values)


@settings(max_examples=60, deadline=None)
@given(seeds, sizes)
def test_the_exact_answer_is_the_brute_force_one(seed, size):
    document = problem(seed, size)
    records = {name: tt.decode(document.look(name)[:-1]) for name in document.nodes}
    trace = tt.solve(document)
    assert trace.answer == document.root.value() == brute_force(records, document.root.name)
    assert trace.tasks == len(records)


def check_json(task: dict, document: tt.Document) -> int:
    """Each conclusion follows from its record and its subtasks; returns the number of tasks."""
    names = task["tooluse"]["parameters"].split()
    node = document.nodes[names[0]]
    assert task["tooluse"]["result"] == " ".join(node.record()[:-1])
    assert task["conclusion"].startswith(f"{names[0]} = {node.value()}; ")
    subtasks = task.get("subtasks", [])
    acc, left = node.digits[0], [c.name for c in node.children]
    for sub, child in zip(subtasks, node.children, strict=True):
        assert sub["tooluse"]["parameters"].split() == left
        assert sub["thought"] == f"{node.op}({acc}, {', '.join(left)})"
        carry = tt.combine(node.op, acc, child.value())
        assert sub["conclusion"].endswith(f"; {node.op}({acc}, {child.value()}) = {carry}")
        acc, left = carry, left[1:]
    return 1 + sum(check_json(t, document) for t in subtasks)


@settings(max_examples=40, deadline=None)
@given(seeds, sizes)
def test_the_trace_is_a_thread_tree(seed, size):
    document = problem(seed, size)
    trace = tt.solve(document)
    assert check_json(tt.to_json(trace.tokens), document) == trace.tasks
    for start, stop, owner_stop in trace.lists:
        opened, closed = tt.SYMBOLS[trace.tokens[start]], tt.SYMBOLS[trace.tokens[stop - 1]]
        assert opened[0] == "[" and closed == "]" + opened[1:]
        assert trace.tokens[stop] == tt.CONCLUDE and tt.SYMBOLS[trace.tokens[owner_stop - 1]] == "}" + opened[1:]


def replay(trace: tt.Trace, threshold: float) -> list[list[tuple[int, list[int]]]]:
    """Token by token, the slow way: after each token the places retained; returns one history a prune, (place, retained)."""
    retained, stack, history, states = [], [], [], []
    closes = {owner_stop: (start, stop) for start, stop, owner_stop in trace.lists}
    for place in range(len(trace.tokens)):
        history.append((place, list(retained)))                    # what the model sees when it writes `place`
        retained.append(place)
        if place + 1 in closes:
            stack.append(closes[place + 1])
            if len(stack) > threshold:
                states.append((list(retained), list(history)))
                start, stop = stack.pop(0)
                retained = [p for p in retained if not start <= p < stop]
    states.append((list(retained), list(history)))
    return states


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 500), st.integers(1, 25), st.sampled_from([0, 1, 2, math.inf]))
def test_snapshots_show_what_the_model_saw(seed, count, threshold):
    """A token is learnt exactly where the snapshot before it is the memory in which it was written."""
    trace = tt.solve(problem(seed, count))
    found = tt.snapshots(trace, threshold, limit=10_000)
    expected = replay(trace, threshold)
    assert len(found) == len(expected)
    for snapshot, (retained, history) in zip(found, expected):
        assert snapshot.tokens == [trace.tokens[p] for p in retained]
        for i, place in enumerate(retained):
            same = history[place][1] == retained[:i]
            assert not snapshot.learn[i] or same                   # never learnt from a memory that was different
            if threshold in (0, math.inf):
                assert snapshot.learn[i] == (same and trace.emitted[place])


def test_learning_tokens_whose_context_is_gone_would_be_noticed():
    """The planted error: learn every emitted token of a snapshot. Then conclusions are learnt without what they follow from."""
    trace = tt.solve(problem(1, 20))
    retained, history = replay(trace, 0)[-1]
    everything = [trace.emitted[p] for p in retained]
    assert any(learn and history[p][1] != retained[:i] for i, (p, learn) in enumerate(zip(retained, everything)))


def test_snapshots_are_cut_to_the_limit_and_names_are_unique():
    document = problem(0, 300)
    assert 300 <= len(document.nodes) <= 302 and document.root.depth() <= 6
    trace = tt.solve(document)
    assert len(trace.tokens) > 4000
    for snapshot in tt.snapshots(trace, math.inf, limit=128):
        assert snapshot.tokens == trace.tokens[:128] and len(snapshot.learn) == 128


def test_the_worked_example():
    leaves = [tt.Node("sum", [8, 7], name="KL"), tt.Node("min", [4, 9], name="QW")]
    document = tt.Document(tt.Node("max", [3], leaves, name="BD"))
    assert tt.decode(tt.solve(document).tokens) == (
        "<bos> sum 0 B D ; {0 sum 0 ? B D > max 3 K L Q W ; [0 {1 max 3 ? K L Q W > sum 8 7 ; = 5 max 3 5 }1 "
        "{1 max 5 ? Q W > min 4 9 ; = 4 max 5 5 }1 ]0 = 5 sum 0 5 }0")
    assert tt.SymbolTokenizer().encode("<bos> sum 0 B D ;") == document.prompt()
    assert len(tt.SYMBOLS) == len(set(tt.SYMBOLS)) < 100


@pytest.mark.parametrize("arguments,message", [
    ((0,), "num_nodes is 0; it must be 1"), ((9, 99), "max_depth is 99; it must be 0..7"), ((9, 3, 9), "max_children is 9"),
    ((50, 2, 2), "cannot hold 50")])
def test_sizes_out_of_range_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        tt.random_problem(np.random.default_rng(0), *arguments)


def test_bad_text_is_named():
    with pytest.raises(ValueError, match="unknown symbol 'maximum'"):
        tt.encode(["maximum"])
    with pytest.raises(ValueError, match="unknown operation 'mean'"):
        tt.combine("mean", 1, 2)
    with pytest.raises(KeyError, match="no record named 'ZZ'"):
        tt.Document(tt.Node("sum", [1, 2], name="AB")).look("ZZZ")
    trace = tt.solve(problem(0, 9))
    with pytest.raises(ValueError, match="does not close"):
        tt.to_json(trace.tokens[:-4])
