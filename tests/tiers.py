"""The tiers that tests run on, and how far apart two models are."""

import pytest
import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm

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
