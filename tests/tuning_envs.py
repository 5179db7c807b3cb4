"""Environments for studies; ``tuning_envs:Target-v0`` registers them where they are named."""

import time
from typing import Any

import gymnasium as gym
import numpy as np


class Target(gym.Env[np.ndarray, np.ndarray]):
    """Episodes of 5 steps whose reward is how near the action comes to 0.5.

    :param seconds: time that a step takes
    :param fault: step, counted over all episodes, that fails; 0 for none
    """

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012
    observation_space = gym.spaces.Box(-1.0, 1.0, (1,), np.float32)
    action_space = gym.spaces.Box(-1.0, 1.0, (1,), np.float32)

    def __init__(self, seconds: float = 0.0, fault: int = 0, render_mode: str | None = None) -> None:
        self.seconds, self.fault, self.render_mode = seconds, fault, render_mode
        self.steps = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        return self.np_random.uniform(-1.0, 1.0, 1).astype(np.float32), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        if self.seconds:
            time.sleep(self.seconds)
        if self.steps == self.fault:
            raise ValueError(f"worn out after {self.steps} steps")
        observation = self.np_random.uniform(-1.0, 1.0, 1).astype(np.float32)
        return observation, -float(abs(action[0] - 0.5)), self.steps % 5 == 0, False, {}


if "Target-v0" not in gym.registry:
    gym.register("Target-v0", Target, disable_env_checker=True)
    gym.register("Threshold-v0", Target, disable_env_checker=True, reward_threshold=-0.1)
