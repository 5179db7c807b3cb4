"""The compiled primitives against NumPy's: every instruction set, any shape, and arguments that they must refuse."""

import importlib
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3.common.buffers import RolloutBuffer

from spinup_plugins.engine import numpy_ops
from spinup_plugins.engine.networks import MLP, Shape

_native = pytest.importorskip("spinup_plugins.engine._native", reason="the native tier is not built")
native_ops = importlib.import_module("spinup_plugins.engine.native_ops")

F = np.float32
I = np.int32  # noqa: E741
WIDTHS = st.one_of(st.integers(1, 40), st.sampled_from([63, 64, 65, 100, 130, 257]))


@pytest.fixture
def two_threads() -> Iterator[None]:
    _native.set_threads(2)
    yield
    _native.set_threads(1)


def close(ours: Any, theirs: Any, depth: int = 1) -> None:
    """Equal up to the rounding of sums of ``depth`` terms."""
    scale = max(1.0, float(np.abs(theirs).max(initial=0.0)))
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-6 * scale * max(1.0, math.sqrt(depth)))


@given(
    sizes=st.lists(WIDTHS, min_size=2, max_size=5),
    hidden=st.integers(0, 5),
    output=st.integers(0, 5),
    heads=st.integers(1, 3),
    batch=st.one_of(st.integers(1, 70), st.just(600)),
    seed=st.integers(0, 9),
)
@settings(max_examples=60, deadline=None)
def test_perceptrons(sizes: list[int], hidden: int, output: int, heads: int, batch: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    shape = Shape(tuple(sizes), hidden, output if heads == 1 else 0, heads)
    nets = [MLP(shape, np.zeros(shape.size, F), np.full(shape.size, 7.0, F)) for _ in range(2)]
    for layer, other in zip(nets[0].weights, nets[1].weights, strict=True):
        for (w, b), (w2, b2) in zip(layer, other, strict=True):
            w[:] = w2[:] = rng.standard_normal(w.shape) / math.sqrt(len(w))
            b[:] = b2[:] = rng.standard_normal(b.shape)
    x = rng.standard_normal((batch, sizes[0])).astype(F)
    g = rng.standard_normal((batch, sizes[-1] * heads)).astype(F)
    direction = (nets[0].theta != 0) * rng.standard_normal(shape.size).astype(F)
    results: list[list[Any]] = []
    for ops, net in ((numpy_ops, nets[0]), (native_ops, nets[1])):
        tape = net.tape(batch)
        found: list[Any] = []
        ops.mlp_forward(net, tape, x)
        found.append(tape.flat.copy())
        tape.flat[:] = results[0][0] if results else tape.flat  # outputs on either side of a kink have other slopes
        grad_x = np.empty_like(x)
        ops.mlp_backward(net, tape, g.copy(), grad_x)
        found += [grad_x, *(part.copy() for layer in net.grads or [] for pair in layer for part in pair)]
        ops.mlp_backward(net, tape, g.copy(), None)
        found.append(ops.mlp_jvp(net, tape, direction.astype(F), net.tape(batch, slot=1)).copy())
        if heads == 1:
            first = sizes[0] // 2
            for rows in (None, np.arange(0, batch, 2, dtype=np.int64)):
                count = batch if rows is None else len(rows)
                part = np.empty((count, sizes[0] - first), F)
                ops.mlp_input_gradient(net, tape, rows, (g if rows is None else g[rows]).copy(), first, part)
                found.append(part)
        results.append(found)
    for theirs, ours in zip(*results, strict=True):
        close(ours, theirs, depth=max(batch, *sizes))


@given(batch=st.integers(1, 70), size=st.integers(1, 20), scale=st.sampled_from([0.1, 1.0, 5.0]), seed=st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_elementwise(batch: int, size: int, scale: float, seed: int) -> None:
    rng = np.random.default_rng(seed)

    def some(*shape: int) -> Any:
        return (scale * rng.standard_normal(shape)).astype(F)

    mean, actions, log_std, g, entropy = some(batch, size), some(batch, size), some(size) * F(0.3), some(batch), 0.3
    nvec = np.array([size, 2, 3], np.int32)
    logits = some(batch, size + 5)
    choices = np.stack([rng.integers(0, n, batch) for n in nvec], axis=1).astype(F)
    noise, coins = rng.exponential(size=batch * (size + 5)).astype(F), rng.integers(0, 2, (batch, size)).astype(F)
    params, old, returns = some(batch, 2 * size), some(batch) * F(0.1), some(batch)
    log_prob = old + some(batch) * F(0.1)
    results: list[list[Any]] = []
    for ops in (numpy_ops, native_ops):
        row, table, wide = np.empty(batch, F), np.empty((batch, size), F), np.empty((batch, size + 5), F)
        found: list[Any] = []

        def keep(*values: Any, into: list[Any] = found) -> None:
            into.extend(np.array(value) for value in values)

        ops.gaussian_log_prob(mean, log_std, actions, row)
        keep(row)
        own = np.empty(size, F)
        ops.gaussian_gradient(mean, log_std, actions, g, entropy, table, own)
        keep(table, own)
        ops.gaussian_draw(mean, log_std, actions, table, row)
        keep(table, row)
        keep(ops.categorical_log_prob(logits, nvec, choices, row, wide), row, wide)
        log_softmax = wide.copy()
        ops.categorical_gradient(log_softmax, nvec, choices, g, entropy, wide)
        keep(wide)
        drawn = np.empty((batch, 3), np.int64)
        ops.categorical_draw(logits, nvec, noise, drawn, row)
        keep(drawn, row)
        keep(ops.bernoulli_log_prob(mean, coins, row), row)
        ops.bernoulli_gradient(mean, coins, g, entropy, table)
        keep(table)
        for exact in (False, True):
            ops.squash(params, actions, exact, table, row)
            squashed = np.tanh(params[:, :size] * F(0.3)).astype(F)
            keep(table)
            if scale < 0.5 or exact:  # log(1 − a² + 1e-6) has no digits left where a rounds to 1
                keep(row)
            grad = np.empty((batch, 2 * size), F)
            ops.squash_gradient(params, actions, squashed, exact, mean, 0.01, grad)
            keep(grad)
        for clip, normalize in ((0.2, True), (0.05, False), (math.inf, True)):
            keep(*ops.surrogate(log_prob, old, returns, clip, normalize, row))
            keep(row)
        for clip in (math.inf, 0.1):
            keep(ops.value_loss(log_prob, old, returns, clip, 0.5, row), row)
        theta, moments = some(33) * 0 + F(0.5), np.linspace(-1, 1, 33).astype(F)
        first, second = moments.copy(), np.abs(moments)
        ops.adam(theta, moments.copy(), first, second, 3.0, 1e-2, 0.9, 0.999, 1e-5, 0.5)
        target = moments.copy()
        ops.polyak(theta, target, 0.005)
        keep(theta, first, second, target, ops.norm(moments))
        results.append(found)
    for theirs, ours in zip(*results, strict=True):
        close(ours, theirs, depth=4 * batch)


@given(batch=st.integers(1, 40), nvec=st.lists(st.integers(1, 5), min_size=1, max_size=3), seed=st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_acting_elementwise(batch: int, nvec: list[int], seed: int) -> None:
    rng, size = np.random.default_rng(seed), sum(nvec)
    shapes = Shape((3, 7, size), hidden=1), Shape((3, 5, 5, 1), hidden=1)
    thetas = [rng.standard_normal(shape.size).astype(F) for shape in shapes]
    x, log_std, noise = (rng.standard_normal(shape).astype(F) for shape in ((batch, 3), (size,), (batch, size)))
    waits, high = rng.exponential(size=batch * size).astype(F), rng.uniform(0, 1, size).astype(F)
    results = []
    for ops in (numpy_ops, native_ops):
        actor, critic = (MLP(shape, theta.copy()) for shape, theta in zip(shapes, thetas, strict=True))
        (actions, clipped), values, log_probs = np.empty((2, batch, size), F), np.empty((2, batch), F), np.empty((2, batch), F)
        ops.gaussian_act(actor, critic, x, values[0], log_std, noise, -high, high, actions, clipped, log_probs[0])
        drawn = np.empty((batch, len(nvec)), np.int64)
        ops.categorical_act(actor, critic, x, values[1], np.array(nvec, I), waits, drawn, log_probs[1])
        assert (np.abs(clipped) <= high).all()
        results.append((actions, clipped, values, log_probs, drawn))
    for theirs, ours in zip(*results, strict=True):
        close(ours, theirs, depth=8)


@pytest.mark.parametrize("code", range(1, 6))
def test_activations_are_accurate(code: int) -> None:
    """To a few units in the last place of single precision, for any input; NaN stays NaN."""
    x = np.concatenate([np.linspace(-30, 30, 6001), np.geomspace(1e-8, 1e30, 900), -np.geomspace(1e-8, 1e30, 900)])
    shape = Shape((1, 1, 1), hidden=code)
    net = MLP(shape, np.zeros(shape.size, F), None)
    net.weights[0][0][0][:] = 1.0
    tape = net.tape(len(x) + 1)
    native_ops.mlp_forward(net, tape, np.append(x, np.nan).astype(F)[:, None].copy())
    exact = {
        1: np.tanh,
        2: lambda z: np.maximum(z, 0.0),
        3: lambda z: np.where(z > 0, z, np.expm1(np.minimum(z, 0.0))),
        4: lambda z: np.where(z > 0, z, 0.01 * z),
        5: lambda z: 1.0 / (1.0 + np.exp(np.minimum(-z, 700.0))),
    }[code](x.astype(F).astype(np.float64))
    ours = tape.outputs[0][:-1, 0].astype(np.float64)
    # A subnormal or cancelled result has an absolute error instead.
    np.testing.assert_allclose(ours, exact, rtol=1e-6, atol=1e-12 if code != 5 else 1e-37)
    assert np.isnan(tape.outputs[0][-1, 0])


@pytest.mark.parametrize("ops", [numpy_ops, native_ops], ids=lambda ops: ops.NAME)
@pytest.mark.parametrize("clip_range", [0.2, 0.9, 2.0])
def test_the_surrogates_gradient_is_nowhere_lost_within_the_clip_range(ops: Any, clip_range: float) -> None:
    rng = np.random.default_rng(0)
    log_prob, advantages = rng.uniform(-3, 0.6, 500).astype(F), rng.standard_normal(500).astype(F)
    grad, old = np.empty(500, F), zeros(500)
    ops.surrogate(log_prob, old, advantages, clip_range, False, grad)
    ratio = np.exp(log_prob.astype(np.float64))
    inside = np.abs(ratio - 1.0) < clip_range
    np.testing.assert_allclose(grad[inside], (-advantages * ratio / 500)[inside], rtol=1e-5)


def test_what_overflows_or_is_no_number_shows() -> None:
    grad, old = np.empty(4, F), zeros(4)
    log_prob = np.array([100.0, -200.0, np.nan, 0.0], F)
    loss, *_ = native_ops.surrogate(log_prob, old, np.ones(4, F), math.inf, False, grad)
    assert math.isnan(loss)
    np.testing.assert_array_equal(grad, np.array([-np.inf, 0.0, np.nan, -0.25], F))
    noise, actions, out = zeros(3, 1), zeros(3, 1), zeros(3)
    native_ops.squash(np.array([[40.0, 0.0], [-1e9, -90.0], [np.nan, 0.0]], F), noise, False, actions, out)
    np.testing.assert_array_equal(actions[:, 0], np.array([1.0, -1.0, np.nan], F))
    assert np.isfinite(out[:2]).all()
    assert np.isnan(out[2])


@given(steps=st.integers(1, 60), envs=st.integers(1, 20), seed=st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_gae_is_stable_baselines3s_bit_for_bit(steps: int, envs: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    space = spaces.Box(-1, 1, (1,))
    buffer = RolloutBuffer(steps, space, space, "cpu", gae_lambda=0.95, gamma=0.99, n_envs=envs)
    buffer.rewards[:], buffer.values[:] = rng.standard_normal((2, steps, envs))
    buffer.episode_starts[:] = rng.random((steps, envs)) < 0.2
    last, dones = rng.standard_normal(envs).astype(F), rng.random(envs) < 0.3
    buffer.compute_returns_and_advantage(th.from_numpy(last), dones)
    arguments = (buffer.rewards, buffer.values, buffer.episode_starts, last, dones.astype(F), 0.99, 0.95)
    ours, numpys = np.empty((2, steps, envs), F)
    native_ops.gae(*arguments, ours)
    numpy_ops.gae(*arguments, numpys)
    np.testing.assert_array_equal(ours, buffer.advantages)
    np.testing.assert_allclose(numpys, buffer.advantages, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("ops", [numpy_ops, native_ops], ids=lambda ops: ops.NAME)
def test_finite(ops: Any, dtype: type) -> None:
    x = np.arange(12, dtype=dtype).reshape(3, 4)
    assert ops.finite(x)
    for bad in (np.nan, np.inf, -np.inf):
        x[2, 1] = bad
        assert not ops.finite(x)


@pytest.mark.parametrize(("sizes", "batch"), [((23, 256, 256, 6), 301), ((17, 64, 64, 1), 4001), ((376, 400, 300, 6), 100)])
def test_any_number_of_threads_computes_the_same(two_threads: None, sizes: tuple[int, ...], batch: int) -> None:
    rng = np.random.default_rng(0)
    shape = Shape(sizes, hidden=1, heads=2)
    net = MLP(shape, (0.1 * rng.standard_normal(shape.size)).astype(F), np.zeros(shape.size, F))
    x, g = rng.standard_normal((batch, sizes[0])).astype(F), rng.standard_normal((batch, 2 * sizes[-1])).astype(F)
    vector = rng.standard_normal(100_000).astype(F)
    found = []
    for threads in (1, 2, 3, 2):
        _native.set_threads(threads)
        assert _native.threads() == threads
        tape, grad_x, others = net.tape(batch), np.empty_like(x), [vector.copy(), vector.copy(), vector**2, vector.copy()]
        out = native_ops.mlp_forward(net, tape, x).copy()
        native_ops.mlp_backward(net, tape, g, grad_x)
        assert net.grad is not None
        native_ops.adam(others[0], vector, *others[1:3], 2.0, 0.1, 0.9, 0.999, 1e-8, 0.5)
        native_ops.polyak(others[0], others[3], 0.1)
        found.append((out, net.grad.copy(), grad_x, *others))
    for results in found[1:]:
        for theirs, ours in zip(found[0], results, strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_several_python_threads_may_call_at_once(two_threads: None) -> None:
    rng = np.random.default_rng(0)
    shape = Shape((23, 256, 256, 6))
    theta = (0.1 * rng.standard_normal(shape.size)).astype(F)
    inputs = [rng.standard_normal((256, 23)).astype(F) for _ in range(3)]

    def work(x: Any, times: int) -> list[Any]:
        net = MLP(shape, theta, np.zeros(shape.size, F))
        found = []
        for _ in range(times):
            out = native_ops.mlp_forward(net, net.tape(256), x).copy()
            native_ops.mlp_backward(net, net.tape(256), np.ones((256, 6), F))
            assert net.grad is not None
            found.append((out, net.grad.copy()))
        return found

    expected = [work(x, 1)[0] for x in inputs]
    with ThreadPoolExecutor(3) as executor:
        for found, (out, grad) in zip(executor.map(work, inputs, [30] * 3), expected, strict=True):
            for our_out, our_grad in found:
                np.testing.assert_array_equal(our_out, out)
                np.testing.assert_array_equal(our_grad, grad)


FORK = """
import os, numpy as np
from spinup_plugins.engine import _native, native_ops
from spinup_plugins.engine.networks import MLP, Shape
shape = Shape((64, 256, 256, 8))
net = MLP(shape, np.full(shape.size, 0.01, np.float32), np.zeros(shape.size, np.float32))
x = np.ones((512, 64), np.float32)
_native.set_threads(2)
expected = native_ops.mlp_forward(net, net.tape(512), x).copy()
child = os.fork()
same = np.array_equal(native_ops.mlp_forward(net, net.tape(512), x), expected)
if child == 0:
    os._exit(0 if same else 1)
assert same and os.waitpid(child, 0)[1] == 0
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_fork_computes_on() -> None:
    subprocess.run([sys.executable, "-c", FORK], check=True, timeout=60)


NUMBERS = "perceptrons or elementwise or accurate or finite or same or shows"


@pytest.mark.parametrize("isa", ["avx512", "avx2", "portable"])
def test_every_instruction_set(isa: str) -> None:
    """The tests of numbers once more where the processor has it, in a process that is made to use it."""
    if os.environ.get("SPINUP_NATIVE_ISA") or isa == _native.isa():
        pytest.skip("this process does")
    environment = os.environ | {"SPINUP_NATIVE_ISA": isa}
    ask = [sys.executable, "-c", "from spinup_plugins.engine import _native; print(_native.isa())"]
    asked = subprocess.run(ask, env=environment, capture_output=True, text=True, check=False)
    if asked.returncode:
        assert f"SPINUP_NATIVE_ISA={isa}: this processor or build has no such instructions" in asked.stderr
        pytest.skip(f"no {isa} here")
    assert asked.stdout.strip() == isa
    again = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist", __file__, "-k", NUMBERS]
    run = subprocess.run(again, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout[-3000:]


GOOD = Shape((3, 4, 2))


def zeros(*shape: int) -> Any:
    return np.zeros(shape, F)


CRITIC = Shape((3, 4, 1))
PAIR = [
    ("spec", GOOD.spec, False),
    ("theta", zeros(GOOD.size), False),
    ("work", zeros(32), True),
    ("spec", CRITIC.spec, False),
    ("theta", zeros(CRITIC.size), False),
    ("work", zeros(32), True),
    ("x", zeros(2, 3), False),
]
#: a good call of each primitive: (argument's name, value, whether it is written); the batch has two rows
CALLS: dict[str, list[tuple[str, Any, bool]]] = {
    "mlp_forward": [
        ("spec", GOOD.spec, False),
        ("theta", zeros(GOOD.size), False),
        ("x", zeros(2, 3), False),
        ("work", zeros(32), True),
    ],
    "mlp_backward": [
        ("spec", GOOD.spec, False),
        ("theta", zeros(GOOD.size), False),
        ("x", zeros(2, 3), False),
        ("work", zeros(32), False),
        ("grad_out", zeros(2, 2), False),
        ("grad_theta", zeros(GOOD.size), True),
        ("grad_x", zeros(2, 3), True),
        ("scratch", zeros(32), True),
    ],
    "mlp_input_gradient": [
        ("spec", GOOD.spec, False),
        ("theta", zeros(GOOD.size), False),
        ("work", zeros(32), False),
        ("batch", 2, False),
        ("rows", np.array([0, 1]), False),
        ("grad_out", zeros(2, 2), False),
        ("first", 1, False),
        ("grad_x", zeros(2, 2), True),
    ],
    "mlp_jvp": [
        ("spec", GOOD.spec, False),
        ("theta", zeros(GOOD.size), False),
        ("x", zeros(2, 3), False),
        ("work", zeros(32), False),
        ("vector", zeros(GOOD.size), False),
        ("out", zeros(32), True),
    ],
    "norm": [("x", zeros(4), False)],
    "adam": [
        ("theta", zeros(4), True),
        ("grad", zeros(4), False),
        ("first", zeros(4), True),
        ("second", zeros(4), True),
        *((name, 0.5, False) for name in ("step", "learning_rate", "beta1", "beta2", "epsilon", "scale")),
    ],
    "polyak": [("theta", zeros(4), False), ("target", zeros(4), True), ("tau", 0.5, False)],
    "gaussian_draw": [
        ("mean", zeros(2, 3), False),
        ("log_std", zeros(3), False),
        ("noise", zeros(2, 3), False),
        ("out_actions", zeros(2, 3), True),
        ("out", zeros(2), True),
    ],
    "gaussian_act": [
        *PAIR,
        ("out_values", zeros(2), True),
        ("log_std", zeros(2), False),
        ("noise", zeros(2, 2), False),
        ("low", zeros(2), False),
        ("high", zeros(2), False),
        ("out_actions", zeros(2, 2), True),
        ("out_clipped", zeros(2, 2), True),
        ("out", zeros(2), True),
    ],
    "categorical_act": [
        *PAIR,
        ("out_values", zeros(2), True),
        ("nvec", np.array([1, 1], I), False),
        ("noise", zeros(4) + 1, False),
        ("out_actions", np.zeros((2, 2), np.int64), True),
        ("out", zeros(2), True),
    ],
    "gaussian_log_prob": [
        ("mean", zeros(2, 3), False),
        ("log_std", zeros(3), False),
        ("actions", zeros(2, 3), False),
        ("out", zeros(2), True),
    ],
    "gaussian_gradient": [
        ("mean", zeros(2, 3), False),
        ("log_std", zeros(3), False),
        ("actions", zeros(2, 3), False),
        ("grad_log_prob", zeros(2), False),
        ("entropy", 0.0, False),
        ("grad_mean", zeros(2, 3), True),
        ("grad_log_std", zeros(3), True),
    ],
    "categorical_draw": [
        ("logits", zeros(2, 5), False),
        ("nvec", np.array([3, 2], I), False),
        ("noise", zeros(10) + 1, False),
        ("out_actions", np.zeros((2, 2), np.int64), True),
        ("out", zeros(2), True),
    ],
    "categorical_log_prob": [
        ("logits", zeros(2, 5), False),
        ("nvec", np.array([3, 2], I), False),
        ("actions", zeros(2, 2), False),
        ("out", zeros(2), True),
        ("out_log_softmax", zeros(2, 5), True),
    ],
    "categorical_gradient": [
        ("log_softmax", zeros(2, 5), False),
        ("nvec", np.array([3, 2], I), False),
        ("actions", zeros(2, 2), False),
        ("grad_log_prob", zeros(2), False),
        ("entropy", 0.0, False),
        ("grad_logits", zeros(2, 5), True),
    ],
    "bernoulli_log_prob": [("logits", zeros(2, 3), False), ("actions", zeros(2, 3), False), ("out", zeros(2), True)],
    "bernoulli_gradient": [
        ("logits", zeros(2, 3), False),
        ("actions", zeros(2, 3), False),
        ("grad_log_prob", zeros(2), False),
        ("entropy", 0.0, False),
        ("grad_logits", zeros(2, 3), True),
    ],
    "squash": [
        ("params", zeros(2, 6), False),
        ("noise", zeros(2, 3), False),
        ("exact", False, False),
        ("out_actions", zeros(2, 3), True),
        ("out_log_prob", zeros(2), True),
    ],
    "squash_gradient": [
        ("params", zeros(2, 6), False),
        ("noise", zeros(2, 3), False),
        ("actions", zeros(2, 3), False),
        ("exact", False, False),
        ("grad_actions", zeros(2, 3), False),
        ("grad_log_prob", 0.1, False),
        ("grad_params", zeros(2, 6), True),
    ],
    "surrogate": [
        ("log_prob", zeros(2), False),
        ("old_log_prob", zeros(2), False),
        ("advantages", zeros(2), False),
        ("clip_range", 0.2, False),
        ("normalize", False, False),
        ("grad_log_prob", zeros(2), True),
    ],
    "value_loss": [
        ("values", zeros(2), False),
        ("old_values", zeros(2), False),
        ("returns", zeros(2), False),
        ("clip_range", 0.2, False),
        ("coefficient", 0.5, False),
        ("grad_values", zeros(2), True),
    ],
    "gae": [
        ("rewards", zeros(5, 2), False),
        ("values", zeros(5, 2), False),
        ("starts", zeros(5, 2), False),
        ("last_values", zeros(2), False),
        ("last_dones", zeros(2), False),
        ("gamma", 0.9, False),
        ("gae_lambda", 0.9, False),
        ("out", zeros(5, 2), True),
    ],
}


@pytest.mark.parametrize("name", CALLS)
def test_arguments_that_would_be_misread(name: str) -> None:
    """One of another type, not contiguous, read-only or shorter is refused by name; a number of arguments by number."""
    primitive, good = getattr(_native, name), CALLS[name]
    values = [value.copy() if isinstance(value, np.ndarray) else value for _, value, _ in good]
    primitive(*values)
    with pytest.raises(TypeError, match=f"{name} takes {len(good)} arguments, not {len(good) - 1}"):
        primitive(*values[:-1])

    def refuses(place: int, value: Any, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            primitive(*values[:place], value, *values[place + 1 :])

    for place, (argument, value, written) in enumerate(good):
        if not isinstance(value, np.ndarray):
            if isinstance(value, float):
                with pytest.raises(TypeError):
                    primitive(*values[:place], "half", *values[place + 1 :])
            continue
        refuses(place, value.astype(np.float16), f"^{argument} must be an array of type '.', not 'e'$")
        refuses(place, value.astype(value.dtype.newbyteorder("S")), f"^{argument} must be an array of type")
        refuses(place, np.repeat(value, 2, axis=-1)[..., ::2], f"^{argument} must be a contiguous(, writable)? array$")
        refuses(place, value.tolist(), f"^{argument} must be a contiguous(, writable)? array$")
        if written:
            frozen = value.copy()
            frozen.flags.writeable = False
            refuses(place, frozen, f"^{argument} must be a contiguous, writable array$")
        if len(good) > 1:  # one array alone has any size
            with pytest.raises(ValueError, match=r"^\w+ (has|must|describes) [^\n]*$"):
                primitive(*values[:place], value.reshape(-1)[:-1].copy(), *values[place + 1 :])


@pytest.mark.parametrize(
    ("primitive", "change", "message"),
    [
        ("mlp_forward", {"x": zeros(7)}, "x has rows of another width than spec"),
        ("mlp_forward", {"theta": zeros(GOOD.size - 1)}, f"theta has {GOOD.size - 1} entries where at least {GOOD.size} are"),
        ("mlp_forward", {"work": zeros(3)}, "work has 3 entries where at least 32 are needed"),
        ("mlp_forward", {"spec": np.zeros(7, I)}, "spec must describe a perceptron of 1 to 16 layers"),
        ("mlp_forward", {"spec": np.array([0, 0, 1, 2, 3, -4, 2], I)}, "spec has a width below 1"),
        ("mlp_forward", {"spec": np.array([0, 0, 2**20, 2, 3, 4, 2**20], I)}, "spec has a width .* above 2.20"),
        ("mlp_forward", {"spec": np.array([9, 0, 1, 2, 3, 4, 2], I)}, "unknown activation"),
        ("mlp_backward", {"grad_out": zeros(3)}, "grad_out has 3 entries where 4 are needed"),
        ("mlp_input_gradient", {"rows": np.array([0, 2])}, "rows must be rows of the batch"),
        ("mlp_input_gradient", {"first": 3}, "first must be a column of the input"),
        ("mlp_input_gradient", {"batch": 2**62}, "work has fewer entries than batch needs"),
        ("polyak", {"target": zeros(3)}, "target has 3 entries where 4 are needed"),
        ("categorical_draw", {"nvec": np.array([6, -1], I)}, "nvec must have entries of 1 or more"),
        ("categorical_draw", {"logits": zeros(9)}, "logits must have the width that nvec sums to"),
        ("gaussian_act", {"log_std": zeros(3)}, "log_std must have the width of the actor's output"),
        ("categorical_act", {"nvec": np.array([3], I)}, "nvec must sum to the width of the actor's output"),
        ("gaussian_act", {4: zeros(CRITIC.size - 1)}, f"theta has {CRITIC.size - 1} entries"),
        ("gaussian_act", {3: GOOD.spec}, "the critic's spec must have the actor's input and one output"),
        ("gaussian_act", {3: Shape((2, 1)).spec}, "the critic's spec must have the actor's input and one output"),
        ("squash", {"noise": zeros(6)}, "noise must have two axes"),
        ("gae", {"last_values": zeros(3), "last_dones": zeros(3)}, "rewards must have a column for each of last_values"),
    ],
)
def test_more_arguments_that_would_be_misread(primitive: str, change: dict[str | int, Any], message: str) -> None:
    arguments = [change.get(argument, change.get(i, value)) for i, (argument, value, _) in enumerate(CALLS[primitive])]
    with pytest.raises(ValueError, match=message):
        getattr(_native, primitive)(*arguments)


def test_a_number_of_threads_that_cannot_be() -> None:
    for count in (0, 65):
        with pytest.raises(ValueError, match="count must be 1 to 64"):
            _native.set_threads(count)
    assert _native.threads() == 1


def test_an_action_that_no_distribution_has_is_not_looked_up() -> None:
    out, table = zeros(1), zeros(1, 2)
    for action in (5.0, -1.0, np.nan):
        _native.categorical_log_prob(zeros(1, 2), np.array([2], I), np.array([[action]], F), out, table)
        assert np.isnan(out[0])
