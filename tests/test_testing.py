"""Every algorithm keeps the contract, and the contract notices one that does not."""

from dataclasses import replace

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env
from stable_baselines3 import A2C, PPO, SAC
from stable_baselines3.common.envs import IdentityEnvBox

from spinup_plugins.algorithms import ppo
from spinup_plugins.algorithms.common import DropIn
from spinup_plugins.registry import get_class, get_spec
from spinup_plugins.testing import ACTION_SPACES, OBSERVATION_SPACES, ToyEnv, check_algorithm


@pytest.mark.parametrize("name", ["vpg", "trpo", "ppo", "ddpg", "td3", "sac"])
def test_the_six_keep_the_contract(name):
    check_algorithm(get_class(name), spec=get_spec(name))


@pytest.mark.parametrize("cls", [PPO, SAC])
def test_stable_baselines3_keeps_what_it_promises(cls):
    check_algorithm(cls, strict=False)


@pytest.mark.filterwarnings("ignore:.*symmetric and normalized space")
@pytest.mark.parametrize("observations", OBSERVATION_SPACES)
@pytest.mark.parametrize("actions", ACTION_SPACES)
def test_the_toy_environment_is_one(observations, actions):
    env = ToyEnv(OBSERVATION_SPACES[observations], ACTION_SPACES[actions])
    check_env(env, skip_render_check=True)
    env.reset(seed=0)
    ends = [env.step(env.action_space.sample())[2:4] for _ in range(ToyEnv.length)]
    env.reset()
    ends += [env.step(env.action_space.sample())[2:4] for _ in range(ToyEnv.length)]
    assert sorted(ends[7:16:8]) == [(False, True), (True, False)]
    with pytest.raises(ValueError, match="is not in"):
        env.step(np.array(["nonsense"]))


# --- algorithms that break one promise each --------------------------------------------------------------------------


class Extra(ppo.PPO):
    def __init__(self, policy, env, n_things, **kwargs):
        super().__init__(policy, env, **kwargs)


class Swapped(ppo.PPO):
    def __init__(self, env, policy, **kwargs):
        super().__init__(policy, env, **kwargs)


class Nameless(ppo.PPO):
    policy_aliases = {}  # noqa: RUF012


class Vague(ppo.PPO):
    """Refuses spaces without saying which."""

    def __init__(self, policy, env, **kwargs):
        super().__init__(policy, env, **kwargs)
        if env is not None and not isinstance(self.action_space, spaces.Box):
            raise ValueError("no")


class Actless(ppo.PPO):
    """Refuses all spaces."""

    def __init__(self, policy, env, **kwargs):
        super().__init__(policy, env, **kwargs)
        if env is not None:
            raise ValueError(f"cannot act on {self.action_space}")


class Outside(ppo.PPO):
    """Predicts actions outside the space."""

    def predict(self, *args, **kwargs):
        actions, state = super().predict(*args, **kwargs)
        return actions + 1000, state


class Shapeless(ppo.PPO):
    """Predicts a batch for one observation."""

    def predict(self, observation, *args, **kwargs):
        actions, state = super().predict(observation, *args, **kwargs)
        return (actions[0] if np.shape(actions)[:1] == (5,) else actions), state


class Mute(ppo.PPO):
    def learn(self, *args, **kwargs):
        super().learn(*args, **kwargs)


class Short(ppo.PPO):
    def learn(self, total_timesteps, *args, **kwargs):
        super().learn(total_timesteps, *args, **kwargs)
        self.num_timesteps //= 4
        return self


class Forgetful(ppo.PPO):
    def learn(self, *args, reset_num_timesteps=True, **kwargs):
        return super().learn(*args, **kwargs)


class Misnamed(ppo.PPO):
    @classmethod
    def _log_name(cls):
        return "Other"


class Brief(ppo.PPO):
    def learn(self, total_timesteps, callback=None, log_interval=1, reset_num_timesteps=True):
        return super().learn(total_timesteps, callback, log_interval, "Brief", reset_num_timesteps)


class Unlogged(ppo.PPO):
    def dump_logs(self, iteration=0):
        """Log nothing."""


class Deaf(ppo.PPO):
    """Goes on when a callback says stop."""

    def _init_callback(self, callback, progress_bar=False):
        callback = super()._init_callback(callback, progress_bar)
        step, left = callback.on_step, iter(range(100))
        callback.on_step = lambda: step() or next(left, None) is not None
        return callback


class Blind(ppo.PPO):
    """Hides its locals from callbacks."""

    def collect_rollouts(self, env, callback, *args, **kwargs):
        callback.update_locals = lambda locals_: None
        return super().collect_rollouts(env, callback, *args, **kwargs)


class Fickle(ppo.PPO):
    """Ignores deterministic=True."""

    def predict(self, observation, state=None, episode_start=None, deterministic=False):
        return super().predict(observation, state, episode_start, False)


class Unseeded(ppo.PPO):
    def set_random_seed(self, seed=None):
        super().set_random_seed(np.random.SeedSequence().entropy % 2**32)


class Monotonous(ppo.PPO):
    def set_random_seed(self, seed=None):
        super().set_random_seed(7)


class Amnesic(ppo.PPO):
    """Forgets its optimiser."""

    @classmethod
    def load(cls, *args, **kwargs):
        model = super().load(*args, **kwargs)
        next(iter(model.policy.optimizer.state.values()))["exp_avg"].zero_()
        return model


class Lossy(ppo.PPO):
    """Loads another policy than was saved."""

    @classmethod
    def load(cls, *args, **kwargs):
        model = super().load(*args, **kwargs)
        with th.no_grad():
            next(model.policy.parameters()).add_(1.0)
        return model


class Stuck(ppo.PPO):
    """Does not take over parameters."""

    def set_parameters(self, load_path_or_dict, exact_match=True, device="auto"):
        if "nonsense" in load_path_or_dict or self._n_updates:
            super().set_parameters(load_path_or_dict, exact_match, device)


class Gullible(ppo.PPO):
    def set_parameters(self, load_path_or_dict, exact_match=True, device="auto"):
        if "nonsense" not in load_path_or_dict:
            super().set_parameters(load_path_or_dict, exact_match, device)


class Permissive(ppo.PPO):
    def set_env(self, env, force_reset=True):
        self.env = env


class Undocumented(ppo.PPO):
    def __init__(self, policy, env, zest=0.0, **kwargs):
        super().__init__(policy, env, **kwargs)


class Careless(ppo.PPO):
    """Loads as Stable-Baselines3 does once the keywords are checked."""

    @classmethod
    def load(cls, *args, **kwargs):
        if "sead" in kwargs:
            raise ValueError("no argument 'sead'")
        return super(DropIn, cls).load(*args, **kwargs)


@pytest.mark.parametrize(
    ("cls", "message"),
    [
        (dict, "It is a BaseAlgorithm"),
        (Nameless, "policy_aliases is empty"),
        (Swapped, "it begins with env, policy"),
        (Extra, "it requires n_things"),
        (Vague, "an error says ValueError('no')"),
        (Actless, "it acts on none"),
        (Outside, "predict() returned"),
        (Shapeless, "five Box gave actions of shape (2,)"),
        (Mute, "learn() returned something else"),
        (Short, "it stopped after 16 of 64 timesteps"),
        (Forgetful, "with reset_num_timesteps=False it did not go on counting"),
        (Misnamed, "their default name is 'Other'"),
        (Brief, "learn() lacks tb_log_name, progress_bar"),
        (Unlogged, "it lacks rollout/ep_len_mean"),
        (Deaf, "told to stop at 36 timesteps, it stopped at"),
        (Blind, "their locals lack actions, dones"),
        (Fickle, "With deterministic=True, predict() gives the same actions again. AssertionError: they differ"),
        (Unseeded, "two models of one seed differ"),
        (Monotonous, "models of two seeds are equal"),
        (Amnesic, "parameters from a str differ"),
        (Lossy, "parameters from a str differ"),
        (Stuck, "What get_parameters() returns makes another model equal"),
        (Gullible, "'nonsense' was accepted"),
        (Permissive, "set_env() took one with other observations"),
        (Undocumented, "there is none for zest"),
        (Careless, "load() raises one line that names the file"),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_a_broken_promise_is_noticed(cls, message):
    with pytest.raises(AssertionError) as caught:
        check_algorithm(cls)
    assert str(caught.value).startswith(f"{cls.__name__} breaks a promise: ")
    assert message in str(caught.value)


def test_a_misspelled_argument_of_load_must_be_refused():
    with pytest.raises(AssertionError, match="'sead' was accepted"):
        check_algorithm(PPO)


def test_the_specification_must_list_the_action_spaces():
    spec = replace(get_spec("ppo"), action_spaces=("Box",))
    with pytest.raises(AssertionError, match=r"listed are \['Box'\], it acts on \['Box', 'Discrete'"):
        check_algorithm(A2C, spec=spec, strict=False)


def test_the_callers_environment_is_learned_in():
    check_algorithm(A2C, env=IdentityEnvBox(ep_length=10), strict=False, kwargs={"n_steps": 8})
    with pytest.raises(AssertionError, match="It learns in the environment that the caller gave"):
        check_algorithm(ppo.PPO, env=_Broken(spaces.Box(-1, 1, (1,)), spaces.Box(-1, 1, (1,))))


class _Broken(ToyEnv):
    def step(self, action):
        raise RuntimeError("broken")
