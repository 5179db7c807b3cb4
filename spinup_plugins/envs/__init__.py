"""Environments: Gymnasium wrappers, and any kind of vectorised environment as Stable-Baselines3's ``VecEnv``."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spinup_plugins.envs.convert import AnyEnv, as_vec_env
    from spinup_plugins.envs.gymnasium_vec import EnvPoolVecEnv, GymnasiumVecEnv
    from spinup_plugins.envs.kinds import VEC_ENVS
    from spinup_plugins.envs.lean import LeanVecEnv
    from spinup_plugins.envs.shared import SharedMemoryVecEnv
    from spinup_plugins.envs.wrappers import (
        CheckValues,
        DelayAction,
        DelayReward,
        EpisodeReturns,
        HistoryObservation,
        MaskObservation,
        NoisyAction,
        NoisyObservation,
        RandomAction,
        RecordTrajectories,
        ScaleReward,
        SparseReward,
        TerminateOnSuccess,
        TimeFeature,
        minari_dataset,
    )

_HOMES = {
    "VEC_ENVS": "kinds",
    "AnyEnv": "convert",
    "EnvPoolVecEnv": "gymnasium_vec",
    "GymnasiumVecEnv": "gymnasium_vec",
    "LeanVecEnv": "lean",
    "SharedMemoryVecEnv": "shared",
    "as_vec_env": "convert",
}
"""Modules of what is not in ``wrappers``."""

__all__ = [
    "VEC_ENVS",
    "AnyEnv",
    "CheckValues",
    "DelayAction",
    "DelayReward",
    "EnvPoolVecEnv",
    "EpisodeReturns",
    "GymnasiumVecEnv",
    "HistoryObservation",
    "LeanVecEnv",
    "MaskObservation",
    "NoisyAction",
    "NoisyObservation",
    "RandomAction",
    "RecordTrajectories",
    "ScaleReward",
    "SharedMemoryVecEnv",
    "SparseReward",
    "TerminateOnSuccess",
    "TimeFeature",
    "as_vec_env",
    "minari_dataset",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES.get(name, 'wrappers')}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
