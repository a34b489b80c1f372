"""What the cluster tests share. They are no part of `make test`: `make cluster-test` runs them, one Ray cluster after the other."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
TOOLS = Path(os.environ.get("CLUSTER_TOOLS", ROOT / ".venv" / "cluster-tools"))  # made by `make cluster-tools`

if sys.platform != "linux":
    collect_ignore_glob = ["*"]


@pytest.fixture
def tools() -> Path:
    """Return the `bin` of the environment with moto, boto3 and hadolint, which is apart because moto wants other versions than we do."""
    if not (TOOLS / "bin" / "hadolint").exists():
        pytest.skip("needs the environment of `make cluster-tools` (moto, boto3, hadolint)")
    return TOOLS / "bin"


@pytest.fixture
def root() -> None:
    """Skip where we aren't root: mounts and network namespaces need it."""
    if os.geteuid() != 0:
        pytest.skip("needs root, for mounts and network namespaces")


@pytest.fixture
def table(capsys: pytest.CaptureFixture[str]) -> Callable[..., None]:
    """Return what prints a table past pytest's capture."""

    def show(title: str, rows: Sequence[dict[str, Any]]) -> None:
        with capsys.disabled():
            print("\n" + "\n".join(lines(title, rows)))

    return show


def lines(title: str, rows: Sequence[dict[str, Any]]) -> Iterable[str]:
    """Return a table's lines, in the form of Markdown."""
    names = list(rows[0])
    cells = [[_shown(row[name]) for name in names] for row in rows]
    return [title, "| " + " | ".join(names) + " |", "|---" * len(names) + "|", *("| " + " | ".join(row) + " |" for row in cells)]


def _shown(value: Any) -> str:
    return f"{value:.1f}" if isinstance(value, float) else str(value)
