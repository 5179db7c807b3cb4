"""How well a policy does: undiscounted, unnormalised returns of whole episodes from reproducible initial states."""

import json
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal
from zipfile import ZipFile

import numpy as np
from pydantic_core import to_json
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.type_aliases import PolicyPredictor
from stable_baselines3.common.utils import set_random_seed
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from spinup_plugins import registry, schema
from spinup_plugins.environments import make_env
from spinup_plugins.errors import ConfigError, EnvError, ModelFileError, SpinupError
from spinup_plugins.runs.agent import SUFFIX, Agent, load_agent
from spinup_plugins.runs.config import Layer, RunConfig, compose, load
from spinup_plugins.runs.files import (
    BEST,
    CONFIG,
    MODEL,
    STATUS,
    ZOO_ARGUMENTS,
    Status,
    found_statistics,
    one_line,
    told_to_end,
    zoo_arguments,
)
from spinup_plugins.runs.statistics import Summary, summarise
from spinup_plugins.wrapping import unrewarded
from spinup_plugins.yaml_files import scalars

__all__ = ["Evaluation", "LoadedRun", "derived_seed", "evaluate", "evaluation_env", "load_run"]

COPIES = 4
"""Environments side by side in an evaluation: one forward pass then serves as many steps."""


@dataclass(frozen=True)
class Evaluation:
    """Episodes played by one policy, in the order in which they ended.

    :param returns: undiscounted return of each episode, shape (n,)
    :param lengths: steps of each episode, shape (n,)
    :param successes: ``is_success`` at the end of each episode; None unless the environment reports it
    """

    returns: tuple[float, ...]
    lengths: tuple[int, ...]
    successes: tuple[bool, ...] | None

    @property
    def summary(self) -> Summary:
        """Mean, spread, interquartile mean and its interval of the returns."""
        return summarise(self.returns)

    def json(self) -> str:
        """Return the episodes and their summary as JSON."""
        data = {"summary": asdict(self.summary), **asdict(self)}
        return to_json(data, indent=2, inf_nan_mode="null").decode()


@dataclass(frozen=True)
class LoadedRun:
    """A trained model with an environment to evaluate it on.

    :param config: how it was trained
    :param model: the algorithm or an agent, ready to ``predict``
    :param env: copies of its environment, normalised as it needs
    :param status: how the run ended; None for a model outside a run folder
    :param file: where the model is
    """

    config: RunConfig
    model: BaseAlgorithm | Agent
    env: VecEnv
    status: Status | None
    file: Path


def evaluate(model: PolicyPredictor, env: VecEnv, n_episodes: int, *, deterministic: bool = True, seed: int = 0) -> Evaluation:
    """Play ``n_episodes`` whole episodes; equal arguments give equal episodes.

    :param model: a trained algorithm or agent
    :param env: monitored environments; the episodes are divided over them evenly, as ``evaluate_policy`` does
    :param n_episodes: number of episodes, at least 1
    :param deterministic: play the mode of the policy's distribution; otherwise sample from it, for which the global
        generators (Python, NumPy, torch) are seeded
    :param seed: seed of the initial states; environment ``i`` gets ``seed + i``
    :raises ConfigError: fewer than one episode
    :raises EnvError: an environment broke its contract, or raised ``SystemExit``
    """
    if n_episodes < 1:
        raise ConfigError(f"the number of episodes must be at least 1, not {n_episodes}")
    if not deterministic:
        set_random_seed(seed)
    env.seed(seed)
    successes: list[bool] = []

    def note_success(local: dict[str, Any], _: dict[str, Any]) -> None:
        if local["done"] and "is_success" in local["info"]:
            successes.append(bool(local["info"]["is_success"]))

    try:
        returns, lengths = evaluate_policy(
            model, env, n_episodes, deterministic=deterministic, return_episode_rewards=True, callback=note_success
        )
    except SystemExit as error:
        raise EnvError(told_to_end(error)) from error
    assert isinstance(returns, list), "as return_episode_rewards asks for"
    assert isinstance(lengths, list), "likewise"
    return Evaluation(tuple(map(float, returns)), tuple(map(int, lengths)), tuple(successes) or None)


def derived_seed(seed: int, purpose: Literal["selection", "report"]) -> int:
    """Return a seed for episodes that neither training nor, for the report, the choice of the best model has seen.

    :param seed: a run's seed
    :param purpose: "selection" for evaluations during training, "report" for those after it
    :return: in [0, 2**32)
    """
    return int(np.random.SeedSequence((seed, ("selection", "report").index(purpose))).generate_state(1)[0])


def evaluation_env(config: RunConfig, *, statistics: Path | None = None, render: bool = False) -> VecEnv:
    """Build copies of a run's environment that leave rewards and normalisation statistics alone.

    Wrappers that do nothing but change rewards are left out, so that returns are in the environment's own units.

    :param config: the run's configuration
    :param statistics: file with the normalisation statistics; None begins with blank ones
    :param render: build a single copy, shown in a window
    :raises ModelFileError: ``statistics`` is missing or damaged
    :raises ConfigError: they are those of another environment
    """
    env = make_env(
        config.env,
        1 if render else COPIES,
        vec_env="envpool" if config.vec_env == "envpool" and not render else "dummy",
        env_kwargs={**config.env_kwargs, "render_mode": "human"} if render else config.env_kwargs,
        wrappers=unrewarded(config.wrappers),
        normalize=config.normalize if statistics is None else False,
        images=False,
    )
    if statistics is not None:
        try:
            env = VecNormalize.load(str(statistics), env)
        except Exception as error:  # unpickling a damaged file can raise anything
            env.close()
            if isinstance(error, AssertionError):  # Stable-Baselines3's, of the spaces' shapes
                raise ConfigError(f"{config.env} is not an environment for '{statistics}': {error}") from error
            raise ModelFileError(f"cannot load '{statistics}': {one_line(error)}") from error
    if isinstance(env, VecNormalize):
        env.training = False
        env.norm_reward = False
    return env


def load_run(
    path: str | Path, *, best: bool = False, algo: str | None = None, env: str | None = None, render: bool = False
) -> LoadedRun:
    """Load a trained model together with its environment. Zips are unpickled: load only those you trust.

    :param path: run folder, a model's ``.zip`` or an agent file
    :param best: of a run folder, load the best model of the evaluations during training, not the last one
    :param algo: the model's algorithm; needed where no configuration lies beside a ``.zip``
    :param env: environment id; needed likewise, otherwise in place of the one it was trained on
    :param render: show one environment in a window
    :raises ModelFileError: there is no such run or model, or it cannot be loaded for that algorithm and environment
    :raises ConfigError: the configuration beside the model is not valid, ``algo`` or ``env`` is missing, or ``env`` has
        other spaces than the model
    """
    path = Path(path)
    if path.suffix == SUFFIX:
        if best:
            raise ConfigError(f"'{path}' is an agent file, of one model: --best is for run folders")
        return _load_agent(path, algo, env, render)
    if path.suffix == ".zip":
        folder, file = path.parent, path
    else:
        folder, file = path, path / f"{BEST if best else ''}{MODEL}"
        if not (folder / CONFIG).is_file():
            raise ModelFileError(_no_run(path))
    status = Status.read(folder) if (folder / STATUS).is_file() else None
    if not file.is_file():
        state = f"; the run is {status.state}" if status is not None else ""
        agents = sorted(folder.glob(f"*{SUFFIX}")) if status is None else []
        raise ModelFileError(f"there is no '{file}'{state}" + (f" (did you mean '{agents[0]}'?)" if agents else ""))
    config = _config(file, algo, env)
    spec = registry.get_spec(config.algo)
    cls = spec.load()
    normalised = found_statistics(file)
    is_normalised = config.normalize or normalised.is_file()
    if not is_normalised:
        _tell_unused_statistics(file, normalised)
    envs = evaluation_env(config, statistics=normalised if is_normalised else None, render=render)
    # An evaluation needs no replay, whose memory would otherwise be taken again.
    options: dict[str, Any] = {"buffer_size": 1} if "buffer_size" in schema.constructor_parameters(cls) else {}
    try:
        model = cls.load(file, env=envs, **options)
        if options:  # the model's own number, which an agent file of it is to have
            vars(model)["buffer_size"] = json.loads(ZipFile(file).read("data"))["buffer_size"]
    except Exception as error:  # a foreign or damaged file can make Stable-Baselines3 raise anything
        envs.close()
        if isinstance(error, SpinupError):
            raise
        if "spaces do not match" in str(error):
            own = f"; it was trained on {load(folder / CONFIG).env}" if (folder / CONFIG).is_file() else ""
            raise ConfigError(
                f"{config.env} is not an environment for '{file}': {' '.join(str(error).split())}{own}"
            ) from error
        raise ModelFileError(f"cannot load '{file}' as {spec.name} for {config.env}: {one_line(error)}") from error
    return LoadedRun(config, model, envs, status, file)


def _load_agent(path: Path, algo: str | None, env: str | None, render: bool) -> LoadedRun:
    agent = load_agent(path, env)
    card = agent.card
    if algo is not None and registry.get_spec(algo).name != card.algorithm:
        raise ConfigError(f"'{path}' is an agent of {card.algorithm}, not of {algo}")
    envs = agent.env(1, render_mode="human") if render else agent.env(COPIES, images=False)
    recorded = "" if card.environment is None else card.environment.id
    config = RunConfig.model_validate({"algo": card.algorithm, "env": env or recorded})
    return LoadedRun(config, agent, envs, None, path)


def _config(file: Path, algo: str | None, env: str | None) -> RunConfig:
    given = {key: value for key, value in (("algo", algo), ("env", env)) if value is not None}
    if (file.parent / CONFIG).is_file():
        return load(file.parent / CONFIG).model_copy(update=given)
    if len(given) < 2:
        known = next((scalars(path) for path in zoo_arguments(file.parent)), {})
        options = f"--algo {known['algo']} --env {known['env']}" if {"algo", "env"} <= known.keys() else "--algo and --env"
        raise ConfigError(f"no {CONFIG} lies beside '{file}', so its algorithm and environment must be given: {options}")
    return compose(Layer(given, lambda keys: keys[0]))


def _tell_unused_statistics(file: Path, expected: Path) -> None:
    """Warn of statistics beside a model that are no other model's: without those it was trained with, it plays badly."""
    others = {found_statistics(path) for path in file.parent.glob("*.zip")}
    for path in sorted(file.parent.glob("*norm*.pkl")):
        if path not in others:
            warnings.warn(f"'{path}' is not used: statistics of '{file}' would be in '{expected}'", stacklevel=3)


def _no_run(path: Path) -> str:
    """Tell why ``path``, neither a zip nor an agent file by its name, is not a run folder either."""
    if path.is_dir():
        return f"'{path}' is not a run folder: it has no {CONFIG}{_newest(path)}"
    missing = "" if path.exists() else ": there is nothing of that name"
    named = [near for suffix in (".zip", SUFFIX) if (near := path.with_name(f"{path.name}{suffix}")).is_file()]
    meant = f" (did you mean '{named[0]}'?)" if named else ""
    return f"'{path}' is not a run folder, a model's .zip or an agent file ({SUFFIX}){missing}{meant}"


def _newest(folder: Path) -> str:
    """Point to the run inside ``folder``, if there are any, that began last, else to the newest model in it."""
    configs = [file for depth in range(1, 5) for file in folder.glob(f"{'*/' * depth}{CONFIG}")]
    runs = [file for file in configs if not file.with_name(ZOO_ARGUMENTS).is_file()]
    found = runs or [*folder.glob("*.zip"), *folder.glob(f"*{SUFFIX}")]
    newest = max(found, key=lambda file: file.stat().st_mtime, default=None)
    return "" if newest is None else f" (did you mean '{newest.parent if runs else newest}'?)"
