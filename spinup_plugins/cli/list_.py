"""``spinup list``: the algorithms there are, by Spinning Up's taxonomy."""

from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text
from rich.tree import Tree

from spinup_plugins import registry
from spinup_plugins.cli.console import Debug, complain, reporting
from spinup_plugins.errors import PluginError

__all__ = ["command", "taxonomy"]


def command(
    peers: Annotated[
        bool,
        typer.Option("--peers", help="Stable-Baselines3's and sb3-contrib's own algorithms (sb3:…), too. Default: off."),
    ] = False,
    debug: Debug = False,
) -> None:
    """List the algorithms.

    They stand in Spinning Up's taxonomy, with what each learns and which action spaces it acts on.
    """
    with reporting(debug):
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
