"""Win rates against naive twins, simulation and AlpacaEval's own figures."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.judging import CASES, drawn, dressed, oracle
from diversity.config import UserError
from diversity.effects.clustered import logistic_at_zero, mean_and_error
from diversity.judging import alpaca_eval
from diversity.judging.agreement import kappa
from diversity.judging.style import COLUMNS, markdown, more_markdown
from diversity.judging.win_rates import (
    PRIOR,
    PromptScores,
    bootstrap,
    length_controlled_win_rate,
    length_term,
    paired_difference,
    planned_effect,
    smallest_effect,
    style_controlled_win_rate,
    weighted_win_rate,
    win_rate,
)


def scores(values, longer=None, groups=None, style=None):
    n = len(values)
    values = np.asarray(values, float)
    found = np.zeros(n) if longer is None else np.asarray(longer, float)
    return PromptScores(
        [f"{i}" for i in range(n)],
        np.arange(n) if groups is None else np.asarray(groups),
        values,
        values,
        np.ones(n),
        found,
        np.zeros((n, 3)) if style is None else style,
    )


def test_alpaca_evals_figures(real_data, capsys):
    assert oracle(real_data / "judging") == 0
    assert "42 of 42 figures within 0.0001" in capsys.readouterr().out


def test_a_figure_that_is_off_is_found(real_data, tmp_path, capsys):
    for path in (real_data / "judging").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    wanted = json.loads((tmp_path / "oracle.json").read_text())
    wanted["ties"]["length_controlled_noreg"]["length_controlled_winrate"] += 2e-4
    (tmp_path / "oracle.json").write_text(json.dumps({"ties": wanted["ties"]}))
    assert oracle(tmp_path) == 1 and "OFF" in capsys.readouterr().out


def test_few_prompts_are_shrunk_to_a_half_by_alpaca_eval_and_not_by_us():
    shrunk = 0
    for seed in range(6):
        rng = np.random.default_rng(seed)
        values, lengths = (rng.random(24) < 0.6).astype(float), rng.integers(200, 900, (2, 24))
        shrunk += alpaca_eval.length_controlled(values, *lengths, None, "length_controlled_minimal")["length_controlled_winrate"] == 50.0
        assert abs(length_controlled_win_rate(scores(values, lengths[1] - lengths[0])).value - values.mean()) < 0.1
    assert shrunk >= 1
    with pytest.raises(UserError, match="needs the difficulty of every instruction: there are 0 for 24 rows"):
        alpaca_eval.length_controlled(values, *lengths, None, "length_controlled_v1")


@pytest.mark.parametrize("case", CASES)
def test_intervals_cover(case):
    """The quick form of the benchmark's table: 200 simulations tell 95% to 3 points; the rest of the tolerance is chance."""
    rate = weighted_win_rate if CASES[case].get("strong") else win_rate
    truth = np.mean([rate(drawn(np.random.default_rng(s), 200_000, **CASES[case])).value for s in range(90, 94)])
    rng, hits = np.random.default_rng(5), 0
    for _ in range(200):
        one = rate(drawn(rng, 300, **CASES[case]))
        hits += one.low <= truth <= one.high
    assert 0.905 <= hits / 200 <= 0.99


def test_length_control_takes_a_planted_bias_out_and_its_error_is_the_bootstraps():
    found, ratios, truth = [], [], 0.426
    for seed in range(120):
        rng = np.random.default_rng(seed)
        longer = 300 + 500 * rng.normal(size=805)
        chance = 1 / (1 + np.exp(-(np.log(truth / (1 - truth)) + 1.5 * length_term(longer))))
        one = scores(rng.random(805) < chance, longer)
        found.append(length_controlled_win_rate(one).value)
        if seed < 4:
            ratios.append(bootstrap(one, 600, seed)[:, 1].std(ddof=1) / length_controlled_win_rate(one).se)
    assert abs(np.mean(found) - truth) < 0.005 + 2 * 0.0225 / np.sqrt(120)
    assert abs(np.mean(ratios) - 1) < 0.1


def test_the_bootstrap_refits_as_one_fit_of_the_drawn_rows_does():
    rng = np.random.default_rng(1)
    one = drawn(rng, 90, orders=2, group=3)
    found = bootstrap(one, 20, seed=4)
    draws = np.random.default_rng(4).multinomial(30, np.full(30, 1 / 30), size=20)
    x = length_term(one.longer)
    for counts, (plain, controlled) in zip(draws[:, one.groups], found, strict=True):
        rows = np.repeat(np.arange(90), counts)
        assert plain == pytest.approx(one.values[rows].mean())
        assert controlled == pytest.approx(logistic_at_zero(x[rows], one.values[rows], rows, PRIOR).rate, abs=1e-7)


@given(st.lists(st.tuples(st.floats(0, 1), st.integers(0, 5)), min_size=2, max_size=30))
@settings(max_examples=80, deadline=None)
def test_errors_are_those_of_group_sums(rows):
    values, groups = np.array([v for v, _ in rows]), np.array([g for _, g in rows])
    mean, se = mean_and_error(values, groups)
    names = sorted(set(groups.tolist()))
    assert mean == pytest.approx(values.mean())
    if len(names) < 2:
        assert np.isnan(se)
        return
    sums = [sum(v - mean for v, g in rows if g == name) for name in names]
    assert se == pytest.approx(np.sqrt(len(names) / (len(names) - 1) * sum(s * s for s in sums)) / len(rows), abs=1e-12)


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=2, max_size=40))
@settings(max_examples=60, deadline=None)
def test_kappa_is_scikit_learns(pairs):
    from sklearn.metrics import cohen_kappa_score

    first, second = zip(*pairs, strict=True)
    wanted = cohen_kappa_score(first, second, weights="quadratic", labels=range(5)) if len({*first, *second}) > 1 else float("nan")
    assert kappa(first, second, 5) == pytest.approx(wanted, nan_ok=True)


def test_edges():
    assert win_rate(scores([1, 1, 1])).value == 1 and length_controlled_win_rate(scores([1, 1, 1], [5, 6, 7])).value == 1
    assert length_controlled_win_rate(scores([1, 0, 1, 0], [3, 3, 3, 3])).value == 0.5
    assert np.isnan(win_rate(scores([1, 0], groups=[1, 1])).se)
    difference = paired_difference(scores([1, 0.5, 1, 0]), scores([0, 0.5, 0, 0]))
    assert difference.value == 0.5 and difference.n == 4
    assert round(100 * planned_effect(1305), 1) == 4.3 and round(100 * planned_effect(805), 1) == 5.4
    assert smallest_effect(1) == pytest.approx(2.8016, abs=1e-3) and planned_effect(0) == float("inf")
    assert Path(alpaca_eval.__file__).exists()


@given(st.integers(0, 10_000), st.integers(1, 4), st.sampled_from([5, 40]), st.booleans())
@settings(max_examples=30, deadline=None)
def test_the_fit_with_several_covariates_is_the_minimum_of_its_loss(seed, k, n, hard):
    from scipy.optimize import minimize

    rng = np.random.default_rng(seed)
    x, y = np.tanh(rng.normal(size=(n, k))), rng.random(n)
    if hard:
        y = np.array([0, 1, *np.round(y[2:])])

    def loss(weights):
        odds = weights[0] + x @ weights[1:]
        return float((np.logaddexp(0, odds) - y * odds).sum() + PRIOR / 2 * (weights[1:] ** 2).sum())

    fit, wanted = logistic_at_zero(x, y, np.arange(n), PRIOR), minimize(loss, np.zeros(1 + k), tol=1e-12).x
    np.testing.assert_allclose([fit.theta, *fit.phi], wanted, atol=1e-3)
    constant = logistic_at_zero(np.column_stack([x, np.full(n, 0.3)]), y, np.arange(n), PRIOR)
    assert constant.theta == pytest.approx(fit.theta, abs=1e-9) and constant.theta_se == pytest.approx(fit.theta_se)


def test_style_control_takes_a_planted_liking_for_markdown_out_and_covers():
    found, raw, hits, truth = [], [], 0, 0.426
    for seed in range(200):
        values, longer, style = dressed(np.random.default_rng(seed), 805, truth)
        one = style_controlled_win_rate(scores(values, longer, style=style))
        found.append(one.value)
        raw.append(values.mean())
        hits += one.low <= truth <= one.high
    assert np.mean(raw) > truth + 0.1, "the judge likes markdown"
    assert abs(np.mean(found) - truth) < 0.005 + 2 * np.std(found) / np.sqrt(200)
    assert 0.905 <= hits / 200 <= 0.985


TEXT = st.text(st.sampled_from("#*_-1. \n`ab"), max_size=60)


@given(TEXT, TEXT)
@settings(max_examples=200, deadline=None)
def test_markdown_of_two_answers_is_opposite_the_other_way_round(a, b):
    mine, theirs = more_markdown(a, b), more_markdown(b, a)
    assert all(mine[name] == -theirs[name] and -1 < mine[name] < 1 for name in COLUMNS)
    assert set(more_markdown(a, a).values()) == {0.0}


def test_headers_lists_and_bold_are_counted_outside_of_code():
    text = "# One\n\n## Two\n- a\n* b\n  + c\n1. d\n2) e\n**bold** and __too__, not **half\n```sh\n# comment\n- no item\n```\n#tag\n"
    assert markdown(text) == (2, 5, 2)
    assert markdown("~~~\n# never closed\n- a") == (0, 0, 0) and markdown("") == (0, 0, 0)
