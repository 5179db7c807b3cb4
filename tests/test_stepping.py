import json
import random
import time
from collections.abc import Callable
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from rich.console import Console
from stable_baselines3.common.env_checker import check_env
from stepping_envs import Coded, Failing, fns

from spinup_plugins.cli import main
from spinup_plugins.cli.speed import stepping_table
from spinup_plugins.envs import stepping
from spinup_plugins.envs.stepping import Plan, StepCost, choose, measure_step, overhead, plan, workers
from spinup_plugins.errors import ConfigError
from spinup_plugins.runs.stepping import KINDS, MovingImage, Ratio, Stepping, benchmark


def refuse(_: Callable[[], gym.Env[Any, Any]]) -> StepCost:
    raise AssertionError("measured although it need not be")


# --- the choice ------------------------------------------------------------------------------------------------------


def test_one_environment_or_core_needs_no_measurement() -> None:
    assert choose(fns(1), cores=8, measure=refuse).kind == "dummy"
    assert choose(fns(8), cores=1, measure=refuse).kind == "dummy"


@pytest.mark.parametrize(
    ("microseconds", "n_envs", "cores", "kind"),
    [
        (7, 4, 2, "dummy"),
        (7, 64, 2, "dummy"),
        (40, 4, 2, "dummy"),
        (40, 16, 2, "dummy"),
        (40, 64, 2, "subproc"),
        (40, 16, 8, "subproc"),
        (40, 8, 8, "dummy"),
        (200, 8, 8, "subproc"),
        (2000, 2, 2, "subproc"),
    ],
)
def test_expensive_environments_go_to_workers(microseconds: float, n_envs: int, cores: int, kind: str) -> None:
    cost = StepCost(1e-6 * microseconds, 1e-6 * microseconds)
    assert choose(fns(n_envs), cores=cores, measure=lambda _: cost).kind == kind


def test_workers_are_one_per_core_unless_environments_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stepping, "usable_cores", lambda: 2)
    assert workers(fns(2), measure=refuse) == 2
    assert workers(fns(9), measure=lambda _: StepCost(1e-3, 1e-3)) == 2
    assert workers(fns(9), measure=lambda _: StepCost(1e-3, 1e-5)) == 9
    assert workers(fns(4, Failing, fault="raise", at=1)) == 2


def test_the_model_by_hand() -> None:
    slow = plan(StepCost(1e-3, 1e-3, 1000), 5, 2)
    assert slow == Plan("subproc", 2, 5e-3, 1.3 * 3e-3 + overhead(5, 2, 1000))
    assert overhead(5, 2, 1000) == pytest.approx(150e-6 + 2 * 25e-6 + 5 * 3e-6 + 5000 * 0.2e-9)


def test_environments_that_wait_get_more_workers_than_cores() -> None:
    assert plan(StepCost(10e-3, 1e-3), 64, 2)[:2] == ("subproc", 20)
    assert plan(StepCost(10e-3, 0.0), 8, 2)[:2] == ("subproc", 8)
    assert plan(StepCost(10e-3, 10e-3), 64, 2)[:2] == ("subproc", 2)
    assert plan(StepCost(0.0, 0.0), 8, 2).kind == "dummy"


def test_large_observations_are_copied_once_more() -> None:
    assert plan(StepCost(80e-6, 80e-6, 100), 16, 2).kind == "subproc"
    assert plan(StepCost(80e-6, 80e-6, 1_000_000), 16, 2).kind == "dummy"


def test_other_programs_cores_are_theirs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stepping, "usable_cores", lambda: 4)
    for load, cores in ((0.9, 4), (2.5, 2), (40.0, 1)):
        monkeypatch.setattr(stepping.os, "getloadavg", lambda load=load: (load, load, load))
        assert stepping.idle_cores() == cores


def test_a_failing_environment_is_left_to_others() -> None:
    assert choose(fns(4, Failing, fault="raise", at=1), cores=4).kind == "dummy"


# --- the measurement -------------------------------------------------------------------------------------------------


class Drawing(Coded):
    """Draws from every global generator, and sleeps."""

    def step(self, action: Any) -> Any:
        random.random()
        np.random.rand()
        th.rand(1)
        time.sleep(2e-3)
        return super().step(action)


def test_a_measurement_leaves_no_trace(tmp_path: Path) -> None:
    states = random.getstate(), np.random.get_state()[1].tolist(), th.get_rng_state().tolist()  # type: ignore[index]
    cost = measure_step(partial(fns(1, Drawing, file=tmp_path / "runs")[0]), 0.05)
    assert states == (random.getstate(), np.random.get_state()[1].tolist(), th.get_rng_state().tolist())  # type: ignore[index]
    assert cost.seconds >= 2e-3
    assert cost.busy >= 0
    assert cost.size == 16
    (file,) = (tmp_path / "runs").iterdir()
    assert len(file.read_text().splitlines()) == 2  # the header alone


@pytest.mark.parametrize(("kind", "size"), [("dict", 16 + 8 + 4), ("tuple", 16 + 8), ("image", 24), ("scalar", 4)])
def test_the_size_of_an_observation(kind: str, size: int) -> None:
    assert measure_step(fns(1, kind=kind)[0], 0.001).size == size


# --- the benchmark ---------------------------------------------------------------------------------------------------


def test_the_image_environment_is_sound() -> None:
    check_env(MovingImage())
    env = gym.make("spinup/MovingImage-v0", length=3)
    first, _ = env.reset(seed=1)
    assert (first != env.step(env.action_space.sample() * 0 + 1)[0]).any()
    assert not env.step(0)[2]
    assert env.step(0)[2]


def test_a_benchmark_steps_every_vec_env_in_turns() -> None:
    told: list[str] = []
    results = benchmark(["CartPole-v1"], [1, 2], rounds=2, seconds=0.01, progress=told.append)
    assert [(each.env, each.n_envs) for each in results] == [("CartPole-v1", 1), ("CartPole-v1", 2)]
    for each in results:
        assert list(each.speeds) == list(KINDS)
        assert all(len(speeds) == 2 and min(speeds) > 0 for speeds in each.speeds.values())
        assert each.chosen in ("LeanVecEnv", "SharedMemoryVecEnv")
        assert each.inside.low <= each.inside.median <= each.inside.high
    turns = [line for line in told if line.startswith("2 x CartPole-v1: ") and "round" in line]
    assert [line.split()[3].rstrip(",") for line in turns] == [*KINDS, *list(KINDS)[1:], "DummyVecEnv"]


def test_ratios_by_hand() -> None:
    speeds = {"DummyVecEnv": [10, 10, 20], "LeanVecEnv": [20, 15, 20], "SharedMemoryVecEnv": [40.0, 50, 60]}
    result = Stepping("Coded-v0", 1, {**speeds, "SubprocVecEnv": [20, 25, 10]}, "SharedMemoryVecEnv")  # type: ignore[dict-item]
    assert result.inside == Ratio(1.5, 1.0, 2.0)
    assert result.outside == Ratio(2.0, 2.0, 6.0)
    assert result.best == Ratio(2.0, 2.0, 3.0)
    assert result.overhead == pytest.approx(np.median([1 / 40 - 1 / 20, 1 / 50 - 1 / 15, 1 / 60 - 1 / 20]))


def test_the_table_fits_80_columns() -> None:
    speeds = {kind: [999_999.0, 99_999.0] for kind in KINDS}
    console = Console(width=80, file=StringIO())
    console.print(stepping_table([Stepping("spinup/MovingImage-v0", 64, speeds, "LeanVecEnv")]))
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert lines[0].split() == ["environment", "N", "stepped", "SB3's", "ours", "ratio"]
    assert lines[1].split() == ["spinup/MovingImage-v0", "64", "in", "process", "999,999", "999,999", "1.00", "(1.00-1.00)"]


@pytest.mark.parametrize("bad", [{"rounds": 0}, {"seconds": 0.0}, {"n_envs": [0]}, {"n_envs": []}])
def test_a_benchmark_checks_its_arguments(bad: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(bad))} must be greater than 0"):
        benchmark(["CartPole-v1"], **bad)


def test_the_command_prints_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    file = tmp_path / "speed.json"
    args = ["speed", "stepping", "CartPole-v1", "--n-envs", "1", "--rounds", "1", "--seconds", "0.01", "--json", str(file)]
    assert main(args) == 0
    output = capsys.readouterr()
    assert output.err == ""
    for text in ("CartPole-v1", "in process", "by workers", "auto: in process", "SB3's"):
        assert text in output.out
    assert "…" not in output.out
    (result,) = json.loads(file.read_text())
    assert result["n_envs"] == 1
    assert len(result["speeds"]["SubprocVecEnv"]) == 1
    assert isinstance(result["overhead"], float)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["steping"], "nothing is called 'steping' (did you mean 'stepping'?); there is stepping"),
        (["stepping", "CartPole-v99"], "environment 'CartPole-v99': "),
        (["stepping", "--n-envs", "1,two"], "--n-envs 1,two: expected numbers such as 1,4,16"),
        (["stepping", "--json", "/nowhere/x.json"], "--json /nowhere/x.json: there is no folder '/nowhere'"),
        (["stepping", "--rounds", "0"], "rounds must be greater than 0, not 0"),
    ],
)
def test_the_command_refuses_in_one_line(args: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["speed", *args]) == 2
    output = capsys.readouterr()
    assert output.err.startswith(f"error: {message}")
    assert len(output.err.splitlines()) == 1
