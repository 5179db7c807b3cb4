"""Spinning Up's six algorithms as Stable-Baselines3 plugins.

``from spinup_plugins import PPO`` replaces ``from stable_baselines3 import PPO``; likewise TRPO, DDPG, TD3, SAC, and VPG,
which Stable-Baselines3 lacks. Names are resolved on first use, so that importing the package alone costs next to nothing.
"""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spinup_plugins.algorithms.ddpg import DDPG
    from spinup_plugins.algorithms.ppo import PPO
    from spinup_plugins.algorithms.sac import SAC
    from spinup_plugins.algorithms.td3 import TD3
    from spinup_plugins.algorithms.trpo import TRPO
    from spinup_plugins.algorithms.vpg import VPG
    from spinup_plugins.registry import AlgorithmSpec, algorithms, make, register
    from spinup_plugins.runs.agent import load_agent, save_agent

try:
    __version__ = version("spinup-plugins")
except PackageNotFoundError:  # run from a source tree that was never installed
    __version__ = "0.0.0"

_HOMES = {
    "VPG": "algorithms.vpg",
    "TRPO": "algorithms.trpo",
    "PPO": "algorithms.ppo",
    "DDPG": "algorithms.ddpg",
    "TD3": "algorithms.td3",
    "SAC": "algorithms.sac",
    "AlgorithmSpec": "registry",
    "load_agent": "runs.agent",
    "make": "registry",
    "register": "registry",
    "save_agent": "runs.agent",
}

__all__ = [
    "DDPG",
    "PPO",
    "SAC",
    "TD3",
    "TRPO",
    "VPG",
    "AlgorithmSpec",
    "__version__",
    "algorithms",
    "load_agent",
    "make",
    "register",
    "save_agent",
]


def __getattr__(name: str) -> Any:
    if name == "algorithms":  # the package itself is callable
        return import_module(f"{__name__}.algorithms")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
