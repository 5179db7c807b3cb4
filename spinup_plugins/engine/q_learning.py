"""Stable-Baselines3's ``TD3Policy`` on the engine: acting, and the gradient steps of TD3 and DDPG; what SAC shares with them.

Equations are those of the algorithms' own files; gradients are written beside the code that takes them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from operator import is_
from typing import Any, NamedTuple

import numpy as np
import torch as th
from stable_baselines3.common.policies import ContinuousCritic
from stable_baselines3.td3 import policies as td3
from stable_baselines3.td3.policies import TD3Policy
from torch import nn

from spinup_plugins.engine.networks import MLP, Adam, Floats, Memory, Shape, Tape, Unsupported, Wiring, readable, shape_of
from spinup_plugins.engine.observations import Observations, check_extractor, refuse_nan

__all__ = ["ActorCritic", "DeterministicActorCritic", "Transitions"]


class Transitions(NamedTuple):
    """A minibatch; actions are scaled to [−1, 1]."""

    observations: Floats  #: (B, in), what the networks read
    actions: Floats  #: (B, A)
    rewards: Floats  #: (B,), summed over n steps where the buffer does so
    next_observations: Floats  #: (B, in)
    dones: Floats  #: (B,), 1 at terminal states only
    discounts: Floats | float  #: γ, or (B,) with γ^n


class Workspace:
    """Arrays that a gradient step writes, for one batch size."""

    def __init__(self, batch: int, width: int, actions: int, params: int) -> None:
        #: what critics read, (B, in + A): s beside a, later beside the actor's action; and s' beside a'
        self.inputs, self.next_inputs = np.empty((2, batch, width + actions), dtype=np.float32)
        self.states, self.next_states = self.inputs[:, :width], self.next_inputs[:, :width]
        self.actions, self.next_actions = self.inputs[:, width:], self.next_inputs[:, width:]
        #: standard normal noise, (B, A) twice, on memory that torch's generator fills
        self.tensors = th.empty(batch, actions), th.empty(batch, actions)
        self.noise, self.next_noise = (tensor.numpy() for tensor in self.tensors)
        self.drawn, self.next_drawn, self.grad_actions, self.part = np.empty((4, batch, actions), dtype=np.float32)
        self.log_prob, self.next_log_prob, self.values, self.targets = np.empty((4, batch), dtype=np.float32)
        self.grad_values = np.empty((batch, 1), dtype=np.float32)
        self.ascent = np.full((batch, 1), -1.0 / batch, dtype=np.float32)  #: ∂(−mean Q)/∂Q
        self.grad_params = np.empty((batch, params), dtype=np.float32)


def _tensors(adam: Adam) -> list[th.Tensor]:
    """The optimiser's state: other tensors than before were loaded or replaced."""
    return [tensor for state in adam.optimizer.state.values() for tensor in state.values()]


class ActorCritic:
    """What both kinds of policy share: an actor, critics Q_i(s, a) and their targets on flat memory.

    :param policy: its parameters become views of the memories
    :param ops: one tier's primitives
    :raises Unsupported: when the policy is of another kind
    """

    #: networks of the policy that must be there, by name and class
    _kinds: dict[str, type[nn.Module]]
    _policy_classes: tuple[type[nn.Module], ...]

    def __init__(self, policy: Any, ops: Any) -> None:
        if type(policy) not in self._policy_classes:
            raise Unsupported(f"a policy of class {type(policy).__name__}")
        if getattr(policy.actor, "use_sde", False):
            raise Unsupported("gSDE")
        self.policy, self.ops = policy, ops
        self.observations = Observations(policy.observation_space, policy.normalize_images)
        for name, kind in self._kinds.items():
            network = getattr(policy, name)
            if type(network) is not kind:
                raise Unsupported(f"a network of class {type(network).__name__}")
            extractor: Any = network.features_extractor
            check_extractor(extractor)
        self.memories: tuple[Memory, ...] = ()  #: where the parameters are
        self._take_memory(policy)
        readable(policy)
        self.acting = Wiring([policy, *policy.actor.modules()], learning=False)
        self.wiring = Wiring(policy.modules(), learning=True)
        self.action_shape = policy.action_space.shape
        self.low, self.range = policy.action_space.low, policy.action_space.high - policy.action_space.low
        #: widths of what networks read, and of actions
        self.width, self.action_dim = int(self.actor.shape.sizes[0]), int(self.actor.shape.sizes[-1])
        self._workspaces: dict[int, Workspace] = {}

    def _take_memory(self, policy: Any) -> None:
        """Make the parameters views of flat memories, and share the optimisers' state."""
        shape, layers = self._actor_shape(policy.actor)
        critics, targets = ([shape_of([q]) for q in each.q_networks] for each in (policy.critic, policy.critic_target))
        if len({shape for shape, _ in (*critics, *targets)}) > 1:
            raise Unsupported("critics of unequal shapes")
        actor_memory, self.critic_memory, self.critic_target_memory = (
            Memory([(shape, layers)]),
            Memory(critics),
            Memory(targets),
        )
        self.memories += (actor_memory, self.critic_memory, self.critic_target_memory)
        self.actor_adam, self.critic_adam = (
            Adam(actor_memory, policy.actor.optimizer),
            Adam(self.critic_memory, policy.critic.optimizer),
        )
        #: the optimisers' state as we left it, ``None`` where it must be looked at again
        self._left: dict[Adam, list[th.Tensor] | None] = {self.actor_adam: None, self.critic_adam: None}
        self.actor = MLP(shape, actor_memory.array, self.actor_adam.grad)
        memory, grad = self.critic_memory, self.critic_adam.grad
        self.critics = [MLP(part, memory.part(i), memory.part(i, grad)) for i, (part, _) in enumerate(critics)]
        self.critic_targets = [MLP(part, self.critic_target_memory.part(i)) for i, (part, _) in enumerate(targets)]

    def _actor_shape(self, actor: Any) -> tuple[Shape, list[nn.Linear]]:
        raise NotImplementedError  # the algorithm's own

    def workspace(self, batch: int) -> Workspace:
        """Return the arrays for this batch size, made once."""
        found = self._workspaces.get(batch)
        if found is None:
            if len(self._workspaces) >= 4:
                self._workspaces.clear()
            found = Workspace(batch, self.width, self.action_dim, self.actor.tape(batch).output.shape[1])
            self._workspaces[batch] = found
        return found

    # --- acting ------------------------------------------------------------------------------------------------------

    def act(self, x: Floats, deterministic: bool) -> Floats:
        """Actions in [−1, 1], (N, A), for (N, in); may be overwritten by the next call."""
        raise NotImplementedError  # the algorithm's own

    def predict(self, observation: Any, deterministic: bool) -> Any | None:
        """What ``policy.predict`` returns for one observation or a batch; ``None`` for what else it may take."""
        prepared = self.observations.batch(observation)
        if prepared is None:
            return None
        x, several = prepared
        if not self.ops.finite(x):
            refuse_nan(x)
        actions = self.act(x, deterministic).reshape(-1, *self.action_shape)
        actions = self.low + (0.5 * (actions + 1.0) * self.range)  # BasePolicy.unscale_action
        return actions if several else actions[0]

    def tape(self, batch: int) -> Tape:
        """What critics write one after the other, so that it stays in the cache, where none is needed beyond the next."""
        return self.critics[0].tape(batch)

    # --- learning ----------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Take over, before some gradient steps, what others may have made of the optimisers' state."""
        for adam, left in self._left.items():
            if left is not None:
                held = _tensors(adam)
                if len(held) != len(left) or not all(map(is_, held, left)):
                    left = None
            if left is None:
                adam.begin()
                self._left[adam] = None

    def _smallest(self, critics: Sequence[MLP], inputs: Floats, out: Floats) -> None:
        """min_i Q_i of each row of (B, in + A), into (B,)."""
        forward, batch, tape = self.ops.mlp_forward, len(inputs), self.tape(len(inputs))
        for i, critic in enumerate(critics):
            values = forward(critic, tape, inputs).reshape(batch)
            if i == 0:
                out[:] = values
            else:
                np.minimum(out, values, out=out)

    def _descend(self, adam: Adam) -> None:
        adam.step(self.ops, 0, len(adam.memory.parameters), adam.optimizer.param_groups[0]["lr"])
        if self._left[adam] is None:
            self._left[adam] = _tensors(adam)

    def _critic_step(self, work: Workspace, batch: Transitions, next_values: Floats, coefficient: float) -> float:
        """y = r + γ (1 − d) V(s'), then a step down J(φ) = c Σ_i mean[ (Q_i(s, a) − y)² ], ∂J/∂Q_i = 2c (Q_i − y) / B.

        :param next_values: V(s'), (B,), overwritten
        :param coefficient: c
        :return: J(φ)
        """
        ops, size = self.ops, len(batch.rewards)
        targets = np.subtract(1.0, batch.dones, out=work.targets)
        targets *= batch.discounts
        targets *= next_values
        targets += batch.rewards
        loss, tape = 0.0, self.tape(size)
        for critic in self.critics:
            values = ops.mlp_forward(critic, tape, work.inputs).reshape(size)
            loss += ops.value_loss(values, targets, targets, math.inf, coefficient, work.grad_values.reshape(size))
            ops.mlp_backward(critic, tape, work.grad_values)
        self._descend(self.critic_adam)
        return coefficient * loss

    def _actor_step(self, grad_params: Floats) -> None:
        """Step the actor, whose last pass was on the batch, along ∂L/∂output, (B, heads · A)."""
        self.ops.mlp_backward(self.actor, self.actor.tape(len(grad_params)), grad_params)
        self._descend(self.actor_adam)


class DeterministicActorCritic(ActorCritic):
    """TD3's and DDPG's networks: μ(s) and its target besides the critics."""

    _policy_classes = (TD3Policy, td3.MultiInputPolicy)
    _kinds = {  # noqa: RUF012
        "actor": td3.Actor,
        "actor_target": td3.Actor,
        "critic": ContinuousCritic,
        "critic_target": ContinuousCritic,
    }

    def _take_memory(self, policy: Any) -> None:
        super()._take_memory(policy)
        shape, layers = self._actor_shape(policy.actor_target)
        if shape != self.actor.shape:
            raise Unsupported("actors of unequal shapes")
        self.actor_target_memory = Memory([(shape, layers)])
        self.memories += (self.actor_target_memory,)
        self.actor_target = MLP(shape, self.actor_target_memory.array)

    def _actor_shape(self, actor: Any) -> tuple[Shape, list[nn.Linear]]:
        return shape_of([actor.mu])

    def act(self, x: Floats, deterministic: bool) -> Floats:
        """μ(s), deterministic or not."""
        return self.ops.mlp_forward(self.actor, self.actor.tape(len(x)), x)  # type: ignore[no-any-return]

    def noise(self, batch: int) -> Floats:
        """ε of the smoothed target action, (B, A), drawn as ``randn_like`` draws it."""
        work = self.workspace(batch)
        work.tensors[0].normal_()
        return work.noise

    def update_critic(
        self, batch: Transitions, noise: Floats | None = None, scale: Floats | float = 0.0, clip: Floats | float = 0.0
    ) -> float:
        """One gradient step of the critics, eqs. (1)-(3) of :mod:`~spinup_plugins.algorithms.td3`, without noise of ``ddpg``.

        :param batch: transitions, which ``update_actor`` then reads too
        :param noise: ε / σ, (B, A); overwritten
        :param scale: σ, scalar or (A,)
        :param clip: c, scalar or (A,)
        :return: the critics' loss
        """
        ops, size = self.ops, len(batch.rewards)
        work = self.workspace(size)
        work.states[...], work.next_states[...] = batch.observations, batch.next_observations
        work.actions[...] = batch.actions
        actions = ops.mlp_forward(self.actor_target, self.actor.tape(size), batch.next_observations)
        if noise is not None:
            noise *= scale
            np.minimum(np.maximum(noise, np.negative(clip), out=noise), clip, out=noise)
            noise += actions
            actions = np.minimum(np.maximum(noise, -1.0, out=noise), 1.0, out=noise)
        work.next_actions[...] = actions
        self._smallest(self.critic_targets, work.next_inputs, work.values)
        return self._critic_step(work, batch, work.values, 1.0)

    def update_actor(self, batch: Transitions, tau: float) -> float:
        """One gradient step down −mean Q_1(s, μ(s)), ∂/∂Q_1 = −1/B, and of all targets; eqs. (4), (5) of TD3.

        :param batch: transitions that ``update_critic`` has just seen
        :param tau: τ
        :return: the actor's loss
        """
        ops, size = self.ops, len(batch.rewards)
        work, critic = self.workspace(size), self.critics[0]
        tape = critic.tape(size)
        work.actions[...] = ops.mlp_forward(self.actor, self.actor.tape(size), batch.observations)
        value = float(np.add.reduce(ops.mlp_forward(critic, tape, work.inputs).reshape(size))) / size
        ops.mlp_input_gradient(critic, tape, None, work.ascent, self.width, work.grad_actions)
        self._actor_step(work.grad_actions)
        ops.polyak(self.critic_memory.array, self.critic_target_memory.array, tau)
        ops.polyak(self.actor.theta, self.actor_target_memory.array, tau)
        return -value
