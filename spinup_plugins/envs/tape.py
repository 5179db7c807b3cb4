"""Bringing a copy of an environment to where another one is, by playing its episode again."""

import time
from copy import deepcopy
from typing import Any, NamedTuple, TypeAlias

import gymnasium as gym
import numpy as np
from stable_baselines3.common.monitor import Monitor

__all__ = ["LONGEST", "Episode", "EpisodeTape"]

LONGEST = 100_000
"""Actions of one episode that are kept; a longer one is not played again."""

Info: TypeAlias = dict[str, Any]


class _Books(NamedTuple):
    """What a monitor has noted: its file and, in its attributes, all episodes so far."""

    text: str | None
    seconds: float
    steps: int
    returns: list[float]
    lengths: list[int]
    times: list[float]


class Episode(NamedTuple):
    """How an environment came to where it is.

    :param generator: state of its generator before the reset that began the episode; None where a seed was given, where the
        episode is not known whole, or where the environment has another kind of generator
    :param arguments: of that reset
    :param actions: since then
    :param observation: the newest
    :param rewards: since the reset, as the monitor around it has them; None without one
    :param drawn: the generator's state now
    :param books: of the monitor
    """

    generator: dict[str, Any] | None
    arguments: dict[str, Any]
    actions: list[Any]
    observation: Any
    rewards: list[float] | None
    drawn: dict[str, Any] | None
    books: _Books | None


class EpisodeTape(gym.Wrapper[Any, Any, Any, Any]):
    """Keeps the actions of the current episode, which say where an environment is when its state cannot be read.

    The state of a simulator is out of reach in general, but nearly every environment repeats itself, given the state of its
    generator, its reset and the actions. Whether one does is seen by its last observation, the
    generator's state and, where it is monitored, its rewards.

    :param env: the environment, monitored already where it is to be
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        self._generator: dict[str, Any] | None = None
        self._arguments: dict[str, Any] = {}
        self._actions: list[Any] = []
        self._observation: Any = None

    def reset(self, **kwargs: Any) -> tuple[Any, Info]:
        """Begin an episode, and the tape anew.

        :param kwargs: Gymnasium's ``seed`` and ``options``
        """
        seeded = kwargs.get("seed") is not None
        self._generator = None if seeded else _generator(self.unwrapped)
        self._arguments = deepcopy(kwargs) if kwargs.get("options") else kwargs
        self._actions = []
        result = self.env.reset(**kwargs)
        if isinstance(result, (tuple, list)):  # else it is refused by whoever wants it
            self._observation = result[0]
        return result

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, Info]:
        """Take a step.

        :param action: kept
        """
        observation, reward, terminated, truncated, info = self.env.step(action)
        self.add(action, observation)
        return observation, reward, terminated, truncated, info

    def add(self, action: Any, observation: Any) -> None:
        """Note a step: what :meth:`step` does besides, for those who step the environment past it.

        :param action: copied
        :param observation: the newest, to which the environment may go on to write
        """
        if len(self._actions) < LONGEST:
            if type(action) is np.ndarray:
                action = action.copy()
            elif not isinstance(action, np.generic):  # which cannot change
                action = deepcopy(action)
            self._actions.append(action)
        self._observation = observation

    def episode(self) -> Episode:
        """Return how the environment came to where it is, to be given to another copy's :meth:`replay`."""
        whole = len(self._actions) < LONGEST
        return Episode(
            self._generator if whole else None,
            self._arguments if whole else {},
            list(self._actions) if whole else [],
            deepcopy(self._observation),
            self._rewards(),
            _generator(self.unwrapped),
            _read(self.env),
        )

    def replay(self, episode: Episode) -> bool:
        """Play an episode up to where it was, and take over the monitor's books.

        :param episode: of another copy
        :return: whether the environment is where the other one was; if not, it is to be reset
        """
        try:
            return self._repeats(episode)
        except Exception:  # the environment's own code can raise anything
            return False
        finally:
            _write(self.env, episode.books)

    def _repeats(self, episode: Episode) -> bool:
        if episode.generator is not None:
            self.unwrapped.np_random.bit_generator.state = episode.generator
        elif "seed" not in episode.arguments:
            return False
        self.reset(**episode.arguments)
        for action in episode.actions:
            _, _, terminated, truncated, _ = self.step(action)
            if terminated or truncated:
                return False
        seen = _same(self._observation, episode.observation) and _same(self._rewards(), episode.rewards)
        return seen and _generator(self.unwrapped) == episode.drawn

    def _rewards(self) -> list[float] | None:
        return list(self.env.rewards) if isinstance(self.env, Monitor) else None


def _generator(env: Any) -> dict[str, Any] | None:
    try:
        return dict(env.np_random.bit_generator.state)  # made anew at each look
    except Exception:  # whatever an environment calls so: NumPy's older RandomState, a key of JAX's
        return None


def _same(one: Any, other: Any) -> bool:
    """Whether two observations, or lists of rewards, are equal in every bit; NaNs in the same place are."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, tuple) and isinstance(other, tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    left, right = np.asarray(one), np.asarray(other)
    return left.shape == right.shape and left.dtype == right.dtype and left.tobytes() == right.tobytes()


def _read(env: Any) -> _Books | None:
    if not isinstance(env, Monitor):
        return None
    text = None
    if env.results_writer is not None:
        with open(env.results_writer.file_handler.name, encoding="utf-8", newline="") as file:
            text = file.read()
    kept = list(env.episode_returns), list(env.episode_lengths), list(env.episode_times)
    return _Books(text, time.time() - env.t_start, env.total_steps, *kept)


def _write(env: Any, books: _Books | None) -> None:
    if not isinstance(env, Monitor) or books is None:
        return
    env.t_start, env.total_steps = time.time() - books.seconds, books.steps
    env.episode_returns, env.episode_lengths, env.episode_times = books.returns, books.lengths, books.times
    if env.results_writer is not None and books.text is not None:
        file = env.results_writer.file_handler
        file.seek(0)
        file.truncate()
        file.write(books.text)
        file.flush()
