"""Studies: they repeat exactly, prune, fail, start from presets, take several objectives and environments, are confirmed."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState

from spinup_plugins.errors import ConfigError, EnvError, UnknownNameError
from spinup_plugins.registry import get_spec, make, preset_values
from spinup_plugins.runs.config import Layer, compose
from spinup_plugins.runs.statistics import probability_of_improvement
from spinup_plugins.tuning import confirm, objective
from spinup_plugins.tuning import study as module
from spinup_plugins.tuning import workers as workers_module
from spinup_plugins.tuning.export import export, table
from spinup_plugins.tuning.objective import measure, normalised, score
from spinup_plugins.tuning.slots import slots_of
from spinup_plugins.tuning.study import PRUNERS, SAMPLERS, Definition, create, define, derive, open_storage, open_study
from spinup_plugins.tuning.workers import Orders, StudyError, work

ENV = "tuning_envs:Target-v0"
SPACE = """
n_steps: {power_of_two: [16, 32]}
batch_size: {power_of_two: [8, 32], at_most: [n_steps, n_envs]}
gamma: {float: [0.01, 0.1], log: true, one_minus: true}
learning_rate:
  categorical:
    constant: {float: [1e-4, 1e-2], log: true}
    linear: {schedule: linear, initial: {float: [1e-4, 1e-2], log: true}}
n_epochs: {int: [1, 2]}
"""
TINY: dict[str, Any] = {"n_steps": 16, "batch_size": 16, "n_epochs": 1, "policy_kwargs": {"net_arch": [4]}}


@pytest.fixture(autouse=True)
def no_waiting_for_disks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.os, "fsync", lambda _: None)


def definition(
    envs: tuple[str, ...] = (ENV,), env_kwargs: dict[str, Any] | None = None, values: dict[str, Any] = TINY, **settings: Any
) -> Definition:
    import tempfile

    layer = {"n_timesteps": 64, "eval_every": 16, "eval_episodes": 1, "final_episodes": 1, "hyperparameters": values}
    if env_kwargs:
        layer["env_kwargs"] = env_kwargs
    small = {"seeds_per_trial": 1, "startup": 2, "confirm_seeds": 0, "pruner": "none"}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "space.yml"
        file.write_text(SPACE)
        chosen = {"space": str(file)} | small | settings
        return define("ppo", envs, layers=[Layer(layer, ".".join)], **chosen)


def done(where: str, what: Definition, until: int, *, name: str = "x") -> optuna.Study:
    create(open_storage(where), name, what, until=until)
    work(Orders(where, name, until))
    return open_study(open_storage(where), name)


def told(study: optuna.Study) -> list[Any]:
    return [(s.trial.state, s.trial.values, s.trial.params, s.trial.intermediate_values) for s in slots_of(study.trials)]


def test_a_definition_keeps_what_is_infinite() -> None:
    what = define("vpg", ["CartPole-v1"], layers=[Layer({"n_timesteps": 100, "eval_every": 50}, ".".join)])
    for there in (Definition.model_validate_json(what.model_dump_json()), Definition(**what.model_dump(mode="json"))):
        assert there == what
        assert there.given("CartPole-v1")["max_grad_norm"] == np.inf
    assert what.action_spaces == {"CartPole-v1": "Discrete"}


# --- seeds -----------------------------------------------------------------------------------------------------------


def test_seeds_derive_from_one() -> None:
    assert derive(3, "trials", 2) == derive(3, "trials", 4)[:2]
    assert derive(3, "trials", 2) != derive(4, "trials", 2)
    what = definition(seed=3, seeds_per_trial=3, race_seeds=4, confirm_seeds=5)
    assert len({*what.seeds, *what.race_on, *what.held_out}) == 3 + 4 + 5
    assert (len(what.seeds), len(what.race_on), len(what.held_out)) == (3, 4, 5)


def test_two_runs_of_a_study_are_equal_and_so_is_one_in_two_parts(tmp_path: Path) -> None:
    what = definition(pruner="median", seed=1)
    first = done(str(tmp_path / "a"), what, 7)
    assert told(first) == told(done(str(tmp_path / "b"), what, 7))
    done(str(tmp_path / "c"), what, 4)
    assert told(first) == told(done(str(tmp_path / "c"), what, 7)), "taken up again"
    params = [json.dumps(slot.trial.params) for slot in slots_of(first.trials)]
    assert len(set(params)) == len(params)
    assert told(first) != told(done(str(tmp_path / "d"), definition(pruner="median", seed=2), 7))


def test_a_trial_that_is_given_back_does_not_change_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    what = definition()
    first = done(str(tmp_path / "a"), what, 5)
    report = optuna.Trial.report

    def stop(self: optuna.Trial, value: float, step: int) -> None:
        if self.number == 2:
            raise KeyboardInterrupt
        report(self, value, step)

    with monkeypatch.context() as patch:
        patch.setattr(optuna.Trial, "report", stop)
        with pytest.raises(KeyboardInterrupt):
            done(str(tmp_path / "b"), what, 5)
    again = done(str(tmp_path / "b"), what, 5)
    assert len(again.trials) == 6
    assert told(first) == told(again)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_samplers(tmp_path: Path, sampler: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if sampler == "cmaes":
        pytest.importorskip("cmaes")
    monkeypatch.setattr(workers_module, "train_once", pretended)
    what = definition(sampler=sampler, startup=3)
    first = done(str(tmp_path / "a"), what, 6)
    assert [slot.trial.state.name for slot in slots_of(first.trials)] == ["COMPLETE"] * 6
    assert len({json.dumps(trial.params) for trial in first.trials}) == 6
    assert told(first) == told(done(str(tmp_path / "b"), what, 6))


def pretended(config: Any, watch: Any = lambda step, returns: None) -> objective.Curve:
    """A training that takes no time: the better, the nearer gamma is to 0.95 and the more epochs it has."""
    worth = -abs(config.hyperparameters["gamma"] - 0.95) + 0.01 * config.hyperparameters["n_epochs"]
    steps = range(config.eval_every, config.n_timesteps + 1, config.eval_every)
    returns: list[list[float]] = []
    for step in steps:
        returns.append([worth * step + 1e-3 * (config.seed % 7), worth * step])
        watch(step, returns)
    return objective.Curve(tuple(steps), tuple(map(tuple, returns)), (worth,), 1.0)


@pytest.mark.parametrize("pruner", PRUNERS)
def test_pruners_stop_bad_trials_and_no_good_ones(tmp_path: Path, pruner: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers_module, "train_once", pretended)
    what = definition(pruner=pruner, seeds_per_trial=3, values={**TINY, "n_epochs": 2}, sampler="random")
    study = done(str(tmp_path / "a"), what, 16)
    pruned = [trial for trial in study.trials if trial.state == TrialState.PRUNED]
    assert bool(pruned) == (pruner != "none")
    best = max(study.trials, key=lambda trial: -abs(0.05 - trial.params["1 - gamma"]) + 0.01 * trial.params["n_epochs"])
    assert best.state == TrialState.COMPLETE or pruner in ("halving", "hyperband"), "those compare few trials at first"
    assert all(trial.last_step < what.timesteps for trial in pruned)
    assert {step % 16 for trial in study.trials for step in trial.intermediate_values} == {0}


def test_failures_are_recorded_and_shown_to_the_sampler_as_the_worst(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def sometimes(config: Any, watch: Any) -> objective.Curve:
        if config.hyperparameters["n_epochs"] == 2 and config.hyperparameters["n_steps"] == 16:
            raise ValueError("boom\non two lines")
        return pretended(config, watch)

    monkeypatch.setattr(workers_module, "train_once", sometimes)
    study = done(str(tmp_path / "a"), definition(sampler="random"), 12)
    failed = [trial for trial in study.trials if trial.state == TrialState.FAIL]
    assert failed
    assert all(trial.user_attrs["error"] == "ValueError: boom on two lines" for trial in failed)
    assert all("in sometimes" in trial.user_attrs["traceback"] for trial in failed)
    assert not any(trial.state == TrialState.PRUNED for trial in study.trials)
    seen = module._Seen(study)._get_trials(deepcopy=False)
    worst = min(trial.value for trial in study.trials if trial.value is not None)
    assert {seen[trial.number].value for trial in failed} == {worst}
    assert seen[failed[0].number].params == failed[0].params


def test_three_trials_that_fail_alike_stop_the_study(tmp_path: Path) -> None:
    what = definition(env_kwargs={"fault": 30})
    with pytest.raises(StudyError, match="the first 3 trials failed alike: ValueError: worn out after 30 steps"):
        done(str(tmp_path / "a"), what, 9)
    study = open_study(open_storage(str(tmp_path / "a")), "x")
    assert len(study.trials) == 3
    assert {trial.params["log2 n_steps"] for trial in study.trials} != set(), "with parameters, for a look at them"


# --- scores ----------------------------------------------------------------------------------------------------------


def test_scores() -> None:
    returns = [[0.0, 0.0], [1.0, 1.0], [5.0, 3.0], [2.0, 100.0]]
    assert score(returns, "last", 0.25) == 51.0
    assert score(returns, "last", 0.5) == 4.0, "the middle half of 2, 3, 5, 100"
    assert score([[float(i)] for i in range(25)], "last", 0.28) == 21.0, "7 of 25: the middle of 18 to 24"
    assert score(returns, "auc", 0.25) == (0 + 1 + 4 + 51) / 4
    assert score(returns, "max", 0.25) == 51
    with pytest.raises(EnvError, match="not finite"):
        score([[np.nan]], "max", 1.0)
    assert normalised(5.0, (0.0, 10.0)) == 0.5
    assert measure([[1.0, 2.0], [4.0, 5.0]], [2.0, 4.0]) == (3.0, 3.0, 1.5, 1.5)


def test_a_trial_is_a_run_of_spinup_train(tmp_path: Path) -> None:
    from spinup_plugins.runs.runner import prepare

    study = done(str(tmp_path / "a"), definition(seeds_per_trial=2), 3)
    what = module.definition_of(study)
    trial = study.trials[-1]
    kept = trial.user_attrs["runs"][1]
    values = trial.user_attrs["values"][ENV]
    run = prepare(objective.configured(what.bases[ENV], values, seed=what.seeds[1]), tmp_path / "runs")
    run.learn()
    means = [np.mean(each) for each in run.evaluations.evaluations_results]
    assert kept["returns"] == pytest.approx(means[:4], rel=1e-5)
    assert trial.value == pytest.approx(np.mean([each["score"] for each in trial.user_attrs["runs"]]))


def test_nothing_beyond_the_budget_counts(tmp_path: Path) -> None:
    what = definition(values={**TINY, "n_steps": 48})
    curve = objective.train_once(objective.configured(what.bases[ENV], {}, seed=0))
    assert curve.timesteps == (16, 32, 48, 64)
    assert len(curve.returns) == 4


# --- starts, objectives, environments ---------------------------------------------------------------------------------


def test_starts_are_trained_with_their_own_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers_module, "train_once", pretended)
    file = tmp_path / "start.yml"
    file.write_text("gamma: 0.5\nn_steps: 24\n")
    study = done(str(tmp_path / "a"), definition(starts=["default", str(file)]), 3)
    default, mine, _ = study.trials
    assert (default.user_attrs["start"], default.user_attrs["values"]) == ("default", {ENV: {}})
    assert mine.user_attrs["values"] == {ENV: {"gamma": 0.5, "n_steps": 24}}
    assert mine.value is not None
    assert mine.value < -20, "with gamma 0.5"
    assert mine.params["1 - gamma"] == 0.1, "the nearest in the space"
    found = define("sac", ["Pendulum-v1"], layers=[Layer({"n_timesteps": 2000}, ".".join)])
    assert found.starts == ["default", "zoo"]
    assert define("sac", ["Pendulum-v1"]).bases["Pendulum-v1"]["n_timesteps"] == 20_000, "the zoo's budget"


def test_several_objectives_and_constraints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers_module, "train_once", pretended)
    what = definition(objectives=["score", "std"], constraints=["worst>=-0.5", "seconds<=60"], seeds_per_trial=2)
    study = done(str(tmp_path / "a"), what, 8)
    assert all(len(trial.values) == 2 for trial in study.trials)
    assert study.trials[0].constraints["seconds<=60"] == 1.0 - 60
    outcome = export(study, tmp_path / "out", until=8)
    assert "pareto.png" in outcome.files


def test_several_environments_are_normalised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers_module, "train_once", pretended)
    other = "tuning_envs:Threshold-v0"
    what = definition((ENV, other), references={ENV: (-10.0, 0.0)})
    assert what.references[ENV] == (-10.0, 0.0)
    low, high = what.references[other]
    assert low < high == -0.1
    study = done(str(tmp_path / "a"), what, 3)
    runs = study.trials[0].user_attrs["runs"]
    assert [run["env"] for run in runs] == [ENV, other]
    assert study.trials[0].value == pytest.approx(np.mean([run["score"] for run in runs]))
    assert max(study.trials[0].intermediate_values) == 128
    with pytest.raises(ConfigError, match=r"has no registered reward_threshold .* give --reference"):
        definition((ENV, other))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sampler": "tpee"}, r"sampler='tpee' is not one of .*\(did you mean 'tpe'\?\)"),
        ({"pruner": "medain"}, "did you mean 'median'"),
        ({"score": "mean"}, "score='mean' is not one of last, auc, max"),
        ({"objectives": ["scor"]}, "did you mean 'score'"),
        ({"objectives": ["score", "score"]}, "different metrics"),
        ({"objectives": ["score", "std"], "pruner": "median"}, "prunes studies of one objective only"),
        ({"objectives": ["score", "std"], "sampler": "cmaes"}, "CMA-ES is for one objective"),
        ({"constraints": ["secs<=3"]}, r"constraint 'secs<=3': expected METRIC<=NUMBER"),
        ({"constraints": ["seconds<=x"]}, "expected METRIC<=NUMBER"),
        ({"seeds_per_trial": 0}, "seeds_per_trial must be at least 1, not 0"),
        ({"confirm_seeds": 1}, "must be 0 or at least 2"),
        ({"last": 0.0}, r"last must be in \(0, 1\]"),
        ({"references": {"Nowhere-v0": (0.0, 1.0)}}, "reference for 'Nowhere-v0', which is not tuned on"),
        ({"references": {ENV: (1.0, 0.0)}}, "LOW below HIGH"),
        ({"starts": ["zoo"]}, "has no entry for environment 'Target-v0'"),
        ({"envs": ("Nowhere-v0",)}, "Nowhere"),
        ({"envs": (ENV, ENV)}, "expected different environments"),
        ({"values": {**TINY, "gama": 1}}, "did you mean 'gamma'"),
        ({"space": "nowhere.yml"}, r"nowhere\.yml: no such file"),
    ],
)
def test_bad_input_is_refused_before_anything_is_trained(settings: dict[str, Any], message: str) -> None:
    with pytest.raises((ConfigError, UnknownNameError), match=message):
        definition(**settings)


def test_another_definition_is_refused(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path / "a"))
    create(storage, "x", definition(), until=3)
    create(storage, "x", definition(), until=5)
    with pytest.raises(
        ConfigError, match=r"study 'x' exists with bases\..*\.gamma=0\.99, not 0\.5: take another --study-name"
    ):
        create(storage, "x", definition(values={**TINY, "gamma": 0.5}), until=3)
    with pytest.raises(ConfigError, match="there is no study 'y'"):
        open_study(storage, "y")
    optuna.create_study(storage=storage, study_name="z")
    with pytest.raises(ConfigError, match="was not made by 'spinup tune'"):
        open_study(storage, "z")


@pytest.mark.parametrize("where", ["grpc://nowhere", "foo://x", "/dev/null/x", "postgresql://u:secret@127.0.0.1:1/x"])
def test_storages_that_cannot_be_opened(where: str) -> None:
    with pytest.raises(ConfigError) as caught:
        open_storage(where)
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_sqlite_takes_a_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers_module, "train_once", pretended)
    what = definition(confirm_seeds=2, top=1)
    there = told(done(f"sqlite:///{tmp_path}/x.db", what, 4))
    assert there == told(done(str(tmp_path / "journal"), what, 4)), "storages make no difference"


# --- confirmation ----------------------------------------------------------------------------------------------------


Worth = dict[str, list[float]]


def confirmed(worth: Worth, race_on: list[int], held_out: list[int]) -> tuple[dict[tuple[str, int], float], confirm.Standing]:
    """Train what is wanted until nothing is."""
    seeds = race_on + held_out
    scores: dict[tuple[str, int], float] = {}
    while (now := confirm.standing(scores, list(worth), race_on, held_out)).wanted:
        assert confirm.verdict(scores, list(worth), race_on, held_out) is None
        name, seed = now.wanted[0]
        scores[name, seed] = worth[name][seeds.index(seed)]
    return scores, now


def test_a_race_drops_what_is_clearly_worse() -> None:
    race_on, held_out = [10, 11, 12, 13], [14, 15]
    worth = {
        "default": [99, 99, 99, 99, 0, 1], "a": [5, 6, 5, 6.5, 3, 4], "b": [-9, -8.5, -9.2, 0, 99, 99],
        "c": [5.2, 5, 5.5, 6, 99, 99],
    }  # fmt: skip
    scores, now = confirmed(worth, race_on, held_out)
    assert (now.chosen, now.racing) == ("a", ["a", "c"])
    trained = {name: [seed for key, seed in scores if key == name] for name in worth}
    assert trained == {"default": held_out, "a": race_on + held_out, "b": race_on[:3], "c": race_on}
    verdict = confirm.verdict(scores, list(worth), race_on, held_out)
    assert verdict is not None
    assert (verdict.winner, verdict.better, verdict.improvement) == ("a", True, 1.0)
    assert verdict.difference == verdict.difference_interval[0] == 3.0
    assert (verdict.score, verdict.default_score) == (3.5, 0.5), "of held-out seeds alone"


def test_a_race_ends_with_the_last_rival() -> None:
    worth = {"default": [0.0] * 6, "a": [5, 6, 5.5, 9, 3, 4], "b": [-9, -8.5, -9.2, 9, 9, 9]}
    scores, now = confirmed(worth, [0, 1, 2, 3], [4, 5])
    assert now.chosen == "a"
    assert ("a", 3) not in scores
    scores, now = confirmed({"default": [0.0] * 6, "a": [1.0] * 6}, [0, 1, 2, 3], [4, 5])
    assert now.chosen == "a"
    assert len(scores) == 4, "one alone has nothing to win"


def test_a_winner_that_is_no_better_is_no_winner() -> None:
    race_on, held_out = [0], [1, 2, 3, 4]
    worth = {"default": [0, 1.0, 2.0, 3.0, 4.0], "a": [0, 1.2, 1.9, 3.1, 3.95]}
    scores, _ = confirmed(worth, race_on, held_out)
    verdict = confirm.verdict(scores, list(worth), race_on, held_out)
    assert verdict is not None
    assert (verdict.winner, verdict.better, verdict.best) == ("default", False, "a")
    failed = {**scores, ("a", 2): -np.inf, ("a", 1): 9.0, ("a", 3): 9.0, ("a", 4): 9.0}
    verdict = confirm.verdict(failed, list(worth), race_on, held_out)
    assert verdict is not None
    assert (verdict.winner, verdict.better, verdict.best) == ("default", False, "a"), "one of its trainings failed"
    nobody, _ = confirmed({"default": worth["default"]}, race_on, held_out)
    verdict = confirm.verdict(nobody, ["default"], race_on, held_out)
    assert verdict is not None
    assert (verdict.winner, verdict.best, verdict.improvement) == ("default", None, 0.5)


def test_probability_of_improvement() -> None:
    x, y = np.array([1.0, 2.0, 3.0]), np.array([0.0, 2.0])
    assert probability_of_improvement(x, y) == pytest.approx((3 + 0 + 0.5 + 1) / 6)


def test_the_folder_of_a_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(workers_module, "train_once", pretended)
        study = done(str(tmp_path / "a"), definition(confirm_seeds=5, top=2), 8)
    outcome = export(study, tmp_path / "studies" / "ppo" / "x", until=8, command="spinup tune …")
    assert outcome.verdict is not None
    assert outcome.verdict.better
    assert set(outcome.files) >= {"best.yml", "report.md", "trials.csv", "confirmation.csv", "study.yml", "history.png"}
    assert all((outcome.folder / name).stat().st_size > 0 for name in outcome.files)
    report = (outcome.folder / "report.md").read_text()
    assert f"**Trial {outcome.winner} beats the default hyperparameters on 5 held-out seeds**" in report
    assert "## What mattered" in report
    entry = preset_values(get_spec("ppo"), str(outcome.folder / "best.yml"), ENV)
    chosen = study.trials[int(outcome.winner)].user_attrs["values"][ENV]
    assert {key: entry[key] for key in chosen} == chosen
    assert "spinup tune" in entry["provenance"]
    layer = Layer({"algo": "ppo", "env": ENV, "preset": str(outcome.folder / "best.yml")}, ".".join)
    config = compose(layer)
    assert (config.n_timesteps, config.hyperparameters["n_epochs"]) == (64, chosen["n_epochs"])
    assert make("ppo", ENV, preset=str(outcome.folder / "best.yml")).n_epochs == chosen["n_epochs"]
    assert f"| ppo | {ENV} | 64 | 8 | last | 5 |" in table(tmp_path / "studies")
    with pytest.raises(ConfigError, match="holds no study"):
        table(tmp_path / "nothing")


@pytest.mark.parametrize(("until", "sentence"), [(3, "One trial, which had nobody to race."), (1, "No trial could race.")])
def test_a_report_tells_of_no_race_that_was_not(
    until: int, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers_module, "train_once", pretended)
    study = done(str(tmp_path / "a"), definition(confirm_seeds=2, top=1), until)
    report = (export(study, tmp_path / "out", until=until).folder / "report.md").read_text()
    assert f"## Race\n\n{sentence}\n\n## Confirmation" in report
    assert "| candidate |" not in report


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from spinup_plugins.cli import main

    def here(orders: Orders, n: int, watch: Any) -> None:
        work(orders)
        watch([])

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(workers_module, "train_once", pretended)
    monkeypatch.setattr(workers_module, "run_workers", here)
    monkeypatch.setenv("FORCE_COLOR", "1")
    Path("space.yml").write_text(SPACE)
    common = ["tune", "ppo", ENV, "-n", "64", "--eval-every", "16", "--space", "space.yml", "--confirm-seeds", "3"]
    small = [*common, "--set", "n_steps=16", "--set", "batch_size=16"]
    assert main([*small, "--until-trials", "5"]) == 0
    captured = capsys.readouterr()
    assert "5 complete" in captured.out
    assert "held-out seeds" in captured.out
    assert "5 of 5 trials" in captured.err
    folder = Path("tuning/studies/ppo/Target-v0")
    assert (folder / "best.yml").is_file()
    assert main([*small, "--until-trials", "6", "--confirm-seeds", "3"]) == 0, "goes on"
    assert "--preset tuning/studies/ppo/Target-v0/best.yml" in capsys.readouterr().out
    monkeypatch.delenv("FORCE_COLOR")
    monkeypatch.setenv("NO_COLOR", "1")
    assert main([*small, "--until-trials", "6", "--out", "my studies"]) == 0
    captured = capsys.readouterr()
    assert "--preset 'my studies/best.yml'" in captured.out
    lines = [line for line in captured.err.splitlines() if line.startswith("trial ")]
    assert len(lines) == 6, "a log has a line for each"
    assert re.fullmatch(r"trial 5: \w+, score -?[\d.]+, 6 of 6 done, best -?[\d.]+", lines[-1])
    assert main(["tune", "--table"]) == 0
    assert "| ppo | tuning_envs:Target-v0 | 64 | 6 | last | 3 |" in capsys.readouterr().out
    for arguments, message in (
        (["tune", "ppo"], "which algorithm and environment?"),
        (
            [*small, "--seed", "1"],
            f"'{folder}' has the results of another study, with seed=0, not 1: take another folder (--out)",
        ),
        (
            [*small, "--seed", "1", "--out", "elsewhere", "--storage", str(folder / "study.journal")],
            "exists with seed=0, not 1",
        ),
        ([*small, "--until-trials", "0"], "--until-trials must be at least 1, not 0"),
        ([*small, "--reference", "x"], "--reference x: expected ENV=LOW:HIGH"),
        ([*small, "--grace", "0"], "--grace must be above 0"),
        (["tune", "sb3:a2c", "CartPole-v1"], "has no search space"),
    ):
        assert main(arguments) == 2
        error = capsys.readouterr().err
        assert message in error
        assert len(error.strip().splitlines()) == 1
    for file in folder.glob("study.journal*"):
        file.unlink()  # which a repository's studies come without
    kept = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert main([*common, "--until-trials", "2"]) == 2
    assert "has the results of another study, with bases." in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == kept
    monkeypatch.chdir("my studies")
    assert main(["tune", "--table"]) == 0, "ours, where there are none here"
    assert "| sac | Pendulum-v1 |" in capsys.readouterr().out
