"""Each wrapper by numbers worked by hand, and what holds of all that go by a name: plain arguments, seeds, pickles, specs."""

import ast
import json
import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.utils import RecordConstructorArgs
from hypothesis import given
from hypothesis import strategies as st
from stable_baselines3.common.env_checker import check_env

from spinup_plugins.envs import wrappers as ours
from spinup_plugins.envs.wrappers import (
    CheckValues,
    DelayAction,
    DelayReward,
    EpisodeReturns,
    HistoryObservation,
    MaskObservation,
    NoisyAction,
    NoisyObservation,
    RandomAction,
    RecordTrajectories,
    ScaleReward,
    SparseReward,
    TerminateOnSuccess,
    TimeFeature,
    minari_dataset,
)
from spinup_plugins.errors import ConfigError, EnvError
from spinup_plugins.wrapping import WRAPPERS, resolve_wrappers, wrap_all
from spinup_plugins.yaml_files import parse_yaml

VECTOR = spaces.Box(np.float32([-1, -100, -2]), np.float32([20, 100, 2]))
SPACES: dict[str, spaces.Space[Any]] = {
    "vector": VECTOR,
    "wide": spaces.Box(-np.inf, np.inf, (2, 2), np.float64),
    "dict": spaces.Dict({"observation": VECTOR, "goal": spaces.Box(-9.0, 9.0, (1,), np.float32)}),
    "image": spaces.Box(0, 255, (8, 8, 3), np.uint8),
    "box": spaces.Box(-2.0, 2.0, (1,), np.float32),
    "plane": spaces.Box(-1.0, 1.0, (2,), np.float32),
    "discrete": spaces.Discrete(3),
    "pair": spaces.MultiDiscrete([2, 3]),
}


class Tiny(gym.Env[Any, Any]):
    """Observes [start + t, 10 t, the last action], the reward of step t is t + 1, and an episode has ``length`` steps.

    The start is 0 unless a seed says otherwise. Observations stay its own, so that a wrapper which wrote into one shows.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 1}  # noqa: RUF012

    def __init__(self, observes: str = "vector", acts: str = "box", length: int = 5, render_mode: str | None = None) -> None:
        self.observation_space, self.action_space = SPACES[observes], SPACES[acts]
        self.observes, self.length, self.render_mode = observes, length, render_mode
        self.t, self.start, self.acted = 0, 0.0, []
        self.given: list[tuple[Any, Any]] = []

    def _observe(self) -> Any:
        last = float(np.ravel(self.acted[-1])[0]) if self.acted else 0.0
        vector = np.array([self.start + self.t, 10 * self.t, last], np.float32)
        observation = {
            "vector": vector,
            "wide": np.array([[self.start + self.t, 10 * self.t], [last, 0.0]]),
            "dict": {"observation": vector, "goal": np.float32([7])},
            "image": np.full((8, 8, 3), self.t % 256, np.uint8),
        }[self.observes]
        info = {"is_success": self.t in (2, 4, 5), "t": self.t}
        self.given.append((observation, pickle.dumps(observation)))
        return observation, info

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        if seed is not None:
            self.start = float(self.np_random.random())
        self.t, self.acted, self.given = 0, [], []
        return self._observe()

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.t < self.length, "stepped after the end"
        self.t += 1
        self.acted.append(np.array(action))
        observation, info = self._observe()
        return observation, float(self.t), self.t == self.length, False, info

    def render(self) -> Any:
        return np.full((8, 8, 3), self.t, np.uint8)

    def untouched(self) -> bool:
        return all(pickle.dumps(observation) == then for observation, then in self.given)


if "Tiny-v0" not in gym.registry:
    gym.register("Tiny-v0", f"{__name__}:Tiny", max_episode_steps=50)


def play(env: gym.Env[Any, Any], actions: Any, **reset: Any) -> Iterator[tuple[Any, ...]]:
    """Yield what reset and each step return."""
    yield env.reset(**reset)
    for action in actions:
        yield env.step(action)


def one(value: float) -> np.ndarray:
    return np.float32([value])


def observations(env: gym.Env[Any, Any], actions: Any) -> list[Any]:
    return [result[0] for result in play(env, actions)]


def rewards(env: gym.Env[Any, Any], steps: int = 5) -> list[float]:
    return [result[1] for result in play(env, [one(0)] * steps)][1:]


# --- the contract of every name ---------------------------------------------------------------------------------------

SUITABLE: dict[str, tuple[str, dict[str, Any]]] = {
    "add_render_observation": ("{render_only: false}", {"render_mode": "rgb_array"}),
    "atari_preprocessing": ("{noop_max: 2, screen_size: [84, 84]}", {"id": "ALE/Pong-v5", "frameskip": 1}),
    "check_values": ("", {"observes": "dict"}),
    "clip_reward": ("{min_reward: 0, max_reward: 2.5}", {}),
    "delay_action": ("{delay: 2}", {"acts": "pair"}),
    "delay_observation": ("{delay: 2}", {}),
    "delay_reward": ("{every: 2}", {}),
    "discretize_action": ("{bins: [3, 5]}", {"acts": "plane"}),
    "discretize_observation": ("{bins: [2, 3, 4], multidiscrete: true}", {}),
    "dtype_observation": ("{dtype: float32}", {"observes": "wide"}),
    "episode_returns": ("{gamma: 0.5}", {}),
    "filter_observation": ("{filter_keys: [goal]}", {"observes": "dict"}),
    "flatten_observation": ("", {"observes": "dict"}),
    "frame_stack_observation": ("{stack_size: 3, padding_type: zero}", {}),
    "grayscale_observation": ("{keep_dim: true}", {"observes": "image"}),
    "history_observation": ("{length: 3, actions: true}", {"acts": "discrete"}),
    "mask_observation": ("{hidden: [0, -1]}", {}),
    "noisy_action": ("{std: [0.1, 0.2]}", {"acts": "plane"}),
    "noisy_observation": ("{std: 0.5, key: observation}", {"observes": "dict"}),
    "normalize_observation": ("", {}),
    "normalize_reward": ("{gamma: 0.9}", {}),
    "random_action": ("{probability: 0.5}", {"acts": "discrete"}),
    "record_trajectories": ("{folder: FOLDER, every: 2}", {"observes": "dict", "acts": "pair"}),
    "repeat_action": ("{num_repeats: 2}", {}),
    "rescale_action": ("{min_action: -1, max_action: [1.0]}", {}),
    "rescale_observation": ("{min_obs: -1, max_obs: [1, 2, 3]}", {}),
    "reshape_observation": ("{shape: [3, 1]}", {}),
    "resize_observation": ("{shape: [4, 4]}", {"observes": "image"}),
    "scale_reward": ("{scale: 0.1}", {}),
    "sparse_reward": ("", {}),
    "sticky_action": ("{repeat_action_probability: 0.5, repeat_action_duration: [1, 2]}", {}),
    "terminate_on_success": ("{steps: 2}", {}),
    "time_aware_observation": ("{normalize_time: true}", {}),
    "time_feature": ("{max_steps: 7}", {"observes": "dict"}),
    "time_limit": ("{max_episode_steps: 3}", {}),
}
"""For each name arguments as YAML and the environment to wrap, which is Tiny unless it has an id."""


@pytest.fixture(params=WRAPPERS)
def named(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """Return (name, function that makes the wrapped environment anew)."""
    name = request.param
    if name in ("atari_preprocessing", "resize_observation"):
        pytest.importorskip("cv2")
    arguments, source = SUITABLE[name]
    source = {"id": "Tiny-v0", **source}
    if source["id"].startswith("ALE/"):
        gym.register_envs(pytest.importorskip("ale_py"))
    kwargs = parse_yaml(arguments.replace("FOLDER", str(tmp_path / "episodes")), "test") if arguments else None
    resolved = resolve_wrappers([{name: kwargs}])
    return name, lambda: wrap_all(gym.make(**source), resolved)


def same(left: Any, right: Any) -> bool:
    if isinstance(left, dict):
        return isinstance(right, dict) and left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, (tuple, list)):
        return len(left) == len(right) and all(map(same, left, right))
    return bool(np.array_equal(left, right)) and np.asarray(left).dtype == np.asarray(right).dtype


def two_episodes(env: gym.Env[Any, Any], seed: int = 3) -> Iterator[tuple[Any, ...]]:
    env.action_space.seed(seed)
    for episode in range(2):
        yield env.reset(seed=seed if episode == 0 else None)
        for _ in range(10):
            result = env.step(env.action_space.sample())
            yield result
            if result[2] or result[3]:
                break


def test_a_name_builds_from_plain_data_and_keeps_its_promises(named):
    _, make = named
    env = make()
    results = list(two_episodes(env))
    for observation, *rest in results:
        assert env.observation_space.contains(observation), (observation, env.observation_space)
        if len(rest) == 4:
            reward, terminated, truncated, info = rest
            assert np.isfinite(reward)
            assert np.ndim(reward) == 0
            assert isinstance(terminated, bool)
            assert isinstance(truncated, bool)
            assert isinstance(info, dict)
    if isinstance(env.unwrapped, Tiny):
        assert env.unwrapped.untouched()
        assert sum(rest[1] or rest[2] for _, *rest in results if len(rest) == 4) == 2, "an episode did not end"
    assert same(results, list(two_episodes(make()))), "a seed does not reproduce"
    check_env(make(), warn=False, skip_render_check=True)  # Stable-Baselines3's


@pytest.mark.filterwarnings("ignore:.*precision lowered by casting")
def test_a_name_makes_what_its_spec_makes_again(named):
    _, make = named
    env = make()
    again = gym.make(env.spec)
    assert type(again) is type(env)
    assert again.observation_space == env.observation_space
    assert again.action_space == env.action_space
    assert same(list(two_episodes(again)), list(two_episodes(env)))


@pytest.mark.parametrize("steps", [None, 0, 2])
def test_a_name_pickles_before_and_within_an_episode(named, steps):
    name, make = named
    if name == "atari_preprocessing":
        pytest.skip("the emulator does not pickle")
    module = pickle if WRAPPERS[name].startswith("spinup_plugins.") else cloudpickle
    env = make()
    env.action_space.seed(1)
    if steps is not None:
        env.reset(seed=1)
        for _ in range(steps):
            env.step(env.action_space.sample())
    copy = pickle.loads(module.dumps(env))
    if steps is None:
        assert same(list(two_episodes(copy)), list(two_episodes(env)))
    else:
        action = env.action_space.sample()
        assert same(copy.step(action), env.step(action))
        assert same(copy.reset(), env.reset())


def test_every_name_is_tested_and_is_its_class_in_snake_case():
    assert SUITABLE.keys() == WRAPPERS.keys()
    for name, path in WRAPPERS.items():
        words = "".join(f"_{each.lower()}" if each.isupper() else each for each in path.partition(":")[2])
        assert words == f"_{name}"


def test_each_of_our_wrappers_is_short_and_named():
    """A wrapper has at most forty lines besides documentation, records its arguments, and goes by a name."""
    text = Path(ours.__file__).read_text()
    classes = [node for node in ast.parse(text).body if isinstance(node, ast.ClassDef)]
    for node in classes:
        documentation = {
            line
            for each in ast.walk(node)
            if isinstance(each, (ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(each)
            for line in range(each.body[0].lineno, (each.body[0].end_lineno or 0) + 1)
        }
        numbered = list(enumerate(text.splitlines(), 1))[node.lineno - 1 : node.end_lineno]
        code = [line for number, line in numbered if number not in documentation and line.strip()]
        assert len(code) <= 40, f"{node.name} has {len(code)} lines"
    public = {node.name for node in classes if not node.name.startswith("_")}
    assert {path.partition(":")[2] for path in WRAPPERS.values() if path.startswith("spinup_plugins.")} == public
    for name in public:
        assert issubclass(getattr(ours, name), RecordConstructorArgs)
        assert name in ours.__all__


# --- observations -----------------------------------------------------------------------------------------------------


def test_what_is_masked_is_left_out_or_zero():
    env = MaskObservation(Tiny(), [1])
    assert env.observation_space == spaces.Box(np.float32([-1, -2]), np.float32([20, 2]))
    assert [each.tolist() for each in observations(env, [one(0.5), one(-1)])] == [[0, 0], [1, 0.5], [2, -1]]
    env = MaskObservation(Tiny(), [-2], keep_shape=True)
    assert env.observation_space == VECTOR
    assert [each.tolist() for each in observations(env, [one(0.5)])] == [[0, 0, 0], [1, 0, 0.5]]


def test_zeros_are_inside_the_bounds():
    class High(Tiny):
        def __init__(self):
            super().__init__()
            self.observation_space = spaces.Box(np.float32([0, 5, -2]), np.float32([20, 100, 2]))

    env = MaskObservation(High(), [1], keep_shape=True)
    assert env.observation_space.low.tolist() == [0, 0, -2]
    assert env.observation_space.high.tolist() == [20, 100, 2]


def test_one_entry_of_a_dict_is_masked():
    env = MaskObservation(Tiny("dict"), [0, 1], key="observation")
    assert env.observation_space["observation"].shape == (1,)
    _, (observation, *_) = play(env, [one(0.5)])
    assert observation["observation"].tolist() == [0.5]
    assert observation["goal"].tolist() == [7]
    assert env.unwrapped.untouched()


@given(st.sets(st.integers(-3, 2), min_size=1).filter(lambda hidden: len({each % 3 for each in hidden}) < 3))
def test_what_is_not_hidden_stays_in_order(hidden):
    left = [index for index in range(3) if index not in {each % 3 for each in hidden}]
    whole, masked = observations(Tiny(), [one(1.5)] * 2), observations(MaskObservation(Tiny(), list(hidden)), [one(1.5)] * 2)
    assert [each[left].tolist() for each in whole] == [each.tolist() for each in masked]


MUJOCO = [
    *("Ant-v5", "HalfCheetah-v5", "Hopper-v5", "Humanoid-v5", "HumanoidStandup-v5", "InvertedDoublePendulum-v5"),
    *("InvertedPendulum-v5", "Pusher-v5", "Reacher-v5", "Swimmer-v5", "Walker2d-v5"),
    *("Ant-v4", "HalfCheetah-v4", "Hopper-v4", "Humanoid-v4", "InvertedPendulum-v4", "Swimmer-v4", "Walker2d-v4"),
]


@pytest.mark.filterwarnings("ignore:.*out of date")
@pytest.mark.parametrize("env_id", MUJOCO)
def test_mujocos_velocities_are_what_differs_where_only_they_do(env_id):
    pytest.importorskip("mujoco")
    env = gym.make(env_id)
    base: Any = env.unwrapped
    env.reset(seed=0)
    shown = []
    for velocity in (0.1, 0.2):
        base.set_state(base.init_qpos, np.full(base.model.nv, velocity))
        shown.append(base._get_obs())
    hidden = ~MaskObservation(env, "velocity").visible
    # Humanoid's v4 has the velocity of the world, too, which is zero.
    assert hidden.tolist() == ((shown[0] != shown[1]) | (hidden & (shown[1] == 0))).tolist()
    env.close()


@pytest.mark.filterwarnings("ignore:.*out of date")
@pytest.mark.parametrize(
    ("env_id", "kwargs"),
    [
        ("Ant-v5", {"include_cfrc_ext_in_observation": False, "exclude_current_positions_from_observation": False}),
        ("Ant-v4", {"use_contact_forces": True}),
        ("Hopper-v4", {"exclude_current_positions_from_observation": False}),
        ("Humanoid-v5", {"include_cinert_in_observation": False}),
    ],
)
def test_mujocos_velocities_are_found_in_other_layouts(env_id, kwargs):
    pytest.importorskip("mujoco")
    env = gym.make(env_id, **kwargs)
    base: Any = env.unwrapped
    env.reset(seed=0)
    base.set_state(base.init_qpos, np.linspace(0.11, 0.22, base.model.nv))
    hidden = np.flatnonzero(~MaskObservation(env, "velocity").visible)[: base.model.nv]
    np.testing.assert_array_equal(base._get_obs()[hidden], base.data.qvel)
    env.close()


@pytest.mark.parametrize(
    ("env_id", "pairs"),
    [
        ("CartPole-v1", {0: 1, 2: 3}),
        ("MountainCar-v0", {0: 1}),
        ("MountainCarContinuous-v0", {0: 1}),
        ("LunarLander-v3", {0: 2, 1: 3, 4: 5}),
        ("BipedalWalker-v3", {0: 1, 4: 5, 6: 7, 9: 10, 11: 12}),
    ],
)
def test_other_velocities_are_how_positions_change(env_id, pairs):
    env = gym.make(env_id)
    env.action_space.seed(0)
    path = np.array([result[0] for result in play(env, [env.action_space.sample() for _ in range(15)], seed=0)])[1:]
    hidden = set(np.flatnonzero(~MaskObservation(env, "velocity").visible).tolist())
    for position, velocity in pairs.items():
        change = np.diff(path[:, position])
        assert max(np.corrcoef(change, path[at : len(change) + at, velocity])[0, 1] for at in (0, 1)) > 0.9
    assert set(pairs.values()) <= hidden
    assert hidden - set(pairs.values()) == ({2, 3} if env_id.startswith("Bipedal") else set())
    env.close()


@pytest.mark.parametrize("env_id", ["Acrobot-v1", "Pendulum-v1"])
def test_the_velocities_of_pendulums_are_not_of_the_circle(env_id):
    env = MaskObservation(gym.make(env_id), "velocity")
    assert np.abs(env.observation_space.high).tolist() == [1] * (4 if env_id == "Acrobot-v1" else 2)
    _, (observation, *_) = play(env, [env.action_space.sample()])
    np.testing.assert_allclose(np.square(observation).reshape(-1, 2).sum(axis=1), 1, atol=1e-5)


def test_the_layout_of_gymnasiums_classes_is_that_of_their_subclasses():
    from gymnasium.envs.classic_control import CartPoleEnv

    class Heavy(CartPoleEnv):
        pass

    assert MaskObservation(Heavy(), "velocity").visible.tolist() == [True, False, True, False]


def test_history_is_the_last_observations_and_the_actions_between():
    env = HistoryObservation(Tiny(), 3, actions=True)
    assert env.observation_space.shape == (3 * 3 + 2,)
    path = observations(env, [one(0.5), one(1), one(2)])
    assert path[0].tolist() == [0, 0, 0] * 3 + [0, 0]
    assert path[1].tolist() == [0, 0, 0] * 2 + [1, 10, 0.5] + [0, 0.5]
    assert path[3].tolist() == [1, 10, 0.5, 2, 20, 1, 3, 30, 2, 1, 2]
    assert env.reset()[0].tolist() == [0] * 11


def test_discrete_actions_of_the_past_are_one_hot():
    env = HistoryObservation(Tiny(acts="discrete"), 2, actions=True)
    assert env.observation_space.low[-3:].tolist() == [0, 0, 0]
    assert env.observation_space.high[-3:].tolist() == [1, 1, 1]
    path = observations(env, [2, 1])
    assert [each[-3:].tolist() for each in path] == [[0, 0, 0], [0, 0, 1], [0, 1, 0]]


def test_history_shows_velocities_that_were_hidden():
    """What the wrapper is for: two positions tell CartPole's hidden velocity."""
    hidden = HistoryObservation(MaskObservation(gym.make("CartPole-v1"), "velocity"), 2)
    shown, whole = (list(play(env, [0, 1, 1], seed=0)) for env in (hidden, gym.make("CartPole-v1")))
    for before, after in zip(shown[1:], whole[:-1], strict=True):
        old_x, _, new_x, _ = before[0]
        assert (new_x - old_x) / 0.02 == pytest.approx(after[0][1], abs=1e-4)


def test_history_keeps_what_an_environment_writes_over():
    class Reusing(Tiny):
        memory = np.zeros(3, np.float32)

        def _observe(self):
            observation, info = super()._observe()
            self.memory[:] = observation
            return self.memory, info

    assert observations(HistoryObservation(Reusing(), 2), [one(0)])[1].tolist() == [0, 0, 0, 1, 10, 0]


def test_noise_has_its_deviation_and_stays_in_bounds():
    env = NoisyObservation(Tiny(), [0.5, 2, 0])
    noisy = np.array([env.reset(seed=seed)[0] - env.unwrapped.given[0][0] for seed in range(1000)])
    assert noisy.std(axis=0) == pytest.approx([0.5, 2, 0], rel=0.1)
    assert noisy.mean(axis=0) == pytest.approx([0, 0, 0], abs=0.2)
    assert all(VECTOR.contains(each) for each in observations(NoisyObservation(Tiny(), 50), [one(0)] * 5))


@pytest.mark.parametrize("observes", ["vector", "dict"])
def test_the_time_feature_is_what_remains(observes):
    inner = Tiny(observes)
    for env in (TimeFeature(inner, max_steps=4), TimeFeature(inner, max_steps=4)):  # copies may share the spaces
        path = observations(env, [one(0), one(0)])
        last = [each["observation"][-1] if observes == "dict" else each[-1] for each in path]
        assert last == [1, 0.75, 0.5]
        assert env.observation_space.contains(path[0])
        assert inner.observation_space == SPACES[observes]
        assert inner.untouched()
    assert TimeFeature(gym.make("Tiny-v0")).reset()[0].shape == (4,)


# --- actions ----------------------------------------------------------------------------------------------------------


def test_noisy_actions_have_their_deviation_and_stay_in_bounds():
    env = NoisyAction(Tiny(length=1000), 0.5)
    given = one(0)
    list(play(env, [given] * 1000, seed=0))
    assert np.std(env.unwrapped.acted) == pytest.approx(0.5, rel=0.1)
    assert given == 0
    env = NoisyAction(Tiny(length=100), 9)
    list(play(env, [one(0)] * 100, seed=0))
    assert np.abs(env.unwrapped.acted).max() == 2
    assert env.unwrapped.acted[0].dtype == np.float32


@pytest.mark.parametrize(("probability", "expected"), [(0, 0), (1, 2 / 3), (0.5, 1 / 3)])
def test_random_actions_are_as_frequent_as_told(probability, expected):
    env = RandomAction(Tiny(acts="discrete", length=1000), probability)
    list(play(env, [1] * 1000, seed=0))
    assert np.mean(np.array(env.unwrapped.acted) != 1) == pytest.approx(expected, abs=0.05)


@given(st.integers(0, 4), st.lists(st.integers(0, 2), min_size=1, max_size=5))
def test_actions_take_effect_so_many_steps_late(delay, actions):
    env = DelayAction(Tiny(acts="discrete"), delay)
    for _ in range(2):
        list(play(env, actions))
        assert [int(each) for each in env.unwrapped.acted] == ([0] * delay + actions)[: len(actions)]


def test_a_delayed_action_is_the_one_that_was_chosen_then():
    env, action = DelayAction(Tiny(), 1), one(0.5)
    env.reset()
    env.step(action)
    action[:] = 2  # as a caller that reuses its array
    env.step(action)
    assert [each.tolist() for each in env.unwrapped.acted] == [[0], [0.5]]


# --- rewards and returns ----------------------------------------------------------------------------------------------


def test_rewards_by_hand():
    assert rewards(ScaleReward(Tiny(), 0.5, -1)) == [-0.5, 0, 0.5, 1, 1.5]
    assert rewards(DelayReward(Tiny(), 2)) == [0, 3, 0, 7, 5]
    assert rewards(SparseReward(Tiny())) == [0, 0, 0, 0, 15]


def test_the_time_limit_gives_what_was_withheld():
    env = SparseReward(gym.wrappers.TimeLimit(Tiny(), 3))
    assert [rewards(env, 3), rewards(env, 2), rewards(env, 3)] == [[0, 0, 6], [0, 0], [0, 0, 6]]


class Paid(Tiny):
    """Pays what it is told."""

    def __init__(self, pay):
        super().__init__(length=len(pay))
        self.pay = pay

    def step(self, action):
        observation, _, *rest = super().step(action)
        return observation, self.pay[self.t - 1], *rest


PAY = st.lists(st.integers(-8, 8).map(float), min_size=1, max_size=12)


@given(PAY, st.integers(1, 13))
def test_nothing_withheld_is_lost(pay, every):
    given_rewards = rewards(DelayReward(Paid(pay), every), len(pay))
    for end in range(every, len(pay), every):
        assert sum(given_rewards[:end]) == sum(pay[:end])
    assert sum(given_rewards) == sum(pay)
    assert sum(map(bool, given_rewards)) <= -(-len(pay) // every)


@given(PAY, st.floats(0, 1))
def test_returns_are_the_sums_of_their_equations(pay, gamma):
    env = EpisodeReturns(Paid(pay), gamma)
    for _ in range(2):
        *before, last = (result[-1] for result in play(env, [one(0)] * len(pay)))
        assert not any("discounted_return" in info for info in before)
        assert last["undiscounted_return"] == sum(pay)
        assert last["discounted_return"] == pytest.approx(np.polyval(pay[::-1], gamma))


def test_returns_by_hand():
    info = list(play(EpisodeReturns(Tiny(), 0.5), [one(0)] * 5))[-1][-1]
    assert info["undiscounted_return"] == 15
    assert info["discounted_return"] == 1 + 2 / 2 + 3 / 4 + 4 / 8 + 5 / 16
    assert info["t"] == 5


# --- episodes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("steps", "ends"), [(1, 2), (2, 5)])
def test_success_terminates(steps, ends):
    env = TerminateOnSuccess(Tiny(length=9), steps)  # succeeds at steps 2, 4 and 5
    for _ in range(2):
        path = list(play(env, [one(0)] * ends))[1:]
        assert [(each[2], each[3]) for each in path] == [(False, False)] * (ends - 1) + [(True, False)]
    assert not any(each[2] for each in list(play(TerminateOnSuccess(Tiny(length=9), key="other"), [one(0)] * 8))[1:])


def trajectories(folder: Path) -> list[dict[str, Any]]:
    found = []
    for file in sorted(folder.iterdir()):
        with np.load(file) as arrays:  # allow_pickle is off
            found.append({**arrays, "metadata": json.loads(str(arrays["metadata"]))})
    return found


def test_an_episode_is_a_file(tmp_path):
    env = RecordTrajectories(gym.make("Tiny-v0"), str(tmp_path / "new" / "tau"))
    list(play(env, [one(0.5)] * 5, seed=4))
    list(play(env, [one(1)] * 2))
    start = env.unwrapped.start
    env.close()
    env.close()
    first, second = trajectories(tmp_path / "new" / "tau")
    assert first["observations"].tolist() == np.float32([[start + t, 10 * t, 0.5 * (t > 0)] for t in range(6)]).tolist()
    assert first["actions"].tolist() == [[0.5]] * 5
    assert first["rewards"].tolist() == [1, 2, 3, 4, 5]
    assert first["terminations"].tolist() == [False] * 4 + [True]
    assert not first["truncations"].any()
    assert first["metadata"] == {"env": "Tiny-v0", "seed": 4, "episode": 0, "complete": True}
    assert second["observations"].shape == (3, 3)
    assert second["terminations"].tolist() == [False, False]
    assert second["truncations"].tolist() == [False, True]
    assert second["metadata"] == {"env": "Tiny-v0", "seed": None, "episode": 1, "complete": False}


def test_copies_share_a_folder_and_a_reset_cuts_an_episode_short(tmp_path):
    for copy in (0, 1):
        env = RecordTrajectories(Tiny("dict", "discrete"), str(tmp_path), every=2)
        for steps in (5, 5, 3, 1):
            list(play(env, [copy] * steps))
        env.close()
    found = trajectories(tmp_path)
    assert sorted(len(each["rewards"]) for each in found) == [3, 3, 5, 5]
    assert sorted(each["actions"].tolist() for each in found) == [[0] * 3, [0] * 5, [1] * 3, [1] * 5]
    assert {each["observations/goal"].shape[1:] for each in found} == {(1,)}
    assert {tuple(each) for each in found} == {
        ("observations/goal", "observations/observation", "actions", "rewards", "terminations", "truncations", "metadata")
    }


def test_a_recording_that_cannot_be_written_leaves_nothing(tmp_path, monkeypatch):
    env = RecordTrajectories(Tiny(), str(tmp_path))
    env.reset()
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("full")))
    for _ in range(4):
        env.step(one(0))
    with pytest.raises(OSError, match="full"):
        env.step(one(0))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"^RecordTrajectories cannot create '.*file/tau': "):
        RecordTrajectories(Tiny(), str(tmp_path / "file" / "tau"))


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(("observes", "acts"), [("vector", "box"), ("dict", "discrete")])
def test_trajectories_become_a_minari_dataset(tmp_path, monkeypatch, observes, acts):
    pytest.importorskip("minari")
    pytest.importorskip("h5py")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    env = RecordTrajectories(gym.make("Tiny-v0", observes=observes, acts=acts), str(tmp_path / "tau"))
    for seed, steps in ((8, 5), (None, 3)):
        list(play(env, [one(1) if acts == "box" else 1] * steps, seed=seed))
    env.close()
    dataset = minari_dataset(tmp_path / "tau", "tiny/test-v0", env, author="nobody")
    assert (dataset.total_episodes, dataset.total_steps) == (2, 8)
    first, second = dataset.iterate_episodes()
    assert first.rewards.tolist() == [1, 2, 3, 4, 5]
    assert first.terminations.tolist() == [False] * 4 + [True]
    assert second.truncations.tolist() == [False, False, True]
    shown = first.observations["observation"] if observes == "dict" else first.observations
    assert shown[:, 1].tolist() == [0, 10, 20, 30, 40, 50]
    assert np.ravel(first.actions).tolist() == [1] * 5
    assert "RecordTrajectories" not in str(dataset.recover_environment())
    with pytest.raises(ConfigError, match=r"^there is a Minari dataset 'tiny/test-v0' already, in '.*test-v0'$"):
        minari_dataset(tmp_path / "tau", "tiny/test-v0", env)
    bare = minari_dataset(tmp_path / "tau", "tiny/bare-v0", Tiny(observes, acts))
    assert (bare.total_steps, bare.spec.env_spec) == (8, None)
    for _ in range(2):
        with pytest.raises(ConfigError, match=r"^Minari dataset 'tiny/bad-v0': "):
            minari_dataset(tmp_path / "tau", "tiny/bad-v0", env, eval_env=3)


def test_minari_is_asked_for_by_its_extra(tmp_path, monkeypatch):
    monkeypatch.setattr(ours, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r'^a Minari dataset needs minari and h5py: pip install "spinup-plugins\[minari\]"$'):
        minari_dataset(tmp_path, "tiny/test-v0", "Tiny-v0")
    monkeypatch.setattr(ours, "find_spec", lambda name: name)
    with pytest.raises(ConfigError, match=r"^there are no trajectories in "):
        minari_dataset(tmp_path, "tiny/test-v0", "Tiny-v0")


class Broken(Tiny):
    """Returns what it is told at its second step, or from reset."""

    def __init__(self, observes="vector", at=2, **instead):
        super().__init__(observes)
        self.at, self.instead = at, instead

    def _told(self, names, results):
        return tuple(
            self.instead.get(name, each) if self.t == self.at else each for name, each in zip(names, results, strict=True)
        )

    def reset(self, *, seed=None, options=None):
        return self._told(("observation", "info"), super().reset(seed=seed))

    def step(self, action):
        return self._told(("observation", "reward", "terminated", "truncated", "info"), super().step(action))


GOOD = np.float32([0, 0, 0])


@pytest.mark.parametrize(
    ("instead", "message"),
    [
        ({"observation": np.float32([0, np.nan, 0])}, "observation is not finite at [1] (nan)"),
        ({"observation": np.float64([0, 1e300, 0])}, "observation is not finite at [1] (1e+300)"),
        ({"observation": np.float32([-3, 0, 3])}, "observation is out of its space's bounds at [0] (-3.0), [2] (3.0)"),
        ({"observation": np.float32([0])}, "observation has shape (1,), its space (3,)"),
        ({"observation": np.float32([GOOD])}, "observation has shape (1, 3), its space (3,)"),
        ({"observation": np.array([0, 0, 0])}, "observation has dtype int64, its space float32"),
        ({"observation": [0.0, 0.0, 0.0]}, "observation is [0.0, 0.0, 0.0], not an array"),
        ({"observation": None}, "observation is None, not an array"),
        ({"reward": np.nan}, "the reward is nan, not a finite number"),
        ({"reward": np.float32([1])}, "the reward is array([1.], dtype=float32), not a finite number"),
        ({"reward": None}, "the reward is None, not a finite number"),
        ({"reward": True}, "the reward is True, not a finite number"),
        ({"terminated": 1}, "terminated is 1, not a bool"),
        ({"truncated": None}, "truncated is None, not a bool"),
        ({"info": None}, "info is None, not a dict"),
        (
            {"observes": "image", "observation": np.full((8, 8, 3), 1.5)},
            "observation has dtype float64, its space uint8",
        ),
        (
            {"observes": "wide", "observation": np.full((2, 2), np.inf)},
            "observation is not finite at [0, 0] (inf), [0, 1] (inf), [1, 0] (inf) and 1 more",
        ),
        ({"observes": "dict", "observation": GOOD}, "observation is array([0., 0., 0.], dtype=float32), its space goal, obs"),
        ({"observes": "dict", "observation": {"goal": GOOD}}, "observation has keys goal, its space goal, observation"),
        (
            {"observes": "dict", "observation": {"goal": np.float32([10]), "observation": GOOD}},
            "observation['goal'] is out of its space's bounds at [0] (10.0)",
        ),
    ],
)
def test_a_broken_promise_is_told_with_its_place(instead, message):
    env = CheckValues(Broken(**instead))
    with pytest.raises(EnvError) as caught:
        list(play(env, [one(0)] * 3))
    assert str(caught.value).startswith(f"environment Broken at step 2 of an episode: {message}")
    assert "\n" not in str(caught.value)


def test_a_broken_reset_is_told():
    with pytest.raises(EnvError, match=r"^environment Broken at reset: observation has shape \(1,\), its space \(3,\)$"):
        CheckValues(Broken(at=0, observation=np.float32([0]))).reset()
    with pytest.raises(EnvError, match=r"^environment Broken at reset: info is None, not a dict$"):
        CheckValues(Broken(at=0, info=None)).reset()


@pytest.mark.parametrize("value", [3, -1, 1.0])
def test_discrete_observations_are_checked(value):
    class Counting(Broken):
        def _observe(self):
            return 1, {}

    env = Counting(observation=value)
    env.observation_space = spaces.Discrete(3)
    with pytest.raises(EnvError, match=r"step 2 of an episode: observation is .*, which is not in Discrete\(3\)$"):
        list(play(CheckValues(env), [one(0)] * 3))


@pytest.mark.parametrize("reward", [1, np.float32(1), np.int64(1), np.array(1.0)])
def test_numbers_of_any_kind_pass_as_floats(reward):
    result = list(play(CheckValues(Broken(reward=reward, terminated=np.False_)), [one(0)] * 2))[-1]
    assert result[1] == 1
    assert type(result[1]) is float


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: MaskObservation(Tiny(), [3]), "MaskObservation does not fit Box(3,) of float32: it needs hidden to be indic"),
        (lambda: MaskObservation(Tiny(), []), "needs hidden to be indices of its dimensions, not []"),
        (lambda: MaskObservation(Tiny(), [0, 1, 2]), "needs a dimension left to be seen, or keep_shape=True"),
        (lambda: MaskObservation(Tiny(), "speed"), "MaskObservation: hidden='speed' is not 'velocity'"),
        (lambda: MaskObservation(Tiny(), "velocity"), "needs hidden as indices: the velocities of Tiny are not known"),
        (lambda: MaskObservation(Tiny("image"), [0]), "Box(8, 8, 3) of uint8: it needs a vector, such as 'flatten_obs"),
        (lambda: MaskObservation(Tiny("dict"), [0]), "it needs key to be one of goal, observation"),
        (lambda: MaskObservation(Tiny("dict"), [0], key="gaol"), "it needs key to be one of goal, observation"),
        (lambda: MaskObservation(Tiny(), [0], key="goal"), "it needs a Dict, or no key"),
        (lambda: MaskObservation(gym.make("FrozenLake-v1"), [0]), "does not fit Discrete(16): it needs a Box"),
        (
            lambda: MaskObservation(TimeFeature(gym.make("CartPole-v1")), "velocity"),
            "needs the environment's own observation to find velocities: wrap it first",
        ),
        (lambda: HistoryObservation(Tiny(), 0), "HistoryObservation: length=0 must be at least 1"),
        (lambda: HistoryObservation(Tiny("image"), 2, actions=True), "needs numbers for actions beside floating-point"),
        (lambda: NoisyObservation(Tiny("image"), 1), "NoisyObservation does not fit Box(8, 8, 3) of uint8: it needs floating"),
        (lambda: NoisyObservation(Tiny(), [1, 2]), "it needs one std or one for each dimension, not 2"),
        (lambda: NoisyObservation(Tiny(), -1), "NoisyObservation: std=-1 must be finite and not negative"),
        (lambda: NoisyObservation(Tiny(), np.nan), "NoisyObservation: std=nan must be finite and not negative"),
        (
            lambda: NoisyAction(Tiny(acts="discrete"), 1),
            "NoisyAction does not fit Discrete(3): it needs a Box; 'random_action'",
        ),
        (lambda: RandomAction(Tiny(), 1.5), "RandomAction: probability=1.5 is not in [0, 1]"),
        (lambda: DelayAction(Tiny(), -1), "DelayAction: delay=-1 must not be negative"),
        (lambda: ScaleReward(Tiny(), np.inf), "ScaleReward: scale=inf, shift=0.0 must be finite"),
        (lambda: DelayReward(Tiny(), 0), "DelayReward: every=0 must be at least 1"),
        (lambda: EpisodeReturns(Tiny(), 1.1), "EpisodeReturns: gamma=1.1 is not in [0, 1]"),
        (lambda: TerminateOnSuccess(Tiny(), 0), "TerminateOnSuccess: steps=0 must be at least 1"),
        (lambda: TimeFeature(Tiny(), 0), "TimeFeature: max_steps=0 must be at least 1"),
        (lambda: RecordTrajectories(Tiny(), "unused", every=0), "RecordTrajectories: every=0 must be at least 1"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(build, message):
    with pytest.raises(ConfigError) as caught:
        build()
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_spaces_without_arrays_are_not_recorded(tmp_path):
    env = Tiny()
    env.observation_space = spaces.Dict({"words": spaces.Text(5)})
    with pytest.raises(ConfigError, match=r"^RecordTrajectories does not fit Dict\('words.*: it needs Box, Disc"):
        RecordTrajectories(env, str(tmp_path))
