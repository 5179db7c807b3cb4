"""Gradient steps while the environments step: in which order, from which data, and where that cannot be."""

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3 import HerReplayBuffer
from stable_baselines3.common.envs import BitFlippingEnv
from stable_baselines3.common.vec_env import VecEnvWrapper
from twins import toy

from spinup_plugins import DDPG, SAC, TD3
from spinup_plugins.envs import as_vec_env
from spinup_plugins.errors import ConfigError


class Order(VecEnvWrapper):
    """Notes when steps begin and end."""

    def __init__(self, n_envs: int = 1) -> None:
        super().__init__(as_vec_env(toy, n_envs))
        self.events: list[Any] = []

    def reset(self) -> Any:
        return self.venv.reset()

    def step_async(self, actions: Any) -> None:
        self.events.append("begin")
        super().step_async(actions)

    def step_wait(self) -> Any:
        self.events.append("end")
        return self.venv.step_wait()


def learnt(cls: type, *, steps: int = 12, n_envs: int = 1, **kwargs: Any) -> list[Any]:
    env = Order(n_envs)
    model = cls("MlpPolicy", env, learning_starts=4, batch_size=4, policy_kwargs={"net_arch": [4]}, seed=0, **kwargs)
    train = model.train

    def noted(gradient_steps: int, batch_size: int) -> None:
        env.events.append((gradient_steps, model.replay_buffer.size()))
        train(gradient_steps, batch_size)

    model.train = noted
    model.learn(steps)
    return env.events


@pytest.mark.parametrize("cls", [DDPG, TD3, SAC])
def test_a_gradient_step_lies_between_the_beginning_and_the_end_of_a_step(cls: type) -> None:
    plain, overlapping = learnt(cls), learnt(cls, overlap=True)
    assert plain == ["begin", "end"] * 4 + [each for size in range(5, 13) for each in ("begin", "end", (1, size))]
    # More than four steps lie behind when the sixth begins; the batch is of those five.
    assert overlapping == ["begin", "end"] * 5 + [each for size in range(5, 12) for each in ("begin", (1, size), "end")]


def test_only_the_last_step_of_a_round_overlaps() -> None:
    events = learnt(SAC, overlap=True, train_freq=3, gradient_steps=-1, n_envs=2, steps=18)
    step = ["begin", "end"]
    assert events == step * 3 + step * 2 + ["begin", (6, 5), "end"] + step * 2 + ["begin", (6, 8), "end"]


def test_with_nothing_to_train_it_makes_no_difference() -> None:
    models = [
        SAC("MlpPolicy", as_vec_env("Pendulum-v1", 2, seed=1), seed=1, gradient_steps=0, overlap=overlap).learn(60)
        for overlap in (False, True)
    ]
    for name in ("observations", "actions", "rewards"):
        first, second = (getattr(model.replay_buffer, name)[:30] for model in models)
        assert np.array_equal(first, second)


def test_a_run_goes_on_without_its_buffer(tmp_path: Path) -> None:
    kwargs: dict[str, Any] = {"learning_starts": 20, "batch_size": 8, "overlap": True}
    SAC("MlpPolicy", "Pendulum-v1", **kwargs).learn(30).save(tmp_path / "model.zip")
    model = SAC.load(tmp_path / "model.zip", env=gym.make("Pendulum-v1"))
    updates = model._n_updates
    model.learn(10, reset_num_timesteps=False)
    assert (model.num_timesteps, model._n_updates) == (40, updates + 9)  # nothing to learn from in the first step


def test_where_it_cannot_be() -> None:
    with pytest.raises(ConfigError, match="SAC: overlap=True needs train_freq in steps"):
        SAC("MlpPolicy", gym.make("Pendulum-v1"), overlap=True, train_freq=(1, "episode"))
    goals = BitFlippingEnv(continuous=True)
    with pytest.raises(ConfigError, match="DDPG: overlap=True does not go with HER"):
        DDPG("MultiInputPolicy", goals, overlap=True, replay_buffer_class=HerReplayBuffer)
