"""Published returns, from ``zoo/references.csv``: what others' runs came to, each with its source and environment version."""

import csv
import re
from collections.abc import Sequence
from functools import cache
from typing import Literal, NamedTuple, TypeAlias

from spinup_plugins.errors import ConfigError
from spinup_plugins.paths import data_dir

__all__ = ["FILE", "SEVERAL", "Reference", "Relation", "best", "load", "random_policy", "relation", "spinning_up", "within"]

FILE = "references.csv"

COMPARABLE = {
    *("Acrobot", "HalfCheetah", "InvertedDoublePendulum", "InvertedPendulum", "LunarLander", "LunarLanderContinuous"),
    *("MountainCar", "MountainCarContinuous", "Pendulum", "Reacher", "Swimmer"),
}
"""Environments whose versions pay about the same. Not so Hopper, Walker2d and Ant (from v5 on their rewards and
terminations are others) and CartPole (200 steps in v0, 500 in v1)."""

Relation: TypeAlias = Literal["same", "comparable", "other"]
"""Of a published number's environment to one's own: the same version, one that may be compared with it, or neither."""

SEVERAL = 3
"""Seeds that make a number one to compare with."""

MAXIMUM = "maximum"
"""The metric of those that report the best evaluation of a run: above what it ends with."""


class Reference(NamedTuple):
    """A published number.

    :param algo: one of the six, in lower case, or ``random``
    :param env: Gymnasium id; without a version where the source tells none
    :param timesteps: environment steps of training; None where the source does not tell
    :param value: return, over seeds
    :param spread: its spread as published: a number, or an interval
    :param spread_of: ``seeds`` (standard deviation), ``episodes`` (likewise), ``standard error``, ``95 % interval``, or ""
        where the source does not tell
    :param n_seeds: number of runs; None where the source does not tell
    :param metric: ``final`` (of the last evaluation), ``evaluation`` (deterministic), ``training``, or ``maximum`` of a run
    :param source: who published it
    :param url: where
    """

    algo: str
    env: str
    timesteps: int | None
    value: float
    spread: str
    spread_of: str
    n_seeds: int | None
    metric: str
    source: str
    url: str

    @property
    def budget(self) -> str:
        """Environment steps in words."""
        if self.timesteps is None:
            return "steps not stated"
        for unit, letter in ((1_000_000, "M"), (1_000, "k")):
            if self.timesteps >= unit:
                return f"{self.timesteps / unit:g}{letter} steps"
        return f"{self.timesteps} steps"


@cache
def load() -> tuple[Reference, ...]:
    """Read all published numbers.

    :raises ConfigError: the file is missing or damaged
    """
    path = data_dir("zoo") / FILE
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return tuple(
                Reference(
                    row["algo"],
                    row["env"],
                    int(row["timesteps"]) if row["timesteps"] else None,
                    float(row["return"]),
                    row["spread"],
                    row["spread_of"],
                    int(row["n_seeds"]) if row["n_seeds"] else None,
                    row["metric"],
                    row["source"],
                    row["url"],
                )
                for row in csv.DictReader(file)
            )
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{path}: no published returns ({error})") from error


def relation(theirs: str, ours: str) -> Relation | None:
    """How a published number's environment is related to one's own; None if they are different environments.

    :param theirs: Gymnasium id, or a name without version
    :param ours: Gymnasium id
    """
    name = _name(theirs)
    if name != _name(ours):
        return None
    if theirs == ours.rpartition(":")[2]:
        return "same"
    return "comparable" if name in COMPARABLE else "other"


def best(algo: str, env: str, timesteps: int) -> list[Reference]:
    """Return the best published number of an algorithm, and beside it that of versions which may not be equated.

    Maxima over training, numbers without steps, and those of fewer than :data:`SEVERAL` seeds or an untold number are taken
    only where there are no others; then numbers of no more steps than ``timesteps`` before that of fewest.

    :param algo: one of the six
    :param env: Gymnasium id
    :param timesteps: environment steps that are compared
    :return: at most one of the same and of comparable versions, and one of others
    """
    groups: dict[bool, list[Reference]] = {True: [], False: []}
    for each in load():
        if each.algo == algo and (how := relation(each.env, env)) is not None:
            groups[how != "other"].append(each)
    return [_best(group, timesteps) for group in groups.values() if group]


def spinning_up(algo: str, env: str, timesteps: int) -> list[Reference]:
    """Return what Spinning Up's PyTorch curve, TensorFlow's where there is none, has come to by ``timesteps``.

    :param algo: one of the six
    :param env: Gymnasium id
    :param timesteps: environment steps that are compared; for fewer than those of the first point, that
    :return: one at most
    """
    for figure in ("Spinning Up, PyTorch figure", "Spinning Up, TensorFlow figure"):
        found = [each for each in load() if each.source == figure and each.algo == algo and relation(each.env, env)]
        if found:
            reached = [each for each in found if within(each, timesteps)]
            return [max(reached, key=_steps)] if reached else [min(found, key=_steps)]
    return []


def within(reference: Reference, timesteps: int) -> bool:
    """Whether a number is of no more than ``timesteps`` environment steps, but for those that a last rollout adds."""
    return _steps(reference) <= 1.05 * timesteps


def random_policy(env: str) -> Reference | None:
    """Return what uniformly random actions come to, on the same version or a comparable one; None where it is not known."""
    found = [each for each in load() if each.algo == "random" and relation(each.env, env) in ("same", "comparable")]
    return found[0] if found else None


def _best(references: Sequence[Reference], timesteps: int) -> Reference:
    final = [each for each in references if each.metric != MAXIMUM] or references
    stated = [each for each in final if each.timesteps is not None] or final
    several = [each for each in stated if (each.n_seeds or 0) >= SEVERAL] or stated
    reached = [each for each in several if within(each, timesteps)]
    fewest = min(map(_steps, several))
    return max(reached or [each for each in several if _steps(each) == fewest], key=lambda each: each.value)


def _steps(reference: Reference) -> int:
    return reference.timesteps or 0


def _name(env: str) -> str:
    """Return ``Name`` of ``module:Name-v1``."""
    return re.sub(r"-v\d+$", "", env.rpartition(":")[2])
