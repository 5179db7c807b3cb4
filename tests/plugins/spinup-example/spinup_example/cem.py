"""The cross-entropy method: a Gaussian over policy parameters, fitted to the best of its own samples."""

import time
from typing import Any, ClassVar

import numpy as np
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import ActorCriticCnnPolicy, ActorCriticPolicy, MultiInputActorCriticPolicy
from stable_baselines3.common.type_aliases import MaybeCallback
from stable_baselines3.common.utils import safe_mean
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from spinup_plugins.algorithms.common import DropIn


class CEM(DropIn):
    """Search for the policy's parameters θ without gradients.

    Each generation draws θ_i ~ N(μ, σ²), i = 1 … n, plays an episode with each, and sets μ and σ to the mean and
    deviation of the best; σ² gets extra noise that shrinks with time (Szita and Lőrincz 2006). The policy's own
    parameters are μ.

    :param policy: name or class of an actor-critic policy, of which the actor is used
    :param env: environment, or its id
    :param population: n, policies per generation
    :param elite_fraction: share of them that counts as best, in (0, 1]
    :param deviation: σ at the start
    :param extra_deviation: σ added at the start of training, none at its end
    :param stats_window_size: episodes that reported means are taken over
    :param tensorboard_log: directory of TensorBoard logs
    :param policy_kwargs: arguments of the policy
    :param verbose: 0 silent, 1 information, 2 debugging
    :param seed: seed of every random generator
    :param device: ``"cpu"``, ``"cuda"`` or ``"auto"``
    """

    policy_aliases: ClassVar[dict[str, Any]] = {
        "MlpPolicy": ActorCriticPolicy,
        "CnnPolicy": ActorCriticCnnPolicy,
        "MultiInputPolicy": MultiInputActorCriticPolicy,
    }
    _file_mark = "elite_fraction"

    def __init__(
        self,
        policy: str | type[ActorCriticPolicy],
        env: Any,
        population: int = 32,
        elite_fraction: float = 0.25,
        deviation: float = 1.0,
        extra_deviation: float = 0.5,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "auto",
        _init_setup_model: bool = True,
    ) -> None:
        super().__init__(
            policy,
            env,
            learning_rate=0.0,
            policy_kwargs=policy_kwargs,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            verbose=verbose,
            device=device,
            seed=seed,
            support_multi_env=True,
        )
        self.population = population
        self.elite_fraction = elite_fraction
        self.deviation = deviation
        self.extra_deviation = extra_deviation
        if _init_setup_model:
            self._setup_model()

    def _setup_model(self) -> None:
        self._setup_lr_schedule()
        self.set_random_seed(self.seed)
        policy_class, spaces = self.policy_class, (self.observation_space, self.action_space)
        self.policy = policy_class(*spaces, self.lr_schedule, **self.policy_kwargs).to(self.device)
        self.sigma = th.full_like(parameters_to_vector(self.policy.parameters()), self.deviation, requires_grad=False)

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        return ["policy"], ["sigma"]

    def learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 1,
        tb_log_name: str = "CEM",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> "CEM":
        """Play generations until ``total_timesteps`` steps are taken."""
        total_timesteps, callback = self._setup_learn(
            total_timesteps, callback, reset_num_timesteps, tb_log_name, progress_bar
        )
        callback.on_training_start(locals(), globals())
        going_on = True
        while going_on and self.num_timesteps < total_timesteps:
            callback.on_rollout_start()
            going_on = self._generation(callback)
            callback.on_rollout_end()
            self._update_current_progress_remaining(self.num_timesteps, total_timesteps)
            if self._n_updates % log_interval == 0:
                self.logger.record("train/n_updates", self._n_updates)
                self.logger.record("train/sigma", self.sigma.mean().item())
                self.dump_logs()
        callback.on_training_end()
        return self

    def _generation(self, callback: BaseCallback) -> bool:
        """Play one generation and fit to its best; False if the callback stopped it."""
        mu = parameters_to_vector(self.policy.parameters()).detach()
        samples = mu + self.sigma * th.randn(self.population, len(mu), device=self.device)
        returns = []
        for sample in samples:
            vector_to_parameters(sample, self.policy.parameters())
            returns.append(self._episode(callback))
            if returns[-1] is None:
                break
        else:
            best = np.argsort(returns)[-max(1, round(self.elite_fraction * self.population)) :]
            extra = self.extra_deviation * self._current_progress_remaining
            mu = samples[best.copy()].mean(0)
            self.sigma = (samples[best.copy()].var(0, unbiased=False) + extra**2).sqrt()
            self._n_updates += 1
        vector_to_parameters(mu, self.policy.parameters())
        return None not in returns

    def _episode(self, callback: BaseCallback) -> float | None:
        """Play one episode in every environment; return their mean return, None if the callback stopped it."""
        env, going = self.env, np.ones(self.env.num_envs, dtype=bool)
        returns = np.zeros(env.num_envs)
        self._last_obs = env.reset()
        while going.any():
            actions, _ = self.policy.predict(self._last_obs, deterministic=True)
            new_obs, rewards, dones, infos = env.step(actions)
            self._check_finite(new_obs, rewards)
            self.num_timesteps += env.num_envs
            callback.update_locals(locals())
            if not callback.on_step():
                return None
            self._update_info_buffer(infos, dones)
            returns += rewards * going
            going &= ~dones
            self._last_obs = new_obs
        return float(returns.mean())

    def dump_logs(self) -> None:
        """Write steps, speed and recent returns to the logger."""
        seconds = max((time.time_ns() - self.start_time) / 1e9, 1e-9)
        self.logger.record("time/fps", int((self.num_timesteps - self._num_timesteps_at_start) / seconds))
        self.logger.record("time/total_timesteps", self.num_timesteps)
        self.logger.record("rollout/ep_rew_mean", safe_mean([each["r"] for each in self.ep_info_buffer]))
        self.logger.record("rollout/ep_len_mean", safe_mean([each["l"] for each in self.ep_info_buffer]))
        self.logger.dump(self.num_timesteps)
