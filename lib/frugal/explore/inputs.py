"""The reader's own material: a text, a picture or a file, checked before a run sees it."""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image, UnidentifiedImageError

from .choices import Choice, Control, controls


@dataclass(frozen=True)
class Text:
    """A text field; `rows` above 1 makes it an area. check(text) raises ValueError with what is wrong."""

    label: str
    value: str = ""
    max_chars: int = 4000
    rows: int = 3
    required: bool = True
    check: Callable[[str], Any] | None = None

    def to_json(self, name: str) -> dict[str, Any]:
        return {"name": name, "label": self.label, "kind": "text", "value": self.value, "rows": self.rows,
                "max_chars": self.max_chars, "hint": f"at most {self.max_chars:,} characters"}  # fmt: skip

    def default(self) -> str:
        return self.value

    def parse(self, raw: Any, buffers: Sequence[Any]) -> str:
        if not isinstance(raw, str):
            raise ValueError(f"{self.label}: expected a text, got {type(raw).__name__}")
        if self.required and not raw.strip():
            raise ValueError(f"{self.label} is empty: write something first")
        if len(raw) > self.max_chars:
            raise ValueError(f"{self.label} has {len(raw):,} characters; at most {self.max_chars:,} are taken")
        if self.check is not None:
            self.check(raw)
        return raw


@dataclass(frozen=True)
class File:
    """A file of the reader's. read(bytes) turns its content into a value and raises ValueError if it cannot.

    value: used while no file is chosen; None means that a file is needed.
    """

    label: str
    suffixes: tuple[str, ...] = ()
    value: Any = None
    max_bytes: int = 5_000_000
    read: Callable[[bytes], Any] = bytes

    def to_json(self, name: str) -> dict[str, Any]:
        kinds = ", ".join(self.suffixes) or "any file"
        own = "" if self.value is None else "; without one, the built-in example is used"
        return {"name": name, "label": self.label, "kind": "file", "accept": ",".join(self.suffixes),
                "max_bytes": self.max_bytes, "hint": f"{kinds}, at most {self.max_bytes / 1e6:g} MB{own}"}  # fmt: skip

    def default(self) -> Any:
        return self.value

    def parse(self, raw: Any, buffers: Sequence[Any]) -> Any:
        if raw is None:
            if self.value is None:
                raise ValueError(f"{self.label}: choose a file first")
            return self.value
        name, content = str(raw["name"]), bytes(buffers[raw["buffer"]])
        if self.suffixes and not name.lower().endswith(self.suffixes):
            raise ValueError(f"{self.label}: {name!r} is not one of {', '.join(self.suffixes)}")
        if not content:
            raise ValueError(f"{self.label}: {name!r} is empty")
        if len(content) > self.max_bytes:
            raise ValueError(f"{self.label}: {name!r} has {len(content):,} bytes; at most {self.max_bytes:,} are taken")
        try:
            return self.read(content)
        except ValueError as error:
            raise ValueError(f"{self.label}: {name!r} cannot be used: {error}") from error


def text(label: str, value: str = "", **options: Any) -> Text:
    """A text input: `live(run, figure, prompt=text("Prompt", "Once upon a time"))`; options of `Text`."""
    return Text(label, value, **options)


def file(label: str, suffixes: Sequence[str] = (), **options: Any) -> File:
    """A file input; options of `File`."""
    return File(label, tuple(suffixes), **options)


def picture(label: str, value: Image.Image | None = None, max_side: int = 1024, **options: Any) -> File:
    """A picture input: the run gets an RGB PIL picture, shrunk so that no side is longer than `max_side` pixels."""
    kinds = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp")
    return File(label, kinds, value=value, read=lambda content: read_picture(content, max_side), **options)


def read_picture(content: bytes, max_side: int = 1024, max_pixels: int = 50_000_000) -> Image.Image:
    """Bytes to an RGB picture. ValueError when they are none, damaged, or of more than `max_pixels` pixels."""
    try:
        image = Image.open(io.BytesIO(content))
        if image.width * image.height > max_pixels:
            raise ValueError(f"{image.width} x {image.height} pixels are more than {max_pixels:,}")
        image = image.convert("RGB")
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError("it is no picture, or a damaged one") from error
    image.thumbnail((max_side, max_side))
    return image


@dataclass(frozen=True)
class Picked:
    """A choice used as an input of a live run; the page sends the place of the value."""

    control: Control

    def to_json(self, name: str) -> dict[str, Any]:
        return self.control.to_json()

    def default(self) -> Any:
        return self.control.values[self.control.initial]

    def parse(self, raw: Any, buffers: Sequence[Any]) -> Any:
        if not isinstance(raw, int) or not 0 <= raw < len(self.control.values):
            raise ValueError(f"{self.control.label}: {raw!r} is not a place in a list of {len(self.control.values)}")
        return self.control.values[raw]


def as_input(name: str, given: Any, run: Callable) -> Any:
    """An input from its declaration: Text, File, a `choice(...)` or a plain list of values."""
    if isinstance(given, (Text, File)):
        return given
    if isinstance(given, str):
        return Text(name.replace("_", " ").capitalize(), given)
    if isinstance(given, Choice) or isinstance(given, (list, tuple, range)):
        return Picked(controls(run, {name: given})[0])
    raise ValueError(f"{name}={given!r}: an input is text(...), picture(...), file(...), choice(...) or a list")
