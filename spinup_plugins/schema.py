"""The constructor is the schema: what an algorithm's arguments are, and plain data to and from them.

Configuration files and the command line hold plain data. :func:`resolve` turns it into what a constructor takes,
checked against the constructor's own annotations; :func:`jsonable` is its inverse. What plain data cannot spell has a
short form:

===================  =================================================================================
schedules            ``{schedule: linear, initial: 3.0e-4, final: 0.0, end_fraction: 1.0}``,
                     ``{schedule: constant, initial: 3.0e-4}``
classes              a name of :data:`CLASSES`, such as ``relu`` for ``activation_fn``, or ``package.module:Class``
action noise         ``{noise: normal, sigma: 0.1, mean: 0.0}``,
                     ``{noise: ornstein_uhlenbeck, sigma: 0.1, mean: 0.0, theta: 0.15, dt: 0.01}``;
                     one number for all action dimensions or a list with one for each
===================  =================================================================================
"""

import inspect
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cache
from itertools import chain
from types import NoneType, SimpleNamespace, UnionType
from typing import Any, Literal, TypeAlias, Union, get_args, get_origin, get_type_hints

import numpy as np
import torch as th
from gymnasium import spaces
from pydantic import ConfigDict, PydanticUserError, TypeAdapter, ValidationError
from pydantic_core import SchemaError
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.noise import ActionNoise, NormalActionNoise, OrnsteinUhlenbeckActionNoise
from stable_baselines3.common.utils import ConstantSchedule, FloatSchedule, LinearSchedule

from spinup_plugins.errors import ConfigError, nearest
from spinup_plugins.imports import import_object
from spinup_plugins.yaml_files import Locate

__all__ = [
    "CLASSES",
    "Parameter",
    "check_value",
    "constructor_parameters",
    "describe_type",
    "jsonable",
    "resolve",
    "resolve_keywords",
]

_BUFFERS = "stable_baselines3.common.buffers"
_EXTRACTORS = "stable_baselines3.common.torch_layers"

CLASSES: dict[str, dict[str, str]] = {
    "activation_fn": {
        "elu": "torch.nn:ELU",
        "gelu": "torch.nn:GELU",
        "leaky_relu": "torch.nn:LeakyReLU",
        "mish": "torch.nn:Mish",
        "relu": "torch.nn:ReLU",
        "selu": "torch.nn:SELU",
        "sigmoid": "torch.nn:Sigmoid",
        "silu": "torch.nn:SiLU",
        "softplus": "torch.nn:Softplus",
        "tanh": "torch.nn:Tanh",
    },
    "features_extractor_class": {
        "combined": f"{_EXTRACTORS}:CombinedExtractor",
        "flatten": f"{_EXTRACTORS}:FlattenExtractor",
        "nature_cnn": f"{_EXTRACTORS}:NatureCNN",
    },
    "optimizer_class": {
        "adam": "torch.optim:Adam",
        "adamw": "torch.optim:AdamW",
        "rmsprop": "torch.optim:RMSprop",
        "rmsprop_tf_like": "stable_baselines3.common.sb2_compat.rmsprop_tf_like:RMSpropTFLike",
        "sgd": "torch.optim:SGD",
    },
    "replay_buffer_class": {
        "dict": f"{_BUFFERS}:DictReplayBuffer",
        "her": "stable_baselines3.her.her_replay_buffer:HerReplayBuffer",
        "nstep": f"{_BUFFERS}:NStepReplayBuffer",
        "replay": f"{_BUFFERS}:ReplayBuffer",
    },
    "rollout_buffer_class": {
        "dict": f"{_BUFFERS}:DictRolloutBuffer",
        "rollout": f"{_BUFFERS}:RolloutBuffer",
    },
}
"""For each argument that takes a class, the classes that go by a short name."""

_ZOO_LINEAR = re.compile(r"lin_([\d.]+(?:e[-+]?\d+)?)", re.IGNORECASE)
"""How rl_zoo3 spells a linear schedule."""

Where: TypeAlias = str | Locate
"""Names the place of a value in an error: one text for all of them, or a function from the path of keys to it."""


@dataclass(frozen=True)
class Parameter:
    """One constructor argument.

    :param name: its name
    :param annotation: its type; ``Any`` where it has none or one that cannot be evaluated
    :param default: its default; ``None`` where it is required
    :param required: whether it has no default
    :param doc: its ``:param:`` line, on one line; empty if there is none
    """

    name: str
    annotation: Any
    default: Any
    required: bool
    doc: str


def constructor_parameters(cls: type) -> dict[str, Parameter]:
    """Return the constructor arguments of ``cls`` in order, without ``self``, ``env`` and ``_init_setup_model``.

    A constructor that takes ``**kwargs`` passes them on, so its base class's arguments follow its own.
    """
    found: dict[str, Parameter] = {}
    for base in cls.__mro__[:-1]:
        if "__init__" not in vars(base):
            continue
        parameters, passes_on = _parameters(vars(base)["__init__"], cls)
        found = {**found, **{name: each for name, each in parameters.items() if name not in found}}
        if not passes_on:
            break
    return {name: each for name, each in found.items() if name not in ("self", "env", "_init_setup_model")}


def describe_type(annotation: Any) -> str:
    """Return a type as a reader would write it, such as ``float | schedule | None``."""
    if annotation is Any:
        return "any"
    if annotation in (None, NoneType):
        return "None"
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, UnionType):
        return " | ".join(map(describe_type, arguments))
    if origin is Literal:
        return " | ".join(map(repr, arguments))
    if _is_callable(annotation):
        return "schedule" if _is_schedule(annotation) else "callable"
    name = getattr(origin or annotation, "__name__", str(annotation))
    return f"{name}[{', '.join(map(describe_type, arguments))}]" if arguments else name


def resolve(
    cls: type[BaseAlgorithm],
    values: Mapping[str, Any],
    *,
    where: Where = "",
    action_space: spaces.Space[Any] | None = None,
) -> dict[str, Any]:
    """Turn plain data into constructor arguments of ``cls``, each checked against its annotation.

    Values that are Python objects already (a schedule, a class) pass through. ``policy_kwargs`` are resolved likewise,
    against the constructor of the policy that ``values`` names, or else of the class's first policy.

    :param cls: the algorithm
    :param values: some or all of its constructor arguments
    :param where: place to begin an error with: a text, or a function from the path of keys to it
    :param action_space: gives action noise its shape; without it a noise mapping is checked but left as it is
    :raises ConfigError: an argument is unknown (the nearest one is suggested), has the wrong type, or is a layer of no width
    """
    parameters = constructor_parameters(cls)
    resolved = _resolve(cls.__name__, parameters, values, where, (), action_space)
    if resolved.get("policy_kwargs"):
        policy = resolved.get("policy", next(iter(cls.policy_aliases)))
        policy_class = cls.policy_aliases.get(policy) if isinstance(policy, str) else policy
        if policy_class is not None:
            given_by_algorithm = ("observation_space", "action_space", "lr_schedule")
            accepted = {k: v for k, v in constructor_parameters(policy_class).items() if k not in given_by_algorithm}
            resolved["policy_kwargs"] = _resolve(
                policy_class.__name__, accepted, resolved["policy_kwargs"], where, ("policy_kwargs",), None
            )
        layers = resolved["policy_kwargs"].get("net_arch") or []
        widths = chain.from_iterable(layers.values()) if isinstance(layers, dict) else layers
        if any(isinstance(width, int) and width < 1 for width in widths):
            place = where if isinstance(where, str) else where(("policy_kwargs", "net_arch"))
            raise ConfigError(f"{_prefix(place)}net_arch={layers!r}: every layer needs a width of at least 1")
    return resolved


def resolve_keywords(
    owner: str, parameters: Mapping[str, Parameter], values: Mapping[str, Any], where: Where = ""
) -> dict[str, Any]:
    """Turn plain data into keyword arguments of any class or function, each checked against its annotation.

    :param owner: whose they are, for the error
    :param parameters: the arguments there are
    :param values: some of them, and all that are required
    :param where: place to begin an error with: a text, or a function from the path of keys to it
    :raises ConfigError: an argument is unknown (the nearest one is suggested), has the wrong type or is missing
    """
    resolved = _resolve(owner, parameters, values, where, (), None)
    for name, each in parameters.items():
        if each.required and name not in resolved:
            raise ConfigError(f"{_prefix(where if isinstance(where, str) else where(()))}{owner} needs {name!r}")
    return resolved


def check_value(name: str, value: Any, annotation: Any, where: str = "") -> Any:
    """Return ``value`` if its type fits ``annotation``: strictly, so that neither a bool nor a string is a number.

    A float argument takes an int, and an int argument a whole number written as a float (``1e6``).

    :param name: the value's name, for the error
    :param value: the value
    :param annotation: any type that pydantic understands; another is not checked
    :param where: place to begin the error with
    :raises ConfigError: the value is of another type
    """
    adapter = _adapter(annotation)
    candidates = [value]
    if isinstance(value, float) and value.is_integer():
        candidates.append(int(value))
    for candidate in candidates:
        try:
            checked = adapter.validate_python(candidate)
        except ValidationError:
            continue
        return checked if isinstance(checked, (int, float)) else candidate
    choices = [each for member in _members(annotation) if get_origin(member) is Literal for each in get_args(member)]
    hint = nearest(value, map(str, choices)) if isinstance(value, str) else ""
    if isinstance(value, str) and (rate := _ZOO_LINEAR.fullmatch(value)) and any(map(_is_schedule, _members(annotation))):
        hint = f", such as {{schedule: linear, initial: {rate[1]}}}"
    raise ConfigError(f"{_prefix(where)}{name}={value!r}: expected {describe_type(annotation)}{hint}")


def jsonable(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return constructor arguments as plain data that :func:`resolve` turns back into equal ones.

    :param values: arguments by name
    :raises ConfigError: a value, such as a lambda, has no plain form
    """
    return {name: _plain(name, value) for name, value in values.items()}


# --- signatures and docstrings ----------------------------------------------------------------------------------------


def _parameters(function: Callable[..., Any], documented: Any) -> tuple[dict[str, Parameter], bool]:
    """Return the named parameters of ``function``, and whether it takes ``**kwargs`` besides.

    :param documented: the class (with its bases) or function whose docstring describes them
    """
    docs = _param_docs(documented)
    namespace = getattr(function, "__globals__", {})
    found, passes_on = {}, False
    for name, each in inspect.signature(function).parameters.items():
        if each.kind is each.VAR_KEYWORD:
            passes_on = True
        elif each.kind is not each.VAR_POSITIONAL:
            required = each.default is each.empty
            annotation = Any if each.annotation is each.empty else _evaluated(each.annotation, namespace)
            default = None if required else each.default
            found[name] = Parameter(name, annotation, default, required, docs.get(name, ""))
    return found, passes_on


def _evaluated(annotation: Any, namespace: dict[str, Any]) -> Any:
    """Resolve the strings in an annotation; one that names what was imported for type checkers only becomes ``Any``."""
    try:
        return get_type_hints(SimpleNamespace(__annotations__={"it": annotation}), namespace)["it"]
    except NameError:
        return Any


def _param_docs(documented: Any) -> dict[str, str]:
    sources = documented.__mro__ if isinstance(documented, type) else (documented,)
    docs: dict[str, str] = {}
    for source in sources:
        text = inspect.cleandoc(vars(source).get("__doc__") or "" if isinstance(source, type) else source.__doc__ or "")
        for name, doc in re.findall(r"^:param (?:[^:\n]* )?(\w+):(.*(?:\n(?!\s*:|\s*$).*)*)", text, re.MULTILINE):
            docs.setdefault(name, " ".join(doc.split()))
    return docs


# --- plain data to arguments ------------------------------------------------------------------------------------------


def _resolve(
    owner: str,
    parameters: Mapping[str, Parameter],
    values: Mapping[str, Any],
    where: Where,
    path: Sequence[str],
    action_space: spaces.Space[Any] | None,
) -> dict[str, Any]:
    resolved = {}
    for key, value in values.items():
        place = where if isinstance(where, str) else where((*path, key))
        if key not in parameters:
            raise ConfigError(f"{_prefix(place)}{owner} has no argument {key!r}{nearest(key, parameters)}")
        resolved[key] = _resolve_one(parameters[key], value, place, action_space)
    return resolved


def _resolve_one(parameter: Parameter, value: Any, place: str, action_space: spaces.Space[Any] | None) -> Any:
    name, annotation = parameter.name, parameter.annotation
    members = _members(annotation)
    if isinstance(value, np.generic):
        value = value.item()
    elif isinstance(value, os.PathLike) and str in members:
        value = os.fspath(value)
    elif isinstance(value, str) and (any(get_origin(each) is type or _is_callable(each) for each in members)):
        value = _named(parameter, value, place)
    elif isinstance(value, list) and any((get_origin(each) or each) is tuple for each in members):
        value = tuple(value)
    elif isinstance(value, Mapping) and "schedule" in value and any(map(_is_schedule, members)):
        value = _build(_SCHEDULES, "schedule", name, value, place)
    elif isinstance(value, Mapping) and "noise" in value and any(map(_is_noise, members)):
        # Whatever the action space, one dimension per listed sigma suffices to check the mapping.
        shape = action_space.shape if action_space is not None else np.shape(value.get("sigma", 0.0)) or (1,)
        noise = _build(_NOISES, "noise", name, value, place, shape=shape)
        if action_space is None:
            return dict(value)
        value = noise
    return check_value(name, value, annotation, place)


def _named(parameter: Parameter, value: str, place: str) -> Any:
    """Return the class or function that ``value`` names; a name that the argument takes as it is stays a string."""
    short = CLASSES.get(parameter.name, {})
    if value in short:
        return import_object(short[value])
    if ":" in value:
        try:
            return import_object(value)
        except ConfigError as error:
            raise ConfigError(f"{_prefix(place)}{parameter.name}: {error}") from error
    if short:
        raise ConfigError(
            f"{_prefix(place)}{parameter.name}={value!r} is neither one of {', '.join(short)} "
            f"nor of the form 'package.module:Class'{nearest(value, short)}"
        )
    return value


def _build(
    kinds: Mapping[str, Callable[..., Any]],
    selector: str,
    name: str,
    values: Mapping[str, Any],
    place: str,
    **given: Any,
) -> Any:
    """Call the function of ``kinds`` that ``values[selector]`` names with the other values, checked, and ``given``."""
    kind = values[selector]
    if not isinstance(kind, str) or kind not in kinds:
        hint = nearest(str(kind), kinds)
        raise ConfigError(f"{_prefix(place)}{name}: {selector}={kind!r} is not one of {', '.join(kinds)}{hint}")
    parameters, _ = _parameters(kinds[kind], kinds[kind])
    accepted = {key: each for key, each in parameters.items() if key not in given}
    others = {key: value for key, value in values.items() if key != selector}
    arguments = _resolve(f"{name}: {kind} {selector}", accepted, others, place, (), None)
    for key, each in accepted.items():
        if each.required and key not in arguments:
            raise ConfigError(f"{_prefix(place)}{name}: {kind} {selector} needs {key!r}")
    try:
        return kinds[kind](**given, **arguments)
    except ValueError as error:
        raise ConfigError(f"{_prefix(place)}{name}: {error}") from error


def _linear(initial: float, final: float = 0.0, end_fraction: float = 1.0) -> LinearSchedule:
    if not 0 < end_fraction <= 1:
        raise ValueError(f"end_fraction must be in (0, 1], not {end_fraction}")
    return LinearSchedule(initial, final, end_fraction)


def _constant(initial: float) -> ConstantSchedule:
    return ConstantSchedule(initial)


def _normal(shape: tuple[int, ...], sigma: float | list[float], mean: float | list[float] = 0.0) -> ActionNoise:
    return NormalActionNoise(_per_dimension("mean", mean, shape), _per_dimension("sigma", sigma, shape))


def _ornstein_uhlenbeck(
    shape: tuple[int, ...],
    sigma: float | list[float],
    mean: float | list[float] = 0.0,
    theta: float = 0.15,
    dt: float = 0.01,
) -> ActionNoise:
    means, sigmas = _per_dimension("mean", mean, shape), _per_dimension("sigma", sigma, shape)
    return OrnsteinUhlenbeckActionNoise(means, sigmas, theta=theta, dt=dt)


def _per_dimension(name: str, value: float | list[float], shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    if isinstance(value, list) and np.shape(value) != shape:
        raise ValueError(f"{name} has {len(value)} values for actions of shape {shape}")
    if name == "sigma" and np.min(value) < 0:
        raise ValueError(f"sigma must not be negative, as {value} is")
    return np.full(shape, value, dtype=np.float64)


_SCHEDULES: dict[str, Callable[..., Any]] = {"linear": _linear, "constant": _constant}
_NOISES: dict[str, Callable[..., Any]] = {"normal": _normal, "ornstein_uhlenbeck": _ornstein_uhlenbeck}


# --- types ------------------------------------------------------------------------------------------------------------


@cache
def _adapter(annotation: Any) -> TypeAdapter[Any]:
    try:
        return TypeAdapter(annotation, config=ConfigDict(strict=True, arbitrary_types_allowed=True))
    except (PydanticUserError, SchemaError):  # a type pydantic cannot check, such as a protocol
        return TypeAdapter(Any)


def _members(annotation: Any) -> tuple[Any, ...]:
    return get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)


def _is_callable(annotation: Any) -> bool:
    return (get_origin(annotation) or annotation) is Callable


def _is_schedule(annotation: Any) -> bool:
    """Whether a function of the remaining progress fits: ``Callable[[float], float]``, or any callable."""
    return _is_callable(annotation) and get_args(annotation) in ((), ([float], float))


def _is_noise(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, ActionNoise)


def _prefix(place: str) -> str:
    return f"{place}: " if place else ""


# --- arguments to plain data ------------------------------------------------------------------------------------------


def _plain(name: str, value: Any) -> Any:
    if isinstance(value, (np.ndarray, np.generic)):  # before float, which np.float64 is, too
        return value.tolist()
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(str(key), each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(name, each) for each in value]
    if isinstance(value, (os.PathLike, th.device)):
        return str(value)
    if isinstance(value, Enum):
        return value.name.lower()
    if isinstance(value, FloatSchedule):
        return _plain(name, value.value_schedule)
    if isinstance(value, ConstantSchedule):
        return {"schedule": "constant", "initial": value.val}
    if isinstance(value, LinearSchedule):
        end = {} if value.end_fraction == 1 else {"end_fraction": value.end_fraction}
        return {"schedule": "linear", "initial": value.start, "final": value.end, **end}
    if isinstance(value, NormalActionNoise):
        return {"noise": "normal", "sigma": _shrunk(value._sigma), "mean": _shrunk(value._mu)}
    if isinstance(value, OrnsteinUhlenbeckActionNoise):
        parameters = {"sigma": _shrunk(value._sigma), "mean": _shrunk(value._mu)}
        return {"noise": "ornstein_uhlenbeck", **parameters, "theta": value._theta, "dt": value._dt}
    return _import_path(name, value)


def _shrunk(per_dimension: Any) -> Any:
    """Return one number where all dimensions have the same, else a list."""
    values = np.asarray(per_dimension, dtype=np.float64)
    return float(values.flat[0]) if values.size and np.all(values == values.flat[0]) else values.tolist()


def _import_path(name: str, value: Any) -> str:
    path = f"{getattr(value, '__module__', None)}:{getattr(value, '__qualname__', None)}"
    for short, long in CLASSES.get(name, {}).items():
        if isinstance(value, type) and import_object(long) is value:
            return short
    try:
        importable = import_object(path) is value
    except ConfigError:
        importable = False
    if not importable:
        raise ConfigError(f"{name}={value!r} cannot be written to a file: it has no import path")
    return path
