from __future__ import annotations

import itertools
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diversity.effects import (
    association,
    bayesian_ridge,
    correlation,
    holm,
    ols,
    permutation_p,
    slope_difference,
    smallest_p,
)
from diversity.effects.paper import MODEL, paper_correlations, paper_points, paper_slopes
from diversity.effects.permutation import orders_of
from diversity.effects.regression import equivalence_p, lack_of_fit, mean_of

LEVELS = [j / 6 for j in range(7)]
VISIBLE = [  # the series of METHOD 2.4 whose seven markers are all visible and whose table entry agrees with them
    *[("instruction-micro", size) for size in (10000, 20000, 30000)],
    *[("instruction-meso", size) for size in (20000, 30000)],
    *[("response-macro", size) for size in (10000, 30000)],
    ("response-meso", 10000),
    *[("response-micro", size) for size in (10000, 20000, 30000)],
]


def series(strategy, size=None, control="none", model=MODEL):
    """Return (level in per cent, score, size, mean length) of the paper's points that have a score."""
    rows = [
        row
        for row in paper_points().to_pylist()
        if (row["strategy"], row["control"], row["model"]) == (strategy, control, model)
        and row["score"] is not None
        and size in (None, row["size"])
    ]
    return tuple(np.array([row[key] for row in rows], float) for key in ("level_percent", "score", "size", "mean_length"))


# ---- the paper's own figures: an oracle from outside


def test_the_digitised_points_are_whole():
    points = paper_points().to_pylist()
    assert len(points) == 21 * 7 + 8
    assert {p["marker"] for p in points} == {"visible", "solved", "hidden"}
    assert all((p["score"] is None) == (p["marker"] == "hidden") for p in points)
    assert paper_slopes().num_rows == 18 and paper_correlations().num_rows == 14


@pytest.mark.parametrize(("strategy", "size"), VISIBLE)
def test_visible_series_give_the_published_slope(strategy, size):
    level, score, _, _ = series(strategy, size)
    published = next(
        row["slope_per_100_points"] for row in paper_slopes().to_pylist() if (row["strategy"], row["size"]) == (strategy, size)
    )
    assert len(level) == 7
    assert 100 * ols(level, score).estimate == pytest.approx(published, abs=0.1)


def test_the_one_visible_series_that_contradicts_its_table_entry():
    level, score, _, _ = series("response-meso", 20000)
    assert 100 * ols(level, score).estimate == pytest.approx(2.96, abs=0.01)  # printed: 1.71


def test_drawn_lines_are_shrunk_and_the_drawn_band_is_not_centred():
    level, score, _, _ = series("response-micro", 10000)
    drawn = bayesian_ridge(level, score, center=False)
    assert 100 * drawn.weights[0] == pytest.approx(4.4, abs=0.05)
    _, half = drawn.predict([0, 100])
    assert half == pytest.approx([1.95, 2.8], abs=0.06)
    _, centred = bayesian_ridge(level, score).predict([0, 50, 100])
    assert centred[1] < centred[0] == pytest.approx(centred[2], rel=0.01)
    level, score, _, _ = series("response-macro", 10000)
    assert 100 * bayesian_ridge(level, score).weights[0] == pytest.approx(0.1, abs=0.05)


def test_length_goes_with_score_and_its_control_costs_part_of_the_slope():
    level, score, _, length = series("response-micro", 10000)
    assert correlation(length, score).estimate == pytest.approx(0.80, abs=0.01)
    controlled_level, controlled, _, _ = series("response-micro", control="length-window")
    free, held = ols(level / 100, score), ols(controlled_level / 100, controlled)
    assert (held.estimate, held.se, held.p) == (pytest.approx(3.16, abs=0.01), pytest.approx(1.0, abs=0.02), pytest.approx(0.02, abs=0.001))
    assert 1 - held.estimate / free.estimate == pytest.approx(0.4, abs=0.01)


@pytest.mark.parametrize(
    ("strategy", "slope", "se", "digits"),
    [
        ("response-micro", 7.35, 1.32, 0.01),
        ("instruction-meso", 3.55, 0.83, 0.01),
        ("instruction-micro", -3.34, 0.71, 0.01),
        ("response-meso", 3.06, 1.16, 0.01),
        ("instruction-macro", 1.9, 0.8, 0.15),  # hidden markers: rougher
        ("response-macro", 0.6, 0.8, 0.05),
    ],
)
def test_pooled_over_sizes(strategy, slope, se, digits):
    level, score, size, _ = series(strategy)
    pooled = ols(level / 100, score, groups=size)
    assert pooled.estimate == pytest.approx(slope, abs=digits)
    assert pooled.se == pytest.approx(se, abs=digits)


def test_significance_of_the_main_claim_with_and_without_level_0():
    p = [ols(*series("response-micro", size)[:2]).p for size in (10000, 20000, 30000)]
    assert p == pytest.approx([0.077, 0.066, 0.001], abs=0.001)
    level, score, size, _ = series("response-micro")
    assert ols(level, score, groups=size).p == pytest.approx(3.5e-5, rel=0.02)
    for strategy, slope, se in [("response-micro", 4.53, 1.35), ("response-meso", 0.53, 0.99), ("instruction-meso", 2.4, 0.95)]:
        level, score, size, _ = series(strategy)
        without = ols(level[level > 0] / 100, score[level > 0], groups=size[level > 0])
        assert (without.estimate, without.se) == (pytest.approx(slope, abs=0.03), pytest.approx(se, abs=0.01))
    for model, slope, se in [("Llama-2-70B", 4.02, 0.65), ("Llama-3-8B", 11.78, 1.0)]:
        other = ols(*series("response-micro", model=model)[:2])
        assert (100 * other.estimate, 100 * other.se) == (pytest.approx(slope, abs=0.05), pytest.approx(se, abs=0.06))


# ---- each statistic against an independent one


points = st.integers(3, 12).flatmap(
    lambda n: st.tuples(
        st.lists(st.integers(0, 100), min_size=n, max_size=n).filter(lambda x: len(set(x)) > 1),
        st.lists(st.floats(-50, 50, allow_subnormal=False), min_size=n, max_size=n),
    )
)


@settings(max_examples=100, deadline=None)
@given(points)
def test_ols_is_that_of_scipy(data):
    from scipy import stats

    x, y = data
    if len(set(y)) == 1:  # scipy's standard error is 0/0 there
        assert ols(x, y).estimate == pytest.approx(0, abs=1e-9)
        return
    mine, theirs = ols(x, y), stats.linregress(x, y)
    assert mine.estimate == pytest.approx(theirs.slope, rel=1e-8, abs=1e-9)
    assert mine.se == pytest.approx(theirs.stderr, rel=1e-5, abs=1e-6)
    assert mine.intercept == pytest.approx(theirs.intercept, rel=1e-6, abs=1e-6)


@settings(max_examples=100, deadline=None)
@given(points)
def test_bayesian_ridge_is_that_of_sklearn(data):
    from sklearn.linear_model import BayesianRidge

    x, y = np.array(data[0], float), np.array(data[1])
    if y.std() < 1e-3:  # sklearn's own updates are 0/0 there
        return
    theirs = BayesianRidge().fit(x[:, None], y)
    mine = bayesian_ridge(x, y)
    at = np.array([0.0, 33.0, 100.0])
    mean, sd = theirs.predict(at[:, None], return_std=True)
    assert mine.weights == pytest.approx(theirs.coef_, rel=1e-6, abs=1e-6)
    assert mine.predict(at)[0] == pytest.approx(mean, rel=1e-6, abs=1e-6)
    assert mine.predict(at)[1] == pytest.approx(sd, rel=1e-6, abs=1e-6)


def test_bayesian_ridge_of_several_predictors_is_that_of_sklearn():
    from sklearn.linear_model import BayesianRidge

    generator = np.random.default_rng(1)
    x = generator.normal(size=(40, 3)) @ generator.normal(size=(3, 3))
    y = x @ [1.0, -2.0, 0.0] + generator.normal(size=40)
    theirs, mine = BayesianRidge().fit(x, y), bayesian_ridge(x, y)
    assert mine.weights == pytest.approx(theirs.coef_, abs=1e-6)
    assert mine.covariance == pytest.approx(theirs.sigma_, abs=1e-6)
    assert mine.predict(x)[1] == pytest.approx(theirs.predict(x, return_std=True)[1], abs=1e-6)


def test_groups_and_covariates_are_what_a_full_design_gives():
    generator = np.random.default_rng(2)
    n = 30
    x, other, group = generator.normal(size=n), generator.normal(size=n), generator.integers(3, size=n)
    y = 2 * x - other + group + generator.normal(size=n)
    design = np.column_stack([x, other, *(group == g for g in range(3))])
    weights, rss, rank, _ = np.linalg.lstsq(design, y, rcond=None)
    covariance = np.linalg.inv(design.T @ design) * rss[0] / (n - rank)
    mine = ols(x, y, groups=group, covariates=other)
    assert (mine.estimate, mine.se, mine.dof) == (pytest.approx(weights[0]), pytest.approx(covariance[0, 0] ** 0.5), n - 5)


def test_interval_and_p_agree():
    level, score, _, _ = series("instruction-micro", 20000)
    slope = ols(level, score)
    low, high = slope.interval(1 - slope.p)
    assert min(abs(low), abs(high)) == pytest.approx(0, abs=1e-9)


def test_slope_difference_is_welch():
    from scipy import stats

    generator = np.random.default_rng(3)
    a, b = generator.normal(size=9), generator.normal(0, 3, size=14)
    as_slope = [mean_of(v) for v in (a, b)]
    difference = slope_difference(*as_slope)
    theirs = stats.ttest_ind(a, b, equal_var=False)
    assert difference.estimate / difference.se == pytest.approx(theirs.statistic) and difference.dof == int(theirs.df)
    few = slope_difference(mean_of(a[:2]), mean_of(b))
    assert few.dof == 1  # of two datasets: Welch would give several
    assert difference.estimate == pytest.approx(a.mean() - b.mean())
    same = slope_difference(as_slope[0], as_slope[0])
    assert same.estimate == 0 and same.p == 1
    assert stats.t.ppf(0.975, difference.dof) * difference.se == pytest.approx(difference.interval()[1] - difference.estimate)


def test_a_slope_that_can_not_be_had():
    with pytest.raises(ValueError, match="does not vary"):
        ols([1, 1, 1], [1, 2, 3])
    with pytest.raises(ValueError, match="does not vary"):
        ols([1, 2, 1, 2], [1, 2, 3, 4], groups=[0, 1, 0, 1])
    with pytest.raises(ValueError, match="3 points and y has 2"):
        ols([1, 2, 3], [1, 2])
    with pytest.raises(ValueError, match="not finite"):
        ols([1, 2, 3], [1, 2, float("nan")])
    two = ols([0, 1], [3, 5])
    assert two.estimate == 2 and np.isnan(two.se) and np.isnan(two.p) and np.isnan(two.interval()).all()


def test_permutation_p_is_that_of_all_permutations():
    generator = np.random.default_rng(4)
    x, y = np.arange(6.0), generator.normal(size=6) + 0.5 * np.arange(6)
    observed = abs(np.cov(x, y)[0, 1])
    exact = np.mean([abs(np.cov(x, np.array(order))[0, 1]) >= observed - 1e-12 for order in itertools.permutations(y)])
    assert permutation_p(x, y, generator) == pytest.approx(exact)  # 720 orders: all of them, whatever the generator


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.lists(st.integers(1, 4), min_size=1, max_size=2))
def test_few_orders_are_enumerated(seed, sizes):
    """Equal to the literal definition: every order of y within every group, of which many are alike where values of x are."""
    generator = np.random.default_rng(seed)
    groups = np.repeat(range(len(sizes)), sizes)
    x, y = generator.integers(3, size=len(groups)).astype(float), generator.normal(size=len(groups))
    if len(groups) < 2 or all(len(set(x[groups == g])) == 1 for g in set(groups)):
        return
    free = x - np.array([x[groups == g].mean() for g in range(len(sizes))])[groups]
    parts = [list(itertools.permutations(y[groups == g])) for g in range(len(sizes))]
    found = [abs(np.concatenate(order) @ free) for order in itertools.product(*parts)]
    exact = np.mean(np.array(found) >= abs(y @ free) - 1e-9)
    assert permutation_p(x, y, generator, groups) == pytest.approx(exact)
    assert smallest_p(x, groups) <= exact + 1e-12
    orders, complete = orders_of(x, generator, groups)
    products = np.abs(orders @ y)
    assert complete and np.mean(products[1:] >= products[0] - 1e-9) == pytest.approx(exact)


@pytest.mark.parametrize(
    ("x", "groups", "least"),
    [
        ([0, 0.5, 1], None, 2 / 6),
        ([0, 1 / 3, 2 / 3, 1], None, 2 / 24),
        ([0, 0.5, 1] * 2, [0, 0, 0, 1, 1, 1], 2 / 36),
        ([1, 1, 0, 0, 0], None, 1 / 10),
        ([1, 1, 1, 0, 0, 0], None, 2 / 20),
        ([1, 1, 1, 0, 0, 0, 0], None, 1 / 35),
    ],
)
def test_what_no_shuffle_can_go_below(x, groups, least):
    assert smallest_p(x, groups) == pytest.approx(least)
    assert permutation_p(x, np.array(x) * 5 + 1e-9 * np.arange(len(x)), np.random.default_rng(0), groups) == pytest.approx(least)


def test_many_orders_are_drawn_and_p_is_never_0():
    x = np.tile(LEVELS, 3)
    assert smallest_p(x) is None and permutation_p(x, x, np.random.default_rng(0), draws=99) == 0.01
    orders, complete = orders_of(x, np.random.default_rng(0), np.repeat(range(3), 7), draws=50)
    assert (
        not complete
        and orders.shape == (51, 21)
        and np.allclose(np.sort(orders.reshape(51, 3, 7), axis=2)[:, :, ::-1][0, 0], np.sort(orders[7, :7])[::-1])
    )


def test_shuffles_of_a_model_with_covariates_are_enumerated_too():
    """Freedman and Lane: the literal fit of both models in every order of the residuals."""
    generator = np.random.default_rng(40)
    z = np.array([0.0, 0.5, 1.0, 0.0, 0.5, 1.0])
    x, groups = np.where(np.arange(6) < 3, z, 0), np.array([0, 0, 0, 1, 1, 1])
    y = generator.normal(size=6)
    dummies = np.stack([groups == 0, groups == 1], axis=1).astype(float)
    small, big = np.column_stack([dummies, z]), np.column_stack([dummies, z, x])

    def rss(design, values):
        return np.sum((values - design @ np.linalg.lstsq(design, values, rcond=None)[0]) ** 2)

    left = y - small @ np.linalg.lstsq(small, y, rcond=None)[0]
    ratios = [
        rss(small, np.concatenate(order)) / rss(big, np.concatenate(order))
        for order in itertools.product(itertools.permutations(left[:3]), itertools.permutations(left[3:]))
    ]
    exact = np.mean(np.array(ratios) >= ratios[0] * (1 - 1e-9))
    assert permutation_p(x, y, generator, groups, z) == pytest.approx(exact)


def test_permutation_stays_within_groups():
    # between the groups lies all of the difference, and within them there is nothing to permute
    assert permutation_p([0, 0, 1, 1], [1, 1, 9, 9], np.random.default_rng(0), groups=[0, 0, 1, 1], draws=100) == 1.0


def test_permutation_with_covariates_shuffles_what_they_leave():
    """Under no effect of x beside z, p is as often small as it says; without z it would nearly always be."""
    generator = np.random.default_rng(12)
    held, alone = [], []
    for _ in range(300):
        z = generator.normal(size=14)
        x, y = z + 0.5 * generator.normal(size=14), 2 * z + generator.normal(size=14)
        held.append(permutation_p(x, y, generator, covariates=z, draws=199))
        alone.append(permutation_p(x, y, generator, draws=199))
    for level in (0.05, 0.2, 0.5):
        assert np.mean(np.array(held) <= level) == pytest.approx(level, abs=3.5 * (level * (1 - level) / 300) ** 0.5)
    assert np.mean(np.array(alone) <= 0.05) > 0.9


def test_permutation_p_is_uniform_under_no_effect():
    generator = np.random.default_rng(5)
    p = [permutation_p(LEVELS, generator.normal(size=7), generator, draws=199) for _ in range(400)]
    for level in (0.05, 0.2, 0.5):
        assert np.mean(np.array(p) <= level) == pytest.approx(level, abs=3 * (level * (1 - level) / 400) ** 0.5)


def test_holm_is_that_of_statsmodels():
    from statsmodels.stats.multitest import multipletests

    generator = np.random.default_rng(41)
    for count in (1, 2, 7, 30):
        p = generator.random(count) ** 3
        assert holm(p) == pytest.approx(multipletests(p, method="holm")[1])


def test_equivalence_is_that_of_statsmodels():
    """Two one-sided tests of a mean against a margin on both sides."""
    from statsmodels.stats.weightstats import DescrStatsW

    generator = np.random.default_rng(42)
    for shift in (0.0, 0.3, -0.8, 2.0):
        slopes = generator.normal(shift, 0.4, 6)
        assert equivalence_p(mean_of(slopes), 1.0) == pytest.approx(DescrStatsW(slopes).ttost_mean(-1, 1)[0])


def test_lack_of_fit_is_the_f_test_of_statsmodels():
    import statsmodels.api as sm

    generator = np.random.default_rng(43)
    x, seeds = np.tile([0, 0.25, 0.5, 1], 5), np.repeat(range(5), 4)
    y = x**2 + seeds + generator.normal(0, 0.1, 20)
    blocks = np.eye(5)[seeds]
    line = sm.OLS(y, np.column_stack([blocks, x])).fit()
    means = sm.OLS(y, np.column_stack([blocks, np.eye(4)[np.unique(x, return_inverse=True)[1]][:, 1:]])).fit()
    f, p, d = means.compare_f_test(line)
    found = lack_of_fit(x, y, seeds)
    assert (found.statistic, found.p, found.between, found.within) == (pytest.approx(f), pytest.approx(p), d, means.df_resid)
    assert np.isnan(lack_of_fit([0, 0.5, 1], [1, 2, 9]).p)  # nothing repeats, so nothing tells the noise


def test_ols_with_blocks_and_covariates_is_that_of_statsmodels():
    import statsmodels.api as sm

    generator = np.random.default_rng(44)
    x, z, group = generator.normal(size=24), generator.normal(size=24), np.arange(24) % 3
    y = x - z + group + generator.normal(size=24)
    theirs = sm.OLS(y, np.column_stack([x, z, np.eye(3)[group]])).fit()
    mine = ols(x, y, group, z)
    assert (mine.estimate, mine.se, mine.p, mine.dof) == pytest.approx(
        (theirs.params[0], theirs.bse[0], theirs.pvalues[0], theirs.df_resid)
    )
    assert mine.interval() == pytest.approx(tuple(theirs.conf_int()[0]))


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    with_gap = holm([0.01, float("nan"), 0.02])
    assert with_gap[0] == pytest.approx(0.02) and np.isnan(with_gap[1]) and with_gap[2] == pytest.approx(0.02)
    assert holm([]) == []


@settings(max_examples=60, deadline=None)
@given(st.integers(4, 15).flatmap(lambda n: st.lists(st.lists(st.integers(-9, 9), min_size=n, max_size=n), min_size=2, max_size=2)))
def test_correlations_are_those_of_scipy(rows):
    from scipy import stats

    x, y = rows
    if len(set(x)) < 2 or len(set(y)) < 2:
        assert np.isnan(correlation(x, y).estimate)
        return
    assert correlation(x, y).estimate == pytest.approx(stats.pearsonr(x, y).statistic, abs=1e-9)
    assert correlation(x, y, "spearman").estimate == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-9)


def test_partial_correlation_is_that_of_the_residuals():
    generator = np.random.default_rng(6)
    given = generator.normal(size=(50, 2))
    x, y = given @ [1, 2] + generator.normal(size=50), given @ [2, -1] + generator.normal(size=50)
    design = np.column_stack([np.ones(50), given])
    left = [v - design @ np.linalg.lstsq(design, v, rcond=None)[0] for v in (x, y)]
    assert correlation(x, y, given=given).estimate == pytest.approx(np.corrcoef(*left)[0, 1])
    assert np.isnan(correlation(given[:, 0], y, given=given[:, 0]).estimate)


@pytest.mark.parametrize("kind", ["pearson", "spearman"])
def test_many_correlations_at_once_are_those_of_each_pair(kind):
    generator = np.random.default_rng(13)
    data = generator.normal(size=(6, 30)).cumsum(axis=0)
    data[4] = generator.integers(3, size=30)
    data[5] = 7.0  # constant: holding it fixed changes nothing, and it goes with nothing
    together = association(data, kind, bootstraps=60, generator=np.random.default_rng(4))
    for held in ([], [3], [3, 4]):
        found = together.between([0, 1], [2, 5], held)
        for i in (0, 1):
            fixed = data[held].T if held else None
            alone = correlation(data[i], data[2], kind, fixed, bootstraps=60, generator=np.random.default_rng(4))
            assert vars(found[i][0]) == pytest.approx(vars(alone))
            assert np.isnan(found[i][1].estimate)
    assert together.between([0], [1], [5])[0][0].estimate == pytest.approx(together.between([0], [1])[0][0].estimate)


def test_blocks_of_resamples_change_nothing(monkeypatch):
    data = np.random.default_rng(14).normal(size=(4, 20))
    whole = [association(data, kind, 50, np.random.default_rng(5)).matrices for kind in ("pearson", "spearman")]
    monkeypatch.setattr(sys.modules["diversity.effects.correlation"], "BLOCK", 90)
    cut = [association(data, kind, 50, np.random.default_rng(5)).matrices for kind in ("pearson", "spearman")]
    assert all(np.allclose(a, b, atol=1e-12) for a, b in zip(whole, cut))


@pytest.mark.parametrize("kind", ["pearson", "spearman"])
@pytest.mark.parametrize("fixed", [None, "one"])
def test_bootstrap_is_that_of_resampled_rows(kind, fixed):
    from scipy import stats

    generator = np.random.default_rng(11)
    x, y, z = generator.normal(size=25), generator.integers(6, size=25).astype(float), generator.normal(size=25)
    given = None if fixed is None else z
    found = correlation(x, y, kind, given, bootstraps=200, generator=np.random.default_rng(3))
    rows = np.random.default_rng(3).integers(25, size=(200, 25))
    naive = [correlation(x[r], y[r], kind, None if given is None else z[r]).estimate for r in rows]
    dof = 25 - 1 - (fixed is not None)
    half = stats.t.ppf(0.975, dof) * np.arctanh(naive).std(ddof=1) * np.sqrt(25 / dof)
    assert (found.low, found.high) == pytest.approx(tuple(np.tanh(np.arctanh(found.estimate) + np.array([-half, half]))))


def test_resamples_stay_within_strata():
    """Two strata that differ in nothing but their means: drawn within, the means never move, so nothing of the correlation is left open."""
    data = np.array([[0.0] * 5 + [1.0] * 5, [2.0] * 5 + [7.0] * 5])
    whole = association(data, bootstraps=50, generator=np.random.default_rng(0), strata=[0] * 5 + [1] * 5)
    assert np.allclose(whole.matrices[:, 0, 1], 1)
    free = association(np.concatenate([data, [np.arange(10.0)]]), bootstraps=200, generator=np.random.default_rng(0))
    assert free.matrices[1:, 0, 2].std() > 0.01 and free.strata == 1 and whole.strata == 2


def test_an_interval_is_not_made_of_the_resamples_that_happen_to_be_usable():
    """A variable that one point of seven carries is constant in a third of the resamples: the rest is no fair sample."""
    x, y = np.array([0, 0, 0, 0, 0, 0, 1.0]), np.arange(7.0)
    found = correlation(x, y, bootstraps=300, generator=np.random.default_rng(0))
    assert np.isfinite(found.estimate) and np.isnan(found.low) and np.isnan(found.high)


def test_bootstrap_interval_covers_and_repeats():
    generator = np.random.default_rng(7)
    covered = 0
    for _ in range(300):
        x = generator.normal(size=60)
        y = 0.6 * x + 0.8 * generator.normal(size=60)
        found = correlation(x, y, bootstraps=200, generator=generator)
        covered += found.low <= 0.6 <= found.high
    assert 0.91 <= covered / 300 <= 0.985
    twice = [correlation(x, y, "spearman", bootstraps=100, generator=np.random.default_rng(1)) for _ in range(2)]
    assert twice[0] == twice[1]
    with pytest.raises(ValueError, match="generator"):
        correlation(x, y, bootstraps=10)
