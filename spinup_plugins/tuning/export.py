"""What a study leaves behind: its definition, trials and confirmation as CSV, the winner as a preset, plots and a report."""

import json
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState

from spinup_plugins import registry
from spinup_plugins.atomic import replacing, write_csv, write_text
from spinup_plugins.environments import make_env
from spinup_plugins.errors import ConfigError
from spinup_plugins.presets import RUN_KEYS
from spinup_plugins.runs.config import completed
from spinup_plugins.runs.files import file_name, one_line
from spinup_plugins.tuning import confirm
from spinup_plugins.tuning.confirm import DEFAULT, Verdict
from spinup_plugins.tuning.objective import METRICS, configured
from spinup_plugins.tuning.slots import Slot, slots_of
from spinup_plugins.tuning.study import Definition, definition_of, different
from spinup_plugins.yaml_files import dump_yaml, load_yaml

__all__ = ["BEST", "REPORT", "VERDICT", "Export", "export", "importances", "require_own", "study_folder", "table"]

BEST, REPORT, TRIALS, CONFIRMATION, STUDY, VERDICT = (
    "best.yml", "report.md", "trials.csv", "confirmation.csv", "study.yml", "verdict.json"
)  # fmt: skip


class Export(NamedTuple):
    """What was written.

    :param folder: where
    :param verdict: the winner beside the default; None without a confirmation
    :param winner: candidate that ``best.yml`` holds
    :param files: names of the files
    """

    folder: Path
    verdict: Verdict | None
    winner: str
    files: list[str]


def study_folder(algo: str, envs: Sequence[str], parent: Path = Path("tuning/studies")) -> Path:
    """Return where a study is kept: ``<parent>/<algo>/<env>``, several environments joined by ``+``."""
    return parent / file_name(algo) / "+".join(file_name(env.rpartition(":")[2]) for env in envs)


def require_own(folder: Path, definition: Definition) -> None:
    """See that a folder has no results of another study, which is not in the storage of this one.

    :param folder: where a study is to be exported
    :param definition: the study's
    :raises ConfigError: it has, or its study.yml cannot be read
    """
    if not (folder / STUDY).is_file():
        return
    there, _ = _read(folder / STUDY)
    difference = different(there, definition)
    if difference is not None:
        raise ConfigError(
            f"'{folder}' has the results of another study, with {difference}: take another folder (--out), or the same options"
        )


def _read(file: Path) -> tuple[Definition, int]:
    """Return the definition in a study.yml, and how many trials counted."""
    try:
        study, _ = load_yaml(file)
        trials = study.pop("until_trials")
        return Definition(**{key: value for key, value in study.items() if key != "command"}), trials
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"'{file.parent}': its study cannot be read ({one_line(error)})") from error


def export(study: optuna.Study, folder: Path, *, until: int, command: str = "") -> Export:
    """Write everything, each file whole or not at all.

    :param study: a study that is done
    :param folder: made if need be
    :param until: how many of its trials count
    :param command: the command line to record
    :raises ConfigError: no trial was completed
    """
    definition = definition_of(study)
    folder.mkdir(parents=True, exist_ok=True)
    slots = slots_of(study.get_trials(deepcopy=False))[:until]
    candidates = confirm.candidates(study, definition, until)
    scores: dict[tuple[str, int], float] = {}
    verdict = None
    if definition.confirm_seeds:
        held = confirm.open_confirmation(study)
        scores = confirm.results(held)
        verdict = confirm.verdict(scores, list(candidates), definition.race_on, definition.held_out)
        _write_confirmation(folder / CONFIRMATION, held, definition)
    winner = verdict.winner if verdict is not None else list(candidates)[1 if len(candidates) > 1 else 0]
    write_text(folder / STUDY, dump_yaml({"command": command, "until_trials": until, **definition.model_dump(mode="json")}))
    _write_trials(folder / TRIALS, slots)
    entries = {env: _entry(definition, env, candidates[winner][env], winner, verdict) for env in definition.envs}
    best = {env.rpartition(":")[2]: entry for env, entry in entries.items()}
    write_text(folder / BEST, f"# spinup train {definition.algo} ENV --preset {BEST}\n{dump_yaml(best)}")
    for env in definition.envs:
        registry.preset_values(registry.get_spec(definition.algo), str(folder / BEST), env)
    ranks = importances(study, seed=definition.seed)
    plots = _plots(study, slots, ranks, folder, definition) if find_spec("matplotlib") is not None else []
    if verdict is not None:
        write_text(folder / VERDICT, json.dumps(verdict._asdict(), indent=2) + "\n")
    text = _report(definition, slots, ranks, verdict, winner, scores, candidates, plots, command)
    write_text(folder / REPORT, text)
    own = [CONFIRMATION, VERDICT] if verdict is not None else []
    return Export(folder, verdict, winner, [BEST, REPORT, STUDY, TRIALS, *own, *plots])


def importances(study: optuna.Study, *, seed: int) -> dict[str, dict[str, float]]:
    """Return how much of the first objective's variation each parameter accounts for, by method; {} with too few trials.

    fANOVA needs scikit-learn; PED-ANOVA asks what parameters set the best tenth apart.

    :param study: the study
    :param seed: of fANOVA's forest
    """
    evaluators: dict[str, optuna.importance.BaseImportanceEvaluator] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of experimental features, and of trials left out
        evaluators["PED-ANOVA"] = optuna.importance.PedAnovaImportanceEvaluator()
        if find_spec("sklearn") is not None:
            evaluators["fANOVA"] = optuna.importance.FanovaImportanceEvaluator(seed=seed % 2**32)
        several = len(study.directions) > 1
        found = {}
        for name, evaluator in evaluators.items():
            with suppress(ValueError, RuntimeError, ZeroDivisionError):  # too few trials, or all alike
                found[name] = optuna.importance.get_param_importances(
                    study, evaluator=evaluator, target=(lambda trial: trial.values[0]) if several else None
                )
    return {name: ranks for name, ranks in found.items() if ranks and np.isfinite(list(ranks.values())).all()}


def table(parent: Path) -> str:
    """Return a Markdown table of all studies in a folder.

    :param parent: such as ``tuning/studies``
    :raises ConfigError: there is none, or one cannot be read
    """
    files = sorted(parent.rglob(VERDICT))
    if not files:
        raise ConfigError(f"'{parent}' holds no study that was confirmed")
    lines = [
        "| algorithm | environment | steps | trials | score | held-out seeds | default (IQM, 95 %) | winner (IQM, 95 %) "
        "| P(improvement) |",
        "|---|---|--:|--:|---|--:|--:|--:|--:|",
    ]
    for file in files:
        try:
            data = json.loads(file.read_text(encoding="utf-8"))
            verdict = Verdict(*(data[key] for key in Verdict._fields))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"'{file.parent}': its study cannot be read ({one_line(error)})") from error
        definition, trials = _read(file.with_name(STUDY))
        steps = ", ".join(f"{base['n_timesteps']:,}" for base in definition.bases.values())
        won = _with_interval(verdict.score, verdict.interval) if verdict.better else "the default"
        cells = (
            definition.algo, ", ".join(definition.envs), steps, trials, definition.score, len(definition.held_out),
            _with_interval(verdict.default_score, verdict.default_interval), won, f"{verdict.improvement:.2f}",
        )  # fmt: skip
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines) + "\n"


def _entry(
    definition: Definition, env: str, values: Mapping[str, Any], winner: str, verdict: Verdict | None
) -> dict[str, Any]:
    """Return a preset with every argument."""
    base = configured(definition.bases[env], values, seed=0)
    config = completed(base, None)
    policy = config.policy
    if policy is None:
        envs = make_env(env, env_kwargs=config.env_kwargs, wrappers=config.wrappers, images=False)
        policy = registry.choose_policy(registry.get_class(definition.algo), envs.observation_space)
        envs.close()
    run = {key: getattr(config, key) for key in RUN_KEYS if key not in ("policy", "provenance")}
    whose = "the default, which no trial beat" if winner == DEFAULT else f"trial {winner}"
    how = f"spinup tune, space {definition.space_name}, study seed {definition.seed}: {whose}"
    if verdict is not None:
        seeds = len(definition.held_out)
        how += f"; IQM {_with_interval(verdict.score, verdict.interval)} on {seeds} held-out seeds" if verdict.better else ""
    return {**run, "policy": policy, **config.hyperparameters, "provenance": how}


def _write_trials(path: Path, slots: Sequence[Slot]) -> None:
    names = sorted({name for slot in slots for name in slot.trial.params})
    metrics = list(METRICS)
    header = ["trial", "number", "attempts", "state", "start", *metrics, "seeds_done", "error", *names]
    rows = []
    for place, slot in enumerate(slots):
        trial, attributes = slot.trial, slot.trial.user_attrs
        found = attributes.get("metrics", {})
        rows.append([
            place, trial.number, len(slot.chain), trial.state.name.lower(), attributes.get("start", ""),
            *(found.get(key, "") for key in metrics), len(attributes.get("runs", ())), slot.error,
            *(trial.params.get(name, "") for name in names),
        ])  # fmt: skip
    write_csv(path, [header, *rows])


def _write_confirmation(path: Path, held: optuna.Study, definition: Definition) -> None:
    rows = []
    race_on = definition.race_on
    for trial in held.get_trials(deepcopy=False):
        if "void" in trial.user_attrs or not trial.state.is_finished() or "lost" in trial.user_attrs:
            continue
        final = np.mean([run["final"] for run in trial.user_attrs.get("runs", ())] or [np.nan])
        value = "" if trial.value is None else trial.value
        error = trial.user_attrs.get("error", "")
        stage = "race" if trial.user_attrs["seed"] in race_on else "held-out"
        rows.append([stage, trial.user_attrs["candidate"], trial.user_attrs["seed"], value, final, error])
    rows.sort(key=lambda row: (row[0] != "race", row[1], row[2]))
    write_csv(path, [["stage", "candidate", "seed", "score", "final", "error"], *rows])


# --- plots -----------------------------------------------------------------------------------------------------------


def _plots(
    study: optuna.Study,
    slots: Sequence[Slot],
    ranks: Mapping[str, Mapping[str, float]],
    folder: Path,
    definition: Definition,
) -> list[str]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    done = [(place, slot.trial) for place, slot in enumerate(slots) if slot.trial.state == TrialState.COMPLETE]
    if not done:
        return []
    written: list[str] = []

    def save(figure: Figure, name: str) -> None:
        FigureCanvasAgg(figure)
        with replacing(folder / name) as temporary:
            figure.savefig(temporary, dpi=120)
        written.append(name)

    maximise = study.directions[0] == optuna.study.StudyDirection.MAXIMIZE
    values = [trial.values[0] for _, trial in done]
    label = definition.objectives[0]
    history = Figure(figsize=(7, 4), layout="constrained")
    axes = history.subplots()
    axes.plot([place for place, _ in done], values, ".", label="trials")
    axes.plot([place for place, _ in done], (np.maximum if maximise else np.minimum).accumulate(values), label="best so far")
    axes.set(xlabel="trial", ylabel=label, title=f"{definition.algo} on {', '.join(definition.envs)}")
    axes.legend()
    save(history, "history.png")

    names = sorted({name for _, trial in done for name in trial.params})
    columns = min(4, len(names))
    slices = Figure(figsize=(3 * columns, 2.5 * -(-len(names) // columns)), layout="constrained")
    grid = slices.subplots(-(-len(names) // columns), columns, squeeze=False).flat
    for name, axes in zip(names, grid, strict=False):
        _slice(axes, name, [trial for _, trial in done if name in trial.params], label)
    for axes in list(grid):
        axes.set_axis_off()
    save(slices, "slices.png")

    if ranks:
        bars = Figure(figsize=(5 * len(ranks), 0.3 * max(map(len, ranks.values())) + 1.2), layout="constrained")
        for axes, (method, found) in zip(bars.subplots(1, len(ranks), squeeze=False)[0], ranks.items(), strict=True):
            order = sorted(found, key=lambda name: found[name])
            axes.barh(order, [found[name] for name in order])
            axes.set(title=method, xlabel=f"importance for {label}")
        save(bars, "importances.png")
    if len(definition.objectives) > 1:
        _pareto(study, done, definition, save)
    return written


def _slice(axes: Any, name: str, trials: Sequence[FrozenTrial], label: str) -> None:
    distribution = trials[0].distributions[name]
    x = [trial.params[name] for trial in trials]
    if isinstance(distribution, optuna.distributions.CategoricalDistribution):
        axes.plot([distribution.choices.index(each) for each in x], [trial.values[0] for trial in trials], ".")
        axes.set_xticks(range(len(distribution.choices)), [str(choice) for choice in distribution.choices])
    else:
        axes.plot(x, [trial.values[0] for trial in trials], ".")
        if getattr(distribution, "log", False):
            axes.set_xscale("log")
    axes.set(xlabel=name, ylabel=label)


def _pareto(study: optuna.Study, done: Sequence[tuple[int, FrozenTrial]], definition: Definition, save: Any) -> None:
    from matplotlib.figure import Figure

    front = {trial.number for trial in study.best_trials}
    first, second = definition.objectives[:2]
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for on, marker, name in ((False, ".", "trials"), (True, "o", "Pareto front")):
        points = [trial.values[:2] for _, trial in done if (trial.number in front) is on]
        if points:
            axes.plot(*zip(*points, strict=True), marker, label=name)
    axes.set(xlabel=first, ylabel=second)
    axes.legend()
    save(figure, "pareto.png")


# --- report ----------------------------------------------------------------------------------------------------------


def _report(
    definition: Definition,
    slots: Sequence[Slot],
    ranks: Mapping[str, Mapping[str, float]],
    verdict: Verdict | None,
    winner: str,
    scores: Mapping[tuple[str, int], float],
    candidates: Mapping[str, Any],
    plots: Sequence[str],
    command: str,
) -> str:
    states = [slot.trial.state for slot in slots]
    counted = ", ".join(
        f"{states.count(state)} {state.name.lower()}"
        for state in (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
        if state in states
    )
    seconds = sum(run["seconds"] for slot in slots for run in slot.trial.user_attrs.get("runs", ()))
    budget = ", ".join(f"{base['n_timesteps']:,} steps on {env}" for env, base in definition.bases.items())
    how = {
        "last": f"interquartile mean of the last {definition.last:.0%} of the evaluations' episodes",
        "auc": "mean over the evaluations (area under the curve)",
        "max": "greatest evaluation",
    }[definition.score]
    parts = [f"# {definition.algo} on {', '.join(definition.envs)}", ""]
    parts += [_sentence(verdict, winner, len(definition.held_out)), ""]
    if command:
        parts += ["```bash", command, "```", ""]
    parts += [
        "## Budget",
        "",
        f"* {len(slots)} trials ({counted}), each of {definition.seeds_per_trial} seeds: {budget} a run; "
        f"{seconds / 3600:.2f} h of training in all",
        f"* space `{definition.space_name}`, sampler {definition.sampler}, pruner {definition.pruner}, "
        f"study seed {definition.seed}; began with: {', '.join(definition.starts) or 'nothing'}",
        f"* score of a run: {how}; of a trial: the mean over seeds {', '.join(map(str, definition.seeds))}",
        f"* objectives: {', '.join(f'{METRICS[each]} {each}' for each in definition.objectives)}"
        + (f"; constraints: {', '.join(definition.constraints)}" if definition.constraints else ""),
    ]
    if definition.references:
        spelled = ", ".join(f"{env}: {low:.4g} is 0, {high:.4g} is 1" for env, (low, high) in definition.references.items())
        parts.append(f"* scores are normalised ({spelled})")
    if verdict is not None:
        racing = confirm.standing(scores, list(candidates), definition.race_on, definition.held_out).racing
        race_on, held_out = (", ".join(map(str, seeds)) for seeds in (definition.race_on, definition.held_out))
        rows = []
        for name in candidates:
            own = [scores[name, seed] for seed in definition.race_on if (name, seed) in scores]
            note = "winner" if name == verdict.best else "" if name in racing else "dropped: clearly worse than the leader"
            if own:
                rows.append(f"| trial {name} | {len(own)} | {np.mean(own):.4g} | {note} |")
        parts += ["", "## Race", ""]
        if rows:
            parts += [f"The best trials, with seeds that no trial had: {race_on}.", ""]
            parts += ["| candidate | seeds | mean score | |", "|---|--:|--:|---|", *rows]
        else:
            parts.append("One trial, which had nobody to race." if racing else "No trial could race.")
        whose = "Default" if verdict.best is None else f"Trial {verdict.best} and the default"
        parts += ["", "## Confirmation", "", f"{whose}, with seeds new to both: {held_out}.", ""]
        parts += [
            "| | interquartile mean over seeds, 95 % bootstrap interval |",
            "|---|--:|",
            f"| default | {_with_interval(verdict.default_score, verdict.default_interval)} |",
        ]
        if verdict.best is not None:
            parts += [
                f"| trial {verdict.best} | {_with_interval(verdict.score, verdict.interval)} |",
                "",
                f"Mean paired difference {_with_interval(verdict.difference, verdict.difference_interval)}; probability of "
                f"improvement {verdict.improvement:.3f}.",
            ]
    if ranks:
        parts += ["", "## What mattered", ""]
        for method, found in ranks.items():
            top = sorted(found.items(), key=lambda item: -item[1])[:8]
            parts.append(f"* {method}: {', '.join(f'{name} {value:.2f}' for name, value in top)}")
    failed = [(place, slot) for place, slot in enumerate(slots) if slot.error]
    if failed:
        parts += ["", "## Failures", "", *(f"* trial {place}: {slot.error}" for place, slot in failed)]
    if plots:
        parts += ["", *(f"![{name}]({name})" for name in plots)]
    return "\n".join(parts) + "\n"


def _sentence(verdict: Verdict | None, winner: str, seeds: int) -> str:
    if verdict is None:
        what = "no trial was completed" if winner == DEFAULT else f"trial {winner} scored best on the seeds of the search"
        return f"Not confirmed on held-out seeds: {what}. `{BEST}` holds it."
    if not verdict.better:
        return f"**The default hyperparameters were not beaten on {seeds} held-out seeds.** `{BEST}` holds the default."
    return (
        f"**Trial {winner} beats the default hyperparameters on {seeds} held-out seeds**: "
        f"{_with_interval(verdict.score, verdict.interval)} against "
        f"{_with_interval(verdict.default_score, verdict.default_interval)}. `{BEST}` holds it."
    )


def _with_interval(value: float, interval: Sequence[float]) -> str:
    return f"{value:.4g} [{interval[0]:.4g}, {interval[1]:.4g}]"
