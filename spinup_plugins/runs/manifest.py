"""What an agent file says in JSON: strict models of it, and plain data to and from spaces and statistics."""

from collections.abc import Mapping
from math import prod
from typing import Annotated, Any, Literal, TypeAlias

import numpy as np
from gymnasium import Env, spaces
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize

from spinup_plugins.errors import ConfigError, ModelFileError
from spinup_plugins.runs.archive import Tensors

__all__ = [
    "Environment",
    "Manifest",
    "Normalization",
    "pack_normalization",
    "pack_space",
    "unpack_normalization",
    "unpack_space",
]

ELEMENTS = 2**22
"""Most elements of a space."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


# --- spaces -----------------------------------------------------------------------------------------------------------

Size: TypeAlias = Annotated[int, Field(ge=0, le=ELEMENTS)]
Shape: TypeAlias = Annotated[list[Size], Field(max_length=16)]
Bound: TypeAlias = int | float
Integers: TypeAlias = list[int] | list[list[int]] | list[list[list[int]]]
IntegerType: TypeAlias = Literal["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"]


class _Box(_Strict):
    space: Literal["Box"] = "Box"
    dtype: Literal["float16", "float32", "float64"] | IntegerType
    shape: Shape
    low: Bound | list[Bound]
    high: Bound | list[Bound]


class _Discrete(_Strict):
    space: Literal["Discrete"] = "Discrete"
    n: Annotated[int, Field(ge=1, le=ELEMENTS)]
    start: int
    dtype: IntegerType


class _MultiDiscrete(_Strict):
    space: Literal["MultiDiscrete"] = "MultiDiscrete"
    nvec: Integers
    start: Integers
    dtype: IntegerType


class _MultiBinary(_Strict):
    space: Literal["MultiBinary"] = "MultiBinary"
    n: Size | Shape


_Plain = Annotated[_Box | _Discrete | _MultiDiscrete | _MultiBinary, Field(discriminator="space")]


class _Dict(_Strict):
    space: Literal["Dict"] = "Dict"
    items: Annotated[list[Annotated[list[str | _Plain], Field(min_length=2, max_length=2)]], Field(max_length=1000)]


Space: TypeAlias = Annotated[_Box | _Discrete | _MultiDiscrete | _MultiBinary | _Dict, Field(discriminator="space")]


def pack_space(space: spaces.Space[Any], name: str = "the space") -> Space:
    """Return the plain form of a space; bounds are exact.

    :param space: a Box, Discrete, MultiDiscrete, MultiBinary, or a Dict of them
    :param name: what to call it in an error
    :raises ConfigError: it is another one
    """
    try:
        return _packed(space)  # type: ignore[no-any-return]
    except (ValidationError, TypeError) as error:
        raise ConfigError(f"{name} cannot be written to an agent file: {space}") from error


def _packed(space: Any) -> Any:
    kind = type(space)
    if kind is spaces.Box:
        low, high = _bounds(space.low), _bounds(space.high)
        return _Box(dtype=str(space.dtype), shape=list(space.shape), low=low, high=high)  # type: ignore[arg-type]
    if kind is spaces.Discrete:
        return _Discrete(n=int(space.n), start=int(space.start), dtype=str(space.dtype))  # type: ignore[arg-type]
    if kind is spaces.MultiDiscrete:
        return _MultiDiscrete(nvec=space.nvec.tolist(), start=space.start.tolist(), dtype=str(space.dtype))  # type: ignore[arg-type]
    if kind is spaces.MultiBinary:
        return _MultiBinary(n=space.n if isinstance(space.n, int) else list(map(int, space.n)))
    if kind is spaces.Dict:
        return _Dict(items=[[key, _packed(each)] for key, each in space.spaces.items()])
    raise TypeError(kind)


def unpack_space(data: Space) -> spaces.Space[Any]:
    """Return the space that :func:`pack_space` was given.

    :param data: its plain form
    :raises ModelFileError: the parts do not fit together, or there are too many of them
    """
    if isinstance(data, _Dict):
        found: dict[str, spaces.Space[Any]] = {}
        for key, each in data.items:
            if not isinstance(key, str) or isinstance(each, str) or key in found:
                raise ModelFileError("the items of a Dict space are pairs of a key of its own and a space")
            found[key] = unpack_space(each)
        if sum(prod(each.shape or ()) for each in found.values()) > ELEMENTS:
            raise ModelFileError(f"a space has more than {ELEMENTS} elements")
        return spaces.Dict(list(found.items()))
    if isinstance(data, _Discrete):
        dtype = {} if data.dtype == "int64" else {"dtype": data.dtype}
        return spaces.Discrete(data.n, start=data.start, **dtype)  # type: ignore[call-overload,no-any-return]
    if isinstance(data, _MultiDiscrete):
        nvec, start = (np.array(each, dtype=data.dtype) for each in (data.nvec, data.start))
        if nvec.shape != start.shape or nvec.size == 0 or sum(map(int, nvec.ravel())) > ELEMENTS or nvec.min() < 1:
            raise ModelFileError("the numbers of choices are not valid")
        return spaces.MultiDiscrete(nvec, dtype=data.dtype, start=start)
    if isinstance(data, _MultiBinary):
        if prod(data.n if isinstance(data.n, list) else [data.n]) > ELEMENTS:
            raise ModelFileError(f"a space has more than {ELEMENTS} elements")
        return spaces.MultiBinary(data.n)
    if prod(data.shape) > ELEMENTS:
        raise ModelFileError(f"a space has more than {ELEMENTS} elements")
    low, high = (_array(each, data) for each in (data.low, data.high))
    return spaces.Box(low, high, dtype=np.dtype(data.dtype).type)


def _bounds(values: np.ndarray[Any, Any]) -> Any:
    """One bound where all are the same, bit by bit, else a flat list."""
    flat = values.ravel()
    same = flat.size > 0 and flat.tobytes() == flat[:1].tobytes() * flat.size
    return flat[0].item() if same else flat.tolist()


def _array(bounds: Any, box: _Box) -> np.ndarray[Any, Any]:
    if isinstance(bounds, list):
        return np.array(bounds, dtype=box.dtype).reshape(box.shape)
    return np.full(box.shape, np.array(bounds, dtype=box.dtype))


# --- normalisation ----------------------------------------------------------------------------------------------------


class Normalization(_Strict):
    """Arguments of a ``VecNormalize``; its statistics are tensors.

    :param observation_space: of the environment inside of it
    """

    observation_space: Space
    norm_obs: bool
    norm_reward: bool
    clip_obs: Annotated[float, Field(gt=0)]
    clip_reward: Annotated[float, Field(gt=0)]
    gamma: float
    epsilon: Annotated[float, Field(ge=0)]
    norm_obs_keys: list[str] | None


_OPTIONS = ("norm_obs", "norm_reward", "clip_obs", "clip_reward", "gamma", "epsilon", "norm_obs_keys")
_STATISTICS = "normalization/"


class _Stub(Env[Any, Any]):
    """Stands where a ``VecNormalize`` that only normalises wants an environment."""

    def __init__(self, observation_space: spaces.Space[Any], action_space: spaces.Space[Any]) -> None:
        self.observation_space, self.action_space = observation_space, action_space


def pack_normalization(wrapper: VecNormalize) -> tuple[Normalization, Tensors]:
    """Return a ``VecNormalize``'s arguments and statistics.

    :param wrapper: with or without an environment inside
    :return: the arguments, and float64 arrays by name
    :raises ConfigError: its space has no plain form
    """
    inside = wrapper.observation_space if wrapper.venv is None else wrapper.venv.observation_space
    options = {name: getattr(wrapper, name) for name in _OPTIONS}
    for name in ("clip_obs", "clip_reward", "gamma", "epsilon"):
        options[name] = float(options[name])
    tensors: Tensors = {}
    for name, each in _running(wrapper).items():
        for part in ("mean", "var", "count"):
            tensors[f"{_STATISTICS}{name}/{part}"] = np.array(getattr(each, part), dtype=np.float64)
    return Normalization(observation_space=pack_space(inside, "observation_space"), **options), tensors


def unpack_normalization(
    data: Normalization,
    tensors: Mapping[str, np.ndarray[Any, Any]],
    action_space: spaces.Space[Any],
    venv: VecEnv | None = None,
    wrap: type[VecNormalize] = VecNormalize,
) -> VecNormalize:
    """Return a ``VecNormalize`` with stored statistics; it trains, as a new one does.

    :param data: its arguments
    :param tensors: all arrays of the file by name
    :param action_space: of the agent
    :param venv: environments to wrap; None wraps one that cannot be stepped
    :param wrap: class of the result
    :raises ModelFileError: statistics are missing, not numbers, or of another shape than the observations
    """
    if venv is None:
        space = unpack_space(data.observation_space)
        venv = DummyVecEnv([lambda: _Stub(space, action_space)])
    wrapper = wrap(venv, **data.model_dump(include=set(_OPTIONS)))
    names = {name for name in tensors if name.startswith(_STATISTICS)}
    for name, each in _running(wrapper).items():
        for part in ("mean", "var", "count"):
            full = f"{_STATISTICS}{name}/{part}"
            value, shape = tensors.get(full), np.shape(getattr(each, part))
            if value is None or value.dtype != np.float64 or value.shape != shape or not np.isfinite(value).all():
                raise ModelFileError(f"the statistics {full} are missing or not valid")
            if part != "mean" and value.size and value.min() < 0:
                raise ModelFileError(f"the statistics {full} are negative")
            setattr(each, part, float(value) if part == "count" else value.copy() if shape else value[()])
            names.discard(full)
    if names:
        raise ModelFileError(f"there is nothing to normalise by {min(names)}")
    return wrapper


def _running(wrapper: VecNormalize) -> dict[str, RunningMeanStd]:
    """Statistics by name: ``return``, and ``observation`` or ``observation/<key>``."""
    of_observations: Any = wrapper.obs_rms if wrapper.norm_obs else {}
    if not isinstance(of_observations, dict):
        return {"return": wrapper.ret_rms, "observation": of_observations}
    return {"return": wrapper.ret_rms, **{f"observation/{key}": each for key, each in of_observations.items()}}


# --- the whole --------------------------------------------------------------------------------------------------------


class Environment(_Strict):
    """How to make the environment.

    :param id: Gymnasium's or EnvPool's id, or ``module:id`` where that module registers it
    :param kwargs: arguments of its constructor
    :param wrappers: names, or ``{name: {argument: value}}``, the innermost first
    :param n_envs: copies it was trained on
    :param vec_env: ``envpool`` for EnvPool's, otherwise ``dummy``
    """

    id: str
    kwargs: dict[str, Any] = Field(default_factory=dict)
    wrappers: list[str | dict[str, Any]] = Field(default_factory=list)
    n_envs: Annotated[int, Field(ge=1, le=2**14)] = 1
    vec_env: Literal["dummy", "envpool"] = "dummy"


class Manifest(_Strict):
    """The JSON of an agent file.

    :param format: what the file is
    :param version: of the format; other ones are refused
    :param algorithm: name in the registry
    :param policy: name among the algorithm's
    :param arguments: of the algorithm's constructor, as :func:`spinup_plugins.schema.resolve` takes them
    :param observation_space: what the policy reads: normalised, images with channels first
    :param action_space: of the environment
    :param actions: ``squashed``: the policy acts in [-1, 1], rescaled to the action space; ``clipped``: in the action
        space's units, clipped to it; ``chosen``: from finitely many
    :param environment: None if it is unknown
    :param normalization: None without
    :param counters: numbers that training goes on from
    :param learning_rates: of each optimiser's groups of parameters, by the optimiser's name
    :param training: the run's configuration; None outside of a run
    :param seed: the model's
    :param scores: how well it does, free in form
    :param versions: what wrote it
    """

    format: Literal["spinup-agent"] = "spinup-agent"
    version: Literal[1] = 1
    algorithm: str
    policy: str
    arguments: dict[str, Any]
    observation_space: Space
    action_space: Space
    actions: Literal["squashed", "clipped", "chosen"]
    environment: Environment | None
    normalization: Normalization | None
    counters: dict[str, Annotated[int | float, Field(ge=-(2**63), lt=2**63)]]
    learning_rates: dict[str, list[Annotated[float, Field(ge=0, allow_inf_nan=False)]]]
    training: dict[str, Any] | None
    seed: Annotated[int, Field(ge=0, lt=2**32)] | None
    scores: dict[str, Any]
    versions: dict[str, str]
