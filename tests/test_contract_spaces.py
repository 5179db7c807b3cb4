"""Every observation and action space, policy option, noise and buffer computes what Stable-Baselines3 computes."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.noise import NormalActionNoise, OrnsteinUhlenbeckActionNoise, VectorizedActionNoise
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.sb2_compat.rmsprop_tf_like import RMSpropTFLike
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, FlattenExtractor
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecFrameStack, VecTransposeImage
from stable_baselines3.sac.policies import SACPolicy
from stable_baselines3.td3.policies import TD3Policy
from twins import BOX, OFF_POLICY, ON_POLICY, PEERS, SIX, TWINS, VECTOR, build, check_equal, gap, learnt, toy, twins

from spinup_plugins import DDPG, PPO, SAC, TD3, TRPO, VPG

OBSERVATIONS: dict[str, spaces.Space[Any]] = {
    "float32": VECTOR,
    "float64": spaces.Box(-1.0, 1.0, (3,), np.float64),
    "matrix": spaces.Box(-1.0, 1.0, (2, 3), np.float32),
    "unbounded": spaces.Box(-np.inf, np.inf, (3,), np.float32),
    "integers": spaces.Box(-3, 3, (3,), np.int64),
    "image, channel last": spaces.Box(0, 255, (36, 36, 1), np.uint8),
    "image, channel first": spaces.Box(0, 255, (1, 36, 36), np.uint8),
    "Discrete": spaces.Discrete(4),
    "MultiDiscrete": spaces.MultiDiscrete([2, 3]),
    "MultiBinary": spaces.MultiBinary(3),
    "Dict": spaces.Dict({"vector": VECTOR, "flag": spaces.Discrete(2), "picture": spaces.Box(0, 255, (36, 36, 1), np.uint8)}),
}
ACTIONS: dict[str, spaces.Space[Any]] = {
    "Box": BOX,
    "Discrete": spaces.Discrete(3),
    "MultiDiscrete": spaces.MultiDiscrete([2, 3]),
    "MultiBinary": spaces.MultiBinary(2),
}


def policy_for(space: spaces.Space[Any]) -> tuple[str, dict[str, Any]]:
    """Name the policy that reads ``space``, with features that cost little."""
    if isinstance(space, spaces.Dict):
        return "MultiInputPolicy", {"features_extractor_kwargs": {"cnn_output_dim": 8}}
    if space.dtype == np.uint8:
        return "CnnPolicy", {"features_extractor_kwargs": {"features_dim": 8}}
    return "MlpPolicy", {}


def check_prediction(model: Any) -> None:
    """Single and batched observations give actions of the space, the same again when deterministic."""
    observation = model.get_env().reset()
    for deterministic in (True, False):
        batched, state = model.predict(observation, deterministic=deterministic)
        assert state is None
        assert batched.shape == (1, *model.action_space.shape)
        assert model.action_space.contains(batched[0].astype(model.action_space.dtype))
    one = {k: v[0] for k, v in observation.items()} if isinstance(observation, dict) else observation[0]
    single, _ = model.predict(one, deterministic=True)
    assert np.shape(single) == model.action_space.shape
    assert np.array_equal(single, model.predict(observation, deterministic=True)[0][0])


COSTLY = [name for name in OBSERVATIONS if "image" in name or name == "Dict"]
PAIRS = [(o, a) for o in OBSERVATIONS for a in ACTIONS if a in ("Box", "Discrete") or o not in COSTLY]


@pytest.mark.parametrize(("observations", "actions"), PAIRS)
@pytest.mark.parametrize("cls", SIX)
def test_spaces(cls: type, observations: str, actions: str) -> None:
    def env() -> gym.Env[Any, Any]:
        return toy(OBSERVATIONS[observations], ACTIONS[actions])

    policy, policy_kwargs = policy_for(OBSERVATIONS[observations])
    if cls in OFF_POLICY and actions != "Box":
        with pytest.raises(AssertionError, match=r"The algorithm only supports .*Box.* as action spaces but .* was provided"):
            build(cls, env(), policy)
        return
    options: dict[str, Any] = {"policy_kwargs": policy_kwargs}
    options |= {"n_steps": 12, "steps": 12} if cls in ON_POLICY else {"learning_starts": 10, "steps": 12}
    if cls in PEERS:
        model, peer = twins(cls, env, policy, **options)
        check_equal(model, peer)
    else:
        model = learnt(cls, env(), policy, **options)
        assert all(th.isfinite(p).all() for p in model.policy.parameters())
    check_prediction(model)


@pytest.mark.parametrize("cls", SIX)
def test_channel_last_images_are_transposed(cls: type) -> None:
    model = build(cls, toy(OBSERVATIONS["image, channel last"]), "CnnPolicy")
    assert isinstance(model.get_env(), VecTransposeImage)
    assert model.observation_space.shape == (1, 36, 36)


@pytest.mark.parametrize("cls", TWINS)
def test_policies_draw_the_same_random_numbers(cls: type) -> None:
    """MultiInputPolicy on a Dict of one entry learns what MlpPolicy learns on that entry."""

    class AsDict(gym.ObservationWrapper[Any, Any, Any]):
        observation_space = spaces.Dict({"only": VECTOR})

        def observation(self, observation: Any) -> dict[str, Any]:
            return {"only": observation}

    plain, wrapped = learnt(cls), learnt(cls, AsDict(toy()), "MultiInputPolicy")
    for a, b in zip(plain.policy.parameters(), wrapped.policy.parameters(), strict=True):
        assert th.equal(a, b)


@pytest.mark.parametrize(
    ("observation", "message"),
    [
        (np.zeros(4, np.float32), r"Unexpected observation shape \(4,\) for Box environment"),
        (np.zeros((2, 2), np.float32), r"Unexpected observation shape \(2, 2\) for Box environment"),
        ((np.zeros(3), {}), "You have passed a tuple to the predict"),
    ],
)
@pytest.mark.parametrize("cls", SIX)
def test_observations_of_another_shape(cls: type, observation: Any, message: str) -> None:
    model = build(cls)
    with pytest.raises(ValueError, match=message):
        model.predict(observation)
    with pytest.raises(AssertionError, match="The observation provided is a dict but the obs space is"):
        model.predict({"a": np.zeros(3)})


# --- gSDE ------------------------------------------------------------------------------------------------------------

SDE: list[dict[str, Any]] = [
    {},
    {"sde_sample_freq": 4},
    {"policy_kwargs": {"use_expln": True, "log_std_init": -1.0}},
]


@pytest.mark.parametrize("kwargs", SDE, ids=str)
@pytest.mark.parametrize("cls", [VPG, TRPO, PPO, SAC])
def test_gsde(cls: type, kwargs: dict[str, Any]) -> None:
    if cls is VPG:
        model = learnt(cls, use_sde=True, **kwargs)
        assert all(th.isfinite(p).all() for p in model.policy.parameters())
    else:
        model, peer = twins(cls, use_sde=True, **kwargs)
        check_equal(model, peer)
    check_prediction(model)


@pytest.mark.parametrize("cls", [TRPO, PPO])
def test_gsde_with_one_deviation_per_feature(cls: type) -> None:
    check_equal(*twins(cls, use_sde=True, policy_kwargs={"full_std": False}))


@pytest.mark.parametrize("cls", [VPG, TRPO, PPO])
def test_squashed_gsde(cls: type) -> None:
    """Actions leave the policy in [−1, 1] and are unscaled, not clipped; entropy has no closed form."""
    options = {"use_sde": True, "policy_kwargs": {"squash_output": True, "log_std_init": 0.0}}
    if cls in PEERS:
        if cls is PPO:
            options["ent_coef"] = 0.1
        model, peer = twins(cls, **options)
        check_equal(model, peer)
    else:
        model = learnt(cls, ent_coef=0.1, **options)
    assert np.abs(model.rollout_buffer.actions).max() <= 1.0
    check_prediction(model)


def test_gsde_explores_before_learning_starts_when_asked() -> None:
    ours, peer = twins(SAC, use_sde=True, use_sde_at_warmup=True, sde_sample_freq=4)
    check_equal(ours, peer)
    uniform = learnt(SAC, use_sde=True, sde_sample_freq=4)
    assert not np.array_equal(ours.replay_buffer.actions, uniform.replay_buffer.actions)


@pytest.mark.parametrize("cls", [VPG, TRPO, PPO])
def test_gsde_is_for_continuous_actions(cls: type) -> None:
    with pytest.raises(ValueError, match=r"gSDE.* can only be used with continuous actions"):
        build(cls, toy(VECTOR, spaces.Discrete(2)), use_sde=True)


# --- policy_kwargs ---------------------------------------------------------------------------------------------------


class Extractor(BaseFeaturesExtractor):
    """A pretrained part that stays as it is, a part that learns, and one that is never used."""

    def __init__(self, observation_space: spaces.Box, width: int = 5) -> None:
        super().__init__(observation_space, width)
        self.frozen = th.nn.Linear(3, width).requires_grad_(False)
        self.learns = th.nn.Linear(width, width)
        self.unused = th.nn.Linear(2, 2)

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return th.tanh(self.learns(self.frozen(observations)))


class Normalised(BaseFeaturesExtractor):
    def __init__(self, observation_space: spaces.Box) -> None:
        super().__init__(observation_space, 3)
        self.layers = th.nn.Sequential(th.nn.Flatten(), th.nn.BatchNorm1d(3), th.nn.ReLU())

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return self.layers(observations)


class Trainable(FlattenExtractor):
    def __init__(self, observation_space: spaces.Box) -> None:
        super().__init__(observation_space)
        self.linear = th.nn.Linear(3, 3)

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return self.linear(super().forward(observations))


ANY_POLICY: dict[str, dict[str, Any]] = {
    "no hidden layer": {"net_arch": []},
    "depth and activation": {"net_arch": [6, 5, 4], "activation_fn": th.nn.ELU},
    "AdamW": {"optimizer_class": th.optim.AdamW, "optimizer_kwargs": {"weight_decay": 0.1, "eps": 1e-6}},
    "RMSprop": {"optimizer_class": th.optim.RMSprop, "optimizer_kwargs": {"momentum": 0.5, "eps": 1e-5}},
    "RMSprop like TensorFlow's": {"optimizer_class": RMSpropTFLike, "optimizer_kwargs": {"eps": 1e-5}},
    "SGD": {"optimizer_class": th.optim.SGD},
    "shared extractor": {"features_extractor_class": Trainable, "share_features_extractor": True},
    "separate extractors": {"features_extractor_class": Trainable, "share_features_extractor": False},
}
ON_POLICY_ONLY: dict[str, dict[str, Any]] = {
    "separate nets": {"net_arch": {"pi": [6], "vf": [5, 4]}},
    "no orthogonal initialisation": {"ortho_init": False, "log_std_init": -0.5},
}
OFF_POLICY_ONLY: dict[str, dict[str, Any]] = {
    "separate nets": {"net_arch": {"pi": [6], "qf": [5, 4]}},
    "three critics": {"n_critics": 3},
    "one critic": {"n_critics": 1},
    "batch norm": {"features_extractor_class": Normalised},
}
SAC_ONLY: dict[str, dict[str, Any]] = {"log_std and clipping": {"log_std_init": -1.0, "clip_mean": 1.0}}

POLICY_KWARGS = [
    *((cls, name, kwargs) for cls in TWINS for name, kwargs in ANY_POLICY.items()),
    *((cls, name, kwargs) for cls in (PPO, TRPO) for name, kwargs in ON_POLICY_ONLY.items()),
    *((cls, name, kwargs) for cls in OFF_POLICY for name, kwargs in OFF_POLICY_ONLY.items()),
    *((SAC, name, kwargs) for name, kwargs in SAC_ONLY.items()),
]


@pytest.mark.parametrize(
    ("cls", "kwargs"),
    [(cls, kwargs) for cls, _, kwargs in POLICY_KWARGS],
    ids=[f"{c.__name__}-{n}" for c, n, _ in POLICY_KWARGS],
)
def test_policy_kwargs(cls: type, kwargs: dict[str, Any]) -> None:
    check_equal(*twins(cls, policy_kwargs=kwargs))


@pytest.mark.parametrize("name", [*ANY_POLICY, *ON_POLICY_ONLY])
def test_vpg_takes_policy_kwargs(name: str) -> None:
    model = learnt(VPG, policy_kwargs=(ANY_POLICY | ON_POLICY_ONLY)[name])
    assert all(th.isfinite(p).all() for p in model.policy.parameters())
    assert any(
        not th.equal(a, b)
        for a, b in zip(
            model.policy.parameters(),
            build(VPG, policy_kwargs=(ANY_POLICY | ON_POLICY_ONLY)[name]).policy.parameters(),
            strict=True,
        )
    )


EXTRAS = [
    *((cls, {}) for cls in SIX),
    (PPO, {"vf_lr": 1e-3}),
    (PPO, {"vf_lr": 1e-3, "train_v_iters": 2}),
    (TRPO, {"natural_gradient": True}),
]


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize(("cls", "kwargs"), EXTRAS, ids=str)
def test_frozen_and_unused_parameters(cls: type, kwargs: dict[str, Any], share: bool) -> None:
    policy_kwargs = {"features_extractor_class": Extractor, "share_features_extractor": share}
    model, start = learnt(cls, policy_kwargs=policy_kwargs, **kwargs), build(cls, policy_kwargs=policy_kwargs, **kwargs)
    moved = {
        name.split("extractor.")[-1].split(".")[0]
        for (name, p), q in zip(model.policy.named_parameters(), start.policy.parameters(), strict=True)
        if "extractor." in name and "target" not in name and not th.equal(p, q)
    }
    assert moved >= {"learns"}
    assert not moved & {"frozen", "unused"}
    if cls in (PPO, *OFF_POLICY) and not kwargs:
        check_equal(*twins(cls, policy_kwargs=policy_kwargs))  # contrib's TRPO cannot


class OnPolicyNet(ActorCriticPolicy):
    """A program's own policy."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs | {"net_arch": {"pi": [7], "vf": [7]}})


class SACNet(SACPolicy):
    """A program's own policy."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs | {"net_arch": [7]})


class TD3Net(TD3Policy):
    """A program's own policy."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs | {"net_arch": [7]})


POLICIES = {VPG: OnPolicyNet, TRPO: OnPolicyNet, PPO: OnPolicyNet, DDPG: TD3Net, TD3: TD3Net, SAC: SACNet}


@pytest.mark.parametrize("cls", SIX)
def test_custom_policies(cls: type) -> None:
    if cls in PEERS:
        model, peer = twins(cls, policy=POLICIES[cls])
        check_equal(model, peer)
    else:
        model = learnt(cls, policy=POLICIES[cls])
    assert type(model.policy) is POLICIES[cls]


def test_an_actor_of_other_make_keeps_its_own_distribution() -> None:
    """SAC writes out SB3's squashed Gaussian, but only for SB3's own actor."""

    class Halved(SACPolicy):
        def make_actor(self, features_extractor: Any = None) -> Any:
            actor = super().make_actor(features_extractor)
            original = type(actor)

            class Actor(original):  # type: ignore[misc,valid-type]
                def action_log_prob(self, obs: Any) -> Any:
                    actions, log_prob = super().action_log_prob(obs)
                    return actions / 2, log_prob

            actor.__class__ = Actor
            return actor

    check_equal(*twins(SAC, policy=Halved))


# --- batch norm ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", OFF_POLICY)
def test_batch_norm_statistics_are_copied_to_targets(cls: type) -> None:
    """With τ = 0 and a learning rate of 0 no weight moves, but the targets' statistics follow the networks'."""
    options = {"policy_kwargs": {"features_extractor_class": Normalised}, "tau": 0.0, "learning_rate": 0.0}
    start, model = build(cls, **options), learnt(cls, **options)
    assert gap_of(start.policy.parameters(), model.policy.parameters()) == 0.0
    names = ["critic"] if cls is SAC else ["critic", "actor"]
    for name in names:
        online, target = getattr(model, f"{name}_batch_norm_stats"), getattr(model, f"{name}_batch_norm_stats_target")
        assert len(online) == len(target) == 2
        assert gap_of(online, getattr(start, f"{name}_batch_norm_stats")) > 1e-3
        assert gap_of(online, target) == 0.0
    check_equal(*twins(cls, **options), tolerance=1e-6)


@pytest.mark.parametrize("cls", SIX)
def test_acting_leaves_batch_norm_statistics_alone(cls: type) -> None:
    options = {"policy_kwargs": {"features_extractor_class": Normalised}}
    options |= {"n_steps": 24} if cls in ON_POLICY else {"learning_starts": 1000}
    model = build(cls, **options)
    before = [b.clone() for b in model.policy.buffers()]
    if cls in OFF_POLICY:
        model.learn(24)
    first = model.predict(np.ones((2, 3), np.float32), deterministic=True)[0]
    assert np.array_equal(first, model.predict(np.ones((2, 3), np.float32), deterministic=True)[0])
    assert gap_of(before, model.policy.buffers()) == 0.0
    if cls in ON_POLICY:
        model.learn(24)
        assert gap_of(before, model.policy.buffers()) > 0.0


def gap_of(one: Any, other: Any) -> float:
    return max((a - b).abs().max().item() for a, b in zip(list(one), list(other), strict=True))


# --- schedules, noise, buffers ---------------------------------------------------------------------------------------

ON_POLICY_OPTIONS: dict[str, dict[str, Any]] = {
    "learning rate": {"learning_rate": lambda progress: 0.01 * progress},
    "linear learning rate": {"learning_rate": LinearSchedule(0.01, 0.001, 0.5)},
    "two environments": {},
}
PPO_OPTIONS: dict[str, dict[str, Any]] = {
    # A range of 0, which progress ends at, clips by rounding alone.
    "clip range": {"clip_range": lambda progress: 0.3 * progress + 0.05, "clip_range_vf": LinearSchedule(0.2, 0.1, 1.0)},
    "early stop": {"target_kl": 1e-5, "n_epochs": 5},
    "entropy": {"ent_coef": 0.1, "vf_coef": 0.2, "max_grad_norm": 0.01},
    "no normalisation": {"normalize_advantage": False, "gae_lambda": 0.5, "gamma": 0.9},
}
OFF_POLICY_OPTIONS: dict[str, dict[str, Any]] = {
    "learning rate": {"learning_rate": lambda progress: 0.01 * progress},
    "Gaussian noise": {"action_noise": NormalActionNoise(np.zeros(2), 0.3 * np.ones(2))},
    "Ornstein-Uhlenbeck noise": {"action_noise": OrnsteinUhlenbeckActionNoise(np.zeros(2), 0.3 * np.ones(2))},
    "n-step returns": {"n_steps": 3},
    "n-step buffer": {
        "replay_buffer_class": NStepReplayBuffer,
        "replay_buffer_kwargs": {"n_steps": 2, "gamma": 0.9},
    },
    "no timeouts": {"replay_buffer_class": ReplayBuffer, "replay_buffer_kwargs": {"handle_timeout_termination": False}},
    "memory": {"optimize_memory_usage": True, "replay_buffer_kwargs": {"handle_timeout_termination": False}},
    "overflowing buffer": {"buffer_size": 20},
    "blocks": {"train_freq": 4, "gradient_steps": 2},
    "steps": {"train_freq": (4, "step"), "gradient_steps": -1},
    "episodes": {"train_freq": (2, "episode"), "gradient_steps": -1, "learning_starts": 20},
    "no updates": {"gradient_steps": 0},
    "large tau": {"tau": 1.0, "gamma": 0.5},
}
TD3_OPTIONS: dict[str, dict[str, Any]] = {
    "delay": {"policy_delay": 3},
    "smoothing": {"target_policy_noise": 0.5, "target_noise_clip": 0.1},
}
SAC_OPTIONS: dict[str, dict[str, Any]] = {
    "fixed temperature": {"ent_coef": 0.1},
    "initial temperature": {"ent_coef": "auto_0.01", "target_entropy": -1.0},
    "target interval": {"target_update_interval": 3, "gradient_steps": 4},
}
OPTIONS = [
    *((cls, name, kwargs) for cls in (PPO, TRPO) for name, kwargs in ON_POLICY_OPTIONS.items()),
    *((PPO, name, kwargs) for name, kwargs in PPO_OPTIONS.items()),
    *((cls, name, kwargs) for cls in OFF_POLICY for name, kwargs in OFF_POLICY_OPTIONS.items()),
    *((TD3, name, kwargs) for name, kwargs in TD3_OPTIONS.items()),
    *((SAC, name, kwargs) for name, kwargs in SAC_OPTIONS.items()),
]


@pytest.mark.parametrize(("cls", "name", "kwargs"), OPTIONS, ids=[f"{cls.__name__}-{name}" for cls, name, _ in OPTIONS])
def test_options(cls: type, name: str, kwargs: dict[str, Any]) -> None:
    def env() -> Any:
        return make_vec_env(toy, n_envs=2) if name == "two environments" else toy()

    ours, peer = twins(cls, env, **kwargs)
    check_equal(ours, peer)
    assert ours._n_updates > 0 or name == "no updates"


@pytest.mark.parametrize("cls", OFF_POLICY)
def test_noise_over_several_environments(cls: type) -> None:
    kwargs = {"action_noise": OrnsteinUhlenbeckActionNoise(np.zeros(2), 0.3 * np.ones(2)), "gradient_steps": -1}
    ours, peer = twins(cls, lambda: make_vec_env(toy, n_envs=2), steps=46, **kwargs)
    check_equal(ours, peer)
    assert isinstance(ours.action_noise, VectorizedActionNoise)
    assert isinstance(learnt(cls, make_vec_env(toy, n_envs=2), action_noise=0.1).action_noise, VectorizedActionNoise)


@pytest.mark.parametrize("cls", OFF_POLICY)
def test_a_number_is_a_gaussian_sigma(cls: type) -> None:
    noise = NormalActionNoise(np.zeros(2), 0.25 * np.ones(2))
    assert gap(learnt(cls, action_noise=0.25), learnt(cls, action_noise=noise)) == 0.0


@pytest.mark.parametrize("cls", OFF_POLICY)
def test_episodes_are_counted_in_one_environment_only(cls: type) -> None:
    with pytest.raises(AssertionError, match="only one env when doing episodic training"):
        learnt(cls, make_vec_env(toy, n_envs=2), train_freq=(1, "episode"))


@pytest.mark.parametrize("cls", OFF_POLICY)
def test_the_critic_has_its_own_learning_rate_when_asked(cls: type) -> None:
    frozen, start = learnt(cls, q_lr=0.0), build(cls)
    assert gap_of(frozen.critic.parameters(), start.critic.parameters()) == 0.0
    assert gap_of(frozen.actor.parameters(), start.actor.parameters()) > 0.0
    assert gap(learnt(cls, q_lr=0.02, learning_rate=0.02), learnt(cls, learning_rate=0.02)) == 0.0
    halved = learnt(cls, q_lr=LinearSchedule(0.02, 0.01, 1.0))
    assert halved.critic.optimizer.param_groups[0]["lr"] < 0.02
    assert halved.actor.optimizer.param_groups[0]["lr"] == halved.learning_rate


@pytest.mark.parametrize("cls", [PPO, VPG])
def test_the_value_function_has_its_own_learning_rate_when_asked(cls: type) -> None:
    model, start = learnt(cls, vf_lr=0.0), build(cls)
    for (name, p), q in zip(model.policy.named_parameters(), start.policy.parameters(), strict=True):
        assert th.equal(p, q) == ("value" in name), name


@pytest.mark.parametrize("cls", SIX)
def test_frame_stacks(cls: type) -> None:
    model = learnt(cls, VecFrameStack(make_vec_env(toy, n_envs=2), 3))
    assert model.observation_space.shape == (9,)
    assert model.predict(np.zeros((2, 9), np.float32))[0].shape == (2, 2)


# --- determinism -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"noisy": True}], ids=["one environment", "two, with noise or gSDE"])
@pytest.mark.parametrize("cls", SIX)
def test_a_seed_decides_every_bit(cls: type, options: dict[str, Any]) -> None:
    def once(seed: int) -> Any:
        if not options:
            return learnt(cls, seed=seed)
        extra = {"action_noise": 0.2} if cls in (DDPG, TD3) else {"use_sde": True}
        return learnt(cls, make_vec_env(toy, n_envs=2), seed=seed, **extra)

    one, same, other = once(7), once(7), once(8)
    assert gap(one, same) == 0.0
    assert [e["r"] for e in one.ep_info_buffer] == [e["r"] for e in same.ep_info_buffer]
    assert gap(one, other) > 0.0
