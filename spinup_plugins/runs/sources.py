"""Finding runs to compare: ours and their CSV files, Stable-Baselines3's evaluations and monitor files, rl_zoo3's logs."""

import csv
import json
import re
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from spinup_plugins import registry
from spinup_plugins.errors import ConfigError, SpinupError
from spinup_plugins.runs.config import load
from spinup_plugins.runs.files import CONFIG, STATUS, Status, one_line, zoo_arguments
from spinup_plugins.runs.results import (
    CURVE,
    EVALUATIONS,
    FINAL,
    Result,
    logged_seconds,
    read_evaluations,
    read_results,
    read_run,
)
from spinup_plugins.yaml_files import scalars

__all__ = ["Found", "Measure", "Origin", "find_runs"]

Origin: TypeAlias = Literal["spinup", "rl_zoo3", "SB3"]
Measure: TypeAlias = Literal["evaluation", "training"]

MONITOR = "monitor.csv"
READABLE = 40
"""Characters of settings in a label at most; beyond them, variants are numbered."""
_OF_EVALUATIONS = re.compile(r"(?:^|[^a-z])eval", re.IGNORECASE)
"""In the name of a monitor file, such as ``eval.monitor.csv``; those of training have a number, or no name."""
_HOME_OF_EVALUATIONS = re.compile(r"eval(?:uation)?s?", re.IGNORECASE)
_REPORT = {"curves.csv", "index.html"}
"""Files of a report, which has a :data:`FINAL`, too, but no runs."""
_ENV = re.compile(r"(.+-v\d+)(?:_(\d+))?")
_SEED = re.compile(r"(?:seed|run|trial|exp)?[-_]?(\d+)", re.IGNORECASE)
_NUMBERED = re.compile(r"(.+?)[-_](seed|s|run|trial|exp|)[-_]?(\d+)", re.IGNORECASE)
_IRRELEVANT = {"seed", "vec_env", "callbacks", "command", "versions", "tensorboard", "preset", "threads", "checkpoint_every"}
_IRRELEVANT |= {"eval_every", "eval_episodes", "final_episodes", "verbose", "tensorboard_log", "stats_window_size"}


@dataclass(frozen=True)
class Found:
    """A run that was found.

    :param label: what it is compared as
    :param algo: its algorithm in lower case, or "" where it is not known
    :param env: its environment without the module that registers it, "unknown" where it is not known
    :param seed: its seed, or a number from its path; None where there is neither
    :param timesteps: environment steps, ascending, (E,)
    :param seconds: wall time at them, NaN where it is not known, (E,)
    :param returns: mean returns at them, (E,)
    :param final: mean return at the end
    :param of: which episodes ``final`` is the mean of
    :param measure: evaluations, or returns of training episodes
    :param origin: who wrote it
    :param folder: where
    :param settings: all that decided how it went besides the seed, where that is known
    :param variant: those in which it differs from others of its name
    """

    label: str
    algo: str
    env: str
    seed: int | None
    timesteps: NDArray[np.int64]
    seconds: NDArray[np.float64]
    returns: NDArray[np.float64]
    final: float
    of: str
    measure: Measure
    origin: Origin
    folder: Path
    settings: Mapping[str, Any] = field(default_factory=dict)
    variant: str = ""


def find_runs(
    folders: Sequence[str | Path],
    *,
    labels: Mapping[str, str | Path] | None = None,
    window: int = 100,
    strict: bool = False,
) -> list[Found]:
    """Read all runs below some folders.

    Runs of one label on one environment are seeds of the same thing. Ours are told apart by the settings in which they
    differ, and from others' of the same name by who wrote them.

    :param folders: where to look, to any depth, also through links to folders
    :param labels: name for what is below a folder, which is looked into, too; before the algorithm if there are several
    :param window: training episodes that a monitor's returns are averaged over
    :param strict: raise for a file that cannot be used; otherwise it is passed over with a warning
    :return: by label, environment and seed
    :raises ConfigError: a folder is missing or has two labels, ``window`` is not positive, nothing is found or, if ``strict``,
        a file is no good
    """
    if window < 1:
        raise ConfigError(f"window must be greater than 0, not {window}")
    places = {name: Path(folder) for name, folder in (labels or {}).items()}
    wanted = [*map(Path, [folders] if isinstance(folders, str) else folders), *places.values()]
    for folder in wanted:
        if not folder.is_dir():
            raise ConfigError(f"'{folder}' is not a folder")
    named: dict[Path, str] = {}
    for name, folder in places.items():
        if (other := named.setdefault(folder.resolve(), name)) != name:
            raise ConfigError(f"'{folder}' is labelled {other!r} already, and cannot be {name!r}, too")
    found: dict[Path, list[Found]] = {}
    for top in dict.fromkeys((*places.values(), *wanted)):  # what is labelled may be links to the others
        for folder, read in _scanned(top):
            if folder.resolve() not in found:
                found[folder.resolve()] = _tried(folder, read, window, strict)
    runs = [run for each in found.values() for run in each]
    if not runs:
        raise ConfigError(
            f"no runs below {', '.join(map(str, wanted))}: expected run folders, {CURVE}, {EVALUATIONS} or *.{MONITOR}"
        )
    runs = _told_apart(_labelled(runs, places))
    return sorted(runs, key=lambda run: (run.env, run.label, -1 if run.seed is None else run.seed, str(run.folder)))


_Reader: TypeAlias = Callable[[Path, int], list[Found]]


def _scanned(top: Path) -> Iterator[tuple[Path, _Reader]]:
    """Find the folders that hold runs, and how to read them: first those that lie there, then those that links lead to."""
    links, been = list[Path](), set[Path]()
    yield from _scan(top, links, been)
    for link in links:  # which grow
        if link.resolve() not in been | _above(link) | set(link.parent.resolve().parents):  # all that leads back here
            yield from _scan(link, links, been)


def _scan(folder: Path, links: list[Path], been: set[Path]) -> Iterator[tuple[Path, _Reader]]:
    """Do so for what lies there, and add links that lead to folders to ``links``, folders to ``been``."""
    been.add(folder.resolve())
    entries = sorted(folder.iterdir())
    names = {entry.name for entry in entries if entry.is_file()}
    below = [entry for entry in entries if entry.is_dir() and not entry.name.startswith(".")]
    if {CONFIG, STATUS} <= names:
        yield folder, _read_ours
        return
    # Where the runs are still there, the tables made of them are not needed.
    if names & {CURVE, FINAL} and not (names >= _REPORT or any((each / STATUS).is_file() for each in below)):
        yield folder, _read_tables
    elif EVALUATIONS in names:
        yield folder, _read_evaluations
    elif any(name.endswith(MONITOR) for name in names):
        yield folder, _read_monitors
    links += [each for each in below if each.is_symlink()]
    for each in below:
        if not each.is_symlink():
            yield from _scan(each, links, been)


def _above(path: Path) -> set[Path]:
    """Return the folders on the way to a path, which need not be those above of what it leads to."""
    return {each.resolve() for each in path.absolute().parents}


def _tried(folder: Path, read: _Reader, window: int, strict: bool) -> list[Found]:
    try:
        return read(folder, window)
    except SpinupError as error:
        if strict:
            raise
        warnings.warn(f"passed over: {error}", stacklevel=3)
        return []


# --- readers ---------------------------------------------------------------------------------------------------------


def _read_ours(folder: Path, _: int) -> list[Found]:
    state = Status.read(folder).state
    if state != "finished":
        raise ConfigError(f"{folder / STATUS}: the run is {state}, not finished")
    config = load(folder / CONFIG)
    values = config.model_dump(exclude={"algo", "env"})
    settings = {**values.pop("hyperparameters"), **values}
    settings = {key: value for key, value in settings.items() if key not in _IRRELEVANT}
    names = _Names(config.algo, config.env, config.seed)
    return [_found(names, read_run(folder), folder, "spinup", settings=settings)]


def _read_tables(folder: Path, _: int) -> list[Found]:
    results = read_results(folder)
    if not results:
        raise ConfigError(f"{folder / CURVE}: no results (neither it nor {FINAL} has rows)")
    names = _names(folder)
    return [_found(names._replace(seed=result.seed), result, folder, "spinup") for result in results]


def _read_evaluations(folder: Path, _: int) -> list[Found]:
    timesteps, episodes = read_evaluations(folder / EVALUATIONS)
    monitors, others = _read_all(folder)
    seconds = logged_seconds(folder / "progress.csv", timesteps)
    if np.isnan(seconds).all() and any(len(monitor.returns) for monitor in monitors):
        ends, _returns, times = _merged(monitors)
        seconds = np.interp(timesteps, [0, *ends], [0.0, *times], right=np.nan)
    names = _names(folder, [*others, *monitors])
    result = Result(names.seed or 0, timesteps, seconds, episodes.mean(axis=1), episodes[-1])
    of = f"last evaluation, {_episodes(episodes.shape[1])}"
    return [_found(names, result, folder, _origin(folder), of=of, settings=_zoo_settings(folder))]


def _read_monitors(folder: Path, window: int) -> list[Found]:
    monitors, _others = _read_all(folder)
    if not monitors:
        raise ConfigError(f"{folder}: no *.{MONITOR} of training, only of evaluations, as 'eval' in its name says")
    ends, returns, seconds = _merged(monitors)
    if not len(returns):
        raise ConfigError(f"{folder}: no episode ended in its *.{MONITOR}")
    width = min(window, len(returns))
    means = np.convolve(returns, np.full(width, 1 / width), mode="valid")
    names = _names(folder, monitors)
    result = Result(names.seed or 0, ends[width - 1 :], seconds[width - 1 :], means, returns[-width:])
    of = f"last {width} training episodes" if width > 1 else "last training episode"
    settings = _zoo_settings(folder)
    return [_found(names, result, folder, _origin(folder), of=of, measure="training", settings=settings)]


class _Monitor(NamedTuple):
    """What one environment's monitor wrote: its id, when it began, and return, length and end of each episode."""

    env: str
    began: float
    returns: NDArray[np.float64]
    lengths: NDArray[np.int64]
    ends: NDArray[np.float64]


def _read_all(folder: Path) -> tuple[list[_Monitor], list[_Monitor]]:
    """Read a folder's monitors: of training, and of evaluations, whose steps are none of training's."""
    found: tuple[list[_Monitor], list[_Monitor]] = ([], [])
    for path in sorted(folder.glob(f"*{MONITOR}")):
        name = path.name.removesuffix(MONITOR)
        found[bool(_OF_EVALUATIONS.search(name) or _HOME_OF_EVALUATIONS.fullmatch(folder.name))].append(_read_monitor(path))
    return found


def _read_monitor(path: Path) -> _Monitor:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            first = file.readline()
            if not first.startswith("#"):
                raise ValueError("the first line is no header")
            header = json.loads(first[1:])
            began, env = float(header["t_start"]), str(header.get("env_id") or "")
            lines = [line for line in file if line.endswith("\n")]  # a run that goes on, or was killed, leaves half of one
        rows = [(float(row["r"]), int(float(row["l"])), float(row["t"])) for row in csv.DictReader(lines)]
        if any(length < 1 for _, length, _ in rows):
            raise ValueError("an episode without steps")
    except (OSError, ValueError, OverflowError, KeyError, TypeError, AttributeError, csv.Error) as error:
        raise ConfigError(f"{path}: no monitor file ({one_line(error)})") from error
    returns, lengths, times = zip(*rows, strict=True) if rows else ((), (), ())
    ends = began + _unbroken(np.array(times, dtype=np.float64))
    return _Monitor(env, began, np.array(returns, dtype=np.float64), np.array(lengths, dtype=np.int64), ends)


def _unbroken(times: NDArray[np.float64]) -> NDArray[np.float64]:
    """Let a monitor's clock go on where it begins at 0 again, for a later one went on in its file (``override_existing``)."""
    again = np.diff(times) < 0
    before: NDArray[np.float64] = np.append(0.0, np.cumsum(np.where(again, times[:-1], 0.0)))[: len(times)]
    return times + before


def _merged(monitors: Sequence[_Monitor]) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """Return steps, returns and seconds at the ends of all episodes, in the order in which they ended."""
    ends = np.concatenate([monitor.ends for monitor in monitors])
    order = np.argsort(ends, kind="stable")
    steps = np.cumsum(np.concatenate([monitor.lengths for monitor in monitors])[order])
    returns = np.concatenate([monitor.returns for monitor in monitors])[order]
    return steps, returns, ends[order] - min(monitor.began for monitor in monitors)


def _found(
    names: "_Names",
    result: Result,
    folder: Path,
    origin: Origin,
    *,
    of: str = "",
    measure: Measure = "evaluation",
    settings: Mapping[str, Any] | None = None,
) -> Found:
    if not len(result.returns) + len(result.final):
        raise ConfigError(f"{folder}: no returns")
    if not all(np.isfinite(each).all() for each in (result.returns, result.final)):
        raise ConfigError(f"{folder}: returns that are not finite")
    if (np.diff(result.timesteps) <= 0).any():
        raise ConfigError(f"{folder}: timesteps do not ascend")
    if len(result.final):
        final = float(np.mean(result.final))
        of = of or f"{_episodes(len(result.final))} after training"
    else:
        final, of = float(result.returns[-1]), "last evaluation"
    return Found(
        label=names.label,
        algo=_algorithm(names.label),
        env=names.env.rpartition(":")[2] or "unknown",
        seed=names.seed,
        timesteps=result.timesteps,
        seconds=result.seconds,
        returns=result.returns,
        final=final,
        of=of,
        measure=measure,
        origin=origin,
        folder=folder,
        settings=settings or {},
    )


def _episodes(n: int) -> str:
    return f"{n} episode{'s' if n > 1 else ''}"


# --- names -----------------------------------------------------------------------------------------------------------


class _Names(NamedTuple):
    label: str
    env: str
    seed: int | None


def _names(folder: Path, monitors: Sequence[_Monitor] = ()) -> _Names:
    """Name a run by rl_zoo3's ``args.yml`` and its monitors, else by its path."""
    names = _from_path(folder)
    for monitor in monitors:
        names = names._replace(env=monitor.env or names.env)
    for path in zoo_arguments(folder):
        known = scalars(path)
        seed = known.get("seed", "")
        names = _Names(
            known.get("algo") or names.label, known.get("env") or names.env, int(seed) if seed.isdecimal() else names.seed
        )
    return names


def _from_path(folder: Path) -> _Names:
    """Name a run by a path such as ``ALGO/ENV_1``, ``ALGO/ENV/seed0``, ``ENV/NAME/0``, ``ALGO_1`` or ``NAME_seed0``."""
    parts = list(folder.absolute().parts[1:])
    at = max((i for i, part in enumerate(parts) if _ENV.fullmatch(part)), default=None)
    env, number = "", None
    above, below = parts, []
    if at is not None and (match := _ENV.fullmatch(parts[at])):
        env, number = match[1], match[2]
        above, below = parts[:at], parts[at + 1 :]
    inner = above if at is None else below
    if inner and (match := _SEED.fullmatch(inner[-1])):
        number = match[1]
        inner.pop()
    elif inner and (match := _NUMBERED.fullmatch(inner[-1])) and (match[2].lower() == "seed" or _is_algorithm(match[1])):
        inner[-1], number = match[1], match[3]  # of another name, the number may be anything
    algo = above[-1] if above else ""
    # Something below an environment that is itself below no algorithm is what the run is called.
    label = " ".join([algo, *below] if _algorithm(algo) or not below else below)
    label = label.lower() if _is_algorithm(label) else label or folder.name
    return _Names(label, env, None if number is None else int(number))


def _algorithm(label: str) -> str:
    """Return the algorithm that a label names, in lower case, or ""."""
    known = {name.rpartition(":")[2] for name in registry.algorithms(peers=True)}
    return next((word for word in re.split(r"[\W_]+", label.lower()) if word in known), "")


def _is_algorithm(label: str) -> bool:
    return bool(label) and _algorithm(label) == label.lower()


def _origin(folder: Path) -> Origin:
    return "rl_zoo3" if zoo_arguments(folder) else "SB3"


def _zoo_settings(folder: Path) -> dict[str, str]:
    """Return the hyperparameters that rl_zoo3 notes, as far as they are single values."""
    paths = [path.with_name(CONFIG) for path in zoo_arguments(folder)]
    return {key: value for path in paths if path.is_file() for key, value in scalars(path).items()}


def _labelled(runs: Sequence[Found], labels: Mapping[str, Path]) -> list[Found]:
    """Give runs the labels of the innermost folders that they lie in."""
    places = sorted(((path.resolve(), name) for name, path in labels.items()), key=lambda each: -len(each[0].parts))
    named: dict[str, list[int]] = defaultdict(list)
    for i, run in enumerate(runs):
        own = run.folder.resolve()
        around = {own, *own.parents} | _above(run.folder)
        name = next((name for path, name in places if path in around), None)
        if name is not None:
            named[name].append(i)
    result = list(runs)
    for name, members in named.items():
        several = len({runs[i].label for i in members}) > 1
        for i in members:
            result[i] = replace(runs[i], label=f"{name} {runs[i].label}" if several else name)
    return result


def _told_apart(runs: Sequence[Found]) -> list[Found]:
    """Add to labels what tells different things of one name apart, and warn where one seed is there twice."""
    together: dict[tuple[str, Origin, str], list[Found]] = defaultdict(list)
    origins: dict[str, set[Origin]] = defaultdict(set)
    for run in runs:
        together[run.label, run.origin, run.env].append(run)
        origins[run.label].add(run.origin)
    varied = [pair for group in together.values() for pair in zip(group, _variants(group), strict=True)]
    texts: dict[tuple[str, Origin], set[str]] = defaultdict(set)
    for run, variant in varied:
        texts[run.label, run.origin].add(variant)
    result = []
    for run, variant in varied:
        # One number stands for the same settings on every environment.
        number = sorted(texts[run.label, run.origin]).index(variant) + 1
        parts = (
            run.label,
            variant if len(variant) <= READABLE else f"variant {number}",
            f"({run.origin})" if len(origins[run.label]) > 1 else "",
            "(training)" if run.measure == "training" else "",
        )
        result.append(replace(run, label=" ".join(filter(None, parts)), variant=variant))
    seen: dict[tuple[str, str, int], Path] = {}
    for run in result:
        if run.seed is not None:
            other = seen.setdefault((run.label, run.env, run.seed), run.folder)
            if other != run.folder:
                where = f"both in {other} and in {run.folder}"
                warnings.warn(f"{run.label} on {run.env}: seed {run.seed} is {where}; labels tell them apart", stacklevel=3)
    return result


def _variants(runs: Sequence[Found]) -> list[str]:
    """Write, for each run, the settings in which runs differ."""
    texts = [{key: json.dumps(value, sort_keys=True) for key, value in run.settings.items()} for run in runs]
    known = [each for each in texts if each]
    keys = [
        key for key in sorted({key for each in known for key in each}) if len({each.get(key, "null") for each in known}) > 1
    ]
    return [" ".join(f"{key}={each.get(key, 'null')}" for key in keys if each).replace('"', "") for each in texts]
