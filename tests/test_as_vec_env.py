"""Every kind of environment becomes a ``VecEnv``: attributes, seeds, rendering, monitors, and what is refused."""

import csv
import importlib.util
import os
import signal
from collections.abc import Iterator
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from episode_env import BOX, MIXED, EpisodeEnv, OwnVectorEnv, functions
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.envs import BitFlippingEnv
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecFrameStack, VecNormalize

from spinup_plugins import PPO, SAC, make
from spinup_plugins.engine.replay import RESET_STEP
from spinup_plugins.envs import EnvPoolVecEnv, GymnasiumVecEnv, LeanVecEnv, SharedMemoryVecEnv, as_vec_env
from spinup_plugins.envs.gymnasium_vec import info_rows
from spinup_plugins.errors import ConfigError, EnvError

pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")
needs_envpool = pytest.mark.skipif(importlib.util.find_spec("envpool") is None, reason="the optional EnvPool is not installed")


@pytest.fixture
def opened() -> Iterator[list[VecEnv]]:
    envs: list[VecEnv] = []
    yield envs
    for env in envs:
        env.close()


def async_env(**kwargs: Any) -> GymnasiumVecEnv:
    env = as_vec_env(AsyncVectorEnv(functions(MIXED), context="fork", **kwargs))
    assert isinstance(env, GymnasiumVecEnv)
    return env


def known(vector: Any, **kwargs: Any) -> GymnasiumVecEnv:
    """Convert for somebody who knows of reset steps."""
    env = as_vec_env(vector, **kwargs)
    assert isinstance(env, GymnasiumVecEnv)
    env.reset_steps_known = True
    return env


# --- what is accepted ------------------------------------------------------------------------------------------------


def test_an_environment_is_monitored_once():
    env = as_vec_env(gym.make("CartPole-v1"))
    assert isinstance(env, LeanVecEnv)
    assert isinstance(env, DummyVecEnv)
    assert isinstance(env.envs[0], Monitor)
    assert not isinstance(env.envs[0].env, Monitor)
    monitored = Monitor(gym.make("CartPole-v1"))
    assert as_vec_env(monitored).envs[0] is monitored
    assert as_vec_env(gym.make("CartPole-v1"), monitor=False).env_is_wrapped(Monitor) == [False]


def test_a_class_makes_copies_and_a_callable_environment_does_not():
    class WithSpaces(EpisodeEnv):
        action_space = BOX

        def __init__(self):
            super().__init__(0, MIXED[0])

        def __call__(self):
            raise AssertionError("called although it is an environment")

    assert as_vec_env(WithSpaces, 2).num_envs == 2
    assert as_vec_env(WithSpaces()).num_envs == 1
    assert make("ppo", WithSpaces, n_envs=2, n_steps=8, batch_size=8).n_envs == 2


def test_a_vec_env_stays_what_it_is():
    env = VecNormalize(DummyVecEnv([partial(gym.make, "CartPole-v1")]))
    assert as_vec_env(env) is env
    assert as_vec_env(env, seed=3).venv._seeds == [3]


@pytest.mark.parametrize("vec_env", ["dummy", "subproc", "gym-async"])
def test_copies_of_an_id_or_a_function_are_seeded_alike_however_they_are_stepped(vec_env, opened, tmp_path):
    reference = DummyVecEnv([partial(gym.make, "CartPole-v1")] * 2)
    reference.seed(7)
    by_id = as_vec_env("CartPole-v1", 2, vec_env=vec_env, seed=7, monitor_dir=tmp_path)
    by_function = as_vec_env(partial(gym.make, "CartPole-v1"), 2, vec_env=vec_env, seed=7)
    opened += [by_id, by_function]
    first = reference.reset()
    assert np.array_equal(first, by_id.reset())
    assert np.array_equal(first, by_function.reset())
    for _ in range(30):
        expected, got = reference.step(np.array([1, 0])), by_id.step(np.array([1, 0]))
        for one, other in zip(expected[:3], got[:3], strict=True):
            assert np.array_equal(one, other)
            assert one.dtype == other.dtype
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.monitor.csv", "1.monitor.csv"]


def test_arguments_and_wrappers_reach_every_copy():
    wrap = partial(gym.wrappers.RescaleAction, min_action=np.float32(-0.5), max_action=np.float32(0.5))
    env = as_vec_env("Pendulum-v1", 2, env_kwargs={"g": 2.0}, wrappers=[wrap])
    assert env.get_attr("g") == [2.0, 2.0]
    assert env.action_space.high.tolist() == [0.5]
    assert env.env_is_wrapped(gym.wrappers.RescaleAction) == [True, True]


def test_an_environment_renders_if_it_can():
    assert as_vec_env("CartPole-v1").render_mode == "rgb_array"
    assert as_vec_env("CartPole-v1", env_kwargs={"render_mode": None}).render_mode is None
    assert as_vec_env("CartPole-v1", images=False).render_mode is None
    assert as_vec_env("CartPole-v1", wrappers=[gym.wrappers.TimeAwareObservation], images=False).render_mode == "rgb_array"


def test_an_environment_that_draws_steps_alike_without_images():
    with_images, without = (as_vec_env("LunarLander-v3", seed=3, images=images) for images in (True, False))
    assert np.array_equal(with_images.reset(), without.reset())
    particles = 0
    for action in np.random.default_rng(0).integers(4, size=300):
        one, other = with_images.step(np.array([action])), without.step(np.array([action]))
        assert all(np.array_equal(a, b) for a, b in zip(one[:3], other[:3], strict=True))
        particles += len(with_images.get_attr("particles")[0])
        assert not without.get_attr("particles")[0]
    assert particles > 0, "else there was nothing to draw"


@pytest.mark.parametrize(
    ("source", "arguments", "message"),
    [
        (3, {}, "expected an environment: an id, .* not 3"),
        (None, {}, "expected an environment"),
        ([], {}, "no function that makes an environment"),
        ("CartPole-v1", {"vec_env": "async"}, r"'envpool', not 'async' \(did you mean 'gym-async'\?\)"),
        ("CartPole-v1", {"n_envs": 0}, "n_envs must be at least 1, not 0"),
        (gym.make("CartPole-v1"), {"n_envs": 2}, "n_envs=2 copies cannot be made of a .* of 1"),
        (gym.make("CartPole-v1"), {"env_kwargs": {"g": 1}}, "env_kwargs is for an environment given by its id"),
        (gym.make("CartPole-v1"), {"vec_env": "subproc"}, "vec_env is for an environment given by its id"),
        (DummyVecEnv([partial(gym.make, "CartPole-v1")]), {"monitor_dir": "x"}, "monitor_dir is not for a VecEnv"),
        ("CartPole-v1", {"autoreset_mode": "NextStep"}, "autoreset_mode is for a Gymnasium VectorEnv"),
        ([EpisodeEnv, EpisodeEnv], {"n_envs": 3}, "n_envs=3 does not fit 2 functions"),
        (EpisodeEnv, {"vec_env": "envpool"}, "needs the id of one of EnvPool's"),
        (OwnVectorEnv(functions(MIXED), None), {}, r"does not tell its metadata\['autoreset_mode'\]: give it, one of 'Next"),
        (OwnVectorEnv(functions(MIXED), None), {"autoreset_mode": "nextstep"}, r"\(did you mean 'NextStep'\?\)"),
    ],
)
def test_what_is_refused(source, arguments, message):
    with pytest.raises(ConfigError, match=message) as caught:
        as_vec_env(source, **arguments)
    assert "\n" not in str(caught.value)


def test_the_autoreset_mode_can_be_told():
    vector = OwnVectorEnv(functions(MIXED), None)
    vector.mode = AutoresetMode.NEXT_STEP
    env = as_vec_env(vector, autoreset_mode="NextStep")
    assert env.reset_steps
    assert not as_vec_env(SyncVectorEnv(functions(MIXED))).reset_steps


# --- vector environments ---------------------------------------------------------------------------------------------


def test_infos_are_parted_by_environment():
    infos = {
        "x": np.array([1, 0, 3]),
        "_x": np.array([True, False, True]),
        "nested": {"y": np.array([0.0, 2.0, 0.0]), "_y": np.array([False, True, False])},
        "_nested": np.array([False, True, False]),
        "every": np.arange(3),
        "shared": "text",
        "_own": np.arange(3),
    }
    assert info_rows(infos, 3) == [
        {"x": 1, "every": 0, "shared": "text", "_own": 0},
        {"nested": {"y": 2.0}, "every": 1, "shared": "text", "_own": 1},
        {"x": 3, "every": 2, "shared": "text", "_own": 2},
    ]


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_attributes_and_methods_of_some_environments(kind, opened):
    env = async_env() if kind == "async" else as_vec_env(SyncVectorEnv(functions(MIXED)))
    opened.append(env)
    env.reset()
    assert env.get_attr("copy") == [0, 1, 2]
    assert env.get_attr("copy", [2, 0]) == [2, 0]
    assert env.env_method("where", indices=1) == [(1, 0, 0)]
    assert env.env_method("leap", 2, indices=[1]) == [2]
    assert env.get_attr("episode") == [0, 2, 0]
    env.set_attr("episode", 5, indices=[0, 2])
    assert env.get_attr("episode") == [5, 2, 5]
    assert env.has_attr("plan")
    assert not env.has_attr("plam")
    for ask in (env.get_attr, env.env_method):
        with pytest.raises(AttributeError, match="has no attribute 'plam'"):
            ask("plam")
    assert env.get_attr("copy") == [0, 1, 2]  # still there: no worker died of the question
    assert env.env_is_wrapped(Monitor) == [True] * 3


def test_attributes_of_a_vector_environment_of_ones_own():
    env = as_vec_env(OwnVectorEnv(functions(MIXED), AutoresetMode.SAME_STEP))
    assert env.get_attr("num_envs", [0, 2]) == [3, 3]
    env.set_attr("mark", 4)
    assert env.get_attr("mark") == [4, 4, 4]
    assert not env.has_attr("plan")
    with pytest.raises(AttributeError):
        env.get_attr("plan")


def test_rendering_a_vector_environment():
    env = as_vec_env(
        SyncVectorEnv([partial(EpisodeEnv, copy, plan, render_mode="rgb_array") for copy, plan in enumerate(MIXED)])
    )
    assert env.render_mode == "rgb_array"
    assert [image[0, 0, 0] for image in env.get_images()] == [0, 1, 2]
    assert env.render().shape == (8, 10, 3)


@pytest.mark.parametrize("mode", AutoresetMode)
def test_observations_of_several_parts(mode):
    """Dict observations with a plain number in them, as environments return Discrete parts."""

    class Parts(EpisodeEnv):
        observation_space = gym.spaces.Dict({"box": EpisodeEnv.observation_space, "step": gym.spaces.Discrete(99)})

        def _observe(self):
            return {"box": super()._observe(), "step": self.at}

    makers = [partial(Parts, copy, plan, reuse_memory=mode is not AutoresetMode.SAME_STEP) for copy, plan in enumerate(MIXED)]
    reference, env = LeanVecEnv(makers), as_vec_env(SyncVectorEnv(makers, autoreset_mode=mode))
    first = env.reset()
    assert all(np.array_equal(value, first[key]) for key, value in reference.reset().items())
    for _ in range(30):
        expected, got = reference.step(np.zeros((3, 2), np.float32)), env.step(np.zeros((3, 2), np.float32))
        for key in expected[0]:
            assert np.array_equal(expected[0][key], got[0][key])
            assert expected[0][key].dtype == got[0][key].dtype
        assert np.array_equal(expected[2], got[2])
        for one, other in zip(expected[3], got[3], strict=True):
            assert ("terminal_observation" in one) == ("terminal_observation" in other)
            if "terminal_observation" in one:
                for key, value in one["terminal_observation"].items():
                    assert np.array_equal(value, other["terminal_observation"][key])


def test_options_reach_the_environments():
    class Options(EpisodeEnv):
        def reset(self, *, seed=None, options=None):
            self.got = (seed, options)
            return super().reset(seed=seed)

    env = as_vec_env(SyncVectorEnv([partial(Options, 0, MIXED[0]), partial(Options, 1, MIXED[1])]))
    env.seed(4)
    env.set_options({"level": 2})
    env.reset()
    assert env.get_attr("got") == [(4, {"level": 2}), (5, {"level": 2})]
    env.reset()
    assert env.get_attr("got") == [(None, None)] * 2
    env.set_options([{"level": 1}, {"level": 2}])
    with pytest.raises(ConfigError, match="the same reset options for all"):
        env.reset()


def test_reset_infos_and_the_infos_of_the_last_step_are_kept_apart():
    for mode in AutoresetMode:
        env = as_vec_env(SyncVectorEnv(functions(MIXED), autoreset_mode=mode))
        env.reset()
        assert env.reset_infos == [{"first_of": 0}] * 3
        infos = env.step(np.zeros((3, 2), np.float32))[3]
        assert infos[0]["at"] == (0, 1)
        assert "first_of" not in infos[0]
        assert env.reset_infos == [{"first_of": 1}, {"first_of": 0}, {"first_of": 0}]


def test_episodes_are_reported_and_written_as_a_monitor_does(tmp_path):
    for folder, env in (
        ("ours", as_vec_env(SyncVectorEnv(functions(MIXED)), monitor_dir=tmp_path / "ours")),
        ("own", known(OwnVectorEnv(functions(MIXED), AutoresetMode.NEXT_STEP), monitor_dir=tmp_path / "own")),
        (
            "theirs",
            DummyVecEnv(
                [lambda f=f, i=i: Monitor(f(), str(tmp_path / f"theirs/{i}")) for i, f in enumerate(functions(MIXED))]
            ),
        ),
    ):
        env.reset()
        counts = np.zeros(3, int)
        reported: list[list[tuple[float, int]]] = [[], [], []]
        while counts.min() < 12:
            for copy, info in enumerate(env.step(np.zeros((3, 2), np.float32))[3]):
                counts[copy] += not info.get(RESET_STEP, False)
                if "episode" in info:
                    reported[copy].append((info["episode"]["r"], info["episode"]["l"]))
        env.close()
        for copy in range(3):
            with (tmp_path / folder / f"{copy}.monitor.csv").open() as file:
                assert file.readline().startswith('#{"t_start"')
                rows = [(float(row["r"]), int(row["l"])) for row in csv.DictReader(file)]
            assert rows == reported[copy]
            (tmp_path / folder / f"{copy}.monitor.csv").write_text(repr(rows[:4]))
    for copy in range(3):
        first = {(tmp_path / folder / f"{copy}.monitor.csv").read_text() for folder in ("ours", "own", "theirs")}
        assert len(first) == 1


def test_frame_stacks_and_evaluations_begin_anew_where_resets_are_steps():
    env = VecFrameStack(known(OwnVectorEnv(functions(MIXED), AutoresetMode.NEXT_STEP)), 2)
    observations = env.reset()
    for _ in range(30):
        observations, _, _, infos = env.step(np.zeros((3, 2), np.float32))
        for copy, (observation, info) in enumerate(zip(observations, infos, strict=True)):
            if info.get(RESET_STEP):
                assert observation[:3].tolist() == [0, 0, 0], "no frame of the episode before"
                assert observation[3] == copy
    model = PPO("MlpPolicy", as_vec_env(SyncVectorEnv(functions(MIXED))), n_steps=8, batch_size=8)
    returns = {
        kind: evaluate_policy(model, known(vector), 9, return_episode_rewards=True)
        for kind, vector in (
            ("own", OwnVectorEnv(functions(MIXED), AutoresetMode.NEXT_STEP)),
            ("sync", SyncVectorEnv(functions(MIXED))),
        )
    }
    assert sorted(returns["own"][1]) == sorted(returns["sync"][1])


def test_a_mask_that_is_not_heeded_is_noticed():
    class Deaf(OwnVectorEnv):
        def reset(self, *, seed=None, options=None):
            return super().reset(seed=seed)

    env = as_vec_env(Deaf(functions(MIXED), AutoresetMode.DISABLED))
    env.reset()
    with pytest.raises(EnvError, match="'Deaf' reset all environments where options"):
        env.step(np.zeros((3, 2), np.float32))


def test_a_missing_last_observation_is_noticed():
    env = as_vec_env(OwnVectorEnv(functions(MIXED), AutoresetMode.DISABLED), autoreset_mode="SameStep")
    env.reset()
    with pytest.raises(EnvError, match=r"'OwnVectorEnv' \(number 0\) ended an episode without its last observation"):
        env.step(np.zeros((3, 2), np.float32))


def test_a_lost_worker_of_gymnasium_is_told_and_closes():
    env = async_env()
    model = PPO("MlpPolicy", env, n_steps=8, batch_size=8)
    os.kill(env.env.processes[1].pid, signal.SIGKILL)
    with pytest.raises(EnvError, match="the process of an environment died"):
        model.learn(100)
    processes = env.env.processes
    env.close()
    env.close()
    assert not any(process.is_alive() for process in processes)


def test_questions_and_resets_while_a_step_is_under_way(opened):
    env = async_env()
    opened.append(env)
    env.reset()
    env.step_async(np.zeros((3, 2), np.float32))
    assert env.get_attr("copy") == [0, 1, 2]
    assert env.step_wait()[0][1].tolist() == [1, 0, 1]
    env.step_async(np.zeros((3, 2), np.float32))
    assert env.reset().tolist() == [[0, 2, 0], [1, 1, 0], [2, 1, 0]]


def test_an_error_in_a_worker_of_gymnasium_names_the_environment(capfd):
    class Breaks(EpisodeEnv):
        def step(self, action):
            if self.copy == 1:
                raise ValueError("boom\non two lines")
            return super().step(action)

    env = as_vec_env(AsyncVectorEnv([partial(Breaks, copy, MIXED[copy]) for copy in range(3)], context="fork"))
    with pytest.raises(EnvError, match=r"'AsyncVectorEnv' \(number 1\) failed: ValueError: boom on two lines") as caught:
        PPO("MlpPolicy", env, n_steps=8, batch_size=8).learn(10)
    assert "in step" in str(caught.value.__cause__.__cause__)
    env.close()
    assert capfd.readouterr().err == ""


def test_closing_in_mid_step():
    env = async_env()
    env.reset()
    env.step_async(np.zeros((3, 2), np.float32))
    env.close()
    assert not any(process.is_alive() for process in env.env.processes)


# --- constructors and make -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "source",
    [
        "Pendulum-v1",
        partial(gym.make, "Pendulum-v1"),
        [partial(gym.make, "Pendulum-v1")] * 2,
        gym.make("Pendulum-v1"),
        SyncVectorEnv([partial(gym.make, "Pendulum-v1")] * 2),
    ],
    ids=["id", "function", "functions", "environment", "vector environment"],
)
def test_constructors_and_make_take_any_environment(source):
    model = SAC("MlpPolicy", source, learning_starts=4, seed=0)
    assert isinstance(model.get_env(), VecEnv)
    model.learn(10)
    made = make("ppo", source, n_steps=8, batch_size=8)
    assert made.n_envs == model.n_envs
    other = SAC("MlpPolicy", "Pendulum-v1")
    if model.n_envs == 1:
        other.set_env(model.get_env())


def test_make_vectorises_what_can_be_copied(opened):
    model = make("ppo", partial(gym.make, "CartPole-v1"), n_envs=2, vec_env="subproc", normalize=True, n_steps=8, batch_size=8)
    opened.append(model.get_env())
    assert isinstance(model.get_env().unwrapped, SharedMemoryVecEnv)
    assert model.n_envs == 2
    model.learn(16)
    assert make("ppo", partial(gym.make, "CartPole-v1"), preset="spinning_up").n_steps == 4000


def test_whoever_does_not_know_of_reset_steps_is_warned_once():
    vector = OwnVectorEnv(functions(MIXED), AutoresetMode.NEXT_STEP)
    make("ppo", vector, n_steps=8, batch_size=8).learn(24)
    with pytest.warns(UserWarning, match="'OwnVectorEnv' resets in steps of their own, .*: algorithms other than") as caught:
        make("sb3:ppo", vector, n_steps=8, batch_size=8).learn(48)
    assert len(caught) == 1


@pytest.mark.parametrize("mode", AutoresetMode)
def test_hindsight_asks_the_environments_of_a_vector_environment(mode):
    goals = SyncVectorEnv([partial(BitFlippingEnv, n_bits=3, continuous=True)] * 2, autoreset_mode=mode)
    model = make("sac", goals, replay_buffer_class="her", learning_starts=20, policy_kwargs={"net_arch": [8]}, seed=0)
    model.learn(60)
    samples = model.replay_buffer.sample(64)
    reached = (samples.next_observations["achieved_goal"] == samples.next_observations["desired_goal"]).all(dim=1)
    assert (samples.rewards.flatten() == th.where(reached, 0.0, -1.0)).all()
    assert reached.any()


def test_a_replay_buffer_that_would_store_reset_steps_is_refused():
    vector = OwnVectorEnv(functions(MIXED), AutoresetMode.NEXT_STEP)
    model = SAC("MlpPolicy", vector, compact_replay=False)
    with pytest.raises(ConfigError, match="SAC: ReplayBuffer would store the steps that only reset an environment"):
        model.learn(10)
    SAC("MlpPolicy", SyncVectorEnv(functions(MIXED)), compact_replay=False).learn(10)


def test_gymnasiums_own_vectorised_cart_pole_is_learnt_from():
    vector = gym.make_vec("CartPole-v1", num_envs=8, vectorization_mode="vector_entry_point")
    model = make(
        "ppo", vector, n_steps=64, batch_size=128, seed=0, learning_rate=1e-3, n_epochs=20, gamma=0.98, gae_lambda=0.8
    )
    assert model.get_env().reset_steps
    model.learn(20_000)
    assert np.mean([episode["r"] for episode in list(model.ep_info_buffer)[-20:]]) > 100


# --- EnvPool ---------------------------------------------------------------------------------------------------------


class LastRollout(BaseCallback):
    """Keeps the last rollout as it was collected."""

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        self.buffer = deepcopy(getattr(self.model, "rollout_buffer", None))


def swing(observations: Any, torques: Any) -> tuple[Any, Any]:
    """What follows and what is rewarded by the equations of EnvPool's Pendulum-v1, for each row."""
    angles, speeds = np.arctan2(observations[:, 1], observations[:, 0]), observations[:, 2]
    rewards = -(angles**2 + 0.1 * speeds**2 + 0.001 * torques**2)
    speeds = speeds + 0.05 * (15 * np.sin(angles) + 3 * torques)
    angles = angles + 0.05 * speeds  # Gymnasium's turns by the speed within its bounds
    return np.stack([np.cos(angles), np.sin(angles), np.clip(speeds, -8, 8)], axis=1), rewards


@needs_envpool
@pytest.mark.usefixtures("pools_freed")
class TestEnvPool:
    def test_episodes_end_as_they_should(self):
        env = as_vec_env("CartPole-v1", 3, vec_env="envpool", seed=5, env_kwargs={"max_episode_steps": 12})
        assert isinstance(env, EnvPoolVecEnv)
        assert not env.reset_steps
        env.reset()
        at, endings = np.zeros(3, int), set()
        for step in range(60):
            before = at.copy()
            observations, _, dones, infos = env.step(np.array([0, step % 2, step // 2 % 2]))
            at = np.where(dones, 0, at + 1)
            for index, info in enumerate(infos):
                assert info["elapsed_step"] == before[index] + 1, "no step was spent on a reset"
                assert ("terminal_observation" in info) == dones[index]
                if dones[index]:
                    endings.add(info["TimeLimit.truncated"])
                    assert info["episode"]["l"] == before[index] + 1
                    assert np.abs(observations[index]).max() <= 0.05, "the first observation of an episode"
                    fallen = np.abs(info["terminal_observation"][2]) > 0.2
                    assert fallen != info["TimeLimit.truncated"]
        assert endings == {True, False}
        env.close()

    def test_seeds_give_the_same_episodes_again(self):
        env = as_vec_env("CartPole-v1", 2, vec_env="envpool", seed=5)
        first = env.reset()
        assert not np.array_equal(first, env.reset())
        env.seed(5)
        assert np.array_equal(first, env.reset())
        assert np.array_equal(first, as_vec_env("CartPole-v1", 2, vec_env="envpool", seed=5).reset())
        assert not np.array_equal(first, as_vec_env("CartPole-v1", 2, vec_env="envpool", seed=6).reset())

    @pytest.mark.filterwarnings("ignore:.*Box (low|high)'s precision.*:UserWarning")
    def test_a_pool_of_the_users_own(self):
        import envpool

        pool = envpool.make_gymnasium("Pendulum-v1", num_envs=3, seed=2)
        model = SAC("MlpPolicy", pool, learning_starts=10)
        model.learn(60)
        assert model.n_envs == 3
        with pytest.warns(UserWarning, match="here seed=2: seed=9 is not heeded"):
            model.get_env().seed(9)
        with pytest.raises(ConfigError, match="batch_size=1 of 3 environments returns a part"):
            as_vec_env(envpool.make_gymnasium("Pendulum-v1", num_envs=3, batch_size=1))

    @pytest.mark.parametrize("algorithm", ["vpg", "trpo", "ppo", "ddpg", "td3", "sac"])
    def test_what_every_algorithm_stores_obeys_the_pendulums_equations(self, algorithm):
        on_policy = algorithm in ("vpg", "trpo", "ppo")
        small = {"n_steps": 256} if on_policy else {"learning_starts": 20, "train_freq": 10}
        small |= {"reset_on_rollout": False} if algorithm == "vpg" else {}
        model = make(algorithm, "Pendulum-v1", n_envs=2, vec_env="envpool", seed=1, **small)
        last = LastRollout()
        model.learn(500, callback=last)
        assert {episode["l"] for episode in model.ep_info_buffer} == {200}
        buffer = last.buffer if on_policy else model.replay_buffer
        rows = 256 if on_policy else buffer.size()
        for env in range(2):
            observations = buffer.observations[:rows, env].reshape(rows, 3)
            if on_policy:
                torques = np.clip(buffer.actions[:, env, 0], -2, 2)
                ends = np.append(buffer.episode_starts[1:, env], 0).astype(bool)
                following = np.roll(observations, -1, axis=0)
                known = np.append(~ends[:-1], False)  # what the row after it shows
            else:
                torques = 2 * buffer.actions[:rows, env, 0]
                ends = buffer.dones[:rows, env].astype(bool)
                following, known = buffer.next_observations[:rows, env], np.ones(rows, bool)
                assert np.array_equal(buffer.timeouts[:rows, env], ends)
            assert np.flatnonzero(ends).tolist() == [199]
            expected, rewards = swing(observations, torques)
            assert np.allclose(following[known], expected[known], atol=1e-4)
            unaltered = ~ends if on_policy else known  # a truncated episode's value is added to its last reward
            assert np.allclose(buffer.rewards[:rows, env][unaltered], rewards[unaltered], atol=1e-3)

    @pytest.mark.parametrize(
        ("env_id", "arguments", "message"),
        [
            ("CartPol-v1", {}, r"EnvPool has no environment 'CartPol-v1' \(did you mean 'CartPole-v1'\?\)"),
            ("CartPole-v1", {"env_kwargs": {"gravity": 3}}, "EnvPool cannot make 'CartPole-v1': .*gravity"),
            ("CartPole-v1", {"wrappers": [lambda env: env]}, "cannot be wrapped one by one"),
        ],
    )
    def test_what_it_does_not_have(self, env_id, arguments, message):
        with pytest.raises(ConfigError, match=message):
            as_vec_env(env_id, vec_env="envpool", **arguments)


def test_envpool_is_an_extra(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r'pip install "spinup-plugins\[envpool\]"'):
        as_vec_env("CartPole-v1", vec_env="envpool")


def test_monitor_files_lie_where_they_were_asked_for(tmp_path: Path):
    as_vec_env("CartPole-v1", 2, monitor_dir=tmp_path / "new").close()
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["0.monitor.csv", "1.monitor.csv"]
