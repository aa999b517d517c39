"""Other data sets for the network of a run: `analysis.sets`, with the inputs that the network is made for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from metarun.config.components import construct, locate
from metarun.config.data_sets import INPUTS
from metarun.errors import SettingError, UserError
from metarun.training.experiment import Experiment
from metarun.types import Dataset, DatasetOptions, optional


def open_set(
    name: str, entry: Mapping[str, Any], experiment: Experiment, whose: str = "the run"
) -> tuple[Dataset, str]:
    """The data set of an entry of `analysis.sets`, and what the run's inputs change of its settings. `whose` network it
    must fit, in words. Raise `UserError` where it cannot be opened, or has other inputs."""
    key, settings = f"analysis.sets.{name}", {**entry}
    option = settings.pop("data", name)
    changes = fit_inputs(settings, experiment)
    try:
        target = locate("data", settings, experiment.config.trusted_modules)
        dataset: Dataset = construct(key, target, settings | changes)
        theirs = f"{dataset.kind} of inputs {list(dataset.input_shape())}"
        dataset.facts()  # reads its files
    except SettingError as error:
        raise error if error.key.startswith("analysis.") else error.under(key) from error
    except UserError as error:
        raise error if str(error).startswith("analysis.") else UserError(f"{key}: {error}") from error
    ours = f"{experiment.dataset.kind} of inputs {list(experiment.dataset.input_shape())}"
    if theirs != ours:
        raise SettingError(key, option, f"is {theirs}; {whose} learned {ours}")
    return dataset, describe_changes(changes, settings)


def fit_inputs(settings: Mapping[str, Any], experiment: Experiment) -> dict[str, Any]:
    """The settings of a data set's images that must be those of the run."""
    pixels = optional(experiment.dataset, DatasetOptions, "pixels")
    needed = dict(zip(INPUTS, (pixels.size, pixels.channels, pixels.normalize), strict=True)) if pixels else {}
    return {k: v for k, v in needed.items() if settings.get(k, v) != v}


def describe_changes(changes: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{k} {settings[k]} to {v}" for k, v in changes.items())
