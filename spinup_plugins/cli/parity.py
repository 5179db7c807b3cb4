"""``spinup parity``: whether ours learns as Stable-Baselines3's does, over seeds and on every tier."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from spinup_plugins.cli.console import Debug, complain, number, reporting
from spinup_plugins.errors import ConfigError, UnknownNameError, nearest

__all__ = ["command"]


def command(
    algo: Annotated[
        str | None,
        typer.Argument(metavar="ALGO", help="Algorithm: ppo, trpo, sac or td3. Default: all.", show_default=False),
    ] = None,
    env: Annotated[
        str | None,
        typer.Argument(metavar="ENV", help="Environment it is compared on. Default: all of them.", show_default=False),
    ] = None,
    seeds: Annotated[str, typer.Option("--seeds", help="Seeds, with commas between them.")] = "0,1,2,3,4",
    sides: Annotated[
        str | None,
        typer.Option(
            "--sides",
            help="Whose curves: of sb3, torch, numpy, native, with commas between them. Default: all that there are.",
        ),
    ] = None,
    jobs: Annotated[int, typer.Option("--jobs", help="Runs at a time, a process with one thread each.")] = 1,
    steps: Annotated[
        int | None, typer.Option("--steps", help="Environment steps of each run. Default: the case's.", show_default=False)
    ] = None,
    out: Annotated[
        Path, typer.Option("--out", metavar="FOLDER", help="Where curves and report are kept.", show_default=True)
    ] = Path("zoo/results/parity"),
    write_report: Annotated[
        bool, typer.Option("--report", help="Make no curves; write README.md and plots from those there are. Default: off.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Compare learning curves with Stable-Baselines3's, over seeds.

    Hyperparameters are the same on all sides. Each run's curve is written to FOLDER/ALGO/ENV/SIDE-seed<n>.csv when it ends;
    runs whose file exists are not made again, so that the command takes up where it was stopped.
    """
    with reporting(debug):
        from spinup_plugins.engine.tiers import native
        from spinup_plugins.runs.parity import SIDES, Run, cases, report, run_all

        if write_report:
            if algo is not None:
                raise ConfigError(f"--report is of all cases, not of {algo!r} alone")
            report(out)
            Console(highlight=False).print(f"wrote {out / 'README.md'}", soft_wrap=True, markup=False)
            return
        try:
            numbers = [int(seed) for seed in seeds.split(",")]
        except ValueError:
            raise ConfigError(f"--seeds {seeds}: expected numbers such as 0,1,2") from None
        chosen = [side for side in SIDES if side != "native" or native()] if sides is None else sides.split(",")
        for side in chosen:
            if side not in SIDES:
                raise UnknownNameError(
                    f"--sides: no side is called {side!r}{nearest(side, SIDES)}; there are {', '.join(SIDES)}"
                )
        if steps is not None and steps < 1:
            raise ConfigError(f"--steps must be greater than 0, not {steps}")
        wanted = [case if steps is None else case._replace(steps=steps) for case in cases(algo, env)]
        # Seeds before sides: whenever it is stopped, all sides have about as many.
        runs = [Run(case, side, seed) for case in wanted for seed in numbers for side in chosen]
        out.mkdir(parents=True, exist_ok=True)
        console, failed = Console(highlight=False), 0
        with Console(stderr=True).status("") as status:
            for outcome in run_all(runs, out, jobs=jobs, progress=status.update):
                if outcome.error:
                    failed += 1
                    complain("error", f"{outcome.run}: {outcome.error}")
                else:
                    how = f"in {outcome.seconds:,.0f} s" if outcome.seconds else "there already"
                    console.print(f"{outcome.run}: {number(outcome.final)} at the end, {how}", soft_wrap=True, markup=False)
        if failed:
            raise typer.Exit(1)
