"""``spinup bench``: a grid of runs, taken up where it stopped; what they came to, as CSV."""

import json
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filelock import FileLock

from spinup_plugins.cli import main
from spinup_plugins.cli.bench import seed_numbers
from spinup_plugins.errors import ConfigError, UnknownNameError
from spinup_plugins.runs import bench as module
from spinup_plugins.runs.bench import Cell, Outcome, Progress, bench, grid, results_of, variants
from spinup_plugins.runs.config import Layer, RunConfig
from spinup_plugins.runs.files import Status
from spinup_plugins.runs.pool import Ended, Job
from spinup_plugins.runs.results import Result, read_results, read_run, write_results

TINY: dict[str, Any] = {"n_steps": 16, "batch_size": 16, "n_epochs": 1, "policy_kwargs": {"net_arch": [8]}}
VALUES: dict[str, Any] = {
    "n_timesteps": 64,
    "eval_every": 32,
    "eval_episodes": 2,
    "final_episodes": 3,
    "hyperparameters": TINY,
}


def cells(folder: Path, seeds: Sequence[int] = (0,), envs: Sequence[str] = ("CartPole-v1",), **values: Any) -> list[Cell]:
    layer = Layer(VALUES | values, ".".join)
    return grid(["ppo"], envs, seeds, folder, layers=[layer])


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Jobs run here; returns the names of those that did."""
    done: list[str] = []

    def run_jobs(jobs: Sequence[Job], at_a_time: int, watch: Any) -> Iterator[Ended]:
        for i, job in enumerate(jobs):
            watch([job], i)
            assert job.module == module.__name__
            done.append(job.name)
            try:
                module._work(json.loads(json.dumps(job.argument)))
            except Exception as error:
                yield Ended(job, 1.0, str(error))
                continue
            yield Ended(job, 1.0)

    monkeypatch.setattr(module, "run_jobs", run_jobs)
    return done


def test_a_grid_fills_up_alike(tmp_path: Path) -> None:
    found = grid(
        ["ppo", "VPG"],
        ["CartPole-v1", "faulty_envs:Faulty-v0"],
        [3, 5],
        tmp_path,
        vary=variants({"gamma": [0.9, 0.5], "policy_kwargs.net_arch": [[4]]}),
    )
    assert len(found) == 16
    assert [cell.config.seed for cell in found] == [3] * 8 + [5] * 8
    assert found[0].folder == tmp_path / "ppo" / "CartPole-v1" / "gamma=0.9,policy_kwargs.net_arch=_4_" / "seed3"
    assert found[-1].folder.parts[-4:-2] == ("vpg", "Faulty-v0")
    assert found[1].config.hyperparameters == {"gamma": 0.5, "policy_kwargs": {"net_arch": [4]}}
    assert str(found[0]) == "ppo CartPole-v1 gamma=0.9,policy_kwargs.net_arch=[4] seed 3"
    assert len({cell.folder for cell in found}) == 16
    config = found[0].config
    assert (config.eval_every, config.eval_episodes, config.final_episodes) == (10_000, 10, 100), "Spinning Up's protocol"
    (plain,) = grid(["sac"], ["Pendulum-v1"], [0], tmp_path)
    assert plain.folder == tmp_path / "sac" / "Pendulum-v1" / "seed0"
    with pytest.raises(UnknownNameError, match="did you mean 'ppo'"):
        grid(["pppo"], ["CartPole-v1"], [0], tmp_path)
    with pytest.raises(ConfigError, match=r"--vary gama: .*did you mean 'gamma'"):
        grid(["ppo"], ["CartPole-v1"], [0], tmp_path, vary=variants({"gama": [1]}))


def test_finished_runs_are_not_made_again(tmp_path: Path, in_process: list[str]) -> None:
    first, second = cells(tmp_path, [0, 1])
    (outcome,) = bench([first], tmp_path)
    assert (outcome.cell, outcome.error) == (first, "")
    made = read_run(first.folder)
    seen: list[Progress] = []
    found, new = bench([first, second], tmp_path, watch=seen.append)
    assert (found.cell, found.seconds, new.cell, new.seconds) == (first, 0.0, second, 1.0)
    assert in_process == [str(first), str(second)]
    assert (seen[0].running, seen[0].steps, seen[0].total) == ((second,), 64, 128)
    assert (seen[-1].steps, seen[-1].eta) == (128, 0.0)
    np.testing.assert_array_equal(read_run(first.folder).final, made.final)
    assert made.timesteps.tolist() == [32, 64]
    assert made.final.shape == (3,)
    assert np.isfinite(made.seconds).all()
    by_folder = results_of([first, second])
    assert [result.seed for result in by_folder[first.folder.parent]] == [0, 1]


def test_a_finished_run_that_is_damaged_fails_alone(
    tmp_path: Path, in_process: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    settings = [f"--set={key}={value}" for key, value in TINY.items() if key != "policy_kwargs"]
    common = ["-n", "16", "--eval-every", "0", "--final-episodes", "1", *settings, "-f", str(tmp_path)]
    assert main(["bench", "ppo", "CartPole-v1", "--seeds", "2", *common]) == 0
    damaged = tmp_path / "ppo" / "CartPole-v1" / "seed0"
    (damaged / "evaluation.json").unlink()
    capsys.readouterr()
    assert main(["bench", "ppo", "CartPole-v1", "--seeds", "3", *common]) == 1
    assert len(in_process) == 3
    captured = capsys.readouterr()
    remedy = f"remove '{damaged}' to have the run made again"
    told = f"{damaged / 'evaluation.json'}: cannot read the evaluation (No such file or directory); {remedy}"
    assert captured.err.splitlines()[0] == f"error: ppo CartPole-v1 seed 0: {told}"
    assert "2 of 3 runs finished" in captured.out
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert main(["bench", "ppo", "CartPole-v1", "--seeds", "1,2", *common]) == 0
    assert capsys.readouterr().err == f"warning: left out: {told}\n"
    assert [result.seed for result in read_results(damaged.parent)] == [1, 2]


def test_a_run_that_was_cut_short_begins_anew(tmp_path: Path, in_process: list[str]) -> None:
    (cell,) = cells(tmp_path)
    list(bench([cell], tmp_path))
    Status("interrupted", 32).write(cell.folder)
    (cell.folder / "left").write_text("over")
    assert results_of([cell]) == {}
    told = module._Watch([cell], [cell], (seen := list[Progress]()).append)
    told.tell()
    Status("running", 16).write(cell.folder)
    told.tell()
    assert [each.steps for each in seen] == [0, 16], "steps of the attempt before do not count"
    list(bench([cell], tmp_path))
    assert in_process == [str(cell)] * 2
    assert cell.status is not None
    assert cell.status.state == "finished"
    assert not (cell.folder / "left").exists()


def test_earlier_seeds_stay_in_the_results(tmp_path: Path, in_process: list[str]) -> None:
    """Those that were made alike."""
    list(bench(cells(tmp_path, [0, 10]), tmp_path))
    list(bench(cells(tmp_path, [2], n_timesteps=32), tmp_path))
    (tmp_path / "ppo" / "CartPole-v1" / "seed1").mkdir()
    (tmp_path / "ppo" / "CartPole-v1" / "seeds").mkdir()
    cell = cells(tmp_path, [3])
    list(bench(cell, tmp_path))
    (results,) = results_of(cell).values()
    assert sorted(result.seed for result in results) == [0, 3, 10]


def test_ctrl_c_leaves_runs_that_go_on(tmp_path: Path) -> None:
    """In a terminal it reaches the runs' processes, too."""
    (cell,) = cells(tmp_path, n_timesteps=50_000, eval_every=25_000)
    values = [argument for key, value in TINY.items() for argument in ("-s", f"{key}={value}")]
    command = [sys.executable, "-m", "spinup_plugins", "bench", "ppo", "CartPole-v1", "--seeds", "1", "-n", "50000", *values]
    protocol = ["--eval-every", "25000", "--eval-episodes", "2", "--final-episodes", "3", "-f", str(tmp_path)]
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # what a shell starts in the background ignores it
    process = subprocess.Popen(
        [*command, *protocol], start_new_session=True, stderr=subprocess.PIPE, text=True, preexec_fn=heard
    )
    deadline = time.monotonic() + 60
    while cell.status is None and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    last = "error: interrupted after 0 of 1 runs; the same command goes on"
    assert (process.returncode, errors.strip().splitlines()[-1]) == (130, last)
    assert cell.status is not None
    assert cell.status.state == "interrupted"
    assert [file.name for file in cell.folder.iterdir() if file.name.startswith(".")] == []
    assert (cell.folder / "model.zip").is_file()


def test_a_run_that_was_killed_while_it_was_built_begins_anew(tmp_path: Path, in_process: list[str]) -> None:
    (cell,) = cells(tmp_path)
    cell.folder.mkdir(parents=True)
    for name in ("0.monitor.csv", "progress.csv", "events.out.tfevents.1.host.2.0", ".12-config.yml"):
        (cell.folder / name).write_text("begun")
    (outcome,) = bench([cell], tmp_path)
    assert outcome.error == ""
    assert cell.status is not None
    assert cell.status.state == "finished"


def test_finished_runs_of_an_earlier_version_stay(tmp_path: Path, in_process: list[str]) -> None:
    """An argument that came later is as it is by default there; what 'auto' chose was recorded."""
    (cell,) = cells(tmp_path)
    list(bench([cell], tmp_path))
    config = cell.folder / "config.yml"
    lines = config.read_text().splitlines(keepends=True)
    config.write_text("".join(line for line in lines if "gae_lambda" not in line))
    assert len(config.read_text().splitlines()) == len(lines) - 1
    list(bench([cell], tmp_path))
    list(bench(cells(tmp_path, vec_env="auto"), tmp_path))
    assert in_process == [str(cell)]


def test_other_runs_are_left_alone(tmp_path: Path, in_process: list[str]) -> None:
    (cell,) = cells(tmp_path)
    list(bench([cell], tmp_path))
    for changed, message in (
        ({"n_timesteps": 96}, "holds a run with n_timesteps=64, not 96: take another folder or remove it"),
        ({"hyperparameters": TINY | {"gamma": 0.5}}, "holds a run with gamma=0.99, not 0.5"),
        ({"normalize": True}, "holds a run with normalize=False, not True"),
    ):
        with pytest.raises(ConfigError, match=message):
            list(bench(cells(tmp_path, **changed), tmp_path))
    (cell.folder / "config.yml").unlink()
    with pytest.raises(ConfigError, match="is not empty and no run's"):
        list(bench([cell], tmp_path))
    with FileLock(tmp_path / ".bench.lock"), pytest.raises(ConfigError, match="another 'spinup bench' is at work"):
        list(bench([cell], tmp_path))
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"cannot write to '.*file': File exists"):
        list(bench([cell], tmp_path / "file"))
    assert in_process == [str(cell)]


@pytest.mark.parametrize(
    "arguments", [["ppo,ppo"], ["ppo", "--vary", "gamma=[0.9,9e-1]"], ["ppo,PPO"]], ids=["name", "value", "case"]
)
def test_no_run_counts_twice(
    arguments: list[str], tmp_path: Path, in_process: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    algo, *others = arguments
    assert main(["bench", algo, "CartPole-v1", "--seeds", "1", *others, "-f", str(tmp_path)]) == 2
    assert "are one run, in '" in capsys.readouterr().err
    assert in_process == []


def test_one_that_fails_leaves_the_others_alone(tmp_path: Path) -> None:
    """In processes of their own."""
    found = cells(tmp_path, envs=["Nowhere-v0", "CartPole-v1"])
    errors = {str(outcome.cell): outcome.error for outcome in bench(found, tmp_path)}
    assert "Nowhere" in errors[str(found[0])]
    assert errors[str(found[1])] == ""
    assert list(results_of(found)) == [found[1].folder.parent]


def test_results_are_written_and_read(tmp_path: Path) -> None:
    results = [
        Result(4, np.array([10, 20]), np.array([0.5, np.nan]), np.array([1.25, -3.0]), np.array([7.0, 8.0])),
        Result(1, np.empty(0, np.int64), np.empty(0), np.empty(0), np.array([1e6])),
    ]
    write_results(tmp_path / "a" / "b", results)
    assert (tmp_path / "a" / "b" / "curve.csv").read_text() == "seed,timesteps,seconds,return\n4,10,0.5,1.25\n4,20,,-3\n"
    assert (tmp_path / "a" / "b" / "final.csv").read_text() == "seed,episode,return\n1,0,1e+06\n4,0,7\n4,1,8\n"
    again = read_results(tmp_path / "a" / "b")
    assert [result.seed for result in again] == [1, 4]
    for found, wanted in zip(again, reversed(results), strict=True):
        for one, other in zip(found, wanted, strict=True):
            np.testing.assert_array_equal(one, other)
    (tmp_path / "a" / "b" / "final.csv").write_text("seed,episode,return\n1,2\n")
    with pytest.raises(ConfigError, match=r"final\.csv: no results \(expected rows of seed,episode,return\)"):
        read_results(tmp_path / "a" / "b")
    (tmp_path / "a" / "b" / "curve.csv").unlink()
    with pytest.raises(ConfigError, match=r"curve\.csv: no results \(No such file or directory\)$"):
        read_results(tmp_path / "a" / "b")


def test_the_command(tmp_path: Path, in_process: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    settings = [f"--set={key}={value}" for key, value in TINY.items() if key != "policy_kwargs"]
    common = ["-n", "64", "--eval-every", "32", "--eval-episodes", "1", "--final-episodes", "2", *settings]
    runs, results = ["-f", str(tmp_path / "runs")], ["--results", str(tmp_path / "results [a]")]
    assert main(["bench", "ppo", "CartPole-v1", "--seeds", "2", "--vary", "gamma=[0.9,0.5]", *common, *runs, *results]) == 0
    out = capsys.readouterr().out
    assert f"4 of 4 runs finished; results are in {tmp_path / 'results [a]'}" in out
    assert len([line for line in out.splitlines() if line.startswith("ppo") and "CartPole-v1 gamma=0." in line]) == 2
    read = read_results(tmp_path / "results [a]" / "ppo" / "CartPole-v1" / "gamma=0.5")
    assert [result.seed for result in read] == [0, 1]
    assert main(["bench", "ppo", "CartPole-v1, Blackjack-v1", "--seeds", "1", *common, *runs]) == 1
    captured = capsys.readouterr()
    assert "1 of 2 runs finished" in captured.out
    assert "error: ppo Blackjack-v1 seed 0: " in captured.err
    fresh = ["-f", str(tmp_path / "fresh")]
    assert main(["bench", "ppo", "CartPole-v1,CartPol-v1", "--seeds", "1", *common, *fresh]) == 2
    assert "error: unknown environment 'CartPol-v1'" in capsys.readouterr().err
    assert not (tmp_path / "fresh").exists(), "nothing was trained before the misspelt name was told"
    for arguments, message in (
        (["--seeds", "x"], "--seeds x: expected how many"),
        (["--seeds", "0,0"], "each once"),
        (["--vary", "gamma=3"], r"--vary gamma=3: expected KEY=[VALUE, …]"),
        (["--set", "gama=3"], "--set gama"),
        (["--vary", "seed=[0,3]"], "--vary seed=[0,3]: runs over seeds are made by --seeds 0,3\n"),
        (["--vary", "seed=[4]"], "made by --seeds 4,\n"),
        (["--vary", "gama=[3]"], "--vary gama: PPO has no argument 'gama'"),
    ):
        assert main(["bench", "ppo", "CartPole-v1", *arguments, *runs]) == 2
        assert message in capsys.readouterr().err


def test_ctrl_c_tells_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(cells: Sequence[Cell], *_: Any, **__: Any) -> Iterator[Outcome]:
        yield Outcome(cells[0], 1.0)
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "bench", interrupted)
    assert main(["bench", "ppo", "CartPole-v1", "--seeds", "2", "-f", str(tmp_path)]) == 130
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines()[-1] == "error: interrupted after 1 of 2 runs; the same command goes on"


def test_a_run_gets_what_is_infinite(tmp_path: Path) -> None:
    (cell,) = grid(["vpg"], ["CartPole-v1"], [0], tmp_path, vary=[{"max_grad_norm": np.inf}])
    argument = json.loads(json.dumps(module._argument(cell)))
    assert RunConfig(**argument["config"]) == cell.config


def test_seeds_are_counted_or_listed() -> None:
    assert (seed_numbers("3"), seed_numbers("3,5"), seed_numbers("4,")) == ([0, 1, 2], [3, 5], [4])
    for text in ("0", "-1", ",", "1,,2", "1.5"):
        with pytest.raises(ConfigError, match=f"--seeds {text}: expected"):
            seed_numbers(text)


@pytest.mark.skipif(find_spec("ray") is not None, reason="Ray is installed")
def test_a_cluster_needs_an_extra(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "ppo", "CartPole-v1", "--ray", "local", "-f", str(tmp_path)]) == 2
    assert 'pip install "spinup-plugins[ray]"' in capsys.readouterr().err


@pytest.mark.skipif(find_spec("ray") is None, reason="the extra 'ray' is not installed")
@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_a_cluster_of_two_nodes(tmp_path: Path) -> None:
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        cluster.add_node(num_cpus=1)
        found = cells(tmp_path, [0, 1], ["CartPole-v1", "Nowhere-v0"])
        errors = {str(outcome.cell): outcome.error for outcome in bench(found, tmp_path, ray=cluster.address)}
        assert [bool(errors[str(cell)]) for cell in found] == [False, True, False, True]
        assert "Nowhere" in errors[str(found[1])]
        (results,) = results_of(found).values()
        assert [result.seed for result in results] == [0, 1]
        again = list(bench([found[0]], tmp_path, ray=cluster.address))
        assert again[0].seconds == 0.0
    finally:
        cluster.shutdown()
