"""Gymnasium wrappers that neither Gymnasium nor sb3-contrib has.

Each goes by a name in configuration files and on the command line (:mod:`spinup_plugins.wrapping`), pickles, is made again
by ``gymnasium.make(env.spec)``, refuses unsuitable spaces when it is built, draws from the environment's own generator, so
that a seed reproduces what it does, and leaves what the environment returned as it was.
"""

import json
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from copy import deepcopy
from importlib.util import find_spec
from pathlib import Path
from shutil import rmtree
from typing import Any, Literal
from uuid import uuid4

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.utils import RecordConstructorArgs
from gymnasium.wrappers.utils import create_zero_array
from sb3_contrib.common.wrappers import TimeFeatureWrapper

from spinup_plugins.atomic import replacing
from spinup_plugins.errors import ConfigError, EnvError
from spinup_plugins.imports import import_object

__all__ = [
    "VELOCITIES",
    "CheckValues",
    "DelayAction",
    "DelayReward",
    "EpisodeReturns",
    "HistoryObservation",
    "MaskObservation",
    "NoisyAction",
    "NoisyObservation",
    "RandomAction",
    "RecordTrajectories",
    "ScaleReward",
    "SparseReward",
    "TerminateOnSuccess",
    "TimeFeature",
    "minari_dataset",
]

Array = np.ndarray[Any, np.dtype[Any]]
Reset = tuple[Any, dict[str, Any]]
Step = tuple[Any, float, bool, bool, dict[str, Any]]

VELOCITIES: dict[tuple[str, int], tuple[int, ...]] = {
    ("AcrobotEnv", 6): (4, 5),
    ("CartPoleEnv", 4): (1, 3),
    ("Continuous_MountainCarEnv", 2): (1,),
    ("MountainCarEnv", 2): (1,),
    ("PendulumEnv", 3): (2,),
    ("BipedalWalker", 24): (1, 2, 3, 5, 7, 10, 12),
    ("LunarLander", 8): (2, 3, 5),
    ("InvertedDoublePendulumEnv", 9): (5, 6, 7),
    ("InvertedDoublePendulumEnv", 11): (5, 6, 7),
    ("PusherEnv", 23): tuple(range(7, 14)),
    ("ReacherEnv", 10): (6, 7),
    ("ReacherEnv", 11): (6, 7),
    ("AntEnv", 111): tuple(range(13, 27)),
    ("HumanoidEnv", 376): (*range(22, 45), *range(185, 269)),
    ("HumanoidStandupEnv", 376): (*range(22, 45), *range(185, 269)),
}
"""Velocities in the observations of Gymnasium's environments, by class and number of dimensions.

MuJoCo's are here only where neither ``observation_structure`` (since their v5) nor the sizes of positions and velocities
tell. Humanoid's second range are the velocities of its bodies' centres of mass.
"""


# --- observations -----------------------------------------------------------------------------------------------------


class _BoxObservation(gym.ObservationWrapper[Any, Any, Any], RecordConstructorArgs):
    """Changes the array that a Box observation is, or that a Dict observation has under ``key``."""

    def __init__(self, env: gym.Env[Any, Any], key: str | None) -> None:
        super().__init__(env)
        space = env.observation_space
        choices = space.spaces if isinstance(space, spaces.Dict) else {}
        box = choices.get(key) if key is not None else space
        if not isinstance(box, spaces.Box):
            boxes = [name for name, each in choices.items() if isinstance(each, spaces.Box)]
            wanted = f"key to be one of {', '.join(boxes)}" if boxes else "a Box, such as 'flatten_observation' makes"
            raise _unsuitable(self, space, wanted if key is None or boxes else "a Dict, or no key")
        self.key = key
        self.box = box

    def become(self, box: spaces.Box) -> None:
        """Set the space of what :meth:`changed` returns."""
        inner = self.env.observation_space
        if self.key is not None and isinstance(inner, spaces.Dict):
            self.observation_space = spaces.Dict({**inner.spaces, self.key: box})
        else:
            self.observation_space = box

    def observation(self, observation: Any) -> Any:
        """Return the observation with its array changed."""
        if self.key is None:
            return self.changed(observation)
        return {**observation, self.key: self.changed(observation[self.key])}

    def changed(self, array: Array) -> Array:
        """Return what takes the place of ``array``."""
        raise NotImplementedError  # each wrapper's own


class MaskObservation(_BoxObservation):
    """Hides dimensions of the observation, so that the state is observed partially.

    ``"velocity"`` hides the velocities of Gymnasium's classic-control, Box2D and MuJoCo environments.

    :param hidden: indices of the dimensions to hide, or ``"velocity"``
    :param keep_shape: put zeros in their place, which keeps models fitting, instead of leaving the dimensions out
    :param key: the entry of a Dict observation that is meant
    :raises ConfigError: the observation is no vector, has no such dimension, or its velocities are unknown
    """

    def __init__(
        self,
        env: gym.Env[Any, Any],
        hidden: list[int] | Literal["velocity"],
        *,
        keep_shape: bool = False,
        key: str | None = None,
    ) -> None:
        RecordConstructorArgs.__init__(self, hidden=hidden, keep_shape=keep_shape, key=key)
        super().__init__(env, key)
        box = self.box
        if len(box.shape) != 1:
            raise _unsuitable(self, box, "a vector, such as 'flatten_observation' makes")
        _require(self, not isinstance(hidden, str) or hidden == "velocity", f"hidden={hidden!r} is not 'velocity'")
        indices = list(_velocities(self, env) if hidden == "velocity" else hidden)
        wrong = [index for index in indices if not -box.shape[0] <= index < box.shape[0]]
        if wrong or not indices:
            raise _unsuitable(self, box, f"hidden to be indices of its dimensions, not {wrong or indices}")
        self.visible = np.ones(box.shape, dtype=bool)
        self.visible[indices] = False
        self.keep_shape = keep_shape
        low, high = box.low, box.high
        if keep_shape:
            low, high = np.where(self.visible, low, np.minimum(low, 0)), np.where(self.visible, high, np.maximum(high, 0))
        elif self.visible.any():
            low, high = low[self.visible], high[self.visible]
        else:
            raise _unsuitable(self, box, "a dimension left to be seen, or keep_shape=True")
        self.become(spaces.Box(low, high, dtype=box.dtype))

    def changed(self, array: Array) -> Array:
        """Return ``array`` without what is hidden, or with zeros for it."""
        return np.where(self.visible, array, array.dtype.type(0)) if self.keep_shape else array[self.visible]


class HistoryObservation(_BoxObservation):
    r"""Shows the last observations, and if wanted the actions between them, as one vector; undoes partial observability.

    :math:`(o_{t-k+1}, \dots, o_t, a_{t-k+1}, \dots, a_{t-1})`, the oldest first. Before an episode has k observations,
    its first one is repeated and the actions are zeros. Discrete actions are one-hot.

    :param length: k, the number of observations
    :param actions: whether to show the k − 1 actions between them
    :param key: the entry of a Dict observation that is meant
    :raises ConfigError: ``length`` is not positive, the observation is no Box, or the actions are no vector of numbers
    """

    def __init__(self, env: gym.Env[Any, Any], length: int, *, actions: bool = False, key: str | None = None) -> None:
        RecordConstructorArgs.__init__(self, length=length, actions=actions, key=key)
        super().__init__(env, key)
        _require(self, length >= 1, f"length={length} must be at least 1")
        self.length = length
        self.past_observations: deque[Array] = deque(maxlen=length)
        self.past_actions: deque[Array] = deque(maxlen=length - 1 if actions else 0)
        low, high = [self.box.low.ravel()] * length, [self.box.high.ravel()] * length
        self.no_actions: list[Array] = []
        if actions:
            flat = spaces.flatten_space(env.action_space)
            if not isinstance(flat, spaces.Box) or not np.issubdtype(self.box.dtype, np.floating):
                raise _unsuitable(self, env.action_space, "numbers for actions beside floating-point observations")
            low += [np.minimum(flat.low, 0)] * (length - 1)
            high += [np.maximum(flat.high, 0)] * (length - 1)
            self.no_actions = [np.zeros(flat.shape)] * (length - 1)
        dtype = self.box.dtype
        self.become(spaces.Box(np.concatenate(low).astype(dtype), np.concatenate(high).astype(dtype), dtype=dtype))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Reset:
        """Reset the environment and forget the last episode."""
        self.past_observations.clear()
        return super().reset(seed=seed, options=options)

    def step(self, action: Any) -> Step:
        """Step the environment and remember the action."""
        if self.past_actions.maxlen:
            self.past_actions.append(np.array(spaces.flatten(self.env.action_space, action)))
        return super().step(action)  # type: ignore[return-value]

    def changed(self, array: Array) -> Array:
        """Return the history that ends with ``array``."""
        newest = np.array(array).ravel()  # a copy: some environments go on writing into the array that they returned
        if self.past_observations:
            self.past_observations.append(newest)
        else:
            self.past_observations.extend([newest] * self.length)
            self.past_actions.extend(self.no_actions)
        return np.concatenate([*self.past_observations, *self.past_actions]).astype(self.box.dtype)


class NoisyObservation(_BoxObservation):
    """Adds Gaussian noise to the observation, clipped to the bounds of its space.

    :param std: standard deviation in the units of the observation, one for all dimensions or one for each
    :param key: the entry of a Dict observation that is meant
    :raises ConfigError: the observation is no Box of floating-point numbers, or ``std`` does not fit it
    """

    def __init__(self, env: gym.Env[Any, Any], std: float | list[float], *, key: str | None = None) -> None:
        RecordConstructorArgs.__init__(self, std=std, key=key)
        super().__init__(env, key)
        self.std = _deviations(self, std, self.box)

    def changed(self, array: Array) -> Array:
        """Return ``array`` with noise."""
        return _disturbed(array, self.std, self.box, self.np_random)


class TimeFeature(TimeFeatureWrapper, RecordConstructorArgs):
    """Appends the fraction of the episode that remains to the observation: sb3-contrib's ``TimeFeatureWrapper``.

    The original changes the environment's own observation space and observations, which copies may share, and does not
    record its arguments.

    :param max_steps: steps of an episode, unless the environment's specification has a time limit
    :param test_mode: show a constant, which tells whether an agent relies on the time
    """

    def __init__(self, env: gym.Env[Any, Any], max_steps: int = 1000, test_mode: bool = False) -> None:
        RecordConstructorArgs.__init__(self, max_steps=max_steps, test_mode=test_mode)
        _require(self, max_steps >= 1, f"max_steps={max_steps} must be at least 1")
        inner = env.observation_space
        if isinstance(inner, spaces.Dict):
            env.observation_space = spaces.Dict(dict(inner.spaces))
        try:
            super().__init__(env, max_steps, test_mode)
            self.observation_space = env.observation_space
        finally:
            env.observation_space = inner

    def _get_obs(self, obs: Any) -> Any:
        return super()._get_obs(dict(obs) if isinstance(obs, dict) else obs)


# --- actions ----------------------------------------------------------------------------------------------------------


class NoisyAction(gym.ActionWrapper[Any, Any, Any], RecordConstructorArgs):
    """Adds Gaussian noise to the action, clipped to the bounds of its space.

    :param std: standard deviation in the environment's units, one for all dimensions or one for each
    :raises ConfigError: the actions are no Box of floating-point numbers, or ``std`` does not fit them
    """

    def __init__(self, env: gym.Env[Any, Any], std: float | list[float]) -> None:
        RecordConstructorArgs.__init__(self, std=std)
        super().__init__(env)
        if not isinstance(env.action_space, spaces.Box):
            raise _unsuitable(self, env.action_space, "a Box; 'random_action' disturbs actions of every kind")
        self.box = env.action_space
        self.std = _deviations(self, std, self.box)

    def action(self, action: Any) -> Any:
        """Return the action with noise."""
        return _disturbed(action, self.std, self.box, self.np_random)


class RandomAction(gym.ActionWrapper[Any, Any, Any], RecordConstructorArgs):
    """Takes a random action instead of the given one every now and then.

    :param probability: how likely this is at each step
    :raises ConfigError: ``probability`` is not in [0, 1]
    """

    def __init__(self, env: gym.Env[Any, Any], probability: float) -> None:
        RecordConstructorArgs.__init__(self, probability=probability)
        super().__init__(env)
        _require(self, 0 <= probability <= 1, f"probability={probability} is not in [0, 1]")
        self.probability = probability
        self.sampler = deepcopy(env.action_space)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Reset:
        """Reset the environment; what is random in this episode follows from its generator."""
        result = super().reset(seed=seed, options=options)
        self.sampler.seed(int(self.np_random.integers(2**31)))
        return result

    def action(self, action: Any) -> Any:
        """Return the action or a random one."""
        return self.sampler.sample() if self.np_random.random() < self.probability else action


class DelayAction(gym.ActionWrapper[Any, Any, Any], RecordConstructorArgs):
    """Takes each action some steps late.

    What an episode begins with is a zero, or what the space has next to it: the first of discrete actions.

    :param delay: number of steps between the choice of an action and its effect
    :raises ConfigError: ``delay`` is negative
    """

    def __init__(self, env: gym.Env[Any, Any], delay: int) -> None:
        RecordConstructorArgs.__init__(self, delay=delay)
        super().__init__(env)
        _require(self, delay >= 0, f"delay={delay} must not be negative")
        self.delay = delay
        self.chosen: deque[Any] = deque()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Reset:
        """Reset the environment and forget the actions that were under way."""
        self.chosen = deque(create_zero_array(self.env.action_space) for _ in range(self.delay))
        return super().reset(seed=seed, options=options)

    def action(self, action: Any) -> Any:
        """Return the action that was chosen ``delay`` steps ago."""
        self.chosen.append(deepcopy(action))  # the caller may use its array again
        return self.chosen.popleft()


# --- rewards and returns ----------------------------------------------------------------------------------------------


class ScaleReward(gym.RewardWrapper[Any, Any], RecordConstructorArgs):
    r"""Changes rewards linearly: :math:`r' = \text{scale} \cdot r + \text{shift}`.

    :param scale: factor
    :param shift: what is added after it
    :raises ConfigError: one of them is infinite or not a number
    """

    def __init__(self, env: gym.Env[Any, Any], scale: float = 1.0, shift: float = 0.0) -> None:
        RecordConstructorArgs.__init__(self, scale=scale, shift=shift)
        super().__init__(env)
        _require(self, np.isfinite([scale, shift]).all(), f"scale={scale}, shift={shift} must be finite")
        self.scale, self.shift = scale, shift

    def reward(self, reward: Any) -> float:
        """Return the changed reward."""
        return self.scale * float(reward) + self.shift


class DelayReward(gym.Wrapper[Any, Any, Any, Any], RecordConstructorArgs):
    """Withholds rewards and gives their sum every so many steps, and what remains at the end of the episode.

    :param every: number of steps
    :raises ConfigError: ``every`` is not positive
    """

    def __init__(self, env: gym.Env[Any, Any], every: int) -> None:
        RecordConstructorArgs.__init__(self, every=every)
        super().__init__(env)
        _require(self, every >= 1, f"every={every} must be at least 1")
        self.every = every
        self.steps, self.withheld = 0, 0.0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Reset:
        """Reset the environment and the sum."""
        self.steps, self.withheld = 0, 0.0
        return super().reset(seed=seed, options=options)

    def step(self, action: Any) -> Step:
        """Step the environment; the reward is zero or the sum of those withheld."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        self.steps, self.withheld = self.steps + 1, self.withheld + float(reward)
        given = 0.0
        if terminated or truncated or self.steps % self.every == 0:
            given, self.withheld = self.withheld, 0.0
        return observation, given, terminated, truncated, info


class SparseReward(DelayReward):
    """Gives the whole return as the reward of the episode's last step, and zero before."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        RecordConstructorArgs.__init__(self)
        super().__init__(env, sys.maxsize)


class EpisodeReturns(gym.Wrapper[Any, Any, Any, Any], RecordConstructorArgs):
    r"""Reports an episode's returns in the last ``info``: ``undiscounted_return`` and ``discounted_return``.

    Of an episode of T steps they are :math:`R(\tau) = \sum_{t=0}^{T-1} r_t` (1) and
    :math:`R_\gamma(\tau) = \sum_{t=0}^{T-1} \gamma^t r_t` (2). The keys are flat so that Stable-Baselines3's
    ``Monitor(info_keywords=…)`` can log them.

    :param gamma: the discount γ
    :raises ConfigError: ``gamma`` is not in [0, 1]
    """

    def __init__(self, env: gym.Env[Any, Any], gamma: float = 0.99) -> None:
        RecordConstructorArgs.__init__(self, gamma=gamma)
        super().__init__(env)
        _require(self, 0 <= gamma <= 1, f"gamma={gamma} is not in [0, 1]")
        self.gamma = gamma
        self.discount, self.undiscounted, self.discounted = 1.0, 0.0, 0.0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Reset:
        """Reset the environment and the sums."""
        self.discount, self.undiscounted, self.discounted = 1.0, 0.0, 0.0
        return super().reset(seed=seed, options=options)

    def step(self, action: Any) -> Step:
        """Step the environment and add up its rewards."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        self.undiscounted += float(reward)  # eq. (1)
        self.discounted += self.discount * float(reward)  # eq. (2)
        self.discount *= self.gamma
        if terminated or truncated:
            info = {**info, "undiscounted_return": self.undiscounted, "discounted_return": self.discounted}
        return observation, float(reward), terminated, truncated, info


# --- episodes ---------------------------------------------------------------------------------------------------------


class TerminateOnSuccess(gym.Wrapper[Any, Any, Any, Any], RecordConstructorArgs):
    """Terminates an episode once its goal was reached in so many consecutive steps.

    :param steps: number of steps
    :param key: what in ``info`` tells success; a step without it is none
    :raises ConfigError: ``steps`` is not positive
    """

    def __init__(self, env: gym.Env[Any, Any], steps: int = 1, key: str = "is_success") -> None:
        RecordConstructorArgs.__init__(self, steps=steps, key=key)
        super().__init__(env)
        _require(self, steps >= 1, f"steps={steps} must be at least 1")
        self.steps, self.key = steps, key
        self.successes = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Reset:
        """Reset the environment and the count."""
        self.successes = 0
        return super().reset(seed=seed, options=options)

    def step(self, action: Any) -> Step:
        """Step the environment; also terminated after enough successes."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        self.successes = self.successes + 1 if info.get(self.key) else 0
        return observation, float(reward), terminated or self.successes >= self.steps, truncated, info


class RecordTrajectories(gym.Wrapper[Any, Any, Any, Any], RecordConstructorArgs):
    r"""Writes each episode to an ``.npz`` file of its own.

    Of :math:`\tau = (s_0, a_0, r_0, s_1, \dots, s_T)` it has the arrays ``observations`` (T + 1, …), ``actions`` (T, …),
    ``rewards``, ``terminations`` and ``truncations`` (T,), and as JSON text ``metadata``: ``env``, ``seed``, ``episode`` and
    ``complete``. Entries of Dict spaces are arrays of their own, as ``observations/achieved_goal``. ``numpy.load`` opens it
    without pickle. Copies of the environment may share a folder. An episode that ``reset`` or ``close`` cuts short is
    truncated there and not ``complete``.

    :param folder: where to; it is created
    :param every: write each so-manieth episode only, beginning with the first
    :raises ConfigError: a space has no array form, ``every`` is not positive, or the folder cannot be created
    """

    def __init__(self, env: gym.Env[Any, Any], folder: str, *, every: int = 1) -> None:
        RecordConstructorArgs.__init__(self, folder=folder, every=every)
        super().__init__(env)
        for space in (env.observation_space, env.action_space):
            if not _has_arrays(space):
                raise _unsuitable(self, space, "Box, Discrete, MultiDiscrete, MultiBinary or Dict spaces")
        _require(self, every >= 1, f"every={every} must be at least 1")
        self.folder, self.every = Path(folder), every
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"RecordTrajectories cannot create {folder!r}: {error.strerror}") from error
        self.seed: int | None = None
        self.episode = -1
        self.observations: list[Any] = []
        self.steps: list[tuple[Any, float, bool, bool]] = []

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Reset:
        """Reset the environment and begin a new trajectory."""
        self._write(complete=False)
        observation, info = super().reset(seed=seed, options=options)
        self.episode, self.seed = self.episode + 1, seed
        self.observations = [deepcopy(observation)]
        return observation, info

    def step(self, action: Any) -> Step:
        """Step the environment; at the end of the episode, write its trajectory."""
        taken = deepcopy(action)  # the environment or its caller may change the array
        observation, reward, terminated, truncated, info = self.env.step(action)
        self.observations.append(deepcopy(observation))
        self.steps.append((taken, float(reward), bool(terminated), bool(truncated)))
        if terminated or truncated:
            self._write(complete=True)
        return observation, float(reward), terminated, truncated, info

    def close(self) -> None:
        """Write what there is of the episode and close the environment."""
        self._write(complete=False)
        super().close()

    def _write(self, *, complete: bool) -> None:
        steps, self.steps = self.steps, []
        if steps and self.episode % self.every == 0:
            metadata = {"env": _id(self.env), "seed": self.seed, "episode": self.episode, "complete": complete}
            _save_trajectory(self.folder, self.env, self.observations, steps, metadata)


class CheckValues(gym.Wrapper[Any, Any, Any, Any], RecordConstructorArgs):
    """Stops where the environment breaks its own contract, before NumPy broadcasts or a network spreads it.

    Observations must be finite and have the shape, the kind of numbers and the bounds of their space, rewards must be finite
    numbers, the flags of the end bools and ``info`` a dictionary.
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        RecordConstructorArgs.__init__(self)
        super().__init__(env)
        self.steps = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Reset:
        """Reset the environment and check what it returns.

        :raises EnvError: it is not what the environment promised
        """
        self.steps = 0
        observation, info = super().reset(seed=seed, options=options)
        self._check(observation, info)
        return observation, info

    def step(self, action: Any) -> Step:
        """Step the environment and check what it returns.

        :raises EnvError: it is not what the environment promised
        """
        self.steps += 1
        observation, reward, terminated, truncated, info = self.env.step(action)
        number: Any = np.asarray(reward)
        if number.ndim or number.dtype.kind not in "iuf" or not np.isfinite(number):
            raise self._error(f"the reward is {_brief(reward)}, not a finite number")
        for name, flag in (("terminated", terminated), ("truncated", truncated)):
            if not isinstance(flag, (bool, np.bool_)):
                raise self._error(f"{name} is {_brief(flag)}, not a bool")
        self._check(observation, info)
        return observation, float(reward), terminated, truncated, info

    def _check(self, observation: Any, info: Any) -> None:
        problem = _problem("observation", self.env.observation_space, observation)
        if problem:
            raise self._error(problem)
        if not isinstance(info, dict):
            raise self._error(f"info is {_brief(info)}, not a dict")

    def _error(self, problem: str) -> EnvError:
        where = f"at step {self.steps} of an episode" if self.steps else "at reset"
        return EnvError(f"environment {_id(self.env)} {where}: {problem}")


# --- Minari -----------------------------------------------------------------------------------------------------------


def minari_dataset(folder: str | Path, dataset_id: str, env: gym.Env[Any, Any] | str, **metadata: Any) -> Any:
    """Make a Minari dataset of the trajectories that :class:`RecordTrajectories` wrote.

    Minari's own ``DataCollector`` seeds every episode anew, so that a training run it watches is no longer that of its seed.

    :param folder: the folder with the trajectories
    :param dataset_id: name of the dataset, such as ``"cartpole/ppo-v0"``
    :param env: the environment they were recorded from, or its id; its spaces must be theirs
    :param metadata: further arguments of ``minari.create_dataset_from_buffers``, such as ``author``, or
        ``jpeg_encoding=False`` to keep images as they are
    :return: the ``minari.MinariDataset``, in Minari's local folder
    :raises ConfigError: Minari is not installed, there are no trajectories, or Minari refuses them
    """
    needed = ("minari", "h5py" if metadata.get("data_format", "hdf5") == "hdf5" else "pyarrow")
    if not all(map(find_spec, needed)):
        raise ConfigError(f'a Minari dataset needs {" and ".join(needed)}: pip install "spinup-plugins[minari]"')
    create = import_object("minari:create_dataset_from_buffers")
    buffer = import_object("minari.data_collector:EpisodeBuffer")
    env = gym.make(env) if isinstance(env, str) else env
    while isinstance(env, RecordTrajectories):  # or whoever recovers the environment would record it
        env = env.env
    observation_space, action_space = env.observation_space, env.action_space
    files = sorted(file for file in Path(folder).glob("*.npz") if not file.name.startswith("."))
    if not files:
        raise ConfigError(f"there are no trajectories in {str(folder)!r}")

    def episodes() -> Iterator[Any]:
        for index, file in enumerate(files):
            with np.load(file) as arrays:
                yield buffer(
                    id=index,
                    seed=json.loads(str(arrays["metadata"]))["seed"],
                    observations=_nested("observations", observation_space, arrays),
                    actions=_nested("actions", action_space, arrays),
                    **{key: arrays[key] for key in ("rewards", "terminations", "truncations")},
                    infos={},
                )

    described = {"observation_space": observation_space, "action_space": action_space}
    place = import_object("minari.storage:get_dataset_path")(dataset_id)
    if place.exists():
        raise ConfigError(f"there is a Minari dataset {dataset_id!r} already, in {str(place)!r}")
    try:
        return create(dataset_id, episodes(), env=env if _has_plain_spec(env) else None, **described, **metadata)
    except (ValueError, TypeError, KeyError) as error:
        rmtree(place, ignore_errors=True)  # Minari leaves half of it behind, and then refuses the name
        raise ConfigError(f"Minari dataset {dataset_id!r}: {' '.join(str(error).split())}") from error


def _has_plain_spec(env: gym.Env[Any, Any]) -> bool:
    """Whether the environment can be made again from what JSON can hold."""
    try:
        return env.spec is not None and bool(env.spec.to_json())
    except (TypeError, ValueError):
        return False


def _save_trajectory(
    folder: Path,
    env: gym.Env[Any, Any],
    observations: Sequence[Any],
    steps: Sequence[tuple[Any, float, bool, bool]],
    metadata: dict[str, Any],
) -> None:
    actions, rewards, terminations, truncations = map(list, zip(*steps, strict=True))
    truncations[-1] = truncations[-1] or not metadata["complete"]
    arrays = {
        **_arrays("observations", env.observation_space, observations),
        **_arrays("actions", env.action_space, actions),
        "rewards": np.array(rewards),
        "terminations": np.array(terminations),
        "truncations": np.array(truncations),
        "metadata": np.array(json.dumps(metadata)),
    }
    # Named at random, so that neither copies of the environment nor a later run write over it.
    with replacing(folder / f"{metadata['episode']:06d}-{uuid4().hex}.npz") as temporary:
        np.savez(temporary, **arrays)  # type: ignore[arg-type]  # as if one were savez's own allow_pickle


# --- spaces -----------------------------------------------------------------------------------------------------------


def _velocities(wrapper: gym.Wrapper[Any, Any, Any, Any], env: gym.Env[Any, Any]) -> Sequence[int]:
    """Indices of the velocities in the observations of one of Gymnasium's environments."""
    base: Any = env.unwrapped
    shape = env.observation_space.shape
    if not shape or shape != base.observation_space.shape:
        raise _unsuitable(
            wrapper, env.observation_space, "the environment's own observation to find velocities: wrap it first"
        )
    size = shape[0]
    structure: dict[str, int] = getattr(base, "observation_structure", {})
    seen = {name: length for name, length in structure.items() if not name.startswith("skipped")}
    if seen and sum(seen.values()) == size:
        parts = [name for name, length in seen.items() for _ in range(length)]
        return [index for index, part in enumerate(parts) if part in ("qvel", "cvel")]
    for cls in type(base).__mro__:
        if not cls.__module__.startswith("gymnasium.envs.") or cls.__name__ == "MujocoEnv":
            continue  # whose names and layouts are not Gymnasium's
        if (cls.__name__, size) in VELOCITIES:
            return VELOCITIES[cls.__name__, size]
        if cls.__module__.startswith("gymnasium.envs.mujoco.") and size <= base.data.qpos.size + base.data.qvel.size:
            return range(size - base.data.qvel.size, size)  # positions, of which some are left out, and velocities
    raise _unsuitable(wrapper, env.observation_space, f"hidden as indices: the velocities of {_id(env)} are not known")


def _deviations(wrapper: gym.Wrapper[Any, Any, Any, Any], std: float | list[float], box: spaces.Box) -> Array:
    """Return ``std`` in the shape of ``box``."""
    if not np.issubdtype(box.dtype, np.floating):
        raise _unsuitable(wrapper, box, "floating-point numbers")
    deviations = np.asarray(std, dtype=np.float64)
    _require(
        wrapper, bool(np.isfinite(deviations).all() and (deviations >= 0).all()), f"std={std} must be finite and not negative"
    )
    if deviations.ndim and deviations.size != np.prod(box.shape):
        raise _unsuitable(wrapper, box, f"one std or one for each dimension, not {deviations.size}")
    return deviations.reshape(box.shape) if deviations.ndim else np.full(box.shape, deviations)


def _disturbed(array: Any, std: Array, box: spaces.Box, generator: np.random.Generator) -> Array:
    noisy: Array = np.asarray(array + std * generator.standard_normal(std.shape))
    return noisy.clip(box.low, box.high).astype(box.dtype)


def _has_arrays(space: spaces.Space[Any]) -> bool:
    if isinstance(space, spaces.Dict):
        return all(map(_has_arrays, space.spaces.values()))
    return isinstance(space, (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary))


def _arrays(name: str, space: spaces.Space[Any], values: Sequence[Any]) -> dict[str, Array]:
    """Stack elements of ``space``, one array for each entry of a Dict."""
    if not isinstance(space, spaces.Dict):
        return {name: np.asarray(values, dtype=space.dtype)}
    found: dict[str, Array] = {}
    for key, part in space.spaces.items():
        found |= _arrays(f"{name}/{key}", part, [value[key] for value in values])
    return found


def _nested(name: str, space: spaces.Space[Any], arrays: Any) -> Any:
    """Invert :func:`_arrays`."""
    if not isinstance(space, spaces.Dict):
        return arrays[name]
    return {key: _nested(f"{name}/{key}", part, arrays) for key, part in space.spaces.items()}


def _problem(name: str, space: spaces.Space[Any], value: Any) -> str:
    """Tell what is wrong with an element of ``space``; empty if nothing is."""
    if isinstance(space, spaces.Dict):
        if not isinstance(value, dict) or value.keys() != space.spaces.keys():
            found = f"has keys {', '.join(map(str, value))}" if isinstance(value, dict) else f"is {_brief(value)}"
            return f"{name} {found}, its space {', '.join(space.spaces)}"
        problems = (_problem(f"{name}[{key!r}]", part, value[key]) for key, part in space.spaces.items())
        return next(filter(None, problems), "")
    if not isinstance(space, spaces.Box):
        return "" if space.contains(value) else f"{name} is {_brief(value)}, which is not in {_spell(space)}"
    if not isinstance(value, (np.ndarray, np.generic)):
        return f"{name} is {_brief(value)}, not an array"
    if value.shape != space.shape:
        return f"{name} has shape {value.shape}, its space {space.shape}"
    if value.dtype.kind != space.dtype.kind:
        return f"{name} has dtype {value.dtype}, its space {space.dtype}"
    with np.errstate(over="ignore"):
        stored = value.astype(space.dtype)  # as a buffer would hold it
    if not np.isfinite(stored).all():
        return f"{name} is not finite at {_places(value, ~np.isfinite(stored))}"
    outside = (stored < space.low) | (stored > space.high)
    return f"{name} is out of its space's bounds at {_places(value, outside)}" if outside.any() else ""


def _places(array: Any, marked: Any) -> str:
    """Spell the first marked indices of an array with their values."""
    indices = np.argwhere(marked)
    shown = ", ".join(f"{[int(each) for each in index]} ({array[tuple(index)]})" for index in indices[:3])
    return f"{shown} and {len(indices) - 3} more" if len(indices) > 3 else shown


# --- errors -----------------------------------------------------------------------------------------------------------


def _require(wrapper: object, holds: Any, otherwise: str) -> None:
    if not holds:
        raise ConfigError(f"{type(wrapper).__name__}: {otherwise}")


def _unsuitable(wrapper: object, space: spaces.Space[Any], wanted: str) -> ConfigError:
    return ConfigError(f"{type(wrapper).__name__} does not fit {_spell(space)}: it needs {wanted}")


def _spell(space: spaces.Space[Any]) -> str:
    return f"Box{space.shape} of {space.dtype}" if isinstance(space, spaces.Box) else _brief(space)


def _brief(value: Any) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else f"{text[:79]}…"


def _id(env: gym.Env[Any, Any]) -> str:
    return env.spec.id if env.spec is not None else type(env.unwrapped).__name__
