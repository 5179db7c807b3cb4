"""Callbacks of a run: evaluation every so many real timesteps, a progress bar, and callbacks named by import path."""

import inspect
from collections.abc import Callable
from functools import partial
from math import inf
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback, ConvertCallback, EvalCallback
from stable_baselines3.common.vec_env import VecEnv

from spinup_plugins.atomic import replacing
from spinup_plugins.errors import ConfigError
from spinup_plugins.imports import import_object
from spinup_plugins.runs.files import BEST, MODEL, VECNORMALIZE
from spinup_plugins.yaml_files import parse_yaml

__all__ = ["Evaluations", "ProgressBar", "load_callback", "save_model"]


def save_model(model: BaseAlgorithm, folder: Path, prefix: str = "") -> None:
    """Save ``model`` and, where it trains on normalised observations, the statistics it needs beside it.

    :param model: the algorithm
    :param folder: run folder; ``<prefix>model.zip`` and ``<prefix>vecnormalize.pkl`` are replaced as wholes
    :param prefix: "" for the newest model, :data:`BEST` for the best one
    :raises OSError: the folder cannot be written to
    """
    statistics = model.get_vec_normalize_env()
    if statistics is not None:
        with replacing(folder / f"{prefix}{VECNORMALIZE}") as temporary:
            statistics.save(str(temporary))
    with replacing(folder / f"{prefix}{MODEL}") as temporary:
        model.save(temporary)


class _SaveBest(BaseCallback):
    """Saves the model with its normalisation statistics, which SB3's ``best_model_save_path`` leaves behind."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def _on_step(self) -> bool:
        save_model(self.model, self.folder, BEST)
        return True


class Evaluations(EvalCallback):
    """SB3's ``EvalCallback``, counting timesteps summed over the environments instead of its own calls.

    Every evaluation starts from the same initial states, so that two of them differ by the policy alone, and it draws
    nothing from the generators that training draws from. ``evaluations.npz`` and ``best_model.zip`` are never half
    written.

    :param env: environment to evaluate on; wrapped like the training environment
    :param every: timesteps between two evaluations; 0 for none
    :param episodes: episodes per evaluation
    :param seed: seed of the initial states
    :param folder: run folder
    """

    def __init__(self, env: VecEnv, *, every: int, episodes: int, seed: int, folder: Path) -> None:
        super().__init__(
            env,
            callback_on_new_best=_SaveBest(folder),
            n_eval_episodes=episodes,
            eval_freq=1,
            log_path=str(folder),
            verbose=0,
        )
        self.every = every
        self.seed = seed
        self.file = folder / "evaluations.npz"
        self.due: float = every or inf
        self.evaluated: Callable[[], None] = lambda: None
        """Called after each evaluation."""
        self.untrained = 0
        """Evaluations before the first update: points of the curve, but no candidates for the best model."""

    def _init_callback(self) -> None:
        # EvalCallback warns here unless both environments are of one type; worker processes do not help to evaluate.
        assert self.callback_on_new_best is not None, "given to the constructor"
        self.callback_on_new_best.init_callback(self.model)

    def _on_step(self) -> bool:
        if self.num_timesteps < self.due:
            return True
        self.due = (self.num_timesteps // self.every + 1) * self.every
        self.eval_env.seed(self.seed)
        with replacing(self.file) as temporary:
            self.log_path = str(temporary)
            save_best = self.callback_on_new_best
            if untrained := self.model._n_updates == 0:
                self.untrained += 1
                self.callback_on_new_best = None
            going_on = super()._on_step()
            if untrained:
                self.callback_on_new_best, self.best_mean_reward = save_best, -inf
        self.evaluated()
        return going_on


class ProgressBar(BaseCallback):
    """A line that shows steps, steps per second, the recent return and the time left.

    Use it as a context manager around ``learn``, so that the line is closed when training stops by an error, too.

    :param total: timesteps to train for
    :param console: where to draw; nothing is drawn unless it is a terminal
    """

    def __init__(self, total: int, console: Console) -> None:
        super().__init__()
        self.progress = Progress(
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[speed]}"),
            TextColumn("{task.fields[score]}"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
            expand=True,
        )
        self.task = self.progress.add_task("train", total=total, speed="", score="")
        self.drawn = 0.0
        self.before: int | None = None

    def __enter__(self) -> "ProgressBar":
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def _on_step(self) -> bool:
        if self.before is None:
            self.before = self.num_timesteps - self.model.n_envs  # a run that is resumed has taken many already
        if monotonic() - self.drawn > 0.1:  # as often as rich draws
            self._draw()
        return True

    def _on_training_end(self) -> None:
        self._draw()

    def _draw(self) -> None:
        self.drawn = monotonic()
        task = self.progress.tasks[0]
        recent = self.model.ep_info_buffer
        self.progress.update(
            self.task,
            completed=self.num_timesteps,
            speed=f"{(self.num_timesteps - (self.before or 0)) / task.elapsed:,.0f} steps/s" if task.elapsed else "",
            score=f"return {np.mean([episode['r'] for episode in recent]):.4g}" if recent else "",
        )


def load_callback(text: str) -> BaseCallback:
    """Import a callback.

    :param text: ``module:Class`` or ``module:function``, optionally with keyword arguments as a YAML mapping:
        ``module:Class:{key: value}``. A function is called after every step with the local and the global variables
        of the training loop and returns whether to go on, as Stable-Baselines3 has it.
    :return: a new callback
    :raises ConfigError: there is no such module or name, it is no callback, or it refuses the arguments
    """
    where = f"callback {text!r}"
    module, _, rest = text.partition(":")
    name, _, arguments = rest.partition(":")
    kwargs: Any = parse_yaml(arguments, where) if arguments else {}
    if not isinstance(kwargs, dict):
        raise ConfigError(f"{where}: expected {{key: value, …}} after the second colon, found {arguments!r}")
    try:
        target = import_object(f"{module}:{name}" if name else module)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error
    if inspect.isclass(target) and issubclass(target, BaseCallback):
        try:
            return target(**kwargs)
        except (TypeError, ValueError, AssertionError) as error:
            raise ConfigError(f"{where}: {error}") from error
    if inspect.isclass(target) or not callable(target):
        raise ConfigError(f"{where}: {name!r} is neither a subclass of BaseCallback nor a function")
    return ConvertCallback(partial(target, **kwargs))
