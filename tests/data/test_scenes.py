"""Scenes against their own pixels: what the generator says is where it says, on every machine the same."""
import hashlib
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from frugal.data import scene_questions
from frugal.data.scene_questions import COMPANIONS, companion
from frugal.data.scene_text import FIRST_NAME, NAMES, NUMBERS, PLACES, THEME_OF, THEMES, VOCAB, SceneVocab
from frugal.data.scenes import (
    CELL,
    HELD_OUT,
    KINDS,
    SceneConfig,
    compose,
    covered,
    images_of,
    make_scene,
    patch_labels,
    questions,
    to_views,
)

ANY_SEED = st.integers(0, 2**40)


def test_a_seed_gives_the_same_bytes_everywhere():
    digest = hashlib.sha256()
    for seed in (0, 1, 12345, HELD_OUT, 2**40):
        scene = make_scene(seed)
        digest.update(scene.image.tobytes() + scene.owner.tobytes() + repr(scene.objects).encode())
        digest.update(repr(questions(scene, seed, 10)).encode())
    assert digest.hexdigest() == "f6e94527d3053034e0d642f1a81557b87528e7d5ae11759106cea85ce3672e74"


def test_names_themes_and_words():
    assert len(NAMES) == len(set(NAMES)) == 104
    assert {theme: len(names) for theme, names in THEMES.items()} == dict(
        animal=26, produce=18, meal=16, road=16, sport=8, wear=8, music=6, tool=6)
    assert len(VOCAB) == len(set(VOCAB)) and VOCAB[FIRST_NAME:] == NAMES
    vocab = SceneVocab()
    assert vocab.decode(vocab.encode(" ".join(VOCAB))) == " ".join(VOCAB)
    assert vocab.decode([5, 0], skip_special=True) == VOCAB[5]
    with pytest.raises(ValueError, match="does not know the word 'dragon'"):
        vocab.encode("is there a dragon ?")


@settings(max_examples=30, deadline=None)
@given(seed=ANY_SEED, low=st.sampled_from([8, 16, 28]), more=st.sampled_from([0, 6, 14]), most=st.integers(1, 9))
def test_objects_are_where_they_are_said_to_be(seed, low, more, most):
    config = SceneConfig(size_range=(low, low + more), n_objects=(1, most))
    scene = make_scene(seed, config)
    assert 1 <= len(scene.objects) <= most and len({thing.cell for thing in scene.objects}) == len(scene.objects)
    assert [thing.cell for thing in scene.objects] == sorted(thing.cell for thing in scene.objects)
    outside = np.ones((128, 128), bool)
    for k, thing in enumerate(scene.objects, start=1):
        x0, y0, x1, y1 = thing.box
        row, column = thing.cell
        assert x1 - x0 == y1 - y0 == thing.side and low <= thing.side <= low + more
        assert (
            column * 128 // 3 <= x0
            and x1 <= column * 128 // 3 + CELL
            and row * 128 // 3 <= y0
            and y1 <= row * 128 // 3 + CELL
        )
        inside = np.zeros((128, 128), bool)
        inside[y0:y1, x0:x1] = True
        assert not (scene.owner == k)[~inside].any() and (scene.owner == k).sum() > 0.1 * thing.side ** 2
        outside &= ~inside
    assert (scene.owner[outside] == 0).all()
    ground = scene.image[outside].astype(int) - np.median(scene.image[outside], axis=0)
    assert np.abs(ground).max() <= 18  # nothing but noise outside the boxes


def test_pixels_change_only_where_an_object_is_put():
    alone, both = compose([("fox", "top", 20)]), compose([("fox", "top", 20), ("owl", "bottom-right", 30)])
    x0, y0, x1, y1 = both.objects[1].box
    changed = (alone.image != both.image).any(-1)
    assert changed[y0:y1, x0:x1].mean() > 0.3
    changed[y0:y1, x0:x1] = False
    assert not changed.any()


def test_knobs_do_what_they_say():
    one_theme = [make_scene(i, SceneConfig(themed=1.0, repeat=0.0)) for i in range(60)]
    assert all(len({thing.theme for thing in scene.objects}) == 1 for scene in one_theme)
    no_theme = [make_scene(i, SceneConfig(themed=0.0, repeat=0.0, n_objects=(6, 6))) for i in range(60)]
    assert np.mean([len({thing.theme for thing in scene.objects}) for scene in no_theme]) > 3
    same = [make_scene(i, SceneConfig(repeat=1.0)) for i in range(20)]
    assert all(len(set(scene.names)) == 1 for scene in same)
    counted = Counter(len(make_scene(i).objects) for i in range(400))
    assert set(counted) == {3, 4, 5, 6} and min(counted.values()) > 60
    asked = Counter(name for i in range(1500) for name in make_scene(i, SceneConfig(n_objects=(1, 1))).names)
    assert len(asked) == 104 and max(asked.values()) < 40  # all names are about as frequent


def test_views_tile_the_image_exactly():
    scene = make_scene(3)
    images = images_of([scene])
    views = to_views(images)[0]
    assert views.shape == (5, 3, 64, 64)
    whole = torch.cat([torch.cat([views[1], views[2]], dim=2), torch.cat([views[3], views[4]], dim=2)], dim=1)
    assert torch.equal(whole, images[0])
    assert torch.allclose(views[0], images[0].unflatten(1, (64, 2)).unflatten(3, (64, 2)).mean((2, 4)), atol=1e-6)
    assert (images[0] * 255).round().byte().permute(1, 2, 0).numpy().tobytes() == scene.image.tobytes()


def test_patch_labels_against_a_loop():
    scenes = [make_scene(i) for i in range(4)]
    labels = patch_labels(scenes)
    for scene, found in zip(scenes, labels):
        for view in range(5):
            top, left, px = ((0, 0, 16), (0, 0, 8), (0, 64, 8), (64, 0, 8), (64, 64, 8))[view]
            for row in range(8):
                for column in range(8):
                    part = scene.owner[top + row * px:top + (row + 1) * px, left + column * px:left + (column + 1) * px]
                    counts = Counter(part[part > 0].tolist())
                    k, number = counts.most_common(1)[0] if counts else (0, 0)
                    expected = 1 + NAMES.index(scene.names[k - 1]) if number > 0.3 * px * px else 0
                    assert found[view, row, column] == expected
        assert (scene.patch_labels(2) == found[2]).all()
    index, share = covered([compose([])])
    assert (index == -1).all() and (share == 0).all()


@settings(max_examples=20, deadline=None)
@given(seed=ANY_SEED, n=st.integers(0, 12))
def test_answers_follow_from_the_scene(seed, n):
    scene, vocab = make_scene(seed), SceneVocab()
    for q in questions(scene, seed, n):
        vocab.encode(q.prompt + " " + q.answer)
        words = q.prompt.split()
        if q.kind == "existence":
            assert q.answer == ("yes" if words[3] in scene.names else "no") and q.mate <= (q.answer == "no")
            assert q.name == words[3] and (q.side > 0) == (q.answer == "yes")
            assert not q.mate or THEME_OF[q.name] in {thing.theme for thing in scene.objects}
        elif q.kind == "place":
            found = [thing.name for thing in scene.objects if PLACES[3 * thing.cell[0] + thing.cell[1]] == words[3]]
            assert q.answer == (found[0] if found else "nothing")
        elif q.kind == "count":
            assert q.answer == NUMBERS[scene.names.count(words[2])]
        else:
            assert q.answer.split() == scene.names


def test_shares_of_kinds_and_answers():
    asked = [q for i in range(200) for q in questions(make_scene(i), i, 20)]
    share = {kind: count / len(asked) for kind, count in Counter(q.kind for q in asked).items()}
    assert share == pytest.approx(dict(zip(KINDS, scene_questions.SHARES)), abs=0.03)
    existence = [q for q in asked if q.kind == "existence"]
    assert np.mean([q.answer == "yes" for q in existence]) == pytest.approx(0.5, abs=0.05)
    assert 0.65 < np.mean([q.mate for q in existence if q.answer == "no"]) < 0.9
    assert np.mean([q.answer == "nothing" for q in asked if q.kind == "place"]) == pytest.approx(0.125, abs=0.04)


def test_caption_noise_adds_the_absent_companion_at_the_end():
    scenes = [make_scene(i) for i in range(120)]
    added = 0
    for i, scene in enumerate(scenes):
        (q,) = questions(scene, i, 1, ("caption",), caption_noise=1.0)
        extra = q.answer.split()[len(scene.names):]
        assert q.answer.split()[:len(scene.names)] == scene.names
        assert extra == ([companion(scene)] if companion(scene) else [])
        if extra:
            assert extra[0] not in scene.names and extra[0] in COMPANIONS.values()
            theme, count = Counter(thing.theme for thing in scene.objects).most_common(1)[0]
            assert sum(thing.theme == THEME_OF[extra[0]] for thing in scene.objects) == count
            added += 1
    assert 0.25 < added / len(scenes) < 0.6
    assert companion(compose([("lemon", "top", 20)])) is None and companion(compose([("peach", "top", 20)])) == "lemon"
    assert companion(compose([])) is None
    assert questions(scenes[0], 0, 1, ("caption",))[0].answer.split() == scenes[0].names


def test_the_readers_own_scene():
    scene = compose([("pizza", (2, 0), 30), ("dog", "top-right", 16)])
    assert scene.names == ["dog", "pizza"] and scene.at("top-right") == "dog" and scene.at("center") == "nothing"
    assert [thing.side for thing in scene.objects] == [16, 30] and scene.objects[1].place == "bottom-left"
    assert compose([]).names == []


@pytest.mark.parametrize("objects, message", [
    ([("dragon", "top", 20)], "no object is called 'dragon'"),
    ([("fox", "middle", 20)], "no place is called 'middle'"),
    ([("fox", (3, 0), 20)], "outside the grid"),
    ([("fox", "top", 60)], "does not fit"),
    ([("fox", "top", 4)], "does not fit"),
    ([("fox", "top", 20), ("owl", "top", 20)], "two objects at 'top'"),
])
def test_scenes_that_cannot_be(objects, message):
    with pytest.raises(ValueError, match=message):
        compose(objects)


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(size_range=(16, 50)), "size_range"),
        (dict(size_range=(20, 18)), "size_range"),
        (dict(size_range=(15, 20)), "size_range"),
        (dict(n_objects=(3, 10)), "n_objects"),
        (dict(themed=1.5), "themed is a probability"),
        (dict(repeat=-1.0), "repeat is a probability"),
    ],
)
def test_knobs_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        SceneConfig(**options)


def test_other_bad_input():
    with pytest.raises(ValueError, match="seed must be 0 or above"):
        make_scene(-1)
    with pytest.raises(ValueError, match="kinds must be some of"):
        questions(make_scene(0), 0, 1, ("colour",))
    with pytest.raises(ValueError, match="caption_noise"):
        questions(make_scene(0), 0, 1, caption_noise=2.0)
    with pytest.raises(ValueError, match="resize the picture"):
        to_views(torch.zeros(1, 3, 64, 64))
    with pytest.raises(ValueError, match="resize the picture"):
        to_views(torch.zeros(1, 4, 128, 128))
    with pytest.raises(ValueError, match="divide by 255"):
        to_views(torch.zeros(1, 3, 128, 128, dtype=torch.uint8))
    with pytest.raises(ValueError, match="convert"):
        images_of([np.zeros((128, 128), np.uint8)])
    with pytest.raises(ValueError, match="view must be"):
        make_scene(0).patch_labels(5)
    with pytest.raises(ValueError, match="patches must divide"):
        covered([make_scene(0)], 7)
