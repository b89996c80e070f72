"""The exercises on R2R: stub, reference and every planted wrong answer get what they should; the toy model is one."""
import pytest

from frugal.data.arithmetic_chains import parse_sentence, sentence_start
from frugal.early_exit import exercises_r2r as ex
from frugal.explore.exercises import problems


@pytest.mark.parametrize("exercise", ex.EXERCISES, ids=lambda e: e.key)
def test_nothing_is_unproven(exercise):
    assert problems(exercise) == []


def test_the_toy_model_finishes_every_sentence_of_the_cases():
    for what, prefix, small, large, label in ex._places():
        for token in (small, large):
            text = prefix + [token]
            whole = (text + ex.toy_large(text))[sentence_start(text, len(prefix)):]
            assert parse_sentence(whole) is not None, (what, ex.TOKENIZER.decode(whole))
    labels = [label for *_, label in ex._places()]
    assert labels.count(1) >= 4 and labels.count(0) >= 4


def test_the_threshold_of_the_exercise_is_the_librarys():
    import torch

    from frugal.early_exit.r2r_router import choose_threshold
    for _, scores, divergent in ex._score_cases():
        assert choose_threshold(torch.tensor(scores), torch.tensor(divergent)) == ex.recall_threshold_solution(scores, divergent)
