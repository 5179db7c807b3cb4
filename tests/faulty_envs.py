"""A one-step-at-a-time environment that fails on demand; ``faulty_envs:Faulty-v0`` registers it where it is named."""

import os
import sys
from typing import Any, Literal

import gymnasium as gym
import numpy as np
from stable_baselines3.common.callbacks import BaseCallback

Fault = Literal["none", "raise", "nan", "exit", "leave", "interrupt", "reset", "old", "reward", "bare"]


class Faulty(gym.Env[np.ndarray, np.ndarray]):
    """Episodes of 10 steps with reward 1, then ``is_success``.

    :param fault: what happens: an exception, a NaN observation, the death of the process, ``SystemExit``, Ctrl-C, a failing
        reset, a step as of old Gym, no reward, or a reset without info
    :param at: step, counted over all episodes, at which it happens
    """

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012
    observation_space = gym.spaces.Box(-1.0, 1.0, (2,), np.float32)
    action_space = gym.spaces.Box(-1.0, 1.0, (1,), np.float32)

    def __init__(self, fault: Fault = "none", at: int = 25, render_mode: str | None = None) -> None:
        self.fault, self.at, self.render_mode = fault, at, render_mode
        self.steps = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        if self.fault == "reset" and self.steps >= self.at:
            raise RuntimeError("no reset today")
        observation = self.np_random.uniform(-1.0, 1.0, 2).astype(np.float32)
        return observation if self.fault == "bare" and self.steps >= self.at else (observation, {})  # type: ignore[return-value]

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        observation = self.np_random.uniform(-1.0, 1.0, 2).astype(np.float32)
        if self.steps == self.at:
            if self.fault == "raise":
                raise ValueError("boom\non two lines")
            if self.fault == "interrupt":
                raise KeyboardInterrupt
            if self.fault == "exit":
                os._exit(3)
            if self.fault == "leave":
                sys.exit(0)
            if self.fault == "old":
                return observation, 1.0, False, {}  # type: ignore[return-value]
            if self.fault == "reward":
                return observation, None, False, False, {}  # type: ignore[return-value]
            if self.fault == "nan":
                observation[0] = np.nan
        done = self.steps % 10 == 0
        return observation, 1.0, done, False, {"is_success": True} if done else {}


class Stop(BaseCallback):
    """Stops training after ``n`` calls."""

    def __init__(self, n: int = 5) -> None:
        super().__init__()
        self.n = n

    def _on_step(self) -> bool:
        return self.n_calls < self.n


def leave(local: dict[str, Any], _: dict[str, Any]) -> bool:
    """Leave the program in the middle of training."""
    return local["self"].num_timesteps < 25 or sys.exit(0)


def stop_at_seven(local: dict[str, Any], _: dict[str, Any]) -> bool:
    """Stop training at its seventh step."""
    return bool(local["self"].num_timesteps < 7)


if "Faulty-v0" not in gym.registry:
    gym.register("Faulty-v0", Faulty, disable_env_checker=True)
