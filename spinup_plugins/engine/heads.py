"""What an on-policy network's output means: the action distributions of Stable-Baselines3's ``ActorCriticPolicy``.

Draws come from torch's global generator by the very calls that torch's distributions make, so that a seed gives the actions
that it gives there. ``params`` is the network's output, (B, n).
"""

from __future__ import annotations

import itertools
import math
from typing import Any, Protocol

import numpy as np
import torch as th
from gymnasium import spaces

from spinup_plugins.engine.networks import MLP, Floats, StandardNormal, Unsupported

__all__ = ["Bernoulli", "Categorical", "Gaussian", "Head", "make_head"]

F = np.float32


class Head(Protocol):
    """A family of action distributions. Actions inside are (B, k) floats, as a rollout buffer holds them."""

    def draw(self, params: Floats, deterministic: bool) -> Any:
        """Return actions, (B, k) in the dtype that the policy returns: freshly made."""

    def act(self, actor: MLP, critic: MLP, x: Floats) -> tuple[Any, Any, Floats, Floats]:
        """Draw actions for what the networks read, (B, in).

        :return: fresh arrays: actions (B, *shape of the space's), the same within its bounds, V(s) (B,), log π(a|s) (B,)
        """

    def log_prob(self, params: Floats, actions: Floats, out: Floats) -> float:
        """Write log π(a|s), (B,); return the batch's mean entropy."""

    def gradient(self, params: Floats, actions: Floats, grad_log_prob: Floats, entropy: float, grad_params: Floats) -> None:
        """Write ∂L/∂params from ∂L/∂log π, (B,), and ∂L/∂(mean entropy); call it right after ``log_prob``.

        The gradient of parameters that are no network's, log σ, goes to where the head was told to put it.
        """

    def freeze(self, params: Floats) -> Any:
        """Return what ``kl`` needs of a distribution that is about to change."""

    def kl(self, params: Floats, old: Any, mean: bool) -> float:
        """Mean over the batch of KL(π‖π_old), summed over action dimensions, or their ``mean``."""

    def fisher(self, old: Any, d_params: Floats, d_own: Floats, mean: bool, grad_params: Floats, grad_own: Floats) -> None:
        """Multiply a direction by the Hessian of ``kl`` in the distribution's parameters, at π = π_old.

        :param d_params: (B, n)
        :param d_own: direction of log σ, empty without it
        :param grad_params: product, (B, n)
        :param grad_own: product of log σ
        """


class Gaussian:
    """Independent Gaussians, N(μ(s), σ): the output is μ; log σ is a parameter of its own.

    :param ops: primitives
    :param space: of the actions
    :param log_std: log σ, (A,)
    :param grad_log_std: where its gradient goes, (A,)
    """

    def __init__(self, ops: Any, space: spaces.Box, log_std: Floats, grad_log_std: Floats) -> None:
        self.ops, self.space, self.log_std, self.grad_log_std = ops, space, log_std, grad_log_std
        self._noise = StandardNormal(log_std.size)
        #: bounds that the primitive keeps; those of other precision it does not know
        self._single = space.dtype == np.float32
        bounds = (space.low, space.high) if self._single else (np.full(space.shape, -np.inf), np.full(space.shape, np.inf))
        self._low, self._high = (np.ascontiguousarray(bound, dtype=np.float32).reshape(1, -1) for bound in bounds)

    def draw(self, params: Floats, deterministic: bool) -> Any:
        """By the primitive, from noise as ``Normal.rsample`` draws it."""
        if deterministic:
            return params.copy()
        actions, log_probs = np.empty_like(params), np.empty(len(params), dtype=np.float32)
        self.ops.gaussian_draw(params, self.log_std, self._noise.draw(len(params)), actions, log_probs)
        return actions

    def act(self, actor: MLP, critic: MLP, x: Floats) -> tuple[Any, Any, Floats, Floats]:  # noqa: D102
        batch = len(x)
        shape = (batch, *self.space.shape)
        actions, inside, values, log_probs = np.empty(shape, F), np.empty(shape, F), np.empty(batch, F), np.empty(batch, F)
        noise = self._noise.draw(batch)
        self.ops.gaussian_act(actor, critic, x, values, self.log_std, noise, self._low, self._high, actions, inside, log_probs)
        if not self._single:
            inside = np.minimum(np.maximum(actions, self.space.low), self.space.high)
        return actions, inside, values, log_probs

    def log_prob(self, params: Floats, actions: Floats, out: Floats) -> float:  # noqa: D102
        self.ops.gaussian_log_prob(params, self.log_std, actions, out)
        return float(self.log_std.sum()) + (0.5 + 0.5 * math.log(2.0 * math.pi)) * self.log_std.size

    def gradient(  # noqa: D102
        self, params: Floats, actions: Floats, grad_log_prob: Floats, entropy: float, grad_params: Floats
    ) -> None:
        self.ops.gaussian_gradient(params, self.log_std, actions, grad_log_prob, entropy, grad_params, self.grad_log_std)

    def freeze(self, params: Floats) -> tuple[Floats, Floats]:  # noqa: D102
        return params.copy(), self.log_std.copy()

    def kl(self, params: Floats, old: tuple[Floats, Floats], mean: bool) -> float:
        """Σ_i log(σ'_i/σ_i) + (σ_i² + (μ_i − μ'_i)²) / 2σ'_i² − ½, with ' for the old."""
        old_mean, old_log_std = old
        inverse = np.exp(-2.0 * old_log_std)
        distance = float(np.einsum("ij,ij,j->", d := params - old_mean, d, inverse)) / (2.0 * len(params))
        widths = old_log_std - self.log_std + 0.5 * np.exp(2.0 * (self.log_std - old_log_std)) - 0.5
        return (distance + float(widths.sum())) / (len(widths) if mean else 1)

    def fisher(
        self, old: tuple[Floats, Floats], d_params: Floats, d_own: Floats, mean: bool, grad_params: Floats, grad_own: Floats
    ) -> None:
        """diag(1/σ²) for μ, 2 for log σ."""
        scale = 1.0 / (len(self.log_std) if mean else 1)
        np.multiply(d_params, np.exp(-2.0 * old[1]) * np.float32(scale / len(d_params)), out=grad_params)
        np.multiply(d_own, np.float32(2.0 * scale), out=grad_own)


class Categorical:
    """One choice, or several independent ones side by side: the output is their logits.

    :param ops: primitives
    :param nvec: number of options of each choice
    :param scalar: whether actions are numbers (Discrete) rather than rows (MultiDiscrete)
    """

    def __init__(self, ops: Any, nvec: list[int], scalar: bool) -> None:
        self.ops, self.scalar = ops, scalar
        self.nvec = np.array(nvec, dtype=np.int32)
        self.starts = np.concatenate([[0], np.cumsum(self.nvec)]).tolist()
        self._log_softmax: dict[int, Floats] = {}
        self._noise: dict[int, tuple[list[th.Tensor], Floats]] = {}

    def _draw_noise(self, batch: int) -> Floats:
        if batch not in self._noise:
            if len(self._noise) >= 16:  # evaluations over many batch sizes
                self._noise.clear()
            flat = th.empty(batch * self.starts[-1])
            # Each choice is a draw of its own: torch takes a seed from its generator for every call.
            parts = [flat[batch * a : batch * b].view(batch, b - a) for a, b in itertools.pairwise(self.starts)]
            self._noise[batch] = parts, flat.numpy()
        parts, noise = self._noise[batch]
        for part in parts:
            part.exponential_()
        return noise

    def draw(self, params: Floats, deterministic: bool) -> Any:
        """By the primitive, from noise as ``torch.multinomial`` draws it."""
        batch = len(params)
        if deterministic:
            parts = [params[:, a:b] for a, b in itertools.pairwise(self.starts)]
            return np.stack([part.argmax(axis=1) for part in parts], axis=1)
        actions, log_probs = np.empty((batch, len(self.nvec)), dtype=np.int64), np.empty(batch, F)
        self.ops.categorical_draw(params, self.nvec, self._draw_noise(batch), actions, log_probs)
        return actions

    def act(self, actor: MLP, critic: MLP, x: Floats) -> tuple[Any, Any, Floats, Floats]:  # noqa: D102
        batch = len(x)
        actions = np.empty(batch if self.scalar else (batch, len(self.nvec)), dtype=np.int64)
        values, log_probs = np.empty(batch, F), np.empty(batch, F)
        self.ops.categorical_act(actor, critic, x, values, self.nvec, self._draw_noise(batch), actions, log_probs)
        return actions, actions, values, log_probs

    def _result(self, batch: int, width: int) -> Floats:
        if batch not in self._log_softmax:
            if len(self._log_softmax) > 16:
                self._log_softmax.clear()
            self._log_softmax[batch] = np.empty((batch, width), dtype=np.float32)
        return self._log_softmax[batch]

    def log_prob(self, params: Floats, actions: Floats, out: Floats) -> float:  # noqa: D102
        result = self._result(*params.shape)
        return float(self.ops.categorical_log_prob(params, self.nvec, actions, out, result))

    def gradient(  # noqa: D102
        self, params: Floats, actions: Floats, grad_log_prob: Floats, entropy: float, grad_params: Floats
    ) -> None:
        result = self._result(*params.shape)
        self.ops.categorical_gradient(result, self.nvec, actions, grad_log_prob, entropy, grad_params)

    def _normalized(self, params: Floats) -> Floats:
        result = np.empty_like(params)
        for a, b in itertools.pairwise(self.starts):
            part = params[:, a:b] - params[:, a:b].max(axis=1, keepdims=True)
            result[:, a:b] = part - np.log(np.exp(part).sum(axis=1, keepdims=True))
        return result

    def freeze(self, params: Floats) -> Floats:  # noqa: D102
        return self._normalized(params)

    def kl(self, params: Floats, old: Floats, mean: bool) -> float:
        """Σ_j p_j (log p_j − log p'_j), summed over choices in either reduction, as in Stable-Baselines3."""
        log_p = self._normalized(params)
        return float(np.einsum("ij,ij->", np.exp(log_p), log_p - old)) / len(params)

    def fisher(self, old: Floats, d_params: Floats, d_own: Floats, mean: bool, grad_params: Floats, grad_own: Floats) -> None:
        """diag(p) − p pᵀ."""
        p = np.exp(old)
        np.multiply(p, d_params, out=grad_params)
        for a, b in itertools.pairwise(self.starts):
            part = grad_params[:, a:b]
            part -= p[:, a:b] * part.sum(axis=1, keepdims=True)
        grad_params *= np.float32(1.0 / len(p))


class Bernoulli:
    """Independent coins: the output is their logits.

    :param ops: primitives
    :param space: of the actions
    """

    def __init__(self, ops: Any, space: spaces.MultiBinary) -> None:
        self.ops, self.space = ops, space

    def draw(self, params: Floats, deterministic: bool) -> Any:  # noqa: D102
        p = 1.0 / (1.0 + np.exp(-params))
        return np.round(p) if deterministic else th.bernoulli(th.from_numpy(p)).numpy()

    def act(self, actor: MLP, critic: MLP, x: Floats) -> tuple[Any, Any, Floats, Floats]:  # noqa: D102
        batch = len(x)
        values = self.ops.mlp_forward(critic, critic.tape(batch), x)[:, 0].copy()
        params = self.ops.mlp_forward(actor, actor.tape(batch), x)
        actions, log_probs = self.draw(params, False), np.empty(batch, F)
        self.ops.bernoulli_log_prob(params, actions, log_probs)
        actions = actions.reshape(batch, *self.space.shape)
        return actions, actions, values, log_probs

    def log_prob(self, params: Floats, actions: Floats, out: Floats) -> float:  # noqa: D102
        return float(self.ops.bernoulli_log_prob(params, actions, out))

    def gradient(  # noqa: D102
        self, params: Floats, actions: Floats, grad_log_prob: Floats, entropy: float, grad_params: Floats
    ) -> None:
        self.ops.bernoulli_gradient(params, actions, grad_log_prob, entropy, grad_params)

    def freeze(self, params: Floats) -> Floats:  # noqa: D102
        return params.copy()

    def kl(self, params: Floats, old: Floats, mean: bool) -> float:
        """Σ_i p_i (l_i − l'_i) − softplus(l_i) + softplus(l'_i)."""
        p = 1.0 / (1.0 + np.exp(-params))
        zero = np.float32(0.0)
        total = (p * (params - old) - np.logaddexp(zero, params) + np.logaddexp(zero, old)).sum()
        return float(total) / (params.size if mean else len(params))

    def fisher(self, old: Floats, d_params: Floats, d_own: Floats, mean: bool, grad_params: Floats, grad_own: Floats) -> None:
        """diag(p (1 − p))."""
        p = 1.0 / (1.0 + np.exp(-old))
        np.multiply(p * (1.0 - p), d_params, out=grad_params)
        grad_params *= np.float32(1.0 / (old.size if mean else len(old)))


def make_head(ops: Any, space: spaces.Space[Any], log_std: Floats, grad_log_std: Floats) -> Head:
    """Return the distribution over a space's actions.

    :raises Unsupported: for other spaces than Box, Discrete, MultiDiscrete and MultiBinary
    """
    if isinstance(space, spaces.Box):
        return Gaussian(ops, space, log_std, grad_log_std)
    if isinstance(space, spaces.Discrete):
        return Categorical(ops, [int(space.n)], scalar=True)
    if isinstance(space, spaces.MultiDiscrete) and space.nvec.ndim == 1:
        return Categorical(ops, space.nvec.tolist(), scalar=False)
    if isinstance(space, spaces.MultiBinary):
        return Bernoulli(ops, space)
    raise Unsupported(f"actions of a {type(space).__name__} space")
