"""Which of the engine's tiers a model runs on: ``native``, ``numpy`` or ``torch``, and why."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias

from spinup_plugins.engine.networks import Memory, Unsupported, Wiring
from spinup_plugins.errors import ConfigError

__all__ = ["Bound", "EngineName", "Tier", "choose", "native"]

EngineName: TypeAlias = Literal["auto", "torch", "numpy", "native"]

#: said once per process where the native tier would serve but is not built
NOT_BUILT = (
    f"the native tier is not built in '{Path(__file__).parent}' (no C compiler at installation, or a checkout that another"
    " installation lies beside); built, updates of small networks are about twice as fast: install it anew with a compiler,"
    " a checkout by 'pip install -e .'"
)


#: widest layer that portable code computes faster than NumPy's BLAS does: 1.3 times at 64, 0.5 times at 256 units
PORTABLE_WIDTH = 128
TOO_WIDE = "the native tier's code for this processor is slower than NumPy's BLAS on layers this wide"


class Bound(Protocol):
    """A policy on the engine: its networks and optimisers on shared memory."""

    ops: Any  #: the primitives, of one tier

    wiring: Wiring  #: the policy's and its optimisers', as it was bound
    acting: Wiring  #: the part of it that ``predict`` depends on
    memories: tuple[Memory, ...]  #: where its parameters are

    def predict(self, observation: Any, deterministic: bool) -> Any | None:
        """Return what ``policy.predict`` returns, or ``None`` where it had better be asked itself."""


class Tier(NamedTuple):
    """A choice of tier."""

    name: str
    reason: str  #: why no faster one, empty for the fastest
    bound: Any | None  #: the policy on the engine; ``None`` on the torch tier


@cache
def native() -> ModuleType | None:
    """Return the compiled primitives, or ``None`` where they are not built."""
    try:
        return importlib.import_module("spinup_plugins.engine.native_ops")
    except ImportError:
        return None


def choose(request: str, bind: Callable[[Any], Any], *, widest: int) -> Tier:
    """Choose the fastest tier that ``request`` allows and the policy permits.

    :param request: ``"auto"``, or the one tier to take
    :param widest: width of the policy's widest layer
    :param bind: makes the policy :class:`Bound` with the primitives of a tier, or raises :class:`Unsupported`
    :raises ConfigError: when the one tier asked for is not to be had
    """
    if request == "torch":
        return Tier("torch", "asked for", None)
    ops = native() if request in ("auto", "native") else None
    if request == "native" and ops is None:
        raise ConfigError(f"engine='native': {NOT_BUILT}")
    reason = "" if ops is not None else ("asked for" if request == "numpy" else NOT_BUILT)
    if ops is not None and request == "auto" and widest > PORTABLE_WIDTH and ops.isa() == "portable":
        ops, reason = None, TOO_WIDE
    if ops is None:
        ops = importlib.import_module("spinup_plugins.engine.numpy_ops")
    try:
        return Tier(ops.NAME, reason, bind(ops))
    except Unsupported as unsupported:
        if request != "auto":
            raise ConfigError(f"engine={request!r} does not know {unsupported}; engine='torch' does") from None
        return Tier("torch", str(unsupported), None)
