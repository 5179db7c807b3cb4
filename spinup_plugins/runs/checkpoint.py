"""Everything that a run goes on from: saved every so often, put back bit for bit.

A checkpoint is made between two rollouts. It holds what Stable-Baselines3's zip does, and what that leaves out: replay
buffer, generators, matrices of gSDE, statistics of wrappers, callbacks' and logger's books, and the current episode of every
environment, which is played again (:mod:`spinup_plugins.envs.tape`). The run that goes on from it is the one that was
interrupted. Parts of it are unpickled, as of a zip: resume only run folders whose origin you trust.
"""

import io
import pickle
import random
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from math import inf
from pathlib import Path
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import cloudpickle  # type: ignore[import-untyped]
import numpy as np
import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.buffers import BaseBuffer, ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.distributions import StateDependentNoiseDistribution
from stable_baselines3.common.logger import CSVOutputFormat, Logger
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper
from stable_baselines3.her.her_replay_buffer import HerReplayBuffer

from spinup_plugins.atomic import replacing
from spinup_plugins.envs.tape import Episode, EpisodeTape
from spinup_plugins.errors import ConfigError, ModelFileError
from spinup_plugins.runs.files import BEST, CHECKPOINT, MODEL, VECNORMALIZE, one_line

__all__ = ["Checkpoint", "Checkpoints", "read_checkpoint"]

FORMAT = 2
"""Changes whenever older checkpoints cannot be read any more."""
SPARSE = 1 << 20
"""Bytes from which on the zeros at an array's end are left out: what a replay buffer does not hold yet."""
_OTHERS = (BaseAlgorithm, BaseCallback, VecEnv, Logger, ModuleType, Path, io.IOBase)
"""Not part of the state of what refers to them."""
_CODE = (FunctionType, BuiltinFunctionType, MethodType, partial, type)
"""Likewise."""


@dataclass(frozen=True)
class Checkpoint:
    """The state of a run between two rollouts.

    :param num_timesteps: environment steps taken, summed over the environments
    :param seconds: wall time that training has taken
    :param model: Stable-Baselines3's zip
    :param action_space: pickled with its generator, from which random actions are drawn
    :param replay_buffer: with its transitions; None for an on-policy algorithm
    :param wrappers: attributes of the ``VecEnvWrapper``s, the outermost first
    :param episodes: of each environment; None where they have no tapes
    :param generators: states of the global generators
    :param noise: gSDE's matrices, by the order of the policy's modules
    :param callbacks: attributes of each callback and of those inside it
    :param logger: what is recorded and not written yet, and ``progress.csv`` so far
    :param files: content of the run's other files that belong to this point
    :param format: :data:`FORMAT`
    """

    num_timesteps: int
    seconds: float
    model: bytes
    action_space: bytes
    replay_buffer: ReplayBuffer | None
    wrappers: list[bytes]
    episodes: list[Episode] | None
    generators: dict[str, Any]
    noise: list[dict[str, Any]]
    callbacks: list[bytes]
    logger: dict[str, Any]
    files: dict[str, bytes]
    format: int = FORMAT


def read_checkpoint(folder: Path) -> Checkpoint:
    """Read a run's checkpoint.

    :param folder: run folder
    :raises ConfigError: there is none
    :raises ModelFileError: it is damaged, or another version's
    """
    file = folder / CHECKPOINT
    try:
        with file.open("rb") as stream:
            checkpoint = pickle.load(stream)
    except FileNotFoundError:
        raise ConfigError(f"'{folder}' has no {CHECKPOINT} to resume from") from None
    except Exception as error:  # unpickling can raise anything
        raise ModelFileError(f"'{file}' is damaged, or of another version: {one_line(error)}") from error
    if not isinstance(checkpoint, Checkpoint) or checkpoint.format != FORMAT:
        raise ModelFileError(f"'{file}' is no checkpoint of this version")
    return checkpoint


class Checkpoints(BaseCallback):
    """Writes a run's checkpoint every so many timesteps, and begins by going back to one.

    It stands after the callbacks whose books it keeps.

    :param folder: run folder
    :param every: timesteps between two of them; 0 for none
    :param callbacks: whose attributes are part of the state
    :param resumed: where to go on from; None begins at the beginning
    """

    def __init__(
        self, folder: Path, *, every: int, callbacks: Sequence[BaseCallback], resumed: Checkpoint | None = None
    ) -> None:
        super().__init__()
        self.folder, self.every, self.callbacks, self.resumed = folder, every, callbacks, resumed
        self.due: float = every or inf
        self.rollouts, self.aligned = 0, 1
        self.before = 0.0 if resumed is None else resumed.seconds
        self.began = time.perf_counter()
        self.went_back: Callable[[], None] = lambda: None
        """Called once everything is as it was."""

    @property
    def seconds(self) -> float:
        """Wall time of training, that before an interruption included."""
        return self.before + time.perf_counter() - self.began

    def _on_training_start(self) -> None:
        self.began = time.perf_counter()
        if self.resumed is not None:
            self.due = self._next(self.resumed.num_timesteps)
            _restore(self.model, self.resumed, self.callbacks, self.folder)
        if isinstance(self.model, OnPolicyAlgorithm):
            # Its loop counts rollouts from 0 again, and logs after each so many (100 in A2C).
            self.aligned = self.locals.get("log_interval") or 1

    def _on_rollout_start(self) -> None:
        aligned = self.rollouts % self.aligned == 0
        self.rollouts += 1
        if self.resumed is not None:
            # Up to here the rollout has drawn what it had drawn when the checkpoint was made.
            _restore_noise(self.model, self.resumed.noise)
            _set_generators(self.resumed.generators)
            # They have heard of this rollout's start twice.
            _restore_callbacks(self.model, self.callbacks, self.resumed.callbacks)
            self.resumed = None
            self.went_back()
        if self.model.num_timesteps >= self.due and aligned:
            self.due = self._next(self.model.num_timesteps)
            try:
                self._write()
            except Exception as error:
                self.due = inf
                warnings.warn(f"no checkpoints in '{self.folder}' from here on: {one_line(error)}", stacklevel=1)

    def update_locals(self, locals_: dict[str, Any]) -> None:
        """Nothing: steps do not matter, and it would be done in each."""

    def on_step(self) -> bool:
        """Nothing, likewise."""
        return True

    def _on_step(self) -> bool:
        return True

    def _next(self, steps: int) -> float:
        return (steps // self.every + 1) * self.every if self.every else inf

    def _write(self) -> None:
        checkpoint = _capture(self.model, self.callbacks, self.folder, self.seconds)
        with replacing(self.folder / CHECKPOINT) as temporary, temporary.open("wb") as file:
            _Pickler(file).dump(checkpoint)


# --- capture ---------------------------------------------------------------------------------------------------------


def _capture(model: BaseAlgorithm, callbacks: Sequence[BaseCallback], folder: Path, seconds: float) -> Checkpoint:
    env = model.get_env()
    assert env is not None, "it is training"
    zipped, parts = io.BytesIO(), _parts(model)
    model.save(zipped)
    kept = (f"{BEST}{MODEL}", f"{BEST}{VECNORMALIZE}")
    return Checkpoint(
        num_timesteps=model.num_timesteps,
        seconds=seconds,
        model=zipped.getvalue(),
        action_space=cloudpickle.dumps(model.action_space),
        replay_buffer=getattr(model, "replay_buffer", None),
        wrappers=[_attributes(wrapper, {}) for wrapper in _wrappers(env)],
        episodes=env.env_method("episode") if _has_tapes(env) else None,
        generators=_generators(),
        noise=[_exploration(each) for each in _distributions(model)],
        callbacks=[_attributes(each, parts) for callback in callbacks for each in _tree(callback)],
        logger={**{name: getattr(model.logger, name) for name in _PENDING}, "csv": _csv_text(model.logger)},
        files={name: (folder / name).read_bytes() for name in kept if (folder / name).is_file()},
    )


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    """Leaves out the zeros at the end of large arrays."""

    def reducer_override(self, obj: Any) -> Any:
        if type(obj) is np.ndarray and obj.nbytes >= SPARSE and obj.dtype.kind in "biuf" and obj.flags.c_contiguous:
            filled = np.flatnonzero(obj.reshape(len(obj), -1).view(np.uint8).any(axis=1))
            rows = int(filled[-1]) + 1 if len(filled) else 0
            if rows < len(obj):
                return _padded, (obj[:rows], obj.shape)  # no copy, which may be more than there is memory for
        return super().reducer_override(obj)


def _padded(rows: np.ndarray[Any, Any], shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    whole = np.zeros(shape, dtype=rows.dtype)
    whole[: len(rows)] = rows
    return whole


class _StatePickler(cloudpickle.Pickler):  # type: ignore[misc]
    """Refers to the model's parts by their names, so that what points to one does so again afterwards.

    :param file: where to
    :param parts: of the model
    """

    def __init__(self, file: io.BytesIO, parts: dict[str, Any]) -> None:
        super().__init__(file)
        self.names = {id(part): name for name, part in parts.items()}

    def persistent_id(self, obj: Any) -> str | None:
        return self.names.get(id(obj))


class _StateUnpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, parts: dict[str, Any]) -> None:
        super().__init__(file)
        self.parts = parts

    def persistent_load(self, pid: Any) -> Any:
        return self.parts[pid]


def _parts(model: BaseAlgorithm) -> dict[str, Any]:
    """Return what callbacks may hold on to of a model, by name."""
    parts = {name: value for name, value in vars(model).items() if isinstance(value, (th.nn.Module, BaseBuffer))}
    parts |= {f"policy.{name}": value for name, value in model.policy.named_modules() if name}
    return parts | {f"policy.{name}": value for name, value in model.policy.named_parameters()}


def _attributes(thing: Any, parts: dict[str, Any]) -> bytes:
    """Pickle those attributes of an object that are data of its own, together, since they may share some.

    :param thing: the object
    :param parts: of the model
    """
    kept = {}
    for name, value in vars(thing).items():
        inside = list(value) if isinstance(value, (list, tuple)) else []
        if name in ("locals", "globals", "class_attributes") or isinstance(value, _CODE):
            continue
        if not any(isinstance(each, _OTHERS) for each in (value, *inside)):
            kept[name] = value
    try:
        return _pickled(kept, parts)
    except Exception:  # a file, a lock, a function's closure: part of this process, not of the state
        return _pickled({name: value for name, value in kept.items() if _can_be_pickled(value, parts)}, parts)


def _pickled(value: Any, parts: dict[str, Any]) -> bytes:
    file = io.BytesIO()
    _StatePickler(file, parts).dump(value)
    return file.getvalue()


def _can_be_pickled(value: Any, parts: dict[str, Any]) -> bool:
    try:
        _pickled(value, parts)
    except Exception:
        return False
    return True


def _put_back(thing: Any, attributes: bytes, parts: dict[str, Any]) -> None:
    vars(thing).update(_StateUnpickler(io.BytesIO(attributes), parts).load())


def _tree(callback: BaseCallback, above: tuple[BaseCallback, ...] = ()) -> Iterator[BaseCallback]:
    """Walk through a callback and those inside it."""
    yield callback
    for name, value in sorted(vars(callback).items()):
        for each in value if isinstance(value, (list, tuple)) else (value,):
            if name != "parent" and isinstance(each, BaseCallback) and each not in (callback, *above):
                yield from _tree(each, (callback, *above))


def _wrappers(env: VecEnv) -> Iterator[VecEnvWrapper]:
    while isinstance(env, VecEnvWrapper):
        yield env
        env = env.venv


def _has_tapes(env: VecEnv) -> bool:
    return all(env.env_is_wrapped(EpisodeTape))


def _generators() -> dict[str, Any]:
    cuda = th.cuda.get_rng_state_all() if th.cuda.is_available() else []
    return {"python": random.getstate(), "numpy": np.random.get_state(), "torch": th.get_rng_state(), "cuda": cuda}


def _set_generators(states: dict[str, Any]) -> None:
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])
    th.set_rng_state(states["torch"])
    if states["cuda"] and th.cuda.is_available():
        th.cuda.set_rng_state_all(states["cuda"])


def _distributions(model: BaseAlgorithm) -> list[StateDependentNoiseDistribution]:
    found = (getattr(module, "action_dist", None) for module in model.policy.modules())
    return [each for each in found if isinstance(each, StateDependentNoiseDistribution)]


def _exploration(distribution: StateDependentNoiseDistribution) -> dict[str, Any]:
    """The matrices that are drawn once in a while; they carry gradients' graphs that nobody follows."""
    matrices = {name: getattr(distribution, name, None) for name in ("exploration_mat", "exploration_matrices")}
    return {name: value.detach().clone() for name, value in matrices.items() if isinstance(value, th.Tensor)}


_PENDING = ("name_to_value", "name_to_count", "name_to_excluded")


def _csv_formats(logger: Logger) -> Iterator[CSVOutputFormat]:
    return (each for each in logger.output_formats if isinstance(each, CSVOutputFormat))


def _csv_text(logger: Logger) -> str:
    for each in _csv_formats(logger):
        each.file.flush()
        each.file.seek(0)
        text: str = each.file.read()
        return text
    return ""


# --- restore ---------------------------------------------------------------------------------------------------------


def _restore(model: BaseAlgorithm, checkpoint: Checkpoint, callbacks: Sequence[BaseCallback], folder: Path) -> None:
    """Put everything back except what the beginning of a rollout changes."""
    env = model.get_env()
    assert env is not None, "it is training"
    loaded = type(model).load(io.BytesIO(checkpoint.model), env=env, device=model.device, force_reset=False)
    env.unwrapped._reset_seeds()  # those that loading gave it for the next reset
    loaded.action_space = pickle.loads(checkpoint.action_space)
    loaded.set_logger(model.logger)
    vars(model).clear()
    vars(model).update(vars(loaded))
    vars(model).pop("_chosen_tier", None)
    if checkpoint.replay_buffer is not None:
        model.replay_buffer = checkpoint.replay_buffer  # type: ignore[attr-defined]
        if isinstance(checkpoint.replay_buffer, HerReplayBuffer):
            checkpoint.replay_buffer.set_env(env)
    model.start_time = time.time_ns() - int(checkpoint.seconds * 1e9)
    _restore_logger(model.logger, checkpoint.logger)
    for name, content in checkpoint.files.items():
        with replacing(folder / name) as temporary:
            temporary.write_bytes(content)
    _restore_callbacks(model, callbacks, checkpoint.callbacks)
    together = _play(env, checkpoint.episodes)
    for wrapper, attributes in zip(_wrappers(env), checkpoint.wrappers, strict=True):
        _put_back(wrapper, attributes, {})
    if not together:
        _begin_episodes(model, env)


def _restore_callbacks(model: BaseAlgorithm, callbacks: Sequence[BaseCallback], states: list[bytes]) -> None:
    kept = [each for callback in callbacks for each in _tree(callback)]
    if len(kept) != len(states):
        raise ConfigError(f"the checkpoint was made with {len(states)} callbacks, nested ones included, not {len(kept)}")
    parts = _parts(model)
    for callback, attributes in zip(kept, states, strict=True):
        _put_back(callback, attributes, parts)


def _play(env: VecEnv, episodes: list[Episode] | None) -> bool:
    """Bring environments to where they were; tell whether all are there."""
    if episodes is None or not _has_tapes(env):
        warnings.warn(
            "these environments cannot be brought back to where they were: they begin new episodes, from which on the run"
            " differs from the one that was interrupted",
            stacklevel=2,
        )
        return False
    there = [env.env_method("replay", episode, indices=index)[0] for index, episode in enumerate(episodes)]
    if not all(there):
        warnings.warn(
            f"environment number {there.index(False)} does not repeat its episode: all begin new ones, from which on the run"
            " differs from the one that was interrupted",
            stacklevel=2,
        )
    return all(there)


def _begin_episodes(model: BaseAlgorithm, env: VecEnv) -> None:
    """Reset all environments, as if a time limit had cut their episodes."""
    env.seed((model.seed or 0) + model.num_timesteps)
    model._last_obs = env.reset()  # type: ignore[assignment]
    model._last_episode_starts = np.ones(env.num_envs, dtype=bool)
    if model._vec_normalize_env is not None:
        model._last_original_obs = model._vec_normalize_env.get_original_obs()
    noise = getattr(model, "action_noise", None)
    if noise is not None:
        noise.reset()
    buffer = getattr(model, "replay_buffer", None)
    if isinstance(buffer, ReplayBuffer) and buffer.size():
        newest = (buffer.pos - 1) % buffer.buffer_size
        buffer.dones[newest] = 1.0
        buffer.timeouts[newest] = buffer.handle_timeout_termination
    if isinstance(buffer, HerReplayBuffer):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # says that it is done, which has been said
            buffer.truncate_last_trajectory()


def _restore_noise(model: BaseAlgorithm, noise: list[dict[str, Any]]) -> None:
    for distribution, matrices in zip(_distributions(model), noise, strict=True):
        for name, value in matrices.items():
            setattr(distribution, name, value.to(model.device))


def _restore_logger(logger: Logger, state: dict[str, Any]) -> None:
    for name in _PENDING:
        pending = getattr(logger, name)
        pending.clear()
        pending.update(state[name])
    for each in _csv_formats(logger):
        each.file.seek(0)
        each.file.truncate()
        each.file.write(state["csv"])
        each.file.flush()
        header = state["csv"].partition("\n")[0]
        each.keys = header.split(each.separator) if header else []
