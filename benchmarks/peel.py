"""Peeling a side against one count of its incidences, and against the naive algorithm: `python -m benchmarks.peel [--corpus PATH]`.

One `np.bincount` over the indices is the least that any algorithm which looks at every incidence once would take. The naive one
counts all living incidences anew before each removal, by numpy. Without a corpus a generated one of 117,000 samples serves.
Times are CPU seconds.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from benchmarks.corpora import generated, made_up_df, made_up_lengths, print_table, real_incidence, seconds, ties
from diversity.selection.peel import peel
from diversity.typings.incidence import Incidence

LIMIT, LIMIT_WITH_TRANSPOSE, LIMIT_NAIVE = 12, 16, 100


def naive(incidence: Incidence, tie: np.ndarray) -> np.ndarray:
    """Return the positions by counting the living incidences anew for every removal."""
    rank = np.empty(len(tie), dtype=np.int64)
    rank[np.argsort(tie, kind="stable")] = np.arange(len(tie))
    row_of = np.repeat(np.arange(incidence.n_samples), incidence.lengths())
    indices, position = incidence.indices, np.zeros(incidence.n_types, dtype=np.int32)
    live = np.ones(incidence.n_types, dtype=bool)
    for left in range(incidence.n_types, 0, -1):
        count = np.bincount(indices, minlength=incidence.n_types)
        worst = int(np.argmin(np.where(live, count * len(tie) + rank, np.iinfo(np.int64).max)))
        position[worst] = left
        live[worst] = False
        dead = np.zeros(incidence.n_samples, dtype=bool)
        dead[row_of[indices == worst]] = True
        kept = ~dead[row_of]
        indices, row_of = indices[kept], row_of[kept]
    return position


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpus", type=Path)
    parser.add_argument("--n", type=int, default=117_000, help="samples of a generated corpus")
    parser.add_argument("--naive", type=int, default=10_000, help="samples for the naive algorithm")
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args(argv)
    rows, slow_rows = [], []
    for side in ("instruction", "response") if arguments.corpus else ("generated",):
        if arguments.corpus:
            whole, part = (real_incidence(arguments.corpus, side, limit) for limit in (None, arguments.naive))
        else:
            whole = generated(arguments.n, made_up_df(), made_up_lengths())
            part = generated(arguments.naive, made_up_df(8000), made_up_lengths())
        rows.append(fast(side, whole, arguments.repeats))
        slow_rows.append(slow(side, part))
    header = ["side", "n", "M", "nnz", "bincount ms", "peel ms", "ratio", "limit", "with transpose ms", "ratio", "limit"]
    print_table("Peel of a side against one np.bincount over its indices", header, rows)
    print_table(
        "Peel against the naive algorithm", ["side", "n", "M", "nnz", "naive s", "peel s (transpose in it)", "ratio", "limit"], slow_rows
    )
    return 0


def fast(side: str, incidence: Incidence, repeats: int) -> list[object]:
    """Return a row of the first table."""
    tie, columns = ties(incidence.n_types), incidence.transpose()
    peel(incidence, tie)
    count, _ = seconds(lambda: np.bincount(incidence.indices, minlength=incidence.n_types), 3 * repeats)
    alone, _ = seconds(lambda: peel(incidence, tie, columns), repeats)
    both, _ = seconds(lambda: peel(incidence, tie), repeats)
    size = [f"{value:,}" for value in (incidence.n_samples, incidence.n_types, incidence.nnz)]
    times = [f"{1000 * alone:.0f}", f"{alone / count:.1f}", f"≤ {LIMIT}"]
    return [side, *size, f"{1000 * count:.2f}", *times, f"{1000 * both:.0f}", f"{both / count:.1f}", f"≤ {LIMIT_WITH_TRANSPOSE}"]


def slow(side: str, incidence: Incidence) -> list[object]:
    """Return a row of the second table."""
    tie = ties(incidence.n_types)
    quick, ours = seconds(lambda: peel(incidence, tie), 5)
    plain, theirs = seconds(lambda: naive(incidence, tie))
    assert (ours == theirs).all()
    size = [f"{value:,}" for value in (incidence.n_samples, incidence.n_types, incidence.nnz)]
    return [side, *size, f"{plain:.2f}", f"{quick:.4f}", f"{plain / quick:.0f}", f"≥ {LIMIT_NAIVE}"]


if __name__ == "__main__":
    raise SystemExit(main())
