"""What the subcommands share: where output goes, how errors and warnings read, ``key=value`` options, shown results."""

import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from spinup_plugins.errors import ConfigError, EnvError, SpinupError
from spinup_plugins.runs.files import one_line
from spinup_plugins.yaml_files import nested, parse_yaml

if TYPE_CHECKING:
    from spinup_plugins.runs.evaluation import Evaluation

__all__ = [
    "Debug",
    "assignments",
    "clock",
    "complain",
    "episodes",
    "listed",
    "number",
    "option_name",
    "reporting",
    "show",
    "show_evaluation",
]

Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error. Default: off, one line.")]
"""The option that every command has."""


def complain(kind: str, message: str) -> None:
    """Write ``kind: message`` to standard error, on one line however narrow the terminal is.

    :param kind: "error" or "warning"
    :param message: what is wrong
    """
    line = Text.assemble((f"{kind}: ", "bold red" if kind == "error" else "bold yellow"), message)
    Console(stderr=True).print(line, soft_wrap=True)


@contextmanager
def reporting(debug: bool, progress: Callable[[], str] | None = None) -> Iterator[None]:
    """Turn what the block raises into one line and an exit status, and warnings into one line each.

    :param debug: let errors through, with their traceback
    :param progress: given once the input was found good: tells how far the work has come; failing then is status 1
    :raises typer.Exit: with status 130 for Ctrl-C, 2 for input that is not valid, 1 for everything else
    """

    shown: set[str] = set()

    def show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
        text = " ".join(re.sub(r"\x1b\[[0-9;]*m(WARN: )?", "", str(message)).split())  # Gymnasium colours its warnings
        if text not in shown:
            shown.add(text)
            complain("warning", text)

    try:
        with warnings.catch_warnings():
            warnings.showwarning = show_warning
            yield
    except KeyboardInterrupt:
        complain("error", f"interrupted {progress()}" if progress else "interrupted")
        raise typer.Exit(130) from None
    except typer.Exit:
        raise
    except Exception as error:
        if debug:
            raise
        complain("error", one_line(error) + (f", {progress()}" if progress else ""))
        bad_input = isinstance(error, SpinupError) and not isinstance(error, EnvError) and progress is None
        raise typer.Exit(2 if bad_input else 1) from None


def assignments(option: str, items: Sequence[str]) -> dict[str, Any]:
    """Read ``key=value`` texts; a dotted key sets one entry of a mapping.

    :param option: the option they were given to, for errors
    :param items: the texts; values are YAML 1.2, so ``1e-3`` is a number and ``[64, 64]`` a list
    :return: nested mappings
    :raises ConfigError: a text has another form, its value is not YAML, or a key is both a value and a mapping
    """
    values: dict[str, Any] = {}
    for item in items:
        key, equals, text = item.partition("=")
        if not equals or not all(key.split(".")):
            raise ConfigError(f"{option} {item}: expected key=value")
        values.pop(key, None)  # the last one counts, at its own place in the order
        values[key] = parse_yaml(text, f"{option} {key}")
    return nested(values, option)


def listed(text: str) -> list[str]:
    """Read names with commas between them, and spaces after those if wanted."""
    return [each.strip() for each in text.split(",")]


def option_name(keys: Sequence[str]) -> str:
    """Name the option of 'spinup train' that a key of the configuration was given by."""
    key, *inner = keys
    if key in ("algo", "env"):
        return key.upper()
    name = {"hyperparameters": "set", "callbacks": "callback", "wrappers": "wrap"}.get(key, key.replace("_", "-"))
    return " ".join([f"--{name}", ".".join(inner)]).rstrip()


def number(value: float) -> str:
    """Write a return or a score with the digits that matter."""
    return f"{value:,.1f}" if abs(value) >= 100 else f"{value:.3g}"


def clock(seconds: float) -> str:
    """Write a span of time as ``h:mm:ss``."""
    hours, rest = divmod(int(seconds), 3600)
    return f"{hours}:{rest // 60:02}:{rest % 60:02}"


def episodes(n: int) -> str:
    """Write a number of episodes."""
    return f"{n} episode{'s' if n > 1 else ''}"


def show(console: Console, label: str, value: str, *, width: int = 8) -> None:
    """Print one line of a result; a long value is not wrapped, so that a path in it can be copied."""
    console.print(Text.assemble((f"  {label:<{width}} ", "dim"), value), soft_wrap=True)


def show_evaluation(console: Console, evaluation: "Evaluation") -> None:
    """Print what an evaluation says about a policy."""
    summary = evaluation.summary
    show(console, "return", f"{number(summary.mean)} ± {number(summary.std)}  (mean ± std of {episodes(summary.n)})")
    if summary.interval is not None:
        low, high = map(number, summary.interval)
        show(console, "IQM", f"{number(summary.iqm)}  (95 % interval {low} to {high})")
    if evaluation.successes is not None:
        show(console, "success", f"{sum(evaluation.successes) / len(evaluation.successes):.0%}")
