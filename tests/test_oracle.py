"""Independent oracle: one whole ``train()`` of Stable-Baselines3 / sb3-contrib, from equal weights, data and noise."""

from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import sb3_contrib
import stable_baselines3 as sb3
import torch as th
from gymnasium import spaces
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.envs import (
    IdentityEnv,
    IdentityEnvBox,
    IdentityEnvMultiBinary,
    IdentityEnvMultiDiscrete,
)
from stable_baselines3.common.noise import NormalActionNoise
from tiers import TIERS, gap

from spinup_plugins import DDPG, PPO, SAC, TD3, TRPO

PEERS = {PPO: sb3.PPO, TRPO: sb3_contrib.TRPO, DDPG: sb3.DDPG, TD3: sb3.TD3, SAC: sb3.SAC}

NETS = {"net_arch": [16, 16]}
SMALL = {"policy_kwargs": NETS, "seed": 3, "device": "cpu"}


def train_once(cls: type, env: Any, **kwargs: Any) -> BaseAlgorithm:
    """Fill the buffer and call ``train()`` once."""
    model = cls("MlpPolicy", env, **deepcopy(SMALL | kwargs))  # SB3's SAC writes into the caller's policy_kwargs
    if cls in (sb3.PPO, sb3_contrib.TRPO, PPO, TRPO):
        return model.learn(model.n_steps * model.n_envs)
    model.learn(64)  # learning_starts is above, so this only collects
    model.train(gradient_steps=8, batch_size=model.batch_size)
    return model


ON_POLICY_ENVS = {
    "Box": lambda: IdentityEnvBox(ep_length=7),
    "Discrete": lambda: IdentityEnv(3, ep_length=7),
    "MultiDiscrete": lambda: IdentityEnvMultiDiscrete(3, ep_length=7),
    "MultiBinary": lambda: IdentityEnvMultiBinary(3, ep_length=7),
    "CartPole": lambda: "CartPole-v1",
    "Pendulum": lambda: "Pendulum-v1",
}


@pytest.mark.parametrize("engine", TIERS)
@pytest.mark.parametrize("env", ON_POLICY_ENVS)
@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"clip_range_vf": 0.1, "ent_coef": 0.05, "max_grad_norm": 0.05},
        {"normalize_advantage": False, "target_kl": 1e-4},
        # train() comes when no progress remains: schedules that end at 0 would test nothing.
        {"learning_rate": lambda p: 1e-2 * (p + 0.1), "clip_range": lambda p: 0.3 * (p + 0.5), "vf_coef": 1.0},
    ],
    ids=["defaults", "value clipping, entropy", "no normalisation, early stop", "schedules"],
)
def test_ppo(env: str, kwargs: dict[str, Any], engine: str) -> None:
    kwargs = {"n_steps": 64, "batch_size": 16, "n_epochs": 3} | kwargs
    ours = train_once(PPO, ON_POLICY_ENVS[env](), engine=engine, **kwargs)
    peer = train_once(sb3.PPO, ON_POLICY_ENVS[env](), **kwargs)
    assert ours.engine == engine
    assert ours._n_updates == peer._n_updates
    assert gap(ours, peer, relative=engine != "torch") <= 1e-5


@pytest.mark.parametrize("engine", TIERS)
@pytest.mark.parametrize("env", ON_POLICY_ENVS)
@pytest.mark.parametrize(
    "kwargs",
    [{}, {"sub_sampling_factor": 2, "cg_max_steps": 4}, {"normalize_advantage": False, "target_kl": 0.05}],
    ids=["defaults", "subsampled", "no normalisation"],
)
def test_trpo_with_contribs_kl(env: str, kwargs: dict[str, Any], engine: str) -> None:
    kwargs = {"n_steps": 64, "batch_size": 16, "n_critic_updates": 3} | kwargs
    ours = train_once(TRPO, ON_POLICY_ENVS[env](), kl_reduction="mean", engine=engine, **kwargs)
    peer = train_once(sb3_contrib.TRPO, ON_POLICY_ENVS[env](), **kwargs)
    assert gap(ours, peer, relative=engine != "torch") <= 1e-5
    for key in ("train/is_line_search_success", "train/kl_divergence_loss", "train/policy_objective"):
        assert ours.logger.name_to_value[key] == pytest.approx(peer.logger.name_to_value[key], abs=1e-5)


@pytest.mark.parametrize("engine", TIERS)
@pytest.mark.parametrize("env", ["Pendulum-v1", "HalfCheetah-v5"])
def test_trpo_follows_contrib_over_several_updates(env: str, engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On contrib's rollouts, for in chaotic environments a rounding error in an action soon makes other ones."""
    kwargs = {"n_steps": 256, "batch_size": 64, "seed": 0, "device": "cpu"}
    peer = sb3_contrib.TRPO("MlpPolicy", env, **kwargs)
    ours = TRPO("MlpPolicy", env, engine=engine, kl_reduction="mean", **kwargs)
    ours._setup_learn(10_000)
    learn_from, gaps = peer.train, []

    def train() -> None:
        state, noise, rollout = np.random.get_state(), th.get_rng_state(), deepcopy(peer.rollout_buffer)
        learn_from()
        np.random.set_state(state)
        th.set_rng_state(noise)
        ours.rollout_buffer = rollout
        ours.train()
        gaps.append(gap(ours, peer, relative=True))

    monkeypatch.setattr(peer, "train", train)
    peer.learn(6 * 256)
    assert ours.engine == engine
    assert len(gaps) == 6
    assert max(gaps) <= 1e-4, "not brought together in between: rounding grows from update to update"


def test_trpo_collects_what_contrib_collects(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rollouts of the torch tier are contrib's bit for bit where parameters and generators are."""
    kwargs = {"n_steps": 512, "batch_size": 64, "seed": 0, "device": "cpu"}
    peer = sb3_contrib.TRPO("MlpPolicy", "HalfCheetah-v5", **kwargs)
    names = ("observations", "actions", "rewards", "episode_starts", "values", "log_probs", "advantages", "returns")
    states: list[Any] = []

    def rollout(of: Any) -> list[Any]:
        return [getattr(of.rollout_buffer, name).copy() for name in names]

    def train(learn_from: Any = peer.train) -> None:
        collected = rollout(peer)
        learn_from()
        generators = th.get_rng_state(), np.random.get_state()
        states.append((collected, deepcopy(peer.get_parameters()), generators))

    monkeypatch.setattr(peer, "train", train)
    peer.learn(5 * 512)  # past the end of two episodes
    model = TRPO("MlpPolicy", "HalfCheetah-v5", engine="torch", kl_reduction="mean", **kwargs)  # seeds the generators anew

    def train_alike(learn_from: Any = model.train) -> None:
        collected, parameters, (noise, order) = states.pop(0)
        for ours, theirs in zip(rollout(model), collected, strict=True):
            np.testing.assert_array_equal(ours, theirs)
        learn_from()
        model.set_parameters(parameters)
        th.set_rng_state(noise)
        np.random.set_state(order)

    monkeypatch.setattr(model, "train", train_alike)
    model.learn(5 * 512)
    assert not states


OFF_POLICY_KWARGS = {
    "defaults": {},
    "schedule": {"learning_rate": lambda p: 1e-2 * p},
    "n-step returns": {"n_steps": 3},
    "one update, large tau": {"tau": 0.5, "gamma": 0.9},
    "exploration noise": {"action_noise": NormalActionNoise(np.zeros(1), 0.3 * np.ones(1))},
    "many critics": {"policy_kwargs": NETS | {"n_critics": 3}},
    "memory optimised": {
        "optimize_memory_usage": True,
        "replay_buffer_kwargs": {"handle_timeout_termination": False},
    },
}


@pytest.mark.parametrize("kwargs", OFF_POLICY_KWARGS)
@pytest.mark.parametrize("cls", [DDPG, TD3, SAC])
@pytest.mark.filterwarnings("ignore:The last trajectory in the replay buffer will be truncated")
@pytest.mark.parametrize("engine", TIERS)
def test_off_policy(cls: type, kwargs: str, engine: str) -> None:
    options = {"learning_starts": 1000, "buffer_size": 500, "batch_size": 32} | OFF_POLICY_KWARGS[kwargs]
    ours, peer = train_once(cls, "Pendulum-v1", engine=engine, **options), train_once(PEERS[cls], "Pendulum-v1", **options)
    assert ours._n_updates == peer._n_updates == 8
    assert gap(ours, peer, relative=engine != "torch") <= 1e-5


@pytest.mark.parametrize("engine", TIERS)
@pytest.mark.parametrize(
    "kwargs",
    [
        {"ent_coef": 0.2},
        {"ent_coef": "auto_0.1", "target_entropy": -3.0},
        {"target_update_interval": 3},
        {"use_sde": True},
    ],
    ids=str,
)
def test_sac_options(kwargs: dict[str, Any], engine: str) -> None:
    options = {"learning_starts": 1000, "buffer_size": 500, "batch_size": 32} | kwargs
    engine = "torch" if "use_sde" in kwargs else engine
    ours, peer = train_once(SAC, "Pendulum-v1", engine=engine, **options), train_once(sb3.SAC, "Pendulum-v1", **options)
    assert gap(ours, peer, relative=engine != "torch") <= 1e-5


@given(
    cls=st.sampled_from([PPO, TRPO]),
    n_steps=st.integers(8, 40),
    batch_size=st.integers(2, 24),
    widths=st.lists(st.integers(1, 24), max_size=2),
    discrete=st.booleans(),
    seed=st.integers(0, 99),
)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@pytest.mark.filterwarnings("ignore:You have specified a mini-batch size")
def test_on_policy_shapes(cls: type, n_steps: int, batch_size: int, widths: list[int], discrete: bool, seed: int) -> None:
    kwargs = {"n_steps": n_steps, "batch_size": batch_size, "policy_kwargs": {"net_arch": widths}, "seed": seed}
    env = "CartPole-v1" if discrete else "Pendulum-v1"
    extra = {"engine": "torch"} | ({"kl_reduction": "mean"} if cls is TRPO else {})
    ours, peer = train_once(cls, env, **kwargs, **extra), train_once(PEERS[cls], env, **kwargs)
    # Adam's fused steps round otherwise, which shows in second moments as large as squared returns.
    assert gap(ours, peer, relative=True) <= 1e-5


@pytest.mark.parametrize("engine", TIERS)
@pytest.mark.parametrize("cls", [PPO, TRPO, DDPG, TD3, SAC])
def test_whole_learn(cls: type, engine: str) -> None:
    """Same seed, same numbers: acting, collecting, bootstrapping at time limits and updating, several times over."""
    on_policy = cls in (PPO, TRPO)
    kwargs: dict[str, Any] = {"n_steps": 256} if on_policy else {"buffer_size": 1000, "gradient_steps": 1}
    extra = {"kl_reduction": "mean"} if cls is TRPO else {}
    steps, tolerance = (512, 1e-4) if on_policy else (400, 2e-5)  # rounding, amplified over many updates
    ours = cls("MlpPolicy", "Pendulum-v1", **deepcopy(SMALL | kwargs), engine=engine, **extra).learn(steps)
    peer = PEERS[cls]("MlpPolicy", "Pendulum-v1", **deepcopy(SMALL | kwargs)).learn(steps)
    if cls is PPO:
        assert gap(ours, peer, relative=True) <= 1e-6
    for p, q in zip(ours.policy.parameters(), peer.policy.parameters(), strict=True):
        th.testing.assert_close(p, q, rtol=0, atol=tolerance)
    assert [e["r"] for e in ours.ep_info_buffer] == pytest.approx([e["r"] for e in peer.ep_info_buffer], rel=1e-4)


def test_the_spaces_above_are_the_ones_meant() -> None:
    kinds = {"Box": spaces.Box, "MultiDiscrete": spaces.MultiDiscrete, "MultiBinary": spaces.MultiBinary}
    for name, kind in kinds.items():
        assert isinstance(ON_POLICY_ENVS[name]().action_space, kind)
