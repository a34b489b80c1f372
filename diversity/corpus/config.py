"""What `corpus` in an experiment's configuration says: where samples come from, and what is done before anything counts them."""

from __future__ import annotations

from pydantic import Field, field_validator

from diversity.config import Config
from diversity.corpus.contamination import ContaminationConfig
from diversity.corpus.formats import check_columns


class CorpusConfig(Config):
    """What to read. `columns` maps sample fields to the columns of files in a format that is not known by itself.

    Attributes:
        paths: files, folders, globs, URIs, or `builtin:python-docs`.
        columns: e.g. `{instruction: question, response: answer}`. Keys are `instruction`, `input`, `response`, or `messages`; and what may
            stand beside any format: `system`, `history`, `tools`, `reasoning`, `source`, `score`.
        max_rejected: largest share of rows that may be unusable, in [0, 1].
        min_score: samples whose `score` is lower, or that have none, are left out and counted; null keeps all.
        limit: number of samples to keep, chosen by a keyed hash of their ids; null keeps all.
        contamination: evaluation prompts that the corpus is checked for; null checks nothing.
    """

    paths: list[str] = Field(default_factory=list)
    columns: dict[str, str] | None = None
    max_rejected: float = Field(default=0.05, ge=0.0, le=1.0)
    min_score: float | None = None
    limit: int | None = Field(default=None, ge=1)
    contamination: ContaminationConfig | None = None

    @field_validator("columns")
    @classmethod
    def _known_fields(cls, columns: dict[str, str] | None) -> dict[str, str] | None:
        return None if columns is None else check_columns(columns)
