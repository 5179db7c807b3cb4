"""Constructor arguments to and from plain data, and YAML files with their line numbers."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from hypothesis import example, given
from hypothesis import strategies as st
from stable_baselines3 import DDPG, DQN, PPO, SAC, TD3
from stable_baselines3.common.buffers import DictReplayBuffer
from stable_baselines3.common.noise import NormalActionNoise, OrnsteinUhlenbeckActionNoise
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import NatureCNN
from stable_baselines3.common.utils import ConstantSchedule, FloatSchedule, LinearSchedule
from stable_baselines3.her import GoalSelectionStrategy, HerReplayBuffer

from spinup_plugins.errors import ConfigError
from spinup_plugins.imports import import_object
from spinup_plugins.registry import algorithms, get_class
from spinup_plugins.schema import (
    CLASSES,
    check_value,
    constructor_parameters,
    describe_type,
    jsonable,
    resolve,
)
from spinup_plugins.yaml_files import dump_yaml, load_yaml, parse_yaml

TWO_ACTIONS = spaces.Box(-1.0, 1.0, (2,))


# --- constructor_parameters ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", algorithms(peers=True))
def test_the_defaults_of_every_algorithm_are_valid_and_have_a_plain_form(name):
    cls = get_class(name)
    parameters = constructor_parameters(cls)
    assert {"env", "self", "_init_setup_model"}.isdisjoint(parameters)
    defaults = {each.name: each.default for each in parameters.values() if not each.required}
    assert resolve(cls, defaults) == defaults
    assert jsonable(resolve(cls, jsonable(defaults))) == jsonable(defaults)


def test_parameters_keep_order_default_and_documentation():
    parameters = constructor_parameters(PPO)
    assert list(parameters)[:3] == ["policy", "learning_rate", "n_steps"]
    assert parameters["policy"].required
    assert parameters["policy"].default is None
    assert not parameters["clip_range"].required
    assert parameters["clip_range"].default == 0.2
    assert parameters["clip_range"].doc.startswith("Clipping parameter, it can be a function of the current")


class Base:
    """Base.

    :param first: from the base
    :param second: the base's second
    """

    def __init__(self, first: int, second: "Missing" = None):  # noqa: F821  # as if imported for type checkers only
        """Take two."""


class Derived(Base):
    """Derived.

    :param int third: type before
        the name, on two lines

    not this
    """

    def __init__(self, third: float, *args, second="mine", untyped=1, **kwargs):
        super().__init__(*args, **kwargs)


def test_keyword_arguments_continue_with_the_base_class():
    parameters = constructor_parameters(Derived)
    assert list(parameters) == ["third", "second", "untyped", "first"]
    assert parameters["third"].doc == "type before the name, on two lines"
    assert parameters["second"].doc == "the base's second"
    assert parameters["second"].default == "mine"
    assert parameters["untyped"].doc == ""
    assert parameters["untyped"].annotation is Any
    assert constructor_parameters(Base)["second"].annotation is Any


@pytest.mark.parametrize(
    ("annotation", "text"),
    [
        (float, "float"),
        (None, "None"),
        (Any, "any"),
        (float | Callable[[float], float] | None, "float | schedule | None"),
        (Callable[[int, str], bool], "callable"),
        (dict[str, Any], "dict[str, any]"),
        (type[th.nn.Module], "type[Module]"),
        (int | tuple[int, str], "int | tuple[int, str]"),
        (Literal["k1", "k3"], "'k1' | 'k3'"),
        (th.device | str, "device | str"),
    ],
)
def test_types_are_described_for_readers(annotation, text):
    assert describe_type(annotation) == text


# --- resolve ---------------------------------------------------------------------------------------------------------


def test_schedules_from_mappings():
    values = {
        "learning_rate": {"schedule": "linear", "initial": 1e-3},
        "clip_range": {"schedule": "linear", "initial": 0.4, "final": 0.2, "end_fraction": 0.5},
        "clip_range_vf": {"schedule": "constant", "initial": 1},
    }
    resolved = resolve(PPO, values)
    assert [resolved["learning_rate"](x) for x in (1.0, 0.5, 0.0)] == pytest.approx([1e-3, 5e-4, 0.0])
    assert [resolved["clip_range"](x) for x in (1.0, 0.75, 0.5, 0.0)] == pytest.approx([0.4, 0.3, 0.2, 0.2])
    assert resolved["clip_range_vf"](0.3) == 1.0


def test_classes_by_short_name_and_path():
    policy_kwargs = {"activation_fn": "elu", "optimizer_class": "adamw", "features_extractor_class": "nature_cnn"}
    resolved = resolve(SAC, {"replay_buffer_class": "her", "policy_kwargs": policy_kwargs})
    assert resolved["replay_buffer_class"] is HerReplayBuffer
    expected = {"activation_fn": th.nn.ELU, "optimizer_class": th.optim.AdamW, "features_extractor_class": NatureCNN}
    assert resolved["policy_kwargs"] == expected
    buffer = {"replay_buffer_class": "stable_baselines3.common.buffers:DictReplayBuffer"}
    assert resolve(SAC, buffer)["replay_buffer_class"] is DictReplayBuffer
    policy = "stable_baselines3.common.policies:ActorCriticPolicy"
    assert resolve(PPO, {"policy": policy})["policy"] is ActorCriticPolicy


@pytest.mark.parametrize("argument", CLASSES)
def test_every_short_name_is_a_class(argument):
    for path in CLASSES[argument].values():
        assert isinstance(import_object(path), type)


def test_action_noise_takes_the_shape_of_the_actions():
    noise = resolve(TD3, {"action_noise": {"noise": "normal", "sigma": 0.1}}, action_space=TWO_ACTIONS)["action_noise"]
    assert isinstance(noise, NormalActionNoise)
    assert noise._sigma.tolist() == [0.1, 0.1]
    values = {"noise": "ornstein_uhlenbeck", "sigma": [0.1, 0.2], "theta": 0.3, "dt": 0.02}
    noise = resolve(TD3, {"action_noise": values}, action_space=TWO_ACTIONS)["action_noise"]
    assert isinstance(noise, OrnsteinUhlenbeckActionNoise)
    assert (noise._sigma.tolist(), noise._theta, noise._dt) == ([0.1, 0.2], 0.3, 0.02)


def test_action_noise_stays_data_while_the_actions_are_unknown():
    values = {"action_noise": {"noise": "normal", "sigma": [0.1, 0.2, 0.3]}}
    assert resolve(TD3, values) == values


def test_values_fit_their_annotations():
    values = {
        "gamma": 1,
        "buffer_size": 1e6,
        "batch_size": np.int64(3),
        "train_freq": [2, "episode"],
        "tensorboard_log": Path("logs"),
        "tau": np.float32(0.5),
        "device": "cuda:0",
        "seed": None,
    }
    resolved = resolve(SAC, values)
    assert resolved == {**values, "train_freq": (2, "episode"), "tensorboard_log": "logs"}
    kinds = {"gamma": float, "buffer_size": int, "batch_size": int, "tau": float}
    assert {key: type(resolved[key]) for key in kinds} == kinds


def test_python_objects_pass_through():
    values = {
        "policy": ActorCriticPolicy,
        "learning_rate": LinearSchedule(1.0, 0.0, 1.0),
        "clip_range": lambda progress: progress,
        "device": th.device("cpu"),
        "policy_kwargs": {"activation_fn": th.nn.ReLU, "net_arch": {"pi": [8], "vf": [8]}},
    }
    resolved = resolve(PPO, values)
    assert resolved == values
    assert resolved["policy_kwargs"] is not values["policy_kwargs"]


@pytest.mark.parametrize(
    ("cls", "values", "message"),
    [
        (PPO, {"lerning_rate": 1}, "PPO has no argument 'lerning_rate' (did you mean 'learning_rate'?)"),
        (PPO, {"learning_rate": "1e-3"}, "learning_rate='1e-3': expected float | schedule"),
        (PPO, {"gamma": True}, "gamma=True: expected float"),
        (PPO, {"n_steps": 1.5}, "n_steps=1.5: expected int"),
        (PPO, {"n_steps": True}, "n_steps=True: expected int"),
        (PPO, {"n_steps": "8"}, "n_steps='8': expected int"),
        (PPO, {"use_sde": 1}, "use_sde=1: expected bool"),
        (PPO, {"gamma": {"schedule": "linear", "initial": 1}}, "expected float"),
        (PPO, {"learning_rate": {"schedule": "linaer"}}, "linear, constant (did you mean 'linear'?)"),
        (PPO, {"learning_rate": {"schedule": ["linear"]}}, "schedule=['linear'] is not one of"),
        (PPO, {"learning_rate": {"schedule": "linear"}}, "learning_rate: linear schedule needs 'initial'"),
        (PPO, {"learning_rate": {"schedule": "linear", "initial": "x"}}, "initial='x': expected float"),
        (PPO, {"learning_rate": {"schedule": "linear", "initail": 1}}, "'initail' (did you mean 'initial'?)"),
        (PPO, {"learning_rate": {"schedule": "linear", "initial": 1, "end_fraction": 0}}, "must be in (0, 1], not 0"),
        (PPO, {"learning_rate": "lin_1e-3"}, "expected float | schedule, such as {schedule: linear, initial: 1e-3}"),
        (PPO, {"clip_range": "lin_0.2"}, "expected float | schedule, such as {schedule: linear, initial: 0.2}"),
        (PPO, {"gamma": "lin_0.2"}, "gamma='lin_0.2': expected float"),
        (PPO, {"learning_rate": "linear"}, "learning_rate='linear': expected float | schedule"),
        (PPO, {"policy_kwargs": {"net_arhc": []}}, "ActorCriticPolicy has no argument 'net_arhc' (did you mean 'net_a"),
        (PPO, {"policy_kwargs": {"net_arch": ["64"]}}, "net_arch=['64']: expected list[int] | dict[str, list[int]]"),
        (PPO, {"policy_kwargs": {"net_arch": [64, -3]}}, "net_arch=[64, -3]: every layer needs a width of at least 1"),
        (SAC, {"policy_kwargs": {"net_arch": {"pi": [8], "qf": [0]}}}, "'qf': [0]}: every layer needs a width of at least 1"),
        (PPO, {"policy_kwargs": {"lr_schedule": 1.0}}, "ActorCriticPolicy has no argument 'lr_schedule'"),
        (PPO, {"policy_kwargs": [1]}, "policy_kwargs=[1]: expected dict[str, any] | None"),
        (PPO, {"policy_kwargs": {"activation_fn": "rleu"}}, "(did you mean 'relu'?)"),
        (PPO, {"policy_kwargs": {"activation_fn": "torch.nn:Rel"}}, "no 'Rel' there"),
        (PPO, {"policy_kwargs": {"activation_fn": "torch.optim:Adam"}}, "expected type[Module]"),
        (SAC, {"replay_buffer_class": "nowhere:Buffer"}, "cannot import 'nowhere:Buffer': ModuleNotFoundError"),
        (SAC, {"train_freq": [1, 2]}, "train_freq=(1, 2): expected int | tuple[int, str]"),
        (SAC, {"action_noise": 0.1}, "action_noise=0.1: expected ActionNoise | None"),
        (SAC, {"action_noise": {"noise": "norml"}}, "(did you mean 'normal'?)"),
        (SAC, {"action_noise": {"noise": "normal"}}, "action_noise: normal noise needs 'sigma'"),
        (SAC, {"action_noise": {"noise": "normal", "sigma": -0.1}}, "sigma must not be negative"),
        (SAC, {"action_noise": {"noise": "normal", "sigma": [1.0]}}, "sigma has 1 values for actions of shape (2,)"),
    ],
)
def test_what_does_not_fit_is_told_in_one_line_with_its_place(cls, values, message):
    with pytest.raises(ConfigError) as caught:
        resolve(cls, values, where="file.yml:3", action_space=TWO_ACTIONS)
    assert message in str(caught.value)
    assert str(caught.value).startswith("file.yml:3: ")
    assert "\n" not in str(caught.value)


def test_the_place_may_depend_on_the_key():
    with pytest.raises(ConfigError, match=r"^policy_kwargs/activation: ActorCriticPolicy has no argument"):
        resolve(PPO, {"policy_kwargs": {"activation": "relu"}}, where="/".join)
    with pytest.raises(ConfigError, match=r"^n_steps: "):
        resolve(PPO, {"n_steps": None}, where="/".join)
    with pytest.raises(ConfigError, match=r"^policy_kwargs/net_arch: net_arch=\[0\]: every"):
        resolve(PPO, {"policy_kwargs": {"net_arch": [0]}}, where="/".join)


@pytest.mark.parametrize("layers", [[], None, {"pi": [], "vf": [8]}])
def test_networks_may_be_without_layers(layers):
    assert resolve(PPO, {"policy_kwargs": {"net_arch": layers}})["policy_kwargs"] == {"net_arch": layers}


def test_policy_arguments_are_those_of_the_policy_that_is_named():
    with pytest.raises(ConfigError, match="'n_lstm'"):
        resolve(PPO, {"policy_kwargs": {"n_lstm": 1}, "policy": "CnnPolicy"})
    assert resolve(SAC, {"policy_kwargs": {"n_critics": 3}})["policy_kwargs"] == {"n_critics": 3}


def test_a_choice_is_checked_with_the_nearest():
    with pytest.raises(ConfigError, match=r"kl='kk1': expected 'k1' \| 'k3' \(did you mean 'k1'\?\)"):
        check_value("kl", "kk1", Literal["k1", "k3"])


class Learner(Protocol):
    def learn(self) -> None: ...


def test_a_type_that_cannot_be_checked_is_not():
    assert check_value("odd", "x", Learner) == "x"


# --- jsonable --------------------------------------------------------------------------------------------------------


def module_function(progress: float) -> float:
    return progress


def test_arguments_become_plain_data_and_come_back():
    values = {
        "learning_rate": LinearSchedule(1e-3, 1e-5, 0.5),
        "action_noise": OrnsteinUhlenbeckActionNoise(np.zeros(2), np.array([0.1, 0.2]), theta=0.2),
        "replay_buffer_class": HerReplayBuffer,
        "replay_buffer_kwargs": {"goal_selection_strategy": GoalSelectionStrategy.FUTURE},
        "train_freq": (1, "episode"),
        "policy_kwargs": {"activation_fn": th.nn.GELU, "optimizer_kwargs": {"betas": (0.9, 0.99)}},
        "device": th.device("cpu"),
        "gamma": np.float64(0.9),
        "seed": None,
    }
    plain = jsonable(values)
    assert plain == {
        "learning_rate": {"schedule": "linear", "initial": 1e-3, "final": 1e-5, "end_fraction": 0.5},
        "action_noise": {
            "noise": "ornstein_uhlenbeck",
            "sigma": [0.1, 0.2],
            "mean": 0.0,
            "theta": 0.2,
            "dt": 0.01,
        },
        "replay_buffer_class": "her",
        "replay_buffer_kwargs": {"goal_selection_strategy": "future"},
        "train_freq": [1, "episode"],
        "policy_kwargs": {"activation_fn": "gelu", "optimizer_kwargs": {"betas": [0.9, 0.99]}},
        "device": "cpu",
        "gamma": 0.9,
        "seed": None,
    }
    assert parse_yaml(dump_yaml(plain), "dump") == plain
    assert jsonable(resolve(SAC, plain, action_space=TWO_ACTIONS)) == plain


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (FloatSchedule(0.5), {"schedule": "constant", "initial": 0.5}),
        (ConstantSchedule(0.5), {"schedule": "constant", "initial": 0.5}),
        (LinearSchedule(1.0, 0.0, 1.0), {"schedule": "linear", "initial": 1.0, "final": 0.0}),
        (NormalActionNoise(np.zeros(2), np.ones(2)), {"noise": "normal", "sigma": 1.0, "mean": 0.0}),
        (np.arange(3), [0, 1, 2]),
        (np.int64(3), 3),
        (Path("logs"), "logs"),
        (PPO, "stable_baselines3.ppo.ppo:PPO"),
        (module_function, f"{__name__}:module_function"),
    ],
)
def test_plain_forms(value, plain):
    assert jsonable({"it": value}) == {"it": plain}


@pytest.mark.parametrize("value", [lambda progress: progress, partial(module_function), object()])
def test_what_has_no_plain_form_is_refused(value):
    with pytest.raises(ConfigError, match=r"learning_rate=.* cannot be written to a file"):
        jsonable({"learning_rate": value})


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("torch.nn", "is not an import path of the form 'package.module:name'"),
        (":ReLU", "is not an import path"),
        ("torch.nn:Relue", "no 'Relue' there"),
        ("torch.nn:Sequentail", r"no 'Sequentail' there \(did you mean 'Sequential'\?\)"),
        ("no_such_module:x", "ModuleNotFoundError: No module named 'no_such_module'"),
    ],
)
def test_import_paths(path, message):
    with pytest.raises(ConfigError, match=message):
        import_object(path)
    assert import_object("torch:nn.ReLU") is th.nn.ReLU


# --- YAML ------------------------------------------------------------------------------------------------------------

plain_data = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(st.characters(codec="ascii")),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text("abc_1", min_size=1), children, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(st.text("abcdefgh_", min_size=1), plain_data, max_size=5))
@example({"_": ["??", "?>", "?;", "?0", "?", "a?", "? a"]})
def test_what_is_dumped_is_read_again(data):
    assert parse_yaml(dump_yaml(data), "dump") == data


def test_yaml_is_version_1_2():
    text = "[1e-3, 1e5, .inf, on, 010, 0o10, null, true]"
    assert parse_yaml(text, "text") == [1e-3, 1e5, float("inf"), "on", 10, 8, None, True]
    assert parse_yaml("", "text") is None


def test_keys_are_located(tmp_path):
    file = tmp_path / "file.yml"
    file.write_text("base: &base\n  a: 1\n  b: 2\nother:\n  <<: *base\n  b: 3\n  c: [1,\n 2]\n")
    data, locate = load_yaml(file)
    assert data["other"] == {"a": 1, "b": 3, "c": [1, 2]}
    assert locate(("other", "b")) == f"{file}:6"
    assert locate(("other", "a")) == f"{file}:2"
    assert locate(("other", "missing")) == f"{file}:4"
    assert locate(("missing",)) == locate(()) == str(file)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\na: 2", ":2: not valid YAML: found duplicate key"),
        ("a: [1", ":1: not valid YAML"),
        ("a: 1\nb: !!python/object:os.system x", ":2: YAML type 'python/object:os.system' is not allowed"),
        ("a: 2020-01-01", ":1: YAML type 'timestamp' is not allowed '2020-01-01': quote it if it is meant as text"),
        ("a: !!int x", ": not valid YAML: "),
        ("&a [*a]", ":1: a value contains itself"),
        ("1: x", ":1: keys must be strings, found '1'"),
        ("? [a]\n: 1", ":1: keys must be strings"),
        ("- a", ": expected a mapping of keys to values, found list"),
        ("# a: 1", ": expected a mapping of keys to values, found nothing"),
        ("a: 1\n---\nb: 2", "not valid YAML"),
        ("a: \x00", "not valid YAML"),
    ],
)
def test_files_that_are_refused(tmp_path, text, message):
    file = tmp_path / "file.yml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_yaml(file)
    assert str(caught.value).startswith(f"{file}:")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(ConfigError, match="no such file"):
        load_yaml(tmp_path / "missing.yml")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_yaml(tmp_path)
    (tmp_path / "latin.yml").write_bytes(b"a: \xe9")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_yaml(tmp_path / "latin.yml")


def test_the_six_and_their_counterparts_take_the_same_noise():
    for cls in (DDPG, TD3, SAC, get_class("ddpg"), get_class("td3"), get_class("sac")):
        values = {"action_noise": {"noise": "normal", "sigma": 0.1}}
        assert isinstance(resolve(cls, values, action_space=TWO_ACTIONS)["action_noise"], NormalActionNoise)
    with pytest.raises(ConfigError, match="DQN has no argument 'action_noise'"):
        resolve(DQN, {"action_noise": None})
