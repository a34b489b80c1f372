"""What selection from shards moves and holds: `python -m benchmarks.sharded [--corpus PATH] [--n N …] [--shards S]`.

The shards lie in this process, so that the figures are those of the protocol and not of a network: memory of a shard, rounds, what
goes to the coordinator and how much it holds, and time beside `peel` on one machine; then levels, a dataset of 10,000 and, at level 1, one
of 1,000, which can't hold all types, so that it is chosen by greedy coverage; all equal to what one machine chooses.
Times are CPU seconds.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.corpora import generated, made_up_df, made_up_lengths, print_table, real_incidence, seconds, ties
from diversity.keys import priorities
from diversity.selection.cover import cover_then_fill
from diversity.selection.peel import TypedInputs, birth, peel
from diversity.selection.shard import Rows, Shard
from diversity.selection.sharded import LocalShards, no_control, peel_sharded, plan_sharded, prune_sharded
from diversity.selection.sharded_picks import most_covered_sharded, random_coverage_sharded, select_sharded
from diversity.typings.incidence import Incidence


class Counted:
    """Shards whose answers are counted."""

    def __init__(self, shards: LocalShards) -> None:
        self.shards = shards
        self.calls, self.sent, self.largest = 0, 0, 0

    def each(self, method: str, *arguments: Any) -> list[Any]:
        """Call a method of every shard, and count what comes back."""
        found = self.shards.each(method, *arguments)
        size = sum(_bytes(one) for one in found)
        self.calls, self.sent, self.largest = self.calls + 1, self.sent + size, max(self.largest, size)
        return found


def _bytes(answer: Any) -> int:
    if isinstance(answer, np.ndarray):
        return answer.nbytes
    if isinstance(answer, Incidence):
        return answer.indptr.nbytes + answer.indices.nbytes
    return sum(_bytes(part) for part in answer) if isinstance(answer, (tuple, Rows)) else 8


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpus", type=Path)
    parser.add_argument("--n", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--shards", type=int, default=7)
    parser.add_argument("--rows-a-round", type=int, default=1 << 16)
    arguments = parser.parse_args(argv)
    df, lengths = made_up_df(), made_up_lengths()
    if arguments.corpus:
        real = real_incidence(arguments.corpus, "response")
        df, lengths = real.df(), real.lengths()
    peels, picks = [], []
    for n in arguments.n:
        incidence = generated(n, df, lengths)
        one, other = run(incidence, arguments.shards, arguments.rows_a_round)
        size = [f"{n:,}", f"{incidence.n_types:,}", f"{incidence.nnz:,}"]
        peels.append([*size, *one])
        picks.append([*size, *other])
    header = ["n", "M", "nnz", "MiB of a shard", "bytes per nnz in it", "rounds", "MiB sent", "largest answer MiB", "s", "`peel` s"]
    print_table(f"Peel from {arguments.shards} shards, {arguments.rows_a_round:,} rows a round", header, peels)
    header = ["n", "M", "nnz", "levels s", "MiB sent"]
    for what in ("10,000 at level 1/2", "1,000 at level 1", "its bound and random draws"):
        header += [f"{what} s", "calls", "MiB sent", "largest answer MiB"]
    print_table(f"Levels and one dataset from {arguments.shards} shards", header, picks)
    return 0


def run(incidence: Incidence, count: int, rows_a_round: int) -> tuple[list[str], list[str]]:
    """Return the figures of both tables."""
    n, tie = incidence.n_samples, ties(incidence.n_types)
    keys = priorities(np.arange(n, dtype=np.uint64), 0, "made-up")
    bounds = [n * part // count for part in range(count + 1)]
    local = LocalShards(
        [Shard(incidence.take(np.arange(a, b)), keys[a:b], np.arange(a, b)) for a, b in zip(bounds, bounds[1:], strict=False)]
    )
    first = local.shards[0]
    arrays = (first.incidence.indptr, first.incidence.indices, first.columns.indptr, first.columns.indices)
    held = sum(array.nbytes for array in (*arrays, first.keys, first.rows, first.sent, first.births))
    peel(incidence, tie)
    plain, expected = seconds(lambda: peel(incidence, tie))
    shards = Counted(local)
    spent, position = seconds(lambda: peel_sharded(shards, tie, rows_a_round))
    assert (position == expected).all()
    mib = [f"{value / 2**20:,.1f}" for value in (held, shards.sent, shards.largest)]
    peeled = [mib[0], f"{held / first.incidence.nnz:.1f}", str(shards.calls - 1), *mib[1:], f"{spent:.2f}", f"{plain:.2f}"]
    typing = prune_sharded(local, tie, rows_a_round=rows_a_round)
    figures = []
    planner = Counted(local)
    size = min(10_000, n // 4)
    planning, plan = seconds(lambda: plan_sharded(_through(typing, planner), [size], [Fraction(j, 6) for j in range(7)])[size])
    figures += [f"{planning:.2f}", f"{planner.sent / 2**20:.1f}"]
    typed = TypedInputs(incidence, tie, typing.position, birth(incidence, typing.position))
    for k, few in ((plan.levels[3].k_realised, size), (incidence.n_types, 1000)):
        chooser = Counted(local)
        choosing, (rows, _) = seconds(lambda k=k, few=few, to=chooser: select_sharded(_through(typing, to), k, few, 0))
        assert (rows == cover_then_fill(typed, k, np.array([few]), no_control(n), keys, 0)[0]).all()
        figures += [f"{choosing:.2f}", *_moved(chooser)]
    judge = Counted(local)
    through, k = _through(typing, judge), incidence.n_types
    judging, _ = seconds(lambda: (most_covered_sharded(through, k, 1000), random_coverage_sharded(through, k, 1000)))
    return peeled, [*figures, f"{judging:.2f}", *_moved(judge)]


def _moved(shards: Counted) -> list[str]:
    """Return calls, MiB of all answers, and MiB of the largest."""
    return [f"{shards.calls}", f"{shards.sent / 2**20:.1f}", f"{shards.largest / 2**20:.1f}"]


def _through(typing: Any, shards: Counted) -> Any:
    """Return the typing with its shards counted."""
    return replace(typing, shards=shards)


if __name__ == "__main__":
    raise SystemExit(main())
