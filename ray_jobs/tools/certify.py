"""Certify sealed datasets: `sft-diversity certify TARGET… [--cells PATTERN] [--from-text] [--json]`.

TARGET is the folder of a dataset, an experiment's index.json, or its CONFIG.yaml with overrides. Every dataset is held against the sealed
corpus, profile and peel that it was made from, and chosen once more from its seed. A verdict for each property of each dataset, each
typing and the corpus: pass, FAIL, or not applicable with the reason. Exit code 1 when anything fails. No cluster is needed.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from diversity.artifact import Artifact, ArtifactError
from diversity.audit.certificate import Auditor, Verdict, certify_corpus, certify_order, certify_text, certify_typing
from diversity.audit.ground import TEXTS, Ground, Types, id_strings
from diversity.audit.promises import FAIL, NOT_APPLICABLE, PASS, Again, Asked
from diversity.audit.recount import count_text, plain_tokeniser
from diversity.cell import Cell, typing_parts
from diversity.config import UserError
from diversity.selection.peel import TypedInputs
from diversity.selection.strategies import Picks, closure_of, needs, prune_typing
from ray_jobs.job.process import cache_folder
from ray_jobs.job.runtime import tool
from ray_jobs.tasks import building
from ray_jobs.tasks.building import Sources
from ray_jobs.tools.sealed import CONFIG_HELP, SealedDataset, find, sources_of
from training.model_source import resolve_model

logger = logging.getLogger("ray_jobs.tools.certify")  # run as a program its own name is __main__

BATCH = 4096


def certify(datasets: Sequence[SealedDataset], *, from_text: bool = False) -> list[Verdict]:
    """Return the verdicts on sealed datasets and on what they were made from.

    Args:
        datasets: see `ray_jobs.tools.sealed.find`.
        from_text: whether tokens and words are counted again from the text, with the plain Hugging Face tokenizer.
    """
    by_group: dict[str, dict[Artifact, SealedDataset]] = {}
    for one in datasets:
        by_group.setdefault(one.group, {})[one.artifact] = one
    times = Counter(one.cell.name for group in by_group.values() for one in group.values())
    verdicts = []
    for number, group in enumerate(by_group.values(), start=1):
        for found in _Audit(list(group.values()), from_text).verdicts():
            # Several grounds in one table, as under the control length-window: what bears one name in two of them gets a number.
            alone = len(by_group) == 1 or times[found.subject] == 1
            verdicts.append(found if alone else replace(found, subject=f"{found.subject} [{number}]"))
    return verdicts


@dataclass
class _Audit:
    """The audit of datasets that share corpus, profiles and settings."""

    datasets: list[SealedDataset]
    from_text: bool

    def verdicts(self) -> list[Verdict]:
        """Return all verdicts: corpus and typings first."""
        sources = sources_of(self.datasets)
        ground, verdicts = _ground(sources, self.from_text)
        auditor = Auditor(ground, from_text=self.from_text)
        chooser, done = _Chooser(sources), 0
        alike = lambda one: (one.cell.strategy, one.cell.control)  # noqa: E731
        for (strategy, control), group in itertools.groupby(sorted(self.datasets, key=alike), key=alike):
            members = list(group)
            for one, again in zip(members, chooser.choose([one.cell for one in members]), strict=True):
                manifest = one.artifact.manifest
                asked = _asked(one, sources, chooser.quota_k_min(one.cell, manifest))
                verdicts += auditor.dataset(asked, one.artifact.read(), manifest, again)
            done += len(members)
            logger.info("certified %d of %d datasets (%s, control %s)", done, len(self.datasets), strategy, control)
        return verdicts + auditor.nested()


def _ground(sources: Sources, from_text: bool) -> tuple[Ground, list[Verdict]]:
    """Return what the datasets are held against, and the verdicts on that."""
    rows = sources.corpus.read(columns=["sample_id", "source"])
    ids = id_strings(rows.column("sample_id"))
    hashes, verdicts = certify_corpus(ids, _parts(sources.corpus, ["sample_id", *TEXTS]))
    verdicts = [replace(found, detail=f"{found.detail} ({sources.corpus.uri})") for found in verdicts]
    logger.info("corpus: %d samples hashed", len(ids))
    types, tokens, positions, births, text_types = {}, {}, {}, {}, {}
    for typing, profile in sources.profiles.items():
        data = profile.read()
        if not np.array_equal(id_strings(data.column("sample_id")), ids):
            raise ArtifactError(f"{profile.uri} has other rows than {sources.corpus.uri}, so nothing can be held against it")
        table = profile.read("types").sort_by("type")
        sealed = _types(data, table)
        verdicts += certify_typing(typing, sealed, table, _band(profile))
        types[typing] = _with_outliers(sources, typing, sealed)
        if "tokens" in data.column_names:
            tokens[typing] = data.column("tokens").to_numpy()
        if typing in sources.peels:
            positions[typing], births[typing], found = _order(sources, typing, types[typing], table)
            verdicts += found
        if from_text and (band := _band(profile)):
            text_types[typing], found = _from_text(sources, typing, types[typing], table, tokens[typing], band)
            verdicts += found
            logger.info("%s: counted again from the text", typing)
    lengths = {side: tokens[f"{side}-micro"] for side in ("instruction", "response")}
    window = sources.corpus.manifest.get("window")
    names = rows.column("source").to_numpy(zero_copy_only=False).astype(object)
    held = (tuple(window) if window else None), text_types
    return Ground(ids, hashes, names, lengths, types, positions, births, *held, building.load_scores(sources)), verdicts


def _parts(corpus: Artifact, columns: list[str]) -> Iterator[pa.Table]:
    """Yield the corpus batch by batch."""
    filesystem, _ = corpus.storage.filesystem()
    for part in corpus.parts():
        with pq.ParquetFile(part, filesystem=filesystem) as file:
            for batch in file.iter_batches(BATCH, columns=columns):
                yield pa.Table.from_batches([batch])


def _types(data: pa.Table, table: pa.Table) -> Types:
    """Return the types of each sample as they are sealed."""
    lists = data.column("types").combine_chunks()
    bounds = lists.offsets.to_numpy().astype(np.int64)
    return Types(bounds - bounds[0], lists.flatten().to_numpy(), table.num_rows)


def _with_outliers(sources: Sources, typing: str, sealed: Types) -> Types:
    """Return the types that samples are chosen by: outliers that join their nearest topic are joined by the same code as in the build."""
    if typing_parts(typing)[1] != "macro" or sources.selection.outliers == "exclude":
        return sealed
    incidence = building.load_typing(sources, typing).incidence
    return Types(incidence.indptr, incidence.indices, incidence.n_types)


def _band(profile: Artifact) -> tuple[int, int] | None:
    """Return the lowest and highest df of a micro typing."""
    band = profile.manifest.get("band")
    return (band["low"], band["high"]) if band else None


def _order(sources: Sources, typing: str, types: Types, table: pa.Table) -> tuple[np.ndarray, np.ndarray, list[Verdict]]:
    """Return positions and births of the types, and the verdicts on the sealed order."""
    selection, artifact = sources.selection, sources.peels[typing]
    peel, births = artifact.read(), artifact.read("births").column("birth").to_numpy()
    closure = closure_of(typing, selection)
    algorithm: str = selection.algorithm
    if algorithm == "peel" and selection.type_order != "peel":
        algorithm = "static" if selection.type_order == "size" else selection.type_order
    contents = table.column("content").to_pylist()
    verdicts = certify_order(typing, types, contents, peel, births, algorithm, closure)
    position = peel.sort_by("type").column("position").to_numpy()
    return position, births if algorithm == "unique" else types.births(position, closure), verdicts


def _from_text(
    sources: Sources, typing: str, types: Types, table: pa.Table, tokens: np.ndarray, band: tuple[int, int]
) -> tuple[Types, list[Verdict]]:
    """Return the types that the text has, and the verdict on those that are sealed."""
    side, _, unit = typing_parts(typing)
    folder = None if unit else resolve_model(sources.model, cache_folder(), tokenizer_only=True)
    texts = (part.column(side).to_pylist() for part in _parts(sources.corpus, [side]))
    counted = count_text(texts, plain_tokeniser(unit, folder), band)
    units = table.column("content" if unit == "word" else "token_id").to_pylist()
    return counted.types, certify_text(typing, counted, types, units, table.column("df").to_numpy(), tokens, band)


def _asked(one: SealedDataset, sources: Sources, quota_k_min: int | None) -> Asked:
    """Return what a dataset was asked to be."""
    cell, selection = one.cell, sources.selection
    quota_typing = cell.typing or sources.grid.random_quota_from
    return Asked(
        cell=cell,
        closure=closure_of(cell.strategy, selection),
        rho=Fraction(str(selection.rho)),
        largest=max(sources.grid.sizes) if selection.kmin_from == "largest" else cell.size,
        looks_at=needs(cell, sources.grid).typings,
        quota_from=None if quota_k_min is None else (quota_typing, quota_k_min),
    )


class _Chooser:
    """Chooses datasets once more, from typings that are pruned anew out of their sealed profiles."""

    def __init__(self, sources: Sources) -> None:
        """Load what all cells need."""
        self._sources = sources
        self._samples = building.load_samples(sources)
        self._pruned: dict[str, TypedInputs] = {}

    def choose(self, cells: list[Cell]) -> list[Again]:
        """Return what the selection gives now for cells of one strategy and control; one that it refuses says so."""
        try:
            return [Again(self._samples.ids[pick.rows], pick.chosen_for, pick.target) for pick in self._picks(cells)]
        except UserError as error:
            if len(cells) == 1:
                return [Again(np.zeros(0, "S32"), np.zeros(0, np.int32), None, str(error))]
            return [self.choose([cell])[0] for cell in cells]

    def quota_k_min(self, cell: Cell, manifest: Mapping[str, Any]) -> int | None:
        """Return the k whose pool gives the quotas of bins: the cell's own k_min, or for `random` that of the typing it goes by."""
        if not cell.control.endswith("-quota"):
            return None
        if cell.typing:
            return int(manifest["target"]["k_min"])
        grid = self._sources.grid
        typed = replace(cell, strategy=grid.random_quota_from, level=grid.fractions[0])
        return int((self._picks([typed])[0].target or {})["k_min"])

    def _picks(self, cells: list[Cell]) -> list[Picks]:
        names = list(dict.fromkeys(typing for cell in cells for typing in needs(cell, self._sources.grid).typings))
        picks = building.choose(self._sources, cells, self._samples, names, *(self._typed(name) for name in names))
        return picks if isinstance(picks, list) else [picks]

    def _typed(self, name: str) -> TypedInputs:
        if name not in self._pruned:
            typing = building.load_typing(self._sources, name)
            self._pruned[name] = prune_typing(name, typing.incidence, typing.content, self._samples.keys, self._sources.selection)
        return self._pruned[name]


def print_table(verdicts: Sequence[Verdict], datasets: int) -> None:
    """Print a line for each subject and a column for each property; then what is covered, each FAIL in full, and why something is n/a."""
    by_subject: dict[str, dict[str, Verdict]] = {}
    for one in verdicts:
        by_subject.setdefault(one.subject, {})[one.property] = one
    signs = {PASS: "pass", FAIL: "FAIL", NOT_APPLICABLE: "n/a"}
    grounds = {subject for subject in by_subject if subject.startswith(("corpus", "typing "))}
    for rows in ({s: by_subject[s] for s in by_subject if s in grounds}, {s: by_subject[s] for s in by_subject if s not in grounds}):
        names = list(dict.fromkeys(name for found in rows.values() for name in found))
        wide = max((len(subject) for subject in rows), default=0)
        print(f"{'':{wide}}  " + "  ".join(names))
        for subject, found in rows.items():
            cells = (f"{signs[found[name].outcome] if name in found else '':{len(name)}}" for name in names)
            print(f"{subject:{wide}}  " + "  ".join(cells).rstrip())
        print()
    covered = [one for one in verdicts if one.property == "coverage" and one.outcome != NOT_APPLICABLE]
    if datasets == 1:
        print("\n".join(f"{one.subject}: {one.property}: {one.outcome}: {one.detail}" for one in verdicts), end="\n\n")
    else:
        reasons = Counter((one.property, one.detail) for one in verdicts if one.outcome == NOT_APPLICABLE)
        print("\n".join(f"n/a: {name} of {count}: {reason}" for (name, reason), count in reasons.items()), end="\n\n" if reasons else "")
        print("\n".join(f"{one.subject}: {one.detail}" for one in covered), end="\n\n" if covered else "")
        for one in verdicts:
            if one.outcome == FAIL:
                print(f"FAIL: {one.subject}: {one.property}: {one.detail}")
    counts = Counter(one.outcome for one in verdicts)
    print(f"{datasets} datasets: {counts[PASS]} pass, {counts[FAIL]} FAIL, {counts[NOT_APPLICABLE]} not applicable")


@tool("certify")
def main(argv: list[str] | None = None) -> int:
    """Run the tool; 0 where nothing fails."""
    parser = argparse.ArgumentParser(prog="sft-diversity certify", description="Certify sealed datasets.")
    parser.add_argument("targets", nargs="+", metavar="TARGET", help="a dataset's folder, an index.json, or a CONFIG.yaml with key=value …")
    parser.add_argument(
        "--cells", action="append", default=[], metavar="PATTERN", help="only cells whose names match, e.g. 'response-*_l100_*'"
    )
    parser.add_argument("--config", nargs="+", default=[], metavar="CONFIG.yaml", help=CONFIG_HELP)
    parser.add_argument("--from-text", action="store_true", help="count tokens and words again from the text, with the plain tokenizer")
    parser.add_argument("--json", action="store_true", help="print the verdicts as JSON")
    given = parser.parse_intermixed_args(argv)
    datasets = find(given.targets, given.cells, given.config)
    verdicts = certify(datasets, from_text=given.from_text)
    if given.json:
        print(json.dumps([asdict(one) for one in verdicts], ensure_ascii=False, indent=1))
    else:
        print_table(verdicts, len(datasets))
    return 1 if any(one.outcome == FAIL for one in verdicts) else 0


if __name__ == "__main__":
    raise SystemExit(main())
