"""What the dial reaches on real data: `python -m benchmarks.levels --corpus PATH [--rows N …] [--sizes N …] [--keep FOLDER]`.

For each corpus of the first N samples by id, each size that fits and each of the six strategies: coverage at seven levels; beside it what
deterministic greedy coverage of the same pool covers, the bound that no samples can exceed, and random draws of the same size from the
corpus; how much two subset seeds share at level 1; and how long the responses are. What the dial promises is checked, and a row that breaks
a promise says which. Then the time of planning and of choosing, in CPU seconds. `--keep` keeps the typings for the next run: topics of
117,000 samples take minutes.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np

from benchmarks.corpora import print_table, real_texts, real_typing, seconds, ties
from diversity.cell import TYPINGS
from diversity.keys import priorities, sample_keys
from diversity.selection.bound import most_covered
from diversity.selection.chance import random_coverage
from diversity.selection.controls import Control, make_control
from diversity.selection.cover import cover_then_fill
from diversity.selection.fill import greedy_fill
from diversity.selection.levels import QUOTA_RHO, LevelPlan, level_table
from diversity.selection.peel import TypedInputs, prune
from diversity.selection.pool import make_pool
from diversity.typings.encoders import load_encoder
from diversity.typings.incidence import Incidence

SEVEN = [Fraction(j, 6) for j in range(7)]
RHO = 1.5
DRAWS = 20
LIMITS = {"of greedy": 0.95, "of greedy at 1": 0.97, "sd above random": 5.0, "shared": 0.7}
ALL = 0.99  # where random covers so much, there is little to gain over it


HEADER = ["rows", "size", "strategy", "M", "coverage at 7 levels", "of greedy, least", "at level 1", "of the bound, least", "at level 1"]
HEADER += ["random (sd)", "sd above", "seeds share", "length of random's, level 0 and 1", "breaks"]


@dataclass(frozen=True)
class Corpus:
    """What is known of the samples: keys, response tokens and sources, one entry a sample."""

    keys: np.ndarray
    tokens: np.ndarray
    source: np.ndarray

    def first(self, n: int) -> Corpus:
        """Return the first n."""
        return Corpus(self.keys[:n], self.tokens[:n], self.source[:n])

    def control(self, name: str) -> Control:
        """Return a control over it."""
        return make_control(name, {"response": self.tokens}, self.source, int(self.source.max()) + 1)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--rows", type=int, nargs="+", default=[20_000, 117_000])
    parser.add_argument("--sizes", type=int, nargs="+", default=[500, 2_000, 10_000, 30_000])
    parser.add_argument("--strategies", nargs="+", default=list(TYPINGS))
    parser.add_argument("--keep", type=Path)
    given = parser.parse_args(argv)
    whole, times = _corpus(given.corpus), []
    for rows in given.rows:
        corpus = whole.first(rows)
        typed = {name: _pruned(real_typing(given.corpus, name, rows, keep=given.keep)) for name in given.strategies}
        fitting = [(name, size) for size in given.sizes for name in typed if size * RHO <= (typed[name].birth > 0).sum()]
        print_table(f"{rows:,} rows, rho {RHO}", HEADER, (row(corpus, typed[name], name, size) for name, size in fitting))
        times += [_times(corpus, typed, fitting, control) for control in ("none", "length-quota", "source-quota", "tokens")]
    print_table("Planning and choosing, CPU s", ["rows", "control", "cells", "planning", "choosing", "bounds and random draws"], times)
    return 0


def _pruned(incidence: Incidence) -> TypedInputs:
    tie = ties(incidence.n_types)
    pruning = prune(incidence, tie)
    return TypedInputs(incidence, tie, pruning.position, pruning.birth)


def row(corpus: Corpus, typed: TypedInputs, name: str, size: int) -> list[str]:
    """Return a row of the table."""
    control, n, n_types = corpus.control("none"), len(corpus.keys), typed.incidence.n_types
    plan = level_table(typed, control, [size], SEVEN, RHO)[size]
    found, greedy, bound = [], [], []
    for level in plan.levels:
        k, quota = level.k_realised, plan.quota
        chosen = cover_then_fill(typed, k, quota, control, corpus.keys, 0)[0]
        found.append((_covered(typed, chosen, k), chosen))
        greedy.append(_covered(typed, _greedily(typed, k, size, control, corpus.keys), k))
        bound.append(k if found[-1][0] == k else most_covered(typed, k, quota, control))
    other = cover_then_fill(typed, n_types, plan.quota, control, corpus.keys, 1)[0]
    draws = [np.argsort(priorities(corpus.keys, seed, "draw"), kind="stable")[:size] for seed in range(DRAWS)]
    at_random = np.array([_covered(typed, drawn, n_types) for drawn in draws])
    covered, top = np.array([count for count, _ in found]), found[-1]
    of_greedy, of_bound = covered / np.array(greedy), covered / np.array(bound)
    above = (top[0] - at_random.mean()) / max(at_random.std(ddof=1), 1e-9)
    shared = len(np.intersect1d(top[1], other)) / size
    usual = np.mean([corpus.tokens[drawn].mean() for drawn in draws])
    checks = {
        "coverage rises": bool(((np.diff(covered) > 0) | (covered[:-1] == bound[1:])).all()),  # or no samples could cover more
        "of greedy": of_greedy.min() >= LIMITS["of greedy"],
        "of greedy at 1": of_greedy[-1] >= LIMITS["of greedy at 1"],
        "sd above random": above >= LIMITS["sd above random"] or at_random.mean() >= ALL * n_types,
        "shared": shared <= LIMITS["shared"] or 5 * size >= n,
    }
    broken = ", ".join(what for what, holds in checks.items() if not holds)
    return [
        f"{n:,}",
        f"{size:,}",
        name,
        f"{n_types:,}",
        " ".join(f"{count / n_types:.3f}" for count in covered),
        *(f"{share:.3f}" for share in (of_greedy.min(), of_greedy[-1], of_bound.min(), of_bound[-1])),
        f"{at_random.mean() / n_types:.3f} ({at_random.std(ddof=1) / n_types:.4f})",
        f"{above:.0f}" if above < 1e6 else "all",
        f"{shared:.0%}",
        f"{corpus.tokens[found[0][1]].mean() / usual:.2f} {corpus.tokens[top[1]].mean() / usual:.2f}",
        broken or "–",
    ]


def _greedily(typed: TypedInputs, k: int, size: int, control: Control, keys: np.ndarray) -> np.ndarray:
    """Return the rows of deterministic greedy coverage of K_k."""
    pool = make_pool(typed, control, priorities(keys, 0, "sample"), k)
    steps = np.zeros(len(pool.rows) + 2, dtype=np.int64)
    steps[0] = 1
    return pool.rows[greedy_fill(pool, k, size, steps)[0]]


def _covered(typed: TypedInputs, rows: np.ndarray, k: int) -> int:
    return int(typed.incidence.covered(rows)[typed.position <= k].sum())


def _times(corpus: Corpus, typed: dict[str, TypedInputs], fitting: list[tuple[str, int]], name: str) -> list[str]:
    """Return what planning and choosing all cells under a control takes."""
    control, rho = corpus.control(name), RHO if name in ("none", "tokens") else float(QUOTA_RHO)
    usable = [(typed[one], size) for one, size in fitting if size * rho <= (typed[one].birth > 0).sum()]
    planning, plans = seconds(lambda: [(one, level_table(one, control, [size], SEVEN, rho)[size]) for one, size in usable])
    choosing, rows = seconds(lambda: [_choose(*plan, control, corpus.keys) for plan in plans])
    measuring, _ = seconds(lambda: [_measure(*plan, control, corpus.keys, found) for plan, found in zip(plans, rows, strict=True)])
    cells = sum(len(plan.levels) for _, plan in plans)
    return [f"{len(corpus.keys):,}", name, str(cells), *(f"{spent:.2f}" for spent in (planning, choosing, measuring))]


def _choose(typed: TypedInputs, plan: LevelPlan, control: Control, keys: np.ndarray) -> list[np.ndarray]:
    return [cover_then_fill(typed, level.k_realised, plan.quota, control, keys, 0)[0] for level in plan.levels]


def _measure(typed: TypedInputs, plan: LevelPlan, control: Control, keys: np.ndarray, rows: list[np.ndarray]) -> None:
    """Find what stands beside each dataset in its manifest, as the strategies do."""
    for level, chosen in zip(plan.levels, rows, strict=True):
        if _covered(typed, chosen, level.k_realised) < level.k_realised:
            most_covered(typed, level.k_realised, plan.quota, control)
        random_coverage(typed, level.k_realised, plan.quota, control, keys)


def _corpus(path: Path) -> Corpus:
    from ray_jobs.job.process import cache_folder
    from training.model_source import resolve_model

    texts = real_texts(path)
    encoder = load_encoder("", resolve_model("builtin:smollm2-135m", cache_folder(), tokenizer_only=True))
    _, offsets = encoder.encode(texts.column("response").to_pylist())
    source = np.unique(texts.column("source").to_numpy(zero_copy_only=False).astype(str), return_inverse=True)[1]
    return Corpus(sample_keys(texts.column("sample_id")), np.diff(offsets).astype(np.int32), source.astype(np.int32))


if __name__ == "__main__":
    raise SystemExit(main())
