"""The engine's primitives compiled, with the names and arguments of :mod:`spinup_plugins.engine.numpy_ops`.

Importing this module fails where they are not built.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from spinup_plugins.engine import _native
from spinup_plugins.engine._native import (
    adam,
    bernoulli_gradient,
    bernoulli_log_prob,
    categorical_draw,
    categorical_gradient,
    categorical_log_prob,
    finite,
    gae,
    gaussian_draw,
    gaussian_gradient,
    gaussian_log_prob,
    isa,
    norm,
    polyak,
    squash,
    squash_gradient,
    surrogate,
    value_loss,
)
from spinup_plugins.engine.networks import MLP, Floats, Tape

__all__ = [
    "adam",
    "bernoulli_gradient",
    "bernoulli_log_prob",
    "categorical_act",
    "categorical_draw",
    "categorical_gradient",
    "categorical_log_prob",
    "finite",
    "gae",
    "gaussian_act",
    "gaussian_draw",
    "gaussian_gradient",
    "gaussian_log_prob",
    "isa",
    "mlp_backward",
    "mlp_forward",
    "mlp_input_gradient",
    "mlp_jvp",
    "norm",
    "polyak",
    "squash",
    "squash_gradient",
    "surrogate",
    "value_loss",
]

NAME = "native"


def mlp_forward(mlp: MLP, tape: Tape, x: Floats) -> Floats:
    """As :func:`spinup_plugins.engine.numpy_ops.mlp_forward`."""
    tape.x = x
    _native.mlp_forward(mlp.spec, mlp.theta, x, tape.flat)
    return tape.output


def mlp_backward(mlp: MLP, tape: Tape, grad_out: Floats, grad_x: Floats | None = None) -> None:
    """As :func:`spinup_plugins.engine.numpy_ops.mlp_backward`."""
    _native.mlp_backward(mlp.spec, mlp.theta, tape.x, tape.flat, grad_out, mlp.grad, grad_x, tape.scratch)


def mlp_input_gradient(
    mlp: MLP, tape: Tape, rows: npt.NDArray[np.int64] | None, grad_out: Floats, first: int, grad_x: Floats
) -> None:
    """As :func:`spinup_plugins.engine.numpy_ops.mlp_input_gradient`."""
    _native.mlp_input_gradient(mlp.spec, mlp.theta, tape.flat, tape.batch, rows, grad_out, first, grad_x)


def mlp_jvp(mlp: MLP, tape: Tape, vector: Floats, out: Tape) -> Floats:
    """As :func:`spinup_plugins.engine.numpy_ops.mlp_jvp`."""
    _native.mlp_jvp(mlp.spec, mlp.theta, tape.x, tape.flat, vector, out.flat)
    return out.output


def gaussian_act(actor: MLP, critic: MLP, x: Floats, out_values: Floats, *rest: Floats) -> None:
    """As :func:`spinup_plugins.engine.numpy_ops.gaussian_act`."""
    _native.gaussian_act(*_pair(actor, critic, len(x)), x, out_values, *rest)


def categorical_act(
    actor: MLP, critic: MLP, x: Floats, out_values: Floats, nvec: npt.NDArray[np.int32], *rest: npt.NDArray[Any]
) -> None:
    """As :func:`spinup_plugins.engine.numpy_ops.categorical_act`."""
    _native.categorical_act(*_pair(actor, critic, len(x)), x, out_values, nvec, *rest)


def _pair(actor: MLP, critic: MLP, batch: int) -> tuple[npt.NDArray[Any], ...]:
    actor_work, critic_work = actor.tape(batch).flat, critic.tape(batch).flat
    return actor.spec, actor.theta, actor_work, critic.spec, critic.theta, critic_work
