"""Scores become statements: tidy tables of results come in, slopes, intervals and sentences go out.

It knows nothing of where scores come from, so any table with the columns of `schema.py` will do. `tables.py` computes every effect of an
experiment, `verdict.py` says in words what they allow. Open `schema.py` first.
"""

from diversity.effects.correlation import Association, Correlation, association, correlation
from diversity.effects.power import detectable_change, power_of, seeds_needed
from diversity.effects.regression import Ridge, Slope, bayesian_ridge, holm, ols, permutation_p, slope_difference
from diversity.effects.schema import COVERAGE_SCHEMA, EFFECTS_SCHEMA, RESULTS_SCHEMA, SOURCES_SCHEMA
from diversity.effects.tables import effects_table
from diversity.effects.verdict import Statement, verdict

__all__ = [
    "COVERAGE_SCHEMA",
    "EFFECTS_SCHEMA",
    "RESULTS_SCHEMA",
    "SOURCES_SCHEMA",
    "Association",
    "Correlation",
    "Ridge",
    "Slope",
    "Statement",
    "association",
    "bayesian_ridge",
    "correlation",
    "detectable_change",
    "effects_table",
    "holm",
    "ols",
    "permutation_p",
    "power_of",
    "seeds_needed",
    "slope_difference",
    "verdict",
]
