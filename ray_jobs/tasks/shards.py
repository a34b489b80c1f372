"""Shards of a typing as Ray actors: each reads its rows of a sealed profile and answers `diversity.selection.sharded`.

    shards = shards_of(profile, count=16)
    typing = prune_sharded(shards, content_priorities(contents))
    rows, chosen_for = select_sharded(typing, k, size, subset_seed)

An actor holds its rows for as long as `shards` lives; no row leaves it but those that the coordinator, this process, asks for.
`build_datasets` chooses so with `resources.shards`, wherever `in_shards` says that it can; the datasets are the same.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from diversity.artifact import Artifact
from diversity.cell import Cell, GridConfig, typing_parts
from diversity.config import UserError
from diversity.keys import content_priorities, sample_keys
from diversity.selection.levels import LevelPlan
from diversity.selection.shard import Shard
from diversity.selection.sharded import ShardedTyping, plan_sharded, prune_sharded
from diversity.selection.sharded_picks import count_covered, most_covered_sharded, random_coverage_sharded, select_sharded
from diversity.selection.strategies import Picks, SelectionConfig, closure_of
from diversity.selection.strategies.typed import picks_of
from diversity.typings.incidence import Incidence
from ray_jobs.tasks.building import Sources
from ray_jobs.tasks.corpus_rows import CorpusRows


class ProfileShard(Shard):
    """The rows of a sealed profile from one number to another."""

    def __init__(self, rows: CorpusRows, start: int, stop: int, n_types: int) -> None:
        """Read them; the profile's rows are numbered as the corpus's are."""
        table = rows.read(start, stop, ["sample_id", "types"])
        incidence = Incidence.from_lists(table.column("types"), n_types)
        super().__init__(incidence, sample_keys(table.column("sample_id")), np.arange(start, stop))


@dataclass(frozen=True)
class RayShards:
    """Shards in Ray actors."""

    actors: tuple[Any, ...]

    def each(self, method: str, *arguments: Any) -> list[Any]:
        """Call a method of every shard, all at once; arrays go to the object store once, not once a shard."""
        sent = [ray.put(argument) if isinstance(argument, np.ndarray) else argument for argument in arguments]
        return ray.get([getattr(actor, method).remote(*sent) for actor in self.actors])


def shards_of(profile: Artifact, count: int) -> RayShards:
    """Start the actors of a typing, each with the same number of consecutive rows, one fewer in some.

    Args:
        profile: a sealed typing.
        count: at least 1; no more than there are rows.
    """
    rows = CorpusRows.of(profile)
    count = min(count, max(1, len(rows)))
    bounds = [len(rows) * part // count for part in range(count + 1)]
    n_types = int(profile.manifest["M"])
    # No core is reserved: a coordinator that held one while it waits for its actors' could wait for ever. Memory is, twice what a shard
    # keeps, since it is read and turned over there; Ray spreads evenly only what asks for something.
    memory = 2 * (8 * int(profile.manifest["nnz"]) + 29 * len(rows)) // count
    actor: Any = ray.remote(ProfileShard).options(num_cpus=0, memory=memory, scheduling_strategy="SPREAD")
    return RayShards(tuple(actor.remote(rows, start, stop, n_types) for start, stop in zip(bounds, bounds[1:], strict=False)))


def in_shards(cell: Cell, selection: SelectionConfig) -> bool:
    """Return whether a cell can be chosen from shards: a typed strategy, peeled, without quotas or token budgets."""
    plain = selection.algorithm == selection.type_order == "peel" and cell.control in ("none", "length-window")
    if not plain or cell.typing is None:
        return False
    return not (typing_parts(cell.typing)[1] == "macro" and selection.outliers == "nearest")


def choose_from_shards(sources: Sources, cells: Sequence[Cell], count: int, seal: bool) -> list[Picks] | Picks:
    """Return the picks of cells of one typing, as `building.choose` does.

    Args:
        sources: what they are made from.
        cells: of one typing, each such that `in_shards`.
        count: of shards.
        seal: whether the typing's peel is sealed here, where it is not sealed yet; else another task does it.

    Raises:
        UserError: a size or level can't be had.
    """
    name = cells[0].strategy
    types = sources.profiles[name].read("types", columns=["type", "content", "label", "df"]).sort_by("type")
    tie = content_priorities(types.column("content").to_pylist())
    typing = prune_sharded(shards_of(sources.profiles[name], count), tie, closure_of(name, sources.selection))
    if seal and not sources.peels[name].sealed:
        _seal_peel(sources, name, typing, types)
    chooser = _Chooser(typing, sources.selection, sources.grid)
    picks = []
    for cell in cells:
        try:
            picks.append(chooser.pick(cell))
        except UserError as error:
            raise type(error)(f"{cell.name}: {error}") from None
    return picks if len(picks) > 1 else picks[0]


class _Chooser:
    """Chooses cells of one typing; what no subset seed changes is found once."""

    def __init__(self, typing: ShardedTyping, selection: SelectionConfig, grid: GridConfig) -> None:
        self._typing, self._selection, self._grid = typing, selection, grid
        self._plans: dict[int, LevelPlan] = {}
        self._most = functools.cache(lambda k, size: most_covered_sharded(typing, k, size))
        self._at_random = functools.cache(lambda k, size: random_coverage_sharded(typing, k, size))

    def pick(self, cell: Cell) -> Picks:
        """Return the picks of a cell."""
        assert cell.level is not None
        plan = self._plan(cell.size)
        level = plan.at(cell.level)
        k = level.k_realised
        rows, reasons = select_sharded(self._typing, k, cell.size, cell.subset_seed, self._selection.objective)
        covered = count_covered(self._typing, k, rows)
        bound = k if covered == k else self._most(k, cell.size)
        return picks_of(plan, level, rows, reasons, self._typing.position, (covered, bound, self._at_random(k, cell.size)))

    def _plan(self, size: int) -> LevelPlan:
        if size not in self._plans:
            sizes = self._grid.sizes if self._selection.kmin_from == "largest" else [size]
            fractions = sorted(set(self._grid.fractions))
            self._plans.update(plan_sharded(self._typing, sizes, fractions, self._selection.rho, self._selection.kmin_from))
        return self._plans[size]


def _seal_peel(sources: Sources, name: str, typing: ShardedTyping, types: pa.Table) -> None:
    """Seal the peel as `building.prune_typing` does, births in a part for each shard."""
    peel, manifest = sources.peels[name], sources.profiles[name].manifest
    position = pa.array(typing.position, pa.int32())
    target = peel.begin()
    target.write(types.append_column("position", position).select(["type", "content", "position", "label", "df"]))
    for part, births in enumerate(typing.shards.each("pool_entries")):
        target.write(pa.table({"birth": pa.array(births, pa.int32())}), f"births/part-{part:05d}.parquet")
    target.seal({"typing": name, "M": len(typing.position), "nnz": manifest["nnz"], "algorithm": sources.selection.algorithm})
