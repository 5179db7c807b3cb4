"""Point estimates and intervals for episode returns.

Those of Agarwal et al., "Deep Reinforcement Learning at the Edge of the Statistical Precipice", NeurIPS 2021,
arXiv:2108.13264, section 4. With the scores x_{m,n} of runs n = 1 … N_m on environments m = 1 … M:

(1) IQM, the mean of the middle half of all scores
(2) performance profile, F(τ) = 1/M Σ_m 1/N_m Σ_n 1[x_{m,n} > τ]
(3) probability of improvement, P(X > Y) = 1/M Σ_m 1/(N_m K_m) Σ_n Σ_k S(x_{m,n}, y_{m,k}),
    S(x, y) = 1 where x > y, ½ where x = y, else 0
(4) stratified bootstrap: runs are drawn with replacement within each environment; percentiles of what the draws come to

Scores of different environments are comparable once normalised: (x - low) / (high - low).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import stats

__all__ = [
    "RESAMPLES",
    "Band",
    "Estimate",
    "Summary",
    "bootstrap_interval",
    "common_grid",
    "first_reached",
    "improvement",
    "interquartile_mean",
    "on_grid",
    "performance_profile",
    "pooled_iqm",
    "probability_of_improvement",
    "stratified_band",
    "summarise",
]

RESAMPLES = 2000
"""Bootstrap samples of an interval."""

Band: TypeAlias = tuple[NDArray[np.float64], NDArray[np.float64]]
"""Lower and upper ends of intervals."""


@dataclass(frozen=True)
class Summary:
    """What a sample of ``n`` episode returns says about the policy that earned them.

    :param n: number of episodes
    :param mean: arithmetic mean
    :param std: population standard deviation over the episodes
    :param iqm: interquartile mean
    :param interval: 95 % percentile-bootstrap interval of ``iqm``; None for a single episode and unless all returns are finite
    :param best: greatest return
    """

    n: int
    mean: float
    std: float
    iqm: float
    interval: tuple[float, float] | None
    best: float


def interquartile_mean(values: Sequence[float] | NDArray[np.float64], axis: int | None = None) -> NDArray[np.float64]:
    """Mean of the middle half: the lowest and the highest quarter, rounded down, are dropped; of three or fewer, none.

    :param values: sample, any shape
    :param axis: axis to reduce; None reduces all of them
    :return: array without that axis
    """
    return np.asarray(stats.trim_mean(values, proportiontocut=0.25, axis=axis))


def bootstrap_interval(
    values: Sequence[float] | NDArray[np.float64],
    statistic: Callable[..., NDArray[np.float64]] = interquartile_mean,
    *,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile-bootstrap interval of ``statistic``; equal arguments give equal intervals.

    :param values: sample, shape (n,), n >= 2
    :param statistic: function of a sample and ``axis``
    :param confidence: level, in (0, 1)
    :param resamples: number of bootstrap samples
    :param seed: seed of the resampling
    :return: (low, high)
    :raises ValueError: fewer than two values
    """
    low, high = _bootstrap((np.asarray(values, dtype=np.float64),), statistic, confidence, resamples, seed)
    return float(low), float(high)


def _bootstrap(
    strata: Sequence[NDArray[np.float64]], statistic: Callable[..., Any], confidence: float, resamples: int, seed: int
) -> Band:
    interval = stats.bootstrap(
        tuple(strata),
        statistic,
        axis=-1,
        vectorized=True,
        confidence_level=confidence,
        n_resamples=resamples,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return np.asarray(interval.low), np.asarray(interval.high)


def stratified_band(
    strata: Sequence[NDArray[np.float64]],
    statistic: Callable[..., Any],
    *,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Band | None:
    """Percentile intervals by the stratified bootstrap (4); equal arguments give equal intervals.

    A run's points, should it have several, are drawn together.

    :param strata: runs of each environment, (..., N_m), with equal leading axes
    :param statistic: function of as many samples as there are strata, and of ``axis``
    :param confidence: level, in (0, 1)
    :param resamples: number of bootstrap samples
    :param seed: seed of the resampling
    :return: lower and upper ends, (...); None where an environment has a single run, or a score is not finite
    """
    if any(stratum.shape[-1] < 2 or not np.isfinite(stratum).all() for stratum in strata):
        return None
    return _bootstrap(strata, statistic, confidence, resamples, seed)


class Estimate(NamedTuple):
    """A statistic of some runs.

    :param value: the statistic
    :param interval: its 95 % bootstrap interval; None for a single seed
    """

    value: float
    interval: tuple[float, float] | None

    @classmethod
    def of(cls, values: NDArray[np.float64], statistic: Callable[..., Any] = interquartile_mean) -> "Estimate":
        """Estimate a statistic from one value per seed, (n,)."""
        several = len(values) > 1 and bool(np.isfinite(values).all())
        if several and np.ptp(values) == 0:
            return cls(float(values[0]), (float(values[0]), float(values[0])))
        return cls(float(statistic(values, axis=0)), bootstrap_interval(values, statistic) if several else None)

    @classmethod
    def over(cls, strata: Sequence[NDArray[np.float64]], statistic: Callable[..., Any]) -> "Estimate":
        """Estimate a statistic of several samples, (N_m,) each, as of :func:`stratified_band`."""
        band = stratified_band(strata, statistic)
        interval = None if band is None else (float(band[0]), float(band[1]))
        return cls(float(statistic(*strata, axis=-1)), interval)

    def overlaps(self, other: "Estimate") -> bool | None:
        """Whether two intervals do; None where one of them is not known."""
        if self.interval is None or other.interval is None:
            return None
        return self.interval[0] <= other.interval[1] and other.interval[0] <= self.interval[1]

    def __str__(self) -> str:
        interval = "" if self.interval is None else f" [{_number(self.interval[0])}, {_number(self.interval[1])}]"
        return _number(self.value) + interval


def _number(value: float) -> str:
    if abs(value) >= 10:
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.1f}"
    return f"{round(value, 4) + 0.0:.3g}"  # of rewards that are 1 once, the first decimal does not tell two algorithms apart


def pooled_iqm(strata: Sequence[NDArray[np.float64]]) -> Estimate:
    """Interquartile mean (1) of the normalised scores on all environments, with its interval (4).

    :param strata: one score per run, (N_m,) for each environment
    """
    return Estimate.over(strata, lambda *samples, axis: interquartile_mean(np.concatenate(samples, axis=axis), axis=axis))


def performance_profile(
    strata: Sequence[NDArray[np.float64]], thresholds: NDArray[np.float64]
) -> tuple[NDArray[np.float64], Band | None]:
    """Fraction of runs that score more than each threshold (2), with its intervals (4).

    :param strata: one score per run, (N_m,) for each environment
    :param thresholds: τ, (T,)
    :return: fractions, (T,), and their band; None where an environment has a single run
    """

    def fractions(*exceeding: NDArray[np.float64], axis: int) -> Any:
        return np.mean([each.mean(axis=axis) for each in exceeding], axis=0)

    exceeding = [(stratum > thresholds[:, None]).astype(np.float64) for stratum in strata]
    return np.asarray(fractions(*exceeding, axis=-1)), stratified_band(exceeding, fractions)


def probability_of_improvement(x: NDArray[np.float64], y: NDArray[np.float64], axis: int = -1) -> Any:
    """P(X > Y) + P(X = Y)/2 on one environment (3): the statistic U of Mann and Whitney over the number of pairs.

    :param x: one score per run of X, (..., N); minus infinity is the least of all
    :param y: one score per run of Y, (..., K)
    :param axis: that of the runs
    :return: (...)
    """
    return stats.mannwhitneyu(x, y, axis=axis, method="asymptotic").statistic / (x.shape[axis] * y.shape[axis])


def improvement(x: Sequence[NDArray[np.float64]], y: Sequence[NDArray[np.float64]]) -> Estimate:
    """Probability that a run of X scores more than one of Y on the same environment (3), with its interval (4).

    :param x: one score per run of X, (N_m,) for each environment
    :param y: one score per run of Y, (K_m,) for the same environments in the same order
    """

    def probability(*samples: NDArray[np.float64], axis: int) -> Any:
        pairs = zip(samples[: len(x)], samples[len(x) :], strict=True)
        return np.mean([probability_of_improvement(a, b, axis) for a, b in pairs], axis=0)

    return Estimate.over([*x, *y], probability)


def common_grid(points: Sequence[NDArray[np.float64]], most: int = 200) -> NDArray[np.float64]:
    """Points that all runs cover: their own where they agree, else ``most`` at equal distances at most.

    :param points: ascending, (E_n,) for each run
    :param most: number of points at most
    :return: (G,); empty if no stretch is covered by all
    """
    if len(points[0]) <= most and all(np.array_equal(each, points[0]) for each in points[1:]):
        return points[0]
    if not all(map(len, points)):
        return np.empty(0)
    low, high = max(each[0] for each in points), min(each[-1] for each in points)
    if low > high:
        return np.empty(0)
    return np.linspace(low, high, min(most, max(map(len, points)))) if low < high else np.array([low])


def on_grid(
    points: Sequence[NDArray[np.float64]], values: Sequence[NDArray[np.float64]], grid: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Interpolate runs linearly between their own points, and no further.

    :param points: ascending, (E_n,) for each run
    :param values: at these points, (E_n,) for each run
    :param grid: as of :func:`common_grid`, (G,)
    :return: (G, N), NaN where a run does not reach
    """
    columns = [np.interp(grid, x, y, left=np.nan, right=np.nan) for x, y in zip(points, values, strict=True)]
    return np.stack(columns, axis=-1)


def first_reached(points: NDArray[np.float64], values: NDArray[np.float64], threshold: float) -> float:
    """Return the first of ``points``, (G,), at which ``values``, (G,), is no less than ``threshold``; NaN if none is."""
    reached = np.flatnonzero(values >= threshold)
    return float(points[reached[0]]) if len(reached) else float("nan")


def summarise(returns: Sequence[float]) -> Summary:
    """Describe a sample of episode returns.

    :param returns: one undiscounted return per episode, at least one
    :raises ValueError: no returns
    """
    if not returns:
        raise ValueError("no episode returns to summarise")
    with np.errstate(invalid="ignore"):  # an infinite return has no standard deviation
        std = float(np.std(returns))
    return Summary(
        n=len(returns),
        mean=float(np.mean(returns)),
        std=std,
        iqm=float(interquartile_mean(returns)),
        interval=bootstrap_interval(returns) if len(returns) > 1 and np.isfinite(returns).all() else None,
        best=float(np.max(returns)),
    )
