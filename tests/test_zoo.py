"""The zoo: entries, results and agents that belong together, and what is said of them."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from spinup_plugins import load_agent, paths
from spinup_plugins.cli import main
from spinup_plugins.errors import ConfigError, ModelFileError, UnknownNameError
from spinup_plugins.runs import references
from spinup_plugins.runs.agent import published, save_agent
from spinup_plugins.runs.config import load
from spinup_plugins.runs.evaluation import Evaluation
from spinup_plugins.runs.results import Result, final_summary
from spinup_plugins.zoo import publish
from spinup_plugins.zoo.catalog import Entry, entries, median_result
from spinup_plugins.zoo.publish import card, publish_entry
from spinup_plugins.zoo.table import GOALS, _row, goal
from spinup_plugins.zoo.verify import verify

TINY = "CartPole-v1: {n_timesteps: 300, n_envs: 2, n_steps: 50, train_v_iters: 2, normalize: true, provenance: by hand}\n"


def result(seed: int, *final: float) -> Result:
    return Result(seed, np.array([100]), np.array([1.0]), np.array([0.0]), np.array(final))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A zoo of one entry, trained and published by its own command."""
    real, folder = paths.data_dir("zoo"), tmp_path_factory.mktemp("zoo")
    (folder / "hyperparams").mkdir()
    for algo in ("trpo", "ppo", "ddpg", "td3", "sac"):
        (folder / "hyperparams" / f"{algo}.yml").write_text("Acrobot-v1: {n_timesteps: 1, provenance: test}\n")
    (folder / "hyperparams" / "vpg.yml").write_text(TINY)
    for name in (GOALS, references.FILE):
        shutil.copy(real / name, folder / name)
    with pytest.MonkeyPatch.context() as patch:
        use(patch, folder)
        runs = str(folder.parent / "runs")
        arguments = ["zoo", "train", "vpg", "CartPole-v1", "--seeds", "3", "-j", "2", "-f", runs, "--publish"]
        assert main(arguments) == 0
        entry = Entry("vpg", "CartPole-v1")
        assert entry.folder.is_relative_to(folder)
    return folder


def use(patch: pytest.MonkeyPatch, folder: Path) -> None:
    from spinup_plugins import presets
    from spinup_plugins.runs import agent
    from spinup_plugins.zoo import catalog, table

    for module in (presets, agent, catalog, table, references):
        patch.setattr(module, "data_dir", lambda name: folder)


@pytest.fixture
def zoo(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    use(monkeypatch, home)
    return home


ENTRY = Entry("vpg", "CartPole-v1")


def test_the_seed_in_the_middle_is_published(zoo: Path) -> None:
    results = ENTRY.results
    assert [each.seed for each in results] == [0, 1, 2]
    means = {each.seed: float(np.mean(each.final)) for each in results}
    agent = load_agent("vpg", "CartPole-v1")
    assert means[agent.card.seed] == sorted(means.values())[1]
    assert agent.card.training["preset"] == "zoo"
    assert agent.card.normalization is not None
    folder = published(*ENTRY).parent
    assert sorted(each.name for each in folder.iterdir()) == ["README.md", "agent.spinup", "config.yml", "evaluation.json"]
    card = (folder / "README.md").read_text()
    assert f"seed {agent.card.seed}, the one in the middle of 3" in card
    assert agent.hash in card
    assert "by hand" in card
    assert f"torch {agent.card.training['versions']['torch']}" in card
    episodes = json.loads((folder / "evaluation.json").read_text())
    assert agent.card.scores == episodes
    assert len(episodes["returns"]) == 100
    assert not any("/" in name and "exp_avg" in name for name in agent._tensors), "optimisers' memory is left out"
    model = agent.model()
    model.learn(100, reset_num_timesteps=False)
    assert model.num_timesteps > agent.num_timesteps


def test_seeds_of_different_values_are_not_published_as_one(
    zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, zoo)
    shutil.copytree(zoo.parent / "runs", tmp_path / "runs")
    config = tmp_path / "runs" / "vpg" / "CartPole-v1" / "seed1" / "config.yml"
    config.write_text(config.read_text().replace("gamma: 0.99\n", "gamma: 0.9\n"))
    with pytest.raises(ConfigError, match=r"seed1' was made with gamma=0\.9, '.*seed0' with 0\.99: remove one$"):
        publish_entry(ENTRY, tmp_path / "runs")


def test_a_card_tells_how_to_train_its_seeds_again(zoo: Path) -> None:
    config = load(published(*ENTRY).with_name("config.yml"))
    for seeds, spelled in (([0, 1, 2], "3"), ([1, 5], "1,5")):
        results = [result(seed, 1.0, 2.0) for seed in seeds]
        text = card(ENTRY, load_agent(*ENTRY), config.model_copy(update={"seed": seeds[1]}), results)
        assert f"`spinup zoo train vpg CartPole-v1 --seeds {spelled}` trains all seeds again" in text


def test_a_card_and_the_page_name_arguments_of_the_environment(zoo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load(published(*ENTRY).with_name("config.yml"))
    plain, own = (
        card(ENTRY, load_agent(*ENTRY), config.model_copy(update={"env_kwargs": kwargs}), ENTRY.results)
        for kwargs in ({}, {"sutton_barto_reward": False})
    )
    assert "made for CartPole-v1 as Gymnasium makes it, under" in plain
    assert "made for CartPole-v1 as Gymnasium makes it, with `sutton_barto_reward=False`, under" in own
    assert _row(ENTRY)[0] == "CartPole-v1"
    values = {**ENTRY.values, "env_kwargs": {"sutton_barto_reward": False}}
    monkeypatch.setattr(Entry, "values", values)
    assert _row(ENTRY)[0] == "CartPole-v1 §"


def test_what_cannot_be_exported_leaves_the_zoo_as_it_was(zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(zoo, tmp_path / "zoo")
    use(monkeypatch, tmp_path / "zoo")
    shutil.copytree(zoo.parent / "runs", tmp_path / "runs")
    shutil.rmtree(tmp_path / "runs" / "vpg" / "CartPole-v1" / "seed0")
    for model in (tmp_path / "runs").rglob("model.zip"):
        model.write_text("damaged")
    before = {file: file.read_bytes() for file in (tmp_path / "zoo").rglob("*") if file.is_file()}
    with pytest.raises(ModelFileError, match=r"model\.zip"):
        publish_entry(ENTRY, tmp_path / "runs")
    assert {file: file.read_bytes() for file in (tmp_path / "zoo").rglob("*") if file.is_file()} == before


def test_what_stops_publishing_leaves_the_zoo_as_it_was(zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of it, the last file's text included, is made before the first takes its place."""
    shutil.copytree(zoo, tmp_path / "zoo")
    use(monkeypatch, tmp_path / "zoo")
    shutil.copytree(zoo.parent / "runs", tmp_path / "runs")
    shutil.rmtree(tmp_path / "runs" / "vpg" / "CartPole-v1" / "seed0")
    before = {file: file.read_bytes() for file in (tmp_path / "zoo").rglob("*") if file.is_file()}

    def stop(*_: object) -> str:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(publish, "card", stop)
        with pytest.raises(KeyboardInterrupt):
            publish_entry(ENTRY, tmp_path / "runs")
    assert {file: file.read_bytes() for file in (tmp_path / "zoo").rglob("*") if file.is_file()} == before
    publish_entry(ENTRY, tmp_path / "runs")
    after = {file: file.read_bytes() for file in (tmp_path / "zoo").rglob("*") if file.is_file()}
    assert after.keys() == before.keys()
    assert [each.seed for each in ENTRY.results] == [1, 2]


def test_agents_are_verified(zoo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["zoo", "verify", "-n", "20"]) == 0
    output = capsys.readouterr().out
    assert "vpg on CartPole-v1: " in output
    assert "1 of 1 agents are as published" in output


def publish_anew(model: Any, returns: Sequence[float]) -> None:
    """Replace the published agent and the hash on its card."""
    old = load_agent(*ENTRY).hash
    new = save_agent(model, published(*ENTRY), scores={"returns": returns})
    card = published(*ENTRY).with_name("README.md")
    card.write_text(card.read_text().replace(old, new))


def test_an_agent_that_is_not_its_cards_is_found(zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(zoo, tmp_path, dirs_exist_ok=True)
    use(monkeypatch, tmp_path)
    agent = load_agent("vpg", "CartPole-v1")
    other = save_agent(agent.model(learning_rate=0.5), published(*ENTRY), scores=agent.card.scores)
    (verdict,) = verify([ENTRY], episodes=20)
    assert verdict.fault.startswith(f"its hash {other[:12]}… is not the one in ")
    published(*ENTRY).with_name("README.md").unlink()
    (verdict,) = verify([ENTRY], episodes=20)
    assert verdict.fault


def test_agents_that_play_otherwise_are_found(
    zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(zoo, tmp_path, dirs_exist_ok=True)
    use(monkeypatch, tmp_path)
    raw = bytearray(published(*ENTRY).read_bytes())
    raw[len(raw) // 2] ^= 1
    published(*ENTRY).write_bytes(raw)
    assert main(["zoo", "verify"]) == 1
    assert "error: vpg on CartPole-v1: " in capsys.readouterr().err
    shutil.copytree(zoo / "agents", tmp_path / "agents", dirs_exist_ok=True)
    agent = load_agent("vpg", "CartPole-v1")
    better = [value + 100.0 for value in agent.card.scores["returns"]]
    publish_anew(agent.model(), better)
    (verdict,) = verify([ENTRY], episodes=20)
    assert "plays otherwise than published" in verdict.fault
    assert verdict.p_value < 0.01
    save_agent(agent.model(), published(*ENTRY), scores={"mean": 500.0})
    (verdict,) = verify([ENTRY], episodes=20)
    assert verdict.fault == "its file does not tell the returns of its episodes"
    published(*ENTRY).unlink()
    (verdict,) = verify([ENTRY])
    assert verdict.fault


def test_the_same_returns_in_other_proportions_are_found(zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(zoo, tmp_path, dirs_exist_ok=True)
    use(monkeypatch, tmp_path)

    def play(good: int) -> Any:
        return lambda *_, **__: Evaluation((500.0,) * good + (9.0,) * (20 - good), (500,) * 20, None)

    model = load_agent("vpg", "CartPole-v1").model()
    publish_anew(model, play(19)().returns)
    for good, fault in ((19, False), (18, False), (1, True)):
        monkeypatch.setattr("spinup_plugins.zoo.verify.evaluate", play(good))
        (verdict,) = verify([ENTRY])
        assert bool(verdict.fault) is fault, good
    publish_anew(model, play(20)().returns)
    monkeypatch.setattr("spinup_plugins.zoo.verify.evaluate", play(20))
    (verdict,) = verify([ENTRY])
    assert (verdict.p_value, verdict.fault) == (1.0, "")


def test_what_there_is_and_how_it_is_shown(zoo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["zoo", "list", "vpg, ppo"]) == 0
    listed = capsys.readouterr().out
    assert "CartPole-v1" in listed
    assert "yes" in listed
    assert main(["zoo", "show", "vpg", "CartPole-v1"]) == 0
    shown = capsys.readouterr().out
    for part in (
        "provenance: by hand",
        "IQM over 3 seeds",
        "load_agent('vpg', 'CartPole-v1')",
        "spinup zoo train vpg CartPole-v1",
    ):
        assert part in shown
    for arguments, message in (
        (["show", "vpg", "CartPole-v0"], "the zoo has no 'CartPole-v0' for vpg (did you mean 'CartPole-v1'?)"),
        (["verify", "ppo"], "the zoo has no agent for ppo: 'spinup zoo list' tells which it has"),
        (["list", "vgp"], "unknown algorithm 'vgp' (did you mean 'vpg'?)"),
        (["train", "vpg", "Pendulum-v1"], "the zoo has no 'Pendulum-v1' for vpg; it has CartPole-v1"),
        (["train", "vpg", "CartPole-v1", "--seeds", "none"], "--seeds none: expected how many"),
    ):
        assert main(["zoo", *arguments]) == 2
        assert message in capsys.readouterr().err


def test_the_page_is_made_of_the_results(
    zoo: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(zoo.parent)
    assert main(["zoo", "table"]) == 0
    assert capsys.readouterr().out.split() == [str(zoo / "README.md"), str(zoo / "report" / "index.html")]
    page = (zoo / "README.md").read_text()
    (row,) = [line for line in page.splitlines() if line.startswith("| CartPole-v1 |")]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[1:3] == ["300", "3"]
    assert cells[3].startswith(f"{final_summary(ENTRY.results).iqm:.3g} [")
    assert cells[3].endswith("] ✗"), "300 steps do not solve it"
    assert cells[4] == "475"
    assert cells[7] == "[card](agents/vpg/CartPole-v1/README.md)"
    others = [line for line in page.splitlines() if line.startswith("| Acrobot-v1 | 1 |")]
    cited = [line.strip("|").split("|")[6].strip() for line in others]
    assert cited == ["-83.1 ‡ at 100k steps", "-81.3 at 300k steps", "", "", "-92.6 at 300k steps"]
    assert (zoo / "agents" / "vpg" / "CartPole-v1" / "README.md").is_file()
    report = (zoo / "report" / "README.md").read_text()
    assert f"| {zoo.name}/results/vpg/CartPole-v1 |" in report
    assert str(zoo.parent) not in report, "whoever makes the page again gets the same"


def test_no_file_of_the_zoo_is_too_large_for_the_repository() -> None:
    sizes = {file: file.stat().st_size for file in paths.data_dir("zoo").rglob("*") if file.is_file()}
    assert sizes
    assert {file: size for file, size in sizes.items() if size > 5_000_000} == {}


def test_goals(zoo: Path) -> None:
    assert goal(Entry("vpg", "HalfCheetah-v5")) == 900.0
    assert goal(Entry("ddpg", "HalfCheetah-v5")) == 4800.0, "the environment's own"
    assert goal(Entry("sac", "Pendulum-v1")) is None


def test_the_middle_of_an_even_number_is_the_lesser_one() -> None:
    results = [result(0, 4.0), result(1, 1.0), result(2, 3.0, 3.0), result(3, 2.0)]
    assert median_result(results).seed == 3
    assert median_result(results[:3]).seed == 2
    assert final_summary(results).iqm == 2.5


def test_every_entry_of_the_package() -> None:
    found = entries()
    assert len(found) == 3 * 15 + 3 * 11
    assert entries(["sac"], ["Hopper-v5"]) == [Entry("sac", "Hopper-v5")]
    with pytest.raises(UnknownNameError, match="the zoo has no 'CartPole-v1' for sac, td3"):
        entries(["sac", "td3"], ["CartPole-v1"])


@pytest.mark.parametrize(
    "entry", [e for e in entries() if published(*e).is_file() and e.env in ("CartPole-v1", "Pendulum-v1")]
)
def test_some_published_agents(entry: Entry) -> None:
    (verdict,) = verify([entry], episodes=20)
    assert verdict.fault == ""


@pytest.mark.parametrize("entry", [e for e in entries() if published(*e).is_file()], ids=lambda entry: "-".join(entry))
def test_published_agents_learn_with_the_numbers_of_their_runs(entry: Entry) -> None:
    values = load(published(*entry).with_name("config.yml")).hyperparameters
    arguments = load_agent(*entry).card.arguments
    numbers = {
        key
        for key, value in values.items()
        if isinstance(value, (int, float)) and isinstance(arguments.get(key), (int, float))
    }
    assert {"gamma", "n_steps"} <= numbers
    assert {key: arguments[key] for key in numbers} == {key: values[key] for key in numbers}
