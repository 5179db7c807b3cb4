"""How fast environments step: this package's vec-envs beside Stable-Baselines3's, in turns, in one run."""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import cycle, islice
from math import ceil
from time import perf_counter
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch as th
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv

from spinup_plugins.envs.lean import LeanVecEnv
from spinup_plugins.envs.shared import SharedMemoryVecEnv, usable_cores
from spinup_plugins.envs.stepping import choose
from spinup_plugins.errors import ConfigError

__all__ = ["ENVS", "KINDS", "SIZES", "MovingImage", "Ratio", "Stepping", "benchmark"]

ENVS = ("CartPole-v1", "HalfCheetah-v5", "spinup/MovingImage-v0")
"""What is stepped unless something else is asked for: cheap, less so, and large observations."""

SIZES = (1, 4, 16, 64)
"""Numbers of environments."""

KINDS: dict[str, Callable[[list[Callable[[], gym.Env[Any, Any]]]], VecEnv]] = {
    "DummyVecEnv": DummyVecEnv,
    "LeanVecEnv": LeanVecEnv,
    "SharedMemoryVecEnv": SharedMemoryVecEnv,  # before the other, whose workers then start as fast
    "SubprocVecEnv": SubprocVecEnv,
}
"""What is compared; the names of classes that take functions that make an environment each."""


class MovingImage(gym.Env[np.ndarray[Any, Any], Any]):
    """84x84x4 images of moving stripes, as an Atari game's preprocessed frames but without the game.

    :param length: steps of an episode
    :param continuous: take how far to move from (−1, 1) instead of from 0 … 3
    """

    metadata = {"render_modes": []}  # noqa: RUF012
    observation_space = gym.spaces.Box(0, 255, (84, 84, 4), np.uint8)
    action_space: gym.spaces.Space[Any]

    def __init__(self, length: int = 300, *, continuous: bool = False) -> None:
        self.length, self.clock, self.shift = length, 0, 0
        self.action_space = gym.spaces.Box(-1.0, 1.0, (1,), np.float32) if continuous else gym.spaces.Discrete(4)
        stripes = np.add.outer(3 * np.arange(84 + 64), 5 * np.arange(84))[..., None] + 50 * np.arange(4)
        self._stripes = stripes.astype(np.uint8)

    def _image(self) -> np.ndarray[Any, Any]:
        return self._stripes[self.shift : self.shift + 84].copy()

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray[Any, Any], dict[str, Any]]:
        """Begin an episode at a random place."""
        super().reset(seed=seed)
        self.clock, self.shift = 0, int(self.np_random.integers(64))
        return self._image(), {}

    def step(self, action: Any) -> tuple[np.ndarray[Any, Any], float, bool, bool, dict[str, Any]]:
        """Move the stripes by 0 … 3 rows."""
        self.clock += 1
        moved = int(action) if isinstance(self.action_space, gym.spaces.Discrete) else round(1.5 + 1.5 * float(action[0]))
        self.shift = (self.shift + moved) % 64
        return self._image(), float(self.shift == 0), self.clock >= self.length, False, {}


if "spinup/MovingImage-v0" not in gym.registry:
    gym.register("spinup/MovingImage-v0", lambda **kwargs: MovingImage(**kwargs))
    gym.register("spinup/BoxImage-v0", lambda **kwargs: MovingImage(continuous=True, **kwargs))


class Ratio(NamedTuple):
    """How many times faster one is than the other: the median over rounds, the least and the most.

    :param median: in the middle round
    :param low: in the worst
    :param high: in the best
    """

    median: float
    low: float
    high: float


class Stepping(NamedTuple):
    """How fast some copies of an environment step.

    :param env: its id
    :param n_envs: number of copies
    :param speeds: steps of single environments per second in each round, by the vec-env's name
    :param chosen: the vec-env that this package chooses
    """

    env: str
    n_envs: int
    speeds: dict[str, list[float]]
    chosen: str

    @property
    def inside(self) -> Ratio:
        """LeanVecEnv to DummyVecEnv."""
        return self._ratio("LeanVecEnv", "DummyVecEnv")

    @property
    def outside(self) -> Ratio:
        """SharedMemoryVecEnv to SubprocVecEnv."""
        return self._ratio("SharedMemoryVecEnv", "SubprocVecEnv")

    @property
    def best(self) -> Ratio:
        """The chosen one to the faster of Stable-Baselines3's."""
        return self._ratio(self.chosen, "DummyVecEnv", "SubprocVecEnv")

    @property
    def overhead(self) -> float:
        """Seconds that a step of all copies takes by workers beyond their share of the time in this process."""
        share = ceil(self.n_envs / min(self.n_envs, usable_cores()))
        inside, outside = np.array(self.speeds["LeanVecEnv"]), np.array(self.speeds["SharedMemoryVecEnv"])
        return float(np.median(self.n_envs / outside - share / inside))

    def _ratio(self, ours: str, *theirs: str) -> Ratio:
        ratios = np.array(self.speeds[ours]) / np.max([self.speeds[each] for each in theirs], axis=0)
        return Ratio(float(np.median(ratios)), float(ratios.min()), float(ratios.max()))


def benchmark(
    envs: Sequence[str] = ENVS,
    n_envs: Sequence[int] = SIZES,
    *,
    rounds: int = 5,
    seconds: float = 0.4,
    progress: Callable[[str], None] = lambda _: None,
) -> list[Stepping]:
    """Measure how fast environments step in the vec-envs of :data:`KINDS`, all monitored, with one thread of torch.

    For each environment and number of copies, all vec-envs are made and then stepped in turns, so that what else the machine
    does touches them alike.

    :param envs: ids
    :param n_envs: numbers of copies
    :param rounds: how many turns each gets
    :param seconds: length of a turn
    :param progress: is told what is measured next
    :raises ConfigError: an argument is out of range, or there is no such environment
    """
    for name, value in (("rounds", rounds), ("seconds", seconds), ("n_envs", min(n_envs, default=0))):
        if not value > 0:
            raise ConfigError(f"{name} must be greater than 0, not {value}")
    threads = th.get_num_threads()
    th.set_num_threads(1)
    try:
        return [_measured(env, n, rounds, seconds, progress) for env in envs for n in n_envs]
    finally:
        th.set_num_threads(threads)


def _measured(env: str, n: int, rounds: int, seconds: float, progress: Callable[[str], None]) -> Stepping:
    label = f"{n} x {env}"
    progress(f"{label}: measuring one")
    env_fns = [partial(_monitored, env)] * n
    try:
        # All cores: the load of the last minute is this benchmark's own.
        inside = choose(env_fns, cores=usable_cores()).kind == "dummy"
        action_space = env_fns[0]().action_space
    except gym.error.Error as error:
        raise ConfigError(f"environment {env!r}: {' '.join(str(error).split())}") from error
    action_space.seed(0)
    actions = [np.stack([action_space.sample() for _ in range(n)]) for _ in range(32)]
    made: dict[str, VecEnv] = {}
    try:
        for kind, cls in KINDS.items():
            progress(f"{label}: starting {kind}")
            made[kind] = cls(list(env_fns))
            made[kind].seed(0)
            made[kind].reset()
            for each in actions[:2]:
                made[kind].step(each)
        speeds: dict[str, list[float]] = {kind: [] for kind in made}
        for turn in range(rounds):
            # Each is first in some round: what runs before leaves its traces in caches.
            for kind in islice(cycle(made), turn % len(made), turn % len(made) + len(made)):
                progress(f"{label}: {kind}, round {turn + 1} of {rounds}")
                speeds[kind].append(n * _speed(made[kind], actions, seconds))
    finally:
        for vec_env in made.values():
            vec_env.close()
    return Stepping(env, n, speeds, "LeanVecEnv" if inside else "SharedMemoryVecEnv")


def _speed(env: VecEnv, actions: Sequence[np.ndarray[Any, Any]], seconds: float) -> float:
    """Return how many times a second a vec-env steps."""
    began, steps = perf_counter(), 0
    while (spent := perf_counter() - began) < seconds or not steps:
        for each in actions[: 32 if steps else 1]:
            env.step(each)
            steps += 1
            if perf_counter() - began > seconds:
                break
    return steps / max(spent, perf_counter() - began)


def _monitored(env: str) -> gym.Env[Any, Any]:
    return Monitor(gym.make(env))
