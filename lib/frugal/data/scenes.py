"""Emoji scenes: a generator that is its own ground truth.

Three to six emoji stand in cells of a 3 x 3 grid on a noisy pastel ground of 128 x 128 px; most come from one theme,
some twice. From a scene follow the views that the encoder sees (an overview at half the resolution, then four tiles),
the questions, and the object behind every patch. All drawing is done in integers from PCG64 draws, so a seed gives the
same bytes everywhere.

Differs from photographs: one drawing a class, no overlap, no perspective; a name is one token (see scene_text).
"""
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from numpy import ndarray
from torch import Tensor

from frugal.data.emoji import load_emoji, shrink
from frugal.data.scene_questions import KINDS, Question, ask, questions
from frugal.data.scene_text import NAME_INDEX, NAMES, PLACES, THEME_OF, THEMES, VOCAB, SceneVocab

__all__ = [
    "GRID",
    "KINDS",
    "NAMES",
    "PLACES",
    "SIDE",
    "THEMES",
    "VOCAB",
    "VIEW",
    "Question",
    "Scene",
    "SceneConfig",
    "SceneObject",
    "SceneVocab",
    "ask",
    "compose",
    "covered",
    "images_of",
    "make_scene",
    "patch_labels",
    "questions",
    "to_views",
]

SIDE, VIEW, GRID = 128, 64, 3                   # px of the canvas, px of a view, cells a side
NUM_VIEWS = 5                                   # overview, then tiles in raster order
HELD_OUT = 2_000_000_000                        # first seed of the scenes that no recipe trains on
CELL = SIDE // GRID                             # 42 px: the largest object
SMALLEST = 8                                    # px: the smallest object that may be asked for
# Luminance noise of 0.02 as a table over one random byte: rounded quantiles, so no floating point is drawn.
_NOISE = np.array([round(0.02 * 255 * NormalDist().inv_cdf((i + 0.5) / 256)) for i in range(256)], np.int16)


@dataclass(frozen=True)
class SceneConfig:
    """Knobs of the generator.

    size_range: smallest and largest side of an object in px (even sizes between are drawn); n_objects: fewest and most;
    themed: probability that an object comes from the scene's theme; repeat: that it repeats an earlier one.
    """
    size_range: tuple[int, int] = (16, 28)
    n_objects: tuple[int, int] = (3, 6)
    themed: float = 0.85
    repeat: float = 0.2

    def __post_init__(self):
        low, high = self.size_range
        if not SMALLEST <= low <= high <= CELL or low % 2 or high % 2:
            raise ValueError(
                f"size_range must be two even numbers, {SMALLEST} <= low <= high <= {CELL} px, got {self.size_range}"
            )
        fewest, most = self.n_objects
        if not 0 <= fewest <= most <= GRID * GRID:
            raise ValueError(
                f"n_objects must be 0 <= fewest <= most <= {GRID * GRID} (one a cell), got {self.n_objects}"
            )
        for name in ("themed", "repeat"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is a probability in [0, 1], got {getattr(self, name)}")


@dataclass(frozen=True)
class SceneObject:
    """One emoji: its name and theme, cell (row, column) of the 3 x 3 grid, and box (x0, y0, x1, y1) in px, end
    excluded."""
    name: str
    theme: str
    cell: tuple[int, int]
    box: tuple[int, int, int, int]

    @property
    def side(self) -> int:
        """Its side in px."""
        return self.box[2] - self.box[0]

    @property
    def place(self) -> str:
        """The word for its cell, e.g. 'top-left'."""
        return PLACES[self.cell[0] * GRID + self.cell[1]]


@dataclass(frozen=True, eq=False)
class Scene:
    """image: (128, 128, 3) uint8; objects in reading order; owner: (128, 128) uint8, 0 ground, k + 1 where object k is
    seen."""
    image: ndarray
    objects: tuple[SceneObject, ...]
    owner: ndarray

    @property
    def names(self) -> list[str]:
        """Names in reading order, repeats included."""
        return [thing.name for thing in self.objects]

    def count(self, name: str) -> int:
        return self.names.count(name)

    def at(self, place: str) -> str:
        """Name of what stands at a place word, or 'nothing'."""
        return next((thing.name for thing in self.objects if thing.place == place), "nothing")

    def patch_labels(self, view: int, patches: int = 8) -> Int[ndarray, "rows cols"]:
        """Label of each patch of a view (0 overview, 1..4 tiles): 0 ground, else index in NAMES + 1. See
        patch_labels."""
        if not 0 <= view < NUM_VIEWS:
            raise ValueError(f"view must be 0 (overview) or 1..{NUM_VIEWS - 1} (tiles), got {view}")
        return patch_labels([self], patches)[0, view]


@lru_cache(maxsize=4096)
def _sprite(name: str, side: int) -> tuple[ndarray, ndarray, ndarray]:
    """(colour * alpha + 127, 255 - alpha, seen): uint16 (side, side, 3) and (side, side, 1), bool (side, side)."""
    sheet = load_emoji(64)
    pixels = shrink(sheet.pixels[sheet.index(name)], side).astype(np.uint16)
    alpha = pixels[..., 3:]
    return pixels[..., :3] * alpha + 127, 255 - alpha, alpha[..., 0] >= 128


def make_scene(seed: int, config: SceneConfig = SceneConfig()) -> Scene:
    """The scene of a seed: the same bytes on any machine. Raises ValueError for a negative seed."""
    if seed < 0:
        raise ValueError(f"seed must be 0 or above, got {seed}")
    rng = np.random.Generator(np.random.PCG64(seed))
    draws = iter(rng.integers(0, 1 << 32, size=128, dtype=np.uint32).tolist())

    def below(limit: int) -> int:
        return next(draws) * limit >> 32

    def chance(probability: float) -> bool:
        return next(draws) < int(probability * (1 << 32))

    theme = THEME_OF[NAMES[below(len(NAMES))]]  # themes by their size, so that all names are as frequent
    fewest, most = config.n_objects
    names: list[str] = []
    for _ in range(fewest + below(most - fewest + 1)):
        if names and chance(config.repeat):
            names.append(names[below(len(names))])
        else:
            pool = THEMES[theme] if chance(config.themed) else NAMES
            names.append(pool[below(len(pool))])
    cells = list(range(GRID * GRID))
    low, high = config.size_range
    placed = []
    for name in names:
        row, column = divmod(cells.pop(below(len(cells))), GRID)
        side = low + 2 * below((high - low) // 2 + 1)
        x, y = column * SIDE // GRID + below(CELL - side + 1), row * SIDE // GRID + below(CELL - side + 1)
        placed.append(SceneObject(name, THEME_OF[name], (row, column), (x, y, x + side, y + side)))
    return _draw(placed, rng)


def compose(objects: Sequence[tuple[str, str | tuple[int, int], int]], seed: int = 0) -> Scene:
    """The reader's own scene: (name, place, side) each, the place a word of PLACES or (row, column), centred in its
    cell.

    seed: of the ground's colour and noise. Raises ValueError for an unknown name or place, a cell taken twice, or a
    side that does not fit a cell of 42 px.
    """
    placed, taken = [], set()
    for name, place, side in objects:
        if name not in NAME_INDEX:
            near = [known for known in NAMES if known[:2] == str(name)[:2]]
            raise ValueError(
                f"no object is called {name!r}; " + (f"did you mean {near}?" if near else f"choose from {NAMES}")
            )
        row, column = _cell(place)
        if (row, column) in taken:
            raise ValueError(
                f"two objects at {PLACES[row * GRID + column]!r}: each of the {GRID * GRID} cells holds one"
            )
        if not SMALLEST <= side <= CELL:
            raise ValueError(
                f"{name} of {side} px does not fit: the side must be {SMALLEST}..{CELL} px, the size of a cell"
            )
        taken.add((row, column))
        x, y = (index * SIDE // GRID + (CELL - side) // 2 for index in (column, row))
        placed.append(SceneObject(name, THEME_OF[name], (row, column), (x, y, x + side, y + side)))
    return _draw(placed, np.random.Generator(np.random.PCG64(seed)))


def _cell(place: str | tuple[int, int]) -> tuple[int, int]:
    if isinstance(place, str):
        if place not in PLACES:
            raise ValueError(f"no place is called {place!r}; choose from {PLACES}")
        return divmod(PLACES.index(place), GRID)
    row, column = place
    if not (0 <= row < GRID and 0 <= column < GRID):
        raise ValueError(f"cell {place} is outside the grid: row and column are 0..{GRID - 1}")
    return row, column


def _draw(objects: list[SceneObject], rng: np.random.Generator) -> Scene:
    """Ground, noise, then the objects in reading order."""
    ground = rng.integers(191, 256, size=3, dtype=np.uint8).astype(np.int16)              # each channel 0.75..1
    noise = _NOISE[rng.integers(0, 256, size=(SIDE, SIDE), dtype=np.uint8)]
    image = np.clip(noise[..., None] + ground, 0, 255).astype(np.uint16)
    owner = np.zeros((SIDE, SIDE), np.uint8)
    objects = sorted(objects, key=lambda thing: thing.cell)
    for index, thing in enumerate(objects):
        x0, y0, x1, y1 = thing.box
        colour, clear, seen = _sprite(thing.name, thing.side)
        image[y0:y1, x0:x1] = (colour + image[y0:y1, x0:x1] * clear) // 255
        owner[y0:y1, x0:x1][seen] = index + 1
    return Scene(image.astype(np.uint8), tuple(objects), owner)


def covered(scenes: Sequence[Scene], patches: int = 8) -> tuple[ndarray, ndarray]:
    """What covers each patch of each view: (index of its main object, -1 for none; share of the patch that object
    covers).

    Both (B, 5, patches, patches); the share is of pixels where the object is opaque.
    """
    cell = VIEW // patches
    if VIEW % patches:
        raise ValueError(f"patches must divide {VIEW}, got {patches}")
    owners = np.stack([scene.owner for scene in scenes])
    fine = np.stack([_sums(owners == k, cell) for k in range(1, 1 + max(1, owners.max()))])            # (k, B, 2p, 2p)
    coarse = fine.reshape(*fine.shape[:2], patches, 2, patches, 2).sum((3, 5))
    tiles = (
        fine.reshape(*fine.shape[:2], 2, patches, 2, patches)
        .swapaxes(3, 4)
        .reshape(*fine.shape[:2], 4, patches, patches)
    )
    shares = np.concatenate([coarse[:, :, None] / (2 * cell) ** 2, tiles / cell ** 2], axis=2)         # (k, B, 5, p, p)
    best = shares.argmax(0)
    share = np.take_along_axis(shares, best[None], 0)[0]
    return np.where(share > 0, best, -1), share


def _sums(mask: ndarray, cell: int) -> ndarray:
    batch, side = mask.shape[0], SIDE // cell
    return mask.reshape(batch, side, cell, side, cell).sum((2, 4), dtype=np.int64)


def patch_labels(
    scenes: Sequence[Scene], patches: int = 8, threshold: float = 0.3
) -> Int[ndarray, "b views rows cols"]:
    """Label of every patch: index in NAMES + 1 of the object that covers more than `threshold` of it, 0 for ground."""
    index, share = covered(scenes, patches)
    width = max(1, max(len(scene.objects) for scene in scenes))
    names = np.zeros((len(scenes), width), np.int64)
    for row, scene in zip(names, scenes):
        row[:len(scene.objects)] = [NAME_INDEX[name] + 1 for name in scene.names]
    labels = np.take_along_axis(names, np.maximum(index, 0).reshape(len(scenes), -1), 1).reshape(index.shape)
    return np.where(share > threshold, labels, 0)


def images_of(scenes: Sequence[Scene | ndarray]) -> Float[Tensor, "b 3 128 128"]:
    """Scenes, or (128, 128, 3) uint8 images, as a float batch in [0, 1]. Raises ValueError for images of another size
    or mode."""
    images = [scene.image if isinstance(scene, Scene) else np.asarray(scene) for scene in scenes]
    for image in images:
        if image.shape != (SIDE, SIDE, 3) or image.dtype != np.uint8:
            raise ValueError(
                f"an image must be ({SIDE}, {SIDE}, 3) of uint8 (RGB), got {image.shape} of {image.dtype}; "
                f"with Pillow: image.convert('RGB').resize(({SIDE}, {SIDE}))"
            )
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255


def to_views(images: Tensor) -> Float[Tensor, "b views 3 64 64"]:
    """Overview (2 x 2 averages) and the four tiles, raster order, of images (B, 3, 128, 128) in [0, 1].

    Raises ValueError for another shape or for values that are not floating point.
    """
    if images.ndim != 4 or tuple(images.shape[1:]) != (3, SIDE, SIDE):
        raise ValueError(f"images must be (batch, 3, {SIDE}, {SIDE}), got {tuple(images.shape)}: resize the picture to "
                         f"{SIDE} x {SIDE} px and convert it to RGB, channels first")
    if not images.is_floating_point():
        raise ValueError(f"images must be floats in [0, 1], got {images.dtype}: divide by 255 (or use images_of)")
    tiles = images.unfold(2, VIEW, VIEW).unfold(3, VIEW, VIEW)                            # (B, 3, 2, 2, 64, 64)
    tiles = tiles.permute(0, 2, 3, 1, 4, 5).reshape(-1, 4, 3, VIEW, VIEW)
    return torch.cat([F.avg_pool2d(images, 2)[:, None], tiles], dim=1)
