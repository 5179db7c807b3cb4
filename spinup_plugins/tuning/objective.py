"""What a trial is worth: several trainings with seeds that all trials share, each exactly a run of ``spinup train``.

A trial trains its runs one after another: all environments with the first seed, then with the second, and so on. In
sequence rather than side by side, a run draws from the global generators alone and therefore repeats
``spinup train --seed``; memory holds one replay buffer; and a bad trial is stopped in its first run, before the others are
paid for. Since seeds and their order are the same in all trials, what two trials report at one step comes from the same
environments and seeds.
"""

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from math import inf
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback

from spinup_plugins.errors import ConfigError, EnvError
from spinup_plugins.runs.config import Layer, RunConfig, compose
from spinup_plugins.runs.runner import Run, prepare
from spinup_plugins.runs.statistics import interquartile_mean

__all__ = ["METRICS", "SCORES", "Curve", "Metrics", "Score", "configured", "measure", "normalised", "score", "train_once"]

Score: TypeAlias = Literal["last", "auc", "max"]
SCORES: tuple[str, ...] = get_args(Score)
METRICS: dict[str, Literal["maximize", "minimize"]] = {
    "score": "maximize",
    "seconds": "minimize",
    "std": "minimize",
    "worst": "maximize",
}
"""What a trial is measured by, and which way is better: the mean of its runs' scores, the mean wall time of a run, the
standard deviation of the scores over seeds, and the lowest score of a seed."""


class Curve(NamedTuple):
    """Evaluations of one run.

    :param timesteps: multiple of the interval at or before which each was made, (E,)
    :param returns: undiscounted returns of its episodes, (E, episodes)
    :param final: returns of the episodes after training
    :param seconds: wall time of training with its evaluations
    """

    timesteps: tuple[int, ...]
    returns: tuple[tuple[float, ...], ...]
    final: tuple[float, ...]
    seconds: float

    @property
    def means(self) -> list[float]:
        """Mean return of each evaluation, (E,)."""
        return [float(np.mean(each)) for each in self.returns]


class Metrics(NamedTuple):
    """What a trial comes to; see :data:`METRICS`."""

    score: float
    seconds: float
    std: float
    worst: float


def score(returns: Sequence[Sequence[float]], how: Score, last: float) -> float:
    """Return what the evaluations of a run are worth.

    :param returns: of each evaluation's episodes, (E, episodes), E >= 1
    :param how: "last": interquartile mean of all episodes in the last evaluations; "auc": mean over evaluations of the mean
        return, which is the area under the curve as they are evenly spaced; "max": the greatest mean
    :param last: the share of the evaluations that are the last, rounded up, in (0, 1]
    :raises EnvError: a return is NaN or infinite
    """
    episodes = np.asarray(returns, dtype=np.float64)
    if not np.isfinite(episodes).all():
        raise EnvError("an evaluation's return is not finite")
    if how == "last":
        n = int(np.ceil(round(last * len(episodes), 6)))  # 0.28 * 25 is 7.000000000000001
        return float(interquartile_mean(episodes[-n:]))
    means = episodes.mean(axis=1)
    return float(means.mean() if how == "auc" else means.max())


def normalised(value: float, reference: tuple[float, float] | None) -> float:
    """Put a score on the scale where ``reference``'s first value is 0 and its second 1; None leaves it as it is."""
    return value if reference is None else (value - reference[0]) / (reference[1] - reference[0])


def configured(base: Mapping[str, Any], values: Mapping[str, Any], **run: Any) -> RunConfig:
    """Return the configuration of a run.

    :param base: a configuration as plain data
    :param values: constructor arguments and run keys that a trial chose, put over it
    :param run: keys of :class:`RunConfig` over both
    :raises ConfigError: a value is not valid
    """
    own = {key: value for key, value in values.items() if key in RunConfig.model_fields}
    arguments = {key: value for key, value in values.items() if key not in own}
    layers = [Layer(dict(base), ".".join), Layer({**own, "hyperparameters": arguments}, ".".join)]
    return compose(*layers, *([Layer(run, ".".join)] if run else []))


def train_once(config: RunConfig, watch: Callable[[int, list[list[float]]], None] = lambda step, returns: None) -> Curve:
    """Train and evaluate in a folder that is gone afterwards.

    :param config: what to do
    :param watch: called after each evaluation with its step and all returns so far; what it raises stops the training
    :raises SpinupError: the configuration or the environment is faulty
    :raises ConfigError: there was no evaluation
    """
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="spinup-tune-") as folder:
        run = prepare(config.model_copy(update={"checkpoint_every": 0}), home=Path(folder) / "run")
        watcher = _Watch(run, watch)
        final = run.learn([watcher])
    if not watcher.steps:
        raise ConfigError(f"no evaluation in {config.n_timesteps} timesteps: eval_every={run.config.eval_every} is too long")
    returns = tuple(tuple(map(float, each)) for each in run.evaluations.evaluations_results[: len(watcher.steps)])
    return Curve(tuple(watcher.steps), returns, final.returns, time.perf_counter() - began)


def measure(scores: Sequence[Sequence[float]], seconds: Sequence[float]) -> Metrics:
    """Return what a trial's runs come to.

    The mean over seeds, not their interquartile mean: what fails on one seed of four must not pass for good.

    :param scores: normalised score by seed and environment, (S, N)
    :param seconds: wall time of each run
    """
    by_seed = np.asarray(scores, dtype=np.float64).mean(axis=1)
    return Metrics(float(by_seed.mean()), float(np.mean(seconds)), float(by_seed.std()), float(by_seed.min()))


class _Watch(BaseCallback):
    """Tells of each evaluation within the budget once it is made; stands after the run's own in the list of callbacks.

    A rollout that is longer than what is left goes on beyond ``n_timesteps``, where nothing is evaluated any more.
    """

    def __init__(self, run: Run, watch: Callable[[int, list[list[float]]], None]) -> None:
        super().__init__()
        self.run, self.watch = run, watch
        self.steps: list[int] = []

    def _on_step(self) -> bool:
        results, every = self.run.evaluations.evaluations_results, self.run.config.eval_every
        assert every, "Definition has no other"
        step = self.num_timesteps // every * every
        if len(results) > len(self.steps) and step <= self.run.config.n_timesteps:
            self.steps.append(step)
            if step + every > self.run.config.n_timesteps:
                self.run.evaluations.due = inf
            self.watch(self.steps[-1], [[float(value) for value in each] for each in results])
        return True
