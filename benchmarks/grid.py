"""A whole grid of datasets against writing its files: `python -m benchmarks.grid --storage URI --experiment NAME`.

The typed cells of an experiment whose profiles are sealed (`paper.yaml`: 6 strategies x 7 levels x 3 sizes = 126) are pruned, chosen,
written, read again and checked, in one process; then the same rows are written once more without choosing them. Posterior
metrics are not part of it. Nothing is written into the storage.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from fractions import Fraction

import numpy as np

from benchmarks.corpora import print_table
from diversity.artifact import Artifact, Storage
from diversity.cell import TYPINGS, Cell, GridConfig, expand
from diversity.datasets import dataset
from diversity.datasets.dataset import Choice, Corpus
from diversity.selection.strategies import Inputs, SelectionConfig, prune_typing, select
from ray_jobs.tasks.building import Sources, load_samples, load_typing

LIMIT = 3
BATCH = 8


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--storage", required=True)
    parser.add_argument("--experiment", default="paper")
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 20_000, 30_000])
    parser.add_argument("--levels", type=int, default=7)
    parser.add_argument("--rho", type=float, default=1.0)
    arguments = parser.parse_args(argv)
    storage = Storage(arguments.storage)
    index = json.loads(storage.read_bytes(f"experiments/{arguments.experiment}/index.json"))["artifacts"]
    profiles = {typing: storage.at(index["profile"][typing]) for typing in TYPINGS}
    grid = GridConfig(strategies=list(TYPINGS), sizes=arguments.sizes, levels=arguments.levels)
    selection = SelectionConfig(rho=arguments.rho)
    sources = Sources(storage.at(index["corpus"]), profiles, {}, "", selection, grid)
    with tempfile.TemporaryDirectory() as folder:
        build(sources, expand(grid, {}), Storage(folder))
    return 0


def build(sources: Sources, cells: list[Cell], target: Storage) -> None:
    """Do everything, with a clock for each step, and print the table."""
    spent: dict[str, float] = {}
    clock = _Clock(spent)
    samples = load_samples(sources)
    typings = {typing: load_typing(sources, typing) for typing in sources.profiles}
    clock.lap("load samples and types")
    pruned = {name: prune_typing(name, one.incidence, one.content, samples.keys, sources.selection) for name, one in typings.items()}
    clock.lap("prune the typings")
    inputs = Inputs(samples.keys, samples.tokens, samples.source, samples.source_names, pruned, sources.grid)
    for typing in typings:
        for size in sources.grid.sizes:
            inputs.plan(typing, Cell(typing, size, Fraction(1)), sources.selection)
    clock.lap("plan levels")
    picks = {cell: select(inputs, cell, sources.selection) for cell in cells}
    clock.lap("choose")
    artifacts = {cell: target.artifact("datasets", f"{number:032x}").begin() for number, cell in enumerate(cells)}
    choices = {artifacts[cell]: Choice(pick.rows, pick.chosen_for) for cell, pick in picks.items()}
    _write(sources.corpus, choices)
    clock.lap("write")
    corpus = Corpus(samples.ids, samples.tokens, {name: one.incidence for name, one in typings.items()})
    for cell, pick in picks.items():
        found = dataset.check(artifacts[cell].read(), cell, corpus, pick.kept, pick.target)
        artifacts[cell].seal({**found, "pool_size": pick.pool_size})
    clock.lap("read again and check by id")
    total = sum(spent.values())
    again = {target.artifact("datasets", f"f{number:031x}").begin(): choice for number, choice in enumerate(choices.values())}
    _write(sources.corpus, again)
    clock.lap("the same files without choosing")
    rows = [[what, f"{time:.2f}", f"{time / spent['the same files without choosing']:.2f}"] for what, time in spent.items()]
    size = f"n {len(samples.ids):,}, nnz {sum(one.incidence.nnz for one in typings.values()):,}, rows written {_rows(picks.values()):,}"
    share = total / spent["the same files without choosing"]
    rows.append(["**all but the last**", f"{total:.2f}", f"**{share:.2f}** (limit ≤ {LIMIT})"])
    print_table(f"{len(cells)} datasets from sealed profiles, one process ({size})", ["step", "CPU s", "of writing alone"], rows)


def _write(corpus: Artifact, choices: dict[Artifact, Choice]) -> None:
    """Write datasets as the stage does, some in one pass over the corpus."""
    order = list(choices)
    for start in range(0, len(order), BATCH):
        dataset.write(corpus, {artifact: choices[artifact] for artifact in order[start : start + BATCH]})


def _rows(picks: object) -> int:
    return int(np.sum([len(pick.rows) for pick in picks]))  # type: ignore[attr-defined]


class _Clock:
    """Laps into a dict, in CPU seconds of all threads, so that other work on the machine does not count."""

    def __init__(self, spent: dict[str, float]) -> None:
        self.spent, self.last = spent, time.process_time()

    def lap(self, name: str) -> None:
        now = time.process_time()
        self.spent[name], self.last = now - self.last, now


if __name__ == "__main__":
    raise SystemExit(main())
