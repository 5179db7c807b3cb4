import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stable_baselines3.common.vec_env import VecNormalize

from spinup_plugins.environments import make_env
from spinup_plugins.errors import ConfigError, EnvError, ModelFileError
from spinup_plugins.registry import make
from spinup_plugins.runs.config import RunConfig
from spinup_plugins.runs.evaluation import Evaluation, derived_seed, evaluate, evaluation_env, load_run
from spinup_plugins.runs.export import export
from spinup_plugins.runs.files import Status
from spinup_plugins.runs.runner import Run, train

PPO: dict[str, Any] = {"n_steps": 16, "batch_size": 16, "n_epochs": 1, "policy_kwargs": {"net_arch": [8]}}


def tiny(env: str = "CartPole-v1", **values: Any) -> RunConfig:
    return RunConfig(
        algo="ppo", env=env, n_timesteps=64, eval_every=32, eval_episodes=1, final_episodes=6, hyperparameters=PPO, **values
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train(tiny(seed=2), tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def normalised(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train(tiny("Pendulum-v1", normalize=True), tmp_path_factory.mktemp("runs"))


@pytest.fixture
def copy(run: Run, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run.folder, tmp_path / "copy"))


# --- evaluating ------------------------------------------------------------------------------------------------------


def test_a_loaded_run_plays_the_episodes_of_its_last_evaluation_again(run: Run) -> None:
    loaded = load_run(run.folder)
    assert loaded.status == Status("finished", 64, round(run.seconds, 3))
    assert evaluate(loaded.model, loaded.env, 6, seed=derived_seed(2, "report")) == run.evaluation


def test_normalisation_travels_with_the_policy(normalised: Run) -> None:
    loaded = load_run(normalised.folder)
    assert isinstance(loaded.env, VecNormalize)
    assert (loaded.env.training, loaded.env.norm_reward) == (False, False)
    before = loaded.env.obs_rms.mean.copy()
    assert evaluate(loaded.model, loaded.env, 6, seed=derived_seed(0, "report")) == normalised.evaluation
    np.testing.assert_array_equal(loaded.env.obs_rms.mean, before)


def test_statistics_beside_a_model_are_used_without_its_configuration_too(normalised: Run, tmp_path: Path) -> None:
    for name in ("model.zip", "vecnormalize.pkl"):
        shutil.copy(normalised.folder / name, tmp_path)
    loaded = load_run(tmp_path / "model.zip", algo="ppo", env="Pendulum-v1")
    assert isinstance(loaded.env, VecNormalize)
    assert evaluate(loaded.model, loaded.env, 6, seed=derived_seed(0, "report")) == normalised.evaluation


@pytest.mark.parametrize(
    ("model", "statistics"),
    [
        ("mine_64_steps.zip", "mine_vecnormalize_64_steps.pkl"),  # of Stable-Baselines3's CheckpointCallback
        ("best_model.zip", "Pendulum-v1/vecnormalize.pkl"),  # of rl_zoo3
    ],
)
def test_statistics_are_used_where_others_put_them(model: str, statistics: str, normalised: Run, tmp_path: Path) -> None:
    (tmp_path / "Pendulum-v1").mkdir()
    (tmp_path / "Pendulum-v1" / "args.yml").write_text("algo: ppo\nenv: Pendulum-v1\n")
    shutil.copy(normalised.folder / "model.zip", tmp_path / model)
    shutil.copy(normalised.folder / "vecnormalize.pkl", tmp_path / statistics)
    loaded = load_run(tmp_path / model, algo="ppo", env="Pendulum-v1")
    assert evaluate(loaded.model, loaded.env, 6, seed=derived_seed(0, "report")) == normalised.evaluation
    _, agent = export(tmp_path / model, algo="ppo", env="Pendulum-v1")
    assert agent.card.normalization is not None
    with pytest.raises(ConfigError, match=r"must be given: --algo ppo --env Pendulum-v1$"):
        load_run(tmp_path / model)


def test_statistics_that_are_not_used_are_told(normalised: Run, tmp_path: Path) -> None:
    for name in ("a.zip", "b.zip"):
        shutil.copy(normalised.folder / "model.zip", tmp_path / name)
    shutil.copy(normalised.folder / "vecnormalize.pkl", tmp_path / "a_vecnormalize.pkl")
    load_run(tmp_path / "b.zip", algo="ppo", env="Pendulum-v1")
    (tmp_path / "a_vecnormalize.pkl").rename(tmp_path / "vec_normalize.pkl")
    with pytest.warns(UserWarning, match=r"vec_normalize.pkl' is not used: statistics of '.*b.zip' would be in '.*b_vecnorm"):
        load_run(tmp_path / "b.zip", algo="ppo", env="Pendulum-v1")


def test_sampled_actions_repeat_with_the_seed(run: Run) -> None:
    loaded = load_run(run.folder)
    sampled = [evaluate(loaded.model, loaded.env, 3, deterministic=False, seed=seed) for seed in (1, 1, 2)]
    assert sampled[0] == sampled[1] != sampled[2]
    assert sampled[0] != evaluate(loaded.model, loaded.env, 3, seed=1)


def test_a_deterministic_evaluation_draws_no_random_number(run: Run) -> None:
    loaded = load_run(run.folder)
    state = np.random.get_state()[1].copy()
    evaluate(loaded.model, loaded.env, 1)
    np.testing.assert_array_equal(np.random.get_state()[1], state)


def test_successes_are_counted(tmp_path: Path) -> None:
    evaluation = train(tiny("faulty_envs:Faulty-v0"), tmp_path).evaluation
    assert evaluation == Evaluation((10.0,) * 6, (10,) * 6, (True,) * 6)


@pytest.mark.parametrize("n", [0, -1])
def test_an_evaluation_has_at_least_one_episode(run: Run, n: int) -> None:
    with pytest.raises(ConfigError, match=f"the number of episodes must be at least 1, not {n}"):
        evaluate(run.model, evaluation_env(run.config), n)


def test_an_environment_that_leaves_the_program_is_told() -> None:
    faulty = "faulty_envs:Faulty-v0"
    with pytest.raises(EnvError, match=r"^faulty_envs.py:\d+ told the program to end: SystemExit: 0, in step\(\) of .*v0'"):
        evaluate(make("ppo", faulty), make_env(faulty, env_kwargs={"fault": "leave", "at": 5}), 1)


def test_derived_seeds_differ_by_run_and_purpose() -> None:
    seeds = [derived_seed(seed, purpose) for seed in range(50) for purpose in ("selection", "report")]
    assert len(set(seeds)) == 100
    assert seeds[0] == derived_seed(0, "selection")
    assert all(0 <= seed < 2**32 for seed in seeds)


def test_json_has_no_nan() -> None:
    data = json.loads(Evaluation((1.0, float("nan")), (1, 2), None).json(), parse_constant=pytest.fail)
    assert data["returns"] == [1.0, None]


# --- loading ---------------------------------------------------------------------------------------------------------


def test_the_best_model_may_be_loaded_instead_of_the_last(run: Run) -> None:
    assert run.best is not None
    assert load_run(run.folder, best=True).model.num_timesteps == run.best[0]
    assert load_run(run.folder / "best_model.zip").model.num_timesteps == run.best[0]
    assert load_run(run.folder).model.num_timesteps == 64


def test_the_best_model_has_its_own_statistics(normalised: Run) -> None:
    best, last = load_run(normalised.folder, best=True).env, load_run(normalised.folder).env
    assert isinstance(best, VecNormalize)
    assert isinstance(last, VecNormalize)
    assert best.obs_rms.count <= last.obs_rms.count


def test_a_model_alone_needs_algorithm_and_environment(run: Run, tmp_path: Path) -> None:
    shutil.copy(run.folder / "model.zip", tmp_path / "mine.zip")
    loaded = load_run(tmp_path / "mine.zip", algo="ppo", env="CartPole-v1")
    assert (loaded.status, loaded.model.num_timesteps) == (None, 64)
    with pytest.raises(
        ConfigError, match=r"beside '.*mine.zip', so its algorithm and environment must be given: --algo and --env"
    ):
        load_run(tmp_path / "mine.zip", algo="ppo")


def test_stable_baselines3s_own_class_opens_it_too(run: Run) -> None:
    assert load_run(run.folder / "model.zip", algo="sb3:ppo").model.num_timesteps == 64


def test_replay_memory_is_not_taken_for_an_evaluation(tmp_path: Path) -> None:
    config = RunConfig(algo="sac", env="Pendulum-v1", n_timesteps=4, final_episodes=1)
    loaded = load_run(train(config, tmp_path).folder)
    assert loaded.model.replay_buffer.buffer_size == 1  # type: ignore[attr-defined]


@pytest.mark.parametrize(("state", "expected"), [("running", "the run is running"), ("interrupted", "the run is interrupted")])
def test_an_unfinished_run_without_a_model_says_so(copy: Path, state: Any, expected: str) -> None:
    (copy / "model.zip").unlink()
    Status(state).write(copy)
    with pytest.raises(ModelFileError, match=rf"there is no '.*model.zip'; {expected}"):
        load_run(copy)


def test_a_folder_that_is_no_run_points_to_the_newest_run_inside(run: Run, tmp_path: Path) -> None:
    runs = run.folder.parent.parent
    with pytest.raises(ModelFileError, match=r"is not a run folder: it has no config.yml \(did you mean '.*_1'\?\)"):
        load_run(runs)
    with pytest.raises(ModelFileError, match=r"it has no config.yml$"):
        load_run(tmp_path)
    with pytest.raises(ModelFileError, match=r"'nowhere' is not a run folder, .*: there is nothing of that name$"):
        load_run("nowhere")
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ModelFileError, match=r"notes.txt' is not a run folder, a model's .zip or an agent file \(.spinup\)$"):
        load_run(tmp_path / "notes.txt")


def test_names_that_are_nearly_those_of_models_point_to_them(tmp_path: Path) -> None:
    (tmp_path / "mine.zip").touch()
    with pytest.raises(ModelFileError, match=r"there is nothing of that name \(did you mean '.*mine.zip'\?\)$"):
        load_run(tmp_path / "mine")
    (tmp_path / "CartPole-v1").mkdir()
    for name in ("args.yml", "config.yml"):  # rl_zoo3's, of another kind than ours
        (tmp_path / "CartPole-v1" / name).touch()
    with pytest.raises(ModelFileError, match=r"it has no config.yml \(did you mean '.*mine.zip'\?\)$"):
        load_run(tmp_path)
    (tmp_path / "ppo" / "CartPole-v1" / "seed0").mkdir(parents=True)
    (tmp_path / "ppo" / "CartPole-v1" / "seed0" / "config.yml").touch()
    with pytest.raises(ModelFileError, match=r"it has no config.yml \(did you mean '.*seed0'\?\)$"):
        load_run(tmp_path)


def test_a_published_agents_folder_points_to_its_agent(copy: Path) -> None:
    for name in ("model.zip", "status.json"):
        (copy / name).unlink()
    (copy / "agent.spinup").touch()
    with pytest.raises(ModelFileError, match=r"there is no '.*model.zip' \(did you mean '.*agent.spinup'\?\)"):
        load_run(copy)


def test_a_missing_model_file_is_named() -> None:
    with pytest.raises(ModelFileError, match=r"there is no 'nowhere.zip'$"):
        load_run("nowhere.zip", algo="ppo", env="CartPole-v1")


@pytest.mark.parametrize("algo", ["ppo", "sb3:ppo"])
def test_a_damaged_model_is_one_line(copy: Path, algo: str) -> None:
    content = (copy / "model.zip").read_bytes()
    (copy / "model.zip").write_bytes(content[: len(content) // 2])
    with pytest.raises(ModelFileError, match=r"cannot load .*model.zip'") as caught:
        load_run(copy, algo=algo)
    assert "\n" not in str(caught.value)


def test_an_environment_of_other_spaces_is_refused(run: Run, normalised: Run) -> None:
    message = (
        r"^Pendulum-v1 is not an environment for '.*model.zip': Observation spaces do not match.*; it was trained on Cart"
    )
    with pytest.raises(ConfigError, match=message):
        load_run(run.folder, env="Pendulum-v1")
    message = (
        r"^CartPole-v1 is not an environment for '.*vecnormalize.pkl': spaces must have the same shape: \(3,\) != \(4,\)$"
    )
    with pytest.raises(ConfigError, match=message):
        load_run(normalised.folder, env="CartPole-v1")


def test_a_damaged_status_is_named(copy: Path) -> None:
    (copy / "status.json").write_text("{")
    with pytest.raises(ConfigError, match=r"status.json: missing or damaged"):
        load_run(copy)


@pytest.mark.parametrize("content", [b"", b"junk"])
def test_damaged_statistics_are_named(normalised: Run, tmp_path: Path, content: bytes) -> None:
    folder = Path(shutil.copytree(normalised.folder, tmp_path / "copy"))
    (folder / "vecnormalize.pkl").write_bytes(content)
    with pytest.raises(ModelFileError, match=r"cannot load '.*vecnormalize.pkl'"):
        load_run(folder)
    (folder / "vecnormalize.pkl").unlink()
    with pytest.raises(ModelFileError, match=r"vecnormalize.pkl': FileNotFoundError"):
        load_run(folder)


def test_a_window_shows_a_single_copy(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    env = evaluation_env(run.config, render=True)
    assert (env.num_envs, env.get_attr("render_mode")) == (1, ["human"])
    env.close()
