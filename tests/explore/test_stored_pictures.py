"""Pictures in recorded rows come back as they were."""
import numpy as np
import pytest

from frugal.explore.pictures.stored import from_text, to_text


def test_a_picture_comes_back_exactly():
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    assert np.array_equal(np.asarray(from_text(to_text(pixels))), pixels)
    assert np.array_equal(np.asarray(from_text(to_text(pixels / 255))), pixels)


@pytest.mark.parametrize("text", ["", "no picture", to_text(np.zeros((4, 4, 3)))[:40]])
def test_damaged_text_is_refused(text):
    with pytest.raises(ValueError, match="no stored picture"):
        from_text(text)
