"""Taggers: classes that load in `__init__` and turn a list of texts into a list of tags each in `__call__`; one file each.

A text's tags are raw, ranked, the most telling first; `diversity/tags.py` normalises them over the corpus.
To add one: a file with such a class, and a line in `TAGGERS`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from pydantic import Field, model_validator

from diversity.config import Config, lookup, near_matches

TAGGERS = {"keyphrase": "diversity.taggers.keyphrase:KeyphraseTagger"}


class TaggerConfig(Config):
    """How texts get tags, and how tags are normalised. Frequencies are for 117,000 samples and scale with the corpus.

    Attributes:
        name: one of `TAGGERS`.
        response_chars: of a response, only so many first characters are tagged.
        alpha: samples that a tag must occur in, at least; scaled, and never below 3.
        max_share: a tag in more than this share of the samples says nothing and is dropped.
        merge: tags whose vectors have at least this cosine to a commoner tag become that tag; null leaves them.
        mutual: two tags whose frequencies are at most this many times their joint frequency become one; null leaves them.
        max_tags: of a sample, at most: its intent and its rarest tags stay.
    """

    name: str = "keyphrase"
    response_chars: int = Field(default=500, ge=1)
    alpha: int = Field(default=20, ge=1)
    max_share: float = Field(default=0.05, gt=0, le=1)
    merge: float | None = Field(default=0.9, gt=0, le=1)
    mutual: float | None = Field(default=1.02, ge=1)
    max_tags: int = Field(default=6, ge=1)

    @model_validator(mode="after")
    def _known(self) -> TaggerConfig:
        if self.name not in TAGGERS:
            raise ValueError(f"unknown tagger {self.name!r}{near_matches(self.name, TAGGERS)}")
        return self

    def threshold(self, n: int) -> int:
        """Return the lowest frequency of a tag in a corpus of n samples."""
        return max(3, round(self.alpha * n / 117_000))


class Tagger(Protocol):
    """What every tagger is."""

    def __call__(self, texts: Sequence[str]) -> list[list[str]]:
        """Return each text's raw tags, each once, the most telling first."""

    @staticmethod
    def identity(config: TaggerConfig) -> dict[str, Any]:
        """Return what decides the raw tags beside the text: names, versions, prompts."""


def tagger_class(config: TaggerConfig) -> Any:
    """Return the class that a config names."""
    return lookup(TAGGERS, config.name, "tagger")


def load_tagger(config: TaggerConfig, side: str) -> Tagger:
    """Return the tagger that a config names, loaded for a side."""
    return tagger_class(config)(config, side)
