"""Environments from ids, and what is said when there is none."""

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from spinup_plugins import environments
from spinup_plugins.environments import make_env
from spinup_plugins.envs import SharedMemoryVecEnv
from spinup_plugins.errors import ConfigError, UnknownNameError


def test_copies_are_monitored_and_seeded_apart():
    first, second = (make_env("CartPole-v1", 2, seed=5) for _ in range(2))
    assert isinstance(first, DummyVecEnv)
    assert first.num_envs == 2
    assert first.env_is_wrapped(Monitor) == [True, True]
    observations = first.reset()
    assert np.array_equal(observations, second.reset())
    assert not np.array_equal(observations[0], observations[1])
    assert np.array_equal(observations[0], gym.make("CartPole-v1").reset(seed=5)[0])


def test_arguments_reach_the_environment():
    env = make_env("CartPole-v1", env_kwargs={"sutton_barto_reward": True})
    assert env.get_attr("_sutton_barto_reward") == [True]


def test_wrappers_go_around_each_copy_inside_of_its_monitor():
    env = make_env("CartPole-v1", 2, wrappers=[{"time_limit": {"max_episode_steps": 3}}, "time_aware_observation"])
    assert env.observation_space.shape == (5,)
    env.reset()
    for _ in range(3):
        infos = env.step(np.array([0, 1]))[3]
    assert [info["episode"]["l"] for info in infos] == [3, 3]
    with pytest.raises(UnknownNameError, match=r"unknown wrapper 'time_limt' \(did you mean 'time_limit'\?\)"):
        make_env("CartPole-v1", wrappers=["time_limt"])
    with pytest.raises(ConfigError, match="'rescale_action' around CartPole-v1: "):
        make_env("CartPole-v1", wrappers=[{"rescale_action": {"min_action": -1, "max_action": 1}}])


def test_normalisation():
    env = make_env("CartPole-v1", normalize=True, gamma=0.9)
    assert isinstance(env, VecNormalize)
    assert (env.gamma, env.norm_reward) == (0.9, True)
    env = make_env("CartPole-v1", normalize={"norm_reward": False, "gamma": 0.5}, gamma=0.9)
    assert isinstance(env, VecNormalize)
    assert (env.gamma, env.norm_reward) == (0.5, False)
    assert isinstance(make_env("CartPole-v1", normalize=True), VecNormalize)
    assert isinstance(make_env("CartPole-v1", normalize={}), VecNormalize)


def test_monitor_files(tmp_path):
    env = make_env("CartPole-v1", 2, monitor_dir=tmp_path / "monitors")
    env.close()
    assert sorted(path.name for path in (tmp_path / "monitors").iterdir()) == ["0.monitor.csv", "1.monitor.csv"]


def test_processes():
    env = make_env("CartPole-v1", 2, vec_env="subproc", seed=5)
    try:
        assert isinstance(env, SharedMemoryVecEnv)
        assert np.array_equal(env.reset(), make_env("CartPole-v1", 2, seed=5).reset())
    finally:
        env.close()


@pytest.mark.parametrize("vec_env", ["dummy", "subproc"])
@pytest.mark.parametrize(
    ("env_id", "env_kwargs", "kind", "message"),
    [
        ("CartPol-v1", {}, UnknownNameError, "unknown environment 'CartPol-v1': .* Did you mean: `CartPole`"),
        ("Xyzzy-v0", {}, UnknownNameError, r"doesn't exist\. Where a module of yours registers it: '<module>:Xyzzy-v0'$"),
        ("CartPole-v7", {}, UnknownNameError, "unknown environment 'CartPole-v7': .*`v1`"),
        ("nowhere/Env-v0", {}, UnknownNameError, "Namespace nowhere not found"),
        ("not an id", {}, ConfigError, "environment 'not an id': Malformed environment ID"),
        ("", {}, ConfigError, "environment '': Malformed environment ID"),
        ("no_such_module:Env-v0", {}, ConfigError, "cannot be built: No module named 'no_such_module'"),
        ("CartPole-v1", {"sutton_bart_reward": 1}, ConfigError, "CartPole-v1 has no argument .* mean 'sutton_barto_"),
        (
            "gymnasium:CartPole-v1",
            {"sutton_bart_reward": 1},
            ConfigError,
            "gymnasium:CartPole-v1 has no .* mean 'sutton_barto_",
        ),
    ],
)
def test_what_cannot_be_built_is_told_in_one_line(vec_env, env_id, env_kwargs, kind, message):
    with pytest.raises(kind, match=message) as caught:
        make_env(env_id, vec_env=vec_env, env_kwargs=env_kwargs)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_envs": 0}, "n_envs must be at least 1, not 0"),
        ({"vec_env": "subprocess"}, r"not 'subprocess' \(did you mean 'subproc'\?\)"),
        ({"normalize": {"norm_obs_": True}}, r"normalize has no option 'norm_obs_' \(did you mean 'norm_obs'\?\)"),
        ({"normalize": {"venv": True}}, "normalize has no option 'venv'"),
        ({"normalize": {"norm_obs_keys": ["a"]}}, "CartPole-v1 cannot be normalised"),
    ],
)
def test_options_that_do_not_fit(arguments, message):
    with pytest.raises(ConfigError, match=message):
        make_env("CartPole-v1", **arguments)


class NeedsMore(gym.Env):
    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012  # as gymnasium.Env declares it

    def __init__(self):
        raise gym.error.DependencyNotInstalled("Box2D is not installed, run `pip install swig`\nand more")


class Fails(gym.Env):
    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012

    def __init__(self):
        raise TypeError("its own mistake")


@pytest.fixture
def registered():
    gym.register("NeedsMore-v0", NeedsMore)
    gym.register("Fails-v0", Fails)
    yield
    del gym.registry["NeedsMore-v0"], gym.registry["Fails-v0"]


@pytest.mark.usefixtures("registered")
def test_missing_dependencies(monkeypatch):
    with pytest.raises(ConfigError, match=r"'NeedsMore-v0' cannot be built: Box2D is not installed, run `pip install swig`$"):
        make_env("NeedsMore-v0")

    def not_installed(*_, **__):
        raise gym.error.DependencyNotInstalled("mujoco is not installed")

    monkeypatch.setattr(environments, "as_vec_env", not_installed)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r'needs an extra: pip install "spinup-plugins\[mujoco\]"'):
        make_env("HalfCheetah-v5")
    with pytest.raises(ConfigError, match=r'needs an extra: pip install "spinup-plugins\[box2d\]"'):
        make_env("LunarLander-v3")


@pytest.mark.usefixtures("registered")
def test_an_environments_own_errors_are_not_hidden():
    with pytest.raises(TypeError, match="its own mistake"):
        make_env("Fails-v0")
