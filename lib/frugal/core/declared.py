"""What a sweep is declared with: families, methods, workloads, budgets and seeds, checked before anything runs.

Every error lists what is allowed.
"""
import importlib
import pkgutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .budgets import resolve
from .rowstore import plain

NOT_FAMILIES = {"core", "data", "models", "explore"}


def families() -> list[str]:
    """The families whose package is there."""
    import frugal
    return sorted(info.name for info in pkgutil.iter_modules(frugal.__path__)
                  if info.ispkg and info.name not in NOT_FAMILIES)


def family_module(family: str) -> Any:
    """The family's package. ValueError lists the families, or says what the package lacks."""
    if "." not in family and family not in families():
        raise ValueError(f"unknown family {family!r}; there are: {', '.join(families())}")
    module = importlib.import_module(family if "." in family else f"frugal.{family}")
    for name in ("ALL", "WORKLOADS"):
        if not hasattr(module, name):
            raise ValueError(f"family {family!r} has no {name}: it cannot be swept")
    return module


def listed(given: Any, default: Iterable) -> list:
    if given is None:
        return list(default)
    return [given] if isinstance(given, (str, int, float, type)) else list(given)


def unique(items: Iterable) -> list:
    """Without repetitions, in order; 1 and 1.0 are different budgets."""
    return list({(type(item), item): item for item in items}.values())


def pick_method(method: str | type, known: Sequence[type], family: str) -> type:
    if isinstance(method, type):
        if not isinstance(getattr(method, "name", None), str):
            raise ValueError(f"method class {method.__name__} has no `name`")
        return method
    by_name = {cls.name: cls for cls in known}
    if method not in by_name:
        raise ValueError(f"unknown method {method!r} in {family}; there are: {', '.join(by_name)}")
    return by_name[method]


def pick_workload(workload: Any, known: Mapping[str, Any], family: str) -> Any:
    if workload is None and known:
        return next(iter(known.values()))
    if not isinstance(workload, str) and hasattr(workload, "run") and hasattr(workload, "name"):
        return workload
    if workload not in known:
        raise ValueError(f"unknown workload {workload!r} in {family}; there are: {', '.join(known) or 'none'}")
    return known[workload]


def check_budget(budget: float | int) -> float | int:
    try:
        resolve(budget, sys.maxsize)
    except ValueError:
        raise ValueError(f"budget {budget!r} is out of range: give a fraction in (0, 1] or a whole number "
                         "of at least 1") from None
    return plain(budget)


def check_seeds(seeds: int | Sequence) -> list[int]:
    chosen = range(seeds) if isinstance(seeds, int) and not isinstance(seeds, bool) else seeds
    if isinstance(chosen, (str, bool)) or len(chosen) == 0 or not all(isinstance(plain(s), int) for s in chosen):
        raise ValueError(f"seeds {seeds!r}: give how many (at least 1), or a list of whole numbers")
    return unique(plain(seed) for seed in chosen)
