"""Algorithms × environments × seeds: a grid of runs, on this machine's cores or a Ray cluster, taken up where it stopped."""

import itertools
import re
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from filelock import FileLock, Timeout

from spinup_plugins.atomic import replacing
from spinup_plugins.environments import make_env
from spinup_plugins.envs.kinds import VecEnvKind
from spinup_plugins.errors import ConfigError, SpinupError
from spinup_plugins.runs.config import Layer, RunConfig, completed, compose, load
from spinup_plugins.runs.files import CHECKPOINT, CONFIG, LOCK, STATUS, HeldError, Status, file_name, one_line
from spinup_plugins.runs.pool import THREADS, Ended, Job, run_jobs, serve
from spinup_plugins.runs.results import Result, read_run
from spinup_plugins.yaml_files import nested

__all__ = [
    "PROTOCOL",
    "Cell",
    "Outcome",
    "Progress",
    "bench",
    "build_environments",
    "grid",
    "results_of",
    "settings",
    "variants",
]

PROTOCOL: dict[str, Any] = {"eval_every": 10_000, "eval_episodes": 10, "final_episodes": 100, "vec_env": "dummy"}
"""Spinning Up's way to evaluate, a hundred episodes after training, and one process a run."""


_EARLY = ("*.monitor.csv", "progress.csv", "events.out.tfevents.*", f".*-{CONFIG}", LOCK)
"""Files that there may be before a run's configuration, whose temporary file is the last."""


class Cell(NamedTuple):
    """One run of the grid.

    :param config: everything that decides how it goes
    :param variant: what tells it from other cells of its algorithm and environment besides the seed, or ""
    :param folder: the run folder
    """

    config: RunConfig
    variant: str
    folder: Path

    def __str__(self) -> str:
        return " ".join(filter(None, (self.config.algo, self.config.env, self.variant, f"seed {self.config.seed}")))

    @property
    def status(self) -> Status | None:
        """How far the run has come; None where it has not begun."""
        return Status.read(self.folder) if (self.folder / STATUS).is_file() else None


class Outcome(NamedTuple):
    """How a run of the grid ended.

    :param cell: which
    :param seconds: wall time that it took; 0 where it was finished already
    :param error: what went wrong, on one line, or ""
    """

    cell: Cell
    seconds: float
    error: str = ""


class Progress(NamedTuple):
    """How far a grid has come.

    :param running: what runs
    :param steps: environment steps taken by all runs
    :param total: environment steps of all runs
    :param eta: seconds left at the speed so far; None until there is one
    """

    running: tuple[Cell, ...]
    steps: int
    total: int
    eta: float | None


def variants(vary: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Return every combination of values, the last key's changing fastest.

    :param vary: values of each dotted key of the hyperparameters
    """
    return [dict(zip(vary, values, strict=True)) for values in itertools.product(*vary.values())]


def grid(
    algos: Sequence[str],
    envs: Sequence[str],
    seeds: Sequence[int],
    folder: Path,
    *,
    layers: Sequence[Layer] = (),
    vary: Sequence[Mapping[str, Any]] = ({},),
) -> list[Cell]:
    """Lay out all runs; those of a seed come before those of the next, so that all cells fill up alike.

    :param algos: algorithm names
    :param envs: environment ids
    :param seeds: seeds of each algorithm on each environment
    :param folder: folder of all runs; each has ``<folder>/<algo>/<env>[/<variant>]/seed<n>``
    :param layers: of a configuration for all of them, over :data:`PROTOCOL`
    :param vary: hyperparameters, by dotted key, that runs are varied over besides
    :raises SpinupError: a name or value is not valid
    """
    cells = []
    for seed, algo, env, variant in itertools.product(seeds, algos, envs, vary):
        named = Layer({"algo": algo, "env": env, "seed": seed}, ".".join)
        below = [Layer(PROTOCOL, ".".join), *layers, named]
        varied = [Layer({"hyperparameters": nested(variant, "vary")}, lambda keys: f"--vary {'.'.join(keys[1:])}")]
        config = compose(*below, *(varied if variant else []))
        name = ",".join(f"{key}={value}" for key, value in variant.items())
        home = folder / file_name(config.algo) / file_name(env.rpartition(":")[2])
        cells.append(Cell(config, name, (home / _readable(name) if name else home) / f"seed{seed}"))
    return cells


def build_environments(cells: Sequence[Cell]) -> None:
    """Build each environment once, so that a misspelt name is told before the others' runs and not after them.

    :param cells: of the grid
    :raises SpinupError: there is no such environment, or it cannot be built so
    """
    for config in {cell.config.env: cell.config for cell in cells}.values():
        kind: VecEnvKind = "envpool" if config.vec_env == "envpool" else "dummy"
        make_env(config.env, vec_env=kind, env_kwargs=config.env_kwargs, wrappers=config.wrappers, images=False).close()


def bench(
    cells: Sequence[Cell],
    folder: Path,
    *,
    jobs: int = 1,
    ray: str | None = None,
    watch: Callable[[Progress], None] = lambda _: None,
) -> Iterator[Outcome]:
    """Make all runs that are not finished, each in a process of its own with one thread.

    A run that was cut short goes on from its checkpoint, or begins anew where there is none. One that fails leaves the others
    alone, and begins anew the next time. On a cluster, what was cut short always begins anew.

    :param cells: which
    :param folder: folder of all runs; nobody else may be at work in it
    :param jobs: how many at a time; on a cluster, as many as it has cores
    :param ray: address of a Ray cluster to run on, ``auto`` for the one that this machine belongs to, ``local`` for one
        made for the purpose
    :param watch: is told every second how far things have come
    :return: how runs ended, as they do; at first those that were finished already, which fail if they cannot be read
    :raises ConfigError: two runs have one folder, a folder holds a run of another configuration or is no run's, somebody
        else is at work, or ``folder`` cannot be written to
    """
    owners: dict[Path, Cell] = {}
    for cell in cells:
        if (other := owners.setdefault(cell.folder, cell)) is not cell:
            raise ConfigError(f"'{other}' and '{cell}' are one run, in '{cell.folder}': name each once")
    with ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(FileLock(folder / ".bench.lock", timeout=0))
        except Timeout:
            raise ConfigError(f"another 'spinup bench' is at work in '{folder}'") from None
        except OSError as error:
            raise ConfigError(f"cannot write to '{folder}': {error.strerror}") from error
        waiting = []
        for cell in cells:
            if _is_finished(cell):
                yield Outcome(cell, 0.0, _read(cell.folder)[1])
            else:
                waiting.append(cell)
        names = {str(cell): cell for cell in waiting}
        queue = [Job(name, "spinup_plugins.runs.bench", _argument(cell)) for name, cell in names.items()]
        tell = _Watch(cells, waiting, watch)
        ending = run_jobs(queue, jobs, tell) if ray is None else _on_ray(queue, ray, tell)
        for ended in ending:
            cell = names[ended.job.name]
            tell.ended(cell)
            yield Outcome(cell, ended.seconds, ended.error)


def results_of(cells: Sequence[Cell]) -> dict[Path, list[Result]]:
    """Read the finished runs, and those of other seeds that were made alike before; one that is damaged is left out.

    :param cells: which may be finished; :func:`bench` tells of damage in them, and a warning of damage in others
    :return: results by the folder of algorithm, environment and variant
    """
    own = {cell.folder for cell in cells}
    found: dict[Path, list[Result]] = {}
    for home, cell in {cell.folder.parent: cell for cell in cells}.items():
        for folder in sorted(home.glob("seed*")):
            seed = folder.name.removeprefix("seed")
            if seed.isdecimal() and _is_alike(cell, folder, int(seed)):
                result, damage = _read(folder)
                if result is not None:
                    found.setdefault(home, []).append(result)
                elif folder not in own:
                    warnings.warn(f"left out: {damage}", stacklevel=2)
    return found


def _read(folder: Path) -> tuple[Result | None, str]:
    """Read a finished run; of a damaged one, return None and what is wrong with it and what to do."""
    try:
        return read_run(folder), ""
    except ConfigError as error:
        return None, f"{error}; remove '{folder}' to have the run made again"


def _is_alike(cell: Cell, folder: Path, seed: int) -> bool:
    """Whether a folder holds the finished run of another seed, or of the same, and differs in nothing else."""
    config = cell.config.model_copy(update={"seed": seed})
    try:
        return _is_finished(cell._replace(config=config, folder=folder))
    except ConfigError:  # made with other values, or not ours
        return False


class _Watch:
    """Works out from status files how far a grid has come, every second and whenever a run ends."""

    def __init__(self, cells: Sequence[Cell], waiting: Sequence[Cell], watch: Callable[[Progress], None]) -> None:
        self.waiting, self.watch = {str(cell): cell for cell in waiting}, watch
        self.total = sum(cell.config.n_timesteps for cell in cells)
        self.before = self.total - sum(cell.config.n_timesteps for cell in waiting)
        self.began, self.told = time.monotonic(), -np.inf
        self.left_over = {name: _status(cell) for name, cell in self.waiting.items()}  # by attempts before this one
        self.resumed = {
            name: _taken(cell, self.left_over[name])
            for name, cell in self.waiting.items()
            if (cell.folder / CHECKPOINT).is_file()
        }
        self.running: tuple[Cell, ...] = ()

    def __call__(self, active: Sequence[Job], ended: int) -> None:
        self.running = tuple(self.waiting[job.name] for job in active)
        if time.monotonic() - self.told >= 1.0:
            self.tell()

    def ended(self, cell: Cell) -> None:
        self.running = tuple(each for each in self.running if each is not cell)
        self.left_over.pop(str(cell), None)
        self.tell()

    def tell(self) -> None:
        self.told = time.monotonic()
        found = ((name, cell, _status(cell)) for name, cell in self.waiting.items())
        taken = {name: _taken(cell, status) for name, cell, status in found if status != self.left_over.get(name)}
        made = sum(steps - min(self.resumed.get(name, 0), steps) for name, steps in taken.items())
        left = self.total - self.before - sum(taken.values())
        eta = left / made * (self.told - self.began) if made else None
        self.watch(Progress(self.running, self.before + sum(taken.values()), self.total, eta))


def _status(cell: Cell) -> Status | None:
    try:
        return cell.status
    except ConfigError:  # gone, or replaced just now
        return None


def _taken(cell: Cell, status: Status | None) -> int:
    if status is None:
        return 0
    # A run goes on to the end of its rollout, and one that failed takes no more steps.
    return (
        cell.config.n_timesteps if status.state in ("finished", "failed") else min(status.timesteps, cell.config.n_timesteps)
    )


def _is_finished(cell: Cell) -> bool:
    """Whether a cell's folder holds its finished run.

    :raises ConfigError: it holds anything but a run of that configuration
    """
    if not cell.folder.exists():
        return False
    if not (cell.folder / CONFIG).is_file():
        # A run that is killed early leaves the books of its environments, logs that are begun, and nothing else.
        if not all(any(fnmatch(file.name, each) for each in _EARLY) for file in cell.folder.iterdir()):
            raise ConfigError(f"'{cell.folder}' is not empty and no run's: take another folder")
        return False
    # What an earlier version did not have yet, and so did not record, is as it is by default.
    there, wanted = (settings(completed(each, None)) for each in (load(cell.folder / CONFIG), cell.config))
    for key, value in wanted.items():
        if key == "vec_env" and value == "auto" and key in there:
            continue  # recorded is what was chosen
        if there.get(key) != value and not (key == "policy" and value is None):
            raise ConfigError(
                f"'{cell.folder}' holds a run with {key}={there.get(key)!r}, not {value!r}: take another folder or remove it"
            )
    status = cell.status
    return status is not None and status.state == "finished"


def settings(config: RunConfig) -> dict[str, Any]:
    """Return what decides how a run goes, hyperparameters among the rest."""
    values = config.model_dump(exclude={"command", "versions", "hyperparameters", "checkpoint_every"})
    return {**values, **config.hyperparameters}


def _argument(cell: Cell) -> dict[str, Any]:
    return {"config": cell.config.model_dump(mode="json"), "folder": str(cell.folder.absolute())}


def _work(argument: Any) -> None:
    """Make one run, from the checkpoint of an earlier attempt or in place of what is left of it."""
    from spinup_plugins.runs import runner

    home = Path(argument["folder"])
    run = None
    if (home / CHECKPOINT).is_file():
        try:
            if Status.read(home).state != "failed":
                run = runner.resume(home)
        except HeldError:
            raise
        except SpinupError:  # damaged, or another version's
            pass
    if run is None:
        shutil.rmtree(home, ignore_errors=True)
        run = runner.prepare(RunConfig(**argument["config"]), home=home)
    run.learn()


# --- a cluster -------------------------------------------------------------------------------------------------------


def _on_ray(jobs: Sequence[Job], address: str, watch: Callable[[Sequence[Job], int], None]) -> Iterator[Ended]:
    """Do what :func:`run_jobs` does with a Ray cluster's cores; run folders come back over the network."""
    with _ray(address) as ray:
        task = ray.remote(num_cpus=1, max_retries=2)(_remote)
        pending = {task.remote(job.argument): (job, time.perf_counter()) for job in jobs}
        done = 0
        while pending:
            watch([], done)
            ready, _ = ray.wait(list(pending), timeout=0.5)
            for reference in ready:
                job, began = pending.pop(reference)
                done += 1
                try:
                    files, error = ray.get(reference)
                except ray.exceptions.RayError as problem:  # the node is gone, for one
                    files, error = {}, one_line(problem)
                home = Path(job.argument["folder"])
                shutil.rmtree(home, ignore_errors=True)
                home.mkdir(parents=True)
                # The status comes last: a folder without one is no finished run.
                for name in sorted(files, key=lambda each: each == STATUS):
                    with replacing(home / name) as temporary:
                        temporary.write_bytes(files[name])
                yield Ended(job, time.perf_counter() - began, error)


@contextmanager
def _ray(address: str) -> Iterator[Any]:
    try:
        import ray
    except ImportError as error:
        raise ConfigError('--ray needs an extra: pip install "spinup-plugins[ray]"') from error
    try:
        where: dict[str, Any] = {} if address == "local" else {"address": address}
        ray.init(**where, log_to_driver=False, runtime_env={"env_vars": THREADS})
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise ConfigError(f"--ray {address}: cannot reach the cluster ({one_line(error)})") from error
    try:
        yield ray
    finally:
        ray.shutdown()


def _remote(argument: Any) -> tuple[dict[str, bytes], str]:
    """Make one run on a node; return the files of its folder, and what went wrong."""
    with tempfile.TemporaryDirectory() as folder:
        home, error = Path(folder) / "run", ""
        try:
            _work({**argument, "folder": str(home)})
        except Exception as problem:
            error = one_line(problem)
        return {file.name: file.read_bytes() for file in home.iterdir()} if home.is_dir() else {}, error


# --- names -----------------------------------------------------------------------------------------------------------


def _readable(variant: str) -> str:
    return re.sub(r"[^\w.,=+-]", "_", variant)


if __name__ == "__main__":
    serve(_work)
