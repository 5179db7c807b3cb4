"""The ways to step several copies of an environment, by name; light enough for whoever only lists or checks them."""

from typing import Literal, TypeAlias

__all__ = ["VEC_ENVS", "VecEnvKind"]

VecEnvKind: TypeAlias = Literal["auto", "dummy", "subproc", "gym-async", "envpool"]
VEC_ENVS: dict[VecEnvKind, str] = {
    "auto": "whichever of the next two is faster by a measurement",
    "dummy": "in this process, one after the other",
    "subproc": "in worker processes, over shared memory",
    "gym-async": "in a worker process each, Gymnasium's AsyncVectorEnv",
    "envpool": "in EnvPool's threads, where EnvPool has the environment",
}
"""How several copies of an environment can be stepped."""
