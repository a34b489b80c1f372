"""Write datasets for other trainers: `sft-diversity export DATASET|EXPERIMENT --format FORMAT --out FOLDER`.

DATASET is a sealed dataset's folder or URI. EXPERIMENT is an experiment's folder, its index.json, or its CONFIG.yaml with overrides: all
its datasets are exported under their cells' names. Needs no cluster.
"""

from __future__ import annotations

import argparse
import fnmatch
import logging
import posixpath
from collections.abc import Mapping, Sequence
from pathlib import Path

from diversity.artifact import MANIFEST, Artifact, ArtifactError, Storage
from diversity.config import UserError
from diversity.corpus.files import ReadError
from diversity.datasets.card import Exported, cell_of
from diversity.datasets.export import FORMATS, export
from ray_jobs import build_datasets
from ray_jobs.job.experiment import load_experiment
from ray_jobs.job.index import Index
from ray_jobs.job.runtime import Context, absolute, inside_job, tool

logger = logging.getLogger(__name__)

INDEX = "index.json"


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Return the parsed command line."""
    parser = argparse.ArgumentParser(prog="sft-diversity export", description="Write sealed datasets for other trainers.")
    parser.add_argument("what", metavar="DATASET|EXPERIMENT", help="a dataset's folder; an experiment's folder, index.json or CONFIG.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="of a CONFIG.yaml, as for the stages")
    parser.add_argument("--format", required=True, help=", ".join(FORMATS))
    parser.add_argument("--out", required=True, metavar="FOLDER", help="a new or empty folder, or its URI")
    parser.add_argument("--cells", action="append", metavar="PATTERN", help="only these cells of an experiment, e.g. 'response-micro_*'")
    parser.add_argument("--leave-out", action="store_true", help="leave out, and count, samples that the format can't hold")
    parser.add_argument("--overwrite", action="store_true", help="write into a folder that is not empty, in place of a former export")
    return parser.parse_intermixed_args(argv)


@tool("export")
def main(argv: list[str] | None = None) -> int:
    """Export and print what was written; return the exit code."""
    given = arguments(argv)
    datasets = find_datasets(given.what, given.overrides, given.cells)
    folder = absolute(given.out)
    exported = export(datasets, given.format, folder, leave_out=given.leave_out, overwrite=given.overwrite)
    print(summary(exported, given.format, folder))
    return 0


def find_datasets(what: str, overrides: Sequence[str] = (), patterns: Sequence[str] | None = None) -> dict[str, Artifact]:
    """Return the datasets that a person named, by the names of their cells.

    Raises:
        UserError: nothing of the kind is there.
    """
    if what.endswith((".yaml", ".yml")):
        experiment = load_experiment(Path(what), overrides, inside_job=inside_job())
        context = Context(experiment, Path(what), tuple(overrides))
        try:
            return _matching(_of_configuration(context), patterns)
        except ReadError as error:
            raise UserError(f"{error}; what the last job sealed under that name: {context.storage.uri}/{context.index.path}") from None
    if overrides:
        raise UserError(f"{overrides[0]!r}: only a CONFIG.yaml takes overrides")
    uri = absolute(what)
    folder = posixpath.dirname(uri) if posixpath.basename(uri) in (INDEX, MANIFEST) else uri
    parent, name = posixpath.split(folder)
    root, kind = posixpath.split(parent)
    storage = Storage(root)
    if storage.exists(f"{kind}/{name}/{INDEX}") and kind == "experiments":
        return _matching(_of_index(Index(storage, name)), patterns)
    if storage.exists(f"{kind}/{name}/{MANIFEST}"):
        if kind != "datasets":
            raise ArtifactError(f"{folder} is no dataset but of kind {kind!r}")
        artifact = storage.artifact(kind, name)
        return _matching({cell_of(artifact.manifest).name: artifact}, patterns)
    raise ArtifactError(f"{what} is no sealed dataset and no experiment: it holds neither {MANIFEST} nor {INDEX}")


def _of_configuration(context: Context) -> dict[str, Artifact]:
    """Return the sealed datasets of a configuration's own grid: the index may hold those of other settings under the same names."""
    datasets = {cell.name: build_datasets.dataset_artifact(context, cell) for cell in context.experiment.cells}
    sealed = {name: artifact for name, artifact in datasets.items() if artifact.sealed}
    if not sealed:
        named = f"experiment {context.experiment.experiment} in {context.storage.uri}"
        raise ArtifactError(
            f"{named} has no datasets of these settings yet: make them with: {context.command('build_datasets')}; "
            f"what the last job sealed under that name: {context.storage.uri}/{context.index.path}"
        )
    if len(sealed) < len(datasets):
        logger.warning(
            "export: %d of %d datasets are sealed; %s makes the others", len(sealed), len(datasets), context.command("build_datasets")
        )
    return sealed


def _of_index(index: Index) -> dict[str, Artifact]:
    datasets: dict[str, str] = index.read().get("datasets", {})
    if not datasets:
        raise ArtifactError(f"experiment {index.experiment} in {index.storage.uri} has no datasets yet: run build_datasets first")
    return {name: index.storage.at(path) for name, path in datasets.items()}


def _matching(datasets: Mapping[str, Artifact], patterns: Sequence[str] | None) -> dict[str, Artifact]:
    """Return the datasets that a pattern names, by name.

    Raises:
        UserError: a pattern names none.
    """
    for pattern in patterns or ():
        if not any(fnmatch.fnmatchcase(name, pattern) for name in datasets):
            raise UserError(f"--cells {pattern!r} names none of {len(datasets)} cells, e.g. {min(datasets)}")
    wanted = [name for name in datasets if patterns is None or any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)]
    return {name: datasets[name] for name in sorted(wanted)}


def summary(exported: Sequence[Exported], format: str, folder: str) -> str:
    """Return what was written, in a few lines."""
    samples, many = sum(one.samples for one in exported), "s" * (len(exported) > 1)
    lines = [f"{folder}: {samples:,} samples of {len(exported)} dataset{many} as {format}"]
    for one in exported:
        lines += [f"{one.name}: {count:,} left out: {reason}" for reason, count in one.left_out.most_common()]
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
