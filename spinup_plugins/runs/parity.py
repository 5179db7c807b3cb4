"""Whether ours learns as Stable-Baselines3's does: learning curves of both over seeds, under equal hyperparameters."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from math import nan
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from spinup_plugins.atomic import replacing, write_csv, write_text
from spinup_plugins.errors import ConfigError, UnknownNameError, nearest
from spinup_plugins.runs.pool import Ended, Job, run_jobs, serve
from spinup_plugins.runs.statistics import Estimate

if TYPE_CHECKING:
    from stable_baselines3.common.base_class import BaseAlgorithm

__all__ = ["BINS", "CASES", "SIDES", "Case", "Curve", "Estimate", "Outcome", "Run", "cases", "learn", "report", "run_all"]

SIDES = ("sb3", "torch", "numpy", "native")
"""Whose curve: Stable-Baselines3's (sb3-contrib's), or ours on a tier."""

BINS = 40
"""Equal parts of a run's steps that returns are averaged over."""

LAST = 100
"""Training episodes that a run's final return is the mean of."""


class Case(NamedTuple):
    """An algorithm and its hyperparameters on an environment.

    :param algo: registered name; ``sb3:`` and it is the peer's
    :param env: Gymnasium id
    :param steps: environment steps
    :param kwargs: constructor arguments of both sides, over their equal defaults; ``action_noise`` is a Gaussian's deviation
    :param ours: arguments that ours alone takes
    """

    algo: str
    env: str
    steps: int
    kwargs: Mapping[str, Any] = {}
    ours: Mapping[str, Any] = {}


_HALF_CHEETAH: dict[str, Any] = {"buffer_size": 100_000, "learning_starts": 10_000}
_PENDULUM: dict[str, Any] = {"buffer_size": 20_000, "learning_starts": 1_000, "learning_rate": 1e-3}

CASES = (
    Case("ppo", "CartPole-v1", 200_000),
    Case("trpo", "CartPole-v1", 200_000, ours={"kl_reduction": "mean"}),
    Case("ppo", "HalfCheetah-v5", 200_000),
    Case("trpo", "HalfCheetah-v5", 200_000, ours={"kl_reduction": "mean"}),
    Case("sac", "Pendulum-v1", 20_000, {**_PENDULUM, "policy_kwargs": {"net_arch": [64, 64]}}),
    Case("td3", "Pendulum-v1", 20_000, {**_PENDULUM, "policy_kwargs": {"net_arch": [64, 64]}, "action_noise": 0.1}),
    Case("sac", "HalfCheetah-v5", 100_000, _HALF_CHEETAH),
    Case("td3", "HalfCheetah-v5", 100_000, {**_HALF_CHEETAH, "policy_kwargs": {"net_arch": [256, 256]}, "action_noise": 0.1}),
)
"""What is compared. Hyperparameters are Stable-Baselines3's defaults where nothing else stands here."""


def cases(algo: str | None = None, env: str | None = None) -> list[Case]:
    """Return the cases of an algorithm and an environment; None stands for all.

    :raises UnknownNameError: there is none
    """
    found = [case for case in CASES if algo in (None, case.algo) and env in (None, case.env)]
    if not found:
        asked = f"{algo or ''} {env or ''}".strip()
        known = [f"{case.algo} {case.env}" for case in CASES]
        raise UnknownNameError(f"no curves are compared for {asked!r}{nearest(asked, known)}; there are {', '.join(known)}")
    return found


# --- one run ---------------------------------------------------------------------------------------------------------


class Run(NamedTuple):
    """One learning curve to make.

    :param case: what is learnt
    :param side: one of :data:`SIDES`
    :param seed: of parameters, exploration and environment
    """

    case: Case
    side: str
    seed: int

    def __str__(self) -> str:
        return f"{self.case.algo} {self.case.env} {self.side} seed {self.seed}"

    def file(self, folder: Path) -> Path:
        """Where its curve is kept below ``folder``."""
        return folder / self.case.algo / self.case.env / f"{self.side}-seed{self.seed}.csv"


class Curve(NamedTuple):
    """What a run came to.

    :param steps: the last environment step of each bin, (bins,)
    :param returns: mean return of the training episodes that ended in it; NaN where none did, (bins,)
    :param final: mean return of the last episodes
    """

    steps: NDArray[np.int64]
    returns: NDArray[np.float64]
    final: float

    @property
    def filled(self) -> NDArray[np.float64]:
        """Returns with the one before in place of each NaN; the first one that there is before all others."""
        known = np.flatnonzero(np.isfinite(self.returns))
        if not len(known):
            return np.full(len(self.returns), self.final)
        return self.returns[known[np.maximum(np.searchsorted(known, np.arange(len(self.returns)), side="right") - 1, 0)]]


def binned(returns: Sequence[float], lengths: Sequence[int], steps: int, bins: int = BINS) -> Curve:
    """Average episodes' returns over equal parts of a run's steps.

    :param returns: of each episode
    :param lengths: in environment steps
    :param steps: that were asked for; what ended in the last rollout, beyond them, counts to the last bin
    :param bins: number of parts, at most ``steps``
    """
    edges = np.round(np.linspace(0, steps, bins + 1)).astype(np.int64)[1:]
    index = np.minimum(np.searchsorted(edges, np.cumsum(lengths)), bins - 1)
    counts, sums = np.bincount(index, minlength=bins), np.bincount(index, weights=returns, minlength=bins)
    with np.errstate(invalid="ignore", divide="ignore"):
        means = sums / counts
    return Curve(edges, means, float(np.mean(returns[-LAST:])) if len(returns) else nan)


def learn(run: Run) -> Curve:
    """Make one learning curve, in this process.

    :param run: which
    :raises ConfigError: the tier is not to be had, or no episode ended
    """
    import gymnasium as gym
    import torch as th
    from stable_baselines3.common.monitor import Monitor

    th.set_num_threads(1)
    monitor: Monitor[Any, Any] = Monitor(gym.make(run.case.env))
    _model(run, monitor).learn(run.case.steps)
    returns, lengths = monitor.get_episode_rewards(), monitor.get_episode_lengths()
    if not returns:
        raise ConfigError(f"no episode ended in {run.case.steps} steps: take more")
    return binned(returns, lengths, run.case.steps)


def _model(run: Run, env: Any) -> BaseAlgorithm:
    """Build a side's model as its own users do, on the same environment."""
    from stable_baselines3.common.noise import NormalActionNoise

    from spinup_plugins.registry import get_class

    kwargs = {**run.case.kwargs, "seed": run.seed, "device": "cpu"}
    if "action_noise" in kwargs:
        shape = env.action_space.shape
        kwargs["action_noise"] = NormalActionNoise(np.zeros(shape), np.full(shape, kwargs["action_noise"]))
    if run.side == "sb3":
        return get_class(f"sb3:{run.case.algo}")("MlpPolicy", env, **kwargs)
    ours = {**run.case.ours, "engine": run.side, "n_threads": 1}
    return get_class(run.case.algo)("MlpPolicy", env, **kwargs, **ours)


def write_curve(path: Path, curve: Curve) -> None:
    """Write a curve as CSV, whole or not at all.

    :param path: file to create; folders are made
    :param curve: its bins become rows of steps and return; the last row, ``final``, is the final return
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [(str(step), "" if np.isnan(value) else f"{value:.6g}") for step, value in zip(*curve[:2], strict=True)]
    write_csv(path, [("steps", "return"), *rows, ("final", f"{curve.final:.6g}")])


def read_curve(path: Path) -> Curve:
    """Read what :func:`write_curve` wrote.

    :raises ConfigError: it is no such file
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            header, *rows, final = csv.reader(file)
        if header != ["steps", "return"] or final[0] != "final":
            raise ValueError("not a curve")
        steps, returns = zip(*((int(step), float(value or nan)) for step, value in rows), strict=True)
        return Curve(np.array(steps), np.array(returns), float(final[1]))
    except (ValueError, IndexError) as error:
        raise ConfigError(f"{path}: no learning curve of 'spinup parity' ({error})") from error


# --- all runs --------------------------------------------------------------------------------------------------------


class Outcome(NamedTuple):
    """How a run ended.

    :param run: which
    :param seconds: it took; 0 where its file was there already
    :param final: its final return; NaN where it failed
    :param error: what went wrong, on one line, or ""
    """

    run: Run
    seconds: float
    final: float
    error: str = ""


def run_all(
    runs: Sequence[Run],
    folder: Path,
    *,
    jobs: int = 1,
    progress: Callable[[str], None] = lambda _: None,
) -> Iterator[Outcome]:
    """Make learning curves, each in a process of its own with one thread; those whose file exists are not made again.

    :param runs: which, in this order
    :param folder: where their files are kept, each written when its run has ended
    :param jobs: how many at a time
    :param progress: is told what runs
    :return: outcomes as they come
    :raises ConfigError: ``jobs`` is not positive, or a file that exists is of another number of steps
    """
    waiting = []
    for run in runs:
        if run.file(folder).exists():
            steps = int(read_curve(run.file(folder)).steps[-1])
            if steps != run.case.steps:
                raise ConfigError(
                    f"{run.file(folder)} holds a run of {steps} steps, not {run.case.steps}: take another folder or remove it"
                )
        else:
            waiting.append(run)

    def watch(active: Sequence[Job], ended: int) -> None:
        progress(f"{ended} of {len(waiting)}: {', '.join(job.name for job in active)}")

    ending = run_jobs([_job(run, folder) for run in waiting], jobs, watch)
    return _outcomes(runs, waiting, folder, ending)


def _outcomes(runs: Sequence[Run], waiting: Sequence[Run], folder: Path, ending: Iterator[Ended]) -> Iterator[Outcome]:
    for run in runs:
        if run not in waiting:
            yield Outcome(run, 0.0, read_curve(run.file(folder)).final)
    by_name = {str(run): run for run in waiting}
    for ended in ending:
        run = by_name[ended.job.name]
        final = nan if ended.error else read_curve(run.file(folder)).final
        yield Outcome(run, ended.seconds, final, ended.error)


def _job(run: Run, folder: Path) -> Job:
    argument = {"run": [run.case._asdict(), run.side, run.seed], "file": str(run.file(folder).absolute())}
    return Job(str(run), "spinup_plugins.runs.parity", argument)


def _work(argument: Any) -> None:
    """Make one curve."""
    case, side, seed = argument["run"]
    write_curve(Path(argument["file"]), learn(Run(Case(**case), side, seed)))


# --- the report ------------------------------------------------------------------------------------------------------


def report(folder: Path) -> str:
    """Write ``README.md`` and a plot for each case from the curves below a folder.

    What stands in ``notes.md`` there is taken into it, for what figures cannot explain.

    :param folder: of :func:`run_all`
    :return: the text
    :raises ConfigError: there are no curves, or matplotlib is not installed
    """
    from spinup_plugins.runs.speed import machine, pyplot

    found = [(case, sides) for case in CASES if (sides := _curves(case, folder))]
    if not found:
        raise ConfigError(f"{folder}: there are no curves; 'spinup parity --out {folder}' makes them")
    plt = pyplot("--report")
    text = [
        "# Same learning",
        "",
        "Training returns of ours, on each tier, and of Stable-Baselines3 (sb3-contrib's TRPO) under the same",
        f"hyperparameters. Final: mean of a run's last {LAST} training episodes. Area: mean of its curve, which averages",
        f"the episodes that ended in each of {BINS} equal parts of its steps. Both as interquartile mean and as mean over",
        "seeds, with 95 % bootstrap intervals; *overlaps* says whether the interquartile means' intervals and sb3's do.",
        "Plots show interquartile means and such intervals.",
        "",
        "    spinup parity          # makes the curves, a CSV each, and takes up where it stopped",
        "    spinup parity --report # writes this file and the plots",
        "",
        *(f"* {key}: {value}" for key, value in machine().items()),
        "",
    ]
    apart: list[str] = []
    for case, sides in found:
        text += [*_table(case, sides, apart), "", f"![curves]({case.algo}/{case.env}/curves.svg)", ""]
        _plot(plt, case, sides, folder / case.algo / case.env / "curves.svg")
    text += ["## Intervals that do not overlap", "", *(apart or ["None."]), ""]
    notes = folder / "notes.md"
    if notes.exists():
        text += ["## Notes", "", notes.read_text(encoding="utf-8").strip(), ""]
    write_text(folder / "README.md", "\n".join(text))
    return "\n".join(text)


def _curves(case: Case, folder: Path) -> dict[str, list[Curve]]:
    """Read a case's curves by side, those of the seeds that there are."""
    place = folder / case.algo / case.env
    found = {side: [read_curve(path) for path in sorted(place.glob(f"{side}-seed*.csv"))] for side in SIDES}
    found = {side: curves for side, curves in found.items() if curves}
    lengths = {int(curve.steps[-1]) for curves in found.values() for curve in curves}
    if len(lengths) > 1:
        raise ConfigError(f"{place} holds runs of different numbers of steps: {', '.join(map(str, sorted(lengths)))}")
    return found


def _table(case: Case, sides: Mapping[str, Sequence[Curve]], apart: list[str]) -> list[str]:
    """Return a case's heading and table; say in ``apart`` which intervals and sb3's do not overlap."""
    steps = int(next(iter(sides.values()))[0].steps[-1])
    kwargs = {**case.kwargs, **{f"{key} (ours)": value for key, value in case.ours.items()}}
    settings = ", ".join(f"{key}={json.dumps(value)}" for key, value in kwargs.items()) or "defaults"
    lines = [
        f"## {case.algo.upper()} on {case.env}, {steps:,} steps",
        "",
        f"{settings[0].upper() + settings[1:] if settings == 'defaults' else f'`{settings}`'}, one environment.",
        "",
        "| side | seeds | final, IQM | final, mean | area, IQM | area, mean | overlaps |",
        "|---|--:|--:|--:|--:|--:|---|",
    ]
    measures: dict[str, Callable[[Curve], float]] = {
        "final": lambda curve: curve.final,
        "area": lambda curve: float(curve.filled.mean()),
    }
    theirs: dict[str, Estimate] = {}
    for side, curves in sides.items():
        cells, overlaps = [], []
        for measure, of in measures.items():
            values = np.array([of(curve) for curve in curves])
            estimate = Estimate.of(values)
            cells += [str(estimate), str(Estimate.of(values, np.mean))]
            if side == "sb3":
                theirs[measure] = estimate
            elif theirs:
                overlap = estimate.overlaps(theirs[measure])
                overlaps.append(f"{measure}: {'?' if overlap is None else 'yes' if overlap else 'no'}")
                if overlap is False:
                    which = "higher" if estimate.value > theirs[measure].value else "lower"
                    apart.append(
                        f"* {case.algo.upper()} on {case.env}, {measure}: {side} is {which}, {estimate}, sb3 {theirs[measure]}"
                    )
        lines.append(f"| {side} | {len(curves)} | {' | '.join(cells)} | {', '.join(overlaps)} |")
    return lines


def _plot(plt: Any, case: Case, sides: Mapping[str, Sequence[Curve]], path: Path) -> None:
    """Draw the interquartile means of a case's curves, with intervals."""
    import matplotlib as mpl

    # Text stays text and identifiers depend on nothing but the data: a small file that differs only where the curves do.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "spinup", "font.size": 9}):
        figure, axes = plt.subplots(figsize=(6, 3.4), layout="constrained")
        for side, curves in sides.items():
            steps, returns = curves[0].steps, np.array([curve.filled for curve in curves])
            points = [Estimate.of(column) for column in returns.T]
            (line,) = axes.plot(steps, [point.value for point in points], label=f"{side} ({len(curves)} seeds)", linewidth=1.3)
            bands = [point.interval or (point.value, point.value) for point in points]
            axes.fill_between(steps, *np.array(bands).T, color=line.get_color(), alpha=0.15, linewidth=0)
        axes.set(title=f"{case.algo.upper()} on {case.env}", xlabel="environment steps", ylabel="training return")
        axes.legend(frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
        with replacing(path) as temporary:
            figure.savefig(temporary, metadata={"Date": None})
        plt.close(figure)


if __name__ == "__main__":
    serve(_work)
