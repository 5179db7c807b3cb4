"""Presets: named sets of values that a run or a model begins with, as plain data."""

from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from sys import modules
from typing import TYPE_CHECKING, Any

from spinup_plugins.envs.kinds import VecEnvKind
from spinup_plugins.errors import ConfigError, UnknownNameError, nearest
from spinup_plugins.paths import data_dir, packaged
from spinup_plugins.yaml_files import EXTENDS, extended, load_yaml

if TYPE_CHECKING:
    from spinup_plugins.registry import AlgorithmSpec

__all__ = ["PRESETS", "RUN_KEYS", "merge_values", "preset_values", "zoo_entries"]

PRESETS = ("default", "spinning_up", "zoo")
"""The presets that go by a name; the path of a YAML file is one, too."""

RUN_KEYS: dict[str, Any] = {
    "n_timesteps": int,
    "n_envs": int,
    "vec_env": VecEnvKind,
    "wrappers": list[str | dict[str, Any]],
    "normalize": bool | dict[str, Any],
    "env_kwargs": dict[str, Any],
    "policy": str,
    "provenance": str,
}
"""What an entry of the zoo or a preset file may hold besides constructor arguments, and its types."""


def preset_values(spec: "AlgorithmSpec", preset: str | None, env_id: str | None) -> dict[str, Any]:
    """Return what a preset sets, as plain data: constructor arguments, and run keys (:data:`RUN_KEYS`).

    :param spec: the algorithm
    :param preset: None or ``"default"``: nothing; ``"spinning_up"``: the original's values; ``"zoo"``: the zoo's entry
        for the environment, else the file's ``default``; or the path of a YAML file that holds one entry, or several by
        environment
    :param env_id: id of the environment; None if it has none
    :raises UnknownNameError: there is no such preset
    :raises ConfigError: it has no entry for the environment, or a key or value of the entry is wrong (file and line)
    """
    if preset is None or preset == "default":
        return {}
    if preset == "spinning_up":
        constant = getattr(modules[spec.load().__module__], "SPINNING_UP", None)
        if constant is None:
            raise UnknownNameError(f"algorithm {spec.name!r} has no preset 'spinning_up'")
        return deepcopy(dict(constant))
    if preset == "zoo":
        return _entry(spec, _zoo_file(spec), env_id, alone=False)
    if preset.endswith((".yml", ".yaml")):
        return _entry(spec, Path(preset), env_id, alone=True)
    raise UnknownNameError(
        f"unknown preset {preset!r}{nearest(preset, PRESETS)}; there are {', '.join(PRESETS)} and paths of .yml files"
    )


def merge_values(base: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``base`` with ``overrides`` put over it; mappings in both, such as ``policy_kwargs``, are merged one deep.

    Only what describes a schedule or noise is replaced as a whole: the keys of its kinds differ.
    """
    merged = {**base, **overrides}
    for key in base.keys() & overrides.keys():
        both = (base[key], overrides[key])
        if all(isinstance(each, Mapping) and not each.keys() & {"schedule", "noise"} for each in both):
            merged[key] = {**base[key], **overrides[key]}
    return merged


def zoo_entries(spec: "AlgorithmSpec") -> list[str]:
    """Return the environments that an algorithm's zoo file has values for, in its order.

    :param spec: the algorithm
    :raises UnknownNameError: it has no zoo file
    """
    return [name for name in _listed(load_yaml(_zoo_file(spec))[0]) if name != "default"]


def _zoo_file(spec: "AlgorithmSpec") -> Path:
    if spec.presets_path is not None:
        return packaged(spec.presets_path)
    if not spec.distribution:  # ours
        file = data_dir("zoo") / "hyperparams" / f"{spec.name}.yml"
        if file.is_file():
            return file
    raise UnknownNameError(f"algorithm {spec.name!r} has no preset 'zoo'")


def _is_by_environment(spec: "AlgorithmSpec", entries: Mapping[str, Any]) -> bool:
    """Whether a file holds entries, of other environments, rather than one entry's own values."""
    from spinup_plugins import schema

    known = schema.constructor_parameters(spec.load()).keys() | RUN_KEYS.keys()
    return bool(entries) and all(isinstance(each, Mapping) and key not in known for key, each in entries.items())


def _entry(spec: "AlgorithmSpec", file: Path, env_id: str | None, *, alone: bool) -> dict[str, Any]:
    """Read and check the entry for ``env_id``.

    :param alone: whether a file that does not list ``env_id`` may be one entry itself
    """
    from spinup_plugins import schema
    from spinup_plugins.wrapping import resolve_wrappers

    entries, locate = load_yaml(file)
    env_id = env_id.rpartition(":")[2] if env_id else ""
    listed = [*entries] if alone else _listed(entries)
    name = env_id if env_id in listed else "default"
    if name in entries:
        layers, place = extended(entries, name, locate)
    elif alone and not _is_by_environment(spec, entries):
        layers, place = [entries], locate
    else:
        whom = f"environment {env_id!r}" if env_id else "an environment without an id"
        raise ConfigError(f"{file} has no entry for {whom}{nearest(env_id, listed)}; there are {', '.join(listed)}")
    if not alone and "provenance" not in layers[-1]:
        raise ConfigError(f"{locate((name,))}: the entry does not tell its 'provenance'")
    entry: dict[str, Any] = {}
    for layer in layers:
        entry = merge_values(entry, layer)
    for key in [key for key in entry if key in RUN_KEYS]:
        entry[key] = schema.check_value(key, entry[key], RUN_KEYS[key], place((key,)))
    resolve_wrappers(entry.get("wrappers", ()), where=place(("wrappers",)))
    arguments = {key: value for key, value in entry.items() if key not in RUN_KEYS}
    schema.resolve(spec.load(), arguments, where=place)
    return entry


def _listed(entries: Mapping[str, Any]) -> list[str]:
    """Names of the entries that are for environments: those that others only extend tell no provenance."""
    extended = {entry[EXTENDS] for entry in entries.values() if isinstance(entry, Mapping) and EXTENDS in entry}
    return [name for name, entry in entries.items() if name not in extended or "provenance" in entry]
