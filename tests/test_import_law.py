"""Which file may import which, read from the syntax trees: three packages, their rooms, and no circle of files."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FORBIDDEN = {
    "diversity": {"training", "ray_jobs", "ray", "deepspeed"},
    "training": {"ray_jobs"},
    "ray_jobs": set(),
}
RAY_IN_TRAINING = {"training/ray_worker.py", "training/ray_signals.py"}

# What a room may import beside itself and the files on top of diversity. A room that isn't named here is an error.
ROOMS = {
    "diversity.corpus": {"llm"},
    "diversity.llm": set(),
    "diversity.effects": set(),
    "diversity.judging": {"llm", "corpus", "effects"},
    "diversity.typings": {"corpus", "llm"},
    "diversity.selection": {"corpus", "typings"},
    "diversity.datasets": {"corpus", "typings", "selection"},
    "diversity.audit": {"corpus", "typings", "selection", "datasets"},
    "diversity.metrics": {"corpus", "typings", "selection", "datasets"},
    "ray_jobs.report": set(),
    "ray_jobs.job": {"report"},
    "ray_jobs.tasks": {"job", "report"},
    "ray_jobs.tools": {"stages", "tasks", "job", "report"},
}
STAGES = {"tasks", "job", "report"}  # what a file of ray_jobs that is in no room may import
ON_TOP = {"artifact", "cell", "config", "filesystems", "keys", "publishing"}  # may import each other, and no room
Graph = dict[str, set[str]]


def files(package: str, root: Path = ROOT) -> list[Path]:
    return sorted((root / package).rglob("*.py"))


def module_of(path: Path, root: Path = ROOT) -> str:
    return ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")


def imported(tree: ast.AST) -> set[str]:
    """Return what is imported, every `from a import b` as a.b: b may be a module."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def tops(names: set[str]) -> set[str]:
    return {name.split(".")[0] for name in names}


def graph_of(root: Path) -> Graph:
    """Return each of our modules with those that it imports, anywhere in the file."""
    paths = {module_of(path, root): path for package in FORBIDDEN for path in files(package, root)}
    graph = {}
    for module, path in paths.items():
        names = imported(ast.parse(path.read_text("utf-8")))
        ours = {name if name in paths else name.rpartition(".")[0] for name in names}
        graph[module] = (ours & paths.keys()) - {module}
    return graph


def room_of(module: str) -> tuple[str, str]:
    """Return (package, room): `diversity` has files on top, `ray_jobs` stages."""
    package, *rest = module.split(".")
    if f"{package}.{rest[0] if rest else ''}" in ROOMS or len(rest) > 1:
        return package, rest[0]
    return package, "stages" if package == "ray_jobs" else "top"


def backward_arrows(graph: Mapping[str, set[str]]) -> Iterator[tuple[str, str]]:
    """Yield (importing, imported) where a room imports one that lies behind it."""
    for module, names in graph.items():
        package, room = room_of(module)
        if package == "training" or module in ("diversity.notebook", "ray_jobs.__main__"):
            continue
        allowed = STAGES if room == "stages" else ON_TOP if room == "top" else ROOMS[f"{package}.{room}"]
        for name in names:
            other, its_room = room_of(name)
            if other == package and its_room not in {room, "top", *allowed}:
                yield module, name


def circle(graph: Mapping[str, set[str]]) -> list[str] | None:
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return None


@pytest.mark.parametrize("package", FORBIDDEN)
def test_no_arrow_points_to_the_wrong_package(package: str) -> None:
    wrong = [(path, bad) for path in files(package) if (bad := tops(imported(ast.parse(path.read_text("utf-8")))) & FORBIDDEN[package])]
    assert files(package) and not wrong


def test_arrows_between_rooms_run_one_way() -> None:
    assert not list(backward_arrows(graph_of(ROOT)))


def test_no_files_import_each_other_in_a_circle() -> None:
    assert circle(graph_of(ROOT)) is None


def test_a_planted_backward_arrow_and_a_planted_circle_are_found(tmp_path: Path) -> None:
    for name, text in {
        "diversity/corpus/samples.py": "from diversity.selection import peel\n",
        "diversity/selection/peel.py": "import diversity.keys\n",
        "diversity/keys.py": "def late():\n    from diversity.typings import tokens\n",
        "diversity/typings/tokens.py": "from diversity.typings.tags import Tags\n",
        "diversity/typings/tags.py": "from diversity.typings import tokens\n",
        "ray_jobs/ingest.py": "from ray_jobs.tools.pick import main\n",
        "ray_jobs/tools/pick.py": "",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    graph = graph_of(tmp_path)
    assert set(backward_arrows(graph)) == {
        ("diversity.corpus.samples", "diversity.selection.peel"),
        ("diversity.keys", "diversity.typings.tokens"),
        ("ray_jobs.ingest", "ray_jobs.tools.pick"),
    }
    assert set(circle(graph) or ()) == {"diversity.typings.tokens", "diversity.typings.tags"}


def test_ray_is_named_in_one_file_of_training() -> None:
    naming = {str(p.relative_to(ROOT)) for p in files("training") if "ray" in tops(imported(ast.parse(p.read_text("utf-8"))))}
    assert naming <= RAY_IN_TRAINING


def test_nothing_imports_ray_air() -> None:
    for package in FORBIDDEN:
        for path in files(package):
            assert not any(name.startswith("ray.air") for name in imported(ast.parse(path.read_text("utf-8")))), path


def test_no_module_is_named_like_one_of_the_standard_library() -> None:
    named = {path.stem for package in FORBIDDEN for path in files(package)} - {"__init__", "__main__"}
    assert not named & sys.stdlib_module_names


def test_every_room_says_what_comes_in_and_what_goes_out() -> None:
    for room in ROOMS:
        told = ast.get_docstring(ast.parse((ROOT / room.replace(".", "/") / "__init__.py").read_text("utf-8"))) or ""
        assert len(told.split(". ")) >= 2 and "Open `" in told, room


def test_diversity_imports_neither_torch_nor_ray_nor_anything_heavy() -> None:
    """A researcher's notebook opens every module of diversity without loading what only some of them need."""
    modules = [module_of(path) for path in files("diversity")]
    heavy = ["torch", "ray", "transformers", "faiss", "umap", "fast_hdbscan", "sklearn", "wordllama", "deepspeed"]
    code = f"import importlib, sys\nfor m in {modules!r}: importlib.import_module(m)\nprint([h for h in {heavy!r} if h in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_configuration_is_read_without_torch() -> None:
    code = "import sys, ray_jobs.job.experiment; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
