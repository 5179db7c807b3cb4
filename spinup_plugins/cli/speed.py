"""``spinup speed``: how fast things are beside Stable-Baselines3's, measured in one run."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from spinup_plugins.atomic import write_text
from spinup_plugins.cli.console import Debug, reporting
from spinup_plugins.errors import ConfigError, UnknownNameError, nearest

if TYPE_CHECKING:
    from spinup_plugins.runs.stepping import Ratio, Stepping

__all__ = ["command", "stepping_table"]

_SUBJECTS = ("stepping",)


def command(
    subject: Annotated[
        str, typer.Argument(metavar="SUBJECT", help="What to measure: stepping, of environments.", show_default=False)
    ],
    envs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="ENV",
            help="Gymnasium ids. Default: CartPole-v1, HalfCheetah-v5 and images of 84x84x4.",
            show_default=False,
        ),
    ] = None,
    n_envs: Annotated[str, typer.Option("--n-envs", help="Numbers of copies, with commas between them.")] = "1,4,16,64",
    rounds: Annotated[int, typer.Option("--rounds", help="How many turns each vec-env gets.")] = 5,
    seconds: Annotated[float, typer.Option("--seconds", help="Length of a turn in seconds.")] = 0.4,
    file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Also write all rounds to this file.", show_default=False)
    ] = None,
    debug: Debug = False,
) -> None:
    """Measure speed beside Stable-Baselines3's, in turns.

    stepping: steps per second of environments in LeanVecEnv beside DummyVecEnv, in SharedMemoryVecEnv beside SubprocVecEnv,
    and in the one that --vec-env auto chooses beside the faster of Stable-Baselines3's two. Ratios are medians over rounds,
    with the least and the most. --json writes every round, and what the
    workers' messages cost per step.
    """
    with reporting(debug):
        if subject not in _SUBJECTS:
            raise UnknownNameError(
                f"nothing is called {subject!r}{nearest(subject, _SUBJECTS)}; there is {', '.join(_SUBJECTS)}"
            )
        try:
            sizes = [int(each) for each in n_envs.split(",")]
        except ValueError:
            raise ConfigError(f"--n-envs {n_envs}: expected numbers such as 1,4,16") from None
        if file is not None and not file.absolute().parent.is_dir():
            raise ConfigError(f"--json {file}: there is no folder {str(file.parent)!r}")
        from spinup_plugins.runs.stepping import ENVS, benchmark

        with Console(stderr=True).status("") as status:
            results = benchmark(envs or ENVS, sizes, rounds=rounds, seconds=seconds, progress=status.update)
        Console(highlight=False).print(stepping_table(results))
        if file is not None:
            write_text(file, f"{json.dumps([each._asdict() | {'overhead': each.overhead} for each in results], indent=1)}\n")


def stepping_table(results: "Sequence[Stepping]") -> Table:
    """Return measurements as a table that fits 80 columns: three rows for each environment and number of copies.

    :param results: of :func:`spinup_plugins.runs.stepping.benchmark`
    """
    table = Table(
        box=None,
        pad_edge=False,
        padding=(0, 1, 0, 0),
        caption="steps/s of single environments; median (least-most) ratio of all rounds",
    )
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


def _ratio(ratio: "Ratio") -> str:
    return f"{ratio.median:.2f} ({ratio.low:.2f}-{ratio.high:.2f})"
