"""``spinup bench``: algorithms on environments over seeds, on all cores or a cluster."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.live import Live
from rich.table import Table

from spinup_plugins.cli.console import Debug, assignments, clock, complain, listed, number, option_name, reporting
from spinup_plugins.errors import ConfigError
from spinup_plugins.yaml_files import parse_yaml

if TYPE_CHECKING:
    from spinup_plugins.runs.bench import Cell, Outcome, Progress
    from spinup_plugins.runs.results import Result

__all__ = ["Algos", "Envs", "Jobs", "Seeds", "command", "run_grid", "seed_numbers"]

Algos = Annotated[str, typer.Argument(metavar="ALGOS", help="Algorithms, with commas between them.", show_default=False)]
Envs = Annotated[str, typer.Argument(metavar="ENVS", help="Gymnasium ids, with commas between them.", show_default=False)]
Seeds = Annotated[str, typer.Option(help="How many seeds, from 0 on; or which, with commas: '3,5', or '4,' for one alone.")]
Jobs = Annotated[
    int | None,
    typer.Option("-j", "--jobs", help="Runs at a time, a process with one thread each. Default: one per core."),
]


def command(
    algos: Algos,
    envs: Envs,
    seeds: Seeds = "3",
    preset: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE", help="Values to begin with: default, spinning_up, zoo or a YAML file. Default: default."
        ),
    ] = None,
    n_timesteps: Annotated[
        str | None,
        typer.Option("-n", "--n-timesteps", metavar="STEPS", help="Length of each run. Default: the preset's, else 100000."),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "-s",
            "--set",
            metavar="KEY=VALUE",
            help="Constructor argument of all runs, as of 'spinup train'. May be repeated. Default: none.",
        ),
    ] = None,
    vary: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=LIST",
            help="Constructor argument to vary: one run for each value of the YAML list, such as gamma=[0.9,0.99]. May be "
            "repeated: every combination. Default: none.",
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Configuration of all runs, as of 'spinup train'. Default: none."),
    ] = None,
    eval_every: Annotated[
        str | None,
        typer.Option(metavar="STEPS", help="Environment steps between evaluations. Default: --config's, else 10000."),
    ] = None,
    eval_episodes: Annotated[
        int | None, typer.Option(help="Episodes of each evaluation during training. Default: --config's, else 10.")
    ] = None,
    final_episodes: Annotated[
        int | None, typer.Option(help="Episodes of the evaluation after training. Default: --config's, else 100.")
    ] = None,
    jobs: Jobs = None,
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Run on a Ray cluster instead, whose nodes have this package: its address, auto for the one that this "
            "machine is part of, or local. Needs the extra 'ray'. Default: off.",
        ),
    ] = None,
    folder: Annotated[
        Path,
        typer.Option(
            "-f", "--folder", metavar="FOLDER", help="Folder of all runs: FOLDER/ALGO/ENV/seed<n>, or .../KEY=VALUE/seed<n>."
        ),
    ] = Path("runs/bench"),
    results: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Where ALGO/ENV/curve.csv (seed,timesteps,seconds,return) and final.csv (seed,episode,return) are "
            "written. Default: beside the runs.",
        ),
    ] = None,
    debug: Debug = False,
) -> None:
    """Train every algorithm on every environment over seeds, and evaluate as Spinning Up does.

    Finished runs are not made again and those that were cut short go on from their checkpoints, so that the same command
    goes on where it was stopped. A run that fails leaves the others alone, and the exit status is 1.
    """
    with reporting(debug):
        from spinup_plugins.runs.bench import build_environments, grid, variants
        from spinup_plugins.runs.config import Layer, file_layer

        values = {
            "preset": preset,
            "n_timesteps": None if n_timesteps is None else parse_yaml(n_timesteps, "--n-timesteps"),
            "hyperparameters": assignments("--set", set_ or ()),
            "eval_every": None if eval_every is None else parse_yaml(eval_every, "--eval-every"),
            "eval_episodes": eval_episodes,
            "final_episodes": final_episodes,
        }
        layers = [file_layer(config)] if config is not None else []
        layers.append(Layer({key: value for key, value in values.items() if value is not None}, option_name))
        cells = grid(
            listed(algos), listed(envs), seed_numbers(seeds), folder, layers=layers, vary=variants(_lists(vary or ()))
        )
        if ray is None:  # the cluster's nodes may have what this one lacks
            build_environments(cells)
        run_grid(cells, folder, results=folder if results is None else results, jobs=jobs, ray=ray)


def run_grid(cells: "Sequence[Cell]", folder: Path, *, results: Path, jobs: int | None = None, ray: str | None = None) -> None:
    """Make the runs that are not finished, and show how they come on and what they came to.

    :param cells: of the grid
    :param folder: of all runs
    :param results: where the results of each algorithm on each environment are written
    :param jobs: runs at a time; None for one per core
    :param ray: address of a Ray cluster to run on instead
    :raises typer.Exit: with status 1 if a run failed, 130 for Ctrl-C
    """
    from spinup_plugins.envs.shared import usable_cores
    from spinup_plugins.runs.bench import bench, results_of
    from spinup_plugins.runs.results import write_results

    outcomes: list[Outcome] = []
    console, aside = Console(highlight=False, markup=False), Console(stderr=True, highlight=False, markup=False)
    try:
        with Live(console=aside, transient=True, auto_refresh=False) as live:

            def watch(progress: "Progress") -> None:
                live.update(_table(cells, outcomes, progress), refresh=aside.is_terminal)

            for outcome in bench(cells, folder, jobs=jobs if jobs is not None else usable_cores(), ray=ray, watch=watch):
                outcomes.append(outcome)
                if outcome.error:
                    complain("error", f"{outcome.cell}: {outcome.error}")
                elif outcome.seconds:
                    live.console.print(f"{outcome.cell}: done in {outcome.seconds:,.0f} s", soft_wrap=True)
    except KeyboardInterrupt:
        complain("error", f"interrupted after {len(outcomes)} of {len(cells)} runs; the same command goes on")
        raise typer.Exit(130) from None
    found = results_of(cells)
    for home, each in found.items():
        write_results(results / home.relative_to(folder), each)
    console.print(_summary(cells, found))
    failed = sum(bool(outcome.error) for outcome in outcomes)
    console.print(f"{len(outcomes) - failed} of {len(cells)} runs finished; results are in {results}", soft_wrap=True)
    if failed:
        raise typer.Exit(1)


def seed_numbers(text: str) -> list[int]:
    """Read ``--seeds``: how many, from 0 on, or which; ``4,`` is seed 4 alone.

    :raises ConfigError: it is neither, or a seed stands there twice
    """
    try:
        seeds = [int(seed) for seed in text.removesuffix(",").split(",")] if "," in text else list(range(int(text)))
    except ValueError:
        raise ConfigError(f"--seeds {text}: expected how many, such as 3, or which, such as 0,1,2") from None
    if not seeds or len(set(seeds)) < len(seeds):
        raise ConfigError(f"--seeds {text}: expected at least one seed, and each once")
    return seeds


def _lists(vary: Sequence[str]) -> dict[str, list[Any]]:
    lists: dict[str, list[Any]] = {}
    for item in vary:
        key, _, text = item.partition("=")
        values = parse_yaml(text, f"--vary {key}")
        if not key or not isinstance(values, list) or not values:
            raise ConfigError(f"--vary {item}: expected KEY=[VALUE, …]")
        if key == "seed":
            which = ",".join(map(str, values))
            raise ConfigError(f"--vary {item}: runs over seeds are made by --seeds {which}{',' if len(values) == 1 else ''}")
        lists[key] = values
    return lists


def _table(cells: "Sequence[Cell]", outcomes: "Sequence[Outcome]", progress: "Progress") -> Table:
    """What stands where: runs of each algorithm on each environment."""
    left = f"{progress.steps:,} of {progress.total:,} steps"
    if progress.eta is not None:
        left += f", {clock(progress.eta)} left"
    table = Table(title=left, box=None, padding=(0, 2, 0, 0))
    for name in ("algorithm", "environment", "finished", "failed", "running"):
        table.add_column(name, justify="left" if name in ("algorithm", "environment") else "right")
    rows: dict[tuple[str, str], list[int]] = {}
    for cell in cells:
        rows.setdefault(_key(cell), [0, 0, 0, 0])[3] += 1
    for outcome in outcomes:
        rows[_key(outcome.cell)][1 if outcome.error else 0] += 1
    for cell in progress.running:
        rows[_key(cell)][2] += 1
    for (algo, env), (finished, failed, running, total) in rows.items():
        table.add_row(algo, env, f"{finished}/{total}", str(failed or ""), str(running or ""))
    return table


def _summary(cells: "Sequence[Cell]", found: "dict[Path, list[Result]]") -> Table:
    """Final returns over seeds: interquartile mean of the runs' means, with its bootstrap interval."""
    from spinup_plugins.runs.results import final_summary

    table = Table(box=None, padding=(0, 2, 0, 0))
    for name in ("algorithm", "environment", "seeds", "return (IQM)", "95 % interval"):
        table.add_column(name, justify="left" if name in ("algorithm", "environment") else "right")
    seen = {cell.folder.parent: _key(cell) for cell in cells}
    for home, (algo, env) in seen.items():
        if results := found.get(home):
            summary = final_summary(results)
            interval = "" if summary.interval is None else " to ".join(map(number, summary.interval))
            table.add_row(algo, env, str(summary.n), number(summary.iqm), interval)
    return table


def _key(cell: "Cell") -> tuple[str, str]:
    return cell.config.algo, " ".join(filter(None, (cell.config.env, cell.variant)))
