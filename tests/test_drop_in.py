"""A program written for Stable-Baselines3 runs with our classes in place of its own, and gives the same numbers.

Each script takes the class as its argument; nothing else tells the two apart.
"""

from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3 import HerReplayBuffer
from stable_baselines3.common.callbacks import (
    CallbackList,
    CheckpointCallback,
    EvalCallback,
    EveryNTimesteps,
    StopTrainingOnMaxEpisodes,
    StopTrainingOnNoModelImprovement,
    StopTrainingOnRewardThreshold,
)
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import BitFlippingEnv, IdentityEnv, IdentityEnvBox
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    SubprocVecEnv,
    VecCheckNan,
    VecFrameStack,
    VecMonitor,
    VecNormalize,
)
from twins import (
    OFF_POLICY,
    PEERS,
    SIX,
    TWINS,
    VECTOR,
    build,
    check_arrays,
    check_equal,
    gap,
    learnt,
    like_peer,
    toy,
)

from spinup_plugins import PPO, SAC, TRPO, VPG

#: Python ≥ 3.12 warns of forking with threads about; ``forkserver``, the default, takes seconds to import torch
FORK = {"start_method": "fork"}
pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")


def both(cls: type, script: Callable[[type, Path, dict[str, Any]], Any], folder: Path) -> tuple[Any, Any]:
    """Run ``script`` with ours and with the peer, each in a folder of its own."""
    (folder / "ours").mkdir()
    (folder / "peers").mkdir()
    return script(cls, folder / "ours", like_peer(cls)), script(PEERS[cls], folder / "peers", {})


def files(folder: Path) -> set[str]:
    """Name the files below ``folder``; TensorBoard's hold the time and the process."""
    return {str(p.relative_to(folder)).split("tfevents")[0] for p in folder.rglob("*") if p.is_file()}


# --- scripts ---------------------------------------------------------------------------------------------------------


def everything(cls: type, folder: Path, extra: dict[str, Any]) -> Any:
    """Normalised, stacked and monitored environments, evaluation, checkpoints, TensorBoard."""

    def envs(seed: int, *, training: bool) -> VecNormalize:
        env = VecMonitor(DummyVecEnv([toy, toy]), str(folder / f"monitor{seed}.csv"))
        env.seed(seed)
        return VecNormalize(VecFrameStack(VecCheckNan(env), 2), training=training, gamma=0.9)

    with closing(envs(1, training=True)) as env, closing(envs(9, training=False)) as evaluation_env:
        callbacks = CallbackList(
            [
                CheckpointCallback(16, str(folder / "checkpoints"), save_replay_buffer=True, save_vecnormalize=True),
                EvalCallback(
                    evaluation_env,
                    n_eval_episodes=2,
                    eval_freq=10,
                    log_path=str(folder / "evaluations"),
                    best_model_save_path=str(folder / "best"),
                    callback_after_eval=StopTrainingOnNoModelImprovement(10, min_evals=10),
                    verbose=0,
                ),
            ]
        )
        model = build(cls, env, tensorboard_log=str(folder / "logs"), gamma=0.9, **extra)
        model.learn(96, callback=callbacks)
        env.save(str(folder / "normalisation.pkl"))
    return model


@pytest.mark.parametrize("cls", TWINS)
def test_a_whole_script(cls: type, tmp_path: Path) -> None:
    ours, peer = both(cls, everything, tmp_path)
    check_equal(ours, peer)
    assert files(tmp_path / "ours") == files(tmp_path / "peers")
    evaluations = [np.load(tmp_path / side / "evaluations" / "evaluations.npz") for side in ("ours", "peers")]
    assert set(evaluations[0]) == {"timesteps", "results", "ep_lengths"}
    for key in evaluations[0]:
        np.testing.assert_allclose(evaluations[0][key], evaluations[1][key], rtol=1e-4)
    for attribute in ("obs_rms", "ret_rms"):
        mine, theirs = (getattr(model.get_env(), attribute) for model in (ours, peer))
        np.testing.assert_allclose(mine.mean, theirs.mean, rtol=1e-5)
    kept = VecNormalize.load(str(tmp_path / "ours" / "normalisation.pkl"), VecFrameStack(make_vec_env(toy, n_envs=2), 2))
    again = cls.load(tmp_path / "ours" / "best" / "best_model", env=kept)
    assert again.get_vec_normalize_env() is kept
    again.learn(8, reset_num_timesteps=False)


def in_processes(cls: type, folder: Path, extra: dict[str, Any]) -> Any:
    """Environments in processes of their own."""
    env = make_vec_env(toy, n_envs=2, seed=3, vec_env_cls=SubprocVecEnv, vec_env_kwargs=FORK)
    model = build(cls, env, gradient_steps=-1, **extra) if cls.__name__ in ("SAC", "TD3", "DDPG") else build(cls, env, **extra)
    model.learn(48)
    env.close()
    return model


@pytest.mark.parametrize("cls", TWINS)
def test_processes(cls: type, tmp_path: Path) -> None:
    check_equal(*both(cls, in_processes, tmp_path))


def stopped_by_reward(cls: type, folder: Path, extra: dict[str, Any]) -> Any:
    """The first evaluation is good enough; evaluating and stopping count real timesteps."""
    stop = StopTrainingOnRewardThreshold(reward_threshold=-1e9, verbose=0)
    evaluation = EvalCallback(Monitor(toy()), callback_on_new_best=stop, n_eval_episodes=1, eval_freq=1, verbose=0)
    return build(cls, **extra).learn(1000, callback=EveryNTimesteps(50, evaluation))


def stopped_by_episodes(cls: type, folder: Path, extra: dict[str, Any]) -> Any:
    return build(cls, **extra).learn(1000, callback=StopTrainingOnMaxEpisodes(max_episodes=6))


def stopped_by_function(cls: type, folder: Path, extra: dict[str, Any]) -> Any:
    return build(cls, **extra).learn(1000, callback=lambda local, _: local["self"].num_timesteps < 50)


def stopped_by_list(cls: type, folder: Path, extra: dict[str, Any]) -> Any:
    return build(cls, **extra).learn(1000, callback=[StopTrainingOnMaxEpisodes(7), StopTrainingOnMaxEpisodes(6)])


@pytest.mark.parametrize(
    ("script", "steps"),
    [(stopped_by_reward, 50), (stopped_by_episodes, 48), (stopped_by_function, 50), (stopped_by_list, 48)],
)
@pytest.mark.parametrize("cls", TWINS)
def test_stopping_early(cls: type, script: Any, steps: int, tmp_path: Path) -> None:
    ours, peer = both(cls, script, tmp_path)
    assert ours.num_timesteps == steps
    assert gap(ours, peer) <= 1e-5


def with_hindsight(cls: type, folder: Path, extra: dict[str, Any]) -> Any:
    """Hindsight experience replay on a goal environment with a Dict observation."""
    model = build(
        cls,
        BitFlippingEnv(n_bits=3, continuous=True),
        "MultiInputPolicy",
        replay_buffer_class=HerReplayBuffer,
        replay_buffer_kwargs={"n_sampled_goal": 2, "goal_selection_strategy": "future", "copy_info_dict": True},
        action_noise=NormalActionNoise(np.zeros(3), 0.2 * np.ones(3)),
        train_freq=(1, "episode"),
        gradient_steps=-1,
    )
    model.learn(56)
    model.save_replay_buffer(folder / "replay")
    model.save(folder / "model")
    loaded = cls.load(folder / "model", env=BitFlippingEnv(n_bits=3, continuous=True))
    loaded.load_replay_buffer(folder / "replay", truncate_last_traj=False)
    loaded.set_random_seed(2)
    loaded.learn(8, reset_num_timesteps=False)
    return loaded


@pytest.mark.parametrize("cls", OFF_POLICY)
def test_hindsight(cls: type, tmp_path: Path) -> None:
    ours, peer = both(cls, with_hindsight, tmp_path)
    check_equal(ours, peer)
    assert np.mean(ours.ep_success_buffer) == np.mean(peer.ep_success_buffer)


DICTIONARY = spaces.Dict({"vector": VECTOR, "bits": spaces.MultiBinary(2), "image": spaces.Box(0, 255, (3, 36, 36), np.uint8)})


def with_dictionaries(cls: type, folder: Path, extra: dict[str, Any]) -> Any:
    """Dict observations with an image, normalised in part."""
    env = VecNormalize(make_vec_env(lambda: toy(DICTIONARY), n_envs=2), norm_obs_keys=["vector"])
    features = {"cnn_output_dim": 4}
    model = build(cls, env, "MultiInputPolicy", policy_kwargs={"features_extractor_kwargs": features}, **extra)
    return model.learn(50)


@pytest.mark.parametrize("cls", TWINS)
def test_dictionaries(cls: type, tmp_path: Path) -> None:
    check_equal(*both(cls, with_dictionaries, tmp_path))


def in_two_goes(cls: type, folder: Path, extra: dict[str, Any]) -> Any:
    """Learn, change the environment, learn on, begin anew; schedules follow the remaining progress."""
    model = build(cls, learning_rate=lambda progress: 0.01 * progress, **extra)
    model.learn(48)
    model.set_env(toy())
    model.set_random_seed(1)
    model.learn(8, reset_num_timesteps=False)
    assert model.num_timesteps > 48
    env = DummyVecEnv([toy])
    env.seed(2)
    env.reset()
    model.set_env(env, force_reset=False)
    model.learn(8, reset_num_timesteps=False)
    before = model.num_timesteps
    model.learn(24)
    assert model.num_timesteps == 24 < before
    return model


@pytest.mark.parametrize("cls", TWINS)
def test_learning_in_several_goes(cls: type, tmp_path: Path) -> None:
    check_equal(*both(cls, in_two_goes, tmp_path))


def with_replay_buffer(cls: type, folder: Path, extra: dict[str, Any]) -> Any:
    model = learnt(cls, make_vec_env(toy, n_envs=2))
    for target in (folder / "buffer", str(folder / "other.pkl")):
        model.save_replay_buffer(target)
    fresh = build(cls, make_vec_env(toy, n_envs=2))
    fresh.load_replay_buffer(folder / "buffer")
    assert fresh.replay_buffer.size() == model.replay_buffer.size() == 24
    fresh._setup_learn(0)
    fresh.train(gradient_steps=3, batch_size=8)
    return fresh


@pytest.mark.parametrize("cls", OFF_POLICY)
def test_replay_buffers_are_saved_and_loaded(cls: type, tmp_path: Path) -> None:
    ours, peer = both(cls, with_replay_buffer, tmp_path)
    assert gap(ours, peer) <= 1e-5
    ours.load_replay_buffer(tmp_path / "peers" / "buffer")
    check_arrays(ours.replay_buffer.observations, peer.replay_buffer.observations)
    np.zeros(3).dump(tmp_path / "array.pkl")
    with pytest.raises(AssertionError, match="must inherit from ReplayBuffer"):
        ours.load_replay_buffer(tmp_path / "array.pkl")


def with_monitor_files(cls: type, folder: Path, extra: dict[str, Any]) -> Any:
    env = make_vec_env(toy, monitor_dir=str(folder))
    learnt(cls, env, **extra)
    env.close()
    return np.genfromtxt(folder / "0.monitor.csv", delimiter=",", skip_header=2)[:, :2]


@pytest.mark.parametrize("cls", [PPO, SAC])
def test_monitor_files(cls: type, tmp_path: Path) -> None:
    ours, peers = both(cls, with_monitor_files, tmp_path)
    assert len(ours) == 6
    np.testing.assert_allclose(ours, peers, rtol=1e-5)


@pytest.mark.parametrize("cls", SIX)
def test_evaluate_policy(cls: type) -> None:
    model = learnt(cls)
    returns, lengths = evaluate_policy(model, Monitor(toy()), n_eval_episodes=3, return_episode_rewards=True)
    assert len(returns) == 3
    assert lengths == [8, 8, 8]


@pytest.mark.parametrize("cls", SIX)
@pytest.mark.filterwarnings("ignore:rich is experimental")
def test_progress_bars(cls: type) -> None:
    pytest.importorskip("tqdm")
    assert build(cls).learn(16, progress_bar=True).num_timesteps >= 16


@pytest.mark.parametrize("cls", SIX)
def test_set_env_wants_the_same_spaces(cls: type) -> None:
    model = build(cls)
    with pytest.raises(ValueError, match="Observation spaces do not match"):
        model.set_env(toy(spaces.Box(-1.0, 1.0, (4,))))
    with pytest.raises(ValueError, match="Action spaces do not match"):
        model.set_env(toy(VECTOR, spaces.Box(-1.0, 1.0, (5,))))
    with pytest.raises(AssertionError, match="number of environments to be set is different"):
        model.set_env(make_vec_env(toy, n_envs=2))


def test_algorithms_can_be_subclassed() -> None:
    """Programs override methods and pass everything on."""

    class Loud(SAC):
        def __init__(self, *args: Any, note: str = "", **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.note = note

        def train(self, gradient_steps: int, batch_size: int = 64) -> None:
            super().train(gradient_steps, batch_size)
            self.trained = True

    model = learnt(Loud, note="mine")
    assert model.trained
    assert model.note == "mine"
    assert gap(model, learnt(SAC)) == 0.0


# --- learning --------------------------------------------------------------------------------------------------------


#: steps as in Stable-Baselines3's own test; VPG takes a single step per rollout, so it needs small ones, and more of them
BUDGETS: list[tuple[type, dict[str, Any], int, bool]] = [
    (PPO, {"n_steps": 500, "batch_size": 50, "n_epochs": 5, "learning_rate": 1e-3}, 1000, False),
    (PPO, {"n_steps": 500, "batch_size": 50, "n_epochs": 5, "learning_rate": 1e-3}, 1000, True),
    (TRPO, {"n_steps": 250, "batch_size": 50, "target_kl": 0.05}, 1000, True),
    (VPG, {"n_steps": 50, "learning_rate": 0.02, "vf_lr": 0.01, "train_v_iters": 3}, 1500, False),
]


def return_on_identity(cls: type, steps: int, *, continuous: bool, **kwargs: Any) -> float:
    def make() -> gym.Env[Any, Any]:
        return IdentityEnvBox(eps=0.5) if continuous else IdentityEnv(2)

    model = cls("MlpPolicy", DummyVecEnv([make]), seed=0, **kwargs).learn(steps)
    return float(evaluate_policy(model, Monitor(make()), n_eval_episodes=20)[0])


@pytest.mark.parametrize("cls", OFF_POLICY)
def test_identity_is_learnt_within_400_steps(cls: type) -> None:
    """At SB3's default ``learning_starts``; Spinning Up's 10 000 random steps would leave nothing to learn in."""
    kwargs: dict[str, Any] = {"learning_rate": 1e-3, "gamma": 0.95, "buffer_size": 1000}
    kwargs["policy_kwargs"] = {"net_arch": [64, 64]}
    assert return_on_identity(cls, 400, continuous=True, **kwargs) >= 90


@pytest.mark.parametrize(("cls", "kwargs", "steps", "continuous"), BUDGETS)
def test_identity_is_learnt_on_policy(cls: type, kwargs: dict[str, Any], steps: int, continuous: bool) -> None:
    assert return_on_identity(cls, steps, continuous=continuous, gamma=0.4, **kwargs) >= 90
