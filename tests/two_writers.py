"""Two jobs that make the same artifact and enter it into an index, and what must be true once they are done, in whatever order."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from tempfile import mkdtemp

from diversity.artifact import Artifact, Storage
from ray_jobs.job.index import Index
from tests.storages import Objects, Turns, WatchedStorage, content, schedules

KINDS = ("folder", "objects")
Job = Callable[[Storage, int], None]


def seal(storage: Storage, writer: int) -> None:
    """Make an artifact out of this writer's files alone, as a stage does; writers cut it into parts of their own."""
    artifact = storage.artifact("corpus", "f")
    if artifact.sealed:
        return
    target = artifact.begin()
    for name in (*(f"data/{part}" for part in range(1 + writer)), "rejected/0", "rows"):
        with target.open_output(name) as stream:
            stream.write(bytes([writer]))
    target.seal({"by": writer, "parts": 1 + writer})


def enter(storage: Storage, writer: int) -> None:
    """Enter an artifact that both enter, and one of this writer's own."""
    index = Index(storage, "e")
    index.add("corpus", None, storage.artifact("corpus", "f"))
    index.add("datasets", f"cell-{writer}@x", storage.artifact("datasets", f"d{writer}"))


def seal_and_enter(storage: Storage, writer: int) -> None:
    seal(storage, writer)
    enter(storage, writer)


def read(storage: Storage, writer: int) -> None:
    """Read what is sealed, as a stage that comes after does."""
    artifact = storage.artifact("corpus", "f")
    if artifact.sealed:
        assert whole(storage, artifact)


def whole(storage: Storage, artifact: Artifact) -> bool:
    """Return whether an artifact is of one writer, all of it and nothing else."""
    place = artifact.locate()
    files = {path.removeprefix(f"{place}/"): found for path, found in content(storage, place).items()}
    found = {name: bytes_ for name, bytes_ in files.items() if not name.startswith(".") and name != "manifest.json"}
    by = artifact.manifest["by"]
    names = {*(f"data/{part}" for part in range(artifact.manifest["parts"])), "rejected/0", "rows"}
    return found == dict.fromkeys(names, bytes([by]))


def in_turns(kind: str, jobs: Sequence[Job], order: Sequence[int], deaths: dict[int, int] | None = None) -> tuple[Turns, Storage]:
    """Run the jobs in an order of turns, each on its own view of one empty storage; return the run, and the storage to look at."""
    turns, objects = Turns(order, dict(deaths or {})), Objects() if kind == "objects" else None
    root = "bucket/runs" if objects is not None else mkdtemp(prefix="turns-")
    storages = [WatchedStorage(root, turns.before, objects) for _ in jobs]
    turns.run([lambda number=number, job=job: job(storages[number], number) for number, job in enumerate(jobs)])
    return turns, WatchedStorage(root, lambda operation, path: None, objects)


def check(storage: Storage, writers: Sequence[int], *, sealed: bool = True, entered: bool = True) -> None:
    """Hold a storage against what is promised once these writers are done."""
    if sealed:
        artifact = storage.artifact("corpus", "f")
        assert artifact.sealed and whole(storage, artifact)
    if entered:
        expected = {"corpus": "corpus/f", "datasets": {f"cell-{writer}@x": f"datasets/d{writer}" for writer in writers}}
        assert Index(storage, "e").read() == expected
        assert json.loads(storage.read_bytes("experiments/e/index.json"))["artifacts"] == expected, "the view is as whole as the entries"


def remove(storage: Storage) -> None:
    if storage.uri.startswith("/"):
        shutil.rmtree(storage.uri)


def every_order(kind: str, jobs: Sequence[Job], preemptions: int, **what: bool) -> int:
    """Run the jobs in every order of so many interruptions, hold each end against the promise, and return how many orders there are."""
    storages: list[Storage] = []

    def run(order: Sequence[int]) -> Turns:
        turns, storage = in_turns(kind, jobs, order)
        storages.append(storage)
        return turns

    count = 0
    writers = [number for number, job in enumerate(jobs) if job is not read]
    for turns in schedules(run, preemptions):
        order = [step.actor for step in turns.steps]
        assert not turns.errors, (turns.errors, order)
        try:
            check(storages[-1], writers, **what)
        except AssertionError as error:
            raise AssertionError(f"in the order {order}: {error}") from error
        remove(storages.pop())
        count += 1
    return count
