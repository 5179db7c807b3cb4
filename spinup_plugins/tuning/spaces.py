"""Search spaces as data: what a study varies, from YAML files that are checked against the algorithm's constructor.

A file holds variants by name (``default`` and others); a variant holds constructor arguments and the run keys of
:data:`VARIED`. A value is plain data, which is kept as it is, or one of these, at any depth::

    {float: [low, high], log: true}                      also step: …, and one_minus: true for 1 - x
    {int: [low, high]}                                   also log: true, step: …
    {power_of_two: [low, high]}                          both powers of two
    {categorical: [a, b, null]}                          scalars
    {categorical: {name: value, …}}                      any values; those may hold what is varied if they are chosen
    {same_as: key}                                       whatever another key was given

``when: {key: value}`` (or a list of values) leaves an argument at its default unless a key above it has that value, or the
environment's ``action_space`` is of that type (``Box``, ``Discrete``, ``MultiDiscrete``, ``MultiBinary``);
``at_most: [key, …]`` caps a number by the product of other keys' values.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite, prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from stable_baselines3.common.base_class import BaseAlgorithm

from spinup_plugins import schema
from spinup_plugins.errors import ConfigError, UnknownNameError, nearest
from spinup_plugins.paths import data_dir, packaged
from spinup_plugins.registry import RUN_KEYS, AlgorithmSpec
from spinup_plugins.wrapping import resolve_wrappers
from spinup_plugins.yaml_files import Locate, extended, load_yaml

if TYPE_CHECKING:
    import optuna

__all__ = ["ACTION_SPACE", "VARIED", "Space", "load_space", "space_names"]

VARIED = ("n_envs", "normalize", "wrappers")
"""Run keys that a space may vary besides constructor arguments."""

ACTION_SPACE = "action_space"
"""What ``when`` may ask of an environment: the type of its action space."""
_ACTION_SPACES = ("Box", "Discrete", "MultiDiscrete", "MultiBinary")

_FIXED = ("policy", "seed", "tensorboard_log", "verbose", "device", "engine", "n_threads", "compile", "stats_window_size")
"""Constructor arguments that make nothing better: the run sets them."""
_SHARED = ("when",)
_OPTIONS: dict[str, tuple[str, ...]] = {
    "float": ("log", "step", "one_minus", "at_most", *_SHARED),
    "int": ("log", "step", "at_most", *_SHARED),
    "power_of_two": ("at_most", *_SHARED),
    "categorical": _SHARED,
    "same_as": _SHARED,
}
_ABSENT: Any = object()


class _Source(Protocol):
    """Where values come from: a trial that suggests them, or known values that are looked up."""

    def number(self, name: str, kind: str, node: Mapping[str, Any], target: Any) -> float: ...

    def option(self, name: str, options: Mapping[str, Any] | Sequence[Any], target: Any) -> Any: ...


@dataclass(frozen=True)
class Space:
    """One variant of a file.

    :param name: what to call it
    :param nodes: plain data by key, as in the file
    :param locate: maps a path of keys to the place that an error names
    """

    name: str
    nodes: Mapping[str, Any]
    locate: Locate = field(default=".".join, compare=False, repr=False)

    def check(self, cls: type[BaseAlgorithm]) -> None:
        """Check every key and the ends of every range against the constructor.

        :param cls: the algorithm
        :raises ConfigError: what is wrong, with file, line and the nearest name
        """
        parameters = schema.constructor_parameters(cls)
        if not self.nodes:
            raise ConfigError(f"{self.locate(())}: the space is empty")
        seen: list[str] = []
        varied = 0
        for key, node in self.nodes.items():
            place = self.locate((key,))
            if key in _FIXED and key in parameters:
                raise ConfigError(f"{place}: {key!r} is set by the run and cannot be varied")
            if key not in parameters and key not in VARIED:
                raise ConfigError(f"{place}: {cls.__name__} has no argument {key!r}{nearest(key, [*parameters, *VARIED])}")
            varied += self._check_node(node, (key,), seen, parameters)
            for value in _corners(node, self.nodes):
                self._check_value(cls, key, value)
            seen.append(key)
        if not varied:
            raise ConfigError(f"{self.locate(())}: the space varies nothing")

    def suggest(self, trial: "optuna.Trial", given: Mapping[str, Any]) -> dict[str, Any]:
        """Let a trial choose a value for each key.

        :param trial: of an Optuna study
        :param given: values of all keys that the space does not have, for ``at_most``, ``when`` and ``same_as``; and
            :data:`ACTION_SPACE`
        :return: plain data by key
        """
        return self._values(_FromTrial(trial), given, {})

    def parameters(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return the parameters of the trial that comes nearest to known values.

        :param values: plain data of every key
        :return: by the names that :meth:`suggest` gives them
        """
        source = _FromValues()
        self._values(source, values, values)
        return source.found

    def _values(self, source: _Source, given: Mapping[str, Any], targets: Mapping[str, Any]) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key, node in self.nodes.items():
            value = _value(node, key, source, {**given, **values}, targets.get(key, _ABSENT))
            if value is not _ABSENT:
                values[key] = value
        return values

    def _check_node(self, node: Any, path: tuple[str, ...], seen: Sequence[str], parameters: Mapping[str, Any]) -> int:
        """Check one value's form and return how many parameters it varies."""
        place = self.locate(path)
        if not isinstance(node, Mapping):
            return 0
        kinds = [kind for kind in _OPTIONS if kind in node]
        if not kinds:
            return sum(self._check_node(each, (*path, name), seen, parameters) for name, each in node.items())
        kind, name = kinds[0], ".".join(path)
        for key in node:
            if key != kind and key not in _OPTIONS[kind]:
                hint = nearest(key, _OPTIONS[kind])
                raise ConfigError(f"{self.locate((*path, key))}: {name}: {kind} has no option {key!r}{hint}")
        if kind == "categorical":
            self._check_options(node[kind], path, place)
            options = node[kind] if isinstance(node[kind], Mapping) else {}
            for option, each in options.items():
                self._check_node(each, (*path, kind, option), seen, parameters)
        elif kind == "same_as":
            self._check_reference(node[kind], path, seen, parameters)
        else:
            _check_range(name, kind, node, place)
        most = node.get("at_most", [])
        if not isinstance(most, list):
            raise ConfigError(f"{place}: {name}: at_most={most!r}: expected [key, …]")
        for key in most:
            self._check_reference(key, path, seen, parameters)
        when = node.get("when", {})
        if not isinstance(when, Mapping):
            raise ConfigError(f"{place}: {name}: when={when!r}: expected {{key: value}}")
        for key, wanted in when.items():
            if key != ACTION_SPACE:
                self._check_reference(key, path, seen, parameters)
                continue
            for each in wanted if isinstance(wanted, list) else [wanted]:
                if each not in _ACTION_SPACES:
                    hint = nearest(str(each), _ACTION_SPACES)
                    raise ConfigError(
                        f"{place}: {name}: {ACTION_SPACE}={each!r} is not one of {', '.join(_ACTION_SPACES)}{hint}"
                    )
        return int(kind != "same_as")

    def _check_options(self, options: Any, path: tuple[str, ...], place: str) -> None:
        name = ".".join(path)
        if not isinstance(options, (list, Mapping)) or len(options) < 2:
            raise ConfigError(f"{place}: {name}: categorical={options!r}: expected two values or more")
        for each in options if isinstance(options, list) else ():
            if not isinstance(each, (str, int, float, type(None))):
                raise ConfigError(f"{place}: {name}: {each!r} needs a name: categorical: {{name: {each!r}, …}}")

    def _check_reference(self, key: Any, path: tuple[str, ...], seen: Sequence[str], parameters: Mapping[str, Any]) -> None:
        place, name = self.locate(path), ".".join(path)
        if not isinstance(key, str):
            raise ConfigError(f"{place}: {name} refers to {key!r}: expected a key")
        if key in self.nodes and key not in seen:
            raise ConfigError(f"{place}: {name} refers to {key!r}, which must stand above it")
        if key not in seen and key not in parameters and key not in VARIED:
            raise ConfigError(f"{place}: {name} refers to {key!r}{nearest(key, [*parameters, *VARIED])}")

    def _check_value(self, cls: type[BaseAlgorithm], key: str, value: Any) -> None:
        place = self.locate((key,))
        if key == "wrappers":
            resolve_wrappers(value, where=place)
        elif key in VARIED:
            schema.check_value(key, value, RUN_KEYS[key], place)
        else:
            schema.resolve(cls, {key: value}, where=lambda keys: self.locate(keys))


def load_space(spec: AlgorithmSpec, choice: str | None = None) -> Space:
    """Read and check a search space.

    :param spec: the algorithm
    :param choice: None for the ``default`` variant of the algorithm's own file; the name of another variant; the path of a
        YAML file, which holds variants or is one; or ``file.yml:variant``
    :raises UnknownNameError: there is no such variant, or the algorithm has no space of its own
    :raises ConfigError: the file is wrong, with the line and the nearest name
    """
    file, variant, alone = _chosen(spec, choice)
    data, locate = load_yaml(file)
    if alone and variant is None and "default" not in data:
        label, nodes, place = file.stem, data, locate
    else:
        label = variant or "default"
        if label not in data:
            raise UnknownNameError(f"{file} has no space {label!r}{nearest(label, data)}; there are {', '.join(data)}")
        layers, place = extended(data, label, locate, "other space")
        nodes = {key: node for layer in layers for key, node in layer.items()}
    space = Space(label, nodes, place)
    space.check(spec.load())
    return space


def space_names(spec: AlgorithmSpec) -> list[str]:
    """Return the variants of an algorithm's own file.

    :param spec: the algorithm
    :raises UnknownNameError: it has none
    """
    return list(load_yaml(_own_file(spec))[0])


def _chosen(spec: AlgorithmSpec, choice: str | None) -> tuple[Path, str | None, bool]:
    """Return the file, the variant, and whether the file is a user's."""
    if choice is None or not any(part.endswith((".yml", ".yaml")) for part in (choice, choice.rpartition(":")[0])):
        return _own_file(spec), choice, False
    if choice.endswith((".yml", ".yaml")):
        return Path(choice), None, True
    path, _, variant = choice.rpartition(":")
    return Path(path), variant, True


def _own_file(spec: AlgorithmSpec) -> Path:
    if spec.spaces_path is not None:
        return packaged(spec.spaces_path)
    if not spec.distribution:  # ours
        file = data_dir("tuning") / "spaces" / f"{spec.name}.yml"
        if file.is_file():
            return file
    raise UnknownNameError(f"algorithm {spec.name!r} has no search space: give one as a YAML file (--space FILE)")


# --- one value --------------------------------------------------------------------------------------------------------


def _kind(node: Any) -> str | None:
    return next((kind for kind in _OPTIONS if kind in node), None) if isinstance(node, Mapping) else None


def _check_range(name: str, kind: str, node: Mapping[str, Any], place: str) -> None:
    ends = node[kind]
    wanted = "numbers" if kind == "float" else "whole numbers"
    types = (int, float) if kind == "float" else (int,)
    ok = isinstance(ends, list) and len(ends) == 2 and all(type(each) in types and isfinite(each) for each in ends)
    if not ok or ends[0] >= ends[1]:
        raise ConfigError(f"{place}: {name}: {kind}={ends!r}: expected [low, high], two {wanted} in this order")
    if kind == "power_of_two" and any(each < 1 or each & (each - 1) for each in ends):
        raise ConfigError(f"{place}: {name}: power_of_two={ends!r}: expected two powers of two")
    for key in ("log", "one_minus"):
        if not isinstance(node.get(key, False), bool):
            raise ConfigError(f"{place}: {name}: {key}={node[key]!r}: expected true or false")
    if node.get("log"):
        if ends[0] <= 0:
            raise ConfigError(f"{place}: {name}: a logarithmic range begins above 0, not at {ends[0]}")
        if "step" in node:
            raise ConfigError(f"{place}: {name}: a logarithmic range has no step")
    step = node.get("step", 1)
    if type(step) not in types or step <= 0:
        raise ConfigError(f"{place}: {name}: step={step!r}: expected a number above 0")


def _corners(node: Any, nodes: Mapping[str, Any]) -> Iterator[Any]:
    """Values that a node can take: the ends of ranges and every option, each at least once."""
    kind = _kind(node)
    if kind is None:
        if not isinstance(node, Mapping):
            yield node
            return
        columns = [list(_corners(each, nodes)) for each in node.values()]
        for i in range(max(map(len, columns), default=1)):
            yield {name: column[min(i, len(column) - 1)] for name, column in zip(node, columns, strict=True)}
    elif kind == "categorical":
        options = node[kind]
        for each in options.values() if isinstance(options, Mapping) else options:
            yield from _corners(each, nodes)
    elif kind == "same_as":
        if node[kind] in nodes:
            yield from _corners(nodes[node[kind]], nodes)
    else:
        for end in node[kind]:
            yield 1 - end if node.get("one_minus") else float(end) if kind == "float" else end


def _value(node: Any, name: str, source: _Source, known: Mapping[str, Any], target: Any) -> Any:
    """Return the value of a node; :data:`_ABSENT` where its condition does not hold."""
    kind = _kind(node)
    if kind is None:
        if not isinstance(node, Mapping):
            return node
        of = target if isinstance(target, Mapping) else {}
        found = {key: _value(each, f"{name}.{key}", source, known, of.get(key, _ABSENT)) for key, each in node.items()}
        return {key: value for key, value in found.items() if value is not _ABSENT}
    for key, wanted in node.get("when", {}).items():
        if known.get(key) not in (wanted if isinstance(wanted, list) else [wanted]):
            return _ABSENT
    if kind == "same_as":
        return known.get(node[kind], _ABSENT)
    if kind == "categorical":
        options = node[kind]
        chosen = source.option(name, options, target)
        if not isinstance(options, Mapping):
            return chosen
        return _value(options[chosen], f"{name}[{chosen}]", source, known, target)
    value = source.number(name, kind, node, target)
    if caps := [known[key] for key in node.get("at_most", ()) if isinstance(known.get(key), int)]:
        value = min(value, prod(caps))
    return value


class _FromTrial:
    def __init__(self, trial: "optuna.Trial") -> None:
        self.trial = trial

    def number(self, name: str, kind: str, node: Mapping[str, Any], target: Any) -> float:
        low, high = node[kind]
        if kind == "power_of_two":
            exponent = self.trial.suggest_int(f"log2 {name}", low.bit_length() - 1, high.bit_length() - 1)
            return int(2**exponent)
        log, step = node.get("log", False), node.get("step")
        if kind == "int":
            return self.trial.suggest_int(name, low, high, log=log, step=step or 1)
        if node.get("one_minus"):
            return 1 - self.trial.suggest_float(f"1 - {name}", low, high, log=log, step=step)
        return self.trial.suggest_float(name, low, high, log=log, step=step)

    def option(self, name: str, options: Mapping[str, Any] | Sequence[Any], target: Any) -> Any:
        return self.trial.suggest_categorical(name, list(options))


class _FromValues:
    """Looks values up, the nearest where a range or the options do not have one, and keeps the parameters."""

    def __init__(self) -> None:
        self.found: dict[str, Any] = {}

    def number(self, name: str, kind: str, node: Mapping[str, Any], target: Any) -> float:
        low, high = node[kind]
        if isinstance(target, Mapping):  # a schedule where the space has a constant
            target = target.get("initial", target.get("sigma"))
        if isinstance(target, bool) or not isinstance(target, (int, float)):
            target = 1 - low if node.get("one_minus") else low
        if kind == "power_of_two":
            value = min(max(int(target), low), high)
            exponent = min(range(low.bit_length() - 1, high.bit_length()), key=lambda e: (abs(2**e - value), e))
            self.found[f"log2 {name}"] = exponent
            return int(2**exponent)
        label, x = (f"1 - {name}", 1 - target) if node.get("one_minus") else (name, target)
        if "step" in node:
            x = low + round((x - low) / node["step"]) * node["step"]
        x = min(max(x, low), high)
        self.found[label] = x = round(x) if kind == "int" else float(x)
        return 1 - x if node.get("one_minus") else x

    def option(self, name: str, options: Mapping[str, Any] | Sequence[Any], target: Any) -> Any:
        if isinstance(options, Mapping):
            chosen = max(options, key=lambda each: _likeness(options[each], target))
        else:
            chosen = max(options, key=lambda each: each is target or (each == target and type(each) is type(target)))
        self.found[name] = chosen
        return chosen


def _likeness(node: Any, target: Any) -> float:
    """How much of a value an option accounts for, in [0, 1]."""
    kind = _kind(node)
    if kind in ("float", "int", "power_of_two"):
        return float(isinstance(target, (int, float)) and not isinstance(target, bool)) * 0.9
    if kind == "categorical":
        options = node[kind]
        return max(_likeness(each, target) for each in (options.values() if isinstance(options, Mapping) else options))
    if not isinstance(node, Mapping):
        return float(node is target or (node == target and type(node) is type(target)))
    if not isinstance(target, Mapping):
        return 0.0
    selector = next((key for key in ("schedule", "noise") if key in node), None)
    if selector and node[selector] != target.get(selector):
        return 0.0
    return sum(_likeness(each, target.get(key, _ABSENT)) for key, each in node.items()) / max(len(node), len(target), 1)
