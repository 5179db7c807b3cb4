"""Errors a user can act on: one line that names the thing, the place and the nearest valid choice."""

from collections.abc import Iterable
from difflib import get_close_matches

__all__ = [
    "ConfigError",
    "DivergedError",
    "EnvError",
    "ModelFileError",
    "ModelFileMissingError",
    "PluginError",
    "SpinupError",
    "UnknownNameError",
    "WorkerTraceback",
    "nearest",
]


class SpinupError(Exception):
    """Base of every error this package raises on purpose; its text is one line, fit to be shown as it is."""


class UnknownNameError(SpinupError, ValueError):
    """No algorithm, environment, preset or policy goes by this name."""


class ConfigError(SpinupError, ValueError):
    """A configuration key is unknown, or its value has the wrong type or range."""


class EnvError(SpinupError, ValueError):
    """An environment broke Gymnasium's contract: a NaN, a wrong shape."""


class DivergedError(SpinupError, ValueError):
    """Training has made the networks' parameters NaN or infinite."""


class WorkerTraceback(Exception):  # noqa: N818  # not an error of its own
    """Where an exception came from in a worker process: the ``__cause__`` of the error that the parent sees."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


class ModelFileError(SpinupError, ValueError):
    """A model file is missing, truncated, tampered with, or not one of this algorithm's."""


class ModelFileMissingError(ModelFileError, FileNotFoundError):
    """There is no such model file; also the ``FileNotFoundError`` that Stable-Baselines3's callers expect."""


class PluginError(SpinupError, RuntimeError):
    """A third-party algorithm cannot be used: it fails to import, collides, or speaks another API version."""


def nearest(name: str, choices: Iterable[str]) -> str:
    """Return ``" (did you mean 'x'?)"`` for the choice closest to ``name``, or ``""`` when none is close."""
    matches = get_close_matches(name, list(choices), n=1, cutoff=0.6)
    return f" (did you mean {matches[0]!r}?)" if matches else ""
