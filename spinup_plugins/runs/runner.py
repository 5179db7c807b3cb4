"""One training run: everything from a configuration to a folder with the model, its curve and how well it does."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from filelock import BaseFileLock
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import configure
from stable_baselines3.common.vec_env import sync_envs_normalization

from spinup_plugins import registry, schema
from spinup_plugins.atomic import write_text
from spinup_plugins.environments import make_env
from spinup_plugins.envs.shared import SharedMemoryVecEnv
from spinup_plugins.errors import ConfigError, EnvError, SpinupError
from spinup_plugins.runs.callbacks import Evaluations, load_callback, save_model
from spinup_plugins.runs.checkpoint import Checkpoint, Checkpoints, read_checkpoint
from spinup_plugins.runs.config import RunConfig, completed, dump, load, torch_device
from spinup_plugins.runs.evaluation import Evaluation, derived_seed, evaluate, evaluation_env
from spinup_plugins.runs.files import (
    CHECKPOINT,
    CONFIG,
    EVALUATION,
    State,
    Status,
    claimed,
    hold,
    let_go,
    one_line,
    told_to_end,
)

__all__ = ["Run", "prepare", "resume", "train"]


@dataclass
class Run:
    """A run whose folder, environments and model stand ready.

    :param folder: the run folder
    :param config: its configuration, every choice made explicit
    :param model: the algorithm
    :param callbacks: those that the configuration names
    :param evaluations: the evaluations during training
    :param checkpoints: those to go on from
    :param lock: on the folder
    :param evaluation: the evaluation after training; None until then
    :param seconds: wall time of training
    """

    folder: Path
    config: RunConfig
    model: BaseAlgorithm
    callbacks: list[BaseCallback]
    evaluations: Evaluations
    checkpoints: Checkpoints
    lock: BaseFileLock
    evaluation: Evaluation | None = None
    seconds: float = 0.0

    @property
    def num_timesteps(self) -> int:
        """Environment steps taken, those before an interruption included."""
        resumed = self.checkpoints.resumed
        return self.model.num_timesteps if resumed is None else resumed.num_timesteps

    @property
    def best(self) -> tuple[int, float] | None:
        """Timestep and mean return of the best evaluation of a trained policy, whose model was kept; None without any."""
        candidates = slice(self.evaluations.untrained, None)
        means = [float(np.mean(returns)) for returns in self.evaluations.evaluations_results[candidates]]
        if not means:
            return None
        first = int(np.argmax(means))
        return self.evaluations.evaluations_timesteps[candidates][first], means[first]

    def learn(self, callbacks: Sequence[BaseCallback] = ()) -> Evaluation:
        """Train, save and evaluate, once; the environments are closed afterwards.

        Whatever ends training early (an error, Ctrl-C), the model so far is saved, the status tells, and it is raised
        on.

        :param callbacks: callbacks besides the configuration's
        :return: the evaluation after training
        :raises EnvError: an environment broke its contract, or its process died
        :raises SpinupError: an environment or a callback raised ``SystemExit``
        """
        self.evaluations.evaluated = self.checkpoints.went_back = lambda: self._note(
            "running", seconds=self.checkpoints.seconds
        )
        try:
            with _threads(self.config.threads, self.model):
                try:
                    self.model.learn(
                        self.config.n_timesteps, [self.evaluations, *self.callbacks, *callbacks, self.checkpoints]
                    )
                finally:
                    self.seconds = self.checkpoints.seconds
                    if self.checkpoints.resumed is None:  # else the model knows nothing yet, and the file does
                        save_model(self.model, self.folder)
                self.evaluation = self._evaluate()
            write_text(self.folder / EVALUATION, f"{self.evaluation.json()}\n")
            self._note("finished")
            (self.folder / CHECKPOINT).unlink(missing_ok=True)
        except KeyboardInterrupt:
            self._note("interrupted")
            raise
        except (EOFError, BrokenPipeError, ConnectionResetError) as error:
            fault = EnvError("the process of an environment died; its own message stands above")
            self._note("failed", fault)
            raise fault from error
        except SystemExit as error:  # this process is not an environment's or a callback's to end
            ended = SpinupError(told_to_end(error))
            self._note("failed", ended)
            raise ended from error
        except Exception as error:
            self._note("failed", error)
            raise
        finally:
            self._close()
        return self.evaluation

    def _evaluate(self) -> Evaluation:
        trained_on = self.model.get_env()
        env = self.evaluations.eval_env
        if self.model.get_vec_normalize_env() is not None and trained_on is not None:
            sync_envs_normalization(trained_on, env)
        seed = derived_seed(self.config.seed, "report")
        return evaluate(self.model, env, self.config.final_episodes, seed=seed)

    def _note(self, state: State, error: Exception | None = None, *, seconds: float | None = None) -> None:
        message = None if error is None else one_line(error)
        taken = self.seconds if seconds is None else seconds
        Status(state, self.num_timesteps, round(taken, 3), message).write(self.folder)

    def _close(self) -> None:
        self.model.logger.close()
        for env in (self.model.get_env(), self.evaluations.eval_env):
            if env is not None:
                with suppress(EOFError, OSError):  # processes that died do not answer
                    env.close()
        let_go(self.lock)


def prepare(config: RunConfig, folder: str | Path = "runs", *, command: str | None = None, home: Path | None = None) -> Run:
    """Make everything ready to train: check, claim a folder, build environments and model, write the configuration.

    :param config: the configuration
    :param folder: folder of all runs; this one's is ``<folder>/<algo>/<env>_<n>`` with the next free n
    :param command: the command line to record
    :param home: the run folder, in place of one in ``folder``
    :raises SpinupError: something in ``config`` is not valid; no folder is left behind then
    """
    config = completed(config, command)
    schema.resolve(registry.get_class(config.algo), config.hyperparameters)
    with claimed(Path(folder), config.algo, config.env, home=home) as home:
        return _build(config, home, hold(home))


def resume(home: Path) -> Run:
    """Make a run that was interrupted ready to go on from its newest checkpoint.

    Everything is as it was then, and the run goes on as if it had not been interrupted. Environments that do not repeat
    their episodes, and those of ``gym-async`` and ``envpool``, begin new ones, with a warning.

    :param home: its run folder
    :raises ConfigError: it holds no run, the run is finished or still running, or there is no checkpoint
    :raises ModelFileError: the checkpoint is damaged
    """
    if not (home / CONFIG).is_file():
        raise ConfigError(f"'{home}' is no run folder: it has no {CONFIG}")
    config, status = load(home / CONFIG), Status.read(home)
    if status.state == "finished":
        raise ConfigError(f"the run in '{home}' is finished, after {status.timesteps:,} steps: there is nothing to resume")
    lock = hold(home)  # before the logs are opened anew
    try:
        for half in home.glob(".[0-9]*-*"):  # what a kill left of files that were being written
            half.unlink(missing_ok=True)
        return _build(completed(config, None), home, lock, read_checkpoint(home))
    except BaseException:
        let_go(lock)
        raise


def _build(config: RunConfig, home: Path, lock: BaseFileLock, checkpoint: Checkpoint | None = None) -> Run:
    """Build environments and model in a run folder, and write what the run is."""
    spec = registry.get_spec(config.algo)
    callbacks = [load_callback(text) for text in config.callbacks]
    wanted = torch_device(str(config.hyperparameters.get("device", "auto")))
    if config.tensorboard and find_spec("tensorboard") is None:
        raise ConfigError('TensorBoard needs an extra: pip install "spinup-plugins[tensorboard]"')
    with _threads(config.threads), ExitStack() as on_error:
        try:
            env = make_env(
                config.env,
                config.n_envs,
                vec_env=config.vec_env,
                seed=config.seed,
                env_kwargs=config.env_kwargs,
                wrappers=config.wrappers,
                normalize=config.normalize,
                monitor_dir=home,
                gamma=config.hyperparameters.get("gamma"),
                tape=bool(config.checkpoint_every),
                images=bool(callbacks),  # which may record videos
            )
        except SpinupError:
            raise
        except (Exception, SystemExit) as error:  # the environment's own code can raise anything
            raise ConfigError(f"cannot build {config.env}: {one_line(error)}") from error
        on_error.callback(env.close)
        if config.vec_env == "auto":
            chosen = "subproc" if isinstance(env.unwrapped, SharedMemoryVecEnv) else "dummy"
            config = config.model_copy(update={"vec_env": chosen})
        try:
            if config.policy is None:
                config = config.model_copy(update={"policy": registry.choose_policy(spec.load(), env.observation_space)})
            values = {**config.hyperparameters, "seed": config.seed}
            model = registry.build(spec, env, values, policy=config.policy)
            verbose = ["stdout"] if model.verbose else []
            tensorboard = ["tensorboard"] if config.tensorboard else []
            model.set_logger(configure(str(home), ["csv", *verbose, *tensorboard]))
        except (SpinupError, AssertionError, TypeError, ValueError, RuntimeError) as error:
            raise ConfigError(f"cannot train {spec.name} on {config.env}: {one_line(error)}") from error
        on_error.callback(model.logger.close)
        if wanted is not None and wanted.type != model.device.type:
            warnings.warn(f"device '{wanted}' is not available, training on {model.device}", stacklevel=2)
        eval_env = type(model)._wrap_env(evaluation_env(config), monitor_wrapper=False)
        on_error.callback(eval_env.close)
        assert config.eval_every is not None, "made explicit by completed()"
        assert config.checkpoint_every is not None, "likewise"
        evaluations = Evaluations(
            eval_env,
            every=config.eval_every,
            episodes=config.eval_episodes,
            seed=derived_seed(config.seed, "selection"),
            folder=home,
        )
        kept = [evaluations, *callbacks]
        checkpoints = Checkpoints(home, every=config.checkpoint_every, callbacks=kept, resumed=checkpoint)
        run = Run(home, config, model, callbacks, evaluations, checkpoints, lock)
        if checkpoint is None:
            dump(config, home / CONFIG)
            run._note("running")
        on_error.pop_all()
    return run


def train(config: RunConfig, folder: str | Path = "runs", callbacks: Sequence[BaseCallback] = ()) -> Run:
    """Train as ``config`` says; see :func:`prepare` and :meth:`Run.learn`.

    :param config: the configuration
    :param folder: folder of all runs
    :param callbacks: callbacks besides the configuration's; for those that take images, the configuration's ``env_kwargs``
        need ``render_mode="rgb_array"``
    """
    run = prepare(config, folder)
    run.learn(callbacks)
    return run


@contextmanager
def _threads(n: int, model: Any = None) -> Iterator[None]:
    """Let torch, and what else ``model`` may compute with, use ``n`` threads inside the block."""
    before = th.get_num_threads()
    th.set_num_threads(n)
    undecided = getattr(model, "n_threads", n) is None
    if undecided:
        model.n_threads = n
    try:
        yield
    finally:
        th.set_num_threads(before)
        if undecided:
            model.n_threads = None
