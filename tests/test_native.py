"""The compiled primitives against NumPy's: every instruction set, any shape, and arguments that they must refuse."""

import importlib
import math
import os
import subprocess
import sys
from collections.abc import Iterator
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
        tape, found = net.tape(batch), []
        found.append(ops.mlp_forward(net, tape, x).copy())
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


@pytest.mark.parametrize("code", range(1, 6))
def test_activations_are_accurate(code: int) -> None:
    """To a few units in the last place of single precision, for any input; NaN stays NaN."""
    x = np.concatenate([np.linspace(-30, 30, 6001), np.geomspace(1e-8, 1e2, 500), -np.geomspace(1e-8, 1e2, 500)])
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
        5: lambda z: 1.0 / (1.0 + np.exp(-z)),
    }[code](x.astype(F).astype(np.float64))
    ours = tape.outputs[0][:-1, 0].astype(np.float64)
    # A subnormal or cancelled result has an absolute error instead.
    np.testing.assert_allclose(ours, exact, rtol=1e-6, atol=1e-12 if code != 5 else 1e-37)
    assert np.isnan(tape.outputs[0][-1, 0])


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


def test_any_number_of_threads_computes_the_same(two_threads: None) -> None:
    rng = np.random.default_rng(0)
    shape = Shape((23, 256, 256, 6), heads=2)
    net = MLP(shape, (0.1 * rng.standard_normal(shape.size)).astype(F), np.zeros(shape.size, F))
    x, g = rng.standard_normal((301, 23)).astype(F), rng.standard_normal((301, 12)).astype(F)
    found = []
    for threads in (1, 2, 3, 2):
        _native.set_threads(threads)
        assert _native.threads() == threads
        tape = net.tape(301)
        out = native_ops.mlp_forward(net, tape, x).copy()
        native_ops.mlp_backward(net, tape, g)
        assert net.grad is not None
        found.append((out, net.grad.copy()))
    for out, grad in found[1:]:
        np.testing.assert_array_equal(out, found[0][0])
        np.testing.assert_array_equal(grad, found[0][1])


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


@pytest.mark.parametrize("isa", ["avx512", "avx2", "portable"])
def test_every_instruction_set(isa: str) -> None:
    """The tests above once more where the processor has it, in a process that is made to use it."""
    if os.environ.get("SPINUP_NATIVE_ISA") or isa == _native.isa():
        pytest.skip("this process does")
    environment = os.environ | {"SPINUP_NATIVE_ISA": isa}
    ask = [sys.executable, "-c", "from spinup_plugins.engine import _native; print(_native.isa())"]
    asked = subprocess.run(ask, env=environment, capture_output=True, text=True, check=False)
    if asked.returncode:
        assert f"SPINUP_NATIVE_ISA={isa}: this processor or build has no such instructions" in asked.stderr
        pytest.skip(f"no {isa} here")
    assert asked.stdout.strip() == isa
    again = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist", __file__]
    run = subprocess.run(again, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout[-3000:]


GOOD = Shape((3, 4, 2))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": np.zeros((2, 3))}, "x must be an array of type 'f', not 'd'"),
        ({"x": np.zeros((3, 2), F).T}, "x must be a contiguous array"),
        ({"x": np.zeros(7, F)}, "x, theta or work does not fit"),
        ({"x": [1.0, 2.0]}, "x must be a contiguous array"),
        ({"theta": np.zeros(GOOD.size - 1, F)}, "x, theta or work does not fit"),
        ({"work": np.zeros(3, F)}, "x, theta or work does not fit"),
        ({"spec": np.zeros(7, np.int32)}, "spec describes no perceptron"),
        ({"spec": np.array([0, 0, 1, 2, 3, -4, 2], np.int32)}, "spec has a width below 1"),
        ({"spec": np.array([9, 0, 1, 2, 3, 4, 2], np.int32)}, "unknown activation"),
    ],
)
def test_arguments_that_would_be_misread(change: dict[str, Any], message: str) -> None:
    arguments = {"spec": GOOD.spec, "theta": np.zeros(GOOD.size, F), "x": np.zeros((2, 3), F), "work": np.zeros(64, F)}
    with pytest.raises(ValueError, match=message):
        _native.mlp_forward(*(arguments | change).values())


def test_more_arguments_that_would_be_misread() -> None:
    frozen = np.zeros(4, F)
    frozen.flags.writeable = False
    with pytest.raises(ValueError, match="target must be a contiguous, writable array"):
        _native.polyak(np.zeros(4, F), frozen, 0.5)
    with pytest.raises(ValueError, match="target has 3 entries where 4 are needed"):
        _native.polyak(np.zeros(4, F), np.zeros(3, F), 0.5)
    with pytest.raises(TypeError, match="polyak takes 3 arguments, not 2"):
        _native.polyak(np.zeros(4, F), np.zeros(4, F))
    with pytest.raises(TypeError, match="real number"):
        _native.polyak(np.zeros(4, F), np.zeros(4, F), "half")
    with pytest.raises(ValueError, match="threads must be 1 to 64"):
        _native.set_threads(0)
    net = MLP(GOOD, np.zeros(GOOD.size, F), np.zeros(GOOD.size, F))
    tape = net.tape(2)
    native_ops.mlp_forward(net, tape, np.zeros((2, 3), F))
    with pytest.raises(ValueError, match="rows has an entry outside of the batch"):
        native_ops.mlp_input_gradient(net, tape, np.array([2], np.int64), np.zeros((1, 2), F), 0, np.zeros((1, 3), F))
    with pytest.raises(ValueError, match="first does not fit"):
        native_ops.mlp_input_gradient(net, tape, None, np.zeros((2, 2), F), 3, np.zeros((2, 3), F))
    # An action that no distribution has must not be looked up.
    out, table = np.zeros(1, F), np.zeros((1, 2), F)
    _native.categorical_log_prob(np.zeros((1, 2), F), np.array([2], np.int32), np.array([[5.0]], F), out, table)
    assert np.isnan(out[0])
