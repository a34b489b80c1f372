"""Scores become statements: tidy tables of results come in, slopes, intervals and sentences go out.

It knows nothing of where scores come from, so any table with the columns of `schema.py` will do. `units.py` says what is counted as one and
what is independent of what, `tables.py` computes every effect of an experiment, `verdict.py` says in words what they allow, `power.py` what
a design can find. Open `schema.py` first, then `units.py`.
"""

from diversity.effects.correlation import Association, Correlation, association, correlation
from diversity.effects.permutation import permutation_p, smallest_p
from diversity.effects.plan import Plan, PlanConfig
from diversity.effects.regression import Ridge, Slope, bayesian_ridge, holm, ols, slope_difference
from diversity.effects.schema import COVERAGE_SCHEMA, EFFECTS_SCHEMA, PLANNED_SCHEMA, RESULTS_SCHEMA, SOURCES_SCHEMA
from diversity.effects.tables import effects_table
from diversity.effects.verdict import Statement, verdict

__all__ = [
    "COVERAGE_SCHEMA",
    "EFFECTS_SCHEMA",
    "PLANNED_SCHEMA",
    "RESULTS_SCHEMA",
    "SOURCES_SCHEMA",
    "Association",
    "Correlation",
    "Plan",
    "PlanConfig",
    "Ridge",
    "Slope",
    "Statement",
    "association",
    "bayesian_ridge",
    "correlation",
    "effects_table",
    "holm",
    "ols",
    "permutation_p",
    "slope_difference",
    "smallest_p",
    "verdict",
]
