"""Stable-Baselines3's ``ActorCriticPolicy`` on the engine: acting, and the gradients that VPG, TRPO and PPO are made of."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer
from stable_baselines3.common.policies import ActorCriticPolicy, MultiInputActorCriticPolicy
from stable_baselines3.common.torch_layers import MlpExtractor
from torch import nn

from spinup_plugins.engine.heads import make_head
from spinup_plugins.engine.networks import MLP, Adam, Floats, Memory, Shape, Unsupported, Wiring, readable, shape_of
from spinup_plugins.engine.observations import Observations, check_extractor, refuse_nan

__all__ = ["ActorCritic", "Rollout", "flattened"]

#: parts of the memory, in order
LOG_STD, ACTOR, CRITIC = range(3)


class Rollout(NamedTuple):
    """A rollout, or rows of it."""

    observations: Floats  #: (B, in), what the networks read
    actions: Floats  #: (B, k)
    advantages: Floats  #: (B,)
    returns: Floats  #: (B,)
    values: Floats  #: (B,), when the rollout was collected
    log_probs: Floats  #: (B,), likewise

    def rows(self, indices: Any) -> Rollout:
        """Return some rows, in that order."""
        return Rollout(*(part[indices] for part in self))


def flattened(buffer: RolloutBuffer, observations: Observations) -> Rollout:
    """Return a full buffer's rows, environment by environment, leaving it as its own ``get`` would."""
    if not buffer.generator_ready:
        if isinstance(buffer, DictRolloutBuffer):
            for key, part in buffer.observations.items():
                buffer.observations[key] = buffer.swap_and_flatten(part)
        else:
            buffer.observations = buffer.swap_and_flatten(buffer.observations)
        for name in ("actions", "values", "log_probs", "advantages", "returns"):
            buffer.__dict__[name] = buffer.swap_and_flatten(buffer.__dict__[name])
        buffer.generator_ready = True
    rows = len(buffer.actions)
    return Rollout(
        observations.rows(buffer.observations),
        np.ascontiguousarray(buffer.actions.reshape(rows, -1), dtype=np.float32),
        *(
            np.ascontiguousarray(part.reshape(rows), dtype=np.float32)
            for part in (buffer.advantages, buffer.returns, buffer.values, buffer.log_probs)
        ),
    )


class ActorCritic:
    """An ``ActorCriticPolicy`` of perceptrons, bound to one tier's primitives.

    :param policy: its parameters become views of ``memory``
    :param ops: the primitives
    :raises Unsupported: when the policy is of another kind
    """

    def __init__(self, policy: Any, ops: Any) -> None:
        if type(policy) not in (ActorCriticPolicy, MultiInputActorCriticPolicy):
            raise Unsupported(f"a policy of class {type(policy).__name__}")
        if policy.use_sde:
            raise Unsupported("gSDE")
        extractors = {policy.features_extractor, policy.pi_features_extractor, policy.vf_features_extractor}
        for extractor in extractors:
            check_extractor(extractor)
        if type(policy.mlp_extractor) is not MlpExtractor:
            raise Unsupported(f"networks of class {type(policy.mlp_extractor).__name__}")
        self.policy, self.ops = policy, ops
        self.action_space = policy.action_space
        self.observations = Observations(policy.observation_space, policy.normalize_images)

        actor_shape, actor_layers = shape_of([policy.mlp_extractor.policy_net], heads=[policy.action_net])
        critic_shape, critic_layers = shape_of([policy.mlp_extractor.value_net], heads=[policy.value_net])
        log_std = getattr(policy, "log_std", None)
        parts: list[nn.Parameter | tuple[Shape, Any]] = [(actor_shape, actor_layers), (critic_shape, critic_layers)]
        # A part of no parameters stands for the log σ that other distributions than Gaussians do not have.
        parts.insert(0, log_std if log_std is not None else (Shape((0,)), []))
        self.memory = Memory(parts)
        self.adam = Adam(self.memory, policy.optimizer)

        grad = self.adam.grad
        self.actor = MLP(actor_shape, self.memory.part(ACTOR), self.memory.part(ACTOR, grad))
        self.critic = MLP(critic_shape, self.memory.part(CRITIC), self.memory.part(CRITIC, grad))
        self.own = 0 if log_std is None else log_std.numel()  #: floats of log σ, which begin the memory
        own = slice(self.own)
        self.head = make_head(ops, self.action_space, self.memory.part(LOG_STD)[own], self.memory.part(LOG_STD, grad)[own])
        #: parameters of the actor come first, those of the critic after
        self.actor_parameters = (0, (log_std is not None) + len(actor_layers) * 2)
        self.critic_parameters = (self.actor_parameters[1], len(self.memory.parameters))
        self.all_parameters = (0, len(self.memory.parameters))
        self._outputs: dict[tuple[str, int], Floats] = {}
        self.memories: tuple[Memory, ...] = (self.memory,)
        readable(policy)
        actor = (*policy.pi_features_extractor.modules(), policy.mlp_extractor, *policy.mlp_extractor.policy_net.modules())
        self.acting = Wiring([policy, *actor, policy.action_net], learning=False)
        self.wiring = Wiring(policy.modules(), learning=True)

    # --- acting ------------------------------------------------------------------------------------------------------

    def act(self, observations: Any) -> tuple[Any, Any, Floats, Floats]:
        """Draw actions for (N, …) observations, as ``policy(obs)`` does.

        :return: fresh arrays: actions (N, *action shape), the same within their bounds, V(s) (N,), log π(a|s) (N,)
        """
        return self.head.act(self.actor, self.critic, self.observations.rows(observations))

    def values(self, observations: Any) -> Floats:
        """V(s) of (N, …) observations; a fresh array, (N,)."""
        x = self.observations.rows(observations)
        return self.ops.mlp_forward(self.critic, self.critic.tape(len(x)), x).reshape(len(x)).copy()  # type: ignore[no-any-return]

    def predict(self, observation: Any, deterministic: bool) -> Any | None:
        """What ``policy.predict`` returns for one observation or a batch; ``None`` for what else it may take."""
        prepared = self.observations.batch(observation)
        if prepared is None:
            return None
        x, several = prepared
        if not self.ops.finite(x):
            refuse_nan(x)
        params = self.ops.mlp_forward(self.actor, self.actor.tape(len(x)), x)
        actions = self.head.draw(params, deterministic).reshape(-1, *self.action_space.shape)
        if isinstance(self.action_space, spaces.Box):
            actions = np.minimum(np.maximum(actions, self.action_space.low), self.action_space.high)
        return actions if several else actions.squeeze(axis=0)  # a Discrete action is an array, too

    # --- gradients ---------------------------------------------------------------------------------------------------

    def buffer(self, name: str, batch: int) -> Floats:
        """Return scratch of (batch,) under a name."""
        found = self._outputs.get((name, batch))
        if found is None:
            if len(self._outputs) > 64:
                self._outputs.clear()
            found = self._outputs[name, batch] = np.empty(batch, dtype=np.float32)
        return found

    def evaluate(self, rows: Rollout) -> tuple[Floats, Floats, float]:
        """Run the actor on some rows.

        :return: its output (B, n), log π(a|s) (B,), and the mean entropy
        """
        params = self.ops.mlp_forward(self.actor, self.actor.tape(len(rows.actions)), rows.observations)
        log_prob = self.buffer("log_prob", len(rows.actions))
        return params, log_prob, self.head.log_prob(params, rows.actions, log_prob)

    def actor_gradient(self, rows: Rollout, params: Floats, grad_log_prob: Floats, entropy: float) -> None:
        """Write the actor's gradient from ∂L/∂log π (B,) and ∂L/∂(mean entropy), right after ``evaluate``."""
        grad = self.buffer("params", params.size).reshape(params.shape)
        self.head.gradient(params, rows.actions, grad_log_prob, entropy, grad)
        self.ops.mlp_backward(self.actor, self.actor.tape(len(params)), grad)

    def critic_gradient(self, rows: Rollout, clip_range: float, coefficient: float) -> float:
        """Write the gradient of ``coefficient`` × the value loss; return the loss."""
        batch = len(rows.returns)
        tape = self.critic.tape(batch)
        values = self.ops.mlp_forward(self.critic, tape, rows.observations).reshape(batch)
        grad = self.buffer("values", batch)
        loss: float = self.ops.value_loss(values, rows.values, rows.returns, clip_range, coefficient, grad)
        self.ops.mlp_backward(self.critic, tape, grad.reshape(batch, 1))
        return loss

    def descend(self, max_grad_norm: float, *steps: tuple[tuple[int, int], float]) -> None:
        """Step ranges of adjoining parameters along the gradient in place, clipped together, each at its learning rate."""
        scale = 1.0
        if max_grad_norm != math.inf:
            bounds = self.memory.bounds
            norm = self.ops.norm(self.adam.grad[bounds[steps[0][0][0]] : bounds[steps[-1][0][1]]])
            scale = min(1.0, max_grad_norm / (norm + 1e-6))
        for (first, last), learning_rate in steps:
            self.adam.step(self.ops, first, last, learning_rate, scale)

    def guess(self, deviation: float) -> Floats:
        """Return Gaussian noise for the actor's parameters, drawn as torch draws one vector of all of them."""
        actor = range(*self.actor_parameters)
        numbers = [self.memory.parameters[i].numel() for i in actor]
        noise = deviation * th.randn(sum(numbers))
        flat = th.zeros(self.memory.size)
        views = self.memory.views(flat)
        for i, part in zip(actor, th.split(noise, numbers), strict=True):
            views[i].copy_(part.view_as(views[i]))
        return flat.numpy()[: self.memory.starts[CRITIC]]

    @property
    def theta(self) -> Floats:
        """The actor's parameters, log σ first: the memory itself."""
        return self.memory.array[: self.memory.starts[CRITIC]]

    @property
    def gradient(self) -> Floats:
        """Their gradient in place."""
        return self.adam.grad[: self.memory.starts[CRITIC]]


class TrustRegion:
    """TRPO's surrogate and divergence around the current actor, over flat vectors of its parameters.

    Divergence is Kullback and Leibler's between action distributions, averaged over the rows.

    :param networks: whose actor it is
    :param rows: (B, …), advantages normalised where they are to be
    :param mean: whether the divergence is averaged over action dimensions
    """

    def __init__(self, networks: ActorCritic, rows: Rollout, mean: bool) -> None:
        self.networks, self.rows, self.mean = networks, rows, mean
        self.advantages = advantages = rows.advantages
        batch = len(advantages)
        params, log_prob, _ = networks.evaluate(rows)
        self.old = networks.head.freeze(params)
        ascent = networks.buffer("grad_log_prob", batch)
        loss, *_ = networks.ops.surrogate(log_prob, rows.log_probs, advantages, math.inf, False, ascent)
        self.objective = -loss  #: the surrogate at the current parameters
        np.negative(ascent, out=ascent)
        networks.actor_gradient(rows, params, ascent, 0.0)
        self.gradient = networks.gradient.copy()  #: of the surrogate, (P,)
        self.parameters = networks.theta.copy()  #: the current parameters, (P,)
        self._directions = networks.actor.tape(batch, slot=1)

    def guess(self, deviation: float) -> Floats:
        """Where the conjugate gradient starts, (P,)."""
        return self.networks.guess(deviation) if deviation else np.zeros_like(self.gradient)

    def fisher_product(self, vector: Floats) -> Floats:
        """Jᵀ M J v: forward through the network, M in the distribution's parameters, backward; both (P,).

        At π = π_old the divergence's Hessian is its Gauss-Newton form, since its gradient vanishes there. Call it before
        the parameters are moved.
        """
        networks = self.networks
        tape = networks.actor.tape(len(self.advantages))
        d_params = networks.ops.mlp_jvp(networks.actor, tape, vector[networks.memory.starts[ACTOR] :], self._directions)
        own = slice(networks.own)
        grad = networks.buffer("params", d_params.size).reshape(d_params.shape)
        networks.head.fisher(self.old, d_params, vector[own], self.mean, grad, networks.gradient[own])
        networks.ops.mlp_backward(networks.actor, tape, grad)
        return networks.gradient.copy()

    def evaluate(self, parameters: Floats) -> tuple[float, float]:
        """Move the actor to (P,) parameters; return the surrogate and the divergence there."""
        self.networks.theta[:] = parameters
        params, log_prob, _ = self.networks.evaluate(self.rows)
        scratch = self.networks.buffer("grad_log_prob", len(self.advantages))
        loss, *_ = self.networks.ops.surrogate(log_prob, self.rows.log_probs, self.advantages, math.inf, False, scratch)
        return -loss, self.networks.head.kl(params, self.old, self.mean)

    def restore(self) -> None:
        """Move the actor back to where it was."""
        self.networks.theta[:] = self.parameters
