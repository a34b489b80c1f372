"""Flags that several tools share: a mapping of columns, amounts as people write them, and errors in the words of the command line."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction

import yaml

from diversity.config import ConfigError, UserError
from diversity.corpus.formats import check_columns

COLUMNS_HELP = "of another format, e.g. '{instruction: question, response: answer}'; beside a known one, e.g. '{score: rating}'"
# Settings by the flags that set them.
FLAGS = {
    "corpus.columns=": "--columns ",
    "corpus.columns": "--columns",
    "corpus.max_rejected": "--max-rejected",
    "corpus.paths": "the data",
    "profile.scorer.min_score=": "--min-score ",
    "profile.scorer.min_score": "--min-score",
    "corpus.min_score": "--min-score",
    "grid.controls": "--control",
    "grid.subset_seeds.0": "--seed",
    "selection.rho": "--rho",
}
UNITS = {"": 1, "k": 1000, "m": 1000**2, "b": 1000**3, "g": 1000**3}


def columns_of(written: str | None) -> dict[str, str] | None:
    """Return a mapping of fields to columns, written as a YAML flow mapping (JSON is one).

    Raises:
        ConfigError: it is none, or names a field that there isn't.
    """
    if written is None:
        return None
    try:
        found = yaml.safe_load(written)
    except yaml.YAMLError:
        found = None
    if not isinstance(found, dict) or not all(isinstance(name, str) for pair in found.items() for name in pair):
        raise ConfigError(f"--columns {written!r} is no mapping: write it as '{{instruction: question, response: answer}}'")
    try:
        return check_columns(found)
    except ValueError as error:
        raise ConfigError(f"--{error}") from None


def amount_of(written: str, flag: str) -> int:
    """Return a whole number from 1 on, which may end in k, M or B: `20k`, `1.5M`.

    Raises:
        ConfigError: it is something else.
    """
    match = re.fullmatch(r"(\d+(?:_\d{3})*(?:\.\d+)?)([kmbg]?)", written.strip().lower())
    number = Fraction(match[1].replace("_", "")) * UNITS[match[2]] if match else Fraction(0)
    if number < 1 or number.denominator != 1:
        raise ConfigError(f"{flag} {written!r}: give a number from 1 on, e.g. 10000, 20k or 2M")
    return int(number)


def size_of(written: str) -> int | Fraction:
    """Return a size: a number of samples, or a share of the corpus as a fraction from `10%`.

    Raises:
        ConfigError: it is neither.
    """
    if not written.strip().endswith("%"):
        return amount_of(written, "--size")
    try:
        share = Fraction(written.strip().removesuffix("%").strip()) / 100
    except (ValueError, ZeroDivisionError):
        share = Fraction(0)
    if not 0 < share <= 1:
        raise ConfigError(f"--size {written!r}: a share of the corpus is above 0% and at most 100%")
    return share


@contextmanager
def told_by_flags() -> Iterator[None]:
    """Turn errors about input that name settings into the same ones that name flags."""
    try:
        yield
    except UserError as error:
        raise UserError(by_flags(str(error))) from None


def by_flags(told: str) -> str:
    """Return what is told with flags in the place of settings."""
    for setting, flag in FLAGS.items():
        told = told.replace(setting, flag)
    return told
