"""Bad input is one clear line that names the thing and the place, and leaves nothing broken behind."""

import base64
import io
import json
import os
import re
import warnings
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import sb3_contrib
import stable_baselines3 as sb3
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import CheckpointCallback
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecNormalize
from tiers import TIERS
from twins import BOX, OFF_POLICY, ON_POLICY, PEERS, SIX, SOME, VECTOR, build, gap, learnt, toy

from spinup_plugins import DDPG, PPO, SAC, TD3, TRPO, VPG
from spinup_plugins.errors import ConfigError, DivergedError, EnvError, ModelFileError, UnknownNameError
from spinup_plugins.testing import ToyEnv

pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")


def one_line(error: BaseException) -> str:
    text = str(error)
    assert text
    assert "\n" not in text
    assert len(text) < 400
    return text


# --- names and spaces ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", SIX)
def test_unknown_policies(cls: type) -> None:
    with pytest.raises(UnknownNameError, match=r"Policy MlpPolcy unknown \(did you mean 'MlpPolicy'\?\)") as caught:
        build(cls, policy="MlpPolcy")
    assert one_line(caught.value).endswith(f"{cls.__name__} has MlpPolicy, CnnPolicy, MultiInputPolicy")


@pytest.mark.parametrize("space", [spaces.Discrete(3, start=1), spaces.MultiDiscrete([2, 3], start=[0, -1])])
def test_numbers_that_do_not_begin_at_zero(space: spaces.Space) -> None:
    """Policies number actions from 0, and observations' one-hot vectors have no place for others."""
    for observations, actions, wrapper in (
        (VECTOR, space, "TransformAction"),
        (space, BOX, "TransformObservation"),
        (spaces.Dict({"a": VECTOR, "b": space}), BOX, "TransformObservation"),
    ):
        policy = "MultiInputPolicy" if isinstance(observations, spaces.Dict) else "MlpPolicy"
        with pytest.raises(EnvError, match=f"does not begin at 0.*{wrapper}") as caught:
            PPO(policy, ToyEnv(observations, actions))
        assert one_line(caught.value).startswith(str(space))


@pytest.mark.parametrize("cls", SIX)
def test_unknown_environments(cls: type) -> None:
    with pytest.raises(gym.error.NameNotFound, match="Pendulm") as caught:
        build(cls, "Pendulm-v1")
    one_line(caught.value)


@pytest.mark.parametrize(
    ("cls", "kwargs", "message"),
    [
        (PPO, {"kl_estimator": "k2"}, "kl_estimator='k2' is not one of 'k3', 'k1'"),
        (PPO, {"normalize_advantage": "batsh"}, r"did you mean 'batch'\?"),
        (PPO, {"value_target": "td-lambda"}, r"did you mean 'td_lambda'\?"),
        (TRPO, {"kl_reduction": "som"}, r"did you mean 'sum'\?"),
        (VPG, {"phi": "advantages"}, r"did you mean 'advantage'\?"),
        (VPG, {"horizon": "infinit"}, r"did you mean 'infinite'\?"),
        (SAC, {"tanh_correction": "exactly"}, r"did you mean 'exact'\?"),
        *((cls, {"noise_units": "environment"}, "noise_units='environment' is not one of") for cls in OFF_POLICY),
    ],
)
def test_unknown_choices(cls: type, kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        build(cls, **kwargs)
    assert one_line(caught.value).startswith(f"{next(iter(kwargs))}=")


@pytest.mark.parametrize("bounds", [(-np.inf, np.inf), (0.0, np.inf), (-np.inf, 0.0)])
@pytest.mark.parametrize("cls", SIX)
def test_infinite_action_bounds(cls: type, bounds: tuple[float, float]) -> None:
    with pytest.raises(AssertionError, match="Continuous action space must have a finite lower and upper bound") as caught:
        build(cls, toy(VECTOR, spaces.Box(*bounds, (2,))))
    one_line(caught.value)


@pytest.mark.parametrize(
    ("space", "policy", "error", "message"),
    [
        (spaces.Dict({"a": VECTOR}), "MlpPolicy", ValueError, "You must use `MultiInputPolicy`"),
        (spaces.Dict({"a": spaces.Dict({"b": VECTOR})}), "MultiInputPolicy", NotImplementedError, "Nested observation spaces"),
        (spaces.Tuple([VECTOR, VECTOR]), "MlpPolicy", NotImplementedError, "Tuple"),
        (VECTOR, "CnnPolicy", AssertionError, "You should use NatureCNN only with images"),
    ],
    ids=["dict", "nested", "tuple", "no image"],
)
@pytest.mark.parametrize("cls", SIX)
def test_observation_spaces_that_no_policy_reads(
    cls: type, space: Any, policy: str, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        build(cls, toy(space), policy)


@pytest.mark.parametrize("cls", SIX)
def test_action_spaces_that_no_policy_fills(cls: type) -> None:
    with pytest.raises(AssertionError, match="The algorithm only supports"):
        build(cls, toy(VECTOR, spaces.Dict({"a": BOX})))


# --- advantages without variance -------------------------------------------------------------------------------------


class Indifferent(gym.Env[np.ndarray, Any]):
    """Every episode is one step long and worth the same."""

    observation_space = VECTOR

    def __init__(self, action_space: spaces.Space[Any]) -> None:
        self.action_space = action_space

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        return np.zeros(3, np.float32), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        return np.zeros(3, np.float32), 1.0, True, False, {}


@pytest.mark.parametrize("actions", [BOX, spaces.Discrete(3)], ids=["Box", "Discrete"])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("cls", ON_POLICY)
def test_advantages_without_variance(cls: type, normalize: bool, actions: spaces.Space[Any]) -> None:
    model = build(cls, Indifferent(actions), normalize_advantage=normalize)
    with pytest.warns(UserWarning, match=f"{cls.__name__}: every advantage of the rollout at timestep 24 is") as caught:
        model.learn(24)
    assert "zero variance" in one_line(caught[0].message)
    assert all(th.isfinite(p).all() for p in model.policy.parameters())
    logged = dict(model.logger.name_to_value)
    assert np.isnan(logged.pop("train/explained_variance")), "of returns that do not vary, as in SB3"
    assert np.isfinite(list(logged.values())).all()


# --- environments that break their promises --------------------------------------------------------------------------

Result = tuple[Any, Any, bool, bool, dict[str, Any]]


def last_is_nan(obs: Any, reward: Any, terminated: bool, truncated: bool, info: Any) -> Result:
    """NaN in the observation that ends a truncated episode, which no reset return shows."""
    return (np.full_like(obs, np.nan) if truncated else obs), reward, terminated, truncated, info


FAULTS: dict[str, Callable[..., Result]] = {
    "NaN observation": lambda obs, *rest: (obs * np.nan, *rest),
    "infinite observation": lambda obs, *rest: (np.array([np.inf, 0.0, -np.inf], np.float32), *rest),
    "None": lambda obs, *rest: (np.array([None, 0.0, 0.0]).astype(np.float32), *rest),
    "NaN reward": lambda obs, reward, *rest: (obs, np.nan, *rest),
    "infinite reward": lambda obs, reward, *rest: (obs, -np.inf, *rest),
    "too long": lambda obs, *rest: (np.zeros(5, np.float32), *rest),
    "too short": lambda obs, *rest: (np.zeros(2, np.float32), *rest),
    "another rank": lambda obs, *rest: (np.zeros((3, 2), np.float32), *rest),
    "NaN at the end": last_is_nan,
}
NOT_FINITE = r"environment number 1 returned NaN or infinity in its {} at timestep \d+$"
MESSAGES = {
    "NaN reward": NOT_FINITE.format("reward"),
    "infinite reward": NOT_FINITE.format("reward"),
    "too long": r"returned an observation that does not fit its space Box\(-1.0, 1.0, \(3,\), float32\) at timestep",
}
MESSAGES["too short"] = MESSAGES["another rank"] = MESSAGES["too long"]


class Broken(ToyEnv):
    """Random observations and rewards, until it fails.

    :param fault: what happens from the given step on, one of ``FAULTS``, "reset" or "exit"; empty for nothing
    :param at: step, counted over all episodes
    """

    def __init__(self, fault: str = "", at: int = 20, observations: spaces.Space[Any] = VECTOR) -> None:
        sane = toy(observations)
        super().__init__(sane.observation_space, sane.action_space)
        self.fault, self.at, self.total = fault, at, 0

    def reset(self, **kwargs: Any) -> Any:
        if self.total >= self.at and self.fault == "reset":
            raise RuntimeError("the simulator did not start")
        if self.total >= self.at and self.fault == "NaN reset":
            return super().reset(**kwargs)[0] * np.nan, {}
        return super().reset(**kwargs)

    def step(self, action: Any) -> Any:
        self.total += 1
        if self.total >= self.at and self.fault == "exit":
            os._exit(1)
        result = super().step(action)
        return FAULTS[self.fault](*result) if self.fault in FAULTS and self.total >= self.at else result


def usable(model: Any) -> None:
    """The model is as good as before the fault: finite, and it learns on in a sane environment."""
    assert all(th.isfinite(p).all() for p in model.policy.parameters())
    model.set_env(DummyVecEnv([toy] * model.n_envs))
    model.learn(16, reset_num_timesteps=False)
    assert all(th.isfinite(p).all() for p in model.policy.parameters())


@pytest.mark.parametrize(
    ("cls", "fault"),
    [*((cls, fault) for cls in (PPO, SAC) for fault in FAULTS), *((cls, "NaN at the end") for cls in (VPG, TRPO, DDPG, TD3))],
)
def test_faults_are_named(cls: type, fault: str) -> None:
    model = build(cls, DummyVecEnv([Broken, lambda: Broken(fault)]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(EnvError, match=MESSAGES.get(fault, NOT_FINITE.format("observation"))) as caught:
            model.learn(1000)
    assert "environment number 1" in one_line(caught.value)
    assert 38 <= model.num_timesteps <= 64
    usable(model)


@pytest.mark.parametrize("fault", ["NaN observation", "NaN reward", "too long"])
@pytest.mark.parametrize("cls", [PPO, SAC])
def test_faults_in_other_processes_are_named(cls: type, fault: str) -> None:
    env = SubprocVecEnv([Broken, lambda: Broken(fault)], start_method="fork")
    model = build(cls, env)
    message = MESSAGES.get(fault, NOT_FINITE.format("observation"))
    with pytest.raises(EnvError, match=message) as caught:
        model.learn(1000)
    one_line(caught.value)
    env.close()
    usable(model)


@pytest.mark.parametrize("fault", ["reset", "exit"])
@pytest.mark.parametrize("cls", [PPO, SAC])
def test_a_dead_process_is_named_and_nobody_waits_for_it(cls: type, fault: str, capfd: pytest.CaptureFixture[str]) -> None:
    # In the first place: processes forked earlier hold the pipes of later ones open.
    env = SubprocVecEnv([lambda: Broken(fault), Broken], start_method="fork")
    model = build(cls, env)
    with pytest.raises(EnvError, match="the process of an environment died; its own message stands above") as caught:
        model.learn(1000)
    one_line(caught.value)
    assert ("the simulator did not start" in capfd.readouterr().err) == (fault == "reset")
    with suppress(OSError):
        env.close()
    env.processes[1].terminate()
    usable(model)


@pytest.mark.parametrize("cls", SIX)
def test_a_reset_that_fails_midway(cls: type, tmp_path: Path) -> None:
    """The environment's own error comes through, files are whole, and training can go on."""
    model = build(cls, Broken("reset"))
    with pytest.raises(RuntimeError) as caught:
        model.learn(1000, callback=CheckpointCallback(5, str(tmp_path)))
    assert str(caught.value) == "the simulator did not start"
    assert 20 <= model.num_timesteps <= 24
    assert len(list(tmp_path.iterdir())) == 4
    for path in tmp_path.iterdir():
        cls.load(path)
    usable(model)


@pytest.mark.parametrize("at", [0, 20])
@pytest.mark.parametrize("cls", SIX)
def test_a_reset_may_return_nan(cls: type, at: int) -> None:
    model = build(cls, Broken("NaN reset", at))
    with pytest.raises(EnvError, match="environment number 0 returned NaN or infinity in its observation") as caught:
        model.learn(1000)
    assert ("at timestep 0" in one_line(caught.value)) == (at == 0)
    usable(model)


@pytest.mark.parametrize("cls", ON_POLICY)
def test_the_last_observation_of_a_terminated_episode_is_nobodys_business(cls: type) -> None:
    """Simulators end episodes when their state blows up; on-policy algorithms never look at it."""

    class Explodes(Broken):
        def step(self, action: Any) -> Any:
            obs, reward, terminated, truncated, info = super().step(action)
            over = terminated or truncated
            return (obs * np.nan if over else obs), reward, over, False, info

    model = learnt(cls, Explodes())
    assert all(th.isfinite(p).all() for p in model.policy.parameters())


@pytest.mark.parametrize("cls", OFF_POLICY)
def test_the_last_observation_of_a_terminated_episode_would_poison_the_replay_buffer(cls: type) -> None:
    class Explodes(Broken):
        def step(self, action: Any) -> Any:
            obs, reward, terminated, _, info = super().step(action)
            return (obs * np.nan if terminated else obs), reward, terminated, False, info

        def reset(self, **kwargs: Any) -> Any:
            self.episodes += 1  # even ones terminate
            return super().reset(**kwargs)

    model = build(cls, Explodes())
    with pytest.raises(EnvError, match="environment number 0 returned NaN or infinity in its observation"):
        model.learn(1000)
    assert np.isfinite(model.replay_buffer.next_observations).all()


@pytest.mark.parametrize("cls", [PPO, SAC])
def test_large_but_finite_numbers_are_no_fault(cls: type) -> None:
    """Their sum overflows, which is not theirs to answer for."""

    class Large(Broken):
        def step(self, action: Any) -> Any:
            return np.array([3e38, 3e38, -1.0], np.float32), *super().step(action)[1:]

    space = spaces.Box(-np.inf, np.inf, (3,), np.float32)
    model = build(cls, Large(observations=space))
    model._last_obs = model.get_env().reset()
    model._check_finite(model.get_env().step([model.action_space.sample()])[0])


@pytest.mark.parametrize("cls", [PPO, SAC])
def test_faults_inside_dictionaries_are_named(cls: type) -> None:
    class Parts(Broken):
        def step(self, action: Any) -> Any:
            obs, *rest = super().step(action)
            if self.total >= self.at:
                obs = {"a": obs["a"]} if self.fault == "missing" else obs | {"b": obs["b"] * np.nan}
            return obs, *rest

    parts = spaces.Dict({"a": VECTOR, "b": VECTOR})
    for fault, message in (("nan", r"in its observation\['b'\] at timestep"), ("missing", "does not fit its space Dict")):
        model = build(cls, Parts(fault, observations=parts), "MultiInputPolicy")
        with pytest.raises(EnvError, match=message) as caught:
            model.learn(1000)
        one_line(caught.value)


@pytest.mark.parametrize("cls", [PPO, SAC])
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
def test_faults_below_wrappers_are_named(cls: type) -> None:
    model = build(cls, VecNormalize(DummyVecEnv([Broken, lambda: Broken("NaN observation")])))
    with pytest.raises(EnvError, match="returned NaN or infinity in its observation"):
        model.learn(1000)


def test_environments_are_named_by_their_id() -> None:
    gym.register("Broken-v0", lambda: Broken("NaN reward"), disable_env_checker=True)
    try:
        with pytest.raises(EnvError, match=r"environment 'Broken-v0' \(number 0\) returned NaN or infinity in its reward"):
            build(PPO, "Broken-v0").learn(1000)
    finally:
        del gym.registry["Broken-v0"]


@pytest.mark.parametrize("cls", SIX)
def test_other_errors_pass_as_they_are(cls: type) -> None:
    class Wrong(Broken):
        def step(self, action: Any) -> Any:
            raise ValueError("my own business")

    with pytest.raises(ValueError) as caught:  # noqa: PT011  # its note of which environment it was would match, too
        learnt(cls, Wrong())
    assert str(caught.value) == "my own business"

    def end_of_file(*_: Any) -> bool:
        raise EOFError("a callback's own")

    with pytest.raises(EOFError, match="a callback's own"):
        build(cls).learn(24, callback=end_of_file)


# --- files -----------------------------------------------------------------------------------------------------------


def content(model: Any) -> bytes:
    stream = io.BytesIO()
    model.save(stream)
    return stream.getvalue()


@pytest.fixture(scope="module")
def zips() -> dict[type, bytes]:
    """A file of each of the six, and of every peer."""
    discrete = toy(VECTOR, spaces.Discrete(2))

    def small(cls: type, env: Any, policy: str = "MlpPolicy", **kwargs: Any) -> Any:
        return cls(policy, env, policy_kwargs={"net_arch": [8]}, **kwargs)

    peers = {cls: small(cls, discrete) for cls in (sb3.A2C, sb3_contrib.MaskablePPO)}
    peers |= {cls: small(cls, discrete, buffer_size=9) for cls in (sb3.DQN, sb3_contrib.QRDQN)}
    peers |= {cls: small(cls, toy(), buffer_size=9) for cls in (sb3_contrib.TQC, sb3_contrib.CrossQ)}
    peers[sb3_contrib.RecurrentPPO] = small(sb3_contrib.RecurrentPPO, discrete, "MlpLstmPolicy")
    peers[sb3_contrib.ARS] = sb3_contrib.ARS("LinearPolicy", toy())
    peers |= {cls: build(cls) for cls in [*SIX, *PEERS.values()]}
    return {cls: content(model) for cls, model in peers.items()}


@pytest.mark.parametrize("cls", SIX)
def test_another_algorithms_file(cls: type, zips: dict[type, bytes]) -> None:
    for writer, raw in zips.items():
        # SB3's DDPG is a TD3 without delay and smoothing, and its file is such a TD3's: SB3's TD3 opens it as well.
        if writer in (cls, PEERS.get(cls)) or (cls, writer) == (TD3, sb3.DDPG):
            cls.load(io.BytesIO(raw))
            continue
        with pytest.raises(ModelFileError, match="cannot load the given stream: ") as caught:
            cls.load(io.BytesIO(raw))
        text = one_line(caught.value)
        assert writer is sb3_contrib.MaskablePPO or text.endswith(f"another algorithm than {cls.__name__} wrote it")


@pytest.mark.parametrize("cls", SOME)
def test_paths_that_are_no_model(cls: type, tmp_path: Path) -> None:
    (tmp_path / "text.zip").write_text("this is not a zip file")
    (tmp_path / "empty.zip").touch()
    (tmp_path / "folder.zip").mkdir()
    np.savez(tmp_path / "arrays.zip", a=np.zeros(2))
    (tmp_path / "arrays.zip.npz").rename(tmp_path / "arrays.zip")
    for name, data in (("yaml", "a: 1"), ("list", "[1]"), ("bytes", b"\xff\xfe")):
        with zipfile.ZipFile(tmp_path / f"{name}.zip", "w") as archive:
            archive.writestr("data", data)
    for name, message in {
        "missing": "no such file",
        "missing.zip": "no such file",
        "text": "not a complete zip file",
        "empty": "not a complete zip file",
        "folder": "Is a directory",
        "arrays": "not a Stable-Baselines3 model",
        "yaml": "its 'data' is not JSON",
        "bytes": "its 'data' is not JSON",
        "list": f"another algorithm than {cls.__name__} wrote it",
    }.items():
        with pytest.raises(ModelFileError, match=f"cannot load '.*{name}(.zip)?': {message}") as caught:
            cls.load(tmp_path / name)
        one_line(caught.value)
        assert isinstance(caught.value, FileNotFoundError) == name.startswith("missing")


def rewritten(raw: bytes, member: str, new: bytes | str | None) -> io.BytesIO:
    """Replace a member of a zip, or drop it; checksums are right again."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(raw)) as old, zipfile.ZipFile(out, "w") as archive:
        for name in old.namelist():
            if name != member:
                archive.writestr(name, old.read(name))
            elif new is not None:
                archive.writestr(name, new)
    return out


def members(raw: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(raw)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.mark.parametrize("cls", SOME)
def test_cut_and_flipped(cls: type, zips: dict[type, bytes]) -> None:
    """A file cut short is refused, whatever is left of it; so is one whose bits have changed inside a member."""
    raw = zips[cls]
    for length in (0, 1, 22, 100, len(raw) // 2, len(raw) - 30, len(raw) - 1):
        with pytest.raises(ModelFileError, match="not a complete zip file") as caught:
            cls.load(io.BytesIO(raw[:length]))
        assert one_line(caught.value).count("cannot load") == 1
    with zipfile.ZipFile(io.BytesIO(raw)) as archive:
        # What is left may end in a whole zip: networks are zips inside the zip.
        (network,) = [info for info in archive.infolist() if info.filename == "policy.pth"]
        cut = raw[: network.header_offset + 30 + len(network.filename) + network.file_size]
        assert zipfile.is_zipfile(io.BytesIO(cut))
        with pytest.raises(ModelFileError, match=r"not a complete zip file \(a whole one begins at byte [\d,]+\)$"):
            cls.load(io.BytesIO(cut))
        offsets = [info.header_offset + 30 + len(info.filename) + info.file_size // 2 for info in archive.infolist()]
    for offset in offsets:
        flipped = bytearray(raw)
        flipped[offset] ^= 0b100
        with pytest.raises(ModelFileError, match=r"cannot load the given stream: '.*' inside it is damaged") as caught:
            cls.load(io.BytesIO(bytes(flipped)))
        assert one_line(caught.value).count("cannot load") == 1


@pytest.mark.parametrize("cls", SOME)
def test_members_that_are_wrong_though_whole(cls: type, zips: dict[type, bytes]) -> None:
    raw = zips[cls]
    for name, old in members(raw).items():
        if not name.endswith(".pth"):
            continue
        for new in (None, b"", old[: len(old) // 2], b"\x80garbage" * 20):
            if name == "pytorch_variables.pth" and new is None:
                continue  # SB3 reads a file without any
            with pytest.raises(ModelFileError, match=r"^cannot load the given stream: ") as caught:
                cls.load(rewritten(raw, name, new))
            one_line(caught.value)


PICKLED = {":type:": "", ":serialized:": base64.b64encode(b"garbage").decode()}
#: attributes a file cannot do without, or that make no sense as given
TAMPERED: list[tuple[str, Any]] = [
    ("policy_class", {}),
    ("policy_class", PICKLED),
    ("policy_class", "os.system"),
    ("policy_kwargs", {"net_arch": [99]}),
    ("policy_kwargs", {"unknown": 1}),
    ("policy_kwargs", "text"),
    ("observation_space", None),
    ("observation_space", PICKLED),
    ("action_space", "text"),
    ("n_envs", "many"),
    ("seed", {}),
    ("learning_rate", "fast"),
    ("use_sde", True),
]


@pytest.mark.parametrize("cls", SOME)
@pytest.mark.filterwarnings("ignore:Could not deserialize object")
def test_attributes_that_were_tampered_with(cls: type, zips: dict[type, bytes]) -> None:
    data = json.loads(members(zips[cls])["data"])
    variants = [data | {key: value} for key, value in TAMPERED]
    variants += [{k: v for k, v in data.items() if k != key} for key in ("policy_class", "observation_space", "n_envs")]
    for variant in variants:
        stream = rewritten(zips[cls], "data", json.dumps(variant))
        for kwargs in ({}, {"gamma": 0.5}):
            with pytest.raises((ModelFileError, ConfigError, UnknownNameError, AssertionError)) as caught:
                cls.load(stream, **kwargs)
            one_line(caught.value)


@pytest.mark.parametrize("cls", SOME)
def test_a_module_that_is_not_installed_is_named(cls: type, zips: dict[type, bytes]) -> None:
    """A policy class from a program that is not there."""
    pickled = b"cnowhere_to_be_found\nPolicy\n."
    data = json.loads(members(zips[cls])["data"])
    data["policy_class"] = {":type:": "", ":serialized:": base64.b64encode(pickled).decode()}
    with pytest.raises(ModelFileError, match="ModuleNotFoundError: No module named 'nowhere_to_be_found'") as caught:
        cls.load(rewritten(zips[cls], "data", json.dumps(data)))
    one_line(caught.value)


@pytest.mark.parametrize("cls", SIX)
def test_the_same_file_still_loads_after_all_that(cls: type, zips: dict[type, bytes]) -> None:
    assert gap(cls.load(io.BytesIO(zips[cls])), build(cls)) == 0.0


# --- numbers that cannot be meant ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cls", "kwargs", "limits"),
    [
        (PPO, {"gamma": 5.0}, "between 0 and 1"),
        (PPO, {"n_epochs": 0}, "at least 1"),
        (VPG, {"gae_lambda": -0.1}, "between 0 and 1"),
        (VPG, {"q_steps": 0}, "at least 1"),
        (TRPO, {"target_kl": -0.01}, "at least 0"),
        (TRPO, {"sub_sampling_factor": 0}, "at least 1"),
        (TD3, {"policy_delay": 0}, "at least 1"),
        (DDPG, {"action_noise": -0.1}, "at least 0"),
        (SAC, {"tau": 1.5}, "between 0 and 1"),
        (SAC, {"batch_size": 0}, "at least 1"),
        (SAC, {"critic_loss_coef": -1}, "at least 0"),
        (SAC, {"gradient_steps": -7}, "at least -1"),
        (SAC, {"gradient_steps": "all"}, "a whole number, an int"),
        (SAC, {"train_freq": 0}, "at least 1"),
        (TD3, {"train_freq": (0, "step")}, "at least 1"),
        (DDPG, {"train_freq": (-1, "episode")}, "at least 1"),
        (SAC, {"action_noise": np.float32(-0.5)}, "at least 0"),
        (TD3, {"action_noise": "norml"}, "a number, an ActionNoise or None"),
        (SAC, {"action_noise": {"noise": "normal", "sigma": 0.1}}, "a number, an ActionNoise or None"),
        (PPO, {"seed": 1.5}, "a whole number, an int"),
        (SAC, {"seed": "a"}, "a whole number, an int"),
        (VPG, {"seed": np.int64(3)}, "a whole number, an int"),
        (TRPO, {"seed": -1}, "between 0 and 4294967295"),
        (SAC, {"q_lr": -1e-3}, "at least 0"),
        (SAC, {"target_entropy": float("nan")}, "a number"),
        (PPO, {"batch_size": 0, "normalize_advantage": "batch"}, "at least 1"),
        (PPO, {"clip_range": -0.2}, "at least 0"),
        (PPO, {"ent_coef": float("nan")}, "a number"),
        (PPO, {"gamma": np.float32(1.5)}, "between 0 and 1"),
        (PPO, {"n_steps": 64.0}, "a whole number, an int"),
        (PPO, {"vf_coef": -0.5}, "at least 0"),
        (PPO, {"vf_lr": -1e-3}, "at least 0"),
        (TRPO, {"batch_size": 0}, "at least 1"),
        (TRPO, {"line_search_shrinking_factor": 2.0}, "more than 0 and less than 1"),
        (VPG, {"batch_size": 0}, "at least 1"),
    ],
    ids=str,
)
def test_numbers_out_of_range(cls: type, kwargs: dict[str, Any], limits: str) -> None:
    key, value = next(iter(kwargs.items()))
    with pytest.raises(ConfigError) as caught:
        build(cls, **kwargs)
    assert one_line(caught.value) == f"{cls.__name__}: {key}={value!r} must be {limits}"
    stream = io.BytesIO()
    learnt(cls).save(stream)
    with pytest.raises(ConfigError, match=limits):
        cls.load(stream, **kwargs)


@pytest.mark.parametrize("kwargs", [{"ent_coef": "atuo"}, {"ent_coef": "auto_x"}, {"target_entropy": "aut"}], ids=str)
def test_temperatures_that_are_no_numbers(kwargs: dict[str, Any]) -> None:
    ((key, value),) = kwargs.items()
    with pytest.raises(ConfigError) as caught:
        build(SAC, **kwargs)
    assert f"{key}={value!r}" in one_line(caught.value)


@pytest.mark.parametrize("ent_coef", [-1.0, "auto_-1", "auto_inf"])
def test_temperatures_below_zero(ent_coef: str | float) -> None:
    with pytest.raises(ConfigError, match="must be at least 0") as caught:
        build(SAC, ent_coef=ent_coef)
    assert f"ent_coef={ent_coef!r}" in one_line(caught.value)


@pytest.mark.parametrize(
    ("cls", "key"),
    [
        *((cls, "vf_lr") for cls in (VPG, PPO)),
        *((cls, "q_lr") for cls in OFF_POLICY),
        *((cls, "learning_rate") for cls in SIX),
        (PPO, "clip_range"),
        (PPO, "clip_range_vf"),
        (TRPO, "target_kl"),
    ],
)
def test_schedules_that_fall_below_zero(cls: type, key: str) -> None:
    """From 0.1 to -0.1: the constructor cannot know."""
    model = build(cls, **{key: lambda progress: 0.1 if progress > 0.99 else -0.1})
    with pytest.raises(ConfigError, match=f"{cls.__name__}: {key}'s schedule gives -0.1 at timestep") as caught:
        model.learn(200)
    assert one_line(caught.value).endswith("it must be at least 0")


# --- training that comes to nothing ----------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered:RuntimeWarning")  # NumPy's, on the way there
@pytest.mark.parametrize("engine", TIERS)
@pytest.mark.parametrize("cls", SIX)
def test_divergence_is_no_fault_of_the_environment(cls: type, engine: str) -> None:
    model = build(cls, engine=engine, learning_rate=1e30)
    with pytest.raises(
        DivergedError, match=f"{cls.__name__}: .* after .* updates, at timestep .*: training has diverged"
    ) as caught:
        model.learn(480)
    assert re.search("NaN or infinite|distribution is none", one_line(caught.value))


@pytest.mark.parametrize("cls", SIX)
def test_so_it_is_where_a_network_was_broken_before(cls: type) -> None:
    class Echoing(ToyEnv):
        """Returns the action as its reward."""

        def step(self, action: Any) -> Any:
            observation, _, *rest = super().step(np.nan_to_num(action))
            return observation, float(np.sum(action)), *rest

    model = build(cls, Echoing(VECTOR, BOX), **({"learning_starts": 0} if cls in OFF_POLICY else {}))
    with th.no_grad():
        for p in model.policy.parameters():
            p.fill_(float("nan"))
    with pytest.raises(DivergedError, match=f"{cls.__name__}: the policy's parameters are NaN or infinite after 0 updates"):
        model.learn(48)


# --- observations that nobody can act on -------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", TIERS)
@pytest.mark.parametrize("cls", SIX)
def test_no_action_is_predicted_from_nan(cls: type, engine: str) -> None:
    model, one, sane = build(cls, engine=engine), np.array([0.1, np.nan, 0.0], np.float32), np.zeros(3, np.float32)
    for observation in (one, one.astype(np.float64), np.stack([sane, one]), *([list(one)] if engine != "torch" else [])):
        for deterministic in (True, False):
            with pytest.raises(EnvError, match=r"^the observation given to predict\(\) holds NaN$"):
                model.predict(observation, deterministic=deterministic)
    assert np.isfinite(model.predict(np.array([1e20, -1e20, 0.0], np.float32))[0]).all()
    parts = build(cls, toy(spaces.Dict({"a": VECTOR, "b": VECTOR})), "MultiInputPolicy", engine=engine)
    with pytest.raises(EnvError, match="holds NaN"):
        parts.predict({"a": sane, "b": one})


# --- observations that their space does not know ---------------------------------------------------------------------


@pytest.mark.parametrize("engine", TIERS)
@pytest.mark.parametrize(
    ("space", "value"),
    [
        (spaces.MultiDiscrete([3, 4]), [5, 0]),
        (spaces.MultiDiscrete([3, 4]), [0, -1]),
        (spaces.Discrete(5), [-1]),
        (spaces.Discrete(5), [5]),
    ],
    ids=str,
)
def test_whole_numbers_outside_their_space(space: spaces.Space[Any], value: list[int], engine: str) -> None:
    model = build(PPO, ToyEnv(space, BOX), engine=engine)
    wrong = np.array(value, dtype=np.int64).reshape(1, *space.shape)
    with pytest.raises((EnvError, RuntimeError)) as caught:  # torch's one_hot says it in its own words
        model.predict(wrong)
    assert engine == "torch" or one_line(caught.value) == f"observation {value} is outside its space {space}"
