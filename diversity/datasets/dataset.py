"""Datasets on disk: written in one pass over the corpus, or as picks that are read through to it; read again and recounted at their seal.

A dataset that is not what its target says is an error, never a warning.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from diversity.artifact import Artifact, digest
from diversity.cell import Cell
from diversity.config import UserError
from diversity.corpus.rehash import hashed
from diversity.corpus.samples import SAMPLE_SCHEMA
from diversity.typings.incidence import Incidence

DATASET_SCHEMA = SAMPLE_SCHEMA.append(pa.field("chosen_for", pa.int32()))
MAY_LACK = ("tools", "score")  # of DATASET_SCHEMA: columns that files of an earlier kind have not
PICKS_SCHEMA = pa.schema([("sample_id", pa.string()), ("row", pa.int64()), ("chosen_for", pa.int32())])


class DatasetError(UserError):
    """A dataset whose rows are not what its cell asks for."""


@dataclass(frozen=True)
class Corpus:
    """What a dataset is checked against, aligned with the id-sorted corpus of n rows.

    Attributes:
        ids: sample ids, ascending, `(n,)` `S32`.
        tokens: number of the model's tokens of each side, `(n,)` int32.
        incidences: one for every typing that coverage is measured on.
        scores: quality, `(n,) float64`, NaN where a sample has none; None where no sample has one.
    """

    ids: np.ndarray
    tokens: Mapping[str, np.ndarray]
    incidences: Mapping[str, Incidence]
    scores: np.ndarray | None = None

    def rows(self, ids: np.ndarray) -> np.ndarray:
        """Return the row of every id, int64.

        Raises:
            DatasetError: an id is not in the corpus.
        """
        rows = np.searchsorted(self.ids, ids)
        known = (rows < len(self.ids)) & (self.ids[np.minimum(rows, len(self.ids) - 1)] == ids)
        if not known.all():
            raise DatasetError(f"sample {ids[~known][0].decode()} is not in the corpus")
        return rows


@dataclass(frozen=True)
class Choice:
    """What goes into one dataset: rows of the corpus, ascending int64, and what each was chosen for, int32 (-1: nothing)."""

    rows: np.ndarray
    chosen_for: np.ndarray


def write(corpus: Artifact, choices: Mapping[Artifact, Choice]) -> None:
    """Write the rows of many datasets in one pass over the corpus, so that no more than one part of it is in memory.

    Args:
        corpus: the sealed corpus, parts in order of sample_id.
        choices: begun dataset artifacts and what goes into them.
    """
    filesystem, _ = corpus.storage.filesystem()
    with ExitStack() as stack:
        writers = {}
        for artifact in choices:
            stream = stack.enter_context(artifact.open_output("data/part-00000.parquet"))
            writers[artifact] = stack.enter_context(pq.ParquetWriter(stream, DATASET_SCHEMA, compression="zstd"))
        start = 0
        for part in corpus.parts():
            table = pq.read_table(part, columns=SAMPLE_SCHEMA.names, filesystem=filesystem).cast(SAMPLE_SCHEMA)
            for artifact, choice in choices.items():
                low, high = np.searchsorted(choice.rows, (start, start + len(table)))
                if low < high:
                    taken = table.take(pa.array(choice.rows[low:high] - start))
                    reasons = pa.array(choice.chosen_for[low:high], pa.int32())
                    writers[artifact].write_table(taken.append_column(DATASET_SCHEMA.field("chosen_for"), reasons))
            start += len(table)


def write_picks(ids: np.ndarray, choices: Mapping[Artifact, Choice]) -> None:
    """Write what was chosen without its texts, PICKS_SCHEMA; `ids` are the corpus's, `(n,)` `S32`."""
    for artifact, choice in choices.items():
        columns = [ids[choice.rows].astype("U32"), choice.rows, choice.chosen_for]
        artifact.write(pa.table([pa.array(c, field.type) for c, field in zip(columns, PICKS_SCHEMA, strict=True)], schema=PICKS_SCHEMA))


def through_to(corpus: Artifact, picks: pa.Table, columns: Sequence[str] | None = None) -> pa.Table:
    """Return the rows of picks out of their corpus, as a dataset with texts would hold them; one part of it is in memory at a time.

    Args:
        corpus: the sealed corpus that they were chosen from.
        picks: PICKS_SCHEMA, ascending in `row`.
        columns: of DATASET_SCHEMA; all of them by default.
    """
    schema = DATASET_SCHEMA if columns is None else pa.schema([DATASET_SCHEMA.field(name) for name in columns])
    wanted = [name for name in schema.names if name != "chosen_for"]
    rows, filesystem = picks.column("row").to_numpy(), corpus.storage.filesystem()[0]
    start, pieces = 0, [schema.empty_table()]
    for part in corpus.parts():
        stop = start + pq.read_metadata(part, filesystem=filesystem).num_rows
        low, high = np.searchsorted(rows, (start, stop))
        if low < high:
            taken = pq.read_table(part, columns=wanted, filesystem=filesystem).take(pa.array(rows[low:high] - start))
            if "chosen_for" in schema.names:
                taken = taken.append_column("chosen_for", picks.column("chosen_for").slice(low, high - low))
            pieces.append(taken.select(schema.names).cast(schema))
        start = stop
    return pa.concat_tables(pieces)


def read(dataset: Artifact, columns: Sequence[str] | None = None) -> pa.Table:
    """Return the rows of a sealed dataset, with texts or of picks alone; `columns` are of DATASET_SCHEMA, all that it has by default.

    Of `MAY_LACK`, what its files have no column for is null.
    """
    manifest = dataset.manifest
    if not manifest.get("materialised", True):
        return through_to(dataset.storage.at(manifest["made_from"]["corpus"]), dataset.read(), columns)
    lacking: list[str] = []
    if set(MAY_LACK) & set(columns or ()) and (parts := dataset.parts()):
        known = pq.read_schema(parts[0], filesystem=dataset.storage.filesystem()[0]).names
        lacking = [name for name in columns or () if name in MAY_LACK and name not in known]
    table = dataset.read(columns=[name for name in columns if name not in lacking] if columns is not None else None)
    for name in lacking:
        field = DATASET_SCHEMA.field(name)
        table = table.append_column(field, pa.nulls(len(table), field.type))
    return table.select(columns) if lacking and columns is not None else table


def id_array(column: pa.ChunkedArray | pa.Array) -> np.ndarray:
    """Return hex ids as a fixed-width `S32` array, which sorts as the text does."""
    return np.asarray(column.to_numpy(zero_copy_only=False), dtype="S32")


def content_hash(ids: np.ndarray) -> str:
    """Return the blake2b-128 of a dataset's ascending sample ids: cells that choose the same samples share it, and their runs."""
    return digest([sample.decode() for sample in np.sort(ids)])


def check(
    table: pa.Table,
    cell: Cell,
    corpus: Corpus,
    kept: np.ndarray | None = None,
    target: Mapping[str, float] | None = None,
    *,
    closure: str = "strict",
) -> dict[str, Any]:
    """Return what a dataset's rows hold, recounted, as its manifest states it.

    Args:
        table: the dataset as it was read back, `DATASET_SCHEMA`.
        cell: what it was asked to be.
        corpus: what it was chosen from.
        kept: mask of the types K_k of the cell's typing, `(M,)` bool; None where the strategy has no such target.
        target: what is said of that target: `covered` types of K_k, and the `bound` on them.
        closure: under `strict` no type outside K_k is covered, under `loose` others may be.

    Raises:
        DatasetError: rows that are out of order, repeated, altered, or foreign; another size; other coverage than the target says.
    """
    ids = id_array(table.column("sample_id"))
    wanted = cell.size or len(corpus.ids)
    if cell.control != "tokens" and len(ids) != wanted:
        raise DatasetError(f"{cell.name}: {len(ids)} samples instead of {wanted}")
    if not len(ids):
        raise DatasetError(f"{cell.name}: no sample")
    if len(ids) > 1 and not (ids[:-1] < ids[1:]).all():
        raise DatasetError(f"{cell.name}: sample ids are not ascending and unique")
    rows = corpus.rows(ids)
    _check_texts(table, cell)
    covered = {typing: incidence.covered(rows) for typing, incidence in corpus.incidences.items()}
    if kept is not None and cell.typing is not None:
        _check_target(covered[cell.typing], kept, target or {}, cell, closure)
    sources = pc.value_counts(table.column("source")).to_pylist()
    return {
        "cell": cell.describe(),
        "samples": len(ids),
        "content": content_hash(ids),
        "tokens": {side: int(tokens[rows].sum()) for side, tokens in corpus.tokens.items()},
        "coverage": {typing: float(mask.mean()) for typing, mask in covered.items()},
        **_scored(corpus.scores, rows),
        "sources": {entry["values"]: entry["counts"] for entry in sorted(sources, key=lambda entry: (-entry["counts"], entry["values"]))},
    }


def _scored(scores: np.ndarray | None, rows: np.ndarray) -> dict[str, Any]:
    """Return the mean score of the rows that have one, and how many have none; nothing where no sample of the corpus has one."""
    if scores is None:
        return {}
    known = scores[rows][~np.isnan(scores[rows])]
    return {"score": {"mean": float(known.mean()) if len(known) else None, "without": len(rows) - len(known)}}


def _check_texts(table: pa.Table, cell: Cell) -> None:
    """Hash every sample's messages again and compare the text columns with them."""
    for given, found, agree in hashed(table):
        if found != given:
            raise DatasetError(f"{cell.name}: sample {given} is not the hash of its messages")
        if not agree:
            raise DatasetError(f"{cell.name}: the text columns of sample {given} disagree with its messages")


def _check_target(covered: np.ndarray, kept: np.ndarray, target: Mapping[str, float], cell: Cell, closure: str) -> None:
    """Hold the types that the rows cover against those that the level keeps, and against what is said of them."""
    if closure == "strict" and (foreign := int((covered & ~kept).sum())):
        raise DatasetError(f"{cell.name}: {foreign} types are covered that the level does not keep")
    count, stated, bound = int((covered & kept).sum()), target.get("covered"), target.get("bound")
    if count != stated:
        raise DatasetError(f"{cell.name}: {count} of {int(kept.sum())} kept types are covered, not {stated} as its target says")
    if bound is None or count > bound:
        raise DatasetError(f"{cell.name}: {count} kept types are covered, more than the bound {bound} of its target")
