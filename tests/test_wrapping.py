"""Wrappers by name: plain data to wrapped environments and back, and what is told where that fails."""

import json
import pickle
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.wrappers import ClipReward, RescaleAction, TransformReward
from hypothesis import given
from hypothesis import strategies as st
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import DummyVecEnv

from spinup_plugins.envs.wrappers import HistoryObservation, MaskObservation
from spinup_plugins.errors import ConfigError, SpinupError, UnknownNameError
from spinup_plugins.wrapping import (
    WRAPPERS,
    NamedWrapper,
    parse_wrapper,
    plain_wrappers,
    resolve_wrappers,
    unrewarded,
    wrap_all,
    wrapper_docs,
)
from spinup_plugins.yaml_files import dump_yaml, parse_yaml


class Shifted(gym.RewardWrapper[Any, Any]):
    """A user's own, which names the environment its way."""

    def __init__(self, inside: gym.Env[Any, Any], by: int, **kwargs: Any) -> None:
        super().__init__(inside, **kwargs)
        self.by = by

    def reward(self, reward: Any) -> float:
        return float(reward) + self.by


class Unwilling(gym.Wrapper[Any, Any, Any, Any]):
    def __init__(self, env: gym.Env[Any, Any], error: str) -> None:
        super().__init__(env)
        raise {"type": TypeError, "assertion": AssertionError, "gym": gym.error.Error}[error]("no,\n  not this")


def double(reward: float) -> float:
    return 2 * reward


SHIFTED = f"{__name__}:Shifted"


def chain(env: gym.Env[Any, Any]) -> list[type]:
    found = []
    while isinstance(env, gym.Wrapper):
        found.append(type(env))
        env = env.env
    return found


def test_wrappers_go_around_in_order():
    items = parse_yaml("[{mask_observation: {hidden: velocity}}, {history_observation: {length: 4}}]", "test")
    env = wrap_all(gym.make("CartPole-v1"), resolve_wrappers(items))
    assert chain(env)[:2] == [HistoryObservation, MaskObservation]
    assert env.observation_space.shape == (8,)
    assert wrap_all(env, []) is env


def test_numbers_and_lists_stand_for_numpys():
    items = ["flatten_observation", {"rescale_action": {"min_action": -0.5, "max_action": [0.25]}}]
    (_, rescale) = wrappers = resolve_wrappers(items)
    env = wrap_all(gym.make("Pendulum-v1"), wrappers)
    assert isinstance(env, RescaleAction)
    assert env.action_space == gym.spaces.Box(-0.5, 0.25, (1,), np.float32)
    assert env.action(np.float32([0.25])) == pytest.approx(2)
    assert rescale.kwargs == {"min_action": -0.5, "max_action": [0.25]}
    assert resolve_wrappers([{"discretize_action": {"bins": [3]}}])[0].arguments() == {"bins": (3,)}


def test_import_paths_name_other_wrappers():
    env = wrap_all(gym.make("CartPole-v1"), resolve_wrappers([{SHIFTED: {"by": 1e1}}]))
    env.reset()
    assert env.step(0)[1] == 11
    items = [{"gymnasium.wrappers:TransformReward": {"func": f"{__name__}:double"}}]
    env = wrap_all(gym.make("CartPole-v1"), resolve_wrappers(items))
    assert isinstance(env, TransformReward)
    assert env.func is double


def test_what_was_resolved_pickles_and_is_a_copy():
    items: list[Any] = [{"mask_observation": {"hidden": [0]}}, "sparse_reward", {"time_feature": None}]
    wrappers = resolve_wrappers(items)
    items[0]["mask_observation"]["hidden"].append(1)
    assert pickle.loads(pickle.dumps(wrappers)) == wrappers
    assert wrappers[0] == NamedWrapper("mask_observation", {"hidden": [0]})
    assert wrappers[2] == NamedWrapper("time_feature")


def test_an_agent_learns_in_them():
    names = [
        {"rescale_observation": {"min_obs": -1, "max_obs": 1}},
        "time_feature",
        "check_values",
        {"delay_action": {"delay": 1}},
    ]
    wrappers = resolve_wrappers(names)
    envs = DummyVecEnv([lambda: wrap_all(gym.make("Pendulum-v1"), wrappers)] * 2)
    PPO("MlpPolicy", envs, n_steps=8, batch_size=16, n_epochs=1, seed=0).learn(16)


@pytest.mark.parametrize(
    ("items", "error", "message"),
    [
        (["noisy_actoin"], UnknownNameError, "unknown wrapper 'noisy_actoin' (did you mean 'noisy_action'?)"),
        (["RescaleAction"], UnknownNameError, "(did you mean 'rescale_action'?)"),
        (["xyz"], UnknownNameError, "unknown wrapper 'xyz'; 'package.module:Class' names others"),
        (
            ["sb3_contrib.common.wrappers.ActionMasker"],
            UnknownNameError,
            "(did you mean 'sb3_contrib.common.wrappers:ActionMasker'?)",
        ),
        (["nowhere:Wrapper"], ConfigError, "cannot import 'nowhere:Wrapper': ModuleNotFoundError"),
        (["gymnasium.wrappers:ClipRewrad"], ConfigError, "no 'ClipRewrad' there (did you mean 'ClipReward'?)"),
        (["stable_baselines3:PPO"], ConfigError, "'stable_baselines3:PPO' is no subclass of gymnasium.Wrapper"),
        (["gymnasium:make"], ConfigError, "'gymnasium:make' is no subclass of gymnasium.Wrapper"),
        (
            [{"noisy_action": {"sdt": 1.0}}],
            ConfigError,
            "wrapper 'noisy_action': NoisyAction has no argument 'sdt' (did you mean 'std'?)",
        ),
        ([{"sparse_reward": {"env": 1}}], ConfigError, "wrapper 'sparse_reward': SparseReward has no argument 'env'"),
        ([{SHIFTED: {"inside": 1}}], ConfigError, "Shifted has no argument 'inside'"),
        (["noisy_action"], ConfigError, "wrapper 'noisy_action': NoisyAction needs 'std'"),
        ([{"noisy_action": {"std": "1"}}], ConfigError, "wrapper 'noisy_action': std='1': expected float | list[float]"),
        ([{"noisy_action": {"std": True}}], ConfigError, "std=True: expected float | list[float]"),
        ([{"delay_action": {"delay": 1.5}}], ConfigError, "wrapper 'delay_action': delay=1.5: expected int"),
        ([{"clip_reward": {"min_reward": "-1"}}], ConfigError, "min_reward='-1': expected float | list[float] | None"),
        ([{"mask_observation": {"hidden": "velocities"}}], ConfigError, "(did you mean 'velocity'?)"),
        ([{"frame_stack_observation": {"stack_size": 2, "padding_type": 0}}], ConfigError, "padding_type=0: expected str"),
        ([{"noisy_action": None, "std": 1.0}], ConfigError, "not the keys noisy_action, std: indent arguments"),
        ([{"noisy_action": 0.1}], ConfigError, "wrapper 'noisy_action': expected {argument: value}, found 0.1"),
        ([["noisy_action"]], ConfigError, "a wrapper is a name or {name: {argument: value}}, not ['noisy_action']"),
        ([{}], ConfigError, "a wrapper is a name or {name: {argument: value}}, not "),
        ("time_feature", ConfigError, "wrappers='time_feature': expected a list of names or {name: {argument: value}}"),
        ({"noisy_action": {}}, ConfigError, "expected a list of names"),
        (None, ConfigError, "wrappers=None: expected a list of names"),
    ],
)
def test_what_is_no_wrapper_is_told_in_one_line_with_its_place(items, error, message):
    with pytest.raises(SpinupError) as caught:
        resolve_wrappers(items, where="file.yml:3")
    assert type(caught.value) is error
    assert message in str(caught.value)
    assert str(caught.value).startswith("file.yml:3: ")
    assert "\n" not in str(caught.value)
    with pytest.raises(error) as bare:
        resolve_wrappers(items)
    assert f"file.yml:3: {bare.value}" == str(caught.value)


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ({"noisy_action": {"std": 1.0}}, "wrapper 'noisy_action' around CartPole-v1: NoisyAction does not fit Discrete(2)"),
        ({"rescale_action": {"min_action": 0, "max_action": 1}}, "around CartPole-v1: RescaleAction requires a Box action"),
        ({"time_limit": {"max_episode_steps": 0}}, "around CartPole-v1: Expect the `max_episode_steps` to be positive"),
        ({f"{__name__}:Unwilling": {"error": "type"}}, f"wrapper '{__name__}:Unwilling' around CartPole-v1: no, not this"),
        ({f"{__name__}:Unwilling": {"error": "assertion"}}, "around CartPole-v1: no, not this"),
        ({f"{__name__}:Unwilling": {"error": "gym"}}, "around CartPole-v1: no, not this"),
    ],
)
def test_a_wrapper_that_does_not_fit_names_the_environment(item, message):
    with pytest.raises(ConfigError) as caught:
        wrap_all(gym.make("CartPole-v1"), resolve_wrappers([item]))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_environment_without_an_id_goes_by_its_class():
    from gymnasium.envs.classic_control import CartPoleEnv

    with pytest.raises(ConfigError, match=r"^wrapper 'noisy_action' around CartPoleEnv: "):
        wrap_all(CartPoleEnv(), resolve_wrappers([{"noisy_action": {"std": 1.0}}]))


# --- the command line -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("sparse_reward", "sparse_reward"),
        (" sparse_reward ", "sparse_reward"),
        ("noisy_action:{std: 1e-1}", {"noisy_action": {"std": 0.1}}),
        ("noisy_action: {std: [1, 2]}", {"noisy_action": {"std": [1, 2]}}),
        ("noisy_action:{}", {"noisy_action": {}}),
        ("my.module:Class", "my.module:Class"),
        ("my.module:Class:{a: {b: [c]}}", {"my.module:Class": {"a": {"b": ["c"]}}}),
    ],
)
def test_the_command_line_spells_plain_data(text, plain):
    assert parse_wrapper(text) == plain


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "wrapper '': expected NAME or module:Class, and if need be :{key: value, …}"),
        (":{a: 1}", "wrapper ':{a: 1}': expected NAME"),
        ("noisy_action:0.1", "wrapper 'noisy_action:0.1': expected NAME"),
        ("noisy_action:", "expected NAME"),
        ("my.module:Class:std", "expected NAME"),
        ("noisy_action:{std: 1", "wrapper 'noisy_action:{std: 1':1: not valid YAML"),
        ("noisy_action:{1: 2}", "keys must be strings, found '1'"),
        ("noisy_action:{std: 1} x", "not valid YAML"),
    ],
)
def test_what_the_command_line_cannot_mean_is_told(text, message):
    with pytest.raises(ConfigError) as caught:
        parse_wrapper(text)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**6), 10**6)
    | st.floats(-1e6, 1e6)
    | st.text(st.characters(codec="ascii", exclude_categories=["Cc"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc_", min_size=1), inner, max_size=3),
    max_leaves=6,
)


@given(st.sampled_from([*WRAPPERS, "my.module:Class"]), st.dictionaries(st.text("abc_", min_size=1), VALUES, max_size=3))
def test_plain_data_goes_through_the_command_line_and_back(name, kwargs):
    plain = parse_wrapper(f"{name}:{json.dumps(kwargs)}")
    assert plain == {name: kwargs}
    assert plain_wrappers([NamedWrapper(name, kwargs)]) == [plain if kwargs else name]


def test_resolved_wrappers_become_the_yaml_they_came_from():
    items = ["sparse_reward", {"mask_observation": {"hidden": "velocity", "keep_shape": True}}, {SHIFTED: {"by": 2}}]
    wrappers = resolve_wrappers(items)
    assert plain_wrappers(wrappers) == items
    written = parse_yaml(dump_yaml({"wrappers": plain_wrappers(wrappers)}), "dump")["wrappers"]
    assert resolve_wrappers(written) == wrappers
    assert plain_wrappers([NamedWrapper("noisy_action", {"std": np.float32([1, 2])})]) == [{"noisy_action": {"std": [1, 2]}}]


# --- evaluation and listing -------------------------------------------------------------------------------------------


def test_evaluations_go_without_what_only_changes_rewards_or_records(tmp_path):
    kept: list[Any] = ["time_feature", {"repeat_action": {"num_repeats": 2}}, {"episode_returns": {"gamma": 0.5}}]
    left_out: list[Any] = [
        {"scale_reward": {"scale": 2}},
        {"clip_reward": {"min_reward": 0}},
        {"delay_reward": {"every": 2}},
        "sparse_reward",
        "normalize_reward",
        {"record_trajectories": {"folder": str(tmp_path / "unused")}},
        {SHIFTED: {"by": 1}},
    ]
    assert unrewarded([*left_out[:3], kept[0], *left_out[3:], *kept[1:]]) == kept
    assert unrewarded(()) == []
    assert not (tmp_path / "unused").exists()


def test_every_wrapper_can_be_listed():
    rows = {row.name: row for row in wrapper_docs()}
    assert list(rows) == list(WRAPPERS)
    for row in rows.values():
        assert 20 < len(row.summary) < 130
        assert not set(row.summary) & set("`\n:")
        assert "env" not in row.parameters
    assert rows["noisy_action"].summary == "Adds Gaussian noise to the action, clipped to the bounds of its space"
    assert rows["noisy_action"].parameters["std"].doc.startswith("standard deviation in the environment's units")
    assert rows["clip_reward"].summary == "Clips the rewards for an environment between an upper and lower bound"
    assert rows["clip_reward"].parameters["max_reward"].default is None
    assert rows["repeat_action"].parameters["num_repeats"].required


def test_a_wrapper_that_an_older_gymnasium_lacks_is_not_listed(monkeypatch):
    monkeypatch.setitem(WRAPPERS, "repeat_action", "gymnasium.wrappers:NotYet")
    assert "repeat_action" not in [row.name for row in wrapper_docs()]
    with pytest.raises(ConfigError, match=r"cannot import 'gymnasium.wrappers:NotYet': no 'NotYet' there"):
        resolve_wrappers(["repeat_action"])


def test_rewards_are_clipped_in_one_direction_too():
    env = wrap_all(gym.make("CartPole-v1"), resolve_wrappers([{"clip_reward": {"max_reward": 0.5}}]))
    env.reset()
    assert isinstance(env, ClipReward)
    assert env.step(0)[1] == 0.5


class RewardInView(gym.RewardWrapper):
    """Changes more than rewards: its observations have another shape."""

    def reset(self, **kwargs: Any) -> Any:
        observation, info = super().reset(**kwargs)
        return np.append(observation, 0.0), info

    def reward(self, reward: Any) -> Any:
        return 2 * reward


class Doubled(gym.RewardWrapper):
    def reward(self, reward: Any) -> Any:
        return 2 * reward


def test_evaluations_keep_what_changes_more_than_rewards() -> None:
    kept = [f"{__name__}:RewardInView", {"time_limit": {"max_episode_steps": 3}}]
    assert unrewarded([*kept, f"{__name__}:Doubled", {"scale_reward": {"scale": 2.0}}, "sparse_reward"]) == kept
