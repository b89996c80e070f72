"""Mini-VLM: training forward = decoder, packed = asked alone, cached = in one go; bad input; and the gates of the
trained weights."""
import json
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from frugal import models
from frugal.data.scenes import compose, images_of, make_scene
from frugal.models import WeightsError, load_card, mini_vlm, packed
from frugal.models.mini_vlm import Grid, MiniVLM, load_mini_vlm, random_vlm

sys.path.insert(0, str(Path(__file__).parents[2] / "recipes"))
import vlm_gates  # noqa: E402

SEGMENTS = [
    (0, [9, 10, 11, 60], [1, 0]),
    (1, [12, 10, 13, 20], [40, 0]),
    (3, [16, 17], [41, 42, 43, 0]),
    (2, [14, 15, 77], [5, 0]),
]


@pytest.fixture(scope="module")
def vlm():
    return random_vlm()


@pytest.fixture(scope="module")
def seen(vlm):
    return vlm.see(images_of([make_scene(i) for i in range(3)]))


@pytest.fixture(scope="module")
def flat(vlm):
    state = {"lm." + key: value for key, value in vlm.lm.weights.items()}
    return state | {
        f"{name}.{key}": value
        for name in ("projector", "places")
        for key, value in getattr(vlm, name).state_dict().items()
    }


SHAPE = dict(num_layers=3, num_heads=4, head_dim=8, norm_eps=1e-5, rope_theta=1e6)


def test_what_is_seen_has_scenes_and_views_in_front(vlm, seen):
    assert seen.embeds.shape == (3, 320, 32) and seen.grid == Grid() and Grid().num_tokens == 320
    f = seen.features
    assert f.patches.shape[:3] == (3, 5, 64) and f.cls.shape[:2] == (3, 5)
    assert f.cls_attn.shape == (3, 5, 3, 4, 64) and f.patch_attn.shape == (3, 5, 4, 64, 64)
    alone = vlm.see(images_of([make_scene(1)]))
    for name, value in vars(alone.features).items():
        torch.testing.assert_close(value[0], getattr(f, name)[1], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(alone.embeds[0], seen.embeds[1], atol=1e-5, rtol=1e-5)


def test_places_stand_at_their_token(vlm, seen):
    place = vlm.places().unflatten(0, (5, 8, 8))
    for view, row, col in ((0, 0, 0), (2, 3, 7), (4, 7, 1)):
        torch.testing.assert_close(place[view, row, col], vlm.places.rows[view, row] + vlm.places.cols[view, col])
    torch.testing.assert_close(
        seen.embeds - vlm.places(), vlm.projector(seen.features.patches).flatten(1, 2), atol=1e-5, rtol=1e-4
    )


def test_training_sees_what_the_model_sees(vlm, seen, flat):
    for views in ([0], [0, 1, 2, 3, 4], [3, 1]):
        wanted = seen.embeds.unflatten(1, (5, 64))[:, views].flatten(1, 2)
        torch.testing.assert_close(
            packed.visual_embeds(flat, seen.features.patches[:, views], views), wanted, atol=1e-5, rtol=1e-4
        )


@settings(max_examples=8, deadline=None)
@given(order=st.permutations(range(4)), num_visual=st.sampled_from([0, 1, 64, 320]))
def test_packed_questions_are_answered_as_if_asked_alone(vlm, seen, flat, order, num_visual):
    visual, segments = seen.embeds[:, :num_visual], [SEGMENTS[i] for i in order]
    text = packed.pack([segments, segments[:2], segments[1:]])  # rows of other lengths are padded
    logits = packed.forward(flat, SHAPE, visual, text)
    for row, asked in enumerate((segments, segments[:2], segments[1:])):
        for number, (_, prompt, answer) in enumerate(asked):
            alone = vlm.logits(visual[row:row + 1], torch.tensor([(prompt + answer)[:-1]]))
            torch.testing.assert_close(logits[row, text.segment[row] == number], alone[0], atol=2e-4, rtol=1e-3)


def test_a_mask_that_lets_questions_see_each_other_would_be_noticed(vlm, seen, flat, monkeypatch):
    def causal(segment, num_visual):
        size = segment.shape[1]
        return torch.ones(size, num_visual + size, dtype=torch.bool).tril(num_visual).expand(len(segment), 1, -1, -1)
    text = packed.pack([SEGMENTS])
    right = packed.forward(flat, SHAPE, seen.embeds[:1], text)
    monkeypatch.setattr(packed, "text_mask", causal)
    wrong = packed.forward(flat, SHAPE, seen.embeds[:1], text)
    first = text.segment[0] == 0
    torch.testing.assert_close(right[0, first], wrong[0, first])
    assert (right[0, ~first] - wrong[0, ~first]).abs().max() > 0.01


def test_packing_marks_answers_and_nothing_else():
    text = packed.pack([SEGMENTS[:1] + SEGMENTS[2:3], SEGMENTS[:1]])
    assert text.tokens.tolist() == [[9, 10, 11, 60, 1, 16, 17, 41, 42, 43], [9, 10, 11, 60, 1, 0, 0, 0, 0, 0]]
    no = packed.IGNORED
    assert text.targets.tolist() == [[no, no, no, 1, 0, no, 41, 42, 43, 0], [no, no, no, 1, 0, no, no, no, no, no]]
    assert text.offset[0].tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 3, 4] and text.segment[1].tolist() == [0] * 5 + [-1] * 5


@settings(max_examples=8, deadline=None)
@given(cut=st.integers(1, 319), width=st.integers(1, 6))
def test_prefill_in_pieces_is_the_whole(vlm, seen, cut, width):
    ids = torch.tensor([[9, 10, 11, 60, 18, 1][:width]] * 3)
    cache = vlm.prefill(seen.embeds[:, :cut])
    vlm.lm.run(None, cache, embeds=seen.embeds[:, cut:], logits=False)
    torch.testing.assert_close(vlm.lm(ids, cache), vlm.logits(seen.embeds, ids), atol=1e-3, rtol=1e-3)
    assert int(cache.num_held()[0]) == 320 + width


def test_answers_are_greedy_and_leave_the_cache_alone(vlm, seen):
    cache = vlm.prefill(seen.embeds)
    said = vlm.answer(cache, "describe :", 4)
    assert said == vlm.answer(seen.embeds, vlm.vocab.encode("describe :"), 4)
    assert int(cache.num_held()[0]) == 320
    for row, words in enumerate(said):
        text = vlm.vocab.encode("describe :")
        for word in words:
            assert int(vlm.logits(seen.embeds[row:row + 1], torch.tensor([text]))[0, -1].argmax()) == word
            text = text + [word]


def test_no_image_is_an_empty_prefix(vlm, seen):
    ids = torch.tensor([[9, 10, 60]])
    torch.testing.assert_close(vlm.logits(seen.embeds[:1, :0], ids), vlm.lm(ids))


def test_bad_input(vlm, seen):
    with pytest.raises(ValueError, match="resize the picture"):
        vlm.see(torch.zeros(1, 3, 96, 96))
    with pytest.raises(ValueError, match="divide by 255"):
        vlm.see(torch.zeros(1, 3, 128, 128, dtype=torch.uint8))
    with pytest.raises(ValueError, match="does not know the word 'unicorn'"):
        vlm.answer(seen.embeds, "is there a unicorn ?")
    with pytest.raises(ValueError, match="max_new_tokens"):
        vlm.answer(seen.embeds, "describe :", 0)
    with pytest.raises(ValueError, match="prompt is empty"):
        vlm.answer(seen.embeds, "")
    with pytest.raises(ValueError, match="does not fit the views"):
        MiniVLM(vlm.clip, vlm.projector, vlm.places, vlm.lm, Grid(3, 2, 8, 8))


def test_a_decoder_of_another_encoder_is_refused(tmp_path, monkeypatch):
    state, card = models.load_weights("mini_vlm")
    card = {
        key: value
        for key, value in card.items()
        if key not in ("sha256", "num_bytes", "num_parameters", "dtype", "name")
    }
    models.save_weights("mini_vlm", state, card | {"mini_clip_sha256": "0" * 64}, tmp_path)
    monkeypatch.setattr(
        mini_vlm,
        "load_weights",
        lambda name: models.load_weights(name, tmp_path if name == "mini_vlm" else models.WEIGHTS_FOLDER),
    )
    with pytest.raises(WeightsError, match="trained on another mini_clip"):
        load_mini_vlm.__wrapped__()
    path = tmp_path / "mini_vlm.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    with pytest.raises(WeightsError, match="does not match its card"):
        load_mini_vlm.__wrapped__()


@pytest.fixture(scope="module")
def scores():
    return vlm_gates.score(load_mini_vlm(), 200)


def test_the_trained_weights_pass_their_gates(scores):
    assert vlm_gates.failed(scores) == {}, json.dumps(scores)


def test_the_card_agrees_with_the_weights(scores):
    card = load_card("mini_vlm")
    assert card["failed_gates"] == {} and card["held_out_scenes"] == 1000
    for mode, found in scores.items():
        for kind in ("existence", "place", "count"):
            assert found[kind] == pytest.approx(card["metrics"][mode][kind], abs=0.06)


def test_a_blind_model_would_fail(scores):
    blind = {"full": scores["blind"], "overview": scores["overview"], "blind": scores["blind"]}
    assert {"existence", "place", "count", "caption_recall", "chair_i", "over_blind"} <= set(vlm_gates.failed(blind))


def test_it_answers_a_scene_of_the_readers_own():
    vlm = load_mini_vlm()
    scene = compose([("fox", "top-left", 28), ("pizza", "bottom", 28), ("guitar", "right", 24)])
    embeds = vlm.see(images_of([scene])).embeds

    def ask(text):
        return vlm.vocab.decode(vlm.answer(embeds, text)[0])

    assert [ask("what is at top-left ?"), ask("what is at bottom ?"), ask("what is at right ?")] == [
        "fox",
        "pizza",
        "guitar",
    ]
    assert [ask("is there a pizza ?"), ask("is there a taco ?")] == ["yes", "no"]


def test_all_weights_of_the_family_are_small():
    names = ("mini_clip", "mini_vlm")
    assert sum(load_card(name)["num_bytes"] for name in names) < 8e6
