"""Promises that every strategy keeps, over the registry: a new strategy is tested by being added to it."""

import dataclasses
import logging
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from diversity.cell import FULL, TYPINGS, Cell, GridConfig
from diversity.config import ConfigError, UserError, parse
from diversity.keys import priorities
from diversity.selection.strategies import DIALLED, STRATEGIES, Inputs, Needs, SelectionConfig, closure_of, needs, prune_typing, select
from diversity.typings.incidence import Incidence
from tests.diversity.naive import keys_of

LEVELS = [Fraction(0), Fraction(1, 3), Fraction(1)]
SIZES = [20, 40]
GRID = GridConfig(strategies=[*TYPINGS, "response-micro@word", *STRATEGIES], sizes=SIZES, levels=LEVELS)
CONTROLS = ["none", "length-window", "length-quota", "source-quota", "tokens"]


def made_up(seed: int, config: SelectionConfig, n: int = 160) -> Inputs:
    """Return a corpus of n rows: Zipf tokens and tags, topics with noise, clustered vectors."""
    rng = np.random.default_rng(seed)
    keys = keys_of(n, seed)
    zipf = lambda types, most: [np.unique((rng.zipf(1.5, size=rng.integers(0, most + 1)) - 1) % types) for _ in range(n)]  # noqa: E731
    lists = {"macro": [[int(t)] if t < 9 else [] for t in rng.integers(0, 12, n)], "meso": zipf(30, 4), "micro": zipf(60, 7)}
    vectors = rng.normal(size=(8, 6))[rng.integers(0, 8, n)] + rng.normal(size=(n, 6)) / 2
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    lengths = rng.integers(1, 40, n)
    ids, offsets = rng.integers(0, 50, lengths.sum()).astype(np.int32), np.append(0, np.cumsum(lengths))

    def typing(name):
        incidence = Incidence.from_lists(lists[name.partition("@")[0].rpartition("-")[2]], 60).used()[0]
        return prune_typing(name, incidence, [f"{t:03d}".encode() for t in range(incidence.n_types)], keys, config)

    return Inputs(
        sample_keys=keys,
        tokens={"response": lengths.astype(np.int32), "instruction": lengths[::-1].astype(np.int32)},
        source=rng.integers(0, 3, n).astype(np.int32),
        source_names=["a", "b", "c"],
        typed={name: typing(name) for name in (*TYPINGS, "response-micro@word")},
        grid=GRID,
        embeddings=lambda side: vectors,
        token_ids=lambda side: (ids, offsets),
    )


def moved(inputs: Inputs, new: np.ndarray) -> Inputs:
    """Return the same corpus with its rows in another order."""
    vectors = inputs.embeddings("response")[new]
    ids, offsets = inputs.token_ids("response")
    pieces = [ids[offsets[i] : offsets[i + 1]] for i in new]
    return dataclasses.replace(
        inputs,
        sample_keys=inputs.sample_keys[new],
        tokens={side: count[new] for side, count in inputs.tokens.items()},
        source=inputs.source[new],
        typed={
            name: dataclasses.replace(one, incidence=one.incidence.take(new), birth=one.birth[new]) for name, one in inputs.typed.items()
        },
        embeddings=lambda side: vectors,
        token_ids=lambda side: (np.concatenate(pieces), np.append(0, np.cumsum([len(piece) for piece in pieces]))),
        _plans={},
    )


def dialled(strategy: str) -> bool:
    return DIALLED.get(strategy, True)


@st.composite
def cells(draw, strategies=tuple(GRID.strategies), controls=("none",)) -> Cell:
    strategy = draw(st.sampled_from(strategies))
    level = draw(st.sampled_from(LEVELS)) if dialled(strategy) else None
    return Cell(strategy, draw(st.sampled_from(SIZES)), level, draw(st.integers(0, 3)), draw(st.sampled_from(controls)))


CONFIGS = st.builds(
    SelectionConfig,
    algorithm=st.sampled_from(["peel", "static"]),
    rho=st.sampled_from([1, 1.5]),
    kmin_from=st.sampled_from(["each", "largest"]),
    closure=st.sampled_from(["strict", "loose"]),
    objective=st.sampled_from(["cover", "concave"]),
)
RELAXED = settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def outcome(inputs, cell, config):
    """Return the picks, or None where the cell is infeasible and says so."""
    try:
        return select(inputs, cell, config)
    except UserError as error:
        assert cell.name in str(error) and "\n" not in str(error)
        return None


@pytest.mark.parametrize("strategy", GRID.strategies)
def test_exact_size_unique_rows_and_the_same_again(strategy):
    config = SelectionConfig()
    for seed in range(3):
        inputs = made_up(seed, config)
        for size in SIZES:
            for level in LEVELS if dialled(strategy) else [None]:
                cell = Cell(strategy, size, level, seed)
                picks = select(inputs, cell, config)
                assert len(picks.rows) == size == len(picks.chosen_for)
                assert (np.diff(picks.rows) > 0).all()
                assert picks.rows[0] >= 0 and picks.rows[-1] < inputs.n
                assert size <= picks.pool_size <= inputs.n
                assert (picks.rows.dtype, picks.chosen_for.dtype) == (np.int64, np.int32)
                again = select(made_up(seed, config), cell, config)
                assert (again.rows == picks.rows).all() and (again.chosen_for == picks.chosen_for).all()


@pytest.mark.parametrize("distinct", [1, 60, 160])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_no_row_twice_among_duplicates_up_to_the_whole_corpus(strategy, distinct):
    inputs = made_up(0, SelectionConfig())
    copied = np.random.default_rng(1).integers(0, distinct, inputs.n) if distinct < inputs.n else np.arange(inputs.n)
    vectors = inputs.embeddings("response")[copied]
    inputs = dataclasses.replace(inputs, embeddings=lambda side: vectors)
    for size in (40, 100, 150, inputs.n):
        for level in LEVELS if dialled(strategy) else [None]:
            rows = select(inputs, Cell(strategy, size, level), SelectionConfig()).rows
            assert len(rows) == size and (np.diff(rows) > 0).all() and rows[0] >= 0 and rows[-1] < inputs.n


@RELAXED
@given(cells(), CONFIGS, st.integers(0, 3), st.randoms(use_true_random=False))
def test_the_order_of_rows_does_not_matter(cell, config, seed, random):
    inputs = made_up(seed, config)
    new = np.array(random.sample(range(inputs.n), inputs.n))
    one, other = outcome(inputs, cell, config), outcome(moved(inputs, new), cell, config)
    assert (one is None) == (other is None)
    if one is not None:
        back = np.argsort(new[other.rows])
        assert new[other.rows][back].tolist() == one.rows.tolist()
        assert other.chosen_for[back].tolist() == one.chosen_for.tolist()
        assert other.target == one.target


@RELAXED
@given(cells(strategies=(*TYPINGS, "response-micro@word"), controls=CONTROLS), CONFIGS, st.integers(0, 5))
def test_typed_strategies_cover_nothing_that_they_do_not_keep_and_say_how_much(cell, config, seed):
    inputs = made_up(seed, config)
    picks = outcome(inputs, cell, config)
    if picks is None:
        return
    typed = inputs.typed[cell.strategy]
    covered, k = typed.incidence.covered(picks.rows), picks.target["k_realised"]
    assert picks.kept.sum() == k <= picks.target["k_requested"]
    assert (picks.kept == (typed.position <= k)).all()
    target = picks.target
    assert 1 <= (covered & picks.kept).sum() == target["covered"] <= target["bound"] <= k
    assert 0 < target["random"] <= target["bound"]
    assert target["covered"] >= target["random"] or cell.control == "tokens"  # where a longer sample may leave room for fewer
    if closure_of(cell.strategy, config) == "strict":
        assert not (covered & ~picks.kept).any()
    assert (typed.birth[picks.rows] >= 1).all() and (typed.birth[picks.rows] <= k).all()
    assert picks.pool_size == ((typed.birth >= 1) & (typed.birth <= k)).sum()
    assert all(t in typed.incidence.row(i) and picks.kept[t] for i, t in zip(picks.rows, picks.chosen_for, strict=True))
    assert picks.target["M"] == typed.incidence.n_types
    assert picks.target["k_min"] <= k <= picks.target["M"]


@RELAXED
@given(cells(strategies=(*TYPINGS, "random"), controls=CONTROLS), CONFIGS, st.integers(0, 5))
def test_controls_are_obeyed(cell, config, seed):
    inputs = made_up(seed, config)
    picks = outcome(inputs, cell, config)
    if picks is None:
        return
    control = inputs.control(cell)
    if control.by_weight:
        gap = control.budget(cell.size) - control.weights[picks.rows].sum()
        pool = slice(None) if not cell.typing else inputs.typed[cell.typing].birth <= picks.target["k_realised"]
        assert 0 <= gap < control.weights[pool].max() and len(picks.rows)
        return
    assert len(picks.rows) == cell.size
    if control.by_bin:
        typing = cell.typing or inputs.grid.random_quota_from
        plan = inputs.plan(typing, cell, config)
        assert (np.bincount(control.bins[picks.rows], minlength=control.n_bins) == plan.quota).all()
        base = (inputs.typed[typing].birth >= 1) & (inputs.typed[typing].birth <= plan.k_min)
        share = np.bincount(control.bins[base], minlength=control.n_bins) / base.sum()
        assert (abs(plan.quota - cell.size * share) < 1).all()


def test_random_under_a_budget_of_one_sample_is_never_empty_whichever_comes_first():
    inputs = made_up(0, SelectionConfig())
    control, longer = inputs.control(Cell("random", 1, None, 0, "tokens")), 0
    for seed in range(20):
        cell = Cell("random", 1, None, seed, "tokens")
        rows = select(inputs, cell, SelectionConfig()).rows
        assert 0 < control.weights[rows].sum() <= control.budget(1)
        longer += control.weights[np.argmin(inputs.order(cell))] > control.budget(1)
    assert 0 < longer < 20


@RELAXED
@given(st.sampled_from(TYPINGS), CONFIGS, st.integers(0, 5), st.integers(1, 9))
def test_a_subset_seed_changes_samples_but_never_types(strategy, config, corpus_seed, subset_seed):
    inputs = made_up(corpus_seed, config)
    for level in LEVELS:
        one, other = (outcome(inputs, Cell(strategy, 20, level, seed), config) for seed in (0, subset_seed))
        assert (one is None) == (other is None)
        if one is not None:
            assert {**one.target, "covered": 0} == {**other.target, "covered": 0}
            assert (one.kept == other.kept).all()


@RELAXED
@given(st.sampled_from(TYPINGS), CONFIGS, st.integers(0, 5))
def test_kept_types_are_nested_over_levels_and_hold_what_lower_ones_cover(strategy, config, seed):
    inputs = made_up(seed, config)
    picks = [outcome(inputs, Cell(strategy, 20, level, 0), config) for level in LEVELS]
    if any(one is None for one in picks):
        return
    covered = [inputs.typed[strategy].incidence.covered(one.rows) for one in picks]
    for low, high, before in zip(picks, picks[1:], covered, strict=False):
        assert not (low.kept & ~high.kept).any()
        assert low.pool_size <= high.pool_size
        if closure_of(strategy, config) == "strict":
            assert not (before & ~high.kept).any()


@pytest.mark.parametrize("strategy", [name for name in GRID.strategies if name not in ("longest", "token_entropy")])
def test_seeds_give_different_subsets(strategy):
    inputs = made_up(0, SelectionConfig())
    level = Fraction(1, 3) if dialled(strategy) else None
    found = {tuple(select(inputs, Cell(strategy, 20, level, seed), SelectionConfig()).rows.tolist()) for seed in range(4)}
    settled = (
        "facility_location",
        "deita",
        "max_coverage",
        "instag",
        "mig",
        "semdedup",
    )  # seeds settle ties only, of which there may be none
    assert len(found) > 1 or strategy in settled


def test_loose_is_for_tags_alone():
    loose = SelectionConfig(closure="loose")
    assert [closure_of(name, loose) for name in ("response-meso", "response-micro", "instruction-macro")] == ["loose", "strict", "strict"]


@pytest.mark.parametrize("strategy", [name for name in STRATEGIES if name != "random"])
@pytest.mark.parametrize("control", ["length-quota", "source-quota", "tokens"])
def test_controls_that_a_strategy_does_not_obey_are_refused(strategy, control):
    with pytest.raises(ConfigError, match="does not obey"):
        select(made_up(0, SelectionConfig()), Cell(strategy, 20, None, 0, control), SelectionConfig())


def test_what_is_missing_is_named():
    inputs, config = made_up(0, SelectionConfig()), SelectionConfig()
    bare = dataclasses.replace(inputs, embeddings=None, token_ids=None, typed={}, _plans={})
    for strategy, need in ((name, entry.needs) for name, entry in STRATEGIES.items() if entry.needs != Needs()):
        with pytest.raises(ConfigError, match=f"{strategy} needs"):
            select(bare, Cell(strategy, 20, Fraction(1) if dialled(strategy) else None), config)
    with pytest.raises(ConfigError, match="needs typing response-micro"):
        select(bare, Cell("random", 20, None, 0, "source-quota"), config)
    with pytest.raises(ConfigError, match="did you mean 'k_center'"):
        select(inputs, Cell("k_centre", 20, None), config)
    for strategy in ("response-micro", "k_means", "deita", "semdedup"):
        with pytest.raises(ConfigError, match="level"):
            select(inputs, Cell(strategy, 20, None), config)
    with pytest.raises(ConfigError, match="sizes"):
        select(inputs, Cell("response-micro", 21, Fraction(1)), config)
    assert needs(Cell("response-micro@word", 20, Fraction(1)), GRID).typings == ("response-micro@word",)


@pytest.mark.parametrize("strategy", list(STRATEGIES))
def test_a_size_beyond_the_corpus_says_what_can_be_had(strategy):
    inputs = made_up(0, SelectionConfig())
    level = Fraction(1) if dialled(strategy) else None
    with pytest.raises(UserError, match="the largest 160"):
        select(inputs, Cell(strategy, 161, level), SelectionConfig())
    assert select(inputs, Cell(strategy, 160, level), SelectionConfig()).rows.tolist() == list(range(160))


def test_a_size_beyond_the_pool_says_what_can_be_had():
    config = SelectionConfig()
    grid = GridConfig(strategies=["response-meso"], sizes=[150], levels=LEVELS)
    inputs = dataclasses.replace(made_up(0, config), grid=grid, _plans={})
    with pytest.raises(UserError, match=r"response-meso_n150_l100_s0: size 150 can't be had .* the smallest is 1, the largest \d+"):
        select(inputs, Cell("response-meso", 150, Fraction(1)), config)


def test_typings_without_types_or_with_unused_ones_are_refused():
    keys, config = keys_of(2), SelectionConfig()
    with pytest.raises(ConfigError, match=r"response-micro has no types \(M = 0\).*band"):
        prune_typing("response-micro", Incidence.from_lists([[], []], 0), [], keys, config)
    with pytest.raises(ConfigError, match="occur in no sample"):
        prune_typing("response-micro", Incidence.from_lists([[0], []], 2), [b"a", b"b"], keys, config)


def test_the_literal_reading_is_infeasible_below_the_top_and_says_so(caplog):
    """METHOD 2.8 (a): with `unique` a pool below level 1 has at most about k samples."""
    config = SelectionConfig(algorithm="unique")
    inputs = dataclasses.replace(made_up(0, config), grid=GridConfig(strategies=["response-micro"], sizes=[40], levels=LEVELS))
    with caplog.at_level(logging.WARNING):
        targets = [select(inputs, Cell("response-micro", 40, level), config).target for level in LEVELS]
    assert {target["k_realised"] for target in targets} == {targets[0]["M"]}
    assert "all levels are equal" in caplog.text


def test_bad_configurations_are_told_apart():
    assert parse(SelectionConfig, {"rho": 3}).rho == 3
    for bad in ({"rho": 0.5}, {"rho": float("inf")}, {"rho": float("nan")}, {"algorithm": "peeled"}, {"materialize": True}):
        with pytest.raises(ConfigError, match=next(iter(bad))):
            parse(SelectionConfig, bad)


def test_priorities_of_a_cell_depend_on_its_seed_alone():
    inputs = made_up(0, SelectionConfig())
    assert (inputs.order(Cell("random", 20, None, 3)) == priorities(inputs.sample_keys, 3, "sample")).all()
    assert (inputs.order(Cell("longest", 40, None, 3)) == inputs.order(Cell("random", 20, None, 3))).all()


def test_the_whole_corpus_leaves_nothing_out() -> None:
    inputs = made_up(0, SelectionConfig())
    picks = select(inputs, Cell(FULL, 0, None), SelectionConfig())
    assert picks.rows.tolist() == list(range(inputs.n)) == list(range(picks.pool_size)) and set(picks.chosen_for) == {-1}
