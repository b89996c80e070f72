"""The papers' own files, in reading order: `claims_<paper>`, `figures_<paper>`, `exercises_<paper>`, as far as they are there."""
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

from frugal.core.papers import papers


def modules(part: str) -> list[ModuleType]:
    """The files of one kind ("claims", "figures" or "exercises"). A file that is there and fails to import raises."""
    names = [f"frugal.visual_tokenizers.{part}_{paper.key}" for paper in papers("visual_tokenizers")]
    return [import_module(name) for name in names if find_spec(name)]
