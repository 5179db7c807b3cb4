"""``spinup train``: one run, from a command line to a folder with a model."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from spinup_plugins.cli.console import (
    Debug,
    assignments,
    episodes,
    number,
    option_name,
    reporting,
    show,
    show_evaluation,
)
from spinup_plugins.envs.kinds import VEC_ENVS
from spinup_plugins.errors import ConfigError
from spinup_plugins.runs.files import CHECKPOINT
from spinup_plugins.yaml_files import parse_yaml

if TYPE_CHECKING:
    from spinup_plugins.runs.runner import Run

__all__ = ["command"]


def command(
    context: typer.Context,
    algo: Annotated[
        str | None,
        typer.Argument(metavar="ALGO", help="Algorithm; 'spinup list' shows them. Default: --config's."),
    ] = None,
    env: Annotated[
        str | None,
        typer.Argument(
            metavar="ENV",
            help="Gymnasium id, such as CartPole-v1, or module:id to import the module that registers it. "
            "Default: --config's.",
        ),
    ] = None,
    n_timesteps: Annotated[
        str | None,
        typer.Option(
            "-n",
            "--n-timesteps",
            metavar="STEPS",
            help="Environment steps to train for, summed over the environments. Default: the preset's, else 100000.",
        ),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of parameters, exploration and environments. Default: 0.")] = None,
    n_envs: Annotated[
        int | None, typer.Option(help="Copies of the environment, stepped side by side. Default: the preset's, else 1.")
    ] = None,
    vec_env: Annotated[
        str | None,
        typer.Option(
            metavar="KIND",
            help=f"How the copies are stepped: {'; '.join(f'{kind} {how}' for kind, how in VEC_ENVS.items())}. Default: auto.",
        ),
    ] = None,
    env_kwargs: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE",
            help="Argument of the environment's constructor; VALUE is YAML. May be repeated. Default: the preset's.",
        ),
    ] = None,
    wrap: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Wrapper around each copy: a name that 'spinup list --wrappers' shows or module:Class, with arguments as "
            "NAME:{key: value}. May be repeated, the innermost first. Default: the preset's, else none.",
        ),
    ] = None,
    normalize: Annotated[
        bool | None,
        typer.Option(
            "--normalize/--no-normalize",
            help="Normalise observations and rewards by running statistics. Default: the preset's, else off.",
        ),
    ] = None,
    policy: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="MlpPolicy, CnnPolicy, MultiInputPolicy or module:Class. Default: chosen by the observation space.",
        ),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE",
            help="Values to begin with: default (the constructor's), spinning_up (the original's), zoo (tuned for ENV) "
            "or a YAML file. Default: default.",
        ),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "-s",
            "--set",
            metavar="KEY=VALUE",
            help="Constructor argument, as 'spinup describe ALGO' lists them; VALUE is YAML. May be repeated. A dot "
            "reaches inside: policy_kwargs.net_arch=[64,64]. Default: the preset's.",
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Configuration, such as a run's config.yml; options given besides it override it. Default: none.",
        ),
    ] = None,
    eval_every: Annotated[
        str | None,
        typer.Option(
            metavar="STEPS",
            help="Environment steps between evaluations, summed over the environments; 0 for none. Default: a "
            "twentieth of the training, at least 1000.",
        ),
    ] = None,
    eval_episodes: Annotated[int | None, typer.Option(help="Episodes of each evaluation during training. Default: 5.")] = None,
    final_episodes: Annotated[int | None, typer.Option(help="Episodes of the evaluation after training. Default: 20.")] = None,
    folder: Annotated[
        Path,
        typer.Option("-f", "--folder", metavar="FOLDER", help="Folder of all runs; this one's is FOLDER/ALGO/ENV_<n>."),
    ] = Path("runs"),
    checkpoint_every: Annotated[
        str | None,
        typer.Option(
            metavar="STEPS",
            help="Environment steps between checkpoints, from which --resume goes on; 0 for none. Default: a tenth of the "
            "training, at least 10000.",
        ),
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN",
            help="Go on with the interrupted run in this folder, from its newest checkpoint, as if it had not been "
            "interrupted. Its checkpoint is unpickled: resume only runs you trust. Only --progress and --debug go with it. "
            "Default: none.",
        ),
    ] = None,
    progress: Annotated[
        bool, typer.Option("-P", "--progress", help="Show a progress bar in a terminal. Default: off.")
    ] = False,
    callback: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATH",
            help="Callback to call after every step: module:Class, module:function or module:Class:{key: value}. "
            "May be repeated. Default: none.",
        ),
    ] = None,
    threads: Annotated[int | None, typer.Option(help="Threads to compute with. Default: 1.")] = None,
    tensorboard: Annotated[
        bool | None, typer.Option("--tensorboard", help="Write TensorBoard events into the run folder. Default: off.")
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="Device of the networks: cpu, cuda, cuda:1 or auto. Default: auto.")
    ] = None,
    verbose: Annotated[
        int | None, typer.Option(help="Messages of the algorithm: 0 none, 1 progress tables, 2 debugging. Default: 0.")
    ] = None,
    debug: Debug = False,
) -> None:
    """Train an algorithm on an environment.

    Configuration, learning curve, evaluations and model are left in a run folder.
    """
    with reporting(debug):
        from spinup_plugins.runs import runner
        from spinup_plugins.runs.callbacks import ProgressBar
        from spinup_plugins.runs.config import Layer, compose, file_layer
        from spinup_plugins.wrapping import parse_wrapper

        values = {
            "algo": algo,
            "env": env,
            "n_timesteps": None if n_timesteps is None else parse_yaml(n_timesteps, "--n-timesteps"),
            "seed": seed,
            "n_envs": n_envs,
            "vec_env": vec_env,
            "env_kwargs": assignments("--env-kwargs", env_kwargs or ()),
            "wrappers": [parse_wrapper(text) for text in wrap] if wrap else None,
            "normalize": normalize,
            "policy": policy,
            "preset": preset,
            "hyperparameters": assignments("--set", set_ or ()) | _given({"device": device, "verbose": verbose}),
            "eval_every": None if eval_every is None else parse_yaml(eval_every, "--eval-every"),
            "eval_episodes": eval_episodes,
            "final_episodes": final_episodes,
            "checkpoint_every": None if checkpoint_every is None else parse_yaml(checkpoint_every, "--checkpoint-every"),
            "callbacks": callback,
            "threads": threads,
            "tensorboard": tensorboard,
        }
        if resume is None:
            below = [file_layer(config)] if config is not None else []
            run = runner.prepare(compose(*below, Layer(_given(values), option_name)), folder, command=context.obj)
        else:
            source = context.get_parameter_source("folder")
            chosen = folder if source is not None and source.name == "COMMANDLINE" else None
            for key, value in _given(values | {"config": config, "folder": chosen}).items():
                if value != {}:
                    raise ConfigError(f"--resume goes on with a run as it is: {option_name((key,))} does not go with it")
            run = runner.resume(resume)

    def reached() -> str:
        steps = f"{run.num_timesteps:,} of {run.config.n_timesteps:,} steps"
        on = f"; spinup train --resume {shlex.quote(str(run.folder))} goes on" if (run.folder / CHECKPOINT).is_file() else ""
        return f"after {steps}; the model so far is in {run.folder}{on}"

    with reporting(debug, reached):
        aside = Console(stderr=True)
        from_there = run.checkpoints.resumed
        origin = "" if from_there is None else f" from step {from_there.num_timesteps:,} on"
        what = f"training {run.config.algo} on {run.config.env} in {run.folder}{origin}"
        aside.print(what, style="dim", soft_wrap=True, markup=False)
        if progress:
            with ProgressBar(run.config.n_timesteps, aside) as bar:
                run.learn([bar])
        else:
            run.learn()
        _summarise(run)


def _given(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


def _summarise(run: "Run") -> None:
    """Print what was trained, how well it does, where it is and what to type next."""
    console = Console(highlight=False)
    config, steps = run.config, run.model.num_timesteps
    speed = f"{steps:,} steps in {run.seconds:,.0f} s ({steps / run.seconds:,.0f} a second)"
    console.print(f"{config.algo} on {config.env}, seed {config.seed}: {speed}", style="bold", soft_wrap=True)
    if run.evaluation is not None:
        show_evaluation(console, run.evaluation)
    if run.best is not None:
        step, mean = run.best
        origin = f"mean of {episodes(config.eval_episodes)} while training"
        show(console, "best", f"{number(mean)} at step {step:,}  ({origin})")
    show(console, "folder", str(run.folder))
    show(console, "next", f"spinup eval {shlex.quote(str(run.folder))}")
