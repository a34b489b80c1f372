"""Which sealed datasets a tool is asked about, and the sealed artifacts and settings that each was made from.

A tool's TARGET is an experiment's CONFIG.yaml followed by its `key=value` overrides, an experiment's index.json (or the folder that holds
it), or the folder of a dataset. A dataset says in its manifest (`made_from`) what it was made from, so that its folder is enough. One
that was sealed before manifests said so needs its index.json and, for the settings, the experiment's configuration beside it.
"""

from __future__ import annotations

import fnmatch
import json
import posixpath
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from diversity.artifact import Artifact, ArtifactError, Storage, digest
from diversity.cell import Cell, GridConfig
from diversity.config import ConfigError, near_matches, parse
from diversity.selection.strategies import SelectionConfig, needs
from ray_jobs import build_datasets, profile_corpus
from ray_jobs.job.experiment import Experiment, load_experiment
from ray_jobs.job.runtime import Context, absolute, inside_job
from ray_jobs.tasks import length_window
from ray_jobs.tasks.building import Sources, made_from

CONFIG_HELP = "with key=value …: how datasets were made that were sealed before their manifests said it"


@dataclass(frozen=True)
class SealedDataset:
    """A sealed dataset, its cell, and what its manifest says that it was made from."""

    cell: Cell
    artifact: Artifact
    made: dict[str, Any]

    @property
    def storage(self) -> Storage:
        """Return the storage that all of its artifacts lie in."""
        return self.artifact.storage

    @property
    def group(self) -> str:
        """Return what datasets share that were made from the same artifacts with the same settings, whatever their size and level."""
        grid = {**self.made["grid"], "sizes": None, "levels": None}
        if self.made["selection"]["kmin_from"] == "largest":
            grid["sizes"] = max(self.made["grid"]["sizes"])
        return digest([self.storage.uri, {**self.made, "grid": grid, "peels": None}])


def sources_of(datasets: Sequence[SealedDataset]) -> Sources:
    """Return what datasets of one group were made from; its grid has all their sizes and levels."""
    storage, made = datasets[0].storage, datasets[0].made
    grids = [one.made["grid"] for one in datasets]
    levels = sorted({Fraction(level) for grid in grids for level in grid["levels"]})
    grid = {
        **made["grid"],
        "strategies": sorted({one.cell.strategy for one in datasets}),
        "sizes": sorted({size for one in grids for size in one["sizes"] if size}) or [1],  # the whole corpus says 0, which no axis has
        "levels": levels or [Fraction(1)],
    }
    return Sources(
        corpus=storage.at(made["corpus"]),
        profiles={typing: storage.at(path) for typing, path in made["profiles"].items()},
        embeddings={side: storage.at(path) for side, path in made["embeddings"].items()},
        model=made["model"],
        selection=parse(SelectionConfig, made["selection"]),
        grid=parse(GridConfig, grid),
        peels={typing: storage.at(path) for one in datasets for typing, path in one.made["peels"].items()},
        scores=storage.at(made["scores"]) if "scores" in made else None,
    )


def find(targets: Sequence[str], patterns: Sequence[str] = (), config: Sequence[str] = ()) -> list[SealedDataset]:
    """Return the sealed datasets that the targets name, in their order.

    Args:
        targets: see the module.
        patterns: of cells' names (`fnmatch`); none means all.
        config: CONFIG.yaml and overrides that say how the datasets of an index were made that don't say it themselves.

    Raises:
        ArtifactError: something is not sealed, or was sealed by a version that did not say what it was made from.
        ConfigError: a target or a pattern that names nothing.
    """
    settings = load_experiment(Path(config[0]), config[1:], inside_job=inside_job()) if config else None
    found = [dataset for target in _with_overrides(targets) for dataset in _of_target(*target, settings)]
    names = [dataset.cell.name for dataset in found]
    for pattern in patterns:
        if not fnmatch.filter(names, pattern):
            raise ConfigError(f"{pattern!r} names no cell{near_matches(pattern, names)}")
    return [one for one in found if not patterns or any(fnmatch.fnmatchcase(one.cell.name, pattern) for pattern in patterns)]


def of_experiment(context: Context) -> list[SealedDataset]:
    """Return the datasets of an experiment's grid, by its configuration alone.

    Raises:
        ArtifactError: one is not sealed; the message says which command makes it.
    """
    cells = context.experiment.cells
    over = {control: profile_corpus.chosen_from(context, control) for control in dict.fromkeys(cell.control for cell in cells)}
    sources = {
        control: build_datasets.sources_over(derived, [cell for cell in cells if cell.control == control])
        for control, derived in over.items()
    }
    artifacts = {cell: context.require(build_datasets.dataset_artifact(context, cell), "build_datasets") for cell in cells}
    return [SealedDataset(cell, artifact, made_from(sources[cell.control], cell)) for cell, artifact in artifacts.items()]


def _with_overrides(targets: Iterable[str]) -> Iterator[tuple[str, list[str]]]:
    """Yield each target with the `key=value` overrides that follow it."""
    current: tuple[str, list[str]] | None = None
    for given in targets:
        if "=" in given and not given.startswith(("/", ".")) and "://" not in given:
            if current is None or not current[0].endswith((".yaml", ".yml")):
                raise ConfigError(f"the override {given!r} has no CONFIG.yaml before it")
            current[1].append(given)
        else:
            if current:
                yield current
            current = (given, [])
    if current:
        yield current


def _of_target(target: str, overrides: list[str], settings: Experiment | None) -> list[SealedDataset]:
    if target.endswith((".yaml", ".yml")):
        experiment = load_experiment(Path(target), overrides, inside_job=inside_job())
        return of_experiment(Context(experiment, Path(target), tuple(overrides)))
    folder = absolute(target)
    if folder.endswith("/index.json") or Storage(folder).exists("index.json"):
        return _of_index(folder.removesuffix("/index.json"), settings)
    parent, fingerprint = posixpath.split(folder)
    root, kind = posixpath.split(parent)
    if kind != "datasets":
        raise ConfigError(f"{target!r} is neither a CONFIG.yaml, nor an experiment's index.json, nor <storage>/datasets/<fingerprint>")
    return [_of_artifact(Storage(root).artifact("datasets", fingerprint))]


def _of_index(folder: str, settings: Experiment | None) -> list[SealedDataset]:
    storage = Storage(posixpath.dirname(posixpath.dirname(folder)))
    entries = json.loads(Storage(folder).read_bytes("index.json"))["artifacts"]
    datasets = {name: storage.at(path) for name, path in entries.get("datasets", {}).items()}
    if not datasets:
        raise ArtifactError(f"{folder}/index.json names no dataset; make some with build_datasets")
    if settings is None or all("made_from" in artifact.manifest for artifact in datasets.values()):
        return [_of_artifact(artifact) for artifact in datasets.values()]
    cells = [cell for cell in settings.cells if cell.name in datasets]
    return [SealedDataset(cell, datasets[cell.name], made_from(_sources(storage, entries, settings, cell), cell)) for cell in cells]


def _sources(storage: Storage, entries: dict[str, Any], settings: Experiment, cell: Cell) -> Sources:
    """Return what an index and a configuration say that a cell was made from."""
    suffix = f"~{cell.control}" if cell.control == length_window.NAME else ""
    profiles = {typing: storage.at(entries["profile"][f"{typing}{suffix}"]) for typing in settings.typings}
    corpus = storage.artifact("corpus", profiles["response-micro"].manifest["corpus"])
    embeddings = {key.removesuffix(suffix): storage.at(path) for key, path in entries["embeddings"].items() if ("~" in key) == bool(suffix)}
    peels = {typing: storage.at(entries["peel"][f"{typing}{suffix}"]) for typing in needs(cell, settings.grid).typings}
    return Sources(corpus, profiles, embeddings, settings.model, settings.selection, settings.grid, peels)


def _of_artifact(artifact: Artifact) -> SealedDataset:
    manifest = artifact.manifest
    made = manifest.get("made_from")
    if made is None:
        raise ArtifactError(f"{artifact.uri} does not say what it was made from; give its index.json, and the CONFIG.yaml with --config")
    cell = dict(manifest["cell"])
    level = Fraction(made["grid"]["levels"][0]) if made["grid"]["levels"] else None
    return SealedDataset(Cell(**{**cell, "level": level}), artifact, made)
