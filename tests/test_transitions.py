"""Nothing is misplaced between an environment and a buffer: every algorithm, vectorisation and way to end an episode."""

from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import numpy as np
import pytest
import torch as th
from episode_env import BOX, DISCRETE, IN_PROCESS, KINDS, MIXED, PROCESSES, Plan, build, reward_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecEnv

from spinup_plugins import DDPG, PPO, SAC, TD3, TRPO, VPG
from spinup_plugins.engine.replay import RESET_STEP

ON_POLICY: dict[str, Callable[[VecEnv], Any]] = {
    "vpg": lambda env: VPG("MlpPolicy", env, n_steps=16, gamma=0.9, gae_lambda=0.8, train_v_iters=1, seed=0),
    "trpo": lambda env: TRPO("MlpPolicy", env, n_steps=16, batch_size=16, gamma=0.9, gae_lambda=0.8, seed=0),
    "ppo": lambda env: PPO("MlpPolicy", env, n_steps=16, batch_size=16, n_epochs=1, gamma=0.9, gae_lambda=0.8, seed=0),
}
SMALL: dict[str, Any] = {
    "policy_kwargs": {"net_arch": [8]},
    "buffer_size": 600,
    "learning_starts": 8,
    "batch_size": 8,
    "train_freq": 4,
    "seed": 0,
}
OFF_POLICY: dict[str, Callable[[VecEnv], Any]] = {
    "ddpg": lambda env: DDPG("MlpPolicy", env, **SMALL),
    "td3": lambda env: TD3("MlpPolicy", env, **SMALL),
    "sac": lambda env: SAC("MlpPolicy", env, **SMALL),
    "sac n-step": lambda env: SAC("MlpPolicy", env, n_steps=3, **SMALL),
    "sac overlapping": lambda env: SAC("MlpPolicy", env, overlap=True, **SMALL),
}
ALGORITHMS = ON_POLICY | OFF_POLICY

#: forking with threads about is what Python ≥ 3.12 warns of; starting anew takes seconds to import torch
pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")


def follows(plan: Plan, episode: int, at: int) -> tuple[int, int]:
    """Episode and step after (episode, at)."""
    return (episode + 1, 0) if at + 1 == plan[episode % len(plan)][0] else (episode, at + 1)


class CheckRollouts(BaseCallback):
    """Checks the rollout buffer against the plans: what is in it, and the targets that follow from it."""

    def __init__(self, plans: tuple[Plan, ...]) -> None:
        super().__init__()
        self.plans, self.checked = plans, 0
        self.position: list[tuple[int, int] | None] = [None] * len(plans)

    def _on_step(self) -> bool:
        return True

    def value(self, *observation: float) -> float:
        tensor = th.tensor([observation], dtype=th.float32)
        with th.no_grad():
            return float(self.model.policy.predict_values(tensor))  # type: ignore[operator]

    def _on_rollout_end(self) -> None:
        for copy in range(len(self.plans)):
            self._check_column(copy)
        self.checked += 1

    def _check_column(self, copy: int) -> None:
        buffer, model = self.model.rollout_buffer, self.model  # type: ignore[attr-defined]
        plan, n_steps = self.plans[copy], buffer.buffer_size
        seen = [tuple(map(int, buffer.observations[t, copy])) for t in range(n_steps)]
        episode, at = seen[0][1:]
        if self.position[copy] is not None and not (model.reset_on_rollout or getattr(model.env, "reset_steps", False)):
            assert (episode, at) == self.position[copy], "the rollout goes on where the last one stopped"
        rewards, ended = [], []
        for t in range(n_steps):
            assert seen[t] == (copy, episode, at), f"step {t} of copy {copy}: {seen[t]}, not {(copy, episode, at)}"
            assert bool(buffer.episode_starts[t, copy]) == (at == 0)
            length, by_time_limit = plan[episode % len(plan)]
            reward = reward_of(copy, episode, at)
            ended.append(at + 1 == length)
            if ended[-1] and by_time_limit:
                reward += 0.9 * self.value(copy, episode, length)  # of the episode's last observation
            assert buffer.rewards[t, copy] == pytest.approx(reward, abs=1e-5)
            rewards.append(reward)
            before = (episode, at)
            episode, at = follows(plan, episode, at)
        self.position[copy] = (episode, at)
        # The generalised advantages once more, backwards from the value of what follows the column.
        after = 0.0 if ended[-1] else self.value(copy, before[0], before[1] + 1)
        advantage = 0.0
        for t in reversed(range(n_steps)):
            value = self.value(*seen[t])
            delta = rewards[t] + (0.0 if ended[t] else 0.9 * after) - value
            advantage = delta + (0.0 if ended[t] else 0.9 * 0.8 * advantage)
            assert buffer.advantages[t, copy] == pytest.approx(advantage, abs=1e-4)
            after = value


def check_replay(model: Any, plans: tuple[Plan, ...]) -> None:
    """Check every cell of the replay buffer, and that samples are of those cells and no other."""
    buffer, n_steps = model.replay_buffer, getattr(model.replay_buffer, "n_steps", 1)
    rows = np.arange(buffer.size())
    for copy, plan in enumerate(plans):
        expected = None
        for row in rows:
            c, episode, at = map(int, buffer.observations[row, copy])
            if buffer._reset_cells is not None and buffer._reset_cells[row, copy]:
                continue
            assert c == copy
            assert expected is None or (episode, at) == expected, f"row {row} of copy {copy}"
            length, by_time_limit = plan[episode % len(plan)]
            assert buffer.next_observations[row, copy].tolist() == [copy, episode, at + 1]
            assert buffer.rewards[row, copy] == reward_of(copy, episode, at)
            assert bool(buffer.dones[row, copy]) == (at + 1 == length)
            assert bool(buffer.timeouts[row, copy]) == (at + 1 == length and by_time_limit)
            expected = follows(plan, episode, at)
        assert expected is not None
    for observation, following, reward, done in zip(*(part.numpy() for part in _sampled(buffer)), strict=True):
        copy, episode, at = map(int, observation)
        length, by_time_limit = plans[copy][episode % len(plans[copy])]
        steps = int(following[2]) - at
        assert following[:2].tolist() == [copy, episode]
        assert 1 <= steps <= n_steps
        total = sum(model.gamma**k * reward_of(copy, episode, at + k) for k in range(steps))
        assert reward.item() == pytest.approx(total, rel=1e-5)
        assert bool(done) == (at + steps == length and not by_time_limit)


def _sampled(buffer: Any) -> tuple[th.Tensor, ...]:
    samples = buffer.sample(200)
    return samples.observations, samples.next_observations, samples.rewards, samples.dones


def check(algorithm: str, env: VecEnv, plans: tuple[Plan, ...]) -> None:
    model = ALGORITHMS[algorithm](env)
    if algorithm in ON_POLICY:
        checks = CheckRollouts(plans)
        model.learn(3 * 16 * len(plans), callback=checks)
        assert checks.checked >= 2
    else:
        model.learn(60 * len(plans))
        check_replay(model, plans)


@pytest.fixture(params=KINDS, scope="module")
def mixed(request: pytest.FixtureRequest) -> Iterator[VecEnv]:
    with closing(build(request.param, MIXED)) as env:
        yield env


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_both_ends_of_episodes_for_every_algorithm_and_vectorisation(algorithm: str, mixed: VecEnv) -> None:
    check(algorithm, mixed, MIXED)


@pytest.mark.parametrize("ending", ["terminated", "truncated"])
@pytest.mark.parametrize("kind", IN_PROCESS)
@pytest.mark.parametrize("algorithm", ["ppo", "sac"])
def test_one_end_of_episodes_only(algorithm: str, kind: str, ending: str) -> None:
    plans = tuple(tuple((n, ending == "truncated") for n, _ in plan) for plan in MIXED)
    check(algorithm, build(kind, plans), plans)


PLANS = st.lists(
    st.lists(st.tuples(st.integers(1, 9), st.booleans()), min_size=1, max_size=4).map(tuple), min_size=1, max_size=4
).map(tuple)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(plans=PLANS, kind=st.sampled_from(list(IN_PROCESS)), algorithm=st.sampled_from(list(ALGORITHMS)), data=st.data())
def test_any_episodes(plans: tuple[Plan, ...], kind: str, algorithm: str, data: st.DataObject) -> None:
    discrete = algorithm in ON_POLICY and data.draw(st.booleans())
    check(algorithm, build(kind, plans, DISCRETE if discrete else BOX), plans)


@settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck))
@given(plans=PLANS, kind=st.sampled_from(list(PROCESSES)), algorithm=st.sampled_from(list(ALGORITHMS)))
def test_any_episodes_in_processes(plans: tuple[Plan, ...], kind: str, algorithm: str) -> None:
    with closing(build(kind, plans)) as env:
        check(algorithm, env, plans)


@pytest.mark.parametrize("kind", KINDS)
def test_steps_and_infos(kind: str) -> None:
    """What a ``VecEnv`` promises of one step, whatever is underneath."""
    plans = MIXED
    with closing(build(kind, plans)) as env:
        env.reset_steps_known = True  # type: ignore[attr-defined]
        observations = env.reset()
        assert observations.tolist() == [[copy, 0, 0] for copy in range(len(plans))]
        state = [(0, 0)] * len(plans)
        kept: list[tuple[np.ndarray, np.ndarray]] = []
        for _ in range(40):
            kept.append((observations, observations.copy()))
            observations, rewards, dones, infos = env.step(np.zeros((len(plans), 2), np.float32))
            assert rewards.dtype == np.float32 or kind == "SB3 subproc"
            assert dones.dtype == bool
            for copy, plan in enumerate(plans):
                if infos[copy].get(RESET_STEP):
                    assert dones[copy]
                    assert rewards[copy] == 0
                    assert infos[copy].keys() == {RESET_STEP, "TimeLimit.truncated", "terminal_observation"}
                    assert observations[copy].tolist() == [copy, *state[copy]]
                    continue
                episode, at = state[copy]
                length, by_time_limit = plan[episode % len(plan)]
                state[copy] = follows(plan, episode, at)
                over = state[copy][1] == 0
                assert bool(dones[copy]) == over
                assert infos[copy]["TimeLimit.truncated"] == (over and by_time_limit)
                assert ("terminal_observation" in infos[copy]) == over
                if over:
                    assert infos[copy]["terminal_observation"].tolist() == [copy, episode, length]
                if not getattr(env, "reset_steps", False) or not over:
                    assert observations[copy].tolist() == [copy, *state[copy]]
        assert all(np.array_equal(now, then) for now, then in kept), "an observation changed after it was returned"
