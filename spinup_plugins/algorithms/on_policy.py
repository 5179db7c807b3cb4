"""What VPG, TRPO and PPO share: collecting rollouts, targets, and one optimiser that steps actor and critic apart."""

import warnings
from collections.abc import Iterable, Iterator, Sequence
from copy import deepcopy
from math import inf
from typing import Any, ClassVar, Literal, TypeAlias, TypeVar

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import (
    ActorCriticCnnPolicy,
    ActorCriticPolicy,
    BasePolicy,
    MultiInputActorCriticPolicy,
)
from stable_baselines3.common.type_aliases import MaybeCallback, RolloutBufferSamples, Schedule
from stable_baselines3.common.utils import FloatSchedule, obs_as_tensor, update_learning_rate
from stable_baselines3.common.vec_env import VecEnv
from torch.nn import Parameter
from torch.nn.utils import clip_grad_norm_

from spinup_plugins.algorithms import functional
from spinup_plugins.algorithms.common import (
    DropIn,
    choice,
    fused,
    has_listeners,
    has_reset_steps,
    steps_taken,
)
from spinup_plugins.engine.actor_critic import ActorCritic
from spinup_plugins.engine.networks import Unsupported
from spinup_plugins.engine.replay import RESET_STEP
from spinup_plugins.engine.tiers import EngineName, native
from spinup_plugins.envs.gymnasium_vec import parts

__all__ = [
    "ACTION_SPACES",
    "SPINNING_UP_POLICY",
    "AdvantageNorm",
    "Columns",
    "OnPolicy",
    "Rows",
    "ValueTarget",
    "episode_ends",
    "flat_actions",
    "split",
]

AdvantageNorm: TypeAlias = Literal[True, False, "minibatch", "batch"]
ValueTarget: TypeAlias = Literal["td_lambda", "rewards_to_go"]

SelfOnPolicy = TypeVar("SelfOnPolicy", bound="OnPolicy")

ACTION_SPACES = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)

#: Spinning Up's networks: torch's default initialisation, log σ = −0.5, Adam with its default ε; (64, 64) tanh is SB3's too
SPINNING_UP_POLICY: dict[str, Any] = {"ortho_init": False, "log_std_init": -0.5, "optimizer_kwargs": {"eps": 1e-8}}


def split(policy_loss: th.Tensor, parameters: Iterable[Parameter]) -> tuple[list[Parameter], list[Parameter]]:
    """Split ``parameters`` into the actor's, which ``policy_loss`` depends on, and the critic's, all others.

    Found in the graph, so custom policies need no list. What both share (a CNN, say) is the actor's: a critic that moved
    it would move the policy outside its own update.
    """
    parameters = [p for p in parameters if p.requires_grad]
    gradients = th.autograd.grad(policy_loss, parameters, retain_graph=True, allow_unused=True)
    pairs = list(zip(parameters, gradients, strict=True))
    return [p for p, g in pairs if g is not None], [p for p, g in pairs if g is None]


def flat_actions(actions: th.Tensor, action_space: spaces.Space[Any]) -> th.Tensor:
    """Turn a buffer's float actions into what distributions take: (B,) integers for Discrete, unchanged otherwise."""
    return actions.long().flatten() if isinstance(action_space, spaces.Discrete) else actions


class OnPolicy(DropIn, OnPolicyAlgorithm):
    """Base of the on-policy algorithms. A subclass calls ``_setup_model()`` itself, once its own arguments are set.

    :param vf_lr: learning rate (or schedule) of the value function, ``None`` for the policy's own
    :param value_target: what V regresses on: ``"td_lambda"`` (A + V, as SB3) or ``"rewards_to_go"`` (λ = 1, as Spinning Up)
    :param reset_on_rollout: begin each rollout with fresh episodes, as Spinning Up does, instead of going on where the
        last rollout stopped, as SB3 does
    :param engine: tier to act and learn on
    :param n_threads: threads to compute with
    :param compile: True, or arguments of ``torch.compile``
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": ActorCriticPolicy,
        "CnnPolicy": ActorCriticCnnPolicy,
        "MultiInputPolicy": MultiInputActorCriticPolicy,
    }
    policy: ActorCriticPolicy
    normalize_advantage: AdvantageNorm

    def __init__(
        self,
        *args: Any,
        vf_lr: float | Schedule | None = None,
        value_target: ValueTarget = "td_lambda",
        reset_on_rollout: bool = False,
        engine: EngineName = "auto",
        n_threads: int | None = None,
        compile: bool | dict[str, Any] = False,
        **kwargs: Any,
    ) -> None:
        kwargs |= {"_init_setup_model": False, "supported_action_spaces": ACTION_SPACES}
        kwargs["policy_kwargs"] = dict(kwargs.get("policy_kwargs") or {})  # ours to extend, not the caller's
        super().__init__(*args, **kwargs)
        self.vf_lr = vf_lr
        self.value_target = value_target
        self.reset_on_rollout = reset_on_rollout
        self.engine = engine
        self.n_threads = n_threads
        self.compile = compile

    def _setup_model(self) -> None:
        self._check_ranges()
        choice("value_target", self.value_target, ValueTarget)
        super()._setup_model()
        self._order_convolutions()
        self.vf_lr_schedule = None if self.vf_lr is None else FloatSchedule(self.vf_lr)

    _replaced: ClassVar[tuple[str, ...]] = ("_descend", "_to_env")

    def _bind(self, ops: Any) -> ActorCritic:
        if type(self.rollout_buffer) not in (RolloutBuffer, DictRolloutBuffer):
            raise Unsupported(f"a rollout buffer of class {type(self.rollout_buffer).__name__}")
        return ActorCritic(self.policy, ops)

    def learn(
        self: SelfOnPolicy,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 1,
        tb_log_name: str | None = None,
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfOnPolicy:
        """Train for at least ``total_timesteps`` steps over all environments, in whole rollouts.

        :param total_timesteps: environment steps
        :param callback: callback(s) called at every step
        :param log_interval: rollouts between two log writes
        :param tb_log_name: the run's name in TensorBoard, the algorithm's by default
        :param reset_num_timesteps: count from zero; otherwise go on counting
        :param progress_bar: show Stable-Baselines3's progress bar
        :return: the model itself
        :raises EnvError: when the environment returns a NaN, an infinity or a wrong shape
        :raises DivergedError: when an update makes NaN or infinity of the networks
        """
        rows = self.n_steps * self.n_envs
        with self._named_faults(), self._threads(min(getattr(self, "batch_size", None) or rows, rows)):
            return super().learn(
                total_timesteps,
                callback,
                log_interval,
                self._log_name() if tb_log_name is None else tb_log_name,
                reset_num_timesteps,
                progress_bar,
            )

    def collect_rollouts(
        self, env: VecEnv, callback: BaseCallback, rollout_buffer: RolloutBuffer, n_rollout_steps: int
    ) -> bool:
        """Fill ``rollout_buffer`` with ``n_rollout_steps`` steps of every environment under the current policy.

        Callbacks see Stable-Baselines3's locals: ``obs_tensor, actions, clipped_actions, values, log_probs, new_obs,
        rewards, dones, infos``.

        :return: False when a callback stopped the training, True otherwise
        """
        self.policy.set_training_mode(False)
        n_steps = 0
        rollout_buffer.reset()
        if self.use_sde:
            self.policy.reset_noise(env.num_envs)
        assert self._last_episode_starts is not None, "set by _setup_learn"
        if self.reset_on_rollout and not self._last_episode_starts.all():
            self._last_obs = env.reset()  # type: ignore[assignment]
            self._last_episode_starts = np.ones(env.num_envs, dtype=bool)
        columns = Columns(rollout_buffer) if has_reset_steps(env) else None
        bound = self._tier().bound
        store: Any = rollout_buffer if bound is None else Rows(rollout_buffer)
        listening = has_listeners(callback)

        callback.on_rollout_start()

        while n_steps < n_rollout_steps if columns is None else not columns.full:
            if self.use_sde and self.sde_sample_freq > 0 and n_steps % self.sde_sample_freq == 0:
                self.policy.reset_noise(env.num_envs)

            if bound is None:
                with th.no_grad():
                    obs_tensor = obs_as_tensor(self._last_obs, self.device)  # type: ignore[arg-type]
                    actions_tensor, values, log_probs = self.policy(obs_tensor)
                actions = actions_tensor.cpu().numpy()
                clipped_actions = self._to_env(actions)
            else:
                actions, clipped_actions, values, log_probs = bound.act(self._last_obs)
                if listening:
                    obs_tensor, actions_tensor = obs_as_tensor(self._last_obs, self.device), th.from_numpy(actions)  # type: ignore[arg-type]
                    values, log_probs = th.from_numpy(values)[:, None], th.from_numpy(log_probs)

            new_obs, rewards, dones, infos = env.step(clipped_actions)
            self._check_finite(new_obs, rewards)
            self.num_timesteps += env.num_envs if columns is None else steps_taken(infos)

            if listening:
                callback.update_locals(locals())
                if not callback.on_step():
                    return False

            self._update_info_buffer(infos, dones)
            n_steps += 1

            if actions.ndim == 1:
                actions = actions[:, None]
            self._bootstrap_truncated(rewards, dones, infos)
            step = (self._last_obs, actions, rewards, self._last_episode_starts, values, log_probs)
            if columns is None:
                store.add(*step)
            else:
                columns.add(step, new_obs, dones, infos)
            self._last_obs = new_obs  # type: ignore[assignment]
            self._last_episode_starts = dones

        if columns is not None:
            new_obs, dones = columns.finish()
        self._compute_targets(rollout_buffer, self._values(new_obs), dones)

        callback.update_locals(locals())
        callback.on_rollout_end()
        return True

    @property
    def _discount(self) -> float:
        """γ."""
        return self.gamma

    def _values(self, observations: Any) -> th.Tensor:
        """V(s) of (N, …) observations, (N, 1)."""
        bound = self._tier().bound
        if bound is not None:
            return th.from_numpy(bound.values(observations))[:, None]
        with th.no_grad():
            return self.policy.predict_values(obs_as_tensor(observations, self.device))

    def _to_env(self, actions: Any) -> Any:
        """Map the policy's actions into the environment's bounds: unscale squashed ones, clip the others."""
        if not isinstance(self.action_space, spaces.Box):
            return actions
        if self.policy.squash_output:
            return self.policy.unscale_action(actions)
        return np.minimum(np.maximum(actions, self.action_space.low), self.action_space.high)  # np.clip at half the cost

    def _bootstrap_truncated(self, rewards: Any, dones: Any, infos: Sequence[dict[str, Any]]) -> None:
        """Add γ V(s_T) to the last reward of episodes that a time limit cut: truncation is not an outcome."""
        for index, done in enumerate(dones.tolist()):
            info = infos[index] if done else {}
            if info.get("TimeLimit.truncated", False) and info.get("terminal_observation") is not None:
                self._check_final(info["terminal_observation"], index)
                if self._tier().bound is not None:
                    final = info["terminal_observation"]
                    several = {k: np.asarray(v)[None] for k, v in final.items()} if isinstance(final, dict) else None
                    value = self._values(np.asarray(final)[None] if several is None else several)
                else:
                    final_obs = self.policy.obs_to_tensor(info["terminal_observation"])[0]
                    with th.no_grad():
                        value = self.policy.predict_values(final_obs)
                rewards[index] += (self._discount * value[0]).item()

    def _compute_targets(self, rollout_buffer: RolloutBuffer, last_values: th.Tensor, dones: Any) -> None:
        """Fill ``advantages`` (GAE-λ) and ``returns`` (what V regresses on), both un-normalised, (T, N)."""
        if type(rollout_buffer) not in (RolloutBuffer, DictRolloutBuffer):
            rollout_buffer.compute_returns_and_advantage(last_values=last_values, dones=dones)
        else:
            rollout_buffer.advantages = self._gae(
                rollout_buffer, rollout_buffer.values, last_values, dones, self._discount, self.gae_lambda
            )
            rollout_buffer.returns = rollout_buffer.advantages + rollout_buffer.values
        if self.value_target == "rewards_to_go":
            rollout_buffer.returns = self._rewards_to_go(rollout_buffer, last_values, dones)

    def _gae(
        self, buffer: RolloutBuffer, values: Any, last_values: th.Tensor, dones: Any, gamma: float, gae_lambda: float
    ) -> functional.Array:
        """GAE-λ of a full buffer's rewards over ``values``, (T, N), compiled where it can be.

        The compiled one rounds as Stable-Baselines3 does, so that torch's numbers stay its numbers bit for bit.
        """
        bound, last = self._tier().bound, last_values.cpu().numpy().reshape(-1)
        ops = native() if bound is None else bound.ops
        if ops is None or last.dtype != np.float32:
            return functional.gae(buffer.rewards, values, episode_ends(buffer, dones), last, gamma, gae_lambda)
        advantages = np.empty_like(buffer.rewards)
        starts, ended = buffer.episode_starts, np.asarray(dones, dtype=np.float32)
        ops.gae(buffer.rewards, values, starts, np.ascontiguousarray(last), ended, gamma, gae_lambda, advantages)
        return advantages

    def _rewards_to_go(self, buffer: RolloutBuffer, last_values: th.Tensor, dones: Any) -> functional.Array:
        """Discounted rewards-to-go, (T, N): GAE with λ = 1 over a value function that is zero within the rollout."""
        return self._gae(buffer, np.zeros_like(buffer.values), last_values, dones, self._discount, 1.0)

    def _minibatches(self, batch_size: int | None) -> Iterator[RolloutBufferSamples]:
        """Walk through the rollout in a random order, ``batch_size`` steps at a time, or all at once."""
        for batch in self.rollout_buffer.get(batch_size):
            yield batch._replace(observations=self._order_images(batch.observations))  # type: ignore[arg-type]

    def _normalized_by_batch(self, samples: RolloutBufferSamples) -> RolloutBufferSamples:
        """Normalise a minibatch's advantages with the whole rollout's mean and (population) deviation."""
        advantages = self.rollout_buffer.advantages
        scaled = (samples.advantages - float(advantages.mean())) / (float(advantages.std()) + functional.EPSILON)
        return samples._replace(advantages=scaled)

    def _learning_rates(self) -> tuple[float, float]:
        """Return the policy's and the value function's current learning rates, and log them."""
        pi_lr = vf_lr = self._scheduled("learning_rate", self.lr_schedule)
        self.logger.record("train/learning_rate", pi_lr)
        if self.vf_lr_schedule is not None:
            vf_lr = self._scheduled("vf_lr", self.vf_lr_schedule)
            self.logger.record("train/vf_lr", vf_lr)
        return pi_lr, vf_lr

    def _descend(self, loss: th.Tensor, *steps: tuple[Sequence[Parameter], float], max_grad_norm: float = inf) -> None:
        """Step each group of parameters down ``loss`` at its own learning rate; all others keep still.

        There is one optimiser, ``policy.optimizer``, so that zips stay Stable-Baselines3's. Optimisers skip parameters
        without a gradient and keep their moments per parameter: stepping the groups in turn is what separate
        optimisers would do.
        """
        optimizer = self.policy.optimizer
        optimizer.zero_grad()
        owned = [p for group, _ in steps for p in group]
        loss.backward(inputs=owned)  # type: ignore[no-untyped-call]
        if max_grad_norm != inf:
            clip_grad_norm_(owned, max_grad_norm)
        if len(steps) == 1:
            update_learning_rate(optimizer, steps[0][1])
            with fused(optimizer):
                optimizer.step()
            return
        gradients = [[p.grad for p in group] for group, _ in steps]
        for p in owned:
            p.grad = None
        for (group, learning_rate), group_gradients in zip(steps, gradients, strict=True):
            update_learning_rate(optimizer, learning_rate)
            for p, gradient in zip(group, group_gradients, strict=True):
                p.grad = gradient
            with fused(optimizer):
                optimizer.step()
            for p in group:
                p.grad = None

    def _check_rollout_size(self, batch_size: int | None, normalize_advantage: bool) -> None:
        """Refuse rollouts of one step under normalisation, warn of truncated minibatches, in Stable-Baselines3's words."""
        if self.env is None:
            return
        self._check_ranges()
        buffer_size = self.env.num_envs * self.n_steps
        info = f"n_steps={self.n_steps} and n_envs={self.env.num_envs}"
        assert buffer_size > 1 or not normalize_advantage, f"`n_steps * n_envs` must be greater than 1. Currently {info}"
        if batch_size is not None and buffer_size % batch_size > 0:
            warnings.warn(
                f"You have specified a mini-batch size of {batch_size},"
                f" but because the `RolloutBuffer` is of size `n_steps * n_envs = {buffer_size}`,"
                f" after every {buffer_size // batch_size} untruncated mini-batches,"
                f" there will be a truncated mini-batch of size {buffer_size % batch_size}\n"
                f"We recommend using a `batch_size` that is a factor of `n_steps * n_envs`.\n"
                f"Info: ({info})",
                stacklevel=4,
            )

    def _warn_if_constant(self) -> None:
        """Say so when the rollout's advantages carry no signal, which normalisation would turn into silence."""
        advantages = self.rollout_buffer.advantages
        if advantages.size > 1 and np.ptp(advantages) == 0.0:
            warnings.warn(
                f"{type(self).__name__}: every advantage of the rollout at timestep {self.num_timesteps} is"
                f" {float(advantages.flat[0])}: zero variance, so this update has no policy gradient",
                stacklevel=3,
            )

    def _record_policy(self, explained_variance: float) -> None:
        """Log what every on-policy algorithm logs after an update, and see that the parameters still are numbers."""
        if not self._parameters_finite():
            raise self._diverged("the policy's parameters are NaN or infinite")
        self.logger.record("train/explained_variance", explained_variance)
        if hasattr(self.policy, "log_std"):
            self.logger.record("train/std", th.exp(self.policy.log_std).mean().item())
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")


def episode_ends(rollout_buffer: RolloutBuffer, dones: Any) -> functional.Array:
    """Return (T, N), 1 where an episode ended with that step.

    :param rollout_buffer: freshly filled, holds ``episode_starts`` (T, N)
    :param dones: (N,), whether the step after which the rollout stopped ended an episode
    """
    last = np.asarray(dones, dtype=np.float32)[None]
    return np.concatenate([rollout_buffer.episode_starts[1:], last])


class Rows:
    """Fills a :class:`RolloutBuffer` a step at a time, without the copies that its own ``add`` makes on the way.

    :param rollout_buffer: an empty buffer of (T, N) steps
    """

    def __init__(self, rollout_buffer: RolloutBuffer) -> None:
        self.buffer = buffer = rollout_buffer
        observations: Any = buffer.observations
        self.parts = observations if isinstance(observations, dict) else None
        self.observations, self.shape = observations, None if self.parts is not None else observations.shape[1:]
        self.actions, self.action_shape = buffer.actions, buffer.actions.shape[1:]
        self.rewards, self.starts = buffer.rewards, buffer.episode_starts
        self.values, self.log_probs = buffer.values, buffer.log_probs

    def add(self, observations: Any, actions: Any, rewards: Any, starts: Any, values: Any, log_probs: Any) -> None:
        """Store one step of every environment; shapes as :meth:`Columns.add` has them."""
        buffer = self.buffer
        row = buffer.pos
        if self.parts is not None:
            for key, part in self.parts.items():
                part[row] = observations[key].reshape(part.shape[1:])
        else:
            self.observations[row] = observations if observations.shape == self.shape else observations.reshape(self.shape)
        self.actions[row] = actions if actions.shape == self.action_shape else actions.reshape(self.action_shape)
        self.rewards[row] = rewards
        self.starts[row] = starts
        self.values[row] = values if values.ndim == 1 else values.flatten()
        self.log_probs[row] = log_probs
        buffer.pos = row + 1
        buffer.full = row + 1 == buffer.buffer_size


class Columns:
    """Fills a rollout buffer environment by environment, leaving out the steps that only reset one.

    Such steps come from vector environments that take their resets for steps (``NEXT_STEP`` autoreset,
    :mod:`spinup_plugins.envs.gymnasium_vec`). An environment whose column is full goes on until all are; what it then
    does is not stored, and its value target is bootstrapped from where its column ends.

    :param rollout_buffer: an empty buffer of (T, N) steps
    """

    def __init__(self, rollout_buffer: RolloutBuffer) -> None:
        self.buffer = rollout_buffer
        self.filled = np.zeros(rollout_buffer.n_envs, dtype=np.int64)
        self.last_obs: Any = None
        self.last_dones = np.zeros(rollout_buffer.n_envs, dtype=bool)

    @property
    def full(self) -> bool:
        """Whether every column holds T steps."""
        return bool((self.filled == self.buffer.buffer_size).all())

    def add(self, step: tuple[Any, ...], new_obs: Any, dones: Any, infos: Sequence[dict[str, Any]]) -> None:
        """Store one step of the environments that took one and still need it.

        :param step: observations (N, …), actions (N, A), rewards, episode starts, values and log-probabilities, each (N,)
        :param new_obs: observations after it, (N, …)
        :param dones: (N,)
        :param infos: (N,)
        """
        buffer = self.buffer
        took = np.array([not info.get(RESET_STEP, False) for info in infos]) & (self.filled < buffer.buffer_size)
        rows, columns = self.filled[took], np.flatnonzero(took)
        observations, actions, rewards, starts, values, log_probs = step
        stored = [(buffer.actions, actions), (buffer.rewards, rewards), (buffer.episode_starts, starts)]
        stored += [(buffer.values, values), (buffer.log_probs, log_probs)]
        if isinstance(observations, dict):
            stored += [(buffer.observations[key], value) for key, value in observations.items()]
        else:
            stored.append((buffer.observations, observations))
        for array, new in stored:
            new = new.cpu().numpy() if isinstance(new, th.Tensor) else np.asarray(new)
            array[rows, columns] = new.reshape(buffer.n_envs, *array.shape[2:])[took]
        if self.last_obs is None:
            self.last_obs = deepcopy(new_obs)
        for last, new in zip(parts(self.last_obs), parts(new_obs), strict=True):
            last[took] = new[took]
        self.last_dones[took] = dones[took]
        self.filled += took

    def finish(self) -> tuple[Any, Any]:
        """Mark the buffer as full; return what follows each column's last step: observations (N, …) and dones (N,)."""
        self.buffer.pos, self.buffer.full = self.buffer.buffer_size, True
        return self.last_obs, self.last_dones
