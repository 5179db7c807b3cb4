"""Environments stepped one after the other in this process: Stable-Baselines3's ``DummyVecEnv`` without its overhead."""

import time
import traceback
from collections.abc import Callable
from copy import deepcopy
from textwrap import shorten
from typing import Any, NamedTuple, TypeAlias

import gymnasium as gym
import numpy as np
from gymnasium.wrappers import OrderEnforcing, PassiveEnvChecker, TimeLimit
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvObs, VecEnvStepReturn
from stable_baselines3.common.vec_env.util import dict_to_obs

from spinup_plugins.envs.tape import EpisodeTape
from spinup_plugins.errors import EnvError, SpinupError

__all__ = ["LeanVecEnv", "env_name"]

Env: TypeAlias = gym.Env[Any, Any]
Info: TypeAlias = dict[str, Any]
Array: TypeAlias = np.ndarray[Any, Any]
Rows: TypeAlias = dict[Any, Array]
"""Observations of all environments: ``(N, *shape)`` by key, or by None where the space has no parts."""

#: types whose values cannot change under whoever holds them, so that sharing one is as good as a copy
_CONSTANT = frozenset(
    {bool, int, float, complex, str, bytes, type(None)}
    | {kind for kind in np.sctypeDict.values() if kind not in (np.void, np.object_)}
)
#: of the wrappers that ``gymnasium.make``, Stable-Baselines3 and runs put around every environment, what a step does
_STEPS: dict[type, Any] = {
    EpisodeTape: EpisodeTape.step,
    Monitor: Monitor.step,
    TimeLimit: TimeLimit.step,
    OrderEnforcing: OrderEnforcing.step,
    PassiveEnvChecker: PassiveEnvChecker.step,
}

#: a step that is as it should be
_STEPPED = (None, 0.0, False, False, dict[str, Any]())


class _Path(NamedTuple):
    """The shortest way to a step of an environment: past wrappers whose share in it is done in passing.

    :param env: the environment, outermost
    :param step: what to call
    :param limit: the time limit that it leaves out, whose steps are to be counted
    :param monitor: the monitor that it leaves out, whose books are to be kept
    :param tape: the tape that it leaves out, which is to be told of the step
    """

    env: Any
    step: Callable[[Any], tuple[Any, Any, bool, bool, Info]]
    limit: Any = None
    monitor: Any = None
    tape: Any = None


class LeanVecEnv(DummyVecEnv):
    """Environments stepped one after the other in this process, with the results of ``DummyVecEnv`` in less time.

    What a step returns is its own: later steps do not write to it, also where an environment reuses its arrays. The last
    observation of an episode is taken before the reset, so that such an environment cannot overwrite it. The outermost of
    :class:`~.tape.EpisodeTape`, SB3's ``Monitor`` and ``gymnasium.make``'s wrappers (themselves, no subclasses) are not
    called in each step; what they keep is kept for them, so that whoever reads, resets or closes them notices no
    difference. What is replaced inside of an environment without :meth:`set_attr` counts from its next reset.

    :param env_fns: functions that make an environment each, and not the same one twice
    :raises ValueError: two of ``env_fns`` returned the same environment
    """

    #: number of the first environment, for messages: another process may step those before it
    _first = 0

    def __init__(self, env_fns: list[Callable[[], Env]]) -> None:
        super().__init__(env_fns)
        self._parts = [(key, rows.shape[1:], rows.dtype) for key, rows in self.buf_obs.items()]
        self._row_shapes = [(key, rows.shape, rows.dtype) for key, rows in self.buf_obs.items()]
        self._none_done = np.zeros(self.num_envs, dtype=bool)
        self._started = False  # wrappers insist on a reset first
        self._paths = [_Path(env, env.step) for env in self.envs]

    def step(self, actions: Any) -> VecEnvStepReturn:
        """Step every environment; see :meth:`step_wait`.

        :param actions: (N, …)
        """
        self.actions = actions
        return self.step_wait()

    def step_wait(self) -> VecEnvStepReturn:
        """Step every environment with the action given before, and reset those whose episode ends.

        :raises EnvError: an observation does not fit the space, or what was returned is no step
        """
        rows = self._rows()
        plain = rows.get(None)
        shape = self._parts[0][1]
        envs, actions, constant = self.envs, self.actions, _CONSTANT
        rewards, dones = np.empty(self.num_envs, np.float32), self._none_done.copy()
        infos: list[Info] = []
        result: Any = _STEPPED
        try:
            for index, (env, step, limit, monitor, tape) in enumerate(self._paths):
                if env is not envs[index]:  # somebody put another in its place
                    env, step, limit, monitor, tape = self._find(index)
                if monitor is not None and monitor.needs_reset:
                    raise RuntimeError("Tried to step environment that needs reset")
                result = step(actions[index])
                observation, reward, terminated, truncated, given = result
                if limit is not None:
                    limit._elapsed_steps += 1
                    if limit._elapsed_steps >= limit._max_episode_steps:
                        truncated = True
                info = given.copy()
                if given:
                    for key, value in given.items():
                        if type(value) not in constant:
                            info[key] = _copy(value)
                reward = float(reward)
                if monitor is not None:
                    monitor.rewards.append(reward)
                    if terminated or truncated:
                        _end_episode(monitor, info)
                    monitor.total_steps += 1
                if tape is not None:
                    tape.add(actions[index], observation)
                info["TimeLimit.truncated"] = truncated and not terminated
                infos.append(info)
                rewards[index] = reward
                if terminated or truncated:
                    dones[index] = True
                    info["terminal_observation"] = _copy(observation)
                    observation = self._begin(index)
                if plain is not None and type(observation) is np.ndarray and observation.shape == shape:
                    plain[index] = observation
                else:
                    self._put(rows, index, observation)
        except (Exception, SystemExit) as error:
            self._name(error, index, "step", result)
            raise
        self.buf_infos, self.buf_rews, self.buf_dones = infos, rewards, dones
        return self._joined(rows), rewards, dones, infos

    def reset(self) -> VecEnvObs:
        """Reset every environment with the seeds and options given since the last time.

        :raises EnvError: an observation does not fit the space, or comes without an info
        """
        rows = self._rows()
        self._started = True
        for index in range(self.num_envs):
            options = {"options": self._options[index]} if self._options[index] else {}
            self._put(rows, index, self._begin(index, seed=self._seeds[index], **options))
        self._reset_seeds()
        self._reset_options()
        return self._joined(rows)

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Set an attribute of environments, or of the outermost wrapper around each.

        :param attr_name: its name
        :param value: its value
        :param indices: of which environments; None for all
        """
        super().set_attr(attr_name, value, indices)
        for index in range(self.num_envs if self._started else 0):
            self._find(index)

    def _begin(self, index: int, **kwargs: Any) -> Any:
        """Reset an environment and return what it observes."""
        try:
            result: Any = self.envs[index].reset(**kwargs)
        except (Exception, SystemExit) as error:
            self._name(error, index, "reset")
            raise
        if not isinstance(result, (tuple, list)) or len(result) != 2:
            name = env_name(self.envs[index], self._first + index)
            raise EnvError(f"{name} returned {_count(result)} from reset() where two are expected (observation, info)")
        observation, self.reset_infos[index] = result
        self._find(index)
        return observation

    def _name(self, error: BaseException, index: int, method: str, result: Any = _STEPPED) -> None:
        """Note at ``error`` in which environment it was raised; what is no step's ``result`` is an error of ours instead."""
        if isinstance(error, SpinupError):
            return
        name, notes = env_name(self.envs[index], self._first + index), getattr(error, "__notes__", [])
        *_, (frame, _) = traceback.walk_tb(error.__traceback__)
        if isinstance(frame.f_locals.get("self"), gym.Wrapper) and str(error).endswith("to unpack (expected 5, got 4)"):
            result = [None] * 4  # that is what the wrapper was given
        problem = _problem(result)
        if problem:
            raise EnvError(f"{name} returned {problem}") from error
        if not any(note.endswith(name) for note in notes):  # by reset() in a step
            error.__notes__ = [*notes, f"in {method}() of {name}"]  # add_note() is Python 3.11's

    def _find(self, index: int) -> _Path:
        """Find the shortest way to a step of an environment, and keep to it until its next reset."""
        outermost: Any = self.envs[index]
        env, tape, monitor, limit = outermost, None, None, None
        if _steps_as_known(env, EpisodeTape):
            tape, env = env, env.env
        if _steps_as_known(env, Monitor):
            monitor, env = env, env.env
        if _steps_as_known(env, TimeLimit) and env._elapsed_steps is not None:
            limit, env = env, env.env
        if _steps_as_known(env, OrderEnforcing) and env.has_reset:
            env = env.env
        # It checks an environment's first step (since Gymnasium 1.4 the second, too), then nothing.
        if _steps_as_known(env, PassiveEnvChecker) and env.checked_step and getattr(env, "checked_data_reuse", True):
            env = env.env
        self._paths[index] = path = _Path(outermost, env.step, limit, monitor, tape)
        return path

    def _rows(self) -> Rows:
        """Return what the next observations go into."""
        rows: Rows = {}
        for key, shape, dtype in self._row_shapes:
            rows[key] = np.empty(shape, dtype)
        return rows

    def _joined(self, rows: Rows) -> VecEnvObs:
        self.buf_obs = rows  # type: ignore[assignment]  # only ever read
        return rows[None] if None in rows else dict_to_obs(self.observation_space, rows)

    def _put(self, rows: Rows, index: int, observation: Any) -> None:
        """Write an environment's observation into its row, unless only NumPy's broadcasting would make it fit."""
        for key, shape, _ in self._parts:
            what = "an observation" if key is None else f"observation[{key!r}]"
            try:
                part = observation if key is None else observation[key]
                actual = np.shape(part)
                if actual == shape:
                    rows[key][index] = part
                    continue
            except (KeyError, IndexError) as error:
                raise EnvError(
                    f"{env_name(self.envs[index], self._first + index)} returned an observation without {key!r}, which does"
                    f" not fit its space {self.observation_space}"
                ) from error
            except (TypeError, ValueError) as error:
                raise self._misfit(index, what, key, f"({error})") from error
            raise self._misfit(index, what, key, f"of shape {actual}")

    def _misfit(self, index: int, what: str, key: Any, why: str) -> EnvError:
        space = self.observation_space if key is None else self.observation_space[key]  # type: ignore[index]
        name = env_name(self.envs[index], self._first + index)
        return EnvError(" ".join(f"{name} returned {what} that does not fit its space {space} {why}".split()))


def _steps_as_known(env: Any, cls: type[Any]) -> bool:
    """Whether ``env`` is a ``cls``, no subclass, whose ``step`` nobody has replaced."""
    return type(env) is cls and getattr(env.step, "__func__", None) is _STEPS[cls]


def env_name(env: Env, number: int) -> str:
    """Return ``environment 'CartPole-v1' (number 0)``, or without the id where there is none.

    :param env: the environment
    :param number: its number among all
    """
    spec = getattr(env, "spec", None)
    return f"environment number {number}" if spec is None else f"environment {spec.id!r} (number {number})"


def _problem(result: Any) -> str:
    """Tell what keeps ``result`` from being what a step returns; "" for nothing."""
    if not isinstance(result, (tuple, list)) or len(result) != 5:
        old = ", the interface of old Gym," if isinstance(result, (tuple, list)) and len(result) == 4 else ""
        return f"{_count(result)} from step(){old} where five are expected (observation, reward, terminated, truncated, info)"
    try:
        float(result[1])
    except (TypeError, ValueError, RuntimeError):  # torch's
        return f"the reward {shorten(repr(result[1]), 80)} from step() where a number is expected"
    return (
        "" if hasattr(result[4], "items") else f"the info {shorten(repr(result[4]), 80)} from step() where a dict is expected"
    )


def _count(result: Any) -> str:
    return f"{len(result)} values" if isinstance(result, (tuple, list)) else f"one {type(result).__name__}"


def _copy(value: Any) -> Any:
    if type(value) is np.ndarray and value.dtype.kind != "O":
        return value.copy("K")
    return deepcopy(value)


def _end_episode(monitor: Monitor[Any, Any], info: Info) -> None:
    """Note an episode's return, length and time in ``monitor``, its file and ``info``, as ``Monitor.step`` does."""
    total, length = sum(monitor.rewards), len(monitor.rewards)
    monitor.needs_reset = True
    episode = {"r": round(total, 6), "l": length, "t": round(time.time() - monitor.t_start, 6)}
    for key in monitor.info_keywords:
        episode[key] = info[key]
    monitor.episode_returns.append(total)
    monitor.episode_lengths.append(length)
    monitor.episode_times.append(time.time() - monitor.t_start)
    episode.update(monitor.current_reset_info)
    if monitor.results_writer:
        monitor.results_writer.write_row(episode)
    info["episode"] = episode
