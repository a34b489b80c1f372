"""diversity <- training <- ray_jobs, and nothing else: read from the syntax trees."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FORBIDDEN = {
    "diversity": {"training", "ray_jobs", "ray", "deepspeed"},
    "training": {"ray_jobs"},
    "ray_jobs": set(),
}
RAY_IN_TRAINING = {"training/ray_worker.py"}


def files(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def imported(tree: ast.AST) -> set[str]:
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add(node.module or "")
    return names


def tops(names: set[str]) -> set[str]:
    return {name.split(".")[0] for name in names}


@pytest.mark.parametrize("package", FORBIDDEN)
def test_no_arrow_points_the_wrong_way(package: str) -> None:
    wrong = [(path, bad) for path in files(package) if (bad := tops(imported(ast.parse(path.read_text("utf-8")))) & FORBIDDEN[package])]
    assert files(package) and not wrong


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


def test_diversity_imports_neither_torch_nor_ray_nor_anything_heavy() -> None:
    """A researcher's notebook opens every module of diversity without loading what only some of them need."""
    modules = [".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in files("diversity")]
    heavy = ["torch", "ray", "transformers", "faiss", "umap", "fast_hdbscan", "sklearn", "wordllama", "deepspeed"]
    code = f"import importlib, sys\nfor m in {modules!r}: importlib.import_module(m)\nprint([h for h in {heavy!r} if h in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_configuration_is_read_without_torch() -> None:
    code = "import sys, ray_jobs.experiment; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
