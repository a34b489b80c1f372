"""Ray's tasks and data done at once, in this process, one after the other: for tests that count storage operations in a fixed order.

It is no stand-in for Ray where Ray itself is tested; what a stage writes, and in which order, is the stage's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import pyarrow as pa
import ray


@dataclass(frozen=True, eq=False)
class Ref:
    """What a task returned; like Ray's own, it is a key whatever it refers to."""

    value: Any


@dataclass(frozen=True)
class Task:
    """A function that is called where it is started."""

    function: Callable[..., Any]
    num_returns: int = 1

    def options(self, num_returns: int = 1, **ignored: Any) -> Task:
        return Task(self.function, num_returns)

    def remote(self, *arguments: Any, **named: Any) -> Any:
        result = self.function(*(_value(one) for one in arguments), **{name: _value(one) for name, one in named.items()})
        return Ref(result) if self.num_returns == 1 else [Ref(one) for one in result]


@dataclass(frozen=True)
class Rows:
    """A dataset of blocks of one row each."""

    blocks: Sequence[pa.Table]

    def map_batches(self, function: Any, fn_constructor_args: Sequence[Any] = (), **ignored: Any) -> Rows:
        call = function(*fn_constructor_args) if isinstance(function, type) else function
        results = [call(block) for block in self.blocks]
        return Rows([table for result in results for table in ([result] if isinstance(result, pa.Table) else result)])

    def iter_rows(self) -> Iterator[dict[str, Any]]:
        for block in self.blocks:
            yield from block.to_pylist()


def _value(one: Any) -> Any:
    return one.value if isinstance(one, Ref) else one


def _remote(function: Callable[..., Any] | None = None, **options: Any) -> Any:
    return Task(function) if function is not None else Task


def _get(refs: Any, **ignored: Any) -> Any:
    return [ref.value for ref in refs] if isinstance(refs, list) else refs.value


@contextmanager
def in_this_process() -> Iterator[None]:
    """Have `ray` do everything at once, here."""
    with (
        patch.multiple(
            ray,
            remote=_remote,
            get=_get,
            put=Ref,
            wait=lambda refs, num_returns=1, **ignored: (refs[:num_returns], refs[num_returns:]),
            cluster_resources=lambda: {"CPU": 2.0},
            is_initialized=lambda: True,
        ),
        patch.multiple(
            ray.data,
            from_items=lambda items, **ignored: Rows([pa.Table.from_pylist([item]) for item in items]),
            from_arrow=Rows,
        ),
    ):
        yield
