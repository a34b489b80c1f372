"""Two jobs with one configuration in every order of their storage operations: `python -m benchmarks.interleavings [--interruptions 2]`.

A deterministic scheduler lets two jobs, and a reader, take turns, one storage operation each, and runs every order in which a job is
interrupted at most so many times while it could go on. After each order the artifact must be whole and of one writer, and no index entry
lost. A folder has renames; an object store, in memory, has whole puts and no renames.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence

from benchmarks.corpora import print_table
from tests.two_writers import KINDS, enter, every_order, read, seal

WHAT = {
    "two seal one artifact": ((seal, seal), {"entered": False}, 0),
    "two seal, one reads": ((seal, seal, read), {"entered": False}, 1),
    "two enter into one index": ((enter, enter), {"sealed": False}, 0),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run every order, and print how many there were; an order that breaks the promise is an error that tells it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--interruptions", type=int, default=2, help="of all jobs together; one fewer where three take turns")
    given = parser.parse_args(argv)

    def rows() -> Iterator[list[str]]:
        for kind in KINDS:
            for what, (jobs, promise, fewer) in WHAT.items():
                started = time.monotonic()
                interruptions = max(0, given.interruptions - fewer)
                orders = every_order(kind, jobs, interruptions, **promise)
                yield [kind, what, str(interruptions), f"{orders:,}", "all", f"{time.monotonic() - started:.0f}"]

    print_table("every order of storage operations", ["storage", "jobs", "interruptions", "orders", "whole", "s"], rows())
    return 0


if __name__ == "__main__":
    sys.exit(main())
