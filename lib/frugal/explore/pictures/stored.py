"""Small pictures as text, so that recorded rows can hold them: base64 of a PNG, 1-3 kB for 32 px."""
import base64
import io
from typing import Any

from PIL import Image

from .boards import as_picture


def to_text(image: Any) -> str:
    """A PIL picture or array (height, width, 3), uint8 or floats from 0 to 1, as text. `from_text` gives it back exactly
    (floats rounded to 8 bits)."""
    data = io.BytesIO()
    as_picture(image).save(data, format="PNG", optimize=True)
    return base64.b64encode(data.getvalue()).decode("ascii")


def from_text(text: str) -> Image.Image:
    """The picture that `to_text` wrote. Raises ValueError for text that is none."""
    try:
        return Image.open(io.BytesIO(base64.b64decode(text, validate=True))).convert("RGB")
    except (OSError, ValueError) as error:
        raise ValueError(f"the text is no stored picture ({error}); was the recording cut?") from error
