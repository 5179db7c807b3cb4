"""The updates of VPG and PPO over the engine's primitives; TRPO's is :class:`~.actor_critic.TrustRegion`."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from spinup_plugins.engine.actor_critic import ActorCritic, Rollout
from spinup_plugins.engine.networks import Floats

__all__ = ["ClippedSurrogate", "Losses", "PolicyStep", "batches", "normalized", "policy_step", "value_step"]


class Losses(NamedTuple):
    """One minibatch's scalars."""

    total: float
    policy: float
    value: float | None
    entropy: float  #: −H
    approx_kl: float
    clip_fraction: float


def batches(rollout: Rollout, batch_size: int | None) -> Iterator[Rollout]:
    """Yield the rollout in random order, ``batch_size`` rows at a time; in the order that a ``RolloutBuffer`` would.

    Rows are gathered once; a batch of all of them needs no order.
    """
    rows = len(rollout.actions)
    order = np.random.permutation(rows)
    if batch_size is None or batch_size >= rows:
        yield rollout
        return
    shuffled = rollout.rows(order)
    for start in range(0, rows, batch_size):
        yield shuffled.rows(slice(start, start + batch_size))


class ClippedSurrogate:
    """PPO's gradients: −mean min(ρ A, clip(ρ, 1 ± ε) A) + c_V L_V − c_H H and its parts.

    :param networks: what is trained
    :param rollout: on what
    :param clip_range: ε
    :param clip_range_vf: ε_V, infinity for no clipping
    :param normalize: normalise the advantages of each batch
    :param ent_coef: c_H
    :param vf_coef: c_V, ``None`` to leave the critic out
    :param k1: estimate the divergence by E[−log ρ] rather than E[(ρ − 1) − log ρ]
    :param max_grad_norm: clip gradients to this norm
    :param rates: learning rates of actor and critic
    """

    def __init__(
        self,
        networks: ActorCritic,
        rollout: Rollout,
        *,
        clip_range: float,
        clip_range_vf: float,
        normalize: bool,
        ent_coef: float,
        vf_coef: float | None,
        k1: bool,
        max_grad_norm: float,
        rates: tuple[float, float],
    ) -> None:
        self.networks, self.rollout, self.rates = networks, rollout, rates
        self.clip_range, self.clip_range_vf, self.normalize = clip_range, clip_range_vf, normalize
        self.ent_coef, self.vf_coef, self.k1, self.max_grad_norm = ent_coef, vf_coef, k1, max_grad_norm
        actor, critic = (networks.actor_parameters, rates[0]), (networks.critic_parameters, rates[1])
        if vf_coef is None:
            self.steps = [actor]
        else:
            self.steps = [(networks.all_parameters, rates[0])] if rates[0] == rates[1] else [actor, critic]
        networks.adam.begin()

    def batches(self, batch_size: int | None) -> Iterator[Rollout]:
        """Yield the rollout's rows in a new random order, ``batch_size`` at a time, ``None`` for all at once."""
        return batches(self.rollout, batch_size)

    def fit_values(self, rows: Rollout) -> float:
        """Step the critic alone; return the value loss before it."""
        return value_step(self.networks, rows, self.clip_range_vf, self.max_grad_norm, self.rates[1])

    def losses(self, rows: Rollout) -> Losses:
        """Evaluate a minibatch, leaving its gradient to ``descend``."""
        networks = self.networks
        params, log_prob, entropy = networks.evaluate(rows)
        self._rows, self._params = rows, params
        self._grad = networks.buffer("grad_log_prob", len(log_prob))
        policy, k3, k1, clipped = networks.ops.surrogate(
            log_prob, rows.log_probs, rows.advantages, self.clip_range, self.normalize, self._grad
        )
        total, value = policy - self.ent_coef * entropy, None
        if self.vf_coef is not None:
            value = networks.critic_gradient(rows, self.clip_range_vf, self.vf_coef)
            total += self.vf_coef * value
        return Losses(total, policy, value, -entropy, k1 if self.k1 else k3, clipped)

    def descend(self) -> None:
        """Step down the loss of the minibatch just evaluated."""
        self.networks.actor_gradient(self._rows, self._params, self._grad, -self.ent_coef)
        self.networks.descend(self.max_grad_norm, *self.steps)


def value_step(networks: ActorCritic, rows: Rollout, clip_range: float, max_grad_norm: float, learning_rate: float) -> float:
    """Step the critic alone down mean (V − R̂)²; return the loss before the step.

    :param clip_range: keep V within this of its old value, infinity for no clipping
    """
    loss = networks.critic_gradient(rows, clip_range, 1.0)
    networks.descend(max_grad_norm, (networks.critic_parameters, learning_rate))
    return loss


class PolicyStep(NamedTuple):
    """What one step of VPG's policy did."""

    loss: float  #: −mean log π Φ before it
    new_loss: float  #: and after it
    entropy: float  #: before it
    approx_kl: float  #: E[log π_old − log π]


def policy_step(
    networks: ActorCritic, rows: Rollout, phi: Floats, ent_coef: float, max_grad_norm: float, learning_rate: float
) -> PolicyStep:
    """Step the actor once down −mean log π Φ − c_H H.

    :param phi: Φ, (B,)
    """
    params, log_prob, entropy = networks.evaluate(rows)
    old_log_prob = log_prob.copy()
    batch = len(phi)
    networks.actor_gradient(rows, params, phi * np.float32(-1.0 / batch), -ent_coef)
    networks.descend(max_grad_norm, (networks.actor_parameters, learning_rate))
    _, log_prob, _ = networks.evaluate(rows)
    return PolicyStep(
        loss=-float(np.dot(old_log_prob, phi)) / batch,
        new_loss=-float(np.dot(log_prob, phi)) / batch,
        entropy=entropy,
        approx_kl=float((old_log_prob - log_prob).mean()),
    )


def normalized(x: Floats, *, unbiased: bool = True) -> Floats:
    """(x − mean) / (std + 1e-8), (B,)."""
    centred = x - np.float32(x.mean())
    count = len(x) - int(unbiased)
    deviation = math.sqrt(float(np.dot(centred, centred)) / count) if count else math.nan
    return centred / np.float32(deviation + 1e-8)
