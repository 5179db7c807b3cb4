import csv
import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
import weakref
from collections.abc import Iterator
from contextlib import suppress
from multiprocessing import forkserver, resource_tracker
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import stepping_envs
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import SubprocVecEnv, VecEnv
from stepping_envs import SPACES, Box2, Coded, Failing, alike, fns

from spinup_plugins.envs import shared
from spinup_plugins.envs.lean import LeanVecEnv
from spinup_plugins.envs.shared import SharedMemoryVecEnv
from spinup_plugins.errors import ConfigError, EnvError, WorkerTraceback

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.* may lead to deadlocks:DeprecationWarning")
METHODS = multiprocessing.get_all_start_methods()
QUICK = ("fork", "forkserver")  # processes that are spawned import everything first
STARTED: "weakref.WeakSet[SharedMemoryVecEnv]" = weakref.WeakSet()
ZEROS = np.zeros(3, int)


def start(n: int = 3, *args: Any, workers: int | None = 2, method: str = "fork", **kwargs: Any) -> SharedMemoryVecEnv:
    env = SharedMemoryVecEnv(fns(n, *args, **kwargs), method, workers)
    STARTED.add(env)
    return env


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """Every test leaves neither processes nor files."""
    shared._preload()
    resource_tracker.ensure_running()  # these two stay for as long as this process does
    forkserver.ensure_running()
    before = set(os.listdir("/dev/shm")), descriptors()
    yield
    for env in list(STARTED):
        env.close()
    assert not multiprocessing.active_children()
    assert nothing_new(before[0])
    assert descriptors() <= before[1]


def nothing_new(before: set[str]) -> bool:
    """Whether nothing in shared memory stays; other tests that run at the same time have things there for a moment."""
    deadline = time.monotonic() + 10
    while not set(os.listdir("/dev/shm")) <= before and time.monotonic() < deadline:
        time.sleep(0.1)
    return set(os.listdir("/dev/shm")) <= before


def descriptors() -> int:
    """The number of pipes and nameless files that this process has open."""
    found = 0
    for each in Path("/proc/self/fd").iterdir():
        with suppress(OSError):  # the one for the listing itself
            found += os.readlink(each).startswith(("pipe:", "/memfd:"))
    return found


def timeless(value: Any) -> Any:
    """Results without the seconds that episodes took."""
    if isinstance(value, dict):
        return {key: timeless(each) for key, each in value.items() if key != "t"}
    return [timeless(each) for each in value] if isinstance(value, (list, tuple)) else value


def same(theirs: VecEnv, ours: VecEnv, actions: Any) -> None:
    alike(timeless(theirs.step(actions)), timeless(ours.step(actions)))
    alike(theirs.reset_infos, ours.reset_infos)


def rows(folder: Path, at: int) -> list[dict[str, str]]:
    """The episodes in a monitor's file."""
    with (folder / f"{at}.monitor.csv").open() as file:
        assert file.readline().startswith('#{"t_start"')
        return list(csv.DictReader(file))


# --- equal results ---------------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    kind=st.sampled_from(sorted(SPACES)),
    lengths=st.lists(st.lists(st.integers(1, 6), min_size=1, max_size=3).map(tuple), min_size=1, max_size=5),
    workers=st.integers(1, 3),
    truncates=st.booleans(),
    extra=st.sampled_from(["none", "numbers", "changing", "nested"]),
    monitor=st.booleans(),
    option=st.integers(0, 2),
)
def test_results_are_those_of_stepping_in_process(
    kind: str, lengths: list[tuple[int, ...]], workers: int, truncates: bool, extra: str, monitor: bool, option: int
) -> None:
    n = len(lengths)
    each = {"kind": kind, "lengths": lengths, "truncates": truncates, "extra": extra}
    theirs = LeanVecEnv(fns(n, monitor=monitor, **each))
    ours = start(n, workers=min(n, workers), monitor=monitor, **each)
    for _ in range(2):
        for env in (theirs, ours):
            if option:
                env.set_options([{"option": option + i} for i in range(n)])
            env.seed(7)
        alike(theirs.reset(), ours.reset())
        alike(theirs.reset_infos, ours.reset_infos)
        for step in range(8):
            same(theirs, ours, (np.arange(n) + step) % 5)
    ours.close()


@pytest.mark.parametrize("method", METHODS)
def test_every_start_method_gives_what_subproc_vec_env_does(method: str) -> None:
    theirs = SubprocVecEnv(fns(3, extra="numbers"), "fork")
    ours = start(3, method=method, extra="numbers")
    for env in (theirs, ours):
        env.seed(1)
    alike(theirs.reset(), ours.reset())
    for step in range(4):
        a, b = theirs.step(ZEROS + step), ours.step(ZEROS + step)
        alike([a[0], a[1].astype(np.float32), a[2], timeless(a[3])], [*b[:3], timeless(b[3])])
    theirs.close()
    ours.close()


@pytest.mark.parametrize(
    "actions",
    [
        np.linspace(-1, 1, 6, dtype=np.float32).reshape(3, 2),
        np.linspace(-1, 1, 6).reshape(3, 2),
        np.arange(6).reshape(3, 2),
        np.arange(6, dtype=np.float16).reshape(3, 2)[:, ::-1],
        np.linspace(-1, 1, 60).reshape(3, 20),  # more than the memory holds
        [np.ones(2), np.zeros(2), np.ones(2, np.float32)],
    ],
)
def test_actions_arrive_as_they_are(actions: Any) -> None:
    theirs, ours = LeanVecEnv(fns(3, Box2)), start(3, Box2)
    for env in (theirs, ours):
        env.seed(0)
        env.reset()
    for _ in range(2):
        same(theirs, ours, actions)
    ours.step(2 * np.ones((3, 2)))
    kept = ours.get_attr("actions")
    alike([np.asarray(each[0]) for each in kept], [np.asarray(each) for each in actions])
    ours.close()


def test_what_a_step_returns_is_the_callers() -> None:
    env = start(kind="dict")
    env.reset()
    actions = ZEROS.copy()
    env.step_async(actions)
    actions[:] = 4
    first = env.step_wait()
    kept = (first[0]["b"].copy(), first[1].copy(), first[2].copy())  # type: ignore[call-overload]
    np.testing.assert_allclose(first[1], 0.1)
    env.step(ZEROS + 1)
    for a, b in zip((first[0]["b"], *first[1:3]), kept, strict=True):  # type: ignore[call-overload]
        np.testing.assert_array_equal(a, b)
    env.close()


def test_monitors_write_their_files(tmp_path: Path) -> None:
    env = start(3, file=tmp_path, lengths=(2,))
    env.reset()
    for _ in range(4):
        env.step(ZEROS)
    assert [[row["l"] for row in rows(tmp_path, at)] for at in range(3)] == [["2", "2"]] * 3
    env.close()


# --- the interface of VecEnv -----------------------------------------------------------------------------------------


def test_attributes_and_methods() -> None:
    env = start(4, lengths=[(i + 1,) for i in range(4)], render_mode="rgb_array", workers=3)
    env.reset()
    assert env.get_attr("lengths") == [(1,), (2,), (3,), (4,)]
    assert env.get_attr("lengths", [3, 0, -2, 3]) == [(4,), (1,), (3,), (4,)]
    env.env_method("add", 1)
    assert env.env_method("add", 1, b=2, indices=2) == [4]
    env.set_attr("gravity", 3, indices=[1, 2])
    assert env.get_attr("gravity", [2, 1]) == [3, 3]
    assert env.has_attr("clock")
    assert not env.has_attr("gravity")
    assert env.env_is_wrapped(Monitor) == [True] * 4
    assert env.env_is_wrapped(gym.wrappers.TimeLimit, 0) == [False]
    env.step(np.zeros(4, int))
    image = env.render()
    assert image is not None
    assert image.shape == (4, 4, 3)
    env.set_attr("observe", lambda: np.full(4, 5.0), indices=1)
    assert env.get_attr("spec") == [None] * 4
    env.close()


def test_no_images_without_their_render_mode() -> None:
    env = start()
    with pytest.warns(UserWarning, match="images need render_mode='rgb_array', these environments have None"):
        assert env.get_images() == [None] * 3
    env.close()


@pytest.mark.parametrize(
    "missing",
    [
        lambda env: env.get_attr("gravity"),
        lambda env: env.get_attr("broken"),
        lambda env: env.env_method("gravity"),
        lambda env: env.set_attr("unwrapped", 1),
    ],
)
def test_a_missing_attribute_is_an_attribute_error(missing: Any) -> None:
    env = start(monitor=False)
    with pytest.raises(AttributeError, match="environment number 0 failed in") as caught:
        missing(env)
    assert isinstance(caught.value, EnvError)
    assert isinstance(caught.value.__cause__, WorkerTraceback)
    env.reset()
    env.close()


def test_attributes_can_be_asked_for_while_environments_step() -> None:
    theirs, ours = LeanVecEnv(fns(3, extra="numbers")), start(extra="numbers")
    for env in (theirs, ours):
        env.seed(2)
        env.reset()
    for step in range(5):
        theirs.step_async(ZEROS + step)
        ours.step_async(ZEROS + step)
        assert ours.get_attr("clock") == [step % 3 + 1 if step % 3 < 2 else 0] * 3
        alike(timeless(theirs.step_wait()), timeless(ours.step_wait()))
    ours.step_async(ZEROS)
    assert ours.reset().shape == (3, 4)  # type: ignore[union-attr]
    with pytest.raises(RuntimeError, match="without step_async"):
        ours.step_wait()
    ours.close()


def test_arguments_are_checked() -> None:
    with pytest.raises(ConfigError, match="n_workers must be between 1 and the number of environments, 2, not 3"):
        SharedMemoryVecEnv(fns(2), n_workers=3)
    with pytest.raises(ConfigError, match=r"start_method must be one of .*, not 'threads'"):
        SharedMemoryVecEnv(fns(2), "threads")
    lock = threading.Lock()
    with pytest.raises(ConfigError, match="environment number 0 cannot be made in another process: cannot pickle"):
        SharedMemoryVecEnv([lambda: Coded(extra=str(lock))], "spawn")
    env = start()
    with pytest.raises(ValueError, match="2 actions were given for 3 environments"):
        env.step(np.zeros(2, int))
    env.close()


def test_one_worker_per_core_and_no_more_than_environments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared, "usable_cores", lambda: 2)
    for n, workers in ((1, 1), (2, 2), (5, 2)):
        env = start(n, workers=None)
        assert len({*env.env_method("get_wrapper_attr", "spec")}) == 1
        assert len(multiprocessing.active_children()) == workers
        env.close()


# --- exceptions ------------------------------------------------------------------------------------------------------


def one_line(error: BaseException) -> str:
    assert "\n" not in str(error)
    return str(error)


def fails(env: SharedMemoryVecEnv, steps: int = 2) -> EnvError:
    """The error of the step after ``steps - 1`` good ones."""
    env.reset()
    for _ in range(steps - 1):
        env.step(ZEROS)
    with pytest.raises(EnvError) as caught:
        env.step(ZEROS)
    return caught.value


@pytest.mark.parametrize("method", QUICK)
def test_an_exception_is_named_and_brings_its_traceback(method: str) -> None:
    env = start(3, "Failing-v0", method=method, fault=["", "", "raise"])
    error = fails(env)
    expected = "environment 'Failing-v0' (number 2) failed in step(): ValueError: boom on two lines"
    assert one_line(error) == expected
    text = "".join(traceback.format_exception(error))
    assert 'raise ValueError("boom\\non two lines")' in text
    assert "stepping_envs.py" in text
    process = multiprocessing.active_children()
    assert env.reset().shape == (3, 4)  # type: ignore[union-attr]
    env.step(ZEROS)
    assert multiprocessing.active_children() == process
    env.close()


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("shape", "returned an observation that does not fit its space Box(-inf, inf, (4,), float32) of shape (1,)"),
        ("interrupt", "failed in step(): KeyboardInterrupt"),
        ("reset", "failed in step(): RuntimeError: no reset today"),
    ],
)
def test_other_faults_are_named(fault: str, message: str) -> None:
    env = start(3, Failing, fault=["", fault, fault], lengths=(2,) if fault == "reset" else (5,), at=2)
    assert one_line(fails(env)) == f"environment number 1 {message}"
    env.close()


def test_an_info_that_cannot_be_sent_is_named() -> None:
    env = start(3, Failing, fault=["", "unsendable", ""], at=2)
    message = one_line(fails(env))
    assert message.startswith("environments number 1 to 2 returned from step() what cannot be sent to another process")
    env.reset()
    with pytest.raises(EnvError, match="what cannot be sent"):
        env.get_attr("unsendable", 0)
    env.step(ZEROS)
    env.close()


def test_a_failing_constructor_is_named() -> None:
    with pytest.raises(EnvError) as caught:
        start(3, Failing, fault=["", "", "constructor"])
    message = "environment number 2 could not be made: FileNotFoundError: no model here"
    assert one_line(caught.value) == message
    assert "stepping_envs.py" in str(caught.value.__cause__)


def test_a_failing_method_and_reset_are_named() -> None:
    env = start(3, Failing, fault=["", "", "reset"], at=0)
    with pytest.raises(EnvError, match=r"environment number 0 failed in env_method\(\): OSError: not now"):
        env.env_method("fail")
    with pytest.raises(EnvError, match=r"environment number 2 failed in reset\(\): RuntimeError: no reset today"):
        env.reset()
    env.close()


def test_environments_must_observe_alike() -> None:
    with pytest.raises(EnvError, match=r"environment number 2 has another observation space than environment number 0"):
        start(3, kind=["box", "box", "image"], workers=3)


# --- lost processes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", QUICK)
@pytest.mark.parametrize(("fault", "how"), [("kill", "was killed by SIGKILL"), ("exit", "exited with status 3")])
def test_a_lost_process_is_named_and_reset_starts_another(fault: str, how: str, method: str, tmp_path: Path) -> None:
    env = start(
        3, "Failing-v0", fault=["", "", fault], at=3, note=tmp_path / "failed", method=method, file=tmp_path, lengths=(2,)
    )
    env.seed(5)
    first = env.reset()
    error = fails(env, 3)
    message = f"the process of environments number 1 to 2 ('Failing-v0') {how}; reset() starts another"
    assert one_line(error) == message
    with pytest.raises(EnvError, match=how):
        env.step(ZEROS)
    with pytest.raises(EnvError, match=how):
        env.get_attr("clock")
    assert env.get_attr("clock", 0)
    again = env.reset()
    assert again[1, 2] != first[1, 2]  # type: ignore[call-overload]  # what was drawn after seeding
    for _ in range(4):
        env.step(ZEROS)
    env.close()
    lengths = [[row["l"] for row in rows(tmp_path, at)] for at in range(3)]
    assert lengths == [["2"] * 4, ["2"] * 3, ["2"] * 3]
    assert all(float(row["t"]) < 100 for at in range(3) for row in rows(tmp_path, at))  # since the file's beginning


def test_a_restarted_environments_seed_follows_from_the_first() -> None:
    drawn = []
    for _ in range(2):
        env = start()
        env.seed(5)
        env.reset()
        os.kill(env._workers[1].process.pid, signal.SIGKILL)
        with pytest.raises(EnvError):
            env.step(ZEROS)
        drawn.append([env.reset(), env.step(ZEROS)[0]][0])
        env.seed(5)
        drawn.append(env.reset())
        env.close()
    np.testing.assert_array_equal(drawn[0][1:], drawn[2][1:])
    np.testing.assert_array_equal(drawn[1][:, 2], drawn[3][:, 2])


def test_closing_never_waits_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared, "PATIENCE", 0.3)
    for fault in ("hang", "stubborn"):
        env = start(3, Failing, fault=["", "", fault], at=1)
        env.reset()
        env.step_async(ZEROS)
        env.close()
        env.close()
        with pytest.raises(RuntimeError, match="closed"):
            env.reset()


def test_closing_closes_the_environments(tmp_path: Path) -> None:
    env = start(2, Failing, fault="close", note=[tmp_path / "0", tmp_path / "1"])
    env.close()
    assert len({(tmp_path / each).read_text() for each in "01"}) == 2


def test_dropping_the_last_reference_closes() -> None:
    env = start()
    assert multiprocessing.active_children()
    del env
    assert not multiprocessing.active_children()


def test_ctrl_c_leaves_the_environments_usable(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs, ours = LeanVecEnv(fns(3, extra="numbers")), start(extra="numbers", workers=3)
    original = shared._Worker.answer
    calls = []

    def interrupted(worker: Any, number: int) -> Any:
        calls.append(number)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(worker, number)

    for env in (theirs, ours):
        env.seed(1)
        env.reset()
    for again in ("step_wait", "get_attr", "step", "reset"):
        ours.step_async(ZEROS)
        theirs.step_async(ZEROS)
        calls.clear()
        with monkeypatch.context() as patch:
            patch.setattr(shared._Worker, "answer", interrupted)
            with pytest.raises(KeyboardInterrupt):
                ours.step_wait()
        expected = timeless(theirs.step_wait())
        if again in ("step_wait", "get_attr"):
            assert again == "step_wait" or len(ours.get_attr("clock")) == 3
            alike(timeless(ours.step_wait()), expected)
        if again == "reset":
            alike(theirs.reset(), ours.reset())
        same(theirs, ours, ZEROS)
    ours.close()


def test_ctrl_c_between_two_requests_does_not_wait_for_an_answer_to_none(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = start(workers=3)
    ours.reset()
    original = shared._Worker.send

    def interrupted(worker: Any, number: int, request: bytes) -> None:
        if worker is ours._workers[1]:
            raise KeyboardInterrupt
        original(worker, number, request)

    with monkeypatch.context() as patch:
        patch.setattr(shared._Worker, "send", interrupted)
        with pytest.raises(KeyboardInterrupt):
            ours.step_async(ZEROS)
    assert len(ours.get_attr("clock")) == 3
    with pytest.raises(EnvError, match=r"interrupted before all environments began it; reset\(\) begins anew"):
        ours.step_wait()
    ours.reset()
    ours.step(ZEROS)
    ours.close()


def test_a_vec_env_inside_an_environment_does_not_confuse_whose_error_it_is() -> None:
    class Nest(Coded):
        def step(self, action: Any) -> Any:
            inner = LeanVecEnv(fns(4) + fns(1, Failing, fault="raise", at=1))
            inner.reset()
            inner.step(np.zeros(5, int))

    ours = SharedMemoryVecEnv([Nest, Nest], start_method="fork", n_workers=1)
    ours.reset()
    with pytest.raises(EnvError, match=r"environment number 0 failed in step.*boom on two lines"):
        ours.step(np.zeros(2, int))
    ours.close()


class Remains:
    """Garbage of the parent that aborts whoever else collects it, as a C++ object whose threads are not in a fork does."""

    def __init__(self) -> None:
        self.parent, self.itself = os.getpid(), self

    def __del__(self) -> None:
        if os.getpid() != self.parent:
            os.abort()


def test_a_fork_does_not_destroy_what_it_inherited() -> None:
    class Collects(Coded):
        def step(self, action: Any) -> Any:
            gc.collect()
            return super().step(action)

    gc.collect()
    gc.disable()
    try:
        Remains()
        ours = SharedMemoryVecEnv([Collects], start_method="fork")
        ours.reset()
        ours.step(np.zeros(1, int))
        ours.close()
    finally:
        gc.enable()


def test_a_failed_construction_says_one_thing(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(EnvError, match="number 1 could not be made"):
        SharedMemoryVecEnv(fns(1) + fns(1, Failing, fault="constructor"), start_method="fork", n_workers=2)
    assert capfd.readouterr().err == ""


PARENT = """
import os, signal, sys, time
import numpy as np
from stepping_envs import Failing, fns
from spinup_plugins.envs.shared import SharedMemoryVecEnv

def main(method, fault, end):
    env = SharedMemoryVecEnv(fns(2, Failing, fault=fault, at=1), method)
    env.reset()
    env.step_async(np.zeros(2, int))
    print(*(worker.process.pid for worker in env._workers), flush=True)
    if end == "kill":
        if os.fork() == 0:  # holds copies of all pipes
            time.sleep(8)
            os._exit(0)
        os.kill(os.getpid(), signal.SIGKILL)
    if end == "interrupt":
        try:
            os.killpg(0, signal.SIGINT)
            time.sleep(5)
        except KeyboardInterrupt:
            env.step_wait()
            env.close()

if __name__ == "__main__":
    main(*sys.argv[1:])
"""


@pytest.mark.parametrize(
    ("method", "fault", "end"),
    [
        ("forkserver", "hang", "kill"),
        ("fork", "hang", "kill"),
        ("forkserver", "", "exit"),
        ("fork", "", "interrupt"),
    ],
)
def test_workers_end_with_their_parent(method: str, fault: str, end: str, tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    environment = os.environ | {"PYTHONPATH": str(Path(stepping_envs.__file__).parent)}
    memory = set(os.listdir("/dev/shm"))
    parent = subprocess.Popen(
        [sys.executable, str(script), method, fault, end],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert parent.stdout is not None
    assert parent.stderr is not None
    workers = parent.stdout.readline().split()
    status = parent.wait(30)
    assert len(workers) >= 1
    assert status == (-signal.SIGKILL if end == "kill" else 0)
    deadline = time.monotonic() + 6
    while any(map(runs, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(runs, workers))
    assert nothing_new(memory)
    if end != "kill":  # the fork has these open, too
        assert parent.stderr.read() == ""
    parent.stdout.close()
    parent.stderr.close()


def runs(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
