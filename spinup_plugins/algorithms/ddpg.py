"""Deep deterministic policy gradient (DDPG).

Lillicrap et al. 2016 (arXiv:1509.02971), algorithm 1; Silver et al. 2014 for the deterministic policy gradient. Per gradient
step, on a batch (s, a, r, s', d):

    (1)  y = r + γ (1 − d) Q_targ(s', μ_targ(s'))
    (2)  J(φ) = mean[ (Q(s, a) − y)² ]
    (3)  J(θ) = −mean[ Q(s, μ_θ(s)) ]
    (4)  φ_targ ← τ φ + (1 − τ) φ_targ,  θ_targ ← τ θ + (1 − τ) θ_targ

With ``policy_kwargs={"n_critics": n}`` y takes the smallest of n target critics, as Stable-Baselines3 does.
"""

from typing import Any, ClassVar

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

__all__ = ["DDPG", "SPINNING_UP"]

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
    "noise_units": "env",
    "policy_kwargs": {"net_arch": [256, 256]},
}


class DDPG(OffPolicy):
    """Deep deterministic policy gradient; constructor, defaults and zips are Stable-Baselines3's.

    :param policy: ``"MlpPolicy"``, ``"CnnPolicy"``, ``"MultiInputPolicy"`` or a subclass of SB3's ``TD3Policy``
    :param env: environment, vec-env, or the id of a registered one; its actions are a Box
    :param learning_rate: learning rate of actor and critic, or a schedule of the remaining progress (1 → 0)
    :param buffer_size: transitions that the replay buffer holds
    :param learning_starts: steps of uniformly random actions before the policy acts
    :param batch_size: minibatch size
    :param tau: τ of eq. (4)
    :param gamma: discount factor γ
    :param train_freq: collect so many steps between updates, or ``(n, "episode")``
    :param gradient_steps: gradient steps per update, −1 for as many as steps were collected
    :param action_noise: exploration noise added to μ(s); a number is the deviation of a Gaussian, ``None`` explores not at all
    :param replay_buffer_class: replay buffer, chosen by the observation space and ``n_steps`` when ``None``
    :param replay_buffer_kwargs: further arguments of the replay buffer
    :param optimize_memory_usage: store next observations only once, as ``compact_replay`` does in any case
    :param n_steps: n of the n-step returns in eq. (1)
    :param tensorboard_log: directory of TensorBoard logs, ``None`` for none
    :param policy_kwargs: arguments of the policy; one critic unless they say otherwise
    :param verbose: 0 silent, 1 information, 2 debugging
    :param seed: seed of every random generator
    :param device: ``"cpu"``, ``"cuda"`` or ``"auto"``
    :param stats_window_size: episodes that reported means are taken over
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

    _file_mark: ClassVar[str] = "train_freq"
    _foreign_marks: ClassVar[tuple[str, ...]] = ("target_entropy", "exploration_fraction")

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
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "auto",
        _init_setup_model: bool = True,
        *,
        stats_window_size: int = 100,
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
            policy_kwargs={"n_critics": 1, **(policy_kwargs or {})},
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
        if _init_setup_model:
            self._setup_model()

    @classmethod
    def _wrote(cls, saved: dict[str, Any]) -> bool:
        # Stable-Baselines3's DDPG is its TD3 without delay and smoothing, and its files say so.
        plain = saved.get("policy_delay", 1) == 1 and saved.get("target_noise_clip", 0.0) == 0.0
        return super()._wrote(saved) and plain

    def _setup_model(self) -> None:
        for name in ("policy_delay", "target_policy_noise", "target_noise_clip"):
            vars(self).pop(name, None)  # from a file of Stable-Baselines3's, and none of this algorithm's
        super()._setup_model()
        self.actor, self.actor_target = self.policy.actor, self.policy.actor_target
        self._track_batch_norm("actor")

    def train(self, gradient_steps: int, batch_size: int = 100) -> None:
        """Take ``gradient_steps`` steps of (1)-(4), each on a fresh minibatch."""
        self._update_learning_rates()
        networks: DeterministicActorCritic | None = self._tier().bound
        losses: list[tuple[Any, Any]] = []
        if networks is None:
            self.policy.set_training_mode(True)
        else:
            networks.begin()
        for _ in range(gradient_steps):
            if networks is None:
                losses.append(self._update(self._sample(batch_size)))
            else:
                batch = self._transitions(batch_size, networks.observations)
                losses.append((networks.update_critic(batch), networks.update_actor(batch, self.tau)))

        self._n_updates += gradient_steps
        self._record_means({"actor_loss": [actor for _, actor in losses], "critic_loss": [critic for critic, _ in losses]})

    def _update(self, batch: Batch) -> tuple[th.Tensor, th.Tensor]:
        """One gradient step of critic and actor; returns their detached losses."""
        loss_q = self._compiled(self._critic_loss)(batch)
        descend(self.critic.optimizer, loss_q)

        with constant(self.critic.optimizer, but=self.actor.optimizer):
            loss_pi = self._compiled(self._actor_loss)(batch.observations)
        descend(self.actor.optimizer, loss_pi)

        self._update_target("critic")  # eq. (4)
        self._update_target("actor")
        return loss_q.detach(), loss_pi.detach()

    def _critic_loss(self, batch: Batch) -> th.Tensor:
        with th.no_grad():
            next_actions = self.actor_target(batch.next_observations)
            next_q = th.cat(self.critic_target(batch.next_observations, next_actions), dim=1).min(dim=1).values
            targets = functional.td_target(batch.rewards, batch.dones, batch.discounts, next_q)  # eq. (1)
        q_values = th.cat(self.critic(batch.observations, batch.actions), dim=1)
        return functional.q_loss(q_values, targets)  # eq. (2)

    def _actor_loss(self, observations: PyTorchObs) -> th.Tensor:
        actions = self.actor(observations)
        return -self.critic.q1_forward(observations, actions).mean()  # type: ignore[arg-type]  # eq. (3)

    _replaced: ClassVar[tuple[str, ...]] = (*OffPolicy._replaced, "_update", "_critic_loss", "_actor_loss")

    def _bind(self, ops: Any) -> DeterministicActorCritic:
        return DeterministicActorCritic(self.policy, ops)
