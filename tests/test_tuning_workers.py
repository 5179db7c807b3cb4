"""Workers that share a study: one is killed, and every trial is accounted for exactly once."""

import io
import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState, create_trial
from test_tuning_study import definition

from spinup_plugins.tuning import confirm
from spinup_plugins.tuning import workers as module
from spinup_plugins.tuning.objective import Curve
from spinup_plugins.tuning.slots import Slot, is_lost, is_surplus, slots_of, unrepeated
from spinup_plugins.tuning.study import create, open_storage, open_study
from spinup_plugins.tuning.workers import Orders, StudyError, run_workers

TRIALS = 8


@pytest.fixture(autouse=True)
def findable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers import the environments of this folder."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]))


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    """URL of a server that is started for the purpose, as a user who may (root may not)."""
    programs = [shutil.which(name) or shutil.which(name, path="/usr/lib/postgresql/15/bin") for name in ("initdb", "postgres")]
    if None in programs:
        pytest.skip("PostgreSQL's initdb and postgres are not installed")
    if find_spec("psycopg") is None:
        pytest.skip("the extra 'postgres' is not installed")
    initdb, server = map(str, programs)
    become: list[str] = []
    folder = tempfile.mkdtemp(prefix="pg-")  # short: a socket's path has at most 107 characters
    if os.geteuid() == 0:
        import pwd

        try:
            user = pwd.getpwnam("postgres")
        except KeyError:
            pytest.skip("PostgreSQL does not run as root, and there is no user 'postgres'")
        if shutil.which("setpriv") is None:
            pytest.skip("PostgreSQL does not run as root, and there is no setpriv")
        os.chown(folder, user.pw_uid, user.pw_gid)
        become = ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    data = f"{folder}/data"
    quiet: dict[str, Any] = {"cwd": folder, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    subprocess.run([*become, initdb, "-D", data, "-U", "spinup", "-A", "trust", "--no-sync"], check=True, **quiet)
    options = ["-c", "fsync=off", "-c", f"unix_socket_directories={folder}", "-c", "listen_addresses=127.0.0.1"]
    process = subprocess.Popen([*become, server, "-D", data, "-p", str(port), *options], **quiet)
    import psycopg

    try:
        for _ in range(100):
            try:
                psycopg.connect(f"postgresql://spinup@127.0.0.1:{port}/postgres", connect_timeout=1).close()
                break
            except psycopg.OperationalError:
                assert process.poll() is None
                import time

                time.sleep(0.1)
        yield f"postgresql://spinup@127.0.0.1:{port}/postgres"
    finally:
        process.send_signal(signal.SIGINT)  # fast shutdown
        process.wait(30)
        shutil.rmtree(folder, ignore_errors=True)


class Forked:
    """Stands in for a worker's ``Popen``: a fork of a server that has imported everything once, to save the tests' time."""

    def __init__(self, orders: Orders) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["spinup_plugins.tuning.workers", "spinup_plugins.runs.runner", "torch._dynamo"])
        self.process = context.Process(target=module._serve, args=(orders._asdict(),))
        self.process.start()
        self.pid = self.process.pid
        self.terminate, self.kill = self.process.terminate, self.process.kill

    def poll(self) -> int | None:
        return self.process.exitcode

    def wait(self, timeout: float | None = None) -> int | None:
        self.process.join(timeout)
        return self.process.exitcode

    @property
    def returncode(self) -> int | None:
        return self.process.exitcode


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch) -> None:
    start: Any = lambda orders: module._Active(Forked(orders), io.BytesIO())  # type: ignore[arg-type]  # noqa: E731
    monkeypatch.setattr(module, "_start", start)


def close(study: optuna.Study) -> None:
    """Close the connections of a study's storage."""
    backend = getattr(study._storage, "_backend", None)
    if hasattr(backend, "engine"):
        study._storage.remove_session()
        backend.engine.dispose()


@pytest.fixture(params=["journal", "postgresql"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "journal":
        return str(tmp_path / "study.journal")
    return str(request.getfixturevalue("postgres"))


@pytest.mark.usefixtures("forked")
def test_four_workers_of_which_one_is_killed(storage: str) -> None:
    """Every slot ends once, in one state; the killed worker's trial is repeated with its parameters; it is replaced."""
    what = definition(sampler="random", env_kwargs={"seconds": 0.002}, race_seeds=1, confirm_seeds=2, top=2, seeds_per_trial=2)
    study = create(open_storage(storage), "killed", what, until=TRIALS)
    killed: list[FrozenTrial] = []
    seen: set[int] = set()

    def watch(processes: Sequence[int]) -> None:
        seen.update(processes)
        for trial in study.get_trials(deepcopy=False) if not killed else ():
            if trial.state == TrialState.RUNNING and trial.intermediate_values and "start" not in trial.user_attrs:
                pid = trial.user_attrs["worker"]["pid"]
                assert pid in processes
                os.kill(pid, signal.SIGKILL)
                killed.append(trial)
                break

    run_workers(Orders(storage, "killed", TRIALS, beat=0.5, grace=60), 4, watch)
    assert len(killed) == 1
    assert len(seen) == 5, "a killed worker is replaced"
    trials = study.get_trials()
    slots = slots_of(trials)
    assert len(slots) == TRIALS
    assert all(slot.trial.state == TrialState.COMPLETE for slot in slots)
    in_slots = [trial.number for slot in slots for trial in slot.chain]
    assert len(set(in_slots)) == len(in_slots)
    others = [trial for trial in trials if trial.number not in in_slots]
    assert all(trial.state == TrialState.FAIL and "void" in trial.user_attrs for trial in others)
    repeated = [slot for slot in slots if len(slot.chain) > 1]
    assert [slot.chain[0].number for slot in repeated] == [killed[0].number]
    assert is_lost(repeated[0].chain[0])
    assert repeated[0].trial.params == killed[0].params
    held = optuna.load_study(storage=study._storage, study_name="killed (confirmation)")
    pairs = [(t.user_attrs["candidate"], t.user_attrs["seed"]) for t in held.trials if t.state == TrialState.COMPLETE]
    assert len(pairs) == len(set(pairs)) == 2 * 1 + 2 * 2
    close(study)


def test_a_worker_is_a_process_with_its_own_threads(tmp_path: Path) -> None:
    """As ``spinup tune`` starts it; and it says on one line what went wrong."""
    where = str(tmp_path / "study.journal")
    study = create(open_storage(where), "x", definition(confirm_seeds=0), until=1)
    run_workers(Orders(where, "x", 1, threads=1), 1)
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE]
    with pytest.raises(StudyError, match=r"^there is no study 'y' in the storage$"):
        run_workers(Orders(where, "y", 1), 1)


def test_a_full_storage_stops_a_worker_and_no_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    where = str(tmp_path / "study.journal")
    create(open_storage(where), "x", definition(sampler="random", confirm_seeds=0), until=3)
    report = optuna.Trial.report

    def full(self: optuna.Trial, value: float, step: int) -> None:
        if self.number == 1:
            raise OSError(28, "No space left on device")
        report(self, value, step)

    with monkeypatch.context() as patch:
        patch.setattr(optuna.Trial, "report", full)
        with pytest.raises(StudyError, match=r"the storage does not take results: OSError: .*No space left"):
            module.work(Orders(where, "x", 3))
    states = [trial.state for trial in open_study(open_storage(where), "x").trials]
    assert states == [TrialState.COMPLETE, TrialState.FAIL, TrialState.WAITING], "given back"
    module.work(Orders(where, "x", 3))
    slots = slots_of(open_study(open_storage(where), "x").trials)
    assert [slot.trial.state.name for slot in slots] == ["COMPLETE"] * 3
    assert [len(slot.chain) for slot in slots] == [1, 2, 1]


def test_a_journal_that_was_cut_off_goes_on(tmp_path: Path) -> None:
    where = str(tmp_path / "study.journal")
    study = create(open_storage(where), "x", definition(), until=1)
    with open(where, "ab") as file:
        file.write(b'{"op_code": 4, "worker')
    assert len(open_study(open_storage(where), "x").trials) == 1
    study = open_study(open_storage(where), "x")
    study.enqueue_trial({})
    assert len(open_study(open_storage(where), "x").trials) == 2


def test_a_worker_that_is_silent_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = create(open_storage(str(tmp_path / "j")), "x", definition(), until=1)
    elsewhere = {"machine": "another", "pid": 1, "born": "1"}
    study.add_trial(create_trial(state=TrialState.RUNNING, user_attrs={"worker": elsewhere, "beat": 1}))
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    undertaker = module._Undertaker(grace=10)

    def buried() -> int:
        undertaker.bury(study)
        return sum(map(is_lost, study.trials))

    assert buried() == 0
    now[0] += 9
    study._storage.set_trial_user_attr(study.trials[1]._trial_id, "beat", 2)
    assert buried() == 0
    now[0] += 9
    assert buried() == 0, "its beat went on"
    now[0] += 9
    assert buried() == 1
    assert study.trials[-1].user_attrs == {"retry_of": 1}
    assert buried() == 1
    assert len(study.trials) == 3, "queued once"


@pytest.mark.parametrize("fails", [False, True], ids=["ends", "fails"])
@pytest.mark.parametrize("nth", [1, 4], ids=["trial", "confirmation"])
def test_a_training_that_others_took_for_lost_is_left_to_them(
    nth: int, fails: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = str(tmp_path / "study.journal")
    settings = {"sampler": "random", "seeds_per_trial": 1, "race_seeds": 1, "confirm_seeds": 2}
    study = create(open_storage(where), "x", definition(**settings), until=2)
    calls = 0

    def train(config: Any, watch: Any) -> Curve:
        nonlocal calls
        calls += 1
        if calls == nth:
            for each in (study, confirm.open_confirmation(study)):
                for trial in each.get_trials(deepcopy=False):
                    if trial.state == TrialState.RUNNING:
                        module.lose(each, trial._trial_id)
            if fails:
                raise ValueError("worn out")
        return Curve((100,), ((float(calls),),), (1.0,), 1.0)

    monkeypatch.setattr(module, "train_once", train)
    module.work(Orders(where, "x", 2))
    assert [slot.trial.state.name for slot in slots_of(study.trials)] == ["COMPLETE"] * 2
    held = confirm.results(confirm.open_confirmation(study))
    assert len(held) == 4
    assert calls == 2 + 4 + 1, "once more"


def test_processes_that_are_gone_are_recognised() -> None:
    here = module.worker_id()
    assert not module._is_gone(here)
    child = subprocess.Popen(["true"])
    child.wait()
    if os.path.isdir("/proc/self"):
        assert module._is_gone({**here, "born": "1"}), "the number is another process's now"
    assert module._is_gone({**here, "pid": child.pid})
    assert not module._is_gone({**here, "machine": "another", "pid": child.pid})


def trial(number: int, state: TrialState, **attributes: Any) -> FrozenTrial:
    found = create_trial(state=state, value=1.0 if state == TrialState.COMPLETE else None, user_attrs=attributes)
    found.number = number
    return found


def test_slots() -> None:
    trials = [
        trial(0, TrialState.FAIL, lost=True),
        trial(1, TrialState.COMPLETE, lost=True),
        trial(2, TrialState.COMPLETE, retry_of=0),
        trial(3, TrialState.RUNNING, retry_of=0),
        trial(4, TrialState.FAIL, void=True),
        trial(5, TrialState.FAIL, lost=True),
        trial(6, TrialState.FAIL, error="ValueError: x", lost=True),
        trial(7, TrialState.RUNNING),
    ]
    slots = slots_of(trials)
    assert [[each.number for each in slot.chain] for slot in slots] == [[0, 2], [1], [5], [6], [7]]
    assert [slot.done for slot in slots] == [True, True, False, True, False]
    assert [slot.error for slot in slots][2:4] == ["its worker was lost 1 times", "ValueError: x"]
    assert unrepeated(trials) == [trials[5]]
    assert is_surplus(trials, 3, 10), "another repetition came first"
    assert [is_surplus(trials, 7, until) for until in (4, 5)] == [True, False]
    third = [trial(0, TrialState.FAIL, lost=True), *(trial(i, TrialState.FAIL, lost=True, retry_of=i - 1) for i in (1, 2))]
    (slot,) = slots_of(third)
    assert (slot.done, slot.error) == (True, "its worker was lost 3 times")
    assert isinstance(slot, Slot)
    assert unrepeated(third) == []
