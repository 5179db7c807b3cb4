"""Environments stepped by worker processes, which put what they observe into shared memory."""

import json
import mmap
import multiprocessing
import os
import pickle
import select
import signal
import struct
import sys
import tempfile
import threading
import time
import traceback
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from itertools import pairwise
from multiprocessing import connection as mp_connection
from multiprocessing import forkserver, reduction
from typing import Any, TypeAlias

import cloudpickle  # type: ignore[import-untyped]
import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common import monitor
from stable_baselines3.common.env_util import unwrap_wrapper
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvObs, VecEnvStepReturn
from stable_baselines3.common.vec_env.util import dict_to_obs, obs_space_info

from spinup_plugins.envs import lean
from spinup_plugins.envs.lean import Array, Env, Info, LeanVecEnv, Rows, env_name
from spinup_plugins.errors import ConfigError, EnvError

__all__ = ["SharedMemoryVecEnv", "WorkerTraceback", "usable_cores"]

EnvFn: TypeAlias = Callable[[], Env]
Layout: TypeAlias = list[tuple[Any, tuple[int, ...], np.dtype[Any]]]
"""Key, shape and type of each part of what one environment observes."""

PATIENCE = 5.0
"""Seconds that the workers have to close their environments before they are killed."""


class WorkerTraceback(Exception):  # noqa: N818  # not an error of its own
    """Where an exception came from in a worker process: the ``__cause__`` of the error that the parent sees."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


class _EnvAttributeError(EnvError, AttributeError):
    """An environment lacks an attribute: also the ``AttributeError`` that Stable-Baselines3's callers expect."""


def usable_cores() -> int:
    """Return the number of processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


# --- memory ----------------------------------------------------------------------------------------------------------


class _Memory:
    """Memory of several processes, without a name, so that none is left behind however they end.

    ``multiprocessing.shared_memory`` has names, which outlive a killed process. ``RawArray`` has to exist before the
    workers do, who alone know the spaces, and lies in ``/dev/shm``, of which a container often has 64 MB.

    :param file: where the memory is
    :param n_envs: number of environments
    :param layout: what one environment observes
    :param action_bytes: the most that one action takes
    """

    def __init__(self, file: "_File", n_envs: int, layout: Layout, action_bytes: int) -> None:
        self.n_envs, self.layout, self.action_bytes = n_envs, layout, action_bytes
        parts = [*layout, (None, (), np.dtype(np.float32)), (None, (), np.dtype(np.bool_))]
        parts.append((None, (action_bytes,), np.dtype(np.uint8)))
        sizes = [dtype.itemsize * n_envs * int(np.prod(shape)) for _, shape, dtype in parts]
        starts = np.cumsum([0, *(-(-size // 64) * 64 for size in sizes)])  # 64: a cache line
        size = max(int(starts[-1]), 1)
        os.ftruncate(file.descriptor, size)
        buffer = mmap.mmap(file.descriptor, size)
        arrays: list[Array] = [
            np.ndarray((n_envs, *shape), dtype, buffer, int(start))
            for (_, shape, dtype), start in zip(parts, starts[:-1], strict=True)
        ]
        self.rewards, self.dones, self.actions = arrays[-3:]
        self.observations: Rows = {key: rows for (key, *_), rows in zip(layout, arrays, strict=False)}
        self._views: dict[tuple[str, tuple[int, ...]], Array] = {}

    def actions_as(self, dtype: str, shape: tuple[int, ...]) -> Array:
        """Return the room for actions as an array of them, (N, …)."""
        view = self._views.get((dtype, shape))
        if view is None:
            view = self._views[dtype, shape] = np.ndarray(shape, np.dtype(dtype), self.actions.reshape(-1).data)
        return view


class _File:
    """A file in memory without a name; what is given to a process that starts is the same file there."""

    def __init__(self) -> None:
        if sys.platform == "linux":
            self.descriptor = os.memfd_create("spinup-plugins")
        else:
            with tempfile.TemporaryFile() as file:
                self.descriptor = os.dup(file.fileno())

    def __getstate__(self) -> Any:
        return reduction.DupFd(self.descriptor)

    def __setstate__(self, duplicate: Any) -> None:
        self.descriptor = duplicate.detach()

    def close(self) -> None:
        """Close the file; its memory goes with the last array in it."""
        os.close(self.descriptor)


# --- messages --------------------------------------------------------------------------------------------------------


class _Channel:
    """Messages both ways through two pipes: a third of the time that a ``multiprocessing.Pipe`` takes.

    :param incoming: the connection to read from
    :param outgoing: the connection to write to
    """

    def __init__(self, incoming: Any, outgoing: Any) -> None:
        self.incoming, self.outgoing = incoming, outgoing
        self._read = b""  # what has come of messages to be received
        self._poll = select.poll()
        self._poll.register(incoming.fileno(), select.POLLIN)

    def send(self, message: bytes) -> None:
        """Send a message.

        :raises OSError: nobody will read it
        """
        data = memoryview(len(message).to_bytes(8, "little") + message)
        while data:
            data = data[os.write(self.outgoing.fileno(), data) :]

    def receive(self) -> bytes:
        """Return the next message.

        :raises EOFError: the other side is gone
        """
        while len(self._read) < 8 or len(self._read) < (end := 8 + int.from_bytes(self._read[:8], "little")):
            part = os.read(self.incoming.fileno(), 1 << 16)
            if not part:
                raise EOFError
            self._read += part
        message, self._read = self._read[8:end], self._read[end:]
        return message

    def waits(self, seconds: float) -> bool:
        """Wait until there is something to read, but not for longer than ``seconds``; return whether there is."""
        return bool(self._read or self._poll.poll(1000 * seconds))

    def close(self) -> None:
        """Close both pipes."""
        self.incoming.close()
        self.outgoing.close()


# --- infos -----------------------------------------------------------------------------------------------------------

#: how struct writes values of a type, and what makes them of that type again after reading
_CODES: dict[type, tuple[str, Callable[[Any], Any] | None]] = {
    bool: ("?", None),
    int: ("q", None),
    float: ("d", None),
    np.bool_: ("?", np.bool_),
    np.int32: ("i", np.int32),
    np.int64: ("q", np.int64),
    np.float32: ("f", np.float32),
    np.float64: ("d", np.float64),
}


class _Schema:
    """Infos with the same keys and types of numbers, as bytes: NumPy's scalars are slow to pickle.

    :param keys: keys of every info
    :param types: types of their values
    """

    def __init__(self, keys: tuple[Any, ...], types: tuple[type, ...]) -> None:
        self.keys, self.types = keys, types
        self._codes = "".join(_CODES[each][0] for each in types)
        self._restored = [(key, _CODES[each][1]) for key, each in zip(keys, types, strict=True)]
        self._restored = [(key, restore) for key, restore in self._restored if restore is not None]
        self._structs: dict[int, struct.Struct] = {}

    @classmethod
    def of(cls, info: Info) -> "_Schema | None":
        """Return the schema of an info; None if not all of its values are numbers."""
        types = tuple(map(type, info.values()))
        return cls(tuple(info), types) if all(each in _CODES for each in types) else None

    def fits(self, info: Info) -> bool:
        """Whether ``info`` has these keys and types."""
        return tuple(info) == self.keys and tuple(map(type, info.values())) == self.types

    def _struct(self, n: int) -> struct.Struct:
        if n not in self._structs:
            self._structs[n] = struct.Struct("=" + n * self._codes)
        return self._structs[n]

    def pack(self, values: Sequence[Any]) -> bytes:
        """Return the values of some infos, one info's after the other's, as bytes."""
        return self._struct(len(values) // len(self.keys)).pack(*values)

    def unpack(self, data: bytes, n: int) -> Iterator[Info]:
        """Return ``n`` infos from their values."""
        values, width = self._struct(n).unpack(data), len(self.keys)
        for start in range(0, n * width, width):
            info = dict(zip(self.keys, values[start : start + width], strict=True))
            for key, restore in self._restored:
                info[key] = restore(info[key])  # type: ignore[misc]  # those without are left out above
            yield info


# --- in the worker ---------------------------------------------------------------------------------------------------


class _Slice(LeanVecEnv):
    """The environments of one worker, of all those from number ``first``; what they observe goes to ``shared``."""

    def __init__(self, env_fns: list[EnvFn], first: int) -> None:
        self._first = first
        self.shared: Rows = {}
        super().__init__(env_fns)

    def _rows(self) -> Rows:
        return self.shared

    def _joined(self, rows: Rows) -> VecEnvObs:
        return {}  # the parent takes them from there


class _Server:
    """Answers requests about the environments of one worker; every public method is one.

    Where a method goes through environments, its local variable ``index`` tells of which an exception is.
    """

    def __init__(self, envs: _Slice, memory: _Memory) -> None:
        self._envs, self._memory = envs, memory
        self._range = slice(envs._first, envs._first + envs.num_envs)
        self._schema: _Schema | None = None
        envs.shared = {key: rows[self._range] for key, rows in memory.observations.items()}

    def step(self, actions: Any, fresh: bool) -> tuple[Any, dict[int, Info], bytes, dict[int, Info]]:
        """Step all environments.

        :param actions: one each, or the type and shape of those in shared memory
        :param fresh: forget the schema, which the parent may not know
        :return: keys and types of a new schema; infos that do not follow it, by index; the values of those that do; what
            resets returned, by index
        """
        if isinstance(actions, tuple):
            # A copy, since an environment may keep its action for longer than it stays there.
            actions = self._memory.actions_as(*actions)[self._range].copy()
        if fresh:
            self._schema = None
        self._envs.actions = actions
        _, rewards, dones, infos = self._envs.step_wait()
        self._memory.rewards[self._range] = rewards
        self._memory.dones[self._range] = dones
        resets = {at: self._envs.reset_infos[at] for at, done in enumerate(dones.tolist()) if done}
        return (*self._packed(infos), resets)

    def _packed(self, infos: list[Info]) -> tuple[Any, dict[int, Info], bytes]:
        new = None
        if self._schema is None or not any(map(self._schema.fits, infos)):
            new = next(filter(None, map(_Schema.of, infos)), None)
            if new is None:
                return None, dict(enumerate(infos)), b""
            self._schema = new
        values: list[Any] = []
        others: dict[int, Info] = {}
        for at, info in enumerate(infos):
            if self._schema.fits(info):
                values.extend(info.values())
            else:
                others[at] = info
        try:
            data = self._schema.pack(values)
        except struct.error:  # an integer of more than 64 bits
            self._schema = None
            return None, dict(enumerate(infos)), b""
        return None if new is None else (new.keys, new.types), others, data

    def reset(self, seeds: list[int | None], options: list[dict[str, Any]]) -> list[Info]:
        self._envs._seeds, self._envs._options = seeds, options
        self._envs.reset()
        return self._envs.reset_infos

    def get_attr(self, indices: list[int], name: str) -> list[Any]:
        values = []
        for index in indices:
            values += self._envs.get_attr(name, index)
        return values

    def has_attr(self, indices: list[int], name: str) -> list[bool]:
        return [self._envs.has_attr(name)] * len(indices)

    def set_attr(self, indices: list[int], name: str, value: Any) -> list[None]:
        for index in indices:
            self._envs.set_attr(name, value, index)
        return [None] * len(indices)

    def env_method(self, indices: list[int], name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
        values = []
        for index in indices:
            values += self._envs.env_method(name, *args, indices=index, **kwargs)
        return values

    def env_is_wrapped(self, indices: list[int], wrapper: type[gym.Wrapper[Any, Any, Any, Any]]) -> list[bool]:
        return self._envs.env_is_wrapped(wrapper, indices)

    def render(self, indices: list[int]) -> list[Any]:
        images: list[Any] = []
        for index in indices:
            images += [self._envs.envs[index].render()]
        return images


def _serve(incoming: Any, outgoing: Any, file: _File, payload: Any, first: int, stop: int, again: bool) -> None:
    """Be a worker: make environments, then answer requests until the parent closes or is gone.

    :param incoming: the connection with requests
    :param outgoing: the connection for answers
    :param file: the memory shared with the parent
    :param payload: the functions that make the environments, pickled unless this process is a fork
    :param first: number of the first of these environments
    :param stop: number after the last
    :param again: another process has stepped these environments before
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what Ctrl-C means
    for inherited in list(_CHANNELS):  # a fork has copies of the parent's ends, and a pipe is closed with its last
        inherited.close()
    _end_with_parent()
    np.random.seed()  # forks of one process would draw the same numbers
    channel = _Channel(incoming, outgoing)
    envs, greeting = _make(payload, first, stop, again)
    with suppress(OSError, EOFError):  # the parent is gone
        channel.send(greeting)
        if envs is None:
            return
        try:
            server = _Server(envs, _Memory(file, *pickle.loads(channel.receive())))
            file.close()
            while True:
                number, command, arguments = pickle.loads(channel.receive())
                if command == "close":
                    return
                channel.send(_answer(server, envs, number, command, arguments))
        finally:
            envs.close()


def _make(payload: bytes | Sequence[EnvFn], first: int, stop: int, again: bool) -> tuple[_Slice | None, bytes]:
    """Make environments; return them and what the parent is to know of them, or None and what went wrong."""
    made: list[Env] = []

    def recorded(env_fn: EnvFn) -> Env:
        made.append(env_fn())
        return made[-1]

    try:
        env_fns = pickle.loads(payload) if isinstance(payload, bytes) else payload
        with _appending() if again else nullcontext():
            envs = _Slice([partial(recorded, each) for each in env_fns], first)
        if again:
            _keep_time(envs)
        return envs, _dumps((0, True, (envs.observation_space, envs.action_space, _ids(envs))))
    except BaseException as error:
        number = first + len(made)
        name = f"environment number {number}" if number < stop else _names([None] * (stop - first), first)
        for env in made:
            with suppress(Exception):
                env.close()
        return None, _dumps((0, False, _fault(error, name, "could not be made")))


def _answer(server: _Server, envs: _Slice, number: int, command: str, arguments: Any) -> bytes:
    """Do as the parent asks; return what it gets for its request ``number``."""
    try:
        if isinstance(arguments, bytes):
            arguments = pickle.loads(arguments)
        result = getattr(server, command)(*arguments)
    except BaseException as error:
        index = None
        for frame, _ in traceback.walk_tb(error.__traceback__):
            if frame.f_code.co_filename in (__file__, lean.__file__):
                index = frame.f_locals.get("index", index)
        name = _names(_ids(envs), envs._first) if index is None else env_name(envs.envs[index], envs._first + index)
        missing = command in ("get_attr", "set_attr", "env_method") and isinstance(error, AttributeError)
        return _dumps((number, False, _fault(error, name, f"failed in {command}()", missing)))
    try:
        return _dumps((number, True, result))
    except Exception as error:
        what = f"returned from {command}() what cannot be sent to another process"
        return _dumps((number, False, _fault(error, _names(_ids(envs), envs._first), what)))


def _fault(error: BaseException, name: str, what: str, missing: bool = False) -> tuple[str, str, bool]:
    """Return a line about an exception, its traceback, and whether it is about a missing attribute."""
    line = f"{name} {what}: {type(error).__name__}: {error}".rstrip(": ")
    line = " ".join((str(error) if isinstance(error, EnvError) else line).split())  # ours names its environment itself
    return line, "".join(traceback.format_exception(error)).rstrip(), missing


def _dumps(value: Any) -> bytes:
    try:
        return pickle.dumps(value, pickle.HIGHEST_PROTOCOL)
    except Exception:
        return cloudpickle.dumps(value, pickle.HIGHEST_PROTOCOL)  # type: ignore[no-any-return]


def _ids(envs: LeanVecEnv) -> list[str | None]:
    return [None if env.spec is None else env.spec.id for env in envs.envs]


def _names(ids: Sequence[str | None], first: int) -> str:
    """Return ``environments number 2 to 3 ('CartPole-v1')``."""
    known = ", ".join(map(repr, dict.fromkeys(each for each in ids if each is not None)))
    numbers = f"environment number {first}" if len(ids) == 1 else f"environments number {first} to {first + len(ids) - 1}"
    return f"{numbers} ({known})" if known else numbers


def _end_with_parent() -> None:
    """End this process soon after its parent's end, also in the middle of a long step."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "workers are children"
    signs: list[Any] = [parent.sentinel]
    if sys.platform == "linux":
        try:
            # The sentinel is a pipe, which other forks of the parent keep open after its end.
            signs.append(os.pidfd_open(parent.pid or 0))
        except ProcessLookupError:
            os._exit(1)
        except OSError:
            pass  # a kernel before 5.3

    def watch() -> None:
        mp_connection.wait(signs)
        time.sleep(1.0)  # an idle worker closes its environments meanwhile
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def _appending() -> Iterator[None]:
    """Let monitors that are made inside go on with the files of an earlier process, which they would overwrite."""
    writer = monitor.ResultsWriter

    class Appending(writer):  # type: ignore[misc, valid-type]
        def __init__(self, filename: str, header: Any, extra_keys: Any, override_existing: bool = True) -> None:
            super().__init__(filename, header, extra_keys, override_existing=False)

    monitor.ResultsWriter = Appending  # type: ignore[misc, assignment]
    try:
        yield
    finally:
        monitor.ResultsWriter = writer  # type: ignore[misc]


def _keep_time(envs: LeanVecEnv) -> None:
    """Let monitors that append to a file count time as its header does."""
    for env in envs.envs:
        monitored: Any = unwrap_wrapper(env, monitor.Monitor)
        if monitored is not None and monitored.results_writer is not None:
            with suppress(OSError, ValueError, KeyError), open(monitored.results_writer.file_handler.name) as file:
                monitored.t_start = json.loads(file.readline().removeprefix("#"))["t_start"]


# --- in the parent ---------------------------------------------------------------------------------------------------

#: the parent's ends of the pipes of all workers
_CHANNELS: "weakref.WeakSet[Any]" = weakref.WeakSet()


class _Worker:
    """A process, the environments in it, and the parent's end of the pipe to it.

    :param context: starts processes
    :param file: the memory to share with them
    :param env_fns: functions that make the environments
    :param first: number of the first of them
    """

    def __init__(self, context: Any, file: _File, env_fns: Sequence[EnvFn], first: int) -> None:
        self.context, self.file, self.first, self.stop = context, file, first, first + len(env_fns)
        self.payload: Any = env_fns if context.get_start_method() == "fork" else _pickled(env_fns, first)
        self.ids: list[str | None] = [None] * len(env_fns)
        self.starts = 0
        self.fault: str | None = "was never started"
        self.whole = True  # no request was interrupted halfway
        self.schema: _Schema | None = None
        self.stepped: Any = None  # the answer to a step that is still to be waited for, if it has come

    def start(self) -> None:
        """Start the process, again if it was lost."""
        theirs, outgoing = self.context.Pipe(duplex=False)
        incoming, their_outgoing = self.context.Pipe(duplex=False)
        self.channel = _Channel(incoming, outgoing)
        _CHANNELS.add(self.channel)
        arguments = (theirs, their_outgoing, self.file, self.payload, self.first, self.stop, self.starts > 0)
        # A daemon, since an interpreter that ends without closing would wait for others.
        self.process = self.context.Process(target=_serve, args=arguments, daemon=True)
        try:
            self.process.start()
        except BaseException:
            self.channel.close()
            raise
        finally:
            theirs.close()
            their_outgoing.close()
        self.starts += 1
        self.schema, self.stepped, self.fault, self.whole = None, None, None, True

    def send(self, request: bytes) -> None:
        """Send a request; if there is nobody to receive it, :meth:`answer` says so."""
        if self.fault is None:
            self.whole = False
            try:
                self.channel.send(request)
            except OSError:
                self.lose()
            self.whole = True

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
        self.fault = f"the process of {_names(self.ids, self.first)} {how}; reset() starts another"


def _pickled(env_fns: Sequence[EnvFn], first: int) -> bytes:
    try:
        return cloudpickle.dumps(list(env_fns))  # type: ignore[no-any-return]
    except Exception as error:
        name, why = _names([None] * len(env_fns), first), " ".join(str(error).split())
        raise ConfigError(f"{name} cannot be made in another process: {why}") from error


def _signal_name(number: int) -> str:
    return signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"


def _preload() -> None:
    """Let the forkserver import this module, which every worker would take a second or two and memory of its own for.

    Whoever has told the forkserver what to import is heeded instead, and one that runs already is as it is.
    """
    server = getattr(forkserver, "_forkserver", None)
    if getattr(server, "_preload_modules", None) == ["__main__"]:
        forkserver.set_forkserver_preload(["__main__", __name__])


def _shut(workers: list[_Worker], file: _File, owner: int) -> None:
    """End all workers, also those that do not answer, and leave nothing behind."""
    if os.getpid() != owner:  # in a fork, whose copies these are
        return
    running = [worker for worker in workers if worker.fault is None]
    for worker in running:
        if worker.whole:
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
        file = _File()
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
            self._memory = _Memory(file, n_envs, _layout(observation_space), action_bytes)
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
            worker.send(request)

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
                worker.schema = _Schema(*schema)
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
            worker.send(pickle.dumps((self._number, command, own)))
        answers = [worker.answer(self._number) for worker in arguments]
        for answer in answers:
            if isinstance(answer, EnvError):
                raise answer
        return answers

    def _settle(self) -> None:
        """Wait until all workers have stepped, and keep their answers: Ctrl-C may come between two."""
        for worker in self._workers:
            if worker.stepped is None:
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
            name = _names(worker.ids, worker.first)
            raise EnvError(f"{name} has another observation space than environment number 0: {observation_space}")
        worker.send(pickle.dumps((memory.n_envs, memory.layout, memory.action_bytes)))

    def _check_open(self) -> None:
        if self.closed:
            raise RuntimeError("this SharedMemoryVecEnv is closed")


def _layout(space: spaces.Space[Any]) -> Layout:
    keys, shapes, dtypes = obs_space_info(space)
    return [(key, tuple(shapes[key]), np.dtype(dtypes[key])) for key in keys]


def _raised(message: str, text: str, missing: bool) -> EnvError:
    error = (_EnvAttributeError if missing else EnvError)(message)
    error.__cause__ = WorkerTraceback(text)
    return error
