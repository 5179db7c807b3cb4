import numpy as np
import pytest

from spinup_plugins.runs.statistics import bootstrap_interval, interquartile_mean, summarise


def test_the_interquartile_mean_drops_a_quarter_on_each_side() -> None:
    assert interquartile_mean([100.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, -50.0]) == pytest.approx((2 + 3 + 4 + 5) / 4)
    assert interquartile_mean([7.0]) == 7.0


def test_the_interquartile_mean_reduces_one_axis() -> None:
    values = np.arange(8.0).reshape(2, 4)
    np.testing.assert_allclose(interquartile_mean(values, axis=1), [1.5, 5.5])


def test_the_interval_brackets_the_estimate_and_repeats() -> None:
    returns = np.random.default_rng(3).normal(10.0, 2.0, size=50)
    low, high = bootstrap_interval(returns)
    assert low < interquartile_mean(returns) < high
    assert high - low < 2.5
    assert bootstrap_interval(returns) == (low, high)
    assert bootstrap_interval(returns, seed=1) != (low, high)


def test_a_lower_confidence_gives_a_narrower_interval() -> None:
    returns = np.random.default_rng(3).normal(size=30)
    wide, narrow = bootstrap_interval(returns), bootstrap_interval(returns, confidence=0.5)
    assert wide[0] < narrow[0] < narrow[1] < wide[1]


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    intervals = [bootstrap_interval(rng.normal(size=40), np.mean, resamples=200) for _ in range(200)]
    covered = np.mean([low <= 0.0 <= high for low, high in intervals])
    assert 0.88 <= covered <= 0.99


def test_a_summary_of_hand_worked_returns() -> None:
    summary = summarise([1.0, 2.0, 3.0, 6.0])
    assert (summary.n, summary.mean, summary.iqm, summary.best) == (4, 3.0, 2.5, 6.0)
    assert summary.std == pytest.approx(np.sqrt(3.5))


def test_equal_returns_have_an_interval_of_no_width() -> None:
    assert summarise([500.0] * 5).interval == (500.0, 500.0)


def test_one_episode_has_no_interval() -> None:
    summary = summarise([3.0])
    assert (summary.std, summary.interval) == (0.0, None)


def test_returns_that_are_not_finite_have_no_interval() -> None:
    assert summarise([1.0, float("inf")]).interval is None


def test_no_episode_has_no_summary() -> None:
    with pytest.raises(ValueError, match="no episode returns"):
        summarise([])
