"""``spinup describe``: what an algorithm is, and everything that can be set about it."""

import json
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from spinup_plugins import registry
from spinup_plugins.cli.console import Debug, reporting, show
from spinup_plugins.errors import UnknownNameError

if TYPE_CHECKING:
    from spinup_plugins.registry import AlgorithmSpec

__all__ = ["command", "preset_table"]


def command(
    algo: Annotated[str, typer.Argument(metavar="ALGO", help="Algorithm; 'spinup list' shows them.", show_default=False)],
    env: Annotated[
        str | None,
        typer.Option(metavar="ENV", help="Show the zoo's preset for this environment, too. Default: none."),
    ] = None,
    debug: Debug = False,
) -> None:
    """Describe an algorithm and its arguments.

    Its source, its presets side by side, and every constructor argument with its default and type.
    """
    with reporting(debug):
        from spinup_plugins.schema import constructor_parameters, describe_type

        spec = registry.get_spec(algo)
        presets = preset_table(spec, env)
        console = Console(highlight=False)
        console.print(Text.assemble((spec.name, "bold cyan"), f"  {spec.summary}"))
        show(console, "family", f"{spec.family}, {'on' if spec.on_policy else 'off'}-policy")
        show(console, "learns", ", ".join(spec.learns))
        show(console, "acts on", ", ".join(spec.action_spaces))
        show(console, "source", spec.paper)
        show(console, "class", spec.cls_path)
        if presets.row_count:
            console.print("\npresets, where they differ", style="bold")
            console.print(presets)
        console.print(
            "\narguments, for --set NAME=VALUE (policy, seed and tensorboard have options of their own)", style="bold"
        )
        for name, each in constructor_parameters(spec.load()).items():
            default = " (required)" if each.required else f" = {_spelled(name, each.default)}"
            kind = describe_type(each.annotation)
            console.print(Text.assemble("  ", (name, "cyan"), default, (f"  {kind}", "dim")), soft_wrap=True)
            console.print(Padding(Text(each.doc.replace("``", "")), (0, 0, 0, 6), expand=False))


def preset_table(spec: "AlgorithmSpec", env: str | None) -> Table:
    """Return the arguments in which presets differ, with a column for each preset.

    :param spec: the algorithm
    :param env: environment to look up in the zoo; None leaves the zoo out
    :raises UnknownNameError: ``env`` is given, but the algorithm has no zoo
    :raises ConfigError: the zoo has no entry for ``env``
    """
    from spinup_plugins.schema import constructor_parameters

    defaults = {name: each.default for name, each in constructor_parameters(spec.load()).items()}
    presets = {"default": defaults}
    with suppress(UnknownNameError):  # only the original's algorithms have it
        presets["spinning_up"] = registry.preset_values(spec, "spinning_up", env)
    if env is not None:
        presets["zoo"] = registry.preset_values(spec, "zoo", env)
    table = Table("argument", *presets, box=None, header_style="dim")
    for name in dict.fromkeys(name for values in presets.values() for name in values):
        row = [_spelled(name, values.get(name, defaults.get(name))) for values in presets.values()]
        if len(set(row)) > 1:
            table.add_row(name, *row)
    return table


def _spelled(name: str, value: Any) -> str:
    """Write a value as ``--set`` takes it: in JSON, which is YAML but for infinity; a word needs no quotes."""
    from spinup_plugins.schema import jsonable

    plain = jsonable({name: value})[name]
    return plain if isinstance(plain, str) else json.dumps(plain).replace("Infinity", ".inf")
