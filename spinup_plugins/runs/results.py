"""What runs came to: evaluations while training and after it, read from run folders, kept as CSV."""

import csv
import json
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple
from zipfile import BadZipFile, is_zipfile

import numpy as np
from numpy.typing import NDArray

from spinup_plugins.atomic import write_csv
from spinup_plugins.errors import ConfigError
from spinup_plugins.runs.config import load
from spinup_plugins.runs.files import CONFIG, EVALUATION
from spinup_plugins.runs.statistics import Summary, summarise

__all__ = [
    "CURVE",
    "EVALUATIONS",
    "FINAL",
    "Result",
    "final_summary",
    "logged_seconds",
    "read_evaluations",
    "read_results",
    "read_run",
    "write_results",
]

CURVE, FINAL = "curve.csv", "final.csv"
"""Files that keep the results of one algorithm on one environment: evaluations while training, and episodes after it."""
EVALUATIONS = "evaluations.npz"
"""What Stable-Baselines3's ``EvalCallback``, and ours, write while training."""
_COLUMNS = {CURVE: "seed,timesteps,seconds,return", FINAL: "seed,episode,return"}


class Result(NamedTuple):
    """One run's evaluations.

    :param seed: the run's seed
    :param timesteps: environment steps before each evaluation while training, (E,)
    :param seconds: wall time before it, NaN where it is not known, (E,)
    :param returns: mean return of its episodes, (E,)
    :param final: return of each episode of the evaluation after training, (F,)
    """

    seed: int
    timesteps: NDArray[np.int64]
    seconds: NDArray[np.float64]
    returns: NDArray[np.float64]
    final: NDArray[np.float64]


def read_run(folder: Path) -> Result:
    """Read a run folder.

    :param folder: of a finished run
    :raises ConfigError: a file in it is missing or damaged
    """
    seed = load(folder / CONFIG).seed
    timesteps, returns = np.empty(0, dtype=np.int64), np.empty(0)
    try:
        final = np.array(json.loads((folder / EVALUATION).read_text(encoding="utf-8"))["returns"], dtype=np.float64)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{folder / EVALUATION}: cannot read the evaluation ({_why(error)})") from error
    if (folder / EVALUATIONS).is_file():
        timesteps, episodes = read_evaluations(folder / EVALUATIONS)
        returns = episodes.mean(axis=1)
    return Result(seed, timesteps, logged_seconds(folder / "progress.csv", timesteps), returns, final)


def read_evaluations(path: Path) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Read an ``evaluations.npz``; nothing in it is unpickled.

    :param path: the file
    :return: environment steps before each evaluation, (E,), and returns of its episodes, (E, N)
    :raises ConfigError: it is missing, damaged or another kind of file
    """
    try:
        if not is_zipfile(path):  # NumPy would advise to unpickle it
            raise ValueError("no NumPy archive" if path.is_file() else "no such file")
        with np.load(path) as data:
            timesteps, returns = data["timesteps"].astype(np.int64), data["results"].astype(np.float64)
        if returns.ndim != 2 or returns.shape[:1] != timesteps.shape or not returns.size:
            raise ValueError(f"timesteps {timesteps.shape}, results {returns.shape}")
        if (np.diff(timesteps) <= 0).any():
            raise ValueError("timesteps do not ascend")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, BadZipFile, zlib.error) as error:
        raise ConfigError(f"{path}: no evaluations of a training run ({_why(error)})") from error
    return timesteps, returns


def logged_seconds(progress: Path, timesteps: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return wall time at each of ``timesteps``, interpolated between the rows of Stable-Baselines3's ``progress.csv``.

    :param progress: the file, which need not be there
    :param timesteps: environment steps, (E,)
    :return: seconds since training began, (E,); NaN where they are not known
    :raises ConfigError: the file is damaged
    """
    if not progress.is_file() or not len(timesteps):
        return np.full(len(timesteps), np.nan)
    try:
        with progress.open(newline="", encoding="utf-8") as file:
            rows = [(row.get("time/total_timesteps"), row.get("time/time_elapsed")) for row in csv.DictReader(file)]
        known = [(float(step), float(second)) for step, second in rows if step and second]
    except (OSError, ValueError, csv.Error) as error:
        raise ConfigError(f"{progress}: no log of a training run ({_why(error)})") from error
    if not known:
        return np.full(len(timesteps), np.nan)
    steps, seconds = np.array([(0.0, 0.0), *known]).T
    found: NDArray[np.float64] = np.interp(timesteps, steps, seconds)
    return found


def final_summary(results: Sequence[Result]) -> Summary:
    """Describe what runs came to: one number for each seed, its mean return after training.

    :param results: at least one
    """
    return summarise([float(np.mean(result.final)) for result in results])


def write_results(folder: Path, results: Iterable[Result]) -> None:
    """Write results to ``curve.csv`` and ``final.csv``, whole or not at all.

    :param folder: of one algorithm on one environment; made if need be
    :param results: one for each seed
    """
    folder.mkdir(parents=True, exist_ok=True)
    ordered = sorted(results, key=lambda result: result.seed)
    curve = [
        (result.seed, int(steps), "" if np.isnan(seconds) else f"{seconds:.1f}", f"{value:.6g}")
        for result in ordered
        for steps, seconds, value in zip(result.timesteps, result.seconds, result.returns, strict=True)
    ]
    final = [(result.seed, i, f"{value:.6g}") for result in ordered for i, value in enumerate(result.final)]
    for name, rows in ((CURVE, curve), (FINAL, final)):
        write_csv(folder / name, [_COLUMNS[name].split(","), *rows])


def read_results(folder: Path) -> list[Result]:
    """Read what :func:`write_results` wrote.

    :param folder: of one algorithm on one environment
    :return: one for each seed, in ascending order
    :raises ConfigError: a file is missing or damaged
    """
    curve, final = _table(folder / CURVE), _table(folder / FINAL)
    found = []
    for seed in sorted({int(row[0]) for row in (*curve, *final)}):
        own = np.array([row[1:] for row in curve if row[0] == seed]).reshape(-1, 3)
        returns = np.array([row[2] for row in final if row[0] == seed])
        found.append(Result(seed, own[:, 0].astype(np.int64), own[:, 1], own[:, 2], returns))
    return found


def _table(path: Path) -> list[list[float]]:
    header = _COLUMNS[path.name]
    try:
        with path.open(newline="", encoding="utf-8") as file:
            first, *rows = csv.reader(file)
        if ",".join(first) != header or any(len(row) != len(first) for row in rows):
            raise ValueError(f"expected rows of {header}")
        table = [[float(value) if value else np.nan for value in row] for row in rows]
        if not np.isfinite([row[:2] for row in table]).all():
            raise ValueError(f"{' and '.join(first[:2])} must be numbers")
        return table
    except (OSError, ValueError, csv.Error) as error:
        raise ConfigError(f"{path}: no results ({_why(error)})") from error


def _why(error: Exception) -> str:
    """What is wrong with a file that an error names already."""
    return getattr(error, "strerror", None) or str(error)
