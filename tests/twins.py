"""One script, two classes: an algorithm of ours and the peer it replaces, built, trained and compared alike."""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from test_oracle import PEERS, gap

from spinup_plugins import DDPG, PPO, SAC, TD3, TRPO, VPG
from spinup_plugins.testing import ToyEnv

SIX = [VPG, TRPO, PPO, DDPG, TD3, SAC]
ON_POLICY = [VPG, TRPO, PPO]
OFF_POLICY = [DDPG, TD3, SAC]
TWINS = list(PEERS)
#: for what all share: an on-policy algorithm, one that acts deterministically, one with more than networks to save
SOME = [VPG, DDPG, SAC]

VECTOR = spaces.Box(-1.0, 1.0, (3,), np.float32)
BOX = spaces.Box(np.array([-2.0, 0.0]), np.array([2.0, 3.0]), dtype=np.float64)  # neither symmetric nor of unit length

SMALL: dict[str, dict[str, Any]] = {
    "VPG": {"n_steps": 24, "train_v_iters": 3},
    "TRPO": {"n_steps": 24, "batch_size": 12, "n_critic_updates": 2},
    "PPO": {"n_steps": 24, "batch_size": 12, "n_epochs": 2},
} | {name: {"buffer_size": 300, "learning_starts": 44, "batch_size": 8} for name in ("DDPG", "TD3", "SAC")}


def toy(observations: spaces.Space[Any] = VECTOR, actions: spaces.Space[Any] = BOX) -> ToyEnv:
    """Random observations and rewards; spaces are copied, for they hold the random generators."""
    return ToyEnv(deepcopy(observations), deepcopy(actions))


def build(cls: type, env: Any = None, policy: Any = "MlpPolicy", **kwargs: Any) -> Any:
    """Build a model of tiny networks and buffers, in a toy environment unless another is given."""
    small = next(SMALL[base.__name__] for base in cls.__mro__ if base.__name__ in SMALL)
    kwargs = deepcopy(small | {"seed": 0, "device": "cpu"} | kwargs)
    kwargs["policy_kwargs"] = {"net_arch": [8]} | kwargs.get("policy_kwargs", {})
    return cls(policy, toy() if env is None else env, **kwargs)


def learnt(cls: type, env: Any = None, policy: Any = "MlpPolicy", *, steps: int = 48, **kwargs: Any) -> Any:
    """Build and train."""
    return build(cls, env, policy, **kwargs).learn(steps)


def like_peer(cls: type) -> dict[str, Any]:
    """What one of ours must be told to compute what its peer does."""
    return {"kl_reduction": "mean"} if cls is TRPO else {}


def twins(
    cls: type, make_env: Callable[[], Any] = toy, policy: Any = "MlpPolicy", *, steps: int = 48, **kwargs: Any
) -> tuple[Any, Any]:
    """Train ours and its peer, from the same seed, each in an environment of its own."""
    ours = learnt(cls, make_env(), policy, steps=steps, **like_peer(cls), **kwargs)
    return ours, learnt(PEERS[cls], make_env(), policy, steps=steps, **kwargs)


def check_equal(ours: BaseAlgorithm, peer: BaseAlgorithm, tolerance: float = 1e-5) -> None:
    """Parameters, optimisers' moments, counters and episodes agree."""
    assert gap(ours, peer) <= tolerance
    assert (ours.num_timesteps, ours._n_updates) == (peer.num_timesteps, peer._n_updates)
    for key in ("r", "l"):
        assert [e[key] for e in ours.ep_info_buffer] == pytest.approx([e[key] for e in peer.ep_info_buffer], rel=1e-4)
    if isinstance(peer, OnPolicyAlgorithm):
        for name in ("observations", "actions", "rewards", "advantages", "returns", "episode_starts"):
            check_arrays(getattr(ours.rollout_buffer, name), getattr(peer.rollout_buffer, name))
    else:
        for name in ("observations", "actions", "rewards", "dones", "timeouts"):
            check_arrays(getattr(ours.replay_buffer, name), getattr(peer.replay_buffer, name))


def check_arrays(ours: Any, peers: Any) -> None:
    """Arrays, or dicts of them, agree up to rounding."""
    if isinstance(peers, dict):
        assert ours.keys() == peers.keys()
        for key in peers:
            check_arrays(ours[key], peers[key])
    else:
        np.testing.assert_allclose(ours, peers, rtol=1e-4, atol=1e-4)
