"""Multi-layer perceptrons and their optimiser on the memory of torch's parameters.

A :class:`Memory` is one flat float32 vector that holds the parameters of several networks; each torch parameter becomes a view
of its part, so that state dicts, ``load_state_dict`` and torch's own forward pass see what the engine sees, at every
moment. A weight is stored (in, out), row by row, and shown to torch as its transpose: products of row-major batches then
run at full rate. Every part begins on a multiple of :data:`ALIGNMENT` floats; what lies between parts is zero and stays so.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from operator import is_, itemgetter
from types import MethodType
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import torch as th
from stable_baselines3.common.policies import BaseModel
from torch import nn

__all__ = [
    "ACTIVATIONS",
    "ALIGNMENT",
    "MLP",
    "Floats",
    "Memory",
    "Shape",
    "StandardNormal",
    "Tape",
    "Unsupported",
    "Wiring",
    "check_adam",
    "in_torch_order",
    "optimizers",
    "padded",
    "readable",
    "shape_of",
]

Floats: TypeAlias = npt.NDArray[np.float32]

ALIGNMENT = 16  #: floats, 64 bytes: a cache line, and the widest vector register

#: activations whose derivative follows from their output, by the code that native kernels know them under
ACTIVATIONS: dict[type[nn.Module], int] = {
    nn.Identity: 0,
    nn.Tanh: 1,
    nn.ReLU: 2,
    nn.ELU: 3,
    nn.LeakyReLU: 4,
    nn.Sigmoid: 5,
}


class Unsupported(Exception):  # noqa: N818  # no error: it says why a policy stays on the torch tier
    """What a network has that the engine does not know."""


def padded(size: int) -> int:
    """Round ``size`` up to a multiple of :data:`ALIGNMENT`."""
    return -(-size // ALIGNMENT) * ALIGNMENT


class Shape(NamedTuple):
    """A perceptron: its widths and activations; the last layer may have several heads of equal width side by side."""

    sizes: tuple[int, ...]  #: width of the input, of each hidden layer and of one head
    hidden: int = 2  #: code of the activation after each layer but the last
    output: int = 0  #: code of the activation after the last
    heads: int = 1

    @property
    def layers(self) -> list[tuple[int, int, int]]:
        """(in, out, heads) of each layer."""
        last = len(self.sizes) - 2
        return [(a, b, self.heads if i == last else 1) for i, (a, b) in enumerate(itertools.pairwise(self.sizes))]

    @property
    def size(self) -> int:
        """Floats that the parameters take, padding included."""
        return sum(heads * (padded(a * b) + padded(b)) for a, b, heads in self.layers)

    @property
    def spec(self) -> npt.NDArray[np.int32]:
        """What native kernels read: hidden, output, heads, number of layers, sizes."""
        return np.array([self.hidden, self.output, self.heads, len(self.sizes) - 1, *self.sizes], dtype=np.int32)


class Tape:
    """What a forward pass leaves for the backward pass: its input and every layer's output, for a fixed batch size."""

    def __init__(self, shape: Shape, batch: int) -> None:
        widths = [out * heads for _, out, heads in shape.layers]
        sizes = [padded(batch * width) for width in widths]
        self.batch = batch
        self.flat: Floats = _aligned(sum(sizes))  #: outputs one after the other, each padded
        starts = np.cumsum([0, *sizes]).tolist()
        #: (B, out) of each layer after its activation; the last is the network's output, heads side by side
        self.outputs: list[Floats] = [
            self.flat[start : start + batch * width].reshape(batch, width)
            for start, width in zip(starts, widths, strict=False)
        ]
        self.output: Floats = self.outputs[-1]
        self.x: Floats = np.zeros((batch, shape.sizes[0]), dtype=np.float32)  #: the last pass's input
        self.ones: Floats = np.ones(batch, dtype=np.float32)  #: sums over rows are products with it
        widest = max(shape.sizes[0], *widths)
        #: two gradients in flight, (B, widest) each, one after the other
        self.scratch: Floats = _aligned(2 * padded(batch * widest))
        half = padded(batch * widest)
        self.gradients: list[list[Floats]] = [
            [self.scratch[k * half : k * half + batch * w].reshape(batch, w) for k in (0, 1)]
            for w in (shape.sizes[0], *widths)
        ]


class MLP:
    """A perceptron on a part of a :class:`Memory`.

    :param shape: widths and activations
    :param theta: (P,), its parameters
    :param grad: (P,), where their gradients go; ``None`` for a network that is never trained
    """

    def __init__(self, shape: Shape, theta: Floats, grad: Floats | None = None) -> None:
        assert theta.size == shape.size
        self.shape, self.theta, self.grad = shape, theta, grad
        self.spec = shape.spec
        #: (W (in, out), b (1, out)) of each layer, of each head of the last; NumPy adds arrays of as many axes faster
        self.weights = [[(weight, bias[None]) for weight, bias in layer] for layer in matrices(shape, theta)]
        self.grads = None if grad is None else matrices(shape, grad)
        self._tapes: dict[tuple[int, int], Tape] = {}

    def tape(self, batch: int, slot: int = 0) -> Tape:
        """Return the tape for this batch size, made once; passes that must not overwrite each other use other slots."""
        tape = self._tapes.get((batch, slot))
        if tape is None:
            if len(self._tapes) >= 16:  # evaluations over many batch sizes
                self._tapes.clear()
            tape = self._tapes[batch, slot] = Tape(self.shape, batch)
        return tape


def matrices(shape: Shape, flat: Floats) -> list[list[tuple[Floats, Floats]]]:
    """Split a flat vector into each layer's list of (W (in, out), b (out,)), one per head."""
    found, start = [], 0
    for width_in, width_out, heads in shape.layers:
        layer = []
        for _ in range(heads):
            weight = flat[start : start + width_in * width_out].reshape(width_in, width_out)
            start += padded(width_in * width_out)
            layer.append((weight, flat[start : start + width_out]))
            start += padded(width_out)
        found.append(layer)
    return found


def shape_of(modules: Iterable[nn.Module], heads: Sequence[nn.Linear] = ()) -> tuple[Shape, list[nn.Linear]]:
    """Read a perceptron's shape off its torch modules.

    :param modules: linear layers and activations in order (nested ``Sequential`` are walked)
    :param heads: linear layers of equal width that all read the last of ``modules``
    :return: the shape and its linear layers in order, heads last
    :raises Unsupported: when it is anything but linear layers with biases and one kind of known activation
    """
    flat = list(_walk(modules))
    linear: list[nn.Linear] = []
    hidden: list[int] = []
    output = 0
    expect_activation = False
    for module in flat:
        if type(module) is nn.Linear:
            if expect_activation:
                raise Unsupported("a linear layer without an activation after it")
            linear.append(module)
            expect_activation = True
        elif type(module) in ACTIVATIONS and expect_activation:
            if getattr(module, "alpha", 1.0) != 1.0 or getattr(module, "negative_slope", 0.01) != 0.01:
                raise Unsupported(f"{module} with another slope than its default")
            hidden.append(ACTIVATIONS[type(module)])
            expect_activation = False
        else:
            raise Unsupported(f"a layer {type(module).__name__}")
    if heads:
        if expect_activation:
            raise Unsupported("a linear layer without an activation after it")
        if len({head.out_features for head in heads}) != 1 or any(type(head) is not nn.Linear for head in heads):
            raise Unsupported("heads of unequal width")
        linear += heads
    elif len(hidden) == len(linear):
        output = hidden.pop()
    if not linear:
        raise Unsupported("no layer")
    if len(set(hidden)) > 1:
        raise Unsupported("several kinds of activation")
    if any(layer.bias is None for layer in linear):
        raise Unsupported("a layer without bias")
    trunk = linear[: len(linear) - len(heads)] if heads else linear[:-1]
    sizes = (linear[0].in_features, *(layer.out_features for layer in trunk), linear[-1].out_features)
    return Shape(sizes, hidden[0] if hidden else 0, output, max(1, len(heads))), linear


def _walk(modules: Iterable[nn.Module]) -> Iterator[nn.Module]:
    for module in modules:
        if isinstance(module, nn.Sequential):
            yield from _walk(module)
        else:
            yield module


class StandardNormal:
    """Standard normal noise of one width, drawn as torch's ``Normal.rsample`` and ``randn_like`` draw it."""

    def __init__(self, width: int) -> None:
        self.width = width
        self._batches: dict[int, tuple[th.Tensor, Floats]] = {}

    def draw(self, batch: int) -> Floats:
        """Return (batch, width), overwritten by the next draw of that size."""
        found = self._batches.get(batch)
        if found is None:
            if len(self._batches) >= 16:  # evaluations over many batch sizes
                self._batches.clear()
            tensor = th.empty(batch, self.width)
            found = self._batches[batch] = tensor, tensor.numpy()
        tensor, noise = found
        tensor.normal_()
        return noise


class Memory:
    """One flat vector that torch parameters are made views of.

    :param parts: what it holds in order: vectors (a parameter of one dimension), or perceptrons (shape and linear layers)
    :raises Unsupported: when a parameter is not of single precision on the CPU, or is frozen
    """

    def __init__(self, parts: Sequence[nn.Parameter | tuple[Shape, Sequence[nn.Linear]]]) -> None:
        self.parameters: list[nn.Parameter] = []
        self._places: list[tuple[int, tuple[int, ...], bool]] = []
        self.starts: list[int] = []
        start = 0

        def place(parameter: th.Tensor, transposed: bool) -> None:
            nonlocal start
            if parameter.device.type != "cpu" or parameter.dtype != th.float32:
                raise Unsupported(f"parameters of type {parameter.dtype} on {parameter.device}")
            if not isinstance(parameter, nn.Parameter) or type(parameter) is not nn.Parameter:
                raise Unsupported(f"a parameter of type {type(parameter).__name__}")
            if any(parameter is other for other in self.parameters):
                raise Unsupported("layers that share a parameter")
            self.parameters.append(parameter)
            self._places.append((start, tuple(parameter.shape), transposed))
            start += padded(parameter.numel())

        for part in parts:
            self.starts.append(start)
            if isinstance(part, nn.Parameter):
                place(part, False)
                continue
            shape, layers = part
            before = start
            for layer in layers:
                place(layer.weight, True)
                place(layer.bias, False)
            assert start - before == shape.size
        self.starts.append(start)
        self.size = start
        self.tensor = th.zeros(start)
        self.array: Floats = self.tensor.numpy()
        for parameter, view in zip(self.parameters, self.views(self.tensor), strict=True):
            with th.no_grad():
                view.copy_(parameter)
            parameter.data = view
        #: where each parameter begins, and the end
        self.bounds = [place[0] for place in self._places] + [start]

    def views(self, flat: th.Tensor) -> list[th.Tensor]:
        """Return the views of a vector of this layout that stand for each parameter, in its shape."""
        found = []
        for start, shape, transposed in self._places:
            part = flat[start : start + int(np.prod(shape))]
            found.append(part.view(shape[::-1]).t() if transposed else part.view(shape))
        return found

    def part(self, index: int, array: Floats | None = None) -> Floats:
        """Return the memory of one part, or of the same part in another vector of this layout."""
        return (self.array if array is None else array)[self.starts[index] : self.starts[index + 1]]


def optimizers(policy: nn.Module) -> list[th.optim.Optimizer]:
    """Return the optimisers that a policy's modules own."""
    found = (getattr(module, "optimizer", None) for module in policy.modules())
    return [optimizer for optimizer in found if isinstance(optimizer, th.optim.Optimizer)]


def in_torch_order(policy: nn.Module) -> None:
    """Lay weights and their moments out as torch has made them, where a :class:`Memory` has shown it transposes.

    Fused Adam, for one, steps only what is laid out so.
    """
    states = [optimizer.state for optimizer in optimizers(policy)]
    for p in (p for p in policy.parameters() if p.ndim == 2 and not p.is_contiguous()):
        p.data = p.data.contiguous()
        for state in (each[p] for each in states if p in each):
            state |= {key: value.contiguous() for key, value in state.items() if isinstance(value, th.Tensor)}


class Wiring:
    """How modules, parameters and optimisers hang together, to see that nobody has changed it since.

    :param modules: all of those concerned, children included
    :param learning: whether it matters what is learnt, and by which optimiser, or only what is computed
    :raises Unsupported: when there are hooks
    """

    def __init__(self, modules: Iterable[nn.Module], *, learning: bool) -> None:
        modules = list(modules)
        self._dicts: list[dict[str, Any]] = [d for m in modules for d in (m._modules, m._parameters) if d]
        self._held = [*itertools.chain.from_iterable(map(dict.values, self._dicts)), None]
        self._hooks: list[Any] = [
            *(hooks for m in modules for hooks in (m._forward_hooks, m._forward_pre_hooks)),
            *(hooks for m in modules if learning for hooks in (m._backward_hooks, m._backward_pre_hooks)),
        ]
        self._parameters = [p for m in modules for p in m._parameters.values() if p is not None]
        self._addresses = [p.data_ptr() for p in self._parameters]
        self._learning = learning
        self._trained = [p.requires_grad for p in self._parameters]
        self._owners: list[tuple[Any, Any]] = [
            (m, m.optimizer) for m in modules if isinstance(getattr(m, "optimizer", None), th.optim.Optimizer)
        ]
        if any(self._hooks):
            raise Unsupported("a hook on one of its modules")
        if learning and self._hooked:
            raise Unsupported("a hook on one of its parameters")
        self._hooks += [
            o for _, each in self._owners for o in (each._optimizer_step_pre_hooks, each._optimizer_step_post_hooks)
        ]
        options = [option for option in ADAM_OPTIONS if all(option in o.param_groups[0] for _, o in self._owners)]
        self._options = itemgetter(*options)
        self._settings = [self._options(optimizer.param_groups[0]) for _, optimizer in self._owners]

    @property
    def _hooked(self) -> bool:
        """Whether gradients pass through anybody's hands on their way to a parameter."""
        return any(p._backward_hooks or p._post_accumulate_grad_hooks for p in self._parameters)

    @property
    def unchanged(self) -> bool:
        """Whether all is as it was: no layer replaced or hooked, no parameter moved or frozen, no optimiser set otherwise."""
        # The end keeps a shorter list from passing for its beginning.
        held = itertools.chain(itertools.chain.from_iterable(map(dict.values, self._dicts)), (None,))
        if any(self._hooks) or not all(map(is_, held, self._held)):
            return False
        if [p.data_ptr() for p in self._parameters] != self._addresses:
            return False
        return not self._learning or (
            [p.requires_grad for p in self._parameters] == self._trained
            and not self._hooked
            and all(owner.optimizer is optimizer and len(optimizer.param_groups) == 1 for owner, optimizer in self._owners)
            and [self._options(optimizer.param_groups[0]) for _, optimizer in self._owners] == self._settings
        )


def readable(policy: nn.Module) -> None:
    """Let Stable-Baselines3's ``parameters_to_vector`` read weights that a :class:`Memory` shows as transposes."""
    for module in policy.modules():
        if isinstance(module, BaseModel):
            module.parameters_to_vector = MethodType(parameters_to_vector, module)  # type: ignore[method-assign]


def parameters_to_vector(self: BaseModel) -> Floats:
    """Return all parameters one after the other, as ``BaseModel.parameters_to_vector`` does of contiguous ones."""
    return th.cat([p.detach().reshape(-1) for p in self.parameters()]).cpu().numpy()


#: what else Adam may be told; the engine knows none of it
ADAM_OPTIONS = ("amsgrad", "maximize", "capturable", "differentiable", "weight_decay", "decoupled_weight_decay")


def check_adam(optimizer: th.optim.Optimizer) -> None:
    """Raise :class:`Unsupported` for any optimiser but Adam over one group of parameters, without further options."""
    if type(optimizer) is not th.optim.Adam:
        raise Unsupported(f"the optimiser {type(optimizer).__name__}")
    if len(optimizer.param_groups) != 1:
        raise Unsupported("an optimiser with several groups of parameters")
    group = optimizer.param_groups[0]
    for option in ADAM_OPTIONS:
        if group.get(option):
            raise Unsupported(f"Adam with {option}={group[option]}")
    if isinstance(group["lr"], th.Tensor) or isinstance(group["betas"][0], th.Tensor):
        raise Unsupported("a learning rate that is a tensor")
    if optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks:
        raise Unsupported("a hook on its optimiser")


class Adam:
    """``torch.optim.Adam`` over a :class:`Memory`, whose moments it shares as the parameters are shared.

    Kingma & Ba 2015 (arXiv:1412.6980), algorithm 1, in the order of operations of torch's implementation. What
    ``optimizer.state_dict()`` returns and ``load_state_dict`` sets is the state that the engine steps.

    :param memory: the parameters, all of them the optimiser's
    :param optimizer: torch's
    :raises Unsupported: when it is another optimiser, has other parameters, or options that the engine does not know
    """

    def __init__(self, memory: Memory, optimizer: th.optim.Optimizer) -> None:
        check_adam(optimizer)
        group = optimizer.param_groups[0]
        if {id(p) for p in group["params"]} != {id(p) for p in memory.parameters}:
            raise Unsupported("an optimiser of other parameters")
        if not all(p.requires_grad for p in memory.parameters):
            raise Unsupported("frozen parameters")
        self.memory, self.optimizer = memory, optimizer
        self.grad: Floats = _aligned(memory.size)
        self._moments = [th.zeros(memory.size) for _ in range(2)]
        self.first: Floats = self._moments[0].numpy()  #: m, running mean of gradients
        self.second: Floats = self._moments[1].numpy()  #: v, running mean of their squares
        self._steps = th.zeros(len(memory.parameters))
        self.steps: Floats = self._steps.numpy()  #: steps taken with each parameter
        self._views = [memory.views(moment) for moment in self._moments]
        places = {id(p): i for i, p in enumerate(memory.parameters)}
        self._order = [places[id(p)] for p in group["params"]]
        self._taken_over: set[tuple[int, int]] = set()
        self._ranges: dict[tuple[int, int], tuple[tuple[Floats, ...], Floats]] = {}
        self._current: tuple[int, int] | None = None  #: the range stepped last
        self._equal = False  #: whether its parameters have taken as many steps each
        self._step_views = [self._steps[i] for i in range(len(memory.parameters))]

    def begin(self) -> None:
        """Look at the optimiser's state anew before the next step: others may have changed or loaded it."""
        self._taken_over.clear()

    def sync(self, touched: slice | None = None) -> None:
        """Take over whatever state the optimiser has come to hold since, and make it ours again.

        :param touched: parameters about to be stepped, all by default; others keep no state if they have none
        """
        state: dict[Any, Any] = self.optimizer.state
        touching = set(range(len(self.memory.parameters))[touched or slice(None)])
        for i in (i for i in self._order if i in touching):  # state dicts list parameters in the order of their first step
            p = self.memory.parameters[i]
            held = state.get(p)
            if held and held["exp_avg"] is self._views[0][i] and held["step"] is self._step_views[i]:
                continue
            for key, mine in (("exp_avg", self._views[0][i]), ("exp_avg_sq", self._views[1][i])):
                mine.copy_(held[key]) if held else mine.zero_()
            self._step_views[i].copy_(held["step"]) if held else self._step_views[i].zero_()
            state[p] = {"step": self._step_views[i], "exp_avg": self._views[0][i], "exp_avg_sq": self._views[1][i]}

    def step(self, ops: Any, first: int, last: int, learning_rate: float, scale: float = 1.0) -> None:
        """Step parameters ``first`` to ``last`` (not included) along ``scale`` times the gradient in ``grad``.

        :param ops: primitives
        """
        key = first, last
        if key not in self._taken_over:
            self.sync(slice(first, last))
            self._taken_over.add(key)
            self._current = None
        self.optimizer.param_groups[0]["lr"] = learning_rate
        vectors, steps = self._ranges.get(key) or self._range(first, last)
        steps += 1.0
        t = float(steps[0])
        if self._current != key:  # counts that are equal stay so while this range alone is stepped
            self._current, self._equal = key, bool((steps == t).all())
        beta1, beta2, epsilon = self.hyperparameters
        if self._equal:
            ops.adam(*vectors, t, learning_rate, beta1, beta2, epsilon, scale)
        else:  # some were stepped more often than others elsewhere
            for i in range(first, last):
                vectors, steps = self._range(i, i + 1)
                ops.adam(*vectors, float(steps[0]), learning_rate, beta1, beta2, epsilon, scale)

    def _range(self, first: int, last: int) -> tuple[tuple[Floats, ...], Floats]:
        """Return what a step of these parameters reads and writes, and how many steps each has taken."""
        part = slice(self.memory.bounds[first], self.memory.bounds[last])
        vectors = tuple(x[part] for x in (self.memory.array, self.grad, self.first, self.second))
        self._ranges[first, last] = found = vectors, self.steps[first:last]
        return found

    @property
    def hyperparameters(self) -> tuple[float, float, float]:
        """β₁, β₂ and ε as the optimiser has them now."""
        group = self.optimizer.param_groups[0]
        return (*group["betas"], group["eps"])


def _aligned(size: int) -> Floats:
    """Return zeros that begin on a cache line."""
    return th.zeros(size).numpy()
