"""One torch thread everywhere: two threads on small networks and busy cores are many times slower."""

import gc
from collections.abc import Iterator

import pytest
import torch as th


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    th.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def one_log_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Models that log nowhere get this folder of pytest's: SB3's logger else leaves an empty one in /tmp for each."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SB3_LOGDIR", str(tmp_path_factory.mktemp("logger")))
        yield


@pytest.fixture
def pools_freed() -> Iterator[None]:
    """Destroy EnvPool's objects here: in a fork of this process, which has none of their threads, that would abort it."""
    yield
    gc.collect()
