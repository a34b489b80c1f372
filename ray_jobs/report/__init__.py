"""The report of an experiment: one HTML file with inline SVG that needs no network. This module holds its configuration alone."""

from __future__ import annotations

from diversity.config import Config


class ReportConfig(Config):
    """What the report says and shows.

    Attributes:
        note: the report's first line, for what a reader must know before any figure; None for no such line.
        samples: whether it shows texts of samples and labels of types; False leaves figures only, for corpora that may not be passed on.
    """

    note: str | None = None
    samples: bool = True
