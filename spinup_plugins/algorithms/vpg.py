"""Vanilla policy gradient (VPG, REINFORCE with a learned baseline).

Williams 1992; Sutton et al. 2000; Schulman et al. 2016 (arXiv:1506.02438); the recipe is Spinning Up's.

    (1)  ∇_θ J(π_θ) = E_τ [ Σ_t ∇_θ log π_θ(a_t|s_t) Φ_t ]                    the general policy gradient
    (2)  Φ_t = R(τ)                            "total_return"           every reward of the trajectory
         Φ_t = Σ_{t'≥t} r_t'                   "reward_to_go"           only those that follow the action
         Φ_t = Σ_{t'≥t} r_t' − V(s_t)          "reward_to_go_baseline"  less what was expected anyway
         Φ_t = Q^π(s_t, a_t)                   "action_value"           Σ_{k<n} r_{t+k} + V(s_{t+n})
         Φ_t = A^π(s_t, a_t)                   "advantage"              GAE-λ; λ = 0 is the TD residual
    (3)  L_π(θ) = −mean_t [ log π_θ(a_t|s_t) Φ_t ] − c_H H(π_θ)               one step per rollout
    (4)  L_V(φ) = mean_t [ (V_φ(s_t) − R̂_t)² ]                               ``train_v_iters`` passes per rollout

Sums in (2) are written without γ for brevity. With ``horizon="infinite"`` every reward and V is discounted by the steps
until it, and truncated episodes go on in V; with ``horizon="finite"`` γ = 1, whatever ``gamma`` says, and the time limit is
the end. Without ``q_steps`` Q is estimated by the rewards-to-go alone: the same numbers as "reward_to_go".
"""

from math import inf
from typing import Any, ClassVar, Literal, TypeAlias

import torch as th
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import GymEnv, RolloutBufferSamples, Schedule
from stable_baselines3.common.utils import explained_variance

from spinup_plugins.algorithms import functional
from spinup_plugins.algorithms.common import choice, frozen
from spinup_plugins.algorithms.on_policy import (
    SPINNING_UP_POLICY,
    OnPolicy,
    ValueTarget,
    episode_ends,
    flat_actions,
    split,
)
from spinup_plugins.engine import policy_gradient
from spinup_plugins.engine.actor_critic import ActorCritic, flattened
from spinup_plugins.engine.policy_gradient import PolicyStep
from spinup_plugins.engine.tiers import EngineName
from spinup_plugins.errors import ConfigError

__all__ = ["SPINNING_UP", "VPG", "Horizon", "Phi", "policy_loss", "value_loss"]

Phi: TypeAlias = Literal["total_return", "reward_to_go", "reward_to_go_baseline", "action_value", "advantage"]
Horizon: TypeAlias = Literal["infinite", "finite"]

#: VPG's constructor defaults are Spinning Up's already
SPINNING_UP: dict[str, Any] = {}


def policy_loss(log_prob: th.Tensor, phi: th.Tensor) -> th.Tensor:
    """Eq. (3) without entropy; its gradient is the policy gradient (1), its value means nothing.

    :param log_prob: log π(a_t|s_t), (B,)
    :param phi: Φ_t, (B,)
    :return: scalar
    """
    return -(log_prob * phi).mean()


def value_loss(values: th.Tensor, returns: th.Tensor) -> th.Tensor:
    """Eq. (4).

    :param values: V(s_t), (B,)
    :param returns: R̂_t, (B,)
    :return: scalar
    """
    return ((values - returns) ** 2).mean()


class VPG(OnPolicy):
    """Vanilla policy gradient, with every Φ_t of the general form by name.

    :param policy: ``"MlpPolicy"``, ``"CnnPolicy"``, ``"MultiInputPolicy"`` or a subclass of SB3's ``ActorCriticPolicy``
    :param env: environment, vec-env, or the id of a registered one
    :param learning_rate: the policy's learning rate, or a schedule of the remaining progress (1 → 0)
    :param n_steps: steps per environment in each rollout
    :param gamma: discount factor γ, 1 where the horizon is finite
    :param gae_lambda: λ of generalised advantage estimation (``phi="advantage"``)
    :param phi: Φ_t of eq. (2), by name
    :param horizon: ``"infinite"`` for discounted returns, ``"finite"`` for undiscounted ones that end at the time limit
    :param q_steps: n of the bootstrapped n-step Q (``phi="action_value"``), ``None`` to sum rewards to the end
    :param vf_lr: learning rate (or schedule) of the value function
    :param train_v_iters: passes over the rollout that fit the value function
    :param batch_size: the value function's minibatch size, ``None`` for the whole rollout at once
    :param ent_coef: weight c_H of the entropy bonus
    :param max_grad_norm: clip gradients to this norm
    :param normalize_advantage: give Φ zero mean and unit variance over the rollout
    :param use_sde: use generalised state-dependent exploration instead of independent Gaussian noise
    :param sde_sample_freq: sample a new noise matrix every n steps, −1 for once per rollout
    :param rollout_buffer_class: rollout buffer, chosen by the observation space when ``None``
    :param rollout_buffer_kwargs: further arguments of the rollout buffer
    :param stats_window_size: episodes that reported means are taken over
    :param tensorboard_log: directory of TensorBoard logs, ``None`` for none
    :param policy_kwargs: arguments of the policy; those not given are Spinning Up's (torch's default initialisation,
        log σ = −0.5, Adam's ε = 1e-8)
    :param verbose: 0 silent, 1 information, 2 debugging
    :param seed: seed of every random generator
    :param device: ``"cpu"``, ``"cuda"`` or ``"auto"``
    :param engine: tier to act and learn on: ``"native"``, ``"numpy"``, ``"torch"``; ``"auto"`` takes the fastest that knows
        the policy
    :param n_threads: threads to compute with; ``None`` measures at the start of ``learn`` how many are fastest on the native
        tier, takes one on NumPy's, where results depend on their number, and torch's own number on torch's
    :param compile: True, or arguments of ``torch.compile``: compile losses and their gradients on torch's tier; other tiers
        use no torch
    :raises ConfigError: on values out of range, or Φ = R(τ) over trajectories whose beginning is not in the rollout
    """

    _file_mark: ClassVar[str] = "phi"
    _replaced: ClassVar[tuple[str, ...]] = (*OnPolicy._replaced, "_step", "_value_loss")

    def __init__(
        self,
        policy: str | type[ActorCriticPolicy],
        env: GymEnv | str,
        learning_rate: float | Schedule = 3e-4,
        n_steps: int = 4000,
        gamma: float = 0.99,
        gae_lambda: float = 0.97,
        phi: Phi = "advantage",
        horizon: Horizon = "infinite",
        q_steps: int | None = None,
        vf_lr: float | Schedule | None = 1e-3,
        train_v_iters: int = 80,
        batch_size: int | None = None,
        ent_coef: float = 0.0,
        max_grad_norm: float = inf,
        normalize_advantage: bool = True,
        use_sde: bool = False,
        sde_sample_freq: int = -1,
        rollout_buffer_class: type[RolloutBuffer] | None = None,
        rollout_buffer_kwargs: dict[str, Any] | None = None,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "auto",
        _init_setup_model: bool = True,
        *,
        value_target: ValueTarget = "rewards_to_go",
        reset_on_rollout: bool = True,
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
            vf_coef=1.0,
            max_grad_norm=max_grad_norm,
            use_sde=use_sde,
            sde_sample_freq=sde_sample_freq,
            rollout_buffer_class=rollout_buffer_class,
            rollout_buffer_kwargs=rollout_buffer_kwargs,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            policy_kwargs=_with_defaults(policy_kwargs or {}),
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
        self.phi = phi
        self.horizon = horizon
        self.q_steps = q_steps
        self.train_v_iters = train_v_iters
        self.batch_size = batch_size
        self.normalize_advantage = normalize_advantage
        self._check_rollout_size(batch_size, normalize_advantage)

        if _init_setup_model:
            self._setup_model()

    def _setup_model(self) -> None:
        choice("phi", self.phi, Phi)
        choice("horizon", self.horizon, Horizon)
        if self.phi == "total_return" and not self.reset_on_rollout:
            raise ConfigError("phi='total_return' needs whole trajectories: set reset_on_rollout=True")
        super()._setup_model()
        self.rollout_buffer.gamma = self._discount

    @property
    def _discount(self) -> float:
        return 1.0 if self.horizon == "finite" else self.gamma

    def _bootstrap_truncated(self, rewards: Any, dones: Any, infos: Any) -> None:
        if self.horizon == "infinite":
            super()._bootstrap_truncated(rewards, dones, infos)

    def _compute_targets(self, rollout_buffer: RolloutBuffer, last_values: th.Tensor, dones: Any) -> None:
        """Fill ``returns`` with R̂_t and ``advantages`` with Φ_t, eq. (2)."""
        super()._compute_targets(rollout_buffer, last_values, dones)
        if self.phi == "advantage":
            return  # GAE-λ is there already
        rewards, values = rollout_buffer.rewards, rollout_buffer.values
        ends, last = episode_ends(rollout_buffer, dones), last_values.cpu().numpy().flatten()
        if self.phi == "action_value" and self.q_steps is not None:
            phi = functional.n_step_values(rewards, values, ends, last, self._discount, self.q_steps)
        elif self.phi == "total_return":
            phi = functional.total_returns(rewards, ends, last, self._discount)
        else:
            phi = self._rewards_to_go(rollout_buffer, last_values, dones)
        rollout_buffer.advantages = phi - values if self.phi == "reward_to_go_baseline" else phi

    def train(self) -> None:
        """One policy-gradient step (3) on the current rollout, then ``train_v_iters`` passes of (4)."""
        self._warn_if_constant()
        self.policy.set_training_mode(True)
        pi_lr, vf_lr = self._learning_rates()
        explained = explained_variance(self.rollout_buffer.values.flatten(), self.rollout_buffer.returns.flatten())

        bound = self._tier().bound
        step, losses_v = self._step(pi_lr, vf_lr) if bound is None else self._step_on_engine(bound, pi_lr, vf_lr)

        self._n_updates += 1
        self.logger.record("train/policy_gradient_loss", step.loss)
        self.logger.record("train/delta_policy_loss", step.new_loss - step.loss)
        self.logger.record("train/entropy_loss", -step.entropy)
        self.logger.record("train/approx_kl", step.approx_kl)
        if losses_v:
            self.logger.record("train/value_loss", float(losses_v[0]))
            self.logger.record("train/delta_value_loss", float(losses_v[-1] - losses_v[0]))
        self._record_policy(explained)

    def _step(self, pi_lr: float, vf_lr: float) -> tuple[PolicyStep, list[th.Tensor]]:
        """Take the steps; return what the policy's did, and the value losses before each of the critic's."""
        rollout = next(self._minibatches(None))
        actions = flat_actions(rollout.actions, self.action_space)
        phi = rollout.advantages
        if self.normalize_advantage:
            phi = functional.normalize(phi, unbiased=False)

        distribution = self.policy.get_distribution(rollout.observations)
        log_prob, entropy = distribution.log_prob(actions), distribution.entropy()
        entropy_mean = -log_prob.mean() if entropy is None else entropy.mean()
        loss_pi = policy_loss(log_prob, phi)
        actor, critic = split(loss_pi, self.policy.parameters())
        self._descend(loss_pi - self.ent_coef * entropy_mean, (actor, pi_lr), max_grad_norm=self.max_grad_norm)

        # Measured after the step: Spinning Up compares before it and so always reports 0.
        with th.no_grad():
            new_log_prob = self.policy.get_distribution(rollout.observations).log_prob(actions)

        losses_v = []
        for _ in range(self.train_v_iters):
            for batch in self._minibatches(self.batch_size):
                with frozen(actor):
                    loss_v = self._compiled(self._value_loss)(batch)
                self._descend(loss_v, (critic, vf_lr), max_grad_norm=self.max_grad_norm)
                losses_v.append(loss_v.detach())
        step = PolicyStep(
            loss=loss_pi.item(),
            new_loss=policy_loss(new_log_prob, phi).item(),
            entropy=entropy_mean.item(),
            approx_kl=functional.approx_kl_k1(new_log_prob, log_prob).item(),
        )
        return step, losses_v

    def _value_loss(self, batch: RolloutBufferSamples) -> th.Tensor:
        return value_loss(self.policy.predict_values(batch.observations).flatten(), batch.returns)  # eq. (4)

    def _step_on_engine(self, networks: ActorCritic, pi_lr: float, vf_lr: float) -> tuple[PolicyStep, list[float]]:
        """Do the same without torch."""
        networks.adam.begin()
        rollout = flattened(self.rollout_buffer, networks.observations)
        phi = rollout.advantages
        if self.normalize_advantage:
            phi = policy_gradient.normalized(phi, unbiased=False)
        list(policy_gradient.batches(rollout, None))  # the order that torch draws and a whole batch does not need
        step = policy_gradient.policy_step(networks, rollout, phi, self.ent_coef, self.max_grad_norm, pi_lr)
        losses_v = [
            policy_gradient.value_step(networks, batch, inf, self.max_grad_norm, vf_lr)
            for _ in range(self.train_v_iters)
            for batch in policy_gradient.batches(rollout, self.batch_size)
        ]
        return step, losses_v


def _with_defaults(policy_kwargs: dict[str, Any]) -> dict[str, Any]:
    """Lay ``policy_kwargs`` over Spinning Up's; Adam's ε is for Adam, so another optimiser goes without."""
    defaults = dict(SPINNING_UP_POLICY)
    if "optimizer_class" in policy_kwargs:
        del defaults["optimizer_kwargs"]
    return {**defaults, **policy_kwargs}
