"""Twin delayed deep deterministic policy gradient (TD3).

Fujimoto et al. 2018 (arXiv:1802.09477), algorithm 1. Per gradient step, on a batch (s, a, r, s', d):

    (1)  a' = clip( μ_targ(s') + clip(ε, −c, c), −1, 1 ),  ε ~ N(0, σ)        target policy smoothing
    (2)  y = r + γ (1 − d) min_i Q_targ,i(s', a')                             clipped double Q-learning
    (3)  J(φ) = Σ_i mean[ (Q_i(s, a) − y)² ]

and every ``policy_delay`` steps:

    (4)  J(θ) = −mean[ Q_1(s, μ_θ(s)) ]
    (5)  φ_targ ← τ φ + (1 − τ) φ_targ,  θ_targ ← τ θ + (1 − τ) θ_targ
"""

from typing import Any, ClassVar

import numpy as np
import torch as th
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, PyTorchObs, Schedule
from stable_baselines3.td3.policies import Actor, CnnPolicy, MlpPolicy, MultiInputPolicy, TD3Policy

from spinup_plugins.algorithms import functional
from spinup_plugins.algorithms.off_policy import Batch, NoiseUnits, OffPolicy, constant, descend
from spinup_plugins.engine.q_learning import DeterministicActorCritic
from spinup_plugins.engine.tiers import EngineName

__all__ = ["SPINNING_UP", "TD3", "smoothed_actions"]

SPINNING_UP: dict[str, Any] = {
    "learning_rate": 1e-3,
    "batch_size": 100,
    "tau": 0.005,
    "gamma": 0.99,
    "learning_starts": 10_000,
    "update_after": 1_000,
    "train_freq": 50,
    "gradient_steps": 50,
    "action_noise": 0.1,
    "target_policy_noise": 0.2,
    "target_noise_clip": 0.5,
    "noise_units": "env",
    "policy_delay": 2,
    "policy_kwargs": {"net_arch": [256, 256]},
}


def smoothed_actions(actions: th.Tensor, noise: th.Tensor, scale: th.Tensor | float, clip: th.Tensor | float) -> th.Tensor:
    """Eq. (1).

    :param actions: μ_targ(s'), (B, A)
    :param noise: ε / σ ~ N(0, 1), (B, A)
    :param scale: σ, scalar or (A,)
    :param clip: c, scalar or (A,)
    :return: (B, A)
    """
    clip = th.as_tensor(clip, dtype=actions.dtype, device=actions.device)
    return (actions + (noise * scale).clamp(-clip, clip)).clamp(-1, 1)


class TD3(OffPolicy):
    """Twin delayed DDPG; constructor, defaults and zips are Stable-Baselines3's.

    :param policy: ``"MlpPolicy"``, ``"CnnPolicy"``, ``"MultiInputPolicy"`` or a subclass of SB3's ``TD3Policy``
    :param env: environment, vec-env, or the id of a registered one; its actions are a Box
    :param learning_rate: learning rate of actor and critic, or a schedule of the remaining progress (1 → 0)
    :param buffer_size: transitions that the replay buffer holds
    :param learning_starts: steps of uniformly random actions before the policy acts
    :param batch_size: minibatch size
    :param tau: τ of eq. (5)
    :param gamma: discount factor γ
    :param train_freq: collect so many steps between updates, or ``(n, "episode")``
    :param gradient_steps: gradient steps per update, −1 for as many as steps were collected
    :param action_noise: exploration noise added to μ(s); a number is the deviation of a Gaussian, ``None`` explores not at all
    :param replay_buffer_class: replay buffer, chosen by the observation space and ``n_steps`` when ``None``
    :param replay_buffer_kwargs: further arguments of the replay buffer
    :param optimize_memory_usage: store next observations only once, as ``compact_replay`` does in any case
    :param n_steps: n of the n-step returns in eq. (2)
    :param policy_delay: gradient steps of the critic per step of the actor and the targets
    :param target_policy_noise: σ of eq. (1), in ``noise_units``
    :param target_noise_clip: c of eq. (1), in ``noise_units``
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
    """

    _file_mark: ClassVar[str] = "target_policy_noise"

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": MlpPolicy,
        "CnnPolicy": CnnPolicy,
        "MultiInputPolicy": MultiInputPolicy,
    }
    policy: TD3Policy
    actor: Actor
    actor_target: Actor

    def __init__(
        self,
        policy: str | type[TD3Policy],
        env: GymEnv | str,
        learning_rate: float | Schedule = 1e-3,
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
        policy_delay: int = 2,
        target_policy_noise: float = 0.2,
        target_noise_clip: float = 0.5,
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
            sde_support=False,
            q_lr=q_lr,
            update_after=update_after,
            noise_units=noise_units,
            compact_replay=compact_replay,
            overlap=overlap,
            engine=engine,
            n_threads=n_threads,
            compile=compile,
        )
        self.policy_delay = policy_delay
        self.target_policy_noise = target_policy_noise
        self.target_noise_clip = target_noise_clip

        if _init_setup_model:
            self._setup_model()

    def _setup_model(self) -> None:
        super()._setup_model()
        self.actor, self.actor_target = self.policy.actor, self.policy.actor_target
        self._track_batch_norm("actor")

    def train(self, gradient_steps: int, batch_size: int = 100) -> None:
        """Take ``gradient_steps`` steps of (1)-(5), each on a fresh minibatch."""
        self._update_learning_rates()
        networks: DeterministicActorCritic | None = self._tier().bound
        if networks is None:
            self.policy.set_training_mode(True)
            unit: Any = th.as_tensor(self._noise_unit(), dtype=th.float32, device=self.device)
        else:
            networks.begin()
            unit = self._noise_unit()
        unit = unit if np.ndim(unit) == 0 else unit.reshape(-1)  # as minibatches' actions are
        scale, clip = self.target_policy_noise / unit, self.target_noise_clip / unit
        critic_losses: list[Any] = []
        actor_losses: list[Any] = []
        for _ in range(gradient_steps):
            self._n_updates += 1
            actors_turn = self._n_updates % self.policy_delay == 0
            if networks is None:
                batch = self._sample(batch_size)
                critic_losses.append(self._update_critic(batch, scale, clip))
                if actors_turn:
                    actor_losses.append(self._update_actor(batch))
                    self._update_target("critic")  # eq. (5)
                    self._update_target("actor")
            else:
                transitions = self._transitions(batch_size, networks.observations)
                noise = networks.noise(batch_size)
                critic_losses.append(networks.update_critic(transitions, noise, scale, clip))
                if actors_turn:
                    actor_losses.append(networks.update_actor(transitions, self.tau))

        self._record_means({"actor_loss": actor_losses, "critic_loss": critic_losses})

    def _update_critic(self, batch: Batch, scale: th.Tensor, clip: th.Tensor) -> th.Tensor:
        loss = self._compiled(self._critic_loss)(batch, th.randn_like(batch.actions), scale, clip)
        descend(self.critic.optimizer, loss)
        return loss.detach()

    def _update_actor(self, batch: Batch) -> th.Tensor:
        with constant(self.critic.optimizer, but=self.actor.optimizer):
            loss = self._compiled(self._actor_loss)(batch.observations)
        descend(self.actor.optimizer, loss)
        return loss.detach()

    def _critic_loss(self, batch: Batch, noise: th.Tensor, scale: th.Tensor, clip: th.Tensor) -> th.Tensor:
        with th.no_grad():
            next_actions = smoothed_actions(self.actor_target(batch.next_observations), noise, scale, clip)  # eq. (1)
            next_q = th.cat(self.critic_target(batch.next_observations, next_actions), dim=1).min(dim=1).values
            targets = functional.td_target(batch.rewards, batch.dones, batch.discounts, next_q)  # eq. (2)
        q_values = th.cat(self.critic(batch.observations, batch.actions), dim=1)
        return functional.q_loss(q_values, targets)  # eq. (3)

    def _actor_loss(self, observations: PyTorchObs) -> th.Tensor:
        actions = self.actor(observations)
        return -self.critic.q1_forward(observations, actions).mean()  # type: ignore[arg-type]  # eq. (4)

    _replaced: ClassVar[tuple[str, ...]] = (
        *OffPolicy._replaced,
        "_update_critic",
        "_update_actor",
        "_critic_loss",
        "_actor_loss",
    )

    def _bind(self, ops: Any) -> DeterministicActorCritic:
        return DeterministicActorCritic(self.policy, ops)
