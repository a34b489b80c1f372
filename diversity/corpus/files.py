"""Paths, folders, globs and URIs become a sorted list of input files, each with a content digest that no rename or touch changes."""

from __future__ import annotations

import json
import logging
import posixpath
import re
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs

from diversity.artifact import file_digest
from diversity.config import UserError, load, near_matches
from diversity.filesystems import open_filesystem

logger = logging.getLogger(__name__)

BUILTIN = {"python-docs": "diversity.corpus.python_docs.builder:PythonDocs"}
DATA_SUFFIXES = (".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", ".arrow", ".feather", ".ipc")
COMPRESSIONS = (".gz", ".zst", ".bz2", ".xz")
# What `datasets` writes beside its data.
DESCRIPTIONS = frozenset({"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"})
CHOICE = re.compile(r"(?P<folder>.+)\[(?P<splits>[\w.-]+(?:\+[\w.-]+)*)\]")
SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
}
PACKED_SUFFIXES = (".json", ".jsonl", ".ndjson", ".csv", ".tsv")


class ReadError(UserError):
    """An input that can't be found, opened or read to its end; the message names the file."""


@dataclass(frozen=True)
class InputFile:
    """A file to read.

    Attributes:
        root: the URI that opens the filesystem (as the person gave it, with its options), or "" for local files.
        path: where the file is inside it.
        size: bytes.
        commit: the revision of a hub that pins the file.
    """

    root: str
    path: str
    size: int
    commit: str | None = None

    @property
    def name(self) -> str:
        """Return the file's name without its folders: the source of rows that name none."""
        return posixpath.basename(self.path)

    @property
    def shown(self) -> str:
        """Return the file for people: its path or URI, without the options and credentials of a URI."""
        scheme, separator, _ = self.root.partition("://")
        return f"{scheme}://{self.path.lstrip('/')}" if separator else self.path

    def filesystem(self) -> pafs.FileSystem:
        """Return the filesystem in which `path` is."""
        return filesystem_of(self.root)[0] if self.root else pafs.LocalFileSystem()


def filesystem_of(uri: str) -> tuple[pafs.FileSystem, str]:
    """Return the filesystem that opens a path or URI, and the path inside it.

    Schemes that pyarrow doesn't know (`hf`, `memory`, `https` …) are left to fsspec, which then has to be installed.

    Raises:
        ReadError: nothing opens such a URI.
    """
    scheme, separator, _ = uri.partition("://")
    if not separator:
        return pafs.LocalFileSystem(), str(Path(uri).absolute())
    try:
        return open_filesystem(uri)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError, ValueError):
        pass
    try:
        opened = load("fsspec:filesystem")(scheme)
    except (ImportError, ValueError) as error:
        raise ReadError(f"{uri}: can't be opened ({error})") from None
    return pafs.PyFileSystem(pafs.FSSpecHandler(opened)), opened._strip_protocol(uri)


def suffixes_of(name: str) -> tuple[str, str]:
    """Return (format suffix, compression suffix) of a file name in lower case; "" where there is none that is known."""
    stem, packed = name.lower(), ""
    for compression in COMPRESSIONS:
        if stem.endswith(compression):
            stem, packed = stem.removesuffix(compression), compression
    suffix = posixpath.splitext(stem)[1]
    allowed = PACKED_SUFFIXES if packed else DATA_SUFFIXES
    return (suffix if suffix in allowed else ""), packed


def find_files(paths: Sequence[str]) -> list[InputFile]:
    """Return the files that the paths name, sorted by URI, each once.

    A folder gives every file below it whose suffix is known; the others are named in the log. Hidden files (`.x`, `_SUCCESS`) and
    descriptions of data sets are no data; of a folder that `datasets` saved, what its `state.json` names is. A folder that holds several
    splits is asked for by `folder[train]` or `folder[train+validation]`. A path that is there is taken as it is written. Files without
    a byte hold no rows, and are named in the log.

    Raises:
        ReadError: a path that isn't there or holds nothing to read, a file of an unknown kind, a folder of several splits of which none
            is chosen; or no paths at all.
    """
    if not paths:
        raise ReadError("corpus.paths is empty: say what to read, e.g. corpus.paths='[data/train.jsonl]'")
    found: dict[str, InputFile] = {}
    alone: dict[str, list[InputFile]] = {}  # files that are named one by one, as a shell does with a glob, by their folder
    for path in paths:
        for file in _expand(path):
            found[file.shown] = file
            if file.name == posixpath.basename(path):
                alone.setdefault(posixpath.dirname(file.shown), []).append(file)
    for folder, files in alone.items():
        _tell_splits(files, posixpath.dirname(files[0].path), f"the files of {folder} that are named", folder)
    empty = sorted(shown for shown, file in found.items() if file.size == 0)
    if empty:
        logger.warning("%d files without a byte hold no rows, e.g. %s", len(empty), empty[0])
    return [found[shown] for shown in sorted(found)]


def content_digest(file: InputFile, cache: Path | None = None) -> str:
    """Return what names a file's bytes: their blake2b-128, or the version that its store gives them.

    Object stores give an ETag or version with the first byte; where a store gives neither, its bytes are read and hashed.

    Raises:
        ReadError: the file can't be read.
    """
    if file.commit is not None:
        return blake2b(f"{file.commit}/{file.path}".encode(), digest_size=16).hexdigest()
    try:
        filesystem = file.filesystem()
        if isinstance(filesystem, pafs.LocalFileSystem):
            return file_digest(Path(file.path), cache)
        with filesystem.open_input_stream(file.path, compression=None) as stream:
            version = _store_version(stream)
            if version:
                return blake2b(f"{file.size}/{version}".encode(), digest_size=16).hexdigest()
            state = blake2b(digest_size=16)
            while chunk := stream.read(1 << 22):
                state.update(chunk)
            return state.hexdigest()
    except (OSError, pa.ArrowException) as error:
        raise ReadError(f"{file.shown}: {error}") from None


def _store_version(stream: Any) -> str | None:
    """Return the ETag or version that an object store's stream carries."""
    try:
        metadata = stream.metadata() or {}
    except (pa.ArrowException, OSError, AttributeError):
        return None
    values = {key.decode() if isinstance(key, bytes) else str(key): value for key, value in metadata.items()}
    found = values.get("VersionId") or values.get("ETag")
    return found.decode() if isinstance(found, bytes) else found


def _expand(path: str) -> list[InputFile]:
    """Return the files of one path, folder, glob or hub name."""
    chosen = CHOICE.fullmatch(path)
    if path.startswith("hf://"):
        dataset = chosen["folder"] if chosen else path
        files = [InputFile(*parts) for parts in load("diversity.corpus.hub:dataset_files")(dataset)]
        if ":" in dataset.removeprefix("hf://"):
            return files
        return split_files(files, f"{posixpath.commonpath([file.path for file in files]).partition('@')[0]}@", dataset, _names(chosen))
    if path.startswith("builtin:"):
        raise ReadError(f"{path} is no file: the built-in corpora are {', '.join('builtin:' + name for name in BUILTIN)}")
    filesystem, inside = filesystem_of(path)
    root = path if "://" in path else ""
    info = filesystem.get_file_info(inside)
    if info.type == pafs.FileType.File:
        file = InputFile(root, inside, info.size)
        if not suffixes_of(inside)[0] and not (info.size and load("diversity.corpus.sniff:looks_like_data")(file)):
            raise ReadError(f"{path}: unknown kind of file: {_known_kinds()}")
        return [file]
    if info.type == pafs.FileType.Directory:
        return split_files(_folder(filesystem, inside, root, path, None), inside, path)
    if chosen is not None:
        folder = filesystem_of(chosen["folder"])[1]
        if filesystem.get_file_info(folder).type == pafs.FileType.Directory:
            found = _folder(filesystem, folder, chosen["folder"] if root else "", chosen["folder"], None)
            return split_files(found, folder, chosen["folder"], _names(chosen))
    if re.search(r"[*?\[]", inside):
        base, rest = _fixed_part(filesystem, inside)
        pattern = re.compile(f"{re.escape(base.rstrip('/') + '/') if base else ''}{_pattern(rest)}", re.DOTALL)
        found = _folder(filesystem, base, root, path, pattern)
        _tell_splits(found, base, path, path.replace(rest, "", 1).rstrip("/") or ".")
        return found
    raise ReadError(f"{path}: no such file or folder")


def _folder(filesystem: pafs.FileSystem, base: str, root: str, path: str, pattern: re.Pattern[str] | None) -> list[InputFile]:
    """Return the data files below a folder, of those that match where there is a pattern."""
    files, ignored = [], []
    below_it = filesystem.get_file_info(pafs.FileSelector(base, recursive=True, allow_not_found=True))
    saved = {info.path: _saved_files(filesystem, info.path) for info in below_it if posixpath.basename(info.path) == "state.json"}
    named = {posixpath.dirname(state): names for state, names in saved.items() if names is not None}
    for info in below_it:
        below = info.path.removeprefix(base).lstrip("/")
        parts = below.split("/")
        hidden = parts[-1] in DESCRIPTIONS or any(part.startswith((".", "_")) for part in parts)
        if info.type != pafs.FileType.File or hidden or (pattern and not pattern.fullmatch(info.path)):
            continue
        if posixpath.basename(info.path) not in named.get(posixpath.dirname(info.path), {posixpath.basename(info.path)}):
            continue  # a cache of `datasets`, beside the data that its state names
        if suffixes_of(info.path)[0]:
            files.append(InputFile(root, info.path, info.size))
        else:
            ignored.append(info.path)
    if ignored:
        logger.warning("%s: %d files of unknown kinds are left out, e.g. %s", path, len(ignored), min(ignored))
    if not files:
        raise ReadError(f"{path}: nothing to read there: {_known_kinds()}")
    return files


def _names(chosen: re.Match[str] | None) -> list[str]:
    """Return the names of the splits that a path chooses."""
    return chosen["splits"].split("+") if chosen else []


def _saved_files(filesystem: pafs.FileSystem, state: str) -> set[str] | None:
    """Return the names of the data files that a `state.json` of `datasets` lists, or None where it is something else."""
    try:
        with filesystem.open_input_stream(state) as stream:
            listed = json.loads(stream.read())["_data_files"]
        return {entry["filename"] for entry in listed}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def split_files(files: list[InputFile], base: str, shown: str, chosen: Sequence[str] = ()) -> list[InputFile]:
    """Return the files of the chosen splits of a folder, or all where they are of one split.

    A file's split is the last part of its path that names one, as `datasets` has it: `train`, `test` (`eval`), `validation` (`val`, `dev`).

    Args:
        files: below the folder.
        base: the folder, inside its filesystem.
        shown: the folder for people.
        chosen: names of splits; a folder's or file's own name does, too.

    Raises:
        ReadError: several splits and no choice, or a split that there isn't.
    """
    parts, splits = _words(files, base), _splits(files, base)
    present = sorted({split for split in splits if split is not None})
    if not chosen:
        if len(present) > 1:
            told = _counts(splits)
            raise ReadError(f"{shown} holds several splits, {told}: choose with '{shown}[train]' or '{shown}[{'+'.join(present)}]'")
        return files
    found = []
    for name in chosen:
        own = [f for f, words, split in zip(files, parts, splits, strict=True) if split == SPLITS.get(name, name) or name.lower() in words]
        if not own:
            raise ReadError(f"{shown} holds no split {name!r}{near_matches(name, present or ['train'])}")
        found += own
    return found


def _words(files: list[InputFile], base: str) -> list[list[str]]:
    """Return the words of each file's path below a folder, in lower case."""
    return [re.findall(r"[a-z0-9]+", suffixless(file.path.removeprefix(base)).lower()) for file in files]


def _splits(files: list[InputFile], base: str) -> list[str | None]:
    """Return the split that each file is of by its path below a folder, or None where it names none."""
    return [next((SPLITS[part] for part in reversed(words) if part in SPLITS), None) for words in _words(files, base)]


def _counts(splits: list[str | None]) -> str:
    """Return how many files each split has, for people."""
    present = sorted({split for split in splits if split is not None})
    return ", ".join(f"{split} ({count} file{'s' * (count > 1)})" for split in present for count in (splits.count(split),))


def _tell_splits(files: list[InputFile], base: str, shown: str, folder: str) -> None:
    """Warn of a glob, or a list of files, that takes in several splits: it names them, so it is obeyed, but it is seldom meant so."""
    splits = _splits(files, base)
    if len(set(splits) - {None}) > 1:
        logger.warning("several splits are read as one, %s: %s; for one of them write '%s[train]'", _counts(splits), shown, folder)


def suffixless(path: str) -> str:
    """Return a path without the endings that say what kind of file it is."""
    suffix, packed = suffixes_of(path)
    return path[: len(path) - len(suffix) - len(packed)]


def _known_kinds() -> str:
    return f"read are {' '.join(DATA_SUFFIXES)}, and {' '.join(PACKED_SUFFIXES)} with {' '.join(COMPRESSIONS)}"


def _fixed_part(filesystem: pafs.FileSystem, glob: str) -> tuple[str, str]:
    """Return the folder above the first component that is a pattern, and the rest: a folder that is there by its name is none."""
    parts = glob.split("/")
    for number, part in enumerate(parts):
        above = "/".join(parts[: number + 1])
        if re.search(r"[*?\[]", part) and filesystem.get_file_info(above).type != pafs.FileType.Directory:
            break
    base = "/".join(parts[:number]) or ("/" if glob.startswith("/") else "")
    return base, "/".join(parts[number:])


def _pattern(glob: str) -> str:
    """Return the expression of a glob: `**` spans folders, `*` and `?` don't, `[…]` is a set of characters."""
    pieces = re.split(r"(\*\*/|\*\*|\*|\?|\[!?[^\]]+\])", glob)
    spelled = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    out = []
    for piece in pieces:
        if piece in spelled:
            out.append(spelled[piece])
        elif piece.startswith("[") and piece.endswith("]"):
            out.append("[" + ("^" if piece[1] == "!" else "") + piece.lstrip("[").lstrip("!").replace("\\", "\\\\"))
        else:
            out.append(re.escape(piece))
    return "".join(out)
