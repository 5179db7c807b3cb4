"""What makes all six strict where Stable-Baselines3 is lenient: model files, ``load`` arguments, environments' output."""

import io
import json
import pathlib
import pickle
import tempfile
import traceback
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from inspect import signature
from os import chmod, replace, umask
from typing import Any, ClassVar, TypeVar, get_args

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, TensorDict
from stable_baselines3.common.vec_env import VecEnv

from spinup_plugins.errors import ConfigError, EnvFault, ModelFileError, nearest

__all__ = ["DropIn", "choice"]

SelfDropIn = TypeVar("SelfDropIn", bound="DropIn")

Path = str | pathlib.Path | io.BufferedIOBase


def choice(name: str, value: Any, literal: Any) -> None:
    """Raise :class:`ConfigError` unless ``value`` is one of the ``Literal``'s."""
    valid = get_args(literal)
    if value not in valid:
        raise ConfigError(
            f"{name}={value!r} is not one of {', '.join(map(repr, valid))}{nearest(str(value), map(str, valid))}"
        )


class DropIn(BaseAlgorithm):
    """A Stable-Baselines3 algorithm that says at once, in one line, what is wrong with its input.

    Zips keep Stable-Baselines3's format and refer to none of this package's modules, so they open in either.
    """

    #: the default ``tb_log_name`` of ``learn()``, as Stable-Baselines3 names it
    _log_name: ClassVar[str]
    #: an attribute that this algorithm's files hold and its siblings' do not
    _file_mark: ClassVar[str]
    #: attributes that only other algorithms' files hold
    _foreign_marks: ClassVar[tuple[str, ...]] = ()

    # --- files -------------------------------------------------------------------------------------------------------

    def save(self, path: Path, exclude: Iterable[str] | None = None, include: Iterable[str] | None = None) -> None:
        """Save to a zip as Stable-Baselines3 does, replacing an older file only once the new one is complete.

        :param path: file (``.zip`` is added to a name without suffix) or binary stream
        :param exclude: attributes to leave out besides the default ones
        :param include: attributes to keep although they are left out by default
        """
        if not isinstance(path, (str, pathlib.Path)):
            super().save(path, exclude, include)
            return
        content = io.BytesIO()
        super().save(content, exclude, include)
        target = pathlib.Path(path)
        target = target if target.suffix else target.with_name(f"{target.name}.zip")
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=target.parent, prefix=f".{target.name}.", delete=False) as temporary:
            temporary.write(content.getbuffer())
        mask = umask(0)
        umask(mask)
        chmod(temporary.name, 0o666 & ~mask)
        replace(temporary.name, target)

    @classmethod
    def load(
        cls: type[SelfDropIn],
        path: Path,
        env: GymEnv | None = None,
        device: th.device | str = "auto",
        custom_objects: dict[str, Any] | None = None,
        print_system_info: bool = False,
        force_reset: bool = True,
        **kwargs: Any,
    ) -> SelfDropIn:
        """Load a zip written by this class or by its Stable-Baselines3 / sb3-contrib counterpart.

        As in Stable-Baselines3, parts of a zip are unpickled: open only files whose origin you trust.

        :param path: file or binary stream
        :param env: environment to go on with; ``None`` suffices for ``predict``
        :param device: device to put the parameters on
        :param custom_objects: replacements for attributes that cannot be deserialised
        :param print_system_info: print the saving and the loading system's versions
        :param force_reset: reset the environment before training goes on
        :param kwargs: attributes to override, by their constructor names
        :return: a new model
        :raises ConfigError: on a keyword that is no attribute of this algorithm
        :raises ModelFileError: on a file that is missing, damaged or another algorithm's
        """
        blank = cls(policy=next(iter(cls.policy_aliases)), env=None, device="cpu", _init_setup_model=False)  # type: ignore[call-arg]
        known = set(signature(cls).parameters) | set(vars(blank))
        for key in kwargs:
            if key not in known:
                raise ConfigError(f"{cls.__name__}.load() got an unknown argument {key!r}{nearest(key, known)}")
        saved = cls._inspect(path)
        try:
            return super().load(
                path,
                env=env,
                device=device,
                custom_objects=custom_objects,
                print_system_info=print_system_info,
                force_reset=force_reset,
                **{**cls._adopt(saved), **kwargs},
            )
        except (pickle.UnpicklingError, zipfile.BadZipFile, zlib.error, EOFError, KeyError) as exc:
            raise ModelFileError(f"cannot load {_name(path)}: damaged content ({exc})") from exc

    @classmethod
    def _inspect(cls, path: Path) -> dict[str, Any]:
        """Check that ``path`` is an undamaged zip of this algorithm; return its attributes as JSON holds them."""
        if isinstance(path, (str, pathlib.Path)):
            path = pathlib.Path(path)
            if not path.exists() and not path.suffix:
                path = path.with_name(f"{path.name}.zip")
        try:
            with zipfile.ZipFile(path) as archive:
                damaged = archive.testzip()
                if damaged is not None:
                    raise ModelFileError(f"cannot load {_name(path)}: {damaged!r} inside it is damaged")
                if "data" not in archive.namelist():
                    raise ModelFileError(f"cannot load {_name(path)}: not a Stable-Baselines3 model (it holds no 'data')")
                data = json.loads(archive.read("data"))
        except OSError as exc:
            raise ModelFileError(f"cannot load {_name(path)}: {exc.strerror or exc}") from exc
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as exc:
            raise ModelFileError(f"cannot load {_name(path)}: not a complete zip file ({exc})") from exc
        except ValueError as exc:
            raise ModelFileError(f"cannot load {_name(path)}: its 'data' is not JSON ({exc})") from exc
        if not isinstance(data, dict) or cls._file_mark not in data or any(mark in data for mark in cls._foreign_marks):
            raise ModelFileError(f"cannot load {_name(path)}: another algorithm than {cls.__name__} wrote it")
        return data

    @classmethod
    def _adopt(cls, saved: dict[str, Any]) -> dict[str, Any]:
        """Arguments under which a counterpart's file goes on training as it did there."""
        return {}

    def set_parameters(
        self, load_path_or_dict: str | TensorDict, exact_match: bool = True, device: th.device | str = "auto"
    ) -> None:
        """Set parameters in place, all or none: what does not fit leaves the model as it was.

        :param load_path_or_dict: zip, or state dicts by name as ``get_parameters`` returns them
        :param exact_match: require every parameter of every module
        :param device: device to read onto
        """
        before = deepcopy(self.get_parameters())
        try:
            super().set_parameters(load_path_or_dict, exact_match, device)
        except Exception:
            super().set_parameters(before)  # type: ignore[arg-type]  # SB3 annotates its own return too narrowly
            raise

    # --- environments ------------------------------------------------------------------------------------------------

    def _setup_learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        reset_num_timesteps: bool = True,
        tb_log_name: str = "run",
        progress_bar: bool = False,
    ) -> tuple[int, BaseCallback]:
        result = super()._setup_learn(total_timesteps, callback, reset_num_timesteps, tb_log_name, progress_bar)
        assert self._last_obs is not None, "set by the reset above"
        self._check_finite(self._last_obs)
        return result

    def _check_finite(self, observations: Any, rewards: Any = None) -> None:
        """Raise :class:`EnvFault` where a step or reset returned a NaN, an infinity or another shape than its space."""
        parts: dict[str, tuple[Any, spaces.Space[Any] | None]] = {"reward": (rewards, None)} if rewards is not None else {}
        if isinstance(observations, dict):
            assert isinstance(self.observation_space, spaces.Dict)
            parts |= {f"observation[{k!r}]": (v, self.observation_space[k]) for k, v in observations.items()}
        else:
            parts["observation"] = (observations, self.observation_space)
        for part, (values, space) in parts.items():
            if space is not None and values.shape[1:] != space.shape:
                raise EnvFault(
                    f"{_env_name(self.env, 0)} returned {part} of shape {values.shape[1:]} at timestep"
                    f" {self.num_timesteps}, its space is {space}"
                )
            # A sum is NaN or infinite whenever an entry is, and costs one pass without a temporary.
            if values.dtype.kind == "f" and not np.isfinite(values.sum()):
                rows = np.flatnonzero(~np.isfinite(values.reshape(len(values), -1)).all(axis=1))
                if len(rows):
                    raise EnvFault(
                        f"{_env_name(self.env, int(rows[0]))} returned NaN or infinity in its {part}"
                        f" at timestep {self.num_timesteps}"
                    )

    @contextmanager
    def _named_faults(self) -> Iterator[None]:
        """Turn a vec-env's failure to store an observation, which names neither environment nor space, into one that does."""
        try:
            yield
        except ValueError as error:
            if traceback.extract_tb(error.__traceback__)[-1].name != "_save_obs":
                raise
            raise EnvFault(
                f"{_env_name(self.env, 0)} returned an observation that does not fit its space {self.observation_space}"
                f" at timestep {self.num_timesteps} ({error})"
            ) from error


def _name(path: Path | pathlib.Path) -> str:
    return repr(str(path)) if isinstance(path, (str, pathlib.Path)) else "the given stream"


def _env_name(env: VecEnv | None, index: int) -> str:
    """``environment 'CartPole-v1' (number 0)``, as far as the vec-env knows."""
    try:
        spec = env.get_attr("spec", index)[0] if env is not None else None
    except AttributeError:
        spec = None
    return f"environment {spec.id!r} (number {index})" if spec is not None else f"environment number {index}"
