"""Comparing learning curves: what is compared, that it resumes, and what it reports."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from spinup_plugins.cli import main
from spinup_plugins.errors import ConfigError, UnknownNameError
from spinup_plugins.runs import parity
from spinup_plugins.runs.parity import CASES, SIDES, Case, Curve, Estimate, Run, binned, cases, learn, report, run_all

TINY = Case("sac", "Pendulum-v1", 400, {"learning_starts": 380, "batch_size": 4, "policy_kwargs": {"net_arch": [4]}})


def test_the_cases_are_the_issues() -> None:
    expected = {(algo, env, 200_000) for algo in ("ppo", "trpo") for env in ("CartPole-v1", "HalfCheetah-v5")}
    expected |= {
        (algo, env, n) for algo in ("sac", "td3") for env, n in (("Pendulum-v1", 20_000), ("HalfCheetah-v5", 100_000))
    }
    assert {(case.algo, case.env, case.steps) for case in CASES} == expected
    assert {case.ours.get("kl_reduction") for case in CASES if case.algo == "trpo"} == {"mean"}
    assert all(case.kwargs["action_noise"] == 0.1 for case in CASES if case.algo == "td3")
    assert [case.env for case in cases("ppo")] == ["CartPole-v1", "HalfCheetah-v5"]
    assert len(cases(None, "HalfCheetah-v5")) == 4
    with pytest.raises(UnknownNameError, match="no curves are compared for 'ppo Pendulum-v1'"):
        cases("ppo", "Pendulum-v1")


def test_both_sides_get_the_same_hyperparameters() -> None:
    import gymnasium as gym

    for case in CASES:
        if case.env == "HalfCheetah-v5":
            pytest.importorskip("mujoco")
        theirs, ours = (parity._model(Run(case, side, 3), gym.make(case.env)) for side in ("sb3", "torch"))
        for name in (*case.kwargs, "gamma", "learning_rate", "batch_size", "seed"):
            if name not in ("policy_kwargs", "action_noise"):
                assert getattr(theirs, name) == getattr(ours, name), (case, name)
        if "action_noise" in case.kwargs:
            assert repr(theirs.action_noise) == repr(ours.action_noise)  # type: ignore[attr-defined]
        for key, value in theirs.policy.state_dict().items():
            assert np.array_equal(value, ours.policy.state_dict()[key]), (case, key)


def test_bins_by_hand() -> None:
    curve = binned([1.0, 3.0, 10.0, 20.0, 100.0], [5, 5, 15, 10, 90], steps=40, bins=4)
    assert curve.steps.tolist() == [10, 20, 30, 40]
    np.testing.assert_equal(curve.returns, [2.0, np.nan, 10.0, 60.0])  # the last episode ended beyond all bins
    assert curve.filled.tolist() == [2.0, 2.0, 10.0, 60.0]
    assert curve.final == np.mean([1, 3, 10, 20, 100])
    late = binned([7.0], [25], steps=40, bins=4)
    assert late.filled.tolist() == [7.0] * 4
    assert binned(list(range(300)), [1] * 300, 300).final == np.mean(range(200, 300))


def test_curves_are_written_and_read(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b.csv"
    curve = binned([1.25, -3000.0], [5, 25], steps=40, bins=4)
    parity.write_curve(path, curve)
    assert path.read_text() == "steps,return\n10,1.25\n20,\n30,-3000\n40,\nfinal,-1499.38\n"
    again = parity.read_curve(path)
    np.testing.assert_equal(again.returns, curve.returns)
    path.write_text("nonsense\n")
    with pytest.raises(ConfigError, match="no learning curve of 'spinup parity'"):
        parity.read_curve(path)


def test_tiers_and_peer_learn_alike() -> None:
    curves = [learn(Run(TINY, side, 1)) for side in ("sb3", "numpy")]
    assert curves[0].steps[-1] == 400
    np.testing.assert_allclose(curves[0].returns, curves[1].returns, rtol=1e-3)
    with pytest.raises(ConfigError, match="no episode ended in 3 steps"):
        learn(Run(TINY._replace(steps=3), "torch", 0))


def test_runs_are_resumed(tmp_path: Path) -> None:
    runs = [Run(TINY, "numpy", 0)]
    (made,) = run_all(runs, tmp_path)
    assert (made.run, made.error) == (runs[0], "")
    assert made.seconds > 0
    assert [path.name for path in tmp_path.rglob("*.*")] == ["numpy-seed0.csv"]
    (found,) = run_all(runs, tmp_path)
    assert found.seconds == 0
    assert found.final == made.final == parity.read_curve(runs[0].file(tmp_path)).final
    with pytest.raises(ConfigError, match="holds a run of 400 steps, not 500"):
        run_all([Run(TINY._replace(steps=500), "numpy", 0)], tmp_path)
    with pytest.raises(ConfigError, match="jobs must be greater than 0"):
        run_all(runs, tmp_path, jobs=0)


def test_a_run_that_fails_does_not_stop_others(tmp_path: Path) -> None:
    nowhere = TINY._replace(env="Nowhere-v0")
    failed, made = run_all([Run(nowhere, "torch", 0), Run(TINY, "numpy", 0)], tmp_path)
    assert "Nowhere" in failed.error
    assert np.isnan(failed.final)
    assert made.error == ""
    assert [path.name for path in tmp_path.rglob("*.csv")] == ["numpy-seed0.csv"]


def test_progress_names_what_runs(tmp_path: Path) -> None:
    seen: list[str] = []
    list(run_all([Run(TINY, "numpy", 0)], tmp_path, progress=seen.append))
    assert seen[0] == f"0 of 1: {Run(TINY, 'numpy', 0)}"


# --- the report ------------------------------------------------------------------------------------------------------


def test_intervals_overlap_or_do_not() -> None:
    low, high = Estimate.of(np.array([1.0, 2, 3, 4, 5])), Estimate.of(np.array([11.0, 12, 13, 14, 15]))
    assert low.value == 3
    assert low.overlaps(low)
    assert low.overlaps(high) is False
    assert Estimate.of(np.array([1.0])).overlaps(low) is None
    assert Estimate.of(np.array([2.0, 2.0])).interval == (2.0, 2.0)
    assert str(Estimate(1234.5, (-5.25, 2000.0))) == "1,234 [-5.25, 2,000]"


@pytest.fixture
def made_up(tmp_path: Path) -> Path:
    steps = np.arange(1, 41) * 5000
    for shift, side in enumerate(SIDES):
        for seed in range(5):
            returns = steps / 1000 + seed + (50 if side == "native" else 0.1 * shift)
            parity.write_curve(Run(CASES[0], side, seed).file(tmp_path), Curve(steps, returns, float(returns[-1])))
    return tmp_path


def test_the_report_compares_sides(made_up: Path) -> None:
    pytest.importorskip("matplotlib")
    (made_up / "notes.md").write_text("Native was made up.\n")
    text = report(made_up)
    assert (made_up / "README.md").read_text() == text
    assert "## PPO on CartPole-v1, 200,000 steps" in text
    assert "| sb3 | 5 | 202.0 [200.7, 203.7] | 202.0 [" in text
    rows = {line.split("|")[1].strip(): line for line in text.splitlines() if line.startswith("| ")}
    assert rows["numpy"].endswith("| final: yes, area: yes |")
    assert rows["native"].endswith("| final: no, area: no |")
    assert "* PPO on CartPole-v1, final: native is higher, 252.0 [" in text
    assert text.rstrip().endswith("Native was made up.")
    plot = made_up / "ppo" / "CartPole-v1" / "curves.svg"
    assert "native (5 seeds)" in plot.read_text()
    assert plot.stat().st_size < 100_000
    before = plot.read_bytes()
    report(made_up)
    assert plot.read_bytes() == before


def test_a_report_of_nothing_or_of_unlike_runs(made_up: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    with pytest.raises(ConfigError, match="there are no curves"):
        report(tmp_path_factory.mktemp("empty"))
    parity.write_curve(Run(CASES[0], "sb3", 5).file(made_up), binned([1.0], [9], 100))
    with pytest.raises(ConfigError, match="holds runs of different numbers of steps: 100, 200000"):
        report(made_up)


# --- the command -----------------------------------------------------------------------------------------------------


def test_the_command_makes_and_reports_curves(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    asked: list[Run] = []

    def outcomes(runs: list[Run], folder: Path, **_: Any) -> list[parity.Outcome]:
        asked.extend(runs)
        for run in runs[:2]:
            parity.write_curve(run.file(folder), binned([12.0], [9], run.case.steps))
        return [
            parity.Outcome(runs[0], 3.0, 12.0),
            parity.Outcome(runs[1], 0.0, 12.0),
            parity.Outcome(runs[2], 1.0, 0.0, "bad"),
        ]

    monkeypatch.setattr(parity, "run_all", outcomes)
    out = str(tmp_path / "zoo" / "parity")
    args = ["parity", "ppo", "CartPole-v1", "--seeds", "0,7", "--sides", "sb3,numpy", "--steps", "100", "--out", out]
    assert main(args) == 1
    assert [(run.seed, run.side, run.case.steps) for run in asked] == [
        (seed, side, 100) for seed in (0, 7) for side in ("sb3", "numpy")
    ]
    output = capsys.readouterr()
    assert "ppo CartPole-v1 sb3 seed 0: 12 at the end, in 3 s" in output.out
    assert "ppo CartPole-v1 numpy seed 0: 12 at the end, there already" in output.out
    assert output.err == "error: ppo CartPole-v1 sb3 seed 7: bad\n"
    assert main(["parity", "--report", "--out", out]) == 0
    assert "README.md" in capsys.readouterr().out
    assert "100 steps" in (tmp_path / "zoo" / "parity" / "README.md").read_text()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["ppo", "CartPole-v2"], "no curves are compared for 'ppo CartPole-v2' (did you mean 'ppo CartPole-v1'?); there are "),
        (["--seeds", "0-4"], "--seeds 0-4: expected numbers such as 0,1,2"),
        (["--sides", "sb3,numpi"], "--sides: no side is called 'numpi' (did you mean 'numpy'?); there are sb3, torch, "),
        (["--steps", "0"], "--steps must be greater than 0, not 0"),
        (["--jobs", "0"], "jobs must be greater than 0, not 0"),
        (["ppo", "--report"], "--report is of all cases, not of 'ppo' alone"),
        (["--report"], ": there are no curves; 'spinup parity --out "),
    ],
)
def test_the_command_refuses_in_one_line(
    args: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["parity", *args, "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("error: ")
    assert len(error.splitlines()) == 1
