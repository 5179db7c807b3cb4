"""What users do to policies once the engine computes with them is seen, as where torch computes with them."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from twins import BOX, OFF_POLICY, ON_POLICY, PEERS, SIX, TWINS, VECTOR, build, learnt, like_peer, toy

from spinup_plugins import PPO
from spinup_plugins.engine.networks import optimizers

OBSERVATIONS = VECTOR.sample()[None]


def trunk(model: Any) -> th.nn.Linear:
    """The first layer of the actor."""
    if hasattr(model.policy, "mlp_extractor"):
        return model.policy.mlp_extractor.policy_net[0]
    actor = model.policy.actor
    return (actor.latent_pi if hasattr(actor, "latent_pi") else actor.mu)[0]


def other_head(model: Any) -> None:
    """Replace the actor's last layer."""
    policy = model.policy
    if hasattr(policy, "action_net"):
        owner, name = policy, "action_net"
    else:
        owner, name = (policy.actor, "mu") if hasattr(policy.actor, "latent_pi") else (policy.actor.mu, "2")
    new = th.nn.Linear(owner.get_submodule(name).in_features, BOX.shape[0])
    th.nn.init.constant_(new.weight, 0.0)
    th.nn.init.constant_(new.bias, 0.25)
    setattr(owner, name, new)


def other_state(model: Any) -> None:
    """Put other parameters in the place of those that were bound."""
    state = {name: th.full_like(value, 0.01) for name, value in model.policy.state_dict().items()}
    model.policy.load_state_dict(state, assign=True)


def hook(model: Any) -> None:
    """Look at, and change, what a layer returns."""
    trunk(model).register_forward_hook(lambda module, inputs, output: output + 0.5)


@pytest.mark.parametrize("change", [other_head, other_state, hook])
@pytest.mark.parametrize("cls", SIX)
def test_predictions_are_those_of_the_policy_as_it_is(cls: type, change: Callable[[Any], None]) -> None:
    model = build(cls)
    bound = model.engine
    before, _ = model.predict(OBSERVATIONS, deterministic=True)
    change(model)
    now, _ = model.predict(OBSERVATIONS, deterministic=True)
    assert np.abs(now - before).max() > 1e-3
    np.testing.assert_allclose(now, model.policy.predict(OBSERVATIONS, deterministic=True)[0], atol=1e-6)
    assert bound != "torch"
    assert model.engine == "torch"
    assert model.engine_reason


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")  # says so of first layers
@pytest.mark.parametrize(
    ("register", "reason"),
    [
        (lambda model, seen: trunk(model).register_forward_hook(seen), "a hook on one of its modules"),
        (lambda model, seen: trunk(model).register_full_backward_pre_hook(seen), "a hook on one of its modules"),
        (lambda model, seen: trunk(model).weight.register_hook(seen), "a hook on one of its parameters"),
        (lambda model, seen: optimizers(model.policy)[0].register_step_post_hook(seen), "a hook on its optimiser"),
    ],
    ids=["forward", "backward", "gradient", "step"],
)
@pytest.mark.parametrize("cls", SIX)
def test_hooks_are_called(cls: type, register: Callable[[Any, Any], Any], reason: str) -> None:
    model = learnt(cls)
    seen: list[Any] = []
    register(model, lambda *_: seen.append(1))
    model.learn(24, reset_num_timesteps=False)
    assert seen
    assert (model.engine, model.engine_reason) == ("torch", reason)


def test_a_policy_may_be_hooked_as_a_whole() -> None:
    model = build(PPO)
    assert model.engine != "torch"
    model.policy.register_forward_hook(lambda *_: None)
    assert (model.engine, model.engine_reason) == ("torch", "a hook on one of its modules")


def test_a_hook_that_is_gone_slows_nothing_down() -> None:
    model = build(PPO)
    handle = model.policy.action_net.register_forward_hook(lambda *_: None)
    assert model.engine == "torch"
    handle.remove()
    model.engine = "auto"
    assert model.engine != "torch"


@pytest.mark.parametrize("cls", SIX)
def test_frozen_layers_stay_as_they_are(cls: type) -> None:
    model = learnt(cls)
    layer = trunk(model)
    layer.weight.requires_grad_(False)
    held, free = layer.weight.detach().clone(), layer.bias.detach().clone()
    model.learn(24, reset_num_timesteps=False)
    assert th.equal(layer.weight, held)
    assert not th.equal(layer.bias, free)
    assert (model.engine, model.engine_reason) == ("torch", "frozen parameters")


@pytest.mark.parametrize("cls", TWINS)
def test_optimisers_may_be_set_otherwise_at_any_time(cls: type) -> None:
    """Ours and the peer's decay weights from then on, by the same amounts."""
    weights = []
    for each, kwargs in ((cls, like_peer(cls)), (PEERS[cls], {})):
        model = learnt(each, **kwargs)
        for optimizer in optimizers(model.policy):
            optimizer.param_groups[0]["weight_decay"] = 0.5
        model.learn(24, reset_num_timesteps=False)
        weights.append(th.cat([p.detach().reshape(-1) for p in model.policy.parameters()]))
    th.testing.assert_close(*weights, atol=2e-5, rtol=0)


# --- torch's own layout ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", TWINS)
def test_parameters_as_a_vector(cls: type) -> None:
    ours, peer = learnt(cls, **like_peer(cls)), learnt(PEERS[cls])
    assert ours.engine != "torch"
    vector = ours.policy.parameters_to_vector()
    np.testing.assert_allclose(vector, peer.policy.parameters_to_vector(), atol=1e-5)
    expected, _ = ours.predict(OBSERVATIONS, deterministic=True)
    other = build(cls, seed=7)
    other.predict(OBSERVATIONS)
    other.policy.load_from_vector(vector)
    assert np.array_equal(other.predict(OBSERVATIONS, deterministic=True)[0], expected)


@pytest.mark.parametrize("cls", SIX)
def test_torch_gets_weights_back_as_it_made_them(cls: type) -> None:
    model = learnt(cls)
    assert not all(p.is_contiguous() for p in model.policy.parameters())
    before = model.policy.parameters_to_vector()
    model.engine = "torch"
    assert model.engine == "torch"
    assert np.array_equal(model.policy.parameters_to_vector(), before)
    moments = [m for o in optimizers(model.policy) for state in o.state.values() for m in state.values()]
    assert moments
    assert all(tensor.is_contiguous() for tensor in (*model.policy.parameters(), *moments))


@pytest.mark.parametrize("cls", SIX)
def test_so_does_torch_where_the_optimiser_is_unknown(cls: type) -> None:
    model = build(cls, policy_kwargs={"optimizer_kwargs": {"weight_decay": 0.01}})
    assert model.engine == "torch"
    assert all(p.is_contiguous() for p in model.policy.parameters())


# --- copies ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", SIX)
def test_copies_are_models_of_their_own(cls: type) -> None:
    model = build(cls)
    model.predict(OBSERVATIONS)
    model.env = None  # environments' own affair
    twin = copy.deepcopy(model)
    assert np.array_equal(twin.policy.parameters_to_vector(), model.policy.parameters_to_vector())
    with th.no_grad():
        trunk(twin).bias += 1.0
    for each in (model, twin, pickle.loads(pickle.dumps(model))):
        actions, _ = each.predict(OBSERVATIONS, deterministic=True)
        np.testing.assert_allclose(actions, each.policy.predict(OBSERVATIONS, deterministic=True)[0], atol=1e-6)
        assert each.policy.parameters_to_vector().size == sum(p.numel() for p in each.policy.parameters())
    assert not np.array_equal(twin.policy.parameters_to_vector(), model.policy.parameters_to_vector())


# --- memory ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", [*ON_POLICY, *OFF_POLICY])
def test_many_batch_sizes_are_not_all_kept(cls: type) -> None:
    """Scratch for batches of a size is kept for the next of that size, but not for every size that there ever was."""
    env = toy(actions=spaces.MultiDiscrete([2, 3])) if cls in ON_POLICY else None
    model = build(cls, env)
    for batch in range(1, 60):
        model.predict(np.zeros((batch, *VECTOR.shape), dtype=np.float32))
    bound = model._tier().bound
    held = [vars(part) for part in (bound, bound.actor, getattr(bound, "head", bound.actor))]
    assert all(len(value) <= 20 for each in held for value in each.values() if isinstance(value, dict))
