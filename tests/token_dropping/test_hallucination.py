"""CHAIR and POPE: worked examples, brute force, paired intervals, and figures that must be rejected."""
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from frugal.token_dropping import hallucination as hall

THEMES = {"animal": ["fox", "owl", "cat", "dog"], "road": ["car", "bus", "tram"]}
names = st.lists(st.sampled_from([n for own in THEMES.values() for n in own]), max_size=6)
scene = names.filter(len)


def test_worked_example():
    """Said 'fox owl fox car' of a scene with two foxes and a cat: 2 false of 4, recall 1 of 2, nothing said too often."""
    counts = hall.caption_counts(["fox", "owl", "fox", "car"], ["fox", "fox", "cat"])
    assert counts == {"mentions": 4, "false": 2, "captions": 1, "false_captions": 1, "found": 1, "present": 2, "repeats": 0,
                      "objects": 3}
    assert hall.caption_counts(["owl", "owl", "fox", "fox"], ["fox"])["repeats"] == 2
    assert hall.caption_counts([], ["fox"])["mentions"] == 0


@given(said=names, there=scene)
def test_counts_follow_a_plain_loop(said, there):
    false = found = 0
    for name in said:
        false += name not in there
    for name in set(there):
        found += name in said
    counts = hall.caption_counts(said, there)
    assert (counts["false"], counts["found"], counts["present"]) == (false, found, len(set(there)))
    assert counts["repeats"] + len(set(said)) <= max(len(said), len(set(said))) and counts["repeats"] >= 0


def test_figures_are_ratios_of_sums():
    counts = hall.count_captions([["fox"], ["owl", "owl", "car"]], [["fox"], ["owl", "cat"]])
    found = hall.chair(counts, draws=200)
    assert found.chair_i.value == 1 / 4 and found.chair_s.value == 1 / 2 and found.recall.value == 2 / 3
    assert found.length.value == 2 and found.fullness.value == 4 / 3 and found.repeats.value == 1 / 4


def test_a_mute_model_has_no_false_names_but_shows_in_recall_and_length():
    loud = hall.chair(hall.count_captions([["fox", "car"]] * 20, [["fox", "owl"]] * 20), draws=50)
    shy = hall.chair(hall.count_captions([["fox"]] * 20, [["fox", "owl"]] * 20), draws=50)
    assert shy.chair_i.value == 0 < loud.chair_i.value and shy.length.value < loud.length.value
    assert shy.recall.value == loud.recall.value == 0.5


def test_change_is_paired_and_relative():
    there = [["fox", "owl", "cat"]] * 60
    said = [["fox", "car"] if i % 2 else ["fox", "owl"] for i in range(60)]
    better = [["fox", "car"] if i % 4 == 1 else ["fox", "owl"] for i in range(60)]
    before, after = hall.count_captions(said, there), hall.count_captions(better, there)
    cut = hall.change(before, after, "chair_i", relative=True)
    assert cut.value == pytest.approx(-0.5) and cut.excludes(0)
    same = hall.change(before, before, "recall")
    assert (same.value, same.low, same.high) == (0, 0, 0)


def test_late_hallucination_by_place():
    table = hall.late_hallucination([["fox", "car"], ["fox", "owl", "bus"], ["dog"]], [["fox"], ["fox", "owl"], ["cat"]])
    assert table.position.tolist() == [1, 2, 3] and table.mentions.tolist() == [3, 2, 1] and table.false.tolist() == [1, 1, 1]
    assert table.chair_i.tolist() == pytest.approx([1 / 3, 1 / 2, 1])


@pytest.mark.parametrize("kind", hall.ABSENT)
@given(there=scene, count=st.integers(1, 3), seed=st.integers(0, 50))
def test_absent_names_are_absent_and_distinct(kind, there, count, seed):
    if len(set(there)) > 7 - count:
        return
    found = hall.absent_names(there, kind, count, np.random.default_rng(seed), themes=THEMES, popularity={"bus": 9})
    assert len(set(found)) == count and not set(found) & set(there)


def test_the_three_kinds_differ():
    draw = {kind: hall.absent_names(["fox", "owl"], kind, 1, np.random.default_rng(0), themes=THEMES, popularity={"tram": 9, "cat": 1})
            for kind in ("popular", "adversarial")}
    assert draw["popular"] == ["tram"] and draw["adversarial"][0] in ("cat", "dog")
    many = {hall.absent_names(["fox"], "random", 1, np.random.default_rng(i), themes=THEMES, popularity={})[0] for i in range(60)}
    assert many == {"owl", "cat", "dog", "car", "bus", "tram"}


def test_pope_worked_example():
    """4 yes of 6 asked: 2 right, 2 wrong; 2 no: 1 right, 1 wrong."""
    counts = hall.count_answers([[True, True, False], [True, True, False]], [[True, False, False], [True, False, True]])
    assert counts.to_numpy().tolist() == [[1, 1, 1, 0], [1, 1, 0, 1]]
    found = {name: value.value for name, value in hall.pope(counts, draws=50).items()}
    assert found == pytest.approx({"accuracy": 0.5, "precision": 0.5, "recall": 2 / 3, "f1": 4 / 7, "yes_rate": 2 / 3})


def test_always_yes_shows_in_the_yes_rate():
    found = hall.pope(hall.count_answers([[True] * 6] * 9, [[True, True, True, False, False, False]] * 9), draws=50)
    assert found["yes_rate"].value == 1 and found["recall"].value == 1 and found["accuracy"].value == 0.5


@pytest.mark.parametrize("call, message", [
    (lambda: hall.count_captions([["fox"]], []), "1 captions for 0"),
    (lambda: hall.count_captions([], []), "at least one"),
    (lambda: hall.absent_names(["fox"], "rare", 1, np.random.default_rng(0), themes=THEMES, popularity={}), "kind 'rare'"),
    (lambda: hall.absent_names(["fox"], "random", 7, np.random.default_rng(0), themes=THEMES, popularity={}), "only 6"),
    (lambda: hall.change(hall.count_captions([["a"]], [["a"]]), hall.count_captions([["a"]], [["a"]]), "bleu"), "figure 'bleu'"),
    (lambda: hall.change(hall.count_captions([["a"]], [["a"]]), hall.count_captions([["a"]] * 2, [["a"]] * 2)), "same scenes"),
])
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_planted_mistakes_are_seen(monkeypatch):
    """Counting distinct names instead of mentions, and recall over objects instead of names, fail the worked example."""
    right = hall.caption_counts
    for wrong in (lambda said, there: right(list(dict.fromkeys(said)), there), lambda said, there: right(said, there) | {"present": len(there)}):
        with monkeypatch.context() as patch:
            patch.setattr(hall, "caption_counts", wrong)
            with pytest.raises(AssertionError):
                test_worked_example()
