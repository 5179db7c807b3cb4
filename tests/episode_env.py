"""Environments whose every observation says which copy, episode and step it belongs to, and how they can be vectorised.

Whatever is misplaced on the way to a buffer shows: an observation of another episode, a last observation that is the next
episode's first, a reward of another step.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv
from gymnasium.vector.utils import batch_space
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv

from spinup_plugins.envs import LeanVecEnv, SharedMemoryVecEnv, as_vec_env

Plan = tuple[tuple[int, bool], ...]
"""Length of each episode and whether a time limit ends it; after the last one it begins again with the first."""

BOX = gym.spaces.Box(-1.0, 1.0, (2,), np.float32)
DISCRETE = gym.spaces.Discrete(3)


#: every length and ending next to every other, and copies that end together and apart
MIXED: tuple[Plan, ...] = (
    ((1, False), (3, True), (1, True), (2, False)),
    ((4, True), (4, False)),
    ((2, False), (1, True), (5, True), (1, False), (7, False)),
)


class EpisodeEnv(gym.Env[np.ndarray, Any]):
    """Observes (copy, episode, step) and is rewarded by a number that tells all three."""

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012
    observation_space = gym.spaces.Box(-np.inf, np.inf, (3,), np.float32)

    def __init__(
        self,
        copy: int,
        plan: Plan,
        action_space: gym.Space[Any] = BOX,
        render_mode: str | None = None,
        *,
        reuse_memory: bool = False,
    ) -> None:
        self.copy, self.plan, self.action_space, self.render_mode = copy, plan, action_space, render_mode
        self.reuse_memory = reuse_memory
        self.episode, self.at = -1, 0
        self.memory = np.zeros(3, np.float32)

    def _observe(self) -> np.ndarray:
        self.memory[:] = self.copy, self.episode, self.at
        return self.memory if self.reuse_memory else self.memory.copy()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.episode, self.at = self.episode + 1, 0
        return self._observe(), {"first_of": self.episode}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action), action
        length, by_time_limit = self.plan[self.episode % len(self.plan)]
        assert self.at < length, "stepped after the end of an episode"
        reward = reward_of(self.copy, self.episode, self.at)
        self.at += 1
        over = self.at == length
        info = {"at": (self.episode, self.at), "number": float(self.at)}
        return self._observe(), reward, over and not by_time_limit, over and by_time_limit, info

    def where(self) -> tuple[int, int, int]:
        return self.copy, self.episode, self.at

    def leap(self, episodes: int = 1) -> int:
        """Change this environment alone."""
        self.episode += episodes
        return self.episode

    def render(self) -> np.ndarray:
        return np.full((4, 5, 3), self.copy, np.uint8)


def reward_of(copy: int, episode: int, at: int) -> float:
    return copy + episode / 8 + at / 1024  # exact in single precision


class OwnVectorEnv(VectorEnv[Any, Any, Any]):
    """A vector environment of somebody's own: not made of Gymnasium's, deaf to reset masks unless it must heed them."""

    def __init__(self, functions: list[Callable[[], EpisodeEnv]], mode: AutoresetMode | None) -> None:
        self.copies = [function() for function in functions]
        self.num_envs = len(self.copies)
        self.mode = mode
        self.metadata = {} if mode is None else {"autoreset_mode": mode}
        self.single_observation_space = self.copies[0].observation_space
        self.single_action_space = self.copies[0].action_space
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self.buffer = np.zeros((self.num_envs, 3), np.float32)
        self.over = np.zeros(self.num_envs, bool)

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        assert seed is None or isinstance(seed, int), "a list of seeds is not for every vector environment"
        mask = np.ones(self.num_envs, bool)
        if self.mode is AutoresetMode.DISABLED and options and "reset_mask" in options:
            mask = options["reset_mask"]
        for index in np.flatnonzero(mask):
            self.buffer[index] = self.copies[index].reset()[0]
        self.over[mask] = False
        return self.buffer, {}

    def step(self, actions: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        rewards, ends = np.zeros(self.num_envs), np.zeros((2, self.num_envs), bool)
        final = np.full(self.num_envs, None, object)
        for index, env in enumerate(self.copies):
            if self.over[index]:
                assert self.mode is AutoresetMode.NEXT_STEP, "stepped after the end of an episode"
                self.buffer[index] = env.reset()[0]
                continue
            observation, rewards[index], *ends[:, index], _ = env.step(actions[index])
            if self.mode is AutoresetMode.SAME_STEP and ends[:, index].any():
                final[index] = observation.copy()
                observation, _ = env.reset()
            self.buffer[index] = observation
        self.over = ends.any(axis=0) & (self.mode is not AutoresetMode.SAME_STEP)
        done = np.array([observation is not None for observation in final])
        infos = {"final_obs": final, "_final_obs": done} if done.any() else {}
        return self.buffer, rewards, *ends, infos


def functions(
    plans: tuple[Plan, ...], action_space: gym.Space[Any] = BOX, *, reuse_memory: bool = False
) -> list[Callable[[], EpisodeEnv]]:
    return [partial(EpisodeEnv, copy, plan, action_space, reuse_memory=reuse_memory) for copy, plan in enumerate(plans)]


Functions = list[Callable[[], EpisodeEnv]]


def _own(mode: AutoresetMode) -> Callable[[Functions], VecEnv]:
    return lambda copies: as_vec_env(OwnVectorEnv(copies, mode))


def _sync(mode: AutoresetMode, copy: bool = True) -> Callable[[Functions], VecEnv]:
    return lambda copies: as_vec_env(SyncVectorEnv(copies, copy=copy, autoreset_mode=mode))


def _async(mode: AutoresetMode, shared_memory: bool = True) -> Callable[[Functions], VecEnv]:
    return lambda copies: as_vec_env(AsyncVectorEnv(copies, shared_memory=shared_memory, context="fork", autoreset_mode=mode))


IN_PROCESS: dict[str, Callable[[Functions], VecEnv]] = {
    "SB3 dummy": DummyVecEnv,
    "lean": LeanVecEnv,
    "functions": as_vec_env,
    **{f"sync {mode.value}": _sync(mode) for mode in AutoresetMode},
    "sync without copies": _sync(AutoresetMode.NEXT_STEP, copy=False),
    "wrapped sync": lambda copies: as_vec_env(gym.wrappers.vector.RecordEpisodeStatistics(SyncVectorEnv(copies))),
    **{f"own {mode.value}": _own(mode) for mode in AutoresetMode},
}
PROCESSES: dict[str, Callable[[Functions], VecEnv]] = {
    "SB3 subproc": lambda copies: SubprocVecEnv(copies, start_method="fork"),
    "shared memory": lambda copies: SharedMemoryVecEnv(copies, start_method="fork", n_workers=min(2, len(copies))),
    **{f"async {mode.value}": _async(mode) for mode in AutoresetMode},
    "async without shared memory": _async(AutoresetMode.NEXT_STEP, shared_memory=False),
}
KINDS = IN_PROCESS | PROCESSES


def build(kind: str, plans: tuple[Plan, ...], action_space: gym.Space[Any] = BOX) -> VecEnv:
    # An environment that always returns the same array is too much for Stable-Baselines3's and Gymnasium's own.
    reuse_memory = not kind.startswith("SB3") and not kind.endswith("SameStep")
    return KINDS[kind](functions(plans, action_space, reuse_memory=reuse_memory))
