"""Sealed datasets become folders that other trainers read: LLaMA-Factory, Axolotl, TRL, `datasets`, or plain files.

Batches of rows are read, turned and written one after another, so that memory does not grow with a dataset. What a format cannot hold (a
system turn in Alpaca's) is found before anything is written: it is an error, or left out and counted where the caller
says so. `.export.json`, written last, says what an export holds.
"""

from __future__ import annotations

import json
import logging
import os
import posixpath
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import BinaryIO

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from diversity.artifact import Artifact, ArtifactError, Storage
from diversity.config import UserError, near_matches
from diversity.corpus.samples import messages_of
from diversity.datasets.card import Exported, card
from diversity.datasets.columns import schema_of, table_of, table_of_rows
from diversity.datasets.dataset import DATASET_SCHEMA, through_to
from diversity.datasets.layouts import FORMATS, PLAIN, Beside, Format, Row, shapes

logger = logging.getLogger(__name__)

RECORD = ".export.json"  # hidden, so that no reader of the folder takes it for data
BATCH_ROWS = 2048
THROUGH_ROWS = 1 << 16
_LINE_ENDS = {"\x85": "\\u0085", "\u2028": "\\u2028", "\u2029": "\\u2029"}


class ExportError(UserError):
    """An export that can't be made as asked; nothing was written."""


@dataclass(frozen=True)
class Plan:
    """What a look at a dataset's samples found before anything is written.

    Attributes:
        left_out: reasons and counts of those that the format can't hold.
        beside: what the others hold beside role and content.
        scored: whether any has a score.
    """

    left_out: Counter[str]
    beside: Beside
    scored: bool


def export(
    datasets: Mapping[str, Artifact], format: str, folder: str, *, leave_out: bool = False, overwrite: bool = False
) -> list[Exported]:
    """Write datasets into a folder and return what was written of each.

    Args:
        datasets: sealed datasets by the names that they get.
        format: a name in `FORMATS`.
        folder: an absolute path or a URI.
        leave_out: leave out the samples that the format can't hold, and count them, instead of raising.
        overwrite: whether the folder may hold something; files of a former export go once the new ones are written (an object store
            replaces one of the same name at once), all others stay.

    Raises:
        ExportError: an unknown format, samples that don't fit, or a folder that is in use.
        ArtifactError: a dataset that isn't sealed or holds no file.
    """
    if format not in FORMATS:
        raise ExportError(f"unknown format {format!r}{near_matches(format, FORMATS)}")
    form, out = FORMATS[format], Storage(folder)
    plans = {name: _fit(name, artifact, form, format, leave_out) for name, artifact in datasets.items()}
    refuse_used(folder, overwrite)
    (filesystem, root), exported = out.filesystem(), []
    with ExitStack() as whole:
        for number, (name, artifact) in enumerate(datasets.items(), start=1):
            path = f"data/{_file_name(name)}/train-00000-of-00001.parquet" if form.columns else f"{_file_name(name)}{form.suffix}"
            plan = plans[name]
            written = _write(artifact, filesystem, whole.enter_context(_placed(filesystem, f"{root}/{path}")), form, plan)
            exported.append(Exported(name, path, written, plan.left_out, artifact.path, artifact.manifest, tuple(sorted(plan.beside))))
            logger.info("%s: %d samples (%d of %d datasets)", name, written, number, len(datasets))
        beside = {**form.beside(folder, exported), "README.md": card(format, folder, exported)}
        _remove_former(out, {one.path for one in exported})
    for name, text in beside.items():
        out.write_bytes(name, text.encode())
    record = {
        "format": format,
        "files": [*(one.path for one in exported), *beside],
        "datasets": {one.name: one.facts() for one in exported},
    }
    out.write_bytes(RECORD, json.dumps(record, ensure_ascii=False, indent=1).encode())
    return exported


def export_file(dataset: Artifact, path: str, format: str, *, leave_out: bool = False, overwrite: bool = False) -> tuple[int, Counter[str]]:
    """Write a dataset into one file, and return how many samples that is and which were left out.

    A JSONL file whose name ends in .gz, .bz2 or .zst is packed.

    Args:
        dataset: sealed.
        path: an absolute path or a URI.
        format: a name in `FORMATS`.
        leave_out: as for `export`.
        overwrite: whether the file may be there.

    Raises:
        ExportError: samples that don't fit, or a file that is there.
        ArtifactError: as for `export`.
    """
    refuse_used(path, overwrite)
    plan = _fit(posixpath.basename(path), dataset, FORMATS[format], format, leave_out)
    filesystem, inside = Storage(path).filesystem()
    with _placed(filesystem, inside) as place:
        return _write(dataset, filesystem, place, FORMATS[format], plan), plan.left_out


def refuse_used(path: str, overwrite: bool) -> None:
    """Refuse a file that is there, or a folder that holds something.

    Raises:
        ExportError: it is, and `overwrite` is false.
    """
    filesystem, inside = Storage(path).filesystem()
    found = filesystem.get_file_info(inside)
    if found.type == pafs.FileType.File and not overwrite:
        raise ExportError(f"{path} is there already: give another name, or --overwrite")
    if found.type == pafs.FileType.Directory and not overwrite and filesystem.get_file_info(pafs.FileSelector(inside)):
        raise ExportError(f"{path} is not empty: give another folder, or --overwrite")


@contextmanager
def _placed(filesystem: pafs.FileSystem, path: str) -> Iterator[str]:
    """Yield where a file is to be written: on a local storage aside, so that what is there already stays until all is well."""
    local = isinstance(filesystem, pafs.LocalFileSystem)
    path = os.path.realpath(path) if local else path  # through a link, as writing goes
    folder, name = posixpath.split(path)
    filesystem.create_dir(folder, recursive=True)
    if not local:
        yield path
        return
    aside = f"{folder}/.part.{name}"
    try:
        yield aside
    except BaseException:
        with suppress(OSError):
            filesystem.delete_file(aside)
        raise
    filesystem.move(aside, path)


def _write(dataset: Artifact, filesystem: pafs.FileSystem, path: str, form: Format, plan: Plan) -> int:
    with filesystem.open_output_stream(path, compression=None if form.columns else "detect") as stream:
        return (_write_parquet if form.columns else _write_lines)(dataset, form, plan, stream)


def _write_lines(artifact: Artifact, form: Format, plan: Plan, stream: BinaryIO) -> int:
    written = 0
    for batch in _batches(artifact):
        rows = [json_line(row) for row in _rows(batch, form, plan)]
        stream.write(b"".join(rows))
        written += len(rows)
    return written


def _write_parquet(artifact: Artifact, form: Format, plan: Plan, stream: BinaryIO) -> int:
    written = 0
    schema = schema_of(form.columns, plan.beside, plan.scored, whole_messages="chosen_for" not in form.columns)
    as_it_is = form.row is None and not plan.left_out
    with pq.ParquetWriter(stream, schema, compression="zstd") as writer:
        for batch in _batches(artifact, schema.names) if as_it_is else _batches(artifact):
            table = table_of(batch, schema) if as_it_is else table_of_rows(list(_rows(batch, form, plan)), schema)
            writer.write_table(table)
            written += len(table)
    return written


def json_line(row: Row) -> bytes:
    """Return a row as one line of JSON in UTF-8, without a character that any reader takes for the end of a line."""
    text = json.dumps(row, ensure_ascii=False, separators=(",", ":"))
    for character, escaped in _LINE_ENDS.items():
        if character in text:
            text = text.replace(character, escaped)
    return text.encode() + b"\n"


def _rows(batch: pa.Table, form: Format, plan: Plan) -> Iterator[Row]:
    """Yield what is written for the samples of a batch that fit."""
    for sample, shape in zip(batch.to_pylist(), shapes(batch), strict=True):
        if form.fits is None or form.fits(*shape) is None:
            sample["messages"] = messages_of(sample["messages"])
            sample["tools"] = None if sample["tools"] is None else json.loads(sample["tools"])
            yield form.row(sample, plan.beside) if form.row else sample


def _batches(artifact: Artifact, columns: Sequence[str] = DATASET_SCHEMA.names) -> Iterator[pa.Table]:
    """Yield the rows of a dataset in order, some thousands at a time; of a dataset of picks they are read through to its corpus."""
    filesystem, _ = artifact.storage.filesystem()
    manifest = artifact.manifest
    if not manifest.get("materialised", True):
        corpus, picks = artifact.storage.at(manifest["made_from"]["corpus"]), artifact.read()
        for start in range(0, len(picks), THROUGH_ROWS):
            table = through_to(corpus, picks.slice(start, THROUGH_ROWS), columns)
            yield from (table.slice(row, BATCH_ROWS) for row in range(0, len(table), BATCH_ROWS))
        return
    for part in artifact.parts():
        with pq.ParquetFile(part, filesystem=filesystem) as file:
            for batch in file.iter_batches(batch_size=BATCH_ROWS, columns=list(columns)):
                yield pa.Table.from_batches([batch]).select(columns)


def _fit(name: str, artifact: Artifact, form: Format, format: str, leave_out: bool) -> Plan:
    """Return what a dataset's samples hold, and why and how many of them don't fit.

    Raises:
        ExportError: some don't, and they may not be left out.
        ArtifactError: the dataset isn't sealed, or holds no file.
    """
    manifest = artifact.manifest
    if not artifact.parts():
        raise ArtifactError(f"{artifact.uri}/data holds no parquet file")
    reasons: Counter[str] = Counter()
    beside, scored, first = PLAIN, False, ""
    for batch in _batches(artifact, ["sample_id", "messages", "tools", "score"]):
        scored = scored or batch["score"].null_count < len(batch)
        for sample_id, shape in zip(batch["sample_id"].to_pylist(), shapes(batch), strict=True):
            reason = form.fits(*shape) if form.fits else None
            if reason is None:
                beside = beside | shape[1]
            else:
                reasons[reason] += 1
                first = first or sample_id
    if reasons and not leave_out:
        counts = ", ".join(f"{reason} ({count})" for reason, count in reasons.most_common())
        others = ", ".join(other for other, one in FORMATS.items() if one.fits is None)
        raise ExportError(
            f"{name}: {reasons.total()} of {manifest['samples']} samples do not fit {format}: {counts}, e.g. {first}; "
            f"{others} hold them all, or leave them out with --leave-out"
        )
    return Plan(reasons, beside, scored)


def _remove_former(out: Storage, new: Collection[str]) -> None:
    """Remove the files that a former export wrote into the folder, and no others; those that the new one has too are replaced."""
    if out.exists(RECORD):
        filesystem, root = out.filesystem()
        former = json.loads(out.read_bytes(RECORD))
        for path in (RECORD, *former["files"]):
            if path not in new and out.exists(path):
                filesystem.delete_file(f"{root}/{path}")


def _file_name(name: str) -> str:
    """Return a dataset's name without the `@`, which marks a revision in the paths of a hub."""
    return name.replace("@", "-at-")
