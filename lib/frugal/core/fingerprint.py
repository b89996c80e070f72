"""Fingerprints of code: which version of the library made a row.

Two things must hold. A change that can change a result changes the fingerprint, so that no stale row is read back.
A change that cannot (a comment, a docstring, a figure, line endings of another platform, another Python version)
leaves it, so that hours of sweeps stay valid. So Python sources are hashed by their syntax tree without docstrings,
other files by their bytes, and files that only present results are left out.
"""
import ast
import dataclasses
import functools
import hashlib
import inspect
import re
import textwrap
import types
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path

HOUSE = ("core", "data", "models")                    # what every family passes through
NOT_CODE = {"papers.py", "recorded", "licences", "__pycache__"}
PRESENTATION = ("claims", "figures", "exercises")     # claims.py, claims_tim.py, ...


def code_version(family_package: str) -> str:
    """Hash of every source that can change a result of this family: core, data, models and the family itself.

    family_package: full module name, for example "frugal.kv_eviction". 16 hex digits.
    """
    packages = [f"frugal.{name}" for name in HOUSE] + [family_package]
    digest = hashlib.sha256()
    for package in packages:
        for name, path in _files(package):
            stat = path.stat()
            digest.update(f"{package}/{name}\0{_file_hash(path, stat.st_mtime_ns, stat.st_size)}\n".encode())
    return digest.hexdigest()[:16]


def source_hash(thing: type | Callable) -> str:
    """Hash of a class or function written outside the library, for example in a notebook: its code and settings.

    A class counts with the classes it inherits from. Where the source is not to be had, the bytecode is hashed.
    """
    digest = hashlib.sha256()
    for part in (inspect.getmro(thing) if inspect.isclass(thing) else (thing,)):
        if part.__module__ != "builtins":
            digest.update(f"{part.__qualname__}\0{_described(part)}\n".encode())
    return digest.hexdigest()[:16]


def settings_of(thing: object) -> str:
    """The settings of an instance as text: the fields of a dataclass, else its public simple attributes."""
    if dataclasses.is_dataclass(thing):
        pairs = [(field.name, getattr(thing, field.name)) for field in dataclasses.fields(thing)]
    else:
        pairs = sorted((name, value) for name, value in getattr(thing, "__dict__", {}).items()
                       if not name.startswith("_"))
    return repr([(name, value) for name, value in pairs if _is_plain(value)])


def _is_plain(value: object) -> bool:
    if isinstance(value, (tuple, list)):
        return all(_is_plain(item) for item in value)
    return value is None or isinstance(value, (bool, int, float, str, bytes))


def _files(package: str) -> Iterator[tuple[str, Path]]:
    """(name inside the package, path) of the files that can change a result, in a fixed order."""
    module = import_module(package)
    if not hasattr(module, "__path__"):                # a family in a single file
        yield "module", Path(module.__file__)
        return
    for root in sorted(module.__path__):
        for path in sorted(Path(root).rglob("*")):
            parts = path.relative_to(root).parts
            if path.is_file() and not NOT_CODE & set(parts) and not any(map(_is_aside, parts)):
                yield "/".join(parts), path


def _is_aside(part: str) -> bool:
    return part.startswith(".") or re.fullmatch(rf"({'|'.join(PRESENTATION)})(_\w+)?\.py", part) is not None


@functools.lru_cache(maxsize=None)
def _file_hash(path: Path, mtime_ns: int, size: int) -> str:
    """Time and size only serve the cache: an edited file is read again, also within one kernel."""
    content = path.read_bytes()
    if path.suffix == ".py":
        content = canonical_source(content.decode()).encode()
    return hashlib.sha256(content).hexdigest()


def canonical_source(source: str) -> str:
    """The syntax tree as text, the same on every Python version and without comments and docstrings."""
    return _canonical(ast.parse(source))


def _canonical(node: object) -> str:
    if isinstance(node, list):
        return "[" + ",".join(map(_canonical, node)) + "]"
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = []
    for name, value in ast.iter_fields(node):
        if name == "body" and isinstance(value, list):
            value = [child for child in value if not _is_text_alone(child)]
        if name not in ("kind", "type_comment", "type_ignores", "ctx") and value not in (None, []):
            fields.append(f"{name}={_canonical(value)}")
    return f"{type(node).__name__}({','.join(fields)})"


def _is_text_alone(node: ast.AST) -> bool:
    """A docstring, or any other string that stands alone and so does nothing."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _described(thing: type | Callable) -> str:
    try:
        return canonical_source(textwrap.dedent(inspect.getsource(thing)))
    except (OSError, TypeError, SyntaxError):          # typed into a notebook or a shell: no file to read
        if not inspect.isclass(thing):
            return _bytecode(thing.__code__)
    members = []
    for name, value in sorted(vars(thing).items()):
        value = getattr(value, "__func__", getattr(value, "fget", value))     # classmethod, staticmethod, property
        if isinstance(value, types.FunctionType):
            members.append(f"{name}={_bytecode(value.__code__)}{value.__defaults__!r}")
        elif _is_plain(value) and not name.startswith("__"):
            members.append(f"{name}={value!r}")
    return ";".join(members)


def _bytecode(code: types.CodeType) -> str:
    constants = [_bytecode(item) if isinstance(item, types.CodeType) else repr(item) for item in code.co_consts]
    return f"{code.co_code.hex()}{code.co_names}{constants}"
