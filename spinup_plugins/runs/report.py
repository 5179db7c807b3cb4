"""Comparing runs: learning curves, final returns and what follows from them, as a page, figures and tables."""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from spinup_plugins.atomic import replacing, write_csv, write_text
from spinup_plugins.errors import ConfigError
from spinup_plugins.runs import figures, pages, references
from spinup_plugins.runs.files import file_name
from spinup_plugins.runs.references import Reference, relation
from spinup_plugins.runs.sources import Found, find_runs
from spinup_plugins.runs.statistics import (
    Band,
    Estimate,
    common_grid,
    first_reached,
    improvement,
    interquartile_mean,
    on_grid,
    performance_profile,
    pooled_iqm,
    stratified_band,
)

__all__ = ["FRACTIONS", "Comparison", "Curve", "Group", "Pair", "Scale", "compare", "report"]

FRACTIONS = (0.5, 0.75, 0.95)
"""Normalised scores whose first reaching is sample efficiency."""

_FINAL = ("algorithm", "environment", "timesteps", "seeds", "iqm", "low", "high", "mean", "std", "score", "of", "returns")
_CURVES = ("algorithm", "environment", "axis", "point", "seeds", "mean", "iqm", "low", "high")
_SIX = ("vpg", "trpo", "ppo", "ddpg", "td3", "sac")


class Curve(NamedTuple):
    """Returns over seeds at common points.

    :param points: environment steps or seconds, (G,)
    :param mean: over seeds, (G,)
    :param iqm: interquartile mean over seeds, (G,)
    :param band: its 95 % bootstrap intervals; None for a single seed
    :param n: seeds
    """

    points: NDArray[np.float64]
    mean: NDArray[np.float64]
    iqm: NDArray[np.float64]
    band: Band | None
    n: int

    @classmethod
    def of(cls, points: Sequence[NDArray[np.float64]], values: Sequence[NDArray[np.float64]]) -> "Curve | None":
        """Bring runs onto the points that all of them cover; None if there are none."""
        grid = common_grid(points) if points else np.empty(0)
        if not len(grid):
            return None
        returns = on_grid(points, values, grid)
        band = stratified_band([returns], interquartile_mean)
        return cls(grid, returns.mean(axis=-1), interquartile_mean(returns, axis=-1), band, len(points))


@dataclass(frozen=True)
class Group:
    """Seeds of one algorithm on one environment.

    :param label: what it is called
    :param env: environment
    :param runs: one for each seed
    """

    label: str
    env: str
    runs: tuple[Found, ...]

    @property
    def algo(self) -> str:
        """The algorithm, or "" where it is not known."""
        return self.runs[0].algo

    @property
    def finals(self) -> NDArray[np.float64]:
        """Final returns, (N,)."""
        return np.array([run.final for run in self.runs])

    @property
    def timesteps(self) -> int:
        """Environment steps of the last evaluation of any seed; 0 without one."""
        return max((int(run.timesteps[-1]) for run in self.runs if len(run.timesteps)), default=0)

    @property
    def steps(self) -> str:
        """Environment steps of the last evaluations, from the least to the most of any seed where they differ."""
        ends = sorted({int(run.timesteps[-1]) for run in self.runs if len(run.timesteps)})
        return " to ".join(f"{end:,}" for end in dict.fromkeys((ends[0], ends[-1]))) if ends else "not known"

    @property
    def of(self) -> str:
        """Which episodes final returns are means of."""
        return "; ".join(sorted({run.of for run in self.runs}))

    @cached_property
    def final(self) -> Estimate:
        """Interquartile mean of the final returns."""
        return Estimate.of(self.finals)

    @cached_property
    def curve(self) -> Curve | None:
        """Returns over environment steps; None without evaluations while training."""
        runs = [run for run in self.runs if len(run.timesteps)]
        return Curve.of([run.timesteps.astype(np.float64) for run in runs], [run.returns for run in runs])

    @cached_property
    def wall_clock(self) -> Curve | None:
        """Returns over seconds, of the seeds whose seconds are known; None without any."""
        known = [(run.seconds[at], run.returns[at]) for run in self.runs if (at := np.isfinite(run.seconds)).any()]
        timed = [(seconds, returns) for seconds, returns in known if (np.diff(seconds) >= 0).all()]
        return Curve.of([seconds for seconds, _ in timed], [returns for _, returns in timed])


class Scale(NamedTuple):
    """Returns that are the normalised scores 0 and 1 on an environment.

    :param low: score 0
    :param high: score 1
    :param source: where they come from
    """

    low: float
    high: float
    source: str

    def score(self, values: Any) -> Any:
        """Normalise returns."""
        return (values - self.low) / (self.high - self.low)


class Pair(NamedTuple):
    """How probable it is that one algorithm's run is better than the other's.

    :param x: label
    :param y: label
    :param envs: environments that both have
    :param probability: P(X > Y)
    """

    x: str
    y: str
    envs: tuple[str, ...]
    probability: Estimate


@dataclass(frozen=True)
class Comparison:
    """Runs by algorithm and environment, and what follows from them.

    :param groups: by environment and label
    """

    groups: tuple[Group, ...]

    @cached_property
    def labels(self) -> list[str]:
        """What is compared."""
        return sorted({group.label for group in self.groups})

    @cached_property
    def envs(self) -> list[str]:
        """Where."""
        return sorted({group.env for group in self.groups})

    @cached_property
    def training(self) -> set[str]:
        """Those whose returns are of training episodes."""
        return {group.label for group in self.groups if group.runs[0].measure == "training"}

    @cached_property
    def ranked(self) -> list[str]:
        """What aggregates are of: evaluations if there are any."""
        return [label for label in self.labels if label not in self.training] or self.labels

    @cached_property
    def common(self) -> list[str]:
        """Environments on which all that are ranked have runs."""
        return [env for env in self.envs if set(self.ranked) <= {group.label for group in self.on(env)}]

    def on(self, env: str) -> list[Group]:
        """Groups on an environment."""
        return [group for group in self.groups if group.env == env]

    def references(self, group: Group) -> list[Reference]:
        """Published numbers of a group's algorithm: the best, for each set of equal versions, and Spinning Up's."""
        asked = (group.algo, group.env, group.timesteps)
        return list(dict.fromkeys([*references.best(*asked), *references.spinning_up(*asked)]))

    @cached_property
    def scales(self) -> dict[str, Scale]:
        """How returns are normalised, by environment."""
        return {env: self._scale(env) for env in self.envs}

    def _scale(self, env: str) -> Scale:
        groups = self.on(env)
        low = references.random_policy(env)
        steps = max(group.timesteps for group in groups)
        published = [each for algo in _SIX for each in references.best(algo, env, steps) if relation(each.env, env) != "other"]
        high = max(published, key=lambda each: each.value, default=None)
        if low is not None and high is not None and low.value < high.value:
            return Scale(
                low.value,
                high.value,
                f"random actions ({low.env}) to {high.algo.upper()} of {high.source} ({high.env}, {high.budget})",
            )
        values = np.concatenate([np.append(run.returns, run.final) for group in groups for run in group.runs])
        least, most = float(values.min()), float(values.max())
        return Scale(least, most if most > least else least + 1, "least to greatest return of what is compared here")

    def scores(self, label: str, envs: Iterable[str]) -> list[NDArray[np.float64]]:
        """Normalised final returns of an algorithm, (N_m,) for each environment."""
        finals = {group.env: group.finals for group in self.groups if group.label == label}
        return [self.scales[env].score(finals[env]) for env in envs]

    @cached_property
    def aggregates(self) -> dict[str, Estimate]:
        """Interquartile mean of normalised scores on the common environments, by label; empty without any."""
        return {label: pooled_iqm(self.scores(label, self.common)) for label in self.ranked if self.common}

    @cached_property
    def pairs(self) -> list[Pair]:
        """Probability of improvement between all that share an environment, evaluations and training returns apart."""
        found = []
        for x, y in itertools.combinations(self.labels, 2):
            envs = [env for env in self.envs if {x, y} <= {group.label for group in self.on(env)}]
            if envs and (x in self.training) == (y in self.training):
                found.append(Pair(x, y, tuple(envs), improvement(self.scores(x, envs), self.scores(y, envs))))
        return found

    def profiles(self) -> tuple[NDArray[np.float64], dict[str, tuple[NDArray[np.float64], Band | None]]]:
        """Return thresholds, (T,), and the fraction of runs beyond them with its band, by label."""
        scores = {label: self.scores(label, self.common) for label in self.ranked}
        values = np.concatenate([each for strata in scores.values() for each in strata])
        thresholds = np.linspace(min(0.0, values.min()), max(1.0, values.max()), 101)
        return thresholds, {label: performance_profile(strata, thresholds) for label, strata in scores.items()}

    def reached(self, group: Group, fraction: float) -> float:
        """Environment steps at which a group's interquartile mean first has a normalised score; NaN if it never has."""
        if group.curve is None:
            return float("nan")
        return first_reached(group.curve.points, self.scales[group.env].score(group.curve.iqm), fraction)


def compare(runs: Sequence[Found]) -> Comparison:
    """Sort runs by algorithm and environment."""
    groups: dict[tuple[str, str], list[Found]] = {}
    for run in runs:
        groups.setdefault((run.env, run.label), []).append(run)
    return Comparison(tuple(Group(label, env, tuple(groups[env, label])) for env, label in sorted(groups)))


def report(
    folders: Sequence[str | Path],
    out: str | Path = Path("report"),
    *,
    labels: Mapping[str, str | Path] | None = None,
    window: int = 100,
    fractions: Sequence[float] = FRACTIONS,
    strict: bool = False,
) -> Comparison:
    """Compare all runs below some folders; write ``index.html``, ``README.md``, CSV files and figures.

    :param folders: where to look, to any depth
    :param out: folder to write to; made if need be
    :param labels: name for what is below a folder, which is looked into, too
    :param window: training episodes that a monitor's returns are averaged over
    :param fractions: normalised scores of the table of sample efficiency
    :param strict: raise for a file that cannot be used; otherwise it is passed over with a warning
    :return: what was compared
    :raises ConfigError: there is nothing to compare, an argument or (if ``strict``) a file is of no use, matplotlib is not
        installed, or ``out`` cannot be written to
    """
    drawing, out = figures.Drawing(), Path(out)
    comparison = compare(find_runs(folders, labels=labels, window=window, strict=strict))
    try:
        out.mkdir(parents=True, exist_ok=True)
        images = _draw(drawing, comparison)
        for name, data in images.items():
            with replacing(out / name) as temporary:
                temporary.write_bytes(data)
        write_csv(out / "final.csv", _final_rows(comparison))
        write_csv(out / "curves.csv", _curve_rows(comparison))
        blocks = pages.blocks(comparison, images, fractions)
        write_text(out / "README.md", pages.markdown(blocks))
        write_text(out / "index.html", pages.page(blocks, images))
    except OSError as error:
        raise ConfigError(f"cannot write a report to '{out}': {error.strerror}") from error
    return comparison


def _draw(drawing: "figures.Drawing", comparison: Comparison) -> dict[str, bytes]:
    """Draw all figures; return PNG files by name."""
    images = {}
    for env in comparison.envs:
        groups = comparison.on(env)
        curves = {group.label: group.curve for group in groups if group.curve is not None}
        lines = [(group.label, env, each) for group in groups for each in comparison.references(group)]
        steps = max(group.timesteps for group in groups)
        if curves:
            images[f"curves-{file_name(env)}.png"] = drawing.curves(comparison, env, curves, "environment steps", steps, lines)
        timed = {group.label: group.wall_clock for group in groups if group.wall_clock is not None}
        if timed:
            images[f"wallclock-{file_name(env)}.png"] = drawing.curves(
                comparison, env, timed, "wall-clock time (s)", steps, lines
            )
    if comparison.common:
        images["profile.png"] = drawing.profile(comparison)
    if comparison.pairs:
        images["improvement.png"] = drawing.improvement(comparison)
    return images


def _final_rows(comparison: Comparison) -> Iterable[Sequence[object]]:
    yield _FINAL
    for group in comparison.groups:
        low, high = group.final.interval or ("", "")
        score = comparison.scales[group.env].score(group.final.value)
        numbers = (group.final.value, low, high, group.finals.mean(), group.finals.std(), score)
        returns = " ".join(map(_cell, group.finals))
        yield group.label, group.env, group.timesteps, len(group.runs), *map(_cell, numbers), group.of, returns


def _curve_rows(comparison: Comparison) -> Iterable[Sequence[object]]:
    yield _CURVES
    for group in comparison.groups:
        for axis, curve in (("timesteps", group.curve), ("seconds", group.wall_clock)):
            if curve is not None:
                columns = [curve.mean, curve.iqm, *(curve.band or ())]
                for point, *row in zip(curve.points, *columns, strict=True):
                    numbers = [*map(_cell, row), *[""] * (4 - len(row))]
                    yield group.label, group.env, axis, f"{point:.10g}", curve.n, *numbers


def _cell(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.6g}"
