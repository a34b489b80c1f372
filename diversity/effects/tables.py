"""The effects of an experiment as one tidy table, from the tidy tables of its results and datasets.

`slope` rows say how a score changes with diversity for one strategy, size and control; `ends` rows the same from the means of the highest
and lowest level, `fit` rows whether a line fits; `difference` rows how two slopes differ; `contrast` rows how the most diverse datasets
compare with baselines; `partial` rows what is left of a coverage's effect when the others are held fixed; `spread` rows how runs scatter
and from what; `best` rows the best cell; `correlation` rows how a posterior metric goes with the score. What there is too little of is a
row with a note instead of a number: a report can say so.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from diversity.effects.best import best_rows
from diversity.effects.contrasts import contrast_rows, difference_rows
from diversity.effects.ledger import Ledger, generator_for
from diversity.effects.partial import dataset_facts, partial_rows, spread_rows
from diversity.effects.plan import Plan, mark
from diversity.effects.posterior import correlation_rows
from diversity.effects.schema import EFFECTS_SCHEMA, Row, scored_rows
from diversity.effects.slopes import Measured, PromptError, slope_rows


def effects_table(
    results: pa.Table,
    metrics: pa.Table | None = None,
    coverage: pa.Table | None = None,
    sources: pa.Table | None = None,
    *,
    plan: Plan | None = None,
    prompt_error: PromptError | None = None,
    seed: int = 0,
    bootstraps: int = 1000,
) -> pa.Table:
    """Return all effects of an experiment as a table of EFFECTS_SCHEMA.

    Args:
        results: rows of RESULTS_SCHEMA.
        metrics: the posterior metrics, METRICS_SCHEMA with a column `cell`; None leaves the correlations out.
        coverage: rows of COVERAGE_SCHEMA; None, here or in sources, leaves the partial effects out.
        sources: rows of SOURCES_SCHEMA.
        plan: what was sealed before the sweep; None: nothing is confirmatory, and no run is missing.
        prompt_error: standard error over prompts of a weighted sum of runs' scores; None leaves prompts as they are.
        seed: of shuffles and resamples.
        bootstraps: resamples of datasets for the intervals of correlations.
    """
    scored = scored_rows(results)
    measured = Measured(Ledger(results, plan.planned if plan else None), seed, prompt_error)
    rows = slope_rows(scored, measured) + difference_rows(scored, measured) + contrast_rows(scored, measured)
    mark(rows, plan)
    if coverage is not None and sources is not None:
        rows += partial_rows(scored, dataset_facts(results, coverage, sources))
    rows += spread_rows(scored) + best_rows(scored, measured)
    if metrics is not None:
        rows += correlation_rows(scored, metrics, generator_for(seed, "correlation"), bootstraps)
    return table_of(rows)


def table_of(rows: list[Row]) -> pa.Table:
    """Return rows of effects as a table of EFFECTS_SCHEMA; what is not a number is null."""
    return pa.Table.from_pylist([{name: _plain(row.get(name)) for name in EFFECTS_SCHEMA.names} for row in rows], schema=EFFECTS_SCHEMA)


def _plain(value: object) -> object:
    """Return a number as one that is not NaN: what is not known is null in a table."""
    return None if isinstance(value, float) and not np.isfinite(value) else value
