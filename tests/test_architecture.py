"""The house rules that a machine can check: which way imports point, what an import costs, what is exported."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import spinup_plugins
import spinup_plugins.envs

PACKAGE = Path(spinup_plugins.__file__).parent

#: A module may import its own layer and those before it.
LAYERS = (
    {"errors"},
    {"atomic", "imports", "paths", "yaml_files"},
    {"engine"},
    {"envs"},
    {"algorithms.compilation", "algorithms.functional"},
    {"algorithms.common"},
    {"algorithms.on_policy", "algorithms.off_policy"},
    {f"algorithms.{name}" for name in ("vpg", "trpo", "ppo", "ddpg", "td3", "sac")},
    {"environments", "presets", "registry", "schema", "wrapping"},
    {"testing"},
    {"runs"},
    {"tuning", "zoo"},
    {"cli", "__main__"},
)
ALONE = LAYERS[7]  # no algorithm imports another


def layer(module: str) -> int:
    for rank, members in enumerate(LAYERS):
        if module in members or module.split(".")[0] in members:
            return rank
    raise AssertionError(f"spinup_plugins.{module} is in no layer: add it to LAYERS")


def imports(path: Path) -> set[str]:
    """Modules of this package that a file imports, also inside functions, but not for annotations alone."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            node.body = []
    found = set()
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            names = [f"{node.module}.{alias.name}" for alias in node.names] + [str(node.module)]
        for name in names:
            module = name.removeprefix("spinup_plugins.")
            target = PACKAGE.joinpath(*module.split("."))
            if name.startswith("spinup_plugins.") and (target.with_suffix(".py").exists() or target.is_dir()):
                found.add(module)
    return found


MODULES = sorted(
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")
    for path in PACKAGE.rglob("*.py")
    if path != PACKAGE / "__init__.py" and path != PACKAGE / "algorithms" / "__init__.py" and "_data" not in path.parts
)


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_one_way(module: str) -> None:
    target = PACKAGE.joinpath(*module.split("."))
    path = target / "__init__.py" if target.is_dir() else target.with_suffix(".py")
    for imported in imports(path) - {module, "algorithms"}:
        assert layer(imported) <= layer(module), f"{module} imports {imported}, which stands above it"
        assert not (module in ALONE and imported in ALONE), f"{module} imports {imported}"


def loaded_by(statement: str) -> set[str]:
    code = f"{statement}\nimport sys\nprint(*sorted(sys.modules))"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(output.stdout.split())


def test_importing_the_package_imports_nothing_heavy() -> None:
    heavy = {"torch", "numpy", "gymnasium", "stable_baselines3", "sb3_contrib", "optuna", "mujoco", "ray", "rich"}
    assert not loaded_by("import spinup_plugins") & heavy


def test_an_algorithm_imports_no_more_than_stable_baselines3_does() -> None:
    extra = loaded_by("from spinup_plugins import PPO, TRPO, VPG, SAC, TD3, DDPG") - loaded_by("import stable_baselines3")
    assert {name.split(".")[0] for name in extra} <= {"spinup_plugins"}


@pytest.mark.parametrize(
    "statements",
    [
        "from spinup_plugins import algorithms; print(algorithms())",
        "import spinup_plugins; print(spinup_plugins.algorithms())",
        "from spinup_plugins import PPO, algorithms; print(algorithms())",
        "from spinup_plugins import algorithms, PPO; import spinup_plugins; print(spinup_plugins.algorithms())",
        "import spinup_plugins.algorithms.sac; print(spinup_plugins.algorithms())",
    ],
)
def test_the_list_of_algorithms_and_their_package_share_a_name(statements: str) -> None:
    output = subprocess.run([sys.executable, "-c", statements], capture_output=True, text=True, check=True)
    assert output.stdout.startswith("('vpg', 'trpo', 'ppo', 'ddpg', 'td3', 'sac'")


def test_public_names_of_environments_exist() -> None:
    assert all(getattr(spinup_plugins.envs, name) is not None for name in spinup_plugins.envs.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'as_vecenv'"):
        spinup_plugins.envs.as_vecenv  # noqa: B018


def test_public_names_exist() -> None:
    assert set(spinup_plugins.__all__) <= set(dir(spinup_plugins))
    for name in spinup_plugins.__all__:
        assert getattr(spinup_plugins, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'PPG'"):
        spinup_plugins.PPG  # noqa: B018


@pytest.mark.parametrize("name", sorted(m.removeprefix("algorithms.") for m in ALONE))
def test_every_equation_of_the_docstring_is_cited_in_the_code(name: str) -> None:
    """One algorithm, one file, equations numbered: each number in the module's docstring recurs below it."""
    source = (PACKAGE / "algorithms" / f"{name}.py").read_text()
    docstring = ast.get_docstring(ast.parse(source))
    assert docstring is not None
    body = source.split('"""', 2)[2]
    numbers = [line.strip()[1] for line in docstring.splitlines() if line.strip()[:1] == "(" and line.strip()[1].isdigit()]
    assert numbers == [str(i + 1) for i in range(len(numbers))]
    assert len(numbers) >= 4
    for number in numbers:
        assert f"({number})" in body, f"equation ({number}) of {name}.py is nowhere in its code"


def test_sacs_update_reads_in_two_files_and_three_hundred_lines() -> None:
    """What one reads to follow it: sac.py without its constructor, and the functions it calls from functional.py."""

    def length(node: ast.stmt) -> int:
        return (node.end_lineno or 0) - node.lineno + 1

    source = (PACKAGE / "algorithms" / "sac.py").read_text()
    (sac,) = (node for node in ast.parse(source).body if isinstance(node, ast.ClassDef))
    documentation, constructor = sac.body[0], next(n for n in sac.body if getattr(n, "name", "") == "__init__")
    functional = ast.parse((PACKAGE / "algorithms" / "functional.py").read_text()).body
    called = [n for n in functional if isinstance(n, ast.FunctionDef) and f"functional.{n.name}(" in source]
    assert {node.name for node in called} == {"q_loss", "squashed_gaussian", "td_target"}
    lines = len(source.splitlines()) - length(documentation) - length(constructor) + sum(map(length, called))
    assert lines <= 300


def test_the_wheel_holds_every_package() -> None:
    listed = (PACKAGE.parent / "pyproject.toml").read_text()
    found = [".".join(("spinup_plugins", *file.parent.relative_to(PACKAGE).parts)) for file in PACKAGE.rglob("__init__.py")]
    assert [name for name in found if f'    "{name}",\n' not in listed] == []
