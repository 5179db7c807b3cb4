"""Workers: processes, on one machine or many, that take trials from a study until it is done, and outlive each other.

A worker keeps a trial of its own alive by counting ``beat`` up, so that no clocks are compared. A trial whose worker is gone
(its process is not there any more, on this machine; its beat stands still, on another) is marked lost and queued once more by
whichever worker finds it. What a storage cannot take (a full disk, a lost connection) ends a worker and no trial.
"""

import contextlib
import errno
import os
import socket
import subprocess
import sys
import threading
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.trial import FrozenTrial, TrialState

from spinup_plugins.errors import SpinupError
from spinup_plugins.runs.files import one_line
from spinup_plugins.runs.pool import STOPPED, end, interruptible, serve, spawn
from spinup_plugins.tuning import confirm
from spinup_plugins.tuning.objective import Curve, configured, measure, normalised, score, train_once
from spinup_plugins.tuning.slots import is_surplus, slots_of, unrepeated
from spinup_plugins.tuning.study import Definition, definition_of, open_storage, open_study

__all__ = ["Orders", "StudyError", "run_workers", "work"]

SAME_ERRORS = 3
"""So many trials that fail alike before any succeeds stop the study."""


class StudyError(SpinupError, RuntimeError):
    """A study cannot go on."""


class Orders(NamedTuple):
    """What a worker is to do.

    :param storage: see :func:`.study.open_storage`
    :param name: of the study
    :param until: trials of the study, counted over all workers
    :param beat: seconds between signs of life
    :param grace: seconds without one after which a worker on another machine counts as lost
    :param threads: threads to compute with
    """

    storage: str
    name: str
    until: int
    beat: float = 15.0
    grace: float = 120.0
    threads: int = 1


class _Pruned(Exception):  # noqa: N818  # no error
    """The pruner has seen enough."""


class _Taken(Exception):  # noqa: N818  # not its own
    """Others have taken this trial for lost."""


class _StorageFault(Exception):  # noqa: N818  # wraps one
    """What the storage raised stands in ``__cause__``."""


# --- one worker -------------------------------------------------------------------------------------------------------


def work(orders: Orders) -> None:
    """Take trials until the study is done, then confirm; returns once nothing is left to do for anybody.

    :param orders: what to do
    :raises StudyError: the first trials fail alike, or the storage does not take results
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = open_study(open_storage(orders.storage), orders.name)
    definition = definition_of(study)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        try:
            watch = _Undertaker(orders.grace)
            while _search_once(study, definition, orders, watch):
                pass
            if definition.confirm_seeds:
                held = confirm.open_confirmation(study)
                watch = _Undertaker(orders.grace)
                while _confirm_once(study, held, definition, orders, watch):
                    pass
        except _StorageFault as fault:
            raise StudyError(f"the storage does not take results: {one_line(fault.__cause__ or fault)[:300]}") from fault


def _search_once(study: optuna.Study, definition: Definition, orders: Orders, watch: "_Undertaker") -> bool:
    """Take one trial, or wait for the others a moment; False when all are done."""
    with _storing():
        watch.bury(study)
        slots = slots_of(study.get_trials(deepcopy=False))[: orders.until]
        _stop_if_all_fail_alike(
            [slot.error for slot in slots if slot.done], sum(not slot.error for slot in slots if slot.done)
        )
        if len(slots) >= orders.until:
            if all(slot.done for slot in slots):
                return False
            if not any(slot.trial.state == TrialState.WAITING for slot in slots):
                time.sleep(0.5)
                return True
        trial = study.ask()
        trial.set_user_attr("worker", worker_id())
        if is_surplus(study.get_trials(deepcopy=False), trial.number, orders.until):
            trial.set_user_attr("void", True)
            study.tell(trial, state=TrialState.FAIL)
            return True
    with contextlib.suppress(_Taken), _alive(study, trial._trial_id, orders) as taken:
        _carry_out(study, trial, definition, orders, taken)
    return True


def _carry_out(
    study: optuna.Study, trial: optuna.Trial, definition: Definition, orders: Orders, taken: threading.Event
) -> None:
    try:
        outcome = _objective(trial, definition, orders, taken)
    except _Taken:
        raise
    except _Pruned:
        with _storing():
            study.tell(trial, state=TrialState.PRUNED, skip_if_finished=True)
    except _StorageFault:
        _give_back(study, trial._trial_id)
        raise
    except Exception as error:
        if _is_full(error):
            _give_back(study, trial._trial_id)
            raise _StorageFault from error
        with _storing():
            trial.set_user_attr("error", one_line(error))
            trial.set_user_attr("traceback", traceback.format_exc())
            study.tell(trial, state=TrialState.FAIL, skip_if_finished=True)
    except BaseException:  # SIGTERM, Ctrl-C
        _give_back(study, trial._trial_id)
        raise
    else:
        with _storing():
            study.tell(trial, outcome, skip_if_finished=True)


def _objective(trial: optuna.Trial, definition: Definition, orders: Orders, taken: threading.Event) -> list[float]:
    """Train all runs of a trial; report after each evaluation."""
    with _storing():
        values = trial.user_attrs.get("values")
        for_space = definition.space_of()
        if values is None:
            values = {env: for_space.suggest(trial, definition.given(env)) for env in definition.envs}
            trial.set_user_attr("values", values)
        else:
            for_space.suggest(trial, definition.given(definition.envs[0]))  # records what the sampler is to see
    runs: list[dict[str, Any]] = []
    before = 0
    for seed in definition.seeds:
        for env in definition.envs:
            base = definition.bases[env]
            # The evaluation after training is for the confirmation.
            own = {"seed": seed, "threads": orders.threads, "final_episodes": base["eval_episodes"]}
            config = configured(base, values[env], **own)

            def watch(step: int, returns: list[list[float]], env: str = env, before: int = before) -> None:
                if taken.is_set():
                    raise _Taken
                now = normalised(score(returns, definition.score, definition.last), definition.references.get(env))
                if len(definition.objectives) > 1:
                    return
                if definition.pruner == "wilcoxon":
                    now = normalised(float(np.mean(returns[-1])), definition.references.get(env))
                else:
                    now = float(np.mean([*(run["score"] for run in runs), now]))
                with _storing():
                    trial.report(_signed(now, definition), before + step)
                    prune = definition.pruner != "none" and trial.should_prune()
                if prune:
                    raise _Pruned

            curve = train_once(config, watch)
            runs.append({"env": env, "seed": seed, **summary(curve, definition, env)})
            before += config.n_timesteps
            with _storing():
                trial.set_user_attr("runs", runs)
    by_seed = np.array([run["score"] for run in runs]).reshape(definition.seeds_per_trial, -1).tolist()
    metrics = measure(by_seed, [run["seconds"] for run in runs])._asdict()
    with _storing():
        trial.set_user_attr("metrics", metrics)
        for text in definition.constraints:
            metric, comparison, bound = definition.bound(text)
            trial.set_constraint(text, metrics[metric] - bound if comparison == "<=" else bound - metrics[metric])
    return [metrics[each] for each in definition.objectives]


def _signed(value: float, definition: Definition) -> float:
    """What a pruner compares: the score, whichever way the only objective points."""
    return value if definition.objectives[0] in ("score", "worst") else -value


def summary(curve: Curve, definition: Definition, env: str) -> dict[str, Any]:
    """Return what is kept of a run: its score, normalised, and its curve, as plain data."""
    raw = score(curve.returns, definition.score, definition.last)
    return {
        "score": normalised(raw, definition.references.get(env)),
        "seconds": round(curve.seconds, 3),
        "timesteps": list(curve.timesteps),
        "returns": [float(f"{value:.6g}") for value in curve.means],
        "final": float(np.mean(curve.final)),
    }


def _confirm_once(
    study: optuna.Study, held: optuna.Study, definition: Definition, orders: Orders, watch: "_Undertaker"
) -> bool:
    """Train one candidate with one seed, or wait for the others a moment; False when nothing is left to train."""
    with _storing():
        watch.bury(held, repeat=False)
        candidates = confirm.candidates(study, definition, orders.until)
        now = confirm.standing(confirm.results(held), list(candidates), definition.race_on, definition.held_out)
        if not now.wanted:
            return False
        wanted = [pair for pair in now.wanted if pair not in confirm.claimed(held)]
        if not wanted:
            time.sleep(0.5)
            return True
        trial_id = confirm.claim(held, *wanted[0], worker_id())
        if trial_id is None:
            return True
    candidate, seed = wanted[0]
    with contextlib.suppress(_Taken), _alive(held, trial_id, orders) as taken:
        storage = held._storage

        def watch_run(step: int, returns: list[list[float]]) -> None:
            if taken.is_set():
                raise _Taken

        try:
            runs = []
            for env in definition.envs:
                config = configured(definition.bases[env], candidates[candidate][env], seed=seed, threads=orders.threads)
                runs.append({"env": env, "seed": seed, **summary(train_once(config, watch_run), definition, env)})
        except _Taken:
            raise
        except Exception as error:
            if _is_full(error):
                _give_back(held, trial_id, repeat=False)
                raise _StorageFault from error
            with _storing():
                storage.set_trial_user_attr(trial_id, "error", one_line(error))
                storage.set_trial_user_attr(trial_id, "traceback", traceback.format_exc())
                storage.set_trial_state_values(trial_id, TrialState.FAIL)
        except BaseException:
            _give_back(held, trial_id, repeat=False)
            raise
        else:
            with _storing():
                storage.set_trial_user_attr(trial_id, "runs", runs)
                storage.set_trial_state_values(trial_id, TrialState.COMPLETE, [float(np.mean([r["score"] for r in runs]))])
    return True


def _stop_if_all_fail_alike(errors: Sequence[str], succeeded: int) -> None:
    alike = Counter(_signature(error) for error in errors if error)
    if succeeded == 0 and alike:
        signature, n = alike.most_common(1)[0]
        if n >= SAME_ERRORS:
            example = next(error for error in errors if _signature(error) == signature)
            raise StudyError(f"the first {n} trials failed alike: {example}")


def _signature(error: str) -> str:
    """An error without the numbers in it, which differ from trial to trial."""
    return "".join(" " if each.isdigit() else each for each in error).replace(" ", "").replace(".", "").replace("-", "")


def _is_full(error: BaseException) -> bool:
    at: BaseException | None = error
    while at is not None:
        if isinstance(at, OSError) and at.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        at = at.__cause__ or at.__context__
    return False


@contextmanager
def _storing() -> Iterator[None]:
    """Tell what the storage raises from what a trial does."""
    try:
        yield
    except (_Pruned, _Taken, SpinupError):
        raise
    except optuna.exceptions.UpdateFinishedTrialError as error:
        raise _Taken from error
    except Exception as error:
        raise _StorageFault from error


# --- signs of life ----------------------------------------------------------------------------------------------------


def worker_id() -> dict[str, Any]:
    """Return who this process is: its machine (with its boot and its name space of processes), its number, its start."""
    return {"machine": _machine(), "pid": os.getpid(), "born": _born(os.getpid()), "host": socket.gethostname()}


@cache
def _machine() -> str:
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
    with contextlib.suppress(OSError):
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)


def _born(pid: int) -> str:
    """When a process was started, in the kernel's units, so that a number used again is told apart; "" if unknown."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in ("Z", "X") else fields[19]


def _is_gone(worker: Any) -> bool:
    """Whether a worker was of this machine and is not there any more."""
    if not isinstance(worker, dict) or worker.get("machine") != _machine():
        return False
    if os.path.isdir("/proc/self"):
        return bool(_born(worker["pid"]) != worker["born"])
    try:
        os.kill(worker["pid"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


class _Undertaker:
    """Finds trials whose worker is gone.

    :param grace: seconds that a beat may stand still, by this process's own clock
    """

    def __init__(self, grace: float) -> None:
        self.grace = grace
        self.seen: dict[int, tuple[Any, float]] = {}

    def bury(self, study: optuna.Study, *, repeat: bool = True) -> None:
        """Mark such trials lost, and queue them once more.

        :param repeat: whether to queue them
        """
        trials = study.get_trials(deepcopy=False)
        for trial in trials:
            if trial.state == TrialState.RUNNING and self._is_dead(trial):
                lose(study, trial._trial_id)
                trials = study.get_trials(deepcopy=False)
        if repeat:
            for trial in unrepeated(trials):
                requeue(study, trial)

    def _is_dead(self, trial: FrozenTrial) -> bool:
        worker = trial.user_attrs.get("worker")
        if _is_gone(worker):
            return True
        if worker == worker_id():
            return False
        beat, now = trial.user_attrs.get("beat"), time.monotonic()
        before, since = self.seen.setdefault(trial.number, (beat, now))
        if before != beat:
            self.seen[trial.number] = (beat, now)
            return False
        return now - since > self.grace


def lose(study: optuna.Study, trial_id: int) -> None:
    """Mark a running trial lost, unless it ended meanwhile."""
    with contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError):
        study._storage.set_trial_user_attr(trial_id, "lost", True)
        study._storage.set_trial_state_values(trial_id, TrialState.FAIL)


def requeue(study: optuna.Study, trial: FrozenTrial) -> None:
    """Queue a lost trial once more, with its parameters."""
    kept: dict[str, Any] = {key: trial.user_attrs[key] for key in ("start", "values") if key in trial.user_attrs}
    fixed = {**trial.system_attrs.get("fixed_params", {}), **trial.params}
    study.enqueue_trial(fixed, user_attrs={**kept, "retry_of": trial.number})


def _give_back(study: optuna.Study, trial_id: int, *, repeat: bool = True) -> None:
    """Let others have a trial that this worker cannot finish, if the storage still takes that."""
    with contextlib.suppress(Exception):
        lose(study, trial_id)
        if repeat:
            for trial in unrepeated(study.get_trials(deepcopy=False)):
                if trial._trial_id == trial_id:
                    requeue(study, trial)


@contextmanager
def _alive(study: optuna.Study, trial_id: int, orders: Orders) -> Iterator[threading.Event]:
    """Give signs of life inside the block; the event is set once others have taken the trial for lost."""
    done, taken = threading.Event(), threading.Event()

    def beat() -> None:
        count = 0
        while not done.wait(orders.beat):
            count += 1
            try:
                study._storage.set_trial_user_attr(trial_id, "beat", count)
            except optuna.exceptions.UpdateFinishedTrialError:
                taken.set()
                return
            except Exception:  # the trial's own reports will tell
                continue

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield taken
    finally:
        done.set()
        thread.join()


# --- many workers -----------------------------------------------------------------------------------------------------


class _Active(NamedTuple):
    process: "subprocess.Popen[bytes]"
    errors: IO[bytes]


def run_workers(
    orders: Orders, n: int, watch: Callable[[Sequence[int]], None] = lambda processes: None, *, patience: float = 60.0
) -> None:
    """Start workers on this machine and see to it that so many are there until the study is done.

    Whatever stops this, such as Ctrl-C or SIGTERM, stops them: they give their trials back. One that is killed is replaced.

    :param orders: what they do
    :param n: how many
    :param watch: is told some ten times a second the numbers of their processes
    :param patience: seconds that stopped workers have to give their trials back
    :raises StudyError: one of them could not go on
    """
    active: list[_Active] = []
    spare = 3 * n
    with interruptible():
        try:
            active += [_start(orders) for _ in range(n)]
            while active:
                watch([each.process.pid for each in active])
                for each in [each for each in active if each.process.poll() is not None]:
                    active.remove(each)
                    error = _error(each)
                    status = each.process.returncode
                    if status > 0 and status != STOPPED:
                        raise StudyError(error)
                    if status != 0:
                        if not spare:
                            raise StudyError(f"workers keep being killed, the last one ended with status {status}")
                        spare -= 1
                        active.append(_start(orders))
                time.sleep(0.1)
        finally:
            end([each.process for each in active], patience)
            for each in active:
                each.errors.close()


def _start(orders: Orders) -> _Active:
    return _Active(*spawn("spinup_plugins.tuning.workers", orders._asdict(), orders.threads))


def _error(active: _Active) -> str:
    active.errors.seek(0)
    lines = active.errors.read().decode(errors="replace").strip().splitlines()
    active.errors.close()
    return lines[-1] if lines else f"a worker ended with status {active.process.returncode}"


def _serve(argument: Any) -> None:
    """Be a worker that a parent has started."""
    orders = Orders(**argument)
    if "" not in sys.path:
        sys.path.insert(0, "")
    import torch

    torch.set_num_threads(orders.threads)
    warnings.simplefilter("ignore")  # to a file that nobody reads
    work(orders)


if __name__ == "__main__":
    serve(_serve)
