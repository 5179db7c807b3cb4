"""How fast ours learns beside Stable-Baselines3's (sb3-contrib's): whole ``learn()`` in turns, in one process."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from itertools import cycle, islice
from math import ceil
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple, TypeAlias

import gymnasium as gym
import numpy as np
import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from threadpoolctl import threadpool_limits
from torch import nn

from spinup_plugins import registry, schema
from spinup_plugins.algorithms import on_policy
from spinup_plugins.algorithms.common import DropIn
from spinup_plugins.atomic import replacing, write_text
from spinup_plugins.engine.tiers import native
from spinup_plugins.environments import make_env
from spinup_plugins.envs.shared import usable_cores
from spinup_plugins.errors import ConfigError, UnknownNameError
from spinup_plugins.runs.files import one_line
from spinup_plugins.runs.stepping import Ratio

__all__ = [
    "ALGORITHMS",
    "CASES",
    "ENGINES",
    "PHASES",
    "SWEEPS",
    "Case",
    "Measured",
    "Prediction",
    "Results",
    "Startup",
    "SweepPoint",
    "case",
    "machine",
    "measure",
    "measure_predict",
    "measure_startup",
    "microseconds",
    "pyplot",
    "ratio_text",
    "sweep",
]

ALGORITHMS = ("vpg", "trpo", "ppo", "ddpg", "td3", "sac")
"""What can be measured: what has a peer. VPG's is its own torch tier."""

ENGINES = ("torch", "numpy", "native")
"""Our tiers."""

PHASES = ("act", "step", "store", "learn", "other")
"""What a step of training is made of: choosing actions, the environment's step, keeping it (and targets), updates, others."""

SWEEPS: dict[str, tuple[int, ...]] = {
    "n_envs": (1, 2, 4, 8, 16, 32, 64),
    "width": (64, 128, 256, 512, 1024),
    "batch_size": (64, 128, 256, 512, 1024, 2048, 4096),
}
"""What speed and memory are measured against, and where."""

BUFFER_SIZE = 100_000
"""Of replay buffers: several models' of a million transitions each do not fit everywhere, and nothing here fills them."""


class Case(NamedTuple):
    """What is measured.

    :param algo: one of :data:`ALGORITHMS`
    :param env: Gymnasium id
    :param n_envs: number of copies
    :param threads: threads that each side may compute with
    :param kwargs: constructor arguments over the defaults
    :param asked: the ratio to the peer that is aimed at, by tier
    """

    algo: str
    env: str
    n_envs: int = 1
    threads: int = 1
    kwargs: Mapping[str, Any] = {}
    asked: Mapping[str, float] = {}

    def __str__(self) -> str:
        threads = "" if self.threads == 1 else f", {self.threads} threads"
        return f"{self.algo} {self.env} x {self.n_envs}{threads}"

    @property
    def settings(self) -> str:
        """What it sets besides defaults, to be read."""
        flat: dict[str, Any] = {}
        for key, value in self.kwargs.items():
            flat |= value if isinstance(value, Mapping) else {key: value}
        return ", ".join(f"{key}={value}" for key, value in flat.items())

    @property
    def peer(self) -> str:
        """Which side the others are compared with."""
        return "torch" if self.algo == "vpg" else "sb3"


def _asked(numpy: float, native: float) -> dict[str, float]:
    return {"numpy": numpy, "native": native}


_WIDE: dict[str, Any] = {"policy_kwargs": {"net_arch": [256, 256]}}
_NARROW: dict[str, Any] = {"policy_kwargs": {"net_arch": [64, 64]}}

CASES = (
    Case("ppo", "HalfCheetah-v5", 1, asked=_asked(6.5, 11)),
    Case("ppo", "HalfCheetah-v5", 8, asked=_asked(5, 6.5)),
    Case("ppo", "CartPole-v1", 1, asked=_asked(11, 28)),
    Case("ppo", "CartPole-v1", 8, asked=_asked(9, 16)),
    Case("trpo", "HalfCheetah-v5", 1, asked=_asked(5, 8)),
    Case("trpo", "HalfCheetah-v5", 8, asked=_asked(3.3, 5)),
    Case("trpo", "CartPole-v1", 1, asked=_asked(8, 16)),
    Case("trpo", "CartPole-v1", 8, asked=_asked(4.2, 8)),
    Case("vpg", "HalfCheetah-v5", kwargs={"n_steps": 4000}, asked=_asked(2.5, 4)),
    Case("sac", "HalfCheetah-v5", asked=_asked(1.8, 2.4)),
    Case("sac", "HalfCheetah-v5", threads=2, asked=_asked(2.2, 2.9)),
    Case("td3", "HalfCheetah-v5", kwargs=_WIDE, asked=_asked(1.8, 2.0)),
    Case("td3", "HalfCheetah-v5", threads=2, kwargs=_WIDE, asked=_asked(2.0, 2.7)),
    Case("ddpg", "HalfCheetah-v5", kwargs=_WIDE, asked=_asked(1.8, 2.0)),
    Case("ddpg", "HalfCheetah-v5", threads=2, kwargs=_WIDE, asked=_asked(2.0, 2.7)),
    Case("sac", "Pendulum-v1", kwargs=_NARROW, asked=_asked(4, 7)),
    Case("td3", "Pendulum-v1", kwargs=_NARROW, asked=_asked(4, 7)),
    Case("ddpg", "Pendulum-v1", kwargs=_NARROW, asked=_asked(4, 7)),
    # Images go by the torch tier.
    Case("ppo", "spinup/MovingImage-v0", kwargs={"n_steps": 128, "n_epochs": 4}, asked={"torch": 1.3}),
    Case("sac", "spinup/BoxImage-v0", kwargs={"batch_size": 64, "buffer_size": 5_000}, asked={"torch": 1.3}),
)
"""What is measured unless something else is asked for: Stable-Baselines3's defaults but for what stands here."""

PREDICT_ASKED = _asked(8, 10)
"""How many times faster ``predict`` is to be, for one observation."""


def case(
    algo: str,
    env: str,
    n_envs: int = 1,
    threads: int = 1,
    *,
    width: Sequence[int] | None = None,
    batch_size: int | None = None,
    others: Mapping[str, Any] | None = None,
) -> Case:
    """Return the case of :data:`CASES`, or one like it.

    :param algo: one of :data:`ALGORITHMS`
    :param env: Gymnasium id
    :param n_envs: number of copies
    :param threads: threads of each side
    :param width: of each hidden layer; None keeps the case's, else the class's default
    :param batch_size: likewise
    :param others: further constructor arguments, as Python objects or plain data
    """
    alike = [each for each in CASES if (each.algo, each.env) == (algo, env)]
    changes: dict[str, Any] = registry.merge_values({}, others or {})
    if width is not None:
        changes = registry.merge_values(changes, {"policy_kwargs": {"net_arch": list(width)}})
    if batch_size is not None:
        changes["batch_size"] = batch_size
    for each in alike:
        if (each.n_envs, each.threads) == (n_envs, threads) and not changes:
            return each
    kwargs = registry.merge_values(alike[0].kwargs if alike else {}, changes)
    return Case(algo, env, n_envs, threads, kwargs)


# --- learning in turns -----------------------------------------------------------------------------------------------


class Floor(NamedTuple):
    """What a step of training cannot take less than.

    :param products: seconds of the bare matrix products of acting and updates, per environment step
    :param environment: seconds of a step of the environment alone
    """

    products: float
    environment: float


class Measured(NamedTuple):
    """How fast the sides of a case learn.

    :param case: what was measured
    :param seconds: per environment step in each round, by side: ``"sb3"`` or a tier
    :param phases: seconds per environment step by phase, by side, from a turn of its own
    :param floor: what no side can be faster than; None where networks are not perceptrons
    :param load: the machine's load average of a minute before
    """

    case: Case
    seconds: dict[str, list[float]]
    phases: dict[str, dict[str, float]]
    floor: Floor | None
    load: float

    @property
    def tiers(self) -> list[str]:
        """Our tiers that were compared."""
        return [side for side in self.seconds if side != self.case.peer]

    def ratio(self, side: str) -> Ratio:
        """How many times faster than the peer a side is."""
        return _ratio(self.seconds[self.case.peer], self.seconds[side])

    @property
    def limit(self) -> float | None:
        """The ratio that a side without any overhead would reach."""
        if self.floor is None:
            return None
        return float(np.median(self.seconds[self.case.peer])) / sum(self.floor)


def measure(
    what: Case,
    engines: Sequence[str] | None = None,
    *,
    rounds: int = 5,
    seconds: float = 1.5,
    progress: Callable[[str], None] = lambda _: None,
) -> Measured:
    """Measure how fast ours learns beside its peer.

    Each side's model is built and warmed up once: past ``learning_starts``, with at least one update. Then ``learn()`` goes on
    in turns of whole rollouts, so that what else the machine does touches all sides alike. Environments stand in the vec-env
    that each side's users get by default.

    :param what: the case
    :param engines: tiers of ours; None takes those that know its policy
    :param rounds: how many turns each side gets
    :param seconds: length of a turn
    :param progress: is told what is measured next
    :raises ConfigError: an argument is out of range, or a tier is not to be had
    :raises UnknownNameError: there is no such environment or algorithm
    """
    _positive(rounds=rounds, seconds=seconds, n_envs=what.n_envs, threads=what.threads)
    load, models = _load(), dict[str, BaseAlgorithm]()
    with ExitStack() as stack:
        stack.enter_context(_threads(what.threads))
        for side in _sides(what, engines):
            progress(f"{what}: building {side}")
            try:
                models[side] = _build(what, side)
            except ConfigError:
                if engines is not None or side == what.peer:
                    raise
                continue  # a tier that does not know the policy
            stack.callback(_closed(models[side]))
        if set(models) == {what.peer}:
            raise ConfigError(f"{what}: no tier is left to compare with {what.peer}")
        steps = {}
        for side, model in models.items():
            progress(f"{what}: warming up {side}")
            steps[side] = _warm_up(model, seconds)
        times: dict[str, list[float]] = {side: [] for side in models}
        for turn in range(rounds):
            for side in _order(models, turn):
                progress(f"{what}: {side}, round {turn + 1} of {rounds}")
                times[side].append(_turn(models[side], steps[side]))
        phases = {}
        for side, model in models.items():
            progress(f"{what}: phases of {side}")
            phases[side] = _phases(model, steps[side])
        progress(f"{what}: its floor")
        products = _products(models[what.peer])
        floor = (
            None if products is None else Floor(_product_seconds(products, seconds), _environment_seconds(what.env, seconds))
        )
    return Measured(what, times, phases, floor, load)


def _sides(what: Case, engines: Sequence[str] | None) -> list[str]:
    for engine in engines or ():
        if engine not in ENGINES:
            raise UnknownNameError(f"no engine is called {engine!r}; there are {', '.join(ENGINES)}")
    ours = [each for each in ENGINES if each != "native" or native() is not None] if engines is None else engines
    return list(dict.fromkeys((what.peer, *ours)))


def _build(what: Case, side: str) -> BaseAlgorithm:
    """Build the model of a side, on the vec-env that its users get by default."""
    ours = side != "sb3"
    spec = registry.get_spec(what.algo if ours else f"sb3:{what.algo}")
    own = registry.get_spec(what.algo).load()
    kwargs = {"seed": 0, "device": "cpu", "verbose": 0, **what.kwargs}
    if issubclass(own, OffPolicyAlgorithm):
        kwargs.setdefault("buffer_size", BUFFER_SIZE)
    schema.resolve(own, kwargs)  # what ours alone has is left out for the peer, but what neither has is an error
    if ours:
        env = make_env(what.env, what.n_envs, seed=0)
        kwargs |= {"engine": side, "n_threads": what.threads}
    else:
        make_env(what.env).close()  # its errors are one line
        env = make_vec_env(what.env, what.n_envs, seed=0)
        known = schema.constructor_parameters(spec.load())
        kwargs = {key: value for key, value in kwargs.items() if key in known}
    try:
        model = registry.build(spec, env, kwargs)
        if ours and isinstance(model, DropIn):
            assert model.engine == side, "or it had raised"  # a tier is chosen when it is first asked for
    except BaseException:
        env.close()
        raise
    return model


def _closed(model: BaseAlgorithm) -> Callable[[], None]:
    assert model.env is not None, "given by _build"
    return model.env.close


def _warm_up(model: BaseAlgorithm, seconds: float) -> int:
    """Learn until updates are under way; return how many steps take so many seconds from there on."""
    if isinstance(model, OffPolicyAlgorithm):
        model.learn(model.learning_starts + 4 * model.n_envs, reset_num_timesteps=False)
        steps = 10 * model.n_envs
    else:
        steps = model.n_steps * model.n_envs  # type: ignore[attr-defined]
        model.learn(steps, reset_num_timesteps=False)
    # What the first call of everything costs is over; one more turn tells the pace.
    return max(model.n_envs, round(seconds / _turn(model, steps)))


def _turn(model: BaseAlgorithm, steps: int) -> float:
    """Go on learning for at least so many steps; return the seconds that each took."""
    before, began = model.num_timesteps, perf_counter()
    model.learn(steps, reset_num_timesteps=False)
    return (perf_counter() - began) / (model.num_timesteps - before)


# --- phases ----------------------------------------------------------------------------------------------------------


def _phases(model: BaseAlgorithm, steps: int) -> dict[str, float]:
    """Go on learning with a clock around the methods that make up each phase; return seconds per environment step.

    A phase that is called within another belongs to that one.
    """
    spent, inside = dict.fromkeys(PHASES, 0.0), False

    def timed(function: Callable[..., Any], phase: str) -> Callable[..., Any]:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            nonlocal inside
            if inside:
                return function(*args, **kwargs)
            inside, began = True, perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                spent[phase] += perf_counter() - began
                inside = False

        return wrapper

    bound: Any = model._tier().bound if isinstance(model, DropIn) else None
    methods: list[tuple[Any, str, str]] = [(model.env, "step", "step"), (model, "train", "learn")]
    if isinstance(model, OffPolicyAlgorithm):
        methods += [(model, "_sample_action", "act"), (model, "_store_transition", "store")]
    else:
        buffer = model.rollout_buffer  # type: ignore[attr-defined]
        # bound is the policy where a tier of ours acts; torch's forward passes go by nn.Module.__call__ to forward.
        methods += [(model.policy, "forward", "act"), (model.policy, "predict_values", "act")]
        methods += [] if bound is None else [(bound, "act", "act"), (bound, "values", "act")]
        methods += [(buffer, "add", "store"), (buffer, "compute_returns_and_advantage", "store")]
        methods += [(model, "_compute_targets", "store"), (on_policy.Rows, "add", "store")]
    with ExitStack() as stack:
        for holder, name, phase in methods:
            if hasattr(holder, name):
                stack.enter_context(_replaced(holder, name, timed(getattr(holder, name), phase)))
        before, began = model.num_timesteps, perf_counter()
        model.learn(steps, reset_num_timesteps=False)
        spent["other"] = perf_counter() - began - sum(spent.values())
    return {phase: seconds / (model.num_timesteps - before) for phase, seconds in spent.items()}


@contextmanager
def _replaced(holder: Any, name: str, value: Any) -> Iterator[None]:
    """Set an attribute of an object or a class, and have it be as before afterwards."""
    absent = object()
    before = vars(holder).get(name, absent)
    setattr(holder, name, value)
    try:
        yield
    finally:
        delattr(holder, name) if before is absent else setattr(holder, name, before)


# --- the floor -------------------------------------------------------------------------------------------------------

_Layers = list[tuple[int, int]]
_Products = Counter[tuple[str, int, int, int]]


def _times(products: _Products, n: float) -> _Products:
    return Counter({key: count * n for key, count in products.items()})


def _forward(layers: _Layers, rows: int) -> _Products:
    """X (rows, in) W (in, out) of each layer."""
    return Counter(("xw", rows, a, b) for a, b in layers)


def _backward(layers: _Layers, rows: int) -> _Products:
    """Xᵀ G for each layer's weights, and G Wᵀ for the input of each but the first."""
    return Counter(("xg", a, rows, b) for a, b in layers) + _through(layers[1:], rows)


def _through(layers: _Layers, rows: int) -> _Products:
    """G (rows, out) Wᵀ for the input of each layer."""
    return Counter(("gw", rows, b, a) for a, b in layers)


def _layers(*modules: nn.Module) -> _Layers | None:
    """Return widths in and out of the linear layers of a perceptron; None for another network."""
    found: _Layers = []
    for module in modules:
        for each in module.modules():
            if isinstance(each, nn.Linear):
                found.append((each.in_features, each.out_features))
            elif any(True for _ in each.parameters(recurse=False)):
                return None
    return found


def _products(model: BaseAlgorithm) -> _Products | None:
    """Return the matrix products that acting and updates need at least, per environment step; None where they are not known.

    :param model: the peer's
    """
    policy: Any = model.policy
    m: Any = model
    if isinstance(model, OffPolicyAlgorithm):
        critics = [_layers(each) for each in policy.critic.q_networks]
        sac = hasattr(policy.actor, "latent_pi")
        heads = [policy.actor.mu, policy.actor.log_std] if sac else []
        actor = _layers(policy.actor.latent_pi) if sac else _layers(policy.actor.mu)
        if actor is None or None in critics or any(type(each) is not nn.Linear for each in heads):
            return None
        if sac:
            actor = [*actor, (policy.actor.mu.in_features, 2 * policy.actor.mu.out_features)]
        critic, n, rows = critics[0] or [], len(critics), m.batch_size
        # the target's actions and values; the critics' step
        update = _forward(actor, rows) + _times(_forward(critic, rows), n)
        update += _times(_forward(critic, rows) + _backward(critic, rows), n)
        # the actor's: SAC goes back only through the critic that is the minimum in a row, TD3 only through the first
        ascent = _forward(actor, rows) + _backward(actor, rows) + _times(_forward(critic, rows), n if sac else 1)
        ascent += _times(_through(critic, ceil(rows / n)), n) if sac else _through(critic, rows)
        update += _times(ascent, 1 / getattr(model, "policy_delay", 1))
        collected = m.train_freq.frequency * m.n_envs
        updates = m.gradient_steps if m.gradient_steps >= 0 else collected
        return _times(update, updates / collected) + _times(_forward(actor, m.n_envs), 1 / m.n_envs)

    if _layers(policy.features_extractor) is None or not hasattr(policy, "action_net"):
        return None
    actor = _layers(policy.mlp_extractor.policy_net, policy.action_net)
    critic = _layers(policy.mlp_extractor.value_net, policy.value_net) or []
    if actor is None or not critic:
        return None
    total = m.n_steps * m.n_envs
    acting = _times(_forward(actor, m.n_envs) + _forward(critic, m.n_envs), m.n_steps)

    def pass_over(layers: _Layers, batch: int, times: int) -> _Products:
        """Forward and backward over all rows, in minibatches."""
        full, rest = divmod(total, batch)
        found = _times(_forward(layers, batch) + _backward(layers, batch), full * times)
        return found + (_times(_forward(layers, rest) + _backward(layers, rest), times) if rest else Counter())

    if hasattr(model, "n_epochs"):  # PPO
        update = pass_over(actor, m.batch_size, m.n_epochs) + pass_over(critic, m.batch_size, m.n_epochs)
    elif hasattr(model, "cg_max_steps"):  # TRPO; a Fisher product is Jᵀ M (J v), J v two products a layer but the first
        rows = total // m.sub_sampling_factor
        fisher = _times(_forward(actor, rows), 2) - _forward(actor[:1], rows) + _backward(actor, rows)
        update = _forward(actor, rows) + _backward(actor, rows) + _times(fisher, m.cg_max_steps) + _forward(actor, rows)
        update += pass_over(critic, m.batch_size, m.n_critic_updates)
    elif hasattr(model, "train_v_iters"):  # VPG
        update = pass_over(actor, total, 1) + _forward(actor, total)
        update += pass_over(critic, m.batch_size or total, m.train_v_iters)
    else:
        return None
    return _times(acting + update, 1 / total)


def _product_seconds(products: _Products, seconds: float) -> float:
    """Return the seconds that the products take, each by torch or NumPy, whichever is faster.

    :param products: how many of each
    :param seconds: to measure for
    """
    return sum(n * _product_time(*key, seconds / len(products) / 2) for key, n in products.items())


def _product_time(kind: str, rows: int, inner: int, columns: int, budget: float) -> float:
    generator = np.random.default_rng(0)
    shapes = {"xw": ((rows, inner), (inner, columns)), "xg": ((inner, rows), (inner, columns))}
    left, right = (
        generator.standard_normal(shape, dtype=np.float32)
        for shape in shapes.get(kind, ((rows, inner), (columns, inner)))  # weights are stored (in, out)
    )
    left, right = left.T if kind == "xg" else left, right.T if kind == "gw" else right
    out = np.empty((rows, columns), np.float32)
    a, b, c = th.from_numpy(left), th.from_numpy(right), th.from_numpy(out)
    ways: tuple[Callable[[], Any], ...] = (lambda: np.matmul(left, right, out=out), lambda: th.mm(a, b, out=c))
    return min(_best(way, budget) for way in ways)


def _best(function: Callable[[], Any], budget: float) -> float:
    """Return the least seconds of a call, among as many as the budget allows, at least ten."""
    least, began = np.inf, perf_counter()
    calls = 0
    while calls < 10 or perf_counter() - began < budget:
        start = perf_counter()
        function()
        least, calls = min(least, perf_counter() - start), calls + 1
    return float(least)


def _environment_seconds(env_id: str, seconds: float) -> float:
    """Return the seconds of a step of one environment, resets included, outside of any vec-env."""
    env = gym.make(env_id, disable_env_checker=True)
    try:
        env.action_space.seed(0)
        actions = [env.action_space.sample() for _ in range(256)]
        env.reset(seed=0)
        steps, began = 0, perf_counter()
        for action in cycle(actions):
            _, _, terminated, truncated, _ = env.step(action)
            if terminated or truncated:
                env.reset()
            steps += 1
            if perf_counter() - began > seconds:
                break
        return (perf_counter() - began) / steps
    finally:
        env.close()


# --- predict ---------------------------------------------------------------------------------------------------------


class Prediction(NamedTuple):
    """How long a call of ``predict`` takes.

    :param algo: whose
    :param env: environment whose observations are given
    :param batch: number of observations; 1 stands for one without a batch axis
    :param seconds: per call in each round, by side
    """

    algo: str
    env: str
    batch: int
    seconds: dict[str, list[float]]

    @property
    def tiers(self) -> list[str]:
        """Our tiers that were compared."""
        return [side for side in self.seconds if side != "sb3"]

    def ratio(self, side: str) -> Ratio:
        """How many times faster than Stable-Baselines3 a side is."""
        return _ratio(self.seconds["sb3"], self.seconds[side])

    @property
    def asked(self) -> Mapping[str, float]:
        """What is aimed at."""
        return PREDICT_ASKED if self.batch == 1 else {}


def measure_predict(
    env: str = "HalfCheetah-v5",
    algos: Sequence[str] = ("ppo", "sac"),
    engines: Sequence[str] | None = None,
    *,
    batches: Sequence[int] = (1, 64),
    rounds: int = 5,
    seconds: float = 0.2,
    progress: Callable[[str], None] = lambda _: None,
) -> list[Prediction]:
    """Measure deterministic ``predict`` calls in turns, with one thread.

    :param env: environment whose observations are given
    :param algos: which algorithms
    :param engines: tiers of ours; None takes all that there are
    :param batches: numbers of observations
    :param rounds: how many turns each side gets
    :param seconds: length of a turn
    :param progress: is told what is measured next
    :raises ConfigError: an argument is out of range, or a tier is not to be had
    """
    _positive(rounds=rounds, seconds=seconds)
    results = []
    for algo in algos:
        what = Case(algo, env)
        with ExitStack() as stack:
            stack.enter_context(_threads(1))
            models: dict[str, BaseAlgorithm] = {}
            for side in _sides(what, engines):
                progress(f"predict, {algo} {env}: building {side}")
                models[side] = _build(what, side)
                stack.callback(_closed(models[side]))
            space = models["sb3"].observation_space
            space.seed(0)
            for batch in batches:
                rows = np.stack([space.sample() for _ in range(batch)])
                observations = rows[0] if batch == 1 else rows
                times: dict[str, list[float]] = {side: [] for side in models}
                for turn in range(rounds):
                    for side in _order(models, turn):
                        progress(f"predict, {algo} {env}, {batch} observations: {side}, round {turn + 1} of {rounds}")
                        times[side].append(_call_seconds(models[side], observations, seconds))
                results.append(Prediction(algo, env, batch, times))
    return results


def _call_seconds(model: BaseAlgorithm, observations: Any, seconds: float) -> float:
    """Return the mean seconds of a call."""
    for _ in range(3):
        model.predict(observations, deterministic=True)
    calls, began = 0, perf_counter()
    while not calls or perf_counter() - began < seconds:
        for _ in range(10):
            model.predict(observations, deterministic=True)
        calls += 10
    return (perf_counter() - began) / calls


# --- first use -------------------------------------------------------------------------------------------------------

STARTUP_STEPS = 2000
"""First steps that are timed."""

STARTUP_CASES: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("ppo", "CartPole-v1", {}),
    ("ppo", "HalfCheetah-v5", {}),
    ("sac", "Pendulum-v1", _NARROW),
)
"""What is started: algorithm, environment and constructor arguments."""

_STARTUP = """import json, sys, time
module, name, env, kwargs, steps = json.loads(sys.argv[1])
began = time.perf_counter()
cls = getattr(__import__(module), name)
imported = time.perf_counter()
cls("MlpPolicy", env, **kwargs).learn(steps)
print(json.dumps([imported - began, time.perf_counter() - imported]))
"""


class Startup(NamedTuple):
    """What first use costs, in processes of their own, of Stable-Baselines3 (``"sb3"``) and of ours (``"ours"``).

    :param algo: which algorithm
    :param env: its environment
    :param imports: seconds of importing the class in each round, by side
    :param first: seconds of building a model and its first steps, likewise
    """

    algo: str
    env: str
    imports: dict[str, list[float]]
    first: dict[str, list[float]]

    @property
    def import_ratio(self) -> Ratio:
        """How many times faster our import is."""
        return _ratio(self.imports["sb3"], self.imports["ours"])

    @property
    def first_ratio(self) -> Ratio:
        """How many times faster our first steps are."""
        return _ratio(self.first["sb3"], self.first["ours"])


def measure_startup(
    cases: Sequence[tuple[str, str, Mapping[str, Any]]] = STARTUP_CASES,
    *,
    rounds: int = 3,
    steps: int = STARTUP_STEPS,
    progress: Callable[[str], None] = lambda _: None,
) -> list[Startup]:
    """Measure importing a class, building a model and its first steps, with everything of ours as it is by default.

    :param cases: algorithm, environment and constructor arguments
    :param rounds: how many processes of each side are timed, after one that is not
    :param steps: how many first steps
    :param progress: is told what is measured next
    :raises ConfigError: a process fails
    """
    _positive(rounds=rounds, steps=steps)
    results = []
    for algo, env, kwargs in cases:
        result = Startup(algo, env, {"sb3": [], "ours": []}, {"sb3": [], "ours": []})
        for turn in range(-1, rounds):
            for side in _order(result.first, turn):
                progress(f"first use, {algo} {env}: {side}, round {max(turn, 0) + 1} of {rounds}")
                module = "spinup_plugins" if side == "ours" else "sb3_contrib" if algo == "trpo" else "stable_baselines3"
                arguments = json.dumps([module, algo.upper(), env, dict(kwargs), steps])
                imported, first = json.loads(_child(["-c", _STARTUP, arguments]))
                if turn >= 0:  # before that, files were not in memory yet
                    result.imports[side].append(imported)
                    result.first[side].append(first)
        results.append(result)
    return results


def _child(arguments: Sequence[str], threads: int = 1) -> str:
    """Run Python in a process of its own and return the last line of what it printed.

    :raises ConfigError: it fails
    """
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    environment = {**os.environ, **dict.fromkeys(names, str(threads))}
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=environment)
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        raise ConfigError(lines[-1] if lines else f"a process ended with status {done.returncode}")
    return done.stdout.strip().splitlines()[-1]


# --- sweeps ----------------------------------------------------------------------------------------------------------


class SweepPoint(NamedTuple):
    """Speed and memory at one value of what a sweep goes over.

    :param over: a key of :data:`SWEEPS`
    :param value: where
    :param measured: the speeds
    :param memory: peak resident bytes of a process that learns on one side, by side
    :param before: bytes of them that were there before the model was built: the libraries
    """

    over: str
    value: int
    measured: Measured
    memory: dict[str, int]
    before: dict[str, int]


def sweep(
    what: Case,
    over: str,
    engines: Sequence[str] | None = None,
    *,
    values: Sequence[int] | None = None,
    rounds: int = 3,
    seconds: float = 1.0,
    progress: Callable[[str], None] = lambda _: None,
) -> Iterator[SweepPoint]:
    """Measure speed and peak memory against the number of environments, the networks' width or the minibatch size.

    Against ``n_envs``, on-policy rollouts keep their number of steps over all environments; against ``batch_size``, they hold
    one minibatch at least. Memory is that of a process per side, which learns until updates are under way.

    :param what: the case, but for ``over``
    :param over: a key of :data:`SWEEPS`
    :param engines: tiers of ours; None takes those that know the policy
    :param values: where; None takes those of :data:`SWEEPS`
    :param rounds: how many turns each side gets
    :param seconds: length of a turn
    :param progress: is told what is measured next
    :return: points as they are measured
    :raises UnknownNameError: nothing is called ``over``
    """
    if over not in SWEEPS:
        raise UnknownNameError(f"nothing to sweep over is called {over!r}; there are {', '.join(SWEEPS)}")
    for value in SWEEPS[over] if values is None else values:
        point = _point(what, over, value)
        measured = measure(point, engines, rounds=rounds, seconds=seconds, progress=progress)
        memory, before = {}, {}
        for side in measured.seconds:
            progress(f"{point}, {over} {value}: memory of {side}")
            arguments = json.dumps([point._asdict(), side])
            before[side], memory[side] = json.loads(_child(["-m", "spinup_plugins.runs.speed", arguments], what.threads))
        yield SweepPoint(over, value, measured, memory, before)


def _point(what: Case, over: str, value: int) -> Case:
    """Return the case at one value of a sweep."""
    cls = registry.get_class(what.algo)
    kwargs, n_envs = dict(what.kwargs), what.n_envs
    if over == "width":
        kwargs = registry.merge_values(kwargs, {"policy_kwargs": {"net_arch": [value, value]}})
    elif over == "batch_size":
        kwargs["batch_size"] = value
    else:
        n_envs = value
    if not issubclass(cls, OffPolicyAlgorithm):
        n_steps = kwargs.get("n_steps", schema.constructor_parameters(cls)["n_steps"].default)
        total = n_steps * what.n_envs
        if over == "n_envs":
            kwargs["n_steps"] = max(1, total // value)
        elif over == "batch_size" and value > total:
            kwargs["n_steps"] = ceil(value / what.n_envs)
    return Case(what.algo, what.env, n_envs, what.threads, kwargs)


def _memory(arguments: str) -> None:
    """Learn until updates are under way; print the peak resident bytes before and after. For :func:`_child`."""
    what, side = json.loads(arguments)
    try:
        before = _peak_memory()
        with _threads(what["threads"]):
            model = _build(Case(**what), side)
            _warm_up(model, 0.0)
            _closed(model)()
        print(json.dumps([before, _peak_memory()]))
    except Exception as error:
        print(one_line(error), file=sys.stderr)
        raise SystemExit(1) from None


def _peak_memory() -> int:
    """Return this process's peak resident bytes."""
    # Linux's getrusage would begin with the peak of the process that started this one.
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    from resource import RUSAGE_SELF, getrusage

    return getrusage(RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


# --- results ---------------------------------------------------------------------------------------------------------

Result: TypeAlias = Measured | Prediction | Startup | SweepPoint


class Results:
    """What was measured, of one machine: every round, as JSON keeps it; as Markdown and as plots.

    :param machine: what :func:`machine` says; None asks it
    """

    def __init__(self, machine: Mapping[str, str] | None = None) -> None:
        self.machine = _machine() if machine is None else dict(machine)
        self._kept: dict[tuple[Any, ...], Result] = {}

    @classmethod
    def read(cls, path: Path) -> Results:
        """Read what :meth:`write` wrote, to add to it; nothing where there is no such file.

        :raises ConfigError: it is another file, or of another machine
        """
        results = cls()
        if not path.exists():
            return results
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            there = data["machine"]
            for each in data["cases"]:
                results.add(_measured(each))
            for each in data["predict"]:
                results.add(Prediction(**each))
            for each in data["startup"]:
                results.add(Startup(**each))
            for each in data["sweeps"]:
                results.add(SweepPoint(**{**each, "measured": _measured(each["measured"])}))
        except (ValueError, TypeError, KeyError) as error:
            raise ConfigError(f"{path} exists, and is no file of 'spinup speed' to add to") from error
        if there["machine"] != results.machine["machine"]:
            raise ConfigError(f"{path} is of another machine, {there['machine']}: choose another file")
        return results

    def add(self, result: Result) -> None:
        """Keep a result, in place of one of the same case."""
        if isinstance(result, Measured):
            key: tuple[Any, ...] = ("case", str(result.case), json.dumps(result.case.kwargs, sort_keys=True, default=str))
        elif isinstance(result, SweepPoint):
            case = result.measured.case
            key = ("sweep", result.over, result.value, case.algo, case.env, case.threads)
        else:
            key = (type(result).__name__, result.algo, result.env, getattr(result, "batch", None))
        self._kept[key] = result

    def write(self, path: Path) -> None:
        """Write everything to a JSON file."""
        data = {
            "machine": self.machine,
            "cases": [_plain(each) for each in self.cases],
            "predict": [_plain(each) for each in self.predictions],
            "startup": [_plain(each) for each in self.startups],
            "sweeps": [_plain(each) for each in self.points],
        }
        write_text(path, f"{json.dumps(data, indent=1)}\n")

    @property
    def cases(self) -> list[Measured]:
        """Cases of learning."""
        return [each for each in self._kept.values() if isinstance(each, Measured)]

    @property
    def predictions(self) -> list[Prediction]:
        """Calls of ``predict``."""
        return [each for each in self._kept.values() if isinstance(each, Prediction)]

    @property
    def startups(self) -> list[Startup]:
        """First uses."""
        return [each for each in self._kept.values() if isinstance(each, Startup)]

    @property
    def points(self) -> list[SweepPoint]:
        """Points of sweeps."""
        return [each for each in self._kept.values() if isinstance(each, SweepPoint)]

    @property
    def misses(self) -> list[str]:
        """What is slower than was asked for, a line each."""
        found: list[str] = []
        for each in self.cases:
            found += _misses(str(each.case), each.case.asked, {tier: each.ratio(tier) for tier in each.tiers})
        for call in self.predictions:
            what = f"predict, {call.algo} {call.env}, {call.batch}"
            found += _misses(what, call.asked, {tier: call.ratio(tier) for tier in call.tiers})
        for start in self.startups:
            for what, ratio in (("import", start.import_ratio), ("first steps", start.first_ratio)):
                if ratio.high < 1:
                    found.append(f"{what}, {start.algo} {start.env}: {ratio_text(ratio)}")
        return found

    def markdown(self, pictures: Sequence[str] = ()) -> str:
        """Return all tables, the machine and versions as Markdown.

        :param pictures: paths of plots to show, as seen from the file
        """
        how = ["Tables against n_envs, width or batch size: `spinup speed ALGO ENV --sweep ...`."] if self.points else []
        text = [
            "# Speed",
            "",
            "Measured by `spinup speed`: ours and Stable-Baselines3 (sb3-contrib's TRPO; VPG's peer is its own torch tier)",
            "learn in turns in one process. A ratio is the peer's time per environment step to ours, the median over",
            "rounds with the least and the most; *limit* is the ratio that the environment and the bare matrix products",
            "alone would leave.",
            *how,
            "",
            *(f"* {key}: {value}" for key, value in self.machine.items()),
            "",
        ]
        for heading, header, rows in self._tables():
            if rows:
                ruler = ["---" if i < 2 else "--:" for i in range(len(header))]
                text += [f"## {heading}", "", *(f"| {' | '.join(row)} |" for row in (header, ruler, *rows)), ""]
        if self.cases or self.predictions or self.startups:
            text += ["## Slower than asked", "", *([f"* {miss}" for miss in self.misses] or ["Nothing."]), ""]
        text += [line for picture in pictures for line in (f"![{Path(picture).stem}]({picture})", "")]
        return "\n".join(text)

    def _tables(self) -> Iterator[tuple[str, list[str], list[list[str]]]]:
        def ratios(each: Measured | Prediction, asked: Mapping[str, float]) -> list[str]:
            cells = []
            for engine in ENGINES:
                cells.append(ratio_text(each.ratio(engine)) if engine in each.tiers else "")
                if engine != "torch":
                    cells.append(f"{asked[engine]:g}" if engine in asked else "")
                elif engine in asked:  # of few cases, so without a column
                    cells[-1] += f", asked {asked[engine]:g}"
            return cells

        header = ["torch", "numpy", "asked", "native", "asked"]
        rows = [
            [
                each.case.algo.upper(),
                each.case.env,
                str(each.case.n_envs),
                str(each.case.threads),
                each.case.settings,
                f"{1 / np.median(each.seconds[each.case.peer]):,.0f}",
                *ratios(each, each.case.asked),
                "" if each.limit is None else f"{each.limit:.1f}",
            ]
            for each in self.cases
        ]
        yield "Learning", ["algorithm", "environment", "envs", "threads", "settings", "peer's steps/s", *header, "limit"], rows
        rows = [
            [
                each.algo.upper(),
                each.env,
                str(each.batch),
                microseconds(float(np.median(each.seconds["sb3"]))),
                *ratios(each, each.asked),
            ]
            for each in self.predictions
        ]
        yield "`predict`", ["algorithm", "environment", "observations", "SB3's µs", *header], rows
        rows = []
        for each in self.startups:
            cells = []
            for what, ratio in ((each.imports, each.import_ratio), (each.first, each.first_ratio)):
                cells += [*(f"{np.median(what[side]):.2f}" for side in ("sb3", "ours")), ratio_text(ratio)]
            rows.append([each.algo.upper(), each.env, *cells])
        first = ["import, SB3: s", "ours: s", "ratio", f"first {STARTUP_STEPS:,} steps, SB3: s", "ours: s", "ratio"]
        yield "First use", ["algorithm", "environment", *first], rows
        rows = [
            [str(each.case), side, *(microseconds(phases[phase]) for phase in PHASES), microseconds(sum(phases.values()))]
            for each in self.cases
            for side, phases in each.phases.items()
        ]
        yield "Phases, µs per environment step", ["case", "side", *PHASES, "all"], rows
        rows = [
            [
                str(each.case),
                "environment alone",
                microseconds(each.floor.environment),
                "products alone",
                microseconds(each.floor.products),
            ]
            for each in self.cases
            if each.floor is not None
        ]
        yield "Floor, µs per environment step", ["case", "", "µs", "", "µs"], rows
        for (algo, env, over, threads), points in self.sweeps().items():
            rows = [
                [
                    str(point.value),
                    side,
                    f"{1 / np.median(seconds):,.0f}",
                    "" if side == point.measured.case.peer else ratio_text(point.measured.ratio(side)),
                    f"{point.memory[side] / 1e6:,.0f}",
                    f"{(point.memory[side] - point.before[side]) / 1e6:,.0f}",
                ]
                for point in points
                for side, seconds in point.measured.seconds.items()
            ]
            heading = f"{algo.upper()} on {env} against {over}{'' if threads == 1 else f', {threads} threads'}"
            yield heading, [over, "side", "steps/s", "ratio", "peak MB", "of which the model's"], rows

    def sweeps(self) -> dict[tuple[str, str, str, int], list[SweepPoint]]:
        """Return points in order by algorithm, environment, what is swept over and threads."""
        found: dict[tuple[str, str, str, int], list[SweepPoint]] = {}
        for point in sorted(self.points, key=lambda point: point.value):
            case = point.measured.case
            found.setdefault((case.algo, case.env, point.over, case.threads), []).append(point)
        return found

    def plot(self, path: Path, sweep: tuple[str, str, str, int] | None = None) -> None:
        """Draw ratios of all cases, or speed and memory of one sweep.

        :param path: file to write; its suffix says of which kind
        :param sweep: a key of :meth:`sweeps`
        :raises ConfigError: there is nothing to draw, matplotlib is not installed or knows no such kind of file
        """
        plt = pyplot("--plot")
        import matplotlib as mpl

        with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "spinup", "font.size": 9}):
            figure = _draw_ratios(plt, self) if sweep is None else _draw_sweep(plt, sweep, self.sweeps()[sweep])
            try:
                with replacing(path) as temporary:
                    figure.savefig(temporary, metadata={"Date": None} if path.suffix == ".svg" else {})
            except ValueError as error:
                raise ConfigError(f"--plot {path}: {' '.join(str(error).split())}") from error
            finally:
                plt.close(figure)


def _measured(data: Mapping[str, Any]) -> Measured:
    floor = data["floor"]
    return Measured(**{**data, "case": Case(**data["case"]), "floor": None if floor is None else Floor(**floor)})


def _plain(value: Any) -> Any:
    """Return a result as JSON has it: named tuples as mappings."""
    if hasattr(value, "_asdict"):
        return {key: _plain(each) for key, each in value._asdict().items()}
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, (list, tuple)) else value


def _misses(what: str, asked: Mapping[str, float], ratios: Mapping[str, Ratio]) -> Iterator[str]:
    for side, least in asked.items():
        if side in ratios and ratios[side].median < least:
            yield f"{what}: {side} {ratio_text(ratios[side])}, asked {least:g}"


def ratio_text(ratio: Ratio) -> str:
    """Write a ratio's median, with the least and the most behind it."""
    digits = 2 if ratio.high < 10 else 1
    return f"{ratio.median:.{digits}f} ({ratio.low:.{digits}f}-{ratio.high:.{digits}f})"


def microseconds(seconds: float) -> str:
    """Write seconds in millionths, with the digits that matter."""
    return f"{1e6 * seconds:,.1f}" if seconds < 1e-4 else f"{1e6 * seconds:,.0f}"


def _draw_ratios(plt: Any, results: Results) -> Any:
    """Draw each case's ratios with their spread, and what was asked."""
    rows: list[tuple[str, Measured | Prediction, Mapping[str, float]]] = [
        *((str(each.case), each, each.case.asked) for each in results.cases),
        *((f"predict {each.algo} {each.env}, {each.batch}", each, each.asked) for each in results.predictions),
    ]
    if not rows:
        raise ConfigError("--plot: there are no ratios to draw")
    figure, axes = plt.subplots(figsize=(7, 1.2 + 0.3 * len(rows)), layout="constrained")
    for index, engine in enumerate(ENGINES):
        ours = [(y, each.ratio(engine), asked.get(engine)) for y, (_, each, asked) in enumerate(rows) if engine in each.tiers]
        if not ours:
            continue
        ys, ratios = [y + 0.22 * (index - 1) for y, *_ in ours], [ratio for _, ratio, _ in ours]
        spread = [[r.median - r.low for r in ratios], [r.high - r.median for r in ratios]]
        medians = [ratio.median for ratio in ratios]
        axes.errorbar(medians, ys, xerr=spread, fmt="o", markersize=3.5, color=f"C{index}", linewidth=1, label=engine)
        asked = [(least, y) for (*_, least), y in zip(ours, ys, strict=True) if least is not None]
        if asked:
            axes.plot(*zip(*asked, strict=True), "|", color=f"C{index}", markersize=9, alpha=0.6)
    axes.axvline(1, color="0.7", linewidth=0.8)
    axes.set(xscale="log", xlabel="times as fast as the peer (bars: asked)", yticks=range(len(rows)))
    axes.set_yticklabels([label for label, *_ in rows])
    axes.xaxis.set_major_formatter("{x:g}")
    axes.invert_yaxis()
    axes.legend(frameon=False)
    return figure


def _draw_sweep(plt: Any, key: tuple[str, str, str, int], points: Sequence[SweepPoint]) -> Any:
    """Draw speed and peak memory of each side."""
    algo, env, over, _ = key
    figure, (speed, memory) = plt.subplots(1, 2, figsize=(8, 3.2), layout="constrained")
    for side in points[0].measured.seconds:
        there = [point for point in points if side in point.memory]
        values = [point.value for point in there]
        rounds = [1 / np.array(point.measured.seconds[side]) for point in there]
        (line,) = speed.plot(values, [np.median(each) for each in rounds], "o-", markersize=3, label=side)
        bands = [each.min() for each in rounds], [each.max() for each in rounds]
        speed.fill_between(values, *bands, color=line.get_color(), alpha=0.15, linewidth=0)
        memory.plot(values, [point.memory[side] / 1e6 for point in there], "o-", markersize=3, label=side)
    for axes, label in ((speed, "steps/s"), (memory, "peak memory, MB")):
        axes.set(xscale="log", xlabel=over, ylabel=label)
        axes.set_xticks([point.value for point in points], [str(point.value) for point in points], minor=False)
        axes.xaxis.minorticks_off()
    speed.set_yscale("log")
    memory.set_ylim(0, 1.1 * max(each for point in points for each in point.memory.values()) / 1e6)
    speed.set_title(f"{algo.upper()} on {env}", fontsize=9)
    speed.legend(frameon=False)
    return figure


# --- the machine -----------------------------------------------------------------------------------------------------


def machine() -> dict[str, str]:
    """Name the machine and the versions that figures are of."""
    names = ("torch", "numpy", "stable-baselines3", "sb3-contrib", "gymnasium", "mujoco", "spinup-plugins")
    versions = {"Python": platform.python_version()}
    for name in names:
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    cores = usable_cores()
    return {
        "machine": f"{_processor()}, {cores} core{'s' if cores > 1 else ''}",
        "system": platform.platform(),
        "versions": ", ".join(f"{name} {number}" for name, number in versions.items()),
    }


_machine = machine  # where a parameter goes by the name


def _processor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _load() -> float:
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")


@contextmanager
def _threads(n: int) -> Iterator[None]:
    """Let torch and NumPy's BLAS compute with ``n`` threads in the block."""
    before = th.get_num_threads()
    with threadpool_limits(limits=n, user_api="blas"):
        th.set_num_threads(n)
        try:
            yield
        finally:
            th.set_num_threads(before)


def pyplot(option: str) -> Any:
    """Return matplotlib's ``pyplot``, drawing into files.

    :param option: what asks for it, for the error
    :raises ConfigError: it is not installed
    """
    try:
        import_module("matplotlib").use("agg")
        return import_module("matplotlib.pyplot")
    except ImportError:
        raise ConfigError(f'{option} needs matplotlib: pip install "spinup-plugins[plot]"') from None


def _order(sides: Mapping[str, Any], turn: int) -> Iterator[str]:
    """Return the sides, beginning with another one in each round: what runs before leaves its traces in caches."""
    return islice(cycle(sides), turn % len(sides), turn % len(sides) + len(sides))


def _ratio(theirs: Sequence[float], ours: Sequence[float]) -> Ratio:
    ratios = np.array(theirs) / np.array(ours)
    return Ratio(float(np.median(ratios)), float(ratios.min()), float(ratios.max()))


def _positive(**values: float) -> None:
    for name, value in values.items():
        if not value > 0:
            raise ConfigError(f"{name} must be greater than 0, not {value}")


if __name__ == "__main__":
    _memory(sys.argv[1])
