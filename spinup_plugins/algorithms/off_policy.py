"""What DDPG, TD3 and SAC share: batches, learning rates, exploration noise, and when gradient steps begin."""

from collections.abc import Iterable
from contextlib import AbstractContextManager
from math import isfinite
from typing import Any, ClassVar, Literal, NamedTuple, TypeAlias, TypeVar

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import DictReplayBuffer, NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.noise import ActionNoise, NormalActionNoise, VectorizedActionNoise
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.policies import ContinuousCritic
from stable_baselines3.common.type_aliases import (
    MaybeCallback,
    PyTorchObs,
    RolloutReturn,
    Schedule,
    TrainFreq,
    TrainFrequencyUnit,
)
from stable_baselines3.common.utils import (
    FloatSchedule,
    get_parameters_by_name,
    polyak_update,
    should_collect_more_steps,
    update_learning_rate,
)
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.her.her_replay_buffer import HerReplayBuffer
from torch.nn import Parameter

from spinup_plugins.algorithms.common import (
    DropIn,
    choice,
    frozen,
    fused,
    has_listeners,
    has_reset_steps,
    mean,
    steps_taken,
)
from spinup_plugins.engine.observations import Observations
from spinup_plugins.engine.q_learning import Transitions
from spinup_plugins.engine.replay import COUNTERPARTS, RESET_STEP, CompactNStepReplayBuffer, CompactReplayBuffer
from spinup_plugins.engine.tiers import EngineName
from spinup_plugins.errors import ConfigError

__all__ = ["Batch", "NoiseUnits", "OffPolicy", "constant", "descend"]

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


def constant(optimizer: th.optim.Optimizer, *, but: th.optim.Optimizer) -> AbstractContextManager[None]:
    """Let a loss pass the parameters of ``optimizer`` as constants, save those that ``but`` steps too (a shared extractor)."""
    learning = set(_owned(but))
    return frozen([p for p in _owned(optimizer) if p not in learning])


def _owned(optimizer: th.optim.Optimizer) -> list[Parameter]:
    return [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]


def descend(optimizer: th.optim.Optimizer, loss: th.Tensor) -> None:
    """Step ``optimizer`` down ``loss``; the gradient goes to the parameters it owns and no further."""
    optimizer.zero_grad()
    loss.backward(inputs=_owned(optimizer))  # type: ignore[no-untyped-call]
    with fused(optimizer):
        optimizer.step()


class OffPolicy(DropIn, OffPolicyAlgorithm):
    """Base of the off-policy algorithms. A subclass calls ``_setup_model()`` itself, once its own arguments are set.

    :param q_lr: learning rate (or schedule) of the critic, ``None`` for ``learning_rate``
    :param update_after: gradient steps begin once so many steps are collected, ``None`` for after ``learning_starts``
    :param noise_units: ``"normalized"``: noise is relative to actions in [−1, 1], as SB3; ``"env"``: to the environment's
        own actions, as Spinning Up
    :param compact_replay: store each observation once, and 64-bit ones in single precision where samples stay SB3's
    :param overlap: take gradient steps while the environments step, which pays where they step in processes of their own;
        minibatches then lack the newest transition
    :param engine: tier to act and learn on
    :param n_threads: threads to compute with
    :param compile: True, or arguments of ``torch.compile``
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
        compact_replay: bool = True,
        overlap: bool = False,
        engine: EngineName = "auto",
        n_threads: int | None = None,
        compile: bool | dict[str, Any] = False,
        **kwargs: Any,
    ) -> None:
        kwargs |= {"supported_action_spaces": (spaces.Box,), "support_multi_env": True}
        kwargs["policy_kwargs"] = dict(kwargs.get("policy_kwargs") or {})  # ours to extend, not the caller's
        super().__init__(*args, **kwargs)
        self.action_noise = action_noise
        self.q_lr = q_lr
        self.update_after = update_after
        self.noise_units = noise_units
        self.compact_replay = compact_replay
        self.overlap = overlap
        self.engine = engine
        self.n_threads = n_threads
        self.compile = compile

    def _setup_model(self) -> None:
        self._check_ranges()
        choice("noise_units", self.noise_units, NoiseUnits)
        frequency = self.train_freq[0] if isinstance(self.train_freq, tuple) else self.train_freq
        if isinstance(frequency, int) and frequency < 1:
            raise ConfigError(f"{type(self).__name__}: train_freq={self.train_freq!r} must be at least 1")
        if isinstance(self.action_noise, (int, float, np.number)):
            self.action_noise = NormalActionNoise(
                np.zeros(self._action_half_range().shape),
                np.full(self._action_half_range().shape, self.action_noise) / self._noise_unit(),
            )
        elif isinstance(self.action_noise, VectorizedActionNoise) and self.action_noise.n_envs != self.n_envs:
            self.action_noise = self.action_noise.base_noise  # loaded for another number of environments
        elif not isinstance(self.action_noise, ActionNoise | None):
            raise ConfigError(
                f"{type(self).__name__}: action_noise={self.action_noise!r} must be a number, an ActionNoise or None"
            )
        own = {**self.replay_buffer_kwargs, "n_steps": self.n_steps, "gamma": self.gamma}
        if self.n_steps > 1 and self.replay_buffer_class is NStepReplayBuffer and self.replay_buffer_kwargs == own:
            self.replay_buffer_class = None  # from a zip: SB3 filled it in, and would warn of it as of a custom one
        if self.compact_replay and self.replay_buffer is None:
            self.replay_buffer = self._compact_replay_buffer()
        super()._setup_model()
        self._order_convolutions()
        if self.overlap:
            self._check_overlap()
        self.q_lr_schedule = self.lr_schedule if self.q_lr is None else FloatSchedule(self.q_lr)
        self.critic, self.critic_target = self.policy.critic, self.policy.critic_target  # type: ignore[assignment]
        self._track_batch_norm("critic")

    _replaced: ClassVar[tuple[str, ...]] = ("_sample", "_update_target")

    def _check_overlap(self) -> None:
        """Refuse what cannot be done while the environments step."""
        name = type(self).__name__
        if self.train_freq.unit == TrainFrequencyUnit.EPISODE:  # type: ignore[union-attr]
            raise ConfigError(f"{name}: overlap=True needs train_freq in steps: when an episode ends is known too late")
        if isinstance(self.replay_buffer, HerReplayBuffer):
            raise ConfigError(f"{name}: overlap=True does not go with HER, which asks the environments for rewards meanwhile")

    def _compact_replay_buffer(self) -> CompactReplayBuffer | None:
        """Build the counterpart of the buffer that SB3 would build; ``None`` where that is the caller's own, or an error."""
        cls, kwargs = self.replay_buffer_class, dict(self.replay_buffer_kwargs)
        is_dict = isinstance(self.observation_space, spaces.Dict)
        if cls is None and self.n_steps > 1:
            cls = None if is_dict else NStepReplayBuffer
            kwargs |= {"n_steps": self.n_steps, "gamma": self.gamma}
        elif cls is None:
            cls = DictReplayBuffer if is_dict else ReplayBuffer
        if cls not in COUNTERPARTS or (is_dict != issubclass(cls, DictReplayBuffer)):
            return None
        if self.optimize_memory_usage and cls is ReplayBuffer and not kwargs.get("handle_timeout_termination", True):
            return None  # the one case in which SB3 grants it, and then draws other samples than it does otherwise
        if cls is HerReplayBuffer:
            if self.env is None:
                return None
            kwargs["env"] = self.env  # whose compute_reward() is to see goals as they were
        else:
            kwargs["single_precision"] = self._vec_normalize_env is None
        # The wish is met. The flag would go on to cut the last trajectory short, and keep SB3 from opening the zip.
        self.optimize_memory_usage = False
        return COUNTERPARTS[cls](
            self.buffer_size, self.observation_space, self.action_space, device=self.device, n_envs=self.n_envs, **kwargs
        )

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
        parameters, targets = list(network.parameters()), list(target.parameters())
        with th.no_grad():
            th._foreach_mul_(targets, 1.0 - self.tau)
            th._foreach_add_(targets, parameters, alpha=self.tau)
        polyak_update(getattr(self, f"{name}_batch_norm_stats"), getattr(self, f"{name}_batch_norm_stats_target"), 1.0)

    def _update_learning_rates(self, others: Iterable[th.optim.Optimizer] = ()) -> None:
        """Set actor's and critic's current learning rates, and those of ``others`` like the actor's; log them."""
        self._scheduled("learning_rate", self.lr_schedule)
        self._update_learning_rate([self.actor.optimizer, self.critic.optimizer, *others])  # type: ignore[list-item]
        if self.q_lr is not None:
            q_lr = self._scheduled("q_lr", self.q_lr_schedule)
            update_learning_rate(self.critic.optimizer, q_lr)
            self.logger.record("train/q_lr", q_lr)

    def _sample(self, batch_size: int) -> Batch:
        """Draw a minibatch, uniformly and with replacement."""
        assert self.replay_buffer is not None, "set by _setup_model"
        data = self.replay_buffer.sample(batch_size, env=self._vec_normalize_env)
        return Batch(
            self._order_images(data.observations),
            data.actions,
            data.rewards.flatten(),
            self._order_images(data.next_observations),
            data.dones.flatten(),
            self.gamma if data.discounts is None else data.discounts.flatten(),
        )

    def _transitions(self, batch_size: int, observations: Observations) -> Transitions:
        """Draw the same minibatch for the engine.

        :param observations: turns observations into what the networks read
        """
        buffer = self.replay_buffer
        if not isinstance(buffer, CompactReplayBuffer) or type(buffer) not in (CompactReplayBuffer, CompactNStepReplayBuffer):
            batch = self._sample(batch_size)
            states, next_states = (
                {key: part.numpy() for key, part in each.items()} if isinstance(each, dict) else each.numpy()
                for each in (batch.observations, batch.next_observations)
            )
            discounts = batch.discounts
            return Transitions(
                observations.rows(states),
                np.ascontiguousarray(batch.actions.numpy(), dtype=np.float32),
                batch.rewards.numpy(),
                observations.rows(next_states),
                batch.dones.numpy(),
                discounts.numpy() if isinstance(discounts, th.Tensor) else discounts,
            )
        data = buffer.sample_arrays(batch_size, self._vec_normalize_env)
        return Transitions(
            observations.rows(data.observations),
            data.actions,
            data.rewards,
            observations.rows(data.next_observations),
            data.dones,
            self.gamma if data.discounts is None else data.discounts,
        )

    def _record_means(self, metrics: dict[str, list[Any]]) -> None:
        """Log the mean over gradient steps of tensors or numbers, which they must be, and how many steps were taken."""
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        for key, values in metrics.items():
            if not values:
                continue
            average = mean(values)
            if not isfinite(average):
                raise self._diverged(f"train/{key} is NaN or infinite")
            self.logger.record(f"train/{key}", average)

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
        :raises DivergedError: when an update makes NaN or infinity of the networks
        """
        with self._named_faults(), self._threads(self.batch_size):
            tb_log_name = self._log_name() if tb_log_name is None else tb_log_name
            total_timesteps, callback = self._setup_learn(
                total_timesteps, callback, reset_num_timesteps, tb_log_name, progress_bar
            )
            callback.on_training_start(locals(), globals())
            assert self.env is not None, "checked by _setup_learn"
            assert self.replay_buffer is not None, "set by _setup_model"
            if not isinstance(self.replay_buffer, CompactReplayBuffer):
                self._refuse_reset_steps()
            elif self._vec_normalize_env is not None:
                self.replay_buffer.restore_precision()  # it may have come after the buffer, which it normalises in 64 bits
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
                if not self.overlap:
                    self._train_for(rollout.episode_timesteps)
            callback.on_training_end()
        return self

    def collect_rollouts(
        self,
        env: VecEnv,
        callback: BaseCallback,
        train_freq: TrainFreq,
        replay_buffer: ReplayBuffer,
        action_noise: ActionNoise | None = None,
        learning_starts: int = 0,
        log_interval: int | None = None,
    ) -> RolloutReturn:
        """Collect ``train_freq`` steps or episodes into ``replay_buffer``, under the policy with its exploration noise.

        Callbacks see Stable-Baselines3's locals: ``actions, buffer_actions, new_obs, rewards, dones, infos``.

        :param env: training environments
        :param callback: called at each step
        :param train_freq: how much to collect
        :param replay_buffer: where to
        :param action_noise: exploration noise
        :param learning_starts: steps of uniformly random actions before the policy acts
        :param log_interval: episodes between two log writes
        :return: steps over all environments, episodes, and whether training goes on
        """
        if self.policy.training:
            self.policy.set_training_mode(False)
        num_collected_steps, num_collected_episodes, continue_training = 0, 0, True
        assert train_freq.frequency > 0, "Should at least collect one step or episode."
        if env.num_envs > 1:
            assert train_freq.unit == TrainFrequencyUnit.STEP, "You must use only one env when doing episodic training."
        if self.use_sde:
            self.actor.reset_noise(env.num_envs)  # type: ignore[operator]

        resets_apart, listening = has_reset_steps(env), has_listeners(callback)
        callback.on_rollout_start()
        while should_collect_more_steps(train_freq, num_collected_steps, num_collected_episodes):
            if self.use_sde and self.sde_sample_freq > 0 and num_collected_steps % self.sde_sample_freq == 0:
                self.actor.reset_noise(env.num_envs)  # type: ignore[operator]
            actions, buffer_actions = self._sample_action(learning_starts, action_noise, env.num_envs)

            if self.overlap and num_collected_steps + 1 == train_freq.frequency:
                env.step_async(actions)
                self._train_for(train_freq.frequency * env.num_envs)
                self.policy.set_training_mode(False)
                new_obs, rewards, dones, infos = env.step_wait()
            else:
                new_obs, rewards, dones, infos = env.step(actions)

            self.num_timesteps += steps_taken(infos) if resets_apart else env.num_envs
            num_collected_steps += 1

            if listening:
                callback.update_locals(locals())
                if not callback.on_step():
                    return RolloutReturn(num_collected_steps * env.num_envs, num_collected_episodes, continue_training=False)

            self._update_info_buffer(infos, dones)
            self._store_transition(replay_buffer, buffer_actions, new_obs, rewards, dones, infos)
            self._update_current_progress_remaining(self.num_timesteps, self._total_timesteps)
            self._on_step()

            for index in np.flatnonzero(dones).tolist():
                if infos[index].get(RESET_STEP, False):
                    continue
                num_collected_episodes += 1
                self._episode_num += 1
                if action_noise is not None:
                    action_noise.reset(**({"indices": [index]} if env.num_envs > 1 else {}))
                if log_interval is not None and self._episode_num % log_interval == 0:
                    self.dump_logs()
        callback.on_rollout_end()
        return RolloutReturn(num_collected_steps * env.num_envs, num_collected_episodes, continue_training)

    def _refuse_reset_steps(self) -> None:
        """Raise :class:`ConfigError` where steps that only reset an environment would be stored and learnt from."""
        if self.env is not None and has_reset_steps(self.env):
            raise ConfigError(
                f"{type(self).__name__}: {type(self.replay_buffer).__name__} would store the steps that only reset an"
                " environment: use compact_replay=True with its default buffer, or autoreset mode 'SameStep'"
            )

    def _train_for(self, collected: int) -> None:
        """Take the gradient steps that are due after so many steps, once enough are collected.

        :param collected: steps over all environments
        """
        gradient_steps = self.gradient_steps if self.gradient_steps >= 0 else collected
        if self._may_train() and gradient_steps > 0:
            self.train(batch_size=self.batch_size, gradient_steps=gradient_steps)

    def _may_train(self) -> bool:
        """Whether enough steps are collected: more than ``learning_starts`` (SB3), or ``update_after`` where it is set."""
        assert self.replay_buffer is not None, "set by _setup_model"
        if not self.replay_buffer.size():  # with ``overlap``, before the first step of a run that goes on without its buffer
            return False
        if self.update_after is None:
            return self.num_timesteps > self.learning_starts
        return self.num_timesteps >= self.update_after

    def _excluded_save_params(self) -> list[str]:
        networks = ["actor", "actor_target", "critic", "critic_target"]
        statistics = [f"{name}_batch_norm_stats{suffix}" for name in ("actor", "critic") for suffix in ("", "_target")]
        return [*super()._excluded_save_params(), *networks, *statistics]

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        return ["policy", "actor.optimizer", "critic.optimizer"], []
