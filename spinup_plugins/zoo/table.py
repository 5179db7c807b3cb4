"""The zoo's front page: what every entry reaches over seeds, beside its goal and what others published."""

import csv
import os
from collections.abc import Sequence
from pathlib import Path

import gymnasium as gym

from spinup_plugins.atomic import write_text
from spinup_plugins.paths import data_dir
from spinup_plugins.runs import references
from spinup_plugins.runs.agent import published
from spinup_plugins.runs.references import Reference
from spinup_plugins.runs.report import report
from spinup_plugins.runs.results import final_summary
from spinup_plugins.zoo.catalog import ALGORITHMS, Entry, checkout, entries

__all__ = ["GOALS", "goal", "write_table"]

GOALS = "goals.csv"
"""Returns that are aimed at, where it is not the environment's own threshold."""

_HEADER = """# zoo

Tuned values by environment, what they reach over seeds, and agents trained with them. `spinup zoo table` writes this page
from `results/`; [report/](report/README.md) has curves, intervals and comparisons ([one page](report/index.html) to download).

* `hyperparams/<algorithm>.yml`: values by environment and where they come from; `preset="zoo"` and `--preset zoo` take them.
* `results/<algorithm>/<environment>/`: for each seed, evaluations while training (`curve.csv`) and 100 episodes after it
  (`final.csv`).
* `agents/<algorithm>/<environment>/`: the agent of the seed in the middle, its card, configuration and episodes;
  `load_agent(algorithm, environment)` loads it.
* `references.csv`, `goals.csv`: published returns with their sources; returns that are aimed at.
* `results/parity`, `results/speed`: learning and speed beside Stable-Baselines3's.

`spinup zoo train ALGORITHM ENVIRONMENT --seeds 3` makes a row again; `spinup zoo verify` plays the agents again.

Returns are interquartile means over seeds (of fewer than four: means), each seed's being the mean of 100 episodes after
training with deterministic actions, and in brackets their 95 % bootstrap interval. *Goal* is the environment's own
threshold of being solved, or what `goals.csv` says; rows below it are marked ✗. *Spinning Up* is its published curve at
as many steps. *Best published* is the best mean of the same algorithm over three seeds or more at no more steps; where
there is none, that at the fewest steps, which are named; and where that is none, of fewer seeds or a number that is not
told, ‡. † marks another version of the environment which pays about the same, and numbers of versions that do not are
in parentheses. § marks an environment that is made with arguments of its own, as the entry and the card say.
"""


def goal(entry: Entry) -> float | None:
    """Return what an entry is to reach; None where nothing says.

    :param entry: the algorithm and environment
    """
    with (data_dir("zoo") / GOALS).open(newline="", encoding="utf-8") as file:
        found = [float(row["return"]) for row in csv.DictReader(file) if (row["algo"], row["env"]) == entry]
    return found[0] if found else gym.spec(entry.env).reward_threshold


def write_table() -> list[Path]:
    """Write ``zoo/README.md``, and ``zoo/report`` with curves and comparisons, from the zoo's results.

    :return: the pages
    :raises ConfigError: there are no results, a file of theirs is damaged, matplotlib is not installed, or it is no checkout
    """
    home = checkout()
    measured = [entry for entry in entries() if entry.results]
    # The page names folders as they are given: not by where this checkout is, as long as one stands in it.
    report([Path(os.path.relpath(entry.folder)) for entry in measured], home / "report", strict=True)
    write_text(home / "README.md", "\n".join([_HEADER, *(_table(algo) for algo in ALGORITHMS)]))
    return [home / "README.md", home / "report" / "index.html"]


def _table(algo: str) -> str:
    columns = ("environment", "steps", "seeds", "return", "goal", "Spinning Up", "best published", "agent")
    rows = [_row(entry) for entry in entries([algo])]
    return _markdown(f"## {algo.upper()}", columns, rows)


def _row(entry: Entry) -> list[str]:
    steps, aim = entry.values["n_timesteps"], goal(entry)
    own = ["", ""]
    if results := entry.results:
        summary = final_summary(results)
        interval = "" if summary.interval is None else " [{}, {}]".format(*map(_number, summary.interval))
        missed = " ✗" if aim is not None and summary.iqm < aim else ""
        own = [str(len(results)), f"{_number(summary.iqm)}{interval}{missed}"]
    card = published(entry.algo, entry.env).parent.relative_to(data_dir("zoo"))
    agent = f"[card]({card.as_posix()}/README.md)" if published(entry.algo, entry.env).is_file() else ""
    cited = [references.spinning_up(entry.algo, entry.env, steps), references.best(entry.algo, entry.env, steps)]
    others = [", ".join(_cited(each, entry.env, steps) for each in found) for found in cited]
    env = f"{entry.env} §" if entry.values.get("env_kwargs") else entry.env
    return [env, f"{steps:,}", *own, "" if aim is None else _number(aim), *others, agent]


def _cited(reference: Reference, env: str, steps: int) -> str:
    relation = references.relation(reference.env, env)
    text = _number(reference.value)
    if relation == "comparable":
        text += " †"
    if (reference.n_seeds or 0) < references.SEVERAL:
        text += " ‡"
    if not references.within(reference, steps):
        text += f" at {reference.budget}"
    return f"({text})" if relation == "other" else text


def _markdown(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    align = [":--" if name in ("environment", "agent") else "--:" for name in columns]
    lines = [f"| {' | '.join(cells)} |" for cells in (columns, align, *rows)]
    return "\n".join([title, "", *lines, ""])


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
