"""Draw the emoji sheets of lib/frugal/data/assets from Debian's font and Unicode's list of names.

    apt-get install fonts-noto-color-emoji unicode-data
    python recipes/build_emoji.py

Needs Pillow with raqm (its wheels have it). Every fully-qualified sequence without skin tone is drawn at 109 px, the
size of the font's bitmaps, cropped to 128 x 128, and brought to 64 and 32 px; of equal pictures the first stays. Prints
the SHA-256 of the pixels, which data/emoji.py checks.
"""
import gzip
import hashlib
import json
import re
import shutil
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from frugal.data.emoji import COLUMNS, SIZES, held_out, sheet_hash

ASSETS = Path(__file__).parents[1] / "lib" / "frugal" / "data" / "assets"
FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
NAMES = Path("/usr/share/unicode/emoji/emoji-test.txt")
LICENCES = {
    "OFL.txt": Path("/usr/share/doc/fonts-noto-color-emoji/copyright"),
    "Unicode.txt": Path("/usr/share/doc/unicode-data/copyright"),
}
STRIKE = 109                                    # px: the one size that the colour bitmaps have
SKIN_TONES = {f"{tone:X}" for tone in range(0x1F3FB, 0x1F400)}


def listed(text: str) -> list[dict]:
    """Name, code points, group and subgroup of each fully-qualified emoji without skin tone, in the file's order."""
    found, group, subgroup = [], "", ""
    for line in text.splitlines():
        if line.startswith("# group:"):
            group = line.split(":", 1)[1].strip()
        elif line.startswith("# subgroup:"):
            subgroup = line.split(":", 1)[1].strip()
        elif match := re.match(r"([0-9A-F ]+?)\s*; fully-qualified\s*# \S+ E\S+ (.*)", line):
            points = match[1].split()
            if not SKIN_TONES & set(points):
                found.append({"name": match[2], "code_points": match[1], "group": group, "subgroup": subgroup})
    return found


def drawn(text: str, font: ImageFont.FreeTypeFont) -> Image.Image:
    """One emoji on a clear 128 x 128 ground; what two glyphs or more would need is cut off at the right."""
    canvas = Image.new("RGBA", (136, 128), (255, 255, 255, 0))
    ImageDraw.Draw(canvas).text((0, 0), text, font=font, embedded_color=True)
    box = canvas.getbbox()
    if box is None:
        raise SystemExit(f"the font draws nothing for {text!r}: is it a colour font, and has Pillow raqm?")
    return canvas.crop((4, 0, 132, 128))


def cleared(image: Image.Image) -> np.ndarray:
    """Pixels as uint8 (H, W, 4), black where nothing is to be seen, so that the file is small and the hash exact."""
    pixels = np.asarray(image).copy()
    pixels[pixels[..., 3] == 0] = 0
    return pixels


def sheet(pictures: list[np.ndarray], px: int) -> np.ndarray:
    """The pictures (px, px, 4) row by row, COLUMNS a row: uint8 (rows * px, COLUMNS * px, 4)."""
    rows = -(-len(pictures) // COLUMNS)
    out = np.zeros((rows * px, COLUMNS * px, 4), np.uint8)
    for index, picture in enumerate(pictures):
        row, column = divmod(index, COLUMNS)
        out[row * px:(row + 1) * px, column * px:(column + 1) * px] = picture
    return out


def main() -> None:
    font = ImageFont.truetype(str(FONT), STRIKE, layout_engine=ImageFont.Layout.RAQM)
    seen, kept, pictures = set(), [], {px: [] for px in SIZES}
    for entry in listed(NAMES.read_text(encoding="utf-8")):
        image = drawn("".join(chr(int(point, 16)) for point in entry["code_points"].split()), font)
        digest = hashlib.sha256(cleared(image).tobytes()).digest()
        if digest in seen:
            continue
        seen.add(digest)
        kept.append(entry | {"held_out": held_out(entry["name"])})
        for px in SIZES:
            pictures[px].append(cleared(image.resize((px, px), Image.Resampling.LANCZOS)))
    (ASSETS / "licences").mkdir(parents=True, exist_ok=True)
    for px in SIZES:
        pixels = sheet(pictures[px], px)
        path = ASSETS / f"emoji_{px}.webp"
        Image.fromarray(pixels, "RGBA").save(path, lossless=True, quality=100, method=6, exact=True)
        print(
            f"{path.name}: {len(kept)} pictures, {path.stat().st_size:,} bytes, pixels {sheet_hash(pixels)}"
        )
    listing = json.dumps(kept, ensure_ascii=False, indent=0).encode()
    (ASSETS / "emoji.json.gz").write_bytes(gzip.compress(listing, compresslevel=9, mtime=0))
    print(f"{sum(entry['held_out'] for entry in kept)} held out; names sha256 {hashlib.sha256(listing).hexdigest()}")
    for name, path in LICENCES.items():
        shutil.copyfile(path, ASSETS / "licences" / name)


if __name__ == "__main__":
    main()
