"""What DDPG, TD3 and SAC share: batches, learning rates, exploration noise, and when gradient steps begin."""

from collections.abc import Iterable
from typing import Any, Literal, NamedTuple, TypeAlias, TypeVar

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.noise import ActionNoise, NormalActionNoise, VectorizedActionNoise
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.policies import ContinuousCritic
from stable_baselines3.common.type_aliases import MaybeCallback, PyTorchObs, Schedule
from stable_baselines3.common.utils import FloatSchedule, get_parameters_by_name, polyak_update, update_learning_rate

from spinup_plugins.algorithms.common import DropIn, choice

__all__ = ["Batch", "NoiseUnits", "OffPolicy", "descend"]

NoiseUnits: TypeAlias = Literal["normalized", "env"]

SelfOffPolicy = TypeVar("SelfOffPolicy", bound="OffPolicy")


class Batch(NamedTuple):
    """A minibatch of transitions; actions are scaled to [−1, 1]."""

    observations: PyTorchObs  #: (B, …)
    actions: th.Tensor  #: (B, A)
    rewards: th.Tensor  #: (B,), summed over n steps where the buffer does so
    next_observations: PyTorchObs  #: (B, …)
    dones: th.Tensor  #: (B,), 1 at terminal states only
    discounts: th.Tensor | float  #: γ, or (B,) with γ^n


def descend(optimizer: th.optim.Optimizer, loss: th.Tensor) -> None:
    """Step ``optimizer`` down ``loss``; the gradient goes to the parameters it owns and no further."""
    optimizer.zero_grad()
    owned = [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
    loss.backward(inputs=owned)  # type: ignore[no-untyped-call]
    optimizer.step()


class OffPolicy(DropIn, OffPolicyAlgorithm):
    """Base of the off-policy algorithms. A subclass calls ``_setup_model()`` itself, once its own arguments are set.

    :param q_lr: learning rate (or schedule) of the critic, ``None`` for ``learning_rate``
    :param update_after: gradient steps begin once so many steps are collected, ``None`` for after ``learning_starts``
    :param noise_units: ``"normalized"``: noise is relative to actions in [−1, 1], as SB3; ``"env"``: to the environment's
        own actions, as Spinning Up
    """

    action_noise: ActionNoise | float | None  # type: ignore[assignment]  # a float until _setup_model
    critic: ContinuousCritic
    critic_target: ContinuousCritic

    def __init__(
        self,
        *args: Any,
        action_noise: ActionNoise | float | None = None,
        q_lr: float | Schedule | None = None,
        update_after: int | None = None,
        noise_units: NoiseUnits = "normalized",
        **kwargs: Any,
    ) -> None:
        kwargs |= {"supported_action_spaces": (spaces.Box,), "support_multi_env": True}
        kwargs["policy_kwargs"] = dict(kwargs.get("policy_kwargs") or {})  # ours to extend, not the caller's
        super().__init__(*args, **kwargs)
        self.action_noise = action_noise
        self.q_lr = q_lr
        self.update_after = update_after
        self.noise_units = noise_units

    def _setup_model(self) -> None:
        self._check_ranges()
        choice("noise_units", self.noise_units, NoiseUnits)
        if isinstance(self.action_noise, (int, float)):
            self.action_noise = NormalActionNoise(
                np.zeros(self._action_half_range().shape),
                np.full(self._action_half_range().shape, self.action_noise) / self._noise_unit(),
            )
        elif isinstance(self.action_noise, VectorizedActionNoise) and self.action_noise.n_envs != self.n_envs:
            self.action_noise = self.action_noise.base_noise  # loaded for another number of environments
        super()._setup_model()
        self.q_lr_schedule = self.lr_schedule if self.q_lr is None else FloatSchedule(self.q_lr)
        self.critic, self.critic_target = self.policy.critic, self.policy.critic_target  # type: ignore[assignment]
        self._track_batch_norm("critic")

    def _action_half_range(self) -> np.ndarray[Any, np.dtype[Any]]:
        """(high − low) / 2 of each action dimension."""
        assert isinstance(self.action_space, spaces.Box)
        return (self.action_space.high - self.action_space.low) / 2.0

    def _noise_unit(self) -> Any:
        """What one unit of noise is in actions scaled to [−1, 1]: 1, or the half range of each dimension."""
        return self._action_half_range() if self.noise_units == "env" else 1.0

    def _track_batch_norm(self, name: str) -> None:
        """Note ``name``'s running statistics and its target's, which are copied rather than averaged."""
        for suffix in ("", "_target"):
            statistics = get_parameters_by_name(getattr(self, f"{name}{suffix}"), ["running_"])
            setattr(self, f"{name}_batch_norm_stats{suffix}", statistics)

    def _update_target(self, name: str) -> None:
        """θ_targ ← τ θ + (1 − τ) θ_targ."""
        network, target = getattr(self, name), getattr(self, f"{name}_target")
        polyak_update(network.parameters(), target.parameters(), self.tau)
        polyak_update(getattr(self, f"{name}_batch_norm_stats"), getattr(self, f"{name}_batch_norm_stats_target"), 1.0)

    def _update_learning_rates(self, others: Iterable[th.optim.Optimizer] = ()) -> None:
        """Set actor's and critic's current learning rates, and those of ``others`` like the actor's; log them."""
        self._update_learning_rate([self.actor.optimizer, self.critic.optimizer, *others])  # type: ignore[list-item]
        if self.q_lr is not None:
            q_lr = self.q_lr_schedule(self._current_progress_remaining)
            update_learning_rate(self.critic.optimizer, q_lr)
            self.logger.record("train/q_lr", q_lr)

    def _sample(self, batch_size: int) -> Batch:
        """Draw a minibatch, uniformly and with replacement."""
        assert self.replay_buffer is not None, "set by _setup_model"
        data = self.replay_buffer.sample(batch_size, env=self._vec_normalize_env)
        return Batch(
            data.observations,
            data.actions,
            data.rewards.flatten(),
            data.next_observations,
            data.dones.flatten(),
            self.gamma if data.discounts is None else data.discounts.flatten(),
        )

    def _store_transition(
        self,
        replay_buffer: ReplayBuffer,
        buffer_action: Any,
        new_obs: Any,
        reward: Any,
        dones: Any,
        infos: list[dict[str, Any]],
    ) -> None:
        self._check_finite(new_obs, reward)
        for index in np.flatnonzero(dones).tolist():
            if infos[index].get("terminal_observation") is not None:
                self._check_final(infos[index]["terminal_observation"], index)
        super()._store_transition(replay_buffer, buffer_action, new_obs, reward, dones, infos)

    def learn(
        self: SelfOffPolicy,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 4,
        tb_log_name: str | None = None,
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfOffPolicy:
        """Train for at least ``total_timesteps`` steps over all environments.

        :param total_timesteps: environment steps
        :param callback: callback(s) called at every step
        :param log_interval: episodes between two log writes
        :param tb_log_name: the run's name in TensorBoard, the algorithm's by default
        :param reset_num_timesteps: count from zero; otherwise go on counting
        :param progress_bar: show Stable-Baselines3's progress bar
        :return: the model itself
        :raises EnvError: when the environment returns a NaN, an infinity or a wrong shape
        """
        with self._named_faults():
            tb_log_name = self._log_name() if tb_log_name is None else tb_log_name
            total_timesteps, callback = self._setup_learn(
                total_timesteps, callback, reset_num_timesteps, tb_log_name, progress_bar
            )
            callback.on_training_start(locals(), globals())
            assert self.env is not None, "checked by _setup_learn"
            assert self.replay_buffer is not None, "set by _setup_model"
            while self.num_timesteps < total_timesteps:
                rollout = self.collect_rollouts(
                    self.env,
                    train_freq=self.train_freq,  # type: ignore[arg-type]
                    action_noise=self.action_noise,  # type: ignore[arg-type]
                    callback=callback,
                    learning_starts=self.learning_starts,
                    replay_buffer=self.replay_buffer,
                    log_interval=log_interval,
                )
                if not rollout.continue_training:
                    break
                if self._may_train():
                    gradient_steps = self.gradient_steps if self.gradient_steps >= 0 else rollout.episode_timesteps
                    if gradient_steps > 0:
                        self.train(batch_size=self.batch_size, gradient_steps=gradient_steps)
            callback.on_training_end()
        return self

    def _may_train(self) -> bool:
        """Whether enough steps are collected: more than ``learning_starts`` (SB3), or ``update_after`` where it is set."""
        if self.update_after is None:
            return self.num_timesteps > self.learning_starts
        return self.num_timesteps >= self.update_after

    def _excluded_save_params(self) -> list[str]:
        networks = ["actor", "actor_target", "critic", "critic_target"]
        statistics = [f"{name}_batch_norm_stats{suffix}" for name in ("actor", "critic") for suffix in ("", "_target")]
        return [*super()._excluded_save_params(), *networks, *statistics]

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        return ["policy", "actor.optimizer", "critic.optimizer"], []
