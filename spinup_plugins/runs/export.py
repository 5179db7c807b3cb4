"""Conversion between run folders, Stable-Baselines3's zips and agent files."""

import json
from pathlib import Path
from typing import Any

from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecNormalize

from spinup_plugins.errors import ConfigError
from spinup_plugins.runs.agent import SUFFIX, Agent, load_agent, save_agent
from spinup_plugins.runs.config import RunConfig, file_layer, load
from spinup_plugins.runs.evaluation import load_run
from spinup_plugins.runs.files import BEST, CONFIG, EVALUATION, MODEL, found_statistics
from spinup_plugins.runs.manifest import Environment

__all__ = ["export"]


def export(
    source: str | Path,
    output: str | Path | None = None,
    *,
    best: bool = False,
    algo: str | None = None,
    env: str | None = None,
    optimizers: bool = True,
) -> tuple[Path, Agent]:
    """Turn a run folder or a zip into an agent file, or an agent file into a zip. Zips are unpickled: only those you trust.

    :param source: run folder, a model's ``.zip``, or an agent file
    :param output: file to create or replace; None for one beside ``source``: ``agent.spinup`` in a run folder
    :param best: of a run folder, the best model of the evaluations during training, not the last one
    :param algo: the model's algorithm; needed where no configuration lies beside a ``.zip``
    :param env: environment id; needed likewise, otherwise in place of the one it was trained on
    :param optimizers: whether an agent file keeps what optimisers remember of gradients
    :return: the file written, and the agent that was read
    :raises ModelFileError: there is no such model, or it cannot be loaded for that algorithm and environment
    :raises ConfigError: the model cannot be written as data alone, its evaluation is damaged, or ``output`` has another suffix
        than its content
    """
    source = Path(source)
    if source.suffix == SUFFIX:
        if best or algo is not None or env is not None:
            raise ConfigError(f"'{source}' is an agent file: --best, --algo and --env are for runs and zips")
        agent, target = load_agent(source, device="cpu"), _target(output, source.with_suffix(".zip"))
        agent.save_sb3(target)
        return target, agent
    loaded = load_run(source, best=best, algo=algo, env=env)
    try:
        assert isinstance(loaded.model, BaseAlgorithm), "not from an agent file"
        folder, prefix = loaded.file.parent, loaded.file.name.removesuffix(MODEL)
        in_run = (folder / CONFIG).is_file()
        own = f"{prefix}agent{SUFFIX}" if in_run and prefix in ("", BEST) else loaded.file.with_suffix(SUFFIX).name
        target = _target(output, folder / own)
        statistics = found_statistics(loaded.file)
        normalization = VecNormalize.load(str(statistics), loaded.env.unwrapped) if statistics.is_file() else None
        scored = folder / EVALUATION
        scores = _scores(scored) if scored.is_file() and own == f"agent{SUFFIX}" else {}
        save_agent(
            loaded.model,
            target,
            env=None if in_run and env is None else Environment(id=loaded.config.env),
            config=_config(folder / CONFIG) if in_run else None,
            normalization=normalization,
            scores=scores,
            optimizers=optimizers,
        )
    finally:
        loaded.env.close()
    return target, load_agent(target, device="cpu")


def _scores(file: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(file.read_bytes()))
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"{file}: missing or damaged") from error


def _config(file: Path) -> RunConfig:
    """Read a run's configuration with what it recorded of its origin."""
    written = file_layer(file).values
    return load(file).model_copy(update={key: written[key] for key in ("command", "versions") if key in written})


def _target(output: str | Path | None, own: Path) -> Path:
    target = own if output is None else Path(output)
    if target.suffix != own.suffix:
        raise ConfigError(f"'{target}' must end in {own.suffix!r}")
    return target
