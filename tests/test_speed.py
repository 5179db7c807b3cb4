"""The benchmark of learning, run with tiny budgets; nothing here asserts that anything is fast."""

import json
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from rich.console import Console
from rich.table import Table

from spinup_plugins.algorithms import on_policy
from spinup_plugins.cli import main
from spinup_plugins.cli.speed import learning_table, phases_table, predict_table, startup_table, sweep_table
from spinup_plugins.errors import ConfigError, UnknownNameError
from spinup_plugins.registry import get_class
from spinup_plugins.runs import speed
from spinup_plugins.runs.speed import (
    CASES,
    PHASES,
    PREDICT_ASKED,
    Case,
    Floor,
    Measured,
    Prediction,
    Results,
    Startup,
    SweepPoint,
    case,
    machine,
    measure,
    measure_predict,
    measure_startup,
    sweep,
)
from spinup_plugins.runs.stepping import Ratio

#: what issue 4 asks for: algorithm, environment, copies, threads, least ratio on the numpy and the native tier
ASKED = """
ppo HalfCheetah-v5 1 1 6.5 11
ppo HalfCheetah-v5 8 1 5 6.5
ppo CartPole-v1 1 1 11 28
ppo CartPole-v1 8 1 9 16
trpo HalfCheetah-v5 1 1 5 8
trpo HalfCheetah-v5 8 1 3.3 5
trpo CartPole-v1 1 1 8 16
trpo CartPole-v1 8 1 4.2 8
vpg HalfCheetah-v5 1 1 2.5 4
sac HalfCheetah-v5 1 1 1.8 2.4
sac HalfCheetah-v5 1 2 2.2 2.9
td3 HalfCheetah-v5 1 1 1.8 2
td3 HalfCheetah-v5 1 2 2 2.7
ddpg HalfCheetah-v5 1 1 1.8 2
ddpg HalfCheetah-v5 1 2 2 2.7
sac Pendulum-v1 1 1 4 7
td3 Pendulum-v1 1 1 4 7
ddpg Pendulum-v1 1 1 4 7
"""

ON = Case("ppo", "CartPole-v1", 2, kwargs={"n_steps": 16, "batch_size": 32, "n_epochs": 1}, asked={"numpy": 1e9})
OFF = Case("sac", "Pendulum-v1", kwargs={"learning_starts": 8, "batch_size": 4, "policy_kwargs": {"net_arch": [8]}})
FLOOR = Floor(1e-5, 3e-5)
SHORT: dict[str, Any] = {"rounds": 2, "seconds": 0.001}


def made_up(what: Case = ON, floor: Floor | None = FLOOR) -> Measured:
    sides = list(dict.fromkeys((what.peer, "torch", "numpy", "native")))
    seconds = {side: [1e-3 / (i + 1), 2e-3 / (i + 1)] for i, side in enumerate(sides)}
    return Measured(what, seconds, {side: dict.fromkeys(PHASES, 1e-4) for side in sides}, floor, 0.5)


def printed(table: Table) -> str:
    console = Console(width=80, file=StringIO())
    console.print(table)
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


# --- cases -----------------------------------------------------------------------------------------------------------


def test_the_table_is_the_issues() -> None:
    asked = {tuple(line.split()) for line in ASKED.strip().splitlines()}
    ours = {
        (c.algo, c.env, str(c.n_envs), str(c.threads), *(f"{c.asked[tier]:g}" for tier in ("numpy", "native")))
        for c in CASES
        if "native" in c.asked
    }
    assert ours == asked
    assert PREDICT_ASKED == {"numpy": 8, "native": 10}
    nets = {(c.algo, c.env): c.kwargs.get("policy_kwargs", {}).get("net_arch") for c in CASES}
    assert nets["td3", "HalfCheetah-v5"] == nets["ddpg", "HalfCheetah-v5"] == [256, 256]
    assert {nets[algo, "Pendulum-v1"] == [64, 64] for algo in ("sac", "td3", "ddpg")} == {True}
    assert [c.peer for c in CASES if c.algo == "vpg"] == ["torch"]


def test_a_case_of_the_table_or_one_like_it() -> None:
    assert case("ppo", "CartPole-v1", 8) in CASES
    wide = case("td3", "HalfCheetah-v5", width=[300], batch_size=9, others={"gamma": 0.9, "policy_kwargs": {"n_critics": 1}})
    assert wide.kwargs == {"policy_kwargs": {"net_arch": [300], "n_critics": 1}, "batch_size": 9, "gamma": 0.9}
    assert wide.asked == {}
    assert case("vpg", "CartPole-v1", 2, 2) == Case("vpg", "CartPole-v1", 2, 2, {})
    assert str(wide._replace(threads=2)) == "td3 HalfCheetah-v5 x 1, 2 threads"
    assert wide.settings == "net_arch=[300], n_critics=1, gamma=0.9, batch_size=9"


# --- measurements ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", [ON, OFF, Case("vpg", "CartPole-v1", kwargs={"n_steps": 32, "train_v_iters": 2})])
def test_sides_learn_in_turns(what: Case) -> None:
    threads, rows_add = th.get_num_threads(), on_policy.Rows.add
    told: list[str] = []
    result = measure(what, ["torch", "numpy"], **SHORT, progress=told.append)
    assert list(result.seconds) == ["torch", "numpy"] if what.algo == "vpg" else ["sb3", "torch", "numpy"]
    assert result.tiers == [side for side in result.seconds if side != what.peer]
    for side, seconds in result.seconds.items():
        assert len(seconds) == 2
        assert min(seconds) > 0
        assert list(result.phases[side]) == list(PHASES)
        assert min(result.phases[side].values()) > 0, (side, result.phases[side])
    assert result.floor is not None
    assert min(result.floor) > 0
    assert result.limit is not None
    turns = [line.split(": ")[1].split(",")[0] for line in told if "round" in line]
    sides = list(result.seconds)
    assert turns == [*sides, *sides[1:], sides[0]]
    assert th.get_num_threads() == threads
    assert on_policy.Rows.add is rows_add


def test_images_have_no_floor_and_their_own_tier() -> None:
    kwargs = {
        "n_steps": 2,
        "batch_size": 2,
        "n_epochs": 1,
        "policy_kwargs": {"features_extractor_kwargs": {"features_dim": 2}},
    }
    result = measure(Case("ppo", "spinup/MovingImage-v0", kwargs=kwargs), rounds=1, seconds=1e-4)
    assert list(result.seconds) == ["sb3", "torch"]
    assert (result.floor, result.limit) == (None, None)


def test_products_by_hand() -> None:
    model = speed._build(ON, "sb3")
    found = speed._products(model)
    assert found is not None
    flops = sum(count * np.prod(key[1:]) for key, count in found.items())
    forward = (4 * 64 + 64 * 64) * 2 + 64 * 2 + 64  # multiplications per row, actor and critic
    backward = forward + 64 * 64 * 2 + 64 * 2 + 64  # of inputs not in the first layer
    assert flops == pytest.approx(forward + (forward + backward))
    speed._closed(model)()


def test_off_policy_products_by_hand() -> None:
    model = speed._build(OFF, "sb3")
    found = speed._products(model)
    assert found is not None
    flops = sum(count * np.prod(key[1:]) for key, count in found.items())
    actor, critic = 3 * 8 + 8 * 2, 4 * 8 + 8
    act = actor
    target = 4 * (actor + 2 * critic)
    critics = 4 * 2 * (critic + critic + 8)
    ascent = 4 * (actor + actor + 8 * 2 + 2 * critic + critic)  # back through one critic per row
    assert flops == pytest.approx(act + target + critics + ascent)
    speed._closed(model)()


def test_predict_is_measured_for_one_and_several() -> None:
    results = measure_predict("Pendulum-v1", ["ppo"], ["numpy"], batches=[1, 3], rounds=1, seconds=1e-4)
    assert [(each.batch, list(each.seconds)) for each in results] == [(1, ["sb3", "numpy"]), (3, ["sb3", "numpy"])]
    assert results[0].asked == PREDICT_ASKED
    assert results[1].asked == {}


def test_first_use_is_measured_in_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, ...]] = []

    def child(arguments: list[str]) -> str:
        calls.append((arguments[0], *json.loads(arguments[2])[:3]))
        compile(arguments[1], "startup", "exec")
        return "[1.0, 2.0]" if "spinup" in arguments[2] else "[2.0, 8.0]"

    monkeypatch.setattr(speed, "_child", child)
    (result,) = measure_startup([("trpo", "CartPole-v1", {})], rounds=1, steps=3)
    assert set(calls) == {("-c", module, "TRPO", "CartPole-v1") for module in ("spinup_plugins", "sb3_contrib")}
    assert result.imports == {"sb3": [2.0], "ours": [1.0]}
    assert (result.import_ratio, result.first_ratio) == (Ratio(2, 2, 2), Ratio(4, 4, 4))


def test_a_failing_process_says_why() -> None:
    with pytest.raises(ConfigError, match=r"^of no use$"):
        speed._child(["-c", "import sys; sys.exit('of no use')"])


def test_a_sweep_measures_speed_and_memory(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def child(arguments: list[str], threads: int) -> str:
        speed._memory(arguments[2])
        return capsys.readouterr().out

    monkeypatch.setattr(speed, "_child", child)
    points = list(sweep(ON, "batch_size", ["numpy"], values=[8, 64], **SHORT))
    assert [(point.value, point.measured.case.kwargs["n_steps"]) for point in points] == [(8, 16), (64, 32)]
    for point in points:
        assert point.measured.case.kwargs["batch_size"] == point.value
        assert set(point.memory) == {"sb3", "numpy"}
        assert min(point.memory[side] - point.before[side] for side in point.memory) >= 0
    assert "batch_size" in printed(sweep_table(points))


@pytest.mark.parametrize(
    ("over", "value", "expected"),
    [
        ("n_envs", 4, Case("ppo", "CartPole-v1", 4, kwargs={**ON.kwargs, "n_steps": 8})),
        ("width", 5, ON._replace(kwargs={**ON.kwargs, "policy_kwargs": {"net_arch": [5, 5]}}, asked={})),
        ("batch_size", 32, ON._replace(asked={})),
    ],
)
def test_points_of_a_sweep(over: str, value: int, expected: Case) -> None:
    assert speed._point(ON, over, value) == expected


def test_the_machine_is_named() -> None:
    assert set(machine()) == {"machine", "system", "versions"}
    for name in ("Python", "torch", "numpy", "stable-baselines3", "sb3-contrib", "gymnasium", "spinup-plugins"):
        assert name in machine()["versions"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rounds": 0}, "rounds must be greater than 0, not 0"),
        ({"seconds": 0.0}, "seconds must be greater than 0, not 0.0"),
        ({"what": ON._replace(n_envs=0)}, "n_envs must be greater than 0, not 0"),
        ({"engines": ["torch", "numpie"]}, "no engine is called 'numpie'"),
        ({"what": ON._replace(kwargs={"n_stops": 1})}, "PPO has no argument 'n_stops' .did you mean 'n_steps'"),
        ({"what": ON._replace(env="CartPole-v99")}, "unknown environment 'CartPole-v99'"),
    ],
)
def test_measuring_checks_its_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises((ConfigError, UnknownNameError), match=message):
        measure(**{"what": ON, "engines": ["torch"], **SHORT, **arguments})


def test_what_ours_alone_has_is_left_out_for_the_peer() -> None:
    model = speed._build(Case("trpo", "CartPole-v1", kwargs={"kl_reduction": "mean"}), "sb3")
    assert type(model) is get_class("sb3:trpo")
    speed._closed(model)()


# --- results ---------------------------------------------------------------------------------------------------------


def results() -> Results:
    kept = Results({"machine": "a box, 2 cores", "versions": "numpy 2"})
    for what in CASES:
        kept.add(made_up(what))
    kept.add(Prediction("ppo", "CartPole-v1", 1, {"sb3": [1e-4], "numpy": [1e-5], "native": [5e-5]}))
    kept.add(Startup("sac", "Pendulum-v1", {"sb3": [1.0], "ours": [2.0]}, {"sb3": [2.0], "ours": [1.0]}))
    for value in (64, 1, 8):
        point = made_up(ON._replace(n_envs=value))
        memory = dict.fromkeys(point.seconds, 9_000_000)
        kept.add(SweepPoint("n_envs", value, point, memory, dict.fromkeys(memory, 2_000_000)))
    return kept


def test_results_are_kept_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, kept = tmp_path / "speed.json", results()
    kept.write(file)
    monkeypatch.setattr(speed, "_machine", lambda: kept.machine)
    again = Results.read(file)
    assert again.markdown() == kept.markdown()
    assert [each.seconds for each in again.cases] == [each.seconds for each in kept.cases]
    again.add(made_up(CASES[3], floor=None))
    assert [each.floor is None for each in again.cases] == [i == 3 for i in range(len(CASES))]
    assert [point.value for point in again.sweeps()["ppo", "CartPole-v1", "n_envs", 1]] == [1, 8, 64]
    monkeypatch.setattr(speed, "_machine", lambda: {"machine": "another"})
    with pytest.raises(ConfigError, match="is of another machine, a box, 2 cores: choose another file"):
        Results.read(file)
    file.write_text("[]")
    with pytest.raises(ConfigError, match="is no file of 'spinup speed' to add to"):
        Results.read(file)
    assert Results.read(tmp_path / "new.json").cases == []


def test_the_markdown_tells_everything() -> None:
    text = results().markdown(["ratios.svg"])
    row = (
        "| PPO | HalfCheetah-v5 | 1 | 1 |  | 667 | 2.00 (2.00-2.00) | 3.00 (3.00-3.00) | 6.5 | 4.00 (4.00-4.00) | 11 | 37.5 |"
    )
    for expected in (
        "* machine: a box, 2 cores",
        row,
        "| TD3 | HalfCheetah-v5 | 1 | 1 | net_arch=[256, 256] |",
        "## `predict`",
        "| SAC | Pendulum-v1 | 1.00 | 2.00 | 0.50 (0.50-0.50) |",
        "| ppo CartPole-v1 x 8 | sb3 | 100 |",
        "## PPO on CartPole-v1 against n_envs",
        "| 64 | native | 2,667 | 4.00 (4.00-4.00) | 9 | 7 |",
        "* ppo CartPole-v1 x 1: native 4.00 (4.00-4.00), asked 28",
        "* import, sac Pendulum-v1: 0.50 (0.50-0.50)",
        "* predict, ppo CartPole-v1, 1: native 2.00 (2.00-2.00), asked 10",
        "![ratios](ratios.svg)",
    ):
        assert expected in text
    for table in text.split("\n\n"):
        if table.startswith("|"):
            assert len({line.count("|") for line in table.splitlines()}) == 1


def test_plots_are_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    kept = results()
    kept.plot(tmp_path / "ratios.svg")
    kept.plot(tmp_path / "sweep.png", ("ppo", "CartPole-v1", "n_envs", 1))
    assert "HalfCheetah-v5" in (tmp_path / "ratios.svg").read_text()
    assert (tmp_path / "sweep.png").read_bytes()[1:4] == b"PNG"
    with pytest.raises(ConfigError, match="there are no ratios to draw"):
        Results().plot(tmp_path / "none.svg")
    with pytest.raises(ConfigError, match=r"--plot .*: Format 'xyz' is not supported"):
        kept.plot(tmp_path / "ratios.xyz")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ratios.svg", "sweep.png"]


def test_tables_fit_80_columns() -> None:
    kept = results()
    tables = [learning_table(kept.cases), phases_table(kept.cases), predict_table(kept.predictions)]
    for text in map(printed, [*tables, startup_table(kept.startups), sweep_table(kept.points)]):
        assert "…" not in text
    lines = printed(tables[0]).splitlines()
    assert lines[0].split() == ["algo", "environment", "N", "T", "engine", "peer's", "ours", "ratio", "asked", "limit"]
    assert lines[2].split() == ["numpy", "1,000", "3,000", "3.00", "(3.00-3.00)", "6.5"]


# --- the command -----------------------------------------------------------------------------------------------------

LEARN = ["--rounds", "1", "--seconds", "0.001", "--set", "n_steps=32", "--set", "n_epochs=1", "--batch-size", "32"]


def test_the_command_measures_learning(tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setenv("COLUMNS", "80")
    file, markdown, plot = tmp_path / "s.json", tmp_path / "README.md", tmp_path / "p.svg"
    outputs = ["--json", str(file), "--markdown", str(markdown), "--plot", str(plot)]
    args = ["speed", "ppo", "CartPole-v1", "--engine", "numpy", "--n-envs", "1,2", "--width", "8", *LEARN]
    assert main([*args, *outputs]) == 0
    output = capsys.readouterr()
    assert output.err == ""
    for text in ("CartPole-v1", "numpy", "peer's", "floor"):
        assert text in output.out
    assert "…" not in output.out
    assert [each["case"]["n_envs"] for each in json.loads(file.read_text())["cases"]] == [1, 2]
    assert json.loads(file.read_text())["cases"][0]["case"]["kwargs"]["policy_kwargs"] == {"net_arch": [8, 8]}
    assert "![p](p.svg)" in markdown.read_text()
    assert main(["speed", "predict", "CartPole-v1", "--rounds", "1", "--seconds", "0.0001", *outputs[:2]]) == 2  # SAC's
    assert "sac cannot act on Discrete(2)" in capsys.readouterr().err
    args = ["speed", "predict", "Pendulum-v1", "--engine", "numpy", "--rounds", "1", "--seconds", "0.0001"]
    assert main([*args, *outputs[:4]]) == 0
    assert "µs per predict()" in capsys.readouterr().out
    for heading in ("## Learning", "## `predict`"):
        assert heading in markdown.read_text()


def test_the_command_sweeps(tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(speed, "_child", lambda *_: "[1000000, 3000000]")
    monkeypatch.setitem(speed.SWEEPS, "width", (4, 8))
    plot = tmp_path / "p.svg"
    args = ["speed", "ppo", "CartPole-v1", "--engine", "numpy", "--sweep", "width", "--plot", str(plot), *LEARN]
    assert main(args) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:5]] == ["4", "numpy", "8", "numpy"]
    assert "peak memory, MB" in plot.read_text()


def test_the_whole_table(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(speed, "measure", lambda what, engines, **_: made_up(what))
    monkeypatch.setattr(speed, "measure_predict", lambda *_, **__: results().predictions)
    monkeypatch.setattr(speed, "measure_startup", lambda **_: results().startups)
    file = tmp_path / "s.json"
    assert main(["speed", "--json", str(file)]) == 0
    data = json.loads(file.read_text())
    assert [len(data[key]) for key in ("cases", "predict", "startup")] == [len(CASES), 1, 1]
    assert main(["speed", "td3", "--json", str(tmp_path / "td3.json")]) == 0
    assert len(json.loads((tmp_path / "td3.json").read_text())["cases"]) == 3
    assert "building, first steps" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["pop"], "nothing is called 'pop' (did you mean 'ppo'?); there is stepping, predict, startup, vpg, "),
        (["ppo", "CartPole-v1", "--n-envs", "1,two"], "--n-envs 1,two: expected numbers such as 1,4,16"),
        (["ppo", "CartPole-v1", "--width", "wide"], "--width wide: expected numbers such as 1,4,16"),
        (["ppo", "CartPole-v1", "--set", "gamma"], "--set gamma: expected key=value"),
        (["ppo", "CartPole-v1", "--set", "gama=1"], "PPO has no argument 'gama' (did you mean 'gamma'?)"),
        (["ppo", "CartPole-v1", "--engine", "fast"], "no engine is called 'fast'; there are torch, numpy, native"),
        (["ppo", "CartPole-v1", "--sweep", "depth"], "nothing to sweep over is called 'depth'; there are n_envs, "),
        (["ppo", "--sweep", "width"], "--sweep is of one algorithm on one environment: name both"),
        (["ppo", "--n-envs", "7"], "the table has no such case of ppo: name an environment"),
        (["--width", "64"], "--width is not for the whole table: name an algorithm"),
        (["stepping", "--engine", "numpy"], "--engine is not for stepping"),
        (["predict", "--n-envs", "2"], "--n-envs is not for predict"),
        (["sac", "CartPole-v1"], "sac cannot act on Discrete(2)"),
        (["ppo", "CartPole-v1", "--rounds", "0"], "rounds must be greater than 0, not 0"),
        (["ppo", "CartPole-v1", "--markdown", "/nowhere/x.md"], "--markdown /nowhere/x.md: there is no folder '/nowhere'"),
    ],
)
def test_the_command_refuses_in_one_line(args: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["speed", *args]) == 2
    error = capsys.readouterr().err
    assert message in error.splitlines()[0]
    assert error.startswith("error: ")
    assert len(error.splitlines()) == 1


def test_plots_need_matplotlib(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def missing(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr(speed, "import_module", missing)
    assert main(["speed", "ppo", "CartPole-v1", "--plot", str(tmp_path / "p.svg")]) == 2
    assert capsys.readouterr().err == 'error: --plot needs matplotlib: pip install "spinup-plugins[plot]"\n'
