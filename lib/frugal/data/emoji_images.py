"""Emoji as tensors: pictures on white with their labels and split, augmentation, the reader's own picture, and PCA.

What tokenizers and generators of pictures train on. The split is by concept (`data.emoji`): no "woman pilot" is trained
on while "man pilot" is tested.
"""
import io
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from frugal.data.emoji import load_emoji, shrink

PX = 32                                           # side of the pictures that the small networks take
MIN_SIDE, MAX_PIXELS = 4, 50_000_000              # of the reader's own picture
HUE = 0.3                                         # largest rotation of the colours, radians
# Rows: brightness and two colour axes (YIQ, the axes of NTSC television); greys have no colour, so a rotation of the
# two leaves white white.
_YIQ = torch.tensor([[0.299, 0.587, 0.114], [0.595716, -0.274453, -0.321263], [0.211456, -0.522591, 0.311135]])


@dataclass(frozen=True)
class EmojiImages:
    """All pictures on white, in the order of `data.emoji`; do not write into the tensors, callers share them.

    pixels: (N, 3, px, px) in [0, 1]. groups, subgroups: (N,) numbers into group_names (9) and subgroup_names (99).
    held_out: (N,) true where the concept is never trained on.
    """
    pixels: Float[Tensor, "n 3 px px"]
    groups: Int[Tensor, "n"]
    subgroups: Int[Tensor, "n"]
    names: tuple[str, ...]
    held_out: Bool[Tensor, "n"]
    group_names: tuple[str, ...]
    subgroup_names: tuple[str, ...]

    def train(self) -> Int[Tensor, "t"]:
        """Places of the pictures to train on, ascending."""
        return (~self.held_out).nonzero().flatten()

    def held_out_set(self) -> Int[Tensor, "h"]:
        """Places of the held-out pictures, ascending."""
        return self.held_out.nonzero().flatten()


@lru_cache(maxsize=2)
def load_images(px: int = PX) -> EmojiImages:
    """All emoji at 32 or 64 px. Raises ValueError for another size."""
    sheet = load_emoji(px)
    pixels = torch.from_numpy(sheet.on()).permute(0, 3, 1, 2).contiguous().float() / 255
    group_names = tuple(dict.fromkeys(entry.group for entry in sheet.emoji))
    subgroup_names = tuple(dict.fromkeys(entry.subgroup for entry in sheet.emoji))
    return EmojiImages(
        pixels, torch.tensor([group_names.index(entry.group) for entry in sheet.emoji]),
        torch.tensor([subgroup_names.index(entry.subgroup) for entry in sheet.emoji]),
        tuple(entry.name for entry in sheet.emoji), torch.tensor([entry.held_out for entry in sheet.emoji]),
        group_names, subgroup_names)


def augment(images: Float[Tensor, "b 3 px px"], generator: torch.Generator, flip: bool = True, shift: int = 2,
            hue: bool = True) -> Float[Tensor, "b 3 px px"]:
    """Each picture flipped (half of them), moved by up to `shift` px over white, its colours turned by up to HUE.

    For generators take flip=False and hue=False: a mirrored letter or a flag of other colours is another picture.
    Raises ValueError for a shift outside 0..px - 1.
    """
    count, px = images.shape[0], images.shape[-1]
    if not 0 <= shift < px:
        raise ValueError(f"shift must be in 0..{px - 1} px, got {shift}")
    if flip:
        mirrored = torch.rand(count, generator=generator) < 0.5
        images = torch.where(mirrored[:, None, None, None], images.flip(-1), images)
    if shift:
        start = torch.randint(0, 2 * shift + 1, (2, count, 1), generator=generator)
        rows, cols = start + torch.arange(px)                                             # (B, px) each
        padded = torch.nn.functional.pad(images, [shift] * 4, value=1.0).permute(0, 2, 3, 1)
        images = padded[torch.arange(count)[:, None, None], rows[:, :, None], cols[:, None]].permute(0, 3, 1, 2)
    if hue:
        images = turn_hue(images, (torch.rand(count, generator=generator) * 2 - 1) * HUE)
    return images.contiguous()


def turn_hue(images: Float[Tensor, "b 3 px px"], angle: Float[Tensor, "b"]) -> Float[Tensor, "b 3 px px"]:
    """Colours turned around the grey axis by `angle` radians a picture, cut to [0, 1]."""
    turn = torch.eye(3).repeat(len(angle), 1, 1)
    turn[:, 1, 1] = turn[:, 2, 2] = angle.cos()
    turn[:, 2, 1], turn[:, 1, 2] = angle.sin(), -angle.sin()
    return torch.einsum("bij, bjhw -> bihw", torch.linalg.inv(_YIQ) @ turn @ _YIQ, images).clamp(0, 1)


def read_image(source: Any, px: int = PX) -> Float[Tensor, "3 px px"]:
    """Any picture of the reader's as the small networks take it: on white, its middle square, px a side, in [0, 1].

    source: path, bytes of a file, PIL picture, array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), or tensor (C, H, W);
    arrays and tensors hold uint8, or floats in [0, 1]. Alpha, palettes, grey and 16 bit are taken; of an animation the
    first frame. Raises ValueError for what is no picture, for a side below 4 px and above 50 million pixels.
    """
    image = _opened(source)  # only the head of a file is read here, so a huge picture is refused before it is decoded
    if min(image.size) < MIN_SIDE or image.width * image.height > MAX_PIXELS:
        raise ValueError(f"a picture of {image.width} x {image.height} px; it needs at least {MIN_SIDE} px a side and "
                         f"at most {MAX_PIXELS:,} pixels: scale it first")
    image = _decoded(image)
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    square = image.crop((left, top, left + side, top + side))
    pixels = np.asarray(square)                                                           # (side, side, 4) uint8
    pixels = shrink(pixels, px) if side >= px else np.asarray(square.resize((px, px), Image.Resampling.BICUBIC))
    alpha = torch.from_numpy(pixels[..., 3:].astype(np.float32)) / 255
    colour = torch.from_numpy(pixels[..., :3].astype(np.float32)) / 255
    return (colour * alpha + 1 - alpha).permute(2, 0, 1).contiguous()


def _opened(source: Any) -> Image.Image:
    if isinstance(source, Tensor):
        source = source.detach().cpu().movedim(0, -1).numpy() if source.ndim == 3 else source.detach().cpu().numpy()
    if isinstance(source, np.ndarray):
        return _from_array(source)
    if isinstance(source, Image.Image):
        return source
    if not isinstance(source, (str, Path, bytes, bytearray)):
        raise ValueError(f"a picture is a path, the bytes of a file, a PIL picture, an array or a tensor, not a "
                         f"{type(source).__name__}")
    try:
        return Image.open(io.BytesIO(source) if isinstance(source, (bytes, bytearray)) else source)
    except FileNotFoundError as error:
        raise ValueError(f"there is no file {str(source)!r}") from error
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError("it is no picture, or a damaged one; PNG, JPEG, WebP, GIF and BMP are read") from error


def _from_array(array: np.ndarray) -> Image.Image:
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if array.ndim != 2 and (array.ndim != 3 or array.shape[2] not in (3, 4)):
        raise ValueError(f"an array of shape {array.shape} is no picture: (H, W), (H, W, 3) or (H, W, 4) is needed, of "
                         "a tensor (C, H, W)")
    if np.issubdtype(array.dtype, np.floating) and array.size:
        if not np.isfinite(array).all() or array.min() < 0 or array.max() > 1:
            raise ValueError(f"floats of a picture must lie in [0, 1], got {array.min():g}..{array.max():g}; divide by "
                             "255, or pass uint8")
        array = (array * 255).round().astype(np.uint8)
    if array.dtype != np.uint8:
        raise ValueError(f"a picture holds uint8 or floats in [0, 1], not {array.dtype}")
    return Image.fromarray(array)


def _decoded(image: Image.Image) -> Image.Image:
    """RGBA, upright; 16-bit grey is scaled down, which Pillow's own conversion would cut off at 255."""
    try:
        if image.mode.startswith("I"):
            image = Image.fromarray((np.asarray(image).clip(0, 65535) // 257).astype(np.uint8))
        return ImageOps.exif_transpose(image).convert("RGBA")
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"the picture is damaged, or its mode {image.mode!r} is not one that is read") from error


@dataclass(frozen=True)
class PixelBasis:
    """Principal components of the training pictures. mean: (D,); components: (K, D), orthonormal rows; variances: (K,),
    falling; D = 3 * px * px, channels outermost."""
    mean: Float[Tensor, "d"]
    components: Float[Tensor, "k d"]
    variances: Float[Tensor, "k"]

    def encode(self, images: Float[Tensor, "b 3 px px"]) -> Float[Tensor, "b k"]:
        """Coefficients of each picture."""
        return (images.flatten(1) - self.mean) @ self.components.T

    def decode(self, coefficients: Float[Tensor, "b k"]) -> Float[Tensor, "b 3 px px"]:
        """Pictures from coefficients, not cut to [0, 1]."""
        px = round((len(self.mean) / 3) ** 0.5)
        return (coefficients @ self.components + self.mean).reshape(-1, 3, px, px)


def pca_basis(num_components: int, px: int = PX) -> PixelBasis:
    """The first components of the training split: what a linear tokenizer of that many numbers would learn.

    Raises ValueError outside 1..(training pictures - 1).
    """
    most = len(load_images(px).train()) - 1
    if not 1 <= num_components <= most:
        raise ValueError(f"num_components must be in 1..{most}, got {num_components}")
    whole = _whole_basis(px)
    return PixelBasis(whole.mean, whole.components[:num_components], whole.variances[:num_components])


@lru_cache(maxsize=1)
def _whole_basis(px: int) -> PixelBasis:
    images = load_images(px)
    flat = images.pixels[images.train()].flatten(1).double()
    mean = flat.mean(0)
    centred = flat - mean
    # Fewer pictures than pixels: the eigenvectors of their inner products (T, T) give those of the covariance.
    values, vectors = torch.linalg.eigh(centred @ centred.T)
    values, vectors = values.flip(0)[:-1], vectors.flip(1)[:, :-1]                        # centring leaves T - 1
    components = (vectors / values.sqrt()).T @ centred
    largest = components.gather(1, components.abs().argmax(1, keepdim=True))  # its sign is a convention: positive
    return PixelBasis(mean.float(), (components * largest.sign()).float(), (values / (len(flat) - 1)).float())
