"""What is counted as one dataset, and what is independent of what."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diversity.effects import ols
from diversity.effects.ledger import generator_for
from diversity.effects.slopes import weights_of
from diversity.effects.units import datasets, design_of, line_through, merged, seed_labels
from tests.diversity.effects.results import result


def test_cells_of_one_content_are_one_dataset_even_without_a_shared_run():
    rows = [result("response-micro", 1.0, value, seed=seed, content="same") for seed, value in enumerate((1.0, 3.0))]
    (unit,) = datasets(rows)
    assert unit["value"] == 2 and unit["seeds"] == (0, 1) and len(unit["runs"]) == 2


def test_a_shared_run_is_averaged_once():
    """Two cells share both runs of their dataset: four rows, two runs, one value."""
    rows = [result("a-micro", x, float(t), seed=s, run=f"run {t}") for s, x in ((0, 0.0), (1, 0.5)) for t in (0, 4)]
    (unit,) = datasets(rows)
    assert unit["value"] == 2 and unit["level"] == 0.25 and unit["runs"] == ["run 0", "run 4"]


def test_where_nothing_is_shared_datasets_are_what_merging_gives():
    rows = [
        result("a-micro", x, x + s, seed=s, content=f"{x} {s}" if s else None, se=0.1 * s or None) for x in (0, 0.5, 1) for s in range(3)
    ]
    assert sorted(datasets(rows), key=str) == sorted(merged(rows), key=str)


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 9))
def test_datasets_and_seeds_do_not_depend_on_the_order_of_rows(seed, n):
    """Against the literal closure: joined are cells with a common run, and seeds with a common dataset, again and again."""
    generator = np.random.default_rng(seed)
    rows = [
        result("a-micro", int(generator.integers(3)) / 2, 0.0, seed=int(generator.integers(4)), run=f"r{generator.integers(6)}")
        for _ in range(n)
    ]
    rows = [{**row, "cell": f"{row['cell']}"} for row in rows]
    units = datasets(rows)
    again = datasets([rows[i] for i in generator.permutation(n)])
    key = [(tuple(unit["runs"]), unit["seeds"], unit["level"]) for unit in units]
    assert sorted(key) == sorted((tuple(unit["runs"]), unit["seeds"], unit["level"]) for unit in again)
    runs = [set(unit["runs"]) for unit in units]
    assert all(not a & b for i, a in enumerate(runs) for b in runs[:i]) and set().union(*runs) == {row["run"] for row in rows}
    labels = seed_labels(units)
    for i, one in enumerate(units):
        for j, other in enumerate(units):
            reached, grown = set(one["seeds"]), True
            while grown:
                more = reached.union(*(unit["seeds"] for unit in units if reached & set(unit["seeds"])))
                grown, reached = more != reached, more
            assert (labels[i] == labels[j]) == bool(reached & set(other["seeds"]))


@pytest.mark.parametrize(
    ("x", "labels", "kind", "used"),
    [
        ([0, 0.5, 1], [0, 0, 0], "one subset seed", 3),
        ([0, 0.5, 1, 0, 0.5, 1], [0, 0, 0, 1, 1, 1], "a slope a subset seed", 6),
        ([0, 0.5, 1, 0, 1], [0, 1, 2, 3, 4], "independent datasets", 5),
        ([0, 0.5, 1, 0, 1, 1], [0, 0, 0, 1, 1, 7], "a slope a subset seed", 5),
        ([0, 0, 1, 1], [3, 3, 5, 5], "independent datasets", 4),
    ],
)
def test_designs(x, labels, kind, used):
    design = design_of(np.array(x, float), np.array(labels))
    assert design.kind == kind and design.used.sum() == used


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.booleans(), st.booleans())
def test_the_slope_is_the_weighted_sum_of_scores(seed, own, sized):
    generator = np.random.default_rng(seed)
    x = np.tile([0, 0.5, 1], 4)
    labels = np.arange(12) if own else np.repeat(range(4), 3)
    sizes = np.tile(np.repeat([1000, 2000], 6), 1) if sized else np.full(12, 1000)
    y = generator.normal(size=12)
    design = design_of(x, labels)
    line = line_through(x, y, design, sizes)
    assert weights_of(x, design, sizes) @ y == pytest.approx(line.estimate)
    if own:
        assert vars(line) == pytest.approx(vars(ols(x, y, sizes)))
    else:
        slopes = [ols(x[labels == s], y[labels == s]).estimate for s in range(4)]
        assert (line.estimate, line.se, line.dof) == pytest.approx((np.mean(slopes), np.std(slopes, ddof=1) / 2, 3))


def test_a_mixed_model_agrees_where_it_holds():
    """A random slope for each of many seeds, by statsmodels: the same slope, and nearly the same error."""
    import statsmodels.api as sm

    generator = np.random.default_rng(2)
    seeds = np.repeat(range(40), 3)
    x = np.tile([0, 0.5, 1], 40)
    y = 1 + 2 * x + generator.normal(size=40)[seeds] + generator.normal(0, 0.7, 40)[seeds] * x + generator.normal(0, 0.3, 120)
    design = np.column_stack([np.ones(120), x])
    theirs = sm.MixedLM(y, design, groups=seeds, exog_re=design).fit()
    line = line_through(x, y, design_of(x, seeds))
    assert line.estimate == pytest.approx(theirs.fe_params[1], abs=1e-3) and line.se == pytest.approx(theirs.bse_fe[1], rel=0.03)


def test_randomness_belongs_to_its_effect():
    assert generator_for(0, "slope", "a").random() == generator_for(0, "slope", "a").random()
    assert len({generator_for(seed, *names).random() for seed in (0, 1) for names in (("a", "b"), ("ab",), ("b", "a"))}) == 6
