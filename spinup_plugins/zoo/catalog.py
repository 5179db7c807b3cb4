"""What the zoo has: an entry for each algorithm and environment, with its values, its results and its agent."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from spinup_plugins import registry
from spinup_plugins.errors import ConfigError, UnknownNameError, nearest
from spinup_plugins.paths import data_dir
from spinup_plugins.runs.files import file_name
from spinup_plugins.runs.results import FINAL, Result, read_results

__all__ = ["ALGORITHMS", "Entry", "checkout", "entries", "median_result"]

ALGORITHMS = ("vpg", "trpo", "ppo", "ddpg", "td3", "sac")
"""Algorithms of the zoo that comes with this package."""


class Entry(NamedTuple):
    """One algorithm on one environment.

    :param algo: its name
    :param env: Gymnasium id
    """

    algo: str
    env: str

    def __str__(self) -> str:
        return f"{self.algo} on {self.env}"

    @property
    def values(self) -> dict[str, Any]:
        """What ``preset="zoo"`` sets: constructor arguments and run keys."""
        return registry.preset_values(registry.get_spec(self.algo), "zoo", self.env)

    @property
    def folder(self) -> Path:
        """Where its results over seeds are kept, ``zoo/results/<algo>/<env>``."""
        return data_dir("zoo") / "results" / file_name(self.algo) / file_name(self.env)

    @property
    def results(self) -> list[Result]:
        """Its results over seeds; none where there are none yet."""
        return read_results(self.folder) if (self.folder / FINAL).is_file() else []


def entries(algos: Sequence[str] = (), envs: Sequence[str] = ()) -> list[Entry]:
    """Return the entries of some algorithms and environments.

    :param algos: names; none for all of the zoo's
    :param envs: Gymnasium ids; none for all that an algorithm has values for
    :raises UnknownNameError: there is no such algorithm, or none of them has values for an environment
    """
    found = [
        Entry(spec.name, env)
        for spec in (registry.get_spec(name) for name in algos or ALGORITHMS)
        for env in registry.zoo_entries(spec)
    ]
    known = list(dict.fromkeys(entry.env for entry in found))
    for env in envs:
        if env not in known:
            whose, there = ", ".join(algos) or "any algorithm", f"; it has {', '.join(known)}" if known else ""
            raise UnknownNameError(f"the zoo has no {env!r} for {whose}{nearest(env, known)}{there}")
    return [entry for entry in found if not envs or entry.env in envs]


def checkout() -> Path:
    """Return the zoo's folder, to write to.

    :raises ConfigError: it is an installed package's
    """
    home = data_dir("zoo")
    if "_data" in home.parts:
        raise ConfigError(f"the zoo in '{home}' is an installed package's and stays as it is: do this in a checkout")
    return home


def median_result(results: Sequence[Result]) -> Result:
    """Return the run in the middle by its mean return after training; of the two in the middle, the lesser.

    :param results: at least one
    """
    ordered = sorted(results, key=lambda result: float(np.mean(result.final)))
    return ordered[(len(ordered) - 1) // 2]
