"""Search spaces: checked against constructors, suggested, and turned back into parameters."""

from pathlib import Path
from typing import Any

import optuna
import pytest

from spinup_plugins import schema
from spinup_plugins.errors import ConfigError, UnknownNameError
from spinup_plugins.registry import get_spec
from spinup_plugins.tuning.spaces import ACTION_SPACE, Space, load_space, space_names

SIX = ("vpg", "trpo", "ppo", "ddpg", "td3", "sac")


def trial(parameters: dict[str, Any]) -> optuna.Trial:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    study.enqueue_trial(parameters)
    return study.ask()


def defaults(algo: str) -> dict[str, Any]:
    parameters = schema.constructor_parameters(get_spec(algo).load())
    return {**schema.jsonable({name: each.default for name, each in parameters.items()}), "n_envs": 1, "normalize": False}


@pytest.mark.parametrize("algo", SIX)
def test_the_six_have_spaces_and_their_defaults_lie_in_them(algo: str) -> None:
    assert space_names(get_spec(algo)) == ["default", *(["small"] if algo in ("ddpg", "td3", "sac") else []), "rl_zoo3"]
    for name in space_names(get_spec(algo)):
        space = load_space(get_spec(algo), name)
        known = defaults(algo)
        parameters = space.parameters(known)
        chosen = trial(parameters)
        values = space.suggest(chosen, known)
        assert chosen.params == parameters, "every parameter is known"
        if name == "default":
            for key in ("gamma", "learning_rate", "batch_size"):
                if key in values and values[key] is not None:
                    assert values[key] == pytest.approx(known[key] if known[key] is not None else values[key])
        for _ in range(5):
            schema.resolve(
                get_spec(algo).load(),
                {k: v for k, v in space.suggest(trial({}), known).items() if k in known and k not in ("n_envs", "normalize")},
            )


def test_every_kind_of_value() -> None:
    nodes = {
        "n_steps": {"power_of_two": [8, 64]},
        "batch_size": {"power_of_two": [8, 1024], "at_most": ["n_steps", "n_envs"]},
        "gamma": {"float": [0.01, 0.1], "log": True, "one_minus": True},
        "learning_rate": {"schedule": "linear", "initial": {"float": [1e-4, 1e-2], "log": True}},
        "use_sde": {"categorical": [True, False]},
        "sde_sample_freq": {"int": [1, 8], "when": {"use_sde": True}},
        "policy_kwargs": {"net_arch": {"categorical": {"small": [8], "big": [16, 16]}}},
        "ent_coef": {"categorical": {"none": 0.0, "some": {"float": [0.1, 0.2]}}},
        "vf_coef": 0.25,
        "n_epochs": {"int": [2, 10], "step": 4},
        "wrappers": {"categorical": {"none": [], "clipped": [{"clip_reward": {"min_reward": -1.0, "max_reward": 1.0}}]}},
    }
    space = Space("x", nodes)
    space.check(get_spec("ppo").load())
    parameters = {
        "log2 n_steps": 4,
        "log2 batch_size": 10,
        "1 - gamma": 0.05,
        "learning_rate.initial": 1e-3,
        "use_sde": False,
        "policy_kwargs.net_arch": "big",
        "ent_coef": "some",
        "ent_coef[some]": 0.15,
        "n_epochs": 6,
        "wrappers": "clipped",
    }
    values = space.suggest(trial(parameters), {"n_envs": 2})
    assert values == {
        "n_steps": 16,
        "batch_size": 32,
        "gamma": 0.95,
        "learning_rate": {"schedule": "linear", "initial": 1e-3},
        "use_sde": False,
        "policy_kwargs": {"net_arch": [16, 16]},
        "ent_coef": 0.15,
        "vf_coef": 0.25,
        "n_epochs": 6,
        "wrappers": [{"clip_reward": {"min_reward": -1.0, "max_reward": 1.0}}],
    }
    again = space.parameters({**values, "n_envs": 2})
    assert again == {**parameters, "log2 batch_size": 5, "1 - gamma": pytest.approx(0.05)}
    assert space.suggest(trial({"use_sde": True}), {"n_envs": 1})["sde_sample_freq"] in range(1, 9)


def test_values_outside_become_the_nearest() -> None:
    space = load_space(get_spec("sac"))
    found = space.parameters({**defaults("sac"), "gamma": 0.99999, "batch_size": 300, "learning_rate": 1.0, "ent_coef": 0.2})
    assert (found["1 - gamma"], found["log2 batch_size"]) == (1e-4, 8)
    assert (found["learning_rate"], found["learning_rate[constant]"]) == ("constant", 3e-3)
    assert (found["ent_coef"], found["ent_coef[fixed]"]) == ("fixed", 0.2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gama: {float: [0.9, 1]}", r"my.yml:1: PPO has no argument 'gama' \(did you mean 'gamma'\?\)"),
        ("n_epochs: {int: [1, 2]}\ngamma:\n  float: [0.9, 0.99]\n  lgo: true", r"my.yml:4: gamma: float has no option 'lgo'"),
        ("gamma: {float: [0.9, 3]}\nx: 1", "my.yml:2: PPO has no argument 'x'"),
        ("gamma: {float: [0.99, 0.9]}", r"my.yml:1: gamma: float=\[0.99, 0.9\]: expected \[low, high\]"),
        ("gamma: {float: [0, 0.9], log: true}", "my.yml:1: gamma: a logarithmic range begins above 0"),
        ("n_epochs: {float: [1.5, 2.5]}", "my.yml:1: n_epochs=1.5: expected int"),
        ("n_epochs: {int: [1, 2.5]}", "two whole numbers"),
        ("batch_size: {power_of_two: [8, 100]}", "expected two powers of two"),
        ("use_sde: {categorical: [true]}", "expected two values or more"),
        ("policy_kwargs: {net_arch: {categorical: [[8], [16]]}}", r"net_arch: \[8\] needs a name"),
        ("policy_kwargs:\n  net_ach: {categorical: {a: [8], b: [9]}}", r"my.yml:2: .*'net_ach' \(did you mean 'net_arch'"),
        ("n_epochs: {same_as: gamma}\ngamma: {float: [0.9, 0.99]}", "my.yml:1: n_epochs refers to 'gamma', which must stand"),
        ("n_epochs: {int: [1, 2], when: {use_sd: true}}", r"refers to 'use_sd' \(did you mean 'use_sde'\?\)"),
        ("n_epochs: {int: [1, 2], when: {action_space: box}}", r"my.yml:1: n_epochs: action_space='box' is not .*'Box'"),
        ("batch_size: {int: [8, 64], at_most: n_steps}", r"my.yml:1: batch_size: at_most='n_steps': expected \[key, …\]"),
        ("batch_size: {int: [8, 64], at_most: null}", "at_most=None: expected"),
        ("gamma: {same_as: [n_steps]}", r"gamma refers to \['n_steps'\]: expected a key"),
        ("gamma: {float: [0.9, .inf]}", r"gamma: float=\[0.9, inf\]: expected \[low, high\], two numbers"),
        ("seed: {int: [1, 2]}", "'seed' is set by the run"),
        ("wrappers: {categorical: {a: [], b: [time_limt]}}", r"my.yml:1: unknown wrapper 'time_limt' \(did you mean"),
        ("gamma: 0.9", "the space varies nothing"),
        ("{}", "the space is empty"),
    ],
)  # fmt: skip
def test_a_wrong_space_names_file_line_and_the_nearest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("my.yml").write_text(text)
    with pytest.raises((ConfigError, UnknownNameError), match=message):
        load_space(get_spec("ppo"), "my.yml")


@pytest.mark.parametrize("algo", ["vpg", "trpo", "ppo"])
def test_the_deviation_of_actions_is_varied_where_there_is_one(algo: str) -> None:
    space = load_space(get_spec(algo))
    for actions, varied in (("Box", True), ("Discrete", False)):
        given = {**defaults(algo), ACTION_SPACE: actions}
        sampled = trial({})
        values = space.suggest(sampled, given)
        assert ("log_std_init" in values["policy_kwargs"]) == varied
        assert ("policy_kwargs.log_std_init" in sampled.params) == varied
        assert ("policy_kwargs.log_std_init" in space.parameters(given)) == varied


def test_files_hold_variants_that_extend_others(tmp_path: Path) -> None:
    file = tmp_path / "my.yml"
    file.write_text("default:\n  gamma: {float: [0.9, 0.99]}\nother:\n  extends: default\n  n_epochs: {int: [1, 2]}\n")
    assert list(load_space(get_spec("ppo"), str(file)).nodes) == ["gamma"]
    assert list(load_space(get_spec("ppo"), f"{file}:other").nodes) == ["gamma", "n_epochs"]
    with pytest.raises(UnknownNameError, match=r"has no space 'othr' \(did you mean 'other'\?\)"):
        load_space(get_spec("ppo"), f"{file}:othr")
    with pytest.raises(UnknownNameError, match="has no search space: give one as a YAML file"):
        load_space(get_spec("sb3:a2c"))
    file.write_text("default:\n  extends: nowhere\n")
    with pytest.raises(ConfigError, match=r"my\.yml:2: there is no other space 'nowhere'"):
        load_space(get_spec("ppo"), str(file))
