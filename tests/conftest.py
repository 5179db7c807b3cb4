"""One torch thread everywhere: two threads on small networks and busy cores are many times slower."""

import gc
from collections.abc import Iterator

import pytest
import torch as th


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    th.set_num_threads(1)


@pytest.fixture
def pools_freed() -> Iterator[None]:
    """Destroy EnvPool's objects here: in a fork of this process, which has none of their threads, that would abort it."""
    yield
    gc.collect()
