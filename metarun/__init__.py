"""metarun: compose, train, evaluate and compare meta-learning algorithms.

The command line and these functions do the same things:

    config = metarun.compose(["algo=imaml", "data=sinusoid", "train.steps=100"])
    result = metarun.run(config, "outputs/mine")
    run = metarun.load("outputs/mine")
    run.evaluate("test.tasks=1000")
    run.adapt(support_x, support_y).predict(x)

Components of your own are objects (`run(config, model=..., dataset=..., loss=...)`) or names (`model.target=...`):
docs/own_network.md, docs/own_data.md.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metarun.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from metarun.config.schema import Config
    from metarun.jobs import Result
    from metarun.jobs.loaded_run import LoadedRun
    from metarun.training.evaluation import MetricFunction
    from metarun.types import Algorithm, Dataset

logging.getLogger(__name__).addHandler(logging.NullHandler())  # what a run prints is not printed again by logging

__version__ = "0.1.0"
__all__ = ["UserError", "build_algorithm", "compose", "load", "run"]


def compose(overrides: Sequence[str] = (), config_dir: str | Path | None = None) -> Config:
    """Return the settings that these overrides give on the command line.

    Args:
        overrides: as on the command line, `["algo=imaml", "data=omniglot", "train.steps=100"]`. With
            `["job=evaluate", "run=FOLDER"]` or `["resume=FOLDER"]` the settings are those of that run.
        config_dir: a folder with YAML files of yours, as `--config-dir` names it.

    Raises:
        UserError: for an override that cannot work, with the line of the command line.
    """
    from metarun.cli.compose import compose
    from metarun.cli.usage_errors import user_errors

    if isinstance(overrides, str):
        raise UserError(f"compose({overrides!r}): takes a list of overrides, as compose([{overrides!r}])")
    with user_errors():
        return compose([str(override) for override in overrides], config_dir)


def run(
    config: Config,
    folder: str | Path | None = None,
    *,
    model: Any = None,
    dataset: Dataset | None = None,
    loss: Any = None,
    metrics: Mapping[str, MetricFunction] | None = None,
    callbacks: Sequence[Any] = (),
) -> Result:
    """Do the job of these settings: train, evaluate, ...

    Args:
        config: settings, of `compose`.
        folder: the run folder, made if it is not there. None: the folder of a run that `resume=` names, or else a new
            one, outputs/DATE/TIME-ALGO-DATA. The analysis of a run writes to RUN/analyses/NAME, `result.folder`.
        model: a network of yours in place of `config.model`: a `torch.nn.Module` or a `metarun.types.Model`.
        dataset: a data set of yours in place of `config.data` (`metarun.types.Dataset`); the sizes of the episodes
            remain settings (`data.shots`, ...).
        loss: a loss in place of the usual one: a function (prediction, y) -> scalar, or a `metarun.types.Loss`.
        metrics: name -> a function (prediction, y) -> number of one test task, reported beside the loss. It gets
            tensors on the CPU and may use any library.
        callbacks: objects with any of `on_step(state)`, `on_validation(state, evaluation)`, `on_end(summary)`. An
            error in one is reported and does not stop the run.

    Returns:
        The result: `summary` (what summary.json holds), `folder`, and after training or testing `params` and
        `experiment`.

    Raises:
        UserError: for settings that cannot work, with the line of the command line.
    """
    from metarun.cli.compose import default_folder
    from metarun.cli.usage_errors import user_errors
    from metarun.jobs import run

    with user_errors():
        own = None
        if callbacks or any(part is not None for part in (model, dataset, loss, metrics)):
            from metarun.training.own_parts import OwnParts

            own = OwnParts(model, dataset, loss, metrics or {}, callbacks)
        return run(config, folder or default_folder(config), own)


def load(
    folder: str | Path,
    *overrides: str,
    model: Any = None,
    dataset: Dataset | None = None,
    loss: Any = None,
    metrics: Mapping[str, MetricFunction] | None = None,
    config_dir: str | Path | None = None,
) -> LoadedRun:
    """Open a run folder: `summary`, `scores`, `curves`, `adapt(x, y).predict(x)`, `evaluate()`, `plot()`.

    Args:
        folder: a run folder, such as `result.folder`.
        overrides: settings that a run folder does not decide, as `"trusted_modules=[mypackage]"`, or other ones.
        model: the network that the run was made with, if it was an object; so too the next three (see `run`).
        dataset: the data set of the run.
        loss: the loss of the run.
        metrics: the further metrics of the run.
        config_dir: a folder with YAML files of yours, if the run was made with one.

    Raises:
        UserError: if there is no run in the folder.
    """
    from metarun.jobs.loaded_run import LoadedRun
    from metarun.training.own_parts import OwnParts

    def test_again(more: Sequence[str], target: Path | None) -> Result:
        config = compose([*evaluation, *more], config_dir)
        return run(config, target, model=model, dataset=dataset, loss=loss, metrics=metrics)

    path = Path(folder)
    quoted = str(path).replace('"', r"\"")
    evaluation = ["job=evaluate", f'run="{quoted}"', *overrides]
    return LoadedRun(path, compose(evaluation, config_dir), test_again, OwnParts(model, dataset, loss, metrics or {}))


def build_algorithm(config: Config) -> Algorithm:
    """The algorithm of these settings with its network, sized for training episodes."""
    from metarun.training.experiment import assemble

    return assemble(config).algorithm


def __getattr__(name: str) -> Any:
    if name in ("train", "Trainer"):
        from metarun.training import loop

        return getattr(loop, name)
    raise AttributeError(f"module 'metarun' has no attribute {name!r}")
