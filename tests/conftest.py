"""One torch thread everywhere: two threads on small networks and busy cores are many times slower."""

import pytest
import torch as th


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    th.set_num_threads(1)
