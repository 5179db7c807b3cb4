"""Jobs in processes of their own, with one thread each and so many at a time: one that fails leaves the others alone."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import IO, Any, NamedTuple

from spinup_plugins.errors import ConfigError
from spinup_plugins.runs.files import one_line

__all__ = ["PATIENCE", "STOPPED", "THREADS", "Ended", "Job", "end", "interruptible", "run_jobs", "serve", "spawn"]

THREADS = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
"""What keeps the libraries of a process to one thread, if it is in the environment when they are loaded."""
PATIENCE = 10.0
"""Seconds that a process may take to save what it has, once it is asked to end."""
STOPPED = 128 + signal.SIGTERM
"""Exit status of a process that did so, as shells have it."""


class Job(NamedTuple):
    """Something for a process to do.

    :param name: what it is called
    :param module: run as a program, which calls :func:`serve`
    :param argument: what it is given, as plain data
    """

    name: str
    module: str
    argument: Any


class Ended(NamedTuple):
    """How a job ended.

    :param job: which
    :param seconds: wall time that it took
    :param error: what went wrong, on one line, or ""
    """

    job: Job
    seconds: float
    error: str = ""


class _Active(NamedTuple):
    job: Job
    process: "subprocess.Popen[bytes]"
    errors: IO[bytes]
    began: float


def run_jobs(
    jobs: Sequence[Job], at_a_time: int = 1, watch: Callable[[Sequence[Job], int], None] = lambda active, ended: None
) -> Iterator[Ended]:
    """Do all jobs; whatever stops the iteration, such as Ctrl-C or SIGTERM, stops them, too.

    :param jobs: which, in this order
    :param at_a_time: how many side by side
    :param watch: is told some twenty times a second which are being done, and how many have ended
    :return: as they end
    :raises ConfigError: ``at_a_time`` is not positive
    """
    if at_a_time < 1:
        raise ConfigError(f"jobs must be greater than 0, not {at_a_time}")
    return _run(list(jobs), at_a_time, watch)


def _run(waiting: list[Job], at_a_time: int, watch: Callable[[Sequence[Job], int], None]) -> Iterator[Ended]:
    active, done = list[_Active](), 0
    with interruptible():
        try:
            while waiting or active:
                while waiting and len(active) < at_a_time:
                    active.append(_start(waiting.pop(0)))
                watch([each.job for each in active], done)
                ended = [each for each in active if each.process.poll() is not None]
                for each in ended:
                    active.remove(each)
                    done += 1
                    yield _end(each)
                if not ended:
                    time.sleep(0.05)
        finally:
            end([each.process for each in active])
            for each in active:
                each.errors.close()


def end(processes: "Sequence[subprocess.Popen[bytes]]", patience: float = PATIENCE) -> None:
    """Ask processes to end, and kill those that do not; another Ctrl-C kills them at once.

    :param processes: which; those that ended already are left alone
    :param patience: seconds that all of them have
    """
    for each in processes:
        each.terminate()
    deadline = time.monotonic() + patience
    try:
        for each in processes:
            with suppress(subprocess.TimeoutExpired):
                each.wait(max(deadline - time.monotonic(), 0.1))
    finally:
        for each in processes:
            each.kill()
            each.wait()


@contextmanager
def interruptible() -> Iterator[None]:
    """Let SIGTERM stop the block as Ctrl-C does, so that it can stop the processes that it started; else they would go on."""
    in_main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, signal.default_int_handler) if in_main else None
    try:
        yield
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)


def spawn(module: str, argument: Any, threads: int = 1) -> "tuple[subprocess.Popen[bytes], IO[bytes]]":
    """Start a process for :func:`serve`.

    :param module: run as a program, which calls :func:`serve`
    :param argument: what it is given, as plain data
    :param threads: what its libraries may compute with
    :return: the process, and a file with what it complains of, for the caller to close
    """
    errors = tempfile.TemporaryFile()  # noqa: SIM115  # a pipe would have to be emptied
    process = subprocess.Popen(
        [sys.executable, "-m", module, json.dumps(argument), str(os.getpid())],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=errors,
        env={**os.environ, **dict.fromkeys(THREADS, str(threads))},
    )
    return process, errors


def _start(job: Job) -> _Active:
    return _Active(job, *spawn(job.module, job.argument), time.perf_counter())


def _end(active: _Active) -> Ended:
    active.errors.seek(0)
    lines = active.errors.read().decode(errors="replace").strip().splitlines()
    active.errors.close()
    seconds, status = time.perf_counter() - active.began, active.process.returncode
    if status < 0:  # what it wrote before, a warning perhaps, is not why
        error = f"killed by signal {-status}"
    else:
        error = (lines[-1] if lines else f"ended with status {status}") if status else ""
    return Ended(active.job, seconds, error)


def serve(work: Callable[[Any], object]) -> None:
    """Do the job that this process was started for, as long as the process lives that started it.

    Ctrl-C reaches the one that started it, too, and is left to it; it asks with SIGTERM, which then stops ``work`` as Ctrl-C
    would, once.

    :param work: is called with the job's argument; what it raises becomes the job's error
    """
    argument, parent = sys.argv[1:]
    threading.Thread(target=_end_with, args=(int(parent),), daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        work(json.loads(argument))
    except KeyboardInterrupt:
        raise SystemExit(STOPPED) from None
    except (Exception, SystemExit) as error:  # an environment may leave, and with status 0
        print(one_line(error), file=sys.stderr)
        raise SystemExit(1) from None


def _interrupt(*_: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # what is saved now is saved whole
    raise KeyboardInterrupt


def _end_with(parent: int) -> None:
    """End this process once ``parent`` is gone, which a signal may have kept from ending it; Windows never tells."""
    while os.getppid() == parent:
        time.sleep(1)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(PATIENCE)
    os._exit(STOPPED)  # it computes or waits in code that is not Python's, where no signal is heard
