"""Baselines against the public way of doing the same, in one run: `python -m benchmarks.baselines [--only NAME …]`.

Vectors and tags are made up (clusters of unit vectors, Zipf-distributed tags), so that the table can be had anywhere. The left side
is what people run: a loop over pairs, a torch loop over all distances, the dense matrix of samples × labels in torch, the full
similarity matrix. Where ties can't be told apart in floating point, what both chose in common is shown. Times are CPU seconds,
both sides on one thread.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from benchmarks.corpora import peak_memory, print_table, seconds
from diversity.selection.strategies.deita import accept
from diversity.selection.strategies.facility_location import lazy_greedy
from diversity.selection.strategies.k_center import farthest_first
from diversity.selection.strategies.mig import LabelGraph, greedy, label_graph, shares
from diversity.typings.exact_vectors import ONE, exact_vectors
from diversity.typings.incidence import Incidence

Row = list[str]


def vectors(n: int, d: int = 256, clusters: int = 300) -> np.ndarray:
    """Return exact vectors of n made-up samples in clusters."""
    random = np.random.default_rng(0)
    rows = random.normal(size=(clusters, d))[random.integers(0, clusters, n)] + random.normal(size=(n, d)) * random.uniform(0.2, 1, (n, 1))
    return exact_vectors((rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32), np.arange(n))


def deita(n: int = 4000) -> Row:
    """DEITA's filter at a cosine of 0.9: all that pass, best first."""
    rows, threshold = vectors(n), int(0.9 * ONE)
    fast, ours = seconds(lambda: accept(rows, n, threshold, np.zeros(0, dtype=np.int64)), 5)

    def pairs() -> list[int]:
        accepted: list[int] = []
        for i in range(n):
            if all(np.dot(rows[i], rows[j]) <= threshold for j in accepted):
                accepted.append(i)
        return accepted

    slow, theirs = seconds(pairs)
    return row("deita", f"N {n:,}, {len(theirs):,} pass", "loop over pairs", slow, fast, common(ours, theirs), 100)


def k_center(n: int = 20_000, size: int = 200) -> Row:
    """Farthest-first centres. The loop is timed in float32; its picks are those of float64, which holds these distances exactly."""
    rows = vectors(n)

    def loop(points: torch.Tensor) -> list[int]:
        nearest, chosen = torch.full((n,), torch.inf, dtype=points.dtype), [0]
        while len(chosen) < size:
            nearest = torch.minimum(nearest, torch.norm(points - points[chosen[-1]], dim=1))
            chosen.append(int(torch.argmax(nearest)))
        return chosen

    slow, _ = seconds(lambda: loop(torch.from_numpy(rows)))
    theirs = loop(torch.from_numpy(rows).double())
    fast, ours = seconds(lambda: farthest_first(rows, size), 3)
    return row("k_center", f"N {n:,}, k {size}", "torch loop", slow, fast, common(ours, theirs), 3)


def mig(n: int = 10_000, size: int = 200, labels: int = 2000) -> Row:
    """MIG over a graph of labels; the dense form is that of the published sampler."""
    random = np.random.default_rng(0)
    drawn = [np.unique((random.zipf(1.2, size=random.integers(1, 9)) - 1) % labels).astype(np.int32) for _ in range(n)]
    incidence, _ = Incidence.from_lists(drawn, labels).used()
    share = shares(incidence, random.uniform(0.2, 1, n))
    build, graph = seconds(lambda: label_graph(incidence, vectors(n, 64), edge=0.3))
    greedy(incidence, graph, share, 2)
    fast, (ours, _) = seconds(lambda: greedy(incidence, graph, share, size), 3)
    slow, theirs = seconds(lambda: dense_mig(incidence, graph, share, size))
    what = f"N {n:,}, k {size:,}, {incidence.n_types:,} labels, nnz {incidence.nnz:,}, {len(graph.neighbour):,} edges (graph {build:.2f} s)"
    return row("mig", what, "dense torch", slow, fast, common(ours, theirs), 50)


def dense_mig(incidence: Incidence, graph: LabelGraph, share: np.ndarray, size: int) -> list[int]:
    """Return the picks of the dense form: all candidates times the gradient for every pick, in float32."""
    matrix = np.zeros((incidence.n_types, incidence.n_types), dtype=np.float32)
    matrix[np.repeat(np.arange(incidence.n_types), np.diff(graph.starts)), graph.neighbour] = graph.flow_out / (1 << 20)
    brings = np.zeros((incidence.n_samples, incidence.n_types), dtype=np.float32)
    brings[np.repeat(np.arange(incidence.n_samples), incidence.lengths()), incidence.indices] = np.repeat(
        share / (1 << 16), incidence.lengths()
    )
    spread = torch.from_numpy(brings) @ torch.from_numpy(matrix)
    free, information, chosen = torch.ones(len(spread), dtype=torch.bool), torch.zeros(incidence.n_types), []
    while len(chosen) < size:
        gains = spread[free] @ (0.8 * (information + 1e-6) ** -0.2)
        best = int(torch.nonzero(free).squeeze(1)[torch.argmax(gains)])
        information += spread[best]
        free[best] = False
        chosen.append(best)
    return chosen


def facility_location(n: int = 20_000, size: int = 50) -> Row:
    """Peak memory of the lazy greedy in a process of its own; the full matrix alone would take 4 n^2 bytes."""
    command = [sys.executable, "-m", "benchmarks.baselines", "--child", json.dumps([n, size])]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    what = f"N {n:,}, k {size}: {found['seconds']:.1f} s"
    full, peak = 4 * n * n / 2**20, found["peak"] / 2**20
    return ["facility_location", what, "full matrix", f"{full:,.0f} MiB", f"{peak:,.0f} MiB", f"{full / peak:.1f}", "≤ 1,024 MiB", ""]


def facility_location_child(n: int, size: int) -> dict[str, float]:
    """Return the time and peak memory of this process."""
    rows = vectors(n)
    spent, _ = seconds(lambda: lazy_greedy(rows, size))
    return {"seconds": spent, "peak": peak_memory()}


def row(name: str, what: str, other: str, slow: float, fast: float, same: float, limit: int) -> Row:
    """Return a row of the table."""
    return [name, what, other, f"{slow:.2f} s", f"{fast:.4f} s", f"{slow / fast:.0f}", f"≥ {limit}", f"{100 * same:.1f}%"]


def common(ours: np.ndarray, theirs: list[int]) -> float:
    """Return which share of the picks both chose."""
    return len(set(ours.tolist()) & set(theirs)) / max(len(theirs), 1)


BENCHMARKS: dict[str, Callable[[], Row]] = {"deita": deita, "k_center": k_center, "mig": mig, "facility_location": facility_location}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=list(BENCHMARKS), default=list(BENCHMARKS))
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.child:
        print(json.dumps(facility_location_child(*json.loads(arguments.child))))
        return 0
    torch.set_num_threads(1)
    header = ["strategy", "work", "the public way", "theirs", "ours", "ratio", "limit", "picks in common"]
    with threadpool_limits(1):
        print_table("Baselines against the public way of doing it", header, (BENCHMARKS[name]() for name in arguments.only))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
