"""``spinup eval``: how well a trained model does."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from spinup_plugins.cli.console import Debug, complain, reporting, show_evaluation

__all__ = ["command"]


def command(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="Run folder, a model's .zip, or an agent file.", show_default=False)
    ],
    episodes: Annotated[int, typer.Option("-n", "--episodes", help="Number of episodes.")] = 100,
    stochastic: Annotated[
        bool, typer.Option("--stochastic", help="Sample actions. Default: off, take the policy's most likely one.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the initial states; equal seeds give equal numbers.")] = 0,
    best: Annotated[
        bool, typer.Option("--best", help="The best model of the evaluations during training. Default: off, the last.")
    ] = False,
    render: Annotated[bool, typer.Option("--render", help="Show the episodes in a window. Default: off.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print each episode's return and its length in steps as JSON. Default: off.")
    ] = False,
    algo: Annotated[
        str | None, typer.Option(metavar="ALGO", help="The model's algorithm. Default: the run's.", show_default=False)
    ] = None,
    env: Annotated[
        str | None, typer.Option(metavar="ENV", help="Environment to play. Default: the run's.", show_default=False)
    ] = None,
    debug: Debug = False,
) -> None:
    """Evaluate a trained model.

    Undiscounted return of whole episodes: mean, standard deviation, and interquartile mean (IQM) with a 95 % interval.
    Zips are unpickled: evaluate only those you trust. Agent files hold nothing to execute.
    """
    with reporting(debug):
        from spinup_plugins.runs.evaluation import derived_seed, evaluate, load_run

        loaded = load_run(run, best=best, algo=algo, env=env, render=render)
        if loaded.status is not None and loaded.status.state != "finished":
            complain("warning", f"this run is {loaded.status.state}, not finished")
        try:
            evaluation = evaluate(
                loaded.model, loaded.env, episodes, deterministic=not stochastic, seed=derived_seed(seed, "report")
            )
        finally:
            loaded.env.close()
        if as_json:
            print(evaluation.json())
            return
        console = Console(highlight=False)
        how = "stochastic" if stochastic else "deterministic"
        title = f"{loaded.config.algo} on {loaded.config.env} after {loaded.model.num_timesteps:,} steps, {how}"
        console.print(title, style="bold", soft_wrap=True)
        show_evaluation(console, evaluation)
