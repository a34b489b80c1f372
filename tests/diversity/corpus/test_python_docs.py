"""The built-in corpus: real docstrings, one sample each, the same on every Python."""

from __future__ import annotations

import ast
import inspect
import json
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from diversity.corpus.files import ReadError
from diversity.corpus.python_docs import builder
from diversity.corpus.python_docs.builder import PACKAGES, PythonDocs, content_hash, installed_versions, rows_of
from diversity.corpus.python_docs.docstrings import Documented, _objects_of, documented_objects, signature_of
from diversity.corpus.python_docs.instructions import FORMS, instruction_of

ROOT = Path(builder.__file__).resolve().parents[3]
FEW = ("networkx", "pydantic")


@pytest.fixture(scope="module")
def rows() -> list[dict[str, str]]:
    return list(PythonDocs().rows())


def test_content_is_the_recorded_one(rows: list[dict[str, str]]) -> None:
    if installed_versions() != builder.RECORDED_VERSIONS:
        pytest.skip(f"other versions than the recorded ones are installed: {installed_versions()}")
    assert content_hash(rows) == (builder.RECORDED_SAMPLES, builder.RECORDED_HASH)


def test_recorded_versions_are_the_pinned_ones() -> None:
    pinned = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    pinned = {name.lower().replace("_", "-"): version for name, version in pinned.items()}
    assert {name: pinned[distribution] for name, distribution in PACKAGES.items()} == builder.RECORDED_VERSIONS


def test_enough_and_each_docstring_once(rows: list[dict[str, str]]) -> None:
    assert len(rows) >= 15_000
    assert len({row["response"] for row in rows}) == len(rows)
    assert all(row["instruction"].strip() and len(row["response"]) >= 30 for row in rows)
    by_package = Counter(row["source"].split(".")[0] for row in rows)
    assert by_package.keys() == PACKAGES.keys() and min(by_package.values()) > 200
    # Modules are small enough that 2% of the samples can be held out as whole ones.
    assert Counter(row["source"] for row in rows).most_common(1)[0][1] < 0.1 * len(rows)


def test_instructions_vary_and_are_filled_in(rows: list[dict[str, str]]) -> None:
    starts = Counter(" ".join(row["instruction"].split()[:2]) for row in rows)
    assert len(starts) > 30 and starts.most_common(1)[0][1] < 0.2 * len(rows)
    left_open = [row["instruction"] for row in rows if any(f"{{{name}}}" in row["instruction"] for name in ("path", "name", "signature"))]
    assert not left_open
    assert len({row["instruction"] for row in rows}) > 0.98 * len(rows)


def interpreter_of(version: str) -> str | None:
    """Return a Python of that version that starts."""
    found = [shutil.which(f"python{version}"), *sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python"))]
    for path in filter(None, found):
        if subprocess.run([path, "-c", "pass"], capture_output=True, check=False).returncode == 0:
            return str(path)
    return None


@pytest.fixture(scope="module")
def few() -> tuple[int, str]:
    return content_hash(rows_of(FEW))


@pytest.mark.parametrize("version", ["3.11", "3.12", "3.13"])
def test_other_pythons_build_the_same(version: str, few: tuple[int, str]) -> None:
    """The builder under another interpreter, on the same source files (whose compiled parts it can't and needn't load)."""
    interpreter = interpreter_of(version)
    if interpreter is None:
        pytest.skip(f"Python {version} is not installed here")
    script = """
import json, sys, types
root, site, packages = sys.argv[1], sys.argv[2], sys.argv[3:]
sys.path.append(site)
for name in ("diversity", "diversity.corpus", "diversity.corpus.python_docs"):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [root + "/" + name.replace(".", "/")]
for name, needed in (("diversity.artifact", "digest"), ("diversity.corpus.files", "ReadError")):
    sys.modules[name] = types.ModuleType(name)
    setattr(sys.modules[name], needed, None)
from diversity.corpus.python_docs.builder import content_hash, rows_of
print(json.dumps([sys.version_info[:2], content_hash(rows_of(packages))]))
"""
    site = str(Path(pytest.__file__).resolve().parent.parent)
    done = subprocess.run(
        [interpreter, "-S", "-c", script, str(ROOT), site, *FEW], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    ran, told = json.loads(done.stdout)
    assert ".".join(map(str, ran)) == version
    assert tuple(told) == few


def test_nothing_is_imported() -> None:
    script = "import sys; from diversity.corpus.python_docs.builder import rows_of; list(rows_of(['networkx'])); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True)
    assert not {"networkx", "torch", "transformers"} & set(done.stdout.split())


SOURCE = '''"""A module that explains itself in one line."""
import os

def plain(a, b=(1, "x:y"),  # noqa: a comment, with a colon:
          *args: "List[int]", key=":)", **kw) -> dict[str, int]:
    """Return what plain functions return, always.

        Indented by four.
    """

class Outer(Base[int], metaclass=Meta):
    """An outer class that has documented members."""

    @property
    def size(self): "The size of the thing, in bytes as always."

    async def fetch(
        self,
        url: str,
    ) -> bytes:
        """Fetch what is there and return it as bytes."""
        def inner():
            """A function inside a function is nobody's interface."""

    class Inner:
        """A class inside of a class, for good measure."""

    def _private(self):
        """Private methods are left out of the corpus."""

if os.name == "nt":
    def branch(x): """The first of two definitions is the one that counts."""
else:
    def branch(y):
        """The second of two definitions is left out of it."""

def placeholder():
    """Filled in later: %(params)s and nothing else here."""

def strange():
    """Holds a form feed \x0c and so reads differently elsewhere."""

def short():
    """Too short."""
'''


@pytest.fixture
def objects(tmp_path: Path) -> dict[str, Documented]:
    path = tmp_path / "demo.py"
    path.write_bytes(SOURCE.replace("\n", "\r\n").encode())
    return {item.qualified: item for item in _objects_of(path, "pkg.demo")}


def test_which_objects_are_taken(objects: dict[str, Documented]) -> None:
    assert {name: item.kind for name, item in objects.items()} == {
        "pkg.demo": "module",
        "pkg.demo.plain": "function",
        "pkg.demo.Outer": "class",
        "pkg.demo.Outer.size": "property",
        "pkg.demo.Outer.fetch": "method",
        "pkg.demo.Outer.Inner": "class",
        "pkg.demo.branch": "function",
    }
    assert objects["pkg.demo.plain"].docstring == "Return what plain functions return, always.\n\nIndented by four."
    assert objects["pkg.demo.branch"].docstring.startswith("The first")


def test_signatures_are_the_sources(objects: dict[str, Documented]) -> None:
    assert objects["pkg.demo.plain"].signature == 'def plain(a, b=(1, "x:y"), *args: "List[int]", key=":)", **kw) -> dict[str, int]'
    assert objects["pkg.demo.Outer"].signature == "class Outer(Base[int], metaclass=Meta)"
    assert objects["pkg.demo.Outer.size"].signature == "def size(self)"
    assert objects["pkg.demo.Outer.fetch"].signature == "async def fetch(self, url: str) -> bytes"
    assert objects["pkg.demo.branch"].signature == "def branch(x)"


def test_signatures_of_a_real_package_parse_to_the_same_arguments() -> None:
    checked = 0
    for path in sorted(Path(inspect.getfile(json)).parent.glob("*.py")):
        source = path.read_text()
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                again = ast.parse(signature_of(node, source.split("\n")) + ": pass").body[0]
                for part in ("args", "returns", "bases", "keywords"):
                    ours, theirs = getattr(again, part, None), getattr(node, part, None)
                    assert ast.dump(ours) == ast.dump(theirs) if isinstance(ours, ast.AST) else len(ours or []) == len(theirs or [])
                checked += 1
    assert checked > 20


def test_every_form_can_be_filled_and_its_choice_is_the_names() -> None:
    docstring = "Do it.\n\nArgs:\n    a: one\n\nReturns:\n    b\n\nRaises:\n    C\n\nAttributes:\n    d\n\n>>> e"
    for kind, forms in FORMS.items():
        name = "" if kind == "module" else "Owner.thing"
        made = {instruction_of(f"m.{i}", "pkg._private.mod", name, kind, "def thing(a)", docstring) for i in range(600)}
        assert len(made) == len(forms)
        assert not any("_private" in text for text in made)
    assert instruction_of("m.x", "m", "x", "function", "def x()", "No sections in this.") == instruction_of(
        "m.x", "m", "x", "function", "def x()", "No sections in that."
    )


def test_forms_ask_only_for_what_the_docstring_has() -> None:
    bare = {instruction_of(f"m.{i}", "m", "x", "function", "", "Nothing but a sentence here.") for i in range(600)}
    assert not any(word in text for text in bare for word in ("parameter", "return", "example", "```"))


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(builder.PACKAGES, "no_such_package", "no-such-package")
    with pytest.raises(ReadError, match="no-such-package"):
        PythonDocs().rows()
    with pytest.raises(ModuleNotFoundError):
        list(documented_objects(["no_such_package"]))


def test_the_digest_names_versions_and_reads_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    before = PythonDocs().digest()
    assert before == PythonDocs().digest()
    monkeypatch.setattr(builder, "VERSION", 10**6)
    assert PythonDocs().digest() != before
