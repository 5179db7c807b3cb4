"""Which algorithms there are: a literal table of ours and of Stable-Baselines3's, and what other distributions add.

A distribution adds an algorithm by an entry point in the group ``spinup_plugins.algorithms`` that names an
:class:`AlgorithmSpec`; a program adds one by :func:`register`. Names are listed from metadata alone; what a name stands
for is imported when it is used. The environment variable ``SPINUP_PLUGINS_DISABLE`` switches entry points off: ``*``
all of them, a comma-separated list those it names, bare or as ``distribution:name``.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any

from spinup_plugins.errors import ConfigError, PluginError, UnknownNameError, nearest
from spinup_plugins.imports import import_object
from spinup_plugins.presets import PRESETS, RUN_KEYS, merge_values, preset_values, zoo_entries

if TYPE_CHECKING:
    from gymnasium import spaces
    from stable_baselines3.common.base_class import BaseAlgorithm
    from stable_baselines3.common.policies import BasePolicy
    from stable_baselines3.common.type_aliases import GymEnv
    from stable_baselines3.common.vec_env import VecEnv

    from spinup_plugins.envs.convert import AnyEnv

__all__ = [
    "API_VERSION",
    "PRESETS",
    "RUN_KEYS",
    "AlgorithmSpec",
    "algorithms",
    "build",
    "choose_policy",
    "errors",
    "get_class",
    "get_spec",
    "make",
    "merge_values",
    "preset_values",
    "register",
    "unregister",
    "zoo_entries",
]

API_VERSION = 1
GROUP = "spinup_plugins.algorithms"
DISABLE = "SPINUP_PLUGINS_DISABLE"

_ENVIRONMENT_KEYS = ("n_envs", "vec_env", "normalize", "env_kwargs", "wrappers")


@dataclass(frozen=True)
class AlgorithmSpec:
    """What the registry knows of an algorithm before importing it.

    :param name: lower-case name
    :param cls_path: ``"package.module:Class"`` of a subclass of Stable-Baselines3's ``BaseAlgorithm``
    :param family: branch of Spinning Up's taxonomy: ``"policy optimisation"``, ``"Q-learning"`` or ``"hybrid"``
    :param on_policy: whether it learns only from what its current policy collected
    :param learns: what it learns, such as ``("policy", "value")``
    :param action_spaces: names of the ``gymnasium.spaces`` classes it can act on
    :param paper: the source it implements
    :param summary: one line on what it does
    :param aliases: other names for it; an entry point's are known only once it is loaded, so give it two entry points
    :param model_free: whether it learns without a model of the environment
    :param api_version: version of this contract it was written for; the default stays 1 for ever
    :param presets_path: ``"package:path/within/it.yml"`` of an entry point's own zoo file
    :param spaces_path: likewise of its own search spaces, for ``spinup tune``
    :param distribution: the distribution it comes from, filled in by the registry; empty for ours and registered ones
    :raises ConfigError: the name is not lower-case letters, digits, ``_`` and ``-``
    """

    name: str
    cls_path: str
    family: str
    on_policy: bool
    learns: tuple[str, ...]
    action_spaces: tuple[str, ...]
    paper: str
    summary: str
    aliases: tuple[str, ...] = ()
    model_free: bool = True
    api_version: int = 1
    presets_path: str | None = None
    distribution: str = ""
    spaces_path: str | None = None

    def __post_init__(self) -> None:
        if not re.fullmatch(r"(sb3:)?[a-z0-9][a-z0-9_-]*", self.name):
            raise ConfigError(f"algorithm name {self.name!r} is not made of lower-case letters, digits, '_' and '-'")

    def load(self) -> "type[BaseAlgorithm]":
        """Import and return the class.

        :raises PluginError: it cannot be imported, or is no subclass of ``BaseAlgorithm``
        """
        from stable_baselines3.common.base_class import BaseAlgorithm

        whose = f"algorithm {self.name!r}" + (f" of {self.distribution}" if self.distribution else "")
        try:
            cls = import_object(self.cls_path)
        except ConfigError as error:
            raise PluginError(f"{whose}: {error}") from error
        if not (isinstance(cls, type) and issubclass(cls, BaseAlgorithm)):
            raise PluginError(f"{whose}: {self.cls_path!r} is not a subclass of stable_baselines3's BaseAlgorithm")
        return cls


_BOX = ("Box",)
_FINITE = ("Discrete", "MultiDiscrete", "MultiBinary")
_OURS = "spinup_plugins.algorithms"

_BUILT_IN = {
    spec.name: spec
    for spec in (
        AlgorithmSpec(
            name="vpg",
            cls_path=f"{_OURS}.vpg:VPG",
            family="policy optimisation",
            on_policy=True,
            learns=("policy", "value"),
            action_spaces=_BOX + _FINITE,
            paper="Sutton et al. 2000; advantages by Schulman et al. 2016, arXiv:1506.02438",
            summary="climbs the gradient of expected return, weighted by any Φ_t of the policy-gradient theorem",
            aliases=("vanilla_policy_gradient",),
        ),
        AlgorithmSpec(
            name="trpo",
            cls_path=f"{_OURS}.trpo:TRPO",
            family="policy optimisation",
            on_policy=True,
            learns=("policy", "value"),
            action_spaces=_BOX + _FINITE,
            paper="Schulman et al. 2015, arXiv:1502.05477",
            summary="takes the largest natural-gradient step that keeps the KL divergence within a trust region",
        ),
        AlgorithmSpec(
            name="ppo",
            cls_path=f"{_OURS}.ppo:PPO",
            family="policy optimisation",
            on_policy=True,
            learns=("policy", "value"),
            action_spaces=_BOX + _FINITE,
            paper="Schulman et al. 2017, arXiv:1707.06347",
            summary="takes many gradient steps on each batch, clipped so that the policy stays near the old one",
        ),
        AlgorithmSpec(
            name="ddpg",
            cls_path=f"{_OURS}.ddpg:DDPG",
            family="hybrid",
            on_policy=False,
            learns=("policy", "Q"),
            action_spaces=_BOX,
            paper="Lillicrap et al. 2016, arXiv:1509.02971",
            summary="learns Q from replayed steps and a deterministic policy that climbs it",
        ),
        AlgorithmSpec(
            name="td3",
            cls_path=f"{_OURS}.td3:TD3",
            family="hybrid",
            on_policy=False,
            learns=("policy", "twin Q"),
            action_spaces=_BOX,
            paper="Fujimoto et al. 2018, arXiv:1802.09477",
            summary="DDPG with the lesser of two Qs, delayed policy updates and smoothed targets",
        ),
        AlgorithmSpec(
            name="sac",
            cls_path=f"{_OURS}.sac:SAC",
            family="hybrid",
            on_policy=False,
            learns=("policy", "twin Q", "temperature"),
            action_spaces=_BOX,
            paper="Haarnoja et al. 2018, arXiv:1801.01290 and arXiv:1812.05905",
            summary="learns a stochastic policy that trades return against entropy",
        ),
    )
}

_PEERS = {
    spec.name: spec
    for spec in (
        AlgorithmSpec(
            name="sb3:a2c",
            cls_path="stable_baselines3:A2C",
            family="policy optimisation",
            on_policy=True,
            learns=("policy", "value"),
            action_spaces=_BOX + _FINITE,
            paper="Mnih et al. 2016, arXiv:1602.01783",
            summary="takes one policy-gradient step on each short batch from parallel environments",
        ),
        replace(_BUILT_IN["trpo"], name="sb3:trpo", cls_path="sb3_contrib:TRPO"),
        replace(_BUILT_IN["ppo"], name="sb3:ppo", cls_path="stable_baselines3:PPO"),
        AlgorithmSpec(
            name="sb3:recurrent_ppo",
            cls_path="sb3_contrib:RecurrentPPO",
            family="policy optimisation",
            on_policy=True,
            learns=("policy", "value"),
            action_spaces=_BOX + _FINITE,
            paper="Schulman et al. 2017, arXiv:1707.06347, with Hochreiter and Schmidhuber's LSTM",
            summary="PPO with a memory, for observations that do not tell the whole state",
        ),
        AlgorithmSpec(
            name="sb3:ars",
            cls_path="sb3_contrib:ARS",
            family="policy optimisation",
            on_policy=True,
            learns=("policy",),
            action_spaces=("Box", "Discrete"),
            paper="Mania et al. 2018, arXiv:1803.07055",
            summary="perturbs the policy's parameters at random and moves towards the better ones",
        ),
        AlgorithmSpec(
            name="sb3:dqn",
            cls_path="stable_baselines3:DQN",
            family="Q-learning",
            on_policy=False,
            learns=("Q",),
            action_spaces=("Discrete",),
            paper="Mnih et al. 2013, arXiv:1312.5602; with target networks Nature 518, 2015",
            summary="learns Q from replayed steps and acts by its maximum",
        ),
        AlgorithmSpec(
            name="sb3:qrdqn",
            cls_path="sb3_contrib:QRDQN",
            family="Q-learning",
            on_policy=False,
            learns=("quantiles of the return",),
            action_spaces=("Discrete",),
            paper="Dabney et al. 2018, arXiv:1710.10044",
            summary="DQN on the distribution of returns instead of its mean, in the line of C51",
            aliases=("sb3:qr-dqn",),
        ),
        replace(_BUILT_IN["ddpg"], name="sb3:ddpg", cls_path="stable_baselines3:DDPG"),
        replace(_BUILT_IN["td3"], name="sb3:td3", cls_path="stable_baselines3:TD3"),
        replace(_BUILT_IN["sac"], name="sb3:sac", cls_path="stable_baselines3:SAC"),
        AlgorithmSpec(
            name="sb3:tqc",
            cls_path="sb3_contrib:TQC",
            family="hybrid",
            on_policy=False,
            learns=("policy", "quantiles of the return", "temperature"),
            action_spaces=_BOX,
            paper="Kuznetsov et al. 2020, arXiv:2005.04269",
            summary="SAC on the distribution of returns, its highest quantiles dropped",
        ),
        AlgorithmSpec(
            name="sb3:crossq",
            cls_path="sb3_contrib:CrossQ",
            family="hybrid",
            on_policy=False,
            learns=("policy", "twin Q", "temperature"),
            action_spaces=_BOX,
            paper="Bhatt et al. 2024, arXiv:1902.05605",
            summary="SAC with batch normalisation instead of target networks",
        ),
    )
}

_registered: dict[str, AlgorithmSpec] = {}
_loaded: dict[tuple[str, str, str], AlgorithmSpec] = {}


# --- names -----------------------------------------------------------------------------------------------------------


def algorithms(*, peers: bool = False) -> tuple[str, ...]:
    """Return the names of all algorithms, without importing any.

    An entry point goes by its bare name unless that is taken or claimed by two distributions: then by
    ``"distribution:name"``.

    :param peers: whether to list Stable-Baselines3's and sb3-contrib's own, whose names begin with ``sb3:``, too
    """
    names = list({**_BUILT_IN, **_registered})
    for name, points in sorted(_by_name(_enabled()).items()):
        names += [name] if len(points) == 1 and name not in names else [_qualified(point) for point in points]
    return tuple(names + [name for name in _PEERS if peers and name not in names])


def get_spec(name: str) -> AlgorithmSpec:
    """Return what is known of an algorithm.

    :param name: its name or an alias, in any case
    :raises UnknownNameError: there is none of that name; the nearest one is suggested
    :raises PluginError: two distributions claim the name, or the one that does cannot be loaded
    """
    key = name.lower()
    tables = {**_PEERS, **_BUILT_IN, **_registered}
    if key in tables:
        return tables[key]
    claims = [point for point in _enabled() if key in (point.name.lower(), _qualified(point))]
    if len(claims) > 1:
        raise PluginError(f"algorithm {name!r} is claimed by two distributions: use {_spelled_out(claims)}")
    if claims:
        return _load(claims[0])
    aliases = {alias: spec for spec in tables.values() for alias in spec.aliases}
    if key in aliases:
        return aliases[key]
    if any(key in (point.name.lower(), _qualified(point)) for point in entry_points(group=GROUP)):
        raise UnknownNameError(f"algorithm {name!r} is switched off by {DISABLE}={os.environ[DISABLE]}")
    peer = f"sb3:{key}"
    hint = nearest(peer if peer in _PEERS else key, [*algorithms(peers=True), *aliases])
    raise UnknownNameError(f"unknown algorithm {name!r}{hint}; there are {', '.join(algorithms())}")


def get_class(name: str) -> "type[BaseAlgorithm]":
    """Import and return an algorithm's class.

    :param name: its name or an alias, in any case
    :raises UnknownNameError: there is none of that name
    :raises PluginError: it cannot be loaded
    """
    return get_spec(name).load()


def register(spec: AlgorithmSpec, *, override: bool = False) -> None:
    """Add an algorithm for the life of this process.

    :param spec: the algorithm
    :param override: replace the algorithm that has the name already
    :raises PluginError: the name is taken, or the algorithm was written for another version of the contract
    """
    _check_version(spec, f"algorithm {spec.name!r}")
    taken = {*algorithms(peers=True), *_by_name(_enabled())}
    if spec.name in taken and not override:
        raise PluginError(f"algorithm {spec.name!r} exists already; register(..., override=True) replaces it")
    _registered[spec.name] = spec


def unregister(name: str) -> None:
    """Take back a :func:`register`; what it had replaced is there again.

    :param name: name of the registered algorithm
    :raises UnknownNameError: none of that name was registered
    """
    if name not in _registered:
        raise UnknownNameError(f"algorithm {name!r} was not registered{nearest(name, _registered)}")
    del _registered[name]


def errors() -> dict[str, str]:
    """Load every entry point and return what is wrong, by ``"distribution:name"``: broken ones and taken names."""
    found = {}
    for name, points in _by_name(_enabled()).items():
        for point in points:
            qualified = _qualified(point)
            try:
                _load(point)
            except PluginError as error:
                found[qualified] = str(error)
            else:
                if name in {**_BUILT_IN, **_registered}:
                    found[qualified] = f"the name {name!r} is taken; use {qualified!r}"
                elif len(points) > 1:
                    found[qualified] = f"the name {name!r} is claimed by two distributions; use {_spelled_out(points)}"
    return found


def _enabled() -> list[EntryPoint]:
    """Entry points of all installed distributions but those switched off."""
    disabled = {each.strip().lower() for each in os.environ.get(DISABLE, "").split(",")}
    if "*" in disabled:
        return []
    points = entry_points(group=GROUP)
    return [point for point in points if disabled.isdisjoint((point.name.lower(), _qualified(point)))]


def _by_name(points: list[EntryPoint]) -> dict[str, list[EntryPoint]]:
    grouped: dict[str, list[EntryPoint]] = {}
    for point in points:
        grouped.setdefault(point.name.lower(), []).append(point)
    return grouped


def _distribution(point: EntryPoint) -> str:
    return point.dist.name if point.dist is not None else "unknown"


def _qualified(point: EntryPoint) -> str:
    return f"{_distribution(point)}:{point.name}".lower()


def _spelled_out(points: list[EntryPoint]) -> str:
    return " or ".join(sorted(repr(_qualified(point)) for point in points))


def _load(point: EntryPoint) -> AlgorithmSpec:
    key = (_distribution(point), point.name, point.value)
    if key not in _loaded:
        whose = f"algorithm {point.name!r} of {_distribution(point)}"
        try:
            spec = point.load()
        except Exception as error:  # whatever the plugin's own code raises
            raise PluginError(f"{whose} cannot be loaded: {type(error).__name__}: {error}") from error
        if not isinstance(spec, AlgorithmSpec):
            raise PluginError(f"{whose}: {point.value!r} is not an AlgorithmSpec but {type(spec).__name__}")
        _check_version(spec, whose)
        if spec.name != point.name.lower():
            raise PluginError(f"{whose}: its specification is named {spec.name!r}")
        _loaded[key] = replace(spec, distribution=_distribution(point))
    return _loaded[key]


def _check_version(spec: AlgorithmSpec, whose: str) -> None:
    if spec.api_version != API_VERSION:
        raise PluginError(f"{whose} is written for api_version {spec.api_version}; this package has {API_VERSION}")


# --- models ----------------------------------------------------------------------------------------------------------


def make(
    name: str,
    env: "AnyEnv",
    *,
    policy: "str | type[BasePolicy] | None" = None,
    preset: str | None = None,
    **kwargs: Any,
) -> "BaseAlgorithm":
    """Build an algorithm for an environment.

    :param name: the algorithm's name or an alias; ``"sb3:a2c"`` and the like are Stable-Baselines3's own
    :param env: whatever :func:`spinup_plugins.envs.as_vec_env` takes. For an id or a function that makes an environment,
        the preset or ``kwargs`` may set ``n_envs``, ``vec_env``, ``env_kwargs``, ``wrappers`` and ``normalize`` of
        :func:`spinup_plugins.environments.make_env`, too
    :param policy: name or class; by default ``MultiInputPolicy`` for Dict observations, ``CnnPolicy`` for images, else
        ``MlpPolicy``, or the algorithm's variant of them
    :param preset: values to begin with, see :func:`preset_values`
    :param kwargs: constructor arguments, over the preset's; as Python objects or as plain data (:mod:`.schema`)
    :return: the algorithm, ready to ``learn``
    :raises UnknownNameError: there is no such algorithm, environment, wrapper, preset or policy
    :raises ConfigError: an argument is unknown or of the wrong type, or the algorithm cannot act in the environment
    :raises PluginError: the algorithm cannot be loaded
    """
    from spinup_plugins.environments import make_env
    from spinup_plugins.envs.convert import as_vec_env, is_recipe

    spec = get_spec(name)
    copies = is_recipe(env)
    usable: tuple[str, ...] = _ENVIRONMENT_KEYS if copies else ()
    for key in [key for key in kwargs if key in RUN_KEYS and key not in usable]:
        ours = key in _ENVIRONMENT_KEYS
        reason = "is for an environment given by its id or a function" if ours else "is no constructor argument"
        raise ConfigError(f"make({name!r}): {key!r} {reason}")
    try:
        envs = None if copies else as_vec_env(env)
    except ConfigError as error:
        raise ConfigError(f"make({name!r}): {error}") from error
    env_id = env if isinstance(env, str) else None if envs is None else _env_id(envs)
    values = merge_values(preset_values(spec, preset, env_id), kwargs)
    run = {key: values.pop(key) for key in RUN_KEYS if key in values}
    policy = policy if policy is not None else run.get("policy")
    if envs is not None:
        return build(spec, envs, values, policy=policy)
    options = {key: run[key] for key in _ENVIRONMENT_KEYS if key in run}
    envs = make_env(env, seed=values.get("seed"), gamma=values.get("gamma"), **options)  # type: ignore[arg-type]
    try:
        return build(spec, envs, values, policy=policy)
    except BaseException:
        envs.close()
        raise


def build(
    spec: AlgorithmSpec,
    env: "GymEnv",
    values: Mapping[str, Any],
    *,
    policy: "str | type[BasePolicy] | None" = None,
    where: str = "",
) -> "BaseAlgorithm":
    """Build an algorithm from its specification, an environment and constructor arguments.

    :param spec: the algorithm
    :param env: the environment
    :param values: constructor arguments as Python objects or plain data
    :param policy: name, class or import path; None chooses by the observation space
    :param where: place to begin errors about ``values`` with, such as a file's name
    :raises UnknownNameError: the algorithm has no such policy
    :raises ConfigError: an argument is wrong, or the algorithm cannot act in the environment
    """
    from gymnasium import spaces
    from stable_baselines3.common.preprocessing import is_image_space

    from spinup_plugins import schema

    cls, observations = spec.load(), env.observation_space
    acts_on = type(env.action_space).__name__
    if acts_on not in spec.action_spaces:
        able = [each.name for each in _BUILT_IN.values() if acts_on in each.action_spaces]
        hint = f"; {', '.join(able)} can" if able else ""
        raise ConfigError(f"{spec.name} cannot act on {env.action_space}, only on {', '.join(spec.action_spaces)}{hint}")
    if isinstance(observations, spaces.Tuple):
        raise ConfigError(
            f"{spec.name} cannot read Tuple observations, {observations}: make a Dict of them, or a vector by the wrapper"
            " 'flatten_observation'"
        )
    if policy is None:
        policy = choose_policy(cls, observations)
    elif isinstance(policy, str) and ":" not in policy and policy not in cls.policy_aliases:
        hint = nearest(policy, cls.policy_aliases)
        raise UnknownNameError(f"{spec.name} has no policy {policy!r}{hint}; it has {', '.join(cls.policy_aliases)}")
    elif policy == "MultiInputPolicy" and not isinstance(observations, spaces.Dict):
        fits = choose_policy(cls, observations)
        raise ConfigError(f"{spec.name}: {policy} reads Dict observations, not {observations}; {fits} does")
    arguments = schema.resolve(cls, {**values, "policy": policy}, where=where, action_space=env.action_space)
    options = arguments.get("policy_kwargs") or {}
    convolves = isinstance(policy, str) and policy.startswith("Cnn") and "features_extractor_class" not in options
    if convolves and not is_image_space(observations, normalized_image=not options.get("normalize_images", True)):
        fits = choose_policy(cls, observations)
        raise ConfigError(f"{spec.name}: {policy} reads images, uint8 from 0 to 255, not {observations}; {fits} does")
    return cls(env=env, **arguments)


def choose_policy(cls: "type[BaseAlgorithm]", observation_space: "spaces.Space[Any]") -> str:
    """Return the name of the policy that fits the observations.

    Its name begins with ``MultiInput`` for Dict observations, with ``Cnn`` for images, and with ``Mlp`` for others.

    :param cls: the algorithm
    :param observation_space: of its environment
    :raises ConfigError: the algorithm has no policy of that kind
    """
    from gymnasium import spaces
    from stable_baselines3.common.preprocessing import is_image_space

    if isinstance(observation_space, spaces.Dict):
        kind = "MultiInput"
    else:
        kind = "Cnn" if is_image_space(observation_space) else "Mlp"
    for name in cls.policy_aliases:
        if name.startswith(kind):
            return name
    raise ConfigError(f"{cls.__name__} has no {kind} policy for {observation_space}; it has {', '.join(cls.policy_aliases)}")


def _env_id(env: "VecEnv") -> str | None:
    """Return the id that the first of the environments was made by."""
    spec = env.get_attr("spec", 0)[0]
    return None if spec is None else spec.id
