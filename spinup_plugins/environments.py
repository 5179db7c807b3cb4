"""Environments from ids: vectorised, monitored, seeded, optionally normalised, with one clear line when that fails."""

import importlib.util
import inspect
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import gymnasium as gym
from gymnasium.error import DependencyNotInstalled, UnregisteredEnv
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecNormalize

from spinup_plugins.errors import ConfigError, UnknownNameError, nearest

__all__ = ["make_env"]

_EXTRAS = {"gymnasium.envs.mujoco": "mujoco", "gymnasium.envs.box2d": "box2d"}


def make_env(
    env_id: str,
    n_envs: int = 1,
    *,
    vec_env: Literal["dummy", "subproc"] = "dummy",
    seed: int | None = None,
    env_kwargs: Mapping[str, Any] | None = None,
    normalize: bool | Mapping[str, Any] = False,
    monitor_dir: str | Path | None = None,
    gamma: float | None = None,
) -> VecEnv:
    """Build ``n_envs`` copies of a registered environment as one monitored ``VecEnv``.

    :param env_id: an id that Gymnasium knows, or ``"module:id"`` to import the module that registers it
    :param n_envs: number of copies, at least 1
    :param vec_env: ``"dummy"`` steps the copies in this process, ``"subproc"`` gives each its own
    :param seed: seeds copy ``i`` with ``seed + i`` at its first reset; None leaves the environments unseeded
    :param env_kwargs: arguments of the environment's constructor
    :param normalize: True wraps in ``VecNormalize``; a mapping does so with these arguments
    :param monitor_dir: folder for the monitors' ``<i>.monitor.csv``; None writes no file
    :param gamma: discount for the running return that scales rewards when ``normalize`` does not give one
    :raises UnknownNameError: there is no such environment
    :raises ConfigError: an argument is not the environment's, or an optional dependency is missing
    """
    if n_envs < 1:
        raise ConfigError(f"n_envs must be at least 1, not {n_envs}")
    classes: dict[str, type[DummyVecEnv | SubprocVecEnv]] = {"dummy": DummyVecEnv, "subproc": SubprocVecEnv}
    if vec_env not in classes:
        raise ConfigError(f"vec_env must be 'dummy' or 'subproc', not {vec_env!r}{nearest(vec_env, classes)}")
    options = _normalize_options(normalize, gamma)
    with _one_line_errors(env_id):
        if vec_env == "subproc":
            # A worker that cannot build its environment dies with its message; build one here first to hear it.
            gym.make(env_id, **(env_kwargs or {})).close()
        envs = make_vec_env(
            env_id,
            n_envs,
            seed=seed,
            monitor_dir=None if monitor_dir is None else str(monitor_dir),
            env_kwargs=dict(env_kwargs or {}),
            vec_env_cls=classes[vec_env],
        )
    if options is None:
        return envs
    try:
        return VecNormalize(envs, **options)
    except (TypeError, ValueError, AssertionError) as error:
        envs.close()
        raise ConfigError(f"{env_id} cannot be normalised: {error}") from error


def _normalize_options(normalize: bool | Mapping[str, Any], gamma: float | None) -> dict[str, Any] | None:
    """Return the arguments of ``VecNormalize``, or None for no normalisation."""
    if isinstance(normalize, bool):
        if not normalize:
            return None
        normalize = {}
    known = list(inspect.signature(VecNormalize).parameters)[1:]
    for key in normalize:
        if key not in known:
            raise ConfigError(f"normalize has no option {key!r}{nearest(key, known)}")
    return {**({} if gamma is None else {"gamma": gamma}), **normalize}


@contextmanager
def _one_line_errors(env_id: str) -> Iterator[None]:
    """Turn what Gymnasium raises while building ``env_id`` into this package's errors."""
    try:
        yield
    except UnregisteredEnv as error:
        raise UnknownNameError(f"unknown environment {env_id!r}: {_first_line(error)}") from error
    except (DependencyNotInstalled, ImportError) as error:
        raise _missing_dependency(env_id, error) from error
    except TypeError as error:
        unexpected = re.search(r"unexpected keyword argument '(\w+)'", str(error))
        if unexpected is None:
            raise
        key = unexpected[1]
        raise ConfigError(f"{env_id} has no argument {key!r}{nearest(key, _arguments(env_id))}") from error
    except gym.error.Error as error:
        raise ConfigError(f"environment {env_id!r}: {_first_line(error)}") from error


def _missing_dependency(env_id: str, error: Exception) -> ConfigError:
    spec = gym.registry.get(env_id)
    entry_point = spec.entry_point if spec is not None else None
    home = entry_point if isinstance(entry_point, str) else ""
    extra = next((extra for module, extra in _EXTRAS.items() if home.startswith(module)), None)
    # Gymnasium's v2 and v3 MuJoCo ids fail to import by design: there the extra would not help, its message does.
    if extra is None or importlib.util.find_spec(extra if extra == "mujoco" else "Box2D") is not None:
        return ConfigError(f"environment {env_id!r} cannot be built: {_first_line(error)}")
    return ConfigError(f'environment {env_id!r} needs an extra: pip install "spinup-plugins[{extra}]"')


def _arguments(env_id: str) -> list[str]:
    """Names of the constructor arguments of ``env_id``."""
    entry_point = gym.spec(env_id).entry_point
    creator = gym.envs.registration.load_env_creator(entry_point) if isinstance(entry_point, str) else entry_point
    return [] if creator is None else list(inspect.signature(creator).parameters)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
