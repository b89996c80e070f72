"""Emoji as tensors: labels and split, augmentation against a loop, pictures of any kind, and the PCA basis."""
import io

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from frugal.data.emoji import load_emoji
from frugal.data.emoji_images import augment, load_images, pca_basis, read_image, turn_hue


def file_of(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def fox() -> tuple[Image.Image, torch.Tensor]:
    place = load_emoji(32).index("fox")
    return Image.fromarray(load_emoji(32).pixels[place]), load_images(32).pixels[place]


def test_the_tensors_say_what_the_sheet_says():
    images, sheet = load_images(), load_emoji(32)
    assert images.pixels.shape == (len(sheet.emoji), 3, 32, 32) and 0 <= images.pixels.min() < images.pixels.max() <= 1
    assert len(images.group_names) == 9 and len(images.subgroup_names) == 99
    for place in range(0, len(sheet.emoji), 97):
        entry = sheet.emoji[place]
        assert (images.names[place], images.group_names[images.groups[place]],
                images.subgroup_names[images.subgroups[place]], bool(images.held_out[place])) == (
                    entry.name, entry.group, entry.subgroup, entry.held_out)
    both = torch.cat([images.train(), images.held_out_set()]).sort().values
    assert torch.equal(both, torch.arange(len(sheet.emoji))) and 130 < len(images.held_out_set()) < 200


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 999), shift=st.integers(0, 5), flip=st.booleans())
def test_a_moved_picture_is_a_window_of_the_padded_one(seed, shift, flip):
    images = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    found = augment(images, torch.Generator().manual_seed(seed), flip, shift, hue=False)
    for one, moved in zip(images, found):
        windows = []
        for source in ([one, one.flip(-1)] if flip else [one]):
            for down in range(-shift, shift + 1):
                for right in range(-shift, shift + 1):
                    window = torch.ones(3, 8, 8)
                    for y in range(8):
                        for x in range(8):
                            if 0 <= y + down < 8 and 0 <= x + right < 8:
                                window[:, y, x] = source[:, y + down, x + right]
                    windows.append(window)
        assert any(torch.equal(moved, window) for window in windows)
    assert torch.equal(found, augment(images, torch.Generator().manual_seed(seed), flip, shift, hue=False))


def test_turning_colours_keeps_greys_and_turns_back():
    colours = torch.rand(4, 3, 5, 5, generator=torch.Generator().manual_seed(0)) * 0.2 + 0.4  # far from being cut
    angle = torch.tensor([0.0, 0.3, -0.3, 1.0])
    turned = turn_hue(colours, angle)
    assert torch.allclose(turned[0], colours[0], atol=1e-6) and not torch.allclose(turned[1], colours[1], atol=1e-2)
    assert torch.allclose(turn_hue(turned, -angle), colours, atol=1e-5)
    grey = torch.rand(4, 1, 5, 5, generator=torch.Generator().manual_seed(1)).expand(-1, 3, -1, -1)
    assert torch.allclose(turn_hue(grey, angle), grey, atol=2e-5)


def test_one_emoji_in_every_dress_is_the_same_picture():
    image, pixels = fox()
    white = Image.new("RGBA", image.size, "white")
    white.alpha_composite(image)
    exact = [image, white, file_of(image), np.asarray(white.convert("RGB")), pixels, pixels.movedim(0, -1).numpy(),
             white.resize((96, 96), Image.Resampling.NEAREST), (pixels * 255).round().byte()]
    for source in exact:
        assert (read_image(source) - pixels).abs().max() < 2.5 / 255
    palette = read_image(file_of(white.convert("P", palette=Image.Palette.ADAPTIVE), "GIF"))
    assert (palette - pixels).abs().mean() < 0.02


def test_grey_wide_tiny_and_sixteen_bit_pictures(tmp_path):
    grey = read_image(Image.linear_gradient("L"))
    assert torch.equal(grey[0], grey[2]) and grey[0, 0].mean() < 0.05 and grey[0, -1].mean() > 0.95
    wide = np.zeros((10, 30), np.uint8)
    wide[:, 10:20] = 200
    assert torch.allclose(read_image(wide), torch.full((3, 32, 32), 200 / 255))           # the middle square
    assert read_image(Image.new("RGB", (4, 4), "red")).flatten(1).mean(1).tolist() == pytest.approx([1, 0, 0])
    deep = Image.fromarray(np.full((40, 40), 32768, np.uint16))
    assert read_image(deep).mean().item() == pytest.approx(0.5, abs=0.01)
    clear = Image.new("RGBA", (50, 50), (255, 0, 0, 0))
    assert torch.equal(read_image(clear), torch.ones(3, 32, 32))                          # transparent: the white ground
    path = tmp_path / "blue.png"
    Image.new("RGB", (64, 64), "blue").save(path)
    assert torch.equal(read_image(path), read_image(str(path)))
    assert read_image(path).flatten(1).mean(1).tolist() == pytest.approx([0, 0, 1])


@pytest.mark.parametrize("source, said", [
    (b"not a picture", "no picture"), (b"", "no picture"), ("/nowhere/at/all.png", "no file"), (None, "not a NoneType"),
    (Image.new("RGB", (3, 80)), "3 x 80"), (np.zeros((0, 5, 3), np.uint8), "5 x 0"),
    (np.full((9, 9, 3), 2.0), "0, 1"), (np.full((9, 9), np.nan), "0, 1"), (np.zeros((9, 9, 2), np.uint8), "shape"),
    (np.zeros((9, 9, 3), np.int64), "int64"), (torch.zeros(9), "shape"), (torch.zeros(2, 3, 9, 9), "shape"),
])
def test_what_is_no_picture_is_refused_with_words(source, said):
    with pytest.raises(ValueError, match=said):
        read_image(source)


def test_damaged_and_huge_files_are_refused(monkeypatch):
    whole = file_of(Image.effect_noise((64, 64), 80))
    with pytest.raises(ValueError, match="damaged"):
        read_image(whole[:len(whole) // 2])
    monkeypatch.setattr("frugal.data.emoji_images.MAX_PIXELS", 64 * 64 - 1)
    with pytest.raises(ValueError, match="scale it first"):
        read_image(whole)


def test_bad_numbers_are_refused():
    for call, said in ((lambda: load_images(48), "48"), (lambda: pca_basis(0), "got 0"), (lambda: pca_basis(9999), "9999"),
                       (lambda: augment(torch.ones(1, 3, 8, 8), torch.Generator(), shift=8), "0..7")):
        with pytest.raises(ValueError, match=said):
            call()


def test_components_are_orthonormal_and_best():
    images, basis = load_images(), pca_basis(40)
    assert torch.allclose(basis.components @ basis.components.T, torch.eye(40), atol=1e-4)
    assert (basis.variances.diff() <= 0).all()
    train = images.pixels[images.train()]
    coefficients = basis.encode(train)
    assert torch.allclose(coefficients.var(0), basis.variances, rtol=1e-3)
    assert coefficients.mean(0).abs().max() < 1e-3
    centred = (train.flatten(1) - train.flatten(1).mean(0)).double()
    total = centred.square().sum() / (len(train) - 1)
    left = (basis.decode(coefficients) - train).double().square().sum() / (len(train) - 1)
    assert left.item() == pytest.approx((total - basis.variances.double().sum()).item(), rel=1e-3)
    other = torch.linalg.qr(torch.randn(3072, 40, generator=torch.Generator().manual_seed(0)))[0].double()
    assert left < (centred - centred @ other @ other.T).square().sum() / (len(train) - 1)
