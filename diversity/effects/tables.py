"""The effects of an experiment as one tidy table, from the tidy tables of its results and datasets.

`slope` rows say how a score changes with diversity for one strategy, size and control; `difference` rows how two slopes differ; `contrast`
rows how the most diverse datasets compare with baselines; `partial` rows what is left of a coverage's effect when the others are held
fixed; `spread` rows how runs scatter and from what; `best` rows the best cell; `correlation` rows how a posterior metric goes with the
score over all runs. What there are too few runs for is a row with a note instead of a number: a report can say so.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from diversity.effects.best import best_rows
from diversity.effects.partial import dataset_facts, partial_rows, spread_rows
from diversity.effects.posterior import correlation_rows
from diversity.effects.schema import EFFECTS_SCHEMA, scored_rows
from diversity.effects.slopes import contrast_rows, difference_rows, slope_rows


def effects_table(
    results: pa.Table,
    metrics: pa.Table | None = None,
    coverage: pa.Table | None = None,
    sources: pa.Table | None = None,
    *,
    seed: int = 0,
    bootstraps: int = 1000,
) -> pa.Table:
    """Return all effects of an experiment as a table of EFFECTS_SCHEMA.

    Args:
        results: rows of RESULTS_SCHEMA.
        metrics: the posterior metrics, METRICS_SCHEMA with a column `cell`; None leaves the correlations out.
        coverage: rows of COVERAGE_SCHEMA; None, here or in sources, leaves the partial effects out.
        sources: rows of SOURCES_SCHEMA.
        seed: of shuffles and resamples.
        bootstraps: resamples of runs for the intervals of correlations.
    """
    scored = scored_rows(results)
    slopes, differences, contrasts, best, posterior = np.random.default_rng(seed).spawn(5)  # no part's draws depend on another's
    rows = slope_rows(scored, slopes) + difference_rows(scored, differences) + contrast_rows(scored, contrasts)
    if coverage is not None and sources is not None:
        rows += partial_rows(scored, dataset_facts(results, coverage, sources))
    rows += spread_rows(scored) + best_rows(scored, best)
    if metrics is not None:
        rows += correlation_rows(scored, metrics, posterior, bootstraps)
    return pa.Table.from_pylist([{name: _plain(row.get(name)) for name in EFFECTS_SCHEMA.names} for row in rows], schema=EFFECTS_SCHEMA)


def _plain(value: object) -> object:
    """Return a number as one that is not NaN: what is not known is null in a table."""
    return None if isinstance(value, float) and not np.isfinite(value) else value
