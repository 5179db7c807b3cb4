"""``spinup report``: finding runs of every kind, comparing them, published returns, and what is written."""

import csv
import json
import shutil
import sys
import warnings
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from spinup_plugins.atomic import write_text
from spinup_plugins.cli import main
from spinup_plugins.errors import ConfigError
from spinup_plugins.runs import references
from spinup_plugins.runs.config import Layer, completed, compose, dump
from spinup_plugins.runs.files import CONFIG, EVALUATION, Status
from spinup_plugins.runs.pages import blocks, markdown
from spinup_plugins.runs.references import Reference, best, random_policy, relation, spinning_up
from spinup_plugins.runs.report import FRACTIONS, Comparison, Curve, Group, compare, report
from spinup_plugins.runs.results import Result, write_results
from spinup_plugins.runs.sources import Found, find_runs
from spinup_plugins.yaml_files import scalars


def evaluations(folder: Path, returns: Sequence[float], *, every: int = 100, spread: float = 1.0) -> None:
    """Write what Stable-Baselines3's EvalCallback does: two episodes an evaluation."""
    folder.mkdir(parents=True, exist_ok=True)
    results = np.array(returns)[:, None] + np.array([-spread, spread])
    np.savez(
        folder / "evaluations.npz",
        timesteps=every * np.arange(1, len(returns) + 1),
        results=results,
        ep_lengths=np.full(results.shape, 9),
    )


def monitor(
    path: Path, returns: Sequence[float], *, env: str | None = "CartPole-v1", began: float = 1e9, length: int = 10
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [f"{value},{length},{float(i + 1)}" for i, value in enumerate(returns)]
    path.write_text("\n".join([f"#{json.dumps({'t_start': began, 'env_id': env})}", "r,l,t", *rows]) + "\n")


def ours(folder: Path, *, seed: int = 0, state: str = "finished", final: float = 8.0, **values: Any) -> None:
    """Write a run folder."""
    folder.mkdir(parents=True)
    layer = Layer({"algo": "ppo", "env": "CartPole-v1", "seed": seed, "n_timesteps": 300, **values}, ".".join)
    dump(completed(compose(layer), None), folder / CONFIG)
    Status(state, 300).write(folder)  # type: ignore[arg-type]
    write_text(folder / EVALUATION, json.dumps({"returns": [final - 1, final + 1]}))
    evaluations(folder, [seed, 5 + seed, 7 + seed])
    (folder / "progress.csv").write_text("time/total_timesteps,time/time_elapsed\n200,4\n400,8\n")
    monitor(folder / "0.monitor.csv", [3.0])


def zoo(folder: Path, *, algo: str = "ppo", env: str = "CartPole-v1", seed: int = 77) -> None:
    """Write what rl_zoo3 does, tags and all; one of them would run a command."""
    evaluations(folder, [1.0, 2.0, 9.0])
    monitor(folder / "0.monitor.csv", [1.0] * 20, env=env, length=30)
    inner = folder / env
    inner.mkdir()
    pairs = "".join(f"  - - {key}\n    - {value}\n" for key, value in (("algo", algo), ("env", env), ("seed", seed)))
    danger = "  - - vec_env\n    - !!python/object/apply:os.mkdir [owned]\n"
    (inner / "args.yml").write_text(f"!!python/object/apply:collections.OrderedDict\n- {pairs[2:]}{danger}")
    (inner / "config.yml").write_text("!!python/object/apply:collections.OrderedDict\n- - - n_envs\n    - 8\n")


def tables(folder: Path, tops: Sequence[float], *, steps: int = 1000) -> None:
    """Write curve.csv and final.csv, a seed for each value."""
    timesteps = np.arange(1, 5) * steps // 4
    write_results(
        folder,
        [
            Result(i, timesteps, timesteps / 50, top * timesteps / steps, np.array([top - 1, top + 1]))
            for i, top in enumerate(tops)
        ],
    )


# --- finding runs ----------------------------------------------------------------------------------------------------


def test_run_folders_are_read_whole(tmp_path: Path) -> None:
    ours(tmp_path / "ppo" / "CartPole-v1" / "seed3", seed=3)
    (run,) = find_runs([tmp_path])
    assert (run.label, run.algo, run.env, run.seed, run.origin, run.measure) == (
        *("ppo", "ppo", "CartPole-v1", 3, "spinup", "evaluation"),
    )
    assert (run.timesteps.tolist(), run.returns.tolist()) == ([100, 200, 300], [3, 8, 10])
    assert run.seconds.tolist() == [2, 4, 6]
    assert (run.final, run.of) == (8.0, "2 episodes after training")


def test_runs_come_before_the_tables_made_of_them(tmp_path: Path) -> None:
    home = tmp_path / "ppo" / "CartPole-v1"
    tables(home, [1.0, 2.0])
    assert [(run.label, run.env, run.seed, run.final) for run in find_runs([tmp_path])] == [
        *(("ppo", "CartPole-v1", 0, 1.0), ("ppo", "CartPole-v1", 1, 2.0)),
    ]
    ours(home / "seed0", seed=0)
    assert [(run.seed, run.final) for run in find_runs([tmp_path])] == [(0, 8.0)]


def test_an_environment_is_the_same_whoever_names_its_module(tmp_path: Path) -> None:
    """Monitors and folders tell the id alone, and configurations the module that registers it, too."""
    ours(tmp_path / "a", env="gymnasium:CartPole-v1")
    monitor(tmp_path / "b" / "0.monitor.csv", [1.0], env="CartPole-v1")
    assert {run.env for run in find_runs([tmp_path])} == {"CartPole-v1"}


def test_folders_may_be_strings(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    evaluations(tmp_path / "ppo" / "CartPole-v1_1", [1.0, 2.0])
    assert [run.seed for run in find_runs(str(tmp_path))] == [1]
    comparison = report([str(tmp_path)], str(tmp_path / "out"), labels={"mine": str(tmp_path / "ppo")})
    assert comparison.labels == ["mine"]
    assert (tmp_path / "out" / "index.html").is_file()


def test_links_to_folders_are_followed_once(tmp_path: Path) -> None:
    """Runs often lie on another disk; what is found twice is one run, named by no link if it lies there."""
    for seed in (1, 2):
        evaluations(tmp_path / "disk" / "ppo" / f"CartPole-v1_{seed}", [float(seed)])
    evaluations(tmp_path / "disk" / "other", [9.0])
    logs = tmp_path / "logs"
    evaluations(logs / "td3" / "CartPole-v1_1", [3.0])
    for link, target in (
        *(("ppo", "disk/ppo"), ("latest", "logs/td3/CartPole-v1_1"), ("same", "disk/ppo/CartPole-v1_2")),
        *(("up", ""), ("here", "logs"), ("dangling", "nowhere"), ("loop", "logs/loop")),
    ):
        (logs / link).symlink_to(tmp_path / target)
    (tmp_path / "disk" / "ppo" / "back").symlink_to(logs)
    (tmp_path / "disk" / "ppo" / "beside").symlink_to(tmp_path / "disk")
    found = [(run.label, run.seed, run.final) for run in find_runs([logs])]
    assert found == [("ppo", 1, 1.0), ("ppo", 2, 2.0), ("td3", 1, 3.0)]
    assert len(find_runs([logs / "here"])) == 3
    labels = {"mine": logs, "inner": logs / "ppo"}
    assert [(run.label, run.final) for run in find_runs([], labels=labels)] == [("inner", 1.0), ("inner", 2.0), ("mine", 3.0)]
    (chosen := tmp_path / "chosen").mkdir()
    (chosen / "CartPole-v1_7").symlink_to(logs / "td3" / "CartPole-v1_1")
    runs = find_runs([logs], labels={"best": chosen})
    assert [(run.label, run.final) for run in runs] == [("best", 3.0), ("ppo", 1.0), ("ppo", 2.0)]


def test_a_report_is_no_run(tmp_path: Path) -> None:
    """One is often written below the runs that it is of, and is not to be in the next one's way."""
    pytest.importorskip("matplotlib")
    evaluations(tmp_path / "ppo" / "CartPole-v1_1", [1.0, 2.0])
    for _ in range(2):
        report([tmp_path], tmp_path / "report", strict=True)


def test_our_runs_are_told_apart_by_their_settings(tmp_path: Path) -> None:
    for seed in (0, 1):
        for gamma in (0.9, 0.5):
            folder = tmp_path / "ppo" / f"CartPole-v1_{seed}{int(10 * gamma)}"
            ours(folder, seed=seed, eval_every=7 + seed, checkpoint_every=seed, hyperparameters={"gamma": gamma})
    assert [(run.label, run.seed) for run in find_runs([tmp_path])] == [
        *(("ppo gamma=0.5", 0), ("ppo gamma=0.5", 1), ("ppo gamma=0.9", 0), ("ppo gamma=0.9", 1)),
    ]
    ours(tmp_path / "x", seed=5, hyperparameters={"gamma": 0.7, "gae_lambda": 0.8, "policy_kwargs": {"net_arch": [4, 4]}})
    runs = find_runs([tmp_path])
    assert {run.label for run in runs} == {"ppo variant 1", "ppo variant 2", "ppo variant 3"}
    assert {run.variant for run in runs if run.seed == 5} == {"gae_lambda=0.8 gamma=0.7 policy_kwargs={net_arch: [4, 4]}"}


def test_a_variants_number_is_the_same_on_every_environment(tmp_path: Path) -> None:
    def add(env: str, *sizes: int) -> None:
        for size in sizes:
            values = {"n_steps": size, "batch_size": size, "policy_kwargs": {"net_arch": [size, size]}}
            ours(tmp_path / env / str(size), env=env, hyperparameters=values)

    add("CartPole-v1", 16, 32)
    add("Acrobot-v1", 32, 64)
    found = {(run.env, run.label): run.settings["n_steps"] for run in find_runs([tmp_path])}
    assert found == {
        ("CartPole-v1", "ppo variant 1"): 16,
        ("CartPole-v1", "ppo variant 2"): 32,
        ("Acrobot-v1", "ppo variant 2"): 32,
        ("Acrobot-v1", "ppo variant 3"): 64,
    }


def test_evaluations_of_stable_baselines3_are_named_by_their_path(tmp_path: Path) -> None:
    evaluations(tmp_path / "logs" / "sac" / "Pendulum-v1" / "run_2", [1.0, 5.0])
    evaluations(tmp_path / "Hopper-v5" / "mine" / "0", [1.0])
    evaluations(tmp_path / "experiment" / "7", [2.0])
    found = {(run.label, run.algo, run.env, run.seed) for run in find_runs([tmp_path])}
    assert found == {
        ("sac", "sac", "Pendulum-v1", 2),
        ("mine", "", "Hopper-v5", 0),
        ("experiment", "", "unknown", 7),
    }
    (run,) = find_runs([tmp_path / "logs"])
    assert (run.final, run.of, run.origin) == (5.0, "last evaluation, 2 episodes", "SB3")
    assert np.isnan(run.seconds).all()


@pytest.mark.parametrize(
    ("name", "label", "seed"),
    [
        ("PPO_3", "ppo", 3),
        ("ppo-seed-2", "ppo", 2),
        ("ppo_s0", "ppo", 0),
        ("my_idea_seed4", "my_idea", 4),
        ("net_64", "net_64", None),
        ("ppo_net_64", "ppo_net_64", None),
        ("PPO", "ppo", None),
    ],
)
@pytest.mark.parametrize("above", ["logs", "CartPole-v1"])
def test_a_number_after_an_algorithm_is_a_seeds(name: str, label: str, seed: int | None, above: str, tmp_path: Path) -> None:
    """What Stable-Baselines3 calls its folders; of another name, it may be anything."""
    evaluations(tmp_path / above / name, [1.0])
    assert [(run.label, run.seed) for run in find_runs([tmp_path])] == [(label, seed)]


def test_monitors_are_training_returns(tmp_path: Path) -> None:
    """Two environments, whose episodes end in turns; means of the last three."""
    folder = tmp_path / "a2c"
    monitor(folder / "0.monitor.csv", [0.0, 2.0, 4.0])
    monitor(folder / "1.monitor.csv", [1.0, 3.0], began=1e9 + 0.5)
    (run,) = find_runs([tmp_path], window=3)
    assert (run.label, run.algo, run.env, run.measure) == ("a2c (training)", "a2c", "CartPole-v1", "training")
    assert run.timesteps.tolist() == [30, 40, 50]
    np.testing.assert_allclose(run.returns, [1, 2, 3])
    np.testing.assert_allclose(run.seconds, [2, 2.5, 3])
    assert (run.final, run.of) == (3.0, "last 3 training episodes")
    (short,) = find_runs([tmp_path])
    assert (short.timesteps.tolist(), short.final) == ([50], 2.0)
    with pytest.raises(ConfigError, match="window must be greater than 0"):
        find_runs([tmp_path], window=0)


def test_a_monitor_goes_on_in_the_file_of_another(tmp_path: Path) -> None:
    """With ``override_existing=False``; its clock begins at 0 again, and its episodes are later ones all the same."""
    monitor(tmp_path / "a2c" / "0.monitor.csv", [0.0, 1.0, 2.0])
    with (tmp_path / "a2c" / "0.monitor.csv").open("a") as file:
        file.write("3,10,0.5\n4,10,1.5\n5,10,0.25\n")
    (run,) = find_runs([tmp_path], window=1)
    assert run.returns.tolist() == [0, 1, 2, 3, 4, 5]
    np.testing.assert_allclose(run.seconds, [1, 2, 3, 3.5, 4.5, 4.75])


@pytest.mark.parametrize("name", ["eval", "eval_0", "0_evaluation", "ppo.Eval"])
def test_episodes_of_evaluations_are_none_of_training(name: str, tmp_path: Path) -> None:
    """``Monitor(env, log + "/eval")`` writes beside what training does; its steps and times would count as training's."""
    folder = tmp_path / "a2c"
    monitor(folder / "monitor.csv", [0.0, 2.0])
    monitor(folder / "retrieval.monitor.csv", [1.0], began=1e9 + 0.5)
    monitor(folder / f"{name}.monitor.csv", [500.0] * 9, began=1e9 - 5)
    (run,) = find_runs([tmp_path], window=1)
    assert (run.timesteps.tolist(), run.returns.tolist(), run.seconds.tolist()) == ([10, 20, 30], [0, 1, 2], [1, 1.5, 2])
    evaluations(folder, [1.0, 5.0], every=10)
    (run,) = find_runs([tmp_path])
    assert run.seconds.tolist() == [1, 1.5]
    for training in ("", "retrieval."):
        (folder / f"{training}monitor.csv").unlink()
    (run,) = find_runs([tmp_path])
    assert (run.env, np.isnan(run.seconds).all()) == ("CartPole-v1", True)
    (folder / "evaluations.npz").unlink()
    with pytest.raises(ConfigError, match=r"a2c: no \*\.monitor\.csv of training, only of evaluations"):
        find_runs([tmp_path], strict=True)


def test_a_folder_of_evaluations_has_monitors_of_evaluations(tmp_path: Path) -> None:
    monitor(tmp_path / "ppo" / "monitor.csv", [0.0, 2.0])
    monitor(tmp_path / "ppo" / "eval" / "monitor.csv", [500.0])
    with pytest.warns(UserWarning, match=r"passed over: .*eval: no \*\.monitor\.csv of training"):
        (run,) = find_runs([tmp_path])
    assert run.final == 1.0


@pytest.mark.parametrize("half", ["9", "9.5,1", "9.5,10,2."])
def test_half_a_row_of_a_monitor_is_none_yet(half: str, tmp_path: Path) -> None:
    """A run that goes on, or was killed, may leave one."""
    monitor(tmp_path / "a2c" / "0.monitor.csv", [0.0, 2.0])
    with (tmp_path / "a2c" / "0.monitor.csv").open("a") as file:
        file.write(half)
    (run,) = find_runs([tmp_path], window=1)
    np.testing.assert_allclose(run.returns, [0, 2])


def test_rl_zoo3_names_its_runs_and_runs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    zoo(tmp_path / "logs" / "x" / "y_1")
    (run,) = find_runs([tmp_path])
    assert (run.label, run.env, run.seed, run.origin, run.final) == ("ppo", "CartPole-v1", 77, "rl_zoo3", 9.0)
    np.testing.assert_allclose(run.seconds, [100 / 30, 200 / 30, 10])
    assert not Path("owned").exists()
    args = next(tmp_path.rglob("args.yml"))
    assert scalars(args) == {"algo": "ppo", "env": "CartPole-v1", "seed": "77"}
    zoo(tmp_path / "logs" / "x" / "y_2", seed=78)
    assert {run.label for run in find_runs([tmp_path])} == {"ppo"}
    (tmp_path / "logs" / "x" / "y_2" / "CartPole-v1" / "config.yml").write_text("n_envs: 4\n")
    assert [run.label for run in find_runs([tmp_path])] == ["ppo n_envs=4", "ppo n_envs=8"]
    shutil.rmtree(tmp_path / "logs" / "x" / "y_2")
    args.write_text("algo: td3\nnested: {a: 1}\n")
    assert scalars(args) == {"algo": "td3"}
    args.write_text("algo: [")
    with (
        pytest.warns(UserWarning, match=r"passed over: .*args\.yml: cannot be read"),
        pytest.raises(ConfigError, match="no runs"),
    ):
        find_runs([tmp_path])


def test_equal_names_from_elsewhere_are_told_apart(tmp_path: Path) -> None:
    ours(tmp_path / "runs" / "a")
    zoo(tmp_path / "logs" / "ppo" / "CartPole-v1_1")
    assert [run.label for run in find_runs([tmp_path])] == ["ppo (rl_zoo3)", "ppo (spinup)"]


def test_folders_are_named(tmp_path: Path) -> None:
    ours(tmp_path / "runs" / "a")
    zoo(tmp_path / "logs" / "ppo" / "CartPole-v1_1")
    zoo(tmp_path / "logs" / "td3" / "CartPole-v1_1", algo="td3")
    labels = {"ours": tmp_path / "runs", "zoo": tmp_path / "logs"}
    assert [run.label for run in find_runs([], labels=labels)] == ["ours", "zoo ppo", "zoo td3"]
    labels = {"all": tmp_path, "td": tmp_path / "logs" / "td3"}
    assert [run.label for run in find_runs([tmp_path], labels=labels)] == ["all (rl_zoo3)", "all (spinup)", "td"]


def test_a_seed_that_is_there_twice_is_told(tmp_path: Path) -> None:
    for name in "ab":
        ours(tmp_path / name)
    with pytest.warns(UserWarning, match="ppo on CartPole-v1: seed 0 is both in .*a and in .*b; labels tell them apart"):
        assert len(find_runs([tmp_path])) == 2


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("evaluations.npz", b"", "no evaluations of a training run"),
        ("evaluations.npz", b"PK\x03\x04 cut short", "no evaluations of a training run"),
        ("0.monitor.csv", b"r,l,t\n1,2,3\n", "the first line is no header"),
        ("0.monitor.csv", b'#{"t_start": 1}\nr,l,t\n1,2\n', "no monitor file"),
        ("0.monitor.csv", b'#{"t_start": 1}\nr,l,t\n1,0,2\n', "an episode without steps"),
        ("0.monitor.csv", b'#{"t_start": 1}\nr,l,t\n1,inf,2\n', "no monitor file"),
        ("0.monitor.csv", b'#{"t_start": 1}\nr,l,t\n1,2,3\n' + b"\0" * 2**18 + b"\n", "no monitor file"),
        ("0.monitor.csv", b'#{"t_start": 1}\nr,l,t\n', "no episode ended"),
        ("curve.csv", b"step,value\n1,2\n", "expected rows of seed,timesteps,seconds,return"),
        ("curve.csv", b"seed,timesteps,seconds,return\n,10,1,2\n", "seed and timesteps must be numbers"),
        ("curve.csv", b"seed,timesteps,seconds,return\n0,10,1,2\n0,10,1,2\n", "timesteps do not ascend"),
        ("curve.csv", b"seed,timesteps,seconds,return\n0,10,1,\n", "returns that are not finite"),
        ("curve.csv", b"seed,timesteps,seconds,return\n" + b"\0" * 2**18, "no results"),
        ("curve.csv", b"seed,timesteps,seconds,return\n", "no results"),
    ],
)
def test_what_cannot_be_used_is_passed_over_by_name(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    ours(tmp_path / "good")
    bad = tmp_path / "bad"
    bad.mkdir()
    (bad / name).write_bytes(content)
    if name == "curve.csv":
        (bad / "final.csv").write_text("seed,episode,return\n")
    with pytest.warns(UserWarning, match=rf"passed over: {bad}.*{message}") as caught:
        assert len(find_runs([tmp_path])) == 1
    assert len(caught) == 1
    with pytest.raises(ConfigError, match=message):
        find_runs([tmp_path], strict=True)


def test_unfinished_and_foreign_runs_are_passed_over(tmp_path: Path) -> None:
    ours(tmp_path / "a", state="running")
    with pytest.raises(ConfigError, match="the run is running, not finished"):
        find_runs([tmp_path], strict=True)
    shutil.rmtree(tmp_path / "a")
    ours(tmp_path / "b")
    config = tmp_path / "b" / CONFIG
    config.write_text(config.read_text().replace("algo: ppo", "algo: ppg"))
    with pytest.raises(ValueError, match="unknown algorithm 'ppg'"):
        find_runs([tmp_path], strict=True)
    with pytest.warns(UserWarning, match="unknown algorithm"), pytest.raises(ConfigError, match="no runs below"):
        find_runs([tmp_path])


# --- published returns -----------------------------------------------------------------------------------------------


def test_published_returns_are_of_our_algorithms_and_have_a_source() -> None:
    found = references.load()
    assert len(found) > 800
    assert {each.algo for each in found} == {"vpg", "trpo", "ppo", "ddpg", "td3", "sac", "random"}
    assert {each.metric for each in found} == {"final", "evaluation", "training", "maximum"}
    assert {each.spread_of for each in found} == {"", "seeds", "episodes", "standard error", "95 % interval"}
    assert all(each.source and each.url for each in found)
    assert all(each.env.split("-v")[0] in references.COMPARABLE | {"Hopper", "Walker2d", "Ant", "CartPole"} for each in found)
    assert len(set(found)) == len(found)


def test_versions_are_kept_apart_where_they_differ() -> None:
    assert relation("HalfCheetah-v3", "HalfCheetah-v5") == "comparable"
    assert relation("HalfCheetah", "mine:HalfCheetah-v5") == "comparable"
    assert relation("Hopper-v3", "Hopper-v5") == "other"
    assert relation("CartPole-v0", "CartPole-v1") == "other"
    assert relation("Ant-v5", "Ant-v5") == "same"
    assert relation("InvertedPendulum-v2", "Pendulum-v1") is None
    own, older = best("ppo", "Hopper-v5", 1_000_000)
    assert own.env == "Hopper-v5"
    assert older.env != "Hopper-v5"
    (cheetah,) = best("sac", "HalfCheetah-v5", 1_000_000)
    assert cheetah.env == "HalfCheetah-v3"
    assert best("sac", "Nowhere-v1", 1) == best("a2c", "CartPole-v1", 1) == []


def test_spinning_ups_curve_is_read_where_it_has_come_to() -> None:
    for steps, at in ((10, 100_000), (200_000, 100_000), (300_000, 300_000), (999_000, 1_000_000), (10**8, 3_000_000)):
        (found,) = spinning_up("sac", "HalfCheetah-v5", steps)
        assert (found.timesteps, found.source) == (at, "Spinning Up, PyTorch figure")
    (trpo,) = spinning_up("trpo", "HalfCheetah-v5", 10**6)
    assert trpo.source == "Spinning Up, TensorFlow figure"
    assert 700 < trpo.value < 730, "between 690.1 and 723.4, its neighbours in the figure"
    assert spinning_up("ppo", "CartPole-v1", 10**6) == []


def reference(**values: Any) -> Reference:
    base = Reference("ppo", "Swimmer-v5", 1000, 1.0, "", "", 5, "final", "a", "b")
    return base._replace(**values)


def test_the_best_is_of_like_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = (
        reference(value=1.0),
        reference(value=2.0, timesteps=1049),
        reference(value=3.0, timesteps=5000),
        reference(value=4.0, metric="maximum"),
        reference(value=5.0, n_seeds=1),
        reference(value=6.0, timesteps=None),
    )
    monkeypatch.setattr(references, "load", lambda: rows)
    assert [each.value for each in best("ppo", "Swimmer-v5", 1000)] == [2.0]
    assert [each.value for each in best("ppo", "Swimmer-v5", 9000)] == [3.0]
    assert [each.value for each in best("ppo", "Swimmer-v5", 10)] == [1.0]
    monkeypatch.setattr(references, "load", lambda: rows[3:])
    assert [each.value for each in best("ppo", "Swimmer-v5", 1000)] == [5.0]
    assert [reference(timesteps=n).budget for n in (None, 0, 1500, 10**6)] == [
        *("steps not stated", "0 steps", "1.5k steps", "1M steps")
    ]


def test_a_damaged_file_of_references_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(references, "data_dir", lambda _: tmp_path)
    (tmp_path / "references.csv").write_text("algo,env\nppo,X\n")
    with pytest.raises(ConfigError, match=r"references\.csv: no published returns"):
        references.load.__wrapped__()


# --- comparing -------------------------------------------------------------------------------------------------------


def run(label: str, env: str, final: float, *, algo: str = "", returns: Sequence[float] = (), every: int = 100) -> Found:
    timesteps = every * np.arange(1, len(returns) + 1)
    return Found(label, algo, env, None, timesteps, timesteps / 10, np.array(returns), final, "", "evaluation", "SB3", Path())


def test_a_curve_of_unlike_runs_by_hand() -> None:
    curve = Curve.of([np.array([0.0, 10.0, 20.0]), np.array([5.0, 15.0])], [np.array([0.0, 10.0, 0.0]), np.array([1.0, 3.0])])
    assert curve is not None
    assert curve.points.tolist() == [5, 10, 15]
    np.testing.assert_allclose(curve.mean, [3, 6, 4])
    assert curve.band is not None
    np.testing.assert_allclose(curve.band, [[1, 2, 3], [5, 10, 5]])
    alone = Curve.of([np.array([1.0])], [np.array([2.0])])
    assert alone is not None
    assert alone.band is None
    assert Curve.of([], []) is None


def test_scores_are_normalised_by_what_there_is() -> None:
    known = compare([run("ppo", "HalfCheetah-v5", 100.0, algo="ppo", returns=[1.0], every=1_000_000)]).scales["HalfCheetah-v5"]
    low = random_policy("HalfCheetah-v5")
    assert low is not None
    assert known.low == low.value < -200
    assert known.high > 11_000
    assert known.source.startswith("random actions (HalfCheetah-v5) to SAC of ")
    unknown = compare([run("a", "Mine-v0", 3.0, returns=[-1.0, 4.0]), run("b", "Mine-v0", 9.0)]).scales["Mine-v0"]
    assert unknown[:2] == (-1.0, 9.0)
    assert unknown.score(4.0) == 0.5
    assert compare([run("a", "Mine-v0", 3.0)]).scales["Mine-v0"][:2] == (3.0, 4.0)


def test_wall_clock_is_of_what_is_known() -> None:
    timed = run("a", "X-v0", 1.0, returns=[1.0, 2.0, 3.0])
    backwards = replace(timed, seconds=np.array([5.0, 1.0, 2.0]))
    partly = replace(timed, seconds=np.array([10.0, 20.0, np.nan]))
    without = replace(timed, seconds=np.full(3, np.nan))
    (group,) = compare([timed, backwards, partly, without]).groups
    assert group.wall_clock is not None
    assert (group.wall_clock.n, group.wall_clock.points[[0, -1]].tolist()) == (2, [10, 20])
    (group,) = compare([without]).groups
    assert group.wall_clock is None


def test_aggregates_are_of_environments_that_all_have() -> None:
    runs = [
        *(run("a", "X-v0", value) for value in (0.0, 10.0)),
        *(run("b", "X-v0", value) for value in (5.0, 10.0, 10.0)),
        run("a", "Y-v0", 3.0),
        run("c", "Z-v0", 1.0),
        run("c", "Y-v0", 4.0),
    ]
    some = Comparison(compare(runs[:5]).groups)
    assert some.common == ["X-v0"]
    assert some.aggregates["a"].value == 0.5
    (pair,) = some.pairs
    assert (pair.x, pair.y, pair.probability.value) == ("a", "b", (0 + 0 + 0 + 1 + 0.5 + 0.5) / 6)
    every = compare([*runs, run("a", "Y-v0", 5.0)])
    assert every.common == []
    assert every.aggregates == {}
    assert [(pair.x, pair.y, pair.envs, pair.probability.value) for pair in every.pairs] == [
        *(("a", "b", ("X-v0",), pytest.approx(1 / 3)), ("a", "c", ("Y-v0",), 0.5)),
    ]


def test_training_returns_are_compared_with_their_like() -> None:
    training = [replace(run(label, "X-v0", 1.0), measure="training") for label in "cd"]
    mixed = compare([run("a", "X-v0", 1.0), run("b", "X-v0", 2.0), *training])
    assert [(pair.x, pair.y) for pair in mixed.pairs] == [("a", "b"), ("c", "d")]
    assert (mixed.common, list(mixed.aggregates)) == (["X-v0"], ["a", "b"])
    assert list(mixed.profiles()[1]) == ["a", "b"]
    assert list(compare(training).aggregates) == ["c", "d"]


def test_sample_efficiency_by_hand() -> None:
    comparison = compare([run("a", "X-v0", 10.0, returns=[0.0, 6.0, 4.0, 10.0]), run("b", "X-v0", 0.0)])
    a, b = comparison.groups
    assert [comparison.reached(a, fraction) for fraction in (0.5, 0.75, 1.0)] == [200, 400, 400]
    assert np.isnan(comparison.reached(a, 1.1))
    assert np.isnan(comparison.reached(b, 0.5))
    assert Group("a", "X-v0", (*a.runs, run("a", "X-v0", 1.0, returns=[0.0]))).steps == "100 to 400"
    assert b.steps == "not known"


# --- what is written -------------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """Checks that tags are closed in order, and collects where a page refers to."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag not in ("script", "link", "iframe")
        self.links += [str(value) for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("several")
    tables(folder / "results" / "ppo" / "Hopper-v5", [100.0, 200.0, 300.0, 250.0])
    tables(folder / "results" / "sac" / "Hopper-v5", [900.0, 800.0], steps=2000)
    tables(folder / "results" / "ppo" / "HalfCheetah-v5", [100.0, 150.0])
    tables(folder / "results" / "sac" / "HalfCheetah-v5", [500.0])
    monitor(folder / "logs" / "<b>|x" / "0.monitor.csv", list(range(300)), env="Hopper-v5")
    return folder


@pytest.fixture(scope="module")
def written(several: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("matplotlib")
    out = tmp_path_factory.mktemp("written") / "deep" / "report"
    report([several], out)
    return out


def test_everything_is_written(written: Path) -> None:
    images = [
        *("improvement.png", "profile.png"),
        *(f"{kind}-{env}.png" for kind in ("curves", "wallclock") for env in ("HalfCheetah-v5", "Hopper-v5")),
    ]
    texts = ["README.md", "curves.csv", "final.csv", "index.html"]
    assert sorted(path.name for path in written.iterdir()) == sorted(texts + images)
    assert all((written / name).read_bytes().startswith(b"\x89PNG") for name in images)


def test_the_page_stands_alone(written: Path) -> None:
    text = (written / "index.html").read_text()
    page = Page()
    page.feed(text)
    assert page.open == []
    images = [link for link in page.links if not link.startswith("#")]
    assert len(images) == 6
    assert all(link.startswith("data:image/png;base64,") for link in images)
    assert all(f'id="{link[1:]}"' in text for link in page.links if link.startswith("#"))
    assert "prefers-color-scheme: dark" in text
    assert "&lt;b&gt;|x (training)" in text


def test_the_markdown_tells_numbers_and_their_kind(written: Path) -> None:
    text = (written / "README.md").read_text()
    assert text.startswith("# Comparison of training runs\n\n3 algorithms, 2 environments, 10 runs.")
    assert "| ppo | 4 | 1,000 | 225.0 \\[" in text
    assert "| sac | 1 | 1,000 | 500.0 (one seed: no interval) | 500.0 | 2 episodes after training |" in text
    assert "| \\<b>\\|x (training) | 1 | 3,000 | 249.5 (one seed: no interval) | 249.5 | last 100 training episodes |" in text
    assert "Those marked (training) are returns of training episodes" in text
    assert "IQM of normalised final scores on HalfCheetah-v5, Hopper-v5." in text
    assert "seeds: \\<b>\\|x (training) 1 (no band), ppo 4, sac 2. Band: 95 % interval" in text
    assert "| HalfCheetah-v3 † |" in text
    assert "| Hopper-v5 | evaluation | Farama" in text
    assert "| Hopper-v3 (another version) |" in text
    assert "| ppo | sac | HalfCheetah-v5, Hopper-v5 | 0.00 |" in text


def test_a_page_without_a_common_environment() -> None:
    found = markdown(blocks(compare([run("a", "X-v0", 1.0), run("b", "Y-v0", 2.0)]), {}, FRACTIONS))
    assert "No environment has runs of all: there is no aggregate and no performance profile." in found
    assert "P(X > Y)" not in found
    assert "Published" not in found


def test_the_tables_hold_the_curves(written: Path) -> None:
    with (written / "final.csv").open(newline="") as file:
        final = {(row["algorithm"], row["environment"]): row for row in csv.DictReader(file)}
    assert final["ppo", "Hopper-v5"]["returns"] == "100 200 300 250"
    assert (final["ppo", "Hopper-v5"]["iqm"], final["ppo", "Hopper-v5"]["mean"]) == ("225", "212.5")
    assert (final["sac", "HalfCheetah-v5"]["low"], final["sac", "HalfCheetah-v5"]["seeds"]) == ("", "1")
    with (written / "curves.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if (row["algorithm"], row["environment"]) == ("ppo", "Hopper-v5")]
    steps = [row for row in rows if row["axis"] == "timesteps"]
    assert [row["point"] for row in steps] == ["250", "500", "750", "1000"]
    assert [row["iqm"] for row in steps] == ["56.25", "112.5", "168.75", "225"]
    assert [row["point"] for row in rows if row["axis"] == "seconds"] == ["5", "10", "15", "20"]


def test_equal_input_gives_equal_bytes(several: Path, tmp_path: Path) -> None:
    """With a performance profile, of algorithms that share an environment."""
    pytest.importorskip("matplotlib")
    results = several / "results"
    for out in ("a", "b"):
        report([results / "sac" / "Hopper-v5", results / "ppo" / "Hopper-v5"], tmp_path / out)
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert "profile.png" in names
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


def test_any_label_can_be_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    evaluations(tmp_path / "x" / "0", [1.0, 2.0])
    report([], tmp_path / "out", labels={"a$^$": tmp_path / "x"})
    assert (tmp_path / "out" / "curves-unknown.png").is_file()


# --- the command -----------------------------------------------------------------------------------------------------


def test_the_command_warns_and_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    evaluations(tmp_path / "x" / "0", [1.0, 2.0])
    (tmp_path / "y").mkdir()
    (tmp_path / "y" / "evaluations.npz").write_text("nonsense")
    out = tmp_path / "out"
    args = ["report", "--label", f"mine [old]={tmp_path / 'x'}", str(tmp_path / "y"), "--out", str(out), "--fractions", "0.3"]
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert main(args) == 0
    output = capsys.readouterr()
    assert output.err.startswith(
        f"warning: passed over: {tmp_path / 'y' / 'evaluations.npz'}: no evaluations of a training run"
    )
    assert len(output.err.splitlines()) == 1
    assert output.out.splitlines()[-1] == f"wrote {out / 'index.html'}"
    assert output.out.splitlines()[1].split() == ["mine", "[old]", "unknown", "1", "2"]
    assert "0.3 (1.3)" in (out / "README.md").read_text()
    assert main([*args, "--strict"]) == 2


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "which folders? 'spinup report runs' compares what is below runs"),
        (["nowhere"], "'nowhere' is not a folder"),
        (["."], "no runs below .: expected run folders, curve.csv, evaluations.npz or *.monitor.csv"),
        ([".", "--label", "x"], "--label x: expected NAME=DIR"),
        ([".", "--label", "x=.", "--label", "x=a"], "--label x=a: 'x' is . already"),
        ([".", "--label", "x=.", "--label", "y=."], "'.' is labelled 'x' already, and cannot be 'y', too"),
        ([".", "--fractions", "half"], "--fractions half: expected numbers above 0 such as 0.5,0.95"),
        ([".", "--fractions", "nan"], "--fractions nan: expected numbers above 0 such as 0.5,0.95"),
        ([".", "--fractions", "0.5,-1"], "--fractions 0.5,-1: expected numbers above 0 such as 0.5,0.95"),
        ([".", "--window", "0"], "window must be greater than 0, not 0"),
    ],
)
def test_the_command_refuses_in_one_line(
    args: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    assert main(["report", *args]) == 2
    assert capsys.readouterr().err == f"error: {message}\n"
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_to(several: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    (tmp_path / "file").touch()
    assert main(["report", str(several), "-o", str(tmp_path / "file")]) == 2
    assert "cannot write a report to" in capsys.readouterr().err


def test_without_matplotlib_an_extra_is_named(
    several: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["report", str(several)]) == 2
    assert capsys.readouterr().err == 'error: a report needs matplotlib: pip install "spinup-plugins[plot]"\n'
