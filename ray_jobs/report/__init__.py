"""The report of an experiment: tidy tables come in, one HTML file with inline SVG that needs no network goes out.

`gather.py` makes the tables out of an experiment's index and seals, `page.py` renders them, the other files draw one part each. This
module holds the report's configuration alone. Open `data.py` first: it says what a report shows.
"""

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
