"""The engine's primitives in NumPy; :mod:`spinup_plugins.engine.native_ops` has the same ones compiled.

Arrays are float32 and contiguous unless said; ``(B, …)`` are batches. Functions write into the arrays whose names begin with
``out`` or ``grad`` and return scalars. Each gradient carries its equation.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from spinup_plugins.engine.networks import MLP, Floats, Tape

__all__ = [
    "adam",
    "bernoulli_gradient",
    "bernoulli_log_prob",
    "categorical_act",
    "categorical_draw",
    "categorical_gradient",
    "categorical_log_prob",
    "finite",
    "gae",
    "gaussian_act",
    "gaussian_draw",
    "gaussian_gradient",
    "gaussian_log_prob",
    "mlp_backward",
    "mlp_forward",
    "mlp_input_gradient",
    "mlp_jvp",
    "norm",
    "polyak",
    "squash",
    "squash_gradient",
    "surrogate",
    "value_loss",
]

HALF_LOG_2PI = 0.5 * math.log(2.0 * math.pi)
NAME = "numpy"
ONE = np.ones((), dtype=np.float32)


# --- perceptrons -----------------------------------------------------------------------------------------------------


def mlp_forward(mlp: MLP, tape: Tape, x: Floats) -> Floats:
    """y_l = f_l(y_{l-1} W_l + b_l) with y_0 = x.

    :param x: (B, in); the tape keeps it for the backward pass
    :return: the tape's output, (B, heads · out), overwritten by the next pass
    """
    tape.x = x
    y = x
    last = len(mlp.weights) - 1
    for index, (layer, out) in enumerate(zip(mlp.weights, tape.outputs, strict=True)):
        if len(layer) == 1:
            weight, bias = layer[0]
            np.dot(y, weight, out)
            np.add(out, bias, out)
        else:
            width = mlp.shape.sizes[-1]
            for head, (weight, bias) in enumerate(layer):
                part = out[:, head * width : (head + 1) * width]
                np.matmul(y, weight, out=part)
                part += bias
        code = mlp.shape.output if index == last else mlp.shape.hidden
        if code == 1:
            np.tanh(out, out)
        elif code == 2:
            np.maximum(out, _zeros(out.shape), out=out)
        elif code:
            _activate(code, out)
        y = out
    return y


def mlp_backward(mlp: MLP, tape: Tape, grad_out: Floats, grad_x: Floats | None = None) -> None:
    """∂L/∂W_l = y_{l-1}ᵀ g_l, ∂L/∂b_l = Σ_B g_l, g_{l-1} = (g_l W_lᵀ) ⊙ f'_{l-1}(y_{l-1}); into ``mlp.grad``, overwritten.

    :param grad_out: ∂L/∂output, (B, heads · out)
    :param grad_x: where ∂L/∂x goes, (B, in)
    """
    assert mlp.grads is not None
    g = _through(mlp.shape.output, tape.output, grad_out, tape, len(mlp.weights))
    for index in reversed(range(len(mlp.weights))):
        y = tape.x if index == 0 else tape.outputs[index - 1]
        parts = np.split(g, len(mlp.grads[index]), axis=1) if len(mlp.grads[index]) > 1 else [g]
        for (weight, bias), part in zip(mlp.grads[index], parts, strict=True):
            np.dot(y.T, part, weight)
            np.dot(tape.ones, part, bias)  # a sum over rows, at a third of the cost of ``sum``
        if index > 0:
            g = _step_back(mlp, tape, index, g, parts)
        elif grad_x is not None:
            np.matmul(parts[0], mlp.weights[0][0][0].T, out=grad_x)
            for (weight, _), part in zip(mlp.weights[0][1:], parts[1:], strict=True):
                grad_x += part @ weight.T


def mlp_input_gradient(
    mlp: MLP, tape: Tape, rows: npt.NDArray[np.int64] | None, grad_out: Floats, first: int, grad_x: Floats
) -> None:
    """∂L/∂x of some rows and of the columns from ``first`` on, without any parameter's gradient.

    :param rows: (R,) increasing rows of the tape's batch; ``None`` for all
    :param grad_out: ∂L/∂output of those rows, (R, out); one head
    :param grad_x: (R, in − first)
    """
    g, size = grad_out, len(grad_out)
    for index in reversed(range(len(mlp.weights))):
        code = mlp.shape.output if index == len(mlp.weights) - 1 else mlp.shape.hidden
        if code:
            y = tape.outputs[index] if rows is None else tape.outputs[index].take(rows, axis=0)
            slope = y > 0.0 if code == 2 else _derivative(code, y)
            g = np.multiply(g, slope, out=None if g is grad_out else g)
        weight = mlp.weights[index][0][0]
        if index > 0:
            g = _times_transposed(g, weight, tape.gradients[index][index % 2][:size])
        else:
            np.matmul(g, weight[first:].T, out=grad_x)


def mlp_jvp(mlp: MLP, tape: Tape, vector: Floats, out: Tape) -> Floats:
    """Forward-mode derivative along ``vector``: ẏ_l = (ẏ_{l-1} W_l + y_{l-1} Ẇ_l + ḃ_l) ⊙ f'_l(y_l), ẏ_0 = 0.

    :param vector: (P,), a direction in the parameters' layout
    :param out: another tape of the same batch, whose outputs become the derivatives
    :return: derivative of the output, (B, heads · out)
    """
    from spinup_plugins.engine.networks import matrices

    last = len(mlp.weights) - 1
    for index, (layer, direction) in enumerate(zip(mlp.weights, matrices(mlp.shape, vector), strict=True)):
        y = tape.x if index == 0 else tape.outputs[index - 1]
        width = mlp.shape.sizes[index + 1]
        for head, ((weight, _), (d_weight, d_bias)) in enumerate(zip(layer, direction, strict=True)):
            part = out.outputs[index][:, head * width : (head + 1) * width]
            np.matmul(y, d_weight, out=part)
            part += d_bias
            if index > 0:
                part += out.outputs[index - 1] @ weight
        code = mlp.shape.output if index == last else mlp.shape.hidden
        if code:
            out.outputs[index] *= _derivative(code, tape.outputs[index])
    return out.output


@lru_cache(maxsize=64)
def _zeros(shape: tuple[int, ...]) -> Floats:
    """Zeros to compare with: NumPy's ``maximum`` of two arrays takes a quarter of the time of one of an array and a number."""
    zeros = np.zeros(shape, dtype=np.float32)
    zeros.flags.writeable = False
    return zeros


def _activate(code: int, y: Floats) -> None:
    if code == 3:
        np.copyto(y, np.expm1(np.minimum(y, 0.0)), where=y < 0.0)
    elif code == 4:
        np.multiply(y, 0.01, out=y, where=y < 0.0)
    elif code == 5:
        np.negative(y, out=y)
        np.exp(y, out=y)
        y += 1.0
        np.reciprocal(y, out=y)


def _derivative(code: int, y: Floats) -> Floats:
    """f'(z) as a function of y = f(z)."""
    if code == 1:
        return 1.0 - y * y
    if code == 2:
        return (y > 0.0).astype(np.float32)
    if code == 3:
        return np.minimum(y, 0.0) + np.float32(1.0)
    if code == 4:
        return np.where(y > 0.0, np.float32(1.0), np.float32(0.01))
    return y * (1.0 - y)


def _through(code: int, y: Floats, g: Floats, tape: Tape, index: int) -> Floats:
    """g ⊙ f'(y), leaving ``g`` as it is."""
    if code == 0:
        return g
    return np.multiply(g, _derivative(code, y), out=tape.gradients[index][index % 2])


def _times_transposed(g: Floats, weight: Floats, out: Floats) -> Floats:
    """G Wᵀ; an outer product at a quarter of BLAS's time."""
    if g.shape[1] == 1:
        return np.multiply(g, weight.T, out=out)
    return np.dot(g, weight.T, out)


def _step_back(mlp: MLP, tape: Tape, index: int, g: Floats, parts: list[Floats]) -> Floats:
    back = tape.gradients[index][index % 2]
    _times_transposed(parts[0], mlp.weights[index][0][0], back)
    for (weight, _), part in zip(mlp.weights[index][1:], parts[1:], strict=True):
        back += part @ weight.T
    y, code = tape.outputs[index - 1], mlp.shape.hidden
    if code == 2:
        np.multiply(back, y > 0.0, out=back)
    elif code == 1:
        square = np.multiply(y, y)
        np.subtract(ONE, square, square)
        np.multiply(back, square, back)
    elif code:
        back *= _derivative(code, y)
    return back


# --- optimiser -------------------------------------------------------------------------------------------------------


def norm(x: Floats) -> float:
    """‖x‖₂ of a vector."""
    return math.sqrt(float(np.dot(x, x)))


def adam(
    theta: Floats,
    grad: Floats,
    first: Floats,
    second: Floats,
    step: float,
    learning_rate: float,
    beta1: float,
    beta2: float,
    epsilon: float,
    scale: float = 1.0,
) -> None:
    """One step with the gradient ``scale · grad``; Kingma & Ba 2015, algorithm 1, as torch orders it.

    m ← m + (1 − β₁)(g − m),  v ← β₂ v + (1 − β₂) g²,  θ ← θ − lr / (1 − β₁ᵗ) · m / (√v / √(1 − β₂ᵗ) + ε)

    :param step: t, counted from 1
    """
    if scale != 1.0:
        grad *= np.float32(scale)
    bias1, bias2 = 1.0 - beta1**step, 1.0 - beta2**step
    delta = np.subtract(grad, first)
    delta *= np.float32(1.0 - beta1)
    first += delta
    second *= np.float32(beta2)
    np.multiply(grad, grad, out=delta)
    delta *= np.float32(1.0 - beta2)
    second += delta
    np.sqrt(second, out=delta)
    delta /= np.float32(math.sqrt(bias2))
    delta += np.float32(epsilon)
    np.divide(first, delta, out=delta)
    delta *= np.float32(learning_rate / bias1)
    theta -= delta


def polyak(theta: Floats, target: Floats, tau: float) -> None:
    """θ_targ ← (1 − τ) θ_targ + τ θ."""
    target *= np.float32(1.0 - tau)
    target += theta * np.float32(tau)


# --- distributions ---------------------------------------------------------------------------------------------------


def gaussian_draw(mean: Floats, log_std: Floats, noise: Floats, out_actions: Floats, out: Floats) -> None:
    """a = μ + σ ε and its log π(a|s) = Σ_i [ −½ ε_i² − log σ_i − ½ log 2π ].

    :param mean: μ, (B, A)
    :param log_std: log σ, (A,)
    :param noise: ε, (B, A)
    :param out_actions: (B, A)
    :param out: (B,)
    """
    constant = sum(log_std.tolist()) + HALF_LOG_2PI * log_std.size
    np.multiply(np.exp(log_std)[None], noise, out_actions)
    out_actions += mean
    if len(noise) == 1:
        row = noise[0]
        out[0] = -0.5 * float(np.dot(row, row)) - constant
        return
    np.einsum("ij,ij->i", noise, noise, out=out)
    out *= -0.5
    out -= np.float32(constant)


def gaussian_act(
    actor: MLP,
    critic: MLP,
    x: Floats,
    out_values: Floats,
    log_std: Floats,
    noise: Floats,
    low: Floats,
    high: Floats,
    out_actions: Floats,
    out_clipped: Floats,
    out: Floats,
) -> None:
    """Run both networks on the same rows and draw; see :func:`gaussian_draw`.

    :param x: (B, in)
    :param out_values: V(s), (B,)
    :param low: bounds of actions, (1, A)
    :param high: likewise
    :param out_actions: (B, A), any shape
    :param out_clipped: actions within their bounds, likewise
    """
    batch = len(x)
    actions = out_actions.reshape(batch, -1)
    out_values[:] = mlp_forward(critic, critic.tape(batch), x)[:, 0]
    gaussian_draw(mlp_forward(actor, actor.tape(batch), x), log_std, noise, actions, out)
    inside = out_clipped.reshape(batch, -1)
    np.minimum(np.maximum(actions, low, out=inside), high, out=inside)


def categorical_act(
    actor: MLP,
    critic: MLP,
    x: Floats,
    out_values: Floats,
    nvec: npt.NDArray[np.int32],
    noise: Floats,
    out_actions: npt.NDArray[np.int64],
    out: Floats,
) -> None:
    """Run both networks on the same rows and draw; see :func:`categorical_draw`.

    :param x: (B, in)
    :param out_values: V(s), (B,)
    :param out_actions: (B, K), or (B,) where there is one choice
    """
    batch = len(x)
    out_values[:] = mlp_forward(critic, critic.tape(batch), x)[:, 0]
    logits = mlp_forward(actor, actor.tape(batch), x)
    categorical_draw(logits, nvec, noise, out_actions.reshape(batch, len(nvec)), out)


def categorical_draw(
    logits: Floats, nvec: npt.NDArray[np.int32], noise: Floats, out_actions: npt.NDArray[np.int64], out: Floats
) -> None:
    """a = argmax_j p_j / E_j with E_j ~ Exp(1), which is how torch draws one sample, and its log π(a|s).

    :param logits: (B, Σ nvec), components side by side
    :param nvec: (K,) options of each
    :param noise: E, flat: (B, nvec[0]), then (B, nvec[1]), …
    :param out_actions: (B, K)
    :param out: (B,)
    """
    batch, start = len(logits), 0
    if batch * logits.shape[1] <= 16 and len(nvec) == 1:  # a few floats: NumPy's calls would cost more than they do
        for row, (scores, waits) in enumerate(zip(logits.tolist(), noise.reshape(batch, -1).tolist(), strict=True)):
            highest = max(scores)
            exponentials = [math.exp(score - highest) for score in scores]
            ratios = [exponential / e for exponential, e in zip(exponentials, waits, strict=True)]
            choice = ratios.index(max(ratios))
            out_actions[row, 0] = choice
            out[row] = scores[choice] - highest - math.log(sum(exponentials))
        return
    out[:] = 0.0
    every = np.arange(batch)
    for k, n in enumerate(nvec.tolist()):
        draws = noise[batch * start : batch * (start + n)].reshape(batch, n)
        centred = logits[:, start : start + n] - logits[:, start : start + n].max(axis=1, keepdims=True)
        weights = np.exp(centred)
        chosen = (weights / draws).argmax(axis=1)
        out += centred[every, chosen] - np.log(weights.sum(axis=1))
        out_actions[:, k] = chosen
        start += n


def gaussian_log_prob(mean: Floats, log_std: Floats, actions: Floats, out: Floats) -> None:
    """log π(a|s) = Σ_i [ −½ ((a_i − μ_i) / σ_i)² − log σ_i − ½ log 2π ].

    :param mean: μ, (B, A)
    :param log_std: log σ, (A,), the same in every state
    :param actions: (B, A)
    :param out: (B,)
    """
    z = np.subtract(actions, mean)
    z *= np.exp(-log_std)
    np.einsum("ij,ij->i", z, z, out=out)
    out *= -0.5
    out -= np.float32(log_std.sum() + HALF_LOG_2PI * log_std.size)


def gaussian_gradient(
    mean: Floats,
    log_std: Floats,
    actions: Floats,
    grad_log_prob: Floats,
    entropy: float,
    grad_mean: Floats,
    grad_log_std: Floats,
) -> None:
    """With z = (a − μ) / σ: ∂log π/∂μ_i = z_i / σ_i,  ∂log π/∂log σ_i = z_i² − 1,  ∂H/∂log σ_i = 1.

    :param grad_log_prob: ∂L/∂log π, (B,), input
    :param entropy: ∂L/∂(mean entropy of the batch)
    """
    inverse = np.exp(-log_std)
    z = np.subtract(actions, mean)
    z *= inverse
    np.multiply(z, grad_log_prob[:, None], out=grad_mean)  # g z
    np.einsum("ij,ij->j", grad_mean, z, out=grad_log_std)
    grad_log_std += np.float32(entropy - float(grad_log_prob.sum()))
    grad_mean *= inverse


def categorical_log_prob(
    logits: Floats, nvec: npt.NDArray[np.int32], actions: Floats, out: Floats, out_log_softmax: Floats
) -> float:
    """log π(a|s) = Σ_k log softmax(l_k)[a_k] over the components k of a MultiDiscrete (one for Discrete).

    :param logits: (B, Σ nvec), components side by side
    :param nvec: (K,) choices of each
    :param actions: (B, K) choices, as floats
    :param out: (B,)
    :param out_log_softmax: (B, Σ nvec), for the gradient
    :return: mean over the batch of H = −Σ p log p, summed over components
    """
    out[:] = 0.0
    entropy, start, every = 0.0, 0, np.arange(len(logits))
    for k, n in enumerate(nvec.tolist()):
        part, result = logits[:, start : start + n], out_log_softmax[:, start : start + n]
        np.subtract(part, part.max(axis=1, keepdims=True), out=result)
        p = np.exp(result)
        total = p.sum(axis=1, keepdims=True)
        result -= np.log(total)
        p /= total
        out += result[every, actions[:, k].astype(np.int64)]
        entropy -= float(np.einsum("ij,ij->", p, result))
        start += n
    return entropy / len(logits)


def categorical_gradient(
    log_softmax: Floats,
    nvec: npt.NDArray[np.int32],
    actions: Floats,
    grad_log_prob: Floats,
    entropy: float,
    grad_logits: Floats,
) -> None:
    """∂log π/∂l_j = 1[a = j] − p_j,  ∂H/∂l_j = −p_j (log p_j + H).

    :param grad_log_prob: ∂L/∂log π, (B,), input
    :param entropy: ∂L/∂(mean entropy of the batch)
    """
    start, every, per_row = 0, np.arange(len(log_softmax)), np.float32(entropy / len(log_softmax))
    for k, n in enumerate(nvec.tolist()):
        log_p, g = log_softmax[:, start : start + n], grad_logits[:, start : start + n]
        p = np.exp(log_p)
        np.multiply(p, -grad_log_prob[:, None], out=g)
        g[every, actions[:, k].astype(np.int64)] += grad_log_prob
        if entropy:
            h = -np.einsum("ij,ij->i", p, log_p)
            g -= per_row * p * (log_p + h[:, None])
        start += n


def bernoulli_log_prob(logits: Floats, actions: Floats, out: Floats) -> float:
    """log π(a|s) = Σ_i [ a_i l_i − softplus(l_i) ].

    :param logits: (B, A)
    :param actions: (B, A), 0 or 1
    :param out: (B,)
    :return: mean over the batch of H = Σ_i [ softplus(l_i) − l_i sigmoid(l_i) ]
    """
    softplus = np.logaddexp(np.float32(0.0), logits)
    np.sum(actions * logits - softplus, axis=1, out=out)
    return float((softplus - logits / (1.0 + np.exp(-logits))).sum(axis=1).mean())


def bernoulli_gradient(logits: Floats, actions: Floats, grad_log_prob: Floats, entropy: float, grad_logits: Floats) -> None:
    """∂log π/∂l = a − p,  ∂H/∂l = −l p (1 − p),  p = sigmoid(l).

    :param grad_log_prob: ∂L/∂log π, (B,), input
    :param entropy: ∂L/∂(mean entropy of the batch)
    """
    p = 1.0 / (1.0 + np.exp(-logits))
    np.multiply(actions - p, grad_log_prob[:, None], out=grad_logits)
    if entropy:
        grad_logits -= np.float32(entropy / len(logits)) * logits * p * (1.0 - p)


def squash(params: Floats, noise: Floats, exact: bool, out_actions: Floats, out_log_prob: Floats) -> None:
    """a = tanh(u), u = μ + σ ε, and log π(a|s); Haarnoja et al. 2018 (arXiv:1812.05905), appendix C.

    log π = Σ_i [ −½ ε_i² − log σ_i − ½ log 2π − c_i ], c = log(1 − a² + 1e-6), or, ``exact``, 2 (log 2 − u − softplus(−2u));
    log σ is clipped to [−20, 2].

    :param params: μ and log σ side by side, (B, 2A)
    :param noise: ε, (B, A)
    :param out_actions: (B, A)
    :param out_log_prob: (B,)
    """
    size = noise.shape[1]
    log_std = np.minimum(np.maximum(params[:, size:], -20.0), 2.0)
    u = np.exp(log_std)
    u *= noise
    u += params[:, :size]
    np.tanh(u, out=out_actions)
    log_std += 0.5 * noise * noise
    log_std += np.float32(HALF_LOG_2PI)
    if exact:
        log_std += 2.0 * (np.float32(math.log(2.0)) - u - np.logaddexp(np.float32(0.0), -2.0 * u))
    else:
        log_std += np.log(np.float32(1.0) - out_actions * out_actions + np.float32(1e-6))
    log_std.sum(axis=1, out=out_log_prob)
    np.negative(out_log_prob, out=out_log_prob)


def squash_gradient(
    params: Floats,
    noise: Floats,
    actions: Floats,
    exact: bool,
    grad_actions: Floats,
    grad_log_prob: float,
    grad_params: Floats,
) -> None:
    """Gradient of ``squash``: with ȧ = ∂L/∂a and ℓ = ∂L/∂log π,

    ∂L/∂u = ȧ (1 − a²) + ℓ · 2a (1 − a²) / (1 − a² + 1e-6)   (exact: ȧ (1 − a²) + ℓ · 2a),
    ∂L/∂μ = ∂L/∂u,   ∂L/∂log σ = ∂L/∂u σ ε − ℓ   where log σ is within [−20, 2], 0 elsewhere.

    :param grad_actions: ȧ, (B, A), input
    :param grad_log_prob: ℓ, the same in every row
    :param grad_params: (B, 2A)
    """
    size = noise.shape[1]
    raw = params[:, size:]
    slope = np.float32(1.0) - actions * actions
    du = grad_params[:, :size]
    np.multiply(grad_actions, slope, out=du)
    push = actions * np.float32(2.0 * grad_log_prob)
    if not exact:
        push *= slope / (slope + np.float32(1e-6))
    du += push
    std = np.exp(np.minimum(np.maximum(raw, -20.0), 2.0))
    ds = grad_params[:, size:]
    np.multiply(du, std, out=ds)
    ds *= noise
    ds -= np.float32(grad_log_prob)
    ds *= (raw >= -20.0) & (raw <= 2.0)


# --- losses ----------------------------------------------------------------------------------------------------------


def surrogate(
    log_prob: Floats,
    old_log_prob: Floats,
    advantages: Floats,
    clip_range: float,
    normalize: bool,
    grad_log_prob: Floats,
) -> tuple[float, float, float, float]:
    """PPO's −mean min(ρ A, clip(ρ, 1 ± ε) A) with ρ = π/π_old; ∂L/∂log π = −A ρ / B where the minimum is not clipped.

    :param clip_range: ε; infinity for the unclipped surrogate −mean ρ A (TRPO)
    :param normalize: give the batch's advantages zero mean and unit deviation (B − 1) first, if there are two or more
    :param grad_log_prob: (B,), output
    :return: loss, E[(ρ − 1) − log ρ], E[−log ρ], fraction of |ρ − 1| > ε
    """
    batch = len(log_prob)
    if normalize and batch > 1:
        centred = advantages - np.float32(np.add.reduce(advantages) / batch)
        deviation = math.sqrt(float(np.dot(centred, centred)) / (batch - 1))
        advantages = np.multiply(centred, np.float32(1.0 / (deviation + 1e-8)), centred)
    log_ratio = log_prob - old_log_prob
    ratio = np.exp(log_ratio)
    k1 = -float(np.add.reduce(log_ratio)) / batch
    deviation = np.subtract(ratio, ONE)
    k3 = float(np.add.reduce(deviation)) / batch + k1
    gain = np.multiply(ratio, advantages)
    np.multiply(gain, np.float32(-1.0 / batch), grad_log_prob)
    if clip_range == math.inf:
        return -float(np.add.reduce(gain)) / batch, k3, k1, 0.0
    np.abs(deviation, log_ratio)
    outside = log_ratio > np.float32(clip_range)
    count = np.count_nonzero(outside)
    if count:  # else both sides of the minimum are the same
        clipped = np.minimum(np.maximum(ratio, np.float32(1 - clip_range)), np.float32(1 + clip_range)) * advantages
        grad_log_prob *= gain <= clipped
        gain = np.minimum(gain, clipped)
    return -float(np.add.reduce(gain)) / batch, k3, k1, count / batch


def value_loss(
    values: Floats, old_values: Floats, returns: Floats, clip_range: float, coefficient: float, grad_values: Floats
) -> float:
    """mean (v − R̂)² with v = V_old + clip(V − V_old, ± ε_V); ∂/∂V = 2 (v − R̂) / B where it is not clipped.

    :param values: V, (B,)
    :param old_values: (B,); not read where nothing is clipped
    :param returns: R̂, (B,)
    :param clip_range: ε_V, infinity for no clipping
    :param coefficient: of the loss in what ``grad_values`` (B,) is the gradient of
    """
    batch = len(values)
    if clip_range == math.inf:
        np.subtract(values, returns, out=grad_values)
        loss = float(np.dot(grad_values, grad_values)) / batch
        grad_values *= np.float32(2.0 * coefficient / batch)
        return loss
    moved = values - old_values
    inside = np.abs(moved) <= np.float32(clip_range)
    error = old_values + np.minimum(np.maximum(moved, np.float32(-clip_range)), np.float32(clip_range)) - returns
    np.multiply(error, np.float32(2.0 * coefficient / batch), out=grad_values)
    grad_values *= inside
    return float(np.dot(error, error)) / batch


# --- rollouts --------------------------------------------------------------------------------------------------------


def gae(
    rewards: Floats,
    values: Floats,
    starts: Floats,
    last_values: Floats,
    last_dones: Floats,
    gamma: float,
    gae_lambda: float,
    out: Floats,
) -> None:
    """A_t = δ_t + γλ (1 − d_t) A_{t+1}, δ_t = r_t + γ (1 − d_t) V(s_{t+1}) − V(s_t); Schulman et al. 2016, eqs. 11-16.

    :param rewards: (T, N)
    :param values: (T, N)
    :param starts: (T, N), 1 where step t is the first of an episode, so that d_t is the next row's
    :param last_values: (N,), V of what follows the last step
    :param last_dones: (N,), whether the last step ended an episode
    :param out: (T, N)
    """
    going = 1.0 - np.concatenate([starts[1:], last_dones[None]])
    following = np.concatenate([values[1:], last_values[None]])
    deltas = rewards + np.float32(gamma) * following * going - values
    decay = np.float32(gamma * gae_lambda) * going
    steps, envs = rewards.shape
    if envs > 16:  # a row at a time costs some 3 us, a float at a time 0.2
        advantage = np.zeros(envs, dtype=np.float32)
        for t in reversed(range(steps)):
            advantage = out[t] = deltas[t] + decay[t] * advantage
        return
    for n in range(envs):
        column: list[float] = []
        a = 0.0
        for delta, factor in zip(deltas[::-1, n].tolist(), decay[::-1, n].tolist(), strict=True):
            a = delta + factor * a
            column.append(a)
        column.reverse()
        out[:, n] = column


def finite(x: npt.NDArray[Any]) -> bool:
    """Whether x surely holds no NaN and no infinity; False where it may (very large numbers too)."""
    return math.isfinite(np.vdot(x, x))
