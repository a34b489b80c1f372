"""From scores to statements: slopes, bands, correlations, multiplicity, power, and the tables of an experiment's effects."""

from diversity.effects.correlation import Correlation, correlation
from diversity.effects.power import detectable_change, power_of, seeds_needed
from diversity.effects.regression import Ridge, Slope, bayesian_ridge, holm, ols, permutation_p, slope_difference
from diversity.effects.tables import EFFECTS_SCHEMA, RESULTS_SCHEMA, effects_table

__all__ = [
    "EFFECTS_SCHEMA",
    "RESULTS_SCHEMA",
    "Correlation",
    "Ridge",
    "Slope",
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
]
