"""The reader's own scene: bad input is one clear sentence, and the run keeps what its method keeps."""
import pytest

from frugal.data.scenes import compose, images_of
from frugal.explore import figure_summary, live
from frugal.models.mini_vlm import random_vlm
from frugal.token_dropping import live_scene
from frugal.token_dropping.keeping import keep


@pytest.fixture
def form(monkeypatch):
    vlm = random_vlm()
    monkeypatch.setattr(live_scene, "model", lambda: vlm)
    form = live(live_scene.ask_twice, live_scene.two_answers, **live_scene.inputs())
    form.vlm = vlm
    return form


def test_the_run_keeps_what_its_method_keeps(form):
    inputs = form.defaults()
    assert inputs["place"] == "top-left" and inputs["method"] == "hired" and inputs["budget"] == 0.2
    found = live_scene.ask_twice(inputs, lambda fraction, partial=None: None)
    scene = compose([("trumpet", "top-left", 16), ("bus", "top-right", 20), ("lemon", "left", 18),
                     ("fox", "bottom-right", 24)])
    tokens = form.vlm.see(images_of([scene]))
    assert found["names"] == ["trumpet", "bus", "lemon", "fox"] and found["truth"] == "trumpet"
    assert found["index"] == keep(tokens, live_scene.METHODS["hired"](), 0.2).index[0].tolist()
    fig = live_scene.two_answers(found)
    assert "64 of 320 tokens" in fig.layout.title.text and "right: trumpet" in figure_summary(fig)


@pytest.mark.parametrize("method", list(live_scene.METHODS))
@pytest.mark.parametrize("budget", [0.05, 0.2, 1.0])
def test_every_choice_of_the_form_runs_or_says_why(form, method, budget):
    inputs = {**form.defaults(), "method": method, "budget": budget}
    if (method, budget) == ("overview_only", 1.0):
        with pytest.raises(ValueError, match="at most 64"):
            live_scene.ask_twice(inputs, lambda fraction, partial=None: None)
    else:
        fig = live_scene.two_answers(live_scene.ask_twice(inputs, lambda fraction, partial=None: None))
        assert f"{int(320 * budget)} of 320" in fig.layout.title.text or method == "hired_released"


@pytest.mark.parametrize("change, said", [
    ({"others": "fox top-left 20"}, "two objects at 'top-left'"), ({"others": "fox nowhere 20"}, "no place is called"),
    ({"others": "unicorn left 20"}, "no object is called"), ({"others": "fox left 60"}, "does not fit"), ({"others": "fox left"}, "one object a line"),
    ({"question": "is there a unicorn ?"}, "does not know the word 'unicorn'"), ({"question": "fox " * 20}, "20 words")])
def test_bad_input_is_one_sentence(form, change, said):
    with pytest.raises(ValueError, match=said):
        live_scene.ask_twice({**form.defaults(), **change}, lambda fraction, partial=None: None)


def test_the_truth_of_each_kind():
    scene = compose([("fox", "top", 20), ("fox", "left", 20), ("bus", "center", 20)])
    asked = {
        "is there a fox ?": "yes", "is there a cow ?": "no", "what is at center ?": "bus",
        "what is at right ?": "nothing", "how many fox ?": "two", "describe :": "fox fox bus", "fox fox": ""
    }
    assert {question: live_scene.truth(scene, question) for question in asked} == asked


def test_the_recorded_answer_is_the_forms_first(form):
    found = live_scene.recorded_answer()
    assert found["question"] == live_scene.QUESTION and found["names"][0] == "trumpet" and found["truth"] == "trumpet"
