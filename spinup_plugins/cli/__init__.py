"""The ``spinup`` command: one thin file per subcommand over functions that programs can call themselves.

Exit status: 0 for success, 1 for a run that failed, 2 for input that is not valid, 130 for Ctrl-C. Results go to
standard output; errors, warnings and the progress bar to standard error.
"""

import shlex
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from spinup_plugins import __version__
from spinup_plugins.cli import bench, describe, doctor, eval_, export, list_, parity, report, speed, train, tune, zoo
from spinup_plugins.cli.console import complain

__all__ = ["app", "main"]

app = typer.Typer(
    name="spinup",
    help="Train, evaluate and inspect Spinning Up's algorithms and their plugins on Gymnasium environments.",
    invoke_without_command=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help is readable at 80 columns, in a pager and in a file
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("list")(list_.command)
app.command("describe")(describe.command)
app.command("train")(train.command)
app.command("eval")(eval_.command)
app.command("export")(export.command)
app.command("bench")(bench.command)
app.command("report")(report.command)
app.command("tune")(tune.command)
app.command("speed")(speed.command)
app.command("parity")(parity.command)
app.command("doctor")(doctor.command)
app.add_typer(zoo.app, name="zoo")


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"spinup-plugins {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line.

    :param args: arguments after the program's name; None takes the process's own
    :return: exit status
    """
    args = list(sys.argv[1:] if args is None else args)
    if "" not in sys.path:  # callbacks and environments may live in modules of the working directory, as with python -m
        sys.path.insert(0, "")
    try:
        status = app(args, prog_name="spinup", standalone_mode=False, obj=shlex.join(["spinup", *args]))
    except typer.Abort:
        return 130
    except Exception as error:
        if not hasattr(error, "format_message"):  # usage errors: typer has no stable name for their class
            raise
        complain("error", error.format_message())
        return 2
    return int(status or 0)
