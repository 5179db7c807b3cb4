import json
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from faulty_envs import Stop
from stable_baselines3.common.callbacks import BaseCallback

from spinup_plugins.atomic import replacing, write_text
from spinup_plugins.errors import ConfigError, EnvError, SpinupError
from spinup_plugins.runs import runner
from spinup_plugins.runs.callbacks import load_callback
from spinup_plugins.runs.config import RunConfig, load
from spinup_plugins.runs.evaluation import evaluate, load_run
from spinup_plugins.runs.files import Status, claimed
from spinup_plugins.runs.runner import Run, prepare, train

PPO: dict[str, Any] = {"n_steps": 16, "batch_size": 16, "n_epochs": 1, "policy_kwargs": {"net_arch": [8]}}
FAULTY = "faulty_envs:Faulty-v0"


def tiny(env: str = "CartPole-v1", **values: Any) -> RunConfig:
    """A run of 64 steps that takes a moment."""
    defaults = {"algo": "ppo", "n_timesteps": 64, "eval_every": 0, "eval_episodes": 2, "final_episodes": 4}
    values["hyperparameters"] = PPO | values.get("hyperparameters", {})
    return RunConfig(**{**defaults, "env": env, **values})


def parameters(run: Run) -> list[np.ndarray]:
    return [value.detach().numpy() for value in run.model.policy.state_dict().values()]


def render_mode(run: Run) -> str | None:
    assert run.model.env is not None
    return run.model.env.render_mode


def same(one: Run, other: Run) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(parameters(one), parameters(other), strict=True))


# --- the run folder --------------------------------------------------------------------------------------------------


def test_a_run_folder_holds_everything(tmp_path: Path) -> None:
    run = train(tiny(eval_every=32), tmp_path)
    assert run.folder == tmp_path / "ppo" / "CartPole-v1_1"
    assert sorted(path.name for path in run.folder.iterdir()) == [
        "0.monitor.csv",
        "best_model.zip",
        "config.yml",
        "evaluation.json",
        "evaluations.npz",
        "model.zip",
        "progress.csv",
        "status.json",
    ]
    assert Status.read(run.folder) == Status("finished", 64, round(run.seconds, 3))
    assert (run.folder / "0.monitor.csv").read_text().splitlines()[1] == "r,l,t"
    assert "rollout/ep_rew_mean" in (run.folder / "progress.csv").read_text().splitlines()[0]
    evaluation = json.loads((run.folder / "evaluation.json").read_text())
    assert run.evaluation is not None
    assert evaluation["returns"] == list(run.evaluation.returns)
    assert evaluation["summary"]["mean"] == pytest.approx(np.mean(evaluation["returns"]))


def test_runs_are_numbered_in_order(tmp_path: Path) -> None:
    (tmp_path / "ppo" / "CartPole-v1_7").mkdir(parents=True)
    (tmp_path / "ppo" / "CartPole-v1_old").mkdir()
    (tmp_path / "ppo" / "CartPole-v10_9").mkdir()
    with claimed(tmp_path, "ppo", "CartPole-v1") as folder:
        assert folder.name == "CartPole-v1_8"
    with claimed(tmp_path, "ppo", "CartPole-v1") as folder:
        assert folder.name == "CartPole-v1_9"


@pytest.mark.parametrize(
    ("algo", "env", "expected"),
    [
        ("ppo", "ALE/Pong-v5", "ppo/ALE-Pong-v5_1"),
        ("ppo", "my_envs.sub:Maze-v0", "ppo/Maze-v0_1"),
        ("ppo", "my_envs:ns/Maze-v0", "ppo/ns-Maze-v0_1"),
        ("sb3:a2c", "CartPole-v1", "sb3-a2c/CartPole-v1_1"),
    ],
)
def test_names_fit_on_disk(tmp_path: Path, algo: str, env: str, expected: str) -> None:
    with claimed(tmp_path, algo, env) as folder:
        assert folder == tmp_path / expected


def test_another_process_may_claim_the_same_number_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mkdir, calls = Path.mkdir, []

    def race(self: Path, *args: Any, **kwargs: Any) -> None:
        if self.name == "CartPole-v1_1" and not calls:
            calls.append(self)
            mkdir(self)
        mkdir(self, *args, **kwargs)

    monkeypatch.setattr(Path, "mkdir", race)
    with claimed(tmp_path, "ppo", "CartPole-v1") as folder:
        assert folder.name == "CartPole-v1_2"


def test_a_folder_that_cannot_be_created_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"cannot create a run folder in '.*file/ppo': Not a directory"):
        prepare(tiny(), tmp_path / "file")


def test_a_file_is_replaced_as_a_whole_or_not_at_all(tmp_path: Path) -> None:
    file = tmp_path / "file.txt"
    file.write_text("old")

    def fail() -> None:
        with replacing(file) as temporary:
            temporary.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_a_file_that_cannot_be_written_is_named_by_its_own_name(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"No such file or directory: '.*/nowhere/file.txt'$"):
        write_text(tmp_path / "nowhere" / "file.txt", "text")
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError, match=r"'.*/folder'$"):
        write_text(tmp_path / "folder", "text")


def test_event_files_are_written_if_asked_for(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    assert list(train(tiny(tensorboard=True), tmp_path).folder.glob("events.out.tfevents.*"))


def test_tensorboard_is_an_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r'pip install "spinup-plugins\[tensorboard\]"'):
        train(tiny(tensorboard=True), tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_best_model_is_a_trained_one(tmp_path: Path) -> None:
    run = train(tiny(n_timesteps=96, eval_every=16, hyperparameters={"n_steps": 40, "batch_size": 40}), tmp_path)
    assert run.evaluations.evaluations_timesteps == [16, 32, 48, 64, 80, 96, 112]
    assert run.evaluations.untrained == 2
    assert run.best is not None
    assert run.best[0] >= 48
    assert load_run(run.folder, best=True).model._n_updates > 0

    run = train(tiny(n_timesteps=32, eval_every=16, hyperparameters={"n_steps": 32, "batch_size": 32}), tmp_path)
    assert run.best is None
    assert not (run.folder / "best_model.zip").exists()


# --- what decides a run ----------------------------------------------------------------------------------------------


def test_a_written_configuration_repeats_its_run(tmp_path: Path) -> None:
    first = train(tiny(seed=3, n_envs=2), tmp_path)
    again = train(load(first.folder / "config.yml"), tmp_path)
    assert again.folder != first.folder
    assert same(first, again)
    assert first.evaluation == again.evaluation
    assert not same(first, train(tiny(seed=4, n_envs=2), tmp_path))


def test_evaluating_does_not_change_training(tmp_path: Path) -> None:
    assert same(train(tiny(), tmp_path), train(tiny(eval_every=16), tmp_path))


def test_evaluations_come_every_so_many_real_timesteps(tmp_path: Path) -> None:
    run = train(tiny(n_envs=3, eval_every=20, n_timesteps=96), tmp_path)
    with np.load(run.folder / "evaluations.npz") as saved:
        steps, results = saved["timesteps"], saved["results"]
        assert saved["ep_lengths"].shape == results.shape == (4, 2)
    assert steps.tolist() == [21, 42, 60, 81]
    trained = steps > 3 * 16  # after the first update
    means = results[trained].mean(axis=1)
    assert run.best == (steps[trained][means.argmax()], means.max())


def test_a_run_that_was_not_evaluated_has_no_best(tmp_path: Path) -> None:
    run = train(tiny(), tmp_path)
    assert run.best is None
    assert not (run.folder / "best_model.zip").exists()


def test_normalisation_is_kept_with_both_models(tmp_path: Path) -> None:
    run = train(tiny("Pendulum-v1", n_timesteps=256, eval_every=200, normalize={"norm_reward": False}), tmp_path)
    assert (run.folder / "vecnormalize.pkl").is_file()
    assert (run.folder / "best_vecnormalize.pkl").is_file()
    assert run.evaluation is not None
    assert max(run.evaluation.returns) < -50.0  # the true scale


def test_rewards_are_normalised_with_the_algorithms_discount(tmp_path: Path) -> None:
    run = prepare(tiny("Pendulum-v1", normalize=True, hyperparameters={"gamma": 0.5}), tmp_path)
    statistics = run.model.get_vec_normalize_env()
    assert statistics is not None
    assert statistics.gamma == 0.5
    run.learn()


def test_environments_may_run_in_processes_of_their_own(tmp_path: Path) -> None:
    run = train(tiny(vec_env="subproc"), tmp_path)
    assert same(run, train(tiny(), tmp_path))


def test_peers_train_alike(tmp_path: Path) -> None:
    config = RunConfig(
        algo="sb3:dqn", env="CartPole-v1", n_timesteps=120, final_episodes=1, hyperparameters={"buffer_size": 100}
    )
    assert train(config, tmp_path).folder == tmp_path / "sb3-dqn" / "CartPole-v1_1"


def test_torchs_threads_are_restored(tmp_path: Path) -> None:
    seen = []

    class Threads(BaseCallback):
        def _on_step(self) -> bool:
            seen.append((self.model.engine, th.get_num_threads(), self.model.n_threads))
            return False

    before = th.get_num_threads()
    for engine in ("torch", "numpy"):
        run = train(tiny(threads=2, hyperparameters={"engine": engine}), tmp_path, [Threads()])
        assert (run.model.n_threads, th.get_num_threads()) == (None, before)
    # Never do two libraries' threads wait for work at once.
    assert seen == [("torch", 2, 2), ("numpy", 1, 2)]


# --- callbacks -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "steps"),
    [("faulty_envs:Stop", 5), ("faulty_envs:Stop:{n: 3}", 3), ("faulty_envs:stop_at_seven", 7)],
)
def test_a_callback_is_named_by_its_import_path(tmp_path: Path, text: str, steps: int) -> None:
    run = train(tiny(callbacks=[text]), tmp_path)
    assert run.model.num_timesteps == steps
    assert load(run.folder / "config.yml").callbacks == [text]


def test_only_those_who_may_want_images_get_them(tmp_path: Path) -> None:
    assert render_mode(train(tiny(), tmp_path)) is None
    assert render_mode(train(tiny(callbacks=["faulty_envs:Stop"]), tmp_path)) == "rgb_array"
    assert render_mode(train(tiny(wrappers=["time_aware_observation"]), tmp_path)) == "rgb_array"
    assert render_mode(train(tiny(env_kwargs={"render_mode": "rgb_array"}), tmp_path)) == "rgb_array"


def test_a_callback_object_is_called_too(tmp_path: Path) -> None:
    assert train(tiny(), tmp_path, [Stop(2)]).model.num_timesteps == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("faulty_envs", "'faulty_envs' is not an import path"),
        ("no_such_module:X", "cannot import 'no_such_module:X': ModuleNotFoundError"),
        ("faulty_envs:Stopp", r"no 'Stopp' there \(did you mean 'Stop'\?\)"),
        ("faulty_envs:Faulty", "'Faulty' is neither a subclass of BaseCallback nor a function"),
        ("faulty_envs:os", "'os' is neither"),
        ("faulty_envs:Stop:{m: 1}", "unexpected keyword argument 'm'"),
        ("faulty_envs:Stop:[1]", r"expected \{key: value, …\} after the second colon, found '\[1\]'"),
        ("faulty_envs:Stop:{", "not valid YAML"),
    ],
)
def test_a_bad_callback_is_one_line(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=f"callback .*{message}") as caught:
        load_callback(text)
    assert "\n" not in str(caught.value)


# --- what goes wrong -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"algo": "sac", "hyperparameters": {}}, r"sac on CartPole-v1: .*Discrete\(2\).* only on Box; vpg, trpo, ppo can"),
        ({"env": "CartPol-v1"}, "unknown environment 'CartPol-v1'"),
        ({"policy": "MlpPolice"}, r"ppo on CartPole-v1: .*no policy 'MlpPolice' \(did you mean 'MlpPolicy'"),
        ({"hyperparameters": {"batch_size": 1}}, "cannot train ppo on CartPole-v1"),
        ({"hyperparameters": {"gama": 1}}, r"PPO has no argument 'gama' \(did you mean 'gamma'"),
        (
            {"hyperparameters": {"device": "cudda"}},
            r"device='cudda': torch has none like that \(did you mean 'cuda'\?\); take auto, cpu",
        ),
        ({"env_kwargs": {"suttn": True}}, r"CartPole-v1 has no argument 'suttn'"),
        ({"normalize": {"norm_rewards": True}}, r"no option 'norm_rewards' \(did you mean 'norm_reward'"),
        ({"callbacks": ["nowhere:X"]}, "callback 'nowhere:X'"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing_behind(tmp_path: Path, values: dict[str, Any], message: str) -> None:
    config = tiny().model_copy(update=values)
    with pytest.raises(SpinupError, match=message) as caught:
        prepare(config, tmp_path / "runs")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_an_environment_that_cannot_be_built_is_named(tmp_path: Path) -> None:
    gym.register("Broken-v0", "test_runner:Missing")
    try:
        with pytest.raises(
            ConfigError, match=r"cannot build Broken-v0: AttributeError: module 'test_runner' has no .*'Missing'"
        ):
            prepare(tiny(env="Broken-v0"), tmp_path / "runs")
    finally:
        del gym.registry["Broken-v0"]
    assert list(tmp_path.iterdir()) == []


def test_an_environment_that_leaves_the_program_cannot_be_built(tmp_path: Path) -> None:
    gym.register("Leaving-v0", sys.exit)
    try:
        with pytest.raises(ConfigError, match=r"^cannot build Leaving-v0: SystemExit"):
            prepare(tiny(env="Leaving-v0"), tmp_path / "runs")
    finally:
        del gym.registry["Leaving-v0"]
    assert list(tmp_path.iterdir()) == []


def test_an_earlier_run_stays_when_a_later_one_is_refused(tmp_path: Path) -> None:
    train(tiny(), tmp_path)
    with pytest.raises(ConfigError):
        prepare(tiny(hyperparameters={"batch_size": 1}), tmp_path)
    assert [path.name for path in (tmp_path / "ppo").iterdir()] == ["CartPole-v1_1"]


@pytest.mark.parametrize(
    ("fault", "error", "state", "message"),
    [
        ("raise", ValueError, "failed", "ValueError: boom on two lines"),
        ("reset", RuntimeError, "failed", "RuntimeError: no reset today"),
        ("nan", EnvError, "failed", "environment 'Faulty-v0' (number 0) returned NaN"),
        ("leave", SpinupError, "failed", "faulty_envs.py:"),
        ("interrupt", KeyboardInterrupt, "interrupted", None),
    ],
)
def test_what_was_learnt_is_kept_when_training_stops(
    tmp_path: Path, fault: str, error: type[BaseException], state: str, message: str | None
) -> None:
    run = prepare(tiny(FAULTY, env_kwargs={"fault": fault}), tmp_path)
    with pytest.raises(error):
        run.learn()
    status = Status.read(run.folder)
    assert status.state == state
    assert 24 <= status.timesteps <= 30
    assert status.error == message if message is None else (status.error or "").startswith(message)
    assert run.folder.name == "Faulty-v0_1"
    saved = type(run.model).load(run.folder / "model.zip")
    assert all(th.equal(a, b) for a, b in zip(saved.policy.parameters(), run.model.policy.parameters(), strict=True))
    assert not (run.folder / "evaluation.json").exists()


def test_a_callback_that_leaves_the_program_fails_the_run(tmp_path: Path) -> None:
    run = prepare(tiny(callbacks=["faulty_envs:leave"]), tmp_path)
    with pytest.raises(SpinupError, match=r"^faulty_envs.py:\d+ told the program to end: SystemExit: 0$") as caught:
        run.learn()
    assert Status.read(run.folder) == Status("failed", 25, round(run.seconds, 3), str(caught.value))
    assert (run.folder / "model.zip").is_file()


def test_a_dead_process_is_named(tmp_path: Path) -> None:
    run = prepare(tiny(FAULTY, vec_env="subproc", env_kwargs={"fault": "exit"}), tmp_path)
    with pytest.raises(EnvError, match=r"process of environment number \d \('Faulty-v0'\) exited with status 3"):
        run.learn()
    assert Status.read(run.folder).state == "failed"


def test_the_vectorisation_that_was_chosen_is_written_down(tmp_path: Path) -> None:
    run = prepare(tiny(vec_env="auto", n_envs=1), tmp_path)
    assert load(run.folder / "config.yml").vec_env == "dummy"
    run._close()


def test_wrappers_repeat_and_those_of_rewards_are_not_evaluated_through(tmp_path: Path) -> None:
    wrappers = [{"time_limit": {"max_episode_steps": 5}}, {"scale_reward": {"scale": 100.0}}]
    run = train(tiny("CartPole-v1", wrappers=wrappers), tmp_path)
    config = load(run.folder / "config.yml")
    assert config.wrappers == wrappers
    assert run.evaluation is not None
    assert set(run.evaluation.returns) == {5.0}
    assert {episode["r"] for episode in run.model.ep_info_buffer} == {500.0}
    assert set(evaluate(load_run(run.folder).model, load_run(run.folder).env, 2).returns) == {5.0}


@pytest.mark.skipif(find_spec("envpool") is None, reason="the optional EnvPool is not installed")
@pytest.mark.usefixtures("pools_freed")
def test_a_run_on_envpool_evaluates_on_it_from_the_same_states(tmp_path: Path) -> None:
    first, second = (train(tiny("Acrobot-v1", vec_env="envpool", n_envs=2, eval_every=32), tmp_path) for _ in range(2))
    assert first.evaluation == second.evaluation
    assert np.array_equal(first.evaluations.evaluations_results, second.evaluations.evaluations_results)
