"""Point estimates and intervals for episode returns.

The interquartile mean and percentile-bootstrap intervals are those of Agarwal et al., "Deep Reinforcement Learning at
the Edge of the Statistical Precipice", NeurIPS 2021, arXiv:2108.13264, section 4.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

__all__ = ["Summary", "bootstrap_interval", "interquartile_mean", "summarise"]


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
    """Mean of the middle half: the lowest and the highest quarter (rounded down) are dropped.

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
    resamples: int = 2000,
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
    result = stats.bootstrap(
        (np.asarray(values, dtype=np.float64),),
        statistic,
        confidence_level=confidence,
        n_resamples=resamples,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    return float(result.confidence_interval.low), float(result.confidence_interval.high)


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
