"""Studies in tuning/studies: their verdicts follow from their scores, and their winners train as they are."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from spinup_plugins.paths import data_dir
from spinup_plugins.registry import get_spec, make, preset_values
from spinup_plugins.tuning import confirm
from spinup_plugins.tuning.export import table
from spinup_plugins.tuning.study import Definition
from spinup_plugins.yaml_files import load_yaml

FOLDERS = sorted(file.parent for file in (data_dir("tuning") / "studies").rglob("verdict.json"))


def ids(folder: Path) -> str:
    return "/".join(folder.parts[-2:])


@pytest.mark.parametrize("folder", FOLDERS, ids=ids)
def test_a_verdict_follows_from_the_scores(folder: Path) -> None:
    told = json.loads((folder / "verdict.json").read_text())
    data, _ = load_yaml(folder / "study.yml")
    definition = Definition(**{key: value for key, value in data.items() if key in Definition.model_fields})
    assert (definition.algo, definition.envs) == (folder.parent.name, [folder.name])
    with (folder / "confirmation.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    scores = {(row["candidate"], int(row["seed"])): float(row["score"] or -np.inf) for row in rows}
    stages = {stage: {int(row["seed"]) for row in rows if row["stage"] == stage} for stage in ("race", "held-out")}
    assert stages["held-out"] == set(definition.held_out)
    assert stages["race"] <= set(definition.race_on)
    assert len({*definition.seeds, *definition.race_on, *definition.held_out}) == (
        definition.seeds_per_trial + definition.race_seeds + definition.confirm_seeds
    )
    verdict = confirm.verdict(scores, [confirm.DEFAULT, told["best"]], definition.race_on, definition.held_out)
    assert verdict is not None
    assert json.loads(json.dumps(verdict._asdict())) == told


@pytest.mark.parametrize("folder", FOLDERS, ids=ids)
def test_a_winner_is_a_preset_and_trains(folder: Path) -> None:
    algo, env = folder.parts[-2:]
    spec, best = get_spec(algo), str(folder / "best.yml")
    values = preset_values(spec, best, env)
    short = {"n_steps": 64, "batch_size": 64} if spec.on_policy else {"learning_starts": 32}
    model = make(algo, env, preset=best, **{key: value for key, value in short.items() if key in values})
    assert model.gamma == values["gamma"]
    model.learn(64)
    model.get_env().close()


def test_the_page_has_the_table_of_all_studies() -> None:
    made = table(data_dir("tuning") / "studies")
    assert len(made.splitlines()) == 2 + len(FOLDERS)
    assert made in (data_dir("tuning") / "README.md").read_text(), "spinup tune --table makes it"
