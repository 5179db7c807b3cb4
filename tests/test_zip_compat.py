"""Zips open both ways, with bitwise equal actions and equal training afterwards, and without this package too."""

import base64
import io
import json
import pickletools
import subprocess
import sys
import threading
import zipfile
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import HerReplayBuffer
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import BitFlippingEnv
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.utils import LinearSchedule, get_system_info
from stable_baselines3.common.vec_env import DummyVecEnv
from twins import BOX, OFF_POLICY, ON_POLICY, PEERS, SIX, SOME, TWINS, VECTOR, build, gap, learnt, like_peer, toy

from spinup_plugins import DDPG, PPO, SAC, TD3, TRPO
from spinup_plugins.errors import ConfigError

OBSERVATIONS = np.random.default_rng(0).uniform(-1.0, 1.0, (32, 3)).astype(np.float32)


def saved(model: BaseAlgorithm, **kwargs: Any) -> io.BytesIO:
    stream = io.BytesIO()
    model.save(stream, **kwargs)
    stream.seek(0)
    return stream


def data_of(stream: Any) -> dict[str, Any]:
    with zipfile.ZipFile(stream) as archive:
        return json.loads(archive.read("data"))


def same_actions(*models: BaseAlgorithm) -> None:
    first, *others = (m.predict(OBSERVATIONS, deterministic=True)[0] for m in models)
    for other in others:
        np.testing.assert_allclose(first, other, rtol=0, atol=1e-6)  # tiers agree up to rounding


def same_state(one: BaseAlgorithm, other: BaseAlgorithm) -> bool:
    return gap(one, other) == 0.0


# --- both ways -------------------------------------------------------------------------------------------------------

VARIANTS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "schedule, AdamW": {
        "learning_rate": LinearSchedule(1e-2, 1e-3, 1.0),
        "policy_kwargs": {"optimizer_class": th.optim.AdamW, "activation_fn": th.nn.ELU, "net_arch": [8, 4]},
    },
}
PARTICULAR: list[tuple[type, dict[str, Any]]] = [
    (PPO, {"use_sde": True, "clip_range_vf": 0.2, "target_kl": 0.1}),
    (TRPO, {"use_sde": True, "sub_sampling_factor": 2}),
    (SAC, {"use_sde": True, "ent_coef": 0.1}),
    (SAC, {"ent_coef": "auto_0.1", "action_noise": NormalActionNoise(np.zeros(2), np.ones(2))}),
    (TD3, {"action_noise": NormalActionNoise(np.zeros(2), np.ones(2)), "policy_delay": 3}),
    (DDPG, {"policy_kwargs": {"n_critics": 2}, "gradient_steps": -1, "train_freq": (1, "episode")}),
]
CASES = [(cls, VARIANTS[name]) for cls in TWINS for name in VARIANTS] + PARTICULAR
IDS = [f"{cls.__name__}-{name}" for cls in TWINS for name in VARIANTS] + [f"{c.__name__}-{list(k)}" for c, k in PARTICULAR]


@pytest.mark.parametrize("ours_first", [True, False], ids=["ours opens there", "theirs opens here"])
@pytest.mark.parametrize(("cls", "kwargs"), CASES, ids=IDS)
def test_zips_open_both_ways(cls: type, kwargs: dict[str, Any], ours_first: bool) -> None:
    """One trains and saves; both load, act alike, train on with the same seed, and still agree."""
    writer = learnt(cls, **like_peer(cls), **kwargs) if ours_first else learnt(PEERS[cls], **kwargs)
    stream = saved(writer)
    ours, peer = cls.load(stream, env=toy()), PEERS[cls].load(stream, env=toy())
    assert same_state(ours, writer)
    assert same_state(peer, writer)
    assert type(ours.policy) is type(peer.policy)
    same_actions(writer, ours, peer)
    for model in (ours, peer):
        model.set_random_seed(5)
        model.learn(8, reset_num_timesteps=False)
    assert ours.num_timesteps == peer.num_timesteps > writer.num_timesteps
    assert ours._n_updates == peer._n_updates > writer._n_updates
    assert gap(ours, writer) > 0.0
    assert gap(ours, peer) <= 1e-5
    ours.policy.load_state_dict(peer.policy.state_dict())
    same_actions(ours, peer)


@pytest.mark.parametrize("cls", TWINS)
def test_a_zip_survives_the_round_trip_through_the_peer(cls: type) -> None:
    """What only ours knows is kept by the peer's own save."""
    extras = {"update_after": 7} if cls in OFF_POLICY else {"reset_on_rollout": True}
    model = learnt(cls, **extras)
    back = cls.load(saved(PEERS[cls].load(saved(model))))
    same_actions(model, back)
    assert vars(back).items() >= extras.items()
    if cls is TRPO:
        assert back.kl_reduction == "sum"


def test_contribs_trpo_goes_on_under_its_own_trust_region() -> None:
    stream = saved(learnt(PEERS[TRPO]))
    assert TRPO.load(stream).kl_reduction == "mean"
    assert TRPO.load(stream, kl_reduction="sum").kl_reduction == "sum"
    assert TRPO.load(saved(learnt(TRPO))).kl_reduction == "sum"


@pytest.mark.parametrize("cls", TWINS)
def test_the_same_parameters_go_by_the_same_names(cls: type) -> None:
    ours, peer = build(cls).get_parameters(), build(PEERS[cls]).get_parameters()
    assert ours.keys() == peer.keys()
    for name in ours:
        assert ours[name].keys() == peer[name].keys()
    with zipfile.ZipFile(saved(build(cls))) as mine, zipfile.ZipFile(saved(build(PEERS[cls]))) as theirs:
        assert sorted(mine.namelist()) == sorted(theirs.namelist())
        assert mine.read("_stable_baselines3_version") == theirs.read("_stable_baselines3_version")
        assert mine.read("system_info.txt").decode() == get_system_info(print_info=False)[1]


@pytest.mark.parametrize("cls", TWINS)
def test_the_same_attributes_are_saved(cls: type) -> None:
    """All but handles on batch-norm statistics, which are found again, and what TD3 lends to SB3's DDPG."""
    ours, peers = data_of(saved(learnt(cls))), data_of(saved(learnt(PEERS[cls])))
    missing = {k for k in peers.keys() - ours.keys() if "batch_norm_stats" not in k}
    assert missing == ({"policy_delay", "target_policy_noise", "target_noise_clip"} if cls is DDPG else set())
    types = {k: v[":type:"] for k, v in peers.items() if isinstance(v, dict) and ":type:" in v and "batch_norm" not in k}
    assert {k: ours[k][":type:"] for k in types} == types


# --- nothing of ours inside ------------------------------------------------------------------------------------------


def words(pickled: bytes) -> set[str]:
    return {str(argument) for _, argument, _ in pickletools.genops(pickled) if isinstance(argument, str)}


MORE: list[tuple[type, dict[str, Any]]] = [
    *((cls, {"vf_lr": LinearSchedule(1e-3, 0.0, 1.0), "value_target": "rewards_to_go"}) for cls in (PPO,)),
    *((cls, {"action_noise": 0.1, "noise_units": "env", "q_lr": 1e-3, "n_steps": 2}) for cls in OFF_POLICY),
]


@pytest.mark.parametrize(("cls", "kwargs"), [(cls, {}) for cls in SIX] + MORE + PARTICULAR, ids=str)
def test_zips_refer_to_none_of_our_modules(cls: type, kwargs: dict[str, Any]) -> None:
    with zipfile.ZipFile(saved(learnt(cls, **kwargs))) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    assert b"spinup" not in content["data"]
    pickles = [base64.b64decode(v[":serialized:"]) for v in json.loads(content["data"]).values() if ":serialized:" in str(v)]
    assert len(pickles) >= 6
    for member, raw in content.items():
        if member.endswith(".pth"):
            with zipfile.ZipFile(io.BytesIO(raw)) as inner:
                pickles += [inner.read(name) for name in inner.namelist() if name.endswith(".pkl")]
    for pickled in pickles:
        assert b"spinup" not in pickled
        assert not any("spinup" in word for word in words(pickled))


WITHOUT_US = """
import sys
import numpy as np

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "spinup_plugins":
            raise ModuleNotFoundError(f"No module named {name!r}")

sys.meta_path.insert(0, Blocked())
import sb3_contrib, stable_baselines3
try:
    import spinup_plugins
except ModuleNotFoundError:
    pass
else:
    raise SystemExit("not blocked")
observations = np.load("observations.npy")
for name in sys.argv[1:]:
    model = getattr(stable_baselines3, name, None) or getattr(sb3_contrib, name)
    actions = model.load(name, device="cpu").predict(observations, deterministic=True)[0]
    assert np.allclose(actions, np.load(f"{name}.npy"), rtol=0, atol=1e-6), name
print("all equal")
"""


def test_zips_open_where_this_package_is_not_installed(tmp_path: Path) -> None:
    np.save(tmp_path / "observations.npy", OBSERVATIONS)
    for cls in TWINS:
        model = learnt(cls)
        model.save(tmp_path / cls.__name__)
        np.save(tmp_path / f"{cls.__name__}.npy", model.predict(OBSERVATIONS, deterministic=True)[0])
    names = [cls.__name__ for cls in TWINS]
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", WITHOUT_US, *names], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "all equal\n"


# --- save ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", SOME)
def test_every_kind_of_path(cls: type, tmp_path: Path) -> None:
    model = learnt(cls)
    for path in ("model", "model.zip", "model.v1", "new/folder/model"):
        for kind in (str, Path):
            model.save(kind(tmp_path / path))
            same_actions(model, cls.load(kind(tmp_path / path)))
    assert {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()} == {
        "model.zip",
        "model.v1",
        "new/folder/model.zip",
    }
    (tmp_path / "model.v1").rename(tmp_path / "model.v1.zip")
    same_actions(model, cls.load(tmp_path / "model.v1"))
    with open(tmp_path / "stream", "wb") as file:
        model.save(file)
    with open(tmp_path / "stream", "rb") as file:
        same_actions(model, cls.load(file))


@pytest.mark.parametrize("cls", [PPO, SAC])
def test_a_file_is_as_readable_as_the_peers(cls: type, tmp_path: Path) -> None:
    build(cls).save(tmp_path / "ours")
    build(PEERS[cls]).save(tmp_path / "peers")
    assert (tmp_path / "ours.zip").stat().st_mode == (tmp_path / "peers.zip").stat().st_mode


@pytest.mark.parametrize("cls", TWINS)
def test_include_and_exclude(cls: type) -> None:
    options = {"exclude": ["learning_rate", "gamma"], "include": ["device", "_custom_logger"]}
    for each in (cls, PEERS[cls]):
        data = data_of(saved(learnt(each), **options))
        assert {"device", "_custom_logger"} <= data.keys()
        assert not {"learning_rate", "gamma", "policy", "env"} & data.keys()
    stream = saved(learnt(cls, gamma=0.5), exclude=["gamma"])
    assert cls.load(stream).gamma == build(cls).gamma
    assert cls.load(stream, gamma=0.7).gamma == 0.7


@pytest.mark.parametrize("cls", OFF_POLICY)
def test_a_replay_buffer_may_be_included(cls: type) -> None:
    model = learnt(cls)
    loaded = cls.load(saved(model, include=["replay_buffer"]), env=toy())
    assert loaded.replay_buffer.pos == model.replay_buffer.pos == 48
    assert np.array_equal(loaded.replay_buffer.actions, model.replay_buffer.actions)
    assert loaded.learn(8, reset_num_timesteps=False).replay_buffer.pos == 56


@pytest.mark.parametrize("cls", SOME)
def test_a_save_that_fails_leaves_the_older_file(cls: type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(cls)
    model.save(tmp_path / "model")
    before = (tmp_path / "model.zip").read_bytes()
    model.lock = threading.Lock()
    with pytest.raises(TypeError, match="pickle"):
        model.save(tmp_path / "model")
    del model.lock

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match="No space left"):
        model.save(tmp_path / "model")
    assert [p.name for p in tmp_path.iterdir()] == ["model.zip"]
    assert (tmp_path / "model.zip").read_bytes() == before


def test_a_save_onto_a_folder_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "model.zip").mkdir()
    with pytest.raises(OSError, match="directory"):
        build(PPO).save(tmp_path / "model")
    assert [p.name for p in tmp_path.iterdir()] == ["model.zip"]


# --- load ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", SIX)
def test_training_goes_on_where_it_stopped(cls: type) -> None:
    """Within one process and without reloading environments, saving changes nothing."""
    model = learnt(cls)
    loaded = cls.load(saved(model), env=toy())
    assert loaded.num_timesteps == model.num_timesteps
    assert loaded._n_updates == model._n_updates
    assert same_state(loaded, model)
    assert loaded.learn(8, reset_num_timesteps=False).num_timesteps == (72 if cls in ON_POLICY else 56)
    assert loaded._n_updates > model._n_updates
    assert not same_state(loaded, model)


@pytest.mark.parametrize("n_envs", [1, 3])
@pytest.mark.parametrize("cls", SIX)
def test_another_number_of_environments(cls: type, n_envs: int) -> None:
    noise = {} if cls in ON_POLICY else {"action_noise": 0.1}  # saved once vectorised
    model = learnt(cls, make_vec_env(toy, n_envs=2), **noise)
    loaded = cls.load(saved(model), env=make_vec_env(toy, n_envs=n_envs))
    same_actions(model, loaded)
    assert loaded.n_envs == n_envs
    loaded.learn(9, reset_num_timesteps=False)
    assert loaded.num_timesteps >= 57
    with pytest.raises(AssertionError, match="number of environments to be set is different"):
        loaded.set_env(make_vec_env(toy, n_envs=2))


@pytest.mark.parametrize("cls", SOME)
def test_prediction_needs_no_environment_but_learning_does(cls: type) -> None:
    loaded = cls.load(saved(learnt(cls)))
    assert loaded.predict(OBSERVATIONS[0])[0].shape == (2,)
    assert loaded.get_env() is None
    with pytest.raises(AssertionError, match="must set the environment before calling"):
        loaded.learn(8)
    loaded.set_env(toy())
    loaded.learn(8, reset_num_timesteps=False)


@pytest.mark.parametrize("cls", SOME)
def test_custom_objects_and_overrides(cls: type) -> None:
    stream = saved(learnt(cls, learning_rate=LinearSchedule(1.0, 0.5, 1.0), seed=3))
    loaded = cls.load(
        stream,
        env=toy(),
        device="cpu",
        custom_objects={"learning_rate": 0.25, "lr_schedule": lambda _: 0.0},
        verbose=0,
        seed=4,
        gamma=0.5,
        tensorboard_log=None,
        stats_window_size=7,
    )
    assert (loaded.lr_schedule(1.0), loaded.seed, loaded.gamma, loaded._stats_window_size) == (0.25, 4, 0.5, 7)
    assert loaded.learn(8).ep_info_buffer.maxlen == 7
    assert cls.load(stream, learning_rate=0.125).lr_schedule(0.5) == 0.125


@pytest.mark.parametrize("cls", SOME)
def test_policy_kwargs_must_be_the_saved_ones(cls: type) -> None:
    policy_kwargs = {"net_arch": [8]}
    stream = saved(learnt(cls))
    same_actions(cls.load(stream), cls.load(stream, policy_kwargs=policy_kwargs))
    assert policy_kwargs == {"net_arch": [8]}
    with pytest.raises(ValueError, match="specified policy kwargs do not equal the stored"):
        cls.load(stream, policy_kwargs={"net_arch": [9]})


@pytest.mark.parametrize("cls", SOME)
def test_a_wrong_environment_is_the_callers_fault(cls: type) -> None:
    stream = saved(learnt(cls))
    with pytest.raises(ValueError, match=r"^Observation spaces do not match"):
        cls.load(stream, env=toy(spaces.Box(-1.0, 1.0, (4,))))
    with pytest.raises(ValueError, match=r"^Action spaces do not match"):
        cls.load(stream, env=toy(VECTOR, spaces.Box(-9.0, 9.0, (2,))))


@pytest.mark.parametrize("key", ["lerning_rate", "gama", "batchsize", "polcy_kwargs", "envs"])
@pytest.mark.parametrize("cls", SIX)
def test_misspelled_load_arguments_are_refused(cls: type, key: str) -> None:
    stream = saved(build(cls))
    with pytest.raises(ConfigError, match=rf"{cls.__name__}.load\(\) got an unknown argument '{key}'") as caught:
        cls.load(stream, **{key: 1})
    expected = {"lerning_rate": "learning_rate", "gama": "gamma", "batchsize": "batch_size", "polcy_kwargs": "policy_kwargs"}
    assert key == "envs" or f"(did you mean '{expected[key]}'?)" in str(caught.value)


@pytest.mark.parametrize("cls", OFF_POLICY)
def test_her_needs_its_environment(cls: type) -> None:
    def bits() -> BitFlippingEnv:
        return BitFlippingEnv(n_bits=2, continuous=True)

    model = learnt(cls, bits(), "MultiInputPolicy", replay_buffer_class=HerReplayBuffer)
    stream = saved(model)
    with pytest.raises(AssertionError, match="You must pass an environment when using `HerReplayBuffer`"):
        cls.load(stream)
    with pytest.raises(ValueError, match="spaces do not match"):
        cls.load(stream, env=toy())
    observation = model.get_env().reset()
    ours, peer = cls.load(stream, env=bits()), PEERS[cls].load(stream, env=bits())
    assert np.allclose(*(m.predict(observation, deterministic=True)[0] for m in (ours, peer)), rtol=0, atol=1e-6)


@pytest.mark.parametrize("cls", SOME)
def test_system_information_on_request(cls: type, capsys: pytest.CaptureFixture[str]) -> None:
    cls.load(saved(build(cls)), print_system_info=True)
    printed = capsys.readouterr().out
    assert "CURRENT SYSTEM INFO" in printed
    assert "SAVED MODEL SYSTEM INFO" in printed


@pytest.mark.parametrize("cls", SOME)
def test_multi_dimensional_zip_of_two_environments(cls: type) -> None:
    """Spaces come back as they were: dtype, shape and bounds."""
    model = learnt(cls, DummyVecEnv([lambda: toy(spaces.Box(-1.0, 1.0, (2, 3), np.float64), BOX)] * 2))
    loaded = cls.load(saved(model))
    assert loaded.observation_space == model.observation_space
    assert loaded.action_space == model.action_space


# --- parameters ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", SIX)
def test_parameters_move_from_model_to_model(cls: type, tmp_path: Path) -> None:
    source, by_dict, by_path = learnt(cls, seed=1), build(cls, seed=2), build(cls, seed=3)
    source.save(tmp_path / "model")
    by_dict.set_parameters(source.get_parameters())
    by_path.set_parameters(str(tmp_path / "model"), device="cpu")
    same_actions(source, by_dict, by_path)
    assert same_state(source, by_dict)
    assert same_state(source, by_path)
    by_dict.learn(48)
    assert not same_state(source, by_dict), "states are copied, not shared"


@pytest.mark.parametrize("cls", SOME)
def test_a_part_of_the_parameters(cls: type) -> None:
    source, target = learnt(cls, seed=1), build(cls, seed=2)
    policy = {"policy": source.get_parameters()["policy"]}
    before = deepcopy(target.get_parameters())
    with pytest.raises(ValueError, match="Names of parameters do not match"):
        target.set_parameters(policy)
    assert all(th.equal(v, target.get_parameters()["policy"][k]) for k, v in before["policy"].items())
    target.set_parameters(policy, exact_match=False)
    same_actions(source, target)


@pytest.mark.parametrize("cls", SOME)
def test_parameters_that_do_not_fit_change_nothing(cls: type, tmp_path: Path) -> None:
    model, reference = learnt(cls), learnt(cls)
    assert same_state(model, reference)
    good = learnt(cls, seed=9).get_parameters()
    last = list(good["policy"])[-1]
    wrong_shape = {**good["policy"], last: th.zeros(77)}
    missing = {k: v for k, v in good["policy"].items() if k != last}
    bad_optimizer = deepcopy(good)
    optimizer = next(name for name in good if "optimizer" in name)
    bad_optimizer[optimizer]["param_groups"][0]["params"] = []
    other_nets = learnt(cls, policy_kwargs={"net_arch": [9]})
    other_nets.save(tmp_path / "other")
    (tmp_path / "text.zip").write_text("not a zip")
    for parameters, error in (
        ({**good, "policy": wrong_shape}, RuntimeError),
        ({**good, "policy": missing}, RuntimeError),
        ({**good, "nonsense": {}}, ValueError),
        (bad_optimizer, ValueError),
        (str(tmp_path / "other"), RuntimeError),
        (str(tmp_path / "text.zip"), ValueError),
        (str(tmp_path / "missing"), FileNotFoundError),
    ):
        with pytest.raises(error):
            model.set_parameters(parameters)
        assert same_state(model, reference)


@pytest.mark.parametrize("cls", [PPO, SAC])
def test_compiled_policies_are_saved_under_their_own_names(cls: type) -> None:
    """``model.policy = th.compile(model.policy)``: wrapping is enough, compiling is not the point."""
    model = learnt(cls)
    model.policy = th.compile(model.policy, backend="eager")
    assert all(not key.startswith("_orig_mod") for key in model.get_parameters()["policy"])
    stream = saved(model)
    for loaded in (cls.load(stream), PEERS[cls].load(stream)):
        same_actions(model, loaded)
