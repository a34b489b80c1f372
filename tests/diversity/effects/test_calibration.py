"""The quick form of `python -m benchmarks.calibration`: what is promised comes, within what so few simulations can tell."""

from __future__ import annotations

from scipy import stats

from benchmarks import calibration

SIMULATIONS = 24


def test_no_promise_is_far_off():
    """A rate that has one chance in 10,000 where the bound holds would fail; the full table holds them to a hundredth."""
    known = calibration.promises()
    found, _ = calibration.observed(known, SIMULATIONS, workers=1)
    for i, promise in enumerate(known):
        said, n = sum(found[i]), len(found[i])
        assert n > 0, promise.design
        if promise.what == "false claims":
            assert stats.binom.sf(said - 1, n, 0.06) > 1e-4, promise.design
        elif promise.what == "coverage":
            assert stats.binom.cdf(said, n, 0.94) > 1e-4, promise.design
        else:
            low, high = max(0.0, promise.nominal - 0.03), min(1.0, promise.nominal + 0.03)
            assert stats.binom.cdf(said, n, low) > 1e-4 and stats.binom.sf(said - 1, n, high) > 1e-4, promise.design


def test_the_table_says_what_is_not_kept(capsys):
    assert calibration.main(["--simulations", "3", "--workers", "1", "--only", "36 orders"]) == 0
    told = capsys.readouterr().out
    assert "| false claims | slope, 3 x 2 seeds (36 orders) | 0.050 | 0.000 | 3 |  |" in told
    promise = calibration.Promise("coverage", "x", 0.95, lambda _: False)
    assert not promise.kept(0.9) and promise.kept(0.945) and not calibration.Promise("false claims", "x", 0.05, lambda _: False).kept(0.07)
