"""The exercise machinery, and every family's exercises: stub, reference and planted wrong answers."""

import dataclasses
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from toy_notebook import KEEP, no_sinks, solution, too_many

from frugal.explore.exercises import equal, exercises, problems


def test_a_sound_exercise_has_no_problems():
    assert problems(KEEP) == []


@pytest.mark.parametrize("exercise", exercises(), ids=lambda e: e.key)
def test_every_family_exercise_is_proven(exercise):
    assert problems(exercise) == []


def test_a_check_that_accepts_a_wrong_answer_is_found():
    lenient = dataclasses.replace(KEEP, test=lambda keep: keep(10, 6) and None)
    assert any("too_many gets: passed" in line for line in problems(lenient))


def test_two_wrong_answers_with_one_hint_are_found():
    def vague(keep):
        equal(keep(10, 6), solution(10, 6), "something is off")

    found = problems(dataclasses.replace(KEEP, test=vague))
    assert any("same hint" in line for line in found) and any("should hear" in line for line in found)


def test_a_reference_that_fails_and_a_stub_that_answers_are_found():
    assert any("reference is rejected" in line for line in problems(dataclasses.replace(KEEP, reference=no_sinks)))
    answers = dataclasses.replace(KEEP, stub="def keep(a, b):\n    'NotImplementedError'\n    return []")
    assert any("stub says" in line for line in problems(answers))


def test_what_is_printed(capsys):
    def stub(num_slots, budget, sinks=2):
        raise NotImplementedError

    assert not KEEP.check(stub).passed and KEEP.check(solution).passed and not KEEP.check(too_many).passed
    assert capsys.readouterr().out.splitlines() == [
        "not attempted yet", "passed", "not yet: too_many(10, 6): kept 8 of 6", "hint: do the sinks count?"]  # fmt: skip


@pytest.mark.parametrize(("answer", "said"), [
    (lambda n, b: None, "returned None"),
    (lambda n: [], "raised TypeError"),
    (lambda n, b: 1 / 0, "raised ZeroDivisionError"),
    (lambda n, b: 7, "TypeError"),
    ([0, 1], "is not a function")])  # fmt: skip
def test_any_answer_ends_in_a_sentence(answer, said):
    result = KEEP.run(answer)
    assert result.status == "wrong" and said in result.said and result.hint


def test_the_card_is_escaped_and_its_hints_folded():
    card = KEEP._repr_html_()
    assert "<details><summary>Hint 1</summary>Count &lt;them&gt;</details>" in card
    assert "<code>sinks</code> &amp; &lt;recent&gt; slots" in card and "easy, about 5 min" in card


@pytest.mark.parametrize("change", [{"difficulty": 4}, {"minutes": 0}, {"stub": "def f(): pass"}, {"hints": ()},
                                    {"wrong": KEEP.wrong[:2]}, {"key": "not a name"}])  # fmt: skip
def test_an_incomplete_exercise_is_refused(change):
    with pytest.raises(ValueError, match="keep|not a name"):
        dataclasses.replace(KEEP, **change)


def test_equal_compares_numbers_within_tolerance_and_tensors_by_value():
    torch = pytest.importorskip("torch")
    equal(torch.tensor([[1.0, 2.0]]), [[1.0, 2.0 + 1e-8]], "")
    equal({"a": (1, 2)}, {"a": [1, 2]}, "")
    for got, want in [(torch.tensor([1, 2]), [1, 3]), ([1, 2, 3], [1, 2]), (1.001, 1.0), (float("nan"), 1.0), (3, [3])]:
        with pytest.raises(Exception, match="expected"):
            equal(got, want, "")


def test_an_unknown_family_names_the_known_ones():
    with pytest.raises(ValueError, match="kv_evict.*known: .*kv_eviction"):
        exercises("kv_evict")
