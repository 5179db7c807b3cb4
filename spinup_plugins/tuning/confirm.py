"""Confirmation: the best trials race on seeds that no trial has seen; the winner meets the default on seeds new to both.

All that race train with the first seeds; from then on, seed by seed, those that are clearly worse than the leader drop out
(a one-sided paired t-test, as in F-Race: Birattari et al. 2002). Chosen as the best of several, the winner is flattered by its
scores in the race; what is reported comes from other seeds, on which the default trains too. How it all stands is a function
of results alone: every worker works out what is wanted next.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.trial import TrialState, create_trial
from scipy import stats

from spinup_plugins.runs.statistics import Estimate, probability_of_improvement
from spinup_plugins.tuning.slots import ATTEMPTS, is_lost, slots_of
from spinup_plugins.tuning.study import Definition, confirmation_name

__all__ = ["DEFAULT", "Race", "Standing", "Verdict", "candidates", "race", "results", "standing", "verdict"]

DEFAULT = "default"
"""The candidate that is the definition's base, untouched."""
FIRST = 3
"""Seeds that everybody trains with before anybody drops out."""
WORSE = 0.05
"""Probability under which a candidate that were as good would do so badly beside the leader."""
ALIKE = 1e-9
"""Relative spread of differences up to which they are the same."""


class Race(NamedTuple):
    """How a race stands.

    :param wanted: candidates and seeds that are to be trained next
    :param racing: candidates still in it
    :param winner: the best one, once it is alone or all seeds are done
    """

    wanted: list[tuple[str, int]]
    racing: list[str]
    winner: str | None


class Standing(NamedTuple):
    """How a confirmation stands.

    :param wanted: candidates and seeds that are to be trained next; empty when all is done
    :param racing: candidates still in the race
    :param chosen: winner of the race, None while it is on or if nobody can race
    :param racing_done: whether the race is over
    """

    wanted: list[tuple[str, int]]
    racing: list[str]
    chosen: str | None
    racing_done: bool


class Verdict(NamedTuple):
    """The winner of the race beside the default on the same held-out seeds, which nobody raced on.

    :param winner: candidate, by its trial's place in the study, counted from 0; the default if it is not beaten
    :param better: whether it is: the 95 % interval of their paired difference lies above 0, and no training failed
    :param score: interquartile mean of the scores of the race's winner over seeds
    :param interval: its 95 % bootstrap interval
    :param default_score: likewise of the default
    :param default_interval: likewise
    :param difference: mean difference to the default
    :param difference_interval: its 95 % bootstrap interval
    :param improvement: probability that the winner with one seed beats the default with another
    :param best: winner of the race, whether or not it beats the default; None if no trial could race
    """

    winner: str
    better: bool
    score: float
    interval: tuple[float, float]
    default_score: float
    default_interval: tuple[float, float]
    difference: float
    difference_interval: tuple[float, float]
    improvement: float
    best: str | None


def candidates(study: optuna.Study, definition: Definition, until: int) -> dict[str, dict[str, Any]]:
    """Return the default and the best trials, the default first: values by environment by candidate.

    Of several objectives, the first one decides among the trials of the Pareto front. Trials that break a constraint are
    left out.

    :param study: the study
    :param definition: its definition
    :param until: how many of its trials count
    """
    slots = enumerate(slots_of(study.get_trials(deepcopy=False))[:until])
    done = [(place, slot.trial) for place, slot in slots if slot.trial.state == TrialState.COMPLETE]
    done = [each for each in done if all(value <= 0 for value in each[1].constraints.values())]
    if len(definition.objectives) > 1:
        front = {trial.number for trial in study.best_trials}
        done = [each for each in done if each[1].number in front]
    sign = -1 if study.directions[0] == optuna.study.StudyDirection.MAXIMIZE else 1
    found: dict[str, dict[str, Any]] = {DEFAULT: {env: {} for env in definition.envs}}
    for place, trial in sorted(done, key=lambda each: (sign * each[1].values[0], each[0])):
        if len(found) <= definition.top and trial.user_attrs["values"] not in found.values():
            found[str(place)] = trial.user_attrs["values"]
    return found


def race(scores: Mapping[tuple[str, int], float], names: Sequence[str], seeds: Sequence[int]) -> Race:
    """Work out how a race stands.

    :param scores: by candidate and seed; minus infinity for a training that failed
    :param names: candidates, at least one, the best first
    :param seeds: of the race, in order
    """
    racing = list(names)
    for n in range(min(FIRST, len(seeds)), len(seeds) + 1):
        if len(racing) == 1:
            break
        wanted = [(name, seed) for seed in seeds[:n] for name in racing if (name, seed) not in scores]
        if wanted:
            return Race(wanted, racing, None)
        table = {name: np.array([scores[name, seed] for seed in seeds[:n]]) for name in racing}
        # Of those that are equal, the first one: it did best in the search.
        leader = max(racing, key=lambda name: _mean(table[name]))
        if n == len(seeds):
            return Race([], racing, leader)
        racing = [name for name in racing if name == leader or not _clearly_worse(table[name], table[leader])]
    return Race([], racing, racing[0])


def standing(
    scores: Mapping[tuple[str, int], float], names: Sequence[str], race_on: Sequence[int], held_out: Sequence[int]
) -> Standing:
    """Work out how a confirmation stands: first the race, then its winner beside the default.

    :param scores: by candidate and seed; minus infinity for a training that failed
    :param names: candidates, :data:`DEFAULT` among them, the best first
    :param race_on: seeds of the race
    :param held_out: seeds of the comparison, none of which is in ``race_on``
    """
    others = [name for name in names if name != DEFAULT]
    result = race(scores, others, race_on) if others else Race([], [], None)
    if result.wanted:
        return Standing(result.wanted, result.racing, None, False)
    finalists = [DEFAULT, *([] if result.winner is None else [result.winner])]
    wanted = [(name, seed) for seed in held_out for name in finalists if (name, seed) not in scores]
    return Standing(wanted, result.racing, result.winner, True)


def _mean(values: NDArray[np.float64]) -> float:
    return float(np.mean(values))


def _clearly_worse(values: NDArray[np.float64], leader: NDArray[np.float64]) -> bool:
    if not np.isfinite(values).all():
        return True
    difference = leader - values
    if np.ptp(difference) <= ALIKE * np.abs(difference).max():  # no variance for a test to look at
        return bool(difference[0] > 0)
    return len(values) >= 2 and bool(stats.ttest_1samp(difference, 0.0, alternative="greater").pvalue < WORSE)


def verdict(
    scores: Mapping[tuple[str, int], float], names: Sequence[str], race_on: Sequence[int], held_out: Sequence[int]
) -> Verdict | None:
    """Compare the winner of the race with the default; None before all is trained.

    :param scores: see :func:`standing`
    :param names: see :func:`standing`
    :param race_on: see :func:`standing`
    :param held_out: see :func:`standing`
    """
    now = standing(scores, names, race_on, held_out)
    if now.wanted:
        return None
    best = now.chosen
    default = np.array([scores[DEFAULT, seed] for seed in held_out])
    chosen = default if best is None else np.array([scores[best, seed] for seed in held_out])
    # A training that failed is worth no more than the worst one that did not.
    finite = np.concatenate([each[np.isfinite(each)] for each in (default, chosen)])
    floor = float(finite.min()) if len(finite) else 0.0
    filled = [np.where(np.isfinite(each), each, floor) for each in (chosen, default)]
    ours, theirs, gain = Estimate.of(filled[0]), Estimate.of(filled[1]), Estimate.of(filled[0] - filled[1], np.mean)
    assert ours.interval is not None, "a confirmation has two seeds at least"
    assert theirs.interval is not None, "likewise"
    assert gain.interval is not None, "likewise"
    better = best is not None and bool(np.isfinite(chosen).all()) and gain.interval[0] > 0
    return Verdict(
        winner=best if better and best is not None else DEFAULT,
        better=better,
        score=ours.value,
        interval=ours.interval,
        default_score=theirs.value,
        default_interval=theirs.interval,
        difference=gain.value,
        difference_interval=gain.interval,
        improvement=float(probability_of_improvement(chosen, default)),
        best=best,
    )


# --- in the storage ---------------------------------------------------------------------------------------------------


def open_confirmation(study: optuna.Study) -> optuna.Study:
    """Return the study that holds the confirmation of a study; each of its trials is a candidate with a seed."""
    return optuna.create_study(
        storage=study._storage, study_name=confirmation_name(study.study_name), direction="maximize", load_if_exists=True
    )


def results(held: optuna.Study) -> dict[tuple[str, int], float]:
    """Return scores by candidate and seed; minus infinity for what failed, or was lost too often.

    :param held: see :func:`open_confirmation`
    """
    found: dict[tuple[str, int], float] = {}
    lost: dict[tuple[str, int], int] = {}
    for trial in held.get_trials(deepcopy=False):
        pair = _pair(trial)
        if pair in found or "void" in trial.user_attrs:
            continue
        if trial.state == TrialState.COMPLETE:
            found[pair] = float(trial.value if trial.value is not None else -np.inf)
        elif is_lost(trial):
            lost[pair] = lost.get(pair, 0) + 1
            if lost[pair] >= ATTEMPTS:
                found[pair] = -np.inf
        elif trial.state == TrialState.FAIL:
            found[pair] = -np.inf
    return found


def claimed(held: optuna.Study) -> set[tuple[str, int]]:
    """Return candidates and seeds that somebody trains."""
    running = (trial for trial in held.get_trials(deepcopy=False) if trial.state == TrialState.RUNNING)
    return {_pair(trial) for trial in running if "void" not in trial.user_attrs}


def claim(held: optuna.Study, candidate: str, seed: int, worker: dict[str, Any]) -> int | None:
    """Begin to train a candidate with a seed; None if somebody else was quicker.

    :param held: see :func:`open_confirmation`
    :param candidate: which
    :param seed: of the race, or a held-out one
    :param worker: who does it
    :return: the trial's id in the storage
    """
    attributes = {"candidate": candidate, "seed": seed, "worker": worker}
    template = create_trial(state=TrialState.RUNNING, user_attrs=attributes)
    trial_id = held._storage.create_new_trial(held._study_id, template_trial=template)
    for trial in held.get_trials(deepcopy=False):
        counts = _pair(trial) == (candidate, seed) and "void" not in trial.user_attrs and not is_lost(trial)
        if counts and trial._trial_id != trial_id:
            held._storage.set_trial_user_attr(trial_id, "void", True)
            held._storage.set_trial_state_values(trial_id, TrialState.FAIL)
            return None
        if trial._trial_id == trial_id:
            return trial_id
    return None


def _pair(trial: optuna.trial.FrozenTrial) -> tuple[str, int]:
    return trial.user_attrs["candidate"], trial.user_attrs["seed"]
