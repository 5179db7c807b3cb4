"""Environments for tests of vec-envs, in a module that worker processes can import."""

import os
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.monitor import Monitor

Env = gym.Env[Any, Any]
FLAT = spaces.Box(-np.inf, np.inf, (4,), np.float32)
SPACES: dict[str, spaces.Space[Any]] = {
    "box": FLAT,
    "double": spaces.Box(-np.inf, np.inf, (2, 2), np.float64),
    "image": spaces.Box(0, 255, (2, 4, 3), np.uint8),
    "scalar": spaces.Box(-np.inf, np.inf, (), np.float32),
    "discrete": spaces.Discrete(1000),
    "multi-discrete": spaces.MultiDiscrete([1000, 1000]),
    "multi-binary": spaces.MultiBinary(8),
    "dict": spaces.Dict({"b": FLAT, "a": spaces.Discrete(1000), "c": spaces.Box(0, 255, (2, 2, 1), np.uint8)}),
    "tuple": spaces.Tuple((FLAT, spaces.MultiBinary(8))),
}


def encode(space: spaces.Space[Any], episode: int, step: int, draw: int, option: int) -> Any:
    """An observation that tells where it was made."""
    if isinstance(space, spaces.Dict):
        return {key: encode(each, episode, step, draw, option) for key, each in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(encode(each, episode, step, draw, option) for each in space.spaces)
    if isinstance(space, spaces.Discrete):
        return np.int64(100 * episode + step) if step % 2 else 100 * episode + step
    if isinstance(space, spaces.MultiBinary):
        return np.array([episode >> i & 1 for i in range(4)] + [step >> i & 1 for i in range(4)], np.int8)
    values = np.array([episode, step, draw, option])
    assert space.shape is not None
    return np.resize(values, space.shape).astype(space.dtype) if space.shape else np.float32(100 * episode + step)


class Coded(gym.Env[Any, Any]):
    """Episodes of given lengths whose observations tell episode, step, seed and option.

    :param kind: key of SPACES
    :param lengths: lengths of the episodes, over and over
    :param truncates: whether every other episode is truncated and not terminated
    :param extra: what stands in the infos
    :param reuses: whether arrays and infos are the same objects all the time
    """

    action_space = spaces.Discrete(5)
    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012

    def __init__(
        self,
        kind: str = "box",
        lengths: tuple[int, ...] = (3,),
        truncates: bool = False,
        extra: str = "none",
        reuses: bool = False,
        render_mode: str | None = None,
    ) -> None:
        self.observation_space, self.render_mode = SPACES[kind], render_mode
        self.lengths, self.truncates, self.extra, self.reuses = lengths, truncates, extra, reuses
        self.episode, self.clock, self.draw, self.option = 0, 0, 0, 0
        self.buffer: Any = None
        self.info: dict[str, Any] = {}
        self.actions: list[Any] = []

    def observe(self) -> Any:
        new = encode(self.observation_space, self.episode, self.clock, self.draw, self.option)
        if not self.reuses:
            return new
        if self.buffer is None:
            self.buffer = new
        self.buffer[...] = new
        return self.buffer

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.draw, self.option = int(self.np_random.integers(100)), (options or {}).get("option", 0)
        self.episode, self.clock = self.episode + 1, 0
        return self.observe(), {"began": self.episode}

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        self.clock += 1
        self.actions.append(action)
        info = self.info if self.reuses else {}
        if self.extra == "numbers":
            info |= {"float": 0.1 * self.clock, "double": np.float64(self.clock), "single": np.float32(0.1), "int": self.clock}
            info |= {"flag": np.bool_(self.clock % 2), "wide": np.int64(2**40 + self.clock), "narrow": np.int32(self.clock)}
        elif self.extra == "changing":
            info[f"key {self.clock}"] = 2**70 if self.clock == 2 else None if self.clock % 2 else float(self.clock)
        elif self.extra == "nested":
            info |= {"array": np.arange(self.clock), "list": [self.clock, {"inner": np.ones(2)}], "text": "x"}
        done = self.clock >= self.lengths[(self.episode - 1) % len(self.lengths)]
        truncated = self.truncates and self.episode % 2 == 0
        if done:
            info["is_success"] = True
        return self.observe(), 0.1 * self.clock + float(action), done and not truncated, done and truncated, info

    def render(self) -> Any:
        return np.full((2, 2, 3), self.clock, np.uint8)

    def add(self, a: int, b: int = 0) -> int:
        return a + b + self.episode

    def fail(self) -> None:
        raise OSError("not\nnow")

    @property
    def unsendable(self) -> Any:
        return Unsendable()

    @property
    def broken(self) -> Any:
        raise AttributeError("no such thing inside")


class Unsendable:
    """Can be copied, but neither pickle nor cloudpickle can send it."""

    def __deepcopy__(self, _: Any) -> "Unsendable":
        return self

    def __reduce__(self) -> Any:
        raise TypeError("cannot pickle this")


class Failing(Coded):
    """Fails as ``fault`` says at step ``at`` of its life, once.

    :param fault: "constructor", "reset", "raise", "exit", "kill", "hang", "shape", "none", "missing", "unsendable",
        "interrupt", "stubborn" (when it is closed), or "close" (which notes its process)
    :param at: when
    :param note: a file that says a process has failed before
    """

    def __init__(self, fault: str, at: int = 2, note: Path | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if fault == "constructor":
            raise FileNotFoundError("no model\nhere")
        self.fault, self.at, self.note, self.life = fault, at, note, 0
        self.closed = False

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        if self.fault == "reset" and self.life == self.at:
            raise RuntimeError("no reset today")
        return super().reset(**kwargs)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = super().step(action)
        self.life += 1
        if self.fault and self.life == self.at and not (self.note and self.note.exists()):
            if self.note:
                self.note.touch()
            if self.fault == "raise":
                raise ValueError("boom\non two lines")
            if self.fault == "interrupt":
                raise KeyboardInterrupt
            if self.fault == "exit":
                os._exit(3)
            if self.fault == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if self.fault == "hang":
                time.sleep(600)
            if self.fault == "shape":
                observation = np.zeros(1, np.float32)
            if self.fault == "none":
                observation = None
            if self.fault == "missing":
                del observation["a"]
            if self.fault == "unsendable":
                info["key"] = Unsendable()
        return observation, reward, terminated, truncated, info

    def close(self) -> None:
        if self.fault == "stubborn":
            time.sleep(600)
        if self.note and self.fault == "close":
            self.note.write_text(f"{os.getpid()}")


class Box2(Coded):
    """Acts on boxes and keeps its actions."""

    action_space = spaces.Box(-1.0, 1.0, (2,), np.float32)  # type: ignore[assignment]

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        observation, _, terminated, truncated, info = super().step(action[0])
        self.actions[-1] = action
        return observation, float(action.sum()), terminated, truncated, info | {"kind": str(action.dtype)}


gym.register("Coded-v0", Coded, disable_env_checker=True, order_enforce=False)
gym.register("Failing-v0", Failing, disable_env_checker=True, order_enforce=False)


def make(cls: type[Env] | str, monitor: bool = True, file: Path | None = None, /, **kwargs: Any) -> Env:
    env = gym.make(cls, **kwargs) if isinstance(cls, str) else cls(**kwargs)
    if not monitor:
        return env
    return Monitor(env, None if file is None else str(file), info_keywords=("is_success",))


def fns(
    n: int, cls: type[Env] | str = Coded, monitor: bool = True, file: Path | None = None, **kwargs: Any
) -> list[Callable[[], Env]]:
    """Functions that make ``n`` environments; lists among the arguments are one value for each."""
    each = [{key: v[i] if isinstance(v, list) else v for key, v in kwargs.items()} for i in range(n)]
    files = [None if file is None else file / str(i) for i in range(n)]
    return [partial(make, cls, monitor, files[i], **each[i]) for i in range(n)]


def alike(a: Any, b: Any, path: str = "") -> None:
    """Assert that two results are the same in values, types, shapes and order of keys."""
    if isinstance(a, dict):
        assert isinstance(b, dict), path
        assert list(a) == list(b), path
        for key in a:
            alike(a[key], b[key], f"{path}[{key!r}]")
    elif isinstance(a, (tuple, list)):
        assert len(a) == len(b), path
        for at, (one, other) in enumerate(zip(a, b, strict=True)):
            alike(one, other, f"{path}[{at}]")
    else:
        assert type(a) is type(b), (path, a, b)
        if isinstance(a, np.ndarray):
            assert a.dtype == b.dtype, path
            np.testing.assert_array_equal(a, b, path)
        else:
            assert a == b or a != a, (path, a, b)
