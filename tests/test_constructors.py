"""Constructors and methods take what Stable-Baselines3's and sb3-contrib's take, and complain about the same."""

import inspect
from typing import Any

import numpy as np
import pytest
import stable_baselines3 as sb3
import torch as th
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.buffers import DictReplayBuffer, DictRolloutBuffer, ReplayBuffer, RolloutBuffer
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.type_aliases import TrainFreq, TrainFrequencyUnit
from stable_baselines3.common.utils import ConstantSchedule, FloatSchedule
from twins import OFF_POLICY, ON_POLICY, PEERS, SIX, TWINS, VECTOR, build, learnt, like_peer, toy

from spinup_plugins import DDPG, PPO, SAC, TD3, TRPO, VPG

POSITIONAL = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.POSITIONAL_ONLY)


def parameters(function: Any) -> list[inspect.Parameter]:
    return list(inspect.signature(function).parameters.values())


@pytest.mark.parametrize("cls", TWINS)
def test_constructors_agree_position_by_position(cls: type) -> None:
    ours, peers = parameters(cls), parameters(PEERS[cls])
    assert [(p.name, p.default) for p in ours[: len(peers)]] == [(p.name, p.default) for p in peers]
    assert all(p.kind is inspect.Parameter.KEYWORD_ONLY for p in ours[len(peers) :])


@pytest.mark.parametrize("cls", TWINS)
def test_defaults_end_up_in_the_same_attributes(cls: type) -> None:
    ours, peer = cls("MlpPolicy", toy(), **like_peer(cls)), PEERS[cls]("MlpPolicy", toy())
    own = {"actor", "critic", "actor_target", "critic_target", "policy", "env", "replay_buffer", "rollout_buffer"}
    for name, value in vars(peer).items():
        if name in own or name.endswith(("batch_norm_stats", "batch_norm_stats_target")) or name == "batch_norm_stats":
            assert hasattr(ours, name) or name.startswith("batch_norm_stats")
        elif isinstance(value, FloatSchedule):
            assert getattr(ours, name)(0.3) == value(0.3)
        elif isinstance(value, th.optim.Optimizer):
            assert getattr(ours, name).state_dict() == value.state_dict()
        elif cls is DDPG and name in ("policy_delay", "target_policy_noise", "target_noise_clip"):
            assert not hasattr(ours, name), "TD3's, of which DDPG is no special case here"
        else:
            assert getattr(ours, name) == value, name


@pytest.mark.parametrize("method", ["learn", "predict", "save", "load", "set_env", "set_parameters", "get_parameters"])
@pytest.mark.parametrize("cls", TWINS)
def test_methods_take_the_same_arguments(cls: type, method: str) -> None:
    ours, peers = parameters(getattr(cls, method)), parameters(getattr(PEERS[cls], method))
    assert [p.name for p in ours] == [p.name for p in peers]
    assert [p.default for p in ours if p.name != "tb_log_name"] == [p.default for p in peers if p.name != "tb_log_name"]


@pytest.mark.parametrize("cls", SIX)
def test_classes_are_what_isinstance_expects(cls: type) -> None:
    assert issubclass(cls, OnPolicyAlgorithm if cls in ON_POLICY else OffPolicyAlgorithm)
    assert set(cls.policy_aliases) == {"MlpPolicy", "CnnPolicy", "MultiInputPolicy"}
    if cls in PEERS:
        assert cls.__name__ == PEERS[cls].__name__
        assert cls.policy_aliases == PEERS[cls].policy_aliases


def test_vpg_begins_like_the_others() -> None:
    assert [p.name for p in parameters(VPG)][:4] == ["policy", "env", "learning_rate", "n_steps"]
    extras = [p for p in parameters(VPG) if p.kind not in POSITIONAL]
    assert [p.name for p in parameters(VPG)][-len(extras) - 1] == "_init_setup_model"


# --- attributes ------------------------------------------------------------------------------------------------------


def test_clip_ranges_are_schedules() -> None:
    model = build(PPO, clip_range=0.3, clip_range_vf=0.4)
    for schedule, value in ((model.clip_range, 0.3), (model.clip_range_vf, 0.4)):
        assert isinstance(schedule, FloatSchedule)
        assert isinstance(schedule.value_schedule, ConstantSchedule)
        assert schedule(0.1) == value


@pytest.mark.parametrize("cls", OFF_POLICY)
def test_off_policy_attributes(cls: type) -> None:
    model = build(cls)
    assert model.actor is model.policy.actor
    assert model.critic is model.policy.critic
    assert model.critic_target is model.policy.critic_target
    assert cls is SAC or model.actor_target is model.policy.actor_target
    assert isinstance(model.replay_buffer, ReplayBuffer)
    assert model.replay_buffer_class is ReplayBuffer
    assert model.train_freq == TrainFreq(1, TrainFrequencyUnit.STEP)
    assert model.lr_schedule(1.0) == model.learning_rate
    assert (model.tau, model.num_timesteps, model.n_envs) == (0.005, 0, 1)


@pytest.mark.parametrize(("ent_coef", "initial"), [("auto", 1.0), ("auto_0.01", 0.01), (0.2, 0.2), ("0.2", 0.2)])
def test_sacs_temperature(ent_coef: str | float, initial: float) -> None:
    model = build(SAC, ent_coef=ent_coef)
    assert model.target_entropy == -2.0
    if str(ent_coef).startswith("auto"):
        assert model.log_ent_coef.exp().item() == pytest.approx(initial)
        assert model.ent_coef_optimizer.param_groups[0]["lr"] == model.learning_rate
        before = model.log_ent_coef.item()
        assert model.learn(48).log_ent_coef.item() != before
    else:
        assert model.ent_coef_tensor.item() == pytest.approx(initial)
        assert model.log_ent_coef is model.ent_coef_optimizer is None


@pytest.mark.parametrize("cls", SIX)
def test_dict_buffers(cls: type) -> None:
    model = build(cls, toy(spaces.Dict({"a": VECTOR})), "MultiInputPolicy")
    expected = DictRolloutBuffer if cls in ON_POLICY else DictReplayBuffer
    assert isinstance(model.rollout_buffer if cls in ON_POLICY else model.replay_buffer, expected)


@pytest.mark.parametrize("cls", ON_POLICY)
def test_custom_rollout_buffer(cls: type) -> None:
    class Buffer(RolloutBuffer):
        def __init__(self, *args: Any, note: str, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.note = note

    model = build(cls, rollout_buffer_class=Buffer, rollout_buffer_kwargs={"note": "mine"}).learn(24)
    assert type(model.rollout_buffer) is Buffer
    assert model.rollout_buffer.note == "mine"


@pytest.mark.parametrize("cls", [PPO, TRPO])
def test_the_rollout_buffer_holds_plain_advantages_and_td_lambda_returns(cls: type) -> None:
    model = learnt(cls, steps=24)
    buffer = model.rollout_buffer
    np.testing.assert_allclose(buffer.returns, buffer.advantages + buffer.values, rtol=1e-5, atol=1e-6)
    assert abs(buffer.advantages.mean()) + abs(buffer.advantages.std() - 1.0) > 1e-2


@pytest.mark.parametrize("cls", OFF_POLICY)
def test_train_without_a_batch_size(cls: type) -> None:
    model = build(cls, learning_starts=100)
    model.learn(20)
    model.train(gradient_steps=1)
    assert model._n_updates == 1


@pytest.mark.parametrize("cls", SIX)
def test_the_callers_policy_kwargs_stay_as_they_were(cls: type) -> None:
    policy_kwargs = {"net_arch": [8]}
    cls("MlpPolicy", toy(), policy_kwargs=policy_kwargs)
    assert policy_kwargs == {"net_arch": [8]}


@pytest.mark.parametrize("cls", SIX)
def test_string_ids_and_verbosity(cls: type, capsys: pytest.CaptureFixture[str]) -> None:
    model = build(cls, "Pendulum-v1", verbose=1)
    assert "Using cpu device" in capsys.readouterr().out
    assert model.get_env().num_envs == 1
    assert model.get_vec_normalize_env() is None
    assert build(cls, "Pendulum-v1").set_random_seed() is None


# --- complaints ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", [PPO, TRPO, VPG])
def test_one_step_cannot_be_normalised(cls: type) -> None:
    with pytest.raises(AssertionError, match=r"`n_steps \* n_envs` must be greater than 1"):
        build(cls, n_steps=1)
    assert build(cls, n_steps=1, normalize_advantage=False, batch_size=None).n_steps == 1


def test_minibatches_of_one_cannot_be_normalised() -> None:
    with pytest.raises(AssertionError, match="`batch_size` must be greater than 1"):
        build(PPO, batch_size=1)
    assert learnt(PPO, batch_size=1, normalize_advantage=False, steps=24)._n_updates == 2


@pytest.mark.parametrize("cls", [PPO, TRPO])
def test_truncated_minibatches_are_announced(cls: type) -> None:
    texts = []
    for each in (cls, PEERS[cls]):
        with pytest.warns(UserWarning, match="mini-batch") as caught:
            build(each, n_steps=25)
        texts.append(str(caught[0].message))
    assert texts[0] == texts[1]


def test_vpgs_truncated_minibatches_are_announced() -> None:
    with pytest.warns(UserWarning, match="mini-batch of size 1\n"):
        build(VPG, n_steps=25, batch_size=12)


@pytest.mark.parametrize("value", [-0.1, 0])
def test_value_clipping_must_be_positive(value: float) -> None:
    with pytest.raises(AssertionError, match="`clip_range_vf` must be positive"):
        build(PPO, clip_range_vf=value)


@pytest.mark.parametrize("cls", ON_POLICY)
def test_a_gpu_is_advised_against(cls: type) -> None:
    model = build(cls)
    model.device = th.device("cuda")
    with pytest.warns(UserWarning, match=f"You are trying to run {cls.__name__} on the GPU"):
        model._maybe_recommend_cpu()


@pytest.mark.parametrize(
    ("train_freq", "message"),
    [((1, "day"), "must be either 'step' or 'episode' not 'day'"), ((1.5, "step"), "must be an integer and not 1.5")],
)
@pytest.mark.parametrize("cls", OFF_POLICY)
def test_bad_train_freq(cls: type, train_freq: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(cls, train_freq=train_freq)


@pytest.mark.parametrize("cls", OFF_POLICY)
def test_options_that_exclude_each_other(cls: type) -> None:
    with pytest.raises(ValueError, match="does not support optimize_memory_usage"):
        build(cls, optimize_memory_usage=True, compact_replay=False)
    with pytest.raises(AssertionError, match="N-step returns are not supported for Dict"):
        build(cls, toy(spaces.Dict({"a": VECTOR})), "MultiInputPolicy", n_steps=3)
    with pytest.warns(UserWarning, match="`n_steps=3` is ignored"):
        build(cls, n_steps=3, replay_buffer_class=ReplayBuffer)


@pytest.mark.parametrize("cls", SIX)
def test_misspelled_constructor_arguments_are_refused(cls: type) -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'lerning_rate'"):
        build(cls, lerning_rate=1e-3)


@pytest.mark.parametrize("cls", [DDPG, TD3])
def test_deterministic_policies_have_no_gsde(cls: type) -> None:
    with pytest.raises(TypeError, match="use_sde"):
        build(cls, use_sde=True)


def test_every_algorithm_of_stable_baselines3_is_one() -> None:
    """The comparisons above would say nothing if these names were ours."""
    assert sb3.PPO.__module__.startswith("stable_baselines3")
    assert all(issubclass(peer, BaseAlgorithm) and peer not in SIX for peer in PEERS.values())
