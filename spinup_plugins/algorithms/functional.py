"""Pure maths that two or more algorithms use unchanged.

On-policy functions take rollouts as NumPy arrays of shape ``(T, N)``: T steps in each of N environments, time first.
``ends[t, n]`` is 1 where the episode of environment n ended with step t. A reward that closes a *truncated* episode is
expected to carry the bootstrap γ V(s_{t+1}) already, so that every function needs rewards and ends alone.
Off-policy functions take tensors; values, rewards and log-probabilities are ``(B,)``.
"""

import math

import numpy as np
import numpy.typing as npt
import torch as th
import torch.nn.functional as F

__all__ = [
    "approx_kl_k1",
    "approx_kl_k3",
    "gae",
    "n_step_values",
    "normalize",
    "q_loss",
    "rewards_to_go",
    "squashed_gaussian",
    "td_target",
    "total_returns",
]

Array = npt.NDArray[np.float32]

HALF_LOG_2PI = 0.5 * math.log(2.0 * math.pi)
EPSILON = 1e-8


def rewards_to_go(rewards: Array, ends: Array, last_values: Array, gamma: float) -> Array:
    """Discounted rewards-to-go with bootstrap: G_t = r_t + γ G_{t+1}, G_T = V(s_T), cut where an episode ends.

    Sutton & Barto 2018, eq. 3.9; the bootstrap at the rollout's edge as in Spinning Up's ``finish_path``.

    :param rewards: (T, N)
    :param ends: (T, N), 1 where the episode ended with that step
    :param last_values: (N,), V of the state after the rollout's last step
    :param gamma: discount factor, 1 for undiscounted returns
    :return: (T, N)
    """
    returns = np.empty_like(rewards)
    following = last_values
    for t in reversed(range(len(rewards))):
        following = returns[t] = rewards[t] + gamma * (1.0 - ends[t]) * following
    return returns


def gae(rewards: Array, values: Array, ends: Array, last_values: Array, gamma: float, gae_lambda: float) -> Array:
    """Generalised advantage estimate: δ_t = r_t + γ V(s_{t+1}) − V(s_t), A_t = δ_t + γλ A_{t+1}.

    Schulman et al. 2016 (arXiv:1506.02438), eqs. 11-16. λ = 0 is the TD residual, λ = 1 is rewards-to-go minus V.

    :param rewards: (T, N)
    :param values: (T, N), V(s_t)
    :param ends: (T, N), 1 where the episode ended with that step
    :param last_values: (N,), V of the state after the rollout's last step
    :param gamma: discount factor
    :param gae_lambda: λ, trades bias (0) against variance (1)
    :return: (T, N)
    """
    next_values = np.concatenate([values[1:], last_values[None]])
    deltas = rewards + gamma * (1.0 - ends) * next_values - values
    return rewards_to_go(deltas, ends, np.zeros_like(last_values), gamma * gae_lambda)


def n_step_values(rewards: Array, values: Array, ends: Array, last_values: Array, gamma: float, n_steps: int) -> Array:
    """Bootstrapped n-step action-values: Q_t = Σ_{k<n} γ^k r_{t+k} + γ^n V(s_{t+n}), cut where an episode ends.

    Sutton & Barto 2018, eq. 7.1, by Q⁰_t = V(s_t), Q^k_t = r_t + γ Q^{k−1}_{t+1}.

    :param rewards: (T, N)
    :param values: (T, N), V(s_t)
    :param ends: (T, N), 1 where the episode ended with that step
    :param last_values: (N,), V of the state after the rollout's last step
    :param gamma: discount factor
    :param n_steps: n ≥ 1; fewer rewards are summed where the rollout or the episode is over first
    :return: (T, N)
    """
    q_values = values
    for _ in range(min(n_steps, len(rewards))):
        q_values = rewards + gamma * (1.0 - ends) * np.concatenate([q_values[1:], last_values[None]])
    return q_values


def total_returns(rewards: Array, ends: Array, last_values: Array, gamma: float) -> Array:
    """R(τ) = Σ_t γ^t r_t of the trajectory that each step belongs to; the rollout begins at an episode's first step.

    :param rewards: (T, N)
    :param ends: (T, N), 1 where the episode ended with that step
    :param last_values: (N,), V of the state after the rollout's last step
    :param gamma: discount factor, 1 for undiscounted returns
    :return: (T, N)
    """
    returns = rewards_to_go(rewards, ends, last_values, gamma)
    for t in range(1, len(returns)):
        returns[t] = np.where(ends[t - 1] > 0, returns[t], returns[t - 1])
    return returns


def normalize(x: th.Tensor, *, unbiased: bool = True) -> th.Tensor:
    """(x − mean) / (std + 1e-8); all zeros when every entry is the same.

    :param x: (B,)
    :param unbiased: divide by B − 1 (Stable-Baselines3) rather than by B (Spinning Up)
    :return: (B,)
    """
    return (x - x.mean()) / (x.std(correction=int(unbiased)) + EPSILON)


def approx_kl_k1(log_prob: th.Tensor, old_log_prob: th.Tensor) -> th.Tensor:
    """Estimate KL(π_old‖π) as E[log π_old − log π]: unbiased, may be negative (Spinning Up's rule).

    :param log_prob: (B,) of the new policy, at actions drawn from the old one
    :param old_log_prob: (B,)
    :return: scalar, nats
    """
    return (old_log_prob - log_prob).mean()


def approx_kl_k3(log_prob: th.Tensor, old_log_prob: th.Tensor) -> th.Tensor:
    """Estimate KL(π_old‖π) as E[(ρ − 1) − log ρ], ρ = π/π_old: unbiased and never negative.

    J. Schulman, "Approximating KL divergence", 2020 (the estimator of Stable-Baselines3).

    :param log_prob: (B,) of the new policy, at actions drawn from the old one
    :param old_log_prob: (B,)
    :return: scalar, nats
    """
    log_ratio = log_prob - old_log_prob
    return (th.exp(log_ratio) - 1.0 - log_ratio).mean()


def td_target(rewards: th.Tensor, dones: th.Tensor, discounts: th.Tensor | float, next_values: th.Tensor) -> th.Tensor:
    """y = r + γ (1 − d) V(s'): the bootstrap stops at terminal states only, never at time limits.

    :param rewards: (B,), n-step returns where the replay buffer sums several steps
    :param dones: (B,), 1 at terminal states, 0 at truncations
    :param discounts: γ, or (B,) with γ^n
    :param next_values: (B,)
    :return: (B,)
    """
    return rewards + discounts * (1.0 - dones) * next_values


def q_loss(q_values: th.Tensor, targets: th.Tensor) -> th.Tensor:
    """Σ_i mean[ (Q_i(s, a) − y)² ] over the critics.

    :param q_values: Q_i(s, a), (B, n_critics)
    :param targets: y, (B,)
    :return: scalar
    """
    return ((q_values - targets[:, None]) ** 2).mean(dim=0).sum()


def squashed_gaussian(
    mean: th.Tensor, log_std: th.Tensor, noise: th.Tensor, *, exact: bool = False
) -> tuple[th.Tensor, th.Tensor]:
    """Draw a = tanh(u), u = μ + σ ε, with its log-density, by the reparameterisation trick.

    log π(a|s) = Σ_i [log N(u_i; μ_i, σ_i) − log(1 − tanh² u_i)]; Haarnoja et al. 2018 (arXiv:1812.05905), appendix C.
    The correction is either Stable-Baselines3's log(1 − a² + 1e-6) or, with ``exact``, the identity
    log(1 − tanh² u) = 2 (log 2 − u − softplus(−2u)), which stays accurate however far u saturates.

    :param mean: μ, (B, A)
    :param log_std: log σ, (B, A)
    :param noise: ε ~ N(0, 1), (B, A)
    :param exact: use the identity
    :return: actions in (−1, 1), (B, A); log-probabilities, (B,)
    """
    pre_tanh = mean + th.exp(log_std) * noise
    actions = th.tanh(pre_tanh)
    if exact:
        correction = 2.0 * (math.log(2.0) - pre_tanh - F.softplus(-2.0 * pre_tanh))
    else:
        correction = th.log(1.0 - actions**2 + 1e-6)
    log_prob = -0.5 * noise**2 - log_std - HALF_LOG_2PI - correction
    return actions, log_prob.sum(dim=1)
