"""Planning levels where k_max lies far below M: `python -m benchmarks.levels [--corpus PATH] [--size N …]`.

A small size can't cover all types, and covers are not monotone in k: the scan for k_max asks every k that no bound refutes. Left: each
question by a lazy queue over the pool of M, as it was. Right: by gains kept up to date, over a pool that shrinks with the scan.
Times are CPU seconds.
"""

from __future__ import annotations

import argparse
from fractions import Fraction
from pathlib import Path

import numpy as np

from benchmarks.corpora import generated, made_up_df, made_up_lengths, print_table, real_incidence, seconds, ties
from diversity.keys import priorities
from diversity.selection.controls import Control
from diversity.selection.cover import Taken, _cover_greedy, cover_rarest
from diversity.selection.levels import Planner
from diversity.selection.peel import TypedInputs, prune
from diversity.selection.pool import Pool, count_types
from diversity.typings.incidence import Incidence

SEVEN = [Fraction(j, 6) for j in range(7)]


class Before(Planner):
    """The scans with a lazy queue over the whole pool for every k."""

    def _look_at(self, pool: Pool) -> None:
        if not hasattr(self, "pool"):
            super()._look_at(pool)

    def cover(self, k: int, quota: np.ndarray) -> Taken | None:
        """Return a cover that fits, or None."""
        counts = count_types(self.pool, k)
        for attempt in (cover_rarest, _cover_greedy):
            found, reasons, fits = attempt(self.pool, k, counts, quota)
            if fits:
                return Taken(found, reasons)
        return None


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpus", type=Path)
    parser.add_argument("--n", type=int, default=50_000, help="samples of a generated corpus")
    parser.add_argument("--size", type=int, nargs="+", default=[1000])
    arguments = parser.parse_args(argv)
    rows = []
    compare("compiles", generated(3000, made_up_df(400), made_up_lengths()).used()[0], 100)
    for side in ("instruction", "response") if arguments.corpus else ("generated",):
        incidence = (
            real_incidence(arguments.corpus, side).used()[0]
            if arguments.corpus
            else generated(arguments.n, made_up_df(8000), made_up_lengths()).used()[0]
        )
        rows += [compare(side, incidence, size) for size in arguments.size]
    header = ["side", "n", "M", "nnz", "size", "k_min", "k_max", "before s", "now s", "ratio"]
    print_table("Planning seven levels of one size", header, rows)
    return 0


def compare(side: str, incidence: Incidence, size: int) -> list[str]:
    """Return a row of the table."""
    n, tie = incidence.n_samples, ties(incidence.n_types)
    keys = priorities(np.arange(n, dtype=np.uint64), 0, "made-up")
    pruning = prune(incidence, tie)
    typed = TypedInputs(incidence, tie, pruning.position, pruning.birth)
    control = Control("none", np.ones(n, dtype=np.int64), np.zeros(n, dtype=np.int32), 1)
    now, ours = seconds(lambda: Planner(typed, keys, control, 1.5).table([size], SEVEN, "each")[size])
    before, theirs = seconds(lambda: Before(typed, keys, control, 1.5).table([size], SEVEN, "each")[size])
    assert (ours.k_min, ours.k_max, ours.levels) == (theirs.k_min, theirs.k_max, theirs.levels)
    shape = [f"{value:,}" for value in (n, incidence.n_types, incidence.nnz, size, ours.k_min, ours.k_max)]
    return [side, *shape, f"{before:.2f}", f"{now:.2f}", f"{before / now:.1f}"]


if __name__ == "__main__":
    raise SystemExit(main())
