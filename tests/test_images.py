"""Convolutions' kernels in the order CPUs like: the same numbers, files in the usual order, nothing of a user's own."""

import io
from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from tiers import gap
from twins import PEERS, build, learnt, toy

from spinup_plugins import DDPG, PPO, SAC

IMAGE = spaces.Box(0, 255, (2, 36, 36), np.uint8)
SMALL: dict[str, Any] = {"policy_kwargs": {"features_extractor_kwargs": {"features_dim": 8}}}


def kernels(module: Any) -> list[th.Tensor]:
    return [p for p in module.parameters() if p.dim() == 4]


def ordered(tensor: th.Tensor) -> bool:
    return tensor.is_contiguous(memory_format=th.channels_last)


class Flattening(BaseFeaturesExtractor):
    """As users write them: ``view`` asks for torch's usual order."""

    def __init__(self, space: spaces.Box) -> None:
        super().__init__(space, 3 * 34 * 34)
        self.convolution = th.nn.Conv2d(2, 3, 3)

    def forward(self, observations: th.Tensor) -> th.Tensor:
        assert observations.is_contiguous()
        return self.convolution(observations).view(len(observations), -1)


@pytest.mark.parametrize("cls", [PPO, SAC, DDPG])
def test_kernels_are_ordered_and_go_on_from_a_peers_zip(cls: type) -> None:
    stream = io.BytesIO()
    learnt(PEERS[cls], toy(IMAGE), "CnnPolicy", **SMALL).save(stream)
    ours, peer = (each.load(stream, env=toy(IMAGE)) for each in (cls, PEERS[cls]))
    for optimizer in {m.optimizer for m in ours.policy.modules() if hasattr(m, "optimizer")}:
        moments = [value for state in optimizer.state.values() for value in state.values() if value.dim() == 4]
        assert all(map(ordered, moments))
    assert len(kernels(ours.policy)) >= 3
    assert all(map(ordered, kernels(ours.policy)))
    assert all(p.is_contiguous() for p in kernels(peer.policy))
    assert all(value.is_contiguous() for value in ours.get_parameters()["policy"].values()), "as files have them"
    for model in (ours, peer):
        model.set_random_seed(3)
        model.learn(24, reset_num_timesteps=False)
    assert gap(ours, peer) <= 1e-5
    assert all(map(ordered, kernels(ours.policy)))


@pytest.mark.parametrize("cls", [PPO, SAC])
def test_a_users_own_network_keeps_the_usual_order(cls: type) -> None:
    kwargs: dict[str, Any] = {"policy_kwargs": {"features_extractor_class": Flattening}}
    ours, peer = (learnt(each, toy(IMAGE), "CnnPolicy", **kwargs) for each in (cls, PEERS[cls]))
    assert all(p.is_contiguous() for p in kernels(ours.policy))
    assert gap(ours, peer) <= 1e-5


def test_images_in_a_dictionary() -> None:
    observations = spaces.Dict({"camera": IMAGE, "joints": spaces.Box(-1.0, 1.0, (3,), np.float32)})
    kwargs: dict[str, Any] = {"policy_kwargs": {"features_extractor_kwargs": {"cnn_output_dim": 8}}}
    ours, peer = (learnt(each, toy(observations), "MultiInputPolicy", **kwargs) for each in (PPO, PEERS[PPO]))
    assert len(kernels(ours.policy)) >= 3
    assert all(map(ordered, kernels(ours.policy)))
    assert gap(ours, peer) <= 1e-5


def test_moments_in_another_order_are_not_mixed_up() -> None:
    """Fused Adam would step through both in the order of memory."""
    parameters = learnt(PPO, toy(IMAGE), "CnnPolicy", **SMALL).get_parameters()
    model, other = (build(PPO, toy(IMAGE), "CnnPolicy", **SMALL) for _ in range(2))
    for each in (model, other):
        each.set_parameters(deepcopy(parameters))
    other.policy.optimizer.load_state_dict(deepcopy(parameters["policy.optimizer"]))
    moments = [s["exp_avg"] for s in other.policy.optimizer.state.values() if s["exp_avg"].dim() == 4]
    assert not any(map(ordered, moments))
    for each in (model, other):
        each.set_random_seed(3)
        each.learn(24)
    assert gap(model, other) <= 1e-6
