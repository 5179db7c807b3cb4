"""Whose turn it is: a study has so many slots, and a trial that is lost with its worker is repeated in its slot.

A slot begins with a trial that repeats none; ``retry_of`` links repetitions to it. Trials are numbered by the storage, so
all workers see the same slots. What two of them claim at once belongs to the lower number; the other trial is void, which
takes up no slot.
"""

from collections.abc import Sequence
from typing import NamedTuple

from optuna.trial import FrozenTrial, TrialState

__all__ = ["ATTEMPTS", "Slot", "is_lost", "is_surplus", "slots_of", "unrepeated"]

ATTEMPTS = 3
"""How often a trial is begun before its slot counts as failed."""


class Slot(NamedTuple):
    """A trial and its repetitions.

    :param chain: trials in order of their numbers, at least one; all but the last were lost
    """

    chain: tuple[FrozenTrial, ...]

    @property
    def trial(self) -> FrozenTrial:
        """The last one, which counts."""
        return self.chain[-1]

    @property
    def done(self) -> bool:
        """Whether it has ended, and will not be repeated."""
        return self.trial.state.is_finished() and (not is_lost(self.trial) or len(self.chain) >= ATTEMPTS)

    @property
    def error(self) -> str:
        """Why it failed, on one line, or ""."""
        if self.trial.state != TrialState.FAIL:
            return ""
        lost = f"its worker was lost {len(self.chain)} times"
        return str(self.trial.user_attrs.get("error", lost if is_lost(self.trial) else "failed"))


def slots_of(trials: Sequence[FrozenTrial]) -> list[Slot]:
    """Sort trials into slots.

    :param trials: all of a study, in order of their numbers
    """
    repetitions: dict[int, FrozenTrial] = {}
    for trial in trials:
        if "retry_of" in trial.user_attrs:
            repetitions.setdefault(trial.user_attrs["retry_of"], trial)
    found = []
    for trial in trials:
        if "retry_of" in trial.user_attrs or "void" in trial.user_attrs:
            continue
        chain = [trial]
        while chain[-1].number in repetitions:
            chain.append(repetitions[chain[-1].number])
        found.append(Slot(tuple(chain)))
    return found


def is_lost(trial: FrozenTrial) -> bool:
    """Whether a trial ended with its worker."""
    return trial.state == TrialState.FAIL and "lost" in trial.user_attrs and "error" not in trial.user_attrs


def unrepeated(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Return lost trials that are to be repeated, and of which no repetition is queued yet."""
    return [slot.trial for slot in slots_of(trials) if is_lost(slot.trial) and len(slot.chain) < ATTEMPTS]


def is_surplus(trials: Sequence[FrozenTrial], number: int, until: int) -> bool:
    """Whether a trial that was just begun is one too many.

    :param trials: all of a study, in order of their numbers
    :param number: which
    :param until: how many slots there are
    """
    for place, slot in enumerate(slots_of(trials)):
        if any(each.number == number for each in slot.chain):
            return place >= until
    return True  # another repetition of the same trial came first
