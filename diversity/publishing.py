"""How a writer's folder becomes the artifact, at one stroke, whatever others do at the same time and wherever a process is killed.

On an object store there are no renames, and putting an object is atomic: the manifest is put, and names the writer's folder. Of two that
put theirs at the same time the last one stands, and the other's folder stays, since somebody may be reading it; `clean` removes it later.

On a local storage what a writer has moves up by renames, out of `<fingerprint>/.<writer>/` into `<fingerprint>/`, and two must not do so
at the same time. One rename decides: of a folder that says who publishes what to `.sealing`, which fails where another's is. Then anybody,
and not the winner alone, carries the moves out and writes the manifest. So nobody waits for a process that was killed in between.
"""

from __future__ import annotations

import errno
import json
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import pyarrow.fs as pafs

from diversity.filesystems import Files

MANIFEST = "manifest.json"
DATA = "data"  # the folder with an artifact's main table, and the manifest's key that says where that is
BEGUN = ".begun"  # in the folder of a writer, until it has sealed or thrown it away
SEALING = ".sealing"
CLAIM = "claim.json"


def by_name(files: Files, path: str, writer: str, manifest: Mapping[str, Any]) -> bool:
    """Put a manifest that names the writer's folder, unless there is one; return whether there is one now.

    A writer that died before it could tell, and is run again, finds its own manifest: its folder stays.

    Args:
        files: the storage.
        path: of the artifact, `<kind>/<fingerprint>`.
        writer: the name of the writer's folder in it.
        manifest: what is sealed.
    """
    if not files.exists(f"{path}/{MANIFEST}"):
        if not files.exists(f"{path}/{writer}/{BEGUN}"):
            return False
        files.write_bytes(f"{path}/{MANIFEST}", _told({**manifest, DATA: f"{writer}/{DATA}"}))
        _delete(files, f"{path}/{writer}/{BEGUN}")
    else:
        discard(files, f"{path}/{writer}")
    return True


def by_renames(files: Files, path: str, writer: str, manifest: Mapping[str, Any]) -> bool:
    """Publish the writer's folder, unless another one is or was published; return whether the artifact is sealed now. As `by_name`."""
    entries = _visible(files, f"{path}/{writer}")
    while not _sealed(files, path):
        if not files.exists(f"{path}/{writer}/{BEGUN}"):
            return _sealed(files, path)
        # What lies there now was left by an artifact that was unsealed, or else another's claim was first, and ours fails.
        left = [info.base_name for info in files.list(path) if info.base_name in entries and _filled(files, path, info)]
        claim = {"writer": writer, "entries": entries, "left": left, "manifest": {**manifest, DATA: DATA}}
        files.write_bytes(f"{path}/{writer}/{SEALING}/{CLAIM}", _told(claim))
        _moved(files, f"{path}/{writer}/{SEALING}", f"{path}/{SEALING}")
    discard(files, f"{path}/{writer}")
    return True


def finish(files: Files, path: str) -> bool:
    """Carry out what a writer has claimed, and return whether there was a claim. Any number may do so at once."""
    if not files.renames or not files.exists(f"{path}/{SEALING}/{CLAIM}"):
        return False
    try:
        claim = json.loads(files.read_bytes(f"{path}/{SEALING}/{CLAIM}"))
    except FileNotFoundError:
        return True  # another one has just finished it
    # A claim read before its artifact was sealed is the winner's; one that came later finds the manifest here, and moves nothing.
    own = f"{path}/{claim['writer']}"
    if not files.exists(f"{path}/{MANIFEST}"):
        for entry in claim["entries"]:
            if entry in claim["left"]:
                _moved(files, f"{path}/{entry}", f"{own}/.left-{entry}")  # one name, which only one can give: no one moves what is new
            _moved(files, f"{own}/{entry}", f"{path}/{entry}")
        if set(_visible(files, path)).issuperset(claim["entries"]):
            files.write_bytes(f"{path}/{MANIFEST}", _told(claim["manifest"]))
    discard(files, own)
    with suppress(OSError):  # another one is removing it
        files.remove_folder(f"{path}/{SEALING}")
    return True


def discard(files: Files, own: str) -> None:
    """Remove a writer's folder, the mark that it is one first: from then on it can't be sealed.

    A folder that a manifest names loses the mark alone. What can't be removed stays for `clean`.
    """
    named = not files.renames and _named(files, own)
    _delete(files, f"{own}/{BEGUN}")
    if not named:
        with suppress(OSError):
            files.remove_folder(own)


def _named(files: Files, own: str) -> bool:
    """Return whether there is a manifest that names the writer's folder."""
    path, _, writer = own.rpartition("/")
    manifest = f"{path}/{MANIFEST}"
    return files.exists(manifest) and json.loads(files.read_bytes(manifest)).get(DATA, DATA).startswith(f"{writer}/")


def _sealed(files: Files, path: str) -> bool:
    manifest = f"{path}/{MANIFEST}"
    return files.exists(manifest) or (finish(files, path) and files.exists(manifest))


def _moved(files: Files, source: str, target: str) -> bool:
    """Rename a file or folder, and return whether that was done: not if it is gone, nor if a folder with something in it is there."""
    filesystem, root = files.filesystem()
    try:
        filesystem.move(f"{root}/{source}", f"{root}/{target}")
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTEMPTY, errno.EEXIST):
            return False
        raise
    return True


def _filled(files: Files, path: str, info: pafs.FileInfo) -> bool:
    return info.type == pafs.FileType.Directory and bool(files.list(f"{path}/{info.base_name}"))


def _visible(files: Files, path: str) -> list[str]:
    """Return the names of what lies in a folder, less manifest and what starts with a dot."""
    return [info.base_name for info in files.list(path) if not info.base_name.startswith(".") and info.base_name != MANIFEST]


def _delete(files: Files, path: str) -> None:
    filesystem, root = files.filesystem()
    with suppress(FileNotFoundError):
        filesystem.delete_file(f"{root}/{path}")


def _told(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, ensure_ascii=False, indent=1).encode()
