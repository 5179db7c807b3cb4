"""How many threads to compute with, and that only one library's threads do."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch as th
from torch import nn

from spinup_plugins.engine.networks import MLP, Floats, Shape
from spinup_plugins.engine.tiers import native

__all__ = ["computing_threads", "fastest", "widest_layer"]

SMALL_WIDTH, SMALL_LAYER = 128, 2**16  #: below both, a layer takes no longer than waking a thread
PROBE_FLOP = 5e7  #: half a millisecond on one core
MAX_THREADS = 64  #: of the native tier's pool
GAIN = 0.9  #: more threads must take less than this share of the time


def widest_layer(policy: nn.Module) -> int:
    """Return the width of the widest layer; convolutions count as wider than any."""
    shapes = [p.shape for p in policy.parameters()]
    return 2**31 if any(len(shape) > 2 for shape in shapes) else max((s[0] for s in shapes if len(s) == 2), default=1)


@contextmanager
def computing_threads(tier: str, n_threads: int | None, *, widest: int, batch: int) -> Iterator[int]:
    """Compute with as many threads as are fastest, and put every library's number back afterwards.

    With ``n_threads=None`` layers of at most 128 units and 65 536 outputs per batch get one thread. Others are measured on
    the native tier, whose results do not depend on the number of threads. They do in NumPy's BLAS (in a quarter of the
    shapes tried), where a measured number would make a seed's run depend on what else the machine does: NumPy gets one
    thread unless told otherwise, torch keeps the number that it has, as Stable-Baselines3 does.

    :param tier: ``"native"``, ``"numpy"`` or ``"torch"``; the other libraries get one thread, lest two pools spin at once
    :param n_threads: how many
    :param widest: width of the widest layer
    :param batch: minibatch size
    :return: yields the number
    """
    small = widest <= SMALL_WIDTH and batch * widest <= SMALL_LAYER
    count = 1 if n_threads is None and (small or tier == "numpy") else n_threads
    torch_threads = th.get_num_threads()
    with ExitStack() as restoring:
        if tier == "torch":
            count = torch_threads if count is None else count
            restoring.callback(th.set_num_threads, torch_threads)
            th.set_num_threads(count)
            yield count
            return
        restoring.callback(th.set_num_threads, torch_threads)
        th.set_num_threads(1)
        if tier == "native":
            ops: Any = native()
            pool = ops._native
            restoring.callback(pool.set_threads, pool.threads())
            count = fastest(ops, widest, batch) if count is None else min(count, MAX_THREADS)
            pool.set_threads(count)
        else:
            from threadpoolctl import ThreadpoolController

            assert count is not None, "one unless it is given"
            restoring.enter_context(ThreadpoolController().select(user_api="blas").limit(limits=count))
        assert count is not None, "measured unless it is given"
        yield count


def fastest(ops: Any, widest: int, batch: int) -> int:
    """Measure how many of the native tier's threads multiply (batch, widest) by (widest, widest) fastest, in some ms."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    counts = list(itertools.takewhile(lambda n: n <= cores, (2**i for i in range(6))))
    if len(counts) == 1:
        return 1
    shape = Shape((widest, widest))
    rows = max(1, min(batch, int(PROBE_FLOP / (2 * widest**2))))
    net = MLP(shape, np.zeros(shape.size, dtype=np.float32))
    tape, x = net.tape(rows), np.zeros((rows, widest), dtype=np.float32)
    times = {count: min(_seconds(ops, count, net, tape, x) for _ in range(3)) for count in counts}
    best = 1
    for count in counts[1:]:
        if times[count] < GAIN * times[best]:
            best = count
    return best


def _seconds(ops: Any, count: int, net: MLP, tape: Any, x: Floats) -> float:
    ops._native.set_threads(count)
    begin = time.perf_counter()
    for _ in range(2):
        ops.mlp_forward(net, tape, x)
    return time.perf_counter() - begin
