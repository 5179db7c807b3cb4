import json
import re
import shlex
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch as th
from rich.console import Console
from typer.testing import CliRunner

from spinup_plugins import __version__, registry
from spinup_plugins.cli import app, main
from spinup_plugins.cli.console import assignments, number
from spinup_plugins.cli.list_ import taxonomy
from spinup_plugins.errors import ConfigError
from spinup_plugins.registry import AlgorithmSpec, make
from spinup_plugins.runs.config import file_layer, load
from spinup_plugins.runs.files import Status

TINY = ["-n", "64", "--eval-every", "32", "--eval-episodes", "1", "--final-episodes", "3"]
PPO = [f"--set={each}" for each in ("n_steps=16", "batch_size=16", "n_epochs=1", "policy_kwargs.net_arch=[8]")]
FAULTY = "faulty_envs:Faulty-v0"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    assert main(["train", "ppo", "CartPole-v1", *TINY, *PPO, "-f", str(folder)]) == 0
    return folder / "ppo" / "CartPole-v1_1"


def refused(capsys: pytest.CaptureFixture[str], *args: str, status: int = 2) -> str:
    """Run a command that must fail with one line; return that line."""
    assert main(args) == status
    output = capsys.readouterr()
    (line,) = [line for line in output.err.splitlines() if not line.startswith("training ")]
    assert output.out == ""
    assert line.startswith("error: ")
    return line


# --- spinup ----------------------------------------------------------------------------------------------------------


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"spinup-plugins {__version__}\n"


@pytest.mark.parametrize("args", [[], ["-h"], ["--help"]])
def test_help_lists_the_commands(capsys: pytest.CaptureFixture[str], args: list[str]) -> None:
    assert main(args) == 0
    listed = capsys.readouterr().out.split("Commands:")[1]
    assert [line.split()[0] for line in listed.strip().splitlines()] == [
        *("list", "describe", "train", "eval", "export", "bench", "report", "tune", "speed", "parity", "doctor", "zoo")
    ]


@pytest.mark.parametrize(
    "command", ["list", "describe", "train", "eval", "export", "bench", "report", "tune", "parity", "doctor"]
)
def test_every_option_tells_its_default(capsys: pytest.CaptureFixture[str], command: str) -> None:
    assert main([command, "--help"]) == 0
    listed = capsys.readouterr().out.split("Options:\n")[1]
    *options, help_ = re.split(r"\n(?=  -)", listed)
    assert help_.split()[0] == "-h,"
    assert len(options) >= 1
    for option in options:
        assert "default: " in " ".join(option.split()).lower(), option


def test_list_and_help_do_not_import_torch() -> None:
    code = "import sys; from spinup_plugins.cli import main; main(['list', '--peers']); main(['train', '-h'])"
    check = "; assert not {'torch', 'gymnasium', 'stable_baselines3'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code + check], check=True, capture_output=True)


def test_the_app_runs_by_itself() -> None:
    assert CliRunner().invoke(app, ["list"]).exit_code == 0


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["trian"], "No such command 'trian'. Did you mean 'train'?"),
        (["train", "--sed", "3"], "No such option: --sed"),
        (["train", "--seed", "x"], "Invalid value for '--seed'"),
        (["eval"], "Missing argument 'RUN'"),
        (["describe"], "Missing argument 'ALGO'"),
    ],
)
def test_wrong_usage_is_one_line(capsys: pytest.CaptureFixture[str], args: list[str], message: str) -> None:
    assert message in refused(capsys, *args)


# --- spinup list, spinup describe ------------------------------------------------------------------------------------


def test_the_taxonomy_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    output = capsys.readouterr().out
    order = [
        "model-free",
        "policy optimisation",
        "on-policy",
        "vpg",
        "trpo",
        "ppo",
        "hybrid",
        "off-policy",
        "ddpg",
        "td3",
        "sac",
    ]
    places = [re.search(rf"[─\n] ?{name}\b|^{name}", output).start() for name in order]  # type: ignore[union-attr]
    assert places == sorted(places)
    assert "sb3:" not in output
    assert max(map(len, output.splitlines())) <= 80
    assert "\x1b" not in output


def test_peers_are_listed_if_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "--peers"]) == 0
    output = capsys.readouterr().out
    assert {"Q-learning", "sb3:dqn", "sb3:a2c"} <= set(output.split())


def test_a_plugin_is_listed_where_it_belongs() -> None:
    spec = AlgorithmSpec(
        name="dyna", cls_path="x:Y", family="Q-learning", on_policy=False, learns=("Q", "model"), action_spaces=("Discrete",),
        paper="Sutton 1991", summary="plans with a learnt model", model_free=False,
    )  # fmt: skip
    registry.register(spec)
    try:
        console = Console(width=100)
        with console.capture() as capture:
            console.print(taxonomy())
    finally:
        registry.unregister("dyna")
    assert re.search(
        r"model-based\n.*Q-learning\n.*off-policy\n.*dyna  plans with a learnt model\n.*learns Q, model;", capture.get()
    )


def test_broken_plugins_are_reported_and_the_rest_listed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "errors", lambda: {"dist:x": "algorithm 'x' of dist cannot be loaded"})
    assert main(["list"]) == 0
    output = capsys.readouterr()
    assert "ppo" in output.out
    assert output.err == "warning: algorithm 'x' of dist cannot be loaded\n"


def test_an_algorithm_is_described(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["describe", "ppo"]) == 0
    output = capsys.readouterr().out
    assert "arXiv:1707.06347" in output
    assert re.search(r"batch_size +64 +null", output)
    assert re.search(r"max_grad_norm +0.5 +\.inf", output)
    assert "  clip_range = 0.2  float | schedule\n" in output
    assert "``" not in output


def test_the_doctor_tells_the_tier_and_why(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "ppo", "CartPole-v1"]) == 0
    tier = make("ppo", "CartPole-v1").engine
    output = capsys.readouterr().out
    assert f"ppo on CartPole-v1 runs on the {tier} tier" in output
    assert "stable-baselines3" in output
    assert main(["doctor", "sb3:a2c", "CartPole-v1"]) == 0
    assert "runs on the torch tier: not one of the six" in capsys.readouterr().out
    assert "doctor ppo: which environment?" in refused(capsys, "doctor", "ppo")


def test_an_algorithm_without_presets_is_described(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["describe", "sb3:a2c"]) == 0
    assert "presets" not in capsys.readouterr().out


def test_describing_an_unknown_algorithm_suggests_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert "unknown algorithm 'sacc' (did you mean 'sac'?)" in refused(capsys, "describe", "sacc")


def test_the_zoo_needs_an_entry_for_the_environment(capsys: pytest.CaptureFixture[str]) -> None:
    assert "has no preset 'zoo'" in refused(capsys, "describe", "sb3:a2c", "--env", "CartPole-v1")


# --- spinup train ----------------------------------------------------------------------------------------------------


def test_training_ends_with_a_summary(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "ppo", "CartPole-v1", *TINY, *PPO, "--seed", "7"]) == 0
    output = capsys.readouterr()
    title, *lines = output.out.splitlines()
    assert re.fullmatch(r"ppo on CartPole-v1, seed 7: 64 steps in \d+ s \([\d,]+ a second\)", title)
    labels = [line.split()[0] for line in lines]
    assert labels == ["return", "IQM", "best", "folder", "next"]
    assert lines[-2].split() == ["folder", "runs/ppo/CartPole-v1_1"]
    assert lines[-1].split(None, 1)[1] == "spinup eval runs/ppo/CartPole-v1_1"
    assert output.err == "training ppo on CartPole-v1 in runs/ppo/CartPole-v1_1\n"
    assert "\x1b" not in output.out


def test_the_command_and_every_option_reach_the_configuration(tmp_path: Path) -> None:
    args = [
        "train", "ppo", "CartPole-v1", *TINY, *PPO, "--seed", "3", "--n-envs", "2", "--vec-env", "dummy", "--no-normalize",
        "--env-kwargs", "sutton_barto_reward=true", "--policy", "MlpPolicy", "--set", "gamma=9e-1", "--preset", "default",
        "--set", "policy_kwargs.activation_fn=relu", "--threads", "1", "--device", "cpu", "--verbose", "0",
        "--callback", "faulty_envs:Stop:{n: 20}", "-f", "out",
    ]  # fmt: skip
    assert main(args) == 0
    config = load("out/ppo/CartPole-v1_1/config.yml")
    assert (config.n_timesteps, config.seed, config.n_envs, config.vec_env, config.normalize) == (64, 3, 2, "dummy", False)
    assert (config.env_kwargs, config.policy, config.preset) == ({"sutton_barto_reward": True}, "MlpPolicy", "default")
    assert (config.eval_every, config.eval_episodes, config.final_episodes, config.threads) == (32, 1, 3, 1)
    assert config.hyperparameters["policy_kwargs"] == {"net_arch": [8], "activation_fn": "relu"}
    assert (config.hyperparameters["gamma"], config.hyperparameters["device"]) == (0.9, "cpu")
    assert config.callbacks == ["faulty_envs:Stop:{n: 20}"]
    assert file_layer("out/ppo/CartPole-v1_1/config.yml").values["command"] == shlex.join(["spinup", *args])


def test_a_run_is_repeated_and_changed_from_its_configuration(run: Path) -> None:
    assert main(["train", "--config", str(run / "config.yml")]) == 0
    assert main(["train", "--config", str(run / "config.yml"), "--seed", "9", "--set", "gamma=0.5"]) == 0
    again, changed = (Path("runs/ppo") / f"CartPole-v1_{n}" for n in (1, 2))
    assert (again / "evaluation.json").read_text() == (run / "evaluation.json").read_text()
    assert (load(changed / "config.yml").seed, load(changed / "config.yml").hyperparameters["gamma"]) == (9, 0.5)


def test_a_progress_bar_is_drawn_in_a_terminal_only(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["train", "ppo", "CartPole-v1", *TINY, *PPO, "-P"]) == 0
    assert "64/64" not in capsys.readouterr().err
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert main(["train", "ppo", "CartPole-v1", *TINY, *PPO, "-P"]) == 0
    output = capsys.readouterr()
    assert re.search(r"64/64.*steps/s.*return", re.sub(r"\x1b\[[\d;?]*\w", "", output.err))
    assert "64/64" not in output.out


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["pppo", "CartPole-v1"], "unknown algorithm 'pppo' (did you mean 'ppo'?)"),
        (["ppo", "CartPol-v1"], "unknown environment 'CartPol-v1'"),
        (["ppo", "no_such_module:X-v0"], "no_such_module"),
        (["ppo"], "no env given"),
        ([], "no algo given"),
        (["ppo", "CartPole-v1", "-n", "0"], "--n-timesteps: n_timesteps=0 must be greater than or equal to 1"),
        (["ppo", "CartPole-v1", "-n", "-5"], "n_timesteps=-5 must be"),
        (["ppo", "CartPole-v1", "-n", "many"], "n_timesteps='many' must be a valid integer"),
        (["ppo", "CartPole-v1", "--eval-every", "-1"], "--eval-every: eval_every=-1 must be"),
        (["ppo", "CartPole-v1", "--n-envs", "0"], "--n-envs: n_envs=0 must be"),
        (["ppo", "CartPole-v1", "--vec-env", "subprocc"], "'gym-async' or 'envpool' (did you mean 'subproc'?)"),
        (["ppo", "CartPole-v1", "--wrap", "time_limt"], "--wrap: unknown wrapper 'time_limt' (did you mean 'time_limit'?)"),
        (["ppo", "CartPole-v1", "--wrap", "time_limit:{a: 1}"], "--wrap: wrapper 'time_limit': TimeLimit has no argument 'a'"),
        (["ppo", "CartPole-v1", "--wrap", "time_limit"], "--wrap: wrapper 'time_limit': TimeLimit needs 'max_episode_steps'"),
        (["ppo", "CartPole-v1", "--wrap", "rescale_action:{min_action: -1, max_action: 1}"], "around CartPole-v1: "),
        (
            ["ppo", "CartPole-v1", "--set", "lerning_rate=1"],
            "--set lerning_rate: PPO has no argument 'lerning_rate' (did you mean",
        ),
        (["ppo", "CartPole-v1", "--set", "gamma=high"], "--set gamma: gamma='high': expected float"),
        (["ppo", "CartPole-v1", "--set", "gamma"], "--set gamma: expected key=value"),
        (["ppo", "CartPole-v1", "--set", "gamma=["], "--set gamma:1: not valid YAML"),
        (["ppo", "CartPole-v1", "--set", "policy_kwargs.net_ach=[8]"], "--set policy_kwargs.net_ach: "),
        (["ppo", "CartPole-v1", "--env-kwargs", "suttn_barto_reward=1"], "no argument 'suttn_barto_reward'"),
        (["ppo", "CartPole-v1", "--preset", "zo"], "unknown preset 'zo' (did you mean 'zoo'?)"),
        (["ppo", "CartPole-v1", "--preset", "nowhere.yml"], "nowhere.yml: no such file"),
        (["ppo", "CartPole-v1", "--policy", "MlpPolice"], "no policy 'MlpPolice' (did you mean 'MlpPolicy'?)"),
        (["ppo", "CartPole-v1", "--callback", "nowhere:X"], "callback 'nowhere:X': cannot import"),
        (["ppo", "CartPole-v1", "--device", "cudda"], "device='cudda': torch has none like that (did you mean 'cuda'?)"),
        (["--config", "nowhere.yml"], "nowhere.yml: no such file"),
        (
            ["sac", "CartPole-v1"],
            "cannot train sac on CartPole-v1: sac cannot act on Discrete(2), only on Box; vpg, trpo, ppo can",
        ),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, args: list[str], message: str
) -> None:
    assert message in refused(capsys, "train", *args)
    assert list(tmp_path.iterdir()) == []


def test_an_unwritable_folder_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    Path("file").touch()
    assert "cannot create a run folder in 'file/ppo'" in refused(capsys, "train", "ppo", "CartPole-v1", "-f", "file")


@pytest.mark.parametrize(
    ("fault", "status", "message"),
    [
        (
            "raise",
            1,
            "error: ValueError: boom on two lines, in step() of environment 'Faulty-v0' (number 0), after 24 of 64 steps; the"
            " model so far is in runs/ppo/Faulty-v0_1",
        ),
        ("nan", 1, "returned NaN"),
        ("reset", 1, "RuntimeError: no reset today, in reset() of environment 'Faulty-v0' (number 0), after 29 of 64 steps"),
        ("leave", 1, "SystemExit: 0, in step() of environment 'Faulty-v0' (number 0), after 24 of 64 steps; the model so far"),
        ("old", 1, "error: environment 'Faulty-v0' (number 0) returned 4 values from step(), the interface of old Gym, where"),
        ("reward", 1, "error: environment 'Faulty-v0' (number 0) returned the reward None from step() where a number is"),
        ("bare", 1, "error: environment 'Faulty-v0' (number 0) returned one ndarray from reset() where two are expected (ob"),
        ("interrupt", 130, "error: interrupted after 24 of 64 steps; the model so far is in runs/ppo/Faulty-v0_1"),
    ],
)
def test_a_run_that_stops_tells_where_its_model_is(
    capsys: pytest.CaptureFixture[str], fault: str, status: int, message: str
) -> None:
    args = ["train", "ppo", FAULTY, *TINY, *PPO, "--env-kwargs", f"fault={fault}", "--eval-every", "0"]
    assert message in refused(capsys, *args, status=status)
    assert Path("runs/ppo/Faulty-v0_1/model.zip").is_file()
    assert main(["eval", "runs/ppo/Faulty-v0_1", "-n", "2", "--env", "CartPole-v1"]) == 2


def test_a_traceback_is_shown_if_asked_for() -> None:
    with pytest.raises(ConfigError, match="has no argument"):
        main(["train", "ppo", "CartPole-v1", "--set", "x=1", "--debug"])


def test_warnings_are_one_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert main(["train", "ppo", "CartPole-v0", *TINY, *PPO]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if "out of date" in line] == [
        "warning: The environment CartPole-v0 is out of date. You should consider upgrading to version `v1`."
    ]
    assert not any("\x1b" in line for line in lines)


# --- spinup eval -----------------------------------------------------------------------------------------------------


def test_evaluating_prints_the_statistics(capsys: pytest.CaptureFixture[str], run: Path) -> None:
    assert main(["eval", str(run), "-n", "4"]) == 0
    title, *lines = capsys.readouterr().out.splitlines()
    assert title == "ppo on CartPole-v1 after 64 steps, deterministic"
    assert re.fullmatch(r"  return +[\d.]+ ± [\d.]+  \(mean ± std of 4 episodes\)", lines[0])
    assert re.fullmatch(r"  IQM +[\d.]+  \(95 % interval [\d.]+ to [\d.]+\)", lines[1])


def test_equal_seeds_give_equal_numbers(capsys: pytest.CaptureFixture[str], run: Path) -> None:
    def returns(*options: str) -> list[float]:
        assert main(["eval", str(run), "-n", "3", "--json", *options]) == 0
        return list(json.loads(capsys.readouterr().out)["returns"])

    assert returns() == returns() == json.loads((run / "evaluation.json").read_text())["returns"]
    assert returns("--seed", "1") != returns()
    assert returns("--stochastic") == returns("--stochastic") != returns()
    assert len(returns("--best")) == 3


def test_successes_and_a_single_episode_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "ppo", FAULTY, *TINY, *PPO, "--final-episodes", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1:3] == ["  return   10 ± 0  (mean ± std of 1 episode)", "  success  100%"]


def test_an_unfinished_run_is_evaluated_with_a_warning(capsys: pytest.CaptureFixture[str], run: Path) -> None:
    finished = Status.read(run)
    Status("interrupted", 64, 1.0).write(run)
    try:
        assert main(["eval", str(run), "-n", "1"]) == 0
    finally:
        finished.write(run)
    assert capsys.readouterr().err == "warning: this run is interrupted, not finished\n"


def test_what_cannot_be_evaluated_is_one_line(capsys: pytest.CaptureFixture[str], run: Path, tmp_path: Path) -> None:
    assert "is not a run folder: it has no config.yml" in refused(capsys, "eval", str(tmp_path))
    assert "is not a run folder" in refused(capsys, "eval", "nowhere")
    assert "must be at least 1, not 0" in refused(capsys, "eval", str(run), "-n", "0")
    assert "cannot load" in refused(capsys, "eval", str(run), "--algo", "sac", "--env", "Pendulum-v1")


# --- shared ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("items", "expected"),
    [
        ([], {}),
        (["a=1", "a=2"], {"a": 2}),
        (["a=1e-3", "b=on", "c=", "d=x=y"], {"a": 1e-3, "b": "on", "c": None, "d": "x=y"}),
        (["k.a=[64, 64]", "k.b.c=true"], {"k": {"a": [64, 64], "b": {"c": True}}}),
    ],
)
def test_assignments(items: list[str], expected: dict[str, Any]) -> None:
    assert assignments("--set", items) == expected


@pytest.mark.parametrize("items", [["a"], ["=1"], ["a.=1"], [".a=1"], ["a=1", "a.b=2"]])
def test_bad_assignments(items: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"^--set a?"):
        assignments("--set", items)


@pytest.mark.parametrize(
    ("value", "text"), [(0.0, "0"), (0.00312, "0.00312"), (-12.345, "-12.3"), (475.04, "475.0"), (-12345.6, "-12,345.6")]
)
def test_numbers_have_the_digits_that_matter(value: float, text: str) -> None:
    assert number(value) == text


@pytest.mark.filterwarnings("always:device")
@pytest.mark.skipif(th.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "ppo", "CartPole-v1", *TINY, *PPO, "--device", "cuda"]) == 0
    assert "warning: device 'cuda' is not available, training on cpu\n" in capsys.readouterr().err
