"""SAC, TD3 and DDPG on the engine: the numbers of the torch tier, on memory that torch sees."""

from collections.abc import Iterator
from copy import deepcopy
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.vec_env import VecNormalize
from stable_baselines3.sac.policies import SACPolicy
from test_oracle import PEERS
from tiers import ENGINES, TIERS, Watching, built, gap, predicted

from spinup_plugins import DDPG, SAC, TD3
from spinup_plugins.engine import numpy_ops
from spinup_plugins.engine.q_learning import Transitions
from spinup_plugins.engine.soft_q_learning import SoftActorCritic, Temperature
from spinup_plugins.engine.threads import computing_threads, fastest, widest_layer
from spinup_plugins.engine.tiers import native
from spinup_plugins.errors import ConfigError

THREE = [SAC, TD3, DDPG]
ACTIVATIONS = [th.nn.ReLU, th.nn.Tanh, th.nn.ELU, th.nn.LeakyReLU, th.nn.Sigmoid]
OBSERVATIONS: dict[str, spaces.Space[Any]] = {
    "float32": spaces.Box(-1, 1, (3,), np.float32),
    "float64 of two axes": spaces.Box(-1, 1, (2, 3), np.float64),
    "bytes": spaces.Box(0, 3, (4,), np.uint8),
    "Discrete": spaces.Discrete(5),
    "MultiDiscrete": spaces.MultiDiscrete([2, 3, 4]),
    "MultiBinary": spaces.MultiBinary(3),
    "Dict": spaces.Dict({"a": spaces.Box(-1, 1, (3,), np.float64), "b": spaces.Discrete(2)}),
}
ACTIONS: dict[str, spaces.Box] = {
    "Box": spaces.Box(-1, 1, (2,), np.float32),
    "Box of two axes": spaces.Box(np.full((2, 2), -1.0), np.full((2, 2), 2.0), dtype=np.float64),
}


class Random(gym.Env[Any, Any]):
    """Any spaces, random rewards, episodes that end and are cut."""

    def __init__(self, observation: Any = "float32", action: Any = "Box") -> None:
        self.observation_space = deepcopy(
            OBSERVATIONS.get(observation, observation) if isinstance(observation, str) else observation
        )
        self.action_space = deepcopy(ACTIONS[action] if isinstance(action, str) else action)
        self.rng = np.random.default_rng(0)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self.observation_space.seed(0 if seed is None else seed)
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action)
        reward = float(self.rng.normal() + np.sum(action))
        return self.observation_space.sample(), reward, self.rng.random() < 0.1, self.rng.random() < 0.1, {}


def policy_of(env: Any) -> str:
    return "MultiInputPolicy" if isinstance(env.observation_space, spaces.Dict) else "MlpPolicy"


def filled(cls: type, env: Any, steps: int = 48, **kwargs: Any) -> Any:
    """Build a model and fill its replay buffer by random actions."""
    kwargs = {"seed": 0, "device": "cpu", "buffer_size": 200, "learning_starts": 1000} | deepcopy(kwargs)
    kwargs["policy_kwargs"] = {"net_arch": [8, 8]} | kwargs.get("policy_kwargs", {})
    return cls(policy_of(env), env, **kwargs).learn(steps)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("observation", OBSERVATIONS)
def test_every_space(observation: str, action: str, engine: str) -> None:
    for cls in THREE:
        ours, peer = (
            filled(cls, Random(observation, action), engine=tier, learning_starts=20, batch_size=16)
            for tier in (engine, "torch")
        )
        assert ours.engine == engine
        assert gap(ours, peer, relative=True) <= 1e-5
        np.testing.assert_allclose(ours.replay_buffer.actions, peer.replay_buffer.actions, rtol=0, atol=1e-5)


@given(data=st.data())
@pytest.mark.parametrize("engine", ENGINES)
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_whole_updates(engine: str, data: st.DataObject) -> None:
    """A whole ``train()`` equals the torch tier's, and, where it has the options, Stable-Baselines3's."""
    draw = data.draw
    cls = draw(st.sampled_from(THREE))
    widths = st.lists(st.integers(1, 24), max_size=3)
    kwargs: dict[str, Any] = {
        "learning_rate": draw(st.sampled_from([3e-4, 1e-3, lambda p: 1e-3 * (p + 0.5)])),
        "gamma": draw(st.sampled_from([0.9, 0.99, 1.0])),
        "tau": draw(st.sampled_from([0.005, 0.3, 1.0])),
        "n_steps": draw(st.sampled_from([1, 3])),
        "policy_kwargs": {
            "net_arch": draw(st.one_of(widths, st.fixed_dictionaries({"pi": widths, "qf": widths}))),
            "activation_fn": draw(st.sampled_from(ACTIVATIONS)),
            "n_critics": draw(st.integers(1, 3)),
            # Of a gradient that is nothing but rounding, Adam with its default ε makes a whole step.
            "optimizer_kwargs": {"eps": 1e-5},
        },
    }
    ours_alone: dict[str, Any] = {"q_lr": draw(st.sampled_from([None, 2e-3]))}
    if cls is TD3:
        kwargs |= {
            "policy_delay": draw(st.integers(1, 3)),
            "target_policy_noise": draw(st.sampled_from([0.0, 0.2, 1.0])),
            "target_noise_clip": draw(st.sampled_from([0.1, 0.5])),
        }
        ours_alone["noise_units"] = draw(st.sampled_from(["normalized", "env"]))
    elif cls is SAC:
        kwargs |= {
            "ent_coef": draw(st.sampled_from(["auto", "auto_0.1", 0.2])),
            "target_update_interval": draw(st.integers(1, 3)),
        }
        ours_alone["tanh_correction"] = draw(st.sampled_from(["epsilon", "exact"]))
        ours_alone["critic_loss_coef"] = draw(st.sampled_from([0.5, 1.0]))
    sizes = draw(st.integers(1, 6)), draw(st.integers(1, 4))
    n_envs, batch_size = draw(st.integers(1, 3)), draw(st.integers(1, 40))

    def env() -> Any:
        low = -np.arange(1, sizes[1] + 1, dtype=np.float32)
        space = spaces.Box(low, np.ones_like(low)), spaces.Box(-1, 1, sizes[:1])
        return make_vec_env(lambda: Random(space[1], space[0]), n_envs)

    models = [filled(cls, env(), engine=tier, **kwargs, **ours_alone) for tier in (engine, "torch")]
    if (
        ours_alone.items()
        <= {"q_lr": None, "noise_units": "normalized", "tanh_correction": "epsilon", "critic_loss_coef": 0.5}.items()
    ):
        models.append(filled(PEERS[cls], env(), **kwargs))
    for model in models:
        if ours_alone.get("tanh_correction") == "epsilon":
            # log(1 − a² + 1e-6) loses up to six of seven digits where a is near ±1, on torch as here.
            with th.no_grad():
                model.actor.log_std.bias.fill_(-2.0)
        np.random.seed(1)
        th.manual_seed(1)
        model.train(gradient_steps=4, batch_size=batch_size)
    ours, *peers = models
    assert ours.engine == engine
    for peer in peers:
        assert ours._n_updates == peer._n_updates
        assert gap(ours, peer, relative=True) <= 1e-5
        if cls is SAC and ours.log_ent_coef is not None:
            assert ours.log_ent_coef.item() == pytest.approx(peer.log_ent_coef.item(), abs=1e-6)
    mine, theirs = ours.logger.name_to_value, peers[0].logger.name_to_value
    assert list(mine) == list(theirs)
    for key in mine:
        if key.startswith("train/"):
            assert mine[key] == pytest.approx(theirs[key], rel=1e-4, abs=1e-4), key


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("cls", THREE)
def test_buffers_and_normalisation(cls: type, engine: str) -> None:
    """The engine draws the same minibatches as torch, whatever buffer they are in."""

    class OwnBuffer(ReplayBuffer):
        """Of a class that the engine cannot know."""

    for options in (
        {},
        {"compact_replay": False},
        {"replay_buffer_class": OwnBuffer},
        {"compact_replay": False, "n_steps": 2},
        {"n_steps": 2},
        {"optimize_memory_usage": True, "replay_buffer_kwargs": {"handle_timeout_termination": False}},
    ):
        models = []
        for tier in (engine, "torch"):
            env = VecNormalize(make_vec_env(lambda: Random("float64 of two axes"), 2))
            models.append(filled(cls, env, engine=tier, learning_starts=20, batch_size=8, **options))
        assert gap(*models, relative=True) <= 1e-5


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("cls", THREE)
def test_state_dicts_are_true_at_every_moment(cls: type, engine: str, tmp_path: Any) -> None:
    """Files, parameters and optimisers' moments go from tier to tier in the midst of training."""

    def go_on(model: Any) -> None:
        np.random.seed(1)
        th.manual_seed(1)
        model.train(gradient_steps=3, batch_size=16)

    straight, switching = filled(cls, Random(), engine="torch"), filled(cls, Random(), engine=engine)
    for model in (straight, switching):
        go_on(model)
        go_on(model)
    assert gap(straight, switching, relative=True) <= 1e-5
    switching.save(tmp_path / "half.zip")
    before, buffer = deepcopy(switching.get_parameters()), switching.replay_buffer
    log_ent_coef = None if cls is not SAC else switching.log_ent_coef.detach().clone()
    peer = PEERS[cls].load(tmp_path / "half.zip", env=Random())
    loaded, fresh = cls.load(tmp_path / "half.zip", env=Random(), engine=engine), filled(cls, Random(), engine=engine)
    go_on(fresh)
    fresh.set_parameters(before)
    fresh._n_updates = switching._n_updates
    if log_ent_coef is not None:
        fresh.log_ent_coef.data = log_ent_coef
    switching.engine = "torch"
    assert gap(loaded, switching) == gap(peer, switching) == gap(fresh, switching) == 0.0
    obs = switching.observation_space.sample()
    for model in (loaded, fresh):
        assert model.engine == engine
        expected, _ = model.policy.predict(obs, deterministic=True)
        np.testing.assert_allclose(model.predict(obs, deterministic=True)[0], expected, atol=1e-6)
    for model in (loaded, fresh, peer, switching):
        model.replay_buffer = buffer
        model.set_logger(straight.logger)
        go_on(model)
    for model in (loaded, fresh, peer):
        assert gap(model, switching, relative=True) <= 1e-5
        if cls is SAC:
            assert model.log_ent_coef.item() == pytest.approx(switching.log_ent_coef.item(), abs=1e-6)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("cls", THREE)
def test_what_torch_does_to_the_parameters_is_seen(cls: type, engine: str) -> None:
    model = filled(cls, Random(), engine=engine)
    obs = model.observation_space.sample()
    networks = {name: getattr(model.policy, name) for name in ("actor", "critic", "critic_target")}

    def agrees() -> None:
        assert model.engine == engine
        twin = cls("MlpPolicy", Random(), engine="torch", policy_kwargs={"net_arch": [8, 8]}, device="cpu", seed=0)
        twin.set_logger(model.logger)
        twin.replay_buffer, twin._n_updates = model.replay_buffer, model._n_updates
        twin.set_parameters(deepcopy(model.get_parameters()))
        if cls is SAC:
            twin.log_ent_coef.data = model.log_ent_coef.detach().clone()
        for each in (model, twin):
            np.random.seed(3)
            th.manual_seed(3)
            each.train(gradient_steps=2, batch_size=16)
        assert gap(model, twin, relative=True) <= 1e-5
        actions = (each.predict(obs, deterministic=True)[0] for each in (model, twin))
        np.testing.assert_allclose(next(actions), next(actions), atol=1e-5)

    agrees()
    with th.no_grad():
        for network in networks.values():
            next(network.parameters()).add_(0.1)
    agrees()
    model.policy.load_state_dict(filled(cls, Random(), seed=5).policy.state_dict())
    agrees()
    parameter = next(networks["critic"].parameters())
    parameter.data = parameter.data.clone()  # memory of its own
    agrees()
    model.policy.double().float()
    agrees()
    model.actor.optimizer = th.optim.Adam(model.actor.parameters(), lr=1e-3)
    agrees()
    model.critic.optimizer.load_state_dict(filled(cls, Random(), seed=5).critic.optimizer.state_dict())
    agrees()
    model.critic.optimizer.state.clear()
    agrees()
    model.engine = "torch"
    model.train(gradient_steps=1, batch_size=16)
    model.engine = engine
    agrees()
    copy = deepcopy(model.policy)
    assert copy.actor is not model.actor
    model.policy = copy
    model.actor, model.critic, model.critic_target = copy.actor, copy.critic, copy.critic_target
    if cls is not SAC:
        model.actor_target = copy.actor_target
    agrees()


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("cls", THREE)
def test_predict_is_the_policys(cls: type, engine: str) -> None:
    for observation in OBSERVATIONS:
        for action in ACTIONS:
            env = Random(observation, action)
            model = cls(policy_of(env), env, seed=0, engine=engine, policy_kwargs={"net_arch": [8]}, buffer_size=10)
            assert model.engine == engine
            one = model.observation_space.sample()
            drawn = [model.observation_space.sample() for _ in range(3)]
            several = {k: np.stack([d[k] for d in drawn]) for k in one} if isinstance(one, dict) else np.stack(drawn)
            batch_of_one = {k: np.asarray(v)[None] for k, v in one.items()} if isinstance(one, dict) else np.asarray(one)[None]
            for obs in (one, several, batch_of_one):
                for deterministic in (True, False):
                    ours = predicted(model, obs, deterministic=deterministic)
            kept = ours.copy()
            model.predict(one)
            assert np.array_equal(ours, kept), "what was returned is not written again"


@pytest.mark.parametrize("engine", TIERS)
def test_predict_refuses_what_the_policy_refuses(engine: str) -> None:
    model = SAC("MlpPolicy", "Pendulum-v1", engine=engine, buffer_size=10)
    with pytest.raises(ValueError, match="Unexpected observation shape"):
        model.predict(np.zeros(5, dtype=np.float32))
    with pytest.raises(ValueError, match="tuple to the predict"):
        model.predict((np.zeros(3), {}))
    assert model.predict([0.1, 0.2, 0.3])[0].shape == (1,)


@pytest.mark.parametrize("engine", TIERS)
@pytest.mark.parametrize("cls", THREE)
def test_a_seed_is_a_run(cls: type, engine: str) -> None:
    kwargs = {"learning_starts": 20, "batch_size": 16, "gradient_steps": 2}
    runs = [filled(cls, make_vec_env("Pendulum-v1", 2, seed=0), 80, engine=engine, **kwargs) for _ in range(2)]
    assert gap(*runs) == 0.0


SEEN = ("actions", "buffer_actions", "new_obs", "rewards", "dones", "infos")


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("cls", THREE)
def test_callbacks_see_what_stable_baselines3_shows(cls: type, engine: str) -> None:
    kwargs: dict[str, Any] = {"learning_starts": 10, "batch_size": 8, "seed": 0, "device": "cpu", "buffer_size": 100}
    ours, theirs = Watching(*SEEN), Watching(*SEEN)
    cls("MlpPolicy", make_vec_env("Pendulum-v1", 2, seed=0), engine=engine, action_noise=0.1, **kwargs).learn(32, ours)
    noise = cls("MlpPolicy", "Pendulum-v1", action_noise=0.1, buffer_size=10).action_noise
    PEERS[cls]("MlpPolicy", make_vec_env("Pendulum-v1", 2, seed=0), action_noise=noise, **kwargs).learn(32, theirs)
    assert len(ours.seen) == len(theirs.seen) == 16
    for mine, other in zip(ours.seen, theirs.seen, strict=True):
        for name in mine.keys() - {"infos"}:
            assert (type(mine[name]), mine[name].shape, mine[name].dtype) == (
                type(other[name]),
                other[name].shape,
                other[name].dtype,
            )
            np.testing.assert_allclose(mine[name], other[name], rtol=1e-4, atol=1e-4)


class Own(FlattenExtractor):
    """Not the extractor that the engine knows."""


class OwnPolicy(SACPolicy):
    """Nor the policy."""


class OwnUpdate(SAC):
    """Nor the update."""

    def _update(self, *args: Any) -> Any:
        return super()._update(*args)


class OwnTrain(SAC):
    """Calls what it overrides, which stays where it was."""

    def train(self, gradient_steps: int, batch_size: int = 64) -> None:
        super().train(gradient_steps, batch_size)


@pytest.mark.parametrize(
    ("policy", "kwargs", "reason"),
    [
        ("MlpPolicy", {"policy_kwargs": {"activation_fn": th.nn.GELU}}, "a layer GELU"),
        ("MlpPolicy", {"policy_kwargs": {"features_extractor_class": Own}}, "a features extractor of class Own"),
        ("MlpPolicy", {"policy_kwargs": {"optimizer_class": th.optim.RMSprop}}, "the optimiser RMSprop"),
        ("MlpPolicy", {"policy_kwargs": {"optimizer_kwargs": {"weight_decay": 0.1}}}, "Adam with weight_decay=0.1"),
        ("MlpPolicy", {"use_sde": True}, "gSDE"),
        (OwnPolicy, {}, "a policy of class OwnPolicy"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_what_the_engine_does_not_know_runs_on_torch(policy: Any, kwargs: dict[str, Any], reason: str) -> None:
    options: dict[str, Any] = {"learning_starts": 4, "batch_size": 4, "buffer_size": 20}
    model = SAC(policy, "Pendulum-v1", **options, **deepcopy(kwargs))
    assert (model.engine, model.engine_reason) == ("torch", reason)
    assert all(p.is_contiguous() for p in model.policy.parameters())
    model.learn(8)
    forced = SAC(policy, "Pendulum-v1", engine="numpy", **options, **deepcopy(kwargs))
    with pytest.raises(ConfigError, match=f"^engine='numpy' does not know {reason}; engine='torch' does$"):
        forced.learn(8)


def test_images_run_on_torch() -> None:
    image = spaces.Box(0, 255, (3, 36, 36), np.uint8)
    kwargs: dict[str, Any] = {"buffer_size": 5, "policy_kwargs": {"features_extractor_kwargs": {"features_dim": 4}}}
    for policy in ("CnnPolicy", "MlpPolicy"):
        options = kwargs if policy == "CnnPolicy" else {"buffer_size": 5}
        model = TD3(policy, Random(image), engine="numpy", **options)
        with pytest.raises(ConfigError, match=r"^engine='numpy' does not know (a policy of class CnnPolicy|images)") as caught:
            model.predict(image.sample())
        assert "\n" not in str(caught.value)
    pixels = Random(spaces.Dict({"image": image}))
    assert DDPG("MultiInputPolicy", pixels, buffer_size=5).engine_reason == "images"


def test_subclasses_keep_their_own_methods() -> None:
    model = OwnUpdate("MlpPolicy", "Pendulum-v1", buffer_size=10)
    assert (model.engine, model.engine_reason) == ("torch", "OwnUpdate, which has its own _update()")
    assert OwnTrain("MlpPolicy", "Pendulum-v1", buffer_size=10).engine != "torch"


@pytest.mark.filterwarnings("ignore:`torch.jit", "ignore:.*torch.compile")
@pytest.mark.parametrize("cls", THREE)
def test_compiled_policies_run_on_torch(cls: type) -> None:
    model = cls("MlpPolicy", "Pendulum-v1", buffer_size=10)
    assert model.engine != "torch"
    model.policy = th.compile(model.policy)
    assert (model.engine, model.engine_reason) == ("torch", "a policy of class OptimizedModule")


def test_hooks_are_called() -> None:
    model = SAC("MlpPolicy", "Pendulum-v1", buffer_size=10)
    model.actor.register_forward_hook(lambda *_: None)
    assert (model.engine, model.engine_reason) == ("torch", "a hook on one of its modules")


class Target(gym.Env[Any, Any]):
    """The action is to be what the observation says."""

    observation_space = spaces.Box(-1, 1, (1,), np.float32)
    action_space = spaces.Box(-2, 2, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.steps, self.wanted = 0, self.np_random.uniform(-1, 1, 1).astype(np.float32)
        return self.wanted, {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        reward = -float(np.square(action - self.wanted).sum())
        self.steps, self.wanted = self.steps + 1, self.np_random.uniform(-1, 1, 1).astype(np.float32)
        return self.wanted, reward, False, self.steps >= 10, {}


@pytest.mark.parametrize("engine", TIERS)
@pytest.mark.parametrize("cls", THREE)
def test_a_task_is_learned(cls: type, engine: str) -> None:
    kwargs: dict[str, Any] = {"learning_rate": 3e-3, "gamma": 0.0, "batch_size": 64, "policy_kwargs": {"net_arch": [32, 32]}}
    kwargs |= {} if cls is SAC else {"action_noise": 0.2}
    model = cls("MlpPolicy", Target(), engine=engine, seed=0, **kwargs).learn(600)
    wanted = np.linspace(-0.9, 0.9, 7, dtype=np.float32)[:, None]
    actions, _ = model.predict(wanted, deterministic=True)
    assert np.abs(actions - wanted).max() < 0.3


# --- parts -----------------------------------------------------------------------------------------------------------


def networks(engine: str, **kwargs: Any) -> Any:
    model = SAC("MlpPolicy", Random(), engine=engine, buffer_size=10, seed=0, policy_kwargs={"net_arch": [8], **kwargs})
    return model._tier().bound


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("n_critics", [1, 2, 3])
def test_of_equal_critics_the_first_has_the_gradient(n_critics: int, engine: str) -> None:
    """As torch's ``min`` over a dimension; and the gradient is that of autograd in double precision."""
    bound: SoftActorCritic = networks(engine, n_critics=n_critics)
    if n_critics == 3:
        bound.critics[1].theta[:] = bound.critics[0].theta
    work = bound.workspace(9)
    work.inputs[:] = np.random.default_rng(0).standard_normal(work.inputs.shape)
    value = bound._min_q_gradient(work)
    critic = deepcopy(bound.policy.critic).double()
    inputs = th.from_numpy(work.inputs).double().requires_grad_(True)
    smallest = th.cat([q(inputs) for q in critic.q_networks], dim=1).min(dim=1)
    (gradient,) = th.autograd.grad(-smallest.values.mean(), inputs)
    assert value == pytest.approx(smallest.values.mean().item(), abs=1e-6)
    assert n_critics < 3 or 1 not in smallest.indices
    np.testing.assert_allclose(work.grad_actions, gradient[:, 3:].numpy(), atol=1e-6)


def test_the_temperature_steps_as_adam_does() -> None:
    ours, peer = (th.zeros(1).requires_grad_(True) for _ in range(2))
    optimizers = [th.optim.Adam([x], lr=0.1) for x in (ours, peer)]
    for log_prob in (0.5, -2.0, 3.0):
        alpha, loss = Temperature(numpy_ops, ours, optimizers[0], -1.0).update(log_prob)
        assert alpha == pytest.approx(peer.exp().item())
        expected = -(peer * (log_prob - 1.0)).sum()
        optimizers[1].zero_grad()
        expected.backward()
        optimizers[1].step()
        assert loss == pytest.approx(expected.item(), abs=1e-6)
        assert ours.item() == pytest.approx(peer.item(), abs=1e-7)
    mine, theirs = (optimizer.state_dict()["state"][0] for optimizer in optimizers)
    assert mine.keys() == theirs.keys()
    for key in mine:
        assert mine[key].shape == theirs[key].shape
        th.testing.assert_close(mine[key], theirs[key])


def test_one_step_of_sac_by_hand() -> None:
    """Eqs. (2), (3) with nets that are constants: every critic's output layer is moved by its bias alone."""
    bound: SoftActorCritic = networks("numpy")
    bound.actor.theta[:] = 0.0
    for critic, target, value in zip(bound.critics, bound.critic_targets, (1.0, 2.0), strict=True):
        critic.theta[:] = target.theta[:] = 0.0
        critic.weights[-1][0][1][:] = target.weights[-1][0][1][:] = value
    x, a = np.ones((1, 3), dtype=np.float32), np.zeros((1, 2), dtype=np.float32)
    scalar = lambda v: np.full(1, v, dtype=np.float32)  # noqa: E731
    batch = Transitions(x, a, scalar(0.5), x, scalar(0.0), 0.9)
    metrics = bound.update(batch, (a, a), 0.1, exact=True, critic_loss_coef=0.5, tau=0.5)
    log_prob = -np.log(2 * np.pi)  # two dimensions, tanh' = 1 at 0
    y = 0.5 + 0.9 * (1.0 - 0.1 * log_prob)
    assert metrics["critic_loss"] == pytest.approx(0.5 * ((1.0 - y) ** 2 + (2.0 - y) ** 2), abs=1e-5)
    lr = bound.critic_adam.optimizer.param_groups[0]["lr"]
    biases = [critic.weights[-1][0][1].item() for critic in bound.critics]
    assert biases == pytest.approx([1.0 + lr, 2.0 + lr * np.sign(y - 2.0)], abs=1e-6)
    targets = [target.weights[-1][0][1].item() for target in bound.critic_targets]
    assert targets == pytest.approx([1.0 + lr / 2, 2.0 + lr / 2 * np.sign(y - 2.0)], abs=1e-6)
    assert metrics["actor_loss"] == pytest.approx(0.1 * log_prob - min(biases), abs=1e-5)


# --- threads ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def two_torch_threads() -> Iterator[None]:
    before = th.get_num_threads()
    th.set_num_threads(2)
    yield
    th.set_num_threads(before)


@pytest.mark.usefixtures("two_torch_threads")
@pytest.mark.parametrize("tier", TIERS)
def test_threads_are_put_back(tier: str) -> None:
    from threadpoolctl import threadpool_info

    def pools() -> tuple[int, list[int], int]:
        blas = [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]
        return th.get_num_threads(), blas, 0 if native() is None else native()._native.threads()  # type: ignore[union-attr]

    before = pools()

    def interrupted() -> None:
        with computing_threads(tier, 2, widest=64, batch=64) as count:
            assert count == 2
            torch_threads, blas, natives = pools()
            assert torch_threads == (2 if tier == "torch" else 1)
            assert tier != "numpy" or set(blas) == {2}
            assert tier != "native" or natives == 2
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        interrupted()
    assert pools() == before
    with computing_threads(tier, None, widest=64, batch=64) as count:
        assert count == 1
    with computing_threads(tier, None, widest=1024, batch=256) as count:
        assert {"torch": count == 2, "numpy": count == 1, "native": count >= 1}[tier]
    assert pools() == before


@built
def test_the_fastest_number_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = {1: 1.0, 2: 0.6, 4: 0.58}
    monkeypatch.setattr("spinup_plugins.engine.threads._seconds", lambda ops, count, *_: seconds.get(count, 2.0))
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(4)))
    assert fastest(native(), 256, 256) == 2
    seconds[2] = 0.95
    assert fastest(native(), 256, 256) == 4
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0})
    assert fastest(native(), 256, 256) == 1


@built
def test_native_numbers_do_not_depend_on_threads() -> None:
    kwargs: dict[str, Any] = {"learning_starts": 100, "policy_kwargs": {"net_arch": [200, 200]}, "batch_size": 256}
    runs = [filled(SAC, Random(), 110, engine="native", n_threads=n, **kwargs) for n in (1, 2)]
    assert gap(*runs) == 0.0


def test_the_widest_layer() -> None:
    nets = SimpleNamespace(mlp=th.nn.Sequential(th.nn.Linear(300, 7), th.nn.Linear(7, 9)), cnn=th.nn.Conv2d(1, 1, 3))
    assert widest_layer(nets.mlp) == 9
    assert widest_layer(nets.cnn) > 10**6


def test_n_threads_is_checked_and_saved(tmp_path: Any) -> None:
    with pytest.raises(ConfigError, match="SAC: n_threads=0 must be at least 1"):
        SAC("MlpPolicy", "Pendulum-v1", n_threads=0)
    SAC("MlpPolicy", "Pendulum-v1", n_threads=2, engine="torch", buffer_size=10).save(tmp_path / "model.zip")
    loaded = SAC.load(tmp_path / "model.zip")
    assert (loaded.n_threads, loaded.engine) == (2, "torch")
