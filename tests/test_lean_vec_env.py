from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.wrappers import TransformReward
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv
from stepping_envs import SPACES, Coded, Failing, alike, fns

from spinup_plugins.envs import lean
from spinup_plugins.envs.lean import LeanVecEnv
from spinup_plugins.envs.tape import EpisodeTape
from spinup_plugins.errors import EnvError

STATE = ("rewards", "needs_reset", "episode_returns", "episode_lengths", "episode_times", "total_steps", "current_reset_info")


@pytest.fixture(autouse=True)
def still(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let time stand still, so that episodes' times are equal."""
    monkeypatch.setattr(lean.time, "time", lambda: 1234.5)


def both(make: Callable[[], list[Callable[[], gym.Env[Any, Any]]]]) -> tuple[DummyVecEnv, LeanVecEnv]:
    return DummyVecEnv(make()), LeanVecEnv(make())


def same_step(theirs: DummyVecEnv, ours: LeanVecEnv, actions: Any) -> None:
    alike(theirs.step(actions), ours.step(actions))
    alike(theirs.reset_infos, ours.reset_infos)
    for a, b in zip(theirs.envs, ours.envs, strict=True):
        if isinstance(a, Monitor):
            for name in STATE:
                alike(getattr(a, name), getattr(b, name), name)


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(sorted(SPACES)),
    lengths=st.lists(st.lists(st.integers(1, 6), min_size=1, max_size=3).map(tuple), min_size=1, max_size=4),
    truncates=st.booleans(),
    extra=st.sampled_from(["none", "numbers", "changing", "nested"]),
    monitor=st.booleans(),
    seed=st.none() | st.integers(0, 2**31),
    option=st.integers(0, 2),
)
def test_results_are_dummy_vec_envs(
    kind: str, lengths: list[tuple[int, ...]], truncates: bool, extra: str, monitor: bool, seed: int | None, option: int
) -> None:
    n = len(lengths)
    theirs, ours = both(lambda: fns(n, monitor=monitor, kind=kind, lengths=lengths, truncates=truncates, extra=extra))
    for _ in range(2):
        for env in (theirs, ours):
            if option:
                env.set_options([{"option": option + i} for i in range(n)])
            env.seed(7 if seed is None else seed)
        alike(theirs.reset(), ours.reset())
        alike(theirs.reset_infos, ours.reset_infos)
        for step in range(8):
            same_step(theirs, ours, (np.arange(n) + step) % 5)


@pytest.mark.parametrize(
    "env_id", ["CartPole-v1", "Pendulum-v1", "MountainCarContinuous-v0", "FrozenLake-v1", "HalfCheetah-v5"]
)
def test_results_are_dummy_vec_envs_on_gymnasiums_environments(env_id: str) -> None:
    theirs, ours = both(lambda: [lambda: Monitor(gym.make(env_id))] * 2)
    theirs.seed(3)
    ours.seed(3)
    alike(theirs.reset(), ours.reset())
    theirs.action_space.seed(0)
    for _ in range(60):
        same_step(theirs, ours, np.array([theirs.action_space.sample() for _ in range(2)]))


def test_monitors_write_the_same_file(tmp_path: Path) -> None:
    class Episodic(Coded):
        def reset(self, *, goal: int = 0, **kwargs: Any) -> Any:
            return super().reset(**kwargs)

    for name, cls in (("theirs", DummyVecEnv), ("ours", LeanVecEnv)):
        env = cls(fns(2, file=tmp_path / name, lengths=[(2, 3), (1,)], extra="numbers"))
        env.reset()
        for _ in range(7):
            env.step(np.array([1, 2]))
        env.close()
    for at in "01":
        theirs, ours = ((tmp_path / name / f"{at}.monitor.csv").read_text() for name in ("theirs", "ours"))
        assert theirs == ours
        assert "is_success" in ours
        assert len(ours.splitlines()) >= 4


def test_an_environment_may_reuse_its_arrays_and_infos() -> None:
    env = LeanVecEnv(fns(2, lengths=[(2,), (3,)], reuses=True, extra="nested"))
    seen = [env.reset()]
    infos = []
    for _ in range(3):
        observations, _, _, info = env.step(np.zeros(2, int))
        seen.append(observations)
        infos.append(info)
    assert [rows[0, :2].tolist() for rows in seen] == [[1, 0], [1, 1], [2, 0], [2, 1]]
    np.testing.assert_array_equal(infos[1][0]["terminal_observation"][:2], [1, 2])
    np.testing.assert_array_equal(infos[2][1]["terminal_observation"][:2], [1, 3])
    assert [len(info[1]["array"]) for info in infos] == [1, 2, 3]
    infos[0][1]["list"][1]["inner"][0] = 9
    assert infos[1][1]["list"][1]["inner"][0] == 1


def test_what_a_step_returns_is_the_callers() -> None:
    env = LeanVecEnv(fns(2, kind="dict"))
    env.reset()
    first = env.step(np.zeros(2, int))
    kept = (first[0]["b"].copy(), first[1].copy(), first[2].copy())  # type: ignore[call-overload]
    env.step(np.ones(2, int))
    for a, b in zip((first[0]["b"], *first[1:3]), kept, strict=True):  # type: ignore[call-overload]
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("fault", "kind", "message"),
    [
        ("shape", "box", "returned an observation that does not fit its space Box(-inf, inf, (4,), float32) of shape (1,)"),
        ("none", "box", "returned an observation that does not fit its space Box(-inf, inf, (4,), float32) of shape ()"),
        ("missing", "dict", "returned an observation without 'a', which does not fit its space Dict"),
    ],
)
@pytest.mark.parametrize("named", [False, True])
def test_an_observation_that_does_not_fit_is_named(fault: str, kind: str, message: str, named: bool) -> None:
    env = LeanVecEnv(fns(3, "Failing-v0" if named else Failing, fault=["", "", fault], kind=kind, lengths=(9,)))
    env.reset()
    env.step(np.zeros(3, int))
    with pytest.raises(EnvError) as caught:
        env.step(np.zeros(3, int))
    name = "environment 'Failing-v0' (number 2) " if named else "environment number 2 "
    assert str(caught.value).startswith(name + message)
    assert "\n" not in str(caught.value)
    env.reset()
    env.step(np.zeros(3, int))


def test_a_reset_with_an_observation_that_does_not_fit_is_named() -> None:
    class Small(Coded):
        def reset(self, **kwargs: Any) -> Any:
            return super().reset(**kwargs)[0][:1], {}

    with pytest.raises(EnvError, match=r"environment number 0 returned an observation that does not fit .* of shape \(1,\)"):
        LeanVecEnv(fns(1, Small)).reset()


def test_an_exception_keeps_its_traceback_and_reset_helps() -> None:
    theirs, ours = both(lambda: fns(2, Failing, fault=["", "raise"], at=2))
    for env in (theirs, ours):
        env.seed(1)
        env.reset()
        env.step(np.zeros(2, int))
        with pytest.raises(ValueError, match="boom") as caught:
            env.step(np.zeros(2, int))
        assert caught.traceback[-1].path.name == "stepping_envs.py"
    alike(theirs.reset(), ours.reset())
    for _ in range(5):
        same_step(theirs, ours, np.zeros(2, int))


@pytest.mark.parametrize("kind", [ValueError, SystemExit])
@pytest.mark.parametrize("method", ["step", "reset"])
def test_an_exception_is_itself_with_a_note_of_where_it_was_raised(method: str, kind: type[BaseException]) -> None:
    error = kind("boom")

    def fail(*_: Any, **__: Any) -> Any:
        raise error

    env = LeanVecEnv(fns(2, Coded, lengths=(1,)))  # whose every step ends an episode
    env.reset()
    setattr(env.envs[1], method, fail)
    env._find(1)
    with pytest.raises(kind) as caught:
        env.step(np.zeros(2, int))
    assert caught.value is error
    assert error.__notes__ == [f"in {method}() of environment number 1"]


FIVE = "where five are expected (observation, reward, terminated, truncated, info)"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda obs, reward, *rest: (obs, reward, *rest[1:]), f"4 values from step(), the interface of old Gym, {FIVE}"),
        (lambda *result: (*result, 0), f"6 values from step() {FIVE}"),
        (lambda *_: None, f"one NoneType from step() {FIVE}"),
        (lambda obs, reward, *rest: (obs, None, *rest), "the reward None from step() where a number is expected"),
        (lambda obs, reward, *rest: (obs, np.ones(2), *rest), "the reward array([1., 1.]) from step() where a number is ex"),
        (lambda *result: (*result[:4], None), "the info None from step() where a dict is expected"),
    ],
)
def test_what_is_no_step_is_told(change: Callable[..., Any], message: str) -> None:
    class Wrong(Coded):
        def step(self, action: Any) -> Any:
            return change(*super().step(action))

    env = LeanVecEnv([*fns(1, Coded), *fns(1, Wrong)])
    env.reset()
    with pytest.raises(EnvError) as caught:
        env.step(np.zeros(2, int))
    assert str(caught.value).startswith(f"environment number 1 returned {message}")


def test_old_gyms_step_is_told_where_a_wrapper_stumbles_over_it() -> None:
    class Old(Coded):
        def step(self, action: Any) -> Any:
            return super().step(action)[1:]

    env = LeanVecEnv([lambda: TransformReward(Old(), abs)])
    env.reset()
    with pytest.raises(EnvError, match=r"^environment number 0 returned 4 values from step\(\), the interface of old Gym"):
        env.step(np.zeros(1, int))


@pytest.mark.parametrize("taped", [False, True])
def test_a_reset_without_info_is_told(taped: bool) -> None:
    class Bare(Coded):
        observation_space = gym.spaces.Box(-1.0, 1.0, (2,), np.float32)  # two numbers would pass for the two values

        def reset(self, **kwargs: Any) -> Any:
            return np.zeros(2, np.float32)

    def make() -> gym.Env[Any, Any]:
        return EpisodeTape(Monitor(Bare())) if taped else Bare()

    with pytest.raises(EnvError, match=r"^environment number 0 returned one ndarray from reset\(\) where two are expected"):
        LeanVecEnv([make]).reset()


def monitored(**kwargs: Any) -> list[Callable[[], gym.Env[Any, Any]]]:
    return [lambda: Monitor(Coded(lengths=(2,)), **kwargs)]


def use(env: DummyVecEnv, steps: int) -> None:
    env.reset()
    for _ in range(steps):
        env.step(np.zeros(1, int))
    env.reset()


@pytest.mark.parametrize(
    ("kwargs", "steps"),
    [({"info_keywords": ("nothing",)}, 2), ({"reset_keywords": ("goal",)}, 0), ({"allow_early_resets": False}, 1)],
)
def test_monitors_fail_as_they_do_with_dummy_vec_env(kwargs: dict[str, Any], steps: int) -> None:
    errors = []
    for env in both(lambda: monitored(**kwargs)):
        with pytest.raises((RuntimeError, ValueError, KeyError)) as caught:
            use(env, steps)
        errors.append((type(caught.value), str(caught.value), env.get_attr("total_steps"), env.get_attr("rewards")))
    alike(errors[0], errors[1])


def test_a_step_before_a_reset_is_refused_by_the_monitor() -> None:
    for env in both(monitored):
        with pytest.raises(RuntimeError, match="Tried to step environment that needs reset"):
            env.step(np.zeros(1, int))


def test_a_monitor_with_a_step_of_its_own_is_called() -> None:
    class Louder(Monitor[Any, Any]):
        def step(self, action: Any) -> Any:
            observation, reward, *rest = super().step(action)
            return observation, 100 * float(reward), *rest

    env = LeanVecEnv([lambda: Louder(Coded())])
    env.reset()
    assert env.step(np.ones(1, int))[1] == pytest.approx(110)
    env = LeanVecEnv([lambda: Monitor(Coded())])
    env.reset()
    env.set_attr("step", lambda action: (np.zeros(4, np.float32), 5.0, False, False, {}))
    assert env.step(np.ones(1, int))[1] == 5.0


def test_it_is_a_dummy_vec_env() -> None:
    env = LeanVecEnv(fns(2, render_mode="rgb_array"))
    assert isinstance(env, DummyVecEnv)
    env.reset()
    env.step(np.zeros(2, int))
    assert env.get_attr("clock") == [1, 1]
    assert env.env_method("add", 1, b=2, indices=1) == [4]
    assert env.env_is_wrapped(Monitor) == [True, True]
    image = env.render()
    assert image is not None
    assert image.shape == (4, 2, 3)
    one = Coded()
    with pytest.raises(ValueError, match="same instance"):
        LeanVecEnv([lambda: one, lambda: one])


def test_what_is_passed_by_keeps_its_state() -> None:
    """The wrappers of ``gymnasium.make`` are as if they had been called, whoever resets or changes them in between."""
    theirs, ours = (cls([partial(limited, 7)] * 2) for cls in (DummyVecEnv, LeanVecEnv))
    for env in (theirs, ours):
        env.seed(3)
        env.reset()
    for step in range(60):
        same_step(theirs, ours, np.array([step % 2, 1]))
        if step == 20:
            for env in (theirs, ours):
                env.env_method("reset", indices=[1], seed=5)
        if step == 30:
            for env in (theirs, ours):
                env.get_attr("unwrapped")[0].force_mag = 20.0
                env.set_attr("sutton_barto_reward", True)
                env.envs[0].env._max_episode_steps = 4
        for name in ("_elapsed_steps", "has_reset", "checked_step", "total_steps", "rewards", "needs_reset"):
            assert theirs.get_attr(name) == ours.get_attr(name), name
    assert all(path.step.__self__ is env.unwrapped for path, env in zip(ours._paths, ours.envs, strict=True))


def test_a_wrapper_of_ones_own_is_called() -> None:
    class Twice(gym.wrappers.TimeLimit):
        def step(self, action: Any) -> Any:
            observation, reward, *rest = super().step(action)
            return observation, 2 * reward, *rest

    env = LeanVecEnv([lambda: Monitor(Twice(gym.make("CartPole-v1").env, 5))])
    env.reset()
    assert [env.step(np.array([0]))[1].tolist() for _ in range(12)] == [[2.0]] * 12
    plain = LeanVecEnv([lambda: Monitor(gym.make("CartPole-v1"))])
    plain.reset()
    plain.step(np.array([0]))
    inner = plain.envs[0].env
    inner.step = lambda action: (np.zeros(4, np.float32), 7.0, False, False, {})
    plain.reset()
    assert plain.step(np.array([0]))[1].tolist() == [7.0]


def test_an_environment_that_is_replaced_is_the_one_that_steps() -> None:
    for cls in (DummyVecEnv, LeanVecEnv):
        env = cls([partial(limited, 50)])
        env.reset()
        env.step(np.array([0]))
        env.envs[0] = gym.wrappers.TransformReward(env.envs[0], lambda _: 5.0)
        assert env.step(np.array([0]))[1].tolist() == [5.0]
        other = limited(2)
        other.reset()
        env.envs[0] = other
        assert [bool(env.step(np.array([0]))[2][0]) for _ in range(4)] == [False, True, False, True]


def limited(steps: int) -> gym.Env[Any, Any]:
    return Monitor(gym.make("CartPole-v1", max_episode_steps=steps))
