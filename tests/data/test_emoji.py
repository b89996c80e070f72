"""The emoji sheets: the files we built, exact shrinking, and a split that keeps a concept on one side."""
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frugal.data import emoji
from frugal.data.emoji import concept, held_out, load_emoji, shrink


@pytest.mark.parametrize("px", emoji.SIZES)
def test_a_sheet_holds_every_emoji_once(px):
    sheet = load_emoji(px)
    assert sheet.pixels.shape == (len(sheet.emoji), px, px, 4) and len(sheet.emoji) > 1800
    names = [entry.name for entry in sheet.emoji]
    assert len(set(names)) == len(names)
    assert not any("skin tone" in name for name in names)
    assert (sheet.pixels[..., 3].reshape(len(names), -1).max(1) > 0).all()            # nothing is blank
    pictures = {picture.tobytes() for picture in sheet.pixels}
    assert len(pictures) == len(names) if px == 64 else len(pictures) > 0.98 * len(names)


def test_groups_are_unicodes():
    groups = {entry.group for entry in load_emoji(32).emoji}
    assert groups == {
        "Smileys & Emotion",
        "People & Body",
        "Animals & Nature",
        "Food & Drink",
        "Travel & Places",
        "Activities",
        "Objects",
        "Symbols",
        "Flags",
    }


def test_the_small_sheet_shows_the_same_pictures():
    large, small = load_emoji(64), load_emoji(32)
    halved = np.stack([shrink(picture, 32) for picture in large.pixels[::40]]).astype(int)
    shown = small.pixels[::40].astype(int)
    difference = np.abs(halved[..., 3] - shown[..., 3]).mean((1, 2))
    assert np.median(difference) < 12  # Lanczos is sharper than an average
    other = np.abs(halved[..., 3] - np.roll(shown, 1, axis=0)[..., 3]).mean((1, 2))
    assert np.median(difference) < np.median(other) / 3


def test_the_split_is_by_concept():
    sides = {}
    for entry in load_emoji(32).emoji:
        sides.setdefault(concept(entry.name), set()).add(entry.held_out)
    assert all(len(side) == 1 for side in sides.values())
    assert 120 < sum(entry.held_out for entry in load_emoji(32).emoji) < 240
    assert concept("woman running facing right") == concept("man running") == concept("person running")
    assert concept("woman: red hair") == "person"
    assert held_out("man pilot") == held_out("woman pilot")
    assert concept("woman pilot") != concept("woman astronaut")


@settings(max_examples=25, deadline=None)
@given(side=st.integers(1, 12), seed=st.integers(0, 99))
def test_shrink_is_the_area_average(side, seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (12, 12, 4)).astype(np.uint8)
    fine = (
        pixels.repeat(side, 0).repeat(side, 1).reshape(side, 12, side, 12, 4).astype(float)
    )  # every target pixel: 12 x 12 parts
    alpha = fine[..., 3].mean((1, 3))
    colour = (fine[..., :3] * fine[..., 3:]).mean((1, 3)) / np.maximum(alpha, 1e-9)[..., None]
    got = shrink(pixels, side).astype(float)
    assert np.abs(got[..., 3] - alpha).max() <= 0.5 + 1e-9
    assert np.abs(got[..., :3] - colour)[alpha > 0].max() <= 0.5 + 1e-6


def test_on_a_ground_clear_pixels_take_its_colour():
    sheet = load_emoji(32)
    fox, clear = sheet.on((10, 20, 30))[sheet.index("fox")], sheet.pixels[sheet.index("fox")][..., 3] == 0
    assert clear.any() and (fox[clear] == (10, 20, 30)).all()
    solid = sheet.pixels[sheet.index("fox")][..., 3] == 255
    assert (fox[solid] == sheet.pixels[sheet.index("fox")][solid][:, :3]).all()


def test_bad_input():
    with pytest.raises(ValueError, match="px must be one of"):
        load_emoji(48)
    with pytest.raises(ValueError, match="did you mean"):
        load_emoji(32).index("Fox")
    with pytest.raises(ValueError, match=r"side must be in 1\.\.32"):
        shrink(load_emoji(32).pixels[0], 33)


def test_a_changed_sheet_is_refused(monkeypatch):
    load_emoji.cache_clear()
    monkeypatch.setitem(emoji.PIXELS_SHA256, 32, "0" * 64)
    try:
        with pytest.raises(ValueError, match="emoji_32.webp is damaged"):
            load_emoji(32)
    finally:
        load_emoji.cache_clear()
