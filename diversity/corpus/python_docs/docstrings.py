"""Documented objects of installed packages: their docstrings and signatures, read from source files that are never imported.

Only the standard library is used here, so that the same reading can be checked under other versions of Python, in which the
environment's compiled packages can't be loaded.
"""

from __future__ import annotations

import ast
import gc
import importlib.util
import inspect
import re
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

MIN_CHARS = 30
LEFT_OUT_FOLDERS = frozenset({"tests", "test", "testing", "conftest", "externals", "_vendor", "vendored", "distutils", "__pycache__"})
LEFT_OUT_FILES = frozenset({"__config__.py", "version.py", "_version.py", "_distributor_init.py", "conftest.py"})
LEFT_OUT_MODULES = ("transformers.models",)  # a third of all docstrings there are, and mostly one text with other names in it
PLACEHOLDER = re.compile(r"%\(\w+\)[sd]")  # filled in when the package is imported, which doesn't happen here
STRANGE_SPACE = re.compile(r"[^\S \n\t]")

_STRING = r'"""(?:\\.|[^\\])*?"""|\'\'\'(?:\\.|[^\\])*?\'\'\'|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\''
_TOKENS = re.compile(rf"({_STRING})|(?:\s|#[^\n]*)+", re.DOTALL)

Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True, slots=True)
class Documented:
    """One object with a docstring. `qualified` is its module's name and its own, e.g. `sklearn.cluster._kmeans.KMeans.fit`."""

    qualified: str
    module: str
    name: str
    kind: str
    signature: str
    docstring: str


def documented_objects(packages: Iterable[str]) -> Iterator[Documented]:
    """Yield every public object with a docstring of its own.

    Args:
        packages: import names.

    Raises:
        ModuleNotFoundError: one isn't installed.
    """
    for package in packages:
        root = _folder_of(package)
        for path in sorted(root.rglob("*.py")):
            parts = [package, *path.relative_to(root).with_suffix("").parts]
            module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            if _is_source(module, path.name):
                yield from _objects_of(path, module)


def _folder_of(package: str) -> Path:
    """Return a package's folder. Looking for a top-level package imports nothing."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"no package {package!r} is installed", name=package)
    return Path(next(iter(spec.submodule_search_locations)))


def _is_source(module: str, file_name: str) -> bool:
    """Return whether a file is the package's own code and the same in all its wheels: no tests, no copies of others, nothing generated."""
    if any(module == left_out or module.startswith(left_out + ".") for left_out in LEFT_OUT_MODULES):
        return False
    return file_name not in LEFT_OUT_FILES and LEFT_OUT_FOLDERS.isdisjoint(module.split("."))


def _objects_of(path: Path, module: str) -> Iterator[Documented]:
    """Yield the documented objects of one file. A file that isn't UTF-8 or doesn't parse (a template) holds none."""
    try:
        source = path.read_bytes().decode("utf-8-sig").replace("\r\n", "\n")
        tree = _parsed(source)
    except (SyntaxError, ValueError):
        return
    docstring = _docstring(tree)
    if docstring:
        yield Documented(module, module, "", "module", "", docstring)
    lines = source.split("\n")
    seen: set[str] = set()
    for node, names, kind in _definitions(tree, (), "function"):
        name = ".".join(names)
        docstring = _docstring(node)
        if docstring and name not in seen:
            seen.add(name)
            yield Documented(f"{module}.{name}", module, name, kind, signature_of(node, lines), docstring)


def _parsed(source: str) -> ast.Module:
    """Return the syntax tree. The garbage collector pauses: it would look through millions of nodes that refer to no cycle."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ast.parse(source)
    finally:
        if collecting:
            gc.enable()


def _definitions(node: ast.AST, owners: tuple[str, ...], kind: str) -> Iterator[tuple[Definition, tuple[str, ...], str]]:
    """Yield (definition, names, kind) of the public classes, functions and methods below a node, also those in `if` and `try`."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef) and not child.name.startswith("_"):
            yield child, (*owners, child.name), "class"
            yield from _definitions(child, (*owners, child.name), "method")
        elif isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)) and not child.name.startswith("_"):
            yield child, (*owners, child.name), "property" if kind == "method" and _is_property(child) else kind
        elif isinstance(child, (ast.If, ast.Try, ast.With, ast.ExceptHandler)):
            yield from _definitions(child, owners, kind)


def _is_property(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Return whether a method is read like an attribute."""
    names = {getattr(decorator, "attr", getattr(decorator, "id", "")) for decorator in node.decorator_list}
    return not names.isdisjoint({"property", "cached_property"})


def _docstring(node: ast.Module | Definition) -> str | None:
    """Return the cleaned docstring, or None if there is none that reads the same everywhere."""
    written = ast.get_docstring(node, clean=False)
    if written is None or STRANGE_SPACE.search(written) or PLACEHOLDER.search(written):
        return None
    cleaned = inspect.cleandoc(written)
    return cleaned if len(cleaned) >= MIN_CHARS else None


def signature_of(node: Definition, lines: list[str]) -> str:
    """Return `def name(…) -> …` or `class Name(…)` as the source has it, in one line and without comments and the colon."""
    body = node.body[0]
    head = lines[node.lineno - 1 : body.lineno]
    if body.lineno == node.lineno:
        head[-1] = head[-1].encode()[: body.col_offset].decode()
    else:
        head[-1] = ""
    head[0] = head[0].encode()[node.col_offset :].decode()

    text = _TOKENS.sub(lambda match: match[1] or " ", "\n".join(head)).strip().removesuffix(":").rstrip()
    return text.replace("( ", "(").replace(", )", ")").replace(",)", ")").replace(" )", ")")
