"""From runs over seeds to what the zoo keeps of them: their results, and the agent in the middle with its card."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from spinup_plugins.atomic import replacing, write_text
from spinup_plugins.errors import ConfigError
from spinup_plugins.runs.agent import Agent, published
from spinup_plugins.runs.bench import settings
from spinup_plugins.runs.config import RunConfig, load
from spinup_plugins.runs.export import export
from spinup_plugins.runs.files import CONFIG, EVALUATION, STATUS, Status, file_name
from spinup_plugins.runs.results import CURVE, FINAL, Result, final_summary, read_run, write_results
from spinup_plugins.runs.statistics import summarise
from spinup_plugins.zoo.catalog import Entry, checkout, median_result

__all__ = ["CARD", "card", "publish_entry"]

CARD = "README.md"
"""Beside an agent: what it is, how it was made, how well it does and where that ends."""


def publish_entry(entry: Entry, runs: Path) -> Path:
    """Keep the results of an entry's runs, and the agent of the seed in the middle (:func:`.catalog.median_result`).

    :param entry: the algorithm and environment
    :param runs: folder of all runs, as ``spinup zoo train`` fills it
    :return: the agent's file
    :raises ConfigError: no run is finished, two were made with different values, or it is no checkout
    """
    checkout()
    home = runs / file_name(entry.algo) / file_name(entry.env)
    finished = [folder for folder in sorted(home.glob("seed*")) if _is_finished(folder)]
    if not finished:
        raise ConfigError(f"no finished runs of {entry} are in '{home}'")
    first, *others = finished
    alike = settings(load(first / CONFIG))
    for folder in others:
        for key, value in settings(load(folder / CONFIG)).items():
            if key != "seed" and value != alike.get(key):
                raise ConfigError(f"'{folder}' was made with {key}={value!r}, '{first}' with {alike.get(key)!r}: remove one")
    found = {result.seed: (folder, result) for folder in finished for result in [read_run(folder)]}
    results = [found[seed][1] for seed in sorted(found)]
    folder, _ = found[median_result(results).seed]
    file = published(entry.algo, entry.env)
    with TemporaryDirectory(dir=home) as made:  # all is made before anything takes its place
        new = Path(made)
        _, agent = export(folder, new / file.name, optimizers=False)
        write_results(new, results)
        for name in (CONFIG, EVALUATION):
            shutil.copyfile(folder / name, new / name)
        write_text(new / CARD, card(entry, agent, load(folder / CONFIG), results))
        for name in (CURVE, FINAL):
            _move(new / name, entry.folder / name)
        for name in (CARD, CONFIG, EVALUATION, file.name):
            _move(new / name, file.with_name(name))
    return file


def _move(made: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with replacing(target) as temporary:
        shutil.move(made, temporary)  # from another file system, perhaps


def card(entry: Entry, agent: Agent, config: RunConfig, results: Sequence[Result]) -> str:
    """Describe the published agent of an entry in Markdown.

    :param entry: whose
    :param agent: the agent
    :param config: of the run that it comes from
    :param results: of all seeds
    """
    own = summarise([float(value) for value in next(each for each in results if each.seed == config.seed).final])
    over_seeds = final_summary(results)
    seeds = ", ".join(f"{each.seed}: {float(np.mean(each.final)):.5g}" for each in results)
    numbers = [each.seed for each in results]
    wanted = str(len(numbers)) if numbers == list(range(len(numbers))) else ",".join(map(str, numbers))
    interval = "" if over_seeds.interval is None else " (95 % interval {:.5g} to {:.5g})".format(*over_seeds.interval)
    assert agent.card.training is not None, "export() wrote the run's configuration"
    versions = ", ".join(f"{name} {value}" for name, value in agent.card.training["versions"].items())
    arguments = ", ".join(f"`{key}={value!r}`" for key, value in config.env_kwargs.items())
    made = f"{entry.env} as Gymnasium makes it" + (f", with {arguments}" if arguments else "")
    return f"""# {entry.algo.upper()} on {entry.env}

| | |
|---|---|
| return | {own.mean:.5g} ± {own.std:.5g} (mean ± standard deviation of {own.n} episodes, deterministic actions) |
| over seeds | IQM {over_seeds.iqm:.5g}{interval}; mean of each seed: {seeds} |
| this agent | seed {config.seed}, the one in the middle of {len(results)}, not the best |
| trained for | {config.n_timesteps:,} environment steps, the last policy, not the best of the evaluations |
| values | {entry.values["provenance"]} |
| versions | {versions} |
| SHA-256 | `{agent.hash}` |

```python
from spinup_plugins import load_agent

agent = load_agent("{entry.algo}", "{entry.env}")
env = agent.env()  # wrapped and normalised as in training
observations = env.reset()
actions, _ = agent.predict(observations, deterministic=True)
model = agent.model()  # goes on learning; Adam's moments are not kept and begin anew
```

`spinup zoo train {entry.algo} {entry.env} --seeds {wanted}` trains all seeds again, with the arguments in
[config.yml](config.yml); `spinup zoo verify {entry.algo} {entry.env}` plays this agent again.
[evaluation.json](evaluation.json) has every episode.

Limits: it is made for {made}, under these versions; other versions of the environment or of the
physics can pay it less. What it does off the states that it has seen is not known.
"""


def _is_finished(folder: Path) -> bool:
    return (folder / STATUS).is_file() and Status.read(folder).state == "finished"
