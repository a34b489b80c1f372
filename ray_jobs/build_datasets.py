"""Build every dataset of the grid: prune each typing once, choose, write, read again, seal; then measure what was built.

`python -m ray_jobs.build_datasets CONFIG.yaml [key=value …]`. The rows of a batch of cells are written in one pass over the corpus.
Posterior metrics are artifacts of their own, made in tasks of their own after the datasets.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import ray

from diversity.artifact import Artifact, fingerprint, package_versions
from diversity.cell import Cell, GridConfig
from diversity.selection.strategies import needs, version
from ray_jobs import profile_corpus
from ray_jobs.job import telemetry
from ray_jobs.job.runtime import Context, main, once
from ray_jobs.job.waiting import finished
from ray_jobs.report.distinct import distinct_lines
from ray_jobs.report.gather import distinct_of
from ray_jobs.tasks import building, length_window, scoring, shards
from ray_jobs.tasks.building import Sources

logger = logging.getLogger(__name__)

VERSION = 2
CELLS_A_BATCH = 8


@once
def peel_artifact(context: Context, typing: str) -> Artifact:
    """Return the artifact of a typing's pruning over the context's corpus: its types in the order in which they are given up."""
    selection = context.experiment.selection
    name = fingerprint(
        stage="peel",
        version=VERSION,
        config=selection.model_dump(mode="json", include={"algorithm", "type_order", "closure", "outliers"}),
        packages=package_versions("numpy"),
        parents=[profile_corpus.profile_artifact(context, typing).fingerprint],
    )
    return context.storage.artifact("peel", name)


@once
def dataset_artifact(context: Context, cell: Cell) -> Artifact:
    """Return the artifact of a cell's dataset. k follows from what is hashed here: fraction, sizes, selection and profiles."""
    context = profile_corpus.chosen_from(context, cell.control)
    experiment = context.experiment
    request = {**cell.describe(), "level": None if cell.level is None else str(cell.level)}
    if experiment.selection.kmin_from == "largest":
        request["largest"] = max(experiment.grid.sizes)
    if cell.strategy == "random" and cell.control.endswith("-quota"):
        request["quota_from"] = experiment.grid.random_quota_from
    if version(cell) > 1:
        request["version"] = version(cell)
    if sides := needs(cell, experiment.grid).embeddings:
        request["embeddings"] = [profile_corpus.embedding_artifact(context, side).fingerprint for side in sides]
    if scores := scoring.score_artifact(context, profile_corpus.corpus_artifact(context)):
        request["scores"] = scores.fingerprint
    profiles = {typing: profile_corpus.profile_artifact(context, typing).fingerprint for typing in experiment.typings}
    selection = experiment.selection.model_dump(mode="json", exclude={"materialise"})
    name = fingerprint(
        stage="dataset",
        version=VERSION,
        config={"cell": request, "selection": selection, "profiles": profiles},
        packages=package_versions("numpy", "pyarrow"),
        parents=[profile_corpus.corpus_artifact(context).fingerprint],
    )
    return context.storage.artifact("datasets", name)


@once
def metrics_artifact(context: Context, cell: Cell) -> Artifact:
    """Return the artifact of the posterior metrics of a cell's dataset."""
    context = profile_corpus.chosen_from(context, cell.control)
    sides = [profile_corpus.embedding_artifact(context, side).fingerprint for side in context.experiment.embedded_sides]
    tokens = profile_corpus.profile_artifact(context, "response-micro").fingerprint
    parents = [dataset_artifact(context, cell).fingerprint, tokens, *sides]
    name = fingerprint(stage="metrics", version=VERSION, packages=package_versions("numpy"), parents=parents)
    return context.storage.artifact("metrics", name)


def plan(context: Context) -> Iterator[str]:
    """Yield what is sealed and what would be built."""
    cells = context.experiment.cells
    left = [cell for cell in cells if not dataset_artifact(context, cell).sealed]
    unmeasured = sum(not metrics_artifact(context, cell).sealed for cell in cells)
    written = f"{sum(cell.size for cell in left):,} samples to choose, write and read again"
    yield f"{len(cells)} datasets, {len(cells) - len(left)} sealed; {written}; {unmeasured} datasets to measure"


def run(context: Context) -> None:
    """Build, check and seal every dataset of the grid, then its posterior metrics; corpus by corpus, where a control derives one."""
    cells = context.experiment.cells
    derived = {cell for cell in cells if cell.control == length_window.NAME}
    if own := [cell for cell in cells if cell not in derived]:
        _run_over(context, own)
    if derived:
        _run_over(profile_corpus.chosen_from(context, length_window.NAME), [cell for cell in cells if cell in derived])
    if len(context.experiment.grid.subset_seeds) > 1:
        for line in distinct_lines(distinct_of(context.storage, {cell: dataset_artifact(context, cell) for cell in cells})):
            logger.info(line)


def sources_over(context: Context, cells: Iterable[Cell]) -> Sources:
    """Return the sealed parents of cells that are chosen from the context's corpus, and the (perhaps unsealed) peels of what they dial.

    Raises:
        ArtifactError: a parent is not sealed.
    """
    experiment = context.experiment
    scores = scoring.score_artifact(context, profile_corpus.corpus_artifact(context))
    return Sources(
        corpus=context.require(profile_corpus.corpus_artifact(context), profile_corpus.corpus_maker(context)),
        profiles={t: context.require(profile_corpus.profile_artifact(context, t), "profile_corpus") for t in experiment.typings},
        embeddings={
            side: context.require(profile_corpus.embedding_artifact(context, side), "profile_corpus") for side in experiment.embedded_sides
        },
        model=experiment.model,
        selection=experiment.selection,
        grid=experiment.grid,
        peels={typing: peel_artifact(context, typing) for typing in _dialled(cells, experiment.grid)},
        scores=context.require(scores, "profile_corpus") if scores else None,
    )


def _run_over(context: Context, cells: Sequence[Cell]) -> None:
    """Build and measure the cells that are chosen from the context's corpus."""
    sources = sources_over(context, cells)
    datasets = {cell: dataset_artifact(context, cell) for cell in cells}
    metrics = {cell: metrics_artifact(context, cell) for cell in cells}
    unbuilt = [cell for cell in datasets if not datasets[cell].sealed]
    unmeasured = [cell for cell in metrics if not metrics[cell].sealed]
    logger.info("%d datasets: %d to build, %d to measure", len(datasets), len(unbuilt), len(unmeasured))
    telemetry.add("seals_reused", len(datasets) - len(unbuilt), stage="build_datasets")
    if unbuilt or unmeasured:
        context.connect()
        samples = ray.remote(building.load_samples).remote(sources)
        if unbuilt:
            _build(context, sources, samples, {cell: datasets[cell] for cell in unbuilt})
            telemetry.add("samples", sum(cell.size for cell in unbuilt), stage="build_datasets")
            context.index.add_many("datasets", {cell.name: artifact for cell, artifact in datasets.items()})
        task = ray.remote(building.measure_dataset)
        measured = (task.remote(sources, cell, datasets[cell], metrics[cell], samples) for cell in unmeasured)
        finished("metrics", measured, len(unmeasured), at_once=context.workers)
    context.index.add_many("peel", {f"{typing}{context.suffix}": artifact for typing, artifact in sources.peels.items()})
    context.index.add_many("datasets", {cell.name: artifact for cell, artifact in datasets.items()})
    context.index.add_many("metrics", {cell.name: artifact for cell, artifact in metrics.items()})


def _build(context: Context, sources: Sources, samples: Any, unbuilt: dict[Cell, Artifact]) -> None:
    """Prune, choose (typed cells from shards, if a count of them is given) and write; the task that wrote a dataset checks and seals it."""
    count = context.experiment.resources.shards
    loaded = {typing: ray.remote(building.load_typing).remote(sources, typing) for typing in sources.profiles}
    prune = ray.remote(building.prune_typing)
    apart = [cell for cell in unbuilt if count and shards.in_shards(cell, sources.selection)]
    whole = [cell for cell in unbuilt if cell not in apart]
    needed = _dialled(whole, sources.grid)
    pruned = {typing: prune.remote(loaded[typing], samples, sources.selection, sources.peels[typing]) for typing in needed}
    picks: dict[Cell, Any] = {}
    for typing in _dialled(apart, sources.grid):
        cells = [cell for cell in apart if cell.strategy == typing]
        options: Any = ray.remote(shards.choose_from_shards).options(num_returns=len(cells))
        refs: Any = options.remote(sources, cells, count, typing not in pruned)
        picks.update(zip(cells, refs if len(cells) > 1 else [refs], strict=True))
    choose = ray.remote(building.choose)
    for cells in together(whole):
        needed = _dialled(cells, sources.grid)
        refs = choose.options(num_returns=len(cells)).remote(sources, cells, samples, needed, *(pruned[typing] for typing in needed))
        picks.update(zip(cells, refs if len(cells) > 1 else [refs], strict=True))
    finished("chosen", picks.values(), len(picks))
    write = ray.remote(building.write_and_seal)
    batches = [list(unbuilt)[i : i + CELLS_A_BATCH] for i in range(0, len(unbuilt), CELLS_A_BATCH)]
    written = (
        write.remote(
            sources,
            batch,
            [unbuilt[cell] for cell in batch],
            samples,
            list(loaded),
            *loaded.values(),
            *(picks[cell] for cell in batch),
        )
        for batch in batches
    )
    finished("written and sealed", written, len(batches), per_task=CELLS_A_BATCH, total=len(unbuilt), at_once=context.workers)


def together(cells: Iterable[Cell]) -> list[list[Cell]]:
    """Return the cells that one task chooses: those of a strategy and control, wherever they lie, since their levels are planned once."""
    groups: dict[tuple[str, str], list[Cell]] = {}
    for cell in cells:
        groups.setdefault((cell.strategy, cell.control), []).append(cell)
    return list(groups.values())


def _dialled(cells: Iterable[Cell], grid: GridConfig) -> list[str]:
    """Return the typings whose pruning the cells' strategies look at, in order, each once."""
    return list(dict.fromkeys(typing for cell in cells for typing in needs(cell, grid).typings))


if __name__ == "__main__":
    raise SystemExit(main("build_datasets"))
