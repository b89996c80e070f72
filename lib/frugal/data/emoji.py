"""The emoji laboratory: 1,800 small colour pictures with names, groups and a split by concept.

The pictures are Noto Color Emoji (SIL Open Font License 1.1), the names and groups Unicode's emoji-test.txt (Unicode
licence); texts in assets/licences. `recipes/build_emoji.py` draws the sheets once, so no font is needed here. Skin-tone
variants are left out, and pictures that the font draws alike are there once.

The split is by concept: names that differ only in gender, hair or direction share a side, because a random split would
show the model "woman pilot" and test it on "man pilot".
"""
import gzip
import hashlib
import json
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from numpy import ndarray
from PIL import Image

ASSETS = Path(__file__).parent / "assets"
SIZES = (64, 32)                                # px of the stored sheets
COLUMNS = 44                                    # pictures a row of a sheet
PIXELS_SHA256 = {64: "cdac854596a9e8be2799682c98532ab652cb4ac94618151545f1a24fb691293a",
                 32: "7dc5df61f112242765181db2888cfd975472252bcf0187fdd32e2b430fd9dfb3"}
NAMES_SHA256 = "0507695408bd7474d6335f841f25fa2e698355fc204237c7c6a22142554203e9"
_MODIFIERS = re.compile(
    r"\b(woman|women|man|men|person|people|boy|girl|male|female|mrs|mr|facing right|facing left|red hair|"
    r"curly hair|white hair|blond hair|bald|beard)\b|[:,’']"
)


@dataclass(frozen=True)
class Emoji:
    """One picture's name (Unicode's), code points, group, subgroup, and whether its concept is held out."""

    name: str
    code_points: str
    group: str
    subgroup: str
    held_out: bool


@dataclass(frozen=True)
class EmojiSheet:
    """All pictures at one size. pixels: (N, px, px, 4) uint8, red green blue alpha, not premultiplied; emoji: N
    entries."""

    px: int
    pixels: ndarray
    emoji: tuple[Emoji, ...]

    def index(self, name: str) -> int:
        """Place of the picture with this name. Raises ValueError with the nearest names for an unknown one."""
        for place, entry in enumerate(self.emoji):
            if entry.name == name:
                return place
        near = [entry.name for entry in self.emoji if name and name.lower() in entry.name.lower()][:5]
        raise ValueError(
            f"no emoji is called {name!r}; " + (f"did you mean {near}?" if near else "names are Unicode's, e.g. 'fox'")
        )

    def on(self, colour: tuple[int, int, int] = (255, 255, 255)) -> UInt8[ndarray, "n px px 3"]:
        """The pictures on a plain ground, exact in integers (rounded half up)."""
        alpha = self.pixels[..., 3:].astype(np.uint16)
        ground = np.asarray(colour, np.uint16)
        return ((self.pixels[..., :3] * alpha + ground * (255 - alpha) + 127) // 255).astype(np.uint8)


def concept(name: str) -> str:
    """What a picture is of, without gender, hair and direction: 'woman running facing right' and 'man running' are
    one."""
    return " ".join(_MODIFIERS.sub(" ", name.lower()).split()) or "person"


def held_out(name: str) -> bool:
    """Whether the concept of this name is in the held-out tenth: decided by its hash, so a new picture moves no
    other."""
    return int(hashlib.sha256(concept(name).encode()).hexdigest(), 16) % 10 == 0


def sheet_hash(pixels: UInt8[ndarray, "h w 4"]) -> str:
    """SHA-256 of shape and pixels."""
    return hashlib.sha256(repr(pixels.shape).encode() + np.ascontiguousarray(pixels).tobytes()).hexdigest()


@lru_cache
def _entries() -> tuple[Emoji, ...]:
    listing = gzip.decompress((ASSETS / "emoji.json.gz").read_bytes())
    if hashlib.sha256(listing).hexdigest() != NAMES_SHA256:
        raise ValueError("emoji.json.gz is damaged or of another build; reinstall frugal or run recipes/build_emoji.py")
    return tuple(Emoji(**entry) for entry in json.loads(listing))


@lru_cache(maxsize=2)
def load_emoji(px: int = 64) -> EmojiSheet:
    """The sheet at 64 or 32 px. Raises ValueError for another size, or for a file that is not the one we built."""
    if px not in SIZES:
        raise ValueError(f"px must be one of {SIZES}, got {px!r}; take the larger and average it down")
    path = ASSETS / f"emoji_{px}.webp"
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGBA"))
    if sheet_hash(pixels) != PIXELS_SHA256[px]:
        raise ValueError(f"{path.name} is damaged or of another build; reinstall frugal or run recipes/build_emoji.py")
    rows = pixels.shape[0] // px
    cut = pixels.reshape(rows, px, COLUMNS, px, 4).swapaxes(1, 2).reshape(rows * COLUMNS, px, px, 4)
    entries = _entries()
    cut = cut[:len(entries)]
    cut.flags.writeable = False
    return EmojiSheet(px, cut, entries)


def shrink(pixels: UInt8[ndarray, "*n px px 4"], side: int) -> UInt8[ndarray, "*n side side 4"]:
    """Area average to `side` px a side, in integers (the same on every machine); colours are weighted by their alpha.

    Raises ValueError when side is below 1 or above the size of the pictures.
    """
    px = pixels.shape[-2]
    if not 1 <= side <= px:
        raise ValueError(f"side must be in 1..{px} px, got {side}")
    weights = _overlap(px, side)                                                          # (side, px), rows sum to px
    solid = pixels.astype(np.float64)  # whole numbers below 2 ** 53: exact
    solid[..., :3] *= solid[..., 3:]
    summed = (weights @ (weights @ np.moveaxis(solid, -1, -3)).swapaxes(-1, -2)).swapaxes(-1, -2)
    summed = np.moveaxis(summed, -3, -1).astype(np.int64)                                 # alpha up to 255 * px * px
    alpha = summed[..., 3:]
    colour = (summed[..., :3] + alpha // 2) // np.maximum(alpha, 1)
    return np.concatenate([colour, (alpha + px * px // 2) // (px * px)], axis=-1).astype(np.uint8)


def _overlap(px: int, side: int) -> ndarray:
    """Overlap of target pixel a with source pixel i when both rulers are px * side long: whole numbers (side, px)."""
    source, target = np.arange(px) * side, np.arange(side) * px
    low = np.maximum(source[None], target[:, None])
    high = np.minimum(source[None] + side, target[:, None] + px)
    return np.maximum(high - low, 0).astype(np.float64)
