"""What a study is: its definition as data, its storage, and Optuna's samplers and pruners made from both.

Whatever is drawn derives from the study's seed by :func:`derive`: seeds of runs, of confirmation, and of the sampler, which
is made anew for each trial from the seed and the trial's place. A study that is taken up again, in whatever process, goes on
as it would have without the break, and workers that share one draw different values.
"""

import json
import os
import time
import warnings
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, TypeAlias

import gymnasium as gym
import numpy as np
import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
from optuna.trial import FrozenTrial, TrialState
from pydantic import BaseModel, ConfigDict

from spinup_plugins import registry, schema
from spinup_plugins.errors import ConfigError, UnknownNameError, nearest
from spinup_plugins.runs.config import Layer, RunConfig, completed, compose
from spinup_plugins.runs.files import one_line
from spinup_plugins.tuning.objective import METRICS, SCORES, Score
from spinup_plugins.tuning.slots import Slot, slots_of
from spinup_plugins.tuning.spaces import ACTION_SPACE, VARIED, Space, load_space

__all__ = [
    "PRUNERS",
    "SAMPLERS",
    "Definition",
    "confirmation_name",
    "create",
    "define",
    "derive",
    "open_storage",
    "open_study",
    "without_password",
]

SAMPLERS = ("tpe", "gp", "cmaes", "random", "qmc")
PRUNERS = ("median", "halving", "hyperband", "wilcoxon", "none")
Purpose: TypeAlias = Literal["trials", "confirmation", "sampler", "start", "reference"]
_PURPOSES: tuple[Purpose, ...] = ("trials", "confirmation", "sampler", "start", "reference")
_KEY, _READY = "spinup:definition", "spinup:ready"


class Definition(BaseModel):
    """Everything that decides how a study goes, but for how many trials and workers it has.

    :param algo: name in the registry
    :param envs: environment ids
    :param bases: configuration of a run on each environment, to which trials add; as plain data
    :param action_spaces: type of the action space of each environment, for conditions of the search space
    :param space_name: name of the search space
    :param space: the search space as plain data, so that other machines need no file
    :param starts: presets that the first trials have, ``default`` for the bases as they are
    :param seed: from which all others derive
    :param seeds_per_trial: trainings of each trial on each environment
    :param sampler: one of :data:`SAMPLERS`
    :param startup: trials at random before the sampler models anything
    :param pruner: one of :data:`PRUNERS`
    :param score: what a run is worth; see :func:`.objective.score`
    :param last: share of the evaluations that ``score="last"`` looks at
    :param objectives: keys of :data:`.objective.METRICS`
    :param constraints: upper bounds by metric, as ``seconds<=60``, or lower bounds, as ``worst>=0``
    :param references: (0, 1) of normalised scores by environment; empty for a single environment
    :param top: trials that race to be confirmed
    :param race_seeds: seeds that they race on, which no trial has
    :param confirm_seeds: further seeds that the winner of the race meets the default on; 0 for no confirmation
    """

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="constants")

    algo: str
    envs: list[str]
    bases: dict[str, dict[str, Any]]
    action_spaces: dict[str, str] = {}
    space_name: str
    space: dict[str, Any]
    starts: list[str]
    seed: int = 0
    seeds_per_trial: int = 3
    sampler: str = "tpe"
    startup: int = 10
    pruner: str = "median"
    score: Score = "last"
    last: float = 0.25
    objectives: list[str] = ["score"]
    constraints: list[str] = []
    references: dict[str, tuple[float, float]] = {}
    top: int = 5
    race_seeds: int = 5
    confirm_seeds: int = 10

    @property
    def seeds(self) -> list[int]:
        """Seeds that every trial trains with, (S,)."""
        return derive(self.seed, "trials", self.seeds_per_trial)

    @property
    def race_on(self) -> list[int]:
        """Seeds that the best trials race on, none of which a trial has, (R,)."""
        return self._unseen()[: self.race_seeds]

    @property
    def held_out(self) -> list[int]:
        """Seeds that the winner of the race meets the default on, which neither a trial nor the race has, (C,)."""
        return self._unseen()[self.race_seeds :]

    def _unseen(self) -> list[int]:
        wanted = self.race_seeds + self.confirm_seeds
        drawn = derive(self.seed, "confirmation", wanted + self.seeds_per_trial)
        return [seed for seed in drawn if seed not in self.seeds][:wanted]

    @property
    def timesteps(self) -> int:
        """Environment steps of a whole trial: of all its runs."""
        return self.seeds_per_trial * sum(int(base["n_timesteps"]) for base in self.bases.values())

    def given(self, env: str) -> dict[str, Any]:
        """Return the base's value of every key that a search space may have, and the type of the action space."""
        base = self.bases[env]
        return {**base["hyperparameters"], **{key: base[key] for key in VARIED}, ACTION_SPACE: self.action_spaces.get(env)}

    def space_of(self) -> Space:
        """Return the search space."""
        return Space(self.space_name, self.space)

    def bound(self, constraint: str) -> tuple[str, str, float]:
        """Return metric, comparison and number of a constraint.

        :raises ConfigError: it has another form
        """
        for comparison in ("<=", ">="):
            metric, found, number = constraint.partition(comparison)
            if found and metric.strip() in METRICS:
                try:
                    return metric.strip(), comparison, float(number)
                except ValueError:
                    break
        known = constraint.replace(">", "<").partition("<")[0].strip()
        raise ConfigError(
            f"constraint {constraint!r}: expected METRIC<=NUMBER or METRIC>=NUMBER with one of {', '.join(METRICS)}"
            f"{nearest(known, METRICS) if known not in METRICS else ''}"
        )


def derive(seed: int, purpose: Purpose, n: int, *more: int) -> list[int]:
    """Return n seeds for a purpose, in [0, 2**31), different from each other.

    :param seed: the study's
    :param purpose: what they are for
    :param n: how many; the first ones do not depend on it
    :param more: numbers to tell apart what has the same purpose
    """
    generator = np.random.default_rng(np.random.SeedSequence((seed, _PURPOSES.index(purpose), *more)))
    found: list[int] = []
    while len(found) < n:
        drawn = int(generator.integers(2**31))
        if drawn not in found:
            found.append(drawn)
    return found


def define(
    algo: str,
    envs: Sequence[str],
    *,
    layers: Sequence[Layer] = (),
    space: str | None = None,
    references: Mapping[str, tuple[float, float]] | None = None,
    starts: Sequence[str] | None = None,
    **settings: Any,
) -> Definition:
    """Make and check a definition.

    :param algo: algorithm name
    :param envs: environment ids
    :param layers: of a configuration for all runs; values of the search space go over it
    :param space: see :func:`.spaces.load_space`
    :param references: (0, 1) of normalised scores by environment. Those of several environments that are not given are a
        random policy's return and the registered ``reward_threshold``
    :param starts: presets to begin with; None for the bases and, where there is one, the zoo's entry
    :param settings: other fields of :class:`Definition`
    :raises SpinupError: a name or value is not valid
    """
    _check_settings(settings)
    spec = registry.get_spec(algo)
    found = load_space(spec, space)
    bases: dict[str, dict[str, Any]] = {}
    action_spaces: dict[str, str] = {}
    for env in envs:
        below = _zoo_budget(spec, env)
        config = compose(below, *layers, Layer({"algo": algo, "env": env, "preset": None}, _option))
        config = config.model_copy(update={"vec_env": "dummy" if config.vec_env == "auto" else config.vec_env})
        config = completed(config, None)
        every = config.eval_every or 0
        if not 0 < every <= config.n_timesteps:
            raise ConfigError(f"eval_every={every} leaves no evaluation in {config.n_timesteps} timesteps")
        action_spaces[env] = _check_environment(config, spec)
        plain = config.model_dump(mode="json", exclude={"command", "versions", "preset", "seed", "algo", "env"})
        bases[env] = {"algo": config.algo, "env": env, **plain}
    if len(bases) < len(envs) or not envs:
        raise ConfigError(f"expected different environments, found {', '.join(envs) or 'none'}")
    if starts is None:
        starts = ["default", *(["zoo"] if all(_has_entry(spec, env) for env in envs) else [])]
    for start in starts:
        for env in envs:
            if start != "default":
                registry.preset_values(spec, start, env)
    known = dict(references or {})
    for env in known:
        if env not in bases:
            raise ConfigError(f"reference for {env!r}, which is not tuned on{nearest(env, bases)}")
        if known[env][0] >= known[env][1]:
            raise ConfigError(f"reference for {env}: expected LOW:HIGH with LOW below HIGH")
    definition = Definition(
        algo=bases[envs[0]]["algo"], envs=list(envs), bases=bases, action_spaces=action_spaces, space_name=found.name,
        space=dict(found.nodes), starts=list(starts), references=known, **settings,
    )  # fmt: skip
    for constraint in definition.constraints:
        definition.bound(constraint)
    if len(envs) > 1:
        measured = {env: known[env] if env in known else _reference(definition, env) for env in envs}
        definition = definition.model_copy(update={"references": measured})
    return definition


def open_storage(where: str) -> optuna.storages.BaseStorage:
    """Open a storage.

    :param where: path of a journal file, which is made if need be; an Optuna URL (``sqlite:///…``, ``postgresql://…``,
        ``mysql://…``); or ``grpc://host:port`` of a gRPC proxy
    :raises ConfigError: it cannot be opened
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            if where.startswith("grpc://"):
                host, _, port = where.removeprefix("grpc://").rstrip("/").rpartition(":")
                proxy = optuna.storages.GrpcStorageProxy(host=host or "localhost", port=int(port))
                proxy.wait_server_ready(timeout=10)
                return proxy
            if "://" in where:
                waits = {"connect_args": {"timeout": 100}} if where.startswith("sqlite:") else {"pool_pre_ping": True}
                return optuna.storages.get_storage(optuna.storages.RDBStorage(_with_driver(where), engine_kwargs=waits))
            path = Path(where).absolute()
            path.parent.mkdir(parents=True, exist_ok=True)
            return optuna.storages.JournalStorage(_Journal(str(path)))
    except ConfigError:
        raise
    except Exception as error:  # whatever drivers and file systems raise
        raise ConfigError(f"storage {without_password(where)!r} cannot be opened: {one_line(error)[:300]}") from error


def create(storage: optuna.storages.BaseStorage, name: str, definition: Definition, *, until: int) -> optuna.Study:
    """Create a study or, where it exists, load it and see that it is the same.

    Of several machines that begin at once, one creates it; should it die on the way, another one finishes.

    :param storage: see :func:`open_storage`
    :param name: name of the study
    :param definition: what it is
    :param until: trials there will be at least, so that no more starts are queued
    :raises ConfigError: there is a study of that name with another definition
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    directions = [METRICS[each] for each in definition.objectives]
    try:
        study = optuna.create_study(storage=storage, study_name=name, directions=directions)
    except optuna.exceptions.DuplicatedStudyError:
        study = optuna.load_study(storage=storage, study_name=name)
        patience = time.monotonic() + 15
        while not study.user_attrs.get(_READY) and time.monotonic() < patience:
            time.sleep(0.5)
    there = study.user_attrs.get(_KEY)
    if there is not None:
        _require_same(name, Definition.model_validate_json(there), definition)
    if not study.user_attrs.get(_READY):
        study.set_user_attr(_KEY, definition.model_dump_json())
        queued = {trial.user_attrs.get("start") for trial in study.get_trials(deepcopy=False)}
        for start in definition.starts[:until]:
            if start not in queued:
                values = {env: start_values(definition, start, env) for env in definition.envs}
                study.enqueue_trial(start_parameters(definition, start), user_attrs={"start": start, "values": values})
        study.set_user_attr(_READY, True)
    return open_study(storage, name)


def open_study(storage: optuna.storages.BaseStorage, name: str) -> optuna.Study:
    """Load a study with the sampler and the pruner of its definition.

    :param storage: see :func:`open_storage`
    :param name: name of the study
    :raises ConfigError: there is none of that name
    """
    try:
        study = optuna.load_study(storage=storage, study_name=name)
    except KeyError:
        raise ConfigError(f"there is no study {name!r} in the storage") from None
    definition = definition_of(study)
    sampler = SeededSampler(definition)
    study = optuna.load_study(storage=storage, study_name=name, sampler=sampler, pruner=make_pruner(definition))
    sampler.whole = study
    return study


def definition_of(study: optuna.Study) -> Definition:
    """Return the definition that a study was created with.

    :raises ConfigError: it has none
    """
    text = study.user_attrs.get(_KEY)
    if text is None:
        raise ConfigError(f"study {study.study_name!r} was not made by 'spinup tune'")
    return Definition.model_validate_json(text)


def confirmation_name(name: str) -> str:
    """Name of the study that holds the confirmation of a study."""
    return f"{name} (confirmation)"


# --- starts ----------------------------------------------------------------------------------------------------------


def start_values(definition: Definition, start: str, env: str) -> dict[str, Any]:
    """Return what a start puts over an environment's base: a preset's values but its budget, nothing for ``default``."""
    if start == "default":
        return {}
    values = registry.preset_values(registry.get_spec(definition.algo), start, env)
    return {key: value for key, value in values.items() if key not in ("n_timesteps", "provenance", "vec_env")}


def start_parameters(definition: Definition, start: str) -> dict[str, Any]:
    """Return parameters for the sampler that come nearest to a start, which itself trains with its own values exactly."""
    env = definition.envs[0]
    spec = registry.get_spec(definition.algo)
    cls = spec.load()
    values = registry.merge_values(definition.given(env), start_values(definition, start, env))
    policy = cls.policy_aliases.get(values.get("policy") or next(iter(cls.policy_aliases)))
    if policy is not None:
        defaults = {key: each.default for key, each in schema.constructor_parameters(policy).items() if not each.required}
        own = values.get("policy_kwargs") or {}
        values["policy_kwargs"] = {**schema.jsonable({k: v for k, v in defaults.items() if k not in own}), **own}
    return definition.space_of().parameters(values)


def _zoo_budget(spec: registry.AlgorithmSpec, env: str) -> Layer:
    """The zoo's length of training, if it has one: the least important layer."""
    if _has_entry(spec, env):
        values = registry.preset_values(spec, "zoo", env)
        return Layer({key: values[key] for key in ("n_timesteps",) if key in values}, ".".join)
    return Layer({}, ".".join)


def _has_entry(spec: registry.AlgorithmSpec, env: str) -> bool:
    try:
        return env.rpartition(":")[2] in registry.zoo_entries(spec)
    except UnknownNameError:  # no zoo file
        return False


def _check_environment(config: RunConfig, spec: registry.AlgorithmSpec) -> str:
    """Build environment and model once, so that what every trial would fail by is told before the first.

    :return: the type of the action space
    """
    import tempfile

    from spinup_plugins.runs.runner import prepare

    # A replay buffer is not needed for that, and may be large.
    small = {"buffer_size": 1} if "buffer_size" in config.hyperparameters else {}
    probe = config.model_copy(update={"hyperparameters": {**config.hyperparameters, **small}})
    with tempfile.TemporaryDirectory() as folder:
        run = prepare(probe, home=Path(folder) / "run")
        run._close()
    return type(run.model.action_space).__name__


def _reference(definition: Definition, env: str) -> tuple[float, float]:
    """A random policy's mean return and the environment's threshold."""
    from spinup_plugins.runs.evaluation import evaluation_env

    threshold = gym.spec(env.rpartition(":")[2]).reward_threshold
    if threshold is None:
        raise ConfigError(f"{env} has no registered reward_threshold to normalise scores by: give --reference {env}=LOW:HIGH")
    config = compose(Layer(definition.bases[env], ".".join))
    envs = evaluation_env(config)
    seed = derive(definition.seed, "reference", 1)[0]
    try:
        envs.seed(seed)
        envs.action_space.seed(seed)
        envs.reset()
        returns: list[float] = []
        while len(returns) < 20:
            infos = envs.step(np.array([envs.action_space.sample() for _ in range(envs.num_envs)]))[3]
            returns += [info["episode"]["r"] for info in infos if "episode" in info]
    finally:
        envs.close()
    low = float(f"{np.mean(returns):.4g}")  # another machine's arithmetic must not make another study of it
    if low >= threshold:
        raise ConfigError(f"{env}: a random policy reaches the threshold {threshold}: give --reference {env}=LOW:HIGH")
    return low, float(threshold)


def _option(keys: Sequence[str]) -> str:
    return keys[0].upper() if keys[0] in ("algo", "env") else ".".join(keys)


def _check_settings(settings: Mapping[str, Any]) -> None:
    for key, choices in (("sampler", SAMPLERS), ("pruner", PRUNERS), ("score", SCORES)):
        value = settings.get(key, choices[0])
        if value not in choices:
            raise ConfigError(f"{key}={value!r} is not one of {', '.join(choices)}{nearest(str(value), choices)}")
    for key in settings.get("objectives", ["score"]):
        if key not in METRICS:
            raise ConfigError(f"objectives: {key!r} is not one of {', '.join(METRICS)}{nearest(key, METRICS)}")
    objectives = settings.get("objectives", ["score"])
    if not objectives or len(set(objectives)) < len(objectives):
        raise ConfigError("objectives: expected one or more different metrics")
    if len(objectives) > 1 and settings.get("pruner", "none") != "none":
        raise ConfigError("pruner: Optuna prunes studies of one objective only: take none")
    if len(objectives) > 1 and settings.get("sampler") == "cmaes":
        raise ConfigError("sampler: CMA-ES is for one objective: take tpe, gp, random or qmc")
    if settings.get("sampler") == "cmaes" and find_spec("cmaes") is None:
        raise ConfigError('sampler: CMA-ES needs an extra: pip install "spinup-plugins[tuning]"')
    at_least = {"seeds_per_trial": 1, "top": 1, "race_seeds": 1, "confirm_seeds": 0, "startup": 1, "seed": 0}
    for key, least in at_least.items():
        if settings.get(key, least) < least:
            raise ConfigError(f"{key} must be at least {least}, not {settings[key]}")
    if settings.get("confirm_seeds", 2) == 1:
        raise ConfigError("confirm_seeds must be 0 or at least 2: one seed has no interval")
    if not 0 < settings.get("last", 1) <= 1:
        raise ConfigError(f"last must be in (0, 1], not {settings['last']}")


def _require_same(name: str, there: Definition, wanted: Definition) -> None:
    difference = different(there, wanted)
    if difference is not None:
        raise ConfigError(f"study {name!r} exists with {difference}: take another --study-name, or the same options")


def different(there: Definition, wanted: Definition) -> str | None:
    """Return the first difference between two definitions, as ``key=value, not value``; None if they are alike."""
    difference = _difference(there.model_dump(mode="json"), wanted.model_dump(mode="json"), ())
    if difference is None:
        return None
    path, first, second = difference
    return f"{'.'.join(path)}={json.dumps(first)[:80]}, not {json.dumps(second)[:80]}"


def _difference(first: Any, second: Any, path: tuple[str, ...]) -> tuple[tuple[str, ...], Any, Any] | None:
    """Return the first place where plain data differ, and what stands there."""
    if isinstance(first, dict) and isinstance(second, dict) and first.keys() == second.keys():
        inner = (_difference(first[key], second[key], (*path, key)) for key in first)
        return next((each for each in inner if each is not None), None)
    return None if first == second else (path, first, second)


# --- storage ---------------------------------------------------------------------------------------------------------


class _Journal(JournalFileBackend):
    """A journal that a full disk cannot spoil: what was written in part is cut off, by the writer or by the next one."""

    def __init__(self, path: str) -> None:
        super().__init__(path, JournalFileSymlinkLock(path))
        self.path = path

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        text = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs).encode()
        self._lock.acquire()
        try:
            with open(self.path, "r+b") as file:
                end = file.seek(0, os.SEEK_END)
                whole = _end_of_lines(file, end)
                if whole < end:
                    file.truncate(whole)
                file.seek(whole)
                try:
                    file.write(text)
                    file.flush()
                    os.fsync(file.fileno())
                except OSError:
                    with open(self.path, "r+b") as again:
                        again.truncate(whole)
                    raise
        finally:
            self._lock.release()


def _end_of_lines(file: Any, end: int) -> int:
    """Position after the last line that is whole."""
    at = end
    while at > 0:
        begin = max(at - 65536, 0)
        file.seek(begin)
        newline = file.read(at - begin).rfind(b"\n")
        if newline >= 0:
            return int(begin + newline + 1)
        at = begin
    return 0


def _with_driver(url: str) -> str:
    """Name the driver of the extra 'postgres' where a URL leaves the choice open."""
    scheme, _, rest = url.partition("://")
    if scheme in ("postgresql", "postgres"):
        if find_spec("psycopg") is not None:
            return f"postgresql+psycopg://{rest}"
        if find_spec("psycopg2") is None:
            raise ConfigError('PostgreSQL needs an extra: pip install "spinup-plugins[postgres]"')
    return url


def without_password(url: str) -> str:
    """Return a storage as it may be shown and written down."""
    scheme, found, rest = url.partition("://")
    user, at, host = rest.rpartition("@")
    return f"{scheme}://{user.partition(':')[0]}@{host}" if found and at else url


# --- samplers and pruners --------------------------------------------------------------------------------------------


class SeededSampler(optuna.samplers.BaseSampler):
    """Makes the definition's sampler anew for each trial, seeded by the study's seed and the trial's place.

    Failed trials are shown to it with the worst value so far, for Optuna's samplers ignore them and would come back.

    :param definition: of the study
    """

    def __init__(self, definition: Definition) -> None:
        self.definition = definition
        self.whole: optuna.Study | None = None
        self.inner = make_sampler(definition, 0)

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        trials = (self.whole or study).get_trials(deepcopy=False)
        self.inner = make_sampler(self.definition, _place(trials, trial.number))
        self.inner.before_trial(_Seen(study), trial)

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, optuna.distributions.BaseDistribution]:
        return self.inner.infer_relative_search_space(_Seen(study), trial)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, optuna.distributions.BaseDistribution]
    ) -> dict[str, Any]:
        return self.inner.sample_relative(_Seen(study), trial, search_space)

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: optuna.distributions.BaseDistribution,
    ) -> Any:
        return self.inner.sample_independent(_Seen(study), trial, param_name, param_distribution)

    def after_trial(self, study: optuna.Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        self.inner.after_trial(study, trial, state, values)


class _Seen(optuna.Study):
    """A study as samplers see it: a failed trial is a complete one with the worst value so far of each objective."""

    def __init__(self, study: optuna.Study) -> None:
        self._base = study

    def __getattr__(self, name: str) -> Any:  # of what Study's constructor would set
        return getattr(self._base, name)

    def _get_trials(self, deepcopy: bool = True, states: Any = None, use_cache: bool = False) -> list[FrozenTrial]:
        trials = self._base._get_trials(deepcopy=False, states=None, use_cache=use_cache)
        values = [trial.values for trial in trials if trial.state == TrialState.COMPLETE]
        if values:
            worst = [
                min(column) if direction == optuna.study.StudyDirection.MAXIMIZE else max(column)
                for column, direction in zip(zip(*values, strict=True), self.directions, strict=True)
            ]
            trials = [_penalised(trial, worst) if _is_failure(trial) else trial for trial in trials]
        return trials if states is None else [trial for trial in trials if trial.state in states]

    def get_trials(self, deepcopy: bool = True, states: Any = None) -> list[FrozenTrial]:
        return self._get_trials(deepcopy, states)


def _is_failure(trial: FrozenTrial) -> bool:
    return trial.state == TrialState.FAIL and "error" in trial.user_attrs and bool(trial.params)


def _penalised(trial: FrozenTrial, worst: Sequence[float]) -> FrozenTrial:
    return FrozenTrial(
        number=trial.number, state=TrialState.COMPLETE, value=None, values=list(worst), params=trial.params,
        distributions=trial.distributions, user_attrs=trial.user_attrs, system_attrs=trial.system_attrs,
        intermediate_values=trial.intermediate_values, datetime_start=trial.datetime_start,
        datetime_complete=trial.datetime_complete, trial_id=trial._trial_id,
    )  # fmt: skip


def _place(trials: Sequence[FrozenTrial], number: int) -> int:
    """Which slot a trial fills; a repetition fills that of the trial it repeats."""
    found: list[Slot] = slots_of(trials)
    return next((i for i, slot in enumerate(found) if any(each.number == number for each in slot.chain)), number)


def make_sampler(definition: Definition, place: int) -> optuna.samplers.BaseSampler:
    """Return the sampler of one trial.

    :param definition: of the study
    :param place: which trial, counted from 0
    """
    seed = derive(definition.seed, "sampler", 1, place)[0]
    at_random = optuna.samplers.RandomSampler(seed=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        if definition.sampler == "random":
            return at_random
        if definition.sampler == "gp":
            return optuna.samplers.GPSampler(
                seed=seed, n_startup_trials=definition.startup, independent_sampler=at_random, warn_independent_sampling=False
            )
        if definition.sampler == "cmaes":
            return optuna.samplers.CmaEsSampler(
                seed=seed, n_startup_trials=definition.startup, independent_sampler=at_random, warn_independent_sampling=False
            )
        if definition.sampler == "qmc":  # its sequence has one seed; the place in it is kept in the storage
            common = derive(definition.seed, "sampler", 1)[0]
            return optuna.samplers.QMCSampler(
                scramble=True, seed=common, independent_sampler=at_random, warn_independent_sampling=False
            )
        return optuna.samplers.TPESampler(seed=seed, n_startup_trials=definition.startup, multivariate=True, group=True)


def make_pruner(definition: Definition) -> optuna.pruners.BasePruner:
    """Return the pruner; resources are timesteps, counted over all runs of a trial.

    :param definition: of the study
    """
    first = min(base["eval_every"] for base in definition.bases.values())
    run = min(base["n_timesteps"] for base in definition.bases.values())
    if definition.pruner == "median":
        return optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=run // 3)
    if definition.pruner == "halving":
        return optuna.pruners.SuccessiveHalvingPruner(min_resource=max(run // 4, first), reduction_factor=3)
    if definition.pruner == "hyperband":
        return optuna.pruners.HyperbandPruner(
            min_resource=max(run // 4, first), max_resource=definition.timesteps, reduction_factor=3
        )
    if definition.pruner == "wilcoxon":
        # It pairs evaluations by seed and step. Those of one run depend on each other: hence a whole run before it may
        # stop a trial, and a threshold well below the usual 0.1.
        a_run = sum(base["n_timesteps"] // base["eval_every"] for base in definition.bases.values())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            return optuna.pruners.WilcoxonPruner(p_threshold=0.01, n_startup_steps=a_run + 1)
    return optuna.pruners.NopPruner()
