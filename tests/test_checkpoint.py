"""A run that was interrupted goes on as if it had not been: every number of it is the same."""

import csv
import io
import os
import pickle
import signal
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.envs import BitFlippingEnv
from typer.testing import CliRunner

from spinup_plugins.cli import app
from spinup_plugins.errors import ConfigError, ModelFileError
from spinup_plugins.runs.bench import bench, grid
from spinup_plugins.runs.checkpoint import _Pickler, read_checkpoint
from spinup_plugins.runs.config import RunConfig
from spinup_plugins.runs.files import CHECKPOINT, CONFIG, LOCK, Status
from spinup_plugins.runs.runner import Run, prepare, resume

CLOCKS = ("time/fps", "time/time_elapsed", "time/iterations")
"""Columns of ``progress.csv`` that tell of this process."""


class Interrupt(BaseCallback):
    """Ends the training as Ctrl-C does, in the middle of a rollout."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self.step = step

    def _on_step(self) -> bool:
        if self.num_timesteps >= self.step:
            raise KeyboardInterrupt
        return True


class Counts(BaseCallback):
    """Counts episodes and rollouts; a callback that has a state."""

    def __init__(self) -> None:
        super().__init__()
        self.episodes: list[int] = []
        self.rollouts = 0

    def _on_rollout_start(self) -> None:
        self.rollouts += 1

    def _on_step(self) -> bool:
        self.episodes += [self.num_timesteps] * int(self.locals["dones"].sum())
        return True


class Learner(BaseCallback):
    """Has a network of its own with its optimiser, and holds on to one of the model's."""

    def __init__(self) -> None:
        super().__init__()
        self.network = th.nn.Linear(1, 1)
        th.nn.init.zeros_(self.network.weight)
        self.optimizer = th.optim.Adam(self.network.parameters())
        self.episodes: list[tuple[float, float]] = []

    def _on_training_start(self) -> None:
        self.policy = self.model.policy

    def _on_step(self) -> bool:
        self.optimizer.zero_grad()
        self.network(th.ones(1, 1)).sum().backward()
        self.optimizer.step()
        self.episodes.append((self.network.weight.item(), float(sum(p.sum().item() for p in self.policy.parameters()))))
        return True


class Forgetful(gym.Wrapper[Any, Any, Any, Any]):
    """Draws from a generator that nobody can set: an episode that cannot be played again."""

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        observation, info = self.env.reset(**kwargs)
        return observation + np.float32(time.perf_counter_ns() % 1000 / 1e6), info


class Older(gym.Wrapper[Any, Any, Any, Any]):
    """Has NumPy's older generator, as environments written for Gym do."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        self.unwrapped.np_random = np.random.RandomState(0)  # type: ignore[assignment]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        return self.env.reset(options=options)


def state(run: Run) -> dict[str, Any]:
    """Every number of a run that decides how it would go on, and all that it has written down."""
    model = run.model
    buffer = getattr(model, "replay_buffer", None)
    with (run.folder / "progress.csv").open(newline="") as file:
        progress = [{key: value for key, value in row.items() if key not in CLOCKS} for row in csv.DictReader(file)]
    books = []
    for file in sorted(run.folder.glob("*.monitor.csv")):
        with file.open(newline="") as stream:
            next(stream)
            books.append([(row["r"], row["l"]) for row in csv.DictReader(stream)])
    evaluations = run.evaluations
    assert run.evaluation is not None
    normalize = model.get_vec_normalize_env()
    return {
        "parameters": model.get_parameters(),
        "counters": (model.num_timesteps, model._n_updates, model._episode_num),
        "last": (model._last_obs, model._last_episode_starts),
        "transitions": None if buffer is None else (buffer.observations, buffer.actions, buffer.rewards, buffer.dones),
        "statistics": None if normalize is None else (normalize.obs_rms.mean, normalize.ret_rms.var, normalize.returns),
        "progress": progress,
        "books": books,
        "evaluations": (evaluations.evaluations_timesteps, evaluations.evaluations_results),
        "best": run.best,
        "final": run.evaluation.returns,
        "callbacks": [(vars(each).get("episodes"), vars(each).get("rollouts")) for each in run.callbacks],
        "torch": th.get_rng_state(),
        "numpy": np.random.get_state()[1],
    }


def assert_equal(one: Any, other: Any, where: str = "") -> None:
    if isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_equal(one[key], other[key], f"{where}/{key}")
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other), where
        for index, pair in enumerate(zip(one, other, strict=True)):
            assert_equal(*pair, f"{where}/{index}")
    elif isinstance(one, (th.Tensor, np.ndarray)):
        assert np.array_equal(np.asarray(one), np.asarray(other), equal_nan=True), where
    else:
        assert one == other, where


def interrupted(config: RunConfig, home: Path, step: int) -> None:
    with pytest.raises(KeyboardInterrupt):
        prepare(config, home=home).learn([Interrupt(step)])
    assert Status.read(home).state == "interrupted"


SHORT: dict[str, Any] = {
    "n_timesteps": 600,
    "checkpoint_every": 100,
    "eval_every": 150,
    "eval_episodes": 2,
    "final_episodes": 2,
}
ON: dict[str, Any] = {"n_steps": 64}
OFF: dict[str, Any] = {"learning_starts": 60, "batch_size": 16, "buffer_size": 400, "policy_kwargs": {"net_arch": [16]}}
CASES: dict[str, dict[str, Any]] = {
    "vpg": {"algo": "vpg", "env": "CartPole-v1", "hyperparameters": {"n_steps": 64, "train_v_iters": 2}},
    "trpo": {"algo": "trpo", "env": "CartPole-v1", "hyperparameters": {**ON, "batch_size": 32}},
    "ppo": {"algo": "ppo", "env": "CartPole-v1", "n_envs": 2, "normalize": True, "hyperparameters": ON},
    "ppo-mujoco": {"algo": "ppo", "env": "InvertedPendulum-v5", "normalize": True, "hyperparameters": ON},
    "ppo-box2d": {"algo": "ppo", "env": "LunarLander-v3", "hyperparameters": ON},
    "ppo-sde": {"algo": "ppo", "env": "Pendulum-v1", "n_envs": 2, "hyperparameters": {**ON, "use_sde": True}},
    "ppo-torch": {"algo": "ppo", "env": "Acrobot-v1", "hyperparameters": {**ON, "engine": "torch"}},
    "ppo-subproc": {"algo": "ppo", "env": "CartPole-v1", "n_envs": 3, "vec_env": "subproc", "hyperparameters": ON},
    "ppo-wrapped": {
        "algo": "ppo",
        "env": "CartPole-v1",
        "wrappers": [{"noisy_observation": {"std": 0.1}}, "time_feature"],
        "callbacks": [f"{__name__}:Counts"],
        "hyperparameters": ON,
    },
    "ppo-callback": {"algo": "ppo", "env": "CartPole-v1", "callbacks": [f"{__name__}:Learner"], "hyperparameters": ON},
    "ddpg": {"algo": "ddpg", "env": "Pendulum-v1", "hyperparameters": {**OFF, "action_noise": 0.1}},
    "ddpg-overlap": {"algo": "ddpg", "env": "Pendulum-v1", "hyperparameters": {**OFF, "overlap": True}},
    "td3": {
        "algo": "td3",
        "env": "Pendulum-v1",
        "n_envs": 2,
        "hyperparameters": {**OFF, "action_noise": {"noise": "ornstein_uhlenbeck", "sigma": 0.3}},
    },
    "td3-nstep": {"algo": "td3", "env": "Pendulum-v1", "hyperparameters": {**OFF, "n_steps": 3, "train_freq": 8}},
    "sac": {"algo": "sac", "env": "Pendulum-v1", "normalize": True, "hyperparameters": OFF},
    "sac-sde": {"algo": "sac", "env": "MountainCarContinuous-v0", "hyperparameters": {**OFF, "use_sde": True}},
    "sac-episodes": {"algo": "sac", "env": "Pendulum-v1", "hyperparameters": {**OFF, "train_freq": [1, "episode"]}},
    "sac-warm-up": {"algo": "sac", "env": "Pendulum-v1", "hyperparameters": {**OFF, "learning_starts": 450}},
    "sac-plain": {"algo": "sac", "env": "Pendulum-v1", "hyperparameters": {**OFF, "compact_replay": False}},
    "sb3": {"algo": "sb3:a2c", "env": "CartPole-v1", "hyperparameters": {"n_steps": 3}},  # logs every 100 rollouts
}


@pytest.mark.parametrize("case", CASES)
def test_a_resumed_run_is_the_one_that_was_not_interrupted(case: str, tmp_path: Path) -> None:
    config = RunConfig(**SHORT, **CASES[case])
    whole = prepare(config, home=tmp_path / "whole")
    whole.learn()
    expected = state(whole)
    assert not (whole.folder / CHECKPOINT).exists()
    interrupted(config, tmp_path / "cut", 470)
    th.manual_seed(123)
    np.random.seed(123)
    resumed = resume(tmp_path / "cut")
    assert 0 < read_checkpoint(resumed.folder).num_timesteps < 470
    resumed.learn()
    assert_equal(state(resumed), expected)
    assert Status.read(resumed.folder).state == "finished"
    assert not (resumed.folder / CHECKPOINT).exists()


def test_a_killed_run_is_resumed_from_the_command_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "spinup_plugins", "train"]
    options = ["-n", "6000", "--checkpoint-every", "1000", "-s", "n_steps=100", "-s", "batch_size=50", "--eval-every", "0"]
    train = [*command, "ppo", "CartPole-v1", *options, "--final-episodes", "3"]
    subprocess.run([*train, "-f", "whole"], cwd=tmp_path, check=True, capture_output=True)
    cut = tmp_path / "cut" / "ppo" / "CartPole-v1_1"
    with subprocess.Popen([*train, "-f", "cut"], cwd=tmp_path, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None and not (cut / CHECKPOINT).is_file():
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
    assert Status.read(cut).state == "running"
    told = subprocess.run([*command, "--resume", str(cut)], cwd=tmp_path, check=True, capture_output=True, text=True)
    assert " from step " in told.stderr
    whole = tmp_path / "whole" / "ppo" / "CartPole-v1_1"
    assert (cut / "evaluation.json").read_text() == (whole / "evaluation.json").read_text()


@pytest.mark.parametrize("option", ["--folder", "--config", "--seed"])
def test_what_a_run_was_made_with_cannot_be_changed(option: str, tmp_path: Path) -> None:
    told = CliRunner().invoke(app, ["train", "--resume", str(tmp_path), option, "1"])
    assert told.exit_code == 2
    assert told.stderr == f"error: --resume goes on with a run as it is: {option} does not go with it\n"


@pytest.mark.parametrize("vec_env", ["dummy", "gym-async"])
def test_environments_that_cannot_be_brought_back_begin_new_episodes(vec_env: str, tmp_path: Path) -> None:
    wrappers = [f"{__name__}:Forgetful"] if vec_env == "dummy" else []
    hyperparameters = {**OFF, "n_steps": 3, "buffer_size": 1000}
    config = RunConfig(
        algo="sac", env="Pendulum-v1", vec_env=vec_env, wrappers=wrappers, hyperparameters=hyperparameters, **SHORT
    )
    interrupted(config, tmp_path / "run", 470)
    run = resume(tmp_path / "run")
    there = read_checkpoint(run.folder).num_timesteps
    why = "does not repeat its episode" if vec_env == "dummy" else "cannot be brought back"
    with pytest.warns(UserWarning, match=why):
        run.learn()
    buffer = run.model.replay_buffer  # type: ignore[attr-defined]
    assert run.model.num_timesteps == 600
    # As if a time limit had cut the episode: its last transition bootstraps, and n-step returns end there.
    assert (buffer.dones[there - 1], buffer.timeouts[there - 1]) == (1.0, 1.0)
    assert not np.array_equal(buffer.next_observations[there - 1], buffer.observations[there])


def test_environments_with_another_kind_of_generator_train_and_begin_new_episodes(tmp_path: Path) -> None:
    config = RunConfig(algo="ppo", env="CartPole-v1", wrappers=[f"{__name__}:Older"], hyperparameters=ON, **SHORT)
    interrupted(config, tmp_path / "run", 470)
    run = resume(tmp_path / "run")
    with pytest.warns(UserWarning, match="does not repeat its episode"):
        run.learn()
    assert run.model.num_timesteps == 640


def test_rewards_tell_that_an_environment_does_not_repeat_itself(tmp_path: Path) -> None:
    # Its running variance is of all episodes so far; the observations are those of the episode.
    wrappers = ["gymnasium.wrappers:NormalizeReward"]
    config = RunConfig(algo="ppo", env="Pendulum-v1", wrappers=wrappers, hyperparameters=ON, **SHORT)
    interrupted(config, tmp_path / "run", 470)
    with pytest.warns(UserWarning, match="does not repeat its episode"):
        resume(tmp_path / "run").learn()


def test_hindsight_keeps_to_its_episodes(tmp_path: Path) -> None:
    gym.register("Flip-v0", lambda: BitFlippingEnv(n_bits=3, continuous=True, max_steps=4))
    try:
        hyperparameters = {**OFF, "replay_buffer_class": "her", "buffer_size": 1000}
        interrupted(RunConfig(algo="sac", env="Flip-v0", hyperparameters=hyperparameters, **SHORT), tmp_path / "run", 470)
        run = resume(tmp_path / "run")
        there = read_checkpoint(run.folder).num_timesteps
        with pytest.warns(UserWarning, match="does not repeat its episode"):  # its generator is not Gymnasium's
            run.learn()
    finally:
        gym.registry.pop("Flip-v0")
    buffer = run.model.replay_buffer  # type: ignore[attr-defined]
    assert buffer.env is run.model.get_env()
    starts, lengths = buffer.ep_start[:600, 0], buffer.ep_length[:600, 0]
    assert there in starts
    assert ((lengths > 0) & (lengths <= 4)).sum() > 590
    assert (starts[lengths > 0] + lengths[lengths > 0] <= there).sum() == there


def test_bench_goes_on_where_runs_were_cut(tmp_path: Path) -> None:
    cells = grid(["ppo"], ["CartPole-v1"], [0], tmp_path, layers=[_layer(SHORT, {"n_steps": 64})])
    (cell,) = cells
    cell.folder.parent.mkdir(parents=True)
    interrupted(cell.config, cell.folder, 470)
    (cell.folder / "mark").touch()  # goes with a folder that is begun anew
    (outcome,) = bench(cells, tmp_path)
    assert outcome.error == ""
    assert cell.status is not None
    assert cell.status.state == "finished"
    assert (cell.folder / "mark").exists()


@pytest.mark.parametrize("how", ["damaged", "failed"])
def test_bench_begins_anew_where_it_cannot_go_on(how: str, tmp_path: Path) -> None:
    cells = grid(["ppo"], ["CartPole-v1"], [0], tmp_path, layers=[_layer(SHORT, {"n_steps": 64})])
    (cell,) = cells
    cell.folder.parent.mkdir(parents=True)
    interrupted(cell.config, cell.folder, 470)
    (cell.folder / "mark").touch()
    if how == "damaged":
        os.truncate(cell.folder / CHECKPOINT, 1000)
    else:
        Status("failed", 470, 1.0, "a reason").write(cell.folder)
    (outcome,) = bench(cells, tmp_path)
    assert outcome.error == ""
    assert not (cell.folder / "mark").exists()


def test_what_cannot_be_resumed_says_why(tmp_path: Path) -> None:
    config = RunConfig(algo="ppo", env="CartPole-v1", hyperparameters=ON, **SHORT)
    with pytest.raises(ConfigError, match="is no run folder"):
        resume(tmp_path)
    prepare(config, home=tmp_path / "finished").learn()
    with pytest.raises(ConfigError, match=r"is finished, after 640 steps: there is nothing to resume$"):
        resume(tmp_path / "finished")
    interrupted(config, tmp_path / "early", 70)
    with pytest.raises(ConfigError, match=r"has no checkpoint\.pkl to resume from$"):
        resume(tmp_path / "early")
    assert not (tmp_path / "early" / LOCK).exists()
    interrupted(config, tmp_path / "cut", 470)
    content = (tmp_path / "cut" / CHECKPOINT).read_bytes()
    for bad in (content[: len(content) // 2], b"", b"no pickle at all", b"\x80\x04N."):
        (tmp_path / "cut" / CHECKPOINT).write_bytes(bad)
        with pytest.raises(ModelFileError, match=r"checkpoint\.pkl' is "):
            resume(tmp_path / "cut")
    assert (tmp_path / "cut" / CONFIG).is_file()


def test_a_resumed_run_that_ends_before_it_goes_on_leaves_what_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted(RunConfig(algo="ppo", env="CartPole-v1", hyperparameters=ON, **SHORT), tmp_path / "run", 470)
    before, there = (tmp_path / "run" / "model.zip").read_bytes(), read_checkpoint(tmp_path / "run").num_timesteps

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("spinup_plugins.runs.checkpoint._play", stop)
    with pytest.raises(KeyboardInterrupt):
        resume(tmp_path / "run").learn()
    assert (tmp_path / "run" / "model.zip").read_bytes() == before
    assert Status.read(tmp_path / "run").timesteps == there


def test_a_run_that_still_runs_is_left_alone(tmp_path: Path) -> None:
    class Resume(Interrupt):
        def _on_step(self) -> bool:
            if self.num_timesteps == self.step:
                books = (tmp_path / "run" / "0.monitor.csv").read_text()
                with pytest.raises(ConfigError, match=r"is still running: wait for it, or end it first$"):
                    resume(tmp_path / "run")
                assert (tmp_path / "run" / "0.monitor.csv").read_text() == books
            return True

    config = RunConfig(algo="ppo", env="CartPole-v1", hyperparameters=ON, **SHORT)
    prepare(config, home=tmp_path / "run").learn([Resume(470)])
    assert Status.read(tmp_path / "run").state == "finished"


def test_a_checkpoint_that_cannot_be_written_does_not_end_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("spinup_plugins.runs.checkpoint._Pickler.dump", full)
    run = prepare(RunConfig(algo="ppo", env="CartPole-v1", hyperparameters=ON, **SHORT), home=tmp_path / "run")
    with pytest.warns(UserWarning, match=r"no checkpoints in '.*' from here on: .*No space left"):
        run.learn()
    assert [file.name for file in run.folder.iterdir() if "checkpoint" in file.name] == []


def test_a_checkpoint_leaves_out_what_the_replay_buffer_does_not_hold(tmp_path: Path) -> None:
    hyperparameters = {**OFF, "buffer_size": 1_000_000}
    interrupted(RunConfig(algo="sac", env="Pendulum-v1", hyperparameters=hyperparameters, **SHORT), tmp_path / "run", 470)
    assert (tmp_path / "run" / CHECKPOINT).stat().st_size < 500_000
    buffer = read_checkpoint(tmp_path / "run").replay_buffer
    assert buffer is not None
    assert buffer.actions.shape == (1_000_000, 1, 1)
    assert buffer.actions[:100].any()


def test_half_written_files_of_a_killed_run_go(tmp_path: Path) -> None:
    interrupted(RunConfig(algo="ppo", env="CartPole-v1", hyperparameters=ON, **SHORT), tmp_path / "run", 470)
    (tmp_path / "run" / f".12345-{CHECKPOINT}").write_bytes(b"half of one")
    (tmp_path / "run" / ".12345-.12345-model.zip").write_bytes(b"half of one")
    resume(tmp_path / "run").learn()
    assert [file.name for file in (tmp_path / "run").iterdir() if file.name.startswith(".") or "checkpoint" in file.name] == []


def test_a_checkpoint_takes_no_memory_for_what_the_replay_buffer_holds() -> None:
    buffer = np.ones((100, 100_000), np.float32)
    buffer[-10:] = 0
    file = io.BytesIO()
    _Pickler(file).dump(buffer)
    assert len(file.getvalue()) < 0.91 * buffer.nbytes
    assert np.array_equal(pickle.loads(file.getvalue()), buffer)
    file.seek(0)
    tracemalloc.start()
    try:
        _Pickler(file).dump(buffer)
        assert tracemalloc.get_traced_memory()[1] < 0.1 * buffer.nbytes
    finally:
        tracemalloc.stop()


def _layer(values: dict[str, Any], hyperparameters: dict[str, Any]) -> Any:
    from spinup_plugins.runs.config import Layer

    return Layer({**values, "hyperparameters": hyperparameters}, ".".join)
