"""`hf://owner/name[:split]`: the data files of a Hugging Face dataset at the commit that is current when the work starts."""

from __future__ import annotations

import re
from typing import Any

from diversity.config import load
from diversity.corpus.files import DESCRIPTIONS, ReadError, suffixes_of

NAME = re.compile(r"hf://(?:datasets/)?([\w.-]+/[\w.-]+?)(?::([\w.-]+))?")


def dataset_files(uri: str, api: Any = None) -> list[tuple[str, str, int, str]]:
    """Return (root, path, size, commit) of every data file of a dataset, sorted.

    Args:
        uri: `hf://owner/name` for all files, `hf://owner/name:train` for those with `train` as a part of their path.
        api: a `huggingface_hub.HfApi`, by default a new one.

    Raises:
        ReadError: no such dataset or split, a hub that doesn't answer, or a URI of another form.
    """
    match = NAME.fullmatch(uri)
    if match is None:
        raise ReadError(f"{uri}: give a dataset as hf://owner/name or hf://owner/name:split")
    name, split = match.groups()
    try:
        info = (api or load("huggingface_hub:HfApi")()).dataset_info(name, files_metadata=True)
    except Exception as error:  # the hub's client raises errors of several HTTP libraries
        raise ReadError(f"{uri}: the hub doesn't give it: {' '.join(str(error).split())[:300]}") from None
    files = [(file.rfilename, file.size or 0) for file in info.siblings if suffixes_of(file.rfilename)[0]]
    files = [(path, size) for path, size in files if path.rpartition("/")[2] not in DESCRIPTIONS]
    if split is not None:
        part = re.compile(rf"(?:^|[/_.-]){re.escape(split)}(?:[/_.-]|$)")
        files = [(path, size) for path, size in files if part.search(path)]
    if not files:
        raise ReadError(f"{uri}: no data file{f' of a split {split!r}' if split else ''} in commit {info.sha}")
    return [("hf://", f"datasets/{name}@{info.sha}/{path}", size, info.sha) for path, size in sorted(files)]
