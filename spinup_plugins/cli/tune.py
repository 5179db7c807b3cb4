"""``spinup tune``: a study of hyperparameters, on this machine's processes or on many machines with one storage."""

import shlex
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.live import Live
from rich.table import Table

from spinup_plugins.cli.console import Debug, assignments, clock, complain, listed, number, option_name, reporting, show
from spinup_plugins.errors import ConfigError
from spinup_plugins.paths import data_dir
from spinup_plugins.yaml_files import parse_yaml

if TYPE_CHECKING:
    import optuna

    from spinup_plugins.tuning.slots import Slot
    from spinup_plugins.tuning.study import Definition

__all__ = ["command"]

ROWS = 12
"""Trials that the table shows: all that run, and the newest of the others."""


def command(
    context: typer.Context,
    algo: Annotated[
        str | None, typer.Argument(metavar="ALGO", help="Algorithm; 'spinup list' shows them.", show_default=False)
    ] = None,
    envs: Annotated[
        str | None,
        typer.Argument(
            metavar="ENVS",
            help="Gymnasium id; or several with commas between them, whose scores are normalised and averaged.",
            show_default=False,
        ),
    ] = None,
    until_trials: Annotated[
        int, typer.Option(metavar="T", help="Trials that the study is to have, counted over all workers and machines.")
    ] = 50,
    workers: Annotated[int, typer.Option("-j", "--workers", help="Processes on this machine.")] = 1,
    storage: Annotated[
        str | None,
        typer.Option(
            metavar="PATH|URL",
            help="Journal file, Optuna URL (sqlite:///…, postgresql://…, mysql://…) or grpc://host:port. The same command "
            "with the same storage on other machines adds their workers. Default: study.journal in the study's folder.",
        ),
    ] = None,
    study_name: Annotated[
        str | None, typer.Option(metavar="NAME", help="Name of the study in the storage. Default: ALGO/ENVS.")
    ] = None,
    space: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE",
            help="Search space: a variant of the algorithm's own file (default, rl_zoo3; small for SAC, TD3 and DDPG), "
            "FILE.yml or FILE.yml:VARIANT. Default: default.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed that the sampler's and all trainings' derive from.")] = 0,
    seeds_per_trial: Annotated[int, typer.Option(help="Trainings of each trial, with the same seeds in all trials.")] = 3,
    sampler: Annotated[str, typer.Option(metavar="NAME", help="tpe, gp, cmaes, random or qmc.")] = "tpe",
    startup: Annotated[int, typer.Option(help="Trials at random before the sampler models anything.")] = 10,
    pruner: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="median, halving, hyperband, wilcoxon or none. Default: median; none for several objectives.",
        ),
    ] = None,
    score: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="What a training is worth: last (interquartile mean of the last evaluations), auc (mean of all) or max.",
        ),
    ] = "last",
    last: Annotated[float, typer.Option(help="Share of the evaluations that are the last ones.")] = 0.25,
    objectives: Annotated[
        str,
        typer.Option(
            metavar="NAMES",
            help="What to optimise, with commas between: score, seconds (of a training), std (over seeds), worst (seed).",
        ),
    ] = "score",
    constraint: Annotated[
        list[str] | None,
        typer.Option(metavar="TEXT", help="Bound such as 'seconds<=60' or 'worst>=0'. May be repeated. Default: none."),
    ] = None,
    start: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME|FILE",
            help="Preset that a first trial has: default, spinning_up, zoo or a YAML file. May be repeated. "
            "Default: default, and zoo where it has an entry.",
        ),
    ] = None,
    reference: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ENV=LOW:HIGH",
            help="Returns that count as 0 and 1 with several environments. May be repeated. Default: a random policy's and "
            "the registered threshold.",
        ),
    ] = None,
    confirm_top: Annotated[int, typer.Option(metavar="K", help="Trials that race on seeds that no trial had.")] = 5,
    race_seeds: Annotated[int, typer.Option(metavar="R", help="Seeds of the race.")] = 5,
    confirm_seeds: Annotated[
        int,
        typer.Option(
            metavar="M", help="Further seeds, on which the winner of the race meets the default; 0 for no confirmation."
        ),
    ] = 10,
    n_timesteps: Annotated[
        str | None,
        typer.Option("-n", "--n-timesteps", metavar="STEPS", help="Length of each training. Default: the zoo's, else 100000."),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(metavar="NAME|FILE", help="Values under the search space's, as of 'spinup train'. Default: default."),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "-s", "--set", metavar="KEY=VALUE", help="Constructor argument of all trainings. May be repeated. Default: none."
        ),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Configuration of all trainings, as of 'spinup train'. Default: none.")
    ] = None,
    eval_every: Annotated[
        str | None,
        typer.Option(metavar="STEPS", help="Environment steps between evaluations. Default: a twentieth, at least 1000."),
    ] = None,
    eval_episodes: Annotated[
        int | None, typer.Option(help="Episodes of each evaluation. Default: --config's, else 5.")
    ] = None,
    threads: Annotated[int, typer.Option(help="Threads of each worker.")] = 1,
    beat: Annotated[float, typer.Option(metavar="SECONDS", help="Time between a worker's signs of life.")] = 15.0,
    grace: Annotated[
        float,
        typer.Option(metavar="SECONDS", help="Time without one after which another machine's worker counts as lost."),
    ] = 120.0,
    dashboard: Annotated[
        bool, typer.Option("--dashboard", help="Show the study in optuna-dashboard, an extra, too. Default: off.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Folder of the study. Default: tuning/studies/ALGO/ENVS."),
    ] = None,
    table: Annotated[
        bool,
        typer.Option("--table", help="Only print a table of all studies in --out, tuning/studies or ours. Default: off."),
    ] = False,
    debug: Debug = False,
) -> None:
    """Search hyperparameters that hold up on seeds the search never saw.

    Every trial trains with the same few seeds; the best race on others, and the winner meets the default on yet others.
    The same command goes on where a study was stopped. In the study's folder: best.yml (for 'spinup train --preset'),
    report.md, trials.csv and plots.
    """
    with reporting(debug):
        if table:
            from spinup_plugins.tuning.export import table as all_studies

            here = Path("tuning/studies")
            print(all_studies(out or (here if here.is_dir() else data_dir("tuning") / "studies")), end="")
            return
        if algo is None or envs is None:
            raise ConfigError("which algorithm and environment? spinup tune ALGO ENV")
        for name, value in (("--until-trials", until_trials), ("--workers", workers), ("--threads", threads)):
            if value < 1:
                raise ConfigError(f"{name} must be at least 1, not {value}")
        for name, seconds in (("--beat", beat), ("--grace", grace)):
            if seconds <= 0:
                raise ConfigError(f"{name} must be above 0, not {seconds}")
        from spinup_plugins.runs.config import Layer, file_layer
        from spinup_plugins.tuning.export import require_own, study_folder
        from spinup_plugins.tuning.study import create, define, open_storage, without_password
        from spinup_plugins.tuning.workers import Orders

        values = {
            "preset": preset,
            "n_timesteps": None if n_timesteps is None else parse_yaml(n_timesteps, "--n-timesteps"),
            "hyperparameters": assignments("--set", set_ or ()),
            "eval_every": None if eval_every is None else parse_yaml(eval_every, "--eval-every"),
            "eval_episodes": eval_episodes,
        }
        layers = [file_layer(config)] if config is not None else []
        layers.append(Layer({key: value for key, value in values.items() if value is not None}, option_name))
        goals = objectives.split(",")
        definition = define(
            algo, listed(envs), layers=layers, space=space, starts=start, references=_references(reference or ()),
            seed=seed, seeds_per_trial=seeds_per_trial, sampler=sampler, startup=startup, score=score, last=last,
            objectives=goals, pruner=pruner or ("median" if len(goals) == 1 else "none"),
            constraints=list(constraint or ()), top=confirm_top, race_seeds=race_seeds, confirm_seeds=confirm_seeds,
        )  # fmt: skip
        folder = out if out is not None else study_folder(definition.algo, definition.envs)
        require_own(folder, definition)
        where = storage if storage is not None else str(folder / "study.journal")
        if dashboard:
            _require_dashboard()
        study = create(
            open_storage(where), study_name or f"{definition.algo}/{','.join(definition.envs)}", definition, until=until_trials
        )
        orders = Orders(where, study.study_name, until_trials, beat, grace, threads)

    def reached() -> str:
        return f"with the study kept in {without_password(where)}; the same command goes on"

    with reporting(debug, reached):
        typed = (context.obj or "").replace(where, without_password(where))
        _run(study, definition, orders, workers, folder, typed, dashboard=dashboard)


def _run(
    study: "optuna.Study",
    definition: "Definition",
    orders: Any,
    workers: int,
    folder: Path,
    command_line: str,
    *,
    dashboard: bool,
) -> None:
    from spinup_plugins.tuning.export import export
    from spinup_plugins.tuning.slots import slots_of
    from spinup_plugins.tuning.workers import run_workers

    aside = Console(stderr=True, highlight=False)
    shown = _open_dashboard(orders.storage, aside) if dashboard else None
    drawn, began = 0.0, time.monotonic()
    told = {place for place, slot in enumerate(slots_of(study.get_trials(deepcopy=False))) if slot.done}
    try:
        with Live(console=aside, transient=True, auto_refresh=False) as live:

            def watch(processes: Sequence[int]) -> None:
                nonlocal drawn
                if time.monotonic() - drawn <= 2:
                    return
                drawn = time.monotonic()
                slots = slots_of(study.get_trials(deepcopy=False))[: orders.until]
                if aside.is_terminal:
                    live.update(_table(study, definition, slots, orders.until, drawn - began, len(processes)), refresh=True)
                else:
                    _tell(aside, study, definition, slots, orders.until, told)

            run_workers(orders, workers, watch)
        outcome = export(study, folder, until=orders.until, command=command_line)
    finally:
        if shown is not None:
            shown.terminate()
            shown.wait()
    slots = slots_of(study.get_trials(deepcopy=False))[: orders.until]
    console = Console(highlight=False)
    done = ", ".join(f"{n} {state}" for state, n in Counter(slot.trial.state.name.lower() for slot in slots).items())
    console.print(f"{definition.algo} on {', '.join(definition.envs)}: {done}", style="bold", soft_wrap=True)
    for place, slot in enumerate(slots):
        if slot.error:
            complain("warning", f"trial {place}: {slot.error}")
    verdict = outcome.verdict
    if verdict is None:
        show(console, "winner", f"{_named(outcome.winner)}, not confirmed on held-out seeds")
    else:
        seeds = f"on {len(definition.held_out)} held-out seeds"
        show(console, "default", _spelled(verdict.default_score, verdict.default_interval) + f" {seeds}")
        if verdict.better:
            show(console, "winner", f"{_spelled(verdict.score, verdict.interval)}, {_named(outcome.winner)}")
        else:
            best = "" if verdict.best is None else f"; {_named(verdict.best)} has {_spelled(verdict.score, verdict.interval)}"
            show(console, "winner", f"the default is not beaten{best}")
        show(console, "improves", f"with probability {verdict.improvement:.2f}")
    show(console, "folder", str(outcome.folder))
    best_file = outcome.folder / "best.yml"
    show(console, "next", f"spinup train {definition.algo} {definition.envs[0]} --preset {shlex.quote(str(best_file))}")


def _references(texts: Sequence[str]) -> dict[str, tuple[float, float]]:
    found = {}
    for text in texts:
        env, _, ends = text.rpartition("=")
        low, _, high = ends.partition(":")
        try:
            found[env] = float(low), float(high)
        except ValueError:
            raise ConfigError(f"--reference {text}: expected ENV=LOW:HIGH, two numbers") from None
    return found


def _named(candidate: str) -> str:
    return "the default" if candidate == "default" else f"trial {candidate}"


def _spelled(value: float, interval: Sequence[float]) -> str:
    return f"{number(value)} (95 % interval {number(interval[0])} to {number(interval[1])})"


def _tell(
    console: Console, study: "optuna.Study", definition: "Definition", slots: "Sequence[Slot]", until: int, told: set[int]
) -> None:
    """Print a line for each trial that is done and not in ``told`` yet: what a log has of the table."""
    done = {place: slot for place, slot in enumerate(slots) if slot.done}
    for place in sorted(done.keys() - told):
        told.add(place)
        trial = done[place].trial
        best = _best(study, [slot for at, slot in done.items() if at in told])
        score = f" {definition.objectives[0]} {number(trial.values[0])}," if trial.values else ""
        line = f"trial {place}: {trial.state.name.lower()},{score} {len(told)} of {until} done"
        console.print(line if best is None else f"{line}, best {number(best)}", soft_wrap=True, markup=False)


def _best(study: "optuna.Study", slots: "Sequence[Slot]") -> float | None:
    """The best value of the first objective that trials came to; None where none came to any."""
    values = [slot.trial.values[0] for slot in slots if slot.trial.values]
    better = max if study.directions[0].name == "MAXIMIZE" else min
    return better(values) if values else None


def _table(
    study: "optuna.Study", definition: "Definition", slots: "Sequence[Slot]", until: int, elapsed: float, workers: int
) -> Table:
    """Trials with their state, seeds done, score and time left; what was best so far, and how the confirmation stands."""
    runs = definition.seeds_per_trial * len(definition.envs)
    done = [slot for slot in slots if slot.done]
    best = _best(study, done)
    title = f"{len(done)} of {until} trials, {workers} workers"
    if best is not None:
        title += f", best {definition.objectives[0]} {number(best)}"
    if done and len(done) < until:
        title += f", {clock(elapsed / len(done) * (until - len(done)))} left"
    table = Table(title=title, box=None, padding=(0, 2, 0, 0))
    for name in ("trial", "state", "seeds", definition.objectives[0], "left"):
        table.add_column(name, justify="left" if name == "state" else "right")
    running = [(place, slot) for place, slot in enumerate(slots) if not slot.done]
    newest = [(place, slot) for place, slot in enumerate(slots) if slot.done][-max(ROWS - len(running), 3) :]
    for place, slot in newest + running[:ROWS]:
        trial = slot.trial
        steps = max(trial.intermediate_values, default=0)
        value = trial.values[0] if trial.values else trial.intermediate_values.get(steps)
        left = ""
        if trial.state.name == "RUNNING" and steps and trial.datetime_start is not None:
            spent = time.time() - trial.datetime_start.timestamp()
            left = clock(spent / steps * (definition.timesteps - steps))
        seeds = f"{len(trial.user_attrs.get('runs', ())) // len(definition.envs)}/{runs // len(definition.envs)}"
        state = trial.state.name.lower()
        table.add_row(str(place), state, seeds, "" if value is None else number(value), left)
    if len(done) >= until and definition.confirm_seeds:
        from spinup_plugins.tuning import confirm

        results = confirm.results(confirm.open_confirmation(study))
        names = list(confirm.candidates(study, definition, until))
        now = confirm.standing(results, names, definition.race_on, definition.held_out)
        stage = f"{_named(now.chosen)} meets the default" if now.chosen else f"{len(now.racing)} trials race"
        table.caption = f"confirming: {len(results)} trainings done, {stage}, at least {len(now.wanted)} to go"
    return table


def _require_dashboard() -> None:
    from importlib.util import find_spec

    if find_spec("optuna_dashboard") is None:
        raise ConfigError('--dashboard needs an extra: pip install "spinup-plugins[dashboard]"')


def _open_dashboard(storage: str, console: Console) -> "subprocess.Popen[bytes]":
    """Serve the dashboard from a process of its own, on a free port, and tell where."""
    import socket
    import webbrowser

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    code = (
        "import sys; from optuna_dashboard import run_server; from spinup_plugins.tuning.study import open_storage; "
        "run_server(open_storage(sys.argv[1]), '127.0.0.1', int(sys.argv[2]))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, storage, str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    console.print(f"dashboard: http://127.0.0.1:{port}/", soft_wrap=True)
    webbrowser.open(f"http://127.0.0.1:{port}/")
    return process
