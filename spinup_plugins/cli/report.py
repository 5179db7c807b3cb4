"""``spinup report``: learning curves, final returns and what follows from them, of runs that there are."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from spinup_plugins.cli.console import Debug, number, reporting
from spinup_plugins.errors import ConfigError

if TYPE_CHECKING:
    from spinup_plugins.runs.report import Comparison

__all__ = ["command"]


def command(
    dirs: Annotated[
        list[Path] | None,
        typer.Argument(metavar="DIR", help="Folders to look for runs in, to any depth.", show_default=False),
    ] = None,
    out: Annotated[Path, typer.Option("-o", "--out", metavar="FOLDER", help="Folder to write to.")] = Path("report"),
    label: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=DIR",
            help="Look in DIR, too, and call what is there NAME; may be repeated. Default: the algorithms' names.",
        ),
    ] = None,
    window: Annotated[int, typer.Option(help="Training episodes that a monitor file's returns are averaged over.")] = 100,
    fractions: Annotated[
        str, typer.Option(metavar="LIST", help="Normalised scores to tell the steps to, with commas between them.")
    ] = "0.5,0.75,0.95",
    strict: Annotated[
        bool, typer.Option("--strict", help="Fail at a damaged file or unfinished run. Default: off, they are passed over.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Compare runs: ours, Stable-Baselines3's evaluations and monitor files, rl_zoo3's logs.

    Found below each DIR are: run folders and those of 'spinup bench', curve.csv with final.csv, evaluations.npz, and
    *.monitor.csv where there are no evaluations. FOLDER/index.html is the report; README.md, CSV files and figures are
    beside it.
    """
    with reporting(debug):
        from spinup_plugins.runs.report import report

        if not dirs and not label:
            raise ConfigError("which folders? 'spinup report runs' compares what is below runs")
        comparison = report(
            dirs or (), out, labels=_labels(label or ()), window=window, fractions=_fractions(fractions), strict=strict
        )
        console = Console(highlight=False, markup=False)
        console.print(_summary(comparison))
        console.print(f"wrote {out / 'index.html'}", soft_wrap=True)


def _labels(texts: "list[str] | tuple[()]") -> dict[str, Path]:
    labels: dict[str, Path] = {}
    for text in texts:
        name, equals, folder = text.partition("=")
        if not name or not equals or not folder:
            raise ConfigError(f"--label {text}: expected NAME=DIR")
        if name in labels:
            raise ConfigError(f"--label {text}: {name!r} is {labels[name]} already")
        labels[name] = Path(folder).expanduser()  # no shell expands it there
    return labels


def _fractions(text: str) -> list[float]:
    try:
        fractions = [float(each) for each in text.split(",")]
    except ValueError:
        fractions = []
    if not fractions or not all(0.0 < each < math.inf for each in fractions):
        raise ConfigError(f"--fractions {text}: expected numbers above 0 such as 0.5,0.95")
    return fractions


def _summary(comparison: "Comparison") -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for name in ("algorithm", "environment", "seeds", "return (IQM)", "95 % interval"):
        table.add_column(name, justify="left" if name in ("algorithm", "environment") else "right")
    for group in comparison.groups:
        value, interval = group.final
        ends = "" if interval is None else " to ".join(map(number, interval))
        table.add_row(group.label, group.env, str(len(group.runs)), number(value), ends)
    return table
