"""The layout of a run folder, and how far the run in it has come."""

import re
import shutil
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from filelock import BaseFileLock, FileLock, Timeout
from pydantic import TypeAdapter, ValidationError

from spinup_plugins.atomic import write_text
from spinup_plugins.errors import ConfigError, SpinupError

__all__ = [
    "BEST",
    "CHECKPOINT",
    "CONFIG",
    "EVALUATION",
    "LOCK",
    "MODEL",
    "STATUS",
    "VECNORMALIZE",
    "ZOO_ARGUMENTS",
    "HeldError",
    "State",
    "Status",
    "claimed",
    "file_name",
    "found_statistics",
    "hold",
    "let_go",
    "one_line",
    "statistics_file",
    "told_to_end",
    "zoo_arguments",
]

CONFIG = "config.yml"
MODEL = "model.zip"
VECNORMALIZE = "vecnormalize.pkl"
EVALUATION = "evaluation.json"
STATUS = "status.json"
CHECKPOINT = "checkpoint.pkl"
"""What a run goes on from after it was interrupted; there is none of a finished one."""
LOCK = ".lock"
"""Held by the process that is at work in the folder; one that was killed leaves it behind, free."""
ZOO_ARGUMENTS = "args.yml"
"""Where rl_zoo3 notes a run's algorithm, environment and seed."""
BEST = "best_"
"""Prefix of :data:`MODEL` and :data:`VECNORMALIZE` for the best policy of the evaluations during training."""


State: TypeAlias = Literal["running", "finished", "failed", "interrupted"]


@dataclass(frozen=True)
class Status:
    """How far a run has come.

    :param state: "running" until it ends in one of the other three ways
    :param timesteps: environment steps taken, summed over the environments
    :param seconds: wall time since training began
    :param error: why the run failed, in one line
    """

    state: State
    timesteps: int = 0
    seconds: float = 0.0
    error: str | None = None

    def write(self, folder: Path) -> None:
        """Replace the status file of ``folder``."""
        write_text(folder / STATUS, _STATUS.dump_json(self, indent=2).decode() + "\n")

    @classmethod
    def read(cls, folder: Path) -> "Status":
        """Read the status file of ``folder``.

        :raises ConfigError: it is missing or damaged
        """
        try:
            return _STATUS.validate_json((folder / STATUS).read_bytes())
        except (OSError, ValidationError) as error:
            raise ConfigError(f"{folder / STATUS}: missing or damaged") from error


_STATUS = TypeAdapter(Status)


def one_line(error: BaseException) -> str:
    """Return what ``error`` says on one line, after its type unless it is one of ours, whose text says it all.

    Notes follow, such as the one about the environment that raised it.
    """
    text = " ".join(str(error).split())
    if isinstance(error, SpinupError):
        return text
    notes = (" ".join(note.split()) for note in getattr(error, "__notes__", ()))
    return ", ".join([f"{type(error).__name__}: {text}" if text else type(error).__name__, *notes])


def told_to_end(error: SystemExit) -> str:
    """Return on one line what ``error``, which would end this process without a word, says and where it was raised."""
    at = traceback.extract_tb(error.__traceback__)[-1]
    return f"{Path(at.filename).name}:{at.lineno} told the program to end: {one_line(error)}"


@contextmanager
def claimed(parent: Path, algo: str, env: str, *, home: Path | None = None) -> Iterator[Path]:
    """Create the next free ``<parent>/<algo>/<env>_<n>``, n = 1, 2, …; two processes never get the same one.

    If the block raises, the folder goes again, with whatever empty folders were created for it.

    :param parent: folder of all runs; created if need be
    :param algo: algorithm name; ``sb3:ppo`` becomes ``sb3-ppo``
    :param env: environment id; ``module:ALE/Pong-v5`` becomes ``ALE-Pong-v5``
    :param home: create this folder instead, which must not be there
    :raises ConfigError: the folder cannot be created
    """
    above = parent / file_name(algo) if home is None else home.parent
    created = [path for path in (above, *above.parents) if not path.exists()]
    try:
        above.mkdir(parents=True, exist_ok=True)
        if home is None:
            folder = _next_free(above, file_name(env.rpartition(":")[2]))
        else:
            folder = home
            folder.mkdir()
    except OSError as error:
        raise ConfigError(f"cannot create a run folder in '{above}': {error.strerror}") from error
    try:
        yield folder
    except BaseException:
        shutil.rmtree(folder)
        for path in created:
            with suppress(OSError):  # another run has moved in
                path.rmdir()
        raise


class HeldError(ConfigError):
    """Another process is at work in a run folder."""


def hold(folder: Path) -> BaseFileLock:
    """Keep others out of a run folder until :func:`let_go`, or until this process ends in whatever way.

    :param folder: the run folder
    :raises HeldError: another process, or another run of this one, is at work in it
    """
    lock = FileLock(folder / LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise HeldError(f"the run in '{folder}' is still running: wait for it, or end it first") from None
    return lock


def let_go(lock: BaseFileLock) -> None:
    """Release a run folder and remove the lock's file."""
    Path(lock.lock_file).unlink(missing_ok=True)
    lock.release()


def statistics_file(model: Path) -> Path:
    """Return where the normalisation statistics of a model lie: beside it, under the same prefix or name.

    :param model: ``<prefix>model.zip``, or any other ``<name>.zip``
    """
    prefix = model.name.removesuffix(MODEL) if model.name.endswith(MODEL) else f"{model.stem}_"
    return model.with_name(f"{prefix}{VECNORMALIZE}")


def found_statistics(model: Path) -> Path:
    """Look for a model's normalisation statistics also where Stable-Baselines3's ``CheckpointCallback`` and rl_zoo3 put them.

    :param model: ``<name>.zip``
    :return: the first place that has them; :func:`statistics_file` if none does
    """
    own = statistics_file(model)
    places = [own]
    if checkpoint := re.fullmatch(r"(.+)_(\d+_steps)", model.stem):
        places.append(model.with_name(f"{checkpoint[1]}_vecnormalize_{checkpoint[2]}.pkl"))
    places += [path.with_name(VECNORMALIZE) for path in zoo_arguments(model.parent)]
    return next((place for place in places if place.is_file()), own)


def zoo_arguments(folder: Path) -> list[Path]:
    """Return the ``<environment>/args.yml`` that make a folder a run of rl_zoo3; none if it is not.

    :param folder: any
    """
    return sorted(folder.glob(f"*/{ZOO_ARGUMENTS}"))


def _next_free(home: Path, name: str) -> Path:
    while True:
        taken = [int(found[1]) for path in home.iterdir() if (found := re.fullmatch(rf"{re.escape(name)}_(\d+)", path.name))]
        folder = home / f"{name}_{max(taken, default=0) + 1}"
        with suppress(FileExistsError):  # another process was quicker
            folder.mkdir()
            return folder


def file_name(name: str) -> str:
    """Return a name without what file systems may not like."""
    return re.sub(r"[^\w.-]", "-", name)
