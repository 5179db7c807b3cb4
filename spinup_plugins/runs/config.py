"""The configuration of a run as data: composed of a preset, a file and the command line, checked, written, read again.

A written configuration lists every constructor argument, so that it repeats its run whatever defaults become later.
"""

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, get_args

import torch as th
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from stable_baselines3.common.base_class import BaseAlgorithm

from spinup_plugins import __version__, registry, schema
from spinup_plugins.atomic import write_text
from spinup_plugins.envs.kinds import VecEnvKind
from spinup_plugins.errors import ConfigError, nearest
from spinup_plugins.wrapping import resolve_wrappers
from spinup_plugins.yaml_files import Locate, dump_yaml, load_yaml

__all__ = ["Layer", "RunConfig", "completed", "compose", "dump", "file_layer", "load", "torch_device", "versions"]

_RECORDED = ("command", "versions")
_RUNS = {"policy": "policy", "seed": "seed", "tensorboard_log": "tensorboard"}
"""Constructor arguments that the run sets by a key of its own."""
_DISTRIBUTIONS = ("stable-baselines3", "sb3-contrib", "torch", "gymnasium", "numpy")


def _whole(value: Any) -> Any:
    """Read ``1e6`` as the integer it is."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Count = Annotated[int, BeforeValidator(_whole)]


class RunConfig(BaseModel):
    """Everything that decides how a run goes.

    :param algo: name in the registry, such as ``ppo``
    :param env: Gymnasium id, or ``module:id`` to import the module that registers it
    :param n_timesteps: environment steps to train for, summed over the environments; a lower bound, as in SB3
    :param seed: seed of parameters, exploration and environments (copy ``i`` gets ``seed + i``)
    :param n_envs: copies of the environment stepped side by side
    :param vec_env: how they are stepped: ``dummy`` in this process, ``subproc`` in worker processes, ``auto`` whichever of
        the two a measurement finds faster, ``gym-async`` by Gymnasium's AsyncVectorEnv, ``envpool`` by EnvPool
    :param env_kwargs: arguments of the environment's constructor
    :param wrappers: names, or ``{name: {argument: value}}``, of wrappers around each copy, the innermost first
    :param normalize: true, or arguments of ``VecNormalize``: observations and rewards are normalised while training
    :param policy: ``MlpPolicy`` and the like; null chooses by the observation space
    :param preset: where the values not given came from: ``default``, ``spinning_up``, ``zoo`` or a YAML file
    :param hyperparameters: constructor arguments of the algorithm as plain data
    :param eval_every: timesteps between evaluations; 0 for none, null for a twentieth of ``n_timesteps``, at least 1000
    :param eval_episodes: episodes per evaluation during training
    :param final_episodes: episodes of the evaluation after training
    :param checkpoint_every: timesteps between checkpoints, from which an interrupted run goes on; 0 for none, null for a tenth
        of ``n_timesteps``, at least 10000
    :param callbacks: ``module:Class``, ``module:function`` or ``module:Class:{key: value}``
    :param threads: threads to compute with
    :param tensorboard: write TensorBoard event files into the run folder, too
    :param command: written only: the command line that started the run
    :param versions: written only: what the run ran on
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, ser_json_inf_nan="constants")

    algo: str
    env: str
    n_timesteps: Count = Field(100_000, ge=1)
    seed: Count = Field(0, ge=0, lt=2**32)
    n_envs: Count = Field(1, ge=1)
    vec_env: VecEnvKind = "auto"
    env_kwargs: dict[str, Any] = Field(default_factory=dict)
    wrappers: list[str | dict[str, Any]] = Field(default_factory=list)
    normalize: bool | dict[str, Any] = False
    policy: str | None = None
    preset: str | None = None
    hyperparameters: dict[str, Any] = Field(default_factory=dict)
    eval_every: Count | None = Field(None, ge=0)
    eval_episodes: Count = Field(5, ge=1)
    final_episodes: Count = Field(20, ge=1)
    checkpoint_every: Count | None = Field(None, ge=0)
    callbacks: list[str] = Field(default_factory=list)
    threads: Count = Field(1, ge=1)
    tensorboard: bool = False
    command: str | None = None
    versions: dict[str, str] = Field(default_factory=dict)


@dataclass(frozen=True)
class Layer:
    """Some keys of a configuration and the place where they were written.

    :param values: keys of :class:`RunConfig`, as plain data
    :param locate: maps a path of keys, such as ``("hyperparameters", "gamma")``, to the place that an error names
    """

    values: Mapping[str, Any]
    locate: Locate


def compose(*layers: Layer) -> RunConfig:
    """Lay configurations over each other; a later one wins, key by key.

    Mappings (``hyperparameters``, ``env_kwargs``, ``policy_kwargs``) are merged, every other value is replaced. A
    layer's preset lies beneath its own keys. A configuration that a run wrote is complete: there it is but a record.

    :param layers: the least important one first
    :raises ConfigError: a key is unknown, a value has the wrong type or range, or algorithm or environment is missing
    :raises UnknownNameError: there is no such algorithm
    """
    merged: dict[str, Any] = {}
    for layer in layers:
        _check_keys(layer)
        merged |= layer.values
    for key in ("algo", "env"):
        if not isinstance(merged.get(key), str):
            raise ConfigError(f"no {key} given: name it as an argument or in the configuration file")
    spec = registry.get_spec(merged["algo"])
    cls = spec.load()
    values: dict[str, Any] = {}
    for layer in layers:
        preset = layer.values.get("preset")
        if preset is not None and "versions" not in layer.values:
            values = _merge(values, _nested(registry.preset_values(spec, preset, merged["env"])))
        values = _merge(values, layer.values)
        _check_hyperparameters(cls, layer, values.get("policy"))
        if isinstance(layer.values.get("wrappers"), list):
            resolve_wrappers(layer.values["wrappers"], where=layer.locate(("wrappers",)))
    # A plugin's bare name may be another distribution's, too; what was typed is unambiguous.
    values["algo"] = merged["algo"].lower() if spec.distribution else spec.name
    try:
        return RunConfig.model_validate({key: value for key, value in values.items() if key not in _RECORDED})
    except ValidationError as error:
        raise _one_line(error, layers) from error


def load(path: str | Path) -> RunConfig:
    """Read a configuration file, written by hand or by a run.

    :param path: YAML file
    :raises ConfigError: as :func:`compose` does, with the file and the line
    """
    return compose(file_layer(path))


def file_layer(path: str | Path) -> Layer:
    """Read a configuration file as a layer.

    :param path: YAML file
    :raises ConfigError: it is missing or not YAML
    """
    return Layer(*load_yaml(path))


def completed(config: RunConfig, command: str | None) -> RunConfig:
    """Return ``config`` with every choice that was left open made explicit, except the policy, which an env decides.

    :param config: the configuration of a run
    :param command: the command line that started the run, if there was one
    :raises ConfigError: a hyperparameter is a Python object without a plain form
    """
    parameters = schema.constructor_parameters(registry.get_class(config.algo))
    defaults = {name: each.default for name, each in parameters.items() if name not in _RUNS}
    eval_every = max(config.n_timesteps // 20, 1000) if config.eval_every is None else config.eval_every
    often = max(config.n_timesteps // 10, 10_000) if config.checkpoint_every is None else config.checkpoint_every
    return config.model_copy(
        update={
            "hyperparameters": schema.jsonable({**defaults, **config.hyperparameters}),
            "env_kwargs": schema.jsonable(config.env_kwargs),
            "eval_every": eval_every,
            "checkpoint_every": often,
            "command": command,
            "versions": versions(),
        }
    )


def versions() -> dict[str, str]:
    """Return what this runs on: versions of packages and Python, and the platform."""
    return {
        "spinup-plugins": __version__,
        **{name: version(name) for name in _DISTRIBUTIONS},
        "python": platform.python_version(),
        "platform": platform.platform(),
    }


def dump(config: RunConfig, path: Path) -> None:
    """Write ``config`` so that :func:`load` returns an equal one.

    :param config: a configuration of plain data
    :param path: YAML file to create or replace
    """
    write_text(path, f"# spinup train --config {path.name} repeats this run\n{dump_yaml(config.model_dump())}")


def torch_device(name: str) -> th.device | None:
    """Return the device of a name; None for ``auto``, whichever there is.

    :raises ConfigError: torch has none like that
    """
    try:
        return None if name == "auto" else th.device(name)
    except RuntimeError as error:
        known = ("auto", "cpu", "cuda", "mps")
        raise ConfigError(
            f"device={name!r}: torch has none like that{nearest(name, known)}; take {', '.join(known)}"
        ) from error


def _check_keys(layer: Layer) -> None:
    for key in layer.values:
        if key not in RunConfig.model_fields:
            raise ConfigError(f"{layer.locate((key,))}: unknown key {key!r}{nearest(key, RunConfig.model_fields)}")


def _check_hyperparameters(cls: type[BaseAlgorithm], layer: Layer, policy: Any) -> None:
    """Check the constructor arguments of one layer while the places where they stand are known."""
    hyperparameters = layer.values.get("hyperparameters", {})
    if not isinstance(hyperparameters, Mapping):
        return  # RunConfig says so
    for key in hyperparameters:
        if key in _RUNS:
            place = layer.locate(("hyperparameters", key))
            raise ConfigError(f"{place}: {key!r} is no hyperparameter of a run; its own key {_RUNS[key]!r} sets it")
    chosen = {"policy": policy} if policy is not None else {}
    schema.resolve(cls, {**hyperparameters, **chosen}, where=lambda keys: layer.locate(("hyperparameters", *keys)))


def _merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    merged = registry.merge_values(below, above)
    hyperparameters = [each["hyperparameters"] for each in (below, above) if "hyperparameters" in each]
    if len(hyperparameters) == 2 and all(isinstance(each, Mapping) for each in hyperparameters):
        merged["hyperparameters"] = registry.merge_values(*hyperparameters)
    return merged


def _nested(preset: Mapping[str, Any]) -> dict[str, Any]:
    """Move a preset's constructor arguments, which it holds beside run keys, to where a configuration has them."""
    run = {key: value for key, value in preset.items() if key in RunConfig.model_fields}
    return {**run, "hyperparameters": {key: value for key, value in preset.items() if key not in registry.RUN_KEYS}}


def _one_line(error: ValidationError, layers: Sequence[Layer]) -> ConfigError:
    first = error.errors()[0]
    key = str(first["loc"][0])
    places = [layer.locate((key,)) for layer in layers if key in layer.values]
    place = f"{places[-1]}: " if places else ""
    message = first["msg"].replace("Input should be", "must be")
    hint = nearest(str(first["input"]), map(str, get_args(RunConfig.model_fields[key].annotation)))
    return ConfigError(f"{place}{key}={first['input']!r} {message}{hint}")
