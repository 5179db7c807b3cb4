"""Jobs in processes: errors are told and kept apart, Ctrl-C leaves none behind."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from spinup_plugins.errors import ConfigError
from spinup_plugins.runs import pool
from spinup_plugins.runs.pool import STOPPED, Ended, Job, end, run_jobs, serve, spawn

WORKER = """
import os, pathlib, sys, time
from spinup_plugins.runs.pool import serve
def work(argument):
    folder = pathlib.Path(argument["folder"])
    (folder / argument["name"]).write_text(os.environ["OMP_NUM_THREADS"])
    (folder / argument["name"]).with_suffix(".pid").write_text(str(os.getpid()))
    if argument["do"] == "fail":
        raise ValueError("first\\nno such thing")
    if argument["do"] == "die":
        os._exit(3)
    if argument["do"] == "kill":
        print("a warning", file=sys.stderr, flush=True)
        os.kill(os.getpid(), 9)
    if argument["do"] == "leave":
        raise SystemExit(0)
    if argument["do"] == "sleep":
        time.sleep(60)
    if argument["do"] == "save":
        try:
            time.sleep(60)
        finally:
            os.kill(os.getpid(), 15)
            os.kill(os.getpid(), 2)
            time.sleep(0.2)
            (folder / "saved").touch()
    while argument["do"] == "stay":
        try:
            time.sleep(60)
        except KeyboardInterrupt:
            pass
serve(work)
"""


@pytest.fixture
def jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    (tmp_path / "a_worker.py").write_text(WORKER)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def make(*kinds: str) -> list[Job]:
        return [
            Job(f"{kind} {i}", "a_worker", {"name": f"{i}.txt", "folder": str(tmp_path), "do": kind})
            for i, kind in enumerate(kinds)
        ]

    return make


def test_one_that_fails_leaves_the_others_alone(jobs: Any, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    ended = list(
        run_jobs(jobs("fail", "pass", "die", "kill", "leave"), 2, lambda active, done: seen.append((len(active), done)))
    )
    assert all(isinstance(each, Ended) and each.seconds > 0 for each in ended)
    errors = {each.job.name: each.error for each in ended}
    assert errors == {
        "fail 0": "ValueError: first no such thing",
        "pass 1": "",
        "die 2": "ended with status 3",
        "leave 4": "SystemExit: 0",
        "kill 3": "killed by signal 9",
    }
    assert [(tmp_path / f"{i}.txt").read_text() for i in range(4)] == ["1"] * 4, "one thread each"
    assert seen[0] == (2, 0)
    assert max(active for active, _ in seen) == 2


def interrupt() -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("stop", [interrupt, lambda: os.kill(os.getpid(), signal.SIGTERM)], ids=["Ctrl-C", "SIGTERM"])
def test_stopping_stops_the_jobs(stop: Any, jobs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Any] = []
    start = pool._start
    monkeypatch.setattr(pool, "_start", lambda job: started.append(start(job)) or started[-1])

    def watch(active: Any, done: int) -> None:
        if (tmp_path / "0.txt").exists():
            stop()

    def missed(*_: object) -> None:
        pytest.fail("nobody stopped the jobs")

    before = signal.signal(signal.SIGTERM, missed)
    try:
        with pytest.raises(KeyboardInterrupt):
            list(run_jobs(jobs("sleep"), watch=watch))
        assert signal.getsignal(signal.SIGTERM) is missed, "as it was"
    finally:
        signal.signal(signal.SIGTERM, before)
    assert started[0].process.poll() is not None


@pytest.mark.parametrize(("kind", "patience"), [("save", 60.0), ("stay", 0.2)])
def test_what_is_stopped_may_save_once(kind: str, patience: float, jobs: Any, tmp_path: Path) -> None:
    """Whatever signals come meanwhile; what does not end is killed."""
    (job,) = jobs(kind)
    process, errors = spawn(job.module, job.argument)
    deadline = time.monotonic() + 60
    while not (tmp_path / "0.pid").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)  # the parent's business
    end([process], patience)
    errors.close()
    assert process.returncode == (STOPPED if kind == "save" else -signal.SIGKILL)
    assert (tmp_path / "saved").exists() == (kind == "save")


BOSS = """
import json, sys
from spinup_plugins.runs.pool import Job, run_jobs
list(run_jobs([Job(*json.loads(sys.argv[1]))]))
"""


def test_a_job_ends_with_who_started_it(jobs: Any, tmp_path: Path) -> None:
    (job,) = jobs("sleep")
    boss = subprocess.Popen([sys.executable, "-c", BOSS, json.dumps(job)])
    deadline = time.monotonic() + 60
    while not (tmp_path / "0.pid").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    boss.kill()
    boss.wait()
    worker = int((tmp_path / "0.pid").read_text())
    while time.monotonic() < deadline:
        try:
            os.kill(worker, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    os.kill(worker, signal.SIGKILL)
    pytest.fail("the job outlived the process that nobody could have stopped it through")


def test_bad_numbers() -> None:
    with pytest.raises(ConfigError, match="jobs must be greater than 0, not 0"):
        run_jobs([], 0)


def test_a_worker_says_what_went_wrong_on_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def work(argument: Any) -> None:
        raise KeyError(argument)

    monkeypatch.setattr(sys, "argv", ["x", json.dumps(["a\nb"]), str(os.getppid())])
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    with pytest.raises(SystemExit) as stopped:
        serve(work)
    assert stopped.value.code == 1
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
