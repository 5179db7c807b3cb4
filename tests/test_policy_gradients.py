"""VPG's Φ_t, TRPO's trust region and PPO's clipping, by hand and by their defining properties."""

from pathlib import Path
from typing import Any, get_args

import gymnasium as gym
import numpy as np
import pytest
import sb3_contrib
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.distributions import (
    BernoulliDistribution,
    CategoricalDistribution,
    DiagGaussianDistribution,
    MultiCategoricalDistribution,
)
from stable_baselines3.common.logger import configure
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.utils import LinearSchedule

from spinup_plugins import PPO, TRPO, VPG
from spinup_plugins.algorithms import ppo, trpo, vpg
from spinup_plugins.errors import ConfigError

SMALL: dict[str, Any] = {"policy_kwargs": {"net_arch": [8]}, "seed": 0, "device": "cpu"}


class Scripted(gym.Env[np.ndarray, int]):
    """Rewards 1, 2, 3, … within an episode that ends after ``length`` steps, terminated or truncated."""

    observation_space = spaces.Box(-1, 1, (1,))
    action_space = spaces.Discrete(2)

    def __init__(self, length: int, truncated: bool) -> None:
        self.length, self.truncated, self.t = length, truncated, 0

    def reset(self, **kwargs: Any) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(**kwargs)
        self.t = 0
        return np.zeros(1, np.float32), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.t += 1
        end = self.t == self.length
        return np.zeros(1, np.float32), float(self.t), end and not self.truncated, end and self.truncated, {}


def rollout(env: gym.Env, n_steps: int, value: float = 10.0, **kwargs: Any) -> VPG:
    """A VPG model whose V is ``value`` everywhere, after one rollout."""
    model = VPG("MlpPolicy", env, n_steps=n_steps, **SMALL, **kwargs)
    with th.no_grad():
        model.policy.value_net.weight.zero_()
        model.policy.value_net.bias.fill_(value)
    _, callback = model._setup_learn(n_steps)
    model.collect_rollouts(model.env, callback, model.rollout_buffer, n_steps)
    return model


@pytest.mark.parametrize(
    ("kwargs", "phi"),
    [
        # episode 1: rewards 1 2 3, terminal; then 1 2 and the rollout is over: bootstrap V = 10. γ = ½ makes it exact.
        ({"phi": "total_return"}, [2.75, 2.75, 2.75, 4.5, 4.5]),
        ({"phi": "reward_to_go"}, [2.75, 3.5, 3.0, 4.5, 7.0]),
        ({"phi": "reward_to_go_baseline"}, [-7.25, -6.5, -7.0, -5.5, -3.0]),
        ({"phi": "action_value"}, [2.75, 3.5, 3.0, 4.5, 7.0]),
        ({"phi": "action_value", "q_steps": 1}, [6.0, 7.0, 3.0, 6.0, 7.0]),
        ({"phi": "action_value", "q_steps": 2}, [4.5, 3.5, 3.0, 4.5, 7.0]),
        ({"phi": "advantage", "gae_lambda": 0.0}, [-4.0, -3.0, -7.0, -4.0, -3.0]),
        ({"phi": "advantage", "gae_lambda": 1.0}, [-7.25, -6.5, -7.0, -5.5, -3.0]),
        ({"phi": "total_return", "horizon": "finite"}, [6.0, 6.0, 6.0, 13.0, 13.0]),
        ({"phi": "reward_to_go", "horizon": "finite"}, [6.0, 5.0, 3.0, 13.0, 12.0]),
    ],
    ids=str,
)
def test_phi_by_hand(kwargs: dict[str, Any], phi: list[float]) -> None:
    model = rollout(Scripted(3, truncated=False), 5, gamma=0.5, **kwargs)
    assert model.rollout_buffer.advantages.flatten().tolist() == phi


def test_truncation_bootstraps_in_the_infinite_horizon_and_ends_the_finite_one() -> None:
    infinite = rollout(Scripted(2, truncated=True), 2, gamma=0.5, phi="reward_to_go")
    assert infinite.rollout_buffer.advantages.flatten().tolist() == [1 + 0.5 * 7, 2 + 0.5 * 10]
    finite = rollout(Scripted(2, truncated=True), 2, phi="reward_to_go", horizon="finite")
    assert finite.rollout_buffer.advantages.flatten().tolist() == [3.0, 2.0]
    terminal = rollout(Scripted(2, truncated=False), 2, gamma=0.5, phi="reward_to_go")
    assert terminal.rollout_buffer.advantages.flatten().tolist() == [2.0, 2.0]


def test_gamma_is_kept_for_another_horizon(tmp_path: Path) -> None:
    finite = VPG("MlpPolicy", Scripted(2, truncated=True), gamma=0.5, horizon="finite", n_steps=2, **SMALL)
    finite.save(tmp_path / "model.zip")
    assert finite.rollout_buffer.gamma == 1.0
    model = VPG.load(tmp_path / "model.zip", env=Scripted(2, truncated=True), horizon="infinite")
    assert (model.gamma, model.rollout_buffer.gamma) == (0.5, 0.5)


def test_value_targets() -> None:
    to_go = rollout(Scripted(3, truncated=False), 5, gamma=0.5)
    assert to_go.rollout_buffer.returns.flatten().tolist() == [2.75, 3.5, 3.0, 4.5, 7.0]
    td = rollout(Scripted(3, truncated=False), 5, gamma=0.5, gae_lambda=0.0, value_target="td_lambda")
    assert td.rollout_buffer.returns.flatten().tolist() == [6.0, 7.0, 3.0, 6.0, 7.0]


def test_rollouts_begin_with_fresh_episodes_only_when_asked() -> None:
    for reset, starts in ((True, [1, 0, 0]), (False, [0, 1, 0])):
        model = VPG("MlpPolicy", Scripted(4, truncated=False), n_steps=3, reset_on_rollout=reset, **SMALL).learn(6)
        assert model.rollout_buffer.episode_starts.flatten().tolist() == starts


def test_policy_loss_gradient_is_the_policy_gradient() -> None:
    """∇ log softmax is one-hot minus probabilities; −mean of that times Φ, by hand for two actions."""
    logits = th.zeros(2, requires_grad=True)
    log_prob = th.log_softmax(logits, 0)[th.tensor([0, 1])]
    vpg.policy_loss(log_prob, th.tensor([3.0, 1.0])).backward()
    assert logits.grad is not None
    assert logits.grad.tolist() == [-(0.5 * 3 - 0.5 * 1) / 2, -(-0.5 * 3 + 0.5 * 1) / 2]


@pytest.mark.parametrize("phi", get_args(vpg.Phi))
def test_every_phi_points_the_same_way_in_expectation(phi: str) -> None:
    """On a bandit whose second action pays, every Φ_t raises its probability."""

    class Bandit(Scripted):
        def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
            return np.zeros(1, np.float32), float(action), True, False, {}

    model = VPG("MlpPolicy", Bandit(1, False), n_steps=256, learning_rate=0.05, phi=phi, train_v_iters=5, **SMALL)
    model.learn(256 * 8)
    distribution = model.policy.get_distribution(th.zeros(1, 1)).distribution
    assert distribution.probs[0, 1].item() > 0.9


def test_vpg_reports_what_its_step_did() -> None:
    """Spinning Up measures before the step and always reports 0."""
    model = VPG("MlpPolicy", "CartPole-v1", n_steps=256, **SMALL).learn(256)
    logged = model.logger.name_to_value
    assert logged["train/delta_policy_loss"] < 0
    assert logged["train/approx_kl"] != 0
    assert logged["train/delta_value_loss"] < 0
    assert logged["train/value_loss"] > 0


def test_vpg_takes_any_optimizer() -> None:
    kwargs = {"net_arch": [8], "optimizer_class": th.optim.SGD}
    model = VPG("MlpPolicy", "CartPole-v1", n_steps=64, policy_kwargs=kwargs).learn(64)
    assert isinstance(model.policy.optimizer, th.optim.SGD)
    assert VPG("MlpPolicy", "CartPole-v1").policy.optimizer.defaults["eps"] == 1e-8


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"phi": "advantages"}, r"phi='advantages'.*did you mean 'advantage'"),
        ({"horizon": "infinit"}, r"horizon='infinit'.*did you mean 'infinite'"),
        ({"q_steps": 0}, r"q_steps=0 must be at least 1"),
        ({"phi": "total_return", "reset_on_rollout": False}, "needs whole trajectories"),
        ({"value_target": "td"}, "value_target='td' is not one of"),
    ],
)
def test_vpg_refuses(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        VPG("MlpPolicy", "CartPole-v1", **kwargs)


# --- TRPO ------------------------------------------------------------------------------------------------------------


def test_conjugate_gradient_solves_a_known_system() -> None:
    matrix = th.tensor([[4.0, 1.0], [1.0, 3.0]])
    x = trpo.conjugate_gradient(lambda v: matrix @ v, th.tensor([1.0, 2.0]), th.tensor([2.0, 1.0]), 10)
    assert x.tolist() == pytest.approx([1 / 11, 7 / 11], abs=1e-6)


@pytest.mark.parametrize("tolerance", [0.0, 1e-10])
def test_conjugate_gradient_stands_a_zero_gradient(tolerance: float) -> None:
    x = trpo.conjugate_gradient(lambda v: v, th.zeros(3), th.zeros(3), 10, tolerance)
    assert x.tolist() == [0.0, 0.0, 0.0]


def test_joint_kl_sums_over_action_dimensions_and_contribs_does_not() -> None:
    old = DiagGaussianDistribution(6).proba_distribution(th.zeros(4, 6), th.zeros(6))
    new = DiagGaussianDistribution(6).proba_distribution(th.full((4, 6), 0.1), th.zeros(6))
    assert trpo.mean_kl(new, old).item() == pytest.approx(6 * 0.005)  # ½ · 0.1² per dimension
    assert trpo.mean_kl(new, old, "mean").item() == pytest.approx(0.005)


def test_joint_kl_of_discrete_distributions() -> None:
    zero, logits = th.zeros(4, 4), th.tensor([[1.0, 0.0, 0.0, 1.0]]).repeat(4, 1)

    def categorical(x: th.Tensor) -> th.Tensor:
        p, q = th.softmax(x, -1), th.full_like(x, 1 / x.shape[-1])
        return (p * (p / q).log()).sum(-1).mean()

    kl = trpo.mean_kl(*(CategoricalDistribution(4).proba_distribution(x) for x in (logits, zero)))
    assert kl.item() == pytest.approx(categorical(logits).item(), rel=1e-5)
    kl = trpo.mean_kl(*(MultiCategoricalDistribution([2, 2]).proba_distribution(x) for x in (logits, zero)))
    assert kl.item() == pytest.approx((categorical(logits[:, :2]) + categorical(logits[:, 2:])).item(), rel=1e-5)
    kl = trpo.mean_kl(*(BernoulliDistribution(4).proba_distribution(x) for x in (logits, zero)))
    p = th.sigmoid(logits)
    expected = (p * (p / 0.5).log() + (1 - p) * ((1 - p) / 0.5).log()).sum(-1).mean()
    assert kl.item() == pytest.approx(expected.item(), rel=1e-5)


class Wide(Scripted):
    """Eight action dimensions, of which the first pays."""

    action_space = spaces.Box(-1, 1, (8,))

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        return np.zeros(1, np.float32), float(action[0]), True, False, {}


def joint_kl_after_one_update(cls: type, **kwargs: Any) -> float:
    model = cls("MlpPolicy", Wide(1, False), n_steps=256, batch_size=64, target_kl=0.01, **SMALL, **kwargs)
    before = {k: v.clone() for k, v in model.policy.state_dict().items()}
    model.learn(256)
    old = cls("MlpPolicy", Wide(1, False), n_steps=256, batch_size=64, **SMALL)
    old.policy.load_state_dict(before)
    obs = th.zeros(1, 1)
    return trpo.mean_kl(model.policy.get_distribution(obs), old.policy.get_distribution(obs)).item()


def test_the_trust_region_holds_for_the_joint_policy() -> None:
    assert 0.005 < joint_kl_after_one_update(TRPO) <= 0.01
    # contrib's region is act_dim times as large
    assert joint_kl_after_one_update(sb3_contrib.TRPO) > 0.04
    assert joint_kl_after_one_update(TRPO, kl_reduction="mean") > 0.04


@pytest.mark.parametrize("engine", ["torch", "auto"])
def test_the_trust_region_follows_its_schedule(engine: str) -> None:
    model = TRPO("MlpPolicy", "CartPole-v1", n_steps=128, target_kl=LinearSchedule(0.01, 0.0, 1.0), engine=engine, **SMALL)
    reached = []

    class Reached(BaseCallback):
        def _on_step(self) -> bool:
            return True

        def _on_rollout_start(self) -> None:
            values = self.logger.name_to_value
            reached.append((values["train/target_kl"], values["train/kl_divergence_loss"]))

    model.set_logger(configure(None, []))
    model.logger.dump = lambda step: None
    model.learn(256, callback=Reached())
    assert reached[1][0] == 0.005
    assert 0.0025 < reached[1][1] <= 0.005
    fixed = TRPO("MlpPolicy", "CartPole-v1", n_steps=128, target_kl=0.005, engine=engine, **SMALL).learn(128)
    assert fixed.logger.name_to_value["train/kl_divergence_loss"] == reached[1][1]
    # Nothing is left of it at the end.
    assert model.logger.name_to_value["train/target_kl"] == 0.0
    assert model.logger.name_to_value["train/is_line_search_success"] == 0.0


def test_a_schedule_below_zero_is_refused() -> None:
    model = TRPO("MlpPolicy", "CartPole-v1", n_steps=128, target_kl=lambda progress: progress - 1, **SMALL)
    with pytest.raises(ConfigError, match=r"target_kl's schedule gives -0\.5 at timestep 128; it must be at least 0"):
        model.learn(256)


@pytest.mark.parametrize(
    "kwargs",
    # No step is small enough, in torch's rounding of the divergence; none is tried.
    [{"engine": "torch", "target_kl": 1e-12, "line_search_max_iter": 2}, {"line_search_max_iter": 0}],
    ids=["too far", "not tried"],
)
def test_failed_line_search_restores_the_policy(kwargs: dict[str, Any]) -> None:
    model = TRPO("MlpPolicy", "CartPole-v1", n_steps=128, **kwargs, **SMALL)
    actor = [p for n, p in model.policy.named_parameters() if "value" not in n]
    before = [p.clone() for p in actor]
    model.learn(128)
    assert model.logger.name_to_value["train/is_line_search_success"] == 0.0
    assert model.logger.name_to_value["train/kl_divergence_loss"] == 0.0
    assert all(th.equal(p, q) for p, q in zip(actor, before, strict=True))


def test_natural_gradient_steps_whole_where_the_line_search_would_not() -> None:
    model = TRPO("MlpPolicy", "CartPole-v1", n_steps=128, line_search_max_iter=0, natural_gradient=True, **SMALL).learn(128)
    assert model.logger.name_to_value["train/is_line_search_success"] == 1.0
    assert model.logger.name_to_value["train/kl_divergence_loss"] == pytest.approx(0.01, rel=0.5)


# --- PPO -------------------------------------------------------------------------------------------------------------


def test_clipped_surrogate_by_hand() -> None:
    ratio = th.tensor([1.5, 1.5, 0.5, 0.5, 1.1])
    advantages = th.tensor([1.0, -1.0, 1.0, -1.0, 2.0])
    loss, fraction = ppo.clipped_surrogate(ratio.log(), th.zeros(5), advantages, 0.2)
    assert loss.item() == pytest.approx(-(1.2 - 1.5 + 0.5 - 0.8 + 2.2) / 5)
    assert fraction.item() == pytest.approx(0.8)


def test_clipped_values_by_hand() -> None:
    values = ppo.clipped_values(th.tensor([1.0, 2.0, 0.05]), th.zeros(3), 0.1)
    assert values.tolist() == pytest.approx([0.1, 0.1, 0.05])


def test_separate_learning_rates_move_what_they_name() -> None:
    for kwargs in ({"learning_rate": 0.0, "vf_lr": 1e-2}, {"learning_rate": 1e-2, "vf_lr": 0.0}):
        for extra in ({}, {"train_v_iters": 3}):
            model = PPO("MlpPolicy", "CartPole-v1", n_steps=64, n_epochs=2, **SMALL, **kwargs, **extra)
            before = {n: p.clone() for n, p in model.policy.named_parameters()}
            model.learn(64)
            moved = {n for n, p in model.policy.named_parameters() if not th.equal(p, before[n])}
            critic = {n for n in before if "value" in n}
            assert moved == (critic if kwargs["vf_lr"] else set(before) - critic)


def test_advantage_normalisation_choices(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[th.Tensor] = []
    surrogate = ppo.clipped_surrogate
    monkeypatch.setattr(ppo, "clipped_surrogate", lambda a, b, adv, c: (seen.append(adv), surrogate(a, b, adv, c))[1])
    for choice in ("minibatch", "batch", False):
        seen.clear()
        kwargs = {"n_steps": 64, "batch_size": 16, "n_epochs": 1, "engine": "torch"}
        model = PPO("MlpPolicy", "CartPole-v1", normalize_advantage=choice, **kwargs, **SMALL).learn(64)
        whole = th.cat(seen)
        if choice == "minibatch":
            assert all(abs(x.mean().item()) < 1e-5 and x.std().item() == pytest.approx(1, abs=1e-4) for x in seen)
        elif choice == "batch":
            assert abs(whole.mean().item()) < 1e-5
            assert whole.std(correction=0).item() == pytest.approx(1, abs=1e-4)
            assert abs(seen[0].mean().item()) > 1e-3
        else:
            assert sorted(whole.tolist()) == pytest.approx(sorted(model.rollout_buffer.advantages.flatten().tolist()))


class SharedLayer(BaseFeaturesExtractor):
    """An extractor with weights, which actor and critic share."""

    def __init__(self, observation_space: spaces.Box) -> None:
        super().__init__(observation_space, 4)
        self.layer = th.nn.Linear(observation_space.shape[0], 4)

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return self.layer(observations)


@pytest.mark.parametrize("cls", [VPG, TRPO])
def test_a_shared_extractor_belongs_to_the_actor(cls: type, monkeypatch: pytest.MonkeyPatch) -> None:
    """A critic that moved a shared layer would move the policy outside its own update."""
    kwargs = {"net_arch": [8], "features_extractor_class": SharedLayer}
    model = cls("MlpPolicy", "CartPole-v1", n_steps=128, seed=0, policy_kwargs=kwargs)
    groups: list[tuple[bool, bool]] = []
    descend = model._descend

    def spy(loss: th.Tensor, *steps: Any, **options: Any) -> None:
        names = {n for n, p in model.policy.named_parameters() if any(p is q for group, _ in steps for q in group)}
        groups.append((any("features_extractor" in n for n in names), any("value_net" in n for n in names)))
        descend(loss, *steps, **options)

    monkeypatch.setattr(model, "_descend", spy)
    model.learn(128)
    assert (True, True) not in groups
    assert (False, True) in groups
