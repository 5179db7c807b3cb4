"""What makes all six strict where Stable-Baselines3 is lenient: model files, ``load`` arguments, environments' output."""

import io
import json
import pathlib
import traceback
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from copy import deepcopy
from math import inf, isnan
from numbers import Integral, Real
from textwrap import shorten
from typing import Any, ClassVar, TypeVar, get_args

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, ConvertCallback
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.torch_layers import NatureCNN
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, PyTorchObs, Schedule, TensorDict
from stable_baselines3.common.vec_env import SubprocVecEnv, VecEnv
from torch.utils._pytree import tree_map_only

from spinup_plugins.algorithms.compilation import check_arguments, compiled, picklable
from spinup_plugins.atomic import replacing
from spinup_plugins.engine import numpy_ops
from spinup_plugins.engine.networks import Unsupported, in_torch_order, optimizers
from spinup_plugins.engine.observations import refuse_nan
from spinup_plugins.engine.replay import RESET_STEP
from spinup_plugins.engine.threads import computing_threads, widest_layer
from spinup_plugins.engine.tiers import Bound, EngineName, Tier, choose, native
from spinup_plugins.envs.convert import AnyEnv, as_vec_env
from spinup_plugins.envs.gymnasium_vec import GymnasiumVecEnv
from spinup_plugins.errors import (
    ConfigError,
    DivergedError,
    EnvError,
    ModelFileError,
    ModelFileMissingError,
    SpinupError,
    UnknownNameError,
    nearest,
)

__all__ = [
    "DropIn",
    "choice",
    "frozen",
    "fused",
    "has_listeners",
    "has_reset_steps",
    "mean",
    "steps_taken",
]

#: smallest and largest sensible values of constructor arguments, wherever an algorithm has them
RANGES: dict[str, tuple[float, float]] = {
    **dict.fromkeys(("gamma", "gae_lambda", "tau"), (0, 1)),
    **dict.fromkeys(("n_steps", "batch_size", "buffer_size", "n_epochs", "policy_delay", "q_steps"), (1, inf)),
    **dict.fromkeys(("cg_max_steps", "sub_sampling_factor", "target_update_interval"), (1, inf)),
    **dict.fromkeys(("train_v_iters", "n_critic_updates", "line_search_max_iter", "update_after"), (0, inf)),
    "n_threads": (1, inf),
    "seed": (0, 2**32 - 1),
    "gradient_steps": (-1, inf),
    **dict.fromkeys(("target_kl", "cg_damping", "cg_init_std", "cg_residual_tol", "max_grad_norm"), (0, inf)),
    **dict.fromkeys(("action_noise", "target_policy_noise", "target_noise_clip"), (0, inf)),
    **dict.fromkeys(("learning_rate", "vf_lr", "q_lr", "clip_range", "vf_coef", "critic_loss_coef"), (0, inf)),
    **dict.fromkeys(("ent_coef", "target_entropy"), (-inf, inf)),
}

#: those of them that count something
COUNTS = {name for name, (low, _) in RANGES.items() if low == 1} | {
    *("train_v_iters", "n_critic_updates", "line_search_max_iter", "update_after", "gradient_steps", "seed"),
}

#: tiers that a process has told of
_told: set[str] = set()

finite = (native() or numpy_ops).finite

Method = TypeVar("Method", bound=Callable[..., Any])

SelfDropIn = TypeVar("SelfDropIn", bound="DropIn")

Path = str | pathlib.Path | io.BufferedIOBase


def choice(name: str, value: Any, literal: Any) -> None:
    """Raise :class:`ConfigError` unless ``value`` is one of the ``Literal``'s."""
    valid = get_args(literal)
    if value not in valid:
        raise ConfigError(
            f"{name}={value!r} is not one of {', '.join(map(repr, valid))}{nearest(str(value), map(str, valid))}"
        )


def has_reset_steps(env: VecEnv) -> bool:
    """Whether some steps, marked in their info, only reset an environment (:mod:`spinup_plugins.envs.gymnasium_vec`)."""
    return bool(getattr(env.unwrapped, "reset_steps", False))


def mean(scalars: Sequence[Any]) -> float:
    """Mean of tensors, which only now leave the device, or of the engine's numbers."""
    if isinstance(scalars[0], th.Tensor):
        return th.stack(list(scalars)).mean().item()
    return sum(scalars) / len(scalars)  # type: ignore[no-any-return]


def steps_taken(infos: Iterable[dict[str, Any]]) -> int:
    """Return how many environments took a step, rather than reset."""
    return sum(not info.get(RESET_STEP, False) for info in infos)


@contextmanager
def fused(optimizer: th.optim.Optimizer) -> Iterator[None]:
    """Let Adam step all parameters in one call, where it can; the optimiser's own options are as before afterwards."""
    group = optimizer.param_groups[0]
    able = type(optimizer) is th.optim.Adam and len(optimizer.param_groups) == 1 and group["fused"] is None
    able = able and not group["foreach"] and not group["differentiable"] and not isinstance(group["lr"], th.Tensor)
    for p in group["params"] if able else ():
        # It steps through memory, and takes what belongs to an entry for equally far on everywhere without looking.
        orders = {each.stride() for each in (p, p.grad, optimizer.state.get(p, {}).get("exp_avg")) if each is not None}
        dense = p.is_contiguous() or p.is_contiguous(memory_format=th.channels_last)
        able = able and dense and len(orders) == 1 and p.dtype == th.float32 and not p.is_meta
    if not able:
        yield
        return
    group["fused"] = True
    try:
        yield
    finally:
        group["fused"] = None


@contextmanager
def frozen(parameters: Sequence[th.nn.Parameter]) -> Iterator[None]:
    """Let losses pass ``parameters`` as constants: a compiled loss has gradients of all others, asked for or not."""
    for p in parameters:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in parameters:
            p.requires_grad_(True)


def has_listeners(callback: BaseCallback) -> bool:
    """Whether anybody hears of steps: what ``learn()`` makes of no callback, or of an empty list, hears nothing."""
    if type(callback) is ConvertCallback:
        return callback.callback is not None
    return type(callback) is not CallbackList or any(map(has_listeners, callback.callbacks))


class DropIn(BaseAlgorithm):
    """A Stable-Baselines3 algorithm that says at once, in one line, what is wrong with its input.

    Zips keep Stable-Baselines3's format and refer to none of this package's modules, so they open in either.
    """

    #: an attribute that this algorithm's files hold and its siblings' do not; every file holds the default
    _file_mark: ClassVar[str] = "policy_class"
    #: attributes that only other algorithms' files hold
    _foreign_marks: ClassVar[tuple[str, ...]] = ()
    #: threads to compute with, ``None`` to choose
    n_threads: int | None
    #: whether losses are compiled on torch's tier, or arguments of ``torch.compile``
    compile: bool | dict[str, Any] = False

    @classmethod
    def _log_name(cls) -> str:
        """Name a run in TensorBoard as Stable-Baselines3 does: after the algorithm, also where a program subclasses it."""
        marked = (base.__name__ for base in cls.__mro__ if "_file_mark" in vars(base) and base is not DropIn)
        return next(marked, cls.__name__)

    # --- tiers -------------------------------------------------------------------------------------------------------

    @property
    def engine(self) -> str:
        """The tier that the model acts and learns on: ``"native"``, ``"numpy"`` or ``"torch"``.

        Set one of these or ``"auto"`` to change it at any time; parameters and optimisers' state stay as they are.
        """
        return self._tier().name

    @engine.setter
    def engine(self, request: EngineName) -> None:
        choice("engine", request, EngineName)
        self.__dict__["engine"] = request
        self.__dict__.pop("_chosen_tier", None)

    @property
    def engine_reason(self) -> str:
        """Why the model is on no faster tier than it is; empty on the fastest."""
        return self._tier().reason

    def _tier(self, *, acting: bool = False) -> Tier:
        """Return the tier, chosen anew when the policy or where its parameters are has changed.

        :param acting: look only at what ``predict`` depends on, in a third of the time
        """
        chosen: tuple[Tier, Any] | None = self.__dict__.get("_chosen_tier")
        policy = getattr(self, "policy", None)
        bound: Any = None if chosen is None else chosen[0].bound
        same = bound is None or (bound.acting if acting else bound.wiring).unchanged
        if chosen is None or chosen[1] is not policy or not same:
            request = self.__dict__.get("engine", "auto")
            tier = Tier("torch", "no policy yet", None)
            try:
                if policy is not None:
                    tier = choose(request, self._bind_own, widest=widest_layer(policy))
            finally:
                if policy is not None and tier.bound is None:
                    in_torch_order(policy)
            chosen = (tier, policy)
            self.__dict__["_chosen_tier"] = chosen
        return chosen[0]

    def __getstate__(self) -> dict[str, Any]:
        # Copies choose anew: they have other parameters.
        return {key: value for key, value in self.__dict__.items() if key != "_chosen_tier"}

    #: methods that the engine stands in for; where a subclass has its own, torch runs them
    _replaced: ClassVar[tuple[str, ...]] = ()

    def _bind_own(self, ops: Any) -> Bound:
        cls = type(self)
        ours = next(base for base in cls.__mro__ if base.__module__.startswith("spinup_plugins.algorithms."))
        for name in self._replaced:
            if getattr(cls, name) is not getattr(ours, name):
                raise Unsupported(f"{cls.__name__}, which has its own {name}()")
        return self._bind(ops)

    def _threads(self, batch: int) -> AbstractContextManager[int]:
        """Compute with ``n_threads``, or with as many as are fastest for minibatches of ``batch`` rows."""
        return computing_threads(self._tier().name, self.n_threads, widest=widest_layer(self.policy), batch=batch)

    def _compiled(self, method: Method) -> Method:
        """Return ``method``, one from tensors to losses, compiled where ``compile`` says so."""
        return method if not self.compile else compiled(self, method, {} if self.compile is True else self.compile)

    def _order_convolutions(self) -> None:
        """Keep kernels, and Adam's moments of them, in the order (out, height, width, in), in which CPUs convolve faster.

        Only Stable-Baselines3's own network, for what follows in another could depend on the order.
        """
        modules = list(self.policy.modules()) if self.device.type == "cpu" else []
        states: list[Any] = [optimizer.state for optimizer in optimizers(self.policy)]
        for extractor in [m for m in modules if type(m) is NatureCNN]:
            for kernel in [m.weight for m in extractor.cnn if isinstance(m, th.nn.Conv2d)]:
                kernel.data = kernel.data.contiguous(memory_format=th.channels_last)
                for state in [each[kernel] for each in states if kernel in each]:
                    for name, value in state.items():
                        if isinstance(value, th.Tensor) and value.shape == kernel.shape:
                            state[name] = value.contiguous(memory_format=th.channels_last)

    def _order_images(self, observations: PyTorchObs) -> PyTorchObs:
        """Put a minibatch of images in the order of such kernels, once rather than in every pass."""
        if not isinstance(observations, th.Tensor) or observations.ndim != 4 or observations.device.type != "cpu":
            return observations
        own = self.policy.features_extractor_class is NatureCNN
        return observations.contiguous(memory_format=th.channels_last) if own else observations

    def _bind(self, ops: Any) -> Bound:
        """Put the policy on the engine with one tier's primitives, or raise :class:`~.engine.networks.Unsupported`."""
        raise Unsupported(f"the algorithm {type(self).__name__}")

    def predict(
        self,
        observation: np.ndarray[Any, Any] | dict[str, np.ndarray[Any, Any]],
        state: tuple[np.ndarray[Any, Any], ...] | None = None,
        episode_start: np.ndarray[Any, Any] | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray[Any, Any], tuple[np.ndarray[Any, Any], ...] | None]:
        """Choose actions for one observation or a batch of them.

        :param observation: of the observation space's shape, or with a batch axis in front
        :param state: passed through; the policies have none
        :param episode_start: not used; the policies have no state
        :param deterministic: the most likely actions rather than drawn ones
        :return: actions within the action space's bounds, and ``state``
        :raises EnvError: on an observation with NaN
        """
        bound = self._tier(acting=True).bound
        actions = None if bound is None else bound.predict(observation, deterministic)
        if actions is None:
            for part in observation.values() if isinstance(observation, dict) else [observation]:
                if isinstance(part, np.ndarray) and part.dtype.kind == "f":
                    refuse_nan(part)
            return super().predict(observation, state, episode_start, deterministic)
        return actions, state

    def _excluded_save_params(self) -> list[str]:
        lost = [] if isinstance(self.compile, bool) or picklable(self.compile) else ["compile"]
        return [*super()._excluded_save_params(), "_chosen_tier", *lost]

    def _check_ranges(self) -> None:
        """Raise :class:`ConfigError` for a number that cannot be meant, no such tier, or arguments that compiling has not."""
        choice("engine", self.__dict__.get("engine", "auto"), EngineName)
        if isinstance(self.compile, dict):
            check_arguments(type(self).__name__, self.compile)
        for name, (low, high) in RANGES.items():
            value: Any = getattr(self, name, None)
            number = isinstance(value, Real)
            # Python's own random numbers take no seed of NumPy's types.
            if name in COUNTS and value is not None and not isinstance(value, int if name == "seed" else Integral):
                raise ConfigError(f"{type(self).__name__}: {name}={value!r} must be a whole number, an int")
            if number and not low <= value <= high:
                limits = f"at least {low}" if high == inf else f"between {low} and {high}"
                raise ConfigError(f"{type(self).__name__}: {name}={value!r} must be {'a number' if low == -inf else limits}")

    def _scheduled(self, name: str, schedule: Schedule) -> float:
        """Return what a schedule gives now; :class:`ConfigError` for less than nothing.

        A last rollout may go beyond the steps that were asked for, where Stable-Baselines3 takes what the schedule gives.
        """
        value = float(schedule(self._current_progress_remaining))
        if not 0.0 <= value < inf and (self._current_progress_remaining >= 0.0 or isnan(value)):
            raise ConfigError(
                f"{type(self).__name__}: {name}'s schedule gives {value:g} at timestep {self.num_timesteps};"
                " it must be at least 0"
            )
        return value

    def _diverged(self, what: str) -> DivergedError:
        """What to raise where training has come to NaN or infinity."""
        return DivergedError(
            f"{type(self).__name__}: {what} after {self._n_updates} updates, at timestep {self.num_timesteps}:"
            " training has diverged (try a smaller learning_rate, or smaller rewards)"
        )

    def _parameters_finite(self) -> bool:
        bound = self._tier().bound
        if bound is not None:
            return all(finite(memory.array) for memory in bound.memories)
        sums = [p.detach().sum() for p in self.policy.parameters()]
        return not sums or bool(th.isfinite(th.stack(sums)).all())

    def _get_policy_from_name(self, policy_name: str) -> type[BasePolicy]:
        if policy_name not in self.policy_aliases:
            raise UnknownNameError(
                f"Policy {policy_name} unknown{nearest(policy_name, self.policy_aliases)};"
                f" {type(self).__name__} has {', '.join(self.policy_aliases)}"
            )
        return self.policy_aliases[policy_name]

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
        target = pathlib.Path(path)
        target = target if target.suffix else target.with_name(f"{target.name}.zip")
        target.parent.mkdir(parents=True, exist_ok=True)
        # Stable-Baselines3 would leave a file that it opened itself open when saving fails.
        with replacing(target) as temporary, temporary.open("wb") as file:
            super().save(file, exclude, include)

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
        :raises ModelFileError: on a file that is missing (then also a ``FileNotFoundError``), damaged or another
            algorithm's
        """
        blank = cls(  # type: ignore[call-arg]
            policy=next(iter(cls.policy_aliases)),
            env=None,
            device="cpu",
            policy_kwargs=kwargs.get("policy_kwargs"),
            _init_setup_model=False,
        )
        saved = cls._inspect(path)
        known = set(vars(blank)) | set(saved)
        for key in kwargs:
            if key not in known | {"stats_window_size"}:
                raise ConfigError(f"{cls.__name__}.load() got an unknown argument {key!r}{nearest(key, known)}")
        kwargs = cls._adopt(saved) | kwargs
        if "policy_kwargs" in kwargs:  # compared with the file's, which has what the constructor adds
            kwargs["policy_kwargs"] = blank.policy_kwargs
        if "stats_window_size" in kwargs:
            kwargs["_stats_window_size"] = kwargs.pop("stats_window_size")
        try:
            return super().load(path, env, device, custom_objects, print_system_info, force_reset, **kwargs)
        except (SpinupError, AssertionError, MemoryError):
            raise
        except Exception as error:
            fault: Exception | None = error
            if env is not None or kwargs:
                # Only what fails without the caller's environment and arguments too is the file's own fault.
                fault = None
                try:
                    super().load(path, device=device, custom_objects=custom_objects)
                except AssertionError:  # HER asks for an environment
                    pass
                except Exception as plain:
                    fault = plain
            if fault is None:
                raise
            text = f"cannot load {_name(path)}: {type(fault).__name__}: {fault}"
            raise ModelFileError(shorten(text, 300)) from fault

    @classmethod
    def _inspect(cls, path: Path) -> dict[str, Any]:
        """Check that ``path`` is an undamaged zip of this algorithm; return its attributes as JSON holds them."""
        if isinstance(path, (str, pathlib.Path)):
            path = pathlib.Path(path)
            with_suffix = path.with_name(f"{path.name}.zip")
            path = with_suffix if with_suffix.exists() and not path.exists() else path
        try:
            with zipfile.ZipFile(path) as archive:
                damaged = archive.testzip()
                if damaged is not None:
                    raise ModelFileError(f"cannot load {_name(path)}: {damaged!r} inside it is damaged")
                if "data" not in archive.namelist():
                    first = min((each.header_offset for each in archive.infolist()), default=0)
                    if first:  # the directory found is that of a zip inside, whose outer end is missing
                        raise zipfile.BadZipFile(f"a whole one begins at byte {first:,}")
                    raise ModelFileError(f"cannot load {_name(path)}: not a Stable-Baselines3 model (it holds no 'data')")
                data = json.loads(archive.read("data"))
        except ModelFileError:
            raise
        except FileNotFoundError as exc:
            raise ModelFileMissingError(f"cannot load {_name(path)}: no such file") from exc
        except OSError as exc:
            raise ModelFileError(f"cannot load {_name(path)}: {exc.strerror or exc}") from exc
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as exc:
            raise ModelFileError(f"cannot load {_name(path)}: not a complete zip file ({exc})") from exc
        except ValueError as exc:
            raise ModelFileError(f"cannot load {_name(path)}: its 'data' is not JSON ({exc})") from exc
        if not isinstance(data, dict) or not cls._wrote(data):
            raise ModelFileError(f"cannot load {_name(path)}: another algorithm than {cls.__name__} wrote it")
        return data

    @classmethod
    def _wrote(cls, saved: dict[str, Any]) -> bool:
        """Whether a file with these attributes is this algorithm's or its counterpart's."""
        return cls._file_mark in saved and not any(mark in saved for mark in cls._foreign_marks)

    @classmethod
    def _adopt(cls, saved: dict[str, Any]) -> dict[str, Any]:
        """Arguments under which a counterpart's file goes on training as it did there."""
        return {}

    def get_parameters(self) -> dict[str, dict[str, Any]]:
        """Return the state dicts of networks and optimisers by name; also what a file holds.

        Where weights are kept in another order (transposed by the engine, or convolutions' kernels), these are copies in
        torch's usual one: some of torch's own kernels, fused Adam's for one, take a parameter and its moments for equally
        ordered without looking.
        """
        found: dict[str, dict[str, Any]] = tree_map_only(th.Tensor, th.Tensor.contiguous, super().get_parameters())
        return found

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
        finally:
            self._order_convolutions()

    # --- environments ------------------------------------------------------------------------------------------------

    @staticmethod
    def _wrap_env(env: AnyEnv, verbose: int = 0, monitor_wrapper: bool = True) -> VecEnv:
        """Take any kind of environment, where Stable-Baselines3 takes Gymnasium's ``Env`` and its own ``VecEnv``."""
        if not isinstance(env, VecEnv):
            env = as_vec_env(env, monitor=monitor_wrapper)
            if verbose >= 1:
                print(f"Wrapping the env in a {type(env).__name__}.")
        if isinstance(env.unwrapped, GymnasiumVecEnv):
            env.unwrapped.reset_steps_known = True
        _require_zero_starts(env)
        return BaseAlgorithm._wrap_env(env, verbose, monitor_wrapper)

    def _setup_learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        reset_num_timesteps: bool = True,
        tb_log_name: str = "run",
        progress_bar: bool = False,
    ) -> tuple[int, BaseCallback]:
        assert self.env is not None, "You must set the environment before calling learn()"
        result = super()._setup_learn(total_timesteps, callback, reset_num_timesteps, tb_log_name, progress_bar)
        tier = self._tier()
        if self.verbose >= 1 and tier.name not in _told:
            _told.add(tier.name)
            print(f"Computing on the {tier.name} tier" + (f": {tier.reason}" if tier.reason else ""))
        assert self._last_obs is not None, "set by the reset above"
        self._check_finite(self._last_obs)
        return result

    def _check_finite(self, observations: Any, rewards: Any = None, *, first: int = 0) -> None:
        """Raise :class:`EnvError` where a step or reset returned a NaN, an infinity or another shape than its space.

        :param observations: (N, …), or a dict of such
        :param rewards: (N,)
        :param first: number of the first row's environment
        """
        if (
            isinstance(observations, np.ndarray)
            and observations.shape[1:] == self.observation_space.shape
            and (observations.dtype.kind != "f" or finite(observations))
            and (rewards is None or rewards.dtype.kind != "f" or finite(rewards))
        ):
            return
        parts: dict[str, tuple[Any, spaces.Space[Any] | None]] = {"reward": (rewards, None)} if rewards is not None else {}
        if isinstance(observations, dict):
            assert isinstance(self.observation_space, spaces.Dict)
            parts |= {f"observation[{k!r}]": (v, self.observation_space[k]) for k, v in observations.items()}
        else:
            parts["observation"] = (observations, self.observation_space)
        for part, (values, space) in parts.items():
            if space is not None and values.shape[1:] != space.shape:
                raise EnvError(
                    f"{_env_name(self.env, first)} returned {part} of shape {values.shape[1:]} at timestep"
                    f" {self.num_timesteps}, its space is {space}"
                )
            if values.dtype.kind != "f":
                continue
            # A sum is NaN or infinite whenever an entry is, and costs one pass without a temporary.
            with np.errstate(over="ignore", invalid="ignore"):
                suspicious = not np.isfinite(values.sum())
            if suspicious:
                rows = np.flatnonzero(~np.isfinite(values.reshape(len(values), -1)).all(axis=1))
                if len(rows) and not self._parameters_finite():  # whose actions have made it so
                    raise self._diverged("the policy's parameters are NaN or infinite")
                if len(rows):
                    raise EnvError(
                        f"{_env_name(self.env, first + int(rows[0]))} returned NaN or infinity in its {part}"
                        f" at timestep {self.num_timesteps}"
                    )

    def _check_final(self, observation: Any, number: int) -> None:
        """Do the same with the last observation of the episode that environment ``number`` has just ended."""
        if isinstance(observation, dict):
            self._check_finite({key: np.asarray(value)[None] for key, value in observation.items()}, first=number)
        else:
            self._check_finite(np.asarray(observation)[None], first=number)

    @contextmanager
    def _named_faults(self) -> Iterator[None]:
        """Say when, in which environment and space a vec-env could not store an observation, or lost a process.

        Likewise say that training has diverged where a distribution could not be made.
        """
        try:
            yield
        except EnvError as error:
            if "timestep" in str(error):
                raise
            raise EnvError(f"{error}, at timestep {self.num_timesteps}") from error
        except (EOFError, ConnectionResetError, BrokenPipeError) as error:
            vec_env = None if self.env is None else self.env.unwrapped
            if isinstance(vec_env, SubprocVecEnv):
                vec_env.waiting = False  # or close() would wait for answers that never come
            elif not isinstance(vec_env, GymnasiumVecEnv):
                raise
            raise EnvError("the process of an environment died; its own message stands above") from error
        except Exception as error:
            for frame, _ in traceback.walk_tb(error.__traceback__):
                # DummyVecEnv's, SubprocVecEnv's, SyncVectorEnv's
                if frame.f_code.co_name in ("_save_obs", "_stack_obs", "concatenate"):
                    raise EnvError(
                        f"{_env_name(self.env, frame.f_locals.get('env_idx'))} returned an observation that does not"
                        f" fit its space {self.observation_space} at timestep {self.num_timesteps} ({error})"
                    ) from error
            if type(error) is ValueError and str(error).startswith("Expected parameter "):  # torch.distributions'
                raise self._diverged("the policy's distribution is none") from error
            raise


def _name(path: Path | pathlib.Path) -> str:
    return repr(str(path)) if isinstance(path, (str, pathlib.Path)) else "the given stream"


def _require_zero_starts(env: VecEnv) -> None:
    """Refuse whole numbers that do not begin at 0: policies and one-hot vectors number from there, whatever the space says."""
    parts = (
        env.observation_space.spaces.values() if isinstance(env.observation_space, spaces.Dict) else [env.observation_space]
    )
    for wrapper, space in (("TransformAction", env.action_space), *(("TransformObservation", part) for part in parts)):
        if isinstance(space, (spaces.Discrete, spaces.MultiDiscrete)) and np.any(space.start):
            raise EnvError(f"{space} does not begin at 0, as Stable-Baselines3 takes it to: see gymnasium.wrappers.{wrapper}")


def _env_name(env: VecEnv | None, index: int | None) -> str:
    """``environment 'CartPole-v1' (number 0)``, as far as the vec-env knows."""
    if index is None:
        return "one of the environments"
    try:
        spec = env.get_attr("spec", index)[0] if env is not None else None
    except AttributeError:
        spec = None
    return f"environment {spec.id!r} (number {index})" if spec is not None else f"environment number {index}"
