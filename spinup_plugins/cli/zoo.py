"""``spinup zoo``: tuned values by environment, what they reach, and agents trained with them."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from spinup_plugins.cli.bench import Algos, Envs, Jobs, Seeds, run_grid, seed_numbers
from spinup_plugins.cli.console import Debug, complain, listed, number, reporting, show
from spinup_plugins.errors import ConfigError

if TYPE_CHECKING:
    from spinup_plugins.runs.statistics import Summary

__all__ = ["app"]

app = typer.Typer(
    help="Tuned values by environment, what they reach over seeds, and agents trained with them.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

AnyAlgos = Annotated[
    str | None,
    typer.Argument(metavar="ALGOS", help="Algorithms, with commas between them. Default: all.", show_default=False),
]
AnyEnvs = Annotated[
    str | None,
    typer.Argument(metavar="ENVS", help="Gymnasium ids, with commas between them. Default: all.", show_default=False),
]


@app.command("list")
def list_(algos: AnyAlgos = None, envs: AnyEnvs = None, debug: Debug = False) -> None:
    """List what the zoo has: budgets, returns over seeds, and whether an agent comes with it."""
    with reporting(debug):
        from spinup_plugins.runs.agent import published
        from spinup_plugins.runs.results import final_summary
        from spinup_plugins.zoo.catalog import entries

        table = Table(box=None, padding=(0, 2, 0, 0))
        for name in ("algo", "environment", "steps", "seeds", "IQM [95 % interval]", "agent"):
            table.add_column(name, justify="right" if name in ("steps", "seeds") else "left", no_wrap=name == "environment")
        for entry in entries(_split(algos), _split(envs)):
            results = entry.results
            summary = final_summary(results) if results else None
            table.add_row(
                entry.algo,
                entry.env,
                f"{entry.values['n_timesteps'] / 1000:g}k",
                str(len(results) or ""),
                "" if summary is None else f"{number(summary.iqm)} {_interval(summary)}".rstrip(),
                "yes" if published(entry.algo, entry.env).is_file() else "",
            )
        Console(highlight=False).print(table)


@app.command("show")
def show_(
    algo: Annotated[str, typer.Argument(metavar="ALGO", help="Algorithm.", show_default=False)],
    env: Annotated[str, typer.Argument(metavar="ENV", help="Gymnasium id.", show_default=False)],
    debug: Debug = False,
) -> None:
    """Show one entry: its values and where they come from, what it reaches, its agent, and how to use it."""
    with reporting(debug):
        from spinup_plugins.runs.agent import published
        from spinup_plugins.runs.results import final_summary
        from spinup_plugins.yaml_files import dump_yaml
        from spinup_plugins.zoo.catalog import entries

        (entry,) = entries([algo], [env])
        console = Console(highlight=False)
        console.print(str(entry), style="bold", soft_wrap=True)
        console.print(dump_yaml(entry.values).rstrip(), soft_wrap=True, markup=False)
        if results := entry.results:
            summary = final_summary(results)
            interval = f", 95 % interval {_interval(summary)}" if summary.interval is not None else ""
            show(console, "return", f"{number(summary.iqm)} (IQM over {summary.n} seeds{interval})")
        file = published(entry.algo, entry.env)
        if file.is_file():
            show(console, "agent", str(file))
            show(console, "load", f"load_agent({entry.algo!r}, {entry.env!r})")
        show(console, "train", f"spinup zoo train {entry.algo} {entry.env}")


@app.command("train")
def train(
    algos: Algos,
    envs: Envs,
    seeds: Seeds = "3",
    jobs: Jobs = None,
    ray: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="Run on a Ray cluster instead, as of 'spinup bench'. Default: off."),
    ] = None,
    folder: Annotated[
        Path, typer.Option("-f", "--folder", metavar="FOLDER", help="Folder of all runs: FOLDER/ALGO/ENV/seed<n>.")
    ] = Path("runs/zoo"),
    publish: Annotated[
        bool,
        typer.Option(
            "--publish",
            help="Replace the zoo's own results by these, and its agent by that of the seed in the middle. Default: off.",
        ),
    ] = False,
    debug: Debug = False,
) -> None:
    """Train as the zoo's entries say, over seeds, evaluated as the zoo's results are; goes on where it was stopped.

    Pairs of an algorithm and an environment that the zoo has no values for are left out.
    """
    with reporting(debug):
        from spinup_plugins.runs.bench import grid
        from spinup_plugins.runs.config import Layer
        from spinup_plugins.zoo.catalog import checkout, entries

        if publish:
            checkout()
        chosen = entries(listed(algos), listed(envs))
        zoo = Layer({"preset": "zoo"}, lambda _: "--preset")
        numbers = seed_numbers(seeds)
        cells = [cell for entry in chosen for cell in grid([entry.algo], [entry.env], numbers, folder, layers=[zoo])]
        cells.sort(key=lambda cell: numbers.index(cell.config.seed))
        run_grid(cells, folder, results=folder, jobs=jobs, ray=ray)
        if publish:
            from spinup_plugins.zoo.publish import publish_entry

            for entry in chosen:
                print(publish_entry(entry, folder))


@app.command("verify")
def verify(
    algos: AnyAlgos = None,
    envs: AnyEnvs = None,
    episodes: Annotated[int, typer.Option("-n", "--episodes", min=2, help="Episodes to play with each agent.")] = 100,
    seed: Annotated[int, typer.Option(min=0, help="Seed of their initial states.")] = 0,
    debug: Debug = False,
) -> None:
    """Load published agents, check their hashes, play them anew and compare with what their cards say.

    Exit status 1 if one is damaged or plays otherwise than chance allows (Mann and Whitney's test, at a level of 0.01 for
    all of them together).
    """
    with reporting(debug):
        from spinup_plugins.runs.agent import published
        from spinup_plugins.zoo.catalog import entries
        from spinup_plugins.zoo.verify import verify as verdicts

        chosen = [e for e in entries(_split(algos), _split(envs)) if published(e.algo, e.env).is_file()]
        if not chosen:
            whose = " on ".join(filter(None, (algos, envs)))
            raise ConfigError(f"the zoo has no agent{' for ' + whose if whose else ''}: 'spinup zoo list' tells which it has")
        console, faults = Console(highlight=False), 0
        for verdict in verdicts(chosen, episodes=episodes, seed=seed):
            if verdict.fault:
                faults += 1
                complain("error", f"{verdict.entry}: {verdict.fault}")
            elif verdict.published is not None and verdict.again is not None:
                was, now = number(verdict.published.mean), number(verdict.again.mean)
                console.print(f"{verdict.entry}: {now}, published {was}, p = {verdict.p_value:.2g}", soft_wrap=True)
        console.print(f"{len(chosen) - faults} of {len(chosen)} agents are as published")
        if faults:
            raise typer.Exit(1)


@app.command("table")
def table(debug: Debug = False) -> None:
    """Write the zoo's README.md, plots and page from the results that it keeps."""
    with reporting(debug):
        from spinup_plugins.zoo.table import write_table

        for path in write_table():
            print(path)


def _split(text: str | None) -> list[str]:
    return [] if text is None else listed(text)


def _interval(summary: "Summary") -> str:
    return "" if summary.interval is None else "[{}, {}]".format(*map(number, summary.interval))
