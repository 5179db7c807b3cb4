from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spinup_plugins.runs.statistics import (
    Estimate,
    bootstrap_interval,
    common_grid,
    first_reached,
    improvement,
    interquartile_mean,
    on_grid,
    performance_profile,
    pooled_iqm,
    stratified_band,
    summarise,
)


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


# --- over environments -----------------------------------------------------------------------------------------------

scores = st.lists(st.floats(-100, 100).map(lambda value: round(value, 3)), min_size=2, max_size=6).map(np.array)
strata = st.lists(scores, min_size=1, max_size=3)
few = settings(max_examples=25, deadline=None)


def test_the_interquartile_mean_of_four_is_that_of_the_middle_two() -> None:
    assert interquartile_mean([9.0, 1.0, 4.0, 2.0]) == 3.0
    pooled = pooled_iqm([np.array([9.0, 1.0]), np.array([4.0, 2.0])])
    assert pooled == (3.0, (1.5, 6.5)), "from 1 1 2 2 to 9 9 4 4, one draw in sixteen each"


def test_improvement_by_hand() -> None:
    assert improvement([np.array([1.0, 3.0])], [np.array([2.0, 2.0])]).value == 0.5
    assert improvement([np.array([3.0, 2.0])], [np.array([2.0, 1.0])]).value == (1 + 1 + 0.5 + 1) / 4
    two = improvement([np.array([1.0]), np.array([5.0, 0.0, 5.0])], [np.array([0.0]), np.array([5.0, 9.0])])
    assert two.value == pytest.approx((1 + (0.5 + 0 + 0 + 0 + 0.5 + 0) / 6) / 2)
    assert two.interval is None, "an environment with a single run"
    assert improvement([np.ones(3)], [np.zeros(2)]) == (1.0, (1.0, 1.0))


@pytest.mark.parametrize(
    ("value", "text"),
    [(5462.3, "5,462"), (-76.69, "-76.7"), (-4.236, "-4.24"), (0.932, "0.932"), (0.0, "0"), (1.4e-17, "0"), (-1e-9, "0")],
)
def test_small_returns_keep_the_digits_that_tell_them_apart(value: float, text: str) -> None:
    assert str(Estimate(value, None)) == text
    assert str(Estimate(value, (value, 0.5))) == f"{text} [{text}, 0.5]"


def test_a_profile_by_hand() -> None:
    thresholds = np.array([-1.0, 0.0, 0.5, 1.0])
    fractions, band = performance_profile([np.array([0.0, 1.0]), np.array([0.6, 0.6, 0.2, 0.0])], thresholds)
    np.testing.assert_allclose(fractions, [1, (1 / 2 + 3 / 4) / 2, (1 / 2 + 2 / 4) / 2, 0])
    assert band is not None
    np.testing.assert_allclose(band[0][[0, 3]], [1, 0])
    assert performance_profile([np.array([1.0])], thresholds)[1] is None


@few
@given(strata, st.randoms())
def test_order_does_not_matter(samples: list[np.ndarray], random: Random) -> None:
    shuffled = [np.array(random.sample(list(each), len(each))) for each in samples]
    assert pooled_iqm(shuffled).value == pytest.approx(pooled_iqm(samples).value)
    thresholds = np.linspace(-100, 100, 5)
    np.testing.assert_allclose(performance_profile(shuffled, thresholds)[0], performance_profile(samples, thresholds)[0])


@few
@given(st.lists(st.tuples(scores, scores), min_size=1, max_size=3))
def test_either_is_better_or_they_are_equal(pairs: list[tuple[np.ndarray, np.ndarray]]) -> None:
    x, y = map(list, zip(*pairs, strict=True))
    there, back = improvement(x, y), improvement(y, x)
    assert there.value + back.value == pytest.approx(1)
    assert improvement(x, x).value == pytest.approx(0.5)
    pairwise = [np.mean(np.sign(a[:, None] - b) / 2 + 0.5) for a, b in pairs]
    assert there.value == pytest.approx(np.mean(pairwise))


@few
@given(strata)
def test_bands_hold_the_estimate(samples: list[np.ndarray]) -> None:
    value, interval = pooled_iqm(samples)
    assert interval is not None
    assert interval[0] - 1e-9 <= value <= interval[1] + 1e-9
    fractions, band = performance_profile(samples, np.linspace(-100, 100, 7))
    assert band is not None
    assert (band[0] - 1e-9 <= fractions).all()
    assert (fractions <= band[1] + 1e-9).all()
    assert (np.diff(fractions) <= 1e-12).all()


def test_strata_are_drawn_apart() -> None:
    """Ten and zero in one environment each: drawn together, the mean would vary."""
    apart = stratified_band([np.full(4, 10.0), np.zeros(4)], lambda *samples, axis: np.concatenate(samples, axis).mean(axis))
    assert apart is not None
    assert (float(apart[0]), float(apart[1])) == (5.0, 5.0)
    assert stratified_band([np.array([1.0, np.nan])], interquartile_mean) is None


def test_a_runs_points_are_drawn_together() -> None:
    run = np.arange(6.0)
    low, high = stratified_band([np.stack([run, -run])], interquartile_mean) or ([], [])
    np.testing.assert_allclose(low[0], -high[1])
    np.testing.assert_allclose(high[0], -low[1])


# --- curves ----------------------------------------------------------------------------------------------------------


def test_runs_meet_where_all_of_them_are() -> None:
    same = [np.array([10.0, 25.0, 30.0])] * 2
    assert common_grid(same).tolist() == [10, 25, 30]
    assert common_grid([np.array([0.0, 100.0]), np.array([20.0, 60.0, 80.0])]).tolist() == [20, 50, 80]
    assert common_grid([np.array([1.0, 5.0]), np.array([5.0, 9.0])]).tolist() == [5]
    assert not len(common_grid([np.array([1.0, 4.0]), np.array([5.0, 9.0])]))
    assert not len(common_grid([np.array([1.0, 4.0]), np.empty(0)]))
    assert len(common_grid([np.arange(1000.0)], most=50)) == 50


def test_runs_are_interpolated_and_not_extrapolated() -> None:
    grid = np.array([0.0, 15.0, 20.0, 40.0])
    found = on_grid([np.array([10.0, 20.0]), np.array([0.0, 40.0])], [np.array([1.0, 3.0]), np.array([0.0, 8.0])], grid)
    np.testing.assert_equal(found, [[np.nan, 0], [2, 3], [3, 4], [np.nan, 8]])


def test_the_first_point_that_reaches_a_threshold() -> None:
    points, values = np.array([1.0, 2.0, 3.0]), np.array([0.0, 5.0, 4.0])
    assert first_reached(points, values, 5.0) == 2.0
    assert np.isnan(first_reached(points, values, 5.1))
