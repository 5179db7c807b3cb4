"""PPO, TRPO and VPG on the engine: the numbers of the torch tier, on memory that torch sees."""

from copy import deepcopy
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import stable_baselines3 as sb3
import torch as th
from gymnasium import spaces
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import CallbackList
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.torch_layers import FlattenExtractor
from tiers import ENGINES, TIERS, Watching, built, gap, predicted

from spinup_plugins import PPO, SAC, TRPO, VPG
from spinup_plugins.algorithms.common import has_listeners
from spinup_plugins.engine import numpy_ops
from spinup_plugins.engine.heads import make_head
from spinup_plugins.engine.networks import MLP, Memory, Shape, Wiring, shape_of
from spinup_plugins.engine.tiers import PORTABLE_WIDTH, native
from spinup_plugins.errors import ConfigError

pytestmark = pytest.mark.filterwarnings("ignore:You have specified a mini-batch size")

ACTIVATIONS = [th.nn.Tanh, th.nn.ReLU, th.nn.ELU, th.nn.LeakyReLU, th.nn.Sigmoid]

OBSERVATIONS: dict[str, spaces.Space[Any]] = {
    "float32": spaces.Box(-1, 1, (3,), np.float32),
    "float64 of two axes": spaces.Box(-1, 1, (2, 3), np.float64),
    # Small ones: large inputs make TRPO's conjugate gradient amplify rounding, on torch as here.
    "integers": spaces.Box(0, 2, (4,), np.int64),
    "Discrete": spaces.Discrete(5),
    "MultiDiscrete": spaces.MultiDiscrete([2, 3, 4]),
    "MultiBinary": spaces.MultiBinary(3),
}
ACTIONS: dict[str, spaces.Space[Any]] = {
    "Box": spaces.Box(-1, 1, (2,), np.float32),
    "Box of two axes": spaces.Box(np.full((2, 2), -1.0), np.full((2, 2), 2.0), dtype=np.float64),
    "Discrete": spaces.Discrete(3),
    "MultiDiscrete": spaces.MultiDiscrete([3, 2]),
    "MultiBinary": spaces.MultiBinary(2),
}


class Random(gym.Env[Any, Any]):
    """Any spaces, random rewards, episodes that end and are cut."""

    def __init__(self, observation: str, action: str) -> None:
        self.observation_space, self.action_space = deepcopy(OBSERVATIONS[observation]), deepcopy(ACTIONS[action])
        self.rng = np.random.default_rng(0)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self.observation_space.seed(0 if seed is None else seed)
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action)
        reward = float(self.rng.normal() + np.sum(action))
        return self.observation_space.sample(), reward, self.rng.random() < 0.1, self.rng.random() < 0.1, {}


def twins(cls: type, env: Any, engine: str, steps: int, **kwargs: Any) -> tuple[Any, Any]:
    """Train the same on two tiers."""
    models = []
    for tier in (engine, "torch"):
        model = cls("MlpPolicy", env(), engine=tier, device="cpu", **deepcopy(kwargs))
        assert model.engine == tier
        models.append(model.learn(steps))
    return models[0], models[1]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("observation", OBSERVATIONS)
def test_every_space(observation: str, action: str, engine: str) -> None:
    kwargs = {"n_steps": 32, "seed": 1, "policy_kwargs": {"net_arch": [8]}}
    for cls, extra in ((PPO, {"batch_size": 8, "n_epochs": 2}), (TRPO, {"batch_size": 8}), (VPG, {"train_v_iters": 3})):
        ours, peer = twins(cls, lambda: Random(observation, action), engine, 64, **kwargs, **extra)
        assert gap(ours, peer, relative=True) <= 1e-5
        np.testing.assert_array_equal(ours.rollout_buffer.actions.shape, peer.rollout_buffer.actions.shape)
        np.testing.assert_allclose(ours.rollout_buffer.actions, peer.rollout_buffer.actions, rtol=0, atol=1e-5)


@given(data=st.data())
@pytest.mark.parametrize("engine", ENGINES)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_whole_updates(engine: str, data: st.DataObject) -> None:
    draw = data.draw
    cls = draw(st.sampled_from([PPO, TRPO, VPG]))
    widths = st.lists(st.integers(1, 24), max_size=3)
    net_arch = draw(st.one_of(widths, st.fixed_dictionaries({"pi": widths, "vf": widths})))
    rate = draw(st.sampled_from([3e-4, 1e-3, lambda p: 1e-3 * (p + 0.5)]))
    kwargs: dict[str, Any] = {
        "seed": draw(st.integers(0, 99)),
        "n_steps": draw(st.integers(4, 40)),
        "learning_rate": rate,
        "batch_size": draw(st.one_of(st.none(), st.integers(2, 50))),
        "normalize_advantage": draw(st.sampled_from([True, False] + [["minibatch", "batch"], []][cls is VPG])),
        "value_target": draw(st.sampled_from(["td_lambda", "rewards_to_go"])),
        "policy_kwargs": {
            "net_arch": net_arch,
            "activation_fn": draw(st.sampled_from(ACTIVATIONS)),
            # Of a gradient that is nothing but rounding, Adam with VPG's ε of 1e-8 makes a whole step.
            "optimizer_kwargs": {"eps": 1e-5},
        },
    }
    if cls is PPO:
        kwargs |= {
            "n_epochs": draw(st.integers(1, 4)),
            "clip_range": draw(st.sampled_from([0.2, 0.05, lambda p: 0.2 * (p + 0.5)])),
            "clip_range_vf": draw(st.sampled_from([None, 0.5])),
            "ent_coef": draw(st.sampled_from([0.0, 0.01])),
            "vf_coef": draw(st.sampled_from([0.5, 1.0])),
            "max_grad_norm": draw(st.sampled_from([0.5, 0.05, float("inf")])),
            "train_v_iters": draw(st.sampled_from([None, 3])),
            "vf_lr": draw(st.sampled_from([None, 2e-3])),
            "kl_estimator": draw(st.sampled_from(["k1", "k3"])),
        }
    elif cls is TRPO:
        kwargs |= {
            "kl_reduction": draw(st.sampled_from(["sum", "mean"])),
            "target_kl": draw(st.sampled_from([0.01, lambda p: 0.02 * (p + 0.5)])),
            "sub_sampling_factor": draw(st.integers(1, 2)),
            "cg_max_steps": draw(st.integers(1, 5)),
            "n_critic_updates": draw(st.integers(0, 3)),
            "natural_gradient": draw(st.booleans()),
        }
    else:
        kwargs |= {
            "phi": draw(
                st.sampled_from(["advantage", "reward_to_go", "reward_to_go_baseline", "action_value", "total_return"])
            ),
            "train_v_iters": draw(st.integers(0, 4)),
            "ent_coef": draw(st.sampled_from([0.0, 0.01])),
            "max_grad_norm": draw(st.sampled_from([0.5, float("inf")])),
        }
    action, n_envs = draw(st.sampled_from(sorted(ACTIONS))), draw(st.integers(1, 3))
    env = lambda: make_vec_env(lambda: Random("float32", action), n_envs)  # noqa: E731
    ours, peer = twins(cls, env, engine, kwargs["n_steps"] * n_envs, **kwargs)
    assert ours._n_updates == peer._n_updates
    assert gap(ours, peer, relative=True) <= 1e-5
    mine, theirs = ours.logger.name_to_value, peer.logger.name_to_value
    assert mine.keys() == theirs.keys()
    for key in mine:
        if key.startswith("train/") and key != "train/delta_policy_loss":  # a difference of nearly equal numbers
            assert mine[key] == pytest.approx(theirs[key], rel=1e-3, abs=1e-4), key


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("cls", [PPO, TRPO, VPG])
def test_state_dicts_are_true_at_every_moment(cls: type, engine: str, tmp_path: Any) -> None:
    """Files, parameters and optimisers' moments go from tier to tier in the midst of training."""
    kwargs = {"n_steps": 32, "seed": 0}
    straight = cls("MlpPolicy", "CartPole-v1", engine="torch", **kwargs).learn(64)
    switching = cls("MlpPolicy", "CartPole-v1", engine=engine, **kwargs)
    switching.learn(32)
    switching.engine = "torch"
    switching._total_timesteps = 64
    before = deepcopy(switching.get_parameters())
    switching.save(tmp_path / "half.zip")
    loaded = cls.load(tmp_path / "half.zip", env=switching.get_env(), engine=engine)
    assert gap(loaded, switching) == 0.0
    fresh = cls("MlpPolicy", "CartPole-v1", engine=engine, **kwargs)
    assert fresh.engine == engine
    fresh.set_parameters(before)
    obs = np.array([0.1, 0.2, -0.1, 0.0], dtype=np.float32)
    for model in (loaded, fresh):
        assert model.engine == engine
        assert model.predict(obs, deterministic=True) == model.policy.predict(obs, deterministic=True)
        if cls is PPO:
            # The same rollout from here: training goes on as if nothing had happened.
            model.rollout_buffer = deepcopy(switching.rollout_buffer)
            model._current_progress_remaining = switching._current_progress_remaining
            model.set_logger(switching.logger)
    if cls is PPO:
        for model in (switching, loaded, fresh):
            np.random.seed(0)
            model.train()
        assert gap(switching, loaded, relative=True) <= 1e-5
        assert gap(switching, fresh, relative=True) <= 1e-5
    assert straight.engine == "torch"


@pytest.mark.parametrize("engine", ENGINES)
def test_what_torch_does_to_the_parameters_is_seen(engine: str) -> None:
    model = PPO("MlpPolicy", "CartPole-v1", n_steps=32, engine=engine, seed=0).learn(32)
    obs = np.array([[0.1, 0.2, -0.1, 0.0]], dtype=np.float32)

    def agrees() -> bool:
        assert model.engine == engine
        _, _, values, _ = model._tier().bound.act(obs)
        return bool(np.isclose(values[0], model.policy.predict_values(th.from_numpy(obs)).item(), atol=1e-5))

    assert agrees()
    with th.no_grad():
        model.policy.value_net.bias.add_(3.0)
    assert agrees()
    model.policy.load_state_dict(PPO("MlpPolicy", "CartPole-v1", seed=5).policy.state_dict())
    assert agrees()
    model.policy.value_net.bias.data = th.tensor([7.0])  # memory of its own
    assert agrees()
    model.policy.double().float()
    assert agrees()
    model.policy.optimizer = th.optim.Adam(model.policy.parameters(), lr=1e-3)
    assert agrees()
    model.learn(32)
    loss = model.policy.predict_values(th.from_numpy(obs)).sum()
    loss.backward()
    model.policy.optimizer.step()  # a step by torch on the same moments
    assert agrees()
    steps = {float(state["step"]) for state in model.policy.optimizer.state.values()}
    assert len(steps) == 2
    model.learn(32)  # parameters that were stepped more often than others
    assert agrees()


@pytest.mark.parametrize("engine", ENGINES)
def test_predict_is_the_policys(engine: str) -> None:
    for observation in OBSERVATIONS:
        for action in ACTIONS:
            model = PPO("MlpPolicy", Random(observation, action), n_steps=8, seed=0, engine=engine)
            one = model.observation_space.sample()
            several = np.stack([model.observation_space.sample() for _ in range(3)])
            for obs in (np.asarray(one), several):
                for deterministic in (True, False):
                    predicted(model, obs, deterministic=deterministic)


@pytest.mark.parametrize("engine", ENGINES)
def test_predict_refuses_what_the_policy_refuses(engine: str) -> None:
    model = PPO("MlpPolicy", "CartPole-v1", engine=engine)
    with pytest.raises(ValueError, match="Unexpected observation shape"):
        model.predict(np.zeros(5, dtype=np.float32))
    with pytest.raises(ValueError, match="tuple to the predict"):
        model.predict((np.zeros(4), {}))


@pytest.mark.parametrize("engine", TIERS)
def test_a_seed_is_a_run(engine: str) -> None:
    runs = [PPO("MlpPolicy", "CartPole-v1", n_steps=64, seed=7, engine=engine).learn(256) for _ in range(2)]
    assert gap(*runs) == 0.0


SEEN = ("obs_tensor", "actions", "clipped_actions", "values", "log_probs", "new_obs", "rewards", "dones", "infos")


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1"])
def test_callbacks_see_what_stable_baselines3_shows(env: str, engine: str) -> None:
    ours, theirs = Watching(*SEEN), Watching(*SEEN)
    PPO("MlpPolicy", make_vec_env(env, 2, seed=0), n_steps=16, batch_size=16, seed=0, engine=engine).learn(32, ours)
    sb3.PPO("MlpPolicy", make_vec_env(env, 2, seed=0), n_steps=16, batch_size=16, seed=0, device="cpu").learn(32, theirs)
    assert len(ours.seen) == len(theirs.seen) == 16
    for mine, other in zip(ours.seen, theirs.seen, strict=True):
        for name in mine.keys() - {"infos"}:
            assert type(mine[name]) is type(other[name]), name
            assert mine[name].shape == other[name].shape, name
            np.testing.assert_allclose(np.asarray(mine[name]), np.asarray(other[name]), rtol=1e-4, atol=1e-4)


def test_who_listens() -> None:
    model = PPO("MlpPolicy", "CartPole-v1", n_steps=16)
    for nobody in (None, [], CallbackList([])):
        assert not has_listeners(model._init_callback(nobody))
    for somebody in (lambda a, b: True, [Watching()], Watching(), CallbackList([CallbackList([Watching()])])):
        assert has_listeners(model._init_callback(somebody))


class Own(FlattenExtractor):
    """Not the extractor that the engine knows."""


class OwnBuffer(RolloutBuffer):
    """Nor the buffer."""


class OwnLosses(PPO):
    """Nor the losses."""

    def _losses(self, *args: Any, **kwargs: Any) -> Any:
        return super()._losses(*args, **kwargs)


@pytest.mark.parametrize(
    ("kwargs", "reason"),
    [
        ({"policy_kwargs": {"activation_fn": th.nn.GELU}}, "a layer GELU"),
        ({"policy_kwargs": {"features_extractor_class": Own}}, "a features extractor of class Own"),
        ({"policy_kwargs": {"optimizer_class": th.optim.RMSprop}}, "the optimiser RMSprop"),
        ({"policy_kwargs": {"optimizer_kwargs": {"weight_decay": 0.1}}}, "Adam with weight_decay=0.1"),
        ({"use_sde": True}, "gSDE"),
        ({"rollout_buffer_class": OwnBuffer}, "a rollout buffer of class OwnBuffer"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_what_the_engine_does_not_know_runs_on_torch(kwargs: dict[str, Any], reason: str) -> None:
    model = PPO("MlpPolicy", "Pendulum-v1", n_steps=16, batch_size=16, n_epochs=1, **deepcopy(kwargs))
    assert model.engine == "torch"
    assert model.engine_reason == reason
    model.learn(16)
    forced = PPO("MlpPolicy", "Pendulum-v1", n_steps=16, batch_size=16, engine="numpy", **deepcopy(kwargs))
    with pytest.raises(ConfigError, match=f"^engine='numpy' does not know {reason}; engine='torch' does$"):
        forced.learn(16)


def test_a_dictionarys_images_run_on_torch() -> None:
    """Also where they are said to be normalised, so that their space does not tell."""
    env = Random("float32", "Box")
    env.observation_space = spaces.Dict(
        {"image": spaces.Box(0, 1, (3, 36, 36), np.float32), "vector": spaces.Box(-1, 1, (2,))}
    )
    kwargs = {"normalize_images": False, "features_extractor_kwargs": {"normalized_image": True}}
    model = PPO("MultiInputPolicy", env, n_steps=8, batch_size=8, n_epochs=1, policy_kwargs=kwargs)
    assert (model.engine, model.engine_reason) == ("torch", "images")
    model.learn(8)


def test_subclasses_keep_their_own_methods() -> None:
    model = OwnLosses("MlpPolicy", "CartPole-v1", n_steps=16, batch_size=16)
    assert (model.engine, model.engine_reason) == ("torch", "OwnLosses, which has its own _losses()")


@pytest.mark.filterwarnings("ignore:.*torch.compile")
def test_compiled_policies_run_on_torch() -> None:
    model = PPO("MlpPolicy", "CartPole-v1", n_steps=16, engine="auto")
    assert model.engine != "torch"
    model.policy = th.compile(model.policy)
    assert (model.engine, model.engine_reason) == ("torch", "a policy of class OptimizedModule")


def test_unknown_engine() -> None:
    with pytest.raises(ConfigError, match=r"engine='nunpy' is not one of .*did you mean 'numpy'"):
        PPO("MlpPolicy", "CartPole-v1", engine="nunpy")


def test_the_request_is_saved_and_not_the_tier(tmp_path: Any) -> None:
    PPO("MlpPolicy", "CartPole-v1", n_steps=16).save(tmp_path / "auto.zip")
    assert PPO.load(tmp_path / "auto.zip").__dict__["engine"] == "auto"
    assert PPO.load(tmp_path / "auto.zip", engine="torch").engine == "torch"


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("cls", [PPO, TRPO, VPG])
def test_a_task_is_learned(cls: type, engine: str) -> None:
    extra = {"learning_rate": 1e-2, "vf_lr": 1e-2} if cls is VPG else {}
    model = cls("MlpPolicy", "CartPole-v1", n_steps=1024, seed=0, engine=engine, **extra).learn(20_000)
    assert np.mean([episode["r"] for episode in model.ep_info_buffer]) > 100


# --- primitives ------------------------------------------------------------------------------------------------------


def test_memory_is_torchs_memory() -> None:
    net = th.nn.Sequential(th.nn.Linear(3, 5), th.nn.Tanh(), th.nn.Linear(5, 2))
    x = th.randn(4, 3)
    expected = net(x)
    shape, layers = shape_of([net])
    assert shape == Shape((3, 5, 2), hidden=1, output=0, heads=1)
    memory = Memory([(shape, layers)])
    th.testing.assert_close(net(x), expected)
    mlp = MLP(shape, memory.array, np.zeros(memory.size, dtype=np.float32))
    np.testing.assert_allclose(numpy_ops.mlp_forward(mlp, mlp.tape(4), x.numpy()), expected.detach().numpy(), atol=1e-6)
    memory.array[:] = 0.0
    assert net(x).abs().max() == 0.0
    wiring = Wiring(net.modules(), learning=True)
    assert wiring.unchanged
    net.to(th.float64)
    assert not wiring.unchanged


@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("output", [0, 1])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("ops", [numpy_ops, pytest.param("native", marks=built)])
def test_derivatives_of_perceptrons(ops: Any, activation: type, output: int, heads: int) -> None:
    """Backward, forward-mode and input derivatives against torch's in double precision."""
    if ops == "native":
        from spinup_plugins.engine import native_ops as ops
    if heads > 1 and output:
        return
    th.manual_seed(0)
    trunk = th.nn.Sequential(th.nn.Linear(3, 7), activation(), th.nn.Linear(7, 6), activation())
    tops = [th.nn.Linear(6, 2) for _ in range(heads)]
    if heads == 1:
        trunk = th.nn.Sequential(*trunk, tops[0], *([th.nn.Tanh()] if output else []))
    shape, layers = shape_of([trunk], heads=tops if heads > 1 else ())
    memory = Memory([(shape, layers)])
    grad = np.zeros(memory.size, dtype=np.float32)
    mlp = MLP(shape, memory.array, grad)
    x, g = np.random.default_rng(0).standard_normal((9, 3), dtype=np.float32), np.ones((9, 2 * heads), dtype=np.float32)
    tape = mlp.tape(9)
    out = ops.mlp_forward(mlp, tape, x).copy()
    grad_x = np.empty_like(x)
    ops.mlp_backward(mlp, tape, g.copy(), grad_x)
    modules = [deepcopy(m).double() for m in (trunk, *(tops if heads > 1 else []))]
    tx = th.from_numpy(x).double().requires_grad_(True)
    y = modules[0](tx) if heads == 1 else th.cat([top(modules[0](tx)) for top in modules[1:]], dim=1)
    np.testing.assert_allclose(out, y.detach().numpy(), atol=1e-6)
    y.sum().backward()
    np.testing.assert_allclose(grad_x, tx.grad.numpy(), atol=1e-5)
    parameters = [p for module in modules for p in module.parameters()]
    for p, view in zip(parameters, memory.views(th.from_numpy(grad)), strict=True):
        np.testing.assert_allclose(view.numpy(), p.grad.numpy(), atol=1e-5)
    if heads == 1:
        rows = np.array([0, 2, 5], dtype=np.int64)
        part = np.empty((3, 2), dtype=np.float32)
        ops.mlp_input_gradient(mlp, tape, rows, g[rows].copy(), 1, part)
        np.testing.assert_allclose(part, tx.grad.numpy()[rows, 1:], atol=1e-5)
    direction = np.random.default_rng(1).standard_normal(memory.size).astype(np.float32)
    pads = np.ones(memory.size, dtype=bool)
    for view in memory.views(th.from_numpy(pads)):
        view.fill_(False)
    direction[pads] = 0.0
    tangent = ops.mlp_jvp(mlp, tape, direction, mlp.tape(9, slot=1))
    epsilon = 1e-4
    for p, view in zip(parameters, memory.views(th.from_numpy(direction)), strict=True):
        p.data += epsilon * view.double()
    moved = modules[0](tx) if heads == 1 else th.cat([top(modules[0](tx)) for top in modules[1:]], dim=1)
    np.testing.assert_allclose(tangent, ((moved - y) / epsilon).detach().numpy(), atol=2e-2, rtol=2e-2)
    assert (grad[pads] == 0.0).all()


def test_heads_know_their_spaces() -> None:
    empty = np.zeros(0, dtype=np.float32)
    head = make_head(numpy_ops, spaces.MultiDiscrete([2, 3]), empty, empty)
    params = np.log(np.array([[0.25, 0.75, 0.2, 0.3, 0.5]], dtype=np.float32))
    out = np.empty(1, dtype=np.float32)
    entropy = head.log_prob(params, np.array([[1.0, 2.0]], dtype=np.float32), out)
    assert out[0] == pytest.approx(np.log(0.75 * 0.5), abs=1e-6)
    assert entropy == pytest.approx(-sum(p * np.log(p) for p in (0.25, 0.75, 0.2, 0.3, 0.5)), abs=1e-6)
    assert head.draw(params, True).tolist() == [[1, 2]]


@built
def test_portable_code_leaves_wide_layers_to_blas(monkeypatch: pytest.MonkeyPatch) -> None:
    wide, narrow = ({"net_arch": [width]} for width in (PORTABLE_WIDTH + 1, PORTABLE_WIDTH))
    for isa, engine in (("avx2", "native"), ("portable", "numpy")):
        monkeypatch.setattr(native(), "isa", lambda isa=isa: isa)
        model = PPO("MlpPolicy", "CartPole-v1", policy_kwargs=wide)
        assert (model.engine, bool(model.engine_reason)) == (engine, engine == "numpy")
        model.engine = "native"
        assert model.engine == "native", "asked for"
        assert PPO("MlpPolicy", "CartPole-v1", policy_kwargs=narrow).engine == "native"


def test_off_policy_models_have_tiers_too() -> None:
    assert SAC("MlpPolicy", "Pendulum-v1", engine="torch").engine == "torch"
