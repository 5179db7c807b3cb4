"""Whether several environments are stepped faster in this process or by workers, from what one step costs.

A step of N environments takes, in this process,

    t_in = N c

and with W workers on K cores, which step their slices at the same time,

    t_out = f max(⌈N / W⌉ c, N p / K) + a + W b + N (d + e s)

where c is the time of one environment's step, p how much of it a processor works, s the size of its observation, and the
rest is overhead: f for caches that are cold whenever a worker wakes up, a for waking it and being woken, b for each worker's
request and answer, d for each environment's info, e for each byte that is copied once more. ``spinup speed stepping
--json FILE`` measures the overhead, all of it together.
"""

import os
import random
from collections.abc import Callable, Sequence
from copy import deepcopy
from math import ceil, nan
from statistics import median
from time import perf_counter, process_time
from typing import Any, Literal, NamedTuple, TypeAlias

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.monitor import Monitor

from spinup_plugins.envs.shared import usable_cores

__all__ = ["Plan", "StepCost", "choose", "idle_cores", "measure_step", "overhead", "plan", "workers"]

EnvFn: TypeAlias = Callable[[], gym.Env[Any, Any]]

SLOWER = 1.3
PER_STEP = 150e-6
PER_WORKER = 25e-6
PER_ENV = 3e-6
PER_BYTE = 0.2e-9
"""f above, and a, b, d and e in seconds, fitted to the benchmark's environments on a virtual machine of two cores."""

MARGIN = 1.1
"""How many times faster workers must seem to be: they also take the learner's core."""

MOST_WORKERS = 64
"""Of environments that mostly wait, one worker each pays beyond the number of cores, but each is a process."""


class StepCost(NamedTuple):
    """What one step of an environment takes, its share of resets included.

    :param seconds: time
    :param busy: time that a processor worked for it, in seconds
    :param size: bytes of an observation
    """

    seconds: float
    busy: float
    size: int = 0


class Plan(NamedTuple):
    """How to step several environments.

    :param kind: "dummy" in this process, "subproc" by workers
    :param n_workers: number of workers that is best for "subproc"
    :param inside: seconds that a step of all environments takes in this process
    :param outside: seconds that it takes by these workers
    """

    kind: Literal["dummy", "subproc"]
    n_workers: int
    inside: float
    outside: float


def measure_step(env_fn: EnvFn, seconds: float = 0.2) -> StepCost:
    """Measure one step of an environment under random actions.

    The environment is made, seeded and closed; the global random generators go on as if nothing had happened, and a monitor
    around it writes nothing.

    :param env_fn: makes the environment
    :param seconds: how long to measure; one step is measured however long it takes
    :return: medians over some stretches of steps
    """
    before = random.getstate(), np.random.get_state(), th.get_rng_state()
    try:
        env = env_fn()
        try:
            return _measured(env.env if type(env) is Monitor else env, seconds)
        finally:
            env.close()
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        th.set_rng_state(before[2])


def _measured(env: gym.Env[Any, Any], seconds: float) -> StepCost:
    space = deepcopy(env.action_space)
    space.seed(0)
    actions = [space.sample() for _ in range(64)]
    env.reset(seed=0)
    taken = 0

    def stretch(duration: float) -> tuple[float, float]:
        """Step for some time; return seconds and processor seconds per step."""
        nonlocal taken
        began, began_busy, first = perf_counter(), process_time(), taken
        while taken == first or perf_counter() - began < duration:
            _, _, terminated, truncated, _ = env.step(actions[taken % len(actions)])
            taken += 1
            if terminated or truncated:
                env.reset()
        return (perf_counter() - began) / (taken - first), (process_time() - began_busy) / (taken - first)

    stretches = [stretch(0.0)]
    if stretches[0][0] < seconds:  # else the first step, which may have to set things up, tells enough
        stretches = [stretch(seconds / 8) for _ in range(8)]
    return StepCost(median(each for each, _ in stretches), median(busy for _, busy in stretches), _size(env.observation_space))


def _size(space: spaces.Space[Any]) -> int:
    if isinstance(space, (spaces.Dict, spaces.Tuple)):
        return sum(map(_size, space.spaces.values() if isinstance(space, spaces.Dict) else space.spaces))
    return int(np.prod(space.shape)) * np.dtype(space.dtype).itemsize if space.shape is not None else 0


def overhead(n_envs: int, n_workers: int, size: int = 0) -> float:
    """Return the seconds that a step of ``n_envs`` environments takes by workers beyond that of the environments.

    :param n_envs: number of environments
    :param n_workers: number of workers
    :param size: bytes of an observation
    """
    return PER_STEP + n_workers * PER_WORKER + n_envs * (PER_ENV + size * PER_BYTE)


def idle_cores() -> int:
    """Return the number of cores that this process may use and that others did not in the last minute; at least one."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    return max(1, usable_cores() - int(load))


def plan(cost: StepCost, n_envs: int, cores: int) -> Plan:
    """Return how environments of a given cost are best stepped.

    :param cost: of one step of one environment
    :param n_envs: number of environments
    :param cores: number of cores
    """
    # A worker whose environments wait leaves its core to others.
    share = min(1.0, max(cost.busy / cost.seconds, 1e-3)) if cost.seconds else 1.0
    n_workers = max(1, min(n_envs, cores if share > 0.5 else min(MOST_WORKERS, ceil(cores / share))))
    inside = n_envs * cost.seconds
    stepping = max(ceil(n_envs / n_workers) * cost.seconds, n_envs * share * cost.seconds / cores)
    outside = SLOWER * stepping + overhead(n_envs, n_workers, cost.size)
    return Plan("subproc" if n_envs > 1 and MARGIN * outside < inside else "dummy", n_workers, inside, outside)


def choose(
    env_fns: Sequence[EnvFn],
    *,
    cores: int | None = None,
    measure: Callable[[EnvFn], StepCost] = measure_step,
) -> Plan:
    """Measure one environment and return how several are best stepped.

    One environment, or one core, needs no measurement. An environment that fails while it is measured is left to those who
    know its name.

    :param env_fns: functions that make an environment each; the first's is measured
    :param cores: number of cores; by default those that are idle
    :param measure: measures one step
    """
    cores = idle_cores() if cores is None else cores
    if len(env_fns) < 2 or cores < 2:
        return Plan("dummy", 1, nan, nan)
    try:
        return plan(measure(env_fns[0]), len(env_fns), cores)
    except Exception:
        return Plan("dummy", 1, nan, nan)


def workers(env_fns: Sequence[EnvFn], *, measure: Callable[[EnvFn], StepCost] = measure_step) -> int:
    """Return by how many workers several environments are best stepped: one per core, more where environments mostly wait.

    :param env_fns: functions that make an environment each; if there are more than cores, the first's is measured
    :param measure: measures one step
    """
    cores = usable_cores()
    if len(env_fns) <= cores:
        return len(env_fns)
    try:
        return plan(measure(env_fns[0]), len(env_fns), cores).n_workers
    except Exception:  # those who make it say what is wrong with it
        return cores
