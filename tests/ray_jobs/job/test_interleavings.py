"""Two jobs with one configuration end with whole, equal artifacts and a whole index, in whatever order their operations come.

Every order is run in which jobs are interrupted a few times (most races need one or two interruptions), on a folder and on an object store;
then orders at random, with jobs that are killed. `python -m benchmarks.interleavings` runs more of them.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from tempfile import mkdtemp

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diversity.artifact import Artifact, Storage
from ray_jobs.job.index import Index
from tests.storages import Killed, Objects, Turns, WatchedStorage, content, schedules

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


@pytest.mark.parametrize("kind", KINDS)
def test_every_order_of_one_interruption_ends_whole(kind: str) -> None:
    assert every_order(kind, (seal, seal), 1, entered=False) > 40
    assert every_order(kind, (enter, enter), 1, sealed=False) > 40
    assert every_order(kind, (seal, seal, read), 0, entered=False) >= 6


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    order=st.lists(st.integers(0, 3), max_size=400),
    deaths=st.dictionaries(st.integers(0, 1), st.integers(0, 90)),
)
def test_orders_at_random_with_jobs_that_are_killed_end_whole(kind: str, order: list[int], deaths: dict[int, int]) -> None:
    """Two jobs may be killed at any operation; a third, which a person submits meanwhile, ends well, and a reader never sees a half."""
    jobs = (seal_and_enter, seal_and_enter, seal_and_enter, read)
    turns, storage = in_turns(kind, jobs, order, deaths)
    try:
        assert {type(error) for error in turns.errors.values()} <= {Killed} and turns.errors.keys() <= deaths.keys()
        for number in turns.errors:
            seal_and_enter(storage, number)  # submitted again
        check(storage, (0, 1, 2))
    finally:
        remove(storage)


@pytest.mark.parametrize("kind", KINDS)
def test_the_watch_sees_a_race_where_there_is_one(kind: str) -> None:
    """The former way, one folder for all, mixes under some order: the orders that are run would tell."""

    def mix(storage: Storage, writer: int) -> None:
        for part in range(1 + writer):
            storage.write_bytes(f"corpus/f/data/{part}", bytes([writer]))
        for name in ("rejected/0", "rows"):
            storage.write_bytes(f"corpus/f/{name}", bytes([writer]))
        storage.write_bytes("corpus/f/manifest.json", json.dumps({"by": writer, "parts": 1 + writer}).encode())

    with pytest.raises(AssertionError, match="in the order"):
        every_order(kind, (mix, mix), 1, entered=False)
