from pathlib import Path
from typing import Any

import pytest
import torch as th
from pydantic import ValidationError
from stable_baselines3.common.utils import LinearSchedule

from spinup_plugins.errors import ConfigError, UnknownNameError
from spinup_plugins.runs.config import Layer, RunConfig, completed, compose, dump, file_layer, load
from spinup_plugins.schema import constructor_parameters


def layer(**values: Any) -> Layer:
    return Layer(values, ".".join)


def written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


BASE = layer(algo="ppo", env="CartPole-v1")

# --- composing -------------------------------------------------------------------------------------------------------


def test_algorithm_and_environment_suffice() -> None:
    config = compose(BASE)
    assert config == RunConfig(algo="ppo", env="CartPole-v1")
    assert (config.n_timesteps, config.seed, config.n_envs, config.vec_env) == (100_000, 0, 1, "auto")


def test_a_later_layer_wins_key_by_key() -> None:
    below = layer(seed=1, n_envs=2, hyperparameters={"gamma": 0.9, "n_steps": 8})
    config = compose(BASE, below, layer(seed=5, hyperparameters={"gamma": 0.5}))
    assert (config.seed, config.n_envs, config.hyperparameters) == (5, 2, {"gamma": 0.5, "n_steps": 8})


def test_keyword_arguments_are_merged_and_other_values_replaced() -> None:
    policy_kwargs = {"net_arch": {"pi": [8], "vf": [8]}, "log_std_init": 0.0}
    below = layer(env_kwargs={"a": 1, "b": 2}, hyperparameters={"policy_kwargs": policy_kwargs})
    above = layer(env_kwargs={"b": 3}, hyperparameters={"policy_kwargs": {"net_arch": [4]}})
    config = compose(BASE, below, above)
    assert config.env_kwargs == {"a": 1, "b": 3}
    assert config.hyperparameters["policy_kwargs"] == {"net_arch": [4], "log_std_init": 0.0}


def test_a_preset_lies_beneath_the_keys_of_its_own_layer_and_above_those_before(tmp_path: Path) -> None:
    preset = written(tmp_path / "p.yml", "n_timesteps: 5.0e+4\nn_envs: 4\ngamma: 0.9\ngae_lambda: 0.8\nn_steps: 16\n")
    below = layer(n_envs=2, hyperparameters={"gamma": 0.1, "batch_size": 8})
    config = compose(BASE, below, layer(preset=str(preset), hyperparameters={"gae_lambda": 0.7}))
    assert (config.n_timesteps, config.n_envs) == (50_000, 4)
    assert config.hyperparameters == {"gamma": 0.9, "gae_lambda": 0.7, "n_steps": 16, "batch_size": 8}


def test_the_original_recipe_is_a_preset() -> None:
    config = compose(BASE, layer(preset="spinning_up"))
    assert config.hyperparameters["batch_size"] is None
    assert config.preset == "spinning_up"


def test_an_alias_and_any_case_become_the_name() -> None:
    assert compose(layer(algo="PPO", env="CartPole-v1")).algo == "ppo"
    assert compose(layer(algo="vanilla_policy_gradient", env="CartPole-v1")).algo == "vpg"


@pytest.mark.parametrize("n", [2e5, 200_000])
def test_a_whole_number_may_be_written_as_a_float(n: float) -> None:
    assert compose(BASE, layer(n_timesteps=n)).n_timesteps == 200_000


# --- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"lerning": 1}, "lerning: unknown key 'lerning'"),
        ({"n_timestep": 1}, r"n_timestep: unknown key 'n_timestep' \(did you mean 'n_timesteps'\?\)"),
        ({"n_timesteps": 0}, "n_timesteps: n_timesteps=0 must be greater than or equal to 1"),
        ({"n_timesteps": 1.5}, "n_timesteps=1.5 must be a valid integer"),
        ({"n_timesteps": "10"}, "n_timesteps='10' must be a valid integer"),
        ({"n_envs": -1}, "n_envs=-1 must be greater"),
        ({"seed": True}, "seed=True must be a valid integer"),
        ({"vec_env": "dumy"}, r"vec_env='dumy' must be 'auto', 'dummy', .* or 'envpool' \(did you mean 'dummy'\?\)"),
        ({"wrappers": ["time_limt"]}, r"^wrappers: unknown wrapper 'time_limt' \(did you mean 'time_limit'\?\)"),
        ({"wrappers": [{"time_limit": {"steps": 3}}]}, "^wrappers: wrapper 'time_limit': TimeLimit has no argument 'steps'"),
        ({"wrappers": "time_limit"}, r"wrappers='time_limit' must be a valid list"),
        ({"env_kwargs": 3}, "env_kwargs=3 must be a valid dict"),
        ({"hyperparameters": [1]}, r"hyperparameters=\[1\] must be a valid dict"),
        ({"callbacks": "a:b"}, "callbacks='a:b' must be a valid list"),
        ({"hyperparameters": {"gama": 1.0}}, r"hyperparameters.gama: PPO has no argument 'gama' \(did you mean 'gamma'"),
        ({"hyperparameters": {"gamma": "x"}}, "hyperparameters.gamma: gamma='x': expected float"),
        ({"hyperparameters": {"policy_kwargs": {"net_ach": [1]}}}, r"policy_kwargs.net_ach: .*did you mean 'net_arch'"),
        ({"hyperparameters": {"seed": 1}}, "hyperparameters.seed: 'seed' is no hyperparameter of a run"),
        ({"hyperparameters": {"tensorboard_log": "x"}}, "its own key 'tensorboard' sets it"),
        ({"preset": "zo"}, r"unknown preset 'zo' \(did you mean 'zoo'\?\)"),
    ],
)
def test_a_bad_value_is_one_line_with_the_place_and_the_nearest_choice(values: dict[str, Any], message: str) -> None:
    with pytest.raises((ConfigError, UnknownNameError), match=message) as caught:
        compose(BASE, layer(**values))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("values", "message"), [({"env": "X"}, "no algo given"), ({"algo": "ppo"}, "no env given")])
def test_algorithm_and_environment_are_needed(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        compose(layer(**values))


def test_an_unknown_algorithm_is_named_with_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match=r"'pppo' \(did you mean 'ppo'\?\)"):
        compose(layer(algo="pppo", env="CartPole-v1"))


def test_a_configuration_does_not_change() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        RunConfig(algo="ppo", env="CartPole-v1").seed = 3


# --- files -----------------------------------------------------------------------------------------------------------


def test_a_file_is_read_as_yaml_1_2(tmp_path: Path) -> None:
    text = "algo: ppo\nenv: CartPole-v1\nhyperparameters:\n  learning_rate: 1e-3\n  policy_kwargs: {activation_fn: relu}\n"
    config = load(written(tmp_path / "run.yml", text))
    assert config.hyperparameters == {"learning_rate": 1e-3, "policy_kwargs": {"activation_fn": "relu"}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("algo: ppo\nenv: CartPole-v1\nlerning_rate: 1\n", "run.yml:3: unknown key 'lerning_rate'"),
        ("algo: ppo\nenv: X\nhyperparameters:\n  lerning_rate: 1\n", r"run.yml:4: .*\(did you mean 'learning_rate'\?\)"),
        ("algo: ppo\nenv: X\nn_envs: zero\n", "run.yml:3: n_envs='zero' must be a valid integer"),
        ("algo: [\n", "run.yml:2: not valid YAML"),
        ("- 1\n", "run.yml: expected a mapping"),
    ],
)
def test_an_error_in_a_file_names_its_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(written(tmp_path / "run.yml", text))


def test_an_option_is_blamed_for_its_own_value_and_the_file_for_its(tmp_path: Path) -> None:
    file = file_layer(written(tmp_path / "run.yml", "algo: ppo\nenv: X\nseed: -1\n"))
    with pytest.raises(ConfigError, match=r"run.yml:3: seed=-1"):
        compose(file, layer(n_envs=2))
    with pytest.raises(ConfigError, match=r"^seed: seed=-2"):
        compose(file, layer(seed=-2))


# --- what a run writes -----------------------------------------------------------------------------------------------


def test_every_constructor_argument_is_written_and_read_back(tmp_path: Path) -> None:
    config = compose(BASE, layer(hyperparameters={"clip_range": {"schedule": "linear", "initial": 0.2}}))
    config = completed(config, "spinup train ppo CartPole-v1").model_copy(update={"policy": "MlpPolicy"})
    dump(config, tmp_path / "config.yml")
    again = load(tmp_path / "config.yml")
    assert again.model_dump(exclude={"command", "versions"}) == config.model_dump(exclude={"command", "versions"})
    from spinup_plugins import PPO

    assert {*again.hyperparameters, "policy", "seed", "tensorboard_log"} == set(constructor_parameters(PPO))
    data = file_layer(tmp_path / "config.yml").values
    assert data["command"] == "spinup train ppo CartPole-v1"
    assert {"python", "spinup-plugins", "stable-baselines3", "torch", "platform"} <= set(data["versions"])


def test_an_infinity_survives(tmp_path: Path) -> None:
    dump(completed(compose(BASE, layer(preset="spinning_up")), None), tmp_path / "config.yml")
    assert load(tmp_path / "config.yml").hyperparameters["max_grad_norm"] == float("inf")


def test_the_preset_of_a_written_configuration_is_but_a_record(tmp_path: Path) -> None:
    preset = written(tmp_path / "p.yml", "gamma: 0.5\nn_envs: 3\n")
    dump(completed(compose(BASE, layer(preset=str(preset))), None), tmp_path / "config.yml")
    preset.unlink()
    again = load(tmp_path / "config.yml")
    assert (again.preset, again.n_envs, again.hyperparameters["gamma"]) == (str(preset), 3, 0.5)


def test_python_objects_become_plain_data() -> None:
    config = RunConfig(
        algo="ppo",
        env="CartPole-v1",
        hyperparameters={"learning_rate": LinearSchedule(1e-3, 0.0, 1.0), "policy_kwargs": {"activation_fn": th.nn.ReLU}},
    )
    plain = completed(config, None).hyperparameters
    assert plain["learning_rate"] == {"schedule": "linear", "initial": 1e-3, "final": 0.0}
    assert plain["policy_kwargs"] == {"activation_fn": "relu"}


def test_an_object_without_plain_form_is_refused() -> None:
    config = RunConfig(algo="ppo", env="CartPole-v1", hyperparameters={"learning_rate": lambda _: 1e-3})
    with pytest.raises(ConfigError, match=r"learning_rate=.* cannot be written to a file"):
        completed(config, None)


@pytest.mark.parametrize(("n", "every"), [(100_000, 5_000), (2_000, 1_000)])
def test_evaluations_are_a_twentieth_apart_at_least_a_thousand_steps(n: int, every: int) -> None:
    assert completed(compose(BASE, layer(n_timesteps=n)), None).eval_every == every


def test_no_evaluations_stay_none() -> None:
    assert completed(compose(BASE, layer(eval_every=0)), None).eval_every == 0
