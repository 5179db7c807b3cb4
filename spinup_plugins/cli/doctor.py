"""``spinup doctor``: what is installed, which tiers there are, and which one a model would run on."""

import os
import platform
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated

import typer
from rich.console import Console

from spinup_plugins.cli.console import Debug, reporting, show
from spinup_plugins.errors import ConfigError

__all__ = ["command"]

_PACKAGES = ("torch", "numpy", "stable-baselines3", "sb3-contrib", "gymnasium", "mujoco", "envpool", "optuna")


def command(
    algo: Annotated[str | None, typer.Argument(metavar="ALGO", help="Algorithm to try.", show_default=False)] = None,
    env: Annotated[
        str | None, typer.Argument(metavar="ENV", help="Gymnasium id of an environment to try it on.", show_default=False)
    ] = None,
    debug: Debug = False,
) -> None:
    """Show what is installed and what computes.

    With an algorithm and an environment: the tier that the model would act and learn on, and why no faster one.
    """
    with reporting(debug):
        from spinup_plugins.engine.tiers import NOT_BUILT, native

        if algo is not None and env is None:
            raise ConfigError(f"doctor {algo}: which environment? for example: spinup doctor {algo} CartPole-v1")
        console = Console(highlight=False)
        tell = partial(show, console, width=max(map(len, _PACKAGES)))
        tell("python", f"{platform.python_version()} on {platform.system()} {platform.machine()}")
        for package in _PACKAGES:
            tell(package, _version(package))
        tell("threads", f"{os.cpu_count()} processors")
        ops = native()
        tell("native", NOT_BUILT if ops is None else f"built, on {ops.isa()} instructions")
        if algo is not None and env is not None:
            from spinup_plugins.registry import make

            model = make(algo, env)
            tier = getattr(model, "engine", "torch")
            reason = getattr(model, "engine_reason", "not one of the six")
            tell("engine", f"{algo} on {env} runs on the {tier} tier" + (f": {reason}" if reason else ""))


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
