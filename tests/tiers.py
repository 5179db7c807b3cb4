"""The tiers that tests run on, how far apart two models are, and what both families' tests ask of them."""

from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback

from spinup_plugins.engine.tiers import native

built = pytest.mark.skipif(native() is None, reason="the native tier is not built")

#: tiers with updates of their own; torch's is the reference
ENGINES = ["numpy", pytest.param("native", marks=built)]
#: every tier
TIERS = ["torch", *ENGINES]


def gap(ours: BaseAlgorithm, peer: BaseAlgorithm, *, relative: bool = False) -> float:
    """Largest difference over every tensor of every state dict, optimisers' moments included.

    :param relative: to each tensor's largest entry, where that is above 1: moments of gradients are as large as returns
    """
    largest = 0.0
    mine, theirs = ours.get_parameters(), peer.get_parameters()
    assert mine.keys() == theirs.keys()
    for name in mine:
        leaves, other = th.utils._pytree.tree_leaves(mine[name]), th.utils._pytree.tree_leaves(theirs[name])
        assert len(leaves) == len(other)
        for a, b in zip(leaves, other, strict=True):
            if isinstance(a, th.Tensor):
                scale = max(1.0, b.abs().max().item()) if relative else 1.0
                largest = max(largest, (a - b).abs().max().item() / scale)
    return largest


class Watching(BaseCallback):
    """Keeps what a callback may see at every step."""

    def __init__(self, *names: str) -> None:
        super().__init__()
        self.names = names
        self.seen: list[dict[str, Any]] = []

    def _on_step(self) -> bool:
        self.seen.append({name: self.locals[name] for name in self.names})
        return True


def predicted(model: BaseAlgorithm, obs: Any, *, deterministic: bool) -> Any:
    """Predict by the model, which must be what its policy predicts from the same seed; return the actions."""
    th.manual_seed(0)
    ours, _ = model.predict(obs, deterministic=deterministic)
    th.manual_seed(0)
    theirs, _ = model.policy.predict(obs, deterministic=deterministic)
    assert (type(ours), ours.shape, ours.dtype) == (type(theirs), theirs.shape, theirs.dtype)
    np.testing.assert_allclose(ours, theirs, atol=1e-6)
    return ours
