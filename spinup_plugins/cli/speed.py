"""``spinup speed``: how fast things are beside Stable-Baselines3's, measured in one run."""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from spinup_plugins.atomic import write_text
from spinup_plugins.cli.console import Debug, assignments, reporting
from spinup_plugins.errors import ConfigError, UnknownNameError, nearest

if TYPE_CHECKING:
    from spinup_plugins.runs.speed import Measured, Prediction, Result, Startup, SweepPoint
    from spinup_plugins.runs.stepping import Ratio, Stepping

__all__ = ["command", "learning_table", "phases_table", "predict_table", "startup_table", "stepping_table", "sweep_table"]

#: subjects that are no algorithm, and the options that they do not have
_SUBJECTS: dict[str, tuple[str, ...]] = {
    "stepping": ("engine", "threads", "width", "batch-size", "set", "sweep", "markdown", "plot"),
    "predict": ("n-envs", "threads", "width", "batch-size", "set", "sweep"),
    "startup": ("n-envs", "engine", "threads", "width", "batch-size", "set", "sweep", "seconds", "plot"),
}


def command(
    subject: Annotated[
        str | None,
        typer.Argument(
            metavar="SUBJECT",
            help="What to measure: an algorithm (learning), predict, startup (importing and first steps), or stepping (of "
            "environments). Default: the whole table, predict and startup.",
            show_default=False,
        ),
    ] = None,
    envs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="ENV",
            help="Gymnasium ids. Default: those of the table, for an algorithm; for predict HalfCheetah-v5; for stepping "
            "CartPole-v1, HalfCheetah-v5 and images of 84x84x4.",
            show_default=False,
        ),
    ] = None,
    n_envs: Annotated[
        str | None,
        typer.Option(
            "--n-envs",
            help="Numbers of copies, with commas between them. Default: the table's, else 1; 1,4,16,64 for stepping.",
            show_default=False,
        ),
    ] = None,
    engine: Annotated[
        str | None,
        typer.Option(
            "--engine",
            metavar="TIERS",
            help="Tiers of ours: of torch, numpy, native, with commas between them. Default: all that know the policy.",
            show_default=False,
        ),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(
            "--threads", help="Threads that each side may compute with. Default: the table's, else 1.", show_default=False
        ),
    ] = None,
    width: Annotated[
        str | None,
        typer.Option(
            "--width",
            help="Widths of the hidden layers, with commas between them; one number stands for two layers. Default: the "
            "table's, else the class's.",
            show_default=False,
        ),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", help="Minibatch size. Default: the class's.", show_default=False)
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "-s",
            "--set",
            metavar="KEY=VALUE",
            help="Constructor argument of both sides, as of 'spinup train'. May be repeated. Default: none.",
            show_default=False,
        ),
    ] = None,
    over: Annotated[
        str | None,
        typer.Option(
            "--sweep",
            metavar="WHAT",
            help="Measure speed and peak memory against n_envs (1 to 64), width (64 to 1024) or batch_size (64 to 4096). "
            "Default: off.",
            show_default=False,
        ),
    ] = None,
    rounds: Annotated[int, typer.Option("--rounds", help="How many turns each side gets.")] = 5,
    seconds: Annotated[
        float | None,
        typer.Option(
            "--seconds",
            help="Length of a turn in seconds; on-policy algorithms go on to the end of a rollout. Default: 1.5; 0.4 for "
            "stepping, 0.2 for predict.",
            show_default=False,
        ),
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option(
            "--json",
            metavar="FILE",
            help="Keep all rounds in this file, after each case; what it holds of other cases stays. Default: off.",
            show_default=False,
        ),
    ] = None,
    markdown: Annotated[
        Path | None,
        typer.Option(
            "--markdown",
            metavar="FILE",
            help="Write tables, machine, versions and links to plots beside it to this file; of all that --json's file holds, "
            "too. Default: off.",
            show_default=False,
        ),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(
            "--plot",
            metavar="FILE",
            help="Draw ratios, or the sweep, into this .svg or .png file; needs matplotlib. Default: off.",
            show_default=False,
        ),
    ] = None,
    debug: Debug = False,
) -> None:
    """Measure speed beside Stable-Baselines3's, in turns in one process.

    An algorithm: whole learn() of ours on each tier beside Stable-Baselines3's (sb3-contrib's TRPO; for VPG, its own torch
    tier). Ratios are medians over rounds, with the least and the most; beside them what was asked for, and the limit that the
    environment and the bare matrix products leave. What the time goes to (act, step, store, learn) is told of a turn of its
    own.

    stepping: steps per second of environments in LeanVecEnv beside DummyVecEnv, in SharedMemoryVecEnv beside SubprocVecEnv,
    and in the one that --vec-env auto chooses beside the faster of Stable-Baselines3's two. --json writes every round, and
    what the workers' messages cost per step.
    """
    with reporting(debug):
        from spinup_plugins.runs import speed

        subjects = (*_SUBJECTS, *speed.ALGORITHMS)
        if subject is not None and subject not in subjects:
            raise UnknownNameError(
                f"nothing is called {subject!r}{nearest(subject, subjects)}; there is {', '.join(subjects)}"
            )
        given: dict[str, Any] = {
            "n-envs": n_envs,
            "engine": engine,
            "threads": threads,
            "width": width,
            "batch-size": batch_size,
        }
        given |= {"set": set_, "sweep": over, "seconds": seconds, "markdown": markdown, "plot": plot}
        for option in _SUBJECTS.get(subject, ()) if subject else ("width", "batch-size", "set", "sweep"):
            if given[option] is not None and given[option] != []:
                raise ConfigError(f"--{option} is not for {subject or 'the whole table: name an algorithm'}")
        sizes = None if n_envs is None else _numbers("--n-envs", n_envs)
        for option, path in (("json", file), ("markdown", markdown), ("plot", plot)):
            if path is not None and not path.absolute().parent.is_dir():
                raise ConfigError(f"--{option} {path}: there is no folder {str(path.parent)!r}")
        if subject == "stepping":
            _stepping(envs, sizes, rounds, seconds, file)
            return
        if plot is not None:
            speed.pyplot("--plot")
        engines = None if engine is None else engine.split(",")
        kept = speed.Results() if file is None else speed.Results.read(file)
        options: dict[str, Any] = {"rounds": rounds} | ({} if seconds is None else {"seconds": seconds})
        console = Console(highlight=False)

        def keep(results: "Sequence[Result]") -> None:
            for result in results:
                kept.add(result)
            if file is not None:
                kept.write(file)

        sweep = None
        with Console(stderr=True).status("") as status:
            options["progress"] = status.update
            if subject is None or subject in speed.ALGORITHMS:
                net = None if width is None else _numbers("--width", width)
                net = net * 2 if net is not None and len(net) == 1 else net
                others = assignments("--set", set_ or ())
                chosen = [
                    speed.case(algo, env, n, t, width=net, batch_size=batch_size, others=others)
                    for algo, env, n, t in _chosen(subject, envs, sizes, threads)
                ]
                if over is not None:
                    sweep = _swept(chosen, over, engines, options, keep, console)
                else:
                    measured = []
                    for case in chosen:
                        measured.append(speed.measure(case, engines, **options))
                        keep(measured[-1:])
                    console.print(learning_table(measured))
                    console.print()
                    console.print(phases_table(measured))
            if subject in (None, "predict"):
                quick = options if subject else {**options, "seconds": 0.2}
                predictions = [
                    p for env in envs or ["HalfCheetah-v5"] for p in speed.measure_predict(env, engines=engines, **quick)
                ]
                keep(predictions)
                console.print()
                console.print(predict_table(predictions))
            if subject in (None, "startup"):
                startups = speed.measure_startup(rounds=min(rounds, 3), progress=status.update)
                keep(startups)
                console.print()
                console.print(startup_table(startups))
        if plot is not None:
            kept.plot(plot, sweep)
        if markdown is not None:
            folder = markdown.absolute().parent
            pictures = sorted(path.name for path in folder.iterdir() if path.suffix in (".svg", ".png"))
            if plot is not None and plot.absolute().parent != folder:
                pictures.append(os.path.relpath(plot.absolute(), folder))
            write_text(markdown, kept.markdown(pictures))


def _numbers(option: str, text: str) -> list[int]:
    try:
        return [int(each) for each in text.split(",")]
    except ValueError:
        raise ConfigError(f"{option} {text}: expected numbers such as 1,4,16") from None


def _chosen(
    algo: str | None, envs: Sequence[str] | None, n_envs: Sequence[int] | None, threads: int | None
) -> Iterator[tuple[str, str, int, int]]:
    """Yield algorithm, environment, number of copies and threads of what is asked for.

    Without environments, those of the table that the numbers fit.
    """
    from spinup_plugins.runs.speed import CASES

    if algo is not None and envs:
        yield from ((algo, env, n, threads or 1) for env in envs for n in n_envs or (1,))
        return
    found = [
        (case.algo, case.env, case.n_envs, case.threads)
        for case in CASES
        if algo in (None, case.algo)
        and (n_envs is None or case.n_envs in n_envs)
        and (threads is None or case.threads == threads)
    ]
    if not found:
        raise ConfigError(f"the table has no such case of {algo or 'any algorithm'}: name an environment")
    yield from found


def _swept(
    cases: "Sequence[Any]",
    over: str,
    engines: Sequence[str] | None,
    options: dict[str, Any],
    keep: "Callable[[Sequence[Result]], None]",
    console: Console,
) -> tuple[str, str, str, int]:
    """Measure and print the one sweep asked for; return its key among the results."""
    from spinup_plugins.runs.speed import sweep

    if len(cases) != 1:
        raise ConfigError("--sweep is of one algorithm on one environment: name both")
    (case,) = cases
    points = []
    for point in sweep(case, over, engines, **options):
        points.append(point)
        keep([point])
    console.print(sweep_table(points))
    return (case.algo, case.env, over, case.threads)


def _stepping(
    envs: Sequence[str] | None, n_envs: Sequence[int] | None, rounds: int, seconds: float | None, file: Path | None
) -> None:
    from spinup_plugins.runs.stepping import ENVS, SIZES, benchmark

    with Console(stderr=True).status("") as status:
        length = 0.4 if seconds is None else seconds
        results = benchmark(envs or ENVS, n_envs or SIZES, rounds=rounds, seconds=length, progress=status.update)
    Console(highlight=False).print(stepping_table(results))
    if file is not None:
        write_text(file, f"{json.dumps([each._asdict() | {'overhead': each.overhead} for each in results], indent=1)}\n")


# --- tables, 80 columns wide -----------------------------------------------------------------------------------------


def _table(caption: str, words: Sequence[str], numbers: Sequence[str]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), caption=caption)
    for header in words:
        table.add_column(header, no_wrap=True)
    for header in numbers:
        table.add_column(header, justify="right", no_wrap=True)
    return table


def learning_table(results: "Sequence[Measured]") -> Table:
    """Return how fast algorithms learn, a row for each tier.

    :param results: of :func:`spinup_plugins.runs.speed.measure`
    """
    caption = "steps/s of all copies; median (least-most) ratio of all rounds; limit: environment and products alone"
    table = _table(caption, ("algo", "environment"), ("N", "T", "engine", "peer's", "ours", "ratio", "asked", "limit"))
    for each in results:
        case, limit = each.case, "" if each.limit is None else f"{each.limit:.1f}"
        cells = [case.algo, case.env, str(case.n_envs), str(case.threads)]
        for tier in each.tiers:
            speeds = [_middle([1 / value for value in each.seconds[side]]) for side in (case.peer, tier)]
            asked = f"{case.asked[tier]:g}" if tier in case.asked else ""
            ratio = each.ratio(tier)
            table.add_row(*cells, tier, *(f"{value:,.0f}" for value in speeds), _ratio(ratio), _mark(asked, ratio), limit)
            cells, limit = [""] * 4, ""
    return table


def phases_table(results: "Sequence[Measured]") -> Table:
    """Return what the time of a step goes to, a row for each side.

    :param results: of :func:`spinup_plugins.runs.speed.measure`
    """
    from spinup_plugins.runs.speed import PHASES

    table = _table("µs per environment step", ("algo", "environment"), ("N", "T", "side", *PHASES))
    for each in results:
        case = each.case
        cells = [case.algo, case.env, str(case.n_envs), str(case.threads)]
        for side, phases in each.phases.items():
            table.add_row(*cells, side, *(_micro(phases[phase]) for phase in PHASES))
            cells = [""] * 4
        if each.floor is not None:
            table.add_row(*cells, "floor", "", _micro(each.floor.environment), "", _micro(each.floor.products), "")
    return table


def predict_table(results: "Sequence[Prediction]") -> Table:
    """Return how long calls of ``predict`` take.

    :param results: of :func:`spinup_plugins.runs.speed.measure_predict`
    """
    table = _table("µs per predict()", ("algo", "environment"), ("observations", "engine", "SB3's", "ours", "ratio", "asked"))
    for each in results:
        cells = [each.algo, each.env, str(each.batch)]
        for tier in each.tiers:
            times = [_micro(_middle(each.seconds[side])) for side in ("sb3", tier)]
            asked = f"{each.asked[tier]:g}" if tier in each.asked else ""
            table.add_row(*cells, tier, *times, _ratio(each.ratio(tier)), _mark(asked, each.ratio(tier)))
            cells = [""] * 3
    return table


def startup_table(results: "Sequence[Startup]") -> Table:
    """Return what importing, building and the first steps cost.

    :param results: of :func:`spinup_plugins.runs.speed.measure_startup`
    """
    table = _table("seconds, in processes of their own", ("algo", "environment", "what"), ("SB3's", "ours", "ratio"))
    for each in results:
        for what, times, ratio in (
            ("import", each.imports, each.import_ratio),
            ("building, first steps", each.first, each.first_ratio),
        ):
            table.add_row(each.algo, each.env, what, *(f"{_middle(times[side]):.2f}" for side in times), _ratio(ratio))
    return table


def sweep_table(points: "Sequence[SweepPoint]") -> Table:
    """Return speed and memory against what was swept over.

    :param points: of :func:`spinup_plugins.runs.speed.sweep`
    """
    (over,) = {point.over for point in points}
    table = _table(
        "peak memory of a process; of it, what its model added", (), (over, "side", "steps/s", "ratio", "MB", "added")
    )
    for point in points:
        cells = [str(point.value)]
        for side, seconds in point.measured.seconds.items():
            ratio = "" if side == point.measured.case.peer else _ratio(point.measured.ratio(side))
            memory = (point.memory[side], point.memory[side] - point.before[side])
            table.add_row(*cells, side, f"{1 / _middle(seconds):,.0f}", ratio, *(f"{each / 1e6:,.0f}" for each in memory))
            cells = [""]
    return table


def stepping_table(results: "Sequence[Stepping]") -> Table:
    """Return measurements as a table that fits 80 columns: three rows for each environment and number of copies.

    :param results: of :func:`spinup_plugins.runs.stepping.benchmark`
    """
    caption = "steps/s of single environments; median (least-most) ratio of all rounds"
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), caption=caption)
    table.add_column("environment", no_wrap=True)
    table.add_column("N", justify="right", no_wrap=True)
    table.add_column("stepped", no_wrap=True)
    for header in ("SB3's", "ours", "ratio"):
        table.add_column(header, justify="right", no_wrap=True)
    for each in results:
        dummy, lean, shared, subproc = (_middle(each.speeds[kind]) for kind in each.speeds)
        auto = "in process" if each.chosen == "LeanVecEnv" else "by workers"
        table.add_row(each.env, str(each.n_envs), "in process", f"{dummy:,.0f}", f"{lean:,.0f}", _ratio(each.inside))
        table.add_row("", "", "by workers", f"{subproc:,.0f}", f"{shared:,.0f}", _ratio(each.outside))
        best, ours = max(dummy, subproc), _middle(each.speeds[each.chosen])
        table.add_row("", "", f"auto: {auto}", f"{best:,.0f}", f"{ours:,.0f}", _ratio(each.best))
    return table


def _middle(values: Sequence[float]) -> float:
    return sorted(values)[len(values) // 2]


def _micro(seconds: float) -> str:
    from spinup_plugins.runs.speed import microseconds

    return microseconds(seconds)


def _ratio(ratio: "Ratio") -> str:
    from spinup_plugins.runs.speed import ratio_text

    return ratio_text(ratio)


def _mark(asked: str, ratio: "Ratio") -> str:
    """Mark what was asked for and is not reached."""
    return f"[red]{asked}[/red]" if asked and ratio.median < float(asked) else asked
