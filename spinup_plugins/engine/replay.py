"""Replay buffers that hold each observation once, and give the samples of Stable-Baselines3's.

Stable-Baselines3's (SB3) buffers hold a transition's next observation beside it, although it nearly always is the following
row's observation. Here rows are compared as they come, byte by byte: only a next observation that the following row does not
begin with (an episode's last, or whatever else the caller did between the two) goes into a side table, and so does the newest
row's. Samples are therefore exact however rows were added, terminations and time limits are told apart, and all of a full
buffer can be sampled, where SB3's ``optimize_memory_usage`` gives up each of these.
"""

import sys
import warnings
from collections.abc import Mapping
from functools import cache
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3 import HerReplayBuffer
from stable_baselines3.common import buffers
from stable_baselines3.common.buffers import DictReplayBuffer, NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.type_aliases import DictReplayBufferSamples, ReplayBufferSamples
from stable_baselines3.common.vec_env import VecNormalize

from spinup_plugins.errors import EnvError

__all__ = [
    "COUNTERPARTS",
    "RESET_STEP",
    "CompactDictReplayBuffer",
    "CompactHerReplayBuffer",
    "CompactNStepReplayBuffer",
    "CompactReplayBuffer",
    "NextObservations",
    "ObservationStore",
    "SampledArrays",
]

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

#: key of an ``info`` that marks a step in which the environment only reset: its action was ignored, it must not be learnt from
RESET_STEP: Final = "reset_step"

#: key of the only part of an observation that is no Dict
PLAIN: Final = ""


class SampledArrays(NamedTuple):
    """A minibatch of transitions as arrays."""

    observations: Array  #: (B, …)
    actions: Array  #: (B, A)
    next_observations: Array  #: (B, …)
    dones: Array  #: (B,), 1 at terminal states only
    rewards: Array  #: (B,)
    discounts: Array | None  #: (B,), γ^n where rewards are summed over n steps


class Outcomes(NamedTuple):
    """What minibatches are made of: cells, row · N + environment each, and what follows from acting there."""

    first: Array  #: (B,) cells of observations and actions
    final: Array  #: (B,) cells whose next observations are the transitions'
    rewards: Array  #: (B,)
    dones: Array  #: (B,)
    discounts: Array | None  #: (B,)


class ObservationStore:
    """A ring of observations, each held once, with a side table for the next observations that are in no row.

    ``codes`` (rows, N) says where a transition's next observation is: 0 in the following row, k > 0 in the side table's row
    k − 1. The side table begins with two blocks of N rows. One of them holds the newest transitions' next observations, the
    other takes in the coming ones, so that a row that cannot be stored leaves the others' as they were.

    :param shapes: shape of each part of an observation
    :param dtypes: type that each part is stored in
    :param rows: rows of the ring
    :param n_envs: environments N, each with a transition in every row
    """

    def __init__(
        self, shapes: Mapping[str, tuple[int, ...]], dtypes: Mapping[str, np.dtype[Any]], rows: int, n_envs: int
    ) -> None:
        self.rows, self.n_envs = rows, n_envs
        self.ring = {key: np.zeros((rows, n_envs, *shape), dtypes[key]) for key, shape in shapes.items()}
        self.codes = np.zeros((rows, n_envs), np.int32)
        self.clear()

    def clear(self) -> None:
        """Forget all rows."""
        self.codes[:] = 0
        self.side = {key: np.zeros((2 * self.n_envs, *ring.shape[2:]), ring.dtype) for key, ring in self.ring.items()}
        self.used, self.free = 2 * self.n_envs, list[int]()
        self.filled, self.block = 0, 0
        self.newest: int | None = None
        self.newest_coded = False
        self._view()

    def _view(self) -> None:
        """Look at the same memory in the ways that ``add`` needs at every step."""
        spans = [slice(i * self.n_envs, (i + 1) * self.n_envs) for i in (0, 1)]
        self._blocks = [[(key, side[span]) for key, side in self.side.items()] for span in spans]
        self._block_codes = [np.arange(span.start + 1, span.stop + 1, dtype=np.int32) for span in spans]
        self._rings = list(self.ring.items())
        self._no_codes = bytes(self.codes[:1].nbytes)

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if not key.startswith("_")}  # views would become copies

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._view()

    @property
    def nbytes(self) -> int:
        """Memory of ring, codes and side table."""
        arrays = (*self.ring.values(), *self.side.values(), self.codes)
        return sum(array.nbytes for array in arrays) + sys.getsizeof(self.free)

    def cast(self, dtypes: Mapping[str, np.dtype[Any]]) -> None:
        """Store observations in other types from now on, those already here included.

        :param dtypes: type of each part
        """
        for parts in (self.ring, self.side):
            for key in parts:
                parts[key] = parts[key].astype(dtypes[key], copy=False)
        self._view()

    def add(self, row: int, obs: Mapping[str, Any], next_obs: Mapping[str, Any]) -> None:
        """Write the row after the newest, and settle where the newest one's next observations are.

        :param row: row to write
        :param obs: (N, …) of each part
        :param next_obs: (N, …) of each part
        """
        coming = 1 - self.block
        for key, rows in self._blocks[coming]:
            rows[...] = next_obs[key]
        for key, ring in self._rings:
            ring[row] = obs[key]
        if row < self.filled:
            codes = self.codes[row]
            if codes.tobytes() != self._no_codes:
                self.free.extend(code - 1 for code in codes.tolist() if code > 2 * self.n_envs)
                codes[:] = 0
        else:
            self.filled = row + 1
        newest = self.newest
        if newest is not None and newest != row:
            if self.newest_coded:
                self.codes[newest] = 0
            for key, rows in self._blocks[self.block]:
                if rows.tobytes() != self.ring[key][row].tobytes():
                    self._set_aside(newest, row)
                    break
        self.newest, self.newest_coded, self.block = row, False, coming

    def _set_aside(self, newest: int, row: int) -> None:
        """Keep those next observations of the newest row that ``row``, which follows it, does not begin with."""
        envs = [0]
        if self.n_envs > 1:
            unequal = np.zeros(self.n_envs, bool)
            for key, rows in self._blocks[self.block]:
                unequal |= (_bytes(rows) != _bytes(self.ring[key][row])).any(axis=1)
            envs = unequal.nonzero()[0].tolist()
        pending = self._blocks[self.block]
        for env, place in zip(envs, self._claim(len(envs)), strict=True):
            for key, rows in pending:
                self.side[key][place] = rows[env]
            self.codes[newest, env] = place + 1

    def _claim(self, count: int) -> list[int]:
        """Take ``count`` unused rows of the side table, which grows when there are none."""
        fresh = count - len(self.free)
        if fresh > 0:
            capacity = len(next(iter(self.side.values())))
            if self.used + fresh > capacity:
                most = (self.rows + 2) * self.n_envs
                capacity = max(self.used + fresh, min(capacity + capacity // 4 + 8, most))
                for key, side in self.side.items():
                    self.side[key] = np.zeros((capacity, *side.shape[1:]), side.dtype)
                    self.side[key][: self.used] = side[: self.used]
                self._view()
            self.free.extend(range(self.used, self.used + fresh))
            self.used += fresh
        places = self.free[-count:]
        del self.free[-count:]
        return places

    def take(self, cells: Array) -> dict[str, Array]:
        """Copy observations.

        :param cells: row · N + environment of each, (B,)
        :return: (B, …) of each part
        """
        return {key: _take(ring.reshape(-1, *ring.shape[2:]), cells) for key, ring in self.ring.items()}

    def take_part(self, key: str, cells: Array) -> Array:
        """Copy one part of observations.

        :param key: the part
        :param cells: row · N + environment of each, (B,)
        :return: (B, …)
        """
        ring = self.ring[key]
        return ring.reshape(-1, *ring.shape[2:]).take(cells, axis=0, mode="wrap")

    def take_next(self, cells: Array) -> dict[str, Array]:
        """Copy next observations.

        :param cells: row · N + environment of each, (B,)
        :return: (B, …) of each part
        """
        following = self.take(cells + self.n_envs)
        aside, places = self._find_aside(cells)
        if len(aside):
            for key, part in following.items():
                part[aside] = self.side[key][places]
        return following

    def take_next_part(self, key: str, cells: Array) -> Array:
        """Copy one part of next observations.

        :param key: the part
        :param cells: row · N + environment of each, (B,)
        :return: (B, …)
        """
        following = self.take_part(key, cells + self.n_envs)
        aside, places = self._find_aside(cells)
        if len(aside):
            following[aside] = self.side[key][places]
        return following

    def _find_aside(self, cells: Array) -> tuple[Array, Array]:
        """Tell which of ``cells`` have their next observations in the side table, and in which rows of it."""
        if self.newest is not None and not self.newest_coded:  # put off until here, for most steps need only ``add``
            self.codes[self.newest] = self._block_codes[self.block]
            self.newest_coded = True
        codes = self.codes.reshape(-1).take(cells, mode="wrap")
        aside = codes.nonzero()[0]
        return aside, codes[aside] - 1 if len(aside) else aside


class NextObservations:
    """What SB3 keeps as an array (rows, N, …): indexing copies from the following rows and the side table.

    :param store: where the observations are
    :param key: the part of them
    """

    def __init__(self, store: ObservationStore, key: str = PLAIN) -> None:
        self._store, self._key = store, key

    @property
    def shape(self) -> tuple[int, ...]:
        """As the array's."""
        shape: tuple[int, ...] = self._store.ring[self._key].shape
        return shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """As the array's."""
        dtype: np.dtype[Any] = self._store.ring[self._key].dtype
        return dtype

    @property
    def ndim(self) -> int:
        """As the array's."""
        return len(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> Array:
        index = index if isinstance(index, tuple) else (index,)
        head, tail = index[:2], index[2:]
        # As arrays of rows and environments, the way of SB3's samplers, which is therefore tried first.
        if len(head) == 2 and all(isinstance(i, np.ndarray) and i.dtype.kind in "iu" for i in head) and _is_all(tail):
            try:
                return self._copy(np.ravel_multi_index(head, self.shape[:2]))
            except ValueError:  # negative or out of range, which the slower way tells apart
                pass
        result: Array
        if _is_all(tail) and len(tail) <= self.ndim - 2 and not any(i is None or i is Ellipsis for i in head):
            result = self._copy(np.arange(self.shape[0] * self.shape[1]).reshape(self.shape[:2])[head])
        else:
            result = np.asarray(self)[index]
        if isinstance(result, np.ndarray) and not any(isinstance(i, (np.ndarray, list)) for i in index):
            result.flags.writeable = False  # an array would return a view, so writes to this copy would be lost
        return result

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(np.asarray(self), name)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        if copy is False:
            raise ValueError("next observations are put together by copying")
        return np.asarray(self[:, :], dtype)

    def _copy(self, cells: Any) -> Array:
        cells = np.asarray(cells)
        return self._store.take_next_part(self._key, cells.reshape(-1)).reshape(*cells.shape, *self.shape[2:])


class CompactReplayBuffer(ReplayBuffer):
    """SB3's ``ReplayBuffer``, with the same samples from little more than half its memory, or a third in single precision.

    ``observations`` is read-only, since it holds next observations too, and ``next_observations`` is a
    :class:`NextObservations`.

    :param buffer_size: transitions that it holds
    :param observation_space: space of observations
    :param action_space: space of actions
    :param device: device of the samples
    :param n_envs: environments that add at once
    :param optimize_memory_usage: nothing is left to optimise; accepted wherever SB3 accepts or refuses it
    :param handle_timeout_termination: do not count the end by a time limit as terminal
    :param single_precision: store 64-bit observations in 32 bits: samples are what ``float()`` makes of SB3's, as policies do;
        NumPy warns of what only 64 bits can hold
    """

    def __init__(
        self,
        buffer_size: int,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        device: th.device | str = "auto",
        n_envs: int = 1,
        optimize_memory_usage: bool = False,
        handle_timeout_termination: bool = True,
        *,
        single_precision: bool = False,
    ) -> None:
        # ReplayBuffer's own constructor would allocate what is to be saved.
        super(ReplayBuffer, self).__init__(buffer_size, observation_space, action_space, device, n_envs=n_envs)
        self.buffer_size = max(buffer_size // n_envs, 1)
        self.optimize_memory_usage = False
        self.handle_timeout_termination = handle_timeout_termination
        self.single_precision = single_precision
        psutil = vars(buffers).get("psutil")  # None where it is not installed
        available = None if psutil is None else psutil.virtual_memory().available

        self._spaces = self._parts(observation_space)
        self._discrete = [key for key, space in self._spaces.items() if isinstance(space, spaces.Discrete)]
        self._store = ObservationStore(self._parts(self.obs_shape), self._dtypes(), self.buffer_size, n_envs)
        shape = (self.buffer_size, n_envs)
        self.actions = np.zeros((*shape, self.action_dim), dtype=self._maybe_cast_dtype(action_space.dtype))
        self.rewards, self.dones, self.timeouts = (np.zeros(shape, dtype=np.float32) for _ in range(3))
        self._reset_cells: Array | None = None  # (rows, N), once there are any
        if available is not None and self.nbytes > available:
            warnings.warn(
                "This system does not have apparently enough memory to store the complete "
                f"replay buffer {self.nbytes / 1e9:.2f}GB > {available / 1e9:.2f}GB",
                stacklevel=2,
            )

    @staticmethod
    def _parts(whole: Any) -> dict[str, Any]:
        """What belongs to each part of an observation; there is only one here."""
        return {PLAIN: whole}

    @staticmethod
    def _whole(parts: dict[str, Any]) -> Any:
        """Undo ``_parts``."""
        return parts[PLAIN]

    def _dtypes(self) -> dict[str, np.dtype[Any]]:
        dtypes = {key: np.dtype(space.dtype) for key, space in self._spaces.items()}
        if self.single_precision:
            dtypes = {key: np.dtype(np.float32) if dtype == np.float64 else dtype for key, dtype in dtypes.items()}
        return dtypes

    def restore_precision(self) -> None:
        """Store 64-bit observations as such from now on; those already stored stay rounded to 32 bits."""
        if self.single_precision:
            self.single_precision = False
            self._store.cast(self._dtypes())

    @property
    def observations(self) -> Any:  # type: ignore[override]
        """Observations (rows, N, …), or a dict of them; read-only."""
        views = {key: ring.view() for key, ring in self._store.ring.items()}
        for view in views.values():
            view.flags.writeable = False
        return self._whole(views)

    @property
    def next_observations(self) -> Any:  # type: ignore[override]
        """Next observations (rows, N, …), or a dict of them; read-only."""
        return self._whole({key: NextObservations(self._store, key) for key in self._spaces})

    @property
    def nbytes(self) -> int:
        """Memory of everything that grows with the buffer; of objects in HER's table of infos only the references."""
        return self._store.nbytes + sum(value.nbytes for value in vars(self).values() if isinstance(value, np.ndarray))

    @property
    def bytes_per_transition(self) -> float:
        """``nbytes`` over the number of transitions that the buffer can hold."""
        return self.nbytes / (self.buffer_size * self.n_envs)

    def reset(self) -> None:
        """Forget all transitions."""
        super().reset()
        self._store.clear()
        self._reset_cells = None

    def add(self, obs: Any, next_obs: Any, action: Array, reward: Array, done: Array, infos: list[dict[str, Any]]) -> None:
        """Add a transition of each environment.

        :param obs: (N, …), or a dict of such
        :param next_obs: (N, …), or a dict of such
        :param action: (N, A)
        :param reward: (N,)
        :param done: (N,)
        :param infos: N infos, of which ``TimeLimit.truncated`` and ``RESET_STEP`` matter
        """
        row, newest = self.pos, self._store.newest
        if newest is not None and row != (newest + 1) % self.buffer_size:
            raise RuntimeError(
                f"pos was set to {row}, but a {type(self).__name__} goes on after row {newest}, where it left off: reset() it,"
                " or take compact_replay=False"
            )
        obs, next_obs = self._parts(obs), self._parts(next_obs)
        if self._discrete:
            column = (self.n_envs, 1)
            obs = obs | {key: obs[key].reshape(column) for key in self._discrete}
            next_obs = next_obs | {key: next_obs[key].reshape(column) for key in self._discrete}
        shape = (self.n_envs, self.action_dim)
        self.actions[row] = action if action.shape == shape else action.reshape(shape)
        self.rewards[row] = reward
        self.dones[row] = done
        if self.handle_timeout_termination:
            self.timeouts[row] = [info.get("TimeLimit.truncated", False) for info in infos]
        self._store.add(row, obs, next_obs)
        if self._reset_cells is not None or [info for info in infos if RESET_STEP in info]:
            if self._reset_cells is None:
                self._reset_cells = np.zeros((self.buffer_size, self.n_envs), dtype=bool)
            self._reset_cells[row] = [info.get(RESET_STEP, False) for info in infos]

        self.pos += 1
        if self.pos == self.buffer_size:
            self.full = True
            self.pos = 0

    def sample(self, batch_size: int, env: VecNormalize | None = None) -> Any:
        """Draw transitions uniformly and with replacement, by the same draws as SB3's.

        :param batch_size: number of transitions B
        :param env: normalises observations and rewards
        :return: SB3's named tuple of tensors (B, …)
        """
        return super(ReplayBuffer, self).sample(batch_size, env)

    def sample_arrays(self, batch_size: int, env: VecNormalize | None = None) -> SampledArrays:
        """Draw what ``sample`` would, by the same draws, without making tensors; not for Dict observations.

        :param batch_size: number of transitions B
        :param env: normalises observations and rewards
        """
        rows = np.random.randint(0, self.size(), size=batch_size)
        if self.n_envs > 1 or self._reset_cells is not None:
            rows, envs = self._without_reset_steps(rows, np.random.randint(0, high=self.n_envs, size=(batch_size,)))
        else:  # a draw from one number leaves the generator as it is
            envs = np.zeros(batch_size, dtype=np.int64)
        first, final, rewards, dones, discounts = self._outcomes_at(rows, envs, env)
        observations: Any = self._store.take_part(PLAIN, first)
        next_observations: Any = self._store.take_next_part(PLAIN, final)
        if env is not None:
            observations, next_observations = env.normalize_obs(observations), env.normalize_obs(next_observations)
        actions = self.actions.reshape(-1, self.action_dim).take(first, axis=0, mode="wrap")
        return SampledArrays(observations, actions, next_observations, dones, rewards, discounts)

    def _get_samples(self, batch_inds: Array, env: VecNormalize | None = None) -> Any:
        envs = np.random.randint(0, high=self.n_envs, size=(len(batch_inds),))
        rows, envs = self._without_reset_steps(np.array(batch_inds), envs)
        return self._samples_at(rows, envs, env)

    def _without_reset_steps(self, rows: Array, envs: Array) -> tuple[Array, Array]:
        """Draw again, in place, what hit a step in which an environment only reset."""
        if self._reset_cells is None:
            return rows, envs
        hits = np.flatnonzero(self._reset_cells[rows, envs])
        if len(hits) and self._reset_cells[: self.size()].all():
            raise EnvError(f"all {self.size() * self.n_envs} transitions in the replay buffer are resets, none can be sampled")
        while len(hits):
            rows[hits] = np.random.randint(0, self.size(), size=len(hits))
            envs[hits] = np.random.randint(0, high=self.n_envs, size=len(hits))
            hits = hits[self._reset_cells[rows[hits], envs[hits]]]
        return rows, envs

    def _outcomes_at(self, rows: Array, envs: Array, env: VecNormalize | None) -> Outcomes:
        """What comes of acting at these rows and environments."""
        cells = rows * self.n_envs + envs
        dones, timeouts, rewards = (array.reshape(-1).take(cells) for array in (self.dones, self.timeouts, self.rewards))
        return Outcomes(cells, cells, self._normalize_reward(rewards, env), dones * (1 - timeouts), None)

    def _samples_at(self, rows: Array, envs: Array, env: VecNormalize | None) -> Any:
        first, final, rewards, dones, discounts = self._outcomes_at(rows, envs, env)
        return ReplayBufferSamples(
            observations=self._observations(self._store.take(first), env),
            actions=self.to_torch(_take(self.actions.reshape(-1, self.action_dim), first), copy=False),
            next_observations=self._observations(self._store.take_next(final), env),
            dones=self.to_torch(dones.reshape(-1, 1)),
            rewards=self.to_torch(rewards.reshape(-1, 1)),
            discounts=None if discounts is None else self.to_torch(discounts.reshape(-1, 1)),
        )

    def _observations(self, parts: dict[str, Array], env: VecNormalize | None) -> Any:
        """Normalise, and convert to tensors."""
        if env is not None:
            parts = self._parts(self._normalize_obs(self._whole(parts), env))
        return self._whole({key: self.to_torch(part, copy=env is not None) for key, part in parts.items()})


class CompactDictReplayBuffer(CompactReplayBuffer, DictReplayBuffer):  # type: ignore[override]
    """The same for Dict observations, SB3's ``DictReplayBuffer``."""

    @staticmethod
    def _parts(whole: Any) -> dict[str, Any]:
        assert isinstance(whole, (dict, spaces.Dict)), "DictReplayBuffer must be used with Dict obs space only"
        return whole if isinstance(whole, dict) else dict(whole.spaces)

    @staticmethod
    def _whole(parts: dict[str, Any]) -> Any:
        return parts

    def _samples_at(self, rows: Array, envs: Array, env: VecNormalize | None) -> DictReplayBufferSamples:
        return DictReplayBufferSamples(*super()._samples_at(rows, envs, env)[:5])


class CompactNStepReplayBuffer(CompactReplayBuffer, NStepReplayBuffer):
    """The same with n-step returns, SB3's ``NStepReplayBuffer``.

    :param args: arguments of :class:`CompactReplayBuffer`
    :param n_steps: rewards that a return sums, fewer where an episode or the data ends before
    :param gamma: discount factor γ of the sum
    :param kwargs: arguments of :class:`CompactReplayBuffer`
    """

    def __init__(self, *args: Any, n_steps: int = 3, gamma: float = 0.99, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.n_steps = n_steps
        self.gamma = gamma

    def _outcomes_at(self, rows: Array, envs: Array, env: VecNormalize | None) -> Outcomes:
        steps = np.arange(self.n_steps)
        window = (rows[:, None] + steps) % self.buffer_size
        cells = window * self.n_envs + envs[:, None]
        dones, timeouts = self.dones.reshape(-1).take(cells), self.timeouts.reshape(-1).take(cells)
        ends = (dones != 0) | (timeouts != 0) | (window == (self.pos - 1) % self.buffer_size)
        if self._reset_cells is not None:
            ends[:, :-1] |= self._reset_cells.reshape(-1).take(cells[:, 1:])
        ends[:, -1] = True
        last = ends.argmax(axis=1)
        kept = steps <= last[:, None]

        rewards = self._normalize_reward(self.rewards.reshape(-1).take(cells), env)
        discounts = self.gamma ** steps.astype(np.float32)[None]
        returns = (rewards * discounts * kept).sum(axis=1)
        final, final_dones, final_timeouts = (
            np.take_along_axis(array, last[:, None], axis=1)[:, 0] for array in (cells, dones, timeouts)
        )
        ahead = self.gamma ** kept.sum(axis=1).astype(np.float32)
        return Outcomes(cells[:, 0], final, returns, final_dones * (1 - final_timeouts), ahead)


class CompactHerReplayBuffer(HerReplayBuffer, CompactDictReplayBuffer):  # type: ignore[override]
    """The same with hindsight experience replay, SB3's ``HerReplayBuffer``, whose sampling this is."""

    def add(self, obs: Any, next_obs: Any, action: Array, reward: Array, done: Array, infos: list[dict[str, Any]]) -> None:
        """Add a transition of each environment; a step in which one only reset belongs to no episode.

        :param obs: dict of (N, …)
        :param next_obs: dict of (N, …)
        :param action: (N, A)
        :param reward: (N,)
        :param done: (N,)
        :param infos: N infos
        """
        if not [info for info in infos if RESET_STEP in info]:
            super().add(obs, next_obs, action, reward, done, infos)
            return
        resets = np.array([bool(info.get(RESET_STEP)) for info in infos])
        super().add(obs, next_obs, action, reward, done & ~resets, infos)
        self._current_ep_start[resets] = self.pos

    def _get_real_samples(self, batch_indices: Array, env_indices: Array, env: VecNormalize | None = None) -> Any:
        return self._samples_at(batch_indices, env_indices, env)

    def reset(self) -> None:
        """Forget all transitions and episodes."""
        super().reset()
        for array in (self.ep_start, self.ep_length, self._current_ep_start):
            array[:] = 0


#: the buffers of SB3's that have a compact counterpart, which takes the same arguments and gives the same samples
COUNTERPARTS: dict[type[ReplayBuffer], type[CompactReplayBuffer]] = {
    ReplayBuffer: CompactReplayBuffer,
    DictReplayBuffer: CompactDictReplayBuffer,
    NStepReplayBuffer: CompactNStepReplayBuffer,
    HerReplayBuffer: CompactHerReplayBuffer,
}


def _is_all(indices: tuple[Any, ...]) -> bool:
    """Whether these are full slices."""
    return not indices or all(isinstance(i, slice) and i == slice(None) for i in indices)


def _bytes(array: Array) -> Array:
    """View (N, …) as (N, bytes), so that NaNs equal themselves."""
    return array.reshape(len(array), -1).view(np.uint8)


@cache
def _torch_dtype(dtype: np.dtype[Any]) -> th.dtype:
    return th.from_numpy(np.empty(0, dtype)).dtype


def _take(array: Array, cells: Array) -> Array:
    """Copy rows into memory of torch's, on whose alignment the last bits of its results may depend."""
    out = th.empty((len(cells), *array.shape[1:]), dtype=_torch_dtype(array.dtype), device="cpu").numpy()
    return array.take(cells, axis=0, out=out, mode="wrap")
