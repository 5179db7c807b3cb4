"""Wrappers by name: from what configuration files and the command line say to a wrapped environment.

A list of wrappers is plain data, the innermost first. Each is a name of :data:`WRAPPERS` or the import path of a
``gymnasium.Wrapper``, alone or as the one key of a mapping to its arguments::

    wrappers:
      - mask_observation: {hidden: velocity}
      - history_observation: {length: 4}
      - my_package.wrappers:Curriculum: {level: 3}
"""

import inspect
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import reduce
from operator import or_
from types import UnionType
from typing import Any, TypeAlias, TypeVar, Union, get_args, get_origin

import gymnasium as gym
import numpy as np

from spinup_plugins.errors import ConfigError, UnknownNameError, nearest
from spinup_plugins.imports import import_object
from spinup_plugins.schema import Parameter, constructor_parameters, jsonable, resolve_keywords
from spinup_plugins.yaml_files import parse_yaml

__all__ = [
    "WRAPPERS",
    "NamedWrapper",
    "WrapperDoc",
    "parse_wrapper",
    "plain_wrappers",
    "resolve_wrappers",
    "unrewarded",
    "wrap_all",
    "wrapper_docs",
]

Env: TypeAlias = gym.Env[Any, Any]
WrapperClass: TypeAlias = type[gym.Wrapper[Any, Any, Any, Any]]
Item: TypeAlias = str | Mapping[str, Any]

_OURS = "spinup_plugins.envs.wrappers"
_GYMNASIUM = "gymnasium.wrappers"

WRAPPERS: dict[str, str] = {
    # observations
    "add_render_observation": f"{_GYMNASIUM}:AddRenderObservation",
    "atari_preprocessing": f"{_GYMNASIUM}:AtariPreprocessing",
    "delay_observation": f"{_GYMNASIUM}:DelayObservation",
    "discretize_observation": f"{_GYMNASIUM}:DiscretizeObservation",
    "dtype_observation": f"{_GYMNASIUM}:DtypeObservation",
    "filter_observation": f"{_GYMNASIUM}:FilterObservation",
    "flatten_observation": f"{_GYMNASIUM}:FlattenObservation",
    "frame_stack_observation": f"{_GYMNASIUM}:FrameStackObservation",
    "grayscale_observation": f"{_GYMNASIUM}:GrayscaleObservation",
    "history_observation": f"{_OURS}:HistoryObservation",
    "mask_observation": f"{_OURS}:MaskObservation",
    "noisy_observation": f"{_OURS}:NoisyObservation",
    "normalize_observation": f"{_GYMNASIUM}:NormalizeObservation",
    "rescale_observation": f"{_GYMNASIUM}:RescaleObservation",
    "reshape_observation": f"{_GYMNASIUM}:ReshapeObservation",
    "resize_observation": f"{_GYMNASIUM}:ResizeObservation",
    "time_aware_observation": f"{_GYMNASIUM}:TimeAwareObservation",
    "time_feature": f"{_OURS}:TimeFeature",
    # actions
    "delay_action": f"{_OURS}:DelayAction",
    "discretize_action": f"{_GYMNASIUM}:DiscretizeAction",
    "noisy_action": f"{_OURS}:NoisyAction",
    "random_action": f"{_OURS}:RandomAction",
    "repeat_action": f"{_GYMNASIUM}:RepeatAction",
    "rescale_action": f"{_GYMNASIUM}:RescaleAction",
    "sticky_action": f"{_GYMNASIUM}:StickyAction",
    # rewards
    "clip_reward": f"{_GYMNASIUM}:ClipReward",
    "delay_reward": f"{_OURS}:DelayReward",
    "normalize_reward": f"{_GYMNASIUM}:NormalizeReward",
    "scale_reward": f"{_OURS}:ScaleReward",
    "sparse_reward": f"{_OURS}:SparseReward",
    # episodes
    "check_values": f"{_OURS}:CheckValues",
    "episode_returns": f"{_OURS}:EpisodeReturns",
    "record_trajectories": f"{_OURS}:RecordTrajectories",
    "terminate_on_success": f"{_OURS}:TerminateOnSuccess",
    "time_limit": f"{_GYMNASIUM}:TimeLimit",
}
"""The wrappers that go by a name, each its class's in snake case.

Of Gymnasium's, those are left out that need functions (import paths reach them), that do what Stable-Baselines3 does itself
(``Autoreset``, ``ClipAction``, ``RecordEpisodeStatistics``), or that show an old observation where an episode ends
(``MaxAndSkipObservation``).
"""


@dataclass(frozen=True)
class NamedWrapper:
    """A wrapper with its arguments, ready to wrap environments in any process; plain data, so that it pickles.

    :param name: a key of :data:`WRAPPERS`, or an import path
    :param kwargs: arguments of its constructor besides the environment, as plain data
    """

    name: str
    kwargs: dict[str, Any] = field(default_factory=dict)

    def load(self) -> WrapperClass:
        """Import the class.

        :raises UnknownNameError: there is no such name
        :raises ConfigError: the import path leads nowhere, or to something else
        """
        if ":" not in self.name and self.name not in WRAPPERS:
            module, _, last = self.name.rpartition(".")
            hint = nearest(self.name.lower(), WRAPPERS) or (f" (did you mean '{module}:{last}'?)" if module else "")
            raise UnknownNameError(f"unknown wrapper {self.name!r}{hint}; 'package.module:Class' names others")
        found = import_object(WRAPPERS.get(self.name, self.name))
        if not (inspect.isclass(found) and issubclass(found, gym.Wrapper)):
            raise ConfigError(f"{self.name!r} is no subclass of gymnasium.Wrapper")
        return found

    def arguments(self) -> dict[str, Any]:
        """Return the arguments as Python objects.

        :raises ConfigError: an argument is unknown, missing or of the wrong type
        """
        cls = self.load()
        given = _parameters(cls)
        plain = {name: replace(each, annotation=_plain_type(each.annotation)) for name, each in given.items()}
        values = resolve_keywords(cls.__name__, plain, self.kwargs, f"wrapper {self.name!r}")
        arrays = {name for name, each in given.items() if np.ndarray in map(_origin, _members(each.annotation))}
        return {name: np.asarray(each) if name in arrays and isinstance(each, list) else each for name, each in values.items()}

    def __call__(self, env: Env) -> Env:
        """Return ``env`` wrapped.

        :raises ConfigError: the wrapper does not fit the environment
        """
        arguments = self.arguments()
        try:
            with warnings.catch_warnings():  # of bounds rounded to the numbers that a space holds, as plain ones have to be
                warnings.filterwarnings("ignore", ".*precision lowered by casting", UserWarning)
                return self.load()(env, **arguments)
        except (TypeError, ValueError, AssertionError, gym.error.Error) as error:
            whom = env.spec.id if env.spec is not None else type(env.unwrapped).__name__
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ConfigError(f"wrapper {self.name!r} around {whom}: {reason}") from error


@dataclass(frozen=True)
class WrapperDoc:
    """What a listing shows of a wrapper.

    :param name: its name
    :param summary: the first sentence of its documentation
    :param parameters: its arguments besides the environment
    """

    name: str
    summary: str
    parameters: dict[str, Parameter]


def resolve_wrappers(items: Sequence[Item], where: str = "") -> list[NamedWrapper]:
    """Check a list of wrappers against their constructors.

    :param items: names, or mappings of one name to its arguments; the innermost first
    :param where: place to begin an error with
    :return: functions from an environment to the wrapped one, which pickle and compare by value
    :raises UnknownNameError: there is no such wrapper (the nearest one is suggested)
    :raises ConfigError: an item has another form, or an argument is unknown, missing or of the wrong type
    """
    prefix = f"{where}: " if where else ""
    if isinstance(items, (str, Mapping)) or not isinstance(items, Sequence):
        raise ConfigError(f"{prefix}wrappers={items!r}: expected a list of names or {{name: {{argument: value}}}}")
    try:
        resolved = [_named(item) for item in items]
        for each in resolved:
            each.arguments()
    except UnknownNameError as error:
        raise UnknownNameError(f"{prefix}{error}") from error
    except ConfigError as error:
        raise ConfigError(f"{prefix}{error}") from error
    return resolved


def plain_wrappers(wrappers: Iterable[NamedWrapper]) -> list[str | dict[str, Any]]:
    """Return the plain data that :func:`resolve_wrappers` makes the same wrappers of.

    :param wrappers: the wrappers
    :raises ConfigError: an argument, such as a lambda, has no plain form
    """
    return [{each.name: jsonable(each.kwargs)} if each.kwargs else each.name for each in wrappers]


def parse_wrapper(text: str) -> str | dict[str, Any]:
    """Return the plain form of a wrapper written on the command line.

    :param text: ``NAME`` or ``module:Class``, optionally with arguments as a YAML mapping: ``NAME:{key: value}``
    :raises ConfigError: the text has another form; whether there is such a wrapper is for :func:`resolve_wrappers` to say
    """
    name, _, mapping = text.partition("{")
    name = re.sub(r"\s*:\s*$", "", name) if mapping else name.strip()
    module, colon, rest = name.partition(":")
    where = f"wrapper {text!r}"
    if not name or (colon and (module in WRAPPERS or ":" in rest)):
        raise ConfigError(f"{where}: expected NAME or module:Class, and if need be :{{key: value, …}}")
    return {name.strip(): parse_yaml("{" + mapping, where)} if mapping else name


def wrap_all(env: Env, wrappers: Iterable[NamedWrapper]) -> Env:
    """Wrap an environment in several wrappers.

    :param env: the environment
    :param wrappers: the wrappers, the innermost first
    :raises ConfigError: one does not fit the environment
    """
    for wrapper in wrappers:
        env = wrapper(env)
    return env


def unrewarded(items: Sequence[Item]) -> list[Item]:
    """Leave out what only changes rewards or records, so that evaluations are in the environment's own units.

    Neither is seen by an agent that does not learn, and a recording of training has no episodes of evaluations among it.

    :param items: wrappers as plain data
    :raises SpinupError: as :func:`resolve_wrappers`
    """
    return [item for item, each in zip(items, resolve_wrappers(items), strict=True) if not _is_unseen(each.load())]


def _is_unseen(cls: WrapperClass) -> bool:
    from gymnasium.wrappers import NormalizeReward

    from spinup_plugins.envs.wrappers import DelayReward, RecordTrajectories

    # Only what steps and resets as any RewardWrapper does leaves observations and ends as they are.
    alone = issubclass(cls, gym.RewardWrapper) and (cls.step, cls.reset) == (gym.RewardWrapper.step, gym.RewardWrapper.reset)
    return alone or issubclass(cls, (NormalizeReward, DelayReward, RecordTrajectories))


def wrapper_docs() -> list[WrapperDoc]:
    """Return what there is to know of each wrapper that goes by a name and that the installed Gymnasium has."""
    rows = []
    for name in WRAPPERS:
        try:
            cls = NamedWrapper(name).load()
        except ConfigError:
            continue
        paragraph = inspect.cleandoc(vars(cls)["__doc__"]).split("\n\n")[0]
        summary = re.split(r"(?<=\w)[.;:] ", " ".join(paragraph.replace("`", "").split()))[0].rstrip(".")
        parameters = {key: replace(each, annotation=_plain_type(each.annotation)) for key, each in _parameters(cls).items()}
        rows.append(WrapperDoc(name, summary, parameters))
    return rows


def _named(item: Any) -> NamedWrapper:
    if isinstance(item, str):
        return NamedWrapper(item)
    if not isinstance(item, Mapping) or len(item) != 1:
        found = f"the keys {', '.join(map(str, item))}: indent arguments" if isinstance(item, Mapping) else repr(item)
        raise ConfigError(f"a wrapper is a name or {{name: {{argument: value}}}}, not {found}")
    ((name, kwargs),) = item.items()
    if kwargs is not None and not isinstance(kwargs, Mapping):
        raise ConfigError(f"wrapper {name!r}: expected {{argument: value}}, found {kwargs!r}")
    return NamedWrapper(str(name), deepcopy(dict(kwargs or {})))


# --- signatures -------------------------------------------------------------------------------------------------------


def _parameters(cls: WrapperClass) -> dict[str, Parameter]:
    """Arguments of a wrapper's constructor besides the environment, which comes first by whatever name."""
    environment = next(iter(inspect.signature(cls).parameters), "env")
    return {name: each for name, each in constructor_parameters(cls).items() if name != environment}


def _plain_type(annotation: Any) -> Any:
    """Replace what plain data does not have: NumPy's numbers and arrays, and types of observations."""
    plain = {np.floating: float, np.integer: int, np.ndarray: list[float]}
    members = [plain.get(_origin(each), each) for each in _members(annotation) if not isinstance(each, TypeVar)]
    return reduce(or_, members) if members else Any


def _members(annotation: Any) -> tuple[Any, ...]:
    return get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)


def _origin(annotation: Any) -> Any:
    return get_origin(annotation) or annotation
