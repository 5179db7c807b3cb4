"""Stable-Baselines3's ``SACPolicy`` on the engine: acting, and SAC's gradient step.

Equations are those of the algorithm's own file; gradients are written beside the code that takes them.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.policies import ContinuousCritic
from stable_baselines3.sac import policies as sac
from stable_baselines3.sac.policies import SACPolicy
from torch import nn

from spinup_plugins.engine.networks import Floats, Shape, StandardNormal, Unsupported, check_adam, shape_of
from spinup_plugins.engine.q_learning import ActorCritic, Transitions, Workspace

__all__ = ["SoftActorCritic", "Temperature"]


class SoftActorCritic(ActorCritic):
    """SAC's networks; its actor's output is μ beside log σ."""

    _policy_classes = (SACPolicy, sac.MultiInputPolicy)
    _kinds = {"actor": sac.Actor, "critic": ContinuousCritic, "critic_target": ContinuousCritic}  # noqa: RUF012

    def __init__(self, policy: Any, ops: Any) -> None:
        super().__init__(policy, ops)
        self._noise = StandardNormal(self.action_dim)

    def _actor_shape(self, actor: Any) -> tuple[Shape, list[nn.Linear]]:
        return shape_of([actor.latent_pi], heads=[actor.mu, actor.log_std])

    def act(self, x: Floats, deterministic: bool) -> Floats:
        """tanh(μ), or tanh(μ + σ ε) with the noise that ``Normal.rsample`` would draw."""
        batch, size = len(x), self.action_dim
        params = self.ops.mlp_forward(self.actor, self.actor.tape(batch), x)
        if deterministic:
            return np.tanh(params[:, :size])  # type: ignore[no-any-return]
        noise = self._noise.draw(batch)
        u: Floats = np.minimum(np.maximum(params[:, size:], -20.0), 2.0)
        np.exp(u, out=u)
        u *= noise
        u += params[:, :size]
        np.tanh(u, out=u)
        return u

    def noise(self, batch: int) -> tuple[Floats, Floats]:
        """ε for ã ~ π(·|s) and for a' ~ π(·|s'), (B, A) each, drawn as ``randn_like`` draws them one after the other."""
        work = self.workspace(batch)
        for tensor in work.tensors:
            tensor.normal_()
        return work.noise, work.next_noise

    def update(
        self,
        batch: Transitions,
        noise: tuple[Floats, Floats],
        ent_coef: Temperature | float,
        *,
        exact: bool,
        critic_loss_coef: float,
        tau: float | None,
    ) -> dict[str, float]:
        """One gradient step of everything, eqs. (1)-(5) of :mod:`spinup_plugins.algorithms.sac`.

        :param batch: transitions
        :param noise: ε and ε', (B, A) each
        :param ent_coef: α, learnt or fixed
        :param exact: which correction of log π
        :param critic_loss_coef: c of eq. (3)
        :param tau: τ of eq. (5); ``None`` where it is not this step's turn
        :return: losses and α
        """
        ops, actor, size = self.ops, self.actor, len(batch.rewards)
        work, metrics = self.workspace(size), dict[str, float]()
        work.states[...], work.next_states[...] = batch.observations, batch.next_observations
        work.actions[...] = batch.actions

        # The pass on s' comes first: the tape is left with the one on s, which the backward pass is for.
        tape = actor.tape(size)
        params = ops.mlp_forward(actor, tape, batch.next_observations)
        ops.squash(params, noise[1], exact, work.next_drawn, work.next_log_prob)
        params = ops.mlp_forward(actor, tape, batch.observations)
        ops.squash(params, noise[0], exact, work.drawn, work.log_prob)

        log_prob = float(np.add.reduce(work.log_prob)) / size
        if isinstance(ent_coef, Temperature):
            alpha, metrics["ent_coef_loss"] = ent_coef.update(log_prob)  # eq. (1)
        else:
            alpha = ent_coef

        work.next_actions[...] = work.next_drawn
        self._smallest(self.critic_targets, work.next_inputs, work.values)
        work.next_log_prob *= np.float32(alpha)
        work.values -= work.next_log_prob
        loss_q = self._critic_step(work, batch, work.values, critic_loss_coef)  # eqs. (2), (3)

        # Eq. (4): ∂L/∂Q_i = −1/B in the rows where Q_i is the smallest, the first of equals; ∂L/∂log π = α/B.
        work.actions[...] = work.drawn
        value = self._min_q_gradient(work)
        grad = work.grad_params
        ops.squash_gradient(params, noise[0], work.drawn, exact, work.grad_actions, alpha / size, grad)
        self._actor_step(grad)

        if tau is not None:
            ops.polyak(self.critic_memory.array, self.critic_target_memory.array, tau)  # eq. (5)
        metrics |= {"ent_coef": alpha, "actor_loss": alpha * log_prob - value, "critic_loss": loss_q}
        return metrics

    def _min_q_gradient(self, work: Workspace) -> float:
        """Gradient of −mean min_i Q_i(s, ã) with respect to ã, into ``work.grad_actions``; returns mean min_i Q_i."""
        ops, critics, size, first = self.ops, self.critics, len(work.inputs), self.width
        tapes = [critic.tape(size) for critic in critics]
        values = [ops.mlp_forward(critic, tape, work.inputs) for critic, tape in zip(critics, tapes, strict=True)]
        if len(critics) == 1:
            ops.mlp_input_gradient(critics[0], tapes[0], None, work.ascent, first, work.grad_actions)
            return float(np.add.reduce(values[0].reshape(size))) / size
        if len(critics) == 2:
            second = np.greater(values[0], values[1]).reshape(size)
            which = [np.flatnonzero(~second), np.flatnonzero(second)]
        else:
            smallest = np.argmin(np.concatenate(values, axis=1), axis=1)
            which = [np.flatnonzero(smallest == i) for i in range(len(critics))]
        total = 0.0
        for critic, tape, rows, q in zip(critics, tapes, which, values, strict=True):
            count = len(rows)
            if count == size:
                ops.mlp_input_gradient(critic, tape, None, work.ascent, first, work.grad_actions)
            elif count:
                part = work.part[:count]
                ops.mlp_input_gradient(critic, tape, rows, work.ascent[:count], first, part)
                work.grad_actions[rows] = part
            total += float(np.add.reduce(q.reshape(size)[rows]))
        return total / size


class Temperature:
    """α of SAC, learnt on the memory of torch's own log α and optimiser.

    :param ops: one tier's primitives
    :param log_ent_coef: log α, (1,)
    :param optimizer: its optimiser
    :param target_entropy: H̄, nats
    """

    def __init__(self, ops: Any, log_ent_coef: th.Tensor, optimizer: th.optim.Optimizer, target_entropy: float) -> None:
        state: dict[str, th.Tensor] = optimizer.state[log_ent_coef]
        if not state:  # as Adam itself begins
            zeros = (th.zeros_like(log_ent_coef, requires_grad=False) for _ in range(2))
            state.update(zip(("step", "exp_avg", "exp_avg_sq"), (th.tensor(0.0), *zeros), strict=True))
        self.adam, self.target_entropy = ops.adam, target_entropy
        self.log_alpha: Floats = log_ent_coef.detach().numpy()
        self.step, self.first, self.second = (state[key].numpy() for key in ("step", "exp_avg", "exp_avg_sq"))
        self.group = optimizer.param_groups[0]
        self.grad = np.empty(1, dtype=np.float32)

    @staticmethod
    def check(log_ent_coef: th.Tensor | None, optimizer: th.optim.Optimizer | None) -> None:
        """Raise :class:`Unsupported` for what cannot be learnt here; ``None`` is not learnt at all."""
        if log_ent_coef is None or optimizer is None:
            return
        try:
            check_adam(optimizer)
        except Unsupported:
            raise Unsupported("the optimiser of the temperature") from None
        if optimizer.param_groups[0]["params"][0] is not log_ent_coef:
            raise Unsupported("the optimiser of the temperature")

    def update(self, log_prob: float) -> tuple[float, float]:
        """One step of eq. (1): J = −log α (mean log π + H̄), ∂J/∂log α = −(mean log π + H̄).

        :param log_prob: mean log π of the batch
        :return: α before the step, and J
        """
        log_alpha, group = float(self.log_alpha[0]), self.group
        gradient = -(log_prob + self.target_entropy)
        self.grad[0] = gradient
        self.step += 1.0
        beta1, beta2 = group["betas"]
        vectors = (self.log_alpha, self.grad, self.first, self.second)
        self.adam(*vectors, float(self.step), group["lr"], beta1, beta2, group["eps"], 1.0)
        return math.exp(log_alpha), log_alpha * gradient
