"""``compile``: the same numbers and random streams, in no file and no copy, and only where torch computes."""

import io
import subprocess
import sys
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from tiers import ENGINES, gap
from twins import PEERS, SIX, build, check_equal, learnt, like_peer, toy

from spinup_plugins import PPO, SAC, TD3, VPG
from spinup_plugins.algorithms import compilation
from spinup_plugins.errors import ConfigError
from spinup_plugins.schema import constructor_parameters, describe_type, jsonable, resolve

pytestmark = [
    # What torch itself hides from users, or says of its own code
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

#: one graph per loss, and no wait for a C++ compiler
WHOLE: dict[str, Any] = {"backend": "aot_eager", "fullgraph": True}
IMAGE = spaces.Box(0, 255, (1, 36, 36), np.uint8)
SMALL_CNN = {"features_extractor_kwargs": {"features_dim": 8}}
#: losses that each algorithm compiles
LOSSES = {
    "VPG": {"_value_loss"},
    "TRPO": {"_value_loss"},
    "PPO": {"_losses"},
    "DDPG": {"_critic_loss", "_actor_loss"},
    "TD3": {"_critic_loss", "_actor_loss"},
    "SAC": {"_pi", "_critic_loss", "_actor_loss"},
}


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """Shapes that one test has seen are not to make the next one's dynamic."""
    yield
    if "torch._dynamo" in sys.modules:
        th._dynamo.reset()


def compiled_by(model: BaseAlgorithm) -> set[str]:
    known = compilation._compilations.get(model)
    return set() if known is None else {function.__name__ for function in known.functions}


def saved(model: BaseAlgorithm) -> io.BytesIO:
    stream = io.BytesIO()
    model.save(stream)
    stream.seek(0)
    return stream


# --- the same numbers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", SIX)
def test_compiled_learning_is_the_same(cls: type) -> None:
    compiled, plain = (learnt(cls, engine="torch", compile=each) for each in (WHOLE, False))
    check_equal(compiled, plain)
    assert compiled_by(compiled) == LOSSES[cls.__name__]
    assert compiled_by(plain) == set()
    assert th.get_rng_state().equal(learnt_state(cls, compile=WHOLE))


def learnt_state(cls: type, **kwargs: Any) -> th.Tensor:
    learnt(cls, engine="torch", **kwargs)
    return th.get_rng_state()


@pytest.mark.parametrize("cls", [PPO, SAC])
def test_compiled_convolutions_are_the_same(cls: type) -> None:
    kwargs: dict[str, Any] = {"policy_kwargs": SMALL_CNN}
    compiled = learnt(cls, toy(IMAGE), "CnnPolicy", compile=WHOLE, **kwargs)
    assert compiled.engine == "torch"
    assert compiled_by(compiled) == LOSSES[cls.__name__]
    check_equal(compiled, learnt(cls, toy(IMAGE), "CnnPolicy", **kwargs))


@pytest.mark.parametrize(
    ("cls", "kwargs"),
    [
        (PPO, {"train_v_iters": 2, "vf_lr": 1e-3, "normalize_advantage": "batch", "clip_range_vf": 0.2}),
        (PPO, {"vf_lr": 1e-3, "target_kl": 0.01, "clip_range": lambda p: 0.1 + 0.1 * p, "n_epochs": 3}),
        (PPO, {"use_sde": True}),
        (SAC, {"use_sde": True, "ent_coef": 0.1}),
        (SAC, {"policy_kwargs": {"share_features_extractor": True}, "tanh_correction": "exact", "n_steps": 2}),
        (TD3, {"policy_kwargs": {"share_features_extractor": True}, "policy_delay": 1}),
    ],
    ids=["separate critic", "early stop", "gSDE", "SAC gSDE", "SAC shared extractor", "TD3 shared extractor"],
)
def test_compiled_options_are_the_same(cls: type, kwargs: dict[str, Any]) -> None:
    compiled, plain = (learnt(cls, engine="torch", compile=each, **kwargs) for each in (WHOLE, False))
    assert compiled_by(compiled) >= LOSSES[cls.__name__]
    check_equal(compiled, plain)


@pytest.mark.slow
@pytest.mark.parametrize("cls", [PPO, SAC])
@pytest.mark.parametrize("policy", ["MlpPolicy", "CnnPolicy"])
def test_torchs_own_compiler(cls: type, policy: str) -> None:
    env, kwargs = (toy(), {}) if policy == "MlpPolicy" else (toy(IMAGE), {"policy_kwargs": SMALL_CNN})
    compiled, plain = (learnt(cls, env, policy, engine="torch", compile=each, **kwargs) for each in (True, False))
    assert compiled_by(compiled) == LOSSES[cls.__name__]
    assert gap(compiled, plain, relative=True) <= 1e-5


def test_every_model_has_a_compiler_cache_of_its_own() -> None:
    """Torch gives up after eight compilations of one function, without a word."""
    th._dynamo.utils.counters.clear()
    for width in range(1, 11):
        learnt(VPG, engine="torch", compile=WHOLE, policy_kwargs={"net_arch": [width]}, steps=24)
    assert th._dynamo.utils.counters["stats"]["unique_graphs"] == 10


# --- where and when --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("cls", SIX)
def test_other_tiers_compile_nothing(cls: type, engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(th, "compile", None)
    model = learnt(cls, engine=engine, compile=True)
    assert (model.engine, compiled_by(model)) == (engine, set())
    assert learnt(cls, compile=True).engine == build(cls).engine


def test_nothing_is_compiled_unless_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(th, "compile", None)
    for cls in SIX:
        learnt(cls, engine="torch")


def test_importing_the_package_imports_no_compiler() -> None:
    code = "import sys; from spinup_plugins import PPO, TRPO, VPG, SAC, TD3, DDPG; print('torch._dynamo' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_compiled_anew_for_another_policy_or_other_arguments() -> None:
    model = build(VPG, engine="torch", compile=WHOLE).learn(24)
    first = compilation._compilations[model].functions[VPG._value_loss]
    model.learn(24)
    assert compilation._compilations[model].functions[VPG._value_loss] is first
    model.compile = WHOLE | {"dynamic": False}
    model.learn(24)
    second = compilation._compilations[model].functions[VPG._value_loss]
    model.policy = deepcopy(model.policy)
    model.learn(24)
    assert len({first, second, compilation._compilations[model].functions[VPG._value_loss]}) == 3


def test_a_copy_compiles_for_itself() -> None:
    model = learnt(SAC, engine="torch", compile=WHOLE)
    copy = deepcopy(model)
    before = deepcopy(model.get_parameters())
    copy.train(2, 8)
    th.testing.assert_close(model.get_parameters()["policy"], before["policy"], rtol=0, atol=0)
    assert gap(copy, model) > 0.0
    assert compiled_by(copy) == compiled_by(model) == LOSSES["SAC"]


# --- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", [PPO, SAC])
def test_zips_of_compiled_models_open_both_ways(cls: type) -> None:
    writer = learnt(cls, engine="torch", compile=WHOLE)
    assert not any("compil" in name for name in vars(writer) if name != "compile")
    peer = PEERS[cls].load(saved(writer), env=toy())
    ours, plain = cls.load(saved(writer), env=toy()), cls.load(saved(writer), env=toy(), compile=False)
    assert (ours.compile, plain.compile, cls.load(saved(peer)).compile) == (WHOLE, False, WHOLE)
    assert cls.load(saved(build(PEERS[cls]))).compile is False
    for model in (ours, plain, peer):
        model.set_random_seed(5)
        model.learn(8, reset_num_timesteps=False)
    assert compiled_by(ours) == LOSSES[cls.__name__]
    assert compiled_by(plain) == set()
    assert max(gap(ours, plain), gap(ours, peer)) <= 1e-5
    assert gap(ours, writer) > 0.0


@pytest.mark.parametrize("cls", SIX)
def test_the_argument_is_saved(cls: type) -> None:
    assert cls.load(saved(build(cls, compile=True))).compile is True
    assert cls.load(saved(build(cls))).compile is False
    if cls in PEERS:
        PEERS[cls].load(saved(build(cls, compile=True, **like_peer(cls))))


def test_a_backend_that_cannot_be_pickled_is_left_out(tmp_path: Path) -> None:
    lock = sys.stdin.buffer if sys.stdin is not None else None

    def backend(graph: Any, inputs: Any) -> Any:
        return graph.forward if lock is not None or inputs else graph

    model = build(VPG, compile={"backend": backend})
    with open(tmp_path / "file", "w") as file:
        model.compile = {"backend": backend, "options": {"log": file}}
        stream = saved(model)
    assert VPG.load(stream).compile is False


# --- arguments -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", SIX)
def test_the_schema_knows_it(cls: type) -> None:
    parameter = constructor_parameters(cls)["compile"]
    assert describe_type(parameter.annotation) == "bool | dict[str, any]"
    assert parameter.default is False
    assert parameter.doc
    for value in (True, {"mode": "reduce-overhead", "dynamic": True}):
        assert resolve(cls, jsonable({"compile": value})) == {"compile": value}
    with pytest.raises(ConfigError, match="compile='yes': expected bool"):
        resolve(cls, {"compile": "yes"})


def test_bad_arguments() -> None:
    with pytest.raises(ConfigError, match=r"PPO: compile: torch\.compile has no argument 'mod'.*mode"):
        build(PPO, compile={"mod": "default"})
    with pytest.raises(ConfigError, match=r"compile=\{'backend': 'inducter'\}: "):
        learnt(VPG, engine="torch", compile={"backend": "inducter"})
    with pytest.raises(ConfigError, match=r"compile=\{'mode': 'fastest'\}: "):
        learnt(VPG, engine="torch", compile={"mode": "fastest"})


def test_what_cannot_be_compiled_runs_uncompiled() -> None:
    """As where there is no C++ compiler."""

    def backend(graph: Any, inputs: Any) -> Any:
        raise RuntimeError("no compiler here")

    with pytest.warns(UserWarning, match="SAC: losses run uncompiled: .*no compiler here") as caught:
        model = learnt(SAC, engine="torch", compile={"backend": backend})
    assert len([each for each in caught if "uncompiled" in str(each.message)]) == 3, "one per loss, not per step"
    check_equal(model, learnt(SAC, engine="torch"))


def test_errors_of_a_loss_are_its_own() -> None:
    class Broken(VPG):
        def _value_loss(self, batch: Any) -> th.Tensor:
            raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        learnt(Broken, compile={"backend": "aot_eager"})
