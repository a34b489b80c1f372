"""Prompts without an answer: a column of texts or of conversations, in any file that ingest reads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from diversity.config import UserError
from diversity.corpus.files import find_files
from diversity.corpus.readers import read_rows
from diversity.corpus.samples import Rejection, to_prompt


class NoPrompt(UserError):
    """A row of a file of prompts that holds none."""


def read_prompts(paths: Sequence[str], column: str, setting: str) -> Iterator[tuple[str, list[dict[str, str]] | None]]:
    """Yield (source, messages up to the user's turn) of each row; None for messages where the prompt is blank.

    Args:
        paths: files, folders, globs or URIs.
        column: holds the prompt, a text or a list of messages.
        setting: the setting that names the column, for the message.

    Raises:
        ReadError: a file can't be found or read.
        NoPrompt: a row without a prompt in the column.
    """
    for file in find_files(paths):
        for number, row in read_rows(file, columns=[column]):
            value: Any = row.get(column) if isinstance(row, Mapping) else None
            if isinstance(value, str) and not value.strip():
                yield file.name, None
                continue
            found = to_prompt(value)
            if isinstance(found, Rejection):
                raise NoPrompt(f"{file.shown}: row {number} has no prompt in {column!r} ({setting}): {found.reason}")
            yield file.name, found
