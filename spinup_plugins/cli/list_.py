"""``spinup list``: the algorithms there are, by Spinning Up's taxonomy."""

import json
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from spinup_plugins import registry
from spinup_plugins.cli.console import Debug, complain, reporting
from spinup_plugins.errors import PluginError

__all__ = ["command", "taxonomy", "wrapper_table"]


def command(
    peers: Annotated[
        bool,
        typer.Option("--peers", help="Stable-Baselines3's and sb3-contrib's own algorithms (sb3:…), too. Default: off."),
    ] = False,
    wrappers: Annotated[
        bool,
        typer.Option("--wrappers", help="The environment wrappers for 'spinup train --wrap' instead. Default: off."),
    ] = False,
    debug: Debug = False,
) -> None:
    """List the algorithms, or the environment wrappers.

    Algorithms stand in Spinning Up's taxonomy, with what each learns and which action spaces it acts on; wrappers with
    their arguments and defaults.
    """
    with reporting(debug):
        if wrappers:
            Console().print(wrapper_table())
            return
        Console().print(taxonomy(peers=peers))
        for message in registry.errors().values():
            complain("warning", message)


def taxonomy(*, peers: bool = False) -> Tree:
    """Return the algorithms as a tree: model-free or -based, family, on- or off-policy, algorithm.

    :param peers: whether to include Stable-Baselines3's and sb3-contrib's own
    """
    tree = Tree("algorithms", hide_root=True)
    branches: dict[tuple[str, ...], Tree] = {(): tree}
    for name in registry.algorithms(peers=peers):
        try:
            spec = registry.get_spec(name)
        except PluginError:  # registry.errors() tells
            continue
        path: tuple[str, ...] = ()
        for label in (
            "model-free" if spec.model_free else "model-based",
            spec.family,
            "on-policy" if spec.on_policy else "off-policy",
        ):
            parent, path = branches[path], (*path, label)
            if path not in branches:
                branches[path] = parent.add(Text(label, style="bold"))
        origin = f"  (from {spec.distribution})" if spec.distribution else ""
        branches[path].add(
            Text.assemble(
                (name, "bold cyan"),
                f"  {spec.summary}{origin}\n",
                (f"learns {', '.join(spec.learns)}; acts on {', '.join(spec.action_spaces)}", "dim"),
            )
        )
    return tree


def wrapper_table() -> Table:
    """Return the wrappers that go by a name: what each does, and its arguments with their defaults."""
    from spinup_plugins.wrapping import wrapper_docs

    table = Table("wrapper", "what it does", box=None, pad_edge=False)
    for row in wrapper_docs():
        arguments = ", ".join(
            name if each.required else f"{name}={json.dumps(each.default, default=str)}"
            for name, each in row.parameters.items()
        )
        told = Text.assemble(row.summary, (f"\n{arguments}" if arguments else "", "dim"))
        table.add_row(Text(row.name, "bold cyan"), told)
    return table
