"""Whole tasks learned to their threshold, as `spinup train` runs them; minutes each: ``pytest -m slow``."""

from pathlib import Path
from typing import Any

import pytest

from spinup_plugins.runs.config import Layer, compose
from spinup_plugins.runs.runner import train

pytestmark = pytest.mark.slow

#: algorithm, environment, further keys of the run, and the mean return that the final evaluation must reach
TASKS: list[tuple[str, str, dict[str, Any], float]] = [
    ("ppo", "CartPole-v1", {"n_timesteps": 100_000}, 475.0),
    ("trpo", "CartPole-v1", {"n_timesteps": 100_000}, 475.0),
    ("vpg", "CartPole-v1", {"preset": "zoo"}, 475.0),
    ("sac", "Pendulum-v1", {"n_timesteps": 20_000}, -200.0),
    ("td3", "Pendulum-v1", {"n_timesteps": 30_000}, -250.0),
    ("ddpg", "Pendulum-v1", {"n_timesteps": 30_000}, -250.0),
]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("algo", "env", "keys", "threshold"), TASKS, ids=[f"{task[0]}-{task[1]}" for task in TASKS])
def test_reaches_its_threshold(algo: str, env: str, keys: dict[str, Any], threshold: float, seed: int, tmp_path: Path) -> None:
    values = {"algo": algo, "env": env, "seed": seed, "final_episodes": 100, **keys}
    run = train(compose(Layer(values, lambda path: ".".join(path))), tmp_path)
    assert run.evaluation is not None
    assert run.evaluation.summary.mean >= threshold
