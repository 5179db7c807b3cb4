"""Agent files: equal actions after a round trip, training that goes on, and nothing from a file that is not whole and ours."""

import io
import json
import re
import shutil
import struct
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from copy import deepcopy
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stable_baselines3 import HerReplayBuffer
from stable_baselines3.common.envs import BitFlippingEnv
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.utils import LinearSchedule, set_random_seed
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack, VecNormalize, VecTransposeImage
from twins import BOX, OFF_POLICY, ON_POLICY, PEERS, SIX, SOME, VECTOR, build, learnt, toy

from spinup_plugins import DDPG, PPO, SAC, TD3, VPG, load_agent, make, save_agent
from spinup_plugins.cli import main
from spinup_plugins.errors import ConfigError, ModelFileError, ModelFileMissingError, UnknownNameError
from spinup_plugins.runs import agent as agents
from spinup_plugins.runs import archive
from spinup_plugins.runs.agent import Agent, published
from spinup_plugins.runs.archive import pack, unpack
from spinup_plugins.runs.config import RunConfig
from spinup_plugins.runs.evaluation import evaluate, load_run
from spinup_plugins.runs.export import export
from spinup_plugins.runs.manifest import Environment, pack_space, unpack_space
from spinup_plugins.runs.runner import train

IMAGE = spaces.Box(0, 255, (36, 36, 1), np.uint8)  # channels last, as environments have them
DICT = spaces.Dict({"vector": VECTOR, "choice": spaces.Discrete(3), "image": IMAGE})
VECTORS = spaces.Dict({"b": VECTOR, "a": spaces.Box(-9.0, 9.0, (2, 2))})
FINITE = [spaces.Discrete(3), spaces.MultiDiscrete([2, 3]), spaces.MultiBinary(3)]
SMALL_CNN: dict[str, Any] = {"policy_kwargs": {"features_extractor_kwargs": {"features_dim": 8}}}
SMALL_DICT: dict[str, Any] = {"policy_kwargs": {"features_extractor_kwargs": {"cnn_output_dim": 8}}}


def samples(space: spaces.Space[Any], n: int) -> Any:
    """A batch of observations."""
    space = deepcopy(space)
    space.seed(0)
    each = [space.sample() for _ in range(n)]
    return {key: np.stack([one[key] for one in each]) for key in each[0]} if isinstance(each[0], dict) else np.stack(each)


def first(observations: Any) -> Any:
    return {key: each[0] for key, each in observations.items()} if isinstance(observations, dict) else observations[0]


def normalised(space: spaces.Space[Any] = VECTOR, n_envs: int = 1, **options: Any) -> VecNormalize:
    return VecNormalize(DummyVecEnv([lambda: toy(space)] * n_envs), **options)


def same_state(one: Any, other: Any) -> bool:
    """Whether all tensors are equal by name, those of optimisers too, in whatever order they keep them."""

    def compare(a: Any, b: Any) -> bool:
        if isinstance(a, dict):
            return a.keys() == b.keys() and all(compare(a[key], b[key]) for key in a)
        if isinstance(a, (list, tuple)):
            return len(a) == len(b) and all(map(compare, a, b))
        return th.equal(a, b) if isinstance(a, th.Tensor) else a == b

    return compare(one.get_parameters(), other.get_parameters())


def check_actions(model: Any, agent: Agent, observations: Any) -> None:
    """The agent chooses bit by bit what the model chooses, and draws the same for the same seed."""
    normalizer = model.get_vec_normalize_env()
    for raw in (observations, first(observations)):
        seen = raw if normalizer is None else normalizer.normalize_obs(raw)
        for deterministic in (True, False):
            set_random_seed(7)
            expected, _ = model.predict(seen, deterministic=deterministic)
            set_random_seed(7)
            actions, state = agent.predict(raw, deterministic=deterministic)
            assert state is None
            assert actions.dtype == expected.dtype
            np.testing.assert_array_equal(actions, expected)


# --- round trips ------------------------------------------------------------------------------------------------------

CASES: list[tuple[type, str, spaces.Space[Any], spaces.Space[Any], dict[str, Any]]] = [
    *[(cls, "MlpPolicy", VECTOR, BOX, {}) for cls in SIX],
    *[(cls, "MlpPolicy", VECTOR, space, {}) for cls in ON_POLICY for space in FINITE],
    *[(cls, "CnnPolicy", IMAGE, BOX, SMALL_CNN) for cls in SIX],
    *[(cls, "MultiInputPolicy", DICT, BOX, SMALL_DICT) for cls in SIX],
    *[(cls, "MlpPolicy", VECTOR, BOX, {"use_sde": True}) for cls in [*ON_POLICY, SAC]],
]


@pytest.mark.parametrize(
    ("cls", "policy", "observations", "actions", "kwargs", "normalize"),
    [
        pytest.param(
            *case,
            normalize,
            id=f"{cls.__name__}-{policy}-{type(actions).__name__}{'-sde' * bool('use_sde' in kwargs)}-{normalize}",
        )
        for case in CASES
        for cls, policy, _, actions, kwargs in [case]
        for normalize in ("raw", "normalised")
        if normalize == "raw" or policy != "CnnPolicy"  # images are vectors to SB3 once they are normalised
    ],
)
def test_a_round_trip_gives_bitwise_equal_actions(
    cls: type, policy: str, observations: Any, actions: Any, kwargs: dict[str, Any], normalize: str, tmp_path: Path
) -> None:
    env: Any = DummyVecEnv([lambda: toy(observations, actions)])
    if normalize == "normalised":
        # Behind VecNormalize, SB3's replay stores images as the environment has them, but for those transposed before.
        env = VecTransposeImage(env) if observations is DICT else env
        env = VecNormalize(env, norm_obs_keys=["vector"] if observations is DICT else None)
    model = learnt(cls, env, policy, **kwargs)
    checksum = save_agent(model, tmp_path / "agent.spinup")
    agent = load_agent(tmp_path / "agent.spinup", device="cpu")
    assert agent.hash == checksum
    assert (agent.observation_space, agent.action_space) == (model.observation_space, model.action_space)
    assert agent._model.engine == model.engine
    assert agent.card.actions == (
        "chosen" if not isinstance(actions, spaces.Box) else ("squashed", "clipped")[cls in ON_POLICY]
    )
    assert same_state(agent._model, model), "optimisers' state, too"
    check_actions(model, agent, samples(observations, 5))


@pytest.mark.parametrize("cls", SOME)
def test_untrained_policies_and_several_environments(cls: type, tmp_path: Path) -> None:
    noise = {} if cls in ON_POLICY else {"action_noise": NormalActionNoise(np.zeros(2), np.full(2, 0.1))}
    model = build(cls, normalised(n_envs=3), **noise)
    save_agent(model, tmp_path / "untrained")
    agent = load_agent(tmp_path / "untrained.spinup", device="cpu")
    check_actions(model, agent, samples(VECTOR, 3))
    model.learn(48)
    save_agent(model, tmp_path / "trained")
    check_actions(model, load_agent(tmp_path / "trained.spinup", device="cpu"), samples(VECTOR, 3))


@pytest.mark.parametrize(
    "options",
    [{"norm_obs": False}, {"norm_reward": False, "clip_obs": 1.0}, {"norm_obs_keys": ["a"]}, {"clip_reward": np.inf}],
    ids=str,
)
def test_every_way_to_normalise(options: dict[str, Any], tmp_path: Path) -> None:
    model = learnt(VPG, normalised(VECTORS, **options), "MultiInputPolicy")
    save_agent(model, tmp_path / "agent")
    agent = load_agent(tmp_path / "agent.spinup")
    check_actions(model, agent, samples(VECTORS, 4))
    stored, ours = model.get_vec_normalize_env(), agent.model(DummyVecEnv([lambda: toy(VECTORS)])).get_vec_normalize_env()
    assert all(getattr(ours, name) == getattr(stored, name) for name in ("norm_obs", "norm_reward", "clip_obs", "clip_reward"))
    assert (ours.ret_rms.var, ours.ret_rms.count, ours.training) == (stored.ret_rms.var, stored.ret_rms.count, True)


@pytest.mark.parametrize(
    ("cls", "kwargs"),
    [
        (PPO, {"learning_rate": LinearSchedule(1e-2, 1e-3, 0.5), "clip_range_vf": 0.2, "max_grad_norm": float("inf")}),
        (
            PPO,
            {
                "policy_kwargs": {
                    "optimizer_class": th.optim.AdamW,
                    "activation_fn": th.nn.ELU,
                    "net_arch": {"pi": [4], "vf": []},
                }
            },
        ),
        (PPO, {"policy_kwargs": {"optimizer_class": th.optim.SGD, "optimizer_kwargs": {"momentum": 0.5}}}),
        (VPG, {"policy_kwargs": {"optimizer_class": th.optim.RMSprop, "share_features_extractor": False}}),
        (SAC, {"ent_coef": 0.1, "target_entropy": -1.0, "n_steps": 3, "q_lr": 1e-2}),
        (SAC, {"ent_coef": "auto_0.1", "train_freq": (1, "episode"), "gradient_steps": -1}),
        (TD3, {"action_noise": 0.1, "noise_units": "env", "compact_replay": False}),
        (DDPG, {"engine": "torch", "stats_window_size": 7}),
    ],
)
def test_arguments_survive(cls: type, kwargs: dict[str, Any], tmp_path: Path) -> None:
    model = learnt(cls, **kwargs)
    save_agent(model, tmp_path / "agent")
    agent = load_agent(tmp_path / "agent.spinup", device="cpu")
    check_actions(model, agent, samples(VECTOR, 4))
    again = agent.model(toy(), device="cpu")
    assert agents._arguments(again) == agents._arguments(model)
    assert same_state(again, model)
    assert type(again.replay_buffer if cls in OFF_POLICY else again.rollout_buffer) is type(
        model.replay_buffer if cls in OFF_POLICY else model.rollout_buffer
    )
    again.learn(24, reset_num_timesteps=False)


def test_a_device_that_torch_has_not_is_not_the_files_fault(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^device='gpu': torch has none like that.*; take auto, cpu, cuda, mps$"):
        load_agent(tmp_path / "agent.spinup", device="gpu")


def test_hindsight_replay_comes_back_with_its_environment(tmp_path: Path) -> None:
    model = build(
        DDPG, BitFlippingEnv(n_bits=2, continuous=True), "MultiInputPolicy",
        replay_buffer_class=HerReplayBuffer, replay_buffer_kwargs={"n_sampled_goal": 2},
    ).learn(48)  # fmt: skip
    save_agent(model, tmp_path / "agent")
    agent = load_agent(tmp_path / "agent.spinup", device="cpu")
    check_actions(model, agent, samples(model.observation_space, 3))
    again = agent.model(BitFlippingEnv(n_bits=2, continuous=True), device="cpu")
    assert isinstance(again.replay_buffer, HerReplayBuffer)
    assert again.replay_buffer.n_sampled_goal == 2


@pytest.mark.parametrize("name", ["sb3:ppo", "sb3:a2c", "sb3:dqn", "sb3:sac", "sb3:tqc", "sb3:crossq", "sb3:recurrent_ppo"])
def test_every_registered_algorithm_may_be_saved(name: str, tmp_path: Path) -> None:
    env = toy(VECTOR, spaces.Discrete(2)) if name == "sb3:dqn" else toy()
    model = make(name, env, seed=0, device="cpu", policy_kwargs={"net_arch": [8]})
    save_agent(model, tmp_path / "agent")
    agent = load_agent(tmp_path / "agent.spinup", device="cpu")
    assert agent.card.algorithm == name
    expected, state = model.predict(samples(VECTOR, 2), deterministic=True)
    actions, ours = agent.predict(samples(VECTOR, 2), deterministic=True)
    np.testing.assert_array_equal(actions, expected)
    np.testing.assert_array_equal(ours, state)


def test_equal_agents_are_equal_files_and_loading_draws_nothing(tmp_path: Path) -> None:
    for name in ("one", "two"):
        save_agent(learnt(PPO), tmp_path / name)
    assert (tmp_path / "one.spinup").read_bytes() == (tmp_path / "two.spinup").read_bytes()
    set_random_seed(3)
    expected = th.rand(3), np.random.rand(3)
    set_random_seed(3)
    load_agent(tmp_path / "one.spinup")
    assert th.equal(th.rand(3), expected[0])
    np.testing.assert_array_equal(np.random.rand(3), expected[1])


def test_any_zip_tool_opens_it_and_there_is_no_pickle(tmp_path: Path) -> None:
    save_agent(learnt(SAC), tmp_path / "agent", scores={"mean": 1.5, "interval": None}, env="Toy-v0")
    with zipfile.ZipFile(tmp_path / "agent.spinup") as file:
        assert file.testzip() is None
        assert file.namelist() == ["agent.json", "weights.safetensors", "sha256"]
        card = json.loads(file.read("agent.json"))
    assert (card["algorithm"], card["policy"], card["environment"]["id"]) == ("sac", "MlpPolicy", "Toy-v0")
    assert card["scores"] == {"mean": 1.5, "interval": None}
    assert card["versions"].keys() >= {"spinup-plugins", "torch", "python"}
    assert (card["seed"], card["counters"]["num_timesteps"]) == (0, 48)
    assert repr(load_agent(tmp_path / "agent.spinup")).startswith("<Agent: sac on Toy-v0, 48 steps, ")


def test_shared_extractors_are_written_once(tmp_path: Path) -> None:
    model = build(PPO, DummyVecEnv([lambda: toy(IMAGE)]), "CnnPolicy")
    size = sum(each.numel() * 4 for each in model.policy.parameters())
    save_agent(model, tmp_path / "agent")
    assert (tmp_path / "agent.spinup").stat().st_size < 1.1 * size + 10_000


# --- environments -----------------------------------------------------------------------------------------------------


def pendulum(**kwargs: Any) -> Any:
    small = {"n_steps": 16, "batch_size": 16, "n_epochs": 1, "policy_kwargs": {"net_arch": [8]}}
    return make("ppo", "Pendulum-v1", seed=0, device="cpu", **{**small, **kwargs}).learn(32)


@pytest.fixture(scope="module")
def wrapped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An agent whose environment has arguments, wrappers, a time limit and statistics."""
    wrappers = [
        {"history_observation": {"length": 2}},
        {"scale_reward": {"scale": 0.1}},
        {"time_limit": {"max_episode_steps": 9}},
    ]
    model = pendulum(normalize=True, n_envs=2, wrappers=wrappers, env_kwargs={"g": 5.0})
    path = tmp_path_factory.mktemp("agents") / "wrapped.spinup"
    save_agent(model, path)
    return path


def test_the_environment_is_the_one_it_was_trained_on(wrapped: Path) -> None:
    agent = load_agent(wrapped)
    recorded = agent.card.environment
    assert recorded is not None
    assert (recorded.id, recorded.kwargs, recorded.n_envs) == ("Pendulum-v1", {"g": 5.0, "max_episode_steps": 9}, 2)
    assert [next(iter(each)) for each in recorded.wrappers] == ["history_observation", "scale_reward"]
    env = agent.env(3, seed=1)
    assert (env.num_envs, env.get_attr("g", 0), env.observation_space) == (3, [5.0], agent.observation_space)
    assert isinstance(env, VecNormalize)
    assert (env.training, env.norm_reward) == (False, False)
    observations = env.reset()
    model = agent.model()
    assert model.n_envs == 2
    statistics = model.get_vec_normalize_env()
    assert (statistics.training, statistics.norm_reward) == (True, True)
    expected, _ = model.predict(np.array(observations), deterministic=True)
    for seen in (observations, env.get_original_obs()):  # an agent's own environments say that they have normalised
        np.testing.assert_array_equal(agent.predict(seen, deterministic=True)[0], expected)
    # One row and three are other products to NumPy, which may round otherwise.
    np.testing.assert_allclose(agent.predict(observations[1], deterministic=True)[0], expected[1], rtol=1e-5)
    step = env.step(expected)
    assert np.abs(step[1]).max() > 0.5, "in the environment's units"
    mean, _ = evaluate_policy(agent, env, 2)
    assert evaluate_policy(agent, agent.env(3, seed=1), 2)[0] == pytest.approx(
        evaluate_policy(model, agent.env(3, seed=1), 2)[0]
    )
    assert -200 < mean < 0


def test_another_environment_may_be_named_and_must_fit(wrapped: Path) -> None:
    assert load_agent(wrapped, "Pendulum-v1").env().num_envs == 1
    with pytest.raises(ConfigError, match="CartPole-v1 has no argument 'g'"):
        load_agent(wrapped, "CartPole-v1").model()


@pytest.mark.parametrize("normalize", [False, True])
def test_spaces_of_many_rows_are_told_on_one_line(normalize: bool, tmp_path: Path) -> None:
    stacked = [{"frame_stack_observation": {"stack_size": 3}}]
    model = make("td3", "Pendulum-v1", wrappers=stacked, normalize=normalize, buffer_size=1, policy_kwargs={"net_arch": [2]})
    save_agent(model, tmp_path / "agent")
    agent = load_agent(tmp_path / "agent.spinup", "CartPole-v1")
    for make_it in (agent.env, agent.model):
        with pytest.raises(ConfigError, match="the environment is not one for this agent: ") as caught:
            make_it()
        assert "\n" not in str(caught.value)


def test_spaces_must_fit(tmp_path: Path) -> None:
    save_agent(learnt(DDPG), tmp_path / "agent")
    agent = load_agent(tmp_path / "agent.spinup")
    with pytest.raises(ConfigError, match="does not tell its environment: pass env="):
        agent.env()
    with pytest.raises(ConfigError, match="not one for this agent: Action spaces do not match"):
        agent.model(toy(VECTOR, VECTOR))
    with pytest.raises(ConfigError, match="DDPG has no argument 'gama'"):
        agent.model(toy(), gama=0.5)
    with pytest.raises(
        ConfigError, match=r"^its weights do not fit ddpg with other policy_kwargs: .* size mismatch for actor"
    ):
        agent.model(toy(), policy_kwargs={"net_arch": [3]})
    assert agent.model(toy(), gamma=0.5).gamma == 0.5


def test_images_are_transposed_as_in_training(tmp_path: Path) -> None:
    model = build(PPO, DummyVecEnv([lambda: toy(IMAGE)] * 2), "CnnPolicy", **SMALL_CNN)
    save_agent(model, tmp_path / "agent")
    agent = load_agent(tmp_path / "agent.spinup")
    images = samples(IMAGE, 2)
    np.testing.assert_array_equal(agent.predict(images, deterministic=True)[0], model.predict(images, deterministic=True)[0])
    assert agent.model(toy(IMAGE)).observation_space.shape == (1, 36, 36)


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        (
            lambda: gym.make_vec("CartPole-v1", 2, vectorization_mode="vector_entry_point"),
            Environment(id="CartPole-v1", n_envs=2),
        ),
        (lambda: gym.make("CartPole-v1", 7), Environment(id="CartPole-v1", kwargs={"max_episode_steps": 7})),
        (
            lambda: gym.make("CartPole-v1", sutton_barto_reward=True, render_mode="rgb_array"),
            Environment(id="CartPole-v1", kwargs={"sutton_barto_reward": True}),
        ),
        (
            lambda: gym.wrappers.TimeAwareObservation(gym.make("CartPole-v1")),
            Environment(
                id="CartPole-v1",
                wrappers=[{"time_aware_observation": {"dict_time_key": "time", "flatten": True, "normalize_time": False}}],
            ),
        ),
        (toy, None),
    ],
    ids=["vector", "time limit", "arguments", "wrapper", "unregistered"],
)
def test_a_models_own_environment_tells_what_it_is(env: Any, expected: Any, tmp_path: Path) -> None:
    model = PPO("MlpPolicy", env(), n_steps=16, batch_size=16, policy_kwargs={"net_arch": [8]})
    save_agent(model, tmp_path / "agent")
    agent = load_agent(tmp_path / "agent.spinup")
    assert agent.card.environment == expected
    if expected is not None:
        assert agent.env().observation_space == model.observation_space


def test_what_writes_files_is_left_out(tmp_path: Path) -> None:
    record = {"record_trajectories": {"folder": str(tmp_path / "trajectories")}}
    model = pendulum(wrappers=[record, {"delay_action": {"delay": 1}}])
    save_agent(model, tmp_path / "agent")
    recorded = load_agent(tmp_path / "agent.spinup").card.environment
    assert recorded is not None
    assert [next(iter(each)) for each in recorded.wrappers] == ["delay_action"]


# --- going on ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", SIX)
def test_training_goes_on_as_from_a_zip(cls: type, tmp_path: Path) -> None:
    model = learnt(cls)
    model.save(tmp_path / "model")
    save_agent(model, tmp_path / "agent")
    going_on = {
        "zip": lambda: cls.load(tmp_path / "model", env=toy(), device="cpu"),
        "agent": lambda: load_agent(tmp_path / "agent.spinup").model(toy(), device="cpu"),
    }
    models = []
    for load in going_on.values():
        models.append(load())
        assert same_state(models[-1], model)
        models[-1].learn(24, reset_num_timesteps=False)
    assert models[0].num_timesteps == models[1].num_timesteps == model.num_timesteps + 24
    assert models[0]._n_updates == models[1]._n_updates > model._n_updates
    assert models[0]._episode_num == models[1]._episode_num
    assert same_state(*models)
    assert not same_state(models[0], model)


def test_statistics_go_on_too(wrapped: Path) -> None:
    model = load_agent(wrapped).model()
    before = model.get_vec_normalize_env().obs_rms.count
    model.learn(32, reset_num_timesteps=False)
    assert (model.num_timesteps, model.get_vec_normalize_env().obs_rms.count) == (64, before + 34)  # two resets, too


# --- zips and runs ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", SOME)
def test_zips_and_back(cls: type, tmp_path: Path) -> None:
    model = learnt(cls, normalised())
    save_agent(model, tmp_path / "agent")
    agent = load_agent(tmp_path / "agent.spinup", device="cpu")
    agent.save_sb3(tmp_path / "out" / "model")
    back = cls.load(tmp_path / "out" / "model.zip", device="cpu")
    statistics = VecNormalize.load(str(tmp_path / "out" / "vecnormalize.pkl"), DummyVecEnv([toy]))
    seen = statistics.normalize_obs(samples(VECTOR, 5))
    np.testing.assert_array_equal(
        back.predict(seen, deterministic=True)[0], agent.predict(samples(VECTOR, 5), deterministic=True)[0]
    )
    assert same_state(back, model)
    assert (back.num_timesteps, back.seed, back.gamma) == (model.num_timesteps, model.seed, model.gamma)
    names = ("n_steps",) if cls is VPG else ("buffer_size", "n_steps", "overlap", "replay_buffer_class")
    assert all(getattr(back, name) == getattr(model, name) for name in names)
    if cls in PEERS:
        PEERS[cls].load(tmp_path / "out" / "model.zip", device="cpu")
    save_agent(back, tmp_path / "again", normalization=statistics)
    assert (tmp_path / "again.spinup").read_bytes() == (tmp_path / "agent.spinup").read_bytes()


@pytest.mark.parametrize("cls", PEERS)
def test_zips_of_stable_baselines3_become_agents(cls: type, tmp_path: Path) -> None:
    theirs = learnt(PEERS[cls])
    theirs.save(tmp_path / "theirs")
    save_agent(cls.load(tmp_path / "theirs", device="cpu"), tmp_path / "agent")
    seen = samples(VECTOR, 5)
    np.testing.assert_array_equal(
        load_agent(tmp_path / "agent.spinup", device="cpu").predict(seen, deterministic=True)[0],
        cls.load(tmp_path / "theirs", device="cpu").predict(seen, deterministic=True)[0],
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    small = {"n_steps": 16, "batch_size": 16, "n_epochs": 1, "policy_kwargs": {"net_arch": [8]}}
    config = RunConfig(
        algo="ppo", env="Pendulum-v1", n_timesteps=64, eval_every=32, eval_episodes=1, final_episodes=2, normalize=True,
        wrappers=[{"delay_action": {"delay": 1}}, {"scale_reward": {"scale": 0.1}}], hyperparameters=small,
    )  # fmt: skip
    return train(config, tmp_path_factory.mktemp("runs")).folder


def test_a_run_becomes_an_agent_that_plays_as_it_did(run: Path) -> None:
    path, agent = export(run)
    assert path == run / "agent.spinup"
    loaded = load_run(run)
    assert evaluate(agent, agent.env(4), 3, seed=5) == evaluate(loaded.model, loaded.env, 3, seed=5)
    card = agent.card
    assert card.scores == json.loads((run / "evaluation.json").read_text())
    assert card.training is not None
    assert (card.training["hyperparameters"]["n_steps"], card.training["versions"]["torch"]) == (16, th.__version__)
    assert card.normalization is not None
    assert card.normalization.norm_reward
    played = load_run(path)
    assert evaluate(played.model, played.env, 3, seed=5) == evaluate(loaded.model, loaded.env, 3, seed=5)
    save_agent(loaded.model, run / "by_hand", config=loaded.config)
    by_hand = load_agent(run / "by_hand.spinup").card
    assert by_hand.normalization == card.normalization
    assert by_hand.environment == card.environment


def test_the_agent_of_a_run_learns_with_the_arguments_of_the_run(tmp_path: Path) -> None:
    small = {"buffer_size": 300, "learning_starts": 16, "policy_kwargs": {"net_arch": [8]}}
    config = RunConfig(algo="sac", env="Pendulum-v1", n_timesteps=32, eval_every=0, final_episodes=1, hyperparameters=small)
    _, agent = export(train(config, tmp_path).folder)
    assert {key: agent.card.arguments[key] for key in ("buffer_size", "learning_starts")} == {
        "buffer_size": 300,
        "learning_starts": 16,
    }
    model = agent.model()
    assert isinstance(model, SAC)
    model.learn(10, reset_num_timesteps=False)
    assert model.replay_buffer is not None
    assert model.replay_buffer.size() == 10


def test_the_command_line_converts_both_ways(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(run, "run")

    def lines(*args: str) -> list[str]:
        assert main(args) == 0
        return capsys.readouterr().out.splitlines()

    title, file, checksum = lines("export", "run")
    assert title == f"<Agent: ppo on Pendulum-v1, 64 steps, {checksum.split()[1][:12]}>"
    assert file.split() == ["file", "run/agent.spinup"]
    evaluated = lines("eval", "run/agent.spinup", "-n", "2")
    assert evaluated == lines("eval", "run", "-n", "2")
    assert lines("export", "run", "--best")[1].split()[1] == "run/best_agent.spinup"
    assert lines("export", "run/best_model.zip", "-o", "best.spinup")[2] == lines("export", "run", "--best")[2]
    assert lines("export", "run/agent.spinup", "-o", "sb3.zip")[1].split()[1] == "sb3.zip"
    assert Path("sb3_vecnormalize.pkl").is_file()
    assert load_run("sb3.zip", algo="ppo", env="Pendulum-v1").env.norm_obs
    lines("export", "sb3.zip", "--algo", "sb3:ppo", "--env", "Pendulum-v1", "-o", "peer.spinup")
    assert load_agent("peer.spinup").card.algorithm == "sb3:ppo"
    shutil.copy("run/agent.spinup", "damaged.spinup")
    with open("damaged.spinup", "r+b") as damaged:
        damaged.truncate(999)
    shutil.copytree(run, "cut")
    Path("cut/evaluation.json").write_text('{"returns": [')
    for args, message in (
        (["export", "nowhere"], "is not a run folder"),
        (["export", "cut"], "error: cut/evaluation.json: missing or damaged"),
        (["export", "nowhere.spinup"], "cannot load 'nowhere.spinup': no such file"),
        (["export", "sb3.zip"], "its algorithm and environment must be given"),
        (["export", "run", "-o", "model.zip"], "'model.zip' must end in '.spinup'"),
        (["export", "run/agent.spinup", "--best"], "is an agent file: --best, --algo and --env are for runs and zips"),
        (["export", "run/agent.spinup", "-o", "sb3.zip/x.zip"], "cannot save 'sb3.zip/x.zip': "),
        (["export", "damaged.spinup"], "cannot load 'damaged.spinup': it is damaged, or was changed"),
        (["eval", "damaged.spinup"], "cannot load 'damaged.spinup'"),
        (["eval", "run/agent.spinup", "--algo", "sac"], "is an agent of ppo, not of sac"),
        (["eval", "run/agent.spinup", "--best"], "is an agent file, of one model: --best is for run folders"),
    ):
        assert main(args) == 2
        output = capsys.readouterr()
        assert output.out == ""
        assert len(output.err.splitlines()) == 1
        assert message in output.err


def test_published_agents_go_by_algorithm_and_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agents, "data_dir", lambda name: tmp_path / name)
    path = published("ddpg", "module:ALE/Toy-v0")
    assert path == tmp_path / "zoo" / "agents" / "ddpg" / "ALE-Toy-v0" / "agent.spinup"
    save_agent(learnt(DDPG), path)
    assert load_agent("ddpg", "ALE/Toy-v0").card.algorithm == "ddpg"
    (tmp_path / "runs" / "ddpg").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "runs")  # where there is a folder of that name
    assert load_agent("ddpg", "ALE/Toy-v0").card.algorithm == "ddpg"
    with pytest.raises(
        UnknownNameError, match=r"no agent of ddpg is published for 'ALE-Toi-v0' \(did you mean 'ALE-Toy-v0'\?\)"
    ):
        load_agent("ddpg", "ALE-Toi-v0")
    with pytest.raises(UnknownNameError, match=r"unknown algorithm 'ddpgg' \(did you mean 'ddpg'\?\)"):
        load_agent("ddpgg", "Toy-v0")
    with pytest.raises(UnknownNameError, match=r"no agent of sac is published for 'Toy-v0'$"):
        load_agent("sac", "Toy-v0")
    with pytest.raises(UnknownNameError, match=r"no agent of sac is published for 'ALE/Toy-v0'; of ddpg one is$"):
        load_agent("sac", "ALE/Toy-v0")
    with pytest.raises(ConfigError, match="which environment"):
        load_agent("sac")
    with pytest.raises(ConfigError, match=r"load_agent\(None\): expected the path of a file, or the name of an algo"):
        load_agent(None)  # type: ignore[arg-type]


# --- what cannot be saved ---------------------------------------------------------------------------------------------


class Custom(ActorCriticPolicy):
    pass


class Flat(BaseFeaturesExtractor):
    def __init__(self, space: spaces.Box) -> None:
        super().__init__(space, 3)

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return observations


class Ours(PPO):
    pass


class Unnamed(gym.Wrapper[Any, Any, Any, Any]):
    pass


@pytest.mark.parametrize(
    ("make_model", "message"),
    [
        (lambda: build(PPO, policy=Custom), r"the algorithm's own policies \(MlpPolicy, CnnPolicy, .*\), not Custom"),
        (lambda: build(Ours), "Ours is not a registered algorithm"),
        (lambda: build(PPO, policy_kwargs={"activation_fn": th.nn.Hardtanh}), "policy_kwargs.activation_fn=.*no import paths"),
        (lambda: build(PPO, policy_kwargs={"features_extractor_class": Flat}), "no import paths, .*classes go by elu"),
        (lambda: build(PPO, learning_rate=lambda progress: progress), "learning_rate=.* cannot be written to a file"),
        (lambda: build(PPO, env=VecFrameStack(DummyVecEnv([toy]), 2)), "in VecFrameStack, which has no name: pass env="),
        (lambda: build(PPO, env=DummyVecEnv([lambda: Unnamed(gym.make("Pendulum-v1"))])), "Unnamed, which has no name"),
    ],
    ids=["policy", "algorithm", "activation", "extractor", "schedule", "vec-env wrapper", "wrapper"],
)  # fmt: skip
def test_what_data_cannot_make_again_is_refused(make_model: Any, message: str, tmp_path: Path) -> None:
    path = tmp_path / "agent.spinup"
    path.write_text("an older file")
    with pytest.raises(ConfigError, match=f"^cannot save '.*agent.spinup': .*{message}"):
        save_agent(make_model(), path)
    assert path.read_text() == "an older file"
    assert len(list(tmp_path.iterdir())) == 1


def test_other_faults_of_a_model_are_found_when_it_is_saved(tmp_path: Path) -> None:
    path = tmp_path / "agent.spinup"
    model = learnt(PPO)
    model.policy.optimizer.param_groups[0]["weight_decay"] = 0.5
    with pytest.raises(ConfigError, match=r"policy.optimizer has other options than its constructor was given"):
        save_agent(model, path)
    model = learnt(PPO)
    with th.no_grad():
        model.policy.log_std[0] = th.nan
    with pytest.raises(ConfigError, match="'policy/log_std' has numbers that are not finite"):
        save_agent(model, path)
    model = learnt(PPO)
    model.mynum = 3  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match=r"PPO does not count 'mynum' when it is built: 'del model.mynum' if you set it; "):
        save_agent(model, path)
    for environment, message in (
        (Environment(id="X-v0", wrappers=["os:system"]), "wrapper 'os:system' is not one that an agent file can name"),
        (Environment(id="X-v0", wrappers=["time_limt"]), r"did you mean 'time_limit'"),
        (Environment(id="X-v0", wrappers=["time_limit"]), "needs 'max_episode_steps'"),
        (Environment(id="X-v0", wrappers=[{"record_trajectories": {"folder": "x"}}]), "not one that an agent file can name"),
    ):
        with pytest.raises(ConfigError, match=message):
            save_agent(learnt(PPO), path, env=environment)
    with pytest.raises(ConfigError, match="a number is NaN"):
        save_agent(learnt(PPO), path, scores={"mean": float("nan")})
    with pytest.raises(ConfigError, match=r"agent.zip': the name of an agent file ends in '.spinup'"):
        save_agent(learnt(PPO), tmp_path / "agent.zip")
    with pytest.raises(ConfigError, match=r"ToyEnv is no algorithm, as model\(\) of an agent returns$"):
        save_agent(toy(), path)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"env=<.*> is no id of an environment, such as 'CartPole-v1'$"):
        save_agent(learnt(PPO), path, env=toy())  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"^cannot save '.': it is a folder, not a file's name$"):
        save_agent(learnt(PPO), ".")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"^cannot save '.*file/agent.spinup': (File exists|Not a directory)$"):
        save_agent(learnt(PPO), tmp_path / "file" / "agent.spinup")


@pytest.mark.parametrize(
    "space",
    [
        spaces.Box(-1.0, 1.0, (2, 3)),
        spaces.Box(np.array([-np.inf, 0.1]), np.array([np.inf, 1e300]), dtype=np.float64),
        spaces.Box(-5, 5, (2,), np.int16),
        spaces.Box(0, 1, (0,), np.float32),
        spaces.Discrete(3, start=-1),
        spaces.MultiDiscrete([[2, 3], [1, 4]]),
        spaces.MultiBinary([2, 2]),
        spaces.Dict([("z", IMAGE), ("a", spaces.Discrete(2))]),
    ],
    ids=str,
)
def test_spaces_survive(space: spaces.Space[Any]) -> None:
    plain = pack_space(space)
    again = unpack_space(type(plain).model_validate(archive._decoded(json.loads(archive._dumped(plain.model_dump())))))
    assert again == space
    assert again.dtype == space.dtype
    if isinstance(space, spaces.Box):
        assert (again.low.tobytes(), again.high.tobytes()) == (space.low.tobytes(), space.high.tobytes())
    if isinstance(space, spaces.Dict):
        assert list(again.spaces) == list(space.spaces)


def test_other_spaces_are_refused() -> None:
    for space in (spaces.Text(3), spaces.Tuple([VECTOR]), spaces.Dict({"a": DICT})):
        with pytest.raises(ConfigError, match="the space cannot be written to an agent file"):
            pack_space(space)


# --- bad files --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A small file with some of everything: state of an optimiser, statistics, an environment."""
    model = learnt(PPO, normalised(), policy_kwargs={"net_arch": [2]})
    path = tmp_path_factory.mktemp("agents") / "good.spinup"
    save_agent(model, path, env=Environment(id="Pendulum-v1", wrappers=[{"delay_action": {"delay": 1}}]))
    return path.read_bytes()


@pytest.fixture
def refuse(tmp_path: Path) -> Any:
    """Check that bytes are refused in one line; return it."""

    def check(raw: bytes) -> str:
        path = tmp_path / "bad.spinup"
        path.write_bytes(raw)
        with pytest.raises(ModelFileError) as caught:
            load_agent(path)
        text = str(caught.value)
        assert text.startswith(f"cannot load '{path}': ")
        assert "\n" not in text
        return text.removeprefix(f"cannot load '{path}': ")

    return check


FAST = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@FAST
@given(data=st.data())
def test_any_changed_byte_is_refused(good: bytes, data: st.DataObject) -> None:
    raw = bytearray(good)
    raw[data.draw(st.integers(0, len(good) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(ModelFileError):
        unpack(bytes(raw))


@FAST
@given(data=st.data())
def test_any_cut_insertion_or_move_is_refused(good: bytes, data: st.DataObject) -> None:
    start, end = sorted(data.draw(st.integers(0, len(good))) for _ in range(2))
    inserted = data.draw(st.sampled_from([b"", good[start:end], good, b"\0", good[-22:]]) | st.binary(max_size=8))
    raw = good[:start] + inserted + good[data.draw(st.sampled_from([start, end])) :]
    if raw != good:
        with pytest.raises(ModelFileError):
            unpack(raw)


def test_foreign_files_are_refused(refuse: Any, tmp_path: Path) -> None:
    assert refuse(b"") == "it is not an agent file"
    assert refuse(b"PK\x03\x04") == "it is not an agent file"
    assert refuse(b"\x80\x04\x95 a pickle") == "it is not an agent file"
    learnt(PPO).save(tmp_path / "model")
    assert "it is a Stable-Baselines3 model; 'spinup export'" in refuse((tmp_path / "model.zip").read_bytes())
    with pytest.raises(ModelFileError, match="null byte"):
        load_agent("\0.spinup")
    with pytest.raises(ModelFileMissingError, match="no such file"):
        load_agent(tmp_path / "nowhere.spinup")
    with pytest.raises(ModelFileError, match="Is a directory"):
        load_agent(tmp_path)


def test_no_more_than_the_largest_file_is_read(refuse: Any, good: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (agents, archive):
        monkeypatch.setattr(module, "LIMIT", 100)
    assert refuse(good) == "it is larger than 100 bytes"
    with pytest.raises(ModelFileError, match="it is larger than 100 bytes"):
        load_agent("/dev/zero")
    with pytest.raises(ValueError, match="more than an archive may hold"):
        pack({}, {"a": np.zeros(99)})


def members(raw: bytes) -> list[tuple[str, bytes]]:
    with zipfile.ZipFile(io.BytesIO(raw)) as file:
        return [(name, file.read(name)) for name in file.namelist()]


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(
    ("change", "compression"),
    [
        (lambda parts: parts, zipfile.ZIP_DEFLATED),
        (lambda parts: parts, zipfile.ZIP_STORED),  # dates and attributes are Python's then
        (lambda parts: parts[::-1], zipfile.ZIP_STORED),
        (lambda parts: [*parts, parts[0]], zipfile.ZIP_STORED),
        (lambda parts: parts[:2], zipfile.ZIP_STORED),
        (lambda parts: [*parts, ("more", b"")], zipfile.ZIP_STORED),
        (lambda parts: [(f"../{name}", content) for name, content in parts], zipfile.ZIP_STORED),
        (lambda parts: [(f"/{name}", content) for name, content in parts], zipfile.ZIP_STORED),
        (lambda parts: [("data.pkl", b"\x80\x04."), *parts], zipfile.ZIP_STORED),
    ],
)
def test_other_zips_of_the_same_content_are_refused(refuse: Any, good: bytes, change: Any, compression: int) -> None:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as file:
        for name, content in change(members(good)):
            file.writestr(name, content)
    assert "agent file" in refuse(stream.getvalue()) or "damaged" in refuse(stream.getvalue())


def sealed(text: bytes, weights: bytes) -> bytes:
    """A file whose hash is right, whatever is in it."""
    return archive._zipped([text, weights, archive._digest([text, weights])])


def test_only_one_form_of_json_is_read(refuse: Any, good: bytes) -> None:
    (_, text), (_, weights), _ = members(good)
    assert sealed(text, weights) == good
    for changed in (
        b"",
        b"null",
        b"[]",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        text.replace(b'"seed":0', b'"seed":' + b"9" * 10_000),
        text.replace(b'"seed":0', b'"seed":NaN'),
        text.replace(b'"seed":0', b'"seed":Infinity'),
        text.replace(b'"seed":0', b'"seed":1e999'),
        text.replace(b'"seed":0', b'"seed":0,"seed":0'),
        text.replace(b'"seed":0', b'"seed": 0'),
        text.replace(b'"seed":0', b'"seed":-0'),
        text.replace(b'"seed":0', b'"seed":{"float":"nan"}'),
        text.replace(b'"seed":0', b'"seed":' + b"[" * 40 + b"]" * 40),
        text.replace(b"MlpPolicy", rb"\u004dlpPolicy"),
        text.replace(b"MlpPolicy", rb"\ud800"),
        text.replace(b"MlpPolicy", b"\xff"),
        text + b" ",
        b"\xef\xbb\xbf" + text,
    ):
        assert changed != text
        assert "not valid" in refuse(sealed(changed, weights))


def test_only_valid_tensors_are_read(refuse: Any, good: bytes) -> None:
    (_, text), (_, weights), _ = members(good)
    length = int.from_bytes(weights[:8], "little")
    header, body = weights[8 : 8 + length].rstrip(), weights[8 + length :]
    entries = json.loads(header)
    name = min(entries)

    def written(changed: Any, body: bytes = body) -> bytes:
        content = changed if isinstance(changed, bytes) else json.dumps(changed, separators=(",", ":")).encode()
        return struct.pack("<Q", len(content)) + content + body

    for changed in (
        b"",
        b"\xff" * 8 + weights[8:],
        struct.pack("<Q", 2**40) + weights[8:],
        struct.pack("<Q", len(weights)) + weights[8:],
        written(b"[" * 100_000),
        written(b"[]"),
        written(header + b"}"),
        written(header.replace(b"{", b"{ ", 1)),
        written(header[:-1] + b"," + json.dumps({name: entries[name]}, separators=(",", ":")).encode()[1:]),
        written({**entries, "__metadata__": {"a": "b"}}),
        written({**entries, name: {**entries[name], "dtype": "BF16"}}),
        written({**entries, name: {**entries[name], "dtype": []}}),
        written({**entries, name: {**entries[name], "dtype": {}}}),
        written({**entries, name: {**entries[name], "shape": [10**30]}}),
        written({**entries, name: {**entries[name], "shape": [-1]}}),
        written({**entries, name: {**entries[name], "shape": [2**40, 2**40]}}),
        written({**entries, name: {**entries[name], "data_offsets": [0, 2**60]}}),
        written({**entries, name: {**entries[name], "data_offsets": "ab"}}),
        written({**entries, name: []}),
        written(entries, body[:-1]),
        written(entries, body + b"\0"),
    ):
        assert "not valid" in refuse(sealed(text, changed))


def edited(good: bytes, path: str, value: Any) -> bytes:
    """A file of another content, sealed: ``value`` at a dotted path of the JSON; ``...`` removes what is there."""
    data, tensors, _ = unpack(good)
    *keys, last = path.split(".")
    place: Any = data
    for key in keys:
        place = place[int(key) if isinstance(place, list) else key]
    if value is ...:
        del place[last]
    else:
        place[int(last) if isinstance(place, list) else last] = value
    return pack(data, tensors)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("format", "other", "format: Input should be 'spinup-agent'"),
        ("version", 2, "version: Input should be 1"),
        ("more", 1, "more: Extra inputs are not permitted"),
        ("seed", ..., "seed: Field required"),
        ("seed", "0", "seed: Input should be a valid integer"),
        ("seed", -1, "seed: Input should be greater"),
        ("algorithm", "pppo", r"unknown algorithm 'pppo' \(did you mean 'ppo'\?\)"),
        ("algorithm", "os:system", "unknown algorithm 'os:system'"),
        ("algorithm", "sac", "SAC has no argument|tensor|cannot"),
        ("policy", "os:system", "PPO has no policy 'os:system'"),
        ("policy", "CnnPolicy", "."),
        ("arguments.gama", 0.5, r"PPO has no argument 'gama' \(did you mean 'gamma'\?\)"),
        ("arguments.gamma", "high", "gamma='high': expected float"),
        ("arguments.gamma", 5.0, "gamma=5.0 must be between"),
        ("arguments.learning_rate", "os:system", "learning_rate='os:system': an agent file has no import paths"),
        ("arguments.learning_rate", {"schedule": "os:system"}, "learning_rate.schedule='os:system'"),
        ("arguments.policy_kwargs.activation_fn", "this:s", "policy_kwargs.activation_fn='this:s': an agent file has no"),
        ("arguments.policy_kwargs.activation_fn", "rellu", "activation_fn='rellu' is neither"),
        ("arguments.policy_kwargs.optimizer_class", "this:d", "an agent file has no import paths"),
        ("arguments.rollout_buffer_class", "this:d", "an agent file has no import paths"),
        ("arguments.compile", {"options": {"cpp.cxx": ["/bin/false"]}}, "an agent file does not set 'compile'"),
        ("arguments.device", "cuda", "an agent file does not set 'device'"),
        ("arguments.tensorboard_log", "/etc", "an agent file does not set 'tensorboard_log'"),
        ("arguments.policy", "MlpPolicy", "an agent file does not set 'policy'"),
        ("arguments.policy_kwargs.net_arch", [2**40], "larger than its weights|allocate|overflow"),
        ("arguments.policy_kwargs.net_arch", [20_000], "the policy is larger than its weights"),
        ("arguments.policy_kwargs.net_arch", [1] * 100_000, "the policy is larger than its weights"),
        ("arguments.policy_kwargs.net_arch", [3], "the tensor '.*' is float32"),
        ("arguments.policy_kwargs.net_arch", [2, 2], "the tensor '.*' is (missing|float32)|no tensor|larger"),
        ("arguments.policy_kwargs.optimizer_kwargs", {"lr": 1.0}, "."),
        ("arguments.policy_kwargs.optimizer_class", "sgd", "the policy has no tensor 'policy.optimizer/"),
        ("observation_space.shape", [2**22], "larger than its weights"),
        ("observation_space.shape", [2**21, 2**21], "a space has more than"),
        ("observation_space.shape", [2**40], "observation_space.Box.shape.0: Input should be less"),
        ("observation_space.shape", [4], "."),
        ("observation_space.dtype", "object", "observation_space.Box.dtype.*: Input should be"),
        ("observation_space", {"space": "Discrete", "n": 2**30, "start": 0, "dtype": "int64"}, "should be less than"),
        ("observation_space", {"space": "Tuple"}, "observation_space: Input tag 'Tuple'"),
        (
            "action_space",
            {"space": "MultiDiscrete", "nvec": [2**62, 2**62], "start": [0, 0], "dtype": "int64"},
            "the numbers of choices are not valid",
        ),
        ("action_space.low", [0.0], "."),
        ("actions", "squashed", "the policy's actions are not squashed but clipped"),
        ("environment.wrappers", ["this:s"], "wrapper 'this:s' is not one that an agent file can name"),
        ("environment.wrappers", [{"delay_action": {"delay": "this:s"}}], "no import paths"),
        ("environment.wrappers", [{"delay_action": {"dely": 1}}], "DelayAction has no argument 'dely'"),
        ("environment.wrappers", [{}], "wrapper '' is not one"),
        ("environment.wrappers", [{"record_trajectories": {"folder": "/"}}], "is not one that an agent file can name"),
        ("environment.kwargs", {"render": [{"a": "this:s"}]}, "env_kwargs.render.a='this:s'"),
        ("environment.n_envs", 2**40, "environment.n_envs: Input should be less"),
        ("environment.vec_env", "subproc", "environment.vec_env: Input should be 'dummy' or 'envpool'"),
        ("normalization", None, "the policy has no tensor 'normalization/"),
        ("normalization.norm_obs", False, "nothing to normalise by normalization/observation"),
        ("normalization.epsilon", -1.0, "normalization.epsilon: Input should be greater"),
        ("counters.num_timesteps", 2**63, "counters.num_timesteps"),
        ("counters.policy", 1, "PPO does not count 'policy'"),
        ("counters.n_steps", 10**9, "PPO does not count 'n_steps'"),
        ("learning_rates", {}, "zip|learning rates"),
        ("learning_rates.more", [0.1], "there are learning rates of other optimisers"),
    ],
)  # fmt: skip
def test_content_that_does_not_fit_is_refused(refuse: Any, good: bytes, path: str, value: Any, message: str) -> None:
    text = refuse(edited(good, path, value))
    assert re.search(message, text), text
    assert "this" not in sys.modules


def test_weights_that_do_not_fit_are_refused(refuse: Any, good: bytes) -> None:
    data, tensors, _ = unpack(good)
    name, moment, mean = "policy/log_std", "policy.optimizer/0/exp_avg", "normalization/observation/mean"
    for changed, message in (
        ({name: np.full(2, np.nan, np.float32)}, f"the tensor '{name}' has numbers that are not finite"),
        ({name: np.zeros(2)}, f"the tensor '{name}' is float64 (2,), not float32 (2,)"),
        ({name: np.zeros((1, 2), np.float32)}, f"the tensor '{name}' is float32 (1, 2), not float32 (2,)"),
        ({name: None}, f"the tensor '{name}' is missing"),
        ({name: None, "policy/log_sdt": np.zeros(2, np.float32)}, f"the tensor '{name}' is missing"),
        ({"policy/more": np.zeros(2)}, "the policy has no tensor 'policy/more'"),
        ({"more": np.zeros(2)}, "the policy has no tensor 'more'"),
        ({moment: None}, f"the tensor '{moment}' is missing"),
        ({moment: tensors[moment] + np.inf}, f"the tensor '{moment}' has numbers that are not finite"),
        (
            {"policy.optimizer/99/step": tensors["policy.optimizer/0/step"]},
            "the policy has no tensor 'policy.optimizer/99/step'",
        ),
        ({mean: None}, f"the statistics {mean} are missing or not valid"),
        ({mean: tensors[mean][:1]}, f"the statistics {mean} are missing or not valid"),
        ({mean.replace("mean", "var"): -(tensors[mean] ** 2) - 1}, "are negative"),
        ({mean.replace("mean", "more"): tensors[mean]}, "there is nothing to normalise by normalization/observation/more"),
    ):
        content = {key: value for key, value in {**tensors, **changed}.items() if value is not None}
        assert message in refuse(pack(data, content))


def test_what_other_threads_build_meanwhile_is_theirs() -> None:
    with ThreadPoolExecutor() as pool, agents._no_more_parameters_than({"policy/x": np.zeros(1)}):
        assert pool.submit(th.nn.Linear, 64, 64).result().in_features == 64
        with pytest.raises(ModelFileError, match="larger than its weights"):
            th.nn.Linear(64, 64)


def test_a_file_takes_no_memory_but_for_its_weights(refuse: Any, tmp_path: Path) -> None:
    """Buffers are for learning; critics are counted while they are built."""
    model = build(SAC, replay_buffer_class=None)
    save_agent(model, tmp_path / "agent")
    raw = (tmp_path / "agent.spinup").read_bytes()
    (tmp_path / "huge.spinup").write_bytes(edited(raw, "arguments.buffer_size", 10**15))
    agent = load_agent(tmp_path / "huge.spinup")
    check_actions(model, agent, samples(VECTOR, 2))
    assert agent._model.buffer_size == 10**15
    with pytest.raises(ConfigError, match="cannot build sac: "):
        agent.model(toy())
    assert agent.model(toy(), buffer_size=100).buffer_size == 100
    data, tensors, _ = unpack(raw)
    data["arguments"]["policy_kwargs"]["n_critics"] = 10**9
    assert refuse(pack(data, tensors)) == "the policy is larger than its weights"
    ppo = build(PPO)
    save_agent(ppo, tmp_path / "ppo")
    (tmp_path / "ppo.spinup").write_bytes(edited((tmp_path / "ppo.spinup").read_bytes(), "arguments.n_steps", 10**15))
    check_actions(ppo, load_agent(tmp_path / "ppo.spinup"), samples(VECTOR, 2))


def test_a_tier_that_is_not_built_here_is_no_obstacle(good: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agents, "native", lambda: None)
    assert vars(agents._opened(edited(good, "arguments.engine", "native"), "cpu")._model)["engine"] == "auto"
    assert vars(agents._opened(edited(good, "arguments.engine", "numpy"), "cpu")._model)["engine"] == "numpy"


def test_a_file_imports_nothing(good: bytes, tmp_path: Path) -> None:
    """An environment of a module is one that was registered already, or that the caller names."""
    path = tmp_path / "agent.spinup"
    path.write_bytes(edited(good, "environment.id", "this:Nowhere-v0"))
    agent = load_agent(path)
    for make_env in (agent.env, agent.model):
        with pytest.raises(
            ConfigError, match="'Nowhere-v0' is not registered: import this first, which a file is not allowed to"
        ):
            make_env()
    assert "this" not in sys.modules
    path.write_bytes(edited(good, "environment.id", "this:Pendulum-v1"))
    with pytest.raises(ConfigError, match="not one for this agent"):  # it is made, and has other actions
        load_agent(path).env()
    assert "this" not in sys.modules


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 70)
    | st.floats(allow_nan=False)
    | st.sampled_from(["", "this:s", "relu", "a/b"]),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["", "a", "schedule", "noise"]), inner, max_size=2)
    ),
    max_leaves=4,
)


def leaves(data: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    return [path, *(leaf for key, each in items for leaf in leaves(each, (*path, key)))]


@settings(FAST, max_examples=120)
@given(data=st.data())
def test_any_other_content_is_an_agent_or_one_error(good: bytes, data: st.DataObject) -> None:
    """Sealed by someone who knows the format: an error of ours, or a policy that acts."""
    content, tensors, _ = unpack(good)
    path = data.draw(st.sampled_from([path for path in leaves(content) if path]))
    place: Any = content
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = data.draw(JSON)
    if data.draw(st.booleans()):
        tensors.pop(data.draw(st.sampled_from(sorted(tensors))))
    try:
        raw = pack(content, tensors)
    except ValueError:  # what cannot be written
        return
    with suppress(ModelFileError):
        agent = agents._opened(raw, "cpu")
        assert agent.predict(samples(VECTOR, 1))[0].shape == (1, 2)
    assert "this" not in sys.modules
