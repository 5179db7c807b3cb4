"""What is logged, under which keys and where, and what callbacks get to see: as Stable-Baselines3 has it."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import BitFlippingEnv
from stable_baselines3.common.logger import configure
from twins import BOX, OFF_POLICY, ON_POLICY, PEERS, SIX, TWINS, VECTOR, build, learnt, like_peer, toy

from spinup_plugins import DDPG, PPO, SAC, TD3, TRPO, VPG

COMMON = {
    "rollout/ep_rew_mean",
    "rollout/ep_len_mean",
    "time/fps",
    "time/time_elapsed",
    "time/total_timesteps",
    "train/learning_rate",
    "train/n_updates",
}
ITERATIONS = COMMON | {"time/iterations"}
EPISODES = COMMON | {"time/episodes", "train/actor_loss", "train/critic_loss"}
PPO_KEYS = ITERATIONS | {
    "train/entropy_loss",
    "train/policy_gradient_loss",
    "train/value_loss",
    "train/approx_kl",
    "train/clip_fraction",
    "train/loss",
    "train/explained_variance",
    "train/std",
    "train/clip_range",
}
TRPO_KEYS = ITERATIONS | {
    "train/policy_objective",
    "train/value_loss",
    "train/kl_divergence_loss",
    "train/explained_variance",
    "train/is_line_search_success",
    "train/std",
}
VPG_KEYS = ITERATIONS | {
    "train/policy_gradient_loss",
    "train/delta_policy_loss",
    "train/value_loss",
    "train/delta_value_loss",
    "train/entropy_loss",
    "train/approx_kl",
    "train/explained_variance",
    "train/std",
    "train/vf_lr",
}
CASES: list[tuple[type, dict[str, Any], set[str]]] = [
    (PPO, {}, PPO_KEYS),
    (PPO, {"clip_range_vf": 0.2}, PPO_KEYS | {"train/clip_range_vf"}),
    (PPO, {"actions": spaces.Discrete(2)}, PPO_KEYS - {"train/std"}),
    (TRPO, {}, TRPO_KEYS),
    (TRPO, {"target_kl": lambda progress: 0.01 * progress}, TRPO_KEYS | {"train/target_kl"}),
    (VPG, {}, VPG_KEYS),
    (DDPG, {}, EPISODES),
    (TD3, {}, EPISODES),
    (SAC, {}, EPISODES | {"train/ent_coef", "train/ent_coef_loss"}),
    (SAC, {"ent_coef": 0.1}, EPISODES | {"train/ent_coef"}),
    (SAC, {"use_sde": True}, EPISODES | {"train/ent_coef", "train/ent_coef_loss", "train/std"}),
    (TD3, {"q_lr": 1e-3}, EPISODES | {"train/q_lr"}),
    (PPO, {"vf_lr": 1e-3}, PPO_KEYS | {"train/vf_lr"}),
]
OURS_ALONE = {"q_lr", "vf_lr", "target_kl"}


def logged(cls: type, folder: Path, **kwargs: Any) -> list[dict[str, str]]:
    """Train with a CSV logger and return its rows."""
    folder.mkdir()
    model = build(cls, toy(VECTOR, kwargs.pop("actions", BOX)), **kwargs)
    model.set_logger(configure(str(folder), ["csv"]))
    model.learn(96)
    model.logger.close()
    with (folder / "progress.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(("cls", "kwargs", "keys"), CASES, ids=[f"{c.__name__}-{list(k)}" for c, k, _ in CASES])
def test_keys_and_values(cls: type, kwargs: dict[str, Any], keys: set[str], tmp_path: Path) -> None:
    ours = logged(cls, tmp_path / "ours", **like_peer(cls), **kwargs)
    assert set(ours[-1]) == keys
    assert all(ours[-1].values()), "each column has a value by the end"
    if cls not in PEERS or OURS_ALONE & set(kwargs):
        return
    peers = logged(PEERS[cls], tmp_path / "peers", **kwargs)
    assert set(peers[-1]) == keys
    assert len(ours) == len(peers)
    for mine, theirs in zip(ours, peers, strict=True):
        for key in keys - {"time/fps", "time/time_elapsed"}:
            assert (mine[key] == "") == (theirs[key] == ""), key
            if mine[key]:
                assert float(mine[key]) == pytest.approx(float(theirs[key]), rel=1e-3, abs=1e-4), key


def test_loss_is_recorded_and_updates_are_counted() -> None:
    model = build(PPO, n_epochs=3)
    model.learn(48)
    assert model.logger.name_to_value["train/loss"] > 0
    assert model.logger.name_to_value["train/n_updates"] == model._n_updates == 6


@pytest.mark.parametrize("cls", OFF_POLICY)
def test_success_rates(cls: type) -> None:
    model = build(cls, BitFlippingEnv(n_bits=2, continuous=True), "MultiInputPolicy")
    seen: dict[str, Any] = {}
    model.set_logger(configure(None, []))
    dump = model.logger.dump
    model.logger.dump = lambda step: (seen.update(model.logger.name_to_value), dump(step))
    model.learn(40, log_interval=1)
    assert seen["rollout/success_rate"] == np.mean(model.ep_success_buffer)


@pytest.mark.parametrize(("log_interval", "rows"), [(1, 4), (2, 2), (None, 0)])
@pytest.mark.parametrize("cls", ON_POLICY)
def test_on_policy_log_interval_counts_rollouts(cls: type, log_interval: int | None, rows: int) -> None:
    assert count_dumps(build(cls), log_interval) == rows


@pytest.mark.parametrize(("log_interval", "rows"), [(1, 12), (4, 3), (None, 0)])
@pytest.mark.parametrize("cls", OFF_POLICY)
def test_off_policy_log_interval_counts_episodes(cls: type, log_interval: int | None, rows: int) -> None:
    assert count_dumps(build(cls, learning_starts=1000), log_interval) == rows


def count_dumps(model: Any, log_interval: int | None) -> int:
    model.set_logger(configure(None, []))
    dumps: list[int] = []
    model.logger.dump = lambda step: dumps.append(step)
    model.learn(96, log_interval=log_interval)
    return len(dumps)


# --- TensorBoard -----------------------------------------------------------------------------------------------------


def tags(folder: Path) -> set[str]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(folder))
    accumulator.Reload()
    return set(accumulator.Tags()["scalars"])


@pytest.mark.parametrize("cls", SIX)
def test_runs_are_named_after_the_algorithm_and_numbered(cls: type, tmp_path: Path) -> None:
    options = {"tensorboard_log": str(tmp_path)} | ({} if cls in ON_POLICY else {"learning_starts": 1000})
    model = build(cls, **options)
    model.learn(24)
    model.learn(24)
    assert folders(tmp_path) == [f"{cls.__name__}_1", f"{cls.__name__}_2"]
    model.learn(24, reset_num_timesteps=False)
    assert folders(tmp_path) == [f"{cls.__name__}_1", f"{cls.__name__}_2"]
    model.learn(24, tb_log_name="mine")
    assert folders(tmp_path) == [f"{cls.__name__}_1", f"{cls.__name__}_2", "mine_1"]

    class Special(cls):  # type: ignore[misc,valid-type]
        pass

    build(Special, **options).learn(24)
    assert f"{cls.__name__}_3" in folders(tmp_path), "a subclass logs under its parent's name, as in SB3"
    assert model.logger.dir == str(tmp_path / "mine_1")


def folders(path: Path) -> list[str]:
    return sorted(p.name for p in path.iterdir())


@pytest.mark.parametrize("cls", TWINS)
def test_event_files_hold_the_same_tags(cls: type, tmp_path: Path) -> None:
    found = []
    for each in (cls, PEERS[cls]):
        folder = tmp_path / each.__module__
        build(each, tensorboard_log=str(folder)).learn(96)
        found.append(tags(folder / f"{cls.__name__}_1"))
    assert found[0] == found[1]
    excluded = {"train/n_updates", "time/iterations", "time/episodes", "time/time_elapsed", "time/total_timesteps"}
    assert "train/learning_rate" in found[0]
    assert not excluded & found[0]


# --- callbacks -------------------------------------------------------------------------------------------------------


class Witness(BaseCallback):
    """Notes what it is called for, and the locals it sees."""

    def __init__(self, stop_at: int | None = None) -> None:
        super().__init__()
        self.stop_at = stop_at
        self.events: list[str] = []
        self.seen: dict[str, list[dict[str, Any]]] = {}

    def note(self, event: str) -> None:
        self.events.append(event)
        self.seen.setdefault(event, []).append(dict(self.locals))

    def _on_training_start(self) -> None:
        self.note("training start")

    def _on_rollout_start(self) -> None:
        self.note("rollout start")

    def _on_step(self) -> bool:
        self.note("step")
        return self.stop_at is None or self.num_timesteps < self.stop_at

    def _on_rollout_end(self) -> None:
        self.note("rollout end")

    def _on_training_end(self) -> None:
        self.note("training end")


STEP_LOCALS = {
    "on": "self env callback rollout_buffer n_rollout_steps n_steps obs_tensor actions clipped_actions values log_probs"
    " new_obs rewards dones infos",
    "off": "self env callback train_freq replay_buffer action_noise learning_starts log_interval num_collected_steps"
    " num_collected_episodes actions buffer_actions new_obs rewards dones infos",
}
#: what SB3's loops leave lying about once an episode was truncated; ours has a method for it
SCRATCH = {"idx", "done", "terminal_obs", "terminal_value"}
COMPARED = {"new_obs", "rewards", "dones", "actions", "clipped_actions", "buffer_actions", "n_steps"}


@pytest.mark.parametrize("cls", SIX)
def test_callbacks_see_the_locals_they_expect(cls: type) -> None:
    witness = Witness()
    model = build(cls, make_vec_env(toy, n_envs=2))
    model.learn(96, callback=witness)
    assert {"self", "total_timesteps", "callback", "log_interval", "tb_log_name", "reset_num_timesteps"} <= set(
        witness.seen["training start"][0]
    )
    for local in witness.seen["step"]:
        assert set(STEP_LOCALS["on" if cls in ON_POLICY else "off"].split()) <= set(local)
        assert local["self"] is model
        assert local["new_obs"].shape == (2, 3)
        assert local["actions"].shape == (2, 2)
        assert local["rewards"].shape == local["dones"].shape == (2,)
        assert len(local["infos"]) == 2
    if cls in ON_POLICY:
        for local in witness.seen["step"]:
            assert isinstance(local["actions"], np.ndarray)
            assert isinstance(local["obs_tensor"], th.Tensor)
            assert model.action_space.contains(local["clipped_actions"][0].astype(np.float64))
            assert local["values"].shape == (2, 1)
            assert local["log_probs"].shape == (2,)


@pytest.mark.parametrize("cls", TWINS)
def test_callbacks_see_what_the_peers_callbacks_see(cls: type) -> None:
    ours, peers = Witness(), Witness()
    build(cls, **like_peer(cls)).learn(48, callback=ours)
    build(PEERS[cls]).learn(48, callback=peers)
    assert ours.events == peers.events
    for event, locals_ in peers.seen.items():
        for mine, theirs in zip(ours.seen[event], locals_, strict=True):
            assert set(theirs) - set(mine) <= SCRATCH
            for key in COMPARED & set(theirs):
                np.testing.assert_allclose(mine[key], theirs[key], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("cls", SIX)
def test_a_callback_stops_training_at_once(cls: type) -> None:
    witness = Witness(stop_at=30)
    model = build(cls).learn(1000, callback=[witness])
    assert model.num_timesteps == 30
    assert witness.events.count("step") == 30
    reference = Witness(stop_at=30)
    build(PEERS.get(cls, PEERS[PPO])).learn(1000, callback=reference)
    assert witness.events == reference.events
    assert model.learn(24, reset_num_timesteps=False).num_timesteps > 30, "and training can go on"


@pytest.mark.parametrize("cls", SIX)
def test_verbose_prints_a_table(cls: type, capsys: pytest.CaptureFixture[str]) -> None:
    learnt(cls, verbose=1, steps=48)
    printed = capsys.readouterr().out
    assert "ep_rew_mean" in printed
    assert "total_timesteps" in printed
