"""What algorithms there are, their presets, and how a name becomes a model. Plugins are in test_plugin.py."""

from dataclasses import replace

import gymnasium as gym
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import A2C, HerReplayBuffer
from stable_baselines3 import PPO as SB3PPO
from stable_baselines3.common.envs import BitFlippingEnv
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from spinup_plugins import paths, registry
from spinup_plugins.environments import make_env
from spinup_plugins.errors import ConfigError, PluginError, UnknownNameError
from spinup_plugins.registry import (
    AlgorithmSpec,
    algorithms,
    build,
    choose_policy,
    errors,
    get_class,
    get_spec,
    make,
    merge_values,
    preset_values,
    register,
    unregister,
    zoo_entries,
)
from spinup_plugins.testing import OBSERVATION_SPACES, ToyEnv

TUPLE = spaces.Tuple([OBSERVATION_SPACES["Box"]] * 2)

SIX = ("vpg", "trpo", "ppo", "ddpg", "td3", "sac")


@pytest.fixture
def data(tmp_path, monkeypatch):
    """An empty folder in place of the zoo's data."""
    monkeypatch.setattr("spinup_plugins.presets.data_dir", lambda name: tmp_path)
    (tmp_path / "hyperparams").mkdir()
    return tmp_path / "hyperparams"


# --- names -----------------------------------------------------------------------------------------------------------


def test_the_six_come_first():
    assert algorithms()[:6] == SIX
    assert algorithms(peers=True)[: len(algorithms())] == algorithms()
    assert all(name.startswith("sb3:") for name in algorithms(peers=True)[len(algorithms()) :])


@pytest.mark.parametrize("name", algorithms(peers=True))
def test_specifications_tell_the_truth(name):
    spec = get_spec(name)
    cls = get_class(name)
    assert spec.name == name
    assert cls.__name__.lower() == name.removeprefix("sb3:").replace("_", "")
    assert spec.family in ("policy optimisation", "Q-learning", "hybrid")
    assert spec.model_free
    assert spec.summary
    assert spec.paper
    assert set(spec.action_spaces) <= set(dir(spaces))
    assert ("Q" in " ".join(spec.learns) or "quantiles" in " ".join(spec.learns)) == (not spec.on_policy)


def test_names_are_found_in_any_case_and_by_alias():
    assert get_spec("PPO") is get_spec("ppo")
    assert get_spec("Vanilla_Policy_Gradient") is get_spec("vpg")
    assert get_spec("sb3:QR-DQN") is get_spec("sb3:qrdqn")


def test_unknown_names_are_answered_with_the_nearest():
    with pytest.raises(UnknownNameError, match=r"unknown algorithm 'ppoo' \(did you mean 'ppo'\?\); there are vpg, trpo"):
        get_spec("ppoo")
    with pytest.raises(UnknownNameError, match=r"'a2c' \(did you mean 'sb3:a2c'\?\)"):
        get_class("a2c")


def test_registering(request):
    spec = replace(get_spec("ppo"), name="mine", cls_path="stable_baselines3:PPO", aliases=("my_own",))
    register(spec)
    request.addfinalizer(lambda: registry._registered.clear())
    assert algorithms()[6] == "mine"
    assert get_class("mine") is get_class("my_own") is SB3PPO
    with pytest.raises(PluginError, match="algorithm 'mine' exists already"):
        register(spec)
    unregister("mine")
    assert "mine" not in algorithms()
    with pytest.raises(UnknownNameError, match="algorithm 'mine' was not registered"):
        unregister("mine")


def test_overriding_a_built_in(request):
    own = get_class("ppo")
    spec = replace(get_spec("ppo"), cls_path="stable_baselines3:PPO")
    with pytest.raises(PluginError, match="algorithm 'ppo' exists already"):
        register(spec)
    with pytest.raises(PluginError, match="algorithm 'sb3:a2c' exists already"):
        register(replace(spec, name="sb3:a2c"))
    register(spec, override=True)
    request.addfinalizer(lambda: registry._registered.clear())
    assert get_class("ppo") is SB3PPO
    assert algorithms().count("ppo") == 1
    unregister("ppo")
    assert get_class("ppo") is own


def test_specifications_that_cannot_be():
    with pytest.raises(ConfigError, match="algorithm name 'My PPO' is not made of lower-case letters"):
        replace(get_spec("ppo"), name="My PPO")
    with pytest.raises(PluginError, match="'mine' is written for api_version 2; this package has 1"):
        register(replace(get_spec("ppo"), name="mine", api_version=2))
    with pytest.raises(PluginError, match="algorithm 'ppo': cannot import 'nowhere:PPO': ModuleNotFoundError"):
        replace(get_spec("ppo"), cls_path="nowhere:PPO").load()
    with pytest.raises(PluginError, match="'torch:Tensor' is not a subclass of stable_baselines3's BaseAlgorithm"):
        replace(get_spec("ppo"), cls_path="torch:Tensor").load()


def test_nothing_is_wrong_by_itself(monkeypatch):
    monkeypatch.setenv("SPINUP_PLUGINS_DISABLE", "*")
    assert errors() == {}


# --- presets ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SIX)
def test_the_original_recipes_can_be_built(name):
    env_id = "CartPole-v1" if "Discrete" in get_spec(name).action_spaces else "Pendulum-v1"
    model = make(name, env_id, preset="spinning_up", device="cpu")
    assert model.gamma == 0.99
    values = preset_values(get_spec(name), "spinning_up", env_id)
    values.setdefault("policy_kwargs", {})["changed"] = True
    assert "changed" not in preset_values(get_spec(name), "spinning_up", env_id).get("policy_kwargs", {})


FINITE = ["CartPole-v1", "Acrobot-v1", "MountainCar-v0", "LunarLander-v3"]
ZOO = [
    *("CartPole-v1", "Acrobot-v1", "MountainCar-v0", "Pendulum-v1", "MountainCarContinuous-v0"),
    *("LunarLander-v3", "LunarLanderContinuous-v3"),
    *("InvertedPendulum-v5", "InvertedDoublePendulum-v5", "Reacher-v5"),
    *("Swimmer-v5", "Hopper-v5", "Walker2d-v5", "HalfCheetah-v5", "Ant-v5"),
]


@pytest.mark.parametrize("name", SIX)
def test_every_zoo_entry_can_be_built(name):
    spec = get_spec(name)
    assert zoo_entries(spec) == [each for each in ZOO if name not in ("ddpg", "td3", "sac") or each not in FINITE]
    for env_id in zoo_entries(spec):
        values = preset_values(spec, "zoo", env_id)
        assert values["provenance"]
        assert values["n_timesteps"] > 0
        model = make(name, env_id, preset="zoo", device="cpu")
        assert model.n_envs == values.get("n_envs", 1)


def test_no_preset_is_the_constructors_defaults():
    assert preset_values(get_spec("ppo"), None, "CartPole-v1") == {}
    assert preset_values(get_spec("ppo"), "default", None) == {}


def test_unknown_presets():
    with pytest.raises(UnknownNameError, match=r"unknown preset 'spining_up' \(did you mean 'spinning_up'\?\)"):
        make("ppo", "CartPole-v1", preset="spining_up")
    for preset in ("zoo", "spinning_up"):
        with pytest.raises(UnknownNameError, match=f"algorithm 'sb3:a2c' has no preset '{preset}'"):
            make("sb3:a2c", "CartPole-v1", preset=preset)


def test_zoo_entries_are_chosen_by_environment(data):
    file = data / "ppo.yml"
    file.write_text("CartPole-v1: {n_steps: 16, provenance: test}\nAcrobot-v1: {n_steps: 8, provenance: test}\n")
    spec = get_spec("ppo")
    assert preset_values(spec, "zoo", "CartPole-v1") == {"n_steps": 16, "provenance": "test"}
    assert preset_values(spec, "zoo", "gymnasium.envs:Acrobot-v1")["n_steps"] == 8
    with pytest.raises(ConfigError) as caught:
        preset_values(spec, "zoo", "CartPole-v0")
    assert str(caught.value) == (
        f"{file} has no entry for environment 'CartPole-v0' (did you mean 'CartPole-v1'?); there are CartPole-v1, Acrobot-v1"
    )
    with pytest.raises(ConfigError, match="has no entry for an environment without an id"):
        preset_values(spec, "zoo", None)
    file.write_text(f"{file.read_text()}default: {{n_steps: 4, provenance: test}}\n")
    assert preset_values(spec, "zoo", "Other-v0")["n_steps"] == 4
    assert preset_values(spec, "zoo", None)["n_steps"] == 4


@pytest.mark.parametrize(
    ("entry", "line", "message"),
    [
        ("  n_stepz: 16", 4, r"PPO has no argument 'n_stepz' \(did you mean 'n_steps'\?\)"),
        ("  n_steps: sixteen", 4, "n_steps='sixteen': expected int"),
        ("  n_timesteps: many", 4, "n_timesteps='many': expected int"),
        ("  normalize: 1", 4, r"normalize=1: expected bool \| dict"),
        ("  policy_kwargs:\n    net_arhc: [64]", 5, r"'net_arhc' \(did you mean 'net_arch'\?\)"),
    ],
)
def test_mistakes_in_entries_are_told_by_file_and_line(data, entry, line, message):
    file = data / "ppo.yml"
    file.write_text(f"# comment\nCartPole-v1:\n  provenance: test\n{entry}\n")
    with pytest.raises(ConfigError, match=message) as caught:
        make("ppo", "CartPole-v1", preset="zoo")
    assert str(caught.value).startswith(f"{file}:{line}: ")


def test_entries_tell_where_they_are_from(data):
    file = data / "ppo.yml"
    file.write_text("CartPole-v1:\n  n_steps: 16\n")
    with pytest.raises(ConfigError, match=":1: the entry does not tell its 'provenance'"):
        make("ppo", "CartPole-v1", preset="zoo")
    file.write_text("CartPole-v1: 16\n")
    with pytest.raises(ConfigError, match=":1: expected a mapping of arguments, found 16"):
        make("ppo", "CartPole-v1", preset="zoo")


def test_entries_extend_others(data):
    file = data / "ppo.yml"
    file.write_text(
        "base:\n  n_steps: 16\n  policy_kwargs: {net_arch: [8], ortho_init: false}\n"
        "middle:\n  extends: base\n  batch_size: 8\n"
        "CartPole-v1:\n  extends: middle\n  n_steps: 32\n  policy_kwargs: {net_arch: [4]}\n  provenance: test\n"
    )
    spec = get_spec("ppo")
    assert preset_values(spec, "zoo", "CartPole-v1") == {
        "n_steps": 32,
        "batch_size": 8,
        "policy_kwargs": {"net_arch": [4], "ortho_init": False},
        "provenance": "test",
    }
    assert zoo_entries(spec) == ["CartPole-v1"]
    for name in ("base", "middle"):
        with pytest.raises(ConfigError, match=f"no entry for environment '{name}'; there are CartPole-v1"):
            preset_values(spec, "zoo", name)
    file.write_text(file.read_text().replace("batch_size: 8", "batch_syze: 8"))
    with pytest.raises(ConfigError, match=r"ppo\.yml:6: PPO has no argument 'batch_syze'"):
        preset_values(spec, "zoo", "CartPole-v1")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("A-v0: {extends: bass, provenance: test}\nbase: {n_steps: 8}", ":1: there is no entry 'bass' to extend.*'base'"),
        ("A-v0:\n  provenance: test\n  extends: 3", ":3: there is no entry 3 to extend"),
        ("A-v0: {extends: A-v0, provenance: test}", ":1: 'A-v0' extends itself"),
        ("A-v0: {extends: b, provenance: test}\nb: {extends: A-v0}", ":2: 'A-v0' extends itself, by way of 'b'"),
    ],
)
def test_mistaken_extensions(data, text, message):
    (data / "ppo.yml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        preset_values(get_spec("ppo"), "zoo", "A-v0")


def test_a_preset_may_be_a_file(tmp_path):
    alone, several = tmp_path / "alone.yml", tmp_path / "several.yaml"
    alone.write_text("n_steps: 16\nn_timesteps: 1e4\nbatch_size: 16")
    several.write_text("CartPole-v1: {n_steps: 8, batch_size: 8}\ndefault: {n_steps: 4}")
    spec = get_spec("ppo")
    expected = {"n_steps": 16, "n_timesteps": 10_000, "batch_size": 16}
    assert preset_values(spec, str(alone), "CartPole-v1") == expected
    assert preset_values(spec, str(several), "CartPole-v1") == {"n_steps": 8, "batch_size": 8}
    assert preset_values(spec, str(several), "Other-v0") == {"n_steps": 4}
    assert make("ppo", "CartPole-v1", preset=str(alone)).n_steps == 16
    several.write_text("CartPole-v1: {extends: default, batch_size: 8}\ndefault: {n_steps: 4}")
    assert preset_values(spec, str(several), "CartPole-v1") == {"n_steps": 4, "batch_size": 8}
    several.write_text("CartPole-v1: {n_steps: 8, batch_size: 8}")
    with pytest.raises(ConfigError, match=r"has no entry for environment 'CartPol-v1' \(did you mean 'CartPole-v1'\?\)"):
        preset_values(spec, str(several), "CartPol-v1")
    alone.write_text("extends: other\nn_steps: 16")
    with pytest.raises(ConfigError, match="PPO has no argument 'extends'"):
        preset_values(spec, str(alone), "CartPole-v1")
    with pytest.raises(ConfigError, match=r"missing\.yml: no such file"):
        preset_values(spec, "missing.yml", "CartPole-v1")


def test_values_are_merged_one_deep():
    base = {
        "gamma": 0.9,
        "policy_kwargs": {"net_arch": [8], "ortho_init": False},
        "learning_rate": {"schedule": "linear", "initial": 1, "final": 0.5},
        "env_kwargs": {"a": 1},
    }
    overrides = {
        "policy_kwargs": {"net_arch": [16]},
        "learning_rate": {"schedule": "constant", "initial": 1},
        "env_kwargs": None,
        "tau": 1,
    }
    assert merge_values(base, overrides) == {
        "gamma": 0.9,
        "policy_kwargs": {"net_arch": [16], "ortho_init": False},
        "learning_rate": {"schedule": "constant", "initial": 1},
        "env_kwargs": None,
        "tau": 1,
    }
    assert base["policy_kwargs"] == {"net_arch": [8], "ortho_init": False}


# --- models ----------------------------------------------------------------------------------------------------------


def test_make_equals_the_constructor():
    ours = make("ppo", "CartPole-v1", n_steps=32, batch_size=32, seed=3, device="cpu").learn(64)
    direct = get_class("ppo")("MlpPolicy", "CartPole-v1", n_steps=32, batch_size=32, seed=3, device="cpu").learn(64)
    for one, other in zip(ours.policy.parameters(), direct.policy.parameters(), strict=True):
        assert th.equal(one, other)


def test_make_takes_plain_data_and_python_objects():
    model = make(
        "PPO",
        "CartPole-v1",
        learning_rate={"schedule": "linear", "initial": 1e-3},
        clip_range=LinearSchedule(0.3, 0.0, 1.0),
        policy_kwargs={"activation_fn": "relu", "net_arch": [8]},
        n_steps=16,
        batch_size=16,
    )
    assert model.lr_schedule(0.5) == pytest.approx(5e-4)
    assert model.clip_range(1.0) == 0.3
    assert model.policy_kwargs["activation_fn"] is th.nn.ReLU


def test_make_overrides_the_preset_and_prepares_the_environment(data):
    (data / "ppo.yml").write_text(
        "CartPole-v1:\n"
        "  provenance: test\n"
        "  n_timesteps: 100\n"
        "  n_envs: 2\n"
        "  normalize: {norm_reward: false}\n"
        "  env_kwargs: {sutton_barto_reward: true}\n"
        "  gamma: 0.9\n"
        "  policy_kwargs: {net_arch: [8], ortho_init: false}\n"
    )
    model = make("ppo", "CartPole-v1", preset="zoo", n_steps=16, batch_size=8, policy_kwargs={"net_arch": [4]})
    assert model.policy_kwargs == {"net_arch": [4], "ortho_init": False}
    env = model.get_vec_normalize_env()
    assert isinstance(env, VecNormalize)
    assert (env.num_envs, env.gamma, env.norm_reward) == (2, 0.9, False)
    assert env.get_attr("_sutton_barto_reward") == [True, True]
    assert make("ppo", "CartPole-v1", preset="zoo", n_envs=3, normalize=False, n_steps=8, batch_size=8).n_envs == 3
    for given in (gym.make("CartPole-v1"), make_env("CartPole-v1")):
        model = make("ppo", given, preset="zoo", n_steps=16, batch_size=8)
        assert model.gamma == 0.9
        assert model.n_envs == 1
        assert model.get_vec_normalize_env() is None


def test_peers_are_made_like_ours():
    model = make("sb3:a2c", "CartPole-v1", n_steps=8, n_envs=2)
    assert type(model) is A2C
    assert model.learn(16).num_timesteps == 16


def test_hindsight_replay():
    env = BitFlippingEnv(n_bits=4, continuous=True)
    model = make("sac", env, replay_buffer_class="her", learning_starts=10, buffer_size=100, batch_size=4, device="cpu")
    assert isinstance(model.replay_buffer, HerReplayBuffer)
    assert model.learn(20).num_timesteps == 20


@pytest.mark.parametrize(("kind", "prefix"), [("Dict", "MultiInput"), ("image", "Cnn"), ("Box", "Mlp"), ("Discrete", "Mlp")])
def test_policies_are_chosen_by_the_observations(kind, prefix):
    space = OBSERVATION_SPACES[kind]
    assert choose_policy(get_class("ppo"), space) == f"{prefix}Policy"
    assert choose_policy(get_class("sb3:recurrent_ppo"), space) == f"{prefix}LstmPolicy"


def test_policies_may_be_given():
    assert make("ppo", "CartPole-v1", policy="MlpPolicy").policy_class is ActorCriticPolicy
    assert make("ppo", "CartPole-v1", policy=ActorCriticPolicy).policy_class is ActorCriticPolicy
    path = "stable_baselines3.common.policies:ActorCriticPolicy"
    assert make("ppo", "CartPole-v1", policy=path).policy_class is ActorCriticPolicy


@pytest.mark.parametrize(
    ("name", "env", "arguments", "kind", "message"),
    [
        ("ppo", None, {}, ConfigError, r"make\('ppo'\): expected an environment: an id"),
        ("ppo", "CartPol-v1", {}, UnknownNameError, "unknown environment 'CartPol-v1'"),
        ("ppo", "CartPole-v1", {"lerning_rate": 1}, ConfigError, r"PPO has no argument 'lerning_rate' \(did you mean"),
        ("ppo", "CartPole-v1", {"policy": "MlpPolcy"}, UnknownNameError, r"ppo has no policy 'MlpPolcy' \(did you mean"),
        (
            "ppo",
            "CartPole-v1",
            {"policy": "MultiInputPolicy"},
            ConfigError,
            "reads Dict observations, not Box.*; MlpPolicy does",
        ),
        ("ppo", "CartPole-v1", {"policy": "CnnPolicy"}, ConfigError, "CnnPolicy reads images, .*, not Box.*; MlpPolicy does"),
        ("ppo", OBSERVATION_SPACES["Dict"], {"policy": "CnnPolicy"}, ConfigError, "images, .*, not Dict.*; MultiInputPolicy"),
        (
            "ppo",
            TUPLE,
            {},
            ConfigError,
            r"ppo cannot read Tuple observations, Tuple\(.*\): make a Dict of them, or a vector by",
        ),
        ("sb3:ppo", TUPLE, {"policy": "MlpPolicy"}, ConfigError, "by the wrapper 'flatten_observation'"),
        ("ppo", "CartPole-v1", {"n_envs": "x"}, ConfigError, "n_envs='x' must be a whole number, an int"),
        ("ppo", "CartPole-v1", {"n_envs": 1.5}, ConfigError, "n_envs=1.5 must be a whole number, an int"),
        ("sb3:ppo", "CartPole-v1", {"seed": "a"}, ConfigError, "seed='a' must be a whole number, an int"),
        ("ppo", "CartPole-v1", {"seed": 1.5}, ConfigError, "seed=1.5 must be a whole number, an int"),
        ("ppo", "CartPole-v1", {"n_timesteps": 5}, ConfigError, "'n_timesteps' is no constructor argument"),
        ("sac", "CartPole-v1", {}, ConfigError, r"sac cannot act on Discrete\(2\), only on Box; vpg, trpo, ppo can"),
        ("sb3:ars", OBSERVATION_SPACES["image"], {}, ConfigError, "ARS has no Cnn policy for Box"),
        ("ppo", OBSERVATION_SPACES["Box"], {"n_envs": 2}, ConfigError, "'n_envs' is for an environment given by its id"),
    ],
)
def test_what_cannot_be_made(name, env, arguments, kind, message):
    if isinstance(env, spaces.Space):
        env = ToyEnv(env, spaces.Box(-1.0, 1.0, (1,)))
    with pytest.raises(kind, match=message):
        make(name, env, **arguments)


def test_images_of_other_numbers_are_read_where_that_is_said():
    env = ToyEnv(spaces.Box(0.0, 1.0, (3, 36, 36)), spaces.Discrete(2))
    with pytest.raises(ConfigError, match="CnnPolicy reads images, uint8 from 0 to 255, not"):
        make("ppo", env, policy="CnnPolicy")
    make("ppo", env, policy="CnnPolicy", policy_kwargs={"normalize_images": False})
    make("ppo", env, policy="CnnPolicy", policy_kwargs={"features_extractor_class": "flatten"})


def test_an_environment_is_closed_when_its_model_cannot_be_built(monkeypatch):
    closed = []
    monkeypatch.setattr(DummyVecEnv, "close", lambda self: closed.append(self))
    with pytest.raises(ConfigError, match="gamma='x'"):
        make("ppo", "CartPole-v1", gamma="x")
    assert len(closed) == 1


def test_build_tells_the_place():
    with pytest.raises(ConfigError, match=r"^config\.yml: PPO has no argument 'gama'"):
        build(get_spec("ppo"), make_env("CartPole-v1"), {"gama": 1}, where="config.yml")


def test_specifications_are_plain():
    spec = AlgorithmSpec("name", "module:Class", "hybrid", False, ("Q",), ("Box",), "paper", "summary")
    assert (spec.aliases, spec.model_free, spec.api_version, spec.presets_path, spec.distribution) == ((), True, 1, None, "")


# --- data ------------------------------------------------------------------------------------------------------------


def test_data_is_the_wheels_or_the_checkouts(tmp_path, monkeypatch):
    package = tmp_path / "site-packages" / "spinup_plugins"
    monkeypatch.setattr(paths, "__file__", str(package / "paths.py"))
    with pytest.raises(
        ConfigError, match=r"^this installation has no zoo: there is neither '.*_data/zoo' nor '.*packages/zoo'"
    ):
        preset_values(get_spec("ppo"), "zoo", "CartPole-v1")
    (tmp_path / "site-packages" / "zoo").mkdir(parents=True)
    assert paths.data_dir("zoo") == tmp_path / "site-packages" / "zoo"
    (package / "_data" / "zoo").mkdir(parents=True)
    assert paths.data_dir("zoo") == package / "_data" / "zoo"
