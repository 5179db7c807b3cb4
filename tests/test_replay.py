"""Compact replay buffers give the samples of Stable-Baselines3's, bit by bit, whatever is added to them, in less memory."""

import copy
import io
import pickle
import tracemalloc
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3 import HerReplayBuffer
from stable_baselines3.common import buffers
from stable_baselines3.common.buffers import DictReplayBuffer, NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import BitFlippingEnv
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from twins import BOX, OFF_POLICY, PEERS, VECTOR, build, gap, learnt, toy

from spinup_plugins import SAC
from spinup_plugins.engine.replay import (
    COUNTERPARTS,
    RESET_STEP,
    CompactDictReplayBuffer,
    CompactHerReplayBuffer,
    CompactNStepReplayBuffer,
    CompactReplayBuffer,
)
from spinup_plugins.errors import EnvError
from spinup_plugins.testing import ToyEnv

ACTIONS = spaces.Box(-1.0, 1.0, (2,), np.float64)
GOAL = spaces.Box(-9.0, 9.0, (2,), np.float64)
GOALS = spaces.Dict({"observation": spaces.Box(-9.0, 9.0, (3,), np.float32), "achieved_goal": GOAL, "desired_goal": GOAL})
SPACES: dict[str, spaces.Space[Any]] = {
    "float32": spaces.Box(-np.inf, np.inf, (3,), np.float32),
    "float64": spaces.Box(-np.inf, np.inf, (2, 3), np.float64),
    "image": spaces.Box(0, 255, (5, 5, 3), np.uint8),
    "Discrete": spaces.Discrete(3),
    "MultiDiscrete": spaces.MultiDiscrete([2, 3]),
    "MultiBinary": spaces.MultiBinary(3),
    "Dict": spaces.Dict(
        {"a": spaces.Box(-np.inf, np.inf, (2,), np.float64), "b": spaces.Discrete(2), "c": spaces.MultiBinary(3)}
    ),
}
FLAT = [name for name in SPACES if name != "Dict"]

Step = tuple[Any, Any, np.ndarray, np.ndarray, np.ndarray, list[dict[str, Any]]]


class GoalEnv(ToyEnv):
    """A goal is reached within half a unit; the reward sees the last digit of goals, and the infos."""

    def __init__(self) -> None:
        super().__init__(copy.deepcopy(GOALS), copy.deepcopy(ACTIONS))

    def compute_reward(self, achieved: np.ndarray, desired: np.ndarray, infos: Any) -> np.ndarray:
        bonus = np.array([info.get("bonus", 0.0) for info in infos])
        return np.linalg.norm(achieved - desired, axis=-1) * 1e3 + bonus


@dataclass
class Scenario:
    """What is added to a buffer, and to which."""

    space: str
    n_envs: int
    rows: int
    steps: int
    seed: int
    ends: float  #: probability of a termination, and of a truncation
    jumps: float  #: probability that an environment is reset in mid-episode
    timeouts: bool

    @property
    def observation_space(self) -> Any:
        return GOALS if self.space == "goals" else SPACES[self.space]

    def buffer(self, cls: type, **kwargs: Any) -> Any:
        size = self.rows * self.n_envs + self.n_envs - 1
        kwargs = {"handle_timeout_termination": self.timeouts} | kwargs
        return cls(size, self.observation_space, ACTIONS, device="cpu", n_envs=self.n_envs, **kwargs)

    def stream(self) -> Iterator[Step]:
        """Observations with NaNs, infinities, zeros of either sign; integers are few, so that unrelated ones may be equal."""
        rng, n = np.random.default_rng(self.seed), self.n_envs

        def draw(space: Any) -> Any:
            if isinstance(space, spaces.Dict):
                return {key: draw(part) for key, part in space.items()}
            if isinstance(space, spaces.Discrete):
                return rng.integers(0, space.n, n)
            if isinstance(space, spaces.Box) and space.dtype.kind == "f":
                values = rng.standard_normal((n, *space.shape))
                odd = rng.choice([np.nan, np.inf, 0.0, -0.0, 1.0], values.shape)
                return np.where((rng.random(values.shape) < 0.3) & (self.space != "goals"), odd, values).astype(space.dtype)
            return rng.integers(0, 2, (n, *space.shape)).astype(space.dtype)

        def where(condition: np.ndarray, one: Any, other: Any) -> Any:
            if isinstance(one, dict):
                return {key: where(condition, one[key], other[key]) for key in one}
            return np.where(condition.reshape(-1, *[1] * (one.ndim - 1)), one, other)

        now = draw(self.observation_space)
        for _ in range(self.steps):
            following, fresh = draw(self.observation_space), draw(self.observation_space)
            terminated, truncated, jump = (rng.random(n) < chance for chance in (self.ends, self.ends, self.jumps))
            infos = [{"TimeLimit.truncated": bool(t), "bonus": float(rng.integers(9))} if t else {} for t in truncated]
            reward, action = rng.standard_normal(n).astype(np.float32), rng.uniform(-1, 1, (n, 2))
            yield copy.deepcopy(now), copy.deepcopy(following), action, reward, terminated | truncated, infos
            now = where(terminated | truncated | jump, fresh, following)


def scenarios(names: list[str]) -> st.SearchStrategy[Scenario]:
    return st.builds(
        Scenario,
        space=st.sampled_from(names),
        n_envs=st.integers(1, 3),
        rows=st.integers(1, 9),
        steps=st.integers(1, 40),
        seed=st.integers(0, 2**32 - 1),
        ends=st.sampled_from([0.0, 0.1, 0.5]),
        jumps=st.sampled_from([0.0, 0.2]),
        timeouts=st.booleans(),
    )


quick = settings(max_examples=150, deadline=None)


@cache
def normaliser(space: str) -> VecNormalize:
    observations = GOALS if space == "goals" else SPACES[space]
    keys = {"norm_obs_keys": ["achieved_goal"] if space == "goals" else ["a"]} if isinstance(observations, spaces.Dict) else {}
    env = VecNormalize(
        DummyVecEnv([lambda: ToyEnv(copy.deepcopy(observations), copy.deepcopy(ACTIONS))]),
        norm_obs=space in ("float32", "float64", "image", "Dict", "goals"),
        **keys,
    )
    env.reset()
    for _ in range(5):
        env.step(env.action_space.sample()[None])
    return env


def check_same(ours: Any, peers: Any, *, single: bool = False) -> None:
    """Tensors of two samples are the same bits, of the same type; ``single``: once theirs have only 32."""
    if isinstance(peers, dict):
        assert ours.keys() == peers.keys()
        for key in peers:
            check_same(ours[key], peers[key], single=single)
    elif isinstance(peers, tuple):
        assert type(ours) is type(peers)
        for one, other in zip(ours, peers, strict=True):
            check_same(one, other, single=single)
    elif peers is None:
        assert ours is None
    else:
        peers = th.as_tensor(np.asarray(peers))
        peers = peers.float() if single and peers.dtype == th.float64 else peers
        ours = th.as_tensor(np.asarray(ours))
        assert (ours.dtype, ours.shape) == (peers.dtype, peers.shape)
        assert ours.numpy().tobytes() == peers.numpy().tobytes()


def draw(buffer: Any, *arguments: Any, method: str = "sample", **kwargs: Any) -> tuple[Any, float]:
    """Samples, and the number that comes after them from the same generator."""
    np.random.seed(5)
    return getattr(buffer, method)(*arguments, **kwargs), np.random.random()


def check_samples(ours: Any, peer: Any, env: VecNormalize | None = None, *, single: bool = False) -> None:
    every = np.arange(peer.size())
    for arguments, method in (((20,), "sample"), ((np.tile(every, 2),), "_get_samples")):
        (mine, after), (theirs, their_after) = (draw(b, *arguments, method=method, env=env) for b in (ours, peer))
        check_same(mine, theirs, single=single)
        assert after == their_after
    for name in ("observations", "next_observations"):
        mine, theirs = getattr(ours, name), getattr(peer, name)
        if not isinstance(theirs, dict):
            mine, theirs = {"": mine}, {"": theirs}
        check_same({k: v[every] for k, v in mine.items()}, {k: v[every] for k, v in theirs.items()}, single=single)


def check_side_table(buffer: Any) -> None:
    """Each of its rows is in use once, or free."""
    store, own = buffer._store, 2 * buffer.n_envs
    used = [code - 1 for code in store.codes.flat if code > own]
    assert sorted(used + store.free) == list(range(own, store.used))
    assert store.used - own <= buffer.buffer_size * buffer.n_envs


# --- the same samples ------------------------------------------------------------------------------------------------


@quick
@given(scenario=scenarios(FLAT), single=st.booleans(), normalised=st.booleans())
def test_plain(scenario: Scenario, single: bool, normalised: bool) -> None:
    single = single and not normalised
    ours, peer = scenario.buffer(CompactReplayBuffer, single_precision=single), scenario.buffer(ReplayBuffer)
    env = normaliser(scenario.space) if normalised else None
    for index, step in enumerate(scenario.stream()):
        ours.add(*step)
        peer.add(*step)
        assert (ours.pos, ours.full, ours.size()) == (peer.pos, peer.full, peer.size())
        if index % 7 == 6:
            check_samples(ours, peer, env, single=single)
    check_samples(ours, peer, env, single=single)
    check_side_table(ours)


@quick
@given(scenario=scenarios(["Dict"]), single=st.booleans(), normalised=st.booleans())
def test_dict(scenario: Scenario, single: bool, normalised: bool) -> None:
    single = single and not normalised
    ours, peer = scenario.buffer(CompactDictReplayBuffer, single_precision=single), scenario.buffer(DictReplayBuffer)
    for step in scenario.stream():
        ours.add(*copy.deepcopy(step))
        peer.add(*step)
    check_samples(ours, peer, normaliser("Dict") if normalised else None, single=single)
    check_side_table(ours)


@quick
@given(scenario=scenarios(FLAT), n_steps=st.integers(1, 5), normalised=st.booleans())
def test_n_step(scenario: Scenario, n_steps: int, normalised: bool) -> None:
    kwargs = {"n_steps": n_steps, "gamma": 0.9}
    ours, peer = scenario.buffer(CompactNStepReplayBuffer, **kwargs), scenario.buffer(NStepReplayBuffer, **kwargs)
    for step in scenario.stream():
        ours.add(*step)
        peer.add(*step)
    check_samples(ours, peer, normaliser(scenario.space) if normalised else None)


@quick
@given(
    scenario=scenarios(["goals"]),
    strategy=st.sampled_from(["final", "future", "episode"]),
    normalised=st.booleans(),
    infos=st.booleans(),
)
def test_hindsight(scenario: Scenario, strategy: str, normalised: bool, infos: bool) -> None:
    kwargs = {"env": goal_env(), "goal_selection_strategy": strategy, "copy_info_dict": infos}
    ours, peer = scenario.buffer(CompactHerReplayBuffer, **kwargs), scenario.buffer(HerReplayBuffer, **kwargs)
    env = normaliser("goals") if normalised else None
    for step in scenario.stream():
        ours.add(*copy.deepcopy(step))
        peer.add(*step)
    if (ours._current_ep_start != ours.pos).any():
        for buffer in (ours, peer):
            with pytest.warns(UserWarning, match="will be truncated"):
                buffer.truncate_last_trajectory()
    assert np.array_equal(ours.ep_length, peer.ep_length)
    if not peer.ep_length.any():  # one longer than the buffer
        return
    for theirs, mine in ((draw(peer, 30, env=env), draw(ours, 30, env=env)),):
        check_same(mine[0], theirs[0])
        assert mine[1] == theirs[1]


@cache
def goal_env() -> DummyVecEnv:
    return DummyVecEnv([GoalEnv])


def filled(cls: type = CompactReplayBuffer, space: str = "float32", *, steps: int = 30, **kwargs: Any) -> tuple[Any, Scenario]:
    """A buffer of 8 rows of 2 environments; its scenario."""
    scenario = Scenario(space, n_envs=2, rows=8, steps=steps, seed=1, ends=0.1, jumps=0.1, timeouts=True)
    buffer = scenario.buffer(cls, **kwargs)
    for step in scenario.stream():
        buffer.add(*step)
    return buffer, scenario


@pytest.mark.parametrize("steps", [5, 8, 30])
def test_next_observations_are_indexed_like_an_array(steps: int) -> None:
    ours, peer = filled(steps=steps)[0], filled(ReplayBuffer, steps=steps)[0]
    view, array = ours.next_observations, peer.next_observations
    assert (view.shape, view.dtype, view.ndim, len(view)) == (array.shape, array.dtype, array.ndim, len(array))
    rows, envs = np.array([0, 3, -2, 1]) % peer.size(), np.array([1, 0, -1, 1])
    indices = (2, (3, 1), (3, -1), slice(1, 4), (slice(None, 4), 0), rows, (rows, envs), (rows, envs % 2), [0, 2], (rows, 0))
    for index in (
        *indices,
        (0, 1, 2),
        (0, ..., 1),
        (0, slice(None), slice(None)),
        np.arange(8) < 3,
        (rows, envs, 1),
        (1, None),
    ):
        np.testing.assert_array_equal(view[index], array[index])
    np.testing.assert_array_equal(np.asarray(view)[: peer.size()], array[: peer.size()])
    assert np.isnan(view).shape == array.shape
    for index in (99, (0, 2), (np.array([99]), np.array([0])), (0, 0, 0, slice(None))):
        with pytest.raises(IndexError):
            view[index]
    with pytest.raises(ValueError, match="copying"):
        np.array(view, copy=False)


def test_what_would_be_lost_cannot_be_written() -> None:
    buffer, _ = filled()
    for array in (buffer.observations, buffer.next_observations[0], buffer.next_observations[2:4]):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1.0
    with pytest.raises(TypeError, match="item assignment"):
        buffer.next_observations[0] = 1.0
    view = buffer.next_observations
    before = view[np.arange(8)]
    before[:] = 0.0  # a copy, as an array's would be
    assert not np.array_equal(view[np.arange(8)], before)


def test_a_view_follows_the_buffer() -> None:
    buffer, scenario = filled(steps=1)
    view = buffer.next_observations
    for step in scenario.__class__(**vars(scenario) | {"seed": 2, "ends": 0.9, "steps": 50}).stream():
        buffer.add(*step)
        np.testing.assert_array_equal(view[(buffer.pos - 1) % 8], step[1])


def test_a_transition_that_cannot_be_stored_leaves_the_others_as_they_were() -> None:
    (buffer, scenario), (peer, _) = filled(steps=6), filled(ReplayBuffer, steps=6)
    obs, next_obs, *rest = next(scenario.stream())
    for bad in ((obs, np.zeros((2, 9)), *rest), (np.zeros((2, 9)), next_obs, *rest), (obs, next_obs, np.zeros(5), *rest[1:])):
        with pytest.raises(ValueError, match=r"broadcast|reshape"):
            buffer.add(*bad)
        check_samples(buffer, peer)
    for each in (buffer, peer):
        each.add(obs, next_obs, *rest)
    check_samples(buffer, peer)


def test_transitions_may_be_added_together() -> None:
    (ours, scenario), (peer, _) = filled(), filled(ReplayBuffer)
    steps = list(scenario.stream())
    for each in (ours, peer):
        each.extend(*zip(*steps, strict=True))
    check_samples(ours, peer)


@pytest.mark.parametrize("cls", [CompactReplayBuffer, CompactNStepReplayBuffer])
def test_reset_forgets_everything(cls: type) -> None:
    buffer, scenario = filled(cls)
    assert buffer._store.used > 4
    buffer.reset()
    assert (buffer.pos, buffer.full, buffer.size()) == (0, False, 0)
    assert not buffer._store.codes.any()
    assert buffer.nbytes <= scenario.buffer(cls).nbytes
    fresh = scenario.buffer(cls)
    for step in list(scenario.stream())[5:12]:
        buffer.add(*step)
        fresh.add(*step)
    check_samples(buffer, fresh)
    check_side_table(buffer)


def test_reset_forgets_episodes() -> None:
    buffer, _ = filled(CompactHerReplayBuffer, "goals", env=goal_env())
    buffer.sample(3)
    buffer.reset()
    with pytest.raises(RuntimeError, match="Unable to sample before the end of the first episode"):
        buffer.sample(3)


# --- copies and files ------------------------------------------------------------------------------------------------

KINDS: dict[str, tuple[type, str, dict[str, Any]]] = {
    "plain": (CompactReplayBuffer, "float64", {}),
    "single precision": (CompactReplayBuffer, "float64", {"single_precision": True}),
    "Dict": (CompactDictReplayBuffer, "Dict", {}),
    "n-step": (CompactNStepReplayBuffer, "image", {"n_steps": 2}),
    "hindsight": (CompactHerReplayBuffer, "goals", {"env": goal_env()}),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("steps", [5, 30])
def test_a_copy_goes_on_alike(kind: str, steps: int) -> None:
    cls, space, kwargs = KINDS[kind]
    buffer, scenario = filled(cls, space, steps=steps, **kwargs)
    copies = [pickle.loads(pickle.dumps(buffer)), copy.deepcopy(buffer)]
    more = list(scenario.__class__(**vars(scenario) | {"seed": 9, "steps": 11, "ends": 0.4}).stream())
    for step in [None, *more]:
        for each in (buffer, *copies):
            if step is not None:
                each.add(*copy.deepcopy(step))
            if kind == "hindsight" and each is not buffer and each.env is None:
                each.set_env(goal_env())
        if kind != "hindsight" or buffer.ep_length.any():
            expected = draw(buffer, 20)
            for each in copies:
                check_same(draw(each, 20), expected)
    assert copies[0].nbytes == pytest.approx(buffer.nbytes, abs=100)  # how far Python's list has grown
    if kind != "hindsight":
        check_side_table(copies[0])


# --- steps in which an environment only reset ------------------------------------------------------------------------


def next_step_autoreset(
    buffer: Any, steps: int, *, length: int = 4, last: int | None = None, resets_are_done: bool = False
) -> None:
    """Episodes of ``length`` steps, the second environment's one shorter, each followed by a step that only resets.

    Observations tell the step's number; rewards are 1, and −1000 where there is nothing to learn.
    """
    clock = np.zeros(2, int)
    for number in range(steps):
        resets = clock == (length, length - 1)
        if last is not None and number >= last:
            resets[:] = True
        done = clock == np.array((length, length - 1)) - 1
        done |= resets & resets_are_done
        clock = np.where(resets, 0, clock + 1)
        obs, following = np.full((2, 3), float(number)), np.full((2, 3), number + 1.0)
        if isinstance(buffer.observation_space, spaces.Dict):
            goals = {
                "achieved_goal": np.where(resets, -1000.0, 1.0)[:, None] * np.ones((2, 2)),
                "desired_goal": np.zeros((2, 2)),
            }
            obs, following = ({"observation": o, **goals} for o in (obs, following))
        infos = [{RESET_STEP: True} if r else {RESET_STEP: False} for r in resets]
        buffer.add(obs, following, np.zeros((2, 2)), np.where(resets, -1000.0, 1.0), done, infos)


@pytest.mark.parametrize("steps", [7, 12, 40])
@pytest.mark.parametrize("cls", [CompactReplayBuffer, CompactNStepReplayBuffer])
def test_resets_are_never_sampled(cls: type, steps: int) -> None:
    buffer = Scenario("float32", 2, 12, 0, 0, 0.0, 0.0, True).buffer(cls)
    next_step_autoreset(buffer, steps)
    np.random.seed(0)
    samples = buffer.sample(2000)
    assert samples.rewards.min() > 0
    # All others are, the same number of times up to chance.
    expected = np.argwhere(~buffer._reset_cells[: buffer.size()])
    _, counts = np.unique(samples.observations[:, 0].numpy(), return_counts=True)
    assert len(counts) == len(np.unique(expected[:, 0]))
    assert counts.min() > 1000 / buffer.size() * 0.5
    assert len(buffer._store.free) == 0, "the step before ends in what the reset begins with"


def test_returns_end_before_a_reset_even_where_no_episode_does() -> None:
    buffer = Scenario("float32", 2, 12, 0, 0, 0.0, 0.0, True).buffer(CompactNStepReplayBuffer, n_steps=3, gamma=1.0)
    next_step_autoreset(buffer, 9)
    buffer.dones[:] = 0.0
    rows, envs = np.array([2, 3, 5]), np.array([0, 0, 1])
    samples = buffer._samples_at(rows, envs, None)
    assert samples.rewards[:, 0].tolist() == [2.0, 1.0, 2.0]
    assert samples.next_observations[:, 0].tolist() == [4.0, 4.0, 7.0]


@pytest.mark.parametrize("resets_are_done", [True, False])
@pytest.mark.parametrize("strategy", ["final", "future", "episode"])
@pytest.mark.parametrize("steps", [12, 33])
def test_resets_are_in_no_episode(strategy: str, steps: int, resets_are_done: bool) -> None:
    buffer = Scenario("goals", 2, 14, 0, 0, 0.0, 0.0, True).buffer(
        CompactHerReplayBuffer, env=goal_env(), goal_selection_strategy=strategy
    )
    next_step_autoreset(buffer, steps, resets_are_done=resets_are_done)
    assert not buffer.ep_length[buffer._reset_cells].any()
    assert set(np.unique(buffer.ep_length[:, 0])) == {0, 4}
    assert set(np.unique(buffer.ep_length[:, 1])) == {0, 3}
    samples = buffer.sample(500)
    assert samples.observations["achieved_goal"].min() > 0
    assert samples.observations["desired_goal"].min() >= 0


def test_overwritten_resets_count_no_more() -> None:
    buffer = Scenario("float32", 2, 6, 0, 0, 0.0, 0.0, True).buffer(CompactReplayBuffer)
    next_step_autoreset(buffer, 6)
    assert buffer._reset_cells.any()
    next_step_autoreset(buffer, 6, length=100)
    assert not buffer._reset_cells.any()


def test_a_buffer_of_resets_alone_is_an_error() -> None:
    buffer = Scenario("float32", 2, 6, 0, 0, 0.0, 0.0, True).buffer(CompactReplayBuffer)
    next_step_autoreset(buffer, 3, last=0)
    with pytest.raises(EnvError, match="all 6 transitions in the replay buffer are resets"):
        buffer.sample(4)


# --- memory ----------------------------------------------------------------------------------------------------------


def nbytes(buffer: Any) -> int:
    """Memory of the arrays that SB3's buffer has."""
    return sum(value.nbytes for value in vars(buffer).values() if isinstance(value, np.ndarray))


def test_half_cheetah_takes_little_more_than_a_third() -> None:
    env = gym.make("HalfCheetah-v5", max_episode_steps=100)
    spaces_ = env.observation_space, env.action_space
    ours, peer = (
        CompactReplayBuffer(1500, *spaces_, device="cpu", single_precision=True),
        ReplayBuffer(1500, *spaces_, device="cpu"),
    )
    exact = CompactReplayBuffer(1500, *spaces_, device="cpu")
    obs = env.reset(seed=0)[0]
    for _ in range(2000):
        action = env.action_space.sample()
        following, reward, terminated, truncated, _ = env.step(action)
        step = (obs[None], following[None], action[None], np.array([reward]), np.array([terminated or truncated]))
        for buffer in (ours, exact, peer):
            buffer.add(*step, [{"TimeLimit.truncated": truncated}])
        obs = env.reset()[0] if truncated else following
    assert ours._store.used == 2 + 15, "only episodes' last observations are stored twice"
    assert ours.nbytes <= 0.4 * nbytes(peer)
    assert exact.nbytes <= 0.6 * nbytes(peer)
    assert ours.bytes_per_transition == ours.nbytes / 1500
    check_samples(ours, peer, single=True)
    check_samples(exact, peer)


def test_frames_take_little_more_than_half() -> None:
    space = spaces.Box(0, 255, (84, 84, 4), np.uint8)
    ours, peer = (cls(600, space, ACTIONS, device="cpu", n_envs=2) for cls in (CompactReplayBuffer, ReplayBuffer))
    frames = np.random.default_rng(0).integers(0, 256, (11, 2, *space.shape), np.uint8)
    for number in range(700):
        done = number % 100 == 99
        step = (
            frames[number % 11],
            frames[(number + (5 if done else 1)) % 11],
            np.zeros((2, 2)),
            np.zeros(2),
            np.full(2, done),
        )
        for buffer in (ours, peer):
            buffer.add(*step, [{}, {}])
    assert ours.nbytes <= 0.55 * nbytes(peer)
    check_same(draw(ours, 16), draw(peer, 16))


def test_nothing_is_allocated_but_what_is_kept() -> None:
    tracemalloc.start()
    try:
        buffer = CompactReplayBuffer(10_000, SPACES["float64"], ACTIONS, device="cpu", single_precision=True)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert buffer.nbytes <= peak <= 1.1 * buffer.nbytes


def test_too_little_memory_is_announced(monkeypatch: pytest.MonkeyPatch) -> None:
    kwargs = {"observation_space": VECTOR, "action_space": ACTIONS, "device": "cpu"}
    size = CompactReplayBuffer(10_000, **kwargs).nbytes
    memory = SimpleNamespace(available=size)
    monkeypatch.setattr(buffers, "psutil", SimpleNamespace(virtual_memory=lambda: memory), raising=False)
    CompactReplayBuffer(10_000, **kwargs)
    memory.available = size - 1
    with pytest.warns(UserWarning, match="does not have apparently enough memory to store the complete replay buffer"):
        CompactReplayBuffer(10_000, **kwargs)


# --- in the algorithms -----------------------------------------------------------------------------------------------


def same(one: Any, other: Any) -> bool:
    return gap(one, other) == 0.0 and one._n_updates == other._n_updates > 0


@pytest.mark.parametrize("cls", OFF_POLICY)
def test_learning_is_the_same_to_the_last_bit(cls: type) -> None:
    for kwargs in ({}, {"n_steps": 3}):
        compact, plain = (
            learnt(cls, "Pendulum-v1", compact_replay=flag, buffer_size=100, steps=230, train_freq=4, **kwargs)
            for flag in (True, False)
        )
        assert isinstance(compact.replay_buffer, CompactReplayBuffer)
        assert not isinstance(plain.replay_buffer, CompactReplayBuffer)
        assert same(compact, plain)


DOUBLE = spaces.Box(-1.0, 1.0, (3,), np.float64)


@pytest.mark.parametrize("normalised", [True, False])
def test_64_bits_are_kept_where_they_are_normalised(normalised: bool) -> None:
    def env() -> Any:
        vec_env = make_vec_env(lambda: toy(DOUBLE), n_envs=2)
        return VecNormalize(vec_env) if normalised else vec_env

    compact, plain = (learnt(SAC, env(), compact_replay=flag, buffer_size=40, steps=100) for flag in (True, False))
    assert compact.replay_buffer.observations.dtype == (np.float64 if normalised else np.float32)
    assert same(compact, plain)


def test_normalisation_may_come_later() -> None:
    def script(*, compact_replay: bool) -> Any:
        model = build(SAC, toy(DOUBLE), compact_replay=compact_replay)
        model.set_env(VecNormalize(make_vec_env(lambda: toy(DOUBLE), seed=3)))
        return model.learn(60)

    compact, plain = script(compact_replay=True), script(compact_replay=False)
    assert compact.replay_buffer.observations.dtype == np.float64
    assert same(compact, plain)
    # What was stored before stays as it was.
    model = learnt(SAC, toy(DOUBLE))
    before, following = (np.array(getattr(model.replay_buffer, name)) for name in ("observations", "next_observations"))
    model.set_env(VecNormalize(make_vec_env(lambda: toy(DOUBLE))))
    model.learn(9, reset_num_timesteps=False)
    for name, old in (("observations", before), ("next_observations", following)):
        array = np.asarray(getattr(model.replay_buffer, name))
        assert array.dtype == np.float64
        np.testing.assert_array_equal(array[:48], old[:48])


BUFFERS: dict[str, tuple[Any, str, dict[str, Any], type]] = {
    "Box": (VECTOR, "MlpPolicy", {}, ReplayBuffer),
    "Dict": (spaces.Dict({"a": VECTOR}), "MultiInputPolicy", {}, DictReplayBuffer),
    "n-step": (VECTOR, "MlpPolicy", {"n_steps": 2}, NStepReplayBuffer),
    "named": (VECTOR, "MlpPolicy", {"replay_buffer_class": NStepReplayBuffer}, NStepReplayBuffer),
}


@pytest.mark.parametrize("kind", BUFFERS)
@pytest.mark.parametrize("cls", OFF_POLICY)
def test_compact_unless_asked_otherwise(cls: type, kind: str) -> None:
    space, policy, kwargs, expected = BUFFERS[kind]
    model = build(cls, toy(space), policy, **kwargs)
    assert type(model.replay_buffer) is COUNTERPARTS[expected]
    assert model.replay_buffer_class is expected
    assert type(build(cls, toy(space), policy, compact_replay=False, **kwargs).replay_buffer) is expected
    peer = build(PEERS[cls], toy(space), policy, **kwargs)
    stream = io.BytesIO()
    peer.save(stream)
    assert model.replay_buffer_kwargs == peer.replay_buffer_kwargs
    if model.n_steps == 1:  # else SB3 warns of what its own file says
        assert type(cls.load(stream).replay_buffer) is COUNTERPARTS[expected]
        assert type(cls.load(stream, compact_replay=False).replay_buffer) is expected


def test_hindsight_in_an_algorithm() -> None:
    def script(*, compact_replay: bool) -> Any:
        env = BitFlippingEnv(n_bits=3, continuous=True)
        kwargs = {"replay_buffer_class": HerReplayBuffer, "replay_buffer_kwargs": {"goal_selection_strategy": "final"}}
        return learnt(SAC, env, "MultiInputPolicy", compact_replay=compact_replay, buffer_size=50, steps=70, **kwargs)

    compact, plain = script(compact_replay=True), script(compact_replay=False)
    assert type(compact.replay_buffer) is CompactHerReplayBuffer
    assert same(compact, plain)


def test_a_buffer_of_ones_own_is_used_as_it_is() -> None:
    class Own(ReplayBuffer):
        pass

    assert type(build(SAC, replay_buffer_class=Own).replay_buffer) is Own
    assert type(build(SAC, replay_buffer_class=CompactReplayBuffer).replay_buffer) is CompactReplayBuffer


@pytest.mark.parametrize("cls", OFF_POLICY)
def test_memory_may_be_optimised_along_with_timeouts(cls: type) -> None:
    model = learnt(cls, optimize_memory_usage=True)
    assert model.replay_buffer.handle_timeout_termination
    assert model.replay_buffer.timeouts.sum() > 0
    model.learn(8)  # nothing is cut short, which SB3 would warn of
    stream = io.BytesIO()
    model.save(stream)
    for each in (cls, PEERS[cls]):
        each.load(stream)
    dictionary = build(cls, toy(spaces.Dict({"a": VECTOR})), "MultiInputPolicy", optimize_memory_usage=True)
    assert type(dictionary.replay_buffer) is CompactDictReplayBuffer
    granted = build(cls, optimize_memory_usage=True, replay_buffer_kwargs={"handle_timeout_termination": False})
    assert type(granted.replay_buffer) is ReplayBuffer
    assert granted.optimize_memory_usage, "where SB3 grants it, numbers are SB3's"


def test_replay_buffers_move_between_the_two(tmp_path: Any) -> None:
    """Files of either open in either, the compact ones wherever this package is installed."""
    ours, peer = learnt(SAC, engine="torch"), learnt(PEERS[SAC])
    ours.save_replay_buffer(tmp_path / "ours")
    peer.save_replay_buffer(tmp_path / "peers")
    expected = draw(peer.replay_buffer, 9)
    for model in (build(SAC), build(PEERS[SAC])):
        for file, cls in (("ours", CompactReplayBuffer), ("peers", ReplayBuffer)):
            model.load_replay_buffer(tmp_path / file)
            assert type(model.replay_buffer) is cls
            check_same(draw(model.replay_buffer, 9), expected)
            model.learn(50)


def test_spaces_that_do_not_fit_are_refused_as_ever() -> None:
    for kwargs in ({"replay_buffer_class": DictReplayBuffer}, {"replay_buffer_class": HerReplayBuffer}):
        with pytest.raises(AssertionError, match="must be used with Dict obs space only"):
            build(SAC, **kwargs)
    with pytest.raises(AssertionError, match="must be used with Dict obs space only"):
        CompactDictReplayBuffer(10, VECTOR, BOX)
    with pytest.raises(TypeError, match="unexpected keyword argument 'n_step'"):
        build(SAC, replay_buffer_kwargs={"n_step": 3})


def test_next_observations_have_what_an_array_has() -> None:
    ours, theirs = (cls(6, spaces.Box(-9, 9, (2,)), spaces.Box(-1, 1, (1,))) for cls in (CompactReplayBuffer, ReplayBuffer))
    for buffer in (ours, theirs):
        for step in range(4):
            one, other = np.full((1, 2), step, np.float32), np.full((1, 2), step + 1 + step % 2, np.float32)
            buffer.add(one, other, np.zeros((1, 1)), np.zeros(1), np.zeros(1), [{}])
    assert ours.next_observations[:4].mean() == theirs.next_observations[:4].mean()
    assert ours.next_observations.nbytes == theirs.next_observations.nbytes
    assert np.array_equal(ours.next_observations.copy()[:4], theirs.next_observations[:4])
    with pytest.raises(AttributeError):
        ours.next_observations.no_such_thing  # noqa: B018


def test_a_position_that_was_moved_is_refused() -> None:
    buffer = CompactReplayBuffer(6, spaces.Box(-9, 9, (2,)), spaces.Box(-1, 1, (1,)))
    row = (np.zeros((1, 2)), np.ones((1, 2)), np.zeros((1, 1)), np.zeros(1), np.zeros(1), [{}])
    for _ in range(9):
        buffer.add(*row)
    buffer.pos = 1
    with pytest.raises(RuntimeError, match="pos was set to 1, but a CompactReplayBuffer goes on after row 2"):
        buffer.add(*row)
    buffer.reset()
    buffer.add(*row)
    assert buffer.size() == 1
