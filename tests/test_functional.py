"""Hand-worked numbers and properties of the pure maths."""

import math

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.distributions import SquashedDiagGaussianDistribution

from spinup_plugins.algorithms import functional as F

# Two environments, four steps. Environment 0 ends an episode with step 1; environment 1 never does.
REWARDS = np.array([[1, 1], [2, 1], [3, 1], [4, 1]], dtype=np.float32)
ENDS = np.array([[0, 0], [1, 0], [0, 0], [0, 0]], dtype=np.float32)
VALUES = np.array([[10, 0], [20, 0], [30, 0], [40, 0]], dtype=np.float32)
LAST = np.array([100, 16], dtype=np.float32)


def test_rewards_to_go_by_hand() -> None:
    returns = F.rewards_to_go(REWARDS, ENDS, LAST, 0.5)
    # env 0: 1 + .5*2 | 2 | 3 + .5*54 | 4 + .5*100 ; env 1: bootstrap 16 halves four times to 1
    assert returns[:, 0].tolist() == [2.0, 2.0, 30.0, 54.0]
    assert returns[:, 1].tolist() == [2.875, 3.75, 5.5, 9.0]


def test_gae_by_hand() -> None:
    # γ = .5, λ = .5, env 0: δ = 1+10-10, 2-20, 3+20-30, 4+50-40
    advantages = F.gae(REWARDS, VALUES, ENDS, LAST, 0.5, 0.5)
    assert advantages[:, 0].tolist() == [1 - 18 / 4, -18.0, -7 + 14 / 4, 14.0]


def test_gae_with_lambda_zero_is_the_td_residual_and_with_one_is_returns_minus_values() -> None:
    next_values = np.array([[20, 0], [0, 0], [40, 0], [100, 16]], dtype=np.float32)
    assert np.allclose(F.gae(REWARDS, VALUES, ENDS, LAST, 0.5, 0.0), REWARDS + 0.5 * next_values - VALUES)
    assert np.allclose(F.gae(REWARDS, VALUES, ENDS, LAST, 0.5, 1.0), F.rewards_to_go(REWARDS, ENDS, LAST, 0.5) - VALUES)


def test_n_step_values_by_hand() -> None:
    assert F.n_step_values(REWARDS, VALUES, ENDS, LAST, 0.5, 1)[:, 0].tolist() == [11.0, 2.0, 23.0, 54.0]
    assert F.n_step_values(REWARDS, VALUES, ENDS, LAST, 0.5, 2)[:, 0].tolist() == [2.0, 2.0, 30.0, 54.0]
    whole = F.n_step_values(REWARDS, VALUES, ENDS, LAST, 0.5, 99)
    assert np.allclose(whole, F.rewards_to_go(REWARDS, ENDS, LAST, 0.5))


def test_total_returns_give_every_step_its_trajectorys_return() -> None:
    returns = F.total_returns(REWARDS, ENDS, LAST, 1.0)
    assert returns[:, 0].tolist() == [3.0, 3.0, 107.0, 107.0]
    assert returns[:, 1].tolist() == [20.0] * 4


steps = st.integers(1, 12)
numbers = st.floats(-100, 100, width=32)


@given(st.data(), steps, st.integers(1, 3), st.floats(0, 1), st.floats(0, 1))
def test_gae_and_returns_equal_sb3s_buffer(data: st.DataObject, n: int, envs: int, gamma: float, lam: float) -> None:
    shape = (n, envs)
    buffer = RolloutBuffer(n, spaces.Discrete(2), spaces.Discrete(2), device="cpu", gamma=gamma, gae_lambda=lam, n_envs=envs)
    buffer.rewards = data.draw(hnp.arrays(np.float32, shape, elements=numbers))
    buffer.values = data.draw(hnp.arrays(np.float32, shape, elements=numbers))
    buffer.episode_starts = data.draw(hnp.arrays(np.bool_, shape)).astype(np.float32)
    dones = data.draw(hnp.arrays(np.bool_, envs))
    last = data.draw(hnp.arrays(np.float32, envs, elements=numbers))
    ends = np.concatenate([buffer.episode_starts[1:], dones[None].astype(np.float32)])
    buffer.compute_returns_and_advantage(th.as_tensor(last), dones)
    ours = F.gae(buffer.rewards, buffer.values, ends, last, gamma, lam)
    np.testing.assert_allclose(ours, buffer.advantages, rtol=1e-4, atol=1e-2)
    np.testing.assert_allclose(ours + buffer.values, buffer.returns, rtol=1e-4, atol=1e-2)


def test_normalize_by_hand_and_of_a_constant() -> None:
    x = th.tensor([1.0, 3.0])
    assert F.normalize(x, unbiased=False).tolist() == pytest.approx([-1.0, 1.0])
    assert F.normalize(x).tolist() == pytest.approx([-1 / math.sqrt(2), 1 / math.sqrt(2)])
    assert F.normalize(th.full((5,), 7.0)).tolist() == [0.0] * 5


def test_kl_estimators_by_hand() -> None:
    old, new = th.log(th.tensor([0.5, 0.5])), th.log(th.tensor([0.25, 0.75]))
    assert F.approx_kl_k1(new, old).item() == pytest.approx((math.log(2) - math.log(1.5)) / 2)
    assert F.approx_kl_k3(new, old).item() == pytest.approx((-0.5 + math.log(2) + 0.5 - math.log(1.5)) / 2)


@given(hnp.arrays(np.float32, 8, elements=st.floats(-5, 0, width=32)))
def test_k3_is_never_negative(old: np.ndarray) -> None:
    new = th.as_tensor(old[::-1].copy())
    assert F.approx_kl_k3(new, th.as_tensor(old)).item() >= -1e-6


def test_td_target_by_hand() -> None:
    y = F.td_target(th.tensor([1.0, 1.0]), th.tensor([0.0, 1.0]), th.tensor([0.9, 0.9]), th.tensor([10.0, 10.0]))
    assert y.tolist() == pytest.approx([10.0, 1.0])


def test_q_loss_by_hand() -> None:
    # critic 0 is off by 1 and 3, critic 1 by 0 and 2: (1+9)/2 + (0+4)/2
    assert F.q_loss(th.tensor([[1.0, 0.0], [3.0, 2.0]]), th.zeros(2)).item() == 7.0


@pytest.mark.parametrize("exact", [False, True])
def test_squashed_gaussian_equals_sb3s_distribution(exact: bool) -> None:
    th.manual_seed(0)
    mean, log_std, noise = th.randn(64, 3), th.randn(64, 3) * 0.3 - 1, th.randn(64, 3)
    actions, log_prob = F.squashed_gaussian(mean, log_std, noise, exact=exact)
    peer = SquashedDiagGaussianDistribution(3).proba_distribution(mean, log_std)
    pre_tanh = mean + log_std.exp() * noise
    assert th.equal(actions, th.tanh(pre_tanh))
    expected = peer.log_prob(actions, pre_tanh)
    # The two corrections differ by about 1e-6 / (1 - a²).
    th.testing.assert_close(log_prob, expected, rtol=1e-3 if exact else 1e-5, atol=1e-3 if exact else 1e-5)


def test_exact_correction_survives_saturation() -> None:
    # log(1 - tanh²(20)) = 2 (log 2 - 20 - softplus(-40)); in float32 tanh(20) is 1 and the naive form is log(0).
    _, log_prob = F.squashed_gaussian(th.tensor([[20.0]]), th.tensor([[0.0]]), th.tensor([[0.0]]), exact=True)
    assert log_prob.item() == pytest.approx(-0.5 * math.log(2 * math.pi) - 2 * (math.log(2) - 20), rel=1e-6)
