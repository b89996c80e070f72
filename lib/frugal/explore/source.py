"""Show the library's own code in a notebook: written once, shown where it is explained."""

import hashlib
import html
import inspect
import textwrap
from pathlib import Path
from typing import Any

import frugal


class Source:
    """The source of an object, as a foldable, coloured block in a notebook and as plain text elsewhere."""

    def __init__(self, obj: Any, folded: bool = False) -> None:
        inner = inspect.unwrap(obj.func if hasattr(obj, "func") else getattr(obj, "fget", None) or obj)
        try:
            lines, self.line = inspect.getsourcelines(inner)
            file = Path(inspect.getsourcefile(inner) or "")
        except (TypeError, OSError) as error:
            raise ValueError(f"{obj!r} has no Python source to show") from error
        self.code = textwrap.dedent("".join(lines)).rstrip()
        self.name = getattr(inner, "__qualname__", getattr(inner, "__name__", str(obj)))
        root = Path(frugal.__file__).parent.parent
        self.file = file.relative_to(root).as_posix() if file.is_relative_to(root) else file.name
        self.folded = folded

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.code.encode()).hexdigest()[:12]

    def __repr__(self) -> str:
        return f"# {self.name} ({self.file})\n{self.code}"

    def _repr_mimebundle_(self, **_: Any) -> dict[str, str]:
        return {"text/html": self.to_html(), "text/plain": repr(self)}

    def to_html(self) -> str:
        """A <details> block with pygments' class names, which JupyterLab, nbconvert and sphinx all colour."""
        from pygments import highlight
        from pygments.formatters import HtmlFormatter
        from pygments.lexers import PythonLexer

        code = highlight(self.code, PythonLexer(), HtmlFormatter(nowrap=True))
        count = self.code.count("\n") + 1
        return (
            f'<details class="frugal-source"{"" if self.folded else " open"}>'
            f"<summary><code>{html.escape(self.name)}</code> in {html.escape(self.file)}, {count} lines</summary>"
            f'<div class="highlight"><pre tabindex="0">{code}</pre></div></details>'
        )


def show_source(obj: Any, folded: bool = False) -> Source:
    """The source of a function, method, class or property. Last line of a cell: it shows as a coloured block.

    The output is the same on every machine (file relative to the library, no line numbers).
    ValueError for an object without Python source.
    """
    return Source(obj, folded)
