"""One algorithm, one file: VPG, TRPO, PPO, DDPG, TD3 and SAC, each with its equations numbered beside the code.

Called, ``spinup_plugins.algorithms()`` lists every algorithm's name: :func:`spinup_plugins.registry.algorithms`.
"""

import sys
from types import ModuleType


class _Package(ModuleType):
    """This package and the registry's public function have one name; importing the one must not hide the other."""

    def __call__(self, *, peers: bool = False) -> tuple[str, ...]:
        from spinup_plugins.registry import algorithms

        return algorithms(peers=peers)


sys.modules[__name__].__class__ = _Package
