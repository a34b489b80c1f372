"""Sealed datasets become folders that other trainers read: LLaMA-Factory, Axolotl, TRL, `datasets`, or plain files.

Batches of rows are read, turned and written one after another, so that memory does not grow with a dataset. What a format cannot hold (a
system turn in Alpaca's) is found by the roles alone before anything is written: it is an error, or left out and counted where the caller
says so. `.export.json`, written last, says what an export holds.
"""

from __future__ import annotations

import json
import logging
import posixpath
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import accumulate
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from diversity.artifact import Artifact, ArtifactError, Storage
from diversity.config import UserError, near_matches
from diversity.corpus.samples import MESSAGE_TYPE, messages_of
from diversity.datasets.card import Exported, axolotl_snippet, card, dataset_info
from diversity.datasets.dataset import DATASET_SCHEMA, through_to

logger = logging.getLogger(__name__)

RECORD = ".export.json"  # hidden, so that no reader of the folder takes it for data
BATCH_ROWS = 2048
THROUGH_ROWS = 1 << 16
_LINE_ENDS = {"\x85": "\\u0085", "\u2028": "\\u2028", "\u2029": "\\u2029"}
_NAMED = [pa.field("sample_id", pa.string()), pa.field("source", pa.string())]

Row = dict[str, Any]
Roles = tuple[str, ...]


class ExportError(UserError):
    """An export that can't be made as asked; nothing was written."""


@dataclass(frozen=True)
class Format:
    """How a dataset looks to those who read the format.

    Attributes:
        suffix: of the files, `.jsonl` or `.parquet`.
        row: turns a sample (its dataset columns) into what is written; None writes the columns of `schema` as they are.
        fits: why a conversation of these roles can't be held, or None.
        schema: of parquet files.
        beside: name and content of the files that go with the data, from the URI of the folder and what was exported.
    """

    suffix: str
    row: Callable[[Row], Row] | None = None
    fits: Callable[[Roles], str | None] | None = None
    schema: pa.Schema | None = None
    beside: Callable[[str, Sequence[Exported]], Mapping[str, str]] = field(default=lambda folder, exported: {})


def _with_messages(sample: Row) -> Row:
    return {"messages": sample["messages"], "sample_id": sample["sample_id"], "source": sample["source"]}


def _alpaca(sample: Row) -> Row:
    user, assistant = sample["messages"]
    turns = {"instruction": user["content"], "input": "", "output": assistant["content"]}
    return {**turns, "sample_id": sample["sample_id"], "source": sample["source"]}


def _sharegpt(sample: Row) -> Row:
    names = {"user": "human", "assistant": "gpt"}
    turns = [{"from": names.get(message["role"], message["role"]), "value": message["content"]} for message in sample["messages"]]
    return {"conversations": turns, "sample_id": sample["sample_id"], "source": sample["source"]}


def _prompt_completion(sample: Row) -> Row:
    messages = sample["messages"]
    return {"prompt": messages[:-1], "completion": messages[-1:], "sample_id": sample["sample_id"], "source": sample["source"]}


@lru_cache(maxsize=4096)
def _one_exchange(roles: Roles) -> str | None:
    """Alpaca has one field for the instruction and one for the answer."""
    if roles == ("user", "assistant"):
        return None
    return "a system turn" if "system" in roles else "several turns"


@lru_cache(maxsize=4096)
def _alternating(roles: Roles) -> str | None:
    """LLaMA-Factory's converter takes a system turn at the start, then user (or tool) and assistant by turns; it skips all else."""
    turns = roles[1:] if roles[0] == "system" else roles
    asked, answered = set(turns[0::2]), set(turns[1::2])
    if asked <= {"user", "tool"} and answered <= {"assistant", "function_call"}:
        return "no answer to the last turn" if len(turns) % 2 else None
    return "turns that do not alternate"


@lru_cache(maxsize=4096)
def _one_answer(roles: Roles) -> str | None:
    """Of prompt and completion only the completion is trained on."""
    if roles[-1] != "assistant":
        return "no answer to the last turn"
    return "several answers" if roles.count("assistant") > 1 else None


def _listed(**names: pa.DataType) -> pa.Schema:
    return pa.schema([*(pa.field(name, kind) for name, kind in names.items()), *_NAMED])


_MESSAGES = pa.list_(MESSAGE_TYPE)
FORMATS = {
    "jsonl": Format(".jsonl", row=dict),
    "hf": Format(".parquet", schema=DATASET_SCHEMA),
    "trl": Format(".parquet", schema=_listed(messages=_MESSAGES)),
    "trl-prompt-completion": Format(".parquet", _prompt_completion, _one_answer, _listed(prompt=_MESSAGES, completion=_MESSAGES)),
    "llama-factory": Format(".jsonl", _with_messages, _alternating, beside=dataset_info),
    "axolotl": Format(".jsonl", _with_messages, beside=axolotl_snippet),
    "sharegpt": Format(".jsonl", _sharegpt),
    "alpaca": Format(".jsonl", _alpaca, _one_exchange),
}


def export(
    datasets: Mapping[str, Artifact], format: str, folder: str, *, leave_out: bool = False, overwrite: bool = False
) -> list[Exported]:
    """Write datasets into a folder and return what was written of each.

    Args:
        datasets: sealed datasets by the names that they get.
        format: a name in `FORMATS`.
        folder: an absolute path or a URI.
        leave_out: leave out the samples that the format can't hold, and count them, instead of raising.
        overwrite: whether the folder may hold something; files of a former export are removed, all others stay.

    Raises:
        ExportError: an unknown format, samples that don't fit, or a folder that is in use.
        ArtifactError: a dataset that isn't sealed or holds no file.
    """
    if format not in FORMATS:
        raise ExportError(f"unknown format {format!r}{near_matches(format, FORMATS)}")
    form, out = FORMATS[format], Storage(folder)
    plans = {name: _fit(name, artifact, form, format, leave_out) for name, artifact in datasets.items()}
    refuse_used(folder, overwrite)
    _remove_former(out)
    exported = []
    for number, (name, artifact) in enumerate(datasets.items(), start=1):
        path = f"data/{_file_name(name)}/train-00000-of-00001.parquet" if form.schema else f"{_file_name(name)}{form.suffix}"
        written = _write(artifact, f"{folder.rstrip('/')}/{path}", form)
        exported.append(Exported(name, path, written, plans[name], artifact.path, artifact.manifest))
        logger.info("%s: %d samples (%d of %d datasets)", name, written, number, len(datasets))
    beside = {**form.beside(folder, exported), "README.md": card(format, folder, exported)}
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
    left_out = _fit(posixpath.basename(path), dataset, FORMATS[format], format, leave_out)
    return _write(dataset, path, FORMATS[format]), left_out


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


def _write(dataset: Artifact, path: str, form: Format) -> int:
    filesystem, inside = Storage(path).filesystem()
    filesystem.create_dir(posixpath.dirname(inside), recursive=True)
    with filesystem.open_output_stream(inside, compression=None if form.schema else "detect") as stream:
        return (_write_parquet if form.schema else _write_lines)(dataset, form, stream)


def _write_lines(artifact: Artifact, form: Format, stream: BinaryIO) -> int:
    written = 0
    for batch in _batches(artifact):
        rows = [json_line(row) for row in _rows(batch, form)]
        stream.write(b"".join(rows))
        written += len(rows)
    return written


def _write_parquet(artifact: Artifact, form: Format, stream: BinaryIO) -> int:
    written, schema = 0, form.schema
    assert schema is not None
    with pq.ParquetWriter(stream, schema, compression="zstd") as writer:
        for batch in _batches(artifact) if form.row else _batches(artifact, schema.names):
            table = pa.Table.from_pylist(list(_rows(batch, form)), schema=schema) if form.row else batch.cast(schema)
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


def _rows(batch: pa.Table, form: Format) -> Iterator[Row]:
    """Yield what is written for the samples of a batch that fit."""
    assert form.row is not None
    for sample, roles in zip(batch.to_pylist(), _roles(batch["messages"]), strict=True):
        if form.fits is None or form.fits(roles) is None:
            yield form.row(sample if form.schema else {**sample, "messages": messages_of(sample["messages"])})


def _roles(messages: pa.ChunkedArray) -> Iterator[Roles]:
    """Yield the roles of each conversation, without its texts."""
    for chunk in messages.chunks:
        roles, lengths = pc.struct_field(chunk.flatten(), "role").to_pylist(), chunk.value_lengths().to_pylist()
        stops = accumulate(lengths)
        yield from (tuple(roles[stop - length : stop]) for length, stop in zip(lengths, stops, strict=True))


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


def _fit(name: str, artifact: Artifact, form: Format, format: str, leave_out: bool) -> Counter[str]:
    """Return why and how many samples of a dataset don't fit, by their roles.

    Raises:
        ExportError: some don't, and they may not be left out.
        ArtifactError: the dataset isn't sealed, or holds no file.
    """
    manifest = artifact.manifest
    if not artifact.parts():
        raise ArtifactError(f"{artifact.uri}/data holds no parquet file")
    reasons: Counter[str] = Counter()
    if form.fits is None:
        return reasons
    first = ""
    for batch in _batches(artifact, ["sample_id", "messages"]):
        for sample_id, roles in zip(batch["sample_id"].to_pylist(), _roles(batch["messages"]), strict=True):
            reason = form.fits(roles)
            if reason is not None:
                reasons[reason] += 1
                first = first or sample_id
    if reasons and not leave_out:
        counts = ", ".join(f"{reason} ({count})" for reason, count in reasons.most_common())
        others = ", ".join(other for other, one in FORMATS.items() if one.fits is None)
        raise ExportError(
            f"{name}: {reasons.total()} of {manifest['samples']} samples do not fit {format}: {counts}, e.g. {first}; "
            f"{others} hold them all, or leave them out with --leave-out"
        )
    return reasons


def _remove_former(out: Storage) -> None:
    """Remove the files that a former export wrote into the folder, and no others."""
    if out.exists(RECORD):
        filesystem, root = out.filesystem()
        former = json.loads(out.read_bytes(RECORD))
        for path in (RECORD, *former["files"]):
            if out.exists(path):
                filesystem.delete_file(f"{root}/{path}")


def _file_name(name: str) -> str:
    """Return a dataset's name without the `@`, which marks a revision in the paths of a hub."""
    return name.replace("@", "-at-")
