"""Environments stepped by worker processes, which put what they observe into shared memory."""

import multiprocessing
import os
import pickle
import signal
import sys
import time
import warnings
import weakref
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import pairwise
from multiprocessing import forkserver
from typing import Any

import cloudpickle  # type: ignore[import-untyped]
import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvObs, VecEnvStepReturn
from stable_baselines3.common.vec_env.util import dict_to_obs, obs_space_info

from spinup_plugins.envs.lean import Array, Info
from spinup_plugins.envs.worker import Channel, EnvFn, File, Layout, Memory, Schema, names, serve
from spinup_plugins.errors import ConfigError, EnvError, WorkerTraceback

__all__ = ["SharedMemoryVecEnv", "usable_cores"]

PATIENCE = 5.0
"""Seconds that the workers have to close their environments before they are killed."""


class _EnvAttributeError(EnvError, AttributeError):
    """An environment lacks an attribute: also the ``AttributeError`` that Stable-Baselines3's callers expect."""


def usable_cores() -> int:
    """Return the number of processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


class _Worker:
    """A process, the environments in it, and the parent's end of the pipe to it.

    :param context: starts processes
    :param file: the memory to share with them
    :param env_fns: functions that make the environments
    :param first: number of the first of them
    """

    def __init__(self, context: Any, file: File, env_fns: Sequence[EnvFn], first: int) -> None:
        self.context, self.file, self.first, self.stop = context, file, first, first + len(env_fns)
        self.payload: Any = env_fns if context.get_start_method() == "fork" else _pickled(env_fns, first)
        self.ids: list[str | None] = [None] * len(env_fns)
        self.starts = 0
        self.fault: str | None = "was never started"
        self.whole = True  # no request was interrupted halfway
        self.schema: Schema | None = None
        self.stepped: Any = None  # the answer to a step that is still to be waited for, if it has come
        self.asked = -1  # number of the last request; 0 gave it the memory

    def start(self) -> None:
        """Start the process, again if it was lost."""
        theirs, outgoing = self.context.Pipe(duplex=False)
        incoming, their_outgoing = self.context.Pipe(duplex=False)
        self.channel = Channel(incoming, outgoing)
        arguments = (theirs, their_outgoing, self.file, self.payload, self.first, self.stop, self.starts > 0)
        # A daemon, since an interpreter that ends without closing would wait for others.
        self.process = self.context.Process(target=serve, args=arguments, daemon=True)
        try:
            self.process.start()
        except BaseException:
            self.channel.close()
            raise
        finally:
            theirs.close()
            their_outgoing.close()
        self.starts += 1
        self.schema, self.stepped, self.fault, self.whole, self.asked = None, None, None, True, -1

    def send(self, number: int, request: bytes) -> None:
        """Send a request; if there is nobody to receive it, :meth:`answer` says so.

        :param number: number of the request
        :param request: the request
        """
        if self.fault is None and not self.whole:  # Ctrl-C came halfway through an earlier message
            self.lose()
        if self.fault is None:
            self.whole = False
            try:
                self.channel.send(request)
            except OSError:
                self.lose()
            self.whole = True
        self.asked = number

    def answer(self, number: int) -> Any:
        """Wait for the answer to a request, past those to earlier ones that Ctrl-C left behind.

        :param number: number of the request
        :return: the answer, or an :class:`EnvError` to be raised
        """
        try:
            while self.fault is None:
                # Something that the worker started may keep the pipe open after its end.
                while not self.channel.waits(1.0):
                    if not self.process.is_alive() and not self.channel.waits(0.0):
                        raise EOFError
                answered, good, result = pickle.loads(self.channel.receive())
                if answered == number:
                    return result if good else _raised(*result)
        except (EOFError, OSError):
            self.lose()
        return EnvError(self.fault)

    def lose(self) -> None:
        """Note that the process is of no use any more; end it if it still runs."""
        self.process.join(1.0)
        code = self.process.exitcode
        if code is None:
            self.process.kill()
            self.process.join()
            how = "stopped answering"
        else:
            how = f"was killed by {_signal_name(-code)}" if code < 0 else f"exited with status {code}"
        self.channel.close()
        self.whole = True
        self.fault = f"the process of {names(self.ids, self.first)} {how}; reset() starts another"


def _pickled(env_fns: Sequence[EnvFn], first: int) -> bytes:
    try:
        return cloudpickle.dumps(list(env_fns))  # type: ignore[no-any-return]
    except Exception as error:
        name, why = names([None] * len(env_fns), first), " ".join(str(error).split())
        raise ConfigError(f"{name} cannot be made in another process: {why}") from error


def _raised(message: str, text: str, missing: bool) -> EnvError:
    error = (_EnvAttributeError if missing else EnvError)(message)
    error.__cause__ = WorkerTraceback(text)
    return error


def _signal_name(number: int) -> str:
    return signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"


def _preload() -> None:
    """Let the forkserver import what workers run: each would take a second or two and memory of its own for it.

    Whoever has told the forkserver what to import is heeded instead, and one that runs already is as it is.
    """
    server = getattr(forkserver, "_forkserver", None)
    if getattr(server, "_preload_modules", None) == ["__main__"]:
        forkserver.set_forkserver_preload(["__main__", serve.__module__])


def _shut(workers: list[_Worker], file: File, owner: int) -> None:
    """End all workers, also those that do not answer, and leave nothing behind."""
    if os.getpid() != owner:  # in a fork, whose copies these are
        return
    running = [worker for worker in workers if worker.fault is None]
    for worker in running:
        if worker.whole and worker.asked >= 0:
            with suppress(OSError):
                worker.channel.send(pickle.dumps((0, "close", ())))
        worker.channel.close()  # ends the wait of a worker whose answer nobody reads
    deadline = time.monotonic() + PATIENCE
    for worker in running:
        worker.process.join(max(0.0, deadline - time.monotonic()))
    for end in ("terminate", "kill"):
        stubborn = [worker.process for worker in running if worker.process.exitcode is None]
        for process in stubborn:
            getattr(process, end)()
        for process in stubborn:
            process.join(1.0)
    for worker in workers:
        if worker.starts:
            with suppress(ValueError):  # not even killing ended it
                worker.process.close()
    workers.clear()
    file.close()


class SharedMemoryVecEnv(VecEnv):
    """Environments stepped by worker processes, several by each, with the results of ``SubprocVecEnv`` in less time.

    Observations, rewards, ends of episodes and actions go through shared memory; what a step returns is a copy that later
    steps do not write to. Infos and everything else go through pipes. Between :meth:`step_async`, which returns at once,
    and :meth:`step_wait` the caller may work while the environments step.

    What an environment raises arrives as :class:`EnvError` with the worker's traceback as its cause, where an attribute is
    missing as an ``AttributeError`` as well. A process that died is an :class:`EnvError`, too. Either way :meth:`reset`
    makes everything usable again, with new processes for lost ones: their environments are new, seeded from
    :meth:`seed`'s if it was ever called, and their monitors go on with their files. Workers end with their parent, however
    that ends.

    :param env_fns: functions that make an environment each; cloudpickle must be able to pickle them unless
        ``start_method`` is "fork"
    :param start_method: how ``multiprocessing`` starts the workers: by default "forkserver", or "spawn" where there is none
    :param n_workers: number of processes; by default one per core, but no more than environments
    :raises EnvError: an environment could not be made
    :raises ConfigError: an argument is not valid, or this is Windows
    """

    def __init__(self, env_fns: list[EnvFn], start_method: str | None = None, n_workers: int | None = None) -> None:
        n_envs = len(env_fns)
        if sys.platform == "win32":
            raise ConfigError("SharedMemoryVecEnv needs Unix; use LeanVecEnv, or SubprocVecEnv of Stable-Baselines3")
        methods = multiprocessing.get_all_start_methods()
        if start_method is None:
            start_method = "forkserver" if "forkserver" in methods else "spawn"
        if start_method not in methods:
            raise ConfigError(f"start_method must be one of {', '.join(map(repr, methods))}, not {start_method!r}")
        if n_workers is None:
            n_workers = max(1, min(n_envs, usable_cores()))
        if not 1 <= n_workers <= n_envs:
            raise ConfigError(f"n_workers must be between 1 and the number of environments, {n_envs}, not {n_workers}")
        self.num_envs = n_envs
        self.waiting = False
        self.closed = False
        self._number = 0  # of the last request
        self._step_number = 0  # of the last that was a step
        self._fresh = False  # what a worker said of infos to come was lost
        self._seeded: list[int] | None = None
        self._workers: list[_Worker] = []
        file = File()
        self._finalizer = weakref.finalize(self, _shut, self._workers, file, os.getpid())
        context = multiprocessing.get_context(start_method)
        if start_method == "forkserver":
            _preload()
        try:
            bounds = [n_envs * number // n_workers for number in range(n_workers + 1)]
            for start, stop in pairwise(bounds):
                self._workers.append(_Worker(context, file, env_fns[start:stop], start))
            self._worker_of = [worker for worker in self._workers for _ in range(worker.first, worker.stop)]
            for worker in self._workers:
                worker.start()
            seen = [self._greeting(worker) for worker in self._workers]
            observation_space, action_space = seen[0]
            action_bytes = 8 * int(np.prod(action_space.shape or ()))
            self._memory = Memory(file, n_envs, _layout(observation_space), action_bytes)
            for worker, (space, _) in zip(self._workers, seen, strict=True):
                self._share(worker, space)
            super().__init__(n_envs, observation_space, action_space)
        except BaseException:
            self.close()
            raise

    # --- stepping ----------------------------------------------------------------------------------------------------

    def step_async(self, actions: Any) -> None:
        """Let the environments begin to step, and return.

        :param actions: (N, …)
        """
        self._check_open()
        if len(actions) != self.num_envs:
            raise ValueError(f"{len(actions)} actions were given for {self.num_envs} environments")
        fresh, self._fresh = self._fresh or self.waiting, False
        self._number += 1
        self._step_number, self.waiting = self._number, True
        memory = self._memory
        shared = type(actions) is np.ndarray and actions.dtype.kind in "fiub" and actions.nbytes <= memory.actions.nbytes
        request = b""
        if shared:
            how = (actions.dtype.str, actions.shape)
            memory.actions_as(*how)[...] = actions
            request = pickle.dumps((self._number, "step", (how, fresh)))
        for worker in self._workers:
            worker.stepped = None
            if not shared:
                own = actions[worker.first : worker.stop]
                own = own if isinstance(own, np.ndarray) else list(own)
                request = pickle.dumps((self._number, "step", cloudpickle.dumps((own, fresh))))
            worker.send(self._number, request)

    def step_wait(self) -> VecEnvStepReturn:
        """Wait until the environments have stepped.

        :raises EnvError: an environment raised an exception, returned what does not fit its space, or lost its process
        """
        self._check_open()
        if not self.waiting:
            raise RuntimeError("step_wait() was called without step_async()")
        self._settle()
        answers = [worker.stepped for worker in self._workers]
        self.waiting = False
        for answer in answers:
            if isinstance(answer, EnvError):
                self._fresh = True
                raise answer
        infos: list[Info] = []
        for worker, (schema, others, data, resets) in zip(self._workers, answers, strict=True):
            if schema is not None:
                worker.schema = Schema(*schema)
            n = worker.stop - worker.first
            packed = worker.schema.unpack(data, n - len(others)) if data and worker.schema is not None else iter(())
            infos.extend(packed if not others else (others[at] if at in others else next(packed) for at in range(n)))
            for at, info in resets.items():
                self.reset_infos[worker.first + at] = info
        return self._observed(), self._memory.rewards.copy(), self._memory.dones.copy(), infos

    def reset(self) -> VecEnvObs:
        """Reset every environment with the seeds and options given since the last time; start lost processes again.

        :raises EnvError: an environment failed
        """
        self._check_open()
        self.waiting, self._fresh = False, True
        lost = [worker for worker in self._workers if worker.fault is not None or not worker.whole]
        for worker in lost:
            if worker.fault is None:  # Ctrl-C came halfway through a message
                worker.lose()
            worker.process.close()
            worker.start()
        for worker in lost:
            self._share(worker, self._greeting(worker)[0])
        requests: dict[_Worker, tuple[Any, ...]] = {}
        for worker in self._workers:
            numbers = range(worker.first, worker.stop)
            seeds = [self._new_seed(number, worker) if worker in lost else self._seeds[number] for number in numbers]
            requests[worker] = (seeds, [self._options[number] for number in numbers])
        self.reset_infos = [info for infos in self._call("reset", requests) for info in infos]
        self._reset_seeds()
        self._reset_options()
        return self._observed()

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        """Set the seeds that the next reset uses.

        :param seed: the first environment's; None draws one
        :return: one per environment
        """
        seeds = super().seed(seed)
        self._seeded = [each for each in seeds if each is not None]
        return seeds

    def _new_seed(self, number: int, worker: _Worker) -> int | None:
        """Return the seed of an environment in a process that was started again."""
        if self._seeds[number] is not None or self._seeded is None:
            return self._seeds[number]
        # The first seed would repeat the episodes that led to the process's end.
        return int(np.random.SeedSequence([self._seeded[number], worker.starts]).generate_state(1)[0])

    def close(self) -> None:
        """Close the environments and end the processes; those that do not answer for some seconds are killed."""
        self.closed = True
        self._finalizer()
        vars(self).pop("_memory", None)  # a traceback may keep this object for long

    def _observed(self) -> VecEnvObs:
        return dict_to_obs(self.observation_space, {key: rows.copy() for key, rows in self._memory.observations.items()})

    # --- environments' attributes ------------------------------------------------------------------------------------

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """Return an attribute of environments.

        :param attr_name: its name
        :param indices: of which environments; None for all
        :raises AttributeError: an environment has no such attribute
        :raises EnvError: an environment failed, or its process died
        """
        return self._each("get_attr", indices, attr_name)

    def has_attr(self, attr_name: str) -> bool:
        """Return whether all environments have an attribute.

        :param attr_name: its name
        """
        return all(self._each("has_attr", None, attr_name))

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Set an attribute of environments, or of the outermost wrapper around each.

        :param attr_name: its name
        :param value: its value
        :param indices: of which environments; None for all
        """
        self._each("set_attr", indices, attr_name, value)

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> list[Any]:
        """Call a method of environments.

        :param method_name: its name
        :param method_args: positional arguments
        :param indices: of which environments; None for all
        :param method_kwargs: keyword arguments
        :raises EnvError: an environment failed, or its process died
        """
        return self._each("env_method", indices, method_name, method_args, method_kwargs)

    def env_is_wrapped(
        self, wrapper_class: type[gym.Wrapper[Any, Any, Any, Any]], indices: VecEnvIndices = None
    ) -> list[bool]:
        """Return whether environments are wrapped in a wrapper.

        :param wrapper_class: its class
        :param indices: which environments; None for all
        """
        return self._each("env_is_wrapped", indices, wrapper_class)

    def get_images(self) -> Sequence[Array | None]:
        """Return an image of each environment, or None where their render mode is another than "rgb_array"."""
        if self.render_mode != "rgb_array":
            warnings.warn(f"images need render_mode='rgb_array', these environments have {self.render_mode!r}", stacklevel=2)
            return [None] * self.num_envs
        return self._each("render", None)

    # --- requests ----------------------------------------------------------------------------------------------------

    def _each(self, command: str, indices: VecEnvIndices, *arguments: Any) -> list[Any]:
        """Ask about some environments; return one answer for each."""
        self._check_open()
        numbers = [range(self.num_envs)[number] for number in self._get_indices(indices)]
        asked: dict[_Worker, list[int]] = {}
        for number in numbers:
            worker = self._worker_of[number]
            asked.setdefault(worker, []).append(number - worker.first)
        answers = self._call(command, {worker: (at, *arguments) for worker, at in asked.items()})
        by_worker = {worker: iter(answer) for worker, answer in zip(asked, answers, strict=True)}
        return [next(by_worker[self._worker_of[number]]) for number in numbers]

    def _call(self, command: str, arguments: Mapping[_Worker, tuple[Any, ...]]) -> list[Any]:
        """Send some workers a request; return their answers or raise the first fault among them."""
        if self.waiting:
            self._settle()
        self._number += 1
        pickled = [cloudpickle.dumps(own) for own in arguments.values()]
        for worker, own in zip(arguments, pickled, strict=True):
            worker.send(self._number, pickle.dumps((self._number, command, own)))
        answers = [worker.answer(self._number) for worker in arguments]
        for answer in answers:
            if isinstance(answer, EnvError):
                raise answer
        return answers

    def _settle(self) -> None:
        """Wait until all workers have stepped, and keep their answers: Ctrl-C may come between two."""
        for worker in self._workers:
            if worker.stepped is None and worker.asked < self._step_number:
                worker.stepped = EnvError("the step was interrupted before all environments began it; reset() begins anew")
            elif worker.stepped is None:
                worker.stepped = worker.answer(self._step_number)

    def _greeting(self, worker: _Worker) -> tuple[spaces.Space[Any], spaces.Space[Any]]:
        """Wait until a worker has made its environments; return their spaces."""
        answer = worker.answer(0)
        if isinstance(answer, EnvError):
            if worker.fault is None:
                worker.lose()
            raise answer
        observation_space, action_space, worker.ids = answer
        return observation_space, action_space

    def _share(self, worker: _Worker, observation_space: spaces.Space[Any]) -> None:
        """Give a worker the memory, which ``observation_space`` has to fit."""
        memory = self._memory
        if _layout(observation_space) != memory.layout:
            name = names(worker.ids, worker.first)
            raise EnvError(f"{name} has another observation space than environment number 0: {observation_space}")
        worker.send(0, pickle.dumps((memory.n_envs, memory.layout, memory.action_bytes)))

    def _check_open(self) -> None:
        if self.closed:
            raise RuntimeError("this SharedMemoryVecEnv is closed")


def _layout(space: spaces.Space[Any]) -> Layout:
    keys, shapes, dtypes = obs_space_info(space)
    return [(key, tuple(shapes[key]), np.dtype(dtypes[key])) for key in keys]
