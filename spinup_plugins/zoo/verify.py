"""Whether published agents are whole and still do what their cards say."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from spinup_plugins.errors import ConfigError, SpinupError
from spinup_plugins.runs.agent import load_agent, published
from spinup_plugins.runs.evaluation import COPIES, derived_seed, evaluate
from spinup_plugins.runs.statistics import Summary, summarise
from spinup_plugins.zoo.catalog import Entry
from spinup_plugins.zoo.publish import CARD

__all__ = ["SIGNIFICANCE", "Verdict", "verify"]

SIGNIFICANCE = 0.01
"""Probability that any of all agents is found to differ though none does."""


class Verdict(NamedTuple):
    """What an agent's examination came to.

    :param entry: whose agent
    :param published: what its file says of the episodes after its training; None where it could not be read
    :param again: what it came to now, on other initial states; None likewise
    :param p_value: of the hypothesis that both are returns of one policy (Mann and Whitney's test, two-sided)
    :param fault: why it is no agent to publish, on one line, or ""
    """

    entry: Entry
    published: Summary | None
    again: Summary | None
    p_value: float
    fault: str


def verify(entries: Iterable[Entry], *, episodes: int = 100, seed: int = 0) -> Iterator[Verdict]:
    """Load each published agent, check its hash, also against its card, play it anew, and compare with what its file says.

    The level of each comparison is :data:`SIGNIFICANCE` divided by their number (Bonferroni).

    :param entries: which; those without an agent are at fault
    :param episodes: to play with each
    :param seed: of their initial states, which are others than those of the published episodes
    """
    examined = list(entries)
    for entry in examined:
        yield _verdict(entry, episodes, seed, SIGNIFICANCE / len(examined))


def _verdict(entry: Entry, episodes: int, seed: int, level: float) -> Verdict:
    try:
        agent = load_agent(entry.algo, entry.env)
        was = _returns(agent.card.scores)
        _check_page(entry, agent.hash)
        env = agent.env(n_envs=COPIES, images=False)
        try:
            played = evaluate(agent, env, episodes, seed=derived_seed(seed, "selection")).returns
        finally:
            env.close()
    except SpinupError as error:
        return Verdict(entry, None, None, np.nan, str(error))
    # The test has no p-value where all returns are one number.
    p_value = 1.0 if len({*was, *played}) == 1 else float(stats.mannwhitneyu(was, played).pvalue)
    fault = "" if p_value >= level else f"plays otherwise than published: p = {p_value:.2g}, below {level:.2g}"
    return Verdict(entry, summarise(was), summarise(played), p_value, fault)


def _check_page(entry: Entry, checksum: str) -> None:
    """A whole file of another agent has a hash that fits, but not the one that is published."""
    page = published(entry.algo, entry.env).with_name(CARD)
    if not page.is_file() or checksum not in page.read_text(encoding="utf-8"):
        raise ConfigError(f"its hash {checksum[:12]}… is not the one in '{page}'")


def _returns(scores: Mapping[str, Any]) -> list[float]:
    try:
        return [float(value) for value in scores["returns"]]
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError("its file does not tell the returns of its episodes") from error
