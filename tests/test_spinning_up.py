"""The ``spinning_up`` preset against Spinning Up's update written out plainly: two Adams, full batches, its own rules.

Each oracle starts from copies of the model's networks and sees the same batch and noise.
"""

from copy import deepcopy
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import FlattenExtractor
from torch import nn
from torch.distributions import Categorical, Normal, kl_divergence

from spinup_plugins import DDPG, PPO, SAC, TD3, TRPO, VPG
from spinup_plugins.algorithms import ddpg, ppo, sac, td3, trpo, vpg
from spinup_plugins.algorithms.off_policy import Batch, OffPolicy

MODULES = {VPG: vpg, TRPO: trpo, PPO: ppo, DDPG: ddpg, TD3: td3, SAC: sac}

# --- on-policy -----------------------------------------------------------------------------------------------------


class InFloat64(FlattenExtractor):
    def forward(self, observations: th.Tensor) -> th.Tensor:
        return super().forward(observations).double()


class Original:
    """Spinning Up's MLPActorCritic as functions over an ActorCriticPolicy's layers."""

    def __init__(self, policy: ActorCriticPolicy) -> None:
        self.net = deepcopy(policy)
        self.pi = [*self.net.mlp_extractor.policy_net.parameters(), *self.net.action_net.parameters()]
        if hasattr(self.net, "log_std"):
            self.pi.append(self.net.log_std)
        self.v = [*self.net.mlp_extractor.value_net.parameters(), *self.net.value_net.parameters()]

    def distribution(self, obs: th.Tensor) -> Any:
        mu = self.net.action_net(self.net.mlp_extractor.policy_net(obs))
        return Normal(mu, self.net.log_std.exp()) if hasattr(self.net, "log_std") else Categorical(logits=mu)

    def log_prob(self, obs: th.Tensor, act: th.Tensor) -> th.Tensor:
        pi = self.distribution(obs)
        return pi.log_prob(act).sum(-1) if isinstance(pi, Normal) else pi.log_prob(act.flatten())

    def value(self, obs: th.Tensor) -> th.Tensor:
        return self.net.value_net(self.net.mlp_extractor.value_net(obs)).squeeze(-1)

    def fit_value(self, obs: th.Tensor, ret: th.Tensor, iters: int, lr: float) -> None:
        optimizer = th.optim.Adam(self.v, lr=lr)
        for _ in range(iters):
            optimizer.zero_grad()
            ((self.value(obs) - ret) ** 2).mean().backward(inputs=self.v)
            optimizer.step()


def paths(model: Any) -> tuple[np.ndarray, np.ndarray]:
    """(adv, ret) of the model's rollout as Spinning Up's buffer computes them, path by path; adv un-normalised."""
    b = model.rollout_buffer
    gamma, lam = 0.99, 0.97
    starts = [*np.flatnonzero(b.episode_starts[:, 0]).tolist(), len(b.rewards)]
    adv, ret = np.zeros(len(b.rewards)), np.zeros(len(b.rewards))
    for begin, end in pairwise(starts):
        # Rewards that end a truncated path carry γ V already; the last path is cut by the rollout's end.
        cut_by_rollout = end == len(b.rewards) and not model._last_episode_starts[0]
        with th.no_grad():
            last = model.policy.predict_values(th.as_tensor(model._last_obs)).item() if cut_by_rollout else 0.0
        rews, vals = np.append(b.rewards[begin:end, 0], last), np.append(b.values[begin:end, 0], last)
        deltas = rews[:-1] + gamma * vals[1:] - vals[:-1]
        for t in range(end - begin):
            k = np.arange(end - begin - t)
            adv[begin + t] = ((gamma * lam) ** k * deltas[t:]).sum()
            ret[begin + t] = (gamma ** np.arange(len(rews) - t) * rews[t:]).sum()
    return adv, ret


def collected(cls: type, env: str, **kwargs: Any) -> tuple[Any, Original, tuple[th.Tensor, ...]]:
    """A model of the preset with a fresh rollout, the original's copy of it, and (obs, act, adv, ret, logp).

    Both compute in float64, so that "equal" leaves rounding no part in early stops and line searches.
    """
    settings = MODULES[cls].SPINNING_UP | {"n_steps": 430, "seed": 1} | kwargs
    settings["policy_kwargs"] = settings.get("policy_kwargs", {}) | {"features_extractor_class": InFloat64}
    model = cls("MlpPolicy", env, **settings)
    model.policy.double()
    _, callback = model._setup_learn(430)
    model.collect_rollouts(model.env, callback, model.rollout_buffer, model.n_steps)
    adv, ret = paths(model)
    np.testing.assert_allclose(model.rollout_buffer.advantages[:, 0], adv, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(model.rollout_buffer.returns[:, 0], ret, rtol=1e-4, atol=1e-3)

    buffer = model.rollout_buffer
    rows = next(buffer.get())
    samples = type(rows)(*(x.double() for x in rows))
    buffer.get = lambda batch_size=None: iter([samples])
    buffer.advantages = buffer.advantages.astype(np.float64)
    adv = (samples.advantages - samples.advantages.mean()) / samples.advantages.std(correction=0)
    batch = samples.observations, samples.actions, adv, samples.returns, samples.old_log_prob
    return model, Original(model.policy), batch


def assert_equal_networks(model: Any, original: Original, *, pi: float = 1e-7) -> None:
    mine = dict(model.policy.named_parameters())
    names = {id(p): n for n, p in original.net.named_parameters()}
    for parameters, tolerance in ((original.pi, pi), (original.v, 1e-7)):
        for p in parameters:
            th.testing.assert_close(mine[names[id(p)]], p, rtol=0, atol=tolerance)


ENVS = ["CartPole-v1", "Pendulum-v1"]


@pytest.mark.parametrize("env", ENVS)
def test_networks_are_initialised_like_the_original(env: str) -> None:
    for cls in (VPG, TRPO, PPO):
        policy = cls("MlpPolicy", env, **MODULES[cls].SPINNING_UP, seed=0).policy
        layers = [m for m in policy.modules() if isinstance(m, nn.Linear)]
        for layer in layers:  # Kaiming-uniform with a = √5 is U(±1/√fan_in); orthogonal √2 columns would exceed it
            assert layer.weight.abs().max() <= layer.in_features**-0.5
            assert layer.bias.abs().max() > 0  # SB3's default zeroes biases
        assert policy.optimizer.defaults["eps"] == 1e-8
        assert [m.out_features for m in policy.mlp_extractor.policy_net if isinstance(m, nn.Linear)] == [64, 64]
        assert all(isinstance(m, (nn.Linear, nn.Tanh)) for m in policy.mlp_extractor.policy_net)
        if env == "Pendulum-v1":
            assert policy.log_std.tolist() == [-0.5]


@pytest.mark.parametrize("env", ENVS)
def test_vpg(env: str) -> None:
    model, original, (obs, act, adv, ret, _) = collected(VPG, env)
    optimizer = th.optim.Adam(original.pi, lr=3e-4)
    (-(original.log_prob(obs, act) * adv).mean()).backward(inputs=original.pi)
    optimizer.step()
    original.fit_value(obs, ret, 80, 1e-3)
    model.train()
    assert_equal_networks(model, original)


@pytest.mark.parametrize("env", ENVS)
@pytest.mark.parametrize(("target_kl", "pi_lr"), [(0.01, 1e-2), (0.5, 3e-4)], ids=["stops early", "runs through"])
def test_ppo(env: str, target_kl: float, pi_lr: float) -> None:
    kwargs = {"target_kl": target_kl, "learning_rate": pi_lr, "n_epochs": 40}
    model, original, (obs, act, adv, ret, logp_old) = collected(PPO, env, **kwargs)
    optimizer = th.optim.Adam(original.pi, lr=pi_lr)
    steps = 0
    for _ in range(40):
        optimizer.zero_grad()
        logp = original.log_prob(obs, act)
        ratio = th.exp(logp - logp_old)
        loss = -(th.min(ratio * adv, th.clamp(ratio, 0.8, 1.2) * adv)).mean()
        if (logp_old - logp).mean().item() > 1.5 * target_kl:
            break
        loss.backward(inputs=original.pi)
        optimizer.step()
        steps += 1
    assert (steps < 40) == (target_kl < 0.1)
    original.fit_value(obs, ret, 80, 1e-3)
    model.train()
    assert_equal_networks(model, original)


@pytest.mark.parametrize("env", ENVS)
@pytest.mark.parametrize("natural_gradient", [False, True], ids=["trpo", "npg"])
def test_trpo(env: str, natural_gradient: bool) -> None:
    model, original, (obs, act, adv, ret, logp_old) = collected(TRPO, env, natural_gradient=natural_gradient)

    def flat(tensors: Any) -> th.Tensor:
        return th.cat([t.reshape(-1) for t in tensors])

    def assign(vector: th.Tensor) -> None:
        with th.no_grad():
            for p, part in zip(original.pi, vector.split([p.numel() for p in original.pi]), strict=True):
                p.copy_(part.view_as(p))

    with th.no_grad():
        old = original.distribution(obs)

    def measure() -> tuple[th.Tensor, th.Tensor]:
        kl = kl_divergence(original.distribution(obs), old)
        kl = (kl.sum(-1) if kl.dim() > 1 else kl).mean()
        return -(th.exp(original.log_prob(obs, act) - logp_old) * adv).mean(), kl

    loss, kl = measure()
    g = flat(th.autograd.grad(loss, original.pi, retain_graph=True))
    grad_kl = flat(th.autograd.grad(kl, original.pi, create_graph=True))

    def hx(x: th.Tensor) -> th.Tensor:
        return flat(th.autograd.grad(grad_kl.dot(x), original.pi, retain_graph=True)) + 0.1 * x

    x, r = th.zeros_like(g), g.clone()
    p, r_dot = r.clone(), r.dot(r)
    for _ in range(10):
        z = hx(p)
        alpha = r_dot / (p.dot(z) + 1e-8)
        x = x + alpha * p
        r = r - alpha * z
        new = r.dot(r)
        p, r_dot = r + new / r_dot * p, new
    alpha = th.sqrt(2 * 0.01 / (x.dot(hx(x)) + 1e-8))
    start = flat([q.detach() for q in original.pi])
    for j in range(1 if natural_gradient else 10):
        assign(start - alpha * 0.8**j * x)
        with th.no_grad():
            new_loss, new_kl = measure()
        if natural_gradient or (new_kl <= 0.01 and new_loss <= loss):
            break
    else:
        assign(start)
    original.fit_value(obs, ret, 80, 1e-3)
    model.train()
    # The original's 1e-8 in its denominators is all that differs over ten conjugate-gradient iterations.
    assert_equal_networks(model, original, pi=1e-5)
    assert not th.equal(flat(original.pi), start)


# --- off-policy ----------------------------------------------------------------------------------------------------


class OriginalOffPolicy:
    """Copies of a model's networks, one Adam for the actor and one for the critics."""

    def __init__(self, model: OffPolicy) -> None:
        self.net, self.targ = deepcopy(model.policy), deepcopy(model.policy)
        self.pi_opt = th.optim.Adam(self.net.actor.parameters(), lr=1e-3)
        self.q_opt = th.optim.Adam(self.net.critic.parameters(), lr=1e-3)

    def mean(self, net: Any, obs: th.Tensor) -> th.Tensor:
        return net.actor.mu(obs)

    def q(self, net: Any, obs: th.Tensor, act: th.Tensor) -> list[th.Tensor]:
        return [q(th.cat([obs, act], dim=-1)).squeeze(-1) for q in net.critic.q_networks]

    def step(self, optimizer: th.optim.Optimizer, loss: th.Tensor) -> None:
        owned = [p for group in optimizer.param_groups for p in group["params"]]
        optimizer.zero_grad()
        loss.backward(inputs=owned)
        optimizer.step()

    def polyak(self) -> None:
        with th.no_grad():
            for part in ("actor", "critic"):
                pairs = zip(getattr(self.net, part).parameters(), getattr(self.targ, part).parameters(), strict=True)
                for p, p_targ in pairs:
                    p_targ.mul_(0.995).add_(0.005 * p)


def replay(model: Any, monkeypatch: pytest.MonkeyPatch, steps: int = 6) -> list[Batch]:
    """Make the model train on ``steps`` known batches."""
    _, callback = model._setup_learn(200)
    model.collect_rollouts(model.env, callback, model.train_freq, model.replay_buffer, learning_starts=10**6)
    batches = [model._sample(model.batch_size) for _ in range(steps)]
    queue = iter(batches)
    monkeypatch.setattr(model, "_sample", lambda batch_size: next(queue))
    model.engine = "torch"  # whose samples these are; tests/test_engine_off_policy.py holds the other tiers to it
    return batches


def build(cls: type, monkeypatch: pytest.MonkeyPatch, env: str) -> tuple[Any, OriginalOffPolicy, list[Batch]]:
    settings = MODULES[cls].SPINNING_UP | {"buffer_size": 1000, "seed": 5}
    model = cls("MlpPolicy", env, **settings)
    return model, OriginalOffPolicy(model), replay(model, monkeypatch)


def assert_equal_policies(model: Any, original: OriginalOffPolicy, targets: tuple[str, ...]) -> None:
    for part in ("actor", "critic"):
        th.testing.assert_close(
            getattr(model.policy, part).state_dict(), getattr(original.net, part).state_dict(), rtol=0, atol=1e-5
        )
    for part in targets:
        th.testing.assert_close(
            getattr(model.policy, f"{part}_target").state_dict(),
            getattr(original.targ, part).state_dict(),
            rtol=0,
            atol=1e-5,
        )


def test_ddpg(monkeypatch: pytest.MonkeyPatch) -> None:
    model, o, batches = build(DDPG, monkeypatch, "Pendulum-v1")
    for b in batches:
        with th.no_grad():
            backup = (
                b.rewards + 0.99 * (1 - b.dones) * o.q(o.targ, b.next_observations, o.mean(o.targ, b.next_observations))[0]
            )
        o.step(o.q_opt, ((o.q(o.net, b.observations, b.actions)[0] - backup) ** 2).mean())
        o.step(o.pi_opt, -o.q(o.net, b.observations, o.mean(o.net, b.observations))[0].mean())
        o.polyak()
    model.train(gradient_steps=len(batches))
    assert_equal_policies(model, o, ("actor", "critic"))


def test_td3_with_noise_in_the_environments_units(monkeypatch: pytest.MonkeyPatch) -> None:
    model, o, batches = build(TD3, monkeypatch, "Pendulum-v1")
    th.manual_seed(0)
    noises = [th.randn_like(b.actions) for b in batches]
    act_limit = 2.0  # Pendulum's torque; the networks see actions divided by it
    for i, (b, noise) in enumerate(zip(batches, noises, strict=True), start=1):
        with th.no_grad():
            epsilon = th.clamp(noise * 0.2, -0.5, 0.5)
            a2 = th.clamp(act_limit * o.mean(o.targ, b.next_observations) + epsilon, -act_limit, act_limit)
            q_targ = th.min(*o.q(o.targ, b.next_observations, a2 / act_limit))
            backup = b.rewards + 0.99 * (1 - b.dones) * q_targ
        q1, q2 = o.q(o.net, b.observations, b.actions)
        o.step(o.q_opt, ((q1 - backup) ** 2).mean() + ((q2 - backup) ** 2).mean())
        if i % 2 == 0:
            o.step(o.pi_opt, -o.q(o.net, b.observations, o.mean(o.net, b.observations))[0].mean())
            o.polyak()
    th.manual_seed(0)
    model.train(gradient_steps=len(batches))
    assert_equal_policies(model, o, ("actor", "critic"))


def test_sac(monkeypatch: pytest.MonkeyPatch) -> None:
    model, o, batches = build(SAC, monkeypatch, "Pendulum-v1")
    th.manual_seed(0)
    noises = [(th.randn_like(b.actions), th.randn_like(b.actions)) for b in batches]

    def pi(obs: th.Tensor, noise: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        hidden = o.net.actor.latent_pi(obs)
        mu, log_std = o.net.actor.mu(hidden), th.clamp(o.net.actor.log_std(hidden), -20, 2)
        u = mu + log_std.exp() * noise
        logp = Normal(mu, log_std.exp()).log_prob(u).sum(-1)
        logp = logp - (2 * (np.log(2) - u - nn.functional.softplus(-2 * u))).sum(-1)
        return th.tanh(u), logp

    for b, (noise, next_noise) in zip(batches, noises, strict=True):
        with th.no_grad():
            a2, logp2 = pi(b.next_observations, next_noise)
            q_targ = th.min(*o.q(o.targ, b.next_observations, a2))
            backup = b.rewards + 0.99 * (1 - b.dones) * (q_targ - 0.2 * logp2)
        q1, q2 = o.q(o.net, b.observations, b.actions)
        o.step(o.q_opt, ((q1 - backup) ** 2).mean() + ((q2 - backup) ** 2).mean())
        a, logp = pi(b.observations, noise)
        o.step(o.pi_opt, (0.2 * logp - th.min(*o.q(o.net, b.observations, a))).mean())
        o.polyak()
    th.manual_seed(0)
    model.train(gradient_steps=len(batches))
    assert_equal_policies(model, o, ("critic",))


@pytest.mark.parametrize("cls", [DDPG, TD3, SAC])
def test_schedule_of_random_actions_and_updates(cls: type, monkeypatch: pytest.MonkeyPatch) -> None:
    """10 000 random steps, updates from 1 000 in blocks of 50: here at a hundredth of the scale."""
    preset = MODULES[cls].SPINNING_UP
    assert (preset["learning_starts"], preset["update_after"]) == (10_000, 1_000)
    assert (preset["train_freq"], preset["gradient_steps"]) == (50, 50)
    scaled = preset | {"learning_starts": 100, "update_after": 10, "train_freq": 5, "gradient_steps": 5}
    model = cls("MlpPolicy", "Pendulum-v1", **scaled, buffer_size=1000, seed=0)
    trained: list[tuple[int, int]] = []
    monkeypatch.setattr(
        model, "train", lambda gradient_steps, batch_size: trained.append((model.num_timesteps, gradient_steps))
    )
    acted: list[int] = []
    predict = model.predict
    monkeypatch.setattr(model, "predict", lambda *a, **k: (acted.append(model.num_timesteps), predict(*a, **k))[1])
    model.learn(120)
    assert trained == [(t, 5) for t in range(10, 121, 5)]
    assert acted == list(range(100, 120))


def test_exploration_noise_is_in_the_environments_units() -> None:
    model = TD3("MlpPolicy", "Pendulum-v1", **td3.SPINNING_UP, buffer_size=10)
    assert model.action_noise is not None
    assert model.action_noise._sigma.tolist() == [0.05]  # 0.1 of ±2, in [−1, 1]
