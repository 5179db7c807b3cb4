"""The contract that every algorithm of the registry keeps, this package's and any plugin's.

A plugin's own tests need one line: ``check_algorithm(MyAlgorithm)``.
"""

import inspect
import io
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from gymnasium.vector.utils import batch_space
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import KVWriter, Logger
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from spinup_plugins.registry import AlgorithmSpec, choose_policy
from spinup_plugins.schema import constructor_parameters

__all__ = ["ToyEnv", "check_algorithm"]

VECTOR = spaces.Box(-1.0, 1.0, (3,), np.float32)

OBSERVATION_SPACES: dict[str, spaces.Space[Any]] = {
    "Box": VECTOR,
    "Discrete": spaces.Discrete(4),
    "MultiDiscrete": spaces.MultiDiscrete([2, 3]),
    "MultiBinary": spaces.MultiBinary(3),
    "Dict": spaces.Dict({"vector": VECTOR, "flag": spaces.Discrete(2)}),
    "image": spaces.Box(0, 255, (36, 36, 1), np.uint8),
}
"""What an algorithm may observe; each kind is tried if the algorithm has a policy for it."""

ACTION_SPACES: dict[str, spaces.Space[Any]] = {
    "Box": spaces.Box(-2.0, 2.0, (2,), np.float32),
    "Discrete": spaces.Discrete(3),
    "MultiDiscrete": spaces.MultiDiscrete([2, 3]),
    "MultiBinary": spaces.MultiBinary(2),
}
"""What an algorithm may act on; it either learns to, or refuses."""

SMALL = {
    "batch_size": 16,
    "buffer_size": 1000,
    "learning_starts": 16,
    "n_critic_updates": 2,
    "n_epochs": 2,
    "train_v_iters": 2,
}
"""Sizes that make a check quick, for constructors that know them."""

ROLLOUT = 32
"""Length of an on-policy algorithm's rollouts while it is checked."""


class ToyEnv(gym.Env[Any, Any]):
    """Random observations and rewards in any spaces, so that any algorithm can be run for a few steps.

    Episodes of 8 steps end in turn by termination and by truncation.

    :param observation_space: what it returns
    :param action_space: what it accepts
    """

    length = 8

    def __init__(self, observation_space: spaces.Space[Any], action_space: spaces.Space[Any]) -> None:
        self.observation_space = observation_space
        self.action_space = action_space
        self.steps = 0
        self.episodes = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin an episode; a seed decides everything that follows."""
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        self.steps = 0
        self.episodes += 1
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Take a step.

        :raises ValueError: ``action`` is not of the action space
        """
        if not self.action_space.contains(action):
            raise ValueError(f"{action!r} is not in {self.action_space}")
        self.steps += 1
        over = self.steps == self.length
        terminated = over and self.episodes % 2 == 0
        return self.observation_space.sample(), float(self.np_random.normal()), terminated, over and not terminated, {}


def check_algorithm(
    cls: type[BaseAlgorithm],
    *,
    spec: AlgorithmSpec | None = None,
    env: gym.Env[Any, Any] | None = None,
    steps: int = 2 * ROLLOUT,
    strict: bool = True,
    kwargs: Mapping[str, Any] | None = None,
) -> None:
    """Check that an algorithm keeps the promises that callers of any Stable-Baselines3 algorithm rely on.

    The docstrings of :class:`_Promises`'s methods are the promises.

    :param cls: the algorithm's class
    :param spec: its specification; then it must act on the spaces listed there, and on no others
    :param env: environment to learn in besides random ones, such as one that a special algorithm needs
    :param steps: timesteps of one ``learn``; enough for two updates
    :param strict: whether to check, too, what Stable-Baselines3 itself does not promise: errors for misspelled
        arguments of ``load`` and for unreadable files, and documentation of every argument
    :param kwargs: constructor arguments that make learning quick, over those of :data:`SMALL`
    :raises AssertionError: a promise is broken; the message quotes it
    """
    promises = _Promises(cls, spec, env, steps, dict(kwargs or {}))
    for promise in [*_PROMISES, *(_STRICT_PROMISES if strict else ())]:
        with _quoted(cls, promise.__doc__):
            promise(promises)


@contextmanager
def _quoted(cls: type, promise: str | None) -> Iterator[None]:
    """Turn any error into an AssertionError that quotes the promise."""
    try:
        yield
    except Exception as error:
        raise AssertionError(f"{cls.__name__} breaks a promise: {promise} {type(error).__name__}: {error}") from error


@dataclass
class _Promises:
    cls: type[BaseAlgorithm]
    spec: AlgorithmSpec | None
    env: gym.Env[Any, Any] | None
    steps: int
    kwargs: dict[str, Any]

    # --- helpers -----------------------------------------------------------------------------------------------------

    @cached_property
    def acts_on(self) -> dict[str, spaces.Space[Any]]:
        """The action spaces that a model can be built for."""
        able = {
            name: space
            for name, space in ACTION_SPACES.items()
            if not _refuses(partial(self.build, action_space=space), named=name)
        }
        _require(bool(able), "it acts on none")
        return able

    @cached_property
    def trained(self) -> BaseAlgorithm:
        """A model that has learned a little, shared by promises that do not change it."""
        return self.build().learn(self.steps)

    def toy(
        self,
        observation_space: spaces.Space[Any] = VECTOR,
        action_space: spaces.Space[Any] | None = None,
        n_envs: int = 1,
    ) -> VecEnv:
        action_space = action_space if action_space is not None else next(iter(self.acts_on.values()))
        return DummyVecEnv([lambda: Monitor(ToyEnv(observation_space, action_space)) for _ in range(n_envs)])

    def build(self, *, seed: int = 0, env: gym.Env[Any, Any] | VecEnv | None = None, **toy: Any) -> BaseAlgorithm:
        """Build a small model for ``env``, or for a toy environment."""
        env = env if env is not None else self.toy(**toy)
        policy = choose_policy(self.cls, env.observation_space)
        accepted = constructor_parameters(self.cls)
        small: dict[str, Any] = {name: value for name, value in SMALL.items() if name in accepted}
        if issubclass(self.cls, OnPolicyAlgorithm):
            small["n_steps"] = ROLLOUT
        small["policy_kwargs"] = {}
        policy_accepts = constructor_parameters(self.cls.policy_aliases[policy])
        if "net_arch" in policy_accepts:
            small["policy_kwargs"]["net_arch"] = [16]
        if policy.startswith("Cnn") and "features_extractor_kwargs" in policy_accepts:
            small["policy_kwargs"]["features_extractor_kwargs"] = {"features_dim": 16}
        arguments = {"policy": policy, "env": env, "seed": seed, "device": "cpu", **small, **self.kwargs}
        return self.cls(**arguments)

    def same_actions(self, one: BaseAlgorithm, other: BaseAlgorithm) -> bool:
        observations = _sample(self.trained.observation_space, 16)
        first, second = (model.predict(observations, deterministic=True)[0] for model in (one, other))
        return np.array_equal(first, second)

    # --- promises ----------------------------------------------------------------------------------------------------

    def is_an_algorithm(self) -> None:
        """It is a BaseAlgorithm whose policies go by names."""
        _require(isinstance(self.cls, type) and issubclass(self.cls, BaseAlgorithm), "it is no subclass of it")
        _require(bool(self.cls.policy_aliases), "policy_aliases is empty")

    def has_the_constructor(self) -> None:
        """Its constructor takes policy and env first, and the arguments that every algorithm shares."""
        names = list(inspect.signature(self.cls).parameters)
        _require(names[:2] == ["policy", "env"], f"it begins with {', '.join(names[:2])}")
        known = {*constructor_parameters(self.cls), "_init_setup_model"}
        shared = {"policy_kwargs", "tensorboard_log", "verbose", "seed", "device", "_init_setup_model"}
        _require(shared <= known, f"it lacks {', '.join(sorted(shared - known))}")
        needed = [each.name for each in constructor_parameters(self.cls).values() if each.required]
        others = [name for name in needed if name != "policy"]
        _require(not others, f"it requires {', '.join(others)}")
        policy = next(iter(self.cls.policy_aliases))
        self.cls(policy=policy, env=None, device="cpu", _init_setup_model=False)  # type: ignore[call-arg]  # as load does

    def refuses_or_learns_actions(self) -> None:
        """It learns on every action space it supports and refuses the others in one line that names the space."""
        if self.spec is not None:
            listed = set(self.spec.action_spaces)
            _require(listed == set(self.acts_on), f"listed are {sorted(listed)}, it acts on {sorted(self.acts_on)}")
        for name, space in self.acts_on.items():
            model = self.build(action_space=space).learn(ROLLOUT)
            action, _ = model.predict(VECTOR.sample())
            _require(space.contains(action), f"predict() returned {action!r} for {name}")

    def learns_from_observations(self) -> None:
        """It learns from every kind of observation that it has a policy for."""
        for name, space in OBSERVATION_SPACES.items():
            try:
                choose_policy(self.cls, space)
            except ValueError:
                continue
            model = self.build(observation_space=space).learn(ROLLOUT)
            single, _ = model.predict(_sample(space, None))
            batch, _ = model.predict(_sample(space, 5))
            shape = model.action_space.shape
            _require(np.shape(single) == shape, f"one {name} observation gave actions of shape {np.shape(single)}")
            _require(np.shape(batch) == (5, *(shape or ())), f"five {name} gave actions of shape {np.shape(batch)}")

    def learns_in_the_given_env(self) -> None:
        """It learns in the environment that the caller gave."""
        if self.env is not None:
            self.build(env=self.env).learn(self.steps)

    def learns_in_parallel(self) -> None:
        """learn() returns the model itself and counts the steps of all environments."""
        model = self.build(n_envs=2)
        _require(model.learn(self.steps) is model, "learn() returned something else")
        first = model.num_timesteps
        _require(first >= self.steps, f"it stopped after {first} of {self.steps} timesteps")
        model.learn(self.steps, reset_num_timesteps=False)
        _require(model.num_timesteps >= first + self.steps, "with reset_num_timesteps=False it did not go on counting")

    def names_its_logs(self) -> None:
        """learn() takes Stable-Baselines3's arguments and names its TensorBoard logs after the class or a base of it."""
        wanted = ("total_timesteps", "callback", "log_interval", "tb_log_name", "reset_num_timesteps", "progress_bar")
        accepted = inspect.signature(self.cls.learn).parameters
        missing = [name for name in wanted if name not in accepted]
        passes_on = any(each.kind is each.VAR_KEYWORD for each in accepted.values())
        _require(passes_on or not missing, f"learn() lacks {', '.join(missing)}")
        model = self.build()
        names: list[Any] = []
        setup_learn = model._setup_learn

        def spy(*args: Any, **kwargs: Any) -> Any:
            names.append(inspect.signature(setup_learn).bind(*args, **kwargs).arguments.get("tb_log_name"))
            return setup_learn(*args, **kwargs)

        model._setup_learn = spy  # type: ignore[method-assign]
        model.learn(1)
        _require(names[0] in {each.__name__ for each in self.cls.__mro__}, f"their default name is {names[0]!r}")

    def logs_progress(self) -> None:
        """It logs steps, speed, recent returns and updates under Stable-Baselines3's keys."""
        recorder = _Recorder()
        model = self.build()
        model.set_logger(Logger(None, [recorder]))
        model.learn(self.steps, log_interval=1)
        wanted = {"time/total_timesteps", "time/fps", "rollout/ep_rew_mean", "rollout/ep_len_mean", "train/n_updates"}
        _require(wanted <= recorder.keys, f"it lacks {', '.join(sorted(wanted - recorder.keys))}")

    def calls_callbacks(self) -> None:
        """Callbacks see each step's results and are told of rollouts, and one that returns False ends training."""
        watcher = _Watcher(stop_after=ROLLOUT + 4)
        model = self.build().learn(1_000_000, callback=watcher)
        wanted = {"new_obs", "rewards", "dones", "infos", "actions"}
        _require(wanted <= watcher.seen, f"their locals lack {', '.join(sorted(wanted - watcher.seen))}")
        events = ["training_start", "rollout_start", "rollout_end", "training_end"]
        missing = [event for event in events if event not in watcher.events]
        _require(not missing, f"they were not told of {', '.join(missing)}")
        _require(
            model.num_timesteps == watcher.stop_after,
            f"told to stop at {watcher.stop_after} timesteps, it stopped at {model.num_timesteps}",
        )

    def predicts_deterministically(self) -> None:
        """With deterministic=True, predict() gives the same actions again."""
        _require(self.same_actions(self.trained, self.trained), "they differ")

    def repeats_by_seed(self) -> None:
        """The same seed gives bitwise equal parameters, another seed gives others."""
        again, other = (self.build(seed=seed).learn(self.steps) for seed in (0, 1))
        _require(_equal(self.trained, again), "two models of one seed differ")
        _require(not _equal(self.trained, other), "models of two seeds are equal")

    def saves_and_loads(self) -> None:
        """A saved model loads from a path or stream with bitwise equal parameters and actions, and goes on learning."""
        with tempfile.TemporaryDirectory() as folder:
            for target in (str(Path(folder, "text")), Path(folder, "path.zip"), io.BytesIO()):
                self.trained.save(target)
                if isinstance(target, io.BytesIO):
                    target.seek(0)
                loaded = self.cls.load(target, device="cpu")
                kind = type(target).__name__
                _require(_equal(self.trained, loaded), f"parameters from a {kind} differ")
                _require(self.same_actions(self.trained, loaded), f"actions from a {kind} differ")
            resumed = self.cls.load(Path(folder, "text.zip"), env=self.toy(), device="cpu")
        before = resumed.num_timesteps
        _require(before == self.trained.num_timesteps, f"num_timesteps became {before}")
        resumed.learn(self.steps, reset_num_timesteps=False)
        _require(resumed.num_timesteps >= before + self.steps, "it did not go on counting")

    def sets_parameters(self) -> None:
        """What get_parameters() returns makes another model equal, and a name that is none of them is refused."""
        model = self.build(seed=1)
        model.set_parameters(self.trained.get_parameters())  # type: ignore[arg-type]  # SB3 annotates it too narrowly
        _require(_equal(self.trained, model), "the models differ")
        nonsense: Any = {"nonsense": {}}
        _require(_refuses(partial(model.set_parameters, nonsense), "nonsense"), "'nonsense' was accepted")

    def changes_environments(self) -> None:
        """set_env() and load() take an environment of the same spaces, and refuse one of others."""
        model = self.build()
        model.set_env(self.toy())
        model.learn(self.steps)
        other = self.toy(observation_space=spaces.Box(-1.0, 1.0, (7,), np.float32))
        _require(_refuses(partial(model.set_env, other)), "set_env() took one with other observations")
        stream = io.BytesIO()
        model.save(stream)
        stream.seek(0)
        _require(_refuses(partial(self.cls.load, stream, env=other)), "load() took one with other observations")

    def documents_arguments(self) -> None:
        """Every constructor argument has its ':param:' line."""
        missing = [each.name for each in constructor_parameters(self.cls).values() if not each.doc]
        _require(not missing, f"there is none for {', '.join(missing)}")

    def refuses_misspelled_arguments(self) -> None:
        """load() raises an error that names an argument which does not exist."""
        stream = io.BytesIO()
        self.trained.save(stream)
        stream.seek(0)
        _require(_refuses(partial(self.cls.load, stream, sead=1), "sead"), "'sead' was accepted")

    def refuses_unreadable_files(self) -> None:
        """load() raises one line that names the file when it is missing, empty, truncated or something else."""
        with tempfile.TemporaryDirectory() as folder:
            whole = Path(folder, "whole.zip")
            self.trained.save(whole)
            content = whole.read_bytes()
            Path(folder, "empty.zip").touch()
            Path(folder, "text.zip").write_text("not a zip file", encoding="utf-8")
            Path(folder, "truncated.zip").write_bytes(content[: len(content) // 2])
            with zipfile.ZipFile(Path(folder, "foreign.zip"), "w") as archive:
                archive.writestr("readme", "of something else")
            for name in ("missing", "empty", "text", "truncated", "foreign"):
                file = Path(folder, f"{name}.zip")
                _require(_refuses(partial(self.cls.load, file), file.name), f"the {name} file was accepted")


_PROMISES: list[Callable[[_Promises], None]] = [
    _Promises.is_an_algorithm,
    _Promises.has_the_constructor,
    _Promises.learns_in_parallel,
    _Promises.names_its_logs,
    _Promises.logs_progress,
    _Promises.calls_callbacks,
    _Promises.predicts_deterministically,
    _Promises.repeats_by_seed,
    _Promises.saves_and_loads,
    _Promises.sets_parameters,
    _Promises.changes_environments,
    _Promises.refuses_or_learns_actions,
    _Promises.learns_from_observations,
    _Promises.learns_in_the_given_env,
]
_STRICT_PROMISES: list[Callable[[_Promises], None]] = [
    _Promises.documents_arguments,
    _Promises.refuses_misspelled_arguments,
    _Promises.refuses_unreadable_files,
]


class _Recorder(KVWriter):
    """Collects the keys that are logged."""

    def __init__(self) -> None:
        self.keys: set[str] = set()

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        self.keys |= key_values.keys()

    def close(self) -> None:
        """Nothing to close."""


class _Watcher(BaseCallback):
    """Notes events and the locals seen at every step; stops training after ``stop_after`` timesteps."""

    def __init__(self, stop_after: int) -> None:
        super().__init__()
        self.stop_after = stop_after
        self.events: list[str] = []
        self.seen: set[str] = set()

    def _on_training_start(self) -> None:
        self.events.append("training_start")

    def _on_rollout_start(self) -> None:
        self.events.append("rollout_start")

    def _on_step(self) -> bool:
        self.seen = self.seen & self.locals.keys() if self.n_calls > 1 else {*self.locals}
        return self.num_timesteps < self.stop_after

    def _on_rollout_end(self) -> None:
        self.events.append("rollout_end")

    def _on_training_end(self) -> None:
        self.events.append("training_end")


def _require(condition: bool, otherwise: str) -> None:
    if not condition:
        raise AssertionError(otherwise)


def _refuses(call: Callable[[], Any], named: str = "") -> bool:
    """Whether ``call`` raises an error, which must be one line that contains ``named``."""
    try:
        call()
    except Exception as error:
        line = str(error).strip()
        _require(bool(line) and "\n" not in line and named in line, f"an error says {error!r}")
        return True
    return False


def _sample(space: spaces.Space[Any], n: int | None) -> Any:
    """Return ``n`` observations as a batch, or a single one; always the same."""
    space = space if n is None else batch_space(space, n)
    space.seed(0)
    return space.sample()


def _tensors(value: Any) -> Iterator[Any]:
    """Yield the tensors and numbers within nested state dicts, in order."""
    if isinstance(value, Mapping):
        for key in sorted(value, key=str):
            yield from _tensors(value[key])
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from _tensors(each)
    else:
        yield value


def _equal(one: BaseAlgorithm, other: BaseAlgorithm) -> bool:
    """Whether all parameters and optimisers of two models are bitwise equal."""
    pairs = zip(_tensors(one.get_parameters()), _tensors(other.get_parameters()), strict=True)
    return all(th.equal(a, b) if isinstance(a, th.Tensor) else a == b for a, b in pairs)
