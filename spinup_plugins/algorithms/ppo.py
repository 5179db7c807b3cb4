"""Proximal policy optimisation, clipped (PPO).

Schulman et al. 2017 (arXiv:1707.06347). With ρ_t = π_θ(a_t|s_t) / π_old(a_t|s_t) and advantages A_t from GAE-λ:

    (1)  L_π(θ) = −mean_t min( ρ_t A_t, clip(ρ_t, 1 − ε, 1 + ε) A_t )         the clipped surrogate
    (2)  L_V(φ) = mean_t (V_φ(s_t) − R̂_t)²,  V optionally kept within ±ε_V of V_old
    (3)  L = L_π + c_V L_V − c_H H(π_θ)
    (4)  stop the policy's updates once KL(π_old‖π_θ) > 1.5 ``target_kl``, before the step that was due

Two recipes in one class. Stable-Baselines3's (the default): ``n_epochs`` passes in minibatches down the joint loss (3).
Spinning Up's (``preset="spinning_up"``): up to ``n_epochs`` full-batch steps down (1), then ``train_v_iters`` down (2), each
at its own learning rate.
"""

from collections.abc import Iterator
from math import inf
from typing import Any, ClassVar, Literal, NamedTuple, TypeAlias

import torch as th
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import GymEnv, RolloutBufferSamples, Schedule
from stable_baselines3.common.utils import FloatSchedule, explained_variance
from torch.nn import Parameter
from torch.nn import functional as F

from spinup_plugins.algorithms import functional
from spinup_plugins.algorithms.common import choice, frozen, mean
from spinup_plugins.algorithms.on_policy import (
    SPINNING_UP_POLICY,
    AdvantageNorm,
    OnPolicy,
    ValueTarget,
    flat_actions,
    split,
)
from spinup_plugins.engine import policy_gradient
from spinup_plugins.engine.actor_critic import ActorCritic, flattened
from spinup_plugins.engine.tiers import EngineName

__all__ = ["PPO", "SPINNING_UP", "clipped_surrogate", "clipped_values"]

SPINNING_UP: dict[str, Any] = {
    "learning_rate": 3e-4,
    "vf_lr": 1e-3,
    "n_steps": 4000,
    "batch_size": None,
    "n_epochs": 80,
    "train_v_iters": 80,
    "gamma": 0.99,
    "gae_lambda": 0.97,
    "clip_range": 0.2,
    "target_kl": 0.01,
    "kl_estimator": "k1",
    "normalize_advantage": "batch",
    "max_grad_norm": float("inf"),
    "value_target": "rewards_to_go",
    "reset_on_rollout": True,
    "policy_kwargs": SPINNING_UP_POLICY,
}


KLEstimator: TypeAlias = Literal["k3", "k1"]


def clipped_surrogate(
    log_prob: th.Tensor, old_log_prob: th.Tensor, advantages: th.Tensor, clip_range: float
) -> tuple[th.Tensor, th.Tensor]:
    """Eq. (1), and how much of the batch it clips.

    :param log_prob: log π_θ(a_t|s_t), (B,)
    :param old_log_prob: log π_old(a_t|s_t), (B,)
    :param advantages: A_t, (B,)
    :param clip_range: ε
    :return: loss, and the fraction of ρ_t outside 1 ± ε; scalars
    """
    ratio = th.exp(log_prob - old_log_prob)
    unclipped = advantages * ratio
    clipped = advantages * th.clamp(ratio, 1 - clip_range, 1 + clip_range)
    outside = (th.abs(ratio.detach() - 1) > clip_range).float().mean()
    return -th.min(unclipped, clipped).mean(), outside


def clipped_values(values: th.Tensor, old_values: th.Tensor, clip_range_vf: float) -> th.Tensor:
    """Keep V(s_t) within ±ε_V of the value it had when the rollout was collected.

    :param values: V_φ(s_t), (B,)
    :param old_values: V_old(s_t), (B,)
    :param clip_range_vf: ε_V, in the scale of returns
    :return: (B,)
    """
    return old_values + th.clamp(values - old_values, -clip_range_vf, clip_range_vf)


class Losses(NamedTuple):
    """One minibatch's scalars, on the device; only ``total`` and ``policy`` carry a graph."""

    total: th.Tensor
    policy: th.Tensor
    value: th.Tensor | None
    entropy: th.Tensor
    approx_kl: th.Tensor
    clip_fraction: th.Tensor


class PPO(OnPolicy):
    """Proximal policy optimisation, clipped; constructor, defaults and zips are Stable-Baselines3's.

    :param policy: ``"MlpPolicy"``, ``"CnnPolicy"``, ``"MultiInputPolicy"`` or a subclass of SB3's ``ActorCriticPolicy``
    :param env: environment, vec-env, or the id of a registered one
    :param learning_rate: learning rate, or a schedule of the remaining progress (1 → 0)
    :param n_steps: steps per environment in each rollout
    :param batch_size: minibatch size, ``None`` for the whole rollout at once
    :param n_epochs: passes over each rollout
    :param gamma: discount factor γ
    :param gae_lambda: λ of generalised advantage estimation
    :param clip_range: ε of eq. (1), or a schedule
    :param clip_range_vf: ε_V of eq. (2) in the scale of returns, or a schedule; ``None`` does not clip
    :param normalize_advantage: ``True`` or ``"minibatch"``: zero mean and unit variance in each minibatch; ``"batch"``: over
        the whole rollout, as Spinning Up; ``False``: not at all
    :param ent_coef: c_H, weight of the entropy bonus
    :param vf_coef: c_V, weight of the value loss
    :param max_grad_norm: clip gradients to this norm
    :param use_sde: use generalised state-dependent exploration instead of independent Gaussian noise
    :param sde_sample_freq: sample a new noise matrix every n steps, −1 for once per rollout
    :param rollout_buffer_class: rollout buffer, chosen by the observation space when ``None``
    :param rollout_buffer_kwargs: further arguments of the rollout buffer
    :param target_kl: KL bound of rule (4) in nats, ``None`` for none
    :param stats_window_size: episodes that reported means are taken over
    :param tensorboard_log: directory of TensorBoard logs, ``None`` for none
    :param policy_kwargs: arguments of the policy
    :param verbose: 0 silent, 1 information, 2 debugging
    :param seed: seed of every random generator
    :param device: ``"cpu"``, ``"cuda"`` or ``"auto"``
    :param train_v_iters: passes that fit V alone after the policy's, ``None`` for the joint loss (3)
    :param kl_estimator: ``"k3"`` (SB3's, never negative) or ``"k1"`` (Spinning Up's) in rule (4)
    :param engine: tier to act and learn on: ``"native"``, ``"numpy"``, ``"torch"``; ``"auto"`` takes the fastest that knows
        the policy
    :param n_threads: threads to compute with; ``None`` measures at the start of ``learn`` how many are fastest on the native
        tier, takes one on NumPy's, where results depend on their number, and torch's own number on torch's
    :param compile: True, or arguments of ``torch.compile``: compile losses and their gradients on torch's tier; other tiers
        use no torch
    :raises AssertionError: on the combinations that Stable-Baselines3 refuses
    """

    _file_mark: ClassVar[str] = "clip_range"
    _replaced: ClassVar[tuple[str, ...]] = (*OnPolicy._replaced, "_losses", "_value_loss", "_critic_loss", "_groups")

    def __init__(
        self,
        policy: str | type[ActorCriticPolicy],
        env: GymEnv | str,
        learning_rate: float | Schedule = 3e-4,
        n_steps: int = 2048,
        batch_size: int | None = 64,
        n_epochs: int = 10,
        gamma: float = 0.99,
        gae_lambda: float = 0.95,
        clip_range: float | Schedule = 0.2,
        clip_range_vf: float | Schedule | None = None,
        normalize_advantage: AdvantageNorm = True,
        ent_coef: float = 0.0,
        vf_coef: float = 0.5,
        max_grad_norm: float = 0.5,
        use_sde: bool = False,
        sde_sample_freq: int = -1,
        rollout_buffer_class: type[RolloutBuffer] | None = None,
        rollout_buffer_kwargs: dict[str, Any] | None = None,
        target_kl: float | None = None,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "auto",
        _init_setup_model: bool = True,
        *,
        vf_lr: float | Schedule | None = None,
        train_v_iters: int | None = None,
        kl_estimator: KLEstimator = "k3",
        value_target: ValueTarget = "td_lambda",
        reset_on_rollout: bool = False,
        engine: EngineName = "auto",
        n_threads: int | None = None,
        compile: bool | dict[str, Any] = False,
    ) -> None:
        super().__init__(
            policy,
            env,
            learning_rate=learning_rate,
            n_steps=n_steps,
            gamma=gamma,
            gae_lambda=gae_lambda,
            ent_coef=ent_coef,
            vf_coef=vf_coef,
            max_grad_norm=max_grad_norm,
            use_sde=use_sde,
            sde_sample_freq=sde_sample_freq,
            rollout_buffer_class=rollout_buffer_class,
            rollout_buffer_kwargs=rollout_buffer_kwargs,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            policy_kwargs=policy_kwargs,
            verbose=verbose,
            seed=seed,
            device=device,
            vf_lr=vf_lr,
            value_target=value_target,
            reset_on_rollout=reset_on_rollout,
            engine=engine,
            n_threads=n_threads,
            compile=compile,
        )
        self.batch_size = batch_size
        self.n_epochs = n_epochs
        self.clip_range = clip_range
        self.clip_range_vf = clip_range_vf
        self.normalize_advantage = normalize_advantage
        self.target_kl = target_kl
        self.train_v_iters = train_v_iters
        self.kl_estimator = kl_estimator
        self._check_batches(batch_size, normalize_advantage)

        if _init_setup_model:
            self._setup_model()

    @classmethod
    def _wrote(cls, saved: dict[str, Any]) -> bool:
        # sb3-contrib's RecurrentPPO has the same attributes, but a policy that cannot do without its hidden state.
        policy = saved.get("policy_class")
        module = policy.get("__module__", "") if isinstance(policy, dict) else ""
        return super()._wrote(saved) and not module.startswith("sb3_contrib.common.recurrent")

    def _setup_model(self) -> None:
        choice("normalize_advantage", self.normalize_advantage, AdvantageNorm)
        choice("kl_estimator", self.kl_estimator, KLEstimator)
        super()._setup_model()
        self.clip_range = FloatSchedule(self.clip_range)
        if self.clip_range_vf is not None:
            if isinstance(self.clip_range_vf, (float, int)):
                assert self.clip_range_vf > 0, "`clip_range_vf` must be positive, pass `None` to deactivate vf clipping"
            self.clip_range_vf = FloatSchedule(self.clip_range_vf)

    def train(self) -> None:
        """Update policy and value function from the current rollout."""
        self._warn_if_constant()
        self.policy.set_training_mode(True)
        pi_lr, vf_lr = self._learning_rates()
        clip_range, clip_range_vf = self._scheduled("clip_range", self.clip_range), None  # type: ignore[arg-type]
        if self.clip_range_vf is not None:
            clip_range_vf = self._scheduled("clip_range_vf", self.clip_range_vf)  # type: ignore[arg-type]
        separate = self.train_v_iters is not None
        bound = self._tier().bound
        fast = None if bound is None else self._on_engine(bound, clip_range, clip_range_vf, (pi_lr, vf_lr))

        groups = self._groups(None, pi_lr, vf_lr)
        seen: list[Any] = []
        for epoch in range(self.n_epochs):
            epoch_start = len(seen)
            stop = False
            for batch in self._batches(fast):
                if fast is None:
                    # A compiled loss does not show which parameters it depends on: the first one is not, where it must.
                    evaluate = self._compiled(self._losses) if groups else self._losses
                    losses = evaluate(batch, clip_range, clip_range_vf, joint=not separate)
                    groups = groups or self._groups(losses.policy, pi_lr, vf_lr)
                else:
                    losses = fast.losses(batch)  # type: ignore[assignment]  # numbers where torch has tensors
                seen.append(losses)
                # Eq. (4), the one number that the host must know before it goes on
                if self.target_kl is not None and losses.approx_kl > 1.5 * self.target_kl:
                    stop = True
                    if self.verbose >= 1:
                        print(f"Early stopping at step {epoch} due to reaching max kl: {losses.approx_kl:.2f}")
                    break
                if fast is None:
                    self._descend(losses.total, *(groups[:1] if separate else groups), max_grad_norm=self.max_grad_norm)
                else:
                    fast.descend()
            self._n_updates += 1
            if stop:
                break

        value_losses = [x.value for x in seen if x.value is not None]
        for _ in range(self.train_v_iters or 0):
            for batch in self._batches(fast):
                if fast is None:
                    with frozen(groups[0][0]):
                        value_loss = self._compiled(self._critic_loss)(batch, clip_range_vf)
                    self._descend(value_loss, *groups[1:], max_grad_norm=self.max_grad_norm)
                    value_losses.append(value_loss.detach())
                else:
                    value_losses.append(fast.fit_values(batch))

        self.logger.record("train/entropy_loss", mean([x.entropy for x in seen]))
        self.logger.record("train/policy_gradient_loss", mean([x.policy for x in seen]))
        if value_losses:
            self.logger.record("train/value_loss", mean(value_losses))
        self.logger.record("train/approx_kl", mean([x.approx_kl for x in seen[epoch_start:]]))
        self.logger.record("train/clip_fraction", mean([x.clip_fraction for x in seen]))
        self.logger.record("train/loss", mean([seen[-1].total]))
        self.logger.record("train/clip_range", clip_range)
        if clip_range_vf is not None:
            self.logger.record("train/clip_range_vf", clip_range_vf)
        self._record_policy(explained_variance(self.rollout_buffer.values.flatten(), self.rollout_buffer.returns.flatten()))

    def _on_engine(
        self, networks: ActorCritic, clip_range: float, clip_range_vf: float | None, rates: tuple[float, float]
    ) -> policy_gradient.ClippedSurrogate:
        """Hand eqs. (1)-(3) to the engine, which computes the same numbers without torch."""
        rollout = flattened(self.rollout_buffer, networks.observations)
        if self.normalize_advantage == "batch":
            rollout = rollout._replace(advantages=policy_gradient.normalized(rollout.advantages, unbiased=False))
        return policy_gradient.ClippedSurrogate(
            networks,
            rollout,
            clip_range=clip_range,
            clip_range_vf=inf if clip_range_vf is None else clip_range_vf,
            normalize=self.normalize_advantage in (True, "minibatch"),
            ent_coef=self.ent_coef,
            vf_coef=self.vf_coef if self.train_v_iters is None else None,
            k1=self.kl_estimator == "k1",
            max_grad_norm=self.max_grad_norm,
            rates=rates,
        )

    def _batches(self, fast: policy_gradient.ClippedSurrogate | None) -> Iterator[Any]:
        if fast is not None:
            return fast.batches(self.batch_size)
        batches = self._minibatches(self.batch_size)
        return map(self._normalized_by_batch, batches) if self.normalize_advantage == "batch" else batches

    def _losses(self, batch: RolloutBufferSamples, clip_range: float, clip_range_vf: float | None, *, joint: bool) -> Losses:
        """Eqs. (1)-(3) on one minibatch; without ``joint`` the value function stays out of it."""
        advantages = batch.advantages
        # A batch of one has no deviation.
        if self.normalize_advantage in (True, "minibatch") and len(advantages) > 1:
            advantages = functional.normalize(advantages)
        actions = flat_actions(batch.actions, self.action_space)

        if joint:
            values, log_prob, entropy = self.policy.evaluate_actions(batch.observations, actions)
        else:
            distribution = self.policy.get_distribution(batch.observations)
            log_prob, entropy = distribution.log_prob(actions), distribution.entropy()
        policy_loss, clip_fraction = clipped_surrogate(log_prob, batch.old_log_prob, advantages, clip_range)
        # Squashed distributions have no closed form: −log π(a|s) estimates their entropy.
        entropy_loss = log_prob.mean() if entropy is None else -entropy.mean()

        total = policy_loss + self.ent_coef * entropy_loss
        value_loss = None
        if joint:
            value_loss = self._value_loss(values, batch, clip_range_vf)
            total = total + self.vf_coef * value_loss
        estimate_kl = functional.approx_kl_k1 if self.kl_estimator == "k1" else functional.approx_kl_k3
        return Losses(
            total=total,
            policy=policy_loss,
            value=None if value_loss is None else value_loss.detach(),
            entropy=entropy_loss.detach(),
            approx_kl=estimate_kl(log_prob.detach(), batch.old_log_prob),
            clip_fraction=clip_fraction,
        )

    def _value_loss(self, values: th.Tensor, batch: RolloutBufferSamples, clip_range_vf: float | None) -> th.Tensor:
        """Eq. (2)."""
        values = values.flatten()
        if clip_range_vf is not None:
            values = clipped_values(values, batch.old_values, clip_range_vf)
        return F.mse_loss(batch.returns, values)

    def _critic_loss(self, batch: RolloutBufferSamples, clip_range_vf: float | None) -> th.Tensor:
        return self._value_loss(self.policy.predict_values(batch.observations), batch, clip_range_vf)

    def _groups(self, policy_loss: th.Tensor | None, pi_lr: float, vf_lr: float) -> list[tuple[list[Parameter], float]]:
        """Return what is stepped together at which learning rate: everything at one, or the actor and then the critic.

        Actor and critic are told apart by ``policy_loss``; nothing is returned where that is needed and ``None``.
        """
        parameters = [p for p in self.policy.parameters() if p.requires_grad]
        if self.train_v_iters is None and self.vf_lr is None:
            return [(parameters, pi_lr)]
        if policy_loss is None:
            return []
        actor, critic = split(policy_loss, parameters)
        return [(actor, pi_lr), (critic, vf_lr)]

    def _check_batches(self, batch_size: int | None, normalize_advantage: bool | str) -> None:
        """Refuse or warn about batch sizes as Stable-Baselines3 does."""
        if normalize_advantage in (True, "minibatch") and batch_size is not None:
            assert batch_size > 1, (
                "`batch_size` must be greater than 1. See https://github.com/DLR-RM/stable-baselines3/issues/440"
            )
        self._check_rollout_size(batch_size, bool(normalize_advantage))
