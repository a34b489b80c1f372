"""Shards of a typing as Ray actors: each reads its rows of a sealed profile and answers `diversity.sharded`.

    shards = shards_of(profile, count=16)
    typing = prune_sharded(shards, content_priorities(contents))
    rows, chosen_for = select_sharded(typing, k, size, subset_seed)

An actor holds its rows for as long as `shards` lives; no row leaves it but those that the coordinator, this process, asks for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import ray

from diversity.artifact import Artifact
from diversity.incidence import Incidence
from diversity.keys import sample_keys
from diversity.shard import Shard
from ray_jobs.corpus_rows import CorpusRows


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
        count: at least 1.
    """
    rows = CorpusRows.of(profile)
    bounds = [len(rows) * part // count for part in range(count + 1)]
    n_types = int(profile.manifest["M"])
    actor = ray.remote(ProfileShard)
    return RayShards(tuple(actor.remote(rows, start, stop, n_types) for start, stop in zip(bounds, bounds[1:], strict=False)))
