"""The tables that scores come in: one row for each figure, and one for each sample behind it. Named here once for all packages."""

from __future__ import annotations

import pyarrow as pa

SCORES_SCHEMA = pa.schema(
    [
        ("run", pa.string()),
        ("evaluator", pa.string()),
        ("split", pa.string()),
        ("metric", pa.string()),
        ("value", pa.float64()),
        ("se", pa.float64()),
        ("n", pa.int64()),
        ("higher_is_better", pa.bool_()),
        ("primary", pa.bool_()),
    ]
)
SAMPLE_SCORES_SCHEMA = pa.schema(
    [
        ("run", pa.string()),
        ("evaluator", pa.string()),
        ("split", pa.string()),
        ("metric", pa.string()),
        ("sample_id", pa.string()),
        ("group", pa.int32()),  # held-out samples of one prompt group have one number, within a split
        ("tokens", pa.int32()),  # of the response, as far as they were scored
        ("value", pa.float64()),
    ]
)
"""What paired comparisons of runs need: the file `samples/` of a scores artifact."""
