"""Environments from ids: vectorised, monitored, seeded, optionally normalised, with one clear line when that fails."""

import importlib.util
import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gymnasium as gym
from gymnasium.error import DependencyNotInstalled, NameNotFound, UnregisteredEnv
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from spinup_plugins.envs.convert import as_vec_env
from spinup_plugins.envs.kinds import VecEnvKind
from spinup_plugins.errors import ConfigError, UnknownNameError, nearest
from spinup_plugins.wrapping import resolve_wrappers

__all__ = ["make_env"]

_EXTRAS = {"gymnasium.envs.mujoco": "mujoco", "gymnasium.envs.box2d": "box2d"}


def make_env(
    env: str | Callable[..., gym.Env[Any, Any]],
    n_envs: int = 1,
    *,
    vec_env: VecEnvKind = "dummy",
    seed: int | None = None,
    env_kwargs: Mapping[str, Any] | None = None,
    wrappers: Sequence[str | Mapping[str, Any]] = (),
    normalize: bool | Mapping[str, Any] = False,
    monitor_dir: str | Path | None = None,
    gamma: float | None = None,
    tape: bool = False,
    images: bool = True,
) -> VecEnv:
    """Build ``n_envs`` copies of an environment as one monitored ``VecEnv``.

    :param env: an id that Gymnasium (or EnvPool) knows, ``"module:id"`` to import the module that registers it, or a
        function that makes the environment
    :param n_envs: number of copies, at least 1
    :param vec_env: a key of :data:`spinup_plugins.envs.VEC_ENVS`: where the copies are stepped
    :param seed: seeds copy ``i`` with ``seed + i`` at its first reset; None leaves the environments unseeded
    :param env_kwargs: arguments of the environment's constructor
    :param wrappers: names, or ``{name: {argument: value}}``, of wrappers around each copy, the innermost first
        (:mod:`spinup_plugins.wrapping`); returns and lengths are reported from outside of them
    :param normalize: True wraps in ``VecNormalize``; a mapping does so with these arguments
    :param monitor_dir: folder for the monitors' ``<i>.monitor.csv``; None writes no file
    :param gamma: discount for the running return that scales rewards when ``normalize`` does not give one
    :param tape: keep each copy's current episode, so that another copy can be brought to the same point
        (:mod:`spinup_plugins.envs.tape`); not of ``gym-async`` and ``envpool``
    :param images: let environments made by an id render images, which slows some down (:func:`.as_vec_env`)
    :raises UnknownNameError: there is no such environment or wrapper
    :raises ConfigError: an argument is not the environment's, or an optional dependency is missing
    """
    options = _normalize_options(normalize, gamma)
    wraps = resolve_wrappers(wrappers)
    name = env if isinstance(env, str) else getattr(env, "__name__", type(env).__name__)
    with _one_line_errors(name, env):
        if vec_env in ("subproc", "gym-async") or (vec_env == "auto" and n_envs > 1):
            # A worker that cannot build its environment dies with its message; build one here first to hear it.
            as_vec_env(env, 1, env_kwargs=env_kwargs, wrappers=wraps, images=images).close()
        envs = as_vec_env(
            env,
            n_envs,
            vec_env=vec_env,
            seed=seed,
            env_kwargs=env_kwargs,
            wrappers=wraps,
            monitor_dir=monitor_dir,
            tape=tape,
            images=images,
        )
    if options is None:
        return envs
    try:
        return VecNormalize(envs, **options)
    except (TypeError, ValueError, AssertionError) as error:
        envs.close()
        raise ConfigError(f"{name} cannot be normalised: {error}") from error


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
def _one_line_errors(name: str, env: str | Callable[..., Any]) -> Iterator[None]:
    """Turn what Gymnasium raises while building ``env`` into this package's errors."""
    try:
        yield
    except UnregisteredEnv as error:
        text = f"unknown environment {name!r}: {_first_line(error)}"
        if isinstance(error, NameNotFound) and ":" not in name and "Did you mean" not in text:
            text += f" Where a module of yours registers it: '<module>:{name}'"
        raise UnknownNameError(text) from error
    except (DependencyNotInstalled, ImportError) as error:
        raise _missing_dependency(name, error) from error
    except TypeError as error:
        unexpected = re.search(r"unexpected keyword argument '(\w+)'", str(error))
        if unexpected is None:
            raise
        key = unexpected[1]
        raise ConfigError(f"{name} has no argument {key!r}{nearest(key, _arguments(env))}") from error
    except gym.error.Error as error:
        raise ConfigError(f"environment {name!r}: {_first_line(error)}") from error


def _missing_dependency(env_id: str, error: Exception) -> ConfigError:
    spec = gym.registry.get(_registered(env_id))
    entry_point = spec.entry_point if spec is not None else None
    home = entry_point if isinstance(entry_point, str) else ""
    extra = next((extra for module, extra in _EXTRAS.items() if home.startswith(module)), None)
    # Gymnasium's v2 and v3 MuJoCo ids fail to import by design: there the extra would not help, its message does.
    if extra is None or importlib.util.find_spec(extra if extra == "mujoco" else "Box2D") is not None:
        return ConfigError(f"environment {env_id!r} cannot be built: {_first_line(error)}")
    return ConfigError(f'environment {env_id!r} needs an extra: pip install "spinup-plugins[{extra}]"')


def _arguments(env: str | Callable[..., Any]) -> list[str]:
    """Names of the arguments of the constructor behind an id, or of a function."""
    creator: Any = gym.spec(_registered(env)).entry_point if isinstance(env, str) else env
    creator = gym.envs.registration.load_env_creator(creator) if isinstance(creator, str) else creator
    return [] if creator is None else list(inspect.signature(creator).parameters)


def _registered(env_id: str) -> str:
    """The id without the module that registers it."""
    return env_id.rpartition(":")[2]


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
