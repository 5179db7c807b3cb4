"""Agent files: everything that a trained policy needs, in one file that holds nothing to execute.

What a file says is data about a policy of a registered algorithm; the policy is built from the registry's own classes, filled
with the file's tensors once all of them are known to fit, and only then returned. A file is never asked for an import path:
classes go by the short names of :data:`spinup_plugins.schema.CLASSES`, wrappers by those of
:data:`spinup_plugins.wrapping.WRAPPERS`, and environments by the ids that are registered already.
"""

import copy
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from textwrap import shorten
from threading import get_ident
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from pydantic import ValidationError
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.buffers import DictReplayBuffer, NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.distributions import StateDependentNoiseDistribution
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.noise import VectorizedActionNoise
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.save_util import recursive_getattr, recursive_setattr
from stable_baselines3.common.utils import check_for_correct_spaces
from stable_baselines3.common.vec_env import (
    VecCheckNan,
    VecEnv,
    VecEnvWrapper,
    VecMonitor,
    VecNormalize,
    VecTransposeImage,
    unwrap_vec_normalize,
)
from stable_baselines3.her.her_replay_buffer import HerReplayBuffer
from torch.nn.modules.module import register_module_parameter_registration_hook

from spinup_plugins import registry, schema
from spinup_plugins.atomic import replacing
from spinup_plugins.engine.tiers import native
from spinup_plugins.environments import make_env
from spinup_plugins.envs.convert import AnyEnv, as_vec_env
from spinup_plugins.errors import (
    ConfigError,
    ModelFileError,
    ModelFileMissingError,
    PluginError,
    SpinupError,
    UnknownNameError,
    nearest,
)
from spinup_plugins.paths import data_dir
from spinup_plugins.runs.archive import LIMIT, Tensors, pack, unpack
from spinup_plugins.runs.config import RunConfig, torch_device, versions
from spinup_plugins.runs.files import file_name, one_line, statistics_file
from spinup_plugins.runs.manifest import (
    Environment,
    Manifest,
    pack_normalization,
    pack_space,
    unpack_normalization,
    unpack_space,
)
from spinup_plugins.wrapping import WRAPPERS, NamedWrapper, resolve_wrappers, unrewarded

if TYPE_CHECKING:
    from gymnasium.envs.registration import WrapperSpec

__all__ = ["SUFFIX", "Agent", "load_agent", "published", "save_agent"]

SUFFIX = ".spinup"
"""Of agent files."""

_ELSEWHERE = {"policy", "seed"}
"""Constructor arguments that have a place of their own in the file."""
_OF_THE_SESSION = {"compile", "device", "n_threads", "tensorboard_log", "verbose"}
"""Constructor arguments that are the machine's or the user's; ``compile`` could choose a compiler to start."""
_RECORDERS = {"record_trajectories"}
"""Wrappers that write files; they belong to a run, and a file must not choose what is written where."""
_OF_GYMNASIUM = {"render_mode", "num_envs", "vectorization_mode", "vector_kwargs"}
"""Arguments of ``gymnasium.make`` and ``make_vec`` that an agent does not depend on."""
_PASSED_ON = (VecTransposeImage, VecNormalize, VecMonitor, VecCheckNan)
"""Wrappers of vec-envs that are made again or leave observations and ends as they are."""


def published(algo: str, env: str) -> Path:
    """Return the path of the agent that this package publishes for an environment, whether it is there or not.

    :param algo: the algorithm's name
    :param env: id of the environment
    """
    return data_dir("zoo") / "agents" / file_name(algo) / file_name(env.rpartition(":")[2]) / f"agent{SUFFIX}"


class _UncountedError(ModelFileError):
    """An algorithm has no such number when it is built."""

    def __init__(self, text: str, name: str) -> None:
        super().__init__(text)
        self.name = name


# --- saving -----------------------------------------------------------------------------------------------------------


def save_agent(
    model: BaseAlgorithm,
    path: str | Path,
    *,
    env: str | Environment | None = None,
    config: RunConfig | None = None,
    normalization: VecNormalize | None = None,
    scores: Mapping[str, Any] | None = None,
    optimizers: bool = True,
) -> str:
    """Write all that a trained policy needs to one file, which is read back before it takes its place.

    :param model: an algorithm of the registry
    :param path: file to create or replace; ``.spinup`` is added to a name without suffix
    :param env: id of the environment it was trained on, or all about it; None asks ``config``, and otherwise the model's own
        environment
    :param config: configuration of the run that trained it
    :param normalization: statistics, in place of those of the ``VecNormalize`` around the model's environment
    :param scores: how well it does, as plain data
    :param optimizers: whether to keep what optimisers remember of gradients, up to two thirds of a file; without it they begin
        anew where learning goes on
    :return: the file's hash
    :raises ConfigError: the model cannot be made again from data alone, or its environment cannot: custom classes, wrappers
        without a name; or ``path`` cannot be written to
    """
    path = _with_suffix(path, SUFFIX)
    if not isinstance(model, BaseAlgorithm):
        raise ConfigError(f"cannot save '{path}': {type(model).__name__} is no algorithm, as model() of an agent returns")
    if not isinstance(env, (str, Environment, type(None))):
        raise ConfigError(f"cannot save '{path}': env={env!r} is no id of an environment, such as 'CartPole-v1'")
    if path.suffix != SUFFIX:
        raise ConfigError(f"cannot save '{path}': the name of an agent file ends in {SUFFIX!r}")
    try:
        data, tensors = _described(model, env, config, normalization, dict(scores or {}), optimizers)
        raw = pack(data, tensors)
        agent = _opened(raw, th.device("cpu"))
    except (SpinupError, ValueError, TypeError) as error:
        text = one_line(error) if isinstance(error, SpinupError) else str(error)
        if isinstance(error.__cause__, _UncountedError):
            own = f"model.{error.__cause__.name}"
            text += f" when it is built: 'del {own}' if you set it; an algorithm sets what it counts in its constructor"
        raise ConfigError(f"cannot save '{path}': {text}") from error
    for name, groups in _groups(agent._model).items():
        if groups != _groups(model)[name]:
            raise ConfigError(f"cannot save '{path}': {name} has other options than its constructor was given")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            temporary.write_bytes(raw)
    except OSError as error:
        raise ConfigError(f"cannot save '{path}': {error.strerror}") from error
    return agent.hash


def _with_suffix(path: str | Path, suffix: str) -> Path:
    path = Path(path)
    if not path.name:
        raise ConfigError(f"cannot save '{path}': it is a folder, not a file's name")
    return path if path.suffix else path.with_suffix(suffix)


def _described(
    model: BaseAlgorithm,
    env: str | Environment | None,
    config: RunConfig | None,
    normalization: VecNormalize | None,
    scores: dict[str, Any],
    optimizers: bool,
) -> tuple[dict[str, Any], Tensors]:
    tensors = _tensors(model, optimizers=optimizers)
    normalization = model.get_vec_normalize_env() if normalization is None else normalization
    statistics = None
    if normalization is not None:
        statistics, more = pack_normalization(normalization)
        if config is not None and config.normalize:  # an evaluation may have switched it off
            norm_reward = config.normalize is True or config.normalize.get("norm_reward", True)
            statistics = statistics.model_copy(update={"norm_reward": norm_reward})
        tensors |= more
    if env is None:
        environment = _environment(model) if config is None else _configured(config)
    else:
        environment = Environment(id=env) if isinstance(env, str) else env
    if environment is not None:
        _check_environment(environment)
    manifest = Manifest(
        algorithm=_name_of(model),
        policy=_policy_of(model),
        arguments=_arguments(model),
        observation_space=pack_space(model.observation_space, "the observation space"),
        action_space=pack_space(model.action_space, "the action space"),
        actions=_actions(model),
        environment=environment,
        normalization=statistics,
        counters=_counters(model),
        learning_rates={name: [float(each["lr"]) for each in groups] for name, groups in _optimizer_groups(model).items()},
        training=None if config is None else config.model_dump(),
        seed=model.seed,
        scores=scores,
        versions=versions(),
    )
    return manifest.model_dump(), tensors


def _name_of(model: BaseAlgorithm) -> str:
    for name in registry.algorithms(peers=True):
        with suppress(PluginError):  # of a plugin that cannot be loaded
            if registry.get_class(name) is type(model):
                return name
    raise ConfigError(f"{type(model).__name__} is not a registered algorithm; spinup_plugins.register() makes it one")


def _policy_of(model: BaseAlgorithm) -> str:
    for name, policy_class in model.policy_aliases.items():
        if policy_class is model.policy_class:
            return name
    known = ", ".join(model.policy_aliases)
    raise ConfigError(f"an agent file holds the algorithm's own policies ({known}), not {model.policy_class.__name__}")


def _arguments(model: BaseAlgorithm) -> dict[str, Any]:
    """Return the constructor arguments that make the model again, as plain data without import paths."""
    attributes, found = vars(model), {}
    for name in schema.constructor_parameters(type(model)).keys() - _ELSEWHERE - _OF_THE_SESSION:
        for attribute in (name, f"_{name}"):
            if attribute in attributes:
                found[name] = attributes[attribute]
                break
    if isinstance(found.get("action_noise"), VectorizedActionNoise):
        found["action_noise"] = found["action_noise"].base_noise
    chosen, kwargs = found.get("replay_buffer_class"), dict(found.get("replay_buffer_kwargs") or {})
    if chosen in (ReplayBuffer, DictReplayBuffer) or (chosen is NStepReplayBuffer and found["n_steps"] > 1):
        # The constructor's own choice, which would be announced if it were the user's.
        found["replay_buffer_class"] = None
        found["replay_buffer_kwargs"] = {key: each for key, each in kwargs.items() if key not in ("n_steps", "gamma")}
    plain = schema.jsonable(found)
    _refuse_paths(plain, "")
    return plain


def _refuse_paths(data: Any, place: str) -> None:
    """Raise :class:`ConfigError` for a text that could name something to import."""
    if isinstance(data, str) and ":" in data:
        short = [name for each in schema.CLASSES.values() for name in each]
        raise ConfigError(
            f"{place}={data!r}: an agent file has no import paths, and hence no colons; classes go by {', '.join(short)}"
        )
    items = data.items() if isinstance(data, Mapping) else enumerate(data) if isinstance(data, list) else ()
    for key, each in items:
        _refuse_paths(each, f"{place}.{key}".lstrip(".") if isinstance(key, str) else place)


def _actions(model: BaseAlgorithm) -> Any:
    if not isinstance(model.action_space, spaces.Box):
        return "chosen"
    return "squashed" if model.policy.squash_output else "clipped"


# --- environments -----------------------------------------------------------------------------------------------------


def _configured(config: RunConfig) -> Environment:
    """Return what a run's configuration says about its environment."""
    wrappers = [each for each in config.wrappers if _wrapper_name(each) not in _RECORDERS]
    return Environment(
        id=config.env,
        kwargs=schema.jsonable(config.env_kwargs),
        wrappers=wrappers,
        n_envs=config.n_envs,
        vec_env="envpool" if config.vec_env == "envpool" else "dummy",
    )


def _environment(model: BaseAlgorithm) -> Environment | None:
    """Return what the model's own environment was made from, as far as it tells.

    :raises ConfigError: it was made from something, but not from what has a name
    """
    env = model.get_env()
    n_envs = 1 if env is None else env.num_envs
    while isinstance(env, VecEnvWrapper):
        if type(env) not in _PASSED_ON:
            raise ConfigError(f"its environment is wrapped in {type(env).__name__}, which has no name: pass env=")
        env = env.venv
    try:
        spec = None if env is None else env.get_attr("spec", 0)[0]
    except AttributeError:
        spec = None
    if not isinstance(spec, gym.envs.registration.EnvSpec):
        return None
    kwargs = {key: each for key, each in spec.kwargs.items() if key not in _OF_GYMNASIUM}
    for key, each in kwargs.items():
        if callable(each):
            raise ConfigError(f"its environment was given {key}={each!r}, which is no plain data: pass env=")
    registered = gym.registry.get(spec.id)
    limit = kwargs.pop("max_episode_steps", spec.max_episode_steps)  # vector environments have it there
    if registered is not None and registered.max_episode_steps != limit:
        kwargs["max_episode_steps"] = limit
    wrappers = [_named_wrapper(each) for each in spec.additional_wrappers if each.entry_point != _entry_point(Monitor)]
    wrappers = [each for each in wrappers if _wrapper_name(each) not in _RECORDERS]
    return Environment(id=spec.id, kwargs=schema.jsonable(kwargs), wrappers=wrappers, n_envs=n_envs)


def _named_wrapper(spec: "WrapperSpec") -> str | dict[str, Any]:
    for name in WRAPPERS:
        try:
            home = _entry_point(NamedWrapper(name).load())
        except ConfigError:  # an older Gymnasium has it not
            continue
        if home == spec.entry_point and spec.kwargs is not None:
            return {name: schema.jsonable(spec.kwargs)} if spec.kwargs else name
    raise ConfigError(f"its environment is wrapped in {spec.entry_point}, which has no name: pass env=")


def _entry_point(cls: type) -> str:
    return f"{cls.__module__}:{cls.__name__}"


def _wrapper_name(item: str | Mapping[str, Any]) -> str:
    return item if isinstance(item, str) else next(iter(item), "")


def _check_environment(environment: Environment) -> None:
    """Raise :class:`SpinupError` for wrappers that are not ours or Gymnasium's, and for arguments that they do not have."""
    for item in environment.wrappers:
        name = _wrapper_name(item)
        if name not in WRAPPERS or name in _RECORDERS:
            raise ConfigError(f"wrapper {name!r} is not one that an agent file can name: pass env={nearest(name, WRAPPERS)}")
        _refuse_paths(item, "wrappers")
    _refuse_paths(environment.kwargs, "env_kwargs")
    resolve_wrappers(environment.wrappers)


# --- what a model holds -----------------------------------------------------------------------------------------------


def _holders(model: BaseAlgorithm) -> dict[str, Any]:
    """Networks and optimisers by name, as SB3 saves them."""
    return {name: recursive_getattr(model, name) for name in model._get_torch_save_params()[0]}


def _optimizer_groups(model: BaseAlgorithm) -> dict[str, list[dict[str, Any]]]:
    holders = _holders(model).items()
    return {name: each.param_groups for name, each in holders if isinstance(each, th.optim.Optimizer)}


def _groups(model: BaseAlgorithm) -> dict[str, Any]:
    """Optimisers' options but for their parameters."""
    return {
        name: [schema.jsonable({key: each for key, each in group.items() if key != "params"}) for group in groups]
        for name, groups in _optimizer_groups(model).items()
    }


def _first_names(module: th.nn.Module) -> dict[str, str]:
    """Map each name in a state dict to the first one of the same tensor: shared extractors are there several times."""
    seen: dict[int, str] = {}
    state = getattr(module, "_orig_mod", module).state_dict(keep_vars=True)
    return {name: seen.setdefault(id(tensor), name) for name, tensor in state.items()}


def _noises(model: BaseAlgorithm) -> dict[str, StateDependentNoiseDistribution]:
    """GSDE's distributions by name: their exploration matrices act, too, and are no parameters."""
    policy = getattr(model.policy, "_orig_mod", model.policy)
    found = {name: getattr(each, "action_dist", None) for name, each in policy.named_modules()}
    return {f"noise/{name}": each for name, each in found.items() if isinstance(each, StateDependentNoiseDistribution)}


def _counters(model: BaseAlgorithm) -> dict[str, int | float]:
    """Numbers that training changes: timesteps, updates, episodes."""
    others = {"n_envs", "start_time", "use_sde"} | set(schema.constructor_parameters(type(model)))
    numbers = {name: each for name, each in vars(model).items() if type(each) in (int, float)}
    return {name: each for name, each in numbers.items() if name not in others and name[1:] not in others}


def _tensors(model: BaseAlgorithm, *, optimizers: bool = True) -> Tensors:
    """Return all tensors of a model by name, each once; without ``optimizers`` not theirs."""
    found: dict[str, Any] = {}
    parameters = model.get_parameters()
    for name, holder in _holders(model).items():
        if isinstance(holder, th.optim.Optimizer):
            for index, state in parameters[name]["state"].items() if optimizers else ():
                found |= {f"{name}/{index}/{key}": each for key, each in state.items() if each is not None}
        else:
            first = _first_names(holder)
            found |= {f"{name}/{key}": each for key, each in parameters[name].items() if first[key] == key}
    for name in model._get_torch_save_params()[1]:
        found[f"variable/{name}"] = recursive_getattr(model, name)
    for name, noise in _noises(model).items():
        found |= {f"{name}/{key}": getattr(noise, key) for key in ("exploration_mat", "exploration_matrices")}
    return {name: _array(each) for name, each in found.items()}


# --- loading ----------------------------------------------------------------------------------------------------------


def load_agent(source: str | Path, env: str | None = None, *, device: th.device | str = "auto") -> "Agent":
    """Read an agent file; nothing in it is executed, and an agent is returned whole or not at all.

    :param source: path of a file, or the name of an algorithm whose published agent is meant
    :param env: id of the environment to play; None for the one it was trained on. Of a published agent, the one it was
        trained on
    :param device: device to put the policy on
    :raises ModelFileError: the file is missing (then also a ``FileNotFoundError``), damaged or not an agent's
    :raises UnknownNameError: there is no such algorithm, or no agent of it is published for the environment
    :raises ConfigError: torch has no such device, or ``source`` is neither
    """
    torch_device(str(device))
    if not isinstance(source, (str, os.PathLike)):
        raise ConfigError(f"load_agent({source!r}): expected the path of a file, or the name of an algorithm with env=")
    path = Path(source)
    if isinstance(source, str) and not path.suffix and len(path.parts) == 1 and not path.is_file():
        if env is None:
            raise ConfigError(
                f"load_agent({source!r}): which environment? For a file, give its path, which ends in {SUFFIX!r}"
            )
        path, env = _published(source, env), None
    try:
        with path.open("rb") as file:
            raw = file.read(LIMIT + 1)
    except FileNotFoundError as error:
        raise ModelFileMissingError(f"cannot load '{path}': no such file") from error
    except (OSError, ValueError) as error:  # a path with a null byte is none
        raise ModelFileError(f"cannot load {str(path)!r}: {getattr(error, 'strerror', None) or error}") from error
    try:
        return _opened(raw, device, env)
    except ModelFileError as error:
        raise ModelFileError(f"cannot load '{path}': {error}") from error


def _published(algo: str, env: str) -> Path:
    algo = registry.get_spec(algo).name
    path = published(algo, env)
    if not path.is_file():
        there = [each.parent.name for each in published(algo, "*").parent.parent.glob(f"*/{path.name}")]
        others = [each.parents[1].name for each in published("*", env).parents[2].glob(f"*/{path.parent.name}/{path.name}")]
        listed = (
            f"; there are {', '.join(sorted(there))}"
            if there
            else f"; of {', '.join(sorted(others))} one is"
            if others
            else ""
        )
        raise UnknownNameError(f"no agent of {algo} is published for {env!r}{nearest(env, there)}{listed}")
    return path


def _opened(raw: bytes, device: th.device | str, env: str | None = None) -> "Agent":
    """Build an agent of a file's bytes.

    :raises ModelFileError: they are not valid in any way
    """
    data, tensors, checksum = unpack(raw)
    try:
        manifest = Manifest.model_validate(data)
        if manifest.environment is not None:
            _check_environment(manifest.environment)
        model = _built(manifest, tensors, device)
        normalizer = None
        if manifest.normalization is not None:
            normalizer = unpack_normalization(manifest.normalization, tensors, model.action_space)
        return Agent(manifest, tensors, checksum, model, normalizer, env)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise ModelFileError(f"{shorten(place, 100)}: {first['msg']}") from error
    except Exception as error:  # whatever classes make of arguments that they were not written for
        raise ModelFileError(shorten(one_line(error), 300)) from error


def _built(manifest: Manifest, tensors: Tensors, device: th.device | str) -> BaseAlgorithm:
    """Build the algorithm without environment and buffers, and fill it."""
    spec = registry.get_spec(manifest.algorithm)
    cls = spec.load()
    observation_space, action_space = unpack_space(manifest.observation_space), unpack_space(manifest.action_space)
    if type(action_space).__name__ not in spec.action_spaces:
        raise ModelFileError(f"{spec.name} cannot act on {action_space}")
    arguments = _resolved(manifest, cls, action_space)
    small: dict[str, Any] = {"seed": None}
    if issubclass(cls, OffPolicyAlgorithm):
        small |= {"buffer_size": 1, "overlap": False}
        if arguments.get("replay_buffer_class") is HerReplayBuffer:  # which wants an environment
            small |= {"replay_buffer_class": None, "replay_buffer_kwargs": None}
    elif issubclass(cls, OnPolicyAlgorithm):
        small["n_steps"] = 1
    small = {name: each for name, each in small.items() if name in schema.constructor_parameters(cls)}
    with th.random.fork_rng(devices=()), _no_more_parameters_than(tensors):
        model = cls(env=None, device=device, _init_setup_model=False, **{**arguments, **small})  # type: ignore[call-arg]
        model.observation_space, model.action_space, model.n_envs = observation_space, action_space, 1
        model._setup_model()
    for name in small.keys() & arguments.keys():
        setattr(model, name, arguments[name])
    model.seed = manifest.seed
    if _actions(model) != manifest.actions:
        raise ModelFileError(f"the policy's actions are not {manifest.actions} but {_actions(model)}")
    normalized = manifest.normalization is not None
    own = {name: each for name, each in tensors.items() if not (normalized and name.startswith("normalization/"))}
    _check_tensors(model, own)
    _fill(model, manifest, tensors)
    for name, noise in _noises(model).items():
        for key in ("exploration_mat", "exploration_matrices"):
            setattr(noise, key, _tensor(tensors[f"{name}/{key}"]).to(model.device))
    model.policy.set_training_mode(False)
    return model


def _resolved(manifest: Manifest, cls: type[BaseAlgorithm], action_space: spaces.Space[Any]) -> dict[str, Any]:
    for name in manifest.arguments:
        if name in _ELSEWHERE | _OF_THE_SESSION:
            raise ModelFileError(f"an agent file does not set {name!r}")
    if manifest.policy not in cls.policy_aliases:
        raise ModelFileError(f"{cls.__name__} has no policy {manifest.policy!r}{nearest(manifest.policy, cls.policy_aliases)}")
    _refuse_paths(manifest.arguments, "")
    arguments = {**manifest.arguments, "policy": manifest.policy}
    if arguments.get("engine") == "native" and native() is None:
        arguments["engine"] = "auto"
    return schema.resolve(cls, arguments, action_space=action_space)


@contextmanager
def _no_more_parameters_than(tensors: Tensors) -> Iterator[None]:
    """Stop networks from growing beyond what the file has weights for, before their memory is touched."""
    policy = [each for name, each in tensors.items() if name.startswith("policy/")]
    count, elements = 0, 0
    own = get_ident()  # the hook sees what other threads build, too

    def check(module: th.nn.Module, name: str, parameter: th.nn.Parameter | None) -> None:
        nonlocal count, elements
        if get_ident() != own:
            return
        count, elements = count + 1, elements + (0 if parameter is None else parameter.numel())
        if count > 2 * len(policy) + 16 or elements > 2 * sum(each.size for each in policy):
            raise ModelFileError("the policy is larger than its weights")

    hook = register_module_parameter_registration_hook(check)
    try:
        yield
    finally:
        hook.remove()


def _check_tensors(model: BaseAlgorithm, tensors: Tensors) -> None:
    """Compare all tensors with those of a model that was just built; an optimiser may have state for some parameters only."""
    known = {name: (each.dtype, each.shape) for name, each in _tensors(model).items()}
    for name in known.keys() - tensors.keys():
        raise ModelFileError(f"the tensor {name!r} is missing")
    for holder, optimizer in _holders(model).items():
        for index, layout in enumerate(_state_layout(optimizer)):
            state = {f"{holder}/{index}/{key}": each for key, each in layout.items()}
            known |= state
            if 0 < len(state.keys() & tensors.keys()) < len(state):
                raise ModelFileError(f"the tensor {min(state.keys() - tensors.keys())!r} is missing")
    for name, value in tensors.items():
        if name not in known:
            raise ModelFileError(f"the policy has no tensor {name!r}{nearest(name, known)}")
        dtype, shape = known[name]
        fits = value.shape == shape if not name.endswith("/exploration_matrices") else value.shape[1:] == shape[1:]
        if value.dtype != dtype or not fits:
            raise ModelFileError(f"the tensor {name!r} is {value.dtype} {value.shape}, not {dtype} {shape}")
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            raise ModelFileError(f"the tensor {name!r} has numbers that are not finite")


def _state_layout(optimizer: Any) -> list[dict[str, tuple[Any, tuple[int, ...]]]]:
    """Return dtype and shape of what an optimiser keeps of each parameter once it stepped; nothing for a network."""
    layouts = []
    for group in optimizer.param_groups if isinstance(optimizer, th.optim.Optimizer) else ():
        probe = th.nn.Parameter(th.zeros(2, 3))
        probe.grad = th.zeros(2, 3)
        stepped: Any = copy.copy(optimizer)
        stepped.param_groups, stepped.state = [{**group, "params": [probe]}], {probe: {}}
        stepped.step()
        state = {key: _array(each) for key, each in stepped.state[probe].items() if each is not None}
        for parameter in group["params"]:
            shape = tuple(parameter.shape)
            layouts.append({key: (each.dtype, shape if each.shape == (2, 3) else each.shape) for key, each in state.items()})
    return layouts


def _fill(model: BaseAlgorithm, manifest: Manifest, tensors: Tensors) -> None:
    """Set parameters, optimisers' state and counters; :func:`_check_tensors` has found that they fit."""
    parameters: dict[str, Any] = {}
    for name, holder in _holders(model).items():
        if not isinstance(holder, th.optim.Optimizer):
            parameters[name] = {key: _tensor(tensors[f"{name}/{first}"]) for key, first in _first_names(holder).items()}
            continue
        rates = manifest.learning_rates.get(name, [])
        state: dict[int, dict[str, Any]] = {}
        for index, layout in enumerate(_state_layout(holder)):
            full = {key: f"{name}/{index}/{key}" for key in layout}
            if full and set(full.values()) <= tensors.keys():
                state[index] = {key: _counted(tensors[each]) for key, each in full.items()}
        groups = holder.state_dict()["param_groups"]
        groups = [{**group, "lr": rate} for group, rate in zip(groups, rates, strict=True)]
        parameters[name] = {"state": state, "param_groups": groups}
    if manifest.learning_rates.keys() != _optimizer_groups(model).keys():
        raise ModelFileError("there are learning rates of other optimisers")
    model.set_parameters(parameters, exact_match=True, device=model.device)
    for name in model._get_torch_save_params()[1]:
        recursive_setattr(model, f"{name}.data", _tensor(tensors[f"variable/{name}"]).to(model.device))
    known = _counters(model)
    for name, number in manifest.counters.items():
        if name not in known:
            raise _UncountedError(f"{type(model).__name__} does not count {name!r}{nearest(name, known)}", name)
        setattr(model, name, number)


def _array(value: Any) -> np.ndarray[Any, Any]:
    """Copy a tensor, or a plain number, which an optimiser's count of steps may be."""
    return value.detach().cpu().numpy().copy() if isinstance(value, th.Tensor) else np.array(value)


def _counted(array: np.ndarray[Any, Any]) -> th.Tensor | int:
    """Return a tensor, or the plain number that some optimisers count steps by, where torch's own have a float tensor."""
    return int(array) if array.ndim == 0 and array.dtype == np.int64 else _tensor(array)


def _tensor(array: np.ndarray[Any, Any]) -> th.Tensor:
    return th.from_numpy(array.copy())


# --- agents -----------------------------------------------------------------------------------------------------------


class _Normalized(np.ndarray[Any, Any]):
    """Observations that are normalised already, which :meth:`Agent.predict` tells from raw ones by their class."""


class _Environments(VecNormalize):
    """The environments of an agent, whose statistics stand still."""

    def normalize_obs(self, obs: Any) -> Any:
        obs = super().normalize_obs(obs)
        if not self.norm_obs:
            return obs
        return {key: each.view(_Normalized) for key, each in obs.items()} if isinstance(obs, dict) else obs.view(_Normalized)


class Agent:
    """A trained policy with all it needs; :func:`load_agent` makes it.

    :param card: what the file says besides weights
    :param tensors: weights, optimisers' state and statistics by name
    :param checksum: SHA-256 of the file's content, in hexadecimal
    :param model: the algorithm, without environment and buffers
    :param normalizer: normalises observations; None where they are taken as they are
    :param env: id of the environment to play in place of the one it was trained on
    """

    def __init__(
        self,
        card: Manifest,
        tensors: Tensors,
        checksum: str,
        model: BaseAlgorithm,
        normalizer: VecNormalize | None,
        env: str | None = None,
    ) -> None:
        self.card = card
        self.hash = checksum
        """SHA-256 of the file's content, in hexadecimal."""
        self.observation_space, self.action_space = model.observation_space, model.action_space
        self._tensors, self._model, self._normalizer, self._env = tensors, model, normalizer, env

    def __repr__(self) -> str:
        environment = self._env or (self.card.environment.id if self.card.environment is not None else "an environment")
        return f"<Agent: {self.card.algorithm} on {environment}, {self.num_timesteps:,} steps, {self.hash[:12]}>"

    @property
    def num_timesteps(self) -> int:
        """Environment steps that it was trained for."""
        return self._model.num_timesteps

    def predict(
        self,
        observation: np.ndarray[Any, Any] | dict[str, np.ndarray[Any, Any]],
        state: tuple[np.ndarray[Any, Any], ...] | None = None,
        episode_start: np.ndarray[Any, Any] | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray[Any, Any], tuple[np.ndarray[Any, Any], ...] | None]:
        """Choose actions for one observation or a batch of them.

        :param observation: as the environment returns it, of the observation space's shape or with a batch axis in front;
            those of :meth:`env` are normalised already, are told by their class (``np.array`` drops it), and taken as they are
        :param state: of recurrent policies; passed through by others
        :param episode_start: of recurrent policies
        :param deterministic: the most likely actions rather than drawn ones
        :return: actions within the action space's bounds, and the next state
        """
        if self._normalizer is not None:
            parts = list(observation.values()) if isinstance(observation, dict) else [observation]
            if not any(isinstance(each, _Normalized) for each in parts):
                observation = self._normalizer.normalize_obs(observation)
        return self._model.predict(observation, state, episode_start, deterministic)

    def env(self, n_envs: int = 1, *, render_mode: str | None = None, seed: int | None = None, images: bool = True) -> VecEnv:
        """Build the environment to play: wrapped and normalised as in training, by statistics that stand still.

        Rewards are the environment's own: neither normalised nor changed by wrappers that do nothing else.

        :param n_envs: number of copies
        :param render_mode: ``"human"`` shows a window
        :param seed: seeds copy ``i`` with ``seed + i`` at its first reset
        :param images: let it render images, which slows some down (:func:`.as_vec_env`)
        :raises ConfigError: the file does not tell its environment, that is not registered, or has other spaces
        """
        venv = self._make(self._env, n_envs, playing=True, render_mode=render_mode, seed=seed, images=images)
        if self.card.normalization is not None:
            venv = self._normalized(venv, _Environments)
            venv.training = venv.norm_reward = False
        return self._checked(venv)

    def model(self, env: AnyEnv | None = None, *, device: th.device | str = "auto", **arguments: Any) -> BaseAlgorithm:
        """Build the whole algorithm, which goes on learning where it stopped (``learn(…, reset_num_timesteps=False)``).

        Replay buffers begin empty; the generators are seeded anew, as when SB3 loads a zip.

        :param env: environment to go on with, normalised by statistics that go on, too; None for as many copies of the one
            it was trained on as there were then
        :param device: device to learn on
        :param arguments: constructor arguments to change
        :raises ConfigError: the environment cannot be made or has other spaces, or an argument is not valid
        """
        cls = registry.get_class(self.card.algorithm)
        changed = schema.resolve(cls, arguments, action_space=self.action_space)
        values = {**_resolved(self.card, cls, self.action_space), "seed": self.card.seed, "device": device, **changed}
        venv = self._make(env or self._env, None, playing=False) if env is None or isinstance(env, str) else as_vec_env(env)
        if self.card.normalization is not None and unwrap_vec_normalize(venv) is None:
            venv = self._normalized(venv, VecNormalize)
        venv = self._checked(venv)
        try:
            model = cls(env=venv, **values)
        except (AssertionError, TypeError, ValueError, RuntimeError, MemoryError) as error:
            raise ConfigError(f"cannot build {self.card.algorithm}: {one_line(error)}") from error
        try:
            _fill(model, self.card, self._tensors)
        except (RuntimeError, ValueError, ModelFileError) as error:
            text = f"its weights do not fit {self.card.algorithm} with other {', '.join(arguments)}: {one_line(error)}"
            raise ConfigError(shorten(text, 300)) from error
        if model.use_sde:
            model.policy.reset_noise()  # type: ignore[operator]
        return model

    def save_sb3(self, path: str | Path) -> None:
        """Write SB3's zip, and beside it what ``VecNormalize.save`` writes if observations or rewards are normalised.

        :param path: file, ``.zip`` is added to a name without suffix; statistics go to ``vecnormalize.pkl`` beside
            ``model.zip``, and to ``<name>_vecnormalize.pkl`` beside ``<name>.zip``
        :raises ConfigError: ``path`` cannot be written to
        """
        path = _with_suffix(path, ".zip")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if self._normalizer is not None:
                with replacing(statistics_file(path)) as temporary:
                    self._normalizer.save(str(temporary))
            with replacing(path) as temporary:
                self._model.save(temporary)
        except OSError as error:
            raise ConfigError(f"cannot save '{path}': {error.strerror}") from error

    def _make(
        self,
        env: str | None,
        n_envs: int | None,
        *,
        playing: bool,
        render_mode: str | None = None,
        seed: int | None = None,
        images: bool = True,
    ) -> VecEnv:
        recorded = self.card.environment
        if env is None:
            if recorded is None:
                raise ConfigError("the agent file does not tell its environment: pass env=")
            module, _, env = recorded.id.rpartition(":")
            if module and env not in gym.registry:
                raise ConfigError(f"{env!r} is not registered: import {module} first, which a file is not allowed to do")
        recorded = recorded or Environment(id=env)
        return make_env(
            env,
            recorded.n_envs if n_envs is None else n_envs,
            vec_env="dummy" if render_mode is not None else recorded.vec_env,
            seed=seed,
            env_kwargs={**recorded.kwargs, **({} if render_mode is None else {"render_mode": render_mode})},
            wrappers=unrewarded(recorded.wrappers) if playing else recorded.wrappers,
            images=images,
        )

    def _normalized(self, venv: VecEnv, wrap: type[VecNormalize]) -> VecNormalize:
        assert self.card.normalization is not None, "asked by the callers"
        expected = unpack_space(self.card.normalization.observation_space)
        if venv.observation_space != expected:
            venv = self._model._wrap_env(venv)  # images may have been normalised after they were transposed
        try:
            return unpack_normalization(self.card.normalization, self._tensors, self.action_space, venv, wrap)
        except (ValueError, KeyError) as error:
            venv.close()
            text = f"its observations are {venv.observation_space}, not {expected}"
            raise ConfigError(f"the environment is not one for this agent: {' '.join(text.split())}") from error

    def _checked(self, venv: VecEnv) -> VecEnv:
        try:
            check_for_correct_spaces(type(self._model)._wrap_env(venv), self.observation_space, self.action_space)
        except ValueError as error:
            venv.close()
            text = " ".join(str(error).split())  # arrays of bounds take several lines
            raise ConfigError(f"the environment is not one for this agent: {text}") from error
        return venv
