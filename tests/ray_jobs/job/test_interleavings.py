"""Two jobs with one configuration end with whole, equal artifacts and a whole index, in whatever order their operations come.

Every order is run in which jobs are interrupted once, on a folder and on an object store; then orders at random, with jobs that are killed.
`python -m benchmarks.interleavings` runs those of more interruptions.
"""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diversity.artifact import Storage
from tests.storages import Killed
from tests.two_writers import KINDS, check, enter, every_order, in_turns, read, remove, seal, seal_and_enter


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
