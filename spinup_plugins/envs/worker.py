"""What the worker processes of ``SharedMemoryVecEnv`` run, and what both sides speak: memory, messages and infos."""

import gc
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
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from multiprocessing import connection as mp_connection
from multiprocessing import reduction
from typing import Any, TypeAlias

import cloudpickle  # type: ignore[import-untyped]
import gymnasium as gym
import numpy as np
from stable_baselines3.common import monitor
from stable_baselines3.common.env_util import unwrap_wrapper
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs

from spinup_plugins.envs import lean
from spinup_plugins.envs.lean import Array, Env, Info, LeanVecEnv, Rows, env_name
from spinup_plugins.errors import EnvError

__all__ = ["Channel", "EnvFn", "File", "Layout", "Memory", "Schema", "names", "serve"]

EnvFn: TypeAlias = Callable[[], Env]
Layout: TypeAlias = list[tuple[Any, tuple[int, ...], np.dtype[Any]]]
"""Key, shape and type of each part of what one environment observes."""

# --- memory ----------------------------------------------------------------------------------------------------------


class File:
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


class Memory:
    """Memory of several processes, without a name, so that none is left behind however they end.

    ``multiprocessing.shared_memory`` has names, which outlive a killed process. ``RawArray`` has to exist before the
    workers do, who alone know the spaces, and lies in ``/dev/shm``, of which a container often has 64 MB.

    :param file: where the memory is
    :param n_envs: number of environments
    :param layout: what one environment observes
    :param action_bytes: the most that one action takes
    """

    def __init__(self, file: File, n_envs: int, layout: Layout, action_bytes: int) -> None:
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


# --- messages --------------------------------------------------------------------------------------------------------


class Channel:
    """Messages both ways through two pipes: a third of the time that a ``multiprocessing.Pipe`` takes.

    :param incoming: the connection to read from
    :param outgoing: the connection to write to
    """

    def __init__(self, incoming: Any, outgoing: Any) -> None:
        self.incoming, self.outgoing = incoming, outgoing
        self._read = b""  # what has come of messages to be received
        self._poll = select.poll()
        self._poll.register(incoming.fileno(), select.POLLIN)
        _CHANNELS.add(self)

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


#: this process's ends of pipes, and in a fork copies of its parent's
_CHANNELS: weakref.WeakSet[Channel] = weakref.WeakSet()


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


class Schema:
    """Infos with the same keys and types of numbers, as bytes: NumPy's scalars are slow to pickle.

    :param keys: keys of every info
    :param types: types of their values
    """

    def __init__(self, keys: tuple[Any, ...], types: tuple[type, ...]) -> None:
        self.keys, self.types = keys, types
        self._codes = "".join(_CODES[each][0] for each in types)
        restored = zip(keys, (_CODES[each][1] for each in types), strict=True)
        self._restored = [(key, restore) for key, restore in restored if restore is not None]
        self._structs: dict[int, struct.Struct] = {}

    @classmethod
    def of(cls, info: Info) -> "Schema | None":
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
                info[key] = restore(info[key])
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

    def __init__(self, envs: _Slice, memory: Memory) -> None:
        self._envs, self._memory = envs, memory
        self._range = slice(envs._first, envs._first + envs.num_envs)
        self._schema: Schema | None = None
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
            new = next(filter(None, map(Schema.of, infos)), None)
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


def serve(incoming: Any, outgoing: Any, file: File, payload: Any, first: int, stop: int, again: bool) -> None:
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
    gc.freeze()  # a fork's inherited objects are not its to destroy: those with threads, which it has not, would abort it
    for inherited in list(_CHANNELS):  # a fork has copies of the parent's ends, and a pipe is closed with its last
        inherited.close()
    _end_with_parent()
    np.random.seed()  # forks of one process would draw the same numbers
    channel = Channel(incoming, outgoing)
    envs, greeting = _make(payload, first, stop, again)
    with suppress(OSError, EOFError):  # the parent is gone
        channel.send(greeting)
        if envs is None:
            return
        try:
            server = _Server(envs, Memory(file, *pickle.loads(channel.receive())))
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
        name = f"environment number {number}" if number < stop else names([None] * (stop - first), first)
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
        frames = (frame for frame, _ in traceback.walk_tb(error.__traceback__))
        ours = (frame.f_locals for frame in frames if frame.f_code.co_filename in (__file__, lean.__file__))
        # The outermost: an environment may have a vec-env inside.
        index = next((found["index"] for found in ours if "index" in found), None)
        name = names(_ids(envs), envs._first) if index is None else env_name(envs.envs[index], envs._first + index)
        missing = command in ("get_attr", "set_attr", "env_method") and isinstance(error, AttributeError)
        return _dumps((number, False, _fault(error, name, f"failed in {command}()", missing)))
    try:
        return _dumps((number, True, result))
    except Exception as error:
        what = f"returned from {command}() what cannot be sent to another process"
        return _dumps((number, False, _fault(error, names(_ids(envs), envs._first), what)))


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


def names(ids: Sequence[str | None], first: int) -> str:
    """Return ``environments number 2 to 3 ('CartPole-v1')``.

    :param ids: of each environment, None where there is none
    :param first: number of the first
    """
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
