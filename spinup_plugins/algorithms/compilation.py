"""Losses compiled by ``torch.compile``, kept beside the models that compute them."""

import sys
import warnings
from collections.abc import Callable
from functools import partial
from inspect import signature
from textwrap import shorten
from types import FunctionType
from typing import Any, NamedTuple, TypeVar
from weakref import WeakKeyDictionary

import cloudpickle  # type: ignore[import-untyped]
import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.preprocessing import is_image_space
from torch.utils._pytree import tree_map_only

from spinup_plugins.errors import ConfigError, nearest

__all__ = ["check_arguments", "compiled", "picklable"]

Method = TypeVar("Method", bound=Callable[..., Any])


class Compilation(NamedTuple):
    """One model's compiled functions, by what they were compiled from, and for which arguments and policy they hold."""

    arguments: dict[str, Any]
    policy: BasePolicy
    functions: dict[Any, Any]


#: beside the models and not in them: neither files nor copies have a compiled function, nor does one keep a model alive
_compilations: WeakKeyDictionary[Any, Compilation] = WeakKeyDictionary()


def check_arguments(name: str, arguments: dict[str, Any]) -> None:
    """Raise :class:`ConfigError`, in the name of algorithm ``name``, for an argument that ``torch.compile`` has not."""
    known = set(signature(th.compile).parameters) - {"model"}
    for key in arguments:
        if key not in known:
            raise ConfigError(f"{name}: compile: torch.compile has no argument {key!r}{nearest(key, known)}")


def compiled(model: BaseAlgorithm, method: Method, arguments: dict[str, Any]) -> Method:
    """Return ``model``'s ``method`` compiled with ``arguments``; the same at every call, until policy or arguments change."""
    function = getattr(method, "__func__", None)
    if function is None:
        return method
    known = _compilations.get(model)
    if known is None or known.arguments != arguments or known.policy is not model.policy:
        known = _compilations[model] = Compilation(dict(arguments), model.policy, {})
    if function not in known.functions:
        known.functions[function] = _compile(function, arguments)
    return partial(known.functions[function], model)  # type: ignore[return-value]


def _compile(function: FunctionType, arguments: dict[str, Any]) -> Callable[..., Any]:
    """Compile ``function`` by ``torch.compile(…, **arguments)``.

    Where that cannot be done, for want of a C++ compiler for one, it is said once and ``function`` itself is called: the
    numbers are the same, and a run (or a file that was saved elsewhere) is worth more than its speed. On a CUDA device
    outputs are cloned, because CUDA graphs (``{"mode": "reduce-overhead"}``) overwrite those of an earlier run; this has
    not been run there.

    :raises ConfigError: on arguments that ``torch.compile`` refuses
    """
    # Torch keeps what it compiled, and counts how often it did, by code object: each model has its own.
    own = FunctionType(
        function.__code__.replace(), function.__globals__, function.__name__, function.__defaults__, function.__closure__
    )
    own.__kwdefaults__ = function.__kwdefaults__
    # It looks into NumPy arrays, which the compiler cannot, and says the same of a space each time.
    th.compiler.assume_constant_result(is_image_space)  # type: ignore[no-untyped-call]
    try:
        fast = th.compile(own, **arguments)
    except Exception as error:
        raise ConfigError(f"compile={arguments!r}: {_first_lines(error)}") from error

    def call(model: BaseAlgorithm, *args: Any, **kwargs: Any) -> Any:
        nonlocal fast
        # A number would be compiled in, and another one (a schedule's next) compile anew.
        args = tuple(th.tensor(x, device=model.device) if type(x) is float else x for x in args)
        try:
            outputs = fast(model, *args, **kwargs)
        except Exception as error:
            if not isinstance(error, sys.modules["torch._dynamo.exc"].TorchDynamoException):
                raise
            warnings.warn(f"{type(model).__name__}: losses run uncompiled: {_first_lines(error)}", stacklevel=1)
            fast = function
            outputs = fast(model, *args, **kwargs)
        return outputs if model.device.type != "cuda" else tree_map_only(th.Tensor, th.clone, outputs)

    return call


def _first_lines(error: Exception) -> str:
    """What was done, and what came of it, which torch has on a line of its own."""
    return shorten(" ".join(str(error).strip().split("\n")[:2]), 200)


def picklable(value: Any) -> bool:
    """Whether ``value`` can go into a file."""
    try:
        cloudpickle.dumps(value)
    except Exception:
        return False
    return True
