"""`builtin:python-docs`: real instruction–response pairs out of the docstrings of packages that are installed anyway.

A response is the docstring of one documented object (module, class, function or method), as `inspect.cleandoc` shows it. Its instruction
is one of those in `instructions`, chosen by the hash of the object's qualified name among those that its docstring can answer.
The source files are found without importing the packages and read with `ast`, so that nothing of them runs. A sample's `source` is the
first two parts of its module's name (`sklearn.cluster`): held-out samples of this corpus are split by it, because methods of one class
say much the same.

The same content on Python 3.11 to 3.13 and on every platform, given the same versions: the packages' `.py` files don't differ between
their wheels (but for line ends, and for the files that `docstrings` leaves out), signatures are taken from the source instead of
`ast.unparse`, and docstrings with white space that versions of `cleandoc` treat differently are left out.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterable, Iterator
from hashlib import blake2b

from diversity.artifact import digest
from diversity.corpus.files import ReadError
from diversity.corpus.python_docs.docstrings import documented_objects
from diversity.corpus.python_docs.instructions import instruction_of

VERSION = 1

# Import name -> distribution. All are dependencies of this project, and their .py files are the same in every wheel of a version.
PACKAGES = {
    "accelerate": "accelerate",
    "deepspeed": "deepspeed",
    "huggingface_hub": "huggingface-hub",
    "matplotlib": "matplotlib",
    "networkx": "networkx",
    "numpy": "numpy",
    "pandas": "pandas",
    "peft": "peft",
    "pydantic": "pydantic",
    "scipy": "scipy",
    "sklearn": "scikit-learn",
    "sympy": "sympy",
    "transformers": "transformers",
}

# What the builder gives for these versions, those of constraints.txt, on each of Python 3.11, 3.12 and 3.13.
RECORDED_VERSIONS = {
    "accelerate": "1.15.0",
    "deepspeed": "0.19.8",
    "huggingface_hub": "2.4.0",
    "matplotlib": "3.11.2",
    "networkx": "3.6.1",
    "numpy": "2.4.6",
    "pandas": "3.1.1",
    "peft": "0.21.2",
    "pydantic": "2.14.3",
    "scipy": "1.17.1",
    "sklearn": "1.9.1",
    "sympy": "1.14.0",
    "transformers": "5.23.0",
}
RECORDED_SAMPLES = 25_542
RECORDED_HASH = "2601942f7bea9645188473228bbc1265"


class PythonDocs:
    """The corpus as ingest sees it: what names its content, and its rows."""

    name = "python-docs"
    group_by = "source"

    def digest(self) -> str:
        """Return what names the content without reading it: the builder's version, and the packages' names and versions."""
        return digest({"corpus": self.name, "version": VERSION, "packages": installed_versions()})

    def rows(self) -> Iterator[dict[str, str]]:
        """Yield the rows, sorted by qualified name.

        Raises:
            ReadError: a package isn't installed.
        """
        installed_versions()
        return rows_of(PACKAGES)


def rows_of(packages: Iterable[str]) -> Iterator[dict[str, str]]:
    """Yield the rows of some packages, sorted by qualified name; of identical docstrings only the first."""
    seen: set[str] = set()
    for item in sorted(documented_objects(packages), key=lambda item: item.qualified):
        if item.docstring in seen:
            continue
        seen.add(item.docstring)
        instruction = instruction_of(item.qualified, item.module, item.name, item.kind, item.signature, item.docstring)
        yield {"source": ".".join(item.module.split(".")[:2]), "instruction": instruction, "response": item.docstring}


def installed_versions() -> dict[str, str]:
    """Return the installed version of every package that is read.

    Raises:
        ReadError: one isn't installed.
    """
    try:
        return {name: importlib.metadata.version(distribution) for name, distribution in PACKAGES.items()}
    except importlib.metadata.PackageNotFoundError as error:
        raise ReadError(f"builtin:python-docs reads the source of {error.name}, which is not installed") from None


def content_hash(rows: Iterable[dict[str, str]]) -> tuple[int, str]:
    """Return (number of rows, blake2b-128 of their sources, instructions and responses in the order given)."""
    state = blake2b(digest_size=16)
    count = 0
    for row in rows:
        count += 1
        state.update("\x00".join((row["source"], row["instruction"], row["response"], "")).encode())
    return count, state.hexdigest()
