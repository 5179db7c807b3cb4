from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int32]

def mlp_forward(spec: Ints, theta: Floats, x: Floats, work: Floats, /) -> None: ...
def mlp_backward(
    spec: Ints,
    theta: Floats,
    x: Floats,
    work: Floats,
    grad_out: Floats,
    grad_theta: Floats | None,
    grad_x: Floats | None,
    scratch: Floats,
    /,
) -> None: ...
def mlp_input_gradient(
    spec: Ints,
    theta: Floats,
    work: Floats,
    batch: int,
    rows: npt.NDArray[np.int64] | None,
    grad_out: Floats,
    first: int,
    grad_x: Floats,
    /,
) -> None: ...
def mlp_jvp(spec: Ints, theta: Floats, x: Floats, work: Floats, vector: Floats, out_work: Floats, /) -> None: ...
def norm(x: Floats, /) -> float: ...
def adam(
    theta: Floats,
    grad: Floats,
    first: Floats,
    second: Floats,
    step: float,
    learning_rate: float,
    beta1: float,
    beta2: float,
    epsilon: float,
    scale: float,
    /,
) -> None: ...
def polyak(theta: Floats, target: Floats, tau: float, /) -> None: ...
def gaussian_draw(mean: Floats, log_std: Floats, noise: Floats, out_actions: Floats, out: Floats, /) -> None: ...
def categorical_draw(
    logits: Floats, nvec: Ints, noise: Floats, out_actions: npt.NDArray[np.int64], out: Floats, /
) -> None: ...
def gaussian_act(*args: npt.NDArray[Any]) -> None: ...
def categorical_act(*args: npt.NDArray[Any]) -> None: ...
def gaussian_log_prob(mean: Floats, log_std: Floats, actions: Floats, out: Floats, /) -> None: ...
def gaussian_gradient(
    mean: Floats,
    log_std: Floats,
    actions: Floats,
    grad_log_prob: Floats,
    entropy: float,
    grad_mean: Floats,
    grad_log_std: Floats,
    /,
) -> None: ...
def categorical_log_prob(logits: Floats, nvec: Ints, actions: Floats, out: Floats, out_log_softmax: Floats, /) -> float: ...
def categorical_gradient(
    log_softmax: Floats, nvec: Ints, actions: Floats, grad_log_prob: Floats, entropy: float, grad_logits: Floats, /
) -> None: ...
def bernoulli_log_prob(logits: Floats, actions: Floats, out: Floats, /) -> float: ...
def bernoulli_gradient(
    logits: Floats, actions: Floats, grad_log_prob: Floats, entropy: float, grad_logits: Floats, /
) -> None: ...
def squash(params: Floats, noise: Floats, exact: bool, out_actions: Floats, out_log_prob: Floats, /) -> None: ...
def squash_gradient(
    params: Floats,
    noise: Floats,
    actions: Floats,
    exact: bool,
    grad_actions: Floats,
    grad_log_prob: float,
    grad_params: Floats,
    /,
) -> None: ...
def surrogate(
    log_prob: Floats, old_log_prob: Floats, advantages: Floats, clip_range: float, normalize: bool, grad_log_prob: Floats, /
) -> tuple[float, float, float, float]: ...
def value_loss(
    values: Floats, old_values: Floats, returns: Floats, clip_range: float, coefficient: float, grad_values: Floats, /
) -> float: ...
def gae(
    rewards: Floats,
    values: Floats,
    starts: Floats,
    last_values: Floats,
    last_dones: Floats,
    gamma: float,
    gae_lambda: float,
    out: Floats,
    /,
) -> None: ...
def finite(x: npt.NDArray[Any], /) -> bool: ...
def set_threads(count: int, /) -> None: ...
def threads() -> int: ...
def isa() -> str: ...
