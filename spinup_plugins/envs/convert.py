"""Whatever environment a user has, as the one kind of environment that Stable-Baselines3's algorithms train on."""

import importlib
import importlib.util
import inspect
import multiprocessing
import secrets
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from numbers import Integral
from pathlib import Path
from typing import Any, TypeAlias, cast

import gymnasium as gym
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, VectorEnv
from stable_baselines3.common.env_util import is_wrapped
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.patch_gym import _patch_env

from spinup_plugins.envs.gymnasium_vec import EnvPoolVecEnv, GymnasiumVecEnv, is_envpool
from spinup_plugins.envs.kinds import VEC_ENVS, VecEnvKind
from spinup_plugins.envs.lean import LeanVecEnv
from spinup_plugins.envs.tape import EpisodeTape
from spinup_plugins.errors import ConfigError, nearest

__all__ = ["AnyEnv", "EnvFn", "Wrap", "as_vec_env", "is_recipe"]

Env: TypeAlias = gym.Env[Any, Any]
EnvFn: TypeAlias = Callable[..., Env]
Wrap: TypeAlias = Callable[[Env], Env]
AnyEnv: TypeAlias = str | EnvFn | Sequence[EnvFn] | Env | VectorEnv[Any, Any, Any] | VecEnv
"""An id, a function or functions that make an environment, a Gymnasium environment or vector environment (EnvPool's is
one), or a ``VecEnv``."""


def as_vec_env(
    source: AnyEnv,
    n_envs: int | None = None,
    *,
    vec_env: VecEnvKind = "dummy",
    seed: int | None = None,
    env_kwargs: Mapping[str, Any] | None = None,
    wrappers: Sequence[Wrap] = (),
    monitor: bool = True,
    monitor_dir: str | Path | None = None,
    tape: bool = False,
    images: bool = True,
    autoreset_mode: str | AutoresetMode | None = None,
) -> VecEnv:
    """Return any environment as a monitored ``VecEnv`` with the right values where episodes end.

    An environment that exists already is taken as it is; ``n_envs``, ``vec_env``, ``env_kwargs`` and ``wrappers`` are for
    an id or a function, of which copies can be made. A ``VecEnv`` is returned itself.

    Where ``reset_steps`` of the result is true, steps marked ``info["reset_step"]`` only reset an environment. The algorithms
    of this package leave them out; others are warned.

    :param source: Gymnasium id, function or functions that make an environment, Gymnasium ``Env``, Gymnasium
        ``VectorEnv`` of any autoreset mode, EnvPool (its gymnasium interface), or ``VecEnv``
    :param n_envs: number of copies, 1 by default
    :param vec_env: a key of :data:`VEC_ENVS`
    :param seed: seeds copy ``i`` with ``seed + i`` at its first reset; None leaves the environments unseeded
    :param env_kwargs: arguments for the environment's constructor or the function
    :param wrappers: applied to each copy in this order, inside of its monitor
    :param monitor: report the return and length of every episode in ``info["episode"]``, as a ``VectorEnv`` always does here
    :param monitor_dir: folder for the monitors' ``<i>.monitor.csv``; None writes no file
    :param tape: wrap each copy in an :class:`~.tape.EpisodeTape`, where ``n_envs`` copies are made for ``dummy``, ``subproc``
        or ``auto``
    :param images: let environments made by an id render images, as Stable-Baselines3's ``make_vec_env`` does. Some draw
        while they step: without, LunarLander takes the same steps several times as fast. ``wrappers`` may want images and
        get them in any case.
    :param autoreset_mode: of a ``VectorEnv`` whose metadata do not tell it
    :raises ConfigError: ``source`` is no environment, or an argument does not go with it
    """
    if vec_env not in VEC_ENVS:
        kinds = ", ".join(map(repr, VEC_ENVS))
        raise ConfigError(f"vec_env must be one of {kinds}, not {vec_env!r}{nearest(str(vec_env), VEC_ENVS)}")
    counts: dict[str, Any] = {"n_envs": n_envs, "seed": seed}
    for name, count in counts.items():
        if count is not None and not isinstance(count, Integral):
            raise ConfigError(f"{name}={count!r} must be a whole number, an int")
    if n_envs is not None and n_envs < 1:
        raise ConfigError(f"n_envs must be at least 1, not {n_envs}")
    if autoreset_mode is not None and (is_envpool(source) or not isinstance(source, VectorEnv)):
        raise ConfigError("autoreset_mode is for a Gymnasium VectorEnv that does not tell its own")
    if monitor_dir is not None and isinstance(source, VecEnv):
        raise ConfigError("monitor_dir is not for a VecEnv, whose environments are monitored already or not at all")
    made = _existing(source, monitor, monitor_dir, autoreset_mode)
    if made is not None:
        for name, given in (("env_kwargs", env_kwargs), ("wrappers", wrappers), ("vec_env", vec_env != "dummy")):
            if given:
                raise ConfigError(f"{name} is for an environment given by its id or a function, not for a {_kind(source)}")
        if n_envs not in (None, made.num_envs):
            raise ConfigError(f"n_envs={n_envs} copies cannot be made of a {_kind(source)} of {made.num_envs}")
    elif vec_env == "envpool":
        made = _envpool(source, n_envs or 1, seed, env_kwargs or {}, wrappers, monitor_dir)
    else:
        functions = _functions(source, n_envs, env_kwargs or {}, images or bool(wrappers))
        made = _several(functions, vec_env, seed, wrappers, monitor, monitor_dir, tape)
    if seed is not None:
        made.seed(seed)
    return made


def is_recipe(source: Any) -> bool:
    """Whether ``source`` is an id or a function, of which any number of copies can be made."""
    made_already = hasattr(source, "action_space") and not isinstance(source, type)
    return isinstance(source, str) or (callable(source) and not made_already)


def _existing(
    source: AnyEnv, monitor: bool, monitor_dir: str | Path | None, autoreset_mode: str | AutoresetMode | None
) -> VecEnv | None:
    """Convert an environment that exists already; None if ``source`` is what copies are made of."""
    if isinstance(source, VecEnv):
        return source
    if is_envpool(source):  # before the others: it derives from Gymnasium's two classes
        return EnvPoolVecEnv(source, monitor_dir=monitor_dir)
    if isinstance(source, VectorEnv):
        return GymnasiumVecEnv(source, autoreset_mode=autoreset_mode, monitor_dir=monitor_dir)
    if is_recipe(source) or (isinstance(source, Sequence) and all(map(callable, source))):
        return None
    if not hasattr(source, "step") or not hasattr(source, "action_space"):
        raise ConfigError(
            "expected an environment: an id, a function that makes one, a gymnasium.Env or VectorEnv, EnvPool or a VecEnv,"
            f" not {source!r}"
        )
    env = _patch_env(source)  # one of gym's, where shimmy is installed
    return LeanVecEnv([lambda: _monitored(env, 0, monitor, monitor_dir)])


def _several(
    functions: Sequence[EnvFn],
    vec_env: str,
    seed: int | None,
    wrappers: Sequence[Wrap],
    monitor: bool,
    monitor_dir: str | Path | None,
    tape: bool,
) -> VecEnv:
    inside = vec_env != "gym-async"  # GymnasiumVecEnv monitors from outside
    copies: list[EnvFn] = [
        _Copy(
            function,
            index,
            None if seed is None else seed + index,
            tuple(wrappers),
            monitor and inside,
            monitor_dir,
            tape and inside,
        )
        for index, function in enumerate(functions)
    ]
    if vec_env in ("auto", "subproc"):
        from spinup_plugins.envs.shared import SharedMemoryVecEnv
        from spinup_plugins.envs.stepping import choose, workers

        # Without wrappers, which may record what they see.
        if vec_env == "subproc":
            return SharedMemoryVecEnv(copies, n_workers=workers(functions))
        plan = choose(functions)
        if plan.kind == "subproc":
            return SharedMemoryVecEnv(copies, n_workers=plan.n_workers)
    if vec_env in ("auto", "dummy"):
        return LeanVecEnv(copies)
    context = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    envs = AsyncVectorEnv(copies, context=context, autoreset_mode=AutoresetMode.SAME_STEP)
    return GymnasiumVecEnv(envs, monitor_dir=monitor_dir)


class _Copy:
    """Makes one copy of an environment, wherever it is called; picklable if the function and the wrappers are."""

    def __init__(
        self,
        function: EnvFn,
        index: int,
        seed: int | None,
        wrappers: Sequence[Wrap],
        monitor: bool,
        monitor_dir: str | Path | None,
        tape: bool,
    ) -> None:
        self.function, self.index, self.seed, self.wrappers, self.tape = function, index, seed, wrappers, tape
        self.monitor, self.monitor_dir = monitor, None if monitor_dir is None else str(monitor_dir)

    def __call__(self) -> Env:
        env: Env = _patch_env(self.function())
        for wrap in self.wrappers:
            env = wrap(env)
        if self.seed is not None:
            env.action_space.seed(self.seed)
        env = _monitored(env, self.index, self.monitor, self.monitor_dir)
        return EpisodeTape(env) if self.tape else env


def _monitored(env: Env, index: int, monitor: bool, monitor_dir: str | Path | None) -> Env:
    if not monitor or is_wrapped(env, Monitor):
        return env
    return Monitor(env, None if monitor_dir is None else str(Path(monitor_dir) / str(index)))


def _functions(source: AnyEnv, n_envs: int | None, env_kwargs: Mapping[str, Any], images: bool) -> list[EnvFn]:
    if isinstance(source, Sequence) and not isinstance(source, str):
        if n_envs not in (None, len(source)):
            raise ConfigError(f"n_envs={n_envs} does not fit {len(source)} functions that make an environment each")
        if not source:
            raise ConfigError("no function that makes an environment was given")
        return [partial(function, **env_kwargs) for function in source]
    make = _make if images else gym.make
    function = partial(make, source) if isinstance(source, str) else cast("EnvFn", source)  # what exists was dealt with
    return [partial(function, **env_kwargs)] * (n_envs or 1)


def _make(env_id: str, **kwargs: Any) -> Env:
    """Make an environment that can render images, if it can: Stable-Baselines3's ``make_vec_env`` asks for that, too."""
    return gym.make(env_id, **({"render_mode": "rgb_array"} if _renders(env_id) else {}) | kwargs)


def _renders(env_id: str) -> bool:
    """Whether the class behind an id lists images among its render modes and has an argument to ask for them."""
    module, _, name = env_id.rpartition(":")
    if module:
        importlib.import_module(module)  # registers it
    spec = gym.registry.get(name)
    if spec is None:
        return False  # gym.make says what is wrong, or picks a version
    entry_point = spec.entry_point
    creator = gym.envs.registration.load_env_creator(entry_point) if isinstance(entry_point, str) else entry_point
    modes = (getattr(creator, "metadata", None) or {}).get("render_modes") or ()
    if creator is None or "rgb_array" not in modes:
        return False
    arguments = inspect.signature(creator).parameters.values()
    return any(each.name == "render_mode" or each.kind is each.VAR_KEYWORD for each in arguments)


def _envpool(
    source: AnyEnv,
    n_envs: int,
    seed: int | None,
    env_kwargs: Mapping[str, Any],
    wrappers: Sequence[Wrap],
    monitor_dir: str | Path | None,
) -> VecEnv:
    if not isinstance(source, str):
        raise ConfigError("vec_env='envpool' needs the id of one of EnvPool's environments")
    if wrappers:
        raise ConfigError("EnvPool's environments cannot be wrapped one by one; use vec_env='dummy' or 'subproc'")
    if importlib.util.find_spec("envpool") is None:
        raise ConfigError("vec_env='envpool' needs an extra: pip install \"spinup-plugins[envpool]\"")
    import envpool

    known = envpool.list_all_envs()
    if source not in known:
        raise ConfigError(f"EnvPool has no environment {source!r}{nearest(source, known)}")

    def make(seed: int) -> Any:
        return envpool.make_gymnasium(source, num_envs=n_envs, seed=seed, **env_kwargs)

    try:
        # Unseeded environments of other kinds differ from run to run, EnvPool's would begin with the same seed.
        env = make(secrets.randbits(31) if seed is None else seed % 2**31)
        return EnvPoolVecEnv(env, make=make, monitor_dir=monitor_dir)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise ConfigError(f"EnvPool cannot make {source!r}: {' '.join(str(error).split())}") from error


def _kind(source: Any) -> str:
    return "VecEnv" if isinstance(source, VecEnv) else type(source).__name__
