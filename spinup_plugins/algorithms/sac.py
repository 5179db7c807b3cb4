"""Soft actor-critic (SAC).

Haarnoja et al. 2018 (arXiv:1801.01290; arXiv:1812.05905 for the learned temperature). Actions are squashed Gaussians,
a = tanh(μ_θ(s) + σ_θ(s) ε), reparameterised by ε ~ N(0, 1). Per gradient step, on a batch (s, a, r, s', d):

    (1)  J(α) = mean[ −log α (log π_θ(ã|s) + H̄) ],  ã ~ π_θ(·|s)             H̄: target entropy, −dim(A) by default
    (2)  y = r + γ (1 − d) ( min_i Q_targ,i(s', a') − α log π_θ(a'|s') ),  a' ~ π_θ(·|s')
    (3)  J(φ) = c Σ_i mean[ (Q_i(s, a) − y)² ]                                c = ½, Spinning Up: 1
    (4)  J(θ) = mean[ α log π_θ(ã|s) − min_i Q_i(s, ã) ]
    (5)  φ_targ ← τ φ + (1 − τ) φ_targ

The paper's (1) has α where common practice, SB3's and ours, has log α: the same sign of gradient, never a negative α.
"""

from math import inf
from typing import Any, ClassVar, Literal, TypeAlias

import numpy as np
import torch as th
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, PyTorchObs, Schedule
from stable_baselines3.sac.policies import Actor, CnnPolicy, MlpPolicy, MultiInputPolicy, SACPolicy

from spinup_plugins.algorithms import functional
from spinup_plugins.algorithms.common import choice
from spinup_plugins.algorithms.off_policy import Batch, NoiseUnits, OffPolicy, constant, descend
from spinup_plugins.engine.soft_q_learning import SoftActorCritic, Temperature
from spinup_plugins.engine.tiers import EngineName
from spinup_plugins.errors import ConfigError

__all__ = ["SAC", "SPINNING_UP", "actor_loss", "temperature_loss"]

SPINNING_UP: dict[str, Any] = {
    "learning_rate": 1e-3,
    "batch_size": 100,
    "tau": 0.005,
    "gamma": 0.99,
    "learning_starts": 10_000,
    "update_after": 1_000,
    "train_freq": 50,
    "gradient_steps": 50,
    "ent_coef": 0.2,
    "critic_loss_coef": 1.0,
    "tanh_correction": "exact",
    "policy_kwargs": {"net_arch": [256, 256]},
}


TanhCorrection: TypeAlias = Literal["epsilon", "exact"]


def temperature_loss(log_ent_coef: th.Tensor, log_prob: th.Tensor, target_entropy: float) -> th.Tensor:
    """Eq. (1).

    :param log_ent_coef: log α, (1,)
    :param log_prob: log π(ã|s), (B,)
    :param target_entropy: H̄, nats
    :return: scalar
    """
    return -(log_ent_coef * (log_prob + target_entropy).detach()).mean()


def actor_loss(ent_coef: th.Tensor, log_prob: th.Tensor, q_values: th.Tensor) -> th.Tensor:
    """Eq. (4).

    :param ent_coef: α, scalar or (1,)
    :param log_prob: log π(ã|s), (B,)
    :param q_values: Q_i(s, ã), (B, n_critics)
    :return: scalar
    """
    return (ent_coef * log_prob - q_values.min(dim=1).values).mean()


class SAC(OffPolicy):
    """Soft actor-critic; constructor, defaults and zips are Stable-Baselines3's.

    :param policy: ``"MlpPolicy"``, ``"CnnPolicy"``, ``"MultiInputPolicy"`` or a subclass of SB3's ``SACPolicy``
    :param env: environment, vec-env, or the id of a registered one; its actions are a Box
    :param learning_rate: learning rate of actor, critic and temperature, or a schedule of the remaining progress (1 → 0)
    :param buffer_size: transitions that the replay buffer holds
    :param learning_starts: steps of uniformly random actions before the policy acts
    :param batch_size: minibatch size
    :param tau: τ of eq. (5)
    :param gamma: discount factor γ
    :param train_freq: collect so many steps between updates, or ``(n, "episode")``
    :param gradient_steps: gradient steps per update, −1 for as many as steps were collected
    :param action_noise: noise added to the policy's actions; a number is the deviation of a Gaussian
    :param replay_buffer_class: replay buffer, chosen by the observation space and ``n_steps`` when ``None``
    :param replay_buffer_kwargs: further arguments of the replay buffer
    :param optimize_memory_usage: store next observations only once, as ``compact_replay`` does in any case
    :param n_steps: n of the n-step returns in eq. (2)
    :param ent_coef: α; ``"auto"`` learns it by (1) from 1, ``"auto_0.1"`` from 0.1
    :param target_update_interval: update (5) at the first and every n-th gradient step of each ``train()``, as SB3 counts
    :param target_entropy: H̄ in nats, ``"auto"`` for −dim(A)
    :param use_sde: use generalised state-dependent exploration
    :param sde_sample_freq: sample a new noise matrix every n steps, −1 for once per rollout
    :param use_sde_at_warmup: explore by gSDE instead of uniformly before ``learning_starts``
    :param stats_window_size: episodes that reported means are taken over
    :param tensorboard_log: directory of TensorBoard logs, ``None`` for none
    :param policy_kwargs: arguments of the policy
    :param verbose: 0 silent, 1 information, 2 debugging
    :param seed: seed of every random generator
    :param device: ``"cpu"``, ``"cuda"`` or ``"auto"``
    :param compact_replay: store each observation once, and 64-bit ones in single precision where samples stay SB3's
    :param overlap: take gradient steps while the environments step, which pays where they step in processes of their own;
        minibatches then lack the newest transition
    :param engine: tier to act and learn on: ``"native"``, ``"numpy"``, ``"torch"``; ``"auto"`` takes the fastest that knows
        the policy
    :param n_threads: threads to compute with; ``None`` measures at the start of ``learn`` how many are fastest on the native
        tier, takes one on NumPy's, where results depend on their number, and torch's own number on torch's
    :param compile: True, or arguments of ``torch.compile``: compile losses and their gradients on torch's tier; other tiers
        use no torch
    :param critic_loss_coef: c of eq. (3)
    :param tanh_correction: ``"epsilon"``: SB3's log(1 − a² + 1e-6) in log π; ``"exact"``: Spinning Up's identity
    """

    _file_mark: ClassVar[str] = "target_entropy"
    _foreign_marks: ClassVar[tuple[str, ...]] = ("top_quantiles_to_drop_per_net", "policy_delay")  # TQC, CrossQ

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": MlpPolicy,
        "CnnPolicy": CnnPolicy,
        "MultiInputPolicy": MultiInputPolicy,
    }
    policy: SACPolicy
    actor: Actor

    def __init__(
        self,
        policy: str | type[SACPolicy],
        env: GymEnv | str,
        learning_rate: float | Schedule = 3e-4,
        buffer_size: int = 1_000_000,
        learning_starts: int = 100,
        batch_size: int = 256,
        tau: float = 0.005,
        gamma: float = 0.99,
        train_freq: int | tuple[int, str] = 1,
        gradient_steps: int = 1,
        action_noise: ActionNoise | float | None = None,
        replay_buffer_class: type[ReplayBuffer] | None = None,
        replay_buffer_kwargs: dict[str, Any] | None = None,
        optimize_memory_usage: bool = False,
        n_steps: int = 1,
        ent_coef: str | float = "auto",
        target_update_interval: int = 1,
        target_entropy: str | float = "auto",
        use_sde: bool = False,
        sde_sample_freq: int = -1,
        use_sde_at_warmup: bool = False,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "auto",
        _init_setup_model: bool = True,
        *,
        q_lr: float | Schedule | None = None,
        update_after: int | None = None,
        noise_units: NoiseUnits = "normalized",
        compact_replay: bool = True,
        overlap: bool = False,
        engine: EngineName = "auto",
        n_threads: int | None = None,
        compile: bool | dict[str, Any] = False,
        critic_loss_coef: float = 0.5,
        tanh_correction: TanhCorrection = "epsilon",
    ) -> None:
        super().__init__(
            policy,
            env,
            learning_rate,
            buffer_size,
            learning_starts,
            batch_size,
            tau,
            gamma,
            train_freq,
            gradient_steps,
            action_noise=action_noise,
            replay_buffer_class=replay_buffer_class,
            replay_buffer_kwargs=replay_buffer_kwargs,
            optimize_memory_usage=optimize_memory_usage,
            n_steps=n_steps,
            policy_kwargs=policy_kwargs,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            verbose=verbose,
            seed=seed,
            device=device,
            use_sde=use_sde,
            sde_sample_freq=sde_sample_freq,
            use_sde_at_warmup=use_sde_at_warmup,
            q_lr=q_lr,
            update_after=update_after,
            noise_units=noise_units,
            compact_replay=compact_replay,
            overlap=overlap,
            engine=engine,
            n_threads=n_threads,
            compile=compile,
        )
        self.ent_coef = ent_coef
        self.target_update_interval = target_update_interval
        self.target_entropy = target_entropy
        self.critic_loss_coef = critic_loss_coef
        self.tanh_correction = tanh_correction
        self.log_ent_coef: th.Tensor | None = None
        self.ent_coef_optimizer: th.optim.Adam | None = None

        if _init_setup_model:
            self._setup_model()

    def _setup_model(self) -> None:
        choice("tanh_correction", self.tanh_correction, TanhCorrection)
        super()._setup_model()
        self.actor = self.policy.actor
        # Actors of other make keep their own distribution; SB3's is written out in functional.squashed_gaussian.
        self._own_distribution = type(self.actor) is Actor and not self.use_sde
        if self.tanh_correction == "exact" and not self._own_distribution:
            raise ConfigError("tanh_correction='exact' needs SB3's own actor without gSDE; use 'epsilon'")
        if self.target_entropy == "auto":
            self.target_entropy = -float(np.prod(self.action_space.shape))  # type: ignore[arg-type]
        try:
            self.target_entropy = float(self.target_entropy)
            ent_coef = float(str(self.ent_coef).removeprefix("auto").removeprefix("_") or 1.0)
        except ValueError:
            raise ConfigError(
                f"SAC: ent_coef={self.ent_coef!r} must be a number, 'auto' or 'auto_<initial value>',"
                f" target_entropy={self.target_entropy!r} a number or 'auto'"
            ) from None
        if not 0.0 <= ent_coef < inf:
            raise ConfigError(f"SAC: ent_coef={self.ent_coef!r} must be at least 0")
        if isinstance(self.ent_coef, str) and self.ent_coef.startswith("auto"):
            assert ent_coef > 0.0, "The initial value of ent_coef must be greater than 0"
            self.log_ent_coef = th.log(th.full((1,), ent_coef, device=self.device)).requires_grad_(True)
            self.ent_coef_optimizer = th.optim.Adam([self.log_ent_coef], lr=self.lr_schedule(1))
        else:
            self.ent_coef_tensor = th.tensor(ent_coef, device=self.device)

    def train(self, gradient_steps: int, batch_size: int = 64) -> None:
        """Take ``gradient_steps`` steps of (1)-(5), each on a fresh minibatch."""
        self._update_learning_rates([] if self.ent_coef_optimizer is None else [self.ent_coef_optimizer])
        networks = self._tier().bound
        if networks is None:
            self.policy.set_training_mode(True)
            metrics = [self._update(self._sample(batch_size), step) for step in range(gradient_steps)]
        else:
            metrics = self._update_by_engine(networks, gradient_steps, batch_size)
        self._n_updates += gradient_steps
        self._record_means({key: [m[key] for m in metrics] for key in (metrics[0] if metrics else ())})

    def _update(self, batch: Batch, step: int) -> dict[str, th.Tensor]:
        """One gradient step of everything; returns detached scalars."""
        metrics = {}
        if self.use_sde:
            self.actor.reset_noise()
        actions_pi, log_prob = self._compiled(self._pi)(batch.observations, self._noise(batch))

        if self.log_ent_coef is not None and self.ent_coef_optimizer is not None:
            ent_coef = th.exp(self.log_ent_coef.detach())
            assert isinstance(self.target_entropy, float), "converted by _setup_model"
            loss = temperature_loss(self.log_ent_coef, log_prob, self.target_entropy)  # eq. (1)
            descend(self.ent_coef_optimizer, loss)
            metrics["ent_coef_loss"] = loss.detach()
        else:
            ent_coef = self.ent_coef_tensor

        loss_q = self._compiled(self._critic_loss)(batch, ent_coef, self._noise(batch))
        descend(self.critic.optimizer, loss_q)

        with constant(self.critic.optimizer, but=self.actor.optimizer):
            loss_pi = self._compiled(self._actor_loss)(batch.observations, actions_pi, log_prob, ent_coef)
        descend(self.actor.optimizer, loss_pi)

        if step % self.target_update_interval == 0:
            self._update_target("critic")  # eq. (5)
        return metrics | {
            "ent_coef": ent_coef.reshape(()),
            "actor_loss": loss_pi.detach(),
            "critic_loss": loss_q.detach(),
        }

    def _critic_loss(self, batch: Batch, ent_coef: th.Tensor, noise: th.Tensor | None) -> th.Tensor:
        with th.no_grad():
            next_actions, next_log_prob = self._pi(batch.next_observations, noise)
            next_q = th.cat(self.critic_target(batch.next_observations, next_actions), dim=1).min(dim=1).values
            soft_value = next_q - ent_coef * next_log_prob
            targets = functional.td_target(batch.rewards, batch.dones, batch.discounts, soft_value)  # eq. (2)
        q_values = th.cat(self.critic(batch.observations, batch.actions), dim=1)
        return self.critic_loss_coef * functional.q_loss(q_values, targets)  # eq. (3)

    def _actor_loss(self, observations: PyTorchObs, actions: th.Tensor, log_prob: th.Tensor, ent_coef: th.Tensor) -> th.Tensor:
        q_values = th.cat(self.critic(observations, actions), dim=1)
        return actor_loss(ent_coef, log_prob, q_values)  # eq. (4)

    def _noise(self, batch: Batch) -> th.Tensor | None:
        """ε for :meth:`_pi` where it is compiled: a compiled one's own draws would come from another stream."""
        return th.randn_like(batch.actions) if self.compile and self._own_distribution else None

    def _pi(self, observations: PyTorchObs, noise: th.Tensor | None = None) -> tuple[th.Tensor, th.Tensor]:
        """Draw a ~ π_θ(·|s), (B, A), with log π_θ(a|s), (B,), by ``noise`` or else where Stable-Baselines3 draws it."""
        if not self._own_distribution:
            actions, log_prob = self.actor.action_log_prob(observations)
            return actions, log_prob.flatten()
        mean, log_std, _ = self.actor.get_action_dist_params(observations)
        noise = th.randn_like(mean) if noise is None else noise
        return functional.squashed_gaussian(mean, log_std, noise, exact=self.tanh_correction == "exact")

    _replaced: ClassVar[tuple[str, ...]] = (*OffPolicy._replaced, "_update", "_pi", "_critic_loss", "_actor_loss")

    def _bind(self, ops: Any) -> SoftActorCritic:
        Temperature.check(self.log_ent_coef, self.ent_coef_optimizer)
        return SoftActorCritic(self.policy, ops)

    def _update_by_engine(self, networks: SoftActorCritic, gradient_steps: int, batch_size: int) -> list[dict[str, Any]]:
        """``_update`` on another tier than torch's."""
        ent_coef: Temperature | float
        if self.log_ent_coef is not None and self.ent_coef_optimizer is not None:
            assert isinstance(self.target_entropy, float), "converted by _setup_model"
            ent_coef = Temperature(networks.ops, self.log_ent_coef, self.ent_coef_optimizer, self.target_entropy)
        else:
            ent_coef = float(self.ent_coef_tensor)
        networks.begin()
        return [
            networks.update(
                self._transitions(batch_size, networks.observations),
                networks.noise(batch_size),
                ent_coef,
                exact=self.tanh_correction == "exact",
                critic_loss_coef=self.critic_loss_coef,
                tau=self.tau if step % self.target_update_interval == 0 else None,
            )
            for step in range(gradient_steps)
        ]

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_own_distribution"]

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        modules, _ = super()._get_torch_save_params()
        if self.ent_coef_optimizer is None:
            return modules, ["ent_coef_tensor"]
        return [*modules, "ent_coef_optimizer"], ["log_ent_coef"]
