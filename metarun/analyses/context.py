"""What an analysis works with: the run in question, the same under other settings, and more runs like it."""

from __future__ import annotations

import copy
import dataclasses
import functools
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from metarun.config.schema import Config, check
from metarun.errors import SettingError, UserError
from metarun.storage.run_folder import RunFolder
from metarun.storage.status import FINAL
from metarun.training import checkpoint
from metarun.training.evaluation import REFERENCE_INPUTS, Evaluation, replace_model
from metarun.training.experiment import Experiment, assemble
from metarun.types import Algorithm, Params


@dataclass(frozen=True)
class TrainedRun:
    """A run that an analysis asked for."""

    summary: dict[str, Any]
    folder: RunFolder
    cpu_seconds: float | None = None  # of training and test; None of one that was stopped and continued

    @property
    def diverged(self) -> bool:
        return self.summary["status"] == "diverged"


@dataclass(frozen=True)
class Context:
    config: Config
    source: RunFolder | None  # of the run in question; None where the settings alone are
    folder: Path  # of the analysis
    train_run: Callable[..., Any]  # (config, run folder, quiet=) -> Result: the job that trains

    def changed(self, changes: Mapping[str, Any]) -> Config:
        """The settings with `changes`, dotted key -> value."""
        config = copy.deepcopy(self.config)
        config.analysis, config.run, config.resume, config.job = {}, None, None, "train"
        for key, value in changes.items():
            _set(config, key, value)
        check(config)
        return config

    def experiment(self, changes: Mapping[str, Any] | None = None) -> Experiment:
        return assemble(self.changed(changes or {}))

    @functools.cached_property
    def own(self) -> tuple[Experiment, Params]:
        """The run in question under its own settings, assembled once for all cells."""
        experiment = self.experiment()
        return experiment, self.params(experiment)

    @functools.cached_property
    def learner(self) -> Algorithm:
        """Its learner for test episodes, with population statistics where its network has such."""
        experiment, params = self.own
        reference = experiment.placement.move(experiment.dataset.reference_inputs(REFERENCE_INPUTS))
        return replace_model(experiment.tested, experiment.tested.model.calibrate(params, reference))

    def params(self, experiment: Experiment) -> Params:
        """The best checkpoint of the run in question."""
        if self.source is None:
            raise SettingError("run", None, "this analysis needs a trained run, as run=outputs/DATE/TIME-maml-sinusoid")
        return restored(self.source, experiment)

    def evaluate(self, changes: Mapping[str, Any] | None = None) -> Evaluation:
        """The run in question on its test episodes, under changed settings."""
        experiment = self.experiment(changes)
        return experiment.tester()(experiment.tested, self.params(experiment))

    def train(self, name: str, changes: Mapping[str, Any]) -> TrainedRun:
        """A run with changed settings in runs/NAME: done now, continued, or found done. It trains from the start,
        not from the run in question."""
        record = RunFolder(self.folder / "runs" / name)
        config = self.changed(changes)
        found = record.read_summary()
        if found.get("status") in FINAL:
            return TrainedRun(found, record, _cost(record))
        config.resume = str(record.path) if record.begun() else None
        start = time.process_time()
        result = self.train_run(config, record, quiet=True)
        if result.status == "interrupted":
            raise KeyboardInterrupt
        if not config.resume:
            record.write_json("cost.json", {"cpu_seconds": time.process_time() - start})
        return TrainedRun(result.summary, record, _cost(record))


def sound(losses: Tensor, scores: Tensor) -> Tensor:
    """Scores, and not a number where the loss is not finite: the accuracy of outputs that are none is that of a guess,
    and would hide that adaptation diverged."""
    return scores.where(losses.isfinite(), torch.nan)


def restored(run: RunFolder, experiment: Experiment) -> Params:
    """The best checkpoint of a run, on the experiment's device."""
    params = experiment.initial_params()
    checkpoint.restore_params(checkpoint.best_of(run), params)
    return params


def _cost(record: RunFolder) -> float | None:
    try:
        return json.loads((record.path / "cost.json").read_text(encoding="utf-8"))["cpu_seconds"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _set(config: Config, key: str, value: Any) -> None:
    *path, last = key.split(".")
    node: Any = config
    for part in path:
        node = node[part] if isinstance(node, dict) else getattr(node, part, None)
    if isinstance(node, dict) and (last in node or path == ["data"]):
        node[last] = value
    elif dataclasses.is_dataclass(node) and hasattr(node, last):
        setattr(node, last, value)
    else:
        raise UserError(f"{key}={value}: this run has no such setting")
