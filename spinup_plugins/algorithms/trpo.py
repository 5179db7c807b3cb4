"""Trust region policy optimisation (TRPO), and the natural policy gradient (NPG).

Schulman et al. 2015 (arXiv:1502.05477), appendix C; Kakade 2001 for the natural gradient. At θ_k, with advantages A_t:

    (1)  L(θ) = mean_t ρ_t A_t,  ρ_t = π_θ(a_t|s_t) / π_k(a_t|s_t)              the surrogate, to be raised
    (2)  D(θ) = mean_t KL( π_θ(·|s_t) ‖ π_k(·|s_t) ) ≤ δ                        the trust region
    (3)  H v = ∇( ∇D · v ) + c v                                                Fisher-vector product, damped
    (4)  H x = ∇L(θ_k)                                                          solved by conjugate gradient
    (5)  θ = θ_k + α^j √(2δ / xᵀHx) x                                           j = 0, 1, … until L rises and D < δ

The paper has KL(π_k ‖ π_θ) in (2); both have the same Hessian at θ_k, the Fisher matrix. NPG takes (5) with j = 0, unchecked.
D is the divergence of the *joint* action distribution: the sum over action dimensions. sb3-contrib averages over them, so that
its region is ``act_dim`` times as large: ``kl_reduction="mean"``.
"""

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal, TypeAlias

import numpy as np
import torch as th
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.distributions import Distribution, kl_divergence
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import GymEnv, RolloutBufferSamples, Schedule
from stable_baselines3.common.utils import FloatSchedule, explained_variance
from torch.nn import Parameter
from torch.nn import functional as F
from torch.utils._pytree import tree_map

from spinup_plugins.algorithms import functional
from spinup_plugins.algorithms.common import choice, frozen, mean
from spinup_plugins.algorithms.on_policy import SPINNING_UP_POLICY, AdvantageNorm, OnPolicy, ValueTarget, flat_actions
from spinup_plugins.engine import actor_critic as engine
from spinup_plugins.engine import policy_gradient
from spinup_plugins.engine.actor_critic import ActorCritic, Rollout, flattened
from spinup_plugins.engine.tiers import EngineName
from spinup_plugins.errors import ConfigError

__all__ = ["SPINNING_UP", "TRPO", "conjugate_gradient", "mean_kl", "surrogate"]

SPINNING_UP: dict[str, Any] = {
    "learning_rate": 1e-3,
    "n_steps": 4000,
    "batch_size": None,
    "gamma": 0.99,
    "gae_lambda": 0.97,
    "target_kl": 0.01,
    "cg_max_steps": 10,
    "cg_damping": 0.1,
    "cg_init_std": 0.0,
    "cg_residual_tol": 0.0,
    "line_search_shrinking_factor": 0.8,
    "line_search_max_iter": 10,
    "n_critic_updates": 80,
    "normalize_advantage": "batch",
    "value_target": "rewards_to_go",
    "reset_on_rollout": True,
    "policy_kwargs": SPINNING_UP_POLICY,
}


KLReduction: TypeAlias = Literal["sum", "mean"]


def surrogate(log_prob: th.Tensor, old_log_prob: th.Tensor, advantages: th.Tensor) -> th.Tensor:
    """Eq. (1).

    :param log_prob: log π_θ(a_t|s_t), (B,)
    :param old_log_prob: log π_k(a_t|s_t), (B,)
    :param advantages: A_t, (B,)
    :return: scalar
    """
    return (advantages * th.exp(log_prob - old_log_prob)).mean()


def mean_kl(distribution: Distribution, old_distribution: Distribution, reduction: KLReduction = "sum") -> th.Tensor:
    """Eq. (2).

    :param distribution: π_θ(·|s_t), batch of B
    :param old_distribution: π_k(·|s_t), batch of B
    :param reduction: ``"sum"`` over action dimensions for the joint divergence, ``"mean"`` for sb3-contrib's
    :return: scalar, nats
    """
    kl = kl_divergence(distribution, old_distribution)  # (B, A) for Gaussian and Bernoulli, (B,) for categorical
    if reduction == "sum" and kl.dim() > 1:
        kl = kl.sum(dim=1)
    return kl.mean()


def conjugate_gradient(
    product: Callable[[th.Tensor], th.Tensor], b: th.Tensor, x: th.Tensor, max_steps: int, tolerance: float = 1e-10
) -> th.Tensor:
    """Solve H x = b for symmetric positive definite H; Hestenes & Stiefel 1952.

    :param product: v ↦ H v, both (P,)
    :param b: right-hand side, (P,)
    :param x: first guess, (P,)
    :param max_steps: at most so many products after the first
    :param tolerance: stop once ‖b − H x‖² is below; 0 takes every step, each denominator guarded by 1e-8
    :return: (P,)
    """
    guard = 0.0 if tolerance > 0.0 else functional.EPSILON
    residual = b - product(x)
    residual_norm = residual.dot(residual)
    direction = residual
    for _ in range(max_steps):
        if residual_norm <= tolerance:
            break
        h_direction = product(direction)
        step = residual_norm / (direction.dot(h_direction) + guard)
        x = x + step * direction
        residual = residual - step * h_direction
        last_norm, residual_norm = residual_norm, residual.dot(residual)
        direction = residual + (residual_norm / last_norm) * direction
    return x


class TRPO(OnPolicy):
    """Trust region policy optimisation; constructor, defaults and zips are sb3-contrib's, the trust region is the joint KL.

    A zip written by sb3-contrib goes on training under the region it was trained with: ``kl_reduction="mean"``.

    :param policy: ``"MlpPolicy"``, ``"CnnPolicy"``, ``"MultiInputPolicy"`` or a subclass of SB3's ``ActorCriticPolicy``
    :param env: environment, vec-env, or the id of a registered one
    :param learning_rate: the value function's learning rate, or a schedule of the remaining progress (1 → 0)
    :param n_steps: steps per environment in each rollout
    :param batch_size: the value function's minibatch size, ``None`` for the whole rollout at once
    :param gamma: discount factor γ
    :param cg_max_steps: conjugate gradient iterations
    :param cg_damping: c of eq. (3)
    :param line_search_shrinking_factor: α of eq. (5)
    :param line_search_max_iter: steps j that the line search tries
    :param n_critic_updates: passes over the rollout that fit the value function
    :param gae_lambda: λ of generalised advantage estimation
    :param use_sde: use generalised state-dependent exploration instead of independent Gaussian noise
    :param sde_sample_freq: sample a new noise matrix every n steps, −1 for once per rollout
    :param rollout_buffer_class: rollout buffer, chosen by the observation space when ``None``
    :param rollout_buffer_kwargs: further arguments of the rollout buffer
    :param normalize_advantage: ``True``: zero mean and unit variance over the rollout; ``"batch"``: with the population's
        deviation, as Spinning Up; ``"minibatch"`` is the same as ``True`` here, the batch being whole; ``False``: not at all
    :param target_kl: δ in nats, or a schedule of the remaining progress (1 → 0)
    :param sub_sampling_factor: use every n-th step of the rollout for the policy's update
    :param stats_window_size: episodes that reported means are taken over
    :param tensorboard_log: directory of TensorBoard logs, ``None`` for none
    :param policy_kwargs: arguments of the policy
    :param verbose: 0 silent, 1 information, 2 debugging
    :param seed: seed of every random generator
    :param device: ``"cpu"``, ``"cuda"`` or ``"auto"``
    :param kl_reduction: ``"sum"``: D is the joint KL; ``"mean"``: its mean over action dimensions, as sb3-contrib
    :param natural_gradient: take the natural gradient step whole, without line search (NPG)
    :param cg_init_std: deviation of the conjugate gradient's random first guess, 0 to start from zero
    :param cg_residual_tol: squared residual at which the conjugate gradient stops, 0 to take all its steps
    :param engine: tier to act and learn on: ``"native"``, ``"numpy"``, ``"torch"``; ``"auto"`` takes the fastest that knows
        the policy
    :param n_threads: threads to compute with; ``None`` measures at the start of ``learn`` how many are fastest on the native
        tier, takes one on NumPy's, where results depend on their number, and torch's own number on torch's
    :param compile: True, or arguments of ``torch.compile``: compile losses and their gradients on torch's tier; other tiers
        use no torch
    """

    _file_mark: ClassVar[str] = "cg_max_steps"
    _replaced: ClassVar[tuple[str, ...]] = (*OnPolicy._replaced, "_step_policy", "_value_loss")

    def __init__(
        self,
        policy: str | type[ActorCriticPolicy],
        env: GymEnv | str,
        learning_rate: float | Schedule = 1e-3,
        n_steps: int = 2048,
        batch_size: int | None = 128,
        gamma: float = 0.99,
        cg_max_steps: int = 15,
        cg_damping: float = 0.1,
        line_search_shrinking_factor: float = 0.8,
        line_search_max_iter: int = 10,
        n_critic_updates: int = 10,
        gae_lambda: float = 0.95,
        use_sde: bool = False,
        sde_sample_freq: int = -1,
        rollout_buffer_class: type[RolloutBuffer] | None = None,
        rollout_buffer_kwargs: dict[str, Any] | None = None,
        normalize_advantage: AdvantageNorm = True,
        target_kl: float | Schedule = 0.01,
        sub_sampling_factor: int = 1,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "auto",
        _init_setup_model: bool = True,
        *,
        kl_reduction: KLReduction = "sum",
        natural_gradient: bool = False,
        cg_init_std: float = 1e-4,
        cg_residual_tol: float = 1e-10,
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
            ent_coef=0.0,
            vf_coef=0.0,
            max_grad_norm=0.0,
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
            value_target=value_target,
            reset_on_rollout=reset_on_rollout,
            engine=engine,
            n_threads=n_threads,
            compile=compile,
        )
        self.batch_size = batch_size
        self.cg_max_steps = cg_max_steps
        self.cg_damping = cg_damping
        self.line_search_shrinking_factor = line_search_shrinking_factor
        self.line_search_max_iter = line_search_max_iter
        self.n_critic_updates = n_critic_updates
        self.normalize_advantage = normalize_advantage
        self.target_kl = target_kl
        self.sub_sampling_factor = sub_sampling_factor
        self.kl_reduction = kl_reduction
        self.natural_gradient = natural_gradient
        self.cg_init_std = cg_init_std
        self.cg_residual_tol = cg_residual_tol
        self._check_rollout_size(batch_size, bool(normalize_advantage))

        if _init_setup_model:
            self._setup_model()

    @classmethod
    def _adopt(cls, saved: dict[str, Any]) -> dict[str, Any]:
        return {} if "kl_reduction" in saved else {"kl_reduction": "mean"}

    def _setup_model(self) -> None:
        choice("normalize_advantage", self.normalize_advantage, AdvantageNorm)
        choice("kl_reduction", self.kl_reduction, KLReduction)
        if not 0.0 < self.line_search_shrinking_factor < 1.0:
            raise ConfigError(
                f"TRPO: line_search_shrinking_factor={self.line_search_shrinking_factor!r} must be more than 0 and less than 1"
            )
        super()._setup_model()

    def train(self) -> None:
        """One trust-region step (5) on the current rollout, then ``n_critic_updates`` passes for the value function."""
        self._warn_if_constant()
        self.policy.set_training_mode(True)
        vf_lr, _ = self._learning_rates()
        # A number stays one in the zip, where contrib reads it.
        target_kl = max(0.0, self._scheduled("target_kl", FloatSchedule(self.target_kl)))
        bound = self._tier().bound
        if bound is None:
            region: TrustRegion | engine.TrustRegion = TrustRegion(self)
        else:
            bound.adam.begin()
            rollout = flattened(self.rollout_buffer, bound.observations)
            region = self._on_engine(bound, rollout)

        objective, kl, accepted = self._step_policy(region, target_kl)
        value_losses: list[Any] = []
        for _ in range(self.n_critic_updates):
            if bound is not None:
                value_losses += [
                    policy_gradient.value_step(bound, rows, math.inf, math.inf, vf_lr)
                    for rows in policy_gradient.batches(rollout, self.batch_size)
                ]
                continue
            for batch in self._minibatches(self.batch_size):
                with frozen(region.actor):  # type: ignore[union-attr]
                    value_loss = self._compiled(self._value_loss)(batch)
                self._descend(value_loss, (region.critic, vf_lr))  # type: ignore[union-attr]
                value_losses.append(value_loss.detach())

        self._n_updates += 1
        self.logger.record("train/policy_objective", objective)
        if value_losses:
            self.logger.record("train/value_loss", mean(value_losses))
        self.logger.record("train/kl_divergence_loss", kl)
        self.logger.record("train/is_line_search_success", float(accepted))
        if callable(self.target_kl):
            self.logger.record("train/target_kl", target_kl)
        self._record_policy(explained_variance(self.rollout_buffer.values.flatten(), self.rollout_buffer.returns.flatten()))

    def _value_loss(self, batch: RolloutBufferSamples) -> th.Tensor:
        return F.mse_loss(batch.returns, self.policy.predict_values(batch.observations).flatten())

    def _on_engine(self, networks: ActorCritic, rollout: Rollout) -> engine.TrustRegion:
        """Let the engine compute eqs. (1)-(3): the same numbers without torch."""
        order = np.random.permutation(len(rollout.actions))
        if self.normalize_advantage == "batch":
            rollout = rollout._replace(advantages=policy_gradient.normalized(rollout.advantages, unbiased=False))
        rows = Rollout(*(np.ascontiguousarray(part[order[:: self.sub_sampling_factor]]) for part in rollout))
        if self.normalize_advantage in (True, "minibatch"):
            rows = rows._replace(advantages=policy_gradient.normalized(rows.advantages))
        return engine.TrustRegion(networks, rows, self.kl_reduction == "mean")

    def _step_policy(self, region: Any, target_kl: float) -> tuple[float, float, bool]:
        """Move the actor by (5) or leave it where it was.

        :param region: :class:`TrustRegion`, or the engine's
        :param target_kl: δ in nats
        :return: the surrogate (1) and divergence (2) reached, and whether the step was taken
        """

        def product(vector: Any) -> Any:  # eq. (3)
            return region.fisher_product(vector) + self.cg_damping * vector

        guess = region.guess(self.cg_init_std)
        direction = conjugate_gradient(  # eq. (4)
            product, region.gradient, guess, self.cg_max_steps, self.cg_residual_tol
        )
        curvature = float(direction.dot(product(direction)))
        if not curvature > 0.0:  # a zero gradient has no direction
            return region.objective, 0.0, False

        step = math.sqrt(2.0 * target_kl / curvature) * direction
        for j in range(1 if self.natural_gradient else self.line_search_max_iter):
            objective, kl = region.evaluate(region.parameters + self.line_search_shrinking_factor**j * step)  # eq. (5)
            if self.natural_gradient or (kl < target_kl and objective > region.objective):
                return objective, kl, True
        region.restore()
        return region.objective, 0.0, False


class TrustRegion:
    """Surrogate (1) and divergence (2) around the current actor of ``model``, over flat vectors of its parameters, (P,)."""

    def __init__(self, model: TRPO) -> None:
        self.policy, self.kl_reduction = model.policy, model.kl_reduction
        rollout = next(model._minibatches(None))
        if model.normalize_advantage == "batch":
            rollout = model._normalized_by_batch(rollout)
        self.rollout = subsample(rollout, model.sub_sampling_factor)
        self.actions = flat_actions(self.rollout.actions, model.action_space)
        self.advantages = self.rollout.advantages
        if model.normalize_advantage in (True, "minibatch"):
            self.advantages = functional.normalize(self.advantages)

        with th.no_grad():
            # Policies hand out one distribution object and refill it.
            self.old_distribution = copy.copy(self.policy.get_distribution(self.rollout.observations))
        objective, kl = self._losses()
        parameters = [p for p in self.policy.parameters() if p.requires_grad]
        kl_gradients = th.autograd.grad(kl, parameters, create_graph=True, allow_unused=True)
        pairs = list(zip(parameters, kl_gradients, strict=True))
        self.actor, self.critic = [p for p, g in pairs if g is not None], [p for p, g in pairs if g is None]
        self._kl_gradient = _flat([g for g in kl_gradients if g is not None])
        self.gradient = _flat(th.autograd.grad(objective, self.actor, retain_graph=True))
        self.objective = objective.item()
        self.parameters = _flat([p.detach() for p in self.actor])

    def _losses(self) -> tuple[th.Tensor, th.Tensor]:
        distribution = self.policy.get_distribution(self.rollout.observations)
        objective = surrogate(distribution.log_prob(self.actions), self.rollout.old_log_prob, self.advantages)
        return objective, mean_kl(distribution, self.old_distribution, self.kl_reduction)

    def guess(self, deviation: float) -> th.Tensor:
        """Where the conjugate gradient starts."""
        return deviation * th.randn_like(self.gradient) if deviation else th.zeros_like(self.gradient)

    def fisher_product(self, vector: th.Tensor) -> th.Tensor:
        """Multiply by the divergence's Hessian at the current parameters, by differentiating twice."""
        return _flat(th.autograd.grad(self._kl_gradient.dot(vector), self.actor, retain_graph=True))

    def evaluate(self, parameters: th.Tensor) -> tuple[float, float]:
        """Move the actor; return surrogate and divergence there."""
        _assign(parameters, self.actor)
        with th.no_grad():
            objective, kl = self._losses()
        return objective.item(), kl.item()

    def restore(self) -> None:
        """Move the actor back."""
        _assign(self.parameters, self.actor)


def subsample(rollout: RolloutBufferSamples, factor: int) -> RolloutBufferSamples:
    """Keep every ``factor``-th row; Schulman's thesis (2016), pp. 40-42."""
    if factor == 1:
        return rollout
    return type(rollout)(*(tree_map(lambda x: x[::factor], part) for part in rollout))


def _flat(tensors: Sequence[th.Tensor]) -> th.Tensor:
    return th.cat([t.reshape(-1) for t in tensors])


def _assign(vector: th.Tensor, parameters: Sequence[Parameter]) -> None:
    """Write the flat ``vector`` into ``parameters``' own memory."""
    with th.no_grad():
        for parameter, part in zip(parameters, th.split(vector, [p.numel() for p in parameters]), strict=True):
            parameter.copy_(part.view_as(parameter))
