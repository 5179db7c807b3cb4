"""``spinup export``: agent files from runs and zips, and zips from agent files."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from spinup_plugins.cli.console import Debug, reporting, show

__all__ = ["command"]


def command(
    source: Annotated[
        Path, typer.Argument(metavar="SOURCE", help="Run folder, a model's .zip, or an agent file.", show_default=False)
    ],
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="FILE", help="File to write. Default: beside SOURCE.", show_default=False),
    ] = None,
    best: Annotated[
        bool, typer.Option("--best", help="The best model of the evaluations during training. Default: off, the last.")
    ] = False,
    algo: Annotated[
        str | None, typer.Option(metavar="ALGO", help="The model's algorithm. Default: the run's.", show_default=False)
    ] = None,
    env: Annotated[
        str | None,
        typer.Option(metavar="ENV", help="Environment it was trained on. Default: the run's.", show_default=False),
    ] = None,
    debug: Debug = False,
) -> None:
    """Turn a trained model into an agent file, or an agent file into a zip.

    An agent file holds weights, statistics, spaces, environment, configuration and scores as data alone: opening it executes
    nothing. Stable-Baselines3's zips are unpickled: export only those you trust.
    """
    with reporting(debug):
        from spinup_plugins.runs.export import export

        console = Console(highlight=False)
        written, agent = export(source, output, best=best, algo=algo, env=env)
        console.print(repr(agent), style="bold", soft_wrap=True, markup=False)
        show(console, "file", str(written))
        show(console, "hash", agent.hash)
