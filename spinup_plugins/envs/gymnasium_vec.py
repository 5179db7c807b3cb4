"""Gymnasium's vectorised environments, and EnvPool, as Stable-Baselines3's ``VecEnv``.

Where an episode ends, a ``VecEnv`` returns the next episode's first observation at once, with the last one of the ended
episode in ``info["terminal_observation"]``. Gymnasium's vector environments have three ways (``metadata["autoreset_mode"]``):

``SAME_STEP``  resets at once, too, and puts the last observation into ``infos["final_obs"]``.
``DISABLED``   waits to be told: it is reset here through ``options={"reset_mask": …}``.
``NEXT_STEP``  resets in its next step, whose action it ignores. Gymnasium's own ``SyncVectorEnv`` and ``AsyncVectorEnv`` and
               EnvPool can be reset by part, which is done at once instead. Any other goes its own way: the step that only
               resets is marked ``info["reset_step"] = True``, and the algorithms of this package leave it out of their
               buffers.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from time import time
from typing import Any, TypeAlias

import gymnasium as gym
import numpy as np
from gymnasium import logger
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv
from gymnasium.vector.async_vector_env import AsyncState
from stable_baselines3.common.monitor import Monitor, ResultsWriter
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvObs, VecEnvStepReturn

from spinup_plugins.engine.replay import RESET_STEP
from spinup_plugins.errors import ConfigError, EnvError, WorkerTraceback, nearest

__all__ = ["EnvPoolVecEnv", "GymnasiumVecEnv", "info_rows", "is_envpool", "parts"]

Mask: TypeAlias = np.ndarray[Any, np.dtype[np.bool_]]
Infos: TypeAlias = list[dict[str, Any]]


def is_envpool(env: Any) -> bool:
    """Whether ``env`` was made by EnvPool, without importing EnvPool."""
    return any(base.__module__.startswith("envpool.") for base in type(env).__mro__)


def info_rows(infos: Mapping[str, Any] | list[dict[str, Any]], n: int) -> Infos:
    """Turn a vector environment's infos, one dict of arrays, into one dict for each environment.

    :param infos: ``{"x": (n, …), "_x": (n,) bool}``: ``_x`` tells which environments gave an ``x``, all of them without it;
        what has no entry for each environment is everybody's. Or n dicts already, as of ``DictInfoToList``
    :param n: number of environments
    """
    if isinstance(infos, list):
        return [dict(info) for info in infos]
    rows: Infos = [{} for _ in range(n)]
    for key, values in infos.items():
        if key.startswith("_") and key[1:] in infos:
            continue
        if isinstance(values, Mapping):
            values = info_rows(values, n)
        elif np.ndim(values) == 0 or len(values) != n:
            values = [values] * n
        present = infos.get(f"_{key}")
        for index in range(n) if present is None else np.flatnonzero(present).tolist():
            rows[index][key] = values[index]
    return rows


class GymnasiumVecEnv(VecEnv):
    """A Gymnasium ``VectorEnv`` as a ``VecEnv``, with every episode's return and length in ``info["episode"]``.

    :param env: the vector environment
    :param autoreset_mode: for one whose metadata do not tell: ``"NextStep"``, ``"SameStep"`` or ``"Disabled"``
    :param monitor_dir: folder for ``<i>.monitor.csv``, one for each environment; None writes no file
    :raises ConfigError: the autoreset mode is not known
    """

    def __init__(
        self,
        env: VectorEnv[Any, Any, Any],
        *,
        autoreset_mode: str | AutoresetMode | None = None,
        monitor_dir: str | Path | None = None,
    ) -> None:
        self.env = env
        self.mode = _autoreset_mode(env, autoreset_mode)
        self._stepped: Any = None  # what a step returned that nobody has waited for yet
        self._waiting = False
        self._errors: _Errors | None = None
        if isinstance(env.unwrapped, AsyncVectorEnv):
            env.unwrapped.error_queue = self._errors = _Errors(env.unwrapped.error_queue)  # type: ignore[assignment]
        super().__init__(env.num_envs, env.single_observation_space, env.single_action_space)
        self.reset_steps = self.mode is AutoresetMode.NEXT_STEP and not self._resets_by_part()
        """Whether steps that only reset an environment come as steps of their own, marked in their info."""
        self.reset_steps_known = False
        """Whether whoever trains on it leaves these steps out."""
        base = env.unwrapped
        #: an AsyncVectorEnv without shared memory resets in its next step even what has been reset since
        self._resets_again = isinstance(base, AsyncVectorEnv) and not base.shared_memory
        self._ended: Mask = np.zeros(self.num_envs, dtype=bool)
        self._returns = np.zeros(self.num_envs)
        self._lengths = np.zeros(self.num_envs, dtype=np.int64)
        self._actions: Any = None
        self._began = time()
        self._writers = [] if monitor_dir is None else [self._writer(Path(monitor_dir), i) for i in range(self.num_envs)]

    def _writer(self, folder: Path, index: int) -> ResultsWriter:
        return ResultsWriter(str(folder / str(index)), {"t_start": self._began, "env_id": str(_id(self.env))})

    def _resets_by_part(self) -> bool:
        """Whether ``options={"reset_mask": …}`` is known to be heeded, and to clear the pending reset of ``NEXT_STEP``.

        A wrapper around the environment may keep statistics of whole batches, and an ``AsyncVectorEnv`` without shared
        memory does not clear it.
        """
        return type(self.env) is SyncVectorEnv or (type(self.env) is AsyncVectorEnv and self.env.shared_memory)

    # --- stepping ----------------------------------------------------------------------------------------------------

    def reset(self) -> VecEnvObs:
        """Begin a new episode in every environment; seeds and options given before are used once."""
        self._returns[:] = self._lengths[:] = 0
        self._settle()
        self._stepped, self._waiting = None, False
        if not self._resets_again:
            self._ended[:] = False
        with self._named_errors():
            observations, infos = self._reset_all(_common(self._options))
        self.reset_infos = self._rows(infos)
        self._reset_seeds()
        self._reset_options()
        copied: VecEnvObs = _copied(observations)
        return copied

    def _reset_all(self, options: dict[str, Any] | None) -> tuple[Any, Mapping[str, Any]]:
        seeds: Any = None
        if self._seeds[0] is not None:
            # A list of seeds is an extension that environments of other make need not have.
            seeds = list(self._seeds) if isinstance(self.env.unwrapped, (SyncVectorEnv, AsyncVectorEnv)) else self._seeds[0]
        return self.env.reset(seed=seeds, options=options)

    def step_async(self, actions: Any) -> None:
        """Begin a step; worker processes of an ``AsyncVectorEnv`` take it while the caller goes on.

        :param actions: (N, …)
        """
        self._actions, self._waiting, self._stepped = actions, True, None
        if type(self.env) is AsyncVectorEnv:
            self.env.step_async(actions)

    def _settle(self) -> None:
        """Wait for a step that is under way, so that worker processes can be asked something else."""
        if self._waiting and self._stepped is None and type(self.env) is AsyncVectorEnv:
            self._waiting = False  # should it fail
            with self._named_errors():
                self._stepped = self.env.step_wait()
            self._waiting = True

    def step_wait(self) -> VecEnvStepReturn:
        """Finish the step.

        :raises EnvError: an environment in a worker process raised an exception, or one broke its autoreset mode's promise
        """
        self._settle()
        stepped, self._stepped, self._waiting = self._stepped, None, False
        if stepped is None:
            stepped = self.env.step(self._actions)
        observations, rewards, terminated, truncated = _copied(stepped[0]), *map(np.asarray, stepped[1:4])
        infos = self._rows(stepped[4])
        dones: Mask = terminated | truncated
        resetting = self._ended if self.reset_steps else None
        for index in range(self.num_envs):
            infos[index]["TimeLimit.truncated"] = bool(truncated[index] and not terminated[index])
        self._count(rewards, dones, infos, resetting)
        ended = np.flatnonzero(dones).tolist()
        if ended and self.mode is AutoresetMode.SAME_STEP:
            self._final_infos(ended, infos)
        elif ended:
            for index in ended:
                infos[index]["terminal_observation"] = _row(observations, index)
            if not self.reset_steps:
                self._reset_part(dones, observations)
        if resetting is not None:
            for index in np.flatnonzero(resetting).tolist():
                self.reset_infos[index] = {key: value for key, value in infos[index].items() if key not in _OURS}
                # An episode of its own, so that whatever lies between here and a buffer begins the next one afresh.
                infos[index] = {
                    RESET_STEP: True,
                    "TimeLimit.truncated": False,
                    "terminal_observation": _row(observations, index),
                }
            self._tell_of_resets(resetting)
            self._ended = dones.copy()
            dones = dones | resetting
        return observations, rewards.astype(np.float32), dones, infos

    @contextmanager
    def _named_errors(self) -> Iterator[None]:
        """Say which environment raised what an ``AsyncVectorEnv`` raises, instead of printing where it came from."""
        if self._errors is None:
            yield
            return
        self._errors.forget()
        level, logger.min_level = logger.min_level, logger.ERROR + 1
        try:
            yield
        except Exception as error:
            if self._errors.last is None:
                raise
            index, kind, _, trace = self._errors.last
            message = " ".join(f"{self._name(index)} failed: {kind.__name__}: {error}".split())
            raise EnvError(message) from WorkerTraceback(trace)
        finally:
            logger.min_level = level

    def _tell_of_resets(self, resetting: Mask) -> None:
        """Warn once, at the first of them, who trains without knowing of steps that only reset an environment."""
        if resetting.any() and not self.reset_steps_known:
            self.reset_steps_known = True
            warnings.warn(
                f"{self._name()} resets in steps of their own, marked info['reset_step']: algorithms other than"
                " spinup_plugins' take them for episodes of one step without reward. Autoreset mode 'SameStep' has none",
                stacklevel=4,
            )

    def _rows(self, infos: Mapping[str, Any]) -> Infos:
        return info_rows(infos, self.num_envs)

    def _final_infos(self, ended: Sequence[int], infos: Infos) -> None:
        """Part what Gymnasium mixes: the info of the step that ended an episode, and that of the reset after it."""
        for index in ended:
            reset_info = infos[index]
            ours = {key: reset_info.pop(key) for key in _OURS if key in reset_info}
            final = reset_info.pop("final_obs", reset_info.pop("final_observation", None))
            if final is None:
                raise EnvError(
                    f"{self._name(index)} ended an episode without its last observation in infos['final_obs'], which"
                    f" autoreset mode {self.mode.value!r} promises"
                )
            last = dict(reset_info.pop("final_info", {}))
            infos[index] = {**last, **ours, "terminal_observation": _row(final, ...)}
            self.reset_infos[index] = reset_info

    def _reset_part(self, dones: Mask, observations: Any) -> None:
        """Begin a new episode where one has just ended; ``observations`` gets its first observation in place."""
        fresh, infos = self.env.reset(options={"reset_mask": dones.copy()})
        rows = self._rows(infos)
        for now, new in zip(parts(observations), parts(fresh), strict=True):
            new = np.asarray(new)
            if not np.array_equal(now[~dones], new[~dones], equal_nan=now.dtype.kind == "f"):
                raise EnvError(
                    f"{self._name()} reset all environments where options['reset_mask'] asked for some, or its observations"
                    " change without a step"
                )
            now[dones] = new[dones]
        for index in np.flatnonzero(dones).tolist():
            self.reset_infos[index] = rows[index]

    def _count(self, rewards: Any, dones: Mask, infos: Infos, resetting: Mask | None) -> None:
        """Sum up returns and lengths; where an episode has ended, tell them as ``Monitor`` does."""
        self._returns += rewards
        self._lengths += 1
        if resetting is not None:
            self._returns[resetting] = self._lengths[resetting] = 0
        for index in np.flatnonzero(dones).tolist():
            episode = {
                "r": round(float(self._returns[index]), 6),
                "l": int(self._lengths[index]),
                "t": round(time() - self._began, 6),
            }
            if self._writers:
                self._writers[index].write_row(episode)
            infos[index]["episode"] = episode
            self._returns[index] = self._lengths[index] = 0

    def close(self) -> None:
        """Close the environments and the monitors' files; safe to call twice, and after a worker process has died."""
        for writer in self._writers:
            writer.close()
        base = self.env.unwrapped
        if isinstance(base, AsyncVectorEnv) and _lost(base, self._waiting):
            for process in base.processes:
                process.kill()
                process.join()
            base.closed = self.env.closed = True  # or its finaliser would wait for answers that never come
            return
        with suppress(EnvError):
            self._settle()
        self._waiting = False
        self.env.close()

    # --- attributes --------------------------------------------------------------------------------------------------

    def _call(self, method: str, args: Sequence[Any], kwargs: Mapping[str, Any], indices: VecEnvIndices) -> list[Any] | None:
        """Call a method of every wanted environment; None where the vector environment is not made of several."""
        wanted = list(self._get_indices(indices))
        base = self.env.unwrapped
        if isinstance(base, SyncVectorEnv):
            return [base.envs[index].get_wrapper_attr(method)(*args, **kwargs) for index in wanted]
        if isinstance(base, AsyncVectorEnv):
            self._settle()
            # VectorEnv.call reaches every environment, and a method may change the one it is called on.
            for index in wanted:
                base.parent_pipes[index].send(("_call", (method, tuple(args), dict(kwargs))))
            answers = [base.parent_pipes[index].recv() for index in wanted]
            with self._named_errors():
                base._raise_if_errors([*(good for _, good in answers), *[True] * (self.num_envs - len(wanted))])
            return [result for result, _ in answers]
        return None

    def _require(self, name: str, indices: VecEnvIndices) -> None:
        """Raise ``AttributeError`` here: Gymnasium ends a worker process in which it is raised."""
        found = self._call("has_wrapper_attr", (name,), {}, indices)
        if found is not None and not all(found):
            raise AttributeError(f"{self._name()} has no attribute {name!r}")

    def has_attr(self, attr_name: str) -> bool:
        """Whether every environment has an attribute.

        :param attr_name: its name
        """
        found = self._call("has_wrapper_attr", (attr_name,), {}, None)
        return hasattr(self.env, attr_name) if found is None else all(found)

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """Return an attribute of the environments, or the vector environment's own where it is not made of several.

        :param attr_name: its name
        :param indices: which environments
        :raises AttributeError: there is none of that name
        """
        self._require(attr_name, indices)
        values = self._call("get_wrapper_attr", (attr_name,), {}, indices)
        return [getattr(self.env, attr_name) for _ in self._get_indices(indices)] if values is None else values

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Set an attribute of the environments, or the vector environment's own where it is not made of several.

        :param attr_name: its name
        :param value: its value
        :param indices: which environments
        """
        if self._call("set_wrapper_attr", (attr_name, value), {}, indices) is None:
            setattr(self.env, attr_name, value)

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> list[Any]:
        """Call a method of the environments, or once the vector environment's own where it is not made of several.

        :param method_name: its name
        :param method_args: its arguments
        :param indices: which environments
        :param method_kwargs: its keyword arguments
        :return: what each returned
        :raises AttributeError: there is none of that name
        """
        self._require(method_name, indices)
        results = self._call(method_name, method_args, method_kwargs, indices)
        if results is None:
            result = getattr(self.env, method_name)(*method_args, **method_kwargs)
            return [result for _ in self._get_indices(indices)]
        return results

    def env_is_wrapped(
        self, wrapper_class: type[gym.Wrapper[Any, Any, Any, Any]], indices: VecEnvIndices = None
    ) -> list[bool]:
        """Whether the environments are wrapped; in a ``Monitor`` they are in effect.

        :param wrapper_class: class of the wrapper
        :param indices: which environments
        """
        from stable_baselines3.common.env_util import is_wrapped

        wanted = list(self._get_indices(indices))
        base = self.env.unwrapped
        if wrapper_class is Monitor:
            return [True] * len(wanted)
        return [isinstance(base, SyncVectorEnv) and is_wrapped(base.envs[index], wrapper_class) for index in wanted]

    def get_images(self) -> Sequence[Any]:
        """Return an image of each environment, None where there is none."""
        images = self.env.render()
        return [None] * self.num_envs if images is None else list(images)

    def _name(self, index: int | None = None) -> str:
        number = "" if index is None else f" (number {index})"
        return f"environment {_id(self.env) or type(self.env.unwrapped).__name__!r}{number}"


class EnvPoolVecEnv(GymnasiumVecEnv):
    """EnvPool's environments as a ``VecEnv``.

    EnvPool takes its seed when it makes the environments and never again: to seed them is to make them anew.

    :param env: what ``envpool.make_gymnasium`` returns, stepping all its environments at once
    :param make: makes the same environments from a seed; without it they keep the seed that they have
    :param monitor_dir: folder for ``<i>.monitor.csv``, one for each environment; None writes no file
    :raises ConfigError: it returns the environments that are ready first (``batch_size`` below ``num_envs``)
    """

    def __init__(self, env: Any, *, make: Callable[[int], Any] | None = None, monitor_dir: str | Path | None = None) -> None:
        if env.is_async:
            config = env.config
            raise ConfigError(
                f"EnvPool with batch_size={config['batch_size']} of {config['num_envs']} environments returns a part of them"
                " in each step: leave batch_size out"
            )
        self.make = make
        self._unused = True
        _read_spaces(env)
        super().__init__(env, autoreset_mode=AutoresetMode.NEXT_STEP, monitor_dir=monitor_dir)

    def _resets_by_part(self) -> bool:
        return True

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        """Seed the environments at the next reset; where they cannot be made anew, warn that they keep their seed.

        :param seed: None draws one
        """
        made_with = self.env.config["seed"]  # type: ignore[attr-defined]
        if self.make is None and seed != made_with:
            warnings.warn(
                f"EnvPool fixes its seed when it makes the environments, here seed={made_with}: seed={seed} is not heeded",
                stacklevel=2,
            )
            return [None] * self.num_envs
        return super().seed(seed)

    def _reset_all(self, options: dict[str, Any] | None) -> tuple[Any, Mapping[str, Any]]:
        seed = self._seeds[0]
        if self.make is not None and seed is not None:
            seed %= 2**31  # EnvPool's are of 32 bits with a sign
            if not (self._unused and seed == self.env.config["seed"]):  # type: ignore[attr-defined]
                self.env.close()
                self.env = self.make(seed)
                _read_spaces(self.env)
        self._unused = False
        return self.env.reset()

    def _rows(self, infos: Mapping[str, Any]) -> Infos:
        return super()._rows({key: value for key, value in infos.items() if key not in ("env_id", "players")})

    def _reset_part(self, dones: Mask, observations: Any) -> None:
        fresh, infos = self.env.reset(np.flatnonzero(dones).astype(np.int32))  # type: ignore[call-arg,arg-type]
        order = infos.pop("env_id")
        for now, new in zip(parts(observations), parts(fresh), strict=True):
            now[order] = new
        for index, row in zip(order.tolist(), info_rows(infos, len(order)), strict=True):
            self.reset_infos[index] = row

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """Return an attribute of EnvPool's object; ``spec`` is None, since EnvPool's is not Gymnasium's.

        :param attr_name: its name
        :param indices: which environments
        """
        if attr_name == "spec":
            return [None for _ in self._get_indices(indices)]
        return super().get_attr(attr_name, indices)

    def get_images(self) -> Sequence[Any]:
        """Return an image of each environment, None where there is none."""
        images = self.env.render(env_ids=np.arange(self.num_envs))  # type: ignore[call-arg]
        return [None] * self.num_envs if images is None else list(images)


def _read_spaces(env: Any) -> None:
    """Let EnvPool find out its spaces, which it keeps, without its warnings of bounds rounded to single precision."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        _ = env.single_observation_space, env.single_action_space


_OURS = ("TimeLimit.truncated", "episode", RESET_STEP, "terminal_observation")
"""Keys of an info that belong to the step, whatever the environment itself put there."""


class _Errors:
    """An ``AsyncVectorEnv``'s queue of its workers' errors, of which it remembers the last.

    :param queue: the queue
    """

    def __init__(self, queue: Any) -> None:
        self.queue = queue
        self.last: tuple[int, type[BaseException], Any, str] | None = None

    def forget(self) -> None:
        """Forget the last error."""
        self.last = None

    def get(self) -> Any:
        """Return the next error: environment, type, arguments and traceback."""
        self.last = self.queue.get()
        return self.last


def _autoreset_mode(env: VectorEnv[Any, Any, Any], given: str | AutoresetMode | None) -> AutoresetMode:
    known = [mode.value for mode in AutoresetMode]
    mode = given if given is not None else (env.metadata or {}).get("autoreset_mode")
    if isinstance(mode, AutoresetMode):
        return mode
    if mode is None:
        raise ConfigError(
            f"{type(env.unwrapped).__name__} does not tell its metadata['autoreset_mode']: give it, one of"
            f" {', '.join(map(repr, known))}, to as_vec_env(…, autoreset_mode=…)"
        )
    if mode not in known:
        raise ConfigError(
            f"autoreset mode {mode!r} of {type(env.unwrapped).__name__} is not one of {', '.join(map(repr, known))}"
            f"{nearest(str(mode), known)}"
        )
    return AutoresetMode(mode)


def _lost(env: AsyncVectorEnv[Any, Any], waiting: bool) -> bool:
    """Whether a worker process is gone that was not shut down for an error of its environment.

    :param waiting: whether a step is under way, so that answers are due
    """
    unanswered = env._state is not AsyncState.DEFAULT and not waiting
    workers = zip(env.parent_pipes, env.processes, strict=True)
    return unanswered or any(pipe is not None and not process.is_alive() for pipe, process in workers)


def _id(env: Any) -> str | None:
    return getattr(getattr(env, "spec", None), "id", None)


def _common(options: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """Return the options of all environments, which a vector environment takes but once.

    :raises ConfigError: they differ
    """
    if any(each != options[0] for each in options):
        raise ConfigError("a Gymnasium VectorEnv takes the same reset options for all its environments")
    return dict(options[0]) or None


def _copied(observations: Any) -> Any:
    """Copy, because the environment may write its next observations into the same memory."""
    if isinstance(observations, Mapping):
        return {key: np.array(value) for key, value in observations.items()}
    return np.array(observations)


def parts(observations: Any) -> Iterator[Any]:
    """Iterate over the arrays of observations: those of a Dict, in its order, or the only one."""
    return iter(observations.values() if isinstance(observations, Mapping) else (observations,))


def _row(observations: Any, index: Any) -> Any:
    """Return a copy of one environment's observation."""
    if isinstance(observations, Mapping):
        return {key: np.array(np.asarray(value)[index]) for key, value in observations.items()}
    return np.array(np.asarray(observations)[index])
