"""Algorithms of other distributions: one installed for real, and metadata of others that collide or are broken."""

import importlib
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from stable_baselines3.common.evaluation import evaluate_policy

from spinup_plugins import registry
from spinup_plugins.errors import PluginError, UnknownNameError
from spinup_plugins.registry import algorithms, errors, get_class, get_spec, make, preset_values
from spinup_plugins.testing import check_algorithm

EXAMPLE = Path(__file__).parent / "plugins" / "spinup-example"


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    """A folder with the example plugin installed."""
    folder = tmp_path_factory.mktemp("plugin")
    source = shutil.copytree(EXAMPLE, folder / "source")  # building leaves files behind
    install = ["install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--target", str(folder / "site")]
    subprocess.run([sys.executable, "-m", "pip", *install, str(source)], check=True, capture_output=True, text=True)
    return folder / "site"


@pytest.fixture(autouse=True)
def undisturbed(monkeypatch):
    """No plugins but a test's own, and none of them afterwards."""
    monkeypatch.delenv("SPINUP_PLUGINS_DISABLE", raising=False)
    monkeypatch.setattr(registry, "_loaded", {})
    yield
    for module in [name for name in sys.modules if name.split(".")[0] == "spinup_example"]:
        del sys.modules[module]


@pytest.fixture
def installed(site, monkeypatch):
    monkeypatch.syspath_prepend(site)


@pytest.fixture
def add(tmp_path, monkeypatch):
    """Add the metadata of a distribution with these entry points."""

    def add_distribution(name: str, **points: str) -> None:
        info = tmp_path / f"{name.replace('-', '_')}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        lines = [f"{point} = {value}" for point, value in points.items()]
        (info / "entry_points.txt").write_text("\n".join(["[spinup_plugins.algorithms]", *lines]))
        importlib.invalidate_caches()

    monkeypatch.syspath_prepend(tmp_path)
    return add_distribution


# --- the example -----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("installed")
def test_it_is_found_without_being_imported():
    assert "cem" in algorithms()
    assert "spinup_example" not in sys.modules
    spec = get_spec("CEM")
    assert (spec.name, spec.distribution) == ("cem", "spinup-example")
    assert "spinup_example.cem" not in sys.modules
    assert errors() == {}
    assert get_spec("spinup-example:cem") is spec
    with pytest.raises(UnknownNameError, match=r"'cme' \(did you mean 'cem'\?\)"):
        get_spec("cme")


@pytest.mark.usefixtures("installed")
def test_it_keeps_the_contract():
    check_algorithm(get_class("cem"), spec=get_spec("cem"), kwargs={"population": 2})


@pytest.mark.usefixtures("installed")
def test_it_is_trained_saved_and_loaded(tmp_path):
    assert preset_values(get_spec("cem"), "zoo", "CartPole-v1")["n_timesteps"] == 20_000
    model = make("cem", "CartPole-v1", preset="zoo", seed=0)
    assert model.population == 20
    model.learn(8_000)
    mean, _ = evaluate_policy(model, model.get_env(), 10)
    assert mean > 200
    model.save(tmp_path / "model")
    loaded = get_class("cem").load(tmp_path / "model", env=model.get_env())
    observations = model.get_env().reset()
    assert loaded.predict(observations)[0] == model.predict(observations)[0]
    loaded.population = 2
    assert loaded.learn(100, reset_num_timesteps=False).num_timesteps >= model.num_timesteps + 100


@pytest.mark.usefixtures("installed")
def test_it_is_tuned(tmp_path):
    """With its own search space, its zoo entry among the first trials, and no edit to this package."""
    from spinup_plugins.runs.config import Layer
    from spinup_plugins.tuning.export import export
    from spinup_plugins.tuning.study import create, define, open_storage
    from spinup_plugins.tuning.workers import Orders, work

    values = {"n_timesteps": 60, "eval_every": 30, "eval_episodes": 1, "final_episodes": 1}
    definition = define(
        "cem", ["CartPole-v1"], layers=[Layer(values, ".".join)], seeds_per_trial=1, confirm_seeds=2, top=1, startup=2
    )
    assert (definition.algo, definition.starts) == ("cem", ["default", "zoo"])
    where = str(tmp_path / "study.journal")
    study = create(open_storage(where), "x", definition, until=3)
    work(Orders(where, "x", 3))
    assert [trial.state.name for trial in study.trials] == ["COMPLETE"] * 3
    assert study.trials[1].params["population"] == 20
    outcome = export(study, tmp_path / "out", until=3)
    entry = preset_values(get_spec("cem"), str(outcome.folder / "best.yml"), "CartPole-v1")
    assert 4 <= entry["population"] <= 64
    with pytest.raises(UnknownNameError, match=r"has no space 'defalt' \(did you mean 'default'\?\)"):
        define("cem", ["CartPole-v1"], space="defalt")


# --- several ---------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("installed")
def test_a_name_that_two_distributions_claim_must_be_qualified(add):
    add("spinup-rival", cem="spinup_example:SPEC")
    assert {"spinup-example:cem", "spinup-rival:cem"} <= set(algorithms())
    assert "cem" not in algorithms()
    with pytest.raises(PluginError) as caught:
        get_spec("cem")
    both = "'spinup-example:cem' or 'spinup-rival:cem'"
    assert str(caught.value) == f"algorithm 'cem' is claimed by two distributions: use {both}"
    assert get_spec("spinup-rival:cem").distribution == "spinup-rival"
    assert get_spec("Spinup-Example:CEM").distribution == "spinup-example"
    assert errors()["spinup-rival:cem"] == f"the name 'cem' is claimed by two distributions; use {both}"
    with pytest.raises(PluginError, match="algorithm 'cem' exists already"):
        registry.register(get_spec("spinup-rival:cem"))


@pytest.mark.usefixtures("installed")
def test_a_built_in_keeps_its_name(add):
    Path(sys.path[0], "taker.py").write_text(
        "from dataclasses import replace\nfrom spinup_example import SPEC\nPPO = replace(SPEC, name='ppo')\n"
    )
    add("taker", ppo="taker:PPO")
    assert get_spec("ppo").distribution == ""
    assert "taker:ppo" in algorithms()
    assert algorithms().count("ppo") == 1
    assert get_spec("taker:ppo").cls_path == "spinup_example.cem:CEM"
    assert errors() == {"taker:ppo": "the name 'ppo' is taken; use 'taker:ppo'"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "algorithm 'broken' of bad-dist cannot be loaded: ModuleNotFoundError: No module named 'broken_plugin'"),
        ("1 / 0", "algorithm 'broken' of bad-dist cannot be loaded: ZeroDivisionError: division by zero"),
        ("SPEC = 3", "algorithm 'broken' of bad-dist: 'broken_plugin:SPEC' is not an AlgorithmSpec but int"),
        (
            "from spinup_plugins.registry import *\nSPEC = get_spec('ppo')",
            "algorithm 'broken' of bad-dist: its specification is named 'ppo'",
        ),
        (
            "from dataclasses import replace\nfrom spinup_plugins.registry import *\n"
            "SPEC = replace(get_spec('ppo'), name='broken', api_version=7)",
            "algorithm 'broken' of bad-dist is written for api_version 7; this package has 1",
        ),
    ],
)
def test_a_broken_plugin_is_reported_and_harms_no_other(add, tmp_path, monkeypatch, content, message):
    if content is not None:
        (tmp_path / "broken_plugin.py").write_text(content)
    monkeypatch.delitem(sys.modules, "broken_plugin", raising=False)
    add("bad-dist", broken="broken_plugin:SPEC")
    assert "broken" in algorithms()
    assert errors() == {"bad-dist:broken": message}
    with pytest.raises(PluginError) as caught:
        get_spec("broken")
    assert str(caught.value) == message
    assert get_spec("ppo").name == "ppo"


def test_a_class_that_cannot_be_imported_names_its_distribution(add, tmp_path):
    (tmp_path / "classless.py").write_text(
        "from dataclasses import replace\nfrom spinup_plugins.registry import *\n"
        "SPEC = replace(get_spec('ppo'), name='classless', cls_path='nowhere:X')"
    )
    add("bad-dist", classless="classless:SPEC")
    with pytest.raises(PluginError, match="algorithm 'classless' of bad-dist: cannot import 'nowhere:X'"):
        get_class("classless")


def test_a_plugin_has_no_share_in_our_zoo(add, tmp_path):
    (tmp_path / "sharer.py").write_text("from spinup_plugins.registry import *\nSPEC = get_spec('ppo')")
    add("sharer", ppo="sharer:SPEC")
    with pytest.raises(UnknownNameError, match="has no preset 'zoo'"):
        preset_values(get_spec("sharer:ppo"), "zoo", "CartPole-v1")


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("switch", ["cem", "spinup-example:cem", " CEM ,other", "*"])
def test_plugins_can_be_switched_off(monkeypatch, switch):
    monkeypatch.setenv("SPINUP_PLUGINS_DISABLE", switch)
    assert not any("cem" in name for name in algorithms())
    with pytest.raises(UnknownNameError, match="algorithm 'cem' is switched off by SPINUP_PLUGINS_DISABLE="):
        get_spec("cem")
    assert errors() == {}
    assert "ppo" in algorithms()


@pytest.mark.usefixtures("installed")
def test_switching_one_claimant_off_frees_the_name(add, monkeypatch):
    add("spinup-rival", cem="spinup_example:SPEC")
    monkeypatch.setenv("SPINUP_PLUGINS_DISABLE", "spinup-rival:cem")
    assert get_spec("cem").distribution == "spinup-example"
